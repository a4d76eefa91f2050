"""A whole run: from arguments to a distilled model on disk."""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.load import DataArguments, ImageData
from ..errors import InputError, PublishError
from ..hub.facts import RunSources
from ..hub.repository import HubRepository, check_repository
from ..hub.revisions import declared_datasets
from ..hub.run_folder import RECIPE_FILE, last_whole_checkpoint
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from ..models.teacher import Teacher
from ..recipes.resolve import Arguments, check_same_run, resolve_arguments, save_recipe, take_revisions
from ..training.arguments import DistillationTrainingArguments
from ..training.checkpoints import check_resumable, find_checkpoint, resume_wish
from ..training.datasets import as_views, check_arguments
from ..training.kept_labels import LabelReport
from ..training.label_source import labels_suffice
from ..training.preview import contact_sheet
from ..training.processes import on_main_process
from ..training.publishing_trainer import repository_name
from ..training.trainer import DistillationTrainer
from .prepare import as_range, learnt_images, load_images, make_student, named_teacher
from .sources import UNFINISHED_CHECKPOINT, adopt_checkpoint, describe_sources, fetch_checkpoint, resolve_sources

logger = logging.get_logger(__name__)

_TEACHER_FOLDER, _UNFINISHED_TEACHER = "teacher", "teacher.unfinished"


@dataclass
class RunResult:
    """What a run achieved.

    Attributes:
        output_dir: folder of the model, its image processor, the resolved recipe and the checkpoints.
        accuracies: top-1 on the validation images by what was measured, in [0, 1]; empty if there are none.
        num_validation_images: how many they are.
        images_per_second: training speed, of the student (and its teacher).
        label_report: what became of kept labels, or None if there is no store.
        kept_in: the folder that the teacher's labels were written to, or None.
        skipped_images: how often an image could not be decoded and another took its place.
        minutes: the whole run, a teacher trained before included.
        weights: which were saved, "raw" or "ema" (their moving average).
        repository: URL of the repository that the model was pushed to, or None.
        push_failures: of pushes during and after the training, a line each with the cause.
        publish_error: why the model could not be pushed at the end, or None.
    """

    output_dir: str
    accuracies: dict[str, float]
    num_validation_images: int
    images_per_second: float
    skipped_images: int
    minutes: float
    weights: str
    repository: str | None = None
    label_report: LabelReport | None = None
    kept_in: str | None = None
    push_failures: tuple[str, ...] = ()
    publish_error: PublishError | None = None

    def __str__(self) -> str:
        rows = [(name, f"{accuracy:.4f}") for name, accuracy in self.accuracies.items()]
        if self.skipped_images:
            rows.append(("broken images skipped", str(self.skipped_images)))
        heading = (
            f"top-1 on {self.num_validation_images} held-out images" if self.accuracies else "not validated",
            "",
        )
        if (report := self.label_report) is not None:
            rows += [("kept labels replayed", f"{report.replayed}"), ("labels by the teacher", f"{report.asked}")]
            if report.verified:
                rows.append((f"agreeing, of {report.verified} verified", f"{report.agreeing / report.verified:.4f}"))
                rows.append(("views with compared pixels", f"{report.pixels}"))
        rows += [("images/s in training", f"{self.images_per_second:.0f}"), ("minutes in all", f"{self.minutes:.1f}")]
        width = max(len(name) for name, _ in [heading, *rows])
        rule = "-" * (width + 8)
        lines = [f"{name:<{width}}  {value:>6}" for name, value in rows]
        count = len(self.accuracies)
        return "\n".join([heading[0], rule, *lines[:count], rule, *lines[count:]])

    @property
    def usage(self) -> str:
        """Lines that load and use the model, with transformers alone."""
        return (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("image-classification", model="{self.output_dir}")\n'
            'print(classify("image.png"))'
        )


def run(arguments: Arguments) -> RunResult:
    """Loads data, teacher (training one first if the recipe says so) and student; distils, evaluates and saves.

    Everything that can be wrong with the input is checked before the first training step.

    Args:
        arguments: from `hf_deit.recipes.resolve_arguments`.

    Raises:
        InputError: the input cannot be used.
        TrainingDivergedError: the loss is no longer finite.
    """
    start = time.perf_counter()
    args = arguments[-1]
    resuming = resume_wish(args.resume_from_checkpoint) is not None
    check_output_dir(args.output_dir, resuming=resuming, labels=args.teacher_labels)
    repository = _check_repository(args)
    recipe_file = os.path.join(args.output_dir, RECIPE_FILE)
    checkpoint = None
    if args.resume_from_hub is not None:
        fetched, published = on_main_process(lambda: fetch_checkpoint(args.resume_from_hub))
        arguments = resolve_sources(take_revisions(published, arguments))
        check_same_run(published, arguments)
    elif resuming and os.path.isfile(recipe_file):
        arguments = resolve_sources(take_revisions(recipe_file, arguments))
        check_same_run(recipe_file, arguments)
        if last_whole_checkpoint(args.output_dir) is None and resume_wish(args.resume_from_checkpoint) is True:
            logger.warning("the run in %s was stopped before its first checkpoint: it starts again", args.output_dir)
            resuming = False
    else:
        arguments = resolve_sources(arguments)
    if resuming:
        checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    model_args, data_args, _ = arguments
    data = load_images(model_args, data_args, args)
    learnt = learnt_images(data, arguments)
    if data.validation is None and args.eval_strategy != "no":
        raise InputError(
            f"there are no labelled images to evaluate with every {args.eval_strategy.value}: give --validation_dir, "
            "or --eval_strategy no"
        )
    student, processor = make_student(model_args, data, args.seed)
    check_arguments(args, student, processor)
    if repository is not None:
        on_main_process(repository.create)  # before a teacher is trained
    teacher, teacher_recipe = None, None
    if args.distillation_type != "none":
        if model_args.teacher_model_name_or_path is None and not _labels_suffice(learnt, args, student, processor):
            teacher_recipe = model_args.teacher_recipe
            if teacher_recipe is None and args.teacher_labels is not None:
                raise InputError(
                    f"there are no labels in {args.teacher_labels!r} yet, and there is no teacher to fill it: give "
                    "--teacher_model_name_or_path (a Hub id or a folder), or another --teacher_labels"
                )
            teacher_path = train_teacher(teacher_recipe, data, data_args, args)
            if args.should_save:  # from here on there is something to go on with; not before, for the refusals' sake
                save_recipe(arguments, recipe_file)
            model_args = replace(model_args, teacher_model_name_or_path=teacher_path)
            # Accelerate keeps one state a process: the student's Trainer would inherit the teacher's precision.
            AcceleratorState._reset_state()
        if model_args.teacher_model_name_or_path is not None:
            teacher = named_teacher(model_args, data, processor)
            model_args = replace(model_args, teacher_revision=teacher.revision)
    arguments = (model_args, data_args, args)
    trainer = DistillationTrainer(
        student,
        args,
        teacher=teacher,
        processing_class=processor,
        train_dataset=learnt.train,
        unlabeled_dataset=learnt.unlabeled,
        eval_dataset=data.validation,
        repository=repository,
        sources=describe_sources(arguments, data, teacher, teacher_recipe=teacher_recipe, start=start),
    )
    if teacher is None and trainer.sources.teacher is not None:  # kept labels name theirs
        named = trainer.sources.teacher
        trainer.sources.teacher_datasets = declared_datasets(named.name, named.commit) if named.on_hub else None
    on_main_process(trainer.check_card)
    if args.resume_from_hub is not None:
        on_main_process(lambda: check_resumable(fetched, trainer.steps_per_epoch))
        checkpoint = on_main_process(lambda: adopt_checkpoint(fetched, args.output_dir))
    if args.should_save:
        save_recipe(arguments, recipe_file)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {} if data.validation is None else trainer.evaluate()
    accuracies = _accuracies(trainer, metrics)
    trainer.save_state()
    trainer.save_metrics("eval", metrics)
    publish_error = None
    try:
        trainer.save_model()
    except PublishError as error:
        publish_error = error
    if not args.push_to_hub:
        try:
            trainer.create_model_card()
        except Exception as error:  # the result is worth more than its card
            logger.warning("the model is saved, but its card could not be written: %r", error)
    return RunResult(
        output_dir=args.output_dir,
        accuracies=accuracies,
        num_validation_images=len(data.validation or ()),
        images_per_second=trainer.images_per_second,
        skipped_images=trainer.skipped_images,
        minutes=(time.perf_counter() - start) / 60,
        weights=args.publish_weights,
        label_report=trainer.label_report,
        kept_in=None if trainer.kept_labels is None or trainer.kept_labels.store.readonly else args.teacher_labels,
        repository=None if repository is None else repository.url,
        push_failures=tuple(trainer.push_failures),
        publish_error=publish_error,
    )


def _labels_suffice(
    learnt: ImageData,
    args: DistillationTrainingArguments,
    student: PreTrainedModel,
    processor: DistilledDeiTImageProcessor,
) -> bool:
    """Whether kept labels take the teacher's place, where none is named.

    Raises:
        InputError: they are of other views, or must do and do not.
    """
    if args.teacher_labels is None:
        return False
    views = as_views(learnt.train, learnt.unlabeled, args=args, model=student, processor=processor, teacher=None)
    num_labels, sources = student.config.num_labels, RunSources.of(student, None)
    has_trained_teacher = os.path.isdir(os.path.join(args.output_dir, _TEACHER_FOLDER))
    suffice = on_main_process(
        lambda: labels_suffice(
            views,
            args,
            processor,
            num_labels=num_labels,
            sources=sources,
            has_trained_teacher=has_trained_teacher,
        )
    )
    # What a store that must do lacks, the Trainer says.
    return suffice or args.teacher_labels_readonly


def _check_repository(args: DistillationTrainingArguments) -> HubRepository | None:
    """The repository to push to, checked, before anything else takes its time."""
    if not args.push_to_hub:
        return None
    return on_main_process(
        lambda: check_repository(
            repository_name(args), token=args.hub_token, private=args.hub_private_repo, revision=args.hub_revision
        )
    )


def _accuracies(trainer: DistillationTrainer, metrics: dict[str, float]) -> dict[str, float]:
    """The rows of the table: what the teacher, each head and the published model get right."""
    if not metrics:
        return {}
    accuracies = {}
    if trainer.teacher is not None:
        accuracies["teacher"] = _teacher_accuracy(trainer, trainer.teacher)
        trainer.teacher_report.update(teacher_top1=accuracies["teacher"], teacher_images=len(trainer.eval_dataset))
    for average, suffix in (("", ""), ("ema_", ", averaged")):
        for head, name in (("class_", "class head"), ("distillation_", "distillation head")):
            if f"eval_{average}{head}top1" in metrics:
                accuracies[f"{name}{suffix}"] = metrics[f"eval_{average}{head}top1"]
        if f"eval_{average}top1" in metrics:
            whole = "fused" if "class head" in accuracies else "student"
            accuracies[f"{whole}{suffix}"] = metrics[f"eval_{average}top1"]
    return accuracies


def train_teacher(
    recipe: str | None, data: ImageData, data_args: DataArguments, student_args: DistillationTrainingArguments
) -> str:
    """Trains a teacher on the same data, into the folder "teacher" of the student's output folder.

    Args:
        recipe: of the teacher.
        data: the student's.
        data_args, student_args: the student's arguments; the seed and the device are taken over.

    Returns:
        The folder, in the Hub's format. One that is complete from an earlier start of the run is taken as it is.

    Raises:
        InputError: there is no recipe.
    """
    if recipe is None:
        raise InputError(
            "there is no teacher: give --teacher_model_name_or_path (a Hub id or a folder), or --teacher_recipe to "
            "train one on this data first, or --distillation_type none"
        )
    folder = os.path.join(student_args.output_dir, _TEACHER_FOLDER)
    if os.path.isdir(folder):
        return folder
    unfinished = os.path.join(student_args.output_dir, _UNFINISHED_TEACHER)
    command = ["--recipe", recipe, "--output_dir", unfinished, "--seed", str(student_args.seed)]
    for name in ("use_cpu", "disable_tqdm", "on_bad_image"):
        command += [f"--{name}", str(getattr(student_args, name))]
    model_args, _, args = resolve_arguments(command)
    teacher, processor = make_student(model_args, data, args.seed)
    trainer = DistillationTrainer(
        teacher, args, processing_class=processor, train_dataset=data.train, eval_dataset=data.validation
    )
    trainer.train()
    trainer.save_model()
    if args.should_save:
        save_recipe((model_args, data_args, args), os.path.join(unfinished, RECIPE_FILE))
        os.replace(unfinished, folder)
    trainer.accelerator.wait_for_everyone()
    return folder


@torch.no_grad()
def _teacher_accuracy(trainer: DistillationTrainer, teacher: Teacher) -> float:
    """The teacher's top-1 on the whole validation set, every process counting its part."""
    counts = torch.zeros(2, device=trainer.args.device)
    for batch in trainer.get_eval_dataloader():
        batch = trainer._prepare_inputs(batch)
        predictions = teacher(batch["pixel_values"]).argmax(dim=-1)
        predictions, labels = trainer.accelerator.gather_for_metrics((predictions, batch["labels"]))
        counts += torch.stack([((predictions == labels) & (labels >= 0)).sum(), (labels >= 0).sum()])
    return float(counts[0] / counts[1])


def check_output_dir(output_dir: str, *, resuming: bool, labels: str | None = None) -> None:
    """Refuses an output folder that cannot be written, or that holds another run.

    Args:
        output_dir: the folder.
        resuming: whether the run that it holds is this one.
        labels: a folder of kept labels, which may lie in it.

    Raises:
        InputError: with what to do.
    """
    state = PartialState()
    try:
        os.makedirs(output_dir, exist_ok=True)
        occupied = set(os.listdir(output_dir)) - {_UNFINISHED_TEACHER, UNFINISHED_CHECKPOINT}
        if labels is not None:
            occupied.discard(os.path.relpath(labels, output_dir))
        state.wait_for_everyone()  # another process's probe is no run
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the output folder {output_dir!r} ({error}): give another --output_dir"
        ) from error
    # A run that was killed while its teacher was trained has nothing that is worth keeping.
    if not resuming and occupied:
        raise InputError(
            f"the output folder {output_dir!r} holds another run: go on with it (--resume_from_checkpoint true), give "
            "another --output_dir, or remove it"
        )
    state.wait_for_everyone()  # no process may write before all have looked


def preview_run(command: Sequence[str], *, epoch: int, slots: str) -> Image.Image:
    """A contact sheet of the views that a run trains on; see `hf_deit.preview`.

    Args:
        command: the run's command line.
        epoch: from 0.
        slots: "FIRST:LAST" of the epoch's order, LAST exclusive.

    Raises:
        InputError: the run's input cannot be used, or there are no such slots.
    """
    wanted = as_range("slots", slots, "0:16")
    with tempfile.TemporaryDirectory() as folder:
        # A view depends neither on the device, nor on the teacher, nor on where the run writes.
        neutral = ["--use_cpu", "true", "--tf32", "false", "--deepspeed=", "--output_dir", folder]
        arguments = resolve_arguments([*command, *neutral])
        model_args, data_args, args = arguments
        data = load_images(model_args, data_args, args)
        learnt = learnt_images(data, arguments)
        student, processor = make_student(model_args, data, args.seed)
        check_arguments(args, student, processor)
        views = as_views(learnt.train, learnt.unlabeled, args=args, model=student, processor=processor, teacher=None)
        return contact_sheet(views, args, processor, student.config.id2label, epoch=epoch, slots=wanted)
