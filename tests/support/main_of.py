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


def launch(script: str | Path, *arguments: object, processes: int = 2) -> str:
    """Runs a script under torch.distributed and gives what it printed. The modules of the tests are importable there.

    Args:
        script: its file.
        *arguments: of its command line.
        processes: how many.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    done = subprocess.run([*command, *map(str, [script, *arguments])], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def python_path() -> str:
    """Of a process that imports what the tests do: the package beside them, what they share, and themselves."""
    rooms = [path for path in sorted(TESTS.iterdir()) if path.is_dir() and path.name != "__pycache__"]
    return os.pathsep.join(map(str, [ROOT, TESTS, *rooms]))
