"""What is measured of a model's answers: hits are counted in one place, for students and teachers alike."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from transformers import EvalPrediction
from transformers.utils import logging

from ..errors import InputError
from ..models.answers import NO_ANSWER, decisions_of, has_answer
from ..models.ensemble import TeacherEnsemble
from ..models.heads import MEASURED
from ..models.single_teacher import size_in_words
from ..models.teacher import AnyTeacher, Teacher

logger = logging.get_logger(__name__)

# Takes which views of a batch a teacher has answered, (B,) bool, and the batch.
Note = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], None]


class Hits(NamedTuple):
    """How many of some labelled images are classified correctly.

    Attributes:
        top1, top5: images whose label is the first, or among the first five, answers; () int64. `top5` is None if
            there were fewer than five answers.
        counted: labelled images, () int64.
    """

    top1: torch.Tensor
    top5: torch.Tensor | None
    counted: torch.Tensor

    def accuracies(self) -> dict[str, float]:
        """`top1`, and `top5` if it is known, in [0, 1].

        Raises:
            InputError: no image was labelled.
        """
        counted = int(self.counted)
        if not counted:
            raise InputError(
                "there is no labelled sample to measure the accuracy on: none of the validation images has a label "
                "and can be decoded"
            )
        hits = {"top1": self.top1} | ({} if self.top5 is None else {"top5": self.top5})
        return {name: int(value) / counted for name, value in hits.items()}


def count_hits(ranked: torch.Tensor, labels: torch.Tensor) -> Hits:
    """Counts the images whose label is among a model's best answers.

    Args:
        ranked: (B, k) integers: the k best labels of each image, best first.
        labels: (B,) integers, negative where an image has none: it is left out.
    """
    counted = labels >= 0
    hits = (ranked == labels.unsqueeze(1)) & counted.unsqueeze(1)
    top5 = hits[:, :5].any(dim=1).sum() if ranked.shape[1] >= 5 else None
    return Hits(hits[:, 0].sum(), top5, counted.sum())


def class_hits(ranked: torch.Tensor, labels: torch.Tensor, num_labels: int) -> list[list[int]]:
    """Counts for each label its images, and those of them that a model classifies correctly.

    Args:
        ranked: (B, k) integers: the k best labels of each image, best first.
        labels: (B,) integers, negative where an image has none: it is left out.
        num_labels: K.

    Returns:
        K pairs: images that are classified correctly, and images.
    """
    counted = labels >= 0
    hits = labels[counted & (ranked[:, 0] == labels)].bincount(minlength=num_labels)
    return torch.stack([hits, labels[counted].bincount(minlength=num_labels)], dim=1).tolist()


def rank_labels(logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Keeps of each head's (B, K) logits the five best labels: (B, heads, min(5, K)).

    They are `NO_ANSWER`, which no image has as its label, where the largest logit is NaN or infinite.
    """
    heads = torch.stack(logits if isinstance(logits, tuple) else (logits,), dim=1)
    best = heads.topk(min(5, heads.shape[-1]), dim=-1).indices
    return torch.where(heads.amax(dim=-1, keepdim=True).isfinite(), best, NO_ANSWER)


def answers(logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Keeps of each head's (B, K) logits what the model answers: (B, K)."""
    return logits[0] if isinstance(logits, tuple) else logits


def answers_and_ranks(
    logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor:
    """Both `answers` and `rank_labels`, in this order; where there are no labels to count hits, the answers alone."""
    return answers(logits) if labels is None else (answers(logits), rank_labels(logits))


def head_accuracies(prediction: EvalPrediction) -> dict[str, float]:
    """Top-1 and top-5 of each head, of predictions (N, heads, k) from `rank_labels` or `answers_and_ranks`.

    Nothing of images to predict of which none has a label.
    """
    is_predicted = isinstance(prediction.predictions, tuple)
    if is_predicted and not (np.asarray(prediction.label_ids) >= 0).any():
        return {}
    ranked = prediction.predictions[-1] if is_predicted else prediction.predictions
    rankings = torch.from_numpy(np.asarray(ranked))
    labels = torch.from_numpy(np.asarray(prediction.label_ids))
    metrics = {}
    for index, head in enumerate(MEASURED[: rankings.shape[1]]):
        accuracies = count_hits(rankings[:, index], labels).accuracies()
        metrics.update({f"{head.prefix}{name}": value for name, value in accuracies.items()})
    return metrics


def mean_loss(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """The mean loss of the labelled images of an evaluation, or None if there are none.

    It is summed in the images' order and in float64: the same losses have the same mean, in whatever batches.

    Args:
        batches: losses, (B,), and which of them are of labelled images, (B,) bool; of all processes.
    """
    losses = [losses[is_labelled].cpu().double() for losses, is_labelled in batches]
    return torch.cat(losses).mean().item() if sum(map(len, losses)) else None


@torch.no_grad()
def measure_teacher(
    teacher: AnyTeacher,
    *,
    views: Iterable[Mapping[str, torch.Tensor]],
    validation: Iterable[Mapping[str, torch.Tensor]],
    note_view: Note | None = None,
    note_validation: Note | None = None,
) -> dict[str, float]:
    """Measures how good a teacher is on a run's own pixels, at its own input size and the student's.

    Warns if it is no better than guessing, or better at another of these sizes than at the one that it is shown. Of
    several teachers each is measured by itself, too, as it is shown the pixels.

    Args:
        views: batches of training views, with `pixel_values` (B, 3, H, W) normalised for the student and `labels`
            (B,), negative where there is none.
        validation: batches of validation images; may be empty.
        note_view, note_validation: told what it has answered of each batch, at the size that it is shown.

    Returns:
        `teacher_agreement_with_labels`: how often it gives the true label on the views; `teacher_top1`, its accuracy
        on the validation images, and `teacher_images`, how many those are; and `majority_class`, the largest part of
        a label among the validation images, or, if they have none, among the views. What has no labels is not
        measured, and what it gives no answer to is not right. If it takes several sizes, the first two also for each
        of them, as `teacher_top1_at_224`, say; of several teachers for each, as `teacher_top1_of_1`.
    """
    is_one = isinstance(teacher, Teacher)
    sizes = {teacher.shown_size: "", **{size: name for name, size in teacher.other_sizes.items()}} if is_one else {}
    report: dict[str, float] = {}
    right, majority = {}, 0.0
    kinds = ("teacher_agreement_with_labels", views, note_view), ("teacher_top1", validation, note_validation)
    for name, batches, note in kinds:
        labels, found = _right_answers(teacher, list(sizes), batches, note)
        if not len(labels):
            continue
        right, majority = found, labels.bincount().max().item() / len(labels)
        report |= {f"{name}{which}": _share(right[which]) for which in right}
        report["majority_class"] = majority
        if name == "teacher_top1":
            report["teacher_images"] = len(labels)
    if right and PartialState().is_main_process:  # all have measured the same
        if is_one:
            _warn_of_chance(teacher, right[""], majority)
            _warn_of_size(teacher, {size: right[_at(size) if len(sizes) > 1 else ""] for size in sizes}, sizes)
        else:
            for number, member in enumerate(teacher.members, 1):
                _warn_of_chance(member, right[f"_of_{number}"], majority)
    return report


def answers_of_teacher(
    teacher: AnyTeacher, pixel_values: torch.Tensor, sizes: Sequence[tuple[int, int]] = ()
) -> dict[str, torch.Tensor]:
    """What a teacher answers to a batch, logits (B, num_labels), by the end of a measure's name.

    Args:
        sizes: which to show it, if it is one. If they are several, its answer at 224 pixels, say, is "_at_224".

    Returns:
        Its answer "" and, of several teachers, that of each: "_of_1" and so on.
    """
    if isinstance(teacher, TeacherEnsemble):
        each = teacher.each(pixel_values)
        return {"": teacher.together(each), **{f"_of_{number}": logits for number, logits in enumerate(each, 1)}}
    if len(sizes) < 2:
        return {"": teacher(pixel_values)}
    at = {size: teacher(pixel_values, input_size=size) for size in sizes}
    return {"": at[teacher.shown_size], **{_at(size): logits for size, logits in at.items()}}


def _at(size: tuple[int, int]) -> str:
    return f"_at_{size_in_words(size).replace(' ', '')}"


def _right_answers(
    teacher: AnyTeacher,
    sizes: Sequence[tuple[int, int]],
    batches: Iterable[Mapping[str, torch.Tensor]],
    note: Note | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The labels of the labelled images, (N,) int64, and for each of `answers_of_teacher` who is right, (N,)."""
    seen, right = [torch.zeros(0, dtype=torch.int64)], defaultdict(list)
    for batch in batches:
        labels = batch["labels"]
        seen.append(labels[labels >= 0].cpu())
        said = answers_of_teacher(teacher, batch["pixel_values"], sizes)
        if note is not None:
            note(has_answer(said[""]), batch)
        for which, logits in said.items():
            right[which].append((decisions_of(logits) == labels)[labels >= 0].cpu())
    return torch.cat(seen), {which: torch.cat(parts) for which, parts in right.items()}


def _share(right: torch.Tensor) -> float:
    return int(right.sum()) / len(right)


def _warn_of_chance(teacher: Teacher, right: torch.Tensor, majority: float) -> None:
    if _share(right) <= max(majority, 1 / len(teacher.id2label)):
        logger.warning(
            "the teacher %s has an accuracy of %.3f on %d images at %s pixels, no better than chance or than always "
            "saying their most frequent class (%.3f): check that it was trained on these classes, and its image "
            "processor",
            *(teacher.name_or_path, _share(right), len(right), size_in_words(teacher.shown_size), majority),
        )


def _warn_of_size(
    teacher: Teacher, right: Mapping[tuple[int, int], torch.Tensor], names: Mapping[tuple[int, int], str]
) -> None:
    """Warns if the teacher is better at another size than the one that it is shown, by more than noise."""
    shown, best = right[teacher.shown_size], max(right, key=lambda size: _share(right[size]))
    gained, lost = (int(both.sum()) for both in (right[best] & ~shown, shown & ~right[best]))
    if gained - lost > (gained + lost) ** 0.5:
        logger.warning(
            "the teacher %s is right on %.3f of %d images at %s pixels, which it is shown, and on %.3f at %s, which "
            '--teacher_input_size %s (input_size="%s" of load_teacher) would show it',
            *(teacher.name_or_path, _share(shown), len(shown), size_in_words(teacher.shown_size)),
            *(_share(right[best]), size_in_words(best), names[best], names[best]),
        )
