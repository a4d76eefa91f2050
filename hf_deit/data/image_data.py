"""The images of a run: labelled ones, unlabelled ones, and those to validate and to test with."""

import math
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pyarrow as pa
from datasets.utils.stratify import stratified_shuffle_split_generate_indices

from ..errors import InputError, shortlist
from ..models.class_names import unique_names
from .columns import find_columns, only_images, standard_columns, stored_column, without_format
from .streams import ImageStream


@dataclass
class ImageData:
    """Images to train on, to validate and to test with, with the same labels.

    Attributes:
        train: with the columns "image" and "label" of types `Image` and `ClassLabel`; or a stream; or None if there
            are only unlabelled images.
        validation: with the same columns, or None.
        label_names: names of the labels by index.
        unlabeled: with the column "image" alone, or None.
        test: with the columns of `train`, to be looked at once, at the end; or None.
    """

    train: datasets.Dataset | ImageStream | None
    validation: datasets.Dataset | None
    label_names: list[str]
    unlabeled: datasets.Dataset | None = None
    test: datasets.Dataset | None = None

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.label_names))

    def with_labels_kept(self, count: int | None, seed: int) -> "ImageData":
        """Keeps the labels of `count` training images, a stratified choice by the seed; the rest becomes unlabelled.

        Args:
            count: None keeps all.
            seed: of the choice.

        Raises:
            InputError: there are not so many, or too few for every class to have one.
        """
        if count is None:
            return self
        if not isinstance(self.train, datasets.Dataset):
            raise InputError("labels_kept needs labelled training images that are no stream")
        train = without_format(self.train)
        try:
            kept, others = split_by_label(train, train_size=count, seed=seed)
        except ValueError as error:
            raise InputError(
                f"cannot keep the labels of {count} of the {len(train)} training images, stratified by label "
                f"({why_not_stratified(error, train)}): give another --labels_kept"
            ) from error
        parts = [others.select_columns("image")]
        if self.unlabeled is not None:
            parts.append(without_format(self.unlabeled))
        parts = [part.cast_column("image", datasets.Image()) for part in parts]  # whatever mode they are decoded to
        return replace(self, train=kept, unlabeled=datasets.concatenate_datasets(parts))


def split_by_label(
    dataset: datasets.Dataset, *, seed: int, test_size: float | None = None, train_size: int | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The parts that `dataset.train_test_split(…, stratify_by_column="label")` gives, without going row by row.

    Args:
        dataset: with a column "label" in which all rows have one.
        seed: of the choice.
        test_size: of the second part, a fraction in (0, 1).
        train_size: of the first part, in rows; one of the two is given.

    Raises:
        ValueError: a part is too small for every class to have a row in it, or a class has a single row.
    """
    count = len(dataset)
    num_second = count - train_size if test_size is None else math.ceil(test_size * count)
    if not 0 < num_second < count:
        raise ValueError("nothing would be left of one part")
    labels = stored_column(dataset, "label").to_numpy()
    random = np.random.default_rng(seed)
    parts = next(stratified_shuffle_split_generate_indices(labels, count - num_second, num_second, random))
    first, second = (dataset.select(rows) for rows in parts)
    return first, second


def why_not_stratified(error: ValueError, dataset: datasets.Dataset) -> str:
    """Why a data set with the columns "image" and "label" cannot be split: the error, or the classes of one image."""
    counts = np.bincount(stored_column(dataset, "label").to_numpy())
    single = [dataset.features["label"].names[index] for index in np.flatnonzero(counts == 1)]
    if not single:
        return str(error)
    return f"of {shortlist(single)} there is a single image: give {'it' if len(single) == 1 else 'each'} at least two"


def join_unlabeled(
    labeled: datasets.Dataset | None, unlabeled: datasets.Dataset, names: list[str]
) -> datasets.Dataset:
    """Labelled and unlabelled images in one data set, in this order; the label of the latter is None.

    Args:
        labeled: with an `Image` and a `ClassLabel` column, or None.
        unlabeled: with an `Image` column; the others are left out.
        names: of the labels.

    Raises:
        InputError: there is no such column, or there are several.
    """
    names = list(unique_names(dict(enumerate(names))).values())  # as a teacher's may repeat, and ClassLabel's may not
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    unlabeled = only_images(without_format(unlabeled), "the unlabelled data set")
    unlabeled = _with_no_labels(unlabeled, features["label"])
    if labeled is None:
        return unlabeled
    labeled = standard_columns(without_format(labeled), *find_columns(labeled))
    labeled, unlabeled = (part if part.features == features else part.cast(features) for part in (labeled, unlabeled))
    return datasets.concatenate_datasets([labeled, unlabeled])


def _with_no_labels(dataset: datasets.Dataset, feature: datasets.ClassLabel) -> datasets.Dataset:
    """Adds a column "label" without values. A selection of rows stays one, which `add_column` would copy."""
    rows = datasets.Dataset(dataset.data, info=dataset.info.copy(), fingerprint=dataset._fingerprint)
    rows = rows.add_column("label", pa.nulls(len(rows), pa.int64()), feature=feature)
    return datasets.Dataset(rows.data, info=rows.info, indices_table=dataset._indices, fingerprint=rows._fingerprint)
