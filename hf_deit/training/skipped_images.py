"""Images that cannot be decoded and are passed over: each is named once, and counted once, over all processes."""

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers.utils import logging

logger = logging.get_logger(__name__)


class SkippedImages:
    """Which images were skipped.

    The main process says at once what it meets itself, and at the next `tell` what the others have met. What was said
    before, by whichever part of the run, is not said again.
    """

    def __init__(self) -> None:
        self._met: dict[str, None] = {}  # in their order, not told to the other processes yet
        self._known: set[str] = set()

    def __len__(self) -> int:
        """How many different images were skipped, up to the last `tell`, over all processes."""
        return len(self._known)

    def take(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Notes what of a loader's batch was skipped, and gives the batch without these notes."""
        found = [line for lines in batch.get("skipped", ()) for line in lines.splitlines()]
        self._met.update(dict.fromkeys(found))
        if PartialState().is_main_process:
            self._say(found)
        return {name: value for name, value in batch.items() if name != "skipped"}

    def tell(self) -> None:
        """Lets all processes know what each has met; all must call it."""
        met = list(self._met)
        everywhere = gather_object(met) if PartialState().num_processes > 1 else met
        self._met = {}
        self._known.update(everywhere)
        if PartialState().is_main_process:
            self._say(everywhere)

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            logger.warning_once(f"skipped an image that cannot be decoded: {line}")
