"""A folder, or a data set on the Hub, may be anybody's: it is a store's own, or is refused by name and stays as it is.

What claims to be labels and cannot be is refused before memory is taken by it, whatever its checksum says.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.stores import VIEWS, assert_holds, files, fill, identity, verdicts

from hf_deit import InputError, TeacherLabelStore
from hf_deit.errors import CheckpointError
from hf_deit.labels import files as label_files
from hf_deit.labels.files import FORMAT, discard_unused, has_labels, probe_store, schema_of, write_columns
from hf_deit.labels.identity import StoreIdentity


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("hf_deit.labels.files.LOCK_SECONDS", 0.2)


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """All that lies in a folder, hidden or not; of a link where it leads to."""
    found = {}
    for path in folder.rglob("*"):
        is_file = path.is_file() and not path.is_symlink()
        found[path.relative_to(folder).as_posix()] = (
            path.read_bytes() if is_file else os.readlink(path) if path.is_symlink() else None
        )
    return found


# Somebody else's folder

THEIRS = {
    "a temporary file of theirs": {"data/notes.tmp": "mine"},
    "rows of theirs": {"data/train.csv": "a,b"},
    "parquet of theirs": {"data/train-00000.parquet": "PAR1"},
    "labels whose description is lost": {"data/epoch-00000.parquet": "PAR1"},
    "spare parts": {"parts/wheel.step": "o"},
    "a shop": {"store.json": '{"name": "Shop", "open": "9-17"}'},
    "a shop with data": {"store.json": "[]", "data/sales.tmp": "1"},
    "an empty description": {"store.json": ""},
    "a hidden file": {".env": "KEY=1"},
    "a lock of theirs": {".lock": "pid 1"},
    "a temporary of something else": {".shop.json.0a1b2c3d.tmp": "{}"},
    "a folder in data": {"data/raw/": ""},
    "a link for a description": {"store.json -> nowhere": ""},
    "a link for a temporary": {".store.json.0a1b2c3d.tmp -> nowhere": ""},
}


@pytest.mark.parametrize("case", THEIRS)
def test_somebody_elses_folder_is_refused_and_stays_as_it_is(tmp_path, case):
    folder = tmp_path / "folder"
    for name, text in THEIRS[case].items():
        path = folder / name.split(" -> ")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        if " -> " in name:
            path.symlink_to(name.split(" -> ")[1])
        elif name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(text)
    before = contents(folder)
    for use in (
        lambda: TeacherLabelStore.open(folder, identity()),
        lambda: probe_store(folder),
        lambda: TeacherLabelStore.open(folder, readonly=True),
        lambda: TeacherLabelStore.open(folder),
    ):
        with pytest.raises(InputError, match=str(folder)):
            use()
        assert contents(folder) == before
    discard_unused(folder)
    assert contents(folder) == before


def test_a_folder_in_which_a_run_was_killed_before_its_first_label_is_a_new_one(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "parts").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".store.json.0a1b2c3d.tmp").write_text("{")
    fill(tmp_path)
    assert files(tmp_path) == ["data/epoch-00000.parquet", "store.json"]


def test_of_a_stores_folder_only_its_own_temporaries_are_removed(tmp_path):
    fill(tmp_path)
    own = [
        ".store.json.0a1b2c3d.tmp",
        "data/.epoch-00007.parquet.0a1b2c3d.tmp",
        "data/.epoch-123456.parquet.0a1b2c3d.tmp",
        "parts/.epoch-00007.rank-00001.89abcdef.parquet.0a1b2c3d.tmp",
    ]
    theirs = [
        "notes.tmp",
        ".notes.0a1b2c3d.tmp",
        "store.json.tmp",
        "data/train.tmp",
        "data/.train.parquet.0a1b2c3d.tmp",
        "data/.store.json.0a1b2c3d.tmp",
        "data/.epoch-00007.parquet.XXXXXXXX.tmp",
        "data/.epoch-007.parquet.0a1b2c3d.tmp",
        "data/epoch-00007.parquet.tmp",
        "parts/.epoch-00007.parquet.0a1b2c3d.tmp",
        "parts/holiday.jpg",
    ]
    for name in (*own, *theirs):
        (tmp_path / name).write_text(name)
    (tmp_path / "data/.epoch-00008.parquet.0a1b2c3d.tmp").mkdir()
    (tmp_path / "data/.epoch-00009.parquet.0a1b2c3d.tmp").symlink_to(tmp_path / "notes.tmp")
    before = contents(tmp_path)
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        assert_holds(store)
    after = contents(tmp_path)
    assert {*before} - {*after} == {*own}
    assert all(after[name] == before[name] for name in after)
    assert store.complete_epochs == [0] and store.partial_epochs == []


def test_what_cannot_be_removed_is_told(tmp_path, monkeypatch):
    fill(tmp_path)
    (tmp_path / "data/.epoch-00007.parquet.0a1b2c3d.tmp").touch()

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "remove", refuse)
        with pytest.raises(CheckpointError, match=r"cannot remove .*epoch-00007.*Permission denied"):
            TeacherLabelStore.open(tmp_path, identity())
    TeacherLabelStore.open(tmp_path, identity()).close()  # no lock is kept


def test_names_that_are_no_epochs_are_passed_over(tmp_path):
    fill(tmp_path)
    content = (tmp_path / "data/epoch-00000.parquet").read_bytes()
    for name in (
        "epoch-000000",
        "epoch-1",
        "epoch-" + "\N{ARABIC-INDIC DIGIT ONE}" * 5,
        f"epoch-{'9' * 40}",
        "epoch-4294967296",
        "epoch--0001",
    ):
        (tmp_path / f"data/{name}.parquet").write_bytes(content)
        (tmp_path / f"parts/{name}.rank-00000.0a1b2c3d.parquet").write_bytes(content)
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        assert (store.complete_epochs, store.partial_epochs) == ([0], [])
        for epoch in (-1, 1_000_000_000):
            with pytest.raises(InputError, match=f"epochs are from 0 to 999999999, got {epoch}"):
                store.record(epoch, np.arange(1), np.arange(1), np.arange(1))


# What cannot be labels


def columns(**changes: Any) -> dict[str, np.ndarray]:
    """What a whole epoch has, with some columns changed."""
    labels, true_labels = verdicts()
    there = {
        "slot": np.arange(VIEWS, dtype=np.uint32),
        "label": np.where(labels == true_labels, -1, labels).astype(np.int32),
        "pixel_crc": np.full(VIEWS, -1),
        "top_labels": np.tile(np.array([3, 1], np.uint16), (VIEWS, 1)),
        "top_logits": np.tile(np.array([2.0, 1.0], np.float16), (VIEWS, 1)),
        "rest_logit": np.full(VIEWS, -1, np.float16),
    }
    return {**there, **changes}


def with_value(name: str, index: Any, value: Any) -> dict[str, np.ndarray]:
    column = columns()[name].copy()
    column[index] = value
    return columns(**{name: column})


FORGED = {
    "a label that there is not": with_value("label", 5, 10),
    "a label far out": with_value("label", 5, 65_535),
    "a slot that there is not": with_value("slot", -1, VIEWS),
    "a slot twice": with_value("slot", 5, 4),
    "slots in another order": with_value("slot", [4, 5], [5, 4]),
    "a largest logit of no label": with_value("top_labels", (5, 1), 10),
    "a logit that is none": with_value("top_logits", (5, 1), np.nan),
    "an infinite logit": with_value("top_logits", (5, 0), np.inf),
    "a rest that is none": with_value("rest_logit", 5, -np.inf),
}


@pytest.mark.parametrize("where", ["data/epoch-00000.parquet", "parts/epoch-00000.rank-00000.0a1b2c3d.parquet"])
@pytest.mark.parametrize("case", FORGED)
def test_values_that_no_view_can_have_are_refused_with_the_right_checksum(tmp_path, case, where):
    TeacherLabelStore.open(tmp_path, identity(top_k=2)).close()
    path = tmp_path / where
    write_columns(path, 0, columns(), identity(top_k=2))
    assert_holds(TeacherLabelStore.open(tmp_path, readonly=True))
    write_columns(path, 0, FORGED[case], identity(top_k=2))
    with pytest.raises(InputError, match=rf"{path.name}' holds no labels of this store \(its "):
        TeacherLabelStore.open(tmp_path, readonly=True).epoch(0)


def parquet(path: Path, rows: int = VIEWS, k: int = 2, **changes: Any) -> None:
    """A file of a store as another program may write it: with nulls, of any length, and of constant columns."""
    schema = schema_of(identity(top_k=2))
    arrays = {
        "slot": pa.array(np.arange(rows) % (1 << 32), pa.uint32()),
        "label": pa.array(np.zeros(rows), pa.uint16()),
        "pixel_crc": pa.nulls(rows, pa.uint32()),
        "rest_logit": pa.array(np.zeros(rows, np.float16)),
    }
    for name, kind in (("top_labels", pa.uint16()), ("top_logits", pa.float16())):
        values = pa.array(np.zeros(rows * k, kind.to_pandas_dtype()), kind)
        arrays[name] = pa.FixedSizeListArray.from_arrays(values, k)
    settings = {name: changes.pop(name) for name in [*changes] if name not in arrays}
    arrays |= changes
    epoch = int(path.name[6:11])
    about = {"format": str(FORMAT), "epoch": str(epoch), "identity": identity(top_k=2).digest, "checksum": "0"}
    table = pa.table({name: arrays[name] for name in schema.names}).replace_schema_metadata(about)
    pq.write_table(table, path, compression="zstd", **{"row_group_size": rows, **settings})


def lacking(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind, mask=np.arange(len(values)) == 5)


def numbered(value: int, length: int) -> bytes:
    """A number as a footer of parquet has it, in so many bytes."""
    groups = [2 * value >> 7 * place & 127 for place in range(length)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def understated(path: Path) -> None:
    """A file of one page a column that is large when decompressed, while its footer claims what a store has."""
    rows = 100_000
    parquet(path, rows=rows, use_dictionary=False, data_page_size=1 << 30, max_rows_per_page=rows)
    content = path.read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    forged, group = footer, pq.ParquetFile(path).metadata.row_group(0)
    sizes = {group.column(number).total_uncompressed_size for number in range(group.num_columns)}
    for value, instead in ((rows, VIEWS), (2 * rows, 2 * VIEWS), *((size, 1000) for size in sizes if size > 1 << 16)):
        length = next(length for length in range(1, 9) if 2 * value < 1 << 7 * length)
        forged = forged.replace(numbered(value, length), numbered(instead, length))
    path.write_bytes(content.replace(footer, forged))


def null_logits(path: Path) -> None:
    parquet(path, top_logits=pa.array([None, *[[0, 0]] * (VIEWS - 1)], pa.list_(pa.float16(), 2)))


def lists_with_a_null(path: Path) -> None:
    values = lacking(np.zeros(2 * VIEWS, np.float16), pa.float16())
    parquet(path, top_logits=pa.FixedSizeListArray.from_arrays(values, 2))


CLAIMS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a slot that is null": ("slot lacks 1", lambda path: parquet(path, slot=lacking(np.arange(VIEWS), pa.uint32()))),
    "a rest that is null": (
        "rest_logit lacks 1",
        lambda path: parquet(path, rest_logit=lacking(np.zeros(VIEWS, np.float16), pa.float16())),
    ),
    "a logit that is null": ("top_logits lacks 1", lists_with_a_null),
    "logits that are null": ("top_logits claims 127 values, expected 128", null_logits),
    "lists of another length": ("top_labels claims 192 values, expected 128", lambda path: parquet(path, k=3)),
    "lists of any length": (
        "top_labels claims 576 values",
        lambda path: parquet(path, top_labels=pa.array([[1] * 9] * VIEWS, pa.list_(pa.uint16()))),
    ),
    "labels of another type": ("got the columns", lambda path: parquet(path, label=pa.array(np.zeros(VIEWS, int)))),
    "labels as text": ("got the columns", lambda path: parquet(path, label=pa.array(["1"] * VIEWS))),
    "a view more than an epoch has": ("claims 65 views, expected at most 64", lambda path: parquet(path, rows=65)),
    "many times the views": ("claims 100,000 views", lambda path: parquet(path, rows=100_000)),
    "pages larger than it claims": ("of its column slot its pages claim 400,", understated),
    "a row group for each view": ("claims 64 row groups", lambda path: parquet(path, row_group_size=1)),
    "a million pages": ("has 14,000,", lambda path: path.write_bytes(b"PAR1" + b"\x15\0\x15\0\x15\0\0" * 2_000_000)),
    "a pipe": ("no such file", lambda path: os.mkfifo(path)),
    "a folder": ("no such file", lambda path: path.mkdir()),
    "a device": ("no such file", lambda path: path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_file_that_no_store_has_is_refused_by_name_and_with_little_memory(tmp_path, case):
    TeacherLabelStore.open(tmp_path, identity(top_k=2)).close()
    words, write = CLAIMS[case]
    paths = (tmp_path / "data/epoch-00000.parquet", tmp_path / "parts/epoch-00001.rank-00000.0a1b2c3d.parquet")
    for path in paths:
        write(path)
    pool = pa.default_memory_pool()
    before = pool.total_bytes_allocated()
    store = TeacherLabelStore.open(tmp_path, readonly=True)
    for epoch, path in enumerate(paths):
        with pytest.raises(InputError, match=rf"{path.name}' holds no labels of this store .*{words}"):
            store.labels(epoch, np.zeros(VIEWS, int))
    assert pool.total_bytes_allocated() - before < 1 << 18


# A description that describes no store

LARGE = {"views_per_epoch": 10**15, "num_labels": 10**15, "seed": 10**40, "group_size": 10**15}
DESCRIBED = {
    **{f"{name} of {value:g}": {name: value} for name, value in LARGE.items()},
    **{f"no {name}": {name: 0} for name in ("views_per_epoch", "num_labels", "group_size", "repeated_augmentation")},
    **{f"{name} below": {name: -1} for name in ("views_per_epoch", "num_labels", "group_size", "top_k")},
    "more logits than labels": {"top_k": 10},
    "half a view": {"views_per_epoch": 64.5},
    "views that are whole, and no integer": {"views_per_epoch": 64.0},
    "one as true": {"repeated_augmentation": True},
    "text for a number": {"num_labels": "10"},
    "nothing for a number": {"seed": None},
    "a list for a number": {"num_labels": [10]},
    "no object for the teacher": {"teacher": "big"},
    "an empty teacher": {"teacher": {}},
    "a list for the data": {"data": [1]},
    "a number for the augmentation": {"augmentation": 3},
    "nothing for the versions": {"versions": None},
    "versions that are numbers": {"versions": {"timm": 1}},
    "a teacher whose name is a list": {"teacher": {"name": ["a"], "revision": "c0ffee"}},
    "a teacher whose commit is a number": {"teacher": {"name": "a", "revision": 7}},
    "labels that are no names": {"teacher": {"name": "a", "revision": "c0ffee", "labels": [1, 2]}},
    "labels as one text": {"teacher": {"name": "a", "revision": "c0ffee", "labels": "ab"}},
    "preprocessing that is none": {"teacher": {"name": "a", "revision": "c0ffee", "preprocessing": 3}},
    "a size of one side": {"augmentation": {"image_size": [224]}},
    "a size of no pixels": {"augmentation": {"image_size": [0, 224]}},
    "views at no known place": {"repeats_placement": "scattered"},
    "a list for a word": {"repeats_placement": ["spread"]},
    "another field": {"colour": "red"},
}


def described(**changes: Any) -> str:
    """A store.json, its digest taken as a store takes it, whatever is described."""
    values = {**json.loads(json.dumps(vars(identity()))), **changes}
    blank = object.__new__(StoreIdentity)
    for name in vars(identity()):
        object.__setattr__(blank, name, values[name])
    try:
        digest = blank.digest
    except (TypeError, AttributeError):
        digest = "0"
    return json.dumps({"format": 1, "digest": digest, "identity": values})


TEXTS = {
    **{case: described(**changes) for case, changes in DESCRIBED.items()},
    "deep": '{"format": 1, "digest": "0", "identity": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "not a number": described().replace('"seed": 3', '"seed": NaN'),
    "a number of many digits": described().replace('"seed": 3', f'"seed": {"9" * 5000}'),
    "another format": '{"format": "' + "9" * 10_000 + '"}',
    "bytes": "\x00\x01",
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_description_that_no_store_has_is_refused_by_name_in_a_line(tmp_path, case):
    fill(tmp_path)
    (tmp_path / "store.json").write_text(TEXTS[case])
    before = contents(tmp_path)
    for settings in ({"readonly": True}, {"readonly": True, "identity": identity()}, {"identity": identity()}):
        with pytest.raises(InputError, match=r"store\.json'") as caught:
            TeacherLabelStore.open(tmp_path, **settings)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert contents(tmp_path) == before


def test_descriptions_that_would_be_waited_for_are_refused(tmp_path):
    assert described() and json.loads(described())["digest"] == identity().digest
    (tmp_path / "store.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="it is no file"):
        TeacherLabelStore.open(tmp_path, readonly=True)
    (tmp_path / "store.json").unlink()
    os.mkfifo(tmp_path / "store.json")
    with pytest.raises(InputError, match="it is no file"):
        TeacherLabelStore.open(tmp_path, identity())
    (tmp_path / "store.json").unlink()
    (tmp_path / "store.json").write_text(" " * (1 << 24) + described())
    with pytest.raises(InputError, match="it is too long"):
        TeacherLabelStore.open(tmp_path, readonly=True)


def test_an_epoch_of_many_views_takes_no_memory_before_they_are_there(tmp_path):
    """A whole epoch of 2**32 - 1 views would be 16 GiB of codes."""
    large = identity(views_per_epoch=(1 << 32) - 1, top_k=2)
    TeacherLabelStore.open(tmp_path, large).close()
    path = tmp_path / "data/epoch-00000.parquet"
    write_columns(path, 0, columns(), large)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="it has 64 of 4294967295 views"):
        TeacherLabelStore.open(tmp_path, readonly=True).epoch(0)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 1 << 28


def test_values_of_a_description_are_told_in_brief(tmp_path):
    fill(tmp_path, augmentation={"notes": "x" * 100_000, "a\nb": 1})
    with pytest.raises(InputError) as caught:
        TeacherLabelStore.open(tmp_path, identity(), readonly=True)
    assert len(str(caught.value)) < 2000 and "\n" not in str(caught.value)
    assert has_labels(tmp_path) and label_files.is_store(tmp_path)
