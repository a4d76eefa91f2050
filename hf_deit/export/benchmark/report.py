"""What a benchmark of inference has found, as a table and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from ...errors import brief, counted, rate
from ...evaluation.benchmarks.figures import Bar, Chart, markdown_table, short_time
from ...evaluation.benchmarks.timing import Ratio
from ...evaluation.sections import Estimate

_MAX_LOSS = 0.005  # of accuracy, that a quantised program may cost to be named as the fastest


@dataclass(frozen=True)
class InferenceRow:
    """A runtime with a batch size.

    Attributes:
        arm: its name on the command line.
        title, precision: for people.
        batch_size: images that are answered at once.
        num_bytes: of the program on the disk; None where there is none.
        failure: what went wrong, or is not installed; there are no figures then.
        seconds: of each run, by round.
        memory: the most bytes that its process held meanwhile, its libraries and the pixels too; of an accelerator
            those that torch reserved there. None where that is not known.
        flops, traffic: of PyTorch eager's run with this batch size: floating-point operations, and bytes that one
            operation after the other reads and writes; see `work_of`. None where nothing was measured.
        speedup: PyTorch eager's time at this batch size by its time: medians of each round.
        agreement: fraction of the images with the same best label as PyTorch eager's.
        largest_difference: of a probability from PyTorch eager's.
        accuracy: None without labels.
        loss: how much less often it is right than PyTorch eager, with the paired interval; None without labels.
    """

    arm: str
    title: str
    precision: str
    batch_size: int
    num_bytes: int | None
    failure: str | None = None
    seconds: tuple[tuple[float, ...], ...] = ()
    memory: int | None = None
    flops: int | None = None
    traffic: int | None = None
    speedup: Ratio | None = None
    agreement: Estimate | None = None
    largest_difference: float | None = None
    accuracy: Estimate | None = None
    loss: Estimate | None = None

    def quantile(self, fraction: float) -> float:
        """Seconds that so large a fraction of the runs does not exceed."""
        return float(np.quantile(list(chain.from_iterable(self.seconds)), fraction))

    @property
    def images_per_second(self) -> float:
        """By the median run."""
        return self.batch_size / self.quantile(0.5)

    @property
    def words(self) -> str:
        """For people, what it is."""
        return f"{self.title} {self.precision}"

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON."""
        found = asdict(self)
        if not self.failure:
            found |= {"p50": self.quantile(0.5), "p95": self.quantile(0.95)}
            found["images_per_second"] = self.images_per_second
        return found


@dataclass(frozen=True)
class InferenceReport:
    """What a benchmark has found; printed as a table.

    Attributes:
        model: as it was named.
        rows: by arm, and in it by batch size.
        images: that were answered, in words.
        num_images, num_calibration_images: of which the latter were for static quantisation alone.
        threads: of each arm.
        device: "cpu" or "cuda".
        rounds: that were counted.
        peaks: floating-point operations a second of the fastest square product in float32, and bytes a second of a
            large copy, read and written, in the same rounds; None where they could not be measured.
        has_random_weights: whether the model has learnt nothing.
        environment: see `describe_environment`.
    """

    model: str
    rows: tuple[InferenceRow, ...]
    images: str
    num_images: int
    num_calibration_images: int
    threads: int
    device: str
    rounds: int
    peaks: tuple[float, float] | None
    has_random_weights: bool
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON; times are in seconds."""
        return {**asdict(self), "rows": [{**row.to_dict(), **self._fractions(row)} for row in self.rows]}

    def _fractions(self, row: InferenceRow) -> dict[str, float]:
        """What part a row takes of what the device can do, were its work that of PyTorch eager; by the median run."""
        if row.failure or self.peaks is None:
            return {}
        (peak, bandwidth), seconds = self.peaks, row.quantile(0.5)
        return {"of_peak": row.flops / seconds / peak, "of_bandwidth": row.traffic / seconds / bandwidth}

    def charts(self) -> list[Chart]:
        """A chart of each batch size: the times of the runs of those arms that were measured, the fastest first."""
        charts = []
        for size in dict.fromkeys(row.batch_size for row in self.rows):
            rows = [row for row in self.rows if row.batch_size == size and not row.failure]
            bars = [
                Bar(
                    row.words,
                    [float(np.median(turn)) for turn in row.seconds],
                    short_time(row.quantile(0.5)),
                    f"{row.speedup.brief} times as fast" if row.speedup else "",
                    is_ours=row.arm == self.rows[0].arm,
                )
                for row in sorted(rows, key=lambda row: row.quantile(0.5))
            ]
            charts += [Chart(f"batch {size}, speed against PyTorch eager", "s", bars)] if bars else []
        return charts

    @property
    def title(self) -> str:
        random = ", with random weights" if self.has_random_weights else ""
        return f"{self.model}{random}, on {self._device}: medians of {counted(self.rounds, 'round')}"

    @property
    def _device(self) -> str:
        return counted(self.threads, "thread") + " of the CPU" if self.device == "cpu" else self.environment["device"]

    def __str__(self) -> str:
        return "\n\n".join([self._introduction(), *self._tables(), *self._notes()])

    @property
    def _has_labels(self) -> bool:
        return any(row.accuracy for row in self.rows)

    def _introduction(self) -> str:
        compared = "Top-1 accuracy is" if self._has_labels else "Agreement with PyTorch eager's label is"
        return (
            f"{self.title} in which all had their turn, from pixels to logits. "
            f"{compared} on {counted(self.num_images, 'image')} ({self.images}); "
            f"{self.num_calibration_images:,} more were for calibration."
        )

    def _tables(self) -> Iterator[str]:
        """One of each batch size, at most 100 columns wide."""
        last = ("top-1", "lost") if self._has_labels else ("agree",)
        head = ("runtime", "MB", "p50 ms", "p95 ms", "img/s", "mem MB", "speed", *last)
        for size in dict.fromkeys(row.batch_size for row in self.rows):
            rows = [row for row in self.rows if row.batch_size == size]
            cells = [[row.words, *self._cells(row)] for row in rows if not row.failure]
            cells += [[row.words, *["-"] * (len(head) - 1)] for row in rows if row.failure]
            yield f"Batch {size}:\n\n{markdown_table(head, cells)}"

    def _cells(self, row: InferenceRow) -> Iterator[str]:
        yield _megabytes(row.num_bytes)
        yield _milliseconds(row.quantile(0.5))
        yield _milliseconds(row.quantile(0.95))
        yield rate(row.images_per_second)
        yield _megabytes(row.memory)
        yield "-" if row.speedup is None else f"{row.speedup.median:.2f}"
        if self._has_labels:
            yield f"{row.accuracy.value * 100:.2f}"
            yield f"{row.loss.value * 100:+.2f}"
        else:
            yield f"{row.agreement.value * 100:.2f}"

    def _notes(self) -> Iterator[str]:
        yield (
            "Speed: PyTorch eager's time by the row's, round by round. Memory: of the whole process, its libraries too"
            f"{'' if self.device == 'cpu' else '; of the GPU, what torch reserved'}. In per cent: "
            f"{'top-1, and the points of it lost by not using eager' if self._has_labels else 'agreement'}."
        )
        if self.peaks is not None:
            eager = [self._of_device(row) for row in self.rows if row.arm == self.rows[0].arm and not row.failure]
            yield (
                f"A product of float32 matrices ran at {self.peaks[0] / 1e9:.0f} GFLOP/s, a copy at "
                f"{self.peaks[1] / 1e9:.1f} GB/s. PyTorch eager takes {'; '.join(eager)}."
            )
        for name, is_meant in (("float", _is_float), ("int8", lambda row: not _is_float(row))):
            if lines := list(self._fastest(name, is_meant)):
                yield "\n".join(lines)
        first = self.rows[0].batch_size
        if lost := [row for row in self.rows if row.loss and not _is_float(row) and row.batch_size == first]:
            costs = "; ".join(f"{row.words} {_points(row.loss)}" for row in lost)
            yield f"Points lost at batch {first}, with their 95 % intervals: {costs}."
        failed: dict[str, str] = {}
        for row in self.rows:
            if row.failure:
                failed.setdefault(f"{row.title} ({row.arm}) at batch {row.batch_size}", row.failure)
        if failed:
            yield "Not measured:\n\n" + "\n".join(f"- {name}: {brief(why, str, 300)}" for name, why in failed.items())

    def _of_device(self, row: InferenceRow) -> str:
        found = self._fractions(row)
        return f"{found['of_peak']:.0%} and {found['of_bandwidth']:.0%} of that at batch {row.batch_size}"

    def _fastest(self, name: str, is_meant: Any) -> Iterator[str]:
        for size in dict.fromkeys(row.batch_size for row in self.rows):
            rows = [row for row in self.rows if row.batch_size == size and row.speedup and is_meant(row)]
            exact = [row for row in rows if row.loss is None or row.loss.value <= _MAX_LOSS]
            if not exact:
                continue
            best = max(exact, key=lambda row: row.speedup.median)
            cost = f", {_points(best.loss)} points lost" if best.loss and name == "int8" else ""
            yield (
                f"- Fastest {name} at batch {size}: {best.words}, "
                f"{best.speedup.brief} times as fast as PyTorch eager{cost}"
            )


def _is_float(row: InferenceRow) -> bool:
    return "int8" not in row.precision


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g}" if seconds < 1 else f"{seconds * 1000:.0f}"


def _megabytes(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1e6:.3g}" if num_bytes < 1e9 else f"{num_bytes / 1e6:.0f}"


def _points(loss: Estimate) -> str:
    return f"{loss.value * 100:+.2f} [{loss.low * 100:+.2f}, {loss.high * 100:+.2f}]"
