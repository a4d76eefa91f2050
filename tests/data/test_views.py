"""Contract: an epoch's order of views is a pure function of (seed, epoch); a view's seed decides every generator."""

import random

import numpy as np
import pytest
import torch
from support.images import random_states

from hf_deit.data.batch_augment import Mixing
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


def test_an_epoch_of_imagenet_is_as_long_as_the_authors():
    """Their `RASampler` gives each of 16 GPUs its part of len // 256 · 256, and their loader drops its last batch."""
    images, gpus, batch = 1_281_167, 16, 64
    theirs = images // 256 * 256 // gpus // batch * batch * gpus
    assert len(ViewSampler(images, seed=0, total_batch_size=gpus * batch, repeats=3)) == theirs == 1251 * 1024


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


def authors_groups(num_images: int, order: np.ndarray, *, processes: int, batch_size: int) -> list[list[int]]:
    """The images of each mixing group under the authors' `RASampler` with three repeats, step by step.

    All views of the epoch's order, each image's side by side, are dealt to the GPUs in turn, and each takes
    `floor(N / 256) * 256 / processes` of them, in whole batches.
    """
    views = np.repeat(order, 3)
    of_each = num_images // 256 * 256 // processes
    own = [views[rank::processes][:of_each].tolist() for rank in range(processes)]
    starts = range(0, of_each // batch_size * batch_size, batch_size)
    return [part[start : start + batch_size] for start in starts for part in own]


@pytest.mark.parametrize("num_images", [1024, 1100])
def test_spread_repeats_make_the_authors_groups(num_images):
    sampler = ViewSampler(num_images, seed=0, total_batch_size=192, repeats=3, images_per_block=64)
    keys = keys_of(sampler, 2)
    groups = [[key.index for key in keys[start : start + 64]] for start in range(0, len(keys), 64)]
    assert groups == authors_groups(num_images, sampler.order(2), processes=3, batch_size=64)
    assert len(groups) == 15


def test_the_authors_16_gpus_have_groups_of_such_a_kind():
    """What is claimed of a group holds for the paper's number of GPUs, too."""
    groups = authors_groups(4096, np.arange(4096), processes=16, batch_size=64)
    assert all(len(set(group)) == 64 for group in groups)
    where = [[number for number, group in enumerate(groups) if image in group] for image in range(300)]
    assert all(len(set(numbers)) == 3 for numbers in where)


@pytest.mark.parametrize(("group", "repeats"), [(64, 3), (32, 3), (8, 2)])
def test_spread_repeats_are_mixed_by_a_draw_each_and_never_with_their_own_image(group, repeats):
    mixing = Mixing(group_size=group)
    sampler = ViewSampler(1000, seed=0, total_batch_size=group, repeats=repeats, images_per_block=group)
    keys = keys_of(sampler, 1)
    partners = [slot + offset for slot, offset in enumerate(mixing.partner_offsets([key.slot for key in keys]))]
    assert all(len({key.index for key in keys[i : i + group]}) == group for i in range(0, len(keys), group))
    assert all(keys[partner].index != key.index for key, partner in zip(keys, partners, strict=True))
    whole = [key for key in keys if key.view == 0 and key.slot + (repeats - 1) * group < len(keys)]
    assert len(whole) > 250
    for first in whole[::7]:
        views = [keys[first.slot + group * view] for view in range(repeats)]
        assert [(key.index, key.view) for key in views] == [(first.index, view) for view in range(repeats)]
        assert len({mixing.parameters(0, 1, key.slot // group, (224, 224)) for key in views}) == repeats


def test_adjacent_repeats_share_a_draw():
    """Which is said of them where the placement is chosen."""
    keys = keys_of(ViewSampler(64 * 192, seed=0, total_batch_size=192, repeats=3), 0)
    groups = [[key.index for key in keys[start : start + 64]] for start in range(0, len(keys), 64)]
    assert {len(set(group)) for group in groups} == {22}
    partners = [slot + offset for slot, offset in enumerate(Mixing().partner_offsets(range(len(keys))))]
    own = np.mean([keys[partner].index == key.index for key, partner in zip(keys, partners, strict=True)])
    assert 0.01 < own < 0.04
    same = [keys[slot].slot // 64 == keys[slot + 2].slot // 64 for slot in range(0, len(keys), 3)]
    assert 0.96 < np.mean(same) < 0.98


@pytest.mark.parametrize("num_images", [1, 10, 64, 100, 500])
def test_blocks_go_on_through_the_passes_and_keys_stay_a_function_of_the_slot(num_images):
    """Also where a block has more images than the set, which then come again in it."""
    sampler = ViewSampler(num_images, seed=3, total_batch_size=900, repeats=3, images_per_block=64)
    keys = keys_of(sampler, 2)
    order = np.concatenate([sampler.order(2, number) for number in range(960 // num_images + 1)])
    for block in range(len(keys) // 192):
        views = [[key.index for key in keys[192 * block + 64 * view :][:64]] for view in range(3)]
        assert views == [order[64 * block : 64 * block + 64].tolist()] * 3
    slots = sorted(random.Random(num_images).sample(range(900), 50))
    assert list(sampler.keys(2, slots)) == [keys[slot] for slot in slots]
    assert [key for slot in slots for key in sampler.keys(2, [slot])] == [keys[slot] for slot in slots]
    assert (
        keys_of(ViewSampler(num_images, seed=3, total_batch_size=300, repeats=3, images_per_block=64), 2)[:300]
        == keys[:300]
    ), "of another batch"


@pytest.mark.parametrize("images_per_block", [1, 5, 64])
def test_one_view_of_an_image_has_one_place(images_per_block):
    sampler = ViewSampler(30, seed=0, total_batch_size=90, images_per_block=images_per_block)
    assert keys_of(sampler, 4) == keys_of(ViewSampler(30, seed=0, total_batch_size=90), 4)


@pytest.mark.parametrize(
    ("num_images", "total_batch_size", "repeats", "images_per_block"),
    [(25, 10, 1, 1), (30, 10, 3, 1), (7, 20, 3, 1), (30, 10, 3, 5), (7, 20, 3, 8)],
)
def test_many_epochs_cover_the_images_uniformly(num_images, total_batch_size, repeats, images_per_block):
    sizes = {"total_batch_size": total_batch_size, "images_per_block": images_per_block}
    sampler = ViewSampler(num_images, seed=0, repeats=repeats, **sizes)
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
    spread = keys_of(ViewSampler(6, seed=0, total_batch_size=16, repeats=2, images_per_block=4), 1)
    following = np.random.RandomState(np.random.MT19937(fold(0, 1, 1))).permutation(6).tolist()
    assert [key.index for key in spread] == [4, 1, 3, 5] * 2 + [2, 0, *following[:2]] * 2
    assert [key.view for key in spread] == [0, 0, 0, 0, 1, 1, 1, 1] * 2


@pytest.mark.parametrize("bad", [{"num_images": 0}, {"total_batch_size": 0}, {"repeats": 0}, {"images_per_block": 0}])
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
