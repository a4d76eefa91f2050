"""The images that models are evaluated on: found, checked, and with their labels."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow.compute as pc
from accelerate import PartialState
from PIL import Image
from transformers.utils import logging

from ...data.arguments import DIGITS
from ...data.columns import image_paths, labels_of, loose_labels, without_format
from ...data.decoding import ImageDecoder
from ...data.digits import load_digits
from ...data.folders import has_folders, load_class_folders, load_images
from ...data.parallel import OncePerMachine
from ...data.splits import load_evaluation_split
from ...errors import InputError, counted, not_one_of
from ...hub.revisions import resolve_dataset_revision
from ...labels.identity import data_fingerprint
from ...models.class_names import are_unnamed, composed
from ...models.teacher import load_labels
from ...training.processes import on_main_process
from ...training.processes import once_per_machine as by_one_process_of_each_machine
from .label_files import has_synsets, labels_from, read_label_file
from .label_sets import (
    LABEL_SETS,
    imagenet_classes,
    imagenet_indices,
    numbers_in,
    read_class_indices,
    refuse_other_classes,
)
from .labels import Labels

logger = logging.get_logger(__name__)

_IMAGENET = 1000  # classes
_ROWS = 10_000  # that are looked at at once


@dataclass(frozen=True)
class EvaluationImages:
    """N images with their labels, which are decoded one by one where they are needed.

    Attributes:
        dataset: their rows, with a column of images.
        image_column: its name.
        labels: of these rows.
        source: where they come from, of JSON's types: "name", "kind" ("folder", "digits", "local" or "hub"), "config",
            "split", "revision", "num_images", …
        words: the same for people: "360 images, held out of train of sklearn:digits".
        class_indices: (K,) int64, which of a model's outputs each class is, where its names do not tell; else None.
        rows: (N,) int64, where these rows stood before others were left out; None if none were.
    """

    dataset: datasets.Dataset
    image_column: str
    labels: Labels
    source: dict[str, Any]
    words: str
    class_indices: np.ndarray | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def _decoder(self) -> ImageDecoder:
        return ImageDecoder(self.dataset, self.image_column)

    def image(self, index: int) -> Image.Image:
        """An image as models see it: upright, in RGB, white where it is transparent.

        Raises:
            BadImageError: it cannot be decoded.
        """
        return self._decoder(index)

    def row(self, index: int) -> int:
        """Where an image stood before others were left out."""
        return index if self.rows is None else int(self.rows[index])

    def index_of(self, row: int) -> int | None:
        """Where an image stands since others were left out: None if it is one of these, or there is none."""
        found = np.flatnonzero(np.arange(len(self)) == row if self.rows is None else self.rows == row)
        return int(found[0]) if len(found) else None

    def name(self, index: int) -> str:
        """The file of an image, or its place in the data set."""
        return self._decoder.name(index, "the images", self.row(index))

    def without(self, left_out: np.ndarray) -> "EvaluationImages":
        """The images and labels that are not left out: (N,) bool. They keep their names."""
        kept = np.flatnonzero(~left_out)
        accepted = None if self.labels.accepted is None else self.labels.accepted[kept]
        labels = replace(self.labels, values=self.labels.values[kept], accepted=accepted)
        rows = kept if self.rows is None else self.rows[kept]
        numbers = {"num_images": len(kept), "num_labelled": int(labels.is_labelled.sum())}
        dataset = self.dataset.select(kept)
        return replace(self, dataset=dataset, labels=labels, source={**self.source, **numbers}, rows=rows)

    @property
    def digest(self) -> str:
        """Tells these images from others, in their order, wherever they lie; labels are no part of it.

        By the names and sizes of all, and the content of up to 1,024 of them.
        """
        return self._digests[0]

    @property
    def digest_with_times(self) -> str:
        """The same and, of files, when they were changed: by which kept answers are known to be about these images."""
        return self._digests[1]

    @cached_property
    def _digests(self) -> tuple[str, str]:
        images = without_format(self.dataset).select_columns(self.image_column)
        images = images.cast_column(self.image_column, datasets.Image(decode=False))
        column = images.data.column(self.image_column)
        paths = pc.struct_field(column, "path")
        sizes = pc.binary_length(pc.struct_field(column, "bytes"))  # by where they begin and end, without reading them
        if images._indices is not None:
            rows = images._indices.column(0)
            paths, sizes = paths.take(rows), sizes.take(rows)
        digest = hashlib.sha256(data_fingerprint(images, image_column=self.image_column).encode())
        times = hashlib.sha256()
        for start in range(0, len(images), _ROWS):
            here = (values.slice(start, _ROWS).to_pylist() for values in (paths, sizes))
            for path, size in zip(*here, strict=True):
                if size is None and path:
                    with suppress(OSError):  # whoever reads it says what is wrong
                        status = os.stat(path)
                        size = status.st_size
                        times.update(f"{status.st_mtime_ns} ".encode())
                digest.update(json.dumps([os.path.basename(path or ""), size]).encode())
        times.update(digest.digest())
        return digest.hexdigest(), times.hexdigest()


class WhichImages(Protocol):
    """What says which images models are evaluated on; see `load_evaluation_images`.

    Attributes:
        dataset_name, dataset_config_name, dataset_revision, split, image_column_name, label_column_name: of a data
            set on the Hub, a local one, or sklearn:digits. Where no split is named it is "test", of the digits the
            held-out ones.
        images_dir: a folder instead: with one folder per class, or with images alone.
        label_file: labels for these, see `hf_deit.evaluation.images.label_files`.
        label_set: of `LABEL_SETS`, or None.
        class_indices: a file, see `hf_deit.evaluation.images.label_sets.read_class_indices`.
        on_bad_image, check_images: see `hf_deit.data.load.load_data`.
        model: whose labels the classes are, where nothing else tells.
    """

    dataset_name: str | None
    dataset_config_name: str | None
    dataset_revision: str | None
    split: str | None
    images_dir: str | None
    image_column_name: str | None
    label_column_name: str | None
    label_file: str | None
    label_set: str | None
    class_indices: str | None
    on_bad_image: str
    check_images: str
    model: str


@dataclass(frozen=True)
class _Found:
    """Images with the labels of their own, if they have any: `names` of the classes and `values`, (N,) int64."""

    dataset: datasets.Dataset
    names: list[str] | None
    values: np.ndarray | None
    source: dict[str, Any]
    words: str
    folder: str | None = None


def load_evaluation_images(
    arguments: WhichImages,
    *,
    model_labels: Callable[[], Sequence[str]] | None = None,
    once_per_machine: OncePerMachine = by_one_process_of_each_machine,
) -> EvaluationImages:
    """Loads and checks the images to evaluate on; on several processes all must call it.

    Classes that are a model's labels, or some of them, are those labels. ImageNet's are also told by their synsets,
    or, where there are 1,000 of them, by their numbers. Images of which none has a label are no mistake: models can
    still be compared on them.

    Args:
        arguments: which images.
        model_labels: gives the labels of the (first) model, by index; by default those of `arguments.model`.
        once_per_machine: see `hf_deit.data.load.load_data`.

    Raises:
        InputError: the images or their labels cannot be used; the message says what was found and what to do.
    """
    _check_choice(arguments)
    checks = {
        "on_bad_image": arguments.on_bad_image,
        "check_images": arguments.check_images,
        "once_per_machine": once_per_machine,
    }
    found = _of_folder(arguments, checks) if arguments.images_dir else _of_data_set(arguments, checks)

    @functools.cache
    def labels_of_model() -> list[str]:
        return list(model_labels() if model_labels is not None else load_labels(arguments.model))

    _check_label_set(arguments.label_set, labels_of_model)
    class_indices = None
    if arguments.class_indices is not None:
        class_indices = read_class_indices(arguments.class_indices, found.names)
        found = found if found.names is not None else _named_by(class_indices, found, labels_of_model())
    if arguments.label_file is not None:
        found, labels = _labelled_by(found, arguments, labels_of_model(), class_indices)
    elif found.names is None:
        labels = Labels(tuple(labels_of_model()), np.full(len(found.dataset), -1, np.int64))
    elif class_indices is not None:
        labels = Labels(tuple(found.names), found.values)
        if _are_renamed(found.names, labels_of_model(), class_indices):
            labels = Labels(tuple(labels_of_model()), _renumbered(found.values, class_indices))
            class_indices = None  # other models are compared by these names
    else:
        labels = _as_classes_of(labels_of_model(), found.names, found.values, arguments.label_set)
    return evaluation_images(
        found.dataset, labels, source=found.source, words=found.words, class_indices=class_indices
    )


def evaluation_images(
    dataset: datasets.Dataset,
    labels: Labels | Sequence[str],
    *,
    source: dict[str, Any],
    words: str,
    class_indices: np.ndarray | None = None,
) -> EvaluationImages:
    """Rows with a column "image" as images to evaluate on; says so where labels are missing. All processes call it.

    Args:
        labels: of the rows; or the names of the classes, where the rows have a column "label".
        source, words: what they are, without their number.
        class_indices: see `EvaluationImages`.
    """
    if not isinstance(labels, Labels):
        labels = Labels(tuple(labels), np.maximum(labels_of(dataset, "label"), -1))
    dataset = dataset.select_columns("image")
    number, labelled = len(dataset), int(labels.is_labelled.sum())
    if labelled < number:
        which = f"{number - labelled:,} of them have no label, and are left out of every accuracy"
        which = which if labelled else "none of them has a label: no accuracy can be measured on them"
        if PartialState().is_main_process:
            logger.warning("%s %s: %s", counted(number, "image"), words, which)
        words = f"{words} ({f'{labelled:,} of them with labels' if labelled else 'without labels'})"
    source = {**source, "num_images": number, "num_labelled": labelled}
    images = EvaluationImages(dataset, "image", labels, source, f"{counted(number, 'image')} {words}", class_indices)
    source["digest"] = on_main_process(lambda: images.digest)
    return images


def _check_choice(arguments: WhichImages) -> None:
    """Refuses arguments that contradict each other, before anything is loaded."""
    folder, name, label_set = arguments.images_dir, arguments.dataset_name, arguments.label_set
    if bool(folder) == bool(name):
        raise InputError(
            f"give either --images_dir or --dataset_name, got {folder!r} and {name!r}"
            + ("" if name else f'; "{DIGITS}" is a small data set that needs no download')
        )
    unused = ["dataset_config_name", "dataset_revision", "image_column_name", "label_column_name"]
    unused += ["split"] if folder else []
    if folder is None and name != DIGITS:
        unused = ["dataset_revision"] if os.path.exists(name) else []
    for option in unused:
        if (value := getattr(arguments, option)) is not None:
            where = f"--images_dir {folder!r}" if folder else f"--dataset_name {name}"
            on_hub = " on the Hub" if option == "dataset_revision" else ""
            raise InputError(f"--{option} is of a data set{on_hub}, got {value!r} beside {where}: leave it out")
    if label_set is not None and label_set not in LABEL_SETS:
        raise InputError(not_one_of("label_set", label_set, LABEL_SETS))
    if label_set == "real" and arguments.label_file is None:
        raise InputError(
            "--label_set real needs its file: --label_file real.json, from "
            "https://github.com/google-research/reassessed-imagenet"
        )
    if arguments.label_file is not None and arguments.label_column_name is not None:
        raise InputError(
            f"--label_file {arguments.label_file!r} takes the place of --label_column_name "
            f"{arguments.label_column_name!r}: drop one of them"
        )


def _of_folder(arguments: WhichImages, checks: dict[str, Any]) -> _Found:
    folder = arguments.images_dir
    name = without_place(folder)
    source = source_of(folder, is_folder=True)
    words = f"in the folder {name}"
    # With labels of their own, the images may lie in folders that are no classes.
    has_classes = arguments.label_file is None and os.path.isdir(folder) and has_folders(folder)
    if not has_classes:
        dataset = load_images(folder, option="images_dir", **checks)
        return _Found(dataset, None, None, source, words, folder)
    dataset, names = load_class_folders(folder, option="images_dir", **checks)
    return _Found(dataset, names, labels_of(dataset, "label"), source, words, folder)


def source_of(
    name: str,
    *,
    is_folder: bool = False,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Where images come from, for `EvaluationImages.source`.

    Args:
        name: of a data set, or a folder of images.
        is_folder: whether it is one.
        config, split, revision: of the data set.
    """
    kind = "folder" if is_folder else "digits" if name == DIGITS else "local" if os.path.exists(name) else "hub"
    return {"name": without_place(name), "kind": kind, "config": config, "split": split, "revision": revision}


def without_place(name: str) -> str:
    """What to call a data set, a model or a folder, without where it lies on this machine."""
    return os.path.basename(os.path.abspath(name)) if os.path.exists(name) else name


def _of_data_set(arguments: WhichImages, checks: dict[str, Any]) -> _Found:
    name, config = arguments.dataset_name, arguments.dataset_config_name
    split = arguments.split or ("validation" if name == DIGITS else "test")
    source = source_of(name, config=config, split=split)
    words = f"of the split {split} of {without_place(name)}"
    if name == DIGITS:
        if split != "validation":
            raise InputError(
                f"{DIGITS} has no split {split!r} to evaluate on: its 360 held-out images are --split validation"
            )
        data = load_digits()
        values = labels_of(data.validation, "label")
        return _Found(data.validation, data.label_names, values, source, f"held out of {DIGITS}")
    revision = arguments.dataset_revision
    commit = on_main_process(lambda: resolve_dataset_revision(name, revision)) or revision
    source["revision"] = commit
    dataset, names = load_evaluation_split(
        name,
        split,
        config_name=config,
        revision=commit,
        image_column_name=arguments.image_column_name,
        label_column_name=arguments.label_column_name,
        is_labelled=False if arguments.label_file is not None else None,
        **checks,
    )
    words += f" at commit {commit[:12]}" if commit else ""
    return _Found(dataset, names, None if names is None else loose_labels(dataset, names, split), source, words)


def _check_label_set(label_set: str | None, labels_of_model: Callable[[], list[str]]) -> None:
    if label_set is not None and (number := len(labels_of_model())) != _IMAGENET:
        raise InputError(
            f"--label_set {label_set} is for models of ImageNet's 1,000 classes, but the model has {number:,} labels: "
            "leave it out"
        )


def _named_by(class_indices: np.ndarray, found: _Found, model_labels: list[str]) -> _Found:
    """Images whose labels a file will say, with the names of the classes that the indices choose of a model's."""
    if (largest := int(class_indices.max())) >= len(model_labels):
        raise InputError(f"the class indices go up to {largest}, but the model has {len(model_labels):,} labels")
    unlabelled = np.full(len(found.dataset), -1, np.int64)
    return replace(found, names=[model_labels[index] for index in class_indices], values=unlabelled)


def _labelled_by(
    found: _Found, arguments: WhichImages, model_labels: list[str], class_indices: np.ndarray | None
) -> tuple[_Found, Labels]:
    """The images with the labels of a file, whose classes are the model's, or those of them that were chosen."""
    label_set, names = arguments.label_set, found.names or model_labels
    file = read_label_file(arguments.label_file, known=names)
    if class_indices is None and (label_set is not None or has_synsets(file)):
        names = imagenet_classes(model_labels) or names
    labels = labels_from(
        file,
        names,
        image_paths(found.dataset, "image"),
        folder=found.folder,
        must_be_numbered=label_set == "real",
        class_indices=class_indices,
    )
    name = os.path.basename(file.path)
    source = {**found.source, "label_set": label_set, "label_file": name, "label_digest": file.digest}
    what = "with ImageNet-ReaL's labels" if label_set == "real" else f"with the labels in {name}"
    return replace(found, source=source, words=f"{found.words}, {what}"), labels


def _are_renamed(names: list[str], model_labels: list[str], class_indices: np.ndarray) -> bool:
    """Whether indices give all of a model's classes, which the data call otherwise, their names in the model."""
    are_all = sorted(class_indices) == list(range(len(model_labels)))
    return (
        are_all and not are_unnamed(model_labels) and not set(map(composed, names)) <= set(map(composed, model_labels))
    )


def _as_classes_of(model_labels: list[str], names: list[str], values: np.ndarray, label_set: str | None) -> Labels:
    """Labels by the classes of a model, if these are its classes, or some of them; else by the data's own.

    Raises:
        InputError: there are classes that the model has not.
    """
    place = {composed(label): index for index, label in enumerate(model_labels)}
    own = np.array([place.get(composed(name), -1) for name in names], np.int64)
    if own.min() >= 0:
        if len(names) == len(model_labels):
            return Labels(tuple(names), values)
        return Labels(tuple(model_labels), _renumbered(values, own))
    classes, indices = imagenet_classes(model_labels), _imagenet_numbers(names, label_set)
    if classes is not None and indices is not None:
        return Labels(classes, _renumbered(values, indices))
    if len(names) != len(model_labels):
        refuse_other_classes(names, model_labels, owner="the model")
    return Labels(tuple(names), values)


def _imagenet_numbers(names: list[str], label_set: str | None) -> np.ndarray | None:
    """Which of ImageNet's classes these are, by synset, or by number: of all of them, or where that is said."""
    if (indices := imagenet_indices(names)) is not None:
        return indices
    numbers = numbers_in(names)
    if numbers is None or numbers.max() >= _IMAGENET:
        return None
    return numbers if len(names) == _IMAGENET or label_set is not None else None


def _renumbered(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Labels by other classes: `indices` are those of the classes that there were; -1 stays."""
    return np.where(values >= 0, indices[values], -1)
