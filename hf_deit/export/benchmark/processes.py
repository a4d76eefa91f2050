"""The processes of a benchmark: one that makes programs, and one for each arm, of which one at a time is awake."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from ...errors import one_line

_PATIENCE = 30 * 60.0  # seconds after which a process that gives no answer is given up
_SECONDS_TO_END = 5.0  # of a process that has closed its end of the pipe
_BEGIN = "begin"
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class ArmError(RuntimeError):
    """An arm cannot go on, and why; the others can."""


class Process:
    """Another process that answers requests one after the other, and sleeps in between, its threads too.

    Args:
        begin: runs there: (*arguments) → handlers by the name of the request. Importable by its name.
        *arguments: which are pickled.
        log: a file for what it prints.
    """

    def __init__(self, begin: Callable[..., Any], *arguments: Any, log: str) -> None:
        self._connection, theirs = Pipe()
        self._log = log
        # Not by multiprocessing, which would import there what the main module here imports.
        code = f"from {__name__} import serve; serve({theirs.fileno()})"
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        theirs.close()
        try:
            self.ask(_BEGIN, begin, *arguments)
        except BaseException:
            self.close()
            raise

    def ask(self, name: str, *arguments: Any) -> Any:
        """What the handler of that name answers.

        Raises:
            ArmError: it failed, or the process has ended.
        """
        self._signal("SIGCONT")
        try:
            self._connection.send((name, arguments))
            if not self._connection.poll(_PATIENCE):
                raise ArmError(f"it gave no answer in {_PATIENCE / 60:.0f} minutes")
            is_well, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ArmError(self._how_it_ended()) from error
        self._signal("SIGSTOP")
        if not is_well:
            raise ArmError(answer)
        return answer

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked more."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _signal(self, name: str) -> None:
        if self.is_alive and hasattr(signal, name):
            self._process.send_signal(getattr(signal, name))

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        status = self._process.returncode
        cause = signal.Signals(-status).name if status is not None and status < 0 else f"status {status}"
        with contextlib.suppress(OSError), open(self._log, encoding="utf-8", errors="replace") as log:
            lines = [line.strip() for line in log if line.strip()]
            return f"its process ended with {cause}{f': {lines[-1]}' if lines else ''}"
        return f"its process ended with {cause}"


def serve(descriptor: int) -> None:
    """What a `Process` runs: answers requests until nobody asks any more.

    Args:
        descriptor: of its end of the pipe.
    """
    _end_with_parent()
    connection = Connection(descriptor)
    handlers: dict[str, Callable[..., Any]] = {_BEGIN: lambda begin, *given: handlers.update(begin(*given))}
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = True, handlers[name](*arguments)
        except Exception as error:
            traceback.print_exc()
            answer = False, f"{type(error).__name__}: {one_line(error)}"
        connection.send(answer)


def _end_with_parent() -> None:
    """Else a process that sleeps would outlive a parent that was killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
