"""Callbacks of the distilling Trainer."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.view_dataset import EvaluationDataset
from .datasets import make_sampler
from .metrics import measure_teacher

if TYPE_CHECKING:
    from .trainer import DistillationTrainer

TEACHER_CHECK_IMAGES = 512


class TeacherCheckCallback(TrainerCallback):
    """Measures and logs how good the teacher is on a run's own pixels, before the first step.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: "DistillationTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.check_teacher()


def teacher_report(trainer: "DistillationTrainer") -> dict[str, float]:
    """What is known of a run's teacher before the first step, from up to `TEACHER_CHECK_IMAGES` images of each kind.

    Returns:
        See `measure_teacher`. Without a teacher, only `kept_labels_that_are_true`: how often a kept label is that of
        the view's own image, which others may be mixed into.
    """
    if trainer.teacher is None:
        agreement = trainer.kept_labels.agreement_with_labels(TEACHER_CHECK_IMAGES)
        return {} if agreement is None else {"kept_labels_that_are_true": agreement}
    views = trainer.train_dataset
    keys = filter(None, make_sampler(views, trainer.args))  # None is another process's, of a stream
    return measure_teacher(
        trainer.teacher,
        views=_batches(trainer, (views[key] for key in itertools.islice(keys, TEACHER_CHECK_IMAGES))),
        validation=_batches(trainer, _validation_samples(trainer.eval_dataset)),
    )


def _validation_samples(dataset: Any) -> Iterator[dict[str, Any]]:
    dataset = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
    if isinstance(dataset, EvaluationDataset):
        count = min(len(dataset), TEACHER_CHECK_IMAGES)
        for index in np.linspace(0, len(dataset) - 1, num=count, dtype=int).tolist():
            yield dataset[index]


def _batches(trainer: "DistillationTrainer", samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, torch.Tensor]]:
    samples = iter(samples)
    while chunk := list(itertools.islice(samples, trainer.args.eval_batch_size)):
        yield trainer.prepare_batch(trainer.data_collator(chunk))


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
