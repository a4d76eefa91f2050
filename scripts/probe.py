"""`hf-deit probe`, for `accelerate launch scripts/probe.py`."""

import sys

from hf_deit.commands.command_line import exit_command
from hf_deit.commands.main import main as hf_deit


def main(arguments: list[str]) -> int:
    return hf_deit(["probe", *arguments])


if __name__ == "__main__":
    exit_command(main(sys.argv[1:]))
