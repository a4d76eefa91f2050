"""Images of a data set as training views and as evaluation images, and batches of them.

A training view is named by a key, and made with generators that are seeded by it: decoded, transformed, and given the
numbers that the device needs to erase and mix it (`hf_deit.data.batch_augment`).
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.image_processing_utils import BaseImageProcessor

from ..errors import BadImageError, InputError
from ..models.keyed import view_seed
from .batch_augment import Mixing, RandomErasing
from .columns import IGNORED_LABEL, labels_of, without_format
from .decoded_images import DecodedImages
from .decoding import ImageDecoder
from .scaled_images import JpegImage, ShrunkImage, bytes_of, open_row
from .views import ViewKey, preserve_global_random_state, seed_global_random_state

_MOST_KEPT = 64 * 1024 * 1024  # bytes of a worker's decoded images: 64 of ImageNet's average size are 47 MB


AnyImage = Image.Image | ShrunkImage | JpegImage


class ReadImage(NamedTuple):
    """What was read for a key: its image, its label, and a line for each broken image that it stands in for."""

    image: AnyImage
    label: int
    passed_over: list[str]


class _ReadImages:
    """Images that more views are to come of, so that each is decoded once where the same worker makes these views.

    The last one is kept whatever its size, others as long as there is room. Which are kept changes no view.

    Args:
        repeats: views of an image.
        images_per_block: slots from one view of an image to the next, by which is known how long to keep it.
    """

    def __init__(self, repeats: int, images_per_block: int) -> None:
        self._repeats, self._images_per_block = repeats, images_per_block
        self._kept: dict[Any, tuple[int, ReadImage]] = {}  # with the slot of the last view
        self._last: tuple[Any, ReadImage | None] = (None, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._repeats, self._images_per_block)  # a worker that is sent it begins without images

    def get(self, key: Any, read: Callable[[Any], ReadImage], load: Callable[[Any, AnyImage], None]) -> ReadImage:
        """The image of a key.

        Args:
            read: makes it.
            load: decodes of one that other views have had what this one needs, which counts before it is kept on.
        """
        name = key.epoch, key.index
        _, found = self._kept.pop(name, (0, None))
        if name == self._last[0]:
            found = self._last[1]
        if found is not None:
            try:
                load(key, found.image)
            except BadImageError:
                found = None
        if found is None:
            self._last = (None, None)
            self._kept = {
                other: kept for other, kept in self._kept.items() if other[0] == key.epoch and kept[0] >= key.slot
            }
            found = read(key)
        self._last = name, found
        last_slot = key.slot + (self._repeats - 1 - key.view) * self._images_per_block
        kept_images = [found.image, *(other.image for _, other in self._kept.values())]
        if last_slot > key.slot and sum(map(bytes_of, kept_images)) <= _MOST_KEPT:
            self._kept[name] = last_slot, found
        return found


def pixel_crc(pixel_values: torch.Tensor | np.ndarray) -> int:
    """The CRC-32 of a view's pixels, (3, H, W) uint8, before they are normalised."""
    return zlib.crc32(np.ascontiguousarray(pixel_values))


class KeyedViews(Dataset):
    """Training views by their keys, `ViewKey` or `StreamKey`; a view is a pure function of (seed, epoch, slot).

    A sample is a dictionary: `pixel_values` (3, H, W) uint8, `labels`, `slots`, with the epoch above the lower 32
    bits, `view_seeds`, and `bad_images`, which is 1 where another image stands in for a broken one; where these are
    skipped `skipped`, text with a line for each that was passed over; with erasing `erase_boxes`, with mixing
    `partner_offsets`, `label_weights`, `pixel_weights` and `mix_boxes`. Samples that are to be mixed must be asked for
    as one list.

    Args:
        transform: from an RGB image to (3, H, W) uint8. It must not change the image, which may get more views.
            Images that are not decoded whole, or kept smaller, need a `TrainTransform`.
        seed: the run's seed.
        repeats, images_per_block: of the sampler that the keys come from. Views do not depend on them, but how often
            an image is decoded for them does.
        erasing: draws which part of a view is erased on the device; None for none.
        mixing: draws how views are mixed on the device; None for not at all.
        on_bad_image: "stop" raises `BadImageError`; "skip" lets another image stand in.
        reduced_decoding: whether a JPEG is decoded at the smallest scale that a view allows; see `JpegImage`.

    Attributes:
        has_labels: whether any image has a label.
        wants_crc: a function of an epoch and slots, (B,), that says of which of these views the CRC of the pixels is
            wanted, (B,) bool; None for none. With it samples have `pixel_crcs`, -1 where none is wanted.
    """

    has_labels = True
    wants_crc: Callable[[int, np.ndarray], np.ndarray] | None = None

    def __init__(
        self,
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        seed: int,
        repeats: int = 1,
        images_per_block: int = 1,
        erasing: RandomErasing | None = None,
        mixing: Mixing | None = None,
        on_bad_image: Literal["stop", "skip"] = "stop",
        reduced_decoding: bool = False,
    ) -> None:
        self.transform = transform
        self.reduced_decoding = reduced_decoding
        self.seed = seed
        self.erasing = erasing
        self.mixing = mixing
        self.on_bad_image = on_bad_image
        self._images = _ReadImages(repeats, images_per_block)

    def _read(self, key: Any) -> ReadImage:
        raise NotImplementedError

    def _load(self, key: Any, image: AnyImage) -> None:
        """Decodes of an image what a key's view needs: before that nobody knows whether it is broken, nor its size.

        Raises:
            BadImageError: it is.
        """
        if isinstance(image, JpegImage):
            self.transform.load(image, view_seed(self.seed, key.epoch, key.slot))

    def name(self, key: Any) -> str:
        """What to call a key's image: its file, or its place in the data set; here only that of its view."""
        return f"slot {key.slot} of epoch {key.epoch}"

    def __getitems__(self, keys: Sequence[Any]) -> list[dict[str, Any]]:
        samples: list[dict[str, Any]] = [{} for _ in keys]
        places: dict[tuple[int, int], list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault((key.epoch, key.index), []).append(place)
        with preserve_global_random_state():
            # Image by image, so that one is decoded once for its views of a batch though there be no room to keep it.
            for place in chain.from_iterable(places.values()):
                key, sample = keys[place], samples[place]
                image, label, passed_over = self._images.get(key, self._read, self._load)
                seed = view_seed(self.seed, key.epoch, key.slot)
                seed_global_random_state(seed)
                pixel_values = self.transform(image)
                sample.update(pixel_values=pixel_values, labels=label, view_seeds=seed)
                sample.update(slots=key.slot + (key.epoch << 32), bad_images=int(bool(passed_over)))
                if self.on_bad_image == "skip":
                    sample["skipped"] = "\n".join(passed_over)
                if self.erasing is not None:
                    size = tuple(pixel_values.shape[-2:])
                    sample["erase_boxes"] = self.erasing.box(self.seed, key.epoch, key.slot, size)
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
            sample["pixel_crcs"] = crc

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
    """The training views of a data set with rows, by `ViewKey`.

    In place of a broken image that may be skipped comes the next one of the data set that can be decoded, with its own
    label, so that batches stay whole.

    Args:
        dataset: has an `Image` and a `ClassLabel` column; a label of None means that there is none.
        cache_bytes: how many bytes of decoded images to keep on disk; see `DecodedImages`. None with reduced decoding.
        kept_side: to so many pixels the shorter side of what is kept is shrunk; None for not at all.
        **settings: see `KeyedViews`.

    Attributes:
        labels: of all rows, (N,) int64, `IGNORED_LABEL` where there is none.
        decoded: gives the image of a row, or raises `BadImageError`.

    Raises:
        ValueError: images are to be kept and to be decoded for each view, or to be shrunk and not to be kept.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        image_column: str = "image",
        label_column: str = "label",
        cache_bytes: float = 0.0,
        kept_side: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(transform, **settings)
        self.dataset = without_format(dataset)
        self.image_column, self.label_column = image_column, label_column
        self._decode = ImageDecoder(self.dataset, image_column)
        if (self.reduced_decoding and cache_bytes) or (kept_side is not None and not cache_bytes):
            raise ValueError(
                "kept_side is of images that cache_bytes keeps, and reduced_decoding goes without both, got kept_side "
                f"{kept_side}, cache_bytes {cache_bytes:g}, reduced_decoding {self.reduced_decoding}"
            )
        self.decoded: Callable[[int], AnyImage] = self._decode
        if self.reduced_decoding:
            self.decoded = partial(open_row, self._decode)
        elif cache_bytes:
            self.decoded = DecodedImages(self._decode, len(self.dataset), cache_bytes, shorter_side=kept_side)
        self.labels = labels_of(self.dataset, label_column)
        self.has_labels = bool((self.labels >= 0).any())

    def __len__(self) -> int:
        return len(self.dataset)

    def _read(self, key: ViewKey) -> ReadImage:
        passed_over = []
        for offset in range(len(self)):
            candidate = (key.index + offset) % len(self)
            try:
                image = self.decoded(candidate)
                self._load(key, image)
                return ReadImage(image, int(self.labels[candidate]), passed_over)
            except BadImageError as error:
                if self.on_bad_image == "stop":
                    raise
                passed_over.append(error.note(f"row {candidate} of the training images"))
        raise InputError(f"none of the {len(self)} images can be decoded")

    def name(self, key: ViewKey) -> str:
        return self._decode.name((key.index + len(self._read(key).passed_over)) % len(self), "the training images")


class EvaluationDataset(Dataset):
    """The images of a data set, resized and cropped to one size: `pixel_values` (3, H, W) uint8, and `labels`.

    Where broken images are skipped there is `skipped`, too: a line of text about the image, or "" if it is whole.

    Args:
        dataset: has an `Image` and a `ClassLabel` column.
        processor: resizes and crops; the device normalises.
        on_bad_image: "stop" raises `BadImageError`; "skip" gives a black image with `IGNORED_LABEL`, which losses and
            metrics pass over.
        where: what to call the images in messages.

    Attributes:
        labels: of all rows, (N,) int64, `IGNORED_LABEL` where there is none.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: BaseImageProcessor,
        *,
        image_column: str = "image",
        label_column: str = "label",
        on_bad_image: Literal["stop", "skip"] = "stop",
        where: str = "the validation images",
    ) -> None:
        self.dataset = without_format(dataset)
        self.where = where
        self.processor = processor
        self.on_bad_image = on_bad_image
        self.image_column, self.label_column = image_column, label_column
        self._decode = ImageDecoder(self.dataset, image_column)
        self.labels = labels_of(self.dataset, label_column)

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """What to call the image of a row: its file, or its place in the data set."""
        return self._decode.name(index, self.where)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label, note = int(self.labels[index]), ""
        try:
            image = self._decode(index)
        except BadImageError as error:
            if self.on_bad_image == "stop":
                raise
            image, label = Image.new("RGB", (64, 64)), IGNORED_LABEL
            note = error.note(f"row {index} of {self.where}")
        pixels = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        sample = {"pixel_values": pixels.to(torch.uint8), "labels": label}
        return sample if self.on_bad_image == "stop" else {**sample, "skipped": note}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples to a batch: `pixel_values` (B, 3, H, W) uint8, boxes (B, 4), all else (B,), integers as int64.

    Besides, there are `batch_augment.PLACES` in the batch: with erasing `erased_views` (E,), whose box is not empty;
    with mixing `blended_views` (M,), whose pixels outside of the box are not all their own, and `cut_views` (C,),
    whose box is not empty. `skipped` is a list of text, and is there only if there is anything to say.
    """
    numbers = [name for name in samples[0] if name not in ("pixel_values", "skipped")]
    batch = {name: torch.tensor([sample[name] for sample in samples]) for name in numbers}
    if "erase_boxes" in batch:
        batch["erased_views"] = batch["erase_boxes"].any(dim=1).nonzero().flatten()
    if "mix_boxes" in batch:
        batch["blended_views"] = (batch["pixel_weights"] < 1).nonzero().flatten()
        batch["cut_views"] = batch["mix_boxes"].any(dim=1).nonzero().flatten()
    notes = [sample["skipped"] for sample in samples if sample.get("skipped")]
    skipped = {"skipped": notes} if notes else {}
    return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), **batch, **skipped}
