"""A classifier as a program of torch.export: `classifier.pt2` takes images as they are, and needs PyTorch alone."""

import json
import math
import os
from typing import Any

import torch
from torch import nn
from transformers.exporters import DynamoExporter
from transformers.exporters.configs import DynamoConfig

from ..quiet import quiet
from .core import BATCH, FusedLogits, exported
from .preprocessing import Preprocessing
from .source import ExportSource

CLASSIFIER = "classifier.pt2"
METADATA = ("labels", "preprocessing", "model")  # files of JSON inside, "labels.json" and so on
_EDGE = 4  # places


def export_torch(source: ExportSource, folder: str) -> None:
    """Writes `classifier.pt2` into a folder: `images` uint8 (B, H, W, 3), RGB, of any size, on the CPU →
    `probabilities` float32 (B, K).

    Raises:
        InputError: torch.export refuses the network.
    """
    program = whole_program(source)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names files of this machine
    values = {"labels": list(source.labels), "preprocessing": source.preprocessing.to_dict(), "model": source.facts}
    torch.export.save(
        program,
        os.path.join(folder, CLASSIFIER),
        extra_files={f"{name}.json": json.dumps(values[name], ensure_ascii=False) for name in METADATA},
    )


def whole_program(source: ExportSource) -> torch.export.ExportedProgram:
    """The network with all that goes before and after it."""
    sides = {axis: torch.export.Dim(name, min=1, max=65535) for axis, name in ((1, "height"), (2, "width"))}
    # No two lengths are the same, nor those of the network: torch.export would take them for one.
    images = torch.zeros(2, 37, 41, 3, dtype=torch.uint8)
    shapes = {"images": {**BATCH, **sides}}
    program = exported(
        DynamoExporter, source, _Classifier(source), {"images": images}, DynamoConfig(dynamic_shapes=shapes)
    )
    with quiet():  # transformers' exporter gives it inputs by name alone
        return torch.export.export(_ByPosition(program.module()), (images,), dynamic_shapes=shapes)


class _Classifier(nn.Module):
    def __init__(self, source: ExportSource) -> None:
        super().__init__()
        self.prepare, self.logits = Prepare(source.preprocessing), FusedLogits(source.classifier)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(self.prepare(images))["logits"].float().softmax(dim=-1)


class _ByPosition(nn.Module):
    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.classifier = program

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(images=images)


class Prepare(nn.Module):
    """`images` uint8 (B, H, W, 3) → `pixel_values` float32 (B, 3, height, width)."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        slope, intercept = preprocessing.slope_and_intercept()
        self.register_buffer("slope", torch.from_numpy(slope).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("intercept", torch.from_numpy(intercept).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        preprocessing = self.preprocessing
        value = images.permute(0, 3, 1, 2)
        if preprocessing.resize is not None or preprocessing.crop is not None:
            targets = _targets(value, preprocessing)
            crops = preprocessing.crop or preprocessing.size
            for axis in (3, 2):  # as Pillow: the width, then the height, each rounded to a level
                target, crop = targets[axis - 2], crops[axis - 2]
                index = torch.arange(crop) + _crop_start(target, crop, preprocessing.crop_rounding)
                value = _shown(value, axis, index, target, preprocessing)
        value = value.float() * self.slope + self.intercept
        if preprocessing.channel_order == "BGR":
            value = value.flip(1)
        return value.reshape(value.shape[0], 3, *preprocessing.input_size)


def _targets(value: torch.Tensor, preprocessing: Preprocessing) -> list[Any]:
    """(height, width) to resize to."""
    height, width = value.shape[2:]
    if preprocessing.resize is None:
        return [height, width]
    if preprocessing.resize == "exact":
        return list(preprocessing.size)
    shorter = torch.sym_min(height, width)
    return [preprocessing.size[0] * length // shorter for length in (height, width)]


def _crop_start(length: Any, crop: int, rounding: str) -> torch.Tensor:
    """(1,), negative where black is added."""
    surplus = torch.arange(1) + (length - crop)  # a tensor: a program of torch.export does not branch by numbers
    half, odd = surplus // 2, surplus % 2
    up = {"zero": half < 0, "down": half < half, "even": (half < 0) | (half % 2 == 1)}[rounding]
    return half + odd * up


def _shown(
    value: torch.Tensor, axis: int, index: torch.Tensor, target: Any, preprocessing: Preprocessing
) -> torch.Tensor:
    """The places of an index in an axis that is resized to `target`; black where they lie outside."""
    length = value.shape[axis]
    if preprocessing.resize is None or preprocessing.filter == "nearest":
        inside = (index >= 0) & (index < target)
        nearest = (2 * index + 1) * length // (2 * target)
        value = value.index_select(axis, nearest.clamp(0, length - 1))
        return value * inside.view([-1] + [1] * (3 - axis))
    weights, one = _weights(index, length, target, preprocessing.filter), torch.tensor(2.0**22)
    if preprocessing.has_short_weights:
        # The largest weights are at an edge, which may lie outside the crop; both edges have the same.
        edge = _weights(torch.arange(_EDGE), length, target, preprocessing.filter)
        scales = torch.exp2(torch.arange(23).double())
        fits = (torch.maximum(weights.max(), edge.max()) * scales + 0.5).floor() < 2**15
        one = torch.where(fits, scales, 1.0).max()
    weights = ((weights * one + 0.5).floor() / one).float()
    moved = value.float().transpose(axis, 3) @ weights.T
    return (moved + 0.5).floor().clamp(0, 255).transpose(axis, 3)


def _weights(index: torch.Tensor, length: Any, target: Any, filter: str) -> torch.Tensor:
    """(places, length), float64; 0 of places outside."""
    middles = 2 * torch.arange(length) + 1, 2 * index[:, None] + 1
    x = (middles[0] * target - middles[1] * length).double() / (2 * torch.sym_max(length, target))
    weights = _FILTERS[filter](x) * ((index >= 0) & (index < target))[:, None]
    sums = weights.sum(dim=1, keepdim=True)
    return weights / torch.where(sums == 0, 1.0, sums)


def _bicubic(x: torch.Tensor) -> torch.Tensor:
    x = x.abs()
    far = torch.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0.0)
    return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, far)


def _hamming(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < 1, torch.sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x)), 0.0)


_FILTERS = {
    "box": lambda x: ((x > -0.5) & (x <= 0.5)).double(),
    "bilinear": lambda x: (1 - x.abs()).clamp(min=0),
    "hamming": _hamming,
    "bicubic": _bicubic,
    "lanczos": lambda x: torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0),
}
