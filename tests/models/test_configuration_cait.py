"""Contract: a configuration that no CaiT can be made from is refused, and a saved one opens as it was."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hf_deit import CaiTConfig, CaiTForImageClassification
from hf_deit.models.configuration_deit import FUSIONS

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}

IMPOSSIBLE = [
    ({"num_class_layers": 0}, "num_class_layers must be at least 1, got 0"),
    ({"query_chunk_size": 0}, "query_chunk_size must be at least 1, got 0"),
    ({"query_chunk_size": -7}, "query_chunk_size must be at least 1, got -7"),
    ({"layer_scale_init": 0.0}, "layer_scale_init must be positive, got 0.0"),
    ({"layer_scale_init": -1e-5}, "layer_scale_init must be positive, got -1e-05"),
    ({"fusion": "mean"}, "fusion must be one of logits, softmax, cls, distillation, got 'mean'"),
    # What no DeiT can be made from either.
    ({"num_attention_heads": 3}, "num_attention_heads must divide hidden_size, got 3 heads for 32"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
    ({"image_size": 30}, "image_size must be a positive multiple of patch_size, got image_size 30"),
    ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\), got 1.0"),
    ({"attention_probs_dropout_prob": 1.0}, r"attention_probs_dropout_prob must lie in \[0, 1\)"),
]


@pytest.mark.parametrize(("bad", "message"), IMPOSSIBLE)
def test_impossible_configuration_is_refused_when_made(bad, message):
    with pytest.raises(StrictDataclassError, match=message):
        CaiTConfig(**{**TINY, **bad})


@pytest.mark.parametrize(("bad", "message"), IMPOSSIBLE)
def test_impossible_configuration_is_refused_when_the_model_is_made(bad, message):
    config = CaiTConfig(**TINY)
    for name, value in bad.items():
        setattr(config, name, value)  # behind the configuration's back, as from_pretrained(..., field=) does
    with pytest.raises(StrictDataclassError, match=message):
        CaiTForImageClassification(config)


@pytest.mark.parametrize(
    "bad", [{"query_chunk_size": 7.5}, {"layer_scale_init": "1e-5"}, {"distillation_token": "yes"}, {"fusion": 1}]
)
def test_field_of_the_wrong_type_is_refused(bad):
    with pytest.raises(StrictDataclassError, match=next(iter(bad))):
        CaiTConfig(**{**TINY, **bad})


def test_defaults_are_those_of_cait_s24():
    config = CaiTConfig()
    defaults = {
        "hidden_size": 384,
        "num_hidden_layers": 24,
        "num_attention_heads": 8,
        "intermediate_size": 1536,
        "num_class_layers": 2,
        "layer_scale_init": 1e-5,
        "layer_norm_eps": 1e-6,
        "image_size": 224,
        "patch_size": 16,
        "drop_path_rate": 0.0,
        "distillation_token": False,
        "fusion": "logits",
    }
    assert {name: getattr(config, name) for name in defaults} == defaults


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_saved_configuration_opens_as_it_was(tmp_path, fusion):
    own = {"num_class_layers": 3, "layer_scale_init": 0.25, "query_chunk_size": 7, "distillation_token": True}
    config = CaiTConfig(**TINY, **own, fusion=fusion, drop_path_rate=0.1)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written[name] for name in own} == own
    assert (written["model_type"], written["fusion"]) == ("cait", fusion)
    for loaded in (CaiTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is CaiTConfig
        assert loaded.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize("model_type", ["deit", "vit", "resnet"])
def test_configuration_of_another_model_type_is_refused(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f'model_type "cait", got "{model_type}"'):
        CaiTConfig.from_pretrained(tmp_path)
