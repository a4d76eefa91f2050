"""Data sets that are read as a stream, image by image, and never held as a whole.

Every process reads its own part of the stream. Slots, views and seeds mean what they mean for data sets with rows.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import Sampler
from yaml import YAMLError

from ..errors import BadImageError, InputError, first_line, image_name
from ..models.keyed import fold
from .columns import IGNORED_LABEL, without_format
from .decoding import decode_image
from .scaled_images import open_image
from .view_dataset import KeyedViews, ReadImage
from .views import image_and_view

_REMEMBERED = 50_000  # keys, without their images, by which a view can still be named
# What datasets raises for names, folders and files that it cannot make a data set of, or read no further.
READING_ERRORS = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, StopIteration, pa.ArrowException),
    *(YAMLError, datasets.exceptions.DatasetsError),
)


class StreamKey(NamedTuple):
    """Names one view of one image of a stream, and carries the image, still encoded, to the worker that decodes it.

    Attributes:
        epoch, slot, view: see `hf_deit.data.views.ViewKey`.
        index: which of the images that the process reads in the epoch it is, from 0.
        encoded: "bytes" and "path" of the image.
        label: in [0, K), or `IGNORED_LABEL` if there is none.
    """

    epoch: int
    slot: int
    index: int
    view: int
    encoded: dict[str, Any]
    label: int


@dataclass
class ImageStream:
    """A stream to train on.

    Args:
        dataset: has an `Image` and a `ClassLabel` column.
        images_per_epoch: how many views make an epoch. A stream that ends before begins again, in another order.
        seed: of the order of shards and images; by default that of the run's views, and 0 without a run.
        shuffle_buffer_size: so many images are kept in memory, encoded, and the next one is chosen from them.

    Raises:
        InputError: an epoch or a buffer without images; columns of unknown types.
    """

    dataset: datasets.IterableDataset
    images_per_epoch: int
    seed: int | None = None
    shuffle_buffer_size: int = 10_000
    image_column: str = "image"
    label_column: str = "label"

    def __post_init__(self) -> None:
        self.dataset = without_format(self.dataset)
        if self.features is None:
            raise InputError(
                "the stream does not say of what type its columns are: give map() and the like features=…"
            )
        for name in ("images_per_epoch", "shuffle_buffer_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}: give another --{name}")

    @property
    def features(self) -> datasets.Features:
        return self.dataset.features

    def read(self, pass_number: int, rank: int, num_processes: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Reads a process's part of the stream once: encoded images and labels, in an order of (seed, pass_number).

        Labels of None and -1 mean that there is none, and come as `IGNORED_LABEL`.

        Args:
            pass_number: each has an order of its own.
            rank: of the process, from 0.
            num_processes: how many share the stream.

        Raises:
            BadImageError: another label out of range; the image is named.
        """
        num_labels = len(self.features[self.label_column].names)
        dataset = self.dataset.select_columns([self.image_column, self.label_column])
        dataset = dataset.cast_column(self.image_column, datasets.Image(decode=False))
        dataset = dataset.cast_column(self.label_column, datasets.Value("int64"))  # which lets us say whose is wrong
        dataset = dataset.shuffle(seed=fold(self.seed or 0, pass_number) >> 32, buffer_size=self.shuffle_buffer_size)
        # "auto" deals whole shards if all parts are equal, else images, for which every process reads the whole. Parts
        # of many shards are nearly equal, and unequal ones do no harm, as a pass that ends begins again.
        strategy = "shards" if dataset.num_shards >= 10 * num_processes else "auto"
        part = split_dataset_by_node(dataset, rank=rank, world_size=num_processes, strategy=strategy)
        for position, row in enumerate(_readable(part)):
            image, label = row[self.image_column], row[self.label_column]
            if label is not None and not -1 <= label < num_labels:
                path = image.get("path") if image else None
                raise BadImageError(
                    f"the image at position {position} of the stream{f' ({path})' if path else ''} has the label "
                    f"{label}: expected one in [0, {num_labels}), or -1 for none. Mend or remove it"
                )
            yield image, IGNORED_LABEL if label in (None, -1) else label


def _readable(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a data set that may turn out to be damaged only as it is read.

    Raises:
        InputError: it is.
    """
    try:
        yield from rows
    except READING_ERRORS as error:
        raise InputError(
            f"the stream cannot be read any further ({first_line(error)}): mend or replace its files"
        ) from error


class StreamSampler(Sampler[StreamKey | None]):
    """The keys of a stream's epoch in the global order of slots, with None in place of other processes' keys.

    Accelerate deals whole batches of this order to the processes in turn, so that every process gets its own keys, and
    none of the batches of None. So each reads its own part of the stream only, and a slot means the same as with other
    data sets.

    With repeated augmentation an epoch trains on 1 / repeats of the stream: each epoch goes on where the one before
    stopped, and a new pass begins after `repeats` epochs. Where an epoch begins follows from its number alone, so that
    a run resumes anywhere. The price is that what comes before in the pass is read, without decoding, and passed over.

    Args:
        batch_size: of one process.
        total_batch_size: samples per optimizer step over all processes and accumulation steps. An epoch is cut to a
            multiple of it.
        rank: of the process whose keys are wanted, from 0.
        num_processes: how many share the stream.
        repeats: views of each image.
        images_per_block: how far apart the views of an image stand among those of the process, see
            `hf_deit.data.views.image_and_view`. So many images are kept in memory, encoded.
    """

    def __init__(
        self,
        stream: ImageStream,
        *,
        batch_size: int,
        total_batch_size: int,
        rank: int = 0,
        num_processes: int = 1,
        repeats: int = 1,
        images_per_block: int = 1,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.rank, self.num_processes = rank, num_processes
        self.repeats, self.images_per_block = repeats, images_per_block
        self.epoch = 0
        self._given: dict[tuple[int, int], StreamKey] = {}  # the last keys by epoch and slot, without their bytes
        self._length = max(stream.images_per_epoch // total_batch_size, 1) * total_batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def _images(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The images of this process, from the first of the epoch on; the stream begins again wherever it ends."""
        stream_pass, part = divmod(self.epoch, self.repeats)
        blocks, rest = divmod(self._length // self.num_processes, self.images_per_block * self.repeats)
        to_skip = part * (blocks * self.images_per_block + min(rest, self.images_per_block))
        restarts = 0
        while True:
            is_empty = True
            # Restarts have numbers of their own, so that they are no later epoch's order.
            for image in self.stream.read(fold(stream_pass, restarts), self.rank, self.num_processes):
                is_empty = False
                if to_skip:
                    to_skip -= 1
                else:
                    yield image
            if is_empty:
                raise InputError(
                    f"the stream has no image for process {self.rank} of {self.num_processes}: it needs at least as "
                    "many images as there are processes"
                )
            restarts += 1

    def __iter__(self) -> Iterator[StreamKey | None]:
        epoch, images, count, block = self.epoch, self._images(), 0, {}
        for slot in range(self._length):
            if slot // self.batch_size % self.num_processes != self.rank:
                yield None
                continue
            index, view = image_and_view(count, repeats=self.repeats, images_per_block=self.images_per_block)
            if view == 0:
                block[index % self.images_per_block] = next(images)
            encoded, label = block[index % self.images_per_block]
            count += 1
            key = StreamKey(epoch, slot, index, view, encoded, label)
            self._given[epoch, slot] = key._replace(encoded={"path": (encoded or {}).get("path")})
            if len(self._given) > _REMEMBERED:
                del self._given[next(iter(self._given))]
            yield key

    def keys(self, epoch: int, slots: Iterable[int]) -> Iterator[StreamKey]:
        """The keys of some slots, without the encoded images, as far as they were given of late."""
        return (self._given[epoch, slot] for slot in slots if (epoch, slot) in self._given)


class StreamViewDataset(KeyedViews):
    """The training views of a stream, by `StreamKey`.

    In place of a broken image that may be skipped comes a black one without label, as no other is at hand.

    Args:
        stream: the one that the keys come from.
        **settings: see `KeyedViews`.
    """

    def __init__(self, stream: ImageStream, transform: Callable[[Image.Image], torch.Tensor], **settings: Any) -> None:
        super().__init__(transform, **settings)
        self.stream = stream

    def __len__(self) -> int:
        return self.stream.images_per_epoch

    def _read(self, key: StreamKey) -> ReadImage:
        name = f"position {key.index} of the stream"
        try:
            image = (open_image if self.reduced_decoding else decode_image)(key.encoded, name)
            self._load(key, image)
            return ReadImage(image, key.label, [])
        except BadImageError as error:
            if self.on_bad_image == "stop":
                raise
            # Its position is another one in every epoch and process.
            checksum = zlib.crc32((key.encoded or {}).get("bytes") or b"")
            note = error.note(f"an image of the stream with the CRC-32 {checksum:08x}")
            return ReadImage(Image.new("RGB", (64, 64)), IGNORED_LABEL, [note])

    def name(self, key: StreamKey) -> str:
        return image_name((key.encoded or {}).get("path"), f"position {key.index} of the stream")
