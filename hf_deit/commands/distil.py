"""`hf-deit distil`: from a folder of images to a classifier, by the other commands, one after the other.

They are called in this process: what kills it leaves none behind that goes on writing, Ctrl-C reaches the one at work
as it does by hand, and the libraries are loaded once.
"""

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate.state import AcceleratorState

from ..data.image_data import ImageData
from ..errors import InputError, counted, shortlist
from ..evaluation.probe.backbone import describe_backbone
from ..hub.files import no_empty_folders, write_whole, writing
from ..hub.repository import check_repository
from ..hub.revisions import declared_license
from ..hub.run_folder import CARD_FILE
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from ..recipes.resolve import Arguments, resolve_arguments
from ..recipes.sameness import TRAINED_TEACHER
from ..recipes.uses import check_uses
from ..training.processes import holding
from .command_line import run_command
from .distilling.estimate import in_words, seconds_of_stages
from .distilling.images import Found, look_at
from .distilling.options import DistilOptions, read_options
from .distilling.readme import make_readme
from .distilling.stages import MODEL, Record, Stage, resuming, run_stages, stages_of, train_line
from .distilling.teacher import TeacherChoice, choose_teacher
from .prepare import PreparedRun
from .sources import names_to_compare
from .zero_shot import check_names, check_told, names_without_labels

_AGAIN = "stopped: the same command goes on where it was"


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status, which is the first stage's that fails."""
    return run_command(_distil, arguments, if_interrupted=_AGAIN)


def _distil(command_line: Sequence[str]) -> int:
    options = read_options(command_line)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "hf-deit distil runs in one process: start it without a launcher. It prints its line of train: launch "
            "that one on several devices (hf-deit launch train …), and distil goes on with what it has left"
        )
    record = Record(options)
    found = look_at(options)
    print(f"{found}\n", flush=True)
    record.check_images(found.fingerprint)
    teacher = choose_teacher(options, found, record.teacher)
    line = train_line(options, found, teacher)
    arguments = resolve_arguments(resuming(Stage("train", "", line), options.output_dir).options)
    check_uses(arguments)
    _check_broken(arguments, found)
    names = _names_of_classes(arguments, found)
    compared = _compared(arguments, options, names, teacher)
    stages = stages_of(options, found, teacher, compared)
    if options.hub_model_id and not options.dry_run:
        later = "or leave --hub_model_id out and publish the model later, with hf-deit publish"
        check_repository(options.hub_model_id, private=options.hub_private_repo or None, instead=later)
    print(_plan(found, teacher, stages, arguments, record), flush=True)
    return 0 if options.dry_run else _run(options, found, teacher, stages, record)


def _check_broken(arguments: Arguments, found: Found) -> None:
    """Refuses images that cannot be used, unless they are to be skipped, as train will."""
    faults = {path: why for part in found.parts for path, why in part.faults.items()}
    if faults and arguments.training.on_bad_image == "stop":
        named = shortlist((f"{path} ({why})" for path, why in faults.items()), 3)
        raise InputError(
            f"{counted(len(faults), 'file')} cannot be used: {named}. Mend or remove them, or skip them: -- "
            "--on_bad_image skip"
        )


def _names_of_classes(arguments: Arguments, found: Found) -> list[str] | None:
    """The classes, in the order of their labels; None of a data set that is not here yet.

    Raises:
        InputError: nobody says them, or they are said twice and otherwise.
    """
    check_told(arguments)
    names = found.label_names if found.are_labelled else names_without_labels(arguments.model, None)
    if names is not None:
        check_names(arguments.model, names)
    return names


def _compared(
    arguments: Arguments, options: DistilOptions, names: list[str] | None, teacher: TeacherChoice
) -> list[str]:
    """The teachers that hf-deit evaluate can ask beside the student; one that cannot teach is refused.

    Of those that are given, all is read but their weights. A zero-shot model has no classes in its files, so that
    evaluate could not ask it.

    Raises:
        InputError: it cannot teach these classes.
    """
    if teacher.kind == "probe":
        describe_backbone(teacher.names[0])
    if teacher.kind in ("probe", "recipe"):
        return [os.path.join(options.output_dir, MODEL, TRAINED_TEACHER)]
    if teacher.kind == "none" or names is None:
        return []
    run = PreparedRun(
        arguments,
        ImageData(None, None, names),
        student=None,
        processor=DistilledDeiTImageProcessor(),
        views=None,
        validation=None,
    )
    return names_to_compare(run.describe_teacher())


def _plan(found: Found, teacher: TeacherChoice, stages: Sequence[Stage], arguments: Arguments, record: Record) -> str:
    """What will be done, in words, with how long it takes."""
    trainings = [arguments]
    if teacher.kind == "recipe":
        line = ["--recipe", teacher.names[0], "--use_cpu", str(arguments.training.use_cpu)]
        trainings.append(resolve_arguments(line, images=replace(arguments.data, labels_kept=None)))
    asked = teacher.names if teacher.kind in ("given", "probe") else ()
    seconds = seconds_of_stages(trainings, found, asked, is_probe=teacher.kind == "probe")
    rows = []
    for number, stage in enumerate(stages, start=1):
        is_done = not stage.left_out and record.is_done(stage)
        time_of = "left out" if stage.left_out else "done before" if is_done else in_words(seconds.get(stage.name))
        rows.append((f"{number} {stage.name}", time_of, stage.left_out or stage.purpose))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {took:<{widths[1]}}  {words}" for name, took, words in rows]
    model = arguments.model.student
    pixels = arguments.model.image_size or (arguments.model.student_overrides or {}).get("image_size")
    size = f" at {pixels} pixels" if pixels else ""
    return (
        f"teacher: {teacher}\nstudent: {model}{size}\nplan, with rough times (training tells them as measured):\n"
        + "\n".join(lines)
    )


def _run(options: DistilOptions, found: Found, teacher: TeacherChoice, stages: Sequence[Stage], record: Record) -> int:
    folder = options.output_dir
    with no_empty_folders(folder), holding(folder):
        record.begin(teacher.options)
        statuses = run_stages(
            stages, record, folder, run=_in_this_process, say=lambda words: print(words, flush=True), clock=time.time
        )
        if os.path.isfile(os.path.join(folder, MODEL, "config.json")):
            text = make_readme(options, found, teacher, stages, record, licence_of=declared_license)
            with writing(f"to the output folder {folder!r}"):
                write_whole(text, os.path.join(folder, CARD_FILE))
    failed = {name: status for name, status in statuses.items() if status}
    if failed:
        print(f"\nnot done: {shortlist(failed)}. Mended, the same command goes on there", flush=True)
        return next(iter(failed.values()))
    print(f"\nAll lies in {folder}; {os.path.join(folder, CARD_FILE)} says what was done, and how to use it.")
    return 0


def _in_this_process(line: Sequence[str]) -> int:
    """Runs a command as its user does, in libraries that know nothing of the one before."""
    from .main import main as run

    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=True)
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return run(line)
