"""Checkpoints of a run: which is the last whole one, and how weights come back from it, or do not."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Literal

import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainerState

from ..errors import CheckpointError, InputError, PublishError, first_line, shortlist
from ..hub.run_folder import STATE_FILE, is_whole, last_whole_checkpoint, list_checkpoints
from ..models.class_names import in_order, label_changes
from ..models.pretrained import LOADING_ERRORS
from ..models.teacher import load_labels


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
        InputError: there is none.
    """
    wanted = resume_wish(resume_from_checkpoint)
    if wanted is None:
        return None
    if wanted is True:
        found = last_whole_checkpoint(output_dir)
        if found is None:
            raise InputError(f"there is no checkpoint to resume from in {output_dir!r}")
        return found
    if not is_whole(wanted):
        raise InputError(f"there is no whole checkpoint {wanted!r} to resume from")
    return wanted


def check_resumable(checkpoint: str, steps_per_epoch: int) -> None:
    """Refuses a checkpoint that a run cannot go on from as if nothing had happened.

    Raises:
        InputError: it holds the weights alone; or an epoch of its run had another number of steps, so that places in
            the epoch, the schedule and what is left would be others.
    """
    if not os.path.isfile(os.path.join(checkpoint, "scheduler.pt")):
        raise InputError(
            f"the checkpoint {checkpoint!r} has no state of the optimizer and schedule (save_only_model), so that a "
            "run cannot go on from it: start another one with it as --student"
        )
    state = TrainerState.load_from_json(os.path.join(checkpoint, STATE_FILE))
    before = round(state.global_step / state.epoch) if state.epoch else steps_per_epoch
    if before != steps_per_epoch:
        raise InputError(
            f"the run of {checkpoint!r} had {before} steps in an epoch, this one has {steps_per_epoch}: keep the data "
            "and the total batch (processes · per_device_train_batch_size · gradient_accumulation_steps)"
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
    """Removes what a killed run left of its last checkpoint, which the rotation would take for a good one."""
    for path in list_checkpoints(output_dir):
        if not is_whole(path):
            shutil.rmtree(path, ignore_errors=True)


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
        checkpoint = last_whole_checkpoint(self.path)
        if checkpoint is None:
            return "no checkpoint was written before"
        return f"the last good checkpoint is {checkpoint}; go on from it with --resume_from_checkpoint {checkpoint}"

    def unmark(self, step: int) -> None:
        """Lets an old checkpoint of a step no longer look whole, before it is written anew."""
        with suppress(FileNotFoundError):
            os.remove(os.path.join(self.path, f"checkpoint-{step}", STATE_FILE))

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
            others = HfHubHTTPError | PublishError | torch.OutOfMemoryError | torch.distributed.DistError
            if isinstance(error, others):
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
        restored, info = type(model).from_pretrained(checkpoint, dtype=model.dtype, output_loading_info=True)
    except LOADING_ERRORS as error:
        raise InputError(f"cannot restore this model from {checkpoint!r}: {first_line(error)}") from error
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise InputError(f"the checkpoint {checkpoint!r} does not hold this model: it lacks {shortlist(absent, 4)}")
    try:
        model.load_state_dict(restored.state_dict(), strict=True)
    except RuntimeError as error:
        raise InputError(f"the checkpoint {checkpoint!r} is of another model: {first_line(error)}") from error
