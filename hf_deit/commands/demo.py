"""`hf-deit demo`: a page on which anybody can try a model, in a folder that every browser opens."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InputError, counted
from ..export.requirements import require
from . import demo_sharing
from .command_line import CommandParser, run_command

if TYPE_CHECKING:
    from ..export.page.examples import Example
    from ..export.page.page import PageFolder
    from ..export.programs.source import ExportSource

_EXAMPLES = """examples:
  hf-deit demo --model outputs/digits
  hf-deit demo --model NAME --output_dir cats --examples images/test
  hf-deit demo --model NAME --runtime onnxruntime-web-1.30.0.tgz
  hf-deit demo --model my-name/my-deit --to_space my-name/my-deit
  hf-deit demo --model outputs/digits --serve
"""
NO_EXAMPLES = "none"


def read_options(command: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for.

    Raises:
        InputError: an option that there is not, or a value that it cannot have.
        SystemExit: the help was asked for, and is printed.
    """
    parser = CommandParser(
        "demo",
        "Makes a page that runs a model in the browser: a folder whose index.html opens with a double click, without "
        "Python, a server or a network.",
        usage="hf-deit demo --model FOLDER_OR_ID [options]",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="folder or Hub id (my/model@revision for another revision)"
    )
    parser.add_argument("--output_dir", default="page", metavar="DIR", help="folder of the page (default: page)")
    parser.add_argument(
        "--examples",
        metavar="DIR",
        help=f"images that the page offers, or {NO_EXAMPLES}; of a run by default some that it was evaluated on",
    )
    parser.add_argument(
        "--runtime",
        metavar="WHAT",
        help="the npm package onnxruntime-web, a .tgz or a folder (default: downloaded once), or cdn: the page loads "
        "it from a network",
    )
    demo_sharing.add_options(parser)
    options = parser.parse_args(command)
    demo_sharing.check_options(options, {"output_dir": "page", "runtime": None})
    return options


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_demo, arguments, if_interrupted="stopped: no page was made")


def _demo(command: Sequence[str]) -> int:
    options = read_options(command)
    if options.serve:
        require("demo")
        demo_sharing.serve(options, {example.name: example.content for example in _examples(options)})
        return 0
    require("export")
    if options.to_space is not None:
        demo_sharing.check_space(options)
    page = make_page(options)
    print(in_words(page))
    if options.to_space is not None:
        print(f"\nThe Space: {demo_sharing.publish(options, page.folder)}")
    return 0


def make_page(options: argparse.Namespace) -> "PageFolder":
    """Makes the page that options ask for.

    Args:
        options: from `read_options`.

    Raises:
        InputError: the model, its examples, the runtime or the folder cannot be used.
        CheckpointError: the folder cannot be written.
    """
    from ..export.page.page import check_page_folder, write_page
    from ..export.programs.source import load_source

    check_page_folder(options.output_dir)
    source = load_source(options.model)
    return write_page(
        source,
        options.output_dir,
        examples=_examples(options),
        runtime=options.runtime,
        licence=_licence(options.model, source),
    )


def in_words(page: "PageFolder") -> str:
    """What was made, and how to open it."""
    proof, size = page.proof, sum(page.files.values()) / 1e6
    path = os.path.join(page.folder, "index.html")
    return (
        f"{path}: {size:,.1f} MB in {counted(len(page.files), 'file')}, with "
        f"{counted(page.num_examples, 'example image')}\n"
        f"It answers as the model does: on {counted(proof.num_images, 'image')} {proof.agreement:.1%} of the best "
        f"labels are the same, and probabilities differ by {proof.largest_difference:.1g} at most.\n\n"
        f"Open {path} with a double click: it needs no server and no network. Whoever shall have it gets the whole\n"
        "folder; on a web server, or as a static Space, it works as it is."
    )


def _examples(options: argparse.Namespace) -> "list[Example]":
    from ..evaluation.arguments import EvaluationArguments
    from ..export.page.examples import examples_of_folder, examples_of_images
    from .evaluated_images import images_to_evaluate

    if options.examples == NO_EXAMPLES:
        return []
    if options.examples is not None:
        return examples_of_folder(options.examples)
    try:
        images = images_to_evaluate(EvaluationArguments(model=options.model))
    except InputError:  # it is of no run, or its images are elsewhere now
        return []
    return examples_of_images(images)


def _licence(model: str, source: "ExportSource") -> str | None:
    """What the model's card says."""
    from huggingface_hub import hf_hub_download

    from ..hub.card import split_card
    from ..hub.client import HUB_ERRORS
    from ..hub.files import read_text
    from ..hub.run_folder import CARD_FILE

    name, revision = source.facts["name_or_path"], source.facts["revision"]
    try:
        path = hf_hub_download(name, CARD_FILE, revision=revision) if name else os.path.join(model, CARD_FILE)
        metadata, _ = split_card(read_text(os.path.expanduser(path)) or "")
    except HUB_ERRORS:  # there is no card, or one that cannot be read
        return None
    licence = metadata.get("license_name") or metadata.get("license")
    return str(licence) if licence else None
