"""What is exported is the classifier as its users have it: fused, in float32, with named labels and its origin."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from support.checkpoints import LABELS, edited, noise, our_folder, randomise, reweighted, saved
from support.hub_client import connect
from support.hub_server import HubServer
from transformers import LevitConfig, LevitForImageClassificationWithTeacher, LevitImageProcessor

from hf_deit.errors import InputError
from hf_deit.export.programs import source
from hf_deit.export.programs.source import load_source
from hf_deit.models.pretrained import weights_digest


def levit(folder) -> str:
    shape = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2] * 3, "depths": [1] * 3, "key_dim": [8] * 3}
    config = LevitConfig(image_size=64, **shape, id2label=dict(enumerate(LABELS)))
    processor = LevitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return str(saved(folder, randomise(LevitForImageClassificationWithTeacher(config)), processor))


@pytest.mark.parametrize("fusion", ["logits", "softmax", "cls", "distillation", "levit"])
def test_its_logits_are_the_fused_answer(tmp_path, fusion):
    """By which an evaluation lets it answer, from the logits of its heads."""
    folder = levit(tmp_path / "m") if fusion == "levit" else str(our_folder(tmp_path / "m", fusion=fusion))
    own = load_source(folder)
    pixels = noise(own.preprocessing.input_size[0])
    with torch.no_grad():
        fused = own.classifier.model(pixel_values=pixels, **own.classifier.forward_options).logits.softmax(dim=-1)
    heads = {name: logits.numpy() for name, logits in own.classifier.logits(pixels).items()}
    assert len(heads) == 2
    assert np.allclose(fused.numpy(), softmax(own.classifier.rule.scores(heads), axis=1), atol=1e-6)
    assert own.facts["fusion"] == ("logits" if fusion == "levit" else fusion) and own.labels == tuple(LABELS)


def test_a_checkpoint_in_bfloat16_is_exported_in_float32(tmp_path):
    folder = our_folder(tmp_path / "m")
    reweighted(folder, lambda weights: {name: value.bfloat16() for name, value in weights.items()})
    edited(folder, dtype="bfloat16")
    own = load_source(str(folder))
    assert {parameter.dtype for parameter in own.classifier.model.parameters()} == {torch.float32}
    stored = load_file(folder / "model.safetensors")["cls_classifier.weight"]
    assert torch.equal(own.classifier.model.cls_classifier.weight, stored.float())


def test_it_is_known_which_weights_are_exported(tmp_path, monkeypatch):
    folder = our_folder(tmp_path / "m")
    facts = load_source(str(folder)).facts
    assert facts["weights_digest"] == weights_digest(folder) and facts["revision"] is facts["name_or_path"] is None
    describe = source.describe_classifiers

    def of_the_hub(*arguments, **settings):
        [found] = describe(*arguments, **settings)
        return [dataclasses.replace(found, revision="c" * 40, origin={**found.origin, "name_or_path": "me/it"})]

    monkeypatch.setattr(source, "describe_classifiers", of_the_hub)
    facts = load_source(str(folder)).facts
    assert (facts["name_or_path"], facts["revision"], facts["weights_digest"]) == ("me/it", "c" * 40, None)


def test_a_revision_on_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    folder = our_folder(tmp_path / "m")
    with HubServer(tmp_path / "server") as hub:
        hub.add_user("ada")
        hub.add_repository("ada/it")
        commits = []
        for fusion in ("cls", "softmax"):
            edited(folder, fusion=fusion)
            commits.append(hub.commit("ada/it", {path.name: path.read_bytes() for path in folder.iterdir()}))
        connect(hub, tmp_path / "home", None, monkeypatch)
        first, last = (load_source(model).facts for model in (f"ada/it@{commits[0]}", "ada/it"))
    assert [facts["revision"] for facts in (first, last)] == commits
    assert [facts["fusion"] for facts in (first, last)] == ["cls", "softmax"]
    assert first["name_or_path"] == "ada/it" and first["weights_digest"] is first["preprocessing_digest"] is None


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_a_model_that_does_not_choose_one_label_is_refused(tmp_path, problem_type):
    """Its answers are no softmax of its logits."""
    folder = edited(our_folder(tmp_path / "m"), problem_type=problem_type)
    with pytest.raises(InputError, match=f"does not choose one of its 3 labels .*{problem_type}"):
        load_source(str(folder))


def test_averaged_weights_are_told_from_trained_ones(tmp_path):
    folder = our_folder(tmp_path / "run" / "checkpoint-5")
    average = our_folder(folder / "ema")
    reweighted(average, lambda weights: {name: value + 1 for name, value in weights.items()})
    (average / "preprocessor_config.json").unlink()
    raw, averaged = (load_source(str(place)) for place in (folder, average))
    bias = raw.classifier.model.cls_classifier.bias
    assert torch.allclose(averaged.classifier.model.cls_classifier.bias, bias + 1)
    assert raw.facts["weights_digest"] != averaged.facts["weights_digest"]
    assert raw.facts["preprocessing_digest"] == averaged.facts["preprocessing_digest"] is not None


def test_a_model_without_names_of_its_labels_is_refused(tmp_path):
    unnamed = {str(index): f"LABEL_{index}" for index in range(3)}
    folder = edited(our_folder(tmp_path / "m"), id2label=unnamed, label2id=None)
    with pytest.raises(InputError, match=r"no names for its 3 labels \(LABEL_0, …\).*set id2label"):
        load_source(str(folder))
