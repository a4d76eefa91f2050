"""`hf-deit publish`, for those who work in a clone of the repository."""

import sys

from hf_deit.commands.command_line import exit_command
from hf_deit.commands.publish import main

if __name__ == "__main__":
    exit_command(main(sys.argv[1:]))
