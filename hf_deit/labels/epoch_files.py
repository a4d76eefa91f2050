"""Which files of a store hold an epoch: one, when all its views are there, or parts of it until then."""

import os
import re
import secrets
from collections.abc import Iterator

import numpy as np

from ..errors import InputError
from .files import DATA, PARTS, Columns, damaged, merge, no_views, read_columns, write_columns
from .identity import StoreIdentity
from .on_hub import HubFolder

_EPOCH_FILE = re.compile(r"epoch-(\d{5,})\.parquet")
_PART_FILE = re.compile(r"epoch-(\d{5,})\.rank-\d+\.\w+\.parquet")


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
        if not np.array_equal(columns["slot"], np.arange(self._identity.views_per_epoch)):
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
            os.remove(path)
        return True

    def recover(self) -> None:
        """Removes what a killed run has left half-written, and puts parts together. For the holder of the lock."""
        for folder in (self._folder, os.path.join(self._folder, DATA), os.path.join(self._folder, PARTS)):
            for name in os.listdir(folder):
                if name.endswith(".tmp"):
                    os.remove(os.path.join(folder, name))
        for epoch in self.with_parts:
            self.put_together(epoch)

    def _parts(self) -> Iterator[tuple[int, str]]:
        """Epoch and path of each part."""
        folder = os.path.join(self._folder, PARTS)
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        for match in filter(None, map(_PART_FILE.fullmatch, names)):
            yield int(match[1]), os.path.join(folder, match[0])

    def _read_parts(self, epoch: int) -> tuple[Columns, list[str]]:
        """The views of an epoch's parts, and of its file if there is one, too; and the parts' paths."""
        paths = [path for number, path in self._parts() if number == epoch]
        parts = [read_columns(path, epoch, self._identity) for path in paths]
        if self.has(epoch):
            parts.insert(0, self.read_whole(epoch))
        return merge([*parts, no_views(self._identity)], epoch, self.name), paths
