"""Contract: CaiT is timm's and the paper's, in memory that does not grow with the attention matrix.

- Given the same weights the logits and gradients are timm's, however the queries are cut into chunks.
- It trains as the paper does: LayerScale, class attention; with a distillation token, which timm's have not, both
  tokens are treated alike.

What both families promise is in test_modeling_contract.py. Weights are random; nothing is downloaded.
"""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from support import tiny as tiny_runs
from support.families import (
    CAIT,
    CAIT_KINDS,
    DISTILLED_CAIT,
    LOGITS,
    TINY,
    Kind,
    assert_close,
    assert_same_logits,
    assert_same_weights,
    images,
    randomise,
)
from support.timm_cait import from_timm, tiny_timm
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageClassification

from hf_deit import (
    CaiTForImageClassification,
    DistilledDeiTImageProcessor,
    InputError,
    create_model,
    list_models,
    load_student,
    load_teacher,
)
from hf_deit.models.configuration_deit import label2id_of
from hf_deit.models.modeling_common import StochasticDepth


def gradients(model: nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[-1]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# Parity with timm


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
    model, reference = DISTILLED_CAIT.tiny(), tiny_timm(32)
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
    model = CAIT.tiny(**fields)
    model.load_state_dict(from_timm(reference.state_dict()), strict=True)
    pixel_values = images()[:, : model.config.num_channels]
    torch.testing.assert_close(model(pixel_values).logits, reference(pixel_values), atol=1e-5, rtol=0)


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
    model = CAIT.tiny(image_size=80, query_chunk_size=chunk_size)
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
    model = CAIT.tiny(**NARROW, query_chunk_size=chunk_size).train()
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
        model = CAIT.tiny(**NARROW, query_chunk_size=chunk_size)
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
    model = CAIT.tiny(query_chunk_size=chunk_size, attention_probs_dropout_prob=0.5).train().double()
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


@pytest.mark.parametrize("field", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
@torch.no_grad()
def test_dropout_is_in_every_layer_but_those_of_class_attention_and_only_in_training(field):
    model, without = CAIT.tiny(**{field: 0.5}), CAIT.tiny()
    special, patches = torch.randn(3, 1, 32), torch.randn(3, 16, 32)
    for layer, plain in zip(model.cait.layers, without.cait.layers, strict=True):
        assert torch.equal(layer(patches), plain(patches))
        layer.train()
        outputs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            outputs.append(layer(patches))
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(outputs[0], outputs[2])
        assert not torch.equal(outputs[0], plain(patches))
    for layer, plain in zip(model.cait.class_layers, without.cait.class_layers, strict=True):
        assert torch.equal(layer.train()(special, patches), plain(special, patches))
    torch.testing.assert_close(model.eval()(images()).logits, without(images()).logits, atol=0, rtol=0)


@torch.no_grad()
def test_class_layers_have_no_stochastic_depth():
    model = CAIT.tiny(drop_path_rate=0.9)
    special, patches = torch.randn(16, 2, 32), torch.randn(16, 16, 32)
    for layer in model.cait.class_layers:
        assert torch.equal(layer.train()(special, patches), layer.eval()(special, patches))
        assert [module for module in layer.modules() if isinstance(module, StochasticDepth)] == []


# Initialisation and heads


@pytest.mark.parametrize("layer_scale_init", [1e-5, 0.1])
def test_scales_start_at_their_initial_value(layer_scale_init):
    model = CAIT.fresh(layer_scale_init=layer_scale_init)
    scales = {name: value for name, value in model.named_parameters() if name.endswith("_scale")}
    assert len(scales) == 2 * (2 + 2)  # two branches of each of both kinds of layers
    for name, scale in scales.items():
        assert torch.equal(scale, torch.full((192,), layer_scale_init)), name
        assert scale.requires_grad


def test_distillation_token_of_a_zoo_model():
    with torch.device("meta"):
        plain, distilled = (
            create_model("cait_xxs24_224", num_hidden_layers=1, distillation_token=value) for value in (False, True)
        )
    added = {"cait.embeddings.distillation_token": (1, 1, 192)}
    for head in DISTILLED_CAIT.heads:
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


@CAIT_KINDS
def test_heads_of_the_other_kind_are_refused(tmp_path, kind):
    kind.tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown: "):
        kind.load(tmp_path, distillation_token=not kind.distilled)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attentions_asked_for_are_refused(implementation):
    """An empty tuple where attentions were asked for is a silent loss."""
    model = CAIT.tiny(attn_implementation=implementation)
    for module in (model, model.cait):
        with pytest.raises(ValueError, match="CaiT gives no attentions"):
            module(images(), output_attentions=True)


def test_attentions_that_the_configuration_asks_for_are_refused():
    model = CAIT.tiny(output_attentions=True, attn_implementation="eager")
    for module in (model, model.cait):
        with pytest.raises(ValueError, match="CaiT gives no attentions"):
            module(images())
        assert "attentions" not in module(images(), output_attentions=False)


# Training


def student(kind: Kind, **overrides) -> CaiTForImageClassification:
    torch.manual_seed(0)
    labels = {index: str(index) for index in range(10)}
    fields = {**tiny_runs.SIZES, "id2label": labels, "distillation_token": kind.distilled, **overrides}
    return create_model("cait_xxs24_224", **fields)


@pytest.fixture(scope="module")
def folder_of_teacher(tmp_path_factory) -> str:
    return tiny_runs.teacher_folder(tmp_path_factory.mktemp("teacher"))


@CAIT_KINDS
@pytest.mark.parametrize("settings", [{}, {"bf16": True, "activation_checkpointing": True}], ids=["plain", "bf16"])
def test_every_parameter_learns_from_a_teacher(tmp_path, folder_of_teacher, kind, settings):
    teacher = load_teacher(folder_of_teacher, student_processor=tiny_runs.processor())
    model = student(kind, drop_path_rate=0.1, layer_scale_init=0.1, query_chunk_size=3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = tiny_runs.arguments(tmp_path, max_steps=2, **settings)
    trainer = tiny_runs.trainer(model, args, teacher)
    trainer.train()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []
    metrics = trainer.evaluate()
    assert ("eval_distillation_top1" in metrics) == kind.distilled
    trainer.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is CaiTForImageClassification
    assert_same_weights(model, loaded.state_dict())


@CAIT_KINDS
def test_weight_decay_leaves_scales_tokens_positions_norms_and_biases_alone(tmp_path, kind):
    model = student(kind)
    trainer = tiny_runs.trainer(model, tiny_runs.arguments(tmp_path, distillation_type="none", weight_decay=0.1))
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    expected = {f"{name}.weight" for name in [*linears, "cait.embeddings.patch_embeddings.projection"]}
    assert set(trainer.get_decay_parameter_names(model)) == expected
    assert len(expected) == 2 * 8 + 2 * 6 + len(kind.heads) + 1
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]}
        for group in trainer.optimizer.param_groups
    }
    assert groups == {0.1: expected, 0.0: set(names.values()) - expected}


# As a student's checkpoint


ID2LABEL = {index: f"class {index}" for index in range(5)}
THREE = {0: "ape", 1: "bee", 2: "cat"}


def saved_student(folder: Path, kind: Kind) -> CaiTForImageClassification:
    model = kind.tiny(id2label=ID2LABEL, label2id=label2id_of(ID2LABEL))
    model.save_pretrained(folder)
    DistilledDeiTImageProcessor(crop_size=32, crop_ratio=1.0).save_pretrained(folder)
    return model


@CAIT_KINDS
@torch.no_grad()
def test_a_saved_cait_is_a_student_at_another_size(tmp_path, kind):
    original = saved_student(tmp_path, kind)
    model, processor = load_student(str(tmp_path), id2label=ID2LABEL, image_size=48)
    assert type(model) is CaiTForImageClassification
    assert model.training
    assert model.config.image_size == 48
    assert model.cait.embeddings.position_embeddings.shape == (1, 36, 32)
    assert (processor.crop_size.height, processor.size.shortest_edge) == (48, 48)  # whole images, as before
    assert_same_logits(model.eval()(images(3, 48)), original(images(3, 48)))
    with pytest.raises(InputError, match="patch_size 8"):
        load_student(str(tmp_path), id2label=ID2LABEL, image_size=33)


@CAIT_KINDS
def test_all_but_attention_positions_and_heads_of_a_saved_cait_are_frozen(tmp_path, kind):
    saved_student(tmp_path, kind)
    model, _ = load_student(
        str(tmp_path), id2label=THREE, replace_head=True, freeze="all_but_attention", image_size=48
    )
    projections = [f"{letter}_proj" for letter in "qkvo"]
    within = {"layers": [*projections, "talk_before", "talk_after"], "class_layers": projections}
    modules = [
        f"cait.{kind}.{index}.attention.{name}" for kind, names in within.items() for index in (0, 1) for name in names
    ]
    expected = {f"{name}.{part}" for name in [*modules, *kind.heads] for part in ("weight", "bias")}
    expected.add("cait.embeddings.position_embeddings")
    assert all(model.get_submodule(head).out_features == 3 for head in kind.heads)
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
    assert trained == {f"{head}.{part}" for head in DISTILLED_CAIT.heads for part in ("weight", "bias")}
