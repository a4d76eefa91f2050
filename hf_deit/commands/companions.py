"""The processes of a command end together: the one that meets an error says why, the others end with its status."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_CONNECT = 600.0  # a machine may be started later
_SECONDS_TO_SPEAK = 5.0
_SECONDS_TO_TRY = 10.0  # as a name server that does not answer takes 5
_SECONDS_TO_END = 2.0  # until all leave: a launcher ends at once those that have something to clear away then
# Of a process that cannot be interrupted, as it waits in a collective for those that have left.
_SECONDS_TO_UNWIND = 6.0
# Does nothing to those who do not ask for it, and libraries do not: Ctrl-C may be ignored, as behind `&` in a script.
_SIGNAL = signal.SIGURG
# What gloo, NCCL and the store say where another process has gone.
_CUT_OFF = re.compile(
    r"connection (was likely )?(closed|reset)|broken pipe|remote process exited|ncclRemoteError|ncclSystemError"
    r"|communicator was aborted|failed to recv",
    re.IGNORECASE,
)
_commands = 0  # of this process, up to now: what was told of one does not end the next


class EndedElsewhere(KeyboardInterrupt):
    """Ends what a process is about, as Ctrl-C does, after another process has met an error."""


@dataclass(frozen=True)
class Ending:
    """Which process has ended a command for all: its exit status, its rank, the name of its machine."""

    status: int
    rank: int
    host: str


@contextmanager
def companions() -> Iterator["Companions"]:
    """The other processes of a command, watched by a thread as long as this one is at work."""
    global _commands
    _commands += 1
    others = Companions()
    with others.watched():
        yield others


class Companions:
    """The other processes of a command. All tell each other of their end through torch's store, with own clients.

    Also before torch has connected them. Where there is one process, or no store, nobody tells anything.
    """

    def __init__(self) -> None:
        rank, number, port = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        is_launched = rank.isdecimal() and number.isdecimal() and port.isdecimal() and "MASTER_ADDR" in os.environ
        self.rank, self.number = (int(rank), int(number)) if is_launched else (0, 1)
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix = f"hf_deit/{restart}/{_commands}"
        self._is_host = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)  # of the store
        self._store: TCPStore | None = None
        self._line: socket.socket | None = None
        self._has_tried = threading.Event()  # to connect to the store
        self._is_ending = threading.Event()  # the command, by itself
        self._is_over = threading.Event()

    @property
    def are_on_other_machines(self) -> bool:
        """Whether there may be processes on another machine."""
        return self.number > 1 and os.environ.get("LOCAL_WORLD_SIZE") != str(self.number)

    @property
    def are_reached(self) -> bool:
        """Whether they hear what this one tells."""
        return self._store is not None

    @property
    def must_be_spoken_for(self) -> bool:
        """Whether this process is to say why it ends where the others cannot be asked: one on each machine is."""
        return self.number > 1 and (self.rank == 1 or os.environ.get("LOCAL_RANK") == "0")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raises `EndedElsewhere` in what stands in it, soon after another process has told of its end.

        Where that does not end the process in time, as a collective waits in it for what will not come, it is left.
        """
        if self.number == 1 or threading.current_thread() is not threading.main_thread():
            self._has_tried.set()
            yield
            return
        before = signal.signal(_SIGNAL, self._interrupt)
        threading.Thread(target=self._watch, name="companions", daemon=True).start()
        try:
            yield
        finally:
            self._is_ending.set()
            self._is_over.set()
            signal.signal(_SIGNAL, before)
            if self._line is not None:
                self._line.close()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._is_ending.is_set():
            raise EndedElsewhere

    def _watch(self) -> None:
        with suppress(Exception):  # without a store each ends by itself
            self._connect()
        self._has_tried.set()
        while not self._is_ending.wait(_SECONDS_BETWEEN_LOOKS):
            if (ending := self._ending()) is not None:
                signal.pthread_kill(threading.main_thread().ident, _SIGNAL)
                if not self._is_ending.wait(_SECONDS_TO_UNWIND):
                    self.leave()
                    os._exit(ending.status)

    def _connect(self) -> None:
        from torch.distributed import TCPStore

        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if not self._is_host:
            self._line = self._plain_line(address)
        self._store = TCPStore(
            *address,
            is_master=self._is_host,
            timeout=timedelta(seconds=_SECONDS_TO_CONNECT),
            wait_for_workers=False,
            multi_tenant=True,  # that of torch's own connection, in the same process
        )

    def _plain_line(self, address: tuple[str, int]) -> socket.socket:
        """A connection to the store's host that says without noise whether it is there: torch's prints its stack."""
        end = time.monotonic() + _SECONDS_TO_CONNECT
        while True:
            try:
                return socket.create_connection(address, timeout=_SECONDS_TO_SPEAK)
            except OSError:
                if self._is_over.wait(0.1) or time.monotonic() > end:
                    raise

    def _is_lost(self) -> bool:
        if self._line is None:
            return False
        try:
            self._line.setblocking(False)
            return self._line.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _ask(self, question: str, *words: object) -> object | None:
        """What the store answers to a call of one of its methods; None if there is none any more."""
        if self._store is None or self._is_lost():
            self._store = None
            return None
        try:
            return getattr(self._store, question)(*words)
        except Exception:  # of torch's own kinds
            self._store = None
            return None

    def _ending(self) -> Ending | None:
        key = f"{self._prefix}/ending"
        if not self._ask("check", [key]):
            return None
        told = self._ask("get", key)
        return None if told is None else Ending(**json.loads(told))

    def ended_by_another(self, patience: float, *, is_cut_off: bool) -> Ending | None:
        """Which other process has ended the command; None if this one is the first, and is to say why.

        The process is taken to be at its end from here on.

        Args:
            patience: seconds to wait for another to have said so.
            is_cut_off: see `are_gone`.
        """
        self._is_ending.set()
        if is_cut_off:  # the store may go with those that have gone
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if self.number == 1 or not self._has_tried.wait(_SECONDS_TO_TRY):
            return None
        if (ending := self._wait_for_ending(patience)) is not None or not self.are_reached:
            return ending
        first = self._ask("compare_set", f"{self._prefix}/speaker", "", str(self.rank))
        return None if first in (None, str(self.rank).encode()) else self._wait_for_ending(_SECONDS_TO_SPEAK)

    def _wait_for_ending(self, seconds: float) -> Ending | None:
        end = time.monotonic() + seconds
        while (ending := self._ending()) is None and self.are_reached and time.monotonic() < end:
            time.sleep(0.05)
        return ending

    def tell(self, status: int) -> None:
        """Lets the others end with a status, after why was said, and waits a moment until they do."""
        ending = Ending(status, self.rank, socket.gethostname())
        self._ask("set", f"{self._prefix}/ending", json.dumps(asdict(ending)))
        self.leave()

    def leave(self) -> None:
        """Waits a moment until the others are at their end, too; with the store, until they ask it no more."""
        self._count("left", waits=True)
        self._count("gone", waits=self._is_host)

    def _count(self, name: str, *, waits: bool) -> None:
        key, end = f"{self._prefix}/{name}", time.monotonic() + _SECONDS_TO_END
        count = self._ask("add", key, 1)
        while waits and count is not None and count < self.number and time.monotonic() < end:
            time.sleep(0.05)
            count = self._ask("add", key, 0)

    def are_gone(self, error: BaseException | None) -> bool:
        """Whether an error says no more than that another process is not there any more."""
        while error is not None and self.number > 1:
            # gloo's and torch's own kinds, of which others are, too: a push can end for a connection that was closed.
            is_of_torch = type(error) is RuntimeError or type(error).__name__.startswith("Dist")
            if is_of_torch and _CUT_OFF.search(str(error)):
                return True
            error = error.__cause__ or error.__context__
        return False


def communication() -> ModuleType | None:
    """torch.distributed if processes are connected by it, without loading torch for those that are not."""
    distributed = sys.modules.get("torch.distributed")
    is_open = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if is_open else None
