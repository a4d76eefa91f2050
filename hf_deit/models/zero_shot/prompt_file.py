"""Prompts that people write: a mapping of class names to a text or several, in a YAML file or in a recipe."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml

from ...errors import InputError, brief, one_line, shortlist

_MOST_BYTES = 1_000_000
_EXPECTED = 'expected for each class a text or a list of texts, say {"red fox": ["a red fox in snow."]}'


def read_prompts(given: str | os.PathLike[str] | Mapping[Any, Any]) -> dict[str, list[str]]:
    """The texts of each class, in the order in which they are written.

    Args:
        given: a YAML file, in which all is taken as it is written ("no" and 1 are texts); or what such a file says, as
            a mapping or as JSON.

    Raises:
        InputError: no such file; no mapping of names to texts; a name that stands twice, or has no text.
    """
    where = "class_prompts"
    if isinstance(given, str | os.PathLike) and not os.fspath(given).lstrip().startswith("{"):
        where = f"the prompts in {os.fspath(given)!r}"
        given = _read_file(os.fspath(given), where)
    elif isinstance(given, str | os.PathLike):
        try:
            given = json.loads(os.fspath(given))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is no JSON ({one_line(error)}): {_EXPECTED}") from error
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"{where} must be a mapping, got {brief(given)}: {_EXPECTED}")
    return {str(name).strip(): _texts(name, value, where) for name, value in given.items()}


def _texts(name: Any, value: Any, where: str) -> list[str]:
    texts = value if isinstance(value, list | tuple) else [value]
    texts = [str(text).strip() if isinstance(text, str | int | float) else None for text in texts]
    if not str(name).strip() or not texts or not all(texts):
        raise InputError(f"{where} has {brief(value)} for the class {brief(name)}: {_EXPECTED}")
    return texts


def _read_file(path: str, where: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise InputError(f"no file {path!r} for --class_prompts: {_EXPECTED}")
    try:
        if (size := os.path.getsize(path)) > _MOST_BYTES:
            raise InputError(f"{where} have {size:,} bytes, expected at most {_MOST_BYTES:,}")
        with open(path, encoding="utf-8-sig") as file:
            root = yaml.compose(file, Loader=yaml.BaseLoader)  # makes no numbers and dates of names
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"cannot read {where}: {one_line(error)}") from error
    if not isinstance(root, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in root.value):
        raise InputError(f"{where} are no mapping: {_EXPECTED}")
    names = [key.value.strip() for key, _ in root.value]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{where} name a class twice: {shortlist(twice)}")
    return {name: _plain(value) for name, (_, value) in zip(names, root.value, strict=True)}


def _plain(node: yaml.Node) -> Any:
    """A scalar's text, a list of them, or what is none of both as None."""
    if isinstance(node, yaml.SequenceNode):
        return [one.value if isinstance(one, yaml.ScalarNode) else None for one in node.value]
    return node.value if isinstance(node, yaml.ScalarNode) else None
