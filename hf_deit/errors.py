"""What commands show as a message, without a traceback, and the words that such messages share."""

import difflib
import os
import re
import shlex
import shutil
from collections.abc import Iterable

_OBJECTS = re.compile(r"\s*<\S+ object at 0x\w+>")  # in Pillow's messages about bytes; another one every time


class InputError(ValueError):
    """A mistake in the user's input: an argument, a recipe, a data set, a teacher, a folder.

    The message says what was got, what was expected and how to mend it. The commands print it without a traceback and
    exit with status 2.
    """

    def __init__(self, message: str) -> None:
        # Raised in a DataLoader's worker, it comes back with the worker's traceback as its message.
        name = type(self).__name__
        if message.startswith(f"Caught {name} in DataLoader worker"):
            message = message.rpartition(f"{name}: ")[2].strip()
        super().__init__(message)


class BadImageError(InputError):
    """An image that cannot be decoded, or whose label is none: only the process that meets it can tell.

    Args:
        path: of the image, as its data set knows it, or None.
        reason: what is wrong with it.
    """

    def __init__(self, message: str, *, path: str | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason

    def note(self, place: str) -> str:
        """A line that names the image and the reason: a file by its path, another by its place in the data set."""
        is_file = self.path is not None and os.path.lexists(self.path)
        name = self.path if is_file else f"{place} ({self.path})" if self.path else place
        reason = _OBJECTS.sub("", self.reason.replace(repr(self.path), "")).strip()
        return " ".join(f"{name}: {reason}".splitlines())


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


def one_line(error: BaseException) -> str:
    """An exception's whole message, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def escaped(path: str) -> str:
    """A path of the file system as text that can be written anywhere: bytes that are not UTF-8 stand as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def counted(number: int, noun: str) -> str:
    """ "1 image", "2 images": a number with its noun, whose plural ends in "s"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortlist(items: Iterable[object], most: int = 5, separator: str = ", ") -> str:
    """The first `most` items in one line, "a, b, c, …"; the ellipsis stands for the others."""
    words = [str(item) for item in items]
    return separator.join([*words[:most], *(["…"] if len(words) > most else [])])


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The end of a message about a name that is not known.

    Args:
        name: what was given.
        known: what could have been meant.
        cutoff: how alike the two must be, in [0, 1]; see `difflib.get_close_matches`.

    Returns:
        "; did you mean 'x'?" with the nearest of the known names, or "" if none is near.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
