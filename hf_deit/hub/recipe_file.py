"""The YAML of recipes: what is written is read back the same."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from ..errors import printable

_FLOAT, _TEXT, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("float", "str", "null"))


class _Loader(yaml.SafeLoader):
    """Reads 5e-4 as a number, as people mean it; YAML 1.1 wants 5.0e-4."""


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


_Loader.add_constructor(_FLOAT, _construct_float)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def parse_recipe(text: str, *, text_keys: Collection[str] = ()) -> Any:
    """Reads the text of a recipe.

    Args:
        text_keys: keys whose value is a text. It is then taken as it is written without quotes, too: 0123456 and
            2026-01-01 become neither a number nor a date. Nulls, true and false stay what they are.

    Raises:
        yaml.YAMLError: it is no YAML, or would make other objects than YAML's own.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in text_keys and _is_guessed(loader, value):
                value.tag = _TEXT
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


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
