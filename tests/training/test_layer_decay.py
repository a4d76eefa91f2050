"""Contract: with `layer_decay` each layer learns at its part of the rate, as timm has it; at 1.0 nothing changes."""

import re

import pytest
import timm
import torch
from support import tiny
from timm.optim import param_groups_layer_decay
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    PerceiverConfig,
    PerceiverForImageClassificationLearned,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
)

from hf_deit import create_model
from hf_deit.errors import InputError
from hf_deit.training.layer_decay import layers_of

DECAY = 0.65
# From our names to timm's.
TO_TIMM = (
    (r"^(deit|cait|vit)\.", ""),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^class_layers\.", "blocks_token_only."),
    (r"^layers\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^distillation_classifier", "head_dist"),
    (r"^(cls_)?classifier", "head"),
)


def timms_name(name: str) -> str:
    for pattern, its in TO_TIMM:
        name = re.sub(pattern, its, name)
    return name


def rates(trainer) -> dict[str, float]:
    """The learning rate of each parameter as a part of the peak, by name."""
    optimizer = trainer.create_optimizer()
    names = {id(one): name for name, one in trainer.model.named_parameters()}
    return {
        names[id(one)]: group["lr"] / trainer.args.peak_learning_rate
        for group in optimizer.param_groups
        for one in group["params"]
    }


def rates_of(model, folder, **settings) -> dict[str, float]:
    settings = {"layer_decay": DECAY, "distillation_type": "none", **settings}
    return rates(tiny.trainer(model, tiny.arguments(folder, **settings), train_dataset=None, eval_dataset=None))


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "cait_xxs24_224"])
def test_rates_are_those_of_timm(tmp_path, name):
    depth = 5
    ours = create_model(name, **{**tiny.SIZES, "num_hidden_layers": depth})
    its = timm.create_model(name, img_size=16, patch_size=8, embed_dim=32, depth=depth, num_heads=2, num_classes=10)
    stated = param_groups_layer_decay(its, layer_decay=DECAY)
    scale = {id(one): group["lr_scale"] for group in stated for one in group["params"]}
    expected = {timm_name: scale[id(one)] for timm_name, one in its.named_parameters()}
    found = rates_of(ours, tmp_path)
    tops = {timms_name(name): value for name, value in found.items() if name.split(".")[-2].endswith("classifier")}
    assert all(value == 1 for value in tops.values()) and tops
    compared = set()
    for own_name, value in found.items():
        timm_name = timms_name(own_name)
        if timm_name not in expected:  # our queries, keys and values are one matrix there, and norms have other names
            layer = re.match(r"(blocks\w*\.\d+)\.", timm_name)[1]
            timm_name = next(one for one in expected if one.startswith(f"{layer}."))
        compared.add(timm_name)
        assert value == pytest.approx(expected[timm_name], rel=1e-6), own_name
    assert {one.split(".")[0] for one in expected} == {one.split(".")[0] for one in compared}


def test_the_lowest_and_the_highest_rate(tmp_path):
    found = rates_of(tiny.student(), tmp_path)
    assert found["deit.embeddings.cls_token"] == pytest.approx(DECAY**3)
    assert found["deit.embeddings.position_embeddings"] == pytest.approx(DECAY**3)
    assert found["deit.layers.0.mlp.fc1.weight"] == pytest.approx(DECAY**2)
    assert found["deit.layers.1.mlp.fc1.weight"] == found["deit.layernorm.weight"] == pytest.approx(DECAY)
    assert found["cls_classifier.weight"] == found["distillation_classifier.bias"] == 1


def native_vit():
    config = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=16)
    return AutoModelForImageClassification.from_config(config)


def swin():
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4)
    return AutoModelForImageClassification.from_config(config)


def convnext():
    return AutoModelForImageClassification.from_config(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)
    )


def timms_resnet():
    return AutoModelForImageClassification.from_config(TimmWrapperConfig(architecture="resnet10t"))


@pytest.mark.parametrize(
    ("make", "num_layers", "beside"),
    [
        (native_vit, 5, ("vit.layernorm.weight", "vit.layers.2.")),
        (swin, 5, ("swin.encoder.layers.0.downsample.", "swin.encoder.layers.0.blocks.0.")),
        (convnext, 5, ("convnext.encoder.stages.1.downsampling_layer.", "convnext.encoder.stages.1.layers.0.")),
        (tiny.resnet, 4, ("resnet.embedder.", "resnet.embedder.")),
        (timms_resnet, 6, ("timm_model.bn1.", "timm_model.conv1.")),
    ],
)
def test_layers_of_other_students(make, num_layers, beside):
    layers = layers_of(make())
    assert sorted(set(layers.values())) == list(range(num_layers))
    in_order = [layer for name, layer in layers.items() if not name.startswith(beside[0])]
    assert in_order == sorted(in_order)  # as the pixels go through them
    those = [{layer for name, layer in layers.items() if name.startswith(part)} for part in beside]
    assert those[0] == those[1] and len(those[0]) == 1
    heads = {layer for name, layer in layers.items() if "classifier" in name or ".fc." in name}
    assert heads == {num_layers - 1}


def test_groups_keep_their_weight_decay_and_the_schedule_keeps_the_parts(tmp_path):
    plain = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, distillation_type="none"))
    decayed = {id(one) for one in plain.create_optimizer().param_groups[0]["params"]}
    settings = {"layer_decay": DECAY, "warmup_steps": 2, "distillation_type": "none", "max_steps": 6}
    trainer = tiny.trainer(plain.model, tiny.arguments(tmp_path, **settings))
    optimizer = trainer.create_optimizer()
    groups = optimizer.param_groups
    assert all((id(one) in decayed) == (group["weight_decay"] > 0) for group in groups for one in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(plain.model.parameters()))
    parts = [group["lr"] for group in groups]
    assert parts == sorted(parts, reverse=True)
    scheduler = trainer.create_scheduler(6, optimizer)
    for _ in range(6):
        now = [group["lr"] for group in groups]
        assert now == pytest.approx([now[0] * part / parts[0] for part in parts])
        assert scheduler.get_last_lr()[0] == now[0]  # what the log shows
        optimizer.step()
        scheduler.step()


def test_at_1_the_groups_are_those_without_it(tmp_path):
    groups = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, distillation_type="none")).create_optimizer()
    assert len(groups.param_groups) == 2


def test_a_run_with_layer_decay_resumes_with_the_same_bits(tmp_path):
    def make(folder):
        settings = {"layer_decay": DECAY, "distillation_type": "none", "save_strategy": "steps", "save_steps": 3}
        return tiny.trainer(tiny.student(), tiny.arguments(folder, max_steps=5, **settings))

    whole, resumed = make(tmp_path), make(tmp_path)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_frozen_layer_stays_out(tmp_path):
    model = tiny.student()
    model.deit.layers[0].requires_grad_(False)
    assert not any(name.startswith("deit.layers.0.") for name in rates_of(model, tmp_path))


def test_students_and_optimizers_that_cannot_are_refused(tmp_path):
    config = PerceiverConfig(num_latents=2, d_latents=8, num_blocks=1, num_self_attends_per_block=1)
    config.num_self_attention_heads = config.num_cross_attention_heads = 1
    with pytest.raises(InputError, match="layer_decay needs a student whose layers can be told apart"):
        rates_of(PerceiverForImageClassificationLearned(config), tmp_path)
    with pytest.raises(InputError, match="layerwise"):
        rates_of(tiny.student(), tmp_path, optim="galore_adamw_layerwise", optim_target_modules="mlp")
    with pytest.raises(InputError, match="layer_decay"):
        tiny.arguments(tmp_path, layer_decay=1.5)
