"""`hf-deit export`: one command from a model to files that answer as it does, or a line that says why not."""

import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from support.checkpoints import LABELS, edited, everything_in, our_folder
from support.images import class_folders, noise

from hf_deit.commands import export as command
from hf_deit.commands.export import main
from hf_deit.data.decoding import decode_image
from hf_deit.errors import InputError
from hf_deit.evaluation.classifiers.classifiers import pixels_of
from hf_deit.export import exporting, requirements
from hf_deit.export.arguments import ExportArguments
from hf_deit.export.parity import odd_images
from hf_deit.export.programs import onnx_program
from hf_deit.export.quiet import quiet
from hf_deit.hub.export_record import ExportRecord


@pytest.fixture(scope="module", autouse=True)
def few_odd_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(odd_images, "NUM_ODD_IMAGES", 12)
        patch.setattr(odd_images, "_LARGE", ((50, 40),))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(our_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    """Nine images in folders of classes, of which one is broken and one has a class of its own name in the model."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(9):
        place = folder / LABELS[number % 2]
        place.mkdir(exist_ok=True)
        noise(30, 40, seed=number).save(place / f"{number}.png")
    (folder / "a" / "0.png").write_bytes((folder / "a" / "0.png").read_bytes()[:400])
    return str(folder)


def test_a_model_is_exported_with_its_proof(tmp_path, model, pictures, capsys, monkeypatch):
    out = tmp_path / "out"
    line = ["--model", model, "--to", "onnx", "--check_dir", pictures, "--output_dir", str(out)]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "onnx", "preprocessor_config.json"]
    names = ["classifier.onnx", "export.json", "model.onnx"]
    assert sorted(path.name for path in (out / "onnx").iterdir()) == names
    record = ExportRecord.from_dict(json.loads((out / "onnx" / "export.json").read_text()))
    assert record.format == "onnx" and list(record.labels) == LABELS and len(record.files) == 2
    (parity,) = record.parity
    assert parity.without_torch and parity.num_images == 8 and parity.num_labelled == 8
    assert list(parity.left_out) == [os.path.join("a", "0.png")] and parity.agreement["value"] == 1
    assert parity.accuracy == parity.trained_accuracy and parity.cost["value"] == 0
    assert parity.odd_images["num_images"] == 12
    for words in ("takes images, gives probabilities", "without torch", "left out", "a/0.png", "it costs 0.00 points"):
        assert words in printed
    assert max(map(len, printed.splitlines())) < 240
    usage = re.search(r"^use \(pip install onnxruntime numpy pillow\):\n(.*)", printed, re.MULTILINE | re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    for image in _as_people_have_them():
        image.save("image.png", exif=image.getexif())
        exec(textwrap.dedent(usage), {})
        label, probability = capsys.readouterr().out.split()
        expected = _answer(model, "image.png")
        assert label == LABELS[expected.argmax()] and float(probability) == pytest.approx(expected.max(), abs=1e-4)


def _as_people_have_them() -> Iterator[Image.Image]:
    """Transparent, with something else under it; grey; upright by its EXIF data alone."""
    red, transparent = Image.new("RGBA", (60, 40), (255, 0, 0, 0)), noise(60, 40, seed=1).convert("RGBA")
    transparent.paste(red, (0, 0))
    yield transparent
    yield noise(60, 40, seed=2).convert("L")
    turned = Image.fromarray(np.linspace([[0, 60, 250]] * 40, [[255, 30, 0]] * 40, 60).astype(np.uint8))
    turned.getexif()[0x0112] = 6
    yield turned


def _answer(model: str, path: str) -> np.ndarray:
    """The probabilities of a model, of an image as training decodes it."""
    classifier = command.load_source(model).classifier
    pixels = pixels_of(classifier.processor, decode_image({"path": path}, path))[None]
    with torch.no_grad():
        logits = classifier.model(pixel_values=pixels, **classifier.forward_options).logits
    return logits.softmax(dim=-1)[0].numpy()


@pytest.fixture(scope="module")
def programs(model, tmp_path_factory):
    """The files of an export, which are made once."""
    folder = tmp_path_factory.mktemp("programs")
    with quiet():
        source = command.load_source(model)
        onnx_program.export_onnx(source, str(folder))
    return folder


@pytest.fixture
def copies(programs, monkeypatch):
    """Makes an export of files that are there."""

    def program(source, folder):
        for path in programs.iterdir():
            (Path(folder) / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(exporting, "_function", lambda place: program)
    return program


def test_an_export_lies_in_the_models_folder_and_takes_the_place_of_an_earlier_one(tmp_path, copies, capsys):
    folder = our_folder(tmp_path / "tiny")
    before = everything_in(folder)
    line = ["--model", str(folder), "--to", "onnx"]
    assert main(line) == 0 and "built-in images" in capsys.readouterr().out
    after = everything_in(folder)
    assert before.items() < after.items() and {Path(path).parent.name for path in after.keys() - before.keys()} == {
        "onnx",
        "tiny",
    }
    record = ExportRecord.from_dict(json.loads((folder / "onnx" / "export.json").read_text()))
    assert record.parity[0].odd_images is None and record.parity[0].cost is None
    assert main(line) == 0 and "in the place of an earlier export" in capsys.readouterr().out


def test_an_export_that_answers_otherwise_fails_and_what_was_there_stays(tmp_path, copies, capsys, monkeypatch):
    folder = our_folder(tmp_path / "tiny")
    assert main(["--model", str(folder), "--to", "onnx"]) == 0
    before = everything_in(folder)

    def wrong(source, place):
        copies(source, place)
        model = onnx.load(Path(place) / "classifier.onnx")
        softmax = next(node for node in model.graph.node if node.output[:] == ["probabilities"])
        softmax.op_type = "Neg"
        del softmax.attribute[:]
        onnx.save_model(model, Path(place) / "classifier.onnx")

    monkeypatch.setattr(exporting, "_function", lambda place: wrong)
    assert main(["--model", str(folder), "--to", "onnx"]) == 1
    error = capsys.readouterr().err
    assert "onnx/classifier.onnx does not answer as the model does" in error and "by the trained model" in error
    assert everything_in(folder) == before


def refusal(capsys, *line: str) -> str:
    assert main(list(line)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--model"),
        (["--model", "m"], "give --to, with one or more of onnx, openvino, executorch, torch"),
        (["--model", "m", "--to", "onnx", "outputs/m"], "--to must be one of"),
        (["m", "--to", "onnx"], "unrecognized arguments: m; did you mean --model m?"),
        (["--model", "m", "--to", "ONNX"], "did you mean 'onnx'?"),
        (
            ["--model", "m", "--to", "onnx,openvino"],
            "with spaces between them, got 'onnx,openvino': --to onnx openvino",
        ),
        (
            ["--model", "m", "--to", "onnx", "--int8"],
            "--int8: expected one argument (int8 files, too: dynamic, static)",
        ),
        (["--model", "m", "--to", "tflite"], "--to must be one of onnx, openvino, executorch, torch, got 'tflite'"),
        (["--model", "m", "--to", "open_vino"], "did you mean 'openvino'?"),
        (["--model", "m", "--to", "onnx", "--int8", "dynamc"], "did you mean 'dynamic'?"),
        (["--model", "m", "--to", "onnx", "--exclude_layers", "head"], "give --int8, too"),
        (["--model", "m", "--to", "onnx", "--calibration_dir", "x"], "'x' is for --int8 static"),
        (["--model", "m", "--to", "torch", "--int8", "dynamic"], "is not for --to torch"),
        (["--model", "m", "--to", "onnx", "--check_images", "0"], "check_images must lie in"),
        (["--model", "m", "--to", "onnx", "--weights", "both"], "--weights must be one of published, raw, ema"),
        (["--model", "m", "--to", "onnx", "--chek_dir", "x"], "did you mean '--check_dir'?"),
        (["--model", "m", "--to", "onnx", "--check_dir", "nowhere"], "--check_dir: there is no folder 'nowhere'"),
        (["--model", "./nowhere", "--to", "onnx"], "nowhere"),
        (
            ["--model", "no/where", "--to", "onnx"],
            "'no/where' as an image classifier: there is no such folder, none of",
        ),
    ],
)
def test_wrong_options_are_refused_with_what_to_do(capsys, options, words):
    assert words in refusal(capsys, *options)


def test_a_missing_extra_is_named_with_its_line_before_a_model_is_loaded(capsys, monkeypatch, model):
    monkeypatch.setattr(command, "load_source", None)
    monkeypatch.setitem(requirements.MODULES, "export", ("onnx", "a_package_that_is_not_there"))
    words = refusal(capsys, "--model", model, "--to", "onnx")
    assert "a_package_that_is_not_there" in words and "pip install 'hf_deit[export]'" in words


def test_a_place_that_holds_something_else_is_refused_before_a_model_is_loaded(tmp_path, capsys, monkeypatch, model):
    monkeypatch.setattr(command, "load_source", None)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    words = refusal(capsys, "--model", model, "--to", "onnx", "--output_dir", str(tmp_path))
    assert "model.onnx" in words and "another --output_dir" in words


def test_a_model_without_names_of_its_labels_is_refused(tmp_path, capsys):
    folder = edited(our_folder(tmp_path / "m"), id2label={str(i): f"LABEL_{i}" for i in range(3)}, label2id=None)
    words = refusal(capsys, "--model", str(folder), "--to", "onnx")
    assert "no names for its 3 labels" in words and "id2label" in words
    assert not (folder / "onnx").exists()


@pytest.fixture
def proven_on(monkeypatch):
    """What an export would be proven on."""

    def images(*line: str):
        found = []
        monkeypatch.setattr(command, "export", lambda *_, images, **__: found.append(images) or [])
        assert main([*line, "--to", "onnx"]) == 0
        return found[0]

    return images


def test_images_to_check_may_have_no_labels_or_some_of_the_classes(tmp_path, model, proven_on):
    for number in range(3):
        noise(9, 9, seed=number).save(tmp_path / f"{number}.png")
    images = proven_on("--model", model, "--check_dir", str(tmp_path))
    assert len(images) == 3 and not images.labels.is_labelled.any() and list(images.labels.names) == LABELS
    folder = class_folders(tmp_path / "some", {"b": 2, "c": 1})
    images = proven_on("--model", model, "--check_dir", folder)
    assert images.labels.values.tolist() == [1, 1, 2] and list(images.labels.names) == LABELS


@pytest.mark.parametrize("names", [["a", "b", "x"], ["a", "b", "c", "d"], ["x", "y"]])
def test_folders_of_other_classes_are_refused(tmp_path, model, capsys, names):
    folder = class_folders(tmp_path / "other", dict.fromkeys(names, 1))
    words = refusal(capsys, "--model", model, "--to", "onnx", "--check_dir", folder)
    assert "the images of --check_dir cannot be used" in words and "without labels" in words


def test_a_folder_without_images_and_one_of_broken_ones_are_refused(tmp_path, model, capsys, copies):
    words = refusal(capsys, "--model", model, "--to", "onnx", "--check_dir", str(tmp_path))
    assert "the images of --check_dir cannot be used" in words
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    words = refusal(capsys, "--model", model, "--to", "onnx", "--check_dir", str(tmp_path))
    assert "x.png" in words or "1 image" in words


def test_a_run_is_proven_on_the_images_that_it_was_validated_with(tmp_path, proven_on, capsys):
    folder = our_folder(tmp_path / "run", labels=[str(digit) for digit in range(10)])
    (folder / "recipe.yaml").write_text("dataset_name: sklearn:digits\n")
    images = proven_on("--model", str(folder))
    assert len(images) == 360 and "validated with" in images.words
    (folder / "recipe.yaml").write_text("train_dir: gone\nvalidation_dir: also-gone\n")
    assert proven_on("--model", str(folder)) is None


def test_an_export_lies_where_its_model_can_be_told_from_others(tmp_path, monkeypatch):
    def folder(model: str, **options) -> str:
        return ExportArguments(model, ["onnx"], **options).folder

    own = str(tmp_path)
    name = tmp_path.name
    assert folder(own) == own and folder(own, output_dir="x") == "x"
    assert folder(own, weights="ema") == os.path.join("exports", f"{name}-ema")
    assert folder("someone/some-deit@v1.0") == os.path.join("exports", "some-deit")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert folder(own) == os.path.join("exports", name)
    assert ExportArguments(own, ["torch", "onnx", "torch"]).formats == ("onnx", "torch")


def test_averaged_weights_do_not_take_the_place_of_those_that_are_published(tmp_path, model, capsys, monkeypatch):
    """What was loaded has other weights than the folder that it would lie in."""
    other = our_folder(tmp_path / "other", hidden_size=32)
    with pytest.raises(InputError, match="a model with other weights"):
        exporting.export(command.load_source(model), str(other), ["onnx"], images=None, most_images=1)
    assert not (other / "onnx").exists()


def test_the_folder_of_runs_is_told_from_that_of_a_model(tmp_path, model, capsys):
    os.symlink(model, tmp_path / "tiny")
    words = f"has no config.json, so it is that of no model: one of the models in it is {str(tmp_path / 'tiny')!r}"
    assert words in refusal(capsys, "--model", str(tmp_path), "--to", "onnx")
