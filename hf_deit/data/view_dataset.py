"""Rows of a data set as training views and as evaluation images: decoding, seeding, bad images, collation."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.image_processing_utils import BaseImageProcessor

from ..errors import BadImageError, InputError
from ..models.keyed import view_seed
from .batch_augment import Mixing, RandomErasing
from .decoding import ImageDecoder
from .views import ViewKey, preserve_global_random_state, seed_global_random_state

IGNORED_LABEL = -100


def labels_of(dataset: datasets.Dataset, label_column: str) -> np.ndarray:
    """(N,) int64: the labels of all rows, -100 where there is none."""
    rows = dataset.select_columns(label_column)
    chunks = (rows[start : start + 10_000][label_column] for start in range(0, len(rows), 10_000))
    labels = (IGNORED_LABEL if label is None else label for chunk in chunks for label in chunk)
    return np.fromiter(labels, dtype=np.int64, count=len(rows))


def pixel_crc(pixel_values: torch.Tensor | np.ndarray) -> int:
    """The CRC-32 of a view, (3, H, W) uint8 as the loader makes it."""
    return zlib.crc32(np.ascontiguousarray(pixel_values))


class KeyedViews(Dataset):
    """Turns lists of keys into training views, each seeded by its own (seed, epoch, slot).

    Args:
        transform: from an RGB image to (3, H, W) uint8.
        seed: the run's seed.
        erasing, mixing: what is drawn for the views, to be done on the device.
        on_bad_image: "stop" raises `BadImageError`; "skip" lets another image stand in and counts it in `bad_images`.

    Attributes:
        has_labels: whether any image has one.
        wants_crc: of which views of an epoch, by their slots, the CRC of the pixels is wanted. If it is set, samples
            have their `slots`, with the epoch above the lower 32 bits, and their `pixel_crcs`, -1 for the others.
    """

    has_labels = True
    wants_crc: Callable[[int, np.ndarray], np.ndarray] | None = None

    def __init__(
        self,
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        seed: int,
        erasing: RandomErasing | None = None,
        mixing: Mixing | None = None,
        on_bad_image: Literal["stop", "skip"] = "stop",
    ) -> None:
        self.transform = transform
        self.seed = seed
        self.erasing = erasing
        self.mixing = mixing
        self.on_bad_image = on_bad_image

    def _read(self, key: Any) -> tuple[Image.Image, int, bool]:
        """A key's image, its label, and whether the image stands in for one that is broken."""
        raise NotImplementedError

    def __getitems__(self, keys: Sequence[Any]) -> list[dict[str, Any]]:
        samples, last_index = [], None
        with preserve_global_random_state():
            for key in keys:
                if key.index != last_index:  # the views of one image lie side by side
                    image, label, is_bad = self._read(key)
                    last_index = key.index
                seed = view_seed(self.seed, key.epoch, key.slot)
                seed_global_random_state(seed)
                pixel_values = self.transform(image)
                sample = {"pixel_values": pixel_values, "labels": label, "view_seeds": seed, "bad_images": int(is_bad)}
                if self.erasing is not None:
                    size = tuple(pixel_values.shape[-2:])
                    sample["erase_boxes"] = self.erasing.box(self.seed, key.epoch, key.slot, size)
                samples.append(sample)
        if self.mixing is not None:
            self._draw_mixing(self.mixing, keys, samples)
        if self.wants_crc is not None:
            self._note_crcs(keys, samples)
        return samples

    def _note_crcs(self, keys: Sequence[Any], samples: list[dict[str, Any]]) -> None:
        slots = np.array([key.slot for key in keys])
        wanted = {epoch: self.wants_crc(epoch, slots) for epoch in {key.epoch for key in keys}}
        for position, (key, sample) in enumerate(zip(keys, samples, strict=True)):
            crc = pixel_crc(sample["pixel_values"]) if wanted[key.epoch][position] else -1
            sample.update(slots=key.slot + (key.epoch << 32), pixel_crcs=crc)

    def _draw_mixing(self, mixing: Mixing, keys: Sequence[Any], samples: list[dict[str, Any]]) -> None:
        size = tuple(samples[0]["pixel_values"].shape[-2:])
        groups = [(key.epoch, key.slot // mixing.group_size) for key in keys]
        drawn = {group: mixing.parameters(self.seed, *group, size) for group in set(groups)}
        offsets = mixing.partner_offsets([key.slot for key in keys])
        for sample, group, offset in zip(samples, groups, offsets, strict=True):
            label_weight, pixel_weight, box = drawn[group]
            sample.update(
                partner_offsets=offset, label_weights=label_weight, pixel_weights=pixel_weight, mix_boxes=box
            )

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return self.__getitems__([key])[0]


class ViewDataset(KeyedViews):
    """The views of a data set with rows, by `ViewKey`.

    Args:
        dataset: with an `Image` and a `ClassLabel` column; None is no label.
        transform: from an RGB image to (3, H, W) uint8.
        image_column, label_column: their names.
        on_bad_image: "stop" raises `BadImageError`; "skip" puts the next readable image of the data set into the slot,
            so that batches stay whole, and counts it in `bad_images`.
        **settings: see `KeyedViews`.

    Attributes:
        labels: of all rows, (N,) int64, -100 where there is none.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        image_column: str = "image",
        label_column: str = "label",
        **settings: Any,
    ) -> None:
        super().__init__(transform, **settings)
        self.dataset = dataset
        self.image_column, self.label_column = image_column, label_column
        self._decode = ImageDecoder(dataset, image_column)
        self.labels = labels_of(dataset, label_column)
        self.has_labels = bool((self.labels >= 0).any())

    def __len__(self) -> int:
        return len(self.dataset)

    def _read(self, key: ViewKey) -> tuple[Image.Image, int, bool]:
        for offset in range(len(self)):
            candidate = (key.index + offset) % len(self)
            try:
                return self._decode(candidate), int(self.labels[candidate]), candidate != key.index
            except BadImageError:
                if self.on_bad_image == "stop":
                    raise
        raise InputError(f"none of the {len(self)} images can be decoded")


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
        self._labels = labels_of(dataset, label_column)

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
    """Stacks samples: `pixel_values` (B, 3, H, W) uint8, boxes (B, 4), all else (B,); integers as int64."""
    batch = {name: torch.tensor([sample[name] for sample in samples]) for name in samples[0] if name != "pixel_values"}
    return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), **batch}
