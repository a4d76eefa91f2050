"""Contract: the models are DeiT, in memory and on disk, to transformers, to timm and to the paper.

- Given the same weights the logits are those of transformers and timm; what is saved opens in plain transformers, in a
  process that cannot import this package; whatever does not fit exactly is refused.
- They train as the paper does: truncated normal initialisation, stochastic depth, bicubic positions, late fusion; and
  a sample's output depends on the sample and its view alone, not on the batch it is in.

Weights are random; nothing is downloaded.
"""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
)

from hf_deit.models.configuration_deit import DistilledDeiTConfig, PlainDeiTConfig
from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessor
from hf_deit.models.keyed import view_seed
from hf_deit.models.modeling_common import StochasticDepth
from hf_deit.models.modeling_deit import (
    DistilledDeiTForImageClassification,
    DistilledDeiTModel,
    PlainDeiTForImageClassification,
    PlainDeiTModel,
)
from hf_deit.models.zoo import create_model

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
OURS = {"deit": DistilledDeiTForImageClassification, "vit": PlainDeiTForImageClassification}
NATIVE = {"deit": DeiTForImageClassificationWithTeacher, "vit": ViTForImageClassification}
FAMILIES = list(OURS)
LOGITS = ("logits", "cls_logits", "distillation_logits")


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Sets every parameter, norms and biases included, so that none is at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "layernorm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny(family: str, seed: int = 0, **fields) -> nn.Module:
    config_class = DistilledDeiTConfig if family == "deit" else PlainDeiTConfig
    return randomise(OURS[family](config_class(**{**TINY, **fields})), seed)


def native_like(model: nn.Module) -> nn.Module:
    """transformers' model of the same shape and weights; the strict loading compares the names."""
    config_class = DeiTConfig if model.base_model_prefix == "deit" else ViTConfig
    fields = {name: getattr(model.config, name) for name in (*TINY, "layer_norm_eps", "qkv_bias", "num_channels")}
    with torch.device("meta"):  # its initialisation would be thrown away
        native = NATIVE[model.base_model_prefix](config_class(**fields)).eval()
    native.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, strict=True, assign=True)
    return native


def images(batch_size: int = 3, height: int = 32, width: int | None = None, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 3, height, width or height, generator=torch.Generator().manual_seed(seed))


def seeds(batch_size: int, epoch: int = 0) -> torch.Tensor:
    return torch.tensor([view_seed(0, epoch, slot) for slot in range(batch_size)])


def assert_same_logits(ours, theirs, atol: float = 1e-5) -> None:
    names = [name for name in LOGITS if name in theirs]
    assert names == [name for name in LOGITS if name in ours]
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=0)


# Parity with transformers and timm

ZOO = [
    ("deit_tiny_patch16_224", 12),
    ("deit_tiny_distilled_patch16_224", 12),
    ("deit_small_patch16_224", 2),
    ("deit_small_distilled_patch16_224", 2),
    ("deit_base_patch16_224", 2),
    ("deit_base_distilled_patch16_224", 2),
    ("deit_base_patch16_384", 2),
    ("deit_base_distilled_patch16_384", 2),
]


def timm_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's weights by timm's names, with the three projections of attention in one."""
    renamed = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (
            (f"{model.base_model_prefix}.", ""),
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.distillation_token", "dist_token"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("layers.", "blocks."),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("layernorm.", "norm."),
            ("attention.o_proj", "attn.proj"),
            ("distillation_classifier.", "head_dist."),
            ("cls_classifier.", "head."),
            ("classifier.", "head."),
        ):
            name = name.replace(ours, theirs)
        renamed[name] = value
    for name in [name for name in renamed if ".attention.q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        renamed[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return renamed


@pytest.mark.parametrize(("name", "depth"), ZOO)
@torch.no_grad()
def test_logits_equal_transformers_and_timms(name, depth):
    with torch.device("meta"):
        model = create_model(name, num_hidden_layers=depth)
        reference = timm.create_model(name, depth=depth)
    randomise(model.to_empty(device="cpu"))
    pixel_values = images(2, model.config.image_size)
    output = model(pixel_values)
    assert output.logits.std() > 0.1
    assert_same_logits(output, native_like(model)(pixel_values))

    reference.load_state_dict(timm_weights(model), strict=True, assign=True)
    torch.testing.assert_close(output.logits, reference.eval()(pixel_values), atol=1e-5, rtol=0)
    if "distilled" in name:
        reference.set_distilled_training(True)
        cls_logits, distillation_logits = reference.train()(pixel_values)  # it has no dropout
        torch.testing.assert_close(output.cls_logits, cls_logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.distillation_logits, distillation_logits, atol=1e-5, rtol=0)
        assert (cls_logits - distillation_logits).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "fields", [{"qkv_bias": False}, {"num_channels": 1}, {"layer_norm_eps": 0.1}, {"num_attention_heads": 8}]
)
@torch.no_grad()
def test_fields_mean_what_they_mean_in_transformers(family, fields):
    model = tiny(family, **fields)
    pixel_values = images()[:, : model.config.num_channels]
    assert_same_logits(model(pixel_values), native_like(model)(pixel_values))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_names_and_shapes_equal_transformers(family):
    model = tiny(family)
    native = NATIVE[family](native_like(model).config)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in native.state_dict().items()
    }


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states_and_attentions_equal_transformers(family):
    model = tiny(family)
    model.set_attn_implementation("eager")
    native = native_like(model)
    native.set_attn_implementation("eager")
    pixel_values = images()
    ours = model(pixel_values, output_hidden_states=True, output_attentions=True)
    theirs = native(pixel_values, output_hidden_states=True, output_attentions=True)
    assert (len(ours.hidden_states), len(ours.attentions)) == (3, 2)
    for state, reference in zip(
        ours.hidden_states + ours.attentions, theirs.hidden_states + theirs.attentions, strict=True
    ):
        torch.testing.assert_close(state, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_tuples_have_the_fields_in_order(family):
    model, pixel_values, labels = tiny(family), images(), torch.tensor([0, 1, 2])
    output = model(pixel_values, labels=labels)
    values = model(pixel_values, labels=labels, return_dict=False)
    assert list(output) == ["loss", *(LOGITS if family == "deit" else LOGITS[:1])]
    assert all(torch.equal(value, output[name]) for name, value in zip(output, values, strict=True))


# Saving and loading

SEALED_PROCESS = """
import importlib, json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_deit":
            raise ImportError("hf_deit is sealed off")

sys.meta_path.insert(0, Refuse())
try:
    importlib.import_module("hf_deit")
except ImportError as error:
    refused = str(error)

import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

answer = {"refused": refused}
for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder)
    pixel_values = torch.load(folder + "/pixel_values.pt")
    with torch.no_grad():
        output = model(pixel_values)
    classify = pipeline("image-classification", model=folder, device="cpu")
    answer[folder] = {
        "class": type(model).__module__ + "." + type(model).__name__,
        "logits": {name: output[name].tolist() for name in output},
        "scores": {found["label"]: found["score"] for found in classify(folder + "/image.png")},
    }
answer["modules"] = sorted(name for name in sys.modules if name.startswith("hf_deit"))
print("ANSWER" + json.dumps(answer))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Both families as published, and what plain transformers makes of them in a process without this package."""
    root = tmp_path_factory.mktemp("published")
    folders = {family: root / family for family in FAMILIES}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    expected = {}
    for family, folder in folders.items():
        id2label = {index: f"class {index}" for index in range(5)}
        model = tiny(family, id2label=id2label, drop_path_rate=0.1)
        processor = DistilledDeiTImageProcessor(crop_size=32)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        torch.save(images(), folder / "pixel_values.pt")
        image.save(folder / "image.png")
        with torch.no_grad():
            output = model(images())
            scores = model(processor(image, return_tensors="pt")["pixel_values"]).logits[0].softmax(-1)
        expected[family] = {
            "logits": {name: output[name] for name in output},
            "scores": {label: scores[index].item() for index, label in id2label.items()},
        }
    (root / "elsewhere").mkdir()
    script = root / "sealed.py"
    script.write_text(SEALED_PROCESS)
    finished = subprocess.run(
        [sys.executable, "-I", str(script), *map(str, folders.values())],
        cwd=root / "elsewhere",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout.split("ANSWER")[1])
    return {
        **{family: (expected[family], answer[str(folder)]) for family, folder in folders.items()},
        "refused": answer["refused"],
        "modules": answer["modules"],
    }


def test_the_sealed_process_cannot_import_this_package(published):
    assert published["refused"] == "hf_deit is sealed off"
    assert published["modules"] == []


@pytest.mark.parametrize(
    ("family", "native_class"),
    [
        ("deit", "transformers.models.deit.modeling_deit.DeiTForImageClassificationWithTeacher"),
        ("vit", "transformers.models.vit.modeling_vit.ViTForImageClassification"),
    ],
)
def test_published_model_opens_in_plain_transformers_with_the_same_logits(published, family, native_class):
    expected, got = published[family]
    assert got["class"] == native_class
    assert set(got["logits"]) == set(expected["logits"])
    for name, logits in expected["logits"].items():
        torch.testing.assert_close(torch.tensor(got["logits"][name]), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_published_model_answers_in_a_plain_pipeline(published, family):
    expected, got = published[family]
    assert got["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def keys_on_disk(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("original_format", "marker"),
    [(True, "encoder.layer.0.attention.attention.query.weight"), (False, "layers.0.attention.q_proj.weight")],
)
@torch.no_grad()
def test_either_key_layout_loads_with_equal_weights(tmp_path, family, original_format, marker):
    native = native_like(tiny(family))
    native.save_pretrained(tmp_path, save_original_format=original_format)
    assert f"{family}.{marker}" in keys_on_disk(tmp_path)
    model = OURS[family].from_pretrained(tmp_path)
    theirs = native.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())
    assert_same_logits(model(images()), native(images()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loaded_in_original_format", [True, False])
def test_a_save_is_bit_identical_to_transformers_default_save(tmp_path, family, loaded_in_original_format):
    """The Hub's layout, in whichever the model was loaded; transformers' own default follows what was loaded."""
    native = native_like(tiny(family))
    native.save_pretrained(tmp_path / "native")
    native.save_pretrained(tmp_path / "loaded", save_original_format=loaded_in_original_format)
    OURS[family].from_pretrained(tmp_path / "loaded").save_pretrained(tmp_path / "ours")
    ours, theirs = keys_on_disk(tmp_path / "ours"), keys_on_disk(tmp_path / "native")
    assert ours.keys() == theirs.keys()
    assert f"{family}.encoder.layer.0.attention.attention.query.weight" in ours
    assert all(torch.equal(value, theirs[key]) and value.dtype == theirs[key].dtype for key, value in ours.items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_own_round_trip_keeps_every_bit_and_the_type(tmp_path, family, dtype):
    model = tiny(family).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = OURS[family].from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_several_files_load_and_open_in_transformers(tmp_path, family):
    model = tiny(family)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for model_class in (OURS[family], NATIVE[family]):
        state = model_class.from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_publishing_another_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="save_original_format"):
        tiny("deit").save_pretrained(tmp_path, save_original_format=False)


def save_changed(folder, family: str, drop: str = "", add: dict | None = None, **fields) -> None:
    """A checkpoint without the keys that contain `drop`, and with those of `add`."""
    tiny(family, **fields).save_pretrained(folder)
    state = {key: value for key, value in keys_on_disk(folder).items() if not drop or drop not in key}
    save_file({**state, **(add or {})}, folder / "model.safetensors", metadata={"format": "pt"})


BACKBONE_KEYS = {
    "deit": ["embeddings.distillation_token", "embeddings.cls_token"],
    "vit": ["embeddings.cls_token", "patch_embeddings.projection.bias"],
}


@pytest.mark.parametrize("ignore_mismatched_sizes", [False, True])
@pytest.mark.parametrize(
    ("family", "key"),
    [
        *((family, key) for family, keys in BACKBONE_KEYS.items() for key in keys),
        ("deit", "encoder.layer.1.output.dense.weight"),
        ("vit", "encoder.layer.0.attention.attention.query.weight"),
        ("deit", "deit.layernorm.weight"),
        ("deit", "encoder.layer."),
    ],
)
def test_missing_backbone_keys_are_refused(tmp_path, family, key, ignore_mismatched_sizes):
    save_changed(tmp_path, family, drop=key)
    with pytest.raises(ValueError, match=r"does not fit .* missing: "):
        OURS[family].from_pretrained(tmp_path, ignore_mismatched_sizes=ignore_mismatched_sizes)


@pytest.mark.parametrize("ignore_mismatched_sizes", [False, True])
@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("deit", "deit.encoder.layer.2.output.dense.weight"),
        ("deit", "deit.encoder.layer.0.lambda_1"),
        ("vit", "vit.embeddings.distillation_token"),
        ("vit", "blocks.0.attn.qkv.weight"),
    ],
)
def test_unexpected_backbone_keys_are_refused(tmp_path, family, key, ignore_mismatched_sizes):
    save_changed(tmp_path, family, add={key: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"does not fit .* unknown: "):
        OURS[family].from_pretrained(tmp_path, ignore_mismatched_sizes=ignore_mismatched_sizes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ignore_mismatched_sizes", [False, True])
@pytest.mark.parametrize("field", [{"image_size": 64}, {"intermediate_size": 96}, {"num_channels": 1}])
def test_backbone_of_another_shape_is_refused(tmp_path, family, ignore_mismatched_sizes, field):
    tiny(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit .* of another shape: "):
        OURS[family].from_pretrained(tmp_path, ignore_mismatched_sizes=ignore_mismatched_sizes, **field)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pooler_that_no_classifier_uses_is_left_out(tmp_path, family):
    """Some published checkpoints carry one."""
    pooler = {f"{family}.pooler.dense.weight": torch.zeros(32, 32), f"{family}.pooler.dense.bias": torch.zeros(32)}
    save_changed(tmp_path, family, add=pooler)
    state = OURS[family].from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in tiny(family).state_dict().items())


@pytest.mark.parametrize(
    ("family", "other", "hint"), [("deit", "vit", "open them with a Plain class"), ("vit", "deit", 'got "deit"')]
)
def test_checkpoint_of_another_model_type_is_refused(tmp_path, family, other, hint):
    tiny(other).save_pretrained(tmp_path)
    for ignore in (False, True):
        with pytest.raises(ValueError, match=hint):
            OURS[family].from_pretrained(tmp_path, ignore_mismatched_sizes=ignore)


@pytest.mark.parametrize("use_safetensors", [False, None])
def test_pickled_weights_are_never_asked_for(tmp_path, use_safetensors):
    tiny("deit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only safetensors weights are opened"):
        DistilledDeiTForImageClassification.from_pretrained(tmp_path, use_safetensors=use_safetensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_with_pickled_weights_alone_is_refused(tmp_path, family):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    torch.save(keys_on_disk(tmp_path), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        OURS[family].from_pretrained(tmp_path)


def assert_fresh(head: nn.Linear) -> None:
    assert head.bias.abs().max() == 0
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.25)  # randomised weights have 0.054


HEADS = {"deit": ["cls_classifier", "distillation_classifier"], "vit": ["classifier"]}


@pytest.mark.parametrize(
    ("family", "missing"),
    [("deit", ["cls_"]), ("deit", ["distillation_"]), ("deit", ["cls_", "distillation_"]), ("vit", [""])],
)
def test_missing_heads_are_refused_unless_new_ones_are_allowed(tmp_path, family, missing):
    tiny(family).save_pretrained(tmp_path)
    state = {
        key: value
        for key, value in keys_on_disk(tmp_path).items()
        if not any(key.startswith(f"{name}classifier.") for name in missing)
    }
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: .*classifier\.bias.*pass ignore_mismatched_sizes=True"):
        OURS[family].from_pretrained(tmp_path)
    loaded = OURS[family].from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    original = tiny(family).state_dict()
    for head in HEADS[family]:
        if head.removesuffix("classifier") in missing:
            assert_fresh(loaded.get_submodule(head))
        else:
            assert torch.equal(loaded.get_submodule(head).weight, original[f"{head}.weight"])
    assert all(torch.equal(v, original[k]) for k, v in loaded.state_dict().items() if k.startswith(f"{family}."))


@pytest.mark.parametrize("family", FAMILIES)
def test_another_number_of_labels_makes_new_heads_and_nothing_else(tmp_path, family):
    tiny(family).save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match="ignore_mismatched_sizes"):
        OURS[family].from_pretrained(tmp_path, num_labels=40)
    torch.manual_seed(0)
    loaded = OURS[family].from_pretrained(tmp_path, num_labels=40, ignore_mismatched_sizes=True)
    assert loaded.config.num_labels == 40
    for head in HEADS[family]:
        assert loaded.get_submodule(head).out_features == 40
        assert_fresh(loaded.get_submodule(head))
    if family == "deit":
        assert not torch.equal(loaded.cls_classifier.weight, loaded.distillation_classifier.weight)
    original = tiny(family).state_dict()
    kept = {key: value for key, value in loaded.state_dict().items() if key.startswith(f"{family}.")}
    assert len(kept) == len(original) - 2 * len(HEADS[family])
    assert all(torch.equal(value, original[key]) for key, value in kept.items())


def test_single_head_of_transformers_deit_is_not_taken_for_two(tmp_path):
    """`DeiTForImageClassification` has one head; nothing tells which of ours it is."""
    native = DeiTForImageClassification(native_like(tiny("deit")).config)
    native.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: .*unknown: classifier\.bias"):
        DistilledDeiTForImageClassification.from_pretrained(tmp_path)
    loaded = DistilledDeiTForImageClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert torch.equal(loaded.deit.layernorm.weight, native.deit.layernorm.weight)
    assert_fresh(loaded.cls_classifier)


@pytest.mark.parametrize(("family", "backbone_class"), [("deit", DistilledDeiTModel), ("vit", PlainDeiTModel)])
@torch.no_grad()
def test_backbone_loads_from_a_classifier(tmp_path, family, backbone_class):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    backbone = backbone_class.from_pretrained(tmp_path)
    assert torch.equal(backbone(images()).last_hidden_state, getattr(model, family)(images()).last_hidden_state)
    assert backbone.get_input_embeddings() is backbone.embeddings.patch_embeddings["projection"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads must divide hidden_size"),
        ({"image_size": 30}, "multiple of patch_size"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must lie in"),
        ({"drop_path_rate": -0.1}, "drop_path_rate must lie in"),
    ],
)
def test_impossible_field_is_refused_when_a_checkpoint_is_loaded(tmp_path, family, bad, message):
    tiny(family).save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=message):
        OURS[family].from_pretrained(tmp_path, **bad)


def test_unknown_fusion_is_refused_when_a_checkpoint_is_loaded(tmp_path):
    tiny("deit").save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="fusion must be one of"):
        DistilledDeiTForImageClassification.from_pretrained(tmp_path, fusion="mean")
    assert DistilledDeiTForImageClassification.from_pretrained(tmp_path, fusion="cls").config.fusion == "cls"


def test_misspelt_field_is_refused_when_a_checkpoint_is_loaded(tmp_path):
    tiny("deit").save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="drop_path_rte"):
        DistilledDeiTForImageClassification.from_pretrained(tmp_path, drop_path_rte=0.1)


# Initialisation


def fresh(family: str, **fields) -> nn.Module:
    torch.manual_seed(0)
    config_class = DistilledDeiTConfig if family == "deit" else PlainDeiTConfig
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 2}
    return OURS[family](config_class(**{**sizes, "num_labels": 100, **fields}))


def special_and_positions(model: nn.Module) -> dict[str, torch.Tensor]:
    embeddings = getattr(model, model.base_model_prefix).embeddings
    names = ["cls_token", "position_embeddings"] + ["distillation_token"] * (model.base_model_prefix == "deit")
    return {name: getattr(embeddings, name).detach() for name in names}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("initializer_range", [0.02, 0.1])
def test_tokens_positions_and_linears_are_normal_with_the_papers_deviation(family, initializer_range):
    model = fresh(family, initializer_range=initializer_range)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(linears) == 2 * 6 + len(HEADS[family])
    tensors = {**special_and_positions(model), **{name: module.weight for name, module in linears.items()}}
    for name, tensor in tensors.items():
        error = 5 * initializer_range / math.sqrt(tensor.numel())  # five standard errors
        assert tensor.mean().item() == pytest.approx(0, abs=error), name
        assert tensor.std().item() == pytest.approx(initializer_range, abs=error), name
        # A normal, not a uniform distribution: 4.6 % lie beyond two standard deviations, none of a uniform one.
        assert 0.01 < (tensor.abs() > 2 * initializer_range).float().mean() < 0.1, name
    assert all(module.bias.abs().max() == 0 for module in linears.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_normal_is_truncated_at_two(family):
    """timm's and the authors' `trunc_normal_`: at ±2, not at two standard deviations."""
    model = fresh(family, initializer_range=1.5)
    weights = {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, tensor in {**special_and_positions(model), **weights}.items():
        assert 1.9 < tensor.abs().max() <= 2, name


def test_class_and_distillation_token_and_their_heads_differ():
    """Equal ones would give equal outputs and gradients at the start, as transformers' zeros do."""
    model = fresh("deit")
    embeddings = model.deit.embeddings
    for first, second in [
        (embeddings.cls_token, embeddings.distillation_token),
        (embeddings.position_embeddings[:, 0], embeddings.position_embeddings[:, 1]),
        (model.cls_classifier.weight, model.distillation_classifier.weight),
    ]:
        correlation = torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1]
        assert correlation.abs() < 0.4


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_norms_start_as_identity_with_the_papers_epsilon(family):
    norms = [module for module in fresh(family).modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 5
    for norm in norms:
        assert norm.eps == 1e-6
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_patch_convolution_keeps_torchs_default(family):
    model = fresh(family)
    projection = getattr(model, family).embeddings.patch_embeddings["projection"]
    bound = 1 / math.sqrt(3 * 16 * 16)  # of nn.Conv2d: uniform, for weight and bias
    for parameter in (projection.weight, projection.bias):
        assert 0.95 * bound < parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)


# Stochastic depth


def depth_modules(model: nn.Module) -> list[StochasticDepth]:
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


@pytest.mark.parametrize(("layers", "rate"), [(2, 0.3), (4, 0.3), (1, 0.3)])
def test_stochastic_depth_grows_linearly_with_depth(layers, rate):
    model = tiny("deit", num_hidden_layers=layers, drop_path_rate=rate).train()
    dropped = {}

    def count(name):
        def hook(module, inputs, output):
            dropped[name] = (output.flatten(1) == 0).all(1).float().mean().item()

        return hook

    for index, layer in enumerate(model.deit.layers):
        layer.attention_depth.register_forward_hook(count((index, "attention")))
        layer.mlp_depth.register_forward_hook(count((index, "mlp")))
    model(images(1).expand(3000, -1, -1, -1), view_seeds=seeds(3000))
    expected = torch.linspace(0, rate, layers).tolist()  # the authors' and timm's rule
    for (index, branch), share in dropped.items():
        assert share == pytest.approx(expected[index], abs=0.04 if expected[index] else 0), (index, branch)
    assert len(dropped) == 2 * layers


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_stochastic_depth_is_identity_in_evaluation(family):
    with_depth, without = tiny(family, drop_path_rate=0.9), tiny(family)
    assert torch.equal(with_depth(images()).logits, without(images()).logits)
    assert torch.equal(with_depth(images(), view_seeds=seeds(3)).logits, without(images()).logits)
    assert not torch.equal(with_depth.train()(images(), view_seeds=seeds(3)).logits, without(images()).logits)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_samples_output_does_not_depend_on_its_batch(family):
    model = tiny(family, drop_path_rate=0.5, num_hidden_layers=4).train()
    pixel_values, view_seeds = images(8), seeds(8)
    whole = model(pixel_values, view_seeds=view_seeds).logits
    halves = [model(pixel_values[half], view_seeds=view_seeds[half]).logits for half in (slice(4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(halves), whole, atol=1e-6, rtol=0)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    shuffled = model(pixel_values[order], view_seeds=view_seeds[order]).logits
    torch.testing.assert_close(shuffled, whole[order], atol=1e-6, rtol=0)
    other_epoch = model(pixel_values, view_seeds=seeds(8, epoch=1)).logits
    assert (other_epoch - whole).abs().max() > 1e-2


@torch.no_grad()
def test_with_seeds_the_global_generator_neither_matters_nor_moves():
    model = tiny("deit", drop_path_rate=0.5).train()
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = model(images(), view_seeds=seeds(3)).logits
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(model(images(), view_seeds=seeds(3)).logits, first)


@torch.no_grad()
def test_without_seeds_torchs_generator_decides():
    model = tiny("deit", drop_path_rate=0.5).train()
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(model(images(16)).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("with_seeds", [True, False])
def test_stochastic_depth_keeps_the_expected_value(with_seeds):
    torch.manual_seed(0)
    branch = torch.randn(20_000, 1, 1).abs() + 1
    output = StochasticDepth(0.3, stream=1).train()(branch, seeds(20_000) if with_seeds else None)
    ratio = (output / branch).flatten()
    kept = ratio != 0
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1 / 0.7))
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.017)  # five standard deviations
    assert output.mean().item() == pytest.approx(branch.mean().item(), rel=0.025)


@torch.no_grad()
def test_branches_draw_independently():
    """Of each other, and of the samples beside them."""
    model = tiny("deit", drop_path_rate=0.5, num_hidden_layers=4).train()
    view_seeds, branch = seeds(6000), torch.ones(6000, 1)
    kept = [module(branch, view_seeds).flatten() for module in depth_modules(model) if module.rate > 0]
    assert len(kept) == 6
    kept.append(kept[0].roll(1))
    correlation = torch.corrcoef(torch.stack(kept)) - torch.eye(7)
    assert correlation.abs().max() < 5 / math.sqrt(6000)


# Positions


def positions_used(model: nn.Module, height: int, width: int) -> torch.Tensor:
    """What the model adds for its positions: the embeddings of black images, without tokens and convolution bias."""
    embeddings = getattr(model, model.base_model_prefix).embeddings
    used = embeddings(torch.zeros(1, 3, height, width)).detach()[0]
    tokens = [embeddings.cls_token[0]]
    if model.base_model_prefix == "deit":
        tokens.append(embeddings.distillation_token[0])
    bias = embeddings.patch_embeddings["projection"].bias.expand(len(used) - len(tokens), -1)
    return used - torch.cat([*tokens, bias])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("trained_at", "height", "width"),
    [
        (32, 32, 32),
        (32, 64, 64),
        (32, 16, 16),
        (32, 40, 24),
        (32, 24, 40),
        (32, 16, 64),  # as many patches as in training, in another grid
        ([24, 48], 24, 48),  # trained at sides that differ
        ([24, 48], 48, 24),
        ([24, 48], 40, 40),
        (32, 8, 8),
    ],
)
@torch.no_grad()
def test_positions_are_interpolated_bicubically(family, trained_at, height, width):
    model = tiny(family, image_size=trained_at)
    special = 2 if family == "deit" else 1
    positions = getattr(model, family).embeddings.position_embeddings.detach()[0]
    rows, columns = (4, 4) if trained_at == 32 else (3, 6)
    # (D, rows, columns), a patch at row r and column c being token r · columns + c
    grid = torch.stack([positions[special + r * columns : special + (r + 1) * columns].T for r in range(rows)], dim=1)
    expected = F.interpolate(grid[None], size=(height // 8, width // 8), mode="bicubic", align_corners=False)[0]
    expected = torch.stack([expected[:, r, c] for r in range(height // 8) for c in range(width // 8)])
    used = positions_used(model, height, width)
    torch.testing.assert_close(used[special:], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(used[:special], positions[:special], atol=1e-7, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (24, 24), (48, 48), (40, 24), (16, 64)])
@torch.no_grad()
def test_other_sizes_equal_transformers_interpolation(family, height, width):
    model = tiny(family)
    pixel_values = images(2, height, width)
    assert_same_logits(model(pixel_values), native_like(model)(pixel_values, interpolate_pos_encoding=True))


@torch.no_grad()
def test_positions_of_a_bf16_model_are_interpolated_in_float32(monkeypatch):
    """On the CPU the result is the same, so the call is watched; on a GPU it is not."""
    interpolate, dtypes = F.interpolate, []

    def watched(positions, *args, **kwargs):
        dtypes.append(positions.dtype)
        return interpolate(positions, *args, **kwargs)

    monkeypatch.setattr(F, "interpolate", watched)
    assert tiny("deit").to(torch.bfloat16)(images(2, 64)).logits.dtype == torch.bfloat16
    assert dtypes == [torch.float32]


@pytest.mark.parametrize("patch_size", [[8, 16], [16, 8]])
@torch.no_grad()
def test_patches_may_be_oblong(patch_size):
    model = tiny("deit", patch_size=patch_size)
    weight = model.deit.embeddings.patch_embeddings["projection"].weight
    pixel_values = images(1)
    row, column = 1, 1
    patch = pixel_values[
        0, :, row * patch_size[0] : (row + 1) * patch_size[0], column * patch_size[1] : (column + 1) * patch_size[1]
    ]
    token = row * (32 // patch_size[1]) + column
    difference = model.deit.embeddings(pixel_values) - model.deit.embeddings(torch.zeros_like(pixel_values))
    expected = torch.einsum("dchw,chw->d", weight, patch)
    torch.testing.assert_close(difference[0, 2 + token], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 33), (4, 32), (0, 32)])
def test_size_that_is_no_multiple_of_the_patch_is_refused(family, height, width):
    with pytest.raises(ValueError, match=rf"multiples of the patch size \(8, 8\), got {height} . {width}"):
        tiny(family)(torch.zeros(2, 3, height, width))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 4, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
def test_wrong_channels_are_refused(family, shape):
    with pytest.raises(ValueError, match=r"pixel_values must be \(B, 3, H, W\), got"):
        tiny(family)(torch.zeros(shape))


# Fusion


@pytest.mark.parametrize(
    ("fusion", "formula"),
    [
        ("logits", lambda cls, dist: (cls + dist) / 2),
        ("softmax", lambda cls, dist: ((cls.softmax(-1) + dist.softmax(-1)) / 2).log()),
        ("cls", lambda cls, dist: cls),
        ("distillation", lambda cls, dist: dist),
    ],
)
@torch.no_grad()
def test_fusion_is_its_formula(fusion, formula):
    model = tiny("deit", fusion=fusion)
    for head in (model.cls_classifier, model.distillation_classifier):
        head.weight.mul_(10)
    output = model(images(16))
    torch.testing.assert_close(output.logits, formula(output.cls_logits, output.distillation_logits))


@torch.no_grad()
def test_softmax_fusion_ranks_as_the_papers_sum_and_gives_its_mean():
    model = tiny("deit", fusion="softmax", num_labels=7)
    generator = torch.Generator().manual_seed(0)
    cls_logits, distillation_logits = (torch.randn(500, 7, generator=generator) * 4 for _ in range(2))
    fused = model.fuse(cls_logits, distillation_logits)
    total = cls_logits.softmax(-1) + distillation_logits.softmax(-1)  # section 4
    assert torch.equal(fused.argsort(-1), total.argsort(-1))
    torch.testing.assert_close(fused.softmax(-1), total / 2)
    mean_of_logits = (cls_logits + distillation_logits) / 2
    assert (mean_of_logits.argmax(-1) != fused.argmax(-1)).any()  # facts: "They can disagree"


@torch.no_grad()
def test_softmax_fusion_is_finite_for_confident_heads():
    model = tiny("deit", fusion="softmax")
    confident = torch.tensor([[1e4, 0.0, 0.0, 0.0, -1e4]])
    fused = model.fuse(confident, confident.flip(-1))
    assert torch.isfinite(fused).all()
    torch.testing.assert_close(fused.softmax(-1), torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.5]]))


# Labels


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    logits = logits.detach().double().numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -np.mean([row[label] for row, label in zip(log_probabilities, labels.tolist(), strict=True)])


def expected_loss(output, labels: torch.Tensor) -> float:
    if "cls_logits" not in output:
        return cross_entropy(output.logits, labels)
    return (cross_entropy(output.cls_logits, labels) + cross_entropy(output.distillation_logits, labels)) / 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_labels_give_the_mean_of_the_heads_cross_entropies(family, training, dtype):
    model, labels = tiny(family).train(training), torch.tensor([4, 0, 2], dtype=dtype)
    output = model(images(), labels=labels)
    assert output.loss.item() == pytest.approx(expected_loss(output, labels), abs=1e-6)
    assert model(images()).loss is None
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fusion", ["softmax", "cls"])
def test_loss_does_not_depend_on_the_fusion(family, fusion):
    model = tiny(family) if family == "vit" else tiny(family, fusion=fusion)
    labels = torch.tensor([4, 0, 2])
    output = model(images(), labels=labels)
    assert output.loss.item() == pytest.approx(expected_loss(output, labels), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_ignored_labels_leave_their_samples_out(family):
    model = tiny(family)
    loss = model(images(4), labels=torch.tensor([1, -100, 3, -100])).loss
    assert loss.item() == pytest.approx(model(images(4)[[0, 2]], labels=torch.tensor([1, 3])).loss.item(), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", [torch.full((3, 5), 0.2), torch.zeros(3), torch.zeros(2).long(), torch.tensor(1)])
def test_labels_that_are_no_class_indices_are_refused_with_the_remedy(family, labels):
    with pytest.raises(ValueError, match=r"class indices of shape \(3,\), got .*soft_target_cross_entropy"):
        tiny(family)(images(), labels=labels)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keyword", ["label", "lables", "interpolate_pos_encoding", "view_seed", "num_items_in_batch"])
def test_misspelt_or_unknown_keyword_is_refused(family, keyword):
    model = tiny(family)
    for module in (model, getattr(model, family)):
        with pytest.raises(TypeError, match=keyword):
            module(images(), **{keyword: torch.tensor([0, 1, 2])})


# What transformers' users expect of a model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states_are_the_embeddings_and_each_blocks_output(family):
    model = tiny(family, num_hidden_layers=3)
    backbone = getattr(model, family)
    output = model(images(), output_hidden_states=True)
    states = output.hidden_states
    assert len(states) == 4
    assert torch.equal(states[0], backbone.embeddings(images()))
    for layer, before, after in zip(backbone.layers, states, states[1:], strict=False):
        torch.testing.assert_close(layer(before), after)
    head = model.classifier if family == "vit" else model.cls_classifier
    logits = output.logits if family == "vit" else output.cls_logits
    torch.testing.assert_close(head(backbone.layernorm(states[-1])[:, 0]), logits)
    assert model(images()).hidden_states is None


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_attentions_are_distributions_over_the_tokens(family):
    model = tiny(family, attn_implementation="eager")
    model.set_attn_implementation("eager")
    attentions = model(images(), output_attentions=True).attentions
    tokens = 16 + (2 if family == "deit" else 1)
    assert [tuple(weights.shape) for weights in attentions] == [(3, 2, tokens, tokens)] * 2
    for weights in attentions:
        assert weights.min() > 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, tokens))
    # They are those of the first block's queries and keys.
    backbone = getattr(model, family)
    block = backbone.layers[0]
    normed = block.layernorm_before(backbone.embeddings(images()))
    query, key = block.attention.q_proj(normed)[..., :16], block.attention.k_proj(normed)[..., :16]
    torch.testing.assert_close(attentions[0][:, 0], (query @ key.mT / 4).softmax(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_sdpa_equals_eager_in_outputs_and_gradients(family):
    gradients = []
    for implementation in ("eager", "sdpa"):
        model = tiny(family)
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        output = model(images(), labels=torch.tensor([0, 1, 2]))
        output.loss.backward()
        gradients.append([output.logits, *(parameter.grad for parameter in model.parameters())])
    for eager, sdpa in zip(*gradients, strict=True):
        torch.testing.assert_close(sdpa, eager, atol=1e-5, rtol=0)


def test_attentions_need_eager_and_sdpa_says_so():
    """An empty tuple where attentions were asked for is a silent loss."""
    model = tiny("deit")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="eager"):
        model(images(), output_attentions=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_seeds", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(family, with_seeds):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = tiny(family, drop_path_rate=0.5).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        calls.append(0)

        def count(module, inputs):
            calls[-1] += 1

        getattr(model, family).layers[0].mlp.register_forward_pre_hook(count)
        torch.manual_seed(0)
        view_seeds = seeds(3) if with_seeds else None
        model(images(), labels=torch.tensor([0, 1, 2]), view_seeds=view_seeds).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert calls == [1, 2]  # the second time in the backward pass
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-7, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_is_finite_and_near_float32(family, autocast):
    model, labels = tiny(family, drop_path_rate=0.3).train(), torch.tensor([0, 1, 2])
    exact = model(images(), labels=labels, view_seeds=seeds(3))
    if not autocast:
        model = model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(images(), labels=labels, view_seeds=seeds(3))  # float32 pixels are taken
    assert output.logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits.float(), exact.logits, atol=0.05, rtol=0)
    torch.testing.assert_close(output.loss.float(), exact.loss, atol=0.05, rtol=0)
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_compiles_to_one_graph_in_evaluation(fresh_dynamo, family):
    model = tiny(family)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for height, width in ((32, 32), (48, 24)):
        assert_same_logits(compiled(images(2, height, width)), model(images(2, height, width)))


@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_to_one_graph_in_training(fresh_dynamo, family):
    model = tiny(family, drop_path_rate=0.5).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for run in (model, compiled):
        model.zero_grad()
        output = run(images(8), labels=torch.arange(8) % 5, view_seeds=seeds(8))
        output.loss.backward()
        results.append([output.logits, output.loss, *(parameter.grad for parameter in model.parameters())])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, atol=1e-6, rtol=0)
    assert results[0][2:] != []
