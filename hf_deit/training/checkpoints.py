"""Checkpoints of a run: which is the last whole one, and how weights come back from it, or do not.

A checkpoint is whole; or torn, where a part of it is provably not there; or it is not known which: that is there, and
cannot be read. Only what is torn is passed over, and removed. All else is refused by its name, and stays as it is.
"""

import itertools
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Literal

import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import logging

from ..errors import CheckpointError, InputError, PublishError, first_line, shortlist
from ..hub.checksums import CHECKSUMS_FILE, write_checksums
from ..hub.run_folder import (
    STATE_FILE,
    TornCheckpointError,
    check_intact,
    check_whole,
    last_whole_checkpoint,
    list_checkpoints,
    read_state,
    refused,
    step_of,
    whole_before,
    whole_checkpoints,
)
from ..models.class_names import in_order, label_changes
from ..models.pretrained import LOADING_ERRORS, check_pickled, unpickling_fault
from ..models.teacher import load_labels
from .origin import views_per_step_in

logger = logging.get_logger(__name__)

# What torch, transformers and the parts that they restore raise for states that are damaged, or another run's.
_RESTORING_ERRORS = (*LOADING_ERRORS, pickle.UnpicklingError, EOFError, IndexError)
# Of a device or another process, and no matter of a file.
_OTHER_ERRORS = (HfHubHTTPError, PublishError, torch.OutOfMemoryError, torch.distributed.DistError)


def resume_wish(resume_from_checkpoint: str | os.PathLike[str] | bool | None) -> str | Literal[True] | None:
    """What `resume_from_checkpoint` asks for, also in the command line's words: a folder, the last one, or nothing."""
    words = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off", "none"))}
    if isinstance(resume_from_checkpoint, os.PathLike):
        return os.fspath(resume_from_checkpoint)
    return words.get(str(resume_from_checkpoint).lower(), resume_from_checkpoint)


def find_checkpoint(
    resume_from_checkpoint: str | os.PathLike[str] | bool | None, output_dir: str | os.PathLike[str]
) -> str | None:
    """The checkpoint to resume from: a folder, or, for True (or "true"), the last one in `output_dir`.

    Raises:
        InputError: there is none, or it is not known whether it is whole.
    """
    wanted = resume_wish(resume_from_checkpoint)
    if wanted is None:
        return None
    if wanted is True:
        found = last_whole_checkpoint(output_dir)
        if found is None:
            raise InputError(f"there is no checkpoint to resume from in {output_dir!r}")
        return found
    try:
        check_whole(wanted)
    except TornCheckpointError as error:
        before = whole_before(wanted)
        way_out = "" if before is None else f"; the one before is, go on with --resume_from_checkpoint {before}"
        raise InputError(f"there is no whole checkpoint {wanted!r} to resume from ({error}){way_out}") from error
    return wanted


def check_unchanged(checkpoint: str, *, way_out: str | None = None) -> None:
    """Refuses a checkpoint of which a file is not what was written. Nothing of it is loaded; every file is read once.

    All files are compared with their checksums. A checkpoint of an earlier version has none: there torch's files are,
    with those that they hold.

    Args:
        checkpoint: its folder.
        way_out: see `hf_deit.hub.run_folder.refused`.

    Raises:
        InputError: the message names the file, and the checkpoint before.
    """
    check_intact(checkpoint, way_out=way_out)
    if os.path.lexists(os.path.join(checkpoint, CHECKSUMS_FILE)):
        return
    for name in sorted(os.listdir(checkpoint)):
        if name.endswith((".pt", ".pth")):
            try:
                with safe_globals():  # the states of random numbers are NumPy's
                    check_pickled(os.path.join(checkpoint, name))
            except InputError as error:
                raise refused(checkpoint, str(error), way_out) from error


def check_best(checkpoint: str, way_back: str, *, weights_only: bool = True) -> None:
    """Refuses a best checkpoint whose weights are not what was written.

    Args:
        checkpoint: its folder.
        way_back: in words, which checkpoint to go on from.
        weights_only: whether only the files of a model are read; FSDP and DeepSpeed have weights in others, too.

    Raises:
        InputError: the message names the file.
    """
    way_out = f"{way_back} --load_best_model_at_end false, which takes the weights of the last step"
    check_intact(checkpoint, weights_only=weights_only, way_out=way_out)


@contextmanager
def restoring(checkpoint: str, what: str) -> Iterator[None]:
    """Says what of a checkpoint could not be restored.

    Args:
        checkpoint: its folder.
        what: is restored: names of files.

    Raises:
        InputError: it is damaged, or of another run.
    """
    try:
        yield
    except _RESTORING_ERRORS as error:
        if isinstance(error, (InputError, *_OTHER_ERRORS)):
            raise
        reason = unpickling_fault(error) if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise refused(checkpoint, f"{what} cannot be restored into this run ({reason})") from error


@contextmanager
def unknown_fields_left_out() -> Iterator[None]:
    """Lets transformers' Trainer read a checkpoint's state as `read_state` does.

    It takes a field that it does not know, as a newer release of it writes, for a mistake, and has no hook there.
    """
    own = TrainerState.__dict__["load_from_json"]
    TrainerState.load_from_json = staticmethod(lambda path: read_state(os.path.dirname(path)))
    try:
        yield
    finally:
        TrainerState.load_from_json = own


def check_resumable(checkpoint: str, steps_per_epoch: int) -> None:
    """Refuses a checkpoint that a run cannot go on from as if nothing had happened.

    Raises:
        InputError: it holds the weights alone, or not all that belongs to them; or an epoch of its run had another
            number of steps, so that places in the epoch, the schedule and what is left would be others.
    """
    if not os.path.isfile(os.path.join(checkpoint, "scheduler.pt")):
        raise InputError(
            f"the checkpoint {checkpoint!r} has no state of the optimizer and schedule (save_only_model), so that a "
            "run cannot go on from it: start another one with it as --student"
        )
    # Without them transformers would begin with an optimizer and random numbers of its own, and say nothing. (Sharded,
    # the optimizer's state lies in a folder, with DeepSpeed in one of the step.)
    for stems, file in ((("optimizer", "global_step"), "optimizer.pt"), (("rng_state",), "rng_state.pth")):
        if not any(name.startswith(stems) for name in os.listdir(checkpoint)):
            raise refused(checkpoint, f"{file} is not there")
    state = read_state(checkpoint)
    before = round(state.global_step / state.epoch) if state.epoch else steps_per_epoch
    if before != steps_per_epoch:
        views = views_per_step_in(checkpoint)
        raise InputError(
            f"the run of {checkpoint!r} had {before} steps in an epoch, this one has {steps_per_epoch}: keep the data "
            "and the total batch (processes · per_device_train_batch_size · gradient_accumulation_steps)"
            + (f": --total_batch_size {views}" if views else "")
        )


def check_same_labels(folder: str, id2label: Mapping[int, str], what: str) -> None:
    """Refuses a model of other classes than those of the data, or of the same ones in another order.

    Args:
        folder: of a model or a checkpoint. One without configuration, as of sharded weights alone, says nothing.
        id2label: names of the labels by index, as the data has them.
        what: subject of the message.

    Raises:
        InputError: names, number or order differ. The message says how.
    """
    try:
        before = load_labels(folder)
    except InputError:
        return
    changes = label_changes(before, in_order(id2label))
    if changes:
        raise InputError(
            f"{what} {folder!r} has learnt other classes than those of the data ({changes}): give the class folders, "
            "or the labels, the names and the order that they had, or begin another run with another --output_dir"
        )


def remove_torn_checkpoints(output_dir: str) -> None:
    """Removes what a killed run left of its last checkpoint: what has no state, or the beginning of one.

    One that has lost another file since stays. Nothing can go on from it, but its weights may be all that is wanted.
    """
    for path in list_checkpoints(output_dir):
        try:
            read_state(path)
        except TornCheckpointError:
            _remove(path)
        except InputError as error:
            logger.warning("%s", refused(path, str(error)))


def _unmark(checkpoint: str) -> None:
    """Lets a checkpoint no longer look whole: what marks it as that goes first, the state last."""
    for name in (CHECKSUMS_FILE, STATE_FILE):
        with suppress(FileNotFoundError):
            os.remove(os.path.join(checkpoint, name))


def _remove(checkpoint: str) -> None:
    with suppress(OSError):
        if os.path.islink(checkpoint):  # what it leads to may be another run's
            os.remove(checkpoint)
        else:
            _unmark(checkpoint)
    shutil.rmtree(checkpoint, ignore_errors=True)


class RunFolder:
    """The output folder of a run: which checkpoint to go on from, and how one is written so that it is whole or torn.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def find(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """See `find_checkpoint`."""
        return find_checkpoint(resume_from_checkpoint, self.path)

    def way_back(self) -> str:
        """In words, which checkpoint is the last good one, and how to go on from it."""
        try:
            checkpoint = whole_checkpoints(self.path)[-1]
        except (InputError, IndexError):
            return "no checkpoint was written before"
        return f"the last good checkpoint is {checkpoint}; go on from it with --resume_from_checkpoint {checkpoint}"

    def checkpoint(self, step: int) -> str:
        """The folder of the checkpoint of a step."""
        return os.path.join(self.path, f"checkpoint-{step}")

    def unmark(self, step: int) -> None:
        """Lets an old checkpoint of a step no longer look whole, before it is written anew.

        What is not understood is put aside, and a link to another folder is taken away.

        Raises:
            OSError: the disk refuses.
        """
        checkpoint = self.checkpoint(step)
        if os.path.islink(checkpoint):
            os.remove(checkpoint)
            return
        try:
            check_whole(checkpoint)
        except TornCheckpointError:
            pass
        except InputError:
            names = (f"{checkpoint}.aside-{number}" for number in itertools.count(1))
            aside = next(name for name in names if not os.path.lexists(name))
            logger.warning("%s cannot be read, and is not overwritten: it is now %s", checkpoint, aside)
            os.rename(checkpoint, aside)
            return
        _unmark(checkpoint)

    def seal(self, step: int) -> None:
        """Writes the checksums of a checkpoint to which nothing will be added any more.

        Raises:
            OSError: a file cannot be read, or theirs not written.
        """
        write_checksums(self.checkpoint(step))

    def rotate(self, limit: int | None, *, step: int, best: str | None, keeps_last: bool = True) -> None:
        """Removes the oldest of the checkpoints that are known to be whole, so that no more of them stay than `limit`.

        transformers' own counts folders, and goes by their time: it takes what is torn or cannot be read for a good
        one, and perhaps for the newest. Those of later steps, left by a run that went on from an older one, stay, too,
        and do not count until it comes there.

        Args:
            limit: None or 0 lets all stay.
            step: of the run.
            best: the one with the best metric, which stays.
            keeps_last: whether the one of this step stays whatever the limit.
        """
        if not limit or limit < 0:
            return
        kept = {os.path.realpath(path) for path in (best, self.checkpoint(step) if keeps_last else None) if path}
        whole = [path for path in whole_checkpoints(self.path) if step_of(path) <= step]
        others = [path for path in whole if os.path.realpath(path) not in kept]
        surplus = len(whole) - max(limit, len(whole) - len(others))
        for path in others[: max(0, surplus)]:
            _remove(path)

    @contextmanager
    def writing(self, what: str, step: int) -> Iterator[None]:
        """Says what could not be written, and what is whole, where writing fails.

        Args:
            what: is written, "model" or "checkpoint".
            step: of the run.

        Raises:
            CheckpointError: the disk, or what stands between, refuses.
        """
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, _OTHER_ERRORS):
                raise  # no matter of the disk; torch's writer raises a plain RuntimeError
            raise CheckpointError(
                f"could not write the {what} of step {step} ({first_line(error)}): {self.way_back()}. Mend what is "
                "wrong with the disk first"
            ) from error


def restore_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """Restores the weights of a checkpoint, through the conversion that they were saved with, or raises.

    transformers' own loader hands the file's keys to `load_state_dict(strict=False)`. Those of a model with a
    checkpoint conversion are in another layout, so that nothing is restored and only a warning tells.

    Raises:
        InputError: the checkpoint cannot be read, or is of another model.
    """
    try:
        # Its own configuration, not the checkpoint's, which may lead to others' code.
        restored, info = type(model).from_pretrained(
            checkpoint, config=model.config, dtype=model.dtype, output_loading_info=True
        )
    except LOADING_ERRORS as error:
        raise InputError(f"cannot restore this model from {checkpoint!r}: {first_line(error)}") from error
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise InputError(f"the checkpoint {checkpoint!r} does not hold this model: it lacks {shortlist(absent, 4)}")
    try:
        model.load_state_dict(restored.state_dict(), strict=True)
    except RuntimeError as error:
        raise InputError(f"the checkpoint {checkpoint!r} is of another model: {first_line(error)}") from error
