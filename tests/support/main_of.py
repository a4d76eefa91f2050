"""Commands as their users run them: the `main` of a script, and scripts on several processes."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def main_of(name: str) -> Callable[[list[str]], int]:
    """The `main` of scripts/NAME.py."""
    return load_script(name).main


def load_script(name: str) -> Any:
    """The module scripts/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(script: str | Path, *arguments: object, processes: int = 2, configuration: str | None = None) -> str:
    """Runs a script on several processes and gives what it printed. The modules of the tests are importable there.

    Args:
        script: its file.
        *arguments: of its command line.
        processes: how many.
        configuration: by `accelerate launch` with this one of scripts/accelerate_configs; by default by torch's own.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    if configuration is not None:
        file = ROOT / "scripts" / "accelerate_configs" / f"{configuration}.yaml"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "--main_process_port", 0]
        command += ["--num_processes", processes]
        environment["CUDA_VISIBLE_DEVICES"] = ""
    line = list(map(str, [*command, script, *arguments]))
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def python_path() -> str:
    """Of a process that imports what the tests do: the package beside them, what they share, and themselves."""
    rooms = [path for path in sorted(TESTS.iterdir()) if path.is_dir() and path.name != "__pycache__"]
    return os.pathsep.join(map(str, [ROOT, TESTS, *rooms]))
