"""The options of `hf-deit evaluate`. Loads no library: a slip of the pen is told at once."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from ..evaluation.arguments import DTYPES, SECTIONS, WEIGHTS, EvaluationArguments
from .command_line import CommandParser

_EXAMPLES = """examples:
  hf-deit evaluate --model outputs/digits
  hf-deit evaluate --model outputs/my-deit --images_dir images/test --teacher NAME
  hf-deit evaluate --model NAME --compare OTHER --dataset_name imagenet-1k --split validation --speed
  hf-deit evaluate --runs outputs/a outputs/b --output_dir curves
  hf-deit launch --num_processes 8 evaluate --model …
"""


def read_options(command: Sequence[str]) -> EvaluationArguments:
    """What a command line asks for.

    Raises:
        InputError: an option that there is not, or a value that it cannot have.
        SystemExit: the help was asked for, and is printed.
    """
    options = vars(_parser().parse_args(command))
    return EvaluationArguments(**{field.name: options[field.name] for field in fields(EvaluationArguments)})


def _parser() -> CommandParser:
    parser = CommandParser(
        "evaluate",
        "Measures, compares and explains trained models on images that training has not seen, and writes one report.",
        usage="hf-deit evaluate --model FOLDER_OR_ID [options]",
        epilog=_EXAMPLES,
    )
    parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, max_help_position=32)
    defaults = {field.name: field.default for field in fields(EvaluationArguments)}

    def add(group: Any, name: str, words: str, **settings: Any) -> None:
        given = defaults[name]
        settings.setdefault("default", given)
        if settings.get("action") != "store_true" and given not in (None, ()):
            words += f" (default: {given})"
        group.add_argument(f"--{name}", help=words, **settings)

    models = parser.add_argument_group("models: folders or Hub ids (my/model@revision for another revision)")
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    add(models, "model", "the one to evaluate", metavar="MODEL")
    add(models, "compare", "others, of transformers or timm", metavar="MODEL", **several)
    add(models, "teacher", "its teacher: shows where the two part", metavar="MODEL")
    add(models, "weights", f"of its run: {', '.join(WEIGHTS)}", metavar="WHICH")
    images = parser.add_argument_group("images; of a run's folder by default those that it has not trained on")
    add(images, "dataset_name", "Hub id, local path, or sklearn:digits", metavar="NAME")
    add(images, "dataset_config_name", "its configuration", metavar="NAME")
    add(images, "dataset_revision", "its branch, tag or commit", metavar="REVISION")
    add(images, "split", "its split (default: test)", metavar="SPLIT")
    add(images, "images_dir", "instead: a folder per class, or images alone", metavar="DIR")
    add(images, "image_column_name", "if several columns hold images", metavar="NAME")
    add(images, "label_column_name", "if there is any doubt", metavar="NAME")
    add(images, "label_file", "labels in a file of their own", metavar="FILE")
    add(images, "label_set", "ImageNet's: imagenet, real or v2", metavar="SET")
    add(images, "class_indices", "the model's number of each class", metavar="FILE")
    add(images, "on_bad_image", "stop, or skip it", metavar="WHAT")
    add(images, "check_images", "beforehand: all, headers, none", metavar="WHAT")
    shown = parser.add_argument_group("how models see them; by default each as its users do")
    add(shown, "image_size", "in pixels, of all models", type=int, metavar="N")
    add(shown, "crop_ratio", "crop to resized image, in (0, 1]", type=float, metavar="R")
    add(shown, "dtype", f"{', '.join(DTYPES)}", metavar="DTYPE")
    report = parser.add_argument_group(
        f"the report, of the sections {', '.join(SECTIONS[:4])},\n{', '.join(SECTIONS[4:])}"
    )
    add(report, "output_dir", "its folder (default: MODEL/report)", metavar="DIR")
    add(report, "sections", "some (default: all but speed)", metavar="NAME", **several)
    add(report, "explain_images", "whose attention is drawn (default: 6)", type=int, metavar="N")
    add(report, "explain_rows", "these instead, by their numbers", type=int, metavar="ROW", **several)
    add(report, "attention_heads", "draw each head of the last layer, too", action="store_true")
    add(report, "speed", "measure it, too: takes the whole device", action="store_true")
    add(report, "speed_batch_size", "default: the largest of use", type=int, metavar="N")
    add(report, "runs", "whose curves are drawn", metavar="DIR", **several)
    add(report, "drop_answers", "do not keep the models' answers", action="store_true")
    machine = parser.add_argument_group("the machine")
    add(machine, "batch_size", "images at once", type=int, metavar="N")
    add(machine, "num_workers", "that prepare images (default: as many as help)", type=int, metavar="N")
    add(machine, "use_cpu", "whatever else there is", action="store_true")
    add(machine, "seed", "of what is chosen by chance", type=int, metavar="N")
    return parser
