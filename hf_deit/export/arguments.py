"""What an export is asked for. Loads no library."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.arguments import COUNTS, check_ranges
from ..errors import InputError, not_one_of
from ..evaluation.arguments import KINDS_OF_WEIGHTS
from ..hub.export_record import FORMATS
from .int8 import MODES, check_int8


@dataclass(frozen=True)
class ExportArguments:
    """Which model is exported, to which formats, and on which images it is checked; see `hf-deit export --help`.

    Raises:
        InputError: a format or a choice that there is not, a number outside its range, or an option without effect.
    """

    model: str
    to: Sequence[str]
    weights: str = "published"
    int8: str | None = None
    calibration_dir: str | None = None
    exclude_layers: Sequence[str] = ()
    check_dir: str | None = None
    check_images: int = 500
    output_dir: str | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("there is nothing to export: give --model, a folder or a Hub id")
        if not self.to:
            raise InputError(f"there is no format to export to: give --to, with one or more of {', '.join(FORMATS)}")
        for name in self.to:
            if name not in FORMATS:
                several = name.replace(",", " ").split()
                if len(several) > 1:
                    raise InputError(
                        f"--to takes names with spaces between them, got {name!r}: --to {' '.join(several)}"
                    )
                raise InputError(not_one_of("--to", name, FORMATS))
        check_ranges(self, {COUNTS: ("check_images",)})
        if self.weights not in KINDS_OF_WEIGHTS:
            raise InputError(not_one_of("--weights", self.weights, KINDS_OF_WEIGHTS))
        if self.int8 is not None and self.int8 not in MODES:
            raise InputError(not_one_of("--int8", self.int8, MODES))
        if self.int8 is not None:
            check_int8(self.to, self.int8)
        if self.int8 != "static" and self.calibration_dir is not None:
            raise InputError(
                f"--calibration_dir {self.calibration_dir!r} is for --int8 static, got --int8 {self.int8}: give that, "
                "or leave it out"
            )
        if self.exclude_layers and self.int8 is None:
            raise InputError("--exclude_layers keeps layers in float32 where others become int8: give --int8, too")

    @property
    def formats(self) -> tuple[str, ...]:
        """Each once, in the order of `FORMATS`."""
        return tuple(name for name in FORMATS if name in self.to)

    @property
    def folder(self) -> str:
        """The folder that the formats' folders lie in: by default the model's, if that is one that can be written.

        Weights that a run keeps beside those that it publishes never lie in its folder, as others would be taken for
        theirs.
        """
        if self.output_dir is not None:
            return os.path.expanduser(self.output_dir)
        folder = os.path.expanduser(self.model)
        is_own = os.path.isdir(folder) and os.access(folder, os.W_OK)
        if is_own and self.weights == "published":
            return folder
        name = os.path.basename(os.path.abspath(folder)) if os.path.isdir(folder) else folder.split("/")[-1]
        name = name.partition("@")[0] + ("" if self.weights == "published" else f"-{self.weights}")
        return os.path.join("exports", name)
