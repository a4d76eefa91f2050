"""What the training steps add up to between two log lines, kept on the device so that the host does not wait."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import TrainingDivergedError


class StepRecord:
    """Means of losses, number and speed of images, and the first step that went wrong.

    Args:
        accelerator: gathers over the processes, and says where they compute.

    Attributes:
        images: how many views were trained on, over all processes.
        skipped_images: how many views another image stood in for, as theirs could not be decoded, over all processes.
        unanswered_views: how many views the teacher's term has passed over, as it gave no answer, over all processes.
        seconds: of training, without evaluation and saving. All four count up to the last `flush`.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.reset()

    @property
    def images_per_second(self) -> float:
        """Of training, over all processes."""
        return self.images / max(self.seconds, 1e-9)

    def reset(self) -> None:
        """Begins another run."""
        self.images, self.seconds, self.skipped_images, self.unanswered_views = 0, 0.0, 0, 0
        self._first_bad_step = torch.tensor(-1, device=self._accelerator.device)
        self._reset_means()

    def _reset_means(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._num_batches = self._num_images = self._num_unanswered = 0
        self._bad_images = torch.tensor(0, device=self._accelerator.device)
        self.restart_timer()

    def restart_timer(self) -> None:
        """What came before is no training."""
        self._start, self._seconds_elsewhere = time.perf_counter(), 0.0

    @torch.no_grad()
    def add(
        self, step: int, loss: torch.Tensor, means: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]
    ) -> None:
        """Takes a micro-batch of step number `step` in."""
        for name, value in means.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        self._num_batches += 1
        self._num_images += len(batch["labels"]) * self._accelerator.num_processes
        if "bad_images" in batch:
            self._bad_images = self._bad_images + batch["bad_images"].sum()
        self.note_if_bad(step, loss.detach())

    def note_unanswered(self, num_views: int) -> None:
        """Counts views that the teacher gave no answer to, over all processes."""
        self._num_unanswered += num_views

    def note_if_bad(self, step: int, value: torch.Tensor) -> None:
        """Notes the step if the value is not finite and no step was noted before."""
        is_first = ~value.isfinite() & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_first, step, self._first_bad_step)

    def first_bad_step(self) -> int | None:
        """The first step that was noted on any process, or None."""
        steps = self._accelerator.gather(self._first_bad_step)
        steps = steps[steps >= 0]
        return int(steps.min()) if len(steps) else None

    def stop_if_diverged(
        self, step: int, parameters: Iterable[torch.Tensor] | None, *, way_back: Callable[[], str]
    ) -> None:
        """Raises if a loss, or a weight, was not finite in any step so far.

        Args:
            step: the present one.
            parameters: to look at, too, as the loss of a step is computed before the update that may spoil them; or
                None.
            way_back: says how to go on.

        Raises:
            TrainingDivergedError: with the first such step, and what to try.
        """
        if parameters is not None:
            self.note_if_bad(step, torch.nn.utils.get_total_norm(list(parameters)))
        bad_step = self.first_bad_step()
        if bad_step is not None:
            raise TrainingDivergedError(
                f"loss or weights were not finite at step {bad_step}: {way_back()}. Try a lower --learning_rate, more "
                "--warmup_steps, --max_grad_norm 1.0, or --bf16 instead of --fp16"
            )

    def flush(self) -> dict[str, float]:
        """What to log of the steps since the last call; empty if there were none."""
        if not self._num_batches:
            return {}
        logs = {
            name: self._accelerator.gather(total / self._num_batches).mean().item()
            for name, total in self._sums.items()
        }
        bad_images = int(self._accelerator.gather(self._bad_images).sum())
        if bad_images:
            logs["skipped_images"] = bad_images
        if self._num_unanswered:
            logs["unanswered_views"] = self._num_unanswered
        seconds = time.perf_counter() - self._start - self._seconds_elsewhere
        logs["images_per_second"] = round(self._num_images / max(seconds, 1e-9), 1)
        self.images += self._num_images
        self.seconds += seconds
        self.skipped_images += bad_images
        self.unanswered_views += self._num_unanswered
        self._reset_means()
        return logs

    def elsewhere(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function whose time is not training time."""
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            self._seconds_elsewhere += time.perf_counter() - start
