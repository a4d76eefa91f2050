"""How often models are right, each by all of its rules: the paper's Table 3, with any other models beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import f1_score, recall_score

from ...errors import counted
from ..answers.answers import Answers
from ..answers.verdicts import Rule, Verdicts
from ..images.labels import Labels
from ..pictures import as_png, drawing, look_of, name_in_picture
from ..sections import Cell, Estimate, Picture, Result, Section, Table
from .classes import ClassReport, report_of_classes
from .intervals import paired_difference, wilson

_MOST_ROWS = 30  # of the picture; of more there would be each model's own rule alone


@dataclass(frozen=True)
class _Row:
    """A model by one of its rules.

    Attributes:
        number: of the model among the contenders.
        is_own: whether it answers by this rule itself.
        decisions: (n,) int32, its answers to the labelled images.
        right: (n,) bool, which of these are right.
        top_5: None of fewer than five classes.
        balanced_accuracy, macro_f1: None where images may have several labels.
    """

    number: int
    model: str
    rule: Rule
    is_own: bool
    decisions: np.ndarray
    right: np.ndarray
    top_1: Estimate
    top_5: Estimate | None
    balanced_accuracy: float | None
    macro_f1: float | None

    def as_json(self) -> dict[str, object]:
        numbers: dict[str, object] = {"is_own_rule": self.is_own, "num_images": len(self.right)}
        numbers["top_1"] = self.top_1.as_json()
        numbers["top_5"] = self.top_5 and self.top_5.as_json()
        return numbers | {"balanced_accuracy": self.balanced_accuracy, "macro_f1": self.macro_f1}


def top_accuracy(verdicts: Verdicts, labels: Labels, k: int = 1) -> Estimate:
    """How often a right label is among a model's best k answers, of the images that have a label.

    Raises:
        ValueError: the verdicts hold fewer than k answers, or no image has a label.
    """
    if k > verdicts.ranked.shape[1]:
        raise ValueError(f"top-{k} needs {k} answers of each image, got {verdicts.ranked.shape[1]}")
    right = labels.are_right(verdicts.ranked[:, :k]).any(axis=1)
    return wilson(right.sum(), labels.is_labelled.sum())


def accuracy_section(
    answers: Sequence[Answers], labels: Labels, *, teacher: str | None = None, images: str | None = None
) -> Section | None:
    """The accuracy of models, the classes on which the first of them fails, and what it takes them for.

    Args:
        answers: of the contenders, of which the first is the one that is evaluated.
        labels: of the same images.
        teacher: the name of the contender that has taught, if one has.
        images: which images these are, in words; by default how many have a label.

    Returns:
        None if no image has a label. Its `numbers` are, by the contender's name and the rule's key, in "contenders":
        "top_1", "top_5" (None of fewer than five classes), "balanced_accuracy" and "macro_f1" (None where images may
        have several labels), "num_images" and "is_own_rule"; in "differences", by the contender's name, its top-1
        less the first one's; of the first one "classes", in their order, and "confusion", triples of label, answer
        and count.
    """
    if not labels.is_labelled.any():
        return None
    rows = [
        _row(number, contender, rule, labels) for number, contender in enumerate(answers) for rule in contender.rules
    ]
    first, *others = [row for row in rows if row.is_own]
    differences = {row.model: paired_difference(row.right, first.right) for row in others}
    classes = None
    if labels.accepted is None:
        classes = report_of_classes(first.model, first.decisions, labels)
    numbers = {
        "num_images": int(labels.is_labelled.sum()),
        "num_unlabelled": int((~labels.is_labelled).sum()),
        "num_classes": len(labels.names),
        "contenders": {
            contender.model: {row.rule.key: row.as_json() for row in rows if row.number == number}
            for number, contender in enumerate(answers)
        },
        "differences": {name: difference.as_json() for name, difference in differences.items()},
    }
    tables = [_table(rows, labels, teacher, images), *([_difference_table(differences, first)] if others else [])]
    pictures = [_picture(rows, teacher)] if len(rows) > 1 else []
    return Section(
        "accuracy",
        "Accuracy",
        tuple(_text(rows, labels, classes, bool(others))),
        (*tables, *(classes.tables if classes else ())),
        (*pictures, *(classes.pictures if classes else ())),
        classes.attachments if classes else (),
        numbers | (classes.numbers if classes else {}),
        tuple(_results(rows)),
    )


def _results(rows: Sequence[_Row]) -> Iterator[Result]:
    """The figures that a card's metadata get: of each model its own answer first."""
    for row in sorted(rows, key=lambda row: (row.number, not row.is_own)):
        for metric, estimate in (("top-1", row.top_1), ("top-5", row.top_5)):
            if estimate is not None:
                yield Result(row.model, row.rule.words, metric, estimate, len(row.right), row.is_own)


def _row(number: int, contender: Answers, rule: Rule, labels: Labels) -> _Row:
    verdicts = contender.verdicts(rule)
    decisions = verdicts.decisions[labels.is_labelled]
    balanced_accuracy = macro_f1 = None
    if labels.accepted is None:
        true = labels.values[labels.is_labelled]
        balanced_accuracy = float(recall_score(true, decisions, labels=np.unique(true), average="macro"))
        macro_f1 = float(f1_score(true, decisions, average="macro", zero_division=0))
    return _Row(
        number,
        contender.model,
        rule,
        rule == contender.rule,
        decisions,
        labels.are_right(verdicts.decisions)[labels.is_labelled],
        top_accuracy(verdicts, labels),
        top_accuracy(verdicts, labels, 5) if len(labels.names) >= 5 else None,
        balanced_accuracy,
        macro_f1,
    )


def _text(rows: Sequence[_Row], labels: Labels, classes: ClassReport | None, is_compared: bool) -> list[str]:
    without = int((~labels.is_labelled).sum())
    text = (
        f"Measured on {counted(int(labels.is_labelled.sum()), 'image')} of {len(labels.names):,} classes. Brackets "
        "hold the 95 % Wilson interval: what other images of the same kind could have given. What another training "
        "would have given is not in it."
    )
    if without:
        text += f" {counted(without, 'image')} without a label {'is' if without == 1 else 'are'} left out."
    paragraphs = [text]
    if any(row.rule != rows[0].rule for row in rows[1:]):
        paragraphs.append(
            "A model with two heads is measured by each and by both together; one of these ways is marked as its own."
        )
    if labels.accepted is not None:
        paragraphs.append(
            "An image may have several right labels here, and an answer is right if it is one of them. Balanced "
            "accuracy, macro-F1, and what is measured class by class need one label of each image, and are left out."
        )
    else:
        paragraphs.append(
            "Balanced accuracy is the mean recall of the classes that have images, macro-F1 the mean F1 score of "
            "those that have images or are answered: each class counts the same, however many images it has. No "
            "interval is given for them."
        )
    if is_compared:
        paragraphs.append(
            "A difference is told from chance by its own interval, of answers to the same images (Newcombe 1998, "
            "method 10), and not by whether two intervals overlap."
        )
    return [*paragraphs, *(classes.text if classes else ())]


def _words(row: _Row, teacher: str | None) -> str:
    return row.model + _mark(row, teacher)


def _mark(row: _Row, teacher: str | None) -> str:
    return " (teacher)" if row.model == teacher != "teacher" else ""


def _table(rows: Sequence[_Row], labels: Labels, teacher: str | None, images: str | None) -> Table:
    columns = ["model", "answer by", "top-1"]
    columns += ["top-5"] if len(labels.names) >= 5 else []
    columns += ["balanced accuracy", "macro-F1"] if labels.accepted is None else []
    cells = []
    for row in rows:
        own = " (its own)" if row.is_own and sum(other.number == row.number for other in rows) > 1 else ""
        line: list[Cell] = [_words(row, teacher), f"{row.rule.words}{own}", row.top_1]
        line += [row.top_5] if len(labels.names) >= 5 else []
        line += [row.balanced_accuracy, row.macro_f1] if labels.accepted is None else []
        cells.append((*line, len(row.right)))
    where = images or counted(len(rows[0].right), "image")
    caption = f"Accuracy of each model by each of its rules on {where}, with 95 % Wilson intervals."
    return Table("accuracy", caption, (*columns, "images"), tuple(cells), in_card=True)


def _difference_table(differences: dict[str, Estimate], first: _Row) -> Table:
    return Table(
        "differences",
        f"Top-1 of each other model less that of {first.model}, each by its own rule, with 95 % intervals.",
        ("model", f"top-1 less that of {first.model}"),
        tuple(differences.items()),
    )


def _picture(rows: Sequence[_Row], teacher: str | None) -> Picture:
    """A row of points with their intervals: filled where a model answers by its own rule."""
    shown = rows if len(rows) <= _MOST_ROWS else [row for row in rows if row.is_own]
    with drawing(7.2, 1.1 + 0.27 * len(shown)) as figure:
        axes = figure.add_subplot(xlabel="top-1 accuracy, with its 95 % interval")
        for place, row in enumerate(shown):
            colour = "#000000" if row.model == teacher else look_of(row.number % 6)["color"]
            axes.errorbar(
                row.top_1.value,
                place,
                xerr=[[row.top_1.value - row.top_1.low], [row.top_1.high - row.top_1.value]],
                color=colour,
                fmt="D" if row.model == teacher else "o",
                markerfacecolor=colour if row.is_own else "white",
                markersize=6,
                capsize=3,
                linewidth=1.3,
            )
            axes.annotate(
                f"{row.top_1.value:.4f}",
                (1, place),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
            )
            if row.model == teacher and row.is_own:
                axes.axvline(row.top_1.value, color="0.5", linestyle=":", zorder=0)
        axes.set_yticks(range(len(shown)), [_row_words(row, shown, teacher) for row in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        png = as_png(figure)
    own = "; ".join(f"{_words(row, teacher)} {row.top_1}" for row in shown if row.is_own)
    legend = "Filled: each model by its own rule." if any(not row.is_own for row in shown) else ""
    if any(row.model == teacher for row in shown):
        legend += " The teacher is a black diamond; the dotted line is its top-1."
    caption = f"Top-1 accuracy on {counted(len(rows[0].right), 'image')}, with 95 % Wilson intervals. {legend}".strip()
    return Picture("accuracy", png, caption, f"Top-1 of {own}.", in_card=True)


def _row_words(row: _Row, shown: Sequence[_Row], teacher: str | None) -> str:
    words = name_in_picture(row.model, end=15) + _mark(row, teacher)
    return f"{words}, {row.rule.words}" if sum(other.number == row.number for other in shown) > 1 else words
