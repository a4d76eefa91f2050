"""The folders of exports in their place: replaced as a whole or left as they were, and never of two models.

New exports are made and proven in a work folder beside them. A process that is killed leaves that; whoever comes next
puts back what it had taken away, and removes it.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import InputError, first_line, shortlist
from ..hub.export_record import FORMATS, RECORD_FILE, ExportedFile, ExportRecord
from ..hub.files import is_leftover, read_json, write_json, writing
from ..hub.run_lock import not_writable
from ..models.pretrained import weights_digest

_WORK = re.compile(r"\.export\.[0-9a-f]{8}\.tmp")
# In the work folder: what stood in the place of new exports, and what is to be moved.
_REPLACED, _PLAN = "replaced", "names.json"
# What transformers.js and Optimum look for above the folder of an export.
BESIDE = ("config.json", "preprocessor_config.json")


def check_place(folder: str, formats: Sequence[str], identity: Mapping[str, Any]) -> None:
    """Refuses a folder whose exports cannot be replaced, or would then be of two models.

    Args:
        folder: that the folders of the formats lie in; it need not be there.
        formats: to be exported.
        identity: of the model, see `identity_of`.

    Raises:
        InputError: with what to do.
    """
    check_replaceable(folder, formats)
    for name in sorted(set(FORMATS) - set(formats)):
        record = record_in(os.path.join(folder, name))
        if record and identity_of(record.model, record.labels, record.preprocessing) != identity:
            raise InputError(
                f"{os.path.join(folder, name)!r} holds an export of another model, or of other weights or "
                f"preprocessing: export to {name}, too (--to {' '.join([*formats, name])}), give another "
                "--output_dir, or remove it"
            )
    _check_beside(folder, identity)


def _check_beside(folder: str, identity: Mapping[str, Any]) -> None:
    """Refuses a folder whose own model, or configuration, is not that of the exports."""
    if not os.path.isfile(os.path.join(folder, BESIDE[0])):
        return
    try:
        digest = weights_digest(folder)
    except InputError:  # a configuration alone, as there is beside exports
        if not any(record_in(os.path.join(folder, name)) for name in FORMATS):
            raise InputError(
                f"the output folder {folder!r} holds a {BESIDE[0]} of no export, which would be replaced: give "
                "another --output_dir, or move it away"
            ) from None
        return
    if digest != identity["model"]["weights_digest"]:
        raise InputError(
            f"the output folder {folder!r} holds a model with other weights than those that are exported: give "
            "another --output_dir"
        )


def identity_of(model: Mapping[str, Any], labels: Sequence[str], preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one exported model from another, as JSON has it; see `ExportRecord`."""
    return json.loads(json.dumps({"model": model, "labels": list(labels), "preprocessing": preprocessing}))


def record_in(folder: str) -> ExportRecord | None:
    """The record of an export in a folder; None if there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = os.path.join(folder, RECORD_FILE)
    try:
        return ExportRecord.from_dict(read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"cannot read {path!r}, which says what is exported there ({first_line(error)}): remove the folder, or "
            "give another --output_dir"
        ) from error


def check_replaceable(folder: str, formats: Sequence[str]) -> None:
    """Refuses a folder where exports cannot lie, or would replace what is no export.

    Args:
        folder, formats: see `check_place`.

    Raises:
        InputError: with what to do.
    """
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"the output folder {folder!r} is no folder: give another --output_dir")
    for name in formats:
        _check_replaceable(os.path.join(folder, name))


def _check_replaceable(folder: str) -> None:
    if not os.path.lexists(folder):
        return
    if os.path.islink(folder) or not os.path.isdir(folder):
        raise InputError(f"{folder!r} is no folder, expected an earlier export, or nothing: move it away")
    record = record_in(folder)
    own = {RECORD_FILE, *(file.name for file in record.files)} if record else set()
    others = sorted(e.name for e in os.scandir(folder) if e.name not in own and not is_leftover(e.path))
    if others:
        kind = "files beside an earlier export" if record else "what no export of hf-deit has written"
        raise InputError(
            f"{folder!r} holds {kind} ({shortlist(others)}), which would be lost as the folder is replaced as a "
            "whole: move that away, or give another --output_dir"
        )


def recover(folder: str) -> None:
    """Undoes what a killed process has moved, and removes what it was making. For the one that holds the folder.

    Raises:
        OSError: nothing can be moved or removed.
    """
    if not os.path.isdir(folder):
        return
    for entry in list(os.scandir(folder)):
        if _WORK.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            _move_back(entry.path, folder)
            shutil.rmtree(entry.path)


@contextmanager
def work_folder(folder: str) -> Iterator[str]:
    """A folder to make new exports in, beside their place, which is removed with all that is in it.

    Args:
        folder: that the exports' folders lie in.

    Raises:
        InputError: nothing can be written there.
        CheckpointError: the disk refuses, in the middle of it.
    """
    path = os.path.join(folder, f".export.{secrets.token_hex(4)}.tmp")
    try:
        recover(folder)
        os.mkdir(path)
    except OSError as error:
        raise not_writable(folder, error) from error
    unread: BrokenPipeError | None = None
    try:
        with writing(f"the export into {folder!r}"):
            try:
                yield path
            except BrokenPipeError as error:  # nobody reads what is printed meanwhile: no fault of the disk
                unread = error
        if unread is not None:
            raise unread
    finally:
        if not os.path.isdir(os.path.join(path, _REPLACED)):  # else what stood there could not be put back yet
            shutil.rmtree(path, ignore_errors=True)


def move_into_place(work: str, folder: str, names: Sequence[str]) -> None:
    """Lets new folders take the place of those of the same name, all or none of them.

    Args:
        work: of `work_folder`, that holds them.
        folder: where they shall lie.
        names: of the folders, and of files beside them.

    Raises:
        OSError: they cannot be moved; those that stood there are back.
    """
    write_json({"names": list(names)}, os.path.join(work, _PLAN))
    replaced = os.path.join(work, _REPLACED)
    os.mkdir(replaced)
    try:
        for name in names:
            if os.path.lexists(os.path.join(folder, name)):
                os.rename(os.path.join(folder, name), os.path.join(replaced, name))
            os.rename(os.path.join(work, name), os.path.join(folder, name))
        os.rename(replaced, f"{replaced}.all")  # from here on nothing is undone
    except BaseException:
        _move_back(work, folder)
        raise


def _move_back(work: str, folder: str) -> None:
    """Undoes `move_into_place`, wherever that was stopped, unless it was through."""
    replaced = os.path.join(work, _REPLACED)
    if not os.path.isdir(replaced):
        return
    for name in read_json(os.path.join(work, _PLAN))["names"]:
        new, place, old = (os.path.join(where, name) for where in (work, folder, replaced))
        if not os.path.lexists(new) and os.path.lexists(place):
            os.rename(place, new)
        if os.path.lexists(old):
            os.rename(old, place)
    os.rmdir(replaced)  # from here on nothing is moved again: the work folder may go piece by piece


def files_of(folder: str, classifiers: Mapping[str, str], precisions: Mapping[str, str]) -> tuple[ExportedFile, ...]:
    """What an export consists of, with sizes and digests.

    Args:
        folder: that holds it, without its record.
        classifiers: the purpose of files that are opened, by name.
        precisions: of the weights in a file, by the file's name without its ending.

    Raises:
        OSError: a file cannot be read.
    """
    found = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        purpose = classifiers.get(name, "support")
        precision = precisions.get(name.partition(".")[0])
        found.append(ExportedFile(name, purpose, precision, os.path.getsize(path), digest))
    return tuple(found)


def write_record(folder: str, record: ExportRecord) -> None:
    """Writes the record of an export, which makes a folder one.

    Raises:
        OSError: it cannot be written.
    """
    write_json(record.to_dict(), os.path.join(folder, RECORD_FILE))
