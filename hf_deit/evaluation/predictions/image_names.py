"""Which files are images: by the ends of their names or, if these say nothing, by how they begin."""

import mimetypes
import os
from typing import BinaryIO

from PIL import Image

from ...data.decoding import NO_IMAGE, fault_of_header

# Kinds of images that the standard library does not know, or not in all its versions.
_IMAGES = (".heic", ".heif", ".avif", ".webp", ".jxl", ".jfif", ".dng", ".cr2", ".nef", ".arw")
_DATA = (".parquet", ".arrow")  # and of data, likewise
_TYPES = mimetypes.MimeTypes()  # Python's own, whatever the machine has beside them


def image_by_name(name: str) -> bool | None:
    """Whether a file is an image, by the end of its name; None if that does not tell."""
    end = os.path.splitext(name)[1].lower()
    if not end:
        return None
    if end in _IMAGES or end in _DATA:
        return end in _IMAGES
    kind, packed = _TYPES.guess_type(f"x{end}")
    if kind is not None or packed is not None:
        return kind is not None and kind.startswith("image/")
    return True if Image.registered_extensions().get(end) in Image.OPEN else None


def is_image_file(name: str, file: BinaryIO | None = None) -> bool:
    """Whether a file is an image or, where its name says nothing, begins like one or cannot be looked into.

    Args:
        file: its content; by default what lies at `name`.
    """
    by_name = image_by_name(name)
    if by_name is None:
        fault = fault_of_header(name if file is None else file)
        return fault is None or fault[0] != NO_IMAGE
    return by_name
