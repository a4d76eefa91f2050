"""Contract: what people type who come from other training scripts leads to the right option.

The common words are aliases on the command line, with the very meaning of the option; all others are refused with the
option's name, or with what to do instead, and never with one that is only spelt alike.
"""

import dataclasses
import re

import pytest

from hf_deit.errors import InputError, did_you_mean
from hf_deit.models.zoo import create_config, list_models
from hf_deit.recipes import ARGUMENT_CLASSES, list_recipes, load_recipe
from hf_deit.recipes.option_names import _FIELDS, _INSTEAD, _MEANT, _NOTES, ALIASES, expand_aliases, meant_by
from hf_deit.recipes.resolve import describe_default_recipe, resolve_arguments

OPTIONS = [field.name for part in ARGUMENT_CLASSES for field in dataclasses.fields(part) if field.init]
TABLE = [(word, option) for option, words in _MEANT.items() for word in words.split()]


def value(name: str, *line: str, recipe: str = "debug") -> object:
    arguments = resolve_arguments(["--recipe", recipe, "--use_cpu", "true", *line])
    return next(getattr(part, name) for part in arguments if hasattr(part, name))


def refusal(*line: str) -> str:
    with pytest.raises(InputError) as error:
        resolve_arguments([*line, "--use_cpu", "true"])
    return str(error.value)


ALIASED = {
    "epochs": ("num_train_epochs", "7", 7.0),
    "batch_size": ("per_device_train_batch_size", "12", 12),
    "lr": ("learning_rate", "0.25", 0.25),
    "min_lr": ("min_learning_rate", "1e-7", 1e-7),
    "warmup_lr": ("warmup_learning_rate", "1e-5", 1e-5),
    "wd": ("weight_decay", "0.125", 0.125),
    "model": ("student", "deit_small_patch16_224", "deit_small_patch16_224"),
    "teacher": ("teacher_model_name_or_path", "someone/some-teacher", "someone/some-teacher"),
    "size": ("image_size", "48", 48),
    "img_size": ("image_size", "48", 48),
    "workers": ("dataloader_num_workers", "3", 3),
    "num_workers": ("dataloader_num_workers", "3", 3),
    "output": ("output_dir", "elsewhere", "elsewhere"),
    "device": ("use_cpu", "cpu", True),
}


def test_all_aliases_are_tested_and_no_option_is_one():
    assert {alias: option for alias, (option, _, _) in ALIASED.items()} == ALIASES
    assert set(ALIASES.values()) <= set(OPTIONS)
    assert not set(ALIASES) & set(OPTIONS)


@pytest.mark.parametrize("alias", ALIASED)
def test_an_alias_is_its_option(alias):
    name, text, expected = ALIASED[alias]
    for line in ([f"--{alias}", text], [f"--{alias}={text}"], [f"--{alias.replace('_', '-')}", text]):
        assert value(name, *line) == expected


def test_an_alias_wins_over_the_recipe_wherever_the_recipe_is_named():
    assert resolve_arguments(["--epochs", "2.5", "--recipe", "digits", "--use_cpu"])[2].num_train_epochs == 2.5


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        (["--epochs", "5", "--num_train_epochs", "7"], ["--epochs", "num_train_epochs", "'5'", "'7'"]),
        (["--num-train-epochs=7", "--epochs=5"], ["--epochs", "num_train_epochs", "'5'", "'7'"]),
        (["--size", "32", "--img-size", "48"], ["--size", "--img_size", "image_size"]),
        (["--device", "cpu", "--use_cpu", "false"], ["--device", "--use_cpu"]),
    ],
)
def test_two_names_with_two_values_are_refused(line, quoted):
    with pytest.raises(InputError) as error:
        resolve_arguments(["--recipe", "debug", *line])
    assert all(word in str(error.value) for word in quoted)


def test_two_names_with_the_same_value_agree():
    assert value("num_train_epochs", "--epochs", "5", "--num-train-epochs", "5") == 5
    assert value("num_train_epochs", "--epochs", "5", "--epochs", "6") == 6  # as for every option, the last one


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "0"])
def test_no_other_device_than_the_cpu_is_chosen_by_name(device):
    assert "CUDA_VISIBLE_DEVICES" in refusal("--device", device)


@pytest.mark.parametrize("line", [["--recipe"], ["--recipe", "--epochs", "3"], ["--recipe="]])
def test_an_option_without_its_value_is_refused(line):
    assert "--recipe needs a name" in refusal(*line)
    assert "--device takes cpu alone, got ''" in refusal("--device")


def test_other_words_of_the_command_line_stay_as_they_are():
    line = ["--recipe", "x y", "--hub_model_id=a/b--c", "stray", "--replace-head", "--seed", "-1"]
    assert expand_aliases(line) == line
    assert expand_aliases(["lr", "0.1", "--lr", "0.2"]) == ["lr", "0.1", "--learning_rate", "0.2"]
    assert value("use_cpu", "--device", "cpu", "--use_cpu") is True


def test_every_word_leads_to_an_option_that_exists():
    assert set(_MEANT) <= {*OPTIONS, "recipe"}
    words = {word: meant_by(word, OPTIONS) for word, _ in TABLE}
    assert [word for word in words if word in OPTIONS or word in ALIASES] == []
    assert [word for word, option in TABLE if not words[word].startswith(f"; did you mean {option!r}?")] == []


def test_a_word_is_in_the_table_once():
    words = [
        *(word for word, _ in TABLE),
        *(word for table in (_INSTEAD, _FIELDS) for words in table.values() for word in words.split()),
        *ALIASES,
    ]
    spelt = [word.replace("_", "") for word in words]
    twice = {word for word in spelt if spelt.count(word) > 1}
    # Spelt alike and meant alike.
    assert not {word for word in twice if len({meant_by(w, ()) for w in words if w.replace("_", "") == word}) > 1}
    assert len(words) == len(set(words))
    assert set(_NOTES) <= set(_MEANT) | set(ALIASES.values())
    assert set(_FIELDS) <= {field.name for name in list_models() for field in dataclasses.fields(create_config(name))}


@pytest.mark.parametrize(
    ("typed", "option"),
    [
        ("num_epochs", "num_train_epochs"),
        ("bs", "per_device_train_batch_size"),
        ("grad-accum-steps", "gradient_accumulation_steps"),
        ("weightDecay", "weight_decay"),
        ("batchsize", "per_device_train_batch_size"),
        ("effective-batch-size", "'total_batch_size'? (a step's views over all devices and accumulation steps)"),
        ("learningRate", "learning_rate"),
        ("teacher-model", "teacher_model_name_or_path"),
        ("arch", "student"),
        ("imgsz", "image_size"),
        ("data-path", "train_dir"),
        ("val_dir", "validation_dir"),
        ("T", "distillation_temperature"),
        ("model-ema-decay", "ema_decay"),
        ("model-ema-warmup", "ema_warmup"),
        ("reprob", "random_erasing"),
        ("dct-scale", "reduced_decoding"),
        ("clip-grad", "max_grad_norm"),
        ("opt", "optim"),
        ("amp", "bf16"),
        ("resume", "resume_from_checkpoint"),
        ("repo_id", "hub_model_id"),
        ("wandb", "report_to"),
        ("drop-path", "drop_path_rate"),
        ("embed_dim", "hidden_size"),
        ("fusion", "student_overrides"),
        ("gpus", "hf-deit launch --num_processes"),
        ("nproc_per_node", "hf-deit launch --num_processes"),
        ("num-classes", "one folder per class"),
        ("patience", "early_stopping_patience"),
        ("eval", "--eval_strategy"),
        ("no_replace_head", "'replace_head'"),
        ("no-mixup-prob", "mixup_probability"),
    ],
)
def test_it_is_said_on_the_command_line_and_in_recipes(tmp_path, typed, option):
    said = refusal("--recipe", "debug", f"--{typed}", "3")
    assert option in said and repr(typed.replace("-", "_")) in said
    (tmp_path / "mine.yaml").write_text(f"{typed.replace('-', '_')}: 3\n")
    with pytest.raises(InputError, match=r"mine\.yaml") as error:
        load_recipe(tmp_path / "mine.yaml")
    assert option in str(error.value)


@pytest.mark.parametrize(
    ("typed", "option"),
    [
        ("epocs", "num_train_epochs"),
        ("batchsise", "per_device_train_batch_size"),
        ("teachr", "teacher_model_name_or_path"),
        ("temprature", "distillation_temperature"),
        ("weight_deacy", "weight_decay"),
        ("no_model_ema", "ema_decay"),
        ("no-repeated-aug", "repeated_augmentation"),
        ("use_ema", "ema_decay"),
        ("enable_amp", "bf16"),
        ("no_mixup", "mixup"),
        ("teacher_size", "teacher_input_size"),
        ("warmup_ratio", "'warmup_steps'? (a number of steps, or below 1 a part of the run)"),
        ("bce-loss", "cross-entropy"),
        ("llrd", "layer_decay"),
        ("test_folder", "test_dir"),
        ("test_set", "test_split"),
        ("eval_only", "hf-deit evaluate"),
        ("dist-bn", "BatchNorm"),
        ("csv", "metadata.csv"),
    ],
)
def test_words_nearly_spelt_negated_or_without_an_option_are_understood(typed, option):
    assert option in refusal("--recipe", "debug", f"--{typed}", "3")


@pytest.mark.parametrize("typed", ["bn_epsi", "folds_x", "gp", "h", "k", "mse_x", "past_index", "lmdbs", "pose"])
def test_nothing_is_suggested_for_what_is_spelt_like_no_option(typed):
    assert refusal("--recipe", "debug", f"--{typed}", "3").endswith(f"no argument {typed!r}")


@pytest.mark.parametrize("alias", ALIASES)
def test_a_recipe_has_the_options_own_names_alone(tmp_path, alias):
    (tmp_path / "mine.yaml").write_text(f"{alias}: 3\n")
    with pytest.raises(InputError, match=f"has no argument {alias!r}; did you mean {ALIASES[alias]!r}"):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("typed", "option"),
    [("-b", "per_device_train_batch_size"), ("-j", "dataloader_num_workers"), ("-o", "output_dir")],
)
def test_letters_are_refused_with_the_options_name(typed, option):
    assert option in refusal("--recipe", "debug", typed, "64")


def test_words_without_dashes_are_refused_with_the_way_to_write_them():
    assert "say --epochs=5" in refusal("--recipe", "debug", "epochs=5", "lr=0.1")


@pytest.mark.parametrize(
    ("option", "typed", "meant"),
    [
        ("distillation_type", "hrd", "hard"),
        ("distillation_type", "Soft", "soft"),
        ("optim", "adamw", "adamw_torch"),
        ("lr_scheduler_type", "cosinus", "cosine"),
        ("eval_strategy", "epochs", "epoch"),
        ("save_strategy", "step", "steps"),
        ("freeze", "heads", "all_but_heads"),
        ("hub_strategy", "every", "every_save"),
        ("report_to", "tensorbord", "tensorboard"),
        ("on_bad_image", "skipped", "skip"),
        ("check_images", "header", "headers"),
    ],
)
def test_a_value_leads_to_the_nearest(option, typed, meant):
    said = refusal("--recipe", "debug", f"--{option}", typed)
    assert f"did you mean {meant!r}" in said and repr(typed) in said and option in said


# Names of other kinds


def test_names_that_have_the_words_come_before_those_spelt_alike():
    zoo = list_models()
    for typed in ("deit_tiny", "deit-tiny", "deit_t", "DeiT-Ti"):
        models = re.findall(r"'(\w+)'", did_you_mean(typed, ["deit", *zoo], most=4))
        assert models == ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]
    for typed, words in (("deit_base_384", ("base", "384")), ("cait_s24", ("cait_s24",)), ("deit_small", ("small",))):
        models = re.findall(r"'(\w+)'", did_you_mean(typed, zoo, most=4))
        assert models and all(word in model for model in models for word in words)
    assert did_you_mean("deit_tiny_destilled_patch16_224", zoo) == (
        "; did you mean 'deit_tiny_distilled_patch16_224'?"
    )
    assert did_you_mean("own", list_recipes()) == "; did you mean 'own_images'?"
    assert did_you_mean("digit", list_recipes()) == "; did you mean 'digits'?"
    assert did_you_mean("valid", ["train", "val", "validation"]) == "; did you mean 'validation'?"
    assert did_you_mean("label", ["image", "fine_label", "labels"]) == "; did you mean 'labels'?"
    assert did_you_mean("384", ["a_3840"], cutoff=0.9) == ""  # a number is whole
    assert did_you_mean("xyz", zoo) == ""


# The recipe of a command line that names none


@pytest.mark.parametrize(
    "line",
    [
        ["--train_dir", "photos"],
        ["--train-dir=photos"],
        ["--dataset_name", "someone/something"],
        ["--unlabeled_dir", "photos"],
        ["--unlabeled_dataset_name=x"],
        ["--validation_dir", "photos"],
        ["--streaming", "true"],
    ],
)
def test_images_take_the_recipe_of_ones_own(line):
    _, data, training = resolve_arguments([*line, "--use_cpu", "true"])
    assert training.output_dir == "outputs/own_images"
    assert data.dataset_name in (None, "someone/something")
    said = describe_default_recipe(line, has_output=True)
    assert "own_images" in said and line[0].split("=")[0].replace("-dir", "_dir") in said and "\n" not in said
    assert "outputs/own_images" in said
    assert "outputs" not in describe_default_recipe(line, has_output=False)


@pytest.mark.parametrize("line", [[], ["--student", "resnet"], ["--labels_kept", "100"], ["--epochs", "3"]])
def test_without_images_it_is_digits(line):
    _, data, training = resolve_arguments([*line, "--use_cpu", "true"])
    assert (data.dataset_name, training.output_dir) == ("sklearn:digits", "outputs/digits")
    assert "digits" in describe_default_recipe(line, has_output=True)


def test_a_recipe_that_is_named_is_taken_without_a_word():
    line = ["--train_dir", "photos", "--recipe", "digits", "--use_cpu", "true"]
    assert resolve_arguments(line)[2].output_dir == "outputs/digits"
    assert describe_default_recipe(line, has_output=True) is None
    assert "outputs" not in describe_default_recipe(["--output", "mine"], has_output=True)
