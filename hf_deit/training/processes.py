"""The processes of a run act as one: what one of them finds out, or cannot do, all of them know."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..errors import BadImageError, CheckpointError, TrainingDivergedError

T = TypeVar("T")


def exit_script(status: int) -> NoReturn:
    """Ends a script; if all processes have come to its end (0 or 3), without leaving their communication open.

    Threads of an open one can abort a process that leaves, after all is done and written.
    """
    if status in (0, 3):
        PartialState().destroy_process_group()
    sys.exit(status)


def report_error(error: Exception) -> int:
    """Writes what ends a script to stderr, once: where one process alone can know of it, there, else in the main one.

    Returns:
        The exit status: 2 for input that cannot be used, 1 for all else.
    """
    if PartialState().is_main_process or isinstance(error, BadImageError | CheckpointError):
        sys.stderr.write(f"\nerror: {error}\n")
        sys.stderr.flush()
    return 1 if isinstance(error, CheckpointError | TrainingDivergedError) else 2


def on_main_process(function: Callable[[], T]) -> T:
    """Calls a function in one process and gives its result, or the error that it raised, to all."""
    outcome: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            outcome = [(function(), None)]
        except Exception as error:
            outcome = [(None, error)]
    if PartialState().num_processes > 1:
        broadcast_object_list(outcome)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def on_every_process(function: Callable[[], T]) -> T:
    """Calls a function in every process and gives each its result; an error of one is raised in all."""
    result, error = None, None
    try:
        result = function()
    except Exception as raised:
        error = raised
    errors = gather_object([error]) if PartialState().num_processes > 1 else [error]
    for found in [error, *errors]:
        if found is not None:
            raise found
    return result
