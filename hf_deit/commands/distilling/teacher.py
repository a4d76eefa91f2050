"""Who teaches: given, chosen by what there is and can be reached, or trained on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import InputError
from ...hub.looks import has_weights
from ...models.teacher import knows_names
from .images import Found
from .options import NONE, DistilOptions

# The smallest of the family, with 22 million parameters; its licence, Apache-2.0, is that of this package.
PROBE_BACKBONE = "facebook/dinov2-small"
ZERO_SHOT = "openai/clip-vit-base-patch32"
TEACHER_RECIPE = "from_scratch_teacher"


@dataclass(frozen=True)
class TeacherChoice:
    """Who teaches.

    Attributes:
        kind: "given", "probe", "recipe" or "none".
        names: Hub ids or folders: of the teachers, or of the backbone of a probe; or the recipe.
        options: of hf-deit train.
        why: it was chosen, in words; "" if it was asked for.
        is_zero_shot: whether a given one must be told the classes' names.
    """

    kind: str
    names: tuple[str, ...]
    options: tuple[str, ...]
    why: str = ""
    is_zero_shot: bool = False

    def __str__(self) -> str:
        named = ", ".join(self.names)
        words = {
            "given": named,
            "probe": f"a linear classifier on the features of {named}, fitted on the training images",
            "recipe": f"a network that is trained on the same images first (recipe {named})",
            "none": "none: the student learns from labels alone",
        }[self.kind]
        return f"{words}, {self.why}" if self.why else words


def choose_teacher(options: DistilOptions, found: Found, before: Sequence[str] = ()) -> TeacherChoice:
    """The teacher that is asked for, or what is best for the images that there are.

    The Hub may be asked whether it has a model; of a given one the configuration is read.

    Args:
        before: the options of the one that was chosen when this was begun, if it was: what can be reached may change
            meanwhile, and the run that goes on has that one.

    Raises:
        InputError: there can be none, or there is no such model.
    """
    if options.probe:
        if not found.are_labelled:
            raise InputError(
                f"--probe {options.probe} is fitted on labelled images, and there are none: {_UNLABELLED}"
            )
        return _probe(options.probe)
    if NONE in options.teacher:
        if not found.are_labelled:
            raise InputError(f"--teacher {NONE} leaves nothing to learn, as no image has a label: {_UNLABELLED}")
        return TeacherChoice("none", (), ("--distillation_type", "none"))
    if options.teacher:
        return _given(options.teacher)
    names_are_told = bool(options.class_names or options.class_prompts)
    if names_are_told or not found.are_labelled:
        return _zero_shot(names_are_told, before)
    trained = ("--teacher_recipe", TEACHER_RECIPE)
    if tuple(before) != trained and (PROBE_BACKBONE in before or has_weights(PROBE_BACKBONE)):
        return _probe(PROBE_BACKBONE, "as none is named, and there are labels")
    why = f"as none is named, and {PROBE_BACKBONE} is neither in the cache nor to be reached"
    if tuple(before) == trained:
        why = "as when this was begun"
    return TeacherChoice("recipe", (TEACHER_RECIPE,), trained, why)


_UNLABELLED = (
    f"name the classes for a zero-shot teacher (--class_names cat dog --teacher {ZERO_SHOT}), or give a classifier "
    "that knows them (--teacher MODEL)"
)


def _given(names: Sequence[str], why: str = "") -> TeacherChoice:
    is_zero_shot = any(knows_names(name) for name in names)
    return TeacherChoice("given", tuple(names), ("--teacher_model_name_or_path", *names), why, is_zero_shot)


def _probe(backbone: str, why: str = "") -> TeacherChoice:
    return TeacherChoice("probe", (backbone,), ("--teacher_probe", backbone), why)


def _zero_shot(names_are_told: bool, before: Sequence[str]) -> TeacherChoice:
    if not names_are_told:
        raise InputError(f"no image has a label, and there is nobody who knows one: {_UNLABELLED}")
    if ZERO_SHOT in before or has_weights(ZERO_SHOT):
        return _given((ZERO_SHOT,), "as none is named, and the classes' names are told")
    raise InputError(
        f"the classes' names are for a zero-shot teacher, and {ZERO_SHOT} is neither in the cache nor to be reached: "
        "give another with --teacher, or a folder of one, or go where the Hub can be reached"
    )
