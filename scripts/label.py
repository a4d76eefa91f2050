"""Lets a teacher label training views without training a student, so that later runs need no teacher.

    accelerate launch scripts/label.py --teacher_labels FOLDER --recipe NAME_OR_FILE.yaml [--epochs FIRST:LAST]
                                       [--any_field value]

Takes the recipe and the fields of the runs that will replay the labels; by default it labels all epochs that such a
run needs. What is there already is left as it is: stopped and started again, it goes on. Several processes share the
work. `scripts/publish.py FOLDER --repo_id NAME` puts the labels on the Hub.
"""

import argparse
import sys

from accelerate import PartialState

from hf_deit.commands.label import label_epochs
from hf_deit.errors import CheckpointError, InputError
from hf_deit.recipes.resolve import resolve_arguments
from hf_deit.training.processes import exit_script, report_error


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--epochs", help="FIRST:LAST, LAST exclusive; by default all that a run needs")
    try:
        options, rest = parser.parse_known_args(arguments)
        result = label_epochs(resolve_arguments(rest), epochs=options.epochs)
    except (argparse.ArgumentError, InputError, CheckpointError) as error:
        return report_error(error)
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on", file=sys.stderr, flush=True)
        return 130
    if PartialState().is_main_process:
        print(f"\n{result}")
    return 0


if __name__ == "__main__":
    exit_script(main(sys.argv[1:]))
