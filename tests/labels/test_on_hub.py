"""A store goes to the Hub as a data set and comes back, offline too.

What cannot be pushed is refused before anything is made there, and whoever commits at the same time loses nothing.
"""

import os
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from support.hub_client import connect
from support.hub_server import HubServer
from support.stores import VIEWS, assert_holds, files, fill, identity, record

from hf_deit import InputError, TeacherLabelStore
from hf_deit.commands.main import main
from hf_deit.commands.publish import main as publish
from hf_deit.errors import PublishError
from hf_deit.hub import client
from hf_deit.hub.repository import HubRepository
from hf_deit.labels import on_hub
from hf_deit.labels.files import lock_store, read_columns, write_columns

LABELS = "ada/labels"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_user("ada", {"lab": "write", "club": "read"})
        hub.add_user("bob")
        hub.add_token("hf_write", "ada")
        hub.add_token("hf_read", "ada", role="read")
        hub.add_repository("bob/theirs", type="dataset")
        hub.add_repository("ada/public", type="dataset")
        hub.add_repository("ada/private", type="dataset", private=True)
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    connect(server, tmp_path / "home", "hf_write", monkeypatch)
    monkeypatch.setattr(client, "_LONGEST_WAIT", 0.01)
    monkeypatch.setattr(client, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr("hf_deit.labels.files.LOCK_SECONDS", 0.1)
    server.requests.clear()
    yield server
    server.clear_faults()
    server.remove_repository(LABELS, "dataset")


@pytest.fixture
def store(tmp_path) -> TeacherLabelStore:
    return TeacherLabelStore.open(fill(tmp_path / "store", epochs=2), readonly=True)


def pushes(hub: HubServer) -> list[str]:
    """The addresses of the commits with labels, newest first."""
    commits = hub.commits(LABELS, "dataset") if ("dataset", LABELS) in hub._repositories else []
    return [f"{hub.url}/datasets/{LABELS}/commit/{commit.sha}" for commit in commits if "Teacher" in commit.title]


# There and back


def test_a_store_is_pushed_replayed_and_read_offline(hub, tmp_path, monkeypatch):
    folder = fill(tmp_path / "store", epochs=4)
    store = TeacherLabelStore.open(folder, readonly=True)
    first = store.push_to_hub("labels")  # the namespace is the user's
    assert store.push_to_hub(LABELS) == first
    assert pushes(hub) == [first]  # nothing new: no second one
    pushed = hub.files(LABELS, type="dataset")
    assert {*pushed} - {".gitattributes"} == {*files(folder), "README.md"}
    card = pushed["README.md"].decode()
    assert "data/*.parquet" in card and f"hf://datasets/{LABELS}" in card and str(tmp_path) not in card
    assert "$" not in card

    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        # Of the fourth epoch nobody asks; the third is fetched ahead, and so is in the cache.
        for name in (f"hf://datasets/{LABELS}", LABELS):
            replayed = TeacherLabelStore.open(name, identity(), readonly=name == LABELS)
            assert replayed.readonly and replayed.complete_epochs == ([0, 1, 2] if offline else [0, 1, 2, 3])
            for epoch in replayed.complete_epochs if offline else (0, 1):
                assert_holds(replayed, epoch)
            if replayed._hub._prefetch is not None:
                replayed._hub._prefetch.join()


def test_what_is_published_is_told_with_what_is_left_out(hub, tmp_path, capsys):
    folder = fill(tmp_path / "store", epochs=2)
    command = [str(folder), "--hub_model_id", LABELS]
    # All views of the second epoch are there, and some of two more.
    (folder / "data/epoch-00001.parquet").rename(folder / "parts/epoch-00001.rank-00000.0a1b2c3d.parquet")
    with TeacherLabelStore.open(folder, identity(), is_main_process=False) as store:
        for epoch, slots in ((2, range(40)), (7, range(1))):
            record(store, epoch, slots)
            store.flush()
    with lock_store(folder):  # another run writes
        assert publish(command) == 0
    printed = capsys.readouterr().out
    assert "left out, as they are not whole: epoch 1 (64 of 64 views), epoch 2 (40 of 64 views), epoch 7 (1" in printed
    assert [name for name in hub.files(LABELS, type="dataset") if "epoch" in name] == ["data/epoch-00000.parquet"]
    assert publish(command) == 0
    printed = capsys.readouterr().out
    assert "not whole: epoch 2 (40 of 64 views), epoch 7 (1 of 64 views). " in printed and "hf-deit label" in printed
    assert sorted(name for name in hub.files(LABELS, type="dataset") if "epoch" in name) == [
        f"data/epoch-0000{epoch}.parquet" for epoch in (0, 1)
    ]
    for epoch in (2, 7):
        with TeacherLabelStore.open(folder, identity()) as store:
            record(store, epoch)
            store.flush()
            store.finish_epoch(epoch)
    assert publish(command) == 0
    assert "left out" not in capsys.readouterr().out
    (folder / "parts/epoch-00008.rank-00000.0a1b2c3d.parquet").write_bytes(b"broken")
    assert publish(command) == 2
    assert "epoch-00008.rank-00000.0a1b2c3d.parquet' holds no labels" in capsys.readouterr().err


def test_parts_alone_are_told_where_nothing_can_be_published(hub, tmp_path):
    with TeacherLabelStore.open(tmp_path / "store", identity()) as store:
        record(store, 0, range(40))
        store.flush()
        with pytest.raises(InputError, match=r"no complete epoch to push, only parts of epoch 0 \(40 of 64 views\)"):
            store.push_to_hub(LABELS)
        record(store, 0)
        store.flush()
        store.push_to_hub(LABELS)  # which finishes it
    assert "data/epoch-00000.parquet" in hub.files(LABELS, type="dataset")


def test_files_of_others_in_a_data_set_are_passed_over(hub, tmp_path):
    folder = fill(tmp_path / "store")
    content = (folder / "data/epoch-00000.parquet").read_bytes()
    names = ["data/../../epoch-00001.parquet", "/data/epoch-00002.parquet", "data/epoch-000003.parquet"]
    names += [f"data/epoch-{'9' * 30}.parquet", "parts/epoch-00004.rank-00000.0a1b2c3d.parquet", "data/x\n.parquet"]
    TeacherLabelStore.open(folder, readonly=True).push_to_hub(LABELS)
    store = TeacherLabelStore.open(f"hf://datasets/{LABELS}", identity())
    store._hub.files |= {*names}
    parts = Path(store.folder) / "parts"
    parts.mkdir()
    (parts / "epoch-00004.rank-00000.0a1b2c3d.parquet").write_bytes(content)
    assert (store.complete_epochs, store.partial_epochs, store.missing({0: VIEWS, 4: 1})) == ([0], [], [4])
    assert_holds(store)


def test_a_data_set_of_somebody_elses_labels_is_refused_by_the_file(hub, tmp_path):
    folder = fill(tmp_path / "store", epochs=2)
    TeacherLabelStore.open(folder, readonly=True).push_to_hub(LABELS)
    columns = read_columns(folder / "data/epoch-00001.parquet", 1, identity())
    columns["label"][3] = 10
    write_columns(folder / "data/epoch-00001.parquet", 1, columns, identity())
    hub.commit(
        LABELS,
        {"data/epoch-00001.parquet": (folder / "data/epoch-00001.parquet").read_bytes()},
        "forged",
        type="dataset",
    )
    store = TeacherLabelStore.open(f"hf://datasets/{LABELS}", identity())
    assert_holds(store, 0)
    with pytest.raises(InputError, match=r"epoch-00001\.parquet' .*its column label has 10, expected at most 9"):
        store.epoch(1)
    hub.commit(LABELS, {"store.json": b'{"format": 1, "identity": {}}'}, "torn", type="dataset")
    with pytest.raises(InputError, match=r"store\.json' does not describe a label store"):
        TeacherLabelStore.open(f"hf://datasets/{LABELS}", identity())


def test_the_card_names_logits_where_there_are_some(hub, tmp_path):
    store = TeacherLabelStore.open(tmp_path / "store", identity(top_k=2, num_labels=1000))
    assert "`rest_logit`" not in on_hub._card(LABELS, identity())
    card = on_hub._card(LABELS, store.identity)
    assert "| `top_labels`, `top_logits` | the 2 largest logits" in card and "of 1,000; null" in card
    assert "\n\n\n" not in card and "|\n`store.json`" not in card


def test_what_is_not_there_is_told(hub):
    with pytest.raises(InputError, match=r"cannot download store\.json of the data set 'ada/nothing'"):
        TeacherLabelStore.open("hf://datasets/ada/nothing")
    with pytest.raises(InputError, match="'hf://datasets/a/b/c' is no data set on the Hub"):
        TeacherLabelStore.open("hf://datasets/a/b/c")


# What cannot be pushed is refused, and nothing is made

REFUSED = {
    "a token that may only read": ({"token": "hf_read"}, "may only read"),
    "a token that is not valid": ({"token": "hf_unknown"}, "does not accept the token"),
    "no token": ({}, "there is none: hf auth login"),
    "no network": ({}, "HF_HUB_OFFLINE is set"),
    "a Hub that is not there": ({}, "cannot reach the Hub"),
    "somebody else's name": (
        {"repo_id": "bob/labels"},
        "under ada, lab, got 'bob/labels': give another --hub_model_id",
    ),
    "an organisation of readers": ({"repo_id": "club/labels"}, "give another --hub_model_id"),
    "somebody else's data set": ({"repo_id": "bob/theirs"}, "'ada' may not write to 'bob/theirs'"),
    "a name that is none": ({"repo_id": "ada/a b"}, "is no name for a repository"),
    "a public one that shall be private": ({"repo_id": "ada/public", "private": True}, "is public already"),
    "a private one that shall be public": (
        {"repo_id": "ada/private", "private": False},
        "leave --hub_private_repo out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pushed_is_refused_before_anything_is_made(hub, store, monkeypatch, case):
    settings, words = REFUSED[case]
    if case == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif case == "no network":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif case == "a Hub that is not there":
        hub.fail("GET", "whoami", drop="before", times=None)
    with pytest.raises(InputError) as caught:
        store.push_to_hub(settings.pop("repo_id", LABELS), **settings)
    assert words in str(caught.value)
    assert {method for method, _, _ in hub.requests} <= {"GET"}
    assert not pushes(hub)


def test_what_is_refused_is_refused_as_a_data_set(hub, store):
    """A model of the same name is another repository."""
    hub.add_repository("ada/twins", type="model", private=True)
    address = store.push_to_hub("ada/twins", private=False)
    assert address.startswith(f"{hub.url}/datasets/ada/twins/commit/")
    assert {*hub.files("ada/twins")} == {".gitattributes"}


def test_a_private_data_set_is_made_with_the_token_that_is_given(hub, store, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    store.push_to_hub(LABELS, private=True, token="hf_write")
    assert hub._repositories["dataset", LABELS].private


def test_a_store_without_an_epoch_is_refused_before_the_hub_is_asked(hub, tmp_path):
    store = TeacherLabelStore.open(tmp_path / "empty", identity())
    with pytest.raises(InputError, match="has no complete epoch"):
        store.push_to_hub(LABELS)
    assert not hub.requests


def test_other_labels_are_refused(hub, store, tmp_path):
    first = store.push_to_hub(LABELS)
    other = TeacherLabelStore.open(fill(tmp_path / "other", seed=9), readonly=True)
    with pytest.raises(InputError, match=r"holds other labels \(seed is 3 there, 9 here\): give another name"):
        other.push_to_hub(LABELS)
    assert pushes(hub) == [first]


# Somebody commits at the same moment


def meanwhile(monkeypatch, hub: HubServer, content: dict[str, bytes]) -> None:
    """Somebody else's commit, between the first look at the data set and the push."""
    original, heads = HubRepository.head, []

    def head(self: HubRepository) -> str:
        heads.append(original(self))
        if len(heads) == 1:
            hub.commit(LABELS, content, "meanwhile", type="dataset")
        return heads[-1]

    monkeypatch.setattr(HubRepository, "head", head)


def test_a_card_that_somebody_writes_meanwhile_stays(hub, store, monkeypatch, tmp_path):
    meanwhile(monkeypatch, hub, {"README.md": b"Mine.", "notes.txt": b"mine"})
    assert [store.push_to_hub(LABELS)] == pushes(hub)
    pushed = hub.files(LABELS, type="dataset")
    assert (pushed["README.md"], pushed["notes.txt"]) == (b"Mine.", b"mine")
    assert {*files(tmp_path / "store")} <= {*pushed}
    statuses = [status for method, target, status in hub.requests if method == "POST" and "/commit/" in target]
    assert statuses == [412, 200]


def test_other_labels_that_somebody_pushes_meanwhile_stay(hub, store, monkeypatch, tmp_path):
    other = fill(tmp_path / "other", seed=9)
    meanwhile(monkeypatch, hub, {name: (other / name).read_bytes() for name in files(other)})
    with pytest.raises(InputError, match=r"holds other labels \(seed is 9 there, 3 here\)"):
        store.push_to_hub(LABELS)
    assert not pushes(hub)
    assert hub.files(LABELS, type="dataset")["store.json"] == (other / "store.json").read_bytes()


# The Hub fails

REQUESTS = {
    "whoami": ("GET", "/api/whoami-v2"),
    "repository": ("GET", f"/api/datasets/{LABELS}$"),
    "create": ("POST", "/api/repos/create"),
    "head": ("GET", f"/api/datasets/{LABELS}$"),
    "what is there": ("HEAD", "/resolve/.*store.json"),
    "preupload": ("POST", "/preupload/"),
    "lfs batch": ("POST", "/info/lfs/objects/batch"),
    "commit": ("POST", "/commit/"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_fails_once_is_tried_again(hub, store, name):
    fault = hub.fail(*REQUESTS[name], status=503, after=1 if name == "head" else 0)
    assert [store.push_to_hub(LABELS)] == pushes(hub)
    assert fault.hits == 1


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, store):
    hub.fail(*REQUESTS["commit"], drop="after")
    assert [store.push_to_hub(LABELS)] == pushes(hub)


def test_what_fails_for_good_is_told_and_leaves_the_labels(hub, store, tmp_path):
    hub.fail(*REQUESTS["commit"], status=503, times=None)
    with pytest.raises(PublishError) as caught:
        store.push_to_hub(LABELS, seconds=0.5)
    assert "HTTP 503" in str(caught.value) and f"{hub.url}/datasets/{LABELS}" in str(caught.value)
    assert repr(str(tmp_path / "store")) in str(caught.value)
    assert not pushes(hub)
    hub.clear_faults()
    assert [store.push_to_hub(LABELS)] == pushes(hub)


# What lies in the folder


def first_epoch(store: TeacherLabelStore) -> Path:
    return Path(store.folder) / "data" / "epoch-00000.parquet"


@pytest.mark.parametrize("is_private", [False, True])
def test_a_link_is_pushed_within_the_folder_alone(hub, store, tmp_path, is_private):
    path, place = first_epoch(store), tmp_path if is_private else Path(store.folder)
    content = path.read_bytes()
    path.rename(place / "elsewhere")
    path.symlink_to(place / "elsewhere")
    if not is_private:
        store.push_to_hub(LABELS)
        assert hub.files(LABELS, type="dataset")["data/epoch-00000.parquet"] == content
        return
    with pytest.raises(InputError, match=r"epoch-00000.parquet' leads out of its folder"):
        store.push_to_hub(LABELS)
    assert not hub.requests


@pytest.mark.parametrize("name", ["store.json", "data/epoch-00000.parquet"])
def test_a_pipe_is_refused_before_anybody_waits_for_it(hub, store, capsys, name):
    path = Path(store.folder) / name
    path.unlink()
    os.mkfifo(path)
    assert main(["publish", str(store.folder), "--hub_model_id", LABELS]) == 2
    assert f"{path.name}' is a pipe" in capsys.readouterr().err
    assert not hub.requests


def test_a_store_in_the_hubs_cache_is_pushed(hub, store):
    store.push_to_hub(LABELS)
    hub.add_repository("ada/copy", type="dataset")
    snapshot = snapshot_download(LABELS, repo_type="dataset")
    assert os.path.islink(os.path.join(snapshot, "data", "epoch-00000.parquet"))
    TeacherLabelStore.open(snapshot, readonly=True).push_to_hub("ada/copy")
    pushed, copied = (hub.files(name, type="dataset") for name in (LABELS, "ada/copy"))
    hub.remove_repository("ada/copy", "dataset")
    for name in ("store.json", "data/epoch-00000.parquet", "data/epoch-00001.parquet"):
        assert copied[name] == pushed[name]
