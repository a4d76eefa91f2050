"""An epoch's labels as tensors on a device, where looking them up makes nobody wait."""

import numpy as np
import torch

from ..errors import InputError
from ..models.answers import NO_ANSWER
from .files import ABSENT, TRUE_LABEL, Columns
from .identity import StoreIdentity
from .top_k import TopLogits, rebuilt_logits


class EpochLabels:
    """What is kept of the views of one epoch.

    Args:
        columns: of the epoch, sorted by slot; see `hf_deit.labels.files`.
        identity: of the store.
        device: for the tensors that `labels` and `logits` look up; the CPU by default.

    Attributes:
        columns: as given.
        codes: by slot, (views_per_epoch,) int32: a label, or `TRUE_LABEL`, `NO_ANSWER` or `ABSENT`. On the host.
        is_complete: whether all views of the epoch are there.
        is_empty: whether none is.
    """

    def __init__(self, columns: Columns, identity: StoreIdentity, device: torch.device | str | None = None) -> None:
        self.columns = columns
        self._identity = identity
        self.codes = np.full(identity.views_per_epoch, ABSENT, dtype=np.int32)
        self.codes[columns["slot"]] = columns["label"]
        self.is_complete = len(columns["slot"]) == identity.views_per_epoch
        self.is_empty = len(columns["slot"]) == 0
        self._codes = torch.from_numpy(self.codes).to(device or "cpu")
        if identity.top_k:
            rows = np.zeros(identity.views_per_epoch, dtype=np.int32)
            rows[columns["slot"]] = np.arange(len(columns["slot"]), dtype=np.int32)
            self._rows = torch.from_numpy(rows).to(self._codes.device)
            top = (columns["top_labels"].astype(np.int32), columns["top_logits"], columns["rest_logit"])
            self._top = TopLogits(*(torch.tensor(column, device=self._codes.device) for column in top))

    def to(self, device: torch.device | str) -> "EpochLabels":
        """The same epoch, with its tensors on a device."""
        return self if self._codes.device == torch.device(device) else type(self)(self.columns, self._identity, device)

    def absent(self, num_views: int | None = None) -> np.ndarray:
        """The slots without a label, ascending, among the epoch's first views; among all of them by default."""
        return np.flatnonzero(self.codes[:num_views] == ABSENT)

    def num_unanswered(self, num_views: int | None = None) -> int:
        """How many of the epoch's first views, by default of all, the teacher gave no answer to."""
        return int((self.codes[:num_views] == NO_ANSWER).sum())

    def has(self, slots: torch.Tensor) -> torch.Tensor:
        """Whether views are kept, with a label or without an answer: (B,) bool, for (B,) slots on the device."""
        return self._codes[slots] != ABSENT

    def labels(self, slots: torch.Tensor, true_labels: torch.Tensor) -> torch.Tensor:
        """The teacher's labels.

        Args:
            slots: (B,) int64, on the device.
            true_labels: (B,) int64.

        Returns:
            (B,) int64; negative where nothing is known, or where the label is the true one and `true_labels` has none;
            `NO_ANSWER` where the teacher gave none.
        """
        codes = self._codes[slots].long()
        return torch.where(codes == TRUE_LABEL, true_labels, codes)

    def logits(self, slots: torch.Tensor) -> torch.Tensor:
        """The teacher's logits, (B, num_labels) float32: the top k as they were kept, the others all alike.

        They are NaN where the teacher gave no answer.

        Args:
            slots: (B,) int64, on the device, whose labels are known.

        Raises:
            InputError: none are kept.
        """
        if not self._identity.top_k:
            raise InputError("these are labels alone: record a store with top_k for soft targets")
        rows = self._rows[slots]
        logits = rebuilt_logits(TopLogits(*(column[rows] for column in self._top)), self._identity.num_labels)
        return torch.where((self._codes[slots] == NO_ANSWER).unsqueeze(1), torch.nan, logits)
