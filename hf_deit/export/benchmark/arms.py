"""The ways to run a classifier that are compared. This module is as light as the lightest of their processes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from . import pytorch, runtimes

# From pixel_values, float32 (B, 3, height, width), to logits, (B, K).
Answer = Callable[[np.ndarray], np.ndarray]
# The files of a program by batch size, that which is opened first; the same for several sizes if it takes them all.
Programs = Mapping[int, Sequence[str]]


@dataclass(frozen=True)
class Making:
    """What programs are made of.

    Attributes:
        source: an `ExportSource`, with its model on the CPU, in float32.
        folder: where the programs go; one that another arm has left there may be taken.
        batch_sizes: that they are to answer.
        calibration: pixel_values, float32 (N, 3, height, width), of images that nothing is measured on.
        device: "cpu" or "cuda".
        threads: of each program.
    """

    source: Any
    folder: str
    batch_sizes: tuple[int, ...]
    calibration: np.ndarray
    device: str
    threads: int

    def for_all_sizes(self, *files: str) -> Programs:
        """A program that takes batches of all sizes."""
        return dict.fromkeys(self.batch_sizes, files)


@dataclass(frozen=True)
class Arm:
    """A way to run a classifier.

    Attributes:
        name: for the command line.
        title: the runtime, for people.
        precision: "float32", "bfloat16", "int8", …
        make: writes its programs. Runs in a process that other arms' programs are made in, too.
        open: opens them in a process of their own, which imports nothing else: (programs, device, threads) → answer.
        modules: without which it cannot be.
        install: the line that installs them.
        devices: that it runs on.
        usual: those of them on which it is measured where no arms are named; all of them by default. PyTorch's
            bfloat16 is slow on CPUs without units for its matrix products; ExecuTorch's calibration takes minutes.
    """

    name: str
    title: str
    precision: str
    make: Callable[[Making], Programs]
    open: Callable[[Programs, str, int], Answer]
    modules: tuple[str, ...] = ()
    install: str = ""
    devices: tuple[str, ...] = ("cpu",)
    usual: tuple[str, ...] | None = None

    def missing(self) -> str | None:
        """What is not installed, with the line that installs it; None if all is."""
        absent = [name for name in self.modules if find_spec(name) is None]
        return f"{', '.join(absent)} not installed: {self.install}" if absent else None


_BOTH = {"devices": ("cpu", "cuda")}
_BFLOAT16 = {**_BOTH, "usual": ("cuda",)}
_ONNX = {"modules": ("onnx", "onnxscript", "onnxruntime"), "install": "pip install 'hf_deit[export]'"}
_OPENVINO = {
    "modules": ("openvino", "nncf"),
    "install": "pip install 'hf_deit[openvino]'",
}
_EXECUTORCH = {"modules": ("executorch", "torchao"), "install": "pip install 'hf_deit[executorch]'"}
_TORCHAO = {"modules": ("torchao",), "install": "pip install torchao"}


EAGER = Arm("eager", "PyTorch eager", "float32", pytorch.make_model, pytorch.open_eager, **_BOTH)
_ARMS = (
    EAGER,
    Arm("transformers", "transformers' DeiT", "float32", pytorch.make_native, pytorch.open_eager, **_BOTH),
    Arm("eager-bf16", "PyTorch eager", "bfloat16", pytorch.make_bfloat16, pytorch.open_eager, **_BFLOAT16),
    Arm("compile", "torch.compile", "float32", pytorch.make_model, pytorch.open_compiled, **_BOTH),
    Arm("compile-bf16", "torch.compile", "bfloat16", pytorch.make_bfloat16, pytorch.open_compiled, **_BFLOAT16),
    Arm("aotinductor", "AOTInductor", "float32", pytorch.make_aoti, pytorch.open_aoti, **_BOTH),
    Arm("aotinductor-bf16", "AOTInductor", "bfloat16", pytorch.make_aoti_bf16, pytorch.open_aoti, **_BFLOAT16),
    Arm("torchao-int8", "torchao", "int8 dynamic", pytorch.make_torchao, pytorch.open_torchao, **_TORCHAO),
    Arm("onnx", "ONNX Runtime", "float32", runtimes.make_onnx, runtimes.open_onnx, **_BOTH, **_ONNX),
    Arm("onnx-int8-dynamic", "ONNX Runtime", "int8 dynamic", runtimes.make_onnx_dynamic, runtimes.open_onnx, **_ONNX),
    Arm("onnx-int8-static", "ONNX Runtime", "int8 static", runtimes.make_onnx_static, runtimes.open_onnx, **_ONNX),
    Arm("openvino", "OpenVINO", "float32", runtimes.make_openvino, runtimes.open_openvino, **_OPENVINO),
    Arm("openvino-bf16", "OpenVINO", "bfloat16", runtimes.make_openvino, runtimes.open_openvino_bf16, **_OPENVINO),
    Arm(
        "openvino-int8",
        "OpenVINO",
        "int8 static",
        runtimes.make_openvino_int8,
        runtimes.open_openvino_bf16,
        **_OPENVINO,
    ),
    Arm(
        "executorch",
        "ExecuTorch",
        "float32",
        runtimes.make_executorch,
        runtimes.open_executorch,
        **_EXECUTORCH,
    ),
    Arm(
        "executorch-int8",
        "ExecuTorch",
        "int8 static",
        runtimes.make_executorch_int8,
        runtimes.open_executorch,
        **_EXECUTORCH,
        usual=(),
    ),
)
ARMS = {arm.name: arm for arm in _ARMS}


def usual_arms(device: str) -> list[str]:
    """The names of the arms that are measured on a device where none are named."""
    return [
        arm.name
        for arm in _ARMS
        if device in arm.devices and device in (arm.devices if arm.usual is None else arm.usual)
    ]
