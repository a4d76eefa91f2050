"""A training step against what other libraries make of it: the same weights, pixels, targets and teacher, in turn."""

import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers.utils import logging

from ...errors import InputError, not_one_of, rate
from ...evaluation.benchmarks.figures import Bar, Chart, markdown_table, short_time
from ...evaluation.benchmarks.options import check_arms, check_distilled
from ...evaluation.benchmarks.timing import Ratio, time_in_turn
from ...evaluation.speed.throughput import Peak, large_copy, square_products
from ...evaluation.speed.work import work_of
from ...hub.environment import describe_environment
from ..requirements import missing, require
from .processes import ArmError, Process
from .step_arms import ARMS, OURS, VIT_PYTORCH, Steps, StepSettings, check_same_loss
from .step_memory import begin_stepping

logger = logging.get_logger(__name__)

_LONGEST = 1.0  # seconds of a product of matrices
_KINDS = {"alone": "without a teacher", "live": "with the teacher"}


@dataclass(frozen=True)
class StepReport:
    """What a training step costs; printed as a table.

    Attributes:
        student, teacher: names of the zoo and of timm.
        batch_size: views of a step.
        compiled: whether this package's arms and the tuned ones were compiled.
        loss: of each arm, on the batch before its first step.
        seconds: of a step, by arm and round.
        flops: of a step, forward and backward, by arm.
        traffic: bytes that the operations of a step read and write, by arm; see `work_of`. What is compiled
            is counted as it is without that.
        memory: the most bytes that a step took, by arm, see `step_memory`; empty where that was not measured.
        peak: floating-point operations a second of a square product, in the step's precision.
        bandwidth: bytes a second of a copy, read and written.
        notes: sentences on what was not measured, or is not alike.
        environment: see `describe_environment`.
    """

    student: str
    teacher: str
    batch_size: int
    compiled: bool
    loss: dict[str, float]
    seconds: dict[str, list[float]]
    flops: dict[str, int]
    traffic: dict[str, int]
    memory: dict[str, int]
    peak: float
    bandwidth: float
    notes: list[str]
    environment: dict[str, Any]

    def ratio(self, arm: str) -> Ratio | None:
        """An arm's time by that of ours of its kind; None where ours was not measured."""
        ours = f"{arm.partition(':')[0]}:{OURS[0]}"
        return Ratio.of(self.seconds[arm], self.seconds[ours]) if ours in self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON; times are in seconds."""
        ratios = {arm: self.ratio(arm) for arm in self.seconds}
        return {**asdict(self), "ratio_to_ours": {arm: each and asdict(each) for arm, each in ratios.items()}}

    def charts(self) -> list[Chart]:
        """A chart of the steps without a teacher, and of those with it."""
        charts = []
        for kind, words in _KINDS.items():
            bars = []
            for arm, seconds in self.seconds.items():
                of, _, name = arm.partition(":")
                ratio = None if name == OURS[0] else self.ratio(arm)
                note = f"{ratio.brief} times ours" if ratio else ""
                bars += [Bar.of_times(name, seconds, note, is_ours=name in OURS)] if of == kind else []
            charts += [Chart(f"a step {words}", "s", bars)] if bars else []
        return charts

    @property
    def title(self) -> str:
        compiled = ", ours and the tuned ones compiled" if self.compiled else ""
        return (
            f"A step of {self.student} with {self.batch_size} views, teacher {self.teacher}{compiled}, medians, on "
            f"{self.environment['device']}, whose peak is {self.peak / 1e9:.0f} GFLOP/s and "
            f"{self.bandwidth / 1e9:.1f} GB/s"
        )

    def __str__(self) -> str:
        rows = []
        for arm, seconds in self.seconds.items():
            median = statistics.median(seconds)
            rows.append(
                (
                    arm,
                    short_time(median),
                    rate(self.batch_size / median),
                    str(self.ratio(arm) or "-"),
                    f"{self.flops[arm] / median / self.peak:.0%}",
                    f"{self.traffic[arm] / median / self.bandwidth:.0%}",
                    f"{self.memory[arm] / 1e6:.0f}" if arm in self.memory else "-",
                )
            )
        table = markdown_table(("arm", "time", "images/s", "time / ours", "of peak", "of bandwidth", "MB"), rows)
        return "\n\n".join([f"{self.title}:", table, *self.notes])


def check_losses(losses: dict[str, float], tolerance: float) -> None:
    """Refuses arms that do not do the same work.

    Args:
        losses: of each arm, "kind:name", on one batch; the first of each kind is what the others must agree with.
            Those of vit-pytorch, whose model has weights of its own, agree with each other.
        tolerance: of the relative difference.

    Raises:
        InputError: a loss differs; the message names the arm.
    """
    first: dict[str, str] = {}
    for arm, loss in losses.items():
        kind, _, name = arm.partition(":")
        reference = first.setdefault(VIT_PYTORCH if name.startswith(VIT_PYTORCH) else kind, arm)
        check_same_loss(arm, loss, reference, losses[reference], tolerance)


def measure_step(
    *,
    student: str = "deit_tiny_distilled_patch16_224",
    teacher: str = "regnety_040",
    image_size: int = 224,
    batch_size: int = 16,
    rounds: int = 9,
    steps: int = 1,
    arms: Sequence[str] = (),
    bf16: bool = False,
    compiled: bool = False,
    device: str | None = None,
    has_memory: bool = True,
) -> StepReport:
    """Compares the training step, from normalised and mixed pixels on the device to the changed weights.

    There is no stochastic depth, so that all arms have one loss, which is checked. This package's teacher runs as is
    fastest, which is tried first; see `choose_execution`. "Tuned" arms have a teacher with folded BatchNorm in
    channels_last, and a fused AdamW. vit-pytorch distils a model of its own, whose loss is checked
    against its formula.

    Args:
        student: a distilled DeiT of the zoo.
        teacher: timm's name; its weights are random.
        image_size: in pixels.
        batch_size: views of a step; even, as views are mixed in pairs.
        rounds: that are counted.
        steps: of an arm in a round.
        arms: some of `ARMS`; by default all for which there are packages.
        bf16: of the teacher, and by autocast of the student.
        compiled: whether tuned arms compile student and teacher; and this package's the student, and the teacher where
            that pays.
        device: "cpu" or "cuda"; by default the best there is.
        has_memory: whether to measure how much each step takes, in a process of its own.

    Raises:
        InputError: an arm is not known or its package not installed, there is no such device or no compiler, the
            student has no distillation token, or losses differ.
    """
    _check(student, arms, compiled, device)
    notes, chosen = _chosen(arms)
    with tempfile.TemporaryDirectory() as folder:
        settings = StepSettings(student, teacher, image_size, batch_size, bf16, compiled, device, folder)
        steps_of = Steps(settings)
        if f"live:{OURS[0]}" in chosen:
            settings = replace(settings, execution=steps_of.choice.execution)
            found = steps_of.choice.words or "as it was loaded, as it has little to do"
            notes.append(f"The teacher of live:{OURS[0]} runs {found}.")
        memory = _memory(chosen, settings) if has_memory else {}
        calls = {arm: steps_of.step(arm) for arm in chosen}
        losses, work = {}, {}
        for arm, call in calls.items():
            losses[arm], work[arm] = float(call()), work_of(call)
        check_losses(losses, steps_of.tolerance)
        several = {arm: lambda call=call: [call() for _ in range(steps)] for arm, call in calls.items()}
        products = dict(square_products(torch.bfloat16 if bf16 else torch.float32, steps_of.device, _LONGEST))
        copied, copy_once = large_copy(steps_of.device)
        seconds = time_in_turn(
            {**several, **{f"product {side}": run for side, run in products.items()}, "copy": copy_once}, rounds=rounds
        )
    if any(arm.partition(":")[2].startswith(VIT_PYTORCH) for arm in chosen):
        notes.append(f"{VIT_PYTORCH} distils a model of its own, of the same width, depth and heads.")
    return StepReport(
        student=student,
        teacher=teacher,
        batch_size=batch_size,
        compiled=compiled,
        loss=losses,
        seconds={arm: [value / steps for value in seconds[arm]] for arm in calls},
        flops={arm: flops for arm, (flops, _) in work.items()},
        traffic={arm: traffic for arm, (_, traffic) in work.items()},
        memory=memory,
        peak=Peak.of({side: seconds[f"product {side}"] for side in products}).flop_per_second,
        bandwidth=copied / min(seconds["copy"]),
        notes=notes,
        environment=describe_environment(device_type=device),
    )


def _check(student: str, arms: Sequence[str], compiled: bool, device: str | None) -> None:
    """See `measure_step`."""
    check_arms(arms, ARMS)
    if any(VIT_PYTORCH in arm for arm in arms):
        require("bench")
    check_distilled(student)
    if device not in (None, "cpu", "cuda"):
        raise InputError(not_one_of("device", device, ("cpu", "cuda")))
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, and torch finds no such device here: give cpu")
    compiler = os.environ.get("CXX", "g++")
    if compiled and not (shutil.which(compiler) or shutil.which("clang++")):
        raise InputError(
            f"--compile needs a C++ compiler, and there is none called {compiler} or clang++: install one, name it by "
            "the environment variable CXX, or leave --compile out"
        )


def _chosen(arms: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sentences on what is left out, and the arms."""
    if arms:
        return [], [arm for arm in ARMS if arm in arms]
    if lacks := missing("bench"):
        note = f"Not measured: {VIT_PYTORCH}, as {lacks}."
        logger.warning(note)
        return [note], [arm for arm in ARMS if VIT_PYTORCH not in arm]
    return [], list(ARMS)


def _memory(arms: Sequence[str], settings: StepSettings) -> dict[str, int]:
    """The most bytes of each arm's step, where that is known."""
    found = {}
    for arm in logging.tqdm(arms, desc="memory is measured"):
        log = os.path.join(settings.folder, "memory.log")
        try:
            process = Process(begin_stepping, settings, log=log)
            try:
                most = process.ask("memory", arm)
            finally:
                process.close()
        except ArmError as error:
            raise InputError(f"{arm} cannot make a step: {error}") from error
        if most is not None:
            found[arm] = most
    return found
