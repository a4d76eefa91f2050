"""The image and the label column of a data set: found, brought under one name and type, read and checked."""

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError, did_you_mean, shortlist
from ..models.class_names import check_distinct, composed, which_of
from .decoding import NO_IMAGE, ImageDecoder, fault_of_header, fault_of_pixels, is_remote, refuse_faults
from .parallel import in_chunks

_DataSet = TypeVar("_DataSet", datasets.Dataset, datasets.IterableDataset)
_StoredImage = tuple[int, pa.Buffer | None, str | None]  # row, content, path
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
    values = _values_of(dataset)
    if None in values:
        raise InputError("some images have no label (None) in the label column")
    if any(isinstance(value, int) and value < 0 for value in values):
        raise InputError(f"labels must not be negative, got {min(values)} (on the Hub -1 often stands for no label)")
    return _sorted_names(values)


def loose_label_names(parts: Iterable[datasets.Dataset]) -> list[str]:
    """The names of the labels in the columns "label" of a data set's parts; see `label_names_of`.

    Rows may lack a label (None, or a negative one), and a part may lack classes that another has.
    """
    first, *others = parts
    if isinstance(first.features["label"], datasets.ClassLabel):
        return label_names_of(first)
    values = set().union(*map(_values_of, (first, *others))) - {None}
    return _sorted_names({value for value in values if not (isinstance(value, int) and value < 0)})


def _values_of(dataset: datasets.Dataset) -> set[Any]:
    """The different values in the column "label".

    Raises:
        InputError: they are neither integers nor strings.
    """
    feature = dataset.features["label"]
    if not isinstance(feature, datasets.Value) or feature.dtype.startswith("float"):
        raise InputError(f"labels must be class labels, integers or strings, got {feature}")
    return set(stored_column(dataset, "label").unique().to_pylist())


def _sorted_names(values: set[Any]) -> list[str]:
    are_texts = all(isinstance(value, str) for value in values)
    names = [str(value) for value in sorted(values, key=composed if are_texts else None)]
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
    labels = stored_column(dataset, "label")
    present = labels.unique()
    if isinstance(feature, datasets.ClassLabel):
        check_label_range(labels, len(feature.names), split)
        values = [feature.names[label] for label in present.to_pylist()]
    else:
        values = [str(label) for label in present.to_pylist()]
    index = {composed(name): i for i, name in enumerate(names)}
    unknown = sorted(value for value in values if composed(value) not in index)
    if unknown:
        raise InputError(
            f"the {split} split has labels that the training split has not: {shortlist(unknown)}"
            f"{which_of(unknown[0], names)}"
        )
    class_label = datasets.ClassLabel(names=names)
    index_of_present = np.array([index[composed(value)] for value in values])
    column = index_of_present[pc.index_in(labels, value_set=present).to_numpy()]
    return dataset.remove_columns("label").add_column("label", column, feature=class_label)


def stored_column(dataset: datasets.Dataset, column: str) -> pa.ChunkedArray:
    """A column as it is stored, in the order of the rows; Arrow's null where there is no value."""
    stored = dataset.data.column(column)
    # datasets would fetch the rows of a selection one by one.
    return stored if dataset._indices is None else stored.take(dataset._indices.column(0))


def image_paths(dataset: datasets.Dataset, image_column: str) -> pa.ChunkedArray:
    """The paths of all rows' images, as they are stored; Arrow's null where an image has none. None is copied."""
    paths = pc.struct_field(dataset.data.column(image_column), "path")
    return paths if dataset._indices is None else paths.take(dataset._indices.column(0))


def labels_of(dataset: datasets.Dataset, label_column: str) -> np.ndarray:
    """The labels of all rows, (N,) int64; `IGNORED_LABEL` where there is none."""
    return stored_column(dataset, label_column).cast(pa.int64()).fill_null(IGNORED_LABEL).to_numpy()


def loose_labels(dataset: datasets.Dataset, names: list[str], split: str) -> np.ndarray:
    """The labels of all rows, (N,) int64, of which some, or all, may be missing (None, or negative): these are -1.

    Args:
        dataset: its column "label" holds class labels, strings or integers.
        names: of the labels, by index; what is no class label is matched by name.
        split: what to call the data set in the message.

    Raises:
        InputError: a class label that is none of the names.
    """
    if not isinstance(dataset.features["label"], datasets.ClassLabel):
        column = stored_column(dataset, "label")
        present = column.unique()
        index = {composed(name): i for i, name in enumerate(names)}
        values = [-1 if value is None else index.get(composed(value), -1) for value in present.to_pylist()]
        index_of_present = np.array(values, np.int64)
        return index_of_present[pc.index_in(column, value_set=present).to_numpy(zero_copy_only=False)]
    labels = labels_of(dataset, "label")
    is_labelled = labels >= 0
    outside = np.flatnonzero(labels >= len(names))
    if len(outside):
        raise InputError(
            f"labels must lie in [0, {len(names)}), but row {outside[0]} of the {split} set has {labels[outside[0]]} "
            f"({len(outside)} such rows)"
        )
    return np.where(is_labelled, labels, -1)


def check_label_range(column: pa.ChunkedArray, num_labels: int, part: str) -> None:
    """Checks that every row has a label in [0, num_labels).

    Args:
        column: the labels, from `stored_column`.
        num_labels: how many there are to choose from.
        part: what to call the data set in the message.

    Raises:
        InputError: a row has none, or another; the first such row is named. Or there are no rows.
    """
    if not len(column):
        raise InputError(f"the {part} set is empty")
    if column.null_count:
        raise InputError(f"row {pc.index(column.is_null(), True)} of the {part} set has no label (None)")
    labels = column.to_numpy()
    bad = np.flatnonzero((labels < 0) | (labels >= num_labels))
    if len(bad):
        raise InputError(
            f"labels must lie in [0, {num_labels}), but row {bad[0]} of the {part} set has {labels[bad[0]]} "
            f"({len(bad)} such rows; test splits on the Hub often have -1 for all)"
        )


def check_stored_images(
    dataset: datasets.Dataset, image_column: str, where: str, on_bad_image: str, how: str = "headers"
) -> None:
    """Looks into all images, so that what cannot be used is refused before training.

    Args:
        dataset: has a column of type `Image`; what is stored elsewhere on the network is left to the training.
        image_column: the name of that column.
        where: what to call the images in the message.
        on_bad_image: "stop" refuses any that cannot be used, "skip" only all of them.
        how: "headers" reads those, "all" decodes the pixels, "none" does nothing.

    Raises:
        InputError: with the rows and files.
    """
    if how == "none":
        return
    faults, computes = {}, how == "all"

    def look(rows: list[_StoredImage]) -> list[tuple[str, tuple[str, str] | None]]:
        return [
            (f"row {row}{f' ({path})' if path else ''}", _fault_of(content, path, in_pixels=computes))
            for row, content, path in rows
        ]

    # Few at once, as the images of a data set whose rows were shuffled are copied.
    rows, settings = _stored_images(dataset, image_column), {"total": len(dataset), "title": "checking"}
    for found in in_chunks(look, rows, size=16, computes=computes, **settings):
        faults.update((name, fault) for name, fault in found if fault is not None)
        if on_bad_image == "skip" and not computes and any(fault is None for _, fault in found):
            return
    refuse_faults(faults, len(dataset), where, on_bad_image, tells=computes)


def _fault_of(content: pa.Buffer | None, path: str | None, *, in_pixels: bool) -> tuple[str, str] | None:
    """See `fault_of_header` and `fault_of_pixels`."""
    fault_of = fault_of_pixels if in_pixels else fault_of_header
    if content is not None:
        return fault_of(io.BytesIO(content) if in_pixels else io.BufferedReader(_ViewOfBytes(content)))
    if path is None:
        return NO_IMAGE, ""
    return None if is_remote(path) else fault_of(path)


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


def stored_files(dataset: datasets.Dataset, column: str) -> Iterator[io.BytesIO | str]:
    """The file of each row's image: its content, or its path; rows without one are passed over."""
    for _, content, path in _stored_images(dataset, column):
        if content is not None or path is not None:
            yield io.BytesIO(content) if content is not None else path


def check_some_images(dataset: datasets.Dataset, at_most: int = 64) -> None:
    """Decodes a few images, evenly spaced, so that a wholly unusable data set is refused before training.

    Raises:
        BadImageError: one of them is missing or broken.
    """
    decode = ImageDecoder(dataset, "image")
    for index in np.linspace(0, len(dataset) - 1, num=min(at_most, len(dataset)), dtype=int):
        decode(int(index))
