"""The Hub: what a run needs of it is checked before training, and what it pushes survives the Hub's failures.

huggingface_hub retries uploads of large files, but never a commit, and waits without limit for an answer. Here every
call is repeated while that can help, and given up after a time that is known.
"""

import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Thread
from typing import Any, TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers.utils import logging

from ..errors import first_line

logger = logging.get_logger(__name__)

T = TypeVar("T")
# What the client raises when the Hub refuses, fails or is not there; RuntimeError for a large file, with the cause.
HUB_ERRORS = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError, KeyError)
# Too many requests, a server in trouble, or somebody else's commit at the same moment.
_TRANSIENT_STATUSES = {408, 409, 412, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60.0
CHECK_SECONDS = 30.0
_GRACE = 10.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


# Some calls of the client raise their HTTP library's own error.
_Refusal = HfHubHTTPError | httpx2.HTTPStatusError


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a refusal, or None for another error."""
    return error.response.status_code if isinstance(error, _Refusal) else None


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed a little later."""
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, _Refusal):
            return status_of(cause) in _TRANSIENT_STATUSES
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            return True
    return False


def why(error: BaseException) -> str:
    """The reason of a failure in a line: the innermost one, and the HTTP status if there is one."""
    *_, cause = _causes(error)
    if isinstance(cause, _Refusal):
        response = cause.response
        said = (
            getattr(cause, "server_message", None) or response.headers.get("X-Error-Message") or response.reason_phrase
        )
        return f"HTTP {response.status_code}: {said}"
    name = type(cause).__name__
    return f"{name}: {first_line(cause)}" if str(cause).strip() else name


def wished_pause(error: BaseException) -> float:
    """Seconds that the Hub asks to wait (Retry-After, a number or a date), or 0."""
    for cause in _causes(error):
        if isinstance(cause, _Refusal):
            value = cause.response.headers.get("Retry-After", "")
            if value.isdigit():
                return float(value)
            try:
                return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
            except (ValueError, TypeError):
                return 0.0
    return 0.0


def keep_trying(function: Callable[[], T], *, what: str, seconds: float) -> T:
    """Calls a function until it succeeds, with exponential backoff, while that can help and the time is not up.

    Args:
        function: must not make twice what is already there, as it may have failed after it had done its work. (Commits
            of huggingface_hub leave out what has not changed, and make none if nothing has.)
        what: what the function does, for the log.
        seconds: after the first call, in which it may be called again.

    Raises:
        HUB_ERRORS: of the last call.
    """
    end = time.monotonic() + seconds
    attempt = 0
    while True:
        try:
            return function()
        except HUB_ERRORS as error:
            pause = max(wished_pause(error), min(_LONGEST_WAIT, 2.0**attempt) * random.uniform(0.5, 1.0))
            if not is_transient(error) or time.monotonic() + pause > end:
                raise
            logger.warning("%s failed (%s): trying again in %.1f s", what, why(error), pause)
            time.sleep(pause)
            attempt += 1


class Attempt(Thread):
    """A call in a thread of its own, which ends with the process: nobody has to wait for an answer that never comes.

    Attributes:
        result: what the function gave, or None.
        error: what it raised, or None.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True, name="hub")
        self._function = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error


def ask(function: Callable[[], T], *, what: str, seconds: float | None = None) -> T:
    """`keep_trying` for questions that are answered soon: it ends with its time, even if an answer never comes.

    Args:
        function, what: see `keep_trying`.
        seconds: `CHECK_SECONDS` by default.

    Raises:
        HUB_ERRORS: of the last call; a `TimeoutError` if there was no answer.
    """
    seconds = CHECK_SECONDS if seconds is None else seconds
    attempt = Attempt(lambda: keep_trying(function, what=what, seconds=seconds))
    attempt.join(seconds + _GRACE)  # a call may have begun just before the time was up
    if attempt.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if attempt.error is not None:
        raise attempt.error
    return attempt.result
