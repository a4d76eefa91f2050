"""The true labels of the images that models are evaluated on."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Labels:
    """The labels of N images, of K classes.

    Attributes:
        names: of the classes, K.
        values: (N,) int64, the label of each image; -1 where it has none, and is left out of every accuracy.
        accepted: (N, K) bool in rows, where images may have several right labels (ImageNet-ReaL): `values` then holds
            the first of them. None where `values` says all.
    """

    names: tuple[str, ...]
    values: np.ndarray
    accepted: sparse.csr_array | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_labelled(self) -> np.ndarray:
        """(N,) bool: which images have a label."""
        return self.values >= 0

    def are_right(self, classes: np.ndarray) -> np.ndarray:
        """Which answers are right.

        Args:
            classes: (N,) or (N, k) integers in [0, K).

        Returns:
            bool of the same shape, False where an image has no label.
        """
        columns = classes.reshape(len(self), -1)
        if self.accepted is None:
            right = columns == self.values[:, None]
        else:
            rows = np.repeat(np.arange(len(self)), columns.shape[1])
            right = np.asarray(self.accepted[rows, columns.ravel()], dtype=bool).reshape(columns.shape)
        return (right & self.is_labelled[:, None]).reshape(classes.shape)
