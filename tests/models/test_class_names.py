"""Contract: labels belong together by name, exactly first, loosely only where no third label could be meant.

What became of labels since a model learnt them is told label by label, and names are compared in Unicode's NFC.
"""

import time
import unicodedata

import pytest

from hf_deit import InputError
from hf_deit.models.class_names import check_distinct, choose_labels, label_changes, match_labels, unique_names

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
FILL = [f"class {index}" for index in range(400)]


def match(teacher: list[str], student: list[str]) -> list[int]:
    return match_labels(dict(enumerate(teacher)), dict(enumerate(student)), "some/teacher")


@pytest.mark.parametrize(
    ("teacher", "student", "order"),
    [
        (["A", "a"], ["a", "A"], [1, 0]),
        (["A", "a", "B"], ["b", "A", "a"], [2, 0, 1]),
        (["x_y", "x y"], ["x y", "x_y"], [1, 0]),
        (["a", "A", "dog"], ["Dog", "A", "a"], [2, 1, 0]),
        ([NFC, "tea"], ["tea", NFD], [1, 0]),
        ([NFD.upper(), "tea"], ["Tea", NFC], [1, 0]),
        (["STRASSE", "weg"], ["weg", "straße"], [1, 0]),
        (["crane", "x", "crane"], ["crane", "X", "crane"], [0, 1, 2]),  # its place tells which crane
        (["A", "a", *FILL], ["a", "A", *FILL], [1, 0, *range(2, 402)]),
    ],
)
def test_equal_names_come_first_and_looser_ones_where_they_are_unique(teacher, student, order):
    assert match(teacher, student) == order
    assert [student[index] for index in match(student, teacher)] != [] and sorted(order) == list(range(len(order)))


@pytest.mark.parametrize(
    ("teacher", "student", "unclear"),
    [
        (["Cat", "cat"], ["CAT", "cat"], "CAT"),
        (["cat", "Cat"], ["CAT", "cAt"], "CAT, cAt"),
        (["Cat", "dog"], ["cat", "CAT"], "cat, CAT"),
        (["a b", "a_b", "c"], ["A B", "a_b", "c"], "A B"),
        (["A", "a", "b"], ["b", "a", "a"], "a, a"),
        (["Cat", "cat", *FILL], ["CAT", "cAt", *FILL], "CAT, cAt"),  # however many others are clear
        (["crane", "x", "crane"], ["x", "crane", "crane"], "crane, crane"),
    ],
)
def test_what_could_mean_two_labels_is_refused_and_named(teacher, student, unclear):
    with pytest.raises(InputError, match=f"which of its labels is meant is not clear of {unclear}[.;]"):
        match(teacher, student)


def test_names_that_look_the_same_are_told_apart_as_repeated_ones_are():
    unique = unique_names({0: NFC, 1: NFD, 2: "tea"})
    assert unique == {0: f"{NFC} (0)", 1: f"{NFD} (1)", 2: "tea"} == unique_names(unique)
    check_distinct(unique.values(), "the teacher")
    assert match([NFC, NFD, "tea"], list(unique.values())) == [0, 1, 2]


CHANGES = {
    "nothing": (["a", NFC], ["a", NFD], ""),
    "a new name in its place": (["a", "b"], ["a", "c"], "renamed: 'b' to 'c'"),
    "a new name elsewhere": (
        ["ape", "cat", "dog"],
        ["ape", "dog", "zebra"],
        "removed: 'cat'; added: 'zebra'; moved: 'dog' from 2 to 1",
    ),
    "one more": (["a", "c"], ["a", "b", "c"], "2 labels then, 3 now; added: 'b'; moved: 'c' from 1 to 2"),
    "one less": (["a", "b"], ["a"], "2 labels then, 1 now; removed: 'b'"),
    "another order": (["a", "b"], ["b", "a"], "moved: 'a' from 0 to 1, 'b' from 1 to 0"),
    "another case": (["Cat", "dog"], ["cat", "dog"], "renamed: 'Cat' to 'cat'"),
    "one of a pair": (["crane", "x", "crane"], ["crane", "crane", "x"], None),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes_are_told_label_by_label(case):
    before, now, expected = CHANGES[case]
    told = label_changes(before, now)
    assert told == ("moved: 'crane' from 0 and 2 to 0 and 1, 'x' from 1 to 2" if expected is None else expected)


def test_changes_of_many_labels_are_told_at_once():
    before, now = ([f"{word} {index}" for index in range(20000)] for word in ("old", "new"))
    start = time.perf_counter()
    assert label_changes(before, now).startswith("renamed: 'old 0' to 'new 0'")
    assert time.perf_counter() - start < 5  # every old with every new name takes a minute


def test_two_forms_of_one_name_are_refused():
    check_distinct(["cafe", NFC, "Cafe"], "the folder")
    with pytest.raises(InputError, match="the folder has two classes of the same name, café"):
        check_distinct(["a", NFC, NFD], "the folder")


# Of a teacher with more classes


def choose(teacher: list[str], student: list[str]) -> list[int]:
    return choose_labels(dict(enumerate(teacher)), dict(enumerate(student)), "some/teacher")


@pytest.mark.parametrize(
    ("teacher", "student", "order"),
    [
        (["ape", "bee", "cat", "dog"], ["dog", "bee"], [3, 1]),
        (["ape", "bee", "cat"], ["cat", "ape", "bee"], [2, 0, 1]),
        (["tiger cat", "Espresso", "x"], ["ESPRESSO", "Tiger_Cat"], [1, 0]),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ["Carassius_auratus", "tench"], [1, 0]),
        (["tench", "goldfish"], ["goldfish, Carassius auratus"], [1]),
        (["missile", "projectile, missile", "x"], ["missile"], [0]),  # equal before a synonym
        (["maillot", "maillot, tank suit", "x"], ["tank suit", "maillot"], [1, 0]),
        (["Cat", "cat", "dog"], ["cat"], [1]),
        ([NFD, "tea", "x"], ["Tea", NFC], [1, 0]),
        (["crane", "x", "crane"], ["x", "crane (2)"], [1, 2]),  # as `unique_names` calls it
        ([f"{name}, {name}s" for name in FILL], [*reversed(FILL[7:9])], [8, 7]),
    ],
)
def test_a_teachers_labels_are_chosen_by_name(teacher, student, order):
    assert choose(teacher, student) == order


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [
        (
            ["tiger cat", "espresso", "x"],
            ["cat", "espreso", "x"],
            ["lacks 'cat' (did you mean 'tiger cat'?), 'espreso' (did you mean 'espresso'?)"],
        ),
        (["tench, Tinca tinca", "x"], ["tensh", "x"], ["lacks 'tensh' (did you mean 'tench'?)"]),
        (["Cat", "cat", "dog"], ["CAT"], ["not clear of 'CAT' ('Cat' or 'cat')"]),
        (["crane", "x", "crane"], ["crane"], ["not clear of 'crane' ('crane (0)' or 'crane (2)')"]),
        (["a, x", "b, x", "c"], ["x", "c"], ["not clear of 'x' ('a, x' or 'b, x')"]),
        (["tench, Tinca tinca", "x"], ["tench", "Tinca tinca"], ["not clear of 'tench' (", ", 'Tinca tinca' ("]),
        (["x", "y"], ["x", "qqq", "a, b"], ["it lacks 'qqq', 'a, b'.", "2 labels"]),
        (FILL, [f"no {index}" for index in range(30)], ["'no 0'", "'no 29'"]),  # all of them
    ],
)
def test_what_is_not_among_a_teachers_labels_is_refused_with_the_nearest(teacher, student, said):
    with pytest.raises(InputError, match="some/teacher has") as refusal:
        choose(teacher, student)
    assert not [words for words in said if words not in str(refusal.value)], refusal.value


def test_labels_with_gaps_are_not_chosen_from():
    with pytest.raises(InputError, match="not with the indices 0 to 1"):
        choose_labels({0: "a", 2: "b"}, {0: "a"})
