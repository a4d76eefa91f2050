"""Records of a label store that are not written yet."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .files import TRUE_LABEL, Columns, no_views, wants_crc
from .identity import StoreIdentity

_SETTLE_AFTER = 256  # records, which until then may stay on their device, so that nothing waits for it


class PendingLabels:
    """Records that are not written yet.

    Args:
        identity: of the store.
    """

    def __init__(self, identity: StoreIdentity) -> None:
        self._identity = identity
        self._records: dict[int, list[tuple[Any, ...]]] = {}
        self._settled: dict[int, list[Columns]] = {}

    @property
    def epochs(self) -> list[int]:
        return sorted({*self._records, *self._settled})

    def add(self, epoch: int, record: tuple[Any, ...]) -> None:
        """Notes slots, the teacher's labels, true labels, CRCs or None and, with logits, the parts of `TopLogits`."""
        records = self._records.setdefault(epoch, [])
        records.append(record)
        if len(records) >= _SETTLE_AFTER:
            self.settled(epoch)

    def settled(self, epoch: int) -> list[Columns]:
        """An epoch's records on the host, checked.

        Raises:
            InputError: slots or labels are out of range, or logits are too large for float16.
        """
        if records := self._records.get(epoch):
            columns = self._columns(epoch, records)
            self._settled.setdefault(epoch, []).append(columns)
            del self._records[epoch]
        return self._settled[epoch]

    def discard(self, epoch: int) -> None:
        del self._settled[epoch]

    def _columns(self, epoch: int, records: list[tuple[Any, ...]]) -> Columns:
        none = [(*record[:3], np.full(len(record[0]), -1), *record[4:]) for record in records]
        records = [without if record[3] is None else record for record, without in zip(records, none, strict=True)]
        slots, labels, true_labels, crcs, *top = (_joined(column) for column in zip(*records, strict=True))
        identity = self._identity
        for name, values, end in (("slots", slots, identity.views_per_epoch), ("labels", labels, identity.num_labels)):
            if len(values) != len(true_labels) or (len(values) and not 0 <= values.min() <= values.max() < end):
                raise InputError(
                    f"{name} recorded for epoch {epoch} must be {len(true_labels)} from 0 to {end - 1}, got "
                    f"{len(values)} from {values.min()} to {values.max()}"
                )
        crcs = np.where(wants_crc(identity, epoch, slots), crcs, -1)
        named = {"slot": slots, "label": np.where(labels == true_labels, TRUE_LABEL, labels), "pixel_crc": crcs}
        named |= dict(zip(("top_labels", "top_logits", "rest_logit"), top, strict=False))
        with np.errstate(over="ignore"):  # which is looked for below
            columns = {name: named[name].astype(empty.dtype) for name, empty in no_views(identity).items()}
        if top and not all(np.isfinite(columns[name]).all() for name in ("top_logits", "rest_logit")):
            raise InputError(
                f"logits of the teacher in epoch {epoch} are not finite in float16, as which they are kept: keep "
                "labels alone (top_k 0), for hard distillation, or take another teacher"
            )
        return columns


def _joined(column: Sequence[Any]) -> np.ndarray:
    """Arrays, or tensors, which come from their device in one piece, as one array."""
    if all(isinstance(values, torch.Tensor) for values in column):
        return torch.cat(list(column)).detach().cpu().numpy()
    return np.concatenate([v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for v in column])
