"""Random numbers that are a pure function of a key, the same on every device and in every version.

This file is published beside CaiT's weights. It may import no other part of the package.
"""

import math
from typing import TypeVar

import numpy as np
import torch

_MASK = (1 << 64) - 1
_Integers = TypeVar("_Integers", int, np.ndarray)  # one, or an array of uint64
# SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers whose output passes BigCrush.
_GAMMA, _MULTIPLIER_1, _MULTIPLIER_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _splitmix64(z: _Integers) -> _Integers:
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


def fold_array(*values: int, last: np.ndarray) -> np.ndarray:
    """`fold(*values, value)` for each value of `last`, integers of shape (N,), as uint64 of shape (N,)."""
    return _splitmix64(np.asarray(last).astype(np.uint64) ^ np.uint64(fold(*values)))


def view_seed(seed: int, epoch: int, slot: int) -> int:
    """The seed of one view, as a signed 64-bit integer (so that it fits a `torch.int64`).

    Args:
        seed: of the run.
        slot: the view's position in the global order of its epoch.
    """
    folded = fold(seed, epoch, slot)
    return folded - (1 << 64) if folded >> 63 else folded


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Of int64, logically; `>>` keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64_of(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64 of int64, whose bits are taken as those of unsigned integers."""

    def xor_shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
        return z ^ _shift_right(z, bits)

    z = z + _signed(_GAMMA)
    z = xor_shifted(z, 30) * _signed(_MULTIPLIER_1)
    z = xor_shifted(z, 27) * _signed(_MULTIPLIER_2)
    return xor_shifted(z, 31)


def keyed_uniform(seeds: torch.Tensor, stream: int) -> torch.Tensor:
    """One uniform number per view, computed on the seeds' device, bit-identical on every device.

    Args:
        seeds: (B,) int64, from `view_seed`.
        stream: which one; a view has an independent number for every stream.

    Returns:
        (B,) float32 in [0, 1).
    """
    return as_uniform(_shift_right(_splitmix64_of(seeds ^ _signed(fold(stream))), 40))


def keyed_draws(seeds: torch.Tensor, num_streams: int) -> torch.Tensor:
    """The bits of `keyed_uniform` of many streams, by as many operations as of one: on a GPU these are what costs.

    Args:
        seeds: (B,) int64, from `view_seed`.
        num_streams: from stream 0 on.

    Returns:
        (num_streams, B) int64 in [0, 2^24), of which `as_uniform` makes the numbers.
    """
    streams = _splitmix64_of(torch.arange(num_streams, device=seeds.device))  # `fold(stream)` of each
    return _shift_right(_splitmix64_of(seeds ^ streams.unsqueeze(1)), 40)


def as_uniform(draws: torch.Tensor) -> torch.Tensor:
    """Uniform numbers, float32 in [0, 1), of integers in [0, 2^24), of any shape."""
    return draws.to(torch.float32) * 2.0**-24


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
