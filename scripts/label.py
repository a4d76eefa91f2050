"""`hf-deit label`, for `accelerate launch scripts/label.py`."""

import sys

from hf_deit.commands.command_line import exit_command
from hf_deit.commands.label import main

if __name__ == "__main__":
    exit_command(main(sys.argv[1:]))
