"""A probe: a linear classifier on the features of a backbone, the same as scikit-learn's, in an ordinary folder.

What is guarded: the saved folder's logits are what scikit-learn's pipeline says of what the head sees, for every kind
of backbone; no image, nor a copy of it, is on both sides of a fold; what gives no features is refused.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import PartialState
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support import tiny
from transformers import (
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ImageGPTConfig,
    ImageGPTForImageClassification,
    LevitConfig,
    LevitForImageClassificationWithTeacher,
    ViTConfig,
    ViTModel,
)

from hf_deit.data.digits import load_digits
from hf_deit.errors import InputError
from hf_deit.evaluation.answers.asking import Asking
from hf_deit.evaluation.probe.backbone import describe_backbone, views_of
from hf_deit.evaluation.probe.card import in_words
from hf_deit.evaluation.probe.features import check_room, compute_features
from hf_deit.evaluation.probe.fit import SCALINGS, alike, fit, folds_of, spread
from hf_deit.evaluation.probe.probe import (
    Settings,
    check_labels,
    fit_probe,
    identity_of,
    images_of_rows,
    read_probe,
    save_probe,
)
from hf_deit.models.teacher import load_teacher

VIT = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
NAMES = [str(number) for number in range(10)]


def save(folder: Path, model, size: int = 16) -> str:
    model.save_pretrained(folder)
    tiny.processor(image_mean=[0.5] * 3, image_std=[0.5] * 3, crop_size=size).save_pretrained(folder)
    return str(folder)


def save_timm(folder: Path, name: str = "test_resnet", num_classes: int = 0) -> str:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    save_file(timm.create_model(name, num_classes=num_classes).state_dict(), folder / "model.safetensors")
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    preprocessing |= {"interpolation": "bicubic", "crop_pct": 1.0}
    config = {"architecture": name, "num_classes": num_classes, "pretrained_cfg": preprocessing}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def clip() -> CLIPModel:
    text = {**VIT, "vocab_size": 30, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    text = {name: value for name, value in text.items() if name not in ("image_size", "patch_size")}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VIT, projection_dim=8))


def levit() -> LevitForImageClassificationWithTeacher:
    sizes = {"hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2], "key_dim": [4, 4, 4], "depths": [1, 1, 1]}
    return LevitForImageClassificationWithTeacher(LevitConfig(image_size=64, **sizes, num_labels=3))


BACKBONES = {
    "ResNet, other labels": lambda folder: save(folder, tiny.resnet()),
    "ViT without a head": lambda folder: save(folder, ViTModel(ViTConfig(**VIT), add_pooling_layer=False)),
    "DINOv2": lambda folder: save(folder, Dinov2Model(Dinov2Config(**VIT, mlp_ratio=2))),
    "CLIP, both towers": lambda folder: save(folder, clip()),
    "DeiT with two heads": lambda folder: save(folder, tiny.student()),
    "LeViT with two heads": lambda folder: save(folder, levit(), 64),
    "timm without a head": save_timm,
    "timm, other labels": lambda folder: save_timm(folder, "test_vit", 7),
    "timm, a convolution as its head": lambda folder: save_timm(folder, "test_nfnet", 7),
}


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def images(digits):
    return images_of_rows(digits.train.select(range(60)), NAMES, words="to fit the probe on")


def asking(folder: Path) -> Asking:
    return Asking(str(folder), PartialState().device, batch_size=20, num_workers=0)


def fitted(folder: Path, path: str, images, **settings):
    description = describe_backbone(path)
    backbone = description.load(dict(enumerate(images.labels.names)))
    settings = Settings(**settings)
    found = fit_probe(backbone, images, asking(folder / "features"), settings)
    content = {"identity": identity_of(description, images, settings), **found}
    save_probe(backbone, content, str(folder))
    return backbone, content


class HalfWhitening(PCA):
    """Principal components, each divided by the root of its standard deviation, and all by that of their mean."""

    def transform(self, features):
        spreads = np.sqrt(self.explained_variance_ * (self.n_samples_ - 1) / self.n_samples_)
        kept = spreads**2 > 1e-6 * spreads[0] ** 2
        spreads = spreads[kept]
        return super().transform(features)[:, kept] / np.sqrt(spreads * spreads.mean())

    def fit_transform(self, features, labels=None):
        return self.fit(features).transform(features)


def scikit_learns(scaling: str, strength: float):
    regression = LogisticRegression(C=strength, max_iter=1000)
    return make_pipeline(StandardScaler() if scaling == "standardised" else HalfWhitening(), regression)


def pixels_of(backbone, images) -> torch.Tensor:
    shown = (backbone.processor(images.image(row), return_tensors="pt") for row in range(60))
    return torch.stack([one["pixel_values"][0] for one in shown])


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_saved_folder_answers_as_scikit_learns_pipeline(tmp_path, images, kind):
    backbone, content = fitted(tmp_path / "probe", BACKBONES[kind](tmp_path / "backbone"), images, is_mirrored=False)
    pixels, labels = pixels_of(backbone, images), images.labels.values
    backbone.views = views_of(is_mirrored=False, has_corners=False)
    features = backbone.features(pixels).double().numpy()
    pipeline = scikit_learns(content["scaling"], content["strength"]).fit(features, labels)

    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "probe").eval()
    assert saved.config.id2label == dict(enumerate(NAMES))
    with torch.no_grad():
        logits = saved(pixel_values=pixels).logits.numpy()
    np.testing.assert_allclose(logits, pipeline.decision_function(features), atol=1e-4)
    assert content["training"]["accuracy"]["value"] == pipeline.score(features, labels)
    assert content["backbone"]["num_features"] == features.shape[1]

    teacher = load_teacher(tmp_path / "probe", student_processor=tiny.processor(), id2label=dict(enumerate(NAMES)))
    assert teacher(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    assert read_probe(str(tmp_path / "probe")) == json.loads(json.dumps(content))
    assert {"README.md", "config.json", "probe.json"} <= {path.name for path in (tmp_path / "probe").iterdir()}
    assert not (tmp_path / "probe" / "probe.unfinished").exists()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("wide", [False, True])
def test_what_the_accuracy_is_said_to_be_scikit_learn_says_too(digits, scaling, wide):
    features = np.array([np.asarray(image, dtype=np.float64).ravel() for image in digits.train["image"][:300]])
    labels = np.array(digits.train["label"][:300])
    if wide:  # than there are images
        features = features @ np.random.default_rng(0).standard_normal((64, 400))
    found = fit(features[None], labels, num_labels=10, num_folds=4, seed=3, scalings=[scaling])
    pipeline = scikit_learns(scaling, found.strength)
    expected = cross_val_predict(pipeline, features, labels, cv=PredefinedSplit(found.folds))
    # Warm starts end elsewhere within the tolerance.
    assert np.mean(found.held_out.argmax(axis=1) == expected) > 0.99
    assert (found.scaling, found.strength) == min(found.losses, key=found.losses.get)
    pipeline.fit(features, labels)
    np.testing.assert_allclose(found.linear.logits(features), pipeline.decision_function(features), atol=1e-3)
    assert np.bincount(found.folds).tolist() == [75] * 4


@pytest.mark.parametrize("present", [[3, 8], [0, 1], [2, 5, 9]])
def test_two_classes_and_classes_without_images(digits, present):
    kept = np.isin(digits.train["label"][:200], present)
    features = np.array([np.asarray(image, dtype=np.float64).ravel() for image in digits.train["image"][:200]])[kept]
    labels = np.array(digits.train["label"][:200])[kept]
    found = fit(features[None], labels, num_labels=10)
    pipeline = scikit_learns(found.scaling, found.strength)
    pipeline.fit(features, labels)
    logits = found.linear.logits(features)
    expected = pipeline.decision_function(features)
    if len(present) == 2:
        np.testing.assert_allclose(logits[:, present[1]] - logits[:, present[0]], expected, atol=1e-4)
        np.testing.assert_allclose(logits[:, present].sum(axis=1), 0, atol=1e-6)
    else:
        np.testing.assert_allclose(logits[:, present], expected, atol=1e-4)
    absent = np.setdiff1d(range(10), present)
    assert (logits[:, absent] < logits[:, present].min() - 20).all()


def test_a_feature_that_hardly_differs_is_none():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((50, 3)).astype(np.float32)
    features[:, 1] = 1e-6 * generator.standard_normal(50)
    features[:, 2] = 1000 + 1e-4 * generator.standard_normal(50)
    assert np.isfinite(spread(features)[1]).tolist() == [True, False, False]
    for scaling in SCALINGS:
        linear = fit(features[None], (features[:, 0] > 0).astype(int), num_labels=2, scalings=[scaling]).linear
        assert (np.abs(linear.weight[:, 1:]) < 1e-9).all() and (linear.weight[:, 0] != 0).all()


def test_copies_are_held_out_together_mirrored_ones_too(digits, tmp_path):
    rows = digits.train.select([*range(40), 5, 5, 17])
    mirrored = rows.select([9]).map(lambda row: {"image": row["image"].transpose(0)})
    from datasets import concatenate_datasets

    images = images_of_rows(concatenate_datasets([rows, mirrored]), NAMES, words="with copies")
    backbone = describe_backbone(save(tmp_path / "backbone", tiny.resnet())).load(dict(enumerate(NAMES)))
    backbone.views = views_of(is_mirrored=True, has_corners=False)
    groups = alike(compute_features(backbone, images, asking(tmp_path)).values)
    assert groups.tolist() == [*range(40), 5, 5, 17, 9]
    folds = folds_of(images.labels.values, groups, 5, 0)
    assert folds[40] == folds[41] == folds[5] and folds[42] == folds[17] and folds[43] == folds[9]
    for label in np.unique(images.labels.values[:40]):
        counts = np.bincount(folds[:40][images.labels.values[:40] == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_thousands_of_images_of_nothing_are_one():
    assert (alike(np.zeros((2, 5000, 4), dtype=np.float32)) == 0).all()


def test_views_are_the_image_itself_its_corners_and_both_mirrored():
    pixels = torch.arange(3 * 16 * 16.0).reshape(1, 3, 16, 16)
    views = views_of(is_mirrored=True, has_corners=True)
    assert len(views) == 10 and len(views_of(is_mirrored=False, has_corners=False)) == 1
    whole, mirrored = (views[name](pixels) for name in ("whole", "whole, mirrored"))
    assert torch.equal(whole, pixels) and torch.equal(mirrored, pixels.flip(-1))
    corner = views["bottom right"](pixels)
    assert corner.shape == pixels.shape
    torch.testing.assert_close(corner.mean(), pixels[..., 2:, 2:].mean(), rtol=1e-2, atol=0)


def test_features_go_on_where_they_were_stopped(tmp_path, images, monkeypatch):
    from hf_deit.evaluation.probe import features as module

    monkeypatch.setattr(module, "_CHUNK", 20)
    backbone = describe_backbone(save(tmp_path / "backbone", tiny.resnet())).load(dict(enumerate(NAMES)))
    asked, ask = [], backbone.logits_and_features

    def counting(pixels, **settings):
        asked.append(len(pixels))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(pixels, **settings)

    monkeypatch.setattr(backbone, "logits_and_features", counting)
    with pytest.raises(KeyboardInterrupt):
        compute_features(backbone, images, asking(tmp_path))
    gone_on = compute_features(backbone, images, asking(tmp_path)).values
    assert asked == [20] * 4
    shutil.rmtree(next(path for path in tmp_path.iterdir() if path.name != "backbone"))
    np.testing.assert_array_equal(gone_on, compute_features(backbone, images, asking(tmp_path)).values)


def test_what_has_no_features_is_refused(tmp_path):
    def refusal(path: str) -> str:
        with pytest.raises(InputError) as caught:
            describe_backbone(path).load(dict(enumerate(NAMES)))
        return str(caught.value)

    dino = DINOv3ViTModel(DINOv3ViTConfig(**VIT))
    assert "of the type 'dinov3_vit'" in (said := refusal(save(tmp_path / "dinov3", dino))) and "timm/" in said
    gpt = ImageGPTForImageClassification(ImageGPTConfig(n_embd=16, n_layer=1, n_head=2, n_positions=256, num_labels=3))
    assert "not linear with a bias" in refusal(save(tmp_path / "gpt", gpt))
    resnet = save(tmp_path / "resnet", tiny.resnet())
    weights = {name: value for name, value in tiny.resnet().state_dict().items() if "encoder" not in name}
    save_file(weights, f"{resnet}/model.safetensors", metadata={"format": "pt"})
    assert "random below the new head" in refusal(resnet)
    vit = save(tmp_path / "vit", ViTModel(ViTConfig(**VIT), add_pooling_layer=False))
    tiny.processor(crop_size=32).save_pretrained(vit)
    assert "takes no images of 32 pixels" in refusal(vit)
    assert "no folder" in refusal(str(tmp_path / "nothing"))


def test_images_that_nothing_can_be_learnt_from_are_refused():
    def refusal(labels: list[int], folds: int | None = None) -> str:
        with pytest.raises(InputError) as caught:
            check_labels(np.array(labels), ["cat", "dog", "fox"], folds)
        return str(caught.value)

    assert "at least two classes" in refusal([1, 1, 1])
    assert "of dog there is a single image" in refusal([0, 0, 1])
    assert "have no label" in refusal([0, 0, 1, 1, -1])
    assert "4 images for 5 folds" in refusal([0, 0, 1, 1], 5)
    check_labels(np.array([0, 0, 1, 1]), ["cat", "dog", "fox"])


def test_memory_and_disk_are_bounded(tmp_path, monkeypatch):
    backbone = describe_backbone(save(tmp_path / "backbone", tiny.resnet())).load(dict(enumerate(NAMES)))
    check_room(backbone, 100, 100, str(tmp_path))
    with pytest.raises(InputError, match=r"GB of memory .* --labels_kept"):
        check_room(backbone, 10**12, 0, str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="give another --output_dir"):
        check_room(backbone, 100, 100, str(tmp_path))


def test_what_it_is_worth_is_told(tmp_path, images):
    _, content = fitted(tmp_path / "probe", save(tmp_path / "backbone", tiny.resnet()), images)
    told, card = in_words(content), (tmp_path / "probe" / "README.md").read_text()
    cross = content["cross_validation"]
    counts = np.bincount(images.labels.values)
    assert cross["majority_accuracy"] == counts.max() / 60
    assert cross["accuracy"]["low"] < cross["accuracy"]["value"] < cross["accuracy"]["high"]
    recalls = [one["recall"]["value"] for one in cross["classes"].values()]
    assert cross["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert sum(value * count for value, count in zip(recalls, counts, strict=True)) / 60 == pytest.approx(
        cross["accuracy"]["value"]
    )
    for text in (told, card):
        assert f"{cross['accuracy']['value']:.4f} [" in text and "Cross-validated: each of the 60 images" in text
        assert "in 2 views" in text and f"{cross['majority_accuracy']:.4f}" in text
    assert str(tmp_path) not in card and str(tmp_path) not in json.dumps(content)
