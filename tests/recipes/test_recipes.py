"""Contract: a recipe gives the arguments it states, the command line wins, and whatever is not understood is refused.

Values have the type of their argument whichever way they are written, and the resolved recipe gives the same
arguments again.
"""

import dataclasses
import json
import typing
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.integrations import integration_utils

from hf_deit.data.arguments import DataArguments
from hf_deit.errors import InputError
from hf_deit.models.student import load_student
from hf_deit.recipes import list_recipes, load_recipe, resolve
from hf_deit.recipes.resolve import (
    check_same_run,
    published_recipe,
    resolve_arguments,
    resolved_recipe,
    save_recipe,
    take_revisions,
)
from hf_deit.training import hardware
from hf_deit.training.arguments import DistillationTrainingArguments, ModelArguments
from hf_deit.training.reporters import REPORTERS

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


@pytest.fixture
def out(tmp_path) -> list[str]:
    return ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(arguments: list[str]) -> str:
    """The message of an `InputError`; anything else (SystemExit too) fails the test."""
    with pytest.raises(InputError) as error:
        resolve_arguments(arguments)
    return str(error.value)


def values(parts: tuple) -> dict:
    return {field.name: getattr(part, field.name) for part in parts for field in dataclasses.fields(part)}


def test_the_packaged_recipes_are_these():
    assert {"digits", "digits_teacher"} <= set(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_every_packaged_recipe_resolves_to_what_it_says(name, out):
    resolved = values(resolve_arguments(["--recipe", name, *out]))
    for key, stated in load_recipe(name).items():
        if key == "output_dir" or stated is None:  # null gives the default, which other arguments may settle
            continue
        got = getattr(resolved[key], "value", resolved[key])
        if stated == "auto":
            assert (key, type(got)) in [("bf16", bool), ("dataloader_num_workers", int), ("distillation_type", str)]
            continue
        if isinstance(got, float):
            stated = float(stated)
        assert got == (stated or None if key == "auto_augment" else stated), key
        assert type(got) is not str or type(stated) is str, key


def test_without_a_recipe_it_is_digits(out):
    model, data, training = resolve_arguments(out)
    assert isinstance(model, ModelArguments)
    assert isinstance(data, DataArguments)
    assert isinstance(training, DistillationTrainingArguments)
    assert (data.dataset_name, model.teacher_recipe) == ("sklearn:digits", "digits_teacher")
    assert training.distillation_type == "hard"


@pytest.mark.parametrize("form", [["--recipe", "digits_teacher"], ["--recipe=digits_teacher"]])
def test_the_recipe_can_be_named_in_both_forms_and_anywhere(form, out):
    for arguments in ([*form, *out], [*out, *form]):
        model, _, training = resolve_arguments(arguments)
        assert (model.student, training.distillation_type) == ("resnet", "none")


def test_a_recipe_is_a_packaged_name_or_a_file(recipe, out):
    assert resolve_arguments(["--recipe", recipe("train_dir: somewhere\n"), *out])[1].train_dir == "somewhere"


@pytest.mark.parametrize("written", ["0.25", "=0.25"])
def test_the_command_line_wins(recipe, out, written):
    file = recipe("learning_rate: 0.5\nweight_decay: 0.125\nreplace_head: true\n")
    option = ["--learning_rate", "0.25"] if written == "0.25" else ["--learning_rate=0.25"]
    # Before or after --recipe.
    for arguments in (["--recipe", file, *option], [*option, "--recipe", file]):
        model, _, training = resolve_arguments([*arguments, "--replace_head", "false", *out])
        assert (training.learning_rate, training.weight_decay, model.replace_head) == (0.25, 0.125, False)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("learning_rate: 5e-4", "learning_rate", 5e-4),
        ("learning_rate: 5.0e-4", "learning_rate", 5e-4),
        ('learning_rate: "0.5"', "learning_rate", 0.5),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("weight_decay: 0", "weight_decay", 0.0),
        ("repeated_augmentation: 3", "repeated_augmentation", 3),
        ("image_size: 64", "image_size", 64),
        ("image_size: null", "image_size", None),
        ("replace_head: true", "replace_head", True),
        ("replace_head: no", "replace_head", False),
        ("replace_head: 'yes'", "replace_head", True),
        ('auto_augment: ""', "auto_augment", None),
        (
            "student_overrides: {hidden_size: 96, layer: [1, 2]}",
            "student_overrides",
            {"hidden_size": 96, "layer": [1, 2]},
        ),
        ("student_overrides: '{\"drop_path_rate\": 0.1}'", "student_overrides", {"drop_path_rate": 0.1}),
        ("student_overrides: {drop_path_rate: 1e-1}", "student_overrides", {"drop_path_rate": 0.1}),
        (
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {num_cycles: 0.25}",
            "lr_scheduler_kwargs",
            {"num_cycles": 0.25},
        ),
        (
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-5}",
            "lr_scheduler_kwargs",
            {"min_lr": 1e-5},
        ),
        ("validation_split: 'no'", "validation_split", "no"),
        ("train_dir: /a folder/with spaces", "train_dir", "/a folder/with spaces"),
        ("save_strategy: 'no'", "save_strategy", "no"),
        ("auto_augment: null", "auto_augment", None),
    ],
)
def test_values_in_yaml_take_the_type_of_their_argument(recipe, out, line, name, value):
    got = values(resolve_arguments(["--recipe", recipe(f"{line}\n"), *out]))[name]
    got = getattr(got, "value", got)
    assert got == value
    assert type(got) is type(value)


DIGITS = load_recipe("digits")["student_overrides"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], DIGITS),
        (['{"drop_path_rate": 0.1}'], {**DIGITS, "drop_path_rate": 0.1}),  # and not 224 pixels
        (['{"image_size": 48, "hidden_size": 48}'], {**DIGITS, "image_size": 48, "hidden_size": 48}),
        (['{"image_size": null}'], {key: value for key, value in DIGITS.items() if key != "image_size"}),
        (['{"dropout": null}'], DIGITS),  # what is not there
        (["{}"], DIGITS),
        (["null"], None),
        (['{"dropout": 0.5}', '{"dropout": null, "qkv_bias": false}'], {**DIGITS, "qkv_bias": False}),
        (["null", '{"image_size": 48}'], {"image_size": 48}),
    ],
)
@pytest.mark.parametrize("form", ["--student_overrides X", "--student_overrides=X", "--student-overrides X"])
def test_a_mapping_on_the_command_line_is_merged_as_in_a_recipe(files, out, form, given, expected):
    line = [word.replace("X", text) for text in given for word in form.split(" ")]
    model, _, _ = resolve_arguments(["--recipe", "digits", *line, *out])
    assert model.student_overrides == expected
    # The same in files, the last on top, written as YAML and as JSON in a string.
    names = ["digits", *(f"layer{index}.yaml" for index in range(len(given)))]
    for quote in ("", "'"):
        texts = {
            f"layer{index}": f"base: {names[index]}\nstudent_overrides: {quote}{text}{quote}\n"
            for index, text in enumerate(given)
        }
        path = files(mine=f"base: {names[-1]}\n", **texts)
        assert resolve_arguments(["--recipe", path, *out])[0].student_overrides == expected


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("distilation_type", "distillation_type"),
        ("teacher_model_name", "teacher_model_name_or_path"),
        ("dataset_nam", "dataset_name"),
        ("num_epochs", "num_train_epochs"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(recipe, out, misspelt, meant):
    for arguments in (["--recipe", recipe(f"{misspelt}: 3\n")], [f"--{misspelt}", "3"], [f"--{misspelt}=3"]):
        message = refusal([*arguments, *out])
        assert repr(misspelt) in message
        assert f"did you mean {meant!r}" in message


@pytest.mark.parametrize("text", ["5: 3\n", "on: 3\n", "2024-01-01: 3\n"])
def test_a_key_that_is_no_word_is_refused(recipe, out, text):
    assert "no argument" in refusal(["--recipe", recipe(text), *out])


@pytest.mark.parametrize("abbreviation", ["--learning", "--student_over", "--teacher_rev", "--num_train"])
def test_abbreviations_are_refused(out, abbreviation):
    assert repr(abbreviation[2:]) in refusal([abbreviation, "3", *out])


@pytest.mark.parametrize("stray", [["digits"], ["--learning_rate", "0.1", "0.2"], ["-x"]])
def test_stray_words_are_refused(out, stray):
    assert stray[-1] in refusal([*out, *stray])


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        ("learning_rate: fast", "fast"),
        ("learning_rate: [1, 2]", "learning_rate"),
        ("learning_rate: {a: 1}", "learning_rate"),
        ("image_size: 1.5", "1.5"),
        ("num_train_epochs: many", "many"),
        ("replace_head: maybe", "maybe"),
        ("student_overrides: 3", "student_overrides"),
        ("student_overrides: [1]", "student_overrides"),
        ("student_overrides: '{\"a\": '", "student_overrides"),
        ("lr_scheduler_type: wavy", "wavy"),
        ("optim: guess", "guess"),
        ("eval_strategy: sometimes", "sometimes"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(recipe, out, line, quoted):
    assert quoted in refusal(["--recipe", recipe(f"{line}\n"), *out])
    name, value = line.split(": ", maxsplit=1)
    if value[0] not in "[{'":
        assert quoted in refusal([f"--{name}", value, *out])


def test_an_option_without_its_value_is_refused(out):
    assert "learning_rate" in refusal([*out, "--learning_rate"])
    assert "recipe" in refusal([*out, "--recipe"])


@pytest.mark.parametrize("name", ["digit", "digits.yml", "no_such_folder/recipe.yaml"])
def test_an_unknown_recipe_is_refused(out, name):
    message = refusal(["--recipe", name, *out])
    assert repr(name) in message
    assert all(known in message for known in list_recipes())


def test_a_folder_is_no_recipe(tmp_path, out):
    assert "no recipe" in refusal(["--recipe", str(tmp_path), *out])


def test_a_near_miss_of_a_recipe_names_it():
    with pytest.raises(InputError, match="did you mean 'digits_teacher'"):
        load_recipe("digit_teacher")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", "no YAML"),
        ("a: b: c\n", "no YAML"),
        ("- learning_rate\n", "mapping"),
        ("", "mapping"),
        ("word", "mapping"),
    ],
)
def test_what_is_no_mapping_is_no_recipe(recipe, text, said):
    path = recipe(text)
    with pytest.raises(InputError, match=said) as error:
        load_recipe(path)
    assert path in str(error.value)


def test_a_binary_file_is_no_recipe(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError):
        load_recipe(str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(
    ("name", "choices", "wrong"),
    [
        ("distillation_type", {"hard", "soft", "none"}, "warm"),
        ("distillation_reduction", {"batchmean", "numel"}, "mean"),
        ("on_bad_image", {"stop", "skip"}, "ignore"),
        ("check_images", {"all", "headers", "none"}, "some"),
        ("on_bad_teacher_answer", {"stop", "skip"}, "nan"),
        ("schedule_per", {"step", "epoch"}, "batch"),
    ],
)
def test_choices_are_enforced(tmp_path, recipe, out, name, choices, wrong):
    assert set(typing.get_args(typing.get_type_hints(DistillationTrainingArguments)[name])) == choices
    for choice in choices:
        assert getattr(resolve_arguments([f"--{name}", choice, *out])[2], name) == choice
    for message in (refusal([f"--{name}", wrong, *out]), refusal(["--recipe", recipe(f"{name}: {wrong}\n"), *out])):
        assert wrong in message
        assert all(choice in message for choice in choices)
    with pytest.raises(InputError, match=name):  # from Python, where no parser checks
        DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: wrong})


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("distillation_alpha", (0.0, 1.0), (-0.1, 1.1, float("nan"))),
        ("distillation_temperature", (0.1, 20.0), (0.0, -1.0, float("nan"))),
        ("label_smoothing_factor", (0.0, 0.99), (-0.1, 1.0)),
        ("crop_scale_min", (0.01, 1.0), (0.0, -0.5, 1.01)),
        ("horizontal_flip", (0.0, 1.0), (-0.1, 1.5)),
        ("repeated_augmentation", (1, 3), (0, -1)),
        ("random_erasing", (0.0, 1.0), (-0.1, 1.1, float("nan"))),
        ("mixup", (0.0, 20.0), (-0.1, float("nan"))),
        ("cutmix", (0.0, 20.0), (-0.1, float("nan"))),
        ("mixup_probability", (0.0, 1.0), (-0.1, 1.1, float("nan"))),
        ("mixup_switch_probability", (0.0, 1.0), (-0.1, 1.1, float("nan"))),
        ("ema_decay", (0.0, 0.99996), (-0.1, 1.0, float("nan"))),
        ("warmup_epochs", (0.0, 2.5), (-1.0, float("nan"))),
        ("warmup_learning_rate", (0.0, 0.1), (-0.1, float("nan"))),
        ("min_learning_rate", (0.0, 5e-4), (-0.1, float("nan"))),
        ("learning_rate", (1e-5, 1.0), (-0.1, float("nan"))),
        ("weight_decay", (0.0, 0.3), (-0.1, float("nan"))),
        ("num_train_epochs", (0.5, 300.0), (0.0, -1.0, float("nan"))),
        ("per_device_train_batch_size", (2,), (0, -8)),
        ("per_device_eval_batch_size", (1, 64), (0, -8)),
        ("gradient_accumulation_steps", (1, 4), (0, -1)),
    ],
)
def test_ranges_are_enforced(tmp_path, out, name, inside, outside):
    for value in inside:
        args = DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})
        assert getattr(args, name) == value
    for value in outside:
        with pytest.raises(InputError, match=f"{name}.*{value}"):
            DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})
        assert name in refusal([f"--{name}={value}", *out])


@pytest.mark.parametrize("name", ["remove_unused_columns", "logging_nan_inf_filter"])
def test_what_must_stay_false_must(tmp_path, name):
    with pytest.raises(InputError, match=name):
        DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: True})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "digits"],
        ["--recipe", "digits_teacher"],
        [
            *("--learning_rate", "5e-4", "--num_train_epochs", "2.5", "--distillation_type", "soft"),
            *("--distillation_alpha", "0.1", "--lr_scheduler_type", "cosine_with_min_lr"),
            *("--lr_scheduler_kwargs", '{"min_lr": 1e-05}', "--student_overrides", '{"drop_path_rate": 0.1}'),
            *("--replace_head", "true", "--validation_fraction", "0.25", "--seed", "7", "--data_seed", "3"),
            *("--student", "./a folder: with a colon", "--train_split", "no", "--label_column_name", "5e-4"),
            *("--report_to", "none", "--eval_strategy", "steps", "--eval_steps", "10", "--save_steps", "10"),
        ],
    ],
    ids=["digits", "digits_teacher", "many"],
)
def test_the_resolved_recipe_gives_the_same_arguments(tmp_path, out, arguments):
    before = resolve_arguments([*arguments, *out])
    path = str(tmp_path / "recipe.yaml")
    save_recipe(before, path)
    after = resolve_arguments(["--recipe", path, *out])
    assert {name: repr(value) for name, value in values(before).items()} == {
        name: repr(value) for name, value in values(after).items()
    }


def test_the_resolved_recipe_holds_neither_the_output_folder_nor_secrets(tmp_path, out):
    path = tmp_path / "recipe.yaml"
    arguments = ["--hub_token", "hf_secret", "--resume_from_checkpoint", "true", "--seed", "11", *out]
    save_recipe(resolve_arguments(arguments), str(path))
    text = path.read_text(encoding="utf-8")
    saved = yaml.safe_load(text)
    assert saved["seed"] == 11
    assert not {"output_dir", "hub_token", "resume_from_checkpoint"} & set(saved)
    assert "hf_secret" not in text
    assert str(tmp_path) not in text


def test_the_resolved_recipe_keeps_an_argument_that_is_none(tmp_path, out):
    model, data, training = resolve_arguments(out)
    training.auto_augment = None
    path = str(tmp_path / "recipe.yaml")
    save_recipe((model, data, training), path)
    assert not resolve_arguments(["--recipe", path, *out])[2].auto_augment


# A recipe on top of another


@pytest.fixture
def files(tmp_path):
    """Writes recipes beside each other (or in subfolders) and gives the path of the first."""

    def write(**texts: str) -> str:
        paths = [tmp_path / f"{name.replace('__', '/')}.yaml" for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return str(paths[0])

    return write


def test_a_base_is_merged_key_by_key_where_both_are_mappings_and_replaced_elsewhere(files):
    path = files(
        mine="""
            base: theirs.yaml
            student_overrides: {drop_path_rate: 0.2, hidden_sizes: [8]}
            lr_scheduler_kwargs: {num_cycles: 2}
            report_to: [none]
            learning_rate: 0.25
            teacher_recipe: null
            accelerator_config: null
        """,
        theirs="""
            student_overrides: {drop_path_rate: 0.1, hidden_size: 96, hidden_sizes: [1, 2, 3]}
            lr_scheduler_kwargs: null
            report_to: [wandb, tensorboard]
            learning_rate: 0.5
            weight_decay: 0.125
            teacher_recipe: debug_teacher
            accelerator_config: {even_batches: true}
        """,
    )
    assert load_recipe(path) == {
        "student_overrides": {"drop_path_rate": 0.2, "hidden_size": 96, "hidden_sizes": [8]},
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "report_to": ["none"],
        "learning_rate": 0.25,
        "weight_decay": 0.125,
        "teacher_recipe": None,
        "accelerator_config": None,
    }


def test_null_removes_a_key_of_any_mapping(files, out):
    theirs = """
        lr_scheduler_type: cosine_with_min_lr
        lr_scheduler_kwargs: {min_lr: 0.25, num_cycles: 2}
        accelerator_config: {even_batches: false, non_blocking: true}
        activation_checkpointing_kwargs: {use_reentrant: true}
    """
    mine = """
        base: theirs.yaml
        lr_scheduler_kwargs: {num_cycles: null}
        accelerator_config: {even_batches: null}
        activation_checkpointing_kwargs: {use_reentrant: null}
    """
    written = load_recipe(files(mine=mine, theirs=theirs))
    assert written["lr_scheduler_kwargs"] == {"min_lr": 0.25}
    assert written["accelerator_config"] == {"non_blocking": True}
    assert written["activation_checkpointing_kwargs"] == {}
    options = ("lr_scheduler_kwargs", '{"min_lr": null, "num_cycles": 3}'), ("accelerator_config", '{"x": null}')
    line = [word for name, text in options for word in (f"--{name}", text)]
    training = resolve_arguments(["--recipe", files(mine=mine, theirs=theirs), *line, *out])[2]
    assert training.lr_scheduler_kwargs == {"num_cycles": 3}
    assert (training.accelerator_config.even_batches, training.accelerator_config.non_blocking) == (True, True)
    assert not training.activation_checkpointing_kwargs


def test_a_mapping_in_a_file_of_its_own_is_taken_as_it_is(files, tmp_path, out):
    (tmp_path / "own.json").write_text('{"even_batches": false}')
    path = files(mine=f"accelerator_config: {tmp_path}/own.json\n")
    for arguments in (["--recipe", path], ["--accelerator_config", f"{tmp_path}/own.json"]):
        assert resolve_arguments([*arguments, *out])[2].accelerator_config.even_batches is False


# Overrides of another student


@pytest.fixture
def resnet_folder(tmp_path):
    ResNetForImageClassification(ResNetConfig(**RESNET)).save_pretrained(tmp_path / "a resnet")
    return str(tmp_path / "a resnet")


def lines(records) -> list[str]:
    return [record.getMessage() for record in records if "left out" in record.getMessage()]


@pytest.mark.parametrize("new", ["resnet", "folder"])
def test_what_the_base_gives_and_a_new_student_has_not_is_left_out_with_a_line(files, resnet_folder, caplog, out, new):
    student = resnet_folder if new == "folder" else new
    mine = f"base: own_images\nstudent: {student}\n"
    for arguments in (
        ["--recipe", files(mine=mine)],
        ["--recipe", "own_images", "--student", student],
        ["--recipe", "own_images", "--student", student, "--student_overrides", "{}"],
        ["--recipe", files(mine=f"{mine}seed: 3\n", theirs=""), "--student_overrides", "{}"],
    ):
        caplog.clear()
        assert resolve_arguments([*arguments, *out])[0].student_overrides is None
        assert len(lines(caplog.records)) == 1
        assert "drop_path_rate is left out" in caplog.text
        assert student in caplog.text


def test_one_process_looks_and_says_so_for_all(out, caplog, monkeypatch):
    """As the others find it: what the main process has found out."""
    monkeypatch.setattr(resolve, "on_main_process", lambda function: ["drop_path_rate"])
    arguments = ["--recipe", "own_images", "--student", "resnet", *out]
    assert resolve_arguments(arguments)[0].student_overrides is None
    assert not lines(caplog.records)


def test_what_the_new_student_has_stays(files, caplog, out):
    deits = ["--recipe", "digits", "--student", "deit_tiny_patch16_224"]
    assert resolve_arguments([*deits, *out])[0].student_overrides == DIGITS
    resnet = "student: resnet\nstudent_overrides: {hidden_sizes: [8, 16], depths: [1, 1]}\n"
    arguments = ["--recipe", files(mine=f"base: digits\n{resnet}"), "--student_overrides", '{"embedding_size": 8}']
    expected = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}
    model, _, _ = resolve_arguments([*arguments, *out])
    assert model.student_overrides == expected
    assert "--image_size 32" in caplog.text  # the recipe's size is no field, and what gives it is said


def test_what_is_given_to_the_student_itself_stays_to_be_refused(files, caplog, out):
    """By whoever makes the student, as ever."""
    wrong = {"drop_path_rate": 0.3}
    for arguments in (
        ["--recipe", files(a="base: own_images\nstudent: resnet\nstudent_overrides: {drop_path_rate: 0.3}\n")],
        ["--recipe", "own_images", "--student", "resnet", "--student_overrides", '{"drop_path_rate": 0.3}'],
        ["--recipe", files(b="student: resnet\nstudent_overrides: {drop_path_rate: 0.3}\n")],
        [
            "--recipe",
            files(c="base: b.yaml\nseed: 3\n", b="student: resnet\nstudent_overrides: {drop_path_rate: 0.3}\n"),
        ],
    ):
        assert resolve_arguments([*arguments, *out])[0].student_overrides == wrong
    assert not lines(caplog.records)
    for model_type, message in (("resnet", "'resnet' has no field 'drop_path_rate'"),):
        with pytest.raises(InputError, match=message):
            load_student(model_type, id2label={0: "a", 1: "b"}, overrides=wrong)


def test_a_student_that_cannot_be_looked_up_keeps_all_and_says_why_when_it_is_loaded(out, caplog):
    arguments = ["--recipe", "own_images", "--student", "no/such", *out]
    assert resolve_arguments(arguments)[0].student_overrides == {"drop_path_rate": 0.1}
    assert not lines(caplog.records)


def test_a_run_whose_overrides_were_left_out_is_repeated_and_resumed(files, tmp_path, caplog, out):
    path = str(tmp_path / "recipe.yaml")
    for arguments in (
        ["--recipe", "own_images", "--student", "resnet"],
        ["--recipe", "digits", "--student_overrides", '{"image_size": null, "drop_path_rate": 0.25}'],
        ["--recipe", "digits", "--student_overrides", "null"],
        ["--recipe", "debug", "--accelerator_config", '{"even_batches": false}'],
    ):
        before = resolve_arguments([*arguments, *out])
        save_recipe(before, path)
        caplog.clear()
        after = resolve_arguments(["--recipe", path, *out])
        assert not lines(caplog.records)
        assert {name: repr(value) for name, value in values(before).items()} == {
            name: repr(value) for name, value in values(after).items()
        }
        check_same_run(path, after)
        check_same_run(path, resolve_arguments([*arguments, *out]))
        check_same_run(path, resolve_arguments(["--recipe", path, "--student_overrides", "{}", *out]))
        with pytest.raises(InputError, match="student_overrides"):
            check_same_run(path, resolve_arguments([*arguments, "--student_overrides", '{"depths": [2]}', *out]))


def test_a_recipe_of_an_earlier_version_may_have_no_overrides_as_an_empty_mapping(tmp_path, out):
    """So it recorded `--student_overrides '{}'`, which took the recipe's away."""
    command = ["--recipe", "own_images", "--student", "resnet", "--student_overrides", "{}", *out]
    path = tmp_path / "recipe.yaml"
    save_recipe(resolve_arguments(command), path)
    path.write_text(path.read_text() + "student_overrides: {}\n")
    for again in (command, ["--recipe", str(path), *out]):
        check_same_run(str(path), resolve_arguments(again))
        check_same_run(load_recipe(path), resolve_arguments([*again, "--resume_from_hub", "ada/x"]))


def test_a_base_may_be_a_packaged_recipe(files, out):
    path = files(mine="base: debug\nseed: 11\nstudent_overrides: {hidden_size: 64}\n")
    mine, debug = (values(resolve_arguments(["--recipe", name, *out])) for name in (path, "debug"))
    different = {name for name in mine if repr(mine[name]) != repr(debug[name])}
    assert different == {"seed", "student_overrides"}
    assert mine["seed"] == 11
    assert mine["student_overrides"] == {**debug["student_overrides"], "hidden_size": 64}


def test_bases_stand_on_bases_and_the_nearest_wins(files):
    path = files(
        a="base: b.yaml\nseed: 1\nstudent_overrides: {hidden_size: 1}\n",
        b="base: c.yaml\nseed: 2\nmax_steps: 2\nstudent_overrides: {patch_size: 2, hidden_size: 2}\n",
        c="seed: 3\nmax_steps: 3\nsave_steps: 3\nstudent_overrides: {image_size: 3, patch_size: 3}\n",
    )
    overrides = {"hidden_size": 1, "patch_size": 2, "image_size": 3}
    assert load_recipe(path) == {"seed": 1, "max_steps": 2, "save_steps": 3, "student_overrides": overrides}


@pytest.mark.parametrize("base", ["theirs.yaml", "./theirs.yaml", "../common/theirs.yaml"])
def test_a_base_is_looked_for_beside_its_recipe_and_not_where_the_run_starts(files, tmp_path, monkeypatch, base):
    files(common__mine=f"base: {base}\n", common__theirs="seed: 11\n", elsewhere__theirs="seed: 12\n")
    for start, path in (
        ("elsewhere", str(tmp_path / "common" / "mine.yaml")),
        ("elsewhere", "../common/mine.yaml"),
        ("common", "mine.yaml"),
    ):
        monkeypatch.chdir(tmp_path / start)
        assert load_recipe(path) == {"seed": 11}


def test_a_base_may_have_an_absolute_path(files, tmp_path):
    path = files(mine=f"base: {tmp_path}/folder/theirs.yaml\n", folder__theirs="seed: 11\n")
    assert load_recipe(path) == {"seed": 11}


def test_the_command_line_wins_over_a_base(files, out):
    path = files(mine="base: theirs.yaml\n", theirs="seed: 11\nmax_steps: 3\n")
    training = resolve_arguments(["--recipe", path, "--seed", "12", *out])[2]
    assert (training.seed, training.max_steps) == (12, 3)


@pytest.mark.parametrize("start", ["", "./", "../folder/"])
def test_bases_that_go_in_a_circle_are_refused_and_named(files, start):
    """However their paths are spelt."""
    itself = files(folder__mine=f"base: {start}mine.yaml\n")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_recipe(itself)
    three = files(
        folder__a=f"base: {start}b.yaml\n", folder__b=f"base: {start}c.yaml\n", folder__c=f"base: {start}a.yaml\n"
    )
    with pytest.raises(InputError) as error:
        load_recipe(three)
    assert all(f"{name}.yaml" in str(error.value) for name in "abc")


@pytest.mark.parametrize("base", ["3", "true", "[digits]", "{digits: 1}"])
def test_a_base_that_is_no_string_is_refused(files, out, base):
    path = files(mine=f"base: {base}\n")
    message = refusal(["--recipe", path, *out])
    assert "base" in message
    assert path in message


@pytest.mark.parametrize("base", ["deit_bas", "no_such.yaml", "''"])
def test_an_unknown_base_is_refused(files, out, base):
    message = refusal(["--recipe", files(mine=f"base: {base}\n"), *out])
    assert "no recipe" in message
    assert base.strip("'") in message


def test_an_unknown_key_of_a_base_is_refused_with_the_file_it_is_in(files, out):
    path = files(mine="base: theirs.yaml\n", theirs="learning_rat: 3\n")
    message = refusal(["--recipe", path, *out])
    assert "theirs.yaml" in message
    assert "did you mean 'learning_rate'" in message


def test_a_base_is_no_argument_of_the_command_line(out):
    assert "'base'" in refusal(["--base", "digits", *out])


@pytest.mark.parametrize("name", ["digits_few_labels", "deit_base_distilled_384", "table8_no_mixup_no_cutmix", "file"])
def test_the_resolved_recipe_of_a_based_recipe_stands_alone(files, tmp_path, out, name):
    if name == "file":
        name = files(mine="base: theirs.yaml\nseed: 5\n", theirs="base: debug\nstudent_overrides: {patch_size: 4}\n")
    before = resolve_arguments(["--recipe", name, *out])
    folder = tmp_path / "another folder"
    folder.mkdir()
    save_recipe(before, str(folder / "recipe.yaml"))
    assert "base" not in yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    after = resolve_arguments(["--recipe", str(folder / "recipe.yaml"), *out])
    assert {key: repr(value) for key, value in values(before).items()} == {
        key: repr(value) for key, value in values(after).items()
    }


# What must fit together


@pytest.fixture
def training(tmp_path):
    def make(**settings) -> DistillationTrainingArguments:
        return DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)

    return make


@pytest.mark.parametrize(
    ("batch", "group"), [(64, 64), (128, 64), (192, 64), (2, 2), (8, 8), (63, 63), (96, 96), (100, 100)]
)
def test_views_are_mixed_in_groups_of_64_or_else_a_batch(training, batch, group):
    args = training(per_device_train_batch_size=batch)
    assert args.mixup_group_size == group
    assert args.mixing.group_size == group


NO_MIX = {"mixup": 0.0, "cutmix": 0.0}


@pytest.mark.parametrize(
    ("settings", "slots"),
    [
        ({"per_device_train_batch_size": 128}, 64),
        ({"per_device_train_batch_size": 96}, 96),
        ({"per_device_train_batch_size": 96, "mixup_group_size": 32}, 32),
        # Without mixing by no batch.
        ({"per_device_train_batch_size": 96, **NO_MIX}, 64),
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 96, **NO_MIX}, 64),
        ({"per_device_train_batch_size": 96, "mixup_probability": 0.0}, 64),
        ({"per_device_train_batch_size": 128, "repeats_placement": "adjacent"}, 1),
        ({"per_device_train_batch_size": 128, "repeated_augmentation": 1}, 1),
    ],
)
def test_the_views_of_an_image_stand_a_mixing_group_apart(training, settings, slots):
    assert training(**{"repeats_placement": "spread", **settings}).images_per_block == slots


def test_an_unknown_placement_is_refused(training):
    with pytest.raises(InputError, match=r"repeats_placement .*'sprad'"):
        training(repeats_placement="sprad")


@pytest.mark.parametrize(("batch", "group"), [(64, 2), (64, 32), (96, 32), (96, 96)])
def test_a_group_size_that_divides_the_batch_is_taken(training, batch, group):
    args = training(per_device_train_batch_size=batch, mixup_group_size=group)
    assert args.mixing.group_size == group


@pytest.mark.parametrize(("batch", "group"), [(64, 48), (64, 128), (96, 64), (64, 1), (64, 0), (64, -2), (2, 1)])
def test_another_group_size_is_refused(training, batch, group):
    reason = rf"{batch} and mixup_group_size {group}: .*--mixup 0 --cutmix 0"
    if group < 1:
        reason = rf"mixup_group_size must lie in \[1, 2147483648\), got {group}"
    with pytest.raises(InputError, match=reason):
        training(per_device_train_batch_size=batch, mixup_group_size=group)


def test_a_batch_of_one_needs_mixing_switched_off(training, out):
    with pytest.raises(InputError, match="--mixup 0 --cutmix 0"):
        training(per_device_train_batch_size=1)
    for still_mixing in ({"mixup": 0.0}, {"cutmix": 0.0}):
        with pytest.raises(InputError, match="--mixup 0 --cutmix 0"):
            training(per_device_train_batch_size=1, **still_mixing)
    alone = ["--recipe", "own_images", "--per_device_train_batch_size", "1", *out]
    assert "--mixup 0 --cutmix 0" in refusal(alone)
    args = resolve_arguments([*alone, "--mixup", "0", "--cutmix", "0"])[2]
    assert args.mixing is None
    assert training(per_device_train_batch_size=1, mixup_probability=0.0).mixing is None


@pytest.mark.parametrize("written", [["--warmup_steps", "3"], ["--warmup_steps", "0.1"]])
def test_two_lengths_of_the_warm_up_are_refused(out, written):
    """A fraction is one too: transformers takes warmup_steps below 1 as part of the run."""
    message = refusal(["--warmup_epochs", "2", *written, "--recipe", "debug", *out])
    assert "warmup_epochs" in message
    assert "warmup_steps" in message
    assert resolve_arguments(["--recipe", "debug", *written, *out])[2].warmup_steps == float(written[1])
    assert resolve_arguments(["--recipe", "debug", "--warmup_epochs", "2", *out])[2].warmup_epochs == 2


def test_a_learning_rate_below_the_schedules_end_is_refused(training):
    with pytest.raises(InputError, match=r"5e-06 and 1e-05: .*--min_learning_rate"):
        training(learning_rate=5e-6)
    # What counts is the scaled one: 5e-4 · 8 / 512.
    with pytest.raises(InputError, match=r"7\.8125e-06 and 1e-05"):
        training(learning_rate=5e-4, scale_learning_rate=True, per_device_train_batch_size=8)
    assert training(learning_rate=1e-5).learning_rate == 1e-5
    assert training(learning_rate=5e-6, min_learning_rate=5e-6).learning_rate == 5e-6
    assert training(learning_rate=0.0, lr_scheduler_type="constant").learning_rate == 0.0


def test_the_cosine_takes_no_kwargs_and_only_the_cosine_counts_epochs(training):
    with pytest.raises(InputError, match="lr_scheduler_kwargs"):
        training(lr_scheduler_kwargs={"num_cycles": 0.5})
    for settings in ({"schedule_per": "epoch"}, {"warmup_epochs": 5.0}):
        with pytest.raises(InputError, match=r"schedule_per.*warmup_epochs.*'linear'"):
            training(lr_scheduler_type="linear", **settings)
        assert training(**settings).lr_scheduler_type == "cosine"
    other = training(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-5}, warmup_steps=3)
    assert other.lr_scheduler_kwargs == {"min_lr": 1e-5}


def test_publishing_the_moving_average_needs_one(training, out):
    with pytest.raises(InputError, match="--ema_decay"):
        training(publish_weights="ema")
    message = refusal(["--publish_weights", "mean", *out])
    assert all(choice in message for choice in ("mean", "raw", "ema"))
    args = resolve_arguments(["--publish_weights", "ema", "--ema_decay", "0.99", *out])[2]
    assert (args.publish_weights, args.ema_decay) == ("ema", 0.99)


# What depends on the machine


@pytest.mark.parametrize(
    ("settings", "has_bf16", "native", "launched", "expected"),
    [
        ({}, True, True, "no", True),
        ({}, True, True, "bf16", True),
        ({}, False, False, "no", False),
        ({}, True, False, "no", False),  # a GPU that emulates it
        ({"use_cpu": True}, True, True, "no", False),
        ({"fp16": True}, True, True, "no", False),
        ({}, True, True, "fp16", False),
        ({"bf16": True}, False, False, "no", True),
        ({"bf16": False}, True, True, "no", False),
    ],
)
def test_bf16_may_be_taken_where_it_is(monkeypatch, settings, has_bf16, native, launched, expected):
    monkeypatch.setattr(hardware, "is_torch_bf16_gpu_available", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    args = SimpleNamespace(**{"bf16": "auto", "use_cpu": False, "fp16": False, **settings})
    assert hardware.bf16_of(args) is expected


@pytest.mark.parametrize(
    ("given", "processes", "has_accelerator", "launcher", "expected"),
    [
        (False, 1, False, "false", False),  # one process finds its device itself
        (False, 2, False, "false", True),
        (False, 2, True, "false", False),
        (False, 1, True, "true", True),
        (True, 1, True, "false", True),
    ],
)
def test_processes_on_a_cpu_know_that_they_are(monkeypatch, given, processes, has_accelerator, launcher, expected):
    """Accelerate leaves those alone that do not, and each would train for itself."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("ACCELERATE_USE_CPU", launcher)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    assert hardware.use_cpu_of(SimpleNamespace(use_cpu=given)) is expected


@pytest.mark.parametrize(
    ("cores", "processes", "on_gpu", "expected"),
    [(1, 1, True, 1), (8, 1, True, 7), (96, 8, True, 11), (64, 1, True, 16), (2, 1, False, 1), (64, 1, False, 2)],
)
def test_workers_may_be_as_many_as_there_are_cores_for(monkeypatch, cores, processes, on_gpu, expected):
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: on_gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert hardware.num_workers_of(SimpleNamespace(dataloader_num_workers="auto", use_cpu=False)) == expected
    assert hardware.num_workers_of(SimpleNamespace(dataloader_num_workers=14, use_cpu=False)) == 14
    on_cpu = SimpleNamespace(dataloader_num_workers="auto", use_cpu=True)
    assert hardware.num_workers_of(on_cpu) == min(expected, 2)


def test_auto_is_written_in_both_places_and_recorded_as_what_it_was(tmp_path, recipe, out):
    lines = (["--bf16", "auto", "--dataloader_num_workers=auto"], [])
    for line, text in zip(lines, ("seed: 1\n", "bf16: auto\ndataloader_num_workers: auto\n"), strict=True):
        arguments = resolve_arguments(["--recipe", recipe(text), *line, *out])
        assert arguments.training.bf16 is False
        assert 1 <= arguments.training.dataloader_num_workers <= 2
        recorded = resolved_recipe(arguments)
        assert "bf16" not in recorded
        assert recorded["dataloader_num_workers"] == arguments.training.dataloader_num_workers
    for option, wrong in (("bf16", "perhaps"), ("dataloader_num_workers", "some"), ("dataloader_num_workers", "-1")):
        assert wrong in refusal([f"--{option}={wrong}", *out])


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without one, as far as its checks tell."""
    monkeypatch.setattr(hardware, "is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr(hardware, "is_torch_tf32_available", lambda: False)


def test_small_data_trains_in_float32_where_there_is_no_gpu(no_gpu, tmp_path):
    training = resolve_arguments(["--recipe", "small_data", "--output_dir", str(tmp_path), "--use_cpu", "true"])[2]
    assert (training.bf16, training.fp16, training.mixed_precision) == (False, False, "no")
    assert hardware.bf16_of(SimpleNamespace(bf16="auto", use_cpu=False, fp16=False)) is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bf16", "true"], "--bf16 auto"),
        (["--bf16_full_eval", "true"], "bf16_full_eval"),
        (["--tf32", "true"], "leave --tf32 out"),
        (["--fp16", "true", "--use_cpu", "true"], "leave --fp16 out"),
        (["--recipe", "small_data", "--fp16", "true", "--use_cpu", "true"], "leave --fp16 out"),
    ],
)
def test_a_precision_that_is_not_there_is_refused_in_one_line(no_gpu, tmp_path, options, said):
    message = refusal([*options, "--output_dir", str(tmp_path)])
    assert said in message and "\n" not in message


def test_the_launchers_fp16_on_a_cpu_is_refused_too(no_gpu, monkeypatch, out):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert "--mixed_precision fp16 of accelerate launch" in refusal(out)


def test_bf16_on_a_cpu_may_be_asked_for(no_gpu, out):
    assert resolve_arguments(["--bf16", *out])[2].mixed_precision == "bf16"


# Trackers


@pytest.fixture
def installed(monkeypatch):
    """Says which trackers there are."""

    def only(*names: str) -> None:
        for name, (check, _) in REPORTERS.items():
            monkeypatch.setattr(integration_utils, check, lambda name=name: name in names)

    only()
    return only


def test_every_tracker_of_transformers_has_its_check():
    assert set(REPORTERS) == set(integration_utils.INTEGRATION_TO_CALLBACK)
    assert all(callable(getattr(integration_utils, check)) for check, _ in REPORTERS.values())


@pytest.mark.parametrize("name", REPORTERS)
def test_a_tracker_that_is_not_there_is_refused_with_its_install_line(installed, recipe, out, name):
    for line in (["--report_to", name], ["--recipe", recipe(f"report_to: {name}\n")]):
        message = refusal([*line, *out])
        assert repr(name) in message.replace(name, repr(name)) and "\n" not in message
        assert ("Kubeflow" if name == "kubeflow" else f"pip install {REPORTERS[name][1]}") in message
    installed(name)
    assert resolve_arguments(["--report_to", name, *out])[2].report_to == [name]


def test_several_trackers(installed, recipe, out):
    installed("tensorboard", "wandb")
    files = [recipe("report_to: [tensorboard, wandb]\n")]
    for line in (["--report_to", "tensorboard", "wandb"], ["--report_to=tensorboard,wandb"], ["--recipe", files[0]]):
        assert resolve_arguments([*line, *out])[2].report_to == ["tensorboard", "wandb"]
    assert "pip install mlflow trackio" in refusal(["--report_to", "mlflow", "tensorboard", "trackio", *out])
    assert "stands alone" in refusal(["--report_to", "none", "wandb", *out])
    assert "stands alone" in refusal(["--report_to", "all", "wandb", *out])
    assert resolve_arguments(["--report_to", "wandb", "--report_to", "none", *out])[2].report_to == []


def test_all_are_those_that_are_there(installed, out):
    assert "pip install tensorboard" in refusal(["--report_to", "all", *out])
    installed("tensorboard", "trackio")
    assert set(resolve_arguments(["--report_to", "all", *out])[2].report_to) == {"tensorboard", "trackio"}


def test_a_run_with_trackers_goes_on_by_its_resolved_recipe(installed, tmp_path, out):
    installed("tensorboard", "wandb")
    save_recipe(resolve_arguments(["--report_to", "tensorboard", "wandb", *out]), tmp_path / "recipe.yaml")
    again = resolve_arguments(["--recipe", str(tmp_path / "recipe.yaml"), *out])
    assert again.training.report_to == ["tensorboard", "wandb"]


@pytest.mark.parametrize("choice", ["none", "all_but_heads", "all_but_attention"])
def test_what_is_frozen_is_one_of_three(out, choice):
    assert resolve_arguments(["--freeze", choice, *out])[0].freeze == choice
    message = refusal(["--freeze", "heads", *out])
    assert choice in message
    with pytest.raises(InputError, match="freeze"):
        ModelArguments(freeze="heads")


@pytest.mark.parametrize("strategy", ["group_by_length", "sequential"])
def test_views_have_an_order_of_their_own(training, strategy):
    with pytest.raises(InputError, match=f"train_sampling_strategy.*{strategy}"):
        training(train_sampling_strategy=strategy)


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "peak"),
    [(128, 1, 8, 1e-3), (64, 1, 8, 5e-4), (64, 4, 2, 5e-4), (256, 2, 1, 5e-4), (32, 1, 1, 3.125e-5)],
)
def test_the_learning_rate_is_scaled_by_the_batch_of_all_devices(
    training, monkeypatch, batch, accumulation, processes, peak
):
    monkeypatch.setattr(DistillationTrainingArguments, "world_size", processes)
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    args = training(learning_rate=5e-4, scale_learning_rate=True, **settings)
    assert args.total_train_batch_size == batch * accumulation * processes
    assert args.peak_learning_rate == pytest.approx(peak, rel=1e-12)
    assert args.learning_rate == 5e-4
    assert training(learning_rate=5e-4, **settings).peak_learning_rate == 5e-4


def test_a_published_recipe_names_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teachers" / "big").mkdir(parents=True)
    overrides = json.dumps({"nested": {"file": "/home/ada/secret.bin"}, "patch_size": 8})
    arguments = resolve_arguments(
        [
            *("--recipe", "debug", "--output_dir", "out", "--teacher_model_name_or_path", "teachers/big"),
            *("--student_overrides", overrides, "--unlabeled_dir", "~/private/pics"),
            *("--validation_dir", "private/not there", "--run_name", "exp of /home/ada", "--seed", "7"),
            *("--push_to_hub", "true", "--hub_model_id", "ada/x", "--hub_token", "hf_secret"),
        ]
    )
    recipe = published_recipe(arguments)
    assert recipe["teacher_model_name_or_path"] == "big"
    assert recipe["student_overrides"]["nested"] == {"file": "secret.bin"}
    assert (recipe["unlabeled_dir"], recipe["validation_dir"], recipe["seed"]) == ("pics", "not there", 7)
    text = json.dumps(recipe)
    for private in ("/home", "~", "private", "hf_secret", "ada", str(tmp_path)):
        assert private not in text


def test_revisions_of_a_run_are_taken_where_none_is_given(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"student_revision: {'a' * 40}\ndataset_revision: {'b' * 40}\n")
    model_args, data_args, _ = take_revisions(str(file), resolve_arguments(["--dataset_revision", "v2"]))
    assert model_args.student_revision == "a" * 40
    assert data_args.dataset_revision == "v2"


def test_a_revision_stands_behind_a_teachers_name(recipe, out):
    """Of one it becomes teacher_revision; of several each keeps its own."""
    one = resolve_arguments(["--teacher", "lab/a@v1", *out]).model
    assert (one.teacher_model_name_or_path, one.teacher_revision) == ("lab/a", "v1")
    line = ["--recipe", recipe("teacher_model_name_or_path: [lab/a@v1, lab/b]\nteacher_weights: [2, 1]\n"), *out]
    several = resolve_arguments(line)
    assert several.model.teacher_model_name_or_path == ["lab/a@v1", "lab/b"]
    assert several.model.teacher_weights == [2.0, 1.0] and several.model.teacher_revision is None
    assert resolved_recipe(several)["teacher_model_name_or_path"] == ["lab/a@v1", "lab/b"]
    # Other teachers on top have weights of their own.
    other = resolve_arguments([*line, "--teacher", "lab/c"]).model
    assert (other.teacher_model_name_or_path, other.teacher_weights) == ("lab/c", None)
    assert resolve_arguments([*line, "--teacher", "lab/a", "lab/b", "lab/c"]).model.teacher_weights is None
    assert resolve_arguments([*line, "--teacher_weights", "1", "3"]).model.teacher_weights == [1.0, 3.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher", "lab/a@v1", "--teacher_revision", "v2"], "names a revision, got --teacher_revision v2"),
        (["--teacher", "lab/a", "lab/b", "--teacher_revision", "v2"], "write each as NAME@REVISION"),
        (["--teacher", "lab/a", "lab/b", "--teacher_weights", "1"], "2 teachers, but 1 weights"),
        (["--teacher", "lab/a", "lab/b", "--teacher_weights", "1", "nan"], "positive and finite, got nan"),
        (["--teacher", "lab/a", "lab/b", "--teacher_weights", "1", "0"], "positive and finite, got 0"),
    ],
)
def test_what_cannot_be_of_these_teachers_is_refused(out, options, said):
    with pytest.raises(InputError, match=said):
        resolve_arguments([*options, *out])


def test_several_teachers_are_published_and_taken_up_by_their_names(tmp_path, out):
    (tmp_path / "own").mkdir()
    teachers = [f"lab/a@{'a' * 40}", str(tmp_path / "own")]
    line = [*out, "--teacher_weights", "2", "1"]
    save_recipe(resolve_arguments([*line, "--teacher", *teachers]), tmp_path / "recipe.yaml")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe["teacher_model_name_or_path"] == teachers
    published = published_recipe(resolve_arguments([*line, "--teacher", *teachers]))
    assert published["teacher_model_name_or_path"] == [teachers[0], "own"]
    now = resolve_arguments([*line, "--teacher", "lab/a", str(tmp_path / "own")])
    taken = take_revisions(str(tmp_path / "recipe.yaml"), now)
    assert taken.model.teacher_model_name_or_path == teachers
    check_same_run(str(tmp_path / "recipe.yaml"), taken)


SIZES = [("own", "own"), ("student", "student"), ("64", "64"), (64, "64"), ("", "own")]


@pytest.mark.parametrize(("given", "size"), SIZES)
def test_the_teachers_input_size_is_a_word_or_a_number(recipe, out, given, size):
    arguments = resolve_arguments(["--recipe", recipe(f"teacher_input_size: {given}\n"), *out])
    assert arguments.model.teacher_input_size == size
    assert resolved_recipe(arguments)["teacher_input_size"] == size  # said though it be the default
    without = resolve_arguments(["--recipe", recipe("distillation_type: none\n"), *out])
    assert "teacher_input_size" not in resolved_recipe(without)
    with pytest.raises(InputError, match="a number of pixels up to 4096, got 'big'"):
        resolve_arguments(["--teacher_input_size", "big", *out])


def test_a_run_goes_on_with_the_teachers_input_size_it_was_started_with(tmp_path, out):
    """An earlier version, whose recipes do not say it, showed a teacher the student's size."""
    line, file = ["--recipe", "debug", *out], tmp_path / "recipe.yaml"
    for started in ("own", "student", "64"):
        save_recipe(resolve_arguments([*line, "--teacher_input_size", started]), file)
        for other in ("own", "student", "64"):
            now = take_revisions(str(file), resolve_arguments([*line, "--teacher_input_size", other]))
            assert now.model.teacher_input_size == other
            if other == started:
                check_same_run(str(file), now)
            else:
                with pytest.raises(InputError, match=f"started with teacher_input_size {started}, got {other}"):
                    check_same_run(str(file), now)
    earlier = resolved_recipe(resolve_arguments(line))
    del earlier["teacher_input_size"]
    file.write_text(yaml.safe_dump(earlier))
    for recipe in (str(file), earlier):
        now = take_revisions(recipe, resolve_arguments(line))
        assert now.model.teacher_input_size == "student"
    check_same_run(str(file), now)
    with pytest.raises(InputError, match="started with teacher_input_size student, got 64"):
        check_same_run(str(file), take_revisions(str(file), resolve_arguments([*line, "--teacher_input_size", "64"])))
    without = [*line, "--distillation_type", "none"]
    save_recipe(resolve_arguments(without), file)
    now = take_revisions(str(file), resolve_arguments(without))
    assert now.model.teacher_input_size == "own"
    check_same_run(str(file), now)


@pytest.mark.parametrize("name", ["own_images", "small_data"])
def test_recipes_for_ones_own_images_evaluate_as_often_as_makes_sense_unless_told(name, out):
    images = ["--recipe", name, "--train_dir", "images", *out]

    def eval_epochs(*options: str) -> int:
        return resolve_arguments([*images, "--bf16", "false", *options]).training.eval_epochs

    assert eval_epochs() == 0
    for option in ("--eval_strategy=epoch", "--save-strategy=epoch"):  # every epoch that is asked for
        assert eval_epochs(option) == 1
    assert eval_epochs("--eval_epochs", "3") == eval_epochs("--eval_epochs", "3", "--eval_strategy", "epoch") == 3
