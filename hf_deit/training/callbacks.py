"""Callbacks of the distilling Trainer."""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.streams import StreamViewDataset
from ..data.view_dataset import EvaluationDataset
from ..models.answers import has_answer
from .datasets import first_samples
from .metrics import measure_teacher
from .teacher_answers import TeacherAnswers

if TYPE_CHECKING:
    from .trainer import DistillationTrainer

TEACHER_CHECK_IMAGES = 512
# Views that are mixed as in the training, which the teacher is asked about besides: it sees nothing else later.
TEACHER_CHECK_MIXED_VIEWS = 128
_MIXING = {"partner_offsets", "label_weights", "pixel_weights", "mix_boxes"}


Batches = Iterator[dict[str, torch.Tensor]]


class TeacherCheckCallback(TrainerCallback):
    """Measures and logs how good the teacher is on a run's own pixels, before the first step.

    A teacher whose answers are not finite ends the run here, unless they are to be passed over.

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

    Raises:
        InputError: its answers are not finite, and are not to be passed over; or none is finite.
    """
    if trainer.teacher is None:
        agreement = trainer.kept_labels.agreement_with_labels(TEACHER_CHECK_IMAGES)
        return {} if agreement is None else {"kept_labels_that_are_true": agreement}
    validation = trainer.eval_dataset
    validation = next(iter(validation.values())) if isinstance(validation, dict) else validation
    keys: dict[tuple[int, int], Any] = {}
    views = trainer.train_dataset
    is_shared = not isinstance(views, StreamViewDataset)  # of which each process reads a part
    of_views = TeacherAnswers(trainer.args, lambda *slot: views.name(keys[slot]), is_shared=is_shared)
    of_validation = TeacherAnswers(trainer.args, lambda _, row: validation.name(row), is_shared=True)
    return measure_teacher(
        trainer.teacher,
        views=_views(trainer, of_views, keys),
        validation=_validation_images(trainer, validation, of_validation),
        note_view=of_views.note,
        note_validation=lambda answered, batch: of_validation.note(answered, batch, asked=batch["labels"] >= 0),
    )


def _views(trainer: "DistillationTrainer", answers: TeacherAnswers, keys: dict[tuple[int, int], Any]) -> Batches:
    """The first views of a run, as it sees them but for mixing, so that each has its own label.

    Those that are mixed are shown to the teacher, too. In the end is looked at what it has answered: before anything
    is said of how good it is.

    Args:
        answers: of the teacher.
        keys: takes the views' keys by epoch and slot.
    """
    views, mixed = trainer.train_dataset, 0
    for chunk, samples in first_samples(views, trainer.args, TEACHER_CHECK_IMAGES):
        keys.update({(key.epoch, key.slot): key for key in chunk})
        if not _MIXING.isdisjoint(samples[0]) and mixed < TEACHER_CHECK_MIXED_VIEWS:
            batch = trainer.prepare_batch(trainer.data_collator(samples))
            answers.note(has_answer(trainer.teacher(batch["pixel_values"])), batch)
            mixed += len(chunk)
        unmixed = [{name: value for name, value in one.items() if name not in _MIXING} for one in samples]
        yield trainer.prepare_batch(trainer.data_collator(unmixed))
    answers.check(trainer.teacher, needs_some=True)


def _validation_images(trainer: "DistillationTrainer", dataset: Any, answers: TeacherAnswers) -> Batches:
    """Some of the validation images, evenly; in the end is looked at what the teacher has answered."""
    count = min(len(dataset), TEACHER_CHECK_IMAGES) if isinstance(dataset, EvaluationDataset) else 0
    rows = iter(np.linspace(0, len(dataset) - 1, num=count, dtype=int).tolist() if count else ())
    while chunk := list(itertools.islice(rows, trainer.args.eval_batch_size)):
        # Their rows take the place of slots, by which images are named.
        samples = [{**dataset[row], "slots": row} for row in chunk]
        yield trainer.prepare_batch(trainer.data_collator(samples))
    answers.check(trainer.teacher, of="validation image")


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
