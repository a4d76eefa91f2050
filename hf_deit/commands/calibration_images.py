"""Which images `hf-deit export --int8 static` calibrates on: a folder's, or those that the model learnt from."""

import os

import datasets

from ..data.folders import load_images
from ..data.load import load_data
from ..errors import InputError
from ..export.programs.calibration import NUM_IMAGES, SEED, Calibration
from ..export.programs.source import ExportSource
from ..hub.run_folder import RECIPE_FILE, step_of
from .evaluated_images import data_arguments


def calibration_of(
    source: ExportSource,
    model: str,
    calibration_dir: str | None = None,
    *,
    check_dir: str | None = None,
    num_images: int = NUM_IMAGES,
    seed: int = SEED,
) -> Calibration:
    """The images that int8 is calibrated on.

    Args:
        source: the classifier.
        model: as it was given: of a run, its training images can be taken.
        calibration_dir: a folder of images, at any depth; None for those of the run, without what it was validated
            and tested with.
        check_dir: the folder that the export is proven on, if one is given: it must be another.
        num_images, seed: how many to draw, and how.

    Raises:
        InputError: there are none, too few, or they are those of the proof.
    """
    settings = {"num_images": num_images, "seed": seed}
    if calibration_dir is not None:
        folder = os.path.expanduser(calibration_dir)
        _refuse_same(folder, check_dir, f"--calibration_dir {calibration_dir!r}")
        images = load_images(folder, "skip", option="calibration_dir", check_images="none")
        name = os.path.basename(os.path.abspath(folder))
        return Calibration(images, "image", source.classifier, f"the folder {name}", **settings)
    images, words = _training_images(model, check_dir)
    return Calibration(images, "image", source.classifier, words, **settings)


def _refuse_same(folder: str, check_dir: str | None, words: str) -> None:
    if check_dir is None:
        return
    ours, theirs = (os.path.realpath(os.path.expanduser(path)) for path in (folder, check_dir))
    if os.path.commonpath([ours, theirs]) in (ours, theirs):
        raise InputError(
            f"{words} and --check_dir {check_dir!r} hold the same images: int8 would be proven on those that it is "
            "fitted to. Give --calibration_dir and --check_dir, of which neither lies in the other"
        )


def _training_images(model: str, check_dir: str | None) -> tuple[datasets.Dataset, str]:
    """Of the run whose folder a model's is, and what to call them."""
    remedy = "give --calibration_dir, a folder with some hundred images like those that the model will see"
    folder = os.path.normpath(os.path.expanduser(model))
    folder = os.path.dirname(folder) if step_of(folder) is not None else folder
    recipe = os.path.join(folder, RECIPE_FILE)
    if not os.path.isfile(recipe):
        raise InputError(
            f"--int8 static is calibrated on images, and {model!r} is no folder of a run, whose training images could "
            f"be taken: {remedy}, or --int8 dynamic, which needs none"
        )
    try:
        arguments = data_arguments(recipe)
        for place in filter(None, (arguments.train_dir, arguments.unlabeled_dir)):
            _refuse_same(place, check_dir, f"the run's training images, {place!r},")
        data = load_data(arguments, on_bad_image="skip", check_images="none")
    except InputError as error:
        raise InputError(f"of the training images of the run in {folder!r}: {error}. Or {remedy}") from error
    images = data.unlabeled if data.train is None else data.train
    if not isinstance(images, datasets.Dataset):
        raise InputError(
            f"the run in {folder!r} read its training images as a stream, which is not drawn from: {remedy}"
        )
    name = arguments.dataset_name or arguments.train_dir or arguments.unlabeled_dir or "a data set"
    name = os.path.basename(os.path.abspath(name)) if os.path.exists(name) else name
    return images, f"training images of {name}"
