"""From a command to a store of labels, to the Hub, and to a training without teacher."""

import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from support import tiny
from support.hub_client import HubClient, Outcome
from support.hub_server import HubServer
from support.main_of import ROOT, launch, main_of

from hf_deit import TeacherLabelStore
from hf_deit.commands import label as labelling
from hf_deit.labels import files as label_files
from hf_deit.models.teacher import TeacherDescription

TEACHER, LABELS, STUDENT = "ada/teacher", "ada/labels", "ada/student"


@pytest.fixture(scope="module")
def folder_of_teacher(tmp_path_factory) -> str:
    return tiny.fair_teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def images(tmp_path) -> list[str]:
    """Arguments for 64 images of digits, with 6 steps of 16 views: an epoch and a half."""
    for split, data in zip(("train", "validation"), tiny.digits(64, 40), strict=True):
        for index, row in enumerate(data):
            path = tmp_path / split / str(row["label"]) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(path)
    folders = ["--train_dir", str(tmp_path / "train"), "--validation_dir", str(tmp_path / "validation")]
    return ["--recipe", "debug", "--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "no", *folders]


def rows_of(printed: str) -> dict[str, str]:
    return {name: value for name, value in re.findall(r"^(\S.*?)  +([\d.]+)$", printed, flags=re.MULTILINE)}


def codes(folder: Path, epoch: int) -> np.ndarray:
    return TeacherLabelStore.open(folder, readonly=True).epoch(epoch).codes


def unless(error: type[BaseException], function: Any) -> Any:
    """A function that does nothing while an error is on its way."""
    return lambda *arguments: None if sys.exc_info()[0] is error else function(*arguments)


# Training


def test_the_second_run_trains_no_teacher(tmp_path, images, capsys, monkeypatch):
    train = main_of("train")
    command = [*images, "--teacher_labels", str(tmp_path / "labels")]
    assert train([*command, "--output_dir", str(tmp_path / "first")]) == 0
    first = rows_of(capsys.readouterr().out)
    assert (first["kept labels replayed"], first["labels by the teacher"]) == ("0", "96")

    monkeypatch.delattr(TeacherDescription, "load")
    assert train([*command, "--output_dir", str(tmp_path / "second")]) == 0
    second = rows_of(capsys.readouterr().out)
    assert (second["kept labels replayed"], second["labels by the teacher"]) == ("96", "0")
    assert "teacher" in first and "teacher" not in second
    assert not (tmp_path / "second" / "teacher").exists()
    assert first["fused"] == second["fused"]
    weights = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all((one == other).all() for one, other in zip(*(each.values() for each in weights), strict=True))
    card = (tmp_path / "second" / "README.md").read_text()
    assert "A teacher from a local folder. What it says of 96 training views had been kept before." in card
    assert str(tmp_path) not in card
    assert "had been kept before" not in (tmp_path / "first" / "README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "labels" / "store.json").read_text()

    # Labels that are not of these views are refused before a teacher is trained.
    again = ["--output_dir", str(tmp_path / "third")]
    assert train([*command, *again, "--seed", "43"]) == 2
    assert "seed is 42 there, 43 here" in (error := capsys.readouterr().err) and "--data_seed" in error
    assert not (tmp_path / "third").exists()
    assert train([*command, *again, "--seed", "43", "--data_seed", "42", "--teacher_labels_readonly", "true"]) == 0


def test_readonly_trains_no_teacher_whatever_is_missing(tmp_path, images, folder_of_teacher, capsys):
    command = [*images, "--teacher_labels", str(tmp_path / "labels")]
    readonly = [*command, "--output_dir", str(tmp_path / "run"), "--teacher_labels_readonly", "true"]
    train, label = main_of("train"), main_of("label")
    assert train(readonly) == 2
    assert "there is no label store in" in capsys.readouterr().err
    assert label([*command, "--teacher_model_name_or_path", folder_of_teacher, "--epochs", "0:1"]) == 0
    assert train(readonly) == 2
    assert "lacks views of 1 of them, the first one 1" in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher").exists()
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def write_to(folder: Path) -> None:
    folder.mkdir()
    (folder / "holiday.jpg").touch()


REFUSED_EARLY = {
    "a folder of something else": ([], write_to, "is no label store"),
    "too many logits": (["--teacher_labels_top_k", "10"], None, "top_k must be from 0 to 9"),
    "of another teacher, too short": (["--max_steps", "10"], "labels", "lacks views of 1 epochs that the run needs"),
    "to be verified": (["--verify_teacher_labels", "0.5"], "labels", "is to be verified, and has the labels of"),
    "other views": (["--mixup", "0.3", "--teacher_labels_readonly", "true"], "labels", "mixup_alpha is 0.8 there"),
}


@pytest.mark.parametrize("case", REFUSED_EARLY)
def test_what_is_wrong_with_a_store_is_told_before_a_teacher_is_trained(
    tmp_path, images, folder_of_teacher, capsys, case
):
    arguments, before, words = REFUSED_EARLY[case]
    command = [*images, "--teacher_labels", str(tmp_path / "labels")]
    if before == "labels":
        assert main_of("label")([*command, "--teacher_model_name_or_path", folder_of_teacher]) == 0
    elif before is not None:
        before(tmp_path / "labels")
    capsys.readouterr()
    assert main_of("train")([*command, "--output_dir", str(tmp_path / "run"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_store_that_is_written_by_another_is_told_before_a_teacher_is_trained(tmp_path, images, capsys, monkeypatch):
    monkeypatch.setattr("hf_deit.labels.files.LOCK_SECONDS", 0.2)
    lock = label_files.lock_store(str(tmp_path / "labels"))
    command = [*images, "--teacher_labels", str(tmp_path / "labels"), "--output_dir", str(tmp_path / "run")]
    assert main_of("train")(command) == 2
    assert "another run writes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    lock.release()


def test_labels_may_lie_in_the_output_folder(tmp_path, images, capsys):
    run, train = tmp_path / "run", main_of("train")
    command = [*images, "--teacher_labels", str(run / "labels"), "--output_dir", str(run)]
    (tmp_path / "model").mkdir()
    assert train([*command, "--teacher_model_name_or_path", str(tmp_path / "model")]) == 2
    tiny.teacher_folder(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"broken")
    assert train([*command, "--teacher_model_name_or_path", str(tmp_path / "model")]) == 2
    assert not run.exists()  # no store without labels either
    assert train([*command, "--seed", "43"]) == 0
    assert train([*command, "--seed", "43"]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_images_without_labels_alone_are_replayed_without_teacher(tmp_path, images, folder_of_teacher, capsys):
    command = ["--recipe", "debug", "--use_cpu", "true", "--unlabeled_dir", str(tmp_path / "train"), *images[-2:]]
    command += ["--disable_tqdm", "true", "--save_strategy", "no", "--teacher_labels", str(tmp_path / "labels")]
    train = main_of("train")
    first = [*command, "--teacher_model_name_or_path", folder_of_teacher, "--output_dir", str(tmp_path / "first")]
    assert train([*first, "--dataset_name", ""]) == 0
    capsys.readouterr()
    assert train([*command, "--dataset_name", "", "--output_dir", str(tmp_path / "second")]) == 0
    assert rows_of(capsys.readouterr().out)["kept labels replayed"] == "96"
    weights = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all((one == other).all() for one, other in zip(*(each.values() for each in weights), strict=True))


def test_another_student_of_few_labels_replays_them_too(tmp_path, images, folder_of_teacher, capsys):
    teacher = ["--teacher_model_name_or_path", folder_of_teacher, "--labels_kept", "30"]
    command = [*images, *teacher, "--teacher_labels", str(tmp_path / "labels")]
    train = main_of("train")
    assert train([*command, "--output_dir", str(tmp_path / "first")]) == 0
    capsys.readouterr()
    another = ["--seed", "1", "--data_seed", "42", "--output_dir", str(tmp_path / "second")]
    assert train([*command, *another]) == 0
    assert rows_of(capsys.readouterr().out)["kept labels replayed"] == "96"


# Without a student


def test_labels_without_a_student_serve_a_run(tmp_path, images, folder_of_teacher, capsys, monkeypatch):
    label, store = main_of("label"), tmp_path / "labels"
    command = [*images, "--teacher_labels", str(store)]
    teacher = ["--teacher_model_name_or_path", folder_of_teacher]
    assert label([*command, *teacher]) == 0
    printed = capsys.readouterr().out
    assert "128 views labelled in 0.0 minutes" in printed
    assert f"{store} holds 2 epochs of 64 views, " in printed
    assert label([*command, *teacher, "--epochs", "0:3", "--dataloader_num_workers", "1"]) == 0
    assert "64 views labelled" in capsys.readouterr().out
    assert TeacherLabelStore.open(store, readonly=True).complete_epochs == [0, 1, 2]
    # As a run leaves them that is killed at the end of an epoch: nothing is missing.
    for epoch in (0, 2):
        part = store / f"parts/epoch-{epoch:05d}.rank-00000.0a1b2c3d.parquet"
        (store / f"data/epoch-{epoch:05d}.parquet").rename(part)
    assert label([*command, *teacher]) == 0
    printed = capsys.readouterr().out
    assert "\n0 views labelled" in printed and f"{store} holds 3 epochs of 64 views, " in printed
    assert list((store / "parts").iterdir()) == []

    live, replay, train = tmp_path / "live", tmp_path / "replay", main_of("train")
    assert train([*images, *teacher, "--output_dir", str(live)]) == 0
    recorded = ["--teacher_labels", str(tmp_path / "recorded"), "--num_train_epochs", "2", "--max_steps", "-1"]
    assert train([*images, *teacher, *recorded, "--output_dir", str(tmp_path / "recording")]) == 0
    for epoch in (0, 1):
        np.testing.assert_array_equal(codes(tmp_path / "recorded", epoch), codes(store, epoch))
    monkeypatch.delattr(TeacherDescription, "load")
    assert train([*command, *teacher, "--output_dir", str(replay)]) == 0
    weights = (load_file(folder / "model.safetensors") for folder in (live, replay))
    assert all((one == other).all() for one, other in zip(*(each.values() for each in weights), strict=True))


def test_a_teacher_labels_at_the_size_that_is_asked_for(tmp_path, images, folder_of_teacher, capsys):
    store, label, train = str(tmp_path / "labels"), main_of("label"), main_of("train")
    named = [*images, "--teacher_model_name_or_path", folder_of_teacher, "--teacher_labels", store]
    assert label([*named, "--output_dir", str(tmp_path / "unused"), "--teacher_input_size", "24"]) == 0
    assert TeacherLabelStore.open(store, readonly=True).identity.teacher_size == [24, 24]
    unnamed = [*images, "--teacher_labels", store, "--output_dir", str(tmp_path / "run")]
    for size in ("student", "32"):
        assert train([*unnamed, "--teacher_input_size", size]) == 2
        assert f"was shown 24 pixels, got --teacher_input_size {size}" in capsys.readouterr().err
    assert train([*unnamed, "--teacher_input_size", "24"]) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "shown the training views at 24 x 24 pixels, resized from the student's" in card


@pytest.mark.parametrize("flushed", ["meanwhile", "when it stops"])
def test_labelling_goes_on_where_it_was_stopped(tmp_path, images, folder_of_teacher, capsys, monkeypatch, flushed):
    label, whole = main_of("label"), tmp_path / "whole"
    command = [*images, "--teacher_model_name_or_path", folder_of_teacher, "--per_device_train_batch_size", "8"]
    command += ["--mixup_group_size", "8", "--epochs", "0:2"]
    assert label([*command, "--teacher_labels", str(whole)]) == 0
    if flushed == "meanwhile":  # as when it is killed
        monkeypatch.setattr(labelling, "_FLUSH_SECONDS", -1)
        monkeypatch.setattr(TeacherLabelStore, "flush", unless(KeyboardInterrupt, TeacherLabelStore.flush))
    monkeypatch.setattr("hf_deit.labels.files.LOCK_SECONDS", 0.2)
    forward, calls = TeacherDescription.load, []

    def stopping(self: TeacherDescription, device: Any = None) -> Any:
        teacher = forward(self, device)

        def stop(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 11:
                raise KeyboardInterrupt

        teacher.register_forward_pre_hook(stop)
        return teacher

    with monkeypatch.context() as patched:
        patched.setattr(TeacherDescription, "load", stopping)
        assert label([*command, "--teacher_labels", str(tmp_path / "parts")]) == 130
    store = TeacherLabelStore.open(tmp_path / "parts", readonly=True)
    assert (store.complete_epochs, store.partial_epochs) == ([0], [1])
    assert len(store.epoch(1).absent()) == 64 - 2 * 8
    capsys.readouterr()
    assert label([*command, "--teacher_labels", str(tmp_path / "parts")]) == 0
    assert f"{64 - 2 * 8} views labelled" in capsys.readouterr().out
    for epoch in (0, 1):
        np.testing.assert_array_equal(codes(tmp_path / "parts", epoch), codes(whole, epoch))


def test_two_processes_share_the_labelling(tmp_path, images, folder_of_teacher):
    """Of two teachers together."""
    teachers = [folder_of_teacher, tiny.teacher_folder(tmp_path / "other", seed=2)]
    command = [*images, "--teacher_model_name_or_path", *teachers, "--mixup_group_size", "16"]
    command += ["--epochs", "0:2", "--repeats_placement", "spread", "--repeated_augmentation", "3"]
    assert main_of("label")([*command, "--teacher_labels", str(tmp_path / "one")]) == 0
    printed = launch(ROOT / "scripts" / "label.py", *command, "--teacher_labels", tmp_path / "two")
    assert "128 views labelled" in printed  # none of them twice
    assert TeacherLabelStore.open(tmp_path / "two", readonly=True).complete_epochs == [0, 1]
    for epoch in (0, 1):
        np.testing.assert_array_equal(codes(tmp_path / "one", epoch), codes(tmp_path / "two", epoch))
    named = TeacherLabelStore.open(tmp_path / "two", readonly=True).identity.teacher
    assert {*named["names"]} == {"other", Path(folder_of_teacher).name} and named["weights"] == [0.5, 0.5]


def test_what_to_give_is_told_where_there_are_no_labels_yet(tmp_path, images, capsys):
    command = ["--recipe", "own_images", *images[2:], "--teacher_labels", str(tmp_path / "typo")]
    assert main_of("train")([*command, "--output_dir", str(tmp_path / "run"), "--eval_strategy", "no"]) == 2
    error = capsys.readouterr().err
    assert f"there are no labels in '{tmp_path / 'typo'}' yet" in error and "--teacher_model_name_or_path" in error
    stream = ["--dataset_name", "x", "--streaming", "true", "--teacher_labels", "x", "--recipe", "debug"]
    assert main_of("train")([*stream, "--output_dir", str(tmp_path / "run")]) == 2
    assert "the labels of a stream cannot be kept" in capsys.readouterr().err


def test_a_broken_file_is_told_at_the_start(tmp_path, images, folder_of_teacher, capsys):
    command = [*images, "--teacher_labels", str(tmp_path / "labels")]
    assert main_of("label")([*command, "--teacher_model_name_or_path", folder_of_teacher]) == 0
    last = tmp_path / "labels" / "data" / "epoch-00001.parquet"
    last.write_bytes(last.read_bytes()[:-60])
    assert main_of("train")([*command, "--output_dir", str(tmp_path / "run")]) == 2
    assert "epoch-00001.parquet' holds no labels of this store (truncated or corrupt" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_ended_keeps_its_card(tmp_path, images, folder_of_teacher, capsys):
    command = [*images, "--save_strategy", "steps", "--teacher_model_name_or_path", folder_of_teacher]
    command += ["--teacher_labels", str(tmp_path / "labels"), "--output_dir", str(tmp_path / "run")]
    assert main_of("train")(command) == 0
    assert f"The teacher's labels lie in {tmp_path / 'labels'}" in capsys.readouterr().out
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| the teacher | " in card and "| speed | " in card
    assert main_of("train")([*command, "--resume_from_checkpoint", "true"]) == 0
    _, metadata, text = card.split("---\n", 2)
    _, metadata_again, text_again = (tmp_path / "run" / "README.md").read_text().split("---\n", 2)
    assert text_again == text and yaml.safe_load(metadata_again) == yaml.safe_load(metadata)


def test_an_interruption_says_how_to_go_on(tmp_path, images, monkeypatch, capsys):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for script, words in (("train", "--resume_from_checkpoint true goes on"), ("label", "the same command goes on")):
        command = importlib.import_module(f"hf_deit.commands.{script}")
        monkeypatch.setattr(command, "resolve_arguments", interrupt)
        assert command.main(images) == 130
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--teacher_labels"),
        (["--teacher_labels", "x", "--teacher_labels_readonly", "true"], "no --teacher_labels_readonly"),
        (["--teacher_labels", "x"], "there is no teacher"),
        (["--teacher_labels", "x", "--epochs", "3", "TEACHER"], "epochs must be FIRST:LAST"),
        (["--teacher_labels", "x", "--epochs", "0:9999999999999", "TEACHER"], "LAST of at most 1,000,000, got"),
        (["--teacher_labels", "x", "--no_such_field", "3"], "no argument 'no_such_field'"),
    ],
)
def test_mistakes_are_refused_in_one_line(tmp_path, images, folder_of_teacher, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    if arguments[-1:] == ["TEACHER"]:
        arguments = [*arguments[:-1], "--teacher_model_name_or_path", folder_of_teacher]
    assert main_of("label")([*images, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and error.startswith("error: ") and "\n" not in error
    assert not (tmp_path / "x").exists()


# The Hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory, folder_of_teacher):
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        server.add_user("ada")
        server.add_token("hf_ada", "ada")
        files = {path.name: path.read_bytes() for path in Path(folder_of_teacher).iterdir()}
        server.add_repository(TEACHER, files)
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    client = HubClient(hub, tmp_path_factory.mktemp("home"), "hf_ada")
    yield client
    client.close()


def run(client: HubClient, script: str, *arguments: object, **settings: Any) -> Outcome:
    outcome = client.run(script, *arguments, **settings)
    assert "Traceback" not in outcome.output, outcome.output
    return outcome


def test_labels_go_to_the_hub_and_teach_from_there(tmp_path, images, hub, client):
    """Recorded in training, pushed, and replayed by whoever has neither the teacher nor the folder."""
    store, two_epochs = tmp_path / "labels", ("--num_train_epochs", "2", "--max_steps", "-1")
    command = (*images, *two_epochs, "--ema_decay", "0")
    teacher = ("--teacher_model_name_or_path", TEACHER)
    outcome = run(client, "train", *command, *teacher, "--teacher_labels", store, "--output_dir", tmp_path / "first")
    assert outcome.status == 0, outcome.output
    teacher_commit = hub.commits(TEACHER)[0].sha
    outcome = run(client, "publish", store, "--hub_model_id", LABELS)
    assert outcome.status == 0 and f"{store} is published at {hub.url}/datasets/{LABELS}" in outcome.output
    assert {"store.json", "README.md", "data/epoch-00001.parquet"} <= {*hub.files(LABELS, type="dataset")}
    for content in hub.files(LABELS, type="dataset").values():
        assert str(tmp_path).encode() not in content
    shutil.rmtree(store)

    # More epochs than there are: the teacher labels those, or, where it may not, the run is refused.
    longer = (*images, *teacher, "--teacher_labels", f"hf://datasets/{LABELS}", "--max_steps", "10")
    outcome = run(client, "train", *longer, "--output_dir", tmp_path / "longer")
    assert outcome.status == 0 and "lacks views of 1 epochs, which the teacher labels" in outcome.output
    assert rows_of(outcome.output)["kept labels replayed"] == "128"
    assert rows_of(outcome.output)["labels by the teacher"] == "32"
    outcome = run(client, "train", *longer, "--teacher_labels_readonly", "true", "--output_dir", tmp_path / "refused")
    assert outcome.status == 2 and "lacks views of 1 of them, the first one 2" in outcome.output
    outcome = run(client, "label", *longer)
    assert outcome.status == 2 and "takes no labels, as it is on the Hub" in outcome.output

    hub.fail("GET|HEAD", f"/{TEACHER}/resolve/.*safetensors", status=404, times=None)
    labels_commit = hub.commits(LABELS, type="dataset")[0].sha
    replay = (*command, "--teacher_labels", LABELS, "--teacher_labels_readonly", "true")
    push = ("--push_to_hub", "true", "--hub_model_id", STUDENT)
    folder = tmp_path / "replayed"
    outcome = run(client, "train", *replay, *push, "--output_dir", folder)
    assert outcome.status == 0, outcome.output
    assert rows_of(outcome.output)["kept labels replayed"] == "128"
    weights = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "replayed"))
    assert all((one == other).all() for one, other in zip(*(each.values() for each in weights), strict=True))
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["teacher_labels_revision"] == labels_commit
    card = hub.files(STUDENT)["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == [TEACHER] and metadata["datasets"] == [LABELS]
    assert f"[{TEACHER}](https://huggingface.co/{TEACHER}) at commit `{teacher_commit[:12]}`" in card
    assert f"What it says of 128 training views had been kept before, in the data set [{LABELS}]" in card
    assert f"](https://huggingface.co/datasets/{LABELS}) at commit `{labels_commit[:12]}`" in card
    hub.clear_faults()

    # Without the Hub, from the cache, also by the branch's name; and a name that is nowhere is told at once.
    offline = "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True"
    outcome = run(client, "train", *replay, "--output_dir", tmp_path / "offline", before=offline)
    assert outcome.status == 0 and rows_of(outcome.output)["kept labels replayed"] == "128", outcome.output
    wrong = (*command, "--teacher_labels", "outputs/lables", "--teacher_labels_readonly", "true")
    outcome = run(client, "train", *wrong, "--output_dir", tmp_path / "wrong", before=offline)
    assert outcome.status == 2 and outcome.seconds < 30
    assert "'outputs/lables' is not in the cache" in outcome.output
    outcome = run(client, "train", *wrong, "--output_dir", tmp_path / "wrong")
    assert outcome.status == 2 and "there is no folder of that name" in outcome.output


def test_a_store_that_cannot_be_published_is_refused(tmp_path, images, folder_of_teacher, hub, client):
    store = tmp_path / "labels"
    command = (*images, "--teacher_model_name_or_path", folder_of_teacher, "--teacher_labels", store)
    assert run(client, "train", *command, "--max_steps", 2, "--output_dir", tmp_path / "run").status == 0
    outcome = run(client, "publish", store, "--hub_model_id", "ada/nothing")
    assert outcome.status == 2 and "has no complete epoch" in outcome.output
    assert run(client, "label", *command).status == 0
    outcome = run(client, "publish", store, "--hub_model_id", "ada/nothing", "--hub_revision", "x")
    assert outcome.status == 2 and "leave --hub_revision out" in outcome.output
    hub.fail("POST", "/commit/", status=503, times=None)
    outcome = run(client, "publish", store, "--hub_model_id", "ada/nothing", "--hub_push_timeout", 1)
    hub.clear_faults()
    assert outcome.status == 3 and "cannot push the labels" in outcome.output and "HTTP 503" in outcome.output
