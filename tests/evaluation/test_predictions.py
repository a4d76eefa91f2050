"""Predictions are the model's own answers, whatever the images are, in every format, in one attempt or several."""

import dataclasses
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.checkpoints import LABELS, edited, native, our_folder, ours, randomise, reweighted, saved
from support.faults import full_disk, killed_while_writing
from support.images import load, noise, textured
from support.tiny import resnet
from transformers import pipeline

from hf_deit.data.digits import load_digits
from hf_deit.errors import CheckpointError, InputError
from hf_deit.evaluation.answers.asking import Asking, ask_all
from hf_deit.evaluation.answers.chunk_folder import ChunkFolder
from hf_deit.evaluation.arguments import EvaluationArguments
from hf_deit.evaluation.classifiers.classifiers import Classifier, describe_classifiers, pixels_of
from hf_deit.evaluation.images.images import load_evaluation_images
from hf_deit.evaluation.predictions import predict as predict_module
from hf_deit.evaluation.predictions import sorting
from hf_deit.evaluation.predictions.answering import best_classes
from hf_deit.evaluation.predictions.arguments import PredictionArguments
from hf_deit.evaluation.predictions.predict import Predictions, predict
from hf_deit.evaluation.predictions.table import read_columns, write_table


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(predict_module, "CHUNK", 8)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(our_folder(tmp_path_factory.mktemp("model") / "model"))


def photos(folder: str | Path = "photos", count: int = 20) -> str:
    """A folder with images in folders, of several sizes."""
    for index in range(count):
        place = Path(folder) / ("x" if index % 2 else "y")
        place.mkdir(parents=True, exist_ok=True)
        noise(20 + index, 50 - index, seed=index).save(place / f"{index:02}.png")
    return str(folder)


def predicted(model: str, *images: str, **settings) -> Predictions:
    return predict(PredictionArguments(model, images, **{"batch_size": 4, "num_workers": 0, **settings}))


def table(path: str = "predictions.csv") -> pandas.DataFrame:
    return pandas.read_csv(path, keep_default_na=False)


def refusal(model: str, *images: str, **settings) -> str:
    with pytest.raises(InputError) as error:
        predicted(model, *images, **settings)
    return str(error.value)


def by_hand(model: str, paths: Sequence[str]) -> np.ndarray:
    """Probabilities of the fused answer, (N, K)."""
    [description] = describe_classifiers([model], LABELS)
    classifier = description.load()
    pixels = torch.stack([classifier.preprocess(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        return classifier.model(pixel_values=pixels).logits.float().softmax(-1).numpy()


def convnet(labels: list[str] | None = LABELS) -> torch.nn.Module:
    network = resnet()
    names = [f"LABEL_{index}" for index in range(4)] if labels is None else labels
    network.config.id2label = dict(enumerate(names))
    return randomise(type(network)(network.config))


@pytest.mark.parametrize("fusion", ["logits", "softmax", "cls", "distillation"])
def test_they_are_the_fused_answers_of_the_model(tmp_path, fusion):
    model = str(our_folder(tmp_path / "model", fusion=fusion))
    found = predicted(model, photos(count=10), heads=True)
    rows = table()
    assert found.num_images == len(rows) == 10 and not found.broken and found.broken_path is None
    paths = [str(path) for path in sorted(Path("photos").rglob("*.png"))]
    assert list(rows["path"]) == paths
    expected = by_hand(model, paths)
    order = np.argsort(-expected, axis=1, kind="stable")
    for rank, end in enumerate(["", "_2", "_3"]):
        assert list(rows[f"label{end}"]) == [LABELS[index] for index in order[:, rank]]
        np.testing.assert_allclose(rows[f"probability{end}"], np.sort(expected, axis=1)[:, -1 - rank], atol=1e-6)
    assert "label_4" not in rows  # the model has three
    for head in ("class", "distillation"):
        other = str(edited(shutil.copytree(model, tmp_path / head), fusion={"class": "cls"}.get(head, head)))
        of_head = by_hand(other, paths)
        assert list(rows[f"{head}_label"]) == [LABELS[index] for index in of_head.argmax(axis=1)]
        np.testing.assert_allclose(rows[f"{head}_probability"], of_head.max(axis=1), atol=1e-6)


def test_they_are_the_answers_that_an_evaluation_measures(model):
    folder = photos(count=10)
    predicted(model, folder, top_k=3)
    images = load_evaluation_images(EvaluationArguments(model, images_dir=folder, label_file=labelled(folder)))
    [description] = describe_classifiers([model], images.labels.names)
    [answers] = ask_all([description], images, Asking("report", torch.device("cpu"), 4, 0))
    verdicts = answers.verdicts(answers.rule)
    rows = table()
    assert list(rows["path"]) == [images.name(index) for index in range(len(images))]
    for rank, end in enumerate(["", "_2", "_3"]):
        assert list(rows[f"label{end}"]) == [LABELS[index] for index in verdicts.ranked[:, rank]]
    np.testing.assert_allclose(rows["probability"], verdicts.confidence, atol=1e-8)


def labelled(folder: str) -> str:
    """A file of labels, so that an evaluation takes the folders in a folder for no classes."""
    paths = sorted(Path(folder).rglob("*.png"))
    Path("labels.csv").write_text("".join(f"{path.relative_to(folder)},{LABELS[0]}\n" for path in paths))
    return "labels.csv"


@pytest.mark.parametrize("kind", ["deit", "resnet", "multi-label", "unnamed"])
def test_they_are_those_of_transformers_pipeline(tmp_path, kind):
    network = native("distilled") if kind == "deit" else convnet(None if kind == "unnamed" else LABELS)
    if kind == "multi-label":
        network.config.problem_type = "multi_label_classification"
    model = str(saved(tmp_path / "model", network))
    predicted(model, photos(count=9), top_k=3, output="out.jsonl")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    said = pipeline("image-classification", model=model)([row["path"] for row in rows], top_k=3)
    for row, answers in zip(rows, said, strict=True):
        ends = ["", "_2", "_3"]
        assert [row[f"label{end}"] for end in ends] == [answer["label"] for answer in answers]
        found = [row[f"probability{end}"] for end in ends]
        np.testing.assert_allclose(found, [answer["score"] for answer in answers], atol=1e-5)


def test_of_equal_scores_the_first_class_comes_first():
    random = np.random.RandomState(0)
    for number in (1, 2, 5, 9):
        scores = np.round(random.rand(50, 9) * 4) / 4  # of five values
        assert np.array_equal(best_classes(scores, number), np.argsort(-scores, axis=1, kind="stable")[:, :number])
        scores = random.rand(50, 9)
        assert np.array_equal(best_classes(scores, number), np.argsort(-scores, axis=1)[:, :number])


def test_all_formats_hold_the_same_values(tmp_path):
    labels = ['a, "b"', "c\nd", "é;=1+1"]
    model = str(saved(tmp_path / "model", ours("deit_tiny_distilled_patch16_224", labels)))
    folder = Path(photos(count=9))
    (folder / "x" / "01.png").rename(folder / "x" / 'new\nline, "1".png')
    tables = []
    for suffix in ("csv", "parquet", "jsonl"):
        predicted(model, str(folder), output=f"out.{suffix}", heads=True)
    tables.append(table("out.csv").to_dict("list"))
    tables.append(pq.read_table("out.parquet").to_pydict())
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    tables.append({name: [row[name] for row in rows] for name in rows[0]})
    assert tables[0] == tables[1] == tables[2]
    assert list(tables[0])[:5] == ["path", "label", "probability", "label_2", "probability_2"]
    assert set(tables[0]["label"]) <= set(labels) and str(folder / "x" / 'new\nline, "1".png') in tables[0]["path"]


def test_any_text_is_read_back_from_any_format():
    rows = [["a\rb", 'x\r\n"y"', 0.5], ["", "NA", 1e-08], [" lead", "tab\t,\u00e9\u2028'=1", 0.12345678]]
    columns = {"path": str, "label": str, "probability": float}
    for suffix in ("csv", "parquet", "jsonl"):
        write_table(f"t.{suffix}", columns, rows)
        found = read_columns(f"t.{suffix}", list(columns))
        assert [[path, label, float(value)] for path, label, value in found] == rows
    assert table("t.csv").to_numpy().tolist() == pandas.read_json("t.jsonl", lines=True).to_numpy().tolist() == rows


def odd_files() -> Path:
    folder = Path("odd")
    (folder / ".hidden").mkdir(parents=True)
    (folder / "sub").mkdir()
    for name in ("a.jpg", "UP.PNG", "sub/a b.webp", "g.TIF", ".hidden/h.png", ".dot.png"):
        noise(20, 30).save(folder / name)
    noise(20, 30).save(os.fsencode(folder) + b"/caf\xe9.png")
    noise(20, 30).save(folder / "without_an_end", "PNG")
    content = io.BytesIO()
    noise(90, 90).save(content, "JPEG")
    (folder / "cut.jpg").write_bytes(content.getvalue()[:900])
    (folder / "zero.jpg").touch()
    (folder / "text.jpg").write_text("no image")
    Image.fromarray(np.full((20, 20), 60_000, np.uint16)).save(folder / "deep.png")
    (folder / "gone.png").symlink_to("/nowhere.png")
    for name in ("notes.txt", "boxes.xml", "some", "Thumbs.db"):
        (folder / name).write_text("none")
    (folder / "sub" / "again").symlink_to("..")
    return folder


def test_of_a_folder_images_are_taken_and_broken_ones_listed(model):
    found = predicted(model, str(odd_files()))
    paths = [f"odd/{name}" for name in ("UP.PNG", "a.jpg", r"caf\xe9.png", "g.TIF", "sub/a b.webp", "without_an_end")]
    assert list(table()["path"]) == paths
    broken = table("predictions.broken.csv")
    names = ["cut.jpg", "deep.png", "gone.png", "text.jpg", "zero.jpg"]
    assert list(broken["path"]) == [f"odd/{name}" for name in names]
    assert dict(zip(broken["path"], broken["reason"], strict=True)) == found.broken
    assert "truncated" in found.broken["odd/cut.jpg"] and "8 bits" in found.broken["odd/deep.png"]
    assert found.passed_over == {".txt": 1, ".xml": 1, "": 1} and found.broken_path == "predictions.broken.csv"


def test_a_folder_that_cannot_be_read_is_listed_and_one_of_broken_files_alone_refused(model, monkeypatch):
    folder = Path(photos(count=3))
    scandir = os.scandir

    def refuse(path="."):
        if str(path).endswith("photos/x"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        found = predicted(model, str(folder))
    assert found.num_images == 2 and "Permission denied" in found.broken["photos/x"]
    Path("bad").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (Path("bad") / name).touch()
    words = refusal(model, "bad", output="bad.csv")
    assert "none of 2 images can be used: bad/1.jpg" in words and "bad.broken.csv" in words
    assert len(table("bad.broken.csv")) == 2 and not Path("bad.csv").exists() and not Path(".bad.csv.hf_deit").exists()
    shutil.rmtree("bad")
    words = refusal(model, "bad2") if Path("bad2").mkdir() is None else ""
    assert "there are no images in 'bad2'" in words


def test_a_file_that_the_processor_cannot_prepare_or_that_vanishes_is_listed(model, monkeypatch):
    folder, preprocess = photos(count=6), predict_module.FileImages.image

    def vanishing(images, index):
        if index == 4:  # of x/01, x/03, x/05, y/00, y/02, y/04
            os.remove(images.path(index))
        return preprocess(images, index)

    def fails_on_some(processor, image):
        if image.width == 45:
            raise ValueError("too wide")
        return pixels_of(processor, image)

    monkeypatch.setattr(predict_module.FileImages, "image", vanishing)
    monkeypatch.setattr("hf_deit.evaluation.answers.asking.pixels_of", fails_on_some)
    found = predicted(model, folder)
    assert list(found.broken) == ["photos/x/05.png", "photos/y/02.png"] and found.num_images == 4
    assert "No such file" in found.broken["photos/y/02.png"]
    assert "image processor fails on it (45 x 25 pixels)" in found.broken["photos/x/05.png"]


def test_images_are_named_in_many_ways(model, monkeypatch):
    photos(count=6)
    paths = [str(path) for path in sorted(Path("photos").rglob("*.png"))]
    Path("paths.txt").write_text("\r\n".join(paths[:4]) + "\n\n")
    Path("some.xml").touch()
    Path("photos/relative.txt").write_text("\ufeffx/01.png\ny/00.png\n")
    Path("shell.txt").write_text("photos/x/01.png\r\nphotos/x/03.png\r\n", "utf-16")  # as PowerShell writes it
    names = {
        ("photos/**/*.png",): paths,
        ("photos/x/03.png", "photos/y", os.path.abspath("photos/x/03.png")): ["photos/x/03.png", *paths[3:]],
        ("shell.txt",): paths[:2],
        ("paths.txt",): paths[:4],
        ("photos/relative.txt",): ["photos/x/01.png", "photos/y/00.png"],
        ("photos/x/01.png", "paths.txt", "some.xml"): ["photos/x/01.png"],  # as `*` gives them
        ("photos/**",): paths,
        ("-",): paths[1:3],
    }
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("\0".join(paths[1:3]).encode())))
    for number, (images, expected) in enumerate(names.items()):
        found = predicted(model, *images, output=f"{number}.csv")
        assert list(table(f"{number}.csv")["path"]) == expected, images
        assert found.num_repeated == {3: 1 if "photos/y" in images else 0}.get(len(images), found.num_repeated)


def test_data_sets_are_taken_with_their_split(model, monkeypatch, tmp_path):
    data = textured(9)
    digits = load_digits()
    few = dataclasses.replace(digits, validation=digits.validation.select(range(9)))
    monkeypatch.setattr("hf_deit.evaluation.predictions.data_set.load_digits", lambda: few)
    data.to_parquet("some.parquet")
    Path("set/data").mkdir(parents=True)
    data.select(range(5)).to_parquet("set/data/train-00000-of-00001.parquet")
    data.select(range(5, 9)).to_parquet("set/data/test-00000-of-00001.parquet")
    for split in ("train", "test"):
        photos(Path("folders") / split, 4)
    pack("folders/train")
    Path("mnist").mkdir()
    sizes = [number.to_bytes(4) for number in (7, 12, 12)]
    Path("mnist/train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"".join(sizes) + bytes(range(144)) * 7)
    Path("mnist/train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + sizes[0] + bytes(7))
    of_rows = {
        ("some.parquet", None): 9,
        ("set", None): 4,
        ("set", "train"): 5,
        ("folders", "test"): 4,
        ("some.zip", None): 4,
        ("some.tgz", None): 4,
        ("mnist", None): 7,
        ("sklearn:digits", None): 9,
    }
    for number, ((name, split), rows) in enumerate(of_rows.items()):
        predicted(model, name, split=split, output=f"{number}.csv", batch_size=64)
        assert list(table(f"{number}.csv")["row"]) == list(range(rows)), name
    paths = [str(path) for path in sorted(Path("folders/test").rglob("*.png"))]
    predicted(model, *paths, output="files.csv")
    assert list(table("files.csv")["label"]) == list(table("3.csv")["label"])
    assert [str(Path(path).relative_to(tmp_path)) for path in table("3.csv")["path"]] == paths
    for number in (4, 5):
        archive = table(f"{number}.csv")
        assert list(archive["path"]) == [str(path) for path in sorted(Path("folders/train").rglob("*.png"))]
        assert list(table(f"{number}.broken.csv")["path"]) == ["row 4 of the images (../notes/bad.png)"]
    assert archive["label"].to_list() == table("4.csv")["label"].to_list()
    Path("damaged.zip").write_bytes(b"PK none")
    assert "cannot read images from 'damaged.zip': File is not a zip file" in refusal(model, "damaged.zip")


def pack(folder: str) -> None:
    """Puts the images of a folder, and what is no image, into a ZIP file and a tar file."""
    files = {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*.png"))}
    files |= {"../notes/bad.png": b"none", "notes/a.txt": b"none", "__MACOSX/._x.png": b"none"}
    with zipfile.ZipFile("some.zip", "w") as archive, tarfile.open("some.tgz", "w:gz") as tar:
        for name, content in files.items():
            archive.writestr(name, content)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def stop_after(monkeypatch, number: int) -> None:
    write, written = ChunkFolder.write, []

    def stopped(folder, chunk, *content):
        if len(written) == number:
            raise KeyboardInterrupt
        written.append(chunk)
        write(folder, chunk, *content)

    monkeypatch.setattr(ChunkFolder, "write", stopped)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_where_it_was_stopped_it_goes_on_to_the_same_file(model, monkeypatch, suffix):
    folder = photos(count=20)
    (Path(folder) / "x" / "11.png").write_bytes(b"none")
    predicted(model, folder, output=f"whole.{suffix}")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        predicted(model, folder, output=f"out.{suffix}")
    assert not Path(f"out.{suffix}").exists()
    found = predicted(model, folder, output=f"out.{suffix}")
    assert found.num_computed == 12 and found.num_images == 19
    for end in (f".{suffix}", f".broken.{suffix}"):
        assert Path(f"out{end}").read_bytes() == Path(f"whole{end}").read_bytes()
    kept = sorted(os.listdir(f".out.{suffix}.hf_deit"))
    assert kept == ["finished.json", "identity.json"]
    monkeypatch.setattr(Classifier, "logits_and_features", lambda *args, **kwargs: pytest.fail("a model was asked"))
    assert predicted(model, folder, output=f"out.{suffix}") == dataclasses.replace(
        found, num_computed=0, seconds=pytest.approx(0, abs=60)
    )


def test_killed_while_it_writes_it_leaves_what_was_there_whole(model):
    folder = photos(count=40)
    predicted(model, folder, output="whole.jsonl", top_k=1)

    def run() -> None:
        predict_module.write_json = lambda *args: None
        predicted(model, folder, output="out.jsonl", top_k=1)

    sizes = [1_500, Path("whole.jsonl").stat().st_size - 10]
    assert all(killed_while_writing(run, after) for after in sizes)
    assert not Path("out.jsonl").exists()
    predicted(model, folder, output="out.jsonl", top_k=1)
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert [name for name in os.listdir() if name.endswith(".tmp")] == []


@pytest.mark.parametrize("is_finished", [False, True])
def test_of_something_else_it_does_not_go_on(model, monkeypatch, tmp_path, is_finished):
    folder = photos(count=12)
    with monkeypatch.context() as patch:
        if is_finished:
            predicted(model, folder)
        else:
            stop_after(patch, 1)
            with pytest.raises(KeyboardInterrupt):
                predicted(model, folder)
    reweighted_copy, renamed_copy = (shutil.copytree(model, tmp_path / name) for name in ("reweighted", "renamed"))
    reweighted(reweighted_copy, lambda weights: {name: tensor + 0.01 for name, tensor in weights.items()})
    edited(renamed_copy, id2label={"0": "x", "1": "y", "2": "z"}, label2id={"x": 0, "y": 1, "z": 2})
    said = [
        (refusal(str(reweighted_copy), folder), "the model's weights"),
        (refusal(str(renamed_copy), folder), "the model's labels"),
        (refusal(model, folder, top_k=2), "--top_k (3, now 2)"),
        (refusal(model, folder, heads=True), "--heads (False, now True)"),
        (refusal(model, folder, batch_size=8), "--batch_size (4, now 8)"),
    ]
    os.utime(Path(folder) / "x" / "01.png", (1, 1))
    said.append((refusal(model, folder), "the images"))
    noise(9, 9).save(Path(folder) / "more.png")
    said.append((refusal(model, folder), "how many images there are (12, now 13)"))
    assert all(words in message and "--overwrite" in message for message, words in said), said
    assert Path("predictions.csv").exists() == is_finished
    predicted(model, folder, overwrite=True)
    fresh = predicted(model, folder, output="fresh.csv")
    assert Path("predictions.csv").read_bytes() == Path("fresh.csv").read_bytes() and fresh.num_images == 13


def test_a_foreign_or_changed_file_is_not_written_over(model):
    folder = photos(count=4)
    Path("predictions.csv").write_text("mine")
    assert "is there already, and is of another command" in refusal(model, folder)
    assert Path("predictions.csv").read_text() == "mine"
    predicted(model, folder, overwrite=True)
    Path("predictions.csv").write_text("mine")
    assert "was changed since it was written" in refusal(model, folder)
    os.remove("predictions.csv")
    assert predicted(model, folder).num_images == 4


def test_a_full_disk_is_told_and_what_was_there_is_kept(model):
    folder = photos(count=20)
    with pytest.raises(CheckpointError, match="File too large"), full_disk(1_200):
        predicted(model, folder)
    assert not Path("predictions.csv").exists()
    predicted(model, folder, output="whole.csv")
    predicted(model, folder)
    assert Path("predictions.csv").read_bytes() == Path("whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ""}, "give --model"),
        ({"images": ()}, "give --images"),
        ({"output": "out.cvs"}, "must end in .csv, .parquet, .jsonl; did you mean '.csv'?"),
        ({"output": "out"}, "must end in .csv"),
        ({"output": "x.broken.csv"}, "give another name"),
        ({"top_k": 0}, "top_k must lie in"),
        ({"sort_into": "x", "min_probability": 1.5}, "min_probability must lie in [0, 1]"),
        ({"sort_into": "x", "min_probability": float("nan")}, "min_probability must lie in [0, 1]"),
        ({"min_probability": 0.5}, "is of the folders that --sort_into makes"),
        ({"link": "copy"}, "is of the folders that --sort_into makes"),
        ({"sort_into": "x", "link": "hardly"}, "link must be one of symbolic, hard, copy"),
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"weights": "both"}, "weights must be one of"),
        ({"output": "no/such/out.csv"}, "make 'no/such' first"),
        ({"images": ("photos", "sklearn:digits")}, "stands alone in --images: leave out 'photos'"),
        ({"images": ("photos/x/01.png",), "split": "test"}, "--split 'test' is of a data set"),
        ({"image_column_name": "image"}, "--image_column_name says nothing of image files"),
        (
            {"images": ("sklearn:digits",), "dataset_revision": "x"},
            "--dataset_revision says nothing of sklearn:digits",
        ),
        ({"split": "train", "dataset_revision": "x"}, "--dataset_revision says nothing of the folder 'photos'"),
        ({"images": ("no/such/folder",)}, "there is no file or folder 'no/such/folder'"),
        ({"images": ("nofolder.jpg",)}, "there is no file or folder 'nofolder.jpg'"),
        ({"images": ("none/*.jpg",)}, "no file fits the pattern 'none/*.jpg'"),
        ({"images": ("photozz",)}, "there is no file or folder 'photozz' here, and as a data set's name: "),
        ({"images": ("sklearn:digits",), "split": "tets"}, "has no split 'tets'"),
        ({"model": "/no/such/model"}, "/no/such/model"),
        ({"sort_into": "photos"}, "is not empty"),
        ({"sort_into": "file"}, "is no folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(model, settings, words):
    photos(count=2)
    Path("file").touch()
    before = sorted(map(str, Path().rglob("*")))
    with pytest.raises(InputError) as error:
        given = {"model": model, "images": ("photos",), "num_workers": 0, **settings}
        predict(PredictionArguments(**given))
    assert words in str(error.value) and sorted(map(str, Path().rglob("*"))) == before


def test_heads_of_a_model_with_one_are_refused(tmp_path):
    assert "has one head" in refusal(str(saved(tmp_path / "model", convnet())), photos(count=2), heads=True)


def links_in(folder: str) -> dict[str, str]:
    """Where the links in a folder lead."""
    found = sorted(path for path in Path(folder).rglob("*") if path.is_symlink())
    return {str(path.relative_to(folder)): os.readlink(path) for path in found}


def test_images_are_sorted_into_folders_that_one_can_train_with(model):
    folder = Path(photos(count=30))
    for label in range(4):  # of more than one class
        Image.new("RGB", (30, 30), (255 * (label % 2), 255 * (label // 2), 99)).save(folder / f"0{label}.png")
    predicted(model, str(folder), output="first.csv")
    threshold = float(np.median(table("first.csv")["probability"]))
    settings = {"sort_into": "photos/sorted", "min_probability": threshold}
    found = predicted(model, str(folder), **settings)
    rows = table()
    sure = rows[rows["probability"] >= threshold]
    links = links_in("photos/sorted")
    assert 0 < len(sure) < len(rows) == 34
    assert found.sorted.num_images == len(links) == len(sure) and found.sorted.num_left_aside == 34 - len(sure)
    by_target = {target: Path(name).parent.name for name, target in links.items()}
    assert by_target == {os.path.abspath(row.path): row.label for row in sure.itertuples()}
    again = predicted(model, str(folder), **settings)
    assert links_in("photos/sorted") == links and again.num_computed == 0
    os.remove(Path("photos/sorted") / next(iter(links)))  # as if it had been stopped before
    predicted(model, str(folder), **settings)
    assert links_in("photos/sorted") == links
    assert "is not empty" in refusal(model, str(folder), sort_into="photos/sorted")
    assert predicted(model, str(folder)).num_images == 34  # the links are no further images


def test_one_can_train_with_sorted_images(tmp_path):
    network = convnet([LABELS[0], "b/b", "Tr\u00e8s c, d"])
    folder, model = photos(count=24), str(saved(tmp_path / "model", network))
    images = [Image.open(path) for path in Path(folder).rglob("*.png")]
    classifier = describe_classifiers([model], list(network.config.id2label.values()))[0].load()
    with torch.no_grad():  # so that it does not say the same of all
        logits = classifier.model(pixel_values=torch.stack(list(map(classifier.preprocess, images)))).logits
        network.classifier[-1].bias.sub_(logits.mean(dim=0))
    network.save_pretrained(model)
    found = predicted(model, folder, sort_into="sorted")
    assert len(found.counts) > 1
    data = load(train_dir="sorted", validation_fraction=0.25)
    names = {label.replace("/", "_"): number for label, number in found.counts.items()}
    labels = [data.label_names[label] for part in (data.train, data.validation) for label in part["label"]]
    assert {name: labels.count(name) for name in data.label_names} == names


def test_clashing_names_are_told_apart(model):
    for number, name in enumerate(["a/1.png", "b/1.png", "c/1.PNG", "d/1-2.png", "e/.x"]):
        Path(name).parent.mkdir()
        noise(20, 20, seed=7).save(name, "PNG")
        os.utime(name, (number, number))
    found = predicted(model, "a", "b", "c", "d", "e/.x", sort_into="sorted")
    [label] = found.counts
    assert links_in("sorted") == {
        f"{label}/{name}": os.path.abspath(path)
        for name, path in {"1.png": "a/1.png", "1-2.png": "b/1.png", "1-3.PNG": "c/1.PNG", "1-2-2.png": "d/1-2.png",
                           "_.x": "e/.x"}.items()
    }  # fmt: skip


def test_many_files_of_one_name_take_no_time_that_grows_with_their_square(tmp_path):
    paths = [tmp_path / "photos" / str(number) / "frame.jpg" for number in range(500)]
    images = SimpleNamespace(stored=lambda index: (str(paths[index]), None))
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    rows, composed, calls = ((index, "a", 1.0) for index in range(len(paths))), sorting.composed, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "composed", lambda name: calls.append(name) or composed(name))
        sorting.sort_into("sorted", rows, images, ["a"], key={}, min_probability=None, link=None)
    assert len(links_in("sorted")) == len(paths) and len(calls) < 3 * len(paths)


def test_labels_become_names_that_every_file_system_takes():
    labels = ["cat", "Cat", "a/b", "a_b", "..", ".", "", ".hidden", "x" * 300, "x" * 299, "\u00e9" * 200, "a\nb"]
    labels += ["__MACOSX", "cafe\u0301", "caf\u00e9", "dot.", "tench, Tinca tinca", "CON", "nul.x", "console"]
    names = sorting.folder_names(labels)
    assert list(names) == labels and names["cat"] == "cat" and names["a_b"] == "a_b" != names["a/b"]
    assert names["tench, Tinca tinca"] == "tench, Tinca tinca" and names["console"] == "console"
    assert names["CON"] == "_CON" and names["nul.x"] == "_nul.x"  # devices, to Windows
    assert all(
        0 < len(name.encode()) <= 255 and "/" not in name and not name.startswith(".") for name in names.values()
    )
    assert len({name.casefold() for name in names.values()}) == len(labels)


def test_where_there_are_no_links_there_are_others_or_copies(model, monkeypatch):
    folder = photos(count=6)

    def none(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    for link in ("hard", "copy"):
        found = predicted(model, folder, sort_into=link, link=link)
        assert found.sorted.link == link and links_in(link) == {}
    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", none)
        assert predicted(model, folder, sort_into="hard2").sorted.link == "hard"
        patch.setattr(os, "link", none)
        found = predicted(model, folder, sort_into="copies")
        assert found.sorted.link == "copy" and found.sorted.num_images == 6
        with pytest.raises(CheckpointError, match="Operation not permitted"):
            predicted(model, folder, sort_into="other", link="symbolic")
    files = [path for path in Path("copies").rglob("*.png")]
    assert len(files) == 6 and all(path.stat().st_nlink == 1 for path in files)
    assert predicted(model, folder, sort_into="copies").sorted.num_images == 6


def test_images_of_a_data_set_are_sorted_as_they_are_stored(model):
    data = textured(6)
    data.to_parquet("some.parquet")
    found = predicted(model, "some.parquet", sort_into="sorted")
    stored = {path.name: path.read_bytes() for path in Path("sorted").rglob("*.png")}
    encoded = data.cast_column("image", type(data.features["image"])(decode=False))["image"]
    assert stored == {f"{row:08}.png": image["bytes"] for row, image in enumerate(encoded)}
    labels = {path.name: path.parent.name for path in Path("sorted").rglob("*.png")}
    assert [labels[f"{row:08}.png"] for row in range(6)] == list(table()["label"])
    assert found.sorted.num_images == 6 and found.sorted.link == "copy"
