"""A run's teacher of its own: a linear probe of a backbone, fitted on the labels that the run trains with."""

import os
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from ..data.image_data import ImageData
from ..errors import InputError
from ..evaluation.answers.asking import Asking
from ..evaluation.images.images import EvaluationImages
from ..evaluation.probe.backbone import BackboneDescription, describe_backbone
from ..evaluation.probe.card import accuracy_of
from ..evaluation.probe.probe import (
    UNFINISHED,
    Settings,
    check_labels,
    fit_probe,
    identity_of,
    images_of_rows,
    read_probe,
    save_probe,
    say_how_long,
)
from ..hub.files import writing
from ..recipes.resolve import Arguments
from ..recipes.sameness import TRAINED_TEACHER
from ..training.checkpoints import check_same_labels
from ..training.datasets import data_seed
from ..training.processes import on_every_process, on_main_process
from .output_folder import UNFINISHED_TEACHER, begin_teacher

logger = logging.get_logger(__name__)


def fit_teacher(
    backbone: str, images: ImageData, student: Arguments, *, resuming: bool = False
) -> tuple[str, dict[str, Any]]:
    """Fits a probe on the run's labelled training images, into the folder "teacher" of its output folder.

    All processes must call it. Images to validate or to test with are not looked at, nor those whose labels are not
    kept.

    Args:
        backbone: of transformers or timm: a Hub id, perhaps with "@revision", or a folder.
        images: of the run.
        student: the run's arguments.
        resuming: whether the run is told to go on, so that a probe that is there is its own.

    Returns:
        The folder, and what its `PROBE_FILE` says. One that is whole from an earlier start is taken as it is.

    Raises:
        InputError: the backbone or the images cannot be used, or the teacher that is there is another one.
        CheckpointError: something could not be written.
    """
    args = student.training
    folder, unfinished = (os.path.join(args.output_dir, name) for name in (TRAINED_TEACHER, UNFINISHED_TEACHER))
    is_there, there = on_main_process(lambda: (os.path.isdir(folder), read_probe(folder)))
    if is_there:
        check_same_labels(folder, images.id2label, "the teacher in")
        if there is not None and resuming:
            return folder, there
    description = on_every_process(lambda: describe_backbone(backbone))
    learnt = images.with_labels_kept(student.data.labels_kept, data_seed(args))
    labelled = images_of_rows(learnt.train, images.label_names, words="to fit the probe on")
    check_labels(labelled.labels.values, images.label_names)
    settings = Settings(is_mirrored=args.horizontal_flip > 0, seed=args.seed)
    identity = identity_of(description, labelled, settings)
    if is_there:
        if there is None or there["identity"] != identity:
            raise InputError(
                f"the teacher in {folder!r} is not the probe of {backbone!r} on these images: remove it to fit that, "
                "take it as it is with --teacher_model_name_or_path, or give another --output_dir"
            )
        logger.warning("the teacher in %s is fitted already: it is taken as it is", folder)
        return folder, there

    def begin() -> None:  # the features of a probe that was stopped are there, whatever else was begun is not wanted
        if not os.path.isdir(os.path.join(unfinished, UNFINISHED)):
            begin_teacher(args.output_dir)

    on_main_process(begin)
    content = _fit(description, labelled, settings, student, unfinished, identity)
    PartialState().wait_for_everyone()
    return folder, content


def _fit(
    description: BackboneDescription,
    labelled: EvaluationImages,
    settings: Settings,
    student: Arguments,
    unfinished: str,
    identity: dict[str, Any],
) -> dict[str, Any]:
    """Fits a probe in the folder of an unfinished teacher, and makes the teacher of it; gives its file's content."""
    args = student.training
    loaded = on_every_process(lambda: description.load(dict(enumerate(labelled.labels.names)), args.device))
    if PartialState().is_main_process:
        logger.warning("a probe of %s is fitted: %s", loaded.name, say_how_long(loaded, labelled, settings))
    asking = Asking(os.path.join(unfinished, UNFINISHED, "features"), args.device, on_bad_image=args.on_bad_image)
    found = fit_probe(loaded, labelled, asking, settings)

    def finish() -> dict[str, Any]:
        content = {"identity": identity, **found}
        save_probe(loaded, content, unfinished)
        folder = os.path.join(args.output_dir, TRAINED_TEACHER)
        with writing(f"the teacher to {folder!r}"):
            os.replace(unfinished, folder)
        logger.warning("the probe's cross-validated accuracy is %s", accuracy_of(content))
        return content

    return on_main_process(finish)
