"""Contract: a contact sheet shows every image whole and says of it what is so; a CSV of paths is safe to open."""

import csv
import io

import numpy as np
import pytest
from PIL import Image
from support import images as pictures
from support.verdicts import images_with, labels_of, several_labels, verdicts

from hf_deit.evaluation.agreement.contact_sheets import (
    Names,
    answer_lines,
    contact_sheet,
    label_words,
    paths_csv,
    thumbnail,
)

SIDE = 168


def only(image: Image.Image) -> np.ndarray:
    encoded = pictures.encoded(image)
    return np.asarray(thumbnail(images_with(labels_of([0]), [encoded]), 0)).astype(int)


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(28, 28, 5), (8, 8, 20), (1, 1, 166), (100, 120, 1), (20, 50, 3)]
)
def test_small_images_are_enlarged_pixel_by_pixel(height, width, scale):
    image = pictures.noise(height, width)
    shown = only(image)
    assert shown.shape == (height * scale + 2, width * scale + 2, 3)
    assert np.array_equal(shown[1:-1, 1:-1], np.asarray(image).repeat(scale, axis=0).repeat(scale, axis=1))
    assert len(np.unique(shown[0])) == 1  # the frame


@pytest.mark.parametrize(("height", "width"), [(500, 31), (31, 500), (3, 4000), (4000, 3), (600, 400), (167, 167)])
def test_large_images_fit_in_their_proportions(height, width):
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 255 / height, columns * 255 / width, rows * 0 + 77], axis=-1).astype(np.uint8)
    shown = only(Image.fromarray(image))
    inner = shown[1:-1, 1:-1]
    assert max(inner.shape[:2]) == SIDE - 2 and max(shown.shape) <= SIDE
    scale = max(inner.shape[:2]) / max(height, width)
    assert inner.shape[:2] == pytest.approx((max(scale * height, 1), max(scale * width, 1)), abs=0.5)
    for axis in (0, 1):
        if inner.shape[axis] > 20:  # from end to end
            assert inner[0, 0, axis] < 20 and inner[-1, -1, axis] > 235
    assert (abs(inner[..., 2] - 77) <= 1).all()


def test_images_look_as_models_see_them():
    transparent = Image.new("RGBA", (60, 60), (200, 0, 0, 0))
    assert (only(transparent)[1:-1, 1:-1] == 255).all()
    grey = only(Image.new("L", (60, 60), 90))
    assert (grey[1:-1, 1:-1] == 90).all()


def test_an_image_that_cannot_be_opened_is_crossed_out():
    whole = pictures.encoded(pictures.noise(50, 50))
    for encoded in ({"bytes": whole["bytes"][:60], "path": None}, {"bytes": None, "path": "/no/such/file.png"}, None):
        shown = np.asarray(thumbnail(images_with(labels_of([0, 0]), [encoded, whole]), 0)).astype(int)
        assert shown.shape == (SIDE, SIDE, 3) and shown[5, 80].min() > 200 > shown[84, 84].max()


def test_a_sheet_shows_the_chosen_in_their_order_above_their_lines():
    images = images_with(labels_of([0] * 30))
    asked = []

    def lines_of(index: int) -> list[str]:
        asked.append(index)
        return [f"#{index}", "a line"]

    chosen = np.arange(29, -1, -1)
    (picture,) = contact_sheet("name", images, chosen, lines_of, title="Some", below="Below.", num_shown=8)
    assert asked == list(range(29, 21, -1))  # no other image is opened
    assert picture.caption == "Some (the first 8 of 30 images). Below." and "#29; a line" in picture.alt
    sheet = Image.open(io.BytesIO(picture.png))
    width, height = SIDE + 8, SIDE + 8 + 30
    assert sheet.size == (6 * width, 2 * height)
    pixels = np.asarray(sheet)
    for place, index in enumerate(asked):
        left, top = place % 6 * width, place // 6 * height
        assert pictures.identity(sheet.crop((left + 80, top + 80, left + 90, top + 90)))[1] == index
        below = pixels[top + SIDE + 8 : top + height, left : left + width]
        assert below.min() < 100
    assert (pixels[height:, 2 * width :] == 255).all()


def test_a_sheet_of_no_image_is_none_and_one_of_all_says_so():
    images = images_with(labels_of([0, 0]))
    words = {"title": "Some", "below": "Below."}
    assert contact_sheet("name", images, np.array([], dtype=int), lambda index: [], **words) == ()
    (picture,) = contact_sheet("name", images, np.array([1, 0]), lambda index: ["x"], **words)
    assert picture.caption == "Some (2 images). Below." and Image.open(io.BytesIO(picture.png)).width == 2 * (SIDE + 8)


# Names


def test_names_that_cannot_be_drawn_stand_as_numbers_and_the_caption_says_so():
    names = Names(["ape", "\ue123", "two\n lines", " ", "Ärger \u2713", "\u202eeba"])
    shown = ["ape", "class 1", "two lines", "class 3", "Ärger ✓", "\\u202eeba"]
    assert [names[index] for index in range(6)] == shown
    assert "class's number" in names.note
    assert Names(["ape", "Бык"]).note == ""


def test_lines_say_the_label_and_who_says_what():
    one, other = verdicts("a", [2, 0]), verdicts("b", [1, 0])
    images = images_with(several_labels([[2], [0, 1], []])).without(np.array([True, False, False]))
    labels = images.labels
    assert answer_lines(Names(labels.names), images, 0, says=one, teacher=other) == [
        "#1",  # as its data count, whatever is left out
        "label ape | bee",
        f"says {one.confidence[0]:.2f}: cat",
        f"teacher {other.confidence[0]:.2f}: bee",
    ]
    assert answer_lines(Names(labels.names), images, 1, says=one)[1] == "label none"
    assert [label_words(labels, index) for index in (0, 1)] == ["ape | bee", ""]
    assert label_words(labels_of([2]), 0) == "cat"


# Paths


def test_paths_are_listed_as_the_data_name_them(tmp_path):
    file = tmp_path / "größe, \n1.png"
    pictures.noise(4, 4).save(file)
    images = images_with(
        labels_of([0, 0, 0]),
        [
            {"bytes": None, "path": str(file)},
            pictures.encoded(pictures.noise(4, 4)),
            pictures.encoded(pictures.noise(4, 4), "inner.png"),
        ],
    )
    content = paths_csv(
        images, np.array([2, 0, 1]), ("score", "count", "nothing"), lambda index: [index / 3, index, None]
    )
    assert content.count(b"\n") == 4
    left = images.without(np.array([True, False, False]))
    assert paths_csv(left, [1], (), lambda index: []).endswith(b"2,row 2 of the images (inner.png)\n")
    rows = list(csv.reader(io.StringIO(content.decode())))
    assert rows == [
        ["index", "image", "score", "count", "nothing"],
        ["2", "row 2 of the images (inner.png)", "0.666667", "2", ""],
        ["0", str(file).replace("\n", "\\n"), "0.000000", "0", ""],
        ["1", "row 1 of the images", "0.333333", "1", ""],
    ]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        (" =1", "' =1"),
        ("\t=1", "\\t=1"),
        ("\r\n=1", "\\r\\n=1"),
        ("a=1", "a=1"),
        ('a "b", c', 'a "b", c'),
        ("猫 \U0001f431", "猫 \U0001f431"),
        ("\x1b[31m \u202e", "\\x1b[31m \\u202e"),
        ("\udcff", "\\udcff"),
    ],
)
def test_names_are_neither_formulas_nor_lines_of_their_own(name, cell):
    content = paths_csv(images_with(labels_of([0])), [0], ("label",), lambda index: [name])
    assert content.count(b"\n") == 2 and b"\r" not in content
    assert list(csv.reader(io.StringIO(content.decode("utf-8"))))[1][2] == cell
