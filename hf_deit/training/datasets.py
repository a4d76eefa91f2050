"""What a run's loaders iterate over: data sets as views or evaluation images, checked against student and teacher."""

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import datasets
from transformers import PreTrainedModel

from ..data.columns import (
    check_label_range,
    check_stored_images,
    find_columns,
    has_label_column,
    stored_column,
    without_format,
)
from ..data.image_data import join_unlabeled
from ..data.streams import ImageStream, StreamSampler, StreamViewDataset
from ..data.transforms import build_train_transform
from ..data.view_dataset import EvaluationDataset, KeyedViews, ViewDataset
from ..data.views import ViewSampler
from ..errors import InputError, did_you_mean, shortlist
from ..models.class_names import in_order, match_labels, unique_names
from ..models.configuration_deit import label2id_of
from ..models.heads import FUSED, HEADS
from ..models.image_processing_deit import DistilledDeiTImageProcessor, DistilledDeiTImageProcessorPil
from ..models.teacher import AnyDescription, AnyTeacher
from .arguments import DistillationTrainingArguments, check_fit
from .optimization import check_optimization


def check_arguments(
    args: DistillationTrainingArguments,
    model: PreTrainedModel,
    processor: DistilledDeiTImageProcessor,
    check_metric: bool = True,
    validation_sets: Collection[str] = (),
) -> None:
    """Refuses what would otherwise be noticed only in the middle of a run.

    Args:
        args: also those that were changed since they were made.
        model, processor: the student's.
        check_metric: whether metrics are those of `head_accuracies`.
        validation_sets: the names of several sets to evaluate on, which are before the metrics of each.

    Raises:
        InputError: an unknown metric or augmentation, an optimizer or a schedule that cannot be made, or a processor
            that does not do what training does.
    """
    heads = HEADS if hasattr(model, "distillation_classifier") else [FUSED]
    tops = ("top1", "top5") if model.config.num_labels >= 5 else ("top1",)
    metrics = {f"{head.prefix}{top}" for head in heads for top in tops} | {"loss"}
    if args.ema_decay:
        metrics |= {f"ema_{metric}" for metric in metrics}
    if validation_sets:
        metrics = {f"{name}_{metric}" for name in validation_sets for metric in metrics}
    check_fit(args)
    if check_metric and args.metric_for_best_model and args.metric_for_best_model.removeprefix("eval_") not in metrics:
        known, metric = sorted(metrics), args.metric_for_best_model
        near = "; did you mean 'top1'?" if "acc" in metric.lower() else did_you_mean(metric, known)
        raise InputError(f"metric_for_best_model must be one of {', '.join(known)}, got {metric!r}{near}")
    if check_metric and args.include_for_metrics:
        raise InputError(
            f"include_for_metrics is for a compute_metrics of one's own, got {args.include_for_metrics}: leave it out"
        )
    check_optimization(args, model)
    if (args.activation_checkpointing or args.gradient_checkpointing) and not model.supports_gradient_checkpointing:
        raise InputError(
            f"the student {type(model).__name__} keeps all its activations: leave --activation_checkpointing out"
        )
    if not isinstance(processor, DistilledDeiTImageProcessor | DistilledDeiTImageProcessorPil):
        raise InputError(f"processing_class must be a DistilledDeiTImageProcessor, got {type(processor).__name__}")
    switches = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    off = [name for name in switches if not getattr(processor, name)]
    if off or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise InputError(
            f"training resizes, crops, rescales by 1/255 and normalises; the image processor has "
            f"{' and '.join(off) or f'rescale_factor {processor.rescale_factor}'}{' off' if off else ''}"
        )
    train_transform(args, processor)


def check_teaching(
    args: DistillationTrainingArguments,
    model: PreTrainedModel,
    teacher: AnyTeacher | AnyDescription | None,
    *,
    has_unlabeled: bool,
) -> None:
    """Refuses a teacher, or the lack of one, that does not fit the arguments and the student.

    Args:
        has_unlabeled: whether there are images without labels beside the others.

    Raises:
        InputError: with what to do.
    """
    may_lack_teacher = args.distillation_type == "none" or args.teacher_labels is not None
    if teacher is None and not may_lack_teacher:
        raise InputError(
            f'distillation_type is "{args.distillation_type}" but there is no teacher: load one with load_teacher, or '
            'take distillation_type="none"'
        )
    if teacher is not None and args.distillation_type == "none":
        raise InputError('distillation_type is "none" but got a teacher: take "hard" or "soft"')
    if teacher is not None and len(teacher.id2label) != model.config.num_labels:
        raise InputError(
            f"the teacher has {len(teacher.id2label)} labels, the student {model.config.num_labels}: pass the "
            "student's id2label to load_teacher"
        )
    if has_unlabeled and args.distillation_type == "none":
        raise InputError("unlabelled images need a teacher, which labels them")


def train_transform(args: DistillationTrainingArguments, processor: DistilledDeiTImageProcessor) -> Any:
    """The training transform that the arguments ask for."""
    return build_train_transform(
        (processor.crop_size.height, processor.crop_size.width),
        image_mean=processor.image_mean,
        crop_scale_min=args.crop_scale_min,
        horizontal_flip=args.horizontal_flip,
        auto_augment=args.auto_augment,
    )


def kept_side(args: DistillationTrainingArguments, processor: DistilledDeiTImageProcessor) -> int | None:
    """To how many pixels the shorter side of an image is shrunk that is kept resized; None where none is."""
    if args.cache_images != "resized":
        return None
    return 2 * max(processor.crop_size.height, processor.crop_size.width)


def check_data(
    dataset: datasets.Dataset | datasets.IterableDataset, model: PreTrainedModel, teacher: AnyTeacher | None
) -> tuple[str, str]:
    """Checks that student and teacher have the data's labels in its order. A student without names gets the data's.

    Returns:
        The names of the image and the label column.

    Raises:
        InputError: other labels, or labels out of range.
    """
    image_column, label_column = find_columns(dataset)
    names = dict(enumerate(dataset.features[label_column].names))
    if len(names) != model.config.num_labels:
        raise InputError(
            f"the data set has {len(names)} labels ({shortlist(names.values(), 3)}), the student has "
            f"{model.config.num_labels}: make it with the data's id2label"
        )
    _name_labels(model, names)
    if isinstance(dataset, datasets.Dataset):
        check_label_range(stored_column(dataset, label_column), len(names), "given")
    for owner, labels in (("student", model.config.id2label), ("teacher", teacher and teacher.id2label)):
        if labels and match_labels(labels, names, owner=f"the {owner}") != sorted(names):
            raise InputError(f"the {owner} has the data's labels in another order: make it with the data's id2label")
    return image_column, label_column


def check_teacher_labels(model: PreTrainedModel, teacher: AnyTeacher) -> None:
    """Checks that student and teacher have the same labels in the same order, where no labelled data tell.

    A student without names gets the teacher's.

    Raises:
        InputError: other labels, or another order.
    """
    _name_labels(model, teacher.id2label)
    names = model.config.id2label
    if match_labels(teacher.id2label, names, owner="the teacher") != sorted(names):
        raise InputError(
            "the teacher has the student's labels in another order: pass the student's id2label to load_teacher"
        )


def _name_labels(model: PreTrainedModel, names: Mapping[int, str]) -> None:
    """Gives a student without names of labels these; those of its own that repeat are told apart."""
    own = model.config.id2label
    is_nameless = all(label == f"LABEL_{index}" for index, label in own.items())
    unique = unique_names(names if is_nameless else own)
    if unique != own:
        model.config.id2label, model.config.label2id = unique, label2id_of(unique)


def data_seed(args: DistillationTrainingArguments) -> int:
    """The seed of the views, and of a stream's order."""
    return args.seed if args.data_seed is None else args.data_seed


def as_views(
    dataset: Any,
    unlabeled: datasets.Dataset | None,
    *,
    args: DistillationTrainingArguments,
    model: PreTrainedModel,
    processor: DistilledDeiTImageProcessor,
    teacher: AnyTeacher | None,
    images_are_checked: bool = False,
) -> Any:
    """The training views of a data set or a stream, with those of unlabelled images; anything else as it is.

    Args:
        images_are_checked: whether the headers of the images were read before; see `check_stored_images`.

    Raises:
        InputError: student, teacher and data do not fit together, or images cannot be used.
    """
    if unlabeled is not None and not isinstance(dataset, datasets.Dataset | None):
        raise InputError(f"unlabelled images go with a datasets.Dataset or alone, got a {type(dataset).__name__}")
    if not isinstance(dataset, datasets.Dataset | ImageStream) and unlabeled is None:
        return dataset
    image_column, label_column = "image", "label"
    if isinstance(dataset, datasets.Dataset):
        dataset = without_format(dataset)
    if dataset is not None:
        rows = dataset.dataset if isinstance(dataset, ImageStream) else dataset
        image_column, label_column = check_data(rows, model, teacher)
    elif teacher is not None:
        check_teacher_labels(model, teacher)
    settings = {
        "seed": data_seed(args),
        "repeats": args.repeated_augmentation,
        "images_per_block": args.images_per_block,
        "erasing": args.erasing,
        "mixing": args.mixing,
        "on_bad_image": args.on_bad_image,
        "reduced_decoding": args.reduced_decoding,
    }
    transform = train_transform(args, processor)
    if isinstance(dataset, ImageStream):
        if args.cache_images != "off":
            raise InputError(
                f"cache_images keeps images by their rows, but a stream has none, got {args.cache_images!r}: leave "
                "it out"
            )
        if dataset.seed is None:
            dataset = replace(dataset, seed=data_seed(args))
        return StreamViewDataset(dataset, transform, **settings)
    if unlabeled is not None:
        dataset = join_unlabeled(dataset, unlabeled, in_order(model.config.id2label))
        image_column, label_column = "image", "label"
    if not images_are_checked:
        check_stored_images(dataset, image_column, "images to train on", args.on_bad_image, args.check_images)
    columns = {"image_column": image_column, "label_column": label_column}
    kept = {"cache_bytes": args.cache_bytes, "kept_side": kept_side(args, processor)}
    return ViewDataset(dataset, transform, **columns, **kept, **settings)


def as_evaluation(
    dataset: Any,
    *,
    args: DistillationTrainingArguments,
    model: PreTrainedModel,
    processor: DistilledDeiTImageProcessor,
    teacher: AnyTeacher | None,
    may_lack_labels: bool = False,
    images_are_checked: bool = False,
    where: str = "the validation images",
) -> Any:
    """The evaluation images of a data set, or of each of several by name; anything else as it is.

    Args:
        images_are_checked: see `as_views`.
        may_lack_labels: whether a data set without a column of labels is one to predict.
        where: what to call the images in messages.

    Raises:
        InputError: student, teacher and data do not fit together, or images cannot be used.
    """
    settings = {"args": args, "model": model, "processor": processor, "teacher": teacher}
    if isinstance(dataset, dict):
        return {name: as_evaluation(part, **settings) for name, part in dataset.items()}
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    dataset = without_format(dataset)
    if may_lack_labels and not has_label_column(dataset):
        dataset = join_unlabeled(None, dataset, in_order(model.config.id2label))
        image_column, label_column = "image", "label"
    else:
        image_column, label_column = check_data(dataset, model, teacher)
    if not images_are_checked:
        check_stored_images(dataset, image_column, "images to evaluate on", args.on_bad_image, args.check_images)
    columns = {"image_column": image_column, "label_column": label_column}
    return EvaluationDataset(dataset, processor, **columns, on_bad_image=args.on_bad_image, where=where)


def make_sampler(views: KeyedViews, args: DistillationTrainingArguments) -> ViewSampler | StreamSampler:
    """The order of a run's views."""
    if isinstance(views, StreamViewDataset):
        return StreamSampler(
            views.stream,
            batch_size=args.train_batch_size,
            total_batch_size=args.total_train_batch_size,
            rank=args.process_index,
            num_processes=args.world_size,
            repeats=args.repeated_augmentation,
            images_per_block=args.images_per_block,
        )
    return ViewSampler(
        len(views),
        seed=data_seed(args),
        total_batch_size=args.total_train_batch_size,
        repeats=args.repeated_augmentation,
        images_per_block=args.images_per_block,
    )


def first_samples(
    views: KeyedViews, args: DistillationTrainingArguments, most: int | None = None
) -> Iterator[tuple[list[Any], list[dict[str, Any]]]]:
    """The keys and samples of an epoch's first views, as many at once as in a batch, which has whole groups of them.

    Args:
        most: views; by default all of the epoch.
    """
    given = (key for key in make_sampler(views, args) if key is not None)  # which is another process's, of a stream
    given = itertools.islice(given, most)
    while keys := list(itertools.islice(given, args.train_batch_size)):
        samples = views.__getitems__(keys) if hasattr(views, "__getitems__") else [views[key] for key in keys]
        yield keys, samples


def steps_per_epoch(views: KeyedViews, args: DistillationTrainingArguments) -> int:
    """Optimizer steps of an epoch."""
    return len(make_sampler(views, args)) // args.total_train_batch_size
