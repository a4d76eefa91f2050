"""Decodes the images of a data set to RGB, and names those that are broken.

A file that is damaged may make a decoder raise anything: all of it means a broken image. Where only its metadata are
broken, the pixels are good and are used.
"""

import contextlib
import functools
import io
import logging
import math
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

import datasets
from datasets.utils.file_utils import is_local_path, xopen
from PIL import ExifTags, Image, UnidentifiedImageError
from transformers.image_transforms import convert_to_rgb
from transformers.utils import logging as transformers_logging

from ..errors import BadImageError, InputError, first_line, image_name, shortlist
from ..models.image_processing_deit import EIGHT_BIT_MODES

logger = transformers_logging.get_logger(__name__)

# The largest image that is read, in pixels. Worker processes inherit it.
PIXEL_LIMIT_VARIABLE = "HF_DEIT_MAX_IMAGE_PIXELS"

_TRANSPOSITIONS = {  # by the EXIF orientation; 1 is upright (TIFF 6.0, tag 274)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of a turned image: whether its left side was its right or lower one, and its top likewise.
_MIRRORED = {2: (True, False), 3: (True, True), 4: (False, True), 6: (True, False), 7: (True, True), 8: (False, True)}
_SIDEWAYS = (5, 6, 7, 8)
_JPEG_FORMATS = ("JPEG", "MPO")  # as cameras have several images in one file, of which the first is taken
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_SNIFFED = 4096  # bytes
# Segments of a JPEG that Pillow passes over, or reads without a doubt if they have so many bytes: JFIF, Adobe, Huffman
# tables, restart intervals, comments.
_PLAIN_SEGMENTS = {0xE0: 16, 0xEE: 14, 0xC4: 3, 0xDD: 3, 0xFE: 3}
_T = TypeVar("_T")
_File = str | BinaryIO

NO_IMAGE = "no image that Pillow can open"
_DAMAGED = "damaged behind the header"
_SCALE = (
    "Scale images of more than 8 bits by what is white in all of them, 65535 or 1.0, say: "
    "Image.fromarray(np.uint8(np.asarray(image) / white * 255)). "
)
_RAISE_LIMIT = (
    "Make such images smaller, or raise the limit, which guards against decompression bombs: set the environment "
    f"variable {PIXEL_LIMIT_VARIABLE} to so many pixels. "
)


class _DeepImageError(ValueError):
    """An image has more than 8 bits per channel; the message is its mode."""


class JpegHeader(NamedTuple):
    """What is known of a JPEG before it is decoded.

    Attributes:
        size: (width, height), upright.
        mirrored: whether columns, and rows, count from the stored image's right or lower end once it is upright.
    """

    size: tuple[int, int]
    mirrored: tuple[bool, bool]


def decode_image(encoded: dict[str, Any] | None, name: str, scale: int = 1) -> Image.Image:
    """Decodes an image to RGB: turned upright, and where it is transparent white, as the image processors have it.

    Args:
        encoded: with its "bytes" or its "path", as `datasets.Image(decode=False)` gives it; None is a missing image.
        name: what to call it in the message.
        scale: by which the sides of a JPEG are divided, and rounded up, as it is decoded: 1, 2, 4 or 8.

    Raises:
        BadImageError: the image is missing or broken, has more than 8 bits per channel, or too many pixels.
    """
    _prepare_pillow()
    with _refusing(encoded, name):
        return _with_or_without_metadata(functools.partial(_decode, scale=scale), _file_of(encoded))


@contextlib.contextmanager
def _refusing(encoded: dict[str, Any] | None, name: str) -> Iterator[None]:
    """Turns whatever goes wrong with an image in it into a `BadImageError`; see `decode_image`."""
    try:
        yield
    except Exception as error:
        path = encoded.get("path") if encoded else None
        kind, remedy = _kind_and_remedy(error)
        if kind == NO_IMAGE and not isinstance(error, UnidentifiedImageError):
            is_telling = isinstance(error, OSError | SyntaxError | ValueError)
            kind = first_line(error) if is_telling else repr(error)
        raise BadImageError(
            f"the image of {name}{f' ({path})' if path else ''} cannot be decoded: {kind}. "
            f"{remedy}Mend or remove it, or pass --on_bad_image skip",
            path=path,
            reason=kind,
        ) from error


def fault_of_header(file: _File) -> tuple[str, str] | None:
    """Why an image cannot be used, as far as its header tells, without decoding it.

    Args:
        file: its path, or the file, open.

    Returns:
        What kind of file it is, and what to do about it, if there is anything; None for an image that can be used.
    """
    if _is_plain_jpeg(file):
        return None
    error = _error_of(_check_header, file)
    return None if error is None else _kind_and_remedy(error)


def fault_of_pixels(file: _File) -> tuple[str, str] | None:
    """Why an image cannot be used: what `fault_of_header` says, or that its pixels cannot be decoded."""
    error = _error_of(_decode, file)
    if error is None:
        return None
    kind, remedy = _kind_and_remedy(error)
    is_damaged = kind == NO_IMAGE and not isinstance(error, UnidentifiedImageError)
    return (_DAMAGED if is_damaged else kind), remedy


def refuse_faults(
    faults: Mapping[str, tuple[str, str]], total: int, where: str, on_bad_image: str, *, tells: bool = False
) -> None:
    """Refuses images that cannot be used, unless they may be skipped and are not all.

    Args:
        faults: by the name of the image, from `fault_of_header`.
        total: how many images there are.
        where: what they are and where they lie, for the message.
        on_bad_image: "stop" or "skip".
        tells: whether those that will be skipped are told.

    Raises:
        InputError: with the kinds of faults, and what to do.
    """
    if not faults or (on_bad_image == "skip" and len(faults) < total):
        if faults and tells:
            logger.warning(
                "%d of the %d %s cannot be used and will be skipped: %s", len(faults), total, where, shortlist(faults)
            )
        return
    names: dict[tuple[str, str], list[str]] = {}
    for name, fault in faults.items():
        names.setdefault(fault, []).append(name)
    listing = "; ".join(f"{len(named)} {kind}: {shortlist(named)}" for (kind, _), named in names.items())
    remedies = "".join(dict.fromkeys(remedy for _, remedy in names))
    skip = "" if on_bad_image == "skip" else ", or pass --on_bad_image skip"
    raise InputError(
        f"{len(faults)} of the {total} {where} cannot be used: {listing}. {remedies}Mend or remove them{skip}"
    )


def size_of(encoded: dict[str, Any] | None) -> tuple[int, int] | None:
    """The (width, height) of an image, from its header; None of one that cannot be read."""
    _prepare_pillow()
    try:
        with Image.open(_file_of(encoded)) as image:
            return image.size
    except Exception:  # of any kind, as of a broken file; who decodes it says what is wrong
        return None


def jpeg_header(content: bytes) -> JpegHeader | None:
    """The header of a JPEG file; None of another one, and of one that cannot be read."""
    if not content.startswith(_JPEG):
        return None
    _prepare_pillow()
    try:
        return _with_or_without_metadata(_read_jpeg_header, io.BytesIO(content))
    except Exception:  # of any kind, as of a broken file; who decodes it says what is wrong
        return None


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
        return decode_image(self.encoded(index), f"row {index}")

    def encoded(self, index: int) -> dict[str, Any] | None:
        """The file of row `index`: see `decode_image`."""
        return self._encoded[index][self.image_column]

    def name(self, index: int, where: str, number: int | None = None) -> str:
        """What to call the image of row `index`; see `image_name`.

        Args:
            where: what the rows are, for an image that is no file: "the training images", say.
            number: of the row among them, if that is another.
        """
        place = f"row {index if number is None else number} of {where}"
        return image_name((self._encoded[index][self.image_column] or {}).get("path"), place)


def file_content(encoded: dict[str, Any] | None) -> bytes:
    """The bytes of an image's file, which may be broken; none where the image is missing.

    Args:
        encoded: see `decode_image`.

    Raises:
        OSError: the file cannot be read.
    """
    if not encoded or (encoded.get("bytes") is None and encoded.get("path") is None):
        return b""
    with _opened(_file_of(encoded)) as file:
        return file.read()


def content_to_decode(encoded: dict[str, Any] | None, name: str) -> bytes:
    """See `file_content`; a file that cannot be read is refused as `decode_image` does it.

    Raises:
        BadImageError: it cannot be read.
    """
    with _refusing(encoded, name):
        return file_content(encoded)


def is_remote(path: str) -> bool:
    """Whether a path is an address on the Hub or elsewhere; the name of a file may have a colon, too."""
    return not is_local_path(path) and not os.path.lexists(path)


def _file_of(encoded: dict[str, Any] | None) -> _File:
    path, content = (encoded or {}).get("path"), (encoded or {}).get("bytes")
    if content is not None:
        return io.BytesIO(content)
    if path is None:
        raise ValueError("there is no image")
    if not is_remote(path):
        return path
    with xopen(path, "rb") as file:
        return io.BytesIO(file.read())


def _kind_and_remedy(error: Exception) -> tuple[str, str]:
    """What kind of file raised an error, and what to do about it, if there is anything."""
    if isinstance(error, _DeepImageError):
        return f"of mode {error}, which has more than 8 bits per channel", _SCALE
    if isinstance(error, Image.DecompressionBombError):
        return f"of more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels", _RAISE_LIMIT
    if isinstance(error, OSError) and error.strerror:  # the file system's, not Pillow's
        return f"unreadable ({error.strerror})", ""
    return NO_IMAGE, ""


def _error_of(read: Callable[[_File], Any], file: _File) -> Exception | None:
    """What keeps a function from reading an image."""
    _prepare_pillow()
    try:
        _with_or_without_metadata(read, file)
    except Exception as error:
        return error
    return None


def _prepare_pillow() -> None:
    """Sets the limit that the environment asks for, and keeps what Pillow says of each odd file out of the log.

    Raises:
        InputError: a limit that is none.
    """
    _silence_pillow()
    limit = os.environ.get(PIXEL_LIMIT_VARIABLE)
    if limit is None:
        return
    if not re.fullmatch(r"0*[1-9][0-9]{0,17}", limit):
        raise InputError(f"{PIXEL_LIMIT_VARIABLE} must be a number of pixels, say 400000000, got {limit!r}")
    Image.MAX_IMAGE_PIXELS = -(-int(limit) // 2)  # Pillow refuses what is twice as large


@functools.cache
def _silence_pillow() -> None:
    # catch_warnings would make every other warning, which is shown once, be shown again after each image.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def _is_plain_jpeg(file: _File) -> bool:
    """Whether an image is surely one that Pillow opens: a JPEG whose header is as those of nearly all are.

    It takes a third of the time. Whatever Pillow could stumble over, say metadata, makes it false, and is left to it.
    """
    _prepare_pillow()
    try:
        with _opened(file, buffering=0) as opened:
            opened.seek(0)
            start = opened.read(_SNIFFED)
    except OSError:
        return False
    if not start.startswith(b"\xff\xd8\xff"):
        return False
    position, has_frame = 2, False
    while position + 4 <= len(start) and start[position] == 0xFF:
        kind, length = start[position + 1], start[position + 2] << 8 | start[position + 3]
        body, end = position + 4, position + 2 + length
        if length < 3 or end > len(start):
            return False
        if kind == 0xDA:  # the first scan, where the header ends
            return has_frame
        if kind in (0xC0, 0xC1, 0xC2) and not has_frame:  # baseline, extended, progressive
            has_frame = _is_plain_frame(start[body:end])
            is_plain = has_frame
        elif kind == 0xDB:  # tables of 64 values in 8 bits
            is_plain = length % 65 == 2 and not any(table >> 4 for table in start[body:end:65])
        else:
            is_plain = length >= _PLAIN_SEGMENTS.get(kind, math.inf)
        if not is_plain:
            return False
        position = end
    return False


def _is_plain_frame(frame: bytes) -> bool:
    """Whether a JPEG's frame, without its length, is of grey or of three colours, in 8 bits and not too large."""
    if len(frame) not in (9, 15) or frame[0] != 8 or 6 + 3 * frame[5] != len(frame):
        return False
    pixels = int.from_bytes(frame[1:3]) * int.from_bytes(frame[3:5])
    return 0 < pixels <= (Image.MAX_IMAGE_PIXELS or math.inf)


def _check_header(file: _File) -> None:
    with Image.open(file) as image:  # reads the header only
        _check_depth(image)


def _check_depth(image: Image.Image) -> None:
    if image.mode not in EIGHT_BIT_MODES:
        raise _DeepImageError(image.mode)


def _read_jpeg_header(file: _File) -> JpegHeader | None:
    with Image.open(file) as image:
        if image.format not in _JPEG_FORMATS:
            return None
        width, height = image.size
        orientation = _orientation(image)
    size = (height, width) if orientation in _SIDEWAYS else (width, height)
    return JpegHeader(size, _MIRRORED.get(orientation, (False, False)))


def _decode(file: _File, scale: int = 1) -> Image.Image:
    with _opened(file) as opened:
        image = Image.open(opened)
        if scale > 1 and image.format in _JPEG_FORMATS:
            # Pillow takes the largest scale at which both sides are as long: of eight pixels or more, this one.
            image.draft(None, (max(image.width // scale, 1), max(image.height // scale, 1)))
        image.load()
    _check_depth(image)
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    return Image.fromarray(convert_to_rgb(image, return_numpy=True))


def _opened(file: _File, buffering: int = -1) -> contextlib.AbstractContextManager[BinaryIO]:
    """A file, open. By its path Pillow would map uncompressed TIFF into memory, and scramble what lies on its side."""
    return open(file, "rb", buffering) if isinstance(file, str) else contextlib.nullcontext(file)


def _upright(image: Image.Image) -> Image.Image:
    """The image as its orientation says that it is to be looked at; as it is, if that cannot be read."""
    # ImageOps.exif_transpose writes all of the EXIF data anew, which fails where any of them is broken.
    method = _TRANSPOSITIONS.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int | None:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if orientation in _TRANSPOSITIONS else None
    except Exception:
        return None


def _with_or_without_metadata(read: Callable[[_File], _T], file: _File) -> _T:
    """What `read` makes of a file or, if it fails, of its pixels alone."""
    try:
        return read(file)
    except Exception as error:
        try:
            bare = _without_metadata(file)
            if bare is not None:
                return read(io.BytesIO(bare))
        except Exception:
            pass  # then the pixels are broken, or missing: the first reason is the clearer one
        raise error


def _without_metadata(file: _File) -> bytes | None:
    """A PNG or JPEG file without what says nothing of its pixels; None for other formats.

    Of those Pillow reads no metadata before they are asked for.
    """
    with _opened(file) as opened:
        opened.seek(0)
        start = opened.read(len(_PNG))
        if start == _PNG:
            return _bare_png(start + opened.read())
        return _bare_jpeg(start + opened.read()) if start.startswith(_JPEG) else None


def _bare_png(content: bytes) -> bytes:
    """Keeps the critical chunks, the transparency, and EXIF data that are whole."""
    kept, start = [content[:8]], 8
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])
        kind, is_ancillary = content[start + 4 : start + 8], content[start + 4] & 0x20
        is_whole = zlib.crc32(content[start + 4 : end - 4]) == int.from_bytes(content[end - 4 : end])
        if not is_ancillary or kind == b"tRNS" or (kind == b"eXIf" and is_whole):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _bare_jpeg(content: bytes) -> bytes:
    """Keeps of the application segments Adobe's, which says what the samples mean, and EXIF."""
    kept, start = [content[:2]], 2
    while content[start + 1] != 0xDA:  # the start of the first scan
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4])
        segment = content[start:end]
        if not 0xE0 <= segment[1] <= 0xEF or segment[1] == 0xEE or segment[4:8] == b"Exif":
            kept.append(segment)
        start = end
    return b"".join([*kept, content[start:]])
