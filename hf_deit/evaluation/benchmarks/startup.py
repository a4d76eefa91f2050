"""How long it takes from a command to the first training step, by stages, against what a user would write instead."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import datasets
import numpy as np
from transformers.utils import logging

from ...errors import InputError, not_one_of
from ...hub.environment import describe_environment
from .figures import Bar, Chart, markdown_table, short_time
from .stand_ins import photographs
from .startup_arms import ARMS, MEMORY, STAGES, Start, command_line
from .timing import Ratio

LAYOUTS = ("folders", "parquet")
RUNS = ("first", "again")  # with an empty cache of datasets, and with what the first has left there
_CLASSES, _FILES = 10, 100  # and of the images, those that all others are links to
_FEWEST = 100  # of which one of each class is held out to validate with
_SCRIPT = "from hf_deit.evaluation.benchmarks.startup_arms import main; main()"


@dataclass(frozen=True)
class StartFigures:
    """One arm with images of one number and layout.

    Attributes:
        arm: "hf_deit", "transformers" or "timm".
        layout, images: how the images lie, and how many.
        run: "first", or "again", when what was kept of the first can be used.
        stages: seconds that each took, by round, see `STAGES`.
        memory: the most bytes that its process held, by round; without its workers.
    """

    arm: str
    layout: str
    images: int
    run: str
    stages: dict[str, list[float]]
    memory: list[int]

    @property
    def seconds(self) -> list[float]:
        """In all, by round."""
        return [sum(each) for each in zip(*self.stages.values(), strict=True)]

    def is_beside(self, other: "StartFigures") -> bool:
        """Whether both are of the same images and run."""
        return (self.layout, self.images, self.run) == (other.layout, other.images, other.run)


@dataclass(frozen=True)
class StartupReport:
    """What is waited for before a training trains; printed as a table."""

    figures: list[StartFigures]
    environment: dict[str, Any]

    def ratio(self, one: StartFigures) -> Ratio:
        """An arm's time by that of ours."""
        ours = next(each for each in self.figures if each.arm == "hf_deit" and each.is_beside(one))
        return Ratio.of(one.seconds, ours.seconds)

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON; times are in seconds."""
        figures = [
            {**asdict(each), "seconds": each.seconds, "ratio_to_ours": asdict(self.ratio(each))}
            for each in self.figures
        ]
        return {**asdict(self), "figures": figures}

    def charts(self) -> list[Chart]:
        """A chart of each number and layout of images, and of each run."""
        charts = []
        for first in self.figures:
            if first.arm == "hf_deit":
                beside = [each for each in self.figures if each.is_beside(first)]
                bars = [
                    Bar.of_times(
                        each.arm,
                        each.seconds,
                        "" if each is first else f"{self.ratio(each).brief} times ours",
                        is_ours=each is first,
                    )
                    for each in beside
                ]
                charts.append(Chart(f"{first.images:,} images, {first.layout}, {first.run}", "s", bars))
        return charts

    @property
    def title(self) -> str:
        return f"From the command to the first training step, medians, on {self.environment['device']}"

    def __str__(self) -> str:
        rows = [
            (
                each.arm,
                each.layout,
                each.run,
                f"{each.images:,}",
                *(short_time(statistics.median(each.stages[stage])) for stage in STAGES),
                short_time(statistics.median(each.seconds)),
                self.ratio(each).brief,
                f"{statistics.median(each.memory) / 1e6:.0f}" if each.memory else "-",
            )
            for each in self.figures
        ]
        head = ("arm", "layout", "run", "images", *STAGES, "in all", "time / ours", "MB")
        return f"{self.title}:\n\n{markdown_table(head, rows, words=3)}"


def measure_startup(
    *,
    images: Sequence[int] = (1000, 10_000),
    layouts: Sequence[str] = ("folders",),
    arms: Sequence[str] = (),
    image_size: int = 224,
    batch_size: int = 16,
    num_workers: int = 2,
    rounds: int = 3,
) -> StartupReport:
    """Begins trainings in fresh processes, in turn, and ends them after their first step; one round does not count.

    Args:
        images: numbers of them. Folders hold links to a hundred files; parquet holds each, about 60 kB.
        layouts: of `LAYOUTS`.
        arms: beside this package's; all by default.
        image_size: in pixels.
        batch_size: views of a step.
        num_workers: of each loader.
        rounds: that are counted.

    Raises:
        InputError: an arm or a layout that there is not, or a process has failed; the message has its last line.
    """
    for name, given, known in (("arms", arms, list(ARMS)), ("layouts", layouts, LAYOUTS)):
        for each in given:
            if each not in known:
                raise InputError(not_one_of(name, each, known))
    if min(images) < _FEWEST:
        raise InputError(f"images must be at least {_FEWEST}, got {min(images)}")
    chosen = [arm for arm in ARMS if not arms or arm in arms or arm == "hf_deit"]
    with tempfile.TemporaryDirectory() as folder:
        figures = []
        for layout in layouts:
            for count in images:
                made = _make_images(os.path.join(folder, f"{layout} {count}"), layout, count)
                start = Start("", layout, made, "", image_size, batch_size, num_workers, 0.0)
                figures += _measure(start, count, chosen, rounds, folder)
    return StartupReport(figures, describe_environment())


def _make_images(folder: str, layout: str, count: int) -> str:
    """Gives the folder that a training takes."""
    names = [f"class {index}" for index in range(_CLASSES)]
    different = min(count, _FILES)
    data = photographs(count if layout == "parquet" else different, different=different).select_columns("image")
    if layout == "parquet":
        os.makedirs(folder)
        data = data.add_column("label", np.arange(count) % _CLASSES, feature=datasets.ClassLabel(names=names))
        data.to_parquet(os.path.join(folder, "train.parquet"))
        return folder
    files, images = os.path.join(folder, "files"), os.path.join(folder, "images")
    for made in (files, *(os.path.join(images, name) for name in names)):
        os.makedirs(made)
    for index, row in enumerate(data.cast_column("image", datasets.Image(decode=False))):
        with open(os.path.join(files, f"{index}.jpg"), "wb") as file:
            file.write(row["image"]["bytes"])
    for index in range(count):
        link = os.path.join(images, names[index % _CLASSES], f"{index:07d}.jpg")
        os.symlink(os.path.join(files, f"{index % different}.jpg"), link)
    return images


def _measure(start: Start, images: int, arms: Sequence[str], rounds: int, folder: str) -> list[StartFigures]:
    found = {
        (arm, run): StartFigures(arm, start.layout, images, run, {stage: [] for stage in STAGES}, [])
        for run in RUNS
        for arm in arms
    }
    bar = logging.tqdm(range(rounds + 1), desc=f"{images:,} images, {start.layout}")
    for number in bar:
        for arm in arms if number % 2 else reversed(arms):
            cache = os.path.join(folder, "cache")
            for run in RUNS:
                bar.set_postfix_str(f"{arm}, {run}")
                stages, memory = _begin(replace(start, arm=arm), folder, cache)
                if number:
                    figures = found[arm, run]
                    for stage, seconds in stages.items():
                        figures.stages[stage].append(seconds)
                    figures.memory.extend([] if memory is None else [memory])
            shutil.rmtree(cache, ignore_errors=True)
    return list(found.values())


def _begin(start: Start, folder: str, cache: str) -> tuple[dict[str, float], int | None]:
    """Seconds of each stage of a process, and the most bytes that it held, where the system tells."""
    environment = {**os.environ, "HF_DATASETS_CACHE": cache}
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as output:
        log = os.path.join(output, "log")
        start = replace(start, output=output, began=time.time())
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT, command_line(start)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        _wait(process)
        if not os.path.exists(start.marks):
            with open(log, encoding="utf-8", errors="replace") as file:
                lines = [line.strip() for line in file if line.strip()]
            raise InputError(f"{start.arm} came to no training step: {lines[-1] if lines else 'it said nothing'}")
        with open(start.marks) as file:
            marks = json.load(file)
    ends = [0.0, *(marks[stage] for stage in STAGES)]
    return {stage: ends[place + 1] - ends[place] for place, stage in enumerate(STAGES)}, marks[MEMORY]


def _wait(process: subprocess.Popen) -> None:
    """Until a process has ended, and its workers with it."""
    try:
        process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
