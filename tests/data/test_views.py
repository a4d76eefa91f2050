"""Contract: an epoch's order of views is a pure function of (seed, epoch); a view's seed decides every generator."""

import random

import numpy as np
import pytest
import torch
from support.images import random_states

from hf_deit.data.views import ViewKey, ViewSampler, preserve_global_random_state, seed_global_random_state
from hf_deit.models.keyed import fold, view_seed


def keys_of(sampler: ViewSampler, epoch: int) -> list[ViewKey]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_is_a_permutation():
    keys = keys_of(ViewSampler(24, seed=0, total_batch_size=8), epoch=0)
    indices = [key.index for key in keys]
    assert sorted(indices) == list(range(24))
    assert indices != list(range(24))
    assert [key.slot for key in keys] == list(range(24))
    assert {(key.epoch, key.view) for key in keys} == {(0, 0)}


def test_order_differs_by_epoch_and_by_seed_and_is_repeatable():
    orders = {
        (seed, epoch): tuple(key.index for key in keys_of(ViewSampler(50, seed=seed, total_batch_size=5), epoch))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == 6
    np.random.seed(0)
    torch.manual_seed(0)
    sampler = ViewSampler(50, seed=1, total_batch_size=5)
    keys_of(sampler, 0)  # what came before does not matter
    assert tuple(key.index for key in keys_of(sampler, 2)) == orders[1, 2]


def test_sampling_leaves_the_global_generators_alone():
    states = random_states()
    keys_of(ViewSampler(50, seed=1, total_batch_size=5), 3)
    assert random_states() == states


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(
    ("num_images", "total_batch_size", "length"),
    [(100, 10, 100), (109, 10, 100), (10, 10, 10), (9, 10, 10), (1, 10, 10), (3, 64, 64), (7, 1, 7)],
)
def test_length_is_a_multiple_of_the_step_and_never_zero(num_images, total_batch_size, length, repeats):
    sampler = ViewSampler(num_images, seed=0, total_batch_size=total_batch_size, repeats=repeats)
    keys = keys_of(sampler, 4)
    assert len(sampler) == len(keys) == length
    assert {key.epoch for key in keys} == {4}
    assert all(0 <= key.index < num_images for key in keys)


def test_a_small_data_set_is_repeated_evenly_in_new_orders():
    keys = keys_of(ViewSampler(4, seed=0, total_batch_size=32), 0)
    passes = [tuple(key.index for key in keys[start : start + 4]) for start in range(0, 32, 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in passes)
    assert len(set(passes)) > 1


def test_repeats_lie_side_by_side():
    keys = keys_of(ViewSampler(30, seed=0, total_batch_size=10, repeats=3), 0)
    groups = [keys[start : start + 3] for start in range(0, 30, 3)]
    assert all([key.view for key in group] == [0, 1, 2] for group in groups)
    assert all(len({key.index for key in group}) == 1 for group in groups)
    assert len({group[0].index for group in groups}) == 10  # a third of the images, each three times
    # The views of one image are different views.
    assert len({view_seed(0, key.epoch, key.slot) for key in keys}) == 30


@pytest.mark.parametrize(("num_images", "total_batch_size", "repeats"), [(25, 10, 1), (30, 10, 3), (7, 20, 3)])
def test_many_epochs_cover_the_images_uniformly(num_images, total_batch_size, repeats):
    sampler = ViewSampler(num_images, seed=0, total_batch_size=total_batch_size, repeats=repeats)
    counts = np.zeros(num_images)
    for epoch in range(600):
        for key in keys_of(sampler, epoch):
            counts[key.index] += 1
    expected = 600 * len(sampler) / num_images
    assert counts.sum() == 600 * len(sampler)
    # An epoch's count has a standard deviation below `repeats` / 2 … 1.5; five of them over 600 epochs.
    assert np.abs(counts - expected).max() < 5 * 1.5 * 600**0.5


def test_order_does_not_depend_on_the_batch_size():
    small, large = (keys_of(ViewSampler(96, seed=5, total_batch_size=size, repeats=3), 2) for size in (4, 32))
    assert small == large
    cut = keys_of(ViewSampler(96, seed=5, total_batch_size=64, repeats=3), 2)
    assert cut == small[:64]
    repeated = keys_of(ViewSampler(96, seed=5, total_batch_size=500, repeats=3), 2)
    assert repeated[:96] == small


def test_order_is_golden():
    """Stored labels rely on it, on every platform and NumPy version."""
    reference = np.random.RandomState(np.random.MT19937(fold(0, 1, 0))).permutation(6)
    assert [key.index for key in keys_of(ViewSampler(6, seed=0, total_batch_size=6), 1)] == reference.tolist()
    assert reference.tolist() == [4, 1, 3, 5, 2, 0]


@pytest.mark.parametrize("bad", [{"num_images": 0}, {"total_batch_size": 0}, {"repeats": 0}])
def test_impossible_samplers_are_refused(bad):
    arguments = {"num_images": 4, "total_batch_size": 2, "repeats": 1, **bad}
    with pytest.raises(ValueError, match="must be at least 1, got"):
        ViewSampler(arguments["num_images"], seed=0, **{k: v for k, v in arguments.items() if k != "num_images"})


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


@pytest.mark.parametrize("fails", [False, True])
def test_global_generators_are_restored(fails):
    seed_global_random_state(1)
    with preserve_global_random_state():
        expected = draw()
    try:
        with preserve_global_random_state():
            seed_global_random_state(-7)
            draw()
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert draw() == expected


def test_seeding_decides_all_three_generators():
    def drawn(seed: int) -> tuple[float, float, float]:
        with preserve_global_random_state():
            seed_global_random_state(seed)
            return draw()

    seed = view_seed(0, 0, 0)
    assert drawn(seed) == drawn(seed)
    assert all(first != second for first, second in zip(drawn(seed), drawn(view_seed(0, 0, 1)), strict=True))
