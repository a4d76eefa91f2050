"""Any image classifier of the Hub as a teacher: statistics, size and labels are read and checked, not guessed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor

from ..errors import InputError, shortlist
from .class_names import match_labels
from .pretrained import (
    LOADING_ERRORS,
    absent_weights,
    load_image_processor,
    measure_processor,
    refuse_file,
    resolve_revision,
    weights_digest,
)


class Teacher(nn.Module):
    """A frozen classifier that takes the student's pixels and gives logits in its label order. Made by `load_teacher`.

    It stays in evaluation mode even if `train()` is called, and has no trainable parameter.

    Attributes:
        description: what was known of it before its weights were loaded.
        name_or_path: a Hub id or a folder.
        revision: the commit it was resolved to, or None for a folder.
        input_size: (height, width) that its input is resized to, or None if it takes the student's size as it is.
        id2label: its labels, in the student's order.
        dtype: that it computes in.
    """

    def __init__(
        self, model: PreTrainedModel, description: "TeacherDescription", input_size: tuple[int, int] | None
    ) -> None:
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

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Teaches a batch.

        Args:
            pixel_values: (B, 3, H, W), normalised with the student's statistics: exactly what the student sees.

        Returns:
            (B, num_labels) float32 logits, in the student's label order.
        """
        pixel_values = pixel_values.float()
        if self.channel_order is not None:
            pixel_values = pixel_values[:, self.channel_order]
        pixel_values = pixel_values * self.scale + self.shift
        if self.input_size is not None and tuple(pixel_values.shape[-2:]) != self.input_size:
            pixel_values = F.interpolate(pixel_values, size=self.input_size, mode="bicubic", antialias=True)
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
        own_size: (height, width) that its image processor makes.
        student_size: (height, width) of the student's pixels.
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
    own_size: tuple[int, int]
    student_size: tuple[int, int]

    def load(self, device: torch.device | str | None = None) -> Teacher:
        """Loads the weights.

        Args:
            device: to put them on; the CPU by default.

        Raises:
            InputError: see `load_teacher`.
        """
        model = _load_model(self.name_or_path, self.wanted_revision, self.dtype)
        input_size = _accepted_size(model, self.name_or_path, self.student_size, self.own_size)
        return Teacher(model, self, input_size).to(device or "cpu")

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as an object of JSON. Of a folder's path it holds the last name alone.

        Raises:
            InputError: it is neither on the Hub nor a folder with weights.
        """
        return {
            "name": self.name_or_path if self.revision else os.path.basename(os.path.abspath(self.name_or_path)),
            "revision": self.revision or weights_digest(self.name_or_path),
            "labels": [self.id2label[index] for index in sorted(self.id2label)],
            "dtype": str(self.dtype).removeprefix("torch."),
            "preprocessing": {
                "scale": self.scale,
                "shift": self.shift,
                "channel_order": self.channel_order,
                "label_order": None if self.label_order == sorted(self.label_order) else self.label_order,
                "own_size": self.own_size,
            },
        }


def load_teacher(
    name_or_path: str | os.PathLike[str],
    *,
    student_processor: BaseImageProcessor,
    id2label: Mapping[int, str] | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> Teacher:
    """Loads an image classifier, checks that it can teach, and adapts it to the student's pixels and labels.

    Args:
        name_or_path: a Hub id or a folder, of a transformers architecture or of a timm checkpoint (for example
            "timm/regnety_160.deit_in1k", the paper's teacher).
        student_processor: the student's image processor, with `image_mean`, `image_std` and `crop_size`.
        id2label: the student's labels by index. Without it the teacher's own labels and order are kept.
        revision: branch, tag or commit; pin it for a run to be repeatable.
        dtype: to compute in; float32 by default.
        device: to put it on; the CPU by default.

    Returns:
        A `Teacher`: a function of the student's normalised pixels giving logits in the student's label order.

    Raises:
        InputError: no such model; no image classifier; weights missing from the checkpoint (a head that would be
            random); no statistics; labels that are not the student's.
    """
    description = describe_teacher(
        name_or_path, student_processor=student_processor, id2label=id2label, revision=revision, dtype=dtype
    )
    return description.load(device)


def describe_teacher(
    name_or_path: str | os.PathLike[str],
    *,
    student_processor: BaseImageProcessor,
    id2label: Mapping[int, str] | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
) -> TeacherDescription:
    """Reads and checks what is known of a teacher without its weights, which its `load` loads.

    Arguments and errors are those of `load_teacher`.
    """
    name_or_path, dtype = os.fspath(name_or_path), _as_dtype(dtype)
    refuse_file(name_or_path, role="teacher")
    if not os.path.exists(name_or_path) and (name_or_path[:1] in ("/", ".", "~") or name_or_path.count("/") > 1):
        raise InputError(f"there is no folder {name_or_path!r} to load the teacher from, and it is no name on the Hub")
    commit = resolve_revision(name_or_path, revision)
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=commit or revision)
    except LOADING_ERRORS as error:
        raise _not_loadable(name_or_path, commit or revision, error) from error
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise _not_loadable(name_or_path, commit or revision, f"{config.model_type} is none")
    processor = load_image_processor(name_or_path, commit or revision, config)
    teacher_labels = {int(index): label for index, label in config.id2label.items()}
    id2label = teacher_labels if id2label is None else {int(index): label for index, label in id2label.items()}
    label_order = match_labels(teacher_labels, id2label, owner=f"the teacher {name_or_path!r}")
    channel_order, scale, shift, own_size = _relative_normalization(name_or_path, processor, student_processor)
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
        own_size=own_size,
        student_size=(student_processor.crop_size.height, student_processor.crop_size.width),
    )


def load_labels(name_or_path: str | os.PathLike[str], revision: str | None = None) -> list[str]:
    """The labels of a classifier, by index, from its configuration alone.

    Raises:
        InputError: no such model.
    """
    name_or_path = os.fspath(name_or_path)
    refuse_file(name_or_path, role="teacher")
    try:
        id2label = AutoConfig.from_pretrained(name_or_path, revision=revision).id2label
    except LOADING_ERRORS as error:
        raise InputError(f"cannot load the teacher {name_or_path!r}: {str(error).strip()}") from error
    return [id2label[index] for index in sorted(id2label)]


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in dtypes:
        raise InputError(f"the teacher's dtype must be {', '.join(dtypes)}, got {dtype!r}")
    return dtypes[name]


def _not_loadable(name_or_path: str, revision: str | None, error: Exception | str) -> InputError:
    at = f" at revision {revision!r}" if revision else ""
    return InputError(f"cannot load the teacher {name_or_path!r}{at} as an image classifier: {str(error).strip()}")


def _load_model(name_or_path: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            name_or_path, revision=revision, dtype=dtype, output_loading_info=True
        )
    except LOADING_ERRORS as error:
        raise _not_loadable(name_or_path, revision, error) from error
    random_weights = absent_weights(info)
    if random_weights:
        raise InputError(
            f"the teacher {name_or_path!r} has no weights for {shortlist(random_weights, 4)}, which would be random: "
            "take a checkpoint that was trained to classify, or fine-tune this one first (--distillation_type none "
            "--student …)"
        )
    return model


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


@torch.no_grad()
def _accepted_size(
    model: PreTrainedModel, name_or_path: str, student_size: tuple[int, int], own_size: tuple[int, int]
) -> tuple[int, int] | None:
    """None if the model takes images of the student's size, else the size that it takes."""

    def failure(size: tuple[int, int]) -> Exception | None:
        try:
            logits = model.eval()(pixel_values=torch.zeros(1, 3, *size, dtype=model.dtype)).logits
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError, AssertionError) as error:  # what architectures say to a size they refuse
            return error
        return None if logits.isfinite().all() else ValueError("logits that are not finite")

    if failure(student_size) is None:
        return None
    error = failure(own_size)
    if error is not None:
        raise InputError(
            f"the teacher {name_or_path!r} accepts neither the student's {student_size} nor its own processor's "
            f"{own_size} pixels: {error}"
        ) from error
    return own_size
