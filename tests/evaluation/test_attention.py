"""Contract: the maps show where the special tokens look, and the model stays as it was.

- Attention of the last layer, rollout and relevance are the papers' formulas, on transformers' own attentions too, and
  find a patch that decides the class, in DeiT and in CaiT, on grids that are not square.
- CaiT's attention is timm's, and its recorded forward pass gives the logits of its own.
- The section shows images as the model sees them, leaves out what cannot be shown, and says what was drawn.
"""

import dataclasses
import functools
import gc
import io
import weakref

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import Normalize
from PIL import Image
from support.families import CAIT, DISTILLED_CAIT, DISTILLED_DEIT, EVERY_KIND, KINDS, TINY, Kind, images
from support.images import encoded, noise
from support.timm_cait import from_timm, tiny_timm
from support.tiny import processor, resnet
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_deit.errors import InputError
from hf_deit.evaluation.answers.verdicts import CLASS, DISTILLATION, SINGLE, SINGLE_HEAD, Verdicts
from hf_deit.evaluation.attention import attention as section_of_attention
from hf_deit.evaluation.attention.attention import attention_section
from hf_deit.evaluation.attention.attention_maps import (
    LAST_LAYER,
    METHODS,
    RELEVANCE,
    ROLLOUT,
    attention_maps,
    has_attention_maps,
    recorded_attention,
    relevance,
    rollout,
)
from hf_deit.evaluation.classifiers.classifiers import Classifier
from hf_deit.evaluation.images.images import EvaluationImages
from hf_deit.evaluation.images.labels import Labels

NATIVE = (ViTConfig, ViTForImageClassification), (DeiTConfig, DeiTForImageClassificationWithTeacher)


def classifier(model: PreTrainedModel, size: tuple[int, int] = (32, 48), **fields) -> Classifier:
    height, width = size
    return Classifier("ours", model, processor(crop_size={"height": height, "width": width}), size, **fields)


def native(config_class: type, model_class: type, kind: Kind) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model of this package for images of 32 × 48 pixels, and transformers' own with the same weights."""
    ours = kind.tiny(image_size=(32, 48))
    theirs = model_class(config_class(**{**TINY, "image_size": (32, 48)}, layer_norm_eps=1e-6)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


# The formulas


def random_attention(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def test_rollout_is_abnar_and_zuidemas():
    attentions = [random_attention(3, 8, 8, seed=layer) for layer in range(4)]
    expected = np.eye(8)
    for attention in attentions:
        mixed = np.zeros((8, 8))
        for row in range(8):
            for column in range(8):
                mean = sum(float(attention[head, row, column]) for head in range(3)) / 3
                mixed[row, column] = 0.5 * mean + 0.5 * (row == column)
            mixed[row] /= mixed[row].sum()
        expected = mixed @ expected
    np.testing.assert_allclose(rollout(attentions, 2), expected[:2, 2:], rtol=1e-12)


@pytest.mark.parametrize("token", [0, 1])
def test_relevance_is_chefers(token):
    attentions = [random_attention(3, 8, 8, seed=layer) for layer in range(4)]
    gradients = [random_attention(3, 8, 8, seed=layer) - 0.1 for layer in range(10, 14)]
    expected = np.eye(8)
    for attention, gradient in zip(attentions, gradients, strict=True):
        weighted = np.zeros((8, 8))
        for head in range(3):
            weighted += np.maximum(gradient[head].numpy() * attention[head].numpy(), 0) / 3
        expected = expected + weighted @ expected
    np.testing.assert_allclose(relevance(attentions, gradients, token, 2), expected[token, 2:], rtol=1e-12)


def test_class_attention_goes_on_where_the_patches_attention_ends():
    """As written out with all tokens in every layer: those that have no attention there stay as they are."""
    patches, special = [random_attention(2, 6, 6, seed=seed) for seed in (0, 1)], random_attention(2, 2, 8, seed=2)
    expected = np.eye(8)
    for attention in patches:
        mixed = np.eye(8)
        mixed[2:, 2:] = 0.5 * attention.mean(0).numpy() + 0.5 * np.eye(6)
        expected = mixed @ expected
    mixed = np.eye(8)
    mixed[:2] = 0.5 * special.mean(0).numpy() + 0.5 * np.eye(8)[:2]
    np.testing.assert_allclose(rollout([*patches, special], 2), (mixed @ expected)[:2, 2:], rtol=1e-12)


@pytest.mark.parametrize(("names", "kind"), list(zip(NATIVE, KINDS[:2], strict=True)), ids=["vit", "deit"])
def test_maps_are_those_of_transformers_attentions(names, kind):
    """Ours, and those of the native model opened as it is, from what `output_attentions` gives of the latter."""
    ours, theirs = native(*names, kind)
    pixels = images(1, 32, 48)
    maps = [attention_maps(classifier(model), pixels[0]) for model in (ours, theirs)]

    theirs.set_attn_implementation("eager")
    output = theirs(pixels, output_attentions=True)
    special = 1 + kind.distilled
    attentions = torch.stack([attention.detach()[0] for attention in output.attentions]).double()
    for index, (token, name) in enumerate(zip((CLASS, DISTILLATION), kind.logits[-2:], strict=False)):
        logits = output[name][0]
        gradients = torch.autograd.grad(logits.max(), output.attentions, retain_graph=True)
        flow, relevant = torch.eye(special + 24).double(), torch.eye(special + 24).double()
        for attention, (gradient,) in zip(attentions, gradients, strict=True):
            flow = (0.5 * attention.mean(0) + 0.5 * torch.eye(special + 24)) @ flow
            relevant = relevant + (gradient.double() * attention).clamp(min=0).mean(0) @ relevant
        expected = {
            LAST_LAYER: attentions[-1].mean(0)[index, special:],
            ROLLOUT: flow[index, special:],
            RELEVANCE: relevant[index, special:],
        }
        for found in maps:
            assert found.answers[token if kind.distilled else SINGLE][0] == int(logits.argmax())
            for method, values in expected.items():
                torch.testing.assert_close(found.maps[method, token], values.view(4, 6), atol=1e-6, rtol=1e-4)
            on_special = attentions[-1].mean(0)[index, :special].sum()
            assert found.on_special[token] == pytest.approx(float(on_special), abs=1e-6)
            torch.testing.assert_close(
                found.heads[token], attentions[-1][:, index, special:].view(4, 4, 6), atol=1e-6, rtol=0
            )


def test_a_distillation_token_without_a_head_has_no_relevance():
    model = DeiTForImageClassification(DeiTConfig(**TINY)).eval()
    maps = attention_maps(classifier(model), images(1, 32)[0]).maps
    assert {(LAST_LAYER, DISTILLATION), (ROLLOUT, DISTILLATION), (RELEVANCE, CLASS)} <= maps.keys()
    assert (RELEVANCE, DISTILLATION) not in maps


def test_the_answer_is_one_of_the_datas_classes():
    model, pixels = KINDS[0].tiny(), images(1, 32)[0]
    logits = model(pixels[None]).logits[0].detach()
    order = logits.argsort()[:3].numpy()  # the model's best class is none of the data's
    found = attention_maps(classifier(model, label_order=order), pixels)
    assert found.answers[SINGLE][0] == 2
    assert found.answers[SINGLE][1] == pytest.approx(float(logits[order].softmax(dim=0)[2]))


# CaiT's attention


@pytest.mark.parametrize("chunk_size", [7, 256])
@pytest.mark.parametrize("kind", [CAIT, DISTILLED_CAIT], ids=str)
def test_cait_computes_its_own_logits_from_the_recorded_attention(kind, chunk_size):
    model, pixels = kind.tiny(query_chunk_size=chunk_size), images(2, 32, 48)
    expected = model(pixels)
    with recorded_attention(model) as recorded:
        output = model(pixels)
    for name in kind.logits:
        torch.testing.assert_close(output[name], expected[name], atol=1e-6, rtol=0)
        torch.autograd.grad(output[name].sum(), recorded, retain_graph=True)  # each of them is used
    special = 1 + kind.distilled
    assert [weights.shape[2:] for weights in recorded] == [(24, 24)] * 2 + [(special, special + 24)] * 2
    for weights in recorded:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))


def test_caits_attention_is_timms():
    reference, model, pixels = tiny_timm(32), CAIT.tiny(), images(2, 32)
    model.load_state_dict(from_timm(reference.state_dict()), strict=True)
    theirs = []
    for block in (*reference.blocks, *reference.blocks_token_only):
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: theirs.append(output))
    reference(pixels)
    with recorded_attention(model) as ours:
        model(pixels)
    for index, (weights, expected) in enumerate(zip(ours, theirs, strict=True)):
        if index < len(reference.blocks):  # timm's dropout is behind the second mixing of the heads
            mixing = reference.blocks[index].attn.proj_w
            weights = torch.einsum("oh,bhqk->boqk", mixing.weight, weights) + mixing.bias[:, None, None]
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


# A planted patch

GRID, PATCH = (4, 6), 8
COLOURS = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0], [1.5, 1.5, -1.0], [0.0, 0.0, 0.0]])


def with_planted_patch(
    count: int, generator: torch.Generator, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise with a patch somewhere whose colour is the class; of class 4 there is none. And the classes and places."""
    (rows, columns), every = GRID, torch.arange(count)
    classes = torch.randint(num_classes, (count,), generator=generator)
    places = torch.randint(rows * columns, (count,), generator=generator)
    pixels = 0.5 * torch.randn(count, 3, rows, PATCH, columns, PATCH, generator=generator)
    pixels[every, :, places // columns, :, places % columns, :] += COLOURS[classes][:, :, None, None]
    return pixels.reshape(count, 3, rows * PATCH, columns * PATCH), classes, places


@functools.cache
def trained(kind: Kind) -> PreTrainedModel:
    """It has learnt whether there is a patch of a colour: each logit by itself, as relevance is of one logit.

    With a softmax it may tell a colour by lowering the logits of the others, which relevance of its logit cannot show:
    of some seeds it then finds half. Rollout, which is blind to what attention carries, then finds 86 to 100 % in the
    DeiT of a seed that has learnt the task, and in CaiT, whose heads are mixed, 64 % at the least.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    fields = {"layer_scale_init": 0.5, "num_hidden_layers": 1, "num_class_layers": 1} if kind.is_cait else {}
    size = (GRID[0] * PATCH, GRID[1] * PATCH)
    model = kind.model_class(kind.config(image_size=size, num_labels=4, **fields)).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=150)
    for _ in range(150):
        pixels, classes, _ = with_planted_patch(32, generator, 5)
        targets, output = F.one_hot(classes, 5)[:, :4].float(), model(pixels)
        sum(F.binary_cross_entropy_with_logits(output[name], targets) for name in kind.logits[-2:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


@pytest.mark.parametrize("kind", [DISTILLED_DEIT, DISTILLED_CAIT], ids=str)
def test_rollout_and_relevance_find_the_planted_patch(kind):
    pixels, classes, places = with_planted_patch(200, torch.Generator().manual_seed(1), 4)
    found = [attention_maps(classifier(trained(kind)), image) for image in pixels]
    for token in (CLASS, DISTILLATION):
        answers = torch.tensor([maps.answers[token][0] for maps in found])
        assert (answers == classes).float().mean() >= 0.95
        for method in (ROLLOUT, RELEVANCE):
            largest = torch.tensor([int(maps.maps[method, token].argmax()) for maps in found])
            assert (largest == places).float().mean() >= 0.9, (method, token)


# The model stays as it was


@EVERY_KIND
def test_the_model_stays_as_it_was(kind):
    model, pixels = kind.tiny(), images(1, 32)[0]
    some = next(model.parameters())
    some.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention_maps(classifier(model), pixels)
    assert model.config._attn_implementation == "sdpa"
    assert not model.training
    assert not some.requires_grad and all(other.requires_grad for other in list(model.parameters())[1:])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@EVERY_KIND
def test_the_model_stays_as_it_was_after_an_error(kind):
    model = kind.tiny()
    hooks = {module: dict(module._forward_hooks) for module in model.modules()}
    with pytest.raises(ValueError, match="multiples of the patch size"):
        attention_maps(classifier(model), torch.zeros(3, 33, 32))
    assert model.config._attn_implementation == "sdpa"
    assert hooks == {module: dict(module._forward_hooks) for module in model.modules()}


@EVERY_KIND
def test_frozen_weights_and_no_gradients_make_no_difference(kind):
    model, pixels = kind.tiny(), images(1, 32)[0]
    expected = attention_maps(classifier(model), pixels).maps
    model.requires_grad_(False)
    with torch.no_grad():
        found = attention_maps(classifier(model), pixels).maps
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert sorted({method for method, _ in found}) == sorted(METHODS)


# The section


def some_images(count: int = 6, labels: list[int] | None = None, bad: tuple[int, ...] = ()) -> EvaluationImages:
    content = [
        {"bytes": b"no image", "path": None} if row in bad else encoded(noise(40, 60, row)) for row in range(count)
    ]
    dataset = datasets.Dataset.from_dict({"image": content}, features=datasets.Features({"image": datasets.Image()}))
    values = np.arange(count) % 5 if labels is None else np.array(labels)
    return EvaluationImages(dataset, "image", Labels(("ape", "bee", "cat", "dog", "eel"), values), {}, "some images")


def shown(section) -> list[int]:
    return [image["row"] for image in section.numbers["images"]]


def size_of(picture) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture.png)).size


@pytest.fixture
def without_pictures(monkeypatch):
    """They take most of the time, and some tests look at numbers alone."""
    monkeypatch.setattr(section_of_attention, "_drawing_of", lambda rows, titles, scales: b"")


def test_a_model_without_such_attention_has_no_section():
    assert not has_attention_maps(resnet())
    assert attention_section(classifier(resnet()), some_images()) is None


@EVERY_KIND
def test_a_section_says_what_it_shows(kind):
    one = classifier(kind.tiny(image_size=(32, 48)))
    section = attention_section(one, some_images(), num_images=1, per_head=True)
    (picture, heads), (table,) = section.pictures, section.tables
    num_tokens = 1 + kind.distilled
    assert size_of(picture)[0] == pytest.approx(1.45 * 130 * (1 + 3 * num_tokens), abs=2)
    assert size_of(heads)[0] == pytest.approx(1.45 * 130 * 5, abs=2)
    assert "1 image of some images, drawn with seed 0" in picture.caption
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert len(set(table.columns)) == len(table.columns)
    for number, row in zip(section.numbers["images"], table.rows, strict=True):
        maps = attention_maps(one, one.preprocess(some_images().image(number["row"]))).maps
        for (method, token), values in maps.items():
            line, column = number["largest_at"][method][token]
            assert values[line, column] == values.max()
        assert number["label"] == row[1] == some_images().labels.names[number["row"] % 5]
    assert ("CaiT" in section.text[-1]) == kind.is_cait


@pytest.mark.parametrize("patch", [(0, 0), (0, 4), (2, 0), (2, 4), (1, 3)])
def test_a_map_lies_over_its_patches(patch):
    weights = np.zeros((3, 5))
    weights[patch] = 1
    overlay = section_of_attention._overlay(np.full((24, 40, 3), 0.5), weights, Normalize(0, 1))
    height, width = overlay.shape[:2]
    row, column = np.unravel_index(overlay.astype(int).sum(axis=2).argmax(), (height, width))
    assert (row * 3 // height, column * 5 // width) == patch


def test_an_image_is_shown_as_the_model_sees_it():
    colours = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[9, 9, 9], [99, 99, 99], [199, 199, 199]]])
    image = Image.fromarray(colours.repeat(40, axis=0).repeat(40, axis=1).astype(np.uint8))
    one = classifier(KINDS[0].tiny(image_size=(32, 48)))
    for ratio, red in ((1.0, 16), (0.5, 8)):  # columns of red: a third of all, and of the middle a sixth
        seen = dataclasses.replace(one, processor=one.processor.at_crop_size((32, 48), ratio))
        found = 255 * section_of_attention._shown(seen, seen.preprocess(image))
        assert found.shape == (32, 48, 3)
        assert (found[0, :, 0] > 125).sum() == pytest.approx(red, abs=1)
        for row, column in np.ndindex(2, 2):
            np.testing.assert_allclose(found[-row, -column], colours[-row, -column], atol=8)


def test_the_same_images_are_drawn_of_a_seed_and_each_class_once_first(without_pictures):
    one = classifier(DISTILLED_DEIT.tiny(image_size=(32, 48)))
    labels = [0, 0, 0, 0, 0, 1, 2, 3]
    first, again, other = (
        attention_section(one, some_images(8, labels), num_images=4, seed=seed) for seed in (3, 3, 4)
    )
    assert shown(first) == shown(again) != shown(other)
    assert sorted(labels[index] for index in shown(first)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("num_wrong", "expected"), [(4, 2), (1, 1), (0, 0), (7, 3)])
def test_half_of_the_drawn_are_answered_wrongly_if_there_are_as_many(without_pictures, num_wrong, expected):
    labels = np.arange(8) % 5
    answers = np.where(np.arange(8) < num_wrong, (labels + 1) % 5, labels)
    verdicts = Verdicts("ours", SINGLE_HEAD, answers[:, None].astype(np.int32), np.ones(8), np.ones(8))
    one = classifier(KINDS[0].tiny(image_size=(32, 48)))
    drawn = shown(attention_section(one, some_images(8), verdicts=verdicts, num_images=4))
    assert len(set(drawn)) == 4
    assert sum(index < num_wrong for index in drawn) == expected
    assert all(index < num_wrong for index in drawn[4 - expected :])


def test_images_can_be_chosen_and_are_shown_in_their_order(without_pictures):
    one = classifier(KINDS[0].tiny(image_size=(32, 48)))
    section = attention_section(one, some_images(), indices=[4, 1])
    assert shown(section) == [4, 1]
    assert section.numbers["seed"] is None
    with pytest.raises(InputError, match="no image 6 to explain: expected a number from 0 to 5"):
        attention_section(one, some_images(), indices=[1, 6])


def test_bad_images_and_answers_that_are_not_finite_are_passed_over(without_pictures):
    one = classifier(KINDS[0].tiny(image_size=(32, 48)))
    assert sorted(shown(attention_section(one, some_images(bad=(0, 2, 3)), num_images=3))) == [1, 4, 5]
    assert attention_section(one, some_images(2, bad=(0, 1))) is None
    with torch.no_grad():
        one.model.classifier.weight.fill_(torch.nan)
    assert attention_section(one, some_images()) is None


def test_a_class_may_have_any_name():
    data = some_images(3)
    data = dataclasses.replace(data, labels=Labels(("$_{a$", "b$", "c_$^", "\x1b[31m", "e" * 99), data.labels.values))
    section = attention_section(classifier(KINDS[0].tiny(image_size=(32, 48))), data, num_images=3)
    assert section.pictures[0].png.startswith(b"\x89PNG")


def test_images_without_labels_are_shown(without_pictures):
    section = attention_section(classifier(KINDS[0].tiny(image_size=(32, 48))), some_images(3, [-1, -1, 2]))
    assert sorted(image["label"] or "" for image in section.numbers["images"]) == ["", "", "cat"]


def test_the_memory_is_that_of_one_image(without_pictures):
    """The attention of an image is gone before that of the next is there."""
    alive, most = weakref.WeakSet(), 0
    original = DISTILLED_DEIT.tiny(image_size=(32, 48))

    def count(module, inputs, output):
        nonlocal most
        gc.collect()
        most = max(most, len(alive))
        alive.add(output[1])

    for layer in original.base_model.layers:
        layer.attention.register_forward_hook(count)
    attention_section(classifier(original), some_images(6), num_images=6)
    assert most < 2 * len(original.base_model.layers)
