"""`hf-deit train`, for `accelerate launch scripts/train.py`."""

import sys

from hf_deit.commands.command_line import exit_command
from hf_deit.commands.train import main

if __name__ == "__main__":
    exit_command(main(sys.argv[1:]))
