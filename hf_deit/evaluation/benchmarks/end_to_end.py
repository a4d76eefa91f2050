"""Training end to end, from JPEG images to changed weights: the Trainer, a bare loop of its step, and timm's."""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import datasets
import timm
import torch
from PIL import Image
from timm.data import FastCollateMixup, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import TokenDistillationTask
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback

from ...errors import InputError, counted, rate
from ...hub.environment import describe_environment
from ...models.image_processing_deit import DistilledDeiTImageProcessor
from ...models.teacher import Teacher
from ...models.zoo import create_model
from ...training.arguments import DistillationTrainingArguments
from ...training.callbacks import StepEndCallback, TeacherCheckCallback
from ...training.log_table import LogTableCallback
from ...training.trainer import DistillationTrainer
from .figures import Bar, Chart, markdown_table, short_time
from .options import check_arms, check_distilled
from .stand_ins import photographs, random_teacher
from .timing import Ratio, turns, wait_for_device
from .trainer_step import TrainerStep

ARMS = ("hf_deit", "hf_deit:bare", "timm")
NO_TEACHER = "none"


@dataclass(frozen=True)
class EndToEndReport:
    """What a step of a training costs, with everything that belongs to it; printed as a table.

    Attributes:
        student, teacher: names of the zoo and of timm; the teacher may be "none".
        batch_size: views of a step.
        num_workers: of each arm's loader.
        seconds: of a step, by arm and round.
        environment: see `describe_environment`.
    """

    student: str
    teacher: str
    batch_size: int
    num_workers: int
    seconds: dict[str, list[float]]
    environment: dict[str, Any]

    def ratio(self, arm: str, other: str) -> Ratio | None:
        """An arm's time by another's; None where one was not measured."""
        return Ratio.between(self.seconds, arm, other)

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON."""
        ratios = {arm: self.ratio(arm, "hf_deit") for arm in self.seconds}
        return {**asdict(self), "ratio_to_ours": {arm: each and asdict(each) for arm, each in ratios.items()}}

    def charts(self) -> list[Chart]:
        """As a picture."""
        bars = []
        for arm, seconds in self.seconds.items():
            ratio = None if arm == ARMS[0] else self.ratio(arm, ARMS[0])
            note = f"{ratio.brief} times ours" if ratio else ""
            bars.append(Bar.of_times(arm, seconds, note, is_ours=arm.startswith(ARMS[0])))
        return [Chart("a step, from JPEG images to weights", "s", bars)]

    @property
    def title(self) -> str:
        return (
            f"A step of {self.student} with {self.batch_size} views, from JPEG images to weights, teacher "
            f"{self.teacher}, {counted(self.num_workers, 'worker')}, medians, on {self.environment['device']}"
        )

    def __str__(self) -> str:
        rows = []
        for arm, seconds in self.seconds.items():
            median = statistics.median(seconds)
            ratio = self.ratio(arm, ARMS[0])
            rows.append((arm, short_time(median), rate(self.batch_size / median), str(ratio or "-")))
        table = markdown_table(("arm", "time", "images/s", "time / ours"), rows)
        loop = self.ratio(*ARMS[:2])
        said = [f"The Trainer takes {loop} times as long as a bare loop of its step."] if loop else []
        return "\n\n".join([f"{self.title}:", table, *said])


def measure_end_to_end(
    *,
    student: str = "deit_tiny_distilled_patch16_224",
    teacher: str = "regnety_040",
    image_size: int = 224,
    batch_size: int = 16,
    num_workers: int = 1,
    rounds: int = 5,
    steps: int = 5,
    arms: Sequence[str] = (),
    bf16: bool = False,
) -> EndToEndReport:
    """Compares trainings of the same photographs with DeiT's augmentation, without repeated views.

    "hf_deit" is `DistillationTrainer.train`, "hf_deit:bare" a loop over the same loader and the same step, "timm" a
    loop over timm's loader, with its RandAugment, random erasing and mixing, and its task of distillation. A round is
    a training from its start; the time counts when workers are as many batches ahead as they get, at its end, too.

    Args:
        student: a distilled DeiT of the zoo.
        teacher: timm's name, with random weights; or "none".
        image_size: in pixels.
        batch_size: views of a step; even, as views are mixed in pairs.
        num_workers: of each arm's loader.
        rounds: that are counted.
        steps: of an arm in a round.
        arms: some of `ARMS`; all by default.
        bf16: of the teacher, and by autocast of the student.

    Raises:
        InputError: an arm is not known, the student has no distillation token, or the batch is odd.
    """
    check_arms(arms, ARMS)
    check_distilled(student)
    if batch_size % 2:
        raise InputError(f"--batch_size must be even, as timm mixes views in pairs, got {batch_size}")
    first = 1 + 2 * num_workers  # steps that do not count; each worker prepares two batches
    with tempfile.TemporaryDirectory() as folder:
        made = _Arms(student, teacher, image_size, batch_size, num_workers, first + steps, bf16, folder)
        runs = {arm: made.arm(arm) for arm in ARMS if not arms or arm in arms}
        seconds: dict[str, list[float]] = {arm: [] for arm in runs}
        for name, counts in turns(list(runs), rounds):
            clock = _Clock(first, first + steps)
            runs[name](clock)
            if counts:
                seconds[name].append(clock.seconds / steps)
    return EndToEndReport(student, teacher, batch_size, num_workers, seconds, describe_environment())


class _Clock:
    """Called with the number of each step that is done, counted from 1, measures from one to another.

    Attributes:
        seconds: that have passed, once the last step is done.
    """

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last

    def __call__(self, step: int) -> None:
        if step in (self._first, self._last):
            wait_for_device()
            now = time.perf_counter()
            if step == self._first:
                self._start = now
            else:
                self.seconds = now - self._start


class Photographs(Dataset):
    """Rows as timm's loader takes them: (image, label), through the transform that it sets."""

    transform: Callable[[Image.Image], object] | None = None

    def __init__(self, data: datasets.Dataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[object, int]:
        row = self._data[index]
        image = row["image"].convert("RGB")
        return image if self.transform is None else self.transform(image), row["label"]


class _Arms:
    """Makes each arm, with models of its own: a function that trains for so many steps, and tells a clock of each."""

    def __init__(
        self,
        student: str,
        teacher: str,
        image_size: int,
        batch_size: int,
        num_workers: int,
        num_steps: int,
        bf16: bool,
        folder: str,
    ) -> None:
        self.student, self.image_size, self.bf16 = student, image_size, bf16
        self.batch_size, self.num_workers, self.num_steps = batch_size, num_workers, num_steps
        self.data = photographs((num_steps + 2 * num_workers) * batch_size)  # so that workers do not run out of it
        self.processor = DistilledDeiTImageProcessor(crop_size=image_size)
        torch.manual_seed(0)
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.teacher: Teacher | None = None if teacher == NO_TEACHER else random_teacher(teacher, image_size, dtype)
        self.args = DistillationTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            dataloader_num_workers=num_workers,
            dataloader_persistent_workers=num_workers > 0,  # as timm's
            repeated_augmentation=1,
            max_steps=num_steps,
            logging_steps=50,  # as in a long run
            log_format="raw",
            bf16=bf16,
            disable_tqdm=True,
            save_strategy="no",
            distillation_type="hard" if self.teacher else "none",
        )

    def arm(self, name: str) -> Callable[[_Clock], None]:
        if name == "timm":
            return self._timm()
        return self._bare(self._trainer()) if name == "hf_deit:bare" else self._whole(self._trainer())

    def _trainer(self) -> DistillationTrainer:
        torch.manual_seed(0)
        id2label = dict(enumerate(self.data.features["label"].names))
        return DistillationTrainer(
            create_model(self.student, id2label=id2label, image_size=self.image_size, drop_path_rate=0.1),
            self.args,
            teacher=copy.deepcopy(self.teacher),
            processing_class=self.processor,
            train_dataset=self.data,
        )

    def _whole(self, trainer: DistillationTrainer) -> Callable[[_Clock], None]:
        for callback in (TeacherCheckCallback, PrinterCallback, LogTableCallback):  # before the first step, and words
            trainer.remove_callback(callback)

        def run(clock: _Clock) -> None:
            callback = StepEndCallback(clock)
            trainer.add_callback(callback)
            try:
                trainer.train()
            finally:
                trainer.remove_callback(callback)

        return run

    def _bare(self, trainer: DistillationTrainer) -> Callable[[_Clock], None]:
        step, loader = TrainerStep(trainer), trainer.get_train_dataloader()

        def run(clock: _Clock) -> None:
            loader.set_epoch(0)
            for number, batch in enumerate(loader, start=1):
                step(trainer.prepare_batch(batch))
                clock(number)
                if number == self.num_steps:
                    break

        return run

    def _timm(self) -> Callable[[_Clock], None]:
        args, device = self.args, self.args.device
        labels = self.data.features["label"].num_classes
        mixing = {"mixup_alpha": args.mixup, "cutmix_alpha": args.cutmix, "num_classes": labels}
        loader = create_loader(
            Photographs(self.data),
            input_size=(3, self.image_size, self.image_size),
            batch_size=self.batch_size,
            is_training=True,
            re_prob=args.random_erasing,
            re_mode="pixel",
            auto_augment=args.auto_augment,
            interpolation="bicubic",
            mean=tuple(self.processor.image_mean),
            std=tuple(self.processor.image_std),
            num_workers=self.num_workers,
            collate_fn=FastCollateMixup(**mixing, label_smoothing=args.label_smoothing_factor),
            device=device,
            persistent_workers=self.num_workers > 0,
        )
        torch.manual_seed(0)
        model = timm.create_model(self.student, num_classes=labels, img_size=self.image_size, drop_path_rate=0.1)
        model.set_distilled_training(True)
        loss_of = self._loss_of_timm(model.to(device).train())
        optimizer = create_optimizer_v2(
            model, "adamw", lr=args.learning_rate, weight_decay=args.weight_decay, fused=True
        )

        def run(clock: _Clock) -> None:
            for number, (pixels, targets) in enumerate(loader, start=1):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    loss = loss_of(pixels, targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                clock(number)
                if number == self.num_steps:
                    break

        return run

    def _loss_of_timm(self, model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        criterion = SoftTargetCrossEntropy()
        if self.teacher is None:
            return lambda pixels, targets: sum(criterion(logits, targets) for logits in model(pixels)) / 2
        teacher = copy.deepcopy(self.teacher.model.timm_model).to(self.args.device).eval()
        teacher.pretrained_cfg = model.pretrained_cfg  # both see the same pixels
        task = TokenDistillationTask(
            model,
            teacher,
            criterion,
            distill_type="hard",
            task_loss_weight=0.5,
            device=self.args.device,
            verbose=False,
        ).train()
        return lambda pixels, targets: task(pixels, targets)["loss"]
