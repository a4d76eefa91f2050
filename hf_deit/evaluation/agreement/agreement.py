"""Who decides like whom: disagreement of models, heads and labels (the paper's Table 4), and tests of pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import binomtest, false_discovery_control

from ...errors import counted
from ..accuracy.intervals import paired_difference
from ..answers.answers import Answers
from ..answers.verdicts import CLASS_HEAD, DISTILLATION_HEAD, MEAN_OF_LOGITS, Rule, Verdicts
from ..images.images import EvaluationImages
from ..images.labels import Labels
from ..pictures import SEQUENTIAL, as_png, drawing, name_in_picture, width_of
from ..sections import Cell, Estimate, Picture, Section, Table
from .contact_sheets import SHOWN, Names, answer_lines, attachment, contact_sheet, label_words, paths_csv

GROUND_TRUTH = "ground truth"
_IN_CARD = 12  # rows of a matrix that still fits a card
_LONGEST_NAME = 48  # characters


@dataclass(frozen=True)
class Comparison:
    """Two deciders on the same labelled images.

    Attributes:
        first, second: their names.
        only_first: images on which the first alone is right: McNemar's b.
        only_second: on which the second alone is: McNemar's c.
        difference: accuracy of the first less that of the second, in [-1, 1].
        p_value: of McNemar's exact test, two-sided, of the hypothesis that both are equally often right.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    difference: Estimate
    p_value: float

    def as_json(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "only_first_right": self.only_first,
            "only_second_right": self.only_second,
            "difference_of_accuracies": self.difference.as_json(),
            "mcnemar_p": self.p_value,
        }


def compare(first: str, second: str, first_right: np.ndarray, second_right: np.ndarray) -> Comparison:
    """Compares two deciders by McNemar's test, and estimates by how much they differ.

    Args:
        first, second: their names.
        first_right, second_right: (n,) bool, which of n ≥ 1 images they are right on.
    """
    only_first = int(np.count_nonzero(first_right & ~second_right))
    only_second = int(np.count_nonzero(second_right & ~first_right))
    discordant = only_first + only_second
    p_value = binomtest(only_first, discordant).pvalue if discordant else 1.0
    return Comparison(
        first, second, only_first, only_second, paired_difference(first_right, second_right), float(p_value)
    )


def disagreement(decisions: np.ndarray) -> np.ndarray:
    """The fraction of images on which two decide differently.

    Args:
        decisions: (M, N) integers, the classes that M deciders give to N images.

    Returns:
        (M, M) float64 in [0, 1], symmetric, 0 on its diagonal.
    """
    return squareform(pdist(decisions, metric="hamming"), checks=False)


def agreement_section(answers: Sequence[Answers], labels: Labels) -> Section | None:
    """The matrix of different decisions of models, their heads and the ground truth, and tests of pairs.

    A model with two heads has three rows: the class head, the distillation head, and both. Each model is compared by
    its own rule with the first one, and the heads of a model with each other.

    Args:
        answers: of one or more models, to the same images.
        labels: of these.

    Returns:
        None of a single model with one head, which has nobody to agree with.
    """
    names, decisions, pairs = _deciders(answers)
    if len(names) < 2:
        return None
    is_labelled = labels.is_labelled
    num_labelled = int(is_labelled.sum())
    matrix = disagreement(np.stack(decisions))
    text = [
        "The fraction of images on which two decide differently: 0 is the same decision on each image. It says how "
        "alike two models are, which their accuracies do not: two that are equally good may fail on different images. "
        "If a student agrees with its teacher more than a model does that was trained without that teacher, it has "
        "taken something over."
    ]
    tables, numbers, shown = [], {}, names
    if num_labelled:
        is_right = [labels.are_right(each)[is_labelled] for each in decisions]
        wrong = np.array([np.mean(~right) for right in is_right])
        matrix = np.block([[np.zeros((1, 1)), wrong[None]], [wrong[:, None], matrix]])
        shown = [GROUND_TRUTH, *names]
        several = " (any of an image's accepted labels is right)" if labels.accepted is not None else ""
        text.append(
            f"The ground truth's row is the error rate{several}, on {counted(num_labelled, 'labelled image')}; all "
            f"other cells are of {counted(len(labels), 'image')}."
        )
        comparisons = [compare(names[i], names[j], is_right[i], is_right[j]) for i, j in pairs]
        adjusted = false_discovery_control([each.p_value for each in comparisons], method="by").tolist()
        text.append(_words_on_tests(len(comparisons)))
        tables.append(_comparison_table(comparisons, adjusted))
        numbers["comparisons"] = [
            each.as_json() | {"mcnemar_p_adjusted": value} for each, value in zip(comparisons, adjusted, strict=True)
        ]
        numbers["adjustment"] = "Benjamini-Yekutieli"
    numbers |= {
        "names": shown,
        "disagreement": matrix.tolist(),
        "images_with_ground_truth": num_labelled,
        "images_between_models": len(labels),
    }
    tables = (_matrix_table(shown, matrix), *tables)
    return Section("agreement", "Agreement", tuple(text), tables, (_heat_map(shown, matrix),), numbers=numbers)


def _deciders(answers: Sequence[Answers]) -> tuple[list[str], list[np.ndarray], list[tuple[int, int]]]:
    """Names and decisions of the models' rows in the matrix, and the pairs of rows that are compared."""
    names: list[str] = []
    decisions: list[np.ndarray] = []
    pairs: list[tuple[int, int]] = []
    own: list[int] = []  # each model's row, in which it answers by its own rule
    for each in answers:
        rules = _rules_in_matrix(each)
        rows = range(len(names), len(names) + len(rules))
        own.append(rows[rules.index(each.rule)])
        pairs += combinations(rows, 2)
        verdicts = [each.verdicts(rule) for rule in rules]
        names += [one.name for one in verdicts]
        decisions += [one.decisions for one in verdicts]
    return names, decisions, [(row, own[0]) for row in own[1:]] + pairs


def teacher_section(
    student: Verdicts, teacher: Verdicts, images: EvaluationImages, *, num_shown: int = SHOWN
) -> Section:
    """Where a student and its teacher part: how often each is right, and the images on which they differ.

    Args:
        student, teacher: what they answer to the images.
        images: with their labels.
        num_shown: images on a contact sheet, at least 1.
    """
    labels = images.labels
    differ = student.decisions != teacher.decisions
    sureness = student.confidence + teacher.confidence
    names = Names(labels.names)
    order = np.flatnonzero(differ)
    order = order[np.argsort(-sureness[order], kind="stable")]
    student_right, teacher_right = labels.are_right(student.decisions), labels.are_right(teacher.decisions)
    parts = {  # of those on which they differ; where several labels make both right, an image is in none
        "student_right_teacher_wrong": ("the student is right and the teacher wrong", student_right & ~teacher_right),
        "teacher_right_student_wrong": ("the teacher is right and the student wrong", teacher_right & ~student_right),
        "both_wrong_differently": (
            "both are wrong, in different ways",
            labels.is_labelled & ~student_right & ~teacher_right,
        ),
    }
    if not labels.is_labelled.any():
        parts = {"student_and_teacher_differ": ("the student and the teacher differ", differ)}
    pictures = [
        picture
        for name, (words, mask) in parts.items()
        for picture in contact_sheet(
            name,
            images,
            order[mask[order]],
            lambda index: answer_lines(names, images, index, student=student, teacher=teacher),
            title=f"Where {words}, those first on which the two are surest",
            below=f"Below each its number, its label, and both answers with their confidence.{names.note}",
            num_shown=num_shown,
        )
    ]
    csv = paths_csv(
        images,
        order,
        ("label", "student", "student_confidence", "teacher", "teacher_confidence", "who_is_right"),
        lambda index: _parting_cells(index, labels, student, teacher, student_right, teacher_right),
    )
    caption = f"All {counted(len(order), 'image')} on which the student and the teacher differ, surest first."
    text, tables, numbers = _worth(student, teacher, labels, student_right, teacher_right)
    return Section(
        "teacher",
        "Student and teacher",
        text,
        tables,
        tuple(pictures),
        (attachment("student_and_teacher.csv", csv, caption),),
        numbers,
    )


def _worth(
    student: Verdicts, teacher: Verdicts, labels: Labels, student_right: np.ndarray, teacher_right: np.ndarray
) -> tuple[tuple[str, ...], tuple[Table, ...], dict[str, Any]]:
    """Who was right how often: the text, the table and the numbers."""
    differ = student.decisions != teacher.decisions
    numbers: dict[str, Any] = {
        "student": student.name,
        "teacher": teacher.name,
        "images": len(labels),
        "differ": int(differ.sum()),
    }
    who = (
        f"{student.words} is the student, {teacher.words} the teacher. They differ on {differ.sum():,} of "
        f"{counted(len(differ), 'image')}."
    )
    is_labelled = labels.is_labelled
    total = int(is_labelled.sum())
    if not total:
        return (f"{who} The images have no labels, so nobody can tell who is right.",), (), numbers
    wrong = is_labelled & ~student_right & ~teacher_right
    counts = {
        "both_right": ("both are right", student_right & teacher_right),
        "only_teacher": ("only the teacher is right", teacher_right & ~student_right),
        "only_student": ("only the student is right", student_right & ~teacher_right),
        "both_wrong_alike": ("both are wrong, with the same answer", wrong & ~differ),
        "both_wrong_differently": ("both are wrong, with different answers", wrong & differ),
    }
    found = {key: int(mask.sum()) for key, (_, mask) in counts.items()}
    rows: list[tuple[Cell, ...]] = [(words, found[key], found[key] / total) for key, (words, _) in counts.items()]
    table = Table(
        "student_and_teacher",
        f"Who is right, on {counted(total, 'labelled image')}.",
        ("who", "images", "fraction"),
        tuple(rows),
        in_card=True,
    )
    result = compare(student.name, teacher.name, student_right[is_labelled], teacher_right[is_labelled])
    numbers |= {
        "labelled_images": total,
        "counts": found,
        "difference_of_accuracies": result.difference.as_json(),
        "mcnemar_p": result.p_value,
    }
    text = [
        who,
        f"The student's accuracy less the teacher's is {result.difference} (95 % interval; McNemar's exact test: "
        f"p {_p_words(result.p_value)}).",
    ]
    missed = found["only_student"] + found["both_wrong_alike"] + found["both_wrong_differently"]
    if missed:
        text.append(
            f"The teacher makes {counted(missed, 'mistake')}. The student gives the same wrong answer to "
            f"{found['both_wrong_alike']:,} of these images (taken over from the teacher, hard for both, or a wrong "
            f"label), and is right on {found['only_student']:,}."
        )
    text.append(
        "This shows what the student kept of its teacher. Whether it learnt more with it than it would have without "
        "takes a student trained without one, compared on the same images."
    )
    return tuple(text), (table,), numbers


def _parting_cells(
    index: int,
    labels: Labels,
    student: Verdicts,
    teacher: Verdicts,
    student_right: np.ndarray,
    teacher_right: np.ndarray,
) -> list[Cell]:
    who = {(True, False): "student", (False, True): "teacher", (True, True): "both", (False, False): "neither"}
    is_known = labels.values[index] >= 0
    return [
        label_words(labels, index),
        labels.names[student.decisions[index]],
        float(student.confidence[index]),
        labels.names[teacher.decisions[index]],
        float(teacher.confidence[index]),
        who[bool(student_right[index]), bool(teacher_right[index])] if is_known else None,
    ]


def _rules_in_matrix(answers: Answers) -> tuple[Rule, ...]:
    """The rules by which a model has a row in the matrix: of two heads each, and both as it fuses them itself."""
    if CLASS_HEAD not in answers.rules:
        return (answers.rule,)
    both = MEAN_OF_LOGITS if answers.rule in (CLASS_HEAD, DISTILLATION_HEAD) else answers.rule
    return (CLASS_HEAD, DISTILLATION_HEAD, both)


def _matrix_table(names: Sequence[str], matrix: np.ndarray) -> Table:
    """Its columns have the rows' numbers, as there is no room for many names side by side."""
    return Table(
        "disagreement",
        "Fraction of images that are classified differently; the columns have the numbers of the rows.",
        ("", *(str(index) for index in range(1, len(names) + 1))),
        tuple(
            (f"{index}. {name}", *map(float, values))
            for index, (name, values) in enumerate(zip(names, matrix, strict=True), 1)
        ),
        in_card=len(names) <= _IN_CARD,
    )


def _comparison_table(comparisons: Sequence[Comparison], adjusted: Sequence[float]) -> Table:
    return Table(
        "mcnemar",
        "Pairs of deciders on the labelled images: McNemar's exact test, two-sided, and the difference of the "
        "accuracies with its 95 % interval.",
        ("A", "B", "only A right", "only B right", "accuracy of A less that of B", "p", "p, adjusted"),
        tuple(
            (
                each.first,
                each.second,
                each.only_first,
                each.only_second,
                each.difference,
                _p_words(each.p_value),
                _p_words(value),
            )
            for each, value in zip(comparisons, adjusted, strict=True)
        ),
    )


def _words_on_tests(count: int) -> str:
    return (
        "McNemar's test asks of the images on which only one of two is right whether chance could share them out so. "
        f"The adjusted p takes into account that {'1 pair was' if count == 1 else f'{count} pairs were'} tested, on "
        "the same images (Benjamini and Yekutieli's control of the false discovery rate). The tests and intervals are "
        "about other images of the same kind; they say nothing of another training with another seed."
    )


def _p_words(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _heat_map(names: Sequence[str], matrix: np.ndarray) -> Picture:
    count = len(names)
    numbers = [str(index) for index in range(1, count + 1)]
    rows = [
        f"{name_in_picture(name, _LONGEST_NAME, end=30)}   {number}"
        for name, number in zip(names, numbers, strict=True)
    ]
    is_large = count > _IN_CARD
    cell, digits, size = (0.31, 2, 6.5) if is_large else (0.55, 3, 9)  # inches, of a fraction, points
    high = matrix.max() or 1.0
    with drawing() as figure:
        side, left = count * cell, max(width_of(row, 9) for row in rows) + 0.2
        width, height = left + side + 1.0, side + 0.4
        figure.set_size_inches(width, height)
        figure.set_layout_engine("none")  # which cuts off names beside a bar
        axes = figure.add_axes((left / width, 0.1 / height, side / width, side / height), facecolor="#eeeeee")
        bar = figure.add_axes(((left + side + 0.15) / width, 0.1 / height, 0.15 / width, side / height))
        shades = axes.imshow(np.ma.array(matrix, mask=np.eye(count)), cmap=SEQUENTIAL, vmin=0, vmax=high)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.set_yticks(range(count), rows)
        axes.set_xticks(range(count), numbers)
        for i, j in np.ndindex(count, count):
            words = f"{matrix[i, j]:.{digits}f}"
            words = words.removeprefix("0") if is_large else words
            colour = "black" if i == j or matrix[i, j] > 0.55 * high else "white"
            axes.text(j, i, words, ha="center", va="center", color=colour, fontsize=size)
        figure.colorbar(shades, cax=bar, label="fraction differing")
        png = as_png(figure)
    pairs = [(float(matrix[i, j]), f"{names[i]} and {names[j]}") for i, j in combinations(range(count), 2)]
    (least, alike), (most, unlike) = min(pairs), max(pairs)
    return Picture(
        "disagreement",
        png,
        "Fraction of images that are classified differently: the darker, the more alike. The columns have the numbers "
        "of the rows.",
        f"Heat map of {count} times {count} fractions. Most alike are {alike} ({least:.4f}), least {unlike} "
        f"({most:.4f}).",
        in_card=not is_large,
    )
