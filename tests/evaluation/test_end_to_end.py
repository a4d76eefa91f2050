"""The benchmark from images to weights measures what it says: the arms take as many steps, on as many views."""

import json

import pytest
import torch
from support.main_of import main_of
from timm.task import TokenDistillationTask

from hf_deit import DistillationTrainer
from hf_deit.evaluation.benchmarks import end_to_end
from hf_deit.models.teacher import Teacher

SMALL = [
    "end-to-end",
    "--image_size",
    "32",
    "--batch_size",
    "4",
    "--num_workers",
    "0",
    "--rounds",
    "1",
    "--steps",
    "2",
]


@pytest.fixture
def seen(monkeypatch):
    """The labels of each step of ours, with what asked for its loss; of timm the targets."""
    seen, compute_loss, forward = (
        {"ours": [], "timm": []},
        DistillationTrainer.compute_loss,
        TokenDistillationTask.forward,
    )

    def of_ours(self, model, inputs, *args, **kwargs):
        seen["ours"].append((self.is_in_train, inputs["labels"].tolist(), inputs["pixel_values"].sum().item()))
        return compute_loss(self, model, inputs, *args, **kwargs)

    def of_timm(self, pixels, targets):
        seen["timm"].append(targets)
        return forward(self, pixels, targets)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", of_ours)
    monkeypatch.setattr(TokenDistillationTask, "forward", of_timm)
    return seen


def test_arms_take_the_same_steps(seen, monkeypatch, tmp_path, capsys):
    asked, teach = [], Teacher.forward
    monkeypatch.setattr(Teacher, "forward", lambda self, pixels: asked.append(len(pixels)) or teach(self, pixels))
    figures = tmp_path / "figures.json"
    assert main_of("benchmark")([*SMALL, "--teacher", "resnet10t", "--output", str(figures)]) == 0
    bare = [rest for in_loop, *rest in seen["ours"] if not in_loop]
    whole = [rest for in_loop, *rest in seen["ours"] if in_loop]
    assert len(bare) == len(whole) == len(asked) / 2 == len(seen["timm"]) == 2 * 3  # two rounds of 1 + 2 steps
    assert bare == whole  # the same views, in the same order
    for targets in seen["timm"]:
        assert targets.shape == (4, 1000)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
        assert targets.min().item() == pytest.approx(0.1 / 1000)  # smoothed as ours are
    report = json.loads(figures.read_text())
    assert {arm: len(seconds) for arm, seconds in report["seconds"].items()} == dict.fromkeys(end_to_end.ARMS, 1)
    printed = capsys.readouterr().out
    assert [line.split(" | ")[0].rstrip() for line in printed.splitlines() if line.startswith("| ")][2:] == [
        f"| {arm}" for arm in end_to_end.ARMS
    ]
    assert "The Trainer takes" in printed


def test_without_a_teacher_and_only_some_arms(seen, capsys):
    assert main_of("benchmark")([*SMALL, "--teacher", "none", "--arms", "hf_deit:bare"]) == 0
    assert [in_loop for in_loop, *_ in seen["ours"]] == [False] * 6
    assert seen["timm"] == []
    assert "The Trainer takes" not in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(capsys):
    for options, said in (
        (["--arms", "hf_deit:bar"], "did you mean 'hf_deit:bare'"),
        (["--student", "deit_tiny_patch16_224"], "--student must be a distilled DeiT"),
        (["--batch_size", "3"], "--batch_size must be even"),
    ):
        assert main_of("benchmark")([*SMALL, *options]) == 2
        assert said in capsys.readouterr().err


def test_the_clock_runs_from_one_step_to_another(monkeypatch):
    now = iter((10.0, 13.5))
    monkeypatch.setattr(end_to_end.time, "perf_counter", lambda: next(now))
    clock = end_to_end._Clock(2, 4)
    for step in range(1, 5):
        clock(step)
    assert clock.seconds == 3.5
