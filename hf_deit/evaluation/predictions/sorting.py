"""Images in a folder for each class that they were given: links, by default, of which one can train."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from ...data.folders import is_left_out
from ...errors import CheckpointError, InputError, escaped
from ...hub.files import name_of_temporary, read_json, remove_leftovers, temporary_beside, write_json, write_whole
from ...models.class_names import composed
from .arguments import LINKS

MARK = ".hf_deit_sorted.json"  # hidden: no image, and no class
_MOST_BYTES = 255  # of a name, in most file systems
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE | re.DOTALL)  # to Windows
_OF_A_CLASH = 12  # of these for what tells names apart
# What a file system says that has no such links, or none from here to there.
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)


class StoredImages(Protocol):
    """Images by their rows; `stored` gives the path of a file, or its content."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def stored(self, index: int) -> tuple[str | None, bytes | None]: ...


@dataclass(frozen=True)
class Sorted:
    """What was sorted.

    Attributes:
        folder: in which the classes' folders lie.
        num_images: in them.
        num_left_aside: whose probability is too small.
        num_gone: files that are not there any more.
        renamed: folders' names by label, where a label is no good name.
        link: of `LINKS`, what was made; "copy" of images that are no files.
    """

    folder: str
    num_images: int
    num_left_aside: int
    num_gone: int
    renamed: dict[str, str]
    link: str


def check_folder(folder: str, key: dict[str, Any] | None = None) -> None:
    """Refuses a folder to sort into that holds something else than what the same command has put there.

    Args:
        key: of JSON's types: what the command's links depend on; None if that is not known yet.

    Raises:
        InputError: it does, or is no folder.
    """
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        raise InputError(f"--sort_into {folder!r} is no folder: give one that is empty, or not there yet")
    with os.scandir(folder) as entries:
        is_empty = all(name_of_temporary(entry.name) == MARK for entry in entries)  # which was being written
    mark = _mark_in(folder)
    if not is_empty and (mark is None or (key is not None and mark != _digest(key))):
        raise InputError(
            f"--sort_into {folder!r} is not empty, and what lies there was not put there by this command, of these "
            "images, this model and these options: give another folder, or empty it"
        )


def sorted_folders_in(folders: Iterable[str]) -> list[str]:
    """Folders that images were sorted into, which lie in these: what is in them is there a second time."""
    found = []
    for folder in folders:
        with suppress(OSError), os.scandir(os.path.expanduser(folder)) as entries:
            found += [entry.path for entry in entries if os.path.lexists(os.path.join(entry.path, MARK))]
    return found


def sort_into(
    folder: str,
    rows: Iterable[tuple[int, str, float]],
    images: StoredImages,
    labels: Sequence[str],
    *,
    key: dict[str, Any],
    min_probability: float | None,
    link: str | None,
) -> Sorted:
    """Puts links to images, or copies, into a folder for each class.

    Where it was stopped, the same call goes on. Images that are no files are written as they are stored.

    Args:
        folder: see `check_folder`.
        rows: the place of an image, its label and probability.
        labels: all that there are, unique.
        key: see `check_folder`.
        min_probability: of the images that are sorted.
        link: of `LINKS`, or the first that the file system has.

    Raises:
        InputError: there is something else where a link is to be.
        CheckpointError: nothing can be written there.
    """
    names = folder_names(labels)
    threshold, taken = min_probability or 0.0, _Names()
    linker, written = _Linker(link), 0
    numbers = {"num_images": 0, "num_left_aside": 0, "num_gone": 0}
    try:
        os.makedirs(folder, exist_ok=True)
        write_json({"key": _digest(key), **key}, os.path.join(folder, MARK))
        for inside in [folder, *(entry.path for entry in list(os.scandir(folder)) if entry.is_dir())]:
            remove_leftovers(inside)
        for index, label, probability in rows:
            if probability < threshold:
                numbers["num_left_aside"] += 1
                continue
            path, content = images.stored(index)
            if content is None and (path is None or not os.path.exists(path)):
                numbers["num_gone"] += 1
                continue
            target = os.path.join(folder, names[label])
            os.makedirs(target, exist_ok=True)
            own = os.path.basename(path) if content is None else f"{index:08}{_suffix_of(content)}"
            target = os.path.join(target, taken.unique(names[label], own))
            if content is None:
                linker.put(path, target)
            else:
                _write_once(content, target)
                written += 1
            numbers["num_images"] += 1
    except OSError as error:
        raise CheckpointError(
            f"cannot sort images into {folder!r} ({error.strerror or error}): what is there stays, and the same "
            "command goes on"
        ) from error
    renamed = {label: name for label, name in names.items() if label != name}
    are_written = written == numbers["num_images"] > 0
    return Sorted(folder, **numbers, renamed=renamed, link="copy" if are_written else linker.link)


def folder_names(labels: Sequence[str]) -> dict[str, str]:
    """Names of folders by label: the label itself, if it is one that every file system and `--train_dir` takes.

    No two are equal, also where capitals or Unicode's forms are not told apart.
    """
    wanted = {label: _as_name(label) for label in labels}
    taken, names = _Names(), {}
    for label in sorted(labels, key=lambda label: wanted[label] != label):  # those that can stay do
        names[label] = taken.unique("", wanted[label])
    return {label: names[label] for label in labels}


def _as_name(text: str) -> str:
    """A text as the name of a file or folder."""
    name = "".join("_" if char in '/\\:*?"<>|' or not char.isprintable() else char for char in text)
    name = name.rstrip(" .") or "_"  # Windows drops them
    name = _cut(name, _MOST_BYTES)
    return f"_{_cut(name, _MOST_BYTES - 1)}" if is_left_out(name) or _DEVICES.fullmatch(name) else name


def _cut(name: str, size: int) -> str:
    return name.encode()[:size].decode(errors="ignore").rstrip(" .")


class _Names:
    """Gives names in folders, each once."""

    def __init__(self) -> None:
        self._taken: dict[str, dict[str, int]] = {}  # by folder and name, up to which number it was given

    def unique(self, folder: str, wanted: str) -> str:
        """A name in a folder: the one that is wanted or, if it is taken, that with a number."""
        taken = self._taken.setdefault(folder, {})
        stem, suffix = os.path.splitext(_as_name(escaped(wanted)))
        name = stem + suffix
        asked = known = composed(name).casefold()
        number = taken.get(asked, 1)  # from there on: thousands of images may be called the same
        while known in taken:
            number += 1
            end = f"-{number}{_cut(suffix, _OF_A_CLASH)}"
            name = _cut(stem, _MOST_BYTES - len(end.encode())) + end
            known = composed(name).casefold()
        taken[known], taken[asked] = 1, number
        return name


class _Linker:
    """Puts links in place; where the file system has none of a kind, those of the next one."""

    def __init__(self, link: str | None) -> None:
        self.link = link or LINKS[0]
        self._may_change = link is None

    def put(self, source: str, target: str) -> None:
        source = os.path.abspath(source)
        while True:
            try:
                return {"symbolic": _link, "hard": _hard_link, "copy": _copy}[self.link](source, target)
            except OSError as error:
                is_other = isinstance(error, FileExistsError)  # perhaps of the next kind, from an earlier attempt
                if self._may_change and self.link != LINKS[-1] and (is_other or error.errno in _NO_LINKS):
                    self.link = LINKS[LINKS.index(self.link) + 1]
                elif is_other:
                    raise _in_the_way(target) from None
                else:
                    raise


def _link(source: str, target: str) -> None:
    try:
        os.symlink(source, target)
    except FileExistsError:
        if not os.path.islink(target) or os.readlink(target) != source:
            raise


def _hard_link(source: str, target: str) -> None:
    source = os.path.realpath(source)  # not of a link, which may lead nowhere some day
    try:
        os.link(source, target)
    except FileExistsError:
        if os.path.islink(target) or not os.path.samefile(source, target):
            raise


def _copy(source: str, target: str) -> None:
    if os.path.lexists(target):
        if os.path.islink(target) or os.path.getsize(target) != os.path.getsize(source):
            raise FileExistsError(target)
        return
    temporary = temporary_beside(target)
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise


def _write_once(content: bytes, target: str) -> None:
    if not os.path.lexists(target):
        write_whole(content, target)
    elif os.path.getsize(target) != len(content):
        raise _in_the_way(target)


def _in_the_way(target: str) -> InputError:
    return InputError(f"{escaped(target)!r} is in the way, and not what this command would put there: remove it")


def _suffix_of(content: bytes) -> str:
    """The end of a file's name by its content: ".png", ".jpg", …"""
    try:
        with Image.open(io.BytesIO(content)) as image:
            name = image.format
    except Exception:  # of any kind, as decoders are: what it is called is not worth an error
        return ".jpg"
    return {"JPEG": ".jpg", "TIFF": ".tif", "PPM": ".ppm", "MPO": ".jpg"}.get(name, f".{name.lower()}")


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _mark_in(folder: str) -> str | None:
    try:
        return read_json(os.path.join(folder, MARK)).get("key")
    except (OSError, ValueError):
        return None


def matched(
    rows: Iterable[tuple[Any, ...]], places: Iterator[tuple[int, tuple[Any, ...]]]
) -> Iterator[tuple[int, str, float]]:
    """Finds the images that a table's rows are about, which stand in the same order.

    Args:
        rows: what tells users which image it is, then its label and probability.
        places: the place of every image, and what tells users which it is.

    Raises:
        ValueError: a row is of none of them.
    """
    for *wanted, label, probability in rows:
        for index, told in places:
            if list(map(str, told)) == list(map(str, wanted)):
                yield index, label, float(probability)
                break
        else:
            raise ValueError(f"{wanted} is none of the images")
