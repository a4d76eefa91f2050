"""What runs in the processes of a benchmark."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...evaluation.benchmarks.memory import forget_peak, peak_memory
from .arms import Answer, Arm, Making, Programs

CALIBRATION = "calibration.npy"  # in the folder of the programs
_WARM = 1.05  # so much faster than before makes another block of runs worthwhile
_BLOCK_SECONDS, _MOST_BLOCKS = 0.1, 20
_LONGEST_PRODUCT = 0.25  # seconds


def begin_making(model: str, folder: str, batch_sizes: tuple[int, ...], device: str, threads: int) -> dict[str, Any]:
    """Loads the classifier that programs are made of; begun in a process of its own, which a compiler may end.

    Args:
        folder: where they go; it holds the pixels for calibration.
    """
    _use_threads(threads)
    import torch

    from ...evaluation.speed.work import work_of
    from ..programs.source import load_source

    torch.set_num_threads(threads)
    calibration = np.load(os.path.join(folder, CALIBRATION))
    making = Making(load_source(model), folder, batch_sizes, calibration, device, threads)

    def make(arm: Arm) -> Programs:
        return {size: list(files) for size, files in arm.make(making).items()}

    def work() -> dict[int, tuple[int, int]]:
        """Of PyTorch eager with each batch size; see `work_of`."""
        classifier = making.source.classifier
        pixels = {size: torch.zeros(size, *calibration.shape[1:]) for size in batch_sizes}
        return {size: work_of(lambda batch=batch: classifier.logits(batch)) for size, batch in pixels.items()}

    return {"make": make, "work": work}


def begin_peaks(device: str, threads: int) -> dict[str, Any]:
    """Prepares what the device is measured by: products of square matrices and a large copy, in float32."""
    _use_threads(threads)
    import torch

    from ...evaluation.benchmarks.timing import time_in_turn
    from ...evaluation.speed.throughput import Peak, large_copy, square_products

    torch.set_num_threads(threads)
    products = dict(square_products(torch.float32, torch.device(device), _LONGEST_PRODUCT))
    copied, copy = large_copy(torch.device(device))

    def run() -> tuple[float, float]:
        """FLOP/s of the fastest product, and bytes a second of the copy, once."""
        seconds = time_in_turn({**products, "copy": copy}, rounds=1)
        return Peak.of({side: seconds[side] for side in products}).flop_per_second, copied / seconds["copy"][0]

    return {"run": run}


@dataclass(frozen=True)
class Warmed:
    """What is known of an arm with a batch size before it is timed.

    Attributes:
        seconds: of a run.
        memory: the most bytes that the whole process held meanwhile; of an accelerator, of its memory. None where
            that is not told.
    """

    seconds: float
    memory: int | None


def begin_answering(arm: Arm, programs: Programs, pixels: str, device: str, threads: int) -> dict[str, Any]:
    """Opens an arm's programs.

    Args:
        pixels: a file with pixel_values, as many as the largest batch has, that runs are timed with.
    """
    _use_threads(threads)
    answer = arm.open(programs, device, threads)
    timed = np.load(pixels)

    def warm(batch_size: int) -> Warmed:
        batch = timed[:batch_size]
        forget_peak(device)
        answer(batch)
        before, seconds = float("inf"), _median_of_block(answer, batch)
        for _ in range(_MOST_BLOCKS):
            if before <= seconds * _WARM:
                break
            before, seconds = min(before, seconds), _median_of_block(answer, batch)
        return Warmed(seconds, peak_memory(device))

    def run(batch_size: int, runs: int) -> list[float]:
        """Seconds of each, after one that does not count: meanwhile others have had the caches."""
        batch = timed[:batch_size]
        answer(batch)
        return [_seconds(answer, batch) for _ in range(runs)]

    def logits(file: str, batch_size: int) -> np.ndarray:
        """(N, K) of the pixel_values of a file, in batches of which the last is filled up."""
        given = np.load(file, mmap_mode="r")
        answers = []
        for start in range(0, len(given), batch_size):
            batch = np.array(given[start : start + batch_size])
            filled = np.resize(batch, (batch_size, *batch.shape[1:]))  # repeats it
            answers.append(np.array(answer(filled))[: len(batch)])
        return np.concatenate(answers)

    return {"warm": warm, "run": run, "logits": logits}


def _use_threads(threads: int) -> None:
    """Before libraries are loaded that are not told in another way."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # others would be processes of their own


def _median_of_block(answer: Answer, batch: np.ndarray) -> float:
    seconds: list[float] = []
    while sum(seconds) < _BLOCK_SECONDS or len(seconds) < 3:
        seconds.append(_seconds(answer, batch))
    return statistics.median(seconds)


def _seconds(answer: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> float:
    start = time.perf_counter()
    answer(batch)  # to NumPy: accelerators have ended, too
    return time.perf_counter() - start
