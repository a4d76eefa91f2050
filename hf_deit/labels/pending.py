"""What has been recorded for a label store, and not been written yet."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..models.answers import NO_ANSWER
from .files import ABSENT, TRUE_LABEL, Columns, no_views, wants_crc
from .identity import StoreIdentity

_SETTLE_AFTER = 256  # records, which stay on their device until then


class PendingLabels:
    """Records in memory, by epoch. For a while they stay on their device, so that nothing waits for it."""

    def __init__(self, identity: StoreIdentity) -> None:
        self._identity = identity
        self._records: dict[int, list[tuple[Any, ...]]] = {}
        self._settled: dict[int, list[Columns]] = {}

    @property
    def epochs(self) -> list[int]:
        """Those with records, ascending."""
        return sorted({*self._records, *self._settled})

    def add(self, epoch: int, record: tuple[Any, ...]) -> None:
        """Takes one record.

        Args:
            record: slots, the teacher's labels, true labels, CRCs or None and, where logits are kept, those of
                `TopLogits`: one value of each for B views. A view whose label is `ABSENT` is not recorded.
        """
        records = self._records.setdefault(epoch, [])
        records.append(record)
        if len(records) >= _SETTLE_AFTER:
            self.settled(epoch)

    def settled(self, epoch: int) -> list[Columns]:
        """Moves an epoch's records to the host, and checks them.

        Returns:
            Columns as a file has them, not sorted by slot.

        Raises:
            InputError: slots or labels are out of range, or logits are not finite in float16.
        """
        if records := self._records.get(epoch):
            columns = self._columns(epoch, records)
            self._settled.setdefault(epoch, []).append(columns)
            del self._records[epoch]
        return self._settled[epoch]

    def discard(self, epoch: int) -> None:
        """Forgets the settled records of an epoch, once they are written."""
        del self._settled[epoch]

    def _columns(self, epoch: int, records: list[tuple[Any, ...]]) -> Columns:
        none = [(*record[:3], np.full(len(record[0]), -1), *record[4:]) for record in records]
        records = [without if record[3] is None else record for record, without in zip(records, none, strict=True)]
        slots, labels, true_labels, crcs, *top = (_joined(column) for column in zip(*records, strict=True))
        identity = self._identity
        for name, values, end in (("slots", slots, identity.views_per_epoch), ("labels", labels, identity.num_labels)):
            judged = values if name == "slots" else values[(values != NO_ANSWER) & (values != ABSENT)]
            if len(values) != len(true_labels) or (len(judged) and not 0 <= judged.min() <= judged.max() < end):
                raise InputError(
                    f"{name} recorded for epoch {epoch} must be {len(true_labels)} from 0 to {end - 1}, got "
                    f"{len(values)} from {values.min()} to {values.max()}"
                )
        crcs = np.where(wants_crc(identity, epoch, slots), crcs, -1)
        is_true = (labels == true_labels) & (labels >= 0)
        named = {"slot": slots, "label": np.where(is_true, TRUE_LABEL, labels), "pixel_crc": crcs}
        named |= dict(zip(("top_labels", "top_logits", "rest_logit"), top, strict=False))
        with np.errstate(over="ignore"):  # which is looked for below
            columns = {
                name: named[name][labels != ABSENT].astype(empty.dtype) for name, empty in no_views(identity).items()
            }
        if top and not all(np.isfinite(columns[name]).all() for name in ("top_logits", "rest_logit")):
            raise InputError(
                f"logits of the teacher in epoch {epoch} are not finite in float16, as which they are kept: take "
                "those that top_logits makes of finite ones, or keep labels alone (top_k 0), for hard distillation"
            )
        return columns


def _joined(column: Sequence[Any]) -> np.ndarray:
    """Arrays or tensors as one array. Tensors come from their device in one piece."""
    if all(isinstance(values, torch.Tensor) for values in column):
        return torch.cat(list(column)).detach().cpu().numpy()
    return np.concatenate([v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for v in column])
