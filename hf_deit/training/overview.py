"""What a run is about to do, in one block of text: shown before its first step."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import IntervalStrategy

from ..data.streams import StreamViewDataset
from ..data.view_dataset import EvaluationDataset, ViewDataset
from ..errors import counted
from ..hub.facts import LOCAL_CHECKPOINT
from ..models.class_names import in_order
from ..models.ensemble import TeacherEnsemble
from ..models.single_teacher import size_in_words
from .sharding import sharding_in_words

if TYPE_CHECKING:
    from .trainer import DistillationTrainer

_MARGIN, _TITLES = "  ", 10  # so that no line of it begins as one of the results does


@dataclass(frozen=True)
class RunOverview:
    """What a person wants to know of a run before it begins.

    Attributes:
        learner: what learns: "student", "teacher" in the run that trains one for another run, or "model".
        name: of the learner: a checkpoint, or an architecture.
        parameters, trained_parameters: their numbers.
        image_size: of its input, (height, width) in pixels.
        num_classes: how many it tells apart.
        images: of each split its name, the number of images, and how many of them have a label.
        test_images: that are looked at once, when all is trained; 0 for none.
        class_counts: labelled training images by class name; empty if that is not known, as of a stream.
        teacher: who teaches, and how well, in words; None if nobody does.
        teacher_speed: how the teacher runs, if that was found out, in words, or "".
        views_per_epoch: that are trained on.
        repeats: views of an image in an epoch.
        num_steps, steps_done: optimizer steps of the whole run, and those before it was resumed.
        steps_per_epoch: likewise; None if it is not known.
        device_batch_size, num_devices, accumulation: a step has their product of views.
        stated_epochs: `num_train_epochs` where `least_steps` has made more of it.
        least_steps: `min_train_steps`.
        patience: of an early stop, in evaluations; None if the run goes to its end.
        device: in words, with the precision, and what is sharded.
        pace: when is logged and evaluated, in words.
        seconds: about how long it will take, or None if that is not known.
        predicted: a histogram of the classes that the teacher says, or "".
    """

    learner: str
    name: str
    parameters: int
    trained_parameters: int
    image_size: tuple[int, int]
    num_classes: int
    images: Sequence[tuple[str, int, int]]
    num_steps: int
    device_batch_size: int
    device: str
    pace: str
    test_images: int = 0
    class_counts: Mapping[str, int] = field(default_factory=dict)
    teacher: str | None = None
    teacher_speed: str = ""
    views_per_epoch: int | None = None
    repeats: int = 1
    steps_done: int = 0
    steps_per_epoch: int | None = None
    num_devices: int = 1
    accumulation: int = 1
    stated_epochs: float | None = None
    least_steps: int = 0
    patience: int | None = None
    seconds: float | None = None
    predicted: str = ""

    def text(self, width: int = 80) -> str:
        """The block, in lines of at most `width` characters."""
        size = " x ".join(map(str, self.image_size))
        rows = [
            ("images", "; ".join([*(self._split(*split) for split in self.images), *self._test()])),
            ("classes", self._classes()),
            (self.learner, f"{self.name}, {self._parameters()}, {size} pixels"),
            ("teacher", "" if self.learner == "teacher" else self.teacher or "none: it learns from labels alone"),
            ("its speed", self.teacher_speed),
            ("views", self._views()),
            ("steps", self._steps()),
            ("device", self.device),
            ("logs", self.pace),
            ("time", self._time()),
        ]
        return "\n\n".join(filter(None, [titled_lines(rows, width), self.predicted]))

    @staticmethod
    def _split(name: str, count: int, labelled: int) -> str:
        labels = f"of which {labelled:,} have labels" if labelled else "without labels"
        return f"{name} {count:,}" + ("" if labelled == count else f", {labels}")

    def _test(self) -> list[str]:
        return [f"test {self.test_images:,}, looked at once, at the end"] if self.test_images else []

    def _classes(self) -> str:
        if not self.class_counts:
            return f"{self.num_classes:,}"
        smallest = min(self.class_counts, key=self.class_counts.__getitem__)
        largest = max(self.class_counts, key=self.class_counts.__getitem__)
        fewest, most = self.class_counts[smallest], self.class_counts[largest]
        if fewest == most:
            return f"{self.num_classes:,}, of {most:,} training images each"
        return f'{self.num_classes:,}, of {fewest:,} ("{smallest}") to {most:,} ("{largest}") training images'

    def _parameters(self) -> str:
        trained = self.trained_parameters
        rest = "" if trained == self.parameters else f", of which {_count(trained)} are trained"
        return f"{_count(self.parameters)} parameters{rest}"

    def _views(self) -> str:
        if self.views_per_epoch is None:
            return ""
        repeats = "" if self.repeats == 1 else f", {self.repeats} of each image that is drawn"
        return f"{self.views_per_epoch:,} an epoch{repeats}"

    def _time(self) -> str:
        if self.seconds is None:
            return "told with the first steps"
        words = about(self.seconds)
        return words if self.patience is None or words.startswith("less") else f"at most {words}"

    def _steps(self) -> str:
        words = f"{'' if self.patience is None else 'at most '}{self.num_steps:,}"
        if self.steps_per_epoch:
            epochs = round(self.num_steps / self.steps_per_epoch, 2)
            raised = ""
            if self.stated_epochs is not None:
                raised = f" instead of {self.stated_epochs:g}, for the {self.least_steps:,} steps of min_train_steps"
            words += f" ({epochs:g} {'epoch' if epochs == 1 else 'epochs'} of {self.steps_per_epoch:,}{raised})"
        if self.steps_done:
            words += f", {self.steps_done:,} of them done"
        batch = self.device_batch_size * self.num_devices * self.accumulation
        factors = [f"{self.device_batch_size:,} on a device"]
        factors += [f"{self.num_devices} devices"] * (self.num_devices > 1)
        factors += [f"{self.accumulation} accumulated"] * (self.accumulation > 1)
        return f"{words}, of {batch:,} views" + (f" ({' x '.join(factors)})" if len(factors) > 1 else "")


def titled_lines(rows: Iterable[tuple[str, str]], width: int = 80) -> str:
    """A block of lines of at most `width` characters: titles of up to nine, each with its words, if it has any."""
    lines = (
        textwrap.fill(
            words,
            width,
            initial_indent=f"{_MARGIN}{title:<{_TITLES}}",
            subsequent_indent=_MARGIN + " " * _TITLES,
            break_on_hyphens=False,
        )
        for title, words in rows
        if words
    )
    return "\n".join(lines)


def about(seconds: float) -> str:
    """A time span in words, no more exact than an estimate is."""
    minutes = seconds / 60
    if minutes < 0.75:
        return "less than a minute"
    if minutes < 90:
        return f"about {max(round(minutes), 1)} min"
    if minutes < 36 * 60:
        return f"about {round(minutes / 60)} hours"
    return f"about {round(minutes / 60 / 24)} days"


def _count(number: int) -> str:
    return f"{number:,}" if number < 1e6 else f"{number / 1e6:.1f} M"


def describe_run(
    trainer: "DistillationTrainer", *, learner: str | None = None, seconds: float | None = None
) -> RunOverview:
    """The overview of a Trainer's run, as it is when the training begins.

    Args:
        learner: see `RunOverview`; by default "student" if there is a teacher, else "model".
        seconds: see `RunOverview`.
    """
    args, views = trainer.args, trainer.train_dataset
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_known = isinstance(views, ViewDataset | StreamViewDataset)
    counts = [parameter.numel() for parameter in model.parameters()]
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    size, source = trainer.processing_class.crop_size, trainer.sources.student
    predicted = trainer.record.predicted_classes
    return RunOverview(
        learner=learner or ("model" if args.distillation_type == "none" else "student"),
        name=(model.name_or_path if source == LOCAL_CHECKPOINT else "") or source.name,
        parameters=sum(counts),
        trained_parameters=sum(trained),
        image_size=(size.height, size.width),
        num_classes=model.config.num_labels,
        images=[*_train_split(views), *_evaluation_splits(trainer.eval_dataset)],
        test_images=0 if trainer.test_dataset is None else len(trainer.test_dataset),
        class_counts=_class_counts(views, model.config.id2label),
        teacher=None if args.distillation_type == "none" else _teacher(trainer),
        teacher_speed=trainer.record.teacher_speed,
        views_per_epoch=trainer.steps_per_epoch * args.total_train_batch_size if is_known else None,
        repeats=args.repeated_augmentation,
        num_steps=trainer.state.max_steps,
        steps_done=trainer.state.global_step,
        steps_per_epoch=trainer.steps_per_epoch if is_known else None,
        device_batch_size=args.train_batch_size,
        num_devices=args.world_size,
        accumulation=args.gradient_accumulation_steps,
        stated_epochs=None if args.num_train_epochs == trainer.stated_epochs else trainer.stated_epochs,
        least_steps=args.min_train_steps,
        patience=args.early_stopping_patience,
        device=_device(args, sharding_in_words(trainer.accelerator)),
        pace=_pace(trainer),
        seconds=seconds,
        predicted="" if predicted is None else predicted.text(in_order(model.config.id2label), margin=_MARGIN),
    )


def _train_split(views: Any) -> list[tuple[str, int, int]]:
    if isinstance(views, ViewDataset):
        return [("train", len(views), int((views.labels >= 0).sum()))]
    return [("a stream of", len(views), len(views))] if isinstance(views, StreamViewDataset) else []


def _evaluation_splits(dataset: Any) -> list[tuple[str, int, int]]:
    named = dataset if isinstance(dataset, dict) else {"validation": dataset}
    return [
        (name, len(part), int((part.labels >= 0).sum()))
        for name, part in named.items()
        if isinstance(part, EvaluationDataset)
    ]


def _class_counts(views: Any, id2label: Mapping[int, str]) -> dict[str, int]:
    if not isinstance(views, ViewDataset) or not views.has_labels:
        return {}
    counts = np.bincount(views.labels[views.labels >= 0], minlength=len(id2label))
    return {id2label[index]: int(count) for index, count in enumerate(counts)}


def _teacher(trainer: "DistillationTrainer") -> str:
    report, name = trainer.record.teacher_report, trainer.args.teacher_labels
    if trainer.teacher is None:
        agreement = report.get("kept_labels_that_are_true")
        return f"labels kept in {name}" + ("" if agreement is None else f", {agreement:.4f} of them true")
    words = trainer.teacher.name_or_path + (f", its labels kept in {name}" if name else "")
    is_validated = "teacher_top1" in report
    key = "teacher_top1" if is_validated else "teacher_agreement_with_labels"
    if key not in report:
        return f"{words}, not measured: no image has a label"
    of = f"{report['teacher_images']:,.0f} validation images" if is_validated else "the first training views"
    if isinstance(trainer.teacher, TeacherEnsemble):
        alone = [f"{report[f'{key}_of_{number}']:.4f}" for number in range(1, len(trainer.teacher.members) + 1)]
        return f"{words}, right together on {report[key]:.4f} of {of}, and by themselves on {', '.join(alone)}"
    shown = size_in_words(trainer.teacher.shown_size).replace(" ", "")
    sizes = {name.removeprefix(f"{key}_at_"): value for name, value in report.items() if name.startswith(f"{key}_at_")}
    others = [f"on {value:.4f} at {size}" for size, value in sizes.items() if size != shown]
    at = [f"at {shown} pixels", *others] if others else []
    return f"{words}, right on {report[key]:.4f} of {of}{' ' * bool(at)}{', '.join(at)}"


def _device(args: Any, sharding: str) -> str:
    if args.device.type == "cuda":
        name, count = torch.cuda.get_device_name(args.device), torch.cuda.device_count()
        if args.world_size == 1 and count > 1:
            name += f" (one of {count}; hf-deit launch uses them all)"
    elif args.device.type == "cpu":
        name = f"CPU, {counted(torch.get_num_threads(), 'thread')}" + " a process" * (args.world_size > 1)
    else:
        name = str(args.device)
    precision = "float32" if args.mixed_precision == "no" else args.mixed_precision  # a launcher may say it, too
    times = f"{args.world_size} x " if args.world_size > 1 else ""
    return f"{times}{name}, {precision}" + (f"; {sharding}" if sharding else "")


def _pace(trainer: "DistillationTrainer") -> str:
    args, state = trainer.args, trainer.state

    def every(strategy: IntervalStrategy, steps: float | None, epochs: int = 1) -> str:
        if strategy == IntervalStrategy.EPOCH:
            return "every epoch" if epochs == 1 else f"every {epochs} epochs"
        return "every step" if steps == 1 else f"every {steps:,.0f} steps"

    words = []
    if args.logging_strategy != IntervalStrategy.NO:
        words.append(every(args.logging_strategy, state.logging_steps))
    if args.eval_strategy != IntervalStrategy.NO:
        words.append(f"evaluation {every(args.eval_strategy, state.eval_steps, args.eval_epochs)}")
    if args.early_stopping_patience is not None:
        words.append(f"the run ends when {counted(args.early_stopping_patience, 'evaluation')} brought nothing")
    return "; ".join(words)
