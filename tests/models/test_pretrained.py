"""Contract: what takes the name of a model takes a folder as any kind of path, and no damaged pickled weights."""

import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from support import tiny
from transformers import AutoConfig

from hf_deit import InputError, describe_teacher, load_student, load_teacher
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


def pickled(folder: Path) -> Path:
    """A model whose weights are pickled, as those of old checkpoints on the Hub."""
    tiny.teacher_folder(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tiny.resnet().state_dict(), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


DAMAGES = {
    "in a weight": lambda content: flipped(content, content.index(next(tiny.resnet().parameters()).detach().numpy())),
    "in a name": lambda content: flipped(content, content.index(b"classifier")),
    "in what is unpickled first": lambda content: flipped(content, content.index(b"ccollections")),
    "cut": lambda content: content[: len(content) // 2],
    "hostile": lambda content: pickle.dumps(Hostile(), protocol=2),
}


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit(9)",)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("load", [loaded_student, loaded_teacher])
def test_pickled_weights_that_are_damaged_are_refused(tmp_path, load, damage):
    weights = pickled(tmp_path)
    assert load(str(tmp_path))
    weights.write_bytes(DAMAGES[damage](weights.read_bytes()))
    with pytest.raises(InputError, match=r"pytorch_model\.bin', it is damaged or") as error:
        load(str(tmp_path))
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
