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
import json
import os
import secrets
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from transformers.utils import logging

from ..errors import CheckpointError, InputError

logger = logging.get_logger(__name__)

LOCK_FILE = ".run.lock"
HEARTBEAT_SECONDS = 15.0
# Without a touch for so long, by the file system's own clock, a process on another machine is taken for gone.
SILENT_SECONDS = 180.0
_LOOK_SECONDS = 1.0

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


@dataclass(frozen=True)
class _Process:
    """Whose a lock is.

    Attributes:
        host: name of the machine.
        machine: the same for processes that see each other by their numbers, and for no others.
        pid: number of the process.
        began: when it began, in the system's words; None where that is not to be known.
        since: when it took the lock.
        command: without its options, which may hold a token.
        token: another one for every lock.
    """

    host: str
    machine: str
    pid: int
    began: str | None
    since: str
    command: str
    token: str

    @classmethod
    def this(cls) -> "_Process":
        words = [os.path.basename(sys.argv[0]), *(word for word in sys.argv[1:2] if word.isalpha())]
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            began=_began(os.getpid()),
            since=datetime.now(UTC).astimezone().isoformat(sep=" ", timespec="seconds"),
            command=" ".join(words),
            token=secrets.token_hex(8),
        )

    @classmethod
    def read(cls, content: bytes) -> "_Process | None":
        """Whose lock has this content, or None if it is none, or cut off."""
        try:
            process = cls(**json.loads(content))
        except (ValueError, TypeError):
            return None
        return process if isinstance(process.pid, int) else None

    @property
    def lives(self) -> bool | None:
        """Whether it lives; None where only its touches can tell."""
        if self.machine != _machine():
            return None
        began = _began(self.pid)
        return None if began is None or self.began is None else began == self.began


def _machine() -> str:
    parts = [socket.gethostname()]
    try:  # two containers have the same numbers for other processes
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            parts += [file.read().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        parts.append(f"{uuid.getnode():x}")
    return " ".join(parts)


def _began(pid: int) -> str | None:
    """When a process of this machine began; "" if it is gone, None if that is not to be known."""
    if not sys.platform.startswith("linux"):
        return _began_elsewhere(pid)
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except ProcessLookupError:
        return ""
    except OSError:
        try:  # it may be hidden
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return ""
        except OSError:
            pass
        return None
    # In ticks since the machine began, which no clock that is set changes; one that has ended may stay as a zombie.
    return "" if fields[0] in "ZX" else fields[19]


def _began_elsewhere(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:
        return None


@dataclass(frozen=True)
class _Found:
    """A lock that lies in a folder."""

    path: str
    content: bytes
    touched: float  # seconds, by the file system's clock

    @classmethod
    def at(cls, path: str) -> "_Found | None":
        try:
            with open(path, "rb") as file:  # on a network file system, opening asks for what is new
                return cls(path, file.read(), os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    @property
    def successor(self) -> str:
        """Where the lock lies that comes after this one."""
        name = f"{LOCK_FILE}.{hashlib.sha256(self.content).hexdigest()[:16]}"
        return os.path.join(os.path.dirname(self.path), name)


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
        self._content = json.dumps(asdict(_Process.this()), indent=1).encode()
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
        own = f"{self._path}.{secrets.token_hex(8)}.tmp"
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
        """Whether a lock's process lives; None where only its touches can tell."""
        process = _Process.read(found.content)
        if process is None:
            return None
        if process.pid == os.getpid() and process.lives:  # left by what this process was, or did, before
            return self._folder in _held
        return process.lives

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
        process = _Process.read(found.content)
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
