"""Contract: what is published are regular files of the folder, as they were when it was staged, and no foreign code.

A link is followed within the folder and in a snapshot of the Hub's cache; anything else is refused by its name, before
it is read. The only code that is published, and that a card speaks of, is this package's, beside its own classes.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from support import tiny
from support.checkpoints import edited, saved
from support.facts import facts
from support.hub_client import connect
from transformers import TrainerState
from transformers.utils import logging

import hf_deit
from hf_deit import CaiTConfig, InputError, create_model
from hf_deit.commands import main
from hf_deit.errors import PublishError
from hf_deit.hub.checksums import CHECKSUMS_FILE, read_checksums, write_checksums
from hf_deit.hub.facts import RunFacts, RunSources
from hf_deit.hub.files import copy_content, regular_file, write_json
from hf_deit.hub.publishing import check_folder, publish_folder
from hf_deit.hub.record import stage, stage_checkpoint, write_record
from hf_deit.models.zoo import code_beside
from hf_deit.training.checkpoints import check_unchanged

SECRET = "token hf_secret"
FOREIGN = {
    "auto_map": {"AutoConfig": "m.C", "AutoModelForImageClassification": "someone/repo--m.Model"},
    "custom_pipelines": {"image-classification": {"impl": "m.P"}},
    "quantization_config": {"quant_method": "fp8"},
    "attn_implementation": "someone/kernel",
}
CAIT_SIZES = {name: value for name, value in tiny.SIZES.items() if name != "intermediate_size"}


@pytest.fixture(autouse=True)
def said_anew() -> None:
    """What is said once is said once in every test."""
    logging.warning_once.cache_clear()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    connect(server, tmp_path / "home", "hf_write", monkeypatch)
    server.requests.clear()
    yield server
    server.remove_repository("ada/pets")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = saved(tmp_path_factory.mktemp("runs") / "run", tiny.student(), tiny.processor())
    write_record(folder, facts(image_size=16), [], "ada/pets")
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """The folder of a finished run, with a private file and a folder of others beside it."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "notes.txt").write_text(SECRET)
    (tmp_path / "notes.txt").write_text(SECRET)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def linked(target: str):
    return lambda path: path.symlink_to(target)


def through_a_linked_folder(path: Path) -> None:
    (path.parent / "elsewhere").symlink_to("../private")
    path.symlink_to("elsewhere/notes.txt")


# What stands at a file's place, and the words in which it is refused.
IRREGULAR = {
    "a link out": (linked("../notes.txt"), "leads out of its folder"),
    "a link out by the root": (lambda path: path.symlink_to(path.parent.parent / "notes.txt"), "leads out"),
    "a link through a folder that leads out": (through_a_linked_folder, "leads out"),
    "a link to a device": (linked("/dev/zero"), "leads out"),
    "a link to nothing": (linked("nothing"), "cannot be published"),
    "a link in a circle": (lambda path: path.symlink_to(path.name), "cannot be published"),
    "a link to a folder": (linked("."), "is a folder"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "a pipe": (os.mkfifo, "is a pipe"),
}


@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md", "run.json"])
def test_what_is_no_regular_file_of_the_folder_is_refused_before_it_is_read(run, tmp_path, kind, name):
    prepare, words = IRREGULAR[kind]
    (run / name).unlink()
    prepare(run / name)
    (tmp_path / "tree").mkdir()
    for refuse in (check_folder, lambda folder: stage(folder, tmp_path / "tree")):
        with pytest.raises(InputError, match=f"{re.escape(repr(str(run / name)))} {words}"):
            refuse(run)
    assert contents(tmp_path / "tree") == {}


def test_the_command_refuses_it_before_it_asks_the_hub(hub, run, capsys):
    (run / "environment.json").unlink()
    (run / "environment.json").symlink_to("../notes.txt")
    assert main.main(["publish", str(run), "--hub_model_id", "ada/pets"]) == 2
    assert "environment.json' leads out of its folder" in capsys.readouterr().err
    assert not hub.requests


def test_links_within_the_folder_are_published_by_content(hub, run, tmp_path):
    (run / "weights").mkdir()
    expected = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").rename(run / "weights" / "of_today")
    (run / "model.safetensors").symlink_to("weights/of_today")
    (run / "config.json").rename(run / "mine.json")
    (run / "config.json").symlink_to(run / "mine.json")
    (tmp_path / "way").symlink_to(run)  # the folder itself may be reached by a link
    publish_folder(tmp_path / "way", "ada/pets")
    assert hub.files("ada/pets")["model.safetensors"] == expected
    assert json.loads(hub.files("ada/pets")["config.json"]) == json.loads((run / "mine.json").read_text())
    assert "weights/of_today" not in hub.files("ada/pets")


def test_a_snapshot_of_the_hubs_cache_is_published(hub, run):
    published = contents(run)
    hub.add_repository("ada/theirs", published)
    snapshot = Path(snapshot_download("ada/theirs"))
    assert os.readlink(snapshot / "model.safetensors").startswith("../../blobs/")
    publish_folder(snapshot, "ada/pets")
    assert hub.files("ada/pets")["model.safetensors"] == published["model.safetensors"]
    assert {*os.listdir(snapshot)} - {".gitattributes"} == published.keys()
    hub.remove_repository("ada/theirs")


def test_of_a_cache_only_the_repositorys_own_blobs_are_published(tmp_path):
    snapshot = tmp_path / "hub" / "models--ada--pets" / "snapshots" / "a1"
    for folder in (
        snapshot / "deeper",
        snapshot.parents[1] / "blobs",
        tmp_path / "hub" / "models--ada--others" / "blobs",
    ):
        folder.mkdir(parents=True)
    (snapshot.parents[1] / "blobs" / "one").write_text("mine")
    (snapshot.parents[1] / "blobs" / "way").symlink_to(tmp_path / "notes.txt")
    (tmp_path / "hub" / "models--ada--others" / "blobs" / "two").write_text(SECRET)
    (tmp_path / "notes.txt").write_text(SECRET)
    for name, target in (("one", "../../blobs/one"), ("deeper/one", "../../../blobs/one")):
        (snapshot / name).symlink_to(target)
        assert Path(regular_file(snapshot, name)).read_text() == "mine"
    for name, target in (
        ("two", "../../../models--ada--others/blobs/two"),
        ("way", "../../blobs/way"),
        ("out", "../../../../notes.txt"),
    ):
        (snapshot / name).symlink_to(target)
        with pytest.raises(InputError, match="leads out"):
            regular_file(snapshot, name)
    (tmp_path / "plain" / "snapshots" / "a1").mkdir(parents=True)  # no cache: its names are not such
    (tmp_path / "plain" / "blobs").mkdir()
    (tmp_path / "plain" / "blobs" / "one").write_text(SECRET)
    (tmp_path / "plain" / "snapshots" / "a1" / "one").symlink_to("../../blobs/one")
    with pytest.raises(InputError, match="leads out"):
        regular_file(tmp_path / "plain" / "snapshots" / "a1", "one")


@pytest.mark.parametrize("name", ["../notes.txt", "/etc/hostname"])
def test_no_name_leads_out_of_a_folder(run, name):
    with pytest.raises(InputError, match=r"leads out|cannot be published"):
        regular_file(run, name)


@pytest.mark.parametrize(
    "name", ["../others/model-1.safetensors", "/others/model.safetensors", "of_today.safetensors"]
)
def test_weights_that_lie_elsewhere_are_refused(run, name):
    """By their index, which the loader follows here, and nobody can follow there."""
    (run / "model.safetensors").rename(run / "model-00001-of-00001.safetensors")
    weights = tiny.student().state_dict()
    write_json({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}, run / "model.safetensors.index.json")
    with pytest.raises(InputError, match=f"files that are not published, {re.escape(name)}"):
        check_folder(run)


def test_a_configuration_that_names_another_is_refused(run):
    edited(run, configuration_files=["config.4.0.0.json"])
    with pytest.raises(InputError, match=r"files that are not published, config\.4\.0\.0\.json"):
        check_folder(run)


def test_weights_in_parts_are_published(hub, run):
    (run / "model.safetensors").unlink()
    tiny.student().save_pretrained(run, max_shard_size="40KB")
    publish_folder(run, "ada/pets")
    parts = {path.name for path in run.glob("model-*")}
    assert len(parts) > 1
    assert parts | {"model.safetensors.index.json"} <= hub.files("ada/pets").keys()


def test_what_is_staged_stays_as_it_was_and_so_does_the_folder(run, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    os.link(tmp_path / "notes.txt", tree / "config.json")  # what is there is replaced, not written to
    (tree / "README.md").symlink_to(tmp_path / "notes.txt")
    stage(run, tree)
    before, staged = contents(run), contents(tree)
    for path in run.iterdir():
        with open(path, "r+b") as file:  # in place, as safetensors writes
            file.write(b"another")
    assert contents(tree) == staged
    assert {name: staged[name] for name in before} == before
    assert (tmp_path / "notes.txt").read_text() == SECRET


def test_a_file_that_becomes_a_pipe_or_a_link_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text(SECRET)
    (tmp_path / "link").symlink_to("file")
    for name in ("pipe", "link"):
        with pytest.raises(OSError):
            copy_content(tmp_path / name, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_folder_for_what_is_published_that_is_a_link_is_not_followed(hub, run, tmp_path):
    (run / "_publishing").symlink_to("../private")
    (run / "_publishing_").write_text("no folder")
    publish_folder(run, "ada/pets")
    assert (tmp_path / "private" / "notes.txt").read_text() == SECRET
    assert not [name for name, content in hub.files("ada/pets").items() if SECRET.encode() in content]


def test_a_card_that_is_a_link_is_not_taken_up(run, tmp_path):
    (run / "README.md").unlink()
    (run / "README.md").symlink_to("../notes.txt")
    with pytest.raises(InputError, match=r"README.md' leads out"):
        write_record(run, facts(), [], "ada/pets")
    assert (tmp_path / "notes.txt").read_text() == SECRET


# Code


def test_what_leads_to_foreign_code_is_not_published_and_is_said(hub, run, tmp_path, caplog):
    edited(run, **FOREIGN, _name_or_path="/home/ada/pets")
    edited(run, "preprocessor_config.json", auto_map={"AutoImageProcessor": "m.P"})
    write_json({**facts(image_size=16).to_dict(), "needs_code": True}, run / "run.json")  # as an earlier version wrote
    (run / "m.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    publish_folder(run, "ada/pets")
    files = hub.files("ada/pets")
    config, card = json.loads(files["config.json"]), files["README.md"].decode()
    assert not {*FOREIGN, "_name_or_path"} & config.keys()
    assert "auto_map" not in json.loads(files["preprocessor_config.json"])
    assert not [name for name in files if name.endswith(".py")]
    assert json.loads(files["run.json"])["needs_code"] is False
    assert "trust_remote_code" not in card
    assert "code comes with the repository" not in card
    said = " ".join(record.getMessage() for record in caplog.records)
    for name in FOREIGN:
        assert f"{name} " in said
    assert "someone/repo--m.Model" in said
    assert not [target for _, target, _ in hub.requests if "someone" in target]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoConfig": "{outside}/victim.C"},
        {"AutoConfig": "../victim.C", "AutoModel": "../../victim.M"},
        {"AutoConfig": "someone/repo--../victim.C"},
        {"AutoConfig": None},
        {"AutoConfig": ["../victim.C", None]},
        {"AutoConfig": {"x": 3}},
        {3: 3},
        ["../victim.C"],
        None,
        "../victim.C",
        3,
    ],
    ids=str,
)
def test_no_file_is_overwritten_or_taken_by_an_auto_map(run, tmp_path, auto_map):
    (tmp_path / "victim.py").write_text(SECRET)
    text = json.dumps({**json.loads((run / "config.json").read_text()), "auto_map": auto_map})
    (run / "config.json").write_text(text.replace("{outside}", str(tmp_path)))
    (tmp_path / "tree" / "deeper").mkdir(parents=True)
    outside = contents(tmp_path)
    stage(run, tmp_path / "tree" / "deeper")
    check_folder(run)
    assert "auto_map" not in json.loads((tmp_path / "tree" / "deeper" / "config.json").read_text())
    after = {name: content for name, content in contents(tmp_path).items() if not name.startswith("tree/deeper/")}
    assert after == outside
    assert not [name for name, content in contents(tmp_path / "tree").items() if SECRET.encode() in content]


def test_cait_is_published_with_this_packages_code_whatever_lies_beside_it(tmp_path):
    folder = saved(tmp_path / "run", create_model("cait_xxs24_224", **CAIT_SIZES), tiny.processor())
    (folder / "modeling_cait.py").write_text("import m\n")
    (folder / "m.py").write_text("")
    edited(folder, auto_map={"AutoConfig": "someone/repo--m.C", "AutoModelForImageClassification": "m.M"})
    (tmp_path / "tree").mkdir()
    stage(folder, tmp_path / "tree")
    room = Path(hf_deit.__file__).parent / "models"
    code = {path.name: path.read_text() for path in (tmp_path / "tree").glob("*.py")}
    assert code == {name: (room / name).read_text() for name in code_beside("cait")}
    assert {"configuration_cait.py", "modeling_cait.py", "keyed.py"} < code.keys()
    assert json.loads((tmp_path / "tree" / "config.json").read_text())["auto_map"] == CaiTConfig.own_code


def test_what_a_run_has_written_beside_the_weights_is_looked_at_too(run, tmp_path):
    """The image processor of averaged weights is no file of their folder."""
    (run / "preprocessor_config.json").unlink()
    tree = Path(shutil.copytree(run, tmp_path / "tree"))
    tiny.processor().save_pretrained(tree)
    edited(tree, "preprocessor_config.json", auto_map={"AutoImageProcessor": "mine.P"})
    (tree / "mine.py").write_text("")
    stage(run, tree)
    assert "auto_map" not in json.loads((tree / "preprocessor_config.json").read_text())
    assert not (tree / "mine.py").exists()


@pytest.mark.parametrize("make", [tiny.student, tiny.resnet, lambda: create_model("cait_xxs24_224", **CAIT_SIZES)])
def test_a_card_speaks_of_code_for_classes_that_bring_ours(tmp_path, make):
    model = make()
    model.config.auto_map = FOREIGN["auto_map"]
    unknown = dict.fromkeys(("num_train", "num_labeled", "num_validation", "best_step"))
    known = RunFacts.of(
        model,
        tiny.arguments(tmp_path),
        TrainerState(),
        RunSources.of(model, None),
        **unknown,
        image_size=16,
        metrics={},
        is_finished=True,
        teacher_report={},
        images_per_second=0.0,
    )
    assert known.needs_code == (model.config.model_type == "cait")


def test_quantised_weights_are_not_published(run):
    weights = load_file(run / "model.safetensors")
    name = next(name for name in weights if name.endswith("weight"))
    save_file({**weights, name: weights[name].to(torch.int8)}, run / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"are quantised \(I8\)"):
        check_folder(edited(run, **FOREIGN))


# Checkpoints


@pytest.fixture
def checkpoint(run) -> Path:
    folder = Path(shutil.copytree(run, run / "checkpoint-2"))
    write_json({"global_step": 2, "best_model_checkpoint": None}, folder / "trainer_state.json")
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "weights").mkdir()
    (folder / "weights" / "shard.bin").write_bytes(b"part")
    return folder


@pytest.mark.parametrize("kind", [kind for kind in IRREGULAR if kind != "a folder"])  # which may be there
@pytest.mark.parametrize("name", ["optimizer.pt", "weights/shard.bin", "trainer_state.json"])
def test_a_checkpoint_is_staged_of_regular_files_alone(checkpoint, tmp_path, kind, name):
    stage_checkpoint(checkpoint, tmp_path / "tree")
    assert (tmp_path / "tree" / name).is_file()
    (checkpoint / name).unlink()
    IRREGULAR[kind][0](checkpoint / name)
    with pytest.raises(InputError):
        stage_checkpoint(checkpoint, tmp_path / "tree")
    assert not [file for file, content in contents(tmp_path / "tree").items() if SECRET.encode() in content]


def test_a_linked_folder_of_a_checkpoint_is_refused(checkpoint, tmp_path):
    shutil.rmtree(checkpoint / "weights")
    (checkpoint / "weights").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match=r"weights' leads out"):
        stage_checkpoint(checkpoint, tmp_path / "tree")


def test_a_checkpoint_is_staged_without_foreign_code(checkpoint, tmp_path, caplog):
    """And is whole there, by its checksums."""
    edited(checkpoint, **FOREIGN, _name_or_path="/home/ada/pets")
    for name in ("m.py", "weights/n.py", "zero_to_fp32.py", "m.so"):  # DeepSpeed's own, too: nothing needs it
        (checkpoint / name).write_text("")
    write_checksums(checkpoint)
    stage_checkpoint(checkpoint, tmp_path / "tree")
    files = contents(tmp_path / "tree")
    assert not [name for name in files if name.endswith((".py", ".so"))]
    assert not {*FOREIGN, "_name_or_path"} & json.loads(files["config.json"]).keys()
    assert read_checksums(tmp_path / "tree").keys() == files.keys() - {CHECKSUMS_FILE}
    check_unchanged(str(tmp_path / "tree"))
    assert files["optimizer.pt"] == b"state"
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "others' code: m.py, m.so, zero_to_fp32.py" in said
    assert "others' code: n.py" in said


def test_a_push_that_meets_a_link_says_so_and_publishes_nothing(hub, run, monkeypatch):
    """It may have become one after the folder was checked."""
    monkeypatch.setattr("hf_deit.hub.publishing.check_folder", lambda folder: None)
    (run / "environment.json").unlink()
    (run / "environment.json").symlink_to("../notes.txt")
    with pytest.raises(PublishError, match=r"environment.json' leads out"):
        publish_folder(run, "ada/pets")
    assert not [name for name in hub.files("ada/pets") if name != ".gitattributes"]
