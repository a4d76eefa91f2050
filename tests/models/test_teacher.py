"""Contract: a teacher answers exactly what its own model answers to its own pixels, in the student's label order.

Or it is refused: nothing about its statistics, its labels or its head is guessed. It never trains.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo
from torch import nn
from torchvision.transforms.v2 import functional as vision
from transformers import (
    CLIPImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from hf_deit.errors import InputError
from hf_deit.models.class_names import match_labels, unique_names
from hf_deit.models.configuration_deit import DistilledDeiTConfig
from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessor
from hf_deit.models.modeling_deit import DistilledDeiTForImageClassification
from hf_deit.models.student import load_student
from hf_deit.models.teacher import describe_teacher, load_labels, load_teacher

LABELS = {0: "ape", 1: "bee", 2: "cat", 3: "dog"}
LABEL2ID = {name: index for index, name in LABELS.items()}
SIZE = {"height": 32, "width": 32}
TINY_VIT = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, patch_size=8)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def student_processor(size: int = 32, **settings) -> DistilledDeiTImageProcessor:
    return DistilledDeiTImageProcessor(crop_size={"height": size, "width": size}, crop_ratio=1.0, **settings)


def images(size: int = 32, count: int = 3) -> list[Image.Image]:
    generator = np.random.RandomState(size)
    return [Image.fromarray(generator.randint(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def prepared(processor, size: int = 32) -> torch.Tensor:
    return processor(images(size), return_tensors="pt")["pixel_values"]


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size that lets every pixel and every normalisation statistic matter."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def resnet_config(labels=LABELS) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
    )


def save_resnet(folder, processor=None, labels=LABELS) -> tuple[str, nn.Module]:
    model = lively(ResNetForImageClassification(resnet_config(labels)))
    model.save_pretrained(folder)
    (processor or ViTImageProcessor(size=SIZE)).save_pretrained(folder)
    return str(folder), model


def save_vit(folder, processor=None) -> tuple[str, nn.Module]:
    model = ViTForImageClassification(ViTConfig(**TINY_VIT, image_size=32, id2label=LABELS, label2id=LABEL2ID))
    lively(model).save_pretrained(folder)
    (processor or ViTImageProcessor(size=SIZE)).save_pretrained(folder)
    return str(folder), model


def save_timm(folder, architecture: str, *, size: int = 32, labels=LABELS, **pretrained_cfg) -> tuple[str, nn.Module]:
    """As the Hub holds timm's checkpoints: no preprocessor_config.json, the statistics in config.json."""
    count = 1000 if labels is None else len(labels)
    model = lively(timm.create_model(architecture, num_classes=count))
    folder.mkdir()
    settings = {
        "input_size": [3, size, size],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.3, 0.2, 0.1],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        **pretrained_cfg,
    }
    config = {"architecture": architecture, "num_classes": count, "pretrained_cfg": settings}
    if labels is not None:
        config["label_names"] = list(labels.values())
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder), model


def save_student(folder, fusion="logits") -> tuple[str, nn.Module]:
    config = DistilledDeiTConfig(**TINY_VIT, image_size=32, id2label=LABELS, label2id=LABEL2ID, fusion=fusion)
    model = lively(DistilledDeiTForImageClassification(config))
    model.save_pretrained(folder)
    student_processor(image_mean=[0.3, 0.4, 0.5], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return str(folder), model


def edit_json(path, **changes) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            del content[key]
        else:
            content[key] = value
    path.write_text(json.dumps(content))


@torch.no_grad()
def logits_of(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    output = model.eval()(pixels)
    return output if isinstance(output, torch.Tensor) else output.logits


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std(dim=0).max() > 1e-2, "the logits must depend on the pixels for this test to mean anything"
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


def refusal(path, labels=LABELS, **arguments) -> str:
    with pytest.raises(InputError) as error:
        load_teacher(str(path), student_processor=student_processor(), id2label=labels, **arguments)
    return str(error.value)


# Pixels


STATISTICS = {
    "the student's": lambda: student_processor(),
    "0.5": lambda: ViTImageProcessor(size=SIZE),
    "CLIP's": lambda: CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE),
    "0 and 1": lambda: ViTImageProcessor(size=SIZE, image_mean=[0.0] * 3, image_std=[1.0] * 3),
    "not normalised": lambda: ViTImageProcessor(size=SIZE, do_normalize=False),
    "not rescaled": lambda: ViTImageProcessor(
        size=SIZE, do_rescale=False, image_mean=[123.7, 116.3, 103.5], image_std=[58.4, 57.1, 57.4]
    ),
    "rescaled to [-1, 1]": lambda: EfficientNetImageProcessor(
        size=SIZE, rescale_factor=1 / 127.5, rescale_offset=True, include_top=False
    ),
    "EfficientNet's": lambda: EfficientNetImageProcessor(size=SIZE),
    "BGR": lambda: MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE),
    "BGR, normalised": lambda: MobileViTImageProcessor(
        size={"shortest_edge": 32},
        crop_size=SIZE,
        do_normalize=True,
        image_mean=[0.1, 0.4, 0.7],
        image_std=[0.2, 0.3, 0.5],
    ),
}


@pytest.mark.parametrize("student", [{}, {"image_mean": [0.2, 0.5, 0.7], "image_std": [0.1, 0.3, 0.6]}])
@pytest.mark.parametrize("name", STATISTICS)
def test_a_teacher_sees_its_own_statistics(tmp_path, name, student):
    own = STATISTICS[name]()
    path, model = save_resnet(tmp_path / "teacher", own)
    teacher = load_teacher(path, student_processor=student_processor(**student), id2label=LABELS)
    assert_close(teacher(prepared(student_processor(**student))), logits_of(model, prepared(own)))


def test_equal_statistics_leave_the_pixels_bit_identical(tmp_path):
    path, model = save_resnet(tmp_path / "teacher", student_processor())
    pixels = prepared(student_processor())
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS)
    assert torch.equal(teacher(pixels), logits_of(model, pixels))


def test_the_statistics_of_a_hub_file_from_before_do_normalize_existed(tmp_path):
    """apple/mobilevit-small: no mean, no std and no do_normalize, as the class only rescales and flips."""
    path, model = save_resnet(tmp_path / "teacher")
    hub_file = {
        "crop_size": 32,
        "do_center_crop": True,
        "do_flip_channel_order": True,
        "do_resize": True,
        "image_processor_type": "MobileViTImageProcessor",
        "resample": 2,
        "size": 32,
    }
    (tmp_path / "teacher" / "preprocessor_config.json").write_text(json.dumps(hub_file))
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS)
    raw = torch.stack([vision.pil_to_tensor(image) for image in images()]).float() / 255
    assert_close(teacher(prepared(student_processor())), logits_of(model, raw.flip(1)))


@pytest.mark.parametrize("size", [32, 48])
def test_a_vit_of_one_size_gets_its_size(tmp_path, size):
    path, model = save_vit(tmp_path / "teacher", ViTImageProcessor(size=SIZE, image_mean=[0.1, 0.5, 0.9]))
    teacher = load_teacher(path, student_processor=student_processor(size), id2label=LABELS)
    assert teacher.input_size == (None if size == 32 else (32, 32))
    raw = torch.stack([vision.pil_to_tensor(image) for image in images(size)]).float() / 255
    own = (raw - torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1)) / 0.5
    if size != 32:
        own = vision.resize(own, [32, 32], interpolation=vision.InterpolationMode.BICUBIC, antialias=True)
    assert_close(teacher(prepared(student_processor(size), size)), logits_of(model, own))


def shown(size: int, mean: float = 0.5, std: float = 0.5) -> torch.Tensor:
    """The images of 32 pixels as a teacher with these statistics is shown them at a size."""
    raw = torch.stack([vision.pil_to_tensor(image) for image in images()]).float() / 255
    pixels = (raw - mean) / std
    if size == 32:
        return pixels
    return vision.resize(pixels, [size, size], interpolation=vision.InterpolationMode.BICUBIC, antialias=True)


@pytest.mark.parametrize(
    ("wanted", "size"),
    [({}, 64), ({"input_size": "own"}, 64), ({"input_size": "student"}, 32), ({"input_size": 48}, 48)],
)
def test_a_convnet_is_shown_its_own_size_unless_another_is_asked_for(tmp_path, wanted, size):
    path, model = save_resnet(tmp_path / "teacher", ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875))
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS, **wanted)
    assert teacher.input_size == (None if size == 32 else (size, size))
    assert teacher.shown_size == (size, size)
    others = {"own": (64, 64), "student": (32, 32)}
    assert teacher.other_sizes == {name: other for name, other in others.items() if other != (size, size)}
    pixels = prepared(student_processor())
    assert_close(teacher(pixels), logits_of(model, shown(size)))
    assert_close(teacher(pixels, input_size=(40, 40)), logits_of(model, shown(40)))


def test_a_small_teacher_is_shown_a_large_students_views_small(tmp_path):
    path, model = save_resnet(tmp_path / "teacher", student_processor())
    teacher = load_teacher(path, student_processor=student_processor(224), id2label=LABELS)
    assert teacher.input_size == (32, 32)
    pixels = prepared(student_processor(224), 224)
    small = vision.resize(pixels, [32, 32], interpolation=vision.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(teacher(pixels), logits_of(model, small))
    assert not torch.allclose(teacher(pixels), logits_of(model, pixels), atol=1e-2)


def stated(tmp_path, processor, keep: tuple[str, ...] = (), **changes) -> str:
    """A ResNet whose preprocessor_config.json states its statistics and little more."""
    path, _ = save_resnet(tmp_path / "teacher", processor)
    file = tmp_path / "teacher" / "preprocessor_config.json"
    content = json.loads(file.read_text())
    kept = {"image_processor_type", "image_mean", "image_std", *keep}
    file.write_text(json.dumps({**{k: v for k, v in content.items() if k in kept}, **changes}))
    return path


@pytest.mark.parametrize(
    ("processor", "changes", "own"),
    [
        (ViTImageProcessor(), {}, None),  # 224 by default of the class
        (ConvNextImageProcessor(), {}, None),  # 384
        (CLIPImageProcessor(), {"size": {"shortest_edge": 64}}, (64, 64)),  # cropped to 224, by default, filled up
        (CLIPImageProcessor(), {"crop_size": 48}, (48, 48)),
        (CLIPImageProcessor(), {"size": 72, "crop_size": {"height": 64, "width": 48}}, (64, 48)),
        (ViTImageProcessor(), {"size": {"height": 64, "width": 48}}, (64, 48)),
        (ViTImageProcessor(), {"size": [64, 48]}, (64, 48)),
        (ViTImageProcessor(), {"size": 64, "do_resize": False}, (64, 64)),
        (ViTImageProcessor(), {"size": 224, "do_resize": False}, None),  # as the class writes it, and does not do it
        (ViTImageProcessor(), {"size": None, "do_resize": False}, None),
        (ConvNextImageProcessor(), {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 224)),
    ],
)
def test_a_size_counts_as_a_teachers_own_only_if_its_files_state_it(tmp_path, processor, changes, own):
    teacher = load_teacher(stated(tmp_path, processor, **changes), student_processor=student_processor())
    assert teacher.description.own_size == own
    assert teacher.input_size == own


def test_a_configuration_says_the_size_where_the_processor_does_not(tmp_path):
    path, _ = save_vit(tmp_path / "teacher")
    edit_json(tmp_path / "teacher" / "preprocessor_config.json", size=...)
    for size in (32, 48):
        teacher = load_teacher(path, student_processor=student_processor(size), id2label=LABELS)
        assert teacher.description.own_size == teacher.shown_size == (32, 32)
    config = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], id2label=LABELS, label2id=LABEL2ID)
    ConvNextForImageClassification(config).save_pretrained(tmp_path / "convnext")  # with its class's 224
    shutil.copy(tmp_path / "teacher" / "preprocessor_config.json", tmp_path / "convnext")
    teacher = load_teacher(tmp_path / "convnext", student_processor=student_processor(), id2label=LABELS)
    assert teacher.description.own_size is None
    assert teacher.input_size is None


def test_a_size_that_the_architecture_refuses_is_refused_or_told(tmp_path, caplog):
    path, _ = save_vit(tmp_path / "teacher")
    settings = {"student_processor": student_processor(48), "id2label": LABELS}
    with pytest.raises(InputError, match=r"takes no images of 40 pixels.*teacher_input_size"):
        load_teacher(path, **settings, input_size=40)
    teacher = load_teacher(path, **settings, input_size="student")
    assert teacher.input_size == (32, 32) and teacher.other_sizes == {}
    assert "takes no images of the student's 48 pixels: it is shown them at 32" in caplog.text
    edit_json(tmp_path / "teacher" / "preprocessor_config.json", size={"height": 40, "width": 40})
    assert load_teacher(path, **settings).input_size == (32, 32)  # as its configuration has it


@pytest.mark.parametrize("wrong", ["theirs", "", 0, -3, "1.5", 2.5, True, None])
def test_an_input_size_is_one_of_two_words_or_a_number(tmp_path, wrong):
    path, _ = save_resnet(tmp_path / "teacher")
    assert 'must be "own", "student" or a number of pixels' in refusal(path, input_size=wrong)


def test_the_identity_names_the_size_where_it_is_not_the_students(tmp_path):
    path, _ = save_resnet(tmp_path / "teacher", ConvNextImageProcessor(size={"shortest_edge": 64}))

    def preprocessing(student: int, **settings) -> dict:
        description = describe_teacher(path, student_processor=student_processor(student), **settings)
        return description.identity()["preprocessing"]

    assert "input_size" not in preprocessing(64)  # as before there was a choice
    assert preprocessing(64) == preprocessing(32, input_size="student") == preprocessing(64, input_size=64)
    assert preprocessing(32) == {**preprocessing(64), "input_size": (64, 64)} == preprocessing(32, input_size="64")
    assert preprocessing(32, input_size=48)["input_size"] == (48, 48)


@pytest.mark.parametrize(
    ("architecture", "size"), [("test_resnet", 32), ("test_efficientnet", 48), ("test_vit3", 160)]
)
def test_a_timm_checkpoint_teaches(tmp_path, architecture, size):
    path, model = save_timm(tmp_path / "teacher", architecture, size=size)
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS)
    raw = torch.stack([vision.pil_to_tensor(image) for image in images()]).float() / 255
    own = (raw - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.3, 0.2, 0.1]).view(3, 1, 1)
    assert teacher.input_size == (None if size == 32 else (size, size))
    if size != 32:
        own = vision.resize(own, [size, size], interpolation=vision.InterpolationMode.BICUBIC, antialias=True)
    assert_close(teacher(prepared(student_processor())), logits_of(model, own))


@pytest.mark.parametrize("fusion", ["logits", "cls", "distillation"])
def test_a_distilled_student_teaches_with_its_fused_answer(tmp_path, fusion):
    path, model = save_student(tmp_path / "teacher", fusion)
    own = student_processor(image_mean=[0.3, 0.4, 0.5], image_std=[0.2, 0.3, 0.4])
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS)
    with torch.no_grad():
        output = model(prepared(own))
    mean = (output.cls_logits + output.distillation_logits) / 2
    assert_close(teacher(prepared(student_processor())), mean if fusion == "logits" else output[f"{fusion}_logits"])


def test_pixels_of_half_precision_are_taken(tmp_path):
    path, _ = save_resnet(tmp_path / "teacher")
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS)
    pixels = prepared(student_processor()).bfloat16()
    assert torch.equal(teacher(pixels), teacher(pixels.float()))


# Labels


@pytest.mark.parametrize(
    "save", [save_resnet, save_vit, lambda folder: save_timm(folder, "test_resnet"), save_student]
)
def test_labels_in_another_order_are_permuted(tmp_path, save):
    path, _ = save(tmp_path / "teacher")
    pixels = prepared(student_processor())
    own_order = load_teacher(path, student_processor=student_processor())
    assert own_order.id2label == LABELS
    wanted = {0: "cat", 1: "ape", 2: "dog", 3: "bee"}
    teacher = load_teacher(path, student_processor=student_processor(), id2label=wanted)
    assert teacher.id2label == wanted
    assert torch.equal(teacher(pixels), own_order(pixels)[:, [2, 0, 3, 1]])


@pytest.mark.parametrize(
    ("teacher", "student", "order"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2]),
        (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1]),
        (["Great_white shark", "b"], ["great white  Shark", "B"], [0, 1]),
        (["Great_white", "b"], ["B", "great white"], [1, 0]),
        (["tench, Tinca tinca", "goldfish, Carassius"], ["tench", "goldfish"], [0, 1]),
        (["tench", "goldfish"], ["Tinca tinca, tench", "goldfish"], [0, 1]),
        # A synonym in common does not make equal what a whole name tells apart.
        (["dog, brown", "dog, black"], ["dog, black", "dog, brown"], [1, 0]),
        # What a teacher repeats, and its student has told apart.
        (["a", "b", "a"], ["a", "b", "a"], [0, 1, 2]),
        (["a", "b", "a"], ["a (0)", "b", "a (2)"], [0, 1, 2]),
        (["a", "b", "a"], ["b", "a (2)", "a (0)"], [1, 2, 0]),
        (["a", "b", "a"], ["B", "A (2)", "a_(0)"], [1, 2, 0]),
        (["a (0)", "b", "a (2)"], ["a", "b", "a"], [0, 1, 2]),
        (["a (0)", "b", "a (2)"], ["b", "a (2)", "a (0)"], [1, 2, 0]),
        (["a", "b", "a"], ["b", "a", "a (2)"], [1, 0, 2]),  # which leaves the first one for "a"
        (["a", "a", "a", "b"], ["b", "a (2)", "a (0)", "a (1)"], [3, 2, 0, 1]),
    ],
)
def test_matching_finds_the_teachers_index_of_each_label(teacher, student, order):
    assert match_labels(dict(enumerate(teacher)), dict(enumerate(student))) == order


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (["a", "b", "c"], ["a", "b", "x"]),  # other names
        (["a", "b", "c"], ["a", "b"]),  # fewer
        (["a", "b"], ["a", "b", "c"]),  # more
        (["a", "a", "b"], ["a", "b", "c"]),  # twice the same, and one lacking
        (["a", "a", "b"], ["b", "a", "a"]),  # an order that cannot be known
        (["a (0)", "a (1)", "b"], ["b", "a", "a"]),
        (["a (0)", "b", "a (2)"], ["a", "a", "b"]),
        (["a", "a", "b"], ["a", "b", "c"]),  # either
        (["a", "a", "b"], ["a (0)", "a (3)", "b"]),
        (["LABEL_0", "LABEL_1"], ["a", "b"]),
        (["LABEL_0", "LABEL_1"], ["0", "1"]),
        (["a", "b"], ["LABEL_0", "LABEL_1"]),
        (["tench, Tinca", "goldfish"], ["goldfish", "tench"]),  # synonyms do not prove another order
        (["dog, brown", "dog, black"], ["dog, black", "dog, white"]),
    ],
)
def test_labels_that_do_not_match_are_refused_with_both_sides(teacher, student):
    with pytest.raises(InputError) as error:
        match_labels(dict(enumerate(teacher)), dict(enumerate(student)), "some/teacher")
    message = str(error.value)
    assert "some/teacher" in message
    assert ", ".join(teacher) in message
    assert ", ".join(student) in message


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "b", "a"], ["a (0)", "b", "a (2)"]),
        (["a", "A", "a"], ["a (0)", "A", "a (2)"]),
        (["a", "a", "a (0)"], ["a (0) (0)", "a (1)", "a (0)"]),  # what is there already is not given again
        (["a", "a", "a (0)", "a (0)"], ["a (0) (0)", "a (1)", "a (0) (2)", "a (0) (3)"]),
        ([0, 1, 1], ["0", "1 (1)", "1 (2)"]),
    ],
)
def test_names_that_repeat_are_told_apart_by_their_index(names, unique):
    made = unique_names(dict(enumerate(names)))
    assert made == dict(enumerate(unique))
    assert len(set(unique)) == len(unique)
    assert unique_names(made) == made


def test_labels_with_gaps_are_refused():
    with pytest.raises(InputError):
        match_labels({0: "a", 2: "b"}, {0: "a", 1: "b"})


def test_a_teacher_of_other_labels_is_refused_when_loaded(tmp_path):
    path, _ = save_resnet(tmp_path / "teacher")
    message = refusal(path, {0: "ape", 1: "bee", 2: "cat", 3: "yak"})
    assert "lacks yak" in message
    assert "ape, bee, cat" in message
    message = refusal(path, {0: "ape", 1: "bee", 2: "cat"})
    assert "4 labels" in message
    assert "3 (ape" in message


# A teacher with more labels


@pytest.mark.parametrize(
    "labels", [{0: "bee", 1: "dog"}, {0: "Dog", 1: "ape", 2: "BEE"}, {0: "ape", 1: "bee"}, LABELS]
)
def test_a_teacher_teaches_some_of_its_labels(tmp_path, labels):
    """Its logits of these, whose softmax is its probabilities of them, divided by their sum."""
    own = STATISTICS["CLIP's"]()
    path, model = save_resnet(tmp_path / "teacher", own)
    teacher = load_teacher(path, student_processor=student_processor(), id2label=labels, label_subset=True)
    logits = logits_of(model, prepared(own))
    chosen = [LABEL2ID[name.lower()] for name in labels.values()]
    answer = teacher(prepared(student_processor()))
    assert_close(answer, logits[:, chosen])
    kept = logits.softmax(dim=-1)[:, chosen]
    torch.testing.assert_close(answer.softmax(dim=-1), kept / kept.sum(dim=-1, keepdim=True), atol=1e-4, rtol=1e-4)
    assert teacher.id2label == labels


def test_what_a_teacher_of_some_labels_is_known_by(tmp_path):
    path, _ = save_resnet(tmp_path / "teacher")

    def identity(labels, **settings):
        return describe_teacher(path, student_processor=student_processor(), id2label=labels, **settings).identity()

    subset = {"label_subset": True}
    orders = [
        identity(labels, **subset)["preprocessing"]["label_order"]
        for labels in ({0: "ape", 1: "bee"}, {0: "bee", 1: "ape"}, {0: "ape", 1: "cat"}, {0: "ape"})
    ]
    assert orders == [[0, 1], [1, 0], [0, 2], [0]]  # also of the first ones, which are in its order
    assert identity(LABELS, **subset) == identity(LABELS)  # it is none


def test_a_teacher_of_more_labels_is_refused_with_the_option_that_takes_some(tmp_path):
    path, _ = save_resnet(tmp_path / "teacher")
    option = "--teacher_label_subset true"
    assert option in refusal(path, {0: "ape", 1: "Bee"})
    assert option not in refusal(path, {0: "ape", 1: "yak"})
    assert option not in refusal(path, dict(enumerate(["ape", "bee", "cat", "dog", "yak"])))
    message = refusal(path, {0: "ape", 1: "yak", 2: "beee"}, label_subset=True)
    assert "lacks 'yak', 'beee' (did you mean 'bee'?)" in message
    message = refusal(path, dict(enumerate(["ape", "bee", "cat", "dog", "yak"])), label_subset=True)
    assert "lacks 'yak'" in message


def test_a_teacher_without_names_is_refused(tmp_path):
    save_resnet(tmp_path / "teacher", labels={i: f"LABEL_{i}" for i in range(4)})
    message = refusal(tmp_path / "teacher")
    assert "LABEL_0" in message
    assert "ape" in message
    assert "id2label" in message, "the message does not say what to do"


def imagenet() -> tuple[dict[int, str], dict[int, str]]:
    """timm's names, and those of the Hub's imagenet-1k, where the second crane is called crane2."""
    info = ImageNetInfo("imagenet-1k")
    ours = {index: info.index_to_description(index) for index in range(1000)}
    cranes = [index for index, name in ours.items() if name == "crane"]
    assert len(cranes) == 2
    return ours, {**ours, cranes[1]: "crane2"}


def test_imagenets_names_match_by_index():
    timms, hubs = imagenet()
    first = {index: name.split(",")[0] for index, name in timms.items()}  # with two maillots, too
    assert first[638] == first[639] == "maillot"
    spellings = (timms, hubs, first, unique_names(timms), unique_names(first))
    for teacher in spellings:
        for student in spellings:
            assert match_labels(teacher, student) == list(range(1000))


def test_imagenets_names_that_are_told_apart_match_in_any_order():
    timms, _ = imagenet()
    unique = unique_names(timms)
    assert (unique[134], unique[517], unique[638], unique[639]) == (
        *("crane (134)", "crane (517)", "maillot", "maillot, tank suit"),
    )
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    student = {index: unique[wanted] for index, wanted in enumerate(order)}
    assert match_labels(timms, student) == match_labels(unique, student) == order


def test_imagenets_names_in_an_unknown_order_are_refused():
    timms, hubs = imagenet()
    with pytest.raises(InputError):
        match_labels(timms, {index: timms[(index + 1) % 1000] for index in range(1000)})
    # The Hub's are unique, but one crane cannot be told from the other.
    with pytest.raises(InputError):
        match_labels(timms, {index: hubs[(index + 1) % 1000] for index in range(1000)})


def test_a_timm_checkpoint_of_imagenet_needs_no_label_names(tmp_path):
    _, hubs = imagenet()
    path, model = save_timm(tmp_path / "teacher", "test_resnet", labels=None)
    teacher = load_teacher(path, student_processor=student_processor(), id2label=hubs)
    assert teacher.id2label == hubs
    own_names = load_teacher(path, student_processor=student_processor()).id2label
    assert len(set(own_names.values())) == 1000 and own_names[517] == "crane (517)"
    raw = torch.stack([vision.pil_to_tensor(image) for image in images()]).float() / 255
    own = (raw - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.3, 0.2, 0.1]).view(3, 1, 1)
    assert_close(teacher(prepared(student_processor())), logits_of(model, own))


# What is refused


def test_a_backbone_is_no_teacher(tmp_path):
    ViTModel(ViTConfig(**TINY_VIT, image_size=32, id2label=LABELS, label2id=LABEL2ID)).save_pretrained(
        tmp_path / "vit"
    )
    ViTImageProcessor(size=SIZE).save_pretrained(tmp_path / "vit")
    message = refusal(tmp_path / "vit")
    assert "classifier.weight" in message
    assert "random" in message
    ResNetModel(resnet_config()).save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size=SIZE).save_pretrained(tmp_path / "resnet")
    assert "classifier.1.weight" in refusal(tmp_path / "resnet")


@pytest.mark.parametrize("part", ["classifier", "layer.0.normalization.running_mean"])
def test_weights_that_are_not_in_the_checkpoint_are_refused(tmp_path, part):
    path, _ = save_resnet(tmp_path / "teacher")
    weights = load_file(f"{path}/model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert 0 < len(kept) < len(weights)
    save_file(kept, f"{path}/model.safetensors", metadata={"format": "pt"})
    assert part in refusal(path)


def test_a_timm_checkpoint_without_its_head_is_refused(tmp_path):
    path, _ = save_timm(tmp_path / "teacher", "test_resnet")
    weights = load_file(f"{path}/model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("fc.")}, f"{path}/model.safetensors")
    assert path in refusal(path)


def test_a_head_of_another_size_is_refused(tmp_path):
    path, _ = save_resnet(tmp_path / "teacher")
    five = {**LABELS, 4: "emu"}
    edit_json(
        tmp_path / "teacher" / "config.json", id2label=five, label2id={name: index for index, name in five.items()}
    )
    assert "classifier" in refusal(path, five)


def test_missing_statistics_are_refused(tmp_path):
    path, _ = save_resnet(tmp_path / "teacher")
    file = tmp_path / "teacher" / "preprocessor_config.json"
    stated = file.read_text()
    for key in ("image_mean", "image_std"):
        file.write_text(stated)
        edit_json(file, **{key: ...})
        message = refusal(path)
        assert key in message
        assert path in message
        file.write_text(stated)
        edit_json(file, **{key: None})
        assert key in refusal(path)
    file.write_text("{ no json")
    assert "preprocessor_config.json" in refusal(path)
    file.unlink()
    message = refusal(path)
    assert "preprocessor_config.json" in message
    assert "save_pretrained" in message, "the message does not say what to do"


@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_timm_checkpoint_without_statistics_is_refused(tmp_path, key):
    path, _ = save_timm(tmp_path / "teacher", "test_resnet", **{key: None})
    message = refusal(path)
    assert key in message
    assert "config.json" in message


@pytest.mark.parametrize("name", ["./nope", "nobody/nothing-here", "nothing-here"])
def test_no_such_model_is_refused(name):
    assert repr(name) in refusal(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert str(tmp_path) in refusal(tmp_path)


def test_a_model_that_classifies_no_images_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    assert "image classifier" in refusal(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    path, _ = save_resnet(tmp_path / "teacher")
    with open(f"{path}/model.safetensors", "r+b") as file:
        file.truncate(300)
    assert path in refusal(path)


def test_an_impossible_configuration_is_refused(tmp_path):
    path, _ = save_vit(tmp_path / "teacher")
    edit_json(tmp_path / "teacher" / "config.json", hidden_size="wide")
    assert "hidden_size" in refusal(path)


# Frozen


def test_a_teacher_never_trains(tmp_path):
    path, model = save_resnet(tmp_path / "teacher")
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS)
    enclosing = nn.ModuleDict({"student": nn.Dropout(), "teacher": teacher})
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    pixels = prepared(student_processor()).requires_grad_()
    expected = logits_of(model, prepared(ViTImageProcessor(size=SIZE)))
    for train in (teacher.train, enclosing.train):
        assert train() is not None
        assert not any(module.training for module in teacher.model.modules())
        logits = teacher(pixels)
        assert_close(logits, expected)
        assert not logits.requires_grad
    assert enclosing["student"].training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


# Precision and provenance


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_the_dtype_is_an_option(tmp_path, dtype):
    path, model = save_vit(tmp_path / "teacher", student_processor())
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS, dtype=dtype)
    assert teacher.dtype is torch.bfloat16
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    pixels = prepared(student_processor())
    logits = teacher(pixels)
    assert logits.dtype is torch.float32
    exact = logits_of(model, pixels)
    assert torch.equal(logits, logits_of(model.bfloat16(), pixels.bfloat16()).float())
    assert not torch.equal(logits, exact)


def test_without_a_dtype_it_is_float32_whatever_the_checkpoint_has(tmp_path):
    path, model = save_vit(tmp_path / "teacher")
    model.bfloat16().save_pretrained(path)
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS)
    assert teacher.dtype is torch.float32
    assert_close(
        teacher(prepared(student_processor())), logits_of(model.float(), prepared(ViTImageProcessor(size=SIZE)))
    )


@pytest.mark.parametrize("dtype", ["float33", "int8", "nn", "", torch.int64, "float8_e4m3fn"])
def test_an_unknown_dtype_is_refused(tmp_path, dtype):
    path, _ = save_resnet(tmp_path / "teacher")
    message = refusal(path, dtype=dtype)
    assert repr(dtype) in message
    assert "bfloat16" in message


def test_a_folder_has_no_revision(tmp_path):
    path, _ = save_resnet(tmp_path / "teacher")
    teacher = load_teacher(path, student_processor=student_processor(), id2label=LABELS)
    assert (teacher.name_or_path, teacher.revision) == (path, None)


_REPORT = """
import json
from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessor
from hf_deit.models.student import load_student
from hf_deit.models.teacher import describe_teacher, load_labels, load_teacher

processor = DistilledDeiTImageProcessor(crop_size={"height": 32, "width": 32}, crop_ratio=1.0)
for revision in (None, "main", "v1", "HASH"):
    teacher = load_teacher("someone/teacher", student_processor=processor, revision=revision)
    print(json.dumps([teacher.name_or_path, teacher.revision, teacher.id2label["0"] if "0" in teacher.id2label else
                      teacher.id2label[0]]))
"""


def test_the_commit_of_a_hub_teacher_is_recorded(tmp_path):
    """Against a cache as huggingface_hub leaves it, where the tag "v1" is an older commit than "main"."""
    repository = tmp_path / "models--someone--teacher"
    commits = {"main": "a" * 40, "v1": "0123456789" * 4}
    for reference, commit in commits.items():
        labels = {0: f"first of {reference}", 1: "second"}
        save_resnet(repository / "snapshots" / commit, labels=labels)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    result = subprocess.run(
        [sys.executable, "-c", _REPORT.replace("HASH", commits["v1"])],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert lines == [
        ["someone/teacher", commits["main"], "first of main"],
        ["someone/teacher", commits["main"], "first of main"],
        ["someone/teacher", commits["v1"], "first of v1"],
        ["someone/teacher", commits["v1"], "first of v1"],
    ]


@pytest.mark.parametrize("name", ["outputs/run/nowhere", "./nowhere", "/nowhere"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(name):
    for role, load in (
        ("teacher", load_labels),
        ("teacher", lambda name: describe_teacher(name, student_processor=student_processor())),
        ("student", lambda name: load_student(name, id2label={0: "a", 1: "b"})),
    ):
        with pytest.raises(InputError, match=f"there is no folder '{name}' to load the {role} from"):
            load(name)
