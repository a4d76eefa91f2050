"""The inputs of a run: its images, those that the student learns from, the student itself and its teacher."""

import re
from dataclasses import replace

from transformers import PreTrainedModel, set_seed

from ..data.load import DataArguments, ImageData, load_data
from ..errors import InputError
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from ..models.student import load_student
from ..models.teacher import TeacherDescription, describe_teacher, load_labels
from ..recipes.resolve import Arguments
from ..training.arguments import DistillationTrainingArguments, ModelArguments
from ..training.datasets import data_seed
from ..training.label_source import NOT_OF_STREAMS, identity_there
from ..training.processes import on_main_process


def as_range(name: str, text: str, example: str) -> range:
    """Reads "FIRST:LAST", LAST exclusive.

    Raises:
        InputError: it is something else, or empty; with the argument's name, and the example.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise InputError(f"{name} must be FIRST:LAST, say {example}, got {text!r}")
    return range(int(match[1]), int(match[2]))


def load_images(
    model_args: ModelArguments, data_args: DataArguments, args: DistillationTrainingArguments
) -> ImageData:
    """The run's images. Unlabelled ones alone have the teacher's labels."""
    if data_args.streaming and args.teacher_labels is not None:
        raise InputError(NOT_OF_STREAMS)
    options = vars(data_args).copy()
    del options["labels_kept"]
    label_names = None
    is_labelled = data_args.dataset_name or data_args.train_dir
    if not is_labelled and args.distillation_type != "none":
        if model_args.teacher_model_name_or_path is not None:
            label_names = load_labels(model_args.teacher_model_name_or_path, model_args.teacher_revision)
        elif args.teacher_labels is not None and (there := on_main_process(lambda: identity_there(args))) is not None:
            label_names = there.teacher.get("labels")
    return load_data(**options, label_names=label_names, on_bad_image=args.on_bad_image)


def learnt_images(data: ImageData, arguments: Arguments) -> ImageData:
    """What of the images the student learns from: without a teacher only those that keep their labels."""
    model_args, data_args, args = arguments
    learnt = data.with_labels_kept(data_args.labels_kept, data_seed(args))
    if args.distillation_type != "none":
        return learnt
    if model_args.teacher_model_name_or_path is not None:
        raise InputError('a teacher is given but distillation_type is "none": drop one of them')
    if data.unlabeled is not None:
        raise InputError('unlabelled images are given but distillation_type is "none": no teacher labels them')
    return replace(learnt, unlabeled=None)


def make_student(
    model_args: ModelArguments, data: ImageData, seed: int
) -> tuple[PreTrainedModel, DistilledDeiTImageProcessor]:
    set_seed(seed)  # for the weights that are made anew
    return load_student(
        model_args.student,
        id2label=data.id2label,
        revision=model_args.student_revision,
        image_size=model_args.image_size,
        crop_ratio=model_args.crop_ratio,
        replace_head=model_args.replace_head,
        freeze=model_args.freeze,
        overrides=model_args.student_overrides,
    )


def named_teacher(
    model_args: ModelArguments, data: ImageData, processor: DistilledDeiTImageProcessor
) -> TeacherDescription:
    """The teacher that the arguments name, for a student with the labels of the data."""
    return describe_teacher(
        model_args.teacher_model_name_or_path,
        student_processor=processor,
        id2label=data.id2label,
        revision=model_args.teacher_revision,
        dtype=model_args.teacher_dtype,
    )
