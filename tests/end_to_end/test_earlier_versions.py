"""Contract: what an earlier version wrote is read unchanged: a label store, a run's folder, published models.

support/version_0_1 was written by version 0.1.0 when its modules lay side by side in one folder: a run of run.yaml on
`images` with kept labels, and a CaiT with the code that it was published with.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.main_of import TESTS, main_of
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_deit import (
    CaiTForImageClassification,
    DistilledDeiTForImageClassification,
    InputError,
    TeacherLabelStore,
    load_recipe,
)
from hf_deit.commands.train import run
from hf_deit.hub.publishing import check_folder
from hf_deit.hub.record import read_facts
from hf_deit.recipes.resolve import resolve_arguments

WRITTEN = TESTS / "support" / "version_0_1"
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())


def test_kept_labels_are_read():
    store = TeacherLabelStore.open(WRITTEN / "labels", readonly=True)
    assert store.complete_epochs == [0, 1] and store.partial_epochs == []
    for epoch, codes in EXPECTED["codes"].items():
        np.testing.assert_array_equal(store.epoch(int(epoch)).codes, codes)


def test_kept_labels_are_replayed_to_the_same_losses(tmp_path, monkeypatch):
    monkeypatch.chdir(WRITTEN)
    command = ["--recipe", "run.yaml", "--train_dir", "images/train", "--validation_dir", "images/val"]
    command += [
        "--teacher_labels",
        "labels",
        "--teacher_labels_readonly",
        "true",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    result = run(resolve_arguments(command))
    assert result.label_report.replayed == 6 * 12 and result.label_report.asked == 0
    assert result.label_report.pixels > 0
    logs = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [line["loss"] for line in logs if "loss" in line] == pytest.approx(EXPECTED["losses"], abs=1e-5)
    assert not (WRITTEN / "labels" / ".lock").exists()  # what is only read is not locked


def test_a_run_goes_on_with_the_warm_up_that_its_average_had(tmp_path, monkeypatch):
    """An earlier version knew no `ema_warmup` and no average without: its recipes do not say it."""
    monkeypatch.chdir(WRITTEN)
    command = ["--recipe", "run.yaml", "--train_dir", "images/train", "--validation_dir", "images/val"]
    command += ["--distillation_type", "none", "--ema_decay", "0.9", "--save_strategy", "steps", "--save_steps", "3"]
    run(resolve_arguments([*command, "--ema_warmup", "true", "--output_dir", str(tmp_path / "whole")]))
    for name in ("stopped", "recorded"):
        stopped = shutil.copytree(tmp_path / "whole", tmp_path / name)
        shutil.rmtree(stopped / "checkpoint-6")
        recipe = (stopped / "recipe.yaml").read_text()
        assert "ema_warmup: true\n" in recipe
        (stopped / "recipe.yaml").write_text(recipe.replace("ema_warmup: true\n", ""))
    go_on = ["--resume_from_checkpoint", "true", "--use_cpu", "true", "--output_dir"]
    with pytest.raises(InputError, match="--ema_warmup true to go on with it"):
        run(resolve_arguments([*command, *go_on, str(tmp_path / "stopped")]))
    run(resolve_arguments([*command, "--ema_warmup", "true", *go_on, str(tmp_path / "stopped")]))
    run(
        resolve_arguments(["--recipe", str(tmp_path / "recorded" / "recipe.yaml"), *go_on, str(tmp_path / "recorded")])
    )
    for file in ("model.safetensors", "ema/model.safetensors"):
        ends = {(tmp_path / name / "checkpoint-6" / file).read_bytes() for name in ("whole", "stopped", "recorded")}
        assert len(ends) == 1


def test_a_runs_folder_is_read(tmp_path):
    folder = shutil.copytree(WRITTEN / "published", tmp_path / "published")
    check_folder(str(folder))
    facts = read_facts(str(folder))
    assert (facts.step, facts.is_distilled, facts.num_replayed) == (6, True, 72)
    assert load_recipe(str(folder / "recipe.yaml"))["mixup_group_size"] == 4


def test_a_run_at_32_pixels_or_less_goes_on_with_the_crop_that_it_had(tmp_path, capsys):
    """Where nobody said how, it was evaluated with 0.875, and its recipe does not say so."""
    recipe, folder = tmp_path / "mine.yaml", tmp_path / "run"
    recipe.write_text("base: debug\ncrop_ratio: null\nmax_steps: 2\neval_steps: 1\nsave_steps: 1\n")
    main, earlier = main_of("train"), ["--crop_ratio", "0.875"]
    command = ["--recipe", str(recipe), "--distillation_type", "none", "--output_dir", str(folder)]
    command += ["--use_cpu", "true", "--disable_tqdm", "true"]
    assert main([*command, *earlier]) == 0
    finished = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()  # as if it had been killed after the first step
    shutil.rmtree(folder / "checkpoint-2")
    written = folder / "recipe.yaml"
    written.write_text(written.read_text().replace("crop_ratio: 0.875\n", ""))
    resumed = [*command, "--resume_from_checkpoint", "true"]
    capsys.readouterr()
    assert main(resumed) == 2
    assert "has crop_ratio 0.875, got 1.0: give --crop_ratio 0.875" in capsys.readouterr().err
    assert main([*resumed, *earlier]) == 0
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(weight, again[name]) for name, weight in finished.items())
    assert AutoImageProcessor.from_pretrained(folder).size["shortest_edge"] == 18


@pytest.mark.parametrize(
    ("name", "model_class"),
    [("published", DistilledDeiTForImageClassification), ("published_cait", CaiTForImageClassification)],
)
def test_published_models_answer_as_they_did(name, model_class):
    processor = AutoImageProcessor.from_pretrained(WRITTEN / name)
    pixels = processor(Image.open(WRITTEN / "images" / "val" / "two" / "12.png").convert("RGB"), return_tensors="pt")
    expected = torch.tensor([EXPECTED["logits"][name]])
    for opened in (model_class, AutoModelForImageClassification):
        model = opened.from_pretrained(WRITTEN / name).eval()
        torch.testing.assert_close(model(**pixels).logits, expected, atol=1e-5, rtol=1e-5)


SEALED = """
import json, sys
sys.modules["hf_deit"] = None  # cannot be imported
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

folder, picture = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
pixels = AutoImageProcessor.from_pretrained(folder)(Image.open(picture).convert("RGB"), return_tensors="pt")
print(json.dumps(model(**pixels).logits[0].tolist()))
"""


def test_a_published_cait_runs_the_code_that_it_came_with():
    picture = WRITTEN / "images" / "val" / "two" / "12.png"
    command = [sys.executable, "-c", SEALED, str(WRITTEN / "published_cait"), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == pytest.approx(EXPECTED["logits"]["published_cait"], abs=1e-5)
