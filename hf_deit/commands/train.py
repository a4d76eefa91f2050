"""`hf-deit train`: distils a model, from arguments to a checked folder, or a repository on the Hub."""

import functools
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from transformers.utils import logging

from ..data.image_data import ImageData
from ..data.view_dataset import ViewDataset
from ..errors import InputError, PublishError, command, counted, rate
from ..hub.facts import RunSources, with_interval
from ..hub.files import read_json, writing
from ..hub.run_folder import RECIPE_FILE
from ..hub.usage import note_on_fusion, usage
from ..models.ensemble import EnsembleDescription, TeacherEnsemble
from ..models.heads import CLASS, DISTILLATION, FUSED, PLAIN, words_of_answer
from ..models.teacher import AnyDescription
from ..recipes.prospects import Prospects
from ..recipes.resolve import Arguments, check_same_run, published_recipe, resolve_arguments, save_recipe
from ..recipes.sameness import TRAINED_TEACHER
from ..training.arguments import ModelArguments
from ..training.checkpoints import check_same_labels, resume_wish
from ..training.datasets import steps_per_epoch
from ..training.early_stopping import early_end
from ..training.kept_labels import LabelReport
from ..training.label_source import LabelSource, RunLabels
from ..training.log_table import LogTableCallback
from ..training.origin import images_of
from ..training.processes import holding, on_main_process
from ..training.pushes import repository_of
from ..training.sharding import check_sharding
from ..training.trainer import DistillationTrainer
from .command_line import STATUS_OF_PUBLISHING, run_command
from .output_folder import UNFINISHED_TEACHER, begin_teacher, check_output_dir, clear_beginnings, is_begun
from .prepare import PreparedRun, check_same_arguments, fitted_to, leaves_no_empty_folders, make_student, prepare
from .resume import begin
from .run_options import RunParser
from .sources import describe_sources, names_to_compare, with_teacher, words_of_probe, words_of_trained
from .teacher_probe import fit_teacher
from .zero_shot import check_told, with_templates

logger = logging.get_logger(__name__)

_NOT_VALIDATED = (
    "The model was not validated, as there were no labelled images: --validation_dir takes some, one folder per class."
)


@dataclass
class RunResult:
    """What a run achieved.

    Attributes:
        output_dir: folder of the model, its image processor, the resolved recipe and the checkpoints.
        accuracies: top-1 on the validation images by what was measured, in [0, 1]; empty if there are none.
        num_validation_images: how many they are.
        test_accuracies: the same of the saved weights on the test images; empty if there are none.
        num_test_images: how many they are.
        images_per_second: training speed, of the student (and its teacher).
        label_report: what became of kept labels, or None if there is no store.
        kept_in: the folder that the teacher's labels were written to, or None.
        skipped_images: how many different images could not be decoded, in training and evaluation.
        unanswered_views: how many views the teacher gave no answer to, in training.
        minutes: the whole run, a teacher trained before included.
        weights: which were saved, "raw" or "ema" (their moving average).
        served_top1: top-1 of what `usage` answers, in [0, 1]; None if it was not measured.
        needs_code: whether the model's code was saved beside it.
        fusion_note: what becomes of two heads in `usage`, or None.
        repository: URL of the repository that the model was pushed to, or None.
        push_failures: of pushes during and after the training, a line each with the cause.
        publish_error: why the model could not be pushed at the end, or None.
        evaluation: the command that evaluates the model in full.
        early_end: at which step the run has stopped early, and what its best was, in a line; None if it has not.
    """

    output_dir: str
    accuracies: dict[str, float]
    num_validation_images: int
    images_per_second: float
    skipped_images: int
    minutes: float
    weights: str
    unanswered_views: int = 0
    served_top1: float | None = None
    needs_code: bool = False
    fusion_note: str | None = None
    repository: str | None = None
    label_report: LabelReport | None = None
    kept_in: str | None = None
    push_failures: tuple[str, ...] = ()
    publish_error: PublishError | None = None
    test_accuracies: dict[str, float] = field(default_factory=dict)
    num_test_images: int = 0
    evaluation: str = ""
    early_end: str | None = None

    def __str__(self) -> str:
        rows = [(name, f"{accuracy:.4f}") for name, accuracy in self.accuracies.items()]
        if self.skipped_images:
            rows.append(("broken images skipped", str(self.skipped_images)))
        if self.unanswered_views:
            rows.append(("views without an answer", str(self.unanswered_views)))
        heading = (f"top-1 on {counted(self.num_validation_images, 'held-out image')}", "")
        if (report := self.label_report) is not None:
            rows += [("kept labels replayed", f"{report.replayed}"), ("labels by the teacher", f"{report.asked}")]
            if report.verified:
                rows.append((f"agreeing, of {report.verified} verified", f"{report.agreeing / report.verified:.4f}"))
                rows.append(("views with compared pixels", f"{report.pixels}"))
        rows += [("images/s in training", rate(self.images_per_second)), ("minutes in all", f"{self.minutes:.1f}")]
        tested = [
            (f"test, {name}", with_interval(value, self.num_test_images))
            for name, value in self.test_accuracies.items()
        ]
        images = counted(self.num_test_images, "test image")
        test_heading = f"top-1 on {images}, looked at once, with 95 % interval"
        if not self.accuracies:
            told = ", ".join(f"{name}: {value}" for name, value in rows)
            lines = [test_heading, *(f"{name}  {value}" for name, value in tested)] if tested else []
            return "\n".join([_NOT_VALIDATED, told, *lines])
        width = max(len(name) for name, _ in [heading, *rows, *tested])
        rule = "-" * (width + 8)
        lines, test_lines = ([f"{name:<{width}}  {value:>6}" for name, value in part] for part in (rows, tested))
        count = len(self.accuracies)
        test_lines = [rule, test_heading, rule, *test_lines] if test_lines else []
        return "\n".join([heading[0], rule, *lines[:count], *test_lines, rule, *lines[count:]])

    @property
    def usage(self) -> str:
        """Lines that load and use the model, with transformers alone."""
        return usage(self.output_dir, needs_code=self.needs_code)


def _holds_its_folder(function: Callable[[Arguments], RunResult]) -> Callable[[Arguments], RunResult]:
    """Of a function that runs a training: it has the output folder for itself, to the end of pushing."""

    @functools.wraps(function)
    def wrapped(arguments: Arguments) -> RunResult:
        with holding(arguments.training.output_dir):
            return function(arguments)

    return wrapped


@leaves_no_empty_folders
@_holds_its_folder
def run(arguments: Arguments) -> RunResult:
    """Loads data, teacher (training one first if the recipe says so) and student; distils, evaluates and saves.

    Everything that can be wrong with the input is checked before the first training step.

    Args:
        arguments: from `hf_deit.recipes.resolve.resolve_arguments`.

    Raises:
        InputError: the input cannot be used.
        TrainingDivergedError: the loss is no longer finite.
        CheckpointError: something could not be written.
    """
    start = time.perf_counter()
    args = arguments.training
    check_sharding(args)
    is_resuming = resume_wish(args.resume_from_checkpoint) is not None
    check_same_arguments(arguments)
    check_output_dir(args.output_dir, resuming=is_resuming, labels=args.teacher_labels)
    repository = on_main_process(lambda: repository_of(args)) if args.push_to_hub else None
    beginning = begin(arguments)
    check_told(beginning.arguments)
    prepared = prepare(beginning.arguments, beginning.labels, is_evaluated=True)
    beginning.check_labels(prepared.images.id2label)
    if beginning.checkpoint is None and args.should_save:
        for doubt in _doubts(prepared):
            logger.warning("%s", doubt)
    if repository is not None:
        on_main_process(repository.create)  # before a teacher is trained
    lesson = _find_teacher(prepared, beginning.labels, resuming=is_resuming, start=start)
    arguments = lesson.arguments
    if lesson.teacher is not None and lesson.teacher.is_undecided:
        lesson.teacher = beginning.as_it_ran(lesson.teacher)
    trainer = DistillationTrainer(
        prepared.student,
        arguments.training,
        teacher=lesson.teacher,
        processing_class=prepared.processor,
        train_dataset=prepared.views,
        eval_dataset=prepared.validation,
        test_dataset=prepared.test,
        repository=repository,
        sources=lesson.sources,
        labels=lesson.labels,
    )
    on_main_process(trainer.check_card)
    beginning.check_checkpoint(trainer)
    used = beginning.as_used(arguments)
    if used is not arguments:
        left_out = {"teacher_model_name_or_path"} - lesson.sources.recipe.keys()
        recipe = {name: value for name, value in published_recipe(used).items() if name not in left_out}
        trainer.record.sources = replace(trainer.record.sources, recipe=recipe)
    if args.should_save:
        clear_beginnings(args.output_dir, keep=beginning.checkpoint)
        save_recipe(used, os.path.join(args.output_dir, RECIPE_FILE))
    trainer.train(resume_from_checkpoint=beginning.take_checkpoint())
    return _finish(trainer, lesson.teacher, start=start)


def _doubts(prepared: PreparedRun) -> list[str]:
    """See `Prospects.doubts`; none of a stream, whose images are not counted."""
    if not isinstance(prepared.views, ViewDataset):
        return []
    student, args = prepared.student, prepared.arguments.training
    trained = [parameter.numel() for parameter in student.parameters() if parameter.requires_grad]
    return Prospects(
        prepared.arguments,
        num_images=len(prepared.views),
        num_classes=student.config.num_labels,
        steps_per_epoch=steps_per_epoch(prepared.views, args),
        num_parameters=sum(trained),
        is_transformer=hasattr(student.config, "num_attention_heads"),
    ).doubts()


@dataclass
class _Lesson:
    """Who teaches a run, and under which arguments; see `_find_teacher`."""

    arguments: Arguments
    sources: RunSources
    teacher: AnyDescription | None = None
    labels: RunLabels | None = None


def _find_teacher(prepared: PreparedRun, source: LabelSource | None, *, resuming: bool, start: float) -> _Lesson:
    """The teacher that the arguments name, or one that is trained now, or none where kept labels take its place.

    Args:
        source: the label store that the arguments name, or None.
        resuming: whether the run is told to go on.
        start: of the run, as `time.perf_counter()`.

    Raises:
        InputError: there is none, or it does not fit.
    """
    arguments, args = prepared.arguments, prepared.arguments.training
    lesson = _Lesson(arguments, describe_sources(arguments, prepared.images, start=start))
    if args.distillation_type == "none":
        return lesson
    if source is not None:
        lesson.labels = source.of_run(
            prepared.views, prepared.processor, num_labels=prepared.student.config.num_labels, sources=lesson.sources
        )
    made = None
    if arguments.model.teacher_model_name_or_path is None:
        if lesson.labels is not None and _labels_suffice(lesson.labels):
            source.check_input_size(arguments.model.teacher_input_size)
            return lesson
        recipe, backbone = arguments.model.teacher_recipe, arguments.model.teacher_probe
        if recipe is None and backbone is None and source is not None:
            raise InputError(
                f"there are no labels in {source.name!r} yet, and there is no teacher to fill it: give "
                "--teacher_model_name_or_path (a Hub id or a folder), or another --teacher_labels"
            )
        if backbone is not None:
            folder, content = fit_teacher(backbone, prepared.images, arguments, resuming=resuming)
            made = words_of_probe(content)
        else:
            folder = train_teacher(recipe, prepared.images, arguments, resuming=resuming)
            made = words_of_trained(recipe, arguments)
        if args.should_save:  # from here on there is something to go on with; not before, for the refusals' sake
            save_recipe(arguments, os.path.join(args.output_dir, RECIPE_FILE))
        arguments = arguments._replace(model=replace(arguments.model, teacher_model_name_or_path=folder))
        # Accelerate keeps one state a process: the student's Trainer would inherit the teacher's precision.
        AcceleratorState._reset_state()
    lesson.teacher = replace(prepared, arguments=arguments).describe_teacher()
    model_args = with_templates(_with_commits(arguments.model, lesson.teacher), lesson.teacher)
    lesson.arguments = arguments._replace(model=model_args)
    lesson.sources = with_teacher(lesson.sources, lesson.arguments, lesson.teacher, made=made)
    return lesson


def _with_commits(model_args: ModelArguments, teacher: AnyDescription) -> ModelArguments:
    """The arguments that name a teacher, or several, with what they were resolved to."""
    if isinstance(teacher, EnsembleDescription):
        names = [member.pinned_name for member in teacher.members]
        return replace(model_args, teacher_model_name_or_path=names)
    return replace(model_args, teacher_revision=teacher.revision)


def _labels_suffice(labels: RunLabels) -> bool:
    """Whether kept labels take the teacher's place, where none is named.

    Raises:
        InputError: they are of other views, or must do and do not.
    """
    has_trained_teacher = os.path.isdir(os.path.join(labels.args.output_dir, TRAINED_TEACHER))
    suffice = on_main_process(lambda: labels.suffice(has_trained_teacher=has_trained_teacher))
    # What a store that must do lacks, the Trainer says.
    return suffice or labels.args.teacher_labels_readonly


def train_teacher(recipe: str | None, images: ImageData, student: Arguments, *, resuming: bool = False) -> str:
    """Trains a teacher on the same data, into the folder "teacher" of the student's output folder.

    Args:
        recipe: of the teacher; its arguments but for the data.
        images: the student's.
        student: the student's arguments, of which the seed and the device are taken over.
        resuming: whether the run is told to go on, so that a teacher that is there is its own.

    Returns:
        The folder, in the Hub's format. One that is complete from an earlier start of the run is taken as it is.

    Raises:
        InputError: there is no recipe; or the teacher that is there is another one.
        CheckpointError: something could not be written.
    """
    if recipe is None:
        raise InputError(
            "there is no teacher: give --teacher_model_name_or_path (a Hub id or a folder), or --teacher_probe (a "
            "backbone) or --teacher_recipe to make one of this data first, or --distillation_type none"
        )
    output_dir = student.training.output_dir
    folder, unfinished = (os.path.join(output_dir, name) for name in (TRAINED_TEACHER, UNFINISHED_TEACHER))
    line = ["--recipe", recipe, "--output_dir", unfinished, "--seed", str(student.training.seed)]
    for name in ("use_cpu", "disable_tqdm", "log_format", "log_level", "on_bad_image"):
        line += [f"--{name}", str(getattr(student.training, name))]
    with _told_of(f"the teacher_recipe {recipe!r}, in which its options stand"):
        arguments = resolve_arguments(line, images=replace(student.data, labels_kept=None))
    check_same_arguments(arguments)
    stated, args = arguments._replace(data=student.data), arguments.training
    if os.path.isdir(folder):
        check_same_labels(folder, images.id2label, "the teacher in")
        if not resuming:
            with _told_of(f"the teacher in {folder!r}, which --teacher_model_name_or_path takes as it is"):
                check_same_run(os.path.join(folder, RECIPE_FILE), stated)
            logger.warning("the teacher in %s is trained already: it is taken as it is", folder)
        return folder
    on_main_process(lambda: begin_teacher(output_dir))
    teacher, processor = make_student(arguments.model, images, args.seed)
    views, validation = fitted_to(teacher, processor, replace(images, unlabeled=None), args)
    trainer = DistillationTrainer(
        teacher, args, processing_class=processor, train_dataset=views, eval_dataset=validation
    )
    if trainer.log_table is not None:
        trainer.log_table.learner = "teacher"
    trainer.train()
    trainer.save_model()
    if args.should_save:
        save_recipe(stated, os.path.join(unfinished, RECIPE_FILE))
        with writing(f"the teacher to {folder!r}"):
            os.replace(unfinished, folder)
    trainer.accelerator.wait_for_everyone()
    return folder


@contextmanager
def _told_of(teacher: str) -> Iterator[None]:
    """Says whose refusals these are, as options of the command line are the student's."""
    try:
        yield
    except InputError as error:
        raise InputError(f"of {teacher}: {error}") from error


def _finish(trainer: DistillationTrainer, teacher: AnyDescription | None, *, start: float) -> RunResult:
    """Evaluates and saves what was trained, tests it, and pushes it; a push that fails loses nothing."""
    args, validation = trainer.args, trainer.eval_dataset
    trainer.pop_callback(LogTableCallback)  # the results have a table of their own
    stopped = early_end(args, trainer.state)
    metrics = {} if validation is None else trainer.evaluate()
    accuracies = _accuracies(trainer, metrics)
    with trainer.run_folder.writing("results", trainer.state.global_step):
        trainer.save_state()
        _save_metrics(trainer, metrics)
    tested = {}
    if trainer.test_dataset is not None:
        trainer.save_model(_internal_call=True)  # before a test image that cannot be decoded ends it
        tested = _test(trainer)
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
    kept, facts = trainer.kept_labels, trainer.run_facts(metrics)
    return RunResult(
        output_dir=args.output_dir,
        accuracies=accuracies,
        num_validation_images=metrics.get("eval_images", 0),
        test_accuracies=_accuracies_of_heads(trainer, tested, "test_"),
        num_test_images=tested.get("test_images", 0),
        images_per_second=trainer.step_record.images_per_second,
        skipped_images=len(trainer.skipped_images),
        minutes=(time.perf_counter() - start) / 60,
        weights=args.publish_weights,
        unanswered_views=facts.num_unanswered,
        served_top1=facts.served_top1,
        needs_code=facts.needs_code,
        fusion_note=note_on_fusion(facts.architecture, facts.fusion, args.output_dir),
        label_report=trainer.label_report,
        kept_in=None if kept is None or kept.store.readonly else args.teacher_labels,
        repository=None if trainer.repository is None else trainer.repository.url,
        push_failures=() if trainer.pushes is None else tuple(trainer.pushes.failures),
        publish_error=publish_error,
        evaluation=_evaluation(trainer, teacher),
        early_end=stopped,
    )


def _test(trainer: DistillationTrainer) -> dict[str, float]:
    """What the saved weights get right on the test images: measured once, also if the run is taken up at its end."""
    folder, trained = trainer.args.output_dir, trainer.step_record.images_per_second > 0
    of_what = {
        "test_fingerprint": images_of(trainer.test_dataset)["fingerprint"],
        "test_step": trainer.record.published_step(trainer.state),
        "test_weights": trainer.args.publish_weights,
    }
    known = on_main_process(lambda: None if trained else _known_results(folder, of_what))
    if known is not None:
        trainer.record.note_test(known)
        tested = known
    else:
        tested = trainer.test()
    with trainer.run_folder.writing("results", trainer.state.global_step):
        trainer.save_metrics("test", {**tested, **of_what})
    return tested


def _known_results(folder: str, of_what: Mapping[str, Any]) -> dict[str, float] | None:
    """The results of a test that an earlier process of the run has made of the same weights and images, or None."""
    try:
        found = read_json(os.path.join(folder, "test_results.json"))
    except (OSError, ValueError):
        return None
    is_same = found.items() >= of_what.items() and "test_images" in found
    return {name: value for name, value in found.items() if name not in of_what} if is_same else None


def _evaluation(trainer: DistillationTrainer, teacher: AnyDescription | None) -> str:
    """The command that evaluates a run's model in full, on the images that its recipe names, beside its teachers."""
    line = ["--model", trainer.args.output_dir]
    names = [] if teacher is None else names_to_compare(teacher)
    if names[1:]:
        line += ["--compare", *names[1:]]
    if names:
        line += ["--teacher", names[0]]
    if trainer.eval_dataset is None and trainer.test_dataset is None:
        line += ["--images_dir", "FOLDER"]
    return command("evaluate", *line)


def _save_metrics(trainer: DistillationTrainer, metrics: dict[str, float]) -> None:
    if trainer.is_world_process_zero():  # transformers reads what is there, of which a killed run may have left a part
        with suppress(FileNotFoundError):
            os.remove(os.path.join(trainer.args.output_dir, "all_results.json"))
    trainer.save_metrics("eval", metrics)


def _accuracies(trainer: DistillationTrainer, metrics: dict[str, float]) -> dict[str, float]:
    """The rows of the table: what the teacher, each head and the published model get right."""
    if not metrics:
        return {}
    accuracies = {}
    if trainer.teacher is not None:
        together = trainer.evaluate_teacher()
        if isinstance(trainer.teacher, TeacherEnsemble):
            for number, name in enumerate(trainer.teacher.description.short_names, 1):
                accuracies[f"teacher {name}"] = trainer.record.teacher_report[f"teacher_top1_of_{number}"]
        accuracies["teachers together" if accuracies else "teacher"] = together
    for average, suffix in (("", ""), ("ema_", ", averaged")):
        accuracies |= _accuracies_of_heads(trainer, metrics, f"eval_{average}", suffix)
    return accuracies


def _accuracies_of_heads(
    trainer: DistillationTrainer, metrics: Mapping[str, float], prefix: str, suffix: str = ""
) -> dict[str, float]:
    """Top-1 of each head by its words, of metrics with a prefix."""
    accuracies = {}
    for head in (CLASS, DISTILLATION):
        if f"{prefix}{head.prefix}top1" in metrics:
            accuracies[f"{head.words}{suffix}"] = metrics[f"{prefix}{head.prefix}top1"]
    if f"{prefix}top1" in metrics:
        single = "model" if trainer.args.distillation_type == "none" else "student"
        whole = _words_of_answer(trainer) if accuracies else single
        accuracies[f"{whole}{suffix}"] = metrics[f"{prefix}top1"]
    if f"{prefix}{PLAIN.prefix}top1" in metrics:
        accuracies[f"transformers alone{suffix}"] = metrics[f"{prefix}{PLAIN.prefix}top1"]
    return accuracies


def _words_of_answer(trainer: DistillationTrainer) -> str:
    words = words_of_answer(getattr(trainer.model.config, "fusion", None))
    return "fused" if words == FUSED.words else words


def main(arguments: Sequence[str]) -> int:
    """Runs the command and prints what came of it; see `run_command` for the exit status."""
    again = "stopped: the same command with --resume_from_checkpoint true goes on"
    return run_command(_train, arguments, if_interrupted=again)


def _train(arguments: Sequence[str]) -> int:
    parser = RunParser(
        "train",
        "Distils a model from a teacher, or trains one from labels alone (--distillation_type none).",
        examples=[
            "hf-deit train                                    (digits, on any CPU, in minutes)",
            "hf-deit train --recipe own_images --train_dir images/train --teacher_model_name_or_path NAME",
            "hf-deit train --recipe zero_shot --unlabeled_dir photos --class_names cat dog "
            "--teacher_model_name_or_path openai/clip-vit-base-patch32",
            "hf-deit launch train --recipe deit_tiny_distilled",
        ],
        writes_output=True,
    )
    _, rest = parser.parse_run(arguments)
    run_arguments = resolve_arguments(rest)
    try:
        result = run(run_arguments)
    except KeyboardInterrupt:
        folder = run_arguments.training.output_dir
        if is_begun(folder):
            raise
        raise KeyboardInterrupt(
            "stopped before there was anything to go on with: the same command begins anew"
        ) from None
    if PartialState().is_main_process:
        _print_result(result)
    return 0 if result.publish_error is None else STATUS_OF_PUBLISHING


def _print_result(result: RunResult) -> None:
    for failure in result.push_failures:
        print(f"push failed: {failure}", file=sys.stderr)
    model = "The model with averaged weights" if result.weights == "ema" else "The model"
    note = "" if result.fusion_note is None else f"{result.fusion_note}\n"
    answers = "" if result.served_top1 is None else f", with a top-1 of {result.served_top1:.4f}"
    if result.early_end is not None:
        print(f"\nThe run {result.early_end}.")
    print(
        f"\n{result}\n\n{model} lies in {result.output_dir}. {note}A report on it is made by:\n\n{result.evaluation}"
    )
    print(f"\nTo use it{answers}:\n\n{result.usage}")
    if result.kept_in is not None:
        print(
            f"\nThe teacher's labels lie in {result.kept_in}: --teacher_labels {shlex.quote(result.kept_in)} "
            "replays them."
        )
    if result.publish_error is not None:
        print(f"\nerror: {result.publish_error}", file=sys.stderr, flush=True)
    elif result.repository is not None:
        print(f"\nIt is published at {result.repository}.")
