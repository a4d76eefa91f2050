"""Data sets by name, as `datasets.load_dataset` takes it: their splits as a whole, or as a stream."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import datasets

from ..errors import InputError, did_you_mean, first_line
from ..models.class_names import check_distinct
from .arguments import DIGITS, DataArguments
from .columns import (
    check_label_range,
    check_some_images,
    check_stored_images,
    find_columns,
    label_names_of,
    only_images,
    standard_columns,
    stored_column,
    with_class_labels,
)
from .image_data import ImageData
from .parallel import OncePerMachine
from .streams import READING_ERRORS, ImageStream


def load_splits(data_args: DataArguments, **checks: Any) -> ImageData:
    """The training split, and the validation split if there is one, with labels by the training split's names.

    Args:
        **checks: on_bad_image, check_images, once_per_machine; see `hf_deit.data.load.load_data`.

    Raises:
        InputError: no such data set, split or column, labels that are none, or images that cannot be decoded.
    """
    name, train_split = data_args.dataset_name, data_args.train_split
    splits = _load_all_splits(name, data_args.dataset_config_name, data_args.dataset_revision)
    validation_split = _validation_split(data_args, splits)
    train = _split_of(splits, train_split, name)
    validation = None if validation_split is None else _split_of(splits, validation_split, name)
    if validation_split == train_split:
        raise InputError(f"the validation split must not be the training split, got {train_split!r} for both")
    columns = find_columns(train, data_args.image_column_name, data_args.label_column_name)
    train = standard_columns(train, *columns)
    names = label_names_of(train)
    train = with_class_labels(train, names, train_split)
    if validation is not None:
        missing = set(columns) - set(validation.column_names)
        if missing:
            raise InputError(f"the validation split has no column {' and '.join(sorted(missing))}")
        validation = with_class_labels(standard_columns(validation, *columns), names, "validation")
    parts = {train_split: train} if validation is None else {train_split: train, validation_split: validation}
    _check_splits(parts, name, **checks)
    return ImageData(train, validation, names)


def load_image_split(name: str, revision: str | None, split: str, **checks: Any) -> datasets.Dataset:
    """One split with the column "image" alone.

    Args:
        **checks: see `load_splits`.

    Raises:
        InputError: no such data set or split, no or several columns of images, or images that cannot be decoded.
    """
    dataset = _split_of(_load_all_splits(name, revision=revision), split, name)
    dataset = only_images(dataset, f"the unlabelled data set {name!r}")
    _check_splits({split: dataset}, name, **checks)
    return dataset


def open_stream(data_args: DataArguments, **checks: Any) -> ImageData:
    """The training split as a stream, and the validation split, which is read to the end.

    Args:
        **checks: of the latter; see `load_splits`.

    Raises:
        InputError: no such data set, splits or columns; labels that are no `ClassLabel`, or of one class; a length
            that is not known; images to validate with that cannot be used.
    """
    name, train_split = data_args.dataset_name, data_args.train_split
    try:
        splits = datasets.load_dataset(
            name, data_args.dataset_config_name, revision=data_args.dataset_revision, streaming=True
        )
    except READING_ERRORS as error:
        raise InputError(f"cannot open the data set {name!r} as a stream: {_cause_of(error)}") from error
    validation_split = _validation_split(data_args, splits)
    if train_split not in splits or validation_split not in splits or train_split == validation_split:
        raise InputError(
            f"a stream needs a training and another validation split, got {train_split!r} and {validation_split!r}; "
            f"{name!r} has {', '.join(splits)}"
        )
    stream = splits[train_split]
    if stream.features is None:
        stream = stream._resolve_features()
    columns = find_columns(stream, data_args.image_column_name, data_args.label_column_name)
    names = _label_names_of_stream(stream, columns[1])
    train = ImageStream(
        standard_columns(stream, *columns),
        _images_per_epoch(data_args, stream),
        shuffle_buffer_size=data_args.shuffle_buffer_size,
    )
    validation = _read_to_the_end(data_args, validation_split, splits[validation_split].features, columns)
    validation = with_class_labels(standard_columns(validation, *columns), names, "validation")
    check_label_range(stored_column(validation, "label"), len(names), "validation")
    _check_splits({validation_split: validation}, name, **checks)
    return ImageData(train, validation, names)


def _load_all_splits(name: str, config_name: str | None = None, revision: str | None = None) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(name, config_name, revision=revision)
    except READING_ERRORS as error:
        raise InputError(
            f"cannot load the data set {name!r}: {_cause_of(error)}. Expected a Hub id, a local path that "
            f'datasets.load_dataset takes, or "{DIGITS}"'
        ) from error


def _cause_of(error: Exception) -> str:
    """What load_dataset stumbled over, which it tells as the cause of "an error occurred"."""
    cause = error.__cause__ or error
    if isinstance(cause, UnicodeEncodeError):
        return f"the name {cause.object!r} is not UTF-8, rename it"
    return first_line(cause)


def _validation_split(data_args: DataArguments, splits: Collection[str]) -> str | None:
    if data_args.validation_split is not None:
        return data_args.validation_split
    return next((split for split in ("validation", "valid", "val") if split in splits), None)


def _split_of(splits: Mapping[str, datasets.Dataset], split: str, name: str) -> datasets.Dataset:
    if split not in splits:
        near = did_you_mean(split, splits)
        raise InputError(f"the data set {name!r} has no split {split!r}; it has {', '.join(splits)}{near}")
    if len(splits[split]) == 0:
        raise InputError(f"the split {split!r} of the data set {name!r} is empty")
    return splits[split]


def _check_splits(
    splits: Mapping[str, datasets.Dataset],
    name: str,
    *,
    on_bad_image: str,
    check_images: str,
    once_per_machine: OncePerMachine,
) -> None:
    """Refuses images that cannot be used: by the headers of all, and by decoding a few; or as `load_data` is told.

    Of all splits at once: another machine may have fewer, and is waited for as often.
    """

    def check() -> None:
        for split, dataset in splits.items():
            where = f"images of the split {split!r} of {name!r}"
            check_stored_images(dataset, "image", where, on_bad_image, check_images)
            if on_bad_image == "stop" and check_images == "headers":
                check_some_images(dataset)

    once_per_machine(check)


def _label_names_of_stream(stream: datasets.IterableDataset, label_column: str) -> list[str]:
    feature = stream.features[label_column]
    if not isinstance(feature, datasets.ClassLabel):
        raise InputError(
            f"a stream's labels must be of type ClassLabel, as they cannot be counted first, got {feature}"
        )
    if len(feature.names) < 2:
        raise InputError(
            f"a classifier needs images of at least two classes to train on, got {len(feature.names)} "
            f"({', '.join(feature.names)})"
        )
    check_distinct(feature.names, "the label column")
    return list(feature.names)


def _images_per_epoch(data_args: DataArguments, stream: datasets.IterableDataset) -> int:
    if data_args.images_per_epoch is not None:
        return data_args.images_per_epoch
    splits = stream.info.splits
    if not splits or not splits[data_args.train_split].num_examples:
        raise InputError(f"{data_args.dataset_name!r} does not say how many images it has: give --images_per_epoch")
    return splits[data_args.train_split].num_examples


def _read_to_the_end(
    data_args: DataArguments, split: str, features: datasets.Features | None, columns: tuple[str, str]
) -> datasets.Dataset:
    """A split that is streamed, written once to the cache of datasets; its images stay encoded as they are."""
    name, config_name, revision = data_args.dataset_name, data_args.dataset_config_name, data_args.dataset_revision
    files = datasets.load_dataset_builder(name, config_name, revision=revision).config.data_files
    try:
        return datasets.Dataset.from_generator(
            _encoded_rows,
            features=features,
            gen_kwargs={
                "source": (name, config_name, revision, split),
                # Changes with the files (their time, or the commit), so that others are not taken from the cache.
                "fingerprint": str([part.origin_metadata for part in (files or {}).values()]),
            },
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"cannot read the split {split!r} of the data set {name!r} "
            f"({_cause_of(error)}): expected at least one row, with the columns "
            f"{', '.join(columns)} of the split {data_args.train_split!r}"
        ) from error


def _encoded_rows(source: tuple[str, str | None, str | None, str], fingerprint: str) -> Iterator[dict]:
    name, config_name, revision, split = source
    stream = datasets.load_dataset(name, config_name, revision=revision, split=split, streaming=True)
    for column, feature in stream.features.items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(column, datasets.Image(decode=False))
    yield from stream
