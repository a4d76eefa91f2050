"""The curves of a training, as a picture."""

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..models.heads import CLASS, DISTILLATION, HEADS
from .files import write_whole

# Validated as a set for readers who do not tell all colours apart (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LOSSES = {"loss": "total", **{f"{head.prefix}loss": head.words for head in (CLASS, DISTILLATION)}}
_ACCURACIES = {
    "teacher_top1": "teacher",
    **{f"eval_{head.prefix}top1": head.words for head in HEADS},
    "eval_ema_top1": "averaged weights",
}


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draws the losses, the accuracies on the validation images, and the learning rate over the steps.

    Args:
        log_history: of transformers' `TrainerState`: one mapping per log line, with its "step".
        path: of the picture, a PNG of 120 dpi.

    Raises:
        OSError: it cannot be written.
    """
    single_head = not any(f"eval_{CLASS.prefix}top1" in line for line in log_history)
    accuracies = {**_ACCURACIES, "eval_top1": "student"} if single_head else _ACCURACIES
    panels = [
        ("training loss", _LOSSES, "log"),
        ("top-1 on the validation images", accuracies, "linear"),
        ("learning rate", {"learning_rate": ""}, "linear"),
    ]
    drawn = [(title, names, scale) for title, names, scale in panels if any(_curve(log_history, n)[0] for n in names)]
    figure = Figure(figsize=(4.5 * max(len(drawn), 1), 3.4), layout="constrained")
    FigureCanvasAgg(figure)  # no display is needed, and pyplot's global state is left alone
    for position, (title, names, scale) in enumerate(drawn, start=1):
        axes = figure.add_subplot(1, len(drawn), position, title=title, xlabel="step")
        colours = iter(_COLOURS)
        for name, label in names.items():
            steps, values = _curve(log_history, name)
            if name == "teacher_top1" and steps:  # measured once, on what the students are measured on
                axes.axhline(values[-1], color="0.4", linestyle="--", label=label)
            elif steps:
                marker = "o" if len(steps) < 25 else None
                axes.plot(steps, values, color=next(colours), marker=marker, markersize=3, label=label or None)
        if scale == "log" and all(value > 0 for name in names for value in _curve(log_history, name)[1]):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if any(label for label in names.values()):
            axes.legend(frameon=False)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    write_whole(picture.getbuffer(), path)


def _curve(log_history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(line["step"], line[name]) for line in log_history if name in line and "step" in line]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return list(steps), list(values)
