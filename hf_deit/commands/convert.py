"""`hf-deit convert`: converts a checkpoint of DeiT or CaiT to another format, bit for bit."""

from collections.abc import Sequence

from transformers.utils import logging

from ..export.checkpoints.compare import largest_difference
from ..export.checkpoints.write import FORMATS, convert_checkpoint
from .command_line import CommandParser, run_command

_OTHER = {False: "--ema takes their moving average,", True: "without --ema those that were trained are,"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_convert, arguments)


def _convert(arguments: Sequence[str]) -> int:
    parser = CommandParser("convert", "Converts a checkpoint of DeiT or CaiT to another format, bit for bit.")
    parser.add_argument(
        "source", help="a .pth, .pth.tar, .ckpt or .safetensors file, or a folder; its format is found out"
    )
    parser.add_argument("destination", help="a .pth file for facebook, a folder for the others")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument(
        "--ema", action="store_true", help="take a file's moving average, instead of the weights as they were trained"
    )
    parser.add_argument(
        "--check", action="store_true", help="run both on the same images, each by the library of its format"
    )
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checkpoint = convert_checkpoint(options.source, options.destination, to=options.to, ema=options.ema)
    config = checkpoint.config
    print(
        f"{options.source} ({checkpoint.source_format}, {config.model_type}, {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.image_size} pixels, {config.num_labels} labels) → {options.destination} "
        f"({options.to})"
    )
    if checkpoint.taken:
        other = "" if checkpoint.left is None else f"; {_OTHER[options.ema]} {checkpoint.left!r}"
        print(f"the weights of {checkpoint.taken!r} were taken{other}")
    if options.check:
        difference = largest_difference(options.source, options.destination, ema=options.ema, to=options.to)
        print(f"largest difference of the logits: {difference:.2e}")
    return 0
