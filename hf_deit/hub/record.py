"""What is published of a run: the files of its model, its card, facts, environment, curves and arguments."""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.utils import logging

from ..errors import InputError, first_line, shortlist
from ..models.configuration_deit import warn_of_foreign_code, without_foreign_code
from ..models.pretrained import own_code_of
from ..models.zoo import code_beside
from .card import update_card
from .checksums import CHECKSUMS_FILE, renew_checksums
from .exports import stage_exports
from .facts import RunFacts
from .files import copy_content, read_json, read_text, regular_file, write_json, write_whole
from .recipe_file import RECORDED, dump_recipe
from .report_in_card import stage_report
from .run_folder import CARD_FILE, CURVES_FILE, ENVIRONMENT_FILE, RECIPE_FILE, RUN_FILE, STATE_FILE, step_of

LAST_CHECKPOINT = "last-checkpoint"  # the newest one's name on the Hub, where only that is pushed
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_MODEL_FILES = re.compile(rf"config\.json|preprocessor_config\.json|{_WEIGHTS.pattern}")
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_STATED = {_CONFIG, _PREPROCESSOR, STATE_FILE, CHECKSUMS_FILE}
# Of optimizer, schedule, random numbers and pickled weights; in folders where they are sharded.
_STATES = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|pytorch_model)[\w-]*\.(pt|pth|bin)"
    r"|((optimizer|pytorch_model_fsdp)_\d+|global_step\d+)/.+|latest"
)
_RECORD_FILES = {CARD_FILE, CURVES_FILE, ENVIRONMENT_FILE, RUN_FILE}
# Pickled arguments: they name folders of this machine, and hold the token if it was given as an argument.
_NEVER_PUBLISHED = {"training_args.bin"}
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".sh")

logger = logging.get_logger(__name__)


def is_weights(name: str) -> bool:
    """Whether a file of this name holds a model's weights, or says which files do."""
    return _WEIGHTS.fullmatch(name) is not None


def is_checkpoint(name: str) -> bool:
    """Whether a folder of this name in a repository is a run's checkpoint."""
    return name == LAST_CHECKPOINT or (os.path.basename(name) == name and step_of(name) is not None)


def is_of_checkpoint(name: str) -> bool:
    """Whether a file of this name in a checkpoint's folder, or in one within it, is one from which a run goes on."""
    base = os.path.basename(name)
    return is_weights(base) or base in _STATED or _STATES.fullmatch(name) is not None


def model_files(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the files in a folder that make a model: configuration, weights and image processor."""
    if not os.path.isdir(folder):
        return []
    return [name for name in sorted(os.listdir(folder)) if _MODEL_FILES.fullmatch(name)]


def published_files(folder: str | os.PathLike[str]) -> list[str]:
    """The names of what `stage` takes from a model's folder, each of them a regular file of it.

    Raises:
        InputError: one of them is something else, see `regular_file`.
    """
    names = [*model_files(folder), *sorted(n for n in _RECORD_FILES if os.path.lexists(os.path.join(folder, n)))]
    for name in names:
        regular_file(folder, name)
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
        InputError: the card that is there is no regular file of the folder.
        OSError: it cannot be written.
    """
    from .curves import plot_curves  # brings matplotlib

    write_json(facts.to_dict(), os.path.join(folder, RUN_FILE))
    write_json(facts.environment, os.path.join(folder, ENVIRONMENT_FILE))
    in_table = facts.teacher_top1 if facts.teacher_images == facts.num_validation else None
    picture = os.path.join(folder, CURVES_FILE)
    plot_curves(log_history, picture, teacher_top1=in_table, best_step=facts.best_step, fusion=facts.fusion)
    card = os.path.join(folder, CARD_FILE)
    before = read_text(regular_file(folder, CARD_FILE)) if os.path.lexists(card) else None
    write_whole(update_card(before, facts, repo_id, revision), card)


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
        return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def stage(folder: str | os.PathLike[str], tree: str | os.PathLike[str]) -> None:
    """Collects what is published of a model's folder in another folder, as it is now, and no code but this package's.

    Args:
        folder: the model's, perhaps with card, curves, environment and facts, with a report of an evaluation and
            with exports.
        tree: the folder to fill. Files of the same names are replaced; others that are there stay.

    Raises:
        InputError: one of the files is no regular file of the folder.
        OSError: it cannot be written.
    """
    names = published_files(folder)
    facts = read_facts(folder) or read_facts(tree)
    if facts is not None and facts.recipe:  # not the folder's own: that one names folders of this machine
        text = f"{RECORDED}the run.\n{dump_recipe(facts.recipe)}"
        write_whole(text, os.path.join(tree, RECIPE_FILE))
    for name in names:
        _put(folder, name, tree)
    code = _put_code(tree)
    processor = os.path.join(tree, _PREPROCESSOR)
    if _PREPROCESSOR not in names and os.path.isfile(processor):  # a run has written it
        write_json(_without_code(processor), processor)
    _leave_out({name for name in os.listdir(tree) if name.endswith(_CODE)} - code, tree)
    if facts is not None and facts.needs_code != bool(code):  # in the record of an earlier version, or a false one
        write_json(replace(facts, needs_code=bool(code)).to_dict(), os.path.join(tree, RUN_FILE))
    stage_report(folder, tree)
    stage_exports(folder, tree)


def _put(folder: str | os.PathLike[str], name: str, tree: str | os.PathLike[str]) -> bool:
    """Copies a file into a tree; of a configuration what does not lead to others' code. Whether it is another then."""
    source, target = regular_file(folder, name), os.path.join(tree, name)
    if os.path.basename(name) in (_CONFIG, _PREPROCESSOR):
        kept = _without_code(source, name)
        if kept != read_json(source):
            write_json(kept, target)
            return True
    copy_content(source, target)
    return False


def _without_code(path: str, name: str = _PREPROCESSOR) -> dict[str, Any]:
    """What a configuration states, without what leads to others' code, and with this package's for a model of ours.

    The folder that it was loaded from is left out, too: earlier releases of transformers wrote it.
    """
    stated = {key: value for key, value in read_json(path).items() if key != "_name_or_path"}
    own_code: Mapping[str, str] = {}
    if os.path.basename(name) == _CONFIG:
        model_type = stated.get("model_type")
        is_known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
        own_code = own_code_of(CONFIG_MAPPING[model_type]) if is_known else {}
    kept, left_out = without_foreign_code(stated, own_code)
    warn_of_foreign_code(left_out)
    return {**kept, "auto_map": dict(own_code)} if own_code else kept


def _leave_out(code: Iterable[str], tree: str | os.PathLike[str]) -> None:
    """Says which files of code are not published. Those that are in the tree are removed from it."""
    if names := sorted(code):
        logger.warning_once(f"left out of what is published, as it is others' code: {shortlist(names)}")
    for name in names:
        with suppress(FileNotFoundError):
            os.remove(os.path.join(tree, name))


def _put_code(tree: str | os.PathLike[str]) -> set[str]:
    """Writes this package's code beside a model that needs it; the names of its files."""
    config = os.path.join(tree, _CONFIG)
    files = code_beside(read_json(config).get("model_type")) if os.path.isfile(config) else {}
    for name, path in files.items():
        copy_content(path, os.path.join(tree, name))
    return {*files}


def _raised(error: OSError) -> None:
    raise error


def stage_checkpoint(checkpoint: str | os.PathLike[str], tree: str | os.PathLike[str]) -> None:
    """Collects a checkpoint from which a run can go on elsewhere, without what names this machine or holds a token.

    Args:
        checkpoint: its folder.
        tree: the folder to fill; what was there is removed.

    Raises:
        InputError: it holds something else than regular files and folders.
        OSError: it cannot be written.
    """
    shutil.rmtree(tree, ignore_errors=True)
    changed, without = {STATE_FILE}, {*_NEVER_PUBLISHED}
    for root, folders, names in os.walk(checkpoint, onerror=_raised):
        within = os.path.relpath(root, checkpoint)
        for name in folders:
            if os.path.islink(os.path.join(root, name)):
                regular_file(checkpoint, os.path.join(within, name))  # which it is not
        os.makedirs(os.path.join(tree, within), exist_ok=True)
        code = {name for name in names if name.endswith(_CODE)}
        for name in sorted({*names} - _NEVER_PUBLISHED - {STATE_FILE} - code):
            path = os.path.normpath(os.path.join(within, name))
            if _put(checkpoint, path, tree):
                changed.add(path)
        own = _put_code(os.path.join(tree, within))
        changed |= {os.path.normpath(os.path.join(within, name)) for name in own}
        without |= code - own
        _leave_out(code - own, os.path.join(tree, within))
    state = read_json(regular_file(checkpoint, STATE_FILE))
    best = state.get("best_model_checkpoint")
    state["best_model_checkpoint"] = best and os.path.basename(best)
    write_json(state, os.path.join(tree, STATE_FILE))
    renew_checksums(checkpoint, tree, changed=changed, without=without)
