"""Contract: how long a run is. `min_train_steps` adds whole epochs to those that are stated, everywhere alike, and
`early_stopping_patience` ends a run where transformers' rule ends it, also one that was killed and goes on."""

import itertools
import json

import pytest
import torch
from support import tiny
from support.main_of import main_of
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from hf_deit.errors import InputError
from hf_deit.recipes import load_recorded
from hf_deit.recipes.resolve import resolve_arguments
from hf_deit.training.datasets import make_sampler
from hf_deit.training.early_stopping import early_end, evaluations_without_gain
from hf_deit.training.label_source import views_needed
from hf_deit.training.overview import describe_run
from hf_deit.training.pace import num_epochs, num_steps, with_pace

BEST = {"load_best_model_at_end": True, "metric_for_best_model": "top1", "distillation_type": "none"}
EVERY_2 = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


# At least so many steps


@pytest.mark.parametrize(
    ("stated", "least", "steps_per_epoch", "epochs", "steps"),
    [
        (3, 0, 7, 3, 21),
        (3, 21, 7, 3, 21),
        (3, 22, 7, 4, 28),
        (0.5, 4, 7, 0.5, 4),  # as many as it has
        (0.5, 5, 7, 1, 7),
        (2, 1000, 1, 1000, 1000),
        (100, 1000, 3, 334, 1002),
    ],
)
def test_epochs_are_raised_to_whole_ones(tmp_path, stated, least, steps_per_epoch, epochs, steps):
    args = tiny.arguments(tmp_path, max_steps=-1, num_train_epochs=stated, min_train_steps=least)
    assert num_epochs(args, steps_per_epoch) == epochs
    assert num_steps(args, steps_per_epoch) == steps
    args = tiny.arguments(tmp_path, max_steps=5, num_train_epochs=stated, min_train_steps=least)
    assert num_steps(args, steps_per_epoch) == 5


def test_all_of_a_run_follows_the_least_number_of_steps(tmp_path, monkeypatch):
    settings = {"max_steps": -1, "num_train_epochs": 0.5, "min_train_steps": 13, "warmup_epochs": 0.25}
    args = tiny.arguments(tmp_path, distillation_type="none", logging_steps=0, **settings)
    trainer = tiny.trainer(tiny.student(), args)  # of 96 images 12 steps an epoch
    assert args.num_train_epochs == 0.5  # a recipe keeps what was stated
    needed = views_needed(args, make_sampler(trainer.train_dataset, args))
    assert needed == views_needed(trainer.args, make_sampler(trainer.train_dataset, args)) == {0: 96, 1: 96}
    assert with_pace(args, 12).logging_steps == 2 == trainer.args.logging_steps
    trainer.train()
    assert (trainer.state.global_step, trainer.state.max_steps) == (24, 24)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(args.min_learning_rate)  # the cosine's end
    text = " ".join(describe_run(trainer).text().split())
    assert "24 (2 epochs of 12 instead of 0.5, for the 13 steps of min_train_steps)" in text


def test_a_run_of_the_least_number_of_steps_goes_on(tmp_path):
    def make():
        settings = {"max_steps": -1, "num_train_epochs": 0.5, "min_train_steps": 13, "distillation_type": "none"}
        return tiny.trainer(tiny.student(), tiny.arguments(tmp_path, save_strategy="steps", save_steps=7, **settings))

    whole, resumed = make(), make()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-14"))
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


# An early end


@pytest.mark.parametrize("greater", [True, False])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_the_rule_is_that_of_transformers(tmp_path, greater, patience):
    args = tiny.arguments(
        tmp_path, **EVERY_2, **BEST | {"greater_is_better": greater}, early_stopping_patience=patience
    )
    for values in itertools.product((0.1, 0.2, 0.3), repeat=5):
        its, state, log = EarlyStoppingCallback(patience), TrainerState(), []
        for value in values:
            control = TrainerControl()
            its.on_evaluate(args, state, control, {"eval_top1": value})
            is_better = state.best_metric is None or (
                value > state.best_metric if greater else value < state.best_metric
            )
            state.best_metric = value if is_better else state.best_metric  # as the Trainer does behind it
            log += [{"eval_top1": value, "step": len(log) + 1}, {"loss": 1.0, "step": len(log) + 1}]
            assert evaluations_without_gain(args, log) == its.early_stopping_patience_counter
            assert control.should_training_stop == (evaluations_without_gain(args, log) >= patience)
    assert evaluations_without_gain(args, [{"eval_top1": 1.0, "step": 0}, *log]) == its.early_stopping_patience_counter


def stopping(folder, patience=2, **settings):
    """A run that cannot get better: nothing is learnt."""
    args = tiny.arguments(
        folder,
        max_steps=20,
        learning_rate=1e-12,
        min_learning_rate=0.0,
        warmup_learning_rate=0.0,
        early_stopping_patience=patience,
        **EVERY_2,
        **BEST,
        **settings,
    )
    return tiny.trainer(tiny.student(), args)


@pytest.mark.parametrize("from_step", [2, 4, 6])
def test_a_run_stops_where_it_would_have_stopped_if_it_was_killed(tmp_path, from_step):
    whole = stopping(tmp_path)
    text = " ".join(describe_run_at_start(whole).split())
    assert "steps at most 20 (" in text and "the run ends when 2 evaluations brought nothing" in text
    assert "time at most " in text
    whole.train()
    assert whole.state.global_step == 6  # the best is the first, after 2 steps
    said = early_end(whole.args, whole.state)
    assert said.startswith("stopped early, after step 6 of at most 20: 2 evaluations in a row were no better by top1")
    assert f"than {whole.state.best_metric:.4f}, after step 2" in said
    steps_before = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    resumed = stopping(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{from_step}"))
    assert resumed.state.global_step == 6 and early_end(resumed.args, resumed.state) == said
    assert resumed.state.best_global_step == 2
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == steps_before


def describe_run_at_start(trainer) -> str:
    trainer.state.max_steps = 20
    return describe_run(trainer, seconds=100.0).text()


def test_more_patience_lets_a_run_go_on_that_has_stopped(tmp_path):
    stopping(tmp_path).train()
    patient = stopping(tmp_path, patience=4)
    patient.train(resume_from_checkpoint=True)
    assert patient.state.global_step == 10
    endless = stopping(tmp_path, patience=None)
    endless.train(resume_from_checkpoint=True)
    assert endless.state.global_step == 20 and early_end(endless.args, endless.state) is None


def test_a_run_that_gets_to_its_end_has_not_stopped_early(tmp_path):
    trainer = stopping(tmp_path, patience=9)  # at its last evaluation
    trainer.train()
    assert trainer.state.global_step == 20 and early_end(trainer.args, trainer.state) is None


@pytest.mark.parametrize(
    "missing",
    [
        {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False},
        {"load_best_model_at_end": False},
    ],
)
def test_without_evaluations_or_a_best_checkpoint_it_is_refused(tmp_path, missing):
    with pytest.raises(InputError, match=r"early_stopping_patience .*--load_best_model_at_end true"):
        tiny.arguments(tmp_path, **{**EVERY_2, **BEST, "early_stopping_patience": 3, **missing})


def test_the_command_tells_that_it_stopped_and_when_it_is_taken_up_again(tmp_path, capsys):
    main, folder = main_of("train"), tmp_path / "run"
    line = ["--recipe", "debug", "--distillation_type", "none", "--use_cpu", "true", "--output_dir", str(folder)]
    line += ["--max_steps", "20", "--eval_steps", "2", "--save_steps", "2", "--load_best_model_at_end", "true"]
    line += ["--metric_for_best_model", "top1", "--early_stopping_patience", "1", "--learning_rate", "1e-9"]
    line += ["--min_learning_rate", "0", "--warmup_learning_rate", "0", "--ema_decay", "0"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "The run stopped early, after step 4 of at most 20: one evaluation was no better by top1 than" in said
    assert main([*line, "--resume_from_checkpoint", "true"]) == 0
    assert "The run stopped early, after step 4 of at most 20" in capsys.readouterr().out
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    # A run that is over takes up nothing else that trains otherwise; more patience lets it go on.
    assert main([*line, "--resume_from_checkpoint", "true", "--save_total_limit", "7"]) == 0
    assert load_recorded(folder / "recipe.yaml").get("save_total_limit") is None
    assert main([*line, "--resume_from_checkpoint", "true", "--early_stopping_patience", "2"]) == 0
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 6
    assert load_recorded(folder / "recipe.yaml")["early_stopping_patience"] == 2


def test_labels_of_a_run_that_has_stopped_early_are_replayed(tmp_path, capsys, caplog):
    main = main_of("train")
    line = ["--recipe", "debug", "--use_cpu", "true", "--per_device_train_batch_size", "512", "--ema_decay", "0"]
    line += ["--num_train_epochs", "6", "--eval_strategy", "epoch", "--eval_epochs", "1", "--save_strategy", "epoch"]
    line += ["--load_best_model_at_end", "true", "--metric_for_best_model", "top1", "--learning_rate", "1e-9"]
    line += ["--min_learning_rate", "0", "--warmup_learning_rate", "0", "--teacher_labels", str(tmp_path / "labels")]
    teacher, patience = tiny.teacher_folder(tmp_path / "teacher"), ["--early_stopping_patience", "1"]
    taught = ["--teacher_model_name_or_path", teacher]
    assert main([*line, *patience, *taught, "--output_dir", str(tmp_path / "one")]) == 0
    assert main([*line, *patience, "--teacher_labels_readonly", "true", "--output_dir", str(tmp_path / "two")]) == 0
    assert "lacks views of 4 of them, the first one 2: it suffices if the run stops early" in caplog.text
    one, two = (json.loads((tmp_path / run / "trainer_state.json").read_text()) for run in ("one", "two"))
    assert one["global_step"] == two["global_step"] == one["max_steps"] // 3
    capsys.readouterr()
    assert main([*line, "--teacher_labels_readonly", "true", "--output_dir", str(tmp_path / "three")]) == 2
    assert "lacks views of 4 of them, the first one 2: train for fewer epochs" in capsys.readouterr().err


def test_options_on_top_take_them_out_of_a_recipe(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "base: digits\nmin_train_steps: 500\nearly_stopping_patience: 3\nload_best_model_at_end: true\n"
        "save_steps: 100\nmetric_for_best_model: top1\n"
    )

    def read(*line):
        return resolve_arguments(["--recipe", str(recipe), "--use_cpu", "true", *line]).training

    assert (read().min_train_steps, read().early_stopping_patience) == (500, 3)
    assert read("--max_steps", "5").min_train_steps == 0
    assert read("--load_best_model_at_end", "false").early_stopping_patience is None
    with pytest.raises(InputError, match="early_stopping_patience"):
        resolve_arguments(["--recipe", "digits", "--early_stopping_patience", "3", "--use_cpu", "true"])
