"""Contract: what takes the name of a model takes a folder as any kind of path."""

from functools import partial
from pathlib import Path

import pytest
import torch
from support import tiny
from transformers import AutoConfig

from hf_deit import describe_teacher, load_student, load_teacher
from hf_deit.models.pretrained import load_image_processor, resolve_revision, weights_digest
from hf_deit.models.teacher import load_labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.teacher_folder(tmp_path_factory.mktemp("model"))


def loaded_student(name):
    model, processor = load_student(name, id2label={index: str(index) for index in range(10)})
    return [*model.state_dict().values()], processor.to_dict()


def loaded_teacher(name):
    teacher = load_teacher(name, student_processor=tiny.processor())
    return [*teacher.state_dict().values()], teacher.name_or_path


READERS = {
    "describe_teacher": partial(describe_teacher, student_processor=tiny.processor()),
    "load_image_processor": lambda name: load_image_processor(name, None, AutoConfig.for_model("resnet")).to_dict(),
    "load_labels": load_labels,
    "load_student": loaded_student,
    "load_teacher": loaded_teacher,
    "resolve_revision": resolve_revision,
    "weights_digest": weights_digest,
}


@pytest.mark.parametrize("name", READERS)
def test_a_path_is_a_folder_as_its_name_is(folder, name):
    read = READERS[name]
    got, expected = read(Path(folder)), read(folder)
    if isinstance(got, tuple):
        (weights, rest), (expected_weights, expected) = got, expected
        assert all(torch.equal(one, other) for one, other in zip(weights, expected_weights, strict=True))
        got = rest
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_path_is_refused_at_once(name):
    with pytest.raises(TypeError, match="PathLike"):
        READERS[name](3)
