"""Any image classifier of the Hub as a teacher: statistics, size and labels are read and checked, not guessed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..errors import InputError, did_you_mean, shortlist
from .class_names import are_among, choose_labels, in_order, match_labels, unique_names
from .ensemble import EnsembleDescription, TeacherEnsemble, normalized_weights
from .execution import PLAIN, Execution
from .extent import LARGEST_IMAGE, check_extent
from .pretrained import (
    LOADING_ERRORS,
    configured_size,
    load_config,
    load_image_processor,
    measure_processor,
    name_and_revision,
    not_loadable,
    refuse_file,
    resolve_revision,
    stated_input_size,
    why_not_loaded,
)
from .single_teacher import Size, Teacher, TeacherDescription
from .zero_shot.architecture import check_zero_shot, is_zero_shot, why_no_teacher
from .zero_shot.prior import correction_of
from .zero_shot.prompts import CHINESE_TEMPLATES, DEFAULT_TEMPLATES, Prompts
from .zero_shot.tokens import TextReader

logger = logging.get_logger(__name__)

InputSize = Literal["own", "student"] | int
Speed = Literal["auto", "off"]

AnyTeacher = Teacher | TeacherEnsemble
AnyDescription = TeacherDescription | EnsembleDescription


def members_of(teacher: AnyTeacher) -> list[Teacher]:
    """The teachers, of which there may be one."""
    return list(teacher.members) if isinstance(teacher, TeacherEnsemble) else [teacher]


def load_teacher(
    name_or_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    student_processor: BaseImageProcessor,
    id2label: Mapping[int, str] | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    input_size: InputSize = "own",
    device: torch.device | str | None = None,
    prompts: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    label_subset: bool = False,
    prior_correction: bool = False,
    speed: Speed = "off",
) -> AnyTeacher:
    """Loads an image classifier, checks that it can teach, and adapts it to the student's pixels and labels.

    Args:
        name_or_path: a Hub id or a folder, of a transformers architecture or of a timm checkpoint (for example
            "timm/regnety_160.deit_in1k", the paper's teacher). Or several of them: the weighted mean of their
            probabilities teaches.
        student_processor: the student's image processor, with `image_mean`, `image_std` and `crop_size`.
        id2label: the student's labels by index. Without it the teacher's own labels and order are kept, of several
            those of the first classifier; those that share a name are told apart by `unique_names`.
        revision: branch, tag or commit; pin it for a run to be repeatable. "NAME@REVISION" says it, too, as it must
            for several.
        dtype: to compute in; float32 by default.
        input_size: that the student's pixels are resized to (bicubic, antialiased) for it. "own" is the size that it
            was trained for, as its image processor states it, or else its configuration; one that states none gets
            the student's. "student" leaves them as they are, as far as its architecture takes them so. Or a number of
            pixels.
        device: to put it on; the CPU by default.
        prompts: of a zero-shot model (CLIP, SigLIP, …): the text, or texts, that describe a class, by its name.
        templates: of a zero-shot model: sentences in which "{}" stands for the name of a class that has no prompts;
            by default seven of CLIP's authors (`zero_shot.prompts.DEFAULT_TEMPLATES`).
        weights: of several, of each a positive number; by default all count alike.
        label_subset: whether a classifier may have more labels than the student: it teaches those of the same name,
            its probabilities of these divided by their sum.
        prior_correction: of a zero-shot model: whether a `DistillationTrainer` shall take off, before its first step,
            what it favours on the training images; see `Teacher.correct_prior`.
        speed: "auto" lets a `DistillationTrainer` find out, before its first step, how the teacher runs fastest, with
            answers that differ by rounding; see `hf_deit.training.teacher_speed`. "off" runs it as it was loaded.

    Returns:
        A `Teacher`, or of several a `TeacherEnsemble`: a function of the student's normalised pixels giving logits in
        the student's label order.

    Raises:
        InputError: no such model; no image classifier; weights missing from the checkpoint (a head that would be
            random); no statistics; labels that are not the student's; an input size that it does not take; of several
            one twice, or `weights` that are none. Of a zero-shot model: no `id2label`; names that say nothing to it;
            texts that it cannot tell apart or that are too long; no tokenizer. Prompts or templates for a classifier.
            A `speed` that there is not.
    """
    description = describe_teacher(
        name_or_path,
        student_processor=student_processor,
        id2label=id2label,
        revision=revision,
        dtype=dtype,
        input_size=input_size,
        prompts=prompts,
        templates=templates,
        weights=weights,
        label_subset=label_subset,
        prior_correction=prior_correction,
        speed=speed,
    )
    return description.load(device)


def describe_teacher(
    name_or_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    student_processor: BaseImageProcessor,
    id2label: Mapping[int, str] | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    input_size: InputSize = "own",
    prompts: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    label_subset: bool = False,
    prior_correction: bool = False,
    speed: Speed = "off",
) -> AnyDescription:
    """Reads and checks what is known of a teacher without its weights, which its `load` loads.

    Arguments and errors are those of `load_teacher`.
    """
    names = list(name_or_path) if _are_several(name_or_path) else [os.fspath(name_or_path)]
    settings = {
        "student_processor": student_processor,
        "dtype": _as_dtype(dtype),
        "input_size": parse_input_size(input_size),
        "execution": _execution_of(speed),
    }
    told = {"prompts": prompts, "templates": templates, "prior_correction": prior_correction}
    if not names:
        raise InputError("there is no teacher: name a Hub id or a folder, or several")
    if len(names) > 1:
        if revision is not None:
            raise InputError(
                f"revision {revision!r} is of one teacher, got {len(names)}: write NAME@REVISION for each of them"
            )
        weights = normalized_weights(weights, len(names))
        return EnsembleDescription(_describe_each(names, id2label, told, label_subset, settings), weights)
    if weights is not None:
        raise InputError(f"weights are of several teachers, got one, {os.fspath(names[0])!r}: leave them out")
    found = _find(names[0], revision)
    return _describe(found, id2label=id2label, label_subset=label_subset, **told, **settings)


def _are_several(name_or_path: Any) -> bool:
    """Whether a list of teachers is given, perhaps of one."""
    return isinstance(name_or_path, Sequence) and not isinstance(name_or_path, str)


def _describe_each(
    names: Sequence[str | os.PathLike[str]],
    id2label: Mapping[int, str] | None,
    told: Mapping[str, Any],
    label_subset: bool,
    settings: Mapping[str, Any],
) -> tuple[TeacherDescription, ...]:
    """What is known of several teachers, of which only zero-shot models are told things, and others have a subset."""
    all_found = [_find(name) for name in names]
    are_zero_shot = [one.knows_names() for one in all_found]
    if any(told.values()) and not any(are_zero_shot):
        raise InputError(
            "prompts, templates and prior_correction are of zero-shot models, and none of the teachers is one: leave "
            "them out"
        )
    if label_subset and all(are_zero_shot):
        raise InputError(_NO_SUBSET.format("each of the teachers"))
    found: dict[int, TeacherDescription] = {}
    for place in sorted(range(len(names)), key=are_zero_shot.__getitem__):  # classifiers first, whose labels may hold
        own = told if are_zero_shot[place] else {"label_subset": label_subset}
        found[place] = _describe(all_found[place], id2label=id2label, **own, **settings)
        id2label = found[place].id2label
    members = tuple(found[place] for place in range(len(names)))
    places = [member.revision or os.path.realpath(member.name_or_path) for member in members]
    if twice := [member for member, place in zip(members, places, strict=True) if places.count(place) > 1]:
        raise InputError(
            f"the teacher {twice[-1].name_or_path!r} is given twice: give it once, and let it count for more with "
            "--teacher_weights (weights of load_teacher)"
        )
    return members


def _describe(
    found: "_Found",
    *,
    student_processor: BaseImageProcessor,
    id2label: Mapping[int, str] | None,
    dtype: torch.dtype,
    input_size: InputSize,
    prompts: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
    label_subset: bool = False,
    prior_correction: bool = False,
    execution: Execution | None = PLAIN,
) -> TeacherDescription:
    name_or_path, revision, commit, config = found
    asked = None
    if found.knows_names():
        if label_subset:
            raise InputError(_NO_SUBSET.format(repr(name_or_path)))
        asked = _asked_of(name_or_path, commit or revision, config, id2label, prompts, templates)
    elif prompts or templates:
        raise InputError(
            f"the teacher {name_or_path!r} is a classifier, which knows its classes: leave --templates and "
            "--class_prompts (templates and prompts of load_teacher) out, or take a zero-shot model"
        )
    check_extent(name_or_path, config, is_zero_shot=asked is not None)
    processor = load_image_processor(name_or_path, commit or revision, config)
    if prior_correction and asked is None:
        raise InputError(
            f"prior_correction is for zero-shot models, and the teacher {name_or_path!r} is a classifier, which has "
            "learnt how frequent its classes are: leave it out"
        )
    known = config.id2label if asked is None else id2label
    teacher_labels = {int(index): label for index, label in known.items()}
    wanted_labels = unique_names(teacher_labels) if id2label is None else id2label
    id2label = {int(index): label for index, label in wanted_labels.items()}
    label_order = _label_order(name_or_path, teacher_labels, id2label, label_subset)
    channel_order, scale, shift, made_size = _relative_normalization(name_or_path, processor, student_processor)
    own_size = stated_input_size(name_or_path, commit or revision, config, processor)
    student_size = (student_processor.crop_size.height, student_processor.crop_size.width)
    return TeacherDescription(
        name_or_path=name_or_path,
        revision=commit,
        wanted_revision=commit or revision,
        dtype=dtype,
        id2label=id2label,
        label_order=label_order,
        channel_order=channel_order,
        scale=scale.tolist(),
        shift=shift.tolist(),
        processor_size=made_size,
        own_size=own_size,
        student_size=student_size,
        sizes=_sizes_to_show(input_size, own_size, student_size, (configured_size(config), made_size)),
        prompts=asked,
        is_subset=len(teacher_labels) > len(id2label),
        prior_correction=correction_of(student_processor) if prior_correction else None,
        execution=execution,
    )


_NO_SUBSET = (
    "label_subset (--teacher_label_subset) chooses among a classifier's labels, but {} is a zero-shot model, which "
    "has none of its own and is told the student's: leave it out"
)


def _label_order(
    name_or_path: str, teacher: Mapping[int, str], student: Mapping[int, str], label_subset: bool
) -> list[int]:
    """A teacher's index of each of the student's labels."""
    owner = f"the teacher {name_or_path!r}"
    if label_subset and len(teacher) != len(student):
        return choose_labels(teacher, student, owner)
    if len(teacher) > len(student) and are_among(teacher, student):
        raise InputError(
            f"{owner} has {len(teacher)} labels ({shortlist(in_order(teacher), 3)}), expected {len(student)} "
            f"({shortlist(in_order(student), 3)}), which are all among them: let it teach these alone with "
            "--teacher_label_subset true (label_subset of load_teacher), or take another one"
        )
    return match_labels(teacher, student, owner)


class _Found(NamedTuple):
    """What a teacher's name leads to: the name, the revision that is asked for, its commit if it is on the Hub."""

    name_or_path: str
    revision: str | None
    commit: str | None
    config: PreTrainedConfig

    def knows_names(self) -> bool:
        """See `knows_names`."""
        if is_zero_shot(self.config):
            check_zero_shot(self.name_or_path, self.config)
            return True
        if type(self.config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            why = why_no_teacher(self.config)
            raise not_loadable(self.name_or_path, self.commit or self.revision, why, role="teacher")
        return False


def _find(name_or_path: str | os.PathLike[str], revision: str | None = None) -> _Found:
    """Reads a teacher's configuration.

    Raises:
        InputError: no such model; or two revisions.
    """
    given = os.fspath(name_or_path)
    name_or_path, stated = name_and_revision(given)
    if None not in (stated, revision) and stated != revision:
        raise InputError(f"the teacher {given!r} names a revision, and another one is given, {revision!r}: drop one")
    revision = revision or stated
    refuse_file(name_or_path, role="teacher")
    commit = resolve_revision(name_or_path, revision)
    try:
        return _Found(name_or_path, revision, commit, load_config(name_or_path, commit or revision))
    except LOADING_ERRORS as error:
        raise not_loadable(name_or_path, commit or revision, error, role="teacher") from error


def knows_names(name_or_path: str | os.PathLike[str], revision: str | None = None) -> bool:
    """Whether a teacher is a model that knows classes by their names, as CLIP does, and has none of its own.

    Raises:
        InputError: no such model, or one that cannot teach.
    """
    return _find(name_or_path, revision).knows_names()


def _asked_of(
    name_or_path: str,
    revision: str | None,
    config: Any,
    names: Mapping[int, str] | None,
    prompts: Mapping[str, Sequence[str]] | None,
    templates: Sequence[str] | None,
) -> Prompts:
    """The texts of a zero-shot model, as its tokenizer reads them."""
    if names is None:
        raise InputError(_knows_no_classes(name_or_path))
    usual = CHINESE_TEMPLATES if config.model_type == "chinese_clip" else DEFAULT_TEMPLATES
    labels = in_order({int(index): name for index, name in names.items()})
    asked = Prompts.of(labels, prompts, templates, usual_templates=usual)
    return TextReader.of(name_or_path, revision, config).read(asked)


def _knows_no_classes(name_or_path: str) -> str:
    return (
        f"{name_or_path!r} is a zero-shot model, which has no classes of its own and must be told them: name them "
        'with --class_names cat "red fox" … (id2label of load_teacher) or, with texts about them, in --class_prompts '
        "FILE.yaml, or give images with labels, whose names they are"
    )


def parse_input_size(value: str | int) -> InputSize:
    """Reads what a teacher shall be shown: "own", "student" or a number of pixels.

    Raises:
        InputError: it is something else.
    """
    text = str(value).strip()
    if text in ("own", "student"):
        return text
    if text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= LARGEST_IMAGE:
        return int(text)
    raise InputError(
        f'the teacher\'s input size must be "own", "student" or a number of pixels up to {LARGEST_IMAGE}, got '
        f"{value!r}"
    )


def _sizes_to_show(
    wanted: InputSize, own: Size | None, student: Size, defaults: tuple[Size | None, Size]
) -> tuple[Size, ...]:
    """The sizes to show a teacher, best first; the later ones are for architectures that refuse the first."""
    if isinstance(wanted, int):
        return ((wanted, wanted),)
    order = (own, *defaults, student) if wanted == "own" and own is not None else (student, own, *defaults)
    return tuple(dict.fromkeys(size for size in order if size is not None))


def load_labels(
    name_or_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], revision: str | None = None
) -> list[str]:
    """The labels of a classifier, by index, from its configuration alone; of several teachers, the first one's.

    Names may repeat.

    Raises:
        InputError: no such model; or a zero-shot one, or several that all are, which have none.
    """
    if _are_several(name_or_path):
        first = next((name for name in name_or_path if not knows_names(name)), name_or_path[0])
        return load_labels(first)
    name_or_path, wanted = name_and_revision(os.fspath(name_or_path))
    refuse_file(name_or_path, role="teacher")
    try:
        config = load_config(name_or_path, revision or wanted)
    except LOADING_ERRORS as error:
        raise InputError(f"cannot load the teacher {name_or_path!r}: {why_not_loaded(error)}") from error
    if is_zero_shot(config):
        raise InputError(_knows_no_classes(name_or_path))
    return in_order(config.id2label)


def _execution_of(speed: str) -> Execution | None:
    """How to run a teacher; None if that is to be found out."""
    if speed not in ("auto", "off"):
        raise InputError(f'the teacher\'s speed must be "auto" or "off", got {speed!r}')
    return None if speed == "auto" else PLAIN


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in dtypes:
        raise InputError(f"the teacher's dtype must be {', '.join(dtypes)}, got {dtype!r}{did_you_mean(name, dtypes)}")
    return dtypes[name]


def _relative_normalization(
    name_or_path: str, teacher_processor: BaseImageProcessor, student_processor: BaseImageProcessor
) -> tuple[list[int], torch.Tensor, torch.Tensor, tuple[int, int]]:
    """From the student's normalised pixels x to the teacher's: scale · x[channel_order] + shift, per channel.

    Both processors are measured on images of one colour, as processors differ in more than mean and std: some rescale
    to [-1, 1], some not at all, some swap the channels.

    Returns:
        channel_order, scale (3,), shift (3,) and the (height, width) of what the teacher's processor makes.
    """
    teacher_gain, teacher_black, size = measure_processor(name_or_path, teacher_processor)
    student_gain, student_black, _ = measure_processor("the student", student_processor)
    channel_order = teacher_gain.abs().argmax(dim=1).tolist()
    gains = teacher_gain.gather(1, torch.tensor(channel_order).unsqueeze(1)).squeeze(1)
    if sorted(channel_order) != [0, 1, 2] or not torch.allclose(teacher_gain.sum(dim=1), gains, atol=1e-4):
        raise InputError(
            f"the image processor of the teacher {name_or_path!r} mixes the colour channels: take a teacher whose "
            "pixels are only rescaled and normalised"
        )
    scale = gains / student_gain.diagonal()[channel_order]
    shift = teacher_black - scale * student_black[channel_order]
    # An exact identity, so that a teacher with the student's statistics sees the very same pixels.
    if torch.allclose(scale, torch.ones_like(scale), atol=1e-6) and torch.allclose(
        shift, torch.zeros_like(shift), atol=1e-6
    ):
        scale, shift = torch.ones_like(scale), torch.zeros_like(shift)
    return channel_order, scale.float(), shift.float(), size
