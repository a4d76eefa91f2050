"""DeiT's learning rate (linear warm-up and half a cosine), and what weight decay leaves alone."""

import math
from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# Parameters that are no weights of a matrix product although they have two or more dimensions, in the names of
# transformers and timm. (The authors' code decays the distillation token: timm's list lacked it then.)
_TOKENS_AND_POSITIONS = (
    "cls_token",
    "distillation_token",
    "dist_token",
    "position_embeddings",
    "pos_embed",
    "relative_position_bias_table",
)


def learning_rate_at(
    time: float, *, duration: float, warmup: float, peak: float, warmup_learning_rate: float, min_learning_rate: float
) -> float:
    """The learning rate after some of a run: linear from `warmup_learning_rate` to the peak, then half a cosine.

    As in timm's `CosineLRScheduler`, which the authors' code uses, the cosine begins at time 0 and is only cut off by
    the warm-up: it is not shifted behind it.

    Args:
        time: in steps or epochs, as the other two.
        duration: of the whole run.
        warmup: of the warm-up.
        peak: learning rate that the warm-up aims at.
        warmup_learning_rate: of the first step.
        min_learning_rate: of the end.
    """
    if time < warmup:
        return warmup_learning_rate + time * (peak - warmup_learning_rate) / warmup
    cosine = math.cos(math.pi * min(time / max(duration, 1), 1))
    return min_learning_rate + 0.5 * (peak - min_learning_rate) * (1 + cosine)


def authors_epoch_time(epoch: int) -> int:
    """The time at which the authors' code evaluates its schedule for an epoch.

    It calls `lr_scheduler.step(epoch)` after the epoch of that number, so that the first two epochs both train with
    the learning rate of time 0 (facebookresearch/deit, `main.py`).
    """
    return max(epoch - 1, 0)


def deit_schedule(
    optimizer: Optimizer,
    *,
    num_steps: int,
    steps_per_epoch: int,
    warmup_steps: float,
    peak: float,
    warmup_learning_rate: float,
    min_learning_rate: float,
    per: Literal["step", "epoch"],
) -> LambdaLR:
    """The scheduler of an optimizer whose groups have the learning rate `peak`.

    Args:
        optimizer: to schedule.
        num_steps: of the whole run.
        steps_per_epoch: optimizer steps of an epoch.
        warmup_steps: steps of the warm-up.
        peak, warmup_learning_rate, min_learning_rate: see `learning_rate_at`.
        per: "step" changes the learning rate at every step, "epoch" at every epoch as the authors' code does.
    """
    settings = {"peak": peak, "warmup_learning_rate": warmup_learning_rate, "min_learning_rate": min_learning_rate}

    def factor(step: int) -> float:
        if per == "step":
            rate = learning_rate_at(step, duration=num_steps, warmup=warmup_steps, **settings)
        else:
            rate = learning_rate_at(
                authors_epoch_time(step // steps_per_epoch),
                duration=num_steps / steps_per_epoch,
                warmup=warmup_steps / steps_per_epoch,
                **settings,
            )
        return rate / peak if peak else 0.0

    return LambdaLR(optimizer, factor)


def without_tokens_and_positions(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Of the names of parameters those that weight decay applies to: matrices, but no tokens and positions."""
    candidates = set(names)
    return [
        name
        for name, parameter in model.named_parameters()
        if name in candidates and parameter.ndim >= 2 and not name.endswith(_TOKENS_AND_POSITIONS)
    ]
