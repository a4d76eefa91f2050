"""`hf-deit probe`, and `--teacher_probe` in train: on training images alone, whenever it was stopped.

Every process, and every way to the end, gives the same classifier; what lies in the folder and is another one is
never taken for it.
"""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny
from support.images import class_folders
from support.main_of import launch

from hf_deit.commands import teacher_probe
from hf_deit.commands.main import main
from hf_deit.commands.sources import resolve_sources
from hf_deit.commands.teacher_probe import fit_teacher
from hf_deit.data.image_data import ImageData
from hf_deit.data.load import load_data
from hf_deit.errors import InputError
from hf_deit.evaluation.probe import probe as probe_module
from hf_deit.evaluation.probe.backbone import Backbone
from hf_deit.models.pretrained import weights_digest
from hf_deit.recipes.resolve import check_same_run, resolve_arguments, resolved_recipe, save_recipe, take_revisions
from hf_deit.training.datasets import data_seed

RUN = ["--recipe", "debug", "--use_cpu", "true", "--max_steps", "1"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return tiny.teacher_folder(tmp_path_factory.mktemp("given") / "backbone")


def arguments_of(folder: Path, *given: str):
    return resolve_arguments([*RUN, "--output_dir", str(folder), *given])


@pytest.fixture(scope="module")
def few() -> ImageData:
    train, validation = tiny.digits(60, 20)
    return ImageData(train, validation, [str(number) for number in range(10)], test=validation)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    ones, others = weights(one), weights(other)
    assert ones.keys() == others.keys() and all(np.array_equal(ones[name], others[name]) for name in ones)


def test_a_folder_of_images_becomes_a_classifier(tmp_path, backbone, capsys):
    train = class_folders(tmp_path / "train", {"cat": 6, "dog": 6})
    test = class_folders(tmp_path / "test", {"cat": 3, "dog": 3}, first=50)
    line = ["probe", "--backbone", backbone, "--train_dir", train, "--test_dir", test, "--use_cpu"]
    out = tmp_path / "out"
    assert main([*line, "--output_dir", str(out)]) == 0
    told = capsys.readouterr().out
    assert (
        "test images" in told and "always the most frequent class  0.5000" in told and "recall of each class" in told
    )
    content = json.loads((out / "probe.json").read_text())
    assert content["cross_validation"]["num_images"] == 12 and content["test"]["num_images"] == 6
    assert content["views"] == ["whole", "whole, mirrored"]
    before = (out / "probe.json").read_bytes()
    assert main([*line, "--output_dir", str(out)]) == 0 and (out / "probe.json").read_bytes() == before
    assert main([*line, "--output_dir", str(out), "--horizontal_flip", "false"]) == 2
    assert "holds another probe" in capsys.readouterr().err
    assert main([*line, "--output_dir", str(out), "--horizontal_flip", "false", "--overwrite"]) == 0
    assert json.loads((out / "probe.json").read_text())["views"] == ["whole"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["README.md", "config.json", "model.safetensors", "preprocessor_config.json", "probe.json"]
    )


@pytest.mark.parametrize(
    ("images", "given", "words"),
    [
        ({"cat": 4}, [], "at least two"),
        ({"cat": 4, "dog": 1}, [], "of dog there is a single image"),
        ({"cat": 2, "dog": 2}, ["--folds", "5"], "4 images for 5 folds"),
        ({"cat": 2, "dog": 2}, ["--folds", "1"], "folds must lie in"),
        ({"cat": 2, "dog": 2}, ["--backbone", "nowhere/at/all"], "no folder"),
        ({"cat": 2, "dog": 2}, ["--dataset_name", "sklearn:digits"], "either --dataset_name or --train_dir"),
        ({"cat": 2, "dog": 2}, ["--horizontal_flip", "maybe"], "true or false"),
    ],
)
def test_what_it_cannot_do_is_said_before_weights_are_loaded(
    tmp_path, backbone, monkeypatch, capsys, images, given, words
):
    monkeypatch.setattr("hf_deit.evaluation.probe.backbone.load_classifier", None)
    line = ["probe", "--backbone", backbone, "--train_dir", class_folders(tmp_path / "train", images), "--use_cpu"]
    assert main([*line, "--output_dir", str(tmp_path / "out"), *given]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, backbone, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    line = ["probe", "--backbone", backbone, "--dataset_name", "sklearn:digits", "--use_cpu"]
    assert main([*line, "--output_dir", str(tmp_path / "out")]) == 2
    assert "thesis.txt" in capsys.readouterr().err and len(list((tmp_path / "out").iterdir())) == 1


def test_a_run_fits_its_teacher_on_training_images_with_labels_alone(tmp_path, backbone, few, monkeypatch):
    arguments = arguments_of(tmp_path, "--teacher_probe", backbone, "--labels_kept", "40", "--horizontal_flip", "0.5")
    kept = few.with_labels_kept(40, data_seed(arguments.training))
    asked = []
    compute = probe_module.compute_features
    monkeypatch.setattr(
        probe_module,
        "compute_features",
        lambda backbone, images, asking: (asked.append(images), compute(backbone, images, asking))[1],
    )
    folder, content = fit_teacher(backbone, few, arguments)
    (images,) = asked
    assert images.labels.values.tolist() == kept.train["label"] and len(images) == 40
    shown = [np.asarray(images.image(row).convert("L")) for row in range(40)]
    assert all(np.array_equal(one, np.asarray(two)) for one, two in zip(shown, kept.train["image"], strict=True))
    assert content["views"] == ["whole", "whole, mirrored"] and content["cross_validation"]["num_images"] == 40
    assert "validation" not in content and "test" not in content
    assert folder == str(tmp_path / "teacher") and [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_digits_are_not_mirrored_in_a_run(tmp_path, backbone, few):
    arguments = arguments_of(tmp_path, "--teacher_probe", backbone, "--horizontal_flip", "0")
    assert fit_teacher(backbone, few, arguments)[1]["views"] == ["whole"]


def test_wherever_it_is_stopped_the_same_teacher_comes_of_it(tmp_path, backbone, few, monkeypatch):
    whole, stopped = arguments_of(tmp_path / "whole"), arguments_of(tmp_path / "stopped")
    fit_teacher(backbone, few, whole)

    def stop(*_, **__):
        raise KeyboardInterrupt

    points = [
        (Backbone, "logits_and_features"),
        (probe_module, "fit"),
        (Backbone, "save"),
        (probe_module, "card_of"),
        (teacher_probe.os, "replace"),
    ]
    for place, name in points:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, stop)
            with pytest.raises(KeyboardInterrupt):
                fit_teacher(backbone, few, stopped)
        assert not (tmp_path / "stopped" / "teacher").exists()
        assert (tmp_path / "stopped" / "teacher.unfinished").is_dir()
    fit_teacher(backbone, few, stopped)
    assert_same(tmp_path / "whole" / "teacher", tmp_path / "stopped" / "teacher")
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["teacher"]


def test_a_teacher_that_is_there_is_taken_if_it_is_the_one(tmp_path, backbone, few, monkeypatch):
    arguments = arguments_of(tmp_path)
    _, content = fit_teacher(backbone, few, arguments)
    monkeypatch.setattr(teacher_probe, "fit_probe", None)  # never again
    assert fit_teacher(backbone, few, arguments)[1]["identity"] == content["identity"]
    other = tiny.teacher_folder(tmp_path / "other", seed=5)
    fewer = ImageData(few.train.select(range(50)), None, few.label_names)
    for given, images in ((other, few), (backbone, fewer)):
        with pytest.raises(InputError, match="is not the probe of"):
            fit_teacher(given, images, arguments)
    assert fit_teacher(backbone, few, arguments, resuming=True)[1]["identity"] == content["identity"]
    renamed = ImageData(few.train, None, [*few.label_names[:9], "nine"])
    with pytest.raises(InputError, match="has learnt other classes"):
        fit_teacher(backbone, renamed, arguments, resuming=True)


def test_a_run_may_not_go_on_with_another_backbone(tmp_path, backbone):
    arguments = arguments_of(tmp_path, "--teacher_probe", backbone)
    assert resolved_recipe(arguments)["teacher_probe"] == backbone and arguments.model.teacher_recipe is None
    file = tmp_path / "recipe.yaml"
    made = tiny.teacher_folder(tmp_path / "teacher")
    save_recipe(
        arguments._replace(
            model=type(arguments.model)(**{**vars(arguments.model), "teacher_model_name_or_path": made})
        ),
        str(file),
    )
    check_same_run(str(file), arguments)
    check_same_run(str(file), arguments_of(tmp_path, "--teacher_model_name_or_path", made))
    other = tiny.teacher_folder(tmp_path / "other")
    with pytest.raises(InputError, match="started with teacher_probe"):
        check_same_run(str(file), arguments_of(tmp_path, "--teacher_probe", other))
    with pytest.raises(InputError, match="drop one of them"):
        arguments_of(tmp_path, "--teacher_probe", backbone, "--teacher_recipe", "debug_teacher")


def test_the_commit_of_a_backbone_is_part_of_the_recipe_and_kept(tmp_path, monkeypatch):
    commits = {None: "decaf" * 8, "v1": "c0ffee" * 6 + "c0ff"}
    monkeypatch.setattr("hf_deit.commands.sources.resolve_revision", lambda name, revision=None: commits[revision])
    resolved = resolve_sources(arguments_of(tmp_path, "--teacher_probe", "lab/dino@v1"))
    assert resolved.model.teacher_probe == f"lab/dino@{commits['v1']}"
    recipe = resolved_recipe(resolved)
    assert take_revisions(recipe, arguments_of(tmp_path, "--teacher_probe", "lab/dino")) == resolved
    other = arguments_of(tmp_path, "--teacher_probe", "lab/clip")
    assert take_revisions(recipe, other) == other
    assert resolve_sources(arguments_of(tmp_path, "--teacher_probe", str(tmp_path))).model.teacher_probe == str(
        tmp_path
    )


def test_streams_and_unlabelled_images_alone_are_refused(tmp_path, backbone):
    for given in (
        ["--dataset_name", "someone/images", "--streaming", "true"],
        ["--dataset_name", "", "--unlabeled_dir", str(tmp_path)],
    ):
        with pytest.raises(InputError, match="labelled images that are no stream"):
            arguments_of(tmp_path, "--teacher_probe", backbone, *given)


def test_all_images_of_a_folder_are_learnt_from(tmp_path):
    arguments = arguments_of(
        tmp_path, "--dataset_name", "", "--train_dir", class_folders(tmp_path / "a", {"cat": 9, "dog": 9})
    )
    data = load_data(arguments.data, holds_out=False)
    assert len(data.train) == 18 and data.validation is None
    assert isinstance(data.train, datasets.Dataset)


def test_a_run_with_kept_labels_says_who_taught_and_is_replayed_without_a_teacher(tmp_path, backbone, capsys):
    line = [
        "train",
        *RUN,
        "--labels_kept",
        "200",
        "--eval_strategy",
        "no",
        "--teacher_labels",
        str(tmp_path / "labels"),
    ]
    assert main([*line, "--teacher_probe", backbone, "--output_dir", str(tmp_path / "run")]) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "a linear probe of a backbone from a local folder, fitted on 200 training images (cross-validated" in card
    store = json.loads((tmp_path / "labels" / "store.json").read_text())
    assert weights_digest(tmp_path / "run" / "teacher") in json.dumps(store)
    capsys.readouterr()
    assert main([*line, "--teacher_probe", backbone, "--output_dir", str(tmp_path / "replay")]) == 0
    assert "kept labels replayed" in capsys.readouterr().out and not (tmp_path / "replay" / "teacher").exists()


@pytest.mark.slow
def test_a_run_on_two_processes_has_the_teacher_of_one(tmp_path, backbone):
    given = ["--teacher_probe", backbone, "--per_device_train_batch_size", "8", "--eval_strategy", "no"]
    assert main(["train", *RUN, *given, "--output_dir", str(tmp_path / "one")]) == 0
    launch("scripts/train.py", *RUN, *given, "--output_dir", tmp_path / "two")
    assert_same(tmp_path / "one" / "teacher", tmp_path / "two" / "teacher")
