"""Recipes that follow the images: what a table gives for so many of such a size, and which recipe few images take.

A recipe says so by two keys beside its arguments:

    by_data:  # arguments by what the images are like: of each list the first row that they do not go beyond
      side:  # the shorter side of a typical image, in pixels
        - {up_to: 48, student_overrides: {image_size: 36, patch_size: 6}}
        - {student_overrides: {image_size: 128, patch_size: 16}}  # of all larger ones, and where it is not known
      images:  # that the run trains on
        - {up_to: 500, learning_rate: 1e-3}
        - {learning_rate: 2e-3, note: what is told of it when it is taken}
      labelled_part:  # of them, from 0 to 1
        - {up_to: 0.5, student_overrides: {fusion: distillation}}
        - {}
    few_images: [fine_tune, from_scratch_small]  # in place of this one; the first whose student can be had

Both are settled when a command line is resolved: what is recorded of a run has the values alone.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, did_you_mean
from ..hub.looks import has_weights
from .uses import DEFAULTS, is_pretrained

if TYPE_CHECKING:
    from .survey import ImageSurvey

BY_DATA, FEW_IMAGES = "by_data", "few_images"
KEYS = (BY_DATA, FEW_IMAGES)
# Below either of them images are few.
_ENOUGH, _ENOUGH_OF_A_CLASS = 10_000, 500
_MEASURES = {
    "side": lambda images: images.side,
    "images": lambda images: images.total,
    "labelled_part": lambda images: images.labelled / images.total,
}
# Fields of a student that leave it the size that its recipe has.
_NOT_ITS_SIZE = {
    *("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "fusion", "image_size"),
    "attn_implementation",
}

_NOT_ARGUMENTS = {"up_to", "note"}
# Whether another one is to have new heads is not known, nor whether it takes crops: of up to 32 pixels none does.
_OF_ANOTHER_STUDENT = {"replace_head": False, "crop_scale_min": DEFAULTS["crop_scale_min"]}
# What the machine settles; see hf_deit/recipes/README.md.
_AUTOMATIC = {"bf16", "dataloader_num_workers"}

Layer = Mapping[str, Any]
Layers = Sequence[Layer]
LayersOf = Callable[[str], Layers]


class Choice(NamedTuple):
    """What a recipe takes for images that were looked at.

    Attributes:
        images: what they are like; None if that is not known.
        recipe: the name of the one that takes the place of one with `few_images`, or None.
        reason: in a line, if there was a choice.
        besides: arguments on top of that one's.
    """

    images: "ImageSurvey | None" = None
    recipe: str | None = None
    reason: str | None = None
    besides: Layer = {}  # noqa: RUF012


def follows_data(layers: Layers) -> bool:
    """Whether a recipe, with those that it stands on, follows the images."""
    return any(key in layer for layer in layers for key in KEYS)


def settled(layers: Layers, choice: Choice, layers_of: LayersOf) -> list[dict[str, Any]]:
    """The layers of a recipe without what they say by data, and with what that gives.

    Args:
        layers: the lowest first.
        choice: what the images are like, and which recipe few of them take.
        layers_of: gives the layers of a recipe by its name.
    """
    layers = list(layers)
    place = _place_of_choice(layers)
    if place is not None and choice.recipe is not None:
        folder = [{"output_dir": layer["output_dir"]} for layer in layers[: place + 1] if "output_dir" in layer]
        layers = [*layers_of(choice.recipe), choice.besides, *folder[-1:], *layers[place + 1 :]]
    result = []
    for layer in layers:
        result.append({key: value for key, value in layer.items() if key not in KEYS})
        result += [
            {key: value for key, value in row.items() if key not in _NOT_ARGUMENTS} for row in _rows_of(layer, choice)
        ]
    return result


def notes(layers: Layers, choice: Choice, layers_of: LayersOf) -> list[str]:
    """What the rows that are taken have to tell of labelled images; arguments as of `settled`."""
    if choice.images is None or not choice.images.labelled:
        return []
    if choice.recipe is not None:
        layers = layers_of(choice.recipe)
    return [row["note"] for layer in layers for row in _rows_of(layer, choice) if "note" in row]


def as_recorded(layers: Layers, recorded: Layer, layers_of: LayersOf) -> list[dict[str, Any]]:
    """The same for a run that goes on: what its images had once given stays, whatever they are like now.

    Args:
        layers, layers_of: see `settled`.
        recorded: the resolved recipe of the run.
    """
    end = 1 + max(number for number, layer in enumerate(layers) if any(key in layer for key in KEYS))
    place, below, above = _place_of_choice(layers), layers[:end], layers[end:]
    chosen_from = [] if place is None else list(layers[: place + 1])
    for name in [] if place is None else layers[place][FEW_IMAGES]:
        chosen_from += layers_of(name)
    rows = [row for layer in [*below, *chosen_from] for part in layer.get(BY_DATA, {}).values() for row in part]
    could_give = {key for layer in [*chosen_from, *rows] for key in layer} - {*KEYS, *_NOT_ARGUMENTS, "output_dir"}
    given = {name: recorded.get(name, DEFAULTS[name]) for name in sorted(could_give - _AUTOMATIC)}
    given = {name: getattr(value, "value", value) for name, value in given.items()}
    before = {name: None for name, value in given.items() if isinstance(value, dict)}  # not merged with others
    return [*settled(below, Choice(), layers_of), before, given, *map(dict, above)]


def choose(layers: Layers, given: Layers, images: "ImageSurvey | None", load_recipe: Callable[[str], Layer]) -> Choice:
    """Which recipe images take, and why.

    Another student that is named keeps its heads: that the recipe's own needs new ones says nothing of it.
    Labels that are kept take the place of a recipe's own teacher.

    Args:
        layers: of the recipe.
        given: what stands on top of it.
        images: what they are like, or None.
        load_recipe: gives the arguments of a recipe by its name.
    """
    place = _place_of_choice(layers)
    if place is None or images is None:
        return Choice(images)
    name_of_own = layers[place].get("output_dir", "").rpartition("/")[2] or "this recipe"
    found, names = f"{name_of_own}: {images}", layers[place][FEW_IMAGES]
    if not are_few(images.total, images.num_classes):
        return Choice(images, None, f"{found}: as they are not few, a model made anew, with the paper's augmentation")
    above = [*layers[place + 1 :], *given]
    student = next((layer["student"] for layer in reversed(above) if layer.get("student")), None)
    if student is not None and is_pretrained({"student": student}):
        reason = f"{found}: taking {names[0]}, as {student} is a pretrained student and they are few"
        is_its_own = student == load_recipe(names[0])["student"]
        return Choice(images, names[0], reason, {} if is_its_own else _OF_ANOTHER_STUDENT)
    if student is not None or _names_a_size(above):
        what = f"the student {student}" if student is not None else "student_overrides"
        words = " or ".join(f"--recipe {name}" for name in names)
        reason = f"{found}: going by {what} that is named, made anew, though they are few; without it, {words}"
        return Choice(images, None, reason)
    absent = []
    for number, name in enumerate(names):
        recipe = load_recipe(name)
        made_from = recipe["student"]
        besides = _of_kept_labels(above)
        if not is_pretrained({"student": made_from}):
            because = f"they are few and {' and '.join(absent)} cannot be had" if absent else "they are few"
            other = f"; with it, --recipe {names[0]} is the better road" if absent else ""
            return Choice(images, name, f"{found}: taking {name}, as {because}{other}", besides)
        if has_weights(made_from):
            other = f"; --recipe {names[number + 1]} is the other road" if number + 1 < len(names) else ""
            because = f"they are few and the pretrained {made_from} can be had"
            return Choice(images, name, f"{found}: taking {name}, as {because}{other}", besides)
        absent.append(made_from)
    return Choice(images, None, f"{found}: they are few, and {' and '.join(absent)} cannot be had")


def check_table(recipe: Mapping[str, Any], name: str, known: Callable[[str], None], recipes: Collection[str]) -> None:
    """Refuses what `by_data` and `few_images` cannot mean.

    Args:
        recipe: as it is written.
        name: of the recipe, for the message.
        known: raises for what is no argument, of its name.
        recipes: the names of those that come with the package.

    Raises:
        InputError: names the first fault.
    """
    said = f"the recipe {name!r} has"
    table = recipe.get(BY_DATA, {})
    if not isinstance(table, Mapping):
        raise InputError(f"{said} a {BY_DATA} that is no mapping of {' and '.join(_MEASURES)} to rows, got {table!r}")
    for measure, rows in table.items():
        if measure not in _MEASURES:
            near = did_you_mean(str(measure), _MEASURES)
            raise InputError(f"{said} {BY_DATA} {measure!r}: expected {' or '.join(_MEASURES)}{near}")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
            raise InputError(f"{said} no rows in {BY_DATA} {measure}: expected a list of mappings of arguments")
        limits = [row.get("up_to") for row in rows]
        are_numbers = all(isinstance(limit, Real) and not isinstance(limit, bool) for limit in limits[:-1])
        if limits[-1] is not None or not are_numbers or sorted(set(limits[:-1])) != limits[:-1]:
            raise InputError(
                f"{said} rows in {BY_DATA} {measure} with up_to {limits}: expected numbers that grow, and a last row "
                "without one, of all that is larger"
            )
        for row in rows:
            for key in row:
                if key not in _NOT_ARGUMENTS:
                    known(key)
    names = recipe.get(FEW_IMAGES, [])
    for one in names if isinstance(names, list) else ():
        if one not in recipes:
            raise InputError(f"{said} {FEW_IMAGES} {one!r}, which is no recipe{did_you_mean(str(one), recipes)}")
    if not isinstance(names, list):
        raise InputError(f"{said} a {FEW_IMAGES} that is no list of recipes, got {names!r}")


def are_few(num_images: int, num_classes: int) -> bool:
    """Whether images are few for a model of the paper's made anew: below 10,000, or below 500 of a class.

    Args:
        num_classes: 0 if that is not known.
    """
    return num_images < _ENOUGH or num_images < _ENOUGH_OF_A_CLASS * num_classes


def _names_a_size(above: Iterable[Layer]) -> bool:
    """Whether a layer names fields that make another student than the recipe's."""
    overrides = [layer.get("student_overrides") for layer in above]
    return any(not isinstance(one, dict) or one.keys() - _NOT_ITS_SIZE for one in overrides if one)


def _of_kept_labels(above: Iterable[Layer]) -> dict[str, Any]:
    """What a recipe takes besides where a teacher's labels are kept."""
    given = {name: value for layer in above for name, value in layer.items()}
    if not given.get("teacher_labels"):
        return {}
    named = ("teacher_model_name_or_path", "teacher_recipe", "teacher_probe")
    return {} if any(given.get(name) for name in named) else {"teacher_recipe": None}


def _place_of_choice(layers: Layers) -> int | None:
    return next((number for number, layer in reversed([*enumerate(layers)]) if layer.get(FEW_IMAGES)), None)


def _rows_of(layer: Layer, choice: Choice) -> Iterator[Layer]:
    """Of each list of a table the first row that the images do not go beyond; the last one where that is not known."""
    for measure, rows in layer.get(BY_DATA, {}).items():
        value = None if choice.images is None else _MEASURES[measure](choice.images)
        yield next((row for row in rows[:-1] if value is not None and value <= row["up_to"]), rows[-1])
