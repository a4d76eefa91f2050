"""`hf-deit probe`: a linear classifier on the features of a backbone, and what it is worth."""

import os
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from ..data.image_data import ImageData
from ..data.load import load_data
from ..errors import InputError, command, printable, shortlist
from ..evaluation.answers.asking import Asking
from ..evaluation.images.images import EvaluationImages
from ..evaluation.probe.arguments import PROBE_FILE, ProbeArguments
from ..evaluation.probe.backbone import describe_backbone
from ..evaluation.probe.card import in_words
from ..evaluation.probe.probe import (
    UNFINISHED,
    Settings,
    check_labels,
    fit_probe,
    identity_of,
    images_of_rows,
    read_probe,
    save_probe,
    say_how_long,
)
from ..hub.environment import describe_environment
from ..hub.files import is_leftover, no_empty_folders
from ..hub.run_lock import is_lock_file
from ..training.hardware import use_cpu_of
from ..training.overview import titled_lines
from ..training.processes import holding, on_every_process, on_main_process, once_per_machine
from .command_line import run_command
from .probe_options import read_options


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_probe, arguments, if_interrupted="stopped: the same command goes on where it was")


def _probe(line: Sequence[str]) -> int:
    arguments = read_options(line)
    PartialState(cpu=use_cpu_of(arguments))
    with no_empty_folders(arguments.folder), holding(arguments.folder):
        about = probe(arguments)
    if about is not None:
        print(f"\n{printable_lines(in_words(about))}\n\nThe classifier lies in {arguments.folder}. It teaches with")
        print(f"\n{command('train', '--teacher_model_name_or_path', arguments.folder)} …")
    return 0


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def probe(arguments: ProbeArguments) -> dict[str, Any] | None:
    """Fits a probe and writes its folder; one that is there already is taken as it is. All processes must call it.

    Returns:
        What it is worth, the content of `PROBE_FILE`, in the main process; None in the others.

    Raises:
        InputError: the backbone or the images cannot be used, or the folder holds something else.
        CheckpointError: something could not be written.
    """
    device = PartialState(cpu=use_cpu_of(arguments)).device
    folder = arguments.folder
    on_main_process(lambda: _check_folder(folder))
    description = on_every_process(lambda: describe_backbone(arguments.backbone))
    data = load_data(
        arguments.data,
        on_bad_image=arguments.on_bad_image,
        check_images=arguments.check_images,
        once_per_machine=once_per_machine,
        holds_out=False,
    )
    learnt = data.with_labels_kept(arguments.labels_kept, arguments.seed)
    images = images_of_rows(learnt.train, data.label_names, words="to fit the probe on")
    check_labels(images.labels.values, data.label_names, arguments.folds)
    others = _held_out(data)
    settings = Settings(arguments.is_mirrored, arguments.corner_crops, arguments.folds, arguments.seed)
    identity = identity_of(description, images, settings, held_out=others)
    there = on_main_process(lambda: None if arguments.overwrite else read_probe(folder))
    if there is not None:
        if there["identity"] != identity:
            raise InputError(
                f"the folder {folder!r} holds another probe: give another --output_dir, or --overwrite to replace it"
            )
        return there if PartialState().is_main_process else None
    asking = Asking(
        os.path.join(folder, UNFINISHED, "features"),
        device,
        arguments.batch_size,
        arguments.num_workers,
        arguments.on_bad_image,
    )
    backbone = on_every_process(lambda: description.load(data.id2label, device))
    if PartialState().is_main_process:
        about = describe_environment(device_type=device.type)["device"]
        rows = [
            ("images", f"{images.words}, {len(data.label_names):,} classes"),
            (
                "backbone",
                f"{description.name_or_path}, {description.architecture}, {backbone.num_features:,} features",
            ),
            ("device", about),
            ("time", say_how_long(backbone, images, settings)),
            ("folder", folder),
        ]
        print(f"{titled_lines(rows)}\n", flush=True)
    found = fit_probe(backbone, images, asking, settings, held_out=others)
    on_main_process(lambda: None if found is None else save_probe(backbone, {"identity": identity, **found}, folder))
    return found


def _held_out(data: ImageData) -> dict[str, EvaluationImages]:
    parts = {"validation": data.validation, "test": data.test}
    return {
        name: images_of_rows(dataset, data.label_names, words=f"of the {name} set")
        for name, dataset in parts.items()
        if dataset is not None
    }


def _check_folder(folder: str) -> None:
    """Refuses a folder that holds what no probe has written.

    Raises:
        InputError: names it.
    """
    if not os.path.isdir(folder) or os.path.isfile(os.path.join(folder, PROBE_FILE)):
        return
    others = [
        entry.name
        for entry in os.scandir(folder)
        if entry.name != UNFINISHED and not is_lock_file(entry.name) and not is_leftover(entry.path)
    ]
    if others and not os.path.isdir(os.path.join(folder, UNFINISHED)):
        raise InputError(
            f"the output folder {folder!r} holds what is of no probe ({shortlist(sorted(others))}): give another "
            "--output_dir, or move that away"
        )
