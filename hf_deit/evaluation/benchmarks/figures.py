"""What all benchmarks show alike: tables in Markdown, times in words, and the bars of their pictures."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Bar:
    """An arm in a picture.

    Attributes:
        name: of the arm.
        values: of its rounds: the bar is as long as their median, and a line through its end goes from the least to
            the greatest.
        median: in words, written beside it.
        note: written behind that.
        is_ours: whether it is this package's, which is told apart.
    """

    name: str
    values: Sequence[float]
    median: str
    note: str = ""
    is_ours: bool = False

    @classmethod
    def of_times(cls, name: str, seconds: Sequence[float], note: str = "", *, is_ours: bool = False) -> "Bar":
        """Of an arm's seconds by round."""
        return cls(name, tuple(seconds), short_time(statistics.median(seconds)), note, is_ours)


@dataclass(frozen=True)
class Chart:
    """Arms that are compared with each other, one below the other.

    Attributes:
        title: what is compared.
        unit: of the values; "s" is shown in milliseconds where the longest bar is shorter than a second.
        bars: from top to bottom.
    """

    title: str
    unit: str
    bars: Sequence[Bar]


class Report(Protocol):
    """What a benchmark has found; as text it is a table in Markdown.

    Attributes:
        title: what was measured, and where, in a line.
    """

    title: str

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON; times are in seconds."""

    def charts(self) -> list[Chart]:
        """As a picture."""


def short_time(seconds: float) -> str:
    """A time in three digits: "38.7 ms", "1.24 s", "236 s"."""
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{_three_digits(seconds * scale)} {unit}"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A table in Markdown that is one on a terminal, too.

    Args:
        head: of the columns.
        rows: as many cells each.
        words: so many columns from the left are of words; the others are of numbers, and stand at the right.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * width if place < words else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        for cells in (head, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
