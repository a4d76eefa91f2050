"""The largest logits of a teacher: cut from what it says, and made logits again."""

from typing import Any, NamedTuple

import numpy as np
import torch


class TopLogits(NamedTuple):
    """The largest logits of B views, and one that stands for each of the others. From `top_logits`.

    Attributes:
        labels: (B, k) integers.
        logits: (B, k), descending.
        rest: (B,), the log of the mean of the others' exponentials.
    """

    labels: Any
    logits: Any
    rest: Any


def top_logits(logits: torch.Tensor, k: int) -> TopLogits:
    """Cuts (B, num_labels) logits to their largest k, 1 ≤ k < num_labels, on their device.

    The softmax of what `TeacherLabelStore.lookup_logits` makes of it gives the k labels, and all others together,
    their probabilities at temperature 1.
    """
    values, labels = logits.float().topk(k, dim=-1)
    others = logits.float().scatter(-1, labels, -torch.inf)
    rest = others.logsumexp(dim=-1) - np.log(logits.shape[-1] - k)
    return TopLogits(labels.int(), values.half(), rest.half())


def rebuilt_logits(top: TopLogits, num_labels: int) -> torch.Tensor:
    """(B, num_labels) float32 from what `top_logits` has kept of them."""
    logits = top.rest.float().unsqueeze(1).repeat(1, num_labels)
    return logits.scatter_(1, top.labels.long(), top.logits.float())
