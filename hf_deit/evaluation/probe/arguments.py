"""What a probe is asked for. Loads no library."""

import os
from dataclasses import dataclass

from ...data.arguments import COUNTS, DIGITS, SEEDS, DataArguments, check_ranges
from ...errors import InputError, not_one_of

PROBE_FILE = "probe.json"  # in a probe's folder: what it is worth
_RANGES = {
    COUNTS: ("batch_size",),
    "[2, 1000]": ("folds",),
    "[0, 1024]": ("num_workers",),
    SEEDS: ("seed",),
}
_CHOICES = {"on_bad_image": ("stop", "skip"), "check_images": ("all", "headers", "none")}


@dataclass(frozen=True)
class ProbeArguments:
    """Which backbone, and which images it shall tell apart; see `hf-deit probe --help`.

    Attributes:
        backbone: a Hub id, "my/model@revision" for another revision than main, or a folder.
        output_dir: of the classifier.
        dataset_name, dataset_config_name, dataset_revision, train_split, validation_split, test_split,
            image_column_name, label_column_name, train_dir, validation_dir, test_dir, labels_kept: see
            `hf_deit.data.arguments.DataArguments`. No training image is held out: all are learnt from, and
            cross-validated.
        horizontal_flip: whether each image is learnt from mirrored, too; None for yes, except of sklearn:digits.
        corner_crops: whether it is learnt from its four corners, too.
        folds: of cross-validation; None for 5, or one for each image of fewer.
        seed: of the folds, and of the labels that are kept.
        on_bad_image, check_images: see `hf_deit.data.load.load_data`.
        batch_size, num_workers, use_cpu: see `Asking`.
        overwrite: whether another probe in its folder may be replaced.

    Raises:
        InputError: there is no backbone, there are no images, or a number outside its range.
    """

    backbone: str
    output_dir: str = "outputs/probe"
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    image_column_name: str | None = None
    label_column_name: str | None = None
    train_dir: str | None = None
    validation_dir: str | None = None
    test_dir: str | None = None
    labels_kept: int | None = None
    horizontal_flip: bool | None = None
    corner_crops: bool = False
    folds: int | None = None
    seed: int = 0
    on_bad_image: str = "stop"
    check_images: str = "headers"
    batch_size: int = 64
    num_workers: int | None = None
    use_cpu: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.backbone:
            raise InputError("there is no backbone: give --backbone, a Hub id or a folder of transformers or timm")
        if not (self.train_dir or self.dataset_name):
            raise InputError(
                "there are no images to fit the probe on: give --train_dir, a folder of class folders, or "
                f'--dataset_name; "{DIGITS}" is a small data set that needs no download'
            )
        check_ranges(self, _RANGES)
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise InputError(not_one_of(name, value, choices))

    @property
    def data(self) -> DataArguments:
        """Which images."""
        names = (
            *("dataset_name", "dataset_config_name", "dataset_revision", "train_split", "validation_split"),
            *("test_split", "image_column_name", "label_column_name", "train_dir", "validation_dir", "test_dir"),
            "labels_kept",
        )
        return DataArguments(**{name: getattr(self, name) for name in names})

    @property
    def is_mirrored(self) -> bool:
        """Whether images may be mirrored: a mirrored digit is no digit."""
        return self.dataset_name != DIGITS if self.horizontal_flip is None else self.horizontal_flip

    @property
    def folder(self) -> str:
        """Of the classifier."""
        return os.path.expanduser(self.output_dir)
