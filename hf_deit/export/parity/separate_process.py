"""Lets an exported classifier answer in a process of its own, and says in one line what keeps it from it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ...errors import ExportError, first_line
from ..formats import Runtime

_ROOT = str(Path(__file__).parents[3])  # where the package lies
_START = f"from {__package__}.answering import run; import sys; run(sys.argv[1])"
_BATCH_SIZE = 8
_SECONDS_IN_A_LOG = 30.0


@dataclass(frozen=True)
class ExportedAnswers:
    """What an exported classifier answers.

    Attributes:
        probabilities: (N, K) float32, mapped from a file; of images that cannot be decoded it means nothing.
        undecoded: why images could not be decoded with Pillow alone, by their row.
        runtime: versions, by name.
        without_torch: whether that process could not import it.
    """

    probabilities: np.ndarray
    undecoded: dict[int, str]
    runtime: dict[str, str]
    without_torch: bool


def ask_exported(
    runtime: Runtime,
    folder: str,
    file: str,
    *,
    paths: Sequence[str],
    names: Sequence[str],
    num_labels: int,
    scratch: str,
) -> ExportedAnswers:
    """Lets an exported classifier answer to images.

    Args:
        runtime: see there.
        folder, file: of the classifier.
        paths: of N images.
        names: what to call them.
        num_labels: K.
        scratch: a folder for what is handed over and given back.

    Raises:
        ExportError: it cannot be opened, or fails on an image, which is named; or its answers are not finite.
    """
    own = {name: os.path.join(scratch, f"{file}.{name}") for name in ("request", "answers", "result", "stderr")}
    request = {
        "blocked": runtime.blocked,
        "runner": runtime.runner,
        "folder": os.path.abspath(folder),
        "file": file,
        "paths": [os.path.abspath(path) for path in paths],
        "num_labels": num_labels,
        "batch_size": _BATCH_SIZE,
        "most_pixels": Image.MAX_IMAGE_PIXELS,
        "packages": runtime.packages,
        "answers": own["answers"],
        "result": own["result"],
    }
    with open(own["request"], "w", encoding="utf-8") as handed:
        json.dump(request, handed)
    at = _run(own["request"], own["stderr"], total=len(paths), what=file)
    try:
        with open(own["result"], encoding="utf-8") as given:
            result = json.load(given)
    except FileNotFoundError:
        where = "before the first image" if at.row is None else f"at {names[at.row]}"
        raise ExportError(f"the exported {file} fails {where}: {_reason(at.status, own['stderr'])}") from None
    probabilities = np.memmap(own["answers"], dtype="<f4", mode="r", shape=(len(paths), num_labels))
    undecoded = {int(row): why for row, why in result["undecoded"].items()}
    for row in range(len(paths)):
        if row not in undecoded and not np.isfinite(probabilities[row]).all():
            raise ExportError(f"the exported {file} answers to {names[row]} with numbers that are not finite")
    return ExportedAnswers(probabilities, undecoded, result["runtime"], result["without_torch"])


@dataclass(frozen=True)
class _End:
    """The exit status of the process, and the row of the image that it was at."""

    status: int
    row: int | None


def _run(request: str, stderr: str, *, total: int, what: str) -> _End:
    """Runs the process to its end."""
    path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    # -P: no file of the working directory is taken for a module.
    command = [sys.executable, "-P", "-c", _START, request]
    row = None
    bar = images_bar(f"{what} answers", total)
    with bar, open(stderr, "wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, env=environment, text=True
        )
        try:
            for line in process.stdout:
                word, _, number = line.strip().partition(" ")
                if word == "at" and number.isdecimal():
                    row = int(number)
                elif word == "done" and number.isdecimal():
                    bar.update(int(number) - bar.n)
            return _End(process.wait(), row)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def images_bar(words: str, total: int) -> tqdm:
    """A bar of images; where it is no terminal that shows it, a line of it every half minute."""
    pace = 0.1 if sys.stderr.isatty() else _SECONDS_IN_A_LOG
    return tqdm(total=total, desc=words, unit=" images", mininterval=pace, maxinterval=2 * pace, delay=2)


def _reason(status: int, stderr: str) -> str:
    """Why a process has ended."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        words = "its process was killed, perhaps for want of memory" if name == "SIGKILL" else "its process died"
        return f"{words} ({name})"
    with open(stderr, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return first_line(RuntimeError(lines[-1])) if lines else f"its process ended with the status {status}"
