"""The contract: an ONNX file answers as the classifier that it was made of, for images and batches of any size.

The references are the model's own logits in torch, and its image processor. What ONNX cannot hold is refused in one
line.
"""

import json
import logging
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.export_sources import export_source
from support.families import CAIT, DEIT, DISTILLED_CAIT, DISTILLED_DEIT, randomise
from support.images import noise
from support.tiny import resnet
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    LevitConfig,
    LevitForImageClassificationWithTeacher,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

from hf_deit.errors import InputError
from hf_deit.export.parity.running import open_onnx
from hf_deit.export.programs.onnx_program import (
    CLASSIFIER,
    MODEL,
    core_model,
    export_onnx,
    save_onnx,
    with_preprocessing,
)
from hf_deit.export.programs.source import ExportSource

SIZES = ((31, 500), (40, 33), (1, 70), (300, 411))


def session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model if isinstance(model, str) else model.SerializeToString(), options)


@torch.no_grad()
def probabilities(source: ExportSource, image) -> np.ndarray:
    """Of the trained classifier and its own processor."""
    pixels = source.classifier.preprocess(image)[None]
    logits = source.classifier.model(pixel_values=pixels, **source.classifier.forward_options).logits
    return logits.softmax(dim=-1).numpy()


@torch.no_grad()
def assert_answers_as_trained(source: ExportSource, core: onnx.ModelProto) -> None:
    onnx.checker.check_model(core, full_check=True)
    network = session(core)
    size = source.classifier.input_size
    for batch_size in (1, 2, 5):
        pixels = torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(batch_size))
        expected = source.classifier.model(pixel_values=pixels, **source.classifier.forward_options).logits
        (got,) = network.run(["logits"], {"pixel_values": pixels.numpy()})
        assert np.abs(got - expected.numpy()).max() <= 1e-4 * max(1, float(expected.abs().max()))
    assert expected.std(dim=0).max() > 1e-4  # images do not answer alike, or nothing would show
    whole = session(with_preprocessing(core, source.preprocessing))
    for shape in SIZES:
        image = noise(*shape)
        (got,) = whole.run(["probabilities"], {"images": np.asarray(image)[None]})
        assert np.abs(got - probabilities(source, image)).max() <= 5e-3


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A DeiT⚗ and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("exported")
    source = export_source(DISTILLED_DEIT.tiny(num_hidden_layers=1))
    export_onnx(source, str(folder))
    return source, folder


def test_all_tokens_of_the_last_layer_are_in_the_program():
    source = export_source(randomise(DISTILLED_DEIT.tiny()))
    model, shapes = source.classifier.model, []
    model.base_model.layers[-1].register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[1]))
    with torch.no_grad():
        model(pixel_values=torch.zeros(1, 3, *source.classifier.input_size))
    core_model(source)
    assert shapes[0] == 2 and {*shapes[1:]} == {2 + 16} and not model.computes_all_tokens


def test_the_network_answers_as_trained(distilled):
    source, folder = distilled
    assert_answers_as_trained(source, onnx.load(folder / MODEL))


def test_the_files_are_those_that_transformers_js_and_optimum_read(distilled):
    _, folder = distilled
    assert sorted(os.listdir(folder)) == [CLASSIFIER, MODEL]  # single files
    found = session(str(folder / MODEL))
    (given,), (made,) = found.get_inputs(), found.get_outputs()
    assert (given.name, given.type, given.shape) == ("pixel_values", "tensor(float)", ["batch", 3, 32, 32])
    assert (made.name, made.type, made.shape) == ("logits", "tensor(float)", ["batch", 5])


def test_the_classifier_takes_images_of_any_size(distilled):
    source, folder = distilled
    found = session(str(folder / CLASSIFIER))
    (given,), (made,) = found.get_inputs(), found.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    assert (made.name, made.type, made.shape) == ("probabilities", "tensor(float)", ["batch", 5])
    answer = open_onnx(str(folder))
    for shape in SIZES:
        image = noise(*shape)
        got = answer(np.asarray(image)[None])
        assert got.dtype == np.float32
        assert got.sum() == pytest.approx(1, abs=1e-6)
        assert np.abs(got - probabilities(source, image)).max() <= 5e-3
    images = [noise(40, 33, seed=number) for number in range(7)]
    together = answer(np.stack([np.asarray(image) for image in images]))
    expected = np.concatenate([probabilities(source, image) for image in images])
    assert np.abs(together - expected).max() <= 5e-3
    assert len(set(together.argmax(axis=1))) > 1 or together.std(axis=0).max() > 0.01


def test_the_files_say_what_they_are(distilled):
    source, folder = distilled
    for name in (MODEL, CLASSIFIER):
        values = session(str(folder / name)).get_modelmeta().custom_metadata_map
        assert json.loads(values["labels"]) == list(source.labels)
        preprocessing = json.loads(values["preprocessing"])
        assert preprocessing["mean"] == [0.485, 0.456, 0.406]
        assert (preprocessing["size"], preprocessing["input_size"]) == ([36, 36], [32, 32])
        assert json.loads(values["model"])["revision"] == source.facts["revision"]


def test_the_files_hold_standard_operators_and_nothing_of_this_machine(distilled):
    _, folder = distilled
    for name in (MODEL, CLASSIFIER):
        model = onnx.load(folder / name)
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        assert [opset.domain for opset in model.opset_import] == [""]
        content = (folder / name).read_bytes()
        for path in (os.getcwd(), os.path.dirname(torch.__file__), ".py"):
            assert path.encode() not in content


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (DISTILLED_DEIT, {"fusion": "softmax"}),
        (DISTILLED_DEIT, {"fusion": "distillation"}),
        (DISTILLED_CAIT, {"fusion": "cls", "query_chunk_size": 7}),
    ],
    ids=str,
)
def test_the_answer_is_fused_as_the_configuration_says(kind, fields):
    """The mean of the logits, which is the default, is that of the files above."""
    model = kind.tiny(num_hidden_layers=1, **fields)
    source = export_source(model)
    core = core_model(source, ("logits", "cls_logits", "distillation_logits"))
    assert_answers_as_trained(source, core)
    pixels = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    fused, cls, distillation = (torch.from_numpy(value) for value in session(core).run(None, {"pixel_values": pixels}))
    mean = (cls.softmax(-1) + distillation.softmax(-1)) / 2
    expected = {"softmax": mean, "cls": cls.softmax(-1), "distillation": distillation.softmax(-1)}
    answers = {**expected, "logits": ((cls + distillation) / 2).softmax(-1)}
    for fusion, answer in answers.items():
        apart = (fused.softmax(-1) - answer).abs().max()
        assert apart <= 1e-6 if fusion == model.config.fusion else apart > 1e-4


def test_an_answer_in_another_order_would_show(distilled):
    source, folder = distilled
    image = noise(40, 33)
    (expected,), (got,) = probabilities(source, image), open_onnx(str(folder))(np.asarray(image)[None])
    assert np.abs(got - expected).max() < 5e-3
    for first in range(5):
        for second in range(first):
            turned = expected.copy()
            turned[[first, second]] = turned[[second, first]]
            assert np.abs(got - turned).max() > 5e-3


@torch.no_grad()
def settled(model: nn.Module) -> nn.Module:
    """With the statistics of images in its batch norms: with others nothing of an image reaches the answer."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.reset_running_stats()
            layer.momentum = 1.0
    model.train()(pixel_values=torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return model.eval()


OTHERS = {
    "deit": lambda: DEIT.tiny(),
    "cait": lambda: CAIT.tiny(),
    "resnet": resnet,
    "deit of transformers": lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**TRANSFORMER)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**TRANSFORMER)),
    "beit": lambda: BeitForImageClassification(BeitConfig(**TRANSFORMER, vocab_size=10)),
    "convnext": lambda: ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5)
    ),
    "swin": lambda: SwinForImageClassification(
        SwinConfig(
            image_size=32, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4, num_labels=5
        )
    ),
    "mobilenet_v2": lambda: MobileNetV2ForImageClassification(
        MobileNetV2Config(image_size=32, depth_multiplier=0.1, min_depth=4, num_labels=5)
    ),
    "mobilevit": lambda: MobileViTForImageClassification(
        MobileViTConfig(
            image_size=32,
            hidden_sizes=[8, 8, 8],
            neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 8],
            num_attention_heads=2,
            num_labels=5,
        )
    ),
    "efficientnet": lambda: EfficientNetForImageClassification(
        EfficientNetConfig(image_size=32, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, num_labels=5)
    ),
    "levit": lambda: LevitForImageClassificationWithTeacher(
        LevitConfig(
            image_size=32,
            hidden_sizes=[16, 16, 16],
            num_attention_heads=[2, 2, 2],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
            num_labels=5,
        )
    ),
    "timm": lambda: TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture="test_efficientnet", num_labels=5)
    ),
}
TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=() if name == "resnet" else pytest.mark.slow) for name, make in OTHERS.items()],
)
def test_other_students_answer_as_trained_and_their_conversion_says_nothing(make, capfd, recwarn, caplog):
    source = export_source(settled(randomise(make())))
    capfd.readouterr(), recwarn.clear(), caplog.clear()
    core = core_model(source)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert_answers_as_trained(source, core)


@pytest.mark.slow
def test_a_model_at_another_size_than_its_own_answers_as_trained():
    """Its positions are interpolated: `forward_options` say so."""
    model = randomise(ViTForImageClassification(ViTConfig(**TRANSFORMER)))
    source = export_source(model, size=48, interpolate_pos_encoding=True)
    assert_answers_as_trained(source, core_model(source))


class OddConfig(PreTrainedConfig):
    model_type = "odd"


class Odd(PreTrainedModel):
    """A classifier that does something before it answers."""

    config_class = OddConfig
    main_input_name = "pixel_values"

    def __init__(self, does):
        super().__init__(OddConfig(num_labels=5))
        self.does = does
        self.classifier = nn.Linear(3, 5)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        states = self.does(pixel_values)
        return ImageClassifierOutput(logits=self.classifier(states.mean(dim=(2, 3))))


def decides(pixels):
    return pixels if pixels.sum() > 0 else -pixels


def of_one_batch_size(pixels):
    return pixels.reshape(len(pixels) * 1, -1).view(int(pixels.shape[0]), 3, 32, 32)


def unknown_operator(pixels):
    return pixels * torch.linalg.eigvals(pixels).real[..., None]


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (decides, "its forward decides by the values of its images"),
        (of_one_batch_size, "its forward makes a Python number of the batch size"),
        (unknown_operator, r"aten\.linalg_eig"),
    ],
)
def test_what_onnx_cannot_hold_is_refused_in_a_line(does, reason, capfd):
    with pytest.raises(InputError, match=f"^ONNX refuses Odd.*{reason}") as refused:
        core_model(export_source(Odd(does)))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 450
    assert capfd.readouterr() == ("", "")


def test_weights_that_one_file_cannot_hold_lie_beside_it(distilled, tmp_path):
    _, folder = distilled
    path = tmp_path / MODEL
    for _ in range(2):  # over what an earlier export has left
        save_onnx(onnx.load(folder / MODEL), str(path), largest_file=50_000)
    assert sorted(os.listdir(tmp_path)) == [MODEL, "model.onnx_data"]  # transformers.js's name
    alone = (folder / MODEL).stat().st_size
    assert path.stat().st_size + (tmp_path / "model.onnx_data").stat().st_size < 1.1 * alone
    assert path.stat().st_size < 0.6 * alone
    pixels = {"pixel_values": np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)}
    assert np.array_equal(*(session(str(file)).run(None, pixels)[0] for file in (folder / MODEL, path)))


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    for name, content in (("none.onnx", None), ("odd.onnx", b"PNG")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"ONNX Runtime cannot open .*{name}: "):
            open_onnx(str(tmp_path), name)
