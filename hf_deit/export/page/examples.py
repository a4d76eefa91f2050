"""Images that a page offers to be tried: few, small, and without what their files say of place and camera."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...data.decoding import decode_image
from ...errors import BadImageError, InputError
from ...evaluation.images.images import EvaluationImages

MOST_EXAMPLES = 10
_LONGEST_SIDE = 512  # pixels
_PIXELS_OF_PNG = 128 * 128  # up to which no pixel is changed


@dataclass(frozen=True)
class Example:
    """An image of a page.

    Attributes:
        name: what it is called.
        label: what it shows, as far as that is known, else None.
        content: a PNG or JPEG file without metadata.
    """

    name: str
    label: str | None
    content: bytes

    @property
    def type(self) -> str:
        """The media type of `content`."""
        return "image/png" if self.content.startswith(b"\x89PNG") else "image/jpeg"

    def image(self) -> Image.Image:
        """In RGB, as the page sees it."""
        return decode_image({"bytes": self.content}, self.name)


def examples_of_images(images: EvaluationImages) -> list[Example]:
    """The first image of each of up to `MOST_EXAMPLES` classes, spread over all; of images without labels, any."""
    labels = images.labels
    values = labels.values
    if labels.is_labelled.any():
        classes = np.unique(values[labels.is_labelled])
        chosen = [
            int(np.flatnonzero((values == value) & labels.is_labelled)[0]) for value in _spread(classes.tolist())
        ]
    else:
        chosen = _spread(range(len(images)))
    found = []
    for index in chosen:
        try:
            image = images.image(index)
        except BadImageError:
            continue
        label = labels.names[values[index]] if labels.is_labelled[index] else None
        name = os.path.basename(images.name(index).rstrip("/"))
        found.append(Example(name, label, _encoded(image)))
    return found


def examples_of_folder(folder: str) -> list[Example]:
    """Up to `MOST_EXAMPLES` images of a folder, spread over its files by name; the folder of a class is their label.

    Raises:
        InputError: it cannot be read, or holds no image.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--examples {folder!r} is no folder: give one with images, or none")
    found: list[Example] = []
    paths = sorted(_files(folder))
    # Files that are no images are passed over: the next one takes the place.
    for path in [*_spread(paths), *paths]:
        name, parent = os.path.relpath(path, folder), os.path.dirname(os.path.relpath(path, folder))
        if len(found) == min(MOST_EXAMPLES, len(paths)) or any(example.name == name for example in found):
            continue
        try:
            image = decode_image({"path": path}, name)
        except BadImageError:
            continue
        found.append(Example(name, os.path.basename(parent) or None, _encoded(image)))
    if not found:
        raise InputError(f"--examples {folder!r} holds no image that can be decoded: give another folder, or none")
    return sorted(found, key=lambda example: example.name)


def _files(folder: str) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names if not name.startswith("."))


def _spread(items: Sequence) -> list:
    """Up to `MOST_EXAMPLES` of the items, evenly, with the first and the last."""
    count = min(MOST_EXAMPLES, len(items))
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, count).round()] if count else []


def _encoded(image: Image.Image) -> bytes:
    image = Image.fromarray(np.asarray(image.convert("RGB")))  # without what stands in its `info`
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if image.width * image.height <= _PIXELS_OF_PNG:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
