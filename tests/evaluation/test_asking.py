"""Answers on disk are those of one process that was never stopped: whoever computes them, in however many attempts."""

import os
import shutil
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support.checkpoints import LABELS, edited, our_folder, reweighted
from support.faults import killed_while_writing
from support.images import NAMES, broken, class_folders, noise, table, textured
from torch import nn

from hf_deit.errors import BadImageError, CheckpointError, InputError
from hf_deit.evaluation.answers import asking as asking_module
from hf_deit.evaluation.answers import chunk_folder, stored_answers
from hf_deit.evaluation.answers.asking import Asking, ask_all
from hf_deit.evaluation.answers.verdicts import CLASS
from hf_deit.evaluation.classifiers.classifiers import Classifier, ClassifierDescription, describe_classifiers
from hf_deit.evaluation.images.images import EvaluationImages
from hf_deit.evaluation.images.labels import Labels
from hf_deit.hub.files import write_whole

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(stored_answers, "CHUNK", 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(our_folder(tmp_path_factory.mktemp("model") / "model"))


def images_of(data: datasets.Dataset) -> EvaluationImages:
    return EvaluationImages(data, "image", Labels(tuple(LABELS), np.array(data["label"])), {}, "images")


def ask(folder: Path, model: str, data: datasets.Dataset, **settings):
    [description] = describe_classifiers([model], LABELS)
    settings = {"batch_size": 4, "num_workers": 0, **settings}
    [answers] = ask_all([description], images_of(data), Asking(str(folder), CPU, **settings))
    return answers


def everything(answers) -> dict[str, np.ndarray]:
    chunks = list(answers.chunks())
    found = {head: np.concatenate([chunk[head] for chunk in chunks]) for head in chunks[0]}
    return found | {"features": np.concatenate(list(answers.features_chunks()))}


def assert_same(one, other) -> None:
    one, other = everything(one), everything(other)
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def chunk_files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("chunk-*")}


def forbid_asking(monkeypatch) -> None:
    monkeypatch.setattr(Classifier, "logits_and_features", lambda *args, **kwargs: pytest.fail("a model was asked"))


def test_answers_are_the_models_own(tmp_path, model):
    data = textured(21)
    answers = ask(tmp_path, model, data)
    [description] = describe_classifiers([model], LABELS)
    classifier = description.load()
    pixels = torch.stack([classifier.preprocess(image.convert("RGB")) for image in data["image"]])
    logits, features = classifier.logits_and_features(pixels)
    kept = everything(answers)
    assert len(answers) == 21 and len(chunk_files(tmp_path)) == 3
    for head, values in logits.items():
        np.testing.assert_allclose(kept[head], values, atol=1e-5)
    np.testing.assert_allclose(kept["features"], features, atol=1e-3)
    for rule in answers.rules:
        scores = rule.scores({head: values.numpy() for head, values in logits.items()})
        assert np.array_equal(answers.verdicts(rule).decisions, scores.argmax(axis=1))
    assert answers.verdicts(answers.rule) is answers.verdicts(answers.rule)


def test_what_is_kept_is_not_asked_again(tmp_path, model, monkeypatch):
    first = ask(tmp_path, model, textured(20))
    forbid_asking(monkeypatch)
    assert_same(ask(tmp_path, model, textured(20)), first)


@pytest.mark.parametrize("change", ["model", "images", "batch_size", "processor", "order"])
def test_what_the_answers_depend_on_makes_others(tmp_path, model, change):
    data, settings = textured(20), {}
    ask(tmp_path / "out", model, data)
    before = chunk_files(tmp_path / "out")
    other = str(shutil.copytree(model, tmp_path / "other"))
    if change == "model":
        reweighted(Path(other), lambda weights: {name: tensor + 0.01 for name, tensor in weights.items()})
    elif change == "processor":
        edited(Path(other), "preprocessor_config.json", image_mean=[0.4, 0.4, 0.4])
    elif change == "images":
        data = datasets.concatenate_datasets([data.select(range(19)), textured(21).select([20])])
    elif change == "order":
        data = data.select([*range(10, 20), *range(10)])
    else:
        settings = {"batch_size": 8}
    assert_same(ask(tmp_path / "out", other, data, **settings), ask(tmp_path / "alone", other, data, **settings))
    after = chunk_files(tmp_path / "out")
    assert before.items() < after.items() and len(after) == 2 * len(before)


def test_a_copy_elsewhere_is_the_same_model(tmp_path, model, monkeypatch):
    ask(tmp_path / "out", model, textured(20))
    other = str(shutil.copytree(model, tmp_path / "other"))
    forbid_asking(monkeypatch)
    ask(tmp_path / "out", other, textured(20))


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, model, monkeypatch):
    data = textured(30)
    whole = ask(tmp_path / "whole", model, data)
    written = []
    write = stored_answers.AnswerFolder.write

    def killed(folder, chunk, content):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(chunk)
        write(folder, chunk, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stored_answers.AnswerFolder, "write", killed)
        ask(tmp_path / "out", model, data)
    before = chunk_files(tmp_path / "out")
    assert len(before) == 2
    assert_same(ask(tmp_path / "out", model, data), whole)
    after = chunk_files(tmp_path / "out")
    assert before.items() < after.items() and len(after) == 4


def test_a_process_that_is_killed_while_it_writes_leaves_whole_chunks_alone(tmp_path, model):
    data, descriptions = textured(20), describe_classifiers([model], LABELS)

    def run() -> None:
        chunk_folder.write_json = lambda *args: None  # larger than these chunks
        ask_all(descriptions, images_of(data), Asking(str(tmp_path / "out"), CPU, 4, 0))

    assert killed_while_writing(run, after=800)
    assert [path.name[:17] for path in (tmp_path / "out").rglob("*.tmp")] == [".chunk-00000.safe"]
    assert_same(ask(tmp_path / "out", model, data), ask(tmp_path / "whole", model, data))
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "others"])
def test_a_damaged_chunk_is_made_again(tmp_path, model, damage):
    whole = ask(tmp_path / "whole", model, textured(20))
    ask(tmp_path / "out", model, textured(20))
    files = sorted((tmp_path / "out").rglob("chunk-*"))
    content = bytearray(files[1].read_bytes())
    content[-5] ^= 4
    damaged = {"flipped": content, "cut": content[:-40], "empty": b"", "others": files[2].read_bytes()}
    before = chunk_files(tmp_path / "out")
    files[1].write_bytes(damaged[damage])
    assert_same(ask(tmp_path / "out", model, textured(20)), whole)
    after = chunk_files(tmp_path / "out")
    assert [path for path in before if before[path] != after[path]] == [str(files[1])]


def test_a_chunk_that_is_gone_meanwhile_is_named(tmp_path, model):
    answers = ask(tmp_path, model, textured(20))
    path = sorted(tmp_path.rglob("chunk-*"))[1]
    path.unlink()
    with pytest.raises(CheckpointError, match=path.name):
        list(answers.chunks())


def test_features_are_kept_of_the_first_model_alone(tmp_path, model):
    other = str(our_folder(tmp_path / "other", "deit_tiny_patch16_224"))
    images = images_of(textured(12))
    how = Asking(str(tmp_path / "out"), CPU, 4, 0)

    def both(*models: str):
        return ask_all(describe_classifiers(models, LABELS), images, how)

    first, second = both(model, other)
    assert next(first.features_chunks()).shape == (8, 64) and second.features_chunks() is None
    turned, _ = both(other, model)  # whose answers are there, and are asked for again with features
    assert sum(map(len, turned.features_chunks())) == 12


def test_images_that_cannot_be_decoded_stop_or_are_skipped(tmp_path, model):
    data = broken(textured(20), [2, 9])
    with pytest.raises(BadImageError, match="row 2"):
        ask(tmp_path, model, data)
    answers = ask(tmp_path, model, data, on_bad_image="skip")
    assert list(answers.skipped()) == [2, 9]
    with pytest.raises(BadImageError):  # what was skipped before does not pass for an answer
        ask(tmp_path, model, data)
    left_out = np.isin(np.arange(20), [2, 9])
    images, kept = images_of(data).without(left_out), answers.without(left_out)
    assert len(images) == len(kept) == 18 == len(images.labels) == len(everything(kept)["features"])
    assert images.name(2) == "row 3 of the images" and images.image(2).size == (50, 40)
    alone = ask(tmp_path / "alone", model, textured(20).select(np.flatnonzero(~left_out)))
    np.testing.assert_allclose(everything(kept)[CLASS], everything(alone)[CLASS], atol=1e-5)
    assert np.isfinite(kept.verdicts(kept.rule).confidence).all()


def test_answers_that_are_not_finite_are_refused_with_their_images(tmp_path, model):
    class Overflowing(nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(states), 3)
            logits[1:2] = torch.inf
            return logits

    [description] = describe_classifiers([model], LABELS)

    class Description:
        def __getattr__(self, name):
            return getattr(description, name)

        def load(self, device):
            classifier = description.load(device)
            classifier.model.cls_classifier = Overflowing()
            return classifier

    paths = class_folders(tmp_path / "images", dict.fromkeys(NAMES, 3))
    files = sorted(map(str, Path(paths).rglob("*.png")))
    data = datasets.Dataset.from_dict({"image": files, "label": [0] * 9}).cast_column("image", datasets.Image())
    with pytest.raises(InputError, match="not finite in float32") as error:
        ask_all([Description()], images_of(data), Asking(str(tmp_path / "out"), CPU, 4, 0))
    assert files[1] in str(error.value) and files[0] not in str(error.value)


def test_an_image_that_a_processor_fails_on_is_named(tmp_path, model, monkeypatch):
    monkeypatch.setattr(asking_module, "pixels_of", lambda *args: 1 / 0)
    with pytest.raises(InputError, match=r"fails on row 0 of the images \(50 x 40 pixels\): division by zero"):
        ask(tmp_path, model, textured(3))


def test_a_disk_without_room_is_refused_before_anything_is_asked(tmp_path, model, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 26))
    with pytest.raises(InputError, match="free some space"):
        ask(tmp_path / "out", model, textured(20))
    assert not chunk_files(tmp_path)


def test_a_disk_that_refuses_is_told_and_the_rest_is_kept(tmp_path, model, monkeypatch):
    def refuse(content, path):
        if "chunk-00001" in str(path):
            raise OSError(28, "No space left on device")
        write_whole(content, path)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left on device"):
        patch.setattr(chunk_folder, "write_whole", refuse)
        ask(tmp_path, model, textured(20))
    before = chunk_files(tmp_path)
    assert len(ask(tmp_path, model, textured(20))) == 20 and before.items() < chunk_files(tmp_path).items()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="give another --output_dir"):
        ask(tmp_path / "file", model, textured(20))


def test_workers_give_the_same(tmp_path, model):
    data = table([0, 1, 2] * 9)
    here, there = (ask(tmp_path / str(workers), model, data, num_workers=workers) for workers in (0, 2))
    assert_same(here, there)


def test_images_are_told_apart_by_what_they_are_not_by_their_labels(tmp_path):
    data = textured(30)

    def digest(data: datasets.Dataset) -> str:
        labels = Labels(tuple(LABELS), np.zeros(len(data), np.int64))
        return EvaluationImages(data, "image", labels, {}, "images").digest_with_times

    same = datasets.Dataset.from_dict(data.cast_column("image", datasets.Image(decode=False)).to_dict())
    same = same.cast_column("image", datasets.Image())
    assert digest(data) == digest(same) == digest(data.select(range(30))) == digest(data.remove_columns("label"))
    others = [data.select(range(29)), data.select([*range(1, 30), 0]), textured(31).select(range(1, 31))]
    assert len({digest(data), *map(digest, others)}) == 4
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for index, path in enumerate(paths):
        noise(8, 8, seed=index).save(path)
    files = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    before = digest(files)
    assert before == digest(files)
    os.utime(paths[1], ns=(1, 1))
    assert before != digest(files)
    Image.new("RGB", (8, 8)).save(paths[1])
    assert before != digest(files)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, model, monkeypatch):
    """Beyond the verdicts, of some bytes an image: bounded far below what their logits take."""
    monkeypatch.setattr(stored_answers, "CHUNK", 32)
    monkeypatch.setattr(ClassifierDescription, "_check_answer", lambda *args: None)
    few = textured(4)
    peaks = []
    for repeats in (16, 32, 256):  # the first ones load and cache what others find
        data = few.select(list(range(4)) * repeats)
        images = images_of(data.remove_columns("label").add_column("label", [0] * len(data)))
        [description] = describe_classifiers([model], LABELS)
        monkeypatch.setattr(Classifier, "logits_and_features", _many_classes)
        labels = Labels(tuple(map(str, range(1000))), images.labels.values)
        images = EvaluationImages(images.dataset, "image", labels, {}, "")
        tracemalloc.start()
        [answers] = ask_all([description], images, Asking(str(tmp_path / str(repeats)), CPU, 32, 0))
        answers.verdicts(answers.rule)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[-1] - peaks[-2] < (256 - 32) * 4 * 1000 * 2 * 4 / 10


def _many_classes(classifier, pixel_values, *, with_features=True):
    logits = pixel_values.flatten(1)[:, :1000]
    return {"class": logits, "distillation": -logits}, pixel_values.flatten(1)[:, :64]
