"""Where a run's parts come from: names on the Hub become commits, and words for the card."""

import os
from dataclasses import replace

from transformers import CONFIG_MAPPING

from ..data.arguments import DIGITS, DataArguments
from ..data.image_data import ImageData
from ..hub.facts import (
    LOCAL_CHECKPOINT,
    LOCAL_DATA_SET,
    OWN_IMAGES,
    SKLEARN_DIGITS,
    TEACHERS_LABELS,
    RunSources,
    Source,
)
from ..hub.markdown import code_span
from ..hub.revisions import declared_datasets, resolve_dataset_revision
from ..hub.run_folder import check_weights
from ..models.pretrained import resolve_revision
from ..models.teacher import TeacherDescription
from ..models.zoo import list_models
from ..recipes.resolve import Arguments, published_recipe
from ..training.label_source import LabelSource
from ..training.processes import on_main_process


def _is_on_hub(name: str | None) -> bool:
    """Whether a student's or teacher's name can be a Hub id."""
    return bool(name) and "/" in name and not os.path.exists(name) and name not in (*list_models(), *CONFIG_MAPPING)


def resolve_sources(arguments: Arguments, labels: LabelSource | None = None) -> Arguments:
    """Puts the commits of student, teacher, data sets and kept labels that are on the Hub into their revisions.

    What is not there, or cannot be asked for, is left to whoever loads it, and to the cache.

    Args:
        arguments: of a run.
        labels: the store that they name; it is read at its commit from here on.

    Raises:
        InputError: a data set or labels that are not there, or that this token may not read; or a student or teacher
            in a checkpoint of a run whose weights are not what was written.
    """
    model_args, data_args, args = arguments

    def resolve() -> tuple[str | None, ...]:
        models = (
            (model_args.student, model_args.student_revision),
            (model_args.teacher_model_name_or_path, model_args.teacher_revision),
        )
        for name, _ in models:
            if name and os.path.isdir(name):
                check_weights(name)
        commits = [resolve_revision(name, revision) if _is_on_hub(name) else None for name, revision in models]
        sets = (
            (data_args.dataset_name, data_args.dataset_revision),
            (data_args.unlabeled_dataset_name, data_args.unlabeled_dataset_revision),
        )
        commits += [resolve_dataset_revision(name, revision) if name else None for name, revision in sets]
        return *commits, None if labels is None else labels.commit

    student, teacher, dataset, unlabeled, commit = on_main_process(resolve)
    if labels is not None:
        labels.revision = commit or labels.revision
    resolved = Arguments(
        replace(
            model_args,
            student_revision=student or model_args.student_revision,
            teacher_revision=teacher or model_args.teacher_revision,
        ),
        replace(
            data_args,
            dataset_revision=dataset or data_args.dataset_revision,
            unlabeled_dataset_revision=unlabeled or data_args.unlabeled_dataset_revision,
        ),
        args,
    )
    return resolved.with_training(teacher_labels_revision=commit or args.teacher_labels_revision)


def describe_sources(arguments: Arguments, data: ImageData, *, start: float) -> RunSources:
    """What the card names as the origin of a run's model, but for the teacher.

    Args:
        arguments: with commits as revisions.
        data: the images.
        start: of the run, as `time.perf_counter()`.
    """
    model_args, data_args, _ = arguments
    if _is_on_hub(model_args.student):
        student = Source(model_args.student, model_args.student_revision, on_hub=True)
    else:
        known = model_args.student in (*list_models(), *CONFIG_MAPPING)
        student = Source(model_args.student) if known else LOCAL_CHECKPOINT
    return RunSources(
        student=student,
        teacher=None,
        dataset=_dataset_source(data_args),
        dataset_config=data_args.dataset_config_name,
        train_split=data_args.train_split if data_args.dataset_name else "train",
        validation_split=validation_split(data_args, data),
        test_split=data_args.test_split or "test",
        unlabeled=_unlabeled_source(data_args),
        recipe=published_recipe(arguments),
        start=start,
    )


def with_teacher(
    sources: RunSources, arguments: Arguments, teacher: TeacherDescription, *, trained_by: str | None
) -> RunSources:
    """The origin of a run's model, with its teacher.

    Args:
        sources: from `describe_sources`.
        arguments: that name the teacher.
        trained_by: the recipe by which the run has trained the teacher itself, or None.
    """
    recipe = published_recipe(arguments)
    if trained_by is None:
        named = Source.of_teacher(teacher)
        stated = declared_datasets(named.name, named.commit) if named.on_hub else None
        return replace(sources, teacher=named, teacher_datasets=stated, recipe=recipe)
    labels = " with all their labels" if arguments.data.labels_kept else ""
    by = code_span(os.path.basename(trained_by))
    named = Source(f"a teacher that was trained on the same images{labels} (recipe {by})")
    recipe.pop("teacher_model_name_or_path", None)  # whoever takes the recipe trains a teacher, too
    return replace(sources, teacher=named, recipe=recipe)


def _dataset_source(data_args: DataArguments) -> Source:
    name = data_args.dataset_name
    if name == DIGITS:
        return SKLEARN_DIGITS
    if not name:
        return OWN_IMAGES if data_args.train_dir else TEACHERS_LABELS
    if os.path.exists(name):
        return LOCAL_DATA_SET
    return Source(name, data_args.dataset_revision, on_hub=True, is_dataset=True)


def _unlabeled_source(data_args: DataArguments) -> Source | None:
    name = data_args.unlabeled_dataset_name
    if not name or os.path.exists(name):
        return None if (name or data_args.unlabeled_dir) is None else OWN_IMAGES
    return Source(name, data_args.unlabeled_dataset_revision, on_hub=True, is_dataset=True)


def validation_split(data_args: DataArguments, data: ImageData) -> str:
    """What the images to validate with are called: their split, or "held out of" the one they were part of."""
    if data_args.validation_split:
        return data_args.validation_split
    if data_args.validation_dir:
        return "validation"
    split = str(getattr(data.validation, "split", None))
    if split in ("None", data_args.train_split):
        return f"held out of {data_args.train_split}"
    return split
