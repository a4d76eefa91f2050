"""Contract: what is trained on is what the user has, column by column and label by label, or the reason why not."""

import errno
import io
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFile
from sklearn.datasets import load_digits as load_sklearn_digits
from support.images import (
    FEATURES,
    NAMES,
    class_folders,
    encoded,
    identities,
    load,
    noise,
    parquet,
    picture,
    refusal,
    table,
)
from support.main_of import ROOT

from hf_deit.data import arguments
from hf_deit.data.arguments import DataArguments
from hf_deit.data.columns import check_stored_images, find_columns
from hf_deit.data.digits import load_digits
from hf_deit.data.folders import load_class_folders, load_images, walk_files
from hf_deit.data.image_data import split_by_label
from hf_deit.data.load import load_data
from hf_deit.errors import InputError


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def assert_labels_say_what_images_show(dataset: datasets.Dataset, names=NAMES) -> None:
    assert isinstance(dataset.features["image"], datasets.Image)
    assert dataset.features["label"].names == names
    assert [NAMES[shown] for shown, _ in identities(dataset)] == [names[label] for label in dataset["label"]]


# Digits


def test_digits_are_scikit_learns_with_360_held_out_evenly():
    data = load_digits()
    assert (len(data.train), len(data.validation)) == (1437, 360)
    assert data.label_names == [str(i) for i in range(10)]
    assert data.id2label[7] == "7"
    source = load_sklearn_digits()
    expected = Counter(
        (int(label), np.round(image / 16 * 255).astype(np.uint8).tobytes())
        for image, label in zip(source.images, source.target, strict=True)
    )
    got = Counter()
    for part in (data.train, data.validation):
        assert isinstance(part.features["image"], datasets.Image)
        assert isinstance(part.features["label"], datasets.ClassLabel)
        got.update(
            (label, np.asarray(image).tobytes()) for image, label in zip(part["image"], part["label"], strict=True)
        )
    assert got == expected
    totals, held_out = Counter(source.target.tolist()), Counter(data.validation["label"])
    assert all(abs(held_out[digit] - totals[digit] * 360 / 1797) < 1 for digit in range(10))


def test_digits_by_name_are_the_same_every_time():
    by_name, direct = load(dataset_name="sklearn:digits"), load_digits()
    assert by_name.validation["label"] == direct.validation["label"]
    assert np.array_equal(by_name.validation[17]["image"], direct.validation[17]["image"])


# Where data come from


@pytest.mark.parametrize("kind", ["parquet", "imagefolder", "arrow"])
def test_local_data_sets_that_load_dataset_takes(tmp_path, kind):
    folder = tmp_path / "set"
    if kind == "imagefolder":
        class_folders(folder / "train", {"bee": 10, "ape": 10, "cat": 10})
        path = str(folder)
    else:
        data = table([i % 3 for i in range(30)])
        if kind == "parquet":
            path = parquet(folder, train=data)
        else:
            folder.mkdir()
            with datasets.arrow_writer.ArrowWriter(path=str(folder / "train.arrow"), features=data.features) as writer:
                for row in data.cast_column("image", datasets.Image(decode=False)):
                    writer.write(row)
                writer.finalize()
            path = str(folder)
    data = load(dataset_name=path)
    assert data.label_names == NAMES
    assert (len(data.train), len(data.validation)) == (27, 3)
    for part in (data.train, data.validation):
        assert_labels_say_what_images_show(part)
    assert sorted(number for _, number in identities(data.train) + identities(data.validation)) == list(range(30))


def test_class_folders_without_validation_hold_a_part_out(tmp_path):
    path = class_folders(tmp_path / "photos", {"cat": 20, "ape": 10, "bee": 30})
    data = load(train_dir=path, validation_fraction=0.2)
    assert data.label_names == NAMES
    assert Counter(data.validation["label"]) == {0: 2, 1: 6, 2: 4}
    assert sorted(number for _, number in identities(data.train) + identities(data.validation)) == list(range(60))
    for part in (data.train, data.validation):
        assert_labels_say_what_images_show(part)


def test_class_folders_with_validation_keep_all(tmp_path):
    train = class_folders(tmp_path / "train", {"cat": 3, "ape": 2, "bee": 4})
    validation = class_folders(
        tmp_path / "validation", {"cat": 2, "bee": 1}, first=100
    )  # fewer classes, other indices
    data = load(train_dir=train, validation_dir=validation)
    assert sorted(number for _, number in identities(data.train)) == list(range(9))
    assert sorted(number for _, number in identities(data.validation)) == [100, 101, 102]
    for part in (data.train, data.validation):
        assert_labels_say_what_images_show(part)


def test_images_in_deeper_folders_count_and_hidden_files_do_not(tmp_path):
    path = class_folders(tmp_path / "photos", {"ape": 4, "bee": 4})
    (tmp_path / "photos" / "ape" / "more").mkdir()
    picture(0, 50).save(tmp_path / "photos" / "ape" / "more" / "deep.png")
    (tmp_path / "photos" / "ape" / ".DS_Store").write_bytes(b"no image")
    picture(0, 51).save(tmp_path / "photos" / "bee" / ".hidden.png")
    (tmp_path / "photos" / "README.txt").write_text("beside the class folders")
    data = load(train_dir=path, validation_dir=path)
    assert data.label_names == ["ape", "bee"]
    assert sorted(number for _, number in identities(data.train)) == [*range(8), 50]


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    class_folders(tmp_path / "elsewhere", {"ape": 3, "bee": 2})
    folder = tmp_path / "photos"
    class_folders(folder, {"bee": 4}, first=10)
    (folder / "ape").symlink_to(tmp_path / "elsewhere" / "ape")
    (folder / "bee" / "more").symlink_to(tmp_path / "elsewhere" / "bee")
    (folder / "bee" / "circle").symlink_to(folder)
    (tmp_path / "elsewhere" / "bee" / "back").symlink_to(folder / "bee")
    data = load(train_dir=str(folder), validation_dir=str(folder), unlabeled_dir=str(folder))
    assert sorted(number for _, number in identities(data.train)) == [0, 1, 2, 3, 4, 10, 11, 12, 13]
    assert_labels_say_what_images_show(data.train, ["ape", "bee"])
    assert sorted(number for _, number in identities(data.unlabeled)) == [0, 1, 2, 3, 4, 10, 11, 12, 13]
    alone = tmp_path / "alone"
    class_folders(alone, {"ape": 2, "bee": 2})
    (alone / "circle").symlink_to(alone)
    assert "class folders without images" in refusal(train_dir=str(alone))


def test_a_folder_behind_many_links_is_gone_through_once(tmp_path):
    """24 folders with two links each to the next one: by 2^23 paths to the last."""
    path = class_folders(tmp_path / "photos", {"ape": 2, "bee": 2})
    for index in range(24):
        here = tmp_path / f"links/{index}"
        here.mkdir(parents=True)
        for name in "ab":
            (here / name).symlink_to(tmp_path / (f"links/{index + 1}" if index < 23 else "photos/bee"))
    (tmp_path / "photos" / "ape" / "more").symlink_to(tmp_path / "links/0")
    data = load(train_dir=path, validation_dir=path, unlabeled_dir=str(tmp_path / "links"))
    assert sorted(number for _, number in identities(data.train)) == [0, 1, 2, 2, 3, 3]
    assert sorted(number for _, number in identities(data.unlabeled)) == [2, 3]


def test_folders_may_lie_deeper_in_each_other_than_functions_call(tmp_path):
    before, depth = os.getcwd(), 1200
    os.chdir(tmp_path)
    try:
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("7.png").touch()
        os.chdir(tmp_path)
        ((folder, files),) = walk_files("d")
        assert folder.split("/") == ["d"] * depth and files == ["7.png"]
    finally:  # the tests' own folders are removed by a function that calls itself
        for _ in range(depth):
            os.chdir("d")
        os.remove("7.png")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
        os.chdir(before)


@pytest.mark.parametrize("option", ["train_dir", "validation_dir", "unlabeled_dir"])
def test_a_folder_that_must_not_be_read_is_named(tmp_path, monkeypatch, option):
    path, whole = (class_folders(tmp_path / name, {"ape": 2, "bee": 2}) for name in ("photos", "whole"))
    scan = os.scandir

    def scan_all_but_one(folder):
        if os.fspath(folder) == f"{path}/bee":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_all_but_one)
    options = {"train_dir": whole, "validation_dir": whole, option: path}
    assert f"cannot read the folder '{path}/bee': Permission denied" in refusal(**options)


@pytest.mark.parametrize("target", ["nowhere", "link.png"])
def test_links_to_nothing_are_refused(tmp_path, target):
    path = class_folders(tmp_path / "photos", {"ape": 2, "bee": 2})
    (tmp_path / "photos" / "bee" / "link.png").symlink_to(tmp_path / "photos" / "bee" / target)
    for options in ({"train_dir": path}, {"dataset_name": "sklearn:digits", "unlabeled_dir": path}):
        message = refusal(**options)
        assert "1 of the 5 files" in message
        assert str(tmp_path / "photos" / "bee" / "link.png") in message


def test_pipes_are_not_waited_for(tmp_path):
    path = class_folders(tmp_path / "photos", {"ape": 2, "bee": 2})
    os.mkfifo(tmp_path / "photos" / "ape" / "pipe.png")
    (tmp_path / "photos" / "bee" / "link.png").symlink_to("../ape/pipe.png")
    data = load(train_dir=path, validation_dir=path, unlabeled_dir=path)
    assert len(data.train) == len(data.validation) == len(data.unlabeled) == 4


def test_files_come_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "photos"
    for number, name in enumerate(["b", "a.png", "a/c", "a/b/z", "a-/x", "B/y", "10", "9"]):
        path = folder / "ape" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(0, number).save(path)
    class_folders(folder, {"bee": 1}, first=100)
    data = load(train_dir=str(folder), validation_dir=str(folder), unlabeled_dir=str(folder))
    # A folder's files come before those of its folders.
    assert [number for _, number in identities(data.train)] == [6, 7, 1, 0, 5, 2, 4, 3, 100]
    assert [number for _, number in identities(data.unlabeled)] == [6, 7, 5, 3, 2, 4, 1, 0, 100]


def test_hidden_folders_are_no_classes(tmp_path):
    path = class_folders(tmp_path / "photos", {"ape": 4, "bee": 4, ".ipynb_checkpoints": 2})
    (tmp_path / "photos" / "ape" / ".thumbnails").mkdir()
    picture(0, 99).save(tmp_path / "photos" / "ape" / ".thumbnails" / "small.png")
    data = load(train_dir=path, validation_dir=path)
    assert data.label_names == ["ape", "bee"]
    assert sorted(number for _, number in identities(data.train)) == list(range(8))


@pytest.mark.parametrize("split", [None, "test", "validation", "valid", "val", "holdout"])
def test_the_validation_split_is_found_or_named(tmp_path, split):
    splits = {"train": table([0, 1, 2] * 10)}
    if split:
        splits[split] = table([2, 1, 0])
    named = {"validation_split": split} if split == "holdout" else {}
    data = load(dataset_name=parquet(tmp_path / "set", **splits), **named)
    if split not in (None, "test"):  # choosing checkpoints on the test split would spoil it
        assert identities(data.validation) == [(2, 0), (1, 1), (0, 2)]
        assert len(data.train) == 30
    else:
        assert (len(data.train), len(data.validation)) == (27, 3)


def test_the_training_split_can_be_named(tmp_path):
    path = parquet(tmp_path / "set", fit=table([0, 1, 2]), validation=table([2, 1]))
    data = load(dataset_name=path, train_split="fit")
    assert (identities(data.train), identities(data.validation)) == ([(0, 0), (1, 1), (2, 2)], [(2, 0), (1, 1)])


def test_the_held_out_part_is_seeded_and_stratified(tmp_path):
    path = parquet(tmp_path / "set", train=table([0] * 60 + [1] * 30 + [2] * 10))
    parts = [load(dataset_name=path, validation_fraction=0.3, validation_seed=seed).validation for seed in (5, 5, 6)]
    for part in parts:
        assert Counter(part["label"]) == {0: 18, 1: 9, 2: 3}
    assert identities(parts[0]) == identities(parts[1])
    assert set(identities(parts[0])) != set(identities(parts[2]))


def split_or_refusal(split: Callable[[], tuple]) -> list[list[int]] | str:
    try:
        return [part["row"][:] for part in split()]
    except ValueError:
        return "refused"


def test_parts_have_the_rows_that_datasets_gives_them():
    """So a run that an earlier version has begun finds its images again."""
    chance, refused = np.random.RandomState(0), 0
    for seed in range(60):
        num_classes = chance.randint(1, 9)
        labels = chance.randint(0, num_classes, chance.randint(2, 300)) ** chance.randint(1, 3) % num_classes
        features = datasets.Features(
            {"row": datasets.Value("int64"), "label": datasets.ClassLabel(num_classes=num_classes)}
        )
        data = datasets.Dataset.from_dict({"row": range(len(labels)), "label": labels}, features=features)
        if seed % 3 == 0:  # of a selection, too
            data = data.select(chance.permutation(len(data)))
        sizes = {"test_size": chance.uniform(0.05, 0.95)}, {"train_size": int(chance.randint(1, len(data) + 2))}
        for size in sizes:
            expected = split_or_refusal(
                lambda data=data, size=size, seed=seed: data.train_test_split(
                    **size, seed=seed, stratify_by_column="label"
                ).values()
            )
            found = split_or_refusal(lambda data=data, size=size, seed=seed: split_by_label(data, **size, seed=seed))
            assert found == expected
            refused += expected == "refused"
    assert 10 < refused < 80
    columns = {"row": range(40), "label": np.arange(40) ** 2 % 7 % 4}
    features = datasets.Features({"row": datasets.Value("int64"), "label": FEATURES["label"]})
    data = datasets.Dataset.from_dict(columns, features=features)
    # As written down from datasets 5.2.
    assert split_by_label(data, test_size=0.25, seed=3)[1]["row"][:] == [18, 31, 9, 6, 4, 36, 1, 12, 16, 14]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 3])
def test_a_fraction_that_is_none_is_refused(tmp_path, fraction):
    message = refusal(train_dir=class_folders(tmp_path / "a", {"ape": 4, "bee": 4}), validation_fraction=fraction)
    assert "validation_fraction" in message
    assert str(fraction) in message


def test_too_few_images_to_hold_out_are_refused(tmp_path):
    message = refusal(train_dir=class_folders(tmp_path / "a", {"ape": 2, "bee": 2}))
    assert "--validation_fraction" in message


def test_classes_of_a_single_image_are_named(tmp_path):
    photos = class_folders(tmp_path / "a", {"ape": 1, "bee": 9, "cat": 1})
    for fields in ({"train_dir": photos}, {"dataset_name": parquet(tmp_path / "set", train=table([0, 1, 1, 1, 2]))}):
        message = refusal(**fields)
        assert "of ape, cat there is a single image" in message and "validation set" in message
    data = load(train_dir=photos, validation_dir=photos)
    assert Counter(data.train["label"]) == {0: 1, 1: 9, 2: 1}
    with pytest.raises(InputError, match=r"of ape, cat there is a single image.*--labels_kept"):
        data.with_labels_kept(6, 0)


def test_folders_and_local_data_sets_may_be_paths(tmp_path):
    photos = class_folders(tmp_path / "photos", {"ape": 2, "bee": 2, "cat": 2})
    whole = parquet(tmp_path / "set", train=table([0, 1, 2]), validation=table([2, 1]))
    for fields in (
        {"train_dir": photos, "validation_dir": photos, "unlabeled_dir": photos},
        {"dataset_name": whole, "unlabeled_dataset_name": whole},
        {"dataset_name": whole, "streaming": True, "images_per_epoch": 3},
    ):
        as_paths = {name: Path(value) if isinstance(value, str) else value for name, value in fields.items()}
        assert DataArguments(**as_paths) == DataArguments(**fields)  # text, as what the command line gives
        got, expected = load(**as_paths), load(**fields)
        for part in ("train", "validation", "unlabeled"):
            one, other = getattr(got, part), getattr(expected, part)
            if isinstance(one, datasets.Dataset):
                assert identities(one) == identities(other) != []
            else:
                assert type(one) is type(other)


def test_folders_are_read_by_path(tmp_path):
    class_folders(tmp_path, {"ape": 2, "bee": 1})
    data, names = load_class_folders(tmp_path, "stop")
    assert (identities(data), names) == ([(0, 0), (0, 1), (1, 2)], ["ape", "bee"])
    assert identities(load_images(tmp_path, "stop")) == [(0, 0), (0, 1), (1, 2)]
    with pytest.raises(InputError, match="no folder '"):
        load_class_folders(tmp_path / "none", "stop")
    with pytest.raises(InputError, match="no folder '"):
        load_images(tmp_path / "none", "stop")


def test_the_arguments_load_no_library():
    """They are read before any of what loads images."""
    line = f"import sys; sys.path.append({str(ROOT)!r}); import {arguments.__name__}"
    alone = subprocess.run([sys.executable, "-S", "-c", line], capture_output=True, text=True)
    assert (alone.returncode, alone.stderr) == (0, "")  # without any installed package


# Columns


def shown_and_said(dataset: datasets.Dataset) -> set[tuple[int, int]]:
    """The classes that images show, each with the label that is said of it."""
    return {(shown, label) for (shown, _), label in zip(identities(dataset), dataset["label"], strict=True)}


def wide_table() -> datasets.Dataset:
    data = table([0, 1, 2] * 10, image="photo", label="species")
    return data.add_column("id", list(range(30))).add_column("caption", ["words"] * 30)


def test_columns_are_found_by_type(tmp_path):
    assert find_columns(wide_table()) == ("photo", "species")
    data = load(dataset_name=parquet(tmp_path / "set", train=wide_table()))
    assert set(data.train.column_names) == {"image", "label"}
    assert_labels_say_what_images_show(data.train)


def test_columns_named_the_wrong_way_round_are_found_by_type(tmp_path):
    path = parquet(tmp_path / "set", train=table([0, 1, 2] * 10, image="label", label="image"))
    assert_labels_say_what_images_show(load(dataset_name=path).train)


def test_several_columns_of_a_type_need_a_name(tmp_path):
    data = wide_table()
    mask = [encoded(picture(7, i)) for i in range(30)]
    data = data.add_column("mask", mask, feature=datasets.Image())
    data = data.add_column("genus", [1, 0, 1] * 10, feature=datasets.ClassLabel(names=["x", "y"]))
    path = parquet(tmp_path / "set", train=data)
    message = refusal(dataset_name=path, label_column_name="genus")
    assert "--image_column_name" in message
    assert "photo" in message
    assert "mask" in message
    message = refusal(dataset_name=path, image_column_name="photo")
    assert "--label_column_name" in message
    assert "species" in message
    assert "genus" in message
    loaded = load(dataset_name=path, image_column_name="photo", label_column_name="genus")
    assert loaded.label_names == ["x", "y"]
    assert shown_and_said(loaded.train) == {(0, 1), (1, 0), (2, 1)}
    loaded = load(dataset_name=path, image_column_name="mask", label_column_name="species")
    assert {shown for shown, _ in identities(loaded.train)} == {7}


def test_no_column_of_a_type_is_refused(tmp_path):
    path = parquet(tmp_path / "set", train=wide_table().remove_columns("species"))
    assert "--label_column_name" in refusal(dataset_name=path)
    path = parquet(tmp_path / "other", train=wide_table().remove_columns("photo"))
    assert "--image_column_name" in refusal(dataset_name=path)


def test_a_column_that_does_not_exist_or_fit_is_refused(tmp_path):
    path = parquet(tmp_path / "set", train=wide_table())
    for option in ("image_column_name", "label_column_name"):
        message = refusal(dataset_name=path, **{option: "nope"})
        assert "'nope'" in message
        assert "species" in message
    assert "'caption'" in refusal(dataset_name=path, image_column_name="caption")
    assert "label" in refusal(dataset_name=path, label_column_name="photo")


def test_a_validation_split_without_the_columns_is_refused(monkeypatch):
    other = table([0, 1, 2]).rename_column("label", "other")
    splits = datasets.DatasetDict({"train": table([0, 1, 2] * 4), "validation": other})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: splits)
    assert "no column label" in refusal(dataset_name="someone/something")


# Labels


def test_string_labels_become_classes(tmp_path):
    labels = ["cat", "ape", "bee"] * 10
    data = table(labels, classes=[NAMES.index(name) for name in labels], feature=datasets.Value("string"))
    path = parquet(tmp_path / "set", train=data)
    assert "--label_column_name" in refusal(dataset_name=path)  # a string column may be anything: it must be named
    loaded = load(dataset_name=path, label_column_name="label")
    for part in (loaded.train, loaded.validation):
        assert_labels_say_what_images_show(part)


def test_integer_labels_become_classes_in_numeric_order(tmp_path):
    values = [10, 9, 200]
    train = table(
        [values[i % 3] for i in range(30)], classes=[i % 3 for i in range(30)], feature=datasets.Value("int64")
    )
    validation = table([200, 9], classes=[2, 1], feature=datasets.Value("int64"))
    path = parquet(tmp_path / "set", train=train, validation=validation)
    data = load(dataset_name=path, label_column_name="label")
    assert data.label_names == ["9", "10", "200"]
    for part in (data.train, data.validation):
        assert shown_and_said(part) <= {(0, 1), (1, 0), (2, 2)}
    assert data.validation["label"] == [2, 0]


def test_float_labels_are_refused(tmp_path):
    path = parquet(
        tmp_path / "set", train=table([0.5, 1.5] * 5, classes=[0, 1] * 5, feature=datasets.Value("float32"))
    )
    assert "label" in refusal(dataset_name=path, label_column_name="label")


def test_a_validation_split_with_other_class_order_is_mapped_by_name(monkeypatch):
    validation = table([0, 1, 2, 0], ["cat", "ape", "bee"], classes=[2, 0, 1, 2])
    splits = datasets.DatasetDict({"train": table([0, 1, 2] * 4), "validation": validation})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: splits)
    data = load(dataset_name="someone/something")
    assert data.validation["label"] == [2, 0, 1, 2]
    for part in (data.train, data.validation):
        assert_labels_say_what_images_show(part)


def test_a_validation_label_that_training_has_not_is_refused(monkeypatch):
    validation = table([0, 1], ["cat", "yak"], classes=[2, 2])
    splits = datasets.DatasetDict({"train": table([0, 1, 2] * 4), "validation": validation})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: splits)
    assert "yak" in refusal(dataset_name="someone/something")


def test_an_unknown_string_label_or_class_folder_is_refused(tmp_path):
    text = datasets.Value("string")
    path = parquet(
        tmp_path / "set",
        train=table(["ape", "bee"] * 5, classes=[0, 1] * 5, feature=text),
        validation=table(["ape", "yak"], classes=[0, 2], feature=text),
    )
    assert "yak" in refusal(dataset_name=path, label_column_name="label")
    train = class_folders(tmp_path / "train", {"ape": 2, "bee": 2})
    assert "yak" in refusal(train_dir=train, validation_dir=class_folders(tmp_path / "val", {"ape": 2, "yak": 2}))


def test_names_are_compared_composed_and_kept_as_they_are(tmp_path, monkeypatch):
    composed, decomposed = (
        ["cafe", "café", "thé"],
        ["cafe", "cafe\u0301", "the\u0301"],
    )  # macOS's folders are the latter
    assert composed != decomposed
    folders = {}
    for form, names in (("composed", composed), ("decomposed", decomposed)):
        folders[form] = tmp_path / form
        for number, name in enumerate([*names, "thf"]):
            (folders[form] / name).mkdir(parents=True)
            picture(number % 3, number).save(folders[form] / name / "1.png")
    order = ["cafe", "café", "thf", "thé"]
    for one, other, names in (("composed", "decomposed", composed), ("decomposed", "composed", decomposed)):
        data = load(train_dir=folders[one], validation_dir=folders[other])
        assert data.label_names == [names[0], names[1], "thf", names[2]]  # as they are, in one order
        assert data.train["label"] == data.validation["label"] == [0, 1, 2, 3]
        assert [Path(item["path"]).parent.name for item in encoded_images(data.validation)] != data.label_names
    text = datasets.Value("string")
    splits = datasets.DatasetDict(
        train=table(["thé", "thf", "café"] * 4, classes=[0, 1, 2] * 4, feature=text),
        validation=table(["the\u0301", "cafe\u0301"], classes=[0, 2], feature=text),
    )
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: splits)
    data = load(dataset_name="someone/something", label_column_name="label")
    assert data.label_names == order[1:] and data.validation["label"] == [2, 0]


def encoded_images(dataset: datasets.Dataset) -> list[dict]:
    return dataset.cast_column("image", datasets.Image(decode=False))["image"]


def test_two_folders_of_one_name_in_two_forms_are_refused(tmp_path):
    for name in ("tea", "thé", "the\u0301"):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture(0, 1).save(tmp_path / "train" / name / "1.png")
    assert "two classes of the same name, thé" in refusal(train_dir=str(tmp_path / "train"))


@pytest.mark.parametrize("where", ["every training label", "one training label", "validation"])
def test_labels_outside_the_range_are_refused(tmp_path, where):
    train, validation = [0, 1, 2] * 10, [0, 1, 2]
    splits = {"train": table(train)}
    if where == "every training label":
        splits["train"] = table([-1] * 30, classes=train)
    elif where == "one training label":
        splits["train"] = table([0, 1, 2] * 9 + [0, -1, 2], classes=train)
    else:
        splits["validation"] = table([-1] * 3, classes=validation)
    message = refusal(dataset_name=parquet(tmp_path / "set", **splits))
    assert "-1" in message
    assert "[0, 3)" in message


@pytest.mark.parametrize("where", ["train", "validation"])
@pytest.mark.parametrize(
    "feature", [datasets.ClassLabel(names=NAMES), datasets.Value("string")], ids=["class", "text"]
)
def test_missing_labels_are_refused(tmp_path, where, feature):
    good = [0, 1, 2] * 4
    text = isinstance(feature, datasets.Value)
    splits = {}
    for split in ("train", "validation"):
        labels = [NAMES[label] if text else label for label in good]
        if split == where:
            labels[4] = None
        splits[split] = table(labels, classes=good, feature=feature)
    message = refusal(dataset_name=parquet(tmp_path / "set", **splits), label_column_name="label")
    assert "label" in message
    assert "None" in message


def test_fewer_than_two_classes_are_refused(tmp_path):
    assert "two classes" in refusal(train_dir=class_folders(tmp_path / "one", {"ape": 9}))
    path = parquet(tmp_path / "set", train=table([0] * 9, ["ape"], classes=[0] * 9))
    assert "two classes" in refusal(dataset_name=path)
    path = parquet(tmp_path / "named", train=table([1] * 9))  # three names, images of one
    assert "two classes" in refusal(dataset_name=path)


# What is not there


def test_exactly_one_source_must_be_given(tmp_path):
    for fields in ({}, {"dataset_name": "a/b", "train_dir": "c"}):
        message = refusal(**fields)
        assert "--dataset_name" in message
        assert "--train_dir" in message
    picture(0, 0).save(tmp_path / "0.png")
    for beside in ({}, {"unlabeled_dir": str(tmp_path)}):
        for name in ("a/b", "sklearn:digits"):
            message = refusal(dataset_name=name, validation_dir=str(tmp_path), **beside)
            assert "--validation_dir goes with --train_dir" in message
            assert "--validation_split" in message


@pytest.mark.parametrize("name", ["./nope", "nobody/nothing-here", "nothing-here", "a b//c", ""])
def test_no_such_data_set_is_refused(name):
    assert repr(name) in refusal(dataset_name=name)


def test_data_sets_made_by_a_script_are_refused(tmp_path):
    """datasets 4 and later run no scripts; many old data sets of the Hub are nothing else."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("import datasets\n")
    assert "script" in refusal(dataset_name=str(tmp_path / "old"))


def test_an_unreadable_table_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(b"PAR1 and no more")
    assert str(tmp_path / "set") in refusal(dataset_name=str(tmp_path / "set"))


def test_no_such_config_or_split_is_refused(tmp_path):
    path = parquet(tmp_path / "set", train=table([0, 1, 2] * 10))
    assert "'nope'" in refusal(dataset_name=path, dataset_config_name="nope")
    for option in ("train_split", "validation_split"):
        message = refusal(dataset_name=path, **{option: "nope"})
        assert "'nope'" in message
        assert "it has train" in message
    assert "training split" in refusal(dataset_name=path, validation_split="train")


def test_no_such_folder_is_refused(tmp_path):
    good = class_folders(tmp_path / "photos", {"ape": 3, "bee": 3})
    missing = str(tmp_path / "nope")
    assert missing in refusal(train_dir=missing)
    assert missing in refusal(train_dir=good, validation_dir=missing)
    flat = str(tmp_path / "photos" / "ape")
    message = refusal(train_dir=flat)
    assert flat in message
    assert "folder of images per class" in message


@pytest.mark.parametrize("content", [None, ".gitkeep"])
def test_empty_class_folders_are_refused(tmp_path, content):
    path = class_folders(tmp_path / "photos", {"ape": 3, "bee": 3, "empty": 0})
    if content:
        (tmp_path / "photos" / "empty" / content).touch()
    message = refusal(train_dir=path)
    assert "without images" in message
    assert "empty" in message.replace(path, "")


def test_a_file_that_is_no_image_is_refused_with_its_path(tmp_path):
    path = class_folders(tmp_path / "photos", {"ape": 3, "bee": 3})
    bad = tmp_path / "photos" / "bee" / "notes.txt"
    bad.write_text("not a picture")
    assert str(bad) in refusal(train_dir=path)
    good = class_folders(tmp_path / "good", {"ape": 3, "bee": 3})
    assert str(bad) in refusal(train_dir=good, validation_dir=path)


@pytest.fixture
def deep_files(tmp_path) -> list[Path]:
    """Files of more than 8 bits per channel, as measuring instruments write them."""
    grey = np.linspace(0, 1, 120).reshape(10, 12)
    images = {
        "sixteen.png": Image.fromarray((grey * 65535).astype(np.uint16)),
        "sixteen.tif": Image.fromarray((grey * 4095).astype(np.uint16)),
        "float.tiff": Image.fromarray(grey.astype(np.float32)),
        "float255.tif": Image.fromarray((grey * 255).astype(np.float32)),
        "int.tif": Image.fromarray((grey * 65535).astype(np.int32)),
        "portable.pgm": Image.fromarray((grey * 65535).astype(np.uint16)),
    }
    (tmp_path / "deep").mkdir()
    for name, image in images.items():
        image.save(tmp_path / "deep" / name)
    return [tmp_path / "deep" / name for name in images]


@pytest.mark.parametrize("option", ["train_dir", "validation_dir", "unlabeled_dir"])
def test_images_of_more_than_8_bits_are_refused_by_their_headers(tmp_path, deep_files, monkeypatch, option):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *args: pytest.fail("decoded"))
    good = class_folders(tmp_path / "good", {"ape": 2, "bee": 2})
    folders = {"train_dir": good, "validation_dir": good, "unlabeled_dir": good}
    for path in deep_files:
        folders[option] = class_folders(tmp_path / f"{option} {path.name}", {"ape": 4, "bee": 4})
        deep = Path(folders[option]) / "bee" / path.name
        shutil.copy(path, deep)
        message = refusal(**folders)
        assert "1 of the 9 files" in message and "more than 8 bits" in message and str(deep) in message
        assert "Image.fromarray(np.uint8(np.asarray(image) / white * 255))" in message
        data = load(**folders, on_bad_image="skip")
        assert {len(data.train), len(data.validation), len(data.unlabeled)} == {4, 9}


def test_every_kind_of_file_that_cannot_be_used_is_counted(tmp_path, deep_files):
    folder = class_folders(tmp_path / "photos", {"ape": 4, "bee": 4})
    for path in deep_files[:3]:
        shutil.copy(path, tmp_path / "photos" / "ape")
    (tmp_path / "photos" / "bee" / "notes.txt").write_text("not a picture")
    message = refusal(train_dir=folder)
    assert "4 of the 12 files" in message and "2 of mode I;16" in message and "1 of mode F" in message
    assert "1 no image that Pillow can open" in message and message.count("np.uint8") == 1


@pytest.mark.parametrize("kind", ["bytes", "path", "array"])
@pytest.mark.parametrize("split", ["train", "validation", "unlabeled"])
def test_images_of_more_than_8_bits_in_a_data_set_are_refused_by_their_headers(tmp_path, deep_files, kind, split):
    """Wherever they stand: more than what is decoded beforehand."""
    if kind == "array":
        deep = [datasets.Image().encode_example(np.asarray(Image.open(path))) for path in deep_files[0:3:2]]
    elif kind == "path":
        deep = [str(path) for path in deep_files]
    else:
        deep = [{"bytes": path.read_bytes(), "path": path.name} for path in deep_files]
    count, labels = len(deep), [i % 3 for i in range(200)]
    columns = table(labels).cast_column("image", datasets.Image(decode=False)).to_dict()
    columns["image"][3 : 3 + count] = deep
    odd = datasets.Dataset.from_dict(columns, features=FEATURES)
    splits = {"train": odd if split == "train" else table(labels), "validation": table(labels[:6])}
    if split == "validation":
        splits[split] = odd
    fields = {"dataset_name": parquet(tmp_path / "set", **splits)}
    if split == "unlabeled":
        fields["unlabeled_dataset_name"] = parquet(tmp_path / "more", train=odd)
    message = refusal(**fields)
    assert f"{count} of the 200 images" in message and "of mode F" in message and "np.uint8" in message
    assert {"bytes": "row 3 (sixteen.png)", "path": f"row 3 ({deep_files[0]})", "array": "row 3"}[kind] in message
    assert len(load(**fields, on_bad_image="skip").train) == 200


KINDS = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "IM"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_all_kinds_are_taken_from_a_data_set(kind):
    content = io.BytesIO()
    picture(1, 1).save(content, kind)
    images = [{"bytes": content.getvalue(), "path": None}] * 4
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 2}, features=FEATURES)
    check_stored_images(data, "image", "images", "stop")
    check_stored_images(data.select([3, 1]), "image", "images", "stop")


def test_the_rows_of_a_large_data_set_are_named():
    good, bad = encoded(picture(1, 1)), {0, 64, 511, 512, 1099}
    images = [{"bytes": b"none", "path": None} if row in bad else good for row in range(1100)]
    data = datasets.Dataset.from_dict({"image": images, "label": [0] * 1100}, features=FEATURES)
    for part, rows in ((data, bad), (data.select(range(1099, -1, -1)), {1099 - row for row in bad})):
        listing = ", ".join(f"row {row}" for row in sorted(rows))
        with pytest.raises(InputError, match=f"5 of the 1100 images .*: {listing}"):
            check_stored_images(part, "image", "images", "stop")
        check_stored_images(part, "image", "images", "skip")


def test_a_data_set_of_nothing_but_floats_cannot_be_skipped(tmp_path):
    images = [datasets.Image().encode_example(np.full((9, 9), i / 9, np.float32)) for i in range(9)]
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2] * 3}, features=FEATURES)
    path = parquet(tmp_path / "set", train=data)
    for on_bad_image in ("stop", "skip"):
        message = refusal(dataset_name=path, on_bad_image=on_bad_image)
        assert "9 of the 9 images" in message and ("--on_bad_image" in message) == (on_bad_image == "stop")


@pytest.mark.parametrize("split", ["train", "validation", "unlabeled"])
def test_images_of_data_sets_are_looked_into_as_far_as_is_asked_for(tmp_path, caplog, split):
    whole = table([i % 3 for i in range(200)])
    columns = table([i % 3 for i in range(200)]).cast_column("image", datasets.Image(decode=False)).to_dict()
    columns["image"][100]["bytes"] = encoded(noise(40, 40))["bytes"][:900]  # not one of the 64 that are decoded
    odd = datasets.Dataset.from_dict(columns, features=FEATURES)
    splits = {"train": odd if split == "train" else whole, "validation": odd if split == "validation" else whole}
    fields = {"dataset_name": parquet(tmp_path / "set", **splits)}
    if split == "unlabeled":
        fields["unlabeled_dataset_name"] = parquet(tmp_path / "more", train=odd)
    streams = [{"streaming": True, "images_per_epoch": 8}] if split == "validation" else []
    for options in ({}, *streams):
        for how in ("none", "headers"):
            assert load(**fields, **options, check_images=how).label_names == NAMES
        message = refusal(**fields, **options, check_images="all")
        assert "1 of the 200 images" in message and "1 damaged behind the header: row 100" in message
        caplog.clear()
        assert load(**fields, **options, check_images="all", on_bad_image="skip").label_names == NAMES
        assert "1 of the 200 images of the split" in caplog.text and "will be skipped: row 100" in caplog.text


def test_none_of_a_data_set_is_looked_at_where_that_is_asked_for(tmp_path, monkeypatch):
    broken = {"image": [{"bytes": b"nothing", "path": None}] * 30, "label": [0, 1, 2] * 10}
    path = parquet(tmp_path / "set", train=datasets.Dataset.from_dict(broken, features=FEATURES))
    assert len(load(dataset_name=path, check_images="none").train) == 27
    assert "30 of the 30" in refusal(dataset_name=path)


def test_a_missing_image_in_a_data_set_is_refused(tmp_path):
    columns = table([0, 1, 2] * 50).to_dict()
    columns["image"][71] = None
    data = datasets.Dataset.from_dict(columns, features=FEATURES)
    assert "1 of the 150 images" in (message := refusal(dataset_name=parquet(tmp_path / "set", train=data)))
    assert "row 71" in message


LEFT_BEHIND = ["Thumbs.db", "thumbs.db", ".DS_Store", "desktop.ini", "Desktop.ini", "._0.png", "ehthumbs.db", "Icon\r"]


def test_what_file_managers_leave_behind_is_no_image_and_no_error(tmp_path):
    path = class_folders(tmp_path / "photos", {"ape": 4, "bee": 4})
    for folder in (tmp_path / "photos", tmp_path / "photos" / "ape", tmp_path / "photos" / "bee"):
        for name in LEFT_BEHIND:
            (folder / name).write_bytes(b"\0nothing")
    for name in ("__MACOSX/ape", "@eaDir", ".ipynb_checkpoints", "bee/@eaDir", "bee/__MACOSX"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "4.jpg").write_bytes(b"nothing")
    (tmp_path / "photos" / "bee" / "4.png:Zone.Identifier").write_text("[ZoneTransfer]")
    data = load(train_dir=path, validation_dir=path, unlabeled_dir=path)
    assert data.label_names == ["ape", "bee"]
    for part in (data.train, data.validation, data.unlabeled):
        assert sorted(number for _, number in identities(part)) == list(range(8))
    (tmp_path / "photos" / "none").mkdir()
    (tmp_path / "photos" / "none" / "Thumbs.db").write_bytes(b"\0nothing")
    assert "without images" in refusal(train_dir=path)


def test_names_that_are_not_utf_8_are_refused_as_they_can_be_written(tmp_path):
    latin, good = os.fsdecode("café".encode("latin-1")), class_folders(tmp_path / "good", {"ape": 2, "bee": 2})
    fields = {"train_dir": good, "validation_dir": good, "unlabeled_dir": good}
    (tmp_path / "file").mkdir()
    (tmp_path / "class").mkdir()
    class_folders(tmp_path / "file", {"ape": 2, "bee": 2})
    picture(1, 7).save(tmp_path / "file" / "bee" / f"{latin}.png")
    class_folders(tmp_path / "class", {"ape": 2, latin: 2})
    class_folders(tmp_path / latin, {"ape": 2, "bee": 2})
    for folder in ("file", "class", latin):
        for option in fields:
            for on_bad_image in ("stop", "skip"):
                message = refusal(**{**fields, option: str(tmp_path / folder)}, on_bad_image=on_bad_image)
                assert "not UTF-8" in message and "caf\\xe9" in message and message.isprintable()
        assert "not UTF-8" in refusal(dataset_name=str(tmp_path / folder))
    umlauts = class_folders(tmp_path / "café", {"süß": 2, "bee": 2})
    assert load(train_dir=umlauts, validation_dir=umlauts).label_names == ["bee", "süß"]


# A folder above others


SPLITS = {
    ("train", "val", "test"): ("train", "val"),
    ("training", "validation"): ("training", "validation"),
    ("Train", "Valid", "Test"): ("Train", "Valid"),
    ("TRAIN", "dev"): ("TRAIN", "dev"),
    ("train2017", "val2017"): ("train2017", "val2017"),
    ("train_images", "test_images"): ("train_images", None),
    ("train",): ("train", None),
    ("train", "test", "extra"): ("train", None),
    ("train", "val", "annotations", "labels"): ("train", "val"),
    ("trn", "tst"): ("trn", None),
    ("seg_train", "seg_test", "seg_pred"): ("seg_train", None),
    ("pets-Train", "pets-Val"): ("pets-Train", "pets-Val"),
    ("train_1", "train_2", "test_1"): ("train_1", None),
}


@pytest.mark.parametrize("names", SPLITS)
def test_a_folder_above_splits_is_refused_with_the_likely_options(tmp_path, names):
    good = class_folders(tmp_path / "good", {"ape": 2, "bee": 2})
    for name in names:
        class_folders(tmp_path / "images" / name, {"ape": 3, "bee": 3})
    folder, (train, validation) = tmp_path / "images", SPLITS[names]
    message = refusal(train_dir=folder)
    assert message.endswith(
        f"give --train_dir {folder / train}" + (f" --validation_dir {folder / validation}" if validation else "")
    )
    assert refusal(train_dir=good, unlabeled_dir=folder).endswith(f"give --unlabeled_dir {folder / train}")
    message = refusal(train_dir=good, validation_dir=folder)
    assert message.endswith(f"give --validation_dir {folder / validation}" if validation else "the one that is meant")
    assert load(train_dir=folder / train, validation_dir=good).label_names == ["ape", "bee"]


def test_a_kaggle_folder_of_classes_beside_test_images_is_refused(tmp_path):
    class_folders(tmp_path / "images" / "train", {"ape": 3, "bee": 3})
    picture(0, 0).save(class_folders(tmp_path / "images", {"test": 5}) + "/test/more.png")
    assert f"--train_dir {tmp_path / 'images' / 'train'}" in refusal(train_dir=tmp_path / "images")


def test_splits_of_images_that_no_folder_sorts_are_no_classes(tmp_path):
    path = class_folders(tmp_path / "images", {"train": 4, "val": 4, "test": 4})
    good = class_folders(tmp_path / "good", {"ape": 2, "bee": 2})
    for option in ("train_dir", "validation_dir"):
        message = refusal(**{"train_dir": good, option: path})
        assert "test, train, val, by their names splits" in message
        assert f"--unlabeled_dir {tmp_path / 'images' / 'train'} and a teacher" in message
    assert len(load(train_dir=good, validation_dir=good, unlabeled_dir=path).unlabeled) == 12


@pytest.mark.parametrize(
    "names", [("train", "plane", "car"), ("train", "plane"), ("test", "train"), ("toy_plane", "toy_train")]
)
def test_classes_may_be_called_as_splits_are(tmp_path, names):
    path = class_folders(tmp_path / "vehicles", dict.fromkeys(names, 4))
    if "test" not in names:
        train = tmp_path / "vehicles" / next(name for name in names if name.endswith("train"))
        (train / "steam").mkdir()
        picture(9, 99).save(train / "steam" / "99.png")
    assert load(train_dir=path, validation_dir=path, unlabeled_dir=path).label_names == sorted(names)


def test_a_table_without_images_in_its_image_column_is_refused(tmp_path):
    data = table([0, 1, 2] * 4).to_dict()
    data["image"] = [{"bytes": b"no picture", "path": f"row{i}.png"} for i in range(12)]
    path = parquet(tmp_path / "set", train=datasets.Dataset.from_dict(data, features=FEATURES))
    message = refusal(dataset_name=path)
    assert "row 0" in message
    assert "row0.png" in message


def test_machines_wait_for_each_other_as_often_whichever_splits_they_have(tmp_path):
    calls = []

    def once_per_machine(function):
        calls.append(function())

    for name, splits in (("one", ["train"]), ("two", ["train", "validation"])):
        path = parquet(tmp_path / name, **{split: table([0, 1, 2] * 20) for split in splits})
        load_data(DataArguments(dataset_name=path), once_per_machine=once_per_machine)
        assert len(calls) == 1
        calls.clear()
