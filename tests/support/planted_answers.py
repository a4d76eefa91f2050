"""Answers of models that are as good and as sure as they are asked to be, without a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hf_deit.evaluation.answers.verdicts import CLASS, DISTILLATION, MEAN_OF_LOGITS, SINGLE, Rule
from hf_deit.evaluation.images.labels import Labels

from .verdicts import AnswersInMemory


@dataclass(frozen=True)
class AnswersInChunks(AnswersInMemory):
    """Answers that come `size` images at a time."""

    size: int = 64

    def chunks(self) -> Iterator[Mapping[str, np.ndarray]]:
        for start in range(0, len(self), self.size):
            yield {name: logits[start : start + self.size] for name, logits in self.logits.items()}


def some_labels(n: int, num_classes: int, *, unlabelled: int = 0, seed: int = 0) -> Labels:
    """Labels of n images, the first of which have none."""
    values = np.random.default_rng(seed).integers(0, num_classes, n)
    values[:unlabelled] = -1
    return Labels(tuple(f"class {index}" for index in range(num_classes)), values)


def some_logits(labels: Labels, *, skill: float = 2.0, seed: int = 1) -> np.ndarray:
    """Logits (N, K) float32 that say the label the more often, the larger `skill` is."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), len(labels.names)))
    labelled = np.flatnonzero(labels.is_labelled)
    logits[labelled, labels.values[labelled]] += skill
    return logits.astype(np.float32)


def one_head(labels: Labels, model: str = "plain", *, skill: float = 2.0, seed: int = 1) -> AnswersInChunks:
    return AnswersInChunks(model, {SINGLE: some_logits(labels, skill=skill, seed=seed)})


def two_heads(
    labels: Labels, model: str = "student", *, rule: Rule = MEAN_OF_LOGITS, skill: float = 2.0
) -> AnswersInChunks:
    logits = {CLASS: some_logits(labels, skill=skill, seed=2), DISTILLATION: some_logits(labels, skill=skill, seed=3)}
    return AnswersInChunks(model, logits, rule)
