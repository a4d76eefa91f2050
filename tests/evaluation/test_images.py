"""Contract: models are evaluated on the images that are named, with the labels that are theirs, or on none."""

from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from support.images import NAMES, broken, class_folders, identity, parquet, picture, table

from hf_deit.data.columns import loose_labels
from hf_deit.errors import InputError
from hf_deit.evaluation.images.images import EvaluationImages, load_evaluation_images

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def load(model_labels: list[str] = NAMES, **fields: Any) -> EvaluationImages:
    names = ("dataset_name", "dataset_config_name", "dataset_revision", "images_dir", "image_column_name")
    names += ("label_column_name", "label_file", "label_set", "class_indices")
    usual = {"split": None, "on_bad_image": "stop", "check_images": "headers", "model": "none"}
    arguments = SimpleNamespace(**{**dict.fromkeys(names), **usual, **fields})
    return load_evaluation_images(arguments, model_labels=lambda: model_labels)


def refusal(*arguments: Any, **fields: Any) -> str:
    with pytest.raises(InputError) as error:
        load(*arguments, **fields)
    return str(error.value)


def test_the_test_split_is_taken_with_its_own_labels(tmp_path):
    folder = parquet(tmp_path / "pets", train=table([0, 1]), test=table([2, 0, 1, 2], numbers=range(10, 14)))
    images = load(dataset_name=folder)
    assert [identity(images.image(index)) for index in range(4)] == [(2, 10), (0, 11), (1, 12), (2, 13)]
    assert images.labels.values.tolist() == [2, 0, 1, 2] and images.labels.names == tuple(NAMES)
    assert images.words == "4 images of the split test of pets"
    expected = {"name": "pets", "kind": "local", "config": None, "split": "test", "revision": None}
    assert images.source == {**expected, "num_images": 4, "num_labelled": 4, "digest": images.digest}
    assert identity(load(dataset_name=folder, split="train").image(1)) == (1, 1)


@pytest.mark.parametrize("dtype", [None, "string"])
def test_no_other_split_is_fetched_unless_all_are_there_or_needed(tmp_path, monkeypatch, dtype):
    values, feature = ([2, 0], None) if dtype is None else (["cat", "ape"], datasets.Value(dtype))
    first = table([1] if dtype is None else ["bee"], classes=[1], feature=feature)
    folder = parquet(tmp_path / "pets", train=first, test=table(values, classes=[2, 0], feature=feature))
    column = {"label_column_name": None if dtype is None else "label"}
    fetched, fetch = [], datasets.load_dataset
    watch = lambda *args, **options: fetched.append(options.get("streaming", False)) or fetch(*args, **options)  # noqa: E731
    monkeypatch.setattr(datasets, "load_dataset", watch)
    images = load(dataset_name=folder, **column)
    assert all(fetched) == (dtype is None) and fetched  # what a name's number is, all splits say together
    assert "no split 'tset'; it has train, test" in refusal(dataset_name=folder, split="tset")
    fetched.clear()
    fetch(folder)
    again = load(dataset_name=folder, **column)
    assert fetched == [False] * len(fetched) and again.digest == images.digest
    assert again.labels.values.tolist() == images.labels.values.tolist() == [2, 0]


def test_digits_are_evaluated_on_what_is_held_out_of_them():
    for split in ("validation", None):
        images = load(DIGITS, dataset_name="sklearn:digits", split=split)
        assert (len(images), images.words) == (360, "360 images held out of sklearn:digits")
        assert images.source["split"] == "validation"
    message = refusal(DIGITS, dataset_name="sklearn:digits", split="test")
    assert "no split 'test'" in message and "--split validation" in message


@pytest.mark.parametrize("column", ["class", "text", "number"])
def test_rows_may_lack_a_label(tmp_path, column, caplog):
    values = {"class": [2, None, -1, 0], "text": ["cat", None, None, "ape"], "number": [7, None, -1, 5]}[column]
    feature = {"class": None, "text": datasets.Value("string"), "number": datasets.Value("int64")}[column]
    names = ["5", "6", "7"] if column == "number" else NAMES
    data = table(values, classes=[2, 0, 0, 0], feature=feature)
    train = table([6] if column == "number" else ["bee"] if feature else [1], classes=[1], feature=feature)
    folder = parquet(tmp_path / "set", train=train, test=data)
    images = load(names, dataset_name=folder, label_column_name="label" if feature else None)
    assert images.labels.names == tuple(names)  # also those that only the training split has
    assert images.labels.values.tolist() == [2, -1, -1, 0]
    assert (images.source["num_images"], images.source["num_labelled"]) == (4, 2)
    assert "2 of them have no label" in caplog.text and images.words.endswith("(2 of them with labels)")


@pytest.mark.parametrize("kind", ["no column", "-1 for all", "None for all", "folder"])
def test_images_without_labels_are_taken_and_said_to_have_none(tmp_path, kind, caplog):
    if kind == "folder":
        (tmp_path / "photos").mkdir()
        for number in (3, 1, 2):
            picture(0, number).save(tmp_path / "photos" / f"{number}.png")
        images = load(images_dir=str(tmp_path / "photos"))
        assert [identity(images.image(index))[1] for index in range(3)] == [1, 2, 3]
    elif kind == "None for all":
        data = table([None, None], classes=[0, 1], feature=datasets.Value("string"))
        images = load(dataset_name=parquet(tmp_path / "set", test=data), label_column_name="label")
    else:
        data = table([-1, -1], classes=[0, 1])
        data = data.remove_columns("label") if kind == "no column" else data
        images = load(dataset_name=parquet(tmp_path / "set", test=data))
    assert not images.labels.is_labelled.any() and images.labels.names == tuple(NAMES)
    assert "none of them has a label" in caplog.text and images.source["num_labelled"] == 0


def test_folders_of_some_of_a_models_classes_have_its_labels(tmp_path):
    images = load(images_dir=class_folders(tmp_path / "photos", {"cat": 2, "bee": 1}))
    assert images.labels.names == tuple(NAMES) and images.labels.values.tolist() == [1, 2, 2]
    assert [identity(images.image(index))[0] for index in range(3)] == [1, 2, 2]
    assert images.words == "3 images in the folder photos"


def test_folders_of_other_classes_are_refused_with_the_nearest(tmp_path):
    folder = class_folders(tmp_path / "photos", {"cats": 1, "bee": 1})
    message = refusal(images_dir=folder)
    assert "'the model'" not in message
    assert all(words in message for words in ("has not: cats (1 of 2)", "did you mean 'cat'?", "--class_indices"))


def test_as_many_classes_by_other_words_are_left_to_each_model(tmp_path):
    folder = class_folders(tmp_path / "photos", {"ape": 1, "bee": 1, "cat": 1})
    assert load(["ape, Pongo", "bee, Apis", "cat, Felis"], images_dir=folder).labels.names == tuple(NAMES)


def test_another_place_or_label_does_not_change_the_digest_and_other_rows_do(tmp_path):
    counts = {"ape": 2, "cat": 3}
    one, other = (load(images_dir=class_folders(tmp_path / name, counts)) for name in ("here", "there"))
    assert one.digest == other.digest
    assert one.digest != load(images_dir=class_folders(tmp_path / "new", counts, first=1)).digest
    (tmp_path / "here" / "cat" / "4.png").rename(tmp_path / "here" / "cat" / "9.png")
    assert one.digest != load(images_dir=str(tmp_path / "here")).digest


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ["either --images_dir or --dataset_name", "sklearn:digits"]),
        ({"images_dir": "FOLDER", "dataset_name": "SET"}, ["either --images_dir or --dataset_name"]),
        ({"dataset_name": "SET", "split": "tset"}, ["no split 'tset'", "it has train, test", "did you mean 'test'?"]),
        ({"dataset_name": "SET", "split": "validation"}, ["no split 'validation'", "it has train, test"]),
        ({"dataset_name": "SET", "dataset_revision": "main"}, ["--dataset_revision", "on the Hub"]),
        ({"dataset_name": "SET", "label_column_name": "x"}, ["no column 'x'"]),
        ({"images_dir": "FOLDER", "label_column_name": "label"}, ["--label_column_name", "leave it out"]),
        ({"images_dir": "FOLDER", "split": "test"}, ["--split is of a data set", "leave it out"]),
        ({"images_dir": "FOLDER", "split": "validation"}, ["--split is of a data set"]),
        ({"images_dir": "NOWHERE"}, ["no folder", "NOWHERE"]),
        ({"images_dir": "EMPTY"}, ["there are no images in"]),
        ({"images_dir": "HOLLOW"}, ["class folders without images", "cat"]),
        ({"images_dir": "FOLDER", "label_set": "reel"}, ["label_set must be one of", "did you mean 'real'?"]),
        ({"images_dir": "FOLDER", "label_set": "real"}, ["--label_file real.json"]),
        ({"images_dir": "FOLDER", "label_set": "v2"}, ["1,000 classes", "3 labels"]),
        ({"images_dir": "SPLITS"}, ["splits rather than classes", "--images_dir", "test"]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_mistakes_are_refused_with_what_to_do(tmp_path, fields, words):
    (tmp_path / "EMPTY").mkdir()
    class_folders(tmp_path / "HOLLOW", {"ape": 1, "bee": 1, "cat": 0})
    class_folders(tmp_path / "SPLITS" / "train", {"ape": 1, "bee": 1})
    class_folders(tmp_path / "SPLITS" / "test", {"ape": 1, "bee": 1})
    places = {
        "SET": parquet(tmp_path / "set", train=table([0, 1]), test=table([0])),
        "FOLDER": class_folders(tmp_path / "folder", {"ape": 1, "bee": 1}),
        **{name: str(tmp_path / name) for name in ("NOWHERE", "EMPTY", "HOLLOW", "SPLITS")},
    }
    message = refusal(**{name: places.get(value, value) for name, value in fields.items()})
    assert all(word in message for word in words), message


@pytest.mark.parametrize("where", ["folder", "set"])
def test_corrupt_images_are_told_as_in_training(tmp_path, where):
    if where == "folder":
        fields = {"images_dir": class_folders(tmp_path / "photos", {"ape": 3, "bee": 2})}
        (tmp_path / "photos" / "ape" / "1.png").write_bytes(b"no image")
        words = ["1 of the 5 files", "1.png", "--on_bad_image skip"]
    else:
        fields = {"dataset_name": parquet(tmp_path / "set", test=broken(table([0, 1, 2, 0]), [2]))}
        words = ["1 of the 4 images", "row 2", "--on_bad_image skip"]
    message = refusal(**fields)
    assert all(word in message for word in words), message
    assert len(load(**fields, on_bad_image="skip")) in (4, 5)  # whoever decodes them counts what is skipped


def test_labels_beyond_the_classes_are_refused():
    data = table([0, 1, 2])
    assert np.array_equal(loose_labels(data, NAMES, "test"), [0, 1, 2])
    with pytest.raises(InputError, match=r"must lie in \[0, 2\), but row 2 of the test set has 2"):
        loose_labels(data, NAMES[:2], "test")
