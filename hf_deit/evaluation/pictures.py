"""How a report's pictures look: one style, safe for colour-blind readers, on white."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import TextPath

from ..errors import printable
from ..training.tiles import fonts_of, legible

# Okabe and Ito's colours, of which yellow is left out, as it is hard to see on white; then lines and marks differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
SEQUENTIAL = "cividis"  # of values in one direction, seen alike by all
_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 130,
    "font.size": 9,
    "grid.alpha": 0.3,
    "svg.fonttype": "none",
}


@contextmanager
def drawing(width: float = 6.4, height: float = 4.0) -> Iterator[Figure]:
    """A figure of a size in inches, in the style of reports. It needs no display, and no state of pyplot."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def look_of(index: int) -> dict[str, str]:
    """The colour, line and mark of the index-th of several models: no two of the first 28 look alike."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index // len(COLOURS) % len(LINES)],
        "marker": MARKS[index % len(MARKS)],
    }


def name_in_picture(name: str, most: int = 30, *, end: int = 0) -> str:
    """A name that users gave as a picture shows it: in one line, in letters for which there are fonts.

    Args:
        most: letters; of a longer name the first are shown, and an ellipsis.
        end: how many of the last are shown, too: of models, where those at the end tell them apart.

    Returns:
        A text for matplotlib, in which "$" begins no formula.
    """
    name = legible(printable(" ".join(name.split())))
    if len(name) > most:
        name = f"{name[: most - 1 - end]}…{name[len(name) - end :]}"
    return name.replace("$", r"\$")


def width_of(text: str, size: float) -> float:
    """How wide a text of so many points is, in inches."""
    return TextPath((0, 0), text, size=size, prop=FontProperties(family=_families(text))).get_extents().width / 72


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes each time. To be called inside of `drawing`."""
    for text in figure.findobj(Text):
        text.set_fontfamily(_families(text.get_text()))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _families(text: str) -> list[str]:
    return [FontProperties(fname=path).get_name() for path in fonts_of(text)]
