"""Labels that may be wrong: what the model, its teacher and the nearest images agree against."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..answers.verdicts import Verdicts
from ..images.labels import Labels

NEIGHBOURS = 10
_BLOCK = 2048  # images whose neighbours are looked for at a time
# Gives the features of N images in order, anew at each call, as chunks of (n, D) floats; None if there are none.
Features = Callable[[], Iterator[np.ndarray] | None]


@dataclass(frozen=True)
class Suspects:
    """S images whose labels are doubted, and by whom.

    Attributes:
        indices: (S,) int64 of the images, those of which the model is surest first.
        has_teacher: whether the teacher was asked.
        asked: (S,) how many neighbours of each were asked; None where none were.
        agreeing: (S,) for how many of these the model's answer is right.
    """

    indices: np.ndarray
    has_teacher: bool
    asked: np.ndarray | None = None
    agreeing: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)


def find_suspects(
    verdicts: Verdicts,
    labels: Labels,
    *,
    teacher: Verdicts | None = None,
    features: Features | None = None,
    num_neighbours: int = NEIGHBOURS,
) -> Suspects | None:
    """Images against whose label the model, the teacher and the labels of the nearest images speak with one voice.

    The neighbours agree with an answer if it is right for more than half of them, by their own labels.

    Args:
        verdicts: of the model.
        labels: of the images.
        teacher: its verdicts; None leaves it out.
        features: of the model, such as its `Answers.features_chunks`; None leaves the neighbours out.
        num_neighbours: how many labelled images to ask, fewer where there are fewer.

    Returns:
        None where there are neither a teacher nor features: every mistake would be a suspect.
    """
    if features is not None and features() is None:
        features = None
    if teacher is None and features is None:
        return None
    is_candidate = labels.is_labelled & ~labels.are_right(verdicts.decisions)
    if teacher is not None:
        is_candidate &= teacher.decisions == verdicts.decisions
    candidates = np.flatnonzero(is_candidate)
    candidates = candidates[np.argsort(-verdicts.confidence[candidates], kind="stable")]
    if features is None:
        return Suspects(candidates, teacher is not None)
    neighbours, _ = nearest_neighbours(features, candidates, count=num_neighbours, among=labels.is_labelled)
    agree = _are_right_for(labels, neighbours, verdicts.decisions[candidates]).sum(axis=1)
    asked = (neighbours >= 0).sum(axis=1)
    is_suspect = agree > asked / 2
    return Suspects(candidates[is_suspect], teacher is not None, asked[is_suspect], agree[is_suspect])


def _are_right_for(labels: Labels, indices: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether row i's class is right for the images of row i: (Q, k) bool, False where an index is -1."""
    if labels.accepted is None:
        right = labels.values[indices] == classes[:, None]
    else:
        columns = np.broadcast_to(classes[:, None], indices.shape)
        right = np.asarray(labels.accepted[indices.ravel(), columns.ravel()], dtype=bool).reshape(indices.shape)
    return right & (indices >= 0)


def nearest_neighbours(
    features: Features, indices: np.ndarray, *, count: int = NEIGHBOURS, among: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The images that are nearest to some images by the cosine of their features, an image itself left out.

    The features are read chunk by chunk, twice for each block of the images asked for, so that memory grows neither
    with their number nor with that of all images. Those that are not finite are near to nothing.

    Args:
        features: of N images.
        indices: (Q,) integers in [0, N), of the images whose neighbours are wanted.
        count: how many neighbours at most.
        among: (N,) bool, which images can be neighbours; by default all.

    Returns:
        (Q, count) int64, the indices of the neighbours, nearest first, -1 where there are no more; and (Q, count)
        float64, their cosines, NaN where there are none.
    """
    neighbours = np.full((len(indices), count), -1, dtype=np.int64)
    cosines = np.full((len(indices), count), np.nan)
    for start in range(0, len(indices), _BLOCK):
        block = slice(start, start + _BLOCK)
        neighbours[block], cosines[block] = _neighbours_of_block(features, indices[block], count, among)
    return neighbours, cosines


def _neighbours_of_block(
    features: Features, indices: np.ndarray, count: int, among: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.neighbors import NearestNeighbors

    queries = _rows(features, indices)
    is_finite = np.isfinite(queries).all(axis=1)
    best = np.full((len(indices), count), -1, dtype=np.int64)
    distances = np.full((len(indices), count), np.inf)
    for first, chunk in _with_places(features):
        usable = np.isfinite(chunk).all(axis=1)
        if among is not None:
            usable &= among[first : first + len(chunk)]
        places = first + np.flatnonzero(usable)
        if not len(places) or not is_finite.any():
            continue
        # One more, as an image itself may be among them.
        search = NearestNeighbors(n_neighbors=min(count + 1, len(places)), algorithm="brute", metric="cosine")
        near, which = search.fit(chunk[usable]).kneighbors(queries[is_finite])
        found = places[which]
        near[found == indices[is_finite, None]] = np.inf
        candidates = np.concatenate([distances[is_finite], near], axis=1)
        order = np.argsort(candidates, axis=1, kind="stable")[:, :count]
        distances[is_finite] = np.take_along_axis(candidates, order, axis=1)
        best[is_finite] = np.take_along_axis(np.concatenate([best[is_finite], found], axis=1), order, axis=1)
    is_found = np.isfinite(distances)
    return np.where(is_found, best, -1), np.where(is_found, 1 - distances, np.nan)


def _with_places(features: Features) -> Iterator[tuple[int, np.ndarray]]:
    """Chunks of features as float32, and the index of their first."""
    first = 0
    for chunk in features():
        yield first, chunk.astype(np.float32)
        first += len(chunk)


def _rows(features: Features, indices: np.ndarray) -> np.ndarray:
    """The features of some images, (Q, D) float32, in the order of their indices."""
    parts, places = [], []
    for first, chunk in _with_places(features):
        here = np.flatnonzero((indices >= first) & (indices < first + len(chunk)))
        parts.append(chunk[indices[here] - first])
        places.append(here)
    rows = np.concatenate(parts)
    return rows[np.argsort(np.concatenate(places))]
