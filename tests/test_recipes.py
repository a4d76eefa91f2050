"""Contract: a recipe gives the arguments it states, the command line wins, and whatever is not understood is refused.

Values have the type of their argument whichever way they are written, and the resolved recipe gives the same
arguments again.
"""

import dataclasses
import typing

import pytest
import yaml

from hf_deit.errors import InputError
from hf_deit.recipes import list_recipes, load_recipe, resolve_arguments, save_recipe
from hf_deit.training_args import DataArguments, DistillationTrainingArguments, ModelArguments


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
        if key == "output_dir":
            continue
        got = getattr(resolved[key], "value", resolved[key])
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
        ("lr_scheduler_kwargs: {num_cycles: 0.25}", "lr_scheduler_kwargs", {"num_cycles": 0.25}),
        ("lr_scheduler_kwargs: {min_lr: 1e-5}", "lr_scheduler_kwargs", {"min_lr": 1e-5}),
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


def test_student_overrides_on_the_command_line_are_json(out):
    model, _, _ = resolve_arguments(["--student_overrides", '{"drop_path_rate": 0.1, "image_size": 32}', *out])
    assert model.student_overrides == {"drop_path_rate": 0.1, "image_size": 32}


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
    with pytest.raises(InputError, match="did you mean digits_teacher"):
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
        ("per_device_train_batch_size", (1,), (0, -8)),
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
