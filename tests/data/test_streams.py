"""Contract: a stream trains as a data set does, though nobody holds it.

Slots, views and seeds mean the same; every process reads its own part and nothing else; a run goes on anywhere with
the same bits; and what a stream cannot do is refused before training.
"""

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from support import images, tiny
from support.images import (
    FEATURES,
    NAMES,
    broken,
    encoded,
    few_digits,
    identity,
    load,
    noise,
    parquet,
    picture,
    random_states,
    refusal,
)
from support.main_of import main_of, python_path
from torch.utils.data import BatchSampler, DataLoader
from transformers import AutoModelForImageClassification, TrainerCallback

from hf_deit import InputError, load_teacher
from hf_deit.data.batch_augment import PLACES, Mixing, RandomErasing
from hf_deit.data.streams import ImageStream, StreamSampler, StreamViewDataset
from hf_deit.data.transforms import build_train_transform
from hf_deit.data.view_dataset import ViewDataset, collate
from hf_deit.data.views import ViewKey
from hf_deit.recipes.resolve import resolve_arguments


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr("support.tiny.load_digits", few_digits)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # after every pass over parquet files


def table(numbers, **options) -> datasets.Dataset:
    """Image number n is of class n % 3."""
    return images.table([n % 3 for n in numbers], numbers=numbers, **options)


def relabelled(rows: datasets.Dataset, labels: list[int | None]) -> datasets.Dataset:
    """With labels that need be none of the classes."""
    return rows.remove_columns("label").add_column("label", labels, feature=rows.features["label"])


def number_of(image: dict) -> int:
    return identity(datasets.Image().decode_example(image))[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, str]:
    """48 images in so many shards."""
    root = tmp_path_factory.mktemp("shards")
    return {shards: parquet(root / str(shards), shards, train=table(range(48))) for shards in (1, 3, 4)}


def stream_of(folder: str, images_per_epoch: int = 48, **settings) -> ImageStream:
    rows = datasets.load_dataset(folder, split="train", streaming=True)
    return ImageStream(rows, images_per_epoch, **{"shuffle_buffer_size": 7, **settings})


def sampler_of(stream: ImageStream, processes: int = 1, rank: int = 0, **settings) -> StreamSampler:
    settings = {"batch_size": 4, "total_batch_size": 4 * processes, **settings}
    return StreamSampler(stream, rank=rank, num_processes=processes, **settings)


def epoch_of(sampler: StreamSampler, epoch: int = 0) -> list:
    sampler.set_epoch(epoch)
    return list(sampler)


def numbers(keys) -> list[int]:
    """What images are read, in order: one for each that has views."""
    own = [key for key in keys if key is not None]
    return [number_of(key.encoded) for key in own if key.view == 0]


# Slots, processes and passes


@pytest.mark.parametrize("shards", [3, 4])  # those of four are dealt out whole, those of three image by image
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_slots_and_images(folders, shards, processes):
    samplers = [sampler_of(stream_of(folders[shards]), processes, rank) for rank in range(processes)]
    epochs = [epoch_of(sampler) for sampler in samplers]
    assert {len(keys) for keys in epochs} == {len(samplers[0])} == {48}
    for slot, keys in enumerate(zip(*epochs, strict=True)):
        owner = slot // 4 % processes
        assert [key is not None for key in keys] == [rank == owner for rank in range(processes)]
        assert (keys[owner].epoch, keys[owner].slot, keys[owner].view) == (0, slot, 0)
        assert keys[owner].label == number_of(keys[owner].encoded) % 3
    for keys in epochs:
        assert [key.index for key in keys if key is not None] == list(range(48 // processes))
    assert sorted(itertools.chain(*map(numbers, epochs))) == list(range(48))


def test_many_shards_are_dealt_out_whole_though_parts_differ(tmp_path):
    folder = parquet(tmp_path / "set", 21, train=table(range(42)))  # two images each
    samplers = [sampler_of(stream_of(folder, 40), 2, rank) for rank in (0, 1)]
    parts = [set(number_of(image) // 2 for image, _ in samplers[rank].stream.read(0, rank, 2)) for rank in (0, 1)]
    assert sorted(map(len, parts)) == [10, 11]
    assert parts[0] | parts[1] == set(range(21))
    epochs = [numbers(epoch_of(sampler)) for sampler in samplers]
    assert len({*epochs[0], *epochs[1]}) == len(epochs[0]) + len(epochs[1]) == 40
    # An epoch of 48 needs more than either has.
    longer = [numbers(epoch_of(sampler_of(stream_of(folder, 48), 2, rank))) for rank in (0, 1)]
    assert [len(part) for part in longer] == [24, 24]
    assert set(itertools.chain(*longer)) == set(range(42))
    for part, first in zip(longer, epochs, strict=True):
        assert part[:20] == first


@pytest.mark.parametrize("processes", [2, 4])
def test_accelerate_gives_every_process_its_own_keys(folders, processes):
    for rank in range(processes):
        sampler = sampler_of(stream_of(folders[4]), processes, rank)
        batches = list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), processes, rank))
        assert [key for batch in batches for key in batch] == [key for key in sampler if key is not None]
        assert [len(batch) for batch in batches] == [4] * (12 // processes)


def test_epochs_hold_whole_steps(folders):
    lengths = {(48, 32): 32, (48, 48): 48, (47, 8): 40, (3, 8): 8}
    for (count, total), length in lengths.items():
        sampler = sampler_of(stream_of(folders[1], count), total_batch_size=total)
        assert len(sampler) == len(epoch_of(sampler)) == length


@pytest.mark.parametrize(("shards", "processes"), [(1, 1), (4, 1), (4, 2), (3, 2)])
def test_repeated_views_lie_side_by_side_and_epochs_go_on_where_the_last_stopped(folders, shards, processes):
    seen = []
    for rank in range(processes):
        sampler = sampler_of(stream_of(folders[shards]), processes, rank, repeats=3)
        passes = [[epoch_of(sampler, epoch) for epoch in epochs] for epochs in ((0, 1, 2), (3, 4, 5))]
        for keys in itertools.chain(*passes):
            own = [key for key in keys if key is not None]
            assert [(key.index, key.view) for key in own] == [(i // 3, i % 3) for i in range(48 // processes)]
            for views in zip(own[0::3], own[1::3], own[2::3], strict=True):
                assert len({view.encoded["bytes"] for view in views}) == 1
        first, second = ([number for keys in epochs for number in numbers(keys)] for epochs in passes)
        assert len(first) == 48 // processes
        assert first != second
        seen.append((first, second))
    for one_pass in zip(*seen, strict=True):
        assert sorted(itertools.chain(*one_pass)) == list(range(48))


def test_epochs_that_hold_no_whole_number_of_images_go_on_all_the_same(folders):
    sampler = sampler_of(stream_of(folders[4], 32), repeats=3)  # 10 images three times, and one twice
    epochs = [numbers(epoch_of(sampler, epoch)) for epoch in range(3)]
    assert [len(epoch) for epoch in epochs] == [11, 11, 11]
    whole = [number_of(image) for image, _ in stream_of(folders[4]).read(first_pass(sampler), 0, 1)]
    assert list(itertools.chain(*epochs)) == whole[:33]
    assert Counter(key.index for key in epoch_of(sampler, 1))[10] == 2


@pytest.mark.parametrize(("shards", "processes", "batch_size"), [(1, 1, 4), (4, 1, 12), (4, 2, 4), (3, 2, 8)])
def test_spread_views_stand_a_group_apart_and_epochs_go_on_where_the_last_stopped(
    folders, shards, processes, batch_size
):
    """Blocks of four images among the views of a process; of 48 slots each."""
    seen = []
    for rank in range(processes):
        settings = {"batch_size": batch_size, "total_batch_size": 48, "repeats": 3, "images_per_block": 4}
        sampler = sampler_of(stream_of(folders[shards]), processes, rank, **settings)
        epochs = [epoch_of(sampler, epoch) for epoch in range(3)]
        for keys in epochs:
            own = [key for key in keys if key is not None]
            places = [(4 * (i // 12) + i % 4, i % 12 // 4) for i in range(48 // processes)]
            assert [(key.index, key.view) for key in own] == places
            for block in range(0, len(own), 12):
                first, second, third = ([key.encoded["bytes"] for key in own[block + 4 * i :][:4]] for i in range(3))
                assert first == second == third and len(set(first)) == 4
            groups = [{key.slot // 4 for key in own[start : start + 4]} for start in range(0, len(own), 4)]
            assert all(len(slots) == 1 for slots in groups), "which are mixed by one draw"
        adjacent = sampler_of(stream_of(folders[shards]), processes, rank, **{**settings, "images_per_block": 1})
        assert [numbers(keys) for keys in epochs] == [numbers(epoch_of(adjacent, epoch)) for epoch in range(3)]
        seen.extend(number for keys in epochs for number in numbers(keys))
    assert sorted(seen) == list(range(48))


def test_epochs_that_end_in_a_block_go_on_behind_its_images(folders):
    settings = {"repeats": 3, "images_per_block": 4, "total_batch_size": 4}
    epochs = [epoch_of(sampler_of(stream_of(folders[4], 16), **settings), epoch) for epoch in range(3)]
    assert [key.view for key in epochs[0]] == [0] * 4 + [1] * 4 + [2] * 4 + [0] * 4
    read = [numbers(keys) for keys in epochs]
    whole = [
        number_of(image)
        for image, _ in stream_of(folders[4]).read(first_pass(sampler_of(stream_of(folders[4]))), 0, 1)
    ]
    assert list(itertools.chain(*read)) == whole[:24]


def first_pass(sampler: StreamSampler) -> int:
    """The number that the sampler gives its first pass."""
    asked = []
    read = sampler.stream.read
    sampler.stream.read = lambda number, *args: asked.append(number) or read(number, *args)
    next(iter(sampler))
    del sampler.stream.read
    return asked[0]


def test_an_exhausted_stream_begins_again_in_another_order(folders):
    keys = epoch_of(sampler_of(stream_of(folders[4], 144)))
    passes = [numbers(keys[start : start + 48]) for start in (0, 48, 96)]
    assert [sorted(one_pass) for one_pass in passes] == [list(range(48))] * 3
    assert len(set(map(tuple, passes))) == 3
    later = numbers(epoch_of(sampler_of(stream_of(folders[4], 48)), 1))
    assert later not in passes  # nor is it a later epoch's
    # With repeated views an epoch may begin beyond the stream's end.
    sampler = sampler_of(stream_of(folders[4], 144), repeats=2)
    again = numbers(epoch_of(sampler, 0)) + numbers(epoch_of(sampler, 1))
    assert again == numbers(keys)


def test_an_empty_part_is_refused(tmp_path):
    stream = stream_of(parquet(tmp_path / "set", train=table(range(3))), 8)
    assert len(numbers(epoch_of(sampler_of(stream, 3, 2)))) == 4
    with pytest.raises(InputError, match="no image for process 3 of 4"):
        epoch_of(sampler_of(stream, 4, 3))


# The order


def test_the_order_is_keyed_by_seed_and_pass_alone(folders):
    def order(epoch: int = 0, global_seed: int = 0, **settings) -> list[int]:
        random.seed(global_seed)
        np.random.seed(global_seed)
        torch.manual_seed(global_seed)
        before = random_states()
        sampler = sampler_of(stream_of(folders[4], **settings))
        list(itertools.islice(sampler, 5))  # what was read before does not matter
        result = numbers(epoch_of(sampler, epoch))
        assert random_states() == before
        return result

    assert order() == order(global_seed=1)
    assert order(epoch=3) == order(epoch=3, global_seed=2)
    different = [order(), order(epoch=1), order(epoch=2), order(seed=1), order(seed=1, epoch=1), list(range(48))]
    assert len(set(map(tuple, different))) == len(different)
    unbuffered = {tuple(order(epoch=epoch, shuffle_buffer_size=1)) for epoch in range(3)}
    assert len(unbuffered) == 3  # shards come in another order, too


def test_the_order_follows_the_runs_data_seed(tmp_path, folders):
    card = parquet(tmp_path / "set", 3, train=table(range(48)), validation=table(range(30)))
    model = tiny.student(id2label=dict(enumerate(NAMES)))

    def orders(seed: int | None = None, **settings) -> tuple[list[int], list]:
        data = load(dataset_name=card, streaming=True, images_per_epoch=48)
        stream = data.train if seed is None else stream_of(folders[3], seed=seed)
        args = tiny.arguments(tmp_path, distillation_type="none", **settings)
        trainer = tiny.trainer(model, args, train_dataset=stream, eval_dataset=None)
        return numbers(trainer._get_train_sampler()), rows_of(data.validation)

    order, validation = orders()
    assert orders(data_seed=3)[0] == order  # arguments() has the seed 3
    changed = [orders(data_seed=4), orders(data_seed=5)]
    assert len({tuple(order), *(tuple(other) for other, _ in changed)}) == 3
    assert [other for _, other in changed] == [validation] * 2
    # A stream that has a seed of its own keeps it.
    assert orders(seed=1, data_seed=4)[0] == orders(seed=1, data_seed=5)[0]


def test_two_samplers_side_by_side_do_not_disturb_each_other(folders):
    alone = numbers(epoch_of(sampler_of(stream_of(folders[4]))))
    stream = stream_of(folders[4])
    one, other = zip(*zip(sampler_of(stream), sampler_of(stream), strict=True), strict=True)
    assert numbers(one) == numbers(other) == alone


# The views

ERASING, MIXING = RandomErasing(0.5), Mixing(group_size=4)


@pytest.fixture(scope="module")
def textured(tmp_path_factory) -> str:
    return parquet(tmp_path_factory.mktemp("textured") / "set", 4, train=images.textured(48))


@pytest.mark.parametrize("images_per_block", [1, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_views_are_those_of_a_data_set_with_rows(textured, workers, images_per_block):
    transform = build_train_transform((32, 40), image_mean=(0.485, 0.456, 0.406))
    settings = {"seed": 9, "erasing": ERASING, "mixing": MIXING}
    places = {"repeats": 3, "images_per_block": images_per_block}
    stream = stream_of(textured)
    streamed = StreamViewDataset(stream, transform, **settings, **places)
    rows = datasets.load_dataset(textured, split="train")
    plain = ViewDataset(rows, transform, **settings)
    row_of = {
        image["bytes"]: i for i, image in enumerate(rows.cast_column("image", datasets.Image(decode=False))["image"])
    }
    for batch_size in (8, 16):
        sampler = sampler_of(stream, batch_size=batch_size, total_batch_size=16, **places)
        keys = epoch_of(sampler, 1)
        expected = collate(
            plain.__getitems__([ViewKey(k.epoch, k.slot, row_of[k.encoded["bytes"]], k.view) for k in keys])
        )
        torch.manual_seed(workers)
        batches = list(DataLoader(streamed, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate))
        assert len(batches) == 48 // batch_size
        for name in expected.keys() - {"partner_offsets", *PLACES}:
            assert torch.equal(torch.cat([batch[name] for batch in batches]), expected[name]), name
        assert {"erase_boxes", "mix_boxes", "label_weights", "view_seeds"} <= expected.keys() == batches[0].keys()
    assert expected["erase_boxes"].any()
    assert expected["mix_boxes"].any()


def test_the_trainer_makes_a_streams_views_as_those_of_rows(tmp_path):
    data = few_digits().train
    settings = {"mixup": 0.8, "cutmix": 1.0, "mixup_group_size": 4, "random_erasing": 0.5, "horizontal_flip": 0.5}
    args = tiny.arguments(tmp_path, distillation_type="none", data_seed=5, on_bad_image="skip", **settings)
    stream = ImageStream(data.to_iterable_dataset(num_shards=4), 96)
    streamed, plain = (tiny.trainer(tiny.student(), args, train_dataset=part).train_dataset for part in (stream, data))
    rows = data.cast_column("image", datasets.Image(decode=False))["image"]
    row_of = {image["bytes"]: index for index, image in enumerate(rows)}
    keys = epoch_of(sampler_of(stream, batch_size=8, total_batch_size=8))[:16]
    found = collate(streamed.__getitems__(keys))
    expected = collate(
        plain.__getitems__([ViewKey(key.epoch, key.slot, row_of[key.encoded["bytes"]], 0) for key in keys])
    )
    assert found.keys() == expected.keys() >= {"erase_boxes", "mix_boxes"}
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert streamed.on_bad_image == "skip"


def test_a_broken_image_is_named_or_masked(tmp_path):
    stream = stream_of(parquet(tmp_path / "set", 4, train=broken(table(range(48)), {17, 30})))
    transform = build_train_transform((16, 16), image_mean=(0.5, 0.5, 0.5), auto_augment=None)
    keys = epoch_of(sampler_of(stream))
    bad = [key for key in keys if key.encoded["path"] in ("17.png", "30.png")]
    assert len(bad) == 2
    stopping = StreamViewDataset(stream, transform, seed=0)
    for key in bad:
        with pytest.raises(InputError, match=rf"position {key.index} of the stream \({key.encoded['path']}\).*skip"):
            stopping[key]
    skipping = StreamViewDataset(stream, transform, seed=0, on_bad_image="skip")
    batch = collate(skipping.__getitems__(keys))
    is_bad = torch.tensor([key in bad for key in keys])
    assert torch.equal(batch["bad_images"] == 1, is_bad)
    assert torch.equal(batch["labels"] == -100, is_bad)
    assert not batch["pixel_values"][is_bad].any()
    named = [
        re.fullmatch(r"an image of the stream with the CRC-32 \w{8} \((\d+)\.png\): .+", line)
        for line in batch["skipped"]
    ]
    assert {match[1] for match in named} == {"17", "30"}
    whole = collate(stopping.__getitems__([key for key in keys if key not in bad]))
    assert torch.equal(batch["pixel_values"][~is_bad], whole["pixel_values"])


@pytest.mark.parametrize("names", [{}, {"image": "photo", "label": "animal"}])
def test_a_stream_by_name_gives_its_images_as_they_are_stored(tmp_path, names):
    """A stream that renames columns decodes them: it would stop at a broken image, and lose what a file says."""
    rows = broken(table(range(12)), {7})
    stored = {row["path"]: row["bytes"] for row in rows.cast_column("image", datasets.Image(decode=False))["image"]}
    splits = {"train": rows, "validation": table(range(12))}
    splits = {name: part.rename_columns(names) for name, part in splits.items()} if names else splits
    folder = parquet(tmp_path / "set", **splits)
    data = images.load(dataset_name=folder, streaming=True, images_per_epoch=12, on_bad_image="skip")
    read = [image for image, _ in data.train.read(0, 0, 1)]
    assert {image["path"]: image["bytes"] for image in read} == stored


@pytest.mark.parametrize("missing", [None, -1])
def test_an_image_without_label_is_not_learnt_by_the_class_head(tmp_path, missing):
    data = relabelled(table(range(8)), [missing, 1] * 4)
    keys = epoch_of(sampler_of(stream_of(parquet(tmp_path / "set", train=data), 8)))
    assert Counter(key.label for key in keys) == {-100: 4, 1: 4}
    assert {number_of(key.encoded) % 2 for key in keys if key.label == -100} == {0}


def test_reading_does_not_hold_the_stream(tmp_path):
    pool, peaks = pa.default_memory_pool(), []
    for count in (192, 768):  # images of 12 kB each, in files of eight
        rows = {"image": [encoded(noise(64, 64, seed)) for seed in range(count)]}
        data = datasets.Dataset.from_dict({**rows, "label": [0] * count}, features=FEATURES)
        stream = stream_of(parquet(tmp_path / str(count), count // 8, train=data), count, shuffle_buffer_size=4)
        del rows, data
        sampler = sampler_of(stream)
        next(iter(sampler))  # imports and caches count only once
        before, arrow = pool.bytes_allocated(), 0
        tracemalloc.start()
        for key in sampler:
            size = len(key.encoded["bytes"])
            arrow = max(arrow, pool.bytes_allocated() - before)
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow)
        tracemalloc.stop()
        assert size > 12_000
    assert peaks[1] < 1.4 * peaks[0]
    assert peaks[1] < 768 * 12_000 / 2


# Training


@pytest.fixture(scope="module")
def digit_shards(tmp_path_factory) -> str:
    return parquet(
        tmp_path_factory.mktemp("digits") / "set", 4, train=few_digits().train, validation=few_digits().validation
    )


@pytest.fixture(scope="module")
def folder_of_teacher(tmp_path_factory) -> str:
    return tiny.teacher_folder(tmp_path_factory.mktemp("teacher"))


def make_trainer(folder, shards: str, teacher_folder: str, **settings):
    defaults = {"max_steps": 18, "repeated_augmentation": 3, "mixup": 0.8, "cutmix": 1.0, "mixup_group_size": 4}
    args = tiny.arguments(folder, **{**defaults, "random_erasing": 0.25, "save_total_limit": 3, **settings})
    teacher = load_teacher(teacher_folder, student_processor=tiny.processor())
    model = tiny.student(drop_path_rate=0.3, hidden_dropout_prob=0.1)
    return tiny.trainer(model, args, teacher, train_dataset=stream_of(shards, 96, shuffle_buffer_size=20))


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(
    ("stop_at", "workers", "placement"), [(5, 0, "adjacent"), (12, 0, "spread"), (15, 1, "spread")]
)  # epochs have 12 steps
def test_resumed_run_ends_with_the_same_bits(tmp_path, digit_shards, folder_of_teacher, stop_at, workers, placement):
    settings = {"save_strategy": "steps", "save_steps": stop_at, "dataloader_num_workers": workers}
    settings["repeats_placement"] = placement
    whole = make_trainer(tmp_path / "whole", digit_shards, folder_of_teacher, **settings)
    whole.train()
    stopped = make_trainer(tmp_path / "parts", digit_shards, folder_of_teacher, **settings)
    stopped.add_callback(StopAt(stop_at))
    stopped.train()
    assert stopped.state.global_step == stop_at
    torch.manual_seed(99)  # whatever was drawn in between must not matter
    resumed = make_trainer(tmp_path / "parts", digit_shards, folder_of_teacher, **settings)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.add_(1)  # a resume that restores nothing would show
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 18
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert not torch.equal(expected["cls_classifier.weight"], stopped.model.state_dict()["cls_classifier.weight"])


# Importing takes longer than training: one process imports, and forks both.
TWO_PROCESSES = """
import json, os, socket, sys, traceback, zlib
import conftest, datasets, test_streams, torch
from support import tiny
from support.images import few_digits
from transformers import TrainerCallback
from hf_deit.data.streams import ImageStream, StreamViewDataset

shards, teacher, folder = sys.argv[1:4]
torch.set_num_threads(1)
tiny.load_digits = few_digits
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
view, read = StreamViewDataset._read, ImageStream.read
seen, opened = [], set()


def recording_view(self, key):
    seen.append((key.epoch, key.slot, zlib.crc32(key.encoded["bytes"])))
    return view(self, key)


def recording_read(self, number, rank, num_processes):
    for image, label in read(self, number, rank, num_processes):
        opened.add((number, zlib.crc32(image["bytes"])))
        yield image, label


class Begin(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        seen.clear()  # of what the teacher was tried on


def train(name, checkpoint=None):
    trainer = test_streams.make_trainer(f"{folder}/{name}", shards, teacher, max_steps=20, save_strategy="steps",
                                        save_steps=15, per_device_train_batch_size=4, repeated_augmentation=1)
    assert trainer.args.world_size == 2
    trainer.add_callback(Begin())
    if checkpoint:
        torch.manual_seed(99)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.add_(1)
    trainer.train(resume_from_checkpoint=checkpoint)
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}, list(seen)


def both(rank):
    StreamViewDataset._read, ImageStream.read = recording_view, recording_read
    whole, seen_by_whole = train("whole")
    resumed, seen_by_resumed = train("resumed", f"{folder}/whole/checkpoint-15")
    different = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    sums = [float(tensor.double().sum()) for tensor in whole.values()]
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump([different, seen_by_whole, seen_by_resumed, sums, list(opened)], file)
    torch.distributed.destroy_process_group()


with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
children = []
for rank in (0, 1):
    child = os.fork()
    if child == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            both(rank)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_two_processes_train_on_their_own_parts_and_resume(tmp_path, digit_shards, folder_of_teacher):
    command = [sys.executable, "-c", TWO_PROCESSES, digit_shards, folder_of_teacher, tmp_path]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [different for different, *_ in ranks] == [[], []]
    assert ranks[0][3] == ranks[1][3]  # both processes have the same weights
    parts = []
    for rank, (_, whole, resumed, *_) in enumerate(ranks):
        own = [slot for slot in range(96) if slot // 4 % 2 == rank]
        for epoch, steps in ((0, 12), (1, 8)):  # the loader is up to one batch ahead
            slots = [slot for number, slot, _ in whole if number == epoch]
            assert slots in (own[: 4 * steps], own[: 4 * steps + 4])
        trained = [view for view in whole if view[0] == 1 and view[1] in own[4 * 3 : 4 * 8]]
        assert [view for view in resumed if view[1] in own[4 * 3 : 4 * 8]] == trained
        parts.append({image for epoch, _, image in whole if epoch == 0})
    assert len(parts[0]) == len(parts[1]) == 48
    assert len(parts[0] | parts[1]) == 96
    opened = [set(map(tuple, images)) for *_, images in ranks]
    assert opened[0]
    assert not opened[0] & opened[1]  # neither reads what the other trains on


def test_a_broken_image_stops_training_or_is_counted(tmp_path, folder_of_teacher):
    shards = parquet(tmp_path / "set", 4, train=broken(few_digits().train, {70}))
    stopping = make_trainer(tmp_path / "a", shards, folder_of_teacher, repeated_augmentation=1)
    with pytest.raises(InputError, match=r"position \d+ of the stream.*cannot be decoded"):
        stopping.train()
    settings = {"on_bad_image": "skip", "max_steps": 24, "repeated_augmentation": 1}
    skipping = make_trainer(tmp_path / "b", shards, folder_of_teacher, **settings)
    skipping.train()
    assert skipping.step_record.skipped_images == 2  # once in each epoch


def test_settings_that_no_stream_can_have_are_refused(tmp_path, folders):
    path = parquet(tmp_path / "set", train=table(range(9)), validation=table(range(3)))
    for name in ("images_per_epoch", "shuffle_buffer_size"):
        for value in (0, -3):
            with pytest.raises(InputError, match=rf"{name} must be at least 1, got {value}"):
                stream_of(folders[1], **{name: value})
            with pytest.raises(InputError, match=rf"{name} must lie in \[1, .*\), got {value}"):
                load(dataset_name=path, streaming=True, **{"images_per_epoch": 8, name: value})


def labelled(labels: list[int | None], kind: str) -> datasets.IterableDataset:
    """A stream with these labels, read from rows or made by a function."""
    rows = table(range(len(labels)))
    if kind == "rows":
        return relabelled(rows, labels).to_iterable_dataset()
    made = relabelled(rows.cast_column("label", datasets.Value("int64")), labels)
    return datasets.IterableDataset.from_generator(lambda: iter(made), features=FEATURES)


@pytest.mark.parametrize("form", ["torch", "numpy", "arrow"])
def test_the_format_of_a_stream_is_left_aside(form):
    rows = table(range(12)).to_iterable_dataset(num_shards=2)
    streams = [ImageStream(stream, 12) for stream in (rows, rows.with_format(form))]
    assert list(streams[0].read(0, 0, 1)) == list(streams[1].read(0, 0, 1))


def test_a_stream_of_columns_of_unknown_types_is_refused():
    rows = labelled([0, 1, 0, 2], "rows")
    with pytest.raises(InputError, match="features="):
        ImageStream(rows.map(lambda row: row), 4)
    assert ImageStream(rows.map(lambda row: row, features=rows.features), 4).images_per_epoch == 4


@pytest.mark.parametrize("kind", ["rows", "function"])
@pytest.mark.parametrize("label", [3, 7, -2, -100])
def test_a_label_that_is_none_is_refused_with_its_image(tmp_path, kind, label):
    stream = ImageStream(labelled([0, 1, label, 2], kind), 4)
    with pytest.raises(InputError, match=rf"image .*stream.*label {label}: expected .*\[0, 3\), or -1"):
        list(stream.read(0, 0, 1))
    args = tiny.arguments(tmp_path, distillation_type="none", on_bad_image="skip")
    trainer = tiny.trainer(
        tiny.student(id2label=dict(enumerate(NAMES))), args, train_dataset=stream, eval_dataset=None
    )
    with pytest.raises(InputError, match=rf"label {label}"):
        trainer.train()


@pytest.mark.parametrize("kind", ["rows", "function"])
def test_images_of_a_stream_may_have_no_label(kind):
    labels = [label for _, label in ImageStream(labelled([0, -1, None, 2], kind), 4).read(0, 0, 1)]
    assert sorted(labels) == [-100, -100, 0, 2]


# From a data set's name


CARD = """dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': ape
          '1': bee
          '2': cat
  splits:
  - name: train
    num_bytes: 1000
    num_examples: 30
  - name: validation
    num_bytes: 1000
    num_examples: 9
"""


def pairs(rows) -> list[tuple[int, int]]:
    return [(number_of(image), label) for image, label in rows]


def rows_of(dataset: datasets.Dataset) -> list[tuple[int, int]]:
    plain = dataset.cast_column("image", datasets.Image(decode=False))
    return pairs(zip(plain["image"], plain["label"], strict=True))


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_a_stream_has_the_images_and_labels_of_the_data_set(tmp_path, kind):
    if kind == "parquet":
        wide = [table(numbers_, image="photo", label="species") for numbers_ in (range(30), range(100, 109))]
        wide = [part.add_column("id", list(range(len(part)))) for part in wide]
        path = parquet(tmp_path / "set", 3, train=wide[0], validation=wide[1])
    else:
        for split, numbers_ in (("train", range(30)), ("validation", range(100, 109))):
            for number in numbers_:
                file = tmp_path / "set" / split / NAMES[number % 3] / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture(number % 3, number).save(file)
        path = str(tmp_path / "set")
    streamed = load(dataset_name=path, streaming=True, images_per_epoch=12, shuffle_buffer_size=5)
    whole = load(dataset_name=path)
    assert isinstance(streamed.train, ImageStream)
    assert (streamed.train.images_per_epoch, streamed.train.shuffle_buffer_size) == (12, 5)
    assert streamed.label_names == whole.label_names == NAMES
    assert (
        sorted(pairs(streamed.train.read(0, 0, 1))) == sorted(rows_of(whole.train)) == [(n, n % 3) for n in range(30)]
    )
    assert rows_of(streamed.validation) == rows_of(whole.validation)
    assert sorted(rows_of(streamed.validation)) == [(n, n % 3) for n in range(100, 109)]
    assert streamed.validation.features == whole.validation.features == FEATURES
    assert streamed.unlabeled is None


@pytest.mark.parametrize("has_card", [False, True])
def test_other_validation_files_are_noticed(tmp_path, has_card):
    path = tmp_path / "set"
    for split, numbers_ in (("train", range(9)), ("validation", range(3))):
        (path / split).mkdir(parents=True)
        table(numbers_).to_parquet(str(path / split / "0.parquet"))
    if has_card:
        files = "".join(f"  - split: {split}\n    path: {split}/*\n" for split in ("train", "validation"))
        (path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    options = {"dataset_name": str(path), "streaming": True, "images_per_epoch": 8}
    assert rows_of(load(**options).validation) == [(0, 0), (1, 1), (2, 2)]
    table(range(20, 22)).to_parquet(str(path / "validation" / "0.parquet"))
    os.utime(path / "validation" / "0.parquet", (1, 1))
    assert rows_of(load(**options).validation) == [(20, 2), (21, 0)]


def test_an_epoch_is_as_long_as_the_data_set_says(tmp_path):
    path = parquet(tmp_path / "set", train=table(range(30)), validation=table(range(9)), card=CARD)
    assert load(dataset_name=path, streaming=True).train.images_per_epoch == 30
    assert load(dataset_name=path, streaming=True, images_per_epoch=12).train.images_per_epoch == 12


def stream_refusal(**fields) -> str:
    return refusal(streaming=True, **fields)


def test_what_cannot_be_streamed_is_refused(tmp_path):
    both = {"train": table(range(30)), "validation": table(range(9))}
    good = parquet(tmp_path / "good", **both)
    assert "give --images_per_epoch" in stream_refusal(dataset_name=good)
    for arguments in ({}, {"dataset_name": "sklearn:digits"}, {"train_dir": str(tmp_path)}):
        assert "--dataset_name" in stream_refusal(**arguments)
    for arguments in ({"unlabeled_dataset_name": good}, {"unlabeled_dataset_name": good, "dataset_name": good}):
        assert "no unlabelled images beside it" in stream_refusal(**arguments)
    assert "nobody/nothing" in stream_refusal(dataset_name="nobody/nothing", images_per_epoch=8)
    with pytest.raises(InputError, match="images_per_epoch is for --streaming"):
        load(dataset_name=good, images_per_epoch=8)
    with pytest.raises(InputError, match="labels_kept needs labelled training images that are no stream"):
        load(dataset_name=good, streaming=True, images_per_epoch=8).with_labels_kept(5, 0)


def test_a_stream_needs_two_splits(tmp_path):
    path = parquet(tmp_path / "set", train=table(range(30)), test=table(range(9)))
    common = {"dataset_name": path, "images_per_epoch": 8}
    message = stream_refusal(**common)  # it must not be "test" unless asked for, as checkpoints are chosen with it
    assert "needs a training and another validation split" in message
    assert "has train, test" in message
    assert "'nope'" in stream_refusal(**common, train_split="nope", validation_split="test")
    assert "'nope'" in stream_refusal(**common, validation_split="nope")
    assert "another validation split" in stream_refusal(**common, validation_split="train")
    assert len(load(**common, streaming=True, validation_split="test").validation) == 9


def test_a_stream_needs_class_labels_and_images(tmp_path):
    def refused(name: str, features: dict, **options) -> str:
        parts = {split: table(range(9)).cast(datasets.Features(features)) for split in ("train", "validation")}
        return stream_refusal(dataset_name=parquet(tmp_path / name, **parts), images_per_epoch=8, **options)

    numbers_ = {**FEATURES, "label": datasets.Value("int64")}
    assert "no columns of type ClassLabel" in refused("unnamed", numbers_)
    message = refused("integers", numbers_, label_column_name="label")
    assert "must be of type ClassLabel" in message
    assert "int64" in message
    assert "no column 'picture'" in refused("named", dict(FEATURES), image_column_name="picture")


def test_labels_out_of_range_in_the_validation_split_are_refused(tmp_path):
    path = parquet(tmp_path / "set", train=table(range(9)), validation=relabelled(table(range(3)), [0, 1, -1]))
    assert "row 2 of the validation set has -1" in stream_refusal(dataset_name=path, images_per_epoch=8)


def test_a_stream_of_one_class_is_refused(tmp_path):
    parts = {split: table([0, 3, 6], names=["ape"]) for split in ("train", "validation")}
    message = stream_refusal(dataset_name=parquet(tmp_path / "set", **parts), images_per_epoch=8)
    assert "a classifier needs images of at least two classes to train on, got 1 (ape)" in message


def test_a_validation_split_that_cannot_be_read_is_refused(tmp_path):
    others = {"empty": table([]), "named": table(range(3)).rename_column("label", "species")}
    for name, validation in others.items():
        path = parquet(tmp_path / name, train=table(range(9)), validation=validation)
        message = stream_refusal(dataset_name=path, images_per_epoch=8)
        assert f"cannot read the split 'validation' of the data set {path!r}" in message
        assert "expected at least one row, with the columns image, label" in message


def test_broken_images_in_the_validation_split_stop_the_run_at_its_start(tmp_path):
    path = parquet(tmp_path / "set", train=table(range(9)), validation=broken(table(range(9)), {4}))
    assert re.search(
        r"1 of the \d+ images .*: row 4 \(4\.png\)", stream_refusal(dataset_name=path, images_per_epoch=8)
    )
    skipping = load(dataset_name=path, streaming=True, images_per_epoch=8, on_bad_image="skip")
    assert len(skipping.validation) == 9


@pytest.fixture(scope="module")
def main():
    return main_of("train")


def test_a_streamed_run_from_the_command_line(main, tmp_path, digit_shards, capsys):
    command = ["--recipe", "debug", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--streaming", "true"]
    command += ["--dataset_name", digit_shards]
    assert main(command) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert "give --images_per_epoch" in error[0]
    command += ["--images_per_epoch", "64", "--max_steps", "7", "--save_steps", "5"]
    assert main(command) == 0  # trains its teacher on the stream, too
    printed = capsys.readouterr().out
    assert "top-1 on 40 held-out images" in printed
    names = AutoModelForImageClassification.from_pretrained(tmp_path / "run").config.id2label
    assert names == {index: str(index) for index in range(10)}
    _, data_args, _ = resolve_arguments(["--recipe", str(tmp_path / "run" / "recipe.yaml")])
    assert (data_args.streaming, data_args.images_per_epoch) == (True, 64)
    # 7 steps of 16 are an epoch of 4 steps and 3 of the next.
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(1.75)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-7")
    assert main([*command, "--resume_from_checkpoint", "true"]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert main([*command, "--resume_from_checkpoint", "true", "--images_per_epoch", "48"]) == 2
    assert re.search("was started with images_per_epoch 64", capsys.readouterr().err)
