"""Which process something was begun by, and whether that still lives, on a machine where that can be known."""

import json
import os
import secrets
import socket
import sys
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Process:
    """A process, as it says of itself in a file that it leaves for others.

    Attributes:
        host: name of the machine.
        machine: see `this_machine`.
        pid: number of the process.
        began: when it began, in the system's words; None where that is not to be known.
        since: when it wrote this.
        command: without its options, which may hold a token.
        token: another one for every file.
    """

    host: str
    machine: str
    pid: int
    began: str | None
    since: str
    command: str
    token: str

    @classmethod
    def this(cls) -> "Process":
        """The one that asks."""
        folder, program = os.path.split(sys.argv[0])
        program = os.path.basename(folder) if program == "__main__.py" else program  # of `python -m`
        words = [program, *(word for word in sys.argv[1:2] if word.isalpha())]
        return cls(
            host=socket.gethostname(),
            machine=this_machine(),
            pid=os.getpid(),
            began=began_at(os.getpid()),
            since=datetime.now(UTC).astimezone().isoformat(sep=" ", timespec="seconds"),
            command=" ".join(words),
            token=secrets.token_hex(8),
        )

    @classmethod
    def read(cls, content: bytes) -> "Process | None":
        """Who has written this, or None if nobody has, or not to the end."""
        try:
            process = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        return process if isinstance(process.pid, int) else None

    def written(self) -> bytes:
        """What `read` reads."""
        return json.dumps(asdict(self), indent=1).encode()

    @property
    def lives(self) -> bool | None:
        """Whether it lives; None of one that cannot be seen from here."""
        if self.machine != this_machine():
            return None
        began = began_at(self.pid)
        return None if began is None or self.began is None else began == self.began


def this_machine() -> str:
    """A name for the processes that see each other by their numbers, and for no others."""
    parts = [socket.gethostname()]
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            parts.append(file.read().strip())
    except OSError:
        parts.append(f"{uuid.getnode():x}")
    with suppress(OSError):  # two containers have the same numbers for other processes
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def began_at(pid: int) -> str | None:
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
    if fields[0] in "ZX":  # ended, and not waited for; or its first thread has, and others are just being ended
        return "" if int(fields[17]) <= 1 else None
    return fields[19]  # in ticks since the machine began, which no clock that is set changes


def _began_elsewhere(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:
        return None
