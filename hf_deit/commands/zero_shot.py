"""What a run tells a zero-shot teacher: the names of the classes, and texts about them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..data.folders import list_class_folders
from ..errors import InputError, shortlist
from ..models.class_names import composed, label_changes
from ..models.pretrained import load_config
from ..models.teacher import AnyDescription, knows_names, load_labels
from ..models.zero_shot.prompts import DEFAULT_TEMPLATES, Prompts
from ..recipes.resolve import Arguments
from ..training.arguments import ModelArguments
from ..training.label_source import LabelSource
from ..training.predicted_classes import NOT_ON_STREAMS

_OF_ZERO_SHOT = ("class_names", "class_prompts", "templates", "teacher_prior_correction")


def check_told(arguments: Arguments) -> None:
    """Refuses, before there are images, teachers that cannot teach, and what they cannot be told.

    Their configurations say it, and the names of classes, where folders have them or options.

    Raises:
        InputError: there is such, or no such model.
    """
    model_args, data_args, _ = arguments
    names = _teachers(model_args)
    are_zero_shot = [knows_names(name, model_args.teacher_revision) for name in names]
    may_be = {"class_names"} if model_args.teacher_label_subset else set()  # which say of what classes it teaches
    given = [f"--{name}" for name in _OF_ZERO_SHOT if getattr(model_args, name) and name not in may_be]
    if names and given and not any(are_zero_shot):
        chosen = " (of which --teacher_label_subset true has it teach those that are named)"
        raise InputError(
            f"{', '.join(given)}: for a zero-shot teacher (CLIP, SigLIP, …), but {shortlist(map(repr, names))} is a "
            f"classifier, which has classes of its own{chosen if given == ['--class_names'] else ''}: leave this out, "
            "or name another --teacher_model_name_or_path"
        )
    if model_args.teacher_prior_correction and data_args.streaming:
        raise InputError(NOT_ON_STREAMS)
    if not any(are_zero_shot):
        return
    told = model_args.class_names or [*(model_args.class_prompts or ())]
    if data_args.train_dir and not data_args.dataset_name:
        told, _ = list_class_folders(data_args.train_dir)
        check_names(model_args, told)
    if len(told) > 1:
        Prompts.of(told, model_args.class_prompts, model_args.templates)


def names_without_labels(model_args: ModelArguments, labels: LabelSource | None) -> list[str] | None:
    """The names of the classes of a run whose images have no labels, by index, or None if there is nobody to say them.

    Those that are told; or else the classifier's among the teachers, which prompts for some classes leave as they are;
    or those that have prompts.

    Args:
        labels: the label store that the run names, which knows them where no teacher is named.

    Raises:
        InputError: no such teacher; or a zero-shot model, which must be told.
    """
    names = _teachers(model_args)
    if not names:
        return None if labels is None else labels.label_names
    if model_args.class_names is not None:
        return list(model_args.class_names)
    has_classes = not all(knows_names(name, model_args.teacher_revision) for name in names)
    if model_args.class_prompts and not (has_classes and not model_args.teacher_label_subset):
        return _checked_keys(model_args.class_prompts)
    return load_labels(model_args.teacher_model_name_or_path, model_args.teacher_revision)


def check_names(model_args: ModelArguments, label_names: Sequence[str]) -> None:
    """Refuses names that are not those of the images' classes, and templates that no class is put into.

    Args:
        label_names: of the images, by index.

    Raises:
        InputError: names what differs.
    """
    told = model_args.class_names
    if told is not None and {*map(composed, told)} != {*map(composed, label_names)}:
        by_name = (sorted(map(composed, names)) for names in (label_names, told))
        raise InputError(
            f"class_names are not those of the images' labels ({label_changes(*by_name)}): leave them out, as the "
            "labels are the names; --class_prompts FILE.yaml, with the labels as keys, says by which texts a teacher "
            "shall know them; and images without labels, which names are for, are --unlabeled_dir"
        )
    if model_args.templates and _has_all(model_args, label_names):
        raise InputError(
            "templates are for names of classes, but class_prompts has texts for all of them: leave one of them out"
        )


def with_templates(model_args: ModelArguments, teacher: AnyDescription) -> ModelArguments:
    """The arguments of a run, with the templates that its teacher is asked by where they name none.

    Others can repeat the run by its recipe then, whatever templates come with a later version.
    """
    told = [one for one in getattr(teacher, "members", (teacher,)) if one.is_zero_shot]
    if not told or model_args.templates or _has_all(model_args, teacher.id2label.values()):
        return model_args
    if any(load_config(one.name_or_path, one.wanted_revision).model_type == "chinese_clip" for one in told):
        return model_args  # which is asked in Chinese
    return replace(model_args, templates=list(DEFAULT_TEMPLATES))


def _has_all(model_args: ModelArguments, label_names: Iterable[str]) -> bool:
    """Whether class_prompts has texts for all classes."""
    return {*map(composed, label_names)} <= {*map(composed, model_args.class_prompts or ())}


def _teachers(model_args: ModelArguments) -> list[str]:
    names = model_args.teacher_model_name_or_path
    return names if isinstance(names, list) else [] if names is None else [names]


def _checked_keys(prompts: Mapping[str, Sequence[str]]) -> list[str]:
    if len(prompts) < 2:
        raise InputError(
            f"class_prompts has the class {next(iter(prompts))!r} alone, and a classifier tells at least two apart: "
            "give the others a text, too, or name all of them with --class_names"
        )
    return list(prompts)
