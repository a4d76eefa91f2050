"""Commands that die, or that the disk refuses, at a given file operation beneath a folder.

Each attempt is a fork of this process, which has imported everything. What changes the disk is counted as Python
audits it; writers in C++ and Rust, which nothing audits, are announced by hand.
"""

import errno
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tqdm import tqdm

KILLED, TORN, FULL, UNWRITTEN, READ_ONLY = "killed", "torn", "full", "unwritten", "read-only"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Of an event's arguments, which are paths, and which say what folder those are relative to.
_PATHS = {
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
}
# Autograd starts its threads, of which forks know nothing, at the first backward pass after torch.export has made
# torch believe in a GPU. A pass before that settles that there are none.
torch.ones(1, requires_grad=True).sum().backward()

_NEEDS_SPACE = ("open", "os.mkdir", "os.link", "os.symlink")


@dataclass
class Operation:
    """Something that changes the disk.

    Attributes:
        name: of the audit event.
        path: relative to the folder that is looked at.
        size: bytes that were written, if it opens a file and these are known.
    """

    name: str
    path: str
    size: int = 0


@dataclass
class Outcome:
    """What became of an attempt.

    Attributes:
        status: that it left with; negative if a signal ended it.
        printed: what it wrote to stdout and stderr.
        operations: all that it made, if it was not killed.
    """

    status: int
    printed: str
    operations: list[Operation] = field(default_factory=list)

    @property
    def is_told(self) -> bool:
        """Whether it ended without a traceback, and if it failed, with one line that says why, and was foreseen."""
        lines = [line for line in self.printed.splitlines() if line.startswith("error: ")]
        is_foreseen = self.status in (0, 1, 2, 3) and "Traceback" not in self.printed
        return is_foreseen and len(lines) == (0 if self.status == 0 else 1)


def attempt(
    function: Callable[[], int],
    root: Path,
    *,
    fault: str | None = None,
    at: int = 0,
    size: int = 0,
    log: Path,
    seconds: float = 120,
) -> Outcome:
    """Calls a function in a process of its own.

    Args:
        function: giving an exit status.
        root: beneath which operations are counted; the folder itself is one of them.
        fault: what happens, if anything: the process is killed before the operation, or while it writes the file that
            it opens; or from then on the disk is full (no file or folder is made, or none is written), or read-only.
        at: the number of the operation, from 0.
        size: bytes after which it is torn.
        log: a file outside of `root` for the operations.
        seconds: after which it is killed, whatever it is at.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _as_child(function, _Watch(os.path.realpath(root), fault, at, size), writing, log)
    os.close(writing)
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    timer.start()
    try:
        with open(reading, encoding="utf-8", errors="replace") as pipe:
            printed = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        timer.cancel()
    operations = []
    if log.exists():
        operations = [Operation(**made) for made in json.loads(log.read_text())]
        log.unlink()
    return Outcome(status, printed, operations)


def _as_child(function: Callable[[], int], watch: "_Watch", output: int, log: Path) -> None:
    status = 99
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        # tqdm's own lock is shared with all children: one that is killed while it holds it would stop the later ones.
        tqdm.set_lock(threading.RLock())
        _announce_writers()
        sys.addaudithook(watch)
        status = function()
    except BaseException:
        traceback.print_exc()
    finally:
        watch.is_over = True
        _limit_files(resource.RLIM_INFINITY)
        log.write_text(json.dumps([vars(operation) for operation in watch.operations]))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _announce_writers() -> None:
    """Lets writers in C++ and Rust say which file they open."""
    serialize, writer = safetensors.torch.serialize_file, torch._C.PyTorchFileWriter

    def serialize_file(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> Any:
        sys.audit("open", os.fspath(filename), "native", _WRITES)
        return serialize(tensors, filename, *args, **kwargs)

    def file_writer(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str):
            sys.audit("open", file, "native", _WRITES)
        return writer(file, *args, **kwargs)

    safetensors.torch.serialize_file, torch._C.PyTorchFileWriter = serialize_file, file_writer


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class _Watch:
    """An audit hook that counts what changes the disk beneath a folder, and lets a fault happen."""

    def __init__(self, root: str, fault: str | None, at: int, size: int) -> None:
        self.root, self.fault, self.at, self.size = root, fault, at, size
        self.operations: list[Operation] = []
        self.is_over = False
        self._open: dict[str, Operation] = {}
        self._process = os.getpid()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_over or (event != "open" and event not in _PATHS) or os.getpid() != self._process:
            return
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
                return
            paths = [_path(arguments[0], None)]
        else:
            paths = [
                _path(arguments[path], None if folder is None else arguments[folder]) for path, folder in _PATHS[event]
            ]
        beneath = [path for path in paths if path is not None and (path + "/").startswith(self.root + "/")]
        if not beneath or _changes_nothing(event, beneath[-1]):
            return
        self._measure()
        operation = Operation(event, os.path.relpath(beneath[-1], self.root))
        self.operations.append(operation)
        if event == "open":
            self._open[beneath[-1]] = operation
        self._happen(operation, is_native=event == "open" and arguments[1] == "native")

    def _measure(self) -> None:
        """How much was written to the files that were opened: it is known once something else happens."""
        for path, operation in list(self._open.items()):
            try:
                operation.size = max(operation.size, os.stat(path).st_size)
            except OSError:
                del self._open[path]

    def _happen(self, operation: Operation, *, is_native: bool) -> None:
        number = len(self.operations) - 1
        if self.fault is None or number < self.at:
            return
        if self.fault == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        elif self.fault == TORN and number == self.at:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and gets the error of a full disk
            _limit_files(self.size)
        elif self.fault == UNWRITTEN:
            _limit_files(0)
        elif self.fault == READ_ONLY and not is_native:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), operation.path)
        elif self.fault == READ_ONLY:
            _limit_files(0)
        elif self.fault == FULL:
            _limit_files(0)
            if operation.name in _NEEDS_SPACE and not is_native:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), operation.path)


def _changes_nothing(event: str, path: str) -> bool:
    is_there = os.path.lexists(path)
    return (event == "os.mkdir" and is_there) or (event == "os.remove" and not is_there)


def _path(path: Any, folder: Any) -> str | None:
    """An absolute path, or None for what has none, as an open file."""
    if isinstance(path, int):
        return None
    parent = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else os.curdir
    path = os.path.abspath(os.path.join(os.path.realpath(parent), os.fsdecode(path)))
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def evenly(points: Sequence[Any], count: int | None) -> list[Any]:
    """So many of the points, the first and the last among them; all for None."""
    if count is None or count >= len(points):
        return list(points)
    return [points[round(number * (len(points) - 1) / (count - 1))] for number in range(count)]
