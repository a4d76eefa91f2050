"""What a person sees of a run: a block before its first step, then aligned lines that fit the screen, often enough."""

import logging
import re
from dataclasses import replace

import pytest
import torch
from support import tiny
from transformers import TrainerCallback

from hf_deit import load_teacher
from hf_deit.hub.facts import LOCAL_CHECKPOINT
from hf_deit.training import estimate, log_table
from hf_deit.training.estimate import estimate_seconds
from hf_deit.training.log_table import columns, duration, evaluation, header, others, row
from hf_deit.training.overview import RunOverview, about, describe_run
from hf_deit.training.pace import with_pace

RUN = {"num_steps": 1320, "num_epochs": 60, "is_distilled": True, "has_two_heads": True, "is_evaluated": True}
LOG = {
    "step": 110,
    "epoch": 5.0,
    "loss": 1.83421,
    "class_loss": 1.90214,
    "distillation_loss": 1.76631,
    "teacher_agreement": 0.40234,
    "grad_norm": 2.2143,
    "learning_rate": 0.00149876,
    "images_per_second": 1039.2,
    "time_left": 127.3,
}
EVALUATION = {
    "eval_loss": 0.61234,
    "eval_top1": 0.972222,
    "eval_top5": 1.0,
    "eval_class_top1": 0.977777,
    "eval_class_top5": 1.0,
    "eval_distillation_top1": 0.966666,
    "eval_distillation_top5": 1.0,
}


# The table


def test_a_line_holds_all_that_matters_in_80_columns():
    shown = columns(**RUN, has_average=True, width=79)
    assert "\n".join([header(shown), row(shown, LOG), row(shown, {**LOG, **EVALUATION})]) == (
        "step  epoch    loss   class  teacher  agree   top-1       lr   img/s      left\n"
        " 110   5.00  1.8342  1.9021   1.7663  0.402          1.5e-03   1,039      2:07\n"
        " 110   5.00  1.8342  1.9021   1.7663  0.402  0.9722  1.5e-03   1,039      2:07"
    )


def test_a_wide_screen_is_used():
    shown = columns(**RUN, width=139)
    assert "\n".join([header(shown), row(shown, {**LOG, **EVALUATION})]) == (
        "step  epoch    loss   class  teacher  agree  val loss   top-1   top-5  class head  dist. head  gradient"
        "       lr   img/s      left\n"
        " 110   5.00  1.8342  1.9021   1.7663  0.402    0.6123  0.9722  1.0000      0.9778      0.9667     2.214"
        "  1.5e-03   1,039      2:07"
    )


def test_a_narrow_screen_keeps_step_loss_accuracy_and_time():
    assert header(columns(**RUN, width=32)).split() == ["step", "loss", "top-1", "left"]
    assert header(columns(**RUN, width=49)).split() == ["step", "epoch", "loss", "top-1", "img/s", "left"]


@pytest.mark.parametrize("width", [20, 59, 79, 99, 119, 139, 199])
@pytest.mark.parametrize("num_steps", [6, 375_300, 12_345_678])
@pytest.mark.parametrize(
    "large", [{}, dict.fromkeys(LOG, 1.0), dict.fromkeys(LOG, 123_456.7), dict.fromkeys(LOG, float("nan"))]
)
def test_lines_fit_and_columns_stand_below_their_titles(width, num_steps, large):
    shown = columns(**{**RUN, "num_steps": num_steps, "num_epochs": 300}, has_average=True, width=width)
    values = {**LOG, **EVALUATION, **large, "step": num_steps, "epoch": 299.99, "time_left": 1e6}
    line = row(shown, values)
    assert len(line) == len(header(shown)) <= width
    ends = [match.end() for match in re.finditer(r"\S+( \S+)*", header(shown))]
    assert all(end == len(line) or line[end] == " " for end in ends)
    assert {"step", "loss", "left"} <= set(header(shown).split()) or width < 30


def test_what_a_run_does_not_have_has_no_column():
    assert "top-5" in header(columns(**RUN, width=200)) and "top-5" not in header(
        columns(**RUN, has_top5=False, width=200)
    )
    alone = {**RUN, "is_distilled": False, "has_two_heads": False}
    titles = [column.title for column in columns(**alone, width=79)]
    assert titles == ["step", "epoch", "loss", "val loss", "top-1", "top-5", "lr", "img/s", "left"]
    unseen = columns(**{**RUN, "is_evaluated": False}, width=200)
    assert not [column for column in unseen if column.key.startswith("eval_")]
    assert "class" in header(columns(**{**alone, "has_two_heads": True}, width=79)).split()


def test_top1_is_that_of_what_is_saved():
    values = {"step": 1, "eval_top1": 0.25, "eval_ema_top1": 0.75}
    shown = columns(**RUN, has_average=True, answers="ema_", width=200)
    cells = dict(
        zip((column.title for column in shown if column.key in values), row(shown, values).split(), strict=True)
    )
    assert cells == {"step": "1", "top-1": "0.7500", "raw": "0.2500"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (247, "4:07"), (3599, "59:59"), (86399, "23:59:59"), (1.05e6, "12d 03h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_what_has_no_column_is_told_below():
    line = {
        **LOG,
        **EVALUATION,
        "eval_runtime": 1.2,
        "eval_samples_per_second": 3.0,
        "skipped_images": 2,
        "eval_f1": 1 / 3,
    }
    assert others(line, width=79) == "  eval_f1 0.3333"
    assert others({**LOG, **EVALUATION, "train_loss": 1.0, "total_flos": 1}, width=79) == ""
    assert evaluation({"step": 6, **EVALUATION, "eval_f1": 0.5}, width=79) == (
        "  evaluated at step 6; val loss 0.6123; top-1 0.9722; top-5 1.0000; class head\n"
        "  0.9778; dist. head 0.9667\n"
        "  eval_f1 0.5"
    )


# The block

OVERVIEW = RunOverview(
    learner="student",
    name="deit_tiny_distilled_patch16_224",
    parameters=5_910_800,
    trained_parameters=5_910_800,
    image_size=(224, 224),
    num_classes=3,
    images=[("train", 12_345, 900), ("validation", 360, 360)],
    class_counts={"cat": 500, "dog": 398, "owl": 2},
    teacher="outputs/teacher, right on 0.9722 of 360 validation images",
    views_per_epoch=12_288,
    repeats=3,
    num_steps=2400,
    steps_per_epoch=24,
    device_batch_size=64,
    num_devices=4,
    accumulation=2,
    device="4 x NVIDIA H100, bf16",
    pace="every 50 steps; evaluation every 2 epochs",
    seconds=5000,
)


def test_the_block():
    assert OVERVIEW.text(79) == (
        "  images    train 12,345, of which 900 have labels; validation 360\n"
        '  classes   3, of 2 ("owl") to 500 ("cat") training images\n'
        "  student   deit_tiny_distilled_patch16_224, 5.9 M parameters, 224 x 224 pixels\n"
        "  teacher   outputs/teacher, right on 0.9722 of 360 validation images\n"
        "  views     12,288 an epoch, 3 of each image that is drawn\n"
        "  steps     2,400 (100 epochs of 24), of 512 views (64 on a device x 4 devices\n"
        "            x 2 accumulated)\n"
        "  device    4 x NVIDIA H100, bf16\n"
        "  logs      every 50 steps; evaluation every 2 epochs\n"
        "  time      about 83 min"
    )


def test_the_block_of_a_teachers_run_calls_it_one():
    text = replace(OVERVIEW, learner="teacher", teacher=None, trained_parameters=3000, steps_done=48).text(200)
    assert "student" not in text and text.count("  teacher ") == 1
    assert "5.9 M parameters, of which 3,000 are trained" in text and "(100 epochs of 24), 48 of them done" in text


def test_the_block_of_a_run_that_knows_little():
    little = replace(OVERVIEW, images=[("a stream of", 10**6, 10**6)], class_counts={}, teacher=None, seconds=None)
    assert replace(little, images=[("train", 45, 0)]).text().startswith("  images    train 45, without labels\n")
    text = replace(little, learner="model", steps_per_epoch=None, views_per_epoch=None, pace="").text(79)
    assert "  images    a stream of 1,000,000\n  classes   3\n  model     deit" in text
    assert "none: it learns from labels alone" in text and "views  " not in text and "logs  " not in text
    assert (
        replace(OVERVIEW, class_counts={"a": 7, "b": 7})
        .text()
        .splitlines()[1]
        .endswith("3, of 7 training images each")
    )


@pytest.mark.parametrize("width", [50, 79, 139])
def test_no_line_of_the_block_is_too_long(width):
    assert max(map(len, OVERVIEW.text(width).splitlines())) <= width


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (20, "less than a minute"),
        (80, "about 1 min"),
        (5000, "about 83 min"),
        (9000, "about 2 hours"),
        (3e5, "about 3 days"),
    ],
)
def test_an_estimate_is_no_more_exact_than_it_is(seconds, text):
    assert about(seconds) == text


# How often


def test_a_run_logs_ten_times_and_what_is_given_stays(tmp_path):
    def pace(steps_per_epoch, **settings):
        args = with_pace(tiny.arguments(tmp_path, **{"logging_steps": 0, **settings}), steps_per_epoch)
        return args.logging_steps, args.logging_first_step, args.eval_epochs

    assert pace(3, max_steps=-1, num_train_epochs=100, eval_epochs=0) == (30, True, 5)  # 200 images
    assert pace(3, max_steps=-1, num_train_epochs=4, eval_epochs=0) == (1, True, 1)
    assert pace(1251, max_steps=-1, num_train_epochs=300, eval_epochs=0) == (50, True, 1)
    assert pace(20, max_steps=-1, num_train_epochs=1000, eval_epochs=0) == (50, True, 2)
    assert pace(None, max_steps=6, eval_epochs=0) == (1, True, 1)
    assert pace(None, max_steps=-1, eval_epochs=0) == (50, True, 1)
    assert pace(3, max_steps=-1, num_train_epochs=100, logging_steps=7) == (7, False, 1)
    assert pace(3, max_steps=-1, num_train_epochs=100, eval_epochs=4) == (30, True, 4)


@pytest.fixture(scope="module")
def paced(tmp_path_factory):
    """A run of seven epochs of two steps that evaluates and saves every third."""
    folder = tmp_path_factory.mktemp("paced")
    settings = {"max_steps": -1, "num_train_epochs": 7, "per_device_train_batch_size": 48, "logging_steps": 0}
    settings |= {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_epochs": 3, "distillation_type": "none"}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "top1", "save_total_limit": 9}
    trainer = tiny.trainer(tiny.student(), tiny.arguments(folder, **settings))
    trainer.train()
    return trainer, folder


def test_evaluation_and_checkpoints_wait_for_so_many_epochs_and_for_the_end(paced):
    trainer, folder = paced
    steps = [line["step"] for line in trainer.state.log_history if "eval_top1" in line]
    assert steps == [6, 12, 14]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-14",
        "checkpoint-6",
    ]
    assert len([line for line in trainer.state.log_history if "loss" in line]) >= 10


# A run


def printed(trainer, capsys, columns: int, monkeypatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    trainer.train()
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


@pytest.fixture
def run(tmp_path):
    def make(folder: str = "run", student=None, **settings):
        settings = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 3, "distillation_type": "none"} | settings
        return tiny.trainer(student or tiny.student(), tiny.arguments(tmp_path / folder, **settings))

    return make


@pytest.mark.parametrize("width", [80, 140])
def test_a_run_prints_a_block_and_a_table_and_nothing_else(run, capsys, monkeypatch, width):
    lines = printed(run(), capsys, width, monkeypatch)
    assert max(map(len, lines)) < width and not [line for line in lines if "{" in line or "it/s" in line]
    blank = lines.index("", 1)
    block, (title, *rows) = lines[1:blank], lines[blank + 1 :]
    assert [line.split()[0] for line in block] == (
        ["images", "classes", "model", "teacher", "views", "steps", "device", "logs", "time"]
    )
    assert title.split()[:3] == ["step", "epoch", "loss"] and title.endswith("left")
    assert [line.split()[0] for line in rows] == ["2", "3", "4", "6"]  # logs, an evaluation, and both at once
    assert ("top-5" in title) == (width == 140)


def test_the_line_of_an_evaluation_has_the_losses_too_where_nobody_said_when_to_log(run):
    trainer = run(logging_steps=0, max_steps=60, eval_strategy="steps", eval_steps=25)
    trainer.train()
    steps = {"loss": [], "eval_top1": []}
    for line in trainer.state.log_history:
        for name in steps.keys() & line:
            steps[name].append(line["step"])
    assert steps == {"loss": [1, 6, 12, 18, 24, 25, 30, 36, 42, 48, 50, 54, 60], "eval_top1": [25, 50, 60]}


def test_logs_of_other_callbacks_and_of_other_evaluations_are_told(run, capsys):
    class Mine(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                trainer.log({"mine": 0.25})

    trainer = run()
    trainer.add_callback(Mine())
    trainer.evaluate()
    assert capsys.readouterr().out.startswith("  evaluated at step 0; val loss 2.")
    trainer.train()
    out = capsys.readouterr().out
    assert out.index("\n   2 ") < out.index("\n  mine 0.25\n") < out.index("\n   4 ")


def test_raw_logs_are_those_of_transformers(run, capsys):
    run(log_format="raw").train()
    out = capsys.readouterr().out
    assert out.startswith("{'loss': ") and "'eval_top1'" in out and "images  " not in out


def test_the_title_comes_again_after_a_screen(run, capsys, monkeypatch):
    monkeypatch.setattr(log_table, "_HEADER_EVERY", 3)
    run(logging_steps=1, eval_strategy="no").train()
    assert capsys.readouterr().out.count("step  epoch") == 2


def test_what_is_shown_changes_nothing_that_is_learnt(run):
    """The overview is made of the very run: its estimate may not touch weights, random states or buffers."""
    weights = []
    for folder, log_format in (("shown", "table"), ("raw", "raw")):
        student = tiny.student(drop_path_rate=0.5)
        trainer = run(folder, student, log_format=log_format, horizontal_flip=0.5, mixup=0.8, ema_decay=0.9)
        trainer.train()
        weights.append({**trainer.model.state_dict(), "random": torch.get_rng_state()})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_estimate_leaves_the_student_as_it_is(tmp_path, monkeypatch):
    """A student with BatchNorm and dropout-like randomness of torch's own generator."""
    trainer = tiny.trainer(tiny.resnet(), tiny.arguments(tmp_path, distillation_type="none", eval_strategy="epoch"))
    trainer.state.max_steps, trainer.state.global_step = 60, 12
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random = torch.get_rng_state()
    monkeypatch.setattr(estimate, "_seconds_of_step", lambda trainer: 2.0)
    monkeypatch.setattr(estimate, "_seconds_of_views", lambda trainer: 1.0)
    images = 40 / 8 * 3.0 / 3  # of an evaluation: its images by the speed of a step, forwards alone
    assert estimate_seconds(trainer) == pytest.approx(48 * 3.0 + (1 + 48 / 12) * images)
    monkeypatch.undo()
    assert 0 < estimate_seconds(trainer) < 60
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())

    def full(trainer):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(estimate, "_seconds_of_step", full)
    assert estimate_seconds(trainer) is None


def test_a_run_that_ends_early_leaves_no_row_and_no_bar_behind(run, capsys, monkeypatch):
    class Stop(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    trainer = run(disable_tqdm=False)
    trainer.add_callback(Stop())
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].split()[0] == "4"
    assert "steps" in err and err.endswith("\r")  # the bar, which has taken itself away
    assert logging.getLogger().handlers == handlers


def test_the_block_says_what_the_run_is(tmp_path, tmp_path_factory):
    folder = tiny.fair_teacher_folder(tmp_path_factory.mktemp("teacher"))
    teacher = load_teacher(folder, student_processor=tiny.processor())
    args = tiny.arguments(tmp_path, gradient_accumulation_steps=2, repeated_augmentation=3, bf16=False)
    trainer = tiny.trainer(tiny.student(), args, teacher)
    trainer.state.max_steps, trainer.state.global_step = 6, 2
    trainer.state.compute_steps(args, 6)
    assert "not measured" in describe_run(trainer).teacher
    trainer.check_teacher()
    overview = describe_run(trainer, seconds=1.0)
    train = tiny.digits()[0]["label"]
    assert overview.images == [("train", 96, 96), ("validation", 40, 40)]
    assert overview.class_counts == {str(digit): train.count(digit) for digit in range(10)}
    assert overview.parameters == overview.trained_parameters == 24_244 and overview.image_size == (16, 16)
    top1 = trainer.record.teacher_report["teacher_top1"]
    assert overview.teacher == f"{folder}, right on {top1:.4f} of 40 validation images"
    sizes = {"teacher_top1_at_16": top1, "teacher_top1_at_64x48": 0.975}
    trainer.record.teacher_report = {**trainer.record.teacher_report, **sizes}
    assert describe_run(trainer).teacher.endswith("of 40 validation images at 16 pixels, on 0.9750 at 64x48")
    assert (overview.views_per_epoch, overview.steps_per_epoch, overview.steps_done) == (96, 6, 2)
    assert "(1 epoch of 6), 2 of them done, of 16 views (8 on a device x 2 accumulated)" in overview.text(200)
    assert overview.device.startswith("CPU, ") and overview.device.endswith("float32")
    assert overview.pace == "every 2 steps"
    trainer.record.sources = replace(trainer.sources, student=LOCAL_CHECKPOINT)
    trainer.model.name_or_path = "models/mine"
    assert "  student   models/mine, 24,244 parameters" in describe_run(trainer).text()


def test_a_process_has_one_gpu(tmp_path):
    """With several, transformers would split a batch, and with it groups of views, by DataParallel."""
    args = tiny.arguments(tmp_path)
    args._n_gpu = 4
    assert args.n_gpu == 1 and args.train_batch_size == 8
