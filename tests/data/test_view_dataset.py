"""Contract: a view depends on (seed, epoch, slot) alone: not on its batch, its worker, or any global generator.

Files of all kinds are decoded as the published image processors do it; broken ones stop the run, or are counted.
"""

import pickle
import random
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support.images import (
    FEATURES,
    broken,
    identity,
    random_states,
    table,
    textured,
)
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

from hf_deit.data import view_dataset as view_dataset_module
from hf_deit.data.batch_augment import normalize
from hf_deit.data.decoding import ImageDecoder
from hf_deit.data.transforms import build_train_transform
from hf_deit.data.view_dataset import EvaluationDataset, ViewDataset, collate
from hf_deit.data.views import ViewKey, ViewSampler, preserve_global_random_state, seed_global_random_state
from hf_deit.errors import InputError
from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessor, DistilledDeiTImageProcessorPil


def view_dataset(data: datasets.Dataset, seed: int = 3, **options) -> ViewDataset:
    transform = build_train_transform((40, 40), image_mean=(0.485, 0.456, 0.406))
    return ViewDataset(data, transform, seed=seed, **options)


KEYS = [ViewKey(epoch=1, slot=slot, index=(5 * (slot // 2)) % 12, view=slot % 2) for slot in range(10)]


def pixels(samples) -> list[bytes]:
    return [sample["pixel_values"].numpy().tobytes() for sample in samples]


def test_a_view_does_not_depend_on_its_list():
    views = view_dataset(textured(12))
    reference = pixels(views[key] for key in KEYS)
    assert len(set(reference)) == len(KEYS)
    assert pixels(views.__getitems__(KEYS)) == reference
    assert pixels(views.__getitems__(KEYS[::-1]))[::-1] == reference
    assert pixels(views.__getitems__(KEYS[3:7])) == reference[3:7]
    assert pixels(views.__getitems__([KEYS[4], KEYS[2], KEYS[4]])) == [reference[i] for i in (4, 2, 4)]


def test_a_view_depends_on_seed_epoch_and_slot():
    data = textured(12)
    views = view_dataset(data)
    key = KEYS[0]
    variants = [
        views[key],
        views[key._replace(slot=77)],
        views[key._replace(epoch=2)],
        view_dataset(data, seed=4)[key],
    ]
    assert len(set(pixels(variants))) == 4
    assert len({sample["view_seeds"] for sample in variants}) == 4
    assert pixels([views[key._replace(view=1)]]) == pixels([views[key]])  # the slot already tells the views apart


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_view_does_not_depend_on_the_workers(workers):
    views = view_dataset(textured(12))
    sampler = ViewSampler(12, seed=3, total_batch_size=4, repeats=3)
    sampler.set_epoch(1)
    expected = [views[key] for key in sampler]
    torch.manual_seed(workers)
    loader = DataLoader(views, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=collate)
    batches = list(loader)
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), collate(expected)["pixel_values"])
    for name in ("labels", "view_seeds", "bad_images"):
        assert torch.cat([batch[name] for batch in batches]).tolist() == [sample[name] for sample in expected]


def test_global_generators_are_neither_moved_nor_read():
    views = view_dataset(textured(12))
    results = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random_states()
        results.append(pixels(views.__getitems__(KEYS)))
        assert random_states() == before
    assert results[0] == results[1]


def test_global_generators_survive_a_broken_image():
    data = textured(4)
    views = view_dataset(broken(data, [1]))
    before = random_states()
    with pytest.raises(InputError):
        views.__getitems__([ViewKey(0, 0, 0, 0), ViewKey(0, 1, 1, 0)])
    assert random_states() == before


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The rows that are decoded, as often as they are."""
    decode, rows = ImageDecoder.__call__, []
    monkeypatch.setattr(ImageDecoder, "__call__", lambda self, row: rows.append(row) or decode(self, row))
    return rows


def test_repeated_views_decode_their_image_once(decoded):
    views = view_dataset(textured(12))
    sampler = ViewSampler(12, seed=3, total_batch_size=12, repeats=3)
    keys = list(sampler)
    samples = views.__getitems__(keys)
    assert len(keys) == 12
    assert len(decoded) == len({key.index for key in keys}) == 4
    assert len(set(pixels(samples))) == 12


def made_by_workers(views: ViewDataset, sampler: ViewSampler, *, batch_size: int, workers: int) -> list[dict]:
    """The views of an epoch, whose batches are dealt in turn to copies of the data set.

    So accelerate deals them to processes, and torch each process's to its workers: one of `workers` in all.
    """
    keys = list(sampler)
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    copies = [pickle.loads(pickle.dumps(views)) for _ in range(workers)]
    return [sample for number, batch in enumerate(batches) for sample in copies[number % workers].__getitems__(batch)]


# Decodes per three views, where a mixing group has four: as with batches of 64, 128, 192, 256 and groups of 64.
LAYOUTS = {
    (4, 1): 1, (4, 2): 2, (4, 3): 3, (4, 4): 3, (4, 8): 3,
    (8, 1): 1, (8, 2): 2, (8, 3): 2, (8, 8): 2,
    (12, 1): 1, (12, 2): 1, (12, 4): 1, (12, 8): 1,
    (16, 1): 1, (16, 2): 1.5, (16, 8): 1.5,
}  # fmt: skip


@pytest.mark.parametrize(("batch_size", "workers"), LAYOUTS)
def test_spread_views_are_decoded_once_where_one_worker_makes_them(decoded, batch_size, workers):
    places = {"repeats": 3, "images_per_block": 4}
    sampler = ViewSampler(576, seed=3, total_batch_size=576, **places)
    views = plain_views(textured(1).select([0] * 576), **places)
    made_by_workers(views, sampler, batch_size=batch_size, workers=workers)
    assert len(decoded) / 192 == pytest.approx(LAYOUTS[batch_size, workers], abs=0.02)


@pytest.mark.parametrize("room", [0, 3, 10**9], ids=lambda room: f"room for {room}")
@pytest.mark.parametrize("images_per_block", [1, 4, 8])
def test_views_and_counts_do_not_depend_on_what_is_kept(monkeypatch, images_per_block, room):
    """Broken images among them: the views that others stand in for are counted as they are without."""
    data = broken(textured(20), [3, 4, 11])
    places = {"repeats": 3, "images_per_block": images_per_block}
    sampler = ViewSampler(20, seed=3, total_batch_size=60, **places)
    expected = [view_dataset(data, on_bad_image="skip")[key] for key in sampler]
    size = 4 * np.prod(data[0]["image"].size)
    monkeypatch.setattr(view_dataset_module, "_MOST_KEPT", room * size)
    for batch_size, workers in ((4, 2), (12, 1)):
        views = view_dataset(data, on_bad_image="skip", **places)
        given = made_by_workers(views, sampler, batch_size=batch_size, workers=workers)
        assert pixels(given) == pixels(expected)
        for name in ("labels", "view_seeds", "slots", "bad_images", "skipped"):
            assert [sample[name] for sample in given] == [sample[name] for sample in expected]
    assert 3 * 3 <= sum(sample["bad_images"] for sample in expected) < 15


def test_a_worker_keeps_no_more_images_than_there_is_room_for(monkeypatch, decoded):
    size = 4 * 48 * 40
    data = datasets.Dataset.from_dict({"image": [Image.new("RGB", (48, 40))] * 64, "label": [0] * 64}, FEATURES)
    monkeypatch.setattr(view_dataset_module, "_MOST_KEPT", 10 * size)
    views = plain_views(data, repeats=3, images_per_block=16)
    keys = list(ViewSampler(64, seed=0, total_batch_size=48, repeats=3, images_per_block=16))
    for start in range(0, 48, 16):
        views.__getitems__(keys[start : start + 16])
        assert len(views._images._kept) == (0 if start == 32 else 10)
    assert (
        len(decoded) == 16 + 6 + 6
    )  # the last one that was decoded is the next group's last, too, and comes too late
    decoded.clear()
    views.__getitems__(keys)  # one image after the other needs no room
    assert len(decoded) == 16
    assert len(pickle.dumps(views._images)) < 200, "what is kept goes to no worker"


def test_a_worker_keeps_nothing_of_images_that_come_once(decoded):
    views = plain_views(textured(12), repeats=1, images_per_block=1)
    views.__getitems__(list(ViewSampler(12, seed=0, total_batch_size=12)))
    assert not views._images._kept


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "augmix-m5-w3", "3a"])
def test_transforms_leave_the_image_as_it_is(policy):
    transform = build_train_transform((40, 40), image_mean=(0.485, 0.456, 0.406), auto_augment=policy)
    image = textured(1)[0]["image"].convert("RGB")
    before = image.tobytes()
    with preserve_global_random_state():
        for seed in range(60):
            seed_global_random_state(seed)
            transform(image)
            assert image.tobytes() == before


def plain_views(data: datasets.Dataset, **options) -> ViewDataset:
    return ViewDataset(data, pil_to_tensor, seed=0, **options)


def test_a_broken_image_stops_with_its_path_and_row():
    views = plain_views(broken(table([0, 1, 2, 0]), [2]))
    assert views[ViewKey(0, 0, 1, 0)]["labels"] == 1
    with pytest.raises(InputError, match=r"row 2 .*\(2\.png\).*--on_bad_image skip"):
        views[ViewKey(0, 1, 2, 0)]


def test_a_missing_image_stops_with_its_row():
    data = table([0, 1, 2, 0]).to_dict()
    data["image"][3] = None
    data = datasets.Dataset.from_dict(data, features=table([0]).features)
    with pytest.raises(InputError, match="row 3"):
        plain_views(data)[ViewKey(0, 0, 3, 0)]


def test_a_truncated_file_stops_with_its_path(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    data = datasets.Dataset.from_dict({"image": [str(path)], "label": [0]}, features=FEATURES)
    with pytest.raises(InputError) as error:
        plain_views(data)[ViewKey(0, 0, 0, 0)]
    assert str(path) in str(error.value)


def test_skipping_takes_the_next_readable_image_and_counts():
    data = broken(table([0, 1, 2, 0, 1, 2]), [0, 2, 3, 5])
    views = plain_views(data, on_bad_image="skip")
    samples = views.__getitems__([ViewKey(0, slot, index, 0) for slot, index in enumerate([1, 2, 2, 3, 4, 5, 0])])
    # Row 2 gives way to row 4 (3 is broken too), row 5 to row 1 (past the end, 0 is broken too).
    expected = [(1, 1), (1, 4), (1, 4), (1, 4), (1, 4), (1, 1), (1, 1)]
    assert [identity(Image.fromarray(s["pixel_values"].permute(1, 2, 0).numpy())) for s in samples] == expected
    assert [sample["labels"] for sample in samples] == [1] * 7
    assert [sample["bad_images"] for sample in samples] == [0, 1, 1, 1, 0, 1, 1]
    rows = [re.findall(r"row (\d) of the training images \((\d).png\): \w", sample["skipped"]) for sample in samples]
    assert rows == [[(str(row),) * 2 for row in met] for met in ([], [2, 3], [2, 3], [3], [], [5, 0], [0])]
    assert "object at" not in collate(samples)["skipped"][0]  # of two processes both must say the same


@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_nothing_readable_is_refused(on_bad_image):
    views = plain_views(broken(table([0, 1, 2]), [0, 1, 2]), on_bad_image=on_bad_image)
    with pytest.raises(InputError):
        views[ViewKey(0, 0, 1, 0)]


def test_collate_stacks_pixels_and_makes_integers():
    samples = view_dataset(textured(12)).__getitems__(KEYS[:3])
    batch = collate(samples)
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["pixel_values"][2], samples[2]["pixel_values"])
    for name in ("labels", "view_seeds", "bad_images"):
        assert batch[name].dtype == torch.int64
        assert batch[name].tolist() == [sample[name] for sample in samples]


# Evaluation, and what files hold


PROCESSORS = [DistilledDeiTImageProcessor, DistilledDeiTImageProcessorPil]


def saved(folder, mode: str) -> str:
    generator = np.random.RandomState(1)
    image = Image.fromarray(generator.randint(0, 256, (60, 44, 4), dtype=np.uint8), "RGBA")
    if mode == "RGBA":
        path = folder / "rgba.png"
    elif mode == "P with transparency":
        image, path = image.convert("RGB").convert("P"), folder / "palette.png"
        image.info["transparency"] = 3
    elif mode == "CMYK":
        image, path = image.convert("RGB").convert("CMYK"), folder / "cmyk.jpg"
    elif mode == "LA":
        image, path = image.convert("LA"), folder / "la.png"
    else:
        image, path = image.convert("RGB").convert(mode), folder / f"{mode}.png"
    image.save(path)
    with Image.open(path) as reread:
        assert reread.mode == mode.split()[0]
    return str(path)


def of_files(*paths: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": list(paths), "label": [1] * len(paths)}, features=FEATURES)


@pytest.mark.parametrize("processor_class", PROCESSORS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "P with transparency", "CMYK", "L", "LA", "1"])
def test_evaluation_pixels_are_the_processors(tmp_path, processor_class, mode):
    """Normalised, they are what the published processor makes of the file itself."""
    path = saved(tmp_path, mode)
    processor = processor_class(crop_size={"height": 32, "width": 32}, crop_ratio=0.8)
    with Image.open(path) as image:
        expected = processor(image, return_tensors="pt")["pixel_values"]
    sample = EvaluationDataset(of_files(path), processor)[0]
    assert sample["pixel_values"].dtype == torch.uint8
    got = normalize(sample["pixel_values"][None], processor.image_mean, processor.image_std)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert sample["labels"] == 1


@pytest.mark.parametrize("mode", ["RGBA", "P", "P with transparency", "CMYK", "L", "LA", "1"])
def test_training_decodes_files_as_the_processors_convert_them(tmp_path, mode):
    path = saved(tmp_path, mode)
    processor = DistilledDeiTImageProcessor(
        do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False
    )
    with Image.open(path) as image:
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(plain_views(of_files(path))[ViewKey(0, 0, 0, 0)]["pixel_values"], expected.to(torch.uint8))


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    image = ImageDecoder(of_files(str(tmp_path / "clear.png")), "image")(0)
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_honoured(tmp_path, orientation):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = 250, 150, 60
    # How a camera stores the upright picture so that the tag mends it (TIFF 6.0, tag 274).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    data = of_files(str(path))
    assert np.array_equal(np.asarray(ImageDecoder(data, "image")(0)), upright)
    sample = plain_views(data)[ViewKey(0, 0, 0, 0)]
    assert torch.equal(sample["pixel_values"], torch.from_numpy(upright).permute(2, 0, 1))


def test_evaluation_stops_at_a_broken_image_or_ignores_it():
    data = broken(table([0, 1, 2]), [1])
    processor = DistilledDeiTImageProcessor(crop_size={"height": 8, "width": 8}, crop_ratio=1.0)
    with pytest.raises(InputError, match=r"row 1 .*\(1\.png\)"):
        EvaluationDataset(data, processor)[1]
    skipping = EvaluationDataset(data, processor, on_bad_image="skip")
    batch = collate([skipping[i] for i in range(3)])
    assert batch["labels"].tolist() == [0, -100, 2]
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert not batch["pixel_values"][1].any()
    assert [line.partition(": ")[0] for line in batch["skipped"]] == ["row 1 of the validation images (1.png)"]


def test_named_columns_reach_the_datasets():
    data = table([0, 1, 2], image="photo", label="species")
    processor = DistilledDeiTImageProcessor(crop_size={"height": 8, "width": 8}, crop_ratio=1.0)
    columns = {"image_column": "photo", "label_column": "species"}
    assert [plain_views(data, **columns)[ViewKey(0, 0, i, 0)]["labels"] for i in range(3)] == [0, 1, 2]
    assert [EvaluationDataset(data, processor, **columns)[i]["labels"] for i in range(3)] == [0, 1, 2]
