"""Keeps exporters' and runtimes' chatter off the terminal, and shows a clock there instead; loads no library."""

import contextlib
import io
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator

_DELAY = 2.0  # seconds, before a clock is shown


@contextlib.contextmanager
def quiet(title: str | None = None) -> Iterator[None]:
    """Keeps off the terminal what libraries say, from Python and from C++; an error is raised as ever.

    Args:
        title: what is being done, to be shown on a terminal with the time it has taken, if that is long.
    """
    disabled = logging.root.manager.disable
    with tempfile.TemporaryFile() as unread, warnings.catch_warnings(), contextlib.ExitStack() as stack:
        if title is not None and sys.stderr.isatty():
            stack.enter_context(_clock(title))
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, disabled)
        stack.callback(logging.root.setLevel, logging.root.level)  # which OpenVINO sets as it refuses a model
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be closed
                stream.flush()
                kept = os.dup(number)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, number)
                os.dup2(unread.fileno(), number)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def _clock(title: str) -> Iterator[None]:
    from tqdm import tqdm

    done = threading.Event()
    with (
        os.fdopen(os.dup(2), "w") as terminal,
        tqdm(desc=title, bar_format="{desc} [{elapsed}]", file=terminal, delay=_DELAY, leave=False) as bar,
    ):
        thread = threading.Thread(target=lambda: [bar.update(0) or bar.refresh() for _ in _ticks(done)], daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _ticks(done: threading.Event) -> Iterator[None]:
    while not done.wait(1.0):
        yield
