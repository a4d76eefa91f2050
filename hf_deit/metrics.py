"""Accuracy as an `evaluate.Metric` that needs no download."""

from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction

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
