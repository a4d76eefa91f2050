"""The benchmark of a step compares arms that do the same work, and refuses those that do not."""

import json

import pytest
import timm
import torch
from support.main_of import main_of
from torch import nn

from hf_deit.errors import InputError
from hf_deit.export.benchmark import step

TINY = ["step", "--teacher", "resnet10t", "--image_size", "32", "--batch_size", "4", "--rounds", "1"]


def test_the_command_measures_each_arm_asked_for_and_writes_what_it_found(tmp_path, capsys):
    arms = ["alone:hf_deit", "alone:timm", "live:hf_deit", "live:timm-tuned", "live:transformers"]
    assert main_of("benchmark")([*TINY, "--arms", *arms, "--output", str(tmp_path / "step.json")]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0][2:].strip() for row in rows[2:]] == arms
    found = json.loads((tmp_path / "step.json").read_text())
    losses = found["loss"]
    assert losses["live:timm-tuned"] == pytest.approx(losses["live:hf_deit"], rel=1e-4) != losses["alone:timm"]
    assert found["flops"]["live:timm-tuned"] > found["flops"]["alone:timm"] > 0
    assert found["ratio_to_ours"]["live:hf_deit"]["median"] == 1 and found["bandwidth"] > 0
    # Nothing computes faster than the peak that is measured beside it.
    assert all(found["flops"][arm] / min(seconds) < found["peak"] for arm, seconds in found["seconds"].items())


def test_an_arm_with_another_loss_is_refused(monkeypatch, capsys):
    right = step.hard_distillation_loss
    monkeypatch.setattr(step, "hard_distillation_loss", lambda *tensors: right(*tensors) * 1.001)
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


@pytest.mark.parametrize("name", ["resnet10t", "regnety_002"])
def test_a_folded_model_answers_alike(name):
    model = timm.create_model(name, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2), nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.weight, 0.5, 2)
    pixels, before = torch.randn(2, 3, 32, 32), sum(isinstance(one, nn.BatchNorm2d) for one in model.modules())
    folded = step.folded(model)
    assert not folded.training and model.training
    assert sum(isinstance(one, nn.BatchNorm2d) for one in folded.modules()) < before / 2
    with torch.no_grad():
        torch.testing.assert_close(folded(pixels), model.eval()(pixels), rtol=1e-3, atol=1e-3)
