"""Images that are kept decoded, so that later epochs do not decode them again."""

import os
import shutil
import struct
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging

from ..models.keyed import fold
from .decoding import size_of

logger = logging.get_logger(__name__)

_SIZE = struct.Struct("<II")  # width and height, before the pixels
_SAMPLED = 256  # images whose headers tell how large all are
_PART_OF_DISK = 0.9  # of what is free


class DecodedImages:
    """Decodes the images of a data set, and keeps them in files, which a process and its workers share.

    They lie in a folder of their own among the system's temporary files (TMPDIR), which goes with the object, and
    where there is memory the system holds them there. Where not all have room, always the same ones are kept. The
    pixels are those that `decode` gives.

    Args:
        decode: gives the RGB image of a row, as `hf_deit.data.decoding.ImageDecoder`.
        num_images: rows.
        max_bytes: of all files, about: by the sizes of some images.
    """

    def __init__(self, decode: Any, num_images: int, max_bytes: float) -> None:
        self._decode = decode
        self.folder = tempfile.mkdtemp(prefix="hf_deit_images_")
        self._gone = weakref.finalize(self, _remove, self.folder, os.getpid())
        room = min(max_bytes, _PART_OF_DISK * shutil.disk_usage(self.folder).free)
        self.kept_part = min(1.0, room / max(_bytes_of_all(decode.encoded, num_images), 1))
        if self.kept_part < 1:
            logger.warning(
                "%.0f %% of the %s images are kept decoded, in %.1f GB in %s: --cache_images_gb gives them more room, "
                "TMPDIR another place",
                *(100 * self.kept_part, f"{num_images:,}", room / 1e9, self.folder),
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_gone"}  # a worker removes nothing

    def __call__(self, index: int) -> Image.Image:
        """The image of a row; raises what `decode` does."""
        path = os.path.join(self.folder, str(index // 1000), str(index))
        try:
            with open(path, "rb") as file:
                content = memoryview(file.read())
        except OSError:
            image = self._decode(index)
            if fold(index) < self.kept_part * 2**64:
                self._keep(image, path)
            return image
        return Image.frombytes("RGB", _SIZE.unpack_from(content), content[_SIZE.size :])

    def _keep(self, image: Image.Image, path: str) -> None:
        unfinished = f"{path}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(unfinished, "wb") as file:
                file.write(_SIZE.pack(*image.size))
                file.write(image.tobytes())
            os.replace(unfinished, path)  # whole or not at all, for those who read it meanwhile
        except OSError as error:
            self.kept_part = 0.0
            logger.warning("no more images are kept decoded in %s: %s", self.folder, error.strerror or error)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a worker that was forked has the object, too
        shutil.rmtree(folder, ignore_errors=True)


def _bytes_of_all(encoded: Callable[[int], dict[str, Any] | None], num_images: int) -> float:
    """About how many bytes the pixels of all images take."""
    rows = np.linspace(0, num_images - 1, num=min(num_images, _SAMPLED), dtype=int).tolist() if num_images else []
    sizes = [size_of(encoded(row)) for row in rows]
    known = [3 * width * height for width, height in filter(None, sizes)]
    return num_images * float(np.mean(known)) if known else 0.0
