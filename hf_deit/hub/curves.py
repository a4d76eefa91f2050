"""The curves of a training, as a picture."""

import os
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ..models.heads import CLASS, DISTILLATION, FUSED, HEADS, words_of_answer
from .files import write_whole

# Validated as a set for readers who do not tell all colours apart (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_VALIDATION = "#000000"
FEW_POINTS, MANY_POINTS = 25, 300
LOSS, ACCURACY, LEARNING_RATE = "loss", "top-1 on the validation images", "learning rate"
Points = list[tuple[int, float]]


class _Curve(NamedTuple):
    """One line of a panel: its name in the legend, its points, and how it is drawn."""

    label: str
    points: Points
    style: dict[str, Any]


def plot_curves(
    log_history: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    teacher_top1: float | None = None,
    best_step: int | None = None,
    fusion: str | None = None,
) -> None:
    """Draws the losses, the accuracies on the validation images, and the learning rate over the steps.

    Args:
        log_history: of transformers' `TrainerState`: one mapping per log line, with its "step".
        path: of the picture, a PNG of 120 dpi.
        teacher_top1: the teacher's accuracy on all validation images, in [0, 1]; by default what the log says.
        best_step: the step after which the published weights were saved, if they are not the last ones.
        fusion: of a model with two heads: how they answer together, by its configuration.

    Raises:
        OSError: it cannot be written.
    """
    lines = list(of_the_training(log_history, best_step))
    panels = {
        LOSS: _losses(lines),
        ACCURACY: _accuracies(lines, teacher_top1, fusion),
        LEARNING_RATE: [_Curve("", points_of(lines, "learning_rate"), {"color": _COLOURS[0]})],
    }
    drawn = {title: [curve for curve in curves if curve.points] for title, curves in panels.items()}
    drawn = {title: curves for title, curves in drawn.items() if curves}
    last_step = max((step for curves in drawn.values() for curve in curves for step, _ in curve.points), default=0)
    figure = Figure(figsize=(4.8 * max(len(drawn), 1), 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # no display is needed, and pyplot's global state is left alone
    for position, (title, curves) in enumerate(drawn.items(), start=1):
        axes = figure.add_subplot(1, len(drawn), position, title=title, xlabel="step")
        for curve in curves:
            _draw(axes, curve)
        set_scales(axes, title, [value for curve in curves for _, value in curve.points], last_step)
        if best_step is not None and title != LEARNING_RATE:
            axes.axvline(best_step, color="0.6", linestyle=":", linewidth=1.2, label="published weights", zorder=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="small", framealpha=0.8, edgecolor="none")
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    write_whole(picture.getbuffer(), path)


def of_the_training(log_history: Sequence[Mapping[str, Any]], best_step: int | None) -> Iterator[Mapping[str, Any]]:
    """The log without what is evaluated again: a step once more, or at the end the best weights of an earlier one.

    Args:
        log_history, best_step: see `plot_curves`.
    """
    evaluated, has_ended = set(), False
    for line in log_history:
        has_ended = "train_runtime" in line or (has_ended and "loss" not in line)  # or else has been begun again
        if metrics := {(line.get("step"), name) for name in line if name.startswith("eval_")}:
            if metrics & evaluated or (has_ended and best_step is not None):
                continue
            evaluated |= metrics  # of one step there is a line of each validation set
        yield line


def points_of(lines: Sequence[Mapping[str, Any]], name: str) -> Points:
    """The steps at which a value was logged, each with the value."""
    return [(line["step"], line[name]) for line in lines if name in line and "step" in line]


def _losses(lines: Sequence[Mapping[str, Any]]) -> list[_Curve]:
    """Of the training the total, broad and pale below its parts, and of the validation what the model answers."""
    total = points_of(lines, "loss")
    parts = [_Curve(head.words, points_of(lines, f"{head.prefix}loss"), {}) for head in (CLASS, DISTILLATION)]
    if not parts[1].points:  # without a teacher there is one term
        parts = []
    parts = [part for part in parts if not _are_equal(part.points, total)]
    name = "training, total" if any(part.points for part in parts) else "training"
    curves = [_Curve(name, total, {"color": _COLOURS[0], "linewidth": 3.5, "alpha": 0.45})]
    for part, colour in zip(parts, _COLOURS[1:], strict=False):
        curves.append(part._replace(label=f"training, {part.label}", style={"color": colour}))
    style = {"color": _VALIDATION, "linestyle": "--", "linewidth": 2.2}
    averaged = {"color": _COLOURS[5], "linestyle": "--"}
    return [
        *curves,
        _Curve("validation", points_of(lines, "eval_loss"), style),
        _Curve("validation, averaged weights", points_of(lines, "eval_ema_loss"), averaged),
    ]


def _are_equal(one: Points, other: Points) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and abs(a[1] - b[1]) <= 1e-6 * abs(b[1]) for a, b in zip(one, other, strict=True)
    )


def _accuracies(lines: Sequence[Mapping[str, Any]], teacher_top1: float | None, fusion: str | None) -> list[_Curve]:
    """Of each head, the broader the more may lie upon it; and the teacher's, which is one number, as a level."""
    is_single = not any(f"eval_{CLASS.prefix}top1" in line for line in lines)
    has_teacher = any("distillation_loss" in line or "teacher_top1" in line for line in lines)
    words = {**{head: head.words for head in HEADS}, FUSED: words_of_answer(fusion)}
    if is_single:
        words[FUSED] = "student" if has_teacher else "model"
    curves = [
        _Curve(words[head], points_of(lines, f"eval_{head.prefix}top1"), {"color": colour, "linewidth": width})
        for head, colour, width in zip(HEADS, _COLOURS, (4.5, 3.0, 1.5), strict=False)
    ]
    averaged = {"color": _COLOURS[3], "linestyle": ":", "linewidth": 2.0}
    curves.append(_Curve("averaged weights", points_of(lines, "eval_ema_top1"), averaged))
    if not any(curve.points for curve in curves):
        return []
    level, label = teacher_top1, "teacher"
    measured = [line for line in lines if "teacher_top1" in line]
    if level is None and measured:
        level, images = measured[-1]["teacher_top1"], measured[-1].get("teacher_images")
        of_all = next((line["eval_images"] for line in lines if "eval_images" in line), images)
        label += "" if images == of_all else f" (on {images:,} images)"
    if level is not None:
        curves.append(_Curve(label, [(0, level)], {"color": "0.4", "linestyle": "--"}))
    return curves


def _draw(axes: Axes, curve: _Curve) -> None:
    if curve.label.startswith("teacher"):
        axes.axhline(curve.points[0][1], label=curve.label, **curve.style)
        return
    steps, values = zip(*curve.points, strict=True)
    style = {"linewidth": 1.5, **curve.style}
    if len(steps) < FEW_POINTS:
        style |= {"marker": "o", "markersize": 2 + 1.5 * style["linewidth"]}
    elif len(steps) > MANY_POINTS:
        style["linewidth"] /= 2
    axes.plot(steps, values, label=curve.label or None, **style)


def set_scales(axes: Axes, kind: str, values: Sequence[float], last_step: int) -> None:
    """Panels share their steps, which are whole numbers; a narrow range of values is not blown up.

    Args:
        axes: of a panel.
        kind: of the values: `LOSS`, `ACCURACY`, `LEARNING_RATE`, or something else.
        values: all that it shows.
        last_step: of all panels.
    """
    axes.set_xlim(0, 1.03 * max(last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    low, high = min(values), max(values)
    if kind == LOSS and low > 0 and high > 20 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    if kind == LEARNING_RATE:
        axes.set_ylim(0, 1.06 * high or 1)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        return
    least = 0.1 if kind == ACCURACY else 0.2 * abs(high) or 0.1
    room = max(0.06 * (high - low), (least - (high - low)) / 2)
    low, high = low - room, high + room
    axes.set_ylim(*((max(low, -0.01), min(high, 1.01)) if kind == ACCURACY else (low, high)))
