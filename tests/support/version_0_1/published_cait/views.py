"""A training view is a value: every random choice behind it is a pure function of (seed, epoch, slot).

Slots number an epoch's global order. Nothing depends on the worker, rank, batch size or world size, nor on what was
drawn before, so a run resumes bit-exactly from any step and trains alike on any number of processes.
"""

import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

_MASK = (1 << 64) - 1
# SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers whose output passes BigCrush.
_GAMMA, _MULTIPLIER_1, _MULTIPLIER_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class ViewKey(NamedTuple):
    """Names one view of one image in one epoch.

    Attributes:
        epoch: epoch number, from 0.
        slot: position in the epoch's global order, from 0.
        index: row of the data set.
        view: which of the image's repeated views in this epoch this is, from 0.
    """

    epoch: int
    slot: int
    index: int
    view: int


def _splitmix64(z: int) -> int:
    z = (z + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLIER_1) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLIER_2) & _MASK
    return z ^ (z >> 31)


def fold(*values: int) -> int:
    """Hashes integers, in order, into one unsigned 64-bit integer. The same on every platform and version."""
    state = 0
    for value in values:
        state = _splitmix64(state ^ (value & _MASK))
    return state


def view_seed(seed: int, epoch: int, slot: int) -> int:
    """The seed of one view, as a signed 64-bit integer (so that it fits a `torch.int64`)."""
    folded = fold(seed, epoch, slot)
    return folded - (1 << 64) if folded >> 63 else folded


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def keyed_uniform(seeds: torch.Tensor, stream: int) -> torch.Tensor:
    """One uniform number per view, computed on the seeds' device, bit-identical on every device.

    Args:
        seeds: (B,) int64, from `view_seed`.
        stream: which of the view's independent numbers is wanted.

    Returns:
        (B,) float32 in [0, 1).
    """

    def shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:  # logical; `>>` on int64 keeps the sign
        return (z >> bits) & ((1 << (64 - bits)) - 1)

    z = (seeds ^ _signed(fold(stream))) + _signed(_GAMMA)
    z = (z ^ shift_right(z, 30)) * _signed(_MULTIPLIER_1)
    z = (z ^ shift_right(z, 27)) * _signed(_MULTIPLIER_2)
    z = z ^ shift_right(z, 31)
    return shift_right(z, 40).to(torch.float32) * 2.0**-24


def _mix32(z: torch.Tensor) -> torch.Tensor:
    """In place: a bijection of 32-bit integers with little bias (Wellons, "Prospecting for hash functions", 2018)."""

    def xor_shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
        return z.bitwise_xor_((z >> bits).bitwise_and_((1 << (32 - bits)) - 1))

    z = xor_shifted(z, 16).mul_(0x7FEB352D)
    z = xor_shifted(z, 15).mul_(0x846CA68B - (1 << 32))
    return xor_shifted(z, 16)


def keyed_normal(seeds: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise per view, on the seeds' device, the same on every device up to float rounding.

    Args:
        seeds: (B,) int64, from `view_seed`.
        shape: of one view's noise.

    Returns:
        (B, *shape) float32.
    """
    counter = torch.arange(math.prod(shape), dtype=torch.int32, device=seeds.device).mul_(0x9E3779B9 - (1 << 32))
    halves = ((((seeds >> bits) & 0xFFFFFFFF) ^ (1 << 31)) - (1 << 31) for bits in (0, 32))  # as signed 32-bit values
    low, high = (half.to(torch.int32).unsqueeze(1) for half in halves)
    bits = _mix32(_mix32(counter ^ low).bitwise_xor_(high))
    # Odd multiples of 2^-23 in (-1, 1), each exact in float32; their inverse error function is normal.
    uniform = (bits >> 9).bitwise_and_((1 << 23) - 1).mul_(2).add_(1 - (1 << 23)).to(torch.float32).mul_(2.0**-23)
    return uniform.erfinv_().mul_(math.sqrt(2)).view(-1, *shape)


@contextmanager
def preserve_global_random_state() -> Iterator[None]:
    """Restores the generators of `random`, NumPy and torch (CPU) that timm's augmentation draws from."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.random.set_rng_state(torch_state)


def seed_global_random_state(seed: int) -> None:
    """Seeds `random`, NumPy and torch (CPU only: `torch.manual_seed` would seed, and so change, the GPU's too)."""
    random.seed(seed)
    np.random.seed(fold(seed) & 0xFFFFFFFF)
    torch.random.default_generator.manual_seed(seed)


class ViewSampler(Sampler[ViewKey]):
    """The epoch's global order of views, the same on every process.

    Accelerate deals whole batches of it round-robin to the processes, so it must not be sharded here.

    Args:
        num_images: rows of the data set, at least 1.
        seed: the run's seed.
        total_batch_size: samples per optimizer step over all processes and accumulation steps. An epoch is cut to a
            multiple of it, so that every step is whole; a data set smaller than one step is repeated to fill one, so
            that an epoch is never empty.
        repeats: views of each image that lie side by side (repeated augmentation, Hoffer et al. 2020; DeiT uses 3).
            An epoch stays about `num_images` views long, so it sees about 1 / repeats of the images (DeiT, RASampler).
    """

    def __init__(self, num_images: int, *, seed: int, total_batch_size: int, repeats: int = 1) -> None:
        if min(num_images, total_batch_size, repeats) < 1:
            raise ValueError(
                f"num_images, total_batch_size and repeats must be at least 1, "
                f"got {num_images}, {total_batch_size} and {repeats}"
            )
        self.num_images = num_images
        self.seed = seed
        self.repeats = repeats
        self.epoch = 0
        self._length = max(num_images // total_batch_size, 1) * total_batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def order(self, epoch: int, pass_number: int = 0) -> np.ndarray:
        """A permutation of the images, (num_images,) int64, keyed by (seed, epoch, pass_number)."""
        # RandomState, unlike default_rng, promises the same stream in every NumPy version.
        generator = np.random.RandomState(np.random.MT19937(fold(self.seed, epoch, pass_number)))
        return generator.permutation(self.num_images)

    def keys(self, epoch: int, slots: Iterable[int]) -> Iterator[ViewKey]:
        """The keys of any slots of any epoch, also beyond `len(self)`, which other batches may reach.

        Args:
            epoch: from 0.
            slots: ascending.
        """
        last_pass, pass_length = -1, self.num_images * self.repeats
        for slot in slots:
            pass_number, position = divmod(slot, pass_length)
            if pass_number != last_pass:
                order, last_pass = self.order(epoch, pass_number), pass_number
            yield ViewKey(epoch, slot, int(order[position // self.repeats]), position % self.repeats)

    def __iter__(self) -> Iterator[ViewKey]:
        yield from self.keys(self.epoch, range(self._length))
