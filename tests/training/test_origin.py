"""Contract: a checkpoint knows the teacher, the images, the student and the batch that its run was started with.

A run goes on from it with the same ones, or is refused with both values; one by an earlier version, which knows
nothing of them, is gone on from.
"""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import concatenate_datasets
from support import tiny
from transformers import AutoModelForImageClassification

from hf_deit import DistilledDeiTForImageClassification, InputError, load_teacher
from hf_deit.data.view_dataset import EvaluationDataset

TRAIN, VALIDATION = tiny.digits()


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """The folder of a run's checkpoint, its teacher and its student."""
    folder = tmp_path_factory.mktemp("start")
    tiny.teacher_folder(folder / "teacher")
    tiny.student(drop_path_rate=0.1).save_pretrained(folder / "student")
    run = trainer(folder, max_steps=1, save_strategy="steps", save_steps=1)
    run.train()
    return folder


def trainer(folder: Path, *, model=None, images=None, processor=None, dtype="float32", **settings):
    model = model or DistilledDeiTForImageClassification.from_pretrained(folder / "student").train()
    processor = processor or tiny.processor()
    teacher = load_teacher(
        str(folder / "teacher"), student_processor=processor, id2label=model.config.id2label, dtype=dtype
    )
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, **settings}
    args = tiny.arguments(folder / "run", **settings)
    return tiny.trainer(model, args, teacher, processing_class=processor, **(images or {}))


@pytest.fixture
def here(start, tmp_path) -> Path:
    return Path(shutil.copytree(start, tmp_path / "start"))


def checkpoint(folder: Path) -> str:
    return str(folder / "run" / "checkpoint-1")


def test_the_same_run_goes_on(start):
    trainer(start).check_checkpoint(checkpoint(start))
    trainer(start, per_device_train_batch_size=4, gradient_accumulation_steps=2).check_checkpoint(checkpoint(start))
    trainer(start, images={"eval_dataset": None}).check_checkpoint(checkpoint(start))


def relabelled(folder: Path) -> None:
    """The same weights with two labels changed places."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    names = dict(model.config.id2label)
    names[0], names[1] = names[1], names[0]
    model.config.id2label, model.config.label2id = names, {name: index for index, name in names.items()}
    model.save_pretrained(folder)


TEACHERS = {
    "weights": (lambda folder: tiny.teacher_folder(folder, seed=2), "revision sha256:"),
    "pickled weights": (
        lambda folder: torch.save(tiny.resnet(seed=2).state_dict(), folder / "pytorch_model.bin"),
        None,  # as those of safetensors are taken
    ),
    "labels": (relabelled, "preprocessing.label_order|revision sha256:"),
    "statistics": (lambda folder: tiny.processor(image_std=[0.3] * 3).save_pretrained(folder), "preprocessing.s"),
    "size": (
        lambda folder: tiny.processor(crop_size=24, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder),
        r"preprocessing.own_size \[16, 16\] then, \[24, 24\] now",
    ),
}


@pytest.mark.parametrize("case", TEACHERS)
def test_a_teacher_that_was_changed_in_its_place_is_refused(here, case):
    change, said = TEACHERS[case]
    change(here / "teacher")
    if said is None:
        trainer(here).check_checkpoint(checkpoint(here))
        return
    with pytest.raises(InputError, match=f"^the teacher changed since .*({said})"):
        trainer(here).check_checkpoint(checkpoint(here))


OTHERS = {
    "a teacher in another precision": ({"dtype": "bfloat16"}, "teacher changed .*: dtype float32 then, bfloat16 now"),
    "an image more": (
        {"images": {"train_dataset": concatenate_datasets([TRAIN, VALIDATION.select([0])])}},
        "images to train on, .* changed .*: (fingerprint|rows 96 then, 97 now)",
    ),
    "another order": (
        {"images": {"train_dataset": TRAIN.select([1, 0, *range(2, 96)])}},
        "images to train on, .*: fingerprint",
    ),
    "other images to validate with": (
        {"images": {"eval_dataset": VALIDATION.select(range(39))}},
        "images to validate with, .* changed",
    ),
    # 96 // 47 == 96 // 48, so that epochs have as many steps
    "another batch": (
        {"per_device_train_batch_size": 9, "gradient_accumulation_steps": 1, "max_steps": 1},
        "steps in an epoch|number of views in a step changed .*: views_per_step 8 then, 9 now",
    ),
    "a configuration": ({"model": tiny.student(drop_path_rate=0.2)}, "has drop_path_rate 0.1, got 0.2"),
    "an image processor": ({"processor": tiny.processor(crop_ratio=0.9)}, "has crop_ratio 1.0, got 0.9"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_makes_another_run_is_refused_with_both_values(start, case):
    changes, said = OTHERS[case]
    with pytest.raises(InputError, match=said):
        trainer(start, **changes).check_checkpoint(checkpoint(start))


def test_a_batch_of_as_many_steps_is_refused(start, tmp_path):
    settings = {"distillation_type": "none", "max_steps": 1, "save_strategy": "steps", "save_steps": 1}

    def run(batch: int):
        args = tiny.arguments(tmp_path / "run", per_device_train_batch_size=batch, **settings)
        return tiny.trainer(tiny.student(), args)

    run(40).train()
    run(40).check_checkpoint(str(tmp_path / "run" / "checkpoint-1"))
    with pytest.raises(
        InputError, match=r"views_per_step 40 then, 41 now: keep the total batch .*: --total_batch_size 40$"
    ):
        run(41).check_checkpoint(str(tmp_path / "run" / "checkpoint-1"))


def test_a_checkpoint_by_an_earlier_version_is_gone_on_from_and_the_next_one_knows(here):
    path = here / "run" / "checkpoint-1" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["RunOrigin"]
    path.write_text(json.dumps(state))
    (path.parent / "checksums.json").unlink()
    tiny.teacher_folder(here / "teacher", seed=2)
    trainer(here, max_steps=2).train(resume_from_checkpoint=checkpoint(here))
    tiny.teacher_folder(here / "teacher", seed=1)
    with pytest.raises(InputError, match="the teacher changed since"):
        trainer(here).check_checkpoint(str(here / "run" / "checkpoint-2"))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_earlier_versions_run_with_dropout_is_refused_as_it_stood_elsewhere(tmp_path, dropout):
    def run(max_steps: int):
        settings = {"distillation_type": "none", "save_strategy": "steps", "save_steps": 1, "max_steps": max_steps}
        return tiny.trainer(tiny.student(hidden_dropout_prob=dropout), tiny.arguments(tmp_path, **settings))

    run(max_steps=1).train()
    path = tmp_path / "checkpoint-1" / "trainer_state.json"
    run(max_steps=2).check_checkpoint(str(path.parent))
    state = json.loads(path.read_text())
    state["stateful_callbacks"]["RunOrigin"]["attributes"]["origin"].pop("dropout", None)
    path.write_text(json.dumps(state))
    refused = pytest.raises(InputError, match=r"earlier version, whose dropout .* --output_dir")
    with refused if dropout else contextlib.nullcontext():
        run(max_steps=2).check_checkpoint(str(path.parent))


def test_images_of_other_columns_are_known(tmp_path):
    left = VALIDATION.rename_columns({"image": "left", "label": "kind"})
    two_pictures = concatenate_datasets([left, VALIDATION.select_columns("image")], axis=1)
    images = EvaluationDataset(two_pictures, tiny.processor(), image_column="left", label_column="kind")
    args = tiny.arguments(tmp_path, distillation_type="none", max_steps=1, save_strategy="steps", save_steps=1)
    run = tiny.trainer(tiny.student(), args, eval_dataset=images)
    run.train()
    run.check_checkpoint(str(tmp_path / "checkpoint-1"))


def test_weights_that_a_student_was_started_from_may_change_and_are_said_to(here, caplog):
    tiny.student(drop_path_rate=0.1, seed=5).save_pretrained(here / "student")
    trainer(here).check_checkpoint(checkpoint(here))
    assert (
        "have changed in their folder since" in caplog.text and "goes on with those of its checkpoint" in caplog.text
    )


def test_a_student_that_looks_at_the_whole_batch_is_told_another_one(tmp_path, caplog):
    settings = {"distillation_type": "none", "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    tiny.trainer(tiny.resnet(), tiny.arguments(tmp_path, **settings)).train()
    settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    again = tiny.trainer(tiny.resnet(), tiny.arguments(tmp_path, **settings))
    again.check_checkpoint(str(tmp_path / "checkpoint-1"))
    assert "those were 8 until here, and are 4 from here on" in caplog.text


def test_a_published_checkpoint_names_no_folder_of_its_origin(start):
    state = json.loads((start / "run" / "checkpoint-1" / "trainer_state.json").read_text())
    origin = state["stateful_callbacks"]["RunOrigin"]["attributes"]["origin"]
    assert set(origin) == {"teacher", "student", "train", "validation", "views_per_step", "changes"}
    assert str(start) not in json.dumps(origin)
