"""`hf-deit evaluate`: one command from a model to its report, in one process or several, in one attempt or several."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.checkpoints import LABELS, our_folder, randomise, saved
from support.images import NAMES, noise
from support.main_of import ROOT, launch, main_of
from support.tiny import resnet
from transformers import pipeline

from hf_deit.errors import InputError
from hf_deit.evaluation.answers import stored_answers
from hf_deit.evaluation.arguments import EvaluationArguments

evaluate = main_of("evaluate")
DIGITS = ("--dataset_name", "sklearn:digits", "--split", "validation")
# In each of several processes: chunks of a few images.
_SMALL_CHUNKS = """
import sys
from hf_deit.commands.command_line import exit_command
from hf_deit.commands.evaluate import main
from hf_deit.evaluation.answers import stored_answers
stored_answers.CHUNK = 16
exit_command(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(stored_answers, "CHUNK", 16)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def without_circumstances(found: dict) -> dict:
    """Without what may differ between two evaluations: when, where and how they were made."""
    left_out = ("time", "command", "environment")
    provenance = {name: value for name, value in found["provenance"].items() if name not in left_out}
    return {**found, "provenance": provenance}


def chunks(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("chunk-*")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    """60 small images, which are four chunks of answers."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(60):
        place = folder / LABELS[index % 3]
        place.mkdir(exist_ok=True)
        noise(9, 9, seed=index).save(place / f"{index}.png")
    return str(folder)


def test_a_model_and_its_teacher_are_evaluated_beside_others(tmp_path, pictures, capsys):
    model = str(our_folder(tmp_path / "runs" / "one"))
    other = str(our_folder(tmp_path / "others" / "one", "cait_xxs24_224", num_hidden_layers=1))
    convnet = randomise(resnet())
    convnet.config.id2label = dict(enumerate(reversed(LABELS)))
    teacher = str(saved(tmp_path / "teacher", type(convnet)(convnet.config)))
    assert evaluate(["--model", model, "--compare", other, "--teacher", teacher, "--images_dir", pictures]) == 0
    report = Path(model) / "report"
    provenance, printed = results(report)["provenance"], capsys.readouterr().out
    assert [about["name"] for about in provenance["models"]] == ["runs/one", "others/one", "teacher"]
    assert all(str(tmp_path) not in json.dumps(about) for about in provenance["models"])
    assert provenance["environment"]["libraries"].keys() >= {"scikit-learn", "scipy", "torch", "transformers"}
    assert "hf-deit evaluate --model" in provenance["command"] and provenance["images"]["num_images"] == 60
    paths = sorted(map(str, Path(pictures).rglob("*.png")))
    said = [answer[0]["label"] for answer in pipeline("image-classification", model=teacher)(paths)]
    top1 = np.mean([label == Path(path).parent.name for label, path in zip(said, paths, strict=True)])
    lines = printed.splitlines()
    row = lines[lines.index("teacher") + 1]
    assert row.startswith("  its answer") and f"{top1:.4f} [" in row and 0 < top1 < 1
    assert max(map(len, lines[: lines.index("teacher") + 2])) < 80  # of a terminal, which pytest has not
    assert lines[0].startswith("  images    60 images in the folder") and "  teacher   teacher, ResNet" in printed
    assert "both heads, mean of logits (its own)" in printed and str(report) in printed


def test_two_processes_give_what_one_gives(tmp_path, pictures):
    model = str(our_folder(tmp_path / "model"))
    line = ["--model", model, "--images_dir", pictures, "--use_cpu", "--batch_size", "7", "--num_workers", "0"]
    assert evaluate([*line, "--output_dir", str(tmp_path / "one")]) == 0
    (tmp_path / "script.py").write_text(_SMALL_CHUNKS)
    launch(tmp_path / "script.py", *line, "--output_dir", tmp_path / "two")
    one, two = (results(tmp_path / name) for name in ("one", "two"))
    assert one["provenance"]["environment"]["num_processes"] == 1
    assert two["provenance"]["environment"]["num_processes"] == 2
    assert without_circumstances(one) == without_circumstances(two)
    assert len(chunks(tmp_path / "one")) == 4
    assert chunks(tmp_path / "one") == chunks(tmp_path / "two")


def test_a_stopped_evaluation_goes_on_with_the_same_command(tmp_path, pictures, capsys, monkeypatch):
    line = ["--model", str(our_folder(tmp_path / "model")), "--images_dir", pictures, "--num_workers", "0"]
    assert evaluate([*line, "--output_dir", str(tmp_path / "whole")]) == 0
    write = stored_answers.AnswerFolder.write

    def stopped(folder, chunk, content):
        if chunk:
            raise KeyboardInterrupt
        write(folder, chunk, content)

    out = [*line, "--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(stored_answers.AnswerFolder, "write", stopped)
        assert evaluate(out) == 130
    assert "the same command goes on" in capsys.readouterr().err and not (tmp_path / "out" / "results.json").exists()
    written = []
    monkeypatch.setattr(stored_answers.AnswerFolder, "write", lambda *args: (written.append(args[1]), write(*args))[1])
    assert evaluate(out) == 0 and written == [1, 2, 3]
    assert chunks(tmp_path / "out") == chunks(tmp_path / "whole")
    assert without_circumstances(results(tmp_path / "out")) == without_circumstances(results(tmp_path / "whole"))
    assert evaluate([*out, "--drop_answers"]) == 0 and written == [1, 2, 3]  # nothing is asked again
    assert not chunks(tmp_path / "out")


def test_images_that_cannot_be_decoded_are_told_and_left_out(tmp_path, capsys):
    folder = tmp_path / "images"
    for index in range(12):
        place = folder / LABELS[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        noise(20, 20, seed=index).save(place / f"{index:02}.png")
    whole = (folder / "b" / "04.png").read_bytes()
    (folder / "b" / "04.png").write_bytes(whole[: len(whole) // 2])
    line = ["--model", str(our_folder(tmp_path / "model")), "--images_dir", str(folder)]
    assert evaluate(line) == 2 and "04.png" in capsys.readouterr().err
    assert evaluate([*line, "--on_bad_image", "skip"]) == 0
    skipped = results(tmp_path / "model" / "report")["provenance"]["skipped_images"]
    assert [Path(name).name for name in skipped] == ["04.png"]
    printed = capsys.readouterr().out
    assert "left out of every number, as they cannot be decoded: 1 image" in printed
    report = (tmp_path / "model" / "report" / "report.md").read_text()
    assert "Measured on 12 images in the folder images, of which 1 image cannot be decoded" in report
    assert results(tmp_path / "model" / "report")["provenance"]["images"]["num_images"] == 11


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([], "give --model, a folder or a Hub id, or --runs"),
        (["--compare", "a", *DIGITS], "with nothing: give --model"),
        (["--model", "m", "--split", "x", "--crop_ratio", "0"], "crop_ratio must lie in (0, 1]"),
        (["--model", "m", "--batch_size", "0"], "batch_size must lie in"),
        (["--model", "m", "--num_workers", "-1"], "num_workers must lie in"),
        (["--model", "m", "--sections", "acuracy"], "did you mean 'accuracy'?"),
        (["--model", "m", "--weights", "emma"], "did you mean 'ema'?"),
        (["--model", "m", "--on_bad_image", "ignore"], "on_bad_image must be one of stop, skip"),
        (["--model", "m", "--sections", "run_curves"], "give --runs"),
        (["--model", "m", "--imagesdir", "x"], "--imagesdir"),
        (["--model", "m", "--explain_images", "25"], "explain_images must lie in [1, 24]"),
        (["--model", "m", "--explain_images", "2", "--explain_rows", "0"], "--explain_rows chooses them: give one"),
        (["--model", "m", "--explain_rows", *["1"] * 25], "at most 24 images, got 25"),
        (["--model", "m", "--sections", "tokens", "--attention_heads"], "give --sections attention, too"),
        (["--model", "m", "--runs", "/no/run"], "there is no folder '/no/run'"),  # before anything is asked
        (["--runs", ".", "--explain_rows", "0"], "--explain_rows is of the section attention"),
        (
            ["--model", "m", "--speed_batch_size", "8"],
            "is of the section speed, which is not there: give --speed",
        ),
        (["--model", "/no/such/folder", *DIGITS], "there is no folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, capsys, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    assert evaluate(line) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_images_are_explained_by_the_numbers_that_their_data_give_them(tmp_path, capsys):
    folder = tmp_path / "images"
    for index in range(6):
        place = folder / LABELS[0]
        place.mkdir(parents=True, exist_ok=True)
        noise(20, 20, seed=index).save(place / f"{index}.png")
    (folder / LABELS[0] / "1.png").write_bytes(b"none")
    line = ["--model", str(our_folder(tmp_path / "model")), "--images_dir", str(folder), "--on_bad_image", "skip"]
    line += ["--sections", "attention", "--check_images", "none"]
    assert evaluate([*line, "--explain_rows", "6"]) == 2
    assert "--explain_rows: there is no row 6 among" in capsys.readouterr().err
    assert evaluate([*line, "--explain_rows", "4", "1", "2", "--attention_heads"]) == 0
    found = results(tmp_path / "model" / "report")["sections"]["attention"]
    assert [image["row"] for image in found["images"]] == [4, 2]
    assert [Path(image["image"]).name for image in found["images"]] == ["4.png", "2.png"]
    assert (tmp_path / "model" / "report" / "attention_heads.png").exists()


def test_classes_that_do_not_match_are_refused_before_anything_is_asked(tmp_path, capsys):
    model = str(our_folder(tmp_path / "model"))
    folder = tmp_path / "images"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / name / "1.png")
    assert evaluate(["--model", model, "--images_dir", str(folder)]) == 2
    assert "'ape'" in capsys.readouterr().err and not (Path(model) / "report").exists()


def test_where_the_report_lies_and_what_it_has():
    def arguments(**given: object) -> EvaluationArguments:
        return EvaluationArguments(**given)

    here = str(ROOT / "tests")
    assert arguments(model=here).report_dir == f"{here}/report"
    assert arguments(model="someone/model").report_dir == arguments(runs=["a"]).report_dir == "report"
    assert arguments(model=here, output_dir="x").report_dir == "x"
    usual = arguments(model="m")
    assert [usual.wants(name) for name in ("accuracy", "speed", "run_curves")] == [True, False, False]
    assert arguments(model="m", speed=True, sections=["tokens"]).wants("speed")
    assert not arguments(model="m", sections=["tokens"]).wants("accuracy")
    with pytest.raises(InputError, match="sections must be one of"):
        arguments(model="m", sections=["x"])
