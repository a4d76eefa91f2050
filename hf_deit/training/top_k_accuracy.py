"""Accuracy as an `evaluate.Metric` that needs no download."""

from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from .metrics import count_hits

_DESCRIPTION = "Fraction of the samples whose label is the first (top1), or among the first five (top5), predictions."
_INPUTS = """
Args:
    predictions: per sample the k most probable labels, most probable first.
    references: per sample the true label; samples with a negative one, as -100, are left out.
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
        if not len(references):
            raise ValueError("there is no labelled sample to measure the accuracy on")
        ranked, labels = (torch.from_numpy(np.asarray(values)) for values in (predictions, references))
        return count_hits(ranked, labels).accuracies()
