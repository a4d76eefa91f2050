"""Images of the kinds that people have and that programs stumble over, made of two photographs, always the same."""

import io
import os
from collections.abc import Callable, Iterator
from importlib.resources import files
from itertools import cycle, islice
from typing import Any

import numpy as np
from PIL import ExifTags, Image

NUM_ODD_IMAGES = 256
ODD_IMAGES = "built-in images of odd sizes and kinds"
_PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # of scikit-learn, which is always there
# (width, height) in pixels; of the large ones a few, as each takes seconds.
_LARGE = ((4000, 3000), (1600, 1200), (900, 1400))
_TINY = ((1, 1), (2, 3), (3, 3), (1, 7), (9, 1), (5, 4))
_SIZES = (
    *((31, 500), (500, 31), (224, 224), (225, 223), (256, 256), (333, 333), (100, 75), (64, 48), (32, 32), (28, 28)),
    *((97, 301), (640, 427), (320, 480), (17, 23), (199, 57), (450, 300), (255, 257), (120, 160), (73, 71), (48, 200)),
)


def write_odd_images(folder: str | os.PathLike[str]) -> None:
    """Writes the images into a folder: of 1 x 1 to 4000 x 3000 pixels, also very long ones; grey, of two colours, of
    16 colours, palettes with transparency, RGBA, CMYK, all orientations of EXIF, stripes of one pixel, noise; as
    JPEG, PNG and WebP.

    Args:
        folder: that is there.

    Raises:
        OSError: they cannot be written.
    """
    photographs = [_photograph(name) for name in _PHOTOGRAPHS]
    for number, (name, image, settings) in enumerate(islice(_odd_images(photographs), NUM_ODD_IMAGES)):
        image.save(os.path.join(folder, f"{number:03}-{image.width}x{image.height}-{name}"), **settings)


def _photograph(name: str) -> Image.Image:
    content = files("sklearn.datasets.images").joinpath(name).read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def _odd_images(photographs: list[Image.Image]) -> Iterator[tuple[str, Image.Image, dict[str, Any]]]:
    """The end of a file's name, the image, and how it is saved."""
    random = np.random.RandomState(0)

    def part(size: tuple[int, int]) -> Image.Image:
        """A part of a photograph with about the proportions of a size, made as large as that."""
        source = photographs[random.randint(len(photographs))]
        scale = random.uniform(0.5, 1.0) * min(source.width / size[0], source.height / size[1])
        width, height = (max(1, round(scale * length)) for length in size)
        left, top = random.randint(source.width - width + 1), random.randint(source.height - height + 1)
        return source.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)

    for size in _LARGE:
        yield "photograph.jpg", part(size), {"quality": 85}
    for size in _TINY:
        yield "tiny.png", part(size), {}
    for period in (1, 2, 3):
        for axis in (0, 1):
            yield "stripes.png", _stripes((300, 260), period, axis), {}
    for level in (0, 128, 255):
        yield "plain.png", Image.new("RGB", (40, 60), (level, level, level)), {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        yield f"exif-{orientation}.jpg", part((320, 200)), {"exif": exif, "quality": 90}
    for size, (name, change, settings) in zip(cycle(_SIZES), cycle(_KINDS), strict=False):
        yield name, change(part(size)), settings


def _stripes(size: tuple[int, int], period: int, axis: int) -> Image.Image:
    """Black and white stripes, so many pixels wide, across an axis."""
    dark = np.indices((size[1], size[0]))[axis] // period % 2 == 0
    return Image.fromarray(np.repeat(np.uint8(255 * dark)[..., None], 3, axis=2))


def _fading(image: Image.Image) -> Image.Image:
    """With transparency that grows from the left to the right."""
    faded = image.convert("RGBA")
    ramp = np.linspace(255, 0, image.width).round().astype(np.uint8)
    faded.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
    return faded


def _noisy(image: Image.Image) -> Image.Image:
    values = np.random.RandomState(image.width).randint(-60, 61, (image.height, image.width, 3))
    return Image.fromarray(np.uint8(np.clip(np.asarray(image).astype(int) + values, 0, 255)))


def _coloured(image: Image.Image) -> Image.Image:
    """With much of one colour: who takes blue for red answers otherwise."""
    return Image.fromarray(np.uint8(np.asarray(image) * np.array([1.0, 0.7, 0.3])))


def _grey_with_alpha(image: Image.Image) -> Image.Image:
    return _fading(image).convert("LA")


# The end of the file's name, what is made of a photograph, and how it is saved; no number of these divides that of
# the sizes, so that each kind meets each size.
_KINDS: tuple[tuple[str, Callable[[Image.Image], Image.Image], dict[str, Any]], ...] = (
    ("photograph.jpg", lambda image: image, {"quality": 90}),
    ("photograph.png", lambda image: image, {}),
    ("photograph.webp", lambda image: image, {"quality": 80}),
    ("rough.jpg", lambda image: image, {"quality": 15}),
    ("coloured.png", _coloured, {}),
    ("noise.png", _noisy, {}),
    ("grey.png", lambda image: image.convert("L"), {}),
    ("grey.jpg", lambda image: image.convert("L"), {"quality": 90}),
    ("grey-transparent.png", _grey_with_alpha, {}),
    ("two-colours.png", lambda image: image.convert("1"), {}),
    ("16-colours.png", lambda image: image.quantize(16), {}),
    ("palette-transparent.png", lambda image: image.quantize(64), {"transparency": 3}),
    ("transparent.png", _fading, {}),
    ("transparent.webp", _fading, {"lossless": True}),
    ("cmyk.jpg", lambda image: image.convert("CMYK"), {"quality": 95}),
    ("coloured.jpg", _coloured, {"quality": 95}),
    ("progressive.jpg", lambda image: image, {"quality": 90, "progressive": True}),
)
