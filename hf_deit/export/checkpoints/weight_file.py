"""The weights in a file, whatever a training loop has put round them: other entries, an average, prefixes of names."""

import argparse
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from ...errors import InputError, shortlist
from ...models.pretrained import check_archive, unpickling_fault

# Under which training loops keep weights: facebookresearch's, timm's, torchvision's, Lightning's, DeepSpeed's, … Those
# of a DeiT or CaiT are known by what they hold, under any name.
_RAW = ("model", "state_dict", "model_state_dict", "module", "state", "net", "network", "params", "weights")
# Words in the name of their moving average, as in state_dict_ema and averaged_model.
_AVERAGE = {"ema", "swa", "averaged", "average", "avg", "shadow"}
# Beside a model in the module that was saved, and no part of it.
_BESIDE_A_MODEL = re.compile(
    r"(.*_)?(criterion|criteria|loss(es)?(_?fn|_func)?|metrics?|acc(uracy)?|(class|pos|loss)_weights?|teacher(_model)?)"
)
# What wraps a module, or a part of it, and puts its name in front: DataParallel and DistributedDataParallel, compile,
# FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PATCHES = "patch_embed.proj.weight"  # of every DeiT and CaiT
_STEPS_OF_AVERAGE = "n_averaged"  # what torch's AveragedModel counts beside the weights
_NUMPY = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
_PATHS = [f"{room}.{name}Path" for room in ("pathlib", "pathlib._local") for name in ("Posix", "Windows")]


class WeightFile(NamedTuple):
    """What a file of weights holds.

    Attributes:
        weights: by the names that the model itself has for them.
        beside: all that the file holds, if the weights stand among other things; else empty.
        taken: the keys and attributes that the weights stood under, from outside in; empty if they are the file.
        left: where the other weights stand, if the file has both trained and averaged ones; else None.
    """

    weights: dict[str, torch.Tensor]
    beside: Mapping[str, Any]
    taken: tuple[str, ...]
    left: str | None

    @property
    def is_averaged(self) -> bool:
        """Whether the weights are the moving average of those that were trained."""
        return any(name == _STEPS_OF_AVERAGE or _is_average(name) for name in self.taken)


class _Inert:
    """Stands in for what a training loop keeps beside the weights: a number or an array of NumPy, a path.

    So nothing of these libraries runs as the file is read, and no more than this is made of what it says.
    """

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_weights(path: str | os.PathLike[str], *, ema: bool = False) -> WeightFile:
    """Reads the weights of a file, and takes off what training has put round them.

    Args:
        path: a `.pth`, `.pth.tar`, `.ckpt`, `.bin` or `.safetensors` file.
        ema: take the moving average of the weights instead of the weights. Without it the average is taken only if the
            file holds nothing else.

    Raises:
        InputError: the file is damaged, would run code, holds something else, several models, or no average.
    """
    path = os.fspath(path)
    content = _load(path)
    held, keys, other = _held(content, ema, path)
    _check_tensors(held, path)
    weights = _without_wrappers(held, path)
    if weights.pop(_STEPS_OF_AVERAGE, None) is not None:
        keys.append(_STEPS_OF_AVERAGE)
    weights, attributes, other_attribute = _within_module(weights, ema, path)
    file = WeightFile(weights, content if held is not content else {}, (*keys, *attributes), other or other_attribute)
    if ema and not file.is_averaged:
        raise InputError(f"{path!r} has no averaged weights (state_dict_ema, model_ema); it has {shortlist(content)}")
    return file


def _check_tensors(held: Any, path: str) -> None:
    if not isinstance(held, Mapping):
        raise InputError(f"{path!r} must hold weights by name, got {type(held).__name__}")
    for key, tensor in held.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{path!r} must hold tensors by name, got {type(tensor).__name__} for {key!r}: expected weights alone "
                f"or under {shortlist(_RAW, 3)} (averaged: state_dict_ema, model_ema, …), it has {shortlist(held)}"
            )
        if tensor.numel() > os.path.getsize(path):
            raise InputError(f"{path!r} is damaged: it is smaller than its {key!r} of shape {tuple(tensor.shape)}")


def _load(path: str) -> dict[Any, Any]:
    """The content of a file, without running anything in it."""
    # The authors' and timm's files hold the training's command line, as an argparse.Namespace.
    harmless = [argparse.Namespace, *((_Inert, name) for name in [*_NUMPY, "numpy.dtype", "numpy.ndarray", *_PATHS])]
    try:
        if os.path.getsize(path) == 0:
            raise InputError(f"{path!r} is empty")
        if path.endswith(".safetensors"):
            return load_file(path)
        check_archive(path)
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:
        reason = unpickling_fault(error)
        if reason.startswith("unpickling it would run"):
            raise InputError(
                f"{path!r} is refused: {reason}; only tensors, numbers, strings and "
                "containers are read. If you trust the file, save its weights alone where it was written: "
                "torch.save(model.state_dict(), …)"
            ) from error
        raise InputError(f"cannot read {path!r}, it is damaged or no checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path!r} must hold weights by name, got {type(content).__name__}")
    return content


def _held(content: Any, ema: bool, path: str) -> tuple[Any, list[str], str | None]:
    """What of a file's content should be the weights, the keys it stands under, and that of the other kind."""
    taken, left = [], None
    while isinstance(content, Mapping) and not all(isinstance(value, torch.Tensor) for value in content.values()):
        holding = [name for name, value in content.items() if _has_patches(value)]
        if not holding:  # another model, or something of another type: the message names it
            known = [name for name in content if name in _RAW or _is_average(name)]
            holding = [name for name in known if isinstance(content[name], Mapping)] or known[:1]
        raw = [name for name in holding if not _is_average(name)]
        averaged = [name for name in holding if _is_average(name)]
        chosen, others = (averaged, raw) if averaged and (ema or not raw) else (raw, averaged)
        if len(chosen) > 1:
            raise InputError(f"{path!r} holds several models, under {' and '.join(chosen)}: save one of them alone")
        if not chosen:
            break
        left = others[0] if others else left
        taken += chosen
        content = content[chosen[0]]
    return content, taken, left


def _is_average(name: Any) -> bool:
    """Whether weights of this name are, by its words, an average of others."""
    return isinstance(name, str) and not _AVERAGE.isdisjoint(re.split(r"[\W_]+", name.lower()))


def _has_patches(content: Any, depth: int = 3) -> bool:
    """Whether a mapping holds the weights of a DeiT or CaiT, perhaps in another one, under any prefix."""
    return isinstance(content, Mapping) and any(
        (isinstance(value, torch.Tensor) and isinstance(name, str) and _bare(name).endswith(_PATCHES))
        or (depth > 1 and _has_patches(value, depth - 1))
        for name, value in content.items()
    )


def _bare(name: str) -> str:
    """The name of a tensor without those of wrappers."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _without_wrappers(weights: Mapping[str, torch.Tensor], path: str) -> dict[str, torch.Tensor]:
    """Weights by names without those of wrappers, in any order, round the model or its parts."""
    result = {}
    for key, tensor in weights.items():
        name = _bare(key)
        if name in result:
            raise InputError(f"{path!r} has two tensors {name!r}, one of them as {key!r}: save one of them alone")
        result[name] = tensor
    return result


def _within_module(
    weights: dict[str, torch.Tensor], ema: bool, path: str
) -> tuple[dict[str, torch.Tensor], list[str], str | None]:
    """The weights of a model that is an attribute of the module that was saved, such as Lightning's.

    Returns:
        The weights by the model's own names, the attributes it stood under, and that of the other kind of weights.
    """
    attributes, left = [], None
    while _PATCHES not in weights and any(key.endswith(f".{_PATCHES}") for key in weights):
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in weights.items():
            name, _, rest = key.partition(".")
            parts.setdefault(name, {})[rest] = tensor
        parts = {
            name: part for name, part in parts.items() if not _BESIDE_A_MODEL.fullmatch(name) or _has_patches(part)
        }
        averaged = [name for name in parts if _is_average(name)]
        raw = [name for name in parts if not _is_average(name)]
        if len(parts) == 1:
            (chosen,) = parts
        elif len(raw) == len(averaged) == 1:
            chosen, left = (averaged[0], raw[0]) if ema else (raw[0], averaged[0])
        else:
            found = ", ".join(f"{name} ({len(part)} tensors)" for name, part in parts.items())
            raise InputError(
                f"{path!r} holds more than a model: {found}. Save what shall be converted alone, say "
                "torch.save(module.model.state_dict(), …)"
            )
        attributes.append(chosen)
        weights = parts[chosen]
    return weights, attributes, left
