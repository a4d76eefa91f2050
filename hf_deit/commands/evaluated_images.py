"""Which images `hf-deit evaluate` takes: those that are named, or those that the model's run has not learnt from."""

import dataclasses
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.utils import logging

from ..data.arguments import DIGITS, DataArguments
from ..data.columns import check_stored_images
from ..data.load import load_data
from ..data.splits import split_names, validation_split_of
from ..errors import InputError, did_you_mean, not_one_of
from ..evaluation.images.images import (
    EvaluationImages,
    WhichImages,
    evaluation_images,
    load_evaluation_images,
    source_of,
)
from ..hub.run_folder import RECIPE_FILE, step_of
from ..models.teacher import load_labels
from ..recipes import load_recorded
from ..training.processes import once_per_machine
from .sources import validation_split

logger = logging.get_logger(__name__)

_NAMED = "--images_dir FOLDER, or --dataset_name and --split, name others"
_TEST, _VALIDATION = "test", "validation"


def images_to_evaluate(
    arguments: WhichImages, *, model_labels: Callable[[], Sequence[str]] | None = None
) -> EvaluationImages:
    """The images that arguments name, or else those of the run whose folder the model is; all processes must call it.

    Of a run they are its test images, if it has any: those that it was given, or the split "test" of its data set.
    Else, where no split is named, they are exactly the images that it was validated with. A checkpoint's run is the
    one around it.

    Args:
        arguments: see `load_evaluation_images`. `split` says which of a run's images are meant.
        model_labels: see `load_evaluation_images`.

    Raises:
        InputError: there are none, or they cannot be used.
    """
    if arguments.images_dir or arguments.dataset_name:
        return load_evaluation_images(arguments, model_labels=model_labels)
    folder = os.path.normpath(os.path.expanduser(arguments.model or ""))
    folder = os.path.dirname(folder) if step_of(folder) is not None else folder
    recipe = os.path.join(folder, RECIPE_FILE)
    if not os.path.isfile(recipe):
        what = "no folder of a run" if os.path.isdir(folder) else "no folder"
        near = _near_run(folder)
        raise InputError(
            f"there are no images: {arguments.model!r} is {what}, whose own could be taken{near or '.'} Give "
            "--dataset_name (a Hub id or a local path) or --images_dir, a folder with one folder per class"
        )
    options = ("dataset_config_name", "dataset_revision", "image_column_name", "label_column_name")
    for option in (*options, "label_file", "label_set", "class_indices"):
        if (value := getattr(arguments, option)) is not None:
            raise InputError(
                f"--{option} is about images that are named, got {value!r} and no images: give --dataset_name or "
                "--images_dir, or leave it out"
            )
    labels = model_labels or (lambda: load_labels(arguments.model))
    try:
        return _of_run(data_arguments(recipe), arguments, labels)
    except InputError as error:
        raise InputError(f"of the images of the run in {folder!r}: {error} ({_NAMED})") from error


def _near_run(folder: str) -> str:
    """Which run's folder may be meant, beside this one or in it: "; did you mean …?", or ""."""
    places = [os.path.join(glob.escape(place), "*", RECIPE_FILE) for place in (os.path.dirname(folder), folder)]
    runs = [os.path.dirname(recipe) for place in places for recipe in sorted(glob.glob(place))]
    return did_you_mean(folder, runs, cutoff=0.7)


def data_arguments(recipe: str | Mapping[str, Any]) -> DataArguments:
    """Which images a run was given.

    Args:
        recipe: its file, or what is in it.

    Raises:
        InputError: it cannot be read, or says something else.
    """
    recorded = load_recorded(recipe) if isinstance(recipe, str) else recipe
    names = [field.name for field in dataclasses.fields(DataArguments)]
    return DataArguments(**{name: recorded[name] for name in names if name in recorded})


def _of_run(data: DataArguments, arguments: WhichImages, labels: Callable[[], Sequence[str]]) -> EvaluationImages:
    split, test = arguments.split, _named_test(data, arguments)
    if split is not None and split in (_VALIDATION, data.validation_split):
        return _validation(data, arguments, labels)
    if split in (None, _TEST) and test is not None:
        images = load_evaluation_images(test, model_labels=labels)
        if data.test_dir:
            return dataclasses.replace(images, source={**images.source, "split": _TEST})
        if split or images.labels.is_labelled.any() or data.test_split:
            return images
        logger.warning("the split test has no labels: the images that the run was validated with are taken")
    elif split is not None and _has_splits(data):
        return load_evaluation_images(_of_data_set(data, arguments, split), model_labels=labels)
    elif split is not None:
        raise InputError(not_one_of("split", split, [_VALIDATION, *([_TEST] if test else [])]))
    return _validation(data, arguments, labels)


def _validation(data: DataArguments, arguments: WhichImages, labels: Callable[[], Sequence[str]]) -> EvaluationImages:
    """The images that a run was validated with."""
    named = _named_validation(data, arguments)
    images = _held_out(data, arguments) if named is None else load_evaluation_images(named, model_labels=labels)
    known = "which its run was validated with (checkpoints are chosen by these)"
    source = {**images.source, "split": _VALIDATION} if data.validation_dir else images.source
    return dataclasses.replace(images, source=source, words=f"{images.words}, {known}")


def _has_splits(data: DataArguments) -> bool:
    return bool(data.dataset_name) and data.dataset_name != DIGITS


def _splits_of(data: DataArguments) -> list[str]:
    return split_names(data.dataset_name, data.dataset_config_name, data.dataset_revision)


def _named_test(data: DataArguments, arguments: WhichImages) -> Any | None:
    """Arguments that name a run's test images; None if it has none."""
    if data.test_dir:
        return dataclasses.replace(arguments, images_dir=data.test_dir, split=None)
    if not _has_splits(data):
        return None
    is_free = _TEST not in (data.train_split, data.validation_split)
    split = data.test_split or (_TEST if is_free and _TEST in _splits_of(data) else None)
    return None if split is None else _of_data_set(data, arguments, split)


def _named_validation(data: DataArguments, arguments: WhichImages) -> Any | None:
    """Arguments that name the images that a run was validated with; None if they were held out of others."""
    if data.validation_dir:
        return dataclasses.replace(arguments, images_dir=data.validation_dir, split=None)
    split = validation_split_of(data, _splits_of(data)) if _has_splits(data) else None
    return None if split is None else _of_data_set(data, arguments, split)


def _of_data_set(data: DataArguments, arguments: WhichImages, split: str) -> Any:
    names = ("dataset_name", "dataset_config_name", "dataset_revision", "image_column_name", "label_column_name")
    return dataclasses.replace(arguments, **{name: getattr(data, name) for name in names}, split=split)


def _held_out(data: DataArguments, arguments: WhichImages) -> EvaluationImages:
    """The images that a run has held out of those that it was trained on, by the same fraction and seed."""
    if not (data.dataset_name or data.train_dir):
        raise InputError("it was not validated, as it had no labelled images for it")
    others = [name for name in vars(data) if name.startswith(("test_", "unlabeled_"))]  # which may be gone
    found = load_data(
        dataclasses.replace(data, **{name: getattr(DataArguments, name) for name in others}),
        on_bad_image=arguments.on_bad_image,
        check_images="none",  # of those alone that are evaluated on
        once_per_machine=once_per_machine,
    )
    if _has_splits(data) or data.train_dir:
        where = "images that the run was validated with"
        checks = (arguments.on_bad_image, arguments.check_images)
        once_per_machine(lambda: check_stored_images(found.validation, "image", where, *checks))
    split = validation_split(data, found)
    about = {"config": data.dataset_config_name, "split": split, "revision": data.dataset_revision}
    source = source_of(data.dataset_name or data.train_dir, is_folder=not data.dataset_name, **about)
    if data.dataset_name != DIGITS:
        source |= {"validation_fraction": data.validation_fraction, "validation_seed": data.validation_seed}
    words = f"{split} of {source['name']}"
    return evaluation_images(found.validation, found.label_names, source=source, words=words)
