"""What a file of labels may hold, whoever wrote it: sizes are checked before it is read, values before their use."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ..errors import brief, shortlist
from .footer import Footer
from .identity import StoreIdentity

_GROUP_ROWS = 1 << 20  # a row group of a store has more, up to all views
# Of a value in a column, in bytes, encoded at its most wasteful; and of what stands beside the values.
_VALUE_BYTES, _OTHER_BYTES = 16, 1 << 16


def fault_in_length(size: int, identity: StoreIdentity) -> str | None:
    """What is wrong with the bytes of a file, or None: what claims to be in them takes time to go through."""
    most = (3 + 3 * identity.top_k) * _most_bytes(identity.views_per_epoch, identity) + (1 << 18)  # and a footer
    return f"it has {size:,} bytes, expected at most {most:,}" if size > most else None


def _most_bytes(values: int, identity: StoreIdentity) -> int:
    """The bytes that a column takes at most."""
    return _VALUE_BYTES * values + 8 * identity.num_labels + _OTHER_BYTES


def fault_in_sizes(footer: Footer, names: Sequence[str], identity: StoreIdentity) -> str | None:
    """What a file says of its sizes that no file of the store can have, or None: nothing is allocated by it before.

    Args:
        footer: of the file.
        names: of the columns of the store's files.
    """
    views = identity.views_per_epoch
    if not 0 <= footer.rows <= views:
        return f"it claims {footer.rows:,} views, expected at most {views:,}"
    if len(footer.groups) > 1 + views // _GROUP_ROWS:
        return f"it claims {len(footer.groups):,} row groups"
    total = 0
    for chunks in footer.groups:
        if [chunk.name for chunk in chunks] != [*names]:
            return f"got the columns {shortlist(brief(chunk.name) for chunk in chunks)}, expected {[*names]}"
        total += chunks[0].rows
        if not 0 <= chunks[0].rows <= total <= footer.rows:
            return f"it claims {footer.rows:,} views, and a row group of {chunks[0].rows:,}"
        for chunk in chunks:
            values = chunk.rows * (identity.top_k if chunk.name.startswith("top_") else 1)
            if chunk.values != values:
                return f"its column {chunk.name} claims {chunk.values:,} values, expected {values:,}"
            most = _most_bytes(values, identity)
            for claim, size in (("it claims", chunk.decompressed), ("its pages claim", chunk.in_pages)):
                if not 0 <= size <= most:
                    return f"of its column {chunk.name} {claim} {size:,} bytes, expected at most {most:,}"
    return None if total == footer.rows else f"it claims {footer.rows:,} views, and has {total:,}"


def fault_in_nulls(table: pa.Table) -> str | None:
    """Which column lacks values that it must have, or None."""
    for field in table.schema:
        column = table[field.name].combine_chunks()
        nulls = 0 if field.name in ("label", "pixel_crc") else column.null_count
        if pa.types.is_fixed_size_list(field.type):
            nulls += column.flatten().null_count
        if nulls:
            return f"its column {field.name} lacks {nulls:,} values"
    return None


def fault_in_values(columns: Mapping[str, np.ndarray], identity: StoreIdentity) -> str | None:
    """What a column holds that no view of the store can have, or None.

    Args:
        columns: by name; nulls of `label` and `pixel_crc` are negative.
    """
    slots, num_labels = columns["slot"], identity.num_labels
    if not len(slots):
        return None
    if slots[-1] >= identity.views_per_epoch or (slots[1:] <= slots[:-1]).any():
        return f"its slots are not ascending from 0 to {identity.views_per_epoch - 1}"
    for name in ("label", "top_labels"):
        if name in columns and columns[name].max() >= num_labels:
            return f"its column {name} has {columns[name].max()}, expected at most {num_labels - 1}"
    for name in ("top_logits", "rest_logit"):
        if name in columns and not np.isfinite(columns[name]).all():
            return f"its column {name} has values that are not finite"
    return None
