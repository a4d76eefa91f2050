"""Pushes in the background: one at a time, told when it fails, and caught up with the next."""

import os
import re
import shutil
from collections.abc import Callable

from transformers.utils import logging

from ..errors import PublishError, command
from .card import merge_cards, update_card
from .client import Attempt, keep_trying, why
from .files import link, read_text, write_whole
from .record import read_facts
from .repository import HubRepository
from .run_folder import CARD_FILE

logger = logging.get_logger(__name__)

_TREE = "_publishing"


def publish_tree(repository: HubRepository, tree: str | os.PathLike[str], message: str) -> None:
    """Pushes a folder that `stage` has filled. Its card is written into the one that is on the Hub.

    Raises:
        InputError: the Hub does not accept the card.
        HUB_ERRORS: the Hub refuses, fails or is not there.
    """
    card, facts, head = os.path.join(tree, CARD_FILE), read_facts(tree), repository.head()
    if facts is not None:
        existing = merge_cards(repository.read_card(head), read_text(card))
        write_whole(update_card(existing, facts, repository.repo_id, repository.revision), card)
    repository.upload(tree, message, parent=head)


class Publisher:
    """Pushes in the background, one push at a time. What fails is logged, and its files are pushed with the next push.

    Args:
        repository: one that exists.
        output_dir: of the run. What is pushed is collected in a folder in it.
        seconds: after which a push is given up.

    Attributes:
        failures: a line for each push that has failed.
    """

    def __init__(self, repository: HubRepository, output_dir: str | os.PathLike[str], *, seconds: float) -> None:
        output_dir = os.fspath(output_dir)
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
        """Waits until the push that is under way has ended, or its time is up. Logs it if it has failed."""
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
        """Goes on in another folder, with links to the checkpoints of this one, which the thread may still read."""
        left, self._tree = self._tree, f"{self._tree}_"
        self._abandoned.append((self._attempt, left))
        for entry in os.scandir(left):
            if entry.is_dir():
                shutil.copytree(entry.path, os.path.join(self._tree, entry.name), copy_function=link)
        for attempt, tree in self._abandoned:
            if not attempt.is_alive():
                shutil.rmtree(tree, ignore_errors=True)

    def _note(self, reason: str) -> None:
        self.failures.append(f"{self._message}: {reason}")
        logger.warning("could not push to %s: %s (%s)", self.repository.repo_id, self._message, reason)

    def push(self, fill: Callable[[str], None], message: str) -> None:
        """Begins a push, when the one before has ended. If that has failed, its files are pushed with this one.

        Args:
            fill: a function that writes what is to be pushed into the folder that it is given.
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
            PublishError: the push has failed. Nothing in the output folder is lost.
        """
        self.wait()
        count = len(self.failures)
        self.push(fill, message)
        self.wait()
        if len(self.failures) > count:
            reason = self.failures[-1].removeprefix(f"{message}: ")
            options = ["--hub_model_id", self.repository.repo_id]
            options += ["--hub_private_repo"] if self.repository.private else []
            options += ["--hub_revision", self.repository.revision] if self.repository.revision else []
            later = command("publish", self._output_dir, *options)
            raise PublishError(
                f"the model lies whole in {self._output_dir!r}, but could not be pushed to {self.repository.url} "
                f"({reason}). Publish it later with:\n\n    {later}\n"
            )
