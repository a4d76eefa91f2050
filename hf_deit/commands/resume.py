"""Going on with a run: under its own arguments, from a checkpoint on disk or one that it has pushed."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from transformers.utils import logging

from ..errors import InputError
from ..hub.checksums import renew_checksums
from ..hub.client import HUB_ERRORS, ask, keep_trying, why
from ..hub.files import read_json, write_json, writing
from ..hub.record import LAST_CHECKPOINT, is_checkpoint
from ..hub.run_folder import (
    RECIPE_FILE,
    STATE_FILE,
    TornCheckpointError,
    check_whole,
    last_whole_checkpoint,
    step_of,
)
from ..models.teacher import AnyDescription
from ..recipes import load_recorded
from ..recipes.resolve import Arguments, applied_changes, check_same_run, take_revisions, unused_at_the_end
from ..recipes.sameness import NOTED, is_same_path
from ..training.arguments import DistillationTrainingArguments
from ..training.checkpoints import check_same_labels, check_unchanged, find_checkpoint, resume_wish
from ..training.early_stopping import has_stopped_early
from ..training.label_source import LabelSource
from ..training.origin import compared_in, teacher_in
from ..training.processes import on_main_process
from ..training.trainer import DistillationTrainer
from .output_folder import UNFINISHED_CHECKPOINT, is_begun, remove_folder
from .sources import resolve_sources

logger = logging.get_logger(__name__)

_DOWNLOAD_SECONDS = 120.0


@dataclass
class Beginning:
    """Where a run begins.

    Attributes:
        arguments: with commits as revisions; of a run that goes on, those that it was started with.
        labels: the label store that they name, or None.
        checkpoint: a folder to go on from, or None.
        fetched: a checkpoint in the cache that shall become one of this run, or None.
        before: what a run that goes on was trained with until here, where the arguments say otherwise from here on.
    """

    arguments: Arguments
    labels: LabelSource | None
    checkpoint: str | None = None
    fetched: str | None = None
    before: dict[str, Any] = field(default_factory=dict)

    def check_labels(self, id2label: Mapping[int, str]) -> None:
        """Refuses to go on with a run of other classes than those of the data, before a teacher is trained for them.

        Args:
            id2label: names of the labels by index, as the data has them.

        Raises:
            InputError: names, number or order differ.
        """
        if (begins_with := self.fetched or self.checkpoint) is not None:
            on_main_process(lambda: check_same_labels(begins_with, id2label, "the run of"))

    def check_checkpoint(self, trainer: DistillationTrainer) -> None:
        """Refuses a checkpoint that the run cannot go on from, before anything of the run is written anew.

        Raises:
            InputError: see `DistillationTrainer.check_checkpoint`.
        """
        if (begins_with := self.fetched or self.checkpoint) is not None:
            trainer.changes = on_main_process(lambda: self._changes(begins_with))
            trainer.check_checkpoint(begins_with)

    def as_it_ran(self, teacher: AnyDescription) -> AnyDescription:
        """The teacher of a run that goes on, to run as it did; of a new one, as it is."""
        begins_with = self.fetched or self.checkpoint
        return teacher if begins_with is None else teacher.decided_by(on_main_process(lambda: teacher_in(begins_with)))

    def take_checkpoint(self) -> str | None:
        """The checkpoint to go on from, in the run's own folder, or None.

        Raises:
            CheckpointError: it cannot be written there.
        """
        if self.fetched is None:
            return self.checkpoint
        return on_main_process(lambda: adopt_checkpoint(self.fetched, self.arguments.training.output_dir))

    def _changes(self, checkpoint: str) -> list[str]:
        step, is_over = _progress(checkpoint, self.arguments.training)
        noted = {name: value for name, value in self.before.items() if name in NOTED and not is_over}
        return [f"{name} {str(value).lower()} until step {step:,}" for name, value in noted.items()]

    def as_used(self, arguments: Arguments) -> Arguments:
        """The arguments by which a run was trained: one that is at its end takes up no others that train otherwise.

        Args:
            arguments: of the run as it goes on.
        """
        begins_with = self.fetched or self.checkpoint
        if not self.before or begins_with is None:
            return arguments
        _, is_over = on_main_process(lambda: _progress(begins_with, arguments.training))
        if not is_over:
            return arguments
        # A patience that ends the run here and now is what it was trained with.
        ends_by = {"early_stopping_patience"} if arguments.training.early_stopping_patience is not None else set()
        return arguments.with_training(**{name: self.before[name] for name in self.before.keys() - ends_by})


def _progress(checkpoint: str, args: DistillationTrainingArguments) -> tuple[int, bool]:
    """The step of a checkpoint, and whether its run was at its end then, or is by the arguments of now."""
    state = read_json(os.path.join(checkpoint, STATE_FILE))
    step, num_steps = state["global_step"], state["max_steps"]
    is_over = step >= num_steps or has_stopped_early(
        args, state.get("log_history") or [], step=step, num_steps=num_steps
    )
    return step, is_over


def begin(arguments: Arguments) -> Beginning:
    """Finds out whether a run is new or goes on, and from where; names on the Hub become commits.

    Raises:
        InputError: there is nothing to go on from, or the arguments are those of another run.
    """
    args = arguments.training
    wish, folder = resume_wish(args.resume_from_checkpoint), args.output_dir
    recipe_file = os.path.join(folder, RECIPE_FILE)

    def look() -> tuple[str | None, bool, bool]:
        own = last_whole_checkpoint(folder) if wish is True else wish
        return own, is_begun(folder), os.path.isfile(recipe_file)

    own, was_begun, has_recipe = on_main_process(look)
    if args.resume_from_hub is not None and own is None:
        fetched, published = on_main_process(lambda: fetch_checkpoint(args.resume_from_hub))
        return _go_on(arguments, published, fetched=fetched)
    if own is None and was_begun:
        logger.warning("the run that was begun in %s has no checkpoint: it starts again", folder)
    if wish is None:
        return _start(arguments)
    beginning = _go_on(arguments, recipe_file, checkpoint=own) if has_recipe else _start(arguments)
    if own is not None or not was_begun:
        checkpoint = beginning.checkpoint = find_checkpoint(args.resume_from_checkpoint, folder)
        on_main_process(lambda: check_unchanged(checkpoint))  # before anything that takes its time
        _check_recipe_beside(beginning)
    return beginning


def _check_recipe_beside(beginning: Beginning) -> None:
    """Refuses a checkpoint from another folder that is of another run; see `check_same_run`."""
    folder = os.path.dirname(os.path.normpath(beginning.checkpoint))
    recipe = os.path.join(folder, RECIPE_FILE)
    if os.path.isfile(recipe) and not is_same_path(folder, beginning.arguments.training.output_dir):
        check_same_run(recipe, beginning.arguments, compared=_compared(beginning.checkpoint))


def _compared(checkpoint: str | None) -> set[str]:
    return set() if checkpoint is None else on_main_process(lambda: compared_in(checkpoint))


def _start(arguments: Arguments) -> Beginning:
    labels = LabelSource.of(arguments.training)
    return Beginning(resolve_sources(arguments, labels), labels)


def _go_on(
    arguments: Arguments,
    recipe: str | dict[str, Any],
    *,
    checkpoint: str | None = None,
    fetched: str | None = None,
) -> Beginning:
    beginning = _start(take_revisions(recipe, arguments))
    check_same_run(recipe, beginning.arguments, compared=_compared(fetched or checkpoint))
    for line in applied_changes(recipe, beginning.arguments):
        logger.warning("%s", line)
    beginning.fetched, beginning.before = fetched, unused_at_the_end(recipe, beginning.arguments)
    return beginning


def fetch_checkpoint(source: str) -> tuple[str, dict[str, Any]]:
    """Downloads the newest checkpoint that a run has pushed, into the cache.

    Args:
        source: Hub id, or ID@REVISION.

    Returns:
        The checkpoint's folder in the cache, and the published recipe.

    Raises:
        InputError: there is none, or no right to read it, or what was fetched is not what a run has written.
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
    checkpoint = os.path.join(snapshot, name)
    way_out = f"remove {snapshot} to fetch it anew, or take an earlier commit, --resume_from_hub {repo_id}@COMMIT"
    try:
        check_whole(checkpoint, way_out=way_out)
    except TornCheckpointError as error:
        raise InputError(f"cannot go on from {source!r}, {error}: {way_out}") from error
    check_unchanged(checkpoint, way_out=way_out)
    return checkpoint, load_recorded(recipe)


def _number(name: str) -> float | None:
    """How new a checkpoint's folder is among others of its run; None if it is no checkpoint."""
    if not is_checkpoint(name):
        return None
    return float("inf") if name == LAST_CHECKPOINT else step_of(name)


def adopt_checkpoint(fetched: str, output_dir: str) -> str:
    """Makes a checkpoint from `fetch_checkpoint` one of this run.

    Returns:
        Its folder.

    Raises:
        CheckpointError: it cannot be written there.
    """
    unfinished = os.path.join(output_dir, UNFINISHED_CHECKPOINT)
    with writing(f"the checkpoint to {output_dir!r}"):
        return _adopt(fetched, unfinished, output_dir)


def _adopt(fetched: str, unfinished: str, output_dir: str) -> str:
    remove_folder(unfinished)
    shutil.copytree(fetched, unfinished)
    path = os.path.join(unfinished, STATE_FILE)
    state = read_json(path)
    checkpoint = os.path.join(output_dir, f"checkpoint-{state['global_step']}")
    best = state.get("best_model_checkpoint")
    if best == os.path.basename(checkpoint):
        state["best_model_checkpoint"] = checkpoint
    elif best:  # only the newest one was fetched: the best so far is not at hand
        state["best_model_checkpoint"] = state["best_metric"] = state["best_global_step"] = None
    write_json(state, path)
    renew_checksums(unfinished, unfinished, changed=[STATE_FILE], without=())
    os.replace(unfinished, checkpoint)
    return checkpoint
