"""What all commands do alike: their parser, what ends them, and the exit status that says so."""

import argparse
import atexit
import io
import os
import re
import select
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from ..errors import (
    BadImageError,
    CheckpointError,
    InputError,
    PublishError,
    TrainingDivergedError,
    escaped,
    not_one_of,
)
from .quiet import quiet_libraries
from .unforeseen import describe_unforeseen

# Of what ends a command with a message; input that cannot be used is 2, as argparse has it.
_STATUSES = {CheckpointError: 1, TrainingDivergedError: 1, PublishError: 3}
STATUS_OF_INPUT = 2
STATUS_OF_UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h
STATUS_OF_INTERRUPT = 130
STATUS_OF_CLOSED_OUTPUT = 141  # as a shell has it of programs that SIGPIPE ends
STATUS_OF_PUBLISHING = _STATUSES[PublishError]
# A launcher ends all processes when one of them leaves: the one that speaks for all must have said why before.
_SECONDS_TO_SPEAK = 1.0
_SECONDS_TO_COME_TO_IT = 5.0  # until the main process has met what another one has met
# What launchers set in the environment of each process.
_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")


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

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise InputError(not_one_of(action.dest, value, [str(choice) for choice in action.choices]))

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

    Returns:
        The exit status: 0 when all is done, 1 when the training diverged or a checkpoint could not be written, 2 when
        the input cannot be used, 3 when the Hub refused or could not be reached, 70 after an error that was not
        foreseen (see `describe_unforeseen`), 130 after Ctrl-C, 141 when nobody reads the output any more.
    """
    try:
        for argument in arguments:
            if escaped(argument) != str(argument):
                raise InputError(
                    f"'{escaped(argument)}' is not UTF-8, in which libraries want all paths: rename the file or folder"
                )
        with quiet_libraries(arguments):
            return function(arguments)
    except (InputError, TrainingDivergedError, CheckpointError, PublishError) as error:
        report_error(error)
        kinds = (status for kind, status in _STATUSES.items() if isinstance(error, kind))
        return next(kinds, STATUS_OF_INPUT)
    except KeyboardInterrupt as interrupt:
        with _uninterrupted():
            if is_main_process():
                print(f"\n{str(interrupt) or if_interrupted}", file=sys.stderr, flush=True)
        return STATUS_OF_INTERRUPT
    except (Exception, SystemExit) as error:
        return end_unforeseen(error, arguments)


def use_streams() -> None:
    """Lets what is printed neither fail nor go astray, whatever the process was started with.

    A stream that is closed leaves its number to the next file, into which libraries would then write their messages.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for as long as the process lives)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it


def check_surroundings() -> None:
    """Refuses what libraries fail over as soon as they are loaded or used.

    Raises:
        InputError: the working directory is not there, or a launcher's variables are no numbers.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"the working directory cannot be used ({error.strerror}): cd to another one") from error
    for name in _OF_LAUNCHERS:
        if not _WHOLE.fullmatch(value := os.environ.get(name, "0")):
            raise InputError(f"the environment's {name} must be a whole number, got {value!r}: launchers set it")


def end_unforeseen(error: Exception | SystemExit, arguments: Sequence[str]) -> int:
    """Tells an error that nobody foresaw in one line on stderr, in whichever process it has come up.

    Args:
        error: one that no part of a command handles.
        arguments: the command line.

    Returns:
        The exit status.
    """
    if isinstance(error, SystemExit) and error.code in (0, None):  # after its help
        return 0
    if isinstance(error, BrokenPipeError) and _is_output_closed():
        return STATUS_OF_CLOSED_OUTPUT
    process = ""
    if not is_main_process():  # what has come up in the main one, too, is told there, and ends this one meanwhile
        time.sleep(_SECONDS_TO_COME_TO_IT)
        process = f" in process {os.environ.get('RANK', '?')}"
    sys.stderr.write(f"\nerror{process}: {describe_unforeseen(error, arguments)}\n")
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
    """Passes over Ctrl-C, which a launcher sends again to processes that have had it from the terminal."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def report_error(error: Exception) -> None:
    """Writes an error to stderr, once: where one process alone can know of it, there, else in the main one."""
    if is_main_process() or isinstance(error, BadImageError | CheckpointError):
        sys.stderr.write(f"\nerror: {error}\n")
        sys.stderr.flush()


def exit_command(status: int) -> NoReturn:
    """Ends the process of a command; if all processes have come to its end, without leaving their communication open.

    Threads of an open one can abort a process that leaves, after all is done and written.
    """
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError as error:  # nobody reads it, or the disk is full
            status = status or end_unforeseen(error, sys.argv[1:])
            _discard_output()
    if status == STATUS_OF_INTERRUPT:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif status not in (0, STATUS_OF_PUBLISHING) and not is_main_process():
        time.sleep(_SECONDS_TO_SPEAK)
    if status in (0, STATUS_OF_PUBLISHING) and (distributed := _communication()) is not None:
        is_main = distributed.get_rank() == 0
        distributed.destroy_process_group()
        if not is_main:  # a thread of the closed communication can still abort the interpreter's own way out
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def is_main_process() -> bool:
    """Whether this is the process that speaks for all, also before they are connected."""
    distributed = _communication()
    if distributed is not None:
        return distributed.get_rank() == 0
    rank = os.environ.get("RANK", "0")
    return not _WHOLE.fullmatch(rank) or int(rank) == 0  # what is no number is to be told, see `check_surroundings`


def _communication() -> ModuleType | None:
    """torch.distributed if processes are connected by it, without loading torch for those that are not."""
    distributed = sys.modules.get("torch.distributed")
    is_open = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if is_open else None
