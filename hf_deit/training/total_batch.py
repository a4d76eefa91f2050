"""How a step of a stated number of views is shared out to the devices of a run."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import InputError, counted
from .arguments import DistillationTrainingArguments


class Share(NamedTuple):
    """What each device takes of a step.

    Attributes:
        batch_size: views at once, `per_device_train_batch_size`.
        accumulation: how often so many, `gradient_accumulation_steps`.
    """

    batch_size: int
    accumulation: int

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.accumulation}"


@dataclass(frozen=True)
class TotalBatch:
    """A step's views, and who takes them. All numbers are positive.

    Attributes:
        total: views of an optimizer step.
        num_devices: that share them.
        at_most: views that a device may take at once, where `batch_size` does not say how many.
        group_size: of which views at once must be a multiple.
        least: views that a device must take at once.
        batch_size, accumulation: of each device's share, where they are given.
    """

    total: int
    num_devices: int
    at_most: int
    group_size: int = 1
    least: int = 1
    batch_size: int | None = None
    accumulation: int | None = None

    def share(self) -> Share:
        """The share of each device, with as few accumulation steps as there may be.

        Raises:
            InputError: there is none. The message names those that come near, and another total.
        """
        share = self._share()
        if share is None:
            raise InputError(self._refusal())
        return share

    def _share(self) -> Share | None:
        for share in self._shares():
            fits = share.batch_size == self.batch_size if self.batch_size else share.batch_size <= self.at_most
            if fits and self.accumulation in (None, share.accumulation):
                return share
        return None

    def _shares(self) -> list[Share]:
        """All whole ones, the largest batches first."""
        views, rest = divmod(self.total, self.num_devices)
        sizes = [] if rest else reversed(_divisors(views))
        return [Share(size, views // size) for size in sizes if self._holds_groups(size)]

    def _holds_groups(self, size: int) -> bool:
        return size >= self.least and size % self.group_size == 0

    def _refusal(self) -> str:
        given = {"per_device_train_batch_size": self.batch_size, "gradient_accumulation_steps": self.accumulation}
        terms = [f"{name} {number}" for name, number in given.items() if number]
        shares = self._shares()
        if shares and not self.batch_size:
            terms.append(f"at most {counted(self.at_most, 'view')} at once (per_device_train_batch_size)")
        if self.group_size > 1:
            terms.append(f"whole groups of {self.group_size} (mixup_group_size)")
        wanted = self.batch_size or self.at_most
        if self.accumulation and not self.batch_size:
            wanted = self.total / self.num_devices / self.accumulation
        near = sorted(shares, key=lambda share: abs(math.log(share.batch_size / wanted)))[:3]
        ways = []
        if near:
            ways = [f"per_device_train_batch_size x gradient_accumulation_steps may be {' or '.join(map(str, near))}"]
        elif devices := self._devices():
            ways = [f"{' or '.join(map(str, devices))} devices can share it"]
        if group_size := self._other_group_size():
            ways.append(f"--mixup_group_size {group_size} would do")
        if other := self._other_total():
            ways.append(f"--total_batch_size {other} would do")
        who = f"{counted(self.num_devices, 'device')}{' with ' if terms else ''}{' and '.join(terms)}"
        return f"a step of {self.total} views (total_batch_size) cannot be shared out to {who}: {', or '.join(ways)}"

    def _devices(self) -> list[int]:
        """The nearest numbers of devices, below and above, for which there are shares."""
        batches, rest = divmod(self.total, max(self.group_size, self.least))
        numbers = [] if rest else _divisors(batches)
        below = [number for number in numbers if number < self.num_devices]
        return [*below[-1:], *numbers[len(below) : len(below) + 1]]

    def _other_group_size(self) -> int | None:
        """The largest of the smaller ones that allow what was asked for; None if there is none."""
        smaller = reversed(_divisors(self.group_size)[1:-1])
        return next((size for size in smaller if replace(self, group_size=size)._share() is not None), None)

    def _other_total(self) -> int | None:
        """The nearest total that can be shared out in the way that was asked for; None if none can."""
        unit, size, times = max(self.group_size, self.least), self.batch_size, self.accumulation
        if (size and not self._holds_groups(size)) or unit > (size or self.at_most):
            return None
        per_device = self.total / self.num_devices
        if not size:
            most = self.at_most // unit if times else 1
            size = unit * max(1, min(round(per_device / (times or 1) / unit), most))
        return self.num_devices * size * (times or max(1, round(per_device / size)))


def _divisors(number: int) -> list[int]:
    """In rising order."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def check_total_batch(args: DistillationTrainingArguments) -> None:
    """Refuses arguments whose batch, devices and accumulation steps do not make the total batch that they state.

    Raises:
        InputError: names what would make it.
    """
    if args.total_batch_size is not None:
        TotalBatch(
            total=args.total_batch_size,
            num_devices=args.world_size,
            at_most=args.train_batch_size,
            group_size=args.mixup_group_size if args.mixes else 1,
            batch_size=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps,
        ).share()
