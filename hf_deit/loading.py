"""What a run's loaders iterate over: data sets as views or evaluation images, checked, and the order of the views."""

from dataclasses import replace
from typing import Any

import datasets
from transformers import PreTrainedModel

from .checks import check_data, check_teacher_labels, train_transform
from .data import join_unlabeled
from .errors import InputError
from .image_processing_deit import DistilledDeiTImageProcessor
from .streams import ImageStream, StreamSampler, StreamViewDataset
from .teacher import Teacher
from .training_args import DistillationTrainingArguments
from .view_dataset import EvaluationDataset, KeyedViews, ViewDataset
from .views import ViewSampler


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
    teacher: Teacher | None,
) -> Any:
    """The training views of a data set or a stream, with those of unlabelled images; anything else as it is.

    Raises:
        InputError: student, teacher and data do not fit together.
    """
    if unlabeled is not None and not isinstance(dataset, datasets.Dataset | None):
        raise InputError(f"unlabelled images go with a datasets.Dataset or alone, got a {type(dataset).__name__}")
    if not isinstance(dataset, datasets.Dataset | ImageStream) and unlabeled is None:
        return dataset
    image_column, label_column = "image", "label"
    if dataset is not None:
        rows = dataset.dataset if isinstance(dataset, ImageStream) else dataset
        image_column, label_column = check_data(rows, model, teacher)
    elif teacher is not None:
        check_teacher_labels(model, teacher)
    settings = {
        "seed": data_seed(args),
        "erasing": args.erasing,
        "mixing": args.mixing,
        "on_bad_image": args.on_bad_image,
    }
    transform = train_transform(args, processor)
    if isinstance(dataset, ImageStream):
        if dataset.seed is None:
            dataset = replace(dataset, seed=data_seed(args))
        return StreamViewDataset(dataset, transform, **settings)
    if unlabeled is not None:
        dataset = join_unlabeled(dataset, unlabeled, [label for _, label in sorted(model.config.id2label.items())])
        image_column, label_column = "image", "label"
    return ViewDataset(dataset, transform, image_column=image_column, label_column=label_column, **settings)


def as_evaluation(
    dataset: Any,
    *,
    args: DistillationTrainingArguments,
    model: PreTrainedModel,
    processor: DistilledDeiTImageProcessor,
    teacher: Teacher | None,
) -> Any:
    """The evaluation images of a data set, or of each of several by name; anything else as it is.

    Raises:
        InputError: student, teacher and data do not fit together.
    """
    settings = {"args": args, "model": model, "processor": processor, "teacher": teacher}
    if isinstance(dataset, dict):
        return {name: as_evaluation(part, **settings) for name, part in dataset.items()}
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    image_column, label_column = check_data(dataset, model, teacher)
    return EvaluationDataset(
        dataset, processor, image_column=image_column, label_column=label_column, on_bad_image=args.on_bad_image
    )


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
        )
    return ViewSampler(
        len(views),
        seed=data_seed(args),
        total_batch_size=args.total_train_batch_size,
        repeats=args.repeated_augmentation,
    )
