"""The options of `hf-deit predict`. Loads no library: a slip of the pen is told at once."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..evaluation.arguments import DTYPES, KINDS_OF_WEIGHTS
from ..evaluation.predictions.arguments import LINKS, SUFFIXES, PredictionArguments
from .command_line import CommandParser

_EXAMPLES = """examples:
  hf-deit predict --model outputs/my-deit --images photos
  hf-deit predict --model NAME --images 'photos/**/*.jpg' more/1.png --top_k 3 --output answers.parquet
  hf-deit predict --model NAME --images someone/data --split test --heads
  find photos -name '*.png' -print0 | hf-deit predict --model NAME --images -
  hf-deit predict --model NAME --images photos --sort_into sorted --min_probability 0.9
  hf-deit launch --num_processes 8 predict --model …
"""


def read_options(command: Sequence[str]) -> PredictionArguments:
    """What a command line asks for.

    Raises:
        InputError: an option that there is not, or a value that it cannot have.
        SystemExit: the help was asked for, and is printed.
    """
    options = vars(_parser().parse_args(command))
    return PredictionArguments(**{field.name: options[field.name] for field in fields(PredictionArguments)})


def _parser() -> CommandParser:
    parser = CommandParser(
        "predict",
        "Lets a model answer to images, which need no labels, and writes a table: path, label, probability.",
        usage="hf-deit predict --model FOLDER_OR_ID --images DIR_OR_FILES_OR_DATASET … [options]",
        epilog=_EXAMPLES,
    )
    defaults = {field.name: field.default for field in fields(PredictionArguments)}

    def add(group: Any, name: str, words: str, **settings: Any) -> None:
        given = settings.setdefault("default", defaults[name])
        if settings.get("action") != "store_true" and given not in (None, "", []):
            words += f" (default: {given})"
        group.add_argument(f"--{name}", help=words, **settings)

    model = parser.add_argument_group("the model")
    add(model, "model", "a folder, or a Hub id (my/model@revision)", metavar="MODEL", default="")
    add(model, "weights", f"of its run: {', '.join(KINDS_OF_WEIGHTS)}", metavar="WHICH")
    images = parser.add_argument_group("images: folders, files, patterns, a text file of paths, - for standard input")
    add(
        images, "images", "or, alone, a data set: Hub id, local, sklearn:digits",
        nargs="+", action="extend", default=[], metavar="IMAGES",
    )  # fmt: skip
    add(images, "split", "of a data set (default: test)", metavar="SPLIT")
    add(images, "dataset_config_name", "its configuration", metavar="NAME")
    add(images, "dataset_revision", "its branch, tag or commit", metavar="REVISION")
    add(images, "image_column_name", "if several columns hold images", metavar="NAME")
    shown = parser.add_argument_group("how the model sees them; by default as its users do")
    add(shown, "image_size", "in pixels", type=int, metavar="N")
    add(shown, "crop_ratio", "crop to resized image, in (0, 1]", type=float, metavar="R")
    add(shown, "dtype", ", ".join(DTYPES), metavar="DTYPE")
    table = parser.add_argument_group("the table; what cannot be used is listed beside it, in NAME.broken.csv, say")
    add(table, "output", f"its file, {', '.join(SUFFIXES)}", metavar="FILE")
    add(table, "top_k", "classes of each image", type=int, metavar="K")
    add(table, "heads", "both heads' answers, too", action="store_true")
    add(table, "overwrite", "begin anew, whatever is there", action="store_true")
    folders = parser.add_argument_group("images sorted by their labels")
    add(folders, "sort_into", "a folder of links for each class", metavar="DIR")
    add(folders, "min_probability", "others are left aside", type=float, metavar="P")
    add(folders, "link", f"{', '.join(LINKS)} (default: the first that works)", metavar="KIND")
    machine = parser.add_argument_group("the machine")
    add(machine, "batch_size", "images at once", type=int, metavar="N")
    add(machine, "num_workers", "that prepare images (default: as many as help)", type=int, metavar="N")
    add(machine, "use_cpu", "whatever else there is", action="store_true")
    return parser
