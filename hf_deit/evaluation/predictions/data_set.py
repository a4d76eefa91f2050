"""The images of a data set, of which a column holds the content, or the path."""

import os
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ...data.arguments import DIGITS
from ...data.columns import image_paths
from ...data.decoding import is_remote
from ...data.digits import load_digits
from ...data.splits import load_evaluation_split, load_image_file, split_names
from ...errors import InputError, shortlist
from ...hub.revisions import resolve_dataset_revision
from ...training.processes import on_every_process, on_main_process, once_per_machine
from ..images.images import EvaluationImages, without_place
from ..images.labels import Labels
from .archive import ARCHIVES, load_archive
from .arguments import PredictionArguments
from .file_list import DATA_FILES

_OPTIONS = ("dataset_config_name", "dataset_revision", "image_column_name")


class DataSetImages:
    """The images of a data set's split.

    Args:
        dataset: with the column "image".
        words: what they are.
    """

    columns = ("row", "path")

    def __init__(self, dataset: datasets.Dataset, words: str) -> None:
        unlabelled = Labels((), np.full(len(dataset), -1, np.int64))
        self._images = EvaluationImages(dataset, "image", unlabelled, {}, words)
        self._encoded = dataset.cast_column("image", datasets.Image(decode=False))
        self._paths = image_paths(dataset, "image")
        self.words = words

    def __len__(self) -> int:
        return len(self._images)

    @property
    def digest(self) -> str:
        """Of the images, in their order."""
        return self._images.digest_with_times

    def image(self, index: int) -> Image.Image:
        """An image as models see it.

        Raises:
            BadImageError: it cannot be decoded.
        """
        return self._images.image(index)

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        return self._images.name(index)

    def places(self, rows: range) -> list[tuple[Any, ...]]:
        """What tells users which images these are, by `columns`."""
        paths: Sequence[str | None] = self._paths.slice(rows.start, len(rows)).to_pylist()
        return [(row, path or "") for row, path in zip(rows, paths, strict=True)]

    def stored(self, index: int) -> tuple[str | None, bytes | None]:
        """The path of an image that is a file, or its content."""
        encoded = self._encoded[index]["image"] or {}
        path, content = encoded.get("path"), encoded.get("bytes")
        if content is None and path is not None and is_remote(path):
            with datasets.utils.file_utils.xopen(path, "rb") as file:
                content = file.read()
        return path, content


def load_data_set(name: str, arguments: PredictionArguments) -> DataSetImages:
    """Loads a split; all processes must call it. Labels that it has are left aside, and broken images stay.

    Args:
        name: a Hub id, a local folder or file, or sklearn:digits.
        arguments: say which split: by default "test" or, of a single one, that; of the digits the held-out ones.

    Raises:
        InputError: there is no such data set or split, or no column of images.
    """
    split, options = arguments.split, {option: getattr(arguments, option) for option in _OPTIONS}
    if name == DIGITS:
        refuse_options(arguments, DIGITS)
        data = load_digits()
        parts = {"validation": data.validation, "train": data.train}
        split = split or "validation"
        if split not in parts:
            raise InputError(f"{DIGITS} has no split {split!r}: it has {shortlist(parts)}")
        return DataSetImages(parts[split].select_columns("image"), f"images of the split {split} of {DIGITS}")
    if name.lower().endswith(DATA_FILES):
        if split not in (None, "train"):
            raise InputError(f"the file {name!r} is one split, got --split {split!r}: leave it out")
        is_archive = name.lower().endswith(ARCHIVES)
        refuse_options(arguments, f"the file {name!r}", _OPTIONS if is_archive else _OPTIONS[:2])
        column = arguments.image_column_name
        dataset = on_every_process(lambda: load_archive(name) if is_archive else load_image_file(name, column))
        return DataSetImages(dataset, f"images in {without_place(name)}")
    if os.path.lexists(name):
        refuse_options(arguments, f"the folder {name!r}", _OPTIONS[1:2])
    try:
        return _of_split(name, split, **options)
    except InputError as error:
        if os.path.lexists(name):
            raise
        raise InputError(f"there is no file or folder {name!r} here, and as a data set's name: {error}") from error


def _of_split(
    name: str,
    split: str | None,
    *,
    dataset_config_name: str | None,
    dataset_revision: str | None,
    image_column_name: str | None,
) -> DataSetImages:
    """The images of a split of a data set on the Hub, or of a local folder."""
    config, revision = dataset_config_name, dataset_revision
    commit = on_main_process(lambda: resolve_dataset_revision(name, revision)) or revision
    if split is None:
        known = split_names(name, config, commit)
        if "test" not in known and len(known) > 1:
            raise InputError(f"the data set {name!r} has the splits {shortlist(known)}: name one by --split")
        split = "test" if "test" in known else known[0]
    dataset, _ = load_evaluation_split(
        name,
        split,
        config_name=config,
        revision=commit,
        image_column_name=image_column_name,
        is_labelled=False,
        on_bad_image="skip",
        check_images="none",
        once_per_machine=once_per_machine,
    )
    return DataSetImages(dataset, f"images of the split {split} of {without_place(name)}")


def refuse_options(arguments: PredictionArguments, what: str, options: Sequence[str] = _OPTIONS) -> None:
    """Refuses options that say nothing of images like these.

    Args:
        what: the images are.

    Raises:
        InputError: names the first.
    """
    for option in options:
        if (value := getattr(arguments, option)) is not None:
            raise InputError(f"--{option} says nothing of {what}, got {value!r}: leave it out")
