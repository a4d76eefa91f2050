"""Exports take their place whole or not at all, and no folder ever holds exports of two models."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.checkpoints import everything_in, our_folder
from support.faults import full_disk

from hf_deit.errors import CheckpointError, ExportError, InputError
from hf_deit.export import exporting
from hf_deit.export.exported_folder import (
    check_place,
    files_of,
    identity_of,
    move_into_place,
    recover,
    work_folder,
    write_record,
)
from hf_deit.export.parity.separate_process import ExportedAnswers
from hf_deit.hub.export_record import ExportedFile, ExportRecord, ParityRecord
from hf_deit.models.pretrained import weights_digest

FORMATS = ("onnx", "openvino")
ONE, TWO = (f"sha256:{digit * 64}" for digit in "12")
PARITY = ParityRecord(
    "float32", "none", 1, {"value": 1.0, "low": 0.2, "high": 1.0}, 0.0, None, None, None, (), {}, True
)


def record(name: str, model: str = ONE, **fields) -> ExportRecord:
    files = (ExportedFile(f"{name}.bin", "classifier", "float32", 3, "0" * 64),)
    values = {
        "format": name,
        "model": {"weights_digest": model},
        "labels": ("a", "b"),
        "preprocessing": {"size": (4, 4)},
    }
    return ExportRecord(**{**values, "files": files, "parity": (PARITY,), "versions": {}, **fields})


def identity(model: str = ONE) -> dict:
    return identity_of({"weights_digest": model}, ["a", "b"], {"size": (4, 4)})


def put(folder: Path, name: str, model: str = ONE, content: str = "old") -> Path:
    """An export in its place."""
    place = folder / name
    place.mkdir(parents=True)
    (place / f"{name}.bin").write_text(content)
    write_record(str(place), record(name, model))
    return place


def moved(folder: Path, names=FORMATS) -> None:
    with work_folder(str(folder)) as work:
        for name in names:
            put(Path(work), name, content="new")
        move_into_place(work, str(folder), names)


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name / f"{name}.bin").read_text() for name in FORMATS if (folder / name).is_dir()}


def test_exports_take_the_place_of_earlier_ones_and_leave_nothing_else(tmp_path):
    put(tmp_path, "onnx")
    moved(tmp_path)
    assert contents(tmp_path) == {"onnx": "new", "openvino": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "openvino"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("before", [(), ("onnx",), FORMATS])
@pytest.mark.parametrize("is_killed", [False, True])
def test_wherever_moving_stops_all_exports_are_old_or_all_are_new(tmp_path, monkeypatch, before, is_killed):
    """An error is met at once; what a killed process has left, by whoever comes next."""
    rename, steps = os.rename, 0

    for stop in range(7):
        folder = tmp_path / str(stop)
        folder.mkdir()
        for name in before:
            put(folder, name)
        steps = 0

        def stopping(source, target, stop=stop):
            nonlocal steps
            steps += 1
            if steps == stop + 1:
                raise Killed if is_killed else OSError(5, "Input/output error")
            rename(source, target)

        work = folder / ".export.01234567.tmp"
        work.mkdir()
        for name in FORMATS:
            put(work, name, content="new")
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", stopping)
            if is_killed:
                patch.setattr("hf_deit.export.exported_folder._move_back", lambda *_: None)
            try:
                move_into_place(str(work), str(folder), FORMATS)
                is_through = True
            except (Killed, OSError):
                is_through = False
        if not is_killed and not is_through:
            assert contents(folder) == dict.fromkeys(before, "old")
        recover(str(folder))
        assert contents(folder) == (dict.fromkeys(FORMATS, "new") if is_through else dict.fromkeys(before, "old"))
        assert sorted(path.name for path in folder.iterdir()) == sorted(contents(folder))
    assert is_through


def test_who_is_killed_while_it_puts_back_loses_nothing(tmp_path, monkeypatch):
    """And is killed again while it removes the rest, piece by piece."""
    put(tmp_path, "onnx")
    work = tmp_path / ".export.01234567.tmp"
    put(work, "onnx", content="new")
    rename = os.rename
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "rename", lambda source, target: rename(source, target) if "replaced.all" not in target else 1 / 0
        )
        patch.setattr("hf_deit.export.exported_folder._move_back", lambda *_: None)
        with pytest.raises(ZeroDivisionError):
            move_into_place(str(work), str(tmp_path), ["onnx"])
    assert contents(tmp_path) == {"onnx": "new"}
    rmtree = shutil.rmtree
    for name in ("onnx", "names.json"):

        def partly(path, name=name):
            there = Path(path) / name
            there.unlink() if there.is_file() else rmtree(there)
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(shutil, "rmtree", partly)
            recover(str(tmp_path))
        assert contents(tmp_path) == {"onnx": "old"}
    recover(str(tmp_path))
    assert contents(tmp_path) == {"onnx": "old"} and [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_an_interrupt_when_all_is_in_place_takes_nothing_back(tmp_path, monkeypatch):
    put(tmp_path, "onnx")
    rename = os.rename

    def interrupted(source, target):
        rename(source, target)
        if "replaced.all" in target:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupted)
        moved(tmp_path)
    assert contents(tmp_path) == {"onnx": "new", "openvino": "new"}


def test_what_cannot_be_put_back_now_is_put_back_by_the_next(tmp_path, monkeypatch):
    put(tmp_path, "onnx")
    rename, steps = os.rename, []

    def failing(source, target):
        steps.append(target)
        if len(steps) > 1:
            raise OSError(5, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError):
        patch.setattr(os, "rename", failing)
        moved(tmp_path)
    recover(str(tmp_path))
    assert contents(tmp_path) == {"onnx": "old"} and [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_what_killed_processes_were_making_is_removed_and_nothing_else(tmp_path):
    put(tmp_path, "onnx")
    before = everything_in(tmp_path)
    put(tmp_path / ".export.0123abcd.tmp", "onnx", content="half")
    (tmp_path / ".export.mine").mkdir()
    recover(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".export.mine", "onnx"]
    assert {path: content for path, content in everything_in(tmp_path).items() if "mine" not in path} == before


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: (folder / "onnx").write_text("x"), "'.*onnx' is no folder"),
        (lambda folder: (folder / "onnx").symlink_to(folder), "is no folder"),
        (
            lambda folder: ((folder / "onnx").mkdir(), (folder / "onnx" / "model.onnx").touch()),
            r"no export .*model\.onnx",
        ),
        (lambda folder: (put(folder, "onnx") / "notes.txt").touch(), r"beside an earlier export \(notes\.txt\)"),
        (lambda folder: (put(folder, "onnx") / "export.json").write_text("{"), "cannot read .*export.json"),
        (lambda folder: (put(folder, "onnx") / "export.json").write_text("{}"), "cannot read .*export.json"),
        (lambda folder: put(folder, "torch", TWO), "torch' holds an export of another model.*--to onnx torch"),
        (lambda folder: (folder / "config.json").write_text("{}"), "a config.json of no export"),
    ],
)
def test_folders_whose_content_would_be_lost_or_mixed_are_refused(tmp_path, prepare, words):
    prepare(tmp_path)
    before = everything_in(tmp_path)
    with pytest.raises(InputError, match=words):
        check_place(str(tmp_path), ["onnx"], identity())
    assert everything_in(tmp_path) == before


def test_exports_of_the_same_model_and_empty_folders_are_no_obstacle(tmp_path):
    (tmp_path / "onnx").mkdir()
    put(tmp_path, "torch")
    put(tmp_path, "openvino", TWO)  # is replaced
    check_place(str(tmp_path), ["onnx", "openvino"], identity())
    check_place(str(tmp_path / "absent"), ["onnx"], identity())
    for changed in (["b", "a"], ["a", "c"]):
        with pytest.raises(InputError, match="another model"):
            check_place(str(tmp_path), ["onnx", "openvino"], {**identity(), "labels": changed})


def test_exports_do_not_lie_beside_other_weights(tmp_path):
    folder = our_folder(tmp_path / "model")
    digest = weights_digest(folder)
    check_place(str(folder), ["onnx"], identity(digest))
    for other in (TWO, None):
        with pytest.raises(InputError, match="a model with other weights"):
            check_place(str(folder), ["onnx"], identity(other))


def test_files_are_listed_with_what_they_are_for(tmp_path):
    for name in ("classifier.xml", "classifier.bin", "classifier_quantized.xml", "preprocessing.py"):
        (tmp_path / name).write_text(name)
    purposes = dict.fromkeys(("classifier.xml", "classifier_quantized.xml"), "classifier")
    found = files_of(str(tmp_path), purposes, {"classifier": "float32", "classifier_quantized": "int8-static"})
    assert [(file.name, file.purpose, file.precision) for file in found] == [
        ("classifier.bin", "support", "float32"),
        ("classifier.xml", "classifier", "float32"),
        ("classifier_quantized.xml", "classifier", "int8-static"),
        ("preprocessing.py", "support", None),
    ]
    assert found[0].num_bytes == len("classifier.bin") and len(found[0].sha256) == 64


@pytest.fixture
def source(monkeypatch):
    """A model that is not asked: its proof is left out."""
    monkeypatch.setattr(exporting, "_write_beside", lambda *_: [])
    monkeypatch.setattr(
        exporting,
        "_Proof",
        lambda *_: SimpleNamespace(words="images", of=lambda *_: ([], ExportedAnswers([], {}, {}, True))),
    )
    monkeypatch.setattr(exporting, "_record", lambda *_: PARITY)
    preprocessing = SimpleNamespace(to_dict=lambda: {"size": (4, 4)})
    facts = {"weights_digest": ONE, "architecture": "ResNet"}
    return SimpleNamespace(facts=facts, labels=("a", "b"), preprocessing=preprocessing)


def exported(folder: Path, source, program, monkeypatch, formats=("torch",)) -> list:
    monkeypatch.setattr(exporting, "_function", lambda place: program)
    return exporting.export(source, str(folder), formats, images=None, most_images=1)


def writes(size: int):
    def program(source, folder):
        (Path(folder) / "classifier.pt2").write_bytes(b"x" * size)

    return program


def test_a_full_disk_leaves_the_earlier_export_whole(tmp_path, source, monkeypatch):
    assert not exported(tmp_path, source, writes(100), monkeypatch)[0].replaced
    before = everything_in(tmp_path)
    with full_disk(50_000), pytest.raises(CheckpointError, match=r"cannot write the export into .*free some space"):
        exported(tmp_path, source, writes(60_000), monkeypatch)
    assert everything_in(tmp_path) == before
    assert exported(tmp_path, source, writes(60_000), monkeypatch)[0].replaced
    assert json.loads((tmp_path / "torch" / "export.json").read_text())["files"][0]["num_bytes"] == 60_000


def test_a_disk_that_fills_up_within_a_library_is_told_as_such(tmp_path, source, monkeypatch):
    def program(source, folder):
        raise RuntimeError("stream write failed")

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(CheckpointError, match="the disk is full"):
        exported(tmp_path, source, program, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_a_format_refuses_is_told_with_the_operator(tmp_path, source, monkeypatch):
    def program(source, folder):
        writes(10)(source, folder)
        try:
            raise ValueError("No ONNX function found for <OpOverload(op='aten.nonsense', overload='default')>")
        except ValueError as error:
            raise RuntimeError("Failed to convert\nthe program") from error

    with pytest.raises(InputError, match=r"torch\.export refuses ResNet for its aten\.nonsense") as error:
        exported(tmp_path, source, program, monkeypatch)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [ExportError("other answers"), KeyboardInterrupt(), BrokenPipeError(32, "pipe")])
def test_of_several_formats_none_is_written_if_one_fails(tmp_path, source, monkeypatch, failure):
    monkeypatch.setattr(exporting, "require_formats", lambda _: None)
    put(tmp_path, "torch")
    before = everything_in(tmp_path)

    def check(file, compared):
        if "torch" in file:
            raise failure

    monkeypatch.setattr(exporting, "check_float", check)
    with pytest.raises(type(failure)):
        exported(tmp_path, source, writes(10), monkeypatch, formats=("onnx", "torch"))
    assert everything_in(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_told(tmp_path, source, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--output_dir"):
        exported(tmp_path / "file", source, writes(1), monkeypatch)
    with pytest.raises(InputError, match="cannot write to the output folder"):
        exported(tmp_path / "file" / "below", source, writes(1), monkeypatch)
