"""BatchNorm taken up by the weights before it, which for inference says the same with less work."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Of what differs from the largest number of a layer's output, by the weights' precision.
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
        if before is None or before.made is not given[0]:
            return
        layer = _taking_up(before.layer, norm)
        expected = made.double()
        found = _rest_of(norm)(layer(before.given)).double()
        most = _TOLERANCES.get(before.layer.weight.dtype, 0.0) * expected.abs().max()
        if found.shape == expected.shape and bool((found - expected).abs().max() <= most):
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
    most = _TOLERANCES.get(before.dtype, 0.0) * before.double().abs().max()

    def fold(pairs: list[tuple[nn.Module, nn.Module, nn.Module]]) -> int:
        """Folds those that can be: where all together cannot, each half by itself."""
        if not pairs:
            return 0
        new = {norm: _rest_of(norm) for norm, _, _ in pairs} | {old: layer for _, old, layer in pairs}
        _replace(model, new)
        if bool((answer().double() - before.double()).abs().max() <= most):
            return len(pairs)
        _replace(model, {now: old for old, now in new.items()})
        middle = len(pairs) // 2
        return fold(pairs[:middle]) + fold(pairs[middle:]) if middle else 0

    return fold(chosen)


def _is_special(layer: nn.Module) -> bool:
    """Whether a layer does more than its class says: hooks, or weights that are computed."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "parametrizations" in layer._modules)


def _is_fixed(norm: _BatchNorm) -> bool:
    """Whether a BatchNorm multiplies and adds the same for every batch."""
    return not norm.training and norm.running_mean is not None and not _is_special(norm)


def _taking_up(layer: nn.Module, norm: _BatchNorm) -> nn.Module:
    """A copy of a layer whose weights have taken up a BatchNorm."""
    weight = layer.weight
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias.double()
    taken = copy.copy(layer)  # not deeply: the hook that watches it would come along, with all that it has seen
    taken._parameters, taken._forward_hooks = dict(layer._parameters), OrderedDict()
    of_each = scale.view(-1, *[1] * (weight.ndim - 1))
    taken.weight = nn.Parameter((weight.double() * of_each).to(weight.dtype), requires_grad=False)
    taken.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
    return taken


def _rest_of(norm: _BatchNorm) -> nn.Module:
    """What a BatchNorm does beside: timm's have an activation."""
    return getattr(norm, "act", nn.Identity())


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Puts other modules in the places of some."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in new:
                setattr(parent, name, new[child])
