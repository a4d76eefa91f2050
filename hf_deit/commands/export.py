"""`hf-deit export`: a classifier in other formats, with the proof that it answers there as it does here."""

import os
from collections.abc import Sequence
from math import isnan
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from ..errors import InputError, counted, shortlist
from ..evaluation.arguments import EvaluationArguments
from ..evaluation.classifiers.classifiers import label_order
from ..evaluation.images.images import EvaluationImages, load_evaluation_images
from ..export.arguments import ExportArguments
from ..export.exported_folder import check_replaceable
from ..export.exporting import Exported, Int8, export, require_formats
from ..export.formats import BY_NAME
from ..export.parity.comparison import report_in_words
from ..export.programs.source import ExportSource, load_source
from ..hub.exports_in_card import lines_for_a_folder
from ..hub.files import no_empty_folders
from ..hub.run_folder import RECIPE_FILE, step_of
from ..models.single_teacher import size_in_words
from .command_line import run_command
from .evaluated_images import images_to_evaluate
from .export_options import read_options

logger = logging.get_logger(__name__)

_PURPOSES = {
    "classifier": "takes images, gives probabilities",
    "model": "takes pixel_values, gives logits",
    "support": "goes with it",
}
_IN_WORDS = {"float32": "float32", "int8-dynamic": "int8, dynamic", "int8-static": "int8, static"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_export, arguments, if_interrupted="stopped: nothing was exported")


def _export(command: Sequence[str]) -> int:
    arguments = read_options(command)
    folder = arguments.folder
    require_formats(arguments.formats)
    check_replaceable(folder, arguments.formats)
    if arguments.check_dir is not None and not os.path.isdir(os.path.expanduser(arguments.check_dir)):
        raise InputError(f"--check_dir: there is no folder {arguments.check_dir!r}")
    if PartialState(cpu=True).num_processes > 1:
        raise InputError("an export is made by one process: run hf-deit export without a launcher")
    source = load_source(arguments.model, weights=arguments.weights)
    images = _images(arguments, source)
    with no_empty_folders(folder):
        done = export(
            source,
            folder,
            arguments.formats,
            images=images,
            most_images=arguments.check_images,
            int8=_int8(arguments, source),
            say=lambda words: print(words, flush=True),
        )
    for exported in done:
        print(f"\n{_in_words(exported, source)}")
    return 0


def _int8(arguments: ExportArguments, source: ExportSource) -> Int8 | None:
    if arguments.int8 is None:
        return None
    from ..export.programs.quantization import QuantizationSettings, quantize
    from ..export.programs.sensitivity import layers_to_exclude
    from .calibration_images import calibration_of

    settings = QuantizationSettings(arguments.int8, tuple(arguments.exclude_layers))
    calibration = None
    if arguments.int8 == "static":
        calibration = calibration_of(source, arguments.model, arguments.calibration_dir, check_dir=arguments.check_dir)

    def costly(images: EvaluationImages) -> dict[str, Any]:
        found = layers_to_exclude(source, calibration, settings, images)
        remaining = None if isnan(found.remaining) else found.remaining
        return {"layers_to_exclude": list(found.layers), "remaining_cost": remaining, "suffices": found.suffices}

    return Int8(
        precision=f"int8-{arguments.int8}",
        quantize=lambda folder, name: quantize(source, folder, name, calibration, settings),
        layers_to_exclude=costly,
    )


def _images(arguments: ExportArguments, source: ExportSource) -> EvaluationImages | None:
    """The images that the export is proven on beside the built-in ones, if there are any."""
    which = EvaluationArguments(model=arguments.model, weights=arguments.weights, on_bad_image="skip")
    if arguments.check_dir is not None:
        return _of_check_dir(os.path.expanduser(arguments.check_dir), which, source)
    model = os.path.normpath(os.path.expanduser(arguments.model))
    run = os.path.dirname(model) if step_of(model) is not None else model
    if not os.path.isfile(os.path.join(run, RECIPE_FILE)):
        return None
    try:
        which = EvaluationArguments(**{**vars(which), "split": "validation"})
        return images_to_evaluate(which, model_labels=lambda: source.labels)
    except InputError as error:
        logger.warning("the export is proven on built-in images alone, as %s: --check_dir names others", error)
        return None


def _of_check_dir(folder: str, which: EvaluationArguments, source: ExportSource) -> EvaluationImages:
    try:
        which = EvaluationArguments(**{**vars(which), "images_dir": folder})
        images = load_evaluation_images(which, model_labels=lambda: source.labels)
        label_order(images.labels.names, dict(enumerate(source.labels)))  # are they its classes?
        return images
    except InputError as error:
        raise InputError(
            f"the images of --check_dir cannot be used: {error}; or give a folder that holds images alone, without "
            "folders of classes, to check it without labels"
        ) from error


def _in_words(exported: Exported, source: ExportSource) -> str:
    """What was exported, where it lies, how it was proven and how it is used."""
    record, format = exported.record, BY_NAME[exported.record.format]
    lines = [
        f"{source.classifier.name} ({record.model['architecture']}, {counted(len(record.labels), 'label')}, "
        f"{size_in_words(source.preprocessing.input_size)} pixels) → {exported.folder}"
        + (", in the place of an earlier export" if exported.replaced else "")
    ]
    width = max(len(file.name) for file in record.files)
    for file in record.files:
        lines.append(f"  {file.name:<{width}}  {_size(file.num_bytes):>9}  {_PURPOSES[file.purpose]}")
    for parity in record.parity:
        without = "without torch" if parity.without_torch else "without transformers and timm"
        lines.append(f"proof ({_IN_WORDS[parity.precision]}, in a process {without}):")
        lines += [f"  {line}" for line in report_in_words(parity).splitlines()]
        if parity.left_out:
            names = shortlist((f"{name}: {why}" for name, why in parity.left_out.items()), 3, "; ")
            lines.append(f"  left out, as they cannot be decoded: {counted(len(parity.left_out), 'image')} ({names})")
        facts = record.quantization.get(parity.precision, {})
        if layers := facts.get("layers_to_exclude"):
            left = f"{100 * facts['remaining_cost']:.2f} points remain" if facts["suffices"] else "which is not enough"
            lines.append(f"  leave the layers that cost most in float32: --exclude_layers {' '.join(layers)} ({left})")
        elif "layers_to_exclude" in facts:
            lines.append("  no layer is named, as the same costs little in ONNX Runtime, where layers are measured")
    also = f", {format.quantized} likewise" if any(file.name == format.quantized for file in record.files) else ""
    lines.append(f"use (pip install {format.runtime.packages[0]} numpy pillow){also}:")
    usage = lines_for_a_folder(record.format, exported.folder, format.classifier)
    lines += [f"  {line}".rstrip() for line in usage.splitlines()]
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.1f} kB"
