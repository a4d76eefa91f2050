"""What a run knows of itself for the card of its model: gathered while it trains."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, TrainerState

from ..data.view_dataset import EvaluationDataset, ViewDataset
from ..hub.facts import RunFacts, RunSources
from .arguments import DistillationTrainingArguments


class RunRecord:
    """Gathers what is said of a run beside its weights.

    Args:
        sources: what the run is made from.

    Attributes:
        teacher_report: what was measured of the teacher; see `hf_deit.training.metrics.measure_teacher`.
        has_ended: whether the training has come to its end.
        num_replayed: views whose teacher's label had been kept before; None without a store of them.
    """

    def __init__(self, sources: RunSources) -> None:
        self.sources = sources
        self.teacher_report: dict[str, float] = {}
        self.num_replayed: int | None = None
        self.restart()

    def restart(self) -> None:
        """Begins another training."""
        self.has_ended = False
        self._best_since: int | None = None

    def note_best_weights(self, state: TrainerState) -> None:
        """The best weights take the place of the last ones now."""
        self._best_since = len(state.log_history)

    def note_teacher_accuracy(self, top1: float, num_images: int) -> None:
        """The teacher's accuracy on so many validation images, instead of what was measured before."""
        self.teacher_report = {**self.teacher_report, "teacher_top1": top1, "teacher_images": num_images}

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
        metrics: Mapping[str, float] | None = None,
    ) -> RunFacts:
        """The facts of the run as it stands.

        Args:
            model: the student, unwrapped.
            image_size: input size in pixels.
            train_dataset, eval_dataset: what it was trained and evaluated on.
            images_per_second: in training, so far.
            metrics: of the weights; by default `published_metrics`.
        """
        return RunFacts.of(
            model,
            args,
            state,
            self.sources,
            image_size=image_size,
            metrics=self.published_metrics(state) if metrics is None else metrics,
            is_finished=self.has_ended,
            best_step=None if self._best_since is None else state.best_global_step,
            num_train=len(train_dataset) if isinstance(train_dataset, ViewDataset) else None,
            num_validation=len(eval_dataset) if isinstance(eval_dataset, EvaluationDataset) else None,
            teacher_report=self.teacher_report,
            images_per_second=images_per_second,
            num_replayed=self.num_replayed,
        )
