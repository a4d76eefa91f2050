"""The benchmark measures what it says: the four arms train alike, but for where the teacher's labels come from."""

from pathlib import Path

import pytest
import torch
from support.main_of import main_of

from hf_deit.commands.benchmark import read_options
from hf_deit.errors import InputError
from hf_deit.evaluation.benchmarks import label_store as benchmarks
from hf_deit.models.teacher import Teacher

SMALL = ["--teachers", "resnet10t", "--image_size", "32", "--batch_size", "4", "--num_workers", "0", "--rounds", "2"]


def test_the_command_prints_a_table(capsys):
    assert main_of("benchmark")(["label-store", *SMALL, "--storage_views", "6400"]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| resnet10t")]
    assert [row.split(" | ")[1].strip() for row in rows] == ["fixed", "end to end"]
    assert len({row.count("|") for row in printed.splitlines() if row.startswith("|")}) == 1
    assert "An epoch of 6,400 views, 1,000 classes" in printed
    assert main_of("benchmark")(["no-such-benchmark"]) == 2
    assert "no-such-benchmark" in capsys.readouterr().err
    assert main_of("benchmark")(["imports", "--rounds", "0"]) == 2
    assert "rounds must lie in [1, 2147483648), got 0" in capsys.readouterr().err


def test_arms_take_turns_and_ratios_are_of_one_round(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(benchmarks.time, "perf_counter", lambda: clock[0])

    def arm(name: str, seconds: float):
        def run() -> None:
            order.append(name)
            clock[0] += seconds * (1 + order.count(name))  # the machine gets slower and slower

        return run

    seconds = benchmarks.time_in_turn({"a": arm("a", 1), "b": arm("b", 2), "c": arm("c", 4)}, rounds=3)
    assert "".join(order) == "abcbcacababc"
    assert seconds["a"] == [3, 4, 5] and seconds["b"] == [6, 8, 10]
    assert benchmarks.Ratio.of(seconds["b"], seconds["a"]) == benchmarks.Ratio(2, 2, 2)


def test_only_some_arms_ask_the_teacher(monkeypatch):
    asked = []
    forward = Teacher.forward
    monkeypatch.setattr(Teacher, "forward", lambda self, pixels: asked.append(len(pixels)) or forward(self, pixels))
    teacher = benchmarks.random_teacher("resnet10t", 32, torch.float32)
    options = {"per_device_train_batch_size": 4, "max_steps": 4, "disable_tqdm": True, "save_strategy": "no"}
    data = benchmarks.photographs(16, different=4)
    with benchmarks._arms("deit_tiny_distilled_patch16_224", teacher, data, 32, options) as arms:
        calls = {}
        for name, arm in arms.items():
            asked.clear()
            before = [parameter.clone() for parameter in arm.trainer.model.parameters()]
            arm.on_a_fixed_batch(2)
            arm.end_to_end(1)
            calls[name] = len(asked)
            after = arm.trainer.model.parameters()
            assert sum(not torch.equal(one, other) for one, other in zip(before, after, strict=True)) > 100
        kept = {name: arm.trainer.kept_labels and arm.trainer.kept_labels.report() for name, arm in arms.items()}
    assert calls == {"student alone": 0, "live": 3, "recording": 3, "replaying": 0}
    assert (kept["recording"].asked, kept["replaying"].replayed) == (12, 12)


def test_every_benchmark_has_its_row_in_the_readme(capsys):
    readme = (Path(benchmarks.__file__).parent / "README.md").read_text()
    with pytest.raises(InputError) as error:
        read_options([])
    names = str(error.value).rpartition(" ")[2].split("|")
    assert "step" in names
    for name in names:
        assert f"| `{name}` |" in readme and f"hf-deit benchmark {name}" in readme
        with pytest.raises(SystemExit):
            read_options([name, "--help"])
        assert "--output" in capsys.readouterr().out
