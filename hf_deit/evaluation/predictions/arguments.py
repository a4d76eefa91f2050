"""What predictions are asked for. Loads no library."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ...data.arguments import COUNTS, check_ranges
from ...errors import InputError, did_you_mean, not_one_of, shortlist
from ..arguments import DTYPES, KINDS_OF_WEIGHTS

SUFFIXES = (".csv", ".parquet", ".jsonl")
LINKS = ("symbolic", "hard", "copy")
_BROKEN = ".broken"
_RANGES = {
    COUNTS: ("top_k", "image_size", "batch_size"),
    "[0, 1024]": ("num_workers",),
    "[0, 1]": ("min_probability",),
    "(0, 1]": ("crop_ratio",),
}
_CHOICES = {"weights": KINDS_OF_WEIGHTS, "dtype": DTYPES, "link": LINKS}


@dataclass(frozen=True)
class PredictionArguments:
    """Which model answers to which images, and what becomes of it; see `hf-deit predict --help`.

    Attributes:
        model: a folder or a Hub id, "my/model@revision" for another revision than main.
        images: folders, image files, patterns such as "photos/*.jpg", text files of paths (.txt), "-" for paths on
            standard input; or, alone, a data set: a Hub id, a local one, or "sklearn:digits".
        split, dataset_config_name, dataset_revision, image_column_name: of the data set. A folder with a split is one.
        output: the table's file, a name with one of `SUFFIXES`.
        top_k: how many classes of each image are named, at most all.
        heads: whether both heads' answers stand beside the fused one.
        sort_into: a folder in which each class gets a folder of links to its images; None for none.
        min_probability: in [0, 1], of the images that are sorted; the others are left aside.
        link: of `LINKS`; where the file system has no symbolic links, the next of them is made.
        weights: of a run, of `KINDS_OF_WEIGHTS`.
        image_size, crop_ratio, dtype: how images are shown, see `Showing`.
        batch_size, num_workers, use_cpu: see `Asking`.
        overwrite: whether what lies at `output` of other images, models or options may be replaced.

    Raises:
        InputError: a number outside its range, a choice that there is not, or an option that would do nothing.
    """

    model: str
    images: Sequence[str]
    split: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    image_column_name: str | None = None
    output: str = "predictions.csv"
    top_k: int = 5
    heads: bool = False
    sort_into: str | None = None
    min_probability: float | None = None
    link: str | None = None
    weights: str = "published"
    image_size: int | None = None
    crop_ratio: float | None = None
    dtype: str = "float32"
    batch_size: int = 64
    num_workers: int | None = None
    use_cpu: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("there is no model: give --model, a folder or a Hub id")
        if not self.images:
            raise InputError("there are no images: give --images, folders, files, patterns or a data set")
        check_ranges(self, _RANGES)
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in choices:
                raise InputError(not_one_of(name, value, choices))
        suffix = os.path.splitext(self.output)[1]
        if suffix.lower() not in SUFFIXES or not os.path.basename(self.output):
            raise InputError(
                f"--output {self.output!r} must end in {shortlist(SUFFIXES)}{did_you_mean(suffix, SUFFIXES)}"
            )
        if os.path.splitext(self.output)[0].lower().endswith(_BROKEN):
            raise InputError(f"--output {self.output!r} is what the list of broken files is called: give another name")
        if self.sort_into is None:
            for name in ("min_probability", "link"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} is of the folders that --sort_into makes: give it, too")

    @property
    def path(self) -> str:
        """The table's file."""
        return os.path.expanduser(self.output)

    @property
    def broken_path(self) -> str:
        """The file that lists what could not be used, beside the table and in its format."""
        return _BROKEN.join(os.path.splitext(self.path))

    @property
    def kept_path(self) -> str:
        """The hidden folder beside the table in which answers are kept until all are there."""
        folder, name = os.path.split(self.path)
        return os.path.join(folder, f".{name}.hf_deit")
