"""A folder in MNIST's format is a data set as others: every pixel, label and split, and nothing that is damaged."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from support.images import load, refusal

from hf_deit.commands.train import run
from hf_deit.data.idx import is_idx_folder, load_idx_folder
from hf_deit.data.parallel import call
from hf_deit.data.splits import load_image_split
from hf_deit.recipes.resolve import resolve_arguments

FASHION = [
    *("T - shirt / top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]
DIGITS = list("0123456789")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of its package dataset-fashion-mnist
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 7, 5), dtype=np.uint8)  # (N, height, width)


def labels_of(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8) % 10


def idx(array: np.ndarray) -> bytes:
    """As yann.lecun.com/exdb/mnist describes the format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def folder_of(folder: Path, *, suffix: str = "", dash: str = "-", **files: bytes | None) -> Path:
    """40 images to train on and 20 to test with; `files` replace their content, or leave them out."""
    content = {
        "train_images": idx(images_of(40)),
        "train_labels": idx(labels_of(40)),
        "t10k_images": idx(images_of(20, seed=1)),
        "t10k_labels": idx(labels_of(20)[::-1]),
    } | files
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        part, kind = name.split("_")
        if data is not None:
            path = folder / f"{part}-{kind}{dash}idx{3 if kind == 'images' else 1}-ubyte{suffix}"
            path.write_bytes(gzip.compress(data) if suffix else data)
    return folder


@pytest.mark.parametrize("form", [{}, {"suffix": ".gz"}, {"dash": "."}], ids=["as it is", "compressed", "with a dot"])
def test_every_pixel_and_label_is_there(form, tmp_path):
    splits = load_idx_folder(str(folder_of(tmp_path / "mnist", **form)))
    assert {name: len(split) for name, split in splits.items()} == {"train": 40, "test": 20}
    for split, images, labels in (
        (splits["train"], images_of(40), labels_of(40)),
        (splits["test"], images_of(20, seed=1), labels_of(20)[::-1]),
    ):
        assert np.array_equal(np.stack([np.asarray(image) for image in split["image"]]), images)
        assert split["label"] == labels.tolist()
        assert split.features["label"].names == DIGITS
        assert split.cache_files  # memory-mapped from there


def test_an_unpacked_file_beside_the_one_it_was_unpacked_from_is_taken_once(tmp_path):
    folder = folder_of(folder_of(tmp_path / "raw"), suffix=".gz")
    assert len(list(folder.iterdir())) == 8
    assert len(load_idx_folder(str(folder))["train"]) == 40


def test_a_run_trains_on_a_part_of_train_and_validates_with_the_rest_and_never_with_test(tmp_path):
    folder = folder_of(tmp_path / "mnist", train_images=idx(images_of(100)), train_labels=idx(labels_of(100)))
    data = load(dataset_name=str(folder))
    assert (len(data.train), len(data.validation), data.label_names) == (90, 10, DIGITS)
    used = np.stack([np.asarray(image) for part in (data.train, data.validation) for image in part["image"]])
    assert sorted(map(bytes, used)) == sorted(map(bytes, images_of(100)))
    kept = data.with_labels_kept(20, seed=0)
    assert (len(kept.train), len(kept.unlabeled)) == (20, 70)
    assert sorted(kept.train["label"]) == sorted([*range(10)] * 2)


def test_the_test_part_may_be_asked_for_and_may_be_missing(tmp_path):
    folder = str(folder_of(tmp_path / "mnist"))
    assert len(load(dataset_name=folder, validation_split="test").validation) == 20
    alone = str(folder_of(tmp_path / "alone", t10k_images=None, t10k_labels=None))
    assert len(load_idx_folder(alone)["train"]) == 40
    assert f"the data set {alone!r} has no split 'test'; it has train" in refusal(
        dataset_name=alone, validation_split="test"
    )


def test_its_images_may_be_the_unlabelled_ones(tmp_path):
    folder = str(folder_of(tmp_path / "mnist"))
    checks = {"on_bad_image": "stop", "check_images": "headers", "once_per_machine": call}
    assert load_image_split(folder, None, "test", **checks).column_names == ["image"]


def test_changed_files_are_read_anew(tmp_path):
    folder = folder_of(tmp_path / "mnist")
    assert load_idx_folder(str(folder))["train"]["label"][0] == 0
    folder_of(folder, train_labels=idx(labels_of(40)[::-1]))
    assert load_idx_folder(str(folder))["train"]["label"][0] == 9


@pytest.mark.parametrize(
    ("name", "first", "names"),
    [
        ("FashionMNIST/raw", [0], FASHION),
        ("fashion-mnist", [0], FASHION),
        ("fashion-mnist/mnist", [0], DIGITS),
        ("mnist", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9, 1, 0, 6, 4, 3, 1, 4, 8], FASHION),
        ("mnist", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, 2, 8, 6, 9, 4, 0, 9, 1], DIGITS),
    ],
    ids=["torchvision's folder", "Debian's", "another", "Fashion-MNIST's labels", "MNIST's labels"],
)
def test_fashion_mnist_has_the_names_that_it_has_on_the_hub(name, first, names, tmp_path):
    labels = labels_of(40)
    labels[: len(first)] = first
    folder = folder_of(tmp_path / name, train_labels=idx(labels))
    assert load_idx_folder(str(folder))["train"].features["label"].names == names


def test_other_folders_are_none(tmp_path):
    (tmp_path / "emnist-letters-train-images-idx3-ubyte.gz").touch()
    (tmp_path / "train").mkdir()
    assert not is_idx_folder(str(tmp_path))
    assert not is_idx_folder("zalando-datasets/fashion_mnist")


BAD = {
    "labels missing": ({"train_labels": None}, "has train-images-idx3-ubyte without the labels"),
    "test images missing": ({"t10k_images": None}, "has t10k-labels-idx1-ubyte without the images"),
    "images in place of labels": (
        {"train_labels": idx(images_of(40))},
        f"{TRAIN_LABELS}' does not hold labels in MNIST's format: it begins with 00 00 08 03, expected 00 00 08 01",
    ),
    "labels in place of images": (
        {"train_images": idx(labels_of(40))},
        "begins with 00 00 08 01, expected 00 00 08 03",
    ),
    "another file": ({"train_images": b"<!DOCTYPE html>"}, "it begins with 3c 21 44 4f, expected 00 00 08 03"),
    "an empty file": ({"t10k_labels": b""}, "it begins with nothing, expected 00 00 08 01"),
    "a header cut off": ({"train_images": idx(images_of(40))[:10]}, "and 3 sizes"),
    "images cut off": (
        {"train_images": idx(images_of(40))[:-1]},
        f"{TRAIN_IMAGES}' is cut off: its sizes are (40, 7, 5), which takes 1416 bytes, but it has 1415",
    ),
    "test labels cut off": ({"t10k_labels": idx(labels_of(20))[:-3]}, f"{TEST_LABELS}' is cut off"),
    "more than it says": ({"t10k_images": idx(images_of(20)) + b"\0"}, f"{TEST_IMAGES}' is too long"),
    "sizes beyond memory": (
        {"train_images": struct.pack(">4I", 0x803, *[2**32 - 1] * 3)},
        f"which takes {(2**32 - 1) ** 3 + 16} bytes, but it has 16",
    ),
    "no rows": ({"t10k_labels": idx(labels_of(0))}, f"{TEST_LABELS}' holds no labels: its sizes are (0,)"),
    "no pixels": ({"train_images": idx(images_of(40)[:, :0])}, "holds no images: its sizes are (40, 0, 5)"),
    "fewer labels than images": (
        {"train_labels": idx(labels_of(39))},
        f"{TRAIN_IMAGES}' has 40 images, but ",
    ),
    "a label out of range": (
        {"t10k_labels": idx(np.where(np.arange(20) == 7, 200, labels_of(20)).astype(np.uint8))},
        "labels must lie in [0, 10), but number 7 in ",
    ),
    "gzip cut off": ({"train_images": gzip.compress(idx(images_of(40)))[:-20]}, "cannot read "),
    "gzip with a wrong byte": (
        {
            "train_images": (lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:])(
                gzip.compress(idx(images_of(40)))
            )
        },
        f"{TRAIN_IMAGES}' (",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_and_foreign_files_are_refused(name, tmp_path):
    files, message = BAD[name]
    folder = folder_of(tmp_path / "mnist", **files)
    for _ in range(2):  # nothing of it is in the cache
        assert message in refusal(dataset_name=str(folder))


def test_the_recipe_for_fashion_mnist_trains_teacher_and_student_on_it(tmp_path):
    train = {"train_images": idx(images_of(100)), "train_labels": idx(labels_of(100))}
    folder = folder_of(tmp_path / "FashionMNIST" / "raw", suffix=".gz", **train)
    teacher = tmp_path / "teacher.yaml"
    short = {"max_steps": 2, "per_device_train_batch_size": 8, "warmup_steps": 0, "use_cpu": True}
    teacher.write_text(json.dumps({"base": "fashion_mnist_teacher", **short}))
    options = {
        **short,
        "dataset_name": folder,
        "teacher_recipe": teacher,
        "labels_kept": 30,
        "output_dir": tmp_path / "run",
    }
    options |= {"dataloader_num_workers": 0, "dataloader_persistent_workers": False}
    run(resolve_arguments(["--recipe", "fashion_mnist", *(f"--{name}={value}" for name, value in options.items())]))
    for model in (tmp_path / "run", tmp_path / "run" / "teacher"):
        config = json.loads((model / "config.json").read_text())
        assert list(config["id2label"].values()) == FASHION
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_images"] == 10


def test_options_that_do_nothing_are_refused(tmp_path):
    folder = str(folder_of(tmp_path / "mnist"))
    assert "leave out --dataset_config_name" in refusal(dataset_name=folder, dataset_config_name="default")
    assert "leave out --streaming" in refusal(dataset_name=folder, streaming=True)
    assert "has no split 'valid'; it has train, test" in refusal(dataset_name=folder, validation_split="valid")


def test_options_for_folders_of_images_name_the_one_that_takes_it(tmp_path):
    folder = str(folder_of(tmp_path / "mnist"))
    assert "give it as --dataset_name" in refusal(train_dir=folder)
    assert "give it as --unlabeled_dataset_name" in refusal(unlabeled_dir=folder, label_names=DIGITS)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"Debian's package dataset-fashion-mnist is not in {DEBIAN}")
def test_fashion_mnist_of_debian():
    splits = load_idx_folder(str(DEBIAN))
    assert {name: len(split) for name, split in splits.items()} == {"train": 60_000, "test": 10_000}
    for split in splits.values():
        assert np.bincount(split["label"]).tolist() == [len(split) // 10] * 10
        assert (split[0]["image"].mode, split[0]["image"].size) == ("L", (28, 28))
        assert split.features["label"].names == FASHION
        assert split[0]["label"] == 9  # both begin with an ankle boot
