"""Answers of models that are made up, and images that they are about."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from scipy import sparse

from hf_deit.evaluation.answers.verdicts import (
    CLASS,
    DISTILLATION,
    MEAN_OF_LOGITS,
    RULES_OF_TWO_HEADS,
    SINGLE,
    SINGLE_HEAD,
    Rule,
    Verdicts,
    verdicts_of,
)
from hf_deit.evaluation.images.images import EvaluationImages
from hf_deit.evaluation.images.labels import Labels

from . import images as pictures


@dataclass(frozen=True)
class AnswersInMemory:
    """Answers to a few images; see `hf_deit.evaluation.answers.answers.Answers`.

    Attributes:
        logits: (N, K) of each head, by name.
        features: (N, D), or None.
    """

    model: str
    logits: Mapping[str, np.ndarray]
    rule: Rule = SINGLE_HEAD
    features: np.ndarray | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (SINGLE_HEAD,) if SINGLE_HEAD.key in self.logits else RULES_OF_TWO_HEADS

    def __len__(self) -> int:
        return len(next(iter(self.logits.values())))

    def chunks(self) -> Iterator[Mapping[str, np.ndarray]]:
        yield self.logits

    def features_chunks(self) -> Iterator[np.ndarray] | None:
        return None if self.features is None else iter([self.features])

    def verdicts(self, rule: Rule) -> Verdicts:
        return verdicts_of(self.model, rule, self.chunks())


def logits_for(decisions: Sequence[int], num_classes: int, seed: int = 0) -> np.ndarray:
    """Logits whose largest is that of the decision, by more or less: (N, K) float32."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(decisions), num_classes))
    rows = np.arange(len(decisions))
    logits[rows, decisions] = logits.max(axis=1) + random.uniform(0.1, 5, size=len(decisions))
    return logits.astype(np.float32)


def one_head(name: str, logits: np.ndarray) -> AnswersInMemory:
    return AnswersInMemory(name, {SINGLE: logits.astype(np.float32)})


def two_heads(name: str, cls: np.ndarray, distillation: np.ndarray, rule: Rule = MEAN_OF_LOGITS) -> AnswersInMemory:
    return AnswersInMemory(name, {CLASS: cls, DISTILLATION: distillation}, rule)


def verdicts(name: str, decisions: Sequence[int], num_classes: int = 3, seed: int = 0) -> Verdicts:
    return one_head(name, logits_for(decisions, num_classes, seed)).verdicts(SINGLE_HEAD)


def labels_of(values: Sequence[int], names: Sequence[str] = pictures.NAMES) -> Labels:
    return Labels(tuple(names), np.array(values))


def several_labels(accepted: Sequence[Sequence[int]], names: Sequence[str] = pictures.NAMES) -> Labels:
    """Labels as ReaL has them: any number of an image, or none."""
    dense = np.zeros((len(accepted), len(names)), dtype=bool)
    for row, classes in zip(dense, accepted, strict=True):
        row[list(classes)] = True
    values = np.array([classes[0] if classes else -1 for classes in accepted])
    return Labels(tuple(names), values, sparse.csr_array(dense))


def images_with(labels: Labels, encoded: Sequence[Any] | None = None) -> EvaluationImages:
    """Images with these labels: those given as files have them, or plain ones."""
    encoded = encoded or [
        pictures.encoded(pictures.picture(0, number), f"{number}.png") for number in range(len(labels))
    ]
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": list(encoded)}, features=features)
    return EvaluationImages(dataset, "image", labels, {"name": "made up"}, f"{len(labels)} images")
