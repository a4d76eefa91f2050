"""Contact sheets: many images at a glance, each above what is said of it; and their paths in CSV files."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ...errors import BadImageError, counted, printable
from ...training.tiles import is_legible, side_by_side, tile
from ..answers.verdicts import Verdicts
from ..csv_cells import csv_cell
from ..images.images import EvaluationImages
from ..images.labels import Labels
from ..sections import Attachment, Cell, Picture

SHOWN = 24  # images on a sheet
_COLUMNS = 6
_SIDE = 168  # pixels, of the square that an image fits into
_FRAME = "#999999"


def contact_sheet(
    name: str,
    images: EvaluationImages,
    chosen: np.ndarray,
    lines_of: Callable[[int], Sequence[str]],
    *,
    title: str,
    below: str,
    num_shown: int = SHOWN,
) -> tuple[Picture, ...]:
    """A picture of images side by side, which are opened one by one; see `thumbnail`.

    Args:
        name: of the picture.
        images: of which some are shown.
        chosen: (n,) integers, the indices of these, in their order.
        lines_of: what to write below an image, by its index; what does not fit is cut.
        title: what images these are and in which order, for the caption.
        below: a sentence for it on what is written below the images.
        num_shown: how many at most.

    Returns:
        The picture, or nothing where no image was chosen.
    """
    if not len(chosen):
        return ()
    captions = {index: list(lines_of(index)) for index in chosen[:num_shown].tolist()}
    num_lines = max(map(len, captions.values()))
    tiles = [
        tile(thumbnail(images, index), lines, size=(_SIDE, _SIDE), num_lines=num_lines)
        for index, lines in captions.items()
    ]
    buffer = io.BytesIO()
    side_by_side(tiles, _COLUMNS).save(buffer, format="png", optimize=True)
    count = counted(len(chosen), "image")
    first = "" if len(captions) == len(chosen) else f"the first {len(captions)} of "
    alt = f"{counted(len(captions), 'small picture')} with captions. The first: {'; '.join(captions[int(chosen[0])])}."
    return (Picture(name, buffer.getvalue(), f"{title} ({first}{count}). {below}", alt),)


def thumbnail(images: EvaluationImages, index: int) -> Image.Image:
    """An image in a thin frame, as large as fits into a square: all of it, in its proportions.

    Small images are enlarged by a whole factor, pixel by pixel. One that cannot be opened any more is crossed out.
    """
    try:
        image = images.image(index)
    except (BadImageError, OSError):
        image = Image.new("RGB", (_SIDE - 2, _SIDE - 2), "#dddddd")
        draw = ImageDraw.Draw(image)
        draw.line((0, 0, *image.size), fill=_FRAME)
        draw.line((0, image.height, image.width, 0), fill=_FRAME)
    room = _SIDE - 2
    scale = min(room / image.width, room / image.height)
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    scale = int(scale) if scale >= 1 else scale
    image = image.resize([min(max(round(scale * side), 1), room) for side in image.size], method)
    return ImageOps.expand(image, 1, _FRAME)


class Names:
    """The names of classes as pictures can show them.

    Where no font has all of a name's characters it is shown by the class's number, as "class 3".

    Attributes:
        note: a sentence on this for the caption of a picture, or "".
    """

    def __init__(self, names: Sequence[str]) -> None:
        flat = [printable(" ".join(name.split())) for name in names]
        self._shown = [name if name and is_legible(name) else f"class {index}" for index, name in enumerate(flat)]
        is_changed = self._shown != flat
        self.note = " Names in letters that no font here has are shown as the class's number." if is_changed else ""

    def __getitem__(self, index: int) -> str:
        return self._shown[index]

    def label(self, labels: Labels, index: int) -> str:
        """The label of an image, or all that it has."""
        return " | ".join(self[each] for each in accepted_classes(labels, index)) or "none"


def answer_lines(names: Names, images: EvaluationImages, index: int, **said: Verdicts) -> list[str]:
    """An image's number and label, and what was said of it: "says 0.98: sneaker" of `says`, and so on."""
    lines = [f"#{images.row(index)}", f"label {names.label(images.labels, index)}"]
    for word, verdicts in said.items():
        lines.append(f"{word} {verdicts.confidence[index]:.2f}: {names[verdicts.decisions[index]]}")
    return lines


def accepted_classes(labels: Labels, index: int) -> list[int]:
    """The classes that are right for an image, one in most data; none if it has no label."""
    if labels.values[index] < 0:
        return []
    return [int(labels.values[index])] if labels.accepted is None else labels.accepted[[index]].indices.tolist()


def label_words(labels: Labels, index: int) -> str:
    """The label of an image, or all that it has, as the data name them; "" if it has none."""
    return " | ".join(labels.names[each] for each in accepted_classes(labels, index))


def paths_csv(
    images: EvaluationImages,
    indices: Iterable[int],
    columns: Sequence[str],
    cells_of: Callable[[int], Sequence[Cell]],
) -> bytes:
    """A table of images in CSV (UTF-8): of each its row from 0, its file or its place in the data, and more.

    Args:
        images: of which some are listed.
        indices: of these, in the order of the rows.
        columns: headings of what follows.
        cells_of: what stands there, by the index of the image.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["index", "image", *columns])
    for index in map(int, indices):
        writer.writerow([images.row(index), *map(csv_cell, [images.name(index), *cells_of(index)])])
    return buffer.getvalue().encode()


def attachment(name: str, content: bytes, caption: str) -> Attachment:
    """A CSV file of `paths_csv`, which is for whoever has the images: it names them by their paths."""
    return Attachment(name, content, f"{caption} It names files as this machine has them, and is not for a card.")
