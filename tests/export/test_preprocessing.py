"""The contract: what an image processor does is described in numbers, and whoever follows them makes what it makes.

The references are the processors themselves (transformers' and timm's, torchvision's and Pillow's), and Pillow. What
has no such description is refused, with the reason; so is a processor that does something else than its settings say.
"""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import transformers
from onnx import checker, save
from PIL import Image
from support.images import noise
from transformers import TimmWrapperImageProcessor

from hf_deit import DistilledDeiTImageProcessor
from hf_deit.errors import InputError
from hf_deit.export.programs.onnx_preprocessing import preprocessing_model
from hf_deit.export.programs.preprocessing import FILTERS, Preprocessing
from hf_deit.export.programs.processors import check_description, preprocessing_of
from hf_deit.export.programs.reference.preprocessing import crop_start
from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessorPil

# Sides of images: smaller than the crop, stripes, odd differences from the crop, much larger than it.
SIZES = ((31, 23), (1, 9), (47, 96), (199, 151))
EXACT = {"height": 35, "width": 29}
FEW = {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 30}}
TIMM = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 0.875, "mean": (0.5, 0.4, 0.3)}
TIMM |= {"std": (0.2, 0.25, 0.3)}


def both(name: str, *settings: dict) -> list:
    """A processor of transformers with each of some settings, with torchvision and with Pillow."""
    classes = [getattr(transformers, f"{name}ImageProcessor{end}") for end in ("", "Pil")]
    return [pytest.param(kind, given, id=f"{kind.__name__} {given}") for kind in classes for given in settings]


def timm(*settings: dict) -> list:
    return [
        pytest.param(TimmWrapperImageProcessor, {"pretrained_cfg": {**TIMM, **given}}, id=f"timm {given}")
        for given in settings
    ]


PROCESSORS = [
    *(
        pytest.param(kind, given, id=f"{kind.__name__} {given}")
        for kind in (DistilledDeiTImageProcessor, DistilledDeiTImageProcessorPil)
        for given in (
            {"crop_size": 32},
            {"crop_size": 33, "crop_ratio": 0.9, "resample": 2},
            {"crop_size": {"height": 24, "width": 41}},
            {"size": EXACT, "crop_size": 32, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]},
        )
    ),
    *both("DeiT", {"size": EXACT, "crop_size": 32}, {"size": 32, "do_center_crop": False, "resample": 1}),
    *both("DeiT", {"do_resize": False, "crop_size": 32}, {**FEW, "do_rescale": False, "do_normalize": False}),
    *both("DeiT", {**FEW, "do_normalize": False}, {**FEW, "do_rescale": False}, {**FEW, "rescale_factor": 1 / 127.5}),
    *both("ViT", {"size": EXACT}, {"size": 32, "image_mean": 0.3, "image_std": 0.2}),
    *both("Beit", {"size": EXACT, "do_center_crop": True, "crop_size": 32}),
    *both("ConvNext", {"size": {"shortest_edge": 31}}, {"size": 32, "crop_pct": 0.8}, {"size": 384}),
    *both("Bit", FEW),
    *both("CLIP", {"size": 31, "crop_size": 31}),
    *both("Levit", {"size": 63, "crop_size": 32}, {"size": EXACT, "crop_size": 33}),
    *both("EfficientNet", {"size": EXACT}, {"size": EXACT, "rescale_offset": True, "include_top": False}),
    *both(
        "EfficientNet", {"size": EXACT, "rescale_offset": True, "rescale_factor": 1 / 127.5, "image_std": [0.2] * 3}
    ),
    *both("EfficientNet", {"size": EXACT, "do_center_crop": True, "crop_size": 31, "resample": 0}),
    *both("MobileNetV1", FEW),
    *both("MobileNetV2", FEW),
    *both("MobileViT", FEW, {**FEW, "do_flip_channel_order": False}),
    *both("PoolFormer", {"size": 29, "crop_size": 32}, {"size": EXACT, "crop_size": 31}, {**FEW, "crop_pct": None}),
    *both("Pvt", {"size": EXACT}),
    *both("Siglip", {"size": EXACT}),
    *timm({}, {"crop_mode": "squash"}, {"interpolation": "bilinear", "crop_pct": 0.9}),
    *timm({"interpolation": "lanczos", "input_size": (3, 31, 31)}, {"interpolation": "nearest", "crop_pct": 1.0}),
]


def described(processor) -> Preprocessing:
    size = processor(noise(40, 40), return_tensors="pt")["pixel_values"].shape[2:]
    return preprocessing_of(processor, tuple(size))


def levels(values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Differences of pixel values in levels of 255."""
    slope, _ = preprocessing.slope_and_intercept()
    slope = slope[::-1] if preprocessing.channel_order == "BGR" else slope
    return np.abs(values) / np.abs(slope).reshape(-1, 1, 1)


def in_onnx(preprocessing: Preprocessing) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = preprocessing_model(preprocessing)
    checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    used = {name for node in model.graph.node for name in node.input}
    assert {constant.name for constant in model.graph.initializer} <= used
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def made_in_onnx(preprocessing: Preprocessing, *images: np.ndarray) -> np.ndarray:
    return in_onnx(preprocessing).run(None, {"images": np.stack(images)})[0]


@pytest.mark.parametrize(("kind", "settings"), PROCESSORS)
def test_of_any_image_the_same_is_made_as_by_the_processor(kind, settings):
    processor = kind(**settings)
    found = described(processor)
    assert Preprocessing.from_dict(found.to_dict()) == found
    session = in_onnx(found)
    for number, size in enumerate(SIZES):
        image = noise(*size, seed=number)
        expected = processor(image, return_tensors="pt")["pixel_values"][0].float().numpy()
        (exported,) = session.run(None, {"images": np.asarray(image)[None]})[0]
        given = size[0] | 1, size[1] | 1
        if found.filter == "nearest" and given != size:
            continue  # the nearest of an even number may be one of two pixels, which floats decide
        # The graph's products with Pillow's weights, of 22 bits, are not exact in float32.
        limit = 0.0002 if found.has_short_weights else 0.01
        for made, most in ((found.apply(np.asarray(image)), 0.0002), (exported, limit)):
            apart = levels(made - expected, found)
            assert made.dtype == np.float32
            assert apart.max() <= 1.001, size
            assert apart.mean() <= most, size


@pytest.mark.parametrize("name", sorted(set(FILTERS.values()) - {"nearest", "box"}))
@pytest.mark.parametrize("size", [(375, 500), (31, 500), (40, 31), (300, 1), (1, 257), (448, 448)], ids=str)
def test_the_graph_resizes_as_pillow_does(name, size):
    number = next(number for number, other in FILTERS.items() if other == name)
    image = noise(*size)
    preprocessing = plain(filter=name, crop_rounding="down")
    expected = np.asarray(image.resize((45, 64), number), dtype=np.float32).transpose(2, 0, 1)
    for made in (preprocessing.apply(np.asarray(image)), made_in_onnx(preprocessing, np.asarray(image))[0]):
        apart = np.abs(made - expected)
        assert apart.max() <= 1  # where floats decide
        assert apart.mean() <= 0.001


@pytest.mark.parametrize("name", ["nearest", "box"])
@pytest.mark.parametrize("size", [(375, 501), (31, 97), (29, 31), (449, 447)], ids=str)
def test_the_graph_takes_the_pixels_that_pillow_takes(name, size):
    """Of odd sides, where no pixel's edge or middle falls on another's: there Pillow's own floats decide."""
    preprocessing = plain(filter=name)
    image = np.asarray(noise(*size))
    assert np.abs(made_in_onnx(preprocessing, image)[0] - preprocessing.apply(image)).max() <= 1


def plain(**changes) -> Preprocessing:
    fields = {"resize": "exact", "size": (64, 45), "filter": "bicubic", "crop": None, "scale": 1.0, "offset": 0.0}
    fields |= {"mean": (0.0,) * 3, "std": (1.0,) * 3, "channel_order": "RGB", "input_size": (64, 45), **changes}
    return Preprocessing(**fields)


@pytest.mark.parametrize("rounding", ["zero", "down", "even"])
def test_the_crop_begins_where_each_library_lets_it(rounding):
    preprocessing = plain(resize=None, size=None, crop=(8, 8), input_size=(8, 8), crop_rounding=rounding)
    starts = {length: crop_start(length, 8, preprocessing.to_dict()) for length in (3, 5, 7, 8, 9, 11, 13, 15)}
    expected = {
        "zero": {3: -2, 5: -1, 7: 0, 8: 0, 9: 0, 11: 1, 13: 2, 15: 3},  # transformers with torchvision
        "down": {3: -3, 5: -2, 7: -1, 8: 0, 9: 0, 11: 1, 13: 2, 15: 3},  # transformers with Pillow
        "even": {3: -2, 5: -1, 7: 0, 8: 0, 9: 0, 11: 2, 13: 2, 15: 4},  # torchvision, and so timm
    }
    assert starts == expected[rounding]
    session = in_onnx(preprocessing)
    for height, width in [(3, 15), (5, 13), (7, 11), (9, 8), (15, 3)]:
        image = np.asarray(noise(height, width))
        assert np.array_equal(session.run(None, {"images": image[None]})[0][0], preprocessing.apply(image))


def test_what_a_crop_leaves_out_of_a_stripe_is_not_made():
    """Of one pixel by 4,000 the shorter side of 256 would give more than a million columns."""
    preprocessing = plain(resize="shortest", size=(256, 256), crop=(224, 224), input_size=(224, 224))
    image = np.asarray(noise(1, 4000))
    made = made_in_onnx(preprocessing, image)[0]
    middle = Image.fromarray(image[:, 1990:2010]).resize((256 * 20, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(middle, dtype=np.float32)[16:240, 2560 - 112 : 2560 + 112].transpose(2, 0, 1)
    assert np.abs(made - expected).max() <= 2
    upright = made_in_onnx(preprocessing, image.transpose(1, 0, 2))[0]
    assert np.abs(upright - made.transpose(0, 2, 1)).max() <= 1


def test_openvino_prepares_the_same(tmp_path):
    """Its integers have 32 bits: the columns of a resized stripe, times its length, would not fit into them."""
    openvino = pytest.importorskip("openvino")
    preprocessing = plain(resize="shortest", size=(256, 256), crop=(224, 224), input_size=(224, 224))
    path = tmp_path / "preprocessing.onnx"
    save(preprocessing_model(preprocessing), path)
    run = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in ((1, 20_000), (20_000, 1), (4000, 3), (47, 96), (300, 411)):
        image = np.asarray(noise(*size))
        apart = np.abs(run(image[None])[0] - made_in_onnx(preprocessing, image))
        assert apart.max() <= 1 and apart.mean() <= 0.002, size


def test_images_of_a_batch_do_not_meet():
    preprocessing = plain(resize="shortest", size=(37, 37), crop=(32, 30), input_size=(32, 30))
    images = [np.asarray(noise(50, 71, seed=number)) for number in range(5)]
    together = made_in_onnx(preprocessing, *images)
    alone = np.concatenate([made_in_onnx(preprocessing, image) for image in images])
    assert np.array_equal(together, alone)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANGES = {
    "filter": {"filter": "bilinear"},
    "no antialiasing": {"filter": "nearest"},
    "lanczos": {"filter": "lanczos"},
    "mean": {"mean": (0.485, 0.456, 0.41)},
    "means of the channels": {"mean": (0.406, 0.456, 0.485)},
    "std": {"std": (0.229, 0.224, 0.23)},
    "scale": {"scale": 1 / 250},
    "offset": {"offset": -0.004},
    "channel order": {"channel_order": "BGR"},
    "resized side": {"size": (38, 38)},
    "aspect ratio": {"resize": "exact"},
    "crop rounding": {"crop_rounding": "even"},
    "black": {"crop_rounding": "down", "size": (27, 27)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_part_of_a_description_shows(change):
    """Whatever is changed, a description is refused, and the graph answers measurably otherwise."""
    side = change.get("size", (37, 37))[0] if "crop_rounding" in change else 37
    processor = transformers.DeiTImageProcessor(
        crop_size=32, size={"shortest_edge": side}, image_mean=MEAN, image_std=STD
    )
    right = described(processor)
    check_description(right, processor)
    wrong = replace(right, **change)
    with pytest.raises(InputError, match="its settings do not say all that it does"):
        check_description(wrong, processor)
    images = [np.asarray(noise(*shape)) for shape in ((47, 96), (51, 33))]
    apart = [levels(made_in_onnx(wrong, image)[0] - made_in_onnx(right, image)[0], right) for image in images]
    assert max(difference.mean(axis=(1, 2)).max() for difference in apart) > 0.5  # of a channel


class Sharpened(DistilledDeiTImageProcessor):
    def center_crop(self, image, size, **kwargs):
        return super().center_crop(255 - image, size, **kwargs)


class Mirrored(DistilledDeiTImageProcessor):
    def center_crop(self, image, size, **kwargs):
        return super().center_crop(image.flip(-1), size, **kwargs)


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (
            lambda: transformers.ViTImageProcessor(size=32, do_pad=True, pad_size={"height": 40, "width": 40}),
            "it pads",
        ),
        (lambda: transformers.DonutImageProcessor(), "it pads"),
        (lambda: transformers.PerceiverImageProcessor(), "give images of 256 pixels, and it makes 224"),
        (
            lambda: transformers.PPLCNetImageProcessor(),
            "scale, statistics or order of the channels: of an image of 224 pixels it makes values that are up to",
        ),
        (lambda: transformers.TextNetImageProcessor(size={"shortest_edge": 32}), "nothing crops the longer one"),
        (
            lambda: transformers.CLIPImageProcessor(
                size={"shortest_edge": 32, "longest_edge": 50}, crop_size=32, do_center_crop=True
            ),
            "longest_edge.*: 50.*known are",
        ),
        (
            lambda: transformers.ConvNextImageProcessor(size=64, do_center_crop=True, crop_size=32),
            "it crops twice",
        ),
        (lambda: TimmWrapperImageProcessor({**TIMM, "crop_mode": "border"}), "timm's transform ResizeKeepRatio"),
        (lambda: TimmWrapperImageProcessor({**TIMM, "input_size": (3, 32, 48)}), "timm's transform ResizeKeepRatio"),
        (lambda: Sharpened(crop_size=32), "scale, statistics or order of the channels"),
        (lambda: Mirrored(crop_size=32), "by its resizing or cropping"),
    ],
)
def test_what_has_no_description_is_refused(processor, reason):
    with pytest.raises(InputError, match=reason) as refused:
        described(processor())
    assert "\n" not in str(refused.value)


def test_a_classifier_that_does_not_resize_takes_its_own_size_alone():
    found = preprocessing_of(transformers.ViTImageProcessor(do_resize=False), (24, 32))
    right, wrong = np.asarray(noise(24, 32)), np.asarray(noise(48, 32))
    assert np.allclose(made_in_onnx(found, right)[0], found.apply(right), atol=1e-5)
    with pytest.raises(InputError, match=r"\(24, 32\) pixels, got \(48, 32\)"):
        found.apply(wrong)
    with pytest.raises(Exception, match="Reshape"):
        made_in_onnx(found, wrong)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), dtype=np.uint8)])
def test_only_rgb_of_8_bits_is_prepared(image):
    with pytest.raises(InputError, match=r"expected an image of uint8 and \(H, W, 3\), got"):
        plain().apply(image)
