"""How a teacher runs: what its answers depend on by rounding, and how fast it gives them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import InputError, brief, counted


@dataclass(frozen=True)
class Execution:
    """How a teacher runs. False where it runs as it was loaded.

    Attributes:
        folded: BatchNorm layers that the weights before them have taken up.
        channels_last: whether weights and pixels lie in memory with a pixel's channels side by side.
        compiled: the views of a batch for which `torch.compile` has made a program; 0 for none. Other batches run
            without it.
        dtype: that it computes in instead of the one that it was loaded in, as "bfloat16"; or None.
    """

    folded: int = 0
    channels_last: bool = False
    compiled: int = 0
    dtype: str | None = None

    def __bool__(self) -> bool:
        return self != PLAIN

    def __str__(self) -> str:
        """In words."""
        parts = [
            f"{counted(self.folded, 'BatchNorm layer')} folded" if self.folded else "",
            "channels_last" if self.channels_last else "",
            "compiled" if self.compiled else "",
            self.dtype or "",
        ]
        return ", ".join(filter(None, parts)) or "as it was loaded"

    def to_dict(self) -> dict[str, Any]:
        """What differs from a teacher as it was loaded, as an object of JSON."""
        return {name: value for name, value in asdict(self).items() if value != getattr(PLAIN, name)}

    @classmethod
    def of(cls, known: Mapping[str, Any] | None) -> "Execution":
        """From `to_dict`; None is of one that runs as it was loaded.

        Raises:
            InputError: it is no such object, or a later version's.
        """
        known = {} if known is None else known
        kinds = {"folded": int, "channels_last": bool, "compiled": int, "dtype": str}
        is_known = isinstance(known, Mapping) and all(type(value) is kinds.get(name) for name, value in known.items())
        is_known = is_known and min(known.get("folded", 0), known.get("compiled", 0)) >= 0
        if not is_known or known.get("dtype", "bfloat16") not in ("bfloat16", "float16"):
            names = ", ".join(field.name for field in fields(cls))
            raise InputError(
                f"how a teacher runs is said by {names}, got {brief(known)}: it is damaged, or of a later "
                "version: update hf_deit"
            )
        return cls(**known)


PLAIN = Execution()
