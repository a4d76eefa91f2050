"""Which weights a model's folder holds: those it publishes, and those of a run's checkpoint, raw and averaged."""

import os
from typing import Literal, NamedTuple

import yaml

from ...errors import InputError, one_line
from ...hub.recipe_file import parse_recipe, read_recipe_file
from ...hub.run_folder import RECIPE_FILE, check_weights, last_whole_checkpoint, read_state, step_of
from ...training.averaging import AVERAGE_FOLDER

Choice = Literal["published", "raw", "ema", "both"]
_WORDS = {"raw": "raw weights", "ema": "averaged weights"}


class RunWeights(NamedTuple):
    """Weights of a folder.

    Attributes:
        folder: that holds them, with the configuration.
        processor_folder: that holds the image processor.
        kind: "raw" or "ema"; None if that is not known.
        words: that tell them from others of the same folder; empty of those that it publishes.
        checkpoint: the name of the checkpoint that they are of, or None.
    """

    folder: str
    processor_folder: str
    kind: str | None
    words: str = ""
    checkpoint: str | None = None


def weights_of_folder(folder: str, choice: Choice = "published") -> list[RunWeights]:
    """The weights of a model's folder that are to be evaluated.

    Args:
        folder: of a run, of a checkpoint of one, or of any model; or a name on the Hub, which publishes some alone.
        choice: "published" takes what stands in the folder itself, as `from_pretrained` does. The others take them
            from one checkpoint, as a folder publishes but one of both: from the best if the run publishes that
            (`load_best_model_at_end`), else from the last whole one.

    Raises:
        InputError: there are no such weights, or they are not what was written.
    """
    if choice == "published":
        return [_published(folder)]
    if not os.path.isdir(folder):
        raise InputError(
            f"--weights {choice} is about the folder of a run, whose checkpoints hold raw and averaged weights, and "
            f"{folder!r} is on the Hub: leave it out"
        )
    recipe = _recipe_of(folder)
    checkpoint = _checkpoint_of(folder, recipe)
    if checkpoint is None:
        kind = _published(folder).kind
        if recipe and kind == choice:
            return [_published(folder)]  # its checkpoints were removed, or never written
        raise InputError(
            f"{folder!r} holds no checkpoint to take {_WORDS.get(choice, 'raw and averaged weights')} from"
            + (f", and what it publishes are {_WORDS[kind]}" if recipe else " (checkpoint-N), as it is of no run")
            + ": leave --weights out for what it publishes"
        )
    check_weights(checkpoint)
    name, average = os.path.basename(os.path.abspath(checkpoint)), os.path.join(checkpoint, AVERAGE_FOLDER)
    found = {"raw": RunWeights(checkpoint, checkpoint, "raw", _WORDS["raw"], name)}
    if os.path.isdir(average):
        found["ema"] = RunWeights(average, checkpoint, "ema", _WORDS["ema"], name)
    elif choice != "raw":
        raise InputError(
            f"{checkpoint!r} holds no averaged weights ({AVERAGE_FOLDER}/), as its run kept no moving average "
            "(--ema_decay 0): leave --weights out"
        )
    return list(found.values()) if choice == "both" else [found[choice]]


def _published(folder: str) -> RunWeights:
    path = os.path.abspath(folder)
    if os.path.basename(path) == AVERAGE_FOLDER and not os.path.exists(os.path.join(path, "preprocessor_config.json")):
        parent = os.path.dirname(path)  # a checkpoint, which has one processor for both
        return RunWeights(folder, parent, "ema", _WORDS["ema"], os.path.basename(parent))
    if step_of(path) is not None and os.path.isdir(path):
        check_weights(path)
        return RunWeights(folder, folder, "raw")
    recipe = _recipe_of(folder)
    return RunWeights(folder, folder, str(recipe.get("publish_weights", "raw")) if recipe else None)


def _checkpoint_of(folder: str, recipe: dict[str, object]) -> str | None:
    if step_of(os.path.abspath(folder)) is not None:
        return folder
    last = last_whole_checkpoint(folder)
    if last is None or not recipe.get("load_best_model_at_end"):
        return last
    best = read_state(last).best_model_checkpoint
    return best if best and os.path.isdir(best) else last


def _recipe_of(folder: str) -> dict[str, object]:
    """What the recipe beside a run's model says; empty if there is none."""
    path = os.path.join(folder, RECIPE_FILE)
    if not os.path.isfile(path):
        return {}
    try:
        recipe = parse_recipe(read_recipe_file(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path!r}, the recipe of the model's run: {one_line(error)}") from error
    return recipe if isinstance(recipe, dict) else {}
