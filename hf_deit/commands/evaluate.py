"""`hf-deit evaluate`: what models do on images: measured, compared and explained, in one report."""

import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils import logging

from ..errors import InputError, counted, shortlist
from ..evaluation.accuracy.accuracy import accuracy_section, top_accuracy
from ..evaluation.accuracy.calibration import calibration_section
from ..evaluation.agreement.agreement import agreement_section, teacher_section
from ..evaluation.agreement.mistakes import mistakes_section
from ..evaluation.answers.asking import Asking, ask_all
from ..evaluation.answers.stored_answers import ANSWERS_FOLDER, StoredAnswers, kept_size
from ..evaluation.arguments import EvaluationArguments
from ..evaluation.attention.attention import attention_section
from ..evaluation.attention.tokens import tokens_section
from ..evaluation.classifiers.classifiers import (
    Classifier,
    ClassifierDescription,
    Showing,
    describe_classifiers,
    labels_of,
)
from ..evaluation.images.images import EvaluationImages, without_place
from ..evaluation.report.report import MARKDOWN_FILE, PAGE_FILE, write_report
from ..evaluation.run_curves import run_curves_section
from ..evaluation.sections import Section
from ..evaluation.speed.speed import speed_section
from ..hub.environment import describe_environment
from ..hub.files import no_empty_folders
from ..hub.report_in_card import RESULTS_FILE, preprocessing_digest
from ..training.hardware import use_cpu_of
from ..training.processes import holding, on_every_process, on_main_process
from .command_line import run_command
from .evaluate_options import read_options
from .evaluated_images import images_to_evaluate
from .evaluation_in_words import evaluation_in_words, results_in_words

logger = logging.get_logger(__name__)

_MEASURING = ("scikit-learn", "scipy", "matplotlib")  # libraries that make numbers and pictures of answers
# Why a section that was asked for is not there.
_WHY_NOT = {
    "accuracy": "none of the images has a label",
    "calibration": "none of the images has a label",
    "agreement": "it takes two models, or two heads: give --compare or --teacher",
    "mistakes": "there are no images to show",
    "tokens": "none of the models has a distillation token",
    "attention": "the model is no DeiT, ViT or CaiT, or none of the images can be shown",
    "speed": "there is no model",
}


@dataclass(frozen=True)
class Evaluated:
    """What the sections of a report are made of.

    Attributes:
        images: without those that cannot be decoded.
        models: the evaluated one, perhaps as two of raw and averaged weights, then those that it is compared with,
            then the teacher.
        answers: of each of them, to these images.
        teacher: the name of the teacher among them, or None.
        skipped: images that are left out of every number, by name, and why.
    """

    images: EvaluationImages
    models: Sequence[ClassifierDescription]
    answers: Sequence[StoredAnswers]
    teacher: str | None
    skipped: dict[str, str]


def evaluate(arguments: EvaluationArguments) -> Evaluated:
    """Loads images and models, and lets the models answer; what is kept of an evaluation that was stopped is taken.

    All processes must call it.

    Raises:
        InputError: the images or a model cannot be used, or do not go together.
        CheckpointError: answers cannot be written.
    """
    device = PartialState(cpu=use_cpu_of(arguments)).device
    images = images_to_evaluate(arguments, model_labels=lambda: labels_of(arguments.model, arguments.weights))
    if not len(images):
        raise InputError(f"there are no images to evaluate on: {images.words}")
    for row in arguments.explain_rows:
        if images.index_of(row) is None:
            raise InputError(f"--explain_rows: there is no row {row} among {images.words}, or it is left out")
    names = [arguments.model, *arguments.compare, *([arguments.teacher] if arguments.teacher else [])]
    shown = Showing(arguments.image_size, arguments.crop_ratio, arguments.dtype)
    models = on_every_process(
        lambda: describe_classifiers(
            names,
            images.labels.names,
            class_indices=images.class_indices,
            weights=arguments.weights,
            shown=shown,
        )
    )
    on_main_process(lambda: _say_what_is_measured(models, images, arguments))
    asking = Asking(arguments.report_dir, device, arguments.batch_size, arguments.num_workers, arguments.on_bad_image)
    answers = ask_all(models, images, asking)
    skipped = on_main_process(lambda: _skipped_by_any(answers))
    if len(skipped) == len(images):
        raise InputError(f"none of the images can be decoded: {images.words}")
    named = {images.name(row): why for row, why in skipped.items()}
    if skipped:
        left_out = np.zeros(len(images), dtype=bool)
        left_out[list(skipped)] = True
        words = f"{images.words}, of which {counted(len(skipped), 'image')} cannot be decoded"
        images, answers = images.without(left_out), [answer.without(left_out) for answer in answers]
        images = replace(images, words=words)
    return Evaluated(images, models, answers, models[-1].name if arguments.teacher else None, named)


def _skipped_by_any(answers: Sequence[StoredAnswers]) -> dict[int, str]:
    """Why images are left out, by their rows: one that a model was asked about earlier may have been whole then."""
    found = {row: why for one in answers for row, why in one.skipped().items()}
    return dict(sorted(found.items()))


def sections_of(
    evaluated: Evaluated | None, curves: Section | None, arguments: EvaluationArguments, device: Any
) -> Iterator[Section]:
    """The sections that a report shall have, in their order.

    Args:
        evaluated: None where there are runs alone.
        curves: of runs.
        device: that models are put on where they are looked into again.
    """
    about_models = ()
    if evaluated is not None:
        about_models = chain(_of_answers(evaluated, arguments), _of_models(evaluated, arguments, device))
    for name, section in about_models:
        if section is not None:
            yield section
        elif arguments.asks_for(name):
            logger.warning("the section %s is left out: %s", name, _WHY_NOT[name])
    if curves is not None:
        yield curves


def _of_answers(evaluated: Evaluated, arguments: EvaluationArguments) -> Iterator[tuple[str, Section | None]]:
    """What the models have answered, by section."""
    images, answers, teacher = evaluated.images, evaluated.answers, evaluated.teacher
    labels, first = images.labels, answers[0]
    own = first.verdicts(first.rule)
    taught = None if teacher is None else answers[-1].verdicts(answers[-1].rule)
    if arguments.wants("accuracy"):
        yield "accuracy", accuracy_section(answers, labels, teacher=teacher, images=images.words)
    if arguments.wants("calibration"):
        yield "calibration", calibration_section(answers, labels, teacher=teacher)
    if arguments.wants("agreement"):
        yield "agreement", agreement_section(answers, labels)
        if taught is not None:
            yield "agreement", teacher_section(own, taught, images)
    if arguments.wants("mistakes"):
        yield "mistakes", mistakes_section(own, images, teacher=taught, features=first.features_chunks)


def _of_models(
    evaluated: Evaluated, arguments: EvaluationArguments, device: Any
) -> Iterator[tuple[str, Section | None]]:
    """What the models do inside, and how fast, by section."""
    images, models, answers = evaluated.images, evaluated.models, evaluated.answers

    @cache  # each section looks into the first model; of the others, which may be many, one is held at a time
    def first() -> Classifier:
        return models[0].load(device)

    def loaded(model: ClassifierDescription) -> Classifier:
        return first() if model is models[0] else model.load(device)

    if arguments.wants("tokens"):
        with_two_heads = (loaded(model) for model in models if model.fusion)
        yield "tokens", tokens_section(with_two_heads, images, seed=arguments.seed)
    if arguments.wants("attention"):
        own = answers[0].verdicts(answers[0].rule)
        chosen = [images.index_of(row) for row in arguments.explain_rows]
        yield (
            "attention",
            attention_section(
                first(),
                images,
                verdicts=own,
                indices=[index for index in chosen if index is not None] if chosen else None,
                num_images=arguments.explain_images or 6,
                seed=arguments.seed,
                per_head=arguments.attention_heads,
            ),
        )
    if arguments.wants("speed"):
        accuracies = {}
        if images.labels.is_labelled.any():
            accuracies = {one.model: top_accuracy(one.verdicts(one.rule), images.labels) for one in answers}
        yield (
            "speed",
            speed_section(
                [loaded(model) for model in models],
                accuracies=accuracies,
                teacher=evaluated.teacher,
                batch_size=arguments.speed_batch_size,
            ),
        )


def _with_note(section: Section, skipped: dict[str, str]) -> Section:
    """A section that says first which images are left out of every number of the report."""
    if not skipped:
        return section
    note = (
        f"Left out of every number of this report, as they cannot be decoded: {counted(len(skipped), 'image')} "
        f"({shortlist(skipped)})."
    )
    return replace(section, text=(note, *section.text))


def provenance_of(
    evaluated: Evaluated | None, arguments: EvaluationArguments, command: Sequence[str]
) -> dict[str, Any]:
    """Where the numbers of a report come from, of JSON's types."""
    state = PartialState()
    about: dict[str, Any] = {
        "command": shlex.join(["hf-deit", "evaluate", *command]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": arguments.seed,
        "environment": describe_environment(
            num_processes=state.num_processes, device_type=state.device.type, libraries=_MEASURING
        ),
    }
    if evaluated is not None:
        about["images"] = {**evaluated.images.source, "words": evaluated.images.words}
        about["skipped_images"] = evaluated.skipped
        about["batch_size"] = arguments.batch_size
        settings = {name: getattr(arguments, name) for name in ("image_size", "crop_ratio")}
        settings["dtype"] = None if arguments.dtype == "float32" else arguments.dtype
        about["settings"] = {name: value for name, value in settings.items() if value is not None}
        about["models"] = [
            {
                "name": model.name,
                **model.origin,
                "name_or_path": without_place(model.origin["name_or_path"]),
                "version": model.version,
                "preprocessing": None if model.revision else preprocessing_digest(model.weights.processor_folder),
            }
            for model in evaluated.models
        ]
    return about


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_evaluate, arguments, if_interrupted="stopped: the same command goes on where it was")


def _evaluate(command: Sequence[str]) -> int:
    arguments = read_options(command)
    arguments = replace(arguments, output_dir=arguments.report_dir)
    PartialState(cpu=use_cpu_of(arguments))
    with no_empty_folders(arguments.report_dir), holding(arguments.report_dir):
        # First, as folders without a run are refused.
        curves = on_main_process(lambda: run_curves_section(arguments.runs)) if arguments.runs else None
        evaluated = evaluate(arguments) if arguments.model is not None else None
        if PartialState().is_main_process:  # which the others, who have nothing more to do, need not wait for
            _report(evaluated, curves, arguments, command)
    return 0


def _report(
    evaluated: Evaluated | None, curves: Section | None, arguments: EvaluationArguments, command: Sequence[str]
) -> None:
    """Writes the report, and says what it is about."""
    folder = arguments.report_dir
    found = sections_of(evaluated, curves, arguments, PartialState().device)
    bar = tqdm(found, desc="report, sections done", bar_format="{desc}: {n_fmt} [{elapsed}]", delay=2)
    sections = list(bar)
    if not sections:
        raise InputError(
            f"none of the sections {', '.join(arguments.sections) or 'asked for'} says anything of these models and "
            "images: leave --sections out for all that there are"
        )
    if evaluated is not None:
        sections[0] = _with_note(sections[0], evaluated.skipped)
    write_report(folder, sections, provenance_of(evaluated, arguments, command))
    if results := results_in_words(sections):
        print(f"\n{results}")
    if evaluated is not None:
        if evaluated.skipped:
            print(
                "\nleft out of every number, as they cannot be decoded: "
                f"{counted(len(evaluated.skipped), 'image')} ({shortlist(evaluated.skipped)})"
            )
        _say_of_answers(folder, is_dropped=arguments.drop_answers)
    print(f"\nThe report: {os.path.join(folder, PAGE_FILE)}\n({MARKDOWN_FILE} and {RESULTS_FILE} lie beside it)")


def _say_what_is_measured(
    models: Sequence[ClassifierDescription], images: EvaluationImages, arguments: EvaluationArguments
) -> None:
    teacher = models[-1].name if arguments.teacher else None
    device = describe_environment(device_type=PartialState().device.type)["device"]
    words = evaluation_in_words(
        models,
        images=images.words,
        teacher=teacher,
        device=f"{device}, {arguments.dtype}",
        folder=arguments.report_dir,
    )
    print(f"{words}\n", flush=True)


def _say_of_answers(folder: str, *, is_dropped: bool) -> None:
    if is_dropped:
        shutil.rmtree(os.path.join(folder, ANSWERS_FOLDER), ignore_errors=True)
        return
    size = kept_size(folder) / 1e6
    if size >= 1:
        print(
            f"\nThe models' answers are kept in {os.path.join(folder, ANSWERS_FOLDER)} ({size:,.0f} MB): other\n"
            "sections and comparisons need not ask them again. --drop_answers removes them."
        )
