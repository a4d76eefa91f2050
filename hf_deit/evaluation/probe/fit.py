"""Logistic regression on features: how strongly regularised cross-validation says, and so does what it is worth."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

STRENGTHS = tuple(10.0**power for power in range(-4, 4))  # scikit-learn's C, weakest last
FOLDS = 5
_PATIENCE = 2  # strengths without a better loss, after which no weaker one is tried
_MOST_ITERATIONS = 1000
_MOST_IN_FLOAT64 = 1 << 26  # numbers that are standardised in it, 512 MB; more in float32
# How features are made alike in size: each divided by its spread; or their principal components by the root of it, so
# that directions in which images hardly differ, which are many, neither drown nor outweigh the others.
SCALINGS = ("standardised", "half-whitened")
_UNSEEN = -100.0  # the logit of a class without images, which nothing tells of
# A spread below these parts of what is usual, and of the feature's own size, is float32's rounding.
_LEAST_SPREAD, _LEAST_RELATIVE_SPREAD = 1e-4, 1e-5
_LEAST_VARIANCE = 1e-6  # of a principal component, as a part of the first one's: below is float32's rounding
_ALIKE = 1e-3  # root mean square difference of features in standard deviations, up to which images are the same
_AT_ONCE = 1024  # rows that are compared


@dataclass(frozen=True)
class Linear:
    """A linear classifier: `features @ weight.T + bias` are logits.

    Attributes:
        weight: (K, D) float64.
        bias: (K,) float64.
    """

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(N, K) float64 of features (N, D)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Fit:
    """What has come of a fit.

    Attributes:
        linear: fitted to all images.
        scaling: of `SCALINGS`.
        strength: scikit-learn's C; scaling and strength are those of the least log loss in cross-validation.
        losses: mean log loss of the held-out images by scaling and C, in the order in which they were tried.
        held_out: (N, K) logits of each image by the classifier of the folds that it is not in.
        folds: (N,) int64, the fold of each image.
    """

    linear: Linear
    scaling: str
    strength: float
    losses: dict[tuple[str, float], float]
    held_out: np.ndarray
    folds: np.ndarray


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    num_labels: int,
    groups: np.ndarray | None = None,
    num_folds: int = FOLDS,
    seed: int = 0,
    scalings: Sequence[str] = SCALINGS,
    strengths: Sequence[float] = STRENGTHS,
    after_fit: Callable[[], Any] = lambda: None,
) -> Fit:
    """Fits a logistic regression on scaled features; cross-validation says how they are scaled, and how strongly.

    Each view of an image is a row to learn from; the first one alone is answered to. What scales is of the same rows
    as the regression: in cross-validation, of those that are not held out.

    Args:
        features: (V, N, D) float32, of V views of N images.
        labels: (N,) int64 in [0, num_labels).
        num_labels: K.
        groups: (N,) int64: images of one group are held out together. By default each is one of its own.
        num_folds: how many parts are held out in turn, from 2 to the number of groups.
        seed: of the folds.
        scalings: to choose from.
        strengths: to choose from, ascending.
        after_fit: is called after each of the fits.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    folds = folds_of(labels, groups, num_folds, seed)
    losses: dict[tuple[str, float], float] = {}
    held_out: dict[tuple[str, float], np.ndarray] = {}
    for kind in scalings:
        scaled = [scaling(features[:, folds != fold], kind) for fold in range(num_folds)]
        started, tried = [None] * num_folds, []
        for strength in strengths:
            logits = np.empty((len(labels), num_labels))
            for fold, by in enumerate(scaled):
                learnt = folds != fold
                linear, started[fold] = _regression(
                    features[:, learnt], labels[learnt], num_labels, strength, by, started[fold]
                )
                logits[~learnt] = linear.logits(features[0, ~learnt])
                after_fit()
            tried.append(log_loss(logits, labels))
            losses[kind, strength] = tried[-1]
            if tried[-1] == min(losses.values()):
                held_out = {(kind, strength): logits}
            if min(tried) not in tried[-_PATIENCE:]:
                break
    ((kind, strength), logits), *_ = held_out.items()
    linear, _ = _regression(features, labels, num_labels, strength, scaling(features, kind))
    after_fit()
    return Fit(linear, kind, strength, losses, logits, folds)


def folds_of(labels: np.ndarray, groups: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """The fold of each image, (N,) int64: groups are dealt out, one class after the other, in an order by the seed.

    So the images of a class are in all folds as evenly as can be, and so are all images. A group has the class of its
    first image.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(labels[first][order], kind="stable")]
    fold = np.empty(len(first), dtype=np.int64)
    fold[order] = np.arange(len(first)) % num_folds
    return fold[group]


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log softmax of the right class: logits (N, K), labels (N,)."""
    from scipy.special import logsumexp

    return float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]))


def spread(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of features (R, D), float64; infinite where they hardly differ.

    A feature that is as good as constant here may be anything elsewhere, and divided by its tiny spread it would
    outweigh all others.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    least = np.maximum(_LEAST_SPREAD * np.sqrt(np.mean(deviation**2)), _LEAST_RELATIVE_SPREAD * np.abs(mean))
    return mean, np.where(deviation > least, deviation, np.inf)


@dataclass(frozen=True)
class Scaling:
    """A linear change of features, after which a regression is fitted.

    Attributes:
        mean: (D,) float64, that is taken off.
        by: (D,) float64 to multiply with, or (D, R) of R directions.
    """

    mean: np.ndarray
    by: np.ndarray

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """(N, R) of rows (N, D): float64, or float32 of very many."""
        centred = _centred(rows, self.mean)
        by = self.by.astype(centred.dtype)
        return centred * by if by.ndim == 1 else centred @ by

    def undo(self, weight: np.ndarray) -> np.ndarray:
        """The weights of features, (K, D), of those of scaled ones, (K, R)."""
        return weight * self.by if self.by.ndim == 1 else weight @ self.by.T


def _centred(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    kind = np.float64 if rows.size <= _MOST_IN_FLOAT64 else np.float32
    return rows - mean.astype(kind)


def scaling(features: np.ndarray, kind: str) -> Scaling:
    """How views (V, N, D) are scaled, by a kind of `SCALINGS`."""
    rows = features.reshape(-1, features.shape[-1])
    mean, deviation = spread(rows)
    if kind == "standardised":
        return Scaling(mean, 1 / deviation)
    centred = _centred(rows, mean) * np.isfinite(deviation)
    is_wide = len(rows) < rows.shape[1]
    square = (centred @ centred.T if is_wide else centred.T @ centred).astype(np.float64) / len(rows)
    variances, directions = np.linalg.eigh(square)
    kept = variances > _LEAST_VARIANCE * max(variances[-1], np.finfo(np.float32).tiny)
    variances, directions = variances[kept], directions[:, kept]
    if is_wide:
        directions = centred.T.astype(np.float64) @ (directions / np.sqrt(len(rows) * variances))
    spreads = np.sqrt(variances)
    return Scaling(mean, directions / np.sqrt(spreads * spreads.mean()) if len(spreads) else directions)


def _regression(
    features: np.ndarray, labels: np.ndarray, num_labels: int, strength: float, by: Scaling, start: Any = None
) -> tuple[Linear, Any]:
    """The classifier of views (V, N, D), and what a fit with another strength may start from."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows = by.apply(features.reshape(-1, features.shape[-1]))
    regression = LogisticRegression(C=strength, max_iter=_MOST_ITERATIONS, warm_start=True)
    if start is not None:
        regression.coef_, regression.intercept_, regression.classes_ = start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its answers are measured all the same
        regression.fit(rows, np.tile(labels, len(features)))
    weight, bias = regression.coef_.astype(np.float64), regression.intercept_.astype(np.float64)
    if len(weight) == 1:  # of two classes: the logit of the second one, shared out evenly
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    found = Linear(np.zeros((num_labels, features.shape[-1])), np.full(num_labels, _UNSEEN))
    found.weight[regression.classes_] = weight = by.undo(weight)
    found.bias[regression.classes_] = bias - weight @ by.mean
    return found, (regression.coef_, regression.intercept_, regression.classes_)


def alike(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Which images are the same, by the features of their views: (N,) int64, the first image of each one's group.

    Copies, and mirrored ones where there are mirrored views, have the same features but for rounding. Rows that are
    near in some random directions are compared in full.

    Args:
        features: (V, N, D) float32.
        seed: of the directions.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, count, width = features.shape
    rows = features.reshape(-1, width)
    scale = (1 / spread(rows)[1]).astype(np.float32)
    directions = np.random.default_rng(seed).standard_normal((width, 8), dtype=np.float32)
    directions *= scale[:, None] / np.linalg.norm(directions, axis=0)
    places = rows @ directions  # along each direction, in standard deviations
    order = np.argsort(places[:, 0], kind="stable")
    pairs = [_same_neighbours(rows, scale, places, order, most_apart=1)]
    # Of rows that are the same one after the other, the first one stands for all: there may be thousands.
    is_same_as_before = np.isin(order, pairs[0][1])
    pairs.append(_same_neighbours(rows, scale, places, order[~is_same_as_before], most_apart=len(rows)))
    ones, others = np.concatenate(pairs, axis=1) % count
    graph = coo_array((np.ones(len(ones)), (ones, others)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    _, first = np.unique(group, return_index=True)
    return first[group]


def _same_neighbours(
    rows: np.ndarray, scale: np.ndarray, places: np.ndarray, order: np.ndarray, *, most_apart: int
) -> np.ndarray:
    """Pairs of rows that are the same, (2, P) int64, of those that are so far apart in an order by their places."""
    near = 6 * _ALIKE  # six standard deviations of what a difference of that size is in a random direction
    first, pairs = np.arange(len(order)), [np.empty((2, 0), dtype=np.int64)]
    for apart in range(1, most_apart + 1):
        first = first[first + apart < len(order)]
        one, other = order[first], order[first + apart]
        is_near = places[other, 0] - places[one, 0] <= near
        first, one, other = first[is_near], one[is_near], other[is_near]
        if not len(first):
            break
        is_close = (np.abs(places[other] - places[one]) <= near).all(axis=1)
        one, other = one[is_close], other[is_close]
        for start in range(0, len(one), _AT_ONCE):
            here, there = one[start : start + _AT_ONCE], other[start : start + _AT_ONCE]
            difference = (rows[here] - rows[there]) * scale
            is_same = np.sqrt(np.mean(difference**2, axis=1)) <= _ALIKE
            pairs.append(np.stack([here[is_same], there[is_same]]))
    return np.concatenate(pairs, axis=1)
