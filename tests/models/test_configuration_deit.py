"""Contract: a configuration that no model can be made from is refused, and what is saved opens as transformers' own.

The published `config.json` must not rely on our defaults: transformers' differ (LayerNorm eps 1e-12).
"""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, DeiTConfig, ViTConfig

from hf_deit.models.configuration_deit import FUSIONS, DistilledDeiTConfig, PlainDeiTConfig
from hf_deit.models.modeling_deit import DistilledDeiTForImageClassification, PlainDeiTForImageClassification

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
FAMILIES = [
    (DistilledDeiTConfig, DistilledDeiTForImageClassification, DeiTConfig, "DeiTForImageClassificationWithTeacher"),
    (PlainDeiTConfig, PlainDeiTForImageClassification, ViTConfig, "ViTForImageClassification"),
]

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
]


@pytest.mark.parametrize("config_class", [DistilledDeiTConfig, PlainDeiTConfig])
@pytest.mark.parametrize(("bad", "message"), IMPOSSIBLE)
def test_impossible_configuration_is_refused_when_made(config_class, bad, message):
    with pytest.raises(StrictDataclassError, match=message):
        config_class(**{**TINY, **bad})


@pytest.mark.parametrize("bad", [{"image_size": "32"}, {"hidden_size": 32.5}, {"drop_path_rate": "0.1"}])
def test_field_of_the_wrong_type_is_refused(bad):
    with pytest.raises(StrictDataclassError, match=next(iter(bad))):
        DistilledDeiTConfig(**{**TINY, **bad})


def test_unknown_fusion_is_refused_and_the_known_are_named():
    with pytest.raises(
        StrictDataclassError, match="fusion must be one of logits, softmax, cls, distillation, got 'me"
    ):
        DistilledDeiTConfig(**TINY, fusion="mean")
    assert [DistilledDeiTConfig(**TINY, fusion=fusion).fusion for fusion in FUSIONS] == list(FUSIONS)


@pytest.mark.parametrize(("config_class", "model_class"), [family[:2] for family in FAMILIES])
@pytest.mark.parametrize(("bad", "message"), IMPOSSIBLE)
def test_impossible_configuration_is_refused_when_the_model_is_made(config_class, model_class, bad, message):
    config = config_class(**TINY)
    for name, value in bad.items():
        setattr(config, name, value)  # behind the configuration's back, as from_pretrained(..., field=) does
    with pytest.raises(StrictDataclassError, match=message):
        model_class(config)


@pytest.mark.parametrize("rate", [0, 0.0, 0.1, 0.999])
def test_possible_rates_are_accepted(rate):
    assert DistilledDeiTConfig(**TINY, drop_path_rate=rate).drop_path_rate == rate


@pytest.mark.parametrize("config_class", [DistilledDeiTConfig, PlainDeiTConfig])
def test_defaults_are_those_of_deit_base(config_class):
    config = config_class()
    defaults = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,  # facts: transformers' 1e-12 explodes
        "initializer_range": 0.02,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    }
    assert {name: getattr(config, name) for name in defaults} == defaults


def test_grid_size_of_sides_that_differ():
    config = DistilledDeiTConfig(**{**TINY, "image_size": [32, 48], "patch_size": [16, 8]})
    assert config.grid_size == (2, 6)


@pytest.mark.parametrize(("config_class", "model_class", "native_class", "architecture"), FAMILIES)
def test_published_configuration_opens_as_transformers_own(
    tmp_path, config_class, model_class, native_class, architecture
):
    id2label = {index: f"class {index}" for index in range(5)}
    label2id = {label: index for index, label in id2label.items()}
    config = config_class(**TINY, drop_path_rate=0.1, id2label=id2label, label2id=label2id)
    model_class(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == [architecture]
    assert "auto_map" not in written
    native = AutoConfig.from_pretrained(tmp_path)
    assert type(native) is native_class
    assert native.layer_norm_eps == 1e-6
    assert {name: getattr(native, name) for name in TINY} == TINY
    assert (native.id2label, native.label2id) == (id2label, label2id)


@pytest.mark.parametrize("config_class", [DistilledDeiTConfig, PlainDeiTConfig])
def test_published_configuration_states_defaults_that_transformers_does_not_share(tmp_path, config_class):
    config_class().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).layer_norm_eps == 1e-6


def test_own_fields_survive_a_round_trip(tmp_path):
    config = DistilledDeiTConfig(**TINY, drop_path_rate=0.25, fusion="softmax")
    config.save_pretrained(tmp_path)
    loaded = DistilledDeiTConfig.from_pretrained(tmp_path)
    assert (loaded.drop_path_rate, loaded.fusion) == (0.25, "softmax")
    assert loaded.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("config_class", "model_type", "hint"),
    [
        (DistilledDeiTConfig, "vit", "Plain class"),
        (PlainDeiTConfig, "deit", 'model_type "vit", got "deit"'),
        (DistilledDeiTConfig, "resnet", 'model_type "deit", got "resnet"'),
    ],
)
def test_configuration_of_another_model_type_is_refused(tmp_path, config_class, model_type, hint):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=hint):
        config_class.from_pretrained(tmp_path)
