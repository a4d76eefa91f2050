"""Layer-wise decay of the learning rate, for fine-tuning: the nearer to the pixels a layer is, the less it changes.

After BEiT (arXiv 2106.08254) and timm: the heads learn at the whole rate, the layer below at `layer_decay` of it, the
next one at its square, and so on; patches, tokens and positions learn at the lowest. The last norm goes with the last
layer, as in timm.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import InputError

if TYPE_CHECKING:
    from .arguments import DistillationTrainingArguments

# A layer, or a stage with or without the number of one of its layers, in the names of transformers.
_LAYER = re.compile(
    r"(?:^|\.)(?:layers?|blocks?|stages?|network|h)\.(\d+)\."
    r"(?:(?:(?:layers?|blocks?|stage)\.)?(\d+)\.)?"
)
_CLASS_LAYER = re.compile(r"(?:^|\.)class_layers\.(\d+)\.")  # CaiT's, which timm lets learn as fast as its last ones
_INPUTS = re.compile(r"embed|token|position|stem")
# What torch, accelerate and FSDP put before the names of what they wrap.
_WRAPPINGS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_Key = tuple[int, ...]


def layers_of(model: nn.Module) -> dict[str, int] | None:
    """The layer of each parameter: 0 of what takes the pixels in, then as they follow, the last one of the heads.

    Args:
        model: a classifier of this package, of transformers or of timm, wrapped or not.

    Returns:
        By name, without what wrapping puts before it; None if layers cannot be told apart.
    """
    names = [_WRAPPINGS.sub("", name) for name, _ in model.named_parameters()]
    unwrapped = _unwrapped(model)
    if (within := getattr(unwrapped, "timm_model", None)) is not None:
        return _layers_by_timm(within)
    keys = _layer_keys(names)
    order = list(dict.fromkeys(key for key in keys.values() if key is not None))
    if len(order) < 2:
        return None
    numbers = {key: number for number, key in enumerate(order, start=1)}
    num_class_layers = len({match[1] for name in names if (match := _CLASS_LAYER.search(name))})
    base, layers, last, top = f"{getattr(unwrapped, 'base_model_prefix', '')}.", {}, 0, len(order) + 1
    for name in names:
        if keys[name] is not None:
            last = layers[name] = numbers[keys[name]]
        elif match := _CLASS_LAYER.search(name):
            layers[name] = len(order) - num_class_layers + int(match[1]) + 1
        elif not last or _INPUTS.search(name):
            layers[name] = 0
        else:  # the last norm, or the heads
            layers[name] = last if name.startswith(base) else top
    return layers


def _unwrapped(model: Any) -> Any:
    for name in ("_orig_mod", "module", "_fsdp_wrapped_module"):
        model = getattr(model, name, model)
    return model


def _layer_keys(names: Sequence[str]) -> dict[str, _Key | None]:
    """For each name the numbers of its stage and layer; what lies in a stage alone goes with the layer beside it."""
    found: dict[str, _Key | None] = {}
    for name in names:
        match = _LAYER.search(name)
        found[name] = match and tuple(int(number) for number in match.groups() if number is not None)
    layered = {key[0] for key in found.values() if key and len(key) > 1}
    before: _Key | None = None
    for name in names:  # behind the layers of its stage, as Swin's merging of patches
        key = found[name]
        if key and len(key) == 1 and before and len(before) > 1 and before[0] == key[0]:
            found[name] = before
        before = found[name] or before
    for name in reversed(names):  # before them, as ConvNeXt's downsampling
        key = found[name]
        if key and len(key) == 1 and key[0] in layered and before and before[0] == key[0]:
            found[name] = before
        before = found[name] or before
    return found


def _layers_by_timm(model: nn.Module) -> dict[str, int] | None:
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        return None
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return {f"timm_model.{name}": layer for name, layer in layers.items()} if max(layers.values()) > 1 else None


def check_layer_decay(args: "DistillationTrainingArguments", model: nn.Module) -> None:
    """Refuses a decay by layers where they cannot be told apart, or where the optimizer makes groups of its own.

    Raises:
        InputError: says which.
    """
    if args.layer_decay == 1:
        return
    remedy = "leave --layer_decay out"
    if "layerwise" in args.optim.value:
        raise InputError(
            f"layer_decay gives layers learning rates of their own, got {args.layer_decay:g}, but the optimizer "
            f"{args.optim.value!r} steps each weight by itself: {remedy}, or give another --optim"
        )
    plugin = args.deepspeed_plugin
    if plugin is not None and "optimizer" in (plugin.deepspeed_config or {}):
        raise InputError(
            f"layer_decay gives layers learning rates of their own, got {args.layer_decay:g}, but the DeepSpeed "
            f"configuration brings its own optimizer: {remedy}, or take the optimizer out there"
        )
    if layers_of(model) is None:
        raise InputError(
            f"layer_decay needs a student whose layers can be told apart, got {args.layer_decay:g} with "
            f"{type(model).__name__}: {remedy}"
        )


def by_layer(groups: Sequence[Mapping[str, Any]], model: nn.Module, layer_decay: float) -> list[dict[str, Any]]:
    """An optimizer's groups, each split by the layers of its parameters, those of the highest learning rate first.

    Schedulers report the rate of the first one.

    Args:
        groups: with `params` and `lr`; that of a layer is a part of its group's.
        model: whose parameters they are; `check_layer_decay` has accepted it.
        layer_decay: the rate of a layer as a part of the next one's, in (0, 1].
    """
    layers = layers_of(model)
    layer_of = {id(one): layers[_WRAPPINGS.sub("", name)] for name, one in model.named_parameters()}
    top, split = max(layers.values()), []
    for layer in range(top, -1, -1):
        for group in groups:
            params = [one for one in group["params"] if layer_of[id(one)] == layer]
            if params:
                split.append({**group, "params": params, "lr": group["lr"] * layer_decay ** (top - layer)})
    return split
