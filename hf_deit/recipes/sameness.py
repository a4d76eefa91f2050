"""What of a run's arguments may be others when it goes on: one table over all of them."""

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import yaml

from ..data.arguments import DataArguments
from ..hub.recipe_file import parse_recipe
from ..models.ensemble import normalized_weights
from ..models.pretrained import name_and_revision
from ..models.zero_shot.prompts import DEFAULT_TEMPLATES
from ..training.arguments import UNFIT_OPTIONS, DistillationTrainingArguments
from ..training.checkpoints import resume_wish
from .uses import DEFAULTS, is_used

# What an argument that is younger than a run was in it, where recipes or defaults have another value now. Resolved
# recipes say those that do something though they be at their default: one that lacks them is an earlier version's.
# `uses` must know when they do nothing.
EARLIER = {"teacher_input_size": "student", "ema_warmup": True, "repeats_placement": "adjacent"}
# They make another run: refused, in the order in which differences are told. So is what the table does not know, as of
# a later version of transformers.
REFUSED = (
    *("student", "student_revision", "student_overrides", "image_size", "crop_ratio", "replace_head", "freeze"),
    *("distillation_type", "teacher_model_name_or_path", "teacher_revision", "teacher_recipe", "teacher_dtype"),
    *("teacher_weights", "teacher_label_subset", "teacher_probe", "class_names", "class_prompts", "templates"),
    "teacher_prior_correction",
    *("teacher_input_size", "distillation_alpha", "distillation_temperature", "distillation_reduction"),
    *("teacher_labels_revision", "teacher_labels_top_k"),
    *("crop_scale_min", "horizontal_flip", "auto_augment", "repeated_augmentation", "repeats_placement"),
    "reduced_decoding",
    *("random_erasing", "mixup", "cutmix", "mixup_probability", "mixup_switch_probability", "mixup_group_size"),
    *("label_smoothing_factor", "seed", "data_seed"),
    # The optimizer's state brings its own numbers along: others would be stated, and not be used.
    *("optim", "optim_args", "optim_target_modules", "learning_rate", "scale_learning_rate", "weight_decay"),
    "layer_decay",
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "schedule_per", "warmup_learning_rate", "min_learning_rate"),
    *("warmup_steps", "warmup_epochs", "max_steps", "num_train_epochs", "ema_decay", "ema_warmup"),
    "min_train_steps",
    # The best result so far is by the metric of its time.
    *("metric_for_best_model", "greater_is_better"),
    # The optimizer's state has another form in each.
    *("fsdp", "fsdp_config", "deepspeed", "accelerator_config"),
    *(field.name for field in fields(DataArguments) if not field.name.startswith("test_")),
    *UNFIT_OPTIONS,
)
# What weights depend on by rounding, or by the images that are skipped: the card says until when it was otherwise.
NOTED = (
    *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode", "full_determinism"),
    *("on_bad_image", "on_bad_teacher_answer"),
)
# They take effect from the checkpoint on; a line says so.
APPLIED = (
    *NOTED,
    *("publish_weights", "eval_strategy", "eval_steps", "eval_epochs", "eval_delay", "eval_on_start"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "early_stopping_patience"),
    *("logging_strategy", "logging_steps", "logging_first_step"),
    # Nobody looks at them before the end.
    *("test_split", "test_dir"),
    # It can be given up, say where the best checkpoint is damaged; for what was not kept, it comes too late.
    "load_best_model_at_end",
)
# Of these, what a run that is at its end still does.
USED_AT_THE_END = ("publish_weights", "load_best_model_at_end", "test_split", "test_dir")
# They change nothing of what is learnt or measured, but where, how fast and how visibly.
MAY_CHANGE = (
    # A checkpoint says how its teacher has run.
    "teacher_speed",
    # Folders, and where labels of the same teacher are kept.
    *("output_dir", "resume_from_checkpoint", "resume_from_hub"),
    *("teacher_labels", "teacher_labels_readonly", "verify_teacher_labels"),
    # The total batch must stay, as the checkpoint has it; how it is shared out may change.
    *("total_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"),
    *("average_tokens_across_devices", "eval_accumulation_steps", "include_for_metrics"),
    # Hardware.
    *("use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "ddp_find_unused_parameters", "ddp_bucket_cap_mb"),
    *("ddp_broadcast_buffers", "ddp_static_graph", "activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_empty_cache_steps", "skip_memory_metrics"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_drop_last", "check_images"),
    *("cache_images", "cache_images_gb"),
    # What is shown and reported.
    *("log_format", "log_level", "log_level_replica", "log_on_each_node", "disable_tqdm", "report_to", "run_name"),
    *("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug"),
    # What is pushed, and what is kept of callbacks.
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    *("hub_revision", "hub_push_timeout", "save_on_each_node", "restore_callback_states_from_checkpoint"),
    *("do_train", "do_eval", "do_predict"),
)
# Who teaches; to be told apart from a teacher that the run has made itself, into this folder of its own.
_OF_THE_TEACHER = ("teacher_model_name_or_path", "teacher_recipe", "teacher_probe", "teacher_revision")
TRAINED_TEACHER = "teacher"
# A schedule that goes by what is measured goes by how often, too.
_FOLLOWING_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
_EVALUATIONS = ("eval_strategy", "eval_steps", "eval_epochs", "eval_delay", "eval_on_start")
# Numbers that follow from the length of the run where they are 0.
_PACE = ("logging_steps", "eval_epochs")
# Nothing where they are left to the student, whose configuration and image processor the checkpoint has.
_OF_THE_STUDENT = ("image_size", "crop_ratio")
_PATHS = (
    *("student", "teacher_model_name_or_path", "teacher_recipe", "teacher_probe", "deepspeed"),
    *(name for name in DEFAULTS if name.endswith(("_dir", "dataset_name"))),
)
# Where images lie matters no more than where a run does, if they are compared themselves.
_FOLDERS_OF_IMAGES = ("train_dir", "validation_dir", "test_dir", "unlabeled_dir")
# What one means by several texts.
_OTHER_WORDS = {
    "teacher_dtype": lambda text: text.removeprefix("torch."),
    "metric_for_best_model": lambda text: text.removeprefix("eval_"),
    "optim_args": lambda text: sorted(text.replace(" ", "").split(",")),
}
# What may be another option on each machine of a run: where things lie, its hardware, what it shows and where it
# reports to.
OF_ONE_MACHINE = (
    *("output_dir", "use_cpu", "local_rank", "ddp_backend", "debug", "skip_memory_metrics"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "cache_images_gb"),
    *("log_format", "log_level", "log_level_replica", "log_on_each_node", "disable_tqdm", "report_to", "run_name"),
    *("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "hub_token"),
)
# Names of which each machine may have a folder of its own, whose content is compared.
_PERHAPS_FOLDERS = (
    *("student", "teacher_model_name_or_path", "teacher_labels", "dataset_name", "unlabeled_dataset_name"),
    *("deepspeed", "teacher_recipe", "teacher_probe", "resume_from_checkpoint"),
)
_A_FOLDER = "a folder or file there"
# The one value of cache_images that makes other pixels; the others are alike, and nobody else's business.
_RESIZED = "resized"
_ORDER = {name: place for place, name in enumerate(REFUSED)}


def earlier_values(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What the arguments of `EARLIER` were in a run whose recipe does not say them; not of a recipe that people write.

    Args:
        recorded: the resolved recipe of a run, as it was written.
    """
    missing = {name: value for name, value in EARLIER.items() if name not in recorded}
    return {name: value for name, value in missing.items() if is_used(name, {**recorded, name: value})}


def as_word(value: Any) -> str:
    """A value as one gives it on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Difference(NamedTuple):
    """An argument that differs, with both values."""

    name: str
    before: Any
    now: Any


def refused(
    before: Mapping[str, Any], now: Mapping[str, Any], *, compared: Collection[str] = ()
) -> Iterator[Difference]:
    """What differs between two recipes and makes two runs of them.

    Args:
        before: the resolved recipe that a run was started with, without what does nothing in it.
        now: the one that it shall go on with, likewise.
        compared: which of "train", the images, and "teacher" will be compared themselves, so that their folders may
            have been moved.
    """
    may_differ = {*MAY_CHANGE, *APPLIED, *_OF_THE_TEACHER}
    if before.get("lr_scheduler_type") in _FOLLOWING_EVALUATIONS:
        may_differ -= {*_EVALUATIONS}
    if not all(any(map(side.get, _OF_THE_TEACHER[:3])) for side in (before, now)):
        may_differ |= {"teacher_dtype", "teacher_input_size"}  # kept labels say whose they are
    if before.get("teacher_labels") != now.get("teacher_labels") or not now.get("teacher_labels_revision"):
        may_differ.add("teacher_labels_revision")
    if now.get("load_best_model_at_end"):
        yield from _differences(["load_best_model_at_end"], before, now)
    elif before.get("load_best_model_at_end") and not now.get("metric_for_best_model"):  # transformers' own: "loss"
        may_differ |= {"metric_for_best_model", "greater_is_better"}
    if all(isinstance(side.get("teacher_model_name_or_path"), list) for side in (before, now)):
        may_differ.add("teacher_weights")  # that go with the teachers, in whatever order
    if _RESIZED in (before.get("cache_images"), now.get("cache_images")):
        may_differ.discard("cache_images")
    if "train" in compared:
        may_differ |= {name for name in _FOLDERS_OF_IMAGES if before.get(name) and now.get(name)}
    names = [name for name in DEFAULTS if name not in may_differ]
    yield from _other_teacher(before, now, is_compared="teacher" in compared)
    yield from _differences(sorted(names, key=lambda name: _ORDER.get(name, len(_ORDER))), before, now)


def stated_options(recipe: Mapping[str, Any], args: DistillationTrainingArguments) -> dict[str, Any]:
    """The options of a process that those of the others must equal, for `differing`.

    Args:
        recipe: resolved.
        args: of the training, which knows whether a run goes on, as its recipe does not.
    """
    wish = resume_wish(args.resume_from_checkpoint)
    options = {**DEFAULTS, **recipe, "resume_from_checkpoint": wish, "resume_from_hub": args.resume_from_hub}
    options["push_to_hub"] = args.push_to_hub
    options["data_seed"] = options["seed"] if options["data_seed"] is None else options["data_seed"]
    options["cache_images"] = _RESIZED if options["cache_images"] == _RESIZED else "off"
    options |= {name: options[name] and _A_FOLDER for name in _FOLDERS_OF_IMAGES}
    for name in _PERHAPS_FOLDERS:
        options[name] = _elsewhere(options[name])
    return {name: getattr(value, "value", value) for name, value in options.items() if name not in OF_ONE_MACHINE}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    """What differs between the options of two processes of one run, from `stated_options`, in the order of `REFUSED`.

    A name that is one of a folder on one machine alone is left to whoever looks for it on the other.
    """
    for name in sorted(one, key=lambda name: _ORDER.get(name, len(_ORDER))):
        here, there = one[name], other.get(name)
        if not (name in _PERHAPS_FOLDERS and _may_be_same(here, there)) and not _is_equal(here, there):
            yield Difference(name, here, there)


def _elsewhere(name: Any) -> Any:
    """A name, or each of several, as other machines may know it: of a folder there is another one on each."""
    if isinstance(name, list):
        return [_elsewhere(one) for one in name]
    return _A_FOLDER if isinstance(name, str) and os.path.exists(name) else name


def _may_be_same(here: Any, there: Any) -> bool:
    """Whether two names, or lists of as many, differ at most in which folder they are."""
    if isinstance(here, list) or isinstance(there, list):
        are_lists = isinstance(here, list) and isinstance(there, list) and len(here) == len(there)
        return are_lists and all(map(_may_be_same, here, there))
    return here == there or (_A_FOLDER in (here, there) and None not in (here, there))


def applied(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """What differs between two recipes of one run, and takes effect where it goes on; arguments as of `refused`."""
    return _differences(APPLIED, before, now)


def _other_teacher(before: Mapping[str, Any], now: Mapping[str, Any], *, is_compared: bool) -> Iterator[Difference]:
    """Which of the arguments that say who teaches name another teacher; one that the run has made need no more."""
    teacher, recipe, probe, revision = (before.get(name) for name in _OF_THE_TEACHER)
    other, other_recipe, other_probe, other_revision = (now.get(name) for name in _OF_THE_TEACHER)
    are_several = [isinstance(name, list) for name in (teacher, other)]
    is_own = not teacher or (not are_several[0] and os.path.basename(teacher) == TRAINED_TEACHER)
    has_trained = bool(recipe or probe) and is_own
    if teacher and other and any(are_several):
        yield from _other_teachers(before, now, is_compared=is_compared)
    elif teacher and other and not is_same_path(teacher, other) and not (is_compared and os.path.isdir(other)):
        yield Difference("teacher_model_name_or_path", teacher, other)
    elif teacher and not other and not has_trained and not now.get("teacher_labels") and _is_distilled(now):
        yield Difference("teacher_model_name_or_path", teacher, None)
    if revision and other_revision and revision != other_revision:
        yield Difference("teacher_revision", revision, other_revision)
    for name, made_by, other_one in (("teacher_recipe", recipe, other_recipe), ("teacher_probe", probe, other_probe)):
        if has_trained and other_one and not is_same_path(made_by or "", other_one):
            yield Difference(name, made_by, other_one)


def _other_teachers(before: Mapping[str, Any], now: Mapping[str, Any], *, is_compared: bool) -> Iterator[Difference]:
    """What differs between teachers of which one side has several: their order does not, if the weights go along."""
    name, weights = "teacher_model_name_or_path", "teacher_weights"
    there, here = before[name], now[name]
    if not isinstance(there, list) or not isinstance(here, list) or len(there) != len(here):
        yield Difference(name, there, here)
        return
    left, places = list(range(len(here))), []
    for teacher in there:
        place = next((place for place in left if _is_same_teacher(teacher, here[place])), None)
        places.append(place)
        left = [one for one in left if one != place]
    if None in places:
        if not is_compared or not all(os.path.isdir(here[place]) for place in left):
            yield Difference(name, there, here)
        return  # moved: they are compared themselves, with their weights
    shares, others = (normalized_weights(side.get(weights), len(there)) for side in (before, now))
    if not all(map(math.isclose, shares, (others[place] for place in places))):
        yield Difference(weights, before.get(weights), now.get(weights))


def _is_same_teacher(one: str, other: str) -> bool:
    """Of two names, each with or without a revision behind an "@"."""
    (name, revision), (other_name, other_revision) = name_and_revision(one), name_and_revision(other)
    return is_same_path(name, other_name) and (revision == other_revision or None in (revision, other_revision))


def _is_distilled(recipe: Mapping[str, Any]) -> bool:
    return recipe.get("distillation_type") != "none"


def _differences(names: Iterable[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    sides = [{**DEFAULTS, **side} for side in (before, now)]
    for side in sides:
        side["data_seed"] = side["seed"] if side["data_seed"] is None else side["data_seed"]
        if not side["logging_steps"]:  # every step that is meant follows from the length of the run
            side["logging_first_step"] = sides[0]["logging_first_step"]
    for name in names:
        there, here = (side[name] for side in sides)
        if not _is_same(name, there, here):
            yield Difference(name, there, here)


def _is_same(name: str, before: Any, now: Any) -> bool:
    """Whether two values of an argument say the same, perhaps in other words."""
    if (name in _PACE and not now) or (name in _OF_THE_STUDENT and None in (before, now)):
        return True
    if name in UNFIT_OPTIONS and all(value in UNFIT_OPTIONS[name][0] for value in (before, now)):
        return True
    if name == "templates":
        before, now = (value or DEFAULT_TEMPLATES for value in (before, now))
    if isinstance(before, str) and isinstance(now, str):
        if name in _PATHS:
            return is_same_path(before, now)
        if (read := _OTHER_WORDS.get(name)) is not None:
            return read(before) == read(now)
    return _is_equal(before, now)


def is_same_path(one: str, other: str) -> bool:
    """Whether two names are the same, or of one folder or file."""
    if one == other or os.path.abspath(one) == os.path.abspath(other):
        return True
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _is_equal(one: Any, other: Any) -> bool:
    """Of values that may have been written as text; nothing is written in several ways."""
    one, other = (getattr(value, "value", value) for value in (one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    if isinstance(one, str) != isinstance(other, str) and None not in (one, other):
        one, other = (_read(value) if isinstance(value, str) else value for value in (one, other))
    return one == other or (_is_nothing(one) and _is_nothing(other))


def _read(text: str) -> Any:
    """The number, the switch or the mapping that a text is of; one that is no YAML is itself."""
    try:
        return parse_recipe(text)
    except yaml.YAMLError:
        return text


def _is_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {}, ())
