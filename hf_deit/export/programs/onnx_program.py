"""A classifier in ONNX: `model.onnx` takes `pixel_values`, `classifier.onnx` images as they are.

Both consist of ONNX's standard operators alone, so that they run in ONNX Runtime, in onnxruntime-web and in OpenVINO,
and take batches of any size. `onnx/model.onnx` beside config.json and preprocessor_config.json is the layout that
transformers.js and Optimum read.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from transformers.exporters import OnnxConfig, OnnxExporter

from ...errors import InputError
from .core import BATCH, converting, pixels
from .layers import name_by_module
from .onnx_preprocessing import OPSET, preprocessing_graph
from .preprocessing import Preprocessing
from .source import ExportSource

MODEL, CLASSIFIER = "model.onnx", "classifier.onnx"
# A protobuf holds less than 2 GiB: weights of more lie beside it, in a file with this ending as transformers.js and
# Optimum call it.
LARGEST_FILE = 2**31 - 2**24
EXTERNAL_DATA_SUFFIX = "_data"
_STANDARD = ("", "ai.onnx")  # domains of operators


def core_model(source: ExportSource, outputs: Sequence[str] = ("logits",)) -> onnx.ModelProto:
    """The network alone: `pixel_values` float32 (batch, 3, height, width) → `logits` float32 (batch, K).

    Args:
        outputs: of those that the model gives, in this order: of two heads also "cls_logits", "distillation_logits".

    Raises:
        InputError: the model cannot be converted; the message names the operator or the reason.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    inputs = {"pixel_values": pixels(source, 2), **source.classifier.forward_options}
    shapes = {name: BATCH if name == "pixel_values" else None for name in inputs}
    config = OnnxConfig(dynamic_shapes=shapes, opset_version=OPSET)
    with converting("ONNX", source), torch.no_grad():
        program = OnnxExporter().export(source.classifier.model, inputs, config=config).program
        found = {value.name: value for value in program.graph.outputs}
        program.graph.outputs[:] = [found[name] for name in outputs]
        RemoveUnusedNodesPass()(program)
        model = onnx_ir.to_proto(program)
    name_by_module(model)
    without_traces(model)
    _check_standard(model, source)
    return model


def with_preprocessing(core: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """The network with all that goes before and after: `images` uint8 (batch, height, width, 3), RGB, of any size →
    `probabilities` float32 (batch, K), in the order of the labels."""
    before = preprocessing_graph(preprocessing)
    (logits,) = (value for value in core.graph.output if value.name == "logits")
    num_labels = logits.type.tensor_type.shape.dim[1].dim_value
    model = onnx.ModelProto()
    model.CopyFrom(core)
    graph = model.graph
    del graph.input[:], graph.output[:]
    graph.input.extend(before.input)
    core_nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(before.node)
    graph.node.append(helper.make_node("Identity", ["prepared"], ["pixel_values"], name="pixel_values"))
    graph.node.extend(core_nodes)
    graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], name="probabilities", axis=-1))
    graph.initializer.extend(before.initializer)
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", num_labels])
    graph.output.append(answer)
    return model


def with_metadata(model: onnx.ModelProto, source: ExportSource) -> onnx.ModelProto:
    """Gives a file labels, preprocessing and the model's origin as its metadata, each as JSON.

    "labels": in the order of the probabilities; "preprocessing": `Preprocessing.to_dict()`, with sizes and statistics;
    "model": `ExportSource.facts`, with the commit.
    """
    values: dict[str, Any] = {
        "labels": json.dumps(list(source.labels), ensure_ascii=False),
        "preprocessing": json.dumps(source.preprocessing.to_dict()),
        "model": json.dumps(source.facts),
    }
    helper.set_model_props(model, values)
    return model


def save_onnx(model: onnx.ModelProto, path: str, *, largest_file: int = LARGEST_FILE) -> None:
    """Writes a model in one file, or, where its weights have more than `largest_file` bytes, these beside it.

    The model's weights then are in that file alone.
    """
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= largest_file:
        onnx.save_model(model, path)
        return
    location = f"{os.path.basename(path)}{EXTERNAL_DATA_SUFFIX}"
    if os.path.exists(beside := os.path.join(os.path.dirname(path), location)):
        os.remove(beside)  # onnx would append to it
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=1024)


def export_onnx(source: ExportSource, folder: str) -> None:
    """Writes `model.onnx` and `classifier.onnx` into a folder.

    Raises:
        InputError: see `core_model`.
    """
    core = with_metadata(core_model(source), source)
    whole = with_metadata(with_preprocessing(core, source.preprocessing), source)
    save_onnx(core, os.path.join(folder, MODEL))
    save_onnx(whole, os.path.join(folder, CLASSIFIER))


def without_traces(model: onnx.ModelProto) -> None:
    """Takes out what the conversion has noted for its developers: among it paths of the machine that it ran on."""
    del model.metadata_props[:], model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input):
        del item.metadata_props[:]
        item.doc_string = ""


def _check_standard(model: onnx.ModelProto, source: ExportSource) -> None:
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in _STANDARD})
    if foreign or model.functions:
        raise InputError(
            f"ONNX has no operator for all that the model {source.classifier.name!r} does: "
            f"{', '.join(foreign) or 'functions of its own'}; export it --to another format"
        )
    (value,) = model.graph.input
    sizes = value.type.tensor_type.shape.dim
    if not sizes[0].dim_param:
        raise InputError(
            f"the model {source.classifier.name!r} can be converted for batches of {sizes[0].dim_value} images only: "
            "its forward makes a Python number of the batch size (len(pixel_values), or an if on it)"
        )
    sizes[0].dim_param = "batch"
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
