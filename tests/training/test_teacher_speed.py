"""Contract: a long run's teacher runs as is fastest, if its labels stay; how it does goes wherever its labels go.

What was found out once, a checkpoint and a label store keep: a run that goes on, or replays, tries nothing again.
"""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from torch._dynamo.exc import TorchDynamoException

from hf_deit import InputError, load_teacher
from hf_deit.labels.store import TeacherLabelStore
from hf_deit.models.execution import PLAIN, Execution
from hf_deit.models.teacher import describe_teacher
from hf_deit.training import teacher_speed
from hf_deit.training.origin import teacher_in
from hf_deit.training.teacher_speed import choose_execution

FOLDED = Execution(folded=6)
FASTEST = Execution(folded=6, channels_last=True)


@pytest.fixture
def timed(monkeypatch):
    """Lets the shortest run be worth a trial, whose times are planted: each option saves a tenth."""
    trials = []

    def seconds(execution: Execution) -> float:
        saved = bool(execution.folded) + 2 * execution.channels_last + 4 * bool(execution.compiled)
        return 1.0 - 0.1 * saved

    def time_in_turn(arms, batch, after_batch):
        trials.append([*arms])
        return {execution: len(batch) / 32 * seconds(execution) for execution in arms}

    monkeypatch.setattr(teacher_speed, "LEAST_FLOPS", {"cpu": 0.0, "cuda": 0.0})
    monkeypatch.setattr(teacher_speed, "_WORTH_COMPILING", float("inf"))
    monkeypatch.setattr(teacher_speed, "_time_in_turn", time_in_turn)
    return trials


@pytest.fixture
def folder(tmp_path) -> str:
    return tiny.fair_teacher_folder(tmp_path / "teacher")


def teacher_of(folder, **settings):
    return load_teacher(folder, student_processor=tiny.processor(), **{"speed": "auto", **settings})


def batches(count: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(32, 3, 16, 16) for _ in range(count)]


def choose(teacher, **settings):
    return choose_execution(teacher, batches(), **{"num_views": 1000, **settings})


def run(folder, out, *, speed="auto", described=True, **settings):
    kind = describe_teacher if described else load_teacher
    teacher = kind(folder, student_processor=tiny.processor(), speed=speed)
    args = tiny.arguments(out, **{"save_strategy": "steps", "save_steps": 3, **settings})
    return tiny.trainer(tiny.student(drop_path_rate=0.1), args, teacher)


def origin_of(checkpoint: Path) -> dict:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["RunOrigin"]["attributes"]["origin"]["teacher"]


def test_the_fastest_is_chosen_and_answers_alike(timed, folder):
    teacher = teacher_of(folder)
    choice = choose(teacher)
    assert choice.execution == FASTEST and timed == [[PLAIN, FOLDED, FASTEST]]
    assert choice.words.startswith("1.43 x as fast, 6 BatchNorm layers folded, channels_last: 46 instead of 32 views")
    assert "folded 1.11 x; 0 of 64 views labelled differently" in choice.words
    assert teacher.description.is_undecided  # until it is told
    fast, pixels = teacher_of(folder), batches()[0]
    fast.run_as(choice.execution)
    assert torch.allclose(fast(pixels), teacher(pixels), atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    assert fast.description.identity() == {**teacher.description.identity(), "execution": FASTEST.to_dict()}
    again = replace(teacher.description, execution=FASTEST).load()
    assert torch.equal(again(pixels), fast(pixels))


def test_a_short_run_is_not_worth_a_trial(timed, folder, monkeypatch):
    teacher = teacher_of(folder)
    monkeypatch.setattr(teacher_speed, "LEAST_FLOPS", {"cpu": 1.0 + 10 * teacher.flops(), "cuda": 0.0})
    assert choose(teacher, num_views=10) == teacher_speed.Choice() and not timed
    assert choose(teacher, num_views=11).execution == FASTEST


def test_one_that_gives_other_labels_stays_as_it_was_loaded(timed, folder, monkeypatch, caplog):
    teacher = teacher_of(folder)
    run_as = type(teacher).run_as

    def another(self, execution):
        run_as(self, execution)
        if execution:
            self.model.classifier[1].bias[3] += 1.0

    monkeypatch.setattr(type(teacher), "run_as", another)
    with caplog.at_level("WARNING"):
        choice = choose(teacher)
    assert choice.execution == PLAIN and choice.words.startswith("as it was loaded, 32 views/s; tried: 6 BatchNorm")
    assert "channels_last: 14 of 64 views labelled differently; 6 BatchNorm" in caplog.text


def test_compiling_is_for_the_batches_of_the_training_and_must_pay(timed, folder, monkeypatch):
    made = []

    monkeypatch.setattr(teacher_speed, "_WORTH_COMPILING", 1.0)
    monkeypatch.setattr(torch, "compile", lambda function, **settings: made.append(settings) or noting(function, made))
    teacher = teacher_of(folder)
    choice = choose(teacher)
    assert choice.execution == replace(FASTEST, compiled=32) and ", compiled in 0 s" in choice.words
    teacher.run_as(choice.execution)
    made.clear()
    for size in (32, 5):
        teacher(torch.zeros(size, 3, 16, 16))
    assert made == [{"dynamic": False}, torch.Size([32, 3, 16, 16])]
    other, pixels = copy.deepcopy(teacher), torch.zeros(32, 3, 16, 16)
    other.model.classifier[1].bias.add_(1.0)
    torch.testing.assert_close(other(pixels), teacher(pixels) + 1)  # its own program
    monkeypatch.setattr(teacher_speed, "_LEAST_GAIN", 9.0)
    assert "compiling, in 0 s, would not pay: 2.33 x beside that" in choose(teacher_of(folder)).words

    def without_compiler(pixels):
        raise TorchDynamoException("no compiler\nat all")

    monkeypatch.setattr(teacher_speed, "_LEAST_GAIN", 1.0)
    monkeypatch.setattr(torch, "compile", lambda function, **settings: without_compiler)
    assert choose(teacher_of(folder)).execution == FASTEST
    with pytest.raises(InputError, match=r"is to run compiled \(no compiler\): mend that, as by a C\+\+"):
        copy.deepcopy(teacher)(pixels)


def noting(function, made):
    def noted(pixels):
        made.append(pixels.shape)
        return function(pixels)

    return noted


def test_a_run_goes_on_with_the_teacher_that_it_had(timed, folder, tmp_path):
    whole = run(folder, tmp_path / "whole")
    whole.train()
    assert whole.teacher.description.execution == FASTEST and len(timed) == 1
    part = tmp_path / "whole" / "checkpoint-3"
    assert origin_of(part)["execution"] == FASTEST.to_dict()
    other = shutil.copytree(part, tmp_path / "part" / "checkpoint-3")
    resumed = run(folder, tmp_path / "part")
    resumed.check_checkpoint(str(other))  # as the command does, before it writes anything
    described = resumed.teacher.description
    assert replace(described, execution=None).decided_by(teacher_in(str(other))).identity() == described.identity()
    resumed.train(resume_from_checkpoint=str(other))
    assert resumed.record.teacher_speed == "6 BatchNorm layers folded, channels_last, as before" and len(timed) == 1
    ends = [load_file(tmp_path / name / "checkpoint-6" / "model.safetensors") for name in ("whole", "part")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    with pytest.raises(InputError, match=r"execution \{.*folded.* then, None now: give --teacher_speed auto"):
        run(folder, tmp_path / "part", speed="off").train(resume_from_checkpoint=str(other))
    off = run(folder, tmp_path / "off", speed="off", max_steps=3)
    off.train()
    later = run(folder, tmp_path / "off", max_steps=6)
    later.train(resume_from_checkpoint=str(tmp_path / "off" / "checkpoint-3"))
    assert later.teacher.description.execution == PLAIN and len(timed) == 1


def test_kept_labels_are_of_the_teacher_as_it_ran(timed, folder, tmp_path):
    fast, plain = str(tmp_path / "fast"), str(tmp_path / "plain")
    run(folder, tmp_path / "a", teacher_labels=fast).train()
    run(folder, tmp_path / "b", teacher_labels=plain, speed="off").train()
    identities = {name: TeacherLabelStore.open(name, readonly=True).identity for name in (fast, plain)}
    assert identities[fast].teacher["execution"] == FASTEST.to_dict()
    assert "execution" not in identities[plain].teacher and len(timed) == 1
    for store, execution in ((fast, FASTEST), (plain, PLAIN)):  # longer ones label on, as the teacher of the store
        for described in (True, False):
            longer = run(folder, tmp_path / "c", teacher_labels=store, max_steps=18, described=described)
            longer.kept_labels.close()
            assert longer.teacher.description.execution == execution
    longer.train()
    assert len(timed) == 1
    with pytest.raises(InputError, match=r"teacher.execution is \{.*\} there, None here.*--teacher_speed auto runs"):
        run(folder, tmp_path / "d", teacher_labels=fast, speed="off")


def test_several_teachers_run_each_in_its_own_way(timed, folder, tmp_path):
    folders = [folder, tiny.teacher_folder(tmp_path / "other", seed=2)]
    several = run(folders, tmp_path / "run", teacher_labels=str(tmp_path / "labels"))
    assert [one.description.execution for one in several.teacher.members] == [FASTEST, FASTEST]
    said = several.record.teacher_speed
    assert said.startswith("teacher 1.43 x as fast") and "; other 1.43 x" in said
    several.train()
    again = run(folders[::-1], tmp_path / "again", teacher_labels=str(tmp_path / "labels"))
    again.kept_labels.close()
    assert again._fitted["teacher"].identity() == several.teacher.description.identity() and len(timed) == 2


def test_a_way_in_which_it_cannot_run_is_left_out(timed, folder, monkeypatch):
    teacher = teacher_of(folder)
    run_as = type(teacher).run_as

    def refusing(self, execution):
        run_as(self, execution)
        if execution.channels_last:
            raise RuntimeError("view size is not compatible with input tensor's size and stride")

    monkeypatch.setattr(type(teacher), "run_as", refusing)
    assert choose(teacher).execution == FOLDED
    assert choose_execution(teacher, [], num_views=1000) == teacher_speed.Choice()


@pytest.mark.parametrize("known", [{"folded": -1}, {"folded": True}, {"flying": 1}, {"dtype": "int8"}, ["folded"]])
def test_a_way_to_run_of_a_later_version_is_refused(known):
    with pytest.raises(InputError, match="how a teacher runs is said by folded, channels_last, compiled, dtype, got"):
        Execution.of(known)
    with pytest.raises(InputError, match='speed must be "auto" or "off", got'):
        teacher_of("x", speed="fast")
