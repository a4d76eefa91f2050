"""The exponential moving average of a student's weights: evaluated, saved and resumed beside them."""

import copy
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from ..hub.files import share_weights
from .arguments import DistillationTrainingArguments
from .checkpoints import restore_weights

AVERAGE_FOLDER = "ema"
_NUMBERS_AT_ONCE = 2**20
# How much of an average may be the weights that the training began with. In a run of 2,500 steps on the digits, 1 % of
# random ones cost 0.7 points of accuracy, 5 % 2 and 14 % 16; in one of 500 from pretrained ones, 5 % 0.7 and 14 % 2.
_MOST_OF_RANDOM, _MOST_OF_PRETRAINED = 0.01, 0.1


def average_doubts(args: DistillationTrainingArguments, *, num_steps: int, is_pretrained: bool) -> list[str]:
    """What of a moving average cannot be meant: each in a line, with the options that mend it.

    Args:
        args: of the run.
        num_steps: optimizer steps of the whole run.
        is_pretrained: whether the student begins with weights that it has learnt before.
    """
    decay = args.ema_decay
    reached = decay_of(num_steps, decay, warmup=True)
    if not decay or (args.ema_warmup and reached == decay):
        return []
    if args.ema_warmup:
        return [
            f"the decay of the moving average grows to {reached:.3g} in the {num_steps:,} steps of the run "
            f"(ema_warmup), and does not reach ema_decay {decay:.8g}"
        ]
    left = decay**num_steps
    if left <= (_MOST_OF_PRETRAINED if is_pretrained else _MOST_OF_RANDOM):
        return []
    fitting = 1 - float(f"{1 - math.exp(-10 / num_steps):.2g}")  # a tenth of the run
    served = ", and it is what will be saved (publish_weights ema)" if args.publish_weights == "ema" else ""
    return [
        f"the moving average looks back over {1 / (1 - decay):,.0f} steps (ema_decay {decay:.8g}) and the run has "
        f"{num_steps:,}: at its end the average is still made up to {100 * left:.0f} % of the weights that it begins "
        f"with{'' if is_pretrained else ', which are random'}{served}. Give --ema_warmup true, which lets the decay "
        f"grow to {reached:.3g} here, or --ema_decay {fitting:.8g}"
    ]


def decay_of(step: int, decay: float, *, warmup: bool) -> float:
    """What the average is multiplied with after an optimizer step.

    Args:
        step: its number, counted from 1.
        decay: that it stays at, in (0, 1).
        warmup: whether it grows, as min(decay, 1 - step ** (-2 / 3)).
    """
    return min(decay, 1 - step ** (-2 / 3)) if warmup else decay


def check_averaged(model: PreTrainedModel) -> None:
    """Refuses weights whose moving average would stand still.

    Raises:
        InputError: they are of 16 bits, to which a thousandth of a weight is nothing.
    """
    dtypes = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    if dtypes & {torch.bfloat16, torch.float16}:
        raise InputError(
            f"ema_decay needs weights in float32, got {', '.join(sorted(map(str, dtypes)))}, in which an average does "
            "not move: load the student with dtype=torch.float32 (--bf16 trains it in bfloat16), or pass --ema_decay 0"
        )


class WeightAverage:
    """The moving average of a model's weights, that can change places with them.

    After each optimizer step it is decay · average + (1 - decay) · weights, from the weights on that the training
    begins with: that of the authors' code (timm 0.3.2's `ModelEma`), with its bits. Running statistics are averaged
    likewise. Two things are not: counters of batches, which that code truncates, and weights that are frozen, which
    its rounding would move (in float32, 0.99996 and 1 - 0.99996 make 1.000000005). They are the model's own.

    Args:
        model: the student, where it will be trained, before anything wraps it.
        decay: in (0, 1); the authors' is 0.99996.
        warmup: let the decay grow (`decay_of`), so that the first weights, which may be random, are forgotten at once:
            that of timm's `ModelEmaV3`, with its bits.
    """

    def __init__(self, model: PreTrainedModel, decay: float, *, warmup: bool = False) -> None:
        self._model = model
        self._decay, self._warmup = decay, warmup
        self._average = copy.deepcopy(model).eval()
        self._is_in_place = False

    @property
    def module(self) -> PreTrainedModel:
        """A model with the averaged weights."""
        return self._average

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each tensor of the model, also one that has several names, once, and its average."""
        tensors = (module.state_dict(keep_vars=True).values() for module in (self._model, self.module))
        return iter({id(average): (weight, average) for weight, average in zip(*tensors, strict=True)}.values())

    @torch.no_grad()
    def restart(self) -> None:
        """Begins with the model's present weights."""
        for weight, average in self._pairs():
            average.copy_(weight)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights in, after optimizer step number `step`, counted from 1."""
        decay, averaged = decay_of(step, self._decay, warmup=self._warmup), []
        for weight, average in self._pairs():
            if average.is_floating_point() and not _is_frozen(weight):
                averaged.append((weight, average))
            else:
                average.copy_(weight)
        for part in _parts(averaged):
            weights, averages = zip(*part, strict=True)
            if self._warmup:  # as timm does it: runs of earlier versions go on with the same bits
                torch._foreach_lerp_(averages, weights, 1 - decay)
            else:  # an addition with alpha would round once less
                torch._foreach_mul_(averages, decay)
                torch._foreach_add_(averages, torch._foreach_mul(weights, 1 - decay))

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
        for weight, average in self._pairs():
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


def _is_frozen(weight: torch.Tensor) -> bool:
    return isinstance(weight, torch.nn.Parameter) and not weight.requires_grad


def _parts(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The pairs in lists of few numbers, so that their products need no memory for another model."""
    part, numbers = [], 0
    for weight, average in pairs:
        if part and numbers + weight.numel() > _NUMBERS_AT_ONCE:
            yield part
            part, numbers = [], 0
        part.append((weight, average))
        numbers += weight.numel()
    if part:
        yield part
