"""Contract: every option about the images does something beside each source of images, or is refused there."""

import dataclasses
from typing import Any

import pytest
from support.images import class_folders, identities, load, parquet, picture, table

from hf_deit.data.arguments import DataArguments, why_unused
from hf_deit.data.image_data import ImageData
from hf_deit.data.streams import ImageStream
from hf_deit.errors import InputError

FIELDS = [field.name for field in dataclasses.fields(DataArguments)]
LABELS = [index % 3 for index in range(30)]
# What an option is given as: another value than the default and than the sources' own.
GIVEN = {
    "dataset_name": "WHOLE",
    "dataset_config_name": "other",
    "dataset_revision": "v2",
    "train_split": "test",
    "validation_split": "test",
    "test_split": "test",
    "image_column_name": "photo",
    "label_column_name": "kind",
    "train_dir": "FOLDER",
    "validation_dir": "VALIDATION",
    "test_dir": "VALIDATION",
    "unlabeled_dir": "MORE",
    "unlabeled_dataset_name": "WHOLE",
    "unlabeled_dataset_revision": "v2",
    "unlabeled_split": "test",
    "labels_kept": 12,
    "streaming": True,
    "images_per_epoch": 12,
    "shuffle_buffer_size": 3,
    "validation_fraction": 0.3,
    "validation_seed": 7,
}
SOURCES = {
    "digits": {"dataset_name": "sklearn:digits"},
    "folders": {"train_dir": "FOLDER"},
    "folders to train and to validate with": {"train_dir": "FOLDER", "validation_dir": "VALIDATION"},
    "data set": {"dataset_name": "WHOLE"},
    "data set with a split to validate with": {"dataset_name": "SPLIT"},
    "data set, its split named": {"dataset_name": "SPLIT", "validation_split": "validation"},
    "stream": {"dataset_name": "SPLIT", "streaming": True, "images_per_epoch": 9},
    "unlabelled folder alone": {"unlabeled_dir": "MORE"},
    "unlabelled folder alone, validated": {"unlabeled_dir": "MORE", "validation_dir": "VALIDATION"},
    "unlabelled data set alone": {"unlabeled_dataset_name": "WHOLE"},
    "folders beside an unlabelled folder": {"train_dir": "FOLDER", "unlabeled_dir": "MORE"},
    "folders beside an unlabelled data set": {"train_dir": "FOLDER", "unlabeled_dataset_name": "WHOLE"},
    "digits beside an unlabelled data set": {"dataset_name": "sklearn:digits", "unlabeled_dataset_name": "WHOLE"},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        (folder / "more").mkdir()
        for number in range(4):
            picture(0, 900 + number).save(folder / "more" / f"{number}.png")
        yield {
            "WHOLE": parquet(folder / "whole", train=table(LABELS), test=table(LABELS[:9], numbers=range(100, 109))),
            "SPLIT": parquet(
                folder / "split",
                train=table(LABELS),
                validation=table(LABELS[:9], numbers=range(200, 209)),
                test=table(LABELS[:9], numbers=range(100, 109)),
            ),
            "FOLDER": class_folders(folder / "train", {"ape": 10, "bee": 10, "cat": 10}),
            "VALIDATION": class_folders(folder / "val", {"ape": 2, "bee": 2, "cat": 2}, first=300),
            "MORE": str(folder / "more"),
        }


def contents(data: ImageData) -> list[Any]:
    def shown(part: Any) -> Any:
        if isinstance(part, ImageStream):
            images = sorted(image["bytes"] for image, _ in part.read(0, 0, 1))
            return part.images_per_epoch, part.shuffle_buffer_size, images
        return part if part is None else identities(part)

    return [shown(data.train), shown(data.validation), data.label_names, shown(data.unlabeled), shown(data.test)]


def loaded(options: dict[str, Any], places: dict[str, str]) -> list[Any]:
    """What a run has of these options; the message, where they are refused."""
    options = {name: places.get(value, value) for name, value in options.items()}
    try:
        data = load(label_names=["ape", "bee", "cat"], **options)
        return contents(data.with_labels_kept(options.get("labels_kept"), seed=0))
    except InputError as error:
        return [str(error)]


@pytest.mark.parametrize("source", SOURCES)
def test_every_option_is_used_or_refused(places, source):
    assert list(GIVEN) == FIELDS
    given = SOURCES[source]
    usual = loaded(given, places)
    assert len(usual) == 5, usual
    for name in FIELDS:
        if name in given:
            continue
        outcome = loaded({**given, name: GIVEN[name]}, places)
        assert outcome != usual, f"--{name} does nothing beside {source}, without a word"


REFUSED = [
    ({"train_dir": "FOLDER", "validation_split": "test"}, r"--validation_split .*--train_dir .*give --validation_dir"),
    ({"train_dir": "FOLDER", "label_column_name": "x"}, "--label_column_name .*the folders' names are the labels"),
    ({"train_dir": "FOLDER", "dataset_config_name": "x"}, "--dataset_config_name .*--train_dir .*leave it out"),
    ({"train_dir": "FOLDER", "train_split": "test"}, "--train_split .*--train_dir"),
    ({"train_dir": "FOLDER", "dataset_revision": "v2"}, "--dataset_revision is of a data set on the Hub"),
    ({"train_dir": "FOLDER", "streaming": True}, "streaming needs a --dataset_name .*--train_dir"),
    ({"train_dir": "FOLDER", "shuffle_buffer_size": 5}, "--shuffle_buffer_size is for --streaming"),
    (
        {"train_dir": "FOLDER", "validation_dir": "VALIDATION", "validation_fraction": 0.2},
        "--validation_fraction .*--validation_dir .* is given, so drop one",
    ),
    ({"dataset_name": "sklearn:digits", "label_column_name": "x"}, "--label_column_name .*sklearn:digits: leave it"),
    (
        {"dataset_name": "sklearn:digits", "validation_fraction": 0.2},
        "--validation_fraction .*360 images of their own",
    ),
    ({"dataset_name": "sklearn:digits", "streaming": True}, "streaming needs a --dataset_name for load_dataset"),
    ({"dataset_name": "WHOLE", "dataset_revision": "v2"}, "--dataset_revision is of a data set on the Hub"),
    (
        {"dataset_name": "SPLIT", "validation_fraction": 0.2},
        "--validation_fraction .*has the split 'validation': leave it at its default, 0.1",
    ),
    ({"dataset_name": "SPLIT", "validation_seed": 3}, "--validation_seed .*has the split 'validation'"),
    (
        {"dataset_name": "SPLIT", "validation_split": "test", "validation_seed": 3},
        "--validation_seed .*--validation_split 'test' is given",
    ),
    (
        {"unlabeled_dir": "MORE", "unlabeled_split": "test"},
        "--unlabeled_split is of the data set that --unlabeled_data",
    ),
    ({"unlabeled_dir": "MORE", "validation_split": "test"}, "--validation_split .*give --validation_dir"),
    ({"unlabeled_dir": "MORE", "labels_kept": 5}, "labels_kept needs labelled training images"),
    ({"train_dir": "FOLDER", "unlabeled_split": "test"}, "--unlabeled_split .*leave it out"),
    ({"train_dir": "FOLDER", "test_split": "test"}, "--test_split .*--train_dir .*give --test_dir"),
    ({"dataset_name": "SPLIT", "test_dir": "VALIDATION"}, "--test_dir .*name a split of it with --test_split"),
    ({"dataset_name": "sklearn:digits", "test_split": "test"}, "--test_split .*all that is held out of them"),
    ({"unlabeled_dir": "MORE", "test_split": "test"}, "--test_split .*give --test_dir"),
    ({"unlabeled_dataset_name": "WHOLE", "unlabeled_dataset_revision": "v2"}, "--unlabeled_dataset_revision .*Hub"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: ", ".join(value)[:60])
def test_a_refusal_names_the_source_and_what_to_do(places, options, message):
    with pytest.raises(InputError, match=message):
        load(label_names=["ape", "bee", "cat"], **{key: places.get(value, value) for key, value in options.items()})


def test_data_sets_on_the_hub_have_commits_and_splits():
    options = {field.name: field.default for field in dataclasses.fields(DataArguments)}
    about = ("dataset_config_name", "dataset_revision", "train_split", "validation_split", "label_column_name")
    for streaming in (False, True):
        on_hub = {**options, "dataset_name": "ada/pets", "streaming": streaming}
        assert [name for name in about if why_unused(name, on_hub)] == []
    unlabeled = {**options, "train_dir": "x", "unlabeled_dataset_name": "ada/more"}
    assert why_unused("unlabeled_dataset_revision", unlabeled) is None
    # Of what names no source, or two, there is nothing to say: that is refused by itself.
    for none in (options, {**options, "dataset_name": "ada/pets", "train_dir": "x"}):
        assert [name for name in FIELDS if why_unused(name, {**none, "validation_split": "x"})] == []
