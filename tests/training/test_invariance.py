"""A view is a value: what training sees in a slot depends on (seed, epoch, slot) alone, and so does what it learns.

Not on the number of workers or processes, the batch size, where a run was resumed, or how the images are stored; and
the memory that a run takes does not grow with its data.
"""

import io
import tracemalloc
import zlib
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from support import tiny
from support.images import load
from support.main_of import launch
from transformers import TrainerCallback

from hf_deit.data.digits import load_digits
from hf_deit.data.view_dataset import ViewDataset
from hf_deit.data.views import ViewKey, ViewSampler
from hf_deit.training.losses import class_targets


def watch(trainer) -> dict[int, tuple[int, int]]:
    """Records checksums of the pixels and the targets of every view that is trained on, by the view's seed."""
    seen, compute_loss = {}, trainer.compute_loss

    def recording(model, inputs, *args, **kwargs):
        if model.training:
            targets = class_targets(
                inputs["labels"],
                10,
                smoothing=0.1,
                partner_labels=inputs.get("partner_labels"),
                label_weights=inputs.get("label_weights"),
            )
            for seed, pixels, target in zip(
                inputs["view_seeds"].tolist(), inputs["pixel_values"], targets, strict=True
            ):
                checksums = tuple(zlib.crc32(tensor.contiguous().numpy().tobytes()) for tensor in (pixels, target))
                assert seen.setdefault(seed, checksums) == checksums
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = recording
    return seen


def views_of_a_run(folder, *, train=None, checkpoint=None, callbacks=(), **settings) -> dict[int, tuple[int, int]]:
    """What a run of two epochs of 256 views sees."""
    args = tiny.arguments(
        folder, **{**tiny.FULL_RECIPE, "distillation_type": "none", "num_train_epochs": 2, "max_steps": -1, **settings}
    )
    trainer = tiny.trainer(tiny.student(), args, train_dataset=tiny.digits(256)[0] if train is None else train)
    for callback in callbacks:
        trainer.add_callback(callback)
    seen = watch(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    return seen


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[int, tuple[int, int]]:
    seen = views_of_a_run(tmp_path_factory.mktemp("reference"), per_device_train_batch_size=64)
    assert len(seen) == 512
    assert len({pixels for pixels, _ in seen.values()}) == 512
    assert len({target for _, target in seen.values()}) > 100
    return seen


@pytest.mark.parametrize("workers", [1, 4])
def test_views_do_not_depend_on_the_number_of_workers(tmp_path, reference, workers):
    settings = {"dataloader_num_workers": workers, "per_device_train_batch_size": 64}
    assert views_of_a_run(tmp_path, **settings) == reference


@pytest.mark.parametrize(("batch_size", "accumulation"), [(32, 1), (128, 1), (256, 1), (32, 4)])
def test_views_do_not_depend_on_the_batch_size(tmp_path, reference, batch_size, accumulation):
    settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    assert views_of_a_run(tmp_path, **settings) == reference


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_views_do_not_depend_on_where_a_run_was_resumed(tmp_path, reference):
    settings = {"per_device_train_batch_size": 64, "save_strategy": "steps", "save_steps": 6}
    before = views_of_a_run(tmp_path, callbacks=[StopAt(6)], **settings)  # in the middle of the second epoch
    after = views_of_a_run(tmp_path, checkpoint=True, **settings)
    assert len(after) == 2 * 64
    assert before | after == reference
    assert not before.keys() & after.keys()


SPREAD = {"repeats_placement": "spread", "mixup_group_size": 16}  # five blocks and a third of one in an epoch


@pytest.fixture(scope="module")
def spread(tmp_path_factory) -> dict[int, tuple[int, int]]:
    return views_of_a_run(tmp_path_factory.mktemp("spread"), per_device_train_batch_size=64, **SPREAD)


def test_spread_views_depend_on_nothing_of_this_either(tmp_path, reference, spread):
    assert spread.keys() == reference.keys()  # of slots
    assert not {pixels for pixels, _ in spread.values()} & {pixels for pixels, _ in reference.values()}
    resumable = {"per_device_train_batch_size": 64, "save_strategy": "steps", "save_steps": 6, **SPREAD}
    before = views_of_a_run(tmp_path, callbacks=[StopAt(6)], **resumable)
    assert before | views_of_a_run(tmp_path, checkpoint=True, **resumable) == spread
    for batch_size, accumulation, workers in ((32, 4, 0), (128, 1, 2)):
        batches = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        assert views_of_a_run(tmp_path, dataloader_num_workers=workers, **batches, **SPREAD) == spread


def store(kind: str, folder: Path) -> datasets.Dataset:
    """The same 256 images and labels, in the same order, in another storage."""
    train = tiny.digits(256)[0]
    if kind == "in memory":
        rows = {"image": [row["image"] for row in train], "label": train["label"][:]}
        return datasets.Dataset.from_dict(rows, features=train.features)
    if kind == "arrow":
        train.save_to_disk(folder / "arrow")
        return datasets.load_from_disk(folder / "arrow")
    if kind == "parquet":
        (folder / "data").mkdir()
        for shard in range(3):
            name = f"train-{shard:05d}-of-00003.parquet"
            train.shard(3, shard, contiguous=True).to_parquet(folder / "data" / name)
        validation = folder / "data" / "validation-00000-of-00001.parquet"
        tiny.digits(8)[1].to_parquet(validation)
        return load(dataset_name=folder).train
    paths = []
    for index, row in enumerate(train):
        path = folder / "train" / str(row["label"]) / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
        paths.append(str(path))
    data = load(train_dir=folder / "train", validation_dir=folder / "train").train
    stored = data.cast_column("image", datasets.Image(decode=False))["image"]
    positions = {image["path"]: position for position, image in enumerate(stored)}
    return data.select([positions[path] for path in paths])


@pytest.mark.parametrize("kind", ["in memory", "arrow", "parquet", "class folders"])
def test_views_do_not_depend_on_how_images_are_stored(tmp_path, reference, kind):
    train = store(kind, tmp_path)
    assert views_of_a_run(tmp_path / "run", train=train, per_device_train_batch_size=64) == reference


TWO_PROCESSES = """
import sys
import conftest, torch
from support import tiny
import test_invariance
from hf_deit.commands.command_line import exit_command
for batch_size in (32, 128):
    seen = test_invariance.views_of_a_run(sys.argv[1], per_device_train_batch_size=batch_size)
    torch.save(seen, f"{sys.argv[1]}/seen-{batch_size}-{torch.distributed.get_rank()}.pt")
seen = test_invariance.views_of_a_run(sys.argv[1], per_device_train_batch_size=32, **test_invariance.SPREAD)
torch.save(seen, f"{sys.argv[1]}/seen-spread-{torch.distributed.get_rank()}.pt")
exit_command(0)
"""


def test_views_do_not_depend_on_the_number_of_processes(tmp_path, reference, spread):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    launch(script, tmp_path)
    for name, expected in ((32, reference), (128, reference), ("spread", spread)):
        first, second = (torch.load(tmp_path / f"seen-{name}-{rank}.pt") for rank in (0, 1))
        assert len(first) == len(second) == 256
        assert first | second == expected


def test_another_seed_gives_other_views(tmp_path, reference):
    seen = views_of_a_run(tmp_path, per_device_train_batch_size=64, data_seed=4)
    assert not seen.keys() & reference.keys()
    assert not {pixels for pixels, _ in seen.values()} & {pixels for pixels, _ in reference.values()}


# What is learnt

FULL_RUN = """
import sys
import conftest, torch
from support import tiny
from hf_deit import load_teacher
from hf_deit.commands.command_line import exit_command
for optim, learning_rate in (("adamw_torch_fused", 1e-3), ("sgd", 0.05)):
    teacher = load_teacher(sys.argv[1], student_processor=tiny.processor())
    model = tiny.student(drop_path_rate=0.2)
    args = tiny.arguments(sys.argv[2], **{**tiny.FULL_RECIPE, "mixup_group_size": 4}, max_steps=20, ema_decay=0.9,
                          per_device_train_batch_size=int(sys.argv[3]), gradient_accumulation_steps=2,
                          warmup_epochs=1, learning_rate=learning_rate, optim=optim)
    trainer = tiny.trainer(model, args, teacher)
    trainer.train()
    metrics = trainer.evaluate()
    few = tiny.digits(8, 3)[1]  # with two processes, filled up to two batches of 16
    metrics |= trainer.evaluate(few, metric_key_prefix="few") | trainer.predict(few, metric_key_prefix="said").metrics
    weights = {"model": dict(model.named_parameters()), "ema": dict(trainer.weight_average.module.named_parameters())}
    if args.should_save:
        torch.save((weights, metrics), f"{sys.argv[2]}/{optim}.pt")
exit_command(0)
"""


def test_two_processes_learn_what_one_does_with_the_full_recipe(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(FULL_RUN)
    teacher = tiny.teacher_folder(tmp_path / "teacher")
    for name, processes, batch_size in (("one", 1, 16), ("two", 2, 8)):
        (tmp_path / name).mkdir()
        launch(script, teacher, tmp_path / name, batch_size, processes=processes)
    initial = dict(tiny.student(drop_path_rate=0.2).named_parameters())
    for optim in ("adamw_torch_fused", "sgd"):
        (one, one_metrics), (two, two_metrics) = (
            torch.load(tmp_path / name / f"{optim}.pt", weights_only=False) for name in ("one", "two")
        )
        for part in ("model", "ema"):
            for name, parameter in one[part].items():
                # Attention does not depend on the keys' bias: its gradient is rounding noise, which Adam scales up.
                if optim == "sgd" or not name.endswith("k_proj.bias"):
                    assert (parameter - two[part][name]).abs().max() < 1e-6, name
            assert max((parameter - initial[name]).abs().max() for name, parameter in one[part].items()) > 1e-3
        for name in ("eval_top1", "eval_ema_top1", "eval_ema_class_top5"):
            assert one_metrics[name] == two_metrics[name]
        for name in ("eval_loss", "eval_ema_loss", "few_loss", "few_ema_loss", "said_loss", "said_ema_loss"):
            assert two_metrics[name] == pytest.approx(one_metrics[name], rel=1e-5), name
        assert one_metrics["few_loss"] == one_metrics["said_loss"] != one_metrics["few_ema_loss"]


# Memory


def peak_memory(num_images: int) -> int:
    """Bytes at most held by Python and NumPy while three epochs of a data set are walked and 64 views are made."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "png")
    images = [{"bytes": buffer.getvalue(), "path": None}] * num_images
    dataset = datasets.Dataset.from_dict(
        {"image": images, "label": [0, 1] * (num_images // 2)}, features=load_digits().train.features
    )
    tracemalloc.start()
    views = ViewDataset(dataset, lambda image: torch.zeros(3, 8, 8, dtype=torch.uint8), seed=0)
    sampler = ViewSampler(len(views), seed=0, total_batch_size=64, repeats=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for number, key in enumerate(sampler):
            if number < 64:
                views.__getitems__([key])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_grows_by_a_label_and_a_place_in_the_order_only():
    peak_memory(64)  # what is imported and cached once does not count
    small, large = 20_000, 60_000
    growth = (peak_memory(large) - peak_memory(small)) / (large - small)
    # 8 bytes for the label and 8 for the order, and what NumPy takes while it permutes; an image here has 192.
    assert growth < 40


def test_memory_does_not_grow_with_steps():
    views = ViewDataset(tiny.digits(96)[0], lambda image: torch.zeros(3, 8, 8, dtype=torch.uint8), seed=0)

    def held_after(batches: int) -> int:
        tracemalloc.start()
        for batch in range(batches):
            views.__getitems__([ViewKey(0, slot, slot % 96, 0) for slot in range(8 * batch, 8 * batch + 8)])
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return held

    held_after(20)
    assert held_after(200) - held_after(20) < 20_000
