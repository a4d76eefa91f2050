"""What train, label and preview share: from arguments to images, student and views that fit together."""

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from accelerate import PartialState
from transformers import PreTrainedModel, set_seed

from ..data.image_data import ImageData
from ..data.load import load_data
from ..data.view_dataset import EvaluationDataset, KeyedViews
from ..errors import InputError, brief, shortlist
from ..hub.files import no_empty_folders
from ..labels.files import discard_unused
from ..models.image_processing_deit import SMALL_INPUT, DistilledDeiTImageProcessor
from ..models.student import load_student
from ..models.teacher import AnyDescription, describe_teacher
from ..recipes.resolve import Arguments, resolved_recipe
from ..recipes.sameness import differing, stated_options
from ..recipes.uses import check_uses
from ..training.alike import stated_by_all
from ..training.arguments import DistillationTrainingArguments, ModelArguments
from ..training.datasets import as_evaluation, as_views, check_arguments, data_seed, steps_per_epoch
from ..training.label_source import NOT_OF_STREAMS, LabelSource
from ..training.pace import with_pace
from ..training.processes import once_per_machine
from .zero_shot import check_names, names_without_labels

T = TypeVar("T")


@dataclass
class PreparedRun:
    """The images, the student and the views of a run.

    Attributes:
        arguments: with commits as revisions, and with numbers that say how often is logged and evaluated.
        images: all that were loaded. Without a teacher a run learns from those alone that keep their labels.
        student: in training mode, made or loaded.
        processor: of the student.
        views: that it trains on.
        validation: that it is evaluated on, or None.
        test: that it is evaluated on once, when it is trained, or None.
    """

    arguments: Arguments
    images: ImageData
    student: PreTrainedModel
    processor: DistilledDeiTImageProcessor
    views: KeyedViews
    validation: EvaluationDataset | None
    test: EvaluationDataset | None = None

    def describe_teacher(self) -> AnyDescription:
        """The teacher that the arguments name, for a student with the labels of the images.

        Raises:
            InputError: see `hf_deit.models.teacher.describe_teacher`.
        """
        model_args = self.arguments.model
        return describe_teacher(
            model_args.teacher_model_name_or_path,
            student_processor=self.processor,
            id2label=self.images.id2label,
            revision=model_args.teacher_revision,
            dtype=model_args.teacher_dtype,
            input_size=model_args.teacher_input_size,
            prompts=model_args.class_prompts,
            templates=model_args.templates,
            weights=model_args.teacher_weights,
            label_subset=model_args.teacher_label_subset,
            prior_correction=model_args.teacher_prior_correction,
            speed=model_args.teacher_speed,
        )


def leaves_no_empty_folders(function: Callable[..., T]) -> Callable[..., T]:
    """Of a function that takes the arguments of a run: one that is refused takes back the folders that it has made."""

    @functools.wraps(function)
    def wrapped(arguments: Arguments, **settings: Any) -> T:
        store = arguments.training.teacher_labels
        is_new = store is not None and not os.path.exists(store)
        with no_empty_folders(arguments.training.output_dir, store):
            try:
                return function(arguments, **settings)
            except BaseException:
                if is_new:
                    discard_unused(store)
                raise

    return wrapped


def check_same_arguments(arguments: Arguments) -> None:
    """Refuses a run whose processes were started with different options, as on two machines; all must call it.

    Raises:
        InputError: names the options that differ, and who has what.
    """
    if PartialState().num_processes == 1:
        return
    first, *others = stated_by_all(stated_options(resolved_recipe(arguments), arguments.training))
    for other in others:
        if found := [*differing(first.value, other.value)]:
            here, there = (
                shortlist(f"{one.name} {brief(value, str)}" for one, value in zip(found, values, strict=True))
                for values in ([one.before for one in found], [one.now for one in found])
            )
            is_auto = any(one.name == "bf16" for one in found)
            remedy = "; where only some have devices for bfloat16, with --bf16 false" if is_auto else ""
            raise InputError(
                f"the processes of this run were started with different options: {first.place} has {here}, "
                f"{other.place} has {there}. Start all with the same recipe and options{remedy}"
            )


def prepare(arguments: Arguments, labels: LabelSource | None = None, *, is_evaluated: bool = False) -> PreparedRun:
    """Loads the images and makes the student of a run, and checks that they fit together and to the arguments.

    Args:
        arguments: with commits as revisions, if the names shall stand for them.
        labels: the label store that they name, or None.
        is_evaluated: whether the student will be evaluated, as `eval_strategy` says.

    Raises:
        InputError: the input cannot be used.
    """
    check_uses(arguments)
    images, evaluations = _load_images(arguments, labels), arguments.training.eval_strategy
    learnt = _learnt_images(images, arguments)
    if is_evaluated and images.validation is None and evaluations != "no":
        raise InputError(
            f"there are no labelled images to evaluate with every {evaluations.value}: give --validation_dir, or "
            "--eval_strategy no"
        )
    if is_evaluated and images.validation is None and arguments.training.eval_on_start:
        raise InputError("there are no labelled images to evaluate on at the start: leave --eval_on_start out")
    student, processor = make_student(arguments.model, images, arguments.training.seed)
    check_arguments(arguments.training, student, processor)
    _check_crop(arguments.training, processor)
    views, validation = fitted_to(student, processor, learnt, arguments.training)
    fitted = {"args": arguments.training, "model": student, "processor": processor, "teacher": None}
    test = as_evaluation(images.test, **fitted, images_are_checked=True, where="the test images")
    paced = with_pace(arguments.training, steps_per_epoch(views, arguments.training))
    return PreparedRun(arguments._replace(training=paced), images, student, processor, views, validation, test)


def fitted_to(
    model: PreTrainedModel,
    processor: DistilledDeiTImageProcessor,
    images: ImageData,
    args: DistillationTrainingArguments,
) -> tuple[KeyedViews, EvaluationDataset | None]:
    """What a model trains on, and what it is evaluated on, of images that `load_data` has checked.

    Raises:
        InputError: model and images do not fit together.
    """
    settings = {"args": args, "model": model, "processor": processor, "teacher": None, "images_are_checked": True}
    return as_views(images.train, images.unlabeled, **settings), as_evaluation(images.validation, **settings)


def _check_crop(args: DistillationTrainingArguments, processor: DistilledDeiTImageProcessor) -> None:
    """Refuses a size of random crops where the images are too small for such crops."""
    usual = DistillationTrainingArguments.crop_scale_min
    if args.crop_scale_min != usual and max(processor.crop_size.height, processor.crop_size.width) <= SMALL_INPUT:
        raise InputError(
            f"crop_scale_min is of the random resized crops, which inputs of at most {SMALL_INPUT} pixels do not get "
            f"(they are padded and cropped), got {args.crop_scale_min:g}: leave it at its default, {usual:g}"
        )


def _load_images(arguments: Arguments, labels: LabelSource | None) -> ImageData:
    """The run's images. Unlabelled ones alone have the teacher's labels."""
    model_args, data_args, args = arguments
    if data_args.streaming and labels is not None:
        raise InputError(NOT_OF_STREAMS)
    is_labelled = data_args.dataset_name or data_args.train_dir
    has_teacher = not is_labelled and args.distillation_type != "none"
    label_names = names_without_labels(model_args, labels) if has_teacher else None
    images = load_data(
        data_args,
        label_names=label_names,
        on_bad_image=args.on_bad_image,
        check_images=args.check_images,
        once_per_machine=once_per_machine,
    )
    check_names(model_args, images.label_names)
    return images


def _learnt_images(images: ImageData, arguments: Arguments) -> ImageData:
    """What of the images the student learns from: without a teacher only those that keep their labels."""
    learnt = images.with_labels_kept(arguments.data.labels_kept, data_seed(arguments.training))
    if arguments.training.distillation_type != "none":
        return learnt
    if images.unlabeled is not None:
        raise InputError('unlabelled images are given but distillation_type is "none": no teacher labels them')
    return replace(learnt, unlabeled=None)


def make_student(
    model_args: ModelArguments, images: ImageData, seed: int
) -> tuple[PreTrainedModel, DistilledDeiTImageProcessor]:
    """The student that arguments name, for the labels of the images.

    Args:
        seed: for the weights that are made anew.

    Raises:
        InputError: see `hf_deit.models.student.load_student`.
    """
    set_seed(seed)
    return load_student(
        model_args.student,
        id2label=images.id2label,
        revision=model_args.student_revision,
        image_size=model_args.image_size,
        crop_ratio=model_args.crop_ratio,
        replace_head=model_args.replace_head,
        freeze=model_args.freeze,
        overrides=model_args.student_overrides,
    )


def as_range(name: str, text: str, example: str) -> range:
    """Reads "FIRST:LAST", LAST exclusive.

    Args:
        name: of the option, for the message.
        example: likewise.

    Raises:
        InputError: it is something else, or empty.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise InputError(f"{name} must be FIRST:LAST, say {example}, got {text!r}")
    return range(int(match[1]), int(match[2]))
