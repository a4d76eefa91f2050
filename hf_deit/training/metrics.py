"""What is measured of a model's answers: hits are counted in one place, for students and teachers alike."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from transformers import EvalPrediction
from transformers.utils import logging

from ..errors import InputError
from ..models.heads import HEADS
from ..models.teacher import Teacher

logger = logging.get_logger(__name__)


class Hits(NamedTuple):
    """How many of some labelled images are classified correctly.

    Attributes:
        top1, top5: images whose label is the first, or among the first five, answers; () int64. `top5` is None if
            there were fewer than five answers.
        counted: labelled images, () int64.
    """

    top1: torch.Tensor
    top5: torch.Tensor | None
    counted: torch.Tensor

    def accuracies(self) -> dict[str, float]:
        """`top1`, and `top5` if it is known, in [0, 1].

        Raises:
            InputError: no image was labelled.
        """
        counted = int(self.counted)
        if not counted:
            raise InputError(
                "there is no labelled sample to measure the accuracy on: none of the validation images has a label "
                "and can be decoded"
            )
        hits = {"top1": self.top1} | ({} if self.top5 is None else {"top5": self.top5})
        return {name: int(value) / counted for name, value in hits.items()}


def count_hits(ranked: torch.Tensor, labels: torch.Tensor) -> Hits:
    """Counts the images whose label is among a model's best answers.

    Args:
        ranked: (B, k) integers: the k best labels of each image, best first.
        labels: (B,) integers, negative where an image has none: it is left out.
    """
    counted = labels >= 0
    hits = (ranked == labels.unsqueeze(1)) & counted.unsqueeze(1)
    top5 = hits[:, :5].any(dim=1).sum() if ranked.shape[1] >= 5 else None
    return Hits(hits[:, 0].sum(), top5, counted.sum())


def class_hits(ranked: torch.Tensor, labels: torch.Tensor, num_labels: int) -> list[list[int]]:
    """Counts for each label its images, and those of them that a model classifies correctly.

    Args:
        ranked: (B, k) integers: the k best labels of each image, best first.
        labels: (B,) integers, negative where an image has none: it is left out.
        num_labels: K.

    Returns:
        K pairs: images that are classified correctly, and images.
    """
    counted = labels >= 0
    hits = labels[counted & (ranked[:, 0] == labels)].bincount(minlength=num_labels)
    return torch.stack([hits, labels[counted].bincount(minlength=num_labels)], dim=1).tolist()


def rank_labels(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Keeps of each head's (B, K) logits the five best labels: (B, heads, min(5, K))."""
    heads = torch.stack(logits if isinstance(logits, tuple) else (logits,), dim=1)
    return heads.topk(min(5, heads.shape[-1]), dim=-1).indices


def head_accuracies(prediction: EvalPrediction) -> dict[str, float]:
    """Top-1 and top-5 of each head, of predictions (N, heads, k) from `rank_labels`."""
    rankings = torch.from_numpy(np.asarray(prediction.predictions))
    labels = torch.from_numpy(np.asarray(prediction.label_ids))
    metrics = {}
    for index, head in enumerate(HEADS[: rankings.shape[1]]):
        accuracies = count_hits(rankings[:, index], labels).accuracies()
        metrics.update({f"{head.prefix}{name}": value for name, value in accuracies.items()})
    return metrics


@torch.no_grad()
def measure_teacher(
    teacher: Teacher,
    *,
    views: Iterable[Mapping[str, torch.Tensor]],
    validation: Iterable[Mapping[str, torch.Tensor]],
) -> dict[str, float]:
    """Measures how good a teacher is on a run's own pixels, and warns if it is no better than guessing.

    Args:
        views: batches of training views, with `pixel_values` (B, 3, H, W) normalised for the student and `labels`
            (B,), negative where there is none.
        validation: batches of validation images; may be empty.

    Returns:
        `teacher_agreement_with_labels`: how often it gives the true label on the views; `teacher_top1`, its accuracy
        on the validation images, and `teacher_images`, how many those are; and `majority_class`, the largest part of
        a label among the views, or, if they have none, among the validation images. What has no labels is not
        measured.
    """
    report: dict[str, float] = {}
    accuracy = majority = None
    for batches, name in ((views, "teacher_agreement_with_labels"), (validation, "teacher_top1")):
        hits, seen = 0, []
        for batch in batches:
            labels = batch["labels"]
            hits += int(count_hits(teacher(batch["pixel_values"]).argmax(dim=-1, keepdim=True), labels).top1)
            seen.append(labels[labels >= 0])
        labels = torch.cat(seen).cpu() if seen else torch.tensor([])
        if len(labels):
            report[name] = accuracy = hits / len(labels)
            majority = labels.bincount().max().item() / len(labels)
            report.setdefault("majority_class", majority)
            if name == "teacher_top1":
                report["teacher_images"] = len(labels)
    if accuracy is not None and accuracy <= max(majority, 1 / len(teacher.id2label)):
        logger.warning(
            "the teacher %s has an accuracy of %.3f, no better than chance or than always saying the most frequent "
            "class (%.3f): check that it was trained on these classes, and its image processor",
            teacher.name_or_path,
            accuracy,
            majority,
        )
    return report
