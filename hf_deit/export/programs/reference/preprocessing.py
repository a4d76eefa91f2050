"""Prepares images for `model.pte` as the classifier was trained, and names its answers. Needs NumPy and Pillow.

From a terminal, `python preprocessing.py IMAGE …` tells what it makes of images, and `python preprocessing.py` checks
itself, or a Python that it was moved to, by the values of golden.json. From Python:

    image = load("photo.jpg")                      # upright, RGB
    pixels = pixel_values(image)                   # float32 (1, 3, height, width)
    [logits] = method.execute([torch.from_numpy(pixels)])
    best(probabilities(logits.numpy()))            # [("cat", 0.93), ("dog", 0.05), …]
"""

import json
import os
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SETTINGS: dict[str, Any] = {
    "labels": ["cat", "dog"],
    "preprocessing": {
        "resize": "shortest",
        "size": [256, 256],
        "filter": "bicubic",
        "crop": [224, 224],
        "scale": 1 / 255,
        "offset": 0.0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "channel_order": "RGB",
        "input_size": [224, 224],
        "crop_rounding": "zero",
    },
    "model": {},
}  # end of SETTINGS

LABELS = SETTINGS["labels"]
EDGE = 4  # places


def load(path: str) -> Image.Image:
    """An image as people see it: turned upright by its EXIF data, white where it is transparent, RGB."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pixel_values(image: Image.Image | np.ndarray, settings: dict[str, Any] = SETTINGS["preprocessing"]) -> np.ndarray:
    """What the network takes of an RGB image: float32 (1, 3, height, width)."""
    levels = np.asarray(image)
    given = levels.shape[:2]
    target = given
    if settings["resize"] == "shortest":
        target = tuple(settings["size"][0] * length // min(given) for length in given)
    elif settings["resize"] == "exact":
        target = tuple(settings["size"])
    crop = settings["crop"] or target
    if list(crop) != list(settings["input_size"]):
        raise ValueError(f"an image of {settings['input_size']} pixels (height, width) is expected, got {given}")
    starts = [crop_start(length, side, settings) for length, side in zip(target, crop, strict=True)]
    for axis in (1, 0):  # the width, then the height, each rounded to a level
        places = np.arange(max(starts[axis], 0), min(starts[axis] + crop[axis], target[axis]))
        if target == given:
            levels = levels.take(places, axis)
        else:
            levels = resized(
                levels, axis, target[axis], places, settings["filter"], settings["crop_rounding"] == "zero"
            )
    shown = np.zeros((*crop, 3), dtype=np.uint8)  # black where the image is smaller
    top, left = (max(-start, 0) for start in starts)
    shown[top : top + levels.shape[0], left : left + levels.shape[1]] = levels
    mean, std = np.asarray(settings["mean"]), np.asarray(settings["std"])
    slope, intercept = settings["scale"] / std, (settings["offset"] - mean) / std
    pixels = shown * slope.astype(np.float32) + intercept.astype(np.float32)
    if settings["channel_order"] == "BGR":
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def resized(
    levels: np.ndarray, axis: int, target: int, places: np.ndarray, filter: str, by_pytorch: bool
) -> np.ndarray:
    """An image, uint8 (H, W, 3), resized along an axis to `target` pixels, of which `places` are made.

    With Pillow's filters, antialiased. Weights are whole numbers, as the classifier's own processor has them: of 16
    bits in PyTorch's kernel, with 22 bits behind the point in `Image.resize`; they differ by two levels at most.
    """
    length = levels.shape[axis]
    if filter == "nearest":
        return levels.take(((2 * places + 1) * length) // (2 * target), axis)
    reach, weight = FILTERS[filter]
    scale = length / target
    coarse = max(scale, 1.0)
    # The first ones, too: the largest weights are at an edge, and of narrow stripes there would be millions.
    places = np.concatenate([np.arange(min(EDGE, target)), places])
    centres = (places + 0.5) * scale
    first = np.maximum(0, (centres - reach * coarse + 0.5).astype(int))
    end = np.minimum(length, (centres + reach * coarse + 0.5).astype(int))
    taken = first[:, None] + np.arange((end - first).max())  # of which pixels each place is made
    weights = np.where(taken < end[:, None], weight((taken + 0.5 - centres[:, None]) / coarse), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    bits = 22
    if by_pytorch and filter not in ("box", "hamming"):  # which Pillow alone has
        bits = next(bits for bits in range(22, -1, -1) if fits(weights.max(), bits))
    weights = np.trunc(weights * 2**bits + np.copysign(0.5, weights)).astype(np.int64)[min(EDGE, target) :]
    taken = np.minimum(taken, length - 1)[min(EDGE, target) :]
    shape = (-1, 1) if axis == 1 else (-1, 1, 1)
    sums = sum(levels.take(taken[:, k], axis) * weights[:, k].reshape(shape) for k in range(taken.shape[1]))
    return np.clip((sums + (1 << bits >> 1)) >> bits, 0, 255).astype(np.uint8)


def fits(weight: float, bits: int) -> bool:
    """Whether a weight, with so many bits behind the point, is one of 16 bits."""
    return int(0.5 + weight * 2**bits) < 1 << 15


def bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    far = np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0.0)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, far)


def hamming(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)


# By name: the reach in pixels of the coarser image, and the weight at a distance.
FILTERS = {
    "box": (0.5, lambda x: ((x > -0.5) & (x <= 0.5)).astype(float)),
    "bilinear": (1.0, lambda x: np.maximum(0.0, 1 - np.abs(x))),
    "hamming": (1.0, hamming),
    "bicubic": (2.0, bicubic),
    "lanczos": (3.0, lambda x: np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)),
}


def crop_start(length: int, crop: int, settings: dict[str, Any]) -> int:
    """Where a crop of the centre begins; negative where black is added."""
    rounding = settings["crop_rounding"]
    half, odd = divmod(length - crop, 2)
    if rounding == "even":
        return half + odd * (half < 0 or half % 2)
    return half + odd * (half < 0 and rounding == "zero")


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Of the network's logits (…, K)."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def best(probabilities: np.ndarray, count: int = 5) -> list[tuple[str, float]]:
    """The likeliest labels of an image with their probabilities."""
    order = np.argsort(-probabilities.ravel(), kind="stable")[:count]
    return [(LABELS[index], float(probabilities.ravel()[index])) for index in order]


def golden_image(kind: str, width: int, height: int) -> Image.Image:
    """An image that every language can make: level of pixel (x, y) in channel c, of whole numbers."""
    y, x, c = np.mgrid[:height, :width, :3]
    levels = 255 * ((x + y * c) % 2) if kind == "stripes" else (31 * x * x + 17 * y * y + 5 * x * y + 89 * c) % 256
    return Image.fromarray(levels.astype(np.uint8))


def check(path: str) -> float:
    """The largest difference from what golden.json tells, in levels of the image: 0 is right, and 2 is as good."""
    with open(path, encoding="utf-8") as file:
        golden = json.load(file)
    largest = 0.0
    for case in golden["cases"]:
        pixels = pixel_values(golden_image(case["kind"], case["width"], case["height"]))[0]
        for channel, row, column, value in case["pixel_values"]:
            largest = max(largest, abs(float(pixels[channel, row, column]) - value) / golden["level"])
    return largest


if __name__ == "__main__":
    if not sys.argv[1:]:
        difference = check(os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.json"))
        print(f"differs from golden.json by {difference:.3f} levels at most")
        sys.exit(difference > 2)
    for name in sys.argv[1:]:
        pixels = pixel_values(load(name))
        means = ", ".join(f"{mean:.4f}" for mean in pixels.mean(axis=(0, 2, 3)))
        print(f"{name}: pixel_values {pixels.shape}, float32, mean of the channels {means}")
