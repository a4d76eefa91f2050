"""The options of `hf-deit export`. Loads no library: a slip of the pen is told at once."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from ..evaluation.arguments import KINDS_OF_WEIGHTS
from ..export.arguments import ExportArguments
from ..export.int8 import MODES, int8_in_words
from ..hub.export_record import FORMATS
from .command_line import CommandParser

_EXAMPLES = """examples:
  hf-deit export --model outputs/digits --to onnx
  hf-deit export --model outputs/my-deit --to onnx openvino --check_dir images/test
  hf-deit export --model NAME --to onnx --int8 static --calibration_dir images/train
"""


def read_options(command: Sequence[str]) -> ExportArguments:
    """What a command line asks for.

    Raises:
        InputError: an option that there is not, or a value that it cannot have.
        SystemExit: the help was asked for, and is printed.
    """
    options = vars(_parser().parse_args(command))
    return ExportArguments(**{field.name: options[field.name] for field in fields(ExportArguments)})


def _parser() -> CommandParser:
    parser = CommandParser(
        "export",
        "Exports a trained classifier, with its preprocessing and labels inside, and proves on images that the export "
        "answers as the model does.",
        usage="hf-deit export --model FOLDER_OR_ID --to FORMAT [FORMAT …] [options]",
        epilog=f"{_EXAMPLES}\nint8:\n{int8_in_words()}\n",
    )
    parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, max_help_position=32)
    defaults = {field.name: field.default for field in fields(ExportArguments)}
    several = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument("--model", metavar="MODEL", help="folder or Hub id (my/model@revision)", default="")
    parser.add_argument("--to", metavar="FORMAT", help=f"{', '.join(FORMATS)}", **several)
    parser.add_argument(
        "--weights",
        metavar="WHICH",
        help=f"of its run: {', '.join(KINDS_OF_WEIGHTS)} (default: published)",
        default="published",
    )
    parser.add_argument("--int8", metavar="HOW", help=f"int8 files, too: {', '.join(MODES)}")
    parser.add_argument(
        "--calibration_dir", metavar="DIR", help="images for static int8 (default: those that its run was trained on)"
    )
    parser.add_argument("--exclude_layers", metavar="LAYER", help="that stay in float32 beside int8", **several)
    parser.add_argument("--output_dir", metavar="DIR", help="its folders lie there (default: the model's)")
    proof = parser.add_argument_group(
        "the proof: by default on images that the model's run was validated with, and on built-in odd ones"
    )
    proof.add_argument("--check_dir", metavar="DIR", help="images to prove it on: a folder per class, or images alone")
    proof.add_argument(
        "--check_images",
        metavar="N",
        type=int,
        default=defaults["check_images"],
        help=f"how many, evenly spread over all (default: {defaults['check_images']})",
    )
    return parser
