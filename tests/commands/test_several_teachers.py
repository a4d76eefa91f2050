"""Contract: a run of several teachers is one run: kept, replayed, gone on with and stated, in whatever order they are.

Only their weights must go along with them.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import tiny
from support.main_of import main_of
from support.zero_shot import clip_folder

from hf_deit import InputError, TeacherLabelStore
from hf_deit.commands.prepare import PreparedRun, prepare
from hf_deit.commands.sources import resolve_sources
from hf_deit.models.teacher import load_teacher
from hf_deit.recipes.resolve import resolve_arguments

LINE = ["--recipe", "debug", "--use_cpu", "true", "--disable_tqdm", "true", "--save_steps", "4", "--eval_steps", "6"]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("teachers")
    return [tiny.fair_teacher_folder(root / name, seed=seed) for seed, name in enumerate("abc", 1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, teachers) -> Path:
    """A run whose folder has model, checkpoints and labels, and whose printed lines are in printed.txt."""
    folder = tmp_path_factory.mktemp("run")
    line = [*LINE, "--output_dir", str(folder / "out"), "--teacher_labels", str(folder / "labels")]
    with pytest.MonkeyPatch.context() as patched, (folder / "printed.txt").open("w") as printed:
        patched.setattr("sys.stdout", printed)
        assert main_of("train")([*line, "--teacher", *teachers[:2], "--teacher_weights", "2", "1"]) == 0
    return folder


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return mine.keys() == theirs.keys() and all((mine[name] == theirs[name]).all() for name in mine)


def test_each_is_stated_by_itself_and_together(run, teachers):
    printed = (run / "printed.txt").read_text()
    rows = dict(re.findall(r"^(teachers? \w+)  +([\d.]+)$", printed, flags=re.MULTILINE))
    validation = tiny.digits(1, 360)[1]
    expected = {}
    for name, paths, weights in (
        ("teacher a", teachers[0], None),
        ("teacher b", teachers[1], None),
        ("teachers together", teachers[:2], [2, 1]),
    ):
        teacher = load_teacher(paths, student_processor=tiny.processor(), weights=weights)
        pixels = tiny.processor()(list(validation["image"]), return_tensors="pt")["pixel_values"]
        expected[name] = (teacher(pixels).argmax(dim=1).numpy() == validation["label"]).mean()
    assert rows == {name: f"{value:.4f}" for name, value in expected.items()}
    said = " ".join(printed.split())
    assert (
        f"right together on {rows['teachers together']} of 360 validation images, and by themselves on "
        f"{rows['teacher a']}, {rows['teacher b']}" in said
    )
    assert f"--model {run / 'out'} --compare {teachers[1]} --teacher {teachers[0]}" in printed
    card = (run / "out" / "README.md").read_text()
    assert "distilled from the mean of 2 teachers" in card
    assert f"| a teacher from a local folder | 0.667 | 16 x 16 | {rows['teacher a']} |" in card
    assert f"| a teacher from a local folder | 0.333 | 16 x 16 | {rows['teacher b']} |" in card
    assert f"| the teachers together | {rows['teachers together']} |" in card
    assert teachers[0] not in card
    facts = json.loads((run / "out" / "run.json").read_text())
    assert [member["top1"] for member in facts["teacher_members"]] == [expected["teacher a"], expected["teacher b"]]


def test_labels_are_replayed_in_any_order_and_by_nobody(run, teachers, tmp_path, capsys):
    line = [*LINE, "--teacher_labels", str(run / "labels"), "--output_dir"]
    again = [str(tmp_path / "again"), "--teacher", *teachers[1::-1], "--teacher_weights", "1", "2"]
    assert main_of("train")([*line, *again]) == 0
    assert re.search(r"kept labels replayed +96\nlabels by the teacher +0\n", capsys.readouterr().out)
    assert same_weights(run / "out", tmp_path / "again")
    assert main_of("train")([*line, str(tmp_path / "alone"), "--max_steps", "1"]) == 0  # without any
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "The mean of 2 teachers." in card and "| a teacher from a local folder | 0.667 | 16 x 16 |\n" in card
    named = TeacherLabelStore.open(run / "labels", readonly=True).identity.teacher
    assert dict(zip(named["names"], named["weights"], strict=True)) == {"a": 0.666666666667, "b": 0.333333333333}
    capsys.readouterr()
    for others, said in (
        ([*teachers[:2], "--teacher_weights", "1", "1"], "teacher.weights is [0.6"),
        ([*teachers[:2]], "teacher.weights is [0.6"),
        (
            [teachers[0], teachers[2], "--teacher_weights", "2", "1"],
            "teacher.members.1.revision is '|.2.revision is '",
        ),
        ([teachers[0]], "teacher.members is 'a + b' there, 'a' here"),
    ):
        assert main_of("train")([*line, str(tmp_path / "other"), "--teacher", *others]) == 2
        error = capsys.readouterr().err
        assert "are not of this run" in error and any(part in error for part in said.split("|")), error


def test_it_goes_on_in_any_order_to_the_same_weights(run, teachers, tmp_path, capsys):
    for path in (run / "out").rglob("*"):
        target = tmp_path / path.relative_to(run / "out")
        if path.is_file() and "checkpoint-6" not in path.parts:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    line = [*LINE, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "true", "--teacher"]
    for others, said in (
        (
            [*teachers[1::-1], "--teacher_weights", "2", "1"],
            "was started with teacher_weights [2.0, 1.0], got [2.0, 1",
        ),
        ([*teachers[1:], "--teacher_weights", "2", "1"], "the teacher changed since"),
        ([teachers[0]], f"has the teacher {teachers[:2]!r}, got '"),
    ):
        assert main_of("train")([*line, *others]) == 2
        assert said in capsys.readouterr().err
    assert main_of("train")([*line, *teachers[1::-1], "--teacher_weights", "4", "8"]) == 0
    assert "4 of them done" in capsys.readouterr().out
    assert same_weights(run / "out", tmp_path)


def test_their_commits_stand_behind_their_names(teachers, monkeypatch, tmp_path):
    commits = {("lab/a", None): "a" * 40, ("lab/b", "v2"): "b" * 40}
    monkeypatch.setattr("hf_deit.commands.sources.resolve_revision", lambda *name: commits.get(name))
    line = ["--use_cpu", "true", "--output_dir", str(tmp_path)]
    resolved = resolve_sources(resolve_arguments([*line, "--teacher", "lab/a", "lab/b@v2", "lab/c@v3", teachers[0]]))
    assert resolved.model.teacher_model_name_or_path == [
        f"lab/a@{'a' * 40}",
        f"lab/b@{'b' * 40}",
        "lab/c@v3",
        teachers[0],
    ]
    assert resolve_sources(resolve_arguments([*line, "--teacher", "lab/b@v2"])).model.teacher_revision == "b" * 40


# Whose classes they are


def prepared(*line: str) -> PreparedRun:
    return prepare(resolve_arguments(["--recipe", "debug", "--use_cpu", "true", "--dataset_name", "", *line]))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Folders of the digits 8, 3 and 5."""
    root = tmp_path_factory.mktemp("pictures")
    for row, image in enumerate(tiny.digits(120)[0]):
        if image["label"] in (3, 5, 8):
            path = root / str(image["label"]) / f"{row}.png"
            path.parent.mkdir(exist_ok=True)
            image["image"].save(path)
    return root


def test_images_without_labels_have_the_classes_of_the_first_one(teachers, pictures, tmp_path):
    renamed = Path(shutil.copytree(teachers[1], tmp_path / "renamed"))
    config = json.loads((renamed / "config.json").read_text())
    names = {str(index): f"no {index}" for index in range(10)}
    config |= {"id2label": names, "label2id": {name: int(index) for index, name in names.items()}}
    (renamed / "config.json").write_text(json.dumps(config))
    run = prepared("--unlabeled_dir", str(pictures), "--teacher", teachers[0], teachers[2])
    assert run.images.label_names == [str(index) for index in range(10)]
    assert [*run.describe_teacher().id2label.values()] == run.images.label_names
    run = prepared("--unlabeled_dir", str(pictures), "--teacher", str(renamed), teachers[0])
    assert run.images.label_names == [*names.values()]
    with pytest.raises(InputError, match=f"the teacher '{teachers[0]}' has 10 labels as expected, but not the same"):
        run.describe_teacher()


@pytest.mark.parametrize("count", [1, 2])
def test_some_classes_of_theirs_are_those_of_the_images_or_are_named(teachers, pictures, count):
    line = ["--teacher", *teachers[:count], "--teacher_label_subset", "true"]
    for images, names in (
        (["--train_dir", str(pictures)], ["3", "5", "8"]),
        (["--unlabeled_dir", str(pictures), "--class_names", "8", "3"], ["8", "3"]),
    ):
        run = prepared(*images, *line)
        described = run.describe_teacher()
        for teacher in getattr(described, "members", [described]):
            assert teacher.label_order == [*map(int, names)]
            assert teacher.identity()["preprocessing"]["label_order"] == teacher.label_order
        assert run.student.config.id2label == described.id2label == dict(enumerate(names))
    with pytest.raises(InputError, match="--teacher_label_subset true"):
        prepared("--train_dir", str(pictures), "--teacher", *teachers[:count]).describe_teacher()


def test_a_subset_of_nothing_is_refused(teachers, pictures):
    line = ["--unlabeled_dir", str(pictures), "--teacher", teachers[0], "--teacher_label_subset", "true"]
    with pytest.raises(InputError, match="there are neither labels nor names"):
        prepared(*line)
    with pytest.raises(InputError, match=r"lacks 'x'\. "):
        prepared(*line, "--class_names", "1", "x").describe_teacher()


def test_a_classifier_and_a_zero_shot_model_teach_images_without_labels(teachers, pictures, tmp_path, capsys):
    clip_folder(tmp_path / "clip")
    line = [*LINE, "--dataset_name", "", "--max_steps", "1", "--eval_steps", "1"]
    line += ["--unlabeled_dir", str(pictures), "--validation_dir", str(pictures), "--teacher_label_subset", "true"]
    line += ["--class_names", "3", "5", "8", "--class_prompts", str(tmp_path / "prompts.yaml")]
    (tmp_path / "prompts.yaml").write_text("{'3': a three, '5': a five, '8': an eight}")
    out = ["--output_dir", str(tmp_path / "out"), "--teacher", teachers[0], str(tmp_path / "clip")]
    assert main_of("train")([*line, *out]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^teacher a  .*\nteacher clip  .*\nteachers together  ", printed, flags=re.MULTILINE)
    evaluation = re.search(r"evaluate .*--teacher (\S+)", printed)
    assert evaluation is None  # neither has the student's classes in its files
