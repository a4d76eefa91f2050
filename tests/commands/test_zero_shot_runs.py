"""Contract: a run with a zero-shot teacher learns the classes that it is told, and what it is told is never swallowed.

Names come from the data, from the command line or from a file of texts; images without labels suffice. A run that is
stopped goes on with the very same teacher, its labels can be kept and replayed, and whoever has its recipe can repeat
it. What does not fit is refused before there are images.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from support import tiny, zero_shot
from support.hub_client import connect
from support.hub_server import HubServer
from support.main_of import main_of
from transformers import AutoModelForImageClassification, CLIPConfig, CLIPVisionModel

import hf_deit.commands.prepare
from hf_deit import InputError
from hf_deit.commands.label import label_epochs
from hf_deit.commands.preview import preview_run
from hf_deit.commands.train import run
from hf_deit.commands.zero_shot import names_without_labels
from hf_deit.hub.record import read_facts
from hf_deit.hub.run_folder import last_whole_checkpoint
from hf_deit.models.teacher import TeacherDescription
from hf_deit.models.zero_shot.prompts import DEFAULT_TEMPLATES
from hf_deit.recipes import load_recipe
from hf_deit.recipes.resolve import published_recipe, resolve_arguments
from hf_deit.training.arguments import ModelArguments
from hf_deit.training.trainer import DistillationTrainer

NAMES = ["cat", "red fox", "dog"]
TOLD = ["--class_names", *NAMES]
PROMPTS = {"dog": ["a dog.", "two dogs."], "cat": "a cat.", "red fox": ["a fox."]}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teachers") / "clip"
    zero_shot.clip_folder(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    return pictures(tmp_path_factory.mktemp("photos"), 24)


def pictures(folder: Path, count: int, seed: int = 0) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = rng.integers(0, 216, 3) + rng.integers(0, 40, (20, 22, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return str(folder)


def command(folder: Path | str, photos: str, clip: str | None, *options: str) -> list[str]:
    """Of a run of three steps of eight views, on images without labels alone."""
    line = ["--recipe", "debug", "--dataset_name", "", "--unlabeled_dir", photos, "--output_dir", str(folder)]
    return taught(line, clip, *options)


def taught(line: list[str], clip: str | None, *options: str) -> list[str]:
    line = [*line, "--use_cpu", "true", "--disable_tqdm", "true", "--max_steps", "3", "--save_strategy", "no"]
    line += ["--per_device_train_batch_size", "8", "--mixup_group_size", "8"]
    return [*line, *([] if clip is None else ["--teacher_model_name_or_path", clip]), *options]


def refusal(line: list[str], **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        run(resolve_arguments(line, **settings))
    return str(error.value)


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/model.safetensors")


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def file_of(folder: Path, prompts: dict[str, Any] = PROMPTS) -> str:
    path = folder / "prompts.yaml"
    path.write_text(yaml.safe_dump(prompts, sort_keys=False))
    return str(path)


# From images without labels to a model


def test_a_folder_of_images_and_names_suffice(tmp_path, photos, clip, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = json.dumps({**tiny.SIZES, "image_size": 36, "patch_size": 12})
    line = ["--unlabeled_dir", photos, *TOLD, "--teacher_model_name_or_path", clip, "--max_steps", "2"]
    line += ["--student", "deit_tiny_distilled_patch16_224"]
    line += ["--student_overrides", small, "--mixup_group_size", "8", "--per_device_train_batch_size", "8"]
    assert main_of("train")([*line, "--warmup_epochs", "0", "--use_cpu", "true"]) == 0
    printed = capsys.readouterr().out
    lines = [row.split() for row in printed.splitlines()]
    said = [row for row in lines if row[-1:] and row[-1].isdigit() and row[0] in ("cat", "red", "dog")]
    assert "the teacher says, of 24 training images:" in printed
    assert sum(int(row[-1]) for row in said) == 24 and len(said) == 3
    model = AutoModelForImageClassification.from_pretrained("outputs/own_images")
    assert model.config.id2label == dict(enumerate(NAMES))
    assert "--teacher" not in printed  # which `evaluate` takes for a classifier


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_measured_on_folders_of_the_names(tmp_path, photos, clip, kind):
    for number, name in enumerate(("red fox", "cat")):  # whose order is another than that of the names
        pictures(tmp_path / "validation" / name, 2 + number, seed=1)
    options = [*TOLD, "--validation_dir", str(tmp_path / "validation"), "--distillation_type", kind]
    result = run(resolve_arguments(command(tmp_path / "run", photos, clip, *options)))
    facts = read_facts(tmp_path / "run")
    assert result.num_validation_images == 5 and "teacher" in result.accuracies
    assert [images for _, images in facts.classes] == [3, 2, 0] and facts.labels == NAMES


def test_a_file_of_texts_names_the_classes_in_its_order(tmp_path, photos, clip):
    options = ["--class_prompts", file_of(tmp_path)]
    run(resolve_arguments(command(tmp_path / "run", photos, clip, *options)))
    facts = read_facts(tmp_path / "run")
    assert facts.labels == ["dog", "cat", "red fox"]
    assert facts.teacher_texts == ["a dog.", "two dogs."]


def test_a_preview_knows_the_names_without_the_teacher(photos, monkeypatch):
    monkeypatch.delattr(TeacherDescription, "load")
    assert preview_run(command("x", photos, "lab/not-at-hand", *TOLD), epoch=0, slots="0:4").width > 0


# What is refused, and when


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "must be told them"),
        (["--class_names", "cat"], "at least two classes"),
        (["--class_names", "cat,dog"], "one behind the other"),
        (["--class_names", "cat", "dog", "cat "], "'cat' more than once"),
        (["--class_names", "cat", " "], "at least two classes"),
        (["--class_prompts", "no/such.yaml"], "no file 'no/such.yaml'"),
        (["--class_prompts", '{"cat": "a cat."}'], "the class 'cat' alone"),
        (["--class_prompts", '{"cat": []}'], "for the class 'cat'"),
        ([*TOLD, "--class_prompts", '{"Fox": "a fox.", "dog": "a dog."}'], "'Fox'"),
        ([*TOLD, "--templates", "a photo."], 'must have "{}"'),
        (["--class_prompts", '{"cat": "a.", "dog": "b."}', "--templates", "a {}."], "has texts for all of them"),
    ],
)
def test_what_a_zero_shot_teacher_cannot_be_told(tmp_path, photos, clip, options, words):
    assert words in refusal(command(tmp_path, photos, clip, *options))


@pytest.mark.parametrize(
    "options",
    [
        TOLD,
        ["--class_prompts", '{"0": "a.", "1": "b."}'],
        ["--templates", "a {}."],
        ["--teacher_prior_correction", "true"],
    ],
)
def test_a_classifier_is_told_nothing(tmp_path, photos, options, monkeypatch):
    monkeypatch.setattr(hf_deit.commands.prepare, "load_data", lambda *_, **__: pytest.fail("images were loaded"))
    words = refusal(command(tmp_path / "run", photos, tiny.teacher_folder(tmp_path / "resnet"), *options))
    assert options[0] in words and "is a classifier" in words


def test_names_beside_labels_are_those_of_the_labels(tmp_path, clip):
    for name in ("cat", "dog"):
        pictures(tmp_path / "train" / name, 12)
    line = ["--recipe", "debug", "--train_dir", str(tmp_path / "train"), "--output_dir", str(tmp_path / "run")]
    line = taught(line, clip, "--validation_fraction", "0.2")
    words = refusal([*line, "--class_names", "cat", "wolf"])
    assert "'wolf'" in words and "--class_prompts" in words and "--unlabeled_dir" in words
    assert "did you mean 'dog'" in refusal([*line, "--class_prompts", '{"dogs": "a dog."}'])
    run(resolve_arguments([*line, "--class_names", "dog", "cat", "--class_prompts", '{"dog": "a dog."}']))
    assert read_facts(tmp_path / "run").labels == ["cat", "dog"]


def test_what_cannot_teach_the_folders_classes_is_refused_before_an_image_is_read(tmp_path, clip, monkeypatch):
    monkeypatch.setattr(hf_deit.commands.prepare, "load_data", lambda *_, **__: pytest.fail("images were loaded"))
    for name in ("cat", "n01440764"):
        pictures(tmp_path / "train" / name, 1)
    line = ["--recipe", "debug", "--train_dir", str(tmp_path / "train"), "--output_dir", str(tmp_path / "run")]
    assert "number of a synset" in refusal(taught(line, clip))
    assert "did you mean 'cat'" in refusal(taught(line, clip, "--class_prompts", '{"cats": "a cat."}'))
    CLIPVisionModel(CLIPConfig.from_pretrained(clip).vision_config).save_pretrained(tmp_path / "tower")
    assert "it has no text tower" in refusal(taught(line, str(tmp_path / "tower")))


def test_prompts_for_some_classes_leave_those_of_a_classifier_as_they_are(tmp_path, clip):
    both = [clip, tiny.teacher_folder(tmp_path / "resnet")]
    some = {"7": "a seven.", "1": "a one."}
    told = ModelArguments(teacher_model_name_or_path=both, class_prompts=some)
    assert names_without_labels(told, None) == [str(digit) for digit in range(10)]
    assert names_without_labels(replace(told, teacher_label_subset=True), None) == ["7", "1"]


def test_names_without_images_are_not_those_of_the_digits(tmp_path, clip):
    line = ["--use_cpu", "true", "--output_dir", str(tmp_path), *TOLD, "--teacher_model_name_or_path", clip]
    assert "images without labels, which names are for, are --unlabeled_dir" in refusal(line)


@pytest.mark.parametrize("text", ["cat: a.\ncat: b.\n", "- cat\n", "cat: {a: b}\n", "cat: [", "[a]: b\n", ""])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "prompts.yaml").write_text(text)
    with pytest.raises(InputError, match=r"prompts\.yaml"):
        resolve_arguments(["--class_prompts", str(tmp_path / "prompts.yaml"), "--output_dir", str(tmp_path)])


def test_names_in_a_file_are_texts_whatever_they_look_like(tmp_path):
    (tmp_path / "prompts.yaml").write_text("no: a no.\n7: [seven, 7]\n2026-01-01: a day\n~: 'null'\n")
    line = ["--class_prompts", str(tmp_path / "prompts.yaml"), "--output_dir", str(tmp_path)]
    expected = {"no": ["a no."], "7": ["seven", "7"], "2026-01-01": ["a day"], "~": ["null"]}
    assert resolve_arguments(line).model.class_prompts == expected


# Repeated from what it wrote


def test_the_recipe_holds_what_the_teacher_was_told_and_no_path(tmp_path, photos, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cat").mkdir()  # a text is none, though there be a folder of that name
    texts = {"cat": ["./cat", "~cat", "/a/cat"], "dog": ["a dog."]}
    options = ["--class_names", "cat", "dog", "wolf", "--class_prompts", file_of(tmp_path, texts)]
    arguments = resolve_arguments(command(tmp_path / "run", photos, clip, *options))
    run(arguments)
    facts = read_facts(tmp_path / "run")
    for recipe in (load_recipe(tmp_path / "run" / "recipe.yaml"), facts.recipe):
        assert recipe["class_names"] == ["cat", "dog", "wolf"]
        assert recipe["class_prompts"] == texts
        assert recipe["templates"] == list(DEFAULT_TEMPLATES)
    assert str(tmp_path) not in json.dumps(published_recipe(arguments))
    again = resolve_arguments(["--recipe", str(tmp_path / "run" / "recipe.yaml"), "--output_dir", str(tmp_path / "2")])
    run(again._replace(training=again.training))
    assert are_equal(weights(tmp_path / "run"), weights(tmp_path / "2"))


PRIOR = ["--teacher_prior_correction", "true"]


def test_a_run_that_is_stopped_goes_on_with_the_very_same_prior(tmp_path, photos, clip, monkeypatch):
    (tmp_path / "moved").mkdir()
    saving = [*PRIOR, "--class_prompts", file_of(tmp_path), "--save_strategy", "steps", "--save_steps", "1"]
    saving += ["--distillation_type", "soft"]
    run(resolve_arguments(command(tmp_path / "whole", photos, clip, *saving)))

    def stop(self: DistillationTrainer, *args: Any, **kwargs: Any) -> None:
        written(self, *args, **kwargs)
        if self.state.global_step == 2:
            raise KeyboardInterrupt

    written = DistillationTrainer._write_checkpoint
    with monkeypatch.context() as patches, pytest.raises(KeyboardInterrupt):
        patches.setattr(DistillationTrainer, "_write_checkpoint", stop)
        run(resolve_arguments(command(tmp_path / "run", photos, clip, *saving)))
    assert last_whole_checkpoint(tmp_path / "run").endswith("-2")
    resume = ["--resume_from_checkpoint", "true", "--class_prompts", file_of(tmp_path / "moved")]
    monkeypatch.setattr("hf_deit.training.predicted_classes.log_prior", lambda _: pytest.fail("it was known"))
    run(resolve_arguments(command(tmp_path / "run", photos, clip, *saving, *resume)))
    assert are_equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    found = [read_facts(tmp_path / name).predicted_classes for name in ("whole", "run")]
    assert found[0] == found[1] and found[0]["priors"]
    other = ["--class_prompts", file_of(tmp_path / "moved", {**PROMPTS, "cat": "a kitten."})]
    words = refusal(command(tmp_path / "run", photos, clip, *saving, *resume, *other))
    assert "class_prompts" in words and "a kitten." in words


# Kept labels


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, photos, clip) -> str:
    """Labels of one epoch, soft ones, with the prior corrected."""
    folder = str(tmp_path_factory.mktemp("store") / "labels")
    options = [*TOLD, *PRIOR, "--teacher_labels", folder, "--distillation_type", "soft", "--teacher_labels_top_k", "2"]
    label_epochs(resolve_arguments(command(folder + "-run", photos, clip, *options), is_trained=False), epochs="0:1")
    return folder


SOFT = ["--distillation_type", "soft", "--teacher_labels_top_k", "2"]


def test_a_replay_needs_neither_teacher_nor_names(tmp_path, photos, clip, recorded, monkeypatch):
    kept = [*SOFT, "--teacher_labels", recorded]
    taught = command(tmp_path / "taught", photos, clip, *TOLD, *PRIOR, *kept, "--verify_teacher_labels", "1")
    result = run(resolve_arguments(taught))
    assert result.label_report.verified == result.label_report.agreeing > 0
    monkeypatch.delattr(TeacherDescription, "load")
    replay = command(tmp_path / "replay", photos, None, *kept, "--teacher_labels_readonly", "true")
    run(resolve_arguments([*replay, "--teacher_recipe", ""]))
    assert read_facts(tmp_path / "replay").labels == NAMES
    assert are_equal(weights(tmp_path / "taught"), weights(tmp_path / "replay"))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ([*TOLD], "teacher.prior_correction"),
        ([*TOLD, *PRIOR, "--templates", "a photo of a {}."], "teacher.prompts"),
        ([*TOLD, *PRIOR, "--class_prompts", '{"cat": "a kitten."}'], "teacher.prompts"),
        ([*TOLD, *PRIOR, "--crop_ratio", "0.9"], "teacher.prior_correction.crop_ratio"),
    ],
)
def test_labels_by_another_question_are_refused(tmp_path, photos, clip, recorded, options, field):
    words = refusal(command(tmp_path, photos, clip, *SOFT, "--teacher_labels", recorded, *options))
    assert field in words


def test_the_priors_of_several_are_corrected_kept_and_told(tmp_path, photos, clip):
    zero_shot.siglip2_folder(tmp_path / "siglip2")
    taught = ["--teacher_model_name_or_path", clip, str(tmp_path / "siglip2"), *TOLD, *PRIOR]
    taught += [*SOFT, "--teacher_labels", str(tmp_path / "labels")]
    run(resolve_arguments(command(tmp_path / "first", photos, None, *taught)))
    result = run(resolve_arguments(command(tmp_path / "again", photos, None, *taught, "--verify_teacher_labels", "1")))
    assert result.label_report.verified == result.label_report.agreeing == result.label_report.replayed > 0
    assert are_equal(weights(tmp_path / "first"), weights(tmp_path / "again"))
    card = (tmp_path / "first" / "README.md").read_text()
    assert (
        "Those of them that are zero-shot models" in card and "with the prior of each zero-shot one corrected" in card
    )
    assert all(read_facts(tmp_path / "first").predicted_classes["priors"])
    uncorrected = [word for word in taught if word not in PRIOR]
    assert "prior_correction" in refusal(command(tmp_path / "third", photos, None, *uncorrected))


# What is said of it


def test_the_card_says_who_taught_how_it_was_asked_and_its_licence(tmp_path, photos, clip, monkeypatch):
    card = "---\nlicense: other\nlicense_name: apple-amlr\nlicense_link: LICENSE\n---\nA model.\n"
    files = {path.name: path.read_bytes() for path in Path(clip).iterdir()}
    with HubServer(tmp_path / "hub") as hub:
        hub.add_user("ada")
        connect(hub, tmp_path / "home", None, monkeypatch)
        for name, readme in (("ada/stated", card), ("ada/silent", "A model.\n")):
            hub.add_repository(name)
            hub.commit(name, {**files, "README.md": readme.encode()})
        texts = {}
        for name in ("stated", "silent"):
            run(resolve_arguments(command(tmp_path / name, photos, f"ada/{name}", *TOLD, *PRIOR)))
            texts[name] = (tmp_path / name / "README.md").read_text()
    assert "**Licence of the teacher**, by its own card: `apple-amlr (LICENSE)`" in texts["stated"]
    assert "**Licence of the teacher**: its card states none." in texts["silent"]
    for text in texts.values():
        assert 'of "cat" it was told `itap of a cat.`' in text
        assert "it said of 24 training images: " in text and "With" not in text[:3]
        assert "prior corrected" in text and "templates:\n- itap of a {}." in text
