"""About how long a training will take: measured on a few views, and on copies, so that the training is not touched."""

import copy
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import IntervalStrategy

from ..data.view_dataset import EvaluationDataset, ViewDataset
from ..errors import BadImageError
from .datasets import make_sampler

if TYPE_CHECKING:
    from .trainer import DistillationTrainer

_BUDGET = 1.0  # seconds that a larger batch may take
_NUM_VIEWS = 16
_FORWARD_PART = 1 / 3  # of a training step: the backward pass costs about twice as much


def estimate_seconds(trainer: "DistillationTrainer") -> float | None:
    """Estimates how long the steps that are left will take, with the evaluations. Costs a second or two.

    A copy of the student learns from black images, the teacher answers them, and the first views are prepared.
    Weights, gradients, buffers and random states stay as they are.

    Returns:
        Seconds; None where the model is sharded or compiled, and a copy would be none, or has no room for one.
    """
    args = trainer.args
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or args.torch_compile:
        return None
    try:
        compute, prepare = _seconds_of_step(trainer), _seconds_of_views(trainer)
    except torch.OutOfMemoryError:
        return None
    # Loaders that have processes of their own work while the device does.
    step = max(compute, prepare / args.dataloader_num_workers) if args.dataloader_num_workers else compute + prepare
    evaluation = 0.0
    if isinstance(trainer.eval_dataset, EvaluationDataset):
        per_image = step / (args.train_batch_size * args.gradient_accumulation_steps) * _FORWARD_PART
        evaluation = per_image * len(trainer.eval_dataset) / args.world_size
    steps = trainer.state.max_steps - trainer.state.global_step
    return steps * step + _num_evaluations(trainer, steps) * evaluation


def _num_evaluations(trainer: "DistillationTrainer", steps: int) -> float:
    """How often is evaluated in so many steps, and at the end."""
    args = trainer.args
    if args.eval_strategy == IntervalStrategy.STEPS:
        return 1 + steps / trainer.state.eval_steps
    if args.eval_strategy == IntervalStrategy.EPOCH:
        return 1 + steps / (max(trainer.steps_per_epoch, 1) * args.eval_epochs)
    return 1


def _seconds_of_step(trainer: "DistillationTrainer") -> float:
    """Of a device's computation, for all micro-batches of a step."""
    args, size = trainer.args, trainer.processing_class.crop_size
    views = args.per_device_train_batch_size
    student = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model)).train()
    on_device = args.device.type != "cpu"
    devices = [torch.accelerator.current_device_index()] if on_device else []

    def step(batch_size: int) -> None:
        pixels = torch.zeros(batch_size, 3, size.height, size.width, device=args.device)
        with trainer.compute_loss_context_manager():
            outputs = student(pixel_values=pixels)
        if trainer.teacher is not None:
            trainer.teacher(pixels)
        outputs.logits.float().square().mean().backward()
        if on_device:
            torch.accelerator.synchronize()

    with torch.random.fork_rng(devices, device_type=args.device.type if on_device else "cuda"):
        batch_size = min(2, views)  # of one view BatchNorm may have nothing to compute
        seconds = _seconds(step, batch_size)
        if on_device or seconds < _BUDGET:  # the first pass loads or chooses kernels, and others may be at work
            seconds = min(_seconds(step, batch_size), _seconds(step, batch_size))
        while batch_size < views and seconds * 8 < _BUDGET:
            batch_size = min(8 * batch_size, views)
            seconds = min(_seconds(step, batch_size), _seconds(step, batch_size))
    if on_device:
        del student
        torch.accelerator.empty_cache()
    return seconds / batch_size * views * args.gradient_accumulation_steps


def _seconds_of_views(trainer: "DistillationTrainer") -> float:
    """Of preparing a device's views of a step, by one process."""
    args, views = trainer.args, trainer.train_dataset
    if not isinstance(views, ViewDataset):  # a stream would be begun for it
        return 0.0
    keys = list(itertools.islice(make_sampler(views, args), _NUM_VIEWS))
    try:
        seconds = _seconds(views.__getitems__, keys)
    except BadImageError:  # which the training will tell
        return 0.0
    return seconds / len(keys) * args.train_batch_size * args.gradient_accumulation_steps


def _seconds(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start
