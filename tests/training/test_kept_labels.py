"""A run that replays a teacher's labels trains to the same bits as one with the teacher, at any batch and world size.

It takes the labels of exactly its own views or is refused, records what is missing, and loses nothing when killed.
"""

import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support import stores, tiny, zero_shot
from support.main_of import launch, python_path
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification

from hf_deit import InputError, TeacherLabelStore
from hf_deit.data.batch_augment import Mixing, RandomErasing
from hf_deit.data.streams import ImageStream
from hf_deit.data.view_dataset import ViewDataset
from hf_deit.data.views import ViewKey
from hf_deit.hub.facts import LOCAL_TEACHER, RunSources, Source
from hf_deit.labels.files import lock_store
from hf_deit.labels.identity import StoreIdentity
from hf_deit.models.teacher import TeacherDescription, describe_teacher
from hf_deit.training.callbacks import TeacherCheckCallback
from hf_deit.training.kept_labels import KeptLabels, LabelReport
from hf_deit.training.preview import training_views

VIEWS = 96
# Two epochs of 96 views; steps of 40 views leave 16 of them, four groups, that no step visits.
SETTINGS = {
    **tiny.FULL_RECIPE,
    "mixup_group_size": 4,
    "num_train_epochs": 2,
    "max_steps": -1,
    "ema_decay": 0.9,
    "logging_steps": 1,
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("hf_deit.labels.files.LOCK_SECONDS", 0.2)


@pytest.fixture(scope="module")
def folder_of_teacher(tmp_path_factory) -> str:
    return tiny.fair_teacher_folder(tmp_path_factory.mktemp("teacher"))


def describe(folder: str, **settings: Any) -> TeacherDescription:
    return describe_teacher(folder, student_processor=tiny.processor(), **settings)


@pytest.fixture
def unloadable(folder_of_teacher, monkeypatch) -> TeacherDescription:
    def load(self: TeacherDescription, device: Any = None) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(TeacherDescription, "load", load)
    return describe(folder_of_teacher)


def make(folder: Path, teacher: Any, *, batch_size: int = 8, student: Any = None, **settings: Any) -> Any:
    parts = {"train_dataset", "eval_dataset", "unlabeled_dataset", "processing_class", "callbacks"} & settings.keys()
    given = {name: settings.pop(name) for name in parts}
    args = tiny.arguments(folder, **{**SETTINGS, "per_device_train_batch_size": batch_size, **settings})
    model = tiny.student(drop_path_rate=0.2, hidden_dropout_prob=0.1) if student is None else student
    return tiny.trainer(model, args, teacher, **given)


def result_of(trainer: Any) -> dict[str, Any]:
    """All that training has made: weights, average, and what was logged of losses and of agreement."""
    names = ("loss", "class_loss", "distillation_loss", "teacher_agreement", "grad_norm")
    logs = [{name: entry[name] for name in names} for entry in trainer.state.log_history if "loss" in entry]
    average = {} if trainer.weight_average is None else trainer.weight_average.module.state_dict()
    return {"weights": trainer.model.state_dict(), "average": average, "logs": logs}


Outcome = tuple[dict[str, Any], LabelReport | None]


def train(folder: Path, teacher: Any, *, checkpoint: Any = None, **settings: Any) -> Outcome:
    trainer = make(folder, teacher, **settings)
    trainer.train(resume_from_checkpoint=checkpoint)
    return result_of(trainer), trainer.label_report


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["logs"] == other["logs"] and len(one["logs"]) >= 2
    for part in ("weights", "average"):
        assert one[part].keys() == other[part].keys()
        assert [name for name in one[part] if not torch.equal(one[part][name], other[part][name])] == []


@pytest.fixture(scope="module")
def recorded(folder_of_teacher, tmp_path_factory) -> Path:
    """A store that a run with steps of 40 views has made."""
    folder = tmp_path_factory.mktemp("recorded")
    result, report = train(
        folder / "run", describe(folder_of_teacher), batch_size=40, teacher_labels=str(folder / "s")
    )
    live, _ = train(folder / "live", describe(folder_of_teacher), batch_size=40)
    assert_same(result, live)
    assert report == LabelReport(asked=2 * VIEWS)
    return folder / "s"


def labels_in(store: Path, epoch: int) -> np.ndarray:
    """A store's labels of an epoch; of those that agree with it the true label is not looked up."""
    opened = TeacherLabelStore.open(store, readonly=True)
    return opened.epoch(epoch).codes


# The same training


def test_the_labels_are_what_the_teacher_says_of_the_views(recorded, folder_of_teacher, tmp_path):
    trainer = make(tmp_path, describe(folder_of_teacher))
    store = TeacherLabelStore.open(recorded, readonly=True)
    assert store.complete_epochs == [0, 1]
    for epoch in (0, 1):
        views = training_views(
            trainer.train_dataset, trainer.args, tiny.processor(), num_labels=10, epoch=epoch, slots=range(VIEWS)
        )
        keys = trainer._get_train_sampler().keys(epoch, range(VIEWS))
        true_labels = trainer.train_dataset.labels[[key.index for key in keys]]
        said = trainer.teacher(views["pixel_values"]).argmax(-1).numpy()
        np.testing.assert_array_equal(store.labels(epoch, true_labels), said)
        assert len(set(said.tolist())) >= 5
        assert 0.02 < (said == true_labels).mean() < 0.9
    assert not np.array_equal(store.labels(0, true_labels), store.labels(1, true_labels))


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (48, 1), (4, 3), (40, 1)])
def test_a_replay_is_bit_for_bit_the_training_with_the_teacher(
    tmp_path, recorded, folder_of_teacher, batch_size, accumulation, monkeypatch
):
    settings = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    live, _ = train(tmp_path / "live", describe(folder_of_teacher), **settings)
    monkeypatch.delattr(TeacherDescription, "load")
    for teacher, readonly in ((describe(folder_of_teacher), False), (None, True)):
        replayed, report = train(
            tmp_path / "replay", teacher, teacher_labels=str(recorded), teacher_labels_readonly=readonly, **settings
        )
        assert_same(replayed, live)
        visited = VIEWS // (batch_size * accumulation) * batch_size * accumulation
        assert report.replayed == 2 * visited and report.asked == report.verified == 0
        assert report.pixels >= 4


def test_spread_views_are_labelled_and_replayed_bit_for_bit(tmp_path, recorded, folder_of_teacher):
    """Recorded in steps of 40 views, which cut blocks of four images with three views each."""
    spread, store = {"repeats_placement": "spread"}, tmp_path / "store"
    train(tmp_path / "record", describe(folder_of_teacher), batch_size=40, teacher_labels=str(store), **spread)
    assert (labels_in(store, 0) != labels_in(recorded, 0)).any()
    for batch_size, accumulation in ((8, 1), (4, 3)):
        settings = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation, **spread}
        live, _ = train(tmp_path / "live", describe(folder_of_teacher), **settings)
        replayed, report = train(
            tmp_path / "replay", None, teacher_labels=str(store), teacher_labels_readonly=True, **settings
        )
        assert_same(replayed, live)
        assert report == LabelReport(replayed=2 * VIEWS, pixels=report.pixels) and report.pixels >= 4


def test_another_student_with_another_seed_replays_the_same_views(tmp_path, recorded, folder_of_teacher, unloadable):
    students = {"student": tiny.student(distilled=False, seed=5)}, {"student": tiny.resnet(seed=5), "ema_decay": 0.0}
    for settings in students:
        _, report = train(
            tmp_path, unloadable, seed=11, data_seed=3, teacher_labels=str(recorded), batch_size=16, **settings
        )
        assert report.replayed == 2 * VIEWS


TWO_PROCESSES = """
import sys
from pathlib import Path
import conftest, torch
import test_kept_labels as t
from hf_deit.commands.command_line import exit_command
from hf_deit.models.teacher import TeacherDescription
folder, teacher, recorded = Path(sys.argv[1]), t.describe(sys.argv[2]), sys.argv[3]
results = {"live": t.train(folder, teacher)}
rank = torch.distributed.get_rank()
results["record"] = t.train(folder, teacher, batch_size=20, teacher_labels=str(folder / "store"))
results["skip"] = t.skip_what_overflows(folder / "skip", sys.argv[4], batch_size=8)
results["prior"] = t.train_with_prior(folder / "prior", sys.argv[5], batch_size=8)
def load(self, device=None): raise AssertionError("the teacher was loaded")
TeacherDescription.load = load
results["replay"] = t.train(folder, teacher, teacher_labels=recorded)
results["replay own"] = t.train(folder, None, teacher_labels=str(folder / "store"), teacher_labels_readonly=True)
torch.save({name: (result, vars(report) if report else None) for name, (result, report) in results.items()},
           folder / f"{rank}.pt")
exit_command(0)
"""


def train_with_prior(folder: Path, clip: str, **settings: Any) -> Outcome:
    """Learns from a zero-shot teacher whose prior is corrected, and says what that was."""
    names = dict(enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))
    teacher = describe(clip, id2label=names, prior_correction=True)
    unlabeled = tiny.digits()[0].select_columns("image")
    data = {"train_dataset": None, "unlabeled_dataset": unlabeled, "eval_dataset": None}
    trainer = make(folder, teacher, student=tiny.student(id2label=names), **data, distillation_type="soft", **settings)
    trainer.train()
    return {**result_of(trainer), "predicted": trainer.record.predicted_classes}, None


def skip_what_overflows(folder: Path, teacher: str, **settings: Any) -> Outcome:
    """Passes over views that a teacher gives no finite answer to, and asserts that it would otherwise stop."""
    halved = describe(teacher, dtype="float16")
    stores = {"teacher_labels": str(folder / "store"), "on_bad_teacher_answer": "skip"}
    trainer = make(folder, halved, student=tiny.student(), **stores, **settings)  # dropout depends on the batch
    trainer.train()
    told = []
    for is_checked in (True, False):
        stopping = make(folder, halved, **settings)
        if not is_checked:
            stopping.pop_callback(TeacherCheckCallback)
        with pytest.raises(InputError, match=r"not finite to .* of the training images") as error:
            stopping.train()
        assert (stopping.state.global_step == 0) == is_checked
        told.append(re.search(r"[\d,]+ of [\d,]+ views", str(error.value))[0])
    numbers = [entry.get("unanswered_views", 0) for entry in trainer.state.log_history]
    return {**result_of(trainer), "unanswered": numbers, "told": told}, trainer.label_report


def test_two_processes_record_and_replay_as_one_does(tmp_path, recorded, folder_of_teacher):
    script, overflowing = tmp_path / "train.py", tiny.overflowing_teacher_folder(tmp_path / "overflowing", 0.25)
    script.write_text(TWO_PROCESSES)
    zero_shot.clip_folder(tmp_path / "clip")
    launch(script, tmp_path, folder_of_teacher, recorded, overflowing, tmp_path / "clip")
    results, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    live = results["live"][0]
    for name in ("replay", "replay own"):
        assert_same(results[name][0], live)
        assert results[name][1] == other[name][1]
        assert results[name][1]["replayed"] == 2 * VIEWS and results[name][1]["asked"] == 0
        assert results[name][1]["pixels"] >= 4
    assert results["record"][1]["asked"] == 2 * VIEWS  # by both together, with those of no step
    for epoch in (0, 1):
        np.testing.assert_array_equal(labels_in(tmp_path / "store", epoch), labels_in(recorded, epoch))
    assert not list((tmp_path / "store" / "parts").iterdir())
    alone, _ = train_with_prior(tmp_path / "alone", str(tmp_path / "clip"), batch_size=16)
    assert results["prior"][0]["predicted"] == other["prior"][0]["predicted"] == alone["predicted"]
    assert alone["predicted"].priors is not None
    for step, expected in zip(results["prior"][0]["logs"], alone["logs"], strict=True):
        assert step == pytest.approx(expected, rel=1e-3)
    one, report = skip_what_overflows(tmp_path / "one", overflowing, batch_size=16)
    for step, expected in zip(results["skip"][0]["logs"], one["logs"], strict=True):
        assert step == pytest.approx(expected, rel=1e-3)
    assert results["skip"][0]["unanswered"] == other["skip"][0]["unanswered"] == one["unanswered"]
    assert results["skip"][0]["told"] == one["told"]
    assert results["skip"][1] == vars(report) and sum(one["unanswered"]) == report.unanswered > 0
    for epoch in (0, 1):
        stores = (labels_in(tmp_path / name / "store", epoch) for name in ("skip", "one"))
        np.testing.assert_array_equal(*stores)


@pytest.mark.parametrize("top_k", [3, None])  # by default ten, or, as here, all but one
def test_soft_distillation_learns_from_what_is_kept(tmp_path, folder_of_teacher, top_k, monkeypatch):
    settings = {"distillation_type": "soft", "batch_size": 16}
    live, _ = train(tmp_path / "live", describe(folder_of_teacher), **settings)
    settings |= {"teacher_labels": str(tmp_path / "store"), "teacher_labels_top_k": top_k}
    recording, report = train(tmp_path / "record", describe(folder_of_teacher), **settings)
    assert report.asked == 2 * VIEWS
    monkeypatch.delattr(TeacherDescription, "load")
    replayed, report = train(tmp_path / "replay", describe(folder_of_teacher), **settings)
    assert report.replayed == 2 * VIEWS
    assert_same(replayed, recording)
    losses = ([entry["distillation_loss"] for entry in result["logs"]] for result in (live, recording))
    differences = [abs(one - other) for one, other in zip(*losses, strict=True)]
    assert (max(differences) < 0.01) == (top_k is None)  # all but one logit are kept: nothing but float16 is lost
    # Its labels serve hard distillation too.
    _, report = train(tmp_path / "hard", None, batch_size=16, teacher_labels=str(tmp_path / "store"))
    assert report.replayed == 2 * VIEWS


def test_labels_without_logits_are_no_lesson_for_soft_distillation(tmp_path, recorded):
    with pytest.raises(InputError, match=r"without logits.*--distillation_type hard"):
        train(tmp_path / "run", None, teacher_labels=recorded, distillation_type="soft")


def test_images_without_labels_are_kept_too(tmp_path, folder_of_teacher):
    unlabelled = tiny.digits()[0].remove_columns("label")
    results = []
    for labelled in (None, tiny.digits(40)[0]):
        store = str(tmp_path / f"store {labelled is None}")
        images = {"train_dataset": labelled, "unlabeled_dataset": unlabelled}
        for labels in (None, store, store):
            settings = {"teacher_labels": labels, "num_train_epochs": 1, **images}
            results.append(train(tmp_path / "run", describe(folder_of_teacher), **settings))
        (live, _), (recording, report), (replay, second) = results[-3:]
        assert_same(recording, live)
        assert_same(replay, live)
        assert report.asked == second.replayed > 0 == second.asked


# Parts of a store


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            self.stop(control)

    def stop(self, control: Any) -> None:
        control.should_training_stop = True


def test_what_is_missing_is_asked_for_and_recorded(tmp_path, folder_of_teacher, unloadable, monkeypatch):
    monkeypatch.undo()
    teacher, store = describe(folder_of_teacher), str(tmp_path / "store")
    live, _ = train(tmp_path / "live", teacher)
    _, report = train(tmp_path / "short", teacher, max_steps=17, teacher_labels=store)
    assert report == LabelReport(asked=17 * 8)
    opened = TeacherLabelStore.open(store, readonly=True)
    assert (opened.complete_epochs, opened.partial_epochs) == ([0], [1])
    # The same run needs no more than that.
    _, report = train(tmp_path / "again", None, max_steps=17, teacher_labels=store, teacher_labels_readonly=True)
    assert report.replayed == 17 * 8
    # One with batches that are known in part.
    _, report = train(tmp_path / "part", teacher, batch_size=16, max_steps=9, teacher_labels=store)
    assert (report.replayed, report.asked) == (17 * 8, 8)
    longer, report = train(tmp_path / "longer", teacher, teacher_labels=store)
    assert (report.replayed, report.asked) == (18 * 8, 6 * 8)
    assert_same(longer, live)
    assert TeacherLabelStore.open(store, readonly=True).complete_epochs == [0, 1]


def test_in_a_batch_that_is_known_in_part_what_is_kept_counts(tmp_path, recorded, folder_of_teacher):
    there = TeacherLabelStore.open(recorded, readonly=True)
    wrong = (there.labels(0, np.full(VIEWS, 9)) + 1) % 10  # so that it shows who is believed
    with TeacherLabelStore.open(tmp_path / "store", there.identity) as store:
        store.record(0, np.arange(4, 12), wrong[4:12], np.full(8, -100))
        store.flush()
    trainer = make(tmp_path, describe(folder_of_teacher), teacher_labels=str(tmp_path / "store"))
    kept, loader = trainer.kept_labels, iter(trainer.get_train_dataloader())
    kept.start_epoch(0)
    for known in ([4, 5, 6, 7], [0, 1, 2, 3], []):
        batch = trainer.prepare_batch(next(loader))
        said, answer = trainer.teacher(batch["pixel_values"]).argmax(-1), kept.answer(batch, trainer.teacher)
        slots = batch["slots"]
        for position in range(8):
            expected = wrong[slots[position]] if position in known else said[position]
            assert answer[position] == expected
    assert kept.report() == LabelReport(replayed=8, asked=16)


def test_views_of_another_epoch_get_no_label(tmp_path, recorded, folder_of_teacher):
    replaying = make(tmp_path, None, teacher_labels=str(recorded))
    recording = make(tmp_path, describe(folder_of_teacher), teacher_labels=str(tmp_path / "store"))
    for trainer, error in ((replaying, IndexError), (recording, InputError)):
        batch = trainer.prepare_batch(next(iter(trainer.get_train_dataloader())))
        for epoch in (0, 1):
            trainer.kept_labels.start_epoch(epoch)
            if epoch == 0:
                trainer.kept_labels.answer(batch, trainer.teacher)
                trainer.kept_labels.flush()
                continue
            with pytest.raises(error):
                trainer.kept_labels.answer(batch, trainer.teacher)
                trainer.kept_labels.flush()


class KillAt(StopAt):
    def stop(self, control: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


KILLED = """
import sys
from pathlib import Path
import conftest
import test_kept_labels as t
t.train(Path(sys.argv[1]), t.describe(sys.argv[2]), teacher_labels=sys.argv[3], save_strategy="steps", save_steps=5,
        callbacks=[t.KillAt(18)], dataloader_num_workers=1)
"""


def test_a_run_that_is_killed_while_it_records_goes_on_and_loses_nothing(tmp_path, folder_of_teacher):
    store, run = tmp_path / "store", tmp_path / "run"
    command = [sys.executable, "-c", KILLED, run, folder_of_teacher, store]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    opened = TeacherLabelStore.open(store, readonly=True)
    assert (opened.complete_epochs, opened.partial_epochs) == ([0], [1])
    assert opened.epoch(1).absent().tolist() == [*range(3 * 8, VIEWS)]  # 15 steps were saved, 12 are an epoch

    teacher = describe(folder_of_teacher)
    live, _ = train(tmp_path / "live", teacher, save_strategy="steps", save_steps=5)
    settings = {"teacher_labels": str(store), "save_strategy": "steps", "save_steps": 5}
    resumed, report = train(run, teacher, checkpoint=True, **settings)
    assert (report.replayed, report.asked) == (0, VIEWS - 3 * 8)
    assert_same(resumed, live)
    assert TeacherLabelStore.open(store, readonly=True).complete_epochs == [0, 1]
    _, report = train(tmp_path / "replay", None, teacher_labels=str(store))
    assert report.replayed == 2 * VIEWS


KILLED_AT_THE_END = {
    "while the last checkpoint is written": "transformers.Trainer._save_checkpoint",
    "after the last checkpoint": "hf_deit.training.kept_labels.KeptLabels.finish_epoch",
}


@pytest.mark.parametrize("batch_size", [8, 40])
@pytest.mark.parametrize("when", KILLED_AT_THE_END)
def test_a_run_killed_at_its_end_and_resumed_finishes_its_last_epoch(
    tmp_path, folder_of_teacher, recorded, when, batch_size, monkeypatch
):
    """With steps of 40 views, 16 of an epoch are of no step, and are labelled at its end."""
    teacher, store, last_step = describe(folder_of_teacher), tmp_path / "store", 2 * (VIEWS // batch_size)
    settings = {"teacher_labels": str(store), "batch_size": batch_size, "save_strategy": "steps"}
    settings["save_steps"] = VIEWS // batch_size
    module, method = KILLED_AT_THE_END[when].rsplit(".", 1)
    original = getattr(pkgutil.resolve_name(module), method)

    def dying(self: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step == last_step:
            raise KeyboardInterrupt
        original(self, *args, **kwargs)

    trainer = make(tmp_path / "run", teacher, **settings)
    with monkeypatch.context() as patched:
        patched.setattr(KILLED_AT_THE_END[when], dying)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    opened = TeacherLabelStore.open(store, readonly=True)
    visited = VIEWS // batch_size * batch_size
    assert (opened.complete_epochs, opened.views_in_parts) == ([0], {1: visited})

    trainer = make(tmp_path / "run", teacher, **settings)
    trainer.train(resume_from_checkpoint=True)
    steps_again = last_step // 2 if when == "while the last checkpoint is written" else 0
    report = trainer.label_report
    assert (report.replayed, report.asked) == (steps_again * batch_size, VIEWS - visited)
    assert (opened.complete_epochs, os.listdir(store / "parts")) == ([0, 1], [])
    for epoch in (0, 1):
        np.testing.assert_array_equal(labels_in(store, epoch), labels_in(recorded, epoch))


def test_what_cannot_be_finished_holds_no_run_up_that_has_all_it_needs(
    tmp_path, recorded, folder_of_teacher, caplog, monkeypatch
):
    teacher, store = describe(folder_of_teacher), tmp_path / "store"
    shutil.copytree(recorded, store)
    os.rename(store / "data/epoch-00001.parquet", store / "parts/epoch-00001.rank-00000.0a1b2c3d.parquet")
    monkeypatch.delattr(TeacherDescription, "load")
    with lock_store(store):
        _, report = train(tmp_path / "a", teacher, teacher_labels=str(store))
    assert report.replayed == 2 * VIEWS and "another run writes to the label store" in caplog.text
    _, report = train(tmp_path / "b", teacher, teacher_labels=str(store), teacher_labels_readonly=True)
    assert report.replayed == 2 * VIEWS and len(os.listdir(store / "parts")) == 1  # it was to be read alone
    trainer = make(tmp_path / "c", teacher, teacher_labels=str(store))
    assert trainer.kept_labels.store.complete_epochs == [0, 1] and os.listdir(store / "parts") == []
    make(tmp_path / "d", teacher, teacher_labels=str(store))  # nobody has the lock


def test_an_epoch_whose_last_views_were_not_labelled_is_completed_later(tmp_path, folder_of_teacher, monkeypatch):
    """As after a kill between an epoch's last checkpoint and its end."""
    teacher, store, label = (
        describe(folder_of_teacher),
        str(tmp_path / "store"),
        "hf_deit.training.kept_labels.KeptLabels.label",
    )
    with monkeypatch.context() as patched:
        patched.setattr(label, lambda *args, **kwargs: None)
        train(tmp_path / "one", teacher, batch_size=40, num_train_epochs=1, teacher_labels=store)
    assert TeacherLabelStore.open(store, readonly=True).partial_epochs == [0]
    _, report = train(tmp_path / "two", teacher, batch_size=40, teacher_labels=store)
    assert (report.replayed, report.asked) == (80, 96 + 16)
    assert TeacherLabelStore.open(store, readonly=True).complete_epochs == [0, 1]


def test_a_set_that_is_smaller_than_a_step_is_kept_as_that_step_repeats_it(tmp_path, folder_of_teacher):
    settings = {"train_dataset": tiny.digits(20)[0], "teacher_labels": str(tmp_path / "store"), "batch_size": 32}
    live, _ = train(tmp_path / "live", describe(folder_of_teacher), **{**settings, "teacher_labels": None})
    for asked, replayed in ((64, 0), (0, 64)):
        result, report = train(tmp_path / "run", describe(folder_of_teacher), **settings)
        assert (report.asked, report.replayed) == (asked, replayed)
        assert_same(result, live)
    with pytest.raises(InputError, match="views_per_epoch is 32 there, 64 here"):
        make(tmp_path, describe(folder_of_teacher), **{**settings, "batch_size": 64})


def test_a_sample_says_its_slot_and_the_crc_of_its_bytes(tmp_path, recorded):
    views = make(tmp_path, None, teacher_labels=str(recorded)).train_dataset
    keys = [ViewKey(epoch, slot, slot, 0) for epoch in (0, 1) for slot in range(VIEWS)]
    samples = views.__getitems__(keys)
    crcs = np.array([sample["pixel_crcs"] for sample in samples])
    wanted = np.concatenate([views.wants_crc(epoch, np.arange(VIEWS)) for epoch in (0, 1)])
    assert ((crcs >= 0) == wanted).all() and 8 < wanted.sum() < VIEWS
    for sample, key, crc in zip(samples, keys, crcs, strict=True):
        assert sample["slots"] == (key.epoch << 32) + key.slot
        assert crc == -1 or crc == zlib.crc32(sample["pixel_values"].numpy().tobytes())


# Refusals

OTHERS = {
    "seed": {"data_seed": 4},
    "augmentation.auto_augment": {"auto_augment": "rand-m5-mstd0.5-inc1"},
    "augmentation.horizontal_flip": {"horizontal_flip": 0.0},
    "augmentation.crop_scale_min": {"crop_scale_min": 0.2},
    "augmentation.reduced_decoding": {"reduced_decoding": True},
    "augmentation.shorter_side": {"cache_images": "resized"},
    "augmentation.random_erasing": {"random_erasing": 0.0},
    "augmentation.random_erasing.probability": {"random_erasing": 0.5},
    "augmentation.mixing.mixup_alpha": {"mixup": 0.5},
    "augmentation.mixing.switch_probability": {"mixup_switch_probability": 0.3},
    "augmentation.mixing": {"mixup": 0.0, "cutmix": 0.0, "mixup_group_size": None},
    "group_size": {"mixup_group_size": 8},
    "repeated_augmentation": {"repeated_augmentation": 1},
    "repeats_placement": {"repeats_placement": "spread"},
    "augmentation.image_mean": {"processing_class": tiny.processor(image_mean=[0.5] * 3)},
    "augmentation.image_size": {
        "processing_class": tiny.processor(crop_size=32),
        "student": tiny.student(image_size=32),
    },
    "top_k": {"teacher_labels_top_k": 2},
    "data.rows": {"train_dataset": tiny.digits(100)[0]},
    "data.fingerprint": {"train_dataset": tiny.digits(96)[0].select([1, 0, *range(2, 96)])},
}


@pytest.mark.parametrize("field", OTHERS)
@pytest.mark.parametrize("readonly", [False, True])
def test_labels_of_other_views_are_refused_by_the_field_that_differs(
    tmp_path, recorded, folder_of_teacher, field, readonly
):
    settings = {"teacher_labels": str(recorded), "teacher_labels_readonly": readonly, **OTHERS[field]}
    processor = settings.get("processing_class", tiny.processor())
    teacher = describe_teacher(folder_of_teacher, student_processor=processor)
    with pytest.raises(InputError, match=rf"[ :]{field}(\.\w+)* is .* there, .* here"):
        make(tmp_path, teacher, **settings)


def test_another_teacher_is_refused(tmp_path, recorded, folder_of_teacher):
    other = tiny.fair_teacher_folder(tmp_path / "other", seed=2)
    processor = tmp_path / "processor"
    tiny.teacher_folder(processor)
    tiny.processor(image_mean=[0.4] * 3, image_std=[0.5] * 3).save_pretrained(processor)
    for field, teacher in (
        ("teacher.revision", describe(other)),
        ("teacher.dtype", describe(folder_of_teacher, dtype="bfloat16")),
        ("teacher.preprocessing.shift", describe(str(processor))),
    ):
        with pytest.raises(InputError, match=f" {field} is .*--teacher_model_name_or_path names the teacher"):
            make(tmp_path, teacher, teacher_labels=str(recorded))
    copy = tiny.fair_teacher_folder(tmp_path / "copy")  # the same weights elsewhere
    make(tmp_path, describe(copy), teacher_labels=str(recorded))


def test_labels_at_another_size_of_the_teacher_are_refused(tmp_path, folder_of_teacher):
    """A convnet of 24 pixels, and a student of 16."""
    shutil.copytree(folder_of_teacher, tmp_path / "teacher")
    tiny.processor(crop_size=24).save_pretrained(tmp_path / "teacher")
    own, asked = (describe(tmp_path / "teacher", input_size=size) for size in ("own", "student"))
    named, unnamed = tmp_path / "named", tmp_path / "unnamed"
    one_epoch = {"num_train_epochs": 1}
    train(tmp_path / "one", own, teacher_labels=str(named), **one_epoch)
    train(tmp_path / "other", asked, teacher_labels=str(unnamed), **one_epoch)
    assert (labels_in(named, 0) != labels_in(unnamed, 0)).any()
    identities = [StoreIdentity.read(store / "store.json") for store in (named, unnamed)]
    assert [identity.teacher_size for identity in identities] == [[24, 24], None]
    assert "input_size" not in identities[1].teacher["preprocessing"]  # as an earlier version wrote it
    for store, teacher, there, here in ((named, asked, r"\[24, 24\]", "None"), (unnamed, own, "None", r"\[24, 24\]")):
        words = rf"teacher.preprocessing.input_size is {there} there, {here} here.*--teacher_input_size says it"
        with pytest.raises(InputError, match=words):
            make(tmp_path, teacher, teacher_labels=str(store), **one_epoch)
    for store, teacher in ((named, own), (unnamed, asked), (named, None), (unnamed, None)):
        trainer = make(tmp_path, teacher, teacher_labels=str(store), **one_epoch)
        assert trainer.teacher is None  # all is there
        assert trainer.sources.teacher_size == ([24, 24] if store == named else None)


def test_earlier_labels_of_a_teacher_of_one_size_are_still_its_own(tmp_path):
    """A ViT of 24 pixels had its own size before there was a choice, and no store said so."""
    names = {index: str(index) for index in range(10)}
    torch.manual_seed(0)
    sizes = {"image_size": 24, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(
        ViTConfig(
            **sizes, intermediate_size=8, id2label=names, label2id={name: index for index, name in names.items()}
        )
    ).save_pretrained(tmp_path / "teacher")
    tiny.processor(crop_size=24).save_pretrained(tmp_path / "teacher")
    own, asked = (describe(tmp_path / "teacher", input_size=size) for size in ("own", "student"))
    store = tmp_path / "store"
    recorded, _ = train(tmp_path / "one", asked, teacher_labels=str(store), num_train_epochs=1)
    assert "input_size" not in StoreIdentity.read(store / "store.json").teacher["preprocessing"]
    assert own.identity()["preprocessing"]["input_size"] == (24, 24)
    for teacher in (own, asked):
        replayed, report = train(tmp_path / "other", teacher, teacher_labels=str(store), num_train_epochs=1)
        assert report == LabelReport(replayed=VIEWS - VIEWS % 8, pixels=report.pixels)
        assert_same(replayed, recorded)


def test_a_student_with_another_number_of_labels_is_refused(tmp_path, recorded):
    names = datasets.ClassLabel(names=[str(index) for index in range(11)])
    more = tiny.digits(96)[0].cast_column("label", datasets.Value("int64")).cast_column("label", names)
    student = tiny.student(id2label={index: str(index) for index in range(11)})
    with pytest.raises(InputError, match="num_labels is 10 there, 11 here"):
        make(tmp_path, None, teacher_labels=str(recorded), train_dataset=more, eval_dataset=None, student=student)


def test_labels_by_the_names_of_other_classes_are_refused(tmp_path, recorded):
    names = ["zero", *map(str, range(1, 10))]
    renamed = tiny.digits(96)[0].cast_column("label", datasets.Value("int64"))
    renamed = renamed.cast_column("label", datasets.ClassLabel(names=names))
    student = tiny.student(id2label=dict(enumerate(names)))
    settings = {"train_dataset": renamed, "eval_dataset": None, "student": student}
    for readonly in (False, True):  # rows, pixels and indices are the same: names alone tell
        with pytest.raises(
            InputError, match=r"are of other classes than those of the data \(renamed: '0' to 'zero'\)"
        ):
            make(tmp_path, None, teacher_labels=str(recorded), teacher_labels_readonly=readonly, **settings)


def test_a_store_that_ends_before_the_training_is_refused_where_it_must_do(tmp_path, recorded, unloadable):
    for teacher, readonly in ((unloadable, True), (None, True), (None, False)):
        settings = {"teacher_labels": str(recorded), "teacher_labels_readonly": readonly, "num_train_epochs": 4}
        with pytest.raises(
            InputError, match=r"needs the epochs 0 to 3, but .* lacks views of 2 of them, the first one 2"
        ):
            make(tmp_path, teacher, **settings)
    with pytest.raises(InputError, match="verify_teacher_labels needs a teacher"):
        make(tmp_path, None, teacher_labels=str(recorded), verify_teacher_labels=0.5)
    with pytest.raises(InputError, match=r"no label store in .*and no teacher"):
        make(tmp_path, None, teacher_labels=str(tmp_path / "none"))
    with pytest.raises(InputError, match="there is no label store"):
        make(tmp_path, unloadable, teacher_labels=str(tmp_path / "none"), teacher_labels_readonly=True)
    assert not (tmp_path / "none").exists()


def test_views_that_no_slot_names_are_refused(tmp_path, folder_of_teacher):
    stream = ImageStream(tiny.digits()[0].to_iterable_dataset(), images_per_epoch=96)
    for dataset, words in ((stream, "of a stream cannot be kept"), ([{}], "are of a datasets.Dataset, got list")):
        with pytest.raises(InputError, match=words):
            make(tmp_path, describe(folder_of_teacher), train_dataset=dataset, teacher_labels=str(tmp_path / "store"))


def test_one_run_writes_and_many_read(tmp_path, recorded, folder_of_teacher):
    teacher, store = describe(folder_of_teacher), str(tmp_path / "store")
    first = make(tmp_path, teacher, teacher_labels=store)
    with pytest.raises(InputError, match="another run writes to the label store"):
        make(tmp_path, teacher, teacher_labels=store)
    first.train()
    first.train()  # again, with what it has recorded itself
    assert first.label_report.replayed == 2 * VIEWS
    longer = make(tmp_path, teacher, teacher_labels=store, num_train_epochs=3)  # the first one has let go of it
    longer.train()
    assert (longer.label_report.replayed, longer.label_report.asked) == (2 * VIEWS, VIEWS)
    readers = [make(tmp_path, None, teacher_labels=store) for _ in range(2)]
    for reader in readers:
        reader.train()
        assert reader.label_report.replayed == 2 * VIEWS


class Raise(StopAt):
    def stop(self, control: Any) -> None:
        raise KeyboardInterrupt


def test_a_run_that_fails_lets_others_write(tmp_path, folder_of_teacher, monkeypatch):
    teacher, store = describe(folder_of_teacher), str(tmp_path / "store")
    failing = make(tmp_path, teacher, teacher_labels=store, callbacks=[Raise(2)])
    with pytest.raises(KeyboardInterrupt):
        failing.train()
    with monkeypatch.context() as patched:

        def load(self: TeacherDescription, device: Any = None) -> None:
            raise InputError("no weights")

        patched.setattr(TeacherDescription, "load", load)
        with pytest.raises(InputError, match="no weights") as caught:
            make(tmp_path, teacher, teacher_labels=store)
    trainer = make(tmp_path, teacher, teacher_labels=store)
    assert caught.value  # which, in a notebook, stays where it is
    trainer.train()
    assert trainer.label_report.asked == 2 * VIEWS


def test_a_store_without_labels_is_anybodys(tmp_path, folder_of_teacher):
    store = str(tmp_path / "store")
    make(tmp_path, describe(folder_of_teacher), teacher_labels=store).kept_labels.close()
    assert [path.name for path in Path(store).iterdir() if path.is_file() and path.name[0] != "."] == ["store.json"]
    _, report = train(tmp_path, describe(folder_of_teacher), data_seed=7, teacher_labels=store)
    assert report.asked == 2 * VIEWS
    with pytest.raises(InputError, match="seed is 7 there, 3 here"):
        make(tmp_path, describe(folder_of_teacher), teacher_labels=store)


def test_ready_made_views_are_identified_by_what_they_are(tmp_path, folder_of_teacher):
    def views(**settings: Any) -> ViewDataset:
        transform = make(tmp_path, describe(folder_of_teacher)).train_dataset.transform
        return ViewDataset(tiny.digits()[0], transform, **{"seed": 3, **settings})

    teacher, store = describe(folder_of_teacher), str(tmp_path / "store")
    train(tmp_path / "run", teacher, teacher_labels=store, train_dataset=views())
    for settings, field in (
        ({"erasing": RandomErasing(1.0)}, "random_erasing"),
        ({"mixing": Mixing(group_size=1)}, "mixing"),
    ):
        with pytest.raises(InputError, match=f"{field}.* there, .* here"):
            make(tmp_path, teacher, teacher_labels=store, train_dataset=views(**settings))
    with pytest.raises(InputError, match="one seed in a run with teacher_labels, got 4 and 3: give --data_seed 4"):
        make(tmp_path, teacher, teacher_labels=store, train_dataset=views(seed=4))


def test_fewer_views_are_replayed_from_more(tmp_path, folder_of_teacher):
    """Of a set that is smaller than a step, which a larger step has repeated more often."""
    store, data = str(tmp_path / "store"), tiny.digits(20)[0]
    train(tmp_path / "a", describe(folder_of_teacher), batch_size=48, train_dataset=data, teacher_labels=store)
    live, _ = train(tmp_path / "live", describe(folder_of_teacher), batch_size=32, train_dataset=data)
    settings = {"batch_size": 32, "train_dataset": data, "teacher_labels": store, "teacher_labels_readonly": True}
    replayed, report = train(tmp_path / "b", None, **settings)
    assert report.replayed == 64 and report.pixels > 0
    assert_same(replayed, live)


def test_a_stand_in_for_a_broken_image_is_replayed_as_it_was(tmp_path, folder_of_teacher):
    encoded = tiny.digits()[0].cast_column("image", datasets.Image(decode=False))
    rows = {"image": [*encoded["image"][:19], {"bytes": b"broken", "path": None}]}
    features = datasets.Features({"image": datasets.Image()})
    images = {
        "train_dataset": tiny.digits(20)[0],
        # Its last image is followed by a labelled one.
        "unlabeled_dataset": datasets.Dataset.from_dict(rows, features=features),
        "on_bad_image": "skip",
        "num_train_epochs": 4,
    }
    store, labels = str(tmp_path / "store"), []
    for teacher in (describe(folder_of_teacher), None):
        result, report = train(tmp_path / "run", teacher, teacher_labels=store, **images)
        labels.append(result)
        assert report.replayed == (0 if teacher else 4 * 40)
    assert_same(*labels)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"teacher_labels_readonly": True}, "teacher_labels_readonly is about"),
        ({"verify_teacher_labels": 0.1}, "verify_teacher_labels is about"),
        ({"teacher_labels": "x", "distillation_type": "none"}, "drop one of them"),
        ({"teacher_labels": "x", "distillation_type": "soft", "teacher_labels_top_k": 0}, "top_k 0"),
        ({"teacher_labels": "x", "verify_teacher_labels": 1.5}, r"\[0, 1\]"),
        ({"teacher_labels": "x", "verify_teacher_labels": 0.1, "teacher_labels_readonly": True}, "needs the teacher"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        tiny.arguments(tmp_path, **settings)


# Checks


def test_a_sample_is_labelled_again_and_reported(tmp_path, recorded, folder_of_teacher):
    live, _ = train(tmp_path / "live", describe(folder_of_teacher), batch_size=16)
    settings = {"teacher_labels": str(recorded), "verify_teacher_labels": 0.3, "batch_size": 16}
    trainer = make(tmp_path, describe(folder_of_teacher), **settings)
    trainer.train()
    assert_same(result_of(trainer), live)  # to look changes nothing
    report = trainer.label_report
    assert report.replayed == 2 * VIEWS and report.asked == 0
    # The first of 12 batches, and those where 0.3 · n passes a whole number: 4, 7, 10.
    assert report.verified == report.agreeing == 4 * 16
    assert report.pixels >= 4
    logs = [entry for entry in trainer.state.log_history if "kept_labels_agreement" in entry]
    assert [entry["kept_labels_verified"] for entry in logs] == [32, 64]
    assert logs[-1]["kept_labels_agreement"] == 1.0
    assert logs[-1]["kept_labels_pixels_compared"] == report.pixels


def other_labels(folder: Path, recorded: Path) -> str:
    """A copy of a store in which every label is the next one."""
    there = TeacherLabelStore.open(recorded, readonly=True)
    with TeacherLabelStore.open(folder, there.identity) as store:
        for epoch in there.complete_epochs:
            columns = there.epoch(epoch).columns
            wrong = (there.labels(epoch, np.full(VIEWS, 9)) + 1) % 10
            store.record(epoch, np.arange(VIEWS), wrong, np.full(VIEWS, -100), crcs=columns["pixel_crc"])
            store.flush()
            assert store.finish_epoch(epoch)
    return str(folder)


def test_labels_that_the_teacher_does_not_give_show(tmp_path, recorded, folder_of_teacher):
    store = other_labels(tmp_path / "store", recorded)
    _, report = train(tmp_path / "run", describe(folder_of_teacher), teacher_labels=store, verify_teacher_labels=1.0)
    assert report.verified == 2 * VIEWS
    assert report.agreeing < VIEWS / 2


def test_pixels_that_have_changed_are_refused_at_the_start(tmp_path, recorded, folder_of_teacher, monkeypatch):
    from hf_deit.training import datasets as checks

    build = checks.build_train_transform
    monkeypatch.setattr(checks, "build_train_transform", lambda *a, **k: lambda image: build(*a, **k)(image) ^ 1)
    with pytest.raises(InputError, match=r"not of the views that are made here: \d+ of \d+ CRCs"):
        make(tmp_path, describe(folder_of_teacher), teacher_labels=str(recorded))


def test_pixels_that_change_during_the_run_stop_it_at_the_epochs_end(tmp_path, recorded, folder_of_teacher):
    trainer = make(tmp_path, describe(folder_of_teacher), teacher_labels=str(recorded), logging_steps=100)
    transform = trainer.train_dataset.transform
    trainer.train_dataset.transform = lambda image: transform(image) ^ 1
    with pytest.raises(InputError, match="not of the views that are made here"):
        trainer.train()
    assert trainer.state.global_step == VIEWS // 8


def test_other_versions_with_the_same_pixels_are_warned_of_once(
    tmp_path, recorded, folder_of_teacher, monkeypatch, caplog
):
    from hf_deit.training import label_source as label_access

    monkeypatch.setattr(label_access, "version", lambda name: "9.9" if name == "timm" else "0")
    trainer = make(tmp_path, describe(folder_of_teacher), teacher_labels=str(recorded))
    trainer.train()
    warnings = [entry.message for entry in caplog.records if "recorded with other versions" in entry.message]
    assert len(warnings) == 1 and "→ 9.9" in warnings[0]
    assert trainer.label_report.replayed == 2 * VIEWS


def test_how_often_kept_labels_are_true_is_told_at_the_start(tmp_path, recorded):
    trainer = make(tmp_path, None, teacher_labels=str(recorded))
    keys = trainer._get_train_sampler().keys(0, range(VIEWS))
    true_labels = trainer.train_dataset.labels[[key.index for key in keys]]
    labels = TeacherLabelStore.open(recorded, readonly=True).labels(0, true_labels)
    assert trainer.check_teacher() == {"kept_labels_that_are_true": pytest.approx((labels == true_labels).mean())}


def test_a_teacher_that_only_the_store_names_is_named_with_what_its_card_says(monkeypatch):
    monkeypatch.setattr("hf_deit.training.kept_labels.declared_datasets", lambda name, commit: [f"data of {name}"])
    teacher = {"name": "big/teacher", "revision": "c" * 40, "preprocessing": {"input_size": [24, 24]}}
    identity = stores.identity(teacher=teacher)
    kept = SimpleNamespace(store=SimpleNamespace(identity=identity, source=("ada/labels", "d" * 40)))
    sources = KeptLabels.named_in(kept, RunSources(student=Source("deit"), teacher=None))
    assert (sources.teacher.name, sources.teacher.commit, sources.teacher.on_hub) == ("big/teacher", "c" * 40, True)
    assert sources.teacher_datasets == ["data of big/teacher"]
    assert sources.teacher_labels == Source("ada/labels", "d" * 40, on_hub=True, is_dataset=True)
    # A folder's, or what somebody else's store says of a folder here: nothing is looked up by it.
    here = str(Path(__file__).parent)
    for name, revision in (("big/teacher", "sha256:00"), (here, "c" * 40), ("../x", "c" * 40), ("a/b", "../../x")):
        identity.teacher.update(name=name, revision=revision)
        named = KeptLabels.named_in(kept, RunSources(student=Source("deit"), teacher=None))
        assert (named.teacher, named.teacher_datasets) == (LOCAL_TEACHER, None)
