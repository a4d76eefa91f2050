"""What `hf-deit evaluate` says on a terminal: what it is about to do, and what came of it."""

import shutil
import textwrap
from collections.abc import Sequence

from ..evaluation.classifiers.classifiers import ClassifierDescription
from ..evaluation.sections import Section, Table
from ..training.overview import titled_lines

_MARGIN = "  "


def evaluation_in_words(
    models: Sequence[ClassifierDescription], *, images: str, teacher: str | None, device: str, folder: str
) -> str:
    """What is about to be measured, in lines that fit the terminal.

    Args:
        models: the evaluated one, those beside it, then the teacher.
        images: in words.
        teacher: the name of the teacher, or None.
        device: in words, with the precision.
        folder: of the report.
    """
    rows = [("images", images)]
    for position, model in enumerate(models):
        title = "teacher" if model.name == teacher else "model" if not position else "beside"
        size = " x ".join(map(str, model.input_size))
        rows.append((title, f"{model.name}, {model.origin['architecture']}, {size} pixels"))
    return titled_lines([*rows, ("device", device), ("report", folder)], _width())


def results_in_words(sections: Sequence[Section]) -> str:
    """The accuracy and the speed of each model, in lines that fit the terminal; empty if neither was measured."""
    tables = [table for section in sections for table in section.tables]
    blocks = []
    for table in tables:
        if table.name == "accuracy":
            blocks.append(_accuracy(table))
        elif table.name == "throughput":
            blocks.append(_speed(table))
    return "\n\n".join(blocks)


def _accuracy(table: Table) -> str:
    """A line for each way in which a model answers, below its name: names have any length."""
    model, rule, top1 = (table.columns.index(name) for name in ("model", "answer by", "top-1"))
    width = max(len(str(row[rule])) for row in table.rows)
    lines, before = [], None
    for row in table.rows:
        if row[model] != before:
            lines.append(str(row[model]))
            before = row[model]
        lines.append(f"{_MARGIN}{row[rule]!s:<{width}}  {row[top1]}")
    images = table.rows[0][table.columns.index("images")]
    return f"{textwrap.fill(f'top-1 of {images:,} images, with its 95 % interval', _width())}\n\n" + "\n".join(lines)


def _speed(table: Table) -> str:
    model, speed = (table.columns.index(name) for name in ("model", "images/s"))
    width = max(len(str(row[model])) for row in table.rows)
    lines = [f"{_MARGIN}{row[model]!s:<{width}}  {row[speed]:>10,.0f}" for row in table.rows]
    return "images/s of the forward pass alone\n\n" + "\n".join(lines)


def _width() -> int:
    return max(min(shutil.get_terminal_size().columns - 1, 100), 20)
