"""A model's own preprocessing at another input size, or with another crop ratio, for evaluation."""

import copy
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from ...errors import InputError, first_line
from ...models.extent import LARGEST_IMAGE
from ...models.image_processing_deit import DistilledDeiTImageProcessor
from ...models.pretrained import measure_processor
from ...models.single_teacher import size_in_words

_RAMP = Image.fromarray(np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 256, 3)))  # to the right


def made_size(name: str, processor: BaseImageProcessor) -> tuple[int, int]:
    """The (height, width) of what an image processor makes of any image.

    Args:
        name: of the model, for the message.

    Raises:
        InputError: it fails, or makes another size of another image, which no batch holds.
    """
    sizes = [measure_processor(repr(name), processor, width=width)[2] for width in (64, 96)]
    if len(set(sizes)) > 1:
        raise InputError(
            f"the image processor of {name!r} leaves images in their own sizes or shapes, and a batch must have one: "
            "set do_resize and size, or do_center_crop and crop_size, in its preprocessor_config.json"
        )
    return sizes[0]


def _shown_ratio(processor: BaseImageProcessor) -> float:
    """The crop's side as a part of the side that images are resized to, as it is seen on a square image.

    Measured on a ramp from black to white, by how steep it is in the middle of what the processor makes of it.
    """
    black, white, ramp = (
        np.asarray(processor(image, return_tensors="pt")["pixel_values"][0][0], dtype=np.float64)
        for image in (Image.new("RGB", (256, 256)), Image.new("RGB", (256, 256), (255, 255, 255)), _RAMP)
    )
    levels = 255 * ((ramp - black) / (white - black)).mean(axis=0)  # of each column
    margin = len(levels) // 4
    between = levels[margin : len(levels) - margin]
    return float((between[-1] - between[0]) / (len(between) - 1) * len(levels) / 256)


def _is_shown(ratio: float, shown: float, size: tuple[int, int]) -> bool:
    """Whether a crop ratio is what was measured, but for the rounding to whole pixels, (height, width) of them."""
    return abs(ratio - shown) <= 0.02 + 1 / min(size)


def crop_ratio_of(processor: BaseImageProcessor, size: tuple[int, int]) -> float:
    """The crop ratio that an image processor states, if that is what it does; else what it does.

    Args:
        size: (height, width) of what it makes.
    """
    shown, settings = _shown_ratio(processor), getattr(processor, "data_config", None) or {}
    stated = [getattr(processor, "crop_ratio", None), settings.get("crop_pct"), getattr(processor, "crop_pct", None)]
    stated += [] if settings else [_ratio_of(processor)]
    return next((float(ratio) for ratio in stated if ratio and _is_shown(ratio, shown, size)), round(shown, 2))


def at_test_size(
    name: str, processor: BaseImageProcessor, *, image_size: int | None, crop_ratio: float | None
) -> BaseImageProcessor:
    """An image processor that makes another size, or crops another part, and is else as it was.

    Args:
        name: of the model, for the message.
        processor: it stays as it is.
        image_size: height and width of what it shall make, in pixels; None for its own.
        crop_ratio: of the crop's side to the side that images are resized to, in (0, 1]; None for its own.

    Raises:
        InputError: it cannot be told so.
    """
    if image_size is None and crop_ratio is None:
        return processor
    height, width = made_size(name, processor) if image_size is None else (image_size, image_size)
    if min(height, width) / (crop_ratio or 1) > LARGEST_IMAGE:
        raise InputError(f"crop_ratio {crop_ratio:g} would resize images to more than {LARGEST_IMAGE} pixels")
    try:
        changed = _changed(processor, (height, width), crop_ratio)
        made = made_size(name, changed)
        shown = _shown_ratio(changed)
        if crop_ratio is not None and not _is_shown(crop_ratio, shown, made):  # it crops by a rule of its own, too
            changed = _changed(processor, (height, width), crop_ratio * crop_ratio / shown)
            made, shown = made_size(name, changed), _shown_ratio(changed)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the image processor of {name!r} takes no other size or crop ratio ({first_line(error)}): leave "
            "--image_size and --crop_ratio out"
        ) from error
    if made != (height, width):
        raise InputError(
            f"the image processor of {name!r} makes {size_in_words(made)} pixels instead of "
            f"{size_in_words((height, width))}: leave --image_size and --crop_ratio out"
        )
    if crop_ratio is not None and not _is_shown(crop_ratio, shown, made):
        raise InputError(
            f"the image processor of {name!r} shows {shown:.2f} of an image's side instead of {crop_ratio:g}, by a "
            "rule of its own: leave --crop_ratio out"
        )
    return changed


def _changed(processor: BaseImageProcessor, size: tuple[int, int], crop_ratio: float | None) -> BaseImageProcessor:
    height, width = size
    if isinstance(processor, DistilledDeiTImageProcessor):
        return processor.at_crop_size(size, crop_ratio)
    if (settings := getattr(processor, "data_config", None)) is not None:  # timm's
        settings = {**settings, "input_size": (3, height, width)}
        if crop_ratio is not None:
            settings["crop_pct"] = crop_ratio
        return type(processor)(pretrained_cfg=settings, architecture=getattr(processor, "architecture", None))
    if not getattr(processor, "do_resize", True):
        raise ValueError("it does not resize")
    changed = copy.deepcopy(processor)
    if getattr(processor, "crop_pct", None) is not None and not getattr(processor, "do_center_crop", None):
        changed.size = SizeDict(shortest_edge=min(height, width))  # ConvNeXt's, which crops below 384 pixels
        changed.crop_pct = crop_ratio or processor.crop_pct
        return changed
    if crop_ratio is None:
        crop_ratio = _ratio_of(processor)
    resized = round(height / crop_ratio), round(width / crop_ratio)
    if processor.size.shortest_edge:
        changed.size = SizeDict(shortest_edge=min(resized))
    else:
        changed.size = SizeDict(height=resized[0], width=resized[1])
    if crop_ratio < 1 or getattr(processor, "do_center_crop", None) or processor.size.shortest_edge:
        changed.do_center_crop = True
        changed.crop_size = SizeDict(height=height, width=width)
    return changed


def _ratio_of(processor: Any) -> float:
    """The crop's shorter side as a part of the side that images are resized to; 1 where nothing is cropped."""
    if not getattr(processor, "do_center_crop", None):
        return 1.0
    crop, size = processor.crop_size, processor.size
    resized = size.shortest_edge or min(size.height, size.width)
    return min(min(crop.height, crop.width) / resized, 1.0)
