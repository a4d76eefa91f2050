"""DeiT's learning rate (linear warm-up and half a cosine), and what weight decay leaves alone."""

import copy
import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, SchedulerType, Trainer, get_scheduler

from ..errors import InputError, one_line
from .arguments import DistillationTrainingArguments
from .layer_decay import check_layer_decay

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

_WITHOUT_WARMUP = (SchedulerType.CONSTANT, SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


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


def schedule_doubts(args: DistillationTrainingArguments, *, num_steps: int, steps_per_epoch: int) -> list[str]:
    """What of a schedule cannot be meant: each in a line, with the option that mends it.

    Args:
        args: of the run.
        num_steps: of the whole run.
        steps_per_epoch: optimizer steps of an epoch.
    """
    peak, doubts = args.peak_learning_rate, []
    if not peak or args.lr_scheduler_type in _WITHOUT_WARMUP:
        return []
    warmup = args.warmup_epochs * steps_per_epoch or args.get_warmup_steps(num_steps)
    is_cosine = args.lr_scheduler_type == SchedulerType.COSINE
    per_epoch = is_cosine and args.schedule_per == "epoch"
    last = authors_epoch_time((num_steps - 1) // steps_per_epoch) * steps_per_epoch if per_epoch else num_steps - 1
    if warmup and last < warmup:
        doubts.append(
            f"the learning rate never reaches its peak of {peak:g}, as the warm-up takes {warmup:g} steps and the run "
            f"has {num_steps}{_in_epochs(warmup, num_steps, steps_per_epoch) if args.warmup_epochs else ''}: "
            f"{_shorter_warmup(args, warmup, num_steps, steps_per_epoch, per_epoch=per_epoch)}"
        )
    elif is_cosine and warmup and (highest := _highest_rate(args, warmup, num_steps, steps_per_epoch)) < 0.9 * peak:
        doubts.append(
            f"the learning rate never reaches its peak of {peak:g} but {highest:.2g} at most, as the warm-up takes "
            f"{warmup:g} of {num_steps} steps, and the cosine falls from the first of them on: "
            f"{_shorter_warmup(args, warmup, num_steps, steps_per_epoch, per_epoch=per_epoch)}"
        )
    if is_cosine and warmup and args.warmup_learning_rate > peak:
        doubts.append(
            f"the warm-up starts at a learning rate of {args.warmup_learning_rate:g}, above its peak of {peak:g}: "
            f"give --warmup_learning_rate {min(1e-6, peak / 100):g}"
        )
    kwargs = args.lr_scheduler_kwargs or {}
    decay = kwargs.get("num_decay_steps", 0)
    if (taken := warmup + kwargs.get("num_stable_steps", 0) + decay) > num_steps and decay and last >= warmup:
        doubts.append(
            f"the schedule takes {taken:g} steps ({warmup:g} to warm up, {decay} to decay) and the run has "
            f"{num_steps}: give num_decay_steps {max(num_steps // 10, 1)} in --lr_scheduler_kwargs, or train longer"
        )
    return doubts


def _highest_rate(args: DistillationTrainingArguments, warmup: float, num_steps: int, steps_per_epoch: int) -> float:
    """The highest learning rate of the cosine schedule: of the warm-up's end, or where the cosine takes over."""
    unit = steps_per_epoch if args.schedule_per == "epoch" else 1
    warmup, duration = warmup / unit, num_steps / unit
    return max(
        learning_rate_at(
            max(math.ceil(warmup) + later, 0),
            duration=duration,
            warmup=warmup,
            peak=args.peak_learning_rate,
            warmup_learning_rate=args.warmup_learning_rate,
            min_learning_rate=args.min_learning_rate,
        )
        for later in (-1, 0)
    )


def _in_epochs(warmup: float, num_steps: int, steps_per_epoch: int) -> str:
    return f" ({warmup / steps_per_epoch:g} of {num_steps / steps_per_epoch:.3g} epochs)"


def _shorter_warmup(
    args: DistillationTrainingArguments, warmup: float, num_steps: int, steps_per_epoch: int, *, per_epoch: bool
) -> str:
    """Which options give a warm-up of a twentieth of the run, or a run twenty times as long as the warm-up."""
    part = 0.05 if num_steps >= 5 else 0  # the first step of a warm-up trains nothing
    if args.warmup_epochs:
        shorter = f"--warmup_epochs {part * num_steps / steps_per_epoch:.2g}"
    else:
        shorter = f"--warmup_steps {part if args.warmup_steps < 1 else max(int(part * num_steps), bool(part)):g}"
    if per_epoch:
        shorter = f"--schedule_per step {shorter}"
    if 0 < args.warmup_steps < 1:  # part of any run
        return f"give {shorter}"
    if args.max_steps > 0:
        longer = f"--max_steps {math.ceil(20 * warmup)}"
    else:
        longer = f"--num_train_epochs {math.ceil(20 * warmup / steps_per_epoch)}"
    return f"give {shorter}, or train for longer, say {longer}"


def check_optimization(args: DistillationTrainingArguments, model: PreTrainedModel) -> None:
    """Refuses an optimizer or a schedule that cannot be made as the arguments say, before anything is trained.

    Args:
        args: of the run.
        model: the student.

    Raises:
        InputError: a library is missing, an optimizer of torch's takes no such `optim_args`, a schedule needs other
            `lr_scheduler_kwargs`, or layers cannot have learning rates of their own.
    """
    check_layer_decay(args, model)
    without = copy.copy(args)
    without.optim_args = None
    if "layerwise" in args.optim.value:  # they are bound to the weights when they are made
        return
    try:
        optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        taken = set(settings) - set(Trainer.get_optimizer_cls_and_kwargs(without, model)[1])
        if optimizer_class.__module__.startswith("torch.optim"):
            optimizer_class([nn.Parameter(torch.zeros(1, device=args.device))], **settings)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"cannot make the optimizer {args.optim.value!r} with optim_args {args.optim_args!r}: {one_line(error)}"
        ) from error
    given = [part.partition("=")[0].strip() for part in (args.optim_args or "").split(",") if part]
    swallowed = [name for name in given if name not in taken]
    if swallowed and optimizer_class.__module__.startswith("torch.optim"):
        raise InputError(
            f"the optimizer {args.optim.value!r} takes no {swallowed[0]!r} from optim_args, got {args.optim_args!r}: "
            "leave it out (--adam_beta1, --adam_beta2, --adam_epsilon and --weight_decay are options)"
        )
    if args.lr_scheduler_type == SchedulerType.COSINE:  # of this package
        return
    optimizer, kwargs = torch.optim.SGD([torch.zeros(1)], lr=args.peak_learning_rate), args.lr_scheduler_kwargs or {}
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=kwargs)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"cannot make the schedule {args.lr_scheduler_type.value!r} with lr_scheduler_kwargs {kwargs}: "
            f"{one_line(error)}"
        ) from error


def without_tokens_and_positions(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Of the names of parameters those that weight decay applies to: matrices, but no tokens and positions."""
    candidates = set(names)
    return [
        name
        for name, parameter in model.named_parameters()
        if name in candidates and parameter.ndim >= 2 and not name.endswith(_TOKENS_AND_POSITIONS)
    ]
