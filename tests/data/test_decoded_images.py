"""Contract: images that are kept decoded are those that decoding gives; they take no more room than they may."""

import copy
import gc
import glob
import os
import pickle
import shutil
import tempfile

import datasets
import numpy as np
import pytest
from PIL import Image
from support import tiny
from torch.utils.data import DataLoader

from hf_deit.data.decoded_images import DecodedImages
from hf_deit.data.decoding import ImageDecoder, size_of
from hf_deit.data.view_dataset import ViewDataset, collate
from hf_deit.data.views import ViewSampler
from hf_deit.errors import BadImageError, InputError


@pytest.fixture
def images(tmp_path) -> datasets.Dataset:
    """Of several modes and sizes, one lying on its side, and one that is broken."""
    generator, paths = np.random.default_rng(0), []
    for index, mode in enumerate(["RGB", "L", "RGBA", "P", "RGB", "RGB"]):
        image = Image.fromarray(generator.integers(0, 256, (20 + index, 31, 3), dtype=np.uint8)).convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 6 if index == 4 else 1
        paths.append(str(tmp_path / f"{index}.{'jpg' if mode == 'RGB' else 'png'}"))
        image.save(paths[-1], **({"exif": exif} if mode == "RGB" else {}))
    with open(paths[-1], "r+b") as file:
        file.truncate(300)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    return datasets.Dataset.from_dict({"image": paths, "label": [0, 1] * 3}, features=features)


def test_kept_images_are_those_that_are_decoded(images, monkeypatch):
    decode = ImageDecoder(images, "image")
    kept = DecodedImages(decode, len(images), 1e9)
    first = [kept(index) for index in range(5)]
    with pytest.raises(BadImageError):
        kept(5)
    monkeypatch.setattr(ImageDecoder, "__call__", None)  # nothing is decoded once more, by a worker neither
    for again in (kept, pickle.loads(pickle.dumps(kept))):
        for index in range(5):
            image = again(index)
            assert (image.mode, image.size) == ("RGB", first[index].size)
            assert image.tobytes() == first[index].tobytes()
    monkeypatch.undo()
    assert [image.tobytes() for image in first] == [decode(index).tobytes() for index in range(5)]
    folder, late = kept.folder, pickle.loads(pickle.dumps(kept))
    with open(os.path.join(folder, "0", "3"), "r+b") as file:
        file.truncate(5)
    assert late(3).tobytes() == first[3].tobytes()
    del again
    gc.collect()
    assert os.listdir(folder)
    del kept
    gc.collect()
    assert late(0).tobytes() == first[0].tobytes()  # as a worker that is still at work: it brings nothing back
    assert not glob.glob(f"{folder}*")


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    decode = ImageDecoder(tiny.digits()[0], "image")
    living = DecodedImages(decode, 96, 1e9)
    left = tmp_path / "hf_deit_images_left"
    (left / "0").mkdir(parents=True)
    (left / "lock").touch()
    other = DecodedImages(decode, 96, 1e9)
    assert sorted(str(path) for path in tmp_path.iterdir()) == sorted([living.folder, other.folder])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    with pytest.raises(InputError, match=r"images cannot be kept decoded .*TMPDIR"):
        DecodedImages(decode, 96, 1e9)


def test_processes_share_the_disk(monkeypatch, caplog):
    decode = ImageDecoder(tiny.digits()[0], "image")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=96 * 4096 * 4))
    assert DecodedImages(decode, 96, 1e9).kept_part == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert DecodedImages(decode, 96, 1e9).kept_part == pytest.approx(0.25)


def test_only_so_many_are_kept_as_have_room(caplog, monkeypatch):
    train, _ = tiny.digits()
    decode = ImageDecoder(train, "image")
    whole = 96 * 4096  # a block each
    with caplog.at_level("WARNING"):
        kept = DecodedImages(decode, len(train), whole / 2)
    assert "50 % of the 96 images are kept decoded" in caplog.text and "--cache_images_gb" in caplog.text
    for index in [*range(96), *range(96)]:
        assert kept(index).tobytes() == decode(index).tobytes()
    sizes = [os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(kept.folder) for name in names]
    assert 0.3 * 96 < sum(size > 0 for size in sizes) < 0.7 * 96
    kept = DecodedImages(decode, len(train), 1e9)

    def full(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level("WARNING"):
        assert all(kept(index).tobytes() == decode(index).tobytes() for index in range(9))
    assert caplog.text.count("no more images are kept decoded") == 1 and not os.listdir(os.path.join(kept.folder, "0"))


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_the_same(images, workers):
    whole = images.select(range(5))
    plain, cached = (ViewDataset(whole, transform, seed=3, repeats=2, cache_bytes=room) for room in (0, 1e9))
    sampler = ViewSampler(5, seed=3, total_batch_size=2, repeats=2)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        settings = {"batch_size": 2, "sampler": sampler, "collate_fn": collate, "num_workers": workers}
        for one, other in zip(DataLoader(plain, **settings), DataLoader(cached, **settings), strict=True):
            assert all((one[name] == other[name]).all() for name in one)
    names = {name for _, _, found in os.walk(cached.decoded.folder) for name in found if name.isdigit()}
    assert names and names <= {"0", "1", "2", "3", "4"}
    assert copy.copy(cached).labels is cached.labels


def transform(image):
    import random

    from torchvision.transforms.functional import pil_to_tensor

    left = random.randrange(8)
    return pil_to_tensor(image.crop((left, 0, left + 16, 16)))


def test_sizes_are_read_from_headers():
    assert size_of(None) is None and size_of({"bytes": b"no image", "path": None}) is None
