"""Every accuracy is what scikit-learn, timm and the formulas of the textbooks say, and its pictures can be drawn."""

import csv
import io
import json
from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse
from sklearn import metrics
from support.planted_answers import AnswersInChunks, one_head, some_labels, some_logits, two_heads
from timm.data.real_labels import RealLabelsImagenet
from timm.utils import accuracy as timm_accuracy

from hf_deit.evaluation.accuracy.accuracy import accuracy_section, top_accuracy
from hf_deit.evaluation.accuracy.intervals import paired_difference, wilson
from hf_deit.evaluation.answers.verdicts import SINGLE, SINGLE_HEAD, SUM_OF_SOFTMAXES
from hf_deit.evaluation.images.labels import Labels
from hf_deit.evaluation.pictures import name_in_picture
from hf_deit.evaluation.sections import Estimate, Section


def table_of(section: Section, name: str) -> dict[str, list]:
    """Its columns by their headings."""
    table = next(table for table in section.tables if table.name == name)
    return {column: list(cells) for column, cells in zip(table.columns, zip(*table.rows, strict=True), strict=True)}


def pictures_of(section: Section) -> dict[str, Image.Image]:
    return {picture.name: Image.open(io.BytesIO(picture.png)) for picture in section.pictures}


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 360), (350, 360), (41_000, 50_000)])
def test_wilson_intervals_follow_the_formula(k, n):
    z = NormalDist().inv_cdf(0.975)
    p = k / n
    middle, reach = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [p, (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)]
    assert list(wilson(k, n).as_json().values()) == pytest.approx(expected, abs=1e-12)


def both_right(both: int, only_first: int, only_second: int, neither: int) -> Estimate:
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    return paired_difference(first, second)


def test_paired_differences_are_newcombes():
    assert str(both_right(36, 12, 2, 0)) == "0.2000 [0.0569, 0.3404]"  # published in his table II
    # The correlation of large counts is corrected, which the published example does not show.
    found, n = both_right(60, 7, 3, 30), 100
    p, q = wilson(67, n), wilson(63, n)
    phi = (60 * 30 - 7 * 3 - n / 2) / sqrt(67 * 33 * 63 * 37)
    low = sqrt((p.value - p.low) ** 2 - 2 * phi * (p.value - p.low) * (q.high - q.value) + (q.high - q.value) ** 2)
    high = sqrt((p.high - p.value) ** 2 - 2 * phi * (p.high - p.value) * (q.value - q.low) + (q.value - q.low) ** 2)
    assert [found.low, found.high] == pytest.approx([0.04 - low, 0.04 + high])
    there, back = both_right(50, 7, 1, 42), both_right(50, 1, 7, 42)
    assert [there.low, there.high] == pytest.approx([-back.high, -back.low])
    same = both_right(40, 0, 0, 60)
    assert same.value == 0 and -0.1 < same.low < 0 < same.high < 0.1


def test_paired_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        hard = rng.random(200)
        first, second = hard < 0.85 + 0.1 * rng.normal(size=200), hard < 0.75 + 0.1 * rng.normal(size=200)
        found = paired_difference(first, second)
        held.append(found.low <= TRUE_DIFFERENCE <= found.high)
    assert 0.92 <= np.mean(held) <= 0.98


# E[clip(0.85 + 0.1 x, 0, 1)] - E[clip(0.75 + 0.1 x, 0, 1)] of a normal x, by the formula of a clipped normal.
TRUE_DIFFERENCE = 0.85 - 0.1 * (NormalDist().pdf(1.5) - 1.5 * NormalDist().cdf(-1.5)) - 0.75
TRUE_DIFFERENCE += 0.1 * (NormalDist().pdf(2.5) - 2.5 * NormalDist().cdf(-2.5))


def test_every_number_is_that_of_timm_and_scikit_learn():
    labels = some_labels(300, 10, unlabelled=13)
    student, other = two_heads(labels, rule=SUM_OF_SOFTMAXES), one_head(labels, "other", skill=2.5)
    section = accuracy_section([student, other], labels, teacher="other", images="300 images of nothing")
    assert "on 300 images of nothing, with 95 %" in section.tables[0].caption
    softmax = [torch.from_numpy(logits).double().softmax(1) for logits in student.logits.values()]
    scores = {
        ("student", "class"): torch.from_numpy(student.logits["class"]),
        ("student", "distillation"): torch.from_numpy(student.logits["distillation"]),
        ("student", "logits"): torch.from_numpy(sum(student.logits.values())),
        ("student", "softmax"): softmax[0] + softmax[1],
        ("other", "answer"): torch.from_numpy(other.logits["answer"]),
    }
    true = labels.values[13:]
    found = section.numbers["contenders"]
    assert {(model, rule) for model, rules in found.items() for rule in rules} == scores.keys()
    for (model, rule), values in scores.items():
        row, said = found[model][rule], values[13:].argmax(1).numpy()
        top_1, top_5 = timm_accuracy(values[13:], torch.from_numpy(true), topk=(1, 5))
        assert row["top_1"]["value"] == pytest.approx(top_1.item() / 100)
        assert row["top_5"]["value"] == pytest.approx(top_5.item() / 100)
        assert row["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(true, said))
        assert row["macro_f1"] == pytest.approx(metrics.f1_score(true, said, average="macro"))
        assert row["num_images"] == 287
        assert row["is_own_rule"] == (rule in ("softmax", "answer"))
    said = scores["student", "softmax"][13:].argmax(1).numpy()
    classes = section.numbers["classes"]
    expected = metrics.precision_recall_fscore_support(true, said)
    assert [each["precision"] for each in classes] == pytest.approx(expected[0])
    assert [each["recall"]["value"] for each in classes] == pytest.approx(expected[1])
    assert [each["f1"] for each in classes] == pytest.approx(expected[2])
    assert [each["support"] for each in classes] == list(expected[3])
    matrix = np.zeros((10, 10), int)
    for label, answer, count in section.numbers["confusion"]:
        matrix[label, answer] = count
    assert (matrix == metrics.confusion_matrix(true, said)).all()
    right = {
        name: scores[name][13:].argmax(1).numpy() == true for name in (("student", "softmax"), ("other", "answer"))
    }
    difference = right["other", "answer"].mean() - right["student", "softmax"].mean()
    assert section.numbers["differences"]["other"]["value"] == pytest.approx(difference)
    assert (section.numbers["num_images"], section.numbers["num_unlabelled"]) == (287, 13)
    assert "13 images without a label are left out" in section.text[0]
    shown = table_of(section, "accuracy")
    assert shown["model"] == ["student"] * 4 + ["other (teacher)"]
    assert [words.endswith("(its own)") for words in shown["answer by"]] == [False, False, False, True, False]
    worst = table_of(section, "classes")
    assert [str(cell) for cell in worst["recall"]] == sorted(map(str, worst["recall"]))
    json.dumps(section.numbers, allow_nan=False)


def test_several_right_labels_are_counted_as_timm_does(tmp_path):
    rng = np.random.default_rng(0)
    answers = one_head(some_labels(200, 20), skill=1)
    accepted = [sorted(rng.choice(20, rng.integers(0, 4), replace=False).tolist()) for _ in range(200)]
    (tmp_path / "real.json").write_text(json.dumps(accepted))
    names = [f"ILSVRC2012_val_{index + 1:08d}.JPEG" for index in range(200)]
    timm_real = RealLabelsImagenet(names, str(tmp_path / "real.json"))
    timm_real.add_result(torch.from_numpy(answers.logits["answer"]))
    rows = np.repeat(np.arange(200), [len(each) for each in accepted])
    columns = np.concatenate([np.array(each, int) for each in accepted])
    matrix = sparse.csr_array((np.ones(len(rows), bool), (rows, columns)), shape=(200, 20))
    values = np.array([each[0] if each else -1 for each in accepted])
    labels = Labels(tuple(map(str, range(20))), values, matrix)
    section = accuracy_section([answers], labels)
    row = section.numbers["contenders"]["plain"]["answer"]
    assert row["top_1"]["value"] == pytest.approx(timm_real.get_accuracy(1) / 100)
    assert row["top_5"]["value"] == pytest.approx(timm_real.get_accuracy(5) / 100)
    assert row["num_images"] == sum(map(bool, accepted))
    assert row["balanced_accuracy"] is None and row["macro_f1"] is None
    assert [table.name for table in section.tables] == ["accuracy"] and "classes" not in section.numbers
    assert any("several right labels" in paragraph for paragraph in section.text)


def test_classes_without_images_count_as_scikit_learn_has_it():
    labels = Labels(("a", "b", "c", "d"), np.array([0, 0, 1, 1, 1]))
    said = np.array([0, 2, 1, 1, 0])
    section = accuracy_section([AnswersInChunks("model", {SINGLE: np.eye(4, dtype=np.float32)[said]})], labels)
    row = section.numbers["contenders"]["model"]["answer"]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert row["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels.values, said))
    expected = metrics.f1_score(labels.values, said, average="macro", zero_division=0)  # of "a", "b" and "c"
    assert row["macro_f1"] == pytest.approx(expected) and row["top_5"] is None
    assert any("2 of the 4 classes have no image here" in paragraph for paragraph in section.text)
    assert [each["recall"] is None for each in section.numbers["classes"]] == [False, False, True, True]
    assert [each["precision"] for each in section.numbers["classes"]] == [0.5, 1.0, 0.0, None]
    assert [each["f1"] for each in section.numbers["classes"]] == pytest.approx([0.5, 0.8, 0, None])
    assert table_of(section, "classes")["class"] == ["a", "b", "c", "d"]
    assert "top-5" not in table_of(section, "accuracy")


@pytest.mark.parametrize(("num_classes", "n", "skill"), [(2, 1, 50), (30, 99, 1.5), (31, 99, 50), (31, 99, 1.5)])
def test_pictures_of_any_number_of_classes(num_classes, n, skill):
    labels = some_labels(n, num_classes)
    section = accuracy_section([one_head(labels, skill=skill)], labels)
    pictures = pictures_of(section)
    assert max(max(picture.size) for picture in pictures.values()) < 2000
    has_mistakes = section.numbers["contenders"]["plain"]["answer"]["top_1"]["value"] < 1
    is_small = num_classes <= 30
    expected = {"recall_of_classes"} | ({"confusion"} if is_small or has_mistakes else set())
    assert pictures.keys() == expected | (set() if is_small or not has_mistakes else {"confusion_of_all_classes"})


def test_of_many_classes_the_worst_are_named_and_all_are_in_a_file():
    values = some_labels(3000, 100).values
    labels = Labels((*(f"class {index}" for index in range(99)), "=1\n2"), values)
    logits = some_logits(labels, skill=4)
    logits[labels.values == 42] = np.eye(100)[17]  # class 42 is always taken for 17
    section = accuracy_section([AnswersInChunks("model", {SINGLE: logits})], labels)
    worst = table_of(section, "classes")
    times = int((labels.values == 42).sum())
    assert worst["class"][0] == "class 42" and worst["most often taken for (images)"][0] == f"class 17 ({times})"
    assert len(worst["class"]) == 20
    pairs = table_of(section, "confused_pairs")
    assert (pairs["label"][0], pairs["answer"][0], pairs["images"][0]) == ("class 42", "class 17", times)
    assert pairs["of this label's images"][0].value == 1
    rows = list(csv.DictReader(io.StringIO(section.attachments[0].content.decode())))
    assert [row["class"] for row in rows] == [*labels.names[:99], "'=1\\n2"]
    assert [int(row["images"]) for row in rows] == np.bincount(labels.values).tolist()
    assert rows[42]["recall"] == "0.000000" and rows[42]["most_often_taken_for"] == "class 17"
    block = next(picture for picture in section.pictures if picture.name == "confusion")
    assert f"class 42 for class 17 ({times})" in block.alt


def test_names_of_all_kinds_can_be_drawn(recwarn):
    names = ("$5 and $x_1^", "crane", "crane", "猫", "a\nname " * 30, "")
    labels = Labels(names, np.arange(60) % 6)
    section = accuracy_section([one_head(labels, "a $model$", skill=1)], labels)
    assert sorted(table_of(section, "classes")["class"])[-4:] == ["a\nname " * 30, "crane (1)", "crane (2)", "猫"]
    assert pictures_of(section) and not [str(warning.message) for warning in recwarn if "Glyph" in str(warning)]


@pytest.mark.parametrize("count", [1, 31])
def test_contenders_are_compared_in_a_picture(count):
    labels = some_labels(60, 5)
    contenders = [two_heads(labels, f"model {index}") for index in range(count)]
    section = accuracy_section(contenders, labels, teacher="model 3")
    assert len(table_of(section, "accuracy")["model"]) == 4 * count
    picture = next(picture for picture in section.pictures if picture.name == "accuracy")
    assert Image.open(io.BytesIO(picture.png)).height < 1500 and picture.alt.count(";") == count - 1
    assert ("The teacher" in picture.caption) == (count > 3)
    names = [table.name for table in section.tables]
    assert ("differences" in names) == (count > 1)


def test_what_has_no_labels_has_no_accuracy():
    labels = some_labels(5, 3, unlabelled=5)
    assert accuracy_section([one_head(labels)], labels) is None


def test_top_accuracy_needs_as_many_answers():
    labels = some_labels(50, 4)
    verdicts = one_head(labels).verdicts(SINGLE_HEAD)
    assert top_accuracy(verdicts, labels, 4).value == 1
    with pytest.raises(ValueError, match="top-5 needs 5 answers of each image, got 4"):
        top_accuracy(verdicts, labels, 5)


@pytest.mark.parametrize(
    ("name", "end", "shown"),
    [
        ("a" * 30, 5, "a" * 30),
        ("a" * 31, 0, "a" * 29 + "…"),
        ("a" * 31 + "end", 3, "a" * 26 + "…end"),
        (" two\nlines ", 0, "two lines"),
        ("$5 and $6", 0, r"\$5 and \$6"),
        ("\ue123\u202e", 0, r"\ue123\u202e"),  # in no font, and one that turns the order of letters
        ("\ue123" * 30, 0, (r"\ue123" * 5)[:29] + "…"),
    ],
)
def test_names_are_shown_in_one_line_of_legible_letters(name, end, shown):
    assert name_in_picture(name, 30, end=end) == shown
