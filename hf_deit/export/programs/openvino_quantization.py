"""Classifiers in int8 for OpenVINO, by NNCF."""

import os
from typing import Any, NamedTuple

import nncf
import openvino
from transformers.exporters import NNCFOpenVINOQuantizer, NNCFQuantizationConfig
from transformers.exporters.configs import ExportFormat

from ...errors import InputError
from .calibration import Calibration, Singly
from .layers import kept_in_float, layers_in_order
from .openvino_program import core_model, with_preprocessing, write
from .quantization import QuantizationSettings, facts_of
from .source import ExportSource

CLASSIFIER = "classifier_quantized.xml"
_METHOD = "NNCF's for transformers: the mean of the smallest and largest values, SmoothQuant, corrected biases"
_LINEAR, _CONVOLUTION = ("aten.linear", "aten.addmm"), ("aten.convolution", "aten.conv2d")


def quantize_openvino(
    source: ExportSource, folder: str, calibration: Calibration, settings: QuantizationSettings
) -> dict[str, Any]:
    """Writes `classifier_quantized.xml` and its weights into a folder; see `quantize`."""
    core = quantized_core(source, calibration, settings.exclude_layers)
    write(with_preprocessing(core.model, source.preprocessing), source, os.path.join(folder, CLASSIFIER))
    return facts_of(settings, calibration, core.left_out, core.num_quantized, "openvino", method=_METHOD)


class QuantizedCore(NamedTuple):
    """The network in int8, the layers that were left out of it, and how many were not."""

    model: openvino.Model
    left_out: list[str]
    num_quantized: int


def quantized_core(
    source: ExportSource, calibration: Calibration, exclude_layers: tuple[str, ...] = ()
) -> QuantizedCore:
    """The network alone in int8, as `core_model` has it in float32."""
    core = core_model(source)
    operators = [node for node in core.get_ordered_ops() if node.get_type_name() in ("MatMul", "Convolution")]
    names = [node.get_friendly_name() for node in operators]
    linear = [name for name in names if any(kind in name for kind in _LINEAR)]
    convolutions = [name for name in names if any(kind in name for kind in _CONVOLUTION)]
    left_out, layers = [], {}
    if exclude_layers:
        layers = _by_layer(source, linear, convolutions)
        left_out = kept_in_float(exclude_layers, list(layers))
    products = [name for name in names if name not in linear and name not in convolutions]  # in the attention
    first = convolutions[:1]
    ignored = [*first, *products, *(layers[layer] for layer in left_out)]
    config = NNCFQuantizationConfig(
        subset_size=calibration.num_images,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=list(dict.fromkeys(ignored))),
    )
    quantizer = NNCFOpenVINOQuantizer(config, calibration_dataset=Singly(calibration))
    model = quantizer.quantize(core, {}, ExportFormat.OPENVINO)
    return QuantizedCore(model, left_out, len(set(linear) | set(convolutions[1:])) - len(left_out))


def _by_layer(source: ExportSource, linear: list[str], convolutions: list[str]) -> dict[str, str]:
    """OpenVINO's name of each layer's operator.

    Raises:
        InputError: they cannot be told, as OpenVINO keeps no names of modules, and there are more or fewer of them.
    """
    known = layers_in_order(source.classifier)
    counts = (len(known.linear), len(known.convolutions)), (len(linear), len(convolutions))
    if counts[0] != counts[1]:
        raise InputError(
            "--exclude_layers cannot be followed --to openvino: of this model's {} linear layers and {} convolutions "
            "OpenVINO has made {} and {}, and no names of them, so that it is not known which is which. Leave "
            "openvino out, or --exclude_layers".format(*counts[0], *counts[1])
        )
    return dict(zip((*known.convolutions, *known.linear), (*convolutions, *linear), strict=True))
