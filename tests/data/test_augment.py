"""Contract: the training transform is timm's, with the authors' constants; pixels are normalised as processors do.

The authors' constants are facebookresearch/deit's `build_transform`: bicubic random resized crop of scale (0.08, 1),
flip 0.5, `rand-m9-mstd0.5-inc1`, and padded random crops for inputs of at most 32 pixels.
"""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import noise
from timm.data import create_transform
from torchvision.transforms import RandomCrop
from torchvision.transforms.functional import pil_to_tensor
from transformers import ViTImageProcessor

from hf_deit.data.batch_augment import normalize
from hf_deit.data.transforms import build_train_transform
from hf_deit.errors import InputError
from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def assert_same_pixels(ours, timms, image, *, mean, std, seeds) -> None:
    """`ours` gives uint8, `timms` normalised floats."""
    for seed in seeds:
        seed_everything(seed)
        got = ours(image)
        seed_everything(seed)
        expected = timms(image)
        expected = expected * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        assert got.dtype == torch.uint8
        torch.testing.assert_close(got.float(), expected * 255, atol=1e-2, rtol=0, msg=f"seed {seed}")


@pytest.mark.parametrize("size", [224, 48])
def test_pixels_equal_those_of_timm_with_the_authors_constants(size):
    ours = build_train_transform((size, size), image_mean=IMAGENET_MEAN)
    # The call of the authors' build_transform, without erasing, which here comes later, on the device.
    timms = create_transform(
        input_size=size,
        is_training=True,
        color_jitter=0.3,
        auto_augment=RAND_AUGMENT,
        interpolation="bicubic",
        re_prob=0.0,
    )
    assert_same_pixels(ours, timms, noise(90, 120), mean=IMAGENET_MEAN, std=IMAGENET_STD, seeds=range(20))


@pytest.mark.parametrize(
    ("ours", "timms"),
    [
        ({"crop_scale_min": 0.6}, {"scale": (0.6, 1.0)}),
        ({"horizontal_flip": 1.0}, {"hflip": 1.0}),
        ({"horizontal_flip": 0.0}, {"hflip": 0.0}),
        ({"auto_augment": "rand-m5-n3"}, {"auto_augment": "rand-m5-n3"}),
        ({"auto_augment": None}, {"auto_augment": None}),
        ({"auto_augment": ""}, {"auto_augment": None}),
    ],
)
def test_each_option_reaches_timm(ours, timms):
    settings = {"auto_augment": RAND_AUGMENT, **timms}
    expected = create_transform(
        input_size=64, is_training=True, color_jitter=None, interpolation="bicubic", **settings
    )
    got = build_train_transform((64, 64), image_mean=IMAGENET_MEAN, **ours)
    assert_same_pixels(got, expected, noise(70, 90), mean=IMAGENET_MEAN, std=IMAGENET_STD, seeds=range(12))


def test_randaugment_fills_with_the_students_mean():
    mean, std = (0.9, 0.1, 0.5), (0.3, 0.3, 0.3)
    ours = build_train_transform((64, 64), image_mean=mean)
    timms = create_transform(
        input_size=64,
        is_training=True,
        color_jitter=None,
        auto_augment=RAND_AUGMENT,
        interpolation="bicubic",
        mean=mean,
        std=std,
    )
    assert_same_pixels(ours, timms, noise(70, 90), mean=mean, std=std, seeds=range(20))


@pytest.mark.parametrize("source_size", [(32, 32), (8, 8), (40, 64)])
def test_small_inputs_are_resized_and_cropped_with_a_padding_of_4(source_size):
    image = noise(*source_size)
    transform = build_train_transform((32, 32), image_mean=IMAGENET_MEAN, horizontal_flip=0.0, auto_augment=None)
    ratio = 32 / min(image.size)  # the shorter side goes to 32
    resized = pil_to_tensor(image.resize([int(side * ratio) for side in image.size], Image.Resampling.BICUBIC))
    height, width = resized.shape[-2:]
    padded = torch.zeros(3, height + 8, width + 8, dtype=torch.uint8)
    padded[:, 4:-4, 4:-4] = resized
    windows = {
        padded[:, top : top + 32, left : left + 32].numpy().tobytes(): (top, left)
        for top in range(height + 8 - 31)
        for left in range(width + 8 - 31)
    }
    found = set()
    for seed in range(300):
        seed_everything(seed)
        window = transform(image)
        assert window.numpy().tobytes() in windows, "not a crop of the resized and padded image"
        found.add(windows[window.numpy().tobytes()])
    assert {top for top, _ in found} == set(range(height + 8 - 31))
    assert {left for _, left in found} == set(range(width + 8 - 31))


def test_small_inputs_equal_the_authors_draw_for_draw():
    """`build_transform` puts torchvision's padded crop in place of the resized one; here an image has its size."""
    ours = build_train_transform((32, 32), image_mean=IMAGENET_MEAN)
    authors = create_transform(
        input_size=32,
        is_training=True,
        color_jitter=0.3,
        auto_augment=RAND_AUGMENT,
        interpolation="bicubic",
        re_prob=0.0,
    )
    authors.transforms[0] = RandomCrop(32, padding=4)
    assert_same_pixels(ours, authors, noise(32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD, seeds=range(20))


def test_small_inputs_keep_the_flip_and_randaugment():
    image = noise(32, 32)
    flipped = build_train_transform((32, 32), image_mean=IMAGENET_MEAN, horizontal_flip=1.0, auto_augment=None)
    plain = build_train_transform((32, 32), image_mean=IMAGENET_MEAN, horizontal_flip=0.0, auto_augment=None)
    augmented = build_train_transform((32, 32), image_mean=IMAGENET_MEAN, horizontal_flip=0.0)
    changed = 0
    for seed in range(10):
        results = []
        for transform in (plain, flipped, augmented):
            seed_everything(seed)
            results.append(transform(image))
        # torch draws the flip after the crop, so the crop is the same.
        assert torch.equal(results[0].flip(-1), results[1])
        changed += not torch.equal(results[0], results[2])
    assert changed >= 5


def test_inputs_of_one_pixel_more_take_the_random_resized_crop():
    """Half of a big image can only fill the result if the crop was a small part of the area."""
    image = Image.new("RGB", (330, 330))
    image.paste((255, 255, 255), (0, 0, 165, 330))
    transform = build_train_transform((33, 33), image_mean=IMAGENET_MEAN, auto_augment=None)
    results = []
    for seed in range(100):
        seed_everything(seed)
        results.append(transform(image))
    assert any(bool((result == 255).all()) for result in results)


@pytest.mark.parametrize("policy", ["foo", "randy-m9", "rand-m9-xyz1", "rand-foo", " "])
def test_an_unknown_policy_is_refused(policy):
    with pytest.raises(InputError, match="no policy of timm") as refusal:
        build_train_transform((64, 64), image_mean=IMAGENET_MEAN, auto_augment=policy)
    assert repr(policy) in str(refusal.value)
    assert RAND_AUGMENT in str(refusal.value), "the message does not say what would do"


def test_thousands_of_images_pass_randaugment():
    """Pillow 13 refuses the posterize arguments that timm draws about once in 650 images."""
    transform = build_train_transform((34, 34), image_mean=IMAGENET_MEAN)
    image = noise(24, 24)
    for seed in range(3000):
        random.seed(seed)
        np.random.seed(seed)
        transform(image)


@pytest.mark.parametrize(
    ("mean", "std"),
    [(IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3), ((0.1, 0.2, 0.3), (1, 2, 3))],
)
@pytest.mark.parametrize("processor_class", [DistilledDeiTImageProcessor, ViTImageProcessor])
def test_normalize_gives_the_bits_of_the_image_processors(mean, std, processor_class):
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()
    processor = processor_class(image_mean=list(mean), image_std=list(std), do_resize=False, do_center_crop=False)
    expected = processor(list(ramp), return_tensors="pt")["pixel_values"]
    before = ramp.clone()
    assert torch.equal(normalize(ramp, mean, std), expected)
    assert torch.equal(ramp, before)
