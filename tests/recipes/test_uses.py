"""Contract: an option that does nothing beside the others is refused; a recipe's gives way to the command line.

Which options those are, beside those about the images, is a table; every option of a run is sorted into it, or said
here to do something always.
"""

import dataclasses

import pytest

from hf_deit.data.arguments import DataArguments
from hf_deit.errors import InputError
from hf_deit.recipes import ARGUMENT_CLASSES, list_recipes, load_recipe, uses
from hf_deit.recipes.resolve import check_same_run, resolve_arguments
from hf_deit.training.arguments import DistillationTrainingArguments, ModelArguments

# Options of this package that do something beside all others (or are refused by themselves, by the last two lines).
ALWAYS = {
    *("student", "image_size", "student_overrides", "crop_ratio", "distillation_type", "on_bad_image"),
    *("log_format", "bf16", "dataloader_num_workers", "report_to"),
    *("horizontal_flip", "auto_augment", "repeated_augmentation", "random_erasing", "mixup", "cutmix", "ema_decay"),
    *("learning_rate", "scale_learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm"),
    "total_batch_size",
    *("resume_from_hub", "remove_unused_columns", "logging_nan_inf_filter"),
    "crop_scale_min",  # refused with the student's size, before training
    *("warmup_epochs", "schedule_per"),  # refused by the arguments themselves, as in Python
}
HERE = ["--recipe", "own_images", "--train_dir", "images", "--use_cpu", "true", "--teacher_model_name_or_path", "a/b"]
DIGITS = ["--use_cpu", "true"]


def test_every_option_of_this_package_is_sorted():
    own = {
        *(field.name for field in dataclasses.fields(ModelArguments)),
        *(name for name in DistillationTrainingArguments.__annotations__),
    }
    assert own == ALWAYS | (set(uses._USES) & own)
    assert not ALWAYS & set(uses._USES)


def outcome(line: list[str]) -> str | None:
    """The message that a command line is refused with at a run's start; None if it is taken."""
    try:
        uses.check_uses(resolve_arguments(line))
    except InputError as error:
        return str(error)
    return None


CHECKPOINT = ["--student", "ada/student"]
LABELS = ["--teacher_labels", "labels"]
SOFT = ["--distillation_type", "soft"]
PUSH = ["--push_to_hub", "true"]
NO_MIX = ["--mixup", "0", "--cutmix", "0"]
UNLABELED = ["--recipe", "debug", "--dataset_name", "", "--unlabeled_dir", "x", "--use_cpu", "true"]
UNTAUGHT = [*DIGITS, "--distillation_type", "none"]
STREAM = ["--recipe", "debug", "--dataset_name", "a/b", "--streaming", "true", "--use_cpu", "true"]
# By option: its value, a line beside which it does nothing, what the refusal says, and a line where it does something.
ROWS = {
    "student_revision": ("v2", HERE, "a student on the Hub", [*HERE, *CHECKPOINT]),
    "replace_head": ("true", HERE, "is made anew", [*HERE, *CHECKPOINT]),
    "freeze": ("all_but_heads", HERE, "name a checkpoint with --student", [*HERE, *CHECKPOINT]),
    "teacher_model_name_or_path": ("a/b", UNTAUGHT, 'distillation_type is "none": drop one', DIGITS),
    "teacher_revision": ("v2", DIGITS, "the teacher is None", HERE),
    "teacher_dtype": ("bfloat16", UNTAUGHT, "is of a teacher", DIGITS),
    "teacher_speed": ("off", UNTAUGHT, "is of a teacher", DIGITS),
    "teacher_input_size": ("student", UNTAUGHT, "is of a teacher", DIGITS),
    "teacher_recipe": ("digits_teacher", HERE, None, DIGITS),  # see below
    "teacher_weights": (["1", "2"], HERE, "name them all", [*HERE, "c/d"]),  # HERE ends with a teacher
    "teacher_probe": ("a/b", HERE, "drop one of them", DIGITS),
    **{
        name: (value, DIGITS, "no teacher is named", HERE)
        for name, value in (
            ("teacher_label_subset", "true"),
            ("class_names", ["cat", "dog"]),
            ("class_prompts", '{"cat": "a cat."}'),
            ("templates", ["a {}."]),
            ("teacher_prior_correction", "true"),
        )
    },
    "layer_decay": ("0.7", [*HERE, *CHECKPOINT, "--freeze", "all_but_heads"], "freeze is 'all_but_heads'", HERE),
    "early_stopping_patience": ("3", [*HERE, "--load_best_model_at_end", "false"], "load_best_model_at_end", HERE),
    "min_train_steps": ("9", [*HERE, "--max_steps", "5"], "is the least length", HERE),
    "check_images": ("all", DIGITS, "come with a library", [*DIGITS, "--unlabeled_dir", "x"]),
    "cache_images": ("decoded", STREAM, "streaming is true", DIGITS),
    "cache_images_gb": ("2", DIGITS, "--cache_images decoded", [*DIGITS, "--cache_images", "resized"]),
    "reduced_decoding": ("true", DIGITS, "is about JPEG images", HERE),
    "distillation_alpha": ("0.3", UNTAUGHT, 'distillation_type is "none"', DIGITS),
    "distillation_temperature": ("2", HERE, "--distillation_type soft", [*HERE, *SOFT]),
    "distillation_reduction": ("numel", HERE, "--distillation_type soft", [*HERE, *SOFT]),
    "on_bad_teacher_answer": ("skip", UNTAUGHT, 'distillation_type is "none"', DIGITS),
    "teacher_labels": ("labels", UNTAUGHT, 'distillation_type is "none"', DIGITS),
    "teacher_labels_revision": ("v2", HERE, "--teacher_labels", [*HERE, "--teacher_labels", "hf://datasets/a/b"]),
    "teacher_labels_readonly": ("true", HERE, "--teacher_labels", [*HERE, *LABELS]),
    "teacher_labels_top_k": ("3", HERE, "--teacher_labels", [*HERE, *LABELS]),
    "verify_teacher_labels": ("0.5", HERE, "--teacher_labels", [*HERE, *LABELS]),
    "label_smoothing_factor": ("0.2", UNLABELED, "images without labels alone", [*HERE, "--unlabeled_dir", "x"]),
    "repeats_placement": ("spread", DIGITS, "repeated_augmentation is 1", HERE),
    "mixup_probability": ("0.5", DIGITS, "both are off", HERE),
    "mixup_switch_probability": ("0.3", [*HERE, "--cutmix", "0"], "not both on", HERE),
    "mixup_group_size": ("32", [*HERE, *NO_MIX], "both are off", HERE),
    "ema_warmup": ("true", HERE, "ema_decay is 0", [*HERE, "--ema_decay", "0.9"]),
    "publish_weights": ("ema", HERE, "--ema_decay", [*HERE, "--ema_decay", "0.9"]),
    "warmup_learning_rate": ("1e-5", [*HERE, "--warmup_epochs", "0"], "give --warmup_epochs", HERE),
    "min_learning_rate": (
        "1e-6",
        [*HERE, "--warmup_epochs", "0", "--lr_scheduler_type", "linear"],
        "lr_scheduler_type is 'linear'",
        HERE,
    ),
    "warmup_steps": ("9", [*DIGITS, "--lr_scheduler_type", "constant"], "'constant' has none", DIGITS),
    "hub_strategy": ("checkpoint", HERE, "--push_to_hub true", [*HERE, *PUSH]),
    "hub_always_push": ("true", HERE, "--push_to_hub true", [*HERE, *PUSH]),
    "hub_private_repo": ("true", HERE, "--push_to_hub true", [*HERE, *PUSH]),
    "hub_push_timeout": ("60", HERE, "--push_to_hub true", [*HERE, *PUSH]),
    "eval_steps": ("7", HERE, "eval_strategy is 'epoch': leave it out, or give --eval_strategy steps", DIGITS),
    "eval_epochs": ("3", DIGITS, "neither eval_strategy nor save_strategy", HERE),
    "eval_delay": ("2", [*DIGITS, "--eval_strategy", "no"], "eval_strategy is 'no'", DIGITS),
    "save_steps": ("7", HERE, "give --save_strategy steps", DIGITS),
    "save_total_limit": ("3", [*HERE, "--save_strategy", "no"], "give --save_strategy", HERE),
    "save_only_model": ("true", [*HERE, "--save_strategy", "no"], "give --save_strategy", HERE),
    "load_best_model_at_end": (
        "true",
        [*HERE, "--eval_strategy", "no", "--save_strategy", "no"],
        "eval_strategy is 'no'",
        HERE,
    ),
    "activation_checkpointing_kwargs": (
        '{"use_reentrant": false}',
        HERE,
        "--activation_checkpointing true",
        [*HERE, "--activation_checkpointing", "true"],
    ),
    "fsdp_config": ('{"fsdp_version": 2}', HERE, "is of FSDP", [*HERE, "--fsdp", "full_shard"]),
    **{
        name: ("pets", HERE, "--report_to trackio", [*HERE, "--report_to", "trackio"])
        for name in ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
    },
    "logging_steps": ("7", [*HERE, "--logging_strategy", "epoch"], "give --logging_strategy steps", HERE),
    "dataloader_prefetch_factor": ("2", [*HERE, "--dataloader_num_workers", "0"], "num_workers", HERE),
    "dataloader_multiprocessing_context": ("fork", [*HERE, "--dataloader_num_workers", "0"], "num_workers", HERE),
    "optim_target_modules": ("attention", HERE, "GaLore", [*HERE, "--optim", "galore_adamw"]),
}


@pytest.fixture(autouse=True)
def trackio_is_installed(monkeypatch):
    monkeypatch.setattr("hf_deit.training.reporters._is_installed", lambda name: True)


def test_a_recipe_of_persistent_workers_may_have_none(tmp_path):
    """By its own words, and where the command line says so, which takes the rest of the workers' settings away."""
    of_workers = "dataloader_persistent_workers: true\n"
    (tmp_path / "none.yaml").write_text(f"base: debug\ndataloader_num_workers: 0\n{of_workers}")
    of_workers += "dataloader_prefetch_factor: 3\ndataloader_multiprocessing_context: spawn\n"
    (tmp_path / "two.yaml").write_text(f"base: debug\ndataloader_num_workers: 2\n{of_workers}")
    assert outcome(["--recipe", str(tmp_path / "none.yaml"), *DIGITS]) is None
    assert outcome(["--recipe", str(tmp_path / "two.yaml"), *DIGITS, "--dataloader_num_workers", "0"]) is None


@pytest.mark.parametrize("name", uses._USES)
def test_an_option_that_does_nothing_is_refused(name):
    value, beside, words, where_it_does = ROWS[name]
    assert outcome(beside) is outcome(where_it_does) is None
    given = [f"--{name}", *([value] if isinstance(value, str) else value)]
    assert outcome([*where_it_does, *given]) is None
    if words is not None:
        message = outcome([*beside, *given])
        assert message is not None and name in message and words in message, message


def test_a_recipe_for_the_teacher_is_refused_beside_a_teacher_only_where_both_are_said(tmp_path):
    line = [*DIGITS, "--teacher_model_name_or_path", "a/b"]
    assert "drop one of them" in outcome([*line, "--teacher_recipe", "digits_teacher"])
    assert outcome(line) is None  # of the recipe digits
    assert "distillation_type is 'none'" in outcome([*UNTAUGHT, "--teacher_recipe", "digits_teacher"])
    assert outcome(UNTAUGHT) is None
    written = tmp_path / "recipe.yaml"  # what a run has written down
    written.write_text("dataset_name: sklearn:digits\nteacher_recipe: x\nteacher_model_name_or_path: out/teacher\n")
    model = resolve_arguments(["--recipe", str(written), *DIGITS]).model
    assert (model.teacher_recipe, model.teacher_model_name_or_path) == ("x", "out/teacher")
    assert outcome(["--recipe", str(written), *DIGITS]) is None


@pytest.mark.parametrize("name", list_recipes())
def test_packaged_recipes_hold_nothing_that_does_nothing(name):
    recipe = load_recipe(name)
    assert recipe == uses.without_unused(recipe)


RECIPE = """
dataset_name: ada/pets
dataset_revision: v2
dataset_config_name: small
label_column_name: kind
validation_split: val
streaming: true
images_per_epoch: 100
student: ada/student
replace_head: true
freeze: all_but_heads
teacher_model_name_or_path: ada/teacher
teacher_revision: v3
distillation_type: soft
distillation_temperature: 2.0
teacher_labels: hf://datasets/ada/labels
teacher_labels_top_k: 5
repeats_placement: spread
mixup_switch_probability: 0.3
mixup_group_size: 8
ema_decay: 0.9
ema_warmup: true
publish_weights: ema
push_to_hub: true
hub_strategy: checkpoint
eval_strategy: steps
eval_steps: 5
save_strategy: steps
save_steps: 5
save_total_limit: 2
load_best_model_at_end: true
max_steps: 9
warmup_epochs: 2
per_device_train_batch_size: 8
"""
GIVES_WAY = [
    (
        "--train_dir images",
        "dataset_name dataset_revision dataset_config_name label_column_name validation_split streaming "
        "images_per_epoch",
    ),
    ("--dataset_name bob/pets", "dataset_revision"),
    ("--dataset_name ada/pets", ""),
    ("--streaming false", "images_per_epoch"),
    ("--student deit_tiny_patch16_224", "replace_head freeze"),
    ("--teacher_model_name_or_path bob/teacher", "teacher_revision"),
    ("--distillation_type hard", "distillation_temperature"),
    (
        "--distillation_type none",
        "teacher_model_name_or_path teacher_revision distillation_temperature teacher_labels teacher_labels_top_k",
    ),
    ("--eval_strategy no", "load_best_model_at_end eval_steps"),
    ("--save_strategy no", "load_best_model_at_end save_total_limit save_steps"),
    ("--repeated_augmentation 1", "repeats_placement"),
    ("--mixup 0", "mixup_switch_probability"),
    ("--mixup 0 --cutmix 0", "mixup_switch_probability mixup_group_size"),
    ("--ema_decay 0", "ema_warmup publish_weights"),
    ("--push_to_hub false", "hub_strategy"),
    ("--eval_strategy epoch --save_strategy epoch", "eval_steps save_steps"),
    ("--num_train_epochs 3", "max_steps"),
    ("--max_steps 3", ""),
    ("--warmup_steps 3", "warmup_epochs"),
    ("--warmup_steps 0", ""),
]


@pytest.mark.parametrize(("options", "gone"), GIVES_WAY)
@pytest.mark.parametrize("on_top", ["command line", "recipe"])
def test_of_a_recipe_gives_way_what_another_option_leaves_without_a_meaning(tmp_path, on_top, options, gone):
    base = tmp_path / "base.yaml"
    base.write_text(RECIPE)
    recipe, words = load_recipe(base), options.split()
    line = ["--recipe", str(base), *words]
    if on_top == "recipe":
        pairs = zip(words[::2], words[1::2], strict=True)
        (tmp_path / "mine.yaml").write_text(
            "base: base.yaml\n" + "".join(f"{name[2:]}: {value}\n" for name, value in pairs)
        )
        line = ["--recipe", str(tmp_path / "mine.yaml")]
    arguments = resolve_arguments([*line, "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"])
    values = {field.name: getattr(part, field.name) for part in arguments for field in dataclasses.fields(part)}
    given = {word[2:] for word in words[::2]}
    usual = {field.name: field.default for part in ARGUMENT_CLASSES for field in dataclasses.fields(part)}
    for name in recipe.keys() - given:
        expected = usual[name] if name in gone.split() else recipe[name]
        assert values[name] == expected or (name == "mixup_group_size" and name not in gone), name
    assert outcome([*line, "--use_cpu", "true"]) is None


def test_of_a_recipe_what_contradicts_itself_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train_dir: images\ndistillation_type: none\ndistillation_temperature: 2.0\n")
    assert "--distillation_temperature" in outcome(["--recipe", str(path), "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--recipe own_images --train_dir x --train_split train", "--train_split"),
        ("--recipe own_images --train_dir x --validation_dir y --validation_fraction 0.1", "--validation_fraction"),
        ("--shuffle_buffer_size 10000", "--shuffle_buffer_size"),
        ("--recipe own_images --train_dir x --unlabeled_split train", "--unlabeled_split"),
    ],
)
def test_an_option_about_other_images_is_refused_also_at_its_default(line, name):
    with pytest.raises(InputError, match=name):
        resolve_arguments([*line.split(), "--use_cpu", "true"])


def test_what_is_said_to_be_off_is_no_option_that_does_nothing():
    off = ["--streaming", "false", "--replace_head", "false", "--freeze", "none", "--hub_always_push", "false"]
    off += ["--verify_teacher_labels", "0", "--unlabeled_dir", "", "--warmup_learning_rate", "0"]
    assert outcome([*HERE, *off, "--warmup_epochs", "0"]) is None


NOT_DONE = [
    ("--do_train false --do_eval true --do_predict true", "hf-deit train always trains.* evaluate method"),
    ("--do_train false", "always trains"),
    ("--do_predict", "predict method of a DistillationTrainer"),
    ("--do_predict true --do_train", "lines under Use"),
    ("--do_eval false", "--eval_strategy no"),
]


@pytest.mark.parametrize(("line", "message"), NOT_DONE)
def test_the_switches_of_example_scripts_do_what_they_say_or_are_refused(tmp_path, line, message):
    with pytest.raises(InputError, match=message):
        resolve_arguments([*line.split(), "--use_cpu", "true"])
    words = (word for word in line.split() if word.startswith("--"))
    values = {word[2:]: "false" not in line.partition(word)[2].split("--")[0] for word in words}
    (tmp_path / "mine.yaml").write_text("".join(f"{name}: {str(value).lower()}\n" for name, value in values.items()))
    with pytest.raises(InputError, match=message):
        resolve_arguments(["--recipe", str(tmp_path / "mine.yaml"), "--use_cpu", "true"])
    assert resolve_arguments(["--do_train", "--do_eval", "true", "--do_predict", "false", "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("flag", "command"),
    [
        ("--evaluate", "hf-deit evaluate --model FOLDER .*evaluate method of a DistillationTrainer"),
        ("--eval", "--validation_dir"),
        ("--test", "--validation_split"),
        ("--predict", "lines under Use"),
        ("--resume", "resume_from_checkpoint.*true goes on"),
        ("--auto-resume", "resume_from_checkpoint.*true goes on"),
        ("--checkpoint=model.pth", "mean .student.*a folder is trained on"),
        ("--export", "hf-deit convert"),
        ("--convert", "hf-deit convert"),
        ("--push", "mean .push_to_hub"),
        ("--publish", "mean .push_to_hub"),
        ("--preview", "hf-deit preview"),
    ],
)
def test_the_actions_of_other_scripts_are_refused_with_the_command_that_does_them(flag, command):
    for line in ([flag], [flag, "x"]):
        with pytest.raises(InputError, match=command):
            resolve_arguments([*line, "--use_cpu", "true"])


def test_a_run_that_was_started_with_what_did_nothing_goes_on_without_it(tmp_path):
    written, mine = tmp_path / "recipe.yaml", tmp_path / "mine.yaml"
    mine.write_text("dataset_name: sklearn:digits\nmixup: 0.0\ncutmix: 0.0\n")
    written.write_text(mine.read_text() + "label_column_name: kind\nmixup_group_size: 8\n")
    line = ["--recipe", str(mine), "--use_cpu", "true"]
    check_same_run(str(written), resolve_arguments(line))
    with pytest.raises(InputError, match="was started with mixup"):
        check_same_run(str(written), resolve_arguments([*line, "--mixup", "0.5"]))


def test_the_defaults_are_those_of_the_arguments():
    assert uses.DEFAULTS["validation_fraction"] == DataArguments().validation_fraction
