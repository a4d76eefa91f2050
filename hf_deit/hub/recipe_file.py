"""The YAML of recipes: what is written is read back the same, and what could not have been written is refused."""

import math
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from ..errors import one_line, printable
from .files import open_regular

# How the recipe begins that is written beside a run or its published model, which tells it from those people write.
RECORDED = "# Resolved arguments of "
_YAML = "tag:yaml.org,2002:"
_FLOAT, _INTEGER, _TEXT, _NULL, _TIME = (_YAML + name for name in ("float", "int", "str", "null", "timestamp"))
# What a recipe can hold: what JSON can, by which arguments that are mappings are handed on.
_KINDS = {_YAML + name for name in ("null", "bool", "int", "float", "str", "seq", "map")}
# Far above what people write, and far below what takes noticeable time or memory.
_MOST_BYTES, _MOST_NODES, _DEEPEST, _LARGEST = 1_000_000, 20_000, 30, 2**64


class _Loader(yaml.SafeLoader):
    """Reads 5e-4 as a number, as people mean it; YAML 1.1 wants 5.0e-4. A date is a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (which yaml copies before it adds to them)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIME]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `_Loader` would take for numbers."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """A string; in double quotes if it holds what would steer a terminal, or turn the order of what is read."""
    return dumper.represent_scalar(_TEXT, text, style=None if printable(text) == text else '"')


_Dumper.add_representer(str, _represent_text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float | str:
    """A number, or the text of what only looks like one: 12345e6789 is the beginning of a commit."""
    value = loader.construct_yaml_float(node)
    return node.value if math.isinf(value) and "inf" not in node.value.lower() else value


def _construct_integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """A whole number that 64 bits hold: others are no argument, and from 4,300 digits on cannot even be shown."""
    value = loader.construct_yaml_int(node)
    if abs(value) >= _LARGEST:
        raise yaml.constructor.ConstructorError(None, None, "a whole number of more than 64 bits", node.start_mark)
    return value


_Loader.add_constructor(_FLOAT, _construct_float)
_Loader.add_constructor(_INTEGER, _construct_integer)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def parse_recipe(text: str, *, text_keys: Collection[str] = ()) -> Any:
    """Reads the text of a recipe.

    Args:
        text_keys: keys whose value is a text. It is then taken as it is written without quotes, too: 0123456 and
            2026-01-01 become neither a number nor a date. Nulls, true and false stay what they are.

    Raises:
        yaml.YAMLError: it is no YAML, several documents, holds other things than texts, numbers, true, false, null,
            lists and mappings, says something twice, or is too large, also by its aliases.
    """
    _check_extent(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _check_nodes(node)
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in text_keys and _is_guessed(loader, value):
                value.tag = _TEXT
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # What yaml's own constructors end in where a tag, !!int say, stands before something else.
        raise yaml.YAMLError(one_line(error)) from error
    finally:
        loader.dispose()


def read_recipe_file(path: str | os.PathLike[str]) -> str:
    """The text of a recipe's file.

    Raises:
        OSError: it cannot be read, or is no regular file of at most a megabyte: reading others may never end.
        UnicodeDecodeError: it is no UTF-8.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise OSError(f"it has {size:,} bytes, a recipe at most {_MOST_BYTES:,}")
        # Those of /proc say that they have none, and may wait for ever for some.
        return file.read(size).decode("utf-8-sig") if size else ""


def _check_extent(text: str) -> None:
    """Refuses what would take long to read: by its length, its depth, or what its aliases stand for.

    Raises:
        yaml.YAMLError: with the limit.
    """
    if len(text) > _MOST_BYTES:
        raise yaml.YAMLError(f"it has {len(text):,} characters, a recipe at most {_MOST_BYTES:,}")
    sizes: dict[str, int] = {}  # of what an anchor stands for, in nodes, its aliases written out
    open_nodes: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.YAMLError(f"*{event.anchor} stands within itself, or for nothing")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, count))
                sizes.pop(event.anchor, None)
            elif event.anchor is not None:
                sizes[event.anchor] = 1
            count += 1
        if count > _MOST_NODES or len(open_nodes) > _DEEPEST:
            raise yaml.YAMLError(
                f"it holds more than {_MOST_NODES:,} things, its aliases written out, or is nested more than "
                f"{_DEEPEST} deep"
            )


def _check_nodes(node: yaml.Node | None) -> None:
    """Refuses what no argument can be, and what is said twice, of which YAML would take the last."""
    if node is None:
        return
    if node.tag not in _KINDS and node.tag not in (_YAML + "merge", _YAML + "value"):
        kind = node.tag.replace(_YAML, "!!")
        raise yaml.constructor.ConstructorError(None, None, f"no argument is of the kind {kind}", node.start_mark)
    if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
        raise yaml.constructor.ConstructorError(None, None, "a text with a NUL, which no path has", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_nodes(item)
    if not isinstance(node, yaml.MappingNode):
        return
    keys = set()
    for key, value in node.value:
        _check_nodes(key)
        _check_nodes(value)
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            keys.add((key.tag, key.value))


def _is_guessed(loader: _Loader, node: yaml.Node) -> bool:
    """Whether YAML has guessed, from how a value looks, that it is no text."""
    if not isinstance(node, yaml.ScalarNode) or node.value.lower() in ("true", "false"):
        return False
    return node.tag == loader.resolve(yaml.ScalarNode, node.value, (True, False)) != _NULL


def dump_recipe(recipe: Mapping[str, Any]) -> str:
    """The text of a recipe, which `parse_recipe` reads as the same values; strings that look like numbers are quoted.

    Args:
        recipe: arguments by name, of values that YAML can hold.
    """
    text = yaml.dump(dict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return printable(text)  # within double quotes, where YAML reads the same escapes as Python
