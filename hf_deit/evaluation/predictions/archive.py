"""The image files in an archive."""

import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import datasets

from ...data.folders import is_left_out
from ...data.streams import READING_ERRORS
from ...errors import InputError, escaped, first_line
from .image_names import image_by_name, is_image_file

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)
_FEATURES = datasets.Features({"image": datasets.Image()})


def load_archive(path: str) -> datasets.Dataset:
    """The images in a ZIP or tar file as a data set with the column "image" alone, in the order of the archive.

    They are copied to datasets' cache: an archive is read from its beginning, not at any place.

    Args:
        path: ends with one of `ARCHIVES`.

    Raises:
        InputError: it cannot be read, or there are none.
    """
    try:
        state = os.stat(path)
        told = {"path": os.path.abspath(path), "size": state.st_size, "changed": state.st_mtime_ns}  # of the cache
        return datasets.Dataset.from_generator(_images_in, _FEATURES, gen_kwargs=told)
    except (*_DAMAGED, *READING_ERRORS) as error:
        raise InputError(f"cannot read images from {path!r}: {first_line(error.__cause__ or error)}") from error


def _images_in(path: str, size: int, changed: int) -> Iterator[dict[str, Any]]:
    is_empty = True
    for name, read in (_in_zip if path.lower().endswith(".zip") else _in_tar)(path):
        parts = set(name.split("/")) - {os.curdir, os.pardir}
        if image_by_name(name) is False or any(map(is_left_out, parts)):
            continue
        content = read()
        if is_image_file(name, io.BytesIO(content)):
            is_empty = False
            yield {"image": {"path": escaped(name), "bytes": content}}
    if is_empty:
        raise ValueError("it holds no images")


def _in_zip(path: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(path) as archive:

        def read(member: zipfile.ZipInfo) -> bytes:
            try:
                return archive.read(member)
            except _DAMAGED:  # whoever decodes it finds no image
                return b""

        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, partial(read, member)


def _in_tar(path: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member).read
