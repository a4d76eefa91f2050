"""`hf-deit evaluate`, for `accelerate launch scripts/evaluate.py`."""

import sys

from hf_deit.commands.command_line import exit_command
from hf_deit.commands.evaluate import main

if __name__ == "__main__":
    exit_command(main(sys.argv[1:]))
