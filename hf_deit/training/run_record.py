"""What a run knows of itself for the card of its model: gathered while it trains."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from ..data.view_dataset import EvaluationDataset, ViewDataset
from ..hub.facts import RunFacts, RunSources
from ..models.heads import FUSED, HEADS
from .arguments import DistillationTrainingArguments
from .metrics import class_hits
from .predicted_classes import PredictedClasses


class RunRecord:
    """Gathers what is said of a run beside its weights.

    Args:
        sources: what the run is made from.

    Attributes:
        teacher_report: what was measured of the teacher; see `hf_deit.training.metrics.measure_teacher`.
        teacher_speed: how the teacher runs, and what else was tried, in words; empty where nothing was.
        predicted_classes: which classes the teacher has said of the training images; None where it was not asked.
        has_ended: whether the training has come to its end.
        num_replayed: views whose teacher's label had been kept before; None without a store of them.
        test_metrics: of the published weights on the test images; empty if they were not measured there.
    """

    def __init__(self, sources: RunSources) -> None:
        self.sources = sources
        self.teacher_report: dict[str, float] = {}
        self.teacher_speed = ""
        self.predicted_classes: PredictedClasses | None = None
        self.num_replayed: int | None = None
        self.restart()

    def restart(self) -> None:
        """Begins another training."""
        self.has_ended = False
        self._best_since: int | None = None
        self._classes: tuple[int, int, list[list[int]]] | None = None
        self.test_metrics: dict[str, float] = {}

    def note_test(self, metrics: Mapping[str, float]) -> None:
        """What an evaluation on the test images has measured of the weights that are published."""
        self.test_metrics = dict(metrics)

    def note_best_weights(self, state: TrainerState) -> None:
        """The best weights take the place of the last ones now."""
        self._best_since = len(state.log_history)

    def note_teacher_accuracy(self, top1: Mapping[str, float], num_images: int) -> None:
        """The teacher's accuracy on so many validation images, instead of what was measured before.

        Args:
            top1: `teacher_top1` and, of several teachers, `teacher_top1_of_1` and so on.
        """
        self.teacher_report = {**self.teacher_report, **top1, "teacher_images": num_images}

    def note_classes(self, output: EvalLoopOutput, state: TrainerState, *, num_labels: int) -> None:
        """What an evaluation of the weights that are published has found of each label, before it is logged.

        Args:
            output: with predictions from `hf_deit.training.metrics.rank_labels`.
            num_labels: of the student.
        """
        answers = torch.from_numpy(np.asarray(output.predictions))[:, HEADS.index(FUSED)]
        hits = class_hits(answers, torch.from_numpy(np.asarray(output.label_ids)), num_labels)
        self._classes = (state.global_step, len(state.log_history), hits)

    def published_step(self, state: TrainerState) -> int:
        """The step after which the weights were as they are published: the best one, if those are loaded."""
        return state.global_step if self._best_since is None else state.best_global_step

    def published_classes(self, state: TrainerState) -> list[list[int]] | None:
        """For each label how many images were classified correctly, of how many; None if that is not known.

        It is of the same evaluation as `published_metrics`.
        """
        if self._classes is None:
            return None
        step, number, hits = self._classes
        is_published = step == state.global_step if self._best_since is None else number >= self._best_since
        return hits if is_published else None

    def published_metrics(self, state: TrainerState) -> dict[str, float]:
        """Those of the last evaluation of the weights as they are, empty if there was none."""
        evaluations = [(number, line) for number, line in enumerate(state.log_history) if "eval_loss" in line]
        if self._best_since is not None:
            later = [line for number, line in evaluations if number >= self._best_since]
            best = [line for _, line in evaluations if line["step"] == state.best_global_step]
            return (later or best or [{}])[-1]
        return next((line for _, line in reversed(evaluations) if line["step"] == state.global_step), {})

    def facts(
        self,
        model: PreTrainedModel,
        args: DistillationTrainingArguments,
        state: TrainerState,
        *,
        image_size: int,
        train_dataset: Any,
        eval_dataset: Any,
        images_per_second: float,
        num_skipped: int = 0,
        metrics: Mapping[str, float] | None = None,
    ) -> RunFacts:
        """The facts of the run as it stands.

        Args:
            model: the student, unwrapped.
            image_size: input size in pixels.
            train_dataset, eval_dataset: what it was trained and evaluated on.
            images_per_second: in training, so far.
            num_skipped: images that could not be decoded.
            metrics: of the weights; by default `published_metrics`.
        """
        metrics = self.published_metrics(state) if metrics is None else metrics
        has_rows = isinstance(train_dataset, ViewDataset)
        most = len(eval_dataset) if isinstance(eval_dataset, EvaluationDataset) else None
        return RunFacts.of(
            model,
            args,
            state,
            self.sources,
            image_size=image_size,
            metrics=metrics,
            is_finished=self.has_ended,
            best_step=None if self._best_since is None else state.best_global_step,
            num_train=len(train_dataset) if has_rows else None,
            num_labeled=int((train_dataset.labels >= 0).sum()) if has_rows else None,
            num_validation=metrics.get("eval_images", most),
            num_skipped=num_skipped,
            classes=self.published_classes(state),
            teacher_report=self.teacher_report,
            predicted_classes=None if self.predicted_classes is None else self.predicted_classes.to_dict(),
            images_per_second=images_per_second,
            num_replayed=self.num_replayed,
            test_metrics=self.test_metrics,
        )
