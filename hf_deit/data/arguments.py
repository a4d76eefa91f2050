"""Which images a run takes, as its command line names them. Loads no library."""

import os
from dataclasses import dataclass, field

# A data set's name may be that of a local folder, too.
_PATHS = ("dataset_name", "train_dir", "validation_dir", "unlabeled_dir", "unlabeled_dataset_name")


@dataclass
class DataArguments:
    """Which images to train on and to validate with; `hf_deit.data.load.load_data` loads them.

    Folders and local data sets may be given as `os.PathLike`; the fields then hold them as text.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id or local path for load_dataset, or sklearn:digits."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to validate with. By default validation, valid or val, or if there is none a part of the "
            "training split; never test, as checkpoints are chosen with it."
        },
    )
    image_column_name: str | None = field(default=None, metadata={"help": "If several columns hold images."})
    label_column_name: str | None = field(
        default=None, metadata={"help": "If no column, or several, are of type ClassLabel."}
    )
    train_dir: str | None = field(default=None, metadata={"help": "Instead of a data set: one folder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, to validate with."})
    unlabeled_dir: str | None = field(
        default=None, metadata={"help": "Folder of images, at any depth, without labels: the teacher labels them."}
    )
    unlabeled_dataset_name: str | None = field(
        default=None, metadata={"help": "The same, as a Hub id or a local path for load_dataset."}
    )
    unlabeled_dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    unlabeled_split: str = field(default="train", metadata={"help": "Its split."})
    labels_kept: int | None = field(
        default=None,
        metadata={
            "help": "Treat all but so many training images, seeded and stratified, as unlabelled. Without a teacher "
            "the rest is left out."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read dataset_name as a stream; needs a validation split, and labels of type ClassLabel."},
    )
    images_per_epoch: int | None = field(
        default=None,
        metadata={"help": "Of a stream: how many views make an epoch. By default as many as it says it has images."},
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Of a stream: images to choose the next one from (encoded, in memory)."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Held out, seeded and stratified, if there is no validation split; in (0, 1)."}
    )
    validation_seed: int = field(default=0, metadata={"help": "Of that split; not the run's, to compare runs."})

    def __post_init__(self) -> None:
        for name in _PATHS:
            if (path := getattr(self, name)) is not None:
                setattr(self, name, os.fspath(path))
