"""Rows of a data set as training views and as evaluation images: decoding, seeding, bad images, collation."""

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import convert_to_rgb

from .errors import BadImageError, InputError, first_line
from .image_processing_deit import EIGHT_BIT_MODES
from .views import ViewKey, preserve_global_random_state, seed_global_random_state, view_seed

IGNORED_LABEL = -100

# What Pillow raises for files that are truncated, corrupt, hostile or no images at all.
BAD_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)


class ImageDecoder:
    """Decodes rows of a data set to RGB, or says which row, and which file, is broken.

    Args:
        dataset: with an `Image` column.
        image_column: its name.
    """

    def __init__(self, dataset: datasets.Dataset, image_column: str) -> None:
        self.image_column = image_column
        self._feature = datasets.Image()
        self._encoded = dataset.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))

    def __call__(self, index: int) -> Image.Image:
        """The image of row `index`, with transparency on white, as the image processors give it.

        Raises:
            BadImageError: the image is missing or broken.
        """
        encoded = self._encoded[index][self.image_column]
        try:
            if encoded is None:
                raise ValueError("there is no image")
            image = self._feature.decode_example(encoded)
            if image.mode not in EIGHT_BIT_MODES:
                raise ValueError(f"mode {image.mode!r} has more than 8 bits per channel, scale it to 8 bits")
            if image.mode == "RGB" and "transparency" not in image.info:
                return image
            return Image.fromarray(convert_to_rgb(image, return_numpy=True))
        except BAD_IMAGE_ERRORS as error:
            path = encoded.get("path") if encoded else None
            raise BadImageError(
                f"the image of row {index}{f' ({path})' if path else ''} cannot be decoded: {first_line(error)}. "
                "Mend or remove it, or pass --on_bad_image skip"
            ) from error


class ViewDataset(Dataset):
    """Turns lists of `ViewKey` into training views, each seeded by its own (seed, epoch, slot).

    Args:
        dataset: with an `Image` and a `ClassLabel` column.
        transform: from an RGB image to (3, H, W) uint8.
        seed: the run's seed.
        image_column, label_column: their names.
        on_bad_image: "stop" raises `BadImageError`; "skip" puts the next readable image of the data set into the slot,
            so that batches stay whole, and counts it in `bad_images`.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        seed: int,
        image_column: str = "image",
        label_column: str = "label",
        on_bad_image: Literal["stop", "skip"] = "stop",
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.on_bad_image = on_bad_image
        self._decode = ImageDecoder(dataset, image_column)
        self._labels = np.asarray(dataset[label_column][:])

    def __len__(self) -> int:
        return len(self.dataset)

    def _decode_or_skip(self, index: int) -> tuple[int, Image.Image]:
        for candidate in itertools.islice(itertools.cycle(range(len(self))), index, index + len(self)):
            try:
                return candidate, self._decode(candidate)
            except BadImageError:
                if self.on_bad_image == "stop":
                    raise
        raise InputError(f"none of the {len(self)} images can be decoded")

    def __getitems__(self, keys: Sequence[ViewKey]) -> list[dict[str, Any]]:
        samples, decoded = [], {}
        with preserve_global_random_state():
            for key in keys:
                if key.index not in decoded:
                    # The views of one image lie side by side, so that only the last image need be kept.
                    decoded = {key.index: self._decode_or_skip(key.index)}
                index, image = decoded[key.index]
                seed = view_seed(self.seed, key.epoch, key.slot)
                seed_global_random_state(seed)
                samples.append(
                    {
                        "pixel_values": self.transform(image),
                        "labels": int(self._labels[index]),
                        "view_seeds": seed,
                        "bad_images": int(index != key.index),
                    }
                )
        return samples

    def __getitem__(self, key: ViewKey) -> dict[str, Any]:
        return self.__getitems__([key])[0]


class EvaluationDataset(Dataset):
    """Rows of a data set, resized and cropped by an image processor, as uint8.

    Args:
        dataset: with an `Image` and a `ClassLabel` column.
        processor: resizes and crops every image to one size.
        image_column, label_column: their names.
        on_bad_image: "stop" raises `BadImageError`; "skip" gives a black image with the label -100, which losses and
            metrics ignore.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: BaseImageProcessor,
        *,
        image_column: str = "image",
        label_column: str = "label",
        on_bad_image: Literal["stop", "skip"] = "stop",
    ) -> None:
        self.dataset = dataset
        self.processor = processor
        self.on_bad_image = on_bad_image
        self._decode = ImageDecoder(dataset, image_column)
        self._labels = np.asarray(dataset[label_column][:])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = int(self._labels[index])
        try:
            image = self._decode(index)
        except BadImageError:
            if self.on_bad_image == "stop":
                raise
            image, label = Image.new("RGB", (64, 64)), IGNORED_LABEL
        pixels = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels.to(torch.uint8), "labels": label}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stacks samples: `pixel_values` (B, 3, H, W) uint8, everything else (B,) int64."""
    batch = {name: torch.tensor([sample[name] for sample in samples]) for name in samples[0] if name != "pixel_values"}
    return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), **batch}
