"""Throughput against accuracy: the DeiT paper's Figure 1, of any models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..pictures import as_png, drawing, look_of, name_in_picture
from ..sections import Estimate

_LONGEST_NAME = 36  # in letters
_DISTANCES = (9, 16, 26, 40, 58, 80, 110)  # of a name from its point, in points of 1/72 inch
_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_BETWEEN_NAMES = 3  # in the same
_SHORTEST_LINE = 14  # between a name and its point, in the same


@dataclass(frozen=True)
class SpeedPoint:
    """A model in the picture.

    Attributes:
        name: short.
        images_per_second: its throughput, with the ends of the bar through its point.
        top1: its accuracy.
        is_teacher: it is told apart.
    """

    name: str
    images_per_second: tuple[float, float, float]
    top1: Estimate
    is_teacher: bool = False


def draw_speed(points: Sequence[SpeedPoint], *, device: str) -> bytes:
    """Draws the throughput, on a logarithmic axis, against the accuracy, each with its bar, named beside the points.

    Args:
        points: one or more.
        device: on which it was measured, for the axis.

    Returns:
        A PNG file.
    """
    with drawing(7.2, 4.8) as figure:
        axes = figure.add_subplot(
            xlabel=f"images per second ({device}), p10 to p90 of the runs",
            ylabel="top-1 accuracy, 95 % interval",
            xscale="log",
        )
        has_teacher = any(point.is_teacher for point in points)
        for of_teacher, label in ((False, "model"), (True, "teacher")):
            chosen = [point for point in points if point.is_teacher == of_teacher]
            if chosen:
                _draw(axes, chosen, label if has_teacher else "", look_of(int(of_teacher)))
        _set_limits(axes, points)
        if has_teacher:
            figure.legend(loc="outside upper right", ncols=2, frameon=False)
        _name_points(figure, axes, points)
        return as_png(figure)


def _draw(axes: Axes, points: Sequence[SpeedPoint], label: str, look: dict[str, str]) -> None:
    speeds, lows, highs = np.array([point.images_per_second for point in points]).T
    values = np.array([point.top1.value for point in points])
    bars = [
        np.clip([speeds - lows, highs - speeds], 0, None),
        np.clip([values - [p.top1.low for p in points], [p.top1.high for p in points] - values], 0, None),
    ]
    axes.errorbar(
        speeds,
        values,
        xerr=bars[0],
        yerr=bars[1],
        label=label,
        linestyle="none",
        marker=look["marker"],
        color=look["color"],
        markersize=7,
        elinewidth=1,
        ecolor=(look["color"], 0.5),
    )


def _set_limits(axes: Axes, points: Sequence[SpeedPoint]) -> None:
    """With room for names; a narrow range is not blown up."""
    low = math.log10(min(point.images_per_second[1] for point in points))
    high = math.log10(max(point.images_per_second[2] for point in points))
    room = max(0.12 * (high - low), (0.6 - (high - low)) / 2)
    axes.set_xlim(10 ** (low - room), 10 ** (high + room))
    subs = (1, 2, 5) if high - low < 3 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = min(point.top1.low for point in points), max(point.top1.high for point in points)
    room = max(0.1 * (high - low), (0.04 - (high - low)) / 2)
    axes.set_ylim(low - room, high + room)


def _name_points(figure: Figure, axes: Axes, points: Sequence[SpeedPoint]) -> None:
    """Writes each name where it covers least of points, bars and other names, as near as possible to its point.

    Names of points that have little room about them have the first choice.
    """
    figure.draw_without_rendering()  # lays the axes out
    figure.set_layout_engine("none")
    unit = figure.dpi / 72
    places = {point.name: axes.transData.transform((point.images_per_second[0], point.top1.value)) for point in points}
    taken = [box for point in points for box in _boxes_of(axes, point, places[point.name], unit)]

    def room_about(point: SpeedPoint) -> float:
        others = [place for name, place in places.items() if name != point.name]
        return min((float(np.hypot(*(place - places[point.name]))) for place in others), default=0.0)

    for point in sorted(points, key=room_about):
        text = axes.annotate(
            name_in_picture(point.name, _LONGEST_NAME, end=_LONGEST_NAME // 2),
            places[point.name],
            xycoords="figure pixels",
            textcoords="figure pixels",
        )
        extent = text.get_window_extent()
        size = np.array([extent.width, extent.height])
        boxes = _boxes_about(places[point.name], size, unit)
        others = [place for name, place in places.items() if name != point.name]
        box = boxes[np.argmin(_costs(boxes, taken, axes.bbox.extents, places[point.name], others))]
        text.set_position(box[:2])
        text.set_verticalalignment("bottom")
        taken.append(box + _BETWEEN_NAMES * unit * np.array([-1, -1, 1, 1]))
        _join(axes, places[point.name], box, unit)


def _boxes_of(axes: Axes, point: SpeedPoint, place: np.ndarray, unit: float) -> list[np.ndarray]:
    """What a point and its bars cover: (left, bottom, right, top) in pixels each."""
    (left, bottom), (right, top) = axes.transData.transform(
        [(point.images_per_second[1], point.top1.low), (point.images_per_second[2], point.top1.high)]
    )
    half = 5 * unit
    return [
        np.array([place[0] - half, place[1] - half, place[0] + half, place[1] + half]),
        np.array([left, place[1] - unit, right, place[1] + unit]),
        np.array([place[0] - unit, bottom, place[0] + unit, top]),
    ]


def _boxes_about(place: np.ndarray, size: np.ndarray, unit: float) -> np.ndarray:
    """(n, 4): where a name of a size, in pixels, may stand about its point."""
    distances = np.repeat(_DISTANCES, len(_ANGLES))[:, None] * unit
    angles = np.tile(_ANGLES, len(_DISTANCES))
    centres = place + np.stack([np.cos(angles), np.sin(angles)], axis=1) * (distances + size / 2)
    return np.hstack([centres - size / 2, centres + size / 2])


def _costs(
    boxes: np.ndarray,
    taken: Sequence[np.ndarray],
    bounds: np.ndarray,
    place: np.ndarray,
    others: Sequence[np.ndarray],
) -> np.ndarray:
    """(n,): pixels that a name in each box covers, or that lie outside, weigh more than its distance.

    A name that another point is about as near to reads as the name of that one.
    """
    covered = sum(_overlaps(boxes, other) for other in taken)
    outside = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - _overlaps(boxes, bounds)
    distance = np.linalg.norm(_ways_to(boxes, place), axis=1)
    unclear = sum(np.clip(2 * distance - np.linalg.norm(_ways_to(boxes, other), axis=1), 0, None) for other in others)
    return 10 * covered + 100 * outside + distance + 2 * unclear


def _overlaps(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    sides = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    return np.prod(np.clip(sides, 0, None), axis=1)


def _ways_to(boxes: np.ndarray, place: np.ndarray) -> np.ndarray:
    """From a place to the nearest of each box."""
    return np.clip(place, boxes[:, :2], boxes[:, 2:]) - place


def _join(axes: Axes, place: np.ndarray, box: np.ndarray, unit: float) -> None:
    """A thin line from a point to a name that is not beside it."""
    (way,) = _ways_to(box[None], place)
    if np.hypot(*way) > _SHORTEST_LINE * unit:
        ends = np.array([place, place + way])
        axes.plot(*ends.T, transform=None, color="0.5", linewidth=0.7, zorder=0)
