"""Contract: what messages share is worded alike: lists that are cut say so, and a misspelt name gets the nearest."""

import pytest

from hf_deit.errors import did_you_mean, shortlist


@pytest.mark.parametrize(
    ("items", "options", "expected"),
    [
        ([], {}, ""),
        (["a"], {}, "a"),
        ("abcde", {}, "a, b, c, d, e"),
        ("abcdef", {}, "a, b, c, d, e, …"),
        (range(4), {"most": 3}, "0, 1, 2, …"),
        ((name for name in "abc"), {"most": 3}, "a, b, c"),
        ("abcdef", {"separator": "; "}, "a; b; c; d; e; …"),
    ],
)
def test_a_list_that_is_cut_ends_with_an_ellipsis(items, options, expected):
    assert shortlist(items, **options) == expected


def test_the_nearest_name_is_quoted():
    known = ("digits", "digits_teacher", "debug")
    assert did_you_mean("digit", known) == "; did you mean 'digits'?"
    assert did_you_mean("digit_teacher", {name: None for name in known}) == "; did you mean 'digits_teacher'?"
    assert did_you_mean("resnet", known) == ""
    assert did_you_mean("digit", ()) == ""


def test_how_near_a_name_must_be_can_be_said():
    assert did_you_mean("debt", ["debug"], cutoff=0.9) == ""
    assert did_you_mean("debt", ["debug"], cutoff=0.4) == "; did you mean 'debug'?"
