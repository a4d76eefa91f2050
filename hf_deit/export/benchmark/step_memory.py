"""The memory that a training step takes, measured in a process that does nothing else."""

import gc
from collections.abc import Callable
from typing import Any

import torch

from ...evaluation.benchmarks.memory import forget_peak, peak_memory, release, resident_memory
from .step_arms import Steps, StepSettings

_STEPS = 3  # of which the first makes the optimizer's state


def begin_stepping(settings: StepSettings) -> dict[str, Callable[..., Any]]:
    """Makes the batch, with the weights that students and teachers begin with."""
    steps = Steps(settings)

    def memory(arm: str) -> int | None:
        """The most bytes that a step took, with its student, teacher, gradients and optimizer; None if not known.

        On a GPU it is what torch has allocated there; on a CPU by how much the process has grown, which counts what
        the allocator and a compiler hold, too.
        """
        _give_back()
        on_gpu = steps.device.type == "cuda"
        before = torch.cuda.memory_allocated() if on_gpu else resident_memory()
        step = steps.step(arm)
        step()
        _give_back()  # what making them took
        most = 0
        for _ in range(_STEPS - 1):
            forget_peak(steps.device.type)
            step()
            peak = torch.cuda.max_memory_allocated() if on_gpu else peak_memory("cpu")
            most = max(most, peak or 0)
        return most - before if most and before is not None else None

    return {"memory": memory}


def _give_back() -> None:
    gc.collect()
    release()
