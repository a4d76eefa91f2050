"""PyTorch's own ways to run a classifier. Its modules are loaded in the functions: others' processes are without."""

import copy
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .arms import Answer, Making, Programs

# Weights become constants and are packed for the matrix products beforehand.
_INDUCTOR = {"freezing": True}
_MODEL = "model.pt"


def make_model(making: "Making") -> "Programs":
    """The model as it is, for the process that runs it in eager mode or compiles it."""
    return _save_model(making, _MODEL, _logits_of(making))


def make_native(making: "Making") -> "Programs":
    """A DeiT as transformers' own class, with its weights.

    Raises:
        ValueError: transformers has no class of its own for it, or it is of one anyway.
    """
    from ...models.configuration_deit import DistilledDeiTConfig, PlainDeiTConfig
    from ..checkpoints.checkpoint import Checkpoint
    from ..checkpoints.write import native_model
    from .logits import Logits

    classifier = making.source.classifier
    model = classifier.model
    if not isinstance(model.config, DistilledDeiTConfig | PlainDeiTConfig):
        raise ValueError(
            f"{type(model).__name__} has no other class of transformers' own: PyTorch eager is what it is"
        )
    native = native_model(Checkpoint(model.config, copy.deepcopy(model.state_dict()), None, "hf_deit"))
    return _save_model(making, "model_native.pt", Logits(native, {}).eval())


def make_bfloat16(making: "Making") -> "Programs":
    """The model in bfloat16."""
    return _save_model(making, "model_bfloat16.pt", _logits_of(making, "bfloat16"))


def make_torchao(making: "Making") -> "Programs":
    """The model with int8 weights; its activations are quantised as they come."""
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    make_model(making)
    module = _logits_of(making, is_copy=True)
    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    path = os.path.join(making.folder, "weights_torchao.pt")
    torch.save(module.state_dict(), path)
    return making.for_all_sizes(path)


def make_aoti(making: "Making") -> "Programs":
    """A package of each batch size."""
    return _make_aoti(making, _logits_of(making), "aotinductor")


def make_aoti_bf16(making: "Making") -> "Programs":
    """A package of each batch size, in bfloat16."""
    return _make_aoti(making, _logits_of(making, "bfloat16"), "aotinductor_bfloat16")


def open_eager(programs: "Programs", device: str, threads: int) -> "Answer":
    """Runs the model operation by operation."""
    return _answer_of(_load(programs, device, threads), device)


def open_compiled(programs: "Programs", device: str, threads: int) -> "Answer":
    """Compiles the model for each batch size when it first comes."""
    return _compiled(_load(programs, device, threads), device)


def open_torchao(programs: "Programs", device: str, threads: int) -> "Answer":
    """Gives the model its quantised weights, and compiles it for each batch size when it first comes."""
    import torch
    import torchao  # noqa: F401 - whose classes are in the file

    weights = next(iter(programs.values()))[0]
    module = _load({0: [os.path.join(os.path.dirname(weights), _MODEL)]}, device, threads)
    module.load_state_dict(torch.load(weights, map_location=device, weights_only=False), assign=True)
    return _compiled(module, device)


def open_aoti(programs: "Programs", device: str, threads: int) -> "Answer":
    """Loads the package of each batch size."""
    import torch

    torch.set_num_threads(threads)
    packages = {size: torch._inductor.aoti_load_package(files[0]) for size, files in programs.items()}
    return _answer_of(lambda pixels: packages[pixels.shape[0]](pixels), device)


def _save_model(making: "Making", name: str, module: "torch.nn.Module") -> "Programs":
    import torch

    path = os.path.join(making.folder, name)
    if not os.path.exists(path):
        torch.save(module, path)
    return making.for_all_sizes(path)


def _make_aoti(making: "Making", module: "torch.nn.Module", name: str) -> "Programs":
    import torch
    import torch._inductor.config as inductor

    torch.set_num_threads(making.threads)  # is written into the program
    module = copy.deepcopy(module).to(making.device) if making.device != "cpu" else module
    size = making.source.preprocessing.input_size
    programs: dict[int, list[str]] = {}
    for batch_size in making.batch_sizes:
        pixels = torch.zeros(batch_size, 3, *size, device=making.device)
        path = os.path.join(making.folder, f"{name}_{batch_size}.pt2")
        with torch.no_grad(), inductor.patch(_INDUCTOR):
            exported = torch.export.export(module, (pixels,))
            programs[batch_size] = [torch._inductor.aoti_compile_and_package(exported, package_path=path)]
    return programs


def _logits_of(making: "Making", dtype: str | None = None, *, is_copy: bool = False) -> "torch.nn.Module":
    import torch

    from .logits import Logits

    classifier = making.source.classifier
    model = copy.deepcopy(classifier.model) if dtype or is_copy else classifier.model
    return Logits(model.to(getattr(torch, dtype)) if dtype else model, classifier.forward_options).eval()


def _compiled(module: "torch.nn.Module", device: str) -> "Answer":
    import torch
    import torch._inductor.config as inductor

    answer = _answer_of(torch.compile(module, dynamic=False), device)

    def compile_and_answer(pixels: "np.ndarray") -> "np.ndarray":
        with inductor.patch(_INDUCTOR):
            return answer(pixels)

    return compile_and_answer


def _load(programs: "Programs", device: str, threads: int) -> "torch.nn.Module":
    import torch

    torch.set_num_threads(threads)
    path = next(iter(programs.values()))[0]
    return torch.load(path, map_location=device, weights_only=False)  # a module, which this benchmark has saved


def _answer_of(run: Callable[[Any], Any], device: str) -> "Answer":
    import torch

    def answer(pixels: "np.ndarray") -> "np.ndarray":
        with torch.inference_mode():
            return run(torch.from_numpy(pixels).to(device)).float().cpu().numpy()

    return answer
