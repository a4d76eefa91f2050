"""Contract: boxes and mixing are drawn and applied as timm does, keyed by (seed, epoch, slot or group).

The reference is timm with its global generators seeded by the key; the noise is checked against the normal
distribution, and batches of several groups against timm on each group alone.
"""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing as TimmRandomErasing
from torch.utils.data import default_collate
from torchvision.transforms.v2.functional import normalize as torchvision_normalize
from torchvision.transforms.v2.functional import to_dtype

from hf_deit.data import batch_augment
from hf_deit.data.batch_augment import EMPTY_BOX, PLACES, Mix, Mixing, RandomErasing, augment_batch, erase, mix
from hf_deit.data.transforms import build_train_transform
from hf_deit.data.view_dataset import ViewDataset, collate
from hf_deit.data.views import ViewKey, ViewSampler, preserve_global_random_state
from hf_deit.models.keyed import fold, view_seed
from hf_deit.training.losses import class_targets

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_LABELS = 10
MIXINGS = {
    "deit": {},
    "mixup": {"cutmix_alpha": 0.0},
    "cutmix": {"mixup_alpha": 0.0},
    "half of the groups": {"probability": 0.5},
    "mostly cutmix": {"switch_probability": 0.9, "mixup_alpha": 0.3, "cutmix_alpha": 0.5},
}


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    top, bottom, left, right = box
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def timm_erased(probability: float, key: tuple[int, int, int], size: tuple[int, int]) -> torch.Tensor:
    """(H, W) bool: which pixels timm erases, with its generator seeded by the key."""
    image = torch.full((1, *size), math.inf)
    with preserve_global_random_state():
        random.seed(fold(*key, 1))
        TimmRandomErasing(probability=probability, mode="pixel", device="cpu")(image)
    return image[0] < math.inf


@pytest.mark.parametrize("probability", [0.25, 1.0])
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (48, 64), (96, 8)])
def test_erasing_boxes_are_those_of_timm(size, probability):
    erasing = RandomErasing(probability)
    num_empty = 0
    for slot in range(400):
        key = (5, slot % 3, slot)
        expected = timm_erased(probability, key, size)
        box = erasing.box(*key, size)
        assert torch.equal(box_mask(box, size), expected), key
        assert (box == EMPTY_BOX) == (not expected.any())
        num_empty += box == EMPTY_BOX
    if probability == 1:  # only in so narrow an image all ten attempts may stick out
        assert (num_empty > 0) == (size == (96, 8))


def test_erasing_has_its_probability_and_its_bounds():
    size, num_slots = (200, 150), 4000
    boxes = [RandomErasing(0.25).box(0, 0, slot, size) for slot in range(num_slots)]
    erased = np.array([box for box in boxes if box != EMPTY_BOX])
    assert len(erased) / num_slots == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / num_slots) ** 0.5)
    assert (erased >= 0).all() and (erased[:, 1] <= size[0]).all() and (erased[:, 3] <= size[1]).all()
    heights, widths = erased[:, 1] - erased[:, 0], erased[:, 3] - erased[:, 2]
    area = size[0] * size[1]
    # Sides are rounded, by half a pixel at most.
    assert ((heights + 0.5) * (widths + 0.5) >= 0.02 * area).all()
    assert ((heights - 0.5) * (widths - 0.5) <= area / 3).all()
    assert ((heights + 0.5) / (widths - 0.5) >= 0.3).all()
    assert ((heights - 0.5) / (widths + 0.5) <= 1 / 0.3).all()
    parts = heights * widths / area
    assert parts.min() < 0.03 and parts.max() > 0.3


def seeds_of(slots: Any) -> torch.Tensor:
    return torch.tensor([view_seed(0, 0, slot) for slot in slots])


def pixels(count: int, size: tuple[int, int] = (16, 16), seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 4 - 2


def test_erase_leaves_what_is_outside_of_the_box():
    x = pixels(4, (12, 20))
    before = x.clone()
    boxes = [(0, 12, 0, 20), EMPTY_BOX, (2, 5, 7, 20), (11, 12, 0, 1)]
    erased = erase(x, torch.tensor(boxes), seeds_of(range(4)))
    assert erased.dtype == torch.float32
    assert torch.equal(x, before)
    for view, box in enumerate(boxes):
        changed = erased[view] != x[view]
        assert torch.equal(changed, box_mask(box, (12, 20)).expand(3, -1, -1))


def test_erased_pixels_are_standard_normal_noise():
    x = torch.full((8, 3, 64, 64), 7.0)
    box = (10, 60, 4, 54)
    noise = erase(x, torch.tensor([box] * 8), seeds_of(range(8)))[:, :, 10:60, 4:54].double()
    n = noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=4 / n**0.5)
    assert noise.var().item() == pytest.approx(1, abs=4 * (2 / n) ** 0.5)
    # Views and channels differ, and so do rows and columns.
    correlation = np.corrcoef(noise.reshape(24, -1).numpy())
    assert np.abs(correlation - np.eye(24)).max() < 5 / 2500**0.5
    assert len(noise.unique()) > 0.97 * n


def test_erased_pixels_depend_on_the_seed_of_the_view_only():
    box = (3, 11, 2, 15)
    together = erase(pixels(6), torch.tensor([box] * 6), seeds_of(range(6)))
    for view in range(6):
        alone = erase(pixels(1, seed=9), torch.tensor([box]), seeds_of([view]))
        assert torch.equal(alone[0, :, 3:11, 2:15], together[view, :, 3:11, 2:15])
    reverse = erase(pixels(6, seed=8), torch.tensor([(0, 16, 0, 16)] * 6), seeds_of(reversed(range(6))))
    assert torch.equal(reverse.flip(0)[:, :, 3:11, 2:15], together[:, :, 3:11, 2:15])


def timm_mixed(
    x: torch.Tensor, labels: torch.Tensor, mixing: Mixing, key: tuple[int, int, int], smoothing: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and targets of one group as timm mixes them, with its generator seeded by the key."""
    timm_mixup = Mixup(
        mixup_alpha=mixing.mixup_alpha,
        cutmix_alpha=mixing.cutmix_alpha,
        prob=mixing.probability,
        switch_prob=mixing.switch_probability,
        mode="batch",
        label_smoothing=smoothing,
        num_classes=NUM_LABELS,
    )
    with preserve_global_random_state():
        np.random.set_state(np.random.RandomState(np.random.MT19937(fold(*key, 2))).get_state())
        return timm_mixup(x.clone(), labels)


def apply(x: torch.Tensor, drawn: Mix) -> torch.Tensor:
    """Mixes one whole group."""
    partners = torch.arange(len(x)).flip(0)
    return mix(x, partners, torch.full((len(x),), drawn.pixel_weight), torch.tensor([drawn.box] * len(x)))


@pytest.mark.parametrize("size", [(16, 16), (14, 25)])
@pytest.mark.parametrize("settings", MIXINGS.values(), ids=MIXINGS.keys())
def test_mixing_is_that_of_timm(settings, size):
    mixing = Mixing(**settings)
    x = pixels(mixing.group_size, size)
    labels = torch.arange(mixing.group_size) * 7 % NUM_LABELS
    kinds = []
    for group in range(100):
        key = (3, group % 4, group)
        drawn = mixing.parameters(*key, size)
        got = apply(x, drawn)
        targets = class_targets(
            labels,
            NUM_LABELS,
            smoothing=0.1,
            partner_labels=labels.flip(0),
            label_weights=torch.full((len(x),), drawn.label_weight),
        )
        expected, expected_targets = timm_mixed(x, labels, mixing, key)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0, msg=f"group {key}")
        torch.testing.assert_close(targets, expected_targets, atol=1e-6, rtol=0, msg=f"group {key}")
        inside = (expected == x.flip(0)).all(dim=(0, 1)).any()
        kinds.append("none" if torch.equal(expected, x) else "cutmix" if inside else "mixup")
    # The loop has seen what the settings ask for.
    assert ("mixup" in kinds) == (mixing.mixup_alpha > 0)
    assert ("cutmix" in kinds) == (mixing.cutmix_alpha > 0)
    assert (kinds.count("none") > 30) == (mixing.probability < 1)


@pytest.mark.parametrize("settings", MIXINGS.values(), ids=MIXINGS.keys())
def test_label_weight_is_the_part_of_the_pixels(settings):
    size = (20, 13)
    own = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 3, *size)
    clipped = 0
    for group in range(200):
        drawn = Mixing(**settings).parameters(1, 0, group, size)
        assert apply(own, drawn)[0].mean().item() == pytest.approx(drawn.label_weight, abs=1e-6)
        clipped += drawn.box != EMPTY_BOX and (0 in drawn.box or drawn.box[1] == size[0] or drawn.box[3] == size[1])
    assert (clipped > 20) == (settings != MIXINGS["mixup"])  # where λ is not what was drawn


def test_partners_lie_mirrored_in_their_groups():
    mixing = Mixing(group_size=4)
    assert mixing.partner_offsets(range(8)) == [3, 1, -1, -3] * 2
    assert mixing.partner_offsets(range(8, 14)) == [3, 1, -1, -3, 1, -1], "a short last group"
    assert mixing.partner_offsets([12]) == [0]
    assert Mixing(group_size=3).partner_offsets(range(5)) == [2, 0, -2, 1, -1], "odd groups"
    assert Mixing().partner_offsets(range(64)) == list(range(63, -64, -2))


@pytest.mark.parametrize("group_size", [1, 2, 5, 8, 64])
@pytest.mark.parametrize("start", [0, 3, 64, 1000])
def test_partners_are_mutual_and_of_the_same_group(group_size, start):
    for length in (1, 2, 7, 16, 65, 130):
        slots = range(start, start + length)
        partners = [i + offset for i, offset in enumerate(Mixing(group_size=group_size).partner_offsets(slots))]
        assert sorted(partners) == list(range(length))
        assert [partners[partner] for partner in partners] == list(range(length))
        assert all(slots[i] // group_size == slots[partner] // group_size for i, partner in enumerate(partners))
        selves = {slots[i] // group_size for i, partner in enumerate(partners) if i == partner}
        sizes = {group: sum(slot // group_size == group for slot in slots) for group in selves}
        assert all(size % 2 for size in sizes.values()), "a view of an even group is its own partner"


SIZE = (16, 24)
ERASING = RandomErasing(0.5)


@pytest.fixture(scope="module")
def images():
    return tiny.digits()[0]


def views_of(images, keys: list[ViewKey], mixing: Mixing | None, erasing: RandomErasing | None = ERASING) -> Any:
    """A batch as the model gets it."""
    transform = build_train_transform(SIZE, image_mean=MEAN)
    dataset = ViewDataset(images, transform, seed=3, erasing=erasing, mixing=mixing)
    return augment_batch(collate(dataset.__getitems__(keys)), MEAN, STD)


def keys_of(images, count: int, epoch: int = 2) -> list[ViewKey]:
    sampler = ViewSampler(len(images), seed=3, total_batch_size=count, repeats=3)
    sampler.set_epoch(epoch)
    return list(sampler)[:count]


def test_views_do_not_depend_on_how_many_groups_a_batch_holds(images):
    keys = keys_of(images, 256)
    whole = views_of(images, keys, Mixing())
    assert len(whole["label_weights"].unique()) == 4
    for batch_size in (64, 128):
        parts = [views_of(images, keys[i : i + batch_size], Mixing()) for i in range(0, 256, batch_size)]
        assert whole.keys() == parts[0].keys()
        for name in whole:
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[name]), name


def test_batches_are_mixed_as_timm_mixes_each_group_of_64(images):
    keys = keys_of(images, 256)
    mixed, plain = views_of(images, keys, Mixing()), views_of(images, keys, None)
    assert "partner_labels" not in plain
    targets = class_targets(
        mixed["labels"],
        NUM_LABELS,
        smoothing=0.1,
        partner_labels=mixed["partner_labels"],
        label_weights=mixed["label_weights"],
    )
    for group in range(4):
        rows = slice(64 * group, 64 * (group + 1))
        x, expected_targets = timm_mixed(plain["pixel_values"][rows], plain["labels"][rows], Mixing(), (3, 2, group))
        torch.testing.assert_close(mixed["pixel_values"][rows], x, atol=2e-6, rtol=0)
        torch.testing.assert_close(targets[rows], expected_targets, atol=1e-6, rtol=0)


def test_views_are_erased_where_timm_erases_them(images):
    keys = keys_of(images, 32)
    erased, plain = views_of(images, keys, None), views_of(images, keys, None, erasing=None)
    assert "erase_boxes" not in plain
    for slot, key in enumerate(keys):
        changed = erased["pixel_values"][slot] != plain["pixel_values"][slot]
        assert torch.equal(changed, timm_erased(0.5, (3, 2, slot), SIZE).expand(3, -1, -1)), key


@pytest.mark.parametrize(
    "mixing",
    [
        Mixing(group_size=8),
        Mixing(cutmix_alpha=0.0, group_size=8),
        Mixing(mixup_alpha=0.0, group_size=8),
        Mixing(probability=0.0),
        None,
    ],
    ids=["both", "mixup", "cutmix", "never mixed", "no mixing"],
)
def test_work_is_spared_where_there_is_none_without_another_bit(images, mixing, monkeypatch):
    drawn, keyed_normal = [], batch_augment.keyed_normal
    monkeypatch.setattr(
        batch_augment, "keyed_normal", lambda seeds, shape: drawn.append(len(seeds)) or keyed_normal(seeds, shape)
    )
    transform = build_train_transform(SIZE, image_mean=MEAN)
    dataset = ViewDataset(images, transform, seed=3, erasing=ERASING, mixing=mixing)
    batch = collate(dataset.__getitems__(keys_of(images, 32)))
    erased = [place for place, box in enumerate(batch["erase_boxes"].tolist()) if box != [0, 0, 0, 0]]
    assert 0 < len(erased) < 32
    plain = {name: value for name, value in batch.items() if name not in PLACES}
    assert plain.keys() == batch.keys() - set(PLACES if mixing else PLACES[:1])
    spared, whole = augment_batch(batch, MEAN, STD), augment_batch(plain, MEAN, STD)
    assert drawn == [len(erased), 32]
    assert spared.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(spared[name], whole[name])] == []


def test_no_view_of_a_batch_is_erased(images):
    never, off = (
        views_of(images, keys_of(images, 8), None, erasing=each) for each in (RandomErasing(1.0, (2.0, 2.0)), None)
    )
    assert torch.equal(never["pixel_values"], off["pixel_values"])


def test_an_odd_and_a_short_group_in_a_batch(images):
    mixing = Mixing(cutmix_alpha=0.0, group_size=5)
    keys = keys_of(images, 8)  # the middle view of the first group, and three of a group that is cut off
    mixed, plain = views_of(images, keys, mixing), views_of(images, keys, None)
    x, labels = plain["pixel_values"].double(), plain["labels"]
    partners = [4, 3, 2, 1, 0, 7, 6, 5]
    weights = torch.tensor([mixing.parameters(3, 2, slot // 5, SIZE).label_weight for slot in range(8)]).double()
    assert ((weights > 0.01) & (weights < 0.99)).all(), "a weight that shows nothing"
    expected = torch.stack([weights[i] * x[i] + (1 - weights[i]) * x[partners[i]] for i in range(8)])
    torch.testing.assert_close(mixed["pixel_values"].double(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(mixed["pixel_values"][[2, 6]], plain["pixel_values"][[2, 6]], atol=2e-6, rtol=0)
    assert mixed["partner_labels"].tolist() == labels[partners].tolist()


@pytest.mark.parametrize("extra", [{}, {"view_seeds": 0}], ids=["evaluation", "training"])
def test_without_erasing_and_mixing_pixels_are_only_normalised(extra):
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    samples = [{"pixel_values": image, "labels": 1, **extra} for image in (ramp, ramp.flip(-1))]
    batch = default_collate(samples)
    before = batch["pixel_values"].clone()
    got = augment_batch(batch, MEAN, STD)
    expected = torchvision_normalize(to_dtype(before, torch.float32, scale=True), list(MEAN), list(STD))
    assert got.keys() == batch.keys()
    assert got["labels"].tolist() == [1, 1]
    assert got["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(got["pixel_values"], expected, atol=2e-6, rtol=0)
    assert torch.equal(batch["pixel_values"], before)


def test_noise_is_drawn_after_normalising_and_mixed_in():
    """The order is normalise, erase, mix: half of a partner's noise has a quarter of its variance."""
    white = torch.full((2, 3, 40, 40), 255, dtype=torch.uint8)
    box = (5, 35, 0, 40)
    batch = {
        "pixel_values": white,
        "labels": torch.tensor([4, 9]),
        "view_seeds": seeds_of(range(2)),
        "erase_boxes": torch.tensor([EMPTY_BOX, box]),
    }
    mixing = {
        "partner_offsets": torch.tensor([1, -1]),
        "pixel_weights": torch.tensor([0.5, 0.5]),
        "mix_boxes": torch.tensor([EMPTY_BOX, EMPTY_BOX]),
        "label_weights": torch.tensor([0.5, 0.5]),
    }
    levels = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    inside, outside = (box_mask(box, (40, 40)) == flag for flag in (True, False))

    erased = augment_batch(batch, MEAN, STD)["pixel_values"]
    torch.testing.assert_close(erased[1][:, outside], levels[:, None].expand(3, 400))
    noise = erased[1][:, inside]
    assert noise.mean(1).abs().max() < 4 / 1200**0.5
    assert (noise.var(1) - 1).abs().max() < 4 * (2 / 1200) ** 0.5

    mixed = augment_batch({**batch, **mixing}, MEAN, STD)
    assert mixed["partner_labels"].tolist() == [9, 4]
    assert mixed["label_weights"].tolist() == [0.5, 0.5]
    for view in mixed["pixel_values"]:
        torch.testing.assert_close(view[:, outside], levels[:, None].expand(3, 400))
        torch.testing.assert_close(view[:, inside], (levels[:, None] + noise) / 2)


def test_noise_is_pasted_by_cutmix():
    box, paste = (0, 8, 0, 16), (4, 16, 3, 9)
    batch = {
        "pixel_values": torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte(),
        "labels": torch.tensor([4, 9]),
        "view_seeds": seeds_of(range(2)),
        "erase_boxes": torch.tensor([EMPTY_BOX, box]),
    }
    mixing = {
        "partner_offsets": torch.tensor([1, -1]),
        "pixel_weights": torch.ones(2),
        "mix_boxes": torch.tensor([paste, paste]),
    }
    erased = augment_batch(batch, MEAN, STD)["pixel_values"]
    expected = erased.clone()
    expected[:, :, 4:16, 3:9] = erased.flip(0)[:, :, 4:16, 3:9]
    assert torch.equal(augment_batch({**batch, **mixing}, MEAN, STD)["pixel_values"], expected)
