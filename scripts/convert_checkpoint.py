"""Converts a checkpoint of DeiT or CaiT to another format.

    python scripts/convert_checkpoint.py SOURCE DESTINATION --to {hf_deit,timm,facebook,transformers} [--ema] [--check]

The source's format, architecture and resolution are found out. --check runs both on the same images, each with the
library that its format belongs to, and prints the largest difference of their logits.
"""

import argparse
import sys

from transformers.utils import logging

from hf_deit.errors import InputError
from hf_deit.export.compare import largest_difference
from hf_deit.export.write import FORMATS, convert_checkpoint


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a .pth or .safetensors file, or a folder")
    parser.add_argument("destination", help="a .pth file for facebook, a folder for the others")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--ema", action="store_true", help="take a facebookresearch file's moving average")
    parser.add_argument("--check", action="store_true", help="run both on the same images")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        checkpoint = convert_checkpoint(options.source, options.destination, to=options.to, averaged=options.ema)
        config = checkpoint.config
        print(
            f"{options.source} ({checkpoint.source_format}, {config.model_type}, {config.num_hidden_layers} layers of "
            f"{config.hidden_size}, {config.image_size} pixels, {config.num_labels} labels) → {options.destination} "
            f"({options.to})"
        )
        if options.check:
            difference = largest_difference(options.source, options.destination, averaged=options.ema, to=options.to)
            print(f"largest difference of the logits: {difference:.2e}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
