"""Where a run's parts come from: names on the Hub become commits, a pushed checkpoint becomes one to go on from."""

import json
import os
import re
import shutil
from dataclasses import replace
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from transformers import CONFIG_MAPPING

from ..data.load import DIGITS, DataArguments, ImageData
from ..errors import InputError
from ..hub.client import HUB_ERRORS, ask, keep_trying, why
from ..hub.facts import LOCAL_CHECKPOINT, RunSources, Source
from ..hub.revisions import declared_datasets, resolve_dataset_revision
from ..hub.run_folder import RECIPE_FILE, STATE_FILE
from ..models.pretrained import resolve_revision
from ..models.teacher import Teacher
from ..models.zoo import list_models
from ..recipes import load_recipe
from ..recipes.resolve import Arguments, published_recipe
from ..training.label_source import labels_commit
from ..training.processes import on_main_process

UNFINISHED_CHECKPOINT = "checkpoint.unfinished"
_DOWNLOAD_SECONDS = 120.0


def _is_on_hub(name: str | None) -> bool:
    """Whether a student's or teacher's name can be a Hub id."""
    return bool(name) and "/" in name and not os.path.exists(name) and name not in (*list_models(), *CONFIG_MAPPING)


def resolve_sources(arguments: Arguments) -> Arguments:
    """Puts the commits of student, teacher, data sets and kept labels that are on the Hub into their revisions.

    What is not there, or cannot be asked for, is left to whoever loads it, and to the cache.

    Raises:
        InputError: a data set or labels that are not there, or that this token may not read.
    """
    model_args, data_args, args = arguments

    def resolve() -> tuple[str | None, ...]:
        models = (
            (model_args.student, model_args.student_revision),
            (model_args.teacher_model_name_or_path, model_args.teacher_revision),
        )
        commits = [resolve_revision(name, revision) if _is_on_hub(name) else None for name, revision in models]
        sets = (
            (data_args.dataset_name, data_args.dataset_revision),
            (data_args.unlabeled_dataset_name, data_args.unlabeled_dataset_revision),
        )
        commits += [resolve_dataset_revision(name, revision) if name else None for name, revision in sets]
        return *commits, labels_commit(args)

    student, teacher, dataset, unlabeled, labels = on_main_process(resolve)
    args.teacher_labels_revision = labels or args.teacher_labels_revision
    model_args = replace(
        model_args,
        student_revision=student or model_args.student_revision,
        teacher_revision=teacher or model_args.teacher_revision,
    )
    data_args = replace(
        data_args,
        dataset_revision=dataset or data_args.dataset_revision,
        unlabeled_dataset_revision=unlabeled or data_args.unlabeled_dataset_revision,
    )
    return model_args, data_args, args


def describe_sources(
    arguments: Arguments, data: ImageData, teacher: Teacher | None, *, teacher_recipe: str | None, start: float
) -> RunSources:
    """What the card names as the origin of a run's model.

    Args:
        arguments: with commits as revisions.
        data: the images.
        teacher: the teacher, or None.
        teacher_recipe: by which the run has trained the teacher itself, or None.
        start: of the run, as `time.perf_counter()`.
    """
    model_args, data_args, _ = arguments
    if _is_on_hub(model_args.student):
        student = Source(model_args.student, model_args.student_revision, on_hub=True)
    else:
        known = model_args.student in (*list_models(), *CONFIG_MAPPING)
        student = Source(model_args.student) if known else LOCAL_CHECKPOINT
    teacher_source = None
    if teacher is not None and teacher_recipe is not None:
        name = os.path.basename(teacher_recipe)
        teacher_source = Source(f"a teacher that was trained on the same images (recipe `{name}`)")
    elif teacher is not None:
        teacher_source = Source.of_teacher(teacher)
    on_hub = teacher_source is not None and teacher_source.on_hub
    recipe = published_recipe(arguments)
    if teacher_recipe is not None:  # whoever takes the recipe trains a teacher, too
        recipe.pop("teacher_model_name_or_path", None)
    return RunSources(
        student=student,
        teacher=teacher_source,
        teacher_datasets=declared_datasets(teacher.name_or_path, teacher.revision) if on_hub else None,
        dataset=_dataset_source(data_args),
        dataset_config=data_args.dataset_config_name,
        train_split=data_args.train_split if data_args.dataset_name else "train",
        validation_split=_validation_split(data_args, data),
        unlabeled=_unlabeled_source(data_args),
        recipe=recipe,
        start=start,
    )


def _dataset_source(data_args: DataArguments) -> Source:
    name = data_args.dataset_name
    if name == DIGITS:
        return Source("scikit-learn's digits")
    if name is None:
        return Source("images of one's own" if data_args.train_dir else "labels of the teacher alone")
    if os.path.exists(name):
        return Source("a local data set")
    return Source(name, data_args.dataset_revision, on_hub=True, is_dataset=True)


def _unlabeled_source(data_args: DataArguments) -> Source | None:
    name = data_args.unlabeled_dataset_name
    if name is None or os.path.exists(name):
        return None if (name or data_args.unlabeled_dir) is None else Source("images of one's own")
    return Source(name, data_args.unlabeled_dataset_revision, on_hub=True, is_dataset=True)


def _validation_split(data_args: DataArguments, data: ImageData) -> str:
    if data_args.validation_split:
        return data_args.validation_split
    if data_args.validation_dir:
        return "validation"
    split = str(getattr(data.validation, "split", None))
    if split in ("None", data_args.train_split):
        return f"held out of {data_args.train_split}"
    return split


def fetch_checkpoint(source: str) -> tuple[str, dict[str, Any]]:
    """Downloads the newest checkpoint that a run has pushed, into the cache.

    Args:
        source: Hub id, or ID@REVISION.

    Returns:
        The checkpoint's folder in the cache, and the published recipe.

    Raises:
        InputError: there is none, or no right to read it.
    """
    repo_id, _, revision = source.partition("@")

    def find() -> tuple[str, str]:
        commit = HfApi().model_info(repo_id, revision=revision or None).sha
        files = HfApi().list_repo_files(repo_id, revision=commit)
        names = [name.removesuffix(f"/{STATE_FILE}") for name in files if name.endswith(f"/{STATE_FILE}")]
        numbers = {name: _number(name) for name in names if _number(name) is not None}
        if not numbers:
            raise InputError(
                f"{source!r} has no checkpoint to go on from: expected last-checkpoint or checkpoint-N, which a run "
                "pushes with --hub_strategy checkpoint or all_checkpoints"
            )
        return commit, max(numbers, key=numbers.__getitem__)

    what = f"downloading the checkpoint of {source}"
    try:
        commit, name = ask(find, what=what)
        patterns = [f"{name}/*", RECIPE_FILE]
        snapshot = keep_trying(
            lambda: snapshot_download(repo_id, revision=commit, allow_patterns=patterns),
            what=what,
            seconds=_DOWNLOAD_SECONDS,
        )
    except InputError:
        raise
    except HUB_ERRORS as error:
        raise InputError(f"cannot go on from {source!r} ({why(error)}): check its name and your token") from error
    recipe = os.path.join(snapshot, RECIPE_FILE)
    if not os.path.isfile(recipe):
        raise InputError(f"{source!r} has a checkpoint but no {RECIPE_FILE}: it was not pushed by a run of hf_deit")
    return os.path.join(snapshot, name), load_recipe(recipe)


def _number(name: str) -> float | None:
    """How new a checkpoint's folder is among others of its run; None if it is no checkpoint."""
    if name == "last-checkpoint":
        return float("inf")
    match = re.fullmatch(r"checkpoint-(\d+)", name)
    return None if match is None else int(match[1])


def adopt_checkpoint(fetched: str, output_dir: str) -> str:
    """Makes a checkpoint from `fetch_checkpoint` one of this run.

    Returns:
        Its folder.
    """
    unfinished = os.path.join(output_dir, UNFINISHED_CHECKPOINT)
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(fetched, unfinished)
    path = os.path.join(unfinished, STATE_FILE)
    with open(path, encoding="utf-8") as file:
        state = json.load(file)
    checkpoint = os.path.join(output_dir, f"checkpoint-{state['global_step']}")
    best = state.get("best_model_checkpoint")
    if best == os.path.basename(checkpoint):
        state["best_model_checkpoint"] = checkpoint
    elif best:  # only the newest one was fetched: the best so far is not at hand
        state["best_model_checkpoint"] = state["best_metric"] = state["best_global_step"] = None
    with open(path, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=2)
    os.replace(unfinished, checkpoint)
    return checkpoint
