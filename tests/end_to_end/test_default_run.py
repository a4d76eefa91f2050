"""The command without arguments, as it stands in README, reaches its accuracy. The longest test: a file of its own."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


def test_default_recipe_reaches_its_accuracy(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", SCRIPT]
    # More threads than cores, with the tests beside it, wait for each other: twice the time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    fused = next(line for line in done.stdout.splitlines() if line.startswith("fused"))
    assert float(fused.split()[1]) >= 0.95
    assert (tmp_path / "outputs" / "digits" / "model.safetensors").is_file()
