"""What of a run is published, and how it gets to the Hub: checked, whole, and without losing a result on the way."""

import json
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .checkpoints import STATE_FILE, last_whole_checkpoint
from .errors import InputError, PublishError, first_line
from .hub import Attempt, HubRepository, check_repository, keep_trying, why
from .plots import plot_curves
from .run_card import card_faults, merge_cards, update_card
from .run_facts import RunFacts
from .teacher import LOADING_ERRORS, absent_weights, load_image_processor

logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
RECIPE_FILE = "recipe.yaml"
CURVES_FILE = "training_curves.png"
ENVIRONMENT_FILE = "environment.json"
RUN_FILE = "run.json"
_MODEL_FILES = re.compile(r"config\.json|preprocessor_config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_RECORD_FILES = {CARD_FILE, CURVES_FILE, ENVIRONMENT_FILE, RUN_FILE}
# Pickled arguments: they name folders of this machine, and hold the token if it was given as an argument.
_NEVER_PUBLISHED = {"training_args.bin"}
_TREE = "_publishing"


def model_files(folder: str) -> list[str]:
    """The files in a folder that make a model: configuration, weights, image processor, and its code if it has any."""
    if not os.path.isdir(folder):
        return []
    names = [name for name in sorted(os.listdir(folder)) if _MODEL_FILES.fullmatch(name)]
    if "config.json" in names:
        auto_map = _read_json(os.path.join(folder, "config.json")).get("auto_map", {})
        modules = {os.path.join(folder, f"{name.split('.')[0]}.py") for name in auto_map.values()}
        code = set(filter(os.path.isfile, modules))
        code |= {path for module in code for path in get_relative_import_files(module)}
        names += sorted(os.path.relpath(path, folder) for path in code)
    return names


def write_record(
    folder: str,
    facts: RunFacts,
    log_history: Sequence[Mapping[str, Any]],
    repo_id: str,
    revision: str | None = None,
) -> None:
    """Writes what is published of a run beside its model: card, facts, environment and curves.

    Hand-written parts of a card that is there stay.

    Raises:
        OSError: it cannot be written.
    """
    _write_json(facts.to_dict(), os.path.join(folder, RUN_FILE))
    _write_json(facts.environment, os.path.join(folder, ENVIRONMENT_FILE))
    plot_curves(log_history, os.path.join(folder, CURVES_FILE))
    card = os.path.join(folder, CARD_FILE)
    _write_text(update_card(_read_text(card), facts, repo_id, revision), card)


def read_facts(folder: str) -> RunFacts | None:
    """The facts of a folder's run, or None if it holds none.

    Raises:
        InputError: they cannot be read.
    """
    path = os.path.join(folder, RUN_FILE)
    if not os.path.isfile(path):
        return None
    try:
        return RunFacts.from_dict(_read_json(path))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path!r} is not what a run of hf_deit writes ({first_line(error)}): run it again"
        ) from error


def check_folder(folder: str) -> None:
    """Refuses a folder that cannot be published as it is: everything is loaded as its users will load it.

    Raises:
        InputError: no configuration, no weights or not all of them, an image processor or labels that do not fit, a
            card that is missing or not complete, a run that is not finished.
    """
    if not os.path.isfile(os.path.join(folder, "config.json")):
        checkpoint = last_whole_checkpoint(folder) if os.path.isdir(folder) else None
        raise InputError(
            f"there is no model in {folder!r}: "
            + (
                f"its run is not finished; go on with it, with --resume_from_checkpoint {checkpoint}"
                if checkpoint
                else "expected a folder with config.json and model.safetensors, or one of kept labels, with store.json"
            )
        )
    facts = read_facts(folder)
    if facts is not None and not facts.is_finished:
        raise InputError(f"the run in {folder!r} stands at step {facts.step} of {facts.num_steps}: finish it first")
    if not any(name.endswith(".safetensors") for name in model_files(folder)):
        raise InputError(
            f"there are no weights in {folder!r}, expected model.safetensors: save it with save_pretrained"
        )
    _check_processor(folder, _check_weights(folder).config)
    if facts is None:
        text = _read_text(os.path.join(folder, CARD_FILE))
        if text is None:
            raise InputError(f"{folder!r} has no {CARD_FILE}: write a model card first")
        faults = card_faults(text)
        if faults:
            raise InputError(f"the card {CARD_FILE} in {folder!r} is not complete: {'; '.join(faults)}")


def _check_weights(folder: str) -> PreTrainedModel:
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            folder, output_loading_info=True, local_files_only=True
        )
    except LOADING_ERRORS as error:
        raise InputError(f"the model in {folder!r} does not load ({first_line(error)}): save it anew") from error
    absent = absent_weights(info)
    if absent:
        raise InputError(f"the weights in {folder!r} are not whole, they lack {', '.join(absent[:4])}: save them anew")
    weights = {name: weight for name, weight in model.state_dict().items() if weight.is_floating_point()}
    spoilt = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if spoilt:
        raise InputError(f"the weights in {folder!r} are not finite ({spoilt[0]}): the training has diverged")
    return model


def _check_processor(folder: str, config: PreTrainedConfig) -> None:
    size = load_image_processor(folder, None, config).to_dict()
    size = size.get("crop_size") or size.get("size") or {}
    wanted = getattr(config, "image_size", None)
    if isinstance(wanted, int) and size.get("height") not in (None, wanted):
        raise InputError(
            f"the image processor in {folder!r} makes {size['height']} pixels, the model takes {wanted}: save the "
            "processor that it was trained with beside it"
        )
    if len(set(config.id2label.values())) != len(config.id2label):
        raise InputError(f"config.json in {folder!r} has labels that share a name: mend its id2label")


def stage(folder: str, tree: str) -> None:
    """Collects what is published of a model's folder in another one, without copying: with hard links.

    Args:
        folder: with the model, and perhaps card, curves, environment and facts.
        tree: to be filled; files that are there are replaced, or stay if the folder has no such.

    Raises:
        OSError: it cannot be written.
    """
    records = [name for name in _RECORD_FILES if os.path.isfile(os.path.join(folder, name))]
    for name in [*model_files(folder), *records]:
        _link(os.path.join(folder, name), os.path.join(tree, name))
    facts = read_facts(tree)
    if facts is not None and facts.recipe:  # not the folder's own: that one names folders of this machine
        recipe = yaml.safe_dump(facts.recipe, sort_keys=False, allow_unicode=True)
        _write_text(f"# Resolved arguments of the run.\n{recipe}", os.path.join(tree, RECIPE_FILE))


def stage_checkpoint(checkpoint: str, tree: str) -> None:
    """Collects a checkpoint, from which a run can go on, without what names this machine.

    Raises:
        OSError: it cannot be written.
    """
    shutil.rmtree(tree, ignore_errors=True)
    for root, _, names in os.walk(checkpoint):
        target = os.path.normpath(os.path.join(tree, os.path.relpath(root, checkpoint)))
        os.makedirs(target, exist_ok=True)
        for name in set(names) - _NEVER_PUBLISHED:
            if name != STATE_FILE:
                _link(os.path.join(root, name), os.path.join(target, name))
    state = _read_json(os.path.join(checkpoint, STATE_FILE))
    best = state.get("best_model_checkpoint")
    state["best_model_checkpoint"] = best and os.path.basename(best)
    _write_json(state, os.path.join(tree, STATE_FILE))


def publish_tree(repository: HubRepository, tree: str, message: str) -> None:
    """Pushes a tree that `stage` has filled, with its card written into the one that is on the Hub.

    Raises:
        InputError: the Hub does not accept the card.
        HUB_ERRORS: the Hub refuses, fails or is not there.
    """
    card, facts, head = os.path.join(tree, CARD_FILE), read_facts(tree), repository.head()
    if facts is not None:
        existing = merge_cards(repository.read_card(head), _read_text(card))
        _write_text(update_card(existing, facts, repository.repo_id, repository.revision), card)
    repository.upload(tree, message, parent=head)


def publish_folder(
    folder: str,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    seconds: float = 600.0,
) -> HubRepository:
    """Checks a folder and the repository, creates that if need be, and pushes the model with its card and record.

    Args:
        folder: of a finished run, or of any classifier with a card.
        repo_id, token, private, revision: see `check_repository`.
        seconds: after which a push that fails is given up.

    Returns:
        The repository.

    Raises:
        InputError: the folder or the repository cannot be used.
        PublishError: the Hub refuses, fails or is not there.
    """
    check_folder(folder)
    repository = check_repository(repo_id, token=token, private=private, revision=revision)
    repository.create()
    Publisher(repository, folder, seconds=seconds).finish(
        lambda tree: stage(folder, tree), "Upload of a trained model"
    )
    return repository


class Publisher:
    """Pushes in the background, one push at a time; what fails is told, kept, and pushed again with the next.

    Args:
        repository: which exists.
        output_dir: of the run; what is pushed is collected in it.
        seconds: after which a push is given up.

    Attributes:
        failures: of pushes: a line each.
    """

    def __init__(self, repository: HubRepository, output_dir: str, *, seconds: float) -> None:
        self.repository = repository
        self.failures: list[str] = []
        self._output_dir = output_dir
        self._seconds = seconds
        self._tree = os.path.join(output_dir, _TREE)
        self._attempt: Attempt | None = None
        self._message = ""
        self._abandoned: list[tuple[Attempt, str]] = []
        os.makedirs(output_dir, exist_ok=True)
        for name in os.listdir(output_dir):
            if re.fullmatch(f"{_TREE}_*", name):  # of a run that was killed
                shutil.rmtree(os.path.join(output_dir, name), ignore_errors=True)

    @property
    def is_busy(self) -> bool:
        """Whether a push is under way."""
        return self._attempt is not None and self._attempt.is_alive()

    def wait(self) -> None:
        """Until the push that is under way has ended, or its time is up; then logs it if it has failed."""
        if self._attempt is None:
            return
        # A call may have begun just before the time was up.
        self._attempt.join(self._seconds + min(self._seconds, 10))
        if self._attempt.is_alive():
            self._note(f"no answer within {self._seconds:g} s")
            self._leave_tree()
        elif self._attempt.error is not None:
            self._note(why(self._attempt.error))
        else:
            shutil.rmtree(self._tree, ignore_errors=True)
        self._attempt = None

    def _leave_tree(self) -> None:
        """Goes on in another tree, with the checkpoints of this one, which the thread may still read."""
        left, self._tree = self._tree, f"{self._tree}_"
        self._abandoned.append((self._attempt, left))
        for entry in os.scandir(left):
            if entry.is_dir():
                shutil.copytree(entry.path, os.path.join(self._tree, entry.name), copy_function=_link)
        for attempt, tree in self._abandoned:
            if not attempt.is_alive():
                shutil.rmtree(tree, ignore_errors=True)

    def _note(self, reason: str) -> None:
        self.failures.append(f"{self._message}: {reason}")
        logger.warning("could not push to %s: %s (%s)", self.repository.repo_id, self._message, reason)

    def push(self, fill: Callable[[str], None], message: str) -> None:
        """Begins a push. One that is under way is waited for; if it has failed, its files are pushed with this one.

        Args:
            fill: writes what is to be pushed into the folder that it is given.
            message: of the commit.
        """
        self.wait()
        self._message = message
        try:
            os.makedirs(self._tree, exist_ok=True)
            for entry in os.scandir(self._tree):  # a model that could not be pushed is out of date now
                if entry.is_file():
                    os.remove(entry.path)
            fill(self._tree)
        except Exception as error:  # whatever it is, it must not end the training
            self._note(why(error))
            return
        tree = self._tree
        self._attempt = Attempt(
            lambda: keep_trying(
                lambda: publish_tree(self.repository, tree, message),
                what=f"pushing ({message})",
                seconds=self._seconds,
            )
        )

    def finish(self, fill: Callable[[str], None], message: str) -> None:
        """Pushes and waits until it is done.

        Raises:
            PublishError: it failed; nothing that is in the output folder is lost.
        """
        self.wait()
        count = len(self.failures)
        self.push(fill, message)
        self.wait()
        if len(self.failures) > count:
            reason = self.failures[-1].removeprefix(f"{message}: ")
            command = ["python", "scripts/publish.py", self._output_dir, "--repo_id", self.repository.repo_id]
            command += ["--private"] if self.repository.private else []
            command += ["--revision", self.repository.revision] if self.repository.revision else []
            raise PublishError(
                f"the model lies whole in {self._output_dir!r}, but could not be pushed to {self.repository.url} "
                f"({reason}). Publish it later with:\n\n    {shlex.join(command)}\n"
            )


def _link(source: str, target: str) -> None:
    if os.path.lexists(target):
        os.remove(target)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write_text(text: str, path: str) -> None:
    """Replaces a file; one that is linked elsewhere stays as it is there."""
    unfinished = f"{path}.{threading.get_ident()}"
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(unfinished, path)


def _read_json(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _write_json(values: Mapping[str, Any], path: str) -> None:
    _write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", path)
