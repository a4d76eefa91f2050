"""Contract: a view of an image that is decoded or kept smaller is that of the whole image, but for how it is scaled.

Which part it shows, and what else is drawn for it, is the same; it depends on (seed, epoch, slot) alone; and where
nothing is scaled, no bit changes.
"""

import io
import os
import pickle
import random

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support import tiny
from support.images import FEATURES, broken, noise
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.utils.data import DataLoader
from torchvision.transforms import Resize
from torchvision.transforms.functional import to_tensor

from hf_deit.data import decoding, view_dataset
from hf_deit.data.decoded_images import DecodedImages
from hf_deit.data.decoding import ImageDecoder, decode_image, fault_of_pixels
from hf_deit.data.scaled_images import JpegImage, ShrunkImage, bytes_of, open_image, scale_for, shrink
from hf_deit.data.streams import ImageStream, StreamSampler, StreamViewDataset
from hf_deit.data.transforms import build_train_transform
from hf_deit.data.view_dataset import ViewDataset, collate
from hf_deit.data.views import ViewKey, ViewSampler, seed_global_random_state
from hf_deit.errors import BadImageError, InputError
from hf_deit.training.arguments import DistillationTrainingArguments

SIZE = (40, 48)  # height, width
MEAN = (0.485, 0.456, 0.406)


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of which each place looks unlike the others, and which is nearly the same when it is scaled."""
    return noise(4, 5, seed).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG", **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 95, "subsampling": 0} if format != "PNG" else {}), **options)
    return {"bytes": buffer.getvalue(), "path": None}


def table(images: list[dict]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": images, "label": [0] * len(images)}, features=FEATURES)


@pytest.fixture
def transform():
    return build_train_transform(SIZE, image_mean=MEAN)


@pytest.fixture
def photographs() -> datasets.Dataset:
    """Of several sizes, the last of which is too small to be decoded smaller."""
    sizes = [(403, 305), (801, 607), (210, 330), (399, 300), (90, 70)]
    return table([encoded(smooth(*size, seed)) for seed, size in enumerate(sizes)])


@pytest.mark.parametrize(
    ("part", "scale"),
    [((384, 320), 8), ((384, 319), 4), ((383, 320), 4), ((100, 1000), 2), ((96, 80), 2), ((95, 80), 1), ((9, 9), 1)],
)
def test_the_scale_leaves_a_part_as_many_pixels_as_its_result(part, scale):
    assert scale_for((7, 3, 7 + part[0], 3 + part[1]), (48, 40)) == scale


@pytest.mark.parametrize("small", [False, True])
def test_the_part_is_timms_and_the_rest_is_drawn_alike(small):
    """By which the whole views are nearly the same, with flips and RandAugment."""
    transform = build_train_transform((24, 32) if small else SIZE, image_mean=MEAN)
    timms = RandomResizedCropAndInterpolation(SIZE, scale=(0.08, 1.0))
    image = smooth(643, 485)
    jpeg, shrunk = open_image(encoded(image), "it"), shrink(image, 96)
    assert isinstance(jpeg, JpegImage) and isinstance(shrunk, ShrunkImage) and shrunk.image.size == (127, 96)
    assert jpeg.size == shrunk.size == image.size
    for seed in range(30):
        if small:
            height, width = Resize(24)(to_tensor(image)).shape[1:]
            assert transform.draw(jpeg.size) == ((0, 0, 643, 485), (width, height))
        else:
            seed_global_random_state(seed)
            top, left, height, width = timms.get_params(image, timms.scale, timms.ratio)
            seed_global_random_state(seed)
            assert transform.draw(jpeg.size) == ((left, top, left + width, top + height), (48, 40))
        seed_global_random_state(seed)
        expected = transform(decode_image({"bytes": jpeg._encoded["bytes"]}, "it")).float()
        states = random.getstate(), torch.get_rng_state()
        for given in (jpeg, shrunk):
            seed_global_random_state(seed)
            got = transform(given).float()
            assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
            # Some of RandAugment's policies make much of a level more or less, so few pixels may differ by many.
            assert (got - expected).abs().median() <= 3
    assert set(jpeg._decoded) == ({8} if small else {2, 4, 8})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_part_is_pillows_draft_of_the_same_place(orientation, scale):
    stored = smooth(403, 309)  # neither side is a multiple of a scale
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(stored, exif=exif)
    jpeg, whole = open_image(file, "it"), decode_image(file, "it")
    assert jpeg.size == whole.size == ((403, 309) if orientation < 5 else (309, 403))
    box = (jpeg.size[0] - 240, 0, jpeg.size[0], 240)
    result = 240 // scale
    assert scale_for(box, (result, result)) == scale
    got = jpeg.part(box, (result, result))
    assert np.abs(pixels(got) - pixels(whole.crop(box).resize((result, result), Image.Resampling.BICUBIC))).mean() < 1
    # The same place in the stored image, which is turned only after it is resized.
    marked = Image.new("L", jpeg.size)
    marked.paste(255, box)
    back = {5: 5, 6: 8, 8: 6}.get(orientation, orientation)
    exif[0x0112] = back
    marked.getexif()[0x0112] = back
    place = ImageOps.exif_transpose(marked).getbbox()
    draft = Image.open(io.BytesIO(file["bytes"]))
    _, (_, _, width, height) = draft.draft(None, (403 // scale, 309 // scale))
    assert (width, height) == (403 / scale, 309 / scale)
    drafted = draft.resize((result, result), Image.Resampling.BICUBIC, box=[edge / scale for edge in place])
    drafted.getexif()[0x0112] = orientation
    difference = np.abs(pixels(got) - pixels(ImageOps.exif_transpose(drafted)))
    assert difference.max() <= 2  # as rows and columns are resized in the other order


@pytest.mark.parametrize("kind", ["grey", "CMYK", "progressive", "several", "subsampled"])
def test_jpegs_of_all_kinds_are_decoded_smaller(kind):
    image = smooth(405, 307)
    if kind in ("grey", "CMYK"):
        image = image.convert("L" if kind == "grey" else "CMYK")
    options = {"progressive": {"progressive": True}, "subsampled": {"quality": 80}}.get(kind, {})
    if kind == "several":
        file = encoded(image, "MPO", save_all=True, append_images=[smooth(405, 307, 9)])
    else:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", **options)
        file = {"bytes": buffer.getvalue(), "path": None}
    jpeg, box = open_image(file, "it"), (3, 5, 403, 305)
    got = jpeg.part(box, (50, 30))
    assert isinstance(jpeg, JpegImage) and {s: i.size for s, i in jpeg._decoded.items()} == {8: (51, 39)}
    draft = Image.open(io.BytesIO(file["bytes"]))
    draft.draft(None, (50, 38))
    draft = draft.convert("RGB").resize((50, 30), Image.Resampling.BICUBIC, box=[edge / 8 for edge in box])
    assert np.array_equal(pixels(got), pixels(draft))
    whole = decode_image(file, "it").crop(box).resize((50, 30), Image.Resampling.BICUBIC)
    assert np.abs(pixels(got) - pixels(whole)).mean() < 2


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def test_what_cannot_be_decoded_smaller_keeps_its_bits(photographs, transform):
    small = encoded(smooth(90, 70))
    png = encoded(smooth(400, 300), "PNG")
    assert isinstance(open_image(png, "it"), Image.Image)
    data = table([small, png])
    plain, reduced = (ViewDataset(data, transform, seed=3, reduced_decoding=on) for on in (False, True))
    for slot in range(8):
        key = ViewKey(0, slot, slot % 2, 0)
        assert torch.equal(plain[key]["pixel_values"], reduced[key]["pixel_values"])
    # Those of more pixels do not.
    key = ViewKey(0, 0, 1, 0)
    plain, reduced = (ViewDataset(photographs, transform, seed=3, reduced_decoding=on)[key] for on in (False, True))
    assert not torch.equal(plain.pop("pixel_values"), reduced.pop("pixel_values")) and plain == reduced


@pytest.mark.parametrize("kept", ["reduced", "resized", "resized, a part of them"])
def test_a_view_depends_on_its_slot_alone(kept, photographs, transform):
    settings = {"reduced_decoding": True}
    if kept != "reduced":
        settings = {"cache_bytes": 1e9 if kept == "resized" else 4e4, "kept_side": 60}
    views = [ViewDataset(photographs, transform, seed=3, repeats=3, **settings) for _ in range(3)]
    sampler = ViewSampler(5, seed=3, total_batch_size=15, repeats=3)
    keys = [*sampler] * 2  # of images that are kept, too
    expected = [views[0][key]["pixel_values"] for key in reversed(keys)][::-1]
    together = [sample["pixel_values"] for sample in views[1].__getitems__(keys)]
    loader = DataLoader(views[2], batch_size=4, sampler=sampler, num_workers=2, collate_fn=collate)
    loaded = [view for batch in loader for view in batch["pixel_values"]]
    assert all(map(torch.equal, expected, together)) and all(map(torch.equal, expected[: len(loaded)], loaded))


def test_broken_images_are_passed_over_as_without_it(photographs, transform):
    data = photographs.cast_column("image", datasets.Image(decode=False)).to_dict()
    content = data["image"][1]["bytes"]
    data["image"][1]["bytes"] = content[: len(content) // 2]
    data = broken(datasets.Dataset.from_dict(data, features=FEATURES), [3])
    keys = [ViewKey(0, slot, slot % 5, 0) for slot in range(10)]
    both = [
        ViewDataset(data, transform, seed=3, on_bad_image="skip", **settings).__getitems__(keys)
        for settings in ({}, {"reduced_decoding": True}, {"cache_bytes": 1e9, "kept_side": 60})
    ]
    told = [[(s["bad_images"], s["skipped"], s["labels"], s["view_seeds"]) for s in samples] for samples in both]
    assert told[0] == told[1] == told[2] and [bad for bad, *_ in told[0]] == [0, 1, 0, 1, 0] * 2
    views = ViewDataset(data, transform, seed=3, reduced_decoding=True)
    state = random.getstate()
    for index in (1, 3):
        with pytest.raises(BadImageError, match=rf"the image of row {index} cannot be decoded"):
            views[ViewKey(0, 0, index, 0)]
    assert views.name(ViewKey(0, 0, 0, 0)) == "row 0 of the training images"
    assert random.getstate() == state


def test_damage_is_found_at_every_scale():
    content = encoded(smooth(300, 200))["bytes"]
    generator, faults = np.random.default_rng(0), []
    for number in range(60):
        length = len(content) if number % 2 else generator.integers(len(content) // 2, len(content))
        damaged = bytearray(content[:length])
        damaged[int(generator.integers(len(damaged)))] = int(generator.integers(256))
        found = []
        for scale in (1, 2, 4, 8):
            try:
                decode_image({"bytes": bytes(damaged)}, "it", scale)
                found.append(None)
            except BadImageError as error:
                found.append(error.reason)
        assert len(set(found)) == 1
        assert (found[0] is None) == (fault_of_pixels(io.BytesIO(damaged)) is None)
        faults.append(found[0])
    assert None in faults and len(set(faults)) > 1


def test_images_are_kept_with_the_pixels_they_have_without_room(photographs):
    decode = ImageDecoder(photographs, "image")
    kept = DecodedImages(decode, 5, 1e9, shorter_side=60)
    first = [kept(index) for index in range(5)]
    sizes = [(79, 60), (79, 60), (60, 94), (80, 60), (77, 60)]
    stored = [os.path.getsize(os.path.join(kept.folder, "0", str(index))) for index in range(5)]
    assert [image.image.size for image in first] == sizes
    assert stored == [16 + 3 * width * height for width, height in sizes]
    for image, again, other in zip(first, map(pickle.loads(pickle.dumps(kept)), range(5)), range(5), strict=True):
        pillows = Image.open(
            io.BytesIO(photographs.cast_column("image", datasets.Image(decode=False))[other]["image"]["bytes"])
        )
        _, box = pillows.draft(None, image.image.size) or (None, None)
        pillows = pillows.resize(image.image.size, Image.Resampling.BICUBIC, box=box)
        assert image.image.tobytes() == again.image.tobytes() == pillows.tobytes()
        assert np.abs(pixels(image.image) - pixels(decode(other).resize(image.image.size))).mean() < 1
        assert image.size == again.size == decode(other).size
    half = (4 * 4 + 5) * 4096 / 2  # whole blocks
    assert kept.kept_part == 1 and DecodedImages(decode, 5, half, shorter_side=60).kept_part == pytest.approx(0.5)
    as_it_is = DecodedImages(decode, 5, 1e9, shorter_side=70)
    for _ in range(2):
        image = as_it_is(4)
        assert isinstance(image, Image.Image) and image.tobytes() == decode(4).tobytes()


def test_a_stream_decodes_smaller(photographs, transform):
    stream = ImageStream(photographs.to_iterable_dataset(), images_per_epoch=5, seed=3)
    keys = [*StreamSampler(stream, batch_size=5, total_batch_size=5)]
    settings = {"seed": 3, "on_bad_image": "skip"}
    plain, reduced = (StreamViewDataset(stream, transform, **settings, reduced_decoding=on) for on in (False, True))
    rows = {"image": [key.encoded for key in keys], "label": [0] * 5}
    expected = ViewDataset(
        datasets.Dataset.from_dict(rows, features=FEATURES), transform, seed=3, reduced_decoding=True
    )
    got = reduced.__getitems__(keys)
    for sample, key in zip(got, keys, strict=True):
        row = ViewKey(0, key.slot, key.slot, 0)
        assert torch.equal(sample["pixel_values"], expected[row]["pixel_values"])
    others = plain.__getitems__(keys)
    assert any(not torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(got, others, strict=True))
    cut = keys[0]._replace(encoded={"bytes": keys[0].encoded["bytes"][:-900], "path": None})
    assert plain[cut]["skipped"] == reduced[cut]["skipped"] != ""


def test_a_run_takes_what_its_arguments_say(tmp_path, photographs):
    data = datasets.concatenate_datasets([photographs] * 3)
    student = tiny.student(num_labels=3, id2label=dict(enumerate(FEATURES["label"].names)))

    def views(**settings) -> ViewDataset:
        args = tiny.arguments(tmp_path, distillation_type="none", **settings)
        return tiny.trainer(student, args, None, train_dataset=data, eval_dataset=None).train_dataset

    assert isinstance(views(reduced_decoding=True).decoded(0), JpegImage)
    assert isinstance(views().decoded(0), Image.Image) and isinstance(
        views(cache_images="decoded").decoded(0), Image.Image
    )
    shrunk = views(cache_images="resized").decoded(1)
    assert min(shrunk.image.size) == 2 * max(views().transform.draw((90, 90))[1])


@pytest.mark.parametrize("kept", ["decoded", "resized"])
def test_what_is_decoded_smaller_is_not_kept(tmp_path, kept):
    with pytest.raises(InputError, match="--reduced_decoding false or --cache_images off"):
        DistillationTrainingArguments(output_dir=str(tmp_path), reduced_decoding=True, cache_images=kept)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_file_is_read_once_and_refused_where_it_cannot_be(tmp_path, monkeypatch, format):
    image, path = encoded(smooth(200, 100), format), tmp_path / "image"
    path.write_bytes(image["bytes"])
    opened = []
    monkeypatch.setattr(decoding, "_opened", lambda *a, whole=decoding._opened: opened.append(a) or whole(*a))
    found = shrink(open_image({"bytes": None, "path": str(path)}, "it"), 50)
    assert np.array_equal(found.image, shrink(open_image(image, "it"), 50).image)
    assert [file for file, *_ in opened if isinstance(file, str)] == [str(path)]
    reads = iter([OSError(5, "Input/output error")])  # a second time it could be read

    def fails_once(*given):
        for error in reads:
            raise error
        return decoding.file_content(*given)

    monkeypatch.setattr(decoding, "file_content", fails_once)
    with pytest.raises(BadImageError, match=r"the image of it \(.*image\) cannot be decoded"):
        open_image({"bytes": None, "path": str(path)}, "it")


def test_what_is_decoded_for_other_views_counts_before_an_image_is_kept(monkeypatch):
    """Three views of ten images, which lie far apart: of most crops a fourth of a side is enough, of some not."""
    images = [encoded(smooth(803, 607, seed)) for seed in range(10)]
    views = ViewDataset(
        table(images),
        build_train_transform(SIZE, image_mean=MEAN, crop_scale_min=0.01),
        seed=0,
        repeats=3,
        images_per_block=10,
        reduced_decoding=True,
    )
    monkeypatch.setattr(view_dataset, "_MOST_KEPT", 2_000_000)
    scales, most = set(), 0
    for slot in range(30):
        views[ViewKey(0, slot, slot % 10, slot // 10)]
        kept = [found.image for _, found in views._images._kept.values()]
        scales |= {scale for image in kept for scale in image._decoded}
        most = max(most, sum(map(bytes_of, kept)))
    assert len(scales) > 2 and 1_000_000 < most <= 2_000_000


@pytest.mark.parametrize(("reduced", "cache", "side"), [(True, 1e9, None), (False, 0.0, 60), (True, 0.0, 60)])
def test_views_refuse_what_would_be_swallowed(photographs, transform, reduced, cache, side):
    with pytest.raises(ValueError, match=f"got kept_side {side}, cache_bytes {cache:g}".replace("+", r"\+")):
        ViewDataset(photographs, transform, seed=0, reduced_decoding=reduced, cache_bytes=cache, kept_side=side)
