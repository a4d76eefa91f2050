"""On which classes a model fails, and what it takes them for."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ...errors import counted, shortlist
from ..csv_cells import csv_cell
from ..images.labels import Labels
from ..pictures import COLOURS, SEQUENTIAL, as_png, drawing, name_in_picture
from ..sections import Attachment, Estimate, Picture, Table
from .intervals import wilson

_FEW = 50  # classes, of which a table shows all
_MOST_IN_MATRIX = 30  # classes whose whole matrix can be read
_WORST = 20  # classes, and confused pairs, that a table names
_BLOCK = 24  # classes of the block of a large matrix
_CELLS = 200  # of a large matrix, along each side


@dataclass(frozen=True)
class ClassReport:
    """What there is to say of each class; see `Section`."""

    text: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    attachments: tuple[Attachment, ...]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class _Class:
    """A class as a model answers to its images.

    Attributes:
        recall: None if it has no images.
        precision: None if it is never answered.
        f1: None if it has no images and is never answered.
        taken_for: the most frequent of the wrong answers to its images, and how often it was given; None if none was.
    """

    index: int
    name: str
    support: int
    recall: Estimate | None
    precision: float | None
    f1: float | None
    taken_for: tuple[str, int] | None

    def as_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "name": self.name,
            "support": self.support,
            "recall": self.recall and self.recall.as_json(),
            "precision": self.precision,
            "f1": self.f1,
        }

    @property
    def mistaken(self) -> str | None:
        return self.taken_for and f"{self.taken_for[0]} ({self.taken_for[1]:,})"


@dataclass(frozen=True)
class _Confusion:
    """The cells of a confusion matrix that are not empty, those with the most images first.

    Attributes:
        true, said, count: (cells,) int64, the label, the answer, and how many images have both.
        num_classes: K.
    """

    true: np.ndarray
    said: np.ndarray
    count: np.ndarray
    num_classes: int

    @classmethod
    def of(cls, true: np.ndarray, said: np.ndarray, num_classes: int) -> "_Confusion":
        # Of all pairs of thousands of classes a matrix would be large; of those that occur there are few.
        pairs, count = np.unique(true.astype(np.int64) * num_classes + said, return_counts=True)
        order = np.argsort(-count, kind="stable")
        return cls(pairs[order] // num_classes, pairs[order] % num_classes, count[order], num_classes)

    def mistakes(self) -> "_Confusion":
        wrong = self.true != self.said
        return _Confusion(self.true[wrong], self.said[wrong], self.count[wrong], self.num_classes)

    def triples(self) -> list[list[int]]:
        return np.column_stack([self.true, self.said, self.count]).tolist()


def report_of_classes(model: str, decisions: np.ndarray, labels: Labels) -> ClassReport:
    """What a model does on each class.

    Args:
        model: its name.
        decisions: (n,) integers, its answers to the labelled images, of which there are some.
        labels: of all images, one of each.
    """
    true, names = labels.values[labels.is_labelled], _told_apart(labels.names, range(len(labels.names)))
    confusion = _Confusion.of(true, decisions, len(names))
    mistakes = confusion.mistakes()
    classes = _classes(true, decisions, names, mistakes)
    measured = sorted((each for each in classes if each.recall), key=lambda each: (each.recall.value, -each.support))
    text, absent = [], len(classes) - len(measured)
    if absent:
        text.append(
            f"{absent:,} of the {len(classes):,} classes {'has' if absent == 1 else 'have'} no image here. To answer "
            f"{'it' if absent == 1 else 'one of them'} is a mistake, which counts for macro-F1 as an F1 score of 0."
        )
    attachments = ()
    if len(classes) > _FEW:
        attachments = (Attachment("classes.csv", _as_csv(classes), f"Every class, as {model} answers."),)
    tables = [_class_table(model, classes, measured)]
    pictures = [_recall_picture(model, measured)]
    if len(mistakes.count):
        tables += [_pair_table(model, mistakes, classes)] if len(classes) > 2 else []
    if len(classes) <= _MOST_IN_MATRIX:
        pictures.append(_matrix_picture(model, true, decisions, names))
    elif len(mistakes.count):
        pictures.append(_block_picture(model, true, decisions, names, mistakes))
        pictures.append(_mistakes_picture(model, mistakes))
    numbers = {"classes": [each.as_json() for each in classes], "confusion": confusion.triples()}
    return ClassReport(tuple(text), tuple(tables), tuple(pictures), attachments, numbers)


def _told_apart(names: Sequence[str], indices: Sequence[int]) -> list[str]:
    """Names of some classes, those that are not the only ones of their name with their numbers: ImageNet has two."""
    count = Counter(names)
    return [f"{name} ({index})" if count[name] > 1 else name for name, index in zip(names, indices, strict=True)]


def _in_picture(names: Sequence[str], indices: Sequence[int]) -> list[str]:
    return _told_apart([name_in_picture(names[index], 26) for index in indices], indices)


def _classes(true: np.ndarray, said: np.ndarray, names: Sequence[str], mistakes: _Confusion) -> list[_Class]:
    indices = np.arange(len(names))
    precision, _, f1, support = precision_recall_fscore_support(true, said, labels=indices, zero_division=np.nan)
    right = np.bincount(true[true == said], minlength=len(names))
    answered = np.bincount(said, minlength=len(names))
    taken_for: dict[int, tuple[str, int]] = {}
    for label, answer, count in mistakes.triples():  # the most frequent come first
        taken_for.setdefault(label, (names[answer], count))
    return [
        _Class(
            index,
            names[index],
            int(support[index]),
            wilson(right[index], support[index]) if support[index] else None,
            float(precision[index]) if answered[index] else None,
            float(f1[index]) if support[index] or answered[index] else None,
            taken_for.get(index),
        )
        for index in indices.tolist()
    ]


def _class_table(model: str, classes: Sequence[_Class], measured: Sequence[_Class]) -> Table:
    shown = [*measured, *(each for each in classes if not each.recall)] if len(classes) <= _FEW else measured[:_WORST]
    which = "each class" if len(classes) <= _FEW else f"the {len(shown)} worst of {len(classes):,} classes"
    rest = "" if len(classes) <= _FEW else " classes.csv has all."
    return Table(
        "classes",
        f"Of {model}, {which}, those with the lowest recall first.{rest}",
        ("class", "images", "recall", "precision", "F1", "most often taken for (images)"),
        tuple((each.name, each.support, each.recall, each.precision, each.f1, each.mistaken) for each in shown),
    )


def _pair_table(model: str, mistakes: _Confusion, classes: Sequence[_Class]) -> Table:
    pairs = mistakes.triples()[:_WORST]
    return Table(
        "confused_pairs",
        f"What {model} confuses most often: {len(pairs)} of {len(mistakes.count):,} pairs of label and answer.",
        ("label", "answer", "images", "of this label's images"),
        tuple((classes[t].name, classes[s].name, count, wilson(count, classes[t].support)) for t, s, count in pairs),
    )


def _as_csv(classes: Sequence[_Class]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("index", "class", "images", "recall", "recall_low", "recall_high", "precision", "f1")
    writer.writerow((*columns, "most_often_taken_for", "times"))
    for each in classes:
        recall = (each.recall.value, each.recall.low, each.recall.high) if each.recall else (None,) * 3
        taken_for = each.taken_for or (None, None)
        cells = (each.index, each.name, each.support, *recall, each.precision, each.f1, *taken_for)
        writer.writerow(map(csv_cell, cells))
    return text.getvalue().encode()


def _recall_picture(model: str, measured: Sequence[_Class]) -> Picture:
    mean = sum(each.recall.value for each in measured) / len(measured)
    is_few = len(measured) <= _FEW
    named = measured if is_few else measured[:_WORST]
    with drawing(6.4 if is_few else 10.5, max(1.3 + 0.2 * len(named), 2.2)) as figure:
        all_axes = figure.subplots(1, 1 if is_few else 2, squeeze=False, width_ratios=[1] if is_few else [1.2, 1])[0]
        if not is_few:
            _draw_recall_curve(all_axes[0], measured, mean)
            all_axes[-1].set_title(f"the {len(named)} worst", fontsize="medium")
        _draw_recalls(all_axes[-1], named, mean if is_few else None)
        png = as_png(figure)
    worst = shortlist((f"{each.name} {each.recall.value:.4f}" for each in measured), 5)
    caption = (
        f"Recall of {model} on each of {len(measured):,} classes that have images, with 95 % Wilson intervals; "
        f"the dashed line is their mean, the balanced accuracy, {mean:.4f}."
    )
    return Picture("recall_of_classes", png, caption, f"Recall of each class, the worst first: {worst}.")


def _draw_recall_curve(axes: Axes, measured: Sequence[_Class], mean: float) -> None:
    rank = np.arange(1, len(measured) + 1)
    low, value, high = np.array([(each.recall.low, each.recall.value, each.recall.high) for each in measured]).T
    axes.fill_between(rank, low, high, color=COLOURS[4], alpha=0.35, linewidth=0, label="95 % interval of each class")
    axes.plot(rank, value, color=COLOURS[0], label="recall")
    axes.axhline(mean, color="0.3", linestyle="--", linewidth=1, label="mean")
    axes.set(xlabel="classes, the worst first", ylabel="recall", xlim=(1, len(measured)), ylim=(0, 1.02))
    axes.legend(loc="lower right")


def _draw_recalls(axes: Axes, named: Sequence[_Class], mean: float | None) -> None:
    value = np.array([each.recall.value for each in named])
    below, above = zip(
        *((each.recall.value - each.recall.low, each.recall.high - each.recall.value) for each in named), strict=True
    )
    axes.errorbar(value, range(len(named)), xerr=(below, above), fmt="o", color=COLOURS[0], markersize=4.5, capsize=2)
    if mean is not None:
        axes.axvline(mean, color="0.3", linestyle="--", linewidth=1)
    names = _told_apart([name_in_picture(each.name) for each in named], [each.index for each in named])
    rows = [f"{name} ({each.support:,})" for name, each in zip(names, named, strict=True)]
    axes.set_yticks(range(len(named)), rows)
    axes.set(xlabel="recall", ylabel="class (images)", ylim=(len(named) - 0.4, -0.6), xlim=(-0.02, 1.02))
    axes.grid(axis="y", visible=False)


def _matrix_picture(model: str, true: np.ndarray, said: np.ndarray, names: Sequence[str]) -> Picture:
    counts = confusion_matrix(true, said, labels=np.arange(len(names)))
    support = np.bincount(true, minlength=len(names))
    shown = _in_picture(names, range(len(names)))
    png = _draw_matrix(counts, support, shown, shown)
    caption = (
        f"Confusion matrix of {model} on {counted(len(true), 'image')}: how many images of each label got each "
        "answer; the shade is their part of the label's images."
    )
    return Picture("confusion", png, caption, f"{caption} {_right_on_diagonal(counts, true)}", in_card=True)


def _right_on_diagonal(counts: np.ndarray, true: np.ndarray) -> str:
    return f"{int(np.trace(counts)):,} of {len(true):,} lie on the diagonal."


def _draw_matrix(counts: np.ndarray, support: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """A PNG of counts, (R, C), over the parts that they are of each row's images, (R,)."""
    parts = counts / np.maximum(support, 1)[:, None]
    longest = max(map(len, columns))
    is_turned, letter = longest > 3, 0.075
    cell = min(max(4.5 / len(rows), 0.36), 0.8)
    width, height = cell * len(columns) + letter * longest + 1.7, cell * len(rows) + letter * longest * is_turned + 0.8
    with drawing(width, height) as figure:
        axes = figure.add_subplot(xlabel="answer", ylabel="label")
        shades = np.where(counts > 0, parts, np.nan)
        image = axes.imshow(shades, cmap=f"{SEQUENTIAL}_r", vmin=0, vmax=1, aspect="equal")
        for (row, column), count in np.ndenumerate(counts):
            if count:
                ink = "w" if parts[row, column] > 0.5 else "k"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7.5, color=ink)
        axes.set_xticks(range(len(columns)), columns, rotation=90 if is_turned else 0)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label="part of the label's images", shrink=0.6)
        return as_png(figure)


def _block_picture(
    model: str, true: np.ndarray, said: np.ndarray, names: Sequence[str], mistakes: _Confusion
) -> Picture:
    """What can be read of a large matrix: the classes that are confused most, with their names."""
    block = _most_confused(mistakes)
    counts = confusion_matrix(true, said, labels=block)
    support = np.bincount(true, minlength=len(names))[block]
    counts = np.column_stack([counts, support - counts.sum(axis=1)])
    shown = _in_picture(names, block.tolist())
    png = _draw_matrix(counts, support, shown, [*shown, "any other"])
    caption = (
        f"Of the {len(names):,} classes the {len(block)} that {model} confuses most often, alike ones beside each "
        "other: how many images of each label got each answer; the shade is their part of the label's images."
    )
    pairs = shortlist((f"{names[t]} for {names[s]} ({count})" for t, s, count in mistakes.triples()), 5, "; ")
    return Picture("confusion", png, caption, f"The most frequent mistakes, label and answer: {pairs}.", in_card=True)


def _most_confused(mistakes: _Confusion) -> np.ndarray:
    """The classes of the most frequent mistakes, two at least, in an order in which those alike are neighbours."""
    block: dict[int, None] = {}
    for label, answer, _ in mistakes.triples():
        if len(block.keys() | {label, answer}) > _BLOCK:
            break
        block |= {label: None, answer: None}
    place = {index: position for position, index in enumerate(block)}
    alike = np.zeros((len(block), len(block)))
    for label, answer, count in mistakes.triples():
        if label in place and answer in place:
            alike[place[label], place[answer]] += count
            alike[place[answer], place[label]] += count
    far = 1 / (1 + alike)
    np.fill_diagonal(far, 0)
    order = leaves_list(linkage(squareform(far), method="average", optimal_ordering=True))
    return np.array(list(block))[order]


def _mistakes_picture(model: str, mistakes: _Confusion) -> Picture:
    """Where in a large matrix the mistakes lie: near its diagonal, all over, in the column of one answer."""
    num_classes, cells = mistakes.num_classes, min(mistakes.num_classes, _CELLS)
    edges = np.linspace(-0.5, num_classes - 0.5, cells + 1)
    counts, _, _ = np.histogram2d(mistakes.true, mistakes.said, bins=(edges, edges), weights=mistakes.count)
    most = int(counts.max())
    ticks = [digit * 10**power for power in range(8) for digit in (1, 2, 5) if digit * 10**power <= most]
    each = num_classes / cells
    where = "" if each == 1 else f" in a point of {each:.3g} by {each:.3g} classes"
    with drawing(6.6, 5.4) as figure:
        axes = figure.add_subplot(xlabel="answer, number of the class", ylabel="label, number of the class")
        # One mistake must be seen on white, so the scale of colours begins below it.
        shades, scale = np.where(counts > 0, counts, np.nan), LogNorm(0.4, max(most, 2))
        image = axes.pcolormesh(edges, edges, shades, cmap=f"{SEQUENTIAL}_r", norm=scale)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        bar = figure.colorbar(image, ax=axes, label=f"mistakes{where}", shrink=0.8, ticks=ticks, format="%d")
        bar.ax.set_ylim(1, max(most, 2))
        bar.ax.minorticks_off()
        png = as_png(figure)
    caption = (
        f"Where the {counted(int(mistakes.count.sum()), 'mistake')} of {model} lie in the confusion matrix of all "
        f"{num_classes:,} classes, which are in their order."
    )
    most_answered = np.bincount(mistakes.said, mistakes.count).max()
    alt = f"{caption} The class that is most often answered wrongly is so {int(most_answered):,} times."
    return Picture("confusion_of_all_classes", png, caption, alt)
