"""Distils a DeiT.

    accelerate launch scripts/train.py [--recipe NAME_OR_FILE.yaml] [--any_field value]

Without arguments it takes the recipe "digits": trains a small convnet on scikit-learn's handwritten digits, and
distils it into a small DeiT. `--help` lists every field.
"""

import sys

from accelerate import PartialState

from hf_deit.errors import BadImageError, InputError, TrainingDivergedError
from hf_deit.recipes import resolve_arguments
from hf_deit.run import run


def main(arguments: list[str]) -> int:
    try:
        result = run(resolve_arguments(arguments))
    except (InputError, TrainingDivergedError) as error:
        if PartialState().is_main_process or isinstance(error, BadImageError):
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InputError) else 1
    if PartialState().is_main_process:
        print(f"\n{result}\n\nThe model lies in {result.output_dir}. To use it:\n\n{result.usage}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
