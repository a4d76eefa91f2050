"""The proof of an export finds whatever lets it answer otherwise than its model, and says where."""

import dataclasses
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from support.checkpoints import LABELS
from support.export_sources import sure_source
from support.images import NAMES, broken, table

from hf_deit.data.decoding import decode_image
from hf_deit.errors import ExportError, InputError
from hf_deit.evaluation.images.images import evaluation_images
from hf_deit.evaluation.images.labels import Labels
from hf_deit.export import exporting
from hf_deit.export.formats import BY_NAME
from hf_deit.export.parity import odd_images, separate_process
from hf_deit.export.parity.answering import decode
from hf_deit.export.parity.checked_images import CheckedImages, checked_images
from hf_deit.export.parity.comparison import check_float, compare, parity_record, report_in_words
from hf_deit.export.parity.odd_images import write_odd_images
from hf_deit.export.parity.separate_process import ExportedAnswers, ask_exported
from hf_deit.export.programs import onnx_program
from hf_deit.export.quiet import quiet

ONNX = BY_NAME["onnx"]
LARGE = odd_images._LARGE


@pytest.fixture(scope="module", autouse=True)
def fewer_and_smaller():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(odd_images, "NUM_ODD_IMAGES", 64)
        patch.setattr(odd_images, "_LARGE", ((500, 400), (300, 200)))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return sure_source(tmp_path_factory.mktemp("models") / "sure")


@pytest.fixture(scope="module")
def core(source) -> onnx.ModelProto:
    with quiet():
        return onnx_program.core_model(source)


@pytest.fixture(scope="module")
def proof(source, tmp_path_factory):
    return exporting._Proof(source, None, 500, str(tmp_path_factory.mktemp("proof")))


def written(folder: Path, core: onnx.ModelProto, preprocessing) -> str:
    onnx.save_model(onnx_program.with_preprocessing(core, preprocessing), folder / "classifier.onnx")
    return str(folder)


def with_last_node(core: onnx.ModelProto, operator: str, *others: onnx.TensorProto, **attributes) -> onnx.ModelProto:
    """The network with a node behind its logits."""
    changed = onnx.ModelProto()
    changed.CopyFrom(core)
    for node in changed.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
        node.input[:] = ["before" if name == "logits" else name for name in node.input]
    changed.graph.initializer.extend(others)
    names = ["before", *(other.name for other in others)]
    changed.graph.node.append(helper.make_node(operator, names, ["logits"], **attributes))
    return changed


def test_an_export_that_is_right_passes(tmp_path, source, core, proof):
    compared, answers = proof.of(ONNX, written(tmp_path, core, source.preprocessing), "classifier.onnx")
    check_float("classifier.onnx", compared)
    assert answers.without_torch and set(answers.runtime) == {"python", "onnxruntime"}
    assert compared[0].num_images == 64 and compared[0].agreement.value == 1 and not compared[0].differing
    assert compared[0].usual_difference < 0.005
    assert {LABELS[best] for best in answers.probabilities.argmax(axis=1)} == set(LABELS)


WRONG = {
    "filter": {"filter": "bilinear"},
    "no antialiasing": {"filter": "nearest"},
    "statistics": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "scale": {"scale": 1.0},
    "channel order": {"channel_order": "BGR"},
    "crop": {"size": (40, 40)},
    "squeezed": {"resize": "exact"},
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_preprocessing_is_found(tmp_path, source, core, proof, what):
    wrong = dataclasses.replace(source.preprocessing, **WRONG[what])
    assert wrong != source.preprocessing
    compared, _ = proof.of(ONNX, written(tmp_path, core, wrong), "classifier.onnx")
    with pytest.raises(ExportError, match=r"classifier\.onnx does not answer as the model does"):
        check_float("classifier.onnx", compared)


def test_another_order_of_labels_is_found(tmp_path, source, core, proof):
    order = onnx.numpy_helper.from_array(np.array([1, 0, 2]), "order")
    wrong = with_last_node(core, "Gather", order, axis=1)
    compared, _ = proof.of(ONNX, written(tmp_path, wrong, source.preprocessing), "classifier.onnx")
    with pytest.raises(ExportError, match="another best label") as error:
        check_float("classifier.onnx", compared)
    named = compared[0].differing[0]
    assert named["image"] in str(error.value) and {named["trained"], named["exported"]} <= set(LABELS)
    assert f"{named['trained']} ({named['trained_probability']:.3f}) by the trained model" in str(error.value)


def test_logits_in_place_of_probabilities_are_found_though_the_labels_agree(tmp_path, source, core, proof):
    wrong = with_last_node(core, "Add", onnx.numpy_helper.from_array(np.float32(0.0), "none"))
    model = onnx_program.with_preprocessing(wrong, source.preprocessing)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax" and "probabilities" in node.output)
    softmax.op_type = "Identity"
    del softmax.attribute[:]
    onnx.save_model(model, tmp_path / "classifier.onnx")
    compared, _ = proof.of(ONNX, str(tmp_path), "classifier.onnx")
    assert compared[0].agreement.value == 1
    with pytest.raises(ExportError, match="one in ten"):
        check_float("classifier.onnx", compared)


@pytest.mark.parametrize("heads", [["cls_logits", "distillation_logits"], ["cls_logits"], ["distillation_logits"]])
def test_another_fusion_of_the_heads_is_found(tmp_path, source, core, proof, heads):
    """The model's is "softmax", from which the mean of the logits parts least."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(core)
    for node in wrong.graph.node:
        node.output[:] = ["right" if name == "logits" else name for name in node.output]
    wrong.graph.node.append(helper.make_node("Mean", heads, ["logits"]))
    compared, _ = proof.of(ONNX, written(tmp_path, wrong, source.preprocessing), "classifier.onnx")
    with pytest.raises(ExportError, match="does not answer as the model does"):
        check_float("classifier.onnx", compared)


def blocked_process(code: str, blocked: tuple[str, ...]) -> subprocess.CompletedProcess:
    start = f"from hf_deit.export.parity.answering import block_imports; block_imports({blocked!r}); {code}"
    return subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)


def test_the_answering_process_cannot_import_what_the_model_was_trained_with():
    blocked = ONNX.runtime.blocked
    assert {"torch", "transformers", "timm", "hf_deit.models"} <= set(blocked)
    names = ("torch", "torch.nn", "transformers", "timm", "hf_deit.models.modeling_deit")
    assert all(map(find_spec, names))  # without that, each of them can be
    code = (
        f"import importlib\nfor name in {names}:\n    try:\n        importlib.import_module(name)\n"
        "    except ImportError:\n        continue\n    print('imported', name)\n"
        "import hf_deit.export.parity.running, onnxruntime; print('runs')"
    )
    done = blocked_process(f"exec({code!r})", blocked)
    assert done.stdout.splitlines() == ["runs"], done.stderr


def test_what_was_imported_before_cannot_be_kept_away_and_is_told():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import colorsys; from hf_deit.export.parity.answering import block_imports; block_imports(['colorsys'])",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "colorsys was imported before" in done.stderr


def test_runtimes_that_are_torch_itself_run_without_what_the_model_was_made_with():
    for name in ("executorch", "torch"):
        blocked = BY_NAME[name].runtime.blocked
        assert {"transformers", "timm", "hf_deit.models"} <= set(blocked) and "torch" not in blocked


def asked(folder: Path, runner: str, images: list[np.ndarray], monkeypatch) -> ExportedAnswers:
    """What a runner of this test's own answers to images."""
    (folder / "own_runners.py").write_text(RUNNERS)
    start = "import hf_deit.export.parity.running as running; from own_runners import *; "
    start += f"running.own = {runner}; {separate_process._START}"
    monkeypatch.setattr(separate_process, "_START", start)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    paths = [str(folder / f"{number}.png") for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    runtime = dataclasses.replace(ONNX.runtime, runner="own", packages=("numpy", "a-package-that-is-not-there"))
    names = [f"the image {number}" for number in range(len(images))]
    return ask_exported(runtime, str(folder), "x", paths=paths, names=names, num_labels=2, scratch=str(folder))


RUNNERS = """
import os, signal
import numpy as np

def mean(folder, file):
    return lambda images: np.stack([images.mean(axis=(1, 2, 3)), np.full(len(images), len(images))], axis=1)

def dies(folder, file):
    def answer(images):
        if images.max() > 100:
            os.kill(os.getpid(), signal.SIGSEGV)
        return mean(folder, file)(images)
    return answer

def fails(folder, file):
    def answer(images):
        if images.max() > 100:
            raise RuntimeError("no\\nsuch size")
        return mean(folder, file)(images)
    return answer

def not_finite(folder, file):
    return lambda images: np.where(images.max() > 100, np.nan, mean(folder, file)(images))

def logits_of_others(folder, file):
    return lambda images: np.zeros((len(images), 3))

def needs_torch(folder, file):
    import torch
"""


def grey(level: int, size: int = 4) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def test_images_of_one_size_are_answered_together_in_their_order(tmp_path, monkeypatch):
    images = [grey(level) for level in range(11)] + [grey(11, 5), grey(12)]
    answers = asked(tmp_path, "mean", images, monkeypatch)
    assert answers.probabilities[:, 0].tolist() == list(range(13))
    assert answers.probabilities[:, 1].tolist() == [8] * 8 + [3] * 3 + [1, 1]
    assert answers.runtime.keys() == {"python", "numpy"}


@pytest.mark.parametrize(
    ("runner", "words"),
    [
        ("dies", r"fails at the image 2: its process died \(SIGSEGV\)"),
        ("fails", "fails at the image 2: RuntimeError: no such size"),
        ("not_finite", "answers to the image 2 with numbers that are not finite"),
        ("logits_of_others", r"at the image 0: ValueError: it answers with the shape \(1, 3\), expected \(1, 2\)"),
        ("needs_torch", "before the first image: ModuleNotFoundError: torch is kept away"),
    ],
)
def test_what_keeps_an_export_from_answering_is_told_in_one_line(tmp_path, monkeypatch, runner, words):
    images = [grey(1), grey(2, 5), grey(200), grey(3, 5)]
    with pytest.raises(ExportError, match=words) as error:
        asked(tmp_path, runner, images, monkeypatch)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    write_odd_images(folder)
    return folder


def test_odd_images_are_always_the_same(tmp_path, odd):
    write_odd_images(tmp_path)
    files = sorted(path.name for path in odd.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir()) and len(files) == 64
    assert all((tmp_path / name).read_bytes() == (odd / name).read_bytes() for name in files)


def test_odd_images_are_of_every_kind(odd):
    modes, formats, turned, sizes = Counter(), Counter(), set(), set()
    for path in odd.iterdir():
        with Image.open(path) as image:
            transparent = "transparency" in image.info
            modes[image.mode + (" with transparency" if transparent else "")] += 1
            formats[image.format] += 1
            turned.add(image.getexif().get(274, 1))
            sizes.add(image.size)
    assert modes.keys() >= {"RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "P with transparency"}
    assert formats.keys() == {"JPEG", "PNG", "WEBP"} and turned == set(range(1, 9))
    assert {(1, 1), (31, 500), (500, 31), (300, 260)} <= sizes and (4000, 3000) in LARGE


def test_both_sides_decode_alike(odd):
    """The exported one as its users do, with Pillow alone."""
    for path in odd.iterdir():
        ours = np.asarray(decode_image({"path": str(path), "bytes": None}, path.name))
        assert np.array_equal(ours, decode(str(path))), path.name


def planted(trained, exported, labels=None, undecoded=None) -> tuple:
    """A comparison of answers that are given."""
    count = len(trained)
    data = table([0] * count)
    values = np.full(count, -1) if labels is None else np.array(labels)
    images = evaluation_images(data, Labels(tuple(NAMES), values), source={}, words="planted")
    checked = CheckedImages(images, ("",) * count, tuple(f"{row}.png" for row in range(count)))
    answers = ExportedAnswers(np.float32(exported), undecoded or {}, {"python": "3"}, True)
    return compare(checked, NAMES, (np.float32(trained), {}), answers), answers


def test_a_comparison_says_which_images_differ_and_what_it_costs():
    sure = [[0.9, 0.05, 0.05]] * 8
    trained = [*sure, [0.45, 0.44, 0.11], [0.1, 0.8, 0.1]]
    exported = [*sure, [0.44, 0.45, 0.11], [0.7, 0.2, 0.1]]
    compared, answers = planted(trained, exported, labels=[0] * 9 + [1])
    assert compared.agreement.value == 0.8 and compared.largest_difference == pytest.approx(0.6)
    tie, other = compared.differing
    assert tie["image"] == "8.png" and (tie["trained"], tie["exported"]) == ("ape", "bee")
    assert tie["margin"] == pytest.approx(0.01) and other["difference"] == pytest.approx(0.6)
    assert compared.trained_accuracy.value == 1 and compared.accuracy.value == 0.8
    assert compared.cost.value == pytest.approx(0.2) and compared.cost.low < 0.2 < compared.cost.high
    with pytest.raises(
        ExportError, match=r"8\.png: ape \(0\.450\) by the trained model, bee \(0\.450\) by the export"
    ):
        check_float("x", [compared])
    with pytest.raises(ExportError, match="at 1 of them the model's own two best labels are closer"):
        check_float("x", [compared])
    words = report_in_words(parity_record("int8-dynamic", compared, None, answers))
    assert "it costs 20.00 points [" in words and "80.00%" in words


def test_one_image_in_two_hundred_may_differ_and_no_more():
    trained = [[0.9, 0.05, 0.05]] * 399 + [[0.4, 0.35, 0.25]] * 3
    good, _ = planted(trained, [*trained[:-2], *[[0.35, 0.4, 0.25]] * 2])
    check_float("x", [good])
    bad, _ = planted(trained, [*trained[:-3], *[[0.35, 0.4, 0.25]] * 3])
    with pytest.raises(ExportError, match="to 3 of 402 images"):
        check_float("x", [bad])


def test_images_without_labels_have_no_accuracy_and_those_left_out_count_nowhere():
    answers = [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]
    compared, _ = planted(answers, [[0.0, 1.0, 0.0], *answers[1:]], undecoded={0: "cut off"})
    assert compared.num_images == 2 and compared.agreement.value == 1 and compared.left_out == {"0.png": "cut off"}
    assert compared.accuracy is compared.cost is None and compared.largest_difference == 0 == compared.loss
    compared, _ = planted(answers, [answers[0], answers[0], answers[2]])
    assert compared.loss == pytest.approx(1 / 3)  # of agreement
    compared, _ = planted(answers, answers, labels=[0, -1, 1])
    assert compared.num_labelled == 2 and compared.accuracy.value == 0.5
    with pytest.raises(InputError, match=r"none of 2 images planted.* can be decoded"):
        planted(answers[:2], answers[:2], undecoded={0: "a", 1: "b"})


def test_images_are_taken_from_all_classes_and_labelled_by_the_models_order(tmp_path):
    images = evaluation_images(table([0] * 6 + [1] * 3 + [2] * 3), NAMES, source={}, words="there are")
    checked = checked_images(images, ("cat", "ape", "bee"), most=4, scratch=str(tmp_path))
    assert checked.labels.tolist() == [1, 1, 2, 0] and len(set(checked.paths)) == 4
    assert checked.images.words == "4 images, evenly spread over 12 images there are"
    for row, path in enumerate(checked.paths):
        assert np.array_equal(decode(path), np.asarray(checked.images.image(row)))
    with pytest.raises(InputError, match="cat"):
        checked_images(images, ("ape", "bee", "dog"), most=4, scratch=str(tmp_path))


def test_broken_images_are_left_out_of_every_number_and_named(tmp_path, source, core, monkeypatch):
    monkeypatch.setattr(odd_images, "NUM_ODD_IMAGES", 8)
    data = broken(table([0, 1, 2, 0], names=LABELS), [1])
    images = evaluation_images(data, LABELS, source={}, words="of which one is broken")
    proof = exporting._Proof(source, images, 500, str(tmp_path))
    compared, _ = proof.of(ONNX, written(tmp_path, core, source.preprocessing), "classifier.onnx")
    assert compared[0].num_images == 3 and list(compared[0].left_out) == ["row 1 of the images (1.png)"]
    assert compared[0].num_labelled == 3 and compared[1].words == "8 built-in images of odd sizes and kinds"


def test_int8_tells_what_it_costs_and_names_layers_and_does_not_fail(tmp_path, source, core, monkeypatch):
    monkeypatch.setattr(odd_images, "NUM_ODD_IMAGES", 8)
    data = table([0, 1, 2, 0, 1, 2], names=LABELS)
    images = evaluation_images(data, LABELS, source={}, words="there are")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "onnx").mkdir()
    folder = written(tmp_path / "onnx", core, source.preprocessing)
    proof = exporting._Proof(source, images, 500, str(tmp_path / "scratch"))
    right = proof._trained[0][0].argmax(axis=1)
    labelled = replace_labels(proof._images[0], right)
    monkeypatch.setattr(proof, "_images", [labelled, proof._images[1]])
    order = onnx.numpy_helper.from_array(np.array([1, 2, 0]), "order")

    def quantize(folder, name):
        wrong = with_last_node(core, "Gather", order, axis=1)
        model = onnx_program.with_preprocessing(wrong, source.preprocessing)
        onnx.save_model(model, Path(folder) / "classifier_quantized.onnx")
        return {"mode": "dynamic"}

    def costly(seen):
        assert seen.labels.values.tolist() == right.tolist()
        return {"layers_to_exclude": ["head"], "remaining_cost": 0.0, "suffices": True}

    int8 = exporting.Int8("int8-dynamic", quantize, costly)
    record = exporting._proven(source, "onnx", folder, proof, int8)
    one, other = record.parity
    assert (one.precision, other.precision) == ("float32", "int8-dynamic")
    assert one.cost["value"] == 0 and other.cost["value"] == 1 and other.accuracy["value"] == 0
    assert record.quantization == {
        "int8-dynamic": {"mode": "dynamic", "layers_to_exclude": ["head"], "remaining_cost": 0.0, "suffices": True}
    }
    precisions = {file.name: file.precision for file in record.files}
    assert precisions["classifier_quantized.onnx"] == "int8-dynamic" and precisions["classifier.onnx"] == "float32"


def replace_labels(checked: CheckedImages, values: np.ndarray) -> CheckedImages:
    images = dataclasses.replace(checked.images, labels=Labels(tuple(LABELS), values))
    return dataclasses.replace(checked, images=images)
