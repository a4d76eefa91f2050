"""Runs an exported classifier as its users do: with NumPy, Pillow and its runtime, and without torch.

This module imports nothing of the package but what is as light as itself.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ...errors import InputError, first_line
from ..quiet import quiet

# From images, uint8 (B, H, W, 3), RGB and upright, to probabilities, float32 (B, K).
Answer = Callable[[np.ndarray], np.ndarray]


def open_onnx(folder: str, file: str = "classifier.onnx") -> Answer:
    """An exported classifier in ONNX Runtime, on the CPU.

    Raises:
        InputError: ONNX Runtime is not installed, or there is no such file that it can read.
    """
    path = os.path.join(folder, file)
    with _opening("ONNX Runtime", "onnxruntime", path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def open_openvino(folder: str, file: str = "classifier.xml") -> Answer:
    """An exported classifier in OpenVINO, on the CPU, computing in float32 also where bfloat16 would be faster.

    Raises:
        InputError: OpenVINO is not installed, or there is no such file that it can read.
    """
    path = os.path.join(folder, file)
    with _opening("OpenVINO", "openvino", path):
        import openvino

        model = openvino.Core().compile_model(
            path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )
    return lambda images: model({"images": images})["probabilities"].copy()


def open_executorch(folder: str, file: str = "model.pte") -> Answer:
    """An exported classifier in ExecuTorch, whose Python needs PyTorch; without transformers, timm and our models.

    Images are prepared by the code that lies beside it, with its settings. It is taken from this package, so that
    nothing is run of a folder that may be another's.

    Raises:
        InputError: ExecuTorch is not installed, or there are no such files that it can read.
    """
    from PIL import Image

    from ..programs.reference import settings_of
    from ..programs.reference.preprocessing import pixel_values, probabilities

    path, beside = os.path.join(folder, file), os.path.join(folder, "preprocessing.py")
    with _opening("ExecuTorch", "executorch", path), quiet():
        import torch
        from executorch.runtime import Runtime

        with open(beside, encoding="utf-8") as source:
            settings = settings_of(source.read())["preprocessing"]
        method = Runtime.get().load_program(path).load_method("forward")

    def answer(images: np.ndarray) -> np.ndarray:
        logits = []
        for image in images:
            pixels = torch.from_numpy(pixel_values(Image.fromarray(image), settings))
            logits.append(method.execute([pixels])[0].numpy().copy())
        return probabilities(np.concatenate(logits))

    return answer


def open_torch(folder: str, file: str = "classifier.pt2") -> Answer:
    """An exported classifier in PyTorch, on the CPU, without transformers, timm and this package's models.

    Raises:
        InputError: there is no such file that PyTorch can read.
    """
    path = os.path.join(folder, file)
    with _opening("PyTorch", "torch", path):
        import torch

        program = torch.export.load(path).module()

    def answer(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return program(torch.from_numpy(np.require(images, requirements="W"))).numpy()

    return answer


@contextmanager
def _opening(runtime: str, package: str, path: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(f"this needs {runtime}, which is not installed: pip install {package}") from error
    except Exception as error:  # each runtime has its own
        raise InputError(f"{runtime} cannot open {path}: {first_line(error)}") from error
