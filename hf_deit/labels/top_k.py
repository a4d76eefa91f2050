"""The largest logits of a teacher: cut from what it says, and made logits again."""

from typing import Any, NamedTuple

import numpy as np
import torch

# From here on float16 is coarser than 1/32, so that a view's logits lose what they say about each other.
_LARGEST_AS_IT_IS = 64.0


class TopLogits(NamedTuple):
    """The k largest logits of B views, and one value that stands for each of the others. Made by `top_logits`.

    Attributes:
        labels: (B, k) integers, those of the largest logits.
        logits: (B, k), descending; of views whose largest logit is beyond ±64 less that one.
        rest: (B,), the logarithm of the mean of the other logits' exponentials.
    """

    labels: Any
    logits: Any
    rest: Any


def top_logits(logits: torch.Tensor, k: int) -> TopLogits:
    """Cuts finite (B, num_labels) logits to their largest k, 1 ≤ k < num_labels, on their device.

    They are kept in float16. Large ones are kept as their distance from the largest, which is the same to a softmax:
    float16 ends at 65,504, and before that keeps no more than every 32nd number.

    At temperature 1, the softmax of what `rebuilt_logits` makes of them gives each of the k labels the probability it
    had, and all others together theirs.
    """
    values, labels = logits.float().topk(k, dim=-1)
    others = logits.float().scatter(-1, labels, -torch.inf)
    rest = others.logsumexp(dim=-1) - np.log(logits.shape[-1] - k)
    largest = values[:, :1]
    shift = torch.where(largest.abs() > _LARGEST_AS_IT_IS, largest, 0.0)
    smallest = torch.finfo(torch.float16).min  # whose probability is 0 at any temperature
    values, rest = ((part - shift).clamp(min=smallest).half() for part in (values, rest.unsqueeze(1)))
    return TopLogits(labels.int(), values, rest.squeeze(1))


def rebuilt_logits(top: TopLogits, num_labels: int) -> torch.Tensor:
    """(B, num_labels) float32 logits from what `top_logits` has kept: the top k, and the others all alike."""
    logits = top.rest.float().unsqueeze(1).repeat(1, num_labels)
    return logits.scatter_(1, top.labels.long(), top.logits.float())
