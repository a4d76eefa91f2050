"""Contract: what the models of both families promise alike, with distillation token and without.

- They train as the papers do: truncated normal initialisation, stochastic depth, bicubic positions, late fusion; and a
  sample's output depends on the sample and its view alone, not on the batch it is in.
- They take another size and other labels, compile to one graph, and export for any number of images.

Weights are random; nothing is downloaded.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import checkpoints
from support.families import (
    CAIT,
    DEIT_KINDS,
    DISTILLED_DEIT,
    DISTILLED_KINDS,
    EVERY_KIND,
    EVERY_KIND_AND_CHUNKS,
    KINDS,
    WITH_CHUNKS,
    WITH_FUSION,
    Kind,
    assert_close,
    assert_fresh,
    assert_same_logits,
    assert_same_weights,
    images,
    randomise,
    seeds,
)
from torch import nn
from torch.export import Dim, export

from hf_deit.export.checkpoints.names import our_weights
from hf_deit.models.heads import HEADS
from hf_deit.models.keyed import keyed_draws
from hf_deit.models.modeling_common import StochasticDepth

# Initialisation


def initialised(model: nn.Module) -> dict[str, torch.Tensor]:
    """The special tokens, the positions and the weights of the linear layers."""
    tokens = ("cls_token", "distillation_token", "position_embeddings")
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    named = model.named_parameters()
    return {name: value.detach() for name, value in named if name in linears or name.endswith(tokens)}


@EVERY_KIND
@pytest.mark.parametrize("initializer_range", [0.02, 0.1])
def test_tokens_positions_and_linears_are_normal_with_the_papers_deviation(kind, initializer_range):
    model = kind.fresh(initializer_range=initializer_range)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == (2 * 8 + 2 * 6 if kind.is_cait else 2 * 6) + len(kind.heads)
    tensors = initialised(model)
    assert len(tensors) == len(linears) + 2 + kind.distilled
    for name, tensor in tensors.items():
        error = 5 * initializer_range / math.sqrt(tensor.numel())  # five standard errors
        assert tensor.mean().item() == pytest.approx(0, abs=error), name
        assert tensor.std().item() == pytest.approx(initializer_range, abs=error), name
        if tensor.numel() > 100:  # a normal, not a uniform distribution: 4.6 % lie beyond two standard deviations
            assert 0.01 < (tensor.abs() > 2 * initializer_range).float().mean() < 0.1, name
    assert all(module.bias.abs().max() == 0 for module in linears)


@EVERY_KIND
def test_normal_is_truncated_at_two(kind):
    """timm's and the authors' `trunc_normal_`: at ±2, not at two standard deviations."""
    for name, tensor in initialised(kind.fresh(initializer_range=1.5)).items():
        assert tensor.abs().max() <= 2, name
        if tensor.numel() > 100:
            assert tensor.abs().max() > 1.9, name


@DISTILLED_KINDS
def test_class_and_distillation_token_and_their_heads_differ(kind):
    """Equal ones would give equal outputs and gradients at the start, as transformers' zeros do."""
    model = kind.fresh()
    embeddings = model.base_model.embeddings
    pairs = [
        (embeddings.cls_token, embeddings.distillation_token),
        (model.cls_classifier.weight, model.distillation_classifier.weight),
        (embeddings.position_embeddings[:, 0], embeddings.position_embeddings[:, 1]),
    ]
    for first, second in pairs:
        assert torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1].abs() < 0.4


@EVERY_KIND
def test_layer_norms_start_as_identity_with_the_papers_epsilon(kind):
    norms = [module for module in kind.fresh().modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * (4 if kind.is_cait else 2) + 1
    for norm in norms:
        assert norm.eps == 1e-6
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


@EVERY_KIND
def test_patch_convolution_keeps_torchs_default(kind):
    projection = kind.fresh().base_model.embeddings.patch_embeddings["projection"]
    bound = 1 / math.sqrt(3 * 16 * 16)  # of nn.Conv2d: uniform, for weight and bias
    for parameter in (projection.weight, projection.bias):
        assert 0.95 * bound < parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)


# Stochastic depth


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        (DISTILLED_DEIT, [0.3 * index / 3 for index in range(4)]),  # the authors' and timm's rule
        (DISTILLED_DEIT, [0, 0.3]),
        (DISTILLED_DEIT, [0]),
        (CAIT, [0.3, 0.3, 0.3]),
    ],
    ids=str,
)
@torch.no_grad()
def test_stochastic_depth_grows_linearly_in_deit_and_is_the_same_in_all_layers_of_cait(kind, rates):
    model = kind.tiny(num_hidden_layers=len(rates), drop_path_rate=0.3).train()
    dropped = {}

    def count(name):
        def hook(module, inputs, output):
            dropped[name] = (output.flatten(1) == 0).all(1).float().mean().item()

        return hook

    for index, layer in enumerate(model.base_model.layers):
        layer.attention_depth.register_forward_hook(count((index, "attention")))
        layer.mlp_depth.register_forward_hook(count((index, "mlp")))
    model(images(1).expand(3000, -1, -1, -1), view_seeds=seeds(3000))
    for (index, branch), share in dropped.items():
        assert share == pytest.approx(rates[index], abs=0.04 if rates[index] else 0), (index, branch)
    assert len(dropped) == 2 * len(rates)


@EVERY_KIND
@torch.no_grad()
def test_stochastic_depth_is_identity_in_evaluation(kind):
    with_depth, without = kind.tiny(drop_path_rate=0.9), kind.tiny()
    assert torch.equal(with_depth(images()).logits, without(images()).logits)
    assert torch.equal(with_depth(images(), view_seeds=seeds(3)).logits, without(images()).logits)
    assert not torch.equal(with_depth.train()(images(), view_seeds=seeds(3)).logits, without(images()).logits)


@EVERY_KIND_AND_CHUNKS
@torch.no_grad()
def test_a_samples_output_does_not_depend_on_its_batch(kind, fields):
    model = kind.tiny(drop_path_rate=0.5, num_hidden_layers=4, **fields).train()
    pixel_values, view_seeds, atol = images(8), seeds(8), 1e-5 if kind.is_cait else 1e-6
    whole = model(pixel_values, view_seeds=view_seeds).logits
    halves = [model(pixel_values[half], view_seeds=view_seeds[half]).logits for half in (slice(4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(halves), whole, atol=atol, rtol=0)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    shuffled = model(pixel_values[order], view_seeds=view_seeds[order]).logits
    torch.testing.assert_close(shuffled, whole[order], atol=atol, rtol=0)
    other_epoch = model(pixel_values, view_seeds=seeds(8, epoch=1)).logits
    assert (other_epoch - whole).abs().max() > 1e-2


@EVERY_KIND_AND_CHUNKS
@torch.no_grad()
def test_with_seeds_torchs_generator_neither_matters_nor_moves(kind, fields):
    model = kind.tiny(drop_path_rate=0.5, **fields).train()
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = model(images(), view_seeds=seeds(3)).logits
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(model(images(), view_seeds=seeds(3)).logits, first)


@EVERY_KIND
@torch.no_grad()
def test_without_seeds_torchs_generator_decides(kind):
    model = kind.tiny(drop_path_rate=0.5).train()
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
    output = StochasticDepth(0.3, stream=1).train()(branch, keyed_draws(seeds(20_000), 2) if with_seeds else None)
    ratio = (output / branch).flatten()
    kept = ratio != 0
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1 / 0.7))
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.017)  # five standard deviations
    assert output.mean().item() == pytest.approx(branch.mean().item(), rel=0.025)


@pytest.mark.parametrize(("kind", "layers"), [(DISTILLED_DEIT, 4), (CAIT, 3)], ids=str)
@torch.no_grad()
def test_branches_draw_independently(kind, layers):
    """Of each other, and of the samples beside them."""
    model = kind.tiny(drop_path_rate=0.5, num_hidden_layers=layers).train()
    draws, branch = keyed_draws(seeds(6000), 2 * layers), torch.ones(6000, 1)
    modules = [module for module in model.modules() if isinstance(module, StochasticDepth) and module.rate > 0]
    kept = [module(branch, draws).flatten() for module in modules]
    assert len(kept) == 6
    kept.append(kept[0].roll(1))
    correlation = torch.corrcoef(torch.stack(kept)) - torch.eye(7)
    assert correlation.abs().max() < 5 / math.sqrt(6000)


# Dropout


@pytest.fixture
def masks(monkeypatch) -> list[tuple[int, ...]]:
    """Dropout with a mask that follows from the call's number and the shape; the list has the shapes of the calls."""
    shapes = []

    def masked(input, p=0.5, training=True, inplace=False):
        if not training or p == 0:
            return input
        shapes.append((*input.shape, p))
        generator = torch.Generator().manual_seed(len(shapes))
        return input * (torch.rand(input.shape, generator=generator) >= p) / (1 - p)

    monkeypatch.setattr(F, "dropout", masked)
    return shapes


DROPOUT_OF_TIMM = {  # the authors' --drop, in timm's words of today
    "hidden_dropout_prob": lambda p: {"pos_drop_rate": p, "proj_drop_rate": p},
    "attention_probs_dropout_prob": lambda p: {"attn_drop_rate": p},
}


@pytest.mark.parametrize("field", DROPOUT_OF_TIMM)
@pytest.mark.parametrize("name", [checkpoints.PLAIN, checkpoints.DISTILLED, checkpoints.CAIT])
@torch.no_grad()
def test_dropout_stands_where_timms_and_the_authors_does(masks, monkeypatch, name, field):
    monkeypatch.setattr("timm.layers.attention.use_fused_attn", lambda *args: False)  # draws where no patch reaches
    depth, rate = 2, 0.3
    theirs = randomise(checkpoints.tiny_timm_model(name, **DROPOUT_OF_TIMM[field](rate))).train()
    model = checkpoints.ours(name, **{field: rate}).train()
    model.load_state_dict(our_weights(theirs.state_dict(), model.config, name), strict=True)
    if name != checkpoints.CAIT:
        model.set_attn_implementation("eager")
    if name == checkpoints.DISTILLED:
        theirs.set_distilled_training(True)
    pixel_values = images(2)
    expected = theirs(pixel_values)
    of_theirs, masks[:] = list(masks), []
    output = model(pixel_values)
    found = (output.cls_logits, output.distillation_logits) if name == checkpoints.DISTILLED else (output.logits,)
    for ours, logits in zip(found, expected if name == checkpoints.DISTILLED else [expected], strict=True):
        torch.testing.assert_close(ours, logits, atol=1e-5, rtol=0)
    assert masks == of_theirs
    assert len(masks) == (1 + 3 * depth if field == "hidden_dropout_prob" else depth)
    assert (output.logits - model.eval()(pixel_values).logits).abs().max() > 1e-3
    assert len(masks) == len(of_theirs)  # none in evaluation


# Positions


def embedded(kind: Kind, model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The special tokens and the patches as they go into the layers."""
    states = model.base_model.embeddings(pixel_values)
    return states if kind.is_cait else (states[:, : 1 + kind.distilled], states[:, 1 + kind.distilled :])


@EVERY_KIND
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
def test_positions_are_interpolated_bicubically(kind, trained_at, height, width):
    model, special = kind.tiny(image_size=trained_at), kind.num_special_positions
    embeddings = model.base_model.embeddings
    positions = embeddings.position_embeddings.detach()[0]
    rows, columns = (4, 4) if trained_at == 32 else (3, 6)
    # (D, rows, columns), a patch at row r and column c being token r · columns + c
    grid = torch.stack([positions[special + r * columns : special + (r + 1) * columns].T for r in range(rows)], dim=1)
    expected = F.interpolate(grid[None], size=(height // 8, width // 8), mode="bicubic", align_corners=False)[0]
    expected = torch.stack([expected[:, r, c] for r in range(height // 8) for c in range(width // 8)])

    # What is added for positions: the embeddings of black images, without tokens and convolution bias.
    tokens, patches = embedded(kind, model, torch.zeros(1, 3, height, width))
    bias = embeddings.patch_embeddings["projection"].bias
    torch.testing.assert_close(patches[0] - bias, expected, atol=1e-6, rtol=0)
    own = [embeddings.cls_token[0], embeddings.distillation_token[0]] if kind.distilled else [embeddings.cls_token[0]]
    added = positions[:special] if special else 0
    torch.testing.assert_close(tokens[0] - torch.cat(own), torch.zeros_like(tokens[0]) + added, atol=1e-7, rtol=0)

    model.resize_image_size((height, width))
    resized = embeddings.position_embeddings[0]
    torch.testing.assert_close(resized[special:], expected, atol=1e-6, rtol=0)
    assert torch.equal(resized[:special], positions[:special])


@EVERY_KIND
@torch.no_grad()
def test_positions_of_a_bf16_model_are_interpolated_in_float32(monkeypatch, kind):
    """On the CPU the result is the same, so the call is watched; on a GPU it is not."""
    interpolate, dtypes = F.interpolate, []

    def watched(positions, *args, **kwargs):
        dtypes.append(positions.dtype)
        return interpolate(positions, *args, **kwargs)

    monkeypatch.setattr(F, "interpolate", watched)
    model = kind.tiny().to(torch.bfloat16)
    assert model(images(2, 64)).logits.dtype == torch.bfloat16
    assert dtypes == [torch.float32]
    model.resize_image_size(48)
    assert model.base_model.embeddings.position_embeddings.dtype == torch.bfloat16
    assert dtypes == [torch.float32] * 2


@EVERY_KIND
@pytest.mark.parametrize("patch_size", [[8, 16], [16, 8]])
@torch.no_grad()
def test_patches_may_be_oblong(kind, patch_size):
    model, pixel_values = kind.tiny(patch_size=patch_size), images(1)
    weight = model.base_model.embeddings.patch_embeddings["projection"].weight
    row, column = 1, 1
    patch = pixel_values[
        0, :, row * patch_size[0] : (row + 1) * patch_size[0], column * patch_size[1] : (column + 1) * patch_size[1]
    ]
    token = row * (32 // patch_size[1]) + column
    (_, patches), (_, black) = (embedded(kind, model, x) for x in (pixel_values, torch.zeros_like(pixel_values)))
    expected = torch.einsum("dchw,chw->d", weight, patch)
    torch.testing.assert_close((patches - black)[0, token], expected, atol=1e-5, rtol=1e-5)


@EVERY_KIND
@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 33), (4, 32), (0, 32)])
def test_size_that_is_no_multiple_of_the_patch_is_refused(kind, height, width):
    with pytest.raises(ValueError, match=rf"multiples of the patch size \(8, 8\), got {height} . {width}"):
        kind.tiny()(torch.zeros(2, 3, height, width))


@EVERY_KIND
@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 4, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
def test_wrong_channels_are_refused(kind, shape):
    with pytest.raises(ValueError, match=r"pixel_values must be \(B, 3, H, W\), got"):
        kind.tiny()(torch.zeros(shape))


# Fusion


@DISTILLED_KINDS
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
def test_fusion_is_its_formula(kind, fusion, formula):
    model = kind.tiny(fusion=fusion)
    for head in (model.cls_classifier, model.distillation_classifier):
        head.weight.mul_(4)
    output = model(images(16))
    torch.testing.assert_close(output.logits, formula(output.cls_logits, output.distillation_logits))
    assert (output.cls_logits - output.distillation_logits).abs().max() > 0.1


@DISTILLED_KINDS
@torch.no_grad()
def test_softmax_fusion_ranks_as_the_papers_sum_and_gives_its_mean(kind):
    model = kind.tiny(fusion="softmax", num_labels=7)
    generator = torch.Generator().manual_seed(0)
    cls_logits, distillation_logits = (torch.randn(500, 7, generator=generator) * 4 for _ in range(2))
    fused = model.fuse(cls_logits, distillation_logits)
    total = cls_logits.softmax(-1) + distillation_logits.softmax(-1)  # section 4
    assert torch.equal(fused.argsort(-1), total.argsort(-1))
    torch.testing.assert_close(fused.softmax(-1), total / 2)
    mean_of_logits = (cls_logits + distillation_logits) / 2
    assert (mean_of_logits.argmax(-1) != fused.argmax(-1)).any()


@DISTILLED_KINDS
@torch.no_grad()
def test_softmax_fusion_is_finite_for_confident_heads(kind):
    confident = torch.tensor([[1e4, 0.0, 0.0, 0.0, -1e4]])
    fused = kind.tiny(fusion="softmax").fuse(confident, confident.flip(-1))
    assert torch.isfinite(fused).all()
    torch.testing.assert_close(fused.softmax(-1), torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.5]]))


# Labels


def expected_loss(kind: Kind, output, labels: torch.Tensor) -> float:
    losses = []
    for name in kind.logits[-len(kind.heads) :]:
        logits = output[name].detach().double().numpy()
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses.append(-np.mean([row[label] for row, label in zip(log_probabilities, labels.tolist(), strict=True)]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(kind, {}) for kind in KINDS] + [(kind, {"fusion": name}) for kind in WITH_FUSION for name in ("softmax", "cls")],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_labels_give_the_mean_of_the_heads_cross_entropies(kind, fields, training, dtype):
    """However the heads are fused."""
    model, labels = kind.tiny(**fields).train(training), torch.tensor([4, 0, 2], dtype=dtype)
    output = model(images(), labels=labels)
    assert output.loss.item() == pytest.approx(expected_loss(kind, output, labels), abs=1e-6)
    assert model(images()).loss is None
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    if kind.distilled:
        assert model.base_model.embeddings.distillation_token.grad.abs().max() > 1e-4


@EVERY_KIND
def test_ignored_labels_leave_their_samples_out(kind):
    model = kind.tiny()
    loss = model(images(4), labels=torch.tensor([1, -100, 3, -100])).loss
    assert loss.item() == pytest.approx(model(images(4)[[0, 2]], labels=torch.tensor([1, 3])).loss.item(), abs=1e-6)


@EVERY_KIND
@pytest.mark.parametrize("labels", [torch.full((3, 5), 0.2), torch.zeros(3), torch.zeros(2).long(), torch.tensor(1)])
def test_labels_that_are_no_class_indices_are_refused_with_the_remedy(kind, labels):
    with pytest.raises(ValueError, match=r"class indices of shape \(3,\), got .*soft_target_cross_entropy"):
        kind.tiny()(images(), labels=labels)


@EVERY_KIND
@pytest.mark.parametrize("keyword", ["label", "lables", "interpolate_pos_encoding", "view_seed", "num_items_in_batch"])
def test_misspelt_or_unknown_keyword_is_refused(kind, keyword):
    model = kind.tiny()
    for module in (model, model.base_model):
        with pytest.raises(TypeError, match=keyword):
            module(images(), **{keyword: torch.tensor([0, 1, 2])})


# Another size and other labels


@EVERY_KIND
@pytest.mark.parametrize("size", [48, 16, (40, 24), 32])
@torch.no_grad()
def test_a_resized_model_answers_at_the_new_size_as_it_did(tmp_path, kind, size):
    model = kind.tiny()
    height, width = (size, size) if isinstance(size, int) else size
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixel_values = images(3, height, width)
    expected = model(pixel_values)
    model.resize_image_size(size)
    assert model.config.image_size == size
    after = model.state_dict()
    (positions,) = (name for name in before if name.endswith("position_embeddings"))
    assert after[positions].shape == (1, kind.num_special_positions + (height // 8) * (width // 8), 32)
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != positions)
    assert_same_logits(model(pixel_values), expected)
    model.save_pretrained(tmp_path)
    assert_same_logits(kind.load(tmp_path)(pixel_values), expected)


@EVERY_KIND
@pytest.mark.parametrize("trains", [True, False])
def test_resized_positions_train_as_they_did(kind, trains):
    model = kind.tiny()
    model.base_model.embeddings.position_embeddings.requires_grad = trains
    model.resize_image_size(48)
    positions = model.base_model.embeddings.position_embeddings
    assert positions.requires_grad == trains
    assert positions.is_leaf
    model(images(3, 48), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert (positions.grad is not None) == trains


@EVERY_KIND
@pytest.mark.parametrize("size", [33, 4, 0, -8, (32, 33), (33, 32)])
def test_a_refused_size_leaves_the_model_as_it_was(kind, size):
    model = kind.tiny()
    before, expected = {name: value.clone() for name, value in model.state_dict().items()}, model(images())
    with pytest.raises(ValueError, match="image_size"):
        model.resize_image_size(size)
    assert model.config.image_size == 32
    assert before.keys() == model.state_dict().keys()
    assert_same_weights(model, before)
    assert_same_logits(model(images()), expected, atol=0)


THREE = {0: "ape", 1: "bee", 2: "cat"}


@EVERY_KIND
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
    model = kind.tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    model.reset_heads(**settings)
    assert model.config.num_labels == len(id2label)
    assert model.config.id2label == id2label
    assert model.config.label2id == {label: index for index, label in id2label.items()}
    after = model.state_dict()
    assert after.keys() == before.keys()
    for head in kind.heads:
        assert after[f"{head}.weight"].shape == (len(id2label), 32)
        assert_fresh(model.get_submodule(head))
    if kind.distilled:
        assert not torch.equal(*(after[f"{head}.weight"] for head in kind.heads))
    backbone = [name for name in before if not name.startswith(tuple(kind.heads))]
    assert len(backbone) == len(before) - 2 * len(kind.heads)
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    model.save_pretrained(tmp_path)
    loaded = kind.load(tmp_path)
    assert loaded.config.id2label == id2label
    assert loaded(images()).logits.shape == (3, len(id2label))


@EVERY_KIND
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_labels": 2, "id2label": THREE}, "id2label must name the labels 0 to"),
        ({"id2label": {1: "ape", 2: "bee", 3: "cat"}}, "id2label must name the labels 0 to"),
        ({"id2label": {0: "ape", 2: "cat"}}, "id2label must name the labels 0 to"),
        ({"id2label": {0: "a", 1: "b", 2: "a"}}, "every label a name of its own, got 'a' more than once"),
    ],
)
def test_names_that_are_not_one_for_each_label_are_refused(kind, settings, message):
    model = kind.tiny()
    before, names = {name: value.clone() for name, value in model.state_dict().items()}, dict(model.config.id2label)
    with pytest.raises(ValueError, match=message):
        model.reset_heads(**settings)
    assert model.config.id2label == names
    assert_same_weights(model, before)


@EVERY_KIND
def test_new_heads_have_the_models_type(kind):
    model = kind.tiny().to(torch.bfloat16)
    model.reset_heads(7)
    assert model(images()).logits.dtype == torch.bfloat16
    assert model(images()).logits.shape == (3, 7)


# What transformers' users expect of a model


@EVERY_KIND
@torch.no_grad()
def test_tuples_have_the_fields_in_order(kind):
    model, pixel_values, labels = kind.tiny(), images(), torch.tensor([0, 1, 2])
    output = model(pixel_values, labels=labels)
    values = model(pixel_values, labels=labels, return_dict=False)
    assert list(output) == ["loss", *kind.logits] == ["loss", *(head.field for head in HEADS[: len(kind.logits)])]
    assert all(torch.equal(value, output[name]) for name, value in zip(output, values, strict=True))


@EVERY_KIND
@torch.no_grad()
def test_hidden_states_are_the_embeddings_and_each_layers_output(kind):
    model, pixel_values = kind.tiny(num_hidden_layers=3), images()
    backbone = model.base_model
    output = model(pixel_values, output_hidden_states=True)
    states, special = output.hidden_states, kind.num_special_positions
    assert [tuple(state.shape) for state in states] == [(3, special + 16, 32)] * 4
    tokens, patches = embedded(kind, model, pixel_values)
    assert torch.equal(states[0], patches if kind.is_cait else torch.cat((tokens, patches), dim=1))
    embeddings = backbone.embeddings
    patches = embeddings.patch_embeddings["projection"](pixel_values).flatten(2).mT
    torch.testing.assert_close(states[0][:, special:], patches + embeddings.position_embeddings[:, special:])
    for layer, before, after in zip(backbone.layers, states, states[1:], strict=False):
        torch.testing.assert_close(layer(before), after)
    last = states[-1]
    if kind.is_cait:
        for layer in backbone.class_layers:
            tokens = layer(tokens, last)
        last = tokens
    logits = model.get_submodule(kind.heads[0])(backbone.layernorm(last)[:, 0])
    torch.testing.assert_close(logits, output[kind.logits[-len(kind.heads)]])
    assert model(pixel_values).hidden_states is None


@DEIT_KINDS
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_of_the_last_layer_only_what_the_heads_look_at_is_computed(kind, attention):
    """With the same loss and gradients; all of it where states or attentions are asked for, or dropout draws."""
    model = kind.tiny(num_hidden_layers=3, drop_path_rate=0.5).train()
    model.set_attn_implementation(attention)
    shapes, special, pixel_values = [], kind.num_special_positions, images()
    model.base_model.layers[-1].register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))

    def gradients(**options):
        model.zero_grad()
        loss = model(pixel_values, labels=torch.tensor([0, 1, 2]), view_seeds=seeds(3), **options).loss
        loss.backward()
        return {"loss": loss.detach(), **{name: weight.grad for name, weight in model.named_parameters()}}

    assert_close(gradients(), gradients(output_hidden_states=True), atol=1e-6)
    states = model.base_model(pixel_values, view_seeds=seeds(3)).last_hidden_state
    first = model.base_model(pixel_values, view_seeds=seeds(3), num_tokens=1).last_hidden_state
    torch.testing.assert_close(first, states[:, :1])
    assert [shape[1] for shape in shapes] == [special, special + 16, special + 16, 1]
    for number, options in ((0, {}), (special + 17, {}), (1, {"output_hidden_states": True})):
        with pytest.raises(
            ValueError, match=f"num_tokens must be from 1 to {special + 16}, and None .*, got {number}"
        ):
            model.base_model(pixel_values, num_tokens=number, **options)


@DEIT_KINDS
def test_all_of_the_last_layer_is_computed_where_it_is_looked_at_or_drawn_for(kind):
    shapes, special = [], kind.num_special_positions

    def tokens(model, **options):
        model.base_model.layers[-1].register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        model.set_attn_implementation("eager")
        output = model(images(), **options)
        return output, shapes.pop()[1]

    assert tokens(kind.tiny().train())[1] == special
    output, number = tokens(kind.tiny(), output_attentions=True)
    assert number == special + 16 and output.attentions[-1].shape[-2:] == (special + 16,) * 2
    model = kind.tiny()
    model.computes_all_tokens = True
    assert tokens(model)[1] == special + 16
    for rate in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        model = kind.tiny(**{rate: 0.5})
        assert tokens(model.train())[1] == special + 16
        assert tokens(model.eval())[1] == special
        model.base_model.layers[-1].train()  # as one draws several answers of
        assert tokens(model)[1] == special + 16


@EVERY_KIND
@pytest.mark.parametrize("with_seeds", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(kind, with_seeds):
    """Around the layers; in CaiT with the chunks' own within."""
    found, calls, own = [], [], {"query_chunk_size": 7} if kind.is_cait else {}
    stacks = ("layers", "class_layers") if kind.is_cait else ("layers",)
    for checkpointing in (False, True):
        model = kind.tiny(drop_path_rate=0.5, **own).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        calls.append(dict.fromkeys(stacks, 0))
        for stack in stacks:

            def count(module, inputs, stack=stack):
                calls[-1][stack] += 1

            getattr(model.base_model, stack)[0].mlp.register_forward_pre_hook(count)
        torch.manual_seed(0)
        view_seeds = seeds(3) if with_seeds else None
        model(images(), labels=torch.tensor([0, 1, 2]), view_seeds=view_seeds).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert calls == [dict.fromkeys(stacks, 1), dict.fromkeys(stacks, 2)]  # the second time in the backward pass
    assert_close(*found, atol=1e-6 if kind.is_cait else 1e-7)


@EVERY_KIND_AND_CHUNKS
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_is_finite_and_near_float32(kind, fields, autocast):
    model, labels = kind.tiny(drop_path_rate=0.3, **fields).train(), torch.tensor([0, 1, 2])
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


# Compiled and exported

TRACED = [
    WITH_CHUNKS[name] for name in ("deit", "distilled deit", "cait", "cait in chunks", "distilled cait in chunks")
]
TWO_OF_THEM = [TRACED[1], TRACED[4]]
COMPILED = pytest.mark.parametrize(("kind", "fields"), [*TRACED[:2], TRACED[4]], ids=str)


def shallow(kind: Kind) -> dict[str, int]:
    """Fewer layers, as every operation that is traced takes its time."""
    return {"num_hidden_layers": 1, **({"num_class_layers": 1} if kind.is_cait else {})}


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@COMPILED
@torch.no_grad()
def test_compiles_to_one_graph_in_evaluation(fresh_dynamo, kind, fields):
    model = kind.tiny(**fields, **shallow(kind))
    compiled = torch.compile(model, fullgraph=True, backend="eager" if kind.is_cait else "aot_eager")
    for height, width in ((32, 32), (48, 24)):
        assert_same_logits(compiled(images(2, height, width)), model(images(2, height, width)))


@COMPILED
def test_compiles_to_one_graph_in_training(fresh_dynamo, kind, fields):
    """In chunks with their recomputation."""
    model = kind.tiny(drop_path_rate=0.5, **fields).train()
    compiled, found = torch.compile(model, fullgraph=True, backend="aot_eager"), []
    for run in (model, compiled):
        model.zero_grad()
        output = run(images(8), labels=torch.arange(8) % 5, view_seeds=seeds(8))
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        found.append({"logits": output.logits, "loss": output.loss, **gradients})
    assert_close(*found, atol=1e-6)


def assert_exports_for_any_number_of_images(model: nn.Module, inputs, strict: bool = False) -> None:
    batch = Dim("batch")
    shapes = {name: {0: batch} for name in inputs(3)}
    program = export(model, (), inputs(3), dynamic_shapes=shapes, strict=strict).module()
    for batch_size in (1, 2, 5):
        torch.manual_seed(0)
        got = program(**inputs(batch_size))
        torch.manual_seed(0)
        expected = model(**inputs(batch_size))
        assert list(got) == list(expected)
        assert_same_logits(got, expected, atol=1e-6)
        if "loss" in expected:
            torch.testing.assert_close(got["loss"], expected.loss)


@pytest.mark.parametrize(
    ("kind", "fields", "size", "strict"),
    [
        *((*case, 32, False) for case in TRACED),
        *((*case, 48, strict) for case in TWO_OF_THEM for strict in (False, True)),  # with interpolated positions
    ],
    ids=str,
)
def test_exports_for_any_number_of_images(kind, fields, size, strict):
    model = kind.tiny(**fields, **shallow(kind))
    assert_exports_for_any_number_of_images(model, lambda n: {"pixel_values": images(n, size)}, strict)


@pytest.mark.parametrize(
    ("kind", "fields", "with_seeds"),
    [*((*case, True) for case in TRACED), *((*case, False) for case in TWO_OF_THEM)],
    ids=str,
)
def test_exports_in_training_for_any_number_of_images(kind, fields, with_seeds):
    """With labels and stochastic depth, which in the first layer of a DeiT drops nothing."""
    model = kind.tiny(**fields, **(shallow(kind) if kind.is_cait else {}), drop_path_rate=0.5).train()

    def inputs(n):
        given = {"pixel_values": images(n), "labels": torch.arange(n) % 5}
        return {**given, "view_seeds": seeds(n)} if with_seeds else given

    assert_exports_for_any_number_of_images(model, inputs)
