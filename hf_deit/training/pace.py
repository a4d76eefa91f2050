"""How often a run logs, evaluates and saves, where that follows from its length."""

import copy
import math

from transformers import IntervalStrategy, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from .arguments import DEFAULT_LOGGING_STEPS, DistillationTrainingArguments

_LOGS, _EVALUATIONS = 10, 20  # of a run, at least
_STEPS_BETWEEN_EVALUATIONS = 50


def num_steps(args: DistillationTrainingArguments, steps_per_epoch: int) -> int:
    """Optimizer steps of a run: as many as `max_steps` says, or else as its epochs make.

    Args:
        steps_per_epoch: optimizer steps of an epoch.
    """
    return args.max_steps if args.max_steps > 0 else math.ceil(num_epochs(args, steps_per_epoch) * steps_per_epoch)


def num_epochs(args: DistillationTrainingArguments, steps_per_epoch: int) -> float:
    """Epochs of a run without `max_steps`: those that it states, or as many whole ones as `min_train_steps` needs."""
    if math.ceil(args.num_train_epochs * steps_per_epoch) >= args.min_train_steps:
        return args.num_train_epochs
    return math.ceil(args.min_train_steps / steps_per_epoch)


def with_all_epochs(args: DistillationTrainingArguments, steps_per_epoch: int) -> DistillationTrainingArguments:
    """Arguments with the epochs that `num_epochs` gives: for the loop, as a recipe keeps those that were stated."""
    if args.max_steps > 0 or (epochs := num_epochs(args, steps_per_epoch)) == args.num_train_epochs:
        return args
    raised = copy.copy(args)
    raised.num_train_epochs = epochs
    return raised


def with_pace(args: DistillationTrainingArguments, steps_per_epoch: int | None) -> DistillationTrainingArguments:
    """Arguments with numbers where they leave open how often is logged, evaluated and saved; what is given stays.

    Args:
        args: with `logging_steps` or `eval_epochs` 0, or as they are.
        steps_per_epoch: optimizer steps, or None if that is not known.
    """
    if args.logging_steps and args.eval_epochs:
        return args
    paced, steps = copy.copy(args), args.max_steps if args.max_steps > 0 else None
    if steps_per_epoch:
        steps = num_steps(args, steps_per_epoch)
    if not args.logging_steps:
        paced.logging_steps = _steps_between(DEFAULT_LOGGING_STEPS, _LOGS, steps)
        paced.logging_first_step = True
    if not args.eval_epochs:
        wanted = _steps_between(_STEPS_BETWEEN_EVALUATIONS, _EVALUATIONS, steps)
        paced.eval_epochs = max(wanted // steps_per_epoch, 1) if steps_per_epoch else 1
    return paced


def _steps_between(most: int, times: int, steps: int | None) -> int:
    """So many steps at most that a run has `times` of them."""
    return most if steps is None else max(1, min(most, steps // times))


class EvaluationPaceCallback(TrainerCallback):
    """Lets evaluation and checkpoints of every epoch wait for `eval_epochs` of them, and for the end.

    Where nobody said how often to log, which logs the first step, what is evaluated is logged at the same step: a line
    shows both.
    """

    def on_train_begin(
        self, args: DistillationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        state.compute_steps(args, state.max_steps)  # a resumed run's state has those that it was started with

    def on_step_end(
        self, args: DistillationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        control.should_log |= control.should_evaluate and args.logging_first_step

    def on_epoch_end(
        self, args: DistillationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if round(state.epoch) % args.eval_epochs != 0 and state.global_step < state.max_steps:
            if args.eval_strategy == IntervalStrategy.EPOCH:
                control.should_evaluate = False
            if args.save_strategy == SaveStrategy.EPOCH:
                control.should_save = False
        control.should_log |= control.should_evaluate and args.logging_first_step
