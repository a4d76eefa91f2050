"""A model is evaluated as its users run it: its own pixels, its own classes in the data's order, whole weights."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support import zero_shot
from support.checkpoints import (
    LABELS,
    TINY,
    edited,
    native,
    our_folder,
    ours,
    randomise,
    reweighted,
    saved,
    timm_folder,
)
from support.images import noise
from support.tiny import resnet
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from transformers import (
    BitImageProcessor,
    ConvNextImageProcessor,
    LevitConfig,
    LevitForImageClassificationWithTeacher,
    LevitImageProcessor,
    PoolFormerImageProcessor,
    ViTImageProcessor,
    pipeline,
)

from hf_deit import DistilledDeiTImageProcessor
from hf_deit.errors import InputError
from hf_deit.evaluation.answers.verdicts import CLASS, DISTILLATION, RULES_OF_TWO_HEADS, SINGLE
from hf_deit.evaluation.classifiers import classifiers
from hf_deit.evaluation.classifiers.classifiers import (
    Showing,
    describe_classifiers,
    label_order,
    labels_of,
    short_names,
)
from hf_deit.evaluation.classifiers.input_size import crop_ratio_of, made_size
from hf_deit.evaluation.images.label_sets import imagenet_names, imagenet_synsets

IMAGES = [noise(40, 50), noise(64, 33, seed=1), noise(20, 90, seed=2)]
KINDS = ["distilled", "plain", "native vit", "pickled vit", "resnet", "timm", "levit"]
MOMENTS = {"image_mean": [0.5] * 3, "image_std": [0.4] * 3}
SQUARE = {"size": {"height": 32, "width": 32}, **MOMENTS}


def load_one(model: str, names: list[str], **options):
    return describe_classifiers([model], names, **options)[0].load()


def logits(classifier) -> dict[str, torch.Tensor]:
    return classifier.logits(torch.stack([classifier.preprocess(image) for image in IMAGES]))


def answer(classifier) -> np.ndarray:
    heads = {name: values.numpy() for name, values in logits(classifier).items()}
    return torch.from_numpy(classifier.rule.scores(heads)).softmax(dim=-1).numpy()


def resnet_of(labels: list[str]):
    model = randomise(resnet())
    model.config.id2label = dict(enumerate(labels))
    return model


def timm_resnet(folder: Path) -> Path:
    torch.manual_seed(0)
    weights = timm.create_model("resnet10t", num_classes=3).state_dict()
    return timm_folder(folder, weights, architecture="resnet10t", num_features=512)


def levit():
    shape = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2] * 3, "depths": [1] * 3, "key_dim": [8] * 3}
    config = LevitConfig(image_size=64, **shape, id2label=dict(enumerate(LABELS)))
    return randomise(LevitForImageClassificationWithTeacher(config))


def folder_of(kind: str, folder: Path) -> str:
    makers = {
        "distilled": lambda: our_folder(folder),
        "plain": lambda: our_folder(folder, "deit_tiny_patch16_224"),
        "cait": lambda: our_folder(folder, "cait_xxs24_224"),
        "native deit": lambda: saved(folder, native("distilled"), ViTImageProcessor(**SQUARE)),
        "native vit": lambda: saved(folder, native("plain"), ViTImageProcessor(**SQUARE)),
        "pickled vit": lambda: pickled(saved(folder, native("plain"), ViTImageProcessor(**SQUARE))),
        "resnet": lambda: saved(
            folder, resnet_of([str(n) for n in range(10)]), ConvNextImageProcessor(size={"shortest_edge": 48})
        ),
        "timm": lambda: timm_resnet(folder),
        "levit": lambda: saved(
            folder,
            levit(),
            LevitImageProcessor(size={"shortest_edge": 64}, crop_size=dict.fromkeys(SQUARE["size"], 64)),
        ),
    }
    return str(makers[kind]())


def pickled(folder: Path) -> Path:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    "kind", ["distilled", "plain", "native deit", "native vit", "pickled vit", "resnet", "timm", "levit"]
)
def test_it_answers_what_the_pipeline_of_transformers_answers(tmp_path, kind):
    folder = folder_of(kind, tmp_path / "model")
    names = labels_of(folder)
    asked = pipeline("image-classification", model=folder, top_k=3)
    ours_says = answer(load_one(folder, names))
    for image, probabilities in zip(IMAGES, ours_says, strict=True):
        said = {item["label"]: item["score"] for item in asked(image)}
        best = np.argsort(-probabilities)[:3]
        assert [names[index] for index in best] == list(said)
        assert probabilities[best] == pytest.approx(list(said.values()), abs=2e-5)


def test_timm_classifiers_see_what_timm_shows_them(tmp_path):
    folder = timm_resnet(tmp_path / "model")
    stated = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    transform = create_transform(**resolve_data_config(stated), is_training=False)
    model = timm.create_model("resnet10t", num_classes=3, checkpoint_path=str(folder / "model.safetensors")).eval()
    with torch.no_grad():
        theirs = model(torch.stack([transform(image) for image in IMAGES]))
    classifier = load_one(str(folder), ["LABEL_0", "LABEL_1", "LABEL_2"])
    torch.testing.assert_close(logits(classifier)[SINGLE], theirs)
    assert classifier.input_size == (32, 32) and classifier.origin["crop_ratio"] == 0.8


def test_a_folder_that_timm_has_saved(tmp_path):
    model = timm.create_model("resnet10t", num_classes=3).eval()
    save_for_hf(model, tmp_path / "model", model_config={"num_classes": 3, "label_names": LABELS})
    edited(tmp_path / "model", model_args={"num_classes": 3, "in_chans": 3, "global_pool": "avg"})
    classifier = load_one(str(tmp_path / "model"), LABELS)
    with torch.no_grad():
        theirs = model(torch.stack([classifier.preprocess(image) for image in IMAGES]))
    torch.testing.assert_close(logits(classifier)[SINGLE], theirs)


@pytest.mark.parametrize("kind", ["distilled", "native deit", "cait", "levit"])
def test_a_model_with_a_distillation_head_has_both_heads(tmp_path, kind):
    folder = folder_of(kind, tmp_path / "model")
    if kind == "cait":
        shutil.rmtree(folder)
        saved(Path(folder), ours("cait_xxs24_224", distillation_token=True))
    [description] = describe_classifiers([folder], LABELS)
    classifier = description.load()
    heads = logits(classifier)
    assert set(heads) == {CLASS, DISTILLATION} and classifier.rules == description.rules == RULES_OF_TWO_HEADS
    assert classifier.rule == description.rule
    outputs = classifier.model(torch.stack([classifier.preprocess(image) for image in IMAGES]))
    assert torch.equal(outputs.cls_logits, heads[CLASS]) and not torch.equal(heads[CLASS], heads[DISTILLATION])


@pytest.mark.parametrize("kind", ["distilled", "plain", "cait", "native vit", "resnet", "timm", "levit"])
def test_features_are_what_the_heads_answer_from(tmp_path, kind):
    folder = folder_of(kind, tmp_path / "model")
    classifier = load_one(folder, labels_of(folder))
    pixels = torch.stack([classifier.preprocess(image) for image in IMAGES])
    heads, features = classifier.logits_and_features(pixels)
    assert classifier.logits_and_features(pixels, with_features=False)[1] is None
    states = {
        "distilled": lambda: classifier.model.base_model(pixels)[0][:, :2].mean(dim=1),
        "plain": lambda: classifier.model.base_model(pixels)[0][:, 0],
        "cait": lambda: classifier.model.base_model(pixels)[0][:, 0],
        "native vit": lambda: classifier.model.base_model(pixels)[0][:, 0],
        "resnet": lambda: classifier.model.resnet(pixels).pooler_output.flatten(1),
        "timm": lambda: classifier.model.timm_model.forward_head(
            classifier.model.timm_model.forward_features(pixels), pre_logits=True
        ),
        "levit": lambda: levit_states(classifier.model, pixels),
    }
    with torch.no_grad():
        expected = states[kind]()
    torch.testing.assert_close(features, expected / expected.norm(dim=1, keepdim=True), atol=1e-6, rtol=1e-5)
    assert all(torch.equal(heads[name], values) for name, values in classifier.logits(pixels).items())


def levit_states(model, pixels: torch.Tensor) -> torch.Tensor:
    states = model.levit(pixels).last_hidden_state.mean(dim=1)
    return (model.classifier.batch_norm(states) + model.classifier_distill.batch_norm(states)) / 2


@pytest.mark.parametrize(
    "kind", ["distilled", "plain", "cait", "native vit", "pickled vit", "resnet", "timm", "levit"]
)
def test_test_time_size_and_crop(tmp_path, kind):
    """Checked on the pixels: a bright square in the middle, which the crop cuts to its own size or not."""
    folder = folder_of(kind, tmp_path / "model")
    names = labels_of(folder)
    image = Image.new("RGB", (96, 96))
    image.paste((255, 255, 255), (24, 24, 72, 72))  # half of the width
    for ratio in (1.0, 0.75):
        classifier = load_one(folder, names, shown=Showing(image_size=64, crop_ratio=ratio))
        pixels = classifier.preprocess(image)
        assert pixels.shape == (3, 64, 64) and classifier.input_size == (64, 64)
        bright = (pixels[0] > (pixels[0].amin() + pixels[0].amax()) / 2).float().mean().item()
        assert bright == pytest.approx((0.5 / ratio) ** 2, abs=0.05)
        assert classifier.origin["crop_ratio"] == ratio
        assert all(values.isfinite().all() for values in logits(classifier).values())
    assert kind == "levit" or load_one(folder, names).input_size != (64, 64)


@pytest.mark.parametrize("kind", ["native vit", "pickled vit"])
def test_positions_are_interpolated_at_another_size(tmp_path, kind):
    """As transformers' own class does it, which is taken for pickled weights."""
    folder = folder_of(kind, tmp_path / "model")
    mine = load_one(folder, LABELS, shown=Showing(image_size=64))
    pixels = torch.stack([mine.preprocess(image) for image in IMAGES])
    theirs = native("plain")
    theirs.load_state_dict(type(theirs).from_pretrained(folder).state_dict())
    with torch.no_grad():
        expected = theirs.eval()(pixels, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(mine.logits(pixels)[SINGLE], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "shown", "words"),
    [
        ("distilled", {"image_size": 30}, "takes no images of 30 pixels"),
        ("plain", {"image_size": 20}, "takes no images of 20 pixels"),
        ("resnet", {"image_size": 5000}, "image_size must lie in"),
        ("resnet", {"crop_ratio": 1.5}, "crop_ratio must lie in"),
        ("resnet", {"crop_ratio": 0.001}, "would resize images to more than"),
        ("resnet", {"dtype": "float31"}, "did you mean 'float32'"),
    ],
)
def test_sizes_that_a_model_does_not_take_are_refused(tmp_path, kind, shown, words):
    folder = folder_of(kind, tmp_path / "model")
    with pytest.raises(InputError, match=re.escape(words)):
        load_one(folder, labels_of(folder), shown=Showing(**shown))


def test_a_processor_without_one_size_and_shape_is_refused(tmp_path):
    longer = BitImageProcessor(size={"shortest_edge": 32}, do_center_crop=False, **MOMENTS)
    for number, processor in enumerate([ViTImageProcessor(**SQUARE, do_resize=False), longer]):
        folder = saved(tmp_path / str(number), native("plain"), processor)
        with pytest.raises(InputError, match="leaves images in their own sizes or shapes"):
            load_one(str(folder), LABELS)


@pytest.mark.parametrize(
    ("processor", "ratio"),
    [
        (ConvNextImageProcessor(size={"shortest_edge": 384}, **MOMENTS), 1.0),  # from 384 on not its crop_pct
        (BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE["size"], **MOMENTS), 0.8),
        (LevitImageProcessor(size={"shortest_edge": 224}, **MOMENTS), 0.875),  # by a rule of its class
        (PoolFormerImageProcessor(**MOMENTS), 0.9),
    ],
)
def test_the_crop_that_is_stated_is_the_one_that_is_made(processor, ratio):
    assert crop_ratio_of(processor, made_size("m", processor)) == pytest.approx(ratio, abs=0.006)


def test_logits_come_in_the_order_of_the_datas_classes(tmp_path):
    folder = folder_of("distilled", tmp_path / "model")
    straight, turned = (logits(load_one(folder, names)) for names in (["a", "b", "c"], ["c", "A", "b"]))
    for head, values in straight.items():
        assert torch.equal(turned[head], values[:, [2, 0, 1]])
    chosen = logits(load_one(folder, ["x", "y"], class_indices=np.array([2, 0])))
    assert torch.equal(chosen[CLASS], straight[CLASS][:, [2, 0]])


def test_names_tell_more_than_indices_and_numbers_are_no_names():
    theirs = {0: "gnu", 1: "emu", 2: "cat", 3: "1"}
    assert label_order(["emu", "gnu"], theirs, class_indices=np.array([0, 1])).tolist() == [1, 0]
    assert label_order(["emu", "yak"], theirs, class_indices=np.array([0, 1])).tolist() == [0, 1]
    assert label_order(["1"], theirs, class_indices=np.array([2])).tolist() == [2]


@pytest.mark.parametrize(
    ("theirs", "ours_are", "indices", "words"),
    [
        (["cat", "dog"], ["cats", "dog"], None, "It lacks 'cats' (the nearest is 'cat')"),
        (["cat", "dog", "emu"], ["cat", "dog"], None, "--class_indices"),
        (["cat"], ["cat", "dog"], None, "images of its own classes"),
        (["LABEL_0", "LABEL_1"], ["cat", "dog"], None, "no names for its 2 labels"),
        (["cat", "dog", "emu"], ["cat", "dog"], [0, 3], "names class 3"),
        (["cat", "dog", "emu"], ["cat", "dog"], [0], "must name 2 classes"),
        (["cat", "dog"], ["emu", "gnu"], None, "It lacks 'emu', 'gnu'"),
    ],
)
def test_classes_that_do_not_match_are_named(theirs, ours_are, indices, words):
    with pytest.raises(InputError, match=re.escape(words)):
        label_order(ours_are, dict(enumerate(theirs)), class_indices=indices)


def test_synsets_and_words_of_imagenet_are_the_same_classes():
    words, synsets = list(imagenet_names()), list(imagenet_synsets())
    turned = synsets[::-1]
    assert label_order(words, dict(enumerate(synsets))) is label_order(synsets, dict(enumerate(words))) is None
    assert label_order(words, dict(enumerate(turned))).tolist() == list(range(999, -1, -1))
    assert label_order(turned, dict(enumerate(words))).tolist() == list(range(999, -1, -1))
    with pytest.raises(InputError):
        label_order(words, dict(enumerate([*synsets[:-1], "n00000000"])))


def test_classes_with_other_names_are_taken_by_their_numbers_where_these_are_given():
    assert label_order(["Hund", "Katze"], {0: "cat", 1: "dog"}, class_indices=[1, 0]).tolist() == [1, 0]
    assert label_order(["cat", "dog"], {0: "LABEL_0", 1: "LABEL_1"}, class_indices=[1, 0]).tolist() == [1, 0]
    assert label_order(["cat", "dog"], {0: "dog", 1: "cat"}, class_indices=[0, 1]).tolist() == [1, 0]


def test_weights_that_would_be_random_or_are_quantised_are_refused(tmp_path):
    folder = saved(tmp_path / "model", native("plain"))
    reweighted(folder, lambda weights: {key: value for key, value in weights.items() if "classifier" not in key})
    with pytest.raises(InputError, match=r"the model .* has no weights for classifier"):
        load_one(str(folder), LABELS)
    reweighted(folder, lambda weights: {key: value.to(torch.int8) for key, value in weights.items()})
    with pytest.raises(InputError, match="quantised weights"):
        load_one(str(folder), LABELS)


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("preprocessor_config.json", {"image_mean": None}, "states no image_mean"),
        ("config.json", {"model_type": "no_such_type"}, "which transformers has not"),
        ("config.json", {"model_type": "bert"}, "as an image classifier: bert is none"),
    ],
)
def test_what_is_no_classifier_or_does_not_say_how_to_see_is_refused(tmp_path, file, fields, words):
    folder = edited(saved(tmp_path / "model", resnet_of(LABELS)), file, **fields)
    with pytest.raises(InputError, match=words):
        load_one(str(folder), LABELS)


def test_no_foreign_code_is_followed(tmp_path):
    folder = our_folder(tmp_path / "model", "deit_tiny_patch16_224")
    edited(folder, auto_map={"AutoModelForImageClassification": "elsewhere--code.Model"})
    (folder / "code.py").write_text("raise SystemExit('run')")
    assert logits(load_one(str(folder), LABELS))


def test_files_and_folders_that_are_not_there_are_refused(tmp_path):
    for name, words in ((tmp_path / "none", "there is no folder"), (tmp_path / "x.safetensors", "give --model")):
        with pytest.raises(InputError, match=words):
            describe_classifiers([str(name)], LABELS)


def test_labels_are_read_without_weights(tmp_path):
    folder = our_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert labels_of(str(folder)) == LABELS
    with pytest.raises(InputError, match="there is no folder"):
        labels_of("/no/such/folder")
    with pytest.raises(InputError, match=r"the model 'someone/model' at revision 'v1'"):
        labels_of("someone/model@v1")


def test_the_same_model_twice_is_refused(tmp_path):
    folder = folder_of("plain", tmp_path / "model")
    (tmp_path / "link").symlink_to(folder)
    for again in (folder, f"{folder}/", str(tmp_path / "link")):
        with pytest.raises(InputError, match="is given twice"):
            describe_classifiers([folder, again], LABELS)


def test_names_are_short_and_tell_models_apart():
    def names(*paths: str, words: str = "") -> list[str]:
        return short_names([(path, words) for path in paths])

    assert names("runs/a", "timm/regnety_040") == ["a", "regnety_040"]
    assert names("runs/1/model", "runs/2/model", "runs/x") == ["1/model", "2/model", "x"]
    assert names("/a/x/y", "/b/x/y", "y") == ["a/x/y", "b/x/y", "y"]
    assert names(".") == [Path.cwd().name]
    assert short_names([("r", "raw weights"), ("r", "averaged weights")]) == [
        "r (raw weights)",
        "r (averaged weights)",
    ]


def test_revisions_of_one_model_have_names_of_their_own(tmp_path, monkeypatch):
    folder = folder_of("plain", tmp_path / "model")
    monkeypatch.setattr(classifiers, "name_and_revision", lambda model: (folder, model))
    monkeypatch.setattr(classifiers, "resolve_revision", lambda name, revision: revision)
    with_revisions = describe_classifiers(["1" * 40, "2" * 40], LABELS)
    assert [one.name for one in with_revisions] == [f"model ({digit * 12})" for digit in "12"]


def averaged_run(folder: Path, **recipe: object) -> Path:
    """A run's folder, with the weights that it publishes, and two checkpoints, each with raw and averaged ones."""
    saved(folder, ours("deit_tiny_patch16_224"))
    lines = {"publish_weights": "ema", "ema_decay": 0.9, **recipe}
    (folder / "recipe.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items()))
    for step in (5, 10):
        checkpoint = folder / f"checkpoint-{step}"
        saved(checkpoint, randomise(ours("deit_tiny_patch16_224"), seed=step))
        randomise(ours("deit_tiny_patch16_224"), seed=100 + step).save_pretrained(checkpoint / "ema")
        state = {"global_step": step, "best_model_checkpoint": str(folder / "checkpoint-5")}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(("best", "step"), [(False, 10), (True, 5)])
def test_raw_and_averaged_weights_are_two_models_of_one_checkpoint(tmp_path, best, step):
    folder = averaged_run(tmp_path / "run", load_best_model_at_end=best)
    other = folder_of("plain", tmp_path / "other")
    raw, averaged, last = describe_classifiers([str(folder), other], LABELS, weights="both")
    assert [raw.name, averaged.name, last.name] == ["run (raw weights)", "run (averaged weights)", "other"]
    for description, seed, kind in ((raw, step, "raw"), (averaged, 100 + step, "ema")):
        expected = randomise(ours("deit_tiny_patch16_224"), seed=seed).state_dict()
        weights = description.load().model.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
        assert (description.origin["weights"], description.origin["checkpoint"]) == (kind, f"checkpoint-{step}")
    assert describe_classifiers([str(folder)], LABELS)[0].origin["weights"] == "ema"  # what it publishes
    [named] = describe_classifiers([str(folder / "checkpoint-5" / "ema")], LABELS)
    assert named.version == describe_classifiers([str(folder / "checkpoint-5")], LABELS, weights="ema")[0].version


def test_weights_that_are_not_there_are_refused(tmp_path):
    folder = averaged_run(tmp_path / "run")
    for step in (5, 10):
        shutil.rmtree(folder / f"checkpoint-{step}" / "ema")
    with pytest.raises(InputError, match="holds no averaged weights"):
        describe_classifiers([str(folder)], LABELS, weights="both")
    for step in (5, 10):
        shutil.rmtree(folder / f"checkpoint-{step}")
    assert describe_classifiers([str(folder)], LABELS, weights="ema")[0].weights.folder == str(folder)
    with pytest.raises(InputError, match="what it publishes are averaged weights"):
        describe_classifiers([str(folder)], LABELS, weights="raw")
    plain = folder_of("plain", tmp_path / "plain")
    with pytest.raises(InputError, match="as it is of no run"):
        describe_classifiers([plain], LABELS, weights="both")
    with pytest.raises(InputError, match="is on the Hub"):
        describe_classifiers(["someone/model"], LABELS, weights="ema")


def test_our_own_processor_is_taken_for_our_own_folders(tmp_path):
    folder = folder_of("distilled", tmp_path / "model")
    [description] = describe_classifiers([folder], LABELS)
    assert isinstance(description.processor, DistilledDeiTImageProcessor)
    assert TINY["image_size"] == 32 == description.input_size[0]


def test_a_zero_shot_model_has_no_classes_to_be_asked_for(tmp_path):
    zero_shot.clip_folder(tmp_path / "clip")
    for ask in (labels_of, lambda model: load_one(model, LABELS)):
        with pytest.raises(InputError, match=r"zero-shot model \(clip\).*hf-deit train.*hf-deit probe"):
            ask(str(tmp_path / "clip"))
