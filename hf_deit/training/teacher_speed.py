"""How a teacher runs fastest on this device: found out by trying, once, on a run's own views."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..data.view_dataset import KeyedViews, collate
from ..errors import counted, first_line, rate
from ..models.answers import decisions_of
from ..models.ensemble import TeacherEnsemble
from ..models.execution import PLAIN, Execution
from ..models.single_teacher import Teacher
from ..models.teacher import AnyDescription, AnyTeacher, members_of
from .arguments import DistillationTrainingArguments
from .datasets import first_samples
from .processes import on_every_process, on_main_process

logger = logging.get_logger(__name__)

# A run whose teacher has less to do goes on as it was loaded: nothing would be won, and its bits stay what they were.
LEAST_FLOPS = {"cpu": 1e14, "cuda": 1e16}
_LEAST_GAIN = 1.03
_ROUNDS = 3
_TIMED_ON_CPU = 16  # views at most; of more the ratios are the same there
_WORTH_COMPILING = 600.0  # seconds of a teacher's work that are left
_CHECKED_VIEWS = 64, 1024  # at least and at most; between them a hundredth of those that it is asked about
_DIFFERING = 1e-3  # of the labels

Prepare = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Choice:
    """How a teacher shall run.

    Attributes:
        execution: see there.
        words: what was found, in one line; empty where nothing was tried.
    """

    execution: Execution = PLAIN
    words: str = ""


def decide(
    teacher: AnyTeacher, views: KeyedViews, args: DistillationTrainingArguments, prepare: Prepare, *, num_views: int
) -> str:
    """Lets a teacher that is undecided run as is fastest here; all processes must call it.

    The main process finds out, so that all run it alike. Nothing is drawn at random.

    Args:
        views: of the run.
        prepare: makes what the teacher sees of a loader's batch.
        num_views: that this process will ask it about.

    Returns:
        What was found, in words; empty if nothing was tried.
    """

    def choose() -> list[Choice]:
        batches = _Replayed(batch["pixel_values"] for batch in first_batches(views, args, prepare))
        return [
            choose_execution(member, batches, num_views=num_views, bf16=args.bf16, is_quiet=args.disable_tqdm)
            if member.description.is_undecided
            else Choice(member.description.execution)
            for member in members_of(teacher)
        ]

    choices = on_main_process(choose)
    on_every_process(lambda: run_as(teacher, [choice.execution for choice in choices]))
    return _together(teacher, [choice.words for choice in choices])


def take_from(teacher: AnyTeacher, known: Mapping[str, Any]) -> str:
    """Lets a teacher that is undecided run as before; see `TeacherDescription.decided_by`.

    Returns:
        How that is, in words; empty if it is as it was loaded.
    """
    decided = teacher.description.decided_by(known)
    executions = [one.execution for one in getattr(decided, "members", (decided,))]
    run_as(teacher, executions)
    return _together(teacher, [f"{one}, as before" if one else "" for one in executions])


def _together(teacher: AnyTeacher, words: list[str]) -> str:
    if not isinstance(teacher, TeacherEnsemble):
        return words[0]
    return "; ".join(
        f"{name} {said}" for name, said in zip(teacher.description.short_names, words, strict=True) if said
    )


def as_kept(
    teacher: AnyTeacher | AnyDescription | None,
    there: Mapping[str, Any] | None,
    decide: Callable[[AnyTeacher], None],
    device: torch.device,
) -> AnyTeacher | AnyDescription | None:
    """A teacher whose labels are kept, decided, so that its identity is that of its answers.

    One that is undecided runs as that of the labels did. Of a new store it is loaded and decided now.

    Args:
        there: the teacher of the store's identity, or None of a new one.
        decide: a teacher that is loaded.
        device: to load it to.
    """
    if isinstance(teacher, AnyDescription) and teacher.is_undecided:
        teacher = teacher.load(device) if there is None else teacher.decided_by(there)
    if isinstance(teacher, AnyTeacher) and teacher.description.is_undecided:
        if there is None:
            decide(teacher)
        else:
            take_from(teacher, there)
    return teacher


def run_as(teacher: AnyTeacher, executions: list[Execution]) -> None:
    """Lets one teacher, or each of several, run as is said; those that do so already stay."""
    if isinstance(teacher, TeacherEnsemble):
        teacher.run_as(executions)
    else:
        teacher.run_as(*executions)


def first_batches(
    views: KeyedViews, args: DistillationTrainingArguments, prepare: Prepare
) -> Iterator[dict[str, torch.Tensor]]:
    """The first batches of a run, as it sees them, in the process that asks."""
    return (prepare(collate(samples)) for _, samples in first_samples(views, args))


def choose_execution(
    teacher: Teacher,
    batches: Iterable[torch.Tensor],
    *,
    num_views: int,
    bf16: bool = False,
    is_quiet: bool = True,
) -> Choice:
    """Finds out how a teacher runs fastest; it stays as it is.

    Tried are BatchNorm folded into the weights before it, both layouts of memory, bfloat16 on a GPU that has it, and,
    where so much work is left that it may pay, `torch.compile`. What is chosen is at least 3 % faster than the teacher
    as it was loaded, and of at most a thousandth of the views it says another class; else that one stays.

    Args:
        batches: pixels of the run, (B, 3, H, W) normalised with the student's statistics, on the teacher's device. The
            first is timed; all are asked about until there are a hundredth of `num_views`, from 64 to 1,024.
        num_views: that it will be asked about.
        bf16: whether it may compute in bfloat16.
        is_quiet: whether no progress is shown.
    """
    start = time.perf_counter()
    if not _is_worth_it(teacher, num_views):
        return Choice()
    if (batch := next(iter(batches), None)) is None:
        return Choice()
    try:
        with logging.tqdm(
            desc="finding the fastest way to run the teacher", unit=" batches", delay=2, disable=is_quiet
        ) as bar:
            trials = _Trials(teacher, batch, num_views, bar.update)
            trials.try_layouts(bf16=bf16 and batch.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False))
            trials.try_compiling()
            chosen, checked = trials.check(batches)
    except torch.OutOfMemoryError:
        return Choice(words="as it was loaded: there is no memory to try more")
    return Choice(chosen, f"{trials.words(chosen)}{checked}; found out in {time.perf_counter() - start:.0f} s")


def _is_worth_it(teacher: Teacher, num_views: int) -> bool:
    return teacher.flops() * num_views >= LEAST_FLOPS.get(teacher.scale.device.type, LEAST_FLOPS["cuda"])


class _Trials:
    """A teacher in several ways of running, timed on one batch."""

    def __init__(
        self, teacher: Teacher, batch: torch.Tensor, num_views: int, after_batch: Callable[[], object]
    ) -> None:
        self._teacher, self._batch, self._num_views = teacher, batch, num_views
        self._timed = batch if batch.is_cuda else batch[:_TIMED_ON_CPU]
        self._after_batch = after_batch
        self._arms = {PLAIN: teacher}
        self._seconds = {PLAIN: 0.0}
        self._cost, self._unpaid = 0.0, ""
        self._said: list[torch.Tensor] = []  # by the teacher as it was loaded, of each batch

    def try_layouts(self, *, bf16: bool) -> None:
        """Times the teacher as it was loaded, folded, in channels_last and in bfloat16, in turn."""
        folded = copy.deepcopy(self._teacher)
        found = [PLAIN, Execution(folded=folded.fold())]
        if any(isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 for module in _inner_convs(folded)):
            found += [replace(execution, channels_last=True) for execution in found]
        if bf16 and self._teacher.dtype == torch.float32:
            found += [replace(execution, dtype="bfloat16") for execution in found]
        del folded  # each arm has its own
        for execution in dict.fromkeys(found):
            if execution and (execution.folded or not found[1]):  # folded it is never slower
                self._try(execution, self._arms, self._timed)
        seconds = _time_in_turn(self._arms, self._timed, self._after_batch)
        self._seconds = {one: value / len(self._timed) * len(self._batch) for one, value in seconds.items()}

    def try_compiling(self) -> None:
        """Lets the fastest way, on a GPU in both layouts, be compiled, where what is left to do may pay for it."""
        best = self._fastest()
        if self._seconds[best] / len(self._batch) * self._num_views < _WORTH_COMPILING:
            return
        layouts = [best, replace(best, channels_last=not best.channels_last)] if self._batch.is_cuda else [best]
        compiled: dict[Execution, Teacher] = {}
        for execution in (one for one in layouts if one in self._arms):
            start = time.perf_counter()
            self._try(replace(execution, compiled=len(self._batch)), compiled, self._batch)
            self._cost += time.perf_counter() - start
        if not compiled:
            return
        seconds = _time_in_turn({best: self._arms[best], **compiled}, self._batch, self._after_batch)
        fastest = min(compiled, key=seconds.__getitem__)
        saved = (seconds[best] - seconds[fastest]) / len(self._batch) * self._num_views
        if saved > self._cost and seconds[best] > _LEAST_GAIN * seconds[fastest]:
            self._arms |= compiled
            self._seconds[fastest] = seconds[fastest] / seconds[best] * self._seconds[best]
        else:
            gain = seconds[best] / seconds[fastest]
            self._unpaid = f"; compiling, in {self._cost:.0f} s, would not pay: {gain:.2f} x beside that"

    def check(self, batches: Iterable[torch.Tensor]) -> tuple[Execution, str]:
        """The fastest way whose labels are those of the teacher as it was loaded, and how many were compared."""
        least, most = _CHECKED_VIEWS
        wanted, refused = min(max(self._num_views // 100, least), most), ""
        for chosen in sorted(self._seconds, key=self._seconds.__getitem__):
            if not chosen or self._seconds[PLAIN] < _LEAST_GAIN * self._seconds[chosen]:
                break
            views, differing = self._compare(chosen, batches, wanted)
            found = f"{differing:,} of {counted(views, 'view')} labelled differently"
            if differing <= _DIFFERING * views:
                return chosen, f"{refused}; {found}"
            refused += f"; {chosen}: {found}"
        if refused:
            name, why = self._teacher.name_or_path, refused.removeprefix("; ")
            logger.warning("the teacher %s runs as it was loaded: %s", name, why)
        return PLAIN, refused

    def words(self, chosen: Execution) -> str:
        """What was measured, in words."""
        speed = {execution: len(self._batch) / seconds for execution, seconds in self._seconds.items()}
        others = [f"{one} {speed[one] / speed[PLAIN]:.2f} x" for one in speed if one and one != chosen]
        tried = (f"; tried: {'; '.join(others)}" if others else "") + self._unpaid
        if not chosen:
            return f"as it was loaded, {rate(speed[PLAIN])} views/s{tried}"
        cost = f", compiled in {self._cost:.0f} s" if chosen.compiled else ""
        return (
            f"{speed[chosen] / speed[PLAIN]:.2f} x as fast, {chosen}: {rate(speed[chosen])} instead of "
            f"{rate(speed[PLAIN])} views/s{cost}{tried}"
        )

    def _try(self, execution: Execution, arms: dict[Execution, Teacher], batch: torch.Tensor) -> None:
        """Adds a way to run the teacher to others, if it can run so."""
        try:
            arm = copy.deepcopy(self._teacher)
            arm.run_as(execution)
            arm(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of any kind: a model may want a layout, a device an engine, torch a compiler
            logger.info("the teacher %s does not run %s: %s", self._teacher.name_or_path, execution, first_line(error))
        else:
            arms[execution] = arm

    def _fastest(self) -> Execution:
        """Not as it was loaded, if there is another way: that one has more to do, if only by little."""
        return min(filter(None, self._seconds), key=self._seconds.__getitem__, default=PLAIN)

    def _compare(self, chosen: Execution, batches: Iterable[torch.Tensor], wanted: int) -> tuple[int, int]:
        """Of how many views the labels were compared, and of how many they differ."""
        views, differing = 0, 0
        for number, batch in enumerate(batches):
            if number == len(self._said):
                self._said.append(decisions_of(self._teacher(batch)))
            fast = decisions_of(self._arms[chosen](batch))
            views, differing = views + len(batch), differing + int((self._said[number] != fast).sum())
            self._after_batch()
            if views >= wanted:
                break
        return views, differing


class _Replayed(Iterable):
    """What an iterator gives, as often as it is asked for; computed once."""

    def __init__(self, items: Iterator[torch.Tensor]) -> None:
        self._items, self._kept = items, []

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self._kept
        for item in self._items:
            self._kept.append(item)
            yield item


def _inner_convs(model: nn.Module) -> Iterator[nn.Conv2d]:
    """Convolutions whose patches overlap: to others, as those of a vision transformer, layout is no matter."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != module.stride:
            yield module


def _time_in_turn(
    arms: Mapping[Execution, Teacher], batch: torch.Tensor, after_batch: Callable[[], object]
) -> dict[Execution, float]:
    """Median seconds of each arm for a batch, after a round that does not count."""
    seconds: dict[Execution, list[float]] = {execution: [] for execution in arms}
    for number in range(_ROUNDS + 1):
        for execution, arm in arms.items():
            start = time.perf_counter()
            arm(batch)
            if batch.device.type != "cpu":
                torch.accelerator.synchronize(batch.device)
            if number:
                seconds[execution].append(time.perf_counter() - start)
            after_batch()
    return {execution: statistics.median(values) for execution, values in seconds.items()}
