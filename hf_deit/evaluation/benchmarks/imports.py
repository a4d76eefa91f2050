"""How long importing takes, against what a user of transformers waits for anyway."""

import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from ...hub.environment import describe_environment
from .figures import Bar, Chart, markdown_table, short_time
from .timing import Ratio

# What this package is asked for, what of transformers that is compared with, and the bound of the ratio.
PAIRS = (
    ("import hf_deit", "import transformers", 1.1),
    (
        "from hf_deit import DistilledDeiTForImageClassification",
        "from transformers import DeiTForImageClassificationWithTeacher",
        1.1,
    ),
    ("from hf_deit import DistillationTrainer", "from transformers import Trainer", 1.25),
)
_TIMER = "import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"


@dataclass
class ImportFigures:
    """Seconds of one statement and of another, each in processes of its own that took turns.

    Attributes:
        statement, other: what was imported.
        bound: of the median ratio.
        seconds, other_seconds: by round.
    """

    statement: str
    other: str
    bound: float
    seconds: list[float]
    other_seconds: list[float]

    @property
    def ratio(self) -> Ratio:
        """Of the two statements' seconds."""
        return Ratio.of(self.seconds, self.other_seconds)


@dataclass
class ImportReport:
    """What importing costs; printed as a table."""

    figures: list[ImportFigures]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON; times are in seconds."""
        return {**asdict(self), "figures": [{**asdict(pair), "ratio": asdict(pair.ratio)} for pair in self.figures]}

    def charts(self) -> list[Chart]:
        """A chart of each pair."""
        return [
            Chart(
                f"importing ours takes {pair.ratio.brief} times the other",
                "s",
                [
                    Bar.of_times(_brief(pair.statement), pair.seconds, is_ours=True),
                    Bar.of_times(_brief(pair.other), pair.other_seconds),
                ],
            )
            for pair in self.figures
        ]

    @property
    def title(self) -> str:
        return f"Imports in fresh processes, medians, on {self.environment['device']}"

    def __str__(self) -> str:
        rows = [
            (
                f"`{pair.statement}`",
                f"`{pair.other}`",
                short_time(statistics.median(pair.seconds)),
                short_time(statistics.median(pair.other_seconds)),
                str(pair.ratio),
                f"{pair.bound:g}",
            )
            for pair in self.figures
        ]
        return markdown_table(("import", "against", "time", "time", "ratio", "bound"), rows, words=2)


def measure_imports(*, rounds: int = 5) -> ImportReport:
    """Times imports in fresh processes, this package's and transformers' in turn; the first round does not count.

    Args:
        rounds: that are counted.
    """
    figures = [ImportFigures(*pair, [], []) for pair in PAIRS]
    for number in range(rounds + 1):
        for pair in figures:
            arms = [(pair.statement, pair.seconds), (pair.other, pair.other_seconds)]
            for statement, seconds in arms if number % 2 else reversed(arms):
                taken = _seconds(statement)
                if number:
                    seconds.append(taken)
    return ImportReport(figures, describe_environment())


def _brief(statement: str) -> str:
    """ "package: name" or "package"."""
    return statement.replace("from ", "").replace(" import ", ": ").removeprefix("import ")


def _seconds(statement: str) -> float:
    command = [sys.executable, "-c", _TIMER.format(statement=statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
