"""The features of images, computed once: chunk by chunk, over all processes, going on where a probe was stopped."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from ...errors import InputError, counted
from ...hub.environment import describe_environment
from ...hub.files import writing
from ...training.processes import on_main_process
from ..answers.asking import Answered, Asking, compute
from ..answers.chunk_folder import Arrays, ChunkFolder
from ..images.images import EvaluationImages
from .backbone import Backbone

_CHUNK = 512  # images
_SPARE = 1 << 26  # bytes of a disk that are left
_COPIES = 5  # of all features that a fit holds at once, at most
_IDENTITY_FILE = "features.json"
_TIMED = 8  # images


class Features(NamedTuple):
    """The features of images that could be decoded.

    Attributes:
        values: (V, N, D) float32, of V views; the whole image first.
        rows: (N,) int64, which of the images they are of.
        skipped: why the others could not, by their rows.
    """

    values: np.ndarray
    rows: np.ndarray
    skipped: dict[int, str]


def compute_features(backbone: Backbone, images: EvaluationImages, asking: Asking) -> Features | None:
    """The features of all views of images; what is kept of a call that was stopped is not computed again.

    All processes must call it. They are the same for any number of them.

    Args:
        backbone: with the views.
        images: the same in all processes.
        asking: how; chunks are kept in its folder.

    Returns:
        Them in the main process, None in the others.

    Raises:
        InputError: an image cannot be decoded, if none may be; features that are not finite; no room for them.
        CheckpointError: they cannot be written.
    """
    state, num_images = PartialState(), len(images)
    shape = (num_images, backbone.num_features)

    def folder_of(identity: dict[str, Any]) -> ChunkFolder:
        def is_whole(chunk: int, arrays: Arrays, skipped: dict[int, str]) -> bool:
            expected = (len(folder.rows(chunk)), backbone.num_features)
            is_there = list(sorted(arrays)) == sorted(backbone.views)
            return is_there and all(values.shape == expected for values in arrays.values())

        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        path = os.path.join(asking.output_dir, digest[:16])
        folder = ChunkFolder(path, num_images=num_images, size=_CHUNK, is_whole=is_whole)
        return folder

    def begin() -> tuple[dict[str, Any], list[int]]:
        identity = {
            **backbone.description.origin(),
            "num_features": backbone.num_features,
            "views": list(backbone.views),
            "images": images.digest_with_times,
            "on_bad_image": asking.on_bad_image,
            "batch_size": asking.batch_size,
            "device": asking.device.type,
            "libraries": describe_environment()["libraries"],
        }
        folder = folder_of(identity)
        with writing(f"to {asking.output_dir!r}"):
            folder.begin(identity, _IDENTITY_FILE)
        absent = folder.absent()
        check_room(backbone, num_images, sum(len(folder.rows(chunk)) for chunk in absent), asking.output_dir)
        return identity, absent

    identity, absent = on_main_process(begin)
    folder = folder_of(identity)
    if mine := absent[state.process_index :: state.num_processes]:
        compute(
            backbone,
            images,
            [(chunk, folder.rows(chunk)) for chunk in mine],
            sum(len(folder.rows(chunk)) for chunk in absent),
            asking,
            keep=lambda chunk, answered: folder.write(chunk, *_joined(backbone, folder.rows(chunk), answered)),
        )
    state.wait_for_everyone()
    return on_main_process_alone(lambda: _read(folder, list(backbone.views), shape))


def on_main_process_alone(function: Any) -> Any:
    """The result of a function in the main process, None in the others; an error is raised in all."""
    found = []
    on_main_process(lambda: found.append(function()))
    return found[0] if found else None


def check_room(backbone: Backbone, num_images: int, num_absent: int, output_dir: str) -> None:
    """Refuses to begin what memory or the disk have no room for.

    Raises:
        InputError: says how much it takes, and what to do.
    """
    size = 4 * len(backbone.views) * backbone.num_features
    wanted, memory = _COPIES * size * num_images, _memory()
    less = "--labels_kept N takes some of the images, --horizontal_flip false half of the views"
    if wanted > memory:
        raise InputError(
            f"the features of {counted(num_images, 'image')} ({len(backbone.views)} views of "
            f"{backbone.num_features:,} numbers each) take {wanted / 1e9:,.1f} GB of memory to be fitted, and "
            f"there are {memory / 1e9:,.1f} GB: {less}"
        )
    free = shutil.disk_usage(output_dir).free
    if size * num_absent + _SPARE > free:
        raise InputError(
            f"the features of {counted(num_absent, 'image')} take {size * num_absent / 1e6:,.1f} MB, and the disk of "
            f"{output_dir!r} has {free / 1e6:,.1f} MB left: free some space, give another --output_dir, or less to "
            f"do: {less}"
        )


def _memory() -> float:
    """The memory of this machine in bytes; infinite where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def estimate_seconds(backbone: Backbone, num_images: int) -> float:
    """About how long the features of so many images will take one process, measured on a few; decoding left out."""
    size = backbone.description.input_size
    device = backbone.model.device

    def seconds(number: int) -> float:
        pixels, start = torch.zeros(number, 3, *size), time.perf_counter()
        backbone.logits_and_features(pixels)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    seconds(1)  # the first pass chooses kernels
    return seconds(min(_TIMED, num_images)) / min(_TIMED, num_images) * num_images


def _joined(backbone: Backbone, rows: range, answered: Sequence[Answered]) -> tuple[Arrays, dict[int, str]]:
    """The chunk of its batches' features, zero where an image was skipped."""
    arrays = {view: np.zeros((len(rows), backbone.num_features), dtype=np.float32) for view in backbone.views}
    skipped = {}
    for batch in answered:
        places = [row - rows.start for row in batch.rows]
        for view, values in batch.logits.items():
            arrays[view][places] = values
        skipped |= {row - rows.start: why for row, why in batch.skipped.items()}
    return arrays, skipped


def _read(folder: ChunkFolder, views: Sequence[str], shape: tuple[int, int]) -> Features:
    values, skipped = np.empty((len(views), *shape), dtype=np.float32), {}
    for chunk in range(folder.num_chunks):
        arrays, found = folder.read(chunk)
        rows = folder.rows(chunk)
        for place, view in enumerate(views):
            values[place, rows.start : rows.stop] = arrays[view]
        skipped |= {rows[place]: why for place, why in found.items()}
    rows = np.setdiff1d(np.arange(shape[0]), list(skipped))
    return Features(values[:, rows] if skipped else values, rows, dict(sorted(skipped.items())))
