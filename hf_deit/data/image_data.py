"""The images of a run: labelled ones, unlabelled ones, and those to validate with."""

from dataclasses import dataclass, replace

import datasets
import numpy as np

from ..errors import InputError, shortlist
from ..models.class_names import unique_names
from .columns import find_columns, only_images, standard_columns, without_format
from .streams import ImageStream


@dataclass
class ImageData:
    """Images to train on and to validate with, with the same labels.

    Attributes:
        train: with the columns "image" and "label" of types `Image` and `ClassLabel`; or a stream; or None if there
            are only unlabelled images.
        validation: with the same columns, or None.
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
            split = train.train_test_split(train_size=count, seed=seed, stratify_by_column="label")
        except ValueError as error:
            raise InputError(
                f"cannot keep the labels of {count} of the {len(train)} training images, stratified by label "
                f"({why_not_stratified(error, train)}): give another --labels_kept"
            ) from error
        parts = [split["test"].select_columns("image")]
        if self.unlabeled is not None:
            parts.append(without_format(self.unlabeled))
        parts = [part.cast_column("image", datasets.Image()) for part in parts]  # whatever mode they are decoded to
        return replace(self, train=split["train"], unlabeled=datasets.concatenate_datasets(parts))


def why_not_stratified(error: ValueError, dataset: datasets.Dataset) -> str:
    """Why a data set with the columns "image" and "label" cannot be split: the error, or the classes of one image."""
    counts = np.bincount(np.asarray(dataset["label"][:]))
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
    unlabeled = unlabeled.add_column("label", [None] * len(unlabeled), feature=features["label"])
    if labeled is None:
        return unlabeled
    labeled = standard_columns(without_format(labeled), *find_columns(labeled))
    labeled, unlabeled = (part if part.features == features else part.cast(features) for part in (labeled, unlabeled))
    return datasets.concatenate_datasets([labeled, unlabeled])
