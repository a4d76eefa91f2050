"""What happens to a batch of views on the device: normalising, random erasing, mixup and CutMix.

The loader hands over uint8 views with, per view, the numbers that were drawn for it on the host, where they are the
same on every platform. The device only does arithmetic, and never makes the host wait.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ..models.keyed import fold, keyed_normal

# Tell the generators of one key apart: fold(seed, epoch, slot or group, purpose).
_ERASING, _MIXING = 1, 2

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right are exclusive
EMPTY_BOX: Box = (0, 0, 0, 0)


@dataclass(frozen=True)
class RandomErasing:
    """Which part of a view is replaced by noise (Zhong et al. 2020; timm's `RandomErasing`, mode "pixel", count 1).

    Args:
        probability: in [0, 1]; DeiT takes 0.25.
        area: smallest and largest part of the image's area.
        aspect_ratio: smallest ratio of height to width; the largest is its inverse.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect_ratio: float = 0.3

    def box(self, seed: int, epoch: int, slot: int, size: tuple[int, int]) -> Box:
        """The box of one view of `size` (height, width); empty for most. Drawn as timm draws it."""
        generator = random.Random(fold(seed, epoch, slot, _ERASING))
        if generator.random() > self.probability:
            return EMPTY_BOX
        height, width = size
        log_ratio = math.log(self.aspect_ratio)
        for _ in range(10):
            area = generator.uniform(*self.area) * height * width
            ratio = math.exp(generator.uniform(log_ratio, -log_ratio))
            box_height, box_width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if box_height < height and box_width < width:
                top = generator.randint(0, height - box_height)
                left = generator.randint(0, width - box_width)
                return top, top + box_height, left, left + box_width
        return EMPTY_BOX


class Mix(NamedTuple):
    """How the views of one group are mixed with their partners.

    Attributes:
        label_weight: λ, the weight of a view's own label; for CutMix the part of the image that is left of it.
        pixel_weight: of a view's own pixels outside of the box.
        box: inside of it the pixels are the partner's.
    """

    label_weight: float
    pixel_weight: float
    box: Box


NO_MIX = Mix(1.0, 1.0, EMPTY_BOX)


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) on virtual groups of views; timm's `Mixup`, mode "batch".

    A group is `group_size` consecutive slots of an epoch: λ, the choice between the two, and the box belong to it, and
    a view's partner is the one at the mirrored place in the group. So what is mixed does not depend on the batch size
    as long as batches hold whole groups. In a group of odd size the middle view is its own partner, that is, unmixed;
    a group that is cut off at the end of an epoch is mirrored in what is there of it.

    Args:
        mixup_alpha, cutmix_alpha: of the Beta distribution of λ (not probabilities); 0 for never. DeiT: 0.8 and 1.0.
        probability: that a group is mixed at all.
        switch_probability: of CutMix instead of mixup, if both are there.
        group_size: slots of a group; 64 is DeiT's batch on one of its GPUs, which its mixing is drawn for.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    group_size: int = 64

    def parameters(self, seed: int, epoch: int, group: int, size: tuple[int, int]) -> Mix:
        """What is drawn for one group of views of `size` (height, width). Drawn as timm draws it."""
        # RandomState, unlike default_rng, promises the same stream in every NumPy version.
        generator = np.random.RandomState(np.random.MT19937(fold(seed, epoch, group, _MIXING)))
        if generator.rand() >= self.probability:
            return NO_MIX
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cutmix = generator.rand() < self.switch_probability if both else self.cutmix_alpha > 0
        alpha = self.cutmix_alpha if cutmix else self.mixup_alpha
        weight = float(generator.beta(alpha, alpha))
        if not cutmix:
            return Mix(weight, weight, EMPTY_BOX)
        height, width = size
        ratio = math.sqrt(1 - weight)
        cut_height, cut_width = int(height * ratio), int(width * ratio)
        y, x = int(generator.randint(0, height)), int(generator.randint(0, width))
        top, bottom = max(y - cut_height // 2, 0), min(y + (cut_height + 1) // 2, height)
        left, right = max(x - cut_width // 2, 0), min(x + (cut_width + 1) // 2, width)
        # Boxes are clipped at the border, so that λ is not what was drawn.
        return Mix(1 - (bottom - top) * (right - left) / (height * width), 1.0, (top, bottom, left, right))

    def partner_offsets(self, slots: Sequence[int]) -> list[int]:
        """How far each view's partner lies from it in a batch of consecutive slots."""
        groups = [slot // self.group_size for slot in slots]
        first, last = {}, {}
        for position, group in enumerate(groups):
            first.setdefault(group, position)
            last[group] = position
        return [first[group] + last[group] - 2 * position for position, group in enumerate(groups)]


@lru_cache(maxsize=16)  # copying constants to the device at every batch would make the host wait
def _on_device(
    image_mean: tuple[float, ...], image_std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values, device=device).mul(255).view(-1, 1, 1) for values in (image_mean, image_std))
    return mean, std


def normalize(pixels: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> torch.Tensor:
    """Rescales to [0, 1] and normalises, on the pixels' device, with the arithmetic of the image processors.

    Args:
        pixels: (B, 3, H, W) uint8.
        image_mean, image_std: per channel, of pixels in [0, 1].

    Returns:
        (B, 3, H, W) float32.
    """
    mean, std = _on_device(tuple(image_mean), tuple(image_std), pixels.device)
    return pixels.to(torch.float32).sub_(mean).div_(std)


def _inside(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, 1, H, W) bool: whether a pixel lies in its view's box, of (B, 4)."""
    top, bottom, left, right = (edge.view(-1, 1, 1) for edge in boxes.unbind(dim=1))
    y = torch.arange(size[0], device=boxes.device).view(1, -1, 1)
    x = torch.arange(size[1], device=boxes.device).view(1, 1, -1)
    return ((y >= top) & (y < bottom) & (x >= left) & (x < right)).unsqueeze(1)


def erase(pixel_values: torch.Tensor, boxes: torch.Tensor, view_seeds: torch.Tensor) -> torch.Tensor:
    """Fills each view's box with standard normal noise that is keyed by its seed.

    Args:
        pixel_values: (B, 3, H, W) normalised.
        boxes: (B, 4) int64: top, bottom, left, right.
        view_seeds: (B,) int64.

    Returns:
        (B, 3, H, W).
    """
    noise = keyed_normal(view_seeds, tuple(pixel_values.shape[1:]))
    return torch.where(_inside(boxes, tuple(pixel_values.shape[-2:])), noise, pixel_values)


def mix(
    pixel_values: torch.Tensor, partners: torch.Tensor, pixel_weights: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """Mixes each view with its partner.

    Args:
        pixel_values: (B, 3, H, W) normalised.
        partners: (B,) int64, positions in the batch.
        pixel_weights: (B,) of a view's own pixels outside of its box; inside it has none.
        boxes: (B, 4) int64: top, bottom, left, right.

    Returns:
        (B, 3, H, W).
    """
    others = pixel_values[partners]
    weights = pixel_weights.view(-1, 1, 1, 1)
    blended = pixel_values * weights + others * (1 - weights)
    return torch.where(_inside(boxes, tuple(pixel_values.shape[-2:])), others, blended)


def augment_batch(
    batch: dict[str, torch.Tensor], image_mean: Sequence[float], image_std: Sequence[float]
) -> dict[str, torch.Tensor]:
    """Turns a loader's batch into what student and teacher see: normalised, erased (in this order) and mixed.

    Args:
        batch: `pixel_values` (B, 3, H, W) uint8, `labels` (B,); for erasing `erase_boxes` and `view_seeds`; for mixing
            `partner_offsets`, `pixel_weights` and `mix_boxes` besides `label_weights`.

    Returns:
        The batch with `pixel_values` float32 and, if it is mixed, `partner_labels` (B,).
    """
    pixel_values = normalize(batch["pixel_values"], image_mean, image_std)
    if "erase_boxes" in batch:
        pixel_values = erase(pixel_values, batch["erase_boxes"], batch["view_seeds"])
    if "partner_offsets" not in batch:
        return {**batch, "pixel_values": pixel_values}
    positions = torch.arange(len(pixel_values), device=pixel_values.device)
    partners = positions + batch["partner_offsets"]
    pixel_values = mix(pixel_values, partners, batch["pixel_weights"], batch["mix_boxes"])
    return {**batch, "pixel_values": pixel_values, "partner_labels": batch["labels"][partners]}
