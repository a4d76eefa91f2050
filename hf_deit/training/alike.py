"""What all processes of a run must have alike is compared before its first step: machines may have other files."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.decoding import ImageDecoder
from ..data.streams import StreamViewDataset
from ..data.view_dataset import EvaluationDataset, ViewDataset
from ..errors import InputError, brief, shortlist
from ..labels.identity import row_marks
from ..models.class_names import in_order
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from .origin import differences, images_of, settings_of
from .processes import on_every_process

logger = logging.get_logger(__name__)

# How a message names what differs.
_WORDS = {
    "train": "the images to train on, or their labels or order",
    "validation": "the images to validate with, or their labels or order",
    "test": "the images to test with, or their labels or order",
    "teacher": "the teacher",
    "student": "the student, its classes or its starting weights",
    "views_per_step": "the views of a step, over all devices and accumulation steps",
}
# They make the pixels, and the numbers.
_LIBRARIES = ("hf_deit", "torch", "torchvision", "timm", "pillow", "transformers", "accelerate", "datasets", "numpy")


class Stated(NamedTuple):
    """What a process says of itself.

    Attributes:
        rank: of the process.
        host: name of its machine.
        value: what it has been asked for.
    """

    rank: int
    host: str
    value: Any

    @property
    def place(self) -> str:
        """The process, in words."""
        return f"process {self.rank} on {self.host}"


def stated_by_all(value: Any) -> list[Stated]:
    """What every process states, in the order of their ranks; all must call it."""
    return gather_object([Stated(PartialState().process_index, socket.gethostname(), value)])


def _is_on_several_machines() -> bool:
    """Whether the processes may be; where nobody says, they may."""
    return os.environ.get("LOCAL_WORLD_SIZE") != str(PartialState().num_processes)


def check_alike(
    *,
    views: Any,
    validation: Any,
    test: Any = None,
    student: PreTrainedModel,
    processor: DistilledDeiTImageProcessor,
    teacher: Callable[[], dict[str, Any] | None],
    views_per_step: int,
) -> None:
    """Refuses a run whose processes have other images, another student or another teacher; all must call it.

    Fingerprints and weights are of one process of each machine; how many images there are, of all. Other versions of
    libraries are warned of.

    Args:
        views, validation, test: what the student is trained on and evaluated on, or None.
        student, processor: as the run starts with them.
        teacher: says what it is known by, see `hf_deit.training.origin.teacher_of`; reads its weights.
        views_per_step: over all devices and accumulation steps.

    Raises:
        InputError: names what differs, who has what, and the first row.
    """
    if PartialState().num_processes == 1:
        return
    images = {"train": views, "validation": validation, "test": test}
    is_whole = _is_on_several_machines() and PartialState().is_local_main_process

    def state() -> dict[str, Any]:
        mine: dict[str, Any] = {name: images_in_brief(part, is_whole=is_whole) for name, part in images.items()}
        if is_whole:
            mine |= {"teacher": teacher(), "student": _student_in_brief(student, processor)}
        versions = {name: version(name) for name in _LIBRARIES}
        return {**mine, "views_per_step": views_per_step, "versions": versions}

    stated = stated_by_all(on_every_process(state))
    check_parts(stated, images)
    if PartialState().is_main_process and (doubt := versions_doubt(stated)):
        logger.warning("%s", doubt)


def versions_doubt(stated: Sequence[Stated]) -> str | None:
    """What to warn of where processes have stated other versions of libraries than the first one; else None."""
    first = stated[0]
    for one in stated:
        apart = [name for name, number in first.value["versions"].items() if one.value["versions"][name] != number]
        if apart:
            each = (shortlist(f"{name} {stater.value['versions'][name]}" for name in apart) for stater in (first, one))
            here, there = each
            return f"pixels may differ between machines: {first.place} has {here}, {one.place} has {there}"
    return None


def check_parts(stated: Sequence[Stated], views: Mapping[str, Any]) -> None:
    """Compares what processes have stated of the parts of a run; all must call it.

    Args:
        stated: by all; a mapping of each, of the parts in `_WORDS`. Of a part that not all state, those that do are
            compared.
        views: of this process, by the name of the part, to look for the first row that differs in.

    Raises:
        InputError: see `check_alike`.
    """
    for name, words in _WORDS.items():
        first, *others = [one for one in stated if name in one.value] or [None]
        for one in others:
            found = {field: values for field, *values in differences(first.value[name], one.value[name])}
            if not found:
                continue
            field = "rows" if "rows" in found else next(iter(found))
            here, there = (brief(value, str, most=12 if field == "fingerprint" else 60) for value in found[field])
            where = first_difference(views[name], first, one) if field in ("rows", "fingerprint") else ""
            raise InputError(
                f"the processes of this run differ in {words}: {field or name} is {here} in {first.place}, "
                f"{there} in {one.place}{where}. Give all machines the same"
            )


def images_in_brief(views: Any, *, is_whole: bool = True) -> dict[str, Any] | None:
    """What tells the images of views, or of an evaluation, from others; None where there are none.

    Args:
        is_whole: whether with the fingerprint, for which bytes of files are read.
    """
    if isinstance(views, StreamViewDataset):
        features = views.stream.features
        columns = {name: type(feature).__name__ for name, feature in features.items()}
        return {"columns": columns, "classes": list(features[views.stream.label_column].names), "rows": len(views)}
    if not isinstance(views, ViewDataset | EvaluationDataset):
        return None if views is None else {}
    return images_of(views) if is_whole else {"rows": len(views.dataset)}


def first_difference(views: Any, one: Stated, other: Stated) -> str:
    """Names the first row that differs between two processes, as the end of a message; all processes must call it."""
    rank, marks = PartialState().process_index, [None]
    has_rows = isinstance(views, ViewDataset | EvaluationDataset)
    columns = {"image_column": views.image_column, "label_column": views.label_column} if has_rows else {}
    mine = row_marks(views.dataset, **columns) if has_rows and rank in (one.rank, other.rank) else None
    if rank == one.rank:
        marks = [mine]
    broadcast_object_list(marks, from_process=one.rank)
    index = [None]
    if rank == other.rank and mine is not None and marks[0] is not None:
        common = min(len(mine), len(marks[0]))
        apart = np.flatnonzero(mine[:common] != marks[0][:common])
        if len(apart) or len(mine) != len(marks[0]):
            index = [int(apart[0]) if len(apart) else common]
    broadcast_object_list(index, from_process=other.rank)
    if index[0] is None:
        return ""
    names = gather_object(["" if mine is None else _name_of_row(views.dataset, index[0], **columns)])
    each = " and ".join(f"{names[who]} in process {who}" for who in (one.rank, other.rank))
    if names[one.rank] == names[other.rank]:
        each = f"the bytes of {names[one.rank]}"
    return f"; the first row that differs is row {index[0]}: {each}"


def _name_of_row(dataset: datasets.Dataset, index: int, *, image_column: str, label_column: str) -> str:
    if index >= len(dataset):
        return "none"
    label, feature = dataset.select_columns(label_column)[index][label_column], dataset.features[label_column]
    of_class = "" if label is None else f" ({feature.int2str(label) if hasattr(feature, 'int2str') else label})"
    return f"{ImageDecoder(dataset, image_column).name(index, 'an image without a file')}{of_class}"


def _student_in_brief(student: PreTrainedModel, processor: DistilledDeiTImageProcessor) -> dict[str, Any]:
    return {
        "classes": in_order(student.config.id2label),
        "configuration": settings_of(student.config),
        "image_processor": settings_of(processor),
        "weights": dict(weights_in_brief(student)),
    }


@torch.no_grad()
def weights_in_brief(model: nn.Module) -> Iterator[tuple[str, list[float]]]:
    """Two means of the absolute values of each parameter and buffer, of which one knows their order.

    Numbers that are compared up to rounding: a student that is made anew may differ in the last bit on another CPU,
    where the first process gives its own to all.
    """
    for name, tensor in model.state_dict().items():
        if tensor.numel() and not (tensor.is_meta or hasattr(tensor, "to_local")):  # of a shard nobody knows the rest
            flat = tensor.detach().flatten().double().abs()
            rising = torch.linspace(0, 1, len(flat), dtype=torch.float64, device=flat.device)
            yield name, [float(flat.mean()), float((flat * rising).mean())]
