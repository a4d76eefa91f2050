"""Which files of a store hold an epoch: one, when all its views are there, or parts of it until then."""

import os
import re
import secrets
from collections.abc import Iterator

from ..errors import CheckpointError, InputError
from ..hub.files import name_of_temporary
from .files import (
    DATA,
    PARTS,
    STORE_FILE,
    Columns,
    damaged,
    is_regular,
    merge,
    no_views,
    read_columns,
    write_columns,
)
from .identity import StoreIdentity
from .on_hub import HubFolder

# Five digits, or as many as it takes: an epoch has one name. It fits beside a slot in a view's number.
_EPOCH = r"epoch-([0-9]{5}|[1-9][0-9]{5,8})"
LAST_EPOCH = 999_999_999
_EPOCH_FILE = re.compile(rf"{_EPOCH}\.parquet")
_PART_FILE = re.compile(rf"{_EPOCH}\.rank-[0-9]+\.[0-9a-z]+\.parquet")


def epoch_file(epoch: int) -> str:
    """Where a store has a complete epoch, from its folder."""
    return f"{DATA}/epoch-{epoch:05d}.parquet"


class EpochFiles:
    """The files of a store, by epoch.

    Args:
        folder: of the store; of one on the Hub, in the cache.
        identity: of the store.
        hub: the data set, for a store on the Hub, which has complete epochs alone.

    Attributes:
        name: of the store, for messages.
    """

    def __init__(self, folder: str, identity: StoreIdentity, hub: HubFolder | None) -> None:
        self.name = repr(hub.repo_id if hub else folder)
        self._folder = folder
        self._identity = identity
        self._hub = hub

    @property
    def complete(self) -> list[int]:
        """The epochs of which all views are there, ascending."""
        folder = os.path.join(self._folder, DATA)
        names = self._hub.names(DATA) if self._hub else os.listdir(folder) if os.path.isdir(folder) else []
        return sorted(int(match[1]) for match in map(_EPOCH_FILE.fullmatch, names) if match)

    @property
    def with_parts(self) -> list[int]:
        """The epochs of which there are parts, ascending."""
        return sorted({epoch for epoch, _ in self._parts()})

    def has(self, epoch: int) -> bool:
        """Whether an epoch is complete."""
        name = epoch_file(epoch)
        return name in self._hub.files if self._hub else os.path.exists(os.path.join(self._folder, name))

    def read_whole(self, epoch: int) -> Columns:
        """A complete epoch, from its file.

        Raises:
            InputError: the file is broken, or not there.
        """
        name = epoch_file(epoch)
        path = self._hub.path(name, then=epoch_file(epoch + 1)) if self._hub else os.path.join(self._folder, name)
        columns = read_columns(path, epoch, self._identity)
        if len(columns["slot"]) != self._identity.views_per_epoch:  # they ascend, and none is out of range
            raise damaged(path, f"it has {len(columns['slot'])} of {self._identity.views_per_epoch} views")
        return columns

    def read(self, epoch: int, *, others_write: bool) -> Columns:
        """What is there of an epoch, from its file or its parts.

        Args:
            others_write: whether another process may put the parts together meanwhile.

        Raises:
            InputError: a file is broken; or the store is on the Hub and has no such epoch.
        """
        if self._hub is not None and not self.has(epoch):
            raise InputError(f"the label store {self.name} lacks epoch {epoch}: it has {len(self.complete)}")
        try:
            return self.read_whole(epoch) if self.has(epoch) else self._read_parts(epoch)[0]
        except InputError:
            if not others_write or self._hub is not None or not self.has(epoch):
                raise
            return self.read_whole(epoch)  # the parts that were just there are in it now

    def write_part(self, epoch: int, columns: Columns, rank: int) -> None:
        """Writes some views of an epoch.

        Raises:
            CheckpointError: it cannot be written, say on a full disk.
        """
        name = f"epoch-{epoch:05d}.rank-{rank:05d}.{secrets.token_hex(4)}.parquet"
        write_columns(os.path.join(self._folder, PARTS, name), epoch, columns, self._identity)

    def put_together(self, epoch: int) -> bool:
        """Makes the parts of an epoch its file, once they hold all its views.

        Returns:
            Whether the epoch is complete.

        Raises:
            InputError: parts are broken, or contradict each other.
            CheckpointError: the file cannot be written; the parts stay.
        """
        columns, paths = self._read_parts(epoch)
        if len(columns["slot"]) < self._identity.views_per_epoch:
            return False
        if not self.has(epoch):
            write_columns(os.path.join(self._folder, epoch_file(epoch)), epoch, columns, self._identity)
        for path in paths:
            self._remove(path)
        return True

    def recover(self) -> None:
        """Removes what a killed run has left half-written, and puts parts together. For the holder of the lock.

        Raises:
            InputError: parts are broken, or contradict each other.
            CheckpointError: something cannot be removed or written; the parts stay.
        """
        ours = {"": re.compile(re.escape(STORE_FILE)), DATA: _EPOCH_FILE, PARTS: _PART_FILE}
        for parent, names in ours.items():
            folder = os.path.join(self._folder, parent)
            for name in os.listdir(folder):
                is_ours = names.fullmatch(name_of_temporary(name) or "")  # there may be files of others, too
                if is_ours and is_regular(os.path.join(folder, name)):
                    self._remove(os.path.join(folder, name))
        for epoch in self.with_parts:
            self.put_together(epoch)

    def _remove(self, path: str) -> None:
        try:
            os.remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CheckpointError(
                f"cannot remove {path!r}, which the label store needs no more ({error.strerror or error}): mend the "
                "rights of its folder"
            ) from error

    def _parts(self) -> Iterator[tuple[int, str]]:
        """Epoch and path of each part."""
        folder = os.path.join(self._folder, PARTS)
        names = sorted(os.listdir(folder)) if self._hub is None and os.path.isdir(folder) else []
        for match in filter(None, map(_PART_FILE.fullmatch, names)):
            yield int(match[1]), os.path.join(folder, match[0])

    def _read_parts(self, epoch: int) -> tuple[Columns, list[str]]:
        """The views of an epoch's parts, and of its file if there is one, too; and the parts' paths."""
        paths = [path for number, path in self._parts() if number == epoch]
        parts = [read_columns(path, epoch, self._identity) for path in paths]
        if self.has(epoch):
            parts.insert(0, self.read_whole(epoch))
        return merge([*parts, no_views(self._identity)], epoch, self.name), paths
