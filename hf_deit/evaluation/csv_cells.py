"""How a cell stands in a CSV file, so that any program can open it and none takes a name for a formula."""

from ..errors import printable

# With these a spreadsheet takes a text for a formula.
_FORMULA = ("=", "+", "-", "@")


def csv_cell(value: str | int | float | None) -> str | int:
    """A cell as a CSV file has it.

    Line breaks and other controls in a text stand as escapes. A text that a spreadsheet would take for a formula has
    an apostrophe before it. Fractions have six digits, and what there is not is empty.
    """
    if isinstance(value, str):
        text = printable(value).replace("\n", "\\n").replace("\t", "\\t")
        return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else value
