"""Folders in the format of MNIST, which Fashion-MNIST and KMNIST share, as data sets with the splits train and test.

The files are train-images-idx3-ubyte and train-labels-idx1-ubyte, and the same of t10k, each perhaps compressed (.gz).
Format: yann.lecun.com/exdb/mnist. Names of Fashion-MNIST's labels: those of zalando-datasets/fashion_mnist on the Hub.
"""

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import datasets
import numpy as np

from ..errors import InputError, first_line

_PARTS = {"train": "train", "test": "t10k"}  # what a file's name begins with, by split
_KINDS = {"images": 3, "labels": 1}  # dimensions
_GZIP = b"\x1f\x8b"
_DIGITS = [str(digit) for digit in range(10)]
_FASHION = [
    *("T - shirt / top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]
# Fashion-MNIST is told by what its folder is called (torchvision's is FashionMNIST/raw), or by the labels that its
# files begin with.
_FASHION_FOLDER = re.compile(r"fashion[-_ ]?mnist[^/\\]*([/\\]raw)?$", re.IGNORECASE)
_FASHION_STARTS = {
    "train": bytes([9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9, 1, 0, 6, 4, 3, 1, 4, 8]),
    "test": bytes([9, 2, 1, 1, 6, 1, 4, 6, 5, 7, 4, 5, 7, 3, 4, 1, 2, 4, 8, 0, 2, 5, 7, 9]),
}


class _Pair(NamedTuple):
    """The paths of a split's two files; None where there is none."""

    images: str | None
    labels: str | None


def is_idx_folder(name: str) -> bool:
    """Whether a data set's name is that of a folder with files in MNIST's format."""
    return any(_find(name, part, kind) for part in _PARTS.values() for kind in _KINDS)


def load_idx_folder(folder: str) -> datasets.DatasetDict:
    """The splits train and test, as far as they are there, with the columns "image" (grey) and "label".

    They lie in the cache of datasets, as PGM, which is the pixels behind a line of text, and are mapped into memory.

    Raises:
        InputError: a file that is missing, damaged, of another format, or does not go with its fellow.
    """
    pairs = _pairs_in(folder)
    names = _label_names(folder, {split: _read(pair.labels, "labels") for split, pair in pairs.items()})
    return datasets.DatasetDict({split: _cached(split, pair, names) for split, pair in pairs.items()})


def _pairs_in(folder: str) -> dict[str, _Pair]:
    pairs = {}
    for split, part in _PARTS.items():
        pair = _Pair(*(_find(folder, part, kind) for kind in _KINDS))
        if (pair.images is None) != (pair.labels is None):
            present, missing = ("labels", "images") if pair.images is None else ("images", "labels")
            raise InputError(
                f"{folder!r} has {os.path.basename(getattr(pair, present))} without the {missing}: expected "
                f"{part}-{missing}-idx{_KINDS[missing]}-ubyte or the same with .gz beside it"
            )
        if pair.images is not None:
            pairs[split] = pair
    return pairs


def _find(folder: str, part: str, kind: str) -> str | None:
    """The path of a file that some write with a dot; of one and what it was unpacked from, that which is unpacked."""
    names = (f"{part}-{kind}{dash}idx{_KINDS[kind]}-ubyte{end}" for end in ("", ".gz") for dash in "-.")
    return next((path for name in names if os.path.isfile(path := os.path.join(folder, name))), None)


def _label_names(folder: str, labels: Mapping[str, np.ndarray]) -> list[str]:
    is_called_so = _FASHION_FOLDER.search(os.path.abspath(folder)) is not None
    begins_so = any(labels[split].tobytes().startswith(_FASHION_STARTS[split]) for split in labels)
    return _FASHION if is_called_so or begins_so else _DIGITS


def _cached(split: str, pair: _Pair, names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    # Others are not taken from the cache where the files have changed. No list: datasets would take each item of one
    # for a part of the data.
    stamps = tuple((state.st_size, state.st_mtime_ns) for state in map(os.stat, pair))
    try:
        return datasets.Dataset.from_generator(
            _rows,
            features=features,
            gen_kwargs={"pair": tuple(map(os.path.abspath, pair)), "stamps": stamps, "num_labels": len(names)},
            split=split,
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def _rows(pair: tuple[str, str], stamps: tuple[tuple[int, int], ...], num_labels: int) -> Iterator[dict]:
    images, labels = (_read(path, kind) for path, kind in zip(pair, _KINDS, strict=True))
    if len(images) != len(labels):
        raise InputError(
            f"{pair[0]!r} has {len(images)} images, but {pair[1]!r} has {len(labels)} labels: expected as many; "
            "take both from the same place"
        )
    outside = np.flatnonzero(labels >= num_labels)
    if len(outside):
        raise InputError(
            f"labels must lie in [0, {num_labels}), but number {outside[0]} in {pair[1]!r} is {labels[outside[0]]} "
            f"({len(outside)} such labels): mend or replace the file"
        )
    _, height, width = images.shape
    header = b"P5 %d %d 255\n" % (width, height)
    for image, label in zip(images, labels, strict=True):
        yield {"image": {"bytes": header + image.tobytes(), "path": None}, "label": int(label)}


def _read(path: str, kind: str) -> np.ndarray:
    """A file's unsigned bytes: images (N, height, width), or labels (N,).

    Raises:
        InputError: another file than its name says, one that ends early or does not end, or one without a row.
    """
    num_dimensions = _KINDS[kind]
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path!r} ({first_line(error)}): mend or replace the file") from error
    magic = bytes([0, 0, 8, num_dimensions])  # 8: unsigned bytes
    start = len(magic) + 4 * num_dimensions
    if not content.startswith(magic) or len(content) < start:
        raise InputError(
            f"{path!r} does not hold {kind} in MNIST's format: it begins with {content[:4].hex(' ') or 'nothing'}, "
            f"expected {magic.hex(' ')} and {num_dimensions} sizes: replace the file"
        )
    shape = tuple(map(int, np.frombuffer(content, ">u4", num_dimensions, offset=len(magic))))
    expected = start + int(np.prod(shape, dtype=object))
    if 0 in shape:
        raise InputError(f"{path!r} holds no {kind}: its sizes are {shape}; replace the file")
    if len(content) != expected:
        raise InputError(
            f"{path!r} is {'cut off' if len(content) < expected else 'too long'}: its sizes are {shape}, which "
            f"takes {expected} bytes, but it has {len(content)}; replace the file"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
