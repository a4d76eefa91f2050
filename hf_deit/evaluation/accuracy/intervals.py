"""95 % confidence intervals of measured fractions, and of the difference of two of them."""

from math import sqrt

import numpy as np

from ...hub.facts import wilson_bounds
from ..sections import Estimate


def wilson(k: int, n: int) -> Estimate:
    """The fraction k / n with its Wilson interval, which also says something where k is 0 or n.

    Raises:
        ValueError: n is not positive, or k is not in [0, n].
    """
    low, high = wilson_bounds(k, n)
    return Estimate(int(k) / int(n), low, high)


def paired_difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """How much more often the first of two answers to the same images is right: a difference in [-1, 1].

    The interval is Newcombe's for paired proportions (Statistics in Medicine 17, 1998, p. 2635, method 10): it counts
    that what is hard for one model is mostly hard for the other, so it is narrower than two separate ones suggest.

    Args:
        first, second: (N,) bool, N > 0, whether each image was answered right.
    """
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    n = len(first)
    of_first, of_second = wilson(both + only_first, n), wilson(both + only_second, n)
    product = both * neither - only_first * only_second
    if product > 0:
        product = max(product - n / 2, 0)
    spread = sqrt(int(first.sum()) * int((~first).sum()) * int(second.sum()) * int((~second).sum()))
    correlation = product / spread if spread else 0.0
    difference = (only_first - only_second) / n

    def reach(down: float, up: float) -> float:
        return sqrt(max(down**2 - 2 * correlation * down * up + up**2, 0))

    return Estimate(
        difference,
        difference - reach(of_first.value - of_first.low, of_second.high - of_second.value),
        difference + reach(of_first.high - of_first.value, of_second.value - of_second.low),
    )
