"""Contract: DeiT is transformers' DeiT and ViT, and timm's: the same names and logits, and the same files.

What both families promise is in test_modeling_contract.py. Weights are random; nothing is downloaded.
"""

import pytest
import timm
import torch
from support.families import (
    DEIT,
    DEIT_KINDS,
    DISTILLED_DEIT,
    TINY,
    assert_fresh,
    assert_same_logits,
    assert_same_weights,
    images,
    keys_on_disk,
    randomise,
    save_changed,
)
from torch import nn
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTForImageClassification,
)

from hf_deit import create_model

NATIVE = {"vit": ViTForImageClassification, "deit": DeiTForImageClassificationWithTeacher}
NATIVE_FIELDS = ("layer_norm_eps", "qkv_bias", "num_channels", "hidden_dropout_prob")


def native_like(model: nn.Module) -> nn.Module:
    """transformers' model of the same shape and weights; the strict loading compares the names."""
    native_class = NATIVE[model.base_model_prefix]
    fields = {name: getattr(model.config, name) for name in (*TINY, *NATIVE_FIELDS)}
    with torch.device("meta"):  # its initialisation would be thrown away
        native = native_class(native_class.config_class(**fields)).eval()
    native.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, strict=True, assign=True)
    return native


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


@DEIT_KINDS
@pytest.mark.parametrize(
    "fields",
    [
        *({"qkv_bias": False}, {"num_channels": 1}, {"layer_norm_eps": 0.1}, {"num_attention_heads": 8}),
        {"hidden_dropout_prob": 0.5},  # in evaluation nothing
    ],
)
@torch.no_grad()
def test_fields_mean_what_they_mean_in_transformers(kind, fields):
    model = kind.tiny(**fields)
    pixel_values = images()[:, : model.config.num_channels]
    assert_same_logits(model(pixel_values), native_like(model)(pixel_values))


@DEIT_KINDS
def test_parameter_names_and_shapes_equal_transformers(kind):
    model = kind.tiny()
    native = NATIVE[kind.prefix](native_like(model).config)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in native.state_dict().items()
    }


@DEIT_KINDS
@torch.no_grad()
def test_hidden_states_and_attentions_equal_transformers(kind):
    model = kind.tiny()
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


# Saving and loading


@DEIT_KINDS
@pytest.mark.parametrize(
    ("original_format", "marker"),
    [(True, "encoder.layer.0.attention.attention.query.weight"), (False, "layers.0.attention.q_proj.weight")],
)
@torch.no_grad()
def test_either_key_layout_loads_with_equal_weights(tmp_path, kind, original_format, marker):
    native = native_like(kind.tiny())
    native.save_pretrained(tmp_path, save_original_format=original_format)
    assert f"{kind.prefix}.{marker}" in keys_on_disk(tmp_path)
    model = kind.load(tmp_path)
    theirs = native.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    assert_same_weights(model, theirs)
    assert_same_logits(model(images()), native(images()))


@DEIT_KINDS
@pytest.mark.parametrize("loaded_in_original_format", [True, False])
def test_a_save_is_bit_identical_to_transformers_default_save(tmp_path, kind, loaded_in_original_format):
    """The Hub's layout, in whichever the model was loaded; transformers' own default follows what was loaded."""
    native = native_like(kind.tiny())
    native.save_pretrained(tmp_path / "native")
    native.save_pretrained(tmp_path / "loaded", save_original_format=loaded_in_original_format)
    kind.load(tmp_path / "loaded").save_pretrained(tmp_path / "ours")
    ours, theirs = keys_on_disk(tmp_path / "ours"), keys_on_disk(tmp_path / "native")
    assert ours.keys() == theirs.keys()
    assert f"{kind.prefix}.encoder.layer.0.attention.attention.query.weight" in ours
    assert all(torch.equal(value, theirs[key]) and value.dtype == theirs[key].dtype for key, value in ours.items())


@DEIT_KINDS
def test_weights_in_several_files_open_in_transformers(tmp_path, kind):
    model = kind.tiny()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(model, NATIVE[kind.prefix].from_pretrained(tmp_path).state_dict())


def test_publishing_another_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="save_original_format"):
        DISTILLED_DEIT.tiny().save_pretrained(tmp_path, save_original_format=False)


@DEIT_KINDS
def test_a_pooler_that_no_classifier_uses_is_left_out(tmp_path, kind):
    """Some published checkpoints carry one."""
    pooler = {
        f"{kind.prefix}.pooler.dense.weight": torch.zeros(32, 32),
        f"{kind.prefix}.pooler.dense.bias": torch.zeros(32),
    }
    save_changed(tmp_path, kind.tiny(), add=pooler)
    assert_same_weights(kind.tiny(), kind.load(tmp_path).state_dict())


@pytest.mark.parametrize(
    ("kind", "other", "hint"),
    [(DISTILLED_DEIT, DEIT, "open them with a Plain class"), (DEIT, DISTILLED_DEIT, 'got "deit"')],
    ids=str,
)
def test_checkpoint_of_another_model_type_is_refused(tmp_path, kind, other, hint):
    other.tiny().save_pretrained(tmp_path)
    for ignore in (False, True):
        with pytest.raises(ValueError, match=hint):
            kind.load(tmp_path, ignore_mismatched_sizes=ignore)


def test_single_head_of_transformers_deit_is_not_taken_for_two(tmp_path):
    """`DeiTForImageClassification` has one head; nothing tells which of ours it is."""
    native = DeiTForImageClassification(native_like(DISTILLED_DEIT.tiny()).config)
    native.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: .*unknown: classifier\.bias"):
        DISTILLED_DEIT.load(tmp_path)
    loaded = DISTILLED_DEIT.load(tmp_path, ignore_mismatched_sizes=True)
    assert torch.equal(loaded.deit.layernorm.weight, native.deit.layernorm.weight)
    assert_fresh(loaded.cls_classifier)


@DEIT_KINDS
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (24, 24), (48, 48), (40, 24), (16, 64)])
@torch.no_grad()
def test_other_sizes_equal_transformers_interpolation(kind, height, width):
    model = kind.tiny()
    pixel_values = images(2, height, width)
    assert_same_logits(model(pixel_values), native_like(model)(pixel_values, interpolate_pos_encoding=True))


# Attention


@DEIT_KINDS
@torch.no_grad()
def test_attentions_are_distributions_over_the_tokens(kind):
    model = kind.tiny(attn_implementation="eager")
    model.set_attn_implementation("eager")
    attentions = model(images(), output_attentions=True).attentions
    tokens = 16 + 1 + kind.distilled
    assert [tuple(weights.shape) for weights in attentions] == [(3, 4, tokens, tokens)] * 2
    for weights in attentions:
        assert weights.min() > 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, tokens))
    # They are those of the first block's queries and keys.
    backbone = model.base_model
    block = backbone.layers[0]
    normed = block.layernorm_before(backbone.embeddings(images()))
    query, key = block.attention.q_proj(normed)[..., :8], block.attention.k_proj(normed)[..., :8]
    torch.testing.assert_close(attentions[0][:, 0], (query @ key.mT / 8**0.5).softmax(-1))


@DEIT_KINDS
def test_sdpa_equals_eager_in_outputs_and_gradients(kind):
    gradients = []
    for implementation in ("eager", "sdpa"):
        model = kind.tiny()
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        output = model(images(), labels=torch.tensor([0, 1, 2]))
        output.loss.backward()
        gradients.append([output.logits, *(parameter.grad for parameter in model.parameters())])
    for eager, sdpa in zip(*gradients, strict=True):
        torch.testing.assert_close(sdpa, eager, atol=1e-5, rtol=0)


def test_attentions_need_eager_and_sdpa_says_so():
    """An empty tuple where attentions were asked for is a silent loss."""
    model = DISTILLED_DEIT.tiny()
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="eager"):
        model(images(), output_attentions=True)
