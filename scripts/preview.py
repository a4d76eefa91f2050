"""Shows what training sees: writes a contact sheet of training views with their targets.

    python scripts/preview.py [--recipe NAME_OR_FILE.yaml] [--epoch 0] [--slots 0:16] [--output preview.png]
                              [--any_field value]

Takes the same recipe and fields as train.py, no GPU and no teacher.
"""

import argparse
import sys

from hf_deit.commands.train import preview_run
from hf_deit.errors import InputError
from hf_deit.training.preview import check_picture_name


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--epoch", type=int, default=0, help="from 0")
    parser.add_argument("--slots", default="0:16", help="FIRST:LAST of the epoch's order, LAST exclusive")
    parser.add_argument("--output", default="preview.png", help="picture to write")
    try:
        options, rest = parser.parse_known_args(arguments)
        check_picture_name(options.output)
        sheet = preview_run(rest, epoch=options.epoch, slots=options.slots)
        sheet.save(options.output)
    except (argparse.ArgumentError, InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.output}: {sheet.width} x {sheet.height} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
