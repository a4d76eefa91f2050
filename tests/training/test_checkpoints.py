"""A run goes on from its last whole checkpoint, whatever else lies beside it, and never loses that one.

Neither a torn checkpoint nor a full disk nor another student's weights are taken for a checkpoint.
"""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
import torch
from support import tiny
from transformers import TrainerCallback, TrainerState

from hf_deit import InputError, load_recipe
from hf_deit.errors import CheckpointError
from hf_deit.hub.run_folder import is_whole, last_whole_checkpoint
from hf_deit.training.arguments import ModelArguments
from hf_deit.training.checkpoints import find_checkpoint, remove_torn_checkpoints, restore_weights, resume_wish

TORN = {
    "no state": None,
    "no bytes": "",
    "half a state": '{"best_metric": null, "epoch": 0.5, "log_hist',
    "zeros": "\0" * 300,  # what a file system may leave after a power cut
    "another file": "[1, 2]",
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


# What is removed


def test_only_the_torn_are_removed(tmp_path):
    for step in (2, 10):
        write_checkpoint(tmp_path, step)
    for step, torn in enumerate(TORN, start=3):
        write_checkpoint(tmp_path, step, torn)
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "checkpoint-3-mine")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    remove_torn_checkpoints(str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint-2", "checkpoint-10", "checkpoint-3-mine", "model.safetensors"}
    assert (tmp_path / "checkpoint-10" / "model.safetensors").read_bytes() == b"weights"


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
