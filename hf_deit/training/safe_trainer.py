"""A Trainer whose checkpoints are finite, whole and restored in full."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import nn

from ..data.view_dataset import KeyedViews
from ..errors import CheckpointError, PublishError, TrainingDivergedError, first_line
from ..hub.run_folder import last_whole_checkpoint
from .averaging import WeightAverage
from .checkpoints import check_resumable, find_checkpoint, remove_torn_checkpoints, restore_weights, unmark_checkpoint
from .publishing_trainer import PublishingTrainer
from .step_record import StepRecord


class SafeTrainer(PublishingTrainer):
    """Stops when loss or weights are no longer finite, and resumes from whole checkpoints alone.

    Attributes:
        weight_average: saved, restored and published beside the weights, or None.
    """

    weight_average: WeightAverage | None
    _record: StepRecord
    _has_ended = False
    _best_since: int | None = None  # length of the log when the best weights took the place of the last ones

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        raise NotImplementedError

    # Divergence

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._stop_if_diverged(check_weights=self.control.should_save)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _stop_if_diverged(self, check_weights: bool) -> None:
        if check_weights and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # The loss of a step is computed before the update that may spoil the weights.
            norm = torch.nn.utils.get_total_norm(list(self.model.parameters()))
            self._record.note_if_bad(self.state.global_step, norm)
        step = self._record.first_bad_step()
        if step is None:
            return
        raise TrainingDivergedError(
            f"loss or weights were not finite at step {step}: {self._way_back()}. Try a lower --learning_rate, more "
            "--warmup_steps, --max_grad_norm 1.0, or --bf16 instead of --fp16"
        )

    def _way_back(self) -> str:
        checkpoint = last_whole_checkpoint(self.args.output_dir)
        if checkpoint is None:
            return "no checkpoint was written before"
        return f"the last good checkpoint is {checkpoint}; go on from it with --resume_from_checkpoint {checkpoint}"

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trains; arguments and return value of `transformers.Trainer.train`.

        Raises:
            InputError: there is no checkpoint to resume from.
            TrainingDivergedError: the loss is no longer finite; the checkpoints are those from before.
            CheckpointError: a checkpoint could not be written; those from before are whole.
        """
        resume_from_checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if resume_from_checkpoint is not None and isinstance(self.train_dataset, KeyedViews):
            check_resumable(resume_from_checkpoint, self.steps_per_epoch)
        self.accelerator.wait_for_everyone()  # all have looked
        if resume_from_checkpoint is not None and self.args.should_save:
            remove_torn_checkpoints(self.args.output_dir)
        self._record.reset()
        if self.weight_average is not None:
            self.weight_average.restart()
        self._has_ended, self._best_since = False, None
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self._stop_if_diverged(check_weights=True)
        self._has_ended = True
        return output

    def _published_metrics(self) -> dict[str, float]:
        """Of the last evaluation of the weights as they are, empty if there was none."""
        evaluations = [(number, line) for number, line in enumerate(self.state.log_history) if "eval_loss" in line]
        step = self.state.global_step
        if self._best_since is not None:
            later = [line for number, line in evaluations if number >= self._best_since]
            best = [line for _, line in evaluations if line["step"] == self.state.best_global_step]
            return (later or best or [{}])[-1]
        return next((line for _, line in reversed(evaluations) if line["step"] == step), {})

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the weights, or, if `publish_weights` is "ema", their moving average."""
        if _internal_call and output_dir is not None:  # a checkpoint has both
            super().save_model(output_dir, _internal_call)
            if self.weight_average is not None and self.args.should_save:
                self.weight_average.save(output_dir)
            return
        publishes_average = self.weight_average is not None and self.args.publish_weights == "ema"
        with self._writing("model"), self.weight_average.in_place() if publishes_average else nullcontext():
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._writing("checkpoint"):
            if self.args.should_save:
                unmark_checkpoint(self.args.output_dir, self.state.global_step)
            self._record.elsewhere(super()._save_checkpoint, *args, **kwargs)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            others = HfHubHTTPError | PublishError | torch.OutOfMemoryError | torch.distributed.DistError
            if isinstance(error, others):
                raise  # no matter of the disk; torch's writer raises a plain RuntimeError
            raise CheckpointError(
                f"could not write the {what} of step {self.state.global_step} ({first_line(error)}): "
                f"{self._way_back()}. Mend what is wrong with the disk first"
            ) from error

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Rank 0 marks the checkpoint as whole next: by then every process must have written its part.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            restore_weights(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)
        if self.weight_average is not None:
            self.weight_average.restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._best_since = len(self.state.log_history)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            restore_weights(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)
        if self.weight_average is not None:
            self.weight_average.restore(self.state.best_model_checkpoint)
