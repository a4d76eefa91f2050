"""The images that the scales of int8 activations are measured on: real ones, and none that the proof counts."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch

from ...data.decoding import ImageDecoder
from ...errors import BadImageError, InputError, counted, shortlist
from ...evaluation.classifiers.classifiers import Classifier

# Measured, see hf_deit/export/README.md: with 8 images the noise of int8 is 4 dB louder, from 32 on the same.
FEWEST_IMAGES = 32
NUM_IMAGES = 256
SEED = 0
_BATCH_SIZE = 16


class Calibration:
    """Batches of `pixel_values`, as a classifier gets them of images drawn from a data set.

    They are decoded anew at each pass, so that no more than a batch is in memory.

    Args:
        dataset: of images; labels are not looked at.
        image_column: its column of images.
        classifier: whose preprocessing is used.
        words: what the images are, for people: "training images of sklearn:digits".
        num_images: how many to draw.
        seed: of the drawing.

    Attributes:
        num_images: that were drawn and could be decoded.
        skipped: what is wrong with those that could not.

    Raises:
        InputError: fewer than `FEWEST_IMAGES` can be decoded.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_column: str,
        classifier: Classifier,
        words: str,
        *,
        num_images: int = NUM_IMAGES,
        seed: int = SEED,
    ) -> None:
        if num_images < FEWEST_IMAGES:
            raise InputError(
                f"int8 is calibrated on at least {FEWEST_IMAGES} images, got {num_images}: with fewer, its scales "
                "hang on the chance of the draw"
            )
        self._decoder, self._classifier = ImageDecoder(dataset, image_column), classifier
        self.words, self.seed = words, seed
        self.skipped: dict[str, str] = {}
        self._rows: list[int] = []
        for row in np.random.default_rng(seed).permutation(len(dataset)).tolist():
            if len(self._rows) == num_images:
                break
            try:
                self._decoder(row)
            except BadImageError as error:
                self.skipped[self._decoder.name(row, "the images")] = error.reason
            else:
                self._rows.append(row)
        self.num_images = len(self._rows)
        if self.num_images < FEWEST_IMAGES:
            broken = f", and {counted(len(self.skipped), 'other')} cannot be decoded ({shortlist(self.skipped, 3)})"
            raise InputError(
                f"{counted(self.num_images, 'image')} of {words} can be used to calibrate int8"
                f"{broken if self.skipped else ''}; at least {FEWEST_IMAGES} are needed, and {NUM_IMAGES} are better: "
                "give --calibration_dir, a folder with more images like those that the model will see, or "
                "--int8 dynamic, which needs none"
            )

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self.batches(_BATCH_SIZE)

    def batches(self, batch_size: int, most: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """{"pixel_values": (B, 3, height, width) float32}, with B = `batch_size` but for the last.

        Args:
            most: images in all; None for all.
        """
        rows = self._rows[:most]
        for start in range(0, len(rows), batch_size):
            images = [self._decoder(row) for row in rows[start : start + batch_size]]
            yield {"pixel_values": torch.stack([self._classifier.preprocess(image) for image in images])}

    @property
    def facts(self) -> dict[str, Any]:
        """For the record, of JSON's types."""
        return {
            "images": self.words,
            "num_images": self.num_images,
            "num_skipped": len(self.skipped),
            "seed": self.seed,
        }


class Singly:
    """Calibration images one by one, as programs for one image take them and NNCF counts them."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self._calibration.batches(1)

    def __len__(self) -> int:
        return self._calibration.num_images
