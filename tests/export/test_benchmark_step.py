"""The benchmark of a step compares arms that do the same work, and refuses those that do not."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.main_of import main_of
from torch import nn

from hf_deit.errors import InputError
from hf_deit.evaluation.benchmarks.memory import resident_memory
from hf_deit.export import requirements
from hf_deit.export.benchmark import step, step_arms
from hf_deit.export.benchmark.step_memory import begin_stepping
from hf_deit.models.zoo import create_model

TINY = ["step", "--teacher", "resnet10t", "--image_size", "32", "--batch_size", "4", "--rounds", "1", "--no_memory"]


def test_the_command_measures_each_arm_asked_for_and_writes_what_it_found(tmp_path, capsys):
    pytest.importorskip("vit_pytorch")
    arms = ["alone:hf_deit", "alone:timm", "alone:transformers-trainer"]
    arms += ["live:hf_deit", "live:timm-tuned", "live:transformers", "live:transformers-trainer-tuned"]
    arms += ["live:vit-pytorch", "live:vit-pytorch-tuned"]
    files = [str(tmp_path / name) for name in ("step.json", "step.png", "step.md")]
    assert main_of("benchmark")([*TINY, "--device", "cpu", "--arms", *arms, "--output", *files]) == 0
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    assert [row[0][2:].strip() for row in rows[2:]] == arms
    assert Path(files[2]).read_text() == printed and "vit-pytorch distils a model of its own" in printed
    found = json.loads(Path(files[0]).read_text())
    losses = found["loss"]
    assert losses["live:timm-tuned"] == pytest.approx(losses["live:hf_deit"], rel=1e-4) != losses["alone:timm"]
    assert losses["live:vit-pytorch"] == pytest.approx(losses["live:vit-pytorch-tuned"], rel=1e-4)
    assert found["flops"]["live:timm-tuned"] > found["flops"]["alone:timm"] > 0
    assert found["flops"]["live:vit-pytorch"] == pytest.approx(found["flops"]["live:hf_deit"], rel=0.1)
    traffic = found["traffic"]
    assert traffic["live:transformers"] > traffic["alone:transformers-trainer"] > 0
    assert found["ratio_to_ours"]["live:hf_deit"]["median"] == 1 and found["bandwidth"] > 0
    # Nothing computes faster than the peak that is measured beside it.
    assert all(found["flops"][arm] / min(seconds) < found["peak"] for arm, seconds in found["seconds"].items())
    assert Image.open(files[1]).size[0] > 800


def test_vit_pytorch_must_have_the_loss_that_it_documents(monkeypatch, capsys):
    distill = pytest.importorskip("vit_pytorch.distill")
    forward = distill.DistillWrapper.forward
    monkeypatch.setattr(distill.DistillWrapper, "forward", lambda *given: forward(*given) * 1.001)
    assert main_of("benchmark")([*TINY, "--arms", "live:vit-pytorch"]) == 2
    assert "vit-pytorch has a loss of" in capsys.readouterr().err


def test_vit_pytorch_alone_is_left_out_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    notes, arms = step._chosen([])
    assert arms == [arm for arm in step.ARMS if "vit-pytorch" not in arm] and len(arms) == 15
    (note,) = notes
    assert "Not measured: vit-pytorch" in note and "pip install 'hf_deit[bench]'" in note
    with pytest.raises(InputError, match="pip install 'hf_deit\\[bench\\]'"):
        step.measure_step(arms=["alone:timm", "live:vit-pytorch"])


def test_a_step_takes_at_least_the_memory_of_what_it_learns(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    settings = step_arms.StepSettings(name, "resnet10t", 32, 4, False, False, "cpu", str(tmp_path))
    memory = begin_stepping(settings)["memory"]
    if resident_memory() is None:
        pytest.skip("the system does not tell a process's memory")
    weights = 4 * create_model(name, image_size=32).num_parameters()
    # Weights, gradients and two moments; a small batch adds little.
    assert 4 * weights < memory("alone:hf_deit") < 12 * weights


def test_ours_and_tuned_arms_alone_are_compiled(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(type(model).__name__) or model)
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    name = "deit_tiny_distilled_patch16_224"
    steps = step_arms.Steps(step_arms.StepSettings(name, "resnet10t", 32, 4, False, True, "cpu", str(tmp_path)))
    native = "DeiTForImageClassificationWithTeacher"
    expected = {
        "live:timm-tuned": ["ResNet", "VisionTransformerDistilled"],
        "live:hf_deit": ["DistilledDeiTForImageClassification"],
        "live:transformers-trainer": [],
        "live:transformers-trainer-tuned": [native],
        "live:timm": [],
        "alone:transformers-tuned": [native],
    }
    for arm, names in expected.items():
        compiled.clear()
        steps.step(arm)
        assert compiled == names, arm


def test_an_arm_with_another_loss_is_refused(monkeypatch, capsys):
    right = step_arms.hard_distillation_loss
    monkeypatch.setattr(step_arms, "hard_distillation_loss", lambda *tensors: right(*tensors) * 1.001)
    assert main_of("benchmark")([*TINY, "--arms", "live:hf_deit", "live:transformers"]) == 2
    assert "live:transformers has a loss of" in capsys.readouterr().err


def test_only_losses_of_one_kind_must_agree():
    step.check_losses({"alone:a": 7.0, "live:a": 5.0, "live:b": 5.0004, "alone:b": 6.9995}, 1e-4)
    for wrong in (5.001, float("nan")):
        with pytest.raises(InputError, match="live:b"):
            step.check_losses({"alone:a": 7.0, "live:a": 5.0, "live:b": wrong}, 1e-4)
    with pytest.raises(InputError, match="did you mean 'live:timm'"):
        step.measure_step(arms=["live:tim"])
    with pytest.raises(InputError, match="deit_tiny_patch16_224"):
        step.measure_step(student="deit_tiny_patch16_224")
    with pytest.raises(InputError, match="device must be one of cpu, cuda, got 'tpu'"):
        step.measure_step(device="tpu")


def test_compiling_asks_for_a_compiler_first(monkeypatch):
    monkeypatch.setattr(step.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="--compile needs a C"):
        step.measure_step(compiled=True)
