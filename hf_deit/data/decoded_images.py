"""Images that are kept decoded, so that later epochs do not decode them again."""

import glob
import os
import shutil
import struct
import tempfile
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from transformers.utils import logging

from ..errors import InputError
from ..models.keyed import fold
from .decoding import ImageDecoder, is_remote, size_of
from .scaled_images import ShrunkImage, open_row, shrink, shrunk_size

logger = logging.get_logger(__name__)

_PREFIX = "hf_deit_images_"
_LOCK, _OPEN = "lock", "takes_more"  # held while the owner lives; there while there is room
_SIZES = struct.Struct("<IIII")  # width and height of what is kept, and of the image, before the pixels
_SAMPLED = 256  # images whose headers tell how large all are
_USUAL_BYTES = 3 * 500 * 375  # where no header tells it, as of ImageNet
_BLOCK = 4096  # bytes, in which disks count
_PART_OF_DISK = 0.5  # of what is free, as a run writes other things, too


class DecodedImages:
    """Decodes the images of a data set, and keeps them in files, which a process and its workers share.

    They lie in a folder of their own among the system's temporary files (TMPDIR), which goes with the object, and
    where there is memory the system holds them there. What a process that was killed has left, the next one removes.
    Where not all have room, always the same ones are kept. The pixels are those that `decode` gives, or those of a
    smaller image; which images are kept changes none.

    Args:
        decode: gives the RGB image of a row.
        num_images: rows.
        max_bytes: of all files, about: by the sizes of some images.
        shorter_side: to so many pixels images are shrunk before they are kept, and those that are not kept, too; None
            for not at all.

    Raises:
        InputError: there can be no temporary files.
    """

    def __init__(
        self, decode: ImageDecoder, num_images: int, max_bytes: float, *, shorter_side: int | None = None
    ) -> None:
        self._decode, self._shorter_side = decode, shorter_side
        self._how = "decoded" if shorter_side is None else "resized"
        try:
            _remove_abandoned()
            self.folder = tempfile.mkdtemp(prefix=_PREFIX)
            lock = FileLock(os.path.join(self.folder, _LOCK))
            lock.acquire(timeout=0)
            with open(os.path.join(self.folder, _OPEN), "wb"):
                pass
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise InputError(
                f"images cannot be kept {self._how} in {tempfile.gettempdir()!r} ({error.strerror or error}): let "
                "TMPDIR name another folder, or leave --cache_images out"
            ) from error
        self._gone = weakref.finalize(self, _remove, self.folder, lock, os.getpid())
        # Those of other processes of the run see the same disk, of which none has written anything yet.
        room = min(max_bytes, _PART_OF_DISK * free / int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        self.kept_part = min(1.0, room / max(_bytes_of_all(decode, num_images, shorter_side), 1))
        if self.kept_part < 1:
            logger.warning(
                "%.0f %% of the %s images are kept %s, in %.1f GB in %s: --cache_images_gb gives them more room, "
                "TMPDIR another place",
                *(100 * self.kept_part, f"{num_images:,}", self._how, room / 1e9, self.folder),
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_gone"}  # a worker removes nothing

    def __call__(self, index: int) -> Image.Image | ShrunkImage:
        """The image of a row; raises what `decode` does."""
        path = os.path.join(self.folder, str(index // 1000), str(index))
        try:
            with open(path, "rb") as file:
                content = memoryview(file.read())
            width, height, *size = _SIZES.unpack_from(content)
            image = Image.frombytes("RGB", (width, height), content[_SIZES.size :])
            return image if [width, height] == size else ShrunkImage(image, (size[0], size[1]))
        except (OSError, ValueError, struct.error):  # it is not there, or is damaged
            if self._shorter_side is None:
                image = self._decode(index)
            else:
                image = shrink(open_row(self._decode, index), self._shorter_side)
            if fold(index) < self.kept_part * 2**64:
                self._keep(image, path)
            return image

    def _keep(self, image: Image.Image | ShrunkImage, path: str) -> None:
        pixels = image.image if isinstance(image, ShrunkImage) else image
        unfinished, is_open = f"{path}.{os.getpid()}", os.path.join(self.folder, _OPEN)
        if not os.path.exists(is_open):
            return
        try:
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(path))  # not the folder itself, if it is gone: a worker may outlive its owner
            with open(unfinished, "wb") as file:
                file.write(_SIZES.pack(*pixels.size, *image.size))
                file.write(pixels.tobytes())
            os.replace(unfinished, path)  # whole or not at all, for those who read it meanwhile
        except OSError as error:
            with suppress(OSError):
                os.remove(unfinished)
            with suppress(OSError):
                os.remove(is_open)  # which one process can, so that one line is said
                logger.warning("no more images are kept %s in %s: %s", self._how, self.folder, error.strerror or error)


def _remove(folder: str, lock: FileLock, owner: int) -> None:
    if os.getpid() != owner:  # a worker that was forked has the object, too
        return
    gone = f"{folder}.gone"  # nobody writes there any more
    with suppress(OSError):
        os.rename(folder, gone)
    lock.release()
    shutil.rmtree(gone, ignore_errors=True)


def _remove_abandoned() -> None:
    """Removes the folders of this user's processes that were killed, which hold their locks no longer."""
    for folder in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{_PREFIX}*")):
        lock = os.path.join(folder, _LOCK)
        with suppress(OSError, Timeout):
            if os.stat(lock).st_uid == getattr(os, "getuid", lambda: 0)():  # which Windows has not
                with FileLock(lock, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _bytes_of_all(decode: ImageDecoder, num_images: int, shorter_side: int | None) -> float:
    """About how much the pixels of all images take on disk. Images elsewhere than here are not asked for."""
    rows = np.linspace(0, num_images - 1, num=min(num_images, _SAMPLED), dtype=int).tolist() if num_images else []
    here = [encoded for row in rows if not is_remote(((encoded := decode.encoded(row)) or {}).get("path") or "")]
    sizes = [*filter(None, map(size_of, here))]
    if shorter_side is not None:
        sizes = [shrunk_size(size, shorter_side) for size in sizes]
    known = [3 * width * height for width, height in sizes] or [_USUAL_BYTES]
    return num_images * float(np.mean([-(-(size + _SIZES.size) // _BLOCK) * _BLOCK for size in known]))
