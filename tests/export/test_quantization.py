"""A classifier in int8 answers nearly as in float32; where it does not, the layers at fault are named.

Only layers' inputs and weights are quantised, on scales of real images that the proof does not count.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from hf_deit.commands.calibration_images import calibration_of
from hf_deit.data.digits import load_digits
from hf_deit.errors import InputError
from hf_deit.evaluation.images.images import evaluation_images
from hf_deit.evaluation.images.labels import Labels
from hf_deit.export.int8 import INT8, MODES, check_int8, int8_in_words
from hf_deit.export.parity.running import open_onnx
from hf_deit.export.programs import onnx_program, quantization, sensitivity
from hf_deit.export.programs.calibration import FEWEST_IMAGES, Calibration
from hf_deit.export.programs.layers import grouped, kept_in_float, layers_in_order, matching, weighted_layers
from hf_deit.export.programs.onnx_program import core_model, export_onnx
from hf_deit.export.programs.quantization import QuantizationSettings, quantize, quantize_onnx
from hf_deit.export.programs.sensitivity import layers_to_exclude
from hf_deit.export.programs.source import ExportSource, load_source
from hf_deit.hub.export_record import FORMATS
from tests.support import images, tiny

LAYERS = [
    "deit.layers.0.attention.q_proj",
    "deit.layers.0.mlp.fc1",
    "deit.layers.0.mlp.fc2",
    "deit.layers.1.mlp.fc1",
    "cls_classifier",
]


def _source(folder: Path, model: Any) -> ExportSource:
    model.save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return load_source(str(folder))


def _calibration(source: ExportSource, count: int = 48, **settings: Any) -> Calibration:
    return Calibration(tiny.digits(96)[0], "image", source.classifier, "digits", **{"num_images": count, **settings})


def _student(**settings: Any) -> Any:
    """Whose blocks say more than its patches, as a trained one's do."""
    model = tiny.student(**settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module", autouse=True)
def _converted_once() -> Iterator[None]:
    """The conversion takes seconds, and gives the same for the same model."""
    known: dict[int, tuple[ExportSource, onnx.ModelProto]] = {}

    def once(source: ExportSource) -> onnx.ModelProto:
        if id(source) not in known:
            known[id(source)] = source, core_model(source)
        model = onnx.ModelProto()
        model.CopyFrom(known[id(source)][1])
        return model

    with pytest.MonkeyPatch.context() as patch:
        for module in (onnx_program, quantization, sensitivity):
            patch.setattr(module, "core_model", once)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return _source(tmp_path_factory.mktemp("student"), _student())


@pytest.fixture(scope="module")
def exported(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    made = {}
    for mode in MODES:
        folder = tmp_path_factory.mktemp(mode)
        export_onnx(source, str(folder))
        settings = QuantizationSettings(mode)
        made[mode] = folder, quantize(source, str(folder), "onnx", _calibration(source), settings)
    return made


def _weights(path: Path) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def _pictures(count: int = 40) -> np.ndarray:
    return np.stack([np.asarray(image.convert("RGB")) for image in tiny.digits(96, count)[1]["image"]])


@pytest.mark.parametrize("mode", MODES)
def test_int8_answers_nearly_as_float(exported: dict[str, Any], mode: str) -> None:
    folder, _ = exported[mode]
    pictures = _pictures()
    expected, answer = (
        open_onnx(str(folder), file)(pictures) for file in ("classifier.onnx", "classifier_quantized.onnx")
    )
    assert 1e-5 < np.abs(answer - expected).max() < 0.1
    assert (answer.argmax(1) == expected.argmax(1)).mean() > 0.9
    model = onnx.load(folder / "model_quantized.onnx")
    assert [value.name for value in (*model.graph.input, *model.graph.output)][:2] == ["pixel_values", "logits"]
    assert model.metadata_props
    sizes = [(folder / name).stat().st_size for name in ("model_quantized.onnx", "model.onnx")]
    assert sizes[0] < 0.9 * sizes[1]


def test_only_what_layers_multiply_is_quantised(exported: dict[str, Any]) -> None:
    """Neither softmax, nor norms, nor the attention's products, nor the patch embedding, nor the preprocessing."""
    graph = onnx.load(exported["static"][0] / "classifier_quantized.onnx").graph
    makes = {name: node for node in graph.node for name in node.output}
    dequantized = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    users = [node for node in graph.node if any(one.output[0] in node.input for one in dequantized)]
    # Two layers of six linear ones, and two heads.
    assert len(users) == 2 * 6 + 2 and {node.op_type for node in users} <= {"MatMul", "Gemm"}
    for node in users:
        assert all(makes[name].op_type == "DequantizeLinear" for name in node.input[:2])
    convolution = next(node for node in graph.node if node.op_type == "Conv")
    assert convolution.input[1] not in makes
    for mode in MODES:  # as onnxruntime-web has them
        model = onnx.load(exported[mode][0] / "classifier_quantized.onnx")
        assert {node.domain for node in model.graph.node} == {""} and not model.functions


@pytest.mark.parametrize("mode", MODES)
def test_weights_take_seven_bits(exported: dict[str, Any], mode: str) -> None:
    """Eight would overflow where two products are added in 16 bits: 2 · 255 · 127 > 32767 ≥ 2 · 255 · 64."""
    weights = [one for one in _weights(exported[mode][0] / "model_quantized.onnx").values() if one.dtype == np.int8]
    matrices = [one for one in weights if one.ndim == 2]
    assert len(matrices) >= 10 and max(np.abs(one.astype(int)).max() for one in matrices) in (63, 64)


def test_the_record_says_how_it_was_calibrated(exported: dict[str, Any]) -> None:
    static, dynamic = exported["static"][1], exported["dynamic"][1]
    assert static["calibration"] == {"images": "digits", "num_images": 48, "num_skipped": 0, "seed": 0}
    assert dynamic["calibration"] is None
    for facts in (static, dynamic):
        assert (
            facts["num_quantized_layers"] == 14 and facts["float_layers"] == [] and "onnxruntime" in facts["versions"]
        )


def test_excluded_layers_stay_float(source: ExportSource, exported: dict[str, Any], tmp_path: Path) -> None:
    settings = QuantizationSettings("static", ("layers.1.mlp", "cls_classifier"))
    facts = quantize_onnx(source, str(tmp_path), _calibration(source), settings)
    left_out = ["deit.layers.1.mlp.fc1", "deit.layers.1.mlp.fc2", "cls_classifier"]
    assert facts["float_layers"] == left_out and facts["num_quantized_layers"] == 11
    model = onnx.load(tmp_path / "model_quantized.onnx")
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    products = {node.name.rpartition("/")[0]: node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")}
    for layer in left_out:
        assert weights[products[layer].input[1]] == onnx.TensorProto.FLOAT


def test_nodes_are_named_as_modules(source: ExportSource) -> None:
    layers = list(weighted_layers(onnx_program.core_model(source)).values())
    assert set(LAYERS) <= set(layers) <= {name for name, _ in source.classifier.model.named_modules()}
    assert sorted(layers_in_order(source.classifier).linear) == sorted(layers)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("deit.layers.0.mlp", LAYERS[1:3]),
        ("layers.0.mlp", LAYERS[1:3]),
        ("layers.*.mlp.fc1", [LAYERS[1], LAYERS[3]]),
        ("fc2", [LAYERS[2]]),
        ("cls_classifier", [LAYERS[4]]),
        ("deit", LAYERS[:4]),
    ],
)
def test_patterns_mean_layers(pattern: str, meant: list[str]) -> None:
    assert matching([pattern], LAYERS) == meant


@pytest.mark.parametrize("pattern", ["deit.layers.0.mpl", "fc", "layers.7", ""])
def test_a_pattern_that_means_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match=f"no layer that int8 would change is called {pattern!r}. There are .*deit"):
        matching([pattern], LAYERS)


def test_one_layer_at_least_becomes_int8() -> None:
    assert kept_in_float(["layers.0", "cls_classifier"], LAYERS) == [*LAYERS[:3], LAYERS[4]]
    with pytest.raises(InputError, match="no layer is left for int8"):
        kept_in_float(["deit", "cls_classifier"], LAYERS)


def test_layers_are_grouped_by_their_modules() -> None:
    assert list(grouped(LAYERS, 9)) == ["deit.layers.0.attention", "deit.layers.0.mlp", "deit.layers.1.mlp", LAYERS[4]]
    assert list(grouped(LAYERS, 3)) == ["deit.layers.0", "deit.layers.1", LAYERS[4]]
    assert list(grouped(LAYERS, 1)) == ["deit", LAYERS[4]]  # what stands apart stays apart


def test_a_layer_that_int8_breaks_is_named(
    source: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unit of an MLP gives thousands, to which the next layer does not listen: the scale drowns all others."""
    core = onnx_program.core_model(source)
    tensors = {tensor.name: tensor for tensor in core.graph.initializer}
    for layer, place, value in (("fc1/Add", np.s_[5], 3e4), ("fc2/MatMul", np.s_[5, :], 0)):
        node = next(node for node in core.graph.node if node.name == f"deit.layers.1.mlp.{layer}")
        tensor = next(tensors[name] for name in node.input if name in tensors)
        changed = numpy_helper.to_array(tensor).copy()
        changed[place] = value
        core.graph.initializer.append(numpy_helper.from_array(changed, f"planted {layer}"))  # others may share it
        node.input[list(node.input).index(tensor.name)] = f"planted {layer}"
    for module in (onnx_program, quantization, sensitivity):
        monkeypatch.setattr(module, "core_model", lambda source: core)
    settings = QuantizationSettings("static")
    calibration = _calibration(source)
    proposal = layers_to_exclude(source, calibration, settings, most_cost=0.1)
    assert proposal.layers == ("deit.layers.1.mlp",) and proposal.suffices
    assert proposal.cost > 0.1 >= proposal.remaining
    pictures = _pictures()
    export_onnx(source, str(tmp_path))
    expected = open_onnx(str(tmp_path))(pictures).argmax(1)
    agreement = []
    for applied in (settings, dataclasses.replace(settings, exclude_layers=proposal.layers)):
        quantize_onnx(source, str(tmp_path), calibration, applied)
        answers = open_onnx(str(tmp_path), "classifier_quantized.onnx")(pictures).argmax(1)
        agreement.append((answers == expected).mean())
    assert agreement[0] < 0.9 < agreement[1]


def test_nothing_is_proposed_where_int8_costs_little(source: ExportSource) -> None:
    proposal = layers_to_exclude(source, _calibration(source), QuantizationSettings("dynamic"), most_cost=0.2)
    assert proposal.layers == () and proposal.suffices and proposal.cost <= 0.2


def test_of_dynamic_layers_are_named_by_however_few_images(source: ExportSource) -> None:
    """Which need not suffice to calibrate anything; without labels the cost is one of agreement."""
    labels = Labels(source.labels, np.full(5, -1))
    found = evaluation_images(tiny.digits(96)[1].select(range(5)), labels, source={}, words="mine")
    proposal = layers_to_exclude(source, None, QuantizationSettings("dynamic"), found, most_cost=-1.0)
    assert proposal.layers and set(proposal.layers) <= set(grouped(layers_in_order(source.classifier).linear, 40))
    assert 0 <= proposal.cost <= 1 and not proposal.suffices


def test_broken_images_do_not_count_in_the_cost(source: ExportSource) -> None:
    data = images.broken(tiny.digits(96)[1], [0, 7, 39])
    found = evaluation_images(data, source.labels, source={}, words="mine")
    proposal = layers_to_exclude(source, _calibration(source), QuantizationSettings("dynamic"), found, most_cost=0.2)
    assert abs(proposal.cost * 37 - round(proposal.cost * 37)) < 1e-6 and proposal.layers == ()


def test_a_convolutional_network_is_static_alone(tmp_path: Path) -> None:
    source = _source(tmp_path / "resnet", tiny.resnet())
    export_onnx(source, str(tmp_path))
    facts = quantize_onnx(source, str(tmp_path), _calibration(source), QuantizationSettings("static"))
    assert facts["num_quantized_layers"] >= 5
    pictures = _pictures()
    expected, answer = (
        open_onnx(str(tmp_path), file)(pictures) for file in ("classifier.onnx", "classifier_quantized.onnx")
    )
    assert 0 < np.abs(answer - expected).max() < 0.05
    with pytest.raises(InputError, match="most of this model's weights are in convolutions: give --int8 static"):
        quantize_onnx(source, str(tmp_path), None, QuantizationSettings("dynamic"))


def test_openvino_in_int8_answers_nearly_as_float(source: ExportSource, tmp_path: Path) -> None:
    program = pytest.importorskip("hf_deit.export.programs.openvino_program")
    running = pytest.importorskip("hf_deit.export.parity.running")
    program.export_openvino(source, str(tmp_path))
    settings = QuantizationSettings("static", ("layers.1.mlp",))
    facts = quantize(source, str(tmp_path), "openvino", _calibration(source, 32), settings)
    assert facts["float_layers"] == ["deit.layers.1.mlp.fc1", "deit.layers.1.mlp.fc2"]
    assert facts["num_quantized_layers"] == 12 and "nncf" in facts["versions"] and "NNCF" in facts["method"]
    pictures = _pictures(20)
    expected, answer = (
        running.open_openvino(str(tmp_path), file)(pictures) for file in ("classifier.xml", "classifier_quantized.xml")
    )
    assert 1e-5 < np.abs(answer - expected).max() < 0.1


def test_openvino_says_why_layers_cannot_be_left_out(source: ExportSource) -> None:
    program = pytest.importorskip("hf_deit.export.programs.openvino_quantization")
    with pytest.raises(InputError, match="14 linear layers and 1 convolutions OpenVINO has made 1 and 0"):
        program._by_layer(source, ["aten.linear"], [])


@pytest.mark.slow  # a conversion takes most of a minute
@pytest.mark.parametrize("mode", MODES)
def test_executorch_in_int8_answers_nearly_as_float(source: ExportSource, tmp_path: Path, mode: str) -> None:
    program = pytest.importorskip("hf_deit.export.programs.executorch_program")
    running = pytest.importorskip("hf_deit.export.parity.running")
    program.export_executorch(source, str(tmp_path))
    settings = QuantizationSettings(mode, ("layers.1.mlp",))
    calibration = _calibration(source, 32) if mode == "static" else None
    facts = quantize(source, str(tmp_path), "executorch", calibration, settings)
    assert facts["float_layers"] == ["deit.layers.1.mlp.fc1", "deit.layers.1.mlp.fc2"]
    assert facts["num_quantized_layers"] >= 11 and "histogram" in facts["method"]
    files = ("model.pte", "model_quantized.pte")
    assert (tmp_path / files[1]).stat().st_size < 0.8 * (tmp_path / files[0]).stat().st_size
    pictures = _pictures(20)
    expected, answer = (running.open_executorch(str(tmp_path), file)(pictures) for file in files)
    assert 1e-5 < np.abs(answer - expected).max() < 0.1


def test_a_table_says_which_format_has_which_int8() -> None:
    for name, mode in itertools.product(FORMATS, MODES):
        if (name, mode) in INT8:
            check_int8([name], mode)
            assert INT8[name, mode] in int8_in_words()
        else:
            with pytest.raises(
                InputError, match=f"--int8 {mode} is not for --to {name}: .*There is --int8 {mode} for"
            ):
                check_int8(["onnx", name], mode)


class TestCalibrationImages:
    def test_too_few_are_refused_with_their_number(self, source: ExportSource) -> None:
        few = tiny.digits(96)[0].select(range(FEWEST_IMAGES - 1))
        with pytest.raises(InputError, match=r"31 images of mine can be used .*at least 32 are needed"):
            Calibration(few, "image", source.classifier, "mine")
        with pytest.raises(InputError, match="at least 32 images, got 31"):
            _calibration(source, FEWEST_IMAGES - 1)

    def test_broken_ones_are_skipped_and_counted(self, source: ExportSource) -> None:
        data = images.broken(images.textured(40), range(0, 40, 5))
        calibration = Calibration(data, "image", source.classifier, "mine")
        assert (calibration.num_images, len(calibration.skipped)) == (32, 8)
        assert calibration.facts["num_skipped"] == 8
        with pytest.raises(InputError, match=r"31 images of mine can be used .*and 9 others cannot be decoded"):
            Calibration(images.broken(data, [1]), "image", source.classifier, "mine")

    def test_the_draw_is_that_of_the_seed(self, source: ExportSource) -> None:
        first, again, other = (
            torch.cat([batch["pixel_values"] for batch in _calibration(source, seed=seed)]) for seed in (0, 0, 1)
        )
        assert first.shape == (48, 3, 16, 16) and torch.equal(first, again) and not torch.equal(first, other)

    def test_views_are_those_of_the_evaluation(self, source: ExportSource) -> None:
        data = images.textured(40)
        calibration = Calibration(data, "image", source.classifier, "mine", num_images=40)
        expected = [source.classifier.preprocess(image.convert("RGB")) for image in data["image"]]
        for pixels in torch.cat([batch["pixel_values"] for batch in calibration]):
            assert any(torch.equal(pixels, one) for one in expected)

    def test_a_folder_is_taken_flat_or_of_classes(self, source: ExportSource, tmp_path: Path) -> None:
        folder = images.class_folders(tmp_path / "mine", {"cat": 20, "dog": 20})
        calibration = calibration_of(source, "no/run", folder)
        assert calibration.facts["images"] == "the folder mine" and calibration.num_images == 40
        assert calibration_of(source, "no/run", f"{folder}/..").num_images == 40
        for check_dir in (folder, f"{folder}/cat", str(tmp_path)):
            with pytest.raises(InputError, match="hold the same images"):
                calibration_of(source, "no/run", folder, check_dir=check_dir)

    def test_of_a_run_its_training_images_are_taken(self, source: ExportSource, tmp_path: Path) -> None:
        (tmp_path / "recipe.yaml").write_text("dataset_name: sklearn:digits\n")
        calibration = calibration_of(source, str(tmp_path), num_images=64)
        assert calibration.facts["images"] == "training images of sklearn:digits"
        drawn, train, held_out = (
            {image.convert("RGB").tobytes() for image in some}
            for some in (
                map(calibration._decoder, calibration._rows),
                load_digits().train["image"],
                load_digits().validation["image"],
            )
        )
        assert len(drawn) == 64 and drawn <= train and not drawn & held_out

    def test_noise_never_stands_in(self, source: ExportSource, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"is no folder of a run.*give --calibration_dir.*or --int8 dynamic"):
            calibration_of(source, str(tmp_path))
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="empty"):
            calibration_of(source, str(tmp_path), str(tmp_path / "empty"))

    def test_what_a_run_learnt_from_is_not_proven_on(self, source: ExportSource, tmp_path: Path) -> None:
        folder = images.class_folders(tmp_path / "mine", {"cat": 20, "dog": 20})
        (tmp_path / "recipe.yaml").write_text(f"train_dir: {folder}\n")
        with pytest.raises(InputError, match=r"training images .* hold the same images"):
            calibration_of(source, str(tmp_path), check_dir=folder)
