"""Contract: who decides like whom, counted as scikit-learn counts it and tested as textbooks do; and where student and
teacher part, image by image."""

import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score
from support import images as pictures
from support.verdicts import (
    images_with,
    labels_of,
    logits_for,
    one_head,
    several_labels,
    two_heads,
    verdicts,
)

from hf_deit.evaluation.accuracy.intervals import paired_difference
from hf_deit.evaluation.agreement.agreement import agreement_section, compare, disagreement, teacher_section
from hf_deit.evaluation.answers.verdicts import CLASS_HEAD, SUM_OF_SOFTMAXES


def random_decisions(count: int, num_images: int = 200, num_classes: int = 7) -> np.ndarray:
    """Decisions that often agree, and a truth that they are often right about, in the first row."""
    random = np.random.default_rng(3)
    truth = random.integers(0, num_classes, num_images)
    others = random.integers(0, num_classes, (count, num_images))
    return np.vstack([truth, np.where(random.random((count, num_images)) < 0.7, truth, others)])


def of(section, name: str):
    return next(table for table in section.tables if table.name == name)


# The matrix


def test_disagreement_is_one_less_the_agreement():
    decisions = random_decisions(4)
    matrix = disagreement(decisions)
    for i, j in itertools.product(range(5), repeat=2):
        assert matrix[i, j] == pytest.approx(1 - accuracy_score(decisions[i], decisions[j]), abs=1e-12)
    assert np.array_equal(matrix, matrix.T) and (np.diag(matrix) == 0).all()
    assert disagreement(np.array([[0, 1], [0, 2]])).tolist() == [[0, 0.5], [0.5, 0]]


def test_the_matrix_has_the_truth_and_three_rows_of_a_model_with_two_heads():
    truth, *rows = random_decisions(3)
    cls, distillation = logits_for(rows[0], 7), logits_for(rows[1], 7, seed=1)
    answers = [two_heads("student", cls, distillation), one_head("teacher", logits_for(rows[2], 7))]
    section = agreement_section(answers, labels_of(truth, "abcdefg"))
    both = (cls + distillation).argmax(axis=1)
    expected = [truth, rows[0], rows[1], both, rows[2]]
    names = [
        "ground truth",
        "student, class head",
        "student, distillation head",
        "student, both heads, mean of logits",
        "teacher",
    ]
    assert section.numbers["names"] == names
    for (i, one), (j, other) in itertools.product(enumerate(expected), repeat=2):
        assert section.numbers["disagreement"][i][j] == pytest.approx(1 - accuracy_score(one, other), abs=1e-12)
    table = of(section, "disagreement")
    assert table.columns == ("", "1", "2", "3", "4", "5") and table.in_card
    assert [row[0] for row in table.rows] == [f"{index}. {name}" for index, name in enumerate(names, 1)]
    assert [list(row[1:]) for row in table.rows] == section.numbers["disagreement"]
    assert json.loads(json.dumps(section.numbers)) == section.numbers
    assert section.numbers["images_with_ground_truth"] == section.numbers["images_between_models"] == 200


@pytest.mark.parametrize(("rule", "third"), [(SUM_OF_SOFTMAXES, "sum of softmaxes"), (CLASS_HEAD, "mean of logits")])
def test_both_heads_stand_in_the_matrix_as_the_model_fuses_them(rule, third):
    random = np.random.default_rng(0)
    cls, distillation = random.normal(size=(2, 50, 3)).astype(np.float32)
    answers = [one_head("a", cls), two_heads("b", cls, distillation, rule)]
    section = agreement_section(answers, labels_of(np.zeros(50, dtype=int)))
    assert section.numbers["names"][-1] == f"b, both heads, {third}"
    first = section.numbers["comparisons"][0]
    assert (first["first"], first["second"]) == (f"b, {rule.words}", "a")  # by its own rule against the first model


def test_any_accepted_label_agrees_with_the_truth_and_unlabelled_images_count_between_models_alone():
    labels = several_labels([[0, 1], [2], [], [1], []])
    one, other = logits_for([1, 0, 2, 1, 0], 3), logits_for([2, 2, 0, 1, 0], 3)
    section = agreement_section([one_head("one", one), one_head("other", other)], labels)
    assert np.allclose(section.numbers["disagreement"], [[0, 1 / 3, 1 / 3], [1 / 3, 0, 3 / 5], [1 / 3, 3 / 5, 0]])
    assert (section.numbers["images_with_ground_truth"], section.numbers["images_between_models"]) == (3, 5)
    assert "3 labelled images" in section.text[1] and "5 images" in section.text[1] and "accepted" in section.text[1]
    comparison = section.numbers["comparisons"][0]  # on the labelled images: "other" is wrong on 0, "one" on 1
    assert (comparison["only_first_right"], comparison["only_second_right"]) == (1, 1)


def test_without_labels_only_models_are_compared():
    section = agreement_section(
        [one_head(name, logits_for(decisions, 3)) for name, decisions in (("a", [0, 1]), ("b", [0, 2]))],
        labels_of([-1, -1]),
    )
    assert section.numbers["names"] == ["a", "b"] and section.numbers["disagreement"] == [[0, 0.5], [0.5, 0]]
    assert "comparisons" not in section.numbers and len(section.tables) == 1
    assert not any("truth" in paragraph or "McNemar" in paragraph for paragraph in section.text)


def test_one_model_with_one_head_has_nobody_to_agree_with():
    assert agreement_section([one_head("a", logits_for([0, 1], 3))], labels_of([0, 1])) is None


@pytest.mark.parametrize("count", [2, 30])
def test_the_heat_map_has_room_for_all(count):
    decisions = random_decisions(count)
    answers = [
        one_head(f"model {i} of a $rather long$ name \u732b{'!' * i}", logits_for(row, 7))
        for i, row in enumerate(decisions[1:])
    ]
    section = agreement_section(answers, labels_of(decisions[0], "abcdefg"))
    (picture,) = section.pictures
    image = Image.open(io.BytesIO(picture.png))
    assert max(image.size) < 2000 and picture.in_card == (count < 12)
    grey = np.asarray(image.convert("L"))
    for edge in (grey[:6], grey[-6:], grey[:, :6], grey[:, -4:]):
        assert edge.min() > 200  # nothing is cut off
    matrix = np.array(section.numbers["disagreement"])
    assert f"({matrix[np.triu_indices(count + 1, 1)].min():.4f})" in picture.alt


def test_models_that_always_agree_can_be_drawn():
    logits = logits_for([0, 1, 2], 3)
    section = agreement_section([one_head("a", logits), one_head("b", logits)], labels_of([0, 1, 2]))
    assert np.array(section.numbers["disagreement"]).max() == 0 and section.pictures


# Pairs


def right(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images two are right on, from the cells of the table."""
    cells = [both, first, second, neither]
    return np.repeat([True, True, False, False], cells), np.repeat([True, False, True, False], cells)


def exact_p(first: int, second: int) -> float:
    """McNemar's test by counting: what is at least as uneven, among all ways to share the images out."""
    total, less = first + second, min(first, second)
    return min(1.0, 2 * sum(math.comb(total, i) for i in range(less + 1)) / 2**total)


def test_textbook_values():
    """Approval of a prime minister, twice asked (Agresti, Categorical Data Analysis, table 10.1)."""
    found = compare("first", "second", *right(794, 150, 86, 570))
    assert (found.only_first, found.only_second) == (150, 86)
    assert found.difference.value == pytest.approx(0.04)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.021, 0.059), abs=5e-4)
    assert found.p_value == pytest.approx(3.716e-5, rel=1e-3)  # of mcnemar.exact of R's package exact2x2


@pytest.mark.parametrize(
    "cells", [(10, 3, 1, 2), (0, 5, 0, 0), (0, 0, 0, 4), (9, 0, 0, 0), (53, 16, 8, 9), (1, 20, 20, 1), (0, 0, 1, 0)]
)
def test_pairs_are_compared_as_counted_by_hand(cells):
    found = compare("a", "b", *right(*cells))
    swapped = compare("b", "a", *reversed(right(*cells)))
    assert found.p_value == pytest.approx(exact_p(cells[1], cells[2])) and found.p_value == swapped.p_value
    value, low, high = found.difference.value, found.difference.low, found.difference.high
    assert value == pytest.approx((cells[1] - cells[2]) / sum(cells))
    assert found.difference == paired_difference(*right(*cells))
    assert -1 <= low <= value <= high <= 1 and low < high
    assert (swapped.difference.low, swapped.difference.high) == pytest.approx((-high, -low))


def test_intervals_hold_the_true_difference_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    p = [0.6, 0.15, 0.05, 0.2]
    held = 0
    for counts in random.multinomial(60, p, size=400):
        interval = compare("a", "b", *right(*counts)).difference
        held += interval.low <= 0.1 <= interval.high
    assert 0.93 <= held / 400 <= 0.98


def test_each_model_is_compared_with_the_first_and_the_heads_of_each():
    truth, *rows = random_decisions(5)
    logits = [logits_for(row, 7, seed) for seed, row in enumerate(rows)]
    answers = [two_heads("s", *logits[:2]), one_head("t", logits[2]), two_heads("u", *logits[3:])]
    section = agreement_section(answers, labels_of(truth, "abcdefg"))
    s, u = (
        [f"{name}, {words}" for words in ("class head", "distillation head", "both heads, mean of logits")]
        for name in "su"
    )
    pairs = [("t", s[2]), (u[2], s[2]), *itertools.combinations(s, 2), *itertools.combinations(u, 2)]
    comparisons = section.numbers["comparisons"]
    assert [(each["first"], each["second"]) for each in comparisons] == pairs
    decisions = {
        name: row
        for name, row in zip(
            section.numbers["names"],
            [
                truth,
                *rows[:2],
                (logits[0] + logits[1]).argmax(1),
                rows[2],
                *rows[3:],
                (logits[3] + logits[4]).argmax(1),
            ],
            strict=True,
        )
    }
    for each in comparisons:
        first, second = (decisions[each[key]] == truth for key in ("first", "second"))
        b, c = int((first & ~second).sum()), int((second & ~first).sum())
        assert (each["only_first_right"], each["only_second_right"]) == (b, c)
        assert each["mcnemar_p"] == pytest.approx(exact_p(b, c))
    p = sorted(each["mcnemar_p"] for each in comparisons)
    count = len(p)
    harmonic = sum(1 / i for i in range(1, count + 1))  # Benjamini and Yekutieli's adjustment, step by step
    steps = [value * count * harmonic / rank for rank, value in enumerate(p, 1)]
    expected = [min(1, *steps[rank:]) if steps[rank:] else 1 for rank in range(count)]
    assert sorted(each["mcnemar_p_adjusted"] for each in comparisons) == pytest.approx(expected)
    rows = of(section, "mcnemar").rows
    assert len(rows) == count and "8 pairs were tested" in section.text[-1]
    assert rows[0][2:4] == (comparisons[0]["only_first_right"], comparisons[0]["only_second_right"])


# Student and teacher


def parting():
    #                 both  t    s   alike  differently  both  unlabelled
    labels = labels_of([0, 1, 2, 0, 1, 2, -1])
    student = verdicts("student", [0, 0, 2, 1, 0, 2, 1], seed=1)
    teacher = verdicts("teacher", [0, 1, 0, 1, 2, 2, 0], seed=2)
    return student, teacher, labels


def test_who_is_right_is_counted():
    student, teacher, labels = parting()
    section = teacher_section(student, teacher, images_with(labels))
    assert section.numbers["counts"] == {
        "both_right": 2,
        "only_teacher": 1,
        "only_student": 1,
        "both_wrong_alike": 1,
        "both_wrong_differently": 1,
    }
    assert (section.numbers["images"], section.numbers["labelled_images"], section.numbers["differ"]) == (7, 6, 4)
    assert [row[1:] for row in of(section, "student_and_teacher").rows] == [
        (2, 2 / 6),
        (1, 1 / 6),
        (1, 1 / 6),
        (1, 1 / 6),
        (1, 1 / 6),
    ]
    assert section.numbers["mcnemar_p"] == 1 and section.numbers["difference_of_accuracies"]["value"] == 0
    assert "The teacher makes 3 mistakes" in section.text[2]


def test_where_they_part_is_shown_and_listed_surest_first(monkeypatch):
    student, teacher, labels = parting()
    shown = {}

    def record(name, images, chosen, lines_of, **words):
        shown[name] = [lines_of(index) for index in chosen.tolist()]
        return ()

    monkeypatch.setattr("hf_deit.evaluation.agreement.agreement.contact_sheet", record)
    section = teacher_section(student, teacher, images_with(labels))
    assert {name: [lines[0] for lines in sheet] for name, sheet in shown.items()} == {
        "student_right_teacher_wrong": ["#2"],
        "teacher_right_student_wrong": ["#1"],
        "both_wrong_differently": ["#4"],
    }
    assert shown["both_wrong_differently"][0] == [
        "#4",
        "label bee",
        f"student {student.confidence[4]:.2f}: ape",
        f"teacher {teacher.confidence[4]:.2f}: cat",
    ]
    rows = list(csv.DictReader(io.StringIO(section.attachments[0].content.decode())))
    assert {row["index"]: row["who_is_right"] for row in rows} == {
        "1": "teacher",
        "2": "student",
        "4": "neither",
        "6": "",
    }
    sureness = [float(row["student_confidence"]) + float(row["teacher_confidence"]) for row in rows]
    assert sureness == sorted(sureness, reverse=True)


def test_images_without_labels_are_shown_where_student_and_teacher_differ():
    section = teacher_section(verdicts("s", [0, 1, 2]), verdicts("t", [0, 2, 1]), images_with(labels_of([-1] * 3)))
    assert [picture.name for picture in section.pictures] == ["student_and_teacher_differ"]
    assert not section.tables and "no labels" in section.text[0] and "counts" not in section.numbers


def test_two_right_answers_of_one_image_are_no_parting_of_ways():
    labels = several_labels([[0, 1], [2]])
    section = teacher_section(verdicts("s", [0, 2]), verdicts("t", [1, 2]), images_with(labels))
    assert section.numbers["counts"]["both_right"] == 2 and section.numbers["differ"] == 1 and not section.pictures
    (row,) = csv.DictReader(io.StringIO(section.attachments[0].content.decode()))
    assert (row["label"], row["who_is_right"]) == ("ape | bee", "both")


def test_a_student_that_always_agrees_leaves_nothing_to_show():
    labels = labels_of([0, 1, 2], pictures.NAMES)
    section = teacher_section(verdicts("s", [0, 1, 2]), verdicts("t", [0, 1, 2]), images_with(labels))
    assert not section.pictures and section.attachments[0].content.count(b"\n") == 1
    assert not any("mistake" in paragraph for paragraph in section.text)
