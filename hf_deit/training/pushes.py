"""What a run pushes to the Hub, and when: pushes that lose nothing and claim nothing."""

import os
import shutil
from collections.abc import Callable

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..errors import InputError
from ..hub.card import make_card
from ..hub.client import HUB_ERRORS, ask, why
from ..hub.facts import RunFacts
from ..hub.publisher import History, Publisher
from ..hub.record import LAST_CHECKPOINT, model_files, stage, stage_checkpoint
from ..hub.repository import HubRepository, check_card, check_repository
from ..hub.run_folder import last_whole_checkpoint, list_checkpoints
from .arguments import DistillationTrainingArguments

logger = logging.get_logger(__name__)


class RunPushes:
    """Pushes a run's model as `hub_strategy` says: while it trains in the background, and at its end.

    What is due while a push is under way waits for the next one, or for the end of the training: of models, and of
    checkpoints under the strategy "checkpoint", the newest; under "all_checkpoints" every checkpoint. With
    `hub_always_push` the training waits for the push instead. A push that fails is logged with its cause when the next
    checkpoint is saved, pushed again with it, and listed in `failures`. Only what belongs to the published model is
    pushed: no pickled arguments, which hold folders and tokens, and the optimizer only as part of a checkpoint that
    `hub_strategy` asks for.

    Args:
        repository: to push to, which was checked; it is created unless it is there.
        args: of the run.
        history: gives the run's log; see `Publisher`.

    Raises:
        InputError: the repository cannot be created, or another run is at work in the output folder.
    """

    def __init__(
        self, repository: HubRepository, args: DistillationTrainingArguments, *, history: Callable[[], History]
    ) -> None:
        repository.create()
        self._args = args
        self._publisher = Publisher(
            repository,
            args.output_dir,
            seconds=args.hub_push_timeout,
            history=history,
            keeps=lambda name: args.hub_strategy == HubStrategy.ALL_CHECKPOINTS and name != LAST_CHECKPOINT,
        )
        self._not_collected: set[str] = set()  # names of checkpoints, say for want of space

    @property
    def failures(self) -> list[str]:
        """Of pushes: a line each, with the cause."""
        return self._publisher.failures

    @property
    def is_due(self) -> bool:
        """Whether checkpoints are pushed, or models while the run trains."""
        return self._args.hub_strategy != HubStrategy.END

    def push_checkpoint(self, checkpoint: str, weights: str, *, record: Callable[[str], None], when: str) -> None:
        """Begins to push the model of a checkpoint and, if the strategy says so, the checkpoint; or lets it wait.

        Args:
            checkpoint: its folder.
            weights: folder of the weights to publish.
            record: writes the image processor, the card and what else is known of the run into a folder.
            when: in the training, for the message of the commit.
        """
        message = f"Training in progress, {when}"
        if not any(name.endswith(".safetensors") for name in model_files(weights)):
            logger.warning("%s holds no whole weights to publish: they are pushed at the end", weights)
            if self._args.hub_strategy != HubStrategy.EVERY_SAVE:
                self._publisher.keep(lambda tree: self._stage(checkpoint, tree), message)
            return

        def fill(tree: str) -> None:
            self._stage(checkpoint, tree)
            record(tree)
            stage(weights, tree)

        self._publisher.push(fill, message, is_urgent=self._args.hub_always_push)

    def resume(self, checkpoint: str) -> None:
        """Takes care of a checkpoint that a run goes on from: it may have been stopped before that could be pushed."""
        is_own = os.path.abspath(checkpoint) in map(os.path.abspath, list_checkpoints(self._args.output_dir))
        if is_own and self._args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
            self._publisher.keep(lambda tree: self._stage(checkpoint, tree), os.path.basename(checkpoint))

    def _stage(self, checkpoint: str | None, tree: str) -> None:
        """Collects what the strategy says of a checkpoint, and of those before that are not on the Hub."""
        wanted = {}
        if self._args.hub_strategy == HubStrategy.CHECKPOINT and checkpoint is not None:
            wanted[LAST_CHECKPOINT] = checkpoint
        elif self._args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
            here = {os.path.basename(path): path for path in list_checkpoints(self._args.output_dir)}
            wanted = {name: here[name] for name in (self._publisher.missing | self._not_collected) & here.keys()}
            wanted |= {} if checkpoint is None else {os.path.basename(checkpoint): checkpoint}
        for name, source in wanted.items():
            target = os.path.join(tree, name)
            try:
                stage_checkpoint(source, target)
                self._not_collected.discard(name)
            except BaseException as error:  # a torn one must not be pushed
                shutil.rmtree(target, ignore_errors=True)
                self._not_collected.add(name)
                if source == checkpoint or not isinstance(error, Exception):
                    raise
                logger.warning("%s cannot be collected to be pushed (%s)", source, why(error))

    def push_result(self, message: str, *, record: Callable[[], None]) -> None:
        """Pushes the model in the output folder with all that waits, and waits until it is there.

        Args:
            message: of the commit.
            record: writes the card and what else is known of the run into the output folder.

        Raises:
            PublishError: the Hub refuses, fails or is not there. Nothing in the output folder is lost.
        """
        is_last = self._args.hub_strategy == HubStrategy.CHECKPOINT

        def fill(tree: str) -> None:
            record()
            self._stage(last_whole_checkpoint(self._args.output_dir) if is_last else None, tree)
            stage(self._args.output_dir, tree)

        self._publisher.finish(fill, message)
        names = map(os.path.basename, list_checkpoints(self._args.output_dir))
        if self._publisher.missing.intersection(names):  # another run's push came in between
            self._publisher.finish(fill, message)

    def wait(self) -> None:
        """Until the push that is under way has ended, or its time is up."""
        self._publisher.wait()

    def catch_up(self) -> None:
        """Pushes what waits, and waits for it."""
        self._publisher.catch_up()


def repository_name(args: DistillationTrainingArguments) -> str:
    """Of the repository that training arguments ask for: hub_model_id, or the name of the output folder."""
    return args.hub_model_id or os.path.basename(os.path.abspath(args.output_dir))


def repository_of(
    args: DistillationTrainingArguments, *, token: str | None = None, private: bool | None = None
) -> HubRepository:
    """The repository that training arguments ask for, checked; see `hf_deit.hub.repository.check_repository`.

    Args:
        token, private: instead of those of the arguments.
    """
    return check_repository(
        repository_name(args),
        token=args.hub_token if token is None else token,
        private=args.hub_private_repo if private is None else private,
        revision=args.hub_revision,
    )


def check_future_card(facts: RunFacts, repository: HubRepository) -> None:
    """Lets the Hub validate the card that will be pushed, before there is anything to push.

    Args:
        facts: of the run, with metrics as it will have them.

    Raises:
        InputError: it finds faults with the card, or is not there.
    """
    text = make_card(facts, repository.repo_id)
    try:
        ask(lambda: check_card(text), what="validating the model card")
    except InputError:
        raise
    except HUB_ERRORS as error:
        raise InputError(f"the Hub could not validate the model card ({why(error)}): try again") from error
