"""Views that a teacher gives no answer to: they stop the run, with their images, or are left out and counted."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers.utils import logging

from ..errors import InputError, counted, shortlist
from ..models.ensemble import TeacherEnsemble
from ..models.single_teacher import remedy_for
from ..models.teacher import AnyTeacher
from .arguments import DistillationTrainingArguments

logger = logging.get_logger(__name__)

_NAMED = 5
_SETTLE_AFTER = 256  # batches, whose answers until then stay on their device, so that nothing waits for it


class _Found(NamedTuple):
    """What one process has found.

    Attributes:
        views: that it has looked at.
        unanswered: those of them without an answer.
        names: of some of their images.
        silent: of several teachers the names of those that have not answered.
    """

    views: int
    unanswered: int
    names: list[str]
    silent: tuple[str, ...] = ()


class TeacherAnswers:
    """Which views a teacher has answered. Noting it makes nobody wait; `check` then says what comes of it.

    Args:
        args: `on_bad_teacher_answer` is "stop" or "skip".
        name: what to call the image of an epoch's slot.
        is_shared: whether all processes look at the same views, which then count once.
    """

    def __init__(
        self, args: DistillationTrainingArguments, name: Callable[[int, int], str], *, is_shared: bool = False
    ) -> None:
        self._args, self._name = args, name
        self._takes_notes = not is_shared or PartialState().is_main_process
        self.restart()

    def restart(self) -> None:
        """Begins another run."""
        self._noted: list[dict[str, torch.Tensor]] = []
        self._found = _Found(0, 0, [])
        self._is_told = False

    def note(
        self, answered: torch.Tensor, batch: Mapping[str, torch.Tensor], asked: torch.Tensor | None = None
    ) -> None:
        """Takes a batch in.

        Args:
            answered: (B,) bool, from `has_answer`.
            batch: with `slots` (B,), by which its images are named, and, if views are mixed, `partner_offsets` and
                `label_weights` (B,).
            asked: (B,) bool, the views that it is asked about; all by default.
        """
        if not self._takes_notes:
            return
        all_of_them = torch.ones_like(answered)
        columns = {"answered": answered, "asked": all_of_them if asked is None else asked}
        for name, absent in (("slots", -1), ("partner_offsets", 0), ("label_weights", 1)):
            columns[name] = batch.get(name, all_of_them.long() * absent)
        self._noted.append(columns)
        if len(self._noted) >= _SETTLE_AFTER:
            self._settle()

    def _settle(self) -> None:
        """Looks at what was noted, in this process."""
        if not self._noted:
            return
        # A view's partner lies in its batch, so that they can be joined.
        columns = {name: torch.cat([batch[name] for batch in self._noted]).cpu() for name in self._noted[0]}
        self._noted = []
        bad = (columns["asked"] & ~columns["answered"]).nonzero().flatten().tolist()
        names = dict.fromkeys(self._found.names)
        for position in bad:
            if len(names) > _NAMED or self._is_told:
                break
            if columns["slots"][position] >= 0:
                names[self._name_at(columns, position)] = None
        views = self._found.views + int(columns["asked"].sum())
        self._found = _Found(views, self._found.unanswered + len(bad), list(names))

    def _name_at(self, columns: Mapping[str, torch.Tensor], position: int) -> str:
        def name(place: int) -> str:
            epoch, slot = divmod(int(columns["slots"][place]), 1 << 32)
            try:
                return self._name(epoch, slot)
            except Exception:  # what there is to say must not be lost for want of a name, nor other processes wait
                return f"slot {slot} of epoch {epoch}"

        partner = position + int(columns["partner_offsets"][position])
        is_mixed = partner != position and float(columns["label_weights"][position]) < 1
        names = dict.fromkeys([name(position), name(partner)] if is_mixed else [name(position)])
        return " mixed with ".join(names)

    def check(
        self,
        teacher: AnyTeacher | None,
        *,
        of: str = "view",
        way_back: Callable[[], str] | None = None,
        needs_some: bool = False,
    ) -> int:
        """Lets all processes know what each has found since the last call; all must call it.

        Args:
            teacher: that was asked, or None if its answers were kept.
            of: what it was asked about, "view" where its term learns from the answers.
            way_back: says how to go on with a run that is stopped.
            needs_some: whether a teacher without any answer is refused, whatever may be left out.

        Returns:
            How many views have no answer, over all processes, if these are left out.

        Raises:
            InputError: some have none and must have one. The message names the images and the remedy.
        """
        self._settle()
        mine, self._found = self._found, _Found(0, 0, [])
        if mine.unanswered and isinstance(teacher, TeacherEnsemble):
            mine = mine._replace(silent=tuple(teacher.without_answer()))
        found = gather_object([mine]) if PartialState().num_processes > 1 else [mine]
        views, unanswered = (sum(part[field] for part in found) for field in (0, 1))
        if not unanswered or teacher is None:
            return unanswered
        names = dict.fromkeys(name for part in found for name in part.names)
        where = f": {shortlist(names, _NAMED)}" if names else ""
        silent = dict.fromkeys(name for part in found for name in part.silent) or [teacher.name_or_path]
        told = (
            f"the teacher {' and '.join(map(repr, silent))} gives answers that are not finite to {unanswered:,} of "
            f"{counted(views, of)}{where}"
        )
        if self._args.on_bad_teacher_answer == "stop" or (needs_some and unanswered == views):
            raise InputError(f"{told}. {self._remedy(teacher, way_back, can_skip=unanswered < views)}")
        if not self._is_told and PartialState().is_main_process:
            consequence = "its term passes over them" if of == "view" else "they count as wrong"
            logger.warning("%s: %s (--on_bad_teacher_answer skip)", told, consequence)
        self._is_told = True
        return unanswered

    def _remedy(self, teacher: AnyTeacher, way_back: Callable[[], str] | None, *, can_skip: bool) -> str:
        kept = self._args.teacher_labels
        again = "" if kept is None else f", with other --teacher_labels, as those in {kept!r} are of this one"
        skip = ", or pass --on_bad_teacher_answer skip, which leaves such views out of its term" if can_skip else ""
        way = "" if way_back is None else f" ({way_back()})"
        return f"Begin anew with {remedy_for(teacher.dtype)}{again}{skip}{way}"
