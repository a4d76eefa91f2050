"""A folder that was begun in is open to the same command, with `--resume_from_checkpoint true` or without.

Without, it is taken where it holds the beginnings of a run alone; what no run writes is neither passed over nor
removed. What was half-done is removed by the run that owns the folder.
"""

import os
import shutil
from pathlib import Path

import pytest
from support import tiny
from support.checkpoints import everything_in
from support.faults import full_disk

from hf_deit.commands.output_folder import check_output_dir, clear_beginnings, is_begun
from hf_deit.commands.resume import adopt_checkpoint, begin
from hf_deit.commands.train import train_teacher
from hf_deit.data.image_data import ImageData
from hf_deit.errors import CheckpointError, InputError
from hf_deit.recipes import load_recipe
from hf_deit.recipes.resolve import Arguments, resolve_arguments, save_recipe

STATE = '{"global_step": 3, "log_history": []}'
WEIGHTS = "\x08\0\0\0\0\0\0\0{"  # as a file of safetensors begins
RECIPE = {"recipe.yaml": "seed: 1\n"}
TEACHER = {"teacher/recipe.yaml": "seed: 1\n", "teacher/model.safetensors": WEIGHTS}
LEFT = {".recipe.yaml.0123abcd.tmp": "seed", ".tmpA1b2C3": WEIGHTS, ".tmpd4E5f6": ""}
BEGUN = {
    "nothing": {},
    "a probe": {".probe.0123abcd.tmp": ""},
    "a teacher that is trained": {"teacher.unfinished/checkpoint-1/config.json": "{"},
    "a teacher": TEACHER,
    "a recipe": {**RECIPE, **LEFT},
    "a torn checkpoint": {**RECIPE, **TEACHER, "checkpoint-3/model.safetensors": WEIGHTS},
    "a torn checkpoint from the Hub": {**RECIPE, "checkpoint.unfinished/trainer_state.json": STATE},
    "a log": {**RECIPE, "runs/today/events": ""},
    "the end without the model": {**RECIPE, "trainer_state.json": "{", "eval_results.json": "{}", "config.json": "{}"},
    "labels": {"labels/store.json": "{}", "labels/parts/epoch-00000": ""},
    "labels farther in": {"kept/labels/.lock": ""},
    "a lock": {".run.lock": "{}", ".run.lock.x": ""},
}
OCCUPIED = {
    "notes": {"notes.txt": ""},
    "notes beside a recipe": {**RECIPE, "notes.txt": ""},
    "a checkpoint": {**RECIPE, "checkpoint-3/trainer_state.json": STATE},
    "a model": {**RECIPE, "model.safetensors": WEIGHTS},
    "a torn checkpoint of who knows what": {"checkpoint-3/model.safetensors": WEIGHTS},
    "a teacher of who knows whom": {"teacher/config.json": "{}"},
    "a log of who knows what": {"runs/today/events": ""},
    "a temporary file": {".notes.tmp": "", ".notes.0123abcg.tmp": ""},
    "a temporary file of another kind": {**RECIPE, ".tmpA1b2C3": "a letter"},
    "labels beside something": {"kept/labels/.lock": "", "kept/notes.txt": ""},
    "other labels": {"others/store.json": "{}"},
}


def written(folder: Path, files: dict[str, str]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return str(folder)


def labels_in(folder: Path, case: str) -> str:
    return str(folder / ("kept/labels" if "kept" in "".join({**BEGUN, **OCCUPIED}[case]) else "labels"))


@pytest.mark.parametrize("case", BEGUN)
def test_a_run_begins_where_there_are_beginnings_alone(tmp_path, case):
    folder = written(tmp_path / "run", BEGUN[case])
    check_output_dir(folder, resuming=False, labels=labels_in(tmp_path / "run", case))
    check_output_dir(folder, resuming=True)


@pytest.mark.parametrize("case", OCCUPIED)
def test_what_is_worth_keeping_and_what_no_run_writes_is_refused_and_stays(tmp_path, case):
    folder = written(tmp_path / "run", OCCUPIED[case])
    before = everything_in(tmp_path)
    with pytest.raises(InputError) as error:
        check_output_dir(folder, resuming=False, labels=labels_in(tmp_path / "run", case))
    check_output_dir(folder, resuming=True)
    assert everything_in(tmp_path) == before
    arguments = arguments_of(Path(folder), "--resume_from_checkpoint", "true")
    if "recipe.yaml" in OCCUPIED[case]:
        save_recipe(arguments, Path(folder) / "recipe.yaml")
        begin(arguments)
    else:  # and the one command does not point to the other
        with pytest.raises(InputError, match="there is no checkpoint to resume from"):
            begin(arguments)
    assert ("go on with it" in str(error.value)) == ("recipe.yaml" in OCCUPIED[case])


@pytest.mark.parametrize("resuming", [True, False])
def test_what_would_be_waited_for_is_refused_before_anything_is_trained(tmp_path, resuming):
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    with pytest.raises(InputError, match=r"holds config\.json, neither files nor folders"):
        check_output_dir(str(tmp_path), resuming=resuming)


def test_labels_may_lie_in_the_very_folder(tmp_path):
    folder = written(tmp_path / "run", {"store.json": "{}", "data/epoch-00000.parquet": "", ".lock": ""})
    check_output_dir(folder, resuming=False, labels=folder)
    with pytest.raises(InputError, match=r"is of no run that could go on \(\.lock, data, store\.json\): give"):
        check_output_dir(folder, resuming=False)


def test_what_was_half_done_is_removed_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    others = {**OCCUPIED["notes beside a recipe"], **OCCUPIED["a temporary file"], ".tmpZ9y8X7": "a letter", **TEACHER}
    written(run, others)
    (run / ".link.0123abcd.tmp").symlink_to(run / "notes.txt")
    written(run / "checkpoint-9", {"trainer_state.json": STATE, "checkpoint.tmp": ""})
    kept = everything_in(run)
    written(run / "checkpoint-9", LEFT)
    half_done = {**LEFT, "checkpoint-3/model.safetensors": WEIGHTS, "checkpoint.unfinished/trainer_state.json": STATE}
    written(run, {**half_done, "teacher.unfinished/config.json": "{"})
    clear_beginnings(str(run))
    assert everything_in(run) == kept


def arguments_of(run: Path, *options: str) -> Arguments:
    return resolve_arguments(["--recipe", "debug", "--use_cpu", "true", "--output_dir", str(run), *options])


@pytest.mark.parametrize("case", BEGUN)
def test_a_run_that_was_begun_begins_again_where_it_is_told_to_go_on(tmp_path, case, caplog):
    run = tmp_path / "run"
    arguments = arguments_of(run, "--resume_from_checkpoint", "true")
    written(run, BEGUN[case])
    if "recipe.yaml" in BEGUN[case]:
        save_recipe(arguments, run / "recipe.yaml")
    if is_begun(str(run)):
        assert begin(arguments).checkpoint is None
        assert "has no checkpoint: it starts again" in caplog.text
    else:
        with pytest.raises(InputError, match="there is no checkpoint to resume from"):
            begin(arguments)


def test_a_run_from_the_hub_goes_on_from_its_own_checkpoint(tmp_path, monkeypatch):
    """Else the same command, with the option that the refusal names, would be refused as well."""
    run, options = tmp_path / "run", ["--resume_from_hub", "ada/half"]
    fetched = written(tmp_path / "cache" / "last-checkpoint", {"trainer_state.json": STATE})
    recipe = tmp_path / "recipe.yaml"
    save_recipe(arguments_of(run), recipe)
    asked = []

    def fetch(source: str) -> tuple[str, dict[str, object]]:
        asked.append(source)
        return fetched, load_recipe(str(recipe))

    monkeypatch.setattr("hf_deit.commands.resume.fetch_checkpoint", fetch)
    for resuming in ([], ["--resume_from_checkpoint", "true"]):  # as there is none yet
        assert begin(arguments_of(run, *options, *resuming)).take_checkpoint() == str(run / "checkpoint-3")
        shutil.rmtree(run)
    shutil.copytree(fetched, run / "checkpoint-3")
    shutil.copy(recipe, run)
    with pytest.raises(InputError, match=r"go on with it \(--resume_from_checkpoint true\)"):
        check_output_dir(str(run), resuming=False)
    beginning = begin(arguments_of(run, *options, "--resume_from_checkpoint", "true"))
    assert beginning.take_checkpoint() == str(run / "checkpoint-3") and len(asked) == 2
    with pytest.raises(InputError, match="either --resume_from_hub or a checkpoint on disk"):
        arguments_of(run, *options, "--resume_from_checkpoint", str(run / "checkpoint-3"))


def test_a_full_disk_is_told_where_a_checkpoint_is_adopted(tmp_path):
    fetched = written(tmp_path / "fetched", {"trainer_state.json": STATE, "model.safetensors": WEIGHTS * 100})
    (tmp_path / "run").mkdir()
    with full_disk(64), pytest.raises(CheckpointError, match=r"cannot write the checkpoint to .*File too large"):
        adopt_checkpoint(fetched, str(tmp_path / "run"))
    assert adopt_checkpoint(fetched, str(tmp_path / "run")) == str(tmp_path / "run" / "checkpoint-3")


@pytest.mark.parametrize("options", [[], ["--seed", "9"], ["--labels_kept", "300"]])
def test_another_teacher_is_not_taken_up(tmp_path, options):
    """Where the run does not say that it goes on, and the folder's teacher was trained for another run."""
    run, (train, validation) = tmp_path / "run", tiny.digits()
    images = ImageData(train, validation, [str(index) for index in range(10)])
    tiny.teacher_folder(run / "teacher")
    command = ["--recipe", "debug_teacher", "--use_cpu", "true", "--output_dir", str(run / "teacher")]
    mine = arguments_of(run)
    command += ["--seed", str(mine.training.seed)]
    save_recipe(resolve_arguments(command)._replace(data=mine.data), run / "teacher" / "recipe.yaml")
    other = arguments_of(run, *options)
    before = everything_in(run)
    if options:
        with pytest.raises(InputError, match=rf"^of the teacher in .*teacher' was started with {options[0][2:]}"):
            train_teacher("debug_teacher", images, other)
    else:
        assert train_teacher("debug_teacher", images, other) == str(run / "teacher")
    assert train_teacher("debug_teacher", images, other, resuming=True) == str(run / "teacher")
    assert everything_in(run) == before


def test_what_is_wrong_with_a_teachers_recipe_is_told_as_of_it(tmp_path):
    """An option of the command line, which a message names, would be the student's."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: debug_teacher\nmixup: 0.8\nmixup_group_size: 4\ntotal_batch_size: 10\n")
    images = ImageData(*tiny.digits(), [str(index) for index in range(10)])
    with pytest.raises(InputError, match=r"^of the teacher_recipe '.*mine.yaml', .* --total_batch_size 8 would"):
        train_teacher(str(recipe), images, arguments_of(tmp_path / "run"))
