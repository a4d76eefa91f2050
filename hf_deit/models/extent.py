"""Whether what a checkpoint's small files state can be, before memory and time are spent on what they ask for."""

import copy
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
)

from ..errors import InputError, counted

LARGEST_IMAGE = 4096  # pixels of an edge; a batch of them is a gigabyte
# The largest that there are have a hundredth of it.
_MOST = {"layers": 2_000, "labels": 2_000_000, "any": 2**24}
_OF_LAYERS = re.compile(r"(^|_)(depths?|n_layer|layers|blocks|stages|repeats)$")  # counts, in lists of the parts'
_OF_LABELS = ("num_labels", "num_classes")
_OF_IMAGES = ("image_size", "input_size", "img_size", "crop_size", "pad_size", "size")
_RATIOS = ("crop_pct", "crop_ratio")
_STATISTICS = ("image_mean", "image_std", "mean", "std")
_WEIGHTS = (".safetensors", ".bin")


def check_extent(
    name_or_path: str | os.PathLike[str], config: PreTrainedConfig, *, is_zero_shot: bool = False
) -> None:
    """Refuses a checkpoint whose configuration asks for far more than its weights can be.

    No weight is allocated. What else may be wrong, loading says.

    Args:
        name_or_path: a Hub id or a folder.
        config: of it, from `load_config`: making a model follows what leads to code.
        is_zero_shot: whether it is loaded with its text tower, and not as a classifier.

    Raises:
        InputError: in a folder, many times more weights than its files hold, elsewhere more than this machine's
            memory.
    """
    try:
        known = (
            MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING
            if is_zero_shot
            else MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
        )
        found = known[type(config)]
        with torch.device("meta"):
            model = (found[0] if isinstance(found, tuple) else found)(copy.deepcopy(config))
        wanted = sum(parameter.numel() for parameter in model.parameters())
    except Exception:  # of any kind: loading it says what is wrong
        return
    if os.path.isdir(name_or_path):
        there = sum(
            entry.stat().st_size
            for entry in os.scandir(name_or_path)
            if entry.name.endswith(_WEIGHTS) and entry.is_file()
        )
        if there and wanted > 4 * there + 10_000_000:
            raise InputError(
                f"config.json of {os.fspath(name_or_path)!r} wants {wanted:,} weights, and its files have "
                f"{there:,} bytes: they are not of one model"
            )
    elif 4 * wanted > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise InputError(
            f"{os.fspath(name_or_path)!r} wants {4 * wanted / 1e9:,.0f} GB of weights, and this machine has "
            f"{memory / 1e9:,.0f} GB of memory: take a smaller model"
        )


def check_numbers(stated: Mapping[str, Any], where: str) -> None:
    """Refuses sizes and counts in a checkpoint's JSON that no model has.

    Args:
        stated: what a config.json or preprocessor_config.json holds.
        where: subject of the message.

    Raises:
        InputError: names the first of them.
    """
    for name, number in _numbers(stated, "", 0):
        if _OF_LAYERS.search(name):
            most, kind = _MOST["layers"], "layers"
        elif name in _OF_LABELS:
            most, kind = _MOST["labels"], "labels"
        elif name in _OF_IMAGES:
            most, kind = LARGEST_IMAGE, "pixels of an edge"
        else:
            most, kind = _MOST["any"], "of anything"
        if number > most:
            raise InputError(
                f"{where} states {name} {number:g}, which no model has: expected at most {most:,} ({kind})"
            )


def _numbers(value: Any, name: str, depth: int) -> Iterator[tuple[str, float]]:
    """The numbers in a value of JSON, each with the name that it stands under. Labels by index are none."""
    if isinstance(value, bool) or depth > 6:
        return
    if isinstance(value, int | float):
        if isinstance(value, int) or (math.isfinite(value) and value > _MOST["any"]):
            yield name, value
    elif isinstance(value, list | tuple) and _OF_LAYERS.search(name):
        yield name, sum(number for number in value if isinstance(number, int | float))
    elif isinstance(value, list | tuple):
        for item in value[:1000]:
            yield from _numbers(item, name, depth + 1)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("id2label", "label2id"):
                # {"height": …} belongs to the size that it stands in.
                yield from _numbers(item, name if name in _OF_IMAGES else str(key), depth + 1)


def check_preprocessing(stated: Any, where: str) -> None:
    """Refuses what an image processor cannot be told, and what would have it make enormous images.

    Args:
        stated: what a preprocessor_config.json, or timm's pretrained_cfg, holds.
        where: subject of the message.

    Raises:
        InputError: names what is wrong.
    """
    if not isinstance(stated, Mapping):
        raise InputError(f"{where} must hold an object, got {type(stated).__name__}")
    check_numbers(stated, where)
    for name in _STATISTICS:
        value = stated.get(name)
        numbers = value if isinstance(value, list | tuple) else [value]
        is_well = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
        if value is not None and not (is_well and len(numbers) in (1, 3)):
            raise InputError(f"{where} states {name} {value!r}: expected three numbers, one for each channel")
    patches = [stated.get(name) for name in ("max_num_patches", "patch_size")]
    if all(isinstance(number, int) for number in patches) and patches[0] * patches[1] ** 2 > LARGEST_IMAGE**2:
        raise InputError(
            f"{where} states {patches[0]:,} patches of {patches[1]:,} pixels: expected images of at most "
            f"{counted(LARGEST_IMAGE, 'pixel')} an edge"
        )
    edges = [number for name, number in _numbers(stated, "", 0) if name in _OF_IMAGES]
    for name in _RATIOS:
        ratio = stated.get(name)
        if ratio is None:
            continue
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise InputError(f"{where} states {name} {ratio!r}: expected a number in (0, 1]")
        if max(edges, default=0) / ratio > LARGEST_IMAGE:
            raise InputError(
                f"{where} states {name} {ratio:g}, by which images would be resized to {max(edges) / ratio:,.0f} "
                f"pixels: expected at most {counted(LARGEST_IMAGE, 'pixel')}"
            )
