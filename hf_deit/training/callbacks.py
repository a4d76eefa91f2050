"""Callbacks of the distilling Trainer."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TeacherCheckCallback(TrainerCallback):
    """Measures the teacher when training begins, with the progress bar there and before the first step.

    Args:
        check: measures and logs.
    """

    def __init__(self, check: Callable[[], Any]) -> None:
        self.check = check

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.check()


class StepEndCallback(TrainerCallback):
    """Calls a function with the number of each optimizer step that is done, before anything is evaluated or saved.

    Args:
        function: of the step, counted from 1.
    """

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.function(state.global_step)
