"""A teacher's answers that are not finite teach nothing: the run stops and names the images, or passes over the views.

Nothing of them gets into weights, checkpoints, accuracies or a label store as if it were an answer; a run that passes
over them trains to the same bits live, recording, replaying, resumed, and on one or two processes. Finite answers are
learnt from and kept, however large they are.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support import tiny
from support.main_of import main_of
from test_kept_labels import assert_same, result_of

from hf_deit import InputError, TeacherLabelStore, load_teacher
from hf_deit.data.streams import ImageStream
from hf_deit.models.answers import NO_ANSWER, decisions_of, has_answer
from hf_deit.models.teacher import Teacher, describe_teacher
from hf_deit.training.callbacks import TeacherCheckCallback
from hf_deit.training.objective import DistillationObjective
from hf_deit.training.preview import training_views

VIEWS, EPOCHS = 48, 2
SETTINGS = {
    **tiny.FULL_RECIPE,
    "auto_augment": "",
    "mixup_group_size": 4,
    "num_train_epochs": EPOCHS,
    "max_steps": -1,
    "logging_steps": 5,
}
SKIP = {"on_bad_teacher_answer": "skip"}


@pytest.fixture(scope="module")
def folder_of_teacher(tmp_path_factory) -> str:
    return tiny.overflowing_teacher_folder(tmp_path_factory.mktemp("teacher"), 0.25)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> datasets.Dataset:
    """The digits as files."""
    folder = tmp_path_factory.mktemp("digits")
    train, _ = tiny.digits(VIEWS)
    paths = [str(folder / f"{row}.png") for row in range(len(train))]
    for path, image in zip(paths, train["image"], strict=True):
        image.save(path)
    return datasets.Dataset.from_dict({"image": paths, "label": train["label"]}, features=train.features)


def half(folder: str, dtype: str = "float16") -> Teacher:
    return load_teacher(folder, student_processor=tiny.processor(), dtype=dtype)


def make(folder: Path, teacher: Any, *, unchecked: bool = False, **settings: Any) -> Any:
    parts = {"train_dataset", "eval_dataset", "callbacks"} & settings.keys()
    given = {"train_dataset": tiny.digits(VIEWS)[0], **{name: settings.pop(name) for name in parts}}
    trainer = tiny.trainer(tiny.student(), tiny.arguments(folder, **{**SETTINGS, **settings}), teacher, **given)
    if unchecked:  # so that it shows only in training
        trainer.pop_callback(TeacherCheckCallback)
    return trainer


def train(folder: Path, teacher: Any, **settings: Any) -> Any:
    trainer = make(folder, teacher, **settings)
    trainer.train()
    return trainer


def views_of(trainer: Any, epoch: int, count: int = VIEWS) -> torch.Tensor:
    return training_views(
        trainer.train_dataset, trainer.args, tiny.processor(), num_labels=10, epoch=epoch, slots=range(count)
    )["pixel_values"]


def unanswered_views(trainer: Any) -> list[list[int]]:
    """By epoch, the slots whose views the teacher gives no finite logits, asked about each by itself."""
    teacher = half(trainer.teacher.name_or_path)
    logits = (torch.cat([teacher(view[None]) for view in views_of(trainer, epoch)]) for epoch in range(EPOCHS))
    found = [(~each.isfinite().all(dim=1)).nonzero().flatten().tolist() for each in logits]
    assert all(0.02 < len(slots) / VIEWS < 0.6 for slots in found)
    return found


def images_of(trainer: Any, epoch: int, slot: int) -> list[str]:
    """The files of a view: its own, and that of its partner in the group of four."""
    keys = trainer._get_train_sampler().keys(epoch, sorted([slot, slot // 4 * 4 + 3 - slot % 4]))
    rows = {key.slot: key.index for key in keys}
    paths = trainer.train_dataset.dataset.cast_column("image", datasets.Image(decode=False))["image"]
    return [paths[rows[place]]["path"] for place in (slot, slot // 4 * 4 + 3 - slot % 4)]


def counted(trainer: Any) -> int:
    return sum(entry.get("unanswered_views", 0) for entry in trainer.state.log_history)


# What an answer is


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_finite_in_part_are_no_answer(bad):
    logits = torch.tensor([[1.0, bad, 0.0], [2.0, 3.0, 1.0], [bad, bad, bad], [3e38, 0.0, -3e38], [6e4, -6e4, 0.0]])
    assert has_answer(logits).tolist() == [False, True, False, False, True]
    assert decisions_of(logits).tolist() == [NO_ANSWER, 1, NO_ANSWER, NO_ANSWER, 0]
    assert has_answer(logits[[1, 4]].half()).all()
    assert has_answer(decisions_of(logits)).tolist() == has_answer(logits).tolist()


def changed(folder: str, to: Path, change: Any) -> str:
    teacher = half(folder, "float32")
    with torch.no_grad():
        change(teacher.model)
    teacher.model.save_pretrained(to)
    tiny.processor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(to)
    return str(to)


def test_a_teacher_that_answers_nothing_is_told_by_its_dtype_and_not_by_its_size(folder_of_teacher, tmp_path):
    changed(folder_of_teacher, tmp_path, lambda model: model.classifier[1].weight.mul_(1e4))
    with pytest.raises(InputError, match=r"has weights that are not finite in float16: give --teacher_dtype float32"):
        half(str(tmp_path))
    changed(folder_of_teacher, tmp_path, lambda model: model.classifier[1].bias.fill_(65_000).neg_())
    changed(str(tmp_path), tmp_path, lambda model: model.classifier[1].weight.abs_().neg_().mul_(10))
    with pytest.raises(InputError, match=r"to 96 of 96 views: .*--teacher_dtype float32") as error:
        train(tmp_path / "run", half(str(tmp_path)), **SKIP)
    assert "--teacher_input_size" not in str(error.value) and "on_bad_teacher_answer" not in str(error.value)
    assert has_answer(half(str(tmp_path), "bfloat16")(torch.zeros(1, 3, 16, 16))).all()


# Stopping


def test_of_several_teachers_the_one_without_an_answer_is_named(tmp_path, folder_of_teacher, caplog):
    """Before the first step, and in the training; a view that it has no answer to is passed over."""
    other = tiny.teacher_folder(tmp_path / "other")
    both = load_teacher([other, folder_of_teacher], student_processor=tiny.processor(), dtype="float16")
    for unchecked in (False, True):
        with pytest.raises(
            InputError, match=rf"the teacher '{folder_of_teacher}' gives answers that are not finite to"
        ):
            train(tmp_path / "run", both, unchecked=unchecked)
    trainer = train(tmp_path / "run", both, **SKIP)
    expected = unanswered_views(train(tmp_path / "alone", half(folder_of_teacher), **SKIP))
    assert counted(trainer) == sum(map(len, expected))
    assert f"the teacher {folder_of_teacher!r} gives answers" in caplog.text and f"{other!r} gives" not in caplog.text


def test_the_check_before_the_first_step_looks_at_the_views_of_the_training(tmp_path, folder_of_teacher, files):
    trainer = make(tmp_path, half(folder_of_teacher), train_dataset=files)
    bad = unanswered_views(trainer)[0]
    with pytest.raises(InputError, match="gives answers that are not finite") as error:
        trainer.train()
    assert trainer.state.global_step == 0 and not list(tmp_path.glob("checkpoint-*"))
    said = str(error.value)
    assert "--teacher_dtype float32 or bfloat16" in said and "--on_bad_teacher_answer skip" in said
    assert "\n" not in said and "learning_rate" not in said
    named = re.search(r"of 96 views: (.*), …\. Begin", said)[1].split(", ")  # each is shown mixed and by itself
    assert len(named) == 5
    pairs = [" mixed with ".join(dict.fromkeys(images_of(trainer, 0, slot))) for slot in bad]
    own = [images_of(trainer, 0, slot)[0] for slot in range(VIEWS)]
    assert all(name in (pairs if "mixed" in name else [*pairs, *own]) for name in named)
    assert any("mixed" in name for name in named)


class AnswersSome(torch.nn.Module):
    """A teacher's model whose answers are NaN for some pixels."""

    def __init__(self, model: torch.nn.Module, refuses: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.refuses = model, refuses
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, pixel_values: torch.Tensor) -> Any:
        output = self.model(pixel_values)
        output.logits = torch.where(self.refuses(pixel_values).unsqueeze(1), torch.nan, output.logits)
        return output


def answering_all_but(folder: str, views: torch.Tensor) -> Teacher:
    """A teacher that computes in float32, and gives some views, as the student sees them, NaN."""
    teacher = half(folder, "float32")
    known = (views * teacher.scale + teacher.shift).sum(dim=(1, 2, 3))

    def refuses(pixels: torch.Tensor) -> torch.Tensor:
        return ((pixels.sum(dim=(1, 2, 3)).unsqueeze(1) - known).abs() < 1e-3).any(dim=1)

    return Teacher(AnswersSome(teacher.model, refuses), teacher.description, teacher.input_size)


def test_views_that_are_only_bad_when_mixed_are_found_before_the_first_step(tmp_path, folder_of_teacher, files):
    trainer = make(tmp_path, half(folder_of_teacher, "float32"), train_dataset=files)
    slot = next(slot for slot in range(20, VIEWS) if len({*images_of(trainer, 0, slot)}) == 2)
    teacher = answering_all_but(folder_of_teacher, views_of(trainer, 0)[slot : slot + 1])
    with pytest.raises(InputError, match="to 1 of 96 views") as error:
        train(tmp_path, teacher, train_dataset=files)
    assert " mixed with ".join(images_of(trainer, 0, slot)) in str(error.value)
    assert "Begin anew with another teacher" in str(error.value)  # it computes in float32


@pytest.mark.parametrize("distillation_type", ["hard", "soft"])
def test_in_training_nothing_is_saved_of_what_came_after(tmp_path, folder_of_teacher, files, distillation_type):
    settings = {"train_dataset": files, "distillation_type": distillation_type, "logging_steps": 50}
    trainer = make(tmp_path, half(folder_of_teacher), unchecked=True, save_strategy="steps", save_steps=3, **settings)
    bad = unanswered_views(trainer)[0]
    step = bad[0] // 8  # the first one with a bad view
    with pytest.raises(InputError, match="gives answers that are not finite") as error:
        trainer.train()
    assert trainer.state.global_step == step // 3 * 3 + 3
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{n}" for n in range(3, step + 1, 3)]
    seen = [slot for slot in bad if slot < trainer.state.global_step * 8]
    assert f"to {len(seen)} of {trainer.state.global_step * 8 - (step // 3) * 24} views" in str(error.value)
    first = images_of(trainer, 0, bad[0])
    assert first[0] in str(error.value) and "checkpoint" in str(error.value)


def test_at_the_last_step_they_are_not_missed(tmp_path, folder_of_teacher):
    with pytest.raises(InputError, match=r"not finite to \d+ of 48 views: row \d+ of the training images"):
        train(tmp_path, half(folder_of_teacher), unchecked=True, num_train_epochs=1, logging_steps=500)


def test_images_of_a_stream_are_named(tmp_path, folder_of_teacher, files):
    for settings in ({}, {"unchecked": True}):
        stream = ImageStream(files.to_iterable_dataset(num_shards=2), VIEWS)
        with pytest.raises(InputError, match="not finite") as error:
            train(tmp_path, half(folder_of_teacher), train_dataset=stream, **settings)
        named = re.findall(r"/[^ ,]*/\d+\.png", str(error.value))
        paths = [image["path"] for image in files.cast_column("image", datasets.Image(decode=False))["image"]]
        assert named and {*named} <= {*paths}


def test_validation_images_are_looked_at_too_and_never_count_as_right(tmp_path, folder_of_teacher, caplog):
    _, validation = tiny.digits()
    pixels = tiny.processor()(list(validation["image"]), return_tensors="pt")["pixel_values"]
    logits = half(folder_of_teacher)(pixels)
    answered = has_answer(logits)
    assert 0 < answered.sum() < len(answered)
    given = logits.argmax(dim=1)  # also where it is the class of an infinity or a NaN
    validation = validation.remove_columns("label").add_column(
        "label", given.tolist(), feature=validation.features["label"]
    )
    right = int(answered.sum()) / len(answered)
    trainer = make(tmp_path, half(folder_of_teacher), eval_dataset=validation, **SKIP)
    assert trainer.check_teacher()["teacher_top1"] == right
    caplog.clear()
    assert trainer.evaluate_teacher() == right
    assert f"not finite to {int((~answered).sum())} of 40 validation images, which count as wrong" in caplog.text
    # Where no training view shows it, the validation images do.
    teacher = answering_all_but(folder_of_teacher, pixels[7:8])
    with pytest.raises(InputError, match=r"to 1 of 40 validation images: row 7 of the validation images"):
        train(tmp_path, teacher)


# Passing over


@pytest.mark.parametrize("distillation_type", ["hard", "soft"])
def test_passing_over_is_the_same_live_recording_and_replaying(tmp_path, folder_of_teacher, distillation_type, caplog):
    settings = {"distillation_type": distillation_type, **SKIP}
    teacher = half(folder_of_teacher)
    if distillation_type == "soft":
        settings["teacher_labels_top_k"] = 3
    stores = {"teacher_labels": str(tmp_path / "store")}
    if distillation_type == "hard":
        live = train(tmp_path / "live", teacher, **settings)
        recording = train(tmp_path / "record", teacher, **settings, **stores)
        assert_same(result_of(recording), result_of(live))
    else:
        recording = live = train(tmp_path / "record", teacher, **settings, **stores)
    bad = unanswered_views(live)
    assert counted(live) == counted(recording) == sum(map(len, bad))
    assert recording.label_report.unanswered == counted(recording) == recording.step_record.unanswered_views
    assert caplog.text.count("its term passes over them") >= 1
    store = TeacherLabelStore.open(tmp_path / "store", readonly=True)
    for epoch in range(EPOCHS):
        codes = store.epoch(epoch).codes
        assert np.flatnonzero(codes == NO_ANSWER).tolist() == bad[epoch]
        assert store.labels(epoch, np.zeros(VIEWS, int))[bad[epoch]].tolist() == [-1] * len(bad[epoch])
    for readonly in (False, True):
        replay = train(tmp_path / "replay", None, **settings, **stores, teacher_labels_readonly=readonly)
        assert_same(result_of(replay), result_of(recording))
        assert counted(replay) == counted(recording) and replay.label_report.asked == 0
    with pytest.raises(InputError, match=f"to {len(bad[0])} views of epoch 0 were not finite .* skip"):
        make(tmp_path / "replay", None, **{**settings, "on_bad_teacher_answer": "stop"}, **stores)
    assert all(parameter.isfinite().all() for parameter in live.model.parameters())
    facts = recording.run_facts()
    assert facts.num_unanswered == counted(recording)


def test_a_view_that_is_passed_over_adds_nothing_to_the_teachers_term(tmp_path, folder_of_teacher):
    trainer = make(tmp_path, half(folder_of_teacher), max_steps=1, per_device_train_batch_size=VIEWS, **SKIP)
    batch = trainer.prepare_batch(next(iter(trainer.get_train_dataloader())))
    bad = unanswered_views(trainer)[0]
    model = trainer.model.eval()
    outputs = model(batch["pixel_values"])
    answer = trainer.teacher(batch["pixel_values"])
    good = torch.tensor([slot not in bad for slot in range(VIEWS)])
    for kind in ("hard", "soft"):
        objective = DistillationObjective(kind, temperature=3.0)
        loss, parts = objective(outputs, batch, answer)
        rest = type(outputs)(**{name: value[good] for name, value in outputs.items() if value is not None})
        _, of_rest = objective(rest, {name: value[good] for name, value in batch.items()}, answer[good])
        for part in ("distillation_loss", "teacher_agreement"):
            assert parts[part].item() == pytest.approx(of_rest[part].item() * good.float().mean().item(), rel=1e-5)
        gradient = torch.autograd.grad(loss, outputs.distillation_logits, retain_graph=True)[0]
        assert gradient[good].abs().sum(dim=1).all() and not gradient[~good].any()
        # Where no image has a label, the class head learns from the teacher alone, and so nothing of such a view.
        loss, parts = DistillationObjective(kind, has_labels=False)(outputs, batch, answer)
        gradient = torch.autograd.grad(loss, outputs.cls_logits, retain_graph=True)[0]
        assert parts["class_loss"].isfinite() and gradient[good].any() and not gradient[~good].any()
        loss, parts = objective(outputs, batch, torch.full_like(answer, torch.nan))  # nothing is left
        assert parts["distillation_loss"] == 0 and loss.isfinite()
        assert torch.autograd.grad(loss, outputs.cls_logits, retain_graph=True)[0].isfinite().all()


def test_a_teacher_that_answers_nothing_is_refused_in_any_case(tmp_path, folder_of_teacher):
    teacher = half(folder_of_teacher, "float32")
    silent = AnswersSome(teacher.model, lambda pixels: torch.ones(len(pixels), dtype=torch.bool))
    with pytest.raises(InputError, match="to 96 of 96 views") as error:
        train(tmp_path, Teacher(silent, teacher.description, teacher.input_size), **SKIP)
    assert "on_bad_teacher_answer" not in str(error.value)


def test_a_run_that_was_stopped_goes_on_by_passing_over(tmp_path, folder_of_teacher):
    settings = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "num_train_epochs": 1}
    bad, stores = [19, 37, 38], {"teacher_labels": str(tmp_path / "store")}
    views = views_of(make(tmp_path / "whole", half(folder_of_teacher, "float32")), 0)
    teacher = answering_all_but(folder_of_teacher, views[bad])
    whole = train(tmp_path / "whole", teacher, **settings, **SKIP)
    with pytest.raises(InputError, match=r"to 1 of 8 views.*skip.*--resume_from_checkpoint .*checkpoint-2\)$"):
        train(tmp_path / "run", teacher, unchecked=True, **settings, **stores)
    store = TeacherLabelStore.open(tmp_path / "store", readonly=True)
    assert np.flatnonzero(store.epoch(0).codes >= -1).tolist() == [*range(16)]  # what the checkpoint has learnt
    trainer = make(tmp_path / "run", teacher, **settings, **stores, **SKIP)
    trainer.train(resume_from_checkpoint=True)
    assert_same(result_of(trainer), result_of(whole))
    assert counted(trainer) == counted(whole) == trainer.run_facts().num_unanswered == len(bad)
    assert np.flatnonzero(TeacherLabelStore.open(tmp_path / "store").epoch(0).codes == NO_ANSWER).tolist() == bad


# Kept labels


def test_finite_logits_of_any_size_are_kept_and_learnt_from(tmp_path, folder_of_teacher):
    huge = half(folder_of_teacher, "float32")
    settings = {"distillation_type": "soft", "num_train_epochs": 1, "logging_steps": 3}
    live = train(tmp_path / "live", huge, **settings)
    assert (huge(views_of(live, 0)).abs().amax(dim=1) > 65_504).any()
    stores = {"teacher_labels": str(tmp_path / "store"), "teacher_labels_top_k": 9}
    recording = train(tmp_path / "record", huge, **settings, **stores)
    assert recording.label_report.unanswered == 0 and recording.label_report.asked == VIEWS
    replay = train(tmp_path / "replay", None, **settings, **stores)
    assert_same(result_of(replay), result_of(recording))
    for one, other in zip(result_of(live)["logs"], result_of(recording)["logs"], strict=True):
        assert other["distillation_loss"] == pytest.approx(one["distillation_loss"], rel=1e-3)


def test_a_store_gets_no_label_of_a_run_that_stops(tmp_path, folder_of_teacher):
    stores = {"teacher_labels": str(tmp_path / "store"), "teacher_labels_top_k": 3}
    settings = {"unchecked": True, "logging_steps": 500, "num_train_epochs": 1}
    with pytest.raises(InputError, match=r"with other --teacher_labels, as those in .* are of this one") as error:
        trainer = make(tmp_path / "run", half(folder_of_teacher), **settings, **stores)
        trainer.train()
    assert "diverge" not in str(error.value)
    bad = unanswered_views(trainer)[0]
    store = TeacherLabelStore.open(tmp_path / "store", readonly=True)
    assert store.complete_epochs == [] and store.epoch(0).absent().tolist() == bad
    assert np.isfinite(store.epoch(0).columns["top_logits"]).all()


def test_an_answer_that_differs_from_the_kept_one_is_a_disagreement(tmp_path, folder_of_teacher):
    description = describe_teacher(folder_of_teacher, student_processor=tiny.processor(), dtype="float16")
    stores = {"teacher_labels": str(tmp_path / "store"), "num_train_epochs": 1, **SKIP}
    recording = train(tmp_path / "record", description, **stores)
    verifying = train(tmp_path / "verify", half(folder_of_teacher), verify_teacher_labels=1.0, **stores)
    assert verifying.label_report.agreeing == verifying.label_report.verified == VIEWS
    assert recording.label_report.unanswered == counted(verifying)


@pytest.fixture
def command(tmp_path, folder_of_teacher) -> list[str]:
    """Arguments for 64 images of digits and a teacher that overflows on some."""
    for split, data in zip(("train", "validation"), tiny.digits(64, 10), strict=True):
        for index, row in enumerate(data):
            path = tmp_path / split / str(row["label"]) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(path)
    folders = ["--train_dir", str(tmp_path / "train"), "--validation_dir", str(tmp_path / "validation")]
    teacher = ["--teacher_model_name_or_path", folder_of_teacher, "--teacher_dtype", "float16"]
    return ["--recipe", "debug", "--use_cpu", "true", "--disable_tqdm", "true", *folders, *teacher]


def test_labelling_stops_with_the_images_or_counts(tmp_path, command, capsys):
    command += ["--teacher_labels", str(tmp_path / "labels"), "--epochs", "0:1"]
    label = main_of("label")
    assert label(command) == 2
    error = capsys.readouterr().err
    assert "not finite" in error and f"{tmp_path / 'train'}/" in error and "--teacher_dtype float32" in error
    assert label([*command, "--on_bad_teacher_answer", "skip"]) == 0
    printed = capsys.readouterr().out
    unanswered = int(re.search(r"of which (\d+) have no answer", printed)[1])
    store = TeacherLabelStore.open(tmp_path / "labels", readonly=True)
    assert store.complete_epochs == [0] and store.epoch(0).num_unanswered() == unanswered > 0


def test_the_command_stops_in_one_line_or_tells_how_many(tmp_path, command, capsys):
    command += ["--save_strategy", "no"]
    run = main_of("train")
    assert run([*command, "--output_dir", str(tmp_path / "stop")]) == 2
    assert len(re.findall(r"^error: .*--teacher_dtype float32.*$", capsys.readouterr().err, re.MULTILINE)) == 1
    folder = tmp_path / "skip"
    assert run([*command, "--output_dir", str(folder), "--on_bad_teacher_answer", "skip"]) == 0
    number = re.search(r"^views without an answer +(\d+)$", capsys.readouterr().out, re.MULTILINE)[1]
    assert (
        f"| views without an answer | {number}, which the teacher's term passed over |"
        in (folder / "README.md").read_text()
    )
    assert "on_bad_teacher_answer: skip" in (folder / "recipe.yaml").read_text()
    logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert sum(line.get("unanswered_views", 0) for line in logs) == int(number)
