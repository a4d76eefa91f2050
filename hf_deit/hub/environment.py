"""What a run computed with: versions of the libraries, devices, the commit of this code."""

import functools
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

from ..errors import counted

_LIBRARIES = [
    "hf_deit",
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "timm",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "pillow",
]


def describe_environment(
    *, num_processes: int = 1, device_type: str | None = None, libraries: Sequence[str] = ()
) -> dict[str, Any]:
    """What this process computes with, without names of people, machines and folders.

    Args:
        num_processes: of the whole run.
        device_type: "cpu" where that computes whatever else there is; None for the best device.
        libraries: whose versions are told beside those that always are.

    Returns:
        python, system, libraries (versions by name), hf_deit_commit (None if it is not known), device, num_processes,
        and cuda (its version, or None).
    """
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": {name: version(name) for name in (*_LIBRARIES, *libraries)},
        "hf_deit_commit": _commit(),
        "device": _device(device_type),
        "num_processes": num_processes,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _device(device_type: str | None) -> str:
    is_cpu = device_type == "cpu"
    if torch.cuda.is_available() and not is_cpu:
        return torch.cuda.get_device_name()
    if torch.accelerator.is_available() and not is_cpu:
        return str(torch.accelerator.current_accelerator())
    return f"CPU, {counted(os.cpu_count() or 1, 'core')}, {counted(torch.get_num_threads(), 'thread')} a process"


@functools.cache  # asked for at every push, while the training waits
def _commit() -> str | None:
    """The commit of this code: from where pip installed it, or of the checkout that it runs in."""
    try:
        origin = json.loads(distribution("hf_deit").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    if commit := origin.get("vcs_info", {}).get("commit_id"):
        return commit
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
        return f"{commit} with changes" if changes else commit
    except (OSError, subprocess.SubprocessError):
        return None
