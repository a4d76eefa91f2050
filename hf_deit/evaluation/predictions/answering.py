"""The best classes of each image and their probabilities, kept chunk by chunk until all are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp

from ..answers.asking import Answered
from ..answers.chunk_folder import Arrays
from ..answers.verdicts import CLASS_HEAD, DISTILLATION_HEAD, Rule

_DIGITS = 8  # of a probability: what float32 has, in every format the same


@dataclass(frozen=True)
class Answering:
    """How logits become rows.

    Attributes:
        rule: by which the model answers.
        top_k: classes of each image, k.
        with_heads: whether both heads' best classes are kept, too.
        is_multi_label: whether each class has a probability of its own, as transformers' pipelines have it.
    """

    rule: Rule
    top_k: int
    with_heads: bool
    is_multi_label: bool

    @property
    def rules(self) -> tuple[tuple[Rule, int], ...]:
        """How each of the answers is made, and of how many classes it is."""
        heads = ((CLASS_HEAD, 1), (DISTILLATION_HEAD, 1)) if self.with_heads else ()
        return ((self.rule, self.top_k), *heads)

    def is_whole(self, arrays: Arrays, num_rows: int) -> bool:
        """Whether arrays are those of `joined` for so many images."""
        width = sum(number for _, number in self.rules)
        return set(arrays) == {"classes", "probabilities"} and all(
            values.shape == (num_rows, width) for values in arrays.values()
        )

    def joined(self, rows: range, answered: Sequence[Answered]) -> tuple[Arrays, dict[int, str]]:
        """What is kept of the answers to a chunk's images, and why others were skipped, by their places in it.

        Returns:
            "classes", (n, w) int32, and "probabilities", (n, w) float64: of `rules` one after the other the best
            classes, best first; -1 and NaN where an image was skipped.
        """
        width = sum(number for _, number in self.rules)
        classes = np.full((len(rows), width), -1, dtype=np.int32)
        probabilities = np.full((len(rows), width), np.nan)
        skipped = {}
        for batch in answered:
            if batch.rows:
                places = np.array(batch.rows) - rows.start
                parts = [self._best(rule, number, batch.logits) for rule, number in self.rules]
                classes[places] = np.concatenate([best for best, _ in parts], axis=1)
                probabilities[places] = np.concatenate([of_best for _, of_best in parts], axis=1)
            skipped |= {row - rows.start: why for row, why in batch.skipped.items()}
        return {"classes": classes, "probabilities": probabilities}, skipped

    def _best(self, rule: Rule, number: int, logits: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        scores = rule.scores(logits)
        best = best_classes(scores, number)
        of_best = np.take_along_axis(scores, best, axis=1)
        if self.is_multi_label:
            return best, np.round(expit(of_best), _DIGITS)
        return best, np.round(np.exp(of_best - logsumexp(scores, axis=1, keepdims=True)), _DIGITS)


def best_classes(scores: np.ndarray, number: int) -> np.ndarray:
    """The classes of the largest scores, best first; of equal ones the first comes first.

    Args:
        scores: (B, K).
        number: k, at most K.

    Returns:
        (B, k) int64.
    """
    if number < scores.shape[1]:
        best = np.sort(np.argpartition(-scores, number - 1, axis=1)[:, :number], axis=1)
        found = np.take_along_axis(scores, best, axis=1)
        if ((scores >= found.min(axis=1, keepdims=True)).sum(axis=1) == number).all():
            return np.take_along_axis(best, np.argsort(-found, axis=1, kind="stable"), axis=1)
    return np.argsort(-scores, axis=1, kind="stable")[:, :number]
