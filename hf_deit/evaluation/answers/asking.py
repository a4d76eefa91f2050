"""Asking models about images: chunk by chunk, over all processes, going on where an evaluation was stopped."""

import itertools
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.image_processing_utils import BaseImageProcessor

from ...errors import BadImageError, InputError, first_line, shortlist
from ...hub.environment import describe_environment
from ...models.answers import has_answer
from ...training.hardware import free_cores
from ...training.processes import on_main_process
from ..classifiers.classifiers import Classifier, ClassifierDescription, pixels_of
from ..images.images import EvaluationImages
from .stored_answers import AnswerFolder, Chunk, StoredAnswers

_MOST_WORKERS = 8
_SECONDS_IN_A_LOG = 30.0  # between two signs of life, where each is a line
_SPARE = 1 << 26  # bytes of a disk that are left for the report


@dataclass(frozen=True)
class Asking:
    """How models are asked.

    Attributes:
        output_dir: of the evaluation, where answers are kept.
        device: to compute on.
        batch_size: images that a model is given at once; part of what answers depend on, by the last bits.
        num_workers: processes that decode and prepare images for each one that computes; None for as many as help.
        on_bad_image: "stop", or "skip" an image that cannot be decoded.
        skips_unprepared: whether to skip an image on which the image processor fails, too.
    """

    output_dir: str
    device: torch.device
    batch_size: int = 64
    num_workers: int | None = None
    on_bad_image: str = "stop"
    skips_unprepared: bool = False


class ImagesToShow(Protocol):
    """Images by their rows; see `EvaluationImages`."""

    def image(self, index: int) -> Image.Image: ...

    def name(self, index: int) -> str: ...


class Answered(NamedTuple):
    """What a model says of a batch.

    Attributes:
        rows: of the images that could be decoded, B.
        skipped: why the others could not, by their rows.
        logits: (B, K) float32 of each head, by name; none at all where B is 0.
        features: (B, D) float16, or None.
    """

    rows: list[int]
    skipped: dict[int, str]
    logits: dict[str, np.ndarray]
    features: np.ndarray | None


def ask_all(
    descriptions: Sequence[ClassifierDescription], images: EvaluationImages, asking: Asking
) -> list[StoredAnswers]:
    """Asks models about images, one model after the other; what is kept of their answers is not asked again.

    All processes must call it. Each computes some of the chunks; the answers are the same for any number of them.

    Args:
        descriptions: of the models; the features of the first are kept, too.
        images: the same in all processes.
        asking: how.

    Returns:
        The answers of each model, in which images that were skipped have NaN.

    Raises:
        InputError: a model cannot be loaded, or gives answers that are not finite; an image that cannot be decoded;
            the disk has not the room.
        CheckpointError: answers cannot be written.
    """
    digest = on_main_process(lambda: images.digest_with_times)
    return [
        _ask(description, images, asking, digest, with_features=position == 0)
        for position, description in enumerate(descriptions)
    ]


def _ask(
    description: ClassifierDescription, images: EvaluationImages, asking: Asking, digest: str, *, with_features: bool
) -> StoredAnswers:
    def begin() -> tuple[dict[str, Any], list[int]]:
        identity = {
            **description.identity(),
            "images": digest,
            "num_images": len(images),
            "batch_size": asking.batch_size,
            "device": asking.device.type,
            "libraries": describe_environment()["libraries"],
        }
        folder = folder_of(identity)
        try:
            folder.begin()
        except OSError as error:
            raise InputError(
                f"cannot write to {asking.output_dir!r} ({error.strerror}): give another --output_dir"
            ) from error
        return identity, folder.absent()

    def folder_of(identity: dict[str, Any]) -> AnswerFolder:
        return AnswerFolder(
            asking.output_dir,
            identity,
            num_images=len(images),
            num_labels=len(images.labels.names),
            rules=description.rules,
            with_features=with_features,
            takes_skipped=asking.on_bad_image == "skip",
        )

    identity, absent = on_main_process(begin)
    folder, state = folder_of(identity), PartialState()
    mine = absent[state.process_index :: state.num_processes]
    if absent:
        classifier = description.load(asking.device) if mine else None
        on_main_process(lambda: _check_room(classifier, folder, absent, asking))
        if mine:
            compute(
                classifier,
                images,
                [(chunk, folder.rows(chunk)) for chunk in mine],
                _num_rows(folder, absent),
                asking,
                keep=lambda chunk, answered: folder.write(chunk, _joined(folder, chunk, answered)),
                with_features=folder.with_features,
            )
            del classifier
        state.wait_for_everyone()
    return StoredAnswers(description.name, description.rule, folder)


def _check_room(classifier: Classifier, folder: AnswerFolder, absent: Sequence[int], asking: Asking) -> None:
    """Refuses to begin what would fill the disk."""
    pixels = torch.zeros(1, 3, *classifier.input_size)
    _, features = classifier.logits_and_features(pixels, with_features=folder.with_features)
    row = 4 * folder.num_labels * len(folder.heads) + (0 if features is None else 2 * features.shape[1])
    wanted = row * _num_rows(folder, absent)
    free = shutil.disk_usage(asking.output_dir).free
    if wanted + _SPARE > free:
        raise InputError(
            f"the answers of {classifier.name!r} take {_megabytes(wanted)}, and the disk of {asking.output_dir!r} has "
            f"{_megabytes(free)} left: free some space, or give another --output_dir"
        )


def _num_rows(folder: AnswerFolder, chunks: Sequence[int]) -> int:
    return sum(len(folder.rows(chunk)) for chunk in chunks)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def compute(
    classifier: Classifier,
    images: ImagesToShow,
    chunks: Sequence[tuple[int, range]],
    total: int,
    asking: Asking,
    *,
    keep: Callable[[int, Sequence[Answered]], None],
    with_features: bool = False,
) -> None:
    """Lets a model answer to some chunks of images, one after the other; all processes make `total` images together.

    Args:
        chunks: the number of each, and its images.
        keep: is given the number of a chunk, and the answers to its batches.
        with_features: see `Classifier.logits_and_features`.

    Raises:
        InputError: an image that cannot be decoded, if none may be; answers that are not finite; too large a batch.
    """
    state = PartialState()
    batches = [_batches(rows, asking.batch_size) for _, rows in chunks]
    loader = iter(_loader(_Pixels(images, classifier, asking), batches, asking))
    pace = 0.1 if sys.stderr.isatty() else _SECONDS_IN_A_LOG
    is_off = not state.is_main_process
    bar = tqdm(
        total=total, desc=classifier.name, unit=" images", mininterval=pace, maxinterval=2 * pace, disable=is_off
    )
    with bar, _whole_float32():
        for (chunk, _), parts in zip(chunks, batches, strict=True):
            answered = []
            for batch in itertools.islice(loader, len(parts)):
                answered.append(_answer(classifier, batch, images, with_features=with_features))
                bar.update(min((len(batch["rows"]) + len(batch["skipped"])) * state.num_processes, bar.total - bar.n))
            keep(chunk, answered)


def _batches(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _answer(classifier: Classifier, batch: dict[str, Any], images: ImagesToShow, *, with_features: bool) -> Answered:
    rows, skipped = batch["rows"], batch["skipped"]
    if not rows:
        return Answered(rows, skipped, {}, None)
    try:
        logits, features = classifier.logits_and_features(batch["pixel_values"], with_features=with_features)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the model {classifier.name!r} needs more memory than there is for {len(rows)} images at once: "
            "give a smaller --batch_size"
        ) from error
    answered = torch.stack([has_answer(head) for head in logits.values()]).all(dim=0)
    if not answered.all():
        bad = [images.name(rows[place]) for place in (~answered).nonzero().flatten().tolist()]
        dtype = str(classifier.model.dtype).removeprefix("torch.")
        remedy = "give --dtype float32" if dtype != "float32" else "its weights or its image processor are not sound"
        raise InputError(
            f"the model {classifier.name!r} gives answers that are not finite in {dtype} to {shortlist(bad)}: {remedy}"
        )
    arrays = {name: head.numpy() for name, head in logits.items()}
    return Answered(rows, skipped, arrays, None if features is None else features.half().numpy())


def _joined(folder: AnswerFolder, chunk: int, answered: Sequence[Answered]) -> Chunk:
    """The chunk of its batches' answers, with NaN where an image was skipped."""
    rows = folder.rows(chunk)
    logits = {head: np.full((len(rows), folder.num_labels), np.nan, dtype=np.float32) for head in folder.heads}
    width = next((batch.features.shape[1] for batch in answered if batch.features is not None), 0)
    features = np.zeros((len(rows), width), dtype=np.float16)
    skipped = {}
    for batch in answered:
        places = [row - rows.start for row in batch.rows]
        for head, values in batch.logits.items():
            logits[head][places] = values
        if batch.features is not None:
            features[places] = batch.features
        skipped |= {row - rows.start: why for row, why in batch.skipped.items()}
    return Chunk(logits, features if folder.with_features else None, skipped)


class _Pixels(Dataset):
    """The pixels of batches of images, without the model, which workers need not have."""

    def __init__(self, images: ImagesToShow, classifier: Classifier, asking: Asking) -> None:
        self._images, self._on_bad_image = images, asking.on_bad_image
        self._skips_unprepared = asking.skips_unprepared
        self._processor: BaseImageProcessor = classifier.processor
        self._name = classifier.name

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Those that can be decoded of some rows: "rows", "pixel_values" (B, 3, H, W), and why others are skipped."""
        pixels, skipped = {}, {}
        for row in rows:
            try:
                image = self._images.image(row)
            except BadImageError as error:
                if self._on_bad_image != "skip":
                    raise
                skipped[row] = error.reason
                continue
            try:
                pixels[row] = pixels_of(self._processor, image)
            except Exception as error:  # of any kind: processors meet odd shapes as they come to them
                size = f"({image.width} x {image.height} pixels): {first_line(error)}"
                if self._skips_unprepared:
                    skipped[row] = f"the model's image processor fails on it {size}"
                    continue
                raise InputError(
                    f"the image processor of {self._name!r} fails on {self._images.name(row)} {size}"
                ) from error
        stacked = torch.stack(list(pixels.values())) if pixels else None
        return {"rows": list(pixels), "pixel_values": stacked, "skipped": skipped}


def _loader(pixels: _Pixels, batches: Sequence[Sequence[range]], asking: Asking) -> DataLoader:
    num_workers = asking.num_workers
    if num_workers is None:
        num_workers = 0 if len(batches) < 2 else min(free_cores(), _MOST_WORKERS)
    return DataLoader(
        pixels,
        batch_sampler=list(itertools.chain.from_iterable(batches)),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=asking.device.type == "cuda",
        generator=torch.Generator(),  # whose numbers nobody needs, rather than the global one's
    )


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Lets float32 be computed as such: on some devices convolutions are rounded to TF32 where nobody asks."""
    kinds = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision
