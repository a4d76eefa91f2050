"""Contract: the images of a folder are what the folder holds now, whatever was kept of it before; what is new or has
another size or time is looked into, and nothing else is; and a cache that is damaged, foreign or out of reach costs
time alone."""

import errno
import functools
import os
import pickle
import shutil
import threading
import time
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.images import class_folders, identities, load, picture, refusal

from hf_deit.data import image_table
from hf_deit.data.folders import load_class_folders, load_images
from hf_deit.data.image_table import FOLDER
from hf_deit.data.parallel import in_chunks
from hf_deit.errors import InputError
from hf_deit.training import processes


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / FOLDER


@pytest.fixture
def looked(monkeypatch) -> list[str]:
    """The files whose headers are read, and those that are decoded."""
    files: list[str] = []

    def look(fault_of, file):
        files.append(str(file))
        return fault_of(file)

    for name in ("fault_of_header", "fault_of_pixels"):
        monkeypatch.setattr(image_table, name, functools.partial(look, getattr(image_table, name)))
    return files


@pytest.fixture
def photos(tmp_path) -> Path:
    return Path(class_folders(tmp_path / "photos", {"ape": 5, "bee": 4, "cat": 3}))


def tables(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.arrow"))


def rows(dataset: datasets.Dataset) -> list[tuple]:
    encoded = dataset.cast_column("image", datasets.Image(decode=False))
    return [(row["image"]["path"], row["image"]["bytes"], row.get("label")) for row in encoded]


def assert_loads_as_without_a_cache(monkeypatch, folder, **options) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder.parent / f"cache{time.monotonic_ns()}")
        (fresh, names), alone = load_class_folders(folder, "stop", **options), load_images(folder, "stop", **options)
    (kept, kept_names), kept_alone = (
        load_class_folders(folder, "stop", **options),
        load_images(folder, "stop", **options),
    )
    assert (rows(kept), kept_names, rows(kept_alone)) == (rows(fresh), names, rows(alone))
    assert kept.features == fresh.features


def write_again(path: Path, number: int) -> None:
    """Another picture of the same size in bytes, at another time."""
    before, mode = path.stat(), path.suffix[1:]
    picture(0, number).save(path, mode)
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * (before.st_size - len(content)) if len(content) < before.st_size else content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


# By name: what happens between two starts, and how many files are looked into at the second one.
CHANGES = {
    "nothing": (lambda photos: None, 0),
    "a file is added": (lambda photos: picture(1, 77).save(photos / "bee" / "60.png"), 1),
    "a file is removed": (lambda photos: (photos / "ape" / "2.png").unlink(), 0),
    "a file is renamed": (lambda photos: (photos / "ape" / "2.png").rename(photos / "ape" / "99.png"), 1),
    "a file moves to another class": (lambda photos: (photos / "ape" / "2.png").rename(photos / "cat" / "2.png"), 1),
    "a file is touched": (lambda photos: os.utime(photos / "cat" / "9.png", ns=(5, 5)), 1),
    "a file is replaced by one of its size": (lambda photos: write_again(photos / "bee" / "6.png", 88), 1),
    "a file takes another's place and time": (
        lambda photos: os.utime(shutil.copy(photos / "ape" / "0.png", photos / "ape" / "1.png"), ns=(7, 7)),
        1,
    ),
    "a class is renamed": (lambda photos: (photos / "cat").rename(photos / "aaa"), 3),
    "a class is added before the others": (lambda photos: class_folders(photos, {"aaa": 3}, first=50), 3),
    "a class is removed": (lambda photos: shutil.rmtree(photos / "ape"), 0),
    "a link leads to more": (lambda photos: (photos / "cat" / "more").symlink_to(photos / "bee"), 4),
    "hidden files are added": (lambda photos: (photos / "ape" / ".hidden").write_text("nothing"), 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_is_new_or_has_changed_is_looked_into(monkeypatch, photos, looked, change):
    load_class_folders(photos, "stop")
    assert len(looked) == 12
    change, expected = CHANGES[change]
    change(photos)
    looked.clear()
    load_class_folders(photos, "stop")
    assert len(looked) == expected
    load_class_folders(photos, "stop")
    assert len(looked) == expected
    assert_loads_as_without_a_cache(monkeypatch, photos)


def test_images_without_labels_are_kept_likewise(monkeypatch, photos, looked):
    load_images(photos, "stop")
    picture(1, 77).save(photos / "60.png")
    (photos / "ape" / "2.png").unlink()
    looked.clear()
    load_images(photos, "stop")
    assert looked == [str(photos / "60.png")]
    assert_loads_as_without_a_cache(monkeypatch, photos)


def test_a_folder_by_another_spelling_is_the_same_one(monkeypatch, tmp_path, photos, looked):
    load_class_folders(photos, "stop")
    (tmp_path / "link").symlink_to(photos)
    looked.clear()
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "./photos/", "link", f"{tmp_path}/link/../photos"):
        data, _ = load_class_folders(folder, "stop")
        assert rows(data)[0][0] == os.path.join(folder, "ape", "0.png")
        assert len(identities(data)) == 12
    assert looked == []


def test_labels_follow_the_names_that_they_are_given(photos, looked):
    one, _ = load_class_folders(photos, "stop")
    other, names = load_class_folders(photos, "stop", ["dog", "cat", "bee", "ape"], option="validation_dir")
    assert (one["label"][:], other["label"][:]) == ([0] * 5 + [1] * 4 + [2] * 3, [3] * 5 + [2] * 4 + [1] * 3)
    assert other.features["label"].names == names == ["dog", "cat", "bee", "ape"] and len(looked) == 12


def test_a_bad_file_is_named_at_every_start_until_it_is_mended(photos, looked):
    (photos / "ape" / "1.png").write_bytes(b"nothing")
    messages = {refusal(train_dir=str(photos)) for _ in range(2)}
    assert len(messages) == 1 and "1 of the 12 files" in messages.pop()
    assert len(looked) == 12 + 1
    picture(0, 1).save(photos / "ape" / "1.png")
    looked.clear()
    assert len(load_class_folders(photos, "stop")[0]) == 12
    assert looked == [str(photos / "ape" / "1.png")]


def test_a_check_that_was_stopped_goes_on(monkeypatch, photos, looked):
    fault_of = image_table.fault_of_header

    def until_interrupted(file):
        if file.endswith("bee/6.png"):
            raise KeyboardInterrupt
        return fault_of(file)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(image_table, "fault_of_header", until_interrupted)
        patch.setattr(image_table, "_CHUNK", 4)
        load_class_folders(photos, "stop")
    looked.clear()
    load_class_folders(photos, "stop")
    assert len(looked) == 8


@pytest.mark.parametrize("changed", ["limit", "limit in Python", "version"])
def test_what_another_pillow_or_limit_would_say_is_not_taken_from_the_cache(monkeypatch, photos, looked, changed):
    load_class_folders(photos, "stop")
    looked.clear()
    with monkeypatch.context() as patch:
        if changed == "limit":
            patch.setenv("HF_DEIT_MAX_IMAGE_PIXELS", "100")
            patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
            assert "12 of the 12" in refusal(train_dir=str(photos))
        elif changed == "limit in Python":
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow refuses twice as many
            assert "12 of the 12" in refusal(train_dir=str(photos))
        else:
            patch.setattr("PIL.__version__", "12.99")
            load_class_folders(photos, "stop")
    assert len(looked) == 12
    load_class_folders(photos, "stop")
    assert len(looked) == 12


# How far is looked


def damage(path: Path) -> None:
    """What only decoding it tells."""
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def test_checks_are_kept_as_far_as_they_went(photos, looked):
    expected = [("none", 0), ("headers", 12), ("none", 0), ("headers", 0), ("all", 12), ("all", 0), ("headers", 0)]
    for how, count in expected:
        looked.clear()
        data, _ = load_class_folders(photos, "stop", check_images=how)
        assert (len(looked), len(data)) == (count, 12), how
    picture(1, 77).save(photos / "bee" / "60.png")
    for how, count in (("none", 0), ("headers", 1), ("all", 1)):
        looked.clear()
        data, _ = load_class_folders(photos, "stop", check_images=how)
        assert (len(looked), len(data)) == (count, 13), how


def test_all_finds_what_lies_behind_headers(photos, caplog):
    for name in ("ape/1.png", "bee/5.png"):
        damage(photos / name)
    assert len(load_class_folders(photos, "stop")[0]) == len(load_images(photos, "stop")) == 12
    for _ in range(2):
        for options in ({"train_dir": str(photos)}, {"unlabeled_dir": str(photos), "label_names": ["a", "b"]}):
            with pytest.raises(InputError) as error:
                load(**options, check_images="all")
            assert "2 of the 12 files" in str(error.value) and "2 damaged behind the header" in str(error.value)
            assert str(photos / "bee" / "5.png") in str(error.value)
    assert caplog.records == []
    assert len(load_class_folders(photos, "skip", check_images="all")[0]) == 12
    assert "2 of the 12 files in" in caplog.text and "will be skipped" in caplog.text


def test_none_leaves_all_to_the_training(photos, looked):
    for path in photos.glob("*/*"):
        path.write_bytes(b"nothing")
    for on_bad_image in ("stop", "skip"):
        options = {"train_dir": str(photos), "validation_dir": str(photos), "unlabeled_dir": str(photos)}
        data = load(**options, on_bad_image=on_bad_image, check_images="none")
        assert len(data.train) == len(data.validation) == len(data.unlabeled) == 12
    assert looked == []
    assert "12 of the 12" in refusal(train_dir=str(photos), on_bad_image="skip")


def test_where_bad_images_are_skipped_one_good_header_is_enough(monkeypatch, photos, looked):
    (photos / "ape" / "0.png").write_bytes(b"nothing")
    monkeypatch.setattr(image_table, "_CHUNK", 1)
    load_class_folders(photos, "skip")
    assert looked == [str(photos / "ape" / name) for name in ("0.png", "1.png")]
    load_class_folders(photos, "skip")
    assert len(looked) == 2


# The cache


def flip(content: bytes, part: float) -> bytes:
    place = int(len(content) * part)
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"nothing of the kind",
    **{f"a byte at {part}": lambda content, part=part: flip(content, part) for part in (0.01, 0.3, 0.6, 0.9, 0.999)},
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_table_that_is_damaged_is_passed_over_and_written_anew(monkeypatch, photos, looked, cache, kind):
    load_class_folders(photos, "stop")
    (table,) = tables(cache)
    whole = table.read_bytes()
    table.unlink()  # it is mapped
    table.write_bytes(DAMAGES[kind](whole))
    looked.clear()
    load_class_folders(photos, "stop")
    assert len(looked) == 12 and table.read_bytes() == whole
    load_class_folders(photos, "stop")
    assert len(looked) == 12
    assert_loads_as_without_a_cache(monkeypatch, photos)


@pytest.mark.parametrize("kind", ["another table", "no table", "folder", "pipe", "link to nowhere"])
def test_something_else_in_the_place_of_a_table_is_passed_over(monkeypatch, photos, looked, cache, kind):
    load_class_folders(photos, "stop")
    (table,) = tables(cache)
    table.unlink()
    if kind == "folder":
        table.mkdir()
    elif kind == "pipe":
        os.mkfifo(table)
    elif kind == "link to nowhere":
        table.symlink_to(cache / "nowhere")
    else:  # by its name it is whole
        content = b"nothing"
        if kind == "another table":
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, pa.schema({"image": pa.string(), "label": pa.int64()})) as writer:
                writer.write_table(pa.table({"image": ["x"], "label": [1]}))
            content = sink.getvalue().to_pybytes()
        table.with_name(f"{table.name.split('-')[0]}-{zlib.crc32(content):08x}.arrow").write_bytes(content)
    looked.clear()
    load_class_folders(photos, "stop")
    assert len(looked) == 12
    assert_loads_as_without_a_cache(monkeypatch, photos)


@pytest.mark.parametrize("kind", ["a file in its place", "a full disk", "no locks"])
def test_without_a_cache_everything_is_as_with_one_and_told_once(
    monkeypatch, photos, looked, tmp_path, cache, caplog, kind
):
    expected = rows(load_class_folders(photos, "stop")[0])
    if kind == "a full disk":

        def full(file, schema):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(pa.ipc, "new_stream", full)
        picture(1, 77).save(photos / "bee" / "60.png")
    elif kind == "no locks":

        def refuse(*args, **kwargs):
            raise NotImplementedError("no flock here")

        monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    else:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file")
        (tmp_path / "file").write_text("no folder")
    (data, _), alone = load_class_folders(photos, "stop"), load_images(photos, "stop")
    assert [row for row in rows(data) if "60.png" not in row[0]] == expected
    assert len(alone) == len(data) == (13 if kind == "a full disk" else 12)
    assert len(identities(data)) == len(data)
    assert caplog.text.count("cannot be kept") == (0 if kind == "no locks" else 1)
    assert not [path for path in cache.iterdir() if path.suffix == ".tmp"]


def test_a_cache_that_can_only_be_read_is_read(monkeypatch, photos, looked, cache):
    load_class_folders(photos, "stop")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for name in ("makedirs", "utime", "replace"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    looked.clear()
    assert len(load_class_folders(photos, "stop")[0]) == 12
    assert looked == []


def test_a_cache_in_the_folder_of_the_images_is_none_of_them(monkeypatch, photos):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", photos / "ape")
    for _ in range(2):
        assert len(load_class_folders(photos, "stop")[0]) == len(load_images(photos, "stop")) == 12


def test_another_run_is_waited_for_but_not_for_ever(monkeypatch, photos, looked, cache, caplog):
    load_class_folders(photos, "stop")
    for path in photos.glob("*/*"):
        os.utime(path, ns=(5, 5))
    looked.clear()
    (lock,) = cache.glob("*.lock")
    held = image_table.FileLock(lock)
    held.acquire()
    monkeypatch.setattr(image_table, "_SECONDS_UNTIL_TOLD", 0.05)
    runs = [threading.Thread(target=load_class_folders, args=(photos, "stop")) for _ in range(2)]
    for run in runs:
        run.start()
    end = time.monotonic() + 30
    while "waiting for what it finds" not in caplog.text and time.monotonic() < end:
        time.sleep(0.02)
    assert looked == [] and "waiting for what it finds" in caplog.text
    held.release()
    for run in runs:
        run.join()
    assert len(looked) == 12  # by one of them
    monkeypatch.setattr(image_table, "_PATIENCE", 0.05)
    held.acquire()
    assert len(load_class_folders(photos, "stop")[0]) == 12
    held.release()


def test_tables_that_nobody_has_asked_for_are_removed(photos, cache, tmp_path):
    load_class_folders(photos, "stop")
    load_images(photos, "stop")
    other = Path(class_folders(tmp_path / "other", {"ape": 1, "bee": 1}))
    load_class_folders(other, "stop")
    (cache / "notes.txt").write_text("not ours")
    old = tables(cache)
    (cache / f"{'a' * 32}-{'b' * 8}.tmp").write_text("of a process that was killed")
    for path, days in zip([*old, *cache.glob("*.tmp"), cache / "notes.txt"], (20, 40, 20, 40, 40), strict=True):
        os.utime(path, (time.time() - days * 86_400,) * 2)
    picture(1, 77).save(photos / "bee" / "60.png")
    load_class_folders(photos, "stop")
    assert set(tables(cache)) & set(old) == {old[0], old[2]} and len(tables(cache)) == 3
    assert (cache / "notes.txt").exists() and not [*cache.glob("*.tmp")]


def test_a_table_that_is_replaced_stays_for_the_loaders_of_a_run_at_work(photos, cache):
    data, _ = load_class_folders(photos, "stop")
    (table,) = tables(cache)
    os.utime(table, (time.time() - 20 * 86_400,) * 2)  # since the run has begun
    pickled = pickle.dumps(data)
    picture(1, 77).save(photos / "bee" / "60.png")
    assert len(load_class_folders(photos, "stop")[0]) == 13
    assert rows(pickle.loads(pickled)) == rows(data)


# Several processes


def test_one_process_of_a_machine_does_the_work(monkeypatch, photos, looked):
    results = []

    def first(function):
        results.append(function())
        return results[-1]

    one = load_class_folders(photos, "stop", once_per_machine=first)[0]
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda folder: pytest.fail("the folder was listed again"))
        other = load_class_folders(photos, "stop", once_per_machine=lambda function: results[0])[0]
    assert rows(one) == rows(other) and len(looked) == 12
    assert one.cache_files == other.cache_files != []  # of which both map the same pages
    assert len(pickle.dumps(other)) < 5_000  # nor do workers get a copy
    for file in one.cache_files:
        os.remove(file["filename"])
    third = load_class_folders(photos, "stop", once_per_machine=lambda function: results[0])[0]
    assert rows(third) == rows(one) and len(looked) == 12


@pytest.mark.parametrize("rank", range(4))
def test_each_process_gets_what_the_first_one_of_its_machine_has_found(monkeypatch, rank):
    """Two machines of two processes."""

    class State:
        num_processes, process_index, local_process_index, is_local_main_process = 4, rank, rank % 2, rank % 2 == 0

    gathered = iter([[None] * 4, ["of the first", None, "of the second", None]])  # errors, results
    monkeypatch.setattr(processes, "PartialState", State)
    monkeypatch.setattr(processes, "gather_object", lambda own: next(gathered))
    called = []
    found = processes.once_per_machine(lambda: called.append(rank) or f"of the {('first', 'second')[rank // 2]}")
    assert found == f"of the {('first', 'second')[rank // 2]}" and called == [rank] * (rank % 2 == 0)


# Chunks


def idle(chunk: list[int]) -> tuple[int, list[int]]:
    for _ in chunk:
        time.sleep(0.002)
    return threading.get_ident(), chunk


def busy(chunk: list[int]) -> tuple[int, list[int]]:
    end = time.thread_time() + 0.002
    while time.thread_time() < end:
        pass
    return threading.get_ident(), chunk


@pytest.mark.parametrize(("function", "in_threads"), [(idle, True), (busy, False)])
def test_threads_work_where_files_are_waited_for(function, in_threads):
    found = list(in_chunks(function, range(200), size=4))
    assert [item for _, chunk in found for item in chunk] == list(range(200))
    threads = {thread for thread, _ in found}
    assert len(threads) > 8 if in_threads else threads == {threading.get_ident()}


@pytest.mark.parametrize("function", [idle, busy])
def test_few_chunks_are_in_memory_at_once(function):
    taken = 0

    def items():
        nonlocal taken
        for item in range(5_000):
            taken += 1
            yield item

    chunks = in_chunks(function, items(), size=2)
    for _ in range(3):
        next(chunks)
    assert taken <= 2 * (16 * 4 + 2)
    chunks.close()


@pytest.mark.parametrize("computes", [False, True])
def test_an_error_in_a_thread_comes_out(computes):
    def fail(chunk):
        time.sleep(0.02)
        if 17 in chunk:
            raise OSError("cut off")
        return chunk

    with pytest.raises(OSError, match="cut off"):
        list(in_chunks(fail, range(40), size=2, computes=computes))
