"""Looks at training views: the very pixels and targets of any slots of any epoch, as a contact sheet."""

import os
from collections.abc import Mapping

import torch
from PIL import Image

from ..data.batch_augment import augment_batch
from ..data.view_dataset import KeyedViews, collate
from ..errors import InputError, printable
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from .arguments import DistillationTrainingArguments
from .datasets import make_sampler
from .losses import class_targets
from .skipped_images import SkippedImages
from .tiles import side_by_side, tile

_COLUMNS = 8
_SMALLEST_TILE = 112
_LINES = 3  # the slot, and the two most probable labels


def check_picture_name(path: str) -> None:
    """Refuses the name of a file that Pillow would not write a picture to.

    Raises:
        InputError: its suffix is no picture's.
    """
    suffix = os.path.splitext(path)[1]
    if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
        raise InputError(f"cannot write a picture to {path!r}, whose suffix is {suffix!r}: take .png, say")


def training_views(
    views: KeyedViews,
    args: DistillationTrainingArguments,
    processor: DistilledDeiTImageProcessor,
    *,
    num_labels: int,
    epoch: int,
    slots: range,
) -> dict[str, torch.Tensor]:
    """What the training step sees of some slots: cropped, augmented, normalised, erased, mixed.

    Args:
        views: from `hf_deit.training.datasets.as_views`, or a Trainer's `train_dataset`.
        args: of the run.
        processor: of the student.
        num_labels: of the student.
        epoch: from 0.
        slots: consecutive slots of the epoch.

    Returns:
        `pixel_values` (B, 3, H, W) normalised, and `targets` (B, num_labels) of the class head.

    Raises:
        InputError: the epoch has no such slots.
    """
    sampler = make_sampler(views, args)
    sampler.set_epoch(epoch)
    if slots.step != 1 or epoch < 0 or not 0 <= slots.start < slots.stop <= len(sampler):
        raise InputError(
            f"epochs count from 0 and have the slots 0:{len(sampler)}, got epoch {epoch}, {slots.start}:{slots.stop}"
        )
    # A view's partner may lie outside of the slots, but not outside of their groups.
    group_size = args.mixup_group_size or 1
    first, last = slots.start // group_size * group_size, -(-slots.stop // group_size) * group_size
    keys = [key for slot, key in zip(range(last), sampler, strict=False) if slot >= first]
    batch = SkippedImages().take(collate(views.__getitems__(keys)))
    batch = augment_batch(batch, processor.image_mean, processor.image_std)
    targets = class_targets(
        batch["labels"],
        num_labels,
        smoothing=args.label_smoothing_factor,
        partner_labels=batch.get("partner_labels"),
        label_weights=batch.get("label_weights"),
    )
    wanted = slice(slots.start - first, slots.stop - first)
    return {"pixel_values": batch["pixel_values"][wanted], "targets": targets[wanted]}


def contact_sheet(
    views: KeyedViews,
    args: DistillationTrainingArguments,
    processor: DistilledDeiTImageProcessor,
    id2label: Mapping[int, str],
    *,
    epoch: int,
    slots: range,
) -> Image.Image:
    """A picture of `training_views`, each above its slot and its labels with their weights in the target.

    Erased pixels are noise beyond the range of a picture, and are clipped to it.
    """
    batch = training_views(views, args, processor, num_labels=len(id2label), epoch=epoch, slots=slots)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
    pixels = (batch["pixel_values"] * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    smoothed = args.label_smoothing_factor / len(id2label)
    tiles = [
        tile(
            _enlarged(Image.fromarray(image.permute(1, 2, 0).numpy())),
            [f"slot {slot}", *_describe(target, smoothed, id2label)],
            num_lines=_LINES,
        )
        for slot, image, target in zip(slots, pixels, batch["targets"], strict=True)
    ]
    return side_by_side(tiles, _COLUMNS)


def _describe(target: torch.Tensor, smoothed: float, id2label: Mapping[int, str]) -> list[str]:
    """The labels that stand out of the smoothing, with their weights."""
    weights, labels = target.topk(min(2, len(target)))
    lines = [
        f"{weight:.3f} {printable(' '.join(id2label[label].split()))}"
        for weight, label in zip(weights.tolist(), labels.tolist(), strict=True)
        if weight > smoothed + 1e-6
    ]
    return lines or ["no label"]


def _enlarged(image: Image.Image) -> Image.Image:
    """Small inputs, pixel by pixel."""
    scale = max(1, -(-_SMALLEST_TILE // image.width))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
