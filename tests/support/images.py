"""Pictures that show what they are, and data sets of them as their users keep them."""

import functools
import io
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_deit.data.arguments import DataArguments
from hf_deit.data.digits import load_digits
from hf_deit.data.image_data import ImageData
from hf_deit.data.load import load_data
from hf_deit.errors import InputError

NAMES = ["ape", "bee", "cat"]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})


def load(
    *, label_names: list[str] | None = None, on_bad_image: str = "stop", check_images: str = "headers", **fields: Any
) -> ImageData:
    """`load_data` with the fields of `DataArguments`."""
    return load_data(
        DataArguments(**fields), label_names=label_names, on_bad_image=on_bad_image, check_images=check_images
    )


def refusal(**fields: Any) -> str:
    """What `load` refuses the fields with."""
    with pytest.raises(InputError) as error:
        load(**fields)
    return str(error.value)


@functools.cache
def few_digits(num_train: int = 96) -> ImageData:
    data = load_digits()
    return ImageData(data.train.select(range(num_train)), data.validation.select(range(40)), data.label_names)


def picture(label: int, number: int) -> Image.Image:
    """A plain picture: its red is the class, its green and blue are the number."""
    return Image.new("RGB", (12, 10), (100 + label, number // 256, number % 256))


def identity(image: Image.Image) -> tuple[int, int]:
    """The class and the number that a picture shows."""
    red, green, blue = image.convert("RGB").getpixel((5, 5))
    return red - 100, green * 256 + blue


def identities(dataset: datasets.Dataset) -> list[tuple[int, int]]:
    return [identity(image) for image in dataset["image"]]


def encoded(image: Image.Image, path: str | None = None) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": path}


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8))


def textured(count: int) -> datasets.Dataset:
    """Images of noise, each unlike the others, with labels 0, 1, 2, 0, …"""
    images = [encoded(noise(40, 50, seed)) for seed in range(count)]
    return datasets.Dataset.from_dict({"image": images, "label": [i % 3 for i in range(count)]}, features=FEATURES)


def table(
    labels: Sequence[Any],
    names: list[str] = NAMES,
    *,
    classes: Iterable[int] | None = None,
    numbers: Iterable[int] | None = None,
    image: str = "image",
    label: str = "label",
    feature: Any = None,
) -> datasets.Dataset:
    """A data set whose row i shows classes[i] (by default labels[i]) and numbers[i] (by default i).

    The columns are called `image` and `label`, and labels are of the type `feature`, by default classes with `names`.
    """
    classes = labels if classes is None else classes
    numbers = range(len(labels)) if numbers is None else numbers
    shown = [encoded(picture(c, n), f"{n}.png") for c, n in zip(classes, numbers, strict=True)]
    features = datasets.Features({image: datasets.Image(), label: feature or datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({image: shown, label: list(labels)}, features=features)


def broken(data: datasets.Dataset, indices: Iterable[int]) -> datasets.Dataset:
    """The data set with some of its images cut off."""
    columns = data.cast_column("image", datasets.Image(decode=False)).to_dict()
    for index in indices:
        columns["image"][index]["bytes"] = columns["image"][index]["bytes"][:40]
    return datasets.Dataset.from_dict(columns, features=data.features)


def parquet(folder: Path, num_shards: int = 1, *, card: str = "", **splits: datasets.Dataset) -> str:
    """A data set as on the Hub: a file per split, `num_shards` of the split "train", and a card that lists them."""
    folder.mkdir(parents=True)
    for split, data in splits.items():
        count = num_shards if split == "train" else 1
        for index in range(count):
            data.shard(count, index).to_parquet(str(folder / f"{split}-{index:05}-of-{count:05}.parquet"))
    files = "".join(f"  - split: {split}\n    path: {split}-*\n" for split in splits)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}{card}---\n")
    return str(folder)


def class_folders(folder: Path, counts: dict[str, int], *, first: int = 0) -> str:
    """So many pictures in the folder of each class, numbered from `first` on."""
    number = first
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            picture(NAMES.index(name) if name in NAMES else 9, number).save(folder / name / f"{number}.png")
            number += 1
    return str(folder)


def random_states() -> tuple:
    """The state of every global generator."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, keys.tolist(), *rest, torch.get_rng_state().tolist()
