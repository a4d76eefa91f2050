"""Values of JSON from whomever, read as the dataclasses that they should be, and what no folder of a machine is in."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import brief

_ROUNDING = 1e-9  # as of an interval that ends at 1
_MOST_ITEMS, _MOST_CHARACTERS = 10_000, 20_000  # of a list, of a text
_DEEPEST = 12  # of objects and lists in each other
_ABSOLUTE = re.compile(r"(?<![\w./:~])(?:file://)?(?:~?/|[A-Za-z]:[\\/])[^\s/\\]+[/\\]\S+")
_EXPECTED = {
    str: f"a text of at most {_MOST_CHARACTERS:,} whole characters",
    int: "a number from 0 on",
    float: "a number",
    bool: "true or false",
}


def without_paths(value: Any) -> Any:
    """A value of JSON's types, in whose texts the absolute path of a folder or a file is not named."""
    if isinstance(value, Mapping):
        return {name: without_paths(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return _ABSOLUTE.sub("(a local path)", value) if isinstance(value, str) else value


def read_as(kind: Any, value: object, what: str) -> Any:
    """A value of JSON's types as one of a type.

    Args:
        kind: a dataclass, a tuple of other types, dict[str, T], Any for whatever JSON holds, or plain types. Of a
            mapping among them the interval is meant, {"value", "low", "high"}, whose value lies between its ends.
        what: it is, for the message.

    Raises:
        ValueError: it is none.
    """
    if get_origin(kind) is UnionType and get_args(kind)[1:] == (type(None),) and get_origin(get_args(kind)[0]) is dict:
        return None if value is None else read_as(get_args(kind)[0], value, what)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        needed = {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}
        if isinstance(value, dict) and needed <= value.keys() <= hints.keys():
            return kind(**{name: read_as(hints[name], item, name) for name, item in value.items()})
        expected = f"an object with {', '.join(sorted(hints))}"
    elif get_origin(kind) is tuple:
        if isinstance(value, list) and len(value) <= _MOST_ITEMS:
            return tuple(read_as(get_args(kind)[0], item, what) for item in value)
        expected = f"a list of at most {_MOST_ITEMS:,}"
    elif get_origin(kind) is dict:
        if isinstance(value, dict) and len(value) <= _MOST_ITEMS and all(map(_is_plain, value)):
            return {name: read_as(get_args(kind)[1], item, name) for name, item in value.items()}
        expected = f"an object with at most {_MOST_ITEMS:,} names"
    elif kind is Any:
        if _is_plain_throughout(value):
            return value
        expected = f"lists, objects and plain values, at most {_DEEPEST} in each other"
    else:
        kinds = (kind,) if get_origin(kind) is Mapping else get_args(kind) or (kind,)
        if isinstance(value, dict) and Mapping[str, float] in kinds and value.keys() == {"value", "low", "high"}:
            found = {name: read_as(float, number, what) for name, number in value.items()}
            check_interval(found, what)
            return found
        if _is_plain(value) and (type(value) in kinds or (type(value) is int and float in kinds)):
            return value
        expected = " or ".join(
            "nothing" if each is type(None) else _EXPECTED.get(each, "an interval") for each in kinds
        )
    raise ValueError(f"its {what} is {brief(value, most=60)}, expected {expected}")


def _is_plain(value: object) -> bool:
    """Whether a value of JSON is one that a card can show: of usual length, finite, and of whole characters."""
    if isinstance(value, str):
        return len(value) <= _MOST_CHARACTERS and not re.search("[\ud800-\udfff]", value)
    return not isinstance(value, int | float) or abs(value) < 2**63  # of NaN that is false


def _is_plain_throughout(value: object, depth: int = 0) -> bool:
    if not isinstance(value, dict | list):
        return _is_plain(value)
    items = [*value, *value.values()] if isinstance(value, dict) else value
    return (
        depth < _DEEPEST
        and len(items) <= 2 * _MOST_ITEMS
        and all(_is_plain_throughout(item, depth + 1) for item in items)
    )


def check_interval(values: Mapping[str, float], what: str) -> None:
    """Refuses an interval that its value lies outside of.

    Raises:
        ValueError: it does.
    """
    if not values["low"] - _ROUNDING <= values["value"] <= values["high"] + _ROUNDING:
        raise ValueError(f"its {what} is {values['value']}, which is not between {values['low']} and {values['high']}")


def check_fraction(values: Mapping[str, float], what: str, least: float = 0.0) -> None:
    """Refuses an interval that does not lie between `least` and 1.

    Raises:
        ValueError: it does not.
    """
    check_interval(values, what)
    if not least - _ROUNDING <= values["low"] <= values["high"] <= 1 + _ROUNDING:
        raise ValueError(f"its {what} is {values['value']}, expected one from {least:g} to 1")
