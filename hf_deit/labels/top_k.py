"""The largest logits of a teacher: cut from what it says, and made logits again."""

from typing import Any, NamedTuple

import numpy as np
import torch


class TopLogits(NamedTuple):
    """The k largest logits of B views, and one value that stands for each of the others. Made by `top_logits`.

    Attributes:
        labels: (B, k) integers, those of the largest logits.
        logits: (B, k), descending.
        rest: (B,), the logarithm of the mean of the other logits' exponentials.
    """

    labels: Any
    logits: Any
    rest: Any


def top_logits(logits: torch.Tensor, k: int) -> TopLogits:
    """Cuts (B, num_labels) logits to their largest k, 1 ≤ k < num_labels, on their device.

    At temperature 1, the softmax of what `rebuilt_logits` makes of them gives each of the k labels the probability it
    had, and all others together theirs.
    """
    values, labels = logits.float().topk(k, dim=-1)
    others = logits.float().scatter(-1, labels, -torch.inf)
    rest = others.logsumexp(dim=-1) - np.log(logits.shape[-1] - k)
    return TopLogits(labels.int(), values.half(), rest.half())


def rebuilt_logits(top: TopLogits, num_labels: int) -> torch.Tensor:
    """(B, num_labels) float32 logits from what `top_logits` has kept: the top k as they were, the others all alike."""
    logits = top.rest.float().unsqueeze(1).repeat(1, num_labels)
    return logits.scatter_(1, top.labels.long(), top.logits.float())
