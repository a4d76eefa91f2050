"""Exports beside a model, made up: files of any content, and the record that names them."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_deit.hub.export_record import ExportedFile, ExportRecord, ParityRecord
from hf_deit.hub.report_in_card import preprocessing_digest
from hf_deit.models.pretrained import weights_digest

FILES = {
    "onnx": {
        "classifier.onnx": ("classifier", "float32"),
        "classifier_quantized.onnx": ("classifier", "int8-dynamic"),
        "model.onnx": ("model", "float32"),
        "model_quantized.onnx": ("model", "int8-dynamic"),
    },
    "openvino": {"classifier.xml": ("classifier", "float32"), "classifier.bin": ("support", "float32")},
    "executorch": {"model.pte": ("model", "float32"), "preprocessing.py": ("support", None)},
    "torch": {"classifier.pt2": ("classifier", "float32")},
}


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def parity(precision: str = "float32", **changes: Any) -> ParityRecord:
    values = {
        "precision": precision,
        "images": "split validation of sklearn:digits",
        "num_images": 360,
        "agreement": interval(0.9972, 0.9844, 0.9995),
        "largest_difference": 0.0213,
        "accuracy": interval(0.9722, 0.95, 0.9847),
        "trained_accuracy": interval(0.975, 0.953, 0.987),
        "cost": interval(0.0028, -0.0026, 0.0082),
        "differing": ({"image": "/home/ada/images/x.png", "trained": "1", "exported": "7", "difference": 0.2},),
        "runtime": {"onnxruntime": "1.32.0"},
        "without_torch": True,
        "odd_images": {
            "images": "built-in odd images",
            "num_images": 12,
            "agreement": interval(1.0, 0.7575, 1.0),
            "largest_difference": 0.01,
            "usual_difference": 0.001,
            "differing": [{"image": "stripes.png"}],
        },
    }
    return ParityRecord(**{**values, **changes})


def exported(
    folder: Path, format: str = "onnx", contents: Mapping[str, bytes] | None = None, **changes: Any
) -> ExportRecord:
    """Writes an export of the model in a folder.

    Args:
        contents: of its files, by their names; of all of `FILES` by default.
        **changes: fields of the record.
    """
    known = FILES[format]
    contents = {name: f"{format} {name}".encode() for name in known} if contents is None else contents
    (folder / format).mkdir(exist_ok=True)
    files = []
    for name, content in contents.items():
        (folder / format / name).write_bytes(content)
        purpose, precision = known.get(name, ("support", None))
        files.append(ExportedFile(name, purpose, precision, len(content), hashlib.sha256(content).hexdigest()))
    model = {
        "name_or_path": None,
        "revision": None,
        "weights_digest": weights_digest(folder),
        "preprocessing_digest": preprocessing_digest(folder),
        "architecture": "DistilledDeiTForImageClassification",
        "model_type": "deit",
        "fusion": "logits",
    }
    precisions = dict.fromkeys(file.precision for file in files if file.precision)
    values = {
        "format": format,
        "model": model,
        "labels": tuple(map(str, range(10))),
        "preprocessing": {"resize": "exact", "size": [16, 16]},
        "files": tuple(files),
        "parity": tuple(map(parity, precisions)),
        "versions": {"onnx": "1.23.2"},
    }
    record = ExportRecord(**{**values, **changes})
    write(folder, record.to_dict())
    return record


def write(folder: Path, record: Mapping[str, Any]) -> None:
    (folder / record["format"] / "export.json").write_text(json.dumps(record))


def answer(images: np.ndarray, num_labels: int = 10) -> np.ndarray:
    """What the programs of these tests answer: (B, K), of each image its first channel's first K levels."""
    first = images[:, 0, :num_labels, 0].astype(np.float32)
    return first / first.sum(axis=1, keepdims=True)


def onnx_program(num_labels: int = 10) -> bytes:
    """`answer` in ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    ends = {"starts": [0, 0, 0], "ends": [1, num_labels, 1], "axes": [1, 2, 3], "shape": [-1, num_labels], "axis": [1]}
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["levels", "starts", "ends", "axes"], ["first"]),
        helper.make_node("Reshape", ["first", "shape"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["sums"], keepdims=1),
        helper.make_node("Div", ["rows", "sums"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "answer",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", num_labels])],
        [numpy_helper.from_array(np.array(values), name) for name, values in ends.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def onnx_network(size: int = 16, num_labels: int = 10) -> bytes:
    """Takes `pixel_values`, gives `logits`: the first pixels of each image."""
    from onnx import TensorProto, helper, numpy_helper

    ends = {"starts": [0, 0, 0], "ends": [1, 1, num_labels], "axes": [1, 2, 3], "shape": [-1, num_labels]}
    nodes = [
        helper.make_node("Slice", ["pixel_values", "starts", "ends", "axes"], ["first"]),
        helper.make_node("Reshape", ["first", "shape"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_labels])],
        [numpy_helper.from_array(np.array(values), name) for name, values in ends.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def openvino_program(folder: Path) -> dict[str, bytes]:
    """`answer` in OpenVINO: its two files."""
    import openvino

    path = folder / "classifier.onnx"
    path.write_bytes(onnx_program())
    openvino.save_model(openvino.convert_model(path), folder / "classifier.xml", compress_to_fp16=False)
    return {name: (folder / name).read_bytes() for name in ("classifier.xml", "classifier.bin")}


class _First(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = images[:, 0, :10, 0].float()
        return first / first.sum(dim=1, keepdim=True)


def torch_program() -> bytes:
    """`answer` as a program of torch.export."""
    dimensions = {0: torch.export.Dim("batch"), 2: torch.export.Dim("width", min=10)}
    program = torch.export.export(
        _First(), (torch.zeros(2, 30, 41, 3, dtype=torch.uint8),), dynamic_shapes=({**dimensions, 1: None},)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


class _Same(torch.nn.Module):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return (pixel_values * 1.0).sum(dim=(1, 2))


_PREPROCESSING = """
import numpy as np

def pixel_values(image):
    return np.log(np.asarray(image)[:1, :10, :1].transpose(2, 0, 1)[None].astype("float32"))

def probabilities(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
"""


def executorch_program() -> dict[str, bytes]:
    """`answer` in ExecuTorch, with its preprocessing beside it."""
    from executorch.exir import to_edge

    program = to_edge(torch.export.export(_Same(), (torch.zeros(1, 1, 1, 10),))).to_executorch()
    return {"model.pte": program.buffer, "preprocessing.py": _PREPROCESSING.encode()}
