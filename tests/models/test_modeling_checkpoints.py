"""Contract: a saved model opens as what it was, with this package and without it, and what does not fit is refused.

DeiT opens with plain transformers, CaiT with `trust_remote_code`, in a process that cannot import this package.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from support.families import (
    CAIT,
    CAIT_KINDS,
    DEIT,
    DISTILLED,
    DISTILLED_CAIT,
    DISTILLED_DEIT,
    EVERY_KIND,
    KINDS,
    WITH_FUSION,
    Kind,
    assert_close,
    assert_fresh,
    assert_same_weights,
    images,
    keys_on_disk,
    save_changed,
)
from transformers import AutoConfig, AutoModelForImageClassification, DeiTForImageClassification

import hf_deit
from hf_deit import DistilledDeiTConfig, DistilledDeiTImageProcessor
from hf_deit.models.configuration_deit import label2id_of

# Publishing

SEALED_PROCESS = """
import importlib, json, os, sys

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
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

def opened(folder, pixel_values, code):
    model = AutoModelForImageClassification.from_pretrained(folder, **code)
    with torch.no_grad():
        output = model(pixel_values)
    return model, {name: output[name].tolist() for name in output}

answer = {"refused": refused}
for folder in sys.argv[1:]:
    code = {"trust_remote_code": True} if any(name.endswith(".py") for name in os.listdir(folder)) else {}
    pixel_values = torch.load(folder + "/pixel_values.pt")
    model, logits = opened(folder, pixel_values, code)
    config = AutoConfig.from_pretrained(folder, **code)
    processor = AutoImageProcessor.from_pretrained(folder, **code)
    classify = pipeline("image-classification", model=folder, device="cpu", **code)
    scores = {found["label"]: found["score"] for found in classify(folder + "/image.png")}
    model.save_pretrained(folder + "-again")
    processor.save_pretrained(folder + "-again")
    answer[folder] = {
        "classes": [type(thing).__name__ for thing in (model, config, processor)],
        "module": type(model).__module__,
        "logits": logits,
        "scores": scores,
        "again": opened(folder + "-again", pixel_values, code)[1],
    }
answer["modules"] = sorted(name for name in sys.modules if name.startswith("hf_deit"))
print("ANSWER" + json.dumps(answer))
"""
WEIGHTS_AND_CONFIG = {"config.json", "model.safetensors"}
CODE = {
    *("modeling_cait.py", "modeling_common.py", "keyed.py"),
    *("configuration_cait.py", "configuration_deit.py"),
}
OPENED_AS = {
    DEIT: ("transformers.models.vit.modeling_vit", "ViTForImageClassification", "ViTConfig"),
    DISTILLED_DEIT: (
        "transformers.models.deit.modeling_deit",
        "DeiTForImageClassificationWithTeacher",
        "DeiTConfig",
    ),
    CAIT: ("transformers_modules.", "CaiTForImageClassification", "CaiTConfig"),
    DISTILLED_CAIT: ("transformers_modules.", "CaiTForImageClassification", "CaiTConfig"),
}
ID2LABEL = {index: f"class {index}" for index in range(5)}


def files_of(kind: Kind) -> set[str]:
    return WEIGHTS_AND_CONFIG | (CODE if kind.is_cait else set())


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All kinds as published, and what a process without this package makes of them."""
    root = tmp_path_factory.mktemp("published")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    expected, folders = {}, {kind: root / kind.name.replace(" ", "-") for kind in KINDS}
    for kind, folder in folders.items():
        own = {"fusion": "softmax", "query_chunk_size": 7} if kind.is_cait else {}
        model = kind.tiny(id2label=ID2LABEL, label2id=label2id_of(ID2LABEL), drop_path_rate=0.1, **own)
        processor = DistilledDeiTImageProcessor(crop_size=32, **({"crop_ratio": 1.0} if kind.is_cait else {}))
        model.save_pretrained(folder)
        assert names_in(folder) == files_of(kind)
        processor.save_pretrained(folder)
        torch.save(images(), folder / "pixel_values.pt")
        image.save(folder / "image.png")
        with torch.no_grad():
            output = model(images())
            scores = model(processor(image, return_tensors="pt")["pixel_values"]).logits[0].softmax(-1)
        expected[kind] = {
            "logits": {name: output[name] for name in output},
            "scores": {label: scores[index].item() for index, label in ID2LABEL.items()},
        }
    (root / "elsewhere").mkdir()
    script = root / "sealed.py"
    script.write_text(SEALED_PROCESS)
    home = {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-I", str(script), *map(str, folders.values())],
        cwd=root / "elsewhere",
        env={**{key: value for key, value in os.environ.items() if not key.startswith("HF_")}, **home},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout.split("ANSWER")[1])
    got = {kind: answer.pop(str(folder)) for kind, folder in folders.items()}
    return {"folders": folders, "expected": expected, "got": got, **answer}


def test_the_sealed_process_cannot_import_this_package(published):
    assert published["refused"] == "hf_deit is sealed off"
    assert published["modules"] == []


@EVERY_KIND
def test_published_model_opens_without_this_package_with_the_same_logits(published, kind):
    expected, got = published["expected"][kind], published["got"][kind]
    module, *classes = OPENED_AS[kind]
    assert got["module"].startswith(module)
    assert got["classes"] == [*classes, "DeiTImageProcessor"]
    for logits in (got["logits"], got["again"]):  # of what was published, and of what was saved there again
        ours = {name: torch.tensor(value) for name, value in logits.items()}
        assert_close(ours, expected["logits"], atol=1e-6 if kind.is_cait else 1e-5)


@EVERY_KIND
def test_published_model_answers_in_a_pipeline_without_this_package(published, kind):
    atol = 1e-6 if kind.is_cait else 1e-5
    assert published["got"][kind]["scores"] == pytest.approx(published["expected"][kind]["scores"], abs=atol)


@CAIT_KINDS
@pytest.mark.parametrize("suffix", ["", "-again"], ids=["published", "saved again"])
@torch.no_grad()
def test_published_code_opens_with_this_package_as_its_own_class(published, kind, suffix):
    """Without `trust_remote_code`: the code that is run is this package's."""
    folder = published["folders"][kind]
    folder = folder.with_name(folder.name + suffix)
    for name in CODE:
        assert (folder / name).read_text() == (Path(hf_deit.__file__).parent / "models" / name).read_text(), name
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is kind.model_class
    assert type(AutoConfig.from_pretrained(folder)) is kind.config_class
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["CaiTForImageClassification"]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_cait.CaiTConfig",
        "AutoModelForImageClassification": "modeling_cait.CaiTForImageClassification",
    }
    assert model.config.id2label == ID2LABEL
    output = model(images())
    assert_close({name: output[name] for name in output}, published["expected"][kind]["logits"], atol=1e-6)


# Saving and loading


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_keeps_every_bit_and_the_type(tmp_path, kind, dtype):
    model = kind.tiny().to(dtype)
    model.save_pretrained(tmp_path / "one")
    loaded = kind.load(tmp_path / "one")
    assert loaded.dtype == dtype
    assert not loaded.training
    assert_same_weights(model, loaded.state_dict())
    loaded.save_pretrained(tmp_path / "two")
    assert names_in(tmp_path / "two") == files_of(kind)
    for name in files_of(kind):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


ONE_HEAD = pytest.mark.parametrize(
    ("fusion", "other"), [("cls", "distillation_classifier"), ("distillation", "cls_classifier")]
)


@ONE_HEAD
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_a_model_that_answers_with_one_head_does_so_in_plain_transformers(tmp_path, fusion, other, dtype):
    model = DISTILLED_DEIT.tiny(fusion=fusion).to(dtype)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DeiTForImageClassification"]
    served, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(served) is DeiTForImageClassification
    assert (info["missing_keys"], info["mismatched_keys"]) == (set(), set())
    assert info["unexpected_keys"] == {f"{other}.weight", f"{other}.bias"}
    pixel_values, atol = images(64).to(dtype), 1e-5 if dtype == torch.float32 else 1e-2
    answers, output = served(pixel_values).logits, model(pixel_values)
    torch.testing.assert_close(answers, output.logits, atol=atol, rtol=0)
    mean = (output.cls_logits + output.distillation_logits) / 2
    assert (mean.argmax(-1) != output.logits.argmax(-1)).any()  # else the test would show nothing
    served.save_pretrained(tmp_path / "again")  # by transformers, in its own way
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(pixel_values).logits, answers)


@ONE_HEAD
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_answers_with_one_head_keeps_both(tmp_path, fusion, other, dtype):
    model = DISTILLED_DEIT.tiny(fusion=fusion).to(dtype)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path / "one", max_shard_size="40KB")
    assert_same_weights(model, before)  # it is not changed by being saved
    loaded = DISTILLED_DEIT.load(tmp_path / "one")
    assert (loaded.dtype, loaded.config.fusion) == (dtype, fusion)
    assert_same_weights(loaded, before)
    assert torch.equal(loaded(images().to(dtype)).logits, model(images().to(dtype)).logits)
    backbone = DISTILLED_DEIT.backbone_class.from_pretrained(tmp_path / "one")
    assert_same_weights(backbone, {name.removeprefix("deit."): before[name] for name in before if "deit." in name})
    for parameter in loaded.parameters():
        assert parameter.requires_grad
    # Another fusion, or none, is another form of the files.
    for step, (part, wanted) in enumerate([(loaded, "logits"), (loaded, other.split("_")[0]), (backbone, fusion)]):
        part.config.fusion = wanted
        part.save_pretrained(tmp_path / str(step))
        assert_same_weights(type(part).from_pretrained(tmp_path / str(step)), dict(part.state_dict()))


@ONE_HEAD
@pytest.mark.parametrize("written_anew", ["logits", "softmax", "cls", "distillation"])
def test_a_configuration_that_is_written_anew_does_not_mix_up_the_heads(tmp_path, fusion, other, written_anew):
    """The weights stay as they were saved, whatever becomes of `fusion`."""
    model = DISTILLED_DEIT.tiny(fusion=fusion)
    model.save_pretrained(tmp_path)
    config = DistilledDeiTConfig.from_pretrained(tmp_path)
    config.fusion = written_anew
    config.save_pretrained(tmp_path)
    loaded = DISTILLED_DEIT.load(tmp_path)
    assert loaded.config.fusion == written_anew
    assert_same_weights(loaded, dict(model.state_dict()))


@ONE_HEAD
def test_files_of_earlier_versions_that_answer_with_one_head_load(tmp_path, fusion, other):
    """They name both heads, and transformers averages them."""
    model = DISTILLED_DEIT.tiny(fusion="logits")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "fusion": fusion}))
    loaded = DISTILLED_DEIT.load(tmp_path)
    assert_same_weights(loaded, dict(model.state_dict()))
    assert torch.equal(loaded(images()).logits, model(images())[f"{fusion}_logits"])
    loaded.config.save_pretrained(tmp_path)
    assert_same_weights(DISTILLED_DEIT.load(tmp_path), dict(model.state_dict()))


@ONE_HEAD
def test_a_lost_head_is_missed(tmp_path, fusion, other):
    DISTILLED_DEIT.tiny(fusion=fusion).save_pretrained(tmp_path)
    DeiTForImageClassification.from_pretrained(tmp_path).save_pretrained(tmp_path)  # which knows of one head alone
    with pytest.raises(ValueError, match=f"2 missing: {other}.bias, {other}.weight"):
        DISTILLED_DEIT.load(tmp_path)
    assert DISTILLED_DEIT.load(tmp_path, ignore_mismatched_sizes=True).config.fusion == fusion


@EVERY_KIND
def test_weights_in_several_files_load(tmp_path, kind):
    model = kind.tiny()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(model, kind.load(tmp_path).state_dict())


@EVERY_KIND
@torch.no_grad()
def test_backbone_loads_from_a_classifier(tmp_path, kind):
    model = kind.tiny()
    model.save_pretrained(tmp_path)
    backbone = kind.backbone_class.from_pretrained(tmp_path)
    states = backbone(images()).last_hidden_state
    assert states.shape == (3, 1 + kind.distilled + 16, 32)
    assert torch.equal(states, model.base_model(images()).last_hidden_state)
    for loaded in (backbone, model):
        assert loaded.get_input_embeddings() is loaded.base_model.embeddings.patch_embeddings["projection"]


MISSING = [
    *((kind, key) for kind in KINDS for key in ("embeddings.cls_token", "patch_embeddings.projection.bias")),
    *((kind, f"{kind.prefix}.layernorm.weight") for kind in KINDS),
    *((kind, "embeddings.distillation_token") for kind in DISTILLED),
    *((DISTILLED_DEIT, key) for key in ("encoder.layer.1.output.dense.weight", "encoder.layer.")),
    (DEIT, "encoder.layer.0.attention.attention.query.weight"),
    *((DISTILLED_CAIT, key) for key in ("layers.1.mlp_scale", "layers.0.attention.talk_before.bias")),
    *((DISTILLED_CAIT, key) for key in ("class_layers.1.", "cait.")),
]
UNEXPECTED = [
    *((DISTILLED_DEIT, key) for key in ("deit.encoder.layer.2.output.dense.weight", "deit.encoder.layer.0.lambda_1")),
    *((DEIT, key) for key in ("vit.embeddings.distillation_token", "blocks.0.attn.qkv.weight")),
    *((CAIT, key) for key in ("cait.layers.2.mlp_scale", "cait.embeddings.distillation_token")),
    (CAIT, "blocks.0.attn.qkv.weight"),
]
RESHAPED = [
    *((kind, field) for kind in KINDS for field in ({"image_size": 64}, {"intermediate_size": 96})),
    *((kind, {"num_channels": 1}) for kind in KINDS),
    *((kind, {"num_attention_heads": 8}) for kind in (CAIT, DISTILLED_CAIT)),  # the heads are mixed
]
NEW_HEADS_ALLOWED = pytest.mark.parametrize("ignore", [False, True], ids=["", "new heads allowed"])


@NEW_HEADS_ALLOWED
@pytest.mark.parametrize(("kind", "key"), MISSING, ids=str)
def test_missing_backbone_keys_are_refused(tmp_path, kind, key, ignore):
    save_changed(tmp_path, kind.tiny(), drop=(key,))
    with pytest.raises(ValueError, match=r"does not fit .* missing: "):
        kind.load(tmp_path, ignore_mismatched_sizes=ignore)


@NEW_HEADS_ALLOWED
@pytest.mark.parametrize(("kind", "key"), UNEXPECTED, ids=str)
def test_unexpected_backbone_keys_are_refused(tmp_path, kind, key, ignore):
    save_changed(tmp_path, kind.tiny(), add={key: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"does not fit .* unknown: "):
        kind.load(tmp_path, ignore_mismatched_sizes=ignore)


@NEW_HEADS_ALLOWED
@pytest.mark.parametrize(("kind", "field"), RESHAPED, ids=str)
def test_backbone_of_another_shape_is_refused(tmp_path, kind, field, ignore):
    kind.tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit .* of another shape: "):
        kind.load(tmp_path, ignore_mismatched_sizes=ignore, **field)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        *((kind, (head,)) for kind in KINDS for head in kind.heads),
        *((kind, tuple(kind.heads)) for kind in DISTILLED),
    ],
    ids=str,
)
def test_missing_heads_are_refused_unless_new_ones_are_allowed(tmp_path, kind, missing):
    save_changed(tmp_path, kind.tiny(), drop=missing)
    with pytest.raises(ValueError, match=rf"missing: {missing[0]}\.bias.*pass ignore_mismatched_sizes=True"):
        kind.load(tmp_path)
    loaded = kind.load(tmp_path, ignore_mismatched_sizes=True)
    for head in missing:
        assert_fresh(loaded.get_submodule(head))
    original = kind.tiny().state_dict()
    kept = {key: value for key, value in loaded.state_dict().items() if not key.startswith(missing)}
    assert len(kept) == len(original) - 2 * len(missing)
    assert all(torch.equal(value, original[key]) for key, value in kept.items())


@EVERY_KIND
def test_another_number_of_labels_makes_new_heads_only_knowingly(tmp_path, kind):
    kind.tiny().save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match="ignore_mismatched_sizes"):
        kind.load(tmp_path, num_labels=40)
    torch.manual_seed(0)
    loaded = kind.load(tmp_path, num_labels=40, ignore_mismatched_sizes=True)
    assert loaded.config.num_labels == 40
    for head in kind.heads:
        assert loaded.get_submodule(head).out_features == 40
        assert_fresh(loaded.get_submodule(head))
    if kind.distilled:
        assert not torch.equal(loaded.cls_classifier.weight, loaded.distillation_classifier.weight)
    original = kind.tiny().state_dict()
    kept = {key: value for key, value in loaded.state_dict().items() if key.startswith(f"{kind.prefix}.")}
    assert len(kept) == len(original) - 2 * len(kind.heads)
    assert all(torch.equal(value, original[key]) for key, value in kept.items())


@EVERY_KIND
@pytest.mark.parametrize("use_safetensors", [False, None])
def test_pickled_weights_are_never_asked_for(tmp_path, kind, use_safetensors):
    kind.tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only safetensors weights are opened"):
        kind.load(tmp_path, use_safetensors=use_safetensors)


@EVERY_KIND
def test_checkpoint_with_pickled_weights_alone_is_refused(tmp_path, kind):
    kind.tiny().save_pretrained(tmp_path)
    torch.save(keys_on_disk(tmp_path), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        kind.load(tmp_path)


IMPOSSIBLE = [
    ({"num_attention_heads": 3}, "num_attention_heads must divide hidden_size"),
    ({"image_size": 30}, "multiple of patch_size"),
    ({"drop_path_rate": 1.0}, "drop_path_rate must lie in"),
    ({"drop_path_rate": -0.1}, "drop_path_rate must lie in"),
]
IMPOSSIBLE_CAIT = [
    ({"query_chunk_size": 0}, "query_chunk_size must be at least 1"),
    ({"layer_scale_init": 0.0}, "layer_scale_init must be positive"),
]


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        *((kind, *case) for kind in KINDS for case in IMPOSSIBLE),
        *((CAIT, *case) for case in IMPOSSIBLE_CAIT),
        *((kind, {"fusion": "mean"}, "fusion must be one of") for kind in WITH_FUSION),
    ],
    ids=str,
)
def test_impossible_field_is_refused_when_a_checkpoint_is_loaded(tmp_path, kind, bad, message):
    kind.tiny().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=message):
        kind.load(tmp_path, **bad)


@pytest.mark.parametrize("kind", WITH_FUSION, ids=str)
def test_another_fusion_is_taken_when_a_checkpoint_is_loaded(tmp_path, kind):
    kind.tiny().save_pretrained(tmp_path)
    assert kind.load(tmp_path, fusion="cls").config.fusion == "cls"


@EVERY_KIND
def test_misspelt_field_is_refused_when_a_checkpoint_is_loaded(tmp_path, kind):
    kind.tiny().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="drop_path_rte"):
        kind.load(tmp_path, drop_path_rte=0.1)
