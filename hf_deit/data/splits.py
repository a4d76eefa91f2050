"""Data sets by name, as `datasets.load_dataset` takes it: their splits as a whole, or as a stream."""

import os
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
    has_label_column,
    label_names_of,
    loose_label_names,
    only_images,
    standard_columns,
    stored_column,
    with_class_labels,
)
from .idx import is_idx_folder, load_idx_folder
from .image_data import ImageData
from .parallel import OncePerMachine
from .streams import READING_ERRORS, ImageStream


def load_splits(data_args: DataArguments, **checks: Any) -> ImageData:
    """The training split, and those to validate and test with if there are any, with labels by the former's names.

    No other split is looked at.

    Args:
        **checks: on_bad_image, check_images, once_per_machine; see `hf_deit.data.load.load_data`.

    Raises:
        InputError: no such data set, split or column, labels that are none, or images that cannot be decoded.
    """
    name, train_split = data_args.dataset_name, data_args.train_split
    splits = _load_all_splits(name, data_args.dataset_config_name, data_args.dataset_revision)
    others = {"validation": validation_split_of(data_args, splits), "test": data_args.test_split}
    others = {part: split for part, split in others.items() if split is not None}
    train = _split_of(splits, train_split, name)
    found = {part: _split_of(splits, split, name) for part, split in others.items()}
    _check_different(train_split, others)
    columns = find_columns(train, data_args.image_column_name, data_args.label_column_name)
    train = standard_columns(train, *columns)
    names = label_names_of(train)
    train = with_class_labels(train, names, train_split)
    for part, dataset in found.items():
        missing = set(columns) - set(dataset.column_names)
        if missing:
            raise InputError(f"the {part} split has no column {' and '.join(sorted(missing))}")
        found[part] = with_class_labels(standard_columns(dataset, *columns), names, part)
    _check_splits({train_split: train, **{others[part]: dataset for part, dataset in found.items()}}, name, **checks)
    return ImageData(train, found.get("validation"), names, test=found.get("test"))


def _check_different(train_split: str, others: Mapping[str, str]) -> None:
    """Refuses a split that is named for two things; `others` are the names by what they are for."""
    named = {train_split: "training"}
    for part, split in others.items():
        if split in named:
            raise InputError(f"the {part} split must not be the {named[split]} split, got {split!r} for both")
        named[split] = part


def load_evaluation_split(
    name: str,
    split: str,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    is_labelled: bool | None = None,
    **checks: Any,
) -> tuple[datasets.Dataset, list[str] | None]:
    """One split to evaluate on, with the column "image" and, if it has labels, "label", of whatever type.

    Args:
        is_labelled: whether to look for labels; None for where there are any.
        **checks: see `load_splits`.

    Returns:
        The rows, of which some, or all, may lack a label, and the names of the labels, by index; None without any.

    Raises:
        InputError: no such data set, split or column, or images that cannot be decoded.
    """
    alone = _split_alone(name, split, config_name, revision)
    splits = _load_all_splits(name, config_name, revision) if alone is None else {split: alone}
    dataset = _split_of(splits, split, name)
    if is_labelled is None:
        is_labelled = label_column_name is not None or has_label_column(dataset)
    names = None
    if is_labelled:
        columns = find_columns(dataset, image_column_name, label_column_name)
        if alone is not None and not isinstance(dataset.features[columns[1]], datasets.ClassLabel):
            splits = _load_all_splits(name, config_name, revision)  # the others may have more labels
        names = loose_label_names(
            standard_columns(part, *columns)
            for part in (dataset, *splits.values())
            if set(columns) <= set(part.column_names)
        )
        dataset = standard_columns(dataset, *columns)
        if not names:  # no row has a label
            dataset, names = dataset.select_columns("image"), None
    elif image_column_name is None:
        dataset = only_images(dataset, f"the data set {name!r}")
    else:
        image_column, _ = find_columns(dataset, image_column_name, image_column_name)
        dataset = only_images(dataset.select_columns(image_column), f"the data set {name!r}")
    _check_splits({split: dataset}, name, **checks)
    return dataset, names


def split_names(name: str, config_name: str | None = None, revision: str | None = None) -> list[str]:
    """The splits of a data set, which is loaded for it where its files do not tell.

    Raises:
        InputError: no such data set.
    """
    return list(_files_of_splits(name, config_name, revision) or _load_all_splits(name, config_name, revision))


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


def load_image_file(file: str, image_column_name: str | None = None) -> datasets.Dataset:
    """The images in a parquet or arrow file, with the column "image" alone.

    Args:
        file: its path, which ends with .parquet or .arrow.
        image_column_name: if several columns hold images.

    Raises:
        InputError: it cannot be read, or has no or several columns of images.
    """
    try:
        kind = os.path.splitext(file)[1][1:].lower()
        dataset = datasets.load_dataset(kind, data_files=file, split="train")
    except READING_ERRORS as error:
        raise InputError(f"cannot read the images in {file!r}: {_cause_of(error)}") from error
    if image_column_name is not None:
        image_column, _ = find_columns(dataset, image_column_name, image_column_name)
        dataset = dataset.select_columns(image_column)
    return only_images(dataset, f"the file {file!r}")


def open_stream(data_args: DataArguments, **checks: Any) -> ImageData:
    """The training split as a stream, and those to validate and test with, which are read to the end.

    Args:
        **checks: of the latter; see `load_splits`.

    Raises:
        InputError: no such data set, splits or columns; labels that are no `ClassLabel`, or of one class; a length
            that is not known; images to validate or test with that cannot be used.
    """
    name, train_split = data_args.dataset_name, data_args.train_split
    if is_idx_folder(name):
        raise InputError(f"{name!r} is in MNIST's format, which is no stream: leave out --streaming")
    try:
        splits = datasets.load_dataset(
            name, data_args.dataset_config_name, revision=data_args.dataset_revision, streaming=True
        )
    except READING_ERRORS as error:
        raise InputError(f"cannot open the data set {name!r} as a stream: {_cause_of(error)}") from error
    validation_split = validation_split_of(data_args, splits)
    if train_split not in splits or validation_split not in splits or train_split == validation_split:
        raise InputError(
            f"a stream needs a training and another validation split, got {train_split!r} and {validation_split!r}; "
            f"{name!r} has {', '.join(splits)}"
        )
    others = {"validation": validation_split, **({"test": data_args.test_split} if data_args.test_split else {})}
    _check_different(train_split, others)
    if data_args.test_split is not None and data_args.test_split not in splits:
        raise _no_split(data_args.test_split, splits, name)
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
    found = {}
    for part, split in others.items():
        expected = f"the columns {', '.join(columns)} of the split {train_split!r}"
        source = (name, data_args.dataset_config_name, data_args.dataset_revision, split)
        dataset = _read_to_the_end(source, splits[split].features, expected)
        found[part] = with_class_labels(standard_columns(dataset, *columns), names, part)
        check_label_range(stored_column(found[part], "label"), len(names), part)
    _check_splits({others[part]: dataset for part, dataset in found.items()}, name, **checks)
    return ImageData(train, found["validation"], names, test=found.get("test"))


def _load_all_splits(name: str, config_name: str | None = None, revision: str | None = None) -> datasets.DatasetDict:
    try:
        if is_idx_folder(name):
            if config_name is not None:
                raise InputError(
                    f"{name!r} is in MNIST's format and has no configurations: leave out --dataset_config_name, got "
                    f"{config_name!r}"
                )
            return load_idx_folder(name)
        return datasets.load_dataset(name, config_name, revision=revision)
    except InputError:
        raise
    except READING_ERRORS as error:
        raise InputError(
            f"cannot load the data set {name!r}: {_cause_of(error)}. Expected a Hub id, a local path that "
            f'datasets.load_dataset takes, or "{DIGITS}"'
        ) from error


def _files_of_splits(name: str, config_name: str | None, revision: str | None) -> dict[str, Any]:
    """The files of each split of a data set whose images stand in them; empty of others, or if that is not known."""
    if is_idx_folder(name):
        return {}
    try:
        builder = datasets.load_dataset_builder(name, config_name, revision=revision)
    except READING_ERRORS:  # the cause is told by who loads it
        return {}
    return dict(builder.config.data_files or {}) if builder.name == "parquet" else {}


def _split_alone(name: str, split: str, config_name: str | None, revision: str | None) -> datasets.Dataset | None:
    """A split without the others, which `load_dataset` would fetch, too; None where all are to be loaded.

    That is where they lie in the cache already, as after a training, or cannot be told apart before.

    Raises:
        InputError: there is no such split.
    """
    files = _files_of_splits(name, config_name, revision)
    if len(files) < 2:
        return None
    if split not in files:
        raise _no_split(split, files, name)
    builder = datasets.load_dataset_builder(name, config_name, revision=revision)
    if os.path.isdir(builder.cache_dir):
        return None
    try:
        stream = datasets.load_dataset(name, config_name, revision=revision, split=split, streaming=True)
        features = stream.features or stream._resolve_features().features
        return _read_to_the_end((name, config_name, revision, split), features)
    except (*READING_ERRORS, InputError):  # the cause is told by who loads it
        return None


def _cause_of(error: Exception) -> str:
    """What load_dataset stumbled over, which it tells as the cause of "an error occurred"."""
    cause = error.__cause__ or error
    if isinstance(cause, UnicodeEncodeError):
        return f"the name {cause.object!r} is not UTF-8, rename it"
    return first_line(cause)


def validation_split_of(data_args: DataArguments, splits: Collection[str]) -> str | None:
    """The split that a run is validated with: the one that is named, or the first with a usual name; or None."""
    if data_args.validation_split is not None:
        return data_args.validation_split
    return next((split for split in ("validation", "valid", "val") if split in splits), None)


def _split_of(splits: Mapping[str, datasets.Dataset], split: str, name: str) -> datasets.Dataset:
    if split not in splits:
        raise _no_split(split, splits, name)
    if len(splits[split]) == 0:
        raise InputError(f"the split {split!r} of the data set {name!r} is empty")
    return splits[split]


def _no_split(split: str, splits: Collection[str], name: str) -> InputError:
    near = did_you_mean(split, splits)
    return InputError(f"the data set {name!r} has no split {split!r}; it has {', '.join(splits)}{near}")


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
    source: tuple[str, str | None, str | None, str], features: datasets.Features | None, expected: str = "images"
) -> datasets.Dataset:
    """A split that is streamed, written once to the cache of datasets; its images stay encoded as they are.

    Args:
        source: name, configuration and revision of a data set, and the split.
        features: of its rows, if they are known.
        expected: what is in them, for the message.

    Raises:
        InputError: it cannot be read.
    """
    name, config_name, revision, split = source
    files = datasets.load_dataset_builder(name, config_name, revision=revision).config.data_files
    try:
        return datasets.Dataset.from_generator(
            _encoded_rows,
            features=features,
            gen_kwargs={
                "source": source,
                # Changes with the files (their time, or the commit), so that others are not taken from the cache.
                "fingerprint": str([part.origin_metadata for part in (files or {}).values()]),
            },
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"cannot read the split {split!r} of the data set {name!r} "
            f"({_cause_of(error)}): expected at least one row, with {expected}"
        ) from error


def _encoded_rows(source: tuple[str, str | None, str | None, str], fingerprint: str) -> Iterator[dict]:
    name, config_name, revision, split = source
    stream = datasets.load_dataset(name, config_name, revision=revision, split=split, streaming=True)
    for column, feature in stream.features.items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(column, datasets.Image(decode=False))
    yield from stream
