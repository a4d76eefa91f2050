"""From a folder of images to a classifier by one command: it says what it will do, goes on wherever it was ended, does
nothing twice, and refuses what cannot work before anything is loaded that takes long."""

import json
import re
import tomllib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.kill_points import KILLED, attempt, evenly
from support.main_of import ROOT, main_of
from support.zero_shot import clip_folder

from hf_deit.commands import demo, distil, evaluate_options, export_options
from hf_deit.commands.distilling import images as images_module
from hf_deit.commands.distilling import stages as stages_module
from hf_deit.commands.distilling import teacher as teacher_module
from hf_deit.commands.distilling.estimate import in_words
from hf_deit.commands.distilling.images import look_at
from hf_deit.commands.distilling.options import DistilOptions, read_options
from hf_deit.commands.distilling.readme import make_readme
from hf_deit.commands.distilling.stages import Record, Stage, run_stages, stages_of, without_places
from hf_deit.commands.distilling.teacher import PROBE_BACKBONE, TEACHER_RECIPE, ZERO_SHOT, choose_teacher
from hf_deit.commands.main import main
from hf_deit.errors import InputError
from hf_deit.export.page.runtime import PLACE_VARIABLE
from hf_deit.hub.looks import Rows

TINY = ["--image_size", "16", "--crop_ratio", "1.0", "--max_steps", "4", "--repeated_augmentation", "1"]
TINY += [
    "--student_overrides",
    json.dumps({name: value for name, value in tiny.SIZES.items() if name != "image_size"}),
]
TINY += ["--per_device_train_batch_size", "16", "--per_device_eval_batch_size", "20", "--mixup_group_size", "16"]
TINY += ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]
TINY += ["--dataloader_num_workers", "0", "--warmup_epochs", "0"]
DIGITS = [str(digit) for digit in range(10)]


def noise(folder: Path, names: dict[str, int], first: int = 0) -> Path:
    """Folders of so many images that are all different."""
    rng = np.random.default_rng(first)
    for name, count in names.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{first + number}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return tiny.fair_teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("images")
    noise(folder / "train", dict.fromkeys(DIGITS, 4))
    noise(folder / "test", dict.fromkeys(DIGITS, 1), first=100)
    return str(folder)


@pytest.fixture(autouse=True)
def out_of_reach(monkeypatch):
    monkeypatch.setattr(teacher_module, "has_weights", lambda name: False)
    knows_names = teacher_module.knows_names
    monkeypatch.setattr(teacher_module, "knows_names", lambda name: Path(name).is_dir() and knows_names(name))


# What is typed


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([], "there are no images"),
        (["--class_names", "cat", "dog"], "there are no images"),
        (["x", "--dataset_name", "y"], "either a folder of images or --dataset_name"),
        (["x", "--teacher", "a", "--probe", "b"], "--probe fits a teacher where none is named"),
        (["x", "--teacher", "none", "a"], "no teacher at all"),
        (["x", "--to", "onxx"], "did you mean 'onnx'"),
        (["x", "--to", "none", "onnx"], "--to must be"),
        (["x", "--class_names", "cat"], "'cat' alone"),
        (["x", "--class_names", "cat", "dog", "cat"], "'cat' twice"),
        (["x", "--class_names", "cat", "dog", "--probe", "b"], "--class_names is for a zero-shot teacher"),
        (["x", "--templates", "a photo of a cat"], "in the place of the class's name"),
        (["x", "--page", "nothing.tgz"], "which is not there"),
        (["x", "--hub_private_repo"], "is for --hub_model_id"),
        (["x", "--", "--output_dir", "y"], "--output_dir cannot stand behind --: give --output_dir"),
        (["x", "--", "--train-dir=y"], "give IMAGES"),
        (["x", "--", "--teacher_recipe", "debug_teacher"], "give --teacher FOLDER"),
        (["x", "--", "--seed", "1", "--distillation_type=none"], "give --teacher none"),
        (["x", "--", "3"], "behind -- stand options"),
        (["x", "--num_train_epochs", "3"], "unrecognized arguments: --num_train_epochs"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_looked_at(line, words):
    with pytest.raises(InputError, match=re.escape(words)):
        read_options(line)


def test_options_of_train_stand_behind_two_dashes():
    options = read_options(["x", "--to", "onnx", "torch", "--", "--num_train_epochs", "3"])
    assert (options.to, options.train) == (["onnx", "torch"], ["--num_train_epochs", "3"])
    assert read_options(["x"]).to == ("onnx",)
    # hf jobs uv run takes the first two dashes for itself, and so do others: two more do no harm.
    assert read_options(["x", "--", "--", "--num_train_epochs", "3"]).train == ["--num_train_epochs", "3"]


def test_several_processes_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distil.main(["x"]) == 2
    assert "hf-deit launch train" in capsys.readouterr().err


# What there is to learn from


def look(*line: str):
    return look_at(read_options(list(map(str, line))))


def test_a_folder_of_classes_is_counted(tmp_path):
    noise(tmp_path, {"cat": 12, "dog": 3})
    found = look(tmp_path)
    assert found.options == {"train_dir": str(tmp_path)} and found.label_names == ["cat", "dog"]
    assert dict(found.part("training").classes) == {"cat": 12, "dog": 3} and found.copies == found.leaked == 0
    assert re.search(r"training +15 +2 +3 \(dog\) +10 x 12\n", str(found))
    assert "fewer than 10 training images: dog (3)" in str(found)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "testing")])
def test_folders_of_splits_are_recognised(tmp_path, names):
    for number, name in enumerate(names):
        noise(tmp_path / name, {"cat": 3, "dog": 3}, first=100 * number)
    found = look(tmp_path)
    assert list(found.options) == ["train_dir", "validation_dir", "test_dir"]
    assert list(found.options.values()) == [str(tmp_path / name) for name in names]
    assert [part.count for part in found.parts] == [6, 6, 6]
    noise(tmp_path, {"unlabeled": 2}, first=300)
    assert look(tmp_path).options == {**found.options, "unlabeled_dir": str(tmp_path / "unlabeled")}


def test_images_without_folders_of_classes_have_no_labels(tmp_path):
    flat, deep, mixed = (noise(tmp_path / "a", {"": 2}), noise(tmp_path / "b", {"2024": 2, "2025": 2}), tmp_path / "c")
    noise(mixed, {"": 1, "more": 1})
    names = ["--class_names", "cat", "dog"]
    for folder, count in ((flat, 2), (deep, 4), (mixed, 2)):
        found = look(folder, *names)
        assert found.options == {"unlabeled_dir": str(folder)} and found.parts[0].count == count
        assert not found.are_labelled and found.note


def test_what_is_no_image_beside_folders_of_classes_changes_nothing(tmp_path):
    noise(tmp_path, {"cat": 3, "dog": 3, ".cache": 1})
    for name in ("README.md", "labels.csv", "Thumbs.db"):
        (tmp_path / name).write_text("cat, dog")
    assert look(tmp_path).options == {"train_dir": str(tmp_path)}
    noise(tmp_path, {"": 1}, first=50)
    assert "50.png lies beside folders" in look(tmp_path, "--class_names", "cat", "dog").note


@pytest.mark.parametrize("inside", ["", "outputs/distil"])
def test_an_output_folder_among_the_images_is_refused(tmp_path, monkeypatch, inside):
    monkeypatch.chdir(noise(tmp_path / "images", {"cat": 3, "dog": 3}))
    with pytest.raises(InputError, match="would lie among the images"):
        look(".", "--output_dir", inside or str(tmp_path / "images"))
    assert look(".", "--output_dir", str(tmp_path / "images 2")).options == {"train_dir": "."}


def test_files_that_cannot_be_used_copies_and_leaks_are_told(tmp_path):
    noise(tmp_path / "train", {"cat": 3, "dog": 3})
    noise(tmp_path / "test", {"cat": 1, "dog": 1}, first=50)
    (tmp_path / "train" / "cat" / "9.png").write_bytes(b"no image")
    (tmp_path / "test" / "dog" / "7.png").write_bytes((tmp_path / "train" / "dog" / "0.png").read_bytes())
    found = look(tmp_path)
    assert list(found.part("training").faults) == [str(tmp_path / "train" / "cat" / "9.png")]
    assert (found.copies, found.leaked) == (1, 1) and "warning: 1 image to validate or test with" in str(found)


@pytest.mark.parametrize(
    ("counts", "fraction"), [({"a": 100, "b": 100}, None), ({"a": 4, "b": 4}, 0.25), ({"a": 7, "b": 3, "c": 5}, 0.2)]
)
def test_of_few_images_one_of_each_class_is_held_out(tmp_path, counts, fraction):
    found = look(noise(tmp_path, counts))
    assert found.validation_fraction == fraction


@pytest.mark.parametrize(
    ("make", "line", "words"),
    [
        (lambda folder: None, [], "there are no images in"),
        (lambda folder: noise(folder, {"cat": 3}), [], "at least two classes, got cat alone"),
        (lambda folder: noise(folder, {"cat": 3, "dog": 1}), [], "a single image to train on of dog"),
        (lambda folder: noise(folder, {"cat": 3, "dog": 3}), ["--class_names", "cat", "fox"], "are not the labels"),
        (lambda folder: noise(folder, {"val/cat": 3, "val/dog": 3}), [], "nothing to train on"),
        (lambda folder: noise(folder, {"train/cat": 3, "unlabelled": 3}), [], "--unlabeled_dir"),
        (lambda folder: folder.rmdir(), [], "is not there"),
    ],
)
def test_images_that_cannot_teach_are_refused(tmp_path, make, line, words):
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    with pytest.raises(InputError, match=re.escape(words)):
        look(folder, *line)


@pytest.mark.parametrize(("rows", "number"), [(Rows(1200, 3), "1,200"), (None, "unknown")])
def test_of_a_data_set_that_is_not_here_the_hub_says_how_many(monkeypatch, rows, number):
    monkeypatch.setattr(images_module, "rows_of", lambda name, split: rows)
    found = look("--dataset_name", "me/pets")
    assert re.search(rf"^training +{number}\b", str(found), re.MULTILINE) and found.label_names is None
    assert found.are_labelled and found.have_validation and found.fingerprint is None


# Who teaches


def choose(monkeypatch, found, *line: str, reached: tuple[str, ...] = ()):
    monkeypatch.setattr(teacher_module, "has_weights", lambda name: name in reached)
    monkeypatch.setattr(teacher_module, "knows_names", lambda name: name == ZERO_SHOT)
    return choose_teacher(read_options(["x", *line]), found)


def test_the_teacher_is_what_is_given_or_what_is_best_for_what_there_is(tmp_path, monkeypatch):
    labelled = look(noise(tmp_path / "a", {"cat": 12, "dog": 12}))
    unlabelled = look(noise(tmp_path / "b", {"": 3}))
    names, both = ("--class_names", "cat", "dog"), (PROBE_BACKBONE, ZERO_SHOT)

    def options(*arguments, **settings):
        return choose(monkeypatch, *arguments, **settings).options

    assert options(labelled, "--teacher", "a", "b", reached=both) == ("--teacher_model_name_or_path", "a", "b")
    assert options(labelled, "--probe", "a/b", reached=both) == ("--teacher_probe", "a/b")
    assert options(labelled, "--teacher", "none", reached=both) == ("--distillation_type", "none")
    assert options(labelled, reached=both) == ("--teacher_probe", PROBE_BACKBONE)
    assert options(labelled) == ("--teacher_recipe", TEACHER_RECIPE)
    assert options(unlabelled, *names, reached=both) == ("--teacher_model_name_or_path", ZERO_SHOT)
    for line, words in (
        ((), "there is nobody who knows one"),
        (names, f"{ZERO_SHOT} is neither in the cache nor to be reached"),
        (("--probe", "a/b"), "--probe a/b is fitted on labelled images"),
        (("--teacher", "none"), "leaves nothing to learn"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            choose(monkeypatch, unlabelled, *line)


def test_a_run_that_goes_on_has_the_teacher_that_it_was_begun_with(tmp_path, monkeypatch):
    labelled, unlabelled = (
        look(noise(tmp_path / name, counts)) for name, counts in (("a", {"cat": 12, "dog": 12}), ("b", {"": 3}))
    )
    names = read_options(["x", "--class_names", "cat", "dog"])
    for found, options in ((labelled, read_options(["x"])), (unlabelled, names)):
        for first, then in ((True, False), (False, True)):
            monkeypatch.setattr(teacher_module, "has_weights", lambda name, reached=first: reached)
            if found is unlabelled and not first:
                continue
            begun = choose_teacher(options, found).options
            monkeypatch.setattr(teacher_module, "has_weights", lambda name, reached=then: reached)
            assert choose_teacher(options, found, begun).options == begun
            assert choose_teacher(replace(options, teacher=["c"]), found, begun).names == ("c",)


# The stages


def planned(images: str, *line: str, compared: tuple[str, ...] = ()) -> list[Stage]:
    options = read_options([images, *line])
    found = look_at(options)
    return stages_of(options, found, choose_teacher(options, found), compared)


def test_each_stage_is_a_command_that_can_be_typed(images, teacher):
    line = ["--teacher", teacher, "--output_dir", "out", "--page", "cdn", "--hub_model_id", "me/it"]
    train, evaluate, export, page, publish = planned(images, *line, compared=(teacher, "a/b@c"))
    assert ["--train_dir", f"{images}/train", "--test_dir", f"{images}/test", "--output_dir", "out/model"] == list(
        train.options[2:8]
    )
    assert train.options[8:12] == ("--teacher_model_name_or_path", teacher, "--teacher_labels", "out/labels")
    assert evaluate.options == ("--model", "out/model", "--compare", "a/b@c", "--teacher", teacher)
    assert export.options == ("--model", "out/model", "--to", "onnx")
    assert page.options == ("--model", "out/model", "--output_dir", "out/page", "--runtime", "cdn")
    assert publish.options == ("out/model", "--hub_model_id", "me/it")
    for stage, read in ((evaluate, evaluate_options), (export, export_options), (page, demo)):
        read.read_options(stage.options)


def test_what_is_not_there_is_left_out_with_what_mends_it(images, tmp_path, monkeypatch):
    def absent(extra: str) -> None:
        raise InputError(f"this needs onnx: pip install 'hf_deit[{extra}]'")

    monkeypatch.delenv(PLACE_VARIABLE, raising=False)
    monkeypatch.setattr("hf_deit.export.page.runtime.cached_archive", lambda: str(tmp_path / "none.tgz"))
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    assert "--page cdn" in planned(images, "--probe", "a")[3].left_out
    monkeypatch.setattr(stages_module, "require", absent)
    _, _, export, page = planned(images, "--probe", "a", "--page", "cdn")
    assert "pip install 'hf_deit[export]'" in export.left_out and export.left_out == page.left_out
    _, _, export, page = planned(images, "--probe", "a", "--page", "none", "--to", "none")
    assert (export.left_out, page.left_out) == ("--to none", "--page none")
    train, evaluate, *_ = planned(str(noise(tmp_path, {"": 3})), "--class_names", "a", "b", "--teacher", "lab/x")
    assert "--validation_dir" in evaluate.left_out
    assert train.options[-3:] == ("--class_names", "a", "b")


def test_lines_in_the_readme_name_no_place(tmp_path):
    noise(tmp_path / "home" / "me", {"x": 1})
    home = str(tmp_path / "home" / "me")
    options = DistilOptions(images=home, output_dir="runs/a", teacher=(f"{home}/x", "org/model"))
    line = ["--train_dir", f"{home}/train", "--output_dir", "runs/a/model", "--teacher", f"{home}/x", "org/model"]
    line += ["--config", "/home/me/secret.yaml", "--recipe", "own_images"]
    assert without_places(line, options) == [
        *("--train_dir", "IMAGES/train", "--output_dir", "OUTPUT/model", "--teacher", "IMAGES/x", "org/model"),
        *("--config", "secret.yaml", "--recipe", "own_images"),
    ]


class Commands:
    """Stands in for the commands: each writes what it leaves, and can be killed before or after that."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir, self.called, self.killed_at, self.statuses = output_dir, [], None, {}

    def __call__(self, line: list[str]) -> int:
        name = line[0]
        self.called.append((name, "--resume_from_checkpoint" in line))
        self._point()
        files = {
            "train": ["model/recipe.yaml", "model/config.json", "model/model.safetensors"],
            "evaluate": ["model/report/results.json"],
            "export": ["model/onnx/export.json"],
            "demo": ["page/page.json"],
        }[name]
        if status := self.statuses.get(name, 0):
            return status
        for file in files:
            path = self.output_dir / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file)
            self._point()
        return 0

    def _point(self) -> None:
        if self.killed_at is not None:
            self.killed_at -= 1
            if self.killed_at < 0:
                raise SystemExit("killed")


def do(commands: Commands, options: DistilOptions, stages: list[Stage]) -> dict[str, int]:
    record = Record(options)
    record.check_images("these")
    record.begin(("--teacher_probe", "a/b"))
    said = []
    statuses = run_stages(stages, record, options.output_dir, run=commands, say=said.append, clock=lambda: 0.0)
    commands.said = "\n".join(said)
    return statuses


@pytest.fixture
def staged(images, teacher, tmp_path):
    line = [images, "--teacher", teacher, "--output_dir", str(tmp_path / "out"), "--page", "cdn"]
    return Commands(tmp_path / "out"), read_options(line), planned(*line)


def test_killed_anywhere_the_same_command_goes_on_and_does_nothing_twice(staged, tmp_path):
    _, options, stages = staged
    for point in range(10):
        output_dir = tmp_path / str(point)
        here = DistilOptions(**{**vars(options), "output_dir": str(output_dir)})
        commands = Commands(output_dir)
        commands.killed_at = point
        with pytest.raises(SystemExit):
            do(commands, here, stages)
        before = [name for name, _ in commands.called]
        assert (output_dir / "distil.json").is_file()
        commands.killed_at, commands.called = None, []
        assert not any(do(commands, here, stages).values())
        assert [name for name, _ in commands.called] == ["train", "evaluate", "export", "demo"][len(before) - 1 :]
        # What was begun is gone on with.
        assert dict(commands.called).get("train", True) == (point > 0)
        commands.called = []
        assert do(commands, here, stages) == {} and commands.called == []
        assert commands.said.count("done before") == 4
        assert Record(here).teacher == ["--teacher_probe", "a/b"]


def test_a_stage_that_fails_keeps_the_others_from_nothing_but_without_a_model_there_are_none(staged):
    commands, options, stages = staged
    commands.statuses = {"train": 2}
    assert do(commands, options, stages) == {"train": 2}
    commands.statuses = {"evaluate": 2}
    assert do(commands, options, stages) == {"train": 0, "evaluate": 2, "export": 0, "demo": 0}
    commands.statuses, commands.called = {}, []
    assert do(commands, options, stages) == {"evaluate": 0}


def test_the_readme_says_how_to_use_what_is_there(staged):
    commands, options, stages = staged
    found = look_at(options)
    for failing, contents in ((), ["model/onnx/", "page/index.html", "onnxruntime"]), (("demo",), ["model/onnx/"]):
        commands.statuses = dict.fromkeys(failing, 2)
        do(commands, options, stages)
        teacher = choose_teacher(options, found)
        text = make_readme(options, found, teacher, stages, Record(options), licence_of=lambda name: "mit")
        assert all(words in text for words in contents) and ("page/index.html" in text) != bool(failing)
        assert ("demo, not done yet, or it failed" in text) == bool(failing) and "`TEACHER`: licence mit" in text
        (commands.output_dir / "page" / "page.json").unlink(missing_ok=True)


def test_other_options_another_model_or_lost_files_begin_a_stage_anew(staged):
    commands, options, stages = staged
    do(commands, options, stages)
    train, evaluate, export, page = stages
    more = Stage("export", "", (*export.options, "--int8", "dynamic"), export.leaves)
    assert do(commands, options, [train, evaluate, more, page]) == {"export": 0}
    assert "again, as it was done with other options" in commands.said
    (commands.output_dir / "page" / "page.json").unlink()
    assert do(commands, options, [train, evaluate, more, page]) == {"demo": 0}
    (commands.output_dir / "model" / "model.safetensors").write_text("other weights")
    assert do(commands, options, [train, evaluate, more, page]) == {"train": 0}  # which makes the weights of the rest
    assert "again, as the model is another one now" in commands.said


def test_other_images_and_other_folders_are_refused(staged, tmp_path):
    commands, options, stages = staged
    commands.statuses = {"train": 2}
    do(commands, options, stages)
    Record(options).check_images("others")  # as train has refused these, say
    commands.statuses = {}
    do(commands, options, stages)
    with pytest.raises(InputError, match="begun with other images"):
        Record(options).check_images("others")
    (commands.output_dir / "distil.json").write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        Record(options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(InputError, match="has not written"):
        Record(DistilOptions(output_dir=str(tmp_path / "mine")))


# The whole


def line_of(images: str, teacher: str, output_dir: Path, *options: str) -> list[str]:
    line = ["distil", images, "--teacher", teacher, "--output_dir", str(output_dir), "--use_cpu", "--page", "none"]
    return [*line, *options, "--", *TINY]


def test_a_plan_loads_no_weights_and_writes_nothing(images, teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "hf_deit.models.single_teacher.load_classifier", lambda *a, **k: pytest.fail("weights are loaded")
    )
    line = line_of(images, teacher, tmp_path / "out")
    assert main([*line[:2], "--dry_run", *line[2:]]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^1 train +about a minute ", printed, re.MULTILINE) and not (tmp_path / "out").exists()
    assert f"teacher: {teacher}" in printed and "held out" in printed


def test_a_repository_that_cannot_be_pushed_to_is_refused_before_the_first_stage(images, teacher, tmp_path, capsys):
    line = line_of(images, teacher, tmp_path / "out")
    assert main([*line[:2], "--hub_model_id", "me/it", *line[2:]]) == 2  # as the tests have no Hub
    assert "or leave --hub_model_id out" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_teacher_of_other_classes_is_refused_with_the_plan(teacher, tmp_path, capsys):
    other = noise(tmp_path / "images", {"cat": 12, "dog": 12})
    assert main(["distil", str(other), "--teacher", teacher, "--output_dir", str(tmp_path / "out")]) == 2
    assert "has 10 labels" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_teacher_that_the_run_makes_is_asked_beside_it(images, teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(teacher_module, "TEACHER_RECIPE", "debug_teacher")
    line = ["distil", images, "--output_dir", str(tmp_path / "out"), "--use_cpu", "--dry_run"]
    for options, words in ((["--probe", teacher], f"features of {teacher}"), ([], "recipe debug_teacher")):
        assert main([*line, *options, "--", *TINY]) == 0
        printed = capsys.readouterr().out
        assert "a report on it, beside its teacher" in printed and words in printed
    assert main([*line, "--probe", str(tmp_path / "nothing")]) == 2 and "backbone" in capsys.readouterr().err


def test_a_zero_shot_teacher_gets_its_recipe(tmp_path, capsys):
    clip_folder(tmp_path / "clip")
    noise(tmp_path / "photos", {"": 3})
    line = ["distil", str(tmp_path / "photos"), "--teacher", str(tmp_path / "clip"), "--use_cpu", "--output_dir"]
    line += [str(tmp_path / "out"), "--dry_run", "--class_names"]
    assert main([*line, "cat", "dog", "fox"]) == 0
    assert main([*line, "0", "1"]) == 2
    assert "some say nothing to it" in capsys.readouterr().err
    assert planned(*line[1:], "cat", "dog", "fox")[0].options[:2] == ("--recipe", "zero_shot")


def test_broken_images_are_refused_with_the_option_that_skips_them(teacher, tmp_path, capsys):
    folder = noise(tmp_path / "images", dict.fromkeys(DIGITS, 4))
    (folder / "3" / "9.png").write_bytes(b"no image")
    line = ["distil", str(folder), "--teacher", teacher, "--dry_run", "--use_cpu"]
    assert main(line) == 2 and "-- --on_bad_image skip" in capsys.readouterr().err
    assert main([*line, "--", *TINY, "--on_bad_image", "skip"]) == 0


def test_the_whole_road_from_images_to_a_folder_with_all(images, teacher, tmp_path, capfd):
    output_dir = tmp_path / "out"
    line = line_of(images, teacher, output_dir, "--to", "none")
    log = tmp_path / "log"
    assert attempt(lambda: main(line), output_dir, fault=KILLED, at=40, log=log).status < 0
    assert (output_dir / "distil.json").is_file() and not (output_dir / "README.md").exists()
    assert main(line) == 0
    for file in (
        "model/model.safetensors",
        "model/report/report.html",
        "labels/store.json",
    ):
        assert (output_dir / file).is_file(), file
    text = (output_dir / "README.md").read_text()
    assert str(tmp_path) not in text and images not in text and teacher not in text
    assert "--train_dir IMAGES/train" in text and "--teacher TEACHER" in text and re.search(r"0\.\d{4} \\\[", text)
    capfd.readouterr()
    assert main(line) == 0
    printed = capfd.readouterr().out
    assert printed.count("done before") == 4  # in the plan and after it


@pytest.mark.slow
def test_the_whole_road_killed_at_many_points(images, teacher, tmp_path):
    line = line_of(images, teacher, tmp_path / "all")
    log = tmp_path / "log"
    whole = attempt(lambda: main(line), tmp_path / "all", log=log, seconds=600)
    assert whole.status == 0, whole.printed[-2000:]
    assert (tmp_path / "all" / "model" / "onnx" / "classifier.onnx").is_file()
    files = {path.relative_to(tmp_path / "all") for path in (tmp_path / "all").rglob("*") if path.is_file()}
    for point in evenly(range(len(whole.operations)), 6):
        output_dir = tmp_path / f"killed-{point}"
        again = line_of(images, teacher, output_dir)
        killed = attempt(lambda again=again: main(again), output_dir, fault=KILLED, at=point, log=log, seconds=600)
        assert killed.status < 0
        done = attempt(lambda again=again: main(again), output_dir, log=log, seconds=600)
        assert done.status == 0, (point, done.printed[-2000:])
        there = {path.relative_to(output_dir) for path in output_dir.rglob("*") if path.is_file()}
        assert {path for path in files if not path.name.startswith(".")} <= there, point


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "unknown"),
        (5, "about a minute"),
        (600, "about 10 minutes"),
        (7200, "about 2 hours"),
        (3e5, "about 3 days"),
    ],
)
def test_times_are_said_roughly(seconds, words):
    assert in_words(seconds) == words


# On a rented GPU


def test_the_script_for_jobs_states_what_the_package_needs():
    text = (ROOT / "scripts" / "distil_on_jobs.py").read_text()
    # The reference regular expression of PEP 723.
    block = re.search(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", text)["content"]
    header = tomllib.loads("".join(line[2:] if line[1:2] == " " else line[1:] for line in block.splitlines(True)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert header["requires-python"] == project["requires-python"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["export"]]
    assert header["dependencies"] == sorted(needed)
    jobs = header["tool"]["hf-jobs"]
    assert jobs == {"flavor": "l4x1", "timeout": "6h", "secrets": ["HF_TOKEN"]}


def test_the_header_is_one_that_hf_jobs_reads():
    header = pytest.importorskip("huggingface_hub.cli._uv_script_header")
    from huggingface_hub import JobHardware

    found = header.parse_uv_script_header((ROOT / "scripts" / "distil_on_jobs.py").read_text())
    assert found.flavor in [hardware.value for hardware in JobHardware] and found.secrets == ["HF_TOKEN"]


def test_the_script_is_the_command(capsys):
    with suppress(SystemExit):
        main_of("distil_on_jobs")(["--help"])
    assert "hf-deit distil IMAGES" in capsys.readouterr().out
