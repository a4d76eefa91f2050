"""What a zero-shot model favours, whatever it is shown: known from images without labels, and taken off its logits."""

import math
from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor

PRIOR_IMAGES = 10_000  # at most, from which it is known


def log_prior(logits: torch.Tensor) -> torch.Tensor:
    """What a model favours over all images, to be taken off its logits: the log of its mean probabilities.

    A zero-shot model knows nothing of how frequent classes are, but names some of them more readily than others. With
    the logs of its mean probabilities on unlabelled images taken off its logits, classes come nearer to having equal
    parts of them. That asks for no label; it is the adjustment by the log of a prior (Menon et al., "Long-tail
    learning via logit adjustment", 2021) with a prior that is estimated from the model's own answers. Where classes
    are far from equally frequent in the images, it takes off what is true of them, too.

    Args:
        logits: (N, K), of N images, all finite.

    Returns:
        (K,) float32; computed in float64.
    """
    log_probabilities = logits.detach().cpu().double().log_softmax(dim=-1)
    return (log_probabilities.logsumexp(dim=0) - math.log(len(logits))).float()


def correction_of(processor: BaseImageProcessor) -> dict[str, Any]:
    """How a prior is corrected, as far as a label store does not say it: on how many images, and what part of them.

    Args:
        processor: the student's, which makes what the teacher is shown.
    """
    return {"images": PRIOR_IMAGES, "crop_ratio": getattr(processor, "crop_ratio", None)}
