"""From a training to a repository and back, through the real clients and a server on the loopback."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load, load_file, save_file
from support import tiny
from support.hub_client import HubClient, Outcome
from support.hub_server import HubServer

from hf_deit import InputError
from hf_deit.hub.card import BEGIN, END
from hf_deit.hub.publishing import check_folder

TEACHER, IMAGES, STUDENT = "lab/teacher", "lab/digits", "ada/student"
TOKEN = "hf_write_of_ada"


def parquet_of(dataset: datasets.Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.to_parquet(buffer)
    return buffer.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        server.add_user("ada", orgs=["lab"])
        server.add_user("bob")
        server.add_token(TOKEN, "ada")
        server.add_token("hf_bob", "bob")
        teacher = Path(tiny.teacher_folder(tmp_path_factory.mktemp("teacher")))
        card = "---\ndatasets:\n- lab/digits\n- lab/many-more\n---\nA teacher.\n"
        server.add_repository(TEACHER, {**files_of(teacher), "README.md": card.encode()})
        train, validation = tiny.digits(96, 40)
        data = {"train": parquet_of(train), "validation": parquet_of(validation)}
        server.add_repository(
            IMAGES, {f"data/{name}-00000-of-00001.parquet": content for name, content in data.items()}, type="dataset"
        )
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(hub, home):
    client = HubClient(hub, home, TOKEN)
    yield client
    client.close()


def train(client: HubClient, folder: Path, *arguments: object, **settings: Any) -> Outcome:
    outcome = client.run(
        *("train", "--recipe", "debug", "--output_dir", folder, "--disable_tqdm", "true", "--use_cpu", "true"),
        *("--teacher_model_name_or_path", TEACHER, "--dataset_name", IMAGES, "--validation_split", "validation"),
        *("--max_steps", 8, "--save_steps", 2, "--eval_steps", 4, "--ema_decay", 0, "--logging_steps", 2),
        *arguments,
        **settings,
    )
    assert "Traceback" not in outcome.output, outcome.output
    return outcome


def push(repo_id: str, strategy: str = "end") -> tuple[str, ...]:
    return "--push_to_hub", "true", "--hub_model_id", repo_id, "--hub_strategy", strategy


@pytest.fixture(scope="module")
def pushed(hub, client, tmp_path_factory):
    """A run's folder, whose model is at STUDENT with its last checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "pushed"
    outcome = train(client, folder, *push(STUDENT, "checkpoint"), "--hub_always_push", "true", "--hub_token", TOKEN)
    assert outcome.status == 0, outcome.output
    assert f"It is published at {hub.url}/{STUDENT}" in outcome.output
    return folder


def sealed(hub: HubServer, home: Path, code: str, *, token: str | None = TOKEN, folder: Path | None = None) -> str:
    """Runs code in a process that cannot import hf_deit, and has never seen this package's caches."""
    wall = "import sys; sys.modules['hf_deit'] = None\n"
    environment = hub.environment(home, token)
    process = subprocess.run(
        [sys.executable, "-c", wall + code], env=environment, capture_output=True, text=True, timeout=300, cwd=folder
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


# What is published


def test_the_repository_holds_the_model_and_its_record(hub, pushed):
    files = hub.files(STUDENT)
    top = {name for name in files if "/" not in name}
    assert top == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "recipe.yaml", "run.json"),
        *("environment.json", "training_curves.png", ".gitattributes"),
    }
    assert files["model.safetensors"] == (pushed / "model.safetensors").read_bytes()
    assert {name.split("/")[0] for name in files if "/" in name} == {"last-checkpoint"}
    assert "last-checkpoint/optimizer.pt" in files
    assert Image.open(io.BytesIO(files["training_curves.png"])).size[0] > 800
    environment = json.loads(files["environment.json"])
    assert {"torch", "transformers", "hf_deit"} <= set(environment["libraries"])
    assert environment["device"].startswith("CPU")


def test_nothing_that_is_private_is_pushed(hub, client, pushed, home):
    teacher = hub.files(TEACHER)["model.safetensors"]
    for commit in hub.commits(STUDENT):
        for name, content in commit.files.items():
            for secret in (TOKEN.encode(), str(pushed.parent).encode(), str(home).encode(), str(Path.home()).encode()):
                if len(secret) > 5:
                    assert secret not in content, (name, secret)
            assert content != teacher
            assert not name.endswith("training_args.bin")
            if not name.startswith("last-checkpoint/"):
                assert not re.search(r"optimizer|scheduler|rng_state|trainer_state|\.bin$|\.pt$|teacher/", name)


def test_the_arguments_are_those_of_the_run_and_none_of_the_machine(hub, pushed):
    recipe = yaml.safe_load(hub.files(STUDENT)["recipe.yaml"])
    assert recipe["dataset_name"] == IMAGES
    assert recipe["teacher_model_name_or_path"] == TEACHER
    assert recipe["teacher_revision"] == hub.commits(TEACHER)[0].sha
    assert recipe["dataset_revision"] == hub.commits(IMAGES, type="dataset")[0].sha
    assert not {"output_dir", "hub_token", "push_to_hub", "hub_model_id"} & set(recipe)


def test_the_card_says_what_the_run_knows(hub, pushed):
    text = hub.files(STUDENT)["README.md"].decode()
    data = ModelCard(text).data
    results = {(result.metric_name): result for result in data.eval_results}
    logged = [
        line for line in json.loads((pushed / "trainer_state.json").read_text())["log_history"] if "eval_top1" in line
    ]
    for head, key in (("fused heads", "eval_top1"), ("class head", "eval_class_top1")):
        result = results[f"top-1 accuracy, {head}"]
        assert result.metric_value == pytest.approx(logged[-1][key], abs=1e-4)
        assert (result.dataset_type, result.dataset_split) == (IMAGES, "validation")
        assert result.dataset_revision == hub.commits(IMAGES, type="dataset")[0].sha
        assert result.dataset_args == {"num_images": 40}
    assert data.base_model == TEACHER or data.base_model == [TEACHER]
    assert data.datasets == [IMAGES]
    assert {"distillation", "deit", "image-classification"} <= set(data.tags)
    assert data.pipeline_tag == "image-classification"
    assert f"at commit `{hub.commits(TEACHER)[0].sha[:12]}`" in text
    assert "External data" in text
    assert "lab/many-more" in text
    assert re.search(r"top-1 accuracy on 40 of the validation images is \d\.\d{4}", text)
    assert "images/s" in text
    assert "minutes" in text
    assert "Training goes on" not in text
    in_between = [commit for commit in hub.commits(STUDENT) if "step 2" in commit.title]
    assert in_between
    assert (
        "**Training goes on**: these are the weights after step 2 of 8." in in_between[0].files["README.md"].decode()
    )


# Round trips


def snippet_of(hub: HubServer, repo_id: str, folder: Path) -> str:
    """The code of a card, and the image that it wants."""
    Image.new("RGB", (20, 20), "white").save(folder / "image.png")
    return re.search(r"```python\n(.*?)```", hub.files(repo_id)["README.md"].decode(), re.DOTALL)[1]


def test_a_fresh_process_runs_the_cards_snippet_and_gets_the_same_logits_by_id_and_by_revision(hub, pushed, tmp_path):
    code = f"""
import torch
from transformers import AutoModelForImageClassification
for revision in (None, {hub.commits(STUDENT)[0].sha!r}):
    model = AutoModelForImageClassification.from_pretrained({STUDENT!r}, revision=revision).eval()
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    with torch.no_grad():
        print(type(model).__name__, model(pixels).logits[0].tolist())
"""
    code = snippet_of(hub, STUDENT, tmp_path) + code
    scores, *lines = sealed(hub, tmp_path / "home", code, folder=tmp_path).splitlines()
    assert "score" in scores
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    model = tiny.student()
    model.load_state_dict(type(model).from_pretrained(pushed).state_dict())
    with torch.no_grad():
        expected = model.eval()(pixels).logits[0]
    assert len(lines) == 2
    for line in lines:
        name, _, logits = line.partition(" ")
        assert name == "DeiTForImageClassificationWithTeacher"
        torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, atol=1e-5, rtol=1e-5)


def test_a_run_goes_on_from_the_pushed_checkpoint_with_the_same_bits(hub, client, pushed, tmp_path):
    """Stopped after half of it on one machine, and ended on another."""
    repo = "ada/half"
    first = train(client, tmp_path / "first", *push(repo, "checkpoint"), "--save_steps", 4, before=STOP_AT_4)
    assert first.status == 1
    assert "last-checkpoint/trainer_state.json" in hub.files(repo)
    second = train(client, tmp_path / "second", "--resume_from_hub", repo, "--save_steps", 4)
    assert second.status == 0, second.output
    assert differing(tmp_path / "second", pushed) == []
    state = json.loads((tmp_path / "second" / "trainer_state.json").read_text())
    assert [line["step"] for line in state["log_history"] if "loss" in line] == [2, 4, 6, 8]


# Dies in the step after the checkpoint, when that has been pushed.
STOP_AT_4 = """
import os
from hf_deit.training.trainer import DistillationTrainer
push = DistillationTrainer._push_from_checkpoint
def push_and_die(self, folder):
    push(self, folder)
    self.pushes.wait()
    os._exit(1)
DistillationTrainer._push_from_checkpoint = push_and_die
"""


def differing(one: Path, other: Path) -> list[str]:
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys()
    return [name for name in weights if not torch.equal(weights[name], others[name])]


NOT_TO_GO_ON = {
    "no such repository": (["--resume_from_hub", "ada/none"], "cannot go on from 'ada/none'"),
    "no checkpoint": (["--resume_from_hub", TEACHER], "has no checkpoint to go on from"),
    "another run": (["--resume_from_hub", STUDENT, "--learning_rate", "0.5"], "was started with learning_rate"),
    "both": (["--resume_from_hub", STUDENT, "--resume_from_checkpoint", "nowhere"], "either --resume_from_hub or"),
}


@pytest.mark.parametrize("case", NOT_TO_GO_ON)
def test_what_cannot_be_gone_on_with_is_refused(client, pushed, tmp_path, case):
    arguments, message = NOT_TO_GO_ON[case]
    outcome = train(client, tmp_path / "run", *arguments)
    assert outcome.status == 2
    assert message in outcome.output.partition("error: ")[2]
    assert not list((tmp_path / "run").glob("*"))  # the mended command can take the folder


def test_resuming_stays_with_the_commits_that_the_run_began_with(hub, client, tmp_path):
    run = tmp_path / "run"
    assert train(client, run, "--max_steps", 4).status == 0
    shutil.rmtree(run / "checkpoint-4")
    before = yaml.safe_load((run / "recipe.yaml").read_text())
    weights = (run / "model.safetensors").read_bytes()
    hub.commit(TEACHER, {"config.json": b"{}", "model.safetensors": b""}, "the teacher is spoilt")
    hub.commit(IMAGES, {"data/train-00000-of-00001.parquet": b""}, "so are the images", type="dataset")
    try:
        outcome = train(client, run, "--max_steps", 4, "--resume_from_checkpoint", "true")
        assert outcome.status == 0, outcome.output
        assert (run / "model.safetensors").read_bytes() == weights
        after = yaml.safe_load((run / "recipe.yaml").read_text())
        assert {name: after[name] for name in ("teacher_revision", "dataset_revision")} == {
            name: before[name] for name in ("teacher_revision", "dataset_revision")
        }
        moved = train(client, run, "--max_steps", 4, "--resume_from_checkpoint", "true", "--dataset_revision", "main")
        assert moved.status == 2
        assert "was started with dataset_revision" in moved.output
        moved = train(client, run, "--max_steps", 4, "--resume_from_checkpoint", "true", "--teacher_revision", "main")
        assert moved.status == 2
        assert "has the teacher at commit" in moved.output
    finally:
        for repo_id, kind in ((TEACHER, "model"), (IMAGES, "dataset")):
            old = hub.commits(repo_id, type=kind)[1]
            hub.commit(repo_id, dict(old.files), "back", type=kind)


def test_offline_what_is_cached_works_and_what_is_not_is_named(client, pushed, tmp_path):
    offline = "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True\n"
    offline += "import datasets; datasets.config.HF_HUB_OFFLINE = True"
    assert train(client, tmp_path / "online").status == 0  # fills the cache with what is the newest now
    outcome = train(client, tmp_path / "run", before=offline)
    assert outcome.status == 0, outcome.output
    assert differing(tmp_path / "run", pushed) == []
    for name, argument in (("lab/other", "--teacher_model_name_or_path"), ("lab/others", "--dataset_name")):
        outcome = train(client, tmp_path / name, argument, name, before=offline)
        assert outcome.status == 2, outcome.output
        assert name in outcome.output.partition("error: ")[2]


def test_cait_is_published_with_its_code(hub, client, tmp_path):
    overrides = json.dumps({name: value for name, value in tiny.SIZES.items() if name != "intermediate_size"})
    student = ("--student", "cait_xxs24_224", "--student_overrides", overrides)
    outcome = train(client, tmp_path / "run", *student, *push("ada/cait"))
    assert outcome.status == 0, outcome.output
    files = hub.files("ada/cait")
    assert any(name.endswith(".py") for name in files)
    snippet = snippet_of(hub, "ada/cait", tmp_path)
    assert "trust_remote_code=True" in snippet
    assert "score" in sealed(hub, tmp_path / "home", snippet, folder=tmp_path)


def test_a_private_repository_opens_for_its_owner_alone(hub, client, tmp_path):
    outcome = train(client, tmp_path / "run", *push("ada/secret"), "--hub_private_repo", "true")
    assert outcome.status == 0, outcome.output
    student = ("--student", "ada/secret", "--student_overrides", "{}", "--max_steps", 2)
    for token in ("hf_bob", None):
        refused = train(client, tmp_path / f"not {token}", *student, token=token)
        assert refused.status == 2
        assert "ada/secret" in refused.output.partition("error: ")[2]
    assert train(client, tmp_path / "ada", *student).status == 0


def test_averaged_weights_are_what_is_pushed_all_along(hub, client, tmp_path):
    outcome = train(
        client,
        tmp_path / "run",
        *push("ada/averaged", "every_save"),
        *("--hub_always_push", "true", "--ema_decay", 0.9, "--publish_weights", "ema"),
    )
    assert outcome.status == 0, outcome.output
    average = (tmp_path / "run" / "checkpoint-8" / "ema" / "model.safetensors").read_bytes()
    newest, *_ = hub.commits("ada/averaged")
    assert newest.files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert load_equal(newest.files["model.safetensors"], average)
    assert "moving average" in newest.files["README.md"].decode()


def load_equal(one: bytes, other: bytes) -> bool:
    one, other = load(one), load(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_without_images_to_validate_with_is_published(hub, client, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16), (6 * number, 99, 99)).save(tmp_path / "images" / f"{number}.png")
    outcome = client.run(
        *("train", "--recipe", "debug", "--output_dir", tmp_path / "run", "--teacher_model_name_or_path", TEACHER),
        *("--dataset_name=", "--unlabeled_dir", tmp_path / "images", "--eval_strategy", "no", "--ema_decay", 0),
        *("--max_steps", 2, "--disable_tqdm", "true", *push("ada/unlabelled")),
    )
    assert outcome.status == 0, outcome.output
    card = hub.files("ada/unlabelled")["README.md"].decode()
    assert "have not been evaluated" in card
    assert str(tmp_path).encode() not in b"".join(hub.files("ada/unlabelled").values())


def test_a_refused_checkpoint_of_the_hub_leaves_nothing(client, pushed, tmp_path):
    outcome = train(client, tmp_path / "run", "--resume_from_hub", STUDENT, "--gradient_accumulation_steps", 2)
    assert outcome.status == 2, outcome.output
    assert "steps in an epoch" in outcome.output
    assert not list((tmp_path / "run").glob("*"))


def launch_two(hub: HubServer, home: Path, *arguments: object) -> subprocess.CompletedProcess:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    command += ["--config_file", root / "scripts" / "accelerate_configs" / "cpu_2.yaml", root / "scripts" / "train.py"]
    command += ["--recipe", "debug", "--use_cpu", "true", "--teacher_model_name_or_path", TEACHER, *arguments]
    environment = {**hub.environment(home, TOKEN), "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)


def test_of_two_processes_one_pushes(hub, home, tmp_path):
    done = launch_two(hub, home, "--output_dir", tmp_path / "run", *push("ada/by-two", "every_save"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("It is published at") == 1
    assert hub.files("ada/by-two")["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert "2 x CPU" in hub.files("ada/by-two")["README.md"].decode()


def test_two_processes_are_refused_alike(hub, home, tmp_path):
    done = launch_two(hub, home, "--output_dir", tmp_path / "run", *push("bob/not-mine"))
    assert done.returncode != 0
    assert done.stderr.count("error: 'ada' can create repositories under") == 1
    assert "Connection closed by peer" not in done.stderr


# Publishing again


def test_hand_written_parts_of_a_card_stay(hub, client, pushed):
    before = hub.files(STUDENT)["README.md"].decode()
    text = before.replace("library_name:", "license: mit\nlibrary_name:", 1)
    text = text.replace(BEGIN, f"A note above.\n\n{BEGIN}").rstrip() + "\n\n## Ethics\n\nThink.\n"
    hub.commit(STUDENT, {"README.md": text.encode()}, "Words of one's own")
    assert client.run("publish", pushed, "--hub_model_id", STUDENT).status == 0
    after = hub.files(STUDENT)["README.md"].decode()
    assert "license: mit" in after
    assert "A note above." in after
    assert after.index("A note above.") < after.index(BEGIN) < after.index(END) < after.index("## Ethics")
    assert after.count("## Results") == 1


def test_publishing_to_another_name_writes_that_name_into_the_card(hub, client, pushed):
    assert client.run("publish", pushed, "--hub_model_id", "other-name", "--hub_revision", "v1").status == 0
    assert 'model="ada/other-name"' in hub.files("ada/other-name", revision="v1")["README.md"].decode()


# What is not whole is not published


def remove(name):
    return lambda folder: (folder / name).unlink()


def truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def change(name, **values):
    def spoil(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return spoil


def without_head(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "cls_classifier" not in k}, folder / "model.safetensors", {"format": "pt"}
    )


def not_finite(folder):
    weights = load_file(folder / "model.safetensors")
    weights[next(iter(weights))].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def bare_card(folder):
    (folder / "run.json").unlink()
    (folder / "README.md").write_text("A model.")


SPOILT = {
    "no configuration": (remove("config.json"), "its run is not finished; go on with it"),
    "no weights": (remove("model.safetensors"), "there are no weights"),
    "pickled weights": (pickled, "there are no weights"),
    "half of the weights": (truncate("model.safetensors"), "does not load"),
    "no head": (without_head, "they lack cls_classifier"),
    "weights that are not finite": (not_finite, "are not finite"),
    "no processor": (remove("preprocessor_config.json"), "preprocessor_config.json"),
    "another size": (change("preprocessor_config.json", crop_size={"height": 32, "width": 32}), "makes 32 pixels"),
    "labels that share a name": (
        change("config.json", id2label={str(i): "x" if i in (3, 7) else str(i) for i in range(10)}),
        "share a name: mend its id2label and label2id, say with x (3), x (7)",
    ),
    "a run that is not finished": (change("run.json", step=3, is_finished=False), "stands at step 3 of 8"),
    "a record that is none": (
        lambda folder: (folder / "run.json").write_text("{"),
        "is not what a run of hf_deit writes",
    ),
    "no card": (lambda folder: [(folder / name).unlink() for name in ("run.json", "README.md")], "has no README.md"),
    "a bare card": (bare_card, "is not complete"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_folder_that_is_not_whole_is_refused(pushed, tmp_path, case):
    spoil, message = SPOILT[case]
    folder = tmp_path / "run"
    shutil.copytree(pushed, folder)
    check_folder(str(folder))
    spoil(folder)
    with pytest.raises(InputError, match=re.escape(message)):
        check_folder(str(folder))


def test_the_script_refuses_a_folder_before_it_asks_the_hub(hub, client, tmp_path):
    hub.requests.clear()
    outcome = client.run("publish", tmp_path, "--hub_model_id", "ada/nothing")
    assert outcome.status == 2
    assert "there is no model" in outcome.output
    assert not hub.requests
