"""Errors first: the surest mistakes, the images nearest to the border, and labels that may be wrong."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import counted
from ..answers.verdicts import Verdicts
from ..images.images import EvaluationImages
from ..sections import Attachment, Cell, Picture, Section, Table
from .contact_sheets import SHOWN, Names, answer_lines, attachment, contact_sheet, label_words, paths_csv
from .label_suspects import NEIGHBOURS, Features, Suspects, find_suspects

_SURE = 0.9  # a confidence from which on a mistake is counted as a sure one
_AT_BORDER = 0.1  # a margin below which an image is counted as near to the border
_SPEAKERS = {1: "the model says", 2: "the model and its teacher say"}
_MOST_AT_BORDER = 1000  # rows of the CSV of images near to the border


def mistakes_section(
    verdicts: Verdicts,
    images: EvaluationImages,
    *,
    teacher: Verdicts | None = None,
    features: Features | None = None,
    num_shown: int = SHOWN,
    num_neighbours: int = NEIGHBOURS,
) -> Section:
    """What a model gets wrong, what it is nearly undecided on, and which labels to look at again.

    Args:
        verdicts: of the model, by its own rule.
        images: with their labels; of images without labels only those near to the border are shown.
        teacher: its verdicts, for suspects and beside the model's answers.
        features: of the model, such as its `Answers.features_chunks`, for suspects.
        num_shown: images on a contact sheet, at least 1.
        num_neighbours: see `find_suspects`.
    """
    labels = images.labels
    parts = [_border(verdicts, images, num_shown)]
    if labels.is_labelled.any():
        mistakes = np.flatnonzero(labels.is_labelled & ~labels.are_right(verdicts.decisions))
        mistakes = mistakes[np.argsort(-verdicts.confidence[mistakes], kind="stable")]
        suspects = find_suspects(verdicts, labels, teacher=teacher, features=features, num_neighbours=num_neighbours)
        parts = [
            _mistakes(verdicts, images, teacher, mistakes, suspects, num_shown),
            *([] if suspects is None else [_suspects(verdicts, images, teacher, suspects, num_shown)]),
            *parts,
        ]
    what = "gets wrong, and what it is undecided on." if labels.is_labelled.any() else "is undecided on."
    table = Table(
        "errors",
        "How many images there are of each kind.",
        ("kind", "images", "of", "fraction"),
        tuple(row for part in parts for row in part.rows),
    )
    numbers = {"model": verdicts.name, "images": len(labels), "labelled_images": int(labels.is_labelled.sum())}
    return Section(
        "mistakes",
        "Mistakes and doubtful labels",
        (f"What {verdicts.words} {what}", *(part.text for part in parts)),
        (table,),
        tuple(picture for part in parts for picture in part.pictures),
        tuple(attachment for part in parts for attachment in part.attachments),
        numbers | {key: value for part in parts for key, value in part.numbers.items()},
    )


@dataclass
class _Part:
    """What one kind of images adds to the section."""

    text: str
    rows: list[tuple[Cell, ...]]
    numbers: dict[str, Any]
    pictures: list[Picture] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)


def _mistakes(
    verdicts: Verdicts,
    images: EvaluationImages,
    teacher: Verdicts | None,
    mistakes: np.ndarray,
    suspects: Suspects | None,
    num_shown: int,
) -> _Part:
    sure = int(np.count_nonzero(verdicts.confidence[mistakes] >= _SURE))
    total = int(images.labels.is_labelled.sum())
    part = _Part(
        f"There are {counted(len(mistakes), 'mistake')} on {counted(total, 'labelled image')}, {sure:,} of them made "
        f"with a confidence of at least {_SURE}. Among the surest there may be wrong labels and images of several "
        "things, beside what the model has learnt wrongly.",
        [
            ("mistakes", len(mistakes), total, len(mistakes) / total),
            (f"mistakes with a confidence of at least {_SURE}", sure, total, sure / total),
        ],
        {"mistakes": len(mistakes), "sure_mistakes": sure},
    )
    said, names = _said(verdicts, teacher), Names(images.labels.names)
    part.pictures += contact_sheet(
        "most_confident_mistakes",
        images,
        mistakes,
        lambda index: answer_lines(names, images, index, **said),
        title="The mistakes, surest first",
        below=f"Below each its number, its label, and what {_SPEAKERS[len(said)]} with which confidence.{names.note}",
        num_shown=num_shown,
    )
    part.attachments.append(_mistakes_csv(verdicts, images, teacher, mistakes, suspects))
    return part


def _suspects(
    verdicts: Verdicts, images: EvaluationImages, teacher: Verdicts | None, suspects: Suspects, num_shown: int
) -> _Part:
    total = int(images.labels.is_labelled.sum())
    witnesses = ["the model", *(["its teacher"] if suspects.has_teacher else [])]
    if suspects.asked is not None:
        witnesses.append("most of the images nearest by the model's features")
    who = f"{', '.join(witnesses[:-1])} and {witnesses[-1]}"
    others = (
        "" if len(witnesses) == 3 else f" ({'No teacher' if not suspects.has_teacher else 'No neighbour'} was asked.)"
    )
    part = _Part(
        f"Label suspects are the images against whose label {who} agree: {len(suspects):,} of {total:,}.{others} "
        "A suspect is no proof. A student shares errors with the teacher that it learnt from, and neighbours are "
        "those that the model finds alike: look at each image before its label is changed. Labels that are mended "
        "only where a model objects make that model look better than it is.",
        [("label suspects", len(suspects), total, len(suspects) / total)],
        {
            "label_suspects": len(suspects),
            "label_suspects_by": {"teacher": suspects.has_teacher, "neighbours": suspects.asked is not None},
        },
    )
    said, names, neighbours = _said(verdicts, teacher), Names(images.labels.names), _neighbours(suspects)

    def lines_of(index: int) -> list[str]:
        by = [f"neighbours {neighbours[index]}"] if neighbours else []
        return answer_lines(names, images, index, **said) + by

    voices = f"what {_SPEAKERS[len(said)]}{', and how many neighbours agree' if neighbours else ''}"
    part.pictures += contact_sheet(
        "label_suspects",
        images,
        suspects.indices,
        lines_of,
        title="Label suspects, which is no proof, surest first",
        below=f"Below each its number, its label, {voices}.{names.note}",
        num_shown=num_shown,
    )
    return part


def _border(verdicts: Verdicts, images: EvaluationImages, num_shown: int) -> _Part:
    labels, names = images.labels, Names(images.labels.names)
    order = np.argsort(verdicts.margin, kind="stable")[:_MOST_AT_BORDER]
    near = int(np.count_nonzero(verdicts.margin < _AT_BORDER))
    is_right = labels.are_right(verdicts.decisions)

    def lines_of(index: int) -> list[str]:
        mark = {True: " ✓", False: " ✗"}[bool(is_right[index])] if labels.is_labelled[index] else ""
        confidence, margin = verdicts.confidence[index], verdicts.margin[index]
        best, *others = verdicts.ranked[index, :2]
        return [
            f"#{images.row(index)}  margin {margin:.3f}",
            f"label {names.label(labels, index)}",
            f"{confidence:.2f}{mark}: {names[best]}",
            *(f"{confidence - margin:.2f}: {names[other]}" for other in others),
        ]

    def cells_of(index: int) -> list[Cell]:
        best, *others = (labels.names[each] for each in verdicts.ranked[index, :2])
        right = ("yes" if is_right[index] else "no") if labels.is_labelled[index] else None
        confidence, margin = float(verdicts.confidence[index]), float(verdicts.margin[index])
        return [label_words(labels, index), best, confidence, others[0] if others else None, margin, right]

    part = _Part(
        f"The margin is the probability of the answer less that of the next: it is below {_AT_BORDER} on "
        f"{counted(near, 'image')}. There a little noise decides, right or wrong.",
        [(f"margin below {_AT_BORDER}", near, len(labels), near / len(labels))],
        {"near_border": near},
    )
    part.pictures += contact_sheet(
        "nearest_to_the_border",
        images,
        order[:num_shown],
        lines_of,
        title="Images with the smallest margins",
        below="Below each its number, its label, and the two most probable classes; a mark says whether the first is "
        f"right.{names.note}",
        num_shown=num_shown,
    )
    csv = paths_csv(images, order, ("label", "answer", "confidence", "second", "margin", "right"), cells_of)
    part.attachments.append(
        attachment("border.csv", csv, f"The {counted(len(order), 'image')} with the smallest margins.")
    )
    return part


def _said(verdicts: Verdicts, teacher: Verdicts | None) -> dict[str, Verdicts]:
    return {"says": verdicts} if teacher is None else {"says": verdicts, "teacher": teacher}


def _neighbours(suspects: Suspects | None) -> dict[int, str]:
    """How many neighbours agree with each suspect, by its index: "9 of 10"."""
    if suspects is None or suspects.asked is None:
        return {}
    counts = zip(suspects.indices.tolist(), suspects.agreeing.tolist(), suspects.asked.tolist(), strict=True)
    return {index: f"{agreeing} of {asked}" for index, agreeing, asked in counts}


def _mistakes_csv(
    verdicts: Verdicts,
    images: EvaluationImages,
    teacher: Verdicts | None,
    mistakes: np.ndarray,
    suspects: Suspects | None,
) -> Attachment:
    labels, neighbours = images.labels, _neighbours(suspects)
    suspected = None if suspects is None else frozenset(suspects.indices.tolist())

    def cells_of(index: int) -> list[Cell]:
        return [
            label_words(labels, index),
            labels.names[verdicts.decisions[index]],
            float(verdicts.confidence[index]),
            float(verdicts.margin[index]),
            None if teacher is None else labels.names[teacher.decisions[index]],
            None if teacher is None else float(teacher.confidence[index]),
            None if suspected is None else ("yes" if index in suspected else "no"),
            neighbours.get(index),
        ]

    columns = (
        "label",
        "answer",
        "confidence",
        "margin",
        "teacher",
        "teacher_confidence",
        "label_suspect",
        "neighbours_agreeing",
    )
    csv = paths_csv(images, mistakes, columns, cells_of)
    return attachment("mistakes.csv", csv, f"All {counted(len(mistakes), 'mistake')}, surest first.")
