"""The curves of several trainings in one picture, and what each came to."""

import math
import os
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ..errors import InputError, counted, did_you_mean, escaped, printable
from ..hub.curves import (
    ACCURACY,
    FEW_POINTS,
    LEARNING_RATE,
    LOSS,
    MANY_POINTS,
    Points,
    of_the_training,
    points_of,
    set_scales,
)
from ..hub.record import LAST_CHECKPOINT, read_facts, read_history
from ..hub.run_folder import STATE_FILE, list_checkpoints
from ..models.heads import CLASS, DISTILLATION
from .pictures import COLOURS, as_png, drawing, look_of, name_in_picture
from .sections import Picture, Section, Table

_FILLS = ("full", "none", "left", "bottom")  # of marks, of one colour after the other
_COLUMNS = 3  # of panels
_MOST = sys.float_info.max
# Letters and lines of the legend in the place of a panel, and the letters that a mark with its space takes.
_LEGEND_WIDTH, _LEGEND_HEIGHT, _LETTERS_OF_LINE = 32, 11, 8
_LONGEST_NAME = 90


@dataclass(frozen=True)
class _Measure:
    """Something that is logged while a run trains.

    Attributes:
        key: in the log.
        words: for people.
        unit: of the axis.
        kind: see `set_scales`.
        is_evaluated: whether it is of the validation images; else of training steps, with their augmented views.
    """

    key: str
    words: str
    unit: str
    kind: str

    @property
    def is_evaluated(self) -> bool:
        return self.key.startswith("eval_")

    def best(self, points: Points) -> tuple[int, float]:
        """The lowest loss, or the highest of another measure: the first such point."""
        return (min if self.kind == LOSS else max)(points, key=lambda point: point[1])


_FRACTION, _SPEED = "fraction of images", "images per second"
_CLASS_TERM = _Measure(f"{CLASS.prefix}loss", "training loss, labels' term", "loss", LOSS)
_TEACHERS_TERM = _Measure(f"{DISTILLATION.prefix}loss", "training loss, teacher's term", "loss", LOSS)
_MEASURES = (
    _Measure("loss", "training loss, total", "loss", LOSS),
    _CLASS_TERM,
    _TEACHERS_TERM,
    _Measure("eval_loss", "validation loss", "loss", LOSS),
    _Measure("eval_ema_loss", "validation loss, averaged weights", "loss", LOSS),
    _Measure("teacher_agreement", "agreement with the teacher in training", "fraction of views", ACCURACY),
    _Measure("eval_top1", "validation top-1", _FRACTION, ACCURACY),
    _Measure(f"eval_{CLASS.prefix}top1", f"validation top-1, {CLASS.words}", _FRACTION, ACCURACY),
    _Measure(f"eval_{DISTILLATION.prefix}top1", f"validation top-1, {DISTILLATION.words}", _FRACTION, ACCURACY),
    _Measure("eval_ema_top1", "validation top-1, averaged weights", _FRACTION, ACCURACY),
    _Measure("learning_rate", "learning rate", "learning rate", LEARNING_RATE),
    _Measure("images_per_second", "images/s in training", _SPEED, _SPEED),
)
_BY_KEY = {each.key: each for each in _MEASURES}
# Of a validation set with a name, as transformers calls them.
_NAMED = re.compile(
    rf"eval_(?!ema_|plain_)(.+?)_((?:ema_|plain_)?(?:{CLASS.prefix}|{DISTILLATION.prefix})?(?:loss|top1))"
)


def _measure_of(key: str) -> _Measure | None:
    """What a key of the log stands for; None if it is not drawn."""
    if key not in _BY_KEY and (named := _NAMED.fullmatch(key)):
        name, metric = named.groups()
        measure = _BY_KEY.get(f"eval_{metric}")
        return measure and replace(measure, key=key, words=f"{measure.words}, {printable(escaped(name))}")
    return _BY_KEY.get(key)


@dataclass(frozen=True)
class _Run:
    """A run, as its log tells it.

    Attributes:
        name: short and unique.
        points: of each measure that was logged, by its key.
        last_step, epochs: to which the log comes.
        has_ended: whether the training came to its end.
        teacher_top1: the teacher's accuracy on validation images, if it was measured.
    """

    name: str
    points: Mapping[str, Points]
    last_step: int
    epochs: float | None
    has_ended: bool
    teacher_top1: float | None


def run_curves_section(folders: Sequence[str | os.PathLike[str]]) -> Section:
    """Draws what runs have logged over their steps, one colour for each run, and lists its final and best values.

    Args:
        folders: of runs, each its `--output_dir`, whose name it is called by; of a run that was killed its newest
            checkpoint tells. A checkpoint's folder does, too.

    Raises:
        InputError: there are no folders, one is not there, is given twice, or has no log.
    """
    if not folders:
        raise InputError("no folder of a run to draw the curves of: give the --output_dir of one run or of several")
    runs = list(_read(folders))
    keys = {key for run in runs for key in run.points}
    measures = [_measure_of(key) for key in (*_BY_KEY, *sorted(keys - _BY_KEY.keys())) if key in keys]
    if not any(_TEACHERS_TERM.key in run.points for run in runs):
        measures = [each for each in measures if each != _CLASS_TERM]  # there is one term: it is the loss
    return Section(
        name="run_curves",
        title="Training runs",
        text=tuple(_text(runs)),
        tables=tuple(_tables(runs, measures)),
        pictures=(_picture(runs, measures),),
        numbers={"runs": {run.name: _numbers(run, measures) for run in runs}},
    )


def _read(folders: Sequence[str | os.PathLike[str]]) -> Iterator[_Run]:
    given: dict[str, str] = {}
    for folder in map(os.path.expanduser, map(os.fspath, folders)):
        _check_folder(folder)
        place = os.path.realpath(folder)
        if place in given:
            raise InputError(f"the run in {folder!r} is given twice, first as {given[place]!r}: leave one of them out")
        given[place] = folder
    for name, folder in zip(_short_names([*given.values()]), given.values(), strict=True):
        lines = _log_of(folder)
        best_step = None
        with suppress(InputError):  # of a run of another version: then the last evaluation is drawn, too
            facts = read_facts(folder)
            best_step = facts.best_step if facts is not None else None
        trained = list(of_the_training(lines, best_step))
        keys = {key for line in trained for key in line if _measure_of(key)}
        points = {key: _finite(points_of(trained, key)) for key in keys}
        points = {key: found for key, found in points.items() if found}
        if not points:
            raise _no_log(folder)
        last_step = max(line["step"] for line in lines)
        yield _Run(
            name,
            points,
            last_step=last_step,
            epochs=next((epoch for _, epoch in reversed(_finite(points_of(lines, "epoch")))), None),
            has_ended=any("train_runtime" in line and line["step"] == last_step for line in lines),
            teacher_top1=next((value for _, value in reversed(_finite(points_of(lines, "teacher_top1")))), None),
        )


def _check_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    if os.path.lexists(folder):
        raise InputError(f"{folder!r} is no folder: give the --output_dir of a run")
    beside, name = os.path.split(os.path.abspath(folder))
    others: list[str] = []
    with suppress(OSError):
        others = sorted(entry.name for entry in os.scandir(beside) if entry.is_dir())
    hint = did_you_mean(name, others)
    raise InputError(f"there is no folder {folder!r}: give the --output_dir of a run{hint}")


def _log_of(folder: str) -> list[dict[str, Any]]:
    """The longest log of a run: what it left at its end, or its newest checkpoint that has one.

    A run that was begun again after its end, and killed, has a checkpoint with more steps.
    """
    beside = (read_history(os.path.join(path, STATE_FILE)) for path in reversed(list_checkpoints(folder)))
    logs = [
        read_history(os.path.join(folder, STATE_FILE)),
        next(filter(None, beside), []),
        read_history(os.path.join(folder, LAST_CHECKPOINT, STATE_FILE)),
    ]
    longest = max(logs, key=lambda lines: max((line["step"] for line in lines), default=-1))
    if not longest:
        raise _no_log(folder)
    return longest


def _no_log(folder: str) -> InputError:
    is_there = os.path.lexists(os.path.join(folder, STATE_FILE))
    found = f"its {STATE_FILE} has none that can be read" if is_there else f"it has no {STATE_FILE}"
    return InputError(
        f"the folder {folder!r} has no log of a run: {found}, nor has a checkpoint-N in it: give the --output_dir of "
        "a run that has logged a step"
    )


def _finite(points: Points) -> Points:
    """Without what is no number, as in a file that someone has changed, and of a step that diverged."""
    return [
        (step, value)
        for step, value in points
        if isinstance(value, int | float) and not isinstance(value, bool) and -_MOST <= value <= _MOST
    ]


def _short_names(folders: Sequence[str]) -> list[str]:
    """The last part of each path, or as many of its last parts as tell it from all others."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]

    def name(own: tuple[str, ...]) -> str:
        others = [other for other in parts if other != own]
        lengths = range(1, len(own) + 1)
        enough = next(k for k in lengths if k == len(own) or all(other[-k:] != own[-k:] for other in others))
        return printable(escaped(os.path.join(*own[-enough:])))

    return [name(own) for own in parts]


def _text(runs: Sequence[_Run]) -> Iterator[str]:
    yield (
        f"What {counted(len(runs), 'run')} logged, over the steps of the optimizer. Losses, agreement and speed of "
        "training are of the mixed and augmented views since the line before; validation is of whole images, without "
        "mixing. Evaluations that repeat a step are left out."
    )
    if unfinished := [run.name for run in runs if not run.has_ended]:
        yield f"Not at the end of their training when they were read: {', '.join(unfinished)}."
    looks = [tuple(look_of(index).values()) for index in range(len(runs))]
    if len(set(looks)) < len(looks):
        yield f"There are more runs than colours and lines: from run {len(set(looks)) + 1} on, they come again."


def _tables(runs: Sequence[_Run], measures: Sequence[_Measure]) -> Iterator[Table]:
    has_teacher = any(run.teacher_top1 is not None for run in runs)
    last = [each for each in measures if each.kind != LEARNING_RATE]
    yield Table(
        "runs",
        "The last values that each run logged; of its speed the median.",
        (
            *("run", "steps", "epochs", *(each.words for each in last)),
            *(["teacher's validation top-1"] if has_teacher else []),
        ),
        tuple(
            (
                *(run.name, run.last_step, run.epochs, *(_final(run, each) for each in last)),
                *([run.teacher_top1] if has_teacher else []),
            )
            for run in runs
        ),
    )
    evaluated = [each for each in measures if each.is_evaluated]
    if evaluated:
        yield Table(
            "best_of_runs",
            "The best values on the validation images, with the step; the more evaluations, the luckier the best.",
            ("run", *(heading for each in evaluated for heading in (f"best {each.words}", "at step"))),
            tuple(
                (
                    run.name,
                    *(
                        cell
                        for each in evaluated
                        for cell in (
                            reversed(each.best(run.points[each.key])) if each.key in run.points else (None,) * 2
                        )
                    ),
                )
                for run in runs
            ),
        )


def _final(run: _Run, measure: _Measure) -> float | None:
    points = run.points.get(measure.key)
    if not points:
        return None
    return statistics.median(value for _, value in points) if measure.unit == _SPEED else points[-1][1]


def _numbers(run: _Run, measures: Sequence[_Measure]) -> dict[str, Any]:
    numbers = {}
    for each in measures:
        if each.key in run.points:
            points = run.points[each.key]
            (last_step, last), (best_step, best) = points[-1], each.best(points)
            numbers[each.key] = {"last": last, "last_step": last_step, "best": best, "best_step": best_step}
            if each.unit == _SPEED:
                numbers[each.key]["median"] = _final(run, each)
    return {
        "steps": run.last_step,
        "epochs": run.epochs,
        "has_ended": run.has_ended,
        "teacher_top1": run.teacher_top1,
        "measures": numbers,
    }


def _picture(runs: Sequence[_Run], measures: Sequence[_Measure]) -> Picture:
    names = [name_in_picture(run.name, _LONGEST_NAME, end=_LONGEST_NAME // 2) for run in runs]
    columns = min(_COLUMNS, len(measures))
    rows = -(-len(measures) // columns)
    free = rows * columns - len(measures)  # places that the legend may take
    of_name = max(map(len, names)) + _LETTERS_OF_LINE
    has_room = len(runs) <= free * _LEGEND_WIDTH // of_name * _LEGEND_HEIGHT
    names_in_line = max(1, min(len(runs), _LEGEND_WIDTH * (free if has_room else columns) // of_name))
    lines = -(-len(runs) // names_in_line)
    last_step = max(step for run in runs for points in run.points.values() for step, _ in points)
    with drawing(3.5 * columns, 2.6 * rows + (0 if has_room else 0.2 * lines + 0.2)) as figure:
        for position, measure in enumerate(measures, start=1):
            axes = figure.add_subplot(rows, columns, position, xlabel="step", ylabel=measure.unit)
            axes.set_title(measure.words, fontsize="medium")
            drawn = [(index, run.points[measure.key]) for index, run in enumerate(runs) if measure.key in run.points]
            for index, points in drawn:
                _draw(axes, points, index)
            set_scales(axes, measure.kind, [value for _, points in drawn for _, value in points], last_step)
        handles = [_draw(axes, [(math.nan, math.nan)], index)[0] for index in range(len(runs))]
        if has_room:
            place = figure.add_subplot(rows, columns, (len(measures) + 1, rows * columns))
            place.set_axis_off()
            place.legend(handles, names, loc="center", ncols=names_in_line, frameon=False)
        else:
            figure.legend(handles, names, loc="outside lower center", ncols=names_in_line, frameon=False)
        png = as_png(figure)
    words = ", ".join(each.words for each in measures)
    return Picture(
        "training_runs",
        png,
        f"What {counted(len(runs), 'run')} logged over their steps: one colour and line for each.",
        f"Curves over the steps of {', '.join(run.name for run in runs)}: {words}.",
    )


def _draw(axes: Axes, points: Sequence[tuple[float, float]], index: int) -> list[Any]:
    """Draws the curve of the index-th run. Marks of few points tell runs of one colour apart, as their lines do."""
    steps, values = zip(*points, strict=True)
    look = look_of(index)
    if len(steps) >= FEW_POINTS:
        look["marker"] = ""
    width = 0.8 if len(steps) > MANY_POINTS else 1.4
    fill = _FILLS[index // len(COLOURS) % len(_FILLS)]
    return axes.plot(steps, values, linewidth=width, markersize=4, fillstyle=fill, alpha=0.9, **look)
