"""What commands show as a message, without a traceback, and the words that such messages share."""

import difflib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Controls, separators of lines and paragraphs, marks that turn the direction of writing, halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
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
        super().__init__(printable(message))


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
        name = image_name(self.path, place)
        reason = _OBJECTS.sub("", self.reason.replace(repr(self.path), "")).strip()
        return printable(" ".join(f"{name}: {reason}".splitlines()))


def image_name(path: str | None, place: str) -> str:
    """What to call an image: a file by its path, another by its place in the data set."""
    is_file = path is not None and os.path.lexists(path)
    return path if is_file else f"{place} ({path})" if path else place


class TrainingDivergedError(RuntimeError):
    """The training loss is no longer finite. The message names the step, the last good checkpoint and what to try."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, say on a full disk. The message names the last whole one."""


class ExportError(RuntimeError):
    """An exported classifier does not answer as the trained one does, or does not run. The message says where.

    What stood in the place of the export stays.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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


def printable(text: str) -> str:
    """A text that a terminal can show: what would steer it, or turn the order of other characters, stands as escapes.

    Line breaks and tabs stay, and so do letters of every script with what joins them.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def escaped(path: str) -> str:
    """A path of the file system as text that can be written anywhere: bytes that are not UTF-8 stand as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def brief(value: object, words: Callable[[Any], str] = repr, most: int = 200) -> str:
    """A value in the words of a message, of which a line is enough."""
    text = words(value)
    return text if len(text) <= most else f"{text[:most]}…"


def rate(per_second: float) -> str:
    """A speed in whole numbers, or, where that says too little, in two digits."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.2g}"


def with_bounds(value: float, low: float, high: float) -> str:
    """A measured fraction with the ends of its interval: "0.9722 [0.9500, 0.9847]"."""
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def counted(number: int, noun: str) -> str:
    """ "1 image", "2 images": a number with its noun, whose plural ends in "s"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortlist(items: Iterable[object], most: int = 5, separator: str = ", ") -> str:
    """The first `most` items in one line, "a, b, c, …"; the ellipsis stands for the others."""
    words = [str(item) for item in items]
    return separator.join([*words[:most], *(["…"] if len(words) > most else [])])


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5, most: int = 1) -> str:
    """The end of a message about a name that is not known.

    Args:
        name: what was given.
        known: what could have been meant; of equally good ones the first is taken.
        cutoff: how alike the spelling must be, in [0, 1], if none has the words; see `difflib.get_close_matches`.
        most: how many names to give where several have the words.

    Returns:
        "; did you mean 'x'?" with the nearest of the known names, or "" if none is near.
    """
    near = nearest_names(name, known, cutoff, most)
    if not near:
        return ""
    *others, last = map(repr, near)
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def nearest_names(name: str, known: Iterable[str], cutoff: float = 0.5, most: int = 1) -> list[str]:
    """The known names that a name could stand for, the nearest first; see `did_you_mean`."""
    known = list(known)
    return _with_the_words(name, known)[:most] or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)


def not_one_of(name: str, got: object, choices: Sequence[str]) -> str:
    """The message about a value that is none of those that there are."""
    one_of = "one of " if len(choices) > 1 else ""
    return f"{name} must be {one_of}{shortlist(choices, 12)}, got {got!r}{did_you_mean(str(got), choices)}"


def _with_the_words(name: str, known: Sequence[str]) -> list[str]:
    """The known names that have all words of a name, in its order, perhaps longer: deit-t is in deit_tiny_patch16_224.

    Those that begin with its first word come first, then those with few others.
    """
    wanted = _words(name)
    found = []
    for candidate in known:
        words = _words(candidate)
        places = _places(wanted, words)
        if places:
            changed = sum(word != words[place] for word, place in zip(wanted, places, strict=True))
            found.append((places[0] != 0, len(words) - len(wanted), changed, candidate))
    found.sort(key=lambda item: item[:3])
    is_whole = bool(found) and found[0][1] == 0  # no word is lacking: the others are longer names that hold it
    return [candidate for *_, candidate in found[: 1 if is_whole else None]]


def _places(wanted: Sequence[str], words: Sequence[str]) -> list[int]:
    """Where a name has these words, or their beginnings, one after the other; empty if it has not."""
    places: list[int] = []
    for word in wanted:
        start = places[-1] + 1 if places else 0
        fits = (
            place
            for place in range(start, len(words))
            if words[place] == word or (not word.isdigit() and words[place].startswith(word))
        )
        place = next(fits, None)
        if place is None:
            return []
        places.append(place)
    return places


def _words(name: str) -> list[str]:
    """deit_tiny-patch16 is deit, tiny, patch, 16."""
    return re.findall(r"[a-z]+|\d+", name.lower())
