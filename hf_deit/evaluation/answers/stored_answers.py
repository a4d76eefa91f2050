"""Answers on disk: a folder for each model and set of images, with a file for every few hundred images."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .chunk_folder import Arrays, ChunkFolder
from .verdicts import Rule, Verdicts, verdicts_of

CHUNK = 512  # images; of ImageNet's classes 2 MB a head
ANSWERS_FOLDER = "answers"
_IDENTITY_FILE = "answers.json"
_FEATURES = "features"


@dataclass(frozen=True)
class Chunk:
    """The answers to some images one after the other.

    Attributes:
        logits: (n, K) float32 of each head, by name; NaN where an image was skipped.
        features: (n, D) float16, or None; zeros where an image was skipped. D is 0 of a model that has none.
        skipped: why an image could not be decoded, by its place in the chunk.
    """

    logits: Mapping[str, np.ndarray]
    features: np.ndarray | None = None
    skipped: Mapping[int, str] = field(default_factory=dict)


class AnswerFolder:
    """The chunks of one model's answers to N images.

    Args:
        output_dir: of the evaluation.
        identity: of JSON's types: what the answers depend on.
        num_images: N.
        num_labels: K.
        rules: by which the model's heads answer.
        with_features: whether chunks without features do not count.
        takes_skipped: whether chunks in which an image was skipped count.
    """

    def __init__(
        self,
        output_dir: str,
        identity: Mapping[str, Any],
        *,
        num_images: int,
        num_labels: int,
        rules: Sequence[Rule],
        with_features: bool,
        takes_skipped: bool,
    ) -> None:
        self._identity = dict(identity)
        digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()
        self.path = os.path.join(output_dir, ANSWERS_FOLDER, digest[:16])
        self._chunks = ChunkFolder(self.path, num_images=num_images, size=CHUNK, is_whole=self._is_whole)
        self.num_images, self.num_labels = num_images, num_labels
        self.with_features, self._takes_skipped = with_features, takes_skipped
        self.rules = tuple(rules)

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the logits in a chunk."""
        return tuple(rule.key for rule in (self.rules[:1] if len(self.rules) == 1 else self.rules[:2]))

    @property
    def num_chunks(self) -> int:
        return self._chunks.num_chunks

    def rows(self, chunk: int) -> range:
        """Which images a chunk is about."""
        return self._chunks.rows(chunk)

    def begin(self) -> None:
        """Makes the folder, and clears what a killed process has left there. For one process.

        Raises:
            OSError: nothing can be written there.
        """
        self._chunks.begin(self._identity, _IDENTITY_FILE)

    def absent(self) -> list[int]:
        """The chunks that are not there, or not as they were written."""
        return self._chunks.absent()

    def write(self, chunk: int, content: Chunk) -> None:
        """Writes a chunk, whole or not at all.

        Raises:
            CheckpointError: it cannot be written, say on a full disk.
        """
        arrays = {name: logits.astype(np.float32, copy=False) for name, logits in content.logits.items()}
        if content.features is not None:
            arrays[_FEATURES] = content.features.astype(np.float16, copy=False)
        self._chunks.write(chunk, arrays, content.skipped)

    def read(self, chunk: int) -> Chunk:
        """A chunk that is there.

        Raises:
            CheckpointError: it is not, or no more as it was written.
        """
        arrays, skipped = self._chunks.read(chunk)
        features = arrays.pop(_FEATURES, None)
        return Chunk(arrays, features, skipped)

    def skipped(self) -> dict[int, str]:
        """Why images could not be decoded, by their rows. No chunk may be absent.

        Raises:
            CheckpointError: see `read`.
        """
        return self._chunks.skipped()

    def _is_whole(self, chunk: int, arrays: Arrays, skipped: dict[int, str]) -> bool:
        shape, features = (len(self.rows(chunk)), self.num_labels), arrays.get(_FEATURES)
        if set(arrays) - {_FEATURES} != set(self.heads) or any(arrays[head].shape != shape for head in self.heads):
            return False
        if self.with_features and (features is None or len(features) != shape[0]):
            return False
        return self._takes_skipped or not skipped


class StoredAnswers:
    """The answers in a folder of which no chunk is absent; see `hf_deit.evaluation.answers.answers.Answers`.

    Args:
        model: its short name.
        rule: by which it answers itself.
        folder: of the answers.
        left_out: (N,) bool, images that are no part of the evaluation; their answers are passed over.
    """

    def __init__(self, model: str, rule: Rule, folder: AnswerFolder, left_out: np.ndarray | None = None) -> None:
        self.model, self.rule, self.rules = model, rule, folder.rules
        self._folder = folder
        self._left_out = np.zeros(folder.num_images, dtype=bool) if left_out is None else left_out
        self._verdicts: dict[Rule, Verdicts] = {}

    def __len__(self) -> int:
        return int((~self._left_out).sum())

    def without(self, left_out: np.ndarray) -> "StoredAnswers":
        """The same answers, passing over images: (N,) bool."""
        return StoredAnswers(self.model, self.rule, self._folder, left_out)

    def chunks(self) -> Iterator[Mapping[str, np.ndarray]]:
        for kept, chunk in self._whole():
            yield {name: logits[kept] for name, logits in chunk.logits.items()}

    def features_chunks(self) -> Iterator[np.ndarray] | None:
        if not self._folder.with_features or not self._has_features:
            return None
        return (chunk.features[kept] for kept, chunk in self._whole())

    @cached_property
    def _has_features(self) -> bool:
        return bool(self._folder.read(0).features.shape[1])

    def verdicts(self, rule: Rule) -> Verdicts:
        if rule not in self._verdicts:
            self._verdicts[rule] = verdicts_of(self.model, rule, self.chunks())
        return self._verdicts[rule]

    def skipped(self) -> dict[int, str]:
        """Why images could not be decoded, by their rows."""
        return self._folder.skipped()

    def _whole(self) -> Iterator[tuple[np.ndarray, Chunk]]:
        for number in range(self._folder.num_chunks):
            rows = self._folder.rows(number)
            kept = ~self._left_out[rows.start : rows.stop]
            if kept.any():
                yield kept, self._folder.read(number)


def kept_size(output_dir: str) -> int:
    """How many bytes the answers in an evaluation's folder take."""
    folder = os.path.join(output_dir, ANSWERS_FOLDER)
    paths = (os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)
    return sum(os.path.getsize(path) for path in paths)
