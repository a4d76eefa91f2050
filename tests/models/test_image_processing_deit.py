"""Contract: the image processor is the authors' evaluation transform, takes any image, and opens in transformers.

The reference is timm's evaluation transform at the authors' crop ratio, 0.875, and for inputs of at most 32 pixels the
authors' own, which leaves images as they are. Where the crop's offset ends in a half,
torchvision rounds it to even and transformers cuts it; the project follows transformers, whose processor opens what
is published. One test below holds that pixel of difference.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from timm.data import create_transform
from torchvision import transforms
from transformers import AutoImageProcessor, DeiTImageProcessor
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessor, DistilledDeiTImageProcessorPil

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
GREY_LEVEL = torch.tensor(1 / 255 / STD, dtype=torch.float32).view(3, 1, 1) + 1e-5
BACKENDS = [DistilledDeiTImageProcessor, DistilledDeiTImageProcessorPil]


def photograph(name: str = "china.jpg", height: int = 427, width: int = 640) -> Image.Image:
    return Image.fromarray(load_sample_image(name)).resize((width, height), Image.Resampling.LANCZOS)


def timm_pixels(image: Image.Image, size: int = 224, crop_ratio: float = 0.875) -> torch.Tensor:
    return create_transform((3, size, size), is_training=False, crop_pct=crop_ratio, interpolation="bicubic")(image)


def pixels(processor, image, **kwargs) -> torch.Tensor:
    """(B, 3, H, W), or (3, H, W) of one image."""
    output = processor(image, return_tensors="pt", **kwargs)["pixel_values"]
    return output[0] if len(output) == 1 else output


def grey_levels(pixel_values: torch.Tensor) -> np.ndarray:
    """(…, 3, H, W) back in grey levels, 0 to 255."""
    return (pixel_values.double().numpy() * STD[:, None, None] + MEAN[:, None, None]) * 255


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize(
    ("size", "height", "width"),
    [
        (224, 400, 500),
        (224, 600, 400),
        (224, 300, 300),
        (224, 256, 256),
        (224, 100, 80),  # enlarged
        (224, 300, 750),
        (384, 400, 600),
        (384, 500, 500),
    ],
)
def test_equals_timms_evaluation_transform_within_two_grey_levels(backend, name, size, height, width):
    image = photograph(name, height, width)
    difference = (pixels(backend(crop_size=size), image) - timm_pixels(image, size)).abs()
    if backend is DistilledDeiTImageProcessorPil:  # timm resizes with Pillow, too
        assert difference.max() < 1e-5
    else:
        # torchvision rounds otherwise than Pillow in a few places, and twice in less than one of 100,000 values.
        assert (difference > 1e-4).float().mean() < 0.05
        assert (difference > GREY_LEVEL).float().mean() < 1e-5
        assert (difference <= 2 * GREY_LEVEL).all()


@pytest.mark.parametrize("crop_ratio", [0.9, 1.0])
def test_other_crop_ratios_equal_timm_too(crop_ratio):
    image = photograph("flower.jpg", 400, 400)
    difference = pixels(DistilledDeiTImageProcessor(crop_ratio=crop_ratio), image) - timm_pixels(
        image, crop_ratio=crop_ratio
    )
    assert (difference.abs() <= GREY_LEVEL).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_crop_is_one_pixel_off_timms_where_its_offset_ends_in_a_half(backend):
    """427 × 640 becomes 256 × 383: the offset of the crop is 79.5, 80 for torchvision and 79 for transformers."""
    image = photograph()
    ours, theirs = pixels(backend(), image), timm_pixels(image)
    assert ((ours - theirs).abs() > GREY_LEVEL).float().mean() > 0.1
    assert ((ours[..., 1:] - theirs[..., :-1]).abs() <= GREY_LEVEL).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("settings", "shorter_side"),
    [
        ({}, 256),
        ({"crop_size": 384}, 438),
        ({"crop_size": {"height": 384, "width": 384}}, 438),
        ({"crop_size": {"height": 224, "width": 192}}, 219),
        ({"crop_ratio": 1.0}, 224),
        ({"crop_ratio": 1}, 224),
        ({"crop_ratio": 0.9}, 248),
    ],
)
def test_shorter_side_is_crop_size_over_crop_ratio_rounded_down(backend, settings, shorter_side):
    processor = backend(**settings)
    assert processor.size.shortest_edge == shorter_side
    # … and it is what the image is resized to.
    resized = pixels(processor, photograph(), do_center_crop=False)
    assert min(resized.shape[-2:]) == shorter_side


def small_images(size: int) -> list[Image.Image]:
    digits = [Image.fromarray((digit * 15.9).astype(np.uint8)) for digit in load_digits().images[:3]]
    noise = Image.fromarray(np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8))
    return [*(digit.resize((size, size), Image.Resampling.BICUBIC).convert("RGB") for digit in digits), noise]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [8, 28, 31, 32])
def test_an_image_of_at_most_32_pixels_is_evaluated_as_it_is(tmp_path, backend, size):
    """The authors' `build_transform`, whose `resize_im` is `input_size > 32`; and in plain transformers."""
    processor = backend(crop_size=size)
    authors = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN.tolist(), STD.tolist())])
    for image in small_images(size):
        untouched = pixels(processor, image, do_rescale=False, do_normalize=False)
        np.testing.assert_array_equal(untouched.numpy(), np.asarray(image).transpose(2, 0, 1))
        torch.testing.assert_close(pixels(processor, image), authors(image), atol=1e-5, rtol=0)
    processor.save_pretrained(tmp_path)
    native = AutoImageProcessor if backend is DistilledDeiTImageProcessor else DeiTImageProcessorPil
    batch, plain = small_images(size), native.from_pretrained(tmp_path)
    assert torch.equal(pixels(plain, batch), pixels(processor, batch))
    untouched = pixels(plain, batch, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(untouched.numpy(), np.stack(batch).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("settings", "resized"),
    [
        ({"crop_size": 32}, 32),
        ({"crop_size": 33}, 37),
        ({"crop_size": {"height": 32, "width": 16}}, 16),
        ({"crop_size": {"height": 48, "width": 16}}, 18),
        ({"crop_size": 32, "crop_ratio": 0.875}, 36),
        ({"crop_size": 32, "size": {"shortest_edge": 40}}, 40),
    ],
)
def test_the_usual_crop_of_small_inputs_and_one_that_is_stated(tmp_path, backend, settings, resized):
    processor = backend(**settings)
    assert processor.size.shortest_edge == resized
    processor.save_pretrained(tmp_path)  # an earlier version's file states 36, or 0.875
    assert backend.from_pretrained(tmp_path).size.shortest_edge == resized


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_processor_that_is_taken_to_32_pixels_or_less_crops_nothing(tmp_path, backend):
    image = small_images(32)[-1]
    expected = np.asarray(image).transpose(2, 0, 1)
    backend().save_pretrained(tmp_path)
    for processor in (backend().at_crop_size(32), backend.from_pretrained(tmp_path, crop_size=32)):
        assert (processor.crop_ratio, processor.size.shortest_edge) == (1.0, 32)
        untouched = pixels(processor, image, do_rescale=False, do_normalize=False)
        np.testing.assert_array_equal(untouched.numpy(), expected)
    of_a_call = pixels(backend(), image, crop_size=32, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(of_a_call.numpy(), expected)
    assert backend(crop_ratio=0.9).at_crop_size(32).crop_ratio == 0.9  # a ratio of its own
    assert backend(crop_size=32, crop_ratio=0.875).at_crop_size(24).crop_ratio == 0.875


@pytest.mark.parametrize("backend", BACKENDS)
def test_explicit_size_wins(backend):
    processor = backend(size={"shortest_edge": 300})
    assert (processor.size.shortest_edge, processor.crop_size.height) == (300, 224)
    assert processor.crop_ratio == pytest.approx(224 / 300)
    image = photograph("china.jpg", 450, 600)
    difference = pixels(processor, image) - timm_pixels(image, crop_ratio=224 / 300)
    assert (difference.abs() <= GREY_LEVEL).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("crop_ratio", [0, -0.5, 1.01, 2, float("nan")])
def test_crop_ratio_out_of_range_is_refused(backend, crop_ratio):
    with pytest.raises(ValueError, match=r"crop_ratio must lie in \(0, 1\], got"):
        backend(crop_ratio=crop_ratio)


@pytest.mark.parametrize("backend", BACKENDS)
def test_misspelt_setting_of_a_call_is_refused(backend):
    with pytest.raises(TypeError, match="crop_rato"):
        backend()(photograph(), crop_rato=1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_misspelt_setting_of_a_processor_is_refused(backend):
    with pytest.raises((TypeError, ValueError), match="crop_rato"):
        backend(crop_rato=1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_crop_ratio_of_a_call_takes_effect(backend):
    image = photograph("china.jpg", 400, 500)
    expected = pixels(backend(crop_ratio=1.0), image)
    assert torch.equal(pixels(backend(), image, crop_ratio=1.0), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_crop_size_of_a_call_takes_effect(backend):
    """The resized size follows; otherwise a larger crop has black borders."""
    image = photograph("china.jpg", 400, 600)
    expected = pixels(backend(crop_size=384), image)
    assert torch.equal(pixels(backend(), image, crop_size={"height": 384, "width": 384}), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", [{"crop_ratio": 1.0}, {"crop_size": {"height": 384, "width": 384}}])
def test_settings_given_on_loading_take_effect(tmp_path, backend, settings):
    backend().save_pretrained(tmp_path)
    image = photograph("china.jpg", 400, 600)
    loaded = backend.from_pretrained(tmp_path, **settings)
    assert loaded.size == backend(**settings).size
    assert torch.equal(pixels(loaded, image), pixels(backend(**settings), image))


def opaque_modes() -> dict[str, Image.Image]:
    image = photograph("flower.jpg", 400, 500)
    return {mode: image.convert(mode) for mode in ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "F", "YCbCr", "HSV")}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", opaque_modes())
def test_images_of_every_mode_equal_timms_of_their_rgb(backend, mode):
    image = opaque_modes()[mode]
    assert image.mode == mode
    rgb = Image.merge("RGB", [image.getchannel(0)] * 3) if mode == "LA" else image.convert("RGB")
    difference = (pixels(backend(), image) - timm_pixels(rgb)).abs()
    assert (difference <= GREY_LEVEL).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("highest", [0.7, 1.0, 256.0, 65535.0, -3.0, float("nan")])
def test_floats_that_are_no_8_bits_are_refused(backend, highest):
    """Pillow would make black or white of them."""
    image = Image.fromarray(np.linspace(0, highest, 900, dtype=np.float32).reshape(30, 30))
    with pytest.raises(ValueError, match=r"mode 'F' .*scale it to 8 bits"):
        backend()(image, return_tensors="pt")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(backend, mode):
    image = photograph("flower.jpg", 256, 256)
    image = image.convert("L") if mode == "LA" else image
    alpha = np.tile(np.linspace(0, 255, 256).round().astype(np.uint8), (256, 1))
    transparent = image.copy()
    transparent.putalpha(Image.fromarray(alpha))
    assert transparent.mode == mode
    weight = alpha[..., None] / 255
    expected = np.asarray(image.convert("RGB")) * weight + 255 * (1 - weight)
    levels = grey_levels(pixels(backend(), transparent)).transpose(1, 2, 0)
    assert np.abs(levels - expected[16:-16, 16:-16]).max() <= 1.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_transparent_colour_of_a_palette_is_laid_over_white(backend):
    image = Image.new("P", (256, 256), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 128, 256))
    image.info["transparency"] = 0
    levels = grey_levels(pixels(backend(), image))
    np.testing.assert_allclose(levels[:, 100, 10], [255, 255, 255], atol=0.01)
    np.testing.assert_allclose(levels[:, 100, 200], [0, 0, 255], atol=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.uint16, np.int32], ids=["I;16", "I"])
def test_images_of_more_than_8_bits_are_refused(backend, dtype):
    """Pillow's conversion to RGB clips at 255, which makes nearly all of such an image white."""
    grey = np.asarray(photograph("flower.jpg", 256, 256).convert("L"))
    with pytest.raises(ValueError, match="8 bits"):
        backend()(Image.fromarray(grey.astype(dtype) * 257))


def array_inputs() -> dict:
    array = np.asarray(photograph("flower.jpg", 400, 500))
    channels_first = torch.from_numpy(array.copy()).permute(2, 0, 1)
    return {
        "HWC array": array,
        "CHW array": array.transpose(2, 0, 1),
        "CHW tensor": channels_first,
        "HWC tensor": torch.from_numpy(array.copy()),
        "BCHW tensor": channels_first[None],
        "BHWC array": array[None],
        "list of arrays": [array],
        "list of tensors": [channels_first],
        "HWC array with opaque alpha": np.concatenate([array, np.full_like(array[..., :1], 255)], axis=-1),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", array_inputs())
def test_arrays_and_tensors_equal_the_image(backend, kind):
    expected = pixels(backend(), photograph("flower.jpg", 400, 500))
    assert torch.equal(pixels(backend(), array_inputs()[kind]), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["HWC", "HW", "list of HW"])
def test_greyscale_arrays_equal_the_greyscale_image(backend, kind):
    image = photograph("flower.jpg", 400, 500).convert("L")
    array = np.asarray(image)
    given = {"HWC": array[..., None], "HW": array, "list of HW": [array]}[kind]
    assert torch.equal(pixels(backend(), given), pixels(backend(), image))


@pytest.mark.parametrize("backend", BACKENDS)
def test_float_tensor_in_unit_range_with_do_rescale_false(backend):
    image = photograph("flower.jpg", 256, 256)
    unit = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    difference = pixels(backend(), unit, do_rescale=False) - pixels(backend(), image)
    # A float image is not rounded when it is resized; at 256 nothing is resized.
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_is_a_batch_of_its_images_whatever_their_sizes_and_modes(backend):
    images = [
        photograph("china.jpg", 300, 400),
        photograph("flower.jpg", 400, 300).convert("L"),
        photograph("china.jpg", 300, 400).convert("P"),
        np.asarray(photograph("flower.jpg", 100, 200)),
        photograph("flower.jpg", 300, 400),
    ]
    batch = pixels(backend(), images)
    assert batch.shape == (5, 3, 224, 224)
    for row, image in zip(batch, images, strict=True):
        torch.testing.assert_close(row, pixels(backend(), image), atol=1e-6, rtol=0)


def test_backends_agree_within_two_grey_levels():
    image = photograph("china.jpg", 500, 333)
    torchvision, pillow = (pixels(backend(), image) for backend in BACKENDS)
    assert ((torchvision - pillow).abs() <= 2 * GREY_LEVEL).all()


ROUND_TRIPS = [
    {},
    {"crop_size": 384, "crop_ratio": 1.0},
    {"size": {"shortest_edge": 300}},
    {"crop_size": {"height": 96, "width": 64}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]},
    {"crop_size": 64, "do_normalize": False},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", ROUND_TRIPS)
def test_settings_survive_a_round_trip(tmp_path, backend, settings):
    processor = backend(**settings)
    processor.save_pretrained(tmp_path)
    loaded = backend.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    image = photograph("flower.jpg", 300, 400)
    assert torch.equal(pixels(loaded, image), pixels(processor, image))


@pytest.mark.parametrize("settings", ROUND_TRIPS)
def test_what_is_published_gives_the_same_pixels_in_plain_transformers(tmp_path, settings):
    DistilledDeiTImageProcessor(**settings).save_pretrained(tmp_path)
    plain = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(plain) is DeiTImageProcessor
    images = [*opaque_modes().values(), photograph(), photograph("china.jpg", 100, 80)]
    for image in images:
        assert torch.equal(pixels(plain, image), pixels(DistilledDeiTImageProcessor(**settings), image))


@pytest.mark.parametrize("backend", BACKENDS)
def test_either_backend_publishes_the_same_file(tmp_path, backend):
    backend(crop_ratio=0.9).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "DeiTImageProcessor"
    assert written["size"] == {"shortest_edge": 248}
    assert written["crop_size"] == {"height": 224, "width": 224}
    assert "auto_map" not in written
    image = photograph()
    plain = DeiTImageProcessorPil.from_pretrained(tmp_path)
    assert torch.equal(pixels(plain, image), pixels(DistilledDeiTImageProcessorPil(crop_ratio=0.9), image))
    assert torch.equal(
        pixels(AutoImageProcessor.from_pretrained(tmp_path), image),
        pixels(DistilledDeiTImageProcessor(crop_ratio=0.9), image),
    )


@pytest.mark.parametrize("processor_class", BACKENDS)
@pytest.mark.parametrize(
    ("settings", "arguments", "crop", "resized"),
    [
        ({"crop_size": 224}, (384,), (384, 384), 438),
        ({"crop_size": 224, "crop_ratio": 1.0}, (384,), (384, 384), 384),
        ({"crop_size": 224, "size": {"shortest_edge": 448}}, (32,), (32, 32), 64),
        ({"crop_size": 224}, ((48, 64),), (48, 64), 54),
        ({"crop_size": 224}, (384, 1.0), (384, 384), 384),
    ],
)
def test_the_processor_at_another_size_keeps_its_crop_ratio_and_statistics(
    processor_class, settings, arguments, crop, resized
):
    own = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.9, 0.8, 0.7), "resample": 2}
    original = processor_class(**settings, **own)
    processor = original.at_crop_size(*arguments)
    assert type(processor) is processor_class
    assert (processor.crop_size.height, processor.crop_size.width) == crop
    assert processor.size.shortest_edge == resized
    assert {name: getattr(processor, name) for name in own} == own
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    prepared = processor(image, return_tensors="pt")["pixel_values"]
    assert prepared.shape == (1, 3, *crop)
    made_so = processor_class(crop_size={"height": crop[0], "width": crop[1]}, size={"shortest_edge": resized}, **own)
    assert torch.equal(prepared, made_so(image, return_tensors="pt")["pixel_values"])
    assert original.crop_size.height == 224
