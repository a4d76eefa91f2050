"""Contract: what takes the path of a file or folder takes a string or a `Path`, and names both alike in errors."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.facts import facts
from support.faults import full_disk
from support.hub_client import connect
from support.hub_server import HubServer
from support.stores import VIEWS, assert_holds, fill, identity

from hf_deit import InputError, TeacherLabelStore
from hf_deit.errors import CheckpointError
from hf_deit.hub.curves import plot_curves
from hf_deit.hub.files import write_json
from hf_deit.hub.publishing import check_folder, publish_folder
from hf_deit.hub.record import model_files, read_facts, stage, stage_checkpoint, write_record
from hf_deit.hub.run_folder import is_whole, last_whole_checkpoint, list_checkpoints
from hf_deit.labels.files import check_new_folder, has_labels, is_store, lock_store, probe_store, read_columns
from hf_deit.labels.identity import StoreIdentity

both = pytest.mark.parametrize("path_type", [str, Path])


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run with a checkpoint."""
    folder = tmp_path / "run"
    tiny.student().save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    write_record(folder, facts(recipe={"seed": 3}), [], "ada/pets")
    (folder / "checkpoint-2").mkdir()
    write_json({"global_step": 2, "best_model_checkpoint": None}, folder / "checkpoint-2" / "trainer_state.json")
    return folder


@both
def test_a_run_is_recorded_read_and_staged(run, tmp_path, path_type):
    folder, tree = path_type(run), path_type(tmp_path / "tree")
    os.mkdir(tree)
    write_record(folder, facts(step=7), [{"step": 1, "loss": 1.0}], "ada/pets")
    assert read_facts(folder) == facts(step=7)
    assert model_files(folder) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    check_folder(folder)
    stage(folder, tree)
    record = {"README.md", "environment.json", "recipe.yaml", "run.json", "training_curves.png"}
    assert {*os.listdir(tree)} == {*model_files(folder), *record}
    plot_curves([], path_type(tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").stat().st_size > 1000


@both
def test_checkpoints_are_found_and_staged(run, tmp_path, path_type):
    checkpoint = path_type(run / "checkpoint-2")
    assert is_whole(checkpoint)
    assert list_checkpoints(path_type(run)) == [str(checkpoint)] == [last_whole_checkpoint(path_type(run))]
    stage_checkpoint(checkpoint, path_type(tmp_path / "tree"))
    assert os.listdir(tmp_path / "tree") == ["trainer_state.json"]


@both
def test_a_run_is_published(run, tmp_path, monkeypatch, path_type):
    with HubServer(tmp_path / "hub") as hub:
        hub.add_user("ada")
        hub.add_token("hf_ada", "ada")
        connect(hub, tmp_path / "home", "hf_ada", monkeypatch)
        repository = publish_folder(path_type(run), "pets", seconds=20)
        assert repository.url == f"{hub.url}/ada/pets"
        assert hub.files("ada/pets")["model.safetensors"] == (run / "model.safetensors").read_bytes()


@both
def test_a_store_is_filled_and_read(tmp_path, path_type):
    folder = path_type(tmp_path / "store")
    assert not is_store(folder) and not has_labels(folder)
    check_new_folder(folder)
    probe_store(folder)
    fill(folder)
    assert is_store(folder) and has_labels(folder)
    assert_holds(TeacherLabelStore.open(folder, readonly=True))
    assert_holds(TeacherLabelStore(folder, identity(), readonly=True))
    assert StoreIdentity.read(path_type(tmp_path / "store" / "store.json")) == identity()
    columns = read_columns(path_type(tmp_path / "store" / "data" / "epoch-00000.parquet"), 0, identity())
    assert len(columns["slot"]) == VIEWS


def locked(folder: Any) -> None:
    with lock_store(folder):
        lock_store(folder)


def on_a_full_disk(folder: Any) -> None:
    with full_disk(10):
        identity().write(folder)


# Calls that are refused, given a folder with a file "config.json" that is no JSON.
REFUSED: dict[str, Callable[[Any], object]] = {
    "check_folder": check_folder,
    "check_folder, nothing there": lambda folder: check_folder(type(folder)(f"{folder}/none")),
    "publish_folder": lambda folder: publish_folder(folder, "ada/pets"),
    "read_facts": lambda folder: read_facts(folder),
    "check_new_folder": check_new_folder,
    "probe_store": probe_store,
    "lock_store": locked,
    "TeacherLabelStore.open": lambda folder: TeacherLabelStore.open(folder, identity()),
    "TeacherLabelStore.open, readonly": lambda folder: TeacherLabelStore.open(folder, readonly=True),
    "TeacherLabelStore": lambda folder: TeacherLabelStore(folder, identity(), readonly=True).push_to_hub("ada/pets"),
    "StoreIdentity.read": StoreIdentity.read,
    "StoreIdentity.write": on_a_full_disk,
    "read_columns": lambda folder: read_columns(folder, 0, identity()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_errors_name_a_path_as_they_name_a_string(tmp_path, monkeypatch, name):
    monkeypatch.setattr("hf_deit.labels.files.LOCK_SECONDS", 0.1)
    messages = []
    for path_type in (str, Path):
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        for file in ("config.json", "run.json"):
            (folder / file).write_text("none")
        path = folder / "store.json" if name == "StoreIdentity.write" else folder
        with pytest.raises((InputError, CheckpointError)) as caught:
            REFUSED[name](path_type(path))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert repr(str(tmp_path / "folder"))[:-1] in messages[0] and "PosixPath" not in messages[0]
