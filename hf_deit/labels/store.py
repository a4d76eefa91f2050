"""What a teacher said about training views, kept in a folder and replayed: the teacher is paid once.

A view is a pure function of (seed, epoch, slot), so its label needs no key but its slot, and a run with another batch
or world size, or another student, replays it. One parquet file holds an epoch; see `TeacherLabelStore`.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import filelock
import numpy as np
import torch
from transformers.utils import logging

from ..errors import CheckpointError, InputError, counted, shortlist
from .epoch import EpochLabels
from .epoch_files import LAST_EPOCH, EpochFiles, epoch_file
from .files import ABSENT, STORE_FILE, TRUE_LABEL, check_new_folder, has_labels, is_store, lock_store, merge, wants_crc
from .identity import StoreIdentity
from .on_hub import HubFolder, hub_id, push
from .pending import PendingLabels
from .top_k import TopLogits

logger = logging.get_logger(__name__)


class TeacherLabelStore:
    """The teacher's labels of a run's views, by epoch and slot. Made by `open`.

    A run that writes calls `record` at each step, and `flush` on every process at checkpoints and at the end of an
    epoch. When all processes have flushed an epoch, the main process calls `finish_epoch`. A run that resumes finds
    what was flushed with `lookup`, in an epoch that is not complete, too. Those views need no teacher.

    In the folder, `store.json` says what the labels depend on, `data/epoch-NNNNN.parquet` holds a complete epoch, one
    row per view, and `parts/` what is there of the others. A null label stands for the true one, which is what the
    teacher mostly says.

    Attributes:
        folder: of the store; for one on the Hub, that in the cache.
        identity: what the labels depend on.
        readonly: whether it takes no records. Stores on the Hub take none.
        changed_versions: library to (version that recorded, version now), where they differ: see `check_pixels`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: StoreIdentity,
        *,
        readonly: bool,
        hub: HubFolder | None = None,
    ) -> None:
        self.folder = os.fspath(folder)
        self.identity = identity
        self.readonly = readonly
        self.changed_versions: dict[str, tuple[str | None, str | None]] = {}
        self._hub = hub
        self._lock: filelock.BaseFileLock | None = None
        self._has_warned = False
        self._files = EpochFiles(self.folder, identity, hub)
        self._name = self._files.name
        self._pending = PendingLabels(identity)
        self._cache: dict[int, EpochLabels] = {}

    # Opening

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        identity: StoreIdentity | None = None,
        *,
        readonly: bool = False,
        revision: str | None = None,
        token: str | None = None,
        is_main_process: bool = True,
    ) -> "TeacherLabelStore":
        """Opens a store, or creates it. Who may write makes whole epochs of parts that a killed run has left.

        Args:
            source: a folder, or a data set on the Hub as "hf://datasets/user/name"; with `readonly` also "user/name",
                if it is no folder.
            identity: what the run's labels depend on; another store is refused. None takes any store that is there.
            readonly: whether nothing shall be written. A store that is not there is refused then.
            revision: branch, tag or commit of a data set on the Hub.
            token: of a user on the Hub; by default the one that `hf auth login` or HF_TOKEN gives.
            is_main_process: whether this process creates and locks the store. The others of its run open it later.

        Raises:
            InputError: there is no store, it has other labels, it is broken, or another run writes to it.
            CheckpointError: nothing can be written to the folder.
        """
        source = os.fspath(source)
        repo_id = hub_id(source, bare=readonly)
        if repo_id is not None:
            hub = HubFolder(repo_id, revision, token)
            identity_there = StoreIdentity.read(os.path.join(hub.folder, STORE_FILE))
            store = cls(hub.folder, identity_there, readonly=True, hub=hub)
        elif revision is not None:
            raise InputError(
                f"got the revision {revision!r} for the folder {source!r}: only stores on the Hub have one"
            )
        else:
            store = cls._open_folder(source, identity, readonly, is_main_process)
        try:
            if identity is not None:
                store.check_identity(identity)
            if store._lock is not None:
                store._files.recover()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _open_folder(
        cls, folder: str, identity: StoreIdentity | None, readonly: bool, is_main_process: bool
    ) -> "TeacherLabelStore":
        path = os.path.join(folder, STORE_FILE)
        lock = None
        if not is_store(folder) and (readonly or identity is None or not is_main_process):
            raise InputError(
                f"there is no label store in {folder!r}, expected its {STORE_FILE}: give another folder, or let "
                "a run create it that may write, with its identity, before others open it"
            )
        if not readonly and is_main_process:
            check_new_folder(folder)  # before anything is made there
            lock = lock_store(folder)
        try:
            if lock is not None and identity is not None and not has_labels(folder):
                identity.write(path)
                logger.info("created the label store %s", folder)
            store = cls(folder, StoreIdentity.read(path), readonly=readonly)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        store._lock = lock
        return store

    def check_identity(self, identity: StoreIdentity) -> None:
        """Refuses labels of other views than a run's, and notes whose versions of libraries are others.

        Args:
            identity: of the run's labels.

        Raises:
            InputError: with each field that differs.
        """
        where = self._hub.repo_id if self._hub else self.folder
        self.identity.check_same(identity, where, fewer_views=self.readonly)
        then, now = self.identity.versions, identity.versions
        names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        self.changed_versions = {name: (then.get(name), now.get(name)) for name in names}

    def close(self) -> None:
        """Frees the lock, so that others can write. What is not flushed is lost."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "TeacherLabelStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    @property
    def complete_epochs(self) -> list[int]:
        """The epochs of which all views are there, ascending."""
        return self._files.complete

    @property
    def partial_epochs(self) -> list[int]:
        """Those of which some views are there, and not all, ascending."""
        return sorted({*self._files.with_parts} - {*self.complete_epochs})

    @property
    def views_in_parts(self) -> dict[int, int]:
        """Of the `partial_epochs`, how many views are there.

        Raises:
            InputError: a part is broken, or parts contradict each other.
        """
        return {epoch: len(self.epoch(epoch).columns["slot"]) for epoch in self.partial_epochs}

    def parts_in_words(self) -> str:
        """ "epoch 3 (40 of 64 views), …" for the `partial_epochs`; empty if there are none.

        Raises:
            InputError: see `views_in_parts`.
        """
        views = counted(self.identity.views_per_epoch, "view")
        return shortlist((f"epoch {epoch} ({count:,} of {views})" for epoch, count in self.views_in_parts.items()), 20)

    def has(self, epoch: int) -> bool:
        """Whether all views of an epoch are there."""
        return self._files.has(epoch)

    def missing(self, needed: Mapping[int, int]) -> list[int]:
        """The epochs that lack some of the views that are needed.

        Args:
            needed: by epoch, how many of its first views are needed.
        """
        complete, partial = {*self.complete_epochs}, {*self.partial_epochs}
        return [
            epoch
            for epoch, views in sorted(needed.items())
            if epoch not in complete and (epoch not in partial or len(self.epoch(epoch).absent(views)))
        ]

    def labels(self, epoch: int, true_labels: np.ndarray) -> np.ndarray:
        """The teacher's labels of the epoch's first N views.

        Args:
            true_labels: (N,) of slot 0 to N - 1, negative where there is none.

        Returns:
            (N,) int64, -1 where nothing is known, or where the teacher gave no answer.
        """
        return self.lookup(epoch, np.arange(len(true_labels)), true_labels)

    def lookup(self, epoch: int, slots: np.ndarray, true_labels: np.ndarray) -> np.ndarray:
        """The teacher's labels of views.

        Args:
            slots: (B,) integers.
            true_labels: (B,), negative where there is none.

        Returns:
            (B,) int64, -1 where nothing is known, in an epoch that is not complete, or the teacher gave no answer.

        Raises:
            InputError: the epoch's file is broken, or missing from a store on the Hub; or a view has no true label
                here, but had one in the run that recorded.
        """
        codes = self.epoch(epoch).codes[slots].astype(np.int64)
        is_true = codes == TRUE_LABEL
        labels = np.where(is_true, true_labels, np.maximum(codes, -1))
        if (labels[is_true] < 0).any() or (labels[is_true] >= self.identity.num_labels).any():
            raise InputError(
                f"views of epoch {epoch} in the label store {self._name} have their true label, but there is none "
                "here: train with the data that the labels are of"
            )
        return labels

    def lookup_logits(self, epoch: int, slots: np.ndarray) -> np.ndarray:
        """The teacher's logits of views, for any temperature: the top k as they were, the others all alike.

        Returns:
            (B, num_labels) float32.

        Raises:
            InputError: the store holds no logits, or not those of all these views.
        """
        known = self.epoch(epoch)
        if self.identity.top_k and (known.codes[slots] == ABSENT).any():
            raise InputError(f"the label store {self._name} has not all of these views of epoch {epoch}: record them")
        return known.logits(torch.from_numpy(np.asarray(slots, dtype=np.int64))).numpy()

    def crcs(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The slots whose CRC is kept, (N,) int64 ascending, and their CRCs, (N,) int64."""
        columns = self.epoch(epoch).columns
        kept = columns["pixel_crc"] >= 0
        return columns["slot"][kept].astype(np.int64), columns["pixel_crc"][kept]

    def wants_crc(self, epoch: int, slots: np.ndarray) -> np.ndarray:
        """Which views have the CRC of their pixels kept: (B,) bool, a pure function of (seed, epoch, slot)."""
        return wants_crc(self.identity, epoch, slots)

    def check_pixels(self, recomputed: Iterable[tuple[int, int, int]]) -> int:
        """Compares CRCs of views made now with those of the run that recorded.

        Other versions of the libraries are warned of once; they do no harm as long as they make the same pixels.

        Args:
            recomputed: (epoch, slot, CRC) of some of the views that `crcs` names.

        Returns:
            How many were compared.

        Raises:
            InputError: pixels differ, or there was nothing to compare.
        """
        kept: dict[int, dict[int, int]] = {}
        compared = differing = 0
        for epoch, slot, crc in recomputed:
            if epoch not in kept:
                kept[epoch] = dict(zip(*(array.tolist() for array in self.crcs(epoch)), strict=True))
            if (stored := kept[epoch].get(slot)) is not None:
                compared += 1
                differing += stored != crc
        changes = ", ".join(f"{name} {then} → {now}" for name, (then, now) in self.changed_versions.items())
        if differing or not compared:
            raise InputError(
                f"the labels in {self._name} are not of the views that are made here: {differing} of {compared} CRCs "
                f"of pixels differ, expected none of at least one (versions: {changes or 'the same'}). Install the "
                "versions that recorded them, or give another store"
            )
        if changes and not self._has_warned:
            self._has_warned = True
            same = f"which give the same pixels in all of {compared} views"
            logger.warning("the labels in %s were recorded with other versions (%s), %s", self._name, changes, same)
        return compared

    @property
    def source(self) -> tuple[str, str] | None:
        """Hub id and commit of a store on the Hub; None for a folder."""
        return None if self._hub is None else (self._hub.repo_id, self._hub.commit)

    def epoch(self, epoch: int) -> EpochLabels:
        """What is kept of an epoch.

        Raises:
            InputError: its file is broken, or missing from a store on the Hub.
        """
        found = self._cache.get(epoch)
        if found is None or not (found.is_complete or not self.has(epoch)):
            found = EpochLabels(self._files.read(epoch, others_write=self.readonly), self.identity)
            self._cache = {epoch: found}
        return found

    # Writing

    def record(
        self,
        epoch: int,
        slots: Any,
        labels: Any,
        true_labels: Any,
        *,
        crcs: Any | None = None,
        top: TopLogits | None = None,
    ) -> None:
        """Notes what the teacher says about views, in memory; `flush` writes it.

        Tensors stay where they are for a while, so that nothing waits for the device; they must not be changed.

        Args:
            slots: (B,) integers.
            labels: (B,), the teacher's.
            true_labels: (B,), negative where there is none.
            crcs: (B,), negative where there is none; see `wants_crc`.
            top: of the teacher's logits, if the store's `top_k` is not 0.

        Raises:
            InputError: the store is only read, or takes logits and got none, or the other way round. Slots and labels
                that are out of range are refused here, or later by `flush`.
        """
        if self.readonly:
            raise InputError(f"the label store {self._name} is only read, so it takes no labels: give a folder")
        if (top is not None) != bool(self.identity.top_k):
            raise InputError(f"got {'' if top else 'no '}logits for a store whose top_k is {self.identity.top_k}")
        if not 0 <= epoch <= LAST_EPOCH:
            raise InputError(f"epochs are from 0 to {LAST_EPOCH}, got {epoch}")
        self._pending.add(epoch, (slots, labels, true_labels, crcs, *(top or ())))

    def flush(self, rank: int = 0) -> None:
        """Writes what this process has recorded, each epoch as one part.

        Raises:
            InputError: see `record`; or a view was recorded twice, with different labels.
            CheckpointError: it cannot be written, say on a full disk. What was recorded stays in memory.
        """
        for epoch in self._pending.epochs:
            columns = merge(self._pending.settled(epoch), epoch, self._name)
            if len(columns["slot"]):
                self._files.write_part(epoch, columns, rank)
            self._pending.discard(epoch)
        self._cache = {epoch: known for epoch, known in self._cache.items() if known.is_complete}

    def finish_epoch(self, epoch: int) -> bool:
        """Merges the parts of an epoch into its file, once they hold all its views. For the main process alone.

        Returns:
            Whether the epoch is complete.

        Raises:
            InputError: parts are broken, or contradict each other.
            CheckpointError: the file cannot be written; the parts stay.
        """
        if self._lock is None:
            raise InputError(f"only the process that has locked the label store {self._name} may finish an epoch")
        is_complete = self._files.put_together(epoch)
        if is_complete:
            self._cache.pop(epoch, None)
        return is_complete

    def finish_covered(self) -> str | None:
        """Makes whole epochs of parts that hold all their views, as `open` does for whoever may write.

        A run that was killed between its last views and the end of their epoch leaves such parts.

        Returns:
            None, or in words why that cannot be done now: another process writes to the store, or a part is broken.
        """
        try:
            if any(self.has(epoch) or self.epoch(epoch).is_complete for epoch in self._files.with_parts):
                if self._lock is not None:
                    self._files.recover()
                else:
                    type(self).open(self.folder).close()
        except (InputError, CheckpointError) as error:
            return str(error)
        return None

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, seconds: float = 60.0
    ) -> str:
        """Pushes the complete epochs to the Hub as a data set, in one commit. A card that is there stays.

        Of other epochs nothing is pushed: `views_in_parts` says what is there of them.

        Nothing is made there before it is known that the token may push to it.

        Args:
            repo_id: of the data set, with or without a namespace; without one it is the user's.
            private: whether the data set shall be private; None takes the owner's default.
            token: of the user; by default the one that `hf auth login` or HF_TOKEN gives.
            seconds: for so long a push that fails is tried again, where that can help.

        Returns:
            The commit's address.

        Raises:
            InputError: no epoch is complete, or one is broken; the data set cannot be written to, or has other labels.
            PublishError: the Hub refuses, fails or is not there. The labels in the folder stay.
        """
        if self._hub is not None:
            raise InputError(f"{self._name} has no complete epoch in a folder to push: it is on the Hub")
        if obstacle := self.finish_covered():
            logger.warning("epochs that are in parts are left out: %s", obstacle)
        epochs = self.complete_epochs
        if not epochs:
            parts = self.parts_in_words()
            raise InputError(
                f"{self._name} has no complete epoch to push{parts and f', only parts of {parts}'}: record one first"
            )
        for epoch in epochs:
            self._files.read_whole(epoch)
        names = [epoch_file(epoch) for epoch in epochs]
        return push(repo_id, self.folder, names, self.identity, private=private, token=token, seconds=seconds)
