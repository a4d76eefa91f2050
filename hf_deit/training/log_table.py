"""What a run writes while it trains: what it is, before the first step, and then a table with a line for each log."""

import logging
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import IntervalStrategy, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import printable
from ..models.heads import CLASS, DISTILLATION, MEASURED
from .arguments import DistillationTrainingArguments
from .estimate import estimate_seconds
from .overview import describe_run

if TYPE_CHECKING:
    from .trainer import DistillationTrainer

_HEADER_EVERY = 40  # rows: about a screen
_GAP = "  "
# Of a log, what the overview or the end of a run tells, or nobody needs.
_NOT_TOLD = re.compile(r"epoch|step|total_flos|train_\w+|\w+_(runtime|samples_per_second|steps_per_second|\w+_time)")


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        key: of what it shows, in a log.
        title: above it.
        width: in characters; what is wider is shown less exactly.
        form: of a value, as text.
        rank: those of the highest rank are left out first where the screen is narrow.
    """

    key: str
    title: str
    width: int
    form: Callable[[float], str]
    rank: int = 0


def _decimals(most: int, width: int) -> Callable[[float], str]:
    """Numbers with so many decimals, or fewer where they would be too wide."""

    def form(value: float) -> str:
        texts = [f"{value:.{decimals}f}" for decimals in range(most, -1, -1)]
        return next((text for text in texts if len(text) <= width), f"{value:.0e}")

    return form


def _speed(value: float) -> str:
    """Images a second, in at most six characters."""
    return f"{value:,.0f}" if value < 99_999.5 else f"{value / 1000:,.0f}k"


def duration(seconds: float) -> str:
    """A time span in at most eight characters: "4:07", "23:59:59" or "12d 03h"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def columns(
    *,
    num_steps: int,
    num_epochs: float,
    is_distilled: bool,
    has_two_heads: bool,
    is_evaluated: bool,
    has_average: bool = False,
    has_top5: bool = True,
    answers: str = "",
    width: int,
) -> list[Column]:
    """The columns of a run's table, as many as fit.

    Args:
        num_steps, num_epochs: of the run.
        is_distilled: whether there is a teacher's term.
        has_two_heads: whether the student has a head for it.
        is_evaluated: whether the run looks at validation images while it trains.
        has_average: whether the moving average of the weights is evaluated, too.
        has_top5: whether there are classes enough for it.
        answers: prefix of the metrics of what will be saved, "" or "ema_".
        width: of the screen, in characters.
    """
    steps, epochs = max(len("step"), len(str(num_steps))), 2 if num_epochs < 100 else 1
    ratio, loss = _decimals(4, 6), _decimals(4, 6)
    all_columns = [
        Column("step", "step", steps, lambda value: f"{value:.0f}"),
        Column("epoch", "epoch", max(5, len(f"{num_epochs:.{epochs}f}")), lambda value: f"{value:.{epochs}f}", 2),
        Column("loss", "loss", 6, loss),
        Column("class_loss", "class", 6, loss, 5),
        Column("distillation_loss", "teacher", 7, loss, 5),
        Column("teacher_agreement", "agree", 5, _decimals(3, 5), 4),
        Column("eval_loss", "val loss", 8, loss, 8),
        Column(f"eval_{answers}top1", "top-1", 6, ratio),
        Column(f"eval_{answers}top5", "top-5", 6, ratio, 10),
        Column(f"eval_{answers}{CLASS.prefix}top1", CLASS.words, 10, ratio, 9),
        Column(f"eval_{answers}{DISTILLATION.prefix}top1", "dist. head", 10, ratio, 9),
        Column("eval_top1" if answers else "eval_ema_top1", "raw" if answers else "averaged", 8, ratio, 7),
        Column("grad_norm", "gradient", 8, _decimals(3, 8), 12),
        Column("learning_rate", "lr", 7, lambda value: f"{value:.1e}", 3),
        Column("images_per_second", "img/s", 6, _speed, 1),
        Column("time_left", "left", 8, duration),
    ]
    absent = set() if is_distilled else {"distillation_loss", "teacher_agreement"}
    absent |= set() if is_distilled or has_two_heads else {"class_loss"}  # which is the loss
    shown = [column for column in all_columns if column.key not in absent]
    if not is_evaluated:
        shown = [column for column in shown if not column.key.startswith("eval_")]
    if not has_two_heads:
        shown = [column for column in shown if not column.title.endswith(" head")]
    if not has_average:
        shown = [column for column in shown if column.title not in ("raw", "averaged")]
    if not has_top5:
        shown = [column for column in shown if column.title != "top-5"]
    while len(shown) > 1 and len(header(shown)) > width:
        shown.remove(max(reversed(shown), key=lambda column: column.rank))
    return shown


def header(shown: Sequence[Column]) -> str:
    """The line above the rows."""
    return _GAP.join(f"{column.title:>{column.width}}" for column in shown)


def row(shown: Sequence[Column], values: Mapping[str, float]) -> str:
    """A line of the table; what there is no value of stays empty."""
    cells = [column.form(values[column.key]) if column.key in values else "" for column in shown]
    return _GAP.join(f"{cell:>{column.width}}" for cell, column in zip(cells, shown, strict=True)).rstrip()


def others(values: Mapping[str, Any], *, width: int) -> str:
    """What no column shows, such as metrics of one's own, as text; empty if there is nothing."""
    told = {column.key for column in _EVERY_COLUMN} | _TOLD_ELSEWHERE
    left = {name: value for name, value in values.items() if name not in told and not _NOT_TOLD.fullmatch(name)}
    words = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in left.items()]
    return _wrapped(words, width)


def evaluation(values: Mapping[str, Any], *, width: int) -> str:
    """An evaluation that is no part of a training, as text."""
    shown = [column for column in _EVERY_COLUMN if column.key.startswith("eval_") and column.key in values]
    words = [f"evaluated at step {values['step']:.0f}", *(f"{one.title} {one.form(values[one.key])}" for one in shown)]
    return "\n".join(filter(None, [_wrapped(words, width), others(values, width=width)]))


def _wrapped(words: Sequence[str], width: int) -> str:
    return textwrap.fill("; ".join(words), width, initial_indent=_GAP, subsequent_indent=_GAP) if words else ""


_EVERY_COLUMN = columns(
    num_steps=1,
    num_epochs=1,
    is_distilled=True,
    has_two_heads=True,
    is_evaluated=True,
    has_average=True,
    width=1000,
)
# How many images were counted is said before the first step, and in the end; which were skipped, once for each.
_TOLD_ELSEWHERE = {"eval_images", "eval_ema_images", "skipped_images"} | {
    f"eval_{average}{head.prefix}{name}"
    for average in ("", "ema_")
    for head in MEASURED
    for name in ("top1", "top5", "loss")
}


def screen_width() -> int:
    """Characters of a line, one less than the screen has: some break a full line."""
    return shutil.get_terminal_size().columns - 1


class LogTableCallback(TrainerCallback):
    """Writes the overview of a run before its first step, and what it logs as a table, with a bar below on a terminal.

    It takes the place of transformers' `PrinterCallback` and `ProgressCallback`. The main process alone writes.

    Args:
        trainer: of the run.

    Attributes:
        learner: what the overview calls the model; see `RunOverview`.
    """

    def __init__(self, trainer: "DistillationTrainer") -> None:
        self._trainer = trainer
        self.learner: str | None = None
        self._columns: list[Column] | None = None
        self._close()

    def _close(self) -> None:
        self._pending: dict[str, float] = {}  # of a row, until it is known whether an evaluation adds to it
        self._rows = 0
        self._first: tuple[int, float] | None = None  # the step that speed is measured from, and when it ended
        self._evaluated = 0
        self._bar: tqdm | None = None
        self._stack = ExitStack()

    def close(self) -> None:
        """Writes what is left, and takes the bar away. For a training that ends in whatever way."""
        self._flush()
        self._stack.close()
        self._columns = None
        self._close()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        seconds = estimate_seconds(self._trainer)  # on every process, as they share cores
        if state.is_world_process_zero:
            self._begin(args, state, seconds)
        self._trainer.step_record.restart_timer()

    def _begin(self, args: DistillationTrainingArguments, state: TrainerState, seconds: float | None) -> None:
        overview, width = describe_run(self._trainer, learner=self.learner, seconds=seconds), screen_width()
        self._write(f"\n{overview.text(width)}\n")
        student = self._trainer.accelerator.unwrap_model(self._trainer.model)
        is_evaluated = args.eval_strategy != IntervalStrategy.NO
        self._columns = columns(
            num_steps=state.max_steps,
            num_epochs=state.num_train_epochs,
            is_distilled=args.distillation_type != "none",
            has_two_heads=hasattr(student, "distillation_classifier"),
            is_evaluated=is_evaluated and not isinstance(self._trainer.eval_dataset, dict),
            has_average=bool(args.ema_decay),
            has_top5=student.config.num_labels > 5,  # of five labels it says nothing
            answers="ema_" if args.publish_weights == "ema" else "",
            width=width,
        )
        if not args.disable_tqdm and sys.stderr.isatty():
            # A message in the midst of a bar would stand behind it.
            loggers = [logging.getLogger(), logging.getLogger("transformers")]
            self._stack.enter_context(logging_redirect_tqdm(loggers))
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}",
                dynamic_ncols=True,
                leave=False,
            )
            self._stack.callback(self._bar.close)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._flush()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._first is None:  # the first step has what is done only once
            self._first = (state.global_step, time.perf_counter())
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._evaluated += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"evaluating, batch {self._evaluated}", refresh=False)
            self._bar.update(0)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._evaluated = 0
        if self._bar is not None:
            self._bar.set_postfix_str("", refresh=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        is_evaluation = any(name.startswith("eval_") for name in logs)
        if self._columns is None:
            if is_evaluation:  # on its own: before or after the training
                self._write(evaluation({**logs, "step": state.global_step}, width=screen_width()))
            return
        if not is_evaluation or self._pending.get("step") != state.global_step:
            self._flush()
        if "loss" in logs or is_evaluation:
            self._pending |= {**logs, "step": state.global_step, **self._time_left(state)}
            if is_evaluation:
                self._flush()
        elif text := others(logs, width=screen_width()):
            self._write(text)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def _time_left(self, state: TrainerState) -> dict[str, float]:
        if self._first is None or state.global_step <= self._first[0]:
            return {}
        step, moment = self._first
        seconds = (time.perf_counter() - moment) / (state.global_step - step)
        return {"time_left": seconds * (state.max_steps - state.global_step)}

    def _flush(self) -> None:
        """Writes the row that waits."""
        if not self._pending or self._columns is None:
            return
        values, self._pending = self._pending, {}
        line = row(self._columns, values)
        if self._rows % _HEADER_EVERY == 0:
            line = f"{header(self._columns)}\n{line}"
        self._rows += 1
        rest = others(values, width=screen_width())
        self._write(f"{line}\n{rest}" if rest else line)

    @staticmethod
    def _write(text: str) -> None:
        tqdm.write(printable(text))  # above the bar
        sys.stdout.flush()  # a log file is read while it is written
