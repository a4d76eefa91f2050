"""Ending a run whose evaluations no longer get better: by the rule of transformers' EarlyStoppingCallback.

That counts in the callback, and counts anew when a run is resumed. Here the count follows from the log, which a
checkpoint has: a run that goes on stops where it would have stopped, and one that has stopped is at its end.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from .arguments import DistillationTrainingArguments


def evaluations_without_gain(args: DistillationTrainingArguments, log: Iterable[Mapping[str, Any]]) -> int:
    """How many evaluations, the last ones, were no better than the best one before them by `metric_for_best_model`.

    Args:
        args: of the run.
        log: its lines, as `TrainerState.log_history` has them. An evaluation before the first step does not count.
    """
    metric = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    best, count = None, 0
    for value in (line[metric] for line in log if metric in line and line["step"]):
        is_better = best is None or (value > best if args.greater_is_better else value < best)
        best, count = (value, 0) if is_better else (best, count + 1)
    return count


def has_stopped_early(
    args: DistillationTrainingArguments, log: Iterable[Mapping[str, Any]], *, step: int, num_steps: int
) -> bool:
    """Whether a run is at its end before its last step, as `early_stopping_patience` evaluations were no better.

    Args:
        args, log: see `evaluations_without_gain`.
        step, num_steps: optimizer steps that are done, and those that the run has at most.
    """
    if args.early_stopping_patience is None or step >= num_steps:
        return False
    return evaluations_without_gain(args, log) >= args.early_stopping_patience


def early_end(args: DistillationTrainingArguments, state: TrainerState) -> str | None:
    """In a line, at which step a run has stopped early, and what its best was; None if it has not.

    Args:
        state: as the training has left it, before other evaluations.
    """
    if not has_stopped_early(args, state.log_history, step=state.global_step, num_steps=state.max_steps):
        return None
    best = "" if state.best_metric is None else f" than {state.best_metric:.4f}, after step {state.best_global_step:,}"
    count = args.early_stopping_patience
    evaluations = "one evaluation was" if count == 1 else f"{count} evaluations in a row were"
    metric = args.metric_for_best_model.removeprefix("eval_")
    return (
        f"stopped early, after step {state.global_step:,} of at most {state.max_steps:,}: {evaluations} no better by "
        f"{metric}{best} (early_stopping_patience {count})"
    )


class EarlyStopping(TrainerCallback):
    """Ends the training at the evaluation that `has_stopped_early` goes by."""

    def on_evaluate(
        self, args: DistillationTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if has_stopped_early(args, state.log_history, step=state.global_step, num_steps=state.max_steps):
            control.should_training_stop = True
