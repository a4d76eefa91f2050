"""How long importing takes, against what a user of transformers waits for anyway."""

import statistics
import subprocess
import sys
from dataclasses import dataclass

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

    def __str__(self) -> str:
        rows = [("import", "against", "s", "s", "ratio", "bound"), ("---",) * 6]
        rows += [
            (
                f"`{pair.statement}`",
                f"`{pair.other}`",
                f"{statistics.median(pair.seconds):.2f}",
                f"{statistics.median(pair.other_seconds):.2f}",
                str(pair.ratio),
                f"{pair.bound:g}",
            )
            for pair in self.figures
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
    return ImportReport(figures)


def _seconds(statement: str) -> float:
    command = [sys.executable, "-c", _TIMER.format(statement=statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
