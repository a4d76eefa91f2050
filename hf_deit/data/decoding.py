"""Decodes the images of a data set to RGB, and names those that are broken."""

import zlib
from typing import Any

import datasets
from PIL import Image
from transformers.image_transforms import convert_to_rgb

from ..errors import BadImageError, first_line
from ..models.image_processing_deit import EIGHT_BIT_MODES

# What Pillow raises for files that are truncated, corrupt, hostile or no images at all.
BAD_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)


def decode_image(encoded: dict[str, Any] | None, name: str) -> Image.Image:
    """Decodes an image to RGB: turned upright, and where it is transparent white, as the image processors have it.

    Args:
        encoded: with its "bytes" or its "path", as `datasets.Image(decode=False)` gives it; None is a missing image.
        name: what to call it in the message.

    Raises:
        BadImageError: the image is missing or broken, or has more than 8 bits per channel.
    """
    try:
        if encoded is None:
            raise ValueError("there is no image")
        image = datasets.Image().decode_example(encoded)
        if image.mode not in EIGHT_BIT_MODES:
            raise ValueError(f"mode {image.mode!r} has more than 8 bits per channel, scale it to 8 bits")
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        return Image.fromarray(convert_to_rgb(image, return_numpy=True))
    except BAD_IMAGE_ERRORS as error:
        path = encoded.get("path") if encoded else None
        raise BadImageError(
            f"the image of {name}{f' ({path})' if path else ''} cannot be decoded: {first_line(error)}. "
            "Mend or remove it, or pass --on_bad_image skip"
        ) from error


class ImageDecoder:
    """Decodes the image of any row of a data set, or says which row, and which file, is broken.

    Args:
        dataset: has a column of type `Image`.
        image_column: the name of that column.
    """

    def __init__(self, dataset: datasets.Dataset, image_column: str) -> None:
        self.image_column = image_column
        self._encoded = dataset.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))

    def __call__(self, index: int) -> Image.Image:
        """The image of row `index`; see `decode_image`."""
        return decode_image(self._encoded[index][self.image_column], f"row {index}")
