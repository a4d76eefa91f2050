"""Timing: arms in turn in one process, and their ratios within each round."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass
class Ratio:
    """Of two arms' times: the median over the rounds, and its range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"

    @property
    def brief(self) -> str:
        """In two digits after the point."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    @classmethod
    def of(cls, seconds: Sequence[float], others: Sequence[float]) -> "Ratio":
        ratios = [one / other for one, other in zip(seconds, others, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    @classmethod
    def between(cls, seconds: Mapping[str, Sequence[float]], arm: str, other: str) -> "Ratio | None":
        """Of one arm's time by another's; None where one was not measured."""
        return cls.of(seconds[arm], seconds[other]) if arm in seconds and other in seconds else None


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[str, bool]]:
    """Whose turn it is, and whether it counts: not in a first round. Arms change places from round to round."""
    for number in range(rounds + 1):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            yield name, number > 0


def time_in_turn(arms: dict[str, Callable[[], None]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round that counts; see `turns`."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for name, counts in turns(list(arms), rounds):
        wait_for_device()
        start = time.perf_counter()
        arms[name]()
        wait_for_device()
        if counts:
            seconds[name].append(time.perf_counter() - start)
    return seconds


def wait_for_device() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
