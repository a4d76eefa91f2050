"""Contract: whatever a file or an option holds, a command ends soon, with a status that says what has happened, and
with a message instead of a traceback. What it meets here are files of every kind that it reads, changed at random by a
fixed seed, and options with values that they cannot have.
"""

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.checkpoints import PLAIN, our_folder, pth, timm_folder, weights_of
from support.images import class_folders, parquet, table
from support.tiny import resnet

from hf_deit import DistilledDeiTImageProcessor
from hf_deit.commands.main import main
from hf_deit.commands.unforeseen import TRACEBACK_VARIABLE
from hf_deit.recipes import ARGUMENT_CLASSES

SEED = 1
SECONDS = 20  # after which a command hangs
FORESEEN = {0, 1, 2, 3}
LABELS = {"ape": 3, "bee": 3, "cat": 3}

# Values that no field expects, and those at the edge of what some field takes.
ODD = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        10**6,
        2**31,
        2**63,
        2**64,
        -(2**63),
        10**30,
        0.0,
        0.5,
        -0.5,
        1e-300,
        1e300,
    ),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        " ",
        "a",
        "0",
        "-1",
        "224",
        "none",
        "null",
        "auto",
        "ünï/日本/😀",
    ),
    *("x" * 5000, "\x00", "../..", "/dev/zero", "/proc/self/mem", "a/b--c.D", "hf://datasets/a/b", "${HOME}", "%s{0}"),
    *([], [None], [0, 0, 0], [1, 2], [0.5] * 3, ["a"] * 3, [float("nan")] * 3, [10**9, 10**9], [[[]]], [-1] * 3),
    *({}, {"a": 1}, {"height": 0, "width": 0}, {"height": 10**6, "width": 10**6}, {"shortest_edge": -1}, {"0": None}),
    *({"height": "a", "width": None}, {"a": {"b": {"c": []}}}),
]
# The same as people write them on a command line.
ODD_TEXTS = [
    *(
        "",
        "0",
        "1",
        "-1",
        "2",
        "7",
        "4294967295",
        "4294967296",
        "18446744073709551616",
        "-9223372036854775809",
        "1e400",
    ),
    *(
        "0.5",
        "-0.5",
        "1e-300",
        "1e300",
        "nan",
        "inf",
        "-inf",
        "true",
        "false",
        "none",
        "None",
        "null",
        "auto",
        "a",
        " ",
    ),
    *("[]", "{}", "[1", '{"a": 1}', '{"hidden_size": -1}', "ünï/日本", "x" * 3000, "../..", "/dev/null", "/proc/self"),
    *("0:0", "5:3", "0:99999999999999999999", "a:b", "--", "-x", "1,2", "1 2", "a=b", "%s", "no", "steps", "epoch"),
]


class Hang(BaseException):
    """Not an error, which the command would tell."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# What is changed


def in_json(text: str, chance: random.Random) -> str:
    """A document with one value changed, or another one altogether."""
    kind = chance.randrange(12)
    if kind == 0:
        return text[: chance.randrange(len(text))]
    if kind == 1:
        return json.dumps(chance.choice(ODD))
    if kind == 2:
        depth = chance.choice([100, 1000, 100_000])
        return chance.choice(["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
    if kind == 3:
        place = chance.randrange(len(text))
        return (
            text[:place]
            + chance.choice(["\x00", '"', "{", "}", ",", "\ud800", "1e999", "NaN", "\\u0000"])
            + text[place:]
        )
    content = json.loads(text)
    within_it = content
    while True:
        if not isinstance(within_it, dict | list) or not within_it:
            return json.dumps(chance.choice(ODD))
        keys = list(within_it) if isinstance(within_it, dict) else range(len(within_it))
        key = chance.choice(keys)
        if isinstance(within_it[key], dict | list) and within_it[key] and chance.random() < 0.5:
            within_it = within_it[key]
            continue
        if kind == 4:
            del within_it[key]
        else:
            within_it[key] = chance.choice(ODD)
        return json.dumps(content)


def in_bytes(content: bytes, chance: random.Random) -> bytes:
    """A file with some bits turned, cut off, grown, or with another beginning."""
    content = bytearray(content or b"x")
    kind = chance.randrange(6)
    if kind == 0:
        return bytes(content[: chance.randrange(len(content))])
    if kind == 1:
        return bytes(content) + chance.randbytes(chance.randrange(1, 100))
    if kind == 2:
        content[:8] = struct.pack("<Q", chance.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1]))
        return bytes(content)
    if kind == 3:
        start = chance.randrange(len(content))
        content[start : start + chance.randrange(1, 200)] = chance.randbytes(chance.randrange(200))
        return bytes(content)
    most = len(content) if kind == 4 else min(len(content), 2000)  # of the header
    for _ in range(chance.choice([1, 1, 3, 30])):
        content[chance.randrange(most)] ^= 1 << chance.randrange(8)
    return bytes(content)


YAML = [
    *(
        "a: !!int x",
        "seed: !!int x",
        "!!set {seed, output_dir}",
        "seed: !!set {1, 2}",
        "seed: !!binary x",
        "!!binary x",
    ),
    *(
        "seed: !!timestamp x",
        "seed: !!float x",
        "seed: !!bool x",
        "seed: !!null x",
        "seed: !!omap x",
        "seed: !!pairs x",
    ),
    *("seed: !!python/name:os.system x", "seed: !!python/object/apply:os.getcwd []", "seed: !b 1", "seed: 2026-99-99"),
    *(
        "seed: 1\nseed: 2",
        "seed: 1\n---\nseed: 2",
        "\tseed: 1",
        "- seed",
        "seed",
        "1",
        "null",
        "",
        "seed: [",
        "[[[[",
        "{{{",
    ),
    *("? [1, 2]\n: 3", "? {a: 1}\n: 3", "1: 2", "null: 1", "base: [1]", "base: /proc/self/mem", "base: /dev/zero"),
    *(
        "base: .",
        "base: mine.yaml",
        "base: nowhere",
        "base: ''",
        'base: "\\0"',
        "<<: 1",
        "<<: {seed: 1}",
        "<<: [1, 2]",
    ),
    *(
        "a: &a [*a]",
        "seed: &a {a: *a}",
        "seed: *a",
        "student_overrides: &a {a: *a}",
        'seed: "\\ud800"',
        "%YAML 9.9\n--- {}",
    ),
    *(
        "seed: 0x" + "f" * 5000,
        "seed: " + "9" * 5000,
        "seed: " + "1:" * 3000 + "1",
        "learning_rate: 1e99999",
        "seed: .nan",
    ),
    *("a: " + "[" * 5000 + "]" * 5000, "a: " + "{a: " * 3000 + "}" * 3000, "- " * 2000 + "a", "a\n" * 1000),
    "a: &a0 [x, x]\n" + "".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(30)),
    "student_overrides: &a0 {x: 1}\n" + "".join(f"b{i}: &a{i + 1} {{a: *a{i}, b: *a{i}}}\n" for i in range(60)),
    "b0: &a0 {x: 1}\n" + "".join(f"b{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}]}}\n" for i in range(60)),
]


# What it is tried on


SMALL = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
RECIPE = {
    "student": "deit_tiny_distilled_patch16_224",
    "student_overrides": SMALL,
    "max_steps": 2,
    "save_steps": 1,
    "save_strategy": "steps",
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "crop_ratio": 1.0,
}


def quiet(*line: object) -> tuple[int, str]:
    """Runs a command, and gives its status and what it said on stderr."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        status = main([str(word) for word in line])
    return status, said.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with one of everything that commands read, none of it damaged."""
    folder = tmp_path_factory.mktemp("whole")
    class_folders(folder / "images", LABELS)
    parquet(folder / "data", train=table([0, 1, 2] * 10), test=table([0, 1, 2] * 2))
    teacher = resnet()
    teacher.config.id2label, teacher.config.label2id = dict(enumerate(LABELS)), {n: i for i, n in enumerate(LABELS)}
    teacher = type(teacher)(teacher.config)
    teacher.save_pretrained(folder / "teacher")
    DistilledDeiTImageProcessor(crop_size=16).save_pretrained(folder / "teacher")
    our_folder(folder / "student", labels=list(LABELS))
    our_folder(folder / "plain", PLAIN, labels=list(LABELS))
    timm_folder(folder / "timm", weights_of())
    pth(folder / "weights.pth", {"model": weights_of(), "args": None})
    (folder / "mine.yaml").write_text(json.dumps(RECIPE))
    run = [*("--recipe", folder / "mine.yaml"), *of_images(folder), *("--output_dir", folder / "run")]
    status, said = quiet(
        "train",
        *run,
        "--teacher_labels",
        folder / "labels",
        *("--eval_strategy", "steps", "--eval_steps", 1),
        "--ema_decay",
        "0.9",
    )
    assert status == 0, said
    return folder


def of_images(folder: Path) -> list[object]:
    options = ["--train_dir", folder / "images", "--validation_dir", folder / "images", "--disable_tqdm", "true"]
    return [*options, "--use_cpu", "true", "--teacher_model_name_or_path", folder / "teacher"]


class Place(NamedTuple):
    """Where a case is made: what is whole, a folder for what is changed, and chance."""

    whole: Path
    folder: Path
    chance: random.Random

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.whole / name, self.folder / name))

    def changed(self, name: str, file: str, change: Callable[[Any, random.Random], Any] | None = None) -> Path:
        """A copy of a folder in which a file is changed."""
        folder = self.copy(name)
        path = folder / file
        if change is in_bytes or (change is None and path.suffix != ".json"):
            path.write_bytes(in_bytes(path.read_bytes(), self.chance))
        else:
            path.write_text((change or in_json)(path.read_text(), self.chance), errors="surrogatepass")
        return folder

    def images(self, **others: Path) -> list[object]:
        images = self.whole / "images"
        options = {"recipe": self.whole / "mine.yaml", "train_dir": images, "validation_dir": images, **others}
        options |= {"use_cpu": "true", "disable_tqdm": "true"}
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def preview(self, **others: Path) -> list[object]:
        return ["preview", *self.images(**others), "--slots", "0:2", "--output", self.folder / "p.png"]

    def label(self, **others: Path) -> list[object]:
        others = {"teacher_model_name_or_path": self.whole / "teacher", "teacher_labels": self.folder / "l", **others}
        return ["label", *self.images(**others), "--epochs", "0:1"]

    def train(self, *more: object, **others: Path) -> list[object]:
        return [
            "train",
            *self.images(**{"output_dir": self.folder / "run", "distillation_type": "none", **others}),
            *more,
        ]

    def convert(self, source: Path) -> list[object]:
        return [
            "convert",
            source,
            self.folder / "out",
            "--to",
            self.chance.choice(["facebook", "timm", "transformers", "hf_deit"]),
        ]

    def publish(self, folder: Path) -> list[object]:
        return ["publish", folder, "--hub_model_id", "a/b"]


def as_student(place: Place, folder: Path) -> list[object]:
    overrides = {"student_overrides": "null", "student": folder}
    return place.preview(**overrides, **({"replace_head": "true"} if place.chance.random() < 0.3 else {}))


def a_recipe(place: Place) -> list[object]:
    path = place.folder / "mine.yaml"
    kind = place.chance.randrange(4)
    if kind == 0:
        path.write_bytes(in_bytes((place.whole / "run" / "recipe.yaml").read_bytes(), place.chance))
    elif kind == 1:
        path.write_text(place.chance.choice(YAML))
    elif kind == 2:
        path.write_text(in_json(json.dumps(RECIPE), place.chance), errors="surrogatepass")
    else:
        recipe = {**RECIPE, place.chance.choice(FIELDS): place.chance.choice(ODD)}
        path.write_text(json.dumps(recipe))
    return place.preview(recipe=path)


def options_of_a_run(place: Place) -> list[object]:
    given = [
        f"--{place.chance.choice(FIELDS)}={place.chance.choice(ODD_TEXTS)}"
        for _ in range(place.chance.choice([1, 1, 2]))
    ]
    line = place.chance.choice([place.preview(), place.label(), place.train()])
    return [*line, *given]


def options_of_others(place: Place) -> list[object]:
    text = place.chance.choice(ODD_TEXTS)
    run, images = place.whole / "run", place.whole / "images"
    return place.chance.choice(
        [
            [*place.preview(), "--slots", text],
            [*place.preview(), "--epoch", text],
            [*place.preview(), "--output", text],
            [*place.label(), "--epochs", text],
            [*place.convert(place.whole / "weights.pth")[:-1], text],
            [*place.convert(Path(text)), "--ema"],
            ["convert", place.whole / "weights.pth", text or " ", "--to", "facebook", text],
            ["publish", text, "--hub_model_id", "a/b"],
            ["publish", run, "--hub_model_id", text],
            ["publish", run, "--hub_model_id", "a/b", "--hub_push_timeout", text],
            ["publish", run, "--hub_model_id", "a/b", "--hub_private_repo", text],
            ["publish", images, "--hub_model_id", "a/b", "--hub_revision", text],
            ["benchmark", text],
            ["benchmark", "imports", "--rounds", place.chance.choice(["-1", "a", "nan", "", "[]"])],
            ["launch", text, text],
            ["launch", "--num_processes", place.chance.choice(["-1", "0", "a", "nan"]), "preview", "--recipe", "no"],
            ["launch", "--config_file", text, "preview", "--recipe", "no"],
            [text, text],
        ]
    )


def a_students_config(place: Place) -> list[object]:
    return as_student(
        place, place.changed(place.chance.choice(["student", "plain", "teacher", "timm"]), "config.json")
    )


def a_students_processor(place: Place) -> list[object]:
    name = place.chance.choice(["student", "plain", "teacher"])
    return as_student(place, place.changed(name, "preprocessor_config.json"))


def a_students_weights(place: Place) -> list[object]:
    return as_student(place, place.changed(place.chance.choice(["student", "teacher", "timm"]), "model.safetensors"))


def a_teacher(place: Place) -> list[object]:
    name = place.chance.choice(["teacher", "plain", "timm"])
    files = ["config.json", "config.json", "preprocessor_config.json", "preprocessor_config.json", "model.safetensors"]
    files = [file for file in files if (place.whole / name / file).exists()]
    return place.label(teacher_model_name_or_path=place.changed(name, place.chance.choice(files)))


def what_is_converted(place: Place) -> list[object]:
    if place.chance.random() < 0.4:
        path = place.folder / "weights.pth"
        path.write_bytes(in_bytes((place.whole / "weights.pth").read_bytes(), place.chance))
        return place.convert(path)
    name = place.chance.choice(["student", "plain", "timm"])
    files = [path.name for path in (place.whole / name).iterdir()]
    return place.convert(place.changed(name, place.chance.choice(files)))


def what_is_published(place: Place) -> list[object]:
    names = ["run.json", "run.json", "config.json", "preprocessor_config.json", "model.safetensors"]
    return place.publish(place.changed("run", place.chance.choice(names)))


def a_checkpoint(place: Place) -> list[object]:
    files = [path for path in sorted((place.whole / "run" / "checkpoint-1").iterdir()) if path.is_file()]
    run = place.copy("run")
    shutil.rmtree(run / "checkpoint-2")
    path = run / "checkpoint-1" / place.chance.choice([*files, *[files[0].with_name("trainer_state.json")] * 5]).name
    if path.suffix == ".json":
        path.write_text(in_json(path.read_text(), place.chance), errors="surrogatepass")
    else:
        path.write_bytes(in_bytes(path.read_bytes(), place.chance))
    return ["train", *of_run(place.whole, run), "--resume_from_checkpoint", "true"]


def a_runs_recipe(place: Place) -> list[object]:
    run = place.copy("run")
    path = run / "recipe.yaml"
    if place.chance.random() < 0.5:
        path.write_bytes(in_bytes(path.read_bytes(), place.chance))
    else:
        path.write_text(place.chance.choice(YAML))
    return ["train", *of_run(place.whole, run), "--resume_from_checkpoint", "true"]


def kept_labels(place: Place) -> list[object]:
    files = sorted(
        str(path.relative_to(place.whole / "labels")) for path in (place.whole / "labels").rglob("*") if path.is_file()
    )
    store = place.changed("labels", place.chance.choice([*files, *["store.json"] * len(files)]))
    shown = place.images(teacher_labels=store, output_dir=place.folder / "run", ema_decay=0.9)
    shown += ["--eval_strategy", "steps", "--eval_steps", "1"]
    ways = [
        place.publish(store),
        ["train", *shown, "--teacher_labels_readonly", "true"],
        place.label(teacher_labels=store),
    ]
    return place.chance.choice(ways)


def folders_of_images(place: Place) -> list[object]:
    images = place.copy("images")
    name = place.chance.choice(["train_dir", "unlabeled_dir", "validation_dir"])
    for _ in range(place.chance.choice([1, 1, 2, 3])):
        target = place.chance.choice(sorted(images.rglob("*")))
        kind = place.chance.randrange(10)
        if not target.exists() or target.is_symlink():
            continue
        if kind <= 2 and target.is_file():
            target.write_bytes(in_bytes(target.read_bytes(), place.chance))
        elif kind == 3:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            target.symlink_to(
                place.chance.choice([".", "..", "nowhere", "/dev/zero", "/proc", "/dev/null", target.name])
            )
        elif kind == 4:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            os.mkfifo(target)
        elif kind == 5:
            target.rename(
                target.with_name(
                    place.chance.choice(["\n", "a\tb", "é" * 60, "<b>|`*", "..png", "%s {0}", " ", "'", "-x", "val"])
                )
            )
        elif kind == 6:
            os.rename(target, os.fsencode(target.parent) + b"/caf\xe9" + str(place.chance.random()).encode())
        elif kind == 7:
            folder = target if target.is_dir() else target.parent
            (folder / "deep").mkdir(exist_ok=True)
            for link in ("a", "b"):
                (folder / "deep" / link).unlink(missing_ok=True)
                (folder / "deep" / link).symlink_to("..")
        elif kind == 8:
            (target if target.is_dir() else target.parent).joinpath("metadata.csv").write_text(
                "file_name,label\n\x00,1,2\n"
            )
        else:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    return place.preview(**{name: images})


def a_data_set(place: Place) -> list[object]:
    files = ["train-00000-of-00001.parquet", "README.md", "table.csv", "table.json"]
    name = place.chance.choice(files)
    data = place.copy("data")
    if name.startswith("table"):
        (data / files[0]).unlink()
        (data / files[1]).unlink()
        (data / name).write_text(
            place.chance.choice(["a,b\n1,2\n", "image,label\nx.png,ape\n", "{}", "[1]", '{"image": 1}\n', "\x00", ""])
        )
    else:
        (data / name).write_bytes(in_bytes((data / name).read_bytes(), place.chance))
    line = [
        "preview",
        "--recipe",
        place.whole / "mine.yaml",
        "--dataset_name",
        data,
        "--slots",
        "0:2",
        "--use_cpu=true",
    ]
    return [*line, *place.chance.choice([[], ["--streaming", "true", "--validation_split", "test"]])]


def of_run(whole: Path, run: Path) -> list[object]:
    options = {"recipe": whole / "mine.yaml", "eval_strategy": "steps", "eval_steps": 1, "ema_decay": 0.9}
    options |= {"output_dir": run, "teacher_labels": whole / "labels", "max_steps": 2}
    return [*(word for name, value in options.items() for word in (f"--{name}", value)), *of_images(whole)]


FIELDS = sorted(field.name for part in ARGUMENT_CLASSES for field in dataclasses.fields(part) if field.init)
KINDS = {
    a_recipe: 100,
    options_of_a_run: 90,
    options_of_others: 40,
    a_students_config: 50,
    a_students_processor: 40,
    a_students_weights: 20,
    a_teacher: 40,
    what_is_converted: 50,
    what_is_published: 30,
    a_checkpoint: 15,
    a_runs_recipe: 10,
    kept_labels: 15,
    folders_of_images: 20,
    a_data_set: 10,
}


def fault_of(kind: Callable[[Place], list[object]], place: Place) -> str:
    """What is wrong with how a command ends; "" if nothing is."""
    line = kind(place)
    os.chdir(place.folder)
    try:
        with within(SECONDS):
            status, said = quiet(*line)
    except Hang:
        return f"{line} hangs"
    is_well = status in FORESEEN and "Traceback" not in said and (status == 0 or "error: " in said)
    return "" if is_well else f"{line} ends with {status}:\n{said[-3000:]}"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_whatever_it_meets_a_command_ends_with_a_message(kind, whole, tmp_path, monkeypatch):
    monkeypatch.delenv(TRACEBACK_VARIABLE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    faults = []
    for number in range(KINDS[kind]):
        folder = tmp_path / str(number)
        folder.mkdir()
        fault = fault_of(kind, Place(whole, folder, random.Random(f"{SEED} {kind.__name__} {number}")))
        faults += [fault] * bool(fault)
        os.chdir(tmp_path)
        shutil.rmtree(folder, ignore_errors=True)
    assert not faults, "\n\n".join(faults[:5])


def test_there_are_five_hundred_of_them_and_what_is_whole_is_taken(whole, tmp_path):
    assert sum(KINDS.values()) >= 500
    place = Place(whole, tmp_path, random.Random(SEED))
    student = whole / "student"
    for line in (place.preview(), place.label(), place.convert(student), as_student(place, student)):
        assert quiet(*line)[0] == 0, line
