"""What a model has said of images: the logits of its heads, read chunk by chunk."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from .verdicts import Rule, Verdicts


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
