"""What a run's images are like, before any is loaded: how many they are, of how many classes, and of what size."""

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..data.arguments import DIGITS, DataArguments
from ..data.columns import stored_files
from ..data.digits import load_digits
from ..data.folders import list_class_folders, list_images
from ..data.parallel import call
from ..data.splits import load_image_split, load_splits
from ..errors import InputError, counted
from ..hub.looks import rows_of

_IMAGES_TO_MEASURE = 64
_UNCHECKED = {"on_bad_image": "skip", "check_images": "none", "once_per_machine": call}


@dataclass(frozen=True)
class ImageSurvey:
    """What is known of the images that a run will train on.

    Attributes:
        labelled: how many have a label, those among them that will be held out.
        unlabelled: how many others there are, which a teacher labels.
        num_classes: of the labels; 0 if that is not known.
        side: the shorter side of a typical one in pixels; None if that is not known.
    """

    labelled: int
    unlabelled: int = 0
    num_classes: int = 0
    side: int | None = None

    @property
    def total(self) -> int:
        """All of them."""
        return self.labelled + self.unlabelled

    def with_labels_kept(self, count: int | None) -> "ImageSurvey":
        """The same where all but so many labels are hidden, as `labels_kept` has it."""
        kept = self.labelled if count is None else min(count, self.labelled)
        return replace(self, labelled=kept, unlabelled=self.unlabelled + self.labelled - kept)

    def __str__(self) -> str:
        if not self.labelled:
            return f"{counted(self.unlabelled, 'image')} without labels"
        words = counted(self.labelled, "labelled image")
        if self.num_classes:
            classes = "one class" if self.num_classes == 1 else f"{self.num_classes:,} classes"
            words += f" of {classes} ({self.labelled / self.num_classes:,.0f} a class)"
        return words + (f" and {self.unlabelled:,} without labels" if self.unlabelled else "")


def survey_images(data_args: DataArguments) -> ImageSurvey | None:
    """Looks at the images to train on: lists folders, loads local data sets, asks the Hub how many rows others have.

    Of folders and local data sets the headers of a few images are read.

    Returns:
        None for a stream, and where it cannot be told: who loads the images says what is wrong with them.
    """
    if data_args.streaming:
        return None
    try:
        labelled, unlabelled = _labelled(data_args), _unlabelled(data_args)
    except InputError:
        return None
    if labelled is None or unlabelled is None or not labelled.total + unlabelled.total:
        return None
    side = labelled.side if labelled.total else unlabelled.side
    return replace(labelled, unlabelled=unlabelled.total, side=side).with_labels_kept(data_args.labels_kept)


def _labelled(data_args: DataArguments) -> ImageSurvey | None:
    name = data_args.dataset_name
    if data_args.train_dir is not None:
        classes, listed = list_class_folders(data_args.train_dir)
        count, side = _counted(listed)
        return ImageSurvey(count, num_classes=len(classes), side=side)
    if name is None:
        return ImageSurvey(0)
    if name != DIGITS and not os.path.exists(name):
        found = rows_of(name, data_args.train_split, data_args.dataset_config_name, data_args.dataset_revision)
        return found and ImageSurvey(found.count, num_classes=found.num_classes)
    data = load_digits() if name == DIGITS else load_splits(replace(data_args, test_split=None), **_UNCHECKED)
    return ImageSurvey(len(data.train), num_classes=len(data.label_names), side=_side_of_rows(data.train))


def _unlabelled(data_args: DataArguments) -> ImageSurvey | None:
    name, revision, split = (
        data_args.unlabeled_dataset_name,
        data_args.unlabeled_dataset_revision,
        data_args.unlabeled_split,
    )
    if data_args.unlabeled_dir is not None:
        count, side = _counted(list_images(data_args.unlabeled_dir))
        return ImageSurvey(0, count, side=side)
    if name is None:
        return ImageSurvey(0)
    if not os.path.exists(name):
        found = rows_of(name, split, revision=revision)
        return found and ImageSurvey(0, found.count)
    images = load_image_split(name, revision, split, **_UNCHECKED)
    return ImageSurvey(0, len(images), side=_side_of_rows(images))


def _counted(listed: Iterator[list[str]]) -> tuple[int, int | None]:
    """How many files are listed, and their typical side."""
    count, some = 0, []
    for paths in listed:
        count += len(paths)
        some.append(paths[:: max(1, len(paths) // _IMAGES_TO_MEASURE)])
    paths = [path for run in some for path in run]
    return count, _typical_side(paths[index] for index in _evenly(len(paths)))


def _side_of_rows(dataset: datasets.Dataset) -> int | None:
    return _typical_side(stored_files(dataset.select(_evenly(len(dataset))), "image"))


def _evenly(count: int) -> list[int]:
    return np.linspace(0, count - 1, num=min(count, _IMAGES_TO_MEASURE), dtype=int).tolist()


def _typical_side(files: Iterable[Any]) -> int | None:
    """The median of the images' shorter sides in pixels, of those whose headers can be read."""
    sides = []
    for file in files:
        try:
            with Image.open(file) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return round(statistics.median(sides)) if sides else None


def data_arguments(options: Mapping[str, Any]) -> DataArguments:
    """Which images options name, by argument; see `DataArguments`."""
    return DataArguments(**{name: options[name] for name in DataArguments.__dataclass_fields__})
