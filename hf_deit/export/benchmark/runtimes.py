"""The formats that a classifier is exported to: the networks that `hf-deit export` writes, without the preprocessing.

Their packages are loaded where they are used.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from .arms import Answer, Making, Programs


def make_onnx(making: "Making") -> "Programs":
    """`model.onnx`, as it is exported."""
    return making.for_all_sizes(_onnx_file(making))


def make_onnx_dynamic(making: "Making") -> "Programs":
    """Int8 weights; activations are quantised as they come, by their own range."""
    return _make_onnx_int8(making, "dynamic")


def make_onnx_static(making: "Making") -> "Programs":
    """Int8 weights and inputs, by ranges that calibration has found."""
    return _make_onnx_int8(making, "static")


def open_onnx(programs: "Programs", device: str, threads: int) -> "Answer":
    """A session, with ONNX Runtime's own optimisations of the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if wanted not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this onnxruntime has no {wanted}: pip install onnxruntime-gpu instead")
    if device == "cuda":
        import torch  # noqa: F401 - brings the libraries of CUDA
    session = onnxruntime.InferenceSession(next(iter(programs.values()))[0], options, providers=[wanted])
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"onnxruntime cannot start its {wanted}, and would compute on the CPU")
    return lambda pixels: session.run(["logits"], {"pixel_values": pixels})[0]


def make_openvino(making: "Making") -> "Programs":
    """OpenVINO's own format."""
    from ..programs.openvino_program import core_model

    path = os.path.join(making.folder, "openvino.xml")
    if not os.path.exists(path):
        _save_openvino(core_model(making.source), path)
    return _openvino_files(making, path)


def make_openvino_int8(making: "Making") -> "Programs":
    """Quantised by NNCF after calibration."""
    from ..programs.openvino_quantization import quantized_core

    path = os.path.join(making.folder, "openvino_int8.xml")
    _save_openvino(quantized_core(making.source, _Calibration(making.calibration)).model, path)
    return _openvino_files(making, path)


def open_openvino(programs: "Programs", device: str, threads: int) -> "Answer":
    """Compiled for short latency, to compute in float32."""
    return _open_openvino(programs, threads, "f32")


def open_openvino_bf16(programs: "Programs", device: str, threads: int) -> "Answer":
    """The same, to compute in bfloat16 what is not quantised: its default on CPUs that have instructions for it."""
    return _open_openvino(programs, threads, "bf16")


def make_executorch(making: "Making") -> "Programs":
    """A program for XNNPACK, that takes one image."""
    from ..programs.executorch_program import core_program, write

    path = os.path.join(making.folder, "executorch.pte")
    write(core_program(making.source), path)
    return making.for_all_sizes(path)


def make_executorch_int8(making: "Making") -> "Programs":
    """The same, quantised after calibration."""
    from ..programs.executorch_quantization import MODEL, quantize_executorch
    from ..programs.quantization import QuantizationSettings

    calibration: Any = _Calibration(making.calibration)
    quantize_executorch(making.source, making.folder, calibration, QuantizationSettings("static"))
    return making.for_all_sizes(os.path.join(making.folder, MODEL))


def open_executorch(programs: "Programs", device: str, threads: int) -> "Answer":
    """Loads the program; images of a batch pass it one after the other."""
    import numpy as np
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(next(iter(programs.values()))[0])
    method = program.load_method("forward")

    def answer(pixels: "np.ndarray") -> "np.ndarray":
        images = torch.from_numpy(pixels).split(1)
        return np.concatenate([method.execute([image])[0].numpy().copy() for image in images])

    answer.keeps = program  # a method does not outlive its program
    return answer


class _Calibration:
    """Pixels that are made already, in place of `..programs.calibration.Calibration`."""

    def __init__(self, pixel_values: "np.ndarray") -> None:
        import torch

        self._pixels = torch.from_numpy(pixel_values)
        self.num_images = len(pixel_values)
        self.facts: dict[str, Any] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.batches(16)

    def batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        return ({"pixel_values": pixels} for pixels in self._pixels.split(batch_size))


def _onnx_file(making: "Making") -> str:
    """`model.onnx`, written by whichever arm needs it first."""
    from ..programs.onnx_program import MODEL, core_model, save_onnx

    path = os.path.join(making.folder, MODEL)
    if not os.path.exists(path):
        save_onnx(core_model(making.source), path)
    return path


def _make_onnx_int8(making: "Making", mode: str) -> "Programs":
    import onnx

    from ..programs.onnx_program import save_onnx
    from ..programs.quantization import quantizable, quantized_core

    core = onnx.load(_onnx_file(making))
    calibration = _Calibration(making.calibration) if mode == "static" else None
    quantized = quantized_core(core, mode, list(quantizable(core, mode)), calibration)
    path = os.path.join(making.folder, f"model_int8_{mode}.onnx")
    save_onnx(quantized, path)
    return making.for_all_sizes(path)


def _save_openvino(model: Any, path: str) -> None:
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)


def _openvino_files(making: "Making", path: str) -> "Programs":
    return making.for_all_sizes(path, f"{path.removesuffix('.xml')}.bin")


def _open_openvino(programs: "Programs", threads: int, precision: str) -> "Answer":
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        precision = "f32"
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    requests = {}  # of each batch size: graphs of fixed shapes are optimised further
    for size, files in programs.items():
        model = core.read_model(files[0])
        shape = model.input(0).partial_shape
        shape[0] = size
        model.reshape(shape)
        requests[size] = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda pixels: requests[pixels.shape[0]].infer([pixels], share_inputs=True)["logits"]
