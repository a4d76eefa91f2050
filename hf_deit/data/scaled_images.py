"""Images of which fewer pixels are decoded or kept than they have, and the parts of them that views take.

A part is named in pixels of the whole image, and drawn by its size alone: how many pixels there are of it changes
neither which part a view takes nor what else is drawn for the view.
"""

from typing import Any

from PIL import Image

from .decoding import ImageDecoder, JpegHeader, content_to_decode, decode_image, jpeg_header

Box = tuple[int, int, int, int]  # left, top, right, bottom
Size = tuple[int, int]  # width, height

_SCALES = (8, 4, 2)  # by which libjpeg divides both sides as it decodes
_FILTER = Image.Resampling.BICUBIC  # which Pillow widens where it shrinks, so that nothing aliases


class ShrunkImage:
    """An image with fewer pixels than it had.

    Args:
        image: in RGB.
        size: (width, height) that it had.
    """

    def __init__(self, image: Image.Image, size: Size) -> None:
        self.image, self.size = image, size

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return bytes_of(self.image)

    def part(self, box: Box, size: Size) -> Image.Image:
        """A part of the image, resized.

        Args:
            box: in pixels of the image that it was.
            size: of the result, (width, height).
        """
        # The product comes first, as the end of the image then is its end to the last bit.
        scaled = [edge * self.image.size[place % 2] / self.size[place % 2] for place, edge in enumerate(box)]
        return self.image.resize(size, _FILTER, box=scaled)


class JpegImage:
    """A JPEG that is decoded for each part at the smallest scale at which that has as many pixels as it is resized to.

    What was decoded is kept for other parts of that scale.

    Args:
        content: the file.
        header: its own.
        path, name: for messages; see `decode_image`.

    Attributes:
        size: (width, height) of the whole image, upright.
    """

    def __init__(self, content: bytes, header: JpegHeader, path: str | None, name: str) -> None:
        self.size = header.size
        self._mirrored = header.mirrored
        self._encoded, self._name = {"bytes": content, "path": path}, name
        self._decoded: dict[int, Image.Image] = {}

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, with all that was decoded of it."""
        return len(self._encoded["bytes"]) + sum(map(bytes_of, self._decoded.values()))

    def load(self, box: Box, size: Size) -> tuple[Image.Image, int]:
        """Decodes what a part needs, unless that is done.

        Args:
            box, size: see `part`.

        Returns:
            The image in RGB, and the scale by which its sides are divided.

        Raises:
            BadImageError: see `decode_image`.
        """
        scale = scale_for(box, size)
        if scale not in self._decoded:
            self._decoded[scale] = decode_image(self._encoded, self._name, scale)
        return self._decoded[scale], scale

    def part(self, box: Box, size: Size) -> Image.Image:
        """A part of the image, resized; where nothing is saved, the same as of the whole image to the last bit.

        Args:
            box: in pixels of the whole image.
            size: of the result, (width, height).

        Raises:
            BadImageError: see `decode_image`.
        """
        image, scale = self.load(box, size)
        if scale == 1:
            return image.crop(box).resize(size, _FILTER)
        # Sides are rounded up: what is more than the image is at its right and lower end, before it is turned.
        more = image.width - self.size[0] / scale, image.height - self.size[1] / scale
        shift = [more[axis] if self._mirrored[axis] else 0.0 for axis in (0, 1)]
        return image.resize(size, _FILTER, box=[shift[place % 2] + edge / scale for place, edge in enumerate(box)])


def scale_for(box: Box, size: Size) -> int:
    """By how much a JPEG's sides can be divided, 1, 2, 4 or 8, so that a part still has as many pixels as its result.

    Args:
        box: of the part, in pixels of the whole image.
        size: of the result, (width, height).
    """
    (left, top, right, bottom), (width, height) = box, size
    return next((s for s in _SCALES if right - left >= s * width and bottom - top >= s * height), 1)


def open_image(encoded: dict[str, Any] | None, name: str) -> Image.Image | JpegImage:
    """A JPEG, not decoded yet; or an image of another format, decoded to RGB.

    Args:
        encoded, name: see `decode_image`.

    Raises:
        BadImageError: the image is broken, as far as that is known so far; see `decode_image`.
    """
    content = content_to_decode(encoded, name)
    header = jpeg_header(content)
    if header is None:
        return decode_image({**encoded, "bytes": content} if content else encoded, name)  # which is read but once
    return JpegImage(content, header, encoded.get("path"), name)


def open_row(decode: ImageDecoder, index: int) -> Image.Image | JpegImage:
    """See `open_image`, of a row of a data set."""
    return open_image(decode.encoded(index), f"row {index}")


def shrink(image: Image.Image | JpegImage, shorter_side: int) -> Image.Image | ShrunkImage:
    """An image whose shorter side is longer than so many pixels, shrunk to them; any other as it is, decoded.

    Raises:
        BadImageError: see `decode_image`.
    """
    size, whole = shrunk_size(image.size, shorter_side), (0, 0, *image.size)
    if isinstance(image, JpegImage):
        return image.load(whole, size)[0] if size == image.size else ShrunkImage(image.part(whole, size), image.size)
    return image if size == image.size else ShrunkImage(image.resize(size, _FILTER), image.size)


def shrunk_size(size: Size, shorter_side: int) -> Size:
    """The (width, height) of an image after `shrink`."""
    shorter = min(size)
    return size if shorter <= shorter_side else (*(round(side * shorter_side / shorter) for side in size),)


def bytes_of(image: Image.Image | ShrunkImage | JpegImage) -> int:
    """What an image takes in memory."""
    if isinstance(image, Image.Image):
        return 4 * image.width * image.height  # Pillow has four bytes for a pixel of three
    return image.num_bytes
