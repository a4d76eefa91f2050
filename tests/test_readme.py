"""README's commands and code are what works: its Python blocks are run, with small data in place of the reader's."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from hf_deit import DistilledDeiTImageProcessor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
INFERENCE, TRAINING = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_inference_block(here, capsys):
    model = tiny.student()
    model.save_pretrained("outputs/digits")
    tiny.processor().save_pretrained("outputs/digits")
    tiny.digits()[1][0]["image"].save("image.png")
    exec(compile(INFERENCE, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in {str(digit) for digit in range(10)}


def test_training_block(here):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 4)):
        for name in ("cat", "dog"):
            os.makedirs(f"images/{split}/{name}")
            for index in range(count):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(f"images/{split}/{name}/{index}.png")
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", id2label={0: "cat", 1: "dog"}
    )
    ResNetForImageClassification(config).save_pretrained("teacher")
    DistilledDeiTImageProcessor(crop_size=224).save_pretrained("teacher")
    small = TRAINING.replace("my-name/my-finetuned-convnext", "teacher")
    small = small.replace("num_train_epochs=100", "num_train_epochs=1, use_cpu=True")
    small = small.replace("per_device_train_batch_size=64", "per_device_train_batch_size=8")
    assert small.count('teacher"') and "use_cpu" in small
    exec(compile(small, "README.md", "exec"), {})
    assert Path("outputs/mine/model.safetensors").is_file()


def test_ci_runs_the_readmes_own_test_command():
    commands = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert any('python -m pip install -e ".[test]" && python -m pytest' in command for command in commands)
    assert any("python -m pip install -e . && accelerate launch scripts/train.py" in command for command in commands)
    assert '\npython -m pip install -e ".[test]" && python -m pytest\n' in (ROOT / ".ci" / "run").read_text()


def test_files_that_the_readme_names_exist():
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
