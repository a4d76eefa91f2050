"""What a run writes into its folder: the names of its files, and its checkpoints."""

import dataclasses
import json
import os
import re

from transformers import TrainerState
from transformers.utils import logging

from ..errors import InputError, brief, one_line
from .checksums import CHECKSUMS_FILE, find_fault, read_checksums
from .files import open_regular

logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
RECIPE_FILE = "recipe.yaml"
CURVES_FILE = "training_curves.png"
ENVIRONMENT_FILE = "environment.json"
RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"  # of a checkpoint: what the Trainer writes last

# Of the Trainer's state: what it counts with when a run goes on. Others have defaults, and say nothing of the run.
_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("global_step", "max_steps", "num_input_tokens_seen"), (int,)),
    **dict.fromkeys(("epoch", "num_train_epochs", "total_flos", "logging_steps", "eval_steps", "save_steps"), _NUMBER),
    "train_batch_size": (int, type(None)),
    "log_history": (list, type(None)),
    "best_metric": (*_NUMBER, type(None)),
    "best_global_step": (int, type(None)),
    "best_model_checkpoint": (str, type(None)),
    "stateful_callbacks": (dict, type(None)),
}


class TornCheckpointError(InputError):
    """A checkpoint that was not written to its end, or of which a part is gone: nothing can go on from it.

    Attributes:
        was_whole: whether it was once written to its end.
    """

    def __init__(self, message: str, *, was_whole: bool = False) -> None:
        super().__init__(message)
        self.was_whole = was_whole


def list_checkpoints(output_dir: str | os.PathLike[str]) -> list[str]:
    """The folders checkpoint-N of a run, N ascending; none if there is no such run.

    Raises:
        InputError: the folder cannot be read.
    """
    if not os.path.isdir(output_dir):
        return []
    try:
        entries = list(os.scandir(output_dir))
    except OSError as error:
        raise InputError(f"cannot read the folder of the run ({one_line(error)}): mend its rights") from error
    numbered = [(step_of(entry.name), entry.path) for entry in entries if not entry.is_file(follow_symlinks=False)]
    return [path for _, path in sorted((number, path) for number, path in numbered if number is not None)]


def step_of(path: str | os.PathLike[str]) -> int | None:
    """How many steps a checkpoint has, by the name of its folder, checkpoint-N; None of another folder."""
    match = re.fullmatch(r"checkpoint-(\d+)", os.path.basename(os.path.normpath(path)))
    return None if match is None else int(match[1])


def read_state(checkpoint: str | os.PathLike[str]) -> TrainerState:
    """The Trainer's state in a checkpoint, without the fields that this release of transformers does not know.

    It names the best checkpoint by its place: where the run's folder was moved, it is the one beside this one.

    Raises:
        TornCheckpointError: it is not there, or its end is not.
        InputError: it cannot be read, or says something else. The checkpoint may be a good one all the same.
    """
    path = os.path.join(checkpoint, STATE_FILE)
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError as error:
        if os.path.lexists(path) or (os.path.islink(checkpoint) and not os.path.exists(checkpoint)):
            raise _unclear("it leads to a place that is not there: is its disk mounted?") from error
        raise TornCheckpointError(f"it has no {STATE_FILE}") from error
    except OSError as error:
        raise _unclear(one_line(error)) from error
    try:
        stated = json.loads(content)
    except (ValueError, RecursionError) as error:
        size = _recorded_size(checkpoint)
        if _is_cut_off(content) and (size is None or len(content) < size):
            raise TornCheckpointError(f"{STATE_FILE} is cut off", was_whole=size is not None) from error
        raise _unclear(f"it is no JSON: {one_line(error)}") from error
    if not isinstance(stated, dict) or "global_step" not in stated:
        raise _unclear("it names no global_step")
    for name, types in _TYPES.items():
        if name in stated and (not isinstance(stated[name], types) or isinstance(stated[name], bool)):
            raise _unclear(f"its {name} is {brief(stated[name], most=60)}")
    if stated["global_step"] < 0:
        raise _unclear(f"its global_step is {stated['global_step']}")
    if not all(isinstance(entry, dict) for entry in stated.get("log_history") or ()):
        raise _unclear("its log_history is no list of objects")
    known = {field.name for field in dataclasses.fields(TrainerState)}
    if unknown := sorted(set(stated) - known):  # of a newer release of transformers
        logger.info("%s has fields that are not known here: %s", path, ", ".join(unknown))
    state = TrainerState(**{name: value for name, value in stated.items() if name in known})
    if best := state.best_model_checkpoint:
        beside = os.path.join(os.path.dirname(os.path.normpath(checkpoint)), os.path.basename(best))
        state.best_model_checkpoint = beside if os.path.isdir(beside) else best
    return state


def _unclear(why: str) -> InputError:
    return InputError(f"{STATE_FILE} cannot be read ({why})")


def _recorded_size(checkpoint: str | os.PathLike[str]) -> int | None:
    """How many bytes the state of a checkpoint had when its checksums were written; None if they were not."""
    try:
        files = read_checksums(checkpoint) or {}
    except ValueError:
        return 0  # nothing is proved
    return files[STATE_FILE].size if STATE_FILE in files else None


def _is_cut_off(content: bytes) -> bool:
    """Whether bytes that are no JSON are the beginning of an object, perhaps with zeros for what never was written."""
    try:
        text = content.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        text = content[: error.start].decode()
    if not text.strip():
        return True
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        if not rest.strip():
            return text.lstrip().startswith("{")
        if text.rstrip().endswith("}"):
            return False
        words = ("true", "false", "null", "NaN", "-Infinity", "Infinity", ".", "e+", "e-")  # and ends of numbers
        is_in_string = error.msg.startswith("Unterminated string") or (len(rest) < 6 and "escape" in error.msg)
        return text.lstrip().startswith("{") and (is_in_string or any(word.startswith(rest) for word in words))
    except (ValueError, RecursionError):
        pass
    return False


def _check(checkpoint: str | os.PathLike[str]) -> None:
    """Refuses a checkpoint that is not whole, in words that say nothing of others."""
    read_state(checkpoint)
    try:
        fault = find_fault(checkpoint, sorted(read_checksums(checkpoint) or {}), sizes_only=True)
    except ValueError as error:
        raise InputError(str(error)) from error
    if fault is not None and fault.is_gone:
        raise TornCheckpointError(fault.reason, was_whole=True)
    if fault is not None:
        raise InputError(fault.reason)


def check_whole(checkpoint: str | os.PathLike[str], *, way_out: str | None = None) -> None:
    """Refuses a checkpoint of which a part is not there, or cannot be read; `check_intact` looks into the files.

    Args:
        checkpoint: its folder.
        way_out: see `refused`.

    Raises:
        TornCheckpointError: it was not written to its end, or a file, or the end of one, is gone.
        InputError: it is not known whether it is whole. The message says which file, and what is whole before it.
    """
    try:
        _check(checkpoint)
    except TornCheckpointError as error:
        reason = f"the checkpoint {os.fspath(checkpoint)} is torn: {error}"
        raise TornCheckpointError(reason, was_whole=error.was_whole) from error
    except InputError as error:
        raise refused(checkpoint, str(error), way_out) from error


def check_intact(
    checkpoint: str | os.PathLike[str], *, weights_only: bool = False, way_out: str | None = None
) -> None:
    """Compares all files of a checkpoint with the checksums that were written with them, reading each once.

    Files that were added stay aside. A checkpoint of an earlier version has no checksums.

    Args:
        checkpoint: that is whole.
        weights_only: leave aside what only a run that goes on needs.
        way_out: see `refused`.

    Raises:
        InputError: a file is not what was written. The message names it.
    """
    try:
        names = sorted(read_checksums(checkpoint) or {})
        kept = [name for name in names if name.endswith((".safetensors", ".index.json")) or not weights_only]
        fault = find_fault(checkpoint, kept)
    except ValueError as error:
        raise refused(checkpoint, str(error), way_out) from error
    if fault is not None:
        raise refused(checkpoint, fault.reason, way_out)


def check_weights(folder: str | os.PathLike[str]) -> None:
    """Refuses weights in a run's checkpoint that are not what was written; a folder without checksums says nothing.

    Raises:
        InputError: the message names the file.
    """
    check_intact(folder, weights_only=True, way_out=f"if it was changed on purpose, remove {CHECKSUMS_FILE}")


def refused(checkpoint: str | os.PathLike[str], reason: str, way_out: str | None = None) -> InputError:
    """The message about a checkpoint that is left as it is.

    Args:
        checkpoint: its folder.
        reason: what is wrong, with the name of the file.
        way_out: what to do, in words; by default what is whole before it.
    """
    if way_out is None:
        before = whole_before(checkpoint)
        way_out = (
            f"the one before is whole, go on from it with --resume_from_checkpoint {before}"
            if before
            else "there is no whole one before it, so begin another run with another --output_dir"
        )
    return InputError(
        f"the checkpoint {os.fspath(checkpoint)} is damaged or cannot be read: {reason}. It is left as it is: mend "
        f"that file, or put a copy in its place; else {way_out}"
    )


def is_whole(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was written to its end, and nothing of it is gone.

    Raises:
        InputError: that is not known; see `check_whole`.
    """
    try:
        check_whole(checkpoint)
    except TornCheckpointError:
        return False
    return True


def whole_checkpoints(output_dir: str | os.PathLike[str]) -> list[str]:
    """Those of a run that are known to be whole, N ascending."""
    return list(filter(_is_known_to_be_whole, list_checkpoints(output_dir)))


def whole_before(checkpoint: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint of the same run that has fewer steps and is known to be whole, or None."""
    steps = step_of(checkpoint)
    others = list_checkpoints(os.path.dirname(os.path.normpath(checkpoint)) or os.curdir)
    before = (path for path in reversed(others) if steps is None or step_of(path) < steps)
    return next(filter(_is_known_to_be_whole, before), None)


def _is_known_to_be_whole(checkpoint: str) -> bool:
    try:
        _check(checkpoint)
    except InputError:
        return False
    return True


def last_whole_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint in a folder that was written to its end, or None. Warns of those that were not.

    Raises:
        InputError: a newer one may be whole, but cannot be read; or none is whole any more of those that were.
    """
    lost = None
    for path in reversed(list_checkpoints(output_dir)):
        try:
            check_whole(path)
        except TornCheckpointError as error:
            lost = lost or (error if error.was_whole else None)
            why = "" if error.was_whole else " (as of a run killed while it saved)"
            logger.warning_once("%s%s: it is left out", error, why)
        else:
            return path
    if lost is not None:  # not the work of a kill: the run must not begin again in silence
        raise InputError(
            f"{lost}. No other is whole: put the file back, or begin another run with another --output_dir"
        )
    return None
