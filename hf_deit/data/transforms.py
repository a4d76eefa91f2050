"""The training transform of one image: timm's, in the authors' order and with their constants."""

import re
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torchvision import transforms

from ..errors import InputError
from ..models.image_processing_deit import SMALL_INPUT
from .scaled_images import Box, JpegImage, ShrunkImage, Size
from .views import preserve_global_random_state, seed_global_random_state

_RAND_AUGMENT_PART = re.compile(r"^(m|n|p|w|t|mstd|mmax|inc)\d")
_SMALL_INPUT_PADDING = 4  # pixels, as the authors


class TrainTransform(transforms.Compose):
    """From an RGB image, or one of which there are fewer pixels, to the pixels of a view, (3, height, width) uint8.

    Args:
        steps: of a transform of whole images; the first is a random resized crop as timm's, or, where `is_cropped` is
            false, one of torchvision's that resizes the shorter side.
        is_cropped: which.
    """

    def __init__(self, steps: Sequence[Callable], *, is_cropped: bool) -> None:
        super().__init__(steps)
        self._is_cropped = is_cropped

    def draw(self, size: Size) -> tuple[Box, Size]:
        """Draws which part of an image the first step takes, from the global generators, as for a whole image.

        Args:
            size: (width, height) of the whole image.

        Returns:
            The part in pixels, and the (width, height) that it is resized to.
        """
        (width, height), first = size, self.transforms[0]
        if not self._is_cropped:
            return (0, 0, width, height), _with_shorter_side(size, first.size)
        whole = torch.empty(3, height, width, device="meta")  # timm asks for its size alone
        top, left, part_height, part_width = first.get_params(whole, first.scale, first.ratio)
        return (left, top, left + part_width, top + part_height), (first.size[1], first.size[0])

    def load(self, image: JpegImage, seed: int) -> None:
        """Decodes what a view needs of an image, by the seed of the view; the global generators stay as they are.

        Raises:
            BadImageError: it cannot be decoded.
        """
        with preserve_global_random_state():
            seed_global_random_state(seed)
            image.load(*self.draw(image.size))

    def __call__(self, image: Image.Image | ShrunkImage | JpegImage) -> torch.Tensor:
        if isinstance(image, Image.Image):
            return super().__call__(image)
        part = image.part(*self.draw(image.size))
        for step in self.transforms[1:]:
            part = step(part)
        return part


def _with_shorter_side(size: Size, shorter_side: int) -> Size:
    """The (width, height) that torchvision's Resize gives an image."""
    shorter, longer = min(size), int(shorter_side * max(size) / min(size))
    return (shorter_side, longer) if size[0] == shorter else (longer, shorter_side)


def build_train_transform(
    image_size: tuple[int, int],
    *,
    image_mean: Sequence[float],
    crop_scale_min: float = 0.08,
    horizontal_flip: float = 0.5,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
) -> TrainTransform:
    """The geometric and colour part of DeiT's augmentation (paper, table 9; the authors' `build_transform`).

    Random resized crop with scale (crop_scale_min, 1) and ratio (3/4, 4/3), bicubic, or, for inputs of at most 32
    pixels, a random crop with a padding of 4, before which the shorter side of an image of another size is resized
    (the authors resize none); horizontal flip; RandAugment. What is random is drawn from the global generators of
    `random`, NumPy and torch: see `hf_deit.data.views.seed_global_random_state`.

    Args:
        image_size: (height, width) of the result.
        image_mean: (3,), of pixels in [0, 1]; RandAugment fills with it what a shifted or turned image leaves free.
        crop_scale_min: smallest random resized crop, as a fraction of the image's area, in (0, 1].
        horizontal_flip: probability, in [0, 1].
        auto_augment: timm's policy string, or None for none.

    Returns:
        A function from an image to its pixels, (3, height, width) uint8.

    Raises:
        InputError: timm does not know the policy.
    """
    from timm.data import create_transform  # all of timm's models come with it

    _check_policy(auto_augment)
    try:
        transform = create_transform(
            image_size,
            is_training=True,
            use_prefetcher=True,  # stops before normalising: that, and erasing, happen on the device
            scale=(crop_scale_min, 1.0),
            hflip=horizontal_flip,
            color_jitter=None,
            auto_augment=auto_augment or None,
            interpolation="bicubic",
            mean=tuple(image_mean),
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f'auto_augment {auto_augment!r} is no policy of timm ({error!r}): take "rand-m9-mstd0.5-inc1", or ""'
        ) from error
    if max(image_size) > SMALL_INPUT:
        return TrainTransform(transform.transforms, is_cropped=True)
    resize = transforms.Resize(min(image_size), interpolation=transforms.InterpolationMode.BICUBIC)
    # More padding is needed only by inputs that are far from square.
    crop = transforms.RandomCrop(image_size, padding=_SMALL_INPUT_PADDING, pad_if_needed=True)
    return TrainTransform([resize, crop, *transform.transforms[1:]], is_cropped=False)


def _check_policy(auto_augment: str | None) -> None:
    """Refuses parts of a RandAugment policy that timm would leave out without a word."""
    kind, *parts = (auto_augment or "").split("-")
    for part in parts if kind == "rand" else ():
        if not _RAND_AUGMENT_PART.match(part):
            raise InputError(
                f"auto_augment {auto_augment!r} is no policy of timm, as it has the part {part!r}: take "
                '"rand-m9-mstd0.5-inc1", or ""'
            )
