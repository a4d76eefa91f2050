"""Contract: a recipe is read as it was meant. What a run has written comes back with the same values and types, and
what was written by hand is a text wherever its argument takes one.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.facts import facts

from hf_deit.errors import InputError
from hf_deit.hub.files import write_json
from hf_deit.hub.recipe_file import dump_recipe, parse_recipe
from hf_deit.hub.record import stage
from hf_deit.recipes import load_recipe
from hf_deit.recipes.resolve import Arguments, resolve_arguments, save_recipe

STRINGS = [
    *("12345e6789", "1e5", ".5e3", "5.e-4", "-1e5", "0123", "0x1F", "1_000", "1:30", "190:20:30", ".inf"),
    *("null", "~", "yes", "No", "on", "true", "False", "=", "<<", "2026-01-01", "2026-01-01 10:00:00"),
    *(" x ", "two\nlines\n", "a\ttab", "a: b", "a #b", "#a", "- a", "{a}", "[a]", "&a", "*a", "!a", "%a", "'", '"'),
    *("DeiT-B⚗↑384", "ünï/日本/😀", "/a long folder/of pictures" * 40, "C:\\images\\cats"),
]
VALUES = [
    *(5e-4, 1e-5, 0.1, 1e22, 1.0, 3, -7, 10**12, True, False, None, "", [], {}),
    *([1e-5, "1e5", None, [True, "true"]], {"a": {"b": [0.1, {"c": "0123"}]}, "1e5": "1e5"}),
]


def assert_same(got: Any, expected: Any) -> None:
    """Equal, with equal types all the way down, in the same order."""
    assert repr(got) == repr(expected)


@pytest.fixture
def arguments(tmp_path) -> Arguments:
    return resolve_arguments(["--recipe", "debug", "--use_cpu", "true", "--output_dir", str(tmp_path / "run")])


def with_changes(arguments: Arguments, **changes: Any) -> Arguments:
    """The first of the three parts with other values."""
    return dataclasses.replace(arguments[0], **changes), *arguments[1:]


def published(recipe: dict[str, Any], folder: Path) -> Path:
    """The recipe.yaml that is pushed of a run with this recipe."""
    write_json(facts(recipe=recipe).to_dict(), folder / "run.json")
    (folder / "tree").mkdir()
    stage(folder, folder / "tree")
    return folder / "tree" / "recipe.yaml"


# What was written is read back


@pytest.mark.parametrize("value", [*STRINGS, *VALUES], ids=repr)
def test_values_come_back(value):
    recipe = {"a": value, "b": [value], "c": {"d": value}}
    assert_same(parse_recipe(dump_recipe(recipe)), recipe)
    if isinstance(value, str):
        assert_same(parse_recipe(dump_recipe(recipe), text_keys={"a", "b", "c"}), recipe)


@pytest.mark.parametrize("text", STRINGS, ids=repr)
def test_texts_come_back_from_the_recipe_of_a_run(arguments, tmp_path, text):
    recipe = {"teacher_revision": text, "student_overrides": {"name": text, "names": [text]}}
    save_recipe(with_changes(arguments, **recipe), str(tmp_path / "recipe.yaml"))
    saved, pushed = load_recipe(str(tmp_path / "recipe.yaml")), load_recipe(str(published(recipe, tmp_path)))
    for name, value in recipe.items():
        assert_same(saved[name], value)
        assert_same(pushed[name], value)


@pytest.mark.parametrize("value", [value for value in VALUES if isinstance(value, int | float)], ids=repr)
def test_numbers_come_back_from_the_recipe_of_a_run(arguments, tmp_path, value):
    overrides = {"value": value, "nested": {"values": [value, [value]]}}
    save_recipe(with_changes(arguments, student_overrides=overrides), str(tmp_path / "recipe.yaml"))
    assert_same(load_recipe(str(tmp_path / "recipe.yaml"))["student_overrides"], overrides)
    assert_same(
        load_recipe(str(published({"student_overrides": overrides}, tmp_path)))["student_overrides"], overrides
    )


@pytest.mark.parametrize("revision", ["12345e6789", "1e5", "0123", "2026-01-01", "=", "1:30"])
def test_a_run_is_resolved_again_from_its_recipe(arguments, tmp_path, revision):
    path = str(tmp_path / "recipe.yaml")
    save_recipe(with_changes(arguments, teacher_revision=revision), path)
    again = resolve_arguments(["--recipe", path, "--use_cpu", "true"])
    assert again[0].teacher_revision == revision
    save_recipe(again, path)
    assert load_recipe(path)["teacher_revision"] == revision


# What was written by hand is what its argument takes

WRITTEN = ["12345e6", "12345e6789", "0123456", "1234567", "2026-01-01", "1_000", "0x1F", "1:30", "=", "1.0", "yes"]


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("key", ["teacher_revision", "dataset_revision", "train_split", "resume_from_checkpoint"])
def test_an_unquoted_text_is_taken_as_it_is_written(tmp_path, key, written):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{key}: {written}  # a comment\nseed: 0123\n")
    recipe = load_recipe(str(path))
    assert_same(recipe, {key: written, "seed": 0o123})


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *(("null", None), ("~", None), ("", None), ("true", True), ("False", False)),
        *(('"0123"', "0123"), ("'null'", "null"), ("|-\n  1e5", "1e5"), ("[0123]", [0o123]), ("!!int 7", "7")),
    ],
)
def test_what_is_no_unquoted_text_stays_what_it_is(tmp_path, written, value):
    (tmp_path / "mine.yaml").write_text(f"resume_from_checkpoint: {written}\n")
    assert_same(load_recipe(str(tmp_path / "mine.yaml")), {"resume_from_checkpoint": value})


def test_texts_of_a_base_are_texts_too(tmp_path):
    (tmp_path / "base.yaml").write_text("teacher_revision: 12345e6\nlearning_rate: 5e-4\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\ndataset_revision: 0123456\n")
    expected = {"teacher_revision": "12345e6", "learning_rate": 5e-4, "dataset_revision": "0123456"}
    assert_same(load_recipe(str(tmp_path / "mine.yaml")), expected)


def test_numbers_are_read_as_people_mean_them():
    text = "a: 5e-4\nb: 5.0e-4\nc: .5e3\nd: 12345e6789\ne: .inf\nf: 1E3\ng: 2026\n"
    assert_same(
        parse_recipe(text),
        {"a": 5e-4, "b": 5e-4, "c": 500.0, "d": "12345e6789", "e": float("inf"), "f": 1e3, "g": 2026},
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n"])
def test_an_empty_recipe_is_none(text):
    assert parse_recipe(text, text_keys={"a"}) is None


@pytest.mark.parametrize(
    "text", ["a: !!python/name:os.system x", "a: !!python/object/apply:os.getcwd []", "a: [", "a: !b 1"]
)
def test_what_would_make_other_objects_is_refused(tmp_path, text):
    with pytest.raises(yaml.YAMLError):
        parse_recipe(text, text_keys={"a"})
    (tmp_path / "mine.yaml").write_text(text.replace("a:", "teacher_revision:"))
    with pytest.raises(InputError, match="is no YAML"):
        load_recipe(str(tmp_path / "mine.yaml"))


# What takes for ever, or is no argument


def chain(count: int, times: int) -> str:
    """An anchor of two things, and others of so many aliases each of the one before."""
    lines = (f"b{index}: &a{index + 1} [{', '.join([f'*a{index}'] * times)}]" for index in range(count))
    return "\n".join(["b: &a0 [x, x]", *lines])


REFUSED = {
    "!!int x": "seed: !!int x",
    "!!float x": "seed: !!float x",
    "!!bool x": "seed: !!bool x",
    "!!timestamp x": "seed: !!timestamp x",
    "!!set": "seed: !!set {1, 2}",
    "!!set as a whole": "!!set {seed, output_dir}",
    "!!binary": "student_overrides: {a: !!binary aGk=}",
    "!!omap": "seed: !!omap [a: 1]",
    "!!pairs": "seed: !!pairs [a: 1]",
    "a date that is none": "seed: !!timestamp 2026-99-99",
    "aliases of aliases": chain(30, 9),
    "merges of merges": "b0: &a0 {x: 1}\n"
    + "".join(f"b{index + 1}: &a{index + 1} {{<<: [*a{index}, *a{index}]}}\n" for index in range(40)),
    "itself": "seed: &a [*a]",
    "a mapping of itself": "student_overrides: &a {a: *a}",
    "an alias of nothing": "seed: *a",
    "deep lists": "seed: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "seed: " + "{a: " * 3000 + "}" * 3000,
    "deep blocks": "- " * 5000 + "a",
    "an open list": "seed: " + "[" * 5000,
    "twice": "seed: 1\nseed: 2",
    "twice within": "student_overrides: {hidden_size: 32, hidden_size: 64}",
    "two documents": "seed: 1\n---\nseed: 2",
    "tabs": "\tseed: 1",
    "a large number": "seed: " + "9" * 5000,
    "a larger one": "seed: 0x" + "f" * 5000,
    "a number of many minutes": "seed: 1" + ":59" * 3000,
    "NUL": 'train_dir: "a\\0b"',
    "a control character": "seed: \x01",
    "many things": "seed: [" + "1, " * 30_000 + "]",
    "many characters": "seed: " + "x" * 1_000_001,
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_is_no_argument_or_takes_for_ever_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        resolve_arguments(["--recipe", str(path)])
    assert time.monotonic() - start < 5 and "\n" not in str(error.value)
    assert str(path) in str(error.value) or "train_dir" in str(error.value), error.value


def test_merges_and_aliases_of_a_usual_size_are_read():
    text = "a: &sizes {hidden_size: 32, image_size: 16}\nb: {<<: *sizes, image_size: 32}\nc: [*sizes, *sizes]\n"
    sizes = {"hidden_size": 32, "image_size": 16}
    assert_same(parse_recipe(text), {"a": sizes, "b": {"hidden_size": 32, "image_size": 32}, "c": [sizes, sizes]})
    assert_same(parse_recipe("a: 2026-01-01\n"), {"a": "2026-01-01"})


def links_to_itself(folder: Path) -> str:
    (folder / "again").symlink_to(folder)
    (folder / "mine.yaml").write_text("base: again/mine.yaml\n")
    return "stand on each other"


def many_bases(folder: Path) -> str:
    for index in range(30):
        (folder / f"{index}.yaml").write_text(f"base: {index + 1}.yaml\n")
    (folder / "mine.yaml").write_text("base: 0.yaml\n")
    return "stands on more than 20 others"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.yaml")
    (folder / "mine.yaml").write_text("base: pipe.yaml\n")
    return "no recipe"


def based_on(base: str, message: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / "mine.yaml").write_text(f"base: {base}\n")
        return message

    return write


def of_other_bytes(content: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / "mine.yaml").write_bytes(content)
        return "cannot read the recipe"

    return write


FILES = {
    "links to itself": links_to_itself,
    "many bases": many_bases,
    "a pipe": pipe,
    "a folder": based_on(".", "no recipe"),
    "a device": based_on("/dev/zero", "no recipe"),
    "a file of the kernel": based_on("/proc/self/maps", "must be a mapping"),
    "memory": based_on("/proc/self/mem", "must be a mapping"),
    "what waits for ever": based_on("/proc/kmsg", "the recipe '/proc/kmsg'"),
    "other letters": of_other_bytes(b"seed: 1 # caf\xe9"),
    "a large file": of_other_bytes(b"#" * 1_000_001),
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_what_is_no_file_of_a_recipe_is_refused_at_once(tmp_path, write):
    message = write(tmp_path)
    with pytest.raises(InputError, match=message):
        load_recipe(str(tmp_path / "mine.yaml"))
