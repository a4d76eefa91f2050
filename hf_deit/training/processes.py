"""The processes of a run act as one: what one of them finds out, or cannot do, all of them know."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import nn

from ..hub.run_lock import hold, not_writable

T = TypeVar("T")


def on_main_process(function: Callable[[], T]) -> T:
    """Calls a function in one process and gives its result, or the error that it raised, to all.

    All processes must call it: not within a function that one of them runs alone, where it would wait for ever.
    """
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
    """Calls a function in every process and gives each its result; an error of one is raised in all.

    Of several the first process's; it has the attribute `met_by`, the rank of that process.
    """
    result, error = None, None
    try:
        result = function()
    except Exception as raised:
        error = raised
    errors = gather_object([error]) if PartialState().num_processes > 1 else [error]
    for rank, found in enumerate(errors):
        if found is not None:
            first = error if rank == PartialState().process_index else found
            first.met_by = rank
            raise first
    return result


def share_buffers(model: nn.Module) -> None:
    """Gives the buffers of the main process, which are saved, to all: each has BatchNorm's means of its own views.

    All processes must call it.
    """
    if PartialState().num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def once_per_machine(function: Callable[[], T]) -> T:
    """Calls a function in one process of each machine and gives its result to all there; an error of one to all.

    All processes must call it, as for `on_main_process`.
    """
    state = PartialState()
    result = on_every_process(lambda: function() if state.is_local_main_process else None)
    results = gather_object([result]) if state.num_processes > 1 else [result]
    return results[state.process_index - state.local_process_index if state.num_processes > 1 else 0]


@contextmanager
def holding(folder: str | os.PathLike[str], *, is_written: bool = True) -> Iterator[None]:
    """Holds the folder of a run, for all its processes, until what stands in it has ended; see `hold`.

    All processes must enter it.

    Args:
        folder: of the run.
        is_written: whether the run writes there; if it does not, a folder where nothing can be written is no failure.

    Raises:
        InputError: another run holds it, or nothing can be written there.
    """
    with ExitStack() as stack:

        def take() -> None:
            try:
                stack.enter_context(hold(folder))
            except OSError as error:
                if is_written:
                    raise not_writable(folder, error) from error

        on_main_process(take)
        yield
