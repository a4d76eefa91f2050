"""Classifiers in int8 for ExecuTorch's XNNPACK, by PT2E."""

import os
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from transformers.exporters import PT2EQuantizer

from .calibration import Calibration, Singly
from .executorch_program import core_program, write
from .layers import kept_in_float, layers_in_order
from .quantization import QuantizationSettings, facts_of
from .source import ExportSource

MODEL = "model_quantized.pte"
_ACTIVATIONS = "int8, asymmetric, a scale for each layer (of dynamic, for each token)"
_METHOD = (
    "of weights the largest value; of activations the range in which their histogram loses least (of dynamic, all)"
)
_LINEAR = ("linear", "addmm", "mm")
_WEIGHTED = (*_LINEAR, "conv2d", "convolution")


def quantize_executorch(
    source: ExportSource, folder: str, calibration: Calibration | None, settings: QuantizationSettings
) -> dict[str, Any]:
    """Writes `model_quantized.pte` into a folder; see `quantize`. The preprocessors beside `model.pte` go with it."""
    is_dynamic = settings.mode == "dynamic"
    known = layers_in_order(source.classifier)
    layers = list(known.linear if is_dynamic else (*known.convolutions[1:], *known.linear))
    left_out = kept_in_float(settings.exclude_layers, layers)
    chosen = {layer for layer in layers if layer not in left_out}

    def is_chosen(node: torch.fx.Node) -> bool:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        operator = getattr(node.target, "__name__", "").partition(".")[0]
        path = stack[-1][0] if stack else ""
        return operator in _WEIGHTED and any(path == layer or path.endswith(f".{layer}") for layer in chosen)

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    xnnpack = XNNPACKQuantizer().set_global(config).set_filter_function(is_chosen)
    program = core_program(source, PT2EQuantizer(xnnpack, None if is_dynamic else Singly(calibration)))
    write(program, os.path.join(folder, MODEL))
    return facts_of(
        settings, calibration, left_out, len(chosen), "executorch", method=_METHOD, activations=_ACTIVATIONS
    )
