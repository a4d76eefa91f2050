"""Benchmarks as pictures: a bar for each arm, as long as its median, with the range of its rounds."""

import statistics
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes

from ..pictures import COLOURS, as_png, drawing, name_in_picture
from .figures import Chart

_WIDTH = 8.4  # inches, of the whole picture
_BAR, _BESIDE = 0.27, 0.75  # inches that a bar takes, and what stands above and below the bars of a chart
_LETTERS = 105  # of a line above all
_LONGEST_NAME = 52  # in letters
_MEDIAN = 54  # points from the axes to the end of a bar's median in words
_MOST = 2.0  # times the longest bar, where the line of a round that was disturbed ends with an arrow
_OURS, _OTHERS = COLOURS[0], "0.68"


def draw_charts(charts: Sequence[Chart], *, title: str) -> bytes:
    """Draws charts one below the other.

    Args:
        charts: one or more, of one bar or more each.
        title: above all: what was measured, and where.

    Returns:
        A PNG file.
    """
    lines = textwrap.wrap(title, _LETTERS)
    heights = [_BAR * len(chart.bars) + _BESIDE for chart in charts]
    with drawing(_WIDTH, sum(heights) + 0.2 * len(lines) + 0.1) as figure:
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9)
        panels = figure.subplots(len(charts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, chart in zip(panels, charts, strict=True):
            _draw(axes, chart)
        return as_png(figure)


def _draw(axes: Axes, chart: Chart) -> None:
    unit, scale = chart.unit, 1.0
    medians = [statistics.median(bar.values) for bar in chart.bars]
    if unit == "s":
        unit, scale = ("milliseconds", 1000.0) if max(medians) < 1 else ("seconds", 1.0)
    places = range(len(chart.bars))
    ends = [(scale * min(bar.values), scale * max(bar.values)) for bar in chart.bars]
    lengths = [scale * median for median in medians]
    axes.barh(places, lengths, height=0.62, color=[_OURS if bar.is_ours else _OTHERS for bar in chart.bars])
    ranges = [[length - low for length, (low, _) in zip(lengths, ends, strict=True)]]
    ranges += [[high - length for length, (_, high) in zip(lengths, ends, strict=True)]]
    axes.errorbar(lengths, places, xerr=ranges, fmt="none", ecolor="black", elinewidth=1, capsize=2.5)
    axes.set_yticks(places, [name_in_picture(bar.name, _LONGEST_NAME, end=_LONGEST_NAME // 2) for bar in chart.bars])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)
    longest = min(1.02 * max(high for _, high in ends), _MOST * max(lengths))
    for place, (_, high) in zip(places, ends, strict=True):
        if high > longest:
            axes.plot(longest, place, marker=">", color="black", markersize=4, clip_on=False)
    axes.set_xlim(0, longest)
    axes.set_ylim(len(chart.bars) - 0.4, -0.6)  # from top to bottom
    axes.set_xlabel(unit)
    axes.set_title(chart.title, loc="left", fontsize=9, fontweight="bold")
    for place, bar in zip(places, chart.bars, strict=True):
        for text, points, align in ((bar.median, _MEDIAN, "right"), (bar.note, _MEDIAN + 8, "left")):
            axes.annotate(
                text,
                (1, place),
                xycoords=("axes fraction", "data"),
                xytext=(points, 0),
                textcoords="offset points",
                va="center",
                ha=align,
                annotation_clip=False,
            )
