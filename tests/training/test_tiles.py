"""Contract: tiles show a picture as it is and a text as it reads, never boxes in place of letters."""

import os

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_deit.training import tiles
from hf_deit.training.tiles import fonts_of, is_legible, legible, side_by_side, tile

STIX = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")
IN_STIX = "\u0359"  # an asterisk below, which DejaVu Sans has not
IN_NONE = "\ue123"  # for private use


@pytest.fixture
def only(monkeypatch):
    """Leaves a machine with these fonts beside DejaVu Sans."""

    def set_fonts(*paths):
        monkeypatch.setattr(tiles, "_other_fonts", lambda: paths)
        tiles._font_with.cache_clear()

    yield set_fonts
    monkeypatch.undo()
    tiles._font_with.cache_clear()


def drawn(text: str, width: int = 200) -> np.ndarray:
    """The text below a picture, as grey levels."""
    return np.asarray(tile(Image.new("RGB", (width, 4)), [text]).convert("L"))[8:]


def test_a_tile_has_its_picture_in_the_middle_and_dark_text_below():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 30, 3), dtype=np.uint8))
    made = tile(picture, ["one", "two"], size=(60, 21), num_lines=3)
    assert made.size == (60 + 8, 21 + 8 + 45)
    pixels = np.asarray(made)
    assert np.array_equal(pixels[12:17, 19:49], np.asarray(picture))
    around = pixels[:25].copy()
    around[12:17, 19:49] = 255
    assert (around == 255).all()
    assert pixels[27:57].min() < 100 and (pixels[60:] == 255).all()  # two lines, and room for a third


def test_tiles_stand_in_rows():
    made = side_by_side([Image.new("RGB", (10, 20), (grey, 0, 0)) for grey in range(5)], columns=2)
    assert made.size == (20, 60)
    assert [made.getpixel((x, y))[0] for y in (5, 25, 45) for x in (5, 15)] == [0, 1, 2, 3, 4, 255]
    assert side_by_side([Image.new("RGB", (10, 20))], columns=2).size == (10, 20)


@pytest.mark.parametrize("text", ["word " * 400, "W" * 50, "שלום " * 30, "…" * 80])
def test_what_is_too_long_is_cut_within_the_tile(text):
    pixels = np.asarray(tile(Image.new("RGB", (100, 4), "white"), [text]).convert("L"))
    assert pixels.min() < 100 and (pixels[:, 106:] == 255).all()
    assert (pixels[:, 80:] < 255).any()  # and not sooner than need be


@pytest.mark.parametrize("text", ["plain", "Ärger", "кошка", "γάτα", "قطة", "חתול", "✓ ✗ →", "T\u200dx", "☂\ufe0f"])
def test_scripts_of_dejavu_need_no_other_font(text, only):
    only()
    assert is_legible(text) and legible(text) == text and len(fonts_of(text)) == 1


def test_letters_come_from_another_font_of_the_machine(only):
    only("/no/such/font.ttf", STIX)
    text = f"a{IN_STIX}b"
    assert is_legible(text) and fonts_of(text) == [tiles._dejavu(), STIX]
    with_it = drawn(text)
    only()
    assert not is_legible(text) and legible(text) == "a\\u0359b"
    assert not np.array_equal(with_it, drawn(text))


def test_letters_that_no_font_has_stand_as_escapes_not_as_boxes():
    assert not is_legible(f"x{IN_NONE}") and legible(f"x{IN_NONE} y") == "x\\ue123 y"
    assert np.array_equal(drawn(f"x{IN_NONE}"), drawn("x\\ue123"))
    assert legible("\x07") == "\\x07"
    assert fonts_of(IN_NONE) == [tiles._dejavu()]
