"""What an evaluation is asked for. Loads no library."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..data.arguments import COUNTS, SEEDS, check_ranges
from ..errors import InputError, not_one_of

# The analyses, in the order of a report. Speed takes the whole device for minutes, and is asked for with --speed.
SECTIONS = ("accuracy", "calibration", "agreement", "mistakes", "tokens", "attention", "speed", "run_curves")
DTYPES = ("float32", "bfloat16", "float16")
KINDS_OF_WEIGHTS = ("published", "raw", "ema")  # of a run
WEIGHTS = (*KINDS_OF_WEIGHTS, "both")
MOST_EXPLAINED = 24  # images, of which each is a line of one picture, or two
_RANGES = {
    COUNTS: ("image_size", "batch_size", "speed_batch_size"),
    "[0, 1024]": ("num_workers",),
    f"[1, {MOST_EXPLAINED}]": ("explain_images",),
    "(0, 1]": ("crop_ratio",),
    SEEDS: ("seed",),
}
_CHOICES = {"weights": WEIGHTS, "dtype": DTYPES, "on_bad_image": ("stop", "skip")}
# The section that an option is of: without it, it would do nothing.
_OPTIONS_OF = {
    "attention": ("explain_images", "explain_rows", "attention_heads"),
    "speed": ("speed_batch_size",),
}
_REPORT = "report"


@dataclass(frozen=True)
class EvaluationArguments:
    """Which models are evaluated, on which images, and what is asked of them; see `hf-deit evaluate --help`.

    Raises:
        InputError: there is nothing to evaluate, a number outside its range, or a choice that there is not.
    """

    model: str | None = None
    compare: Sequence[str] = ()
    teacher: str | None = None
    weights: str = "published"
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    split: str | None = None
    images_dir: str | None = None
    image_column_name: str | None = None
    label_column_name: str | None = None
    label_file: str | None = None
    label_set: str | None = None
    class_indices: str | None = None
    image_size: int | None = None
    crop_ratio: float | None = None
    dtype: str = "float32"
    use_cpu: bool = False
    batch_size: int = 64
    num_workers: int | None = None
    on_bad_image: str = "stop"
    check_images: str = "headers"
    seed: int = 0
    output_dir: str | None = None
    sections: Sequence[str] = ()
    explain_images: int | None = None
    explain_rows: Sequence[int] = ()
    attention_heads: bool = False
    speed: bool = False
    speed_batch_size: int | None = None
    runs: Sequence[str] = field(default=())
    drop_answers: bool = False

    def __post_init__(self) -> None:
        others = [*self.compare, *([self.teacher] if self.teacher else [])]
        if self.model is None and others:
            raise InputError(f"{others[0]!r} is to be compared, and with nothing: give --model")
        if self.model is None and not self.runs:
            raise InputError("there is nothing to evaluate: give --model, a folder or a Hub id, or --runs, folders")
        check_ranges(self, _RANGES)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(not_one_of(name, getattr(self, name), choices))
        for name in self.sections:
            if name not in SECTIONS:
                raise InputError(not_one_of("sections", name, SECTIONS))
        if "run_curves" in self.sections and not self.runs:
            raise InputError("the section run_curves is of folders of runs: give --runs")
        for section, options in _OPTIONS_OF.items():
            given = [name for name in options if getattr(self, name)]
            if given and (self.model is None or not self.wants(section)):
                remedy = "--speed" if section == "speed" else f"--sections {section}"
                remedy = "--model" if self.model is None else remedy
                raise InputError(f"--{given[0]} is of the section {section}, which is not there: give {remedy}, too")
        if self.explain_images and self.explain_rows:
            raise InputError("--explain_images is a number of images to draw, --explain_rows chooses them: give one")
        if len(self.explain_rows) > MOST_EXPLAINED:
            raise InputError(f"--explain_rows takes at most {MOST_EXPLAINED} images, got {len(self.explain_rows)}")

    @property
    def report_dir(self) -> str:
        """The folder of the report: by default in the model's, if that is one that can be written."""
        if self.output_dir is not None:
            return os.path.expanduser(self.output_dir)
        folder = os.path.expanduser(self.model) if self.model else ""
        return os.path.join(folder, _REPORT) if os.path.isdir(folder) and os.access(folder, os.W_OK) else _REPORT

    def asks_for(self, section: str) -> bool:
        """Whether it is named, or an option is of it alone."""
        return section in self.sections or any(getattr(self, name) for name in _OPTIONS_OF.get(section, ()))

    def wants(self, section: str) -> bool:
        """Whether the report shall have a section."""
        if section == "run_curves":
            return bool(self.runs)
        if section == "speed" and self.speed:
            return True
        return section in self.sections if self.sections else section != "speed"
