"""A teacher's answers, its logits or its decisions: which of them can be learnt from."""

import torch

NO_ANSWER = -3  # in place of a decision; -1 and -2 mean something else in kept labels


def has_answer(answer: torch.Tensor) -> torch.Tensor:
    """Which views a teacher has answered, on their device: (B,) bool.

    Logits with a NaN or an infinity are none, also where the largest one is finite: what has overflowed in one class
    cannot be trusted in another. So are those whose differences overflow.

    Args:
        answer: logits (B, K), or decisions (B,), which are `NO_ANSWER` where there is none.
    """
    if not answer.is_floating_point():
        return answer != NO_ANSWER
    logits = answer.float()
    return (logits - logits.amax(dim=-1, keepdim=True)).isfinite().all(dim=-1)


def decisions_of(logits: torch.Tensor) -> torch.Tensor:
    """The label that each of (B, K) logits decides for, (B,) int64; `NO_ANSWER` where they are no answer."""
    return torch.where(has_answer(logits), logits.argmax(dim=-1), NO_ANSWER)
