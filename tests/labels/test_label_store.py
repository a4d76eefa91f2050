"""A label store gives back exactly what the teacher said, to the run that asked for exactly that, or refuses.

Nothing that is killed, torn, full or written twice ever yields another label.
"""

import builtins
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.faults import full_disk
from support.main_of import TESTS
from support.stores import VIEWS, assert_holds, files, fill, identity, record, verdicts

from hf_deit import InputError, TeacherLabelStore
from hf_deit.data.view_dataset import pixel_crc
from hf_deit.errors import CheckpointError
from hf_deit.labels.files import ABSENT, discard_unused, has_labels, no_views, probe_store, wants_crc, write_columns
from hf_deit.labels.identity import StoreIdentity, data_fingerprint
from hf_deit.labels.top_k import TopLogits, rebuilt_logits, top_logits
from hf_deit.models.answers import NO_ANSWER
from hf_deit.models.pretrained import weights_digest


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("hf_deit.labels.files.LOCK_SECONDS", 0.2)


# What goes in comes out


@pytest.mark.parametrize("num_labels", [2, 10, 65_535, 65_536, 100_000])
def test_labels_come_back(tmp_path, num_labels):
    views = 5000
    with TeacherLabelStore.open(tmp_path, identity(num_labels=num_labels, views_per_epoch=views)) as store:
        labels, true_labels = verdicts(4, views, num_labels)
        labels[:2] = num_labels - 1, 0
        order = np.random.default_rng(0).permutation(views)
        for slots in np.array_split(order, 300):  # more than are kept on their device
            store.record(4, *(torch.from_numpy(values[slots]) for values in (np.arange(views), labels, true_labels)))
        store.flush()
        assert store.finish_epoch(4)
    store = TeacherLabelStore.open(tmp_path, readonly=True)
    assert store.complete_epochs == [4] and store.has(4) and not store.has(0)
    np.testing.assert_array_equal(store.labels(4, true_labels), labels)
    slots = order[:100]
    np.testing.assert_array_equal(store.lookup(4, slots, true_labels[slots]), labels[slots])
    table = pq.read_table(tmp_path / "data/epoch-00004.parquet")
    assert table.schema.field("label").type == ("uint16" if num_labels <= 65_535 else "uint32")
    assert table["label"].null_count == (labels == true_labels).sum()
    assert pq.ParquetFile(tmp_path / "data/epoch-00004.parquet").metadata.num_row_groups == 1


def test_the_label_of_a_null_is_the_true_one_of_whoever_asks(tmp_path):
    store = TeacherLabelStore.open(fill(tmp_path), readonly=True)
    labels, true_labels = verdicts()
    agreeing = np.flatnonzero(labels == true_labels)[:3]
    np.testing.assert_array_equal(store.lookup(0, agreeing, (labels[agreeing] + 1) % 10), (labels[agreeing] + 1) % 10)
    for strange in (-100, 10):
        with pytest.raises(InputError, match="true label"):
            store.lookup(0, agreeing, np.full(3, strange))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_top_k_rebuilds_the_softmax_at_any_temperature(tmp_path, temperature):
    k, num_labels = 4, 30
    logits = torch.randn(VIEWS, num_labels, generator=torch.Generator().manual_seed(0)) * 4
    with TeacherLabelStore.open(tmp_path, identity(num_labels=num_labels, top_k=k)) as store:
        for start in (0, 32):
            part = logits[start : start + 32]
            slots = torch.arange(start, start + 32)
            store.record(0, slots, part.argmax(-1), torch.zeros(32), top=top_logits(part, k))
            store.flush()
        partial = store.lookup_logits(0, np.array([5, 40]))
        assert store.finish_epoch(0)
    store = TeacherLabelStore.open(tmp_path, readonly=True)
    rebuilt = store.lookup_logits(0, np.arange(VIEWS))
    np.testing.assert_array_equal(partial, rebuilt[[5, 40]])
    assert rebuilt.shape == (VIEWS, num_labels) and rebuilt.dtype == np.float32

    exact = logits.double().numpy()
    for row, expected in zip(rebuilt.astype(np.float64), exact, strict=True):
        top = np.sort(np.argsort(expected)[-k:])
        others = np.setdiff1d(np.arange(num_labels), top)
        flattened = expected.copy()
        flattened[others] = np.log(np.exp(expected[others]).sum() / len(others))
        wanted = np.exp(flattened / temperature) / np.exp(flattened / temperature).sum()
        got = np.exp(row / temperature) / np.exp(row / temperature).sum()
        np.testing.assert_allclose(got, wanted, atol=0.004)
        if temperature == 1.0:  # of the teacher's own
            softmax = np.exp(expected) / np.exp(expected).sum()
            np.testing.assert_allclose(got[top], softmax[top], atol=0.004)
            assert abs(got[others].sum() - softmax[others].sum()) < 0.004


def test_a_view_costs_about_half_a_byte(tmp_path):
    views, generator = 100_000, np.random.default_rng(0)
    true_labels = generator.integers(0, 1000, views)
    labels = np.where(generator.random(views) < 0.75, true_labels, generator.integers(0, 1000, views))
    with TeacherLabelStore.open(tmp_path, identity(num_labels=1000, views_per_epoch=views)) as store:
        # CRCs of all views are offered: those that are not wanted must not be kept.
        store.record(0, np.arange(views), labels, true_labels, crcs=generator.integers(0, 1 << 32, views))
        store.flush()
        store.finish_epoch(0)
    assert files(tmp_path) == ["data/epoch-00000.parquet", "store.json"]
    assert (tmp_path / "data/epoch-00000.parquet").stat().st_size <= 0.6 * views


def test_whoever_has_fewer_views_reads_the_first_ones(tmp_path):
    fill(tmp_path)
    store = TeacherLabelStore.open(tmp_path, identity(views_per_epoch=48), readonly=True)
    labels, true_labels = verdicts()
    np.testing.assert_array_equal(store.labels(0, true_labels[:48]), labels[:48])
    for views, readonly in ((48, False), (65, True)):
        with pytest.raises(InputError, match=f"views_per_epoch is 64 there, {views} here"):
            TeacherLabelStore.open(tmp_path, identity(views_per_epoch=views), readonly=readonly)


# Another run's labels are refused

OTHERS = {
    "teacher.revision": "deadbeef",
    "teacher.dtype": "bfloat16",
    "teacher.preprocessing.size": 240,
    "data.rows": 61,
    "data.fingerprint": "0ff",
    "augmentation.auto_augment": "rand-m5",
    "augmentation.crop_scale": [0.1, 1.0],
    "augmentation.mixup": 0.2,
    "seed": 4,
    "group_size": 4,
    "repeated_augmentation": 1,
    "repeats_placement": "spread",
    "views_per_epoch": 72,
    "num_labels": 11,
    "top_k": 2,
}
SAME = {
    "teacher.name": "a/copy",
    "teacher.names": ["a/copy", "b/copy"],
    "teacher.labels": ["tench", "goldfish"],
    "data.name": "a-copy",
    "data.config": "x",
    "data.revision": "cafe",
    "versions.timm": "1.1",
}


def altered(name: str, value: Any) -> tuple[StoreIdentity, Any]:
    """An identity of which one field, by its dotted name, is another, and that field's value before."""
    described = asdict(identity())
    *parents, last = name.split(".")
    group = described
    for parent in parents:
        group = group[parent]
    before, group[last] = group.get(last), value
    return StoreIdentity(**described), before


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_another_identity_is_refused_by_name_and_values(tmp_path, name, readonly):
    other, before = altered(name, OTHERS[name])
    fill(tmp_path)
    with pytest.raises(InputError) as caught:
        TeacherLabelStore.open(tmp_path, other, readonly=readonly)
    assert f": {name} is {before!r} there, {OTHERS[name]!r} here. " in str(caught.value)
    TeacherLabelStore.open(tmp_path, identity()).close()  # a refusal keeps no lock


def test_every_field_is_either_decisive_or_informational():
    names = {*identity(repeats_placement="spread").decisive, *identity().INFORMATIONAL}
    assert names == {*OTHERS} | ({*SAME} - {"versions.timm"})


def test_views_side_by_side_are_described_as_in_earlier_versions(tmp_path):
    """Which read such a store, too; how one of another placement is told apart."""
    described = TESTS / "support" / "version_0_1" / "labels" / "store.json"
    earlier = StoreIdentity.read(described)
    assert earlier.repeats_placement == "adjacent" and earlier.repeated_augmentation == 2
    earlier.write(tmp_path / "store.json")
    assert json.loads((tmp_path / "store.json").read_text()) == json.loads(described.read_text())
    spread = replace(earlier, repeats_placement="spread")
    assert spread.digest != earlier.digest
    spread.write(tmp_path / "store.json")
    assert StoreIdentity.read(tmp_path / "store.json") == spread
    with pytest.raises(InputError, match=r"repeats_placement is 'adjacent' there.*--repeats_placement says it"):
        earlier.check_same(spread, "labels", fewer_views=True)
    once = replace(earlier, repeated_augmentation=1)
    assert replace(once, repeats_placement="spread") == once, "one view of an image has one place"


@pytest.mark.parametrize("name", SAME)
def test_names_and_versions_make_no_other_identity(tmp_path, name):
    other, before = altered(name, SAME[name])
    store = TeacherLabelStore.open(fill(tmp_path), other, readonly=True)
    assert_holds(store)
    assert store.changed_versions == ({"timm": (before, "1.1")} if name == "versions.timm" else {})


def of_several(*revisions: str, weights: tuple[float, ...] = (0.75, 0.25), size: int = 224) -> StoreIdentity:
    members = [{"revision": revision, "preprocessing": {"size": size}} for revision in revisions]
    teacher = {"name": " + ".join(revisions), "revision": "".join(revisions), "names": list(revisions)}
    return identity(teacher={**teacher, "members": members, "weights": list(weights)})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (of_several("a", "b", weights=(0.5, 0.5)), ["teacher.weights is [0.75, 0.25] there, [0.5, 0.5] here"]),
        (of_several("a", "c"), ["teacher.members.2.revision is 'b' there, 'c' here"]),
        (
            of_several("a", "b", size=9),
            [f"teacher.members.{i}.preprocessing.size is 224 there, 9 here" for i in (1, 2)],
        ),
        (of_several("a", "b", "c", weights=(0.5, 0.3, 0.2)), ["teacher.members is 'a + b' there, 'a + b + c' here"]),
        (identity(), ["teacher.members is 'a + b' there, 'big/teacher' here"]),
    ],
)
def test_of_several_teachers_is_told_which_differs(other, said):
    several = of_several("a", "b")
    assert [*several.differences(other).values()] == said and several.digest != other.digest
    with pytest.raises(InputError, match=r"--teacher_(weights|model_name_or_path)"):
        several.check_same(other, "labels", fewer_views=True)
    renamed = replace(several, teacher={**several.teacher, "name": "x + y", "names": ["x", "y"]})
    assert several.differences(renamed) == {} and renamed.digest == several.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"members": "a"},
        {"members": ["a", "b"]},
        {"members": [{"name": "a"}, {"revision": "b"}]},
        {"weights": [1.0]},
        {"weights": [0.75, "much"]},
        {"weights": [1.0, -1.0]},
        {"names": ["a", 3]},
        {"names": None},
    ],
)
def test_several_teachers_of_another_kind_are_refused(changes):
    with pytest.raises(InputError, match=r"teacher\.members are of another kind"):
        identity(teacher={**of_several("a", "b").teacher, **changes})


def test_a_field_that_only_one_of_them_has_is_refused(tmp_path):
    fill(tmp_path)
    other = identity(augmentation={**identity().augmentation, "three_augment": True})
    with pytest.raises(InputError, match=r"augmentation\.three_augment is None there, True here"):
        TeacherLabelStore.open(tmp_path, other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": {"name": "t", "revision": None}}, "revision of the teacher 't'"),
        ({"views_per_epoch": 0}, "views_per_epoch"),
        ({"top_k": 10}, "top_k must be from 0 to 9"),
    ],
)
def test_an_identity_that_says_too_little_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        identity(**changes)


def test_no_store_is_refused_where_it_is_only_read_and_made_elsewhere(tmp_path):
    for settings in ({"readonly": True}, {"is_main_process": False}, {"identity": None}):
        with pytest.raises(InputError, match="there is no label store"):
            TeacherLabelStore.open(tmp_path / "new", **{"identity": identity(), **settings})
    assert not (tmp_path / "new").exists()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"not empty, as it has 'model\.safetensors'"):
        TeacherLabelStore.open(tmp_path, identity())
    with pytest.raises(InputError, match="revision 'main' for the folder"):
        TeacherLabelStore.open(tmp_path / "new", identity(), revision="main")


def test_what_is_missing_is_told(tmp_path):
    store = TeacherLabelStore.open(fill(tmp_path, epochs=3), identity(), readonly=True)
    assert store.missing(dict.fromkeys(range(3), VIEWS)) == []
    assert store.missing({epoch: 1 for epoch in range(1, 5)}) == [3, 4]
    assert (store.lookup(3, np.arange(3), np.zeros(3)) == -1).all()
    with pytest.raises(InputError, match="only read"):
        record(store)


# Pixels are compared


def test_crcs_of_a_sample_of_views_are_kept(tmp_path):
    store = TeacherLabelStore.open(tmp_path, identity(views_per_epoch=200_000))
    wanted = store.wants_crc(1, np.arange(200_000))
    assert 140 < wanted.sum() < 270
    assert (wanted != store.wants_crc(2, np.arange(200_000))).any()
    np.testing.assert_array_equal(store.wants_crc(1, np.arange(500, 900)), wanted[500:900])
    record(store, 1)
    store.flush()
    assert store.finish_epoch(1)
    slots, crcs = store.crcs(1)
    np.testing.assert_array_equal(slots, np.flatnonzero(wanted))
    np.testing.assert_array_equal(crcs, slots + 7)


def test_which_views_have_crcs_is_golden():
    """Other ones would leave the pixels of stores that are there uncompared."""
    chosen = np.flatnonzero(wants_crc(identity(views_per_epoch=1_281_024), 7, np.arange(10_000)))
    assert chosen.tolist() == [918, 2730, 4209, 6267, 6834, 8513, 9211]
    chosen = np.flatnonzero(wants_crc(identity(), 2, np.arange(VIEWS)))
    assert chosen.tolist() == [0, 2, 12, 17, 18, 22, 31, 34, 35, 36, 37, 38, 39, 57, 60]


def test_small_epochs_have_crcs_too(tmp_path):
    for views in (4, 64, 1000):
        store = TeacherLabelStore.open(tmp_path / str(views), identity(views_per_epoch=views))
        assert store.wants_crc(0, np.arange(views)).sum() >= min(views, 5)


def test_other_pixels_are_refused_and_other_versions_warned_of(tmp_path, caplog):
    fill(tmp_path)
    store = TeacherLabelStore.open(tmp_path, identity(versions={"timm": "1.1", "pillow": "12.0"}), readonly=True)
    slots = store.crcs(0)[0].tolist()
    good = [(0, slot, slot + 7) for slot in slots]
    assert store.check_pixels(good) == len(slots)
    assert "timm 1.0 → 1.1" in caplog.text
    with pytest.raises(InputError, match=rf"1 of {len(slots)} CRCs .*timm 1\.0 → 1\.1"):
        store.check_pixels([(0, slots[0], 0), *good[1:]])
    with pytest.raises(InputError, match="0 of 0 CRCs"):
        store.check_pixels([])


def test_the_crc_is_of_the_bytes():
    pixels = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    assert pixel_crc(pixels) == pixel_crc(pixels.numpy()) == pixel_crc(pixels.flip(2).flip(2)) != pixel_crc(pixels + 1)


# Broken files


def torn(content: bytes, how: str) -> bytes:
    labels = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(1)
    last = labels.dictionary_page_offset + labels.total_compressed_size - 1
    flipped = content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :]
    return {"empty": b"", "truncated": content[:-50], "flipped": flipped, "text": b"not found" * 30}[how]


@pytest.mark.parametrize("how", ["empty", "truncated", "flipped", "text"])
@pytest.mark.parametrize("where", ["data", "parts"])
def test_a_broken_file_is_refused_by_name(tmp_path, where, how):
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        record(store, slots=range(VIEWS if where == "data" else 40))
        store.flush()
        assert store.finish_epoch(0) == (where == "data")
    (path,) = (tmp_path / where).iterdir()
    path.write_bytes(torn(path.read_bytes(), how))
    with pytest.raises(InputError, match=rf"{path.name}' holds no labels of this store .*: delete that file"):
        TeacherLabelStore.open(tmp_path, identity(), is_main_process=False).lookup(0, np.arange(3), np.zeros(3))
    path.unlink()  # the remedy
    fill(tmp_path)
    assert_holds(TeacherLabelStore.open(tmp_path, readonly=True))


def test_every_flipped_bit_is_noticed(tmp_path):
    path = fill(tmp_path) / "data/epoch-00000.parquet"
    content = path.read_bytes()
    labels, true_labels = verdicts()
    unnoticed = 0
    for position in range(0, len(content), 5):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            found = TeacherLabelStore.open(tmp_path, readonly=True).labels(0, true_labels)
        except InputError:
            continue
        unnoticed += 1
        np.testing.assert_array_equal(found, labels)
    assert unnoticed < len(content) / 5 / 2  # there are bytes that nobody reads, say the writer's name


@pytest.mark.parametrize("foreign", ["another epoch", "another store", "another format"])
def test_a_foreign_file_is_refused(tmp_path, foreign):
    fill(tmp_path / "store", epochs=2)
    path, other = tmp_path / "store/data/epoch-00001.parquet", tmp_path / "store/data/epoch-00000.parquet"
    if foreign == "another store":
        other = fill(tmp_path / "other", epochs=2, seed=9) / "data/epoch-00001.parquet"
    elif foreign == "another format":
        pq.write_table(pq.read_table(other).select(["slot", "label"]), other)
    path.write_bytes(other.read_bytes())
    words = {
        "another epoch": "its epoch is 0, expected 1",
        "another store": "its identity",
        "another format": "columns",
    }
    with pytest.raises(InputError, match=words[foreign]):
        TeacherLabelStore.open(tmp_path / "store", readonly=True).labels(1, verdicts(1)[1])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', "edited"])
def test_a_broken_description_is_refused(tmp_path, content):
    path = fill(tmp_path) / "store.json"
    if content == "edited":
        content = path.read_text().replace('"seed": 3', '"seed": 4')
        assert json.loads(content)["identity"]["seed"] == 4
    path.write_text(content)
    with pytest.raises(InputError, match=r"store\.json"):
        TeacherLabelStore.open(tmp_path, identity())


# Parts, ranks and runs that go on


def test_ranks_write_parts_that_one_merges(tmp_path):
    with TeacherLabelStore.open(tmp_path, identity()) as main:
        ranks = [main, *(TeacherLabelStore.open(tmp_path, identity(), is_main_process=False) for _ in range(2))]
        for half in (range(32), range(32, VIEWS)):
            for rank, store in enumerate(ranks):
                record(store, slots=list(half)[rank::3])
                store.flush(rank)
            assert main.finish_epoch(0) == (half[0] == 32)
        with pytest.raises(InputError, match="locked"):
            ranks[1].finish_epoch(0)
        for store in ranks:
            assert_holds(store)
    assert files(tmp_path) == ["data/epoch-00000.parquet", "store.json"]


def test_parts_of_an_epoch_are_read_too(tmp_path):
    labels, true_labels = verdicts()
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        record(store, slots=range(40))
        store.flush()
        reader = TeacherLabelStore.open(tmp_path, identity(), readonly=True)
        assert reader.complete_epochs == [] and reader.partial_epochs == [0] and not reader.has(0)
        assert reader.missing({0: 40}) == [] and reader.missing({0: 41, 1: 1}) == [0, 1]
        np.testing.assert_array_equal(reader.labels(0, true_labels[:40]), labels[:40])
        known, slots, true = reader.epoch(0), torch.arange(VIEWS), torch.from_numpy(true_labels)
        assert known.absent().tolist() == [*range(40, VIEWS)] and not known.absent(40).size
        assert known.has(slots).tolist() == [True] * 40 + [False] * 24
        np.testing.assert_array_equal(known.labels(slots, true)[:40], labels[:40])
        assert (known.labels(slots, true)[40:] < 0).all()
        record(store, slots=range(40, VIEWS))  # the reader need not know
        store.flush()
        store.finish_epoch(0)
        assert_holds(reader)


def test_a_resumed_run_finds_what_was_flushed_and_appends(tmp_path):
    labels, true_labels = verdicts()
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        record(store, slots=range(40))
        store.flush()
        record(store, slots=range(40, 50))  # never flushed: the run is killed
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        found = store.labels(0, true_labels)
        np.testing.assert_array_equal(found, np.where(np.arange(VIEWS) < 40, labels, -1))
        record(store, slots=range(30, VIEWS))  # redoes some
        store.flush()
        assert store.finish_epoch(0)
        assert_holds(store)
        assert store.finish_epoch(0)  # again, as after a crash between two steps
        record(store, 1)
        store.flush()
        assert store.finish_epoch(1)
        assert store.complete_epochs == [0, 1]
        assert_holds(store, 1)
    assert files(tmp_path) == ["data/epoch-00000.parquet", "data/epoch-00001.parquet", "store.json"]


def test_a_reader_sees_an_epoch_that_was_completed_meanwhile(tmp_path):
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        other = TeacherLabelStore.open(tmp_path, identity(), is_main_process=False)
        assert (other.labels(0, verdicts()[1]) == -1).all()
        record(store)
        store.flush()
        store.finish_epoch(0)
        assert_holds(other)


@pytest.mark.parametrize("when", ["memory", "parts", "complete"])
@pytest.mark.parametrize("what", ["label", "CRC"])
def test_duplicates_that_contradict_are_refused(tmp_path, what, when):
    labels, true_labels = verdicts()
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        slot = int(np.flatnonzero(store.wants_crc(0, np.arange(VIEWS)))[0])
        record(store, slots=range(slot + 1) if when != "complete" else None)
        if when != "memory":
            store.flush()
            store.finish_epoch(0)
        wrong = (labels[slot] + 1) % 10 if what == "label" else labels[slot]
        crc = slot + 7 if what == "label" else 1
        store.record(0, np.array([slot]), np.array([wrong]), true_labels[[slot]], crcs=np.array([crc]))
        with pytest.raises(InputError, match=rf"1 of \d+ views of epoch 0 .* contradict .* slot {slot} "):
            store.flush()
            record(store, slots=range(slot + 1, VIEWS))
            store.flush()
            store.finish_epoch(0)


@pytest.mark.parametrize(
    ("slots", "labels", "words"),
    [
        ([64], [1], "slots"),
        ([-1], [1], "slots"),
        ([0], [10], "labels"),
        ([0], [-1], "labels"),
        ([0], [1, 2], "labels"),
    ],
)
def test_slots_and_labels_out_of_range_are_refused(tmp_path, slots, labels, words):
    store = TeacherLabelStore.open(tmp_path, identity())
    with pytest.raises(InputError, match=f"{words} recorded for epoch 0 must be 1 from 0 to"):
        store.record(0, np.array(slots), np.array(labels), np.array([1]))
        store.flush()


def test_logits_go_with_top_k_alone(tmp_path):
    top = TopLogits(np.zeros((1, 2), int), np.full((1, 2), 1e6), np.zeros(1))
    one = np.zeros(1, dtype=int)
    plain, store = (TeacherLabelStore.open(tmp_path / str(k), identity(top_k=k)) for k in (0, 2))
    with pytest.raises(InputError, match=r"got logits .* top_k is 0"):
        plain.record(0, one, one, one, top=top)
    with pytest.raises(InputError, match=r"got no logits .* top_k is 2"):
        store.record(0, one, one, one)
    with pytest.raises(InputError, match="not finite in float16"):
        store.record(0, one, one, one, top=top)
        store.flush()
    with pytest.raises(InputError, match="labels alone"):
        plain.lookup_logits(0, one)
    with pytest.raises(InputError, match="not all of these views"):
        store.lookup_logits(0, one)


@pytest.mark.parametrize("num_labels", [10, 65_535, 65_536])
def test_views_without_an_answer_are_kept_as_such(tmp_path, num_labels):
    labels, true_labels = verdicts(0, VIEWS, num_labels)
    labels[[3, 40]], labels[[5, 41]] = NO_ANSWER, ABSENT
    with TeacherLabelStore.open(tmp_path, identity(num_labels=num_labels)) as store:
        for part in (range(32), range(32, VIEWS)):
            store.record(0, np.array(part), labels[part], true_labels[part])
            store.flush()
        assert not store.finish_epoch(0) and store.epoch(0).absent().tolist() == [5, 41]
        store.record(0, np.array([5, 41]), np.array([NO_ANSWER, num_labels - 1]), np.array([NO_ANSWER, -100]))
        store.flush()
        assert store.finish_epoch(0)
    labels[[5, 41]] = NO_ANSWER, num_labels - 1
    store = TeacherLabelStore.open(tmp_path, readonly=True)
    expected = np.where(labels == NO_ANSWER, -1, labels)
    np.testing.assert_array_equal(store.labels(0, np.where(true_labels < 0, -1, true_labels)), expected)
    assert np.flatnonzero(store.epoch(0).codes == NO_ANSWER).tolist() == [3, 5, 40]
    assert [store.epoch(0).num_unanswered(*views) for views in ((), (40,), (3,))] == [3, 2, 0]
    table = pq.read_table(tmp_path / "data/epoch-00000.parquet")
    assert [table["label"][slot].as_py() for slot in (3, 5, 40)] == [num_labels] * 3
    assert table.schema.metadata[b"format"] == b"2"  # which earlier versions refuse
    plain = fill(tmp_path / "plain", num_labels=num_labels)
    assert pq.read_table(plain / "data/epoch-00000.parquet").schema.metadata[b"format"] == b"1"


def test_where_nothing_was_recorded_nothing_is_written(tmp_path):
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        store.record(0, np.arange(5), np.full(5, ABSENT), np.arange(5))
        store.flush()
        assert files(tmp_path) == ["store.json"] and not has_labels(tmp_path)
        write_columns(tmp_path / "parts/epoch-00000.rank-00000.0a.parquet", 0, no_views(identity()), identity())
        assert store.epoch(0).is_empty and store.views_in_parts == {0: 0}
    assert not TeacherLabelStore.open(tmp_path, identity()).finish_epoch(0)


def test_an_answer_and_none_contradict_each_other(tmp_path):
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        for label in (NO_ANSWER, 7):
            store.record(0, np.array([4]), np.array([label]), np.array([7]))
        with pytest.raises(InputError, match=r"slot 4 \(label none, CRC -1; label as the true one"):
            store.flush()


def test_views_without_an_answer_have_no_logits(tmp_path):
    logits = torch.randn(VIEWS, 10)
    labels = logits.argmax(dim=-1)
    labels[9] = NO_ANSWER
    with TeacherLabelStore.open(tmp_path, identity(top_k=3)) as store:
        store.record(0, torch.arange(VIEWS), labels, torch.zeros(VIEWS), top=top_logits(logits, 3))
        store.flush()
        assert store.finish_epoch(0)
    found = TeacherLabelStore.open(tmp_path, readonly=True).lookup_logits(0, np.arange(VIEWS))
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [9] == np.flatnonzero(np.isnan(found).any(axis=1))


def test_logits_of_any_size_keep_their_distribution():
    logits = 3 * torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    kept = top_logits(logits, 19)
    assert torch.equal(kept.logits, logits.topk(19).values.half())  # as they are, where float16 holds them
    expected = torch.softmax(logits.double(), dim=-1)
    for offset in (100.0, 3_000.0, -5_000.0, 60_000.0, 1e6, -1e6):
        found = rebuilt_logits(top_logits((logits.double() + offset).float(), 19), 20)
        assert found.isfinite().all()
        tolerance = max(1e-2, 2 * abs(offset) * 2**-24)  # the logits themselves are float32
        torch.testing.assert_close(torch.softmax(found.double(), dim=-1), expected, atol=tolerance, rtol=0)
    apart = torch.tensor([[1e30, 0.0, -3e38, 1e30], [-2e5, 0.0, -70_000.0, -1.0]])
    found = rebuilt_logits(top_logits(apart, 3), 4)
    assert found.isfinite().all()
    torch.testing.assert_close(torch.softmax(found, dim=-1), torch.softmax(apart, dim=-1), atol=1e-3, rtol=0)


# Two writers, kills, full disks


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path):
    ready, tell = os.pipe()
    other = os.fork()
    if other == 0:
        store = TeacherLabelStore.open(tmp_path, identity())
        os.write(tell, b"ready" if not store.readonly else b"")
        time.sleep(60)
        os._exit(0)
    assert os.read(ready, 5) == b"ready"
    try:
        with pytest.raises(InputError, match="another run writes"):
            TeacherLabelStore.open(tmp_path, identity())
        TeacherLabelStore.open(tmp_path, identity(), readonly=True)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    fill(tmp_path)


def test_a_second_writer_in_the_same_process_is_refused(tmp_path):
    with (
        TeacherLabelStore.open(tmp_path, identity()),
        pytest.raises(InputError, match="another run writes"),
    ):
        TeacherLabelStore.open(tmp_path, identity())


def test_a_store_without_labels_is_given_up_unless_it_is_used(tmp_path):
    probe_store(tmp_path / "probed")
    TeacherLabelStore.open(tmp_path / "opened", identity()).close()
    fill(tmp_path / "filled")
    with TeacherLabelStore.open(tmp_path / "used", identity()):
        before = {
            path for path in tmp_path.rglob("*") if path.is_file() and path.parts[-2] not in ("probed", "opened")
        }
        for name in ("probed", "opened", "filled", "used", "nowhere"):
            discard_unused(tmp_path / name)
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert_holds(TeacherLabelStore.open(tmp_path / "filled", readonly=True))


def test_a_forked_worker_does_not_free_the_lock(tmp_path):
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        worker = os.fork()
        if worker == 0:
            del store
            os._exit(0)
        os.waitpid(worker, 0)
        with pytest.raises(InputError, match="another run writes"):
            TeacherLabelStore.open(tmp_path, identity())


KILLS = [
    *("fsync 1", "fsync 2", "replace 1", "replace 2", "replace 3", "remove 1", "remove 2"),
    *("after replace 1", "after replace 2", "after replace 3"),
]


@pytest.mark.parametrize("kill", KILLS)
def test_a_run_killed_while_it_writes_loses_nothing_that_was_flushed(tmp_path, kill):
    *after, call, count = kill.split()
    fill(tmp_path)
    parent = os.fork()
    if parent == 0:
        store = TeacherLabelStore.open(tmp_path, identity())
        original, calls = getattr(os, call), []

        def killing(*args: Any) -> Any:
            calls.append(call)
            if after:
                original(*args)
            if len(calls) == int(count):
                os.kill(os.getpid(), signal.SIGKILL)
            return None if after else original(*args)

        setattr(os, call, killing)
        for slots in (range(40), range(40, VIEWS)):
            record(store, 1, slots)
            store.flush()
        store.finish_epoch(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == -signal.SIGKILL
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        assert not [name for name in files(tmp_path) if name.endswith(".tmp")]
        labels, true_labels = verdicts(1)
        found = store.labels(1, true_labels)
        assert ((found == labels) | (found == -1)).all()
        flushed = 0 if kill in ("fsync 1", "replace 1") else 40 if kill in ("replace 2", "after replace 1") else None
        if kill == "fsync 2":  # of the folder, when the file is in place
            flushed = 40
        assert (found[: VIEWS if flushed is None else flushed] >= 0).all()
        record(store, 1, np.flatnonzero(found < 0))
        if flushed is not None:
            store.flush()
        assert store.finish_epoch(1)
        assert_holds(store, 0)
        assert_holds(store, 1)
    assert files(tmp_path) == ["data/epoch-00000.parquet", "data/epoch-00001.parquet", "store.json"]


class Killed(BaseException):
    """Stands for a SIGKILL."""


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """From the call of that number on, nothing that changes files is done any more. Gives the calls until then."""
    calls: list[str] = []

    def dying(name: str, call: Any) -> Any:
        def instead(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) >= number:
                raise Killed
            return call(*args, **kwargs)

        return instead

    with monkeypatch.context() as patched:
        for module, names in ((os, ("mkdir", "open", "fsync", "replace", "remove")), (builtins, ("open",))):
            for name in names:
                patched.setattr(module, name, dying(name, getattr(module, name)))
        with suppress(Killed):
            yield calls


def test_wherever_a_run_is_killed_nothing_that_was_flushed_is_lost_and_what_is_covered_is_finished(
    tmp_path, monkeypatch
):
    def go_on(folder: Path, flushed: list[tuple[int, range]]) -> None:
        store = TeacherLabelStore.open(folder, identity())
        try:
            for epoch, slots in ((0, range(40)), (0, range(40, VIEWS)), (1, range(9))):
                absent = {*store.epoch(epoch).absent().tolist()} & {*slots}
                if absent:
                    record(store, epoch, sorted(absent))
                    store.flush()
                flushed.append((epoch, slots))
                store.finish_epoch(epoch)
        finally:
            store.close()  # the lock goes with the process

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which takes its time, and is walked over all the same
    calls, number = [""], 0
    while len(calls) > number - 1:
        number += 1
        folder, flushed = tmp_path / str(number), []
        with killed_at(number, monkeypatch) as calls:
            go_on(folder, flushed)
        if has_labels(folder):
            reader = TeacherLabelStore.open(folder, readonly=True)
            for epoch in (0, 1):
                labels, true_labels = verdicts(epoch)
                found = reader.labels(epoch, true_labels)
                assert ((found == labels) | (found == -1)).all(), number
                kept = [slot for there, slots in flushed if there == epoch for slot in slots]
                assert (found[kept] >= 0).all(), number
        with TeacherLabelStore.open(folder, identity()) as store:
            assert store.has(0) or len(flushed) < 2, number
        go_on(folder, [])
        assert_holds(TeacherLabelStore.open(folder, readonly=True))
        there = files(folder)
        assert there[0] == "data/epoch-00000.parquet" and there[-1] == "store.json" and len(there) in (3, 4), number
    assert {*calls} == {"mkdir", "open", "fsync", "replace", "remove"} and number > 25


@pytest.mark.parametrize("left", ["parts alone", "parts that their file has"])
def test_parts_that_hold_an_epoch_are_finished_by_whoever_may_write(tmp_path, left):
    fill(tmp_path, epochs=2)
    whole = tmp_path / "data/epoch-00001.parquet"
    content = whole.read_bytes()

    def leave() -> TeacherLabelStore:
        (tmp_path / "parts/epoch-00001.rank-00000.0a1b2c3d.parquet").write_bytes(content)
        if left == "parts alone":
            whole.unlink()
        reader = TeacherLabelStore.open(tmp_path, readonly=True)
        assert reader.complete_epochs == ([0] if left == "parts alone" else [0, 1])
        assert_holds(reader, 1)  # whoever only reads finds them all the same
        assert reader.missing({1: VIEWS}) == []
        return reader

    reader = leave()
    assert reader.views_in_parts == ({1: VIEWS} if left == "parts alone" else {})
    with TeacherLabelStore.open(tmp_path):  # without an identity, too
        assert_holds(reader, 1)
    assert files(tmp_path) == ["data/epoch-00000.parquet", "data/epoch-00001.parquet", "store.json"]
    with TeacherLabelStore.open(tmp_path, identity(), is_main_process=False) as other:
        reader = leave()
        assert other.finish_covered() is None and reader.finish_covered() is None
    assert reader.complete_epochs == [0, 1] and not list((tmp_path / "parts").iterdir())
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        reader = leave()
        words = reader.finish_covered()
        assert "another run writes to the label store" in words and reader.has(1) == (left != "parts alone")
        assert store.finish_covered() is None and reader.has(1)
        record(store, 2, range(40))
        store.flush()
        assert reader.finish_covered() is None  # there is nothing that could be finished
        assert reader.parts_in_words() == "epoch 2 (40 of 64 views)"
    (tmp_path / "parts/epoch-00003.rank-00000.0a1b2c3d.parquet").write_bytes(b"broken")
    assert "holds no labels of this store" in TeacherLabelStore.open(tmp_path, readonly=True).finish_covered()


def test_a_full_disk_leaves_what_was_there(tmp_path):
    with full_disk(100), pytest.raises(CheckpointError, match=r"store\.json.*free some space"):
        TeacherLabelStore.open(tmp_path, identity())
    fill(tmp_path)
    with TeacherLabelStore.open(tmp_path, identity()) as store:
        before = files(tmp_path)
        record(store, 1)
        with full_disk(500), pytest.raises(CheckpointError, match=r"epoch-00001\.rank-00000.*free some space"):
            store.flush()
        assert files(tmp_path) == before
        store.flush()  # it is still in memory
        with full_disk(500), pytest.raises(CheckpointError, match=r"epoch-00001\.parquet.*free some space"):
            store.finish_epoch(1)
        assert store.finish_epoch(1)
        assert_holds(store, 1)


# Fingerprints


def encoded(colour: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(stream, kind)
    return stream.getvalue()


def rows(**changes: Any) -> datasets.Dataset:
    images = [{"bytes": encoded(colour), "path": None} for colour in range(20)]
    labels: list[int | None] = [*([0, 1] * 9), 1, None]
    for index, image in changes.get("images", {}).items():
        images[index] = image and {"bytes": image, "path": None}
    for index, label in changes.get("labels", {}).items():
        labels[index] = label
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_the_fingerprint_is_of_the_rows_wherever_they_are(tmp_path):
    data = rows()
    wanted = data_fingerprint(data)
    data.to_parquet(tmp_path / "data.parquet")
    data.save_to_disk(tmp_path / "arrow")
    assert data_fingerprint(datasets.load_from_disk(tmp_path / "arrow")) == wanted
    cache = str(tmp_path / "cache")
    assert data_fingerprint(datasets.Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=cache)) == wanted
    assert data_fingerprint(data.select([*range(10)])) == data_fingerprint(rows().select(range(10))) != wanted
    for form in ("arrow", "pandas", "torch"):  # which are for other readers
        assert data_fingerprint(data.with_format(form)) == wanted
    assert data_fingerprint(data.with_format("numpy", columns=["label"])) == wanted
    reversed_twice = data.select(range(19, -1, -1)).select(range(19, -1, -1))
    assert data_fingerprint(reversed_twice) == wanted
    on_disk = []
    for index in range(20):
        (tmp_path / f"{index}.png").write_bytes(encoded(index))
        on_disk.append({"image": str(tmp_path / f"{index}.png"), "label": data[index]["label"]})
    assert data_fingerprint(datasets.Dataset.from_list(on_disk, features=data.features)) == wanted


def test_the_fingerprint_changes_with_the_rows():
    data = rows()
    changed = {
        "swapped rows": data.select([0, 3, 2, 1, *range(4, 20)]),
        "a label": rows(labels={4: 1}),
        "a label less": rows(labels={4: None}),
        "a row less": data.select(range(19)),
        "another image": rows(images={7: encoded(77)}),
        "other bytes of the same pixels": rows(images={7: encoded(7, "BMP")}),
        "no image": rows(images={7: None}),
        "no labels": data.remove_columns("label"),
    }
    prints = {name: data_fingerprint(other) for name, other in changed.items()}
    assert len({data_fingerprint(data), *prints.values()}) == len(prints) + 1


def test_many_rows_are_fingerprinted_by_all_their_labels():
    labels = np.arange(250_000) % 2
    image = {"bytes": encoded(1), "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"image": [image] * len(labels), "label": labels}, features=features)
    start = time.perf_counter()
    wanted = data_fingerprint(data)
    assert time.perf_counter() - start < 10
    order = np.arange(len(labels))
    order[[123_457, 123_458]] = 123_458, 123_457
    assert data_fingerprint(data.select(order)) != wanted


def test_the_digest_of_a_teacher_is_of_its_weights(tmp_path):
    files = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"card"}

    def digest(name: str, **changes: bytes) -> str:
        (tmp_path / name).mkdir()
        for file, content in {**files, **changes}.items():
            (tmp_path / name / file).write_bytes(content)
        return weights_digest(tmp_path / name)

    wanted = digest("model")
    assert wanted.startswith("sha256:")
    assert digest("copy", **{"README.md": b"another"}) == wanted
    assert digest("older", **{"pytorch_model.bin": b"pickled"}) == wanted
    others = [digest(f"other {name}", **{name: b"x"}) for name in ("config.json", "model.safetensors", "model.py")]
    assert len({wanted, *others}) == 4
    (tmp_path / "model/model.safetensors").unlink()
    for folder in (tmp_path / "model", tmp_path / "none"):
        with pytest.raises(InputError, match=r"model"):
            weights_digest(folder)


def test_the_bare_columns_open_with_datasets(tmp_path):
    fill(tmp_path / "store", epochs=2)
    pattern = str(tmp_path / "store/data/*.parquet")
    data = datasets.load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
    labels, true_labels = verdicts(1)
    assert data[VIEWS:]["label"] == [None if a == b else a for a, b in zip(labels, true_labels, strict=True)]
    streamed = datasets.load_dataset("parquet", data_files=pattern, split="train", streaming=True)
    assert [row["slot"] for row in streamed] == [*range(VIEWS)] * 2
