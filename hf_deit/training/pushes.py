"""What a run pushes to the Hub, and when: pushes that lose nothing and claim nothing."""

import os
from collections.abc import Callable

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..errors import InputError
from ..hub.card import make_card
from ..hub.client import HUB_ERRORS, ask, why
from ..hub.facts import RunFacts
from ..hub.publisher import Publisher
from ..hub.record import model_files, stage, stage_checkpoint
from ..hub.repository import HubRepository, check_card, check_repository
from .arguments import DistillationTrainingArguments

logger = logging.get_logger(__name__)


class RunPushes:
    """Pushes a run's model as `hub_strategy` says: while it trains in the background, and at its end.

    A push in the background that fails is logged with its cause when the next checkpoint is saved, pushed again with
    it, and listed in `failures`. Only what belongs to the published model is pushed: no pickled arguments, which hold
    folders and tokens, and the optimizer only as part of a checkpoint that `hub_strategy` asks for.

    Args:
        repository: to push to, which was checked; it is created unless it is there.
        args: of the run.

    Raises:
        InputError: the repository cannot be created.
    """

    def __init__(self, repository: HubRepository, args: DistillationTrainingArguments) -> None:
        repository.create()
        self._args = args
        self._publisher = Publisher(repository, args.output_dir, seconds=args.hub_push_timeout)

    @property
    def failures(self) -> list[str]:
        """Of pushes: a line each, with the cause."""
        return list(self._publisher.failures)

    def is_due(self, weights: str) -> bool:
        """Whether a checkpoint that is saved now is pushed.

        Args:
            weights: folder of its weights to publish.
        """
        is_busy = self._publisher.is_busy and not self._args.hub_always_push
        if self._args.hub_strategy == HubStrategy.END or is_busy:
            return False
        is_whole = any(name.endswith(".safetensors") for name in model_files(weights))
        if not is_whole:
            logger.warning("%s holds no whole weights to publish: they are pushed at the end", weights)
        return is_whole

    def push_checkpoint(self, checkpoint: str, weights: str, *, record: Callable[[str], None], when: str) -> None:
        """Begins to push the model of a checkpoint and, if the strategy says so, the checkpoint.

        Args:
            checkpoint: its folder.
            weights: folder of the weights to publish.
            record: writes the image processor, the card and what else is known of the run into a folder.
            when: in the training, for the message of the commit.
        """
        strategy = self._args.hub_strategy

        def fill(tree: str) -> None:
            record(tree)
            stage(weights, tree)
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                last = strategy == HubStrategy.CHECKPOINT
                name = "last-checkpoint" if last else os.path.basename(checkpoint)
                stage_checkpoint(checkpoint, os.path.join(tree, name))

        self._publisher.push(fill, f"Training in progress, {when}")

    def push_result(self, message: str, *, record: Callable[[], None]) -> None:
        """Pushes the model in the output folder, and waits until it is there.

        Args:
            message: of the commit.
            record: writes the card and what else is known of the run into the output folder.

        Raises:
            PublishError: the Hub refuses, fails or is not there. Nothing in the output folder is lost.
        """

        def fill(tree: str) -> None:
            record()
            stage(self._args.output_dir, tree)

        self._publisher.finish(fill, message)

    def wait(self) -> None:
        """Until the push that is under way has ended, or its time is up."""
        self._publisher.wait()


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
