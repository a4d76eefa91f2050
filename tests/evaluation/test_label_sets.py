"""Contract: labels are read from the files that are published for ImageNet's validation set, and from plain tables.

Small files of the same form stand for them; accuracies by several right labels are compared with timm's own code.
"""

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from support.images import NAMES, class_folders, parquet, picture, table
from timm.data.real_labels import RealLabelsImagenet

from hf_deit.errors import InputError
from hf_deit.evaluation.images.images import EvaluationImages, load_evaluation_images
from hf_deit.evaluation.images.label_sets import imagenet_names, imagenet_synsets

SYNSETS, WORDS = imagenet_synsets(), list(imagenet_names())
LABELS = [7, 999, 0, 388, 388, 12]  # of six images


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def load(folder: Path | str, *, labels: list[str] = WORDS, **fields: Any) -> EvaluationImages:
    names = ("dataset_name", "dataset_config_name", "dataset_revision", "image_column_name", "label_column_name")
    names += ("label_file", "label_set", "class_indices")
    usual = {"images_dir": str(folder), "split": None, "on_bad_image": "stop", "check_images": "none", "model": ""}
    fields = {name: value if value is None else str(value) for name, value in fields.items()}
    arguments = SimpleNamespace(**{**dict.fromkeys(names), **usual, **fields})
    return load_evaluation_images(arguments, model_labels=lambda: labels)


def refusal(folder: Path | str, **fields: Any) -> str:
    with pytest.raises(InputError) as error:
        load(folder, **fields)
    return str(error.value)


def validation_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


@pytest.fixture
def flat(tmp_path) -> Path:
    """Six validation images, as they are published."""
    folder = tmp_path / "val"
    folder.mkdir()
    for number in range(1, 7):
        picture(0, number).save(folder / validation_name(number))
    return folder


@pytest.fixture
def in_synsets(tmp_path) -> Path:
    """The same in the folders of their labels."""
    folder = tmp_path / "val_synsets"
    for number, label in enumerate(LABELS, start=1):
        (folder / SYNSETS[label]).mkdir(parents=True, exist_ok=True)
        picture(0, number).save(folder / SYNSETS[label] / validation_name(number))
    return folder


def numbers(images: EvaluationImages) -> list[int]:
    return [int(Path(images.name(index)).stem.rpartition("_")[2]) for index in range(len(images))]


def by_number(images: EvaluationImages) -> list[int]:
    """The labels of the images in the order of their numbers."""
    return [int(value) for _, value in sorted(zip(numbers(images), images.labels.values, strict=True))]


# Files of labels


def written(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


NAMED = [(validation_name(number), label) for number, label in enumerate(LABELS, start=1)]
FILES = {
    "synsets.txt": [SYNSETS[label] for label in LABELS],
    "indices.txt": LABELS,
    "val.txt": [f"{name} {label}" for name, label in NAMED],
    "table.csv": ["path,label", *(f"{name},{SYNSETS[label]}" for name, label in reversed(NAMED))],
    "bare.csv": [f"{name},{label}" for name, label in NAMED],
    "words.csv": ["label,file_name", *(f'"{WORDS[label]}",{name}' for name, label in NAMED)],
    "LOC_val_solution.csv": [
        "ImageId,PredictionString",
        *(f"{name[:-5]},{SYNSETS[label]} 1 2 3 4 {SYNSETS[label]} 5 6 7 8 " for name, label in NAMED),
    ],
    "list.json": [json.dumps(LABELS)],
    "mapping.json": [json.dumps({name: SYNSETS[label] for name, label in NAMED})],
}


@pytest.mark.parametrize("file", FILES)
def test_the_validation_sets_labels_are_read_as_they_are_published(tmp_path, flat, file):
    images = load(flat, label_file=written(tmp_path / file, FILES[file]))
    assert by_number(images) == LABELS and images.labels.names == imagenet_names()
    assert images.labels.accepted is None and images.source["label_file"] == file


def test_the_development_kits_numbers_are_taken_by_its_own_table_alone(tmp_path, flat):
    """They begin at 1, in an order that no model has."""
    kit = written(tmp_path / "ILSVRC2012_validation_ground_truth.txt", [1 + label for label in LABELS])
    assert "meta.mat" in refusal(flat, label_file=kit)
    meta = np.zeros(1000, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    for place in range(1000):
        meta[place] = (place + 1, SYNSETS[999 - place], 0)
    savemat(tmp_path / "meta.mat", {"synsets": meta.reshape(-1, 1)})
    assert by_number(load(flat, label_file=kit)) == [999 - label for label in LABELS]
    plain = written(tmp_path / "plain.txt", [1 + label for label in LABELS])
    assert "development kit" in refusal(flat, label_file=plain)


def test_an_empty_label_is_none(tmp_path, flat):
    lines = ["path,label", *(f"{name},{label if label else ''}" for name, label in NAMED)]
    images = load(flat, label_file=written(tmp_path / "some.csv", lines))
    assert by_number(images) == [label or -1 for label in LABELS]
    assert images.source["num_labelled"] == 5


def test_paths_are_of_the_folder_where_names_repeat(tmp_path):
    folder = class_folders(tmp_path / "photos", {"ape": 1, "bee": 1, "cat": 1})
    (tmp_path / "photos" / "bee" / "1.png").rename(tmp_path / "photos" / "bee" / "0.png")
    file = written(tmp_path / "labels.csv", ["ape/0.png,cat", "cat/2.png,bee", "bee/0.png,ape"])
    assert load(folder, labels=NAMES, label_file=file).labels.values.tolist() == [2, 0, 1]
    written(file, ["0.png,cat", "2.png,bee", "1.png,ape"])
    assert "alone has 1.png, and it lacks others of the same name" in refusal(folder, labels=NAMES, label_file=file)


@pytest.mark.parametrize(
    "names",
    [
        ("{}", "\n"),
        ("./{}", "\r\n"),
        ("val/{}", "\n"),
        ("/data/val/{}", "\n"),
        (r"C:\data\{}", "\r\n"),
    ],
    ids=["here", "dot", "above", "whole", "Windows"],
)
def test_images_below_folders_that_are_no_classes_are_found_by_their_paths(tmp_path, names):
    form, end = names
    images = {"ü/0.png": "cat", "u/v/0.png": "bee", "1.png": "ape"}
    for number, path in enumerate(sorted(images)):
        file = tmp_path / "photos" / unicodedata.normalize("NFD", path)
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(0, number).save(file)
    lines = [form.format(path.replace("/", "\\") if ":" in form else path) for path in images]
    rows = map(";".join, zip(lines, images.values(), strict=True))
    (tmp_path / "labels.csv").write_text("\ufeff" + end.join(["path;label", *rows]), newline="")
    found = load(tmp_path / "photos", labels=NAMES, label_file=tmp_path / "labels.csv")
    shown = {Path(found.name(row)).relative_to(tmp_path / "photos").as_posix(): row for row in range(3)}
    labels = {unicodedata.normalize("NFC", path): NAMES[found.labels.values[row]] for path, row in shown.items()}
    assert labels == images


def test_a_list_of_labels_with_blanks_and_commas_is_no_table(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        picture(0, number).save(folder / f"{number}.png")
    labels = ["T - shirt / top", "Bag", "great white shark, white shark"]
    for lines in ([2, 2, 2], [1, 0, 0], [0, 1, 2]):
        for head in ([], ["label"]):
            file = written(tmp_path / "labels.txt", [*head, *(labels[line] for line in lines)])
            assert load(folder, labels=labels, label_file=file).labels.values.tolist() == lines
    file.write_text('path,label\n0.png,"' + "x" * 200_000)
    assert "is no table" in refusal(folder, labels=labels, label_file=file)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (LABELS[:5], ["5 labels", "6 images"]),
        ([*LABELS, 1], ["7 labels", "6 images"]),
        (
            [*(f"{name} {label}" for name, label in NAMED[:5]), "other.JPEG 3"],
            ["alone has other.JPEG", "lacks ILSVRC"],
        ),
        ([*(f"{name} {label}" for name, label in NAMED[:5]), f"{NAMED[0][0]} 3"], ["has images twice: ILSVRC"]),
        ([*LABELS[:5], 1001], ["none of the 1,000 classes", "1001", "[0, 1000)"]),
        ([*LABELS[:5], "-2"], ["none of the 1,000 classes", "-2", "[0, 1000)"]),
        ([*(SYNSETS[label] for label in LABELS[:5]), "n00000000"], ["none of the 1,000 classes", "n00000000"]),
        ([*LABELS[:5], "gold-fish"], ["gold-fish"]),
        ([], ["is empty"]),
        (["[1, 2"], ["is no JSON"]),
        (['[[1], {"a": 2}]'], ["expected a label"]),
        (["path,label", *(f"{name}" for name, _ in NAMED)], ["has no label"]),
    ],
    ids=lambda value: value[0] if value and isinstance(value[0], str) and " " in value[0] else "",
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, flat, lines, words):
    message = refusal(
        flat, label_file=written(tmp_path / "labels.csv" if "," in str(lines[:1]) else tmp_path / "labels.txt", lines)
    )
    assert all(word in message for word in words), message


def test_a_label_that_is_spelt_otherwise_is_refused_with_the_nearest(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(0, 0).save(folder / "0.png")
    message = refusal(folder, labels=NAMES, label_file=written(tmp_path / "labels.csv", ["0.png,bees"]))
    assert "none of the 3 classes" in message and "did you mean 'bee'?" in message
    assert "no file" in refusal(folder, labels=NAMES, label_file=tmp_path / "absent.csv")


# ImageNet-ReaL


REAL = [[7, 8], [], [0], [388, 999, 1], [3], [12]]


@pytest.mark.parametrize("layout", ["flat", "in_synsets"])
def test_several_right_labels_count_as_timms_code_counts_them(tmp_path, layout, request):
    folder, file = request.getfixturevalue(layout), tmp_path / "real.json"
    file.write_text(json.dumps(REAL))
    images = load(folder, label_file=file, label_set="real")
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    for row, number in enumerate(numbers(images)):  # some of the answers are right
        if number in (1, 3, 4):
            logits[row, REAL[number - 1][-1]] = 10 if number < 4 else logits[row].topk(3).values[2] + 1e-3
        if number == 2:
            logits[row, LABELS[1]] += 10  # by the label that it had, which counts no more
    timms = RealLabelsImagenet([images.name(index) for index in range(6)], real_json=str(file))
    timms.add_result(logits)
    ranked = logits.topk(5).indices.numpy()
    right, labelled = images.labels.are_right(ranked), images.labels.is_labelled
    assert labelled.sum() == 5 and images.source["num_labelled"] == 5
    assert right[labelled][:, 0].mean() * 100 == timms.get_accuracy(1)
    assert right[labelled].any(axis=1).mean() * 100 == timms.get_accuracy(5)
    assert 0 < timms.get_accuracy(1) < timms.get_accuracy(5) < 100
    assert by_number(images) == [7, -1, 0, 388, 3, 12]
    assert images.labels.accepted.dtype == bool and images.labels.accepted.nnz == 8
    some = images.without(np.array([True, False, False, True, False, False]))
    assert np.array_equal(some.labels.are_right(ranked[[1, 2, 4, 5]]), right[[1, 2, 4, 5]])
    assert images.words.startswith("6 images in the folder") and "ImageNet-ReaL's labels" in images.words


def test_many_right_labels_count_as_timms_code_counts_them(tmp_path):
    generator = np.random.default_rng(0)
    real = [sorted(generator.choice(1000, generator.integers(0, 5), replace=False).tolist()) for _ in range(300)]
    folder, file = tmp_path / "val", tmp_path / "real.json"
    folder.mkdir()
    file.write_text(json.dumps(real))
    for number in range(1, 301):
        Image.new("L", (1, 1)).save(folder / validation_name(number))
    images = load(folder, label_file=file, label_set="real")
    logits = generator.normal(size=(300, 1000))
    for row, classes in enumerate(real):
        logits[row, classes] += 2
    timms = RealLabelsImagenet([images.name(index) for index in range(300)], real_json=str(file))
    timms.add_result(torch.from_numpy(logits))
    ranked = np.argsort(-logits, axis=1)[:, :5]
    right, labelled = images.labels.are_right(ranked), images.labels.is_labelled
    by_hand = [bool(set(best[:1]) & set(classes)) for best, classes in zip(ranked, real, strict=True) if classes]
    assert right[labelled][:, 0].mean() * 100 == timms.get_accuracy(1) == np.mean(by_hand) * 100
    assert right[labelled].any(axis=1).mean() * 100 == timms.get_accuracy(5)


def test_images_of_other_names_cannot_have_these_labels(tmp_path, flat):
    (flat / validation_name(6)).rename(flat / "six.JPEG")
    file = tmp_path / "real.json"
    file.write_text(json.dumps(REAL))
    assert "six.JPEG" in refusal(flat, label_file=file, label_set="real")
    (flat / "six.JPEG").rename(flat / validation_name(9))
    assert "the numbers 1 to 9" in refusal(flat, label_file=file, label_set="real")
    file.write_text(json.dumps(REAL[:5]))
    assert "has 5 labels, but there are 6 images" in refusal(flat, label_file=file, label_set="real")


# ImageNet's classes by synset and by number


def test_synset_folders_are_classes_by_their_index(in_synsets):
    images = load(in_synsets)
    assert by_number(images) == LABELS and images.labels.names == imagenet_names()
    assert by_number(load(in_synsets, labels=list(SYNSETS))) == LABELS
    own = sorted({SYNSETS[label] for label in LABELS})  # of a model that has learnt these synsets alone
    images = load(in_synsets, labels=own)
    assert images.labels.names == tuple(own) and by_number(images) == [own.index(SYNSETS[label]) for label in LABELS]


def test_numbered_folders_are_classes_by_number_and_not_by_text(tmp_path):
    folder = tmp_path / "imagenetv2-matched-frequency-format-val"
    for number in range(1000):
        (folder / str(number)).mkdir(parents=True)
        if number < 12:
            picture(0, number).save(folder / str(number) / f"{number}.png")
    for number in range(12, 1000):
        (folder / str(number) / f"{number}.png").symlink_to(folder / "0" / "0.png")
    images = load(folder)
    shown = [int(Path(images.name(index)).parent.name) for index in range(len(images))]
    assert images.labels.values.tolist() == shown and sorted(shown) == list(range(1000)) != shown
    assert images.labels.names == imagenet_names()


def test_some_numbered_folders_are_classes_by_number_where_that_is_said(tmp_path):
    folder = tmp_path / "v2"
    for number in (2, 10, 999):
        (folder / str(number)).mkdir(parents=True)
        picture(0, number).save(folder / str(number) / "0.png")
    assert load(folder, label_set="v2").labels.values.tolist() == [10, 2, 999]
    assert "classes that the model has not: 10, 2, 999" in refusal(folder)


def test_numbers_in_a_data_set_are_classes_by_number(tmp_path):
    data = table([10, 2, 2], [str(number) for number in sorted(map(str, range(1000)))], classes=[0, 0, 0])
    names = data.features["label"].names
    images = load("", images_dir=None, dataset_name=parquet(tmp_path / "v2", test=data))
    assert images.labels.values.tolist() == [int(names[10]), int(names[2]), int(names[2])] != [10, 2, 2]


# Subsets by a list


@pytest.mark.parametrize("form", ["json", "txt", "synsets"])
def test_a_list_says_which_outputs_are_the_classes_of_a_subset(tmp_path, form):
    places = [999, 5, 207]
    items = [SYNSETS[place] for place in places] if form == "synsets" else places
    file = tmp_path / "indices"
    file.write_text(json.dumps(items) if form == "json" else "\n".join(map(str, items)))
    images = load(class_folders(tmp_path / "subset", {"ape": 1, "bee": 1, "cat": 2}), class_indices=file)
    assert images.class_indices.tolist() == places and images.labels.names == tuple(NAMES)
    assert images.labels.values.tolist() == [0, 1, 2, 2]


def test_synsets_find_their_folders_in_any_order(tmp_path, in_synsets):
    own = sorted({SYNSETS[label] for label in LABELS})
    file = written(tmp_path / "wnids.txt", own[::-1])
    images = load(in_synsets, class_indices=file)
    assert [SYNSETS[place] for place in images.class_indices] == own == list(images.labels.names)
    written(file, [*own[1:], SYNSETS[1]])
    message = refusal(in_synsets, class_indices=file)
    assert "not the same synsets" in message and SYNSETS[1] in message


def test_a_list_and_a_file_of_labels_go_together(tmp_path, flat):
    indices = written(tmp_path / "indices.txt", sorted(set(LABELS)))
    file = written(tmp_path / "labels.csv", [f'{name},"{WORDS[label]}"' for name, label in NAMED])
    images = load(flat, class_indices=indices, label_file=file)
    assert images.labels.names == tuple(WORDS[label] for label in sorted(set(LABELS)))
    expected = [sorted(set(LABELS)).index(label) for label in LABELS]
    assert by_number(images) == expected
    for labels in (LABELS, [SYNSETS[label] for label in LABELS]):  # the model's numbers, not those of the subset
        assert by_number(load(flat, class_indices=indices, label_file=written(file, labels))) == expected
    assert "indices are 0, 7" in refusal(flat, class_indices=indices, label_file=written(file, [1, *LABELS[1:]]))


def test_a_list_of_all_classes_names_them_as_the_model_does(tmp_path):
    folder = class_folders(tmp_path / "subset", {"hund": 1, "katze": 2, "maus": 1})
    file = written(tmp_path / "list.txt", [1, 0, 2])
    images = load(folder, labels=["cat", "dog", "mouse"], class_indices=file)
    assert images.labels.names == ("cat", "dog", "mouse") and images.class_indices is None
    assert images.labels.values.tolist() == [1, 0, 0, 2]
    unnamed = load(folder, labels=["LABEL_0", "LABEL_1", "LABEL_2"], class_indices=file)
    assert unnamed.labels.names == ("hund", "katze", "maus") and unnamed.class_indices.tolist() == [1, 0, 2]
    ours = load(folder, labels=["maus", "hund", "katze"], class_indices=file)  # names say it better
    assert ours.labels.names == ("hund", "katze", "maus")


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ("1 2", ["are 2", "3 classes"]),
        ("1 2 2", ["twice: 2"]),
        ("1 2 x", ["'x'", "expected indices"]),
        ("1 2 n01440764", ["synsets but for 1, 2"]),
        ("n01440764 n01443537 n01440765", ["did you mean", "n01440764"]),
        ('{"a": 1}', ["holds no list"]),
        ("[1, 2,]", ["is no JSON"]),
        ("\n", ["holds no list of indices, but nothing"]),
        ("7", ["are 1", "3 classes"]),
        ("[1, 2, 3.5]", ["holds no list"]),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, items, words):
    folder = class_folders(tmp_path / "subset", {"ape": 1, "bee": 1, "cat": 1})
    (tmp_path / "list.txt").write_text(items)
    message = refusal(folder, class_indices=tmp_path / "list.txt")
    assert all(word in message for word in words), message


def test_a_model_by_synsets_has_its_own_names_for_the_classes(tmp_path, flat, in_synsets):
    model, file = list(SYNSETS[::-1]), written(tmp_path / "synsets.txt", FILES["synsets.txt"])
    for fields in ({"folder": flat, "label_file": file}, {"folder": in_synsets}):
        images = load(labels=model, **fields)
        assert [images.labels.names[place] for place in by_number(images)] == [SYNSETS[label] for label in LABELS]
    (tmp_path / "v2" / "10").mkdir(parents=True)
    picture(0, 0).save(tmp_path / "v2" / "10" / "0.png")
    images = load(tmp_path / "v2", labels=model, label_set="v2")
    assert images.labels.names == SYNSETS and images.labels.values.tolist() == [10]
