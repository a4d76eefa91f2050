"""Where a run's parts come from: names on the Hub become commits, and words for the card."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import CONFIG_MAPPING

from ..data.arguments import DIGITS, DataArguments
from ..data.image_data import ImageData
from ..errors import counted
from ..evaluation.probe.card import accuracy_of
from ..hub.facts import (
    LOCAL_CHECKPOINT,
    LOCAL_DATA_SET,
    OWN_IMAGES,
    SKLEARN_DIGITS,
    TEACHERS_LABELS,
    Member,
    RunSources,
    Source,
    texts_of,
)
from ..hub.markdown import code_span
from ..hub.revisions import declared_datasets, declared_license, resolve_dataset_revision
from ..hub.run_folder import check_weights
from ..models.pretrained import name_and_revision, resolve_revision
from ..models.teacher import AnyDescription
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

    teacher_names = model_args.teacher_model_name_or_path
    are_several = isinstance(teacher_names, list)

    def commit_of(name: str | None, revision: str | None) -> str | None:
        if name and os.path.isdir(name):
            check_weights(name)
        return resolve_revision(name, revision) if _is_on_hub(name) else None

    def pinned(teacher: str) -> str:
        name, revision = name_and_revision(teacher)
        commit = commit_of(name, revision)
        return teacher if commit is None else f"{name}@{commit}"

    def resolve() -> tuple[Any, ...]:
        commits = [commit_of(model_args.student, model_args.student_revision)]
        if are_several:
            commits.append([pinned(name) for name in teacher_names])
        else:
            commits.append(commit_of(teacher_names, model_args.teacher_revision))
        sets = (
            (data_args.dataset_name, data_args.dataset_revision),
            (data_args.unlabeled_dataset_name, data_args.unlabeled_dataset_revision),
        )
        commits += [resolve_dataset_revision(name, revision) if name else None for name, revision in sets]
        return *commits, None if labels is None else labels.commit, _at_commit(model_args.teacher_probe)

    student, teacher, dataset, unlabeled, commit, probe = on_main_process(resolve)
    if labels is not None:
        labels.revision = commit or labels.revision
    resolved = Arguments(
        replace(
            model_args,
            student_revision=student or model_args.student_revision,
            teacher_model_name_or_path=teacher if are_several else teacher_names,
            teacher_revision=None if are_several else teacher or model_args.teacher_revision,
            teacher_probe=probe,
        ),
        replace(
            data_args,
            dataset_revision=dataset or data_args.dataset_revision,
            unlabeled_dataset_revision=unlabeled or data_args.unlabeled_dataset_revision,
        ),
        args,
    )
    return resolved.with_training(teacher_labels_revision=commit or args.teacher_labels_revision)


def _at_commit(backbone: str | None) -> str | None:
    """The name of a probe's backbone with its commit, if it is one of the Hub whose commit is known."""
    if not backbone:
        return backbone
    name, revision = name_and_revision(backbone)
    commit = resolve_revision(name, revision) if _is_on_hub(name) else None
    return f"{name}@{commit}" if commit else backbone


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
    sources: RunSources, arguments: Arguments, teacher: AnyDescription, *, made: str | None
) -> RunSources:
    """The origin of a run's model, with its teacher.

    Args:
        sources: from `describe_sources`.
        arguments: that name the teacher.
        made: what the teacher is, as the card says it, if the run has made it itself; see `words_of_trained`.
    """
    recipe = published_recipe(arguments)
    if made is None:
        named = Source.of_teacher(teacher)
        described = getattr(teacher, "members", (teacher,))
        terms = on_main_process(lambda: [declared_license(one.name_or_path, one.revision) or "" for one in described])
        members = [
            replace(one, datasets=_stated(one.source), license=stated)
            for one, stated in zip(Member.all_of(teacher), terms, strict=False)
        ]
        return replace(
            sources,
            teacher=named,
            teacher_members=members,
            teacher_datasets=_stated(named),
            teacher_license=None if members else terms[0],
            teacher_texts=texts_of(teacher),
            recipe=recipe,
        )
    recipe.pop("teacher_model_name_or_path", None)  # whoever takes the recipe makes a teacher, too
    return replace(sources, teacher=Source(made), recipe=recipe)


def words_of_trained(recipe: str, arguments: Arguments) -> str:
    """A teacher that the run has trained by a recipe, in words of the card."""
    labels = " with all their labels" if arguments.data.labels_kept else ""
    return f"a teacher that was trained on the same images{labels} (recipe {code_span(os.path.basename(recipe))})"


def words_of_probe(content: Mapping[str, Any]) -> str:
    """A probe that the run has fitted, in words of the card.

    Args:
        content: of its `PROBE_FILE`.
    """
    name, revision = content["backbone"]["name_or_path"], content["backbone"]["revision"]
    backbone = (
        f"{code_span(name)} at commit {code_span(revision[:12])}" if revision else "a backbone from a local folder"
    )
    number = content["cross_validation"]["num_images"]
    return (
        f"a linear probe of {backbone}, fitted on {counted(number, 'training image')} (cross-validated accuracy "
        f"{accuracy_of(content)})"
    )


def _stated(teacher: Source) -> list[str] | None:
    """The data sets that a teacher was trained on, as its card on the Hub says."""
    return declared_datasets(teacher.name, teacher.commit) if teacher.on_hub else None


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


def names_to_compare(teacher: AnyDescription) -> list[str]:
    """The teachers that hf-deit evaluate can ask by their names, the first first.

    Those with the student's classes in their files; a zero-shot model, say, has none.
    """
    members = getattr(teacher, "members", [teacher])
    return [one.pinned_name for one in members if one.prompts is None and not one.is_subset]
