"""Contract: what a checkpoint's small files state is refused in a line if no model has it, before memory and time are
spent on it.
"""

import json
import math
from pathlib import Path

import pytest
from support import tiny
from support.checkpoints import edited
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from hf_deit import load_student, load_teacher
from hf_deit.errors import InputError
from hf_deit.hub.publishing import check_folder
from hf_deit.models.extent import check_numbers
from hf_deit.models.teacher import load_labels

LABELS = {index: str(index) for index in range(10)}


def as_student(folder: Path) -> None:
    load_student(folder, id2label=LABELS)


def as_teacher(folder: Path) -> None:
    load_teacher(folder, student_processor=tiny.processor())


def as_published(folder: Path) -> None:
    check_folder(folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny.student().save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    return tmp_path


HUGE = {
    "layers": {"num_hidden_layers": 10**7},
    "width": {"hidden_size": 10**6, "intermediate_size": 10**6},
    "positions": {"image_size": 4096, "patch_size": 1},
    "pixels": {"image_size": 10**6},
    "labels": {"num_labels": 10**9},
    "anything": {"num_channels": 10**30},
    "what is written as a float": {"intermediate_size": 1e300},
}
HUGE_CONVNETS = {
    "layers": {"depths": [10**9, 1]},
    "layers of many parts": {"depths": [1500, 1500]},
    "width": {"hidden_sizes": [10**5, 10**5]},
}


@pytest.mark.parametrize("use", [as_student, as_teacher, as_published])
@pytest.mark.parametrize("fields", HUGE.values(), ids=HUGE)
def test_enormous_models_are_refused_before_they_are_made(folder, use, fields):
    with pytest.raises(InputError, match=r"config.json of .* (states|wants) "):
        use(edited(folder, **fields))


@pytest.mark.parametrize("fields", HUGE_CONVNETS.values(), ids=HUGE_CONVNETS)
def test_so_are_convnets(tmp_path, fields):
    tiny.teacher_folder(tmp_path)
    with pytest.raises(InputError, match=r"config.json of .* (states|wants) "):
        as_teacher(edited(tmp_path, **fields))


def test_labels_of_an_enormous_model_are_not_made_up(folder):
    with pytest.raises(InputError, match="num_labels"):
        load_labels(edited(folder, num_labels=10**9, id2label=None, label2id=None))


ODD = [
    *({"size": size} for size in (-1, "a", [], [1], {"height": 0, "width": 0}, {"shortest_edge": -3}, {"edge": 3})),
    *({"crop_size": size} for size in (0, 10**6, {"height": 10**6, "width": 1}, {"height": "a", "width": None}, [])),
    *({"image_mean": mean} for mean in ([], [0.5] * 2, [0.5] * 4, "a", ["a"] * 3, [math.nan] * 3, [math.inf] * 3, {})),
    *({"image_std": std} for std in ([], [0.0] * 3, [0.5] * 2, ["a"] * 3, [math.nan] * 3, True)),
    *({"resample": resample} for resample in (99, -1, "a", [], math.nan)),
    *({"crop_ratio": ratio} for ratio in (0, -1, 2, 1e-6, 1e-300, "a", [], math.nan, True)),
    *({"rescale_factor": factor} for factor in ("a", [], math.nan, 1e300, {})),
]


@pytest.mark.parametrize("use", [as_student, as_teacher])
@pytest.mark.parametrize("settings", ODD, ids=repr)
def test_odd_image_processors_are_refused(folder, use, settings):
    with pytest.raises(InputError):
        use(edited(folder, "preprocessor_config.json", **settings))


@pytest.mark.parametrize("use", [as_student, as_teacher])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"a"', "[" * 100_000, '{"a":' * 100_000, "\x00", "NaN"])
def test_what_is_no_object_of_json_is_refused(folder, use, file, text):
    (folder / file).write_text(text)
    with pytest.raises(InputError):
        use(folder)


def test_every_architecture_is_taken_as_transformers_has_it():
    for config_class in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        check_numbers(config_class().to_dict(), config_class.__name__)


@pytest.mark.parametrize("name", ["to_dict", "save_pretrained", "__class__", "__dict__"])
def test_no_field_takes_the_place_of_a_method(folder, name):
    with pytest.raises(InputError, match=f"states {name}"):
        load_student(edited(folder, **{name: {}}), id2label=LABELS)


def test_what_people_write_beside_the_fields_may_be_any_number(folder):
    load_student(edited(folder, seed=20_260_101, created=1.8e9, data={"num_images": 10**9}), id2label=LABELS)


def test_what_is_as_it_should_be_is_taken(folder):
    as_student(folder)
    as_teacher(folder)
    stated = json.loads((folder / "config.json").read_text())
    as_student(edited(folder, id2label={str(index): name for index, name in stated["id2label"].items()}))
