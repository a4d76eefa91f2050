"""Contract: a run's model is evaluated on what the run has kept apart: its test images, or else its validation's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.images import NAMES, class_folders, identities, load, parquet, picture, table

from hf_deit.commands.evaluated_images import images_to_evaluate
from hf_deit.errors import InputError
from hf_deit.evaluation.images.images import EvaluationImages
from hf_deit.hub.recipe_file import dump_recipe


@dataclass(frozen=True)
class Asked:
    model: str
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    split: str | None = None
    images_dir: str | None = None
    image_column_name: str | None = None
    label_column_name: str | None = None
    label_file: str | None = None
    label_set: str | None = None
    class_indices: str | None = None
    on_bad_image: str = "stop"
    check_images: str = "headers"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def run_with(folder: Path, **recipe: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return str(folder)


def taken(model: str, *, labels: list[str] = NAMES, **fields: Any) -> EvaluationImages:
    return images_to_evaluate(Asked(model, **fields), model_labels=lambda: labels)


def refusal(model: str, **fields: Any) -> str:
    with pytest.raises(InputError) as error:
        taken(model, **fields)
    return str(error.value)


ROWS = [index % 3 for index in range(30)]


def test_the_test_split_of_its_data_set_is_taken(tmp_path):
    data = parquet(tmp_path / "set", train=table(ROWS), validation=table([0]), test=table([1, 2], numbers=[70, 71]))
    images = taken(run_with(tmp_path / "run", dataset_name=data))
    assert identities(images.dataset) == [(1, 70), (2, 71)] and images.source["split"] == "test"
    assert identities(taken(run_with(tmp_path / "run", dataset_name=data), split="validation").dataset) == [(0, 0)]
    assert len(taken(str(tmp_path / "run"), split="train")) == 30
    assert "no split 'dev'; it has train, validation, test" in refusal(str(tmp_path / "run"), split="dev")


def test_the_test_images_that_a_run_was_given_are_taken(tmp_path):
    data = parquet(tmp_path / "set", train=table(ROWS), validation=table([0]), test=table([1]), final=table([2, 2]))
    assert len(taken(run_with(tmp_path / "run", dataset_name=data, test_split="final"))) == 2
    train = class_folders(tmp_path / "photos", {"ape": 4, "bee": 4, "cat": 4})
    test = class_folders(tmp_path / "held_back", {"cat": 3}, first=50)
    images = taken(run_with(tmp_path / "run", train_dir=train, test_dir=test, validation_fraction=0.5))
    assert identities(images.dataset) == [(2, 50), (2, 51), (2, 52)] and images.labels.names == tuple(NAMES)


@pytest.mark.parametrize("kind", ["set", "folders"])
def test_else_exactly_the_images_that_were_held_out(tmp_path, kind):
    if kind == "set":
        where = {"dataset_name": parquet(tmp_path / "photos", train=table(ROWS))}
    else:
        where = {"train_dir": class_folders(tmp_path / "photos", {"ape": 9, "bee": 12, "cat": 9})}
    recipe = {**where, "validation_fraction": 0.3, "validation_seed": 5}
    others = {"labels_kept": 6, "unlabeled_dir": str(tmp_path / "gone")}
    images, trained = taken(run_with(tmp_path / "run", **recipe, **others)), load(**recipe)
    assert identities(images.dataset) == identities(trained.validation)
    assert images.labels.values.tolist() == trained.validation["label"]
    expected = {"name": "photos", "split": "held out of train", "validation_fraction": 0.3, "validation_seed": 5}
    assert images.source.items() >= expected.items()
    assert images.words.startswith(f"{len(images)} images held out of train of photos, which its run was validated")
    assert "--split" not in refusal(str(tmp_path / "run"), images_dir=str(tmp_path / "absent"))


def test_digits_and_folders_to_validate_with(tmp_path):
    digits = [str(digit) for digit in range(10)]
    run = run_with(tmp_path / "run", dataset_name="sklearn:digits")
    images = taken(run, labels=digits)
    assert (len(images), images.source["name"]) == (360, "sklearn:digits")
    assert images.words.startswith("360 images held out of train of sklearn:digits")
    assert taken(run, labels=digits, split="validation").digest == images.digest
    for split in ("train", "test"):
        assert f"split must be validation, got '{split}'" in refusal(run, split=split)
    (tmp_path / "run" / "checkpoint-7").mkdir()
    assert taken(str(tmp_path / "run" / "checkpoint-7"), labels=digits).digest == images.digest
    train, val = (class_folders(tmp_path / name, {"ape": 2, "bee": 2, "cat": 1}) for name in ("train", "val"))
    run = run_with(tmp_path / "run", train_dir=train, validation_dir=val)
    images = taken(run)
    assert len(images) == 5 and images.words.startswith("5 images in the folder val, which its run was validated with")
    (tmp_path / "train").rename(tmp_path / "gone")  # which it needs no more
    assert taken(run).digest == images.digest


def test_a_test_split_without_labels_gives_way_to_what_was_held_out(tmp_path, caplog):
    data = parquet(tmp_path / "set", train=table(ROWS), test=table([-1, -1], classes=[0, 1]))
    images = taken(run_with(tmp_path / "run", dataset_name=data))
    assert len(images) == 3 and images.source["split"] == "held out of train"
    assert "the split test has no labels" in caplog.text
    assert taken(str(tmp_path / "run"), split="test").source["num_labelled"] == 0  # which is what was asked for
    data = parquet(tmp_path / "other", train=table(ROWS), test=table([2, 1], numbers=[50, 51]))
    images = taken(run_with(tmp_path / "run", dataset_name=data, validation_split="test"))
    assert len(images) == 2 and "validated with" in images.words  # which is no test split then
    assert taken(str(tmp_path / "run"), split="test").words == images.words


def test_a_run_of_unlabelled_images_has_none_but_those_it_was_given(tmp_path):
    (tmp_path / "more").mkdir()
    picture(0, 1).save(tmp_path / "more" / "0.png")
    run = run_with(tmp_path / "run", unlabeled_dir=str(tmp_path / "more"))
    message = refusal(run)
    assert "not validated" in message and "--images_dir" in message
    val = class_folders(tmp_path / "val", {"bee": 2})
    images = taken(run_with(tmp_path / "run", unlabeled_dir=str(tmp_path / "more"), validation_dir=val))
    assert images.labels.values.tolist() == [1, 1]


def test_what_cannot_be_known_is_asked_for(tmp_path):
    message = refusal(str(tmp_path))
    assert "no folder of a run" in message and "--dataset_name" in message and "--images_dir" in message
    run_with(tmp_path / "digits")
    assert f"is no folder, whose own could be taken; did you mean '{tmp_path}/digits'?" in refusal(f"{tmp_path}/digit")
    gone = refusal(run_with(tmp_path / "run", train_dir=str(tmp_path / "gone")))
    assert "of the run in" in gone and "no folder" in gone and "--images_dir FOLDER" in gone
    assert "--label_file is about images that are named" in refusal(str(tmp_path / "run"), label_file="x.csv")
