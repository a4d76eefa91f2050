"""Files that are written whole or not at all, and what is read back from them."""

import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from ..errors import CheckpointError, InputError, escaped

# Beside a file that is being written: 8 random digits keep it apart from those of other processes.
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")
_TEMPORARY_OF_SAFETENSORS = re.compile(r"\.tmp[0-9A-Za-z]{6}")
# A repository in the Hub's cache, whose snapshots are links to its blobs.
_CACHED = re.compile(r"(models|datasets|spaces)--.+")


def write_whole(content: str | bytes | memoryview, path: str | os.PathLike[str]) -> None:
    """Writes a file so that it is whole or as it was before, even if the process is killed meanwhile.

    Args:
        content: text is written as UTF-8.
        path: see `whole_file`.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file to be written, which is in its place, and whole, once what stands in it has ended without an error.

    The content is on the disk before it takes the file's place. A file that is linked elsewhere stays as it is there.

    Args:
        path: in a folder that exists.

    Raises:
        OSError: it cannot be written.
    """
    folder = os.path.dirname(os.fspath(path))
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise
    descriptor = os.open(folder or os.curdir, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot; the file is in place all the same
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def name_of_temporary(name: str) -> str | None:
    """The name of the file that was to become of a temporary of `write_whole`, or None if the name is of none."""
    match = _TEMPORARY.fullmatch(name)
    return None if match is None else match[1]


def temporary_beside(path: str | os.PathLike[str]) -> str:
    """A new hidden name in the folder of a file, which `remove_leftovers` knows if its process is killed."""
    folder, name = os.path.split(os.fspath(path))
    return os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")


def is_leftover(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one that a killed process was writing: by its name and, of safetensors, by how it begins.

    Raises:
        OSError: it cannot be read.
    """
    name = os.path.basename(path)
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    if not _TEMPORARY_OF_SAFETENSORS.fullmatch(name):
        return name_of_temporary(name) is not None
    with open(path, "rb") as file:
        start = file.read(9)
    return not start or start[8:] == b"{"  # behind the header's size


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes were writing into a folder. For the one that owns it.

    Raises:
        OSError: the folder cannot be read, or nothing be removed from it.
    """
    for entry in list(os.scandir(folder)):
        if is_leftover(entry.path):
            os.remove(entry.path)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Says what could not be written, where the disk refuses.

    Args:
        what: is written, as the object of the sentence.

    Raises:
        CheckpointError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        raise CheckpointError(
            f"cannot write {what} ({reason}): free some space, or mend the folder's rights"
        ) from error


@contextmanager
def no_empty_folders(*folders: str | os.PathLike[str] | None) -> Iterator[None]:
    """If what stands in it fails, takes away the empty folders that were not there before; files stay.

    Args:
        *folders: in which, and above which, folders may be made meanwhile; None is passed over.
    """
    wanted = [os.path.abspath(os.path.expanduser(folder)) for folder in folders if folder is not None]
    before = {path for folder in wanted for path in [*_parents(folder), *_inside(folder)] if os.path.lexists(path)}
    try:
        yield
    except BaseException:
        for folder in wanted:
            inside = [root for top in _inside(folder) if top not in before for root, _, _ in os.walk(top)]
            above = [path for path in _parents(folder) if path not in before]
            for path in sorted([*inside, *above], key=len, reverse=True):  # what lies in a folder comes before it
                with suppress(OSError):  # it holds something, or another process was first
                    os.rmdir(path)
        raise


def _parents(folder: str) -> list[str]:
    """A folder and all above it."""
    parents = [folder]
    while (parent := os.path.dirname(parents[-1])) != parents[-1]:
        parents.append(parent)
    return parents


def _inside(folder: str) -> list[str]:
    """What lies in a folder; nothing if there is none."""
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except OSError:
        return []


def files_below(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The paths of the files in a folder, at any depth, by their names from there, with slashes."""
    paths = sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)
    return {os.path.relpath(path, folder).replace(os.sep, "/"): path for path in paths}


def regular_file(folder: str | os.PathLike[str], name: str) -> str:
    """Where the content of a file lies that may be published: a regular one, within its folder.

    A link is followed within the folder and, in a snapshot of the Hub's cache, to the blobs of the same repository.

    Args:
        name: from the folder, which may itself be reached by a link.

    Raises:
        InputError: there is no such file, it is something else, or a link leads out of the folder.
    """
    root, path = os.path.realpath(folder), os.path.join(folder, name)
    shown = repr(escaped(path))
    try:
        content = os.path.realpath(path, strict=True)
        mode = os.stat(content).st_mode
    except OSError as error:  # also a link that leads nowhere, or in a circle
        raise InputError(f"{shown} cannot be published ({error.strerror}): put a file there, or remove it") from error
    if not any(os.path.commonpath([content, place]) == place for place in (root, *_blobs_of(root))):
        raise InputError(
            f"{shown} leads out of its folder, to {escaped(content)!r}, which is not published: put a copy in its "
            "place, or remove it"
        )
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise InputError(f"{shown} is {kind}, expected a file: remove it")
    return content


def _blobs_of(folder: str) -> list[str]:
    """The blobs that a snapshot of the Hub's cache may link to; none of another folder."""
    found = []
    for snapshot in _parents(folder):
        parent = os.path.dirname(snapshot)
        repository = os.path.dirname(parent)
        if os.path.basename(parent) == "snapshots" and _CACHED.fullmatch(os.path.basename(repository)):
            found.append(os.path.join(repository, "blobs"))
    return found


def open_regular(path: str | os.PathLike[str], flags: int = 0) -> BinaryIO:
    """Opens a regular file to be read; a pipe, or a device, might be waited for without end.

    Args:
        flags: of `os.open`, beside those to read.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    flags |= os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{os.fspath(path)!r} is no regular file")
    return open(descriptor, "rb")


def copy_content(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies what a regular file holds now, whatever becomes of it. What is at the target is replaced, not written to.

    Args:
        source: from `regular_file`.

    Raises:
        OSError: it cannot be read, or put there.
    """
    # It may have become a link, or a pipe that nobody writes to, since it was looked at.
    with open_regular(source, getattr(os, "O_NOFOLLOW", 0)) as file:
        with suppress(FileNotFoundError):
            os.remove(target)
        with open(target, "xb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)


def share_weights(folder: str | os.PathLike[str]) -> None:
    """Gives a folder's weights the rights that new files get there: safetensors writes them for their owner alone.

    Raises:
        OSError: the folder is not there, or no file can be made in it.
    """
    folder = os.fspath(folder)
    private = [
        entry.path
        for entry in os.scandir(folder)
        if entry.name.endswith(".safetensors") and not stat.S_IMODE(entry.stat().st_mode) & 0o077
    ]
    if not private:
        return
    # What a new file gets is seen on one: asking for the umask would change it meanwhile, for other threads, too.
    example = temporary_beside(private[0])
    with open(example, "xb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    os.remove(example)
    for path in private:
        os.chmod(path, mode)


def read_text(path: str | os.PathLike[str]) -> str | None:
    """A file's text, or None if there is no such file."""
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON, or no object.
    """
    with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
        try:
            content = json.load(file)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
    if not isinstance(content, dict):
        raise ValueError(f"it must hold an object, got {type(content).__name__}")
    return content


def write_json(values: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a JSON object; see `write_whole`."""
    write_whole(json.dumps(values, indent=2, ensure_ascii=False) + "\n", path)
