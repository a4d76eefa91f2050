"""BatchNorm taken up by the weights before it, which for inference gives the same with less work."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# The largest difference allowed, relative to the largest output, by the weights' precision.
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_WEIGHED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass
class _Watched:
    """One run of a layer with weights: what it was given and has made."""

    layer: nn.Module
    given: torch.Tensor
    made: torch.Tensor


@dataclass
class _Pairs:
    """Finds, while a model runs, each BatchNorm that is given what a layer with weights has just made.

    Attributes:
        folded: for each such pair, the BatchNorm and the layer with its weights that have taken it up.
        runs: how often each of both has run; what runs twice would be folded twice.
    """

    watched: dict[int, _Watched] = field(default_factory=dict)
    folded: list[tuple[nn.Module, nn.Module, nn.Module]] = field(default_factory=list)
    runs: dict[nn.Module, int] = field(default_factory=dict)

    def note(self, layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        self.runs[layer] = self.runs.get(layer, 0) + 1
        if len(given) == 1:
            self.watched[id(made)] = _Watched(layer, given[0], made)  # holds it, so that no other gets its id

    def take(self, norm: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        self.runs[norm] = self.runs.get(norm, 0) + 1
        before = self.watched.pop(id(given[0]), None) if len(given) == 1 else None
        if before is None or before.made is not given[0] or len(before.layer.weight) != norm.num_features:
            return
        layer = _taking_up(before.layer, norm)
        if _agree(_rest_of(norm)(layer(before.given)), made, before.layer.weight.dtype):
            self.folded.append((norm, before.layer, layer))


@torch.no_grad()
def fold_batch_norm(model: nn.Module, answer: Callable[[], torch.Tensor]) -> int:
    """Lets convolutions and linear layers take up the BatchNorm behind them, in place.

    Which belong together shows when the model runs: a BatchNorm is given the very tensor that a layer has made. A
    pair whose output would be another one, say as its weights are standardised, or that runs more than once, stays as
    it is. The new weights are computed in float64.

    Args:
        model: in evaluation mode.
        answer: runs it on some images and gives its logits; called twice, and more often if some cannot be folded.

    Returns:
        How many were folded; those by which the logits would differ by more than rounding, say as something else needs
        what the layer has made, were not.
    """
    from timm.layers import BatchNormAct2d  # takes a second, of which a run without a teacher needs nothing

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    pairs, handles = _Pairs(), []
    if not any(type(module) in kinds for module in model.modules()):
        return 0
    for module in model.modules():
        if isinstance(module, _WEIGHED) and not _is_special(module):
            handles.append(module.register_forward_hook(pairs.note))
        elif type(module) in kinds and _is_fixed(module):
            handles.append(module.register_forward_hook(pairs.take))
    try:
        before = answer()
    finally:
        for handle in handles:
            handle.remove()
    chosen = [each for each in pairs.folded if pairs.runs[each[0]] == pairs.runs[each[1]] == 1]

    def fold(some: list[tuple[nn.Module, nn.Module, nn.Module]]) -> int:
        """Folds those that can be: where not all can at once, it tries each half."""
        if not some:
            return 0
        new = {norm: _rest_of(norm) for norm, _, _ in some} | {old: layer for _, old, layer in some}
        replaced, is_right = _replace(model, new), False
        try:
            is_right = _agree(answer(), before, before.dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of any kind, as where a model looks at its BatchNorm's numbers: then it stays
            pass
        finally:
            if not is_right:
                for parent, name, old in replaced:
                    setattr(parent, name, old)
        middle = len(some) // 2
        if is_right or not middle:
            return len(some) * is_right
        return fold(some[:middle]) + fold(some[middle:])

    return fold(chosen)


def _agree(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors are the same but for rounding. On the CPU, as some devices have no float64."""
    found, expected = found.cpu().double(), expected.cpu().double()
    most = _TOLERANCES.get(dtype, 0.0) * expected.abs().max()
    return found.shape == expected.shape and bool((found - expected).abs().max() <= most)


def _is_special(layer: nn.Module) -> bool:
    """Whether a layer does more than its class says: hooks, or weights that are computed."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "parametrizations" in layer._modules)


def _is_fixed(norm: _BatchNorm) -> bool:
    """Whether a BatchNorm multiplies and adds the same for every batch."""
    return not norm.training and norm.running_mean is not None and not _is_special(norm)


def _taking_up(layer: nn.Module, norm: _BatchNorm) -> nn.Module:
    """A copy of a layer whose weights have taken up a BatchNorm."""
    mean, variance, gain, offset, weight, bias = (
        None if values is None else values.detach().cpu().double()
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias, layer.weight, layer.bias)
    )
    scale = (variance + norm.eps).rsqrt() if gain is None else (variance + norm.eps).rsqrt() * gain
    shift = (-mean if bias is None else bias - mean) * scale
    shift = shift if offset is None else shift + offset
    taken = copy.copy(layer)  # not deeply: the hook that watches it would come along, with all that it has seen
    taken._parameters, taken._forward_hooks = dict(layer._parameters), OrderedDict()
    scaled = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    taken.weight = nn.Parameter(scaled.to(layer.weight), requires_grad=False)
    taken.bias = nn.Parameter(shift.to(layer.weight), requires_grad=False)
    return taken


def _rest_of(norm: _BatchNorm) -> nn.Module:
    """What a BatchNorm does beside: timm's have an activation."""
    return getattr(norm, "act", nn.Identity())


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Puts other modules in the places of some; gives their parents, names and the modules that stood there."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and child in new
    ]
    for parent, name, child in places:
        setattr(parent, name, new[child])
    return places
