"""The image processor of DeiT's evaluation. What it saves opens as transformers' `DeiTImageProcessor`."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import did_you_mean
from .extent import LARGEST_IMAGE

# Pillow's other modes have 16 or 32 bits per channel, and it converts what passes 255 to white, and floats up to 1 to
# black.
EIGHT_BIT_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
# Inputs up to this side, in pixels, the authors neither resize nor crop at evaluation, and crop with padding in
# training (their `build_transform`).
SMALL_INPUT, _CROP_RATIO = 32, 0.875
# What stands in preprocessor_config.json beside the settings.
_WRITTEN_BY_TRANSFORMERS = ("image_processor_type", "processor_class", "feature_extractor_type")


def usual_crop_ratio(crop_size: tuple[int, int], *, is_cait: bool = False) -> float:
    """The authors' crop ratio at evaluation, where nothing states another one.

    Args:
        crop_size: input size of the model, (height, width).
        is_cait: whether the model is a CaiT.

    Returns:
        1.0 for CaiT, and for inputs of at most 32 pixels: an image of that size is then evaluated as it is, pixel for
        pixel, and one of another size, which the authors could not put into a batch, is resized to it. Else 0.875.
    """
    return 1.0 if is_cait or max(crop_size) <= SMALL_INPUT else _CROP_RATIO


def _crop_ratio_at(crop_size: Any, before: Any, crop_ratio: float) -> float:
    """The crop ratio of a processor that is taken to another size: its own, but the usual one goes by the size."""
    becomes_small = _longer_side(crop_size) <= SMALL_INPUT < _longer_side(before)
    return 1.0 if becomes_small and crop_ratio == _CROP_RATIO else crop_ratio


def _longer_side(crop_size: Any) -> int:
    if not isinstance(crop_size, SizeDict):
        crop_size = SizeDict(**get_size_dict(crop_size, param_name="crop_size"))
    return max(crop_size.height, crop_size.width)


def _is_float_of_8_bits(image: Image.Image) -> bool:
    """Whether an image holds what arithmetic on one of 8 bits gives: floats in [0, 255], and not all up to 1."""
    if image.mode != "F":
        return False
    darkest, brightest = image.getextrema()
    return darkest >= 0 and (1 < brightest <= 255 or brightest == 0)


class DistilledDeiTImageProcessorKwargs(ImagesKwargs, total=False):
    """The arguments of transformers' image processors and one more.

    Attributes:
        crop_ratio: the crop's side as a fraction of the resized image's shorter side, in (0, 1]. The authors take
            0.875 (256 → 224, 438 → 384), and 1.0 for inputs of at most 32 pixels; CaiT takes 1.0.
    """

    crop_ratio: float | int


class _DeiTPreprocessing:
    """What both backends do: the authors' `build_transform` for evaluation, which is timm's evaluation transform.

    The shorter side is resized to int(crop size / crop ratio), bicubic; the centre is cropped; ImageNet's statistics
    normalise. `crop_size` is the model's input size. Where no `crop_ratio` is given it is `usual_crop_ratio`; a `size`
    that is given overrides it.
    """

    valid_kwargs = DistilledDeiTImageProcessorKwargs
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    crop_size = 224
    crop_ratio = None  # by the size: see `usual_crop_ratio`
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True  # transformers' own processor fails on greyscale images without it

    def __init__(self, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in self.valid_kwargs.__annotations__ and name not in _WRITTEN_BY_TRANSFORMERS:
                nearest = did_you_mean(name, self.valid_kwargs.__annotations__)
                raise TypeError(f"{type(self).__name__} has no setting {name!r}{nearest}")
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        known = {*cls.valid_kwargs.__annotations__, *_WRITTEN_BY_TRANSFORMERS}
        settings = {name: value for name, value in image_processor_dict.items() if name in known}
        stated = {"crop_size", "crop_ratio"} <= set(settings)
        if stated and kwargs.get("crop_size") is not None and "crop_ratio" not in kwargs:
            settings["crop_ratio"] = _crop_ratio_at(kwargs["crop_size"], settings["crop_size"], settings["crop_ratio"])
        if {"crop_size", "crop_ratio"} & set(kwargs) and "size" not in kwargs:
            settings.pop("size", None)  # it follows from the new crop
        return super().from_dict(settings, **kwargs)

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        if kwargs.get("crop_size") is not None and "crop_ratio" not in kwargs:
            kwargs["crop_ratio"] = _crop_ratio_at(kwargs["crop_size"], self.crop_size, self.crop_ratio)
        if {"crop_size", "crop_ratio"} & set(kwargs):
            kwargs.setdefault("size", None)  # likewise
        return super().preprocess(images, *args, **kwargs)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        def with_channels(image: Any) -> Any:
            is_array = isinstance(image, np.ndarray | torch.Tensor)
            return image[None] if is_array and image.ndim == 2 else image

        images = (
            [with_channels(image) for image in images] if isinstance(images, list | tuple) else with_channels(images)
        )
        return super()._prepare_images_structure(images, expected_ndims=expected_ndims)

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(image, Image.Image) and image.mode not in EIGHT_BIT_MODES and not _is_float_of_8_bits(image):
            raise ValueError(
                f"an image of mode {image.mode!r} has more than 8 bits per channel, of which Pillow would make white "
                "or black: scale it to 8 bits first"
            )
        return super().process_image(image, *args, **kwargs)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        size, crop_size, crop_ratio = kwargs["size"], kwargs["crop_size"], kwargs.get("crop_ratio")
        if crop_size is None:
            return kwargs
        shorter_side = min(crop_size.height, crop_size.width)
        if crop_ratio is None:
            usual = usual_crop_ratio((crop_size.height, crop_size.width))
            stated = size.shortest_edge if size is not None else None
            fitting = (ratio for ratio in (usual, _CROP_RATIO) if stated in (None, int(shorter_side / ratio)))
            crop_ratio = kwargs["crop_ratio"] = next(fitting, usual)
        if not 0 < crop_ratio <= 1:
            raise ValueError(f"crop_ratio must lie in (0, 1], got {crop_ratio}")
        if shorter_side / crop_ratio > LARGEST_IMAGE:
            raise ValueError(
                f"crop_ratio {crop_ratio:g} would resize images to {shorter_side / crop_ratio:g} pixels, expected at "
                f"most {LARGEST_IMAGE}"
            )
        if size is None:
            kwargs["size"] = SizeDict(shortest_edge=int(shorter_side / crop_ratio))
        elif size.shortest_edge and size.shortest_edge != int(shorter_side / crop_ratio):
            kwargs["crop_ratio"] = shorter_side / size.shortest_edge  # an explicit size wins
        return kwargs

    def at_crop_size(self, crop_size: int | tuple[int, int], crop_ratio: float | None = None) -> Any:
        """A processor for inputs of another size, with the same statistics.

        Args:
            crop_size: in pixels, or (height, width).
            crop_ratio: see `DistilledDeiTImageProcessorKwargs`; by default this processor's, of which 0.875
                becomes 1.0 where the size comes down to 32 pixels or less (see `usual_crop_ratio`).
        """
        height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        size = {"height": height, "width": width}
        if crop_ratio is None:
            crop_ratio = _crop_ratio_at(size, self.crop_size, self.crop_ratio)
        switches = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
        kept = ("image_mean", "image_std", "resample", "rescale_factor", *switches)
        settings = {name: getattr(self, name) for name in kept}
        return type(self)(crop_size=size, crop_ratio=crop_ratio, **settings)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["image_processor_type"] = "DeiTImageProcessor"
        return output


class DistilledDeiTImageProcessor(_DeiTPreprocessing, TorchvisionBackend):
    """Prepares images for DeiT, with torchvision.

    Takes PIL images of any mode, arrays and tensors (uint8, or float in [0, 1] with `do_rescale=False`), one or a
    list, and returns `pixel_values` (B, 3, H, W).

    Args:
        crop_size: input size of the model, in pixels or as {"height", "width"}.
        crop_ratio: see `DistilledDeiTImageProcessorKwargs`.
        size: overrides the resized size and so the crop ratio, for example {"shortest_edge": 256}.
        **kwargs: the other settings of transformers' image processors.

    Raises:
        TypeError: a setting that does not exist; the message names the nearest.
        ValueError: crop_ratio outside (0, 1]; an image of more than 8 bits per channel; those of mode "F" may hold
            [0, 255].
    """


class DistilledDeiTImageProcessorPil(_DeiTPreprocessing, PilBackend):
    """`DistilledDeiTImageProcessor` with Pillow and NumPy instead of torchvision: the same arguments and output."""
