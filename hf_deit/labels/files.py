"""Files of labels: one parquet format for whole epochs and for parts of them, written at once or not at all."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CheckpointError, InputError, first_line, shortlist
from ..hub.files import name_of_temporary
from ..models.answers import NO_ANSWER
from ..models.keyed import fold_array
from .checks import fault_in_length, fault_in_nulls, fault_in_sizes, fault_in_values
from .footer import read_footer
from .identity import FORMAT, StoreIdentity, write_labels

STORE_FILE, DATA, PARTS, LOCK_FILE = "store.json", "data", "parts", ".lock"
# In memory: what stands for a null label, and for a slot that is not there. `NO_ANSWER` stands for a view that the
# teacher gave none; in a file it is the number behind the last label, and the file then has a format of its own, as
# earlier versions would take it for a label.
TRUE_LABEL, ABSENT = -1, -2
_FORMAT_WITHOUT_ANSWERS = 2
# One view in so many has its CRC kept; in small epochs more, so that there are about 16.
_CRC_EVERY, _CRCS_PER_EPOCH, _CRC_PURPOSE = 1000, 16, 3
LOCK_SECONDS = 10.0  # the workers of a run that was killed keep its lock until they notice
# What pyarrow raises for files that are none of its own.
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError)

Columns = dict[str, np.ndarray]  # by the names of the file's columns, (N,) or (N, k)


def wants_crc(identity: StoreIdentity, epoch: int, slots: np.ndarray) -> np.ndarray:
    """Which views have the CRC of their pixels kept: (B,) bool, a pure function of (seed, epoch, slot)."""
    every = min(_CRC_EVERY, max(1, identity.views_per_epoch // _CRCS_PER_EPOCH))
    return fold_array(identity.seed, epoch, _CRC_PURPOSE, last=slots) % np.uint64(every) == 0


def check_new_folder(folder: str | os.PathLike[str]) -> None:
    """Refuses to make a store of a folder that holds something else, or to write to it as if it were one.

    A store has its description. Without one a folder is empty, but for what a run that was killed at once has left.

    Raises:
        InputError: the folder has files, and none of a store; or a description that is of something else.
    """
    folder = os.fspath(folder)
    if is_store(folder):
        StoreIdentity.read(os.path.join(folder, STORE_FILE))
        return
    try:
        other = next(_foreign(folder), None) if os.path.isdir(folder) else None
    except OSError as error:
        raise InputError(f"cannot look into {folder!r} ({error.strerror or error}): give a new folder") from error
    if other is not None:
        raise InputError(
            f"{folder!r} is no label store, as it has no {STORE_FILE}, and it is not empty, as it has {other!r}: "
            "give a new folder"
        )


def _foreign(folder: str) -> Iterator[str]:
    """What lies in a folder and is nothing that a store has before its description."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name in (DATA, PARTS) and os.path.isdir(path):
            yield from (f"{name}/{inside}" for inside in sorted(os.listdir(path)))
            continue
        is_lock = name == LOCK_FILE and is_regular(path) and os.path.getsize(path) == 0
        if not is_lock and not (is_regular(path) and name_of_temporary(name) == STORE_FILE):
            yield name


def is_regular(path: str) -> bool:
    """Whether a path is a file itself: no link to one, no folder, no device."""
    return os.path.isfile(path) and not os.path.islink(path)


def is_store(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a label store."""
    return os.path.exists(os.path.join(folder, STORE_FILE))


def has_labels(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a store with labels. One without any may become the store of any run."""
    if not is_store(folder):
        return False
    parents = [os.path.join(folder, name) for name in (DATA, PARTS)]
    return any(name.endswith(".parquet") for parent in parents if os.path.isdir(parent) for name in os.listdir(parent))


def probe_store(folder: str | os.PathLike[str]) -> None:
    """Checks that a folder can be written to as a store, whatever the labels depend on.

    Raises:
        InputError: the folder holds something else, or another process writes to it.
        CheckpointError: nothing can be written there.
    """
    check_new_folder(folder)
    lock_store(folder).release()


def lock_store(folder: str | os.PathLike[str]) -> filelock.BaseFileLock:
    """Makes the folders of a store and takes its lock, which ends with the process.

    Raises:
        InputError: another process has it.
        CheckpointError: nothing can be written there.
    """
    folder = os.fspath(folder)
    try:
        for name in (DATA, PARTS):
            os.makedirs(os.path.join(folder, name), exist_ok=True)
        lock = filelock.FileLock(os.path.join(folder, LOCK_FILE), thread_local=False)
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout as error:
        raise InputError(
            f"another run writes to the label store {folder!r}: wait until it ends, give another folder, or only read "
            "(readonly)"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot write to the label store {folder!r} ({error.strerror or error}): mend its rights or the space on "
            "its disk, give another folder, or only read (readonly)"
        ) from error
    return lock


def discard_unused(folder: str | os.PathLike[str]) -> None:
    """Removes the files of a store that has no labels and that no process uses, so that its folders are empty."""
    folder = os.fspath(folder)
    lock = os.path.join(folder, LOCK_FILE)
    if not os.path.exists(lock) or has_labels(folder):
        return
    try:
        check_new_folder(folder)
    except InputError:  # it is somebody else's
        return
    with suppress(OSError, filelock.Timeout), filelock.FileLock(lock, timeout=0):
        for name in (STORE_FILE, LOCK_FILE):
            with suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))


def schema_of(identity: StoreIdentity) -> pa.Schema:
    """The columns of a store's files."""
    label = pa.uint16() if identity.num_labels <= 65535 else pa.uint32()
    schema = {"slot": pa.uint32(), "label": label, "pixel_crc": pa.uint32()}
    if k := identity.top_k:
        schema |= {"top_labels": pa.list_(label, k), "top_logits": pa.list_(pa.float16(), k)}
        schema["rest_logit"] = pa.float16()
    return pa.schema(schema)


def _checksum(epoch: int, columns: Columns, identity: StoreIdentity) -> str:
    digest = hashlib.sha256(f"{FORMAT} {epoch} {identity.digest}".encode())
    for name in schema_of(identity).names:
        digest.update(np.ascontiguousarray(columns[name]))
    return digest.hexdigest()


def damaged(path: str | os.PathLike[str], reason: str) -> InputError:
    """The error for a file that holds no labels of a store."""
    return InputError(
        f"{os.fspath(path)!r} holds no labels of this store ({reason}): delete that file, and it is recorded, or "
        "downloaded, anew"
    )


def read_columns(path: str | os.PathLike[str], epoch: int, identity: StoreIdentity) -> Columns:
    """Reads a file, whoever wrote it: what it claims is checked before it is read, what it holds before it is used.

    Raises:
        InputError: it is truncated, corrupt, of another epoch or store, or holds what no view of the store can have.
    """
    if not os.path.isfile(path):
        raise damaged(path, "there is no such file")
    expected = schema_of(identity)
    try:
        fault = fault_in_length(os.path.getsize(path), identity)
        if fault := fault or fault_in_sizes(read_footer(path), expected.names, identity):
            raise damaged(path, fault)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            about = _checked_about(path, file, epoch, identity)
            table = file.read()
        if fault := fault_in_nulls(table):
            raise damaged(path, fault)
        arrays = {name: table[name].combine_chunks() for name in expected.names}
        arrays["label"] = arrays["label"].cast(pa.int64()).fill_null(TRUE_LABEL)
        arrays["pixel_crc"] = arrays["pixel_crc"].cast(pa.int64()).fill_null(-1)
        columns = {
            name: array.flatten().to_numpy(zero_copy_only=False).reshape(-1, identity.top_k)
            if pa.types.is_fixed_size_list(array.type)
            else array.to_numpy(zero_copy_only=False)
            for name, array in arrays.items()
        }
    except InputError:
        raise
    except _DAMAGE as error:
        raise damaged(path, f"truncated or corrupt: {first_line(error)}") from error
    if about["format"] == str(_FORMAT_WITHOUT_ANSWERS):
        columns["label"] = np.where(columns["label"] == identity.num_labels, NO_ANSWER, columns["label"])
    if fault := fault_in_values(columns, identity):
        raise damaged(path, fault)
    columns["label"] = columns["label"].astype(np.int32)
    if about.get("checksum") != _checksum(epoch, columns, identity):
        raise damaged(path, "corrupt: its checksum is another")
    return columns


def _checked_about(
    path: str | os.PathLike[str], file: pq.ParquetFile, epoch: int, identity: StoreIdentity
) -> dict[str, str]:
    """What a file says of itself: its format, epoch, identity and checksum.

    Raises:
        InputError: it is of another epoch or store.
    """
    schema, expected = file.schema_arrow, schema_of(identity)
    if not schema.remove_metadata().equals(expected):
        raise damaged(path, f"got the columns {shortlist(schema.names)}, expected {expected.names} and their types")
    about = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    formats = (str(FORMAT), str(_FORMAT_WITHOUT_ANSWERS))
    for name, wanted in (("format", formats), ("epoch", (str(epoch),)), ("identity", (identity.digest,))):
        if about.get(name) not in wanted:
            raise damaged(path, f"its {name} is {str(about.get(name))[:80]}, expected {' or '.join(wanted)}")
    return about


def write_columns(path: str | os.PathLike[str], epoch: int, columns: Columns, identity: StoreIdentity) -> None:
    """Writes columns as a file with one row group.

    Args:
        columns: sorted by slot, with the types of `no_views`; `TRUE_LABEL` and negative CRCs become nulls.

    Raises:
        CheckpointError: it cannot be written, say on a full disk.
    """
    has_no_answer = columns["label"] == NO_ANSWER
    format_of_file = _FORMAT_WITHOUT_ANSWERS if has_no_answer.any() else FORMAT
    about = {"format": str(format_of_file), "epoch": str(epoch), "identity": identity.digest}
    schema = schema_of(identity).with_metadata({**about, "checksum": _checksum(epoch, columns, identity)})
    arrays = []
    for field in schema:
        column = columns[field.name]
        if field.name == "label":
            column = np.where(has_no_answer, identity.num_labels, column)
        if pa.types.is_fixed_size_list(field.type):
            flat = pa.array(column.ravel(), field.type.value_type)
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
        elif field.name in ("label", "pixel_crc"):
            arrays.append(pa.array(np.maximum(column, 0), field.type, mask=column < 0))
        else:
            arrays.append(pa.array(column, field.type))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(arrays, schema=schema),
        sink,
        row_group_size=max(len(columns["slot"]), 1),
        compression="zstd",
        compression_level=6,
        use_dictionary=["label"],  # ten bits for a thousand classes, and zstd's entropy coder on top
        column_encoding={"slot": "DELTA_BINARY_PACKED"},
        write_statistics=False,
        write_page_checksum=True,
    )
    write_labels(sink.getvalue(), path)


def merge(parts: Sequence[Columns], epoch: int, name: str) -> Columns:
    """Merges parts of an epoch into one, sorted by slot, each slot once.

    Args:
        name: of the store, for messages.

    Raises:
        InputError: a slot is there twice, with different labels or pixels.
    """
    together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(together["slot"], kind="stable")
    together = {key: column[order] for key, column in together.items()}
    slots, labels, crcs = together["slot"], together["label"], together["pixel_crc"]
    again = slots[1:] == slots[:-1]
    crcs_differ = (crcs[1:] != crcs[:-1]) & (crcs[1:] >= 0) & (crcs[:-1] >= 0)
    contradicting = np.flatnonzero(again & ((labels[1:] != labels[:-1]) | crcs_differ))
    if len(contradicting):
        first = contradicting[0]
        words = {TRUE_LABEL: "as the true one", NO_ANSWER: "none"}
        one, other = (f"label {words.get(labels[i], labels[i])}, CRC {crcs[i]}" for i in (first, first + 1))
        raise InputError(
            f"{len(contradicting)} of {int(again.sum())} views of epoch {epoch} that were recorded twice in {name} "
            f"contradict each other, the first one slot {slots[first]} ({one}; {other}): teacher or pixels have "
            f"changed. Delete the files of the epoch (epoch-{epoch:05d}…) and record it anew"
        )
    if again.any():
        first_of_each = np.concatenate([[True], ~again])
        together = {key: column[first_of_each] for key, column in together.items()}
    return together


def no_views(identity: StoreIdentity) -> Columns:
    """The columns of a file without rows, with the types that they have in memory."""
    columns = {"slot": np.empty(0, np.uint32), "label": np.empty(0, np.int32), "pixel_crc": np.empty(0, np.int64)}
    if k := identity.top_k:
        labels = schema_of(identity).field("label").type.to_pandas_dtype()
        columns |= {"top_labels": np.empty((0, k), labels), "top_logits": np.empty((0, k), np.float16)}
        columns["rest_logit"] = np.empty(0, np.float16)
    return columns
