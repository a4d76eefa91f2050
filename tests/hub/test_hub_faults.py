"""Whatever the Hub does: nothing is lost locally, nothing false is on the Hub, the message helps, the end is near.

The real clients talk to a server on the loopback that fails on demand.
"""

import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support import tiny
from support.hub_client import HubClient, Outcome
from support.hub_server import HubServer

GIVE_UP = 1.5  # seconds after which pushes that shall fail are given up
PATIENCE = 30  # and those that shall not, on a busy machine
# A push is waited for a little longer than that; the rest is this process's own work, on a busy machine.
BOUND = 30
REPO = "ada/student"
# Run first by every process: what is tried again is tried soon.
IMPATIENT = "from hf_deit.hub import client; client._LONGEST_WAIT = 0.05\n"
SHORT_CHECKS = "client.CHECK_SECONDS, client._GRACE = 1, 0.5\n"
MODEL_FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "recipe.yaml"}

# What publishing asks of the Hub: method and address.
REQUESTS = {
    "whoami": ("GET", "/api/whoami-v2"),
    "repository": ("GET", f"/api/models/{REPO}$"),
    "rights": ("GET", "/auth-check"),
    "create": ("POST", "/api/repos/create"),
    "card": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "lfs batch": ("POST", "/info/lfs/objects/batch"),
    "lfs upload": ("PUT", ""),
    "commit": ("POST", "/commit/"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        server.add_user("ada", orgs=["lab"])
        server.add_user("bob")
        server.add_token("hf_write", "ada")
        server.add_token("hf_read", "ada", role="read")
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    client = HubClient(hub, tmp_path_factory.mktemp("home"), "hf_write")
    yield client
    client.close()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(autouse=True)
def a_hub_without_faults(hub):
    yield
    hub.clear_faults()
    if not hub.is_running:
        hub.start()
    hub.remove_repository(REPO)
    hub.requests.clear()


def train(
    client: HubClient,
    teacher: str,
    folder: Path,
    *arguments: object,
    before: str = "",
    pushing: tuple[object, ...] = ("--push_to_hub", "true", "--hub_model_id", REPO, "--hub_push_timeout", PATIENCE),
    **settings: Any,
) -> Outcome:
    return client.run(
        *("train", "--recipe", "debug", "--output_dir", folder, "--teacher_model_name_or_path", teacher),
        *("--ema_decay", 0, "--max_steps", 4, "--save_steps", 2, "--eval_strategy", "no", "--disable_tqdm", "true"),
        *pushing,
        *arguments,
        before=IMPATIENT + before,
        **settings,
    )


@pytest.fixture(scope="module")
def trained(client, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "trained"
    outcome = train(client, teacher, folder, pushing=())
    assert outcome.status == 0, outcome.output
    return folder


def publish(client: HubClient, folder: Path, seconds: float = PATIENCE, before: str = "") -> Outcome:
    return client.run(
        "publish", folder, "--hub_model_id", REPO, "--hub_push_timeout", seconds, before=IMPATIENT + before
    )


def pushes(hub: HubServer) -> list[Any]:
    """The commits with a model, newest first; none if there is no repository."""
    try:
        return [commit for commit in hub.commits(REPO) if "model.safetensors" in commit.files]
    except KeyError:
        return []


def is_published(hub: HubServer, folder: Path) -> bool:
    files = hub.files(REPO)
    return set(files) >= MODEL_FILES and files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def is_whole(folder: Path) -> bool:
    weights = load_file(folder / "model.safetensors")
    return bool(weights) and (folder / "README.md").is_file() and not list(folder.glob("_publishing*/*.part"))


def message_of(outcome: Outcome) -> str:
    assert "Traceback" not in outcome.output, outcome.output
    *_, message = outcome.output.partition("error: ")
    return message


# Each request of a push, failing once: it is tried again, and there is one commit.

PASSING = [(name, status) for name in REQUESTS for status in (409, 412, 429, 500, 503)]
PASSING.remove(("create", 409))  # that is how the Hub says that there is one already


@pytest.mark.parametrize(("name", "status"), PASSING)
def test_what_fails_once_is_tried_again(hub, client, trained, name, status):
    fault = hub.fail(*REQUESTS[name], status=status)
    if name == "rights":
        hub.add_repository(REPO)
    outcome = publish(client, trained)
    assert (outcome.status, fault.hits) == (0, 1), outcome.output
    assert is_published(hub, trained)
    assert len(pushes(hub)) == 1
    assert outcome.seconds < BOUND


# Each request of a push, failing for good: it is given up, the folder stays, nothing is on the Hub.

FINAL = [(name, status) for name in REQUESTS for status in (401, 403, 404, 503)]


@pytest.mark.parametrize(("name", "status"), FINAL)
def test_what_fails_for_good_is_given_up(hub, client, trained, name, status):
    if name == "rights":
        hub.add_repository(REPO)
    fault = hub.fail(*REQUESTS[name], status=status, times=None)
    outcome = publish(client, trained, GIVE_UP, before=SHORT_CHECKS)
    checked_first = name in ("whoami", "repository", "rights", "create")
    assert outcome.status == (2 if checked_first else 3), outcome.output
    message = message_of(outcome)
    if status == 503 and name in ("preupload", "lfs batch", "lfs upload"):  # the client is still trying, too
        assert f"no answer within {GIVE_UP} s" in message
    elif (name, status) != ("rights", 404):
        assert str(status) in message
    assert re.search(r"settings/tokens|--hub_model_id|try again", message)
    assert fault.hits >= (2 if status == 503 and name != "lfs upload" else 1)
    assert not pushes(hub)
    assert is_whole(trained)
    assert outcome.seconds < BOUND


# Connections that break, and answers that are lost or late.

BROKEN = [
    (name, drop)
    for name in ("whoami", "create", "preupload", "lfs batch", "lfs upload", "commit")
    for drop in ("before", "body", "after")
]


@pytest.mark.parametrize(("name", "drop"), BROKEN)
def test_a_connection_that_breaks_once_costs_nothing(hub, client, trained, name, drop):
    fault = hub.fail(*REQUESTS[name], drop=drop)
    outcome = publish(client, trained)
    assert (outcome.status, fault.hits) == (0, 1), outcome.output
    assert is_published(hub, trained)
    assert len(pushes(hub)) == 1  # also where the commit was made and its answer lost


@pytest.mark.parametrize("name", ["commit", "lfs upload", "preupload"])
def test_an_answer_that_does_not_come_is_not_waited_for(hub, client, trained, name):
    hub.fail(*REQUESTS[name], delay=60, times=None)
    outcome = publish(client, trained, GIVE_UP)
    assert outcome.status == 3, outcome.output
    assert f"no answer within {GIVE_UP} s" in message_of(outcome)
    assert outcome.seconds < BOUND
    assert not pushes(hub)


@pytest.mark.parametrize("name", ["whoami", "repository", "create"])
def test_nor_is_one_of_the_checks(hub, client, trained, name):
    hub.fail(*REQUESTS[name], delay=60, times=None)
    outcome = publish(client, trained, before=SHORT_CHECKS)
    assert outcome.status == 2, outcome.output
    assert "no answer within 1 s" in message_of(outcome)
    assert outcome.seconds < BOUND


def test_a_repository_that_is_said_to_be_there_and_is_not(hub, client, trained):
    hub.fail(*REQUESTS["create"], status=409)
    outcome = publish(client, trained)
    assert outcome.status == 2, outcome.output
    assert "cannot create the repository" in message_of(outcome)
    assert not pushes(hub)


def test_a_late_answer_does_not_undo_what_came_after_it(hub, client, teacher, tmp_path):
    hub.fail(*REQUESTS["commit"], delay=7, times=1)
    arguments = ("--hub_strategy", "every_save", "--hub_always_push", "true", "--max_steps", 6)
    arguments += ("--hub_push_timeout", GIVE_UP)
    outcome = train(client, teacher, tmp_path / "run", *arguments)
    assert outcome.status == 0, outcome.output
    assert f"push failed: Training in progress, step 2: no answer within {GIVE_UP} s" in outcome.output
    deadline = time.monotonic() + 30
    while not any("/commit/" in target and status != 200 for _, target, status in hub.requests):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert is_published(hub, tmp_path / "run")
    assert not any("step 2" in commit.title for commit in pushes(hub))


def test_retry_after_is_obeyed(hub, client, trained):
    hub.fail(*REQUESTS["commit"], status=429, headers={"Retry-After": "4"})
    outcome = publish(client, trained)
    assert outcome.status == 0, outcome.output
    assert outcome.seconds > 4
    assert len(pushes(hub)) == 1


def test_a_pause_that_is_longer_than_the_time_left_is_not_begun(hub, client, trained):
    hub.fail(*REQUESTS["commit"], status=429, headers={"Retry-After": "3600"}, times=None)
    outcome = publish(client, trained)
    assert outcome.status == 3, outcome.output
    assert outcome.seconds < BOUND


def test_publishing_twice_makes_one_commit(hub, client, trained):
    assert [publish(client, trained).status for _ in range(2)] == [0, 0]
    assert len(pushes(hub)) == 1


# The same in a training.


def test_a_server_that_is_down_is_noticed_before_the_training(hub, client, teacher, tmp_path):
    hub.stop()
    outcome = train(client, teacher, tmp_path / "run", before=SHORT_CHECKS)
    assert outcome.status == 2, outcome.output
    assert "cannot reach the Hub" in message_of(outcome)
    assert "publish later" in message_of(outcome)
    assert not list((tmp_path / "run").glob("*"))


REFUSED = {
    "a token that is not valid": ({"token": "hf_unknown"}, [], "does not accept the token"),
    "no token": ({"token": None}, [], "there is none: hf auth login"),
    "a token that may only read": ({"token": "hf_read"}, [], "may only read"),
    "somebody else's name": ({}, ["--hub_model_id", "bob/student"], "can create repositories under ada, lab"),
    "a name that is none": ({}, ["--hub_model_id", "ada/a b"], "is no name for a repository"),
    "no network": (
        {"before": "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True"},
        [],
        "OFFLINE",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pushed_is_refused_before_the_training(hub, client, teacher, tmp_path, case):
    settings, arguments, message = REFUSED[case]
    outcome = train(client, teacher, tmp_path / "run", *arguments, **settings)
    assert outcome.status == 2, outcome.output
    assert message in message_of(outcome)
    assert not list((tmp_path / "run").glob("*"))
    assert not pushes(hub)


def test_a_public_repository_does_not_get_what_shall_be_private(hub, client, teacher, tmp_path):
    hub.add_repository(REPO)
    outcome = train(client, teacher, tmp_path / "run", "--hub_private_repo", "true")
    assert outcome.status == 2, outcome.output
    assert "is public already" in message_of(outcome)


def test_a_card_that_the_hub_does_not_accept_is_noticed_before_the_training(hub, client, teacher, tmp_path):
    hub.fail(*REQUESTS["card"], status=500, times=None)
    outcome = train(client, teacher, tmp_path / "run", before=SHORT_CHECKS)
    assert outcome.status == 2, outcome.output
    assert "could not validate the model card" in message_of(outcome)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_failed_push_in_the_background_is_told_and_made_good(hub, client, teacher, tmp_path):
    hub.fail(*REQUESTS["commit"], status=403, times=1)
    outcome = train(
        client, teacher, tmp_path / "run", "--hub_strategy", "all_checkpoints", "--hub_always_push", "true"
    )
    assert outcome.status == 0, outcome.output
    assert re.search(r"push failed: Training in progress, step 2: HTTP 403", outcome.output)
    assert {"checkpoint-2/optimizer.pt", "checkpoint-4/optimizer.pt"} <= set(hub.files(REPO))  # with the next push
    assert is_published(hub, tmp_path / "run")


def test_of_slow_pushes_none_is_left_out(hub, client, teacher, tmp_path):
    """Though the run has removed its checkpoints by then."""
    hub.fail(*REQUESTS["commit"], delay=2, times=None)
    arguments = ("--hub_strategy", "all_checkpoints", "--save_steps", 1, "--save_total_limit", 1)
    outcome = train(client, teacher, tmp_path / "run", *arguments)
    assert outcome.status == 0, outcome.output
    assert {f"checkpoint-{step}/optimizer.pt" for step in (1, 2, 3, 4)} <= set(hub.files(REPO))
    assert is_published(hub, tmp_path / "run")
    assert "push failed" not in outcome.output
    assert {path.name for path in (tmp_path / "run").glob("*-*")} == {"checkpoint-4"}
    assert not list((tmp_path / "run").glob("_publishing*"))


def test_a_server_that_goes_down_in_mid_run_stops_nothing(hub, client, teacher, tmp_path):
    hub.fail(".*", "", drop="before", times=None, after=25)
    arguments = ("--hub_strategy", "every_save", "--max_steps", 6, "--hub_push_timeout", GIVE_UP)
    outcome = train(client, teacher, tmp_path / "run", *arguments)
    assert outcome.status == 3, outcome.output
    assert "Publish it later with" in message_of(outcome)
    assert f"--hub_model_id {REPO}" in message_of(outcome)
    assert "top-1 on 360 held-out images" in outcome.output  # the result is told all the same
    assert is_whole(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-6" / "optimizer.pt").is_file()
    hub.clear_faults()
    again = publish(client, tmp_path / "run")  # the command of the message
    assert again.status == 0, again.output
    assert is_published(hub, tmp_path / "run")


def test_a_server_that_is_down_at_the_end_is_told(hub, client, teacher, tmp_path):
    hub.fail("POST", "/preupload/", drop="before", times=None)
    outcome = train(client, teacher, tmp_path / "run", "--hub_strategy", "end", "--hub_push_timeout", GIVE_UP)
    assert outcome.status == 3, outcome.output
    assert "Publish it later with" in message_of(outcome)
    assert is_whole(tmp_path / "run")
    assert not pushes(hub)


def test_a_server_that_is_killed_and_started_again_gets_the_model(hub, client, teacher, tmp_path):
    hub.fail(*REQUESTS["commit"], delay=0.5)

    def restart() -> None:
        while not any("/preupload/" in target for _, target, _ in hub.requests):
            time.sleep(0.01)
        time.sleep(0.2)
        hub.stop()
        time.sleep(1)
        hub.start()

    thread = threading.Thread(target=restart)
    thread.start()
    outcome = train(client, teacher, tmp_path / "run", "--hub_strategy", "end")
    thread.join()
    assert outcome.status == 0, outcome.output
    assert is_published(hub, tmp_path / "run")
    assert len(pushes(hub)) == 1


def test_a_token_that_is_revoked_in_mid_run_loses_nothing(hub, client, teacher, tmp_path):
    hub.add_token("hf_brief", "ada")

    def revoke() -> None:
        while not any(target.startswith("/api/validate-yaml") for _, target, _ in hub.requests):
            time.sleep(0.01)
        hub.revoke("hf_brief")

    thread = threading.Thread(target=revoke)
    thread.start()
    outcome = train(client, teacher, tmp_path / "run", "--hub_strategy", "every_save", token="hf_brief")
    thread.join()
    assert outcome.status == 3, outcome.output
    assert "HTTP 401" in message_of(outcome)
    assert is_whole(tmp_path / "run")
    assert not pushes(hub)


def test_somebody_elses_commit_in_between_stays(hub, client, teacher, tmp_path):
    hub.add_repository(REPO, {"notes.txt": b"mine"})
    hub.fail(*REQUESTS["commit"], status=412)
    outcome = train(client, teacher, tmp_path / "run", "--hub_strategy", "end")
    assert outcome.status == 0, outcome.output
    assert hub.files(REPO)["notes.txt"] == b"mine"
    assert is_published(hub, tmp_path / "run")


def test_a_full_disk_while_publishing_is_told(hub, client, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = (
        "import hf_deit.hub.record as module\n"
        "def full(*arguments): raise OSError(28, 'No space left on device')\n"
        "module.copy_content = full"
    )
    outcome = publish(client, folder, before=before)
    assert outcome.status == 3, outcome.output
    assert "No space left on device" in message_of(outcome)
    assert is_whole(folder)
    assert not pushes(hub)
