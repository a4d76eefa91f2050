"""What a report is made of: each analysis gives one section, and every format renders all sections alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import with_bounds


@dataclass(frozen=True)
class Estimate:
    """A measured fraction in [0, 1], or a difference of two in [-1, 1], with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return with_bounds(self.value, self.low, self.high)

    def as_json(self) -> dict[str, float]:
        """The value and the ends of its interval, by name."""
        return {"value": self.value, "low": self.low, "high": self.high}


Cell = str | int | float | Estimate | None  # None is shown as an empty cell


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        name: of ASCII letters, digits and underscores, unique in its section.
        caption: a sentence: what is shown, of which images.
        columns: headings, with units. The first column names the rows.
        rows: as many cells each as there are columns. Fractions are shown with four digits.
        in_card: whether it belongs into a model card, too.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    in_card: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        name: of its file, without ".png", unique in the report.
        png: the file's bytes.
        caption: a sentence: what is shown, of which images.
        alt: the same for those who do not see it, with what is to be seen.
        in_card: whether it belongs into a model card, too.
    """

    name: str
    png: bytes
    caption: str
    alt: str
    in_card: bool = False


@dataclass(frozen=True)
class Attachment:
    """A file beside a report, such as a CSV of paths: `name` with its suffix, and what it holds."""

    name: str
    content: bytes
    caption: str


@dataclass(frozen=True)
class Result:
    """A figure that says how good a model is: it stands on top of a report and in a card's metadata.

    Attributes:
        model: its short name.
        rule: by which it answers, in words.
        metric: in words: "top-1", "macro F1".
        estimate: with its interval.
        num_images: on which it was measured.
        is_answer: whether the model answers by this rule itself.
        metric_type: what the Hub calls such a metric.
    """

    model: str
    rule: str
    metric: str
    estimate: Estimate
    num_images: int
    is_answer: bool = True
    metric_type: str = "accuracy"


@dataclass(frozen=True)
class Section:
    """One analysis, as people read it and as programs do.

    Attributes:
        name: key in results.json, of ASCII letters, digits and underscores.
        title: heading, a few words.
        text: paragraphs of plain text, without markup: what was measured and how to read it.
        tables, pictures, attachments: in the order in which they are shown.
        numbers: all that was measured, unrounded, of JSON's types; `Estimate.as_json` for an estimate. What differs
            from the report's provenance, such as another device, stands under "measured_on".
        results: in the order of importance; those of the first model get into a card's metadata.
    """

    name: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Result, ...] = ()
