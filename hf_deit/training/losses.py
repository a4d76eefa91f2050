"""The losses of DeiT (Touvron et al. 2021, section 4): pure functions of tensors, computed in at least float32."""

from typing import Literal

import torch
import torch.nn.functional as F

_NO_CLASS = torch.iinfo(torch.int64).min  # in place of -100, which would be passed over without a word


def _check_logits(name: str, logits: torch.Tensor) -> torch.Tensor:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"{name} must be floating-point of shape (B, K), got {logits.dtype} {tuple(logits.shape)}")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def hard_distillation_loss(
    student_logits: torch.Tensor, teacher: torch.Tensor, *, answered: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy to the teacher's decision, without smoothing: the second term of the paper's equation 3.

    Args:
        student_logits: (B, K), of the distillation head (or of the only head).
        teacher: the teacher's logits, (B, K) floating-point, or its decisions, (B,) integers in [0, K).
        answered: (B,) bool, the views to learn from; all by default. The others add nothing, whatever `teacher` says
            of them.

    Returns:
        The mean over the batch, a scalar: over all of its views, so that each one's loss is its own.

    Raises:
        ValueError: the shapes do not match.
        IndexError: a decision is out of range, negative ones too (on a GPU, torch's own assertion).
    """
    student_logits = _check_logits("student_logits", student_logits)
    expected = student_logits.shape if teacher.is_floating_point() else student_logits.shape[:1]
    if teacher.shape != expected:
        raise ValueError(
            f"teacher must be logits {tuple(student_logits.shape)} or decisions {tuple(student_logits.shape[:1])}, "
            f"got {tuple(teacher.shape)}"
        )
    decisions = teacher.argmax(dim=-1) if teacher.is_floating_point() else teacher.long()
    if answered is None:
        return F.cross_entropy(student_logits, decisions, ignore_index=_NO_CLASS)
    decisions = torch.where(answered, decisions, _NO_CLASS)
    return F.cross_entropy(student_logits, decisions, ignore_index=_NO_CLASS, reduction="sum") / len(decisions)


def soft_distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    temperature: float = 3.0,
    reduction: Literal["batchmean", "numel"] = "batchmean",
    answered: torch.Tensor | None = None,
) -> torch.Tensor:
    """τ² · KL(teacher ‖ student) of the two softened distributions: the second term of the paper's equation 2.

    The gradient vanishes where the student already gives the teacher's distribution; unlike the hard loss it says
    nothing about the true label.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        temperature: τ > 0; the paper's soft setting is 3.0 with a weight of 0.1.
        reduction: "batchmean" divides the sum by B, as the equation does. "numel" divides by B · K, as the authors'
            code does (`losses.py`: `/ outputs_kd.numel()`), and is therefore K times smaller: 1000 times on ImageNet.
        answered: (B,) bool, the views to learn from; all by default. The others add nothing, whatever the teacher's
            logits are, and count in B.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ, τ is not positive, or the reduction is unknown.
    """
    student_logits = _check_logits("student_logits", student_logits)
    teacher_logits = _check_logits("teacher_logits", teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits and teacher_logits must have one shape, "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if reduction not in ("batchmean", "numel"):
        raise ValueError(f'reduction must be "batchmean" or "numel", got {reduction!r}')
    if answered is not None:  # before the loss, whose gradient would otherwise be 0 · NaN; two alike diverge by 0
        student_logits = torch.where(answered.unsqueeze(1), student_logits, 0.0)
        teacher_logits = torch.where(answered.unsqueeze(1), teacher_logits, 0.0)
    divergence = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=-1),
        F.log_softmax(teacher_logits / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2 / (len(student_logits) if reduction == "batchmean" else student_logits.numel())


def soft_target_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to a distribution per sample: the class head's loss on mixed or smoothed labels.

    Args:
        logits: (B, K).
        targets: (B, K), each row non-negative with sum 1, or less where a label is not known: that part is masked.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: the shapes differ.
    """
    logits = _check_logits("logits", logits)
    if targets.shape != logits.shape:
        raise ValueError(f"targets must have the logits' shape {tuple(logits.shape)}, got {tuple(targets.shape)}")
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def class_targets(
    labels: torch.Tensor,
    num_labels: int,
    *,
    smoothing: float = 0.0,
    partner_labels: torch.Tensor | None = None,
    label_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the class head shall say: smoothed labels, mixed where views are (timm's `mixup_target`).

    A label has 1 - ε + ε / K of the target and every other class ε / K, also where two labels are mixed.

    Args:
        labels: (B,) in [0, K), or negative where the label is not known: it then has no target.
        num_labels: K.
        smoothing: ε, in [0, 1).
        partner_labels: (B,) likewise, of the views that they are mixed with.
        label_weights: (B,) λ, the weight of `labels`; the partners' is the rest.

    Returns:
        (B, K) float32; rows have the sum 1, less the weight of what is not known.
    """

    def smoothed(labels: torch.Tensor) -> torch.Tensor:
        known = (labels >= 0).float().unsqueeze(1)
        one_hot = torch.zeros(len(labels), num_labels, device=labels.device).scatter_(
            1, labels.clamp(min=0).unsqueeze(1), 1 - smoothing
        )
        return (one_hot + smoothing / num_labels) * known

    if partner_labels is None or label_weights is None:
        return smoothed(labels)
    weights = label_weights.float().unsqueeze(1)
    return weights * smoothed(labels) + (1 - weights) * smoothed(partner_labels)
