"""Contract: a keyed random number is a pure function of its key, the same on every platform.

The hash is SplitMix64, checked against its published outputs and against Python's unbounded integers. The noise is
normal and uncorrelated between views, channels and positions.
"""

import itertools
from statistics import NormalDist

import numpy as np
import pytest
import torch
from support.images import random_states

from hf_deit.models.keyed import as_uniform, fold, fold_array, keyed_draws, keyed_normal, keyed_uniform, view_seed

MODULUS = 2**64


def splitmix64(state: int) -> int:
    """One output of the generator in state `state` (Steele, Lea, Flood 2014), written with divisions and modulo."""
    z = (state + 0x9E3779B97F4A7C15) % MODULUS
    z = (z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9 % MODULUS
    z = (z ^ (z // 2**27)) * 0x94D049BB133111EB % MODULUS
    return z ^ (z // 2**31)


def test_reference_gives_the_published_outputs():
    # Of the reference implementation (prng.di.unimi.it/splitmix64.c), for the seed 1234567.
    outputs = [splitmix64((1234567 + step * 0x9E3779B97F4A7C15) % MODULUS) for step in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("values", [(0,), (1234567,), (1, 2, 3), (-1,), (2**63, -(2**63)), (0, 0), (7, 2**64 + 7)])
def test_fold_chains_splitmix64(values):
    state = 0
    for value in values:
        state = splitmix64(state ^ (value % MODULUS))
    assert fold(*values) == state


def test_fold_is_golden():
    """Stored labels and resumed runs rely on these bits."""
    assert fold(0) == 0xE220A8397B1DCDAF
    assert fold(1234567) == 6457827717110365317


def test_fold_depends_on_order_and_length():
    assert len({fold(1, 2), fold(2, 1), fold(1), fold(2), fold(1, 2, 0), fold(0, 1, 2)}) == 6


@pytest.mark.parametrize("values", [(), (3,), (2**63, 7, -1)])
def test_fold_array_folds_each_value_last(values):
    last = np.array([0, 1, -1, 2**40, -(2**63), 2**63 - 1])
    folded = fold_array(*values, last=last)
    assert folded.dtype == np.uint64
    assert folded.tolist() == [fold(*values, int(value)) for value in last]
    large = np.array([2**63, 2**64 - 1], dtype=np.uint64)
    assert fold_array(*values, last=large).tolist() == [fold(*values, int(value)) for value in large]
    assert fold_array(*values, last=np.arange(0)).shape == (0,)
    assert last.tolist() == [0, 1, -1, 2**40, -(2**63), 2**63 - 1]


def test_view_seeds_are_signed_and_never_collide():
    keys = list(itertools.product((0, 1, 42), range(20), range(500)))
    seeds = [view_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert -(2**63) <= min(seeds) < 0 < max(seeds) < 2**63
    assert [seed % MODULUS for seed in seeds[:50]] == [fold(*key) for key in keys[:50]]
    assert torch.tensor(seeds).tolist() == seeds


@pytest.mark.parametrize("stream", [0, 1, 23, 10**12, -1])
def test_keyed_uniform_equals_splitmix64_in_big_integers(stream):
    seeds = [view_seed(0, 0, slot) for slot in range(200)] + [0, 1, -1, 2**63 - 1, -(2**63)]
    expected = [(splitmix64((seed % MODULUS) ^ fold(stream)) >> 40) / 2**24 for seed in seeds]
    uniform = keyed_uniform(torch.tensor(seeds), stream)
    assert uniform.dtype == torch.float32
    assert uniform.tolist() == expected


def test_keyed_draws_are_those_of_each_stream():
    seeds = [view_seed(0, 0, slot) for slot in range(200)] + [0, 1, -1, 2**63 - 1, -(2**63)]
    expected = [
        [(splitmix64((seed % MODULUS) ^ fold(stream)) >> 40) / 2**24 for seed in seeds] for stream in range(30)
    ]
    uniform = as_uniform(keyed_draws(torch.tensor(seeds), 30))
    assert uniform.dtype == torch.float32
    assert uniform.tolist() == expected


def test_keyed_uniform_is_uniform():
    uniform = keyed_uniform(torch.tensor([view_seed(3, 1, slot) for slot in range(40_000)]), stream=5).double()
    assert 0 <= uniform.min() < 1e-3
    assert 1 - 1e-3 < uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(1 / 2, abs=5 / (12 * 40_000) ** 0.5)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.003)
    counts = torch.histc(uniform, bins=20, min=0, max=1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 50  # χ² with 19 degrees of freedom: p ≈ 1e-4


def test_streams_epochs_and_seeds_are_uncorrelated():
    slots = range(10_000)
    draws = [
        keyed_uniform(torch.tensor([view_seed(seed, epoch, slot) for slot in slots]), stream)
        for seed, epoch, stream in [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (1, 0, 0), (0, 0, 2**40)]
    ]
    # Neighbouring slots too.
    correlation = np.corrcoef(torch.stack([*draws, draws[0].roll(1)]).numpy())
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.05


def test_keyed_uniform_does_not_touch_its_seeds_or_the_generator():
    seeds = torch.tensor([1, 2, 3])
    state = torch.random.get_rng_state()
    keyed_uniform(seeds, 0)
    assert seeds.tolist() == [1, 2, 3]
    assert torch.equal(torch.random.get_rng_state(), state)


def mix32(z: int) -> int:
    """Wellons' `lowbias32`, the published integer hash, written with divisions and modulo."""
    z = (z ^ (z // 2**16)) * 0x7FEB352D % 2**32
    z = (z ^ (z // 2**15)) * 0x846CA68B % 2**32
    return z ^ (z // 2**16)


def normal_at(seed: int, position: int) -> float:
    """One number of a view's noise: of the 23 highest bits of a hash the middle of their bin, as a quantile."""
    low, high = seed % 2**32, seed % 2**64 // 2**32
    bits = mix32(mix32((position * 0x9E3779B9 % 2**32) ^ low) ^ high)
    return NormalDist().inv_cdf((bits // 2**9 + 0.5) / 2**23)


def test_keyed_normal_equals_the_hash_in_big_integers():
    seeds = [view_seed(0, 0, slot) for slot in range(20)] + [0, 1, -1, 2**63 - 1, -(2**63), 2**31, 2**32, -(2**31)]
    noise = keyed_normal(torch.tensor(seeds), (3, 5, 7))
    assert noise.dtype == torch.float32
    assert noise.shape == (len(seeds), 3, 5, 7)
    expected = [[normal_at(seed, position) for position in range(3 * 5 * 7)] for seed in seeds]
    np.testing.assert_allclose(noise.flatten(1).numpy(), expected, atol=2e-6)


def test_keyed_normal_equals_the_hash_where_its_counter_overflows():
    positions = [0, 1, 2, 40_000, 150_527, 442_367]
    noise = keyed_normal(torch.tensor([-7]), (3, 384, 384)).flatten()
    np.testing.assert_allclose(noise[positions], [normal_at(-7, position) for position in positions], atol=2e-6)


def test_keyed_normal_is_golden():
    """Resumed runs rely on it."""
    noise = keyed_normal(torch.tensor([view_seed(0, 0, 0), view_seed(0, 0, 1)]), (2, 2))
    golden = [[0.6275357, -0.3980904, -1.1492547, 0.5176919], [-0.4715214, 0.2493291, -1.5116854, 0.9974809]]
    np.testing.assert_allclose(noise.flatten(1), golden, atol=1e-6)


def test_keyed_normal_is_normal():
    n = 32 * 3 * 100 * 100
    noise = keyed_normal(torch.tensor([view_seed(3, 1, slot) for slot in range(32)]), (3, 100, 100)).double().flatten()
    for power, moment in enumerate((0, 1, 0, 3, 0, 15), start=1):
        variance = (1, 2, 15, 96, 945, 10_170)[power - 1]  # of x ** power
        assert (noise**power).mean().item() == pytest.approx(moment, abs=4 * (variance / n) ** 0.5), power
    assert 4.5 < noise.abs().max() < 5.3  # finite: about one in 150,000 numbers passes 4.5
    distance = torch.special.ndtr(noise.sort().values) - (torch.arange(n) + 0.5) / n
    assert distance.abs().max() < 1.95 / n**0.5  # Kolmogorov and Smirnov: p ≈ 1e-3


def test_keyed_normal_depends_on_every_bit_of_the_seed():
    seed, n = view_seed(0, 0, 0), 20_000
    flipped = [seed ^ (1 << bit) for bit in range(63)] + [seed ^ -(2**63)]
    correlation = np.corrcoef(keyed_normal(torch.tensor([seed, *flipped]), (n,)).numpy())
    assert np.abs(correlation[0, 1:]).max() < 4.5 / n**0.5


@pytest.mark.parametrize(
    "seeds",
    [[view_seed(0, 0, slot) for slot in range(300)], list(range(300)), [high * 2**32 for high in range(-150, 150)]],
    ids=["views", "low halves", "high halves"],
)
def test_noise_of_different_seeds_is_uncorrelated(seeds):
    n = 5000
    correlation = np.corrcoef(keyed_normal(torch.tensor(seeds), (n,)).double().numpy())
    scores = correlation[np.triu_indices(300, 1)] * n**0.5  # of 44,850 pairs, standard normal
    assert np.abs(scores).max() < 5.5
    assert scores.std() == pytest.approx(1, abs=4 / (2 * len(scores)) ** 0.5)


def test_positions_are_uncorrelated():
    noise = keyed_normal(torch.tensor([view_seed(0, 2, slot) for slot in range(20)]), (3, 64, 64)).double().flatten(1)
    lags = [*range(1, 130), 64 * 64 - 1, 64 * 64, 64 * 64 + 1, 2 * 64 * 64]  # neighbours, rows, channels
    for lag in lags:
        first, second = noise[:, :-lag], noise[:, lag:]
        assert abs((first * second).mean().item()) < 4.5 / first.numel() ** 0.5, lag


def test_keyed_normal_does_not_touch_its_seeds_or_the_generators():
    seeds = torch.tensor([1, -2, 2**40])
    states = random_states()
    keyed_normal(seeds, (3, 4))
    assert seeds.tolist() == [1, -2, 2**40]
    assert random_states() == states
