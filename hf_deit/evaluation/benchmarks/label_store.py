"""Benchmarks that compare like with like: one process, arms in turn, ratios within each round."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import datasets
import numpy as np
import torch

from ...data.columns import IGNORED_LABEL
from ...hub.environment import describe_environment
from ...labels.identity import StoreIdentity
from ...labels.store import TeacherLabelStore
from ...models.image_processing_deit import DistilledDeiTImageProcessor
from ...models.teacher import Teacher
from ...models.zoo import create_model
from ...training.arguments import DistillationTrainingArguments
from ...training.trainer import DistillationTrainer
from .figures import Bar, Chart, markdown_table, short_time
from .stand_ins import NUM_LABELS, photographs, random_teacher
from .timing import Ratio, time_in_turn, wait_for_device
from .trainer_step import TrainerStep

_AGREEMENT = 0.75  # how often a teacher says the true label: what RegNetY-16GF does on ImageNet's augmented views
_IMAGENET_VIEWS = 1_281_152  # whole groups of 64 in ImageNet-1k


# Label stores


@dataclass
class StorageFigures:
    """What a store of one epoch costs, with realistic labels.

    Attributes:
        views: of the epoch.
        bytes_per_view: on disk.
        lookup: seconds to look a batch of 256 up, on the device.
        write: seconds to write an epoch.
        read: seconds to read an epoch.
    """

    views: int
    bytes_per_view: float
    lookup: float
    write: float
    read: float


@dataclass
class StepFigures:
    """Seconds of a training step, by round: "student alone", "live", "recording" and "replaying"."""

    teacher: str
    pixels: str
    seconds: dict[str, list[float]]

    def ratio(self, arm: str, other: str) -> Ratio:
        return Ratio.of(self.seconds[arm], self.seconds[other])


_ARMS = ("student alone", "live", "recording", "replaying")


@dataclass
class LabelStoreReport:
    """What keeping a teacher's labels costs and saves; printed as a table."""

    student: str
    batch_size: int
    steps: list[StepFigures]
    storage: StorageFigures
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON; times are in seconds."""
        ratios = [
            {f"{arm} / live": asdict(figures.ratio(arm, "live")) for arm in _ARMS if arm != "live"}
            for figures in self.steps
        ]
        steps = [{**asdict(figures), "ratios": each} for figures, each in zip(self.steps, ratios, strict=True)]
        return {**asdict(self), "steps": steps}

    def charts(self) -> list[Chart]:
        """A chart of each teacher, with fixed pixels and from images."""
        return [
            Chart(
                f"teacher {figures.teacher}, pixels {figures.pixels}",
                "s",
                [
                    Bar.of_times(
                        arm,
                        figures.seconds[arm],
                        "" if arm == "live" else f"{figures.ratio(arm, 'live').brief} times live",
                        is_ours=arm == "replaying",
                    )
                    for arm in _ARMS
                ],
            )
            for figures in self.steps
        ]

    @property
    def title(self) -> str:
        return f"A step of {self.student} with {self.batch_size} views, medians, on {self.environment['device']}"

    def __str__(self) -> str:
        head = ("teacher", "pixels", *_ARMS, "replaying / student alone", "recording / live", "live / replaying")
        rows = [
            (
                figures.teacher,
                figures.pixels,
                *(short_time(statistics.median(figures.seconds[arm])) for arm in _ARMS),
                str(figures.ratio("replaying", "student alone")),
                str(figures.ratio("recording", "live")),
                str(figures.ratio("live", "replaying")),
            )
            for figures in self.steps
        ]
        storage = self.storage
        return (
            f"{self.title}:\n\n{markdown_table(head, rows, words=2)}\n\n"
            f"An epoch of {storage.views:,} views, {NUM_LABELS:,} classes, of which the teacher says "
            f"{_AGREEMENT:.0%} as they are labelled: {storage.bytes_per_view:.3f} bytes a view on disk, "
            f"{storage.lookup * 1000:.3f} ms to look 256 up, {storage.write:.2f} s to write, {storage.read:.2f} s to "
            "read."
        )


def realistic_labels(views: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A teacher's labels of views, and the true ones: (views,) int64 each."""
    generator = np.random.default_rng(seed)
    true_labels = generator.integers(0, NUM_LABELS, views)
    agrees = generator.random(views) < _AGREEMENT
    return np.where(agrees, true_labels, generator.integers(0, NUM_LABELS, views)), true_labels


def measure_storage(views: int = _IMAGENET_VIEWS, *, lookups: int = 200) -> StorageFigures:
    """Writes, reads and looks up an epoch of labels."""
    identity = StoreIdentity(
        teacher={"name": "a teacher", "revision": "0" * 40},
        data={"name": "images", "rows": views},
        augmentation={},
        versions={},
        seed=0,
        group_size=64,
        repeated_augmentation=3,
        views_per_epoch=views,
        num_labels=NUM_LABELS,
    )
    labels, true_labels = realistic_labels(views)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    generator = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        with TeacherLabelStore.open(folder, identity) as store:
            crcs = generator.integers(0, 1 << 32, views)
            start = time.perf_counter()
            store.record(0, np.arange(views), labels, true_labels, crcs=crcs)
            store.flush()
            store.finish_epoch(0)
            write = time.perf_counter() - start
        size = os.path.getsize(os.path.join(folder, "data", "epoch-00000.parquet"))
        start = time.perf_counter()
        known = TeacherLabelStore.open(folder, readonly=True).epoch(0).to(device)
        read = time.perf_counter() - start
        seconds, all_true = [], torch.from_numpy(true_labels).to(device)
        for _ in range(lookups):
            slots = torch.from_numpy(generator.integers(0, views, 256)).to(device)
            true = all_true[slots]
            wait_for_device()
            start = time.perf_counter()
            known.labels(slots, true)
            wait_for_device()
            seconds.append(time.perf_counter() - start)
    return StorageFigures(views, size / views, statistics.median(seconds), write, read)


class _Arm:
    """One way to train a student, a step at a time as the Trainer does it."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer
        self._step = TrainerStep(trainer)
        self._batches = iter(trainer.get_train_dataloader())
        if trainer.kept_labels is not None:
            trainer.kept_labels.start_epoch(0)
        self.batch = next(self._batches)

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        self._step(self.trainer.prepare_batch(batch))

    def on_a_fixed_batch(self, steps: int) -> None:
        for _ in range(steps):
            self.step(self.batch)

    def end_to_end(self, steps: int) -> None:
        for _ in range(steps):
            self.step(next(self._batches))


@contextmanager
def _arms(
    student: str, teacher: Teacher, data: datasets.Dataset, image_size: int, options: dict[str, object]
) -> Iterator[dict[str, _Arm]]:
    processor = DistilledDeiTImageProcessor(crop_size=image_size)
    id2label = dict(enumerate(data.features["label"].names))
    with tempfile.TemporaryDirectory() as folder:

        def arm(taught_by: Teacher | None, **settings: object) -> _Arm:
            args = DistillationTrainingArguments(output_dir=os.path.join(folder, "run"), **options, **settings)
            torch.manual_seed(0)
            model = create_model(student, id2label=id2label, image_size=image_size, drop_path_rate=0.1)
            return _Arm(
                DistillationTrainer(model, args, teacher=taught_by, processing_class=processor, train_dataset=data)
            )

        recording = arm(teacher, teacher_labels=os.path.join(folder, "recorded"))
        kept = os.path.join(folder, "kept")
        _fill(kept, recording.trainer.kept_labels.store.identity)
        arms = {
            "student alone": arm(None, distillation_type="none"),
            "live": arm(teacher),
            "recording": recording,
            "replaying": arm(None, teacher_labels=kept),
        }
        try:
            yield arms
        finally:
            recording.trainer.kept_labels.flush()  # what was recorded can be written
            for each in arms.values():
                if each.trainer.kept_labels is not None:
                    each.trainer.kept_labels.close()


def _fill(folder: str, identity: StoreIdentity) -> None:
    """A store of one epoch, without the time that a teacher would take."""
    views = identity.views_per_epoch
    labels, true_labels = realistic_labels(views)
    with TeacherLabelStore.open(folder, identity) as store:
        store.record(0, np.arange(views), labels, np.full_like(true_labels, IGNORED_LABEL))
        store.flush()
        store.finish_epoch(0)


def measure_label_store(
    *,
    student: str = "deit_tiny_distilled_patch16_224",
    teachers: Sequence[str] = ("regnety_160", "regnety_040"),
    image_size: int = 224,
    batch_size: int = 16,
    num_workers: int = 1,
    rounds: int = 9,
    steps: int = 1,
    bf16: bool = False,
    storage_views: int = _IMAGENET_VIEWS,
) -> LabelStoreReport:
    """Compares the training step with a live teacher, recording its labels, replaying them, and without a teacher.

    Augmentation, mixing, batch, loader, optimizer and precision are the same in all arms: a training's defaults.
    "Fixed" pixels are one batch on the device, again and again; "end to end" decodes and augments JPEG images.

    Args:
        student: name of the zoo.
        teachers: timm's names; their weights are random.
        image_size: in pixels.
        batch_size: views of a step.
        num_workers: of each arm's loader.
        rounds: that are counted.
        steps: of an arm in a round.
        bf16: of student and teacher.
        storage_views: views of the epoch whose storage is measured.
    """
    num_steps = 2 + (rounds + 1) * steps  # one epoch, of which no view comes twice
    options = {
        "repeats_placement": "spread",
        "per_device_train_batch_size": batch_size,
        "dataloader_num_workers": num_workers,
        "max_steps": num_steps,
        "bf16": bf16,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    data = photographs(num_steps * batch_size)
    measured = []
    for name in teachers:
        teacher = random_teacher(name, image_size, torch.bfloat16 if bf16 else torch.float32)
        with _arms(student, teacher, data, image_size, options) as arms:
            for pixels, run in (("fixed", _Arm.on_a_fixed_batch), ("end to end", _Arm.end_to_end)):
                calls = {label: lambda arm=arm, run=run: run(arm, steps) for label, arm in arms.items()}
                seconds = time_in_turn(calls, rounds=rounds)
                per_step = {label: [value / steps for value in values] for label, values in seconds.items()}
                measured.append(StepFigures(name, pixels, per_step))
    return LabelStoreReport(
        student=student,
        batch_size=batch_size,
        steps=measured,
        storage=measure_storage(storage_views),
        environment=describe_environment(),
    )
