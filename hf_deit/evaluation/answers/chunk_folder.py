"""Arrays about images on disk: a folder with a file for every few hundred of them.

What is computed for an image depends neither on how many processes there are nor on where a command was stopped:
chunks and the batches within them have fixed bounds, whoever computes them. Only whole chunks count.
"""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from ...errors import CheckpointError
from ...hub.files import remove_leftovers, write_json, write_whole

Arrays = dict[str, np.ndarray]


class ChunkFolder:
    """Chunks of arrays about N images.

    Args:
        path: of the folder.
        num_images: N.
        size: images of a chunk; the last one may have fewer.
        is_whole: whether a chunk that was read has what it shall have, by its number, arrays and skipped images.
    """

    def __init__(
        self, path: str, *, num_images: int, size: int, is_whole: Callable[[int, Arrays, dict[int, str]], bool]
    ) -> None:
        self.path, self.num_images, self.size = path, num_images, size
        self._is_whole = is_whole

    @property
    def num_chunks(self) -> int:
        return -(-self.num_images // self.size)

    def rows(self, chunk: int) -> range:
        """Which images a chunk is about."""
        return range(chunk * self.size, min((chunk + 1) * self.size, self.num_images))

    def begin(self, identity: Mapping[str, Any], identity_file: str) -> None:
        """Makes the folder, and clears what a killed process has left there. For one process.

        Args:
            identity: of JSON's types: what the chunks depend on, for whoever looks there.
            identity_file: its name in the folder.

        Raises:
            OSError: nothing can be written there.
        """
        os.makedirs(self.path, exist_ok=True)
        remove_leftovers(self.path)
        write_json(identity, os.path.join(self.path, identity_file))

    def absent(self) -> list[int]:
        """The chunks that are not there, or not as they were written."""
        return [chunk for chunk in range(self.num_chunks) if self.find(chunk) is None]

    def write(self, chunk: int, arrays: Arrays, skipped: Mapping[int, str]) -> None:
        """Writes a chunk, whole or not at all.

        Args:
            skipped: why an image could not be used, by its place in the chunk.

        Raises:
            CheckpointError: it cannot be written, say on a full disk.
        """
        arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        about = {"crc32": _crc(arrays), "skipped": list(skipped.items())}
        metadata = {"about": json.dumps(about)}  # in one entry: safetensors writes several in any order
        try:
            write_whole(safetensors.numpy.save(arrays, metadata=metadata), self._file(chunk))
        except OSError as error:
            raise CheckpointError(
                f"cannot write answers to {self.path!r} ({error.strerror or error}): what is there is whole, and the "
                "same command goes on when the disk takes more"
            ) from error

    def read(self, chunk: int) -> tuple[Arrays, dict[int, str]]:
        """A chunk that is there: its arrays, and why images could not be used, by their places in it.

        Raises:
            CheckpointError: it is not, or no more as it was written.
        """
        found = self.find(chunk)
        if found is None:
            raise self._gone(chunk)
        return found

    def skipped(self) -> dict[int, str]:
        """Why images could not be used, by their rows. No chunk may be absent.

        Raises:
            CheckpointError: see `read`.
        """
        found = {}
        for chunk in range(self.num_chunks):
            try:
                with safe_open(self._file(chunk), framework="np") as file:  # without its tensors
                    skipped = json.loads(file.metadata()["about"])["skipped"]
            except (OSError, SafetensorError) as error:
                raise self._gone(chunk) from error
            found |= {self.rows(chunk)[place]: why for place, why in skipped}
        return found

    def find(self, chunk: int) -> tuple[Arrays, dict[int, str]] | None:
        """What `read` gives, or None where it finds nothing."""
        try:
            with safe_open(self._file(chunk), framework="np") as file:
                about = json.loads((file.metadata() or {})["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about["crc32"] != _crc(arrays):
                return None
            skipped = {int(row): str(why) for row, why in about["skipped"]}
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None
        return (arrays, skipped) if self._is_whole(chunk, arrays, skipped) else None

    def _gone(self, chunk: int) -> CheckpointError:
        return CheckpointError(
            f"{self._file(chunk)!r} is gone, or no more as it was written: the same command makes it again"
        )

    def _file(self, chunk: int) -> str:
        return os.path.join(self.path, f"chunk-{chunk:05}.safetensors")


def _crc(arrays: Arrays) -> int:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].data, zlib.crc32(f"{name} {arrays[name].shape}".encode(), crc))
    return crc
