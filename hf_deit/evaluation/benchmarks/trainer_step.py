"""The training step of a Trainer by itself, without its loop."""

import torch

from ...training.trainer import DistillationTrainer


class TrainerStep:
    """Takes a Trainer's steps, one a call, from a batch on the device to changed weights.

    Args:
        trainer: whose model and optimizer are prepared, as its own loop prepares them.
    """

    def __init__(self, trainer: DistillationTrainer) -> None:
        self._trainer = trainer
        trainer.create_optimizer()
        self._model, self._optimizer = trainer.accelerator.prepare(trainer.model.train(), trainer.optimizer)

    def __call__(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss, a scalar, of a batch from `DistillationTrainer.prepare_batch`, before the weights change."""
        with self._trainer.compute_loss_context_manager():
            loss = self._trainer.compute_loss(self._model, inputs)
        self._trainer.accelerator.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()
