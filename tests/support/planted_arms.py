"""Arms of a benchmark that need no library: a linear layer that is fast, slow, wrong, or broken somewhere.

They run in processes of their own, which import this module and nothing heavier.
"""

import os
import signal
import threading
import time
from typing import Any

import numpy as np

from hf_deit.export.benchmark.arms import Answer, Arm, Making, Programs

NUM_LABELS = 10
SLEEP = 0.01  # seconds that the slow one adds


def begin_making(model: str, folder: str, batch_sizes: tuple[int, ...], device: str, threads: int) -> dict[str, Any]:
    """In place of what loads a real model."""
    making = Making(None, folder, batch_sizes, np.load(os.path.join(folder, "calibration.npy")), device, threads)
    work = {size: (2 * size * 3 * 16 * 16 * NUM_LABELS, size * 3 * 16 * 16 * 4) for size in batch_sizes}
    return {"make": lambda arm: arm.make(making), "work": lambda: work}


def make(making: Making) -> Programs:
    path = os.path.join(making.folder, "weights.npy")
    size = int(np.prod(making.calibration.shape[1:]))
    np.save(path, np.random.default_rng(0).normal(size=(size, NUM_LABELS)).astype(np.float32))
    return making.for_all_sizes(path)


def refuse_to_make(making: Making) -> Programs:
    raise NotImplementedError("there is no operator aten::gelu")


def crash_making(making: Making) -> Programs:
    print("the compiler has met a case that cannot be")
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def open_linear(programs: Programs, device: str, threads: int) -> Answer:
    weights = np.load(next(iter(programs.values()))[0])
    return lambda pixels: pixels.reshape(len(pixels), -1) @ weights


def open_slow(programs: Programs, device: str, threads: int) -> Answer:
    answer = open_linear(programs, device, threads)

    def slowly(pixels: np.ndarray) -> np.ndarray:
        time.sleep(SLEEP)
        return answer(pixels)

    return slowly


def open_wrong(programs: Programs, device: str, threads: int) -> Answer:
    answer = open_linear(programs, device, threads)
    return lambda pixels: -answer(pixels)


def open_dying(programs: Programs, device: str, threads: int) -> Answer:
    """Dies of its second batch size."""
    answer = open_linear(programs, device, threads)

    def die_of_many(pixels: np.ndarray) -> np.ndarray:
        if len(pixels) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(pixels)

    return die_of_many


def refuse_to_open(programs: Programs, device: str, threads: int) -> Answer:
    raise RuntimeError("the file is of another version")


def begin_spinning() -> dict[str, Any]:
    """A process with a thread that never rests; says how much it has computed."""
    threading.Thread(target=_spin, daemon=True).start()
    return {"seconds": time.process_time, "fail": _fail, "die": lambda: os.kill(os.getpid(), signal.SIGKILL)}


def _fail() -> None:
    raise ValueError("one line\nand another")


def _spin() -> None:
    while True:
        pass


LINEAR = Arm("linear", "Linear", "float32", make, open_linear)
WRONG = Arm("wrong", "Wrong", "int8", make, open_wrong)
EXACT = Arm("exact", "Exact", "int8", make, open_slow)
UNMAKEABLE = Arm("unmakeable", "Unmakeable", "float32", refuse_to_make, open_linear)
CRASHING = Arm("crashing", "Crashing", "float32", crash_making, open_linear)
UNOPENABLE = Arm("unopenable", "Unopenable", "float32", make, refuse_to_open)
DYING = Arm("dying", "Dying", "float32", make, open_dying)
MISSING = Arm(
    "missing", "Missing", "float32", make, open_linear, ("no_such_package", "numpy"), "pip install 'no-such[thing]'"
)
