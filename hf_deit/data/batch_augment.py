"""What happens to a batch of views on the device: normalising, random erasing, mixup and CutMix.

With each view, in uint8, the loader hands over the numbers that were drawn for it. They are drawn on the host, where
they are the same on every platform; the device only does arithmetic, and never makes the host wait.
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

# The last part of a key, fold(seed, epoch, slot or group, purpose), which keeps the two generators apart.
_ERASING, _MIXING = 1, 2

# Of a batch, the places of views that are erased, blended and cut: a host cannot count them later without waiting for
# its device.
PLACES = ("erased_views", "blended_views", "cut_views")

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right are exclusive
EMPTY_BOX: Box = (0, 0, 0, 0)


@dataclass(frozen=True)
class RandomErasing:
    """Which box of a view is filled with noise (Zhong et al. 2020; timm's `RandomErasing`, mode "pixel", count 1).

    Args:
        probability: that a view is erased at all, in [0, 1]; DeiT takes 0.25.
        area: of the box, as a fraction of the view's: the smallest and the largest.
        aspect_ratio: of the box, height to width: the smallest. The largest is its inverse.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect_ratio: float = 0.3

    def box(self, seed: int, epoch: int, slot: int, size: tuple[int, int]) -> Box:
        """The box of one view of `size` (height, width), or `EMPTY_BOX`. Drawn as timm draws it."""
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
        label_weight: λ, the weight of a view's own label, in [0, 1]; the partner's has the rest.
        pixel_weight: the weight of a view's own pixels outside of the box: λ for mixup, 1 for CutMix.
        box: inside of it the pixels are the partner's; empty for mixup.
    """

    label_weight: float
    pixel_weight: float
    box: Box


NO_MIX = Mix(1.0, 1.0, EMPTY_BOX)


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) on virtual groups of views; timm's `Mixup`, mode "batch".

    A group is `group_size` consecutive slots of an epoch. One λ, one choice between mixup and CutMix and one box are
    drawn for a whole group, and a view's partner stands at the mirrored place of the group: the first and the last are
    mixed with each other. So the mixing does not depend on the batch size, as long as batches hold whole groups. The
    middle view of an odd group is its own partner, and stays as it is; of a group that the end of a batch cuts off,
    what is there is mirrored.

    Args:
        mixup_alpha: mixup's λ is drawn from Beta(alpha, alpha); 0 is for no mixup. DeiT takes 0.8.
        cutmix_alpha: the same for CutMix, whose λ is the part of the view that stays. DeiT takes 1.0.
        probability: that a group is mixed at all, in [0, 1].
        switch_probability: of CutMix where both are on, in [0, 1].
        group_size: slots of a group; 64 is the authors' batch on one GPU, for which they draw once.
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
        """How many places behind each view of a batch its partner stands; negative where it stands before it.

        Args:
            slots: of the batch, consecutive.
        """
        groups = [slot // self.group_size for slot in slots]
        first, last = {}, {}
        for position, group in enumerate(groups):
            first.setdefault(group, position)
            last[group] = position
        return [first[group] + last[group] - 2 * position for position, group in enumerate(groups)]


@lru_cache(maxsize=16)  # copying constants to the device at every batch would make the host wait
def _statistics_on(
    device: torch.device, image_mean: tuple[float, ...], image_std: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of pixels in [0, 255], (3, 1, 1) each."""
    mean, std = (torch.tensor(values, device=device).mul(255).view(-1, 1, 1) for values in (image_mean, image_std))
    return mean, std


def normalize(pixels: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> torch.Tensor:
    """Rescales pixels to [0, 1] and normalises them, on their device, with the bits of the image processors.

    Args:
        pixels: (B, 3, H, W) uint8.
        image_mean, image_std: (3,) each, of pixels in [0, 1].

    Returns:
        (B, 3, H, W) float32.
    """
    mean, std = _statistics_on(pixels.device, tuple(image_mean), tuple(image_std))
    return pixels.to(torch.float32).sub_(mean).div_(std)


def _inside(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Whether a pixel of `size` (H, W) lies in its view's box, (B, 1, H, W) bool; the boxes are (B, 4)."""
    top, bottom, left, right = (edge.view(-1, 1, 1) for edge in boxes.unbind(dim=1))
    y = torch.arange(size[0], device=boxes.device).view(1, -1, 1)
    x = torch.arange(size[1], device=boxes.device).view(1, 1, -1)
    return ((y >= top) & (y < bottom) & (x >= left) & (x < right)).unsqueeze(1)


def erase(pixel_values: torch.Tensor, boxes: torch.Tensor, view_seeds: torch.Tensor) -> torch.Tensor:
    """Fills each view's box with standard normal noise, a function of the view's seed.

    Args:
        pixel_values: (B, 3, H, W) normalised.
        boxes: (B, 4) int64: top, bottom, left, right; see `Box`.
        view_seeds: (B,) int64, from `hf_deit.models.keyed.view_seed`.

    Returns:
        (B, 3, H, W); what was given stays as it is.
    """
    noise = keyed_normal(view_seeds, tuple(pixel_values.shape[1:]))
    return torch.where(_inside(boxes, tuple(pixel_values.shape[-2:])), noise, pixel_values)


def mix(
    pixel_values: torch.Tensor,
    partners: torch.Tensor,
    pixel_weights: torch.Tensor,
    boxes: torch.Tensor,
    *,
    any_blended: bool = True,
    any_cut: bool = True,
) -> torch.Tensor:
    """Mixes each view with its partner, see `Mix`.

    Args:
        pixel_values: (B, 3, H, W) normalised.
        partners: (B,) int64, places in the batch.
        pixel_weights: (B,) in [0, 1], of a view's own pixels outside of its box.
        boxes: (B, 4) int64: top, bottom, left, right; see `Box`. Inside, the pixels are the partner's.
        any_blended: False if it is known that all weights are 1, which spares the device work.
        any_cut: the same, of boxes that are all empty.

    Returns:
        (B, 3, H, W); what was given stays as it is.
    """
    if not (any_blended or any_cut):
        return pixel_values
    others = pixel_values.index_select(0, partners)  # on a CPU three times as fast as `pixel_values[partners]`
    mixed = pixel_values
    if any_blended:
        weights = pixel_weights.view(-1, 1, 1, 1)
        mixed = (pixel_values * weights).add_(others * (1 - weights))
    if any_cut:
        mixed = torch.where(_inside(boxes, tuple(pixel_values.shape[-2:])), others, mixed)
    return mixed


def augment_batch(
    batch: dict[str, torch.Tensor], image_mean: Sequence[float], image_std: Sequence[float]
) -> dict[str, torch.Tensor]:
    """Turns a loader's batch into what student and teacher see: normalised, then erased, then mixed.

    Args:
        batch: from `hf_deit.data.view_dataset.collate`. It is erased if it has `erase_boxes`, and mixed if it has
            `partner_offsets`. Without `PLACES`, which say where there is nothing to do, it takes longer.
        image_mean, image_std: (3,) each, of pixels in [0, 1].

    Returns:
        The batch, without `PLACES`, with `pixel_values` (B, 3, H, W) float32 and, if it is mixed, with the labels of
        the views' partners as `partner_labels` (B,).
    """
    places = {name: batch[name] for name in PLACES if name in batch}
    rest = {name: value for name, value in batch.items() if name not in PLACES}
    pixel_values = normalize(batch["pixel_values"], image_mean, image_std)
    if "erase_boxes" in batch:
        boxes, seeds, erased = batch["erase_boxes"], batch["view_seeds"], places.get("erased_views")
        if erased is None:
            pixel_values = erase(pixel_values, boxes, seeds)
        elif len(erased):
            pixel_values[erased] = erase(pixel_values[erased], boxes[erased], seeds[erased])
    if "partner_offsets" not in batch:
        return {**rest, "pixel_values": pixel_values}
    positions = torch.arange(len(pixel_values), device=pixel_values.device)
    partners = positions + batch["partner_offsets"]
    pixel_values = mix(
        pixel_values,
        partners,
        batch["pixel_weights"],
        batch["mix_boxes"],
        any_blended="blended_views" not in places or len(places["blended_views"]) > 0,
        any_cut="cut_views" not in places or len(places["cut_views"]) > 0,
    )
    return {**rest, "pixel_values": pixel_values, "partner_labels": batch["labels"][partners]}
