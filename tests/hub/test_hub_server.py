"""The tests' own Hub keeps the promises that tests of publishing and downloading rest on, to the real clients."""

import io
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from support.hub_server import HubServer, check_card

CARD = "---\nlicense: apache-2.0\n---\n# Tiny\n"
WEIGHTS = bytes(range(256)) * 40
FILES = {"README.md": CARD.encode(), "model.safetensors": WEIGHTS, "a folder/ünï.txt": b"text"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubServer(tmp_path / "hub") as server:
        for name, orgs in {"anna": ["lab"], "bert": {"lab": "read"}}.items():
            server.add_user(name, orgs)
            server.add_token(f"hf_{name}", name)
        server.add_token("hf_reader", "anna", "read")
        server.add_token("hf_fine", "anna", "fineGrained", [("lab", ["repo.write"])])
        yield server


def api(hub: HubServer, token: str | bool = "hf_anna") -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def folder(path: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def own(hub: HubServer, repo_id: str = "anna/tiny") -> dict[str, bytes]:
    """What a repository holds besides the Hub's own file."""
    return {path: content for path, content in hub.files(repo_id).items() if path != ".gitattributes"}


def upload(hub: HubServer, path: Path, **settings):
    api(hub).create_repo("anna/tiny", exist_ok=True)
    return api(hub).upload_folder(repo_id="anna/tiny", folder_path=path, **settings)


def test_what_is_uploaded_comes_back_and_is_not_uploaded_twice(hub, tmp_path):
    source = folder(tmp_path / "source")
    first = upload(hub, source)
    assert own(hub) == FILES and hub.commits("anna/tiny")[0].sha == first.oid
    assert {path for path, file in hub._repositories["model", "anna/tiny"].tree(first.oid).items() if file.lfs} == {
        "model.safetensors"
    }
    assert upload(hub, source).oid == first.oid and len(hub.commits("anna/tiny")) == 2

    upload(hub, folder(tmp_path / "more", {"model.safetensors": b"other weights"}))
    for revision, weights in {"main": b"other weights", first.oid: WEIGHTS}.items():
        cache = {"endpoint": hub.url, "token": "hf_anna", "cache_dir": tmp_path / "cache"}
        snapshot = Path(snapshot_download("anna/tiny", revision=revision, **cache))
        found = {str(path.relative_to(snapshot)): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()}
        assert {**found, ".gitattributes": b""} == {**FILES, "model.safetensors": weights, ".gitattributes": b""}
        assert snapshot.name == hub.commits("anna/tiny", revision=revision)[0].sha
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("anna/tiny", "missing.json", **cache)
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info("anna/tiny", revision="0" * 40)


def test_faults_of_a_commit(hub, tmp_path):
    source = folder(tmp_path / "source")
    hub.fail("POST", "/commit/", drop="after")
    with pytest.raises(httpx2.TransportError):
        upload(hub, source)
    assert own(hub) == FILES  # it happened, though the client does not know
    upload(hub, source)
    assert len(hub.commits("anna/tiny")) == 2

    folder(source, {"a.txt": b"a"})
    head = hub.commits("anna/tiny")[0].sha
    for how in ("before", "body"):
        hub.fail("POST", "/commit/", drop=how)
        with pytest.raises(httpx2.TransportError):
            upload(hub, source)
    hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "7"})
    with pytest.raises(HfHubHTTPError) as limited:
        upload(hub, source)
    assert (limited.value.response.status_code, limited.value.response.headers["Retry-After"]) == (429, "7")
    assert hub.commits("anna/tiny")[0].sha == head

    hub.commit("anna/tiny", {"theirs.txt": b"theirs"})
    with pytest.raises(HfHubHTTPError) as late:
        upload(hub, source, parent_commit=head)
    assert late.value.response.status_code == 412 and "a.txt" not in own(hub)
    upload(hub, source)
    assert own(hub) == {**FILES, "a.txt": b"a", "theirs.txt": b"theirs"}


def test_a_dropped_lfs_upload_is_retried_and_a_commit_needs_its_objects(hub, tmp_path):
    hub.fail("PUT", "^/lfs/upload/", drop="body")
    upload(hub, folder(tmp_path / "source"))
    puts = [status for method, _, status in hub.requests if method == "PUT"]
    assert puts == [None, 200] and own(hub) == FILES

    lines = '{"key": "header", "value": {"summary": "x"}}\n{"key": "file", "value": {"path": "b", "content": ""}}\n'
    lines += f'{{"key": "lfsFile", "value": {{"path": "b.bin", "oid": "{"0" * 64}", "size": 3}}}}\n'
    headers = {"Authorization": "Bearer hf_anna"}
    answer = httpx2.post(f"{hub.url}/api/models/anna/tiny/commit/main", headers=headers, content=lines)
    assert answer.status_code == 400 and own(hub) == FILES


def test_who_may_read_and_write(hub, tmp_path):
    hub.add_repository("anna/secret", {"a.txt": b"a"}, private=True)
    hub.add_repository("lab/gated", {"a.txt": b"a"}, gated=True)
    hub.add_user("carl")
    hub.add_token("hf_carl", "carl")
    for token, status in {False: 401, "hf_carl": 404}.items():
        for missing in ("anna/secret", "anna/nothing"):
            with pytest.raises(RepositoryNotFoundError) as hidden:
                api(hub, token).model_info(missing)
            assert hidden.value.response.status_code == status
    for token, status in {False: 401, "hf_carl": 403}.items():
        with pytest.raises(GatedRepoError) as gated:
            api(hub, token).hf_hub_download("lab/gated", "a.txt", cache_dir=tmp_path)
        assert gated.value.response.status_code == status
    hub.grant("lab/gated", "carl")
    assert Path(api(hub, "hf_carl").hf_hub_download("lab/gated", "a.txt", cache_dir=tmp_path)).read_bytes() == b"a"

    def write(token, repo_id):
        api(hub, token).auth_check(repo_id, write=True)
        api(hub, token).upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=repo_id)

    for token, repo_id in [("hf_reader", "anna/secret"), ("hf_bert", "lab/gated"), ("hf_fine", "anna/secret")]:
        with pytest.raises(HfHubHTTPError):
            write(token, repo_id)
        assert "b.txt" not in hub.files(repo_id)
    headers = {"Authorization": "Bearer hf_reader"}
    assert httpx2.post(f"{hub.url}/api/models/anna/secret/commit/main", headers=headers).status_code == 403
    write("hf_anna", "anna/secret")
    write("hf_fine", "lab/gated")
    assert hub.files("lab/gated")["b.txt"] == b"b" == hub.files("anna/secret")["b.txt"]

    me = api(hub, "hf_fine").whoami()
    assert me["name"] == "anna" and [(org["name"], org["roleInOrg"]) for org in me["orgs"]] == [("lab", "write")]
    assert me["auth"]["accessToken"]["fineGrained"]["scoped"][0]["permissions"] == ["repo.write"]
    hub.revoke("hf_fine")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api(hub, "hf_fine").whoami()


def test_trees_branches_and_cards(hub):
    sha = hub.add_repository("anna/tiny", {f"d/{i}/x.txt": b"%d" % i for i in range(5)}, type="dataset")
    hub.tree_page = 3
    client, where = api(hub), {"repo_id": "anna/tiny", "repo_type": "dataset"}
    listed = [entry.path for entry in client.list_repo_tree(**where, recursive=True, expand=True)]
    expected = [".gitattributes", "d", *(f"d/{i}" for i in range(5)), *(f"d/{i}/x.txt" for i in range(5))]
    assert sorted(listed) == sorted(expected) and len(listed) == len(set(listed))
    assert sum("/tree/" in target for _, target, _ in hub.requests) == 4
    assert [entry.path for entry in client.list_repo_tree(**where, path_in_repo="d/3")] == ["d/3/x.txt"]

    client.create_branch(**where, branch="try/this")
    client.create_tag(**where, tag="v1")
    client.delete_file("d/0/x.txt", **where, revision="try/this")
    assert len(hub.files("anna/tiny", "try/this", "dataset")) == 5 < len(hub.files("anna/tiny", "v1", "dataset"))
    assert {ref.name: ref.target_commit for ref in client.list_repo_refs(**where).tags} == {"v1": sha}
    assert [entry.path for entry in client.get_paths_info(**where, paths=["d/1", "no"])] == ["d/1"]
    assert len(client.list_repo_commits(**where, revision="try/this")) == 3
    client.delete_branch(**where, branch="try/this")
    assert [ref.name for ref in client.list_repo_refs(**where).branches] == ["main"]

    with pytest.raises(ValueError, match=r"results\[0\].dataset.type"):
        card = "---\nmodel-index: [{name: x, results: [{task: {type: t}, dataset: {name: d}, metrics: []}]}]\n---\n"
        client.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", **where)
    assert check_card("---\na: [\n---\n")[0] and check_card("---\nlicense: {a: b}\n---\n")[0]
    assert check_card(CARD) == ([], [])
    assert len(hub.commits("anna/tiny", "dataset")) == 2


def test_stopped_is_down_and_a_restart_forgets_nothing(hub, tmp_path):
    first = upload(hub, folder(tmp_path / "source"))
    client = api(hub)
    with socket.create_connection(("127.0.0.1", hub.port), timeout=5) as idle:
        idle.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"404" in idle.recv(4096)
        hub.stop()
        assert idle.recv(1) == b""  # closed, though kept alive until then
    with pytest.raises(httpx2.TransportError):
        client.model_info("anna/tiny")
    with pytest.raises(httpx2.ConnectError):
        client.model_info("anna/tiny")
    with HubServer(hub.folder, hub.port) as again:
        assert client.model_info("anna/tiny").sha == first.oid and own(again) == FILES
        assert upload(again, tmp_path / "source").oid == first.oid


CLIENT = """
import sys
from datasets import load_dataset
offline, sha, model_sha = len(sys.argv) > 3, *sys.argv[1:3]
for revision in (None, sha):
    data = load_dataset("anna/images", split="train", revision=revision)
    assert data.features["label"].names == ["cat", "dog"] and data["label"] == [0, 1, 0], data.features
    assert data[1]["image"].getpixel((0, 0)) == (40, 0, 0)
if not offline:
    from transformers import AutoModelForImageClassification
    for revision, bias in (("main", 2.0), (model_sha, 1.0)):
        model = AutoModelForImageClassification.from_pretrained("anna/vit", revision=revision)
        assert model.classifier.bias.tolist() == [bias] * 2
    data.select([1]).push_to_hub("anna/pushed", private=True)
    assert load_dataset("anna/pushed", split="train")["label"] == [1]
"""


def test_transformers_and_datasets(hub, tmp_path):
    import datasets
    import torch
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [Image.new("RGB", (4, 4), (40 * index, 0, 0)) for index in range(3)]
    parquet = io.BytesIO()
    datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features=features).to_parquet(parquet)
    data = hub.add_repository("anna/images", {"data/train-0.parquet": parquet.getvalue()}, type="dataset")

    sizes = {"hidden_size": 8, "intermediate_size": 8, "image_size": 8, "patch_size": 4}
    model = ViTForImageClassification(ViTConfig(num_hidden_layers=1, num_attention_heads=1, **sizes))
    hub.add_repository("anna/vit")
    shas = []
    for bias in (1.0, 2.0):
        torch.nn.init.constant_(model.classifier.bias, bias)
        model.save_pretrained(tmp_path / "vit")
        shas.append(hub.commit("anna/vit", {path.name: path.read_bytes() for path in (tmp_path / "vit").iterdir()}))

    environment = hub.environment(tmp_path / "home", "hf_anna")
    command = [sys.executable, "-c", CLIENT, data, shas[0]]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert [path for path in hub.files("anna/pushed", type="dataset") if path.endswith(".parquet")]
    assert hub._repositories["dataset", "anna/pushed"].private
    hub.stop()
    subprocess.run([*command, "offline"], env={**environment, "HF_HUB_OFFLINE": "1"}, check=True, timeout=60)
