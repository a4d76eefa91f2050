"""A frozen classifier that teaches: what is known of it before its weights are loaded, and the loaded one."""

import copy
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    PreTrainedModel,
)
from transformers.utils import logging

from ..errors import InputError, first_line
from .answers import has_answer
from .class_names import in_order
from .execution import PLAIN, Execution
from .folding import fold_batch_norm
from .pretrained import (
    load_classifier,
    weights_digest,
)
from .zero_shot.classifier import ZeroShotClassifier, load_zero_shot
from .zero_shot.prompts import Prompts

logger = logging.get_logger(__name__)

Size = tuple[int, int]


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
        prior: (K,) float32, what is taken off its logits, or None; see `correct_prior`.
    """

    prior: torch.Tensor | None

    def __init__(
        self,
        model: PreTrainedModel | ZeroShotClassifier,
        description: "TeacherDescription",
        input_size: Size | None,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.description = description
        self.name_or_path = description.name_or_path
        self.revision = description.revision
        self.id2label = dict(description.id2label)
        self.input_size = input_size
        self.dtype = model.dtype
        label_order, channel_order = description.chosen_labels, description.channel_order
        self.register_buffer("label_order", None if label_order is None else torch.tensor(label_order))
        in_its_order = channel_order == sorted(channel_order)
        self.register_buffer("channel_order", None if in_its_order else torch.tensor(channel_order))
        self.register_buffer("prior", None)
        self.register_buffer("scale", torch.tensor(description.scale).view(-1, 1, 1))
        self.register_buffer("shift", torch.tensor(description.shift).view(-1, 1, 1))
        self._compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
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

    def correct_prior(self, prior: torch.Tensor | Sequence[float]) -> None:
        """Takes off its logits, from now on, what it favours whatever it is shown.

        A run does it before its first step, if `describe_teacher` was told to correct the prior. Other numbers, as of
        other images, become part of the teacher's identity.

        Args:
            prior: (K,), in the order of its labels; see `log_prior`.

        Raises:
            InputError: they are not finite, or not as many as its labels.
        """
        prior = torch.as_tensor(prior, dtype=torch.float32).detach().to(self.scale.device)
        if prior.shape != (len(self.id2label),) or not prior.isfinite().all():
            raise InputError(
                f"the prior of a teacher of {len(self.id2label)} labels is as many finite numbers, got "
                f"{tuple(prior.shape)}: take log_prior of its logits"
            )
        self.prior = prior
        if not self.description.corrects_prior:
            digest = hashlib.sha256(prior.cpu().numpy().tobytes()).hexdigest()
            self.description = replace(self.description, prior_correction={"digest": digest})

    def fold(self) -> int:
        """Lets its weights take up BatchNorm where that changes its answers by rounding alone; how many layers did."""
        pixels = self._noise(2)
        return fold_batch_norm(self.model, lambda: self._logits_of(pixels))

    @torch.no_grad()
    def flops(self) -> int:
        """Floating-point operations of an answer to one image, two of each multiplication with addition."""
        with FlopCounterMode(display=False) as counter:
            self._logits_of(self._noise(1))
        return counter.get_total_flops()

    def _noise(self, images: int) -> torch.Tensor:
        """Always the same, as the model takes it."""
        noise = torch.randn(images, 3, *self.shown_size, generator=torch.Generator().manual_seed(0))
        return noise.to(self.scale.device, self.dtype)

    def run_as(self, execution: Execution) -> None:
        """Runs from now on as `execution` says, if it has run as it was loaded until now.

        Raises:
            InputError: as many BatchNorm layers cannot be folded here.
        """
        if execution == self.description.execution:
            return
        if execution.folded and (folded := self.fold()) != execution.folded:
            raise InputError(
                f"of the teacher {self.name_or_path!r}, {execution.folded} BatchNorm layers were folded before, but "
                f"{folded} can be here: begin anew, with other --teacher_labels if there are any, or take the "
                "versions of torch and transformers that it ran with"
            )
        if execution.dtype is not None:
            self.dtype = getattr(torch, execution.dtype)
            self.model.to(self.dtype)
        if execution.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.description = replace(self.description, execution=execution)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is compiled anew: the program of this one has these weights."""
        return {**self.__dict__, "_compiled": None}

    def _compiled_logits_of(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._compiled is None:
            self._compiled = torch.compile(self._logits_of, dynamic=False)
        try:
            return self._compiled(pixels)
        except Exception as error:
            if not isinstance(error, torch._dynamo.exc.TorchDynamoException):  # imported by now, and slow to import
                raise
            raise InputError(
                f"torch cannot compile the teacher {self.name_or_path!r} here, which is to run compiled "
                f"({first_line(error)}): mend that, as by a C++ compiler, or begin anew with --teacher_speed off and, "
                "if there are any, other --teacher_labels"
            ) from error

    def _logits_of(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).logits

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor, *, input_size: Size | None = None) -> torch.Tensor:
        """Teaches a batch.

        Args:
            pixel_values: (B, 3, H, W), normalised with the student's statistics: exactly what the student sees.
            input_size: (height, width) to resize it to, instead of its own attribute.

        Returns:
            (B, num_labels) float32 logits, in the student's label order.

        Raises:
            InputError: it is to run compiled, and torch cannot compile it here.
        """
        pixel_values = pixel_values.float()
        if self.channel_order is not None:
            pixel_values = pixel_values[:, self.channel_order]
        pixel_values = pixel_values * self.scale + self.shift
        size = input_size or self.input_size
        if size is not None and tuple(pixel_values.shape[-2:]) != size:
            pixel_values = F.interpolate(pixel_values, size=size, mode="bicubic", antialias=True)
        pixel_values, execution = pixel_values.to(self.dtype), self.description.execution or PLAIN
        if execution.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        is_compiled = 0 < len(pixel_values) == execution.compiled and input_size is None
        logits = (self._compiled_logits_of if is_compiled else self._logits_of)(pixel_values).float()
        logits = logits if self.label_order is None else logits[:, self.label_order]
        return logits if self.prior is None else logits - self.prior


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
        prompts: of a zero-shot model, the texts of the classes; None of a classifier.
        is_subset: whether it has more labels than the student.
        prior_correction: by what its prior is corrected, as an object of JSON; None if it is not. What is taken off
            follows from the training images, which a label store knows by themselves.
        execution: how it runs; None if that is to be found out, and until then as it was loaded.
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
    prompts: Prompts | None = None
    is_subset: bool = False
    prior_correction: Mapping[str, Any] | None = None
    execution: Execution | None = PLAIN

    @property
    def pinned_name(self) -> str:
        """Its name, with the commit behind an "@" where that is known."""
        return self.name_or_path + (f"@{self.revision}" if self.revision else "")

    @property
    def chosen_labels(self) -> list[int] | None:
        """Which of its logits are the student's, in the student's order; None if these are all, as they are."""
        return None if self.label_order == sorted(self.label_order) and not self.is_subset else self.label_order

    @property
    def is_zero_shot(self) -> bool:
        """Whether it knows classes by texts about them, and was told these."""
        return self.prompts is not None

    @property
    def corrects_prior(self) -> bool:
        """Whether a run is to correct its prior, by its training images."""
        return "images" in (self.prior_correction or {})

    def load(self, device: torch.device | str | None = None) -> Teacher:
        """Loads the weights.

        Args:
            device: to put them on; the CPU by default.

        Raises:
            InputError: see `load_teacher`.
        """
        if self.prompts is None:
            model = load_classifier(self.name_or_path, self.wanted_revision, dtype=self.dtype, role="teacher")
        else:
            model = load_zero_shot(
                self.name_or_path, self.wanted_revision, prompts=self.prompts, dtype=self.dtype, device=device
            )
        size = _accepted_size(model, self.name_or_path, self.sizes)
        if size != self.sizes[0] == self.student_size:
            logger.warning(
                "the teacher %s takes no images of the student's %s pixels: it is shown them at %s",
                self.name_or_path,
                *map(size_in_words, (self.student_size, size)),
            )
        loaded = replace(self, execution=PLAIN) if self.execution else self
        teacher = Teacher(model, loaded, None if size == self.student_size else size).to(device or "cpu")
        if self.execution:
            teacher.run_as(self.execution)
        return teacher

    @property
    def is_undecided(self) -> bool:
        """Whether it is to be found out how it runs fastest."""
        return self.execution is None

    def decided_by(self, known: Mapping[str, Any]) -> "TeacherDescription":
        """The same, to run as before.

        Args:
            known: what `identity` said then.

        Raises:
            InputError: it does not say how in a way that is known.
        """
        return replace(self, execution=Execution.of(known.get("execution"))) if self.is_undecided else self

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
            **({} if self.prompts is None else {"prompts": self.prompts.digest}),
            **({} if self.prior_correction is None else {"prior_correction": dict(self.prior_correction)}),
            # Not named where it runs as it was loaded, as all did before there was a choice.
            **({"execution": self.execution.to_dict()} if self.execution else {}),
            "preprocessing": {
                "scale": self.scale,
                "shift": self.shift,
                "channel_order": self.channel_order,
                "label_order": self.chosen_labels,
                "own_size": self.processor_size,
                # Not named where it is the student's, as it was by default before there was a choice.
                **({} if self.sizes[0] == self.student_size else {"input_size": self.sizes[0]}),
            },
        }


def remedy_for(dtype: torch.dtype) -> str:
    """What to give for a teacher whose answers in a dtype are not finite, to follow "give"."""
    if dtype == torch.float16:
        return "--teacher_dtype float32 or bfloat16 (dtype of load_teacher), as float16 overflows beyond 65,504"
    if dtype == torch.bfloat16:
        return "--teacher_dtype float32 (dtype of load_teacher)"
    return "another teacher, whose weights and image processor are sound"


def size_in_words(size: Size) -> str:
    """A (height, width) as people say it: "224", or "224 x 160" if it is no square."""
    height, width = size
    return str(height) if height == width else f"{height} x {width}"


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
