"""Looking into many files: one by one where they are at hand, side by side where a disk or a network is waited for."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from transformers.utils import logging

T, R = TypeVar("T"), TypeVar("R")
# Calls a function in one process of each machine, and gives its result to all there.
OncePerMachine = Callable[[Callable[[], Any]], Any]

_THREADS = 16  # that wait
_WINDOW = 4  # chunks of each thread at once
_BAR_DELAY = 2.0  # seconds


def call(function: Callable[[], T]) -> T:
    """The `OncePerMachine` of a single process."""
    return function()


def in_chunks(
    function: Callable[[list[T]], R],
    items: Iterable[T],
    *,
    size: int,
    computes: bool = False,
    total: int | None = None,
    title: str | None = None,
) -> Iterator[R]:
    """What a function makes of chunks of items, in their order; only a few chunks are in memory at once.

    What the system has in memory is read fastest by one thread: several take turns at Python's lock. What a disk or a
    network takes its time for is read fastest by many, which wait together. So a chunk is read alone, and timed. If
    its thread was idle for most of the time, the next chunks are read by threads, and then one alone again.

    Args:
        function: of a chunk; threads may call it.
        items: to cut into chunks.
        size: items of a chunk.
        computes: whether the function mostly computes without Python's lock: then each core takes chunks.
        total: how many items there are.
        title: of a bar on the terminal, for what takes longer than a moment; None for no bar.
    """
    items = iter(items)
    chunks = iter(lambda: list(itertools.islice(items, size)), [])
    threads = (os.cpu_count() or 1) if computes else _THREADS
    is_off = True if title is None else None  # or where nobody looks
    bar = logging.tqdm(total=total, desc=title, unit=" images", delay=_BAR_DELAY, disable=is_off)
    in_threads = computes
    with bar, ThreadPoolExecutor(threads) as pool:
        while window := list(itertools.islice(chunks, _WINDOW * threads if in_threads else 1)):
            if in_threads:
                results, in_threads = pool.map(function, window), computes
            else:
                result, in_threads = _timed(function, *window)
                results = [result]
            for chunk, result in zip(window, results, strict=True):
                bar.update(len(chunk))
                yield result


def _timed(function: Callable[[list[T]], R], chunk: list[T]) -> tuple[R, bool]:
    """What a function makes of a chunk, and whether its thread was waiting for most of the time."""
    start, busy, pauses = time.perf_counter(), time.thread_time(), _pauses()
    result = function(chunk)
    taken, busy = time.perf_counter() - start, time.thread_time() - busy
    # A thread that others keep from the processor is idle, too, but has not paused for each file.
    return result, taken > 3 * busy and (pauses is None or _pauses() - pauses > len(chunk) / 8)


def _pauses() -> int | None:
    """How often this thread has given up the processor by itself; None where the system does not tell."""
    try:
        from resource import RUSAGE_THREAD, getrusage
    except ImportError:
        return None
    return getrusage(RUSAGE_THREAD).ru_nvcsw
