"""What is published of a run: the files of its model, its card, facts, environment, curves and arguments."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from ..errors import InputError, first_line
from .card import update_card
from .checksums import renew_checksums
from .facts import RunFacts
from .files import link, read_json, read_text, write_json, write_whole
from .recipe_file import dump_recipe
from .run_folder import CARD_FILE, CURVES_FILE, ENVIRONMENT_FILE, RECIPE_FILE, RUN_FILE, STATE_FILE

LAST_CHECKPOINT = "last-checkpoint"  # the newest one's name on the Hub, where only that is pushed
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_MODEL_FILES = re.compile(rf"config\.json|preprocessor_config\.json|{_WEIGHTS.pattern}")
_RECORD_FILES = {CARD_FILE, CURVES_FILE, ENVIRONMENT_FILE, RUN_FILE}
# Pickled arguments: they name folders of this machine, and hold the token if it was given as an argument.
_NEVER_PUBLISHED = {"training_args.bin"}


def is_weights(name: str) -> bool:
    """Whether a file of this name holds a model's weights, or says which files do."""
    return _WEIGHTS.fullmatch(name) is not None


def is_checkpoint(name: str) -> bool:
    """Whether a folder of this name in a repository is a run's checkpoint."""
    return name == LAST_CHECKPOINT or re.fullmatch(r"checkpoint-\d+", name) is not None


def model_files(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the files in a folder that make a model: configuration, weights, image processor, perhaps code."""
    if not os.path.isdir(folder):
        return []
    names = [name for name in sorted(os.listdir(folder)) if _MODEL_FILES.fullmatch(name)]
    if "config.json" in names:
        auto_map = read_json(os.path.join(folder, "config.json")).get("auto_map", {})
        modules = {os.path.join(folder, f"{name.split('.')[0]}.py") for name in auto_map.values()}
        code = set(filter(os.path.isfile, modules))
        code |= {path for module in code for path in get_relative_import_files(module)}
        names += sorted(os.path.relpath(path, folder) for path in code)
    return names


def write_record(
    folder: str | os.PathLike[str],
    facts: RunFacts,
    log_history: Sequence[Mapping[str, Any]],
    repo_id: str,
    revision: str | None = None,
) -> None:
    """Writes what is published of a run beside its model: card, facts, environment and curves.

    What people have written into a card that is there stays.

    Args:
        log_history: see `plot_curves`.
        repo_id, revision: see `make_card`.

    Raises:
        OSError: it cannot be written.
    """
    from .curves import plot_curves  # brings matplotlib

    write_json(facts.to_dict(), os.path.join(folder, RUN_FILE))
    write_json(facts.environment, os.path.join(folder, ENVIRONMENT_FILE))
    in_table = facts.teacher_top1 if facts.teacher_images == facts.num_validation else None
    picture = os.path.join(folder, CURVES_FILE)
    plot_curves(log_history, picture, teacher_top1=in_table, best_step=facts.best_step, fusion=facts.fusion)
    card = os.path.join(folder, CARD_FILE)
    write_whole(update_card(read_text(card), facts, repo_id, revision), card)


def read_facts(folder: str | os.PathLike[str]) -> RunFacts | None:
    """The facts of the run that a folder is of, or None if there are none in it.

    Raises:
        InputError: the file cannot be read.
    """
    path = os.path.join(folder, RUN_FILE)
    if not os.path.isfile(path):
        return None
    try:
        return RunFacts.from_dict(read_json(path))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path!r} is not what a run of hf_deit writes ({first_line(error)}): run it again"
        ) from error


def read_history(path: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    """The log of a run from the state in a checkpoint; none where the file does not say it, or there is none."""
    try:
        lines = [] if path is None else read_json(path)["log_history"]
        return [line for line in lines if "step" in line]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def stage(folder: str | os.PathLike[str], tree: str | os.PathLike[str]) -> None:
    """Collects what is published of a model's folder in another folder, with hard links instead of copies.

    Args:
        folder: the model's, perhaps with card, curves, environment and facts.
        tree: the folder to fill. Files of the same names are replaced; others that are there stay.

    Raises:
        OSError: it cannot be written.
    """
    records = [name for name in _RECORD_FILES if os.path.isfile(os.path.join(folder, name))]
    for name in [*model_files(folder), *records]:
        link(os.path.join(folder, name), os.path.join(tree, name))
    facts = read_facts(tree)
    if facts is not None and facts.recipe:  # not the folder's own: that one names folders of this machine
        text = f"# Resolved arguments of the run.\n{dump_recipe(facts.recipe)}"
        write_whole(text, os.path.join(tree, RECIPE_FILE))


def stage_checkpoint(checkpoint: str | os.PathLike[str], tree: str | os.PathLike[str]) -> None:
    """Collects a checkpoint from which a run can go on elsewhere, without what names this machine or holds a token.

    Args:
        checkpoint: its folder.
        tree: the folder to fill; what was there is removed.

    Raises:
        OSError: it cannot be written.
    """
    shutil.rmtree(tree, ignore_errors=True)
    for root, _, names in os.walk(checkpoint):
        target = os.path.normpath(os.path.join(tree, os.path.relpath(root, checkpoint)))
        os.makedirs(target, exist_ok=True)
        for name in set(names) - _NEVER_PUBLISHED:
            if name != STATE_FILE:
                link(os.path.join(root, name), os.path.join(target, name))
    state = read_json(os.path.join(checkpoint, STATE_FILE))
    best = state.get("best_model_checkpoint")
    state["best_model_checkpoint"] = best and os.path.basename(best)
    write_json(state, os.path.join(tree, STATE_FILE))
    renew_checksums(checkpoint, tree, changed=[STATE_FILE], without=_NEVER_PUBLISHED)
