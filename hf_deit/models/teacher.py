"""Any image classifier of the Hub as a teacher: statistics, size and labels are read and checked, not guessed."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..errors import InputError, did_you_mean
from .answers import has_answer
from .class_names import in_order, match_labels, unique_names
from .extent import LARGEST_IMAGE, check_extent
from .pretrained import (
    LOADING_ERRORS,
    configured_size,
    load_classifier,
    load_config,
    load_image_processor,
    measure_processor,
    not_loadable,
    refuse_file,
    resolve_revision,
    stated_input_size,
    weights_digest,
    why_not_loaded,
)

logger = logging.get_logger(__name__)

Size = tuple[int, int]
InputSize = Literal["own", "student"] | int


class Teacher(nn.Module):
    """A frozen classifier that takes the student's pixels and gives logits in its label order. Made by `load_teacher`.

    It stays in evaluation mode even if `train()` is called, and has no trainable parameter.

    Attributes:
        description: what was known of it before its weights were loaded.
        name_or_path: a Hub id or a folder.
        revision: the commit it was resolved to, or None for a folder.
        input_size: (height, width) that its input is resized to, or None if it is shown the student's size as it is.
        id2label: its labels, in the student's order.
        dtype: that it computes in.
    """

    def __init__(self, model: PreTrainedModel, description: "TeacherDescription", input_size: Size | None) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.description = description
        self.name_or_path = description.name_or_path
        self.revision = description.revision
        self.id2label = dict(description.id2label)
        self.input_size = input_size
        self.dtype = model.dtype
        for name in ("label_order", "channel_order"):
            order = getattr(description, name)
            self.register_buffer(name, None if order == sorted(order) else torch.tensor(order))
        self.register_buffer("scale", torch.tensor(description.scale).view(-1, 1, 1))
        self.register_buffer("shift", torch.tensor(description.shift).view(-1, 1, 1))
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode: with BatchNorm or dropout in training mode it would teach noise."""
        return super().train(False)

    @property
    def shown_size(self) -> Size:
        """The (height, width) of the pixels that it sees."""
        return self.input_size or self.description.student_size

    @property
    def other_sizes(self) -> dict[str, Size]:
        """The sizes that it could as well be shown, and takes, of "own" and "student"."""
        sizes = {"own": self.description.own_size, "student": self.description.student_size}
        others = {name: size for name, size in sizes.items() if size not in (None, self.shown_size)}
        return {name: size for name, size in others.items() if _failure(self.model, size) is None}

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor, *, input_size: Size | None = None) -> torch.Tensor:
        """Teaches a batch.

        Args:
            pixel_values: (B, 3, H, W), normalised with the student's statistics: exactly what the student sees.
            input_size: (height, width) to resize it to, instead of its own attribute.

        Returns:
            (B, num_labels) float32 logits, in the student's label order.
        """
        pixel_values = pixel_values.float()
        if self.channel_order is not None:
            pixel_values = pixel_values[:, self.channel_order]
        pixel_values = pixel_values * self.scale + self.shift
        size = input_size or self.input_size
        if size is not None and tuple(pixel_values.shape[-2:]) != size:
            pixel_values = F.interpolate(pixel_values, size=size, mode="bicubic", antialias=True)
        logits = self.model(pixel_values=pixel_values.to(self.dtype)).logits.float()
        return logits if self.label_order is None else logits[:, self.label_order]


@dataclass(frozen=True)
class TeacherDescription:
    """What is known of a teacher from its small files, without its weights. Made by `describe_teacher`.

    Attributes:
        name_or_path: a Hub id or a folder.
        revision: the commit it was resolved to, or None for a folder.
        wanted_revision: that commit or, where it is not known, what was asked for.
        dtype: to compute in.
        id2label: its labels, in the student's order.
        label_order: its index of each of the student's labels.
        channel_order, scale, shift: to its pixels from the student's normalised x: scale · x[channel_order] + shift.
        processor_size: (height, width) that its image processor makes, perhaps by a default of the processor's class.
        own_size: (height, width) of the input that it was trained for, as far as its files state one, or None.
        student_size: (height, width) of the student's pixels.
        sizes: (height, width) to show it: the first one that its architecture takes.
    """

    name_or_path: str
    revision: str | None
    wanted_revision: str | None
    dtype: torch.dtype
    id2label: Mapping[int, str]
    label_order: list[int]
    channel_order: list[int]
    scale: list[float]
    shift: list[float]
    processor_size: Size
    own_size: Size | None
    student_size: Size
    sizes: tuple[Size, ...]

    def load(self, device: torch.device | str | None = None) -> Teacher:
        """Loads the weights.

        Args:
            device: to put them on; the CPU by default.

        Raises:
            InputError: see `load_teacher`.
        """
        model = load_classifier(self.name_or_path, self.wanted_revision, dtype=self.dtype, role="teacher")
        size = _accepted_size(model, self.name_or_path, self.sizes)
        if size != self.sizes[0] == self.student_size:
            logger.warning(
                "the teacher %s takes no images of the student's %s pixels: it is shown them at %s",
                self.name_or_path,
                *map(size_in_words, (self.student_size, size)),
            )
        return Teacher(model, self, None if size == self.student_size else size).to(device or "cpu")

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as an object of JSON. Of a folder's path it holds the last name alone.

        Raises:
            InputError: it is neither on the Hub nor a folder with weights.
        """
        return {
            "name": self.name_or_path if self.revision else os.path.basename(os.path.abspath(self.name_or_path)),
            "revision": self.revision or weights_digest(self.name_or_path),
            "labels": in_order(self.id2label),
            "dtype": str(self.dtype).removeprefix("torch."),
            "preprocessing": {
                "scale": self.scale,
                "shift": self.shift,
                "channel_order": self.channel_order,
                "label_order": None if self.label_order == sorted(self.label_order) else self.label_order,
                "own_size": self.processor_size,
                # Not named where it is the student's, as it was by default before there was a choice.
                **({} if self.sizes[0] == self.student_size else {"input_size": self.sizes[0]}),
            },
        }


def load_teacher(
    name_or_path: str | os.PathLike[str],
    *,
    student_processor: BaseImageProcessor,
    id2label: Mapping[int, str] | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    input_size: InputSize = "own",
    device: torch.device | str | None = None,
) -> Teacher:
    """Loads an image classifier, checks that it can teach, and adapts it to the student's pixels and labels.

    Args:
        name_or_path: a Hub id or a folder, of a transformers architecture or of a timm checkpoint (for example
            "timm/regnety_160.deit_in1k", the paper's teacher).
        student_processor: the student's image processor, with `image_mean`, `image_std` and `crop_size`.
        id2label: the student's labels by index. Without it the teacher's own labels and order are kept; those that
            share a name are told apart by `unique_names`.
        revision: branch, tag or commit; pin it for a run to be repeatable.
        dtype: to compute in; float32 by default.
        input_size: that the student's pixels are resized to (bicubic, antialiased) for it. "own" is the size that it
            was trained for, as its image processor states it, or else its configuration; one that states none gets
            the student's. "student" leaves them as they are, as far as its architecture takes them so. Or a number of
            pixels.
        device: to put it on; the CPU by default.

    Returns:
        A `Teacher`: a function of the student's normalised pixels giving logits in the student's label order.

    Raises:
        InputError: no such model; no image classifier; weights missing from the checkpoint (a head that would be
            random); no statistics; labels that are not the student's; an input size that it does not take.
    """
    description = describe_teacher(
        name_or_path,
        student_processor=student_processor,
        id2label=id2label,
        revision=revision,
        dtype=dtype,
        input_size=input_size,
    )
    return description.load(device)


def describe_teacher(
    name_or_path: str | os.PathLike[str],
    *,
    student_processor: BaseImageProcessor,
    id2label: Mapping[int, str] | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    input_size: InputSize = "own",
) -> TeacherDescription:
    """Reads and checks what is known of a teacher without its weights, which its `load` loads.

    Arguments and errors are those of `load_teacher`.
    """
    name_or_path, dtype, input_size = os.fspath(name_or_path), _as_dtype(dtype), parse_input_size(input_size)
    refuse_file(name_or_path, role="teacher")
    commit = resolve_revision(name_or_path, revision)
    try:
        config = load_config(name_or_path, commit or revision)
    except LOADING_ERRORS as error:
        raise not_loadable(name_or_path, commit or revision, error, role="teacher") from error
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise not_loadable(name_or_path, commit or revision, f"{config.model_type} is none", role="teacher")
    check_extent(name_or_path, config)
    processor = load_image_processor(name_or_path, commit or revision, config)
    teacher_labels = {int(index): label for index, label in config.id2label.items()}
    wanted_labels = unique_names(teacher_labels) if id2label is None else id2label
    id2label = {int(index): label for index, label in wanted_labels.items()}
    label_order = match_labels(teacher_labels, id2label, owner=f"the teacher {name_or_path!r}")
    channel_order, scale, shift, made_size = _relative_normalization(name_or_path, processor, student_processor)
    own_size = stated_input_size(name_or_path, commit or revision, config, processor)
    student_size = (student_processor.crop_size.height, student_processor.crop_size.width)
    return TeacherDescription(
        name_or_path=name_or_path,
        revision=commit,
        wanted_revision=commit or revision,
        dtype=dtype,
        id2label=id2label,
        label_order=label_order,
        channel_order=channel_order,
        scale=scale.tolist(),
        shift=shift.tolist(),
        processor_size=made_size,
        own_size=own_size,
        student_size=student_size,
        sizes=_sizes_to_show(input_size, own_size, student_size, (configured_size(config), made_size)),
    )


def remedy_for(dtype: torch.dtype) -> str:
    """What to give for a teacher whose answers in a dtype are not finite, to follow "give"."""
    if dtype == torch.float16:
        return "--teacher_dtype float32 or bfloat16 (dtype of load_teacher), as float16 overflows beyond 65,504"
    if dtype == torch.bfloat16:
        return "--teacher_dtype float32 (dtype of load_teacher)"
    return "another teacher, whose weights and image processor are sound"


def parse_input_size(value: str | int) -> InputSize:
    """Reads what a teacher shall be shown: "own", "student" or a number of pixels.

    Raises:
        InputError: it is something else.
    """
    text = str(value).strip()
    if text in ("own", "student"):
        return text
    if text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= LARGEST_IMAGE:
        return int(text)
    raise InputError(
        f'the teacher\'s input size must be "own", "student" or a number of pixels up to {LARGEST_IMAGE}, got '
        f"{value!r}"
    )


def size_in_words(size: Size) -> str:
    """A (height, width) as people say it: "224", or "224 x 160" if it is no square."""
    height, width = size
    return str(height) if height == width else f"{height} x {width}"


def _sizes_to_show(
    wanted: InputSize, own: Size | None, student: Size, defaults: tuple[Size | None, Size]
) -> tuple[Size, ...]:
    """The sizes to show a teacher, best first; the later ones are for architectures that refuse the first."""
    if isinstance(wanted, int):
        return ((wanted, wanted),)
    order = (own, *defaults, student) if wanted == "own" and own is not None else (student, own, *defaults)
    return tuple(dict.fromkeys(size for size in order if size is not None))


def load_labels(name_or_path: str | os.PathLike[str], revision: str | None = None) -> list[str]:
    """The labels of a classifier, by index, from its configuration alone. Names may repeat.

    Raises:
        InputError: no such model.
    """
    name_or_path = os.fspath(name_or_path)
    refuse_file(name_or_path, role="teacher")
    try:
        id2label = load_config(name_or_path, revision).id2label
    except LOADING_ERRORS as error:
        raise InputError(f"cannot load the teacher {name_or_path!r}: {why_not_loaded(error)}") from error
    return in_order(id2label)


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in dtypes:
        raise InputError(f"the teacher's dtype must be {', '.join(dtypes)}, got {dtype!r}{did_you_mean(name, dtypes)}")
    return dtypes[name]


def _relative_normalization(
    name_or_path: str, teacher_processor: BaseImageProcessor, student_processor: BaseImageProcessor
) -> tuple[list[int], torch.Tensor, torch.Tensor, tuple[int, int]]:
    """From the student's normalised pixels x to the teacher's: scale · x[channel_order] + shift, per channel.

    Both processors are measured on images of one colour, as processors differ in more than mean and std: some rescale
    to [-1, 1], some not at all, some swap the channels.

    Returns:
        channel_order, scale (3,), shift (3,) and the (height, width) of what the teacher's processor makes.
    """
    teacher_gain, teacher_black, size = measure_processor(name_or_path, teacher_processor)
    student_gain, student_black, _ = measure_processor("the student", student_processor)
    channel_order = teacher_gain.abs().argmax(dim=1).tolist()
    gains = teacher_gain.gather(1, torch.tensor(channel_order).unsqueeze(1)).squeeze(1)
    if sorted(channel_order) != [0, 1, 2] or not torch.allclose(teacher_gain.sum(dim=1), gains, atol=1e-4):
        raise InputError(
            f"the image processor of the teacher {name_or_path!r} mixes the colour channels: take a teacher whose "
            "pixels are only rescaled and normalised"
        )
    scale = gains / student_gain.diagonal()[channel_order]
    shift = teacher_black - scale * student_black[channel_order]
    # An exact identity, so that a teacher with the student's statistics sees the very same pixels.
    if torch.allclose(scale, torch.ones_like(scale), atol=1e-6) and torch.allclose(
        shift, torch.zeros_like(shift), atol=1e-6
    ):
        scale, shift = torch.ones_like(scale), torch.zeros_like(shift)
    return channel_order, scale.float(), shift.float(), size


def _accepted_size(model: PreTrainedModel, name_or_path: str, sizes: tuple[Size, ...]) -> Size:
    """The first of some sizes that a model takes."""
    errors = {}
    for size in sizes:
        errors[size] = _failure(model, size)
        # Where it has only overflowed, its size is none of the reasons: the views will show on which it does.
        overflows = isinstance(errors[size], _NotFiniteError) and model.dtype != torch.float32
        if errors[size] is None or (overflows and _failure(copy.deepcopy(model).float(), size) is None):
            return size
    tried, error = " nor ".join(map(size_in_words, errors)), list(errors.values())[-1]
    if not all(weight.isfinite().all() for weight in model.parameters()):
        name = str(model.dtype).removeprefix("torch.")
        raise InputError(
            f"the teacher {name_or_path!r} has weights that are not finite in {name}: give {remedy_for(model.dtype)}"
        )
    raise InputError(
        f"the teacher {name_or_path!r} takes no images of {tried} pixels ({error}): name a size that it takes with "
        "--teacher_input_size, or leave that out for its own"
    ) from error


@torch.no_grad()
def _failure(model: PreTrainedModel, size: Size) -> Exception | None:
    """What a model says to images of a size that it does not take; None if it takes them."""
    try:
        pixel_values = torch.zeros(1, 3, *size, dtype=model.dtype, device=model.device)
        logits = model.eval()(pixel_values=pixel_values).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind: architectures refuse sizes as they come to it
        return error
    return None if has_answer(logits).all() else _NotFiniteError("logits that are not finite")


class _NotFiniteError(ValueError):
    """A model takes images of a size, or seems to, and makes nothing of them."""
