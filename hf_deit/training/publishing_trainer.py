"""A Trainer whose pushes to the Hub lose nothing and claim nothing."""

import os
from contextlib import suppress
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from ..errors import InputError
from ..hub.card import make_card
from ..hub.client import HUB_ERRORS, ask, why
from ..hub.facts import RunFacts
from ..hub.publisher import Publisher
from ..hub.record import model_files, read_facts, stage, stage_checkpoint, write_record
from ..hub.repository import HubRepository, check_card, check_repository

logger = logging.get_logger(__name__)


class PublishingTrainer(Trainer):
    """transformers' Trainer with pushes of its own, under the same arguments.

    A push in the background that fails is logged with its cause when the next checkpoint is saved, pushed again with
    it, and listed in `push_failures`. Only what belongs to the published model is pushed: no pickled arguments, which
    hold folders and tokens, and the optimizer only as part of a checkpoint that `hub_strategy` asks for.

    Args:
        repository: to push to, if it has been checked before; by default as the arguments say.
        *args, **kwargs: those of `transformers.Trainer`.
    """

    publisher: Publisher | None = None
    _checkpoint_weights: str = ""  # folder of the weights to publish, within a checkpoint

    def __init__(self, *args: Any, repository: HubRepository | None = None, **kwargs: Any) -> None:
        self._repository = repository
        super().__init__(*args, **kwargs)

    @property
    def push_failures(self) -> list[str]:
        """Of pushes: a line each, with the cause."""
        return [] if self.publisher is None else list(self.publisher.failures)

    def run_facts(self) -> RunFacts:
        """What the card of the model says, as far as it is known now."""
        raise NotImplementedError

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Checks that the model can be pushed, and creates the repository.

        Raises:
            InputError: it cannot.
        """
        if not self.is_world_process_zero():
            return
        if self._repository is None:
            self._repository = check_repository(
                repository_name(self.args),
                token=self.args.hub_token if token is None else token,
                private=self.args.hub_private_repo if private is None else private,
                revision=self.args.hub_revision,
            )
        self._repository.create()
        self.hub_model_id = self._repository.repo_id
        self.push_in_progress = None
        self.publisher = Publisher(self._repository, self.args.output_dir, seconds=self.args.hub_push_timeout)

    def check_card(self) -> None:
        """Lets the Hub validate the card that will be pushed, before there is anything to push.

        Raises:
            InputError: it finds faults with the card, or is not there.
        """
        if self._repository is None:
            return
        facts = self.run_facts()
        facts.metrics = {"eval_top1": 0.5, "eval_ema_top1": 0.5}
        text = make_card(facts, self._repository.repo_id)
        try:
            ask(lambda: check_card(text), what="validating the model card")
        except InputError:
            raise
        except HUB_ERRORS as error:
            raise InputError(f"the Hub could not validate the model card ({why(error)}): try again") from error

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card and the record of the run into the output folder. It is written from the run alone."""
        if self.is_world_process_zero():
            repo_id = self.hub_model_id or os.path.basename(os.path.abspath(self.args.output_dir))
            facts, logs = self.run_facts(), self.state.log_history
            with suppress(InputError):  # a record that cannot be read is written anew
                facts = facts.taken_up(read_facts(self.args.output_dir))
            write_record(self.args.output_dir, facts, logs, repo_id, self.args.hub_revision)

    def push_to_hub(self, commit_message: str | None = "End of training", *args: Any, **kwargs: Any) -> None:
        """Saves and pushes the model, and waits until it is there.

        Args:
            commit_message: of the commit.
            *args, **kwargs: `token` and `private` as in transformers; else ignored.

        Raises:
            InputError: it cannot be pushed.
            PublishError: the Hub refuses, fails or is not there. Nothing in the output folder is lost.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"), private=kwargs.get("private"))
        self.save_model(_internal_call=True)
        if self.publisher is None:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)

        def fill(tree: str) -> None:
            self.create_model_card()
            stage(self.args.output_dir, tree)

        self.publisher.finish(fill, commit_message or "End of training")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = self.args.hub_strategy
        if self.publisher is None or strategy == HubStrategy.END:
            return
        if self.publisher.is_busy and not self.args.hub_always_push:
            return
        folder = os.path.join(checkpoint_folder, self._checkpoint_weights)
        if not any(name.endswith(".safetensors") for name in model_files(folder)):
            logger.warning("%s holds no whole weights to publish: they are pushed at the end", checkpoint_folder)
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_step = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch)}"

        def fill(tree: str) -> None:
            self.processing_class.save_pretrained(tree)
            write_record(tree, self.run_facts(), self.state.log_history, self.hub_model_id, self.args.hub_revision)
            stage(folder, tree)
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                last = strategy == HubStrategy.CHECKPOINT
                name = "last-checkpoint" if last else os.path.basename(checkpoint_folder)
                stage_checkpoint(checkpoint_folder, os.path.join(tree, name))

        self.publisher.push(fill, f"Training in progress, {when}")

    def _finish_current_push(self) -> None:
        if self.publisher is not None:
            self.publisher.wait()


def repository_name(args: Any) -> str:
    """Of the repository that training arguments ask for: hub_model_id, or the name of the output folder."""
    return args.hub_model_id or os.path.basename(os.path.abspath(args.output_dir))
