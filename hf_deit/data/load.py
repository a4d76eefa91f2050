"""Data sets from the Hub, from folders and from scikit-learn; checks of their columns, labels and files."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import datasets
import numpy as np
from PIL import Image

from ..errors import InputError, first_line
from .columns import (
    check_label_range,
    check_some_images,
    find_columns,
    label_names_of,
    standard_columns,
    with_class_labels,
)
from .folders import load_class_folders, load_images
from .streams import ImageStream

DIGITS = "sklearn:digits"
_NUM_DIGITS_HELD_OUT = 360


@dataclass
class ImageData:
    """Images to train on and to validate with, with the columns "image" and "label" and the same labels.

    Attributes:
        train: with an `Image` and a `ClassLabel` column, or a stream, or None if there are only unlabelled images.
        validation: with an `Image` and a `ClassLabel` column, or None.
        label_names: names of the labels by index.
        unlabeled: with the column "image" alone, or None.
    """

    train: datasets.Dataset | ImageStream | None
    validation: datasets.Dataset | None
    label_names: list[str]
    unlabeled: datasets.Dataset | None = None

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.label_names))

    def with_labels_kept(self, count: int | None, seed: int) -> "ImageData":
        """Keeps the labels of `count` training images, chosen by the seed and stratified; the rest becomes unlabelled.

        Raises:
            InputError: there are not so many, or too few for every class to have one.
        """
        if count is None:
            return self
        if not isinstance(self.train, datasets.Dataset):
            raise InputError("labels_kept needs labelled training images that are no stream")
        try:
            split = self.train.train_test_split(train_size=count, seed=seed, stratify_by_column="label")
        except ValueError as error:
            raise InputError(
                f"cannot keep the labels of {count} of the {len(self.train)} training images, stratified by label "
                f"({error}): give another --labels_kept"
            ) from error
        parts = [split["test"].select_columns("image"), *([self.unlabeled] if self.unlabeled is not None else [])]
        parts = [part.cast_column("image", datasets.Image()) for part in parts]  # whatever mode they are decoded to
        return replace(self, train=split["train"], unlabeled=datasets.concatenate_datasets(parts))


def load_digits(seed: int = 0) -> ImageData:
    """scikit-learn's handwritten digits: 1,797 greyscale images of 8 × 8 pixels, 360 of them held out.

    Args:
        seed: of the stratified split.
    """
    from sklearn.datasets import load_digits as load_sklearn_digits

    bunch = load_sklearn_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # scikit-learn gives 17 grey levels, 0 to 16
    names = [str(name) for name in bunch.target_names]
    everything = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": bunch.target.tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}),
    )
    split = everything.train_test_split(test_size=_NUM_DIGITS_HELD_OUT, seed=seed, stratify_by_column="label")
    return ImageData(split["train"], split["test"], names)


def load_data(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    validation_fraction: float = 0.1,
    validation_seed: int = 0,
    unlabeled_dir: str | None = None,
    unlabeled_dataset_name: str | None = None,
    unlabeled_dataset_revision: str | None = None,
    unlabeled_split: str = "train",
    streaming: bool = False,
    images_per_epoch: int | None = None,
    shuffle_buffer_size: int = 10_000,
    label_names: list[str] | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
) -> ImageData:
    """Loads and checks the images to train on and to validate with.

    Args:
        dataset_name: what `datasets.load_dataset` takes (a Hub id or a local path), or "sklearn:digits".
        dataset_config_name, dataset_revision: passed on to it.
        train_split: the split to train on.
        validation_split: the split to validate with; without it "validation", "valid" or "val" is taken, and if there
            is none, a part of the training split. (Never "test": checkpoints are chosen with it.)
        image_column_name, label_column_name: without them the only columns of type `Image` and `ClassLabel`.
        train_dir, validation_dir: instead of dataset_name, folders with one folder of images per class.
        validation_fraction: the part held out of the training split if there is no other, in (0, 1): seeded, and
            stratified by label.
        validation_seed: of that split; not the run's, so that runs are compared on the same images.
        unlabeled_dir, unlabeled_dataset_name, unlabeled_split: images without labels, beside the others or alone: a
            folder with images at any depth, or what `datasets.load_dataset` takes.
        streaming: read the training split as a stream; it then needs a validation split, and `ClassLabel` labels.
        images_per_epoch: views that make an epoch of a stream; by default as many as the data set says it has.
        shuffle_buffer_size: images to choose a stream's next one from.
        label_names: the labels if there are unlabelled images alone.
        on_bad_image: "stop" refuses folders with files that are no images, and data sets in which one of 64 images
            cannot be decoded; "skip" leaves them to the training, which counts them.

    Raises:
        InputError: the data cannot be used; the message says what was found and what to do.
    """
    unlabeled = _load_unlabeled(
        unlabeled_dir, unlabeled_dataset_name, unlabeled_dataset_revision, unlabeled_split, on_bad_image
    )
    if bool(dataset_name) == bool(train_dir) and (dataset_name or unlabeled is None):
        raise InputError(
            f"give either --dataset_name or --train_dir, got {dataset_name!r} and {train_dir!r}"
            + ("" if dataset_name else f'; "{DIGITS}" is a small data set that needs no download')
        )
    if validation_dir is not None and dataset_name:
        raise InputError(
            f"--validation_dir goes with --train_dir, or with unlabelled images alone, got {validation_dir!r} beside "
            f"the data set {dataset_name!r}: name a split of it with --validation_split, or leave both out"
        )
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction must lie in (0, 1), got {validation_fraction}")
    if not streaming and images_per_epoch is not None:
        raise InputError("images_per_epoch is for --streaming: other data sets know their length")
    if streaming and (train_dir or dataset_name in (None, DIGITS) or unlabeled is not None):
        raise InputError("streaming needs a --dataset_name for load_dataset, and no unlabelled images beside it")
    if not (dataset_name or train_dir):
        if label_names is None:
            raise InputError("images without labels alone need a teacher whose labels they get")
        validation = validation_dir and load_class_folders(validation_dir, on_bad_image, label_names)[0]
        return ImageData(None, validation or None, label_names, unlabeled)
    if streaming:
        return _load_stream(
            *(dataset_name, dataset_config_name, dataset_revision, train_split, validation_split),
            *(image_column_name, label_column_name, images_per_epoch, shuffle_buffer_size, on_bad_image),
        )
    if dataset_name == DIGITS:
        return replace(load_digits(), unlabeled=unlabeled)
    if train_dir is not None:
        train, names = load_class_folders(train_dir, on_bad_image)
        validation = None if validation_dir is None else load_class_folders(validation_dir, on_bad_image, names)[0]
    else:
        train, validation = _load_splits(
            dataset_name, dataset_config_name, dataset_revision, train_split, validation_split
        )
        image_column, label_column = find_columns(train, image_column_name, label_column_name)
        train = standard_columns(train, image_column, label_column)
        names = label_names_of(train)
        train = with_class_labels(train, names, train_split)
        if validation is not None:
            missing = {image_column, label_column} - set(validation.column_names)
            if missing:
                raise InputError(f"the validation split has no column {' and '.join(sorted(missing))}")
            validation = standard_columns(validation, image_column, label_column)
            validation = with_class_labels(validation, names, "validation")
        if on_bad_image == "stop":
            for part in filter(None, (train, validation)):
                check_some_images(part)
    for part, dataset in (("training", train), ("validation", validation)):
        if dataset is not None:
            check_label_range(dataset["label"][:], len(names), part)
    if validation is None:
        try:
            split = train.train_test_split(
                test_size=validation_fraction, seed=validation_seed, stratify_by_column="label"
            )
        except ValueError as error:
            raise InputError(
                f"cannot hold out {validation_fraction:g} of the {len(train)} training images, stratified by label "
                f"({error}): give more images, another --validation_fraction, or a validation set"
            ) from error
        train, validation = split["train"], split["test"]
    present = len(np.unique(np.asarray(train["label"][:])))
    if len(names) < 2 or present < 2:
        raise InputError(
            f"a classifier needs images of at least two classes to train on, got {len(names)} "
            f"({', '.join(names[:3])}) with images of {present}"
        )
    return ImageData(train, validation, names, unlabeled)


def _load_splits(
    name: str, config_name: str | None, revision: str | None, train_split: str, validation_split: str | None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    splits = _load_all_splits(name, config_name, revision)
    if validation_split is None:
        validation_split = next((split for split in ("validation", "valid", "val") if split in splits), None)
    train = _split_of(splits, train_split, name)
    validation = None if validation_split is None else _split_of(splits, validation_split, name)
    if validation_split == train_split:
        raise InputError(f"the validation split must not be the training split, got {train_split!r} for both")
    return train, validation


def _load_all_splits(name: str, config_name: str | None = None, revision: str | None = None) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(name, config_name, revision=revision)
    except (OSError, ValueError, RuntimeError, IndexError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"cannot load the data set {name!r}: {first_line(error)}. Expected a Hub id, a local path that "
            f'datasets.load_dataset takes, or "{DIGITS}"'
        ) from error


def _split_of(splits: datasets.DatasetDict, split: str, name: str) -> datasets.Dataset:
    if split not in splits:
        raise InputError(f"the data set {name!r} has no split {split!r}; it has {', '.join(splits)}")
    if len(splits[split]) == 0:
        raise InputError(f"the split {split!r} of the data set {name!r} is empty")
    return splits[split]


def _load_unlabeled(
    folder: str | None, dataset_name: str | None, revision: str | None, split: str, on_bad_image: str
) -> datasets.Dataset | None:
    """The column "image" alone of what is given, or None."""
    if folder is None and dataset_name is None:
        return None
    if folder is not None and dataset_name is not None:
        raise InputError(
            f"give either --unlabeled_dir or --unlabeled_dataset_name, got {folder!r} and {dataset_name!r}"
        )
    if dataset_name is not None:
        dataset = _split_of(_load_all_splits(dataset_name, revision=revision), split, dataset_name)
        columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        if len(columns) != 1:
            raise InputError(f"the unlabelled data set {dataset_name!r} must have one image column, got {columns}")
        dataset = dataset.select_columns(columns)
        dataset = dataset if columns == ["image"] else dataset.rename_column(columns[0], "image")
        if on_bad_image == "stop":
            check_some_images(dataset)
        return dataset
    return load_images(folder, on_bad_image)


def join_unlabeled(
    labeled: datasets.Dataset | None, unlabeled: datasets.Dataset, names: list[str]
) -> datasets.Dataset:
    """Labelled and unlabelled images in one data set; the label of the latter is None.

    Args:
        labeled: with an `Image` and a `ClassLabel` column, or None.
        unlabeled: with an `Image` column.
        names: of the labels.
    """
    columns = [name for name, feature in unlabeled.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        raise InputError(
            f"the unlabelled data set must have one image column, got {columns or list(unlabeled.features)}"
        )
    unlabeled = unlabeled.select_columns(columns)
    unlabeled = unlabeled if columns == ["image"] else unlabeled.rename_column(columns[0], "image")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    unlabeled = unlabeled.add_column("label", [None] * len(unlabeled), feature=features["label"])
    if labeled is None:
        return unlabeled
    labeled = standard_columns(labeled, *find_columns(labeled))
    labeled, unlabeled = (part if part.features == features else part.cast(features) for part in (labeled, unlabeled))
    return datasets.concatenate_datasets([labeled, unlabeled])


def _load_stream(
    name: str,
    config_name: str | None,
    revision: str | None,
    train_split: str,
    validation_split: str | None,
    image_column_name: str | None,
    label_column_name: str | None,
    images_per_epoch: int | None,
    shuffle_buffer_size: int,
    on_bad_image: str,
) -> ImageData:
    try:
        splits = datasets.load_dataset(name, config_name, revision=revision, streaming=True)
    except (OSError, ValueError, RuntimeError, IndexError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"cannot open the data set {name!r} as a stream: {first_line(error)}") from error
    if validation_split is None:
        validation_split = next((split for split in ("validation", "valid", "val") if split in splits), None)
    if train_split not in splits or validation_split not in splits or train_split == validation_split:
        raise InputError(
            f"a stream needs a training and another validation split, got {train_split!r} and {validation_split!r}; "
            f"{name!r} has {', '.join(splits)}"
        )
    stream = splits[train_split]
    if stream.features is None:
        stream = stream._resolve_features()
    image_column, label_column = find_columns(stream, image_column_name, label_column_name)
    if not isinstance(stream.features[label_column], datasets.ClassLabel):
        raise InputError(
            f"a stream's labels must be of type ClassLabel, as they cannot be counted first, got "
            f"{stream.features[label_column]}"
        )
    names = list(stream.features[label_column].names)
    if len(names) < 2:
        raise InputError(
            f"a classifier needs images of at least two classes to train on, got {len(names)} ({', '.join(names)})"
        )
    stream = standard_columns(stream, image_column, label_column)
    known = stream.info.splits[train_split].num_examples if stream.info.splits else None
    if images_per_epoch is None and not known:
        raise InputError(f"{name!r} does not say how many images it has: give --images_per_epoch")
    images_per_epoch = known if images_per_epoch is None else images_per_epoch
    train = ImageStream(stream, images_per_epoch, shuffle_buffer_size=shuffle_buffer_size)
    # The rows of the validation split are written once to the cache of datasets, encoded as they are.
    files = datasets.load_dataset_builder(name, config_name, revision=revision).config.data_files
    try:
        validation = datasets.Dataset.from_generator(
            _encoded_rows,
            features=splits[validation_split].features,
            gen_kwargs={
                "source": (name, config_name, revision, validation_split),
                # Changes with the files (their time, or the commit), so that others are not taken from the cache.
                "fingerprint": str([part.origin_metadata for part in (files or {}).values()]),
            },
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"cannot read the split {validation_split!r} of the data set {name!r} "
            f"({first_line(error.__cause__ or error)}): expected at least one row, with the columns "
            f"{image_column}, {label_column} of the split {train_split!r}"
        ) from error
    validation = with_class_labels(standard_columns(validation, image_column, label_column), names, "validation")
    check_label_range(validation["label"][:], len(names), "validation")
    if on_bad_image == "stop":
        check_some_images(validation)
    return ImageData(train, validation, names)


def _encoded_rows(source: tuple[str, str | None, str | None, str], fingerprint: str) -> Iterator[dict]:
    name, config_name, revision, split = source
    stream = datasets.load_dataset(name, config_name, revision=revision, split=split, streaming=True)
    for column, feature in stream.features.items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(column, datasets.Image(decode=False))
    yield from stream


@dataclass
class DataArguments:
    """Which images; see `hf_deit.data.load_data`."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id or local path for load_dataset, or sklearn:digits."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(default=None, metadata={"help": "Split to validate with."})
    image_column_name: str | None = field(default=None, metadata={"help": "If several columns hold images."})
    label_column_name: str | None = field(default=None, metadata={"help": "If the labels are no ClassLabel."})
    train_dir: str | None = field(default=None, metadata={"help": "Instead of a data set: one folder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, to validate with."})
    unlabeled_dir: str | None = field(
        default=None, metadata={"help": "Folder of images, at any depth, without labels: the teacher labels them."}
    )
    unlabeled_dataset_name: str | None = field(
        default=None, metadata={"help": "The same, as a Hub id or a local path for load_dataset."}
    )
    unlabeled_dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    unlabeled_split: str = field(default="train", metadata={"help": "Its split."})
    labels_kept: int | None = field(
        default=None,
        metadata={
            "help": "Treat all but so many training images, seeded and stratified, as unlabelled. Without a teacher "
            "the rest is left out."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read dataset_name as a stream; needs a validation split."}
    )
    images_per_epoch: int | None = field(
        default=None, metadata={"help": "Of a stream, whose length is not known: how many views make an epoch."}
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Of a stream: images to choose the next one from (encoded, in memory)."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Held out, seeded and stratified, if there is no validation split; in (0, 1)."}
    )
    validation_seed: int = field(default=0, metadata={"help": "Of that split; not the run's, to compare runs."})
