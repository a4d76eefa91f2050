"""Reads what transformers' image processors do into a `Preprocessing`, and checks it against the processor itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from ...errors import InputError, one_line
from ...models.single_teacher import size_in_words
from .preprocessing import FILTERS, Preprocessing

# In levels of 255. There is none but where floats decide; the room is for other builds of PyTorch and Pillow.
_LARGEST_DIFFERENCE, _MEAN_DIFFERENCE = 4.0, 0.05
_CONVNEXT_WARPS_FROM = 384  # pixels; below it crops
_LEVIT_RATIO = 256 / 224
_NAME_OF_TORCHVISIONS_FILTER = {"nearest-exact": "nearest"}  # the same of Pillow's images


def preprocessing_of(processor: BaseImageProcessor, input_size: tuple[int, int]) -> Preprocessing:
    """What an image processor does.

    Args:
        input_size: (height, width) of what it makes of any image.

    Raises:
        InputError: it does something else, such as padding or tiling, or than its settings say.
    """
    input_size = tuple(input_size)
    try:
        if hasattr(processor, "val_transforms"):
            described = _of_timm(processor.val_transforms.transforms, input_size)
        else:
            described = _of_transformers(processor, input_size)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise _cannot(processor, f"its settings are not those of transformers' ({one_line(error)})") from error
    made = described.crop or (described.size if described.resize == "exact" else None)
    if made is None and described.resize == "shortest":
        raise _cannot(processor, "it resizes the shorter side alone, and nothing crops the longer one")
    if made is not None and made != described.input_size:
        raise _cannot(
            processor,
            f"its settings give images of {size_in_words(made)} pixels, and it makes {size_in_words(input_size)}",
        )
    check_description(described, processor)
    return described


def _of_transformers(processor: Any, input_size: tuple[int, int]) -> Preprocessing:
    kinds = {kind.__name__.removesuffix("Pil") for kind in type(processor).__mro__}
    if getattr(processor, "do_pad", None):
        raise _cannot(processor, "it pads images (do_pad)")
    crop = _pair(processor.crop_size) if getattr(processor, "do_center_crop", None) else None
    resize, size = None, None
    if processor.do_resize:
        resize, size = _size_of(processor)
        if "ConvNextImageProcessor" in kinds:
            side = processor.size.shortest_edge
            if side < _CONVNEXT_WARPS_FROM:
                if crop not in (None, (side, side)):
                    raise _cannot(processor, "it crops twice")
                size, crop = (int(side / processor.crop_pct),) * 2, (side, side)
            else:
                resize = "exact"
        elif "PoolFormerImageProcessor" in kinds and processor.crop_pct is not None:
            size = tuple(int(side / processor.crop_pct) for side in size)
            resize = "shortest" if size[0] == size[1] else "exact"
        elif "LevitImageProcessor" in kinds and resize == "shortest":
            size = (int(_LEVIT_RATIO * processor.size.shortest_edge),) * 2
    does_rescale, does_normalize = bool(processor.do_rescale), bool(processor.do_normalize)
    if "MobileViTImageProcessor" in kinds:
        does_normalize = False
    mean, std = (0.0,) * 3, (1.0,) * 3
    if does_normalize:
        mean, std = _channels(processor.image_mean), _channels(processor.image_std)
    offset = 0.0
    if "EfficientNetImageProcessor" in kinds:
        offset = -1.0 if does_rescale and processor.rescale_offset else 0.0
        if processor.include_top:  # it divides once more
            std = tuple(first * second for first, second in zip(std, _channels(processor.image_std), strict=True))
    return Preprocessing(
        resize=resize,
        size=size,
        filter=FILTERS[int(processor.resample if processor.resample is not None else Image.Resampling.BILINEAR)],
        crop=crop,
        scale=float(processor.rescale_factor) if does_rescale else 1.0,
        offset=offset,
        mean=mean,
        std=std,
        channel_order="BGR" if getattr(processor, "do_flip_channel_order", None) else "RGB",
        input_size=input_size,
        crop_rounding="down" if getattr(processor, "backend", None) == "pil" else "zero",
    )


def _size_of(processor: Any) -> tuple[str, tuple[int, int]]:
    size = processor.size
    if size.height and size.width:
        return "exact", (int(size.height), int(size.width))
    if size.shortest_edge and not size.longest_edge:
        return "shortest", (int(size.shortest_edge),) * 2
    given = {name: value for name, value in vars(size).items() if value}
    raise _cannot(processor, f"it resizes to {given}; known are a shortest_edge, or a height and a width")


def _pair(size: Any) -> tuple[int, int]:
    return int(size.height), int(size.width)


def _channels(values: Any) -> tuple[float, float, float]:
    """One value for each of three channels; a number is that of all."""
    values = [float(value) for value in (values if isinstance(values, Sequence) else [values] * 3)]
    return tuple(values * 3 if len(values) == 1 else values)


def _of_timm(transforms: Sequence[Any], input_size: tuple[int, int]) -> Preprocessing:
    """Of the transforms that timm makes of a model's settings, on Pillow's images."""
    found: dict[str, Any] = {"resize": None, "size": None, "filter": "bicubic", "crop": None, "crop_rounding": "even"}
    statistics: tuple[Any, Any] = ((0.0,) * 3, (1.0,) * 3)
    order = ["Resize", "CenterCrop", "ToTensor", "MaybeToTensor", "Normalize"]
    at = -1
    for transform in transforms:
        name = type(transform).__name__
        if name not in order[at + 1 :]:
            raise InputError(
                f"an export cannot do what this image processor does: timm's transform {name}"
                f"{' after ' + order[at] if name in order else ''}; known are {', '.join(order)}, in this order"
            )
        at = order.index(name)
        if name == "Resize":
            one = isinstance(transform.size, int) or len(transform.size) == 1
            side = transform.size if isinstance(transform.size, int) else transform.size[0]
            if transform.max_size is not None:
                raise InputError("an export cannot do what this image processor does: timm's Resize with max_size")
            found["resize"] = "shortest" if one else "exact"
            found["size"] = (int(side),) * 2 if one else tuple(int(side) for side in transform.size)
            filter_name = str(getattr(transform.interpolation, "value", transform.interpolation))
            found["filter"] = _NAME_OF_TORCHVISIONS_FILTER.get(filter_name, filter_name)
        elif name == "CenterCrop":
            found["crop"] = tuple(int(side) for side in transform.size)
        elif name == "Normalize":
            statistics = tuple(
                tuple(float(value) for value in np.asarray(part).reshape(-1))
                for part in (transform.mean, transform.std)
            )
    mean, std = (_channels(part) for part in statistics)
    return Preprocessing(
        **found, scale=1 / 255, offset=0.0, mean=mean, std=std, channel_order="RGB", input_size=input_size
    )


def check_description(described: Preprocessing, processor: BaseImageProcessor) -> None:
    """Raises `InputError` if a description gives something else than the processor makes, and names the part of it."""
    height, width = described.input_size
    plain = np.broadcast_to(np.array([230, 120, 20], dtype=np.uint8), (height, width, 3))
    noise = np.random.default_rng(0)
    sizes = [(height, width)]
    if described.resize is not None or described.crop is not None:
        # Odd, as the nearest pixel of an even number may be one of two, which floats decide.
        sizes = [(height + height // 2 | 1, 2 * width + 3 | 1), (height // 2 | 1, width // 3 | 1), (5, 15)]
    images = [np.ascontiguousarray(plain), *(noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes)]
    slope, _ = described.slope_and_intercept()
    slope = (slope[::-1] if described.channel_order == "BGR" else slope)[:, None, None]
    for image in images:
        shape = size_in_words(image.shape[:2])
        try:
            made = np.asarray(processor(Image.fromarray(image), return_tensors="pt")["pixel_values"], dtype=np.float64)
        except Exception as error:  # of any kind: processors fail as they come to it
            raise _cannot(processor, f"it fails on an image of {shape} pixels ({one_line(error)})") from error
        if made.shape != (1, 3, height, width):
            raise _cannot(processor, f"of an image of {shape} pixels it makes an array of the shape {made.shape}")
        apart = np.abs(made[0] - described.apply(image)) / np.abs(slope)
        if not (apart.max() <= _LARGEST_DIFFERENCE and apart.mean(axis=(1, 2)).max() <= _MEAN_DIFFERENCE):
            part = "scale, statistics or order of the channels" if image is images[0] else "resizing or cropping"
            raise _cannot(
                processor,
                f"its settings do not say all that it does, by its {part}: of an image of {shape} pixels it makes "
                f"values that are up to {apart.max():.3g} levels of 255 from them (on average {apart.mean():.3g})",
            )


def _cannot(processor: Any, reason: str) -> InputError:
    return InputError(f"an export cannot do what the image processor {type(processor).__name__} does: {reason}")
