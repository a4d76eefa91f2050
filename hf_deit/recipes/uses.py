"""Whether an option does anything beside the others: one that does not is refused, or, in a recipe, gives way."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.arguments import DIGITS, DataArguments, why_unused
from ..errors import InputError
from ..training.arguments import DistillationTrainingArguments, ModelArguments

if TYPE_CHECKING:
    from .resolve import Arguments

Options = Mapping[str, Any]

# Of all arguments, by name.
DEFAULTS = {
    field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    for part in (ModelArguments, DataArguments, DistillationTrainingArguments)
    for field in dataclasses.fields(part)
}
_DATA = frozenset(field.name for field in dataclasses.fields(DataArguments))
# Of a recipe they may stand beside a teacher: a run writes down both how it has made one and what came of it.
MAKERS = ("teacher_recipe", "teacher_probe")
# What is given on top takes the place of the other below, which says the same in another way.
_IN_PLACE_OF = (
    ("train_dir", "dataset_name"),
    ("dataset_name", "train_dir"),
    ("unlabeled_dir", "unlabeled_dataset_name"),
    ("unlabeled_dataset_name", "unlabeled_dir"),
    ("teacher_recipe", "teacher_model_name_or_path"),
    ("teacher_recipe", "teacher_probe"),
    ("teacher_probe", "teacher_model_name_or_path"),
    ("teacher_probe", "teacher_recipe"),
    ("num_train_epochs", "max_steps"),
    ("warmup_epochs", "warmup_steps"),
    ("warmup_steps", "warmup_epochs"),
)
# Another name on top leaves nothing of the commit, or of the weights, that were meant below.
_OF_A_NAME = {
    "student": ("student_revision",),
    "teacher_model_name_or_path": ("teacher_revision", "teacher_weights"),
    "teacher_labels": ("teacher_labels_revision",),
    "dataset_name": ("dataset_revision",),
    "unlabeled_dataset_name": ("unlabeled_dataset_revision",),
}


def settle(below: Options, on_top: Options) -> dict[str, Any]:
    """What is left of some options when others come on top of them.

    Args:
        below: of a recipe, or of its base.
        on_top: of the command line, or of the recipe that stands on the base.

    Returns:
        Those of `below` that neither give way to another one of `on_top` nor have lost by it what they are about. One
        that did nothing before stays, to be refused by `check_uses`.
    """
    kept = dict(below)
    for given, replaced in _IN_PLACE_OF:
        if _is_given(given, on_top):
            kept.pop(replaced, None)
    for name, of_it in _OF_A_NAME.items():
        if name in on_top and name in below and on_top[name] != below[name]:
            kept = {other: value for other, value in kept.items() if other not in of_it}
    before, after = {**DEFAULTS, **below}, {**DEFAULTS, **kept, **on_top}
    lost = [
        name
        for name in kept
        if name not in on_top and name not in MAKERS and _is_given(name, kept)
        if _reason(name, after) and not _reason(name, before)
    ]
    return {name: value for name, value in kept.items() if name not in lost}


def check_uses(arguments: "Arguments") -> None:
    """Refuses options that do nothing beside the others; those about the images, `load_data` refuses likewise.

    Raises:
        InputError: says why, and what to drop or to give instead.
    """
    options = {field.name: getattr(part, field.name) for part in arguments for field in dataclasses.fields(part)}
    for name, value in options.items():
        if name in _DATA or name in MAKERS or not _is_given(name, options) or value == DEFAULTS[name]:
            continue
        if reason := _reason(name, options):
            raise InputError(reason)


def check_given(recipe: Options, command_line: Options) -> None:
    """Refuses what arguments no longer show: options that are given at their default, and actions.

    Args:
        recipe: what `settle` has left of it.
        command_line: the options that it gives, by name.

    Raises:
        InputError: an option that does nothing, or something that is not done here.
    """
    options = {**DEFAULTS, **recipe, **command_line}
    for name, value in command_line.items():
        hides = name in MAKERS or (name in _DATA and value == DEFAULTS[name])
        if hides and _is_given(name, command_line) and (reason := _reason(name, options)):
            raise InputError(reason)
    given = {**recipe, **command_line}
    for (name, value), what_does_it in _NOT_DONE.items():
        if name in given and _is_true(given[name]) == value:
            raise InputError(f"--{name} {str(value).lower()}: {what_does_it}")


def without_unused(recipe: Options) -> dict[str, Any]:
    """A recipe without the options that do nothing in it."""
    options = {**DEFAULTS, **recipe}
    return {name: value for name, value in recipe.items() if not _is_given(name, recipe) or not _reason(name, options)}


def is_used(name: str, recipe: Options) -> bool:
    """Whether an argument does something beside the others of a recipe."""
    return _reason(name, {**DEFAULTS, **recipe}) is None


def _reason(name: str, options: Options) -> str | None:
    """Why an option does nothing beside the others, and what to do; None if it does something."""
    if name in _DATA:
        return why_unused(name, options)
    use = _USES.get(name)
    if use is None or use.holds(options):
        return None
    plain = {other: _plain(value) for other, value in options.items()}
    return f"--{name} {use.about}, got {plain[name]!r}{use.but.format(**plain)}"


def _is_given(name: str, options: Options) -> bool:
    """Whether an option asks for anything: nothing, false and 0 do not, and transformers' -1 of max_steps."""
    value = options.get(name)
    return _is_positive(value) if name == "max_steps" else bool(value)


def _is_positive(value: Any) -> bool:
    """Of a number, which a recipe may have written as text; other text and true are."""
    try:
        return float(value or 0) > 0
    except (TypeError, ValueError):
        return bool(value)


def _is_true(value: Any) -> bool:
    """Of a switch, which a recipe may have written as text."""
    return str(value).lower() in ("true", "yes", "y", "t", "on", "1")


def _plain(value: Any) -> Any:
    """The word of an enumeration's member; anything else as it is."""
    return getattr(value, "value", value)


class _Use(NamedTuple):
    """When an option does something.

    Attributes:
        holds: of all options by name, whether it does.
        about: what it does, in words.
        but: why it does not where `holds` says so, and what to do.
    """

    holds: Callable[[Options], bool]
    about: str
    but: str


def _is_distilled(options: Options) -> bool:
    return options["distillation_type"] != "none"


def _is_taught(options: Options) -> bool:
    named = ("teacher_model_name_or_path", *MAKERS)
    return _is_distilled(options) and any(options[name] for name in named)


def wants_teacher(options: Options) -> bool:
    """Whether options ask for a teacher, or for the labels of one, or for images that only a teacher labels."""
    names = ("teacher_model_name_or_path", "teacher_recipe", "teacher_probe", "teacher_labels")
    return any(options[name] for name in names) or _has_unlabeled(options)


def _is_soft(options: Options) -> bool:
    return options["distillation_type"] == "soft"


def _keeps_labels(options: Options) -> bool:
    return _is_distilled(options) and bool(options["teacher_labels"])


def _has_labels(options: Options) -> bool:
    is_labelled = options["dataset_name"] or options["train_dir"]
    return bool(is_labelled or not _has_unlabeled(options))


def _tells_classes(options: Options) -> bool:
    """Whether somebody says which classes there are before a teacher does; of several the first one may."""
    is_said = options["class_names"] or options["class_prompts"]
    return bool(_has_labels(options) or is_said or isinstance(options["teacher_model_name_or_path"], list))


def _has_unlabeled(options: Options) -> bool:
    return bool(options["unlabeled_dir"] or options["unlabeled_dataset_name"])


def lacks_labels(recipe: Options) -> bool:
    """Whether a recipe names images without labels alone: nothing can be measured on them."""
    options = {**DEFAULTS, **recipe}
    return not _has_labels(options) and not options["validation_dir"]


def is_pretrained(options: Options) -> bool:
    """Whether the student that options name is a checkpoint, and not made anew."""
    from transformers import CONFIG_MAPPING

    from ..models.zoo import list_models

    return options["student"] not in (*list_models(), *CONFIG_MAPPING)


def _is_on_hub(name: str | None) -> bool:
    return bool(name) and not os.path.exists(name)


def _is_cosine(options: Options) -> bool:
    return options["lr_scheduler_type"] == "cosine"


def _warms_up(options: Options) -> bool:
    return _is_positive(options["warmup_epochs"]) or _is_positive(options["warmup_steps"])


def _all_on(*names: str) -> Callable[[Options], bool]:
    return lambda options: all(_is_positive(options[name]) for name in names)


def _saves(options: Options) -> bool:
    return options["save_strategy"] != "no"


def _mixes(options: Options) -> bool:
    return _is_positive(options["mixup"]) or _is_positive(options["cutmix"])


_UNTAUGHT = ', but distillation_type is "none": drop one of them'
_NOT_SOFT = ", but distillation_type is {distillation_type!r}: leave it out, or give --distillation_type soft"
_NO_LABELS = ", but there is no --teacher_labels: leave it out, or name their folder"
_NO_PUSH = ", but nothing is pushed: leave it out, or give --push_to_hub true"
_NO_COSINE = ", but lr_scheduler_type is {lr_scheduler_type!r}: leave it out"
_MADE_ANEW = ", but {student!r} is made anew: leave it out, or name a checkpoint with --student"
_NO_WORKERS = ", but dataloader_num_workers is 0: leave it out, or give --dataloader_num_workers"
_NOT_SAVED = ", but save_strategy is {save_strategy!r}: leave it out, or give --save_strategy"
# Options that do nothing beside some others. That of the images are in `hf_deit.data.arguments`.
_USES = {
    "student_revision": _Use(
        lambda options: is_pretrained(options) and _is_on_hub(options["student"]),
        "is of a student on the Hub",
        ", but {student!r} is none: leave it out",
    ),
    "replace_head": _Use(is_pretrained, "gives a pretrained student new heads", _MADE_ANEW),
    "freeze": _Use(is_pretrained, "keeps what a pretrained student has learnt", _MADE_ANEW),
    "teacher_model_name_or_path": _Use(_is_distilled, "names a teacher", _UNTAUGHT),
    "teacher_revision": _Use(
        lambda options: _is_distilled(options) and _is_on_hub(options["teacher_model_name_or_path"]),
        "is of a teacher on the Hub",
        ", but the teacher is {teacher_model_name_or_path!r}: leave it out, or give --teacher_model_name_or_path",
    ),
    "teacher_dtype": _Use(
        _is_taught,
        "is of a teacher",
        ", but there is none: leave it out, or give --teacher_model_name_or_path",
    ),
    "teacher_speed": _Use(
        _is_taught,
        "is of a teacher",
        ", but there is none: leave it out, or give --teacher_model_name_or_path",
    ),
    "teacher_input_size": _Use(
        lambda options: _is_taught(options) or _keeps_labels(options),
        "is of a teacher",
        ", but there is none: leave it out, or give --teacher_model_name_or_path",
    ),
    "teacher_weights": _Use(
        lambda options: isinstance(options["teacher_model_name_or_path"], list),
        "weighs several teachers",
        ", but there are no several: leave it out, or name them all with --teacher_model_name_or_path",
    ),
    **{
        name: _Use(
            lambda options: bool(_is_distilled(options) and options["teacher_model_name_or_path"]),
            about,
            ", but no teacher is named: leave it out, or give --teacher_model_name_or_path",
        )
        for name, about in (
            ("class_names", "tells a zero-shot teacher the classes"),
            ("class_prompts", "tells a zero-shot teacher what the classes look like"),
            ("templates", "tells a zero-shot teacher how to speak of a class"),
            ("teacher_prior_correction", "corrects a zero-shot teacher"),
        )
    },
    "teacher_label_subset": _Use(
        lambda options: bool(
            _is_distilled(options) and options["teacher_model_name_or_path"] and _tells_classes(options)
        ),
        "chooses among a teacher's classes those of the images' labels, or of --class_names",
        ", but no teacher is named, or there are neither labels nor names: leave it out, or give what is missing",
    ),
    "teacher_probe": _Use(
        lambda options: (
            _is_distilled(options)
            and not options["teacher_model_name_or_path"]
            and not options["teacher_recipe"]
            and not options["streaming"]
            and bool(options["dataset_name"] or options["train_dir"])
        ),
        "fits a teacher on labelled images that are no stream, where no other is named",
        ", but dataset_name is {dataset_name!r}, train_dir {train_dir!r}, streaming {streaming}, "
        "teacher_model_name_or_path {teacher_model_name_or_path!r}, teacher_recipe {teacher_recipe!r} and "
        "distillation_type {distillation_type!r}: drop one of them",
    ),
    "layer_decay": _Use(
        lambda options: options["freeze"] != "all_but_heads",
        "lets layers learn more slowly than the heads",
        ", but freeze is {freeze!r}: leave one of them out",
    ),
    "early_stopping_patience": _Use(
        lambda options: options["eval_strategy"] != "no" and _is_true(options["load_best_model_at_end"]),
        "ends a run by its evaluations, and goes back to the best",
        ", but eval_strategy is {eval_strategy!r} and load_best_model_at_end {load_best_model_at_end}: leave it out, "
        "or give --eval_strategy, --load_best_model_at_end true and --metric_for_best_model top1",
    ),
    "min_train_steps": _Use(
        lambda options: not _is_positive(options["max_steps"]),
        "is the least length of a run in epochs",
        ", but max_steps is {max_steps}: leave one of them out",
    ),
    "teacher_recipe": _Use(
        lambda options: _is_distilled(options) and not options["teacher_model_name_or_path"],
        "trains a teacher where none is named",
        ", but teacher_model_name_or_path is {teacher_model_name_or_path!r} and distillation_type is "
        "{distillation_type!r}: drop one of them",
    ),
    "check_images": _Use(
        lambda options: options["dataset_name"] != DIGITS or _has_unlabeled(options),
        "is about images in folders and data sets",
        ", but those of {dataset_name} come with a library: leave it out",
    ),
    "cache_images": _Use(
        lambda options: not options["streaming"],
        "keeps images by their rows",
        ", but streaming is true: leave one of them out",
    ),
    "cache_images_gb": _Use(
        lambda options: options["cache_images"] in ("decoded", "resized") and not options["streaming"],
        "is how much cache_images may take",
        ", but cache_images is {cache_images!r}, streaming {streaming}: leave it out, or give --cache_images decoded "
        "or resized",
    ),
    "reduced_decoding": _Use(
        lambda options: options["dataset_name"] != DIGITS or _has_unlabeled(options),
        "is about JPEG images",
        ", but those of {dataset_name} are none: leave it out",
    ),
    "distillation_alpha": _Use(_is_distilled, "weighs what a teacher says", _UNTAUGHT),
    "distillation_temperature": _Use(_is_soft, "is of soft distillation", _NOT_SOFT),
    "distillation_reduction": _Use(_is_soft, "is of soft distillation", _NOT_SOFT),
    "on_bad_teacher_answer": _Use(_is_distilled, "is about what a teacher says", _UNTAUGHT),
    "teacher_labels": _Use(_is_distilled, "keeps what a teacher says", _UNTAUGHT),
    "teacher_labels_revision": _Use(
        lambda options: _keeps_labels(options) and _is_on_hub(options["teacher_labels"]),
        "is of labels on the Hub",
        ", but teacher_labels is {teacher_labels!r}: leave it out",
    ),
    "teacher_labels_readonly": _Use(_keeps_labels, "is about kept labels", _NO_LABELS),
    "teacher_labels_top_k": _Use(_keeps_labels, "is about kept labels", _NO_LABELS),
    "verify_teacher_labels": _Use(_keeps_labels, "is about kept labels", _NO_LABELS),
    "label_smoothing_factor": _Use(
        _has_labels, "smooths the images' own labels", ", but there are images without labels alone: leave it out"
    ),
    "repeats_placement": _Use(
        lambda options: str(options["repeated_augmentation"]) != "1",
        "says where the views of an image stand",
        ", but repeated_augmentation is {repeated_augmentation!r}: leave it out, or give --repeated_augmentation 3",
    ),
    "mixup_probability": _Use(_mixes, "is of mixup and CutMix", ", but both are off: leave it out"),
    "mixup_switch_probability": _Use(
        _all_on("mixup", "cutmix", "mixup_probability"),
        "chooses between mixup and CutMix",
        ", but they are not both on: leave it out",
    ),
    "mixup_group_size": _Use(
        lambda options: _mixes(options) and _is_positive(options["mixup_probability"]),
        "is of mixup and CutMix",
        ", but both are off: leave it out",
    ),
    "ema_warmup": _Use(_all_on("ema_decay"), "is about the moving average", ", but ema_decay is 0: give one"),
    "publish_weights": _Use(_all_on("ema_decay"), "is about the moving average", ", but ema_decay is 0: give one"),
    "warmup_learning_rate": _Use(
        lambda options: _is_cosine(options) and _warms_up(options),
        "is where the cosine schedule's warm-up starts",
        ", but lr_scheduler_type is {lr_scheduler_type!r} with a warm-up of {warmup_epochs} epochs and {warmup_steps} "
        "steps: leave it out, or give --warmup_epochs",
    ),
    "min_learning_rate": _Use(_is_cosine, "is where the cosine schedule ends", _NO_COSINE),
    "warmup_steps": _Use(
        lambda options: options["lr_scheduler_type"] not in ("constant", "reduce_lr_on_plateau", "greedy"),
        "is the length of the warm-up",
        ", but lr_scheduler_type {lr_scheduler_type!r} has none: leave it out",
    ),
    "hub_strategy": _Use(_all_on("push_to_hub"), "says what is pushed, and when", _NO_PUSH),
    "hub_always_push": _Use(_all_on("push_to_hub"), "says when is pushed", _NO_PUSH),
    "hub_private_repo": _Use(_all_on("push_to_hub"), "is of a repository to push to", _NO_PUSH),
    "hub_push_timeout": _Use(_all_on("push_to_hub"), "is of pushes", _NO_PUSH),
    "eval_steps": _Use(
        lambda options: options["eval_strategy"] == "steps",
        "is how often is evaluated",
        ", but eval_strategy is {eval_strategy!r}: leave it out, or give --eval_strategy steps",
    ),
    "eval_epochs": _Use(
        lambda options: "epoch" in (_plain(options["eval_strategy"]), _plain(options["save_strategy"])),
        "is how often is evaluated and saved, in epochs",
        ", but neither eval_strategy nor save_strategy is 'epoch': leave it out",
    ),
    "eval_delay": _Use(
        lambda options: options["eval_strategy"] != "no",
        "is when evaluations begin",
        ", but eval_strategy is {eval_strategy!r}: leave it out, or give --eval_strategy",
    ),
    "save_steps": _Use(
        lambda options: options["save_strategy"] == "steps",
        "is how often is saved",
        ", but save_strategy is {save_strategy!r}: leave it out, or give --save_strategy steps",
    ),
    "save_total_limit": _Use(_saves, "is how many checkpoints are kept", _NOT_SAVED),
    "save_only_model": _Use(_saves, "is what a checkpoint holds", _NOT_SAVED),
    "load_best_model_at_end": _Use(
        lambda options: _saves(options) and options["eval_strategy"] != "no",
        "keeps the best of what is evaluated and saved",
        ", but eval_strategy is {eval_strategy!r} and save_strategy {save_strategy!r}: leave it out, or give both",
    ),
    "logging_steps": _Use(
        lambda options: options["logging_strategy"] == "steps",
        "is how often is logged",
        ", but logging_strategy is {logging_strategy!r}: leave it out, or give --logging_strategy steps",
    ),
    **{
        name: _Use(_all_on("dataloader_num_workers"), "is of the loader's workers", _NO_WORKERS)
        for name in ("dataloader_prefetch_factor", "dataloader_multiprocessing_context")
    },
    "activation_checkpointing_kwargs": _Use(
        lambda options: options["activation_checkpointing"] or options["gradient_checkpointing"],
        "is how activations are computed again",
        ", but they are kept: leave it out, or give --activation_checkpointing true",
    ),
    "fsdp_config": _Use(_all_on("fsdp"), "is of FSDP", ", but there is none: leave it out, or give --fsdp full_shard"),
    **{
        name: _Use(
            lambda options: any(word in str(options["report_to"]) for word in ("trackio", "all")),
            "is of Trackio",
            ", but report_to is {report_to!r}: leave it out, or give --report_to trackio",
        )
        for name in ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
    },
    "optim_target_modules": _Use(
        lambda options: str(_plain(options["optim"])).startswith(("galore", "apollo")),
        "is of GaLore and APOLLO",
        ", but optim is {optim!r}: leave it out",
    ),
}

IN_ITS_COMMAND = (
    "hf-deit evaluate --model FOLDER evaluates a model that is trained already, as in Python does the evaluate method "
    "of a DistillationTrainer"
)
IN_ITS_CARD = "a trained model classifies images by the lines under Use in its README.md"
# The switches of transformers' example scripts that ask for what this command does not do, or always does.
_NOT_DONE = {
    ("do_train", False): f"hf-deit train always trains; {IN_ITS_COMMAND}",
    ("do_eval", False): "a run always ends with an evaluation, if there are images to validate with; --eval_strategy "
    "no leaves out those before",
    ("do_predict", True): f"hf-deit train predicts nothing; {IN_ITS_CARD}, or the predict method of a "
    "DistillationTrainer, in Python",
}
