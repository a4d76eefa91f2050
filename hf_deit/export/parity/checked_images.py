"""The images that both classifiers are asked about: as files, with labels where there are any."""

import os
from dataclasses import dataclass, replace

import datasets
import numpy as np

from ...data.decoding import file_content
from ...errors import counted
from ...evaluation.classifiers.classifiers import label_order
from ...evaluation.images.images import EvaluationImages
from ...evaluation.images.labels import Labels


@dataclass(frozen=True)
class CheckedImages:
    """N images.

    Attributes:
        images: as the trained classifier's evaluation has them, labelled by the classifier's own labels.
        paths: of their files, as the exported classifier gets them.
        names: what to call them.
    """

    images: EvaluationImages
    paths: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, by the classifier's own numbers; -1 where there is none."""
        return self.images.labels.values

    def __len__(self) -> int:
        return len(self.paths)


def checked_images(images: EvaluationImages, labels: tuple[str, ...], *, most: int, scratch: str) -> CheckedImages:
    """Puts images where another process can read them as their users would.

    Args:
        images: as they were found.
        labels: of the classifier, by index.
        most: how many to take, evenly spread over all of them.
        scratch: a folder for those that are no files.

    Raises:
        InputError: their classes are not the classifier's.
        OSError: they cannot be written.
    """
    order = label_order(images.labels.names, dict(enumerate(labels)), owner="the model")
    total = len(images)
    if total > most:
        left_out = np.ones(total, dtype=bool)
        left_out[np.linspace(0, total - 1, most).round().astype(int)] = False
        images = replace(
            images.without(left_out), words=f"{counted(most, 'image')}, evenly spread over {images.words}"
        )
    values = images.labels.values
    values = values if order is None else np.where(values >= 0, order[values], -1)
    images = replace(images, labels=Labels(tuple(labels), values))
    column = images.image_column
    encoded = images.dataset.cast_column(column, datasets.Image(decode=False))
    paths = [_file(encoded[row][column], os.path.join(scratch, f"image-{row}")) for row in range(len(images))]
    names = [_short(images.name(row)) for row in range(len(images))]
    return CheckedImages(images, tuple(paths), tuple(names))


def _file(encoded: dict[str, object] | None, path: str) -> str:
    """Where the file of an image lies: its own, or one that is written now."""
    if encoded and encoded.get("bytes") is None and os.path.isfile(str(encoded.get("path"))):
        return str(encoded["path"])
    with open(path, "wb") as file:  # of an image that is missing, too: nothing can be read from it
        file.write(file_content(encoded))
    return path


def _short(name: str) -> str:
    """The name of an image without where its folder lies: the file and the folder that it is in."""
    return os.path.join(*name.split(os.sep)[-2:]) if os.path.isabs(name) or os.path.exists(name) else name
