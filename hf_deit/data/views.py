"""Which view of which image stands where in an epoch, and the seeding of the generators that make a view.

A training view is a value: every random choice behind it is a pure function of (seed, epoch, slot), where slots number
an epoch's views in the order of all processes together. Nothing depends on the worker, rank, batch size or number of
processes, nor on what was drawn before. So a run resumes bit-exactly from any step, and trains alike on any number of
processes.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from ..models.keyed import fold


class ViewKey(NamedTuple):
    """Names one view of one image in one epoch.

    Attributes:
        epoch: from 0.
        slot: the view's place in the epoch's global order, from 0.
        index: the image's row in the data set.
        view: which of the views that repeated augmentation makes of the image in this epoch, from 0.
    """

    epoch: int
    slot: int
    index: int
    view: int


def image_and_view(slot: int, *, repeats: int, images_per_block: int) -> tuple[int, int]:
    """Which image of the epoch's order fills a slot, and with which of its views, both from 0.

    A block has `images_per_block` images: first the first view of each, in their order, then the second of each, and
    so on. So the views of an image stand `images_per_block` slots apart; with one image to a block, side by side.
    """
    block, place = divmod(slot, images_per_block * repeats)
    view, image = divmod(place, images_per_block)
    return block * images_per_block + image, view


@contextmanager
def preserve_global_random_state() -> Iterator[None]:
    """Restores at its end the global generators of `random`, NumPy and torch (CPU), which timm's augmentation uses."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.random.set_rng_state(torch_state)


def seed_global_random_state(seed: int) -> None:
    """Seeds the global generators of `random`, NumPy and torch; that of the GPU stays as it is."""
    random.seed(seed)
    np.random.seed(fold(seed) & 0xFFFFFFFF)
    torch.random.default_generator.manual_seed(seed)


class ViewSampler(Sampler[ViewKey]):
    """The epoch's global order of views, the same on every process.

    Accelerate deals whole batches of it round-robin to the processes, so it must not be sharded here.

    Args:
        num_images: rows of the data set.
        seed: the run's seed.
        total_batch_size: samples per optimizer step over all processes and accumulation steps. An epoch is cut to a
            multiple of it, so that every step is whole; a data set smaller than one step is repeated to fill one, so
            that an epoch is never empty.
        repeats: views of each image (repeated augmentation, Hoffer et al. 2020; DeiT uses 3). An epoch stays about
            `num_images` views long, so it sees about 1 / repeats of the images (as the authors' `RASampler`).
        images_per_block: how far apart the views of an image stand, see `image_and_view`. 1 is side by side. The size
            of a mixing group is as the authors have it, whose `RASampler` deals the views of an image to several GPUs:
            the images of a group differ, and each view of an image is mixed by another draw. Sets with fewer images
            have some of them several times in a block.

    Raises:
        ValueError: one of the numbers is less than 1.
    """

    def __init__(
        self, num_images: int, *, seed: int, total_batch_size: int, repeats: int = 1, images_per_block: int = 1
    ) -> None:
        if min(num_images, total_batch_size, repeats, images_per_block) < 1:
            raise ValueError(
                f"num_images, total_batch_size, repeats and images_per_block must be at least 1, "
                f"got {num_images}, {total_batch_size}, {repeats} and {images_per_block}"
            )
        self.num_images = num_images
        self.seed = seed
        self.repeats, self.images_per_block = repeats, images_per_block
        self.epoch = 0
        self._length = max(num_images // total_batch_size, 1) * total_batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def order(self, epoch: int, pass_number: int = 0) -> np.ndarray:
        """A permutation of the images' rows, (num_images,) int64, by (seed, epoch, pass_number).

        Args:
            epoch: from 0.
            pass_number: which of the epoch's passes over the images; there are several where they are few.
        """
        # RandomState, unlike default_rng, promises the same stream in every NumPy version.
        generator = np.random.RandomState(np.random.MT19937(fold(self.seed, epoch, pass_number)))
        return generator.permutation(self.num_images)

    def keys(self, epoch: int, slots: Iterable[int]) -> Iterator[ViewKey]:
        """The keys of the given slots, which must ascend, of any epoch.

        There are keys beyond `len(self)`, too: with another total batch size the same epoch is longer.
        """
        # As many orders as the passes that a block may lie in, as each of its views goes through all of them.
        order = lru_cache(maxsize=-(-self.images_per_block // self.num_images) + 1)(partial(self.order, epoch))
        for slot in slots:
            image, view = image_and_view(slot, repeats=self.repeats, images_per_block=self.images_per_block)
            pass_number, position = divmod(image, self.num_images)
            yield ViewKey(epoch, slot, int(order(pass_number)[position]), view)

    def __iter__(self) -> Iterator[ViewKey]:
        yield from self.keys(self.epoch, range(self._length))
