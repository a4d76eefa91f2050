"""Distils a DeiT.

    accelerate launch scripts/train.py [--recipe NAME_OR_FILE.yaml] [--any_field value]

Without arguments it takes the recipe "digits": trains a small convnet on scikit-learn's handwritten digits, and
distils it into a small DeiT. `--help` lists every field.
"""

import sys

from accelerate import PartialState

from hf_deit.commands.train import run
from hf_deit.errors import CheckpointError, InputError, TrainingDivergedError
from hf_deit.recipes.resolve import resolve_arguments
from hf_deit.training.processes import exit_script, report_error


def main(arguments: list[str]) -> int:
    try:
        result = run(resolve_arguments(arguments))
    except (InputError, TrainingDivergedError, CheckpointError) as error:
        return report_error(error)
    except KeyboardInterrupt:
        print("\nstopped: the same command with --resume_from_checkpoint true goes on", file=sys.stderr, flush=True)
        return 130
    if PartialState().is_main_process:
        for failure in result.push_failures:
            print(f"push failed: {failure}", file=sys.stderr)
        model = "The model with averaged weights" if result.weights == "ema" else "The model"
        print(f"\n{result}\n\n{model} lies in {result.output_dir}. To use it:\n\n{result.usage}")
        if result.kept_in is not None:
            print(f"\nThe teacher's labels lie in {result.kept_in}: --teacher_labels {result.kept_in} replays them.")
        if result.publish_error is not None:
            print(f"\nerror: {result.publish_error}", file=sys.stderr, flush=True)
        elif result.repository is not None:
            print(f"\nIt is published at {result.repository}.")
    return 3 if result.publish_error is not None else 0


if __name__ == "__main__":
    exit_script(main(sys.argv[1:]))
