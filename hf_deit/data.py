"""Data sets from the Hub, from folders and from scikit-learn; checks of their columns, labels and files."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
from PIL import Image
from torchvision.datasets.folder import find_classes, make_dataset

from .errors import InputError, first_line
from .view_dataset import BAD_IMAGE_ERRORS, ImageDecoder

DIGITS = "sklearn:digits"
_NUM_DIGITS_HELD_OUT = 360


@dataclass
class ImageData:
    """A training and a validation set with the columns "image" and "label" and the same labels.

    Attributes:
        train, validation: with an `Image` and a `ClassLabel` column.
        label_names: names of the labels by index.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    label_names: list[str]

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.label_names))


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
        on_bad_image: "stop" refuses folders with files that are no images, and data sets in which one of 64 images
            cannot be decoded; "skip" leaves them to the training, which counts them.

    Raises:
        InputError: the data cannot be used; the message says what was found and what to do.
    """
    if bool(dataset_name) == bool(train_dir):
        raise InputError(
            f"give either --dataset_name or --train_dir, got {dataset_name!r} and {train_dir!r}"
            + ("" if dataset_name else f'; "{DIGITS}" is a small data set that needs no download')
        )
    if validation_dir is not None and train_dir is None:
        raise InputError("--validation_dir needs --train_dir")
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction must lie in (0, 1), got {validation_fraction}")
    if dataset_name == DIGITS:
        return load_digits()
    if train_dir is not None:
        train, names = _load_class_folders(train_dir, on_bad_image)
        validation = None if validation_dir is None else _load_class_folders(validation_dir, on_bad_image, names)[0]
    else:
        train, validation = _load_splits(
            dataset_name, dataset_config_name, dataset_revision, train_split, validation_split
        )
        image_column, label_column = find_columns(train, image_column_name, label_column_name)
        train = _standard_columns(train, image_column, label_column)
        names = _label_names(train)
        train = _with_class_labels(train, names, train_split)
        if validation is not None:
            missing = {image_column, label_column} - set(validation.column_names)
            if missing:
                raise InputError(f"the validation split has no column {' and '.join(sorted(missing))}")
            validation = _standard_columns(validation, image_column, label_column)
            validation = _with_class_labels(validation, names, "validation")
        if on_bad_image == "stop":
            for part in filter(None, (train, validation)):
                _check_some_images(part)
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
    present = np.unique(np.asarray(train["label"][:]))
    if len(names) < 2 or len(present) < 2:
        raise InputError(
            f"a classifier needs images of at least two classes to train on, got {len(names)} "
            f"({', '.join(names[:3])}) with images of {len(present)}"
        )
    return ImageData(train, validation, names)


def find_columns(
    dataset: datasets.Dataset, image_column_name: str | None = None, label_column_name: str | None = None
) -> tuple[str, str]:
    """The names of the image and label columns: those given, or the only ones of type `Image` and `ClassLabel`.

    Raises:
        InputError: no such column, none of the type, or several.
    """

    def find(given: str | None, feature_type: type, option: str) -> str:
        listing = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in dataset.features.items())
        if given is not None:
            if given not in dataset.features:
                raise InputError(f"no column {given!r} in the data set; it has {listing}")
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


def _load_splits(
    name: str, config_name: str | None, revision: str | None, train_split: str, validation_split: str | None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    try:
        splits = datasets.load_dataset(name, config_name, revision=revision)
    except (OSError, ValueError, RuntimeError, IndexError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"cannot load the data set {name!r}: {first_line(error)}. Expected a Hub id, a local path that "
            f'datasets.load_dataset takes, or "{DIGITS}"'
        ) from error
    if validation_split is None:
        validation_split = next((split for split in ("validation", "valid", "val") if split in splits), None)
    for split in filter(None, (train_split, validation_split)):
        if split not in splits:
            raise InputError(f"the data set {name!r} has no split {split!r}; it has {', '.join(splits)}")
        if len(splits[split]) == 0:
            raise InputError(f"the split {split!r} of the data set {name!r} is empty")
    if validation_split == train_split:
        raise InputError(f"the validation split must not be the training split, got {train_split!r} for both")
    return splits[train_split], splits[validation_split] if validation_split else None


def _standard_columns(dataset: datasets.Dataset, image_column: str, label_column: str) -> datasets.Dataset:
    dataset = dataset.select_columns([image_column, label_column])
    return dataset.rename_columns(
        {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    )


def _label_names(dataset: datasets.Dataset) -> list[str]:
    feature = dataset.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if not isinstance(feature, datasets.Value) or feature.dtype.startswith("float"):
        raise InputError(f"labels must be class labels, integers or strings, got {feature}")
    values = set(dataset["label"])
    if None in values:
        raise InputError("some images have no label (None) in the label column")
    if any(isinstance(value, int) and value < 0 for value in values):
        raise InputError(f"labels must not be negative, got {min(values)} (on the Hub -1 often stands for no label)")
    return [str(value) for value in sorted(values)]


def _with_class_labels(dataset: datasets.Dataset, names: list[str], split: str) -> datasets.Dataset:
    """Gives the "label" column the type `ClassLabel` with these names, whatever type and order it had."""
    feature = dataset.features["label"]
    if isinstance(feature, datasets.ClassLabel) and list(feature.names) == names:
        return dataset
    labels = np.asarray(dataset["label"][:])
    if isinstance(feature, datasets.ClassLabel):
        check_label_range(dataset["label"][:], len(feature.names), split)
        values = [feature.names[label] for label in labels]
    else:
        values = [str(label) for label in labels]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InputError(
            f"the {split} split has labels that the training split has not: {', '.join(unknown[:5])}"
            f"{', …' if len(unknown) > 5 else ''}"
        )
    index = {name: i for i, name in enumerate(names)}
    class_label = datasets.ClassLabel(names=names)
    column = [index[value] for value in values]
    return dataset.remove_columns("label").add_column("label", column, feature=class_label)


def check_label_range(column: Iterable[int | None], num_labels: int, part: str) -> None:
    """Refuses labels outside of [0, num_labels) and missing ones, naming the first such row of the `part` set."""
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


def _load_class_folders(
    folder: str, on_bad_image: str, names: list[str] | None = None
) -> tuple[datasets.Dataset, list[str]]:
    """A data set of the files in `folder`/class name/…, with the labels of `names` or of the folders found.

    Files and folders whose name starts with a dot are none of the data set's.
    """

    def is_hidden(path: str) -> bool:
        return any(part.startswith(".") for part in Path(path).relative_to(folder).parts)

    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder!r}: expected one with a folder of images per class")
    try:
        found = [name for name in find_classes(folder)[0] if not name.startswith(".")]
        if not found:
            raise FileNotFoundError
    except FileNotFoundError as error:
        raise InputError(f"{folder!r} has no folders in it: expected one folder of images per class") from error
    if names is not None:
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise InputError(f"{folder!r} has classes that the training folder has not: {', '.join(unknown[:5])}")
    class_to_index = {name: index for index, name in enumerate(names or found) if name in found}
    try:
        samples = make_dataset(folder, class_to_index, is_valid_file=lambda path: not is_hidden(path))
    except FileNotFoundError as error:
        empty = [name for name in class_to_index if not any(os.scandir(os.path.join(folder, name)))]
        raise InputError(
            f"class folders without images in {folder!r}: {', '.join(empty) or first_line(error)}. Fill or remove them"
        ) from error
    names = names or found
    paths, labels = (list(column) for column in zip(*samples, strict=True))
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        bad = [path for path in pool.map(_path_unless_image, paths, chunksize=64) if path]
    if len(bad) == len(paths) or (bad and on_bad_image == "stop"):
        raise InputError(
            f"{len(bad)} of the {len(paths)} files in {folder!r} {'is' if len(bad) == 1 else 'are'} no image that "
            f"Pillow can open: {', '.join(bad[:5])}{', …' if len(bad) > 5 else ''}. Remove or mend them, "
            "or pass --on_bad_image skip"
        )
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features), names


def _path_unless_image(path: str) -> str | None:
    try:
        with Image.open(path):  # reads the header only
            return None
    except BAD_IMAGE_ERRORS:
        return path


def _check_some_images(dataset: datasets.Dataset, at_most: int = 64) -> None:
    """Decodes a few images, evenly spaced, so that a wholly unusable data set is refused before training."""
    decode = ImageDecoder(dataset, "image")
    for index in np.linspace(0, len(dataset) - 1, num=min(at_most, len(dataset)), dtype=int):
        decode(int(index))
