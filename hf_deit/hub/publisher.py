"""Pushes in the background: one at a time, told when it fails, and caught up with the next."""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from transformers.utils import logging

from ..errors import PublishError, command
from .card import add_exports, add_report, merge_cards, update_card
from .client import Attempt, keep_trying, why
from .export_record import FORMATS, RECORD_FILE
from .exports import files_of_export, staged_exports
from .files import files_below, read_text, write_whole
from .record import is_checkpoint, is_of_checkpoint, is_weights, read_facts, read_history
from .report_in_card import REPORT_FOLDER, RESULTS_FILE, files_of_report, staged_report
from .repository import HubRepository
from .run_folder import CARD_FILE, STATE_FILE
from .run_lock import hold

logger = logging.get_logger(__name__)

_TREES = "_publishing"
History = Sequence[Mapping[str, Any]]  # see `Publisher`


@dataclass(frozen=True)
class Pushed:
    """What a push has left on the Hub.

    Attributes:
        commit: that it made, or that has all of it already.
        checkpoints: that are there, by the names of their folders; the logs of those that were there before.
    """

    commit: str
    checkpoints: Mapping[str, History]


def publish_tree(
    repository: HubRepository,
    tree: str | os.PathLike[str],
    message: str,
    history: History = (),
    before: Pushed | None = None,
) -> Pushed:
    """Pushes a folder that `stage` has filled, as one commit on the one that is the last by then.

    Its card is written into the one that is there. With the same commit goes what would be read as a part of it:
    weights in other files, a report and exports of the weights before, and of a checkpoint of the same name what a run
    had written beside these files. So do checkpoints that another run of this package has written, by what its log
    says. Nothing else is removed, and all of it stays in the commits before.

    Args:
        history: of the run; see `Publisher`.
        before: what the last push of this process has left, so that it need not be looked at again.

    Raises:
        InputError: the Hub does not accept the card.
        HUB_ERRORS: the Hub refuses, fails or is not there.
    """
    card, facts, head = os.path.join(tree, CARD_FILE), read_facts(tree), repository.head()
    report, exports = staged_report(tree), staged_exports(tree)
    if facts is not None:
        existing = merge_cards(repository.read_card(head), read_text(card))
        text = update_card(existing, facts, repository.repo_id, repository.revision, report, exports)
        write_whole(text, card)
    elif (text := read_text(card)) is not None:
        text = add_report(text, report, repository.repo_id)
        write_whole(add_exports(text, exports, repository.repo_id, repository.revision), card)
    ours, there = {*files_below(tree)}, repository.files(head)
    replaced = _checkpoints(ours)
    if before is not None and before.commit == head:
        logs = before.checkpoints
    else:
        logs = {name: _log_of(repository, head, name, there) for name in _checkpoints(there) - replaced}
    logs = {**logs, **dict.fromkeys(replaced, ())}
    foreign = {name for name, log in logs.items() if _is_of_package(log) and contradict(history, log)}
    if foreign:
        logger.warning(
            "another run has pushed to %s: its checkpoints (%s) give way to this run's, and stay in commit %s",
            *(repository.repo_id, ", ".join(sorted(foreign)), head),
        )
    has_weights, gone = any(map(is_weights, ours)), replaced | foreign
    outdated = {
        name
        for name, (folder, _, inside) in ((name, name.partition("/")) for name in there - ours)
        if (has_weights and is_weights(name)) or (folder in gone and is_of_checkpoint(inside))
    }
    results = f"{REPORT_FOLDER}/{RESULTS_FILE}"
    if has_weights and results in there:  # of the weights before
        outdated |= files_of_report(repository.download(results, head)) & (there - ours)
    records = {f"{format}/{RECORD_FILE}": format for format in FORMATS}
    for name in records.keys() & there if has_weights else ():  # likewise
        outdated |= files_of_export(records[name], repository.download(name, head)) & (there - ours)
    commit = repository.upload(tree, message, parent=head, remove=outdated)
    return Pushed(commit.oid, {name: log for name, log in logs.items() if name not in foreign})


def _checkpoints(names: Iterable[str]) -> set[str]:
    """The folders of checkpoints among the files of a repository."""
    return {name.partition("/")[0] for name in names if "/" in name and is_checkpoint(name.partition("/")[0])}


def _log_of(repository: HubRepository, head: str, checkpoint: str, there: AbstractSet[str]) -> History:
    state = f"{checkpoint}/{STATE_FILE}"
    return read_history(repository.download(state, head)) if state in there else ()


def _is_of_package(log: History) -> bool:
    """Whether a log was written by this package's Trainer, and not by that of transformers, say."""
    return any("images_per_second" in line for line in log)


def contradict(one: History, other: History) -> bool:
    """Whether two logs are those of two runs: a step that is in both has another loss."""
    losses = {line["step"]: repr(line["loss"]) for line in one if "loss" in line}  # NaN is no other than NaN
    return any("loss" in line and losses.get(line["step"], repr(line["loss"])) != repr(line["loss"]) for line in other)


class Publisher:
    """Pushes in the background, one push at a time. What fails is logged, and its files are pushed with the next push.

    What is to be pushed is copied into a folder in the output folder: until it is on the Hub it is not lost, also if
    the run removes its checkpoints, or is killed.

    Args:
        repository: one that exists.
        output_dir: of the run.
        seconds: after which a push is given up.
        history: gives the run's log, as in `TrainerState.log_history`. It tells its checkpoints on the Hub from those
            of other runs.
        keeps: by the name of a checkpoint's folder, whether one that waits since an earlier start is pushed now.

    Raises:
        InputError: another run is at work in the output folder.
        OSError: nothing can be written there.
    """

    def __init__(
        self,
        repository: HubRepository,
        output_dir: str | os.PathLike[str],
        *,
        seconds: float,
        history: Callable[[], History] = list,
        keeps: Callable[[str], bool] = is_checkpoint,
    ) -> None:
        output_dir = os.fspath(output_dir)
        self.repository = repository
        self._failures: list[str] = []
        self._output_dir = output_dir
        self._seconds = seconds
        self._history = history
        # By the repository: what was meant for one does not get into another.
        name = f"{repository.repo_id}@{repository.revision or ''}".replace("/", "--")
        self._tree = os.path.join(output_dir, _TREES, name)
        self._count = 0
        self._attempt: Attempt | None = None
        self._flying = ""  # folder of the attempt
        self._message = ""  # likewise
        self._waiting: str | None = None  # message of the model that is collected, if there is one
        self._abandoned: list[tuple[Attempt, str]] = []
        self._pushed: dict[str, str] = {}  # names of checkpoints, and the commit that has each
        self._last: Pushed | None = None
        self._missing: set[str] = set()
        with hold(output_dir):
            self._take_up(keeps)

    def _take_up(self, keeps: Callable[[str], bool]) -> None:
        """Takes the whole checkpoints that an earlier start left, if they are kept, and removes what else it has."""
        trees, name = os.path.split(self._tree)
        if os.path.islink(trees):  # what a link leads to is somebody else's
            os.remove(trees)
        left = [*os.scandir(trees)] if os.path.isdir(trees) else []
        for entry in left:
            if entry.is_symlink():
                os.remove(entry.path)
        left = [entry for entry in left if not entry.is_symlink()]
        own = {entry.path for entry in left if entry.name == name or entry.name.startswith(f"{name}~")}
        outdated = own | {entry.path for entry in left if "@" not in entry.name}  # an earlier version had one tree
        outdated |= {entry.path for entry in os.scandir(self._output_dir) if re.fullmatch(f"{_TREES}_+", entry.name)}
        taken = next(path for number in count(1) if (path := f"{self._tree}~{number}") not in own)
        for tree in sorted(own):
            _bring_checkpoints(tree, taken, os.rename, keeps)
        for path in outdated:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(FileNotFoundError, IsADirectoryError):
                os.remove(path)
        if os.path.isdir(taken):
            os.rename(taken, self._tree)

    @property
    def is_busy(self) -> bool:
        """Whether a push is under way."""
        return self._attempt is not None and self._attempt.is_alive()

    @property
    def missing(self) -> set[str]:
        """Names of checkpoints that were pushed, and that another run's have replaced on the Hub."""
        return {*self._missing}

    @property
    def failures(self) -> list[str]:
        """A line for each push that has failed, and for each checkpoint that is missing."""
        lost = (
            f"{name}: another run has taken its place; it is in commit {self._pushed[name]}" for name in self._missing
        )
        return [*self._failures, *sorted(lost)]

    def wait(self) -> None:
        """Waits until the push that is under way has ended, or its time is up. Logs it if it has failed."""
        if self._attempt is None:
            return
        attempt, self._attempt = self._attempt, None
        # A call may have begun just before the time was up.
        attempt.join(self._seconds + min(self._seconds, 10))
        if attempt.is_alive():
            self._note(self._message, f"no answer within {self._seconds:g} s")
            self._take_back(attempt)
        elif attempt.error is not None:
            self._note(self._message, why(attempt.error))
            self._take_back(attempt)
        else:
            self._pushed |= dict.fromkeys(_checkpoints(files_below(self._flying)), attempt.result.commit)
            self._last = attempt.result
            self._missing = self._pushed.keys() - self._last.checkpoints.keys()
            shutil.rmtree(self._flying, ignore_errors=True)
            with suppress(OSError):  # more waits there
                os.rmdir(os.path.dirname(self._tree))

    def _take_back(self, attempt: Attempt) -> None:
        """Collects the checkpoints again that were not pushed. A thread that has not ended may still read them."""
        try:
            _bring_checkpoints(self._flying, self._tree, _copy_checkpoint if attempt.is_alive() else os.rename)
        except OSError as error:  # they lie where they are, for another start of the run
            self._note("its checkpoints", why(error))
        else:
            self._abandoned.append((attempt, self._flying))
        for earlier, tree in self._abandoned:
            if not earlier.is_alive():
                shutil.rmtree(tree, ignore_errors=True)

    def _note(self, what: str, reason: str) -> None:
        self._failures.append(f"{what}: {reason}")
        logger.warning("could not push to %s: %s (%s)", self.repository.repo_id, what, reason)

    def keep(self, fill: Callable[[str], None], what: str) -> None:
        """Collects what is pushed with the next model.

        Args:
            fill: a function that writes it into the folder that it is given.
            what: it is, for the message where that fails.
        """
        try:
            os.makedirs(self._tree, exist_ok=True)
            fill(self._tree)
        except Exception as error:  # whatever it is, it must not end the training
            self._note(what, why(error))

    def push(self, fill: Callable[[str], None], message: str, *, is_urgent: bool = True) -> None:
        """Begins a push with all that waits for one, as where the one before has failed.

        Args:
            fill: a function that writes what is to be pushed into the folder that it is given.
            message: of the commit.
            is_urgent: whether one that is under way is waited for. Otherwise what is to be pushed waits for the next
                one, or for `catch_up`; newer files of the model take the place of those that wait.
        """
        begins = is_urgent or not self.is_busy
        if begins:
            self.wait()
        try:
            self._remove_model()
            os.makedirs(self._tree, exist_ok=True)
            fill(self._tree)
            self._waiting = message
            if begins:
                self._begin()
            else:
                logger.info("%s waits for the push that is under way", message)
        except Exception as error:  # whatever it is, it must not end the training
            self._note(message, why(error))
            self._remove_model()

    def _remove_model(self) -> None:
        """Removes the files of a model that is out of date, or not whole; checkpoints stay."""
        self._waiting = None
        for entry in os.scandir(self._tree) if os.path.isdir(self._tree) else ():
            if entry.is_file():
                with suppress(OSError):  # the next model's will take its place
                    os.remove(entry.path)

    def _begin(self) -> None:
        message, history, before = self._waiting, list(self._history()), self._last
        self._leave_out_others(history)
        self._count += 1
        tree = f"{self._tree}~{self._count}"  # a character that no branch has in its name
        os.rename(self._tree, tree)
        self._flying, self._message, self._waiting = tree, message, None
        self._attempt = Attempt(
            lambda: keep_trying(
                lambda: publish_tree(self.repository, tree, message, history, before),
                what=f"pushing ({message})",
                seconds=self._seconds,
            )
        )

    def _leave_out_others(self, history: History) -> None:
        """Removes checkpoints that wait since an earlier start, where that took another way than this run."""
        for name in os.listdir(self._tree):
            if contradict(history, read_history(os.path.join(self._tree, name, STATE_FILE))):
                logger.warning("%s of an earlier run in %s is not pushed any more", name, self._output_dir)
                shutil.rmtree(os.path.join(self._tree, name))

    def catch_up(self) -> None:
        """Waits as `wait`, and, unless that has failed, pushes what waits and waits for that."""
        before = len(self._failures)
        self.wait()
        if self._waiting is None:
            return
        if len(self._failures) > before:
            names = sorted({*_checkpoints(files_below(self._tree)), self._waiting})
            logger.warning("not pushed yet, and kept for the next push: %s", ", ".join(names))
        else:
            try:
                self._begin()
            except OSError as error:
                self._note(self._waiting, why(error))
            self.wait()

    def finish(self, fill: Callable[[str], None], message: str) -> None:
        """Pushes, with all that waits for it, and waits until it is done.

        Raises:
            PublishError: the push has failed. Nothing in the output folder is lost.
        """
        self.wait()
        before = len(self._failures)
        self.push(fill, message)
        self.wait()
        if len(self._failures) > before:
            reason = self._failures[before].removeprefix(f"{message}: ")
            names = sorted(_checkpoints(files_below(self._tree)))
            nor = f", and neither could {', '.join(names)}" if names else ""
            options = ["--hub_model_id", self.repository.repo_id]
            options += ["--hub_private_repo"] if self.repository.private else []
            options += ["--hub_revision", self.repository.revision] if self.repository.revision else []
            later = command("publish", self._output_dir, *options)
            raise PublishError(
                f"the model lies whole in {self._output_dir!r}, but could not be pushed to {self.repository.url} "
                f"({reason}){nor}. Publish it later with:\n\n    {later}\n"
            )


def _bring_checkpoints(
    tree: str, target: str, bring: Callable[[str, str], object], keeps: Callable[[str], bool] = is_checkpoint
) -> None:
    """Brings the whole checkpoints of a folder, under their own names, into another one, where that has none of these.

    Raises:
        OSError: one of them cannot be brought there.
    """
    for name in sorted(os.listdir(tree)) if os.path.isdir(tree) else ():
        source, place = os.path.join(tree, name), os.path.join(target, name)
        is_whole = os.path.isfile(os.path.join(source, STATE_FILE))  # which `stage_checkpoint` writes last
        if is_whole and keeps(name) and not os.path.exists(place):
            os.makedirs(target, exist_ok=True)
            try:
                bring(source, place)
            except OSError:
                shutil.rmtree(place, ignore_errors=True)
                raise


def _copy_checkpoint(source: str, target: str) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(STATE_FILE))
    shutil.copyfile(os.path.join(source, STATE_FILE), os.path.join(target, STATE_FILE))  # by which it is whole
