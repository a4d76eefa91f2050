"""One run at a time in a folder: a lock that says whose it is, and that no process leaves behind for long.

The lock is a file in the folder, which a hard link puts there whole, so that one of several processes gets it, also on
a shared file system. It names its process, and that touches it every few seconds. On the same machine it is known
whether the process lives, even while it is stopped; of another machine's only the touches tell.

A lock whose process is gone is not taken away, as another may have done so a moment before and put its own there. It
gets a successor instead: a file that is named by the lock's content, so that, again, one process can make it. Who
comes last holds the folder, and moves to the front.
"""

import atexit
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from transformers.utils import logging

from ..errors import CheckpointError, InputError
from .files import open_regular
from .process_identity import Process, began_at, this_machine

logger = logging.get_logger(__name__)

LOCK_FILE = ".run.lock"
HEARTBEAT_SECONDS = 15.0
# Without a touch for so long, by the file system's own clock, a process on another machine is taken for gone.
SILENT_SECONDS = 180.0
_LOOK_SECONDS = 1.0
# A lock that is being written: by the machine, the process's number there, and random digits.
_BEGUN = re.compile(re.escape(LOCK_FILE) + r"\.([0-9a-f]{16})\.(\d{1,9})\.[0-9a-f]{16}\.tmp")

_held: dict[str, "RunLock"] = {}  # by folder, of this process
_acquiring = threading.Lock()


@contextmanager
def hold(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a folder, which is made if it is not there, until what stands in it has ended.

    A thread that holds a folder already, or one above it, goes on as it is.

    Raises:
        InputError: another run holds it.
        OSError: nothing can be written there.
    """
    path = os.path.realpath(os.path.expanduser(folder))
    outer = _holder_of(path)
    if outer is not None and outer.thread == threading.get_ident():
        yield
        return
    lock = RunLock(path)
    with _acquiring:
        lock.acquire()
        _held[path] = lock
    try:
        yield
    finally:
        del _held[path]
        lock.release()


def check_held(folder: str | os.PathLike[str]) -> None:
    """Stops a run whose folder another one has taken, as it was not heard of for long. No folder held is no failure.

    Raises:
        CheckpointError: another run has it.
    """
    lock = _holder_of(os.path.realpath(os.path.expanduser(folder)))
    if lock is not None:
        lock.check()


def not_writable(folder: str | os.PathLike[str], error: OSError) -> InputError:
    """The error for an output folder in which nothing can be written."""
    return InputError(f"cannot write to the output folder {os.fspath(folder)!r} ({error}): give another --output_dir")


def is_lock_file(name: str) -> bool:
    """Whether a file of this name in a run's folder is a lock, or what is left of one."""
    return name == LOCK_FILE or name.startswith(f"{LOCK_FILE}.")


def _holder_of(path: str) -> "RunLock | None":
    """The lock by which this process holds a folder or one above it."""
    while True:
        lock = _held.get(path)
        if lock is not None and lock.pid == os.getpid():  # not a copy in a process that was forked
            return lock
        if path == os.path.dirname(path):
            return None
        path = os.path.dirname(path)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class _Found:
    """A lock that lies in a folder."""

    path: str
    content: bytes
    touched: float  # seconds, by the file system's clock

    @classmethod
    def at(cls, path: str) -> "_Found | None":
        try:
            with open_regular(path) as file:  # on a network file system, opening asks for what is new
                return cls(path, file.read(), os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    @property
    def successor(self) -> str:
        """Where the lock lies that comes after this one."""
        return os.path.join(os.path.dirname(self.path), f"{LOCK_FILE}.{_digest(self.content)}")

    @property
    def lives(self) -> bool | None:
        """Whether its process lives; None where only its touches can tell."""
        if (process := Process.read(self.content)) is not None:
            return process.lives
        begun = _BEGUN.fullmatch(os.path.basename(self.path))  # it was killed while it wrote
        is_gone = begun is not None and begun[1] == _digest(this_machine().encode()) and began_at(int(begun[2])) == ""
        return False if is_gone else None


class RunLock:
    """The lock of a folder; see `hold`.

    Args:
        folder: absolute, without links.

    Attributes:
        pid, thread: whose it is.
    """

    def __init__(self, folder: str) -> None:
        self.pid, self.thread = os.getpid(), threading.get_ident()
        self._folder = folder
        self._path = os.path.join(folder, LOCK_FILE)
        self._content = Process.this().written()
        self._has_ended = threading.Event()

    def acquire(self) -> None:
        """Takes the lock, after what has been left behind by a process that is gone.

        Raises:
            InputError: a process that lives has it.
            OSError: nothing can be written there.
        """
        if (last := self._last()) is not None and self._lives(last):
            raise self._refusal(last)
        self._take()
        atexit.register(self.release)
        threading.Thread(target=self._keep_touching, daemon=True, name="run lock").start()

    def check(self) -> None:
        """Takes a lock again that is not there any more.

        Raises:
            CheckpointError: another run has it.
        """
        try:
            last = self._last()
            if last is None or last.content != self._content:
                self._take()
        except OSError as error:  # a run does not end for that, if it can write what it has to
            logger.warning("cannot look after the lock of %s: %s", self._folder, error)
        except InputError as error:
            raise CheckpointError(f"this run was not heard of for long and has lost its folder: {error}") from error

    def release(self) -> None:
        """Gives the lock back, if it is still this process's."""
        self._has_ended.set()
        atexit.unregister(self.release)
        with suppress(OSError):
            if self.pid == os.getpid() and self._is_in_place():
                self._tidy()
                os.remove(self._path)

    def _is_in_place(self) -> bool:
        found = _Found.at(self._path)
        return found is not None and found.content == self._content

    def _keep_touching(self) -> None:
        while not self._has_ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                if self._is_in_place():
                    os.utime(self._path)

    def _take(self) -> None:
        own = self._write_own()
        placed = None
        try:
            while True:
                last = self._last()
                if last is not None and last.content == self._content:
                    break
                if placed is not None:  # after one that has left the line meanwhile
                    with suppress(FileNotFoundError):
                        os.remove(placed)
                if last is not None and not self._wait_until_gone(last, own):
                    continue
                placed = self._path if last is None else last.successor
                try:
                    _put(own, self._content, placed)
                except FileExistsError:  # another process was first
                    placed = None
            if last.path != self._path:
                os.replace(own, self._path)
        finally:
            with suppress(FileNotFoundError):
                os.remove(own)
        self._tidy()

    def _write_own(self, attempts: int = 10) -> str:
        """Writes the lock beside its place."""
        own = f"{self._path}.{_digest(this_machine().encode())}.{self.pid}.{secrets.token_hex(8)}.tmp"
        os.makedirs(self._folder, exist_ok=True)
        try:
            _write_new(own, self._content)
        except FileNotFoundError:  # a run that was refused has taken away the empty folder that it had made
            if attempts == 1:
                raise
            return self._write_own(attempts - 1)
        return own

    def _last(self) -> _Found | None:
        """The last lock in line, or None if there is none."""
        last, found = None, _Found.at(self._path)
        while found is not None:
            last, found = found, _Found.at(found.successor)
        return last

    def _lives(self, found: _Found) -> bool | None:
        """See `_Found.lives`. What this process was, or did, before may have left one, too."""
        process = Process.read(found.content)
        if process is not None and process.pid == os.getpid() and process.lives:
            return self._folder in _held
        return found.lives

    def _wait_until_gone(self, found: _Found, own: str) -> bool:
        """Waits until it is known whether a lock's process lives.

        Args:
            own: a file of one's own beside it, whose touches tell the file system's time.

        Returns:
            Whether it is gone. If not, the line has changed.

        Raises:
            InputError: it lives.
        """
        end, has_told = time.monotonic() + SILENT_SECONDS, False
        while True:
            lives = self._lives(found)
            if lives is not None:
                if lives:
                    raise self._refusal(found)
                return True
            with suppress(OSError):  # a file system may refuse
                os.utime(own)
            silence = os.stat(own).st_mtime - found.touched
            if silence > SILENT_SECONDS or time.monotonic() > end:
                return True
            if not has_told:
                logger.warning(
                    "%s: waiting for a sign that it lives, the last one is %.0f s old; after %.0f s it is taken for "
                    "gone",
                    self._describe(found),
                    max(silence, 0),
                    SILENT_SECONDS,
                )
                has_told = True
            time.sleep(_LOOK_SECONDS)
            again = _Found.at(found.path)
            if again is None or again.content != found.content:
                return False
            if again.touched != found.touched:
                raise self._refusal(found)

    def _describe(self, found: _Found) -> str:
        process = Process.read(found.content)
        if process is None:
            return f"another run holds the folder {self._folder!r} (its lock {found.path!r} does not say which)"
        return (
            f"another run holds the folder {self._folder!r} (process {process.pid} on {process.host}, "
            f"{process.command!r}, since {process.since})"
        )

    def _refusal(self, found: _Found) -> InputError:
        return InputError(
            f"{self._describe(found)}: wait until it has ended, or stop it, or give another folder (--output_dir)"
        )

    def _tidy(self) -> None:
        """Takes away what is left of the locks of processes that are gone."""
        with suppress(OSError):
            for name in os.listdir(self._folder):
                path = os.path.join(self._folder, name)
                if not is_lock_file(name) or path == self._path or (found := _Found.at(path)) is None:
                    continue
                lives = self._lives(found)
                if lives is None:
                    lives = os.stat(self._path).st_mtime - found.touched <= SILENT_SECONDS
                if found.content == self._content or not lives:
                    os.remove(path)


def _put(source: str, content: bytes, target: str) -> None:
    """Puts a file that lies whole at one place at another one, too.

    Raises:
        FileExistsError: there is one already.
        OSError: it cannot be put there.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        _write_new(target, content)


def _write_new(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            os.remove(path)
            raise
