"""The exponential moving average of a student's weights: evaluated, saved and resumed beside them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from ..hub.files import share_weights
from .checkpoints import restore_weights

AVERAGE_FOLDER = "ema"


class WeightAverage:
    """timm's `ModelEmaV3`, with a warm start, that can change places with the weights it averages.

    Args:
        model: the student, where it will be trained, before anything wraps it.
        decay: in (0, 1); DeiT's code takes 0.99996. It is reached gradually: after t steps it is at most
            1 - (1 + t) ** (-2 / 3), so that the first weights, which are random, are soon forgotten.
    """

    def __init__(self, model: PreTrainedModel, decay: float) -> None:
        from timm.utils import ModelEmaV3  # all of timm's models come with it

        self._model = model
        self._average = ModelEmaV3(model, decay=decay, use_warmup=True, foreach=True)
        self._is_in_place = False

    @property
    def module(self) -> PreTrainedModel:
        """A model with the averaged weights."""
        return self._average.module

    def restart(self) -> None:
        """Begins with the model's present weights."""
        self._average.set(self._model)

    def update(self, step: int) -> None:
        """Takes the weights in, after optimizer step number `step`, counted from 1."""
        self._average.update(self._model, step=step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lets the model have the averaged weights for a while, and gives it its own back, bit for bit."""
        if self._is_in_place:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in zip(self._model.state_dict().values(), self.module.state_dict().values(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        self._is_in_place = not self._is_in_place

    def save(self, checkpoint: str) -> None:
        """Writes the averaged model into the checkpoint's folder "ema", from which it loads like any other."""
        folder = os.path.join(checkpoint, AVERAGE_FOLDER)
        self.module.save_pretrained(folder)
        share_weights(folder)

    def restore(self, checkpoint: str) -> None:
        """Reads what `save` wrote.

        Raises:
            InputError: the checkpoint has no average, or one of another model.
        """
        restore_weights(self.module, os.path.join(checkpoint, AVERAGE_FOLDER))
