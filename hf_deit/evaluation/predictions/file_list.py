"""Image files as people name them: folders, files, patterns and lists of paths, put into one list on the disk."""

import codecs
import glob
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from transformers.utils import logging

from ...data.arguments import DIGITS
from ...data.decoding import decode_image
from ...data.folders import walk_files
from ...data.idx import is_idx_folder
from ...data.parallel import in_chunks
from ...errors import InputError, escaped, first_line
from ...hub.files import whole_file
from .archive import ARCHIVES
from .image_names import image_by_name, is_image_file

logger = logging.get_logger(__name__)

STANDARD_INPUT = "-"
_LISTS = (".txt",)
DATA_FILES = (".parquet", ".arrow", *ARCHIVES)
_SCHEMA = pa.schema({"path": pa.binary()})  # as the file system has it, be it UTF-8 or not
_ROWS = 1 << 14


@dataclass
class FileList:
    """What a list holds, which lies on the disk.

    Attributes:
        file: where.
        num_files: N.
        digest: of their paths, sizes and times, in their order.
        num_repeated: how many names were left out as they had been given before.
        passed_over: how many files were left out as they are no images, by the ends of their names.
        unreadable: why folders could not be read, by their paths.
    """

    file: str
    num_files: int = 0
    digest: str = ""
    num_repeated: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)


class FileImages:
    """The images of a `FileList`, mapped into memory."""

    columns = ("path",)

    def __init__(self, file: str) -> None:
        self._paths = pa.ipc.open_stream(pa.memory_map(file)).read_all()["path"]

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """The path of a file, to open it with."""
        return os.fsdecode(self._paths[index].as_py())

    def image(self, index: int) -> Image.Image:
        """An image as models see it.

        Raises:
            BadImageError: it cannot be decoded.
        """
        return decode_image({"path": self.path(index), "bytes": None}, "a file")

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        return escaped(self.path(index))

    def places(self, rows: range) -> list[tuple[Any, ...]]:
        """What tells users which images these are, by `columns`; bytes that are not UTF-8 stand as escapes."""
        return [(escaped(os.fsdecode(path)),) for path in self._paths.slice(rows.start, len(rows)).to_pylist()]

    def stored(self, index: int) -> tuple[str | None, bytes | None]:
        """The path of an image that is a file."""
        return self.path(index), None


def data_set_of(names: Sequence[str], split: str | None) -> str | None:
    """The data set that is meant, if it is one: not a file or folder of images, or one of which a split is named.

    Raises:
        InputError: there are others beside it; or nothing is of this name.
    """
    found = [name for name in names if _is_data_set(name, split)]
    if found and len(names) > 1:
        others = [name for name in names if name != found[0]] or found
        raise InputError(f"{found[0]!r} is a data set, which stands alone in --images: leave out {others[0]!r}")
    if split is not None and not found:
        raise InputError(f"--split {split!r} is of a data set, and {names[0]!r} is none: leave it out")
    if not found:
        return None
    path = os.path.expanduser(found[0])
    return path if os.path.lexists(path) else found[0]


def _is_data_set(name: str, split: str | None) -> bool:
    path = os.path.expanduser(name)
    if name == STANDARD_INPUT:
        return False
    if os.path.isdir(path):
        return is_idx_folder(path) or split is not None or _holds_data_files_alone(path)
    if os.path.lexists(path):
        return path.lower().endswith(DATA_FILES)
    if name == DIGITS:
        return True
    # What looks like a file or a pattern is none of the Hub's.
    parts = name.split("/")
    is_like_a_file = glob.has_magic(name) or image_by_name(name)
    return not is_like_a_file and 1 <= len(parts) <= 2 and all(parts) and parts[0] != ".."


def _holds_data_files_alone(folder: str) -> bool:
    """Whether there are parquet files or archives in a folder, and no image."""
    has_data = False
    for inside, names in walk_files(folder, on_unreadable=lambda *_: None):
        for name in names:
            if is_image_file(os.path.join(inside, name)):
                return False
            has_data = has_data or name.lower().endswith(DATA_FILES)
    return has_data


def list_files(names: Sequence[str], file: str, *, beside: Iterable[tuple[int, int]] = ()) -> FileList:
    """Lists image files, once each, in the order in which they are named, those of a folder by their names.

    In folders, hidden files and what is no image are left out, by the ends of their names or, if these say nothing, by
    how files begin. Of what a pattern finds, and of names beside those of images, as a shell gives them, what is none
    by its name is left out. Other names are taken, whatever they are.

    Args:
        names: see `PredictionArguments.images`.
        file: to write the list to.
        beside: folders that are no part of it, see `folder_identity`.

    Raises:
        InputError: there is no such file or folder, no file fits a pattern, or there are no images at all.
        OSError: the list cannot be written.
    """
    found = FileList(file)
    digest = hashlib.sha256()
    batches = _named(names, found, tuple(beside))
    paths = _once(batches, found) if _may_repeat(names) else (path for batch in batches for path in batch)
    with whole_file(file) as opened, pa.ipc.new_stream(opened, _SCHEMA) as writer:
        for chunk, states in in_chunks(_with_states, paths, size=_ROWS, title="listing"):
            encoded = [os.fsencode(path) for path in chunk]
            digest.update(b"\0".join(encoded) + b"\0" + states.tobytes())
            writer.write_batch(pa.record_batch({"path": pa.array(encoded, pa.binary())}))
            found.num_files += len(chunk)
    found.digest = digest.hexdigest()
    return found


def _may_repeat(names: Sequence[str]) -> bool:
    return len(names) > 1 or not os.path.isdir(os.path.expanduser(names[0]))


def _once(batches: Iterable[list[str]], found: FileList) -> Iterator[str]:
    seen: set[str] = set()
    for batch in batches:
        for path in batch:
            # What leads up again may lead elsewhere, from behind a link.
            key = path if os.pardir in path.split(os.sep) else os.path.abspath(path)
            if key in seen:
                found.num_repeated += 1
            else:
                seen.add(key)
                yield path


def _with_states(paths: list[str]) -> tuple[list[str], np.ndarray]:
    """Paths, and (N, 2) int64: size in bytes and time of change in ns, -1 where a file is not there."""

    def state_of(path: str) -> tuple[int, int]:
        try:
            state = os.stat(path)
        except OSError:  # whoever reads it says what is wrong
            return -1, -1
        return state.st_size, state.st_mtime_ns

    return paths, np.array([state_of(path) for path in paths], np.int64)


def _named(names: Sequence[str], found: FileList, beside: tuple[tuple[int, int], ...]) -> Iterator[list[str]]:
    """The paths that names stand for."""
    has_images = any(image_by_name(name) and os.path.isfile(os.path.expanduser(name)) for name in names)
    for name in names:
        path = os.path.expanduser(name)
        if name == STANDARD_INPUT:
            listed = _lines(sys.stdin.buffer.read(), None)
        elif os.path.isfile(path) and path.lower().endswith(_LISTS) and not has_images:
            listed = _lines(_content_of(path), os.path.dirname(path))
        elif os.path.lexists(path):
            listed = _images_among([path], found) if has_images else [path]  # a shell gives all that is in a folder
        elif glob.has_magic(path):
            fitting = sorted(glob.iglob(path, recursive=True))
            if not fitting:
                raise InputError(f"no file fits the pattern {name!r}: check it, in quotation marks, in this folder")
            listed = _images_among(fitting, found)
        else:
            raise InputError(
                f"there is no file or folder {name!r}: expected a folder of images, image files, a pattern, a text "
                f"file of paths, {STANDARD_INPUT!r}, or a data set's Hub id"
            )
        for one in listed:
            yield from _at(one, found, beside)


def _images_among(paths: Sequence[str], found: FileList) -> list[str]:
    """Without those that are no images by the ends of their names; folders stay."""
    others = [path for path in paths if image_by_name(path) is False and not os.path.isdir(path)]
    found.passed_over.update(map(_end_of, others))
    left_out = set(others)
    return [path for path in paths if path not in left_out]


def _at(path: str, found: FileList, beside: tuple[tuple[int, int], ...]) -> Iterator[list[str]]:
    """The file of a path, or the images in a folder."""
    if not os.path.isdir(path):
        yield [path]
        return

    def note(folder: str, error: InputError) -> None:
        found.unreadable[folder] = first_line(error)

    for inside, names in walk_files(path, beside, on_unreadable=note):
        start = os.path.join(inside, "")
        taken = []
        for name in names:
            if is_image_file(start + name):
                taken.append(start + name)
            else:
                found.passed_over[_end_of(name)] += 1
        yield taken


def _end_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _content_of(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"cannot read the list of paths {path!r}: {error.strerror}") from error


def _lines(content: bytes, folder: str | None) -> list[str]:
    """The paths of a list, one a line, or between zero bytes; relative to where we are, or else to its folder."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes it
        content = content.decode("utf-16", errors="replace").encode()
    content = content.removeprefix(codecs.BOM_UTF8)
    ends = b"\0" if b"\0" in content else b"\n"
    paths = [os.fsdecode(line.rstrip(b"\r")) for line in content.split(ends)]
    paths = [path for path in paths if path.strip()]
    if folder and paths and not os.path.lexists(paths[0]) and os.path.lexists(os.path.join(folder, paths[0])):
        return [os.path.join(folder, path) for path in paths]
    return paths
