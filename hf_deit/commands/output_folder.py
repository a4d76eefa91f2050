"""The folder that a run writes to: what a run may begin in, and what one that was stopped has left there.

A folder without a whole checkpoint and without a model holds the beginnings of a run, of which a trained teacher alone
is worth keeping: the same command begins again there, with or without `--resume_from_checkpoint true`. A folder with
either holds a run, which is refused without that option, and goes on with it: from the last whole checkpoint or, where
none was saved, from the start. So one of both ways is always open. Files that no run writes are never touched, and
only a run that was begun goes on beside them.
"""

import os
import re
import shutil

from accelerate import PartialState

from ..errors import InputError, shortlist
from ..evaluation.probe.arguments import PROBE_FILE
from ..hub.files import is_leftover, remove_leftovers, temporary_beside, writing
from ..hub.run_folder import RECIPE_FILE, last_whole_checkpoint, list_checkpoints
from ..hub.run_lock import is_lock_file, not_writable
from ..labels.files import DATA, LOCK_FILE, PARTS, STORE_FILE
from ..recipes.sameness import TRAINED_TEACHER
from ..training.checkpoints import remove_torn_checkpoints

UNFINISHED_TEACHER = "teacher.unfinished"
UNFINISHED_CHECKPOINT = "checkpoint.unfinished"
# What a run writes before it has a recipe, and with one, but for checkpoints and the weights.
_OF_A_TEACHER = (RECIPE_FILE, PROBE_FILE)  # one of them is in the folder of every one that a run has made
_BEGINNINGS = (RECIPE_FILE, UNFINISHED_TEACHER, UNFINISHED_CHECKPOINT)
_BESIDE_A_RECIPE = re.compile(r"runs|_publishing\w*|config\.json|trainer_state\.json|(all|eval|test)_results\.json")


def check_output_dir(output_dir: str, *, resuming: bool, labels: str | None = None) -> None:
    """Refuses an output folder that cannot be written, or that holds another run, or what is of no run.

    Args:
        output_dir: the folder.
        resuming: whether the run that it holds is this one.
        labels: a folder of kept labels, which may lie in it.

    Raises:
        InputError: with what to do.
    """
    state = PartialState()
    try:
        os.makedirs(output_dir, exist_ok=True)
        others = [] if resuming else _others(output_dir, labels)
        can_go_on = bool(others) and (is_begun(output_dir) or last_whole_checkpoint(output_dir) is not None)
        odd = sorted(entry.name for entry in os.scandir(output_dir) if not _takes_writing(entry.path))
        state.wait_for_everyone()  # another process's probe is no run
        _probe(output_dir)
    except OSError as error:
        raise not_writable(output_dir, error) from error
    if can_go_on:
        raise InputError(
            f"the output folder {output_dir!r} holds another run: go on with it (--resume_from_checkpoint true), give "
            "another --output_dir, or remove it"
        )
    if others:
        raise InputError(
            f"the output folder {output_dir!r} holds what is of no run that could go on ({shortlist(others)}): give "
            "another --output_dir, or move that away"
        )
    if odd:
        raise InputError(
            f"the output folder {output_dir!r} holds {shortlist(odd)}, neither files nor folders: remove what is no "
            "part of a run, which would wait for whoever reads it"
        )
    state.wait_for_everyone()  # no process may write before all have looked


def is_begun(output_dir: str) -> bool:
    """Whether a run was begun in a folder, so that it can go on, or begin again.

    One that died before it had made anything, while it loaded its images, say, has begun nothing yet.
    """
    marks = (RECIPE_FILE, UNFINISHED_TEACHER)
    has_mark = any(os.path.exists(os.path.join(output_dir, mark)) for mark in marks)
    return has_mark or _is_teacher(os.path.join(output_dir, TRAINED_TEACHER))


def _is_teacher(folder: str) -> bool:
    """Whether a folder is that of a whole teacher that a run has made."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in _OF_A_TEACHER)


def clear_beginnings(output_dir: str, *, keep: str | None = None) -> None:
    """Removes what runs that were stopped have left half-done. For one process of a run that owns the folder.

    Args:
        output_dir: the folder.
        keep: the checkpoint that the run goes on from, if it does; it sees to the others.

    Raises:
        CheckpointError: the disk refuses.
    """
    with writing(f"to the output folder {output_dir!r}"):
        for folder in (output_dir, *list_checkpoints(output_dir)):
            remove_leftovers(folder)
        for name in (UNFINISHED_TEACHER, UNFINISHED_CHECKPOINT):
            remove_folder(os.path.join(output_dir, name))
        if keep is None:
            remove_torn_checkpoints(output_dir)


def begin_teacher(output_dir: str) -> str:
    """Makes the folder of a teacher that is to be trained, without what is left of one. From now on a run is begun.

    Raises:
        CheckpointError: the disk refuses.
    """
    folder = os.path.join(output_dir, UNFINISHED_TEACHER)
    with writing(f"to the output folder {output_dir!r}"):
        remove_folder(folder)
        os.makedirs(folder)
    return folder


def remove_folder(folder: str) -> None:
    """Removes a folder, if there is one, and all that is in it.

    Raises:
        OSError: it cannot be removed.
    """
    if os.path.lexists(folder):
        shutil.rmtree(folder)


def _others(output_dir: str, labels: str | None) -> list[str]:
    """The names of what a folder holds beside beginnings."""
    begun = os.path.isfile(os.path.join(output_dir, RECIPE_FILE))
    torn = [os.path.basename(path) for path in list_checkpoints(output_dir)] if begun else []
    if torn and last_whole_checkpoint(output_dir) is not None:
        return torn
    return sorted(
        entry.name
        for entry in os.scandir(output_dir)
        if not (
            entry.name in _BEGINNINGS
            or is_lock_file(entry.name)
            or entry.name in torn
            or (begun and _BESIDE_A_RECIPE.fullmatch(entry.name))
            or is_leftover(entry.path)
            or (entry.name == TRAINED_TEACHER and _is_teacher(entry.path))
            or (labels is not None and _is_of_store(entry.path, labels))
        )
    )


def _is_of_store(path: str, labels: str) -> bool:
    """Whether something in an output folder is a label store, a folder in which that stands alone, or a part of it."""
    path, labels = os.path.abspath(path), os.path.abspath(labels)
    if os.path.dirname(path) == labels:
        return os.path.basename(path) in (STORE_FILE, DATA, PARTS, LOCK_FILE)
    while path != labels and labels.startswith(os.path.join(path, "")):
        names = os.listdir(path)
        if len(names) != 1:
            return not names
        path = os.path.join(path, names[0])
    return path == labels


def _takes_writing(path: str) -> bool:
    """Whether a run that writes here goes on: pipes, and devices, may be waited for."""
    return os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)


def _probe(folder: str) -> None:
    """Raises an OSError if no file can be made in a folder."""
    path = temporary_beside(os.path.join(folder, "probe"))
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.remove(path)
