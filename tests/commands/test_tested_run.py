"""Contract: a run looks at its test images once, at its very end, with the weights that it has saved.

What it measures stands in the table, in test_results.json and in the card, with the number of images and an interval.
"""

import io
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from scipy.stats import binomtest
from support import tiny
from support.images import class_folders, load, parquet, refusal, table
from support.main_of import main_of
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_deit.data.image_data import ImageData
from hf_deit.errors import BadImageError
from hf_deit.hub.record import read_facts
from hf_deit.training.trainer import DistillationTrainer

COUNT = 45  # test images


@pytest.fixture(scope="module")
def main():
    return main_of("train")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> str:
    """Some digits as a local data set with the splits train, validation and test."""
    folder = tmp_path_factory.mktemp("data")
    train, validation = tiny.digits(96, 40 + COUNT)
    parts = {
        "train": train,
        "validation": validation.select(range(40)),
        "test": validation.select(range(40, 40 + COUNT)),
    }
    return parquet(folder / "digits", **parts)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def line(folder: Path, data: str, *options: str) -> list[str]:
    """A short run without a teacher."""
    command = ["--recipe", "debug", "--output_dir", str(folder), "--use_cpu", "true", "--distillation_type", "none"]
    return [*command, "--dataset_name", data, "--learning_rate", "3e-3", *options]


AVERAGED = ["--publish_weights", "ema", "--load_best_model_at_end", "true", "--max_steps", "4", "--eval_steps", "2"]
AVERAGED += ["--save_steps", "2"]


@pytest.fixture(scope="module")
def tested_run(main, digits, tmp_path_factory) -> tuple[Path, str]:
    """A run that keeps its best checkpoint and publishes the average, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("run") / "run", io.StringIO()
    options = [*AVERAGED, "--test_split", "test"]
    # transformers keeps the loader of persistent workers, and must not take it for the test images.
    options += ["--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder.parent / "cache")
        assert main(line(folder, digits, *options)) == 0
    return folder, printed.getvalue()


def served(folder: Path, data: datasets.Dataset) -> tuple[float, float]:
    """Top-1 and the loss of what users get who load the folder with transformers alone."""
    model, processor = (kind.from_pretrained(folder) for kind in (AutoModelForImageClassification, AutoImageProcessor))
    with torch.no_grad():
        logits = model(**processor(list(data["image"]), return_tensors="pt")).logits.double()
    labels = torch.tensor(data["label"])
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    return (logits.argmax(-1) == labels).double().mean().item(), loss


def results_in(folder: Path, name: str = "test_results.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_what_is_saved_is_measured_and_stated_everywhere(tested_run, digits, tmp_path):
    folder, printed = tested_run
    test = datasets.load_dataset(digits, split="test")
    top1, loss = served(folder, test)
    interval = binomtest(round(top1 * COUNT), COUNT).proportion_ci(method="wilson")
    shown = f"{top1:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
    results = results_in(folder)
    assert results["test_top1"] == pytest.approx(top1) and results["test_images"] == COUNT
    assert results["test_loss"] == pytest.approx(loss, rel=1e-4)  # it tells weights apart that are equally often right
    assert {"test_class_top1", "test_distillation_top1", "test_top5", "test_loss"} <= results.keys()
    assert not any("ema" in name for name in results)  # the raw weights are not looked at
    assert results.items() <= results_in(folder, "all_results.json").items() and "eval_top1" in results_in(
        folder, "all_results.json"
    )
    assert f"top-1 on {COUNT} test images" in printed
    assert re.search(rf"^test, fused +{re.escape(shown)}$", printed, re.MULTILINE)
    assert "validation 40; test 45, looked at once, at the end" in re.sub(r"\s+", " ", printed)
    facts = read_facts(folder)
    assert facts.num_test == COUNT and ("fused heads", "top-1", results["test_top1"]) in facts.test_results()
    card = (folder / "README.md").read_text()
    assert f"| fused heads | {shown} |" in card and "45 images of a local data set (split `test`)" in card
    entries = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    stated = {
        (entry["dataset"]["split"], entry["dataset"]["args"]["num_images"], entry["metrics"][0]["value"])
        for entry in entries
        if entry["metrics"][0]["name"] == "top-1 accuracy, fused heads"
    }
    assert ("test", COUNT, round(top1, 4)) in stated and {split for split, *_ in stated} == {"test", "validation"}


def test_the_training_is_the_same_without_it_and_the_test_may_come_later(main, tested_run, digits, tmp_path, caplog):
    folder, weights = tmp_path / "run", (tested_run[0] / "model.safetensors").read_bytes()
    assert main(line(folder, digits, *AVERAGED)) == 0
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not (folder / "test_results.json").exists()
    assert "test" not in re.sub(r"latest", "", (folder / "README.md").read_text().partition("## Use")[0])
    assert main(line(folder, digits, *AVERAGED, "--resume_from_checkpoint", "true", "--test_split", "test")) == 0
    assert "the run was begun with test_split None and goes on with test" in caplog.text
    assert (folder / "model.safetensors").read_bytes() == weights
    assert results_in(folder)["test_top1"] == results_in(tested_run[0])["test_top1"]


def test_a_run_at_its_end_is_tested_again_only_where_the_results_are_not_of_its_weights(
    main, tested_run, digits, monkeypatch
):
    calls, test = [], DistillationTrainer.test
    monkeypatch.setattr(DistillationTrainer, "test", lambda trainer: calls.append(1) or test(trainer))
    folder, before = tested_run[0], results_in(tested_run[0])
    again = line(folder, digits, *AVERAGED, "--resume_from_checkpoint", "true")
    card = (folder / "README.md").read_text()
    assert main([*again, "--test_split", "test"]) == 0
    assert not calls and results_in(folder) == before
    assert f"| {before['test_top1']:.4f}" in card
    tables = [re.findall(r"^\| fused.*$", text, re.MULTILINE) for text in (card, (folder / "README.md").read_text())]
    assert tables[0] == tables[1] and len(tables[0]) == 2
    assert main([*again, "--test_split", "validation", "--validation_split", "test"]) == 2  # another run
    raw = [word if word != "ema" else "raw" for word in again]
    assert main([*raw, "--test_split", "test"]) == 0
    assert len(calls) == 1 and results_in(folder)["test_weights"] == "raw"


def test_folders_are_tested_on_a_folder_with_the_training_folders_classes(main, tmp_path, capsys):
    train = class_folders(tmp_path / "train", {"ape": 12, "bee": 12, "cat": 12})
    test = class_folders(tmp_path / "test", {"cat": 3, "ape": 2}, first=70)
    command = [word for word in line(tmp_path / "run", "") if word not in ("--dataset_name", "")]
    assert main([*command, "--train_dir", train, "--test_dir", test, "--max_steps", "1"]) == 0
    assert results_in(tmp_path / "run")["test_images"] == 5
    printed = capsys.readouterr().out
    assert "top-1 on 5 test images" in printed
    assert "5 images of one's own (kept apart as a test)" in (tmp_path / "run" / "README.md").read_text()


# What training never does


def poisoned(folder: Path) -> str:
    """A data set whose test images cannot be decoded, and have no labels."""
    bad = table([-1, -1], classes=[0, 0]).cast_column("image", datasets.Image(decode=False)).to_dict()
    for image in bad["image"]:
        image["bytes"] = b"poison"
    good = table([index % 3 for index in range(30)])
    return parquet(folder, train=good, test=datasets.Dataset.from_dict(bad, features=good.features))


def test_nothing_of_the_test_split_is_looked_at(tmp_path, monkeypatch):
    folder, read = poisoned(tmp_path / "set"), []
    for check in ("headers", "all"):
        data = load(dataset_name=folder, check_images=check)
        assert data.test is None and (len(data.train), len(data.validation)) == (27, 3)
        assert str(data.validation.split) == "train"
    monkeypatch.setattr("hf_deit.data.splits.with_class_labels", lambda data, names, split: read.append(split) or data)
    load(dataset_name=folder)
    assert read == ["train"]


def test_the_test_split_is_checked_before_the_training(tmp_path):
    folder = poisoned(tmp_path / "set")
    message = refusal(dataset_name=folder, test_split="test")
    assert "2 of the 2 images of the split 'test'" in message
    unlabelled = parquet(tmp_path / "hidden", train=table([0, 1, 2] * 9), test=table([-1, -1], classes=[0, 0]))
    message = refusal(dataset_name=unlabelled, test_split="test")
    assert "row 0 of the test set has -1" in message and "test splits on the Hub often have -1 for all" in message


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("tset", "no split 'tset'; it has train, validation, test; did you mean 'test'?"),
        ("train", "the test split must not be the training split"),
        ("validation", "the test split must not be the validation split"),
    ],
)
def test_a_split_that_is_none_is_refused(tmp_path, split, words, streaming):
    folder = parquet(tmp_path / "set", train=table([0, 1, 2] * 9), validation=table([0, 1]), test=table([2]))
    more = {"streaming": True, "images_per_epoch": 9} if streaming else {}
    assert words in refusal(dataset_name=folder, test_split=split, validation_split="validation", **more)


def test_a_stream_has_its_test_split_whole(tmp_path):
    parts = {"train": table([0, 1, 2] * 9), "validation": table([0, 1]), "test": table([2, 0, 1], numbers=[7, 8, 9])}
    data: ImageData = load(dataset_name=parquet(tmp_path / "set", **parts), streaming=True, images_per_epoch=9)
    assert data.test is None
    data = load(dataset_name=str(tmp_path / "set"), streaming=True, images_per_epoch=9, test_split="test")
    assert data.test["label"] == [2, 0, 1] and len(data.validation) == 2


@pytest.mark.parametrize("option", ["test_split", "test_dir"])
def test_digits_have_no_test_images(option):
    message = refusal(dataset_name="sklearn:digits", **{option: "test"})
    assert "360 images are all that is held out" in message and "hf-deit evaluate" in message


def test_a_test_folder_of_other_classes_is_refused(tmp_path):
    train = class_folders(tmp_path / "train", {"ape": 4, "bee": 4})
    test = class_folders(tmp_path / "test", {"ape": 1, "cat": 1})
    assert "classes that the training folder has not: cat" in refusal(train_dir=train, test_dir=test)
    assert "no folder" in refusal(train_dir=train, test_dir=str(tmp_path / "absent"))
    (tmp_path / "above" / "train").mkdir(parents=True)
    class_folders(tmp_path / "above" / "train", {"ape": 1, "bee": 1})
    class_folders(tmp_path / "above" / "test", {"ape": 1, "bee": 1})
    message = refusal(train_dir=train, test_dir=str(tmp_path / "above"))
    assert "--test_dir" in message and str(tmp_path / "above" / "test") in message


def test_a_test_image_that_ends_the_run_costs_no_model(main, digits, tmp_path, monkeypatch, capsys):
    def meet(trainer: DistillationTrainer) -> None:
        raise BadImageError("the image of row 7 cannot be decoded")

    monkeypatch.setattr(DistillationTrainer, "test", meet)
    assert main(line(tmp_path / "run", digits, "--test_split", "test", "--max_steps", "1")) == 2
    assert "row 7 cannot be decoded" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").is_file() and (tmp_path / "run" / "eval_results.json").is_file()
