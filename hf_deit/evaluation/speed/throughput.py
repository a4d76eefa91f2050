"""Images per second of models, as the DeiT paper's Table 5 measures them: the largest batch that fits, 30 runs."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from ...errors import InputError, counted
from ..benchmarks.timing import time_in_turn
from ..classifiers.classifiers import Classifier
from .work import count_bytes, count_flop, weight_bytes

# Why a batch is no larger.
MEMORY, SPEED, TIME, GIVEN = "memory", "speed", "time", "given"
_TRIES, _TRIED = 3, 0.1  # runs of each batch that is tried, and seconds of short ones, of which the fastest counts
_WORTH = 1.05  # how many times the images per second a larger batch must bring where memory does not bound it
_SHARE_OF_FREE_MEMORY = 0.5  # on a CPU, where what is too much ends the process
# Sides of the square matrices whose product is the measure of what a device can do.
_SIDES_ON_CPU, _SIDES_ON_ACCELERATORS = (512, 1024, 2048), (2048, 4096, 8192)
# Floats: more than any cache holds, and than a launch takes to copy.
_COPIED_ON_CPU, _COPIED_ON_ACCELERATORS = 1 << 25, 1 << 28


@dataclass(frozen=True)
class Batch:
    """So many images at a time, and why not more: `MEMORY`, `SPEED`, `TIME` or `GIVEN`."""

    size: int
    limit: str


@dataclass(frozen=True)
class Throughput:
    """What was measured of one model.

    Attributes:
        batch: of each run.
        flop: of an image, see `count_flop`.
        seconds: of each run, after one that does not count.
        memory: the most bytes that weights, pixels and what is computed of them took at once.
    """

    batch: Batch
    flop: int
    seconds: tuple[float, ...]
    memory: int

    @property
    def images_per_second(self) -> float:
        """By the average time of the runs."""
        return self.batch.size / statistics.mean(self.seconds)

    @property
    def flop_per_second(self) -> float:
        """By the average time of the runs."""
        return self.flop * self.images_per_second

    def quantile(self, fraction: float) -> float:
        """Images per second, which so large a fraction of the runs does not exceed."""
        return float(np.quantile(self.batch.size / np.array(self.seconds), fraction))


@dataclass(frozen=True)
class Peak:
    """The fastest matrix product of a dtype, of all rounds: the side of the square matrices, and FLOP/s."""

    side: int
    flop_per_second: float

    @classmethod
    def of(cls, seconds: Mapping[int, Sequence[float]]) -> "Peak":
        """The fastest of some products, by the seconds of their rounds, by their side."""
        peaks = [cls(side, 2 * side**3 / min(taken)) for side, taken in seconds.items()]
        return max(peaks, key=lambda peak: peak.flop_per_second)


def measure_throughput(
    classifiers: Sequence[Classifier],
    *,
    runs: int = 30,
    seconds: float = 60.0,
    batch_size: int | None = None,
) -> tuple[dict[str, Throughput], dict[str, Peak]]:
    """Times the forward passes of models in turn, round by round, so that their ratios hold on a busy machine.

    Args:
        classifiers: on one device.
        runs: of each model that count.
        seconds: that a model may take: batches are smaller where they would not end within it.
        batch_size: of all models; by default what `find_batch` finds for each: on an accelerator the largest that
            fits, on a CPU the one with the most images per second.

    Returns:
        What was measured, by the models' names; and what the device can do, by the names of dtypes.
    """
    longest = seconds / (runs + 1 + 2 * (_TRIES + 1))  # each size that is tried is half of the next
    models = {each.name: each for each in classifiers}
    with torch.no_grad():
        flop = {
            name: count_flop(each.model, _pixels(each, 1), **each.forward_options) for name, each in models.items()
        }
        given = None if batch_size is None else Batch(batch_size, GIVEN)
        batches: dict[str, Batch] = {}
        searched: dict[Any, Batch] = {}
        for name, each in models.items():
            # On a CPU models of one shape have one search: it would differ by what else the machine does meanwhile.
            of_one_shape = (type(each.model), weight_bytes(each.model), flop[name], each.input_size, each.model.dtype)
            shape = of_one_shape if each.model.device.type == "cpu" else name
            if shape not in searched:
                searched[shape] = given or _batch_of(each, longest)
            batches[name] = searched[shape]
        dtypes = {each.model.dtype for each in classifiers}
        matmuls = {
            (dtype, side): run
            for dtype in sorted(dtypes, key=str)
            for side, run in square_products(dtype, classifiers[0].model.device, longest / 8)
        }
        taken, batches = _time_all(models, batches, matmuls, runs)
        memory = {name: _memory(each, batches[name].size) for name, each in models.items()}
    measured = {name: Throughput(batches[name], flop[name], tuple(taken[_arm(name)]), memory[name]) for name in models}
    peaks = {
        name_of(dtype): Peak.of({side: taken[_arm(of, side)] for of, side in matmuls if of == dtype})
        for dtype in dtypes
    }
    return measured, peaks


def name_of(dtype: torch.dtype) -> str:
    """A dtype as people write it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def find_batch(
    seconds_of: Callable[[int], float], *, longest: float, most: int | None = None, until_full: bool = False
) -> Batch:
    """Doubles a batch, from one image, as long as that is possible and of use.

    Args:
        seconds_of: how long a run with so many images takes, or an error that memory is out.
        longest: seconds that a run may take.
        most: images that fit, if that is known.
        until_full: only memory and time are bounds, and between the last that fits and the first that does not, the
            largest is looked for in steps of an eighth. Otherwise it ends where two doublings in turn bring no 5 %
            more images per second, and of those tried the fastest is taken.

    Raises:
        RuntimeError: not even one image fits, or something else went wrong.
    """
    speeds: dict[int, float] = {}

    def fits(size: int) -> bool:
        with _until_memory_is_out() as is_out:
            speeds[size] = size / seconds_of(size)
        if is_out and size == 1:
            raise is_out[0]
        return not is_out

    size, limit, too_large = 1, None, None
    while limit is None:
        if not fits(size):
            limit, too_large = MEMORY, size
        elif 2 * size / speeds[size] > longest:
            limit = TIME
        elif most is not None and 2 * size > most:
            limit = MEMORY
        elif not until_full and _has_levelled_off(list(speeds.values())):
            limit = SPEED
        size *= 2
    largest = max(speeds)
    if not until_full:
        fastest = max(speeds, key=speeds.__getitem__)
        return Batch(fastest, limit if fastest == largest else SPEED)
    step = max(largest // 8, 1)
    while too_large is not None and too_large - largest > step:
        middle = (largest + too_large) // 2
        if fits(middle):
            largest = middle
        else:
            too_large = middle
    return Batch(largest, limit)


def _has_levelled_off(speeds: Sequence[float]) -> bool:
    return len(speeds) > 2 and max(speeds[-2:]) < _WORTH * max(speeds[:-2])


@contextmanager
def _until_memory_is_out() -> Iterator[list[RuntimeError]]:
    """Ends what stands in it, and frees what it held, where it needs more memory than there is: the error is listed.

    So it is where a kernel counts in 32 bits, and a batch has more numbers.
    """
    met: list[RuntimeError] = []
    try:
        yield met
    except RuntimeError as error:
        is_out = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
        if not is_out and "canUse32BitIndexMath" not in str(error):
            raise
        met.append(error.with_traceback(None))  # whose frames hold the tensors
    if met:
        clear_device_cache(garbage_collection=True)


def _batch_of(classifier: Classifier, longest: float) -> Batch:
    def seconds_of(size: int) -> float:
        pixels = _pixels(classifier, size)
        arm = {"": lambda: _forward(classifier, pixels)}
        fastest = min(time_in_turn(arm, rounds=_TRIES)[""])
        more = int(min(_TRIED, longest) / fastest) - _TRIES  # as another process takes more than a short run's time
        return min(fastest, *time_in_turn(arm, rounds=more)[""]) if more > 0 else fastest

    if classifier.model.device.type != "cpu":
        return find_batch(seconds_of, longest=longest, until_full=True)
    room = _SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available
    most = max(int(room / count_bytes(classifier.model, _pixels(classifier, 1), **classifier.forward_options)), 1)
    return find_batch(seconds_of, longest=longest, most=most)


def _pixels(classifier: Classifier, size: int) -> torch.Tensor:
    """As many images of noise: what a forward pass takes does not depend on what they show."""
    model = classifier.model
    return torch.randn(size, 3, *classifier.input_size, dtype=model.dtype, device=model.device)


def _forward(classifier: Classifier, pixel_values: torch.Tensor) -> None:
    classifier.model(pixel_values=pixel_values, **classifier.forward_options)


def square_products(
    dtype: torch.dtype, device: torch.device, longest: float
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Products of square matrices, by their side: the smallest, and those that by it will not take longer.

    Args:
        dtype, device: of the matrices.
        longest: seconds of a product.
    """
    sides = _SIDES_ON_CPU if device.type == "cpu" else _SIDES_ON_ACCELERATORS
    taken = 0.0
    for side in sides:
        if 8 * taken > longest:
            break
        one, other = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
        product = torch.empty_like(one)

        def run(one: torch.Tensor = one, other: torch.Tensor = other, product: torch.Tensor = product) -> None:
            torch.matmul(one, other, out=product)

        taken = time_in_turn({"": run}, rounds=1)[""][0]
        yield side, run


def large_copy(device: torch.device) -> tuple[int, Callable[[], None]]:
    """A copy within a device's memory, and how many bytes it reads and writes."""
    source = torch.randn(_COPIED_ON_CPU if device.type == "cpu" else _COPIED_ON_ACCELERATORS, device=device)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)

    return 2 * source.nbytes, run


def _arm(of: str | torch.dtype, side: int | None = None) -> str:
    return f"model {of}" if side is None else f"product {of} {side}"


def _time_all(
    models: Mapping[str, Classifier],
    batches: dict[str, Batch],
    matmuls: Mapping[tuple[torch.dtype, int], Callable[[], None]],
    runs: int,
) -> tuple[dict[str, list[float]], dict[str, Batch]]:
    """Seconds of each arm, and the batches: smaller by an eighth where all together need more memory than there is."""
    products = {_arm(*key): run for key, run in matmuls.items()}
    while True:
        with _until_memory_is_out() as is_out:
            arms = {_arm(name): run for name, run in _arms(models, batches).items()}
            return time_in_turn({**arms, **products}, rounds=runs), batches
        arms = {}
        largest = max(batch.size for batch in batches.values())
        if any(batch.limit == GIVEN for batch in batches.values()):
            raise InputError(
                f"batches of {counted(largest, 'image')} need more memory than there is: give a smaller one, or none, "
                "and the largest that fits is found"
            ) from is_out[0]
        if largest == 1:
            raise is_out[0]
        batches = {name: Batch(max(batch.size * 7 // 8, 1), MEMORY) for name, batch in batches.items()}


def _arms(models: Mapping[str, Classifier], batches: Mapping[str, Batch]) -> dict[str, Callable[[], None]]:
    """A run of each model. They share their pixels, as each was alone when its batch was found."""
    shapes = {name: (batches[name].size, 3, *each.input_size) for name, each in models.items()}
    shared = {
        dtype: torch.randn(
            max(np.prod(shapes[name]) for name, each in models.items() if each.model.dtype == dtype),
            dtype=dtype,
            device=next(iter(models.values())).model.device,
        )
        for dtype in {each.model.dtype for each in models.values()}
    }

    def arm(name: str) -> Callable[[], None]:
        classifier, shape = models[name], shapes[name]
        pixels = shared[classifier.model.dtype][: np.prod(shape)].view(shape)
        return lambda: _forward(classifier, pixels)

    return {name: arm(name) for name in models}


def _memory(classifier: Classifier, size: int) -> int:
    """The most bytes that weights, pixels and what is computed of them take at once."""
    model = classifier.model
    if model.device.type != "cuda":
        return weight_bytes(model) + size * count_bytes(model, _pixels(classifier, 1), **classifier.forward_options)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    _forward(classifier, _pixels(classifier, size))
    return weight_bytes(model) + torch.cuda.max_memory_allocated(model.device) - before
