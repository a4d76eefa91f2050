"""Checksums of the files in a folder, kept beside them: whether each still is what was written.

CRC-32 finds what a disk or a copy does to a file (any change of up to 32 bits in a row, others but one in 4·10⁹), at
several GB a second. It is no signature: whoever changes a file on purpose can change its checksum too.
"""

import json
import os
import stat
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ..errors import escaped, one_line
from .files import files_below, name_of_temporary, read_json, write_json

CHECKSUMS_FILE = "checksums.json"
_CHUNK = 1 << 24  # bytes


class Checksum(NamedTuple):
    """Of a file: its size in bytes and its CRC-32."""

    size: int
    crc: int


class FileFault(NamedTuple):
    """What is wrong with a file.

    Attributes:
        reason: in words, with the file's name.
        is_gone: whether the file, or its end, is provably not there, rather than there and not as it was.
    """

    reason: str
    is_gone: bool


def write_checksums(folder: str | os.PathLike[str], files: Mapping[str, Checksum] | None = None) -> None:
    """Writes the checksums of all files in a folder, and in those within it.

    Args:
        folder: nothing else may write into it.
        files: the checksums by the files' paths within the folder, if they are known.

    Raises:
        OSError: a file cannot be read, or theirs not written.
    """
    if files is None:
        files = {name: _measure(os.path.join(folder, name)) for name in _files_in(folder)}
    listed = {name: {"size": size, "crc32": f"{crc:08x}"} for name, (size, crc) in sorted(files.items())}
    # Of itself, too: with a name or a size that has changed in here a whole file would be taken for one that is gone.
    write_json({"files": listed, "crc32": _of_list(listed)}, os.path.join(folder, CHECKSUMS_FILE))


def read_checksums(folder: str | os.PathLike[str]) -> dict[str, Checksum] | None:
    """What `write_checksums` wrote into a folder, or None if it has not.

    Raises:
        ValueError: it is there, and cannot be read or is not what was written. The message says so with its name.
    """
    path = os.path.join(folder, CHECKSUMS_FILE)
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path)
        listed = content["files"]
        is_own = _of_list(listed) == content["crc32"]
        files = {str(name): Checksum(int(of["size"]), int(of["crc32"], 16)) for name, of in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{CHECKSUMS_FILE} cannot be read ({one_line(error)}); remove it to go without") from error
    if not is_own or not all(map(_is_within, files)):
        raise ValueError(f"{CHECKSUMS_FILE} is not as it was written; remove it to go without")
    return files


def renew_checksums(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], changed: Collection[str], without: Collection[str]
) -> None:
    """Writes the checksums of a folder that was made from another one; none if that has none.

    Args:
        source: the other one, which may be the same.
        folder: to write them to.
        changed: paths within it of files that are not as they were there.
        without: names of files that are not taken along.

    Raises:
        OSError, ValueError: they cannot be read or written.
    """
    files = read_checksums(source)
    if files is None:
        return
    files = {name: known for name, known in files.items() if os.path.basename(name) not in without}
    write_checksums(folder, {**files, **{name: _measure(os.path.join(folder, name)) for name in changed}})


def find_fault(folder: str | os.PathLike[str], names: Iterable[str], *, sizes_only: bool = False) -> FileFault | None:
    """The first of these files that is not what was written, or None; of those that were not there nothing is known.

    Args:
        folder: with checksums, or without.
        names: paths within the folder of those to look at.
        sizes_only: not to read the files.

    Raises:
        ValueError: see `read_checksums`.
    """
    files = read_checksums(folder) or {}
    faults = (_fault_of(folder, name, files[name], sizes_only) for name in names if name in files)
    return next((fault for fault in faults if fault is not None), None)


def _fault_of(folder: str | os.PathLike[str], name: str, known: Checksum, sizes_only: bool) -> FileFault | None:
    path = os.path.join(folder, name)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return FileFault(f"{name} is no file", is_gone=False)
        if status.st_size < known.size:
            return FileFault(f"{name} has {status.st_size} of its {known.size} bytes", is_gone=True)
        is_other = status.st_size != known.size or (not sizes_only and _measure(path) != known)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and os.path.isdir(folder) and not os.path.lexists(path):
            return FileFault(f"{name} is not there", is_gone=True)
        return FileFault(f"{name} cannot be read ({one_line(error)})", is_gone=False)
    return FileFault(f"{name} is not as it was written (by its checksum)", is_gone=False) if is_other else None


def _measure(path: str | os.PathLike[str]) -> Checksum:
    size = crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return Checksum(size, crc)


def _files_in(folder: str | os.PathLike[str]) -> list[str]:
    return [
        name
        for name, path in files_below(folder).items()
        if os.path.isfile(path)
        and name != CHECKSUMS_FILE
        and name == escaped(name)
        and name_of_temporary(os.path.basename(name)) is None  # which another process is writing
    ]


def _of_list(listed: object) -> str:
    return f"{zlib.crc32(json.dumps(listed, sort_keys=True).encode()):08x}"


def _is_within(name: str) -> bool:
    """Whether a path leads to something within a folder: one from the Hub may be anything."""
    return bool(name) and not os.path.isabs(name) and os.pardir not in name.split("/") and "\0" not in name
