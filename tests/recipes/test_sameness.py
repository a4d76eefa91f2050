"""Contract: of every argument it is settled whether it may differ where a run goes on, and what then comes of it.

It changes nothing, or takes effect from there on and a line says so, or makes another run, which is refused with both
values. A version of transformers that brings another argument fails this table until that is sorted; until then it is
refused where it differs.
"""

import dataclasses

import pytest
import yaml

from hf_deit import InputError, list_recipes, load_recipe
from hf_deit.models.zero_shot.prompts import DEFAULT_TEMPLATES
from hf_deit.recipes import ARGUMENT_CLASSES
from hf_deit.recipes.resolve import applied_changes, check_same_run, resolve_arguments, resolved_recipe, save_recipe
from hf_deit.recipes.sameness import (
    APPLIED,
    EARLIER,
    MAY_CHANGE,
    OF_ONE_MACHINE,
    REFUSED,
    applied,
    differing,
    earlier_values,
    refused,
    stated_options,
)
from hf_deit.recipes.uses import DEFAULTS, MAKERS

RUN = {"teacher_model_name_or_path": "lab/teacher", "teacher_labels": "hf://datasets/lab/labels"}
# Where the default tells no value of another kind.
OTHERS = {
    "teacher_model_name_or_path": ("lab/one", "lab/other"),
    "teacher_revision": ("a" * 40, "b" * 40),
    "teacher_labels_revision": ("a" * 40, "b" * 40),
    "data_seed": (1, 2),
    "total_batch_size": (512, 1024),
    "image_size": (224, 384),
    "crop_ratio": (0.875, 1.0),
    "teacher_input_size": ("own", "224"),
    "teacher_recipe": ("debug_teacher", "digits_teacher"),
    "teacher_probe": ("lab/dino", "lab/clip"),
    "optim_args": ("momentum=0.9", "momentum=0.8"),
}


@pytest.fixture
def out(tmp_path) -> list[str]:
    return ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]


def two_values(name: str) -> tuple:
    """An argument's default, and another value."""
    if name in OTHERS:
        return OTHERS[name]
    default = DEFAULTS[name]
    if isinstance(default, bool):
        return default, not default
    return default, default + 1 if isinstance(default, int | float) else f"{default or 'an'}other"


def test_every_argument_is_sorted_once():
    listed = [*dict.fromkeys(REFUSED), *APPLIED, *MAY_CHANGE]
    assert len(listed) == len(set(listed))
    assert set(listed) == {field.name for part in ARGUMENT_CLASSES for field in dataclasses.fields(part)}


def stated(line: list[str]) -> dict:
    arguments = resolve_arguments(line)
    return stated_options(resolved_recipe(arguments), arguments.training)


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        (["--seed", "1"], ["--seed", "2"], ["seed", "data_seed"]),
        (["--data_seed", "42"], [], []),  # which is the seed's default
        (["--per_device_train_batch_size", "8"], [], ["per_device_train_batch_size"]),
        (["--logging_steps", "3"], [], ["logging_steps"]),
        (["--ema_decay", "0"], [], ["ema_decay"]),
        (["--cache_images", "decoded"], [], []),
        (["--cache_images", "resized"], ["--cache_images", "decoded"], ["cache_images"]),
        (["--save_strategy", "no"], [], ["save_strategy"]),
        (["--resume_from_checkpoint", "true"], [], ["resume_from_checkpoint"]),
        (["--output_dir", "elsewhere", "--run_name", "a"], [], []),
        (["--dataloader_num_workers", "3", "--disable_tqdm", "true", "--log_level", "info"], [], []),
        (
            ["--teacher_model_name_or_path", "lab/one"],
            ["--teacher_model_name_or_path", "lab/two"],
            ["teacher_model_name_or_path"],
        ),
        (["--teacher_model_name_or_path", "lab/one"], ["--teacher_model_name_or_path", "HERE"], []),
        (["--teacher_model_name_or_path", "HERE"], [], ["teacher_model_name_or_path"]),
        (
            ["--teacher_model_name_or_path", "lab/one", "HERE"],
            ["--teacher_model_name_or_path", "lab/one", "THERE"],
            [],
        ),
        (
            ["--teacher_model_name_or_path", "HERE", "lab/one"],
            ["--teacher_model_name_or_path", "lab/x", "lab/one"],
            [],
        ),
        (
            ["--teacher_model_name_or_path", "lab/one", "lab/two"],
            ["--teacher_model_name_or_path", "HERE"],
            ["teacher_model_name_or_path"],
        ),
        (["--resume_from_checkpoint", "true"], ["--resume_from_checkpoint", "HERE"], []),
        (
            ["--teacher_model_name_or_path", "lab/one", "HERE"],
            ["--teacher_model_name_or_path", "lab/two", "HERE"],
            ["teacher_model_name_or_path"],
        ),
        (
            ["--teacher_model_name_or_path", "lab/one", "HERE", "--teacher_weights", "1", "2"],
            ["--teacher_model_name_or_path", "lab/one", "HERE"],
            ["teacher_weights"],
        ),
        (["--student", "HERE"], ["--student", "THERE"], []),
        (["--train_dir", "a", "--dataset_name", ""], ["--train_dir", "b", "--dataset_name", ""], []),
        (["--train_dir", "a", "--validation_dir", "b"], ["--train_dir", "a"], ["validation_dir"]),
        (["--push_to_hub", "true", "--hub_model_id", "lab/one"], [], ["push_to_hub"]),
    ],
    ids=str,
)
def test_processes_of_one_run_must_have_the_same_options(out, tmp_path, one, other, names):
    places = {"HERE": str(tmp_path), "THERE": str(tmp_path.parent)}
    base = ["--recipe", "debug_teacher" if "--student" in one else "debug", *out]
    mine, theirs = (stated([*base, *(places.get(word, word) for word in line)]) for line in (one, other))
    for here, there in ((mine, theirs), (theirs, mine)):
        found = [name for name, *_ in differing(here, there)]
        assert bool(found) == bool(names) and {*names} <= {*found}, found


def test_of_the_options_of_one_machine_there_are_such():
    assert {*OF_ONE_MACHINE} < {*DEFAULTS}


@pytest.mark.parametrize("name", dict.fromkeys(REFUSED))
def test_what_makes_another_run_is_refused_in_both_directions(name):
    run = {} if name in MAKERS else RUN  # which has its teacher
    one, other = ({**run, name: value} for value in two_values(name))
    assert [*refused(one, one), *refused(other, other)] == []
    for before, now in ((one, other), (other, one)):
        assert next(refused(before, now))[0] == name


@pytest.mark.parametrize("name", [name for name in (*APPLIED, *MAY_CHANGE) if name != "load_best_model_at_end"])
def test_what_makes_no_other_run_is_not_refused(name):
    before, now = ({**RUN, "logging_steps": 5, name: value} for value in two_values(name))
    assert [*refused(before, now), *refused(now, before)] == []
    told = [difference.name for difference in applied(now, before)]
    follows = name == "logging_steps"  # 0 now is as many as make sense
    assert told == ([name] if name in APPLIED and not follows else [])


@pytest.mark.parametrize(("kept", "is_other"), [("decoded", False), ("resized", True)])
def test_images_that_are_kept_resized_make_another_run(kept, is_other):
    before, now = {**RUN, "cache_images": kept}, RUN
    for one, other in ((before, now), (now, before)):
        assert [name for name, *_ in refused(one, other)] == ["cache_images"] * is_other
    assert [*refused(before, before)] == []


@pytest.mark.parametrize("metric", [{}, {"metric_for_best_model": "top1", "greater_is_better": True}])
def test_the_best_checkpoint_can_be_given_up_and_not_be_asked_for_later(metric):
    best, last = {"load_best_model_at_end": True, **metric}, {"save_steps": 2}
    assert [*refused(best, last)] == [] and [*refused(best, {**last, **metric})] == []
    assert ("load_best_model_at_end", True, False) in applied(best, last)
    for before in (last, {**last, **metric}):
        assert "load_best_model_at_end" in [difference.name for difference in refused(before, best)]
    assert [difference.name for difference in refused(best, {**best, "metric_for_best_model": "loss"})]


def test_an_argument_that_nobody_has_sorted_is_refused_where_it_differs(monkeypatch):
    monkeypatch.setitem(DEFAULTS, "brand_new", 1)
    assert [*refused(RUN, {**RUN, "brand_new": 1})] == []
    assert [*refused({**RUN, "brand_new": 2}, RUN)] == [("brand_new", 2, 1)]


SAME = {
    "a number in two spellings": ("learning_rate", 1e-3, "0.001"),
    "a number as text": ("adam_epsilon", "1e-6", 1e-6),
    "a whole number": ("num_train_epochs", 3, 3.0),
    "a switch as text": ("scale_learning_rate", "true", True),
    "a switch that is off": ("load_best_model_at_end", None, False),
    "the default, said": ("weight_decay", DEFAULTS["weight_decay"], None),
    "nothing, said": ("auto_augment", "", ""),
    "an empty mapping": ("lr_scheduler_kwargs", {}, None),
    "a mapping in another order": ("student_overrides", {"a": 1, "b": [2, 3]}, {"b": (2, 3), "a": 1.0}),
    "a dtype of torch": ("teacher_dtype", "torch.float32", "float32"),
    "a metric of the evaluation": ("metric_for_best_model", "eval_top1", "top1"),
    "settings of an optimizer": ("optim_args", "momentum=0.9, nesterov=True", "nesterov=True,momentum=0.9"),
    "a seed of its own that is the run's": ("data_seed", 42, None),
    "what may have one value only": ("neftune_noise_alpha", 0, None),
    "the student's own size": ("image_size", 224, None),
}


@pytest.mark.parametrize("case", SAME)
def test_one_value_in_other_words_is_one_value(case):
    name, one, other = SAME[case]
    sides = [{**RUN, **({} if value is None else {name: value})} for value in (one, other)]
    for before, now in (sides, reversed(sides)):
        assert [*refused(before, now)] == []


def test_a_text_that_is_no_yaml_differs_from_what_is_none():
    for text in ("@images", "a: [", "%x", "- - :"):
        for other in (None, 1, True, {"a": 1}):
            assert [*refused({"train_dir": text}, {"train_dir": other})] == [("train_dir", text, other)]


def test_texts_that_look_like_the_same_number_are_two_texts():
    for name in ("train_dir", "student_revision", "dataset_config_name"):
        assert [name for name, *_ in refused({name: "0123"}, {name: "123"})] == [name]


def test_a_folder_is_one_however_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    for name in ("train_dir", "dataset_name", "student", "teacher_model_name_or_path"):
        for other in ("./images/", str(tmp_path / "images"), "link"):
            assert [*refused({name: "images"}, {name: other})] == []
        assert [*refused({name: "images"}, {name: "others"})] == [(name, "images", "others")]


def test_a_teacher_may_be_moved_where_it_is_compared_itself(tmp_path):
    before, there, elsewhere = ({"teacher_model_name_or_path": name} for name in ("a", str(tmp_path), "lab/b"))
    assert [*refused(before, there, compared=["teacher"])] == []
    assert [*refused(before, there, compared=["train"])] and [*refused(before, elsewhere, compared=["teacher"])]


def test_of_several_teachers_those_in_folders_may_be_moved_where_they_are_compared(tmp_path):
    before = {"teacher_model_name_or_path": ["a", "lab/b"], "teacher_weights": [1, 2]}
    for now in ([str(tmp_path), "lab/b"], ["lab/b", str(tmp_path)]):
        moved = {"teacher_model_name_or_path": now, "teacher_weights": [2, 1]}  # they are compared with their weights
        assert [*refused(before, moved, compared=["teacher"])] == [] and [*refused(before, moved)]
    other = {"teacher_model_name_or_path": [str(tmp_path), "lab/c"], "teacher_weights": [1, 2]}
    assert [*refused(before, other, compared=["teacher"])]


def test_images_may_be_moved_where_they_are_compared_themselves():
    for name in ("train_dir", "validation_dir", "unlabeled_dir"):
        assert [*refused({name: "here"}, {name: "there"}, compared=["train"])] == []
        for one, other in (({name: "here"}, {}), ({}, {name: "here"})):
            assert [difference.name for difference in refused(one, other, compared=["train"])] == [name]
    assert [*refused({"dataset_name": "lab/one"}, {"dataset_name": "lab/other"}, compared=["train"])]


def test_where_the_learning_rate_follows_the_evaluations_they_are_the_runs():
    run = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}
    assert [*refused(run, {**run, "eval_steps": 3})] == [("eval_steps", 2, 3)]
    assert [*refused(run, {**run, "save_steps": 3})] == []


TEACHERS = {
    "none any more": ({"teacher_model_name_or_path": "lab/a"}, {}, "teacher_model_name_or_path"),
    "one to be trained instead": (
        {"teacher_model_name_or_path": "lab/a"},
        {"teacher_recipe": "debug_teacher"},
        "teacher_model_name_or_path",
    ),
    "kept labels instead": (
        {"teacher_model_name_or_path": "lab/a", "teacher_dtype": "bfloat16", "teacher_labels": "labels"},
        {"teacher_labels": "labels"},
        None,
    ),
    "another beside the recipe that it would be trained by": (
        {"teacher_model_name_or_path": "lab/a", "teacher_recipe": "debug_teacher"},
        {"teacher_recipe": "debug_teacher"},
        "teacher_model_name_or_path",
    ),
    "the run's own": (
        {"teacher_model_name_or_path": "run/teacher", "teacher_recipe": "debug_teacher"},
        {"teacher_recipe": "debug_teacher"},
        None,
    ),
    "the run's own, named": (
        {"teacher_model_name_or_path": "run/teacher", "teacher_recipe": "debug_teacher"},
        {"teacher_model_name_or_path": "run/teacher"},
        None,
    ),
    "the run's own by another recipe": (
        {"teacher_model_name_or_path": "run/teacher", "teacher_recipe": "debug_teacher"},
        {"teacher_recipe": "digits_teacher"},
        "teacher_recipe",
    ),
    "a published run's own by another recipe": (
        {"teacher_recipe": "debug_teacher"},
        {"teacher_recipe": "digits_teacher"},
        "teacher_recipe",
    ),
    **{
        f"several: {name}": (
            {"teacher_model_name_or_path": ["lab/a@c1", "lab/b"], "teacher_weights": [2, 1]},
            {"teacher_model_name_or_path": teachers, "teacher_weights": weights},
            differs,
        )
        for name, teachers, weights, differs in (
            ("in another order", ["lab/b", "lab/a@c1"], [1, 2], None),
            ("with other words of the weights", ["lab/a", "lab/b"], [0.4, 0.2], None),
            ("with weights that stayed in their places", ["lab/b", "lab/a@c1"], [2, 1], "teacher_weights"),
            ("all alike", ["lab/a@c1", "lab/b"], None, "teacher_weights"),
            ("at another commit", ["lab/a@c2", "lab/b"], [2, 1], "teacher_model_name_or_path"),
            ("one of them another", ["lab/a@c1", "lab/c"], [2, 1], "teacher_model_name_or_path"),
            ("one more", ["lab/a@c1", "lab/b", "lab/c"], [2, 1, 1], "teacher_model_name_or_path"),
            ("one twice", ["lab/b", "lab/b"], [2, 1], "teacher_model_name_or_path"),
        )
    },
    "several: one alone": (
        {"teacher_model_name_or_path": ["lab/a", "lab/b"]},
        {"teacher_model_name_or_path": "lab/a"},
        "teacher_model_name_or_path",
    ),
    "several: one before": (
        {"teacher_model_name_or_path": "lab/a"},
        {"teacher_model_name_or_path": ["lab/a", "lab/b"]},
        "teacher_model_name_or_path",
    ),
    "several: equal weights": (
        {"teacher_model_name_or_path": ["lab/a", "lab/b"], "teacher_weights": [3, 3]},
        {"teacher_model_name_or_path": ["lab/b", "lab/a"]},
        None,
    ),
    "several: kept labels instead": (
        {"teacher_model_name_or_path": ["lab/a", "lab/b"], "teacher_labels": "labels"},
        {"teacher_labels": "labels"},
        None,
    ),
    "the run's own probe": (
        {"teacher_model_name_or_path": "run/teacher", "teacher_probe": "lab/dino@c0ffee"},
        {"teacher_probe": "lab/dino@c0ffee"},
        None,
    ),
    "the run's own probe, named": (
        {"teacher_model_name_or_path": "run/teacher", "teacher_probe": "lab/dino@c0ffee"},
        {"teacher_model_name_or_path": "run/teacher"},
        None,
    ),
    "the run's own probe of another commit": (
        {"teacher_model_name_or_path": "run/teacher", "teacher_probe": "lab/dino@c0ffee"},
        {"teacher_probe": "lab/dino@decaf"},
        "teacher_probe",
    ),
    "a probe in place of a trained one": (
        {"teacher_model_name_or_path": "run/teacher", "teacher_recipe": "debug_teacher"},
        {"teacher_probe": "lab/dino"},
        "teacher_probe",
    ),
}


@pytest.mark.parametrize("case", TEACHERS)
def test_another_teacher_is_refused_and_one_that_was_trained_need_not_be_named(case):
    before, now, name = TEACHERS[case]
    assert [difference.name for difference in refused(before, now)] == ([name] if name else [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adam_beta2", "0.5"], "was started with adam_beta2 at its default, got 0.5"),
        (["--adam_epsilon", "1e-6"], "was started with adam_epsilon at its default, got 1e-06"),
        (["--teacher_dtype", "bfloat16"], "was started with teacher_dtype at its default, got bfloat16"),
        (["--teacher_recipe", "digits_teacher"], "was started with teacher_recipe debug_teacher, got digits_teacher"),
        (["--optim", "sgd", "--optim_args", "momentum=0.9"], "was started with optim at its default, got sgd"),
        (["--load_best_model_at_end", "true"], "was started with load_best_model_at_end at its default, got True"),
    ],
)
def test_both_values_are_told(tmp_path, out, options, said):
    line, recipe = ["--recipe", "debug", *out], str(tmp_path / "recipe.yaml")
    save_recipe(resolve_arguments(line), recipe)
    with pytest.raises(InputError) as error:
        check_same_run(recipe, resolve_arguments([*line, *options]))
    assert said in str(error.value) and f"--recipe {recipe}" in str(error.value)


def test_what_takes_effect_from_here_on_is_told_with_both_values(out):
    line = ["--recipe", "debug", *out]
    before, now = resolve_arguments(line), [*line, "--save_steps", "2", "--dataloader_num_workers", "1"]
    assert applied_changes(resolved_recipe(before), before) == []
    lines = applied_changes(resolved_recipe(before), resolve_arguments([*now, "--publish_weights", "ema"]))
    assert lines == [
        "the run was begun with publish_weights raw and goes on with ema",
        "the run was begun with save_steps 3 and goes on with 2",
    ]


# Runs of earlier versions

AVERAGED = ["--recipe", "debug", "--ema_decay", "0.9"]
THE_REST_AS_EARLIER = [f"--{name}={value}" for name, value in EARLIER.items() if name != "ema_warmup"]


def as_recorded_earlier(arguments, path) -> str:
    """The recipe that an earlier version would have written beside a run; of its published model, without versions."""
    save_recipe(arguments, path)
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([first, *(line for line in lines if line.partition(":")[0] not in EARLIER)]) + "\n")
    return str(path)


@pytest.mark.parametrize("name", EARLIER)
def test_what_was_otherwise_in_earlier_versions_is_said_where_it_does_something(name, out):
    now = {repr(load_recipe(recipe).get(name, DEFAULTS[name])) for recipe in list_recipes()}
    assert now != {repr(EARLIER[name])} and name in REFUSED
    does = resolved_recipe(resolve_arguments([*AVERAGED, *out]))
    assert does[name] == DEFAULTS[name]
    assert earlier_values(does) == {}
    does_not = resolved_recipe(resolve_arguments(["--recipe", "digits_teacher", *out]))
    assert name not in does_not and name not in earlier_values(does_not)
    assert earlier_values({key: value for key, value in does.items() if key != name}) == {name: EARLIER[name]}


@pytest.mark.parametrize("is_published", [False, True])
def test_a_run_of_an_earlier_version_goes_on_with_its_average_alone(tmp_path, out, is_published):
    file = as_recorded_earlier(resolve_arguments([*AVERAGED, *out]), tmp_path / "recipe.yaml")
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text()) if is_published else file
    same = [*AVERAGED, *THE_REST_AS_EARLIER, *out, *(("--resume_from_hub", "lab/run") * is_published)]
    said = r"with ema_warmup true, got false.* earlier version.*--ema_warmup true to go on"
    with pytest.raises(InputError, match=said):
        check_same_run(recipe, resolve_arguments(same))
    for now in ([*same, "--ema_warmup", "true"], ["--recipe", file, *same[len(AVERAGED) :]]):
        check_same_run(recipe, resolve_arguments(now))
    without = resolve_arguments(["--recipe", "debug", "--ema_decay", "0", *THE_REST_AS_EARLIER, *out])
    check_same_run(as_recorded_earlier(without, tmp_path / "recipe.yaml"), without)  # it had none


def test_a_run_of_an_earlier_version_goes_on_with_views_side_by_side(tmp_path, out):
    own = ["--recipe", "own_images", "--train_dir", "x", "--distillation_type", "none"]
    file = as_recorded_earlier(resolve_arguments([*own, *out]), tmp_path / "recipe.yaml")
    assert load_recipe(file)["repeats_placement"] == "adjacent"
    said = r"with repeats_placement adjacent, got spread.* earlier version.*--repeats_placement adjacent to go on"
    with pytest.raises(InputError, match=said):
        check_same_run(file, resolve_arguments([*own, *out]))
    for now in ([*own, "--repeats_placement", "adjacent"], ["--recipe", file]):
        check_same_run(file, resolve_arguments([*now, *out]))
    save_recipe(resolve_arguments([*own, *out]), tmp_path / "recipe.yaml")
    for now in (own, ["--recipe", file]):
        check_same_run(file, resolve_arguments([*now, *out]))
    once = resolve_arguments([*own, "--repeated_augmentation", "1", *out])
    check_same_run(as_recorded_earlier(once, tmp_path / "recipe.yaml"), once)


def test_a_run_of_this_version_goes_on_with_its_own(tmp_path, out):
    for given, other in (("false", "true"), ("true", "false")):
        save_recipe(resolve_arguments([*AVERAGED, "--ema_warmup", given, *out]), tmp_path / "recipe.yaml")
        for line in ([*AVERAGED, "--ema_warmup", given], ["--recipe", str(tmp_path / "recipe.yaml")]):
            check_same_run(str(tmp_path / "recipe.yaml"), resolve_arguments([*line, *out]))
        with pytest.raises(InputError, match=f"started with ema_warmup {given.title()}, got {other.title()}: resume"):
            check_same_run(str(tmp_path / "recipe.yaml"), resolve_arguments([*AVERAGED, "--ema_warmup", other, *out]))


def test_a_recorded_recipe_means_what_its_run_did_and_one_that_people_write_what_it_says(tmp_path, out, caplog):
    recorded = as_recorded_earlier(resolve_arguments([*AVERAGED, *out]), tmp_path / "recorded.yaml")
    (tmp_path / "above.yaml").write_text("base: recorded.yaml\nmax_steps: 2\n")
    written = tmp_path / "written.yaml"
    written.write_text("# Mine.\nema_decay: 0.9\nteacher_recipe: debug_teacher\n")
    means = {"ema_warmup": True, "teacher_input_size": "student"}
    for recipe in (recorded, str(tmp_path / "above.yaml")):
        caplog.clear()
        arguments = resolve_arguments(["--recipe", recipe, *out])
        assert (arguments.training.ema_warmup, arguments.model.teacher_input_size) == (True, "student")
        told = "".join(caplog.messages)
        assert "where ema_warmup was true" in told and "where teacher_input_size was student" in told
        assert load_recipe(recipe).items() >= means.items()
    caplog.clear()
    line = ["--recipe", recorded, "--ema_warmup", "false", "--teacher_input_size", "own", *out]
    assert not resolve_arguments(line).training.ema_warmup
    assert not resolve_arguments(["--recipe", str(written), *out]).training.ema_warmup
    assert not means.keys() & load_recipe(written).keys()
    off = resolve_arguments(["--recipe", recorded, "--ema_decay", "0", "--distillation_type", "none", *out])
    assert not off.training.ema_warmup and off.model.teacher_input_size == "own"
    assert not [message for message in caplog.messages if any(name in message for name in means)]


def test_templates_that_are_not_named_are_the_usual_ones():
    """A run writes down those that it has taken: the same command goes on with it, another's templates do not."""
    run = {**RUN, "class_names": ["cat", "dog"]}
    stated = {**run, "templates": list(DEFAULT_TEMPLATES)}
    assert not [*refused(stated, run)] and not [*refused(run, stated)]
    assert [one.name for one in refused({**run, "templates": ["a {}."]}, run)] == ["templates"]


def test_texts_of_classes_are_compared_and_not_the_files_that_held_them(out, tmp_path):
    texts = {
        "one": "dog: a dog.\n'1': one\n",
        "same": "'1': [one]\ndog: [a dog.]\n",
        "other": "dog: a cat.\n'1': one\n",
    }
    teacher = ["--teacher_model_name_or_path", "lab/clip", "--train_dir", "x"]
    arguments = {}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        arguments[name] = resolve_arguments([*out, *teacher, "--class_prompts", str(tmp_path / f"{name}.yaml")])
    save_recipe(arguments["one"], tmp_path / "recipe.yaml")
    check_same_run(str(tmp_path / "recipe.yaml"), arguments["same"])
    with pytest.raises(InputError, match=r"class_prompts .*a dog.*a cat"):
        check_same_run(str(tmp_path / "recipe.yaml"), arguments["other"])
    again = resolve_arguments([*out, "--recipe", str(tmp_path / "recipe.yaml")])
    assert again.model.class_prompts == {"dog": ["a dog."], "1": ["one"]}
    assert str(tmp_path / "one.yaml") not in (tmp_path / "recipe.yaml").read_text()
