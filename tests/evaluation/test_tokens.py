"""Contract: the cosine of class and distillation token is that of the model's own states, at every layer.

- It is sklearn's cosine of the hidden states that transformers' own DeiT gives, and of CaiT's class-attention layers.
- It is of the same images for all models, a seeded choice, and leaves out what cannot be measured.
"""

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from support.families import CAIT, DEIT, DISTILLED_CAIT, DISTILLED_DEIT, DISTILLED_KINDS, TINY, Kind, images
from support.images import encoded, noise
from support.tiny import processor, resnet
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, PreTrainedModel

from hf_deit.evaluation.attention import tokens
from hf_deit.evaluation.attention.tokens import token_cosines, tokens_section
from hf_deit.evaluation.classifiers.classifiers import Classifier
from hf_deit.evaluation.images.images import EvaluationImages
from hf_deit.evaluation.images.labels import Labels
from hf_deit.evaluation.pictures import as_png

SIZE = {"image_size": (32, 48)}


def classifier(model: PreTrainedModel, name: str = "ours") -> Classifier:
    return Classifier(name, model, processor(crop_size={"height": 32, "width": 48}), (32, 48))


def some_images(count: int, bad: tuple[int, ...] = ()) -> EvaluationImages:
    content = [{"bytes": b"no", "path": None} if row in bad else encoded(noise(40, 60, row)) for row in range(count)]
    dataset = datasets.Dataset.from_dict({"image": content}, features=datasets.Features({"image": datasets.Image()}))
    return EvaluationImages(dataset, "image", Labels(("ape",), np.zeros(count, dtype=int)), {}, "some images")


def cosines_of(states: torch.Tensor) -> list[float]:
    """Of (B, T, D) states: of each image, by sklearn."""
    first, second = states[:, :2].detach().double().numpy().transpose(1, 0, 2)
    return np.diag(cosine_similarity(first, second)).tolist()


def test_cosines_are_those_of_transformers_hidden_states():
    ours, pixels = DISTILLED_DEIT.tiny(**SIZE), images(3, 32, 48)
    theirs = DeiTForImageClassificationWithTeacher(DeiTConfig(**{**TINY, **SIZE}, layer_norm_eps=1e-6)).eval()
    theirs.load_state_dict(ours.state_dict())
    output = theirs.deit(pixels, output_hidden_states=True)
    embeddings = theirs.deit.embeddings
    learnt = torch.cat((embeddings.cls_token, embeddings.distillation_token), dim=1).expand(3, -1, -1)
    expected = [cosines_of(states) for states in (learnt, *output.hidden_states, output.last_hidden_state)]
    assert len(expected) == 5
    for model in (ours, theirs):
        found = token_cosines(classifier(model), pixels)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.T, expected, atol=1e-6)


def test_caits_tokens_are_those_of_its_class_attention():
    model, pixels = DISTILLED_CAIT.tiny(**SIZE), images(3, 32, 48)
    special, patches = model.cait.embeddings(pixels)
    states = [special, special]  # without positions
    for layer in model.cait.layers:
        patches = layer(patches)
    for layer in model.cait.class_layers:
        special = layer(special, patches)
        states.append(special)
    states.append(model.cait(pixels).last_hidden_state)
    np.testing.assert_allclose(
        token_cosines(classifier(model), pixels).T, [cosines_of(these) for these in states], atol=1e-6
    )


@DISTILLED_KINDS
def test_the_section_has_statistics_of_every_image(kind: Kind):
    """Of more images than are asked at once."""
    model = kind.tiny(**SIZE)
    before = {module: dict(module._forward_hooks) for module in model.modules()}
    data, one = some_images(19), classifier(model)
    section = tokens_section([one], data)
    assert {module: dict(module._forward_hooks) for module in model.modules()} == before
    expected = torch.cat([token_cosines(one, one.preprocess(data.image(row))[None]) for row in range(19)]).numpy()
    found = section.numbers["models"]["ours"]
    assert found["num_images"] == 19
    for stage, column in zip(found["stages"], expected.T, strict=True):
        assert stage["mean"] == pytest.approx(np.mean(column), abs=1e-6)
        assert stage["standard_deviation"] == pytest.approx(np.std(column), abs=1e-6)
        for at, value in stage["percentiles"].items():
            assert value == pytest.approx(np.percentile(column, int(at)), abs=1e-6)
    assert [stage["standard_deviation"] for stage in found["stages"][:2]] == [0, 0]  # the same for all images
    (table,), (picture,) = section.tables, section.pictures
    assert [row[1] for row in table.rows] == [stage["mean"] for stage in found["stages"]]
    assert table.columns == ("Where", "ours, mean", "ours, standard deviation")
    assert "some images; all" in table.caption and "some images; all" in picture.caption
    assert any("class-attention" in paragraph for paragraph in section.text) == kind.is_cait
    assert any("Quoted from the paper" in paragraph for paragraph in section.text)


def test_models_of_other_depths_and_kinds_stand_beside_each_other():
    models = {
        "deep": DISTILLED_DEIT.tiny(**SIZE, num_hidden_layers=3),
        "flat": DISTILLED_DEIT.tiny(**SIZE, num_hidden_layers=1),
        "cait": DISTILLED_CAIT.tiny(**SIZE),
        "plain": DEIT.tiny(**SIZE),
    }
    section = tokens_section((classifier(model, name) for name, model in models.items()), some_images(3))
    rows = {row[0]: row[1:] for row in section.tables[0].rows}
    assert next(iter(rows)) == "learnt tokens" and list(rows)[-1] == "after the final norm"
    assert [cell is None for cell in rows["after layer 3"]] == [False, False, True, True, True, True]
    assert [cell is None for cell in rows["after class-attention layer 2"]] == [True] * 4 + [False] * 2
    assert None not in rows["after the final norm"]
    assert section.text[-1] == "Not measured: plain (without a distillation token)."
    assert list(section.numbers["models"]) == ["deep", "flat", "cait"]


def test_the_images_are_a_seeded_choice_that_is_stated():
    one, data = classifier(DISTILLED_DEIT.tiny(**SIZE)), some_images(6)
    first, again, other = (tokens_section([one], data, num_images=2, seed=seed) for seed in (0, 0, 1))
    assert first.numbers == again.numbers
    assert first.numbers["models"] != other.numbers["models"]
    assert "2 of them, drawn with seed 0" in first.tables[0].caption


def test_what_cannot_be_measured_is_left_out():
    one = classifier(DISTILLED_DEIT.tiny(**SIZE))
    section = tokens_section([one], some_images(5, bad=(0, 3)))
    assert section.numbers["models"]["ours"]["num_images"] == 3
    assert tokens_section([one], some_images(2, bad=(0, 1))) is None
    broken = classifier(DISTILLED_DEIT.tiny(**SIZE), "broken")
    with torch.no_grad():
        broken.model.deit.layernorm.bias.fill_(torch.nan)
    assert tokens_section([broken], some_images(2)) is None
    assert tokens_section([one, broken], some_images(2)).text[-1].startswith("Not measured: broken (of which no image")


@pytest.mark.parametrize("name", ["$_{a$", "_private", "x" * 300])
def test_a_model_may_have_any_name(monkeypatch, name):
    figures = []
    monkeypatch.setattr(tokens, "as_png", lambda figure: figures.append(figure) or as_png(figure))
    tokens_section([classifier(DISTILLED_DEIT.tiny(**SIZE), name)], some_images(2))
    (shown,) = figures[0].axes[0].get_legend().get_texts()
    assert shown.get_text().replace("\\", "").startswith(name[:20])


@pytest.mark.parametrize("make", [resnet, DEIT.tiny, CAIT.tiny])
def test_a_model_without_a_distillation_token_has_no_section(make):
    assert tokens_section([classifier(make())], some_images(2)) is None
