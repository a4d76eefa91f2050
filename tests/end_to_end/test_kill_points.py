"""Wherever a run dies, or finds the disk full, the same command ends it as if nothing had happened.

At every file operation of a short run, and in the middle of every file: the same command goes on from the last whole
checkpoint, or starts afresh where there is none; with `--resume_from_checkpoint true`, without it, or with either, but
never with neither. The weights are then bit for bit those of a run that was left alone, its labels are complete, and
nothing else is left. No failure of the disk is told by a traceback.
"""

import fnmatch
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from support import tiny, zero_shot
from support.kill_points import FULL, KILLED, READ_ONLY, TORN, UNWRITTEN, Operation, Outcome, attempt, evenly

from hf_deit.commands import label, train
from hf_deit.hub.run_folder import is_whole, last_whole_checkpoint

RESUMING = ["--resume_from_checkpoint", "true"]
SAVING = ["--save_strategy", "steps", "--eval_strategy", "steps"]
TEACHER = ["--teacher_model_name_or_path", "TEACHER", "--teacher_labels", "WORK/run/labels"]
RUNS = {
    "plain": ["--distillation_type", "none", *SAVING, "--save_steps", "1", "--save_total_limit", "1"],
    "teacher trained first": [*SAVING, "--save_steps", "2", "--teacher_recipe", "BASE/teacher.yaml"],
    "nothing saved but the model": ["--save_strategy", "no", "--eval_strategy", "no"],
    "best checkpoint and labels": [
        *(*TEACHER, *SAVING, "--save_steps", "2", "--eval_steps", "2", "--max_steps", "4"),
        *("--load_best_model_at_end", "true", "--metric_for_best_model", "top1", "--publish_weights", "ema"),
    ],
}
TEXTS = {str(digit): f"{'a ' * digit}digit." for digit in range(10)}
RUNS["zero-shot teacher"] = [
    *("--teacher_model_name_or_path", "CLIP", "--class_prompts", json.dumps(TEXTS), "--teacher_prior_correction"),
    *("true", "--distillation_type", "soft", *SAVING, "--save_steps", "1"),
]
LABELLING = [*TEACHER, "--max_steps", "4"]
FAULTS = {"dies": (KILLED, TORN), "finds the disk full": (FULL, UNWRITTEN), "may not write": (READ_ONLY,)}
# Where a run was once lost, refused in both ways, ended by a traceback, or left something behind. The operation is the
# first one of its kind.
HARD_POINTS = [
    ("teacher trained first", KILLED, "open run/teacher.unfinished/checkpoint-2/optimizer.pt"),
    ("teacher trained first", READ_ONLY, "os.rename run/teacher"),
    ("teacher trained first", KILLED, "open run/.recipe.yaml.*"),
    ("zero-shot teacher", KILLED, "open run/checkpoint-2/optimizer.pt"),
    ("best checkpoint and labels", KILLED, "os.rename run/recipe.yaml"),
    ("best checkpoint and labels", TORN, "open run/checkpoint-4/model.safetensors"),
    ("best checkpoint and labels", UNWRITTEN, "open run/trainer_state.json"),
    ("best checkpoint and labels", TORN, "open run/all_results.json"),
    ("best checkpoint and labels", KILLED, "os.rename run/environment.json"),
]


class Walk:
    """A command, whose files are put back as they were before each of its attempts.

    Args:
        base: a new folder, for its images, what it writes and what is kept of that.
        options: of its command line.
        main: of the command.
        ways: to go on, one of which must be open: options that are added.
    """

    _has_imported = False

    def __init__(
        self,
        base: Path,
        options: list[str],
        *,
        main: Callable[[list[str]], int] = train.main,
        ways: Sequence[Sequence[str]] = (RESUMING, ()),
    ) -> None:
        self._ways = ways
        self.work, self._kept, self._log, self._main = base / "work", base / "kept", base / "operations.json", main
        rng = np.random.default_rng(0)
        for split, count in (("train", 2), ("validation", 1)):
            for name in range(10):
                (base / split / str(name)).mkdir(parents=True)
                for index in range(count):
                    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(base / split / str(name) / f"{index}.png")
        (base / "teacher.yaml").write_text("base: debug_teacher\nmax_steps: 2\nsave_strategy: steps\nsave_steps: 1\n")
        tiny.teacher_folder(base / "teacher")
        zero_shot.clip_folder(base / "clip")
        places = {"CLIP": base / "clip", "TEACHER": base / "teacher", "WORK": self.work, "BASE": base}
        self._command = ["--recipe", "debug", "--use_cpu", "true", "--output_dir", str(self.work / "run")]
        self._command += ["--train_dir", str(base / "train"), "--validation_dir", str(base / "validation")]
        self._command += ["--per_device_train_batch_size", "8", "--mixup_group_size", "8", "--max_steps", "3"]
        for option in options:
            name, slash, rest = option.partition("/")
            self._command.append(f"{places.get(name, name)}{slash}{rest}")
        if not Walk._has_imported:  # what a run needs; the children then find it
            assert main(self._command) == 0
            self._put_back(None)
            Walk._has_imported = True
        self.whole = self.attempt()
        assert self.whole.status == 0, self.whole.printed
        self._files = self._read()

    def attempt(self, *options: str, fault: str | None = None, at: int = 0, size: int = 0) -> Outcome:
        command = [*self._command, *options]
        return attempt(lambda: self._main(command), self.work, fault=fault, at=at, size=size, log=self._log)

    def points(self, faults: tuple[str, ...]) -> list[tuple[str, int, int]]:
        """What can happen, and where: fault, number of the operation, bytes that are written of its file."""
        operations = list(enumerate(self.whole.operations))
        written = [(number, operation.size // 2) for number, operation in operations if operation.size > 1]
        every = [(number, 0) for number, _ in operations]
        return [(fault, *point) for fault in faults for point in (written if fault in (TORN, UNWRITTEN) else every)]

    def check(self, fault: str, at: int, size: int) -> None:
        """Lets a fault happen, and the command go on in both ways, from the same files."""
        self._put_back(None)
        failed = self.attempt(fault=fault, at=at, size=size)
        where = f"{fault} at {self._named(at)}"
        if fault in FAULTS["dies"]:
            assert failed.status < 0, f"{where}: it was not killed\n{failed.printed}"
        else:
            assert failed.is_told, f"{where}: {failed.printed}"
        self._keep()
        checkpoint = last_whole_checkpoint(self.work / "run")
        step = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
        outcomes = []
        for options in self._ways:
            self._put_back(self._kept)
            outcome, then = self.attempt(*options), f"{where}, then {' '.join(options) or 'again'}"
            outcomes.append(outcome)
            assert outcome.is_told, f"{then}: {outcome.printed}"
            if outcome.status == 0:
                self._check_files(then)
                again = [made.path for made in outcome.operations if _is_of_step(made, range(1, step + 1))]
                assert not again, f"{then}: it made {again} again"
        statuses = [outcome.status for outcome in outcomes]
        is_open = statuses[0] == 0 if step else 0 in statuses
        assert is_open, "\n".join([f"{where}: {statuses}", *(outcome.printed for outcome in outcomes)])

    def _named(self, at: int) -> str:
        operation = self.whole.operations[at]
        return f"{at} ({operation.name} {operation.path})"

    def _keep(self) -> None:
        shutil.rmtree(self._kept, ignore_errors=True)
        if self.work.exists():
            shutil.copytree(self.work, self._kept)

    def _put_back(self, kept: Path | None) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        if kept is not None and kept.exists():
            shutil.copytree(kept, self.work)

    def _read(self) -> dict[str, bytes | None]:
        """Weights and labels; of other files, and of folders, that they are there."""
        kept = (".safetensors", ".parquet")
        paths = {str(path.relative_to(self.work)): path for path in sorted(self.work.rglob("*"))}
        for name in [name for name in paths if name.endswith(("/labels/parts", "/checksums.json"))]:
            del paths[name]  # empty at the end; and a checkpoint is whole without, if they were all that it lacked
        return {name: path.read_bytes() if path.suffix in kept else None for name, path in paths.items()}

    def _check_files(self, where: str) -> None:
        found = [path for path in (self.work / "run").glob("checkpoint-*") if is_whole(path)]
        spare = [name for name in (f"run/{path.name}" for path in found) if name not in self._files]
        files = {name: content for name, content in self._read().items() if not name.startswith(tuple(spare))}
        assert files.keys() == self._files.keys(), f"{where}: {sorted(files.keys() ^ self._files.keys())}"
        others = [name for name, content in files.items() if content != self._files[name]]
        assert not others, f"{where}: other bytes in {others}"


def _is_of_step(operation: Operation, steps: range) -> bool:
    return operation.name == "open" and any(f"/checkpoint-{step}/" in operation.path for step in steps)


@pytest.fixture(scope="module", autouse=True)
def _plain_pictures() -> Iterator[None]:
    """Drawing the curves takes a third of the time of a run."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Figure, "savefig", lambda self, file, **_: file.write(b"a picture"))
        yield


@pytest.fixture(scope="module")
def walk_of(tmp_path_factory) -> Callable[[str], Walk]:
    return functools.cache(lambda name: Walk(tmp_path_factory.mktemp("walk"), RUNS[name]))


@pytest.mark.parametrize(("name", "fault", "operation"), HARD_POINTS)
def test_a_run_goes_on_where_it_is_hard(walk_of, name, fault, operation):
    walk = walk_of(name)
    made = [fnmatch.fnmatch(f"{made.name} {made.path}", operation) for made in walk.whole.operations]
    at = made.index(True)
    walk.check(fault, at, walk.whole.operations[at].size // 2)


def test_labelling_goes_on_where_it_died(tmp_path):
    walk = Walk(tmp_path, LABELLING, main=label.main, ways=[()])
    for point in evenly(walk.points(FAULTS["dies"]), 3):
        walk.check(*point)


@pytest.mark.slow
@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("name", [*RUNS, "labelling"])
def test_a_run_goes_on_wherever_it(walk_of, tmp_path, name, faults):
    walk = Walk(tmp_path, LABELLING, main=label.main, ways=[()]) if name == "labelling" else walk_of(name)
    found = []
    for point in walk.points(FAULTS[faults]):
        try:
            walk.check(*point)
        except AssertionError as error:
            found.append(str(error))
    assert not found, "\n\n".join([f"{len(found)} of {len(walk.points(FAULTS[faults]))}", *found])
