"""A classifier in OpenVINO's format: `classifier.xml` and its weights take images as they are."""

import io
import json
import os

import openvino
import openvino.opset14 as ops
from transformers.exporters import OpenVINOExporter
from transformers.exporters.configs import OpenVINOConfig

from .core import BATCH, FusedLogits, exported, pixels
from .onnx_preprocessing import preprocessing_model
from .preprocessing import Preprocessing
from .source import ExportSource

CLASSIFIER = "classifier.xml"
METADATA = "hf_deit"  # the section of the file's `rt_info`


def export_openvino(source: ExportSource, folder: str) -> None:
    """Writes `classifier.xml` and `classifier.bin` into a folder: `images` uint8 (B, H, W, 3), RGB, of any size →
    `probabilities` float32 (B, K).

    Raises:
        InputError: OpenVINO refuses the network.
    """
    write(with_preprocessing(core_model(source), source.preprocessing), source, os.path.join(folder, CLASSIFIER))


def core_model(source: ExportSource) -> openvino.Model:
    """The network alone: `pixel_values` float32 (B, 3, height, width) → `logits` float32 (B, K)."""
    config = OpenVINOConfig(dynamic_shapes={"pixel_values": BATCH})
    inputs = {"pixel_values": pixels(source, 2)}
    return exported(OpenVINOExporter, source, FusedLogits(source.classifier), inputs, config)


def with_preprocessing(core: openvino.Model, preprocessing: Preprocessing) -> openvino.Model:
    """The network with all that goes before and after it. `core`, as `core_model` makes it, becomes a part of it.

    What goes before is the graph of the ONNX files: OpenVINO's own operator for it (Interpolate-11, "bicubic_pillow")
    takes 40 s for a photograph of 4000 x 3000 pixels, and does not know the other filters.
    """
    before = openvino.Core().read_model(io.BytesIO(preprocessing_model(preprocessing).SerializeToString()))
    pixel_values = before.output(0).get_node().input_value(0)
    core.input("pixel_values").get_node().output(0).replace(pixel_values)
    logits = core.output("logits").get_node().input_value(0)
    probabilities = ops.softmax(logits, -1)
    probabilities.output(0).get_tensor().set_names({"probabilities"})
    return openvino.Model([ops.result(probabilities)], before.get_parameters(), "classifier")


def write(model: openvino.Model, source: ExportSource, path: str) -> None:
    """Writes a classifier with its labels, its preprocessing and its origin in the file's own `rt_info`."""
    values = {
        "labels": list(source.labels),
        "preprocessing": source.preprocessing.to_dict(),
        "model": source.facts,
    }
    for name, value in values.items():
        model.set_rt_info(json.dumps(value, ensure_ascii=False), [METADATA, name])
    openvino.save_model(model, path, compress_to_fp16=False)
