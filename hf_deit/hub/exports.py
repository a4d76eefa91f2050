"""What is published of exports beside a model: those of these very weights, file by file as they were written.

A record, export.json, may come from whomever, and so may the files that it names: nothing else of their folders is
taken, and none that names a folder of a machine.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from transformers.utils import logging

from ..errors import InputError, command, one_line, printable, shortlist
from ..models.pretrained import weights_digest
from .export_record import FILE_NAME, FORMATS, RECORD_FILE, ExportRecord, read_record
from .files import copy_content, open_regular, read_json, regular_file, write_json
from .foreign_json import without_paths
from .report_in_card import preprocessing_digest

logger = logging.get_logger(__name__)

# Of programs that were traced, by whom: the lines of Python's tracebacks, plain or in JSON, and folders of people.
_MACHINE = re.compile(
    rb"File \\?[\"'](?:/|[A-Za-z]:[\\/])|[\\/](?:site|dist)-packages[\\/]|/(?:home|Users)/[\w.-]+/|/root/"
    rb"|[A-Za-z]:\\{1,2}Users\\"
)
_LONGEST_PATTERN = 64
# Reference preprocessors, to be read and ported; other code is none of an export's.
_PREPROCESSORS = ("executorch/preprocessing.py", "executorch/preprocessing.js")
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".sh", ".js", ".mjs", ".exe", ".html", ".pkl")
_CHUNK = 1 << 20


def stage_exports(folder: str | os.PathLike[str], tree: str | os.PathLike[str]) -> None:
    """Collects what is published of the exports beside a model; what is not theirs is left out, and why is warned of.

    Args:
        folder: the model's.
        tree: where the model has been collected. Exports of weights that waited for a push before go from it.

    Raises:
        OSError: it cannot be written.
    """
    for format in FORMATS:
        target = os.path.join(tree, format)
        shutil.rmtree(target, ignore_errors=True)
        try:
            record = _own_record(folder, format)
            if record is None:
                continue
            os.makedirs(target)
            for file in record.files:
                _take(regular_file(folder, f"{format}/{file.name}"), os.path.join(target, file.name), file.sha256)
        except (InputError, ValueError) as error:
            shutil.rmtree(target, ignore_errors=True)
            logger.warning(
                "the export in %r is left out of what is published, as %s: make it again, with %s",
                printable(os.path.join(folder, format)),
                printable(one_line(error)),
                command("export", "--model", printable(os.fspath(folder)), "--to", format),
            )
            continue
        _warn_of_others(os.path.join(folder, format), {file.name for file in record.files})
        # What is published of the configuration may be less than what lies there.
        digests = {"weights_digest": weights_digest(tree), "preprocessing_digest": preprocessing_digest(tree)}
        published = replace(record, model={**record.model, **digests})
        values = _without_images(without_paths(published.to_dict()))
        # Labels are names, as Open Images' /m/01g317: their users find answers by them.
        write_json({**values, "labels": list(record.labels)}, os.path.join(target, RECORD_FILE))


def _without_images(value: Any) -> Any:
    """A record that names no files of images."""
    if isinstance(value, Mapping):
        empty = {"differing": [], "left_out": {}}
        return {name: empty[name] if name in empty else _without_images(item) for name, item in value.items()}
    return [*map(_without_images, value)] if isinstance(value, list | tuple) else value


def _own_record(folder: str | os.PathLike[str], format: str) -> ExportRecord | None:
    """The record of an export that belongs to the model in a folder; None if there is no export.

    Raises:
        ValueError: it is of another model, or cannot be read.
        InputError: the model cannot be read.
    """
    record = read_record(folder, format)
    if record is None:
        return None
    for name, of, own in (
        ("weights_digest", "weights, or of another configuration,", weights_digest),
        ("preprocessing_digest", "preprocessing", preprocessing_digest),
    ):
        stated = record.model.get(name)
        if stated is None:
            raise ValueError(f"it does not say its {name}: it was made from the Hub, or by an earlier version")
        if stated != own(folder):
            raise ValueError(f"it is of other {of} than the model's")
    if not record.files:
        raise ValueError("it names no files")
    if code := [
        file.name
        for file in record.files
        if file.name.endswith(_CODE) and f"{format}/{file.name}" not in _PREPROCESSORS
    ]:
        raise ValueError(f"it holds code that no export consists of ({shortlist(code)})")
    return record


def _take(path: str, target: str, sha256: str) -> None:
    """Copies a file of an export, which is then looked through: what is published is what was looked at.

    Raises:
        ValueError: it is not as it was written, or names a folder of a machine.
    """
    try:
        copy_content(path, target)
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise ValueError(one_line(error)) from error
        raise
    digest, rest = hashlib.sha256(), b""
    with open_regular(target) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if found := _MACHINE.search(rest + chunk):
                words = printable(found[0].decode("latin-1"))
                raise ValueError(f"{os.path.basename(path)} names folders of the machine that made it ({words!r})")
            rest = chunk[-_LONGEST_PATTERN:]
    if digest.hexdigest() != sha256:
        raise ValueError(f"{os.path.basename(path)} is not as it was written")


def _warn_of_others(folder: str, names: Iterable[str]) -> None:
    if others := sorted({*os.listdir(folder)} - {*names, RECORD_FILE}):
        logger.warning(
            "left out of what is published, as the export in %r does not name them: %s",
            printable(folder),
            printable(shortlist(others)),
        )


def staged_exports(tree: str | os.PathLike[str]) -> tuple[ExportRecord, ...]:
    """What `stage_exports` has put into a tree."""
    records = (read_record(tree, format) for format in FORMATS)
    return tuple(record for record in records if record is not None)


def files_of_export(format: str, path: str | os.PathLike[str]) -> set[str]:
    """The files of the export that is published with this export.json, itself among them, by their names there."""
    names: set[str] = set()
    try:
        names = {file["name"] for file in _listed(path) if FILE_NAME.fullmatch(file["name"])}
    except (OSError, ValueError, KeyError, TypeError):
        return names  # it is none of ours
    return {f"{format}/{name}" for name in (*names, RECORD_FILE)}


def _listed(path: str | os.PathLike[str]) -> Any:
    return read_json(path)["files"]
