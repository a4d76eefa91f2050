"""Small pictures side by side, with lines of text below, in letters of every script for which there is a font."""

import functools
import os
import unicodedata
from bisect import bisect
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN, LINE_HEIGHT = 4, 15  # pixels
_FONT_SIZE = 12
_LONGEST = 300  # characters, of which no tile shows so many
# Chooses between forms of the character before it, and is not seen itself.
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)


def is_legible(text: str) -> bool:
    """Whether there is a font for each character of a text."""
    return all(_is_unseen(character) or _font_with(character) for character in text)


def legible(text: str) -> str:
    """A text whose characters that no font has stand as escapes, where they would become boxes."""
    return "".join(
        character if is_legible(character) else character.encode("unicode_escape").decode() for character in text
    )


def fonts_of(text: str) -> list[str]:
    """The files of the fonts that a text needs, in the order of its characters; those that no font has are left out.

    The first is always DejaVu Sans, which comes with matplotlib and has Latin, Greek, Cyrillic, Hebrew and Arabic.
    """
    found = [_font_with(character) for character in text]
    return list(dict.fromkeys([_dejavu(), *filter(None, found)]))


def tile(
    image: Image.Image, lines: Sequence[str], *, size: tuple[int, int] | None = None, num_lines: int = 0
) -> Image.Image:
    """A picture in the middle of a white box, with lines of text below, which are shortened to its width.

    Args:
        image: in RGB.
        lines: of text, the first on top.
        size: (width, height) of the box, in which the picture fits; by default the picture's own.
        num_lines: for how many lines there is room, if not for these alone.

    Returns:
        A picture with a margin around the box.
    """
    width, height = size or image.size
    room = max(len(lines), num_lines) * LINE_HEIGHT
    whole = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN + room), "white")
    whole.paste(image, (MARGIN + (width - image.width) // 2, MARGIN + (height - image.height) // 2))
    draw = ImageDraw.Draw(whole)
    for index, line in enumerate(lines):
        _write(draw, (MARGIN, height + 2 * MARGIN + index * LINE_HEIGHT - 2), _shortened(legible(line), width))
    return whole


def side_by_side(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows of so many, on white."""
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for index, picture in enumerate(tiles):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    """Writes a line below a place, (x, y) in pixels. Fonts may differ in height, and stand on one base line."""
    x, y = place
    base = y + _opened(_dejavu()).getmetrics()[0]
    for path, part in _runs(text):
        draw.text((x, base), part, fill="black", font=_opened(path), anchor="ls")
        x += _opened(path).getlength(part)


def _length(text: str) -> float:
    return sum(_opened(path).getlength(part) for path, part in _runs(text))


def _shortened(text: str, width: int) -> str:
    """A text, or so much of its beginning as fits into a width in pixels."""
    if len(text) <= _LONGEST and _length(text) <= width:
        return text
    fitting = bisect(range(min(len(text), _LONGEST)), width, key=lambda count: _length(text[:count] + "…")) - 1
    return text[: max(fitting, 0)].rstrip() + "…"


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """The parts of a legible text that are of one font each: (path, part). Marks stay with what they stand upon."""
    font, part = _dejavu(), ""
    for character in text:
        stays = _is_unseen(character) or unicodedata.combining(character) or ord(character) in _characters(font)
        if not stays:
            if part:
                yield font, part
            font, part = _font_with(character) or _dejavu(), ""
        part += character
    if part:
        yield font, part


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or ord(character) in _VARIATION_SELECTORS


@functools.cache
def _font_with(character: str) -> str | None:
    """The first font that has a character, and draws it."""
    if ord(character) in _characters(_dejavu()):
        return _dejavu()
    return next((path for path in _other_fonts() if _draws(path, character)), None)


def _draws(path: str, character: str) -> bool:
    """Whether a font has a character in a way that Pillow can draw: colours of some formats come out empty."""
    if ord(character) not in _characters(path):
        return False
    try:
        return character.isspace() or _opened(path).getmask(character).getbbox() is not None
    except OSError:  # a font of pictures that has no such size
        return False


@functools.cache
def _dejavu() -> str:
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@functools.cache
def _other_fonts() -> tuple[str, ...]:
    """The fonts of this machine, upright ones of normal weight first, then by name."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    # matplotlib's other fonts are for formulas, and fonts of last resort have a box for every character.
    own, found = matplotlib.get_data_path(), fontManager.ttflist
    fonts = [font for font in found if "LastResort" not in font.fname and not font.fname.startswith(own)]
    fonts.sort(key=lambda font: (font.style != "normal", font.weight != 400, font.name, font.fname))
    return tuple(dict.fromkeys(font.fname for font in fonts))


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has; none if it cannot be opened."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def _opened(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, _FONT_SIZE)
