"""Contract: every file that a run, a store or a card consists of is whole, or as it was, whatever ends the writing."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.facts import facts
from support.faults import full_disk, killed_while_writing
from support.files import rights_in, umask
from support.stores import VIEWS, identity

from hf_deit.commands.resume import adopt_checkpoint
from hf_deit.errors import CheckpointError
from hf_deit.hub import zoo_cards
from hf_deit.hub.curves import plot_curves
from hf_deit.hub.files import no_empty_folders, share_weights, write_json, write_whole
from hf_deit.hub.record import stage, write_record
from hf_deit.hub.run_folder import list_checkpoints
from hf_deit.labels.files import write_columns
from hf_deit.recipes.resolve import resolve_arguments, save_recipe

Write = Callable[[], object]
LOGS = [{"step": step, "loss": 1 / step} for step in range(1, 4)]


def recipe(folder: Path, version: int) -> Write:
    arguments = resolve_arguments(["--recipe", "debug", "--output_dir", str(folder), "--seed", str(version)])
    return lambda: save_recipe(arguments, folder / "recipe.yaml")


def record(folder: Path, version: int) -> Write:
    return lambda: write_record(folder, facts(step=version), LOGS, "ada/pets")


def card(folder: Path, version: int) -> Write:
    """With so much text that is written by hand that no other file of the record is as large."""
    if not (folder / "README.md").exists():
        (folder / "README.md").write_text("Words. " * 20_000)
    return record(folder, version)


def curves(folder: Path, version: int) -> Write:
    return lambda: plot_curves(LOGS * version, folder / "training_curves.png")


def published_recipe(folder: Path, version: int) -> Write:
    run = folder.parent / "run"
    run.mkdir(exist_ok=True)
    write_json(facts(recipe={"seed": version}).to_dict(), run / "run.json")
    return lambda: stage(run, folder)


def description(folder: Path, version: int) -> Write:
    return lambda: identity(seed=version).write(folder / "store.json")


def epoch(folder: Path, version: int) -> Write:
    columns = {
        "slot": np.arange(VIEWS, dtype=np.uint32),
        "label": np.arange(VIEWS, dtype=np.int32) % (version + 3),
        "pixel_crc": np.full(VIEWS, -1),
    }
    return lambda: write_columns(folder / "epoch-00000.parquet", 0, columns, identity())


def zoo_card(folder: Path, version: int) -> Write:
    def write() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(zoo_cards, "MODELS", {"a": None})
            patched.setattr(zoo_cards, "make_card", lambda name: f"A card, version {version}. " * 100)
            zoo_cards.write_cards(folder)

    return write


# What writes a file, its name, and the bytes after which the writing ends.
KINDS = {
    "recipe": (recipe, "recipe.yaml", 50),
    "run.json": (record, "run.json", 50),
    "card": (card, "README.md", 100_000),
    "curves": (curves, "training_curves.png", 1000),
    "published recipe": (published_recipe, "recipe.yaml", 20),
    "store.json": (description, "store.json", 50),
    "epoch": (epoch, "epoch-00000.parquet", 200),
    "card of the zoo": (zoo_card, "a.md", 50),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_whole_or_as_it_was(folder, kind):
    prepare, name, after = KINDS[kind]
    prepare(folder, 1)()
    before = (folder / name).read_bytes()
    write = prepare(folder, 2)
    names = {*os.listdir(folder)}
    assert killed_while_writing(write, after)
    assert (folder / name).read_bytes() == before
    left = {*os.listdir(folder)} - names
    assert len(left) == 1 and all(other.startswith(f".{name}.") and other.endswith(".tmp") for other in left)
    with full_disk(after), pytest.raises((OSError, CheckpointError)):
        write()
    assert (folder / name).read_bytes() == before
    assert {*os.listdir(folder)} == names | left
    write()
    assert (folder / name).read_bytes() != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_file_is_whole_or_not_there(folder, kind):
    prepare, name, after = KINDS[kind]
    write = prepare(folder, 1)
    before = (folder / name).read_bytes() if kind == "card" else None
    assert killed_while_writing(write, after)
    assert ((folder / name).read_bytes() if (folder / name).exists() else None) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mask", "rights"), [(0o002, 0o664), (0o027, 0o640)])
def test_a_file_has_the_rights_of_new_ones(folder, kind, mask, rights):
    prepare, name, _ = KINDS[kind]
    with umask(mask):
        prepare(folder, 1)()
    assert stat.S_IMODE((folder / name).stat().st_mode) == rights


def test_a_checkpoint_that_is_adopted_is_whole_or_none(tmp_path):
    state = {"global_step": 3, "best_model_checkpoint": "checkpoint-3", "log_history": LOGS * 100}
    (tmp_path / "fetched").mkdir()
    write_json(state, tmp_path / "fetched" / "trainer_state.json")
    fetched, run = str(tmp_path / "fetched"), str(tmp_path / "run")
    size = os.path.getsize(tmp_path / "fetched" / "trainer_state.json")
    for after in (100, size):  # while the file is copied, and while it is written with this machine's folders in it
        assert killed_while_writing(lambda: adopt_checkpoint(fetched, run), after)
        assert list_checkpoints(run) == []
    assert list_checkpoints(run) == [] != [adopt_checkpoint(fetched, run)] == list_checkpoints(run)
    adopted = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    assert adopted == {**state, "best_model_checkpoint": os.path.join(run, "checkpoint-3")}


def test_a_file_that_is_linked_elsewhere_stays_as_it_is_there(tmp_path):
    write_whole("one", tmp_path / "here")
    os.link(tmp_path / "here", tmp_path / "there")
    write_whole(b"other", str(tmp_path / "here"))
    assert ((tmp_path / "here").read_text(), (tmp_path / "there").read_text()) == ("other", "one")


@pytest.mark.parametrize(("mask", "rights"), [(0o002, 0o664), (0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_get_the_rights_of_other_new_files(tmp_path, mask, rights):
    with umask(mask):
        save_file({"one": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
        save_file({"two": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
        write_json({}, tmp_path / "config.json")
        share_weights(tmp_path)
    assert rights_in(tmp_path)["file"] == {rights}
    for path, own in ((tmp_path / "model-00001-of-00002.safetensors", 0o440), (tmp_path / "config.json", 0o600)):
        path.chmod(own)
    with umask(mask):
        share_weights(tmp_path)  # what somebody has chosen stays
    assert rights_in(tmp_path)["file"] == {0o440, 0o600, rights}


def folders_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_no_empty_folder(tmp_path, error):
    for name in ("there/run/old", "empty/run"):
        (tmp_path / name).mkdir(parents=True)
    before = folders_below(tmp_path) | {"new", "new/another run"}
    with pytest.raises(error), no_empty_folders(tmp_path / "new" / "er" / "run", tmp_path / "there" / "run", None):
        (tmp_path / "new" / "er" / "run" / "part" / "of it").mkdir(parents=True)
        (tmp_path / "there" / "run" / "fresh").mkdir()
        (tmp_path / "new" / "another run").mkdir()
        raise error
    assert folders_below(tmp_path) == before


def test_what_was_written_stays_and_so_does_all_that_succeeds(tmp_path):
    with pytest.raises(ValueError), no_empty_folders(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "empty").mkdir(parents=True)
        (tmp_path / "a" / "run" / "recipe.yaml").write_text("seed: 1")
        raise ValueError
    with no_empty_folders(tmp_path / "b" / "run"):
        (tmp_path / "b" / "run" / "empty").mkdir(parents=True)
    assert folders_below(tmp_path) == {"a", "a/run", "a/run/recipe.yaml", "b", "b/run", "b/run/empty"}


def test_a_folder_that_another_process_has_taken_away_is_no_failure(tmp_path):
    with pytest.raises(ValueError), no_empty_folders(tmp_path / "run"):
        raise ValueError
