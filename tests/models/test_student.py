"""Contract: the student is the model that was named, with the data's labels, its own weights and its own pixels.

A checkpoint keeps every weight but the heads that are to be replaced, and its preprocessing; whatever would have to be
guessed is refused.
"""

import functools
import json
import logging
import os
import re
import shlex

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import checkpoints, tiny
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessor,
    Dinov2Config,
    Dinov2ForImageClassification,
    EfficientNetImageProcessor,
    PoolFormerImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from hf_deit.errors import InputError
from hf_deit.export.checkpoints.write import convert_checkpoint
from hf_deit.models.configuration_deit import DistilledDeiTConfig, PlainDeiTConfig
from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessor
from hf_deit.models.modeling_deit import DistilledDeiTForImageClassification, PlainDeiTForImageClassification
from hf_deit.models.student import lacked_fields, load_student
from hf_deit.models.teacher import load_labels, load_teacher

LABELS = {0: "ape", 1: "bee", 2: "cat"}
OTHERS = {0: "pine", 1: "quince", 2: "rose"}  # as many, so that a head that was kept would go unnoticed by its shape
FIVE = {**OTHERS, 3: "sage", 4: "thyme"}
SIZE = {"height": 32, "width": 32}
TINY = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, patch_size=8, image_size=32
)
TINY_RESNET = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def inverse(labels: dict[int, str]) -> dict[str, int]:
    return {name: index for index, name in labels.items()}


def named(labels=LABELS) -> dict:
    return {"id2label": labels, "label2id": inverse(labels)}


def randomised(model: nn.Module) -> nn.Module:
    """No parameter at a value that an initialisation would give it again."""
    torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.9)
    return model


def save_distilled(folder, fusion="logits"):
    config = DistilledDeiTConfig(**TINY, **named(), fusion=fusion)
    model = randomised(DistilledDeiTForImageClassification(config))
    model.save_pretrained(folder)
    DistilledDeiTImageProcessor(crop_size=SIZE).save_pretrained(folder)
    return model


def save_plain(folder):
    model = randomised(PlainDeiTForImageClassification(PlainDeiTConfig(**TINY, **named())))
    model.save_pretrained(folder)
    DistilledDeiTImageProcessor(crop_size=SIZE).save_pretrained(folder)
    return model


def save_native_deit(folder):
    model = randomised(DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY, **named())))
    model.save_pretrained(folder)
    DeiTImageProcessor(size=SIZE, crop_size=SIZE).save_pretrained(folder)
    return model


def save_native_vit(folder):
    model = randomised(ViTForImageClassification(ViTConfig(**TINY, **named())))
    model.save_pretrained(folder)
    ViTImageProcessor(size=SIZE).save_pretrained(folder)
    return model


def save_resnet(folder, processor=None):
    model = randomised(ResNetForImageClassification(ResNetConfig(**TINY_RESNET, **named())))
    model.save_pretrained(folder)
    (processor or ViTImageProcessor(size=SIZE)).save_pretrained(folder)
    return model


def save_timm(folder, **pretrained_cfg):
    model = randomised(timm.create_model("test_resnet", num_classes=3))
    settings = {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.3, 0.2, 0.1],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        **pretrained_cfg,
    }
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": settings}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "label_names": list(LABELS.values())}))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return model


CHECKPOINTS = {
    "distilled": (save_distilled, DistilledDeiTForImageClassification, ("cls_classifier", "distillation_classifier")),
    "distilled, one head answers": (
        functools.partial(save_distilled, fusion="distillation"),
        DistilledDeiTForImageClassification,
        ("cls_classifier", "distillation_classifier"),
    ),
    "plain": (save_plain, PlainDeiTForImageClassification, ("classifier",)),
    "native DeiT": (
        save_native_deit,
        DistilledDeiTForImageClassification,
        ("cls_classifier", "distillation_classifier"),
    ),
    "native ViT": (save_native_vit, PlainDeiTForImageClassification, ("classifier",)),
    "ResNet": (save_resnet, ResNetForImageClassification, ("classifier.1",)),
    "timm": (save_timm, PreTrainedModel, ("timm_model.fc",)),
}


def pixels(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """By our names: the timm wrapper's prefix taken off, whatever the wrapper is."""
    return {name.removeprefix("timm_model."): tensor for name, tensor in model.state_dict().items()}


def refusal(name, labels=LABELS, **arguments) -> str:
    with pytest.raises(InputError) as error:
        load_student(str(name), id2label=labels, **arguments)
    return str(error.value)


# Made anew


@pytest.mark.parametrize(
    ("name", "model_class"),
    [
        ("deit_tiny_distilled_patch16_224", DistilledDeiTForImageClassification),
        ("deit_tiny_patch16_224", PlainDeiTForImageClassification),
    ],
)
def test_a_model_of_the_zoo_with_overrides(name, model_class):
    overrides = {"num_hidden_layers": 2, "drop_path_rate": 0.25, "patch_size": 8}
    model, processor = load_student(name, id2label=LABELS, image_size=48, crop_ratio=0.75, overrides=overrides)
    assert type(model) is model_class
    assert model.training
    assert (model.config.id2label, model.config.label2id) == (LABELS, inverse(LABELS))
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.drop_path_rate) == (192, 2, 0.25)
    assert (config.image_size, config.patch_size) == (48, 8)
    assert model(pixels(48)).logits.shape == (2, 3)
    prepared = processor(Image.new("RGB", (100, 80), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert prepared.shape == (1, 3, 48, 48)
    assert processor.crop_ratio == 0.75
    assert prepared[0, 0].mean().item() == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)  # ImageNet's statistics


@pytest.mark.parametrize(("overrides", "size"), [({}, 224), ({"image_size": 64}, 64)])
def test_the_processor_has_the_size_of_the_model(overrides, size):
    overrides = {"num_hidden_layers": 1, **overrides}
    _, processor = load_student("deit_tiny_patch16_224", id2label=LABELS, overrides=overrides)
    assert processor(Image.new("RGB", (300, 300)), return_tensors="pt")["pixel_values"].shape[-2:] == (size, size)


def test_a_transformers_architecture_is_made_anew():
    model, processor = load_student("resnet", id2label=LABELS, image_size=40, overrides=TINY_RESNET)
    assert type(model) is ResNetForImageClassification
    assert model.training
    assert model.config.hidden_sizes == [8, 16]
    assert (model.config.id2label, model.config.label2id) == (LABELS, inverse(LABELS))
    assert model.classifier[1].out_features == 3
    assert processor(Image.new("RGB", (90, 70)), return_tensors="pt")["pixel_values"].shape[-2:] == (40, 40)


def test_a_model_type_of_several_classes_is_made_as_the_first_of_them():
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, _ = load_student("deit", id2label=LABELS, image_size=32, overrides=tiny)
    assert type(model).__name__ == "DeiTForImageClassification" and model.config.image_size == 32


def test_what_is_not_there_is_not_blamed_on_overrides(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot load the student 'no/where': "):
        load_student("no/where", id2label=LABELS, overrides={"drop_path_rate": 0.1})


@pytest.mark.parametrize("kind", ["zoo", "resnet", "checkpoint", "renewed"])
def test_labels_that_share_a_name_are_told_apart(tmp_path, kind):
    twice, unique = {0: "a", 1: "b", 2: "a", 3: "c"}, {0: "a (0)", 1: "b", 2: "a (2)", 3: "c"}
    if kind in ("zoo", "resnet"):
        name, fields = {"zoo": ("deit_tiny_patch16_224", TINY), "resnet": ("resnet", TINY_RESNET)}[kind]
        model, _ = load_student(name, id2label=twice, overrides=fields)
    else:
        config = ResNetConfig(**TINY_RESNET, **named(twice if kind == "checkpoint" else LABELS))
        ResNetForImageClassification(config).save_pretrained(tmp_path)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
        model, _ = load_student(tmp_path, id2label=twice, replace_head=kind == "renewed")
    assert model.config.id2label == unique
    assert model.config.label2id == inverse(unique)


def test_two_students_made_anew_have_different_weights():
    first, second = (load_student("resnet", id2label=LABELS, overrides=TINY_RESNET)[0] for _ in range(2))
    assert not torch.equal(first.classifier[1].weight, second.classifier[1].weight)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("deit_tiny_distiled_patch16_224", "deit_tiny_distilled_patch16_224"),
        ("deit_smal_patch16_224", "deit_small_patch16_224"),
        ("resnett", "resnet"),
    ],
)
def test_an_unknown_name_gives_the_nearest(name, meant):
    message = refusal(name)
    assert repr(name) in message
    assert f"did you mean {meant!r}?" in message


@pytest.mark.parametrize("name", ["./nope", "nobody/nothing-here"])
def test_no_such_checkpoint_is_refused(name):
    assert repr(name) in refusal(name)


def test_a_model_that_classifies_no_images_is_refused():
    assert "bert" in refusal("bert")


@pytest.mark.parametrize(
    "overrides",
    [
        {"hidden_size": 100},
        {"num_attention_heads": 5},
        {"image_size": 100},
        {"patch_size": 0},
        {"drop_path_rate": 1.0},
        {"drop_path_rate": "0.1"},
        {"fusion": "vote"},
        {"hidden_act": "gelou"},
        {"num_labels": 4},
        {"hidden_siz": 96},
    ],
    ids=str,
)
def test_an_impossible_override_of_the_zoo_is_refused(overrides):
    message = refusal("deit_tiny_distilled_patch16_224", overrides=overrides)
    assert next(iter(overrides)) in message


@pytest.mark.parametrize(
    "overrides",
    [
        {"layer_type": "wide"},
        {"embedding_size": "wide"},
        {"embedding_size": -1},
        {"hidden_sizes": []},
        {"embeding_size": 16},  # transformers' configurations swallow misspelt fields
    ],
    ids=str,
)
def test_an_impossible_override_of_an_architecture_is_refused(overrides):
    message = refusal("resnet", overrides={**TINY_RESNET, **overrides})
    assert next(iter(overrides)) in message


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "resnet"])
@pytest.mark.parametrize("size", [0, -32])
def test_an_impossible_size_is_refused(name, size):
    assert "image_size" in refusal(name, image_size=size)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "cait_xxs24_224", "resnet"]
)
def test_the_usual_crop_is_that_of_the_authors_for_its_size(name, size):
    overrides = TINY_RESNET if name == "resnet" else {"num_hidden_layers": 1}
    _, processor = load_student(name, id2label=LABELS, image_size=size, overrides=overrides)
    uncropped = size == 32 or name.startswith("cait")
    assert processor.crop_ratio == (1.0 if uncropped else 0.875)
    assert processor.size.shortest_edge == (size if uncropped else 73)
    _, stated = load_student(name, id2label=LABELS, image_size=size, crop_ratio=0.875, overrides=overrides)
    assert stated.size.shortest_edge == int(size / 0.875)


@pytest.mark.parametrize("crop_ratio", [0.0, -0.5, 1.5])
def test_an_impossible_crop_ratio_is_refused(crop_ratio):
    assert "crop_ratio" in refusal("resnet", crop_ratio=crop_ratio, overrides=TINY_RESNET)


def test_options_for_checkpoints_are_refused_for_a_new_student():
    assert "replace_head" in refusal("resnet", replace_head=True)
    assert "student_revision" in refusal("deit_tiny_patch16_224", revision="main")


# Checkpoints


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_goes_on_with_all_its_weights(tmp_path, kind):
    save, model_class, _ = CHECKPOINTS[kind]
    original = save(tmp_path / "student")
    model, _ = load_student(str(tmp_path / "student"), id2label=LABELS)
    assert isinstance(model, model_class)
    assert model.training
    assert all(parameter.requires_grad and parameter.dtype is torch.float32 for parameter in model.parameters())
    assert (model.config.id2label, model.config.label2id) == (LABELS, inverse(LABELS))
    kept = weights(model)
    assert set(kept) == set(weights(original))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(original).items())


def test_fields_of_a_checkpoint_can_be_overridden(tmp_path):
    save_native_vit(tmp_path / "student")
    path = str(tmp_path / "student")
    model, _ = load_student(path, id2label=LABELS, overrides={"drop_path_rate": 0.25})
    assert model.vit.layers[-1].mlp_depth.rate == 0.25
    assert "drop_path" in refusal(path, overrides={"drop_path": 0.25})
    assert path in refusal(path, overrides={"num_attention_heads": 7})
    assert "--student_overrides null" in refusal(path, overrides={"hidden_size": 48})
    assert "cannot take 33 pixels" in refusal(path, image_size=33)  # no multiple of the patch size


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_field_that_a_checkpoint_has_not_is_named(tmp_path, kind):
    """And not the argument of some constructor."""
    CHECKPOINTS[kind][0](tmp_path / "student")
    message = refusal(tmp_path / "student", overrides={"hiden_size": 3})
    assert "student' has no field 'hiden_size'" in message
    assert "unexpected keyword" not in message
    assert lacked_fields(tmp_path / "student", {"hiden_size": 3, "num_labels": 3, "attn_implementation": "sdpa"}) == [
        "hiden_size"
    ]


def test_fields_of_an_attribute_map_and_of_the_loader_are_taken(tmp_path):
    save_resnet(tmp_path / "student")
    overrides = {"hidden_act": "gelu", "attn_implementation": "eager"}
    model, _ = load_student(str(tmp_path / "student"), id2label=LABELS, overrides=overrides)
    assert model.config.hidden_act == "gelu"
    assert "'drop_path_rate'" in refusal(tmp_path / "student", overrides={"drop_path_rate": 0.1})


TIMM = {"label_names": list(LABELS.values()), "model_args": checkpoints.TINY_TIMM}


@pytest.mark.parametrize("architecture", ["deit_tiny_patch16_224", "cait_xxs24_224", "test_resnet"])
def test_overrides_of_a_timm_checkpoint_are_arguments_of_its_model(tmp_path, architecture):
    """Those of transformers' wrapper stay its own."""
    sizes = {} if architecture == "test_resnet" else checkpoints.TINY_TIMM
    model = timm.create_model(architecture, num_classes=3, **sizes)
    fields = {**TIMM, "architecture": architecture, "model_args": sizes}
    path = str(checkpoints.timm_folder(tmp_path / "student", model.state_dict(), **fields))
    own = {"initializer_range": 0.5, "attn_implementation": "sdpa"}
    overrides = {**own, "drop_path_rate": 0.25, "model_args": {"drop_rate": 0.125}}
    assert lacked_fields(path, overrides) == []
    student, processor = load_student(path, id2label=LABELS, overrides=overrides)
    assert student.config.model_args == {**sizes, "drop_path_rate": 0.25, "drop_rate": 0.125}
    assert student.config.initializer_range == 0.5
    rates = {module.drop_prob for module in student.modules() if isinstance(module, timm.layers.DropPath)}
    assert max(rates) == 0.25
    student.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    again, _ = load_student(tmp_path / "trained", id2label=LABELS)
    assert again.config.model_args == student.config.model_args
    for wrong in ({"hidden_size": 64}, {"drop_path": 0.1}, {"image_size": 64}):
        assert f"has no field {next(iter(wrong))!r}" in refusal(path, overrides=wrong)
        assert lacked_fields(path, {**wrong, "drop_path_rate": 0.1}) == list(wrong)
    assert path in refusal(path, overrides={"drop_path_rate": "much"})


def test_a_distillation_head_of_timm_is_not_lost(tmp_path):
    """transformers' wrapper gives one output; converted, it is a student with both heads."""
    model = checkpoints.tiny_timm_model("deit_tiny_distilled_patch16_224")
    path = str(checkpoints.timm_folder(tmp_path / "x", model.state_dict(), **TIMM))
    for overrides in ({}, {"drop_path_rate": 0.1}):
        message = refusal(path, overrides=overrides)
        assert "distillation head" in message
    convert, source, destination, *to = shlex.split(re.search(r"convert (\S+ \S+ --to hf_deit);", message)[0][:-1])
    assert (convert, source, destination, to) == ("convert", path, "outputs/x", ["--to", "hf_deit"])
    assert "--student outputs/x" in message
    convert_checkpoint(source, tmp_path / "converted", to="hf_deit")
    student, _ = load_student(tmp_path / "converted", id2label=LABELS, overrides={"drop_path_rate": 0.1})
    assert torch.equal(student.distillation_classifier.weight, model.head_dist.weight)


FILES = ("x.pth", "x.pt", "x.bin", "x.safetensors", "x.pth.tar", "x.ckpt", "my weights.PTH", "a/x.pth")


@pytest.mark.parametrize("load", ["student", "teacher", "labels of a teacher"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_of_weights_is_refused_with_the_command_that_converts_it(tmp_path, monkeypatch, load, name, is_there):
    monkeypatch.chdir(tmp_path)
    if is_there:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        torch.save(checkpoints.weights_of(), name)
    loaders = {
        "student": lambda: load_student(name, id2label=LABELS),
        "teacher": lambda: load_teacher(name, student_processor=tiny.processor()),
        "labels of a teacher": lambda: load_labels(name),
    }
    with pytest.raises(InputError) as error:
        loaders[load]()
    message = str(error.value)
    assert ("is a file" if is_there else f"there is no file {name!r}") in message
    command = re.search(r"(hf-deit|python -m hf_deit) convert (.*?); then give (\S+) (.*)", message)
    source, destination, *to = shlex.split(command[2])
    assert (source, to) == (name, ["--to", "hf_deit"])
    assert destination == command[4] == name[: name.lower().index(".p" if ".p" in name.lower() else ".")]
    assert command[3] == ("--student" if load == "student" else "--teacher_model_name_or_path")
    if is_there and load == "student" and name in ("x.pth", "x.pth.tar", "my weights.PTH"):
        convert_checkpoint(source, destination, to="hf_deit")
        load_student(destination, id2label=LABELS, replace_head=True)


@pytest.mark.parametrize("name", ["x.onnx", "there/model.safetensors", "there/pytorch_model.bin", "notes.txt"])
def test_other_files_are_refused_with_what_to_give_instead(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save_resnet(tmp_path / "there")
    for path in ("x.onnx", "there/pytorch_model.bin", "notes.txt"):
        (tmp_path / path).write_bytes(b"...")
    expected = {"x.onnx": "exported from", "notes.txt": "is a file"}.get(name, "--student there")
    assert expected in refusal(name)


def test_a_processor_without_a_variant_for_torchvision_is_no_absent_torchvision(tmp_path, caplog, monkeypatch):
    """transformers says so of timm's, once in a process."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")  # whatever a run before has asked for
    said_once = logging.getLogger("transformers.models.auto.image_processing_auto").warning_once
    save_timm(tmp_path / "student")
    for load, is_said in (
        (lambda: load_student(tmp_path / "student", id2label=LABELS), False),
        (lambda: AutoImageProcessor.from_pretrained(tmp_path / "student"), True),  # else there is nothing to leave out
    ):
        said_once.cache_clear()
        load()
        assert ("Requested torchvision backend is not available" in caplog.text) == is_said


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("labels", [OTHERS, FIVE, {0: "bee", 1: "ape", 2: "cat"}], ids=["other", "more", "reordered"])
def test_other_labels_need_replace_head(tmp_path, kind, labels):
    CHECKPOINTS[kind][0](tmp_path / "student")
    message = refusal(tmp_path / "student", labels)
    assert "--replace_head" in message
    assert str(tmp_path / "student") in message


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("labels", [OTHERS, FIVE], ids=["as many", "more"])
def test_replace_head_renews_the_heads_and_nothing_else(tmp_path, kind, labels):
    save, model_class, heads = CHECKPOINTS[kind]
    original = weights(save(tmp_path / "student"))
    model, _ = load_student(str(tmp_path / "student"), id2label=labels, replace_head=True)
    assert isinstance(model, model_class)
    assert model.training
    assert (model.config.id2label, model.config.label2id) == (labels, inverse(labels))
    assert model.config.num_labels == len(labels)
    renewed = weights(model)
    assert set(renewed) == set(original)
    heads = {f"{head.removeprefix('timm_model.')}.{part}" for head in heads for part in ("weight", "bias")}
    assert heads <= set(original)
    for name, tensor in original.items():
        if name not in heads:
            assert torch.equal(renewed[name], tensor), name
            continue
        assert renewed[name].shape == (len(labels), *tensor.shape[1:])
        # The checkpoint's lie in [0.1, 0.9]: new ones have zero mean, and are not all zero where weights.
        assert abs(renewed[name].mean().item()) < 0.1
        assert name.endswith("bias") or renewed[name].std() > 1e-3
    assert model(pixels()).logits.shape == (2, len(labels))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_new_heads_are_initialised_as_in_the_paper(tmp_path):
    save_distilled(tmp_path / "student")
    labels = {i: f"class {i}" for i in range(400)}
    model, _ = load_student(str(tmp_path / "student"), id2label=labels, replace_head=True)
    for head in (model.cls_classifier, model.distillation_classifier):
        assert not head.bias.any()
        assert head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(model.cls_classifier.weight, model.distillation_classifier.weight)


def test_a_backbone_without_head_needs_replace_head(tmp_path):
    path = str(tmp_path / "student")
    backbone = randomised(ViTModel(ViTConfig(**TINY, **named()), add_pooling_layer=False))
    backbone.save_pretrained(path)
    ViTImageProcessor(size=SIZE).save_pretrained(path)
    message = refusal(path)
    assert "classifier" in message
    assert "--replace_head" in message
    model, _ = load_student(path, id2label=LABELS, replace_head=True)
    loaded = model.base_model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in backbone.state_dict().items())


def test_a_distilled_checkpoint_that_lost_a_head_needs_replace_head(tmp_path):
    """As transformers saves one of which it knows the head alone that answers."""
    path, model = str(tmp_path / "student"), save_distilled(tmp_path / "student", fusion="cls")
    AutoModelForImageClassification.from_pretrained(path).save_pretrained(path)
    assert "distillation_classifier" in refusal(path)
    renewed, _ = load_student(path, id2label=LABELS, replace_head=True)
    kept = renewed.deit.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.deit.state_dict().items())


@pytest.mark.parametrize("kind", ["distilled", "native ViT", "ResNet", "timm"])
@pytest.mark.parametrize("replace_head", [False, True])
def test_missing_backbone_weights_are_refused(tmp_path, kind, replace_head):
    """With new heads too: only heads may start anew."""
    CHECKPOINTS[kind][0](tmp_path / "student")
    file = tmp_path / "student" / "model.safetensors"
    state = load_file(file)
    part = {"ResNet": "layer.0.convolution.weight", "timm": "layer2.0.conv1.weight"}.get(
        kind, "intermediate.dense.weight"
    )
    dropped = next(name for name in sorted(state) if part in name)
    del state[dropped]
    save_file(state, file, metadata={"format": "pt"})
    assert str(tmp_path / "student") in refusal(tmp_path / "student", replace_head=replace_head)


def test_damaged_weights_are_refused(tmp_path):
    save_resnet(tmp_path / "student")
    with open(tmp_path / "student" / "model.safetensors", "r+b") as file:
        file.truncate(300)
    assert str(tmp_path / "student") in refusal(tmp_path / "student")


def test_a_checkpoint_without_statistics_is_refused(tmp_path):
    save_native_vit(tmp_path / "student")
    (tmp_path / "student" / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in refusal(tmp_path / "student")


# Its pixels


def picture(height: int = 300, width: int = 300) -> Image.Image:
    """Smooth, so that the resampling filter matters little and the geometry much."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / a + y / b) for a, b in ((17, 40), (31, -23), (-25, 19))]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


PROCESSORS = {
    "ours, 0.9": lambda: DistilledDeiTImageProcessor(crop_size={"height": 96, "width": 96}, crop_ratio=0.9),
    "ours, 1.0": lambda: DistilledDeiTImageProcessor(crop_size=SIZE, crop_ratio=1.0),
    "ours, statistics": lambda: DistilledDeiTImageProcessor(
        crop_size=SIZE, image_mean=[0.1, 0.2, 0.3], image_std=[0.9, 0.8, 0.7]
    ),
    "93 to 64": lambda: DistilledDeiTImageProcessor(crop_size={"height": 64, "width": 64}, size={"shortest_edge": 93}),
    "ViT": lambda: ViTImageProcessor(size=SIZE, resample=3),
    "ConvNeXt": lambda: ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.8, resample=3),
    "DeiT on the Hub": lambda: DeiTImageProcessor(
        size={"height": 256, "width": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_checkpoint_keeps_its_preprocessing(tmp_path, name):
    own = PROCESSORS[name]()
    save_resnet(tmp_path / "student", own)
    _, processor = load_student(str(tmp_path / "student"), id2label=LABELS)
    assert isinstance(processor, DistilledDeiTImageProcessor)
    expected = own(picture(), return_tensors="pt")["pixel_values"]
    got = processor(picture(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "own",
    [
        ViTImageProcessor(size=SIZE, resample=3, do_normalize=False),
        ViTImageProcessor(size=SIZE, resample=3, do_normalize=False, image_mean=None, image_std=None),
        ViTImageProcessor(size=SIZE, resample=3, do_rescale=False, image_mean=[120.0] * 3, image_std=[60.0] * 3),
        EfficientNetImageProcessor(
            size=SIZE, resample=3, rescale_factor=1 / 127.5, rescale_offset=True, include_top=False
        ),
    ],
    ids=["not normalised", "not normalised, no mean", "not rescaled", "rescaled to [-1, 1]"],
)
def test_other_arithmetic_is_kept_or_refused(tmp_path, own):
    save_resnet(tmp_path / "student", own)
    try:
        _, processor = load_student(str(tmp_path / "student"), id2label=LABELS)
    except InputError:
        return
    expected = own(picture(), return_tensors="pt")["pixel_values"]
    got = processor(picture(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0)


def test_a_timm_checkpoint_keeps_its_preprocessing(tmp_path):
    save_timm(tmp_path / "student", input_size=[3, 64, 64], crop_pct=0.8)
    _, processor = load_student(str(tmp_path / "student"), id2label=LABELS)
    settings = {"input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1), "crop_pct": 0.8}
    transform = timm.data.create_transform(**settings, interpolation="bicubic", crop_mode="center", is_training=False)
    got = processor(picture(200, 260), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(got, transform(picture(200, 260)), atol=0.05, rtol=0)


def test_preprocessing_survives_any_number_of_rounds(tmp_path):
    """A student of a student of a student: the resized size must not drift by rounding."""
    expected = None
    processor = DistilledDeiTImageProcessor(crop_size={"height": 64, "width": 64}, crop_ratio=0.685)
    for generation in range(4):
        prepared = processor(picture(), return_tensors="pt")["pixel_values"]
        expected = prepared if expected is None else expected
        assert torch.equal(prepared, expected), f"generation {generation}"
        save_resnet(tmp_path / str(generation), processor)
        _, processor = load_student(str(tmp_path / str(generation)), id2label=LABELS)


def test_the_crop_ratio_of_a_checkpoint_can_be_set(tmp_path):
    model, processor = load_student(
        "deit_tiny_distilled_patch16_224", id2label=LABELS, overrides={**TINY, "image_size": 64}
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_student(str(tmp_path), id2label=LABELS)[1].crop_ratio == 0.875
    changed = load_student(str(tmp_path), id2label=LABELS, crop_ratio=0.5)[1]
    assert changed.size.shortest_edge == 2 * changed.crop_size.height
    assert changed.image_mean == processor.image_mean
    assert load_student(str(tmp_path), id2label=LABELS, image_size=32)[1].crop_ratio == 1.0  # the authors' there


def test_a_small_checkpoint_of_an_earlier_version_keeps_its_crop(tmp_path):
    model, _ = load_student("deit_tiny_distilled_patch16_224", id2label=LABELS, overrides=TINY)
    model.save_pretrained(tmp_path)
    DistilledDeiTImageProcessor(crop_size=SIZE, crop_ratio=0.875).save_pretrained(tmp_path)
    _, processor = load_student(str(tmp_path), id2label=LABELS)
    assert (processor.crop_ratio, processor.size.shortest_edge) == (0.875, 36)


# At another size


def spread(model: nn.Module) -> nn.Module:
    """Weights with which every position and every pixel matters."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def save(model: nn.Module, folder, processor=None) -> str:
    spread(model).save_pretrained(folder)
    (processor or ViTImageProcessor(size=SIZE)).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def answers(model: nn.Module, size: int, **arguments) -> torch.Tensor:
    return model.eval()(pixels(size), **arguments).logits


TRANSFORMERS_OWN = {
    "distilled": DeiTForImageClassificationWithTeacher,
    "native DeiT": DeiTForImageClassificationWithTeacher,
    "plain": ViTForImageClassification,
    "native ViT": ViTForImageClassification,
}


@pytest.fixture(params=TRANSFORMERS_OWN)
def transformer(request, tmp_path) -> tuple[str, nn.Module]:
    """A folder, and what transformers makes of it."""
    save(CHECKPOINTS[request.param][0](tmp_path / "student"), tmp_path / "student")
    return str(tmp_path / "student"), TRANSFORMERS_OWN[request.param].from_pretrained(tmp_path / "student").eval()


@pytest.mark.parametrize("size", [16, 48, 72])
def test_at_another_size_it_answers_as_transformers_does_with_interpolated_positions(tmp_path, transformer, size):
    path, native = transformer
    model, processor = load_student(path, id2label=LABELS, image_size=size)
    expected = answers(native, size, interpolate_pos_encoding=True)
    assert expected.std() > 0.01
    torch.testing.assert_close(answers(model, size), expected, atol=1e-5, rtol=0)
    assert model.config.image_size == size
    # It is saved as a checkpoint of that size, which transformers needs no flag to open and run.
    model.save_pretrained(tmp_path / "resized")
    processor.save_pretrained(tmp_path / "resized")
    again = type(native).from_pretrained(tmp_path / "resized")
    assert again.config.image_size == size
    torch.testing.assert_close(answers(again, size), expected, atol=1e-5, rtol=0)
    prepared = AutoImageProcessor.from_pretrained(tmp_path / "resized")(picture(), return_tensors="pt")["pixel_values"]
    assert prepared.shape == (1, 3, size, size)
    taken_up, _ = load_student(str(tmp_path / "resized"), id2label=LABELS)
    assert torch.equal(answers(taken_up, size), answers(model, size))


def test_only_the_positions_of_patches_are_interpolated(transformer):
    path, native = transformer
    model, _ = load_student(path, id2label=LABELS, image_size=48)
    before, after = weights(load_student(path, id2label=LABELS)[0]), weights(model)
    assert set(before) == set(after)
    (name,) = (name for name in before if name.endswith("position_embeddings"))
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items() if key != name)
    special = before[name].shape[1] - 16
    assert after[name].shape == (1, special + 36, TINY["hidden_size"])
    assert torch.equal(after[name][:, :special], before[name][:, :special])
    with torch.no_grad():
        expected = native.base_model.embeddings.interpolate_pos_encoding(after[name], 48, 48)
    torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=0)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(transformer):
    path, _ = transformer
    for size in (33, 4):
        message = refusal(path, image_size=size)
        assert path in message
        assert f"{size} pixels" in message
        assert "patch_size 8" in message


def test_its_own_size_changes_nothing(transformer):
    path, _ = transformer
    (one, its), (other, others) = (load_student(path, id2label=LABELS, **size) for size in ({}, {"image_size": 32}))
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())
    assert its.to_dict() == others.to_dict()


STATISTICS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]}
CROP = {"height": 224, "width": 224}


@pytest.mark.parametrize(
    "own",
    [
        DistilledDeiTImageProcessor(crop_size=CROP, **STATISTICS),
        DeiTImageProcessor(size={"height": 256, "width": 256}, crop_size=CROP, **STATISTICS),
    ],
    ids=["ours", "DeiT on the Hub"],
)
def test_the_processor_follows_the_size(tmp_path, own):
    config = DistilledDeiTConfig(**{**TINY, "image_size": 224, "patch_size": 32}, **named())
    path = save(DistilledDeiTForImageClassification(config), tmp_path / "student", own)
    _, processor = load_student(path, id2label=LABELS, image_size=384)
    assert (processor.crop_size.height, processor.crop_size.width) == (384, 384)
    assert processor.size.shortest_edge == 438  # as 256 to 224
    assert list(processor.image_mean) == STATISTICS["image_mean"]
    assert list(processor.image_std) == STATISTICS["image_std"]
    prepared = processor(picture(500, 700), return_tensors="pt")["pixel_values"]
    assert prepared.shape == (1, 3, 384, 384)
    _, whole = load_student(path, id2label=LABELS, image_size=384, crop_ratio=1.0)
    assert (whole.crop_size.height, whole.size.shortest_edge) == (384, 384)
    assert list(whole.image_mean) == STATISTICS["image_mean"]


@pytest.mark.parametrize(
    ("own", "crop", "resized"),
    [
        (ViTImageProcessor(size={"height": 48, "width": 32}), (48, 32), 48),
        (ViTImageProcessor(size=48, do_resize=False), (48, 48), 48),
        (ViTImageProcessor(do_resize=False), (224, 224), 224),
        (ConvNextImageProcessor(size={"shortest_edge": 64}), (64, 64), 73),
        (ConvNextImageProcessor(size={"shortest_edge": 448}), (448, 448), 448),  # cuts nothing off such large ones
        (PoolFormerImageProcessor(size={"shortest_edge": 64}, crop_size=64), (64, 64), 71),
    ],
)
def test_the_processor_does_what_the_checkpoints_does(tmp_path, own, crop, resized):
    save_resnet(tmp_path / "student", own)
    _, processor = load_student(tmp_path / "student", id2label=LABELS)
    assert (processor.crop_size.height, processor.crop_size.width) == crop
    assert processor.size.shortest_edge == resized


@pytest.mark.parametrize("size", [None, 48])
@pytest.mark.parametrize("crop_ratio", [0.0, 1.5])
def test_an_impossible_crop_ratio_of_a_checkpoint_is_refused(tmp_path, size, crop_ratio):
    save_resnet(tmp_path / "student")
    assert "crop_ratio" in refusal(tmp_path / "student", image_size=size, crop_ratio=crop_ratio)


@pytest.mark.parametrize("size", [16, 33, 64])
def test_a_convnet_takes_any_size(tmp_path, size):
    original = save_resnet(tmp_path / "student")
    path = save(original, tmp_path / "student", ViTImageProcessor(size=SIZE, **STATISTICS))
    model, processor = load_student(path, id2label=LABELS, image_size=size)
    assert model.training
    assert all(torch.equal(tensor, weights(model)[name]) for name, tensor in weights(original).items())
    assert torch.equal(answers(model, size), answers(original, size))
    assert processor(picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, size, size)
    assert list(processor.image_mean) == STATISTICS["image_mean"]


def timm_folder(folder, architecture: str, size: int) -> str:
    model = spread(timm.create_model(architecture, num_classes=3))
    statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]}
    crop = {"interpolation": "bicubic", "crop_pct": 0.8, "crop_mode": "center"}
    settings = {"input_size": [3, size, size], **statistics, **crop}
    folder.mkdir()
    config = {"architecture": architecture, "num_classes": 3, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps({**config, "label_names": list(LABELS.values())}))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


FIXED = {
    "DeiT without teacher": lambda: DeiTForImageClassification(DeiTConfig(**TINY, **named())),
    "ViT-MSN": lambda: ViTMSNForImageClassification(ViTMSNConfig(**TINY, **named())),
    "Swin": lambda: SwinForImageClassification(SwinConfig(**SWIN, use_absolute_embeddings=True, **named())),
}
SWIN = dict(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)


@pytest.mark.parametrize("architecture", [*FIXED, "timm"])
def test_an_architecture_of_fixed_size_is_refused(tmp_path, architecture):
    if architecture == "timm":
        path, size = timm_folder(tmp_path / "student", "test_vit_relpos", 160), 192
    else:
        path, size = save(FIXED[architecture](), tmp_path / "student"), 48
    assert load_student(path, id2label=LABELS)[0].training  # at its own size it is a student
    message = refusal(path, image_size=size)
    assert path in message
    assert f"{size} pixels" in message
    assert "--image_size" in message


OTHER_ARCHITECTURES = {
    "Swin": lambda: SwinForImageClassification(SwinConfig(**SWIN, **named())),
    "ConvNeXt": lambda: ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **named())
    ),
    "DINOv2": lambda: Dinov2ForImageClassification(Dinov2Config(**TINY, **named())),
    "BEiT": lambda: BeitForImageClassification(BeitConfig(**TINY, use_absolute_position_embeddings=True, **named())),
}


@pytest.mark.parametrize("architecture", OTHER_ARCHITECTURES)
def test_what_another_architecture_became_opens_again_or_is_refused(tmp_path, architecture):
    path = save(OTHER_ARCHITECTURES[architecture](), tmp_path / "student")
    try:
        model, processor = load_student(path, id2label=LABELS, image_size=48)
    except InputError:
        return
    model.save_pretrained(tmp_path / "resized")
    processor.save_pretrained(tmp_path / "resized")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "resized")
    torch.testing.assert_close(answers(again, 48), answers(model, 48), atol=1e-6, rtol=0)


def test_a_timm_convnet_fine_tuned_to_another_size_teaches_there(tmp_path):
    """Saved by the trainer, it says its new size and its statistics wherever they are looked for."""
    config = {"num_classes": 10, "label_names": [str(index) for index in range(10)]}
    path = timm_folder(tmp_path / "student", "test_resnet", 16)
    model = spread(timm.create_model("test_resnet", num_classes=10))
    save_file(model.state_dict(), tmp_path / "student" / "model.safetensors", metadata={"format": "pt"})
    before = json.loads((tmp_path / "student" / "config.json").read_text())
    (tmp_path / "student" / "config.json").write_text(json.dumps({**before, **config}))
    digits = {index: str(index) for index in range(10)}
    student, processor = load_student(path, id2label=digits, image_size=24)
    args = tiny.arguments(tmp_path / "run", max_steps=2, distillation_type="none")
    trainer = tiny.trainer(student, args, processing_class=processor)
    trainer.train()
    trainer.save_model()
    assert not torch.equal(student.state_dict()["timm_model.fc.weight"], model.fc.weight)

    stated = AutoConfig.from_pretrained(tmp_path / "run").pretrained_cfg
    assert (stated["input_size"], stated["mean"], stated["std"]) == ([3, 24, 24], [0.5, 0.4, 0.3], [0.3, 0.2, 0.1])
    own = processor(picture(), return_tensors="pt")["pixel_values"]
    assert own.shape == (1, 3, 24, 24)
    published = AutoImageProcessor.from_pretrained(tmp_path / "run")(picture(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(published, own, atol=0.05, rtol=0)  # timm's, which resizes with Pillow
    theirs = DistilledDeiTImageProcessor(crop_size=24, crop_ratio=0.8)  # ImageNet's statistics
    teacher = load_teacher(str(tmp_path / "run"), student_processor=theirs, id2label=digits)
    with torch.no_grad():
        expected = student.eval()(own).logits
    seen = theirs(picture(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(teacher(seen), expected, atol=1e-4, rtol=0)
    _, taken_up = load_student(str(tmp_path / "run"), id2label=digits)
    assert torch.equal(taken_up(picture(), return_tensors="pt")["pixel_values"], own)


@pytest.mark.parametrize("kind", ["distilled", "ResNet", "timm"])
def test_a_crop_ratio_that_was_set_is_published(tmp_path, kind):
    CHECKPOINTS[kind][0](tmp_path / "student")
    model, processor = load_student(str(tmp_path / "student"), id2label=LABELS, crop_ratio=0.5)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    published = AutoImageProcessor.from_pretrained(tmp_path / "saved")(picture(), return_tensors="pt")["pixel_values"]
    expected = processor(picture(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(published, expected, atol=0.05, rtol=0)
    assert load_student(str(tmp_path / "saved"), id2label=LABELS)[1].size.shortest_edge == 64


# Partly frozen


def both(*names: str) -> set[str]:
    return {f"{name}.{part}" for name in names for part in ("weight", "bias")}


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def attention(prefix: str, *parts: str) -> set[str]:
    return both(*(f"{prefix}.{layer}.{part}" for layer in (0, 1) for part in parts))


PROJECTIONS = [f"attention.{part}_proj" for part in "qkvo"]
DISTILLED_ATTENTION = attention("deit.layers", *PROJECTIONS) | {"deit.embeddings.position_embeddings"}
PLAIN_ATTENTION = attention("vit.layers", *PROJECTIONS) | {"vit.embeddings.position_embeddings"}
HEADS = {name: both(*heads) for name, (_, _, heads) in CHECKPOINTS.items()}
ATTENTION = {
    "distilled": DISTILLED_ATTENTION,
    "distilled, one head answers": DISTILLED_ATTENTION,
    "native DeiT": DISTILLED_ATTENTION,
    "plain": PLAIN_ATTENTION,
    "native ViT": PLAIN_ATTENTION,
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_all_but_the_heads_are_frozen(tmp_path, kind):
    CHECKPOINTS[kind][0](tmp_path / "student")
    model, _ = load_student(str(tmp_path / "student"), id2label=LABELS, freeze="all_but_heads")
    assert trained(model) == HEADS[kind]
    assert model.training
    everything, _ = load_student(str(tmp_path / "student"), id2label=LABELS, freeze="none")
    assert trained(everything) == {name for name, _ in everything.named_parameters()}


@pytest.mark.parametrize("kind", ATTENTION)
def test_all_but_attention_positions_and_heads_are_frozen(tmp_path, kind):
    CHECKPOINTS[kind][0](tmp_path / "student")
    model, _ = load_student(str(tmp_path / "student"), id2label=LABELS, freeze="all_but_attention")
    assert trained(model) == HEADS[kind] | ATTENTION[kind]


def test_attention_of_a_timm_transformer(tmp_path):
    path = timm_folder(tmp_path / "student", "test_vit", 160)
    model, _ = load_student(path, id2label=LABELS, freeze="all_but_attention")
    blocks = {name.split(".")[2] for name, _ in model.named_parameters() if name.startswith("timm_model.blocks.")}
    layers = both(*(f"timm_model.blocks.{block}.attn.{part}" for block in blocks for part in ("qkv", "proj")))
    assert len(blocks) > 1
    assert layers <= trained(model)
    assert both("timm_model.head") | {"timm_model.pos_embed"} <= trained(model)
    rest = trained(model) - layers - both("timm_model.head") - {"timm_model.pos_embed"}
    assert all(".attn." in name for name in rest)  # its norms within attention


def test_a_student_made_anew_can_be_frozen_too():
    model, _ = load_student(
        "deit_tiny_distilled_patch16_224", id2label=LABELS, overrides=TINY, freeze="all_but_attention"
    )
    assert trained(model) == HEADS["distilled"] | DISTILLED_ATTENTION
    model, _ = load_student("resnet", id2label=LABELS, overrides=TINY_RESNET, freeze="all_but_heads")
    assert trained(model) == HEADS["ResNet"]


def test_a_convnet_has_no_attention_to_train(tmp_path):
    save_resnet(tmp_path / "student")
    for name, settings in ((tmp_path / "student", {}), ("resnet", {"overrides": TINY_RESNET})):
        message = refusal(name, freeze="all_but_attention", **settings)
        assert "all_but_attention" in message
        assert "no attention" in message


@pytest.mark.parametrize(
    ("kind", "freeze"),
    [
        ("distilled", "none"),
        ("distilled", "all_but_heads"),
        ("distilled", "all_but_attention"),
        ("plain", "all_but_attention"),
        ("ResNet", "all_but_heads"),
    ],
)
def test_training_changes_what_is_not_frozen_and_nothing_else(tmp_path, kind, freeze):
    original = tiny.resnet() if kind == "ResNet" else tiny.student(distilled=kind == "distilled")
    original.save_pretrained(tmp_path / "student")
    tiny.processor().save_pretrained(tmp_path / "student")
    labels = {index: str(index) for index in range(10)}
    model, processor = load_student(str(tmp_path / "student"), id2label=labels, freeze=freeze)
    expected = trained(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = tiny.arguments(tmp_path / "run", max_steps=2, distillation_type="none", weight_decay=0.1)
    trainer = tiny.trainer(model, args, processing_class=processor)
    trainer.train()
    trainer.save_model()
    after = dict(type(model).from_pretrained(tmp_path / "run").named_parameters())
    assert set(after) == set(before)
    assert {name for name in before if not torch.equal(before[name], after[name])} == expected
    assert expected
    assert (expected == set(before)) == (freeze == "none")


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("freeze", ["all_but_heads", "all_but_attention"])
def test_new_heads_another_size_and_frozen_weights_together(tmp_path, kind, freeze):
    original = weights(CHECKPOINTS[kind][0](tmp_path / "student"))
    settings = {"image_size": 48, "replace_head": True, "freeze": freeze}
    if freeze == "all_but_attention" and kind not in ATTENTION:
        assert "no attention" in refusal(tmp_path / "student", FIVE, **settings)
        return
    model, processor = load_student(str(tmp_path / "student"), id2label=FIVE, **settings)
    assert trained(model) == HEADS[kind] | (ATTENTION[kind] if freeze == "all_but_attention" else set())
    assert (model.config.id2label, model.config.label2id) == (FIVE, inverse(FIVE))
    assert processor.crop_size.height == 48
    renewed = weights(model)
    heads = {name.removeprefix("timm_model.") for name in HEADS[kind]}
    for name, tensor in original.items():
        if name in heads:
            assert renewed[name].shape == (5, *tensor.shape[1:])
            assert abs(renewed[name].mean().item()) < 0.1  # the checkpoint's lie in [0.1, 0.9]
        elif name.endswith("position_embeddings"):
            assert renewed[name].shape[1] == tensor.shape[1] + 36 - 16
        else:
            assert torch.equal(renewed[name], tensor), name
    assert answers(model, 48).shape == (2, 5)
    if kind in TRANSFORMERS_OWN:
        model.save_pretrained(tmp_path / "saved")
        native = TRANSFORMERS_OWN[kind].from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(answers(native, 48), answers(model, 48), atol=1e-5, rtol=0)
