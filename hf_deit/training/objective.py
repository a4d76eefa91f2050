"""What a student learns: a pure function of its outputs, a batch and the teacher's answer, without a Trainer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput

from ..data.columns import IGNORED_LABEL
from ..models.answers import decisions_of, has_answer
from .arguments import DistillationTrainingArguments, DistillationType
from .losses import class_targets, hard_distillation_loss, soft_distillation_loss, soft_target_cross_entropy


class Losses(NamedTuple):
    """A batch's loss, and what it is made of.

    Attributes:
        loss: a scalar, the mean over the batch.
        parts: scalars for the log: `class_loss` and, with a teacher, `distillation_loss` and `teacher_agreement`, the
            part of the views on which the student's distillation head decides as the teacher does.
    """

    loss: torch.Tensor
    parts: dict[str, torch.Tensor]


@dataclass(frozen=True)
class DistillationObjective:
    """The objective of DeiT (paper, section 4): loss = (1 - α) · class + α · teacher.

    The class head learns the true label with label smoothing, the distillation head the teacher's answer. A student
    without distillation head takes both terms on its logits. Without a teacher both heads learn the true label.

    A view that the teacher has not answered (see `has_answer`) takes no part in the teacher's term, which stays the
    mean over all views: so each view's loss is its own, on any number of processes.

    Args:
        distillation_type: the teacher's term: "hard" (its decision), "soft" (its distribution) or "none".
        alpha: weight of the teacher's term, in [0, 1].
        temperature: τ of soft distillation, positive.
        reduction: of the soft loss, see `soft_distillation_loss`.
        label_smoothing: ε of the class head's targets, in [0, 1).
        has_labels: whether any image has a label. If none has, the class head learns what the teacher says, too.
    """

    distillation_type: DistillationType = "hard"
    alpha: float = 0.5
    temperature: float = 3.0
    reduction: Literal["batchmean", "numel"] = "batchmean"
    label_smoothing: float = 0.1
    has_labels: bool = True

    @classmethod
    def of(cls, args: DistillationTrainingArguments, *, has_labels: bool = True) -> "DistillationObjective":
        """The objective that training arguments ask for."""
        return cls(
            distillation_type=args.distillation_type,
            alpha=args.distillation_alpha,
            temperature=args.distillation_temperature,
            reduction=args.distillation_reduction,
            label_smoothing=args.label_smoothing_factor,
            has_labels=has_labels,
        )

    def __call__(
        self, outputs: ModelOutput, batch: Mapping[str, torch.Tensor], teacher_answer: torch.Tensor | None = None
    ) -> Losses:
        """Computes the loss of a batch.

        Args:
            outputs: of the student: `logits` (B, K), and `cls_logits` and `distillation_logits` (B, K) if it has two
                heads.
            batch: `labels` (B,), negative where there is none, and, if views are mixed, `partner_labels` (B,) and
                `label_weights` (B,).
            teacher_answer: its logits (B, K), or its decisions (B,), `NO_ANSWER` where there is none; None for
                `distillation_type` "none".
        """
        class_logits = outputs.get("cls_logits", outputs.logits)
        distillation_logits = outputs.get("distillation_logits", outputs.logits)
        class_loss = self._class_loss(class_logits, batch, teacher_answer)
        if teacher_answer is not None:
            teacher_loss = self._teacher_loss(distillation_logits, teacher_answer)
            loss = (1 - self.alpha) * class_loss + self.alpha * teacher_loss
            decisions = decisions_of(teacher_answer) if teacher_answer.is_floating_point() else teacher_answer
            agreement = (distillation_logits.argmax(dim=-1) == decisions).float().mean()
            parts = {"class_loss": class_loss, "distillation_loss": teacher_loss, "teacher_agreement": agreement}
            return Losses(loss, parts)
        if distillation_logits is class_logits:
            return Losses(class_loss, {"class_loss": class_loss})
        # Both heads must learn, else one stays random (and DDP waits for its gradient).
        loss = (class_loss + self._class_loss(distillation_logits, batch, None)) / 2
        return Losses(loss, {"class_loss": class_loss})

    def _class_loss(
        self, logits: torch.Tensor, batch: Mapping[str, torch.Tensor], teacher_answer: torch.Tensor | None
    ) -> torch.Tensor:
        """Cross-entropy to the (mixed, smoothed) labels; where no image has one, the teacher's term."""
        if not self.has_labels:
            return self._teacher_loss(logits, teacher_answer)
        targets = class_targets(
            batch["labels"],
            logits.shape[-1],
            smoothing=self.label_smoothing,
            partner_labels=batch.get("partner_labels"),
            label_weights=batch.get("label_weights"),
        )
        # The mean over all views, also those without label: so each view's loss is its own, and does not depend on how
        # many labels happen to be in its batch.
        return soft_target_cross_entropy(logits, targets)

    def _teacher_loss(self, logits: torch.Tensor, teacher_answer: torch.Tensor) -> torch.Tensor:
        answered = has_answer(teacher_answer)
        if self.distillation_type == "hard":
            return hard_distillation_loss(logits, teacher_answer, answered=answered)
        settings = {"temperature": self.temperature, "reduction": self.reduction, "answered": answered}
        return soft_distillation_loss(logits, teacher_answer, **settings)


def evaluation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the labelled images of a batch; 0 if none is labelled.

    Args:
        logits: (B, K), of what the model answers.
        labels: (B,), negative where an image was skipped or has no label.
    """
    # A batch may be all of images that were skipped.
    return image_losses(logits, labels).sum() / (labels >= 0).sum().clamp(min=1)


def image_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each image of a batch, (B,) float32; 0 where it has no label. See `evaluation_loss`."""
    labels = labels.where(labels >= 0, IGNORED_LABEL)
    return F.cross_entropy(logits.float(), labels, reduction="none")
