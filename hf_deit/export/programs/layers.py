"""Layers of a model by names that people can read: the paths of its modules, as `deit.layers.3.mlp.fc1`."""

import ast
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import onnx
import torch
from torch import nn

from ...errors import InputError, nearest_names, shortlist
from ...evaluation.classifiers.classifiers import Classifier

_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the modules around it, from the outermost, then itself
_WEIGHTED = ("MatMul", "Gemm", "Conv")


def name_by_module(model: onnx.ModelProto) -> None:
    """Gives each node of a network that torch has converted the name MODULE/OPERATOR, with a number where it repeats.

    Args:
        model: with the metadata of the conversion; changed in place.
    """
    counts: dict[str, int] = {}
    for node in model.graph.node:
        scopes = [ast.literal_eval(entry.value) for entry in node.metadata_props if entry.key == _SCOPES]
        module = scopes[0][-2] if scopes and len(scopes[0]) > 1 else ""
        module = "" if module.startswith("_") else module  # of a node that no module made
        name = f"{module}/{node.op_type}" if module else node.op_type
        counts[name] = counts.get(name, -1) + 1
        node.name = f"{name}_{counts[name]}" if counts[name] else name


def weighted_layers(model: onnx.ModelProto) -> dict[str, str]:
    """The layer of each node that multiplies with weights, by the node's name, in the order of the computation.

    The first, which reads the image, is none of them: of a transformer it is the patch embedding. It is left in float
    by every quantisation, as it takes few hundredths of the time and all depends on it.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    pixels = model.graph.input[0].name
    return {
        node.name: node.name.rpartition("/")[0] or node.name
        for node in model.graph.node
        if node.op_type in _WEIGHTED and node.input[1] in weights and node.input[0] != pixels
    }


class Layers(NamedTuple):
    """Paths of layers, in the order in which an image passes them."""

    linear: tuple[str, ...]
    convolutions: tuple[str, ...]


def layers_in_order(classifier: Classifier) -> Layers:
    """The layers that a classifier runs an image through."""
    found: dict[type, list[str]] = {nn.Linear: [], nn.Conv2d: []}
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name, kind=kind: found[kind].append(name))
        for name, layer in classifier.model.named_modules()
        for kind in found
        if isinstance(layer, kind)
    ]
    try:
        classifier.logits(torch.zeros(1, 3, *classifier.input_size))
    finally:
        for hook in hooks:
            hook.remove()
    return Layers(tuple(found[nn.Linear]), tuple(found[nn.Conv2d]))


def matching(patterns: Sequence[str], layers: Collection[str]) -> list[str]:
    """The layers that patterns mean: by the path of a module, of one around it, or the end of such a path.

    Args:
        patterns: such as "deit.layers.3.mlp", "layers.3.mlp", "layers.*.mlp.fc2" or "cls_classifier".
        layers: paths of modules.

    Raises:
        InputError: a pattern means none of them.
    """
    found: set[str] = set()
    for pattern in patterns:
        means = [name for name in layers if fnmatchcase(f".{name}.", f"*.{pattern.strip('.')}.*")]
        if not means:
            known = sorted({around for name in layers for around in _and_around(name)})
            near = nearest_names(pattern, known) or known
            raise InputError(
                f"--exclude_layers: no layer that int8 would change is called {pattern!r}. There are "
                f"{shortlist(near, 6)}; a star stands for anything, as in 'layers.*.mlp'"
            )
        found.update(means)
    return [name for name in layers if name in found]


def kept_in_float(patterns: Sequence[str], layers: Collection[str]) -> list[str]:
    """The layers that `--exclude_layers` leaves in float32, of all that int8 would change; see `matching`.

    Raises:
        InputError: a pattern means none of them, or no other is left.
    """
    found = matching(patterns, layers)
    if len(found) == len(set(layers)):
        raise InputError("no layer is left for int8: exclude fewer with --exclude_layers, or leave --int8 out")
    return found


def grouped(layers: Collection[str], most: int) -> dict[str, list[str]]:
    """Layers by the module around them, and by larger ones where these are more than `most`."""
    paths = {name: name.rpartition(".")[0] or name for name in layers}
    while len(set(paths.values())) > most:
        longest = max(path.count(".") for path in paths.values())
        if not longest:
            break
        paths = {name: path.rpartition(".")[0] if path.count(".") == longest else path for name, path in paths.items()}
    groups: dict[str, list[str]] = {}
    for name, path in paths.items():
        groups.setdefault(path, []).append(name)
    return groups


def _and_around(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
