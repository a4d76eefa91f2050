"""What commands show without a traceback, and how their messages are worded."""

import shlex
import shutil


class InputError(ValueError):
    """A mistake in the user's input: an argument, a recipe, a data set, a teacher, a folder.

    The message says what was got, what was expected and how to mend it. The scripts print it without a traceback and
    exit with status 2.
    """

    def __init__(self, message: str) -> None:
        # Raised in a DataLoader's worker, it comes back with the worker's traceback as its message.
        name = type(self).__name__
        if message.startswith(f"Caught {name} in DataLoader worker"):
            message = message.rpartition(f"{name}: ")[2].strip()
        super().__init__(message)


class BadImageError(InputError):
    """An image that cannot be decoded, or whose label is none: only the process that meets it can tell."""


class TrainingDivergedError(RuntimeError):
    """The training loss is no longer finite. The message names the step, the last good checkpoint and what to try."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, say on a full disk. The message names the last whole one."""


class PublishError(RuntimeError):
    """A model could not be pushed to the Hub. The message names its folder and the command that publishes it later."""


def first_line(error: BaseException) -> str:
    """An exception's message without the rest of what libraries put into it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def command(name: str, *arguments: str) -> str:
    """The line that runs a command of this package here: by its script if that is on the PATH, else by its module."""
    program = "hf-deit" if shutil.which("hf-deit") else "python -m hf_deit"
    return f"{program} {shlex.join([name, *arguments])}"
