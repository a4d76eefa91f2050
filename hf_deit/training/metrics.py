"""Accuracy as an `evaluate.Metric` that needs no download."""

from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction
from transformers.utils import logging

from ..models.teacher import Teacher

logger = logging.get_logger(__name__)

# Heads by the name of their logits in a model's output; "logits" is what the published model answers.
HEADS = {"logits": "", "cls_logits": "class_", "distillation_logits": "distillation_"}
_IGNORED_LABEL = -100  # as torch's cross-entropy

_DESCRIPTION = "Fraction of the samples whose label is the first (top1), or among the first five (top5), predictions."
_INPUTS = """
Args:
    predictions: per sample the k most probable labels, most probable first.
    references: per sample the true label; samples with -100 are left out.
Returns:
    top1, and top5 if there are at least five predictions per sample, in [0, 1].
"""


class TopKAccuracy(evaluate.Metric):
    """Top-1 and top-5 accuracy of ranked predictions.

    Example:
        >>> TopKAccuracy().compute(predictions=[[2, 0], [1, 2]], references=[2, 2])
        {'top1': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        counted = references != _IGNORED_LABEL
        if not counted.any():
            raise ValueError("there is no labelled sample to measure the accuracy on")
        hits = predictions[counted] == references[counted, None]
        result = {"top1": float(hits[:, 0].mean())}
        if hits.shape[1] >= 5:
            result["top5"] = float(hits[:, :5].any(axis=1).mean())
        return result


def rank_labels(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Keeps of each head's (B, K) logits the five best labels: (B, heads, min(5, K))."""
    heads = torch.stack(logits if isinstance(logits, tuple) else (logits,), dim=1)
    return heads.topk(min(5, heads.shape[-1]), dim=-1).indices


def head_accuracies(prediction: EvalPrediction) -> dict[str, float]:
    """Top-1 and top-5 of each head, of predictions (N, heads, k) from `rank_labels`."""
    rankings = prediction.predictions
    metrics = {}
    for index, head in enumerate(list(HEADS.values())[: rankings.shape[1]]):
        result = TopKAccuracy(keep_in_memory=True).compute(
            predictions=rankings[:, index], references=prediction.label_ids
        )
        metrics.update({f"{head}{name}": value for name, value in result.items()})
    return metrics


TEACHER_CHECK_IMAGES = 512


@torch.no_grad()
def measure_teacher(
    teacher: Teacher,
    *,
    views: Iterable[Mapping[str, torch.Tensor]],
    validation: Iterable[Mapping[str, torch.Tensor]],
) -> dict[str, float]:
    """Measures how good a teacher is on a run's own pixels, and warns if it is no better than guessing.

    Args:
        teacher: the teacher.
        views: batches of training views, with `pixel_values` (B, 3, H, W) normalised for the student and `labels`
            (B,), negative where there is none.
        validation: batches of validation images; may be empty.

    Returns:
        `teacher_agreement_with_labels`: how often it gives the true label on the views; `teacher_top1`, its accuracy
        on the validation images; and `majority_class`, the largest part of a label among the views, or, if they have
        none, among the validation images. What has no labels is not measured.
    """

    def decide(batches: Iterable[Mapping[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [(teacher(batch["pixel_values"]).argmax(dim=-1), batch["labels"]) for batch in batches]
        if not pairs:
            return torch.tensor([]), torch.tensor([])
        decisions, labels = (torch.cat(column).cpu() for column in zip(*pairs, strict=True))
        return decisions[labels >= 0], labels[labels >= 0]

    report, accuracy, majority = {}, None, None
    for batches, name in ((views, "teacher_agreement_with_labels"), (validation, "teacher_top1")):
        decisions, labels = decide(batches)
        if len(labels):
            report[name] = accuracy = (decisions == labels).float().mean().item()
            majority = labels.bincount().max().item() / len(labels)
            report.setdefault("majority_class", majority)
    if accuracy is not None and accuracy <= max(majority, 1 / len(teacher.id2label)):
        logger.warning(
            "the teacher %s has an accuracy of %.3f, no better than chance or than always saying the most frequent "
            "class (%.3f): check that it was trained on these classes, and its image processor",
            teacher.name_or_path,
            accuracy,
            majority,
        )
    return report
