"""What all commands do alike: their parser, what ends them, and the exit status that says so."""

import argparse
import atexit
import io
import os
import re
import select
import shutil
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from ..errors import (
    BadImageError,
    CheckpointError,
    ExportError,
    InputError,
    PublishError,
    TrainingDivergedError,
    did_you_mean,
    escaped,
    not_one_of,
)
from .companions import Companions, Ending, communication, companions
from .quiet import quiet_libraries
from .unforeseen import describe_unforeseen

# Of what ends a command with a message; input that cannot be used is 2, as argparse has it.
_STATUSES = {CheckpointError: 1, ExportError: 1, TrainingDivergedError: 1, PublishError: 3}
STATUS_OF_INPUT = 2
STATUS_OF_UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h
STATUS_OF_INTERRUPT = 130
STATUS_OF_CLOSED_OUTPUT = 141  # as a shell has it of programs that SIGPIPE ends
STATUS_OF_PUBLISHING = _STATUSES[PublishError]
# Where processes cannot tell each other of their end: a launcher ends all when one of them leaves, and the one that
# speaks for all must have said why before.
_SECONDS_TO_SPEAK = 1.0
_SECONDS_TO_COME_TO_IT = 5.0  # until the main process has met what another one has met
# Where they can: until the main process has, or whoever has met the cause of what others meet in turn.
_PATIENCE, _PATIENCE_OF_CTRL_C, _PATIENCE_OF_THOSE_LEFT = 3.0, 1.0, 2.0
_LEFT = (
    "another process of this run has ended without saying why: it was killed, perhaps for want of memory, or its "
    "machine is gone. The launcher there may say more"
)
# What launchers set in the environment of each process.
_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_is_running = ContextVar("is_running", default=False)  # a command, in this process


# What people give without its name.
_OFTEN_UNNAMED = ("--model", "--images")


class CommandParser(argparse.ArgumentParser):
    """Raises `InputError` instead of printing its usage.

    Args:
        name: of the command.
        description: what it does, wrapped to the width of the terminal.
        **settings: of `argparse.ArgumentParser`.
    """

    def __init__(self, name: str, description: str, **settings: object) -> None:
        super().__init__(
            prog=f"hf-deit {name}",
            description=textwrap.fill(description, width=max(shutil.get_terminal_size().columns - 2, 11)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(message)

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        """As argparse's; of an option without its value, what it is for is told."""
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError as error:
            if action.help:
                error.message += f" ({action.help})"
            raise

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise InputError(not_one_of(action.dest, value, [str(choice) for choice in action.choices]))

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's; of an option that there is not, the nearest one is named."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            first = unknown[0].partition("=")[0]
            if first.startswith("-"):
                near = did_you_mean(first, known, cutoff=0.7)
            else:
                unnamed = [name for name in _OFTEN_UNNAMED if name in known and not getattr(found, name[2:])]
                near = f"; did you mean {unnamed[0]} {' '.join(unknown)}?" if unnamed else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return found

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's; names may be written with dashes, as those of a run's options may."""
        words = (argument.partition("=") for argument in (sys.argv[1:] if args is None else args))
        underscored = [
            ("--" + name[2:].replace("-", "_") if name.startswith("--") else name) + equals + value
            for name, equals, value in words
        ]
        return super().parse_known_args(underscored, namespace)


def run_command(
    function: Callable[[Sequence[str]], int], arguments: Sequence[str], *, if_interrupted: str = "stopped"
) -> int:
    """Runs a command; what ends it is told in one line on stderr, without a traceback.

    Args:
        function: of the arguments, giving the exit status.
        if_interrupted: what to say after Ctrl-C, if the `KeyboardInterrupt` says nothing itself.

    Raises:
        KeyboardInterrupt: of a command that another one runs, which says how all goes on.

    Returns:
        The exit status: 0 when all is done, 1 when the training diverged, a checkpoint could not be written or an
        export does not answer as its model, 2 when the input cannot be used, 3 when the Hub refused or could not be
        reached, 70 after an error that was not foreseen (see `describe_unforeseen`), 130 after Ctrl-C, 141 when nobody
        reads the output any more.
    """
    is_part, token = _is_running.get(), _is_running.set(True)
    with companions() as others:
        try:
            check_encoding(arguments)
            with quiet_libraries(arguments):
                return function(arguments)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if is_part and isinstance(error, KeyboardInterrupt):
                raise
            with _uninterrupted():
                return _end(error, arguments, others, if_interrupted)
        finally:
            _is_running.reset(token)


def _end(
    error: Exception | SystemExit | KeyboardInterrupt,
    arguments: Sequence[str],
    others: Companions,
    if_interrupted: str,
) -> int:
    """Says what has ended a command, unless another process has; gives the exit status, the same in all of them."""
    if isinstance(error, SystemExit) and error.code in (0, None):  # after its help
        return 0
    is_left = others.are_gone(error)
    speaker = getattr(error, "met_by", 0)  # of what all raise, the one that has met it; else the main one
    patience = (
        0.0 if others.rank == speaker else _PATIENCE_OF_CTRL_C if isinstance(error, KeyboardInterrupt) else _PATIENCE
    )
    first = others.ended_by_another(patience + _PATIENCE_OF_THOSE_LEFT * is_left, is_cut_off=is_left)
    if first is not None:
        _point_to(first, others)
        others.leave()
        return first.status
    where = _place(others) if others.are_reached or others.must_be_spoken_for else None
    if is_left:
        report_error(InputError(_LEFT), where)
        status = STATUS_OF_UNFORESEEN
    elif isinstance(error, KeyboardInterrupt):
        if where is not None or is_main_process():
            elsewhere = f" ({where.strip()})" if where and others.are_on_other_machines else ""
            print(f"\n{str(error) or if_interrupted}{elsewhere}", file=sys.stderr, flush=True)
        status = STATUS_OF_INTERRUPT
    elif isinstance(error, InputError | TrainingDivergedError | CheckpointError | ExportError | PublishError):
        report_error(error, where)
        status = next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), STATUS_OF_INPUT)
    else:
        status = end_unforeseen(error, arguments, where)
    others.tell(status)
    return status


def _place(others: Companions) -> str:
    """Where an error has come up, for its message; empty for the main process of one machine."""
    host = f" on {socket.gethostname()}" if others.are_on_other_machines else ""
    return f" in process {others.rank}{host}" if host or others.rank else ""


def _point_to(first: Ending, others: Companions) -> None:
    """Says in the output of the main process where to read why it ends, if that is said on another machine."""
    if others.rank == 0 and others.are_on_other_machines and first.host != socket.gethostname():
        print(f"\nstopped: process {first.rank} on {first.host} has ended the run, and says why", file=sys.stderr)


def use_streams() -> None:
    """Lets what is printed neither fail nor go astray, whatever the process was started with.

    A stream that is closed leaves its number to the next file, into which libraries would then write their messages.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for as long as the process lives)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it


def check_encoding(arguments: Sequence[str]) -> None:
    """Refuses paths that libraries cannot read.

    Raises:
        InputError: names the first of them.
    """
    for argument in arguments:
        if escaped(argument) != str(argument):
            raise InputError(
                f"'{escaped(argument)}' is not UTF-8, in which libraries want all paths: rename the file or folder"
            )


def check_surroundings() -> None:
    """Refuses what libraries fail over as soon as they are loaded or used.

    Raises:
        InputError: the working directory is not there, a launcher's variables are no numbers, or the package lies on
            the path without having been installed, so that a run could not record its version at its end.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"the working directory cannot be used ({error.strerror}): cd to another one") from error
    try:
        version("hf_deit")
    except PackageNotFoundError as error:
        raise InputError("hf_deit is not installed, only on the path: pip install -e . where its files lie") from error
    for name in _OF_LAUNCHERS:
        if not _WHOLE.fullmatch(value := os.environ.get(name, "0")):
            raise InputError(f"the environment's {name} must be a whole number, got {value!r}: launchers set it")


def end_unforeseen(error: Exception | SystemExit, arguments: Sequence[str], where: str | None = None) -> int:
    """Tells an error that nobody foresaw in one line on stderr, in whichever process it has come up.

    Args:
        error: one that no part of a command handles.
        arguments: the command line.
        where: it has come up, if this process is to say so for all, see `report_error`.

    Returns:
        The exit status.
    """
    if isinstance(error, SystemExit) and error.code in (0, None):  # after its help
        return 0
    if isinstance(error, BrokenPipeError) and _is_output_closed():
        return STATUS_OF_CLOSED_OUTPUT
    if where is None and not is_main_process():
        # What has come up in the main one, too, is told there, and ends this one meanwhile.
        time.sleep(_SECONDS_TO_COME_TO_IT)
        where = f" in process {os.environ.get('RANK', '?')}"
    sys.stderr.write(f"\nerror{where or ''}: {describe_unforeseen(error, arguments)}\n")
    sys.stderr.flush()
    return STATUS_OF_UNFORESEEN


def _is_output_closed() -> bool:
    """Whether nobody reads what is printed, as behind `| head`; the rest of it is then thrown away."""
    try:
        sys.stdout.flush()
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)  # errors are told of, whatever is asked for
        if not any(event & select.POLLERR for _, event in watched.poll(0)):
            return False
    except BrokenPipeError:
        pass
    except (OSError, ValueError, AttributeError):  # it is no file, or there is no poll
        return False
    _discard_output()
    return True


def _discard_output() -> None:
    """Throws away what can be written no more; else the interpreter complains when it ends."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Passes over Ctrl-C, which a launcher sends again to processes that have had it from the terminal.

    Where a command runs in another thread, Ctrl-C does not reach it, and handlers may not be set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def report_error(error: Exception, where: str | None = None) -> None:
    """Writes an error to stderr, once: where one process alone can know of it, there, else in the main one.

    Args:
        error: with its message.
        where: it has come up, " in process 1 on its machine", if this process is to say so for all.
    """
    if where is not None or is_main_process() or isinstance(error, BadImageError | CheckpointError):
        sys.stderr.write(f"\nerror{where or ''}: {error}\n")
        sys.stderr.flush()
    else:
        time.sleep(_SECONDS_TO_SPEAK)


def exit_command(status: int) -> NoReturn:
    """Ends the process of a command; if all processes have come to its end, without leaving their communication open.

    Threads of an open one, or of one that was cut off, can abort a process that leaves, or keep it.
    """
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError as error:  # nobody reads it, or the disk is full
            status = status or end_unforeseen(error, sys.argv[1:])
            _discard_output()
    if status == STATUS_OF_INTERRUPT:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    has_failed = status not in (0, STATUS_OF_PUBLISHING)
    is_one_of_several = has_failed and os.environ.get("WORLD_SIZE", "1") != "1"
    if not has_failed and (distributed := communication()) is not None:
        is_one_of_several = distributed.get_rank() > 0
        distributed.destroy_process_group()
    if is_one_of_several:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def is_main_process() -> bool:
    """Whether this is the process that speaks for all, also before they are connected."""
    distributed = communication()
    if distributed is not None:
        return distributed.get_rank() == 0
    rank = os.environ.get("RANK", "0")
    return not _WHOLE.fullmatch(rank) or int(rank) == 0  # what is no number is to be told, see `check_surroundings`
