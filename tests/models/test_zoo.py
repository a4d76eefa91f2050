"""Contract: the zoo has timm's eight DeiT and ten CaiT names, their models, and refuses what it does not know."""

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_deit.errors import InputError
from hf_deit.models.modeling_cait import CaiTForImageClassification
from hf_deit.models.modeling_deit import DistilledDeiTForImageClassification, PlainDeiTForImageClassification
from hf_deit.models.zoo import create_model, list_models

# Millions of parameters, facts/recipe.md "Variants".
PARAMETERS = {
    "deit_tiny_patch16_224": 5.717,
    "deit_small_patch16_224": 22.051,
    "deit_base_patch16_224": 86.568,
    "deit_base_patch16_384": 86.859,
    "deit_tiny_distilled_patch16_224": 5.911,
    "deit_small_distilled_patch16_224": 22.436,
    "deit_base_distilled_patch16_224": 87.338,
    "deit_base_distilled_patch16_384": 87.630,
}
# Parameters, and what the parameters do not tell: attention heads and LayerScale's initial value.
CAIT = {
    "cait_xxs24_224": (11_956_264, 4, 1e-5),
    "cait_xxs24_384": (12_029_224, 4, 1e-5),
    "cait_xxs36_224": (17_299_720, 4, 1e-5),
    "cait_xxs36_384": (17_372_680, 4, 1e-5),
    "cait_xs24_384": (26_670_088, 6, 1e-5),
    "cait_s24_224": (46_916_200, 8, 1e-5),
    "cait_s24_384": (47_062_120, 8, 1e-5),
    "cait_s36_384": (68_366_632, 8, 1e-6),
    "cait_m36_384": (271_221_352, 16, 1e-6),
    "cait_m48_448": (356_460_520, 16, 1e-6),
}


def test_the_zoo_is_timms_eight_deits_and_ten_caits():
    timm_names = {name for name in timm.list_models("deit_*") if "_patch16_" in name}
    assert set(PARAMETERS) == {name for name in timm_names if not name.startswith(("deit3_", "deit_small_patch16_36"))}
    assert set(CAIT) == set(timm.list_models("cait_*"))
    assert set(list_models()) == {*PARAMETERS, *CAIT}
    assert len(list_models()) == 18


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_equals_the_table_and_timms(name):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in create_model(name).parameters())
        reference = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    assert count == reference
    assert round(count / 1e6, 3) == PARAMETERS[name]


@pytest.mark.parametrize("name", CAIT)
def test_parameter_count_and_architecture_of_cait_are_timms(name):
    parameters, heads, layer_scale_init = CAIT[name]
    with torch.device("meta"):
        model, reference = create_model(name), timm.create_model(name)
    assert type(model) is CaiTForImageClassification
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert sum(parameter.numel() for parameter in reference.parameters()) == parameters
    config = model.config
    assert config.num_attention_heads == reference.blocks[0].attn.num_heads == heads
    assert config.num_attention_heads == reference.blocks_token_only[0].attn.num_heads
    assert len(model.cait.layers) == len(reference.blocks)
    assert len(model.cait.class_layers) == len(reference.blocks_token_only) == 2
    assert config.image_size == reference.patch_embed.img_size[0] == int(name[-3:])
    assert config.num_labels == reference.num_classes == 1000
    assert not config.distillation_token
    # The values themselves, of narrow layers, since there are none on the meta device.
    narrow = {"hidden_size": 48, "intermediate_size": 8, "num_hidden_layers": 1, "num_labels": 2}
    scales = {key: value for key, value in create_model(name, **narrow).named_parameters() if key.endswith("_scale")}
    theirs = timm.create_model(name, embed_dim=48, depth=1, num_classes=2).state_dict()
    assert len(scales) == 6
    assert {round(value, 9) for scale in scales.values() for value in scale.tolist()} == {layer_scale_init}
    assert torch.equal(scales["cait.layers.0.mlp_scale"], theirs["blocks.0.gamma_2"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_class_and_architecture_follow_the_name(name):
    with torch.device("meta"):
        model, reference = create_model(name), timm.create_model(name)
    distilled = "distilled" in name
    assert type(model) is (DistilledDeiTForImageClassification if distilled else PlainDeiTForImageClassification)
    config = model.config
    # The number of heads changes no parameter count.
    assert config.num_attention_heads == reference.blocks[0].attn.num_heads
    assert config.image_size == reference.patch_embed.img_size[0] == int(name[-3:])
    assert config.num_labels == reference.num_classes == 1000


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("deit_tiny_destilled_patch16_224", "did you mean 'deit_tiny_distilled_patch16_224'"),
        ("deit_small_patch16_244", "did you mean 'deit_small_patch16_224'"),
        ("cait_xxs24_244", "did you mean 'cait_xxs24_224'"),
        ("resnet", "deit_tiny_patch16_224, deit_small_patch16_224"),
    ],
)
def test_unknown_name_names_the_nearest(unknown, nearest):
    with pytest.raises(InputError, match=nearest):
        create_model(unknown)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("deit_tiny_patch16_224", {"drop_path_rte": 0.1}, "no field 'drop_path_rte'; did you mean 'drop_path_rate'"),
        ("deit_tiny_distilled_patch16_224", {"fussion": "cls"}, "did you mean 'fusion'"),
        ("deit_tiny_patch16_224", {"num_label": 3}, "did you mean 'num_labels'"),
        ("deit_tiny_patch16_224", {"fusion": "cls"}, "PlainDeiTConfig has no field 'fusion'"),
        ("deit_tiny_patch16_224", {"layer_scale_init": 0.1}, "PlainDeiTConfig has no field 'layer_scale_init'"),
        ("cait_xxs24_224", {"distilation_token": True}, "did you mean 'distillation_token'"),
    ],
)
def test_unknown_override_names_the_nearest(name, override, message):
    with pytest.raises(InputError, match=message):
        create_model(name, **override)


def test_overrides_reach_the_model():
    with torch.device("meta"):
        model = create_model(
            "deit_tiny_distilled_patch16_224", drop_path_rate=0.3, num_hidden_layers=3, image_size=64, fusion="cls"
        )
    assert model.config.fusion == "cls"
    assert [layer.mlp_depth.rate for layer in model.deit.layers] == pytest.approx([0.0, 0.15, 0.3])
    assert model.deit.embeddings.position_embeddings.shape[1] == 4 * 4 + 2


def test_overrides_reach_a_cait():
    with torch.device("meta"):
        model = create_model(
            "cait_xxs24_224",
            drop_path_rate=0.3,
            num_hidden_layers=3,
            image_size=64,
            query_chunk_size=9,
            distillation_token=True,
            fusion="cls",
        )
    assert [layer.mlp_depth.rate for layer in model.cait.layers] == [0.3] * 3
    assert model.cait.embeddings.position_embeddings.shape[1] == 4 * 4
    assert model.cait.layers[0].attention.chunk_size == 9
    assert model.distillation_classifier.out_features == 1000
    assert model.config.fusion == "cls"


def test_impossible_override_is_refused():
    with pytest.raises(StrictDataclassError, match="num_attention_heads must divide hidden_size, got 5 heads for 192"):
        create_model("deit_tiny_patch16_224", num_attention_heads=5)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "cait_xxs24_224"])
@pytest.mark.parametrize(
    ("overrides", "id2label"),
    [
        ({"num_labels": 3}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),
        ({"num_labels": 2}, {0: "LABEL_0", 1: "LABEL_1"}),
        ({"id2label": {0: "cat", 1: "dog", 2: "eel"}}, {0: "cat", 1: "dog", 2: "eel"}),
        ({"id2label": {"0": "cat", "1": "dog"}}, {0: "cat", 1: "dog"}),  # keys as JSON gives them
        ({"num_labels": 2, "id2label": {0: "cat", 1: "dog"}}, {0: "cat", 1: "dog"}),
    ],
)
def test_number_and_names_of_labels_agree(name, overrides, id2label):
    with torch.device("meta"):
        model = create_model(name, num_hidden_layers=1, **overrides)
    assert model.config.id2label == id2label
    assert model.config.label2id == {label: index for index, label in id2label.items()}
    assert model.config.num_labels == len(id2label)
    heads = [module for key, module in model.named_modules() if key.endswith("classifier")]
    assert {head.out_features for head in heads} == {len(id2label)}
    assert len(heads) == (2 if "distilled" in name else 1)


def test_number_and_names_of_labels_that_disagree_are_refused():
    with pytest.raises(InputError, match="num_labels is 3 but id2label names 2 labels"):
        create_model("deit_tiny_patch16_224", num_labels=3, id2label={0: "cat", 1: "dog"})


@pytest.mark.parametrize("overrides", [{}, {"id2label": {0: "cat", 1: "dog"}}])
def test_label2id_that_disagrees_with_the_names_is_refused(overrides):
    """Neither dropping it silently nor a configuration that contradicts itself will do."""
    with pytest.raises(InputError, match="label2id"), torch.device("meta"):
        create_model("deit_tiny_patch16_224", num_hidden_layers=1, label2id={"cat": 1, "dog": 0}, **overrides)
