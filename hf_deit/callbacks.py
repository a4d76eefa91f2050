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
