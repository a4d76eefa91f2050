"""Contract: the models are CaiT, to timm and to the paper, in memory that does not grow with the attention matrix.

- Given the same weights the logits and gradients are timm's, however the queries are cut into chunks.
- What is saved opens with `trust_remote_code` in a process that cannot import this package, and where this package is
  imported as its own class; whatever does not fit exactly is refused.
- They train as the paper does: LayerScale, one rate of stochastic depth, class attention; with a distillation token,
  which timm's have not, both tokens are treated alike.

Weights are random; nothing is downloaded.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny as tiny_runs
from timm.models.cait import Cait
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageClassification

import hf_deit
from hf_deit import (
    CaiTConfig,
    CaiTForImageClassification,
    CaiTModel,
    DistilledDeiTConfig,
    DistilledDeiTForImageClassification,
    DistilledDeiTImageProcessor,
    DistilledDeiTImageProcessorPil,
    InputError,
    PlainDeiTConfig,
    PlainDeiTForImageClassification,
    create_model,
    list_models,
    load_student,
    load_teacher,
)
from hf_deit.models.keyed import view_seed
from hf_deit.models.modeling_common import StochasticDepth

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
LOGITS = ("logits", "cls_logits", "distillation_logits")
HEADS = {False: ["classifier"], True: ["cls_classifier", "distillation_classifier"]}
BOTH = pytest.mark.parametrize("distilled", [False, True], ids=["plain", "distilled"])


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Sets every parameter, in our or timm's names, so that none is at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("_scale", "gamma_1", "gamma_2")):
            parameter.uniform_(0.1, 1, generator=generator)
            continue
        width = parameter[0].numel() if parameter.ndim > 1 else 1
        spread = 0.7 / math.sqrt(width) if name.endswith("weight") and parameter.ndim > 1 else 0.1
        parameter.normal_(0, spread, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1)
    return model.eval()


def tiny(distilled: bool = False, seed: int = 0, **fields) -> CaiTForImageClassification:
    return randomise(
        CaiTForImageClassification(CaiTConfig(**{**TINY, "distillation_token": distilled, **fields})), seed
    )


def images(batch_size: int = 3, height: int = 32, width: int | None = None, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 3, height, width or height, generator=torch.Generator().manual_seed(seed))


def seeds(batch_size: int, epoch: int = 0) -> torch.Tensor:
    return torch.tensor([view_seed(0, epoch, slot) for slot in range(batch_size)])


def gradients(model: nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[-1]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_logits(ours, theirs, atol: float = 1e-5) -> None:
    named = [{name: output[name] for name in LOGITS if name in output} for output in (ours, theirs)]
    assert_close(*named, atol=atol)


# Parity with timm

OUTSIDE_LAYERS = {
    "cls_token": "cait.embeddings.cls_token",
    "pos_embed": "cait.embeddings.position_embeddings",
    "patch_embed.proj": "cait.embeddings.patch_embeddings.projection",
    "norm": "cait.layernorm",
    "head": "classifier",
}
WITHIN_LAYERS = {
    "norm1": "layernorm_before",
    "attn.proj_l": "attention.talk_before",
    "attn.proj_w": "attention.talk_after",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "gamma_1": "attention_scale",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "gamma_2": "mlp_scale",
}


def from_timm(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's weights (or gradients) by our names, with the three projections of self-attention apart."""
    renamed = {}
    for name, value in tensors.items():
        module, dot, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        stack, *rest = module.split(".", 2)
        if stack not in ("blocks", "blocks_token_only"):
            renamed[OUTSIDE_LAYERS[module] + dot + kind] = value
            continue
        index, part = rest
        prefix = f"cait.{'layers' if stack == 'blocks' else 'class_layers'}.{index}."
        if part == "attn.qkv":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{prefix}attention.{letter}_proj.{kind}"] = third
        else:
            renamed[prefix + WITHIN_LAYERS[part] + dot + kind] = value
    return renamed


def assert_timms_logits(name: str, image_size: int, depth: int) -> None:
    with torch.device("meta"):
        reference = timm.create_model(name, img_size=image_size, depth=depth)
        model = create_model(name, image_size=image_size, num_hidden_layers=depth)
    randomise(reference.to_empty(device="cpu"))
    model.load_state_dict(from_timm(reference.state_dict()), strict=True, assign=True)
    pixel_values = images(2, image_size)
    logits = model.eval()(pixel_values).logits
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, reference(pixel_values), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in list_models() if name.startswith("cait_")])
@torch.no_grad()
def test_logits_equal_timms(name):
    assert_timms_logits(name, image_size=64, depth=2)


@torch.no_grad()
def test_logits_of_a_whole_cait_equal_timms():
    assert_timms_logits("cait_xxs24_224", image_size=224, depth=24)


@torch.no_grad()
def test_with_a_distillation_token_both_tokens_are_treated_alike():
    """By timm's class attention, which takes one token: the other one is then among what it attends to."""
    model, reference = tiny(distilled=True), tiny_timm(32)
    reference.head = nn.Identity()
    state = from_timm(reference.state_dict())
    model.load_state_dict({**model.state_dict(), **state}, strict=True)
    pixel_values = images()
    patches = reference.blocks(reference.patch_embed(pixel_values) + reference.pos_embed)
    embeddings = model.cait.embeddings
    cls_token, distillation_token = (
        token.expand(3, -1, -1) for token in (embeddings.cls_token, embeddings.distillation_token)
    )
    for block in reference.blocks_token_only:
        cls_token, distillation_token = (
            block(torch.cat((other, patches), dim=1), token)
            for token, other in ((cls_token, distillation_token), (distillation_token, cls_token))
        )
    output = model(pixel_values)
    cls_logits = model.cls_classifier(reference.norm(cls_token[:, 0]))
    distillation_logits = model.distillation_classifier(reference.norm(distillation_token[:, 0]))
    torch.testing.assert_close(output.cls_logits, cls_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.distillation_logits, distillation_logits, atol=1e-5, rtol=0)
    assert (cls_logits - distillation_logits).abs().max() > 0.1


@pytest.mark.parametrize(
    "fields",
    [
        {"qkv_bias": False},
        {"num_channels": 1},
        {"num_attention_heads": 8},
        {"layer_norm_eps": 0.1},
        {"num_class_layers": 3},
        {"hidden_act": "relu"},
    ],
)
@torch.no_grad()
def test_fields_mean_what_they_mean_in_timm(fields):
    timms = {
        "qkv_bias": lambda value: {"qkv_bias": value},
        "num_channels": lambda value: {"in_chans": value},
        "num_attention_heads": lambda value: {"num_heads": value},
        "layer_norm_eps": lambda value: {"norm_layer": lambda size, **kw: nn.LayerNorm(size, eps=value, **kw)},
        "num_class_layers": lambda value: {"depth_token_only": value},
        "hidden_act": lambda value: {"act_layer": nn.ReLU},
    }
    ((field, value),) = fields.items()
    reference = tiny_timm(32, **timms[field](value))
    model = CaiTForImageClassification(CaiTConfig(**{**TINY, **fields})).eval()
    model.load_state_dict(from_timm(reference.state_dict()), strict=True)
    pixel_values = images()[:, : model.config.num_channels]
    torch.testing.assert_close(model(pixel_values).logits, reference(pixel_values), atol=1e-5, rtol=0)


def tiny_timm(image_size: int, **settings) -> Cait:
    sizes = {"img_size": image_size, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return randomise(Cait(**{**sizes, "mlp_ratio": 2, "mlp_ratio_token_only": 2, **settings}))


# Chunks of queries


@pytest.fixture(scope="module")
def timms_gradients():
    """Weights, logits and gradients of timm's model on images of 100 patches."""
    reference = tiny_timm(80)
    logits = reference(images(3, 80))
    return reference.state_dict(), logits.detach(), from_timm(gradients(reference, logits))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 7, 50, 99, 100, 10_000])
def test_chunks_change_neither_logits_nor_gradients(timms_gradients, chunk_size, training):
    weights, logits, their_gradients = timms_gradients
    model = CaiTForImageClassification(CaiTConfig(**{**TINY, "image_size": 80, "query_chunk_size": chunk_size}))
    model.load_state_dict(from_timm(weights), strict=True)
    output = model.train(training)(images(3, 80))
    torch.testing.assert_close(output.logits.detach(), logits, atol=1e-5, rtol=0)
    assert_close(gradients(model, output.logits), their_gradients)
    with torch.no_grad():  # another path
        torch.testing.assert_close(model(images(3, 80)).logits, logits, atol=1e-5, rtol=0)


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors made within it: of the largest, and of those that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.largest = max(self.largest, storage.nbytes())
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        return result

    @property
    def alive(self) -> int:
        return sum(size for storage, size in self.sizes.items() if not storage.expired())


# One attention matrix of 256 patches is far larger than all else in so narrow a model.
NARROW = {"image_size": 128, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4}
MATRIX = 4 * 256 * 256 * 4


def memory_of_training(chunk_size: int) -> tuple[int, int]:
    """Bytes that the forward pass keeps for the backward pass, and of the largest tensor of both."""
    model = tiny(**NARROW, query_chunk_size=chunk_size).train()
    pixel_values, labels = images(1, 128), torch.tensor([1])
    with Memory() as memory:
        loss = model(pixel_values, labels=labels).loss
        kept = memory.alive
        loss.backward()
    return kept, memory.largest


def test_with_chunks_training_never_has_a_whole_attention_matrix():
    kept, largest = memory_of_training(chunk_size=16)
    assert kept < MATRIX  # of all layers, and not of chunks that make up a whole either
    assert largest <= MATRIX // 16
    kept, largest = memory_of_training(chunk_size=256)  # the measure sees what it should
    assert kept > 2 * 2 * MATRIX
    assert largest >= MATRIX


@torch.no_grad()
def test_with_chunks_inference_never_has_a_whole_attention_matrix():
    for chunk_size, largest in ((16, MATRIX // 16), (256, MATRIX)):
        model = tiny(**NARROW, query_chunk_size=chunk_size)
        pixel_values = images(1, 128)
        with Memory() as memory:
            model(pixel_values)
        assert memory.largest == largest


def test_default_chunks_keep_the_zoos_images_of_384_pixels_in_pieces():
    with torch.device("meta"):
        model = create_model("cait_xxs24_384", num_hidden_layers=1)
    attention, chunks = model.cait.layers[0].attention, []
    attention.dropout.register_forward_pre_hook(lambda module, inputs: chunks.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        model(torch.zeros(2, 3, 384, 384, device="meta"))
    assert chunks == [(2, 4, 256, 576), (2, 4, 256, 576), (2, 4, 64, 576)]


@pytest.mark.parametrize("chunk_size", [7, 16])
def test_gradients_are_those_of_the_attention_dropout_that_was_drawn(chunk_size):
    """By finite differences: were dropout drawn anew in the backward pass, they would be another function's."""
    model = tiny(query_chunk_size=chunk_size, attention_probs_dropout_prob=0.5).train().double()
    pixel_values, labels = images().double(), torch.tensor([0, 1, 2])

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        return model(pixel_values, labels=labels).loss

    found = []
    for _ in range(2):
        model.zero_grad()
        loss().backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())

    name = "cait.layers.0.attention.v_proj.weight"
    parameter, gradient, step = model.get_parameter(name), found[0][name], 1e-2
    direction = gradient / gradient.norm()
    with torch.no_grad():
        parameter.add_(step * direction)
        above = loss()
        parameter.sub_(2 * step * direction)
        below = loss()
    assert ((above - below) / (2 * step)).item() == pytest.approx(gradient.norm().item(), rel=1e-3)


# Dropout


@torch.no_grad()
def test_dropout_is_where_timm_has_it():
    """With a fixed mask in place of each; in class attention it is in torch's kernel."""
    reference = tiny_timm(32)
    model = CaiTForImageClassification(CaiTConfig(**TINY)).eval()
    model.load_state_dict(from_timm(reference.state_dict()), strict=True)
    undropped = reference(images())

    def drop(module, inputs, output):
        (value,) = inputs
        mask = torch.rand(value.shape, generator=torch.Generator().manual_seed(value.ndim)) < 0.5
        return value * mask * 2

    theirs = [reference.pos_drop]
    for block in (*reference.blocks, *reference.blocks_token_only):
        theirs += [block.attn.proj_drop, block.mlp.drop2]
    theirs += [block.attn.attn_drop for block in reference.blocks]
    for module in (*theirs, *(module for module in model.modules() if isinstance(module, nn.Dropout))):
        module.register_forward_hook(drop)
    dropped = reference(images())
    torch.testing.assert_close(model(images()).logits, dropped, atol=1e-5, rtol=0)
    assert (dropped - undropped).abs().max() > 0.1


@pytest.mark.parametrize("field", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
@pytest.mark.parametrize("kind", ["layers", "class_layers"])
@torch.no_grad()
def test_dropout_is_in_every_layer_and_only_in_training(field, kind):
    model, without = tiny(**{field: 0.5}), tiny()
    states = (torch.randn(3, 1, 32), torch.randn(3, 16, 32)) if kind == "class_layers" else (torch.randn(3, 16, 32),)
    for layer, plain in zip(getattr(model.cait, kind), getattr(without.cait, kind), strict=True):
        assert torch.equal(layer(*states), plain(*states))
        layer.train()
        outputs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            outputs.append(layer(*states))
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(outputs[0], outputs[2])
        assert not torch.equal(outputs[0], plain(*states))
    torch.testing.assert_close(model.eval()(images()).logits, without(images()).logits, atol=0, rtol=0)


# Stochastic depth


def test_stochastic_depth_has_one_rate_in_all_self_attention_layers():
    rate, dropped = 0.3, {}
    model = tiny(num_hidden_layers=3, drop_path_rate=rate).train()

    def count(name):
        def hook(module, inputs, output):
            dropped[name] = (output.flatten(1) == 0).all(1).float().mean().item()

        return hook

    for index, layer in enumerate(model.cait.layers):
        layer.attention_depth.register_forward_hook(count((index, "attention")))
        layer.mlp_depth.register_forward_hook(count((index, "mlp")))
    with torch.no_grad():
        model(images(1).expand(2000, -1, -1, -1), view_seeds=seeds(2000))
    assert len(dropped) == 6
    for name, share in dropped.items():
        assert share == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / 2000)), name


@torch.no_grad()
def test_class_layers_have_no_stochastic_depth():
    model = tiny(drop_path_rate=0.9)
    special, patches = torch.randn(16, 2, 32), torch.randn(16, 16, 32)
    for layer in model.cait.class_layers:
        assert torch.equal(layer.train()(special, patches), layer.eval()(special, patches))
        assert [module for module in layer.modules() if isinstance(module, StochasticDepth)] == []


@BOTH
@torch.no_grad()
def test_stochastic_depth_is_identity_in_evaluation(distilled):
    with_depth, without = tiny(distilled, drop_path_rate=0.9), tiny(distilled)
    assert torch.equal(with_depth(images()).logits, without(images()).logits)
    assert torch.equal(with_depth(images(), view_seeds=seeds(3)).logits, without(images()).logits)
    assert not torch.equal(with_depth.train()(images(), view_seeds=seeds(3)).logits, without(images()).logits)


@pytest.mark.parametrize("chunk_size", [7, 256])
@BOTH
@torch.no_grad()
def test_a_samples_output_does_not_depend_on_its_batch(distilled, chunk_size):
    model = tiny(distilled, drop_path_rate=0.5, num_hidden_layers=4, query_chunk_size=chunk_size).train()
    pixel_values, view_seeds = images(8), seeds(8)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    whole = model(pixel_values, view_seeds=view_seeds).logits
    halves = [model(pixel_values[half], view_seeds=view_seeds[half]).logits for half in (slice(4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(halves), whole, atol=1e-5, rtol=0)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    shuffled = model(pixel_values[order], view_seeds=view_seeds[order]).logits
    torch.testing.assert_close(shuffled, whole[order], atol=1e-5, rtol=0)
    assert torch.equal(torch.random.get_rng_state(), state)  # torch's generator has no part in it
    other_epoch = model(pixel_values, view_seeds=seeds(8, epoch=1)).logits
    assert (other_epoch - whole).abs().max() > 1e-2


@torch.no_grad()
def test_branches_draw_independently():
    """Of each other, and of the samples beside them."""
    model = tiny(drop_path_rate=0.5, num_hidden_layers=3).train()
    view_seeds, branch = seeds(4000), torch.ones(4000, 1)
    modules = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    kept = [module(branch, view_seeds).flatten() for module in modules]
    assert len(kept) == 6
    kept.append(kept[0].roll(1))
    correlation = torch.corrcoef(torch.stack(kept)) - torch.eye(7)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


# Initialisation


def fresh(distilled: bool = False, **fields) -> CaiTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "num_attention_heads": 4, "intermediate_size": 768, "num_hidden_layers": 2}
    config = CaiTConfig(**{**sizes, "num_labels": 100, "distillation_token": distilled, **fields})
    return CaiTForImageClassification(config)


@BOTH
@pytest.mark.parametrize("initializer_range", [0.02, 0.1])
def test_tokens_positions_and_linears_are_normal_with_the_papers_deviation(distilled, initializer_range):
    model = fresh(distilled, initializer_range=initializer_range)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(linears) == 2 * 8 + 2 * 6 + len(HEADS[distilled])
    embeddings = model.cait.embeddings
    tensors = {name: module.weight for name, module in linears.items()}
    names = ["cls_token", "position_embeddings"] + ["distillation_token"] * distilled
    tensors.update({name: getattr(embeddings, name) for name in names})
    for name, tensor in tensors.items():
        error = 5 * initializer_range / math.sqrt(tensor.numel())  # five standard errors
        assert tensor.mean().item() == pytest.approx(0, abs=error), name
        assert tensor.std().item() == pytest.approx(initializer_range, abs=error), name
        if tensor.numel() > 1000:  # a normal, not a uniform distribution: 4.6 % lie beyond two standard deviations
            assert 0.01 < (tensor.abs() > 2 * initializer_range).float().mean() < 0.1, name
    assert all(module.bias.abs().max() == 0 for module in linears.values())


def test_normal_is_truncated_at_two():
    """timm's and the authors' `trunc_normal_`: at ±2, not at two standard deviations."""
    model = fresh(initializer_range=1.5)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 1000:
            assert 1.9 < module.weight.abs().max() <= 2, name


@pytest.mark.parametrize("layer_scale_init", [1e-5, 0.1])
def test_scales_start_at_their_initial_value(layer_scale_init):
    scales = {n: p for n, p in fresh(layer_scale_init=layer_scale_init).named_parameters() if n.endswith("_scale")}
    assert len(scales) == 2 * (2 + 2)  # two branches of each of both kinds of layers
    for name, scale in scales.items():
        assert torch.equal(scale, torch.full((192,), layer_scale_init)), name
        assert scale.requires_grad


def test_layer_norms_start_as_identity_with_the_papers_epsilon():
    norms = [module for module in fresh().modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * (2 + 2) + 1
    for norm in norms:
        assert norm.eps == 1e-6
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_patch_convolution_keeps_torchs_default():
    projection = fresh().cait.embeddings.patch_embeddings["projection"]
    bound = 1 / math.sqrt(3 * 16 * 16)  # of nn.Conv2d: uniform, for weight and bias
    for parameter in (projection.weight, projection.bias):
        assert 0.95 * bound < parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_class_and_distillation_token_and_their_heads_differ():
    """Equal ones would stay equal."""
    model = fresh(distilled=True)
    embeddings = model.cait.embeddings
    for first, second in [
        (embeddings.cls_token, embeddings.distillation_token),
        (model.cls_classifier.weight, model.distillation_classifier.weight),
    ]:
        assert torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1].abs() < 0.4


# Heads, fusion and labels


def test_distillation_token_of_a_zoo_model():
    with torch.device("meta"):
        plain, distilled = (
            create_model("cait_xxs24_224", num_hidden_layers=1, distillation_token=value) for value in (False, True)
        )
    added = {"cait.embeddings.distillation_token": (1, 1, 192)}
    for head in HEADS[True]:
        added.update({f"{head}.weight": (1000, 192), f"{head}.bias": (1000,)})
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in (plain, distilled)]
    removed = {"classifier.weight": (1000, 192), "classifier.bias": (1000,)}
    assert shapes[1] == {n: shape for n, shape in {**shapes[0], **added}.items() if n not in removed}
    output = distilled(
        torch.zeros(2, 3, 224, 224, device="meta"), labels=torch.zeros(2, dtype=torch.long, device="meta")
    )
    assert list(output) == ["loss", *LOGITS]
    assert {tuple(output[name].shape) for name in LOGITS} == {(2, 1000)}
    assert list(plain(torch.zeros(2, 3, 224, 224, device="meta"))) == ["logits"]


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
    output = tiny(distilled=True, fusion=fusion)(images(16))
    torch.testing.assert_close(output.logits, formula(output.cls_logits, output.distillation_logits))
    assert (output.cls_logits - output.distillation_logits).abs().max() > 0.1


def expected_loss(output, labels: torch.Tensor) -> float:
    losses = []
    for name in ("cls_logits", "distillation_logits") if "cls_logits" in output else ("logits",):
        log_probabilities = output[name].detach().double().log_softmax(-1)
        losses.append(-np.mean([log_probabilities[row, label].item() for row, label in enumerate(labels.tolist())]))
    return sum(losses) / len(losses)


@BOTH
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fusion", ["logits", "cls"])
def test_labels_give_the_mean_of_the_heads_cross_entropies(distilled, training, fusion):
    model, labels = tiny(distilled, fusion=fusion).train(training), torch.tensor([4, 0, 2], dtype=torch.int32)
    output = model(images(), labels=labels)
    assert output.loss.item() == pytest.approx(expected_loss(output, labels), abs=1e-6)
    assert model(images()).loss is None
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    if distilled:
        assert model.cait.embeddings.distillation_token.grad.abs().max() > 1e-4
    partly = model(images(4), labels=torch.tensor([1, -100, 3, -100])).loss
    assert partly.item() == pytest.approx(model(images(4)[[0, 2]], labels=torch.tensor([1, 3])).loss.item(), abs=1e-6)


@BOTH
@torch.no_grad()
def test_tuples_have_the_fields_in_order(distilled):
    model, labels = tiny(distilled), torch.tensor([0, 1, 2])
    output = model(images(), labels=labels)
    values = model(images(), labels=labels, return_dict=False)
    assert list(output) == ["loss", *(LOGITS if distilled else LOGITS[:1])]
    assert all(torch.equal(value, output[name]) for name, value in zip(output, values, strict=True))


# Publishing

SEALED_PROCESS = """
import json, sys

sys.modules["hf_deit"] = None
try:
    import hf_deit
except ImportError as error:
    refused = type(error).__name__

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

def opened(folder, pixel_values):
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        output = model(pixel_values)
    return model, {name: output[name].tolist() for name in output}

answer = {"refused": refused}
for folder in sys.argv[1:]:
    pixel_values = torch.load(folder + "/pixel_values.pt")
    model, logits = opened(folder, pixel_values)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    classify = pipeline("image-classification", model=folder, trust_remote_code=True, device="cpu")
    scores = {found["label"]: found["score"] for found in classify(folder + "/image.png")}
    model.save_pretrained(folder + "-again")
    processor.save_pretrained(folder + "-again")
    answer[folder] = {
        "classes": [type(thing).__name__ for thing in (model, config, processor)],
        "module": type(model).__module__,
        "logits": logits,
        "scores": scores,
        "again": opened(folder + "-again", pixel_values)[1],
    }
answer["modules"] = sorted(name for name in sys.modules if name.startswith("hf_deit") and sys.modules[name])
print("ANSWER" + json.dumps(answer))
"""
FLAT_FILES = {
    *("config.json", "model.safetensors", "modeling_cait.py", "modeling_common.py"),
    *("configuration_cait.py", "configuration_deit.py", "keyed.py"),
}
ID2LABEL = {index: f"class {index}" for index in range(5)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Both kinds as published, and what a process without this package makes of them."""
    root = tmp_path_factory.mktemp("published")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    expected, folders = {}, {}
    for distilled in (False, True):
        folder = folders[distilled] = root / ("distilled" if distilled else "plain")
        names = {"id2label": ID2LABEL, "label2id": {label: index for index, label in ID2LABEL.items()}}
        model = tiny(distilled, **names, drop_path_rate=0.1, fusion="softmax", query_chunk_size=7)
        processor = DistilledDeiTImageProcessor(crop_size=32, crop_ratio=1.0)
        model.save_pretrained(folder)
        assert {path.name for path in folder.iterdir()} == FLAT_FILES
        processor.save_pretrained(folder)
        torch.save(images(), folder / "pixel_values.pt")
        image.save(folder / "image.png")
        with torch.no_grad():
            output = model(images())
            scores = model(processor(image, return_tensors="pt")["pixel_values"]).logits[0].softmax(-1)
        expected[distilled] = {
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
    got = {distilled: answer.pop(str(folder)) for distilled, folder in folders.items()}
    return {"folders": folders, "expected": expected, "got": got, **answer}


def test_the_sealed_process_cannot_import_this_package(published):
    assert published["refused"] == "ModuleNotFoundError"
    assert published["modules"] == []


@BOTH
def test_published_model_opens_without_this_package_with_the_same_logits(published, distilled):
    expected, got = published["expected"][distilled], published["got"][distilled]
    assert got["classes"] == ["CaiTForImageClassification", "CaiTConfig", "DeiTImageProcessor"]
    assert got["module"].startswith("transformers_modules.")
    for logits in (got["logits"], got["again"]):  # of what was published, and of what was saved there again
        assert_close({name: torch.tensor(value) for name, value in logits.items()}, expected["logits"], atol=1e-6)


@BOTH
def test_published_model_answers_in_a_pipeline_without_this_package(published, distilled):
    assert published["got"][distilled]["scores"] == pytest.approx(published["expected"][distilled]["scores"], abs=1e-6)


@BOTH
@pytest.mark.parametrize("suffix", ["", "-again"], ids=["published", "saved again"])
@torch.no_grad()
def test_published_model_opens_with_this_package_as_its_own_class(published, distilled, suffix):
    """Without `trust_remote_code`: the code that is run is this package's."""
    folder = published["folders"][distilled]
    folder = folder.with_name(folder.name + suffix)
    for name in FLAT_FILES - {"config.json", "model.safetensors"}:
        assert (folder / name).read_text() == (Path(hf_deit.__file__).parent / "models" / name).read_text(), name
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is CaiTForImageClassification
    assert type(AutoConfig.from_pretrained(folder)) is CaiTConfig
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["CaiTForImageClassification"]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_cait.CaiTConfig",
        "AutoModelForImageClassification": "modeling_cait.CaiTForImageClassification",
    }
    assert model.config.id2label == ID2LABEL
    output = model(images())
    assert_close({name: output[name] for name in output}, published["expected"][distilled]["logits"], atol=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_keeps_every_bit_and_the_type(tmp_path, distilled, dtype):
    model = tiny(distilled).to(dtype)
    model.save_pretrained(tmp_path / "one")
    loaded = CaiTForImageClassification.from_pretrained(tmp_path / "one")
    assert loaded.dtype == dtype
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    loaded.save_pretrained(tmp_path / "two")
    assert {path.name for path in (tmp_path / "two").iterdir()} == FLAT_FILES
    for name in FLAT_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_weights_in_several_files_load(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = CaiTForImageClassification.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def test_backbone_loads_from_a_classifier(tmp_path):
    model = tiny(distilled=True)
    model.save_pretrained(tmp_path)
    backbone = CaiTModel.from_pretrained(tmp_path)
    states = backbone(images()).last_hidden_state
    assert states.shape == (3, 2 + 16, 32)
    assert torch.equal(states, model.cait(images()).last_hidden_state)
    assert backbone.get_input_embeddings() is backbone.embeddings.patch_embeddings["projection"]


# What does not fit is refused


def save_changed(folder, distilled: bool = False, drop: str = "", add: dict | None = None) -> None:
    """A checkpoint without the keys that contain `drop`, and with those of `add`."""
    tiny(distilled).save_pretrained(folder)
    state = {
        key: value for key, value in load_file(folder / "model.safetensors").items() if not drop or drop not in key
    }
    save_file({**state, **(add or {})}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize(
    "key",
    ["distillation_token", "layers.1.mlp_scale", "layers.0.attention.talk_before.bias", "class_layers.1.", "cait."],
)
def test_missing_backbone_keys_are_refused(tmp_path, key, ignore):
    save_changed(tmp_path, distilled=True, drop=key)
    with pytest.raises(ValueError, match=r"does not fit .* missing: "):
        CaiTForImageClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=ignore)


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize(
    "key", ["cait.layers.2.mlp_scale", "cait.embeddings.distillation_token", "blocks.0.attn.qkv.weight"]
)
def test_unexpected_backbone_keys_are_refused(tmp_path, key, ignore):
    save_changed(tmp_path, add={key: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"does not fit .* unknown: "):
        CaiTForImageClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=ignore)


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("field", [{"image_size": 64}, {"intermediate_size": 96}, {"num_attention_heads": 8}])
def test_backbone_of_another_shape_is_refused(tmp_path, ignore, field):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit .* of another shape: "):
        CaiTForImageClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=ignore, **field)


@BOTH
def test_missing_heads_are_refused_unless_new_ones_are_allowed(tmp_path, distilled):
    missing = HEADS[distilled][-1]
    save_changed(tmp_path, distilled, drop=missing)
    with pytest.raises(ValueError, match=rf"missing: {missing}\.bias.*pass ignore_mismatched_sizes=True"):
        CaiTForImageClassification.from_pretrained(tmp_path)
    loaded = CaiTForImageClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert_fresh(loaded, missing)
    original = tiny(distilled).state_dict()
    kept = {key: value for key, value in loaded.state_dict().items() if not key.startswith(missing)}
    assert all(torch.equal(value, original[key]) for key, value in kept.items())


def assert_fresh(model: nn.Module, head: str) -> None:
    head = model.get_submodule(head)
    assert head.bias.abs().max() == 0
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.25)  # randomised weights have 0.12


@BOTH
def test_another_number_of_labels_makes_new_heads_only_knowingly(tmp_path, distilled):
    tiny(distilled).save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match="ignore_mismatched_sizes"):
        CaiTForImageClassification.from_pretrained(tmp_path, num_labels=40)
    loaded = CaiTForImageClassification.from_pretrained(tmp_path, num_labels=40, ignore_mismatched_sizes=True)
    for head in HEADS[distilled]:
        assert loaded.get_submodule(head).out_features == 40
        assert_fresh(loaded, head)
    original = tiny(distilled).state_dict()
    assert all(torch.equal(v, original[k]) for k, v in loaded.state_dict().items() if k.startswith("cait."))


@pytest.mark.parametrize("distilled", [False, True])
def test_heads_of_the_other_kind_are_refused(tmp_path, distilled):
    tiny(distilled).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown: "):
        CaiTForImageClassification.from_pretrained(tmp_path, distillation_token=not distilled)


@pytest.mark.parametrize("use_safetensors", [False, None])
def test_pickled_weights_are_never_asked_for(tmp_path, use_safetensors):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only safetensors weights are opened"):
        CaiTForImageClassification.from_pretrained(tmp_path, use_safetensors=use_safetensors)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"query_chunk_size": 0}, "query_chunk_size must be at least 1"),
        ({"layer_scale_init": 0.0}, "layer_scale_init must be positive"),
        ({"fusion": "mean"}, "fusion must be one of"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must lie in"),
        ({"num_attention_heads": 3}, "num_attention_heads must divide hidden_size"),
    ],
)
def test_impossible_field_is_refused_when_a_checkpoint_is_loaded(tmp_path, bad, message):
    tiny().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=message):
        CaiTForImageClassification.from_pretrained(tmp_path, **bad)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 33), (4, 32), (0, 32)])
def test_size_that_is_no_multiple_of_the_patch_is_refused(height, width):
    with pytest.raises(ValueError, match=rf"multiples of the patch size \(8, 8\), got {height} . {width}"):
        tiny()(torch.zeros(2, 3, height, width))


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 4, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
def test_wrong_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"pixel_values must be \(B, 3, H, W\), got"):
        tiny()(torch.zeros(shape))


@BOTH
@pytest.mark.parametrize("labels", [torch.full((3, 5), 0.2), torch.zeros(3), torch.zeros(2).long(), torch.tensor(1)])
def test_labels_that_are_no_class_indices_are_refused_with_the_remedy(distilled, labels):
    with pytest.raises(ValueError, match=r"class indices of shape \(3,\), got .*soft_target_cross_entropy"):
        tiny(distilled)(images(), labels=labels)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attentions_asked_for_are_refused(implementation):
    """An empty tuple where attentions were asked for is a silent loss."""
    with pytest.raises(ValueError, match="CaiT gives no attentions"):
        tiny(attn_implementation=implementation)(images(), output_attentions=True)


def test_attentions_that_the_configuration_asks_for_are_refused():
    model = tiny(output_attentions=True, attn_implementation="eager")
    with pytest.raises(ValueError, match="CaiT gives no attentions"):
        model(images())
    assert "attentions" not in model(images(), output_attentions=False)


@pytest.mark.parametrize("keyword", ["label", "interpolate_pos_encoding", "view_seed", "num_items_in_batch"])
def test_misspelt_or_unknown_keyword_is_refused(keyword):
    model = tiny()
    for module in (model, model.cait):
        with pytest.raises(TypeError, match=keyword):
            module(images(), **{keyword: torch.tensor([0, 1, 2])})


# Other sizes and other labels, of DeiT as well


def deit(config_class, model_class, **fields) -> nn.Module:
    return randomise(model_class(config_class(**{**TINY, **fields})))


KINDS = {
    "cait": tiny,
    "distilled cait": lambda **fields: tiny(distilled=True, **fields),
    "deit": lambda **fields: deit(PlainDeiTConfig, PlainDeiTForImageClassification, **fields),
    "distilled deit": lambda **fields: deit(DistilledDeiTConfig, DistilledDeiTForImageClassification, **fields),
}
SPECIAL_POSITIONS = {"cait": 0, "distilled cait": 0, "deit": 1, "distilled deit": 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [48, 16, (40, 24), 32])
@torch.no_grad()
def test_a_resized_model_answers_at_the_new_size_as_it_did(tmp_path, kind, size):
    model = KINDS[kind]()
    height, width = (size, size) if isinstance(size, int) else size
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixel_values = images(3, height, width)
    expected = model(pixel_values)
    model.resize_image_size(size)
    assert model.config.image_size == size
    after = model.state_dict()
    (positions,) = (name for name in before if name.endswith("position_embeddings"))
    assert after[positions].shape == (1, SPECIAL_POSITIONS[kind] + (height // 8) * (width // 8), 32)
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != positions)
    assert_same_logits(model(pixel_values), expected)
    model.save_pretrained(tmp_path)
    assert_same_logits(type(model).from_pretrained(tmp_path)(pixel_values), expected)


@torch.no_grad()
def test_positions_are_interpolated_bicubically_in_float32(monkeypatch):
    model = tiny()
    grid = model.cait.embeddings.position_embeddings.detach()[0].T.view(1, 32, 4, 4)  # patch r · 4 + c at (r, c)
    expected = F.interpolate(grid, size=(6, 3), mode="bicubic", align_corners=False).view(32, 18).T[None]
    model.resize_image_size((48, 24))
    torch.testing.assert_close(model.cait.embeddings.position_embeddings.detach(), expected, atol=1e-6, rtol=0)

    interpolate, dtypes = F.interpolate, []

    def watched(positions, *args, **kwargs):
        dtypes.append(positions.dtype)
        return interpolate(positions, *args, **kwargs)

    monkeypatch.setattr(F, "interpolate", watched)
    model = tiny().to(torch.bfloat16)
    model.resize_image_size(48)
    assert model.cait.embeddings.position_embeddings.dtype == torch.bfloat16
    assert dtypes == [torch.float32]


@pytest.mark.parametrize("trains", [True, False])
def test_resized_positions_train_as_they_did(trains):
    model = tiny()
    model.cait.embeddings.position_embeddings.requires_grad = trains
    model.resize_image_size(48)
    positions = model.cait.embeddings.position_embeddings
    assert positions.requires_grad == trains
    assert positions.is_leaf
    model(images(3, 48), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert (positions.grad is not None) == trains


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [33, 4, 0, -8, (32, 33), (33, 32)])
def test_a_refused_size_leaves_the_model_as_it_was(kind, size):
    model = KINDS[kind]()
    before, expected = {name: value.clone() for name, value in model.state_dict().items()}, model(images())
    with pytest.raises(ValueError, match="image_size"):
        model.resize_image_size(size)
    assert model.config.image_size == 32
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert_same_logits(model(images()), expected, atol=0)


THREE = {0: "ape", 1: "bee", 2: "cat"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "id2label"),
    [
        ({"id2label": THREE}, THREE),
        ({"num_labels": 3, "id2label": THREE}, THREE),
        ({"num_labels": 3}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}),
        ({}, {index: f"LABEL_{index}" for index in range(5)}),
    ],
)
def test_reset_heads_renews_the_heads_and_nothing_else(tmp_path, kind, settings, id2label):
    model = KINDS[kind]()
    heads = HEADS["distilled" in kind]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    model.reset_heads(**settings)
    assert model.config.num_labels == len(id2label)
    assert model.config.id2label == id2label
    assert model.config.label2id == {label: index for index, label in id2label.items()}
    after = model.state_dict()
    assert after.keys() == before.keys()
    for head in heads:
        assert after[f"{head}.weight"].shape == (len(id2label), 32)
        assert_fresh(model, head)
    if len(heads) == 2:
        assert not torch.equal(*(after[f"{head}.weight"] for head in heads))
    backbone = [name for name in before if not name.startswith(tuple(heads))]
    assert len(backbone) == len(before) - 2 * len(heads)
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.id2label == id2label
    assert loaded(images()).logits.shape == (3, len(id2label))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"num_labels": 2, "id2label": THREE},
        {"id2label": {1: "ape", 2: "bee", 3: "cat"}},
        {"id2label": {0: "ape", 2: "cat"}},
    ],
)
def test_names_that_do_not_number_the_labels_are_refused(kind, settings):
    model = KINDS[kind]()
    before, names = {name: value.clone() for name, value in model.state_dict().items()}, dict(model.config.id2label)
    with pytest.raises(ValueError, match="id2label must name the labels 0 to"):
        model.reset_heads(**settings)
    assert model.config.id2label == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_two_labels_is_refused(kind):
    model = KINDS[kind]()
    names = dict(model.config.id2label)
    with pytest.raises(ValueError, match="every label a name of its own, got 'a' more than once"):
        model.reset_heads(id2label={0: "a", 1: "b", 2: "a"})
    assert model.config.id2label == names


def test_new_heads_have_the_models_type():
    model = tiny(distilled=True).to(torch.bfloat16)
    model.reset_heads(7)
    assert model(images()).logits.dtype == torch.bfloat16
    assert model(images()).logits.shape == (3, 7)


@pytest.mark.parametrize("processor_class", [DistilledDeiTImageProcessor, DistilledDeiTImageProcessorPil])
@pytest.mark.parametrize(
    ("settings", "arguments", "crop", "resized"),
    [
        ({"crop_size": 224}, (384,), (384, 384), 438),
        ({"crop_size": 224, "crop_ratio": 1.0}, (384,), (384, 384), 384),
        ({"crop_size": 224, "size": {"shortest_edge": 448}}, (32,), (32, 32), 64),
        ({"crop_size": 224}, ((48, 64),), (48, 64), 54),
        ({"crop_size": 224}, (384, 1.0), (384, 384), 384),
    ],
)
def test_the_processor_at_another_size_keeps_its_crop_ratio_and_statistics(
    processor_class, settings, arguments, crop, resized
):
    own = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.9, 0.8, 0.7), "resample": 2}
    original = processor_class(**settings, **own)
    processor = original.at_crop_size(*arguments)
    assert type(processor) is processor_class
    assert (processor.crop_size.height, processor.crop_size.width) == crop
    assert processor.size.shortest_edge == resized
    assert {name: getattr(processor, name) for name in own} == own
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    prepared = processor(image, return_tensors="pt")["pixel_values"]
    assert prepared.shape == (1, 3, *crop)
    made_so = processor_class(crop_size={"height": crop[0], "width": crop[1]}, size={"shortest_edge": resized}, **own)
    assert torch.equal(prepared, made_so(image, return_tensors="pt")["pixel_values"])
    assert original.crop_size.height == 224


# What transformers' users expect of a model


@BOTH
@torch.no_grad()
def test_hidden_states_are_the_patches_and_each_self_attention_layers_output(distilled):
    model = tiny(distilled, num_hidden_layers=3)
    output = model(images(), output_hidden_states=True)
    states = output.hidden_states
    assert [tuple(state.shape) for state in states] == [(3, 16, 32)] * 4
    embeddings = model.cait.embeddings
    patches = embeddings.patch_embeddings["projection"](images()).flatten(2).mT + embeddings.position_embeddings
    torch.testing.assert_close(states[0], patches)
    for layer, before, after in zip(model.cait.layers, states, states[1:], strict=False):
        torch.testing.assert_close(layer(before), after)
    assert model(images()).hidden_states is None


@BOTH
@pytest.mark.parametrize("with_seeds", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(distilled, with_seeds):
    """Around the layers, with the chunks' own within."""
    found, calls = [], []
    for checkpointing in (False, True):
        model = tiny(distilled, drop_path_rate=0.5, query_chunk_size=7).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        calls.append({"layers": 0, "class_layers": 0})
        for kind in calls[-1]:

            def count(module, inputs, kind=kind):
                calls[-1][kind] += 1

            getattr(model.cait, kind)[0].mlp.register_forward_pre_hook(count)
        torch.manual_seed(0)
        view_seeds = seeds(3) if with_seeds else None
        model(images(), labels=torch.tensor([0, 1, 2]), view_seeds=view_seeds).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert calls == [{"layers": 1, "class_layers": 1}, {"layers": 2, "class_layers": 2}]  # again in the backward pass
    assert_close(*found, atol=1e-6)


@BOTH
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("chunk_size", [7, 256])
def test_bf16_is_finite_and_near_float32(distilled, autocast, chunk_size):
    model, labels = tiny(distilled, drop_path_rate=0.3, query_chunk_size=chunk_size).train(), torch.tensor([0, 1, 2])
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


@torch.no_grad()
def test_compiles_to_one_graph_in_evaluation(fresh_dynamo):
    model = tiny(distilled=True, query_chunk_size=7)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for height, width in ((32, 32), (48, 24)):
        assert_same_logits(compiled(images(2, height, width)), model(images(2, height, width)))


def test_compiles_to_one_graph_in_training(fresh_dynamo):
    """With the chunks' recomputation."""
    model = tiny(distilled=True, drop_path_rate=0.5, query_chunk_size=7).train()
    compiled, found = torch.compile(model, fullgraph=True, backend="aot_eager"), []
    for run in (model, compiled):
        output = run(images(8), view_seeds=seeds(8))
        found.append({"logits": output.logits, **gradients(model, output.logits)})
    assert_close(*found, atol=1e-6)


# Training


def student(*, distilled: bool, **overrides) -> CaiTForImageClassification:
    torch.manual_seed(0)
    labels = {index: str(index) for index in range(10)}
    fields = {**tiny_runs.SIZES, "id2label": labels, "distillation_token": distilled, **overrides}
    return create_model("cait_xxs24_224", **fields)


@pytest.fixture(scope="module")
def folder_of_teacher(tmp_path_factory) -> str:
    return tiny_runs.teacher_folder(tmp_path_factory.mktemp("teacher"))


@BOTH
@pytest.mark.parametrize("settings", [{}, {"bf16": True, "activation_checkpointing": True}], ids=["plain", "bf16"])
def test_every_parameter_learns_from_a_teacher(tmp_path, folder_of_teacher, distilled, settings):
    teacher = load_teacher(folder_of_teacher, student_processor=tiny_runs.processor())
    model = student(distilled=distilled, drop_path_rate=0.1, layer_scale_init=0.1, query_chunk_size=3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = tiny_runs.arguments(tmp_path, max_steps=2, **settings)
    trainer = tiny_runs.trainer(model, args, teacher)
    trainer.train()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []
    metrics = trainer.evaluate()
    assert ("eval_distillation_top1" in metrics) == distilled
    trainer.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is CaiTForImageClassification
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@BOTH
def test_weight_decay_leaves_scales_tokens_positions_norms_and_biases_alone(tmp_path, distilled):
    model = student(distilled=distilled)
    trainer = tiny_runs.trainer(model, tiny_runs.arguments(tmp_path, distillation_type="none", weight_decay=0.1))
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    expected = {f"{name}.weight" for name in [*linears, "cait.embeddings.patch_embeddings.projection"]}
    assert set(trainer.get_decay_parameter_names(model)) == expected
    assert len(expected) == 2 * 8 + 2 * 6 + len(HEADS[distilled]) + 1
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]}
        for group in trainer.optimizer.param_groups
    }
    assert groups == {0.1: expected, 0.0: set(names.values()) - expected}


# As a student's checkpoint


def saved_student(folder, distilled: bool):
    names = {"id2label": ID2LABEL, "label2id": {label: index for index, label in ID2LABEL.items()}}
    model = tiny(distilled, **names)
    model.save_pretrained(folder)
    DistilledDeiTImageProcessor(crop_size=32, crop_ratio=1.0).save_pretrained(folder)
    return model


@BOTH
@torch.no_grad()
def test_a_saved_cait_is_a_student_at_another_size(tmp_path, distilled):
    original = saved_student(tmp_path, distilled)
    model, processor = load_student(str(tmp_path), id2label=ID2LABEL, image_size=48)
    assert type(model) is CaiTForImageClassification
    assert model.training
    assert model.config.image_size == 48
    assert model.cait.embeddings.position_embeddings.shape == (1, 36, 32)
    assert (processor.crop_size.height, processor.size.shortest_edge) == (48, 48)  # whole images, as before
    assert_same_logits(model.eval()(images(3, 48)), original(images(3, 48)))
    with pytest.raises(InputError, match="patch_size 8"):
        load_student(str(tmp_path), id2label=ID2LABEL, image_size=33)


@BOTH
def test_all_but_attention_positions_and_heads_of_a_saved_cait_are_frozen(tmp_path, distilled):
    saved_student(tmp_path, distilled)
    model, _ = load_student(
        str(tmp_path), id2label=THREE, replace_head=True, freeze="all_but_attention", image_size=48
    )
    projections = [f"{letter}_proj" for letter in "qkvo"]
    within = {"layers": [*projections, "talk_before", "talk_after"], "class_layers": projections}
    modules = [
        f"cait.{kind}.{index}.attention.{name}" for kind, names in within.items() for index in (0, 1) for name in names
    ]
    expected = {f"{name}.{part}" for name in [*modules, *HEADS[distilled]] for part in ("weight", "bias")}
    expected.add("cait.embeddings.position_embeddings")
    assert all(model.get_submodule(head).out_features == 3 for head in HEADS[distilled])
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected


def test_a_student_of_the_zoo_is_a_cait():
    sizes = {name: value for name, value in TINY.items() if name != "num_labels"}
    model, processor = load_student(
        "cait_xxs24_224", id2label=THREE, overrides={**sizes, "distillation_token": True}, freeze="all_but_heads"
    )
    assert type(model) is CaiTForImageClassification
    assert model.config.id2label == THREE
    assert processor.crop_size.height == 32
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{head}.{part}" for head in HEADS[True] for part in ("weight", "bias")}
