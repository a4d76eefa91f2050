"""Answers of models that are made up, and images that they are about."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from scipy import sparse

from hf_deit.evaluation.answers.answers import AnswersInMemory
from hf_deit.evaluation.answers.verdicts import (
    CLASS,
    DISTILLATION,
    MEAN_OF_LOGITS,
    SINGLE,
    SINGLE_HEAD,
    Rule,
    Verdicts,
)
from hf_deit.evaluation.images.images import EvaluationImages
from hf_deit.evaluation.images.labels import Labels

from . import images as pictures


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
