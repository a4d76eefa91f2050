"""What a model has said of images: the logits of its heads, read chunk by chunk."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .verdicts import RULES_OF_TWO_HEADS, SINGLE_HEAD, Rule, Verdicts, verdicts_of


class Answers(Protocol):
    """The logits of one model's heads for N images, in the order of the images and of the data's K classes.

    Attributes:
        model: the model's short name.
        rules: by which its heads' logits become answers.
        rule: by which the model answers itself, one of them.
    """

    model: str
    rules: tuple[Rule, ...]
    rule: Rule

    def __len__(self) -> int: ...

    def chunks(self) -> Iterator[Mapping[str, np.ndarray]]:
        """The heads' logits, (n, K) float32 each, of one image after the other; no chunk is large."""
        ...

    def features_chunks(self) -> Iterator[np.ndarray] | None:
        """The states that the heads answer from, (n, D) float16 of length 1, like `chunks`; None if not kept."""
        ...

    def verdicts(self, rule: Rule) -> Verdicts: ...


@dataclass(frozen=True)
class AnswersInMemory:
    """Answers to a few images; see `Answers`.

    Attributes:
        logits: (N, K) of each head, by name.
        features: (N, D), or None.
    """

    model: str
    logits: Mapping[str, np.ndarray]
    rule: Rule = SINGLE_HEAD
    features: np.ndarray | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (SINGLE_HEAD,) if SINGLE_HEAD.key in self.logits else RULES_OF_TWO_HEADS

    def __len__(self) -> int:
        return len(next(iter(self.logits.values())))

    def chunks(self) -> Iterator[Mapping[str, np.ndarray]]:
        yield self.logits

    def features_chunks(self) -> Iterator[np.ndarray] | None:
        return None if self.features is None else iter([self.features])

    def verdicts(self, rule: Rule) -> Verdicts:
        return verdicts_of(self.model, rule, self.chunks())
