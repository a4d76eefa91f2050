"""Contract: a page becomes a static Space that names its model, and a Space of something else is left as it is.

All through the real client, against a Hub on the loopback.
"""

import json
from pathlib import Path

import pytest
import yaml
from support import pages, tiny
from support.checkpoints import saved
from support.facts import facts
from support.hub_client import connect
from support.pages import page

from hf_deit.errors import InputError, PublishError
from hf_deit.hub.record import write_record
from hf_deit.hub.space import to_space

SPACE = "ada/try-pets"


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    connect(server, tmp_path / "home", "hf_write", monkeypatch)
    yield server
    server.clear_faults()
    for type, name in [*server._repositories]:
        server.remove_repository(name, type)


@pytest.fixture
def folder(tmp_path) -> Path:
    return page(tmp_path / "page")


def space(hub) -> dict[str, bytes]:
    return dict(hub.files(SPACE, type="space"))


def metadata(hub) -> dict:
    return yaml.safe_load(space(hub)["README.md"].decode().split("---\n")[1])


def test_a_page_becomes_a_static_space_in_one_commit(hub, folder):
    (folder / "notes.txt").write_text("mine")  # which the page does not list
    assert to_space(folder, "try-pets").url == f"{hub.url}/spaces/{SPACE}"
    files = space(hub)
    assert {name: files[name] for name in pages.FILES} == pages.FILES
    assert files.keys() == {*pages.FILES, "page.json", "README.md", ".gitattributes"}  # without the Hub's style.css
    assert len(hub.commits(SPACE, type="space")) == 2 and not hub._repositories["space", SPACE].private
    found = metadata(hub)
    assert (found["sdk"], found["app_file"], found["title"]) == ("static", "index.html", "try-pets")
    assert "models" not in found and "license" not in found and found["tags"] == ["image-classification", "hf_deit"]
    assert "Its labels: cat, dog." in files["README.md"].decode()
    to_space(folder, SPACE)
    assert space(hub) == files and len(hub.commits(SPACE, type="space")) == 2  # nothing has changed


def test_labels_that_look_like_paths_stay_labels(hub, tmp_path):
    labels = ["/m/01g317", "/m/0cmf2"]  # of Open Images
    for content in (pages.FILES, {**pages.FILES, "app.js": b"2"}):
        to_space(page(tmp_path / "page", content, labels=labels), SPACE)
        assert json.loads(space(hub)["page.json"])["labels"] == labels


def test_a_page_that_is_made_again_replaces_its_files_and_leaves_the_rest(hub, folder, tmp_path):
    to_space(folder, SPACE)
    text = space(hub)["README.md"].decode().replace("emoji: 🔍", "emoji: 🐈") + "\nMine.\n"
    hub.commit(SPACE, {"README.md": text.encode(), "mine.txt": b"x"}, type="space")
    content = {name: content for name, content in pages.FILES.items() if name != "model-0.js"} | {"m.js": b"1"}
    to_space(page(tmp_path / "next", content, labels=["cat", "dog"]), SPACE)
    files = space(hub)
    assert files.keys() == {*content, "page.json", "README.md", ".gitattributes", "mine.txt"}
    assert metadata(hub)["emoji"] == "🐈" and files["README.md"].decode().count("Mine.") == 1


@pytest.mark.parametrize("theirs", ["files", "labels", "another record", "another model"])
def test_a_space_of_something_else_is_replaced_if_that_is_asked_for(hub, folder, tmp_path, theirs):
    if theirs == "labels":
        to_space(page(tmp_path / "other", labels=["sun", "moon"]), SPACE)
    elif theirs == "another model":
        hub.add_repository("ada/cats")
        hub.add_repository("ada/dogs")
        to_space(folder, SPACE, model="ada/dogs")
    else:
        hub.add_repository(SPACE, {"app.py": b"import gradio", "page.json": b'{"files": {}}'}, type="space")
    if theirs == "another record":
        hub.commit(SPACE, {"page.json": b'{"files": {"../x": 1}}', "style.css": b""}, type="space")
    before = space(hub)
    with pytest.raises(InputError, match=f"the Space '{SPACE}' holds .*--overwrite_space"):
        to_space(folder, SPACE, model="ada/cats")
    assert space(hub) == before
    to_space(folder, SPACE, model="ada/cats", overwrite=True)
    assert space(hub).keys() == {*pages.FILES, "page.json", "README.md", ".gitattributes"}
    assert metadata(hub)["sdk"] == "static"


@pytest.mark.parametrize("how", ["by its id", "under the folder's name", "under the name in its card"])
def test_the_space_names_the_model_that_is_on_the_hub(hub, folder, tmp_path, how):
    model = saved(tmp_path / "pets", tiny.student(), tiny.processor())
    name = "ada/known" if how == "under the name in its card" else "ada/pets"
    weights = {"model.safetensors": (model / "model.safetensors").read_bytes()}
    card = b"---\nlicense: apache-2.0\n---\n"
    hub.add_repository(name, {**weights, "README.md": card})
    if how == "under the name in its card":
        write_record(model, facts(image_size=16), [], name)
    to_space(folder, SPACE, model="ada/pets@main" if how == "by its id" else str(model))
    assert (metadata(hub)["models"], metadata(hub)["license"]) == ([name], "apache-2.0")
    assert f"[{name}](https://huggingface.co/{name})" in space(hub)["README.md"].decode()


@pytest.mark.parametrize("why", ["other weights", "not there", "private"])
def test_a_model_that_visitors_would_not_find_is_not_named(hub, folder, tmp_path, why):
    model = saved(tmp_path / "pets", tiny.student(), tiny.processor())
    content = b"other" if why == "other weights" else (model / "model.safetensors").read_bytes()
    if why != "not there":
        hub.add_repository("ada/pets", {"model.safetensors": content}, private=why == "private")
    to_space(folder, SPACE, model=str(model))
    assert "models" not in metadata(hub) and "ada/pets" not in space(hub)["README.md"].decode()
    if why == "private":
        to_space(folder, "ada/hidden", model=str(model), private=True)
        assert b"ada/pets" in hub.files("ada/hidden", type="space")["README.md"]
        assert hub._repositories["space", "ada/hidden"].private


def torn(folder: Path) -> None:
    (folder / "app.js").write_bytes(b"hfDeit")


def listing(**files):
    return lambda folder: (folder / "page.json").write_text(json.dumps({"files": files}))


def linked(folder: Path) -> None:
    (folder / "app.js").unlink()
    (folder / "app.js").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "page.json").unlink(), "page.json"),
        (lambda folder: (folder / "page.json").write_text("{"), "make it again"),
        (lambda folder: (folder / "page.json").write_text("[]"), "must hold an object"),
        (listing(), "expected index.html among its files"),
        (listing(**{"../x": "sha256:0"}), "lists no files of a page"),
        (listing(**{"/etc/passwd": "sha256:0"}), "lists no files of a page"),
        (listing(**{"index.html": "sha256:0", ".git/config": "x"}), "lists no files of a page"),
        (listing(**{"index.html": "sha256:0", "README.md": "x"}), "neither README.md nor page.json"),
        (listing(**{"index.html": "sha256:0"}), "index.html is not as it was made"),
        (torn, "app.js is not as it was made"),
        (linked, "leads out of its folder"),
        (lambda folder: (folder / "app.js").unlink(), "cannot be published"),
    ],
)
def test_a_folder_that_holds_no_whole_page_is_refused_before_the_hub_is_asked(hub, folder, change, words):
    change(folder)
    asked = len(hub.requests)
    with pytest.raises(InputError, match=r"there is no page in .* that can be published") as caught:
        to_space(folder, SPACE)
    assert words in str(caught.value) and len(hub.requests) == asked


def test_large_parts_of_a_page_are_stored_as_such(hub, tmp_path):
    to_space(page(tmp_path / "page", {**pages.FILES, "model-0.js": b"A" * (11 << 20)}), SPACE)
    repository = hub._repositories["space", SPACE]
    tree = repository.tree(repository.branches["main"])
    assert tree["model-0.js"].lfs and not tree["index.html"].lfs


def test_a_token_that_is_missing_or_has_no_rights_is_told(hub, folder, monkeypatch):
    hub.add_user("eve")
    hub.add_token("hf_read", "ada", "read")
    hub.add_token("hf_eve", "eve")
    with pytest.raises(InputError, match="another --to_space"):
        to_space(folder, SPACE, token="hf_eve")
    with pytest.raises(InputError, match="may only read"):
        to_space(folder, SPACE, token="hf_read")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="hf auth login, or set HF_TOKEN"):
        to_space(folder, SPACE)
    with pytest.raises(InputError, match="no name for a repository"):
        to_space(folder, "a b/c")
    assert not [key for key in hub._repositories if key[0] == "space"]


def test_a_push_survives_the_hubs_failures_and_says_what_to_do_when_it_does_not(hub, folder):
    hub.fail("POST", "/commit/", status=503)
    to_space(folder, SPACE)
    assert space(hub)["index.html"] == pages.FILES["index.html"]
    hub.fail("POST", "/commit/", status=500, times=None)
    with pytest.raises(PublishError, match=r"the page lies whole in .* --to_space ada/try-pets"):
        to_space(page(folder, {**pages.FILES, "app.js": b"2"}), SPACE, seconds=0.2)
    assert space(hub)["app.js"] == pages.FILES["app.js"]
