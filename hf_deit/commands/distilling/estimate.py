"""About how long all will take: rough, before anything is loaded that takes long.

A step of the student is timed on a few black images with random weights. What a teacher costs beside it follows from
the operations of both, which are counted on models without memory. What cannot be told so is said to be unknown.
"""

import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedModel

from ...data.decoding import decode_image
from ...errors import counted
from ...models.pretrained import load_config
from ...models.zoo import create_model, list_models
from ...recipes.resolve import Arguments
from .images import Found, Part

_IMAGES, _BUDGET = 8, 0.5  # images at once, and seconds that are enough
_OF_FORWARD = 3.0  # forward and backward pass together
_OTHER_SECONDS = {"evaluate": 30.0, "export": 60.0, "demo": 40.0, "publish": 60.0}  # to load, trace and prove


def seconds_of_stages(
    trainings: Sequence[Arguments], found: Found, teachers: Sequence[str], *, is_probe: bool
) -> dict[str, float | None]:
    """Seconds by stage; None where that is unknown.

    Args:
        trainings: that of the student, and of a teacher that is trained on the same images.
        teachers: that are asked about each view.
        is_probe: whether these are a backbone that is fitted first, asked about each image and its mirror image.
    """
    seconds: dict[str, float | None] = {**_OTHER_SECONDS, "train": None}
    training = found.part("training")
    per_image = _seconds_to_prepare(training or found.part("unlabelled")) / _workers(trainings[0])
    try:
        costs = [_costs(arguments) for arguments in trainings]
        size, per_view, operations = costs[0]
        per_operation = per_view / (_OF_FORWARD * operations)
        per_answer = per_operation * sum(_operations_of(name, size) for name in teachers)
    except Exception:  # of any kind: an architecture may be made for what nobody foresaw
        return seconds
    if len(costs) > 1:
        per_answer += costs[1][1] / _OF_FORWARD
    views = [num_views(arguments, found) for arguments in trainings]
    if None not in views:
        total = views[0] * max(per_view + per_answer, per_image)
        total += sum(number * max(cost[1], per_image) for number, cost in zip(views[1:], costs[1:], strict=True))
        total += 2 * training.count * (per_answer + per_image) if is_probe and training else 0
        seconds["train"] = total
    held_out = (found.part("test") or found.part("validation") or Part("")).count or 0
    seconds["evaluate"] += held_out * (per_view / _OF_FORWARD + per_answer + per_image)
    return seconds


def _costs(arguments: Arguments) -> tuple[tuple[int, int], float, float]:
    """Of a model to train: its input's height and width, seconds per view, operations of a forward pass."""
    model, size = _student(arguments)
    return size, _seconds_per_view(model, size, arguments), _operations(model, size)


def num_views(arguments: Arguments, found: Found) -> int | None:
    """How many views a run learns from; None if that is not known."""
    args = arguments.training
    if args.max_steps > 0:
        return args.max_steps * args.total_train_batch_size
    counts = [part.count for part in found.parts if part.name in ("training", "unlabelled")]
    if None in counts:
        return None
    images = sum(counts)
    if found.are_labelled and found.part("validation") is None:
        images -= round(arguments.data.validation_fraction * found.part("training").count)
    steps = getattr(args, "min_train_steps", 0) * args.total_train_batch_size
    return max(round(images * args.num_train_epochs), steps)


def in_words(seconds: float | None) -> str:
    """A rough time for people."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return "about a minute"
    if seconds < 5400:
        return f"about {counted(round(seconds / 60), 'minute')}"
    return f"about {seconds / 3600:.0f} hours" if seconds < 172_800 else f"about {seconds / 86_400:.0f} days"


def _student(arguments: Arguments) -> tuple[PreTrainedModel, tuple[int, int]]:
    """A student as it will be trained, with random weights, and height and width of its input."""
    wanted, fields = arguments.model, {**(arguments.model.student_overrides or {})}
    if wanted.image_size is not None:
        fields["image_size"] = wanted.image_size
    if wanted.student in list_models():
        model = create_model(wanted.student, **fields)
    else:
        is_checkpoint = "/" in wanted.student or os.path.isdir(wanted.student)
        fields = {**fields, **({} if is_checkpoint else {"image_size": wanted.image_size or 224})}
        config = load_config(wanted.student) if is_checkpoint else AutoConfig.for_model(wanted.student)
        for name, value in fields.items():
            setattr(config, name, value)
        model = AutoModelForImageClassification.from_config(config)
    return model, _size_of(model.config)


def _size_of(config: Any) -> tuple[int, int]:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or 224
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def _seconds_per_view(model: PreTrainedModel, size: tuple[int, int], arguments: Arguments) -> float:
    """Of a step, divided by its views: forward and backward pass."""
    device = arguments.training.device
    model, pixels = model.to(device).train(), torch.zeros(_IMAGES, 3, *size, device=device)
    fastest, end = float("inf"), time.perf_counter() + _BUDGET
    with torch.random.fork_rng(device_type="cuda" if device.type == "cpu" else device.type, devices=[]):
        for number in itertools.count():
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=bool(arguments.training.bf16)):
                model(pixel_values=pixels).logits.float().square().mean().backward()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            fastest = min(fastest, time.perf_counter() - start)
            if number and time.perf_counter() > end:  # the first pass loads or chooses kernels
                break
    return fastest / _IMAGES


def _operations(model: torch.nn.Module, size: tuple[int, int]) -> float:
    """Of a forward pass of one image, counted without computing them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta").eval()(pixel_values=torch.zeros(1, 3, *size, device="meta"))
    return float(counter.get_total_flops())


def _operations_of(name: str, size: tuple[int, int]) -> float:
    """Those of a teacher, of which the configuration alone is loaded, at its own size."""
    config = load_config(name)
    vision = getattr(config, "vision_config", None)
    with torch.device("meta"):
        model = AutoModel.from_config(vision or config)
    stated = vision or config
    return _operations(model, _size_of(stated) if hasattr(stated, "image_size") else size)


def _seconds_to_prepare(part: Part | None) -> float:
    """Of decoding an image and making a view of it, by one process."""
    paths = [] if part is None else [path for path in part.files if path not in part.faults]
    if not paths:
        return 0.0
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, num=min(_IMAGES, len(paths)), dtype=int)]
    start = time.perf_counter()
    for path in chosen:
        decode_image({"path": path, "bytes": None}, path).resize((224, 224))
    return (time.perf_counter() - start) / len(chosen)


def _workers(arguments: Arguments) -> int:
    return max(arguments.training.dataloader_num_workers, 1)
