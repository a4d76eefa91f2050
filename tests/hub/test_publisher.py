"""Contract: what a run shall push gets to the Hub, all of it, or is named; what lies there together is of one run."""

import json
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.hub_client import connect
from support.hub_server import Commit, HubServer
from transformers.utils import logging as transformers_logging

from hf_deit.errors import InputError, PublishError
from hf_deit.hub import client, publisher
from hf_deit.hub.publisher import Publisher, contradict
from hf_deit.hub.repository import HubRepository
from hf_deit.hub.run_lock import hold
from hf_deit.training.pushes import RunPushes

REPO = "ada/student"


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    connect(server, tmp_path / "home", "hf_write", monkeypatch)
    monkeypatch.setattr(client, "_LONGEST_WAIT", 0.01)
    yield server
    server.clear_faults()
    for name in (REPO, "ada/other"):
        server.remove_repository(name)


class Run:
    """A run that saves checkpoints and pushes them, without a training.

    Args:
        folder: its output folder.
        seed: runs of different ones have other weights and losses.
        strategy: see `hub_strategy`.
        repo_id, revision: of the repository.
        **settings: of the arguments.
    """

    def __init__(
        self,
        folder: Path,
        strategy: str,
        *,
        seed: int = 0,
        repo_id: str = REPO,
        revision: str | None = None,
        **settings: Any,
    ) -> None:
        self.folder, self.seed, self.step = folder, seed, 0
        args = tiny.arguments(folder, hub_strategy=strategy, hub_push_timeout=20, **settings)
        folder.mkdir(exist_ok=True)
        repository = HubRepository(repo_id, None, revision=revision)
        self.pushes = RunPushes(repository, args, history=lambda: self.history(self.step))

    def history(self, step: int) -> list[dict[str, Any]]:
        return [{"step": n, "loss": self.seed + 1 / n, "images_per_second": 9.0} for n in range(1, step + 1)]

    def write_model(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(json.dumps({"seed": self.seed, "step": self.step}))

    def write(self, step: int) -> Path:
        self.step = step
        checkpoint = self.folder / f"checkpoint-{step}"
        self.write_model(checkpoint)
        (checkpoint / "optimizer.pt").write_text(f"{self.seed} {step}")
        (checkpoint / f"rng_state_{self.seed}.pth").write_text("")
        state = {"global_step": step, "log_history": self.history(step)}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        return checkpoint

    def save(self, step: int, rotated: int | None = None) -> None:
        """Saves and pushes a checkpoint; another one is removed then, as by `save_total_limit`."""
        checkpoint = str(self.write(step))
        self.pushes.push_checkpoint(checkpoint, checkpoint, record=lambda tree: None, when=f"step {step}")
        if rotated is not None:
            shutil.rmtree(self.folder / f"checkpoint-{rotated}")

    def end(self) -> None:
        self.write_model(self.folder)
        self.pushes.push_result("End of training", record=lambda: None)


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Pushes wait before it, once they have begun, until it is set."""
    opened, push = threading.Event(), publisher.publish_tree

    def wait_and_push(*arguments: Any) -> Any:
        assert opened.wait(20)
        return push(*arguments)

    monkeypatch.setattr(publisher, "publish_tree", wait_and_push)
    yield opened
    opened.set()


def model(commit: Commit) -> dict[str, int]:
    return json.loads(commit.files["model.safetensors"])


def checkpoints(commit: Commit) -> dict[str, str]:
    """Seed and step of each checkpoint of a commit, whose files are those of one."""
    found = {}
    for name in {path.split("/")[0] for path in commit.files if "/" in path}:
        found[name] = commit.files[f"{name}/optimizer.pt"].decode()
        inside = {path.split("/")[1] for path in commit.files if path.startswith(f"{name}/")}
        own = {"config.json", "model.safetensors", "optimizer.pt", "trainer_state.json"}
        assert inside == {*own, f"rng_state_{found[name].split()[0]}.pth"}
    return found


def all_of(*steps: int, seed: int = 0) -> dict[str, str]:
    return {f"checkpoint-{step}": f"{seed} {step}" for step in steps}


def left(folder: Path) -> list[Path]:
    return list(folder.glob("_publishing*"))


# Everything that was promised


def test_checkpoints_that_are_saved_during_a_push_are_not_left_out(hub, tmp_path, gate):
    """Also where the run removes them before they can be pushed."""
    run = Run(tmp_path / "run", "all_checkpoints")
    run.save(1)
    for step in (2, 3):
        run.save(step, rotated=step - 1)
    gate.set()
    run.pushes.wait()
    run.save(4, rotated=3)
    gate.clear()
    run.save(5, rotated=4)
    gate.set()
    run.end()
    newest, *_ = hub.commits(REPO)
    assert checkpoints(newest) == all_of(1, 2, 3, 4, 5)
    assert model(newest)["step"] == 5 and run.pushes.failures == [] and left(run.folder) == []
    assert [commit.title for commit in hub.commits(REPO)][-2] == "Training in progress, step 1"
    assert checkpoints(hub.commits(REPO)[1]) == all_of(1, 2, 3, 4)


def test_of_the_strategy_checkpoint_the_newest_is_pushed(hub, tmp_path, gate):
    run = Run(tmp_path / "run", "checkpoint")
    for step in (1, 2, 3):
        run.save(step)
    gate.set()
    run.end()
    newest, before, *_ = hub.commits(REPO)
    assert checkpoints(newest) == {"last-checkpoint": "0 3"} and model(newest)["step"] == 3
    assert checkpoints(before) == {"last-checkpoint": "0 1"} and model(before)["step"] == 1
    assert left(run.folder) == []


@pytest.mark.parametrize(
    ("strategy", "there"),
    [("every_save", {}), ("checkpoint", {"last-checkpoint": "0 3"}), ("all_checkpoints", all_of(1, 2, 3))],
)
def test_at_the_end_of_the_training_what_waits_is_pushed(hub, tmp_path, gate, strategy, there):
    """Whoever trains from Python need not push again."""
    run = Run(tmp_path / "run", strategy)
    for step in (1, 2, 3):
        run.save(step)
    gate.set()
    run.pushes.catch_up()
    newest, *_ = hub.commits(REPO)
    assert model(newest)["step"] == 3 and checkpoints(newest) == there and left(run.folder) == []
    run.pushes.catch_up()
    assert hub.commits(REPO)[0].sha == newest.sha


def test_with_always_push_every_save_is_a_commit(hub, tmp_path):
    hub.fail("POST", "/commit/", delay=0.2, times=None)
    run = Run(tmp_path / "run", "all_checkpoints", hub_always_push=True)
    for step in (1, 2, 3):
        run.save(step)
    run.end()
    assert [checkpoints(commit) for commit in hub.commits(REPO)][:3] == [all_of(1, 2, 3), all_of(1, 2), all_of(1)]


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """The folder of a run that was killed during its first push, with another checkpoint waiting, and a torn one."""
    has_ended = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(publisher, "publish_tree", lambda *_: 1 / (1 - has_ended.wait(20)))
        run = Run(tmp_path / "run", "all_checkpoints")
        run.save(1)
        while not run.pushes._publisher.is_busy:
            pass
        run.save(2, rotated=1)
        last = run.write(3)
        [waiting] = (run.folder / "_publishing").rglob("checkpoint-2")
        (waiting.parent / "checkpoint-3").mkdir()
        shutil.copy(last / "optimizer.pt", waiting.parent / "checkpoint-3")
    yield run.folder
    has_ended.set()


def test_what_a_killed_run_had_waiting_is_pushed_by_its_next_start(hub, killed):
    again = Run(killed, "all_checkpoints")
    again.step = 3
    again.pushes.resume(str(killed / "checkpoint-3"))
    again.save(4)
    again.end()
    assert checkpoints(hub.commits(REPO)[0]) == all_of(1, 2, 3, 4)
    assert again.pushes.failures == [] and left(killed) == []


@pytest.mark.parametrize(("strategy", "repo_id"), [("all_checkpoints", "ada/other"), ("every_save", REPO)])
def test_it_gets_nowhere_else_and_not_where_it_is_no_longer_asked_for(hub, killed, strategy, repo_id):
    again = Run(killed, strategy, repo_id=repo_id)
    again.save(4)
    again.end()
    assert checkpoints(hub.commits(repo_id)[0]) == (all_of(4) if strategy == "all_checkpoints" else {})
    assert bool(left(killed)) == (repo_id != REPO)


def test_it_does_not_get_to_another_branch_of_nearly_the_same_name(hub, killed):
    trees = killed / "_publishing"
    for tree in [*trees.iterdir()]:
        tree.rename(trees / tree.name.replace("@", "@v1.0"))
    again = Run(killed, "all_checkpoints", revision="v1")
    assert again.pushes._publisher._tree.endswith("@v1") and len([*trees.iterdir()]) == 2


def test_what_cannot_be_pushed_is_named_and_is_pushed_with_the_model_later(hub, tmp_path):
    run = Run(tmp_path / "run", "all_checkpoints")
    hub.fail("POST", "/commit/", status=403, times=None)
    run.save(1)
    run.pushes.wait()
    run.save(2, rotated=1)
    run.pushes.catch_up()
    with pytest.raises(PublishError, match=r"HTTP 403.*, and neither could checkpoint-1, checkpoint-2") as failed:
        run.end()
    assert f"publish {run.folder} --hub_model_id {REPO}" in str(failed.value)
    assert [line.partition(": HTTP")[0] for line in run.pushes.failures] == [
        "Training in progress, step 1",
        "Training in progress, step 2",
        "End of training",
    ]
    hub.clear_faults()
    later = Publisher(HubRepository(REPO, None), run.folder, seconds=20)
    later.finish(lambda tree: run.write_model(Path(tree)), "Upload of a trained model")
    assert checkpoints(hub.commits(REPO)[0]) == all_of(1, 2) and left(run.folder) == []


def test_the_last_checkpoint_that_could_not_be_pushed_is_pushed_with_the_model_later(hub, tmp_path):
    run = Run(tmp_path / "run", "checkpoint")
    hub.fail("POST", "/commit/", status=403, times=None)
    run.save(1)
    with pytest.raises(PublishError, match="and neither could last-checkpoint"):
        run.end()
    hub.clear_faults()
    later = Publisher(HubRepository(REPO, None), run.folder, seconds=20)
    later.finish(lambda tree: run.write_model(Path(tree)), "Upload of a trained model")
    assert checkpoints(hub.commits(REPO)[0]) == {"last-checkpoint": "0 1"} and left(run.folder) == []


@pytest.mark.parametrize("is_stuck", [False, True])
def test_what_a_push_in_vain_had_taken_is_pushed_with_the_next(hub, tmp_path, monkeypatch, is_stuck):
    """Also while the thread of that push still reads it; a copy that is killed half-way does not look whole."""
    has_ended, push = threading.Event(), publisher.publish_tree
    with monkeypatch.context() as patched:
        patched.setattr(publisher, "publish_tree", lambda *_: 1 / (1 - (not is_stuck or has_ended.wait(20))))
        run = Run(tmp_path / "run", "all_checkpoints")
        run.pushes._publisher._seconds = 0.1
        run.save(1)
        if is_stuck:
            copy = shutil.copyfile
            patched.setattr(shutil, "copyfile", lambda a, b, **k: copy(a, b, **k) and 1 / ("optimizer" not in str(b)))
            with pytest.raises(ZeroDivisionError):
                run.pushes.wait()
            assert not list((run.folder / "_publishing" / "ada--student@").rglob("trainer_state.json"))
    if is_stuck:  # as another process of the run
        run = Run(run.folder, "all_checkpoints")
    run.save(2)
    run.end()
    has_ended.set()
    assert push is publisher.publish_tree and checkpoints(hub.commits(REPO)[0]) == all_of(1, 2)


@pytest.mark.parametrize("rotated", [None, 2])
def test_a_checkpoint_that_cannot_be_collected_is_not_pushed_torn(hub, tmp_path, monkeypatch, rotated):
    """It is named, and pushed with the next one if it is there still."""
    run = Run(tmp_path / "run", "all_checkpoints")
    run.save(1)

    def fill_the_disk(values: object, path: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("hf_deit.hub.record.write_json", fill_the_disk)
        run.save(2)
    run.save(3) if rotated is None else shutil.rmtree(run.folder / f"checkpoint-{rotated}")
    run.save(4)
    run.end()
    assert checkpoints(hub.commits(REPO)[0]) == (all_of(1, 2, 3, 4) if rotated is None else all_of(1, 4))
    assert run.pushes.failures == ["Training in progress, step 2: OSError: [Errno 28] No space left on device"]


def test_a_checkpoint_without_weights_to_publish_is_pushed_at_the_end(hub, tmp_path):
    run = Run(tmp_path / "run", "all_checkpoints")
    checkpoint = str(run.write(1))
    run.pushes.push_checkpoint(checkpoint, str(tmp_path), record=lambda tree: None, when="step 1")
    run.pushes.catch_up()
    assert all("config.json" not in commit.files for commit in hub.commits(REPO))
    run.end()
    assert checkpoints(hub.commits(REPO)[0]) == all_of(1)


# Of one run


def check_commits(hub: HubServer) -> None:
    """In every commit the checkpoints are of the run that the model is of."""
    for commit in hub.commits(REPO):
        if "model.safetensors" in commit.files:
            seeds = {int(text.split()[0]) for text in checkpoints(commit).values()}
            assert seeds <= {model(commit)["seed"]}, (commit.title, model(commit), checkpoints(commit))


@pytest.mark.parametrize("others", ["end", "checkpoint", "all_checkpoints"])
@pytest.mark.parametrize("strategy", ["end", "checkpoint", "all_checkpoints"])
def test_two_runs_in_turn_do_not_mix(hub, tmp_path, strategy, others):
    one, other = Run(tmp_path / "one", strategy), Run(tmp_path / "other", others, seed=7)
    for step in (1, 2, 3):
        for run in (one, other):
            run.pushes.wait()
            run.save(step) if run.pushes.is_due else run.write(step)
            run.pushes.wait()
    other.end()
    one.end()
    check_commits(hub)
    newest = hub.commits(REPO)[0]
    assert model(newest)["seed"] == 0
    assert (
        checkpoints(newest)
        == {
            "end": {},
            "checkpoint": {"last-checkpoint": "0 3"},
            "all_checkpoints": all_of(1, 2, 3),
        }[strategy]
    )
    assert one.pushes.failures == []


def between(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Does something once, when a push has read what is there and has not yet made its commit."""
    upload, has_come = HubRepository.upload, []

    def interrupted(self: HubRepository, *arguments: Any, **settings: Any) -> Any:
        if not has_come:
            has_come.append(True)
            action()
        return upload(self, *arguments, **settings)

    monkeypatch.setattr(HubRepository, "upload", interrupted)


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_a_push_that_another_runs_push_overtakes_is_made_anew_as_a_whole(hub, tmp_path, monkeypatch, strategy):
    one, other = Run(tmp_path / "one", strategy), Run(tmp_path / "other", strategy, seed=7)
    one.save(1)
    one.pushes.wait()

    def overtake() -> None:
        other.save(1)
        other.pushes.wait()
        other.save(2)
        other.pushes.wait()

    between(monkeypatch, overtake)
    one.save(3)
    one.pushes.wait()
    assert any(status == 412 for _, target, status in hub.requests if "/commit/" in target)
    check_commits(hub)
    newest, before, *_ = hub.commits(REPO)
    assert (model(newest), model(before)) == ({"seed": 0, "step": 3}, {"seed": 7, "step": 2})
    one.end()
    check_commits(hub)
    whole = {"checkpoint": {"last-checkpoint": "0 3"}, "all_checkpoints": all_of(1, 3)}
    assert checkpoints(hub.commits(REPO)[0]) == whole[strategy] and one.pushes.failures == []


def test_checkpoints_that_another_run_replaced_and_that_are_not_here_any_more_are_named(hub, tmp_path, caplog):
    one, other = (Run(tmp_path / f"{seed}", "all_checkpoints", seed=seed) for seed in (0, 7))
    one.save(1)
    one.save(2, rotated=1)
    one.pushes.catch_up()
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        other.save(1)
        other.pushes.wait()
    assert "another run has pushed to ada/student: its checkpoints (checkpoint-2) give way" in caplog.text
    one.end()
    check_commits(hub)
    assert checkpoints(hub.commits(REPO)[0]) == all_of(2)
    [line] = one.pushes.failures
    with_it = next(commit for commit in hub.commits(REPO) if commit.sha in line)
    assert line.startswith("checkpoint-1: another run has taken its place") and "checkpoint-1" in checkpoints(with_it)


def test_what_is_not_of_another_run_stays(hub, tmp_path):
    """The run's own checkpoints from before it was resumed, those that do not say whose they are, and all else."""
    first = Run(tmp_path / "first", "all_checkpoints")
    first.save(1)
    first.save(2)
    first.end()
    of_transformers = {"log_history": [{"step": 1, "loss": 77.0, "grad_norm": 1.0}]}
    theirs = {
        **dict.fromkeys(("notes.txt", "lora.safetensors", "checkpoint-9/notes.txt", "eval/checkpoint-1.txt"), b"mine"),
        **dict.fromkeys(("checkpoint-3/notes.md", "checkpoint-3/adapter_model.safetensors"), b"mine"),
        "checkpoint-10/trainer_state.json": json.dumps(of_transformers).encode(),
        "checkpoint-10/model.safetensors": b"by hand",
        "checkpoint-11/trainer_state.json": b'{"log_history": ["step loss", {"step": [], "loss": 1}, null]}',
    }
    hub.commit(REPO, theirs)
    again = Run(tmp_path / "again", "all_checkpoints")
    again.save(3)
    again.end()
    files = hub.files(REPO)
    assert {name.split("/")[0] for name in files if name.startswith("checkpoint-")} == {*all_of(1, 2, 3, 9, 10, 11)}
    assert theirs.items() <= files.items()


def test_weights_in_other_files_and_old_files_of_a_checkpoint_go(hub, tmp_path):
    hub.add_repository(
        REPO,
        {
            "model-00001-of-00002.safetensors": b"1",
            "model.safetensors.index.json": b"{}",
            "pytorch_model.bin": b"1",
            "last-checkpoint/rng_state_7.pth": b"of eight processes",
            "last-checkpoint/trainer_state.json": b"{",
        },
    )
    run = Run(tmp_path / "run", "checkpoint")
    run.save(1)
    run.end()
    top = {name for name in hub.files(REPO) if "/" not in name}
    assert top == {"config.json", "model.safetensors", "pytorch_model.bin", ".gitattributes"}
    assert checkpoints(hub.commits(REPO)[0]) == {"last-checkpoint": "0 1"}


def test_of_a_checkpoint_that_gives_way_the_users_own_files_stay(hub, tmp_path):
    other = Run(tmp_path / "other", "all_checkpoints", seed=7)
    other.save(1)
    other.end()
    hub.commit(REPO, {"checkpoint-1/notes.md": b"mine"})
    run = Run(tmp_path / "run", "all_checkpoints")
    run.save(2)
    run.end()
    assert {name for name in hub.files(REPO) if name.startswith("checkpoint-1/")} == {"checkpoint-1/notes.md"}


def test_what_is_on_the_hub_is_looked_at_once(hub, tmp_path):
    other = Run(tmp_path / "other", "all_checkpoints")
    other.save(1)
    other.end()
    run, first = Run(tmp_path / "run", "all_checkpoints"), len(hub.requests)
    for step in (2, 3, 4):
        run.save(step)
        run.pushes.wait()
    run.end()
    states = {target for _, target, _ in hub.requests[first:] if "/resolve/" in target and "trainer_state" in target}
    assert len(states) == 1 and checkpoints(hub.commits(REPO)[0]) == all_of(1, 2, 3, 4)


def test_what_waits_of_an_earlier_run_in_the_same_folder_is_not_mixed_with_another(hub, killed):
    for checkpoint in killed.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    other = Run(killed, "all_checkpoints", seed=7)
    other.save(1)
    other.end()
    check_commits(hub)
    assert checkpoints(hub.commits(REPO)[0]) == all_of(1, seed=7) and left(killed) == []


def test_logs_are_of_two_runs_where_a_step_has_two_losses():
    one = [{"step": 1, "loss": 0.5}, {"step": 1, "eval_top1": 0.1}, {"step": 2, "loss": 0.25}]
    assert not contradict(one, one[:2]) and not contradict(one[:1], one) and not contradict([], one)
    assert not contradict(one, [{"step": 3, "loss": 9.0}, {"step": 1, "eval_top1": 0.7}])
    assert contradict(one, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.26}])
    assert not contradict([{"step": 1, "loss": float("nan")}], [{"step": 1, "loss": float("nan")}])


def test_no_folder_is_touched_in_which_another_run_is_at_work(hub, tmp_path, killed):
    before = sorted(killed.rglob("*"))
    refused = []

    def start() -> None:
        try:
            Run(killed, "end")
        except InputError as error:
            refused.append(error)

    with hold(killed):
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    assert len(refused) == 1 and sorted(killed.rglob("*")) == before
