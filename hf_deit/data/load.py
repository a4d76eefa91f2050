"""The images of a run, loaded and checked, wherever they lie."""

from dataclasses import fields, replace
from typing import Any, Literal

import datasets

from ..errors import InputError, shortlist
from ..models.class_names import unique_names
from .arguments import DIGITS, DataArguments, why_unused
from .columns import check_label_range, stored_column
from .digits import load_digits
from .folders import load_class_folders, load_images
from .image_data import ImageData, split_by_label, why_not_stratified
from .parallel import OncePerMachine, call
from .splits import load_image_split, load_splits, open_stream


def load_data(
    data_args: DataArguments,
    *,
    label_names: list[str] | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    check_images: Literal["all", "headers", "none"] = "headers",
    once_per_machine: OncePerMachine = call,
    holds_out: bool = True,
) -> ImageData:
    """Loads and checks the images to train on, to validate and to test with.

    Args:
        data_args: which images. Its `labels_kept` is for `ImageData.with_labels_kept`, not for here.
        label_names: the labels, if there are unlabelled images alone; see `unique_names` for those that repeat.
        on_bad_image: "stop" refuses images that cannot be used, as far as `check_images` tells; "skip" leaves them to
            the training, which counts them, unless they are all.
        check_images: "headers" reads those of all images and, of data sets, decodes 64; "all" decodes each image;
            "none" leaves all to the training. Of folders, it is kept which files were good.
        once_per_machine: calls a function in one process of each machine, and gives its result to all there.
        holds_out: whether to hold training images out to validate with, if there are no others.

    Raises:
        InputError: the data cannot be used; the message says what was found and what to do.
    """
    _check_choice(data_args)
    checks = {"on_bad_image": on_bad_image, "check_images": check_images, "once_per_machine": once_per_machine}
    unlabeled = _load_unlabeled(data_args, **checks)
    if not (data_args.dataset_name or data_args.train_dir):
        return _unlabeled_alone(data_args, unlabeled, label_names, **checks)
    if data_args.streaming:
        return open_stream(data_args, **checks)
    if data_args.dataset_name == DIGITS:
        return replace(load_digits(), unlabeled=unlabeled)
    data = load_splits(data_args, **checks) if data_args.train_dir is None else _load_folders(data_args, **checks)
    for part, dataset in (("training", data.train), ("validation", data.validation), ("test", data.test)):
        if dataset is not None:
            check_label_range(stored_column(dataset, "label"), len(data.label_names), part)
    if data.validation is not None and data_args.train_dir is None:
        _check_nothing_is_held_out(data_args, data)
    if data.validation is None and holds_out:
        data = _hold_out(data, data_args.validation_fraction, data_args.validation_seed)
    _check_classes(data)
    return replace(data, unlabeled=unlabeled)


def _check_choice(data_args: DataArguments) -> None:
    """Refuses arguments that contradict each other, before anything is loaded."""
    dataset_name, train_dir = data_args.dataset_name, data_args.train_dir
    unlabeled_dir, unlabeled_name = data_args.unlabeled_dir, data_args.unlabeled_dataset_name
    has_unlabeled = unlabeled_dir is not None or unlabeled_name is not None
    if unlabeled_dir is not None and unlabeled_name is not None:
        raise InputError(
            f"give either --unlabeled_dir or --unlabeled_dataset_name, got {unlabeled_dir!r} and {unlabeled_name!r}"
        )
    if bool(dataset_name) == bool(train_dir) and (dataset_name or not has_unlabeled):
        raise InputError(
            f"give either --dataset_name or --train_dir, got {dataset_name!r} and {train_dir!r}"
            + ("" if dataset_name else f'; images without labels are --unlabeled_dir, "{DIGITS}" needs no download')
        )
    _check_uses(data_args)
    if data_args.streaming and has_unlabeled:
        raise InputError("streaming needs a --dataset_name for load_dataset, and no unlabelled images beside it")


def _check_uses(data_args: DataArguments) -> None:
    """Refuses options that do nothing, as they are about another source of images than the one that is given."""
    options = vars(data_args)
    for item in fields(data_args):
        value = options[item.name]
        if value and value != item.default and (reason := why_unused(item.name, options)):
            raise InputError(reason)


def _load_unlabeled(data_args: DataArguments, **checks: Any) -> datasets.Dataset | None:
    """The unlabelled images, with the column "image" alone, or None."""
    if data_args.unlabeled_dir is not None:
        return load_images(data_args.unlabeled_dir, **checks)
    if data_args.unlabeled_dataset_name is not None:
        name, revision = data_args.unlabeled_dataset_name, data_args.unlabeled_dataset_revision
        return load_image_split(name, revision, data_args.unlabeled_split, **checks)
    return None


def _unlabeled_alone(
    data_args: DataArguments, unlabeled: datasets.Dataset, label_names: list[str] | None, **checks: Any
) -> ImageData:
    if label_names is None:
        raise InputError(
            "images without labels alone need a teacher whose labels they get: give --teacher_model_name_or_path, a "
            "classifier or, with --class_names, a zero-shot model (openai/clip-vit-base-patch32)"
        )
    label_names = list(unique_names(dict(enumerate(label_names))).values())
    others = _load_others(data_args, label_names, **checks)
    return ImageData(None, label_names=label_names, unlabeled=unlabeled, **others)


def _load_folders(data_args: DataArguments, **checks: Any) -> ImageData:
    train, names = load_class_folders(data_args.train_dir, **checks)
    return ImageData(train, label_names=names, **_load_others(data_args, names, **checks))


def _load_others(data_args: DataArguments, names: list[str], **checks: Any) -> dict[str, datasets.Dataset | None]:
    """What folders hold to validate and to test with, by field of `ImageData`."""
    folders = {"validation": data_args.validation_dir, "test": data_args.test_dir}
    return {
        part: load_class_folders(folder, names=names, option=f"{part}_dir", **checks)[0] if folder else None
        for part, folder in folders.items()
    }


def _check_nothing_is_held_out(data_args: DataArguments, data: ImageData) -> None:
    """Refuses to be told how to hold images out of a data set that turns out to have a split to validate with."""
    for name in ("validation_fraction", "validation_seed"):
        value, usual = getattr(data_args, name), getattr(DataArguments, name)
        if value != usual:
            raise InputError(
                f"--{name} is about training images that are held out to validate with, got {value}, but the data set "
                f"{data_args.dataset_name!r} has the split {str(data.validation.split)!r}: leave it at its default, "
                f"{usual}"
            )


def _hold_out(data: ImageData, fraction: float, seed: int) -> ImageData:
    """Takes a seeded and stratified part of the training images to validate with."""
    try:
        train, validation = split_by_label(data.train, test_size=fraction, seed=seed)
    except ValueError as error:
        raise InputError(
            f"cannot hold out {fraction:g} of the {len(data.train)} training images, stratified by label "
            f"({why_not_stratified(error, data.train)}): give more images, another --validation_fraction, or a "
            "validation set"
        ) from error
    return replace(data, train=train, validation=validation)


def _check_classes(data: ImageData) -> None:
    names, present = data.label_names, len(stored_column(data.train, "label").unique())
    if len(names) < 2 or present < 2:
        raise InputError(
            f"a classifier needs images of at least two classes to train on, got {len(names)} "
            f"({shortlist(names, 3)}) with images of {present}"
        )
