"""A run's side of a label store: it replays what is there, records what the teacher says, and checks both."""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch.utils.data import DataLoader

from ..data.view_dataset import collate
from ..errors import InputError
from ..hub.facts import LOCAL_TEACHER, Member, RunSources, Source, several
from ..hub.revisions import declared_datasets, declared_license
from ..labels.epoch import EpochLabels
from ..labels.files import ABSENT, TRUE_LABEL, wants_crc
from ..labels.identity import StoreIdentity
from ..labels.top_k import rebuilt_logits, top_logits
from ..models.answers import NO_ANSWER, decisions_of, has_answer
from ..models.teacher import AnyDescription, AnyTeacher
from .label_source import RunLabels
from .processes import on_every_process, on_main_process
from .teacher_answers import TeacherAnswers

_VIEWS_CHECKED_AT_START = 16
_CHECKED_AFTER = 16  # batches that are labelled, so that a teacher that must not go on does not do so for long
_SETTLE_AFTER = 256  # batches, whose CRCs until then stay on their device, so that nothing waits for it

Batch = dict[str, torch.Tensor]


def _is_on_hub(name: str, commit: str) -> bool:
    """Whether a store names a model on the Hub. It may be anybody's: no path of this machine is looked up by it."""
    with suppress(HFValidationError):
        validate_repo_id(name)
        return constants.REGEX_COMMIT_OID.match(commit) is not None and not os.path.exists(name)
    return False


def _sources_of(identity: StoreIdentity) -> dict[str, Any]:
    """The fields of `RunSources` that say who the teacher, or teachers, of kept labels are."""

    def source(name: str, commit: str) -> tuple[Source, list[str] | None, str | None]:
        if not _is_on_hub(name, commit):
            return LOCAL_TEACHER, None, None
        return Source(name, commit, on_hub=True), declared_datasets(name, commit), declared_license(name, commit) or ""

    teacher = identity.teacher
    if "members" not in teacher:
        named, stated, terms = source(teacher.get("name") or "", teacher["revision"])
        return {"teacher": named, "teacher_datasets": stated, "teacher_license": terms}
    members = []
    for name, one, weight in zip(teacher["names"], teacher["members"], teacher["weights"], strict=True):
        named, stated, terms = source(name, one["revision"])
        shown = identity.shown_size(one)
        members.append(Member(named, weight, datasets=stated, license=terms, size=shown))
    return {"teacher": several(len(members)), "teacher_members": members}


@dataclass
class LabelReport:
    """What became of the labels of a run, over all processes.

    Attributes:
        replayed: views whose label was kept.
        asked: views that the teacher labelled.
        verified: views with a kept label that the teacher labelled again.
        agreeing: those of them where it said the same.
        pixels: views whose pixels were compared, by their CRC, with those of the run that recorded. All were the same.
        unanswered: of the views that the teacher was asked about, those that it gave no answer to.
    """

    replayed: int = 0
    asked: int = 0
    verified: int = 0
    agreeing: int = 0
    pixels: int = 0
    unanswered: int = 0


class KeptLabels:
    """The labels of a run's views: kept ones, and the teacher's where there are none.

    The Trainer says when an epoch begins and ends, and when a checkpoint is saved; in between each batch gets its
    `answer`. Nothing of it makes the host wait for the device, but for epochs of which a part is there.

    Args:
        labels: of the run's views, in the store that it names.
        teacher: None takes the store's word for who it was.
        needed: how many of an epoch's first views are wanted, by epoch; by default those that the run trains on.

    Attributes:
        store: that is read, and written unless it is `readonly`.
        needs_teacher: whether there are views to label or to verify.

    Raises:
        InputError: labels of other views; a store that ends before the training does, without a teacher; a broken
            file; other pixels than those that the labels are of; or views without an answer, which are not to be
            passed over.
        CheckpointError: the store must be written, and cannot be.
    """

    def __init__(
        self,
        labels: RunLabels,
        teacher: AnyDescription | None,
        *,
        needed: Mapping[int, int] | None = None,
    ) -> None:
        self._labels, self._args, self._views, self._sampler = labels, labels.args, labels.views, labels.sampler
        self._needed = labels.needed if needed is None else dict(needed)
        self.store, self._identity = labels.open(teacher, self._needed)
        # Of the store's identity, as it may have more views an epoch, of which then fewer have their CRC kept.
        self._views.wants_crc = functools.partial(wants_crc, self.store.identity)
        try:
            on_main_process(self._check_files)
            on_main_process(self._check_pixels)
            is_missing = on_main_process(lambda: bool(self.store.missing(self._wanted())))
        except BaseException:
            self.store.close()
            raise
        self.needs_teacher = is_missing or self._args.verify_teacher_labels > 0
        self._is_open = True
        self._known: EpochLabels | None = None
        self._covers = False
        self.restart()

    def restart(self) -> None:
        """Begins another training, of which nothing is counted yet."""
        if not self._is_open:
            self.store = self._labels.open_again(self._identity, self._needed, has_teacher=self.needs_teacher)
            self._is_open = True
        self._epoch = -1
        self._replayed = self._asked = self._verified = self._batches = self._pixels = 0
        self._agreeing = torch.zeros((), dtype=torch.int64, device=self._args.device)
        self._unanswered = torch.zeros_like(self._agreeing)
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._crcs: list[tuple[int, int]] = []

    def _wanted(self) -> dict[int, int]:
        return self._needed if self.store.readonly else self._labels.with_rest(self._needed, self.store)

    def close(self) -> None:
        """Lets others write. What is not flushed is gone."""
        self.store.close()
        self._is_open = False

    def named_in(self, sources: RunSources) -> RunSources:
        """What a run is made from, with what the store knows of its teacher and, on the Hub, the store."""
        if sources.teacher is None:
            sources = replace(sources, **on_main_process(lambda: _sources_of(self.store.identity)))
        sources = replace(sources, teacher_size=self.store.identity.teacher_size)
        if (on_hub := self.store.source) is not None:
            sources = replace(sources, teacher_labels=Source(*on_hub, on_hub=True, is_dataset=True))
        return sources

    def _epochs_there(self) -> list[int]:
        """Those that the run needs and of which something is kept."""
        return sorted({*self.store.complete_epochs, *self.store.partial_epochs} & self._needed.keys())

    def _check_files(self) -> None:
        """Reads what the run needs of a folder, so that a broken file is told now, not in days.

        Raises:
            InputError: one is broken, or has views without an answer, which are not to be passed over.
        """
        if self.store.source is None:
            for epoch in self._epochs_there():
                self._read(epoch)

    def _read(self, epoch: int) -> EpochLabels:
        known = self.store.epoch(epoch)
        unanswered = known.num_unanswered(self._needed.get(epoch))
        if unanswered and self._args.on_bad_teacher_answer == "stop":
            raise InputError(
                f"the teacher's answers to {unanswered:,} views of epoch {epoch} were not finite when the labels in "
                f"{self._args.teacher_labels!r} were recorded: pass --on_bad_teacher_answer skip, which leaves these "
                "views out of its term, or give other --teacher_labels"
            )
        return known

    def _check_pixels(self) -> None:
        """Makes a few views whose CRC is kept, and compares.

        Raises:
            InputError: their pixels are others, or may be: with other versions, and no CRC.
        """
        epochs = self._epochs_there()
        for epoch in epochs:
            slots, _ = self.store.crcs(epoch)
            slots = slots[slots < self._needed[epoch]][:_VIEWS_CHECKED_AT_START].tolist()
            if slots:
                made = (self._views[key] for key in self._sampler.keys(epoch, slots))
                crcs = [view["pixel_crcs"] for view in made]
                self.store.check_pixels((epoch, slot, crc) for slot, crc in zip(slots, crcs, strict=True))
                return
        if epochs and self.store.changed_versions:
            self.store.check_pixels([])  # which refuses: nothing shows that other versions make the same pixels

    # In an epoch

    def start_epoch(self, epoch: int) -> None:
        """Reads what is there of an epoch.

        Raises:
            InputError: a file is broken, or cannot be downloaded, or has views without an answer, which are not to be
                passed over.
        """
        self._epoch = epoch
        is_there = self.store.has(epoch) or epoch in self.store.partial_epochs
        known = on_every_process(lambda: self._read(epoch) if is_there else None)
        self._known = None if known is None or known.is_empty else known.to(self._args.device)
        needed = self._needed.get(epoch, len(self._sampler))
        self._covers = self._known is not None and not len(self._known.absent(needed))

    def absent(self) -> np.ndarray:
        """The slots of the epoch, ascending, of which nothing is known."""
        return np.arange(self.store.identity.views_per_epoch) if self._known is None else self._known.absent()

    def answer(self, batch: Batch, teacher: AnyTeacher | None) -> torch.Tensor:
        """What the teacher says about a batch of views, or has said about them.

        Args:
            batch: `pixel_values` (B, 3, H, W) as the student sees them, `labels` (B,); `slots` and `pixel_crcs` (B,)
                as `KeyedViews` gives them.
            teacher: may be None if it is not needed.

        Returns:
            Its labels, (B,) int64, or, for soft distillation, what is kept of its logits, (B, num_labels) float32;
            `NO_ANSWER`, or NaN, where it gave none (see `has_answer`).
        """
        slots = self._slots(batch)
        if self._known is None:
            return self._ask(batch, teacher)
        present = None if self._covers else self._known.has(slots)
        if present is not None and not bool(present.all()):
            asked = self._ask(batch, teacher, only=~present)
            self._note_replayed(batch, present)
            present = present if asked.ndim == 1 else present.unsqueeze(1)
            return torch.where(present, self._replay(batch), asked)
        self._note_replayed(batch)
        if self._verifies():
            self._verified += len(slots)
            said = self._known.labels(slots, batch["labels"])
            self._agreeing += (decisions_of(teacher(batch["pixel_values"])) == said).sum()
        return self._replay(batch)

    def _replay(self, batch: Batch) -> torch.Tensor:
        if self._args.distillation_type == "soft":
            return self._known.logits(self._slots(batch))
        return self._known.labels(self._slots(batch), batch["labels"])

    def _slots(self, batch: Batch) -> torch.Tensor:
        """(B,) int64. Views of another epoch come out of range, where nothing is found and nothing recorded."""
        return batch["slots"] - (self._epoch << 32)

    def _ask(self, batch: Batch, teacher: AnyTeacher | None, only: torch.Tensor | None = None) -> torch.Tensor:
        """Lets the teacher label a batch, and records what it says, of all views or of some."""
        if teacher is None:
            raise InputError(
                f"epoch {self._epoch} has views without kept label, and there is no teacher: give one, or train for "
                f"no more epochs than the store has ({len(self.store.complete_epochs)})"
            )
        logits, identity = teacher(batch["pixel_values"]), self.store.identity
        labels, answered = decisions_of(logits), has_answer(logits)
        top = None
        if identity.top_k:
            top = top_logits(torch.where(answered.unsqueeze(1), logits, 0.0), identity.top_k)
        chosen = slice(None) if only is None else only
        self._asked += len(labels) if only is None else int(only.sum())
        self._unanswered += (~answered[chosen]).sum()
        if not self.store.readonly:
            # A run that stops for a view without an answer leaves it to one that has a better teacher, or passes over.
            recorded = labels if self._skips else torch.where(answered, labels, ABSENT)
            columns = (column[chosen] for column in (self._slots(batch), recorded, batch["labels"]))
            some = None if top is None else type(top)(*(part[chosen] for part in top))
            self.store.record(self._epoch, *columns, crcs=batch["pixel_crcs"][chosen], top=some)
        if self._args.distillation_type == "soft":
            return torch.where(answered.unsqueeze(1), rebuilt_logits(top, identity.num_labels), torch.nan)
        return labels

    @property
    def _skips(self) -> bool:
        return self._args.on_bad_teacher_answer == "skip"

    def _note_replayed(self, batch: Batch, only: torch.Tensor | None = None) -> None:
        slots, crcs = self._slots(batch), batch["pixel_crcs"]
        if only is not None:
            slots, crcs = slots[only], crcs[only]
        self._replayed += len(slots)
        self._seen.append((slots, crcs))
        if len(self._seen) >= _SETTLE_AFTER:
            self._settle_crcs()

    def _settle_crcs(self) -> None:
        if self._seen:
            slots, crcs = (torch.cat(column).cpu() for column in zip(*self._seen, strict=True))
            kept = crcs >= 0
            self._crcs += zip(slots[kept].tolist(), crcs[kept].tolist(), strict=True)
            self._seen = []

    def _verifies(self) -> bool:
        """Whether the teacher labels this batch, too: the first one, and then evenly so many of them."""
        part = self._args.verify_teacher_labels
        self._batches += 1
        return part > 0 and (self._batches == 1 or int(self._batches * part) > int((self._batches - 1) * part))

    # Between steps

    def flush(self) -> None:
        """Writes what this process has recorded.

        Raises:
            CheckpointError: it cannot be written, say on a full disk.
        """
        if not self.store.readonly:
            self.store.flush(self._args.process_index)

    def finish_epoch(self, teacher: AnyTeacher | None, prepare: Callable[[Batch], Batch]) -> None:
        """Ends an epoch: writes it as a whole, if all its views were seen, and compares CRCs of pixels.

        The few views that the run does not visit, since they fill no whole step, are labelled now: so the epoch serves
        any batch size.

        Args:
            teacher: may be None if it is not needed.
            prepare: makes what the student sees of a loader's batch.

        Raises:
            InputError: pixels are others than those of the run that recorded.
            CheckpointError: something cannot be written.
        """
        self._settle_crcs()
        on_every_process(self._compare_crcs)
        self._finish(self._epoch, teacher, prepare)

    def finish(self, teacher: AnyTeacher | None, prepare: Callable[[Batch], Batch]) -> None:
        """Ends the training: finishes the epochs, too, that were trained on before the run was stopped and resumed.

        Args, Raises:
            See `finish_epoch`.
        """
        self._finish(max(self._needed, default=-1), teacher, prepare)

    def _finish(self, last: int, teacher: AnyTeacher | None, prepare: Callable[[Batch], Batch]) -> None:
        """Writes epochs up to the last one as a whole, of which the run has seen all views of its steps."""
        if self.store.readonly:
            return
        on_every_process(self.flush)
        for epoch, slots in on_main_process(functools.partial(self._ended, last)):
            if teacher is not None or not len(slots):
                self.label(epoch, slots, teacher, prepare)
                on_main_process(functools.partial(self.store.finish_epoch, epoch))

    def _compare_crcs(self) -> None:
        kept = {*self.store.crcs(self._epoch)[0].tolist()} if self._crcs else set()
        if crcs := [(self._epoch, slot, crc) for slot, crc in self._crcs if slot in kept]:
            self._pixels += self.store.check_pixels(crcs)
        self._crcs = []

    def _ended(self, last: int) -> list[tuple[int, np.ndarray]]:
        """Epochs up to the last one that the run has been through, with the slots that it does not visit."""
        ended = []
        for epoch in self.store.partial_epochs:
            slots = self.store.epoch(epoch).absent()
            if epoch <= last and (not len(slots) or slots[0] >= len(self._sampler)):
                ended.append((epoch, slots))
        return ended

    def label(
        self,
        epoch: int,
        slots: np.ndarray,
        teacher: AnyTeacher | None,
        prepare: Callable[[Batch], Batch],
        *,
        num_workers: int = 0,
        after_batch: Callable[[int], Any] | None = None,
    ) -> None:
        """Lets the teacher label views outside of the training, each process its part, and writes what it says.

        Args:
            epoch: from 0.
            slots: ascending, of which nothing is known.
            teacher: the teacher.
            prepare: makes what the student sees of a loader's batch.
            num_workers: of the loader.
            after_batch: called with the number of its views.

        Raises:
            InputError: the teacher gives views no answer, which are not to be passed over.
        """
        if not len(slots):
            return
        before, self._epoch = self._epoch, epoch
        group_size = self.store.identity.group_size
        wanted = torch.zeros(self.store.identity.views_per_epoch, dtype=torch.bool, device=self._args.device)
        wanted[torch.from_numpy(slots).to(wanted.device)] = True
        groups = np.unique(slots // group_size)  # a view's partner is in its group, which must be whole
        batches = np.array_split(groups, math.ceil(len(groups) / max(1, self._args.train_batch_size // group_size)))
        mine = batches[self._args.process_index :: self._args.world_size]
        loader = DataLoader(
            self._views,
            batch_sampler=self._keys_of(epoch, mine, group_size),
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=self._args.dataloader_pin_memory,
            generator=torch.Generator(),  # the global one is the training's
        )

        answers, given = TeacherAnswers(self._args, self.name_of_view), iter(loader)

        def label_some() -> None:
            for batch in itertools.islice(given, _CHECKED_AFTER):
                batch = prepare(batch)
                only = wanted[self._slots(batch)]
                answers.note(has_answer(self._ask(batch, teacher, only=only)), batch, asked=only)
                if after_batch is not None:
                    after_batch(len(batch["slots"]))

        try:
            # As often in every process, so that none waits long for another one, which may have views to stop for.
            for _ in range(math.ceil(len(batches) / self._args.world_size / _CHECKED_AFTER)):
                on_every_process(label_some)
                if not self._skips:
                    answers.check(teacher)
        except BaseException:
            self.flush()  # what is labelled is labelled
            raise
        on_every_process(self.flush)
        self._epoch = before
        answers.check(teacher, needs_some=len(slots) == self.store.identity.views_per_epoch)

    def name_of_view(self, epoch: int, slot: int) -> str:
        """What to call the image that fills a slot of an epoch."""
        return self._views.name(next(self._sampler.keys(epoch, [slot])))

    def _keys_of(self, epoch: int, batches: list[np.ndarray], group_size: int) -> Iterator[list[Any]]:
        slots = (int(group) * group_size + view for batch in batches for group in batch for view in range(group_size))
        keys = self._sampler.keys(epoch, slots)
        for batch in batches:
            yield list(itertools.islice(keys, len(batch) * group_size))

    # Reports

    def report(self) -> LabelReport:
        """What became of the labels since `restart`, over all processes."""
        counts = [self._replayed, self._asked, self._verified, int(self._agreeing), self._pixels]
        counts.append(int(self._unanswered))
        if PartialState().num_processes > 1:
            counts = reduce(torch.tensor(counts, device=self._args.device), reduction="sum").tolist()
        return LabelReport(*counts)

    def verification_logs(self) -> dict[str, float]:
        """What to log of the labels that the teacher was asked for again; empty if it was not asked."""
        if not self._args.verify_teacher_labels or not (report := self.report()).verified:
            return {}
        return {
            "kept_labels_verified": report.verified,
            "kept_labels_agreement": report.agreeing / report.verified,
            "kept_labels_pixels_compared": report.pixels,
        }

    def agreement_with_labels(self, num_views: int) -> float | None:
        """How often the kept labels of the run's first views are the true ones; None if none are known."""
        epoch = min(self._needed)
        keys = list(self._sampler.keys(epoch, range(min(num_views, self._needed[epoch]))))
        true_labels = self._views.labels[[key.index for key in keys]]
        codes = self.store.epoch(epoch).codes[: len(keys)]
        known = (codes != ABSENT) & (codes != NO_ANSWER) & (true_labels >= 0)
        return float(((codes == TRUE_LABEL) | (codes == true_labels))[known].mean()) if known.any() else None
