"""From a recipe and a command line to arguments, and back; whether two runs are the same."""

import argparse
import copy
import dataclasses
import enum
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, NoReturn, TypeVar

from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import logging

from ..data.arguments import DataArguments
from ..errors import InputError, counted, not_one_of, shortlist
from ..hub.files import write_whole, writing
from ..hub.recipe_file import RECORDED, dump_recipe
from ..hub.run_folder import RECIPE_FILE, list_checkpoints
from ..models.pretrained import name_and_revision
from ..models.student import lacked_fields
from ..models.zero_shot.prompt_file import read_prompts
from ..training.arguments import DistillationTrainingArguments, ModelArguments, one_or_several
from ..training.checkpoints import resume_wish
from ..training.hardware import num_devices
from ..training.origin import views_per_step_in
from ..training.processes import on_main_process
from ..training.total_batch import Share, TotalBatch
from . import (
    ARGUMENT_CLASSES,
    as_mapping,
    check_known,
    list_recipes,
    load_recipe,
    load_recorded,
    mapping_arguments,
    merged,
    recipe_layers,
)
from .by_data import Choice, as_recorded, choose, follows_data, notes, settled
from .option_names import expand_aliases, meant_by
from .sameness import EARLIER, USED_AT_THE_END, applied, as_word, earlier_values, refused
from .uses import DEFAULTS, MAKERS, check_given, is_used, lacks_labels, settle, wants_teacher, without_unused

logger = logging.get_logger(__name__)

T = TypeVar("T")
DEFAULT_RECIPE = "digits"
RECIPE_OF_OWN_IMAGES = "own_images"
_OF_A_SHARE = ("per_device_train_batch_size", "gradient_accumulation_steps")
# The options that say which images: with one of them the default recipe is not that of the digits.
_IMAGES = ("train_dir", "dataset_name", "validation_dir", "unlabeled_dir", "unlabeled_dataset_name", "streaming")


class Arguments(NamedTuple):
    """All that a run is told: which models, which images, and how to train."""

    model: ModelArguments
    data: DataArguments
    training: DistillationTrainingArguments

    def with_training(self, **fields: Any) -> "Arguments":
        """The same with other values in fields of the training; these arguments themselves stay as they are."""
        training = copy.copy(self.training)  # dataclasses.replace would set up the devices again
        for name, value in fields.items():
            setattr(training, name, value)
        return self._replace(training=training)


# Where a run writes and how it was started, secrets, and what transformers derives from the rest and the machine.
_NOT_IN_A_RESOLVED_RECIPE = frozenset(
    [
        "output_dir",
        "resume_from_checkpoint",
        "resume_from_hub",
        "hub_token",
        "push_to_hub_token",
        "local_rank",
        "disable_tqdm",
        "log_format",
        "dataloader_pin_memory",
        "label_names",
        "do_eval",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
    ]
)
# What is said of the classes, though it may look like a path.
_TEXTS = ("class_names", "class_prompts", "templates")
# What a run is called and where it reports to.
_OF_ONE_PLACE = ("push_to_hub", "hub_", "run_name", "report_to", "project", "trackio_", "logging_dir")


class _Parser(HfArgumentParser):
    """Raises instead of printing the usage, which is some 300 lines long."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if arg_strings == ["--"] and action.nargs in (None, "+"):  # --name=--: argparse would take it for nothing
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value if action.nargs is None else [value]
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise InputError(not_one_of(action.dest, value, [str(choice) for choice in action.choices]))


def argument_parser() -> HfArgumentParser:
    """Of the fields of a run's arguments, as options of a command line."""
    parser = _Parser(ARGUMENT_CLASSES, allow_abbrev=False)
    for action in parser._actions:
        if action.dest in ("bf16", "dataloader_num_workers"):
            action.type = _or_auto(action.type)
        if action.dest == "distillation_type":
            action.choices = [*action.choices, "auto"]
    return parser


def _or_auto(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Of an option's text, which may be "auto", too."""

    def read_or_auto(text: str) -> Any:
        return text if text == "auto" else read(text)

    read_or_auto.__name__ = read.__name__  # argparse says "invalid int value"
    return read_or_auto


def resolve_arguments(
    arguments: Sequence[str], *, is_trained: bool = True, images: DataArguments | None = None
) -> Arguments:
    """Turns a command line into arguments: the recipe first, everything else on top.

    Without `--recipe` it is "own_images" if images are named, else "digits".

    A recipe that follows the images is settled by a look at them; of a run that goes on, by what it has recorded.

    Mappings are merged as `merged` does it. What of the recipe's student_overrides was meant for another student, and
    is no field of this one, is left out; a line says so. A total_batch_size is shared out to the devices that there
    are, where that is not as the recipe has it, a line says so, too. On several processes all must call it.

    Args:
        arguments: for example ["--recipe", "digits", "--num_train_epochs", "3"]; aliases are understood, see
            `hf_deit.recipes.option_names`.
        is_trained: whether optimizer steps are taken by them; if not, no device must have its share of one.
        images: those that the recipe follows, where the arguments do not say them.

    Raises:
        InputError: an unknown recipe or argument (with the nearest valid name), or a value of the wrong kind; or a
            total_batch_size that cannot be shared out.
    """
    recipe_name, rest = _take_recipe(expand_aliases(arguments))
    recipe_name = _default_recipe(_given(rest)) if recipe_name is None else recipe_name
    given_mappings, rest = _take_mappings(rest)
    parser = argument_parser()
    command_line = _read(parser, rest)
    layers = _settled_by_data(recipe_layers(recipe_name), [merged(given_mappings), command_line], images)
    recipe = merged([*layers, *given_mappings])
    if {**recipe, **command_line}.get("distillation_type") == "auto":
        is_taught = wants_teacher({**DEFAULTS, **recipe, **command_line})
        command_line["distillation_type"] = "hard" if is_taught else "none"
        rest.append(f"--distillation_type={command_line['distillation_type']}")
    recipe = settle(recipe, command_line)
    if "eval_strategy" not in command_line and lacks_labels({**recipe, **command_line}):
        recipe = _unevaluated(recipe, tell=is_trained)
    check_given(recipe, command_line)
    if {"eval_strategy", "eval_steps", "save_strategy", "save_steps"} & command_line.keys():
        recipe.pop("eval_epochs", None)  # "every epoch" that is given means every one
    line = [*_as_command_line(recipe, {action.dest: action.nargs for action in parser._actions}), *rest]
    options = {**DEFAULTS, **_read(parser, line)}
    share = _share_of_a_step(options, command_line) if is_trained else None
    if share is not None:
        line += [f"--{name}={number}" for name, number in zip(_OF_A_SHARE, share, strict=True)]
    *parsed, unknown = parser.parse_args_into_dataclasses(
        line, return_remaining_strings=True, look_for_args_file=False
    )
    _refuse(unknown)
    resolved = Arguments(*parsed)
    if share is not None and resolved.training.process_index == 0:
        for words in _told_of_the_total(options, [*layers, command_line], share):
            logger.warning("%s", words)
    _tell_earlier(recipe_name, {name: recipe[name] for name in EARLIER if name in recipe.keys() - command_line.keys()})
    last = {"student": resolved.model.student}
    return _without_foreign_overrides(
        resolved, _meant_for_others([*layers, *({**last, **given} for given in given_mappings), last])
    )


def _unevaluated(recipe: Mapping[str, Any], *, tell: bool) -> dict[str, Any]:
    """A recipe without its evaluations, and what follows from them, for a run that has no labelled images."""
    without = settle(recipe, {"eval_strategy": "no"})
    if tell and recipe.get("eval_strategy", "no") != "no" and PartialState().is_main_process:
        lost = [name for name in recipe if name.startswith("eval_strategy") or name not in without]
        logger.warning(
            "no labelled images are given (--validation_dir takes some), so that nothing is evaluated: of the recipe "
            "%s is left out",
            shortlist(lost),
        )
    return {**without, "eval_strategy": "no"}


def _settled_by_data(
    layers: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]], images: DataArguments | None
) -> list[dict[str, Any]]:
    """The layers of a recipe with what they give for the images; see `hf_deit.recipes.by_data`.

    Args:
        given: the layers of the command line, of which a size of images takes the place of their own.
        images: see `resolve_arguments`.
    """
    follows = follows_data(layers)
    plain = settled(layers, Choice(), recipe_layers)
    options = {**DEFAULTS, **settle(merged([*plain, given[0]]), given[1]), **given[1]}

    def look() -> tuple[Choice, dict[str, Any] | None]:
        if not follows:
            return Choice(), None
        wish, folder = resume_wish(options["resume_from_checkpoint"]), options["output_dir"]
        recorded = os.path.join(folder if wish is True else os.path.dirname(os.path.normpath(wish or "")), RECIPE_FILE)
        if wish is not None and os.path.isfile(recorded):
            return Choice(), load_recipe(recorded)
        return _look_at_images(layers, given, options, images), None

    choice, recorded = _in_agreement(look, plain, given)
    if not follows:
        return plain
    if recorded is not None:
        return as_recorded(layers, recorded, recipe_layers)
    if num_devices() == 1 or PartialState().is_main_process:
        for line in filter(None, [choice.reason, *notes(layers, choice, recipe_layers)]):
            logger.warning("%s", line)
    return settled(layers, choice, recipe_layers)


def _look_at_images(
    layers: Sequence[Mapping[str, Any]],
    given: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    images: DataArguments | None,
) -> Choice:
    from .survey import data_arguments, survey_images  # which needs all that loads images

    try:
        found = survey_images(data_arguments(options) if images is None else images)
        names = options["class_names"] or (options["class_prompts"] and read_prompts(options["class_prompts"])) or ()
    except InputError:  # which the arguments themselves will say
        found = None
    if found is not None:
        found = dataclasses.replace(
            found,
            unlabelled=0 if options["distillation_type"] == "none" else found.unlabelled,
            num_classes=found.num_classes or len(names),
            side=_named_side([*layers, *given]) or found.side,
        )
    return choose(layers, given, found, load_recipe)


def _named_side(layers: Sequence[Mapping[str, Any]]) -> int | None:
    """The size of images that layers name outside of their tables, the last one if several do."""
    sizes = [(layer.get("student_overrides") or {}).get("image_size") or layer.get("image_size") for layer in layers]
    return next((size for size in reversed(sizes) if isinstance(size, int)), None)


def _in_agreement(look: Callable[[], T], plain: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]]) -> T:
    """What the main process of a run sees, for all of them; they must all call it."""
    if num_devices() == 1:
        return look()
    # The processes are connected by the device that the options say: TrainingArguments does it.
    names = ("use_cpu", "ddp_backend", "ddp_timeout")
    options = {**merged(plain), **given[1]}
    line = [f"--{name}={options[name]}" for name in names if options.get(name) is not None]
    _Parser(DistillationTrainingArguments).parse_args_into_dataclasses(line, look_for_args_file=False)
    return on_main_process(look)


def _share_of_a_step(options: Mapping[str, Any], given: Collection[str]) -> Share | None:
    """What each device takes of a step of as many views as total_batch_size says; None if it says nothing.

    Args:
        options: all of them, by name.
        given: the names of those on the command line, which hold; a recipe's batch is the most that fits a device.

    Raises:
        InputError: there is no such share.
    """
    mixes = (options["mixup"] or options["cutmix"]) and options["mixup_probability"]
    group_size = options["mixup_group_size"] if mixes else None
    numbers = [options["total_batch_size"], *(options[name] for name in _OF_A_SHARE)]
    total, batch_size, accumulation = numbers
    if total is None or any(number < 1 for number in [*numbers, group_size or 1]):  # which their ranges refuse
        return None
    step = TotalBatch(
        total=total,
        num_devices=num_devices(),
        at_most=batch_size,
        group_size=group_size or 1,
        least=2 if mixes else 1,
        batch_size=batch_size if "per_device_train_batch_size" in given else None,
        accumulation=accumulation if "gradient_accumulation_steps" in given else None,
    )
    try:
        return step.share()
    except InputError as error:
        raise InputError(f"{error}{_total_of_the_run(options)}") from error


def _total_of_the_run(options: Mapping[str, Any]) -> str:
    """What a run that shall go on keeps to, as an end of a refusal: one of an earlier version stated no total."""
    wish = resume_wish(options["resume_from_checkpoint"])
    checkpoints = list_checkpoints(options["output_dir"]) if wish is True else [wish] if wish else []
    try:
        views = checkpoints and views_per_step_in(checkpoints[-1])
    except (OSError, ValueError):  # whoever goes on from it says why
        views = None
    is_news = views and views != options["total_batch_size"]
    return f". The run that goes on has --total_batch_size {views}" if is_news else ""


def _told_of_the_total(options: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], share: Share) -> list[str]:
    """What is to be said of a total_batch_size: how it is met where not as stated, and whose learning rate it has."""
    total, lines = options["total_batch_size"], []
    stated = Share(*(options[name] for name in _OF_A_SHARE))
    if share != stated:
        lines.append(
            f"a step of {total} views (total_batch_size) on {counted(num_devices(), 'device')}: "
            f"per_device_train_batch_size x gradient_accumulation_steps is {share} instead of {stated}"
        )
    at_that_rate = so_far = None
    for layer in layers:
        so_far = layer.get("total_batch_size", so_far)
        at_that_rate = so_far if "learning_rate" in layer else at_that_rate
    if not options["scale_learning_rate"] and at_that_rate is not None and str(at_that_rate) != str(total):
        lines.append(
            f"the learning rate {options['learning_rate']:g} was stated for a total_batch_size of {at_that_rate}, and "
            f"is not scaled to {total}: --learning_rate says another"
        )
    return lines


def _tell_earlier(recipe_name: str, taken: Mapping[str, Any]) -> None:
    """Says which of the values that are taken from a recipe are not said there, as they were the rule in its run."""
    if not taken or not PartialState().is_main_process:
        return
    written = load_recorded(recipe_name)
    for name, value in taken.items():
        if name not in written:
            logger.warning(
                "the recipe %s is of a run of an earlier version, where %s was %s: so it is here unless --%s is given",
                *(recipe_name, name, as_word(value), name),
            )


def _read(parser: HfArgumentParser, line: Sequence[str]) -> dict[str, Any]:
    """The options that a command line gives, by name, also where it gives the default."""
    absent = object()
    read = argparse.Namespace(**dict.fromkeys((action.dest for action in parser._actions), absent))
    values = vars(parser.parse_known_args(line, namespace=read)[0])
    given = {name: value for name, value in values.items() if value is not absent}
    if "teacher_model_name_or_path" in given:
        given["teacher_model_name_or_path"] = one_or_several(given["teacher_model_name_or_path"])
    return given


def describe_default_recipe(arguments: Sequence[str], *, has_output: bool) -> str | None:
    """Which recipe a command line takes that names none, and why, in one line; None if it names one.

    Args:
        arguments: of the command line.
        has_output: whether to say where the run writes, too.
    """
    recipe_name, rest = _take_recipe(expand_aliases(arguments))
    if recipe_name is not None:
        return None
    given = _given(rest)
    name, images = _default_recipe(given), [f"--{option}" for option in _IMAGES if option in given]
    line = f"no --recipe: taking {name}, as {f'{images[0]} is given' if images else 'no images are given'}"
    if has_output and "output_dir" not in given:
        line += f"; it writes to {load_recipe(name)['output_dir']}"
    return line


def _default_recipe(given: Sequence[str]) -> str:
    return RECIPE_OF_OWN_IMAGES if any(option in given for option in _IMAGES) else DEFAULT_RECIPE


def _given(arguments: Sequence[str]) -> list[str]:
    """The names of the options on a command line."""
    words = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    return [word.removeprefix("--").replace("-", "_") for word in words]


def _refuse(unknown: Sequence[str]) -> None:
    """Says what was meant by the words of a command line that no argument has taken, if there are any."""
    for argument in unknown:
        name = argument.lstrip("-").partition("=")[0].replace("-", "_")
        if argument.startswith("--"):
            check_known(name, "there is")
        elif argument.startswith("-") and (meant := meant_by(name, ())):
            raise InputError(f"there is no argument {argument!r}{meant}")
    if unknown:
        example = next((f", say --{word}" for word in unknown if re.match(r"\w+=.", word)), "")
        raise InputError(f"cannot read {' '.join(unknown)!r} on the command line: arguments are --name value{example}")


def check_same_run(recipe: str | Mapping[str, Any], arguments: Arguments, *, compared: Collection[str] = ()) -> None:
    """Refuses to go on with a run under other arguments than its own; `sameness` says which may differ.

    Args:
        recipe: the file of the recipe that the run was started with, or, if it comes from the Hub, the published one.
        arguments: those that it shall go on with.
        compared: see `hf_deit.recipes.sameness.refused`.

    Raises:
        InputError: with the first difference, and both values.
    """
    before, now = _both(recipe, arguments)
    run = os.path.dirname(recipe) if isinstance(recipe, str) else arguments.training.resume_from_hub
    way = recipe if isinstance(recipe, str) else "its recipe.yaml"
    unsaid = earlier_values(load_recorded(recipe) if isinstance(recipe, str) else recipe)
    for name, there, here in refused(before, now, compared=compared):
        if name == "teacher_model_name_or_path":
            raise InputError(
                f"the run in {run!r} has the teacher {there!r}, got {'none' if here is None else repr(here)}"
            )
        if name == "teacher_revision":
            raise InputError(
                f"the run in {run!r} has the teacher at commit {there!r}, got {here!r}: leave --teacher_revision out"
            )
        if name in unsaid:
            raise InputError(
                f"the run in {run!r} was started with {name} {as_word(there)}, got {as_word(here)}: an earlier "
                f"version began it, which had nothing else. Give --{name} {as_word(there)} to go on with it, or "
                "start another run in another --output_dir"
            )
        raise InputError(
            f"the run in {run!r} was started with {name} {there if name in before else 'at its default'}, got "
            f"{here if name in now else 'its default'}: resume with the same arguments (--recipe {way}), or start "
            "another run in another --output_dir"
        )


def applied_changes(recipe: str | Mapping[str, Any], arguments: Arguments) -> list[str]:
    """What a run does otherwise from the checkpoint on where it goes on with such arguments: a line for each.

    Args:
        recipe, arguments: see `check_same_run`.
    """
    before, now = _both(recipe, arguments)
    lines = []
    words = [_precision(side) for side in (before, now)]
    if words[0] != words[1]:  # that of another machine, where it is "auto"
        lines.append(f"the run was begun in {words[0]} and goes on in {words[1]}")
    for name, there, here in applied(before, now):
        if name not in ("bf16", "fp16"):
            lines.append(f"the run was begun with {name} {there} and goes on with {here}")
    return lines


def unused_at_the_end(recipe: str | Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
    """What a run that is at its end was trained with where the arguments now say otherwise, and are not used.

    Args:
        recipe, arguments: see `check_same_run`.
    """
    return {name: there for name, there, _ in applied(*_both(recipe, arguments)) if name not in USED_AT_THE_END}


def _precision(recipe: Mapping[str, Any]) -> str:
    return "bfloat16" if recipe.get("bf16") else "float16" if recipe.get("fp16") else "float32"


def _both(recipe: str | Mapping[str, Any], arguments: Arguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe of a run and that of its arguments now, without what does nothing in them; see `check_same_run`."""
    if isinstance(recipe, str):
        before, now = load_recorded(recipe), resolved_recipe(arguments)
    else:
        before, now = recipe, published_recipe(arguments)
    kept = without_unused({**before, **earlier_values(before)})  # earlier versions took them without a word
    if kept.get("distillation_type") != "none":  # beside the teacher that it has made
        kept |= {name: before[name] for name in MAKERS if name in before}
    return {name: value for name, value in kept.items() if value != {}}, without_unused(now)


def take_revisions(recipe: str | Mapping[str, Any], arguments: Arguments) -> Arguments:
    """The commits that a run was started with, where the arguments it shall go on with name no revision.

    And the student's size for the teacher of a run that an earlier version started, where they name no other.

    Args:
        recipe: see `check_same_run`.
        arguments: those that it shall go on with.
    """
    before = load_recorded(recipe) if isinstance(recipe, str) else recipe

    def with_commits(part: Any) -> Any:
        names = [field.name for field in dataclasses.fields(part) if field.name.endswith("_revision")]
        commits = {name: before[name] for name in names if getattr(part, name) is None and name in before}
        return dataclasses.replace(part, **commits)

    taken = arguments._replace(
        model=_with_commits_of_teachers(with_commits(arguments.model), before), data=with_commits(arguments.data)
    )
    earlier_size = earlier_values(before).get("teacher_input_size")
    if earlier_size is not None and taken.model.teacher_input_size == "own":
        taken = taken._replace(model=dataclasses.replace(taken.model, teacher_input_size=earlier_size))
    backbone, wanted = before.get("teacher_probe"), taken.model.teacher_probe
    if backbone and wanted and "@" not in wanted and backbone.rpartition("@")[0] == wanted:
        taken = taken._replace(model=dataclasses.replace(taken.model, teacher_probe=backbone))
    args = arguments.training
    if args.teacher_labels_revision is None and args.teacher_labels == before.get("teacher_labels"):
        taken = taken.with_training(teacher_labels_revision=before.get("teacher_labels_revision"))
    return taken


def _with_commits_of_teachers(model_args: ModelArguments, before: Mapping[str, Any]) -> ModelArguments:
    """The same with the commits that a run has of several teachers, where their names have no revision."""
    names, known = model_args.teacher_model_name_or_path, before.get("teacher_model_name_or_path")
    if not isinstance(names, list) or not isinstance(known, list):
        return model_args
    pinned = [(name_and_revision(teacher)[0], teacher) for teacher in known]
    once = Counter(name for name, _ in pinned)
    commits = {name: teacher for name, teacher in pinned if once[name] == 1}
    taken = [commits.get(name, name) for name in names]
    return dataclasses.replace(model_args, teacher_model_name_or_path=taken)


def resolved_recipe(arguments: Arguments) -> dict[str, Any]:
    """The arguments that differ from the defaults, without the output folder, secrets and what is derived.

    What is another value in the runs of earlier versions is said though it be the default; see `sameness.EARLIER`.
    """
    options = {field.name: getattr(part, field.name) for part in arguments for field in dataclasses.fields(part)}
    stated = {name for name in EARLIER if is_used(name, options)}
    if options["distillation_type"] != "none":
        stated.add("teacher_input_size")  # who will teach may not be known yet
    recipe = {}
    for part in arguments:
        for field in dataclasses.fields(part):
            value = _plain(getattr(part, field.name))
            if value is None and isinstance(field.default, str):
                value = ""
            if value in (None, [], {}) or not field.init or field.name in _NOT_IN_A_RESOLVED_RECIPE:
                continue
            default = _plain(_default(field))
            if field.name in stated or (value != default and not (value is False and default is None)):
                recipe[field.name] = value
    return recipe


def published_recipe(arguments: Arguments) -> dict[str, Any]:
    """`resolved_recipe` for other machines: the last part alone of folders and files, and not where it was pushed."""
    return {
        name: value if name in _TEXTS else _portable(value, always=name.endswith("_dir"))
        for name, value in resolved_recipe(arguments).items()
        if not name.startswith(_OF_ONE_PLACE)
    }


def _portable(value: Any, *, always: bool = False) -> Any:
    """A value with names of files and folders cut to their last part."""
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, dict):
        return {name: _portable(item) for name, item in value.items()}
    if not isinstance(value, str) or value in list_recipes():
        return value
    is_path = always or os.path.isabs(value) or value.startswith(("~", ".")) or os.path.exists(value)
    return os.path.basename(os.path.normpath(value)) if is_path else value


def save_recipe(arguments: Arguments, path: str | os.PathLike[str]) -> None:
    """Writes `resolved_recipe` as a recipe that gives the arguments again, with the libraries' versions above it.

    A recipe that is there is replaced as a whole: a run that is killed meanwhile can still go on by the old one.

    Raises:
        CheckpointError: it cannot be written, say on a full disk.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in ("hf_deit", "torch", "transformers", "timm", "pillow"))
    text = f"{RECORDED}a run with {versions}.\n{dump_recipe(resolved_recipe(arguments))}"
    with writing(f"the recipe of the run to {os.fspath(path)!r}"):
        write_whole(text, path)


def _take_recipe(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe that a command line names, or None, and the rest of it.

    Raises:
        InputError: `--recipe` without a name.
    """
    recipe_name, rest, remaining = None, [], iter(arguments)
    for argument in remaining:
        if argument == "--recipe":
            recipe_name = next(remaining, "")
        elif argument.startswith("--recipe="):
            recipe_name = argument.removeprefix("--recipe=")
        else:
            rest.append(argument)
    if recipe_name is not None and (not recipe_name or recipe_name.startswith("--")):
        raise InputError(f"--recipe needs a name or a file behind it, one of {', '.join(list_recipes())}")
    return recipe_name, rest


def _take_mappings(arguments: list[str]) -> tuple[list[dict[str, str]], list[str]]:
    """Options that take a mapping, as layers on top of the recipe, each as it is written; and all others."""
    parser = _Parser((), add_help=False, allow_abbrev=False)
    for name in mapping_arguments():
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", action="append", default=[])
    options, rest = parser.parse_known_args(arguments)
    return [{name: text} for name, texts in vars(options).items() for text in texts], rest


def _meant_for_others(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of student_overrides that were given, last, below a layer that names another student."""
    student, meant_for = ModelArguments.student, {}
    for layer in layers:
        student = layer.get("student", student) or ModelArguments.student
        overrides = as_mapping("student_overrides", layer.get("student_overrides"))
        meant_for |= dict.fromkeys(overrides if isinstance(overrides, dict) else (), student)
    return [key for key, other in meant_for.items() if other != student]


def _without_foreign_overrides(arguments: Arguments, foreign: Collection[str]) -> Arguments:
    """The same without those of the foreign student_overrides that the student has no field for; one line says so."""
    model_args = arguments.model
    overrides = model_args.student_overrides or {}
    candidates = {key: value for key, value in overrides.items() if key in foreign}

    def lacked() -> list[str]:
        lacked = lacked_fields(model_args.student, candidates, model_args.student_revision)
        if lacked:
            asks_for_size = "image_size" in lacked and model_args.image_size is None
            logger.warning(
                "of the recipe's student_overrides %s left out, which the student %r has no field for%s",
                f"{', '.join(lacked)} {'is' if len(lacked) == 1 else 'are'}",
                model_args.student,
                f" (--image_size {overrides['image_size']} gives it this input size)" if asks_for_size else "",
            )
        return lacked

    # By all processes, also where they were given different options, which is told once all have theirs.
    dropped = on_main_process(lambda: lacked() if candidates else [])
    if not dropped:
        return arguments
    kept = {key: value for key, value in overrides.items() if key not in dropped}
    return arguments._replace(model=dataclasses.replace(model_args, student_overrides=kept or None))


def _as_command_line(recipe: dict[str, Any], nargs: dict[str, Any]) -> list[str]:
    """A recipe as arguments, so that both have one parser and one set of types.

    Args:
        recipe: arguments by name. None and {} leave the default, or, where that is a string, gives the empty one.
        nargs: how many values an argument takes, as argparse has it.
    """
    defaults = {field.name: field.default for part in ARGUMENT_CLASSES for field in dataclasses.fields(part)}
    line = []
    for key, value in recipe.items():
        if isinstance(value, list) and nargs.get(key) == "+":
            line += [f"--{key}", *map(str, value)]
        elif isinstance(value, list):
            raise InputError(f"the argument {key!r} takes one value, the recipe has the list {value}")
        elif value is not None and value != {}:
            line.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
        elif isinstance(defaults.get(key), str):
            line.append(f"--{key}=")
    return line


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    """What YAML can hold."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, AcceleratorConfig):
        usual = AcceleratorConfig().to_dict()
        return {name: setting for name, setting in value.to_dict().items() if setting != usual[name]}
    if dataclasses.is_dataclass(value) or hasattr(value, "to_dict"):
        return None  # made from the environment
    return value
