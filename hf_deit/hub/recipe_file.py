"""The YAML of recipes: what is written is read back the same."""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Reads 5e-4 as a number, as people mean it; YAML 1.1 wants 5.0e-4."""


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `_Loader` would take for numbers."""


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float | str:
    """A number, or the text of what only looks like one: 12345e6789 is the beginning of a commit."""
    value = loader.construct_yaml_float(node)
    return node.value if math.isinf(value) and "inf" not in node.value.lower() else value


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def parse_recipe(text: str) -> Any:
    """Reads the text of a recipe.

    Raises:
        yaml.YAMLError: it is no YAML, or would make other objects than YAML's own.
    """
    return yaml.load(text, _Loader)  # a SafeLoader


def dump_recipe(recipe: Mapping[str, Any]) -> str:
    """The text of a recipe, which `parse_recipe` reads as the same values; strings that look like numbers are quoted.

    Args:
        recipe: arguments by name, of values that YAML can hold.
    """
    return yaml.dump(dict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
