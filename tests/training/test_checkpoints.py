"""A run goes on from its last whole checkpoint, whatever else lies beside it, and never loses that one.

Neither a torn checkpoint nor a full disk nor another student's weights are taken for a checkpoint. What may be whole,
and cannot be read, is refused by its name and stays; so is what is not as it was written, whichever byte has changed.
"""

import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
import torch
from support import tiny
from transformers import TrainerCallback, TrainerState
from transformers.trainer_pt_utils import safe_globals

from hf_deit import InputError, load_recipe
from hf_deit.commands import resume
from hf_deit.commands.sources import resolve_sources
from hf_deit.errors import CheckpointError
from hf_deit.hub import checksums, run_folder
from hf_deit.hub.checksums import read_checksums, write_checksums
from hf_deit.hub.files import open_regular
from hf_deit.hub.record import stage_checkpoint
from hf_deit.hub.run_folder import is_whole, last_whole_checkpoint, read_state
from hf_deit.models import pretrained
from hf_deit.recipes.resolve import resolve_arguments
from hf_deit.training.arguments import ModelArguments
from hf_deit.training.checkpoints import (
    RunFolder,
    check_resumable,
    check_unchanged,
    find_checkpoint,
    remove_torn_checkpoints,
    restore_weights,
    resume_wish,
)

TORN = {
    "no state": None,
    "no bytes": "",
    "half a state": '{"best_metric": null, "epoch": 0.5, "log_hist',
    "zeros": "\0" * 300,  # what a file system may leave after a power cut
    "half of it zeros": '{\n  "best_metric": null,\n  "epo' + "\0" * 300,
    "within a word": '{\n  "best_metric": nul',
    "within a number": '{\n  "epoch": 0.',
    "between two values": '{\n  "epoch": 0.5,\n',
    "within a name": '{\n  "best_me',
    "within the log": '{\n  "log_history": [\n    {\n      "loss": 1.5\n    }',
}


def write_checkpoint(run: Path, step: int, torn: str = "") -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    state = TORN[torn] if torn else json.dumps(vars(TrainerState(global_step=step)))
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def whole_checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoint-*") if is_whole(str(path)))


# Which is the last


@pytest.mark.parametrize("torn", TORN)
def test_torn_checkpoints_are_left_out_with_a_warning(tmp_path, caplog, torn):
    write_checkpoint(tmp_path, 2)
    whole = write_checkpoint(tmp_path, 4)
    write_checkpoint(tmp_path, 6, torn)
    write_checkpoint(tmp_path, 8, torn)
    assert last_whole_checkpoint(str(tmp_path)) == str(whole)
    assert "checkpoint-6 is torn" in caplog.text
    assert "checkpoint-8 is torn" in caplog.text
    assert "checkpoint-4 is torn" not in caplog.text


def test_the_last_is_the_one_of_most_steps(tmp_path, caplog):
    for step in (100, 9, 10, 99):
        write_checkpoint(tmp_path, step)
    for name in ("checkpoint-999-old", "checkpoint-x", "my-checkpoint-999", "checkpoint-"):
        shutil.copytree(tmp_path / "checkpoint-9", tmp_path / name)
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-100")
    shutil.rmtree(tmp_path / "checkpoint-100")
    shutil.rmtree(tmp_path / "checkpoint-99")
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert caplog.text == ""


def test_there_may_be_none(tmp_path):
    assert last_whole_checkpoint(str(tmp_path / "missing")) is None
    assert last_whole_checkpoint(str(tmp_path)) is None
    write_checkpoint(tmp_path, 2, "no state")
    assert last_whole_checkpoint(str(tmp_path)) is None


@pytest.mark.parametrize("word", [True, "true", "True", "yes"])
def test_true_means_the_last_whole_one(tmp_path, word):
    assert resume_wish(word) is True
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        find_checkpoint(word, str(tmp_path))
    whole = write_checkpoint(tmp_path, 9)
    write_checkpoint(tmp_path, 10, "half a state")
    assert find_checkpoint(word, str(tmp_path)) == str(whole)


@pytest.mark.parametrize("word", [None, False, "none", "None", "false", "False", "off"])
def test_none_and_false_mean_the_beginning(tmp_path, word):
    write_checkpoint(tmp_path, 2)
    assert resume_wish(word) is None
    assert find_checkpoint(word, str(tmp_path)) is None


def test_a_folder_means_itself(tmp_path):
    folder = write_checkpoint(tmp_path / "elsewhere", 2)
    write_checkpoint(tmp_path / "run", 4)
    assert resume_wish(str(folder)) == str(folder)
    assert find_checkpoint(str(folder), str(tmp_path / "run")) == str(folder)
    stateless = write_checkpoint(tmp_path / "run", 6, "no state")
    for missing in (tmp_path / "elsewhere", tmp_path / "nowhere", stateless):
        with pytest.raises(InputError, match="there is no whole checkpoint"):
            find_checkpoint(str(missing), str(tmp_path / "run"))


# What may be whole, and cannot be read

STATE = json.dumps(vars(TrainerState(global_step=4)), indent=2, sort_keys=True) + "\n"
UNCLEAR = {
    "another file": "[1, 2]",
    "nothing stated": "{}\n",
    "no UTF-8": STATE.encode().replace(b'"epoch"', b'"epo\xffh"'),
    "a quote that is none": STATE.replace('"epoch"', '"epoch#'),
    "a last brace that is none": STATE.replace("\n}\n", "\n|\n"),
    "a brace too many": STATE + "}",
    "a step in words": STATE.replace('"global_step": 4', '"global_step": "four"'),
    "a step that is no whole number": STATE.replace('"global_step": 4', '"global_step": 4.5'),
    "a step before the first": STATE.replace('"global_step": 4', '"global_step": -4'),
    "a log in words": STATE.replace('"log_history": []', '"log_history": "none"'),
    "a log of words": STATE.replace('"log_history": []', '"log_history": ["none"]'),
    "a long number": STATE.replace('"global_step": 4', f'"global_step": {"4" * 5000}'),
    "too deep": '{"a":' * 100_000,
}


def in_folder(folder: Path) -> dict[str, bytes | str | None]:
    """Every file, link and folder in it, with what is in it."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def assert_refused_and_untouched(run: Path, name: str, file: str, before: str | None = "checkpoint-2") -> None:
    """A checkpoint is named with the file and with the one before, is not passed over, and stays."""
    content = in_folder(run)
    for find in (
        lambda: last_whole_checkpoint(run),
        lambda: find_checkpoint(True, run),
        lambda: find_checkpoint(run / name, run),
    ):
        with pytest.raises(InputError) as error:
            find()
        told = str(error.value)
        assert f"{name} is damaged or cannot be read: " in told and file in told and "\n" not in told
        assert (f"--resume_from_checkpoint {run / before}" if before else "there is no whole one before") in told
    remove_torn_checkpoints(str(run))
    assert in_folder(run) == content
    last = "no checkpoint was written" if before is None else f"checkpoint is {run / before};"
    assert last in RunFolder(str(run)).way_back()


@pytest.mark.parametrize("unclear", UNCLEAR)
def test_a_state_that_cannot_be_understood_is_refused_and_stays(tmp_path, unclear):
    write_checkpoint(tmp_path, 2)
    content = UNCLEAR[unclear]
    state = write_checkpoint(tmp_path, 4) / "trainer_state.json"
    state.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused_and_untouched(tmp_path, "checkpoint-4", "trainer_state.json")


def test_a_state_that_cannot_be_read_is_refused_and_stays(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 2)
    folder = write_checkpoint(tmp_path, 4)
    state = folder / "trainer_state.json"
    state.unlink()
    state.mkdir()
    assert_refused_and_untouched(tmp_path, "checkpoint-4", "trainer_state.json")
    state.rmdir()
    os.mkfifo(state)  # which would be waited for
    assert_refused_and_untouched(tmp_path, "checkpoint-4", "trainer_state.json")
    state.unlink()
    state.symlink_to(tmp_path / "elsewhere.json")
    assert_refused_and_untouched(tmp_path, "checkpoint-4", "trainer_state.json")
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "a disk that is not mounted")
    assert_refused_and_untouched(tmp_path, "checkpoint-4", "trainer_state.json")
    folder.unlink()
    write_checkpoint(tmp_path, 4)

    def refuse(path, *args):
        if Path(path) == state:
            raise PermissionError(13, "Permission denied", str(path))
        return open_regular(path, *args)

    monkeypatch.setattr(run_folder, "open_regular", refuse)
    assert_refused_and_untouched(tmp_path, "checkpoint-4", "Permission denied")
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert_refused_and_untouched(tmp_path, "checkpoint-4", "Permission denied", before=None)


def test_a_checkpoint_that_cannot_be_read_hinders_no_newer_one(tmp_path, caplog):
    (write_checkpoint(tmp_path, 2) / "trainer_state.json").write_text("[1, 2]")
    whole = write_checkpoint(tmp_path, 4)
    assert find_checkpoint(True, tmp_path) == str(whole)
    remove_torn_checkpoints(str(tmp_path))
    assert "checkpoint-2 is damaged or cannot be read" in caplog.text
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()


def test_a_file_named_like_a_checkpoint_is_none(tmp_path):
    whole = write_checkpoint(tmp_path, 2)
    (tmp_path / "checkpoint-4").write_text("notes")
    assert last_whole_checkpoint(tmp_path) == str(whole)


def test_fields_that_are_not_known_are_left_out(tmp_path):
    folder = write_checkpoint(tmp_path, 4)
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps({**state, "of_a_newer_release": {"a": [1]}}))
    assert is_whole(folder)
    assert read_state(folder) == TrainerState(global_step=4)


# What is removed


def test_only_the_torn_are_removed(tmp_path):
    for step in (2, 10):
        write_checkpoint(tmp_path, step)
    for step, torn in enumerate(TORN, start=11):
        write_checkpoint(tmp_path, step, torn)
    shutil.copytree(tmp_path / "checkpoint-11", tmp_path / "checkpoint-3-mine")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    remove_torn_checkpoints(str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint-2", "checkpoint-10", "checkpoint-3-mine", "model.safetensors"}
    assert (tmp_path / "checkpoint-10" / "model.safetensors").read_bytes() == b"weights"


def test_what_is_linked_is_not_removed_or_written_over(tmp_path, whole_run):
    """As a checkpoint of another run, to go on from it here."""
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    run.mkdir()
    for step in (2, 4, 6):
        shutil.copytree(whole_run[0] / f"checkpoint-{step}", elsewhere / f"checkpoint-{step}")
        (run / f"checkpoint-{step}").symlink_to(elsewhere / f"checkpoint-{step}")
    (elsewhere / "checkpoint-6" / "trainer_state.json").unlink()
    before = in_folder(elsewhere)
    trainer = make(run, student=1, save_total_limit=1)
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert same(results(trainer), whole_run[1])
    assert [path.name for path in run.iterdir()] == ["checkpoint-8"]
    assert in_folder(elsewhere) == before


def test_what_has_lost_another_file_than_its_state_stays(two, caplog):
    """As one whose optimizer was taken away to save space."""
    (two / "checkpoint-2" / "optimizer.pt").unlink()
    before = in_folder(two)
    remove_torn_checkpoints(str(two))
    assert in_folder(two) == before
    (two / "checkpoint-4" / "trainer_state.json").unlink()
    with pytest.raises(InputError, match=r"checkpoint-2 is torn: optimizer\.pt is not there\. No other is whole"):
        last_whole_checkpoint(two)
    assert "checkpoint-4 is torn: it has no trainer_state.json (as of a run killed" in caplog.text


@pytest.mark.parametrize("content", ["[1, 2]", None])
def test_what_is_not_understood_is_put_aside_before_it_is_written_anew(two, whole_run, content):
    shutil.copytree(two / "checkpoint-4", two / "checkpoint-4.aside-1")
    path = two / "checkpoint-4" / "trainer_state.json"
    path.unlink()
    path.mkdir() if content is None else path.write_text(content)
    before = in_folder(two / "checkpoint-4")
    resumed = make(two, student=1)
    resumed.train(resume_from_checkpoint=str(two / "checkpoint-2"))
    assert same(results(resumed), whole_run[1])
    assert in_folder(two / "checkpoint-4.aside-2") == before
    assert run_folder.whole_checkpoints(two) == [f"{two}/checkpoint-{step}" for step in (2, 4, 6, 8)]


# Files that are not as they were written


@pytest.fixture
def two(tmp_path, whole_run) -> Path:
    """A run with two checkpoints."""
    for step in (2, 4):
        shutil.copytree(whole_run[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    return tmp_path


def find_unchanged(run: Path) -> str:
    """What a run does before it loads anything."""
    found = find_checkpoint(True, str(run))
    check_unchanged(found)
    return found


CHECKSUMS = "checksums.json"
FILES_OF_A_CHECKPOINT = [
    *("config.json", "model.safetensors", "optimizer.pt", "preprocessor_config.json", "rng_state.pth", "scheduler.pt"),
    *("trainer_state.json", "training_args.bin", "ema/config.json", "ema/model.safetensors"),
]


def test_every_file_of_a_checkpoint_has_a_checksum(two):
    files = {name for name, content in in_folder(two / "checkpoint-4").items() if content is not None}
    assert files == {*FILES_OF_A_CHECKPOINT, CHECKSUMS}
    assert sorted(read_checksums(two / "checkpoint-4")) == sorted(FILES_OF_A_CHECKPOINT)
    assert find_unchanged(two) == str(two / "checkpoint-4")


@pytest.mark.parametrize("file", FILES_OF_A_CHECKPOINT)
def test_a_flipped_byte_is_found_before_anything_is_loaded(two, file):
    path = two / "checkpoint-4" / file
    content = path.read_bytes()
    for place in (0, len(content) // 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        before = in_folder(two)
        with pytest.raises(InputError) as error:
            find_unchanged(two)
        assert file in str(error.value)
        assert f"--resume_from_checkpoint {two / 'checkpoint-2'}" in str(error.value)
        remove_torn_checkpoints(str(two))
        assert in_folder(two) == before


def test_a_flipped_byte_among_the_checksums_loses_no_checkpoint(two):
    path = two / "checkpoint-4" / CHECKSUMS
    content = path.read_bytes()
    before = in_folder(two)
    for place in range(0, len(content), 11):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        if content[place : place + 1].isspace():
            continue
        with pytest.raises(InputError, match=r"checkpoint-4 is damaged .* checksums\.json"):
            find_checkpoint(True, two)
        remove_torn_checkpoints(str(two))
    path.write_bytes(content)
    assert in_folder(two) == before
    path.unlink()  # as the message advises: it goes on like one of an earlier version
    assert find_unchanged(two) == str(two / "checkpoint-4")


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
@pytest.mark.parametrize("file", FILES_OF_A_CHECKPOINT)
def test_what_lacks_a_part_is_left_out_by_name_for_the_one_before(two, caplog, file, damage):
    path = two / "checkpoint-4" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    assert find_unchanged(two) == str(two / "checkpoint-2")
    assert "checkpoint-4 is torn" in caplog.text and file in caplog.text
    with pytest.raises(InputError, match=rf"no whole checkpoint .*checkpoint-4'.*{file}.*{two / 'checkpoint-2'}"):
        find_checkpoint(two / "checkpoint-4", two)
    shutil.rmtree(two / "checkpoint-2")
    if (file, damage) != ("trainer_state.json", "gone"):  # as a kill leaves it
        with pytest.raises(InputError, match=rf"checkpoint-4 is torn: {file}.*No other is whole"):
            find_checkpoint(True, two)


def test_a_file_that_is_no_file_or_cannot_be_read_is_refused(two):
    path = two / "checkpoint-4" / "optimizer.pt"
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    assert_refused_and_untouched(two, "checkpoint-4", "optimizer.pt is no file")
    path.rmdir()
    path.symlink_to(two / "elsewhere")
    assert_refused_and_untouched(two, "checkpoint-4", "optimizer.pt cannot be read")
    path.unlink()
    os.mkfifo(path)
    assert_refused_and_untouched(two, "checkpoint-4", "optimizer.pt is no file")
    path.unlink()
    path.write_bytes(content + b"more")
    assert_refused_and_untouched(two, "checkpoint-4", "optimizer.pt is not as it was written")


@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_file_without_the_right_to_read_it_is_refused(two, monkeypatch, has_checksums):
    if not has_checksums:
        (two / "checkpoint-4" / CHECKSUMS).unlink()

    def refuse(path, *args):
        if os.path.basename(path) == "optimizer.pt":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *args)

    monkeypatch.setattr(checksums, "open", refuse, raising=False)
    monkeypatch.setattr(pretrained, "open", refuse, raising=False)
    with pytest.raises(
        InputError, match=r"checkpoint-4 is damaged or cannot .*optimizer\.pt.*Permission.*checkpoint-2"
    ):
        find_unchanged(two)


def test_files_that_were_added_are_nobodys_business(two):
    (two / "checkpoint-4" / "notes.txt").write_text("the best so far")
    assert find_unchanged(two) == str(two / "checkpoint-4")


@pytest.mark.parametrize("name", ["../checkpoint-2/optimizer.pt", "/dev/zero", "", "a/../../b", "a\0b"])
def test_checksums_of_files_elsewhere_are_none(two, name):
    files = read_checksums(two / "checkpoint-4")
    write_checksums(two / "checkpoint-4", {**files, name: files["optimizer.pt"]})
    assert_refused_and_untouched(two, "checkpoint-4", CHECKSUMS)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


OF_AN_EARLIER_VERSION: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"notes",
    "another pickle": lambda content: pickle.dumps({"state": 1}),
    "hostile": lambda content: pickle.dumps(Hostile()),
}


@pytest.mark.parametrize("damage", OF_AN_EARLIER_VERSION)
def test_without_checksums_those_of_torch_are_compared(two, damage):
    (two / "checkpoint-4" / CHECKSUMS).unlink()
    assert find_unchanged(two) == str(two / "checkpoint-4")
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"):
        path = two / "checkpoint-4" / file
        content = path.read_bytes() if path.exists() else (two / "checkpoint-4" / "scheduler.pt").read_bytes()
        path.write_bytes(OF_AN_EARLIER_VERSION[damage](content))
        with pytest.raises(InputError, match=rf"checkpoint-4 is damaged .*{file}.*{two / 'checkpoint-2'}") as error:
            find_unchanged(two)
        assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
        path.write_bytes(content)
    assert not os.path.exists("hostile")


@pytest.mark.parametrize("file", ["scheduler.pt", "rng_state.pth"])
def test_without_checksums_a_flipped_byte_is_found_or_changes_nothing(two, file):
    (two / "checkpoint-4" / CHECKSUMS).unlink()
    path = two / "checkpoint-4" / file
    content, found = path.read_bytes(), 0
    with safe_globals():
        expected = repr(torch.load(path, weights_only=True))
    places = range(0, len(content), len(content) // 40)
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            check_unchanged(str(two / "checkpoint-4"))
        except InputError as error:
            found += file in str(error) and "weights_only" not in str(error)
        else:
            with safe_globals():
                assert repr(torch.load(path, weights_only=True)) == expected, place
            found += 1
    assert found == len(places)


def test_without_checksums_what_is_not_there_is_missed(two):
    (two / "checkpoint-4" / CHECKSUMS).unlink()
    for file in ("optimizer.pt", "rng_state.pth"):
        path = two / "checkpoint-4" / file
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(InputError, match=f"{file} is not there"):
            check_resumable(str(two / "checkpoint-4"), 12)
        path.write_bytes(content)
    check_resumable(str(two / "checkpoint-4"), 12)
    with pytest.raises(InputError, match=r"had 12 steps in an epoch, this one has 6: .*: --total_batch_size 8$"):
        check_resumable(str(two / "checkpoint-4"), 6)


@pytest.mark.parametrize("role", ["student", "teacher_model_name_or_path"])
def test_a_damaged_checkpoint_becomes_no_student_and_no_teacher(two, role):
    checkpoint = two / "checkpoint-4"
    arguments = resolve_arguments(["--recipe", "debug", "--output_dir", str(two / "x"), f"--{role}", str(checkpoint)])
    resolve_sources(arguments)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match=r"model\.safetensors is not as it was written.*remove checksums\.json"):
        resolve_sources(arguments)
    (checkpoint / CHECKSUMS).unlink()
    resolve_sources(arguments)


# Pushed and fetched


@pytest.fixture
def fetched(two, monkeypatch) -> Path:
    """A checkpoint as it is pushed, in a snapshot that `fetch_checkpoint` gets."""
    snapshot = two / "snapshot"
    (snapshot / "last-checkpoint").mkdir(parents=True)
    stage_checkpoint(two / "checkpoint-4", snapshot / "last-checkpoint")
    (snapshot / "recipe.yaml").write_text("base: debug\n")

    class Api:
        def model_info(self, *args, **kwargs):
            return self

        sha = "0" * 40

        def list_repo_files(self, *args, **kwargs):
            return ["last-checkpoint/trainer_state.json"]

    monkeypatch.setattr(resume, "HfApi", Api)
    monkeypatch.setattr(resume, "snapshot_download", lambda *args, **kwargs: str(snapshot))
    return snapshot / "last-checkpoint"


def test_a_pushed_checkpoint_has_its_checksums_wherever_it_goes_on(fetched, tmp_path):
    found, _ = resume.fetch_checkpoint("ada/run")
    assert sorted(read_checksums(found)) == sorted({*FILES_OF_A_CHECKPOINT} - {"training_args.bin"})
    adopted = resume.adopt_checkpoint(found, str(tmp_path / "there"))
    assert find_unchanged(tmp_path / "there") == adopted
    assert read_checksums(adopted).keys() == read_checksums(found).keys()


@pytest.mark.parametrize("file", sorted({*FILES_OF_A_CHECKPOINT, CHECKSUMS} - {"training_args.bin"}))
def test_a_damaged_checkpoint_of_the_hub_is_refused_in_one_line(fetched, file):
    path = fetched / file
    content = path.read_bytes()
    path.unlink()
    place = next(place for place in range(len(content) // 3, len(content)) if content[place] > 32)
    for damaged in (content[:place], content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{file}.*--resume_from_hub ada/run@COMMIT") as error:
            resume.fetch_checkpoint("ada/run")
        assert "\n" not in str(error.value)


# Runs


def make(folder: Path, *, student: int = 0, **settings):
    settings = {"ema_decay": 0.9, "max_steps": 8, "save_strategy": "steps", "save_steps": 2, **settings}
    args = tiny.arguments(folder, distillation_type="none", **settings)
    return tiny.trainer(tiny.student(seed=student, drop_path_rate=0.2, hidden_dropout_prob=0.1), args)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[Path, list[torch.Tensor]]:
    """Steps 1 to 8 with a checkpoint after every second, and the final weights and average."""
    trainer = make(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return Path(trainer.args.output_dir), results(trainer)


def results(trainer) -> list[torch.Tensor]:
    models = (trainer.model, trainer.weight_average.module)
    return [value.detach().clone() for model in models for value in model.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def tear(checkpoint: Path) -> None:
    state = checkpoint / "trainer_state.json"
    state.write_text(state.read_text()[:100])


@pytest.mark.parametrize("save_steps", [2, 3])  # the torn one is written again, or is not
def test_rotation_never_takes_the_last_whole_checkpoint(tmp_path, monkeypatch, whole_run, save_steps):
    run = tmp_path / "run"
    run.mkdir()
    for step in (4, 6):
        shutil.copytree(whole_run[0] / f"checkpoint-{step}", run / f"checkpoint-{step}")
    tear(run / "checkpoint-6")
    rmtree, left = shutil.rmtree, []

    def watched(path, *args, **kwargs):
        rmtree(path, *args, **kwargs)
        left.append(whole_checkpoints(run))

    monkeypatch.setattr(shutil, "rmtree", watched)
    trainer = make(run, student=1, save_steps=save_steps, save_total_limit=1)
    trainer.train(resume_from_checkpoint=True)
    assert left[0] == ["checkpoint-4"]  # the torn one goes first
    assert len(left) >= 2
    assert all(left)
    assert [path.name for path in run.iterdir()] == ["checkpoint-8"]
    assert same(results(trainer), whole_run[1])


@pytest.mark.parametrize("limit", [None, 0, 1, 2, 3, 9])
def test_rotation_counts_and_removes_only_what_is_whole(tmp_path, limit):
    for step in (2, 4, 6, 8, 10):
        write_checkpoint(tmp_path, step)
    (write_checkpoint(tmp_path, 5) / "trainer_state.json").write_text("[1, 2]")
    write_checkpoint(tmp_path, 12, "no state")
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-2-mine")
    RunFolder(str(tmp_path)).rotate(limit, step=8, best=str(tmp_path / "checkpoint-4"))
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= {"checkpoint-5", "checkpoint-12", "checkpoint-2-mine"}  # not known, torn, another folder
    whole = {1: [4, 8, 10], 2: [4, 8, 10], 3: [4, 6, 8, 10]}  # and that of a step to come
    assert {name for name in left if name[-1].isdigit()} - {"checkpoint-5", "checkpoint-12"} == {
        f"checkpoint-{step}" for step in whole.get(limit, [2, 4, 6, 8, 10])
    }
    RunFolder(str(tmp_path)).rotate(limit, step=8, best=str(tmp_path / "checkpoint-4"), keeps_last=False)
    assert (tmp_path / "checkpoint-8").exists() == (limit != 1)


def test_a_run_goes_on_from_the_one_before_as_it_is_told(two, whole_run):
    """And with a field of a newer release in the state, and a limit, as which nothing else goes."""
    weights = two / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    shutil.copytree(whole_run[0] / "checkpoint-6", two / "checkpoint-5")
    (two / "checkpoint-5" / "trainer_state.json").write_text("[1, 2]")
    content = in_folder(two)
    for wish, named in ((True, "checkpoint-5"), (str(two / "checkpoint-4"), "model.safetensors")):
        with pytest.raises(InputError, match=named):
            make(two, student=1).train(resume_from_checkpoint=wish)
    assert in_folder(two) == content
    state = json.loads((two / "checkpoint-2" / "trainer_state.json").read_text())
    (two / "checkpoint-2" / "trainer_state.json").write_text(json.dumps({**state, "of_a_newer_release": 1}))
    write_checksums(two / "checkpoint-2")
    resumed = make(two, student=1, save_total_limit=1)
    resumed.train(resume_from_checkpoint=str(two / "checkpoint-2"))
    assert same(results(resumed), whole_run[1])
    assert {path.name for path in two.iterdir()} == {"checkpoint-5", "checkpoint-8"}
    left = {name: of for name, of in in_folder(two).items() if name.startswith("checkpoint-5/")}
    assert left.items() <= content.items()
    with pytest.raises(TypeError):  # transformers' own reader is as it was
        TrainerState.load_from_json(str(whole_run[0] / "checkpoint-2" / "config.json"))


def test_the_state_of_another_optimizer_is_refused_by_name(two):
    trainer = make(two)
    trainer.model.cls_classifier.requires_grad_(False)
    with pytest.raises(InputError, match=r"checkpoint-4 .*optimizer\.pt or scheduler\.pt cannot be restored"):
        trainer.train(resume_from_checkpoint=True)


class Flip(TrainerCallback):
    """Changes a byte of the best checkpoint's weights before the last step."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            path = Path(state.best_model_checkpoint) / self.file
            path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


@pytest.mark.parametrize("file", ["model.safetensors", "ema/model.safetensors", "optimizer.pt"])
def test_the_best_weights_are_compared_before_they_are_loaded(tmp_path, file):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "top1", "eval_strategy": "steps", "eval_steps": 2}
    trainer = make(tmp_path, max_steps=4, learning_rate=1e-9, min_learning_rate=0, **best)
    trainer.add_callback(Flip(file))
    if file == "optimizer.pt":  # nobody reads it any more
        trainer.train()
        return
    with pytest.raises(InputError, match=rf"checkpoint-2 .*{file}.*checkpoint-4 --load_best_model_at_end false"):
        trainer.train()


def test_a_torn_checkpoint_that_was_asked_for_is_refused_and_stays(tmp_path, whole_run):
    shutil.copytree(whole_run[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    tear(tmp_path / "checkpoint-4")
    with pytest.raises(InputError, match="checkpoint-4"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert (tmp_path / "checkpoint-4" / "optimizer.pt").is_file()


CHANGED_LABELS = {
    "renamed": ({3: "drei"}, "renamed: '3' to 'drei'"),
    "moved": ({3: "4", 4: "3"}, "moved: '3' from 3 to 4, '4' from 4 to 3"),
    "added": ({10: "ten"}, "10 labels then, 11 now; added: 'ten'"),
}


@pytest.mark.parametrize("change", CHANGED_LABELS)
def test_a_run_of_other_classes_is_refused_with_what_differs(tmp_path, whole_run, change):
    changes, told = CHANGED_LABELS[change]
    names = {**{index: str(index) for index in range(10)}, **changes}
    feature = datasets.ClassLabel(names=list(names.values()))
    train, validation = (
        part.cast_column("label", datasets.Value("int64")).cast_column("label", feature) for part in tiny.digits()
    )
    run = tmp_path / "run"
    shutil.copytree(whole_run[0] / "checkpoint-4", run / "checkpoint-4")
    args = tiny.arguments(run, distillation_type="none", max_steps=8)
    trainer = tiny.trainer(tiny.student(id2label=names), args, train_dataset=train, eval_dataset=validation)
    for wanted in (True, str(run / "checkpoint-4")):
        with pytest.raises(InputError, match=rf"checkpoint-4' has learnt other classes .*\({told}\)"):
            trainer.train(resume_from_checkpoint=wanted)
    assert trainer.state.log_history == []


def test_another_students_weights_are_refused(tmp_path):
    tiny.student().save_pretrained(tmp_path / "distilled")
    others = {
        "plain": tiny.student(distilled=False),
        "wider": tiny.student(hidden_size=64),
        "deeper": tiny.student(num_hidden_layers=3),
        "shallower": tiny.student(num_hidden_layers=1),
        "resnet": tiny.resnet(),
    }
    for name, model in others.items():
        with pytest.raises(InputError, match="/distilled"):
            restore_weights(model, str(tmp_path / "distilled"))
            pytest.fail(name)
    model = tiny.student(seed=1)
    restore_weights(model, str(tmp_path / "distilled"))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), tiny.student().parameters(), strict=True))


@pytest.mark.parametrize("damage", ["missing", "half", "empty"])
def test_damaged_weights_are_refused(tmp_path, damage):
    model = tiny.student()
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2 if damage == "half" else 0])
    with pytest.raises(InputError, match="cannot restore"):
        restore_weights(model, str(tmp_path))


# A full disk


@contextmanager
def unlimited_afterwards() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FullDisk(TrainerCallback):
    """From the end of a step on, files cannot grow beyond a size, as if the disk were full.

    Args:
        step: counted from 1.
        size: in bytes.
        padding: of the log, so that the Trainer's state is a long file.
    """

    def __init__(self, step: int, size: int, padding: int = 0) -> None:
        self.step, self.size, self.padding = step, size, padding

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if self.padding:
                state.log_history.append({"padding": "." * self.padding})
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


FILES = {  # what is cut off: size of files, padding of the state
    "model.safetensors": (60_000, 0),  # of 100 kB
    "optimizer.pt": (150_000, 0),  # of 230 kB
    "trainer_state.json": (500_000, 1_000_000),
}


@pytest.mark.parametrize("save_total_limit", [None, 1])
@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_stops_the_run_and_leaves_a_checkpoint_to_go_on_from(tmp_path, whole_run, file, save_total_limit):
    stopped = make(tmp_path, save_total_limit=save_total_limit)
    stopped.add_callback(FullDisk(4, *FILES[file]))
    with unlimited_afterwards(), pytest.raises(CheckpointError, match="of step 4") as error:
        stopped.train()
    last = tmp_path / "checkpoint-2"
    assert f"the last good checkpoint is {last};" in str(error.value)
    assert f"--resume_from_checkpoint {last}" in str(error.value)
    cut = tmp_path / "checkpoint-4" / file
    assert not cut.exists() or cut.stat().st_size <= FILES[file][0]
    assert whole_checkpoints(tmp_path) == ["checkpoint-2"]
    resumed = make(tmp_path, student=1, save_total_limit=save_total_limit)
    resumed.train(resume_from_checkpoint=True)
    assert same(results(resumed), whole_run[1])
    assert whole_checkpoints(tmp_path)[-1] == "checkpoint-8"


def test_a_disk_that_is_full_from_the_beginning(tmp_path):
    trainer = make(tmp_path)
    trainer.add_callback(FullDisk(1, *FILES["optimizer.pt"]))
    with unlimited_afterwards(), pytest.raises(CheckpointError, match=r"step 2 .*no checkpoint was written before"):
        trainer.train()
    assert last_whole_checkpoint(str(tmp_path)) is None


def test_a_checkpoint_that_is_written_again_is_torn_until_it_is_done(tmp_path, whole_run):
    for step in (2, 4):
        shutil.copytree(whole_run[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    trainer = make(tmp_path, learning_rate=0.01)
    trainer.add_callback(FullDisk(4, *FILES["optimizer.pt"]))
    with unlimited_afterwards(), pytest.raises(CheckpointError, match=r"last good checkpoint is \S*checkpoint-2;"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert whole_checkpoints(tmp_path) == ["checkpoint-2"]


def test_folders_may_be_paths(tmp_path):
    whole = write_checkpoint(tmp_path, 9)
    assert find_checkpoint(whole, tmp_path) == find_checkpoint(True, tmp_path) == str(whole)
    args = tiny.arguments(tmp_path, teacher_labels=tmp_path / "labels")
    assert args.teacher_labels == str(tmp_path / "labels")
    named = ModelArguments(student=tmp_path / "student", teacher_model_name_or_path=tmp_path / "teacher")
    assert (named.student, named.teacher_model_name_or_path) == (f"{tmp_path}/student", f"{tmp_path}/teacher")
    (tmp_path / "mine.yaml").write_text("base: digits\nseed: 3\n")
    assert load_recipe(tmp_path / "mine.yaml")["seed"] == 3
