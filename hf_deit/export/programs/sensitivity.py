"""Which layers to leave in float32 where int8 costs too much."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from scipy.special import softmax

from ...errors import BadImageError
from ...evaluation.images.images import EvaluationImages
from ..int8 import MOST_COST
from .calibration import Calibration
from .layers import grouped, matching
from .onnx_program import core_model
from .quantization import QuantizationSettings, quantizable, quantized_core
from .source import ExportSource

_MOST_GROUPS = 40  # that are tried one by one
_PROBES = 64  # images for that
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Proposal:
    """Layers to leave in float32.

    Attributes:
        layers: names for `QuantizationSettings.exclude_layers`, the most costly first, after those that were left out
            before; empty if int8 does not cost too much.
        cost: of int8 as it was.
        remaining: the cost with these left out, measured; NaN without any.
        suffices: whether that is little enough. If not, no few layers are at fault.
    """

    layers: tuple[str, ...]
    cost: float
    remaining: float
    suffices: bool


def layers_to_exclude(
    source: ExportSource,
    calibration: Calibration | None,
    settings: QuantizationSettings,
    images: EvaluationImages | None = None,
    *,
    most_images: int = 500,
    most_cost: float = MOST_COST,
) -> Proposal:
    """Finds the layers that cost most in int8, and verifies that int8 costs little enough without them.

    Each module (an attention, an MLP, a head) is quantised alone, and ranked by how far that moves the probabilities.
    Then the first few are left out, more each time, until the cost is small. All is measured in ONNX Runtime; the
    layers hold for other formats, too, the remaining cost may be another there.

    Args:
        source: the classifier.
        calibration: scales are measured on it, and modules are ranked by the first of its images; None, of "dynamic",
            ranks them by `images`.
        settings: with which int8 costs too much.
        images: that the cost is measured on, with labels in the order of the logits, if any; it is one of accuracy if
            they have labels, else of agreement with float32. Broken ones are left out. None takes the calibration
            images.
        most_images: of them to take.
        most_cost: fraction of the images.
    """
    core = core_model(source)
    nodes = quantizable(core, settings.mode)
    before = matching(settings.exclude_layers, list(dict.fromkeys(nodes.values())))
    layers = [layer for layer in dict.fromkeys(nodes.values()) if layer not in before]

    def in_int8(chosen: Collection[str], images: Iterable[dict[str, torch.Tensor]] = calibration) -> onnx.ModelProto:
        names = [node for node, layer in nodes.items() if layer in chosen]
        return quantized_core(core, settings.mode, names, images)

    cost_of = _cost(source, core, calibration if images is None else images, most_images)
    cost = cost_of(in_int8(layers))
    if cost <= most_cost:
        return Proposal((), cost, float("nan"), True)
    groups = grouped(layers, _MOST_GROUPS)
    probes = list(_probes(source, images) if calibration is None else calibration.batches(_BATCH_SIZE, _PROBES))
    expected = _probabilities(core, probes)
    damage = {
        name: np.abs(_probabilities(in_int8(group, probes), probes) - expected).sum(axis=1).mean()
        for name, group in groups.items()
    }
    ranked = sorted(groups, key=lambda name: -damage[name])
    remaining = float("nan")
    count = 1
    while count <= max(len(ranked) // 2, 1) and count < len(ranked):
        left_out = {layer for name in ranked[:count] for layer in groups[name]}
        remaining = cost_of(in_int8([layer for layer in layers if layer not in left_out]))
        if remaining <= most_cost:
            return Proposal((*settings.exclude_layers, *ranked[:count]), cost, remaining, True)
        count += max(count // 2, 1)  # 1, 2, 3, 4, 6, 9, …
    return Proposal((*settings.exclude_layers, *ranked[: max(len(ranked) // 2, 1)]), cost, remaining, False)


def _cost(
    source: ExportSource, core: onnx.ModelProto, images: Calibration | EvaluationImages, most: int
) -> Callable[[onnx.ModelProto], float]:
    """A function that tells how much less often a network is right than `core`, or how often it answers otherwise."""
    if isinstance(images, Calibration):
        batches = lambda: images.batches(_BATCH_SIZE, most)  # noqa: E731
        labels = None
    else:
        rows = _rows(images, most)
        batches = lambda: _batches(source, images, rows)  # noqa: E731
        labels = images.labels if images.labels.is_labelled[rows].any() else None
    answers = _answers(core, batches())

    def cost(model: onnx.ModelProto) -> float:
        others = _answers(model, batches())
        if labels is None:
            return float((others != answers).mean())
        known = labels.is_labelled[rows]
        values = labels.values[rows][known]
        return float((answers[known] == values).mean() - (others[known] == values).mean())

    return cost


def _probes(source: ExportSource, images: EvaluationImages) -> Iterator[dict[str, torch.Tensor]]:
    return _batches(source, images, _rows(images, _PROBES))


def _rows(images: EvaluationImages, most: int) -> np.ndarray:
    """Of images that can be decoded, spread over all."""
    evenly = np.linspace(0, len(images) - 1, min(len(images), most)).round().astype(int).tolist()
    return np.array([row for row in evenly if _is_whole(images, row)])


def _is_whole(images: EvaluationImages, row: int) -> bool:
    try:
        images.image(row)
    except BadImageError:
        return False
    return True


def _batches(source: ExportSource, images: EvaluationImages, rows: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
    for start in range(0, len(rows), _BATCH_SIZE):
        pixels = [source.classifier.preprocess(images.image(int(row))) for row in rows[start : start + _BATCH_SIZE]]
        yield {"pixel_values": torch.stack(pixels)}


def _logits(model: onnx.ModelProto, batches: Iterator[dict[str, torch.Tensor]]) -> Iterator[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in batches:
        yield session.run(["logits"], {"pixel_values": batch["pixel_values"].numpy()})[0]


def _probabilities(model: onnx.ModelProto, batches: Sequence[dict[str, torch.Tensor]]) -> np.ndarray:
    """(N, K)."""
    return softmax(np.concatenate(list(_logits(model, iter(batches)))), axis=1)


def _answers(model: onnx.ModelProto, batches: Iterator[dict[str, torch.Tensor]]) -> np.ndarray:
    """(N,): the best label of each image."""
    return np.concatenate([logits.argmax(axis=1) for logits in _logits(model, batches)])
