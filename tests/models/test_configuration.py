"""Contract: a configuration that no model can be made from is refused, and a saved one opens as it was.

A DeiT's opens as transformers' own. The published `config.json` must not rely on our defaults: transformers' differ
(LayerNorm eps 1e-12).
"""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from support.families import (
    CAIT,
    DEIT,
    DEIT_KINDS,
    DISTILLED_DEIT,
    EVERY_KIND,
    KINDS,
    TINY,
    WITH_FUSION,
)
from transformers import AutoConfig, DeiTConfig, ViTConfig

from hf_deit.models.configuration_deit import FUSIONS, label2id_of

IMPOSSIBLE = [
    ({"num_attention_heads": 3}, "num_attention_heads must divide hidden_size, got 3 heads for 32"),
    ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
    ({"hidden_size": -32}, "hidden_size must be at least 1, got -32"),
    ({"intermediate_size": 0}, "intermediate_size must be at least 1"),
    ({"num_channels": 0}, "num_channels must be at least 1"),
    ({"image_size": 30}, "image_size must be a positive multiple of patch_size, got image_size 30"),
    ({"image_size": [32, 30]}, "image_size must be a positive multiple of patch_size"),
    ({"image_size": [30, 32]}, "image_size must be a positive multiple of patch_size"),
    ({"image_size": 0}, "image_size must be a positive multiple of patch_size"),
    ({"patch_size": 0}, "image_size must be a positive multiple of patch_size"),
    ({"patch_size": 64}, "image_size must be a positive multiple of patch_size"),
    ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\), got 1.0"),
    ({"drop_path_rate": 1}, r"drop_path_rate must lie in \[0, 1\)"),
    ({"drop_path_rate": -0.1}, r"drop_path_rate must lie in \[0, 1\)"),
    ({"drop_path_rate": float("nan")}, r"drop_path_rate must lie in \[0, 1\)"),
    ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\)"),
    ({"attention_probs_dropout_prob": -1.0}, r"attention_probs_dropout_prob must lie in \[0, 1\)"),
    ({"attention_probs_dropout_prob": 1.0}, r"attention_probs_dropout_prob must lie in \[0, 1\)"),
]
IMPOSSIBLE_CAIT = [
    ({"num_class_layers": 0}, "num_class_layers must be at least 1, got 0"),
    ({"query_chunk_size": 0}, "query_chunk_size must be at least 1, got 0"),
    ({"query_chunk_size": -7}, "query_chunk_size must be at least 1, got -7"),
    ({"layer_scale_init": 0.0}, "layer_scale_init must be positive, got 0.0"),
    ({"layer_scale_init": -1e-5}, "layer_scale_init must be positive, got -1e-05"),
]
UNKNOWN_FUSION = ({"fusion": "mean"}, "fusion must be one of logits, softmax, cls, distillation, got 'mean'")


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        *((kind, *case) for kind in KINDS for case in IMPOSSIBLE),
        *((CAIT, *case) for case in IMPOSSIBLE_CAIT),
        *((kind, *UNKNOWN_FUSION) for kind in WITH_FUSION),
    ],
    ids=str,
)
def test_impossible_configuration_is_refused_when_it_or_the_model_is_made(kind, bad, message):
    with pytest.raises(StrictDataclassError, match=message):
        kind.config(**bad)
    config = kind.config()
    for name, value in bad.items():
        setattr(config, name, value)  # behind the configuration's back, as from_pretrained(..., field=) does
    with pytest.raises(StrictDataclassError, match=message):
        kind.model_class(config)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        *((kind, {name: value}) for kind in KINDS for name, value in (("image_size", "32"), ("hidden_size", 32.5))),
        *((kind, {"drop_path_rate": "0.1"}) for kind in KINDS),
        *((kind, {"fusion": 1}) for kind in WITH_FUSION),
        (CAIT, {"query_chunk_size": 7.5}),
        (CAIT, {"layer_scale_init": "1e-5"}),
        (CAIT, {"distillation_token": "yes"}),
    ],
    ids=str,
)
def test_field_of_the_wrong_type_is_refused(kind, bad):
    with pytest.raises(StrictDataclassError, match=next(iter(bad))):
        kind.config(**bad)


@EVERY_KIND
@pytest.mark.parametrize("rate", [0, 0.0, 0.1, 0.999])
def test_possible_rates_are_accepted(kind, rate):
    assert kind.config(drop_path_rate=rate).drop_path_rate == rate


DEFAULTS = {
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,  # with transformers' 1e-12 training explodes
    "initializer_range": 0.02,
    "qkv_bias": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}
DEIT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
CAIT_S24 = {
    "hidden_size": 384,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "intermediate_size": 1536,
    "num_class_layers": 2,
    "layer_scale_init": 1e-5,
    "distillation_token": False,
    "fusion": "logits",
}


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [(DEIT, DEIT_BASE), (DISTILLED_DEIT, DEIT_BASE), (CAIT, CAIT_S24)],
    ids=["deit", "distilled", "cait"],
)
def test_defaults_are_those_of_deit_base_and_cait_s24(kind, defaults):
    config = kind.config_class()
    expected = {**DEFAULTS, **defaults}
    assert {name: getattr(config, name) for name in expected} == expected


@EVERY_KIND
def test_grid_size_of_sides_that_differ(kind):
    assert kind.config(image_size=[32, 48], patch_size=[16, 8]).grid_size == (2, 6)


@pytest.mark.parametrize(
    ("kind", "native_class", "architecture"),
    [
        (DISTILLED_DEIT, DeiTConfig, "DeiTForImageClassificationWithTeacher"),
        (DEIT, ViTConfig, "ViTForImageClassification"),
    ],
    ids=["distilled", "plain"],
)
def test_published_configuration_opens_as_transformers_own(tmp_path, kind, native_class, architecture):
    id2label = {index: f"class {index}" for index in range(5)}
    label2id = label2id_of(id2label)
    kind.tiny(drop_path_rate=0.1, id2label=id2label, label2id=label2id).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == [architecture]
    assert "auto_map" not in written
    native = AutoConfig.from_pretrained(tmp_path)
    assert type(native) is native_class
    assert native.layer_norm_eps == 1e-6
    assert {name: getattr(native, name) for name in TINY} == TINY
    assert (native.id2label, native.label2id) == (id2label, label2id)
    assert label2id == {"class 0": 0, "class 1": 1, "class 2": 2, "class 3": 3, "class 4": 4}


@DEIT_KINDS
def test_published_configuration_states_defaults_that_transformers_does_not_share(tmp_path, kind):
    kind.config_class().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).layer_norm_eps == 1e-6


CAITS_OWN = {"num_class_layers": 3, "layer_scale_init": 0.25, "query_chunk_size": 7, "distillation_token": True}


@pytest.mark.parametrize(("kind", "own"), [(DISTILLED_DEIT, {}), (CAIT, CAITS_OWN)], ids=["deit", "cait"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_saved_configuration_opens_as_it_was(tmp_path, kind, own, fusion):
    config = kind.config(**own, fusion=fusion, drop_path_rate=0.25)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    given = {**own, "fusion": fusion, "drop_path_rate": 0.25, "model_type": kind.config_class.model_type}
    assert {name: written[name] for name in given} == given
    loaded = kind.config_class.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in given} == given
    assert loaded.to_dict() == config.to_dict()
    if kind.is_cait:  # a DeiT's opens as transformers' own
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is kind.config_class
        assert loaded.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(
    ("kind", "model_type", "message"),
    [
        (DISTILLED_DEIT, "vit", "Plain class"),
        (DEIT, "deit", 'model_type "vit", got "deit"'),
        (DISTILLED_DEIT, "resnet", 'model_type "deit", got "resnet"'),
        *((CAIT, name, f'model_type "cait", got "{name}"') for name in ("deit", "vit", "resnet")),
    ],
    ids=str,
)
def test_configuration_of_another_model_type_is_refused(tmp_path, kind, model_type, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=message):
        kind.config_class.from_pretrained(tmp_path)
