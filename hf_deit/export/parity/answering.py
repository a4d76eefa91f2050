"""The process in which an exported classifier answers as its users let it: what was trained cannot be imported there.

It is started by `separate_process.py` and told by a file what to do. It decodes the images itself, with Pillow alone.
This module imports nothing of the package but what is as light as itself.
"""

import contextlib
import importlib.abc
import importlib.metadata
import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NoReturn

import numpy as np
from PIL import Image

from ..programs.reference.preprocessing import load

_MOST_PIXELS = 1 << 22  # of a batch, unless it is of one image


def block_imports(names: Sequence[str]) -> None:
    """Makes packages, or modules, and all that is in them, impossible to import in this process.

    Raises:
        RuntimeError: one was imported before, or can be imported all the same.
    """

    class Blocked(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
            if any(fullname == name or fullname.startswith(f"{name}.") for name in names):
                raise ModuleNotFoundError(f"{fullname} is kept away from exported classifiers", name=fullname)

    there = [name for name in names if name in sys.modules]
    if there:
        raise RuntimeError(f"{', '.join(there)} was imported before an exported classifier was to answer without it")
    sys.meta_path.insert(0, Blocked())
    for name in names:
        if _can_be_imported(name):
            raise RuntimeError(f"{name} can be imported where an exported classifier is to answer without it")


def _can_be_imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def decode(path: str) -> np.ndarray:
    """An image as an exported classifier takes it: upright, white where it is transparent, uint8 (H, W, 3), RGB."""
    return np.asarray(load(path))


def main(request: str) -> None:
    """Lets an exported classifier answer to images.

    Prints "at N" before it answers to image N, and "done N" when it has answered to N of them.

    Args:
        request: a file with an object of JSON: "blocked" (see `block_imports`), "runner" (a function of
            `running.py`), "folder", "file" (of the classifier), "paths" (of the images), "num_labels",
            "batch_size" (images of one size that follow each other are answered together), "answers" (where
            the probabilities go, float32 (N, num_labels), NaN of those that cannot be decoded), "packages" (of the
            runtime) and "result" (where to say what came of it).
    """
    with open(request, encoding="utf-8") as file:
        wanted: dict[str, Any] = json.load(file)
    block_imports(wanted["blocked"])
    from . import running

    warnings.filterwarnings("ignore", module=r"PIL\.")
    if wanted["most_pixels"] is not None:
        Image.MAX_IMAGE_PIXELS = wanted["most_pixels"]
    answer = getattr(running, wanted["runner"])(wanted["folder"], wanted["file"])
    undecoded: dict[int, str] = {}
    with open(wanted["answers"], "wb") as answers:
        for rows, images in _batches(wanted["paths"], wanted["batch_size"], undecoded):
            _answer(answer, rows, images, wanted["num_labels"], answers)
        answers.truncate(4 * len(wanted["paths"]) * wanted["num_labels"])  # also where the last ones are undecoded
    versions = {"python": platform.python_version()}
    for name in wanted["packages"]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # as onnxruntime-gpu has onnxruntime
            versions[name] = importlib.metadata.version(name)
    result = {"undecoded": undecoded, "runtime": versions, "without_torch": not _can_be_imported("torch")}
    with open(wanted["result"], "w", encoding="utf-8") as file:
        json.dump(result, file)


def _batches(
    paths: Sequence[str], size: int, undecoded: dict[int, str]
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Images of one size that follow each other, with their numbers; notes those that cannot be decoded."""
    rows: list[int] = []
    images: list[np.ndarray] = []
    for row, path in enumerate(paths):
        print("at", row, flush=True)
        try:
            image = decode(path)
        except Exception as error:  # of any kind: decoders meet damage as they come to it
            undecoded[row] = str(error) or type(error).__name__
            continue
        is_full = len(images) >= size or (len(images) + 1) * image.size > 3 * _MOST_PIXELS
        if images and (is_full or image.shape != images[0].shape):
            yield rows, images
            rows, images = [], []
        rows.append(row)
        images.append(image)
    if images:
        yield rows, images


def _answer(
    answer: Callable[[np.ndarray], np.ndarray], rows: list[int], images: list[np.ndarray], labels: int, file: BinaryIO
) -> None:
    print("at", rows[0], flush=True)
    probabilities = np.asarray(answer(np.stack(images)))
    if probabilities.shape != (len(rows), labels):
        raise ValueError(f"it answers with the shape {probabilities.shape}, expected {(len(rows), labels)}")
    for row, values in zip(rows, probabilities.astype("<f4"), strict=True):
        file.seek(4 * labels * row)
        file.write(values.tobytes())
    print("done", rows[-1] + 1, flush=True)


def run(request: str) -> NoReturn:
    """Runs `main`, and ends the process; what keeps it from its end is told in the last line of stderr."""
    try:
        main(request)
    except Exception as error:
        words = " ".join(str(error).split())
        print(f"{type(error).__name__}: {words}", file=sys.stderr, flush=True)
        sys.exit(1)
    sys.exit(0)
