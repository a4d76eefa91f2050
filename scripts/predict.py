"""`hf-deit predict`, for `accelerate launch scripts/predict.py`."""

import sys

from hf_deit.commands.command_line import exit_command
from hf_deit.commands.main import main as hf_deit


def main(arguments: list[str]) -> int:
    return hf_deit(["predict", *arguments])


if __name__ == "__main__":
    exit_command(main(sys.argv[1:]))
