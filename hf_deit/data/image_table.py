"""What lies in a folder of images, as an Arrow table in the cache, with how far each file has been looked into.

The table is what the folder holds now, whatever was kept: a run lists the folder anew, and looks into those files
alone that are new, or have another size or time than in the table that was kept of it. All processes of a machine map
the file into memory and share it. It is named by the folder and by its own checksum, and is never changed: where
anything differs, another one is written.
"""

import hashlib
import json
import mmap
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from PIL import Image, ImageFile, features
from transformers.utils import logging

from .decoding import PIXEL_LIMIT_VARIABLE, fault_of_header, fault_of_pixels, refuse_faults
from .parallel import in_chunks

logger = logging.get_logger(__name__)

FOLDER = ".hf_deit_folders"  # in the cache of datasets; hidden, for it may lie in a folder of images
# How far a file was looked into and found good: its place in this list.
CHECKS = ("none", "headers", "all")
_FORMAT = 1
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as datasets stores it
_NOTES = {"size": pa.int64(), "modified": pa.int64(), "checked": pa.int8()}  # bytes, ns, of `CHECKS`
BATCH_ROWS = 1 << 16
_CHUNK = 256  # files that are looked into one after the other
_PREFIX = b"folder"
_DAY = 86_400.0
_UNUSED_DAYS = 30  # a run may be at work for long, whose loaders open its table again for each new process
_SECONDS_UNTIL_TOLD, _PATIENCE = 2.0, 600.0


def image_batch(paths: list[str], labels: list[int] | None = None) -> pa.RecordBatch:
    """Rows of a listing: the column "image", and "label" if there are any."""
    images = pa.StructArray.from_arrays(
        [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())], fields=list(_IMAGE)
    )
    return pa.record_batch({"image": images, **({} if labels is None else {"label": pa.array(labels, pa.int64())})})


def check_and_keep(listed: pa.Table, folder: str, *, on_bad_image: str, check_images: str) -> str | None:
    """Looks into the files of a listing, as far as that was not done before, and keeps it for the next run.

    Args:
        listed: all files of the folder, of batches from `image_batch`.
        folder: as it begins their paths.
        on_bad_image: "stop" refuses any file that cannot be used, "skip" only all of them.
        check_images: of `CHECKS`. Where bad images are skipped, one good header is enough; "all" tells which are bad.

    Returns:
        The file of the table, or None where none can be written.

    Raises:
        InputError: files cannot be used.
    """
    place = _Place(folder, is_labelled="label" in listed.column_names)
    with place.alone():
        before = place.read()
        notes = _notes(listed, before, place.prefix, is_current=check_images != "none")
        faults = {}
        try:
            _look(pc.struct_field(listed["image"], "path"), notes.checked, faults, on_bad_image, check_images)
        finally:  # one that is stopped goes on from there
            kept = place.keep(notes.beside(listed), before)
    refuse_faults(faults, len(listed), f"files in {folder!r}", on_bad_image, tells=check_images == "all")
    return kept


def kept_images(file: str | None, columns: datasets.Features) -> datasets.Dataset | None:
    """The images of a folder, from the file of their table, which is mapped into memory.

    Args:
        file: from `check_and_keep`.
        columns: "image", and "label" if there are any, with their types.

    Returns:
        None if it is not there (any more).
    """
    if file is None:
        return None
    notes = {name: datasets.Value(str(kind)) for name, kind in _NOTES.items()}
    info = datasets.DatasetInfo(features=datasets.Features({**columns, **notes}))
    try:
        return datasets.Dataset.from_file(file, info=info).select_columns(list(columns))
    except OSError:  # another run has replaced it a moment ago
        return None


class _Notes(NamedTuple):
    """What is known of files, (N,) each: size in bytes and time in ns, -1 if unknown, and how far they are good."""

    size: np.ndarray
    modified: np.ndarray
    checked: np.ndarray

    def beside(self, listed: pa.Table) -> pa.Table:
        columns = dict(zip(listed.column_names, listed.columns, strict=True))
        return pa.table(columns | {name: pa.array(getattr(self, name), kind) for name, kind in _NOTES.items()})


class _Kept(NamedTuple):
    """A table that was kept, and where."""

    file: str
    table: pa.Table


def _notes(listed: pa.Table, before: _Kept | None, prefix: str, *, is_current: bool) -> _Notes:
    """What is known of the files of a listing.

    Args:
        before: the table that was kept of them.
        prefix: of their paths.
        is_current: whether to ask for their sizes and times; if not, they stand as they were.
    """
    paths = pc.struct_field(listed["image"], "path")
    rows = _rows_before(paths, before, prefix)
    known = _Notes(np.full(len(paths), -1), np.full(len(paths), -1), np.zeros(len(paths), np.int8))
    for name, values in known._asdict().items() if before is not None else ():
        values[rows >= 0] = before.table[name].to_numpy()[rows[rows >= 0]]
    if not is_current:
        return known
    found = [*in_chunks(_sizes_and_times, _texts(paths), size=_CHUNK, total=len(paths), title="looking for changes")]
    size, modified = np.concatenate(found).T.copy()
    is_same = (size >= 0) & (size == known.size) & (modified == known.modified)
    return _Notes(size, modified, np.where(is_same, known.checked, np.int8(0)))


def _rows_before(paths: pa.ChunkedArray, before: _Kept | None, prefix: str) -> np.ndarray:
    """Where files stand in a table that was kept, (N,) int64, -1 for nowhere."""
    if before is None:
        return np.full(len(paths), -1)
    there = pc.struct_field(before.table["image"], "path")
    if there.equals(paths):
        return np.arange(len(paths))
    own, others = (
        pc.utf8_slice_codeunits(column.cast(pa.large_string()), start=len(start)).combine_chunks()
        for column, start in ((paths, prefix), (there, before.table.schema.metadata[_PREFIX].decode()))
    )
    return pc.index_in(own, value_set=others).fill_null(-1).to_numpy().astype(np.int64)


def _look(
    paths: pa.ChunkedArray, checked: np.ndarray, faults: dict[str, tuple[str, str]], on_bad_image: str, check: str
) -> None:
    """Looks into files, notes in `checked` how far they are good, and collects the `faults` of the others by path."""
    is_enough_one = on_bad_image == "skip" and check == "headers"
    wanted = CHECKS.index(check)
    if is_enough_one and (checked >= wanted).any():
        return
    todo = np.flatnonzero(checked < wanted)
    fault_of, computes = (fault_of_pixels, True) if check == "all" else (fault_of_header, False)

    def look(chunk: list[str]) -> list[tuple[str, tuple[str, str] | None]]:
        return [(path, fault_of(path)) for path in chunk]

    done = 0
    texts = _texts(paths if len(todo) == len(paths) else paths.take(pa.array(todo)))
    settings = {"size": 16 if computes else _CHUNK, "computes": computes, "total": len(todo), "title": "checking"}
    for found in in_chunks(look, texts, **settings):
        for path, fault in found:
            if fault is None:
                checked[todo[done]] = wanted
            else:
                faults[path] = fault
            done += 1
        if is_enough_one and done > len(faults):
            return


def _texts(paths: pa.ChunkedArray) -> Iterator[str]:
    for start in range(0, len(paths), BATCH_ROWS):
        yield from paths[start : start + BATCH_ROWS].to_pylist()


def _sizes_and_times(paths: list[str]) -> np.ndarray:
    """(N, 2) int64, as of `_Notes`."""

    def look(path: str) -> tuple[int, int]:
        try:
            state = os.stat(path)
        except OSError:
            return -1, -1
        return state.st_size, state.st_mtime_ns

    return np.array([look(path) for path in paths], np.int64)


class _Place:
    """Where tables of a folder are kept: among those of others, under a name that it alone has.

    What a check says depends on Pillow, on what it can read, and on how large images may be: so does the name.

    Args:
        folder: of images.
        is_labelled: whether its folders are classes.

    Attributes:
        prefix: of the paths of its files.
    """

    def __init__(self, folder: str, *, is_labelled: bool) -> None:
        added = sorted(name for name, (opener, _) in Image.OPEN.items() if not opener.__module__.startswith("PIL."))
        limit = os.environ.get(PIXEL_LIMIT_VARIABLE, Image.MAX_IMAGE_PIXELS)
        means = [PIL.__version__, features.get_supported(), added, limit, ImageFile.LOAD_TRUNCATED_IMAGES]
        named = [_FORMAT, os.fsencode(os.path.realpath(folder)).hex(), is_labelled, means]
        self._key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]
        self._cache = os.path.join(datasets.config.HF_DATASETS_CACHE, FOLDER)
        self._schema = {"image": _IMAGE} | ({"label": pa.int64()} if is_labelled else {}) | _NOTES
        self.prefix = os.path.join(folder, "")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One run looks into a folder; others that start meanwhile wait for what it finds. Where there are no locks,
        or one takes very long, each looks for itself."""
        lock = FileLock(os.path.join(self._cache, f"{self._key}.lock"))
        with suppress(OSError, NotImplementedError):  # a timeout, too
            os.makedirs(self._cache, exist_ok=True)
            try:
                lock.acquire(timeout=_SECONDS_UNTIL_TOLD)
            except Timeout:
                logger.warning("another run looks into the images of %s: waiting for what it finds", self.prefix)
                lock.acquire(timeout=_PATIENCE)
        try:
            yield
        finally:
            with suppress(OSError):
                lock.release()

    def read(self) -> _Kept | None:
        """The newest table that is whole."""
        found = sorted(self._files(), key=lambda file: -file[1])
        return next((kept for path, _ in found if (kept := self._whole(path)) is not None), None)

    def keep(self, table: pa.Table, before: _Kept | None) -> str | None:
        """Writes a table, unless it is the one that is there; gives its file, or None if it cannot be written."""
        if before is not None and before.table.equals(table):
            with suppress(OSError):
                os.utime(before.file)
            return before.file
        temporary = os.path.join(self._cache, f"{self._key}-{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as file:
                schema = table.schema.with_metadata({_PREFIX: self.prefix.encode()})
                with pa.ipc.new_stream(file, schema) as writer:
                    writer.write_table(table, max_chunksize=BATCH_ROWS)
            path = os.path.join(self._cache, f"{self._key}-{_checksum(temporary)}.arrow")
            os.replace(temporary, path)
        except OSError as error:
            logger.warning_once(
                f"what is found out about images cannot be kept in {self._cache} ({error.strerror or error}): it is "
                "found out again at the next start, and each process holds the list of images for itself. "
                "HF_DATASETS_CACHE names another folder"
            )
            return None
        finally:
            with suppress(OSError):
                os.remove(temporary)
        self._tidy()
        return path

    def _whole(self, path: str) -> _Kept | None:
        try:
            if not path.endswith(f"-{_checksum(path)}.arrow"):
                return None
            table = pa.ipc.open_stream(pa.memory_map(path)).read_all()
        except (OSError, ValueError, pa.ArrowException):
            return None
        is_one = dict(zip(table.schema.names, table.schema.types, strict=True)) == self._schema
        return _Kept(path, table) if is_one and _PREFIX in (table.schema.metadata or {}) else None

    def _files(self) -> Iterator[tuple[str, float]]:
        """The files of tables in the cache that are whole by their names, with their times: of this folder."""
        return self._matching(rf"{self._key}-[0-9a-f]{{8}}\.arrow")

    def _matching(self, pattern: str) -> Iterator[tuple[str, float]]:
        with suppress(OSError):
            for entry in list(os.scandir(self._cache)):
                with suppress(OSError):  # another run has removed it
                    if re.fullmatch(pattern, entry.name) and entry.is_file():
                        yield entry.path, entry.stat().st_mtime

    def _tidy(self) -> None:
        """Removes what no run has asked for in a long time, of any folder."""
        for path, modified in self._matching(r"[0-9a-f]{32}(-[0-9a-f]{8})?\.(arrow|tmp|lock)"):
            if time.time() - modified > _UNUSED_DAYS * _DAY:
                with suppress(OSError):
                    os.remove(path)


def _checksum(path: str) -> str:
    """The CRC-32 of a file, which is mapped into memory anyway.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return f"{zlib.crc32(content):08x}"
