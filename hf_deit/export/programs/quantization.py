"""Classifiers in int8: their layers' weights, and what these are multiplied with; all else stays float32.

Softmax, LayerNorm, GELU, the products inside the attention, residual sums and the preprocessing are never quantised.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import onnx
import torch

from ...errors import InputError
from ..int8 import check_int8
from .calibration import Calibration
from .layers import kept_in_float, weighted_layers
from .onnx_program import core_model, save_onnx, with_metadata, with_preprocessing
from .source import ExportSource

MODEL, CLASSIFIER = "model_quantized.onnx", "classifier_quantized.onnx"
_PACKAGES = {"onnx": ("onnxruntime",), "openvino": ("openvino", "nncf"), "executorch": ("executorch", "torchao")}
_LINEAR = ("MatMul", "Gemm")
_METHOD = "the smallest and the largest value"
_WEIGHTS = "int8, symmetric, a scale for each output channel"
_ACTIVATIONS = "uint8, asymmetric, a scale for each layer"


@dataclass(frozen=True)
class QuantizationSettings:
    """What is quantised.

    Attributes:
        mode: "dynamic" measures the scale of each layer's inputs anew for each batch, "static" once, on images.
        exclude_layers: names or patterns of layers that stay float32; see `matching`.
    """

    mode: Literal["dynamic", "static"]
    exclude_layers: tuple[str, ...] = ()


def quantize(
    source: ExportSource, folder: str, format: str, calibration: Calibration | None, settings: QuantizationSettings
) -> dict[str, Any]:
    """Writes the int8 files of a format into a folder.

    Args:
        source: the classifier.
        folder: of the format; it exists.
        format: of `FORMATS`.
        calibration: of "static"; None of "dynamic".
        settings: see there.

    Returns:
        Facts for `ExportRecord.quantization`, of JSON's types: "mode", "weights", "activations", "method",
        "calibration" (see `Calibration.facts`; None of "dynamic"), "exclude_layers" as given, "float_layers" that
        were left out for it, "num_quantized_layers", "versions".

    Raises:
        InputError: the format has no such int8 (see `INT8`), a pattern means no layer, or the model cannot be
            quantised.
    """
    check_int8([format], settings.mode)
    if settings.mode == "static" and calibration is None:
        raise ValueError("static quantisation needs calibration images")
    if format == "onnx":
        return quantize_onnx(source, folder, calibration, settings)
    if format == "openvino":
        from .openvino_quantization import quantize_openvino

        return quantize_openvino(source, folder, calibration, settings)
    from .executorch_quantization import quantize_executorch

    return quantize_executorch(source, folder, calibration, settings)


def quantize_onnx(
    source: ExportSource, folder: str, calibration: Calibration | None, settings: QuantizationSettings
) -> dict[str, Any]:
    """Writes `model_quantized.onnx` and `classifier_quantized.onnx` into a folder; see `quantize`."""
    core = core_model(source)
    layers = quantizable(core, settings.mode)
    left_out = kept_in_float(settings.exclude_layers, list(dict.fromkeys(layers.values())))
    nodes = [node for node, layer in layers.items() if layer not in left_out]
    quantized = quantized_core(core, settings.mode, nodes, calibration)
    whole = with_metadata(with_preprocessing(quantized, source.preprocessing), source)
    save_onnx(with_metadata(quantized, source), os.path.join(folder, MODEL))
    save_onnx(whole, os.path.join(folder, CLASSIFIER))
    return facts_of(settings, calibration, left_out, len(set(layers.values())) - len(left_out), "onnx")


def quantizable(core: onnx.ModelProto, mode: str) -> dict[str, str]:
    """The layers that a mode can quantise, by their nodes; see `weighted_layers`.

    Raises:
        InputError: they hold less than half of the weights, so that int8 would change little.
    """
    layers = weighted_layers(core)
    if mode == "static":
        return layers
    sizes = {tensor.name: len(tensor.raw_data) for tensor in core.graph.initializer}
    weights = {node.name: sizes[node.input[1]] for node in core.graph.node if node.name in layers}
    linear = {node.name for node in core.graph.node if node.name in layers and node.op_type in _LINEAR}
    if 2 * sum(weights[name] for name in linear) < sum(weights.values()):
        raise InputError(
            "--int8 dynamic quantises linear layers, and most of this model's weights are in convolutions: give "
            "--int8 static"
        )
    return {node: layer for node, layer in layers.items() if node in linear}


def quantized_core(
    core: onnx.ModelProto, mode: str, nodes: Sequence[str], calibration: Iterable[dict[str, torch.Tensor]] | None
) -> onnx.ModelProto:
    """The network with some of its nodes in int8; `core` stays as it is.

    Weights take 7 of their 8 bits: processors with AVX2 or AVX-512 but without VNNI, and WebAssembly's relaxed SIMD,
    add two products in 16 bits, and 8 would overflow there, so that the answer would hang on the machine.
    """
    import onnx_ir
    from onnxruntime.quantization import QuantType
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig
    from transformers.exporters.configs import ExportFormat

    common = {
        "nodes_to_quantize": list(nodes),
        "per_channel": True,
        "reduce_range": True,
        "weight_type": QuantType.QInt8,
    }
    if mode == "dynamic":
        config: Any = OnnxRuntimeDynamicConfig(op_types_to_quantize=list(_LINEAR), **common)
    else:
        # Results of linear layers stay float: so ONNX Runtime adds the bias while it scales them, and neither the
        # residual sum nor GELU, LayerNorm and softmax see what int8 would round off. It fuses convolutions only
        # with their results in int8.
        config = OnnxRuntimeStaticConfig(
            op_types_to_quantize=[*_LINEAR, "Conv"],
            activation_type=QuantType.QUInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": list(_LINEAR)},
            **common,
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(core)
    quantizer = OnnxRuntimeQuantizer(config, calibration_dataset=calibration)
    model = onnx_ir.to_proto(quantizer.quantize(onnx_ir.from_proto(copy), {}, ExportFormat.ONNX))
    del model.metadata_props[:]
    return model


def facts_of(
    settings: QuantizationSettings,
    calibration: Calibration | None,
    left_out: Sequence[str],
    num_quantized: int,
    format: str,
    **others: str,
) -> dict[str, Any]:
    """What `quantize` returns."""
    return {
        "mode": settings.mode,
        "weights": _WEIGHTS,
        "activations": _ACTIVATIONS,
        "method": _METHOD,
        "calibration": None if settings.mode == "dynamic" else calibration.facts,
        "exclude_layers": list(settings.exclude_layers),
        "float_layers": list(left_out),
        "num_quantized_layers": num_quantized,
        "versions": {name: version(name) for name in _PACKAGES[format]},
        **others,
    }
