"""The image and the label column of a data set: found, brought under one name and type, read and checked."""

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import datasets
import numpy as np
import pyarrow as pa

from ..errors import InputError, did_you_mean, shortlist
from ..models.class_names import check_distinct, composed, which_of
from .decoding import NO_IMAGE, ImageDecoder, fault_of_header, is_remote, refuse_faults

_DataSet = TypeVar("_DataSet", datasets.Dataset, datasets.IterableDataset)
_StoredImage = tuple[int, pa.Buffer | None, str | None]  # row, content, path
_THREADS = 8  # files may lie on a slow disk

_TEXT = ("string", "large_string")
IGNORED_LABEL = -100  # of an image without label; torch's cross-entropy passes it over


def without_format(dataset: _DataSet) -> _DataSet:
    """The data set as it is stored: what `with_format` makes of its rows is left aside.

    Raises:
        InputError: it has a transform, from `with_transform` or `set_transform`, which cannot be left aside.
    """
    if isinstance(dataset, datasets.IterableDataset):
        return dataset if dataset._formatting is None else dataset.with_format(None)
    form = dataset.format
    if form["type"] == "custom":
        raise InputError(
            "the data set has a transform (with_transform or set_transform): views are made from the images as they "
            "are stored, and it would do nothing. Take it off with reset_format() and let the training arguments "
            "augment, or store what it makes of the images with map()"
        )
    is_plain = form["type"] is None and form["columns"] == dataset.column_names
    return dataset if is_plain else dataset.with_format(None)


def find_columns(
    dataset: datasets.Dataset | datasets.IterableDataset,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
) -> tuple[str, str]:
    """The names of the image and the label column: those given, or the only ones of type `Image` and `ClassLabel`.

    Raises:
        InputError: there is no such column, none of the type, or several.
    """

    def find(given: str | None, feature_type: type, option: str) -> str:
        listing = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in dataset.features.items())
        if given is not None:
            if given not in dataset.features:
                near = did_you_mean(given, dataset.features)
                raise InputError(f"no column {given!r} in the data set; it has {listing}{near}")
            if feature_type is datasets.Image and not isinstance(dataset.features[given], datasets.Image):
                raise InputError(f"column {given!r} holds no images; the data set has {listing}")
            return given
        candidates = [name for name, feature in dataset.features.items() if isinstance(feature, feature_type)]
        if len(candidates) != 1:
            raise InputError(
                f"the data set has {len(candidates) or 'no'} columns of type {feature_type.__name__}: it has "
                f"{listing}. Name the right one with --{option}"
            )
        return candidates[0]

    return (
        find(image_column_name, datasets.Image, "image_column_name"),
        find(label_column_name, datasets.ClassLabel, "label_column_name"),
    )


def has_label_column(dataset: datasets.Dataset) -> bool:
    """Whether a data set has labels: a column of type `ClassLabel`, or one of another type that is named so."""
    return any(
        isinstance(feature, datasets.ClassLabel) or name.lower() in ("label", "labels")
        for name, feature in dataset.features.items()
    )


def standard_columns(dataset: _DataSet, image_column: str, label_column: str) -> _DataSet:
    """The two columns alone, under the names "image" and "label"."""
    dataset = dataset.select_columns([image_column, label_column])
    if isinstance(dataset, datasets.IterableDataset):
        # It renames, be it nothing, by map(), which makes numbers of a folder's labels, and would decode the images.
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    return dataset.rename_columns(
        {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    )


def only_images(dataset: datasets.Dataset, owner: str) -> datasets.Dataset:
    """The only column of type `Image` alone, under the name "image".

    Args:
        dataset: with any columns.
        owner: what to call the data set in the message.

    Raises:
        InputError: there is no such column, or there are several.
    """
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        raise InputError(f"{owner} must have one image column, got {columns or list(dataset.features)}")
    dataset = dataset.select_columns(columns)
    return dataset if columns == ["image"] else dataset.rename_column(columns[0], "image")


def label_names_of(dataset: datasets.Dataset) -> list[str]:
    """The names of the labels in the column "label", by index.

    Those of a `ClassLabel` are its own. Of a column of strings or integers each different value is a label; they are
    sorted, numbers by their size.

    Raises:
        InputError: values of another type, missing or negative ones.
    """
    feature = dataset.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        check_distinct(feature.names, "the label column")
        return list(feature.names)
    if not isinstance(feature, datasets.Value) or feature.dtype.startswith("float"):
        raise InputError(f"labels must be class labels, integers or strings, got {feature}")
    values = set(dataset["label"])
    if None in values:
        raise InputError("some images have no label (None) in the label column")
    if any(isinstance(value, int) and value < 0 for value in values):
        raise InputError(f"labels must not be negative, got {min(values)} (on the Hub -1 often stands for no label)")
    names = [str(value) for value in sorted(values, key=composed if feature.dtype in _TEXT else None)]
    check_distinct(names, "the label column")
    return names


def with_class_labels(dataset: datasets.Dataset, names: list[str], split: str) -> datasets.Dataset:
    """Gives the column "label" the type `ClassLabel` with these names; what it held before is matched by name.

    Args:
        dataset: its labels may be a `ClassLabel` with the names in another order, strings or integers.
        names: of the labels, by index.
        split: what to call the data set in the message.

    Raises:
        InputError: a label that is none of the names, or none at all.
    """
    feature = dataset.features["label"]
    if isinstance(feature, datasets.ClassLabel) and list(feature.names) == names:
        return dataset
    labels = np.asarray(dataset["label"][:])
    if isinstance(feature, datasets.ClassLabel):
        check_label_range(dataset["label"][:], len(feature.names), split)
        values = [feature.names[label] for label in labels]
    else:
        values = [str(label) for label in labels]
    index = {composed(name): i for i, name in enumerate(names)}
    spelt = {value: composed(value) for value in set(values)}
    unknown = sorted(value for value, name in spelt.items() if name not in index)
    if unknown:
        raise InputError(
            f"the {split} split has labels that the training split has not: {shortlist(unknown)}"
            f"{which_of(unknown[0], names)}"
        )
    class_label = datasets.ClassLabel(names=names)
    column = [index[spelt[value]] for value in values]
    return dataset.remove_columns("label").add_column("label", column, feature=class_label)


def labels_of(dataset: datasets.Dataset, label_column: str) -> np.ndarray:
    """The labels of all rows, (N,) int64; `IGNORED_LABEL` where there is none."""
    rows = dataset.select_columns(label_column)
    chunks = (rows[start : start + 10_000][label_column] for start in range(0, len(rows), 10_000))
    labels = (IGNORED_LABEL if label is None else label for chunk in chunks for label in chunk)
    return np.fromiter(labels, dtype=np.int64, count=len(rows))


def check_label_range(column: Iterable[int | None], num_labels: int, part: str) -> None:
    """Checks that every row has a label in [0, num_labels).

    Args:
        column: the labels.
        num_labels: how many there are to choose from.
        part: what to call the data set in the message.

    Raises:
        InputError: a row has none, or another; the first such row is named. Or there are no rows.
    """
    values = list(column)
    if not values:
        raise InputError(f"the {part} set is empty")
    if None in values:
        raise InputError(f"row {values.index(None)} of the {part} set has no label (None)")
    labels = np.asarray(values)
    bad = np.flatnonzero((labels < 0) | (labels >= num_labels))
    if len(bad):
        raise InputError(
            f"labels must lie in [0, {num_labels}), but row {bad[0]} of the {part} set has {labels[bad[0]]} "
            f"({len(bad)} such rows; test splits on the Hub often have -1 for all)"
        )


def check_images(dataset: datasets.Dataset, image_column: str, where: str, on_bad_image: str) -> None:
    """Reads the headers of all images, so that what cannot be used is refused before training.

    Args:
        dataset: has a column of type `Image`; what is stored elsewhere on the network is left to the training.
        image_column: the name of that column.
        where: what to call the images in the message.
        on_bad_image: "stop" refuses any that cannot be used, "skip" only all of them.

    Raises:
        InputError: with the rows and files.
    """
    faults, rows = {}, _stored_images(dataset, image_column)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        # Window by window, as the images of a data set whose rows were shuffled are copied.
        while window := list(itertools.islice(rows, _THREADS * 16)):
            parts = [window[start : start + 16] for start in range(0, len(window), 16)]
            found = [fault for part in pool.map(_faults_of, parts) for fault in part]
            for (row, _, path), fault in zip(window, found, strict=True):
                if fault is not None:
                    faults[f"row {row}{f' ({path})' if path else ''}"] = fault
            if on_bad_image == "skip" and None in found:
                return
    refuse_faults(faults, len(dataset), where, on_bad_image)


def _faults_of(rows: list[_StoredImage]) -> list[tuple[str, str] | None]:
    """See `fault_of_header`."""

    def fault_of(content: pa.Buffer | None, path: str | None) -> tuple[str, str] | None:
        if content is not None:
            return fault_of_header(io.BufferedReader(_ViewOfBytes(content)))
        if path is None:
            return NO_IMAGE, ""
        return None if is_remote(path) else fault_of_header(path)

    return [fault_of(content, path) for _, content, path in rows]


class _ViewOfBytes(io.RawIOBase):
    """Bytes as a file, without a copy: of a data set on the disk only what is read of a header is fetched from there.

    Arrow's own BufferReader cannot seek behind the end, nor read lines, as Pillow does.
    """

    def __init__(self, content: pa.Buffer) -> None:
        self._content, self._position = memoryview(content).cast("B"), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:
        part = self._content[self._position : self._position + len(target)]
        target[: len(part)] = part
        self._position += len(part)
        return len(part)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._content)}[whence]
        self._position = max(start + offset, 0)  # as BytesIO has it
        return self._position


def _stored_images(dataset: datasets.Dataset, column: str) -> Iterator[_StoredImage]:
    """Each row's number with the content of its image, which is not copied, or its path."""
    row = 0
    for table in dataset.select_columns(column).with_format("arrow").iter(batch_size=64):
        for chunk in table[column].chunks:
            fields = dict(zip((field.name for field in chunk.type), chunk.flatten(), strict=True))
            for content, path in zip(fields["bytes"], fields["path"], strict=True):
                yield row, content.as_buffer(), path.as_py()
                row += 1


def check_some_images(dataset: datasets.Dataset, at_most: int = 64) -> None:
    """Decodes a few images, evenly spaced, so that a wholly unusable data set is refused before training.

    Raises:
        BadImageError: one of them is missing or broken.
    """
    decode = ImageDecoder(dataset, "image")
    for index in np.linspace(0, len(dataset) - 1, num=min(at_most, len(dataset)), dtype=int):
        decode(int(index))
