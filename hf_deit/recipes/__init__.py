"""Recipes: YAML files of arguments. The recipe comes first, the command line on top; unknown keys are refused.

A recipe may stand on another: `base: deit_base` takes that one's arguments first. Mappings, such as student_overrides,
are merged key by key, where null removes a key; all else is replaced. What follows the images, `by_data` says.
"""

import dataclasses
import enum
import functools
import json
import os
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..data.arguments import DataArguments
from ..errors import InputError, did_you_mean, one_line
from ..hub.recipe_file import RECORDED, parse_recipe, read_recipe_file
from ..training.arguments import DistillationTrainingArguments, ModelArguments
from .by_data import KEYS, Choice, check_table, settled
from .option_names import meant_by
from .sameness import earlier_values
from .uses import settle

_MOST_BASES = 20  # on top of each other
ARGUMENT_CLASSES = (ModelArguments, DataArguments, DistillationTrainingArguments)


def _packaged() -> dict[str, Traversable]:
    """The files of the recipes that come with the package, by name."""
    rooms = (entry for entry in resources.files(__name__).iterdir() if entry.is_dir())
    files = (file for room in rooms for file in room.iterdir() if file.name.endswith(".yaml"))
    return {file.name.removesuffix(".yaml"): file for file in files}


def list_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(_packaged())


def load_recipe(name_or_file: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a recipe.

    Args:
        name_or_file: one of `list_recipes()`, or the path of a YAML file.

    Returns:
        Arguments by name, as written, on top of those of its base: `resolve_arguments` gives them their types. One
        that was recorded beside a run of an earlier version says, too, what was the rule there and is an option now.
        One that follows the images gives what it takes for very many of them.

    Raises:
        InputError: no such recipe, no mapping in it, a key that is no argument, or bases that go in a circle.
    """
    return merged(settled(recipe_layers(name_or_file), Choice(), recipe_layers))


def load_recorded(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the recipe beside a run as it was written, to compare it; `sameness.earlier_values` says what it lacks."""
    return merged(recipe_layers(file, as_written=True))


def recipe_layers(name_or_file: str | os.PathLike[str], *, as_written: bool = False) -> list[dict[str, Any]]:
    """A recipe and those that it stands on, the lowest first; see `load_recipe`, `merged` and `by_data.settled`.

    Args:
        name_or_file: see `load_recipe`.
        as_written: whether to leave out what was the rule in a recorded run.
    """
    name_or_file = os.fspath(name_or_file)
    is_packaged = name_or_file in list_recipes()
    return _with_bases(name_or_file if is_packaged else os.path.normpath(name_or_file), [], as_written=as_written)


def merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of layers, the later on top of the earlier: of recipes, and of a command line.

    Mappings are merged key by key, and null removes a key; all else is replaced, null included. What takes a mapping
    takes its JSON, too. What gives way to a later layer, `settle` says.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        result = settle(result, layer)
        for name, value in layer.items():
            value = as_mapping(name, value)
            if isinstance(value, dict):
                below = result.get(name)
                both = {**(below if isinstance(below, dict) else {}), **value}
                value = {key: item for key, item in both.items() if item is not None}
            result[name] = value
    return result


def as_mapping(name: str, value: Any) -> Any:
    """The value of an argument, or what it says if that is the JSON of a mapping or of null, where one is expected."""
    if name not in mapping_arguments() or not isinstance(value, str):
        return value
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):  # a file of settings, or what the argument itself refuses
        return value
    return read if isinstance(read, dict | None) else value


def _with_bases(name_or_file: str, above: list[str], *, as_written: bool) -> list[dict[str, Any]]:
    # By where they lie: through a link to its own folder a file has endlessly many names.
    if os.path.realpath(name_or_file) in map(os.path.realpath, above):
        raise InputError(f"the recipes {' → '.join([*above, name_or_file])} stand on each other: drop one base")
    if len(above) == _MOST_BASES:
        raise InputError(
            f"the recipe {above[0]!r} stands on more than {_MOST_BASES} others: put some of them together"
        )
    recipe = _read_recipe(name_or_file, as_written=as_written)
    base = recipe.pop("base", None)
    if base is None:
        return [recipe]
    if not isinstance(base, str):
        raise InputError(f"the base of the recipe {name_or_file!r} must be a name or a file, got {base!r}")
    if base not in list_recipes():
        base = os.path.normpath(os.path.join(os.path.dirname(name_or_file), base))
    return [*_with_bases(base, [*above, name_or_file], as_written=as_written), recipe]


def _read_recipe(name_or_file: str, *, as_written: bool) -> dict[str, Any]:
    """One file, with its "base" if it has one; see `recipe_layers`."""
    if (packaged := _packaged().get(name_or_file)) is not None:
        text = packaged.read_text(encoding="utf-8")
    elif os.path.isfile(name_or_file):
        try:
            text = read_recipe_file(name_or_file)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the recipe {name_or_file!r}: {error}") from error
    else:
        raise InputError(
            f"no recipe {name_or_file!r}: expected a YAML file or one of {', '.join(list_recipes())}"
            + did_you_mean(name_or_file, list_recipes(), cutoff=0.4)
        )
    try:
        recipe = parse_recipe(text, text_keys=_text_arguments())
    except yaml.YAMLError as error:
        raise InputError(f"the recipe {name_or_file!r} is no YAML of arguments: {one_line(error)}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"the recipe {name_or_file!r} must be a mapping of arguments, got {type(recipe).__name__}")
    for key in recipe:
        if not isinstance(key, str):
            raise InputError(f"the recipe {name_or_file!r} has no argument {key!r}: names are words")
        if key not in ("base", *KEYS):
            check_known(key, f"the recipe {name_or_file!r} has")
    subject = f"the recipe {name_or_file!r} has"
    check_table(recipe, name_or_file, lambda key: check_known(key, subject), list_recipes())
    is_recorded = text.startswith(RECORDED) and not as_written
    return {**recipe, **earlier_values(recipe)} if is_recorded else recipe


@functools.cache
def _text_arguments() -> set[str]:
    """The arguments that take a text and nothing else, words to choose from among them: "no" is one of those."""

    def is_text(part: Any) -> bool:
        return isinstance(part, str) or (isinstance(part, type) and issubclass(part, str | enum.Enum | NoneType))

    hints = {name: hint for name, hint in _types().items() if get_origin(hint) is not list}
    return {name for name, hint in hints.items() if all(map(is_text, get_args(hint) or [hint]))}


@functools.cache
def mapping_arguments() -> set[str]:
    """The arguments that take a mapping, such as student_overrides and lr_scheduler_kwargs."""
    return {name for name, hint in _types().items() if dict in [get_origin(one) or one for one in get_args(hint)]}


def _types() -> dict[str, Any]:
    return {name: hint for part in ARGUMENT_CLASSES for name, hint in get_type_hints(part).items()}


def check_known(key: str, subject: str) -> None:
    """Refuses what is no argument.

    Args:
        key: its name.
        subject: the beginning of the message, "there is".

    Raises:
        InputError: with the argument that was meant, as far as that can be known.
    """
    known = [field.name for part in ARGUMENT_CLASSES for field in dataclasses.fields(part) if field.init]
    if key not in known:
        near = did_you_mean(key, known, cutoff=0.7) if len(key) > 2 else ""
        raise InputError(f"{subject} no argument {key!r}{meant_by(key, known) or near}")
