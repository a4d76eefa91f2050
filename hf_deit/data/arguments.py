"""Which images a run takes, as its command line names them. Loads no library."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

from ..errors import InputError

DIGITS = "sklearn:digits"  # in place of a data set's name
# A data set's name may be that of a local folder, too.
_PATHS = ("dataset_name", "train_dir", "validation_dir", "test_dir", "unlabeled_dir", "unlabeled_dataset_name")

COUNTS, SEEDS = "[1, 2147483648)", "[0, 4294967296)"  # what the libraries' integers hold
# Where numbers must lie, by interval.
_RANGES = {
    COUNTS: ("labels_kept", "images_per_epoch", "shuffle_buffer_size"),
    SEEDS: ("validation_seed",),
    "(0, 1)": ("validation_fraction",),
}


@dataclass
class DataArguments:
    """Which images to train on, to validate and to test with; `hf_deit.data.load.load_data` loads them.

    Folders and local data sets may be given as `os.PathLike`; the fields then hold them as text.

    Raises:
        InputError: a number outside its range, or something else where one is expected.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id or local path for load_dataset, a folder in MNIST's format, or sklearn:digits."},
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
    test_split: str | None = field(
        default=None,
        metadata={"help": "Split to measure the trained model on, once, at the very end: it is not looked at before."},
    )
    image_column_name: str | None = field(default=None, metadata={"help": "If several columns hold images."})
    label_column_name: str | None = field(
        default=None, metadata={"help": "If no column, or several, are of type ClassLabel."}
    )
    train_dir: str | None = field(default=None, metadata={"help": "Instead of a data set: one folder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, to validate with."})
    test_dir: str | None = field(
        default=None, metadata={"help": "The same, to measure the trained model on, once, at the very end."}
    )
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
                if not isinstance(path, str | os.PathLike):
                    raise InputError(f"{name} must be a name or a path, got {path!r}")
                setattr(self, name, os.fspath(path))
        check_ranges(self, _RANGES)


def check_ranges(arguments: object, ranges: Mapping[str, Sequence[str]]) -> None:
    """Refuses numbers outside their ranges, those that are not finite among them; None is no number.

    Args:
        arguments: with fields of these names.
        ranges: names of fields by interval, such as "[0, 1)" or "(0, ∞)".

    Raises:
        InputError: names the first of them.
    """
    for interval, names in ranges.items():
        lowest, highest = (float(end.replace("∞", "inf")) for end in interval[1:-1].split(", "))
        for name in names:
            value = getattr(arguments, name)
            if value is None:
                continue
            if not isinstance(value, Real):
                raise InputError(f"{name} must be a number in {interval}, got {value!r}")
            is_above = value >= lowest if interval[0] == "[" else value > lowest
            is_below = value <= highest if interval[-1] == "]" else value < highest
            if not (is_above and is_below):
                raise InputError(f"{name} must lie in {interval}, got {value}")


def why_unused(name: str, options: Mapping[str, Any]) -> str | None:
    """Why an option about the images does nothing beside the others, and what to do; None if it does something.

    Args:
        name: of a field of `DataArguments`.
        options: all fields by name. Where they name no source of images, or two, every option may still get a meaning.
    """
    source, use = _source_of(options), _USES.get(name)
    if source is None or use is None or use.needs in _facts_of(options, source):
        return None
    remedy = use.instead.get(source, "leave it out").format(**options)
    return f"--{name} {use.about}, got {options[name]!r} beside {_SOURCES[source].format(**options)}: {remedy}"


# Where images come from, as options say it. Unlabelled images may lie beside all but a stream.
_SOURCES = {
    "digits": "--dataset_name {dataset_name}",
    "data set": "the data set {dataset_name!r}",
    "stream": "the stream of {dataset_name!r}",
    "folders": "--train_dir {train_dir!r}",
    "unlabelled": "images without labels alone",
}


def _source_of(options: Mapping[str, Any]) -> str | None:
    """The one source of images that options name; None if there is none, or two that exclude each other."""
    dataset_name, train_dir = options["dataset_name"], options["train_dir"]
    if dataset_name and train_dir:
        return None
    if dataset_name:
        return "digits" if dataset_name == DIGITS else "stream" if options["streaming"] else "data set"
    if train_dir:
        return "folders"
    return "unlabelled" if options["unlabeled_dir"] or options["unlabeled_dataset_name"] else None


def _facts_of(options: Mapping[str, Any], source: str) -> set[str]:
    """What there is besides the source, of all that an option can need."""
    facts = {source}
    if source in ("data set", "stream"):
        facts |= {"splits"} if os.path.exists(options["dataset_name"]) else {"splits", "commits"}
    if source in ("folders", "unlabelled"):
        facts.add("folders beside")
    if source in ("digits", "data set", "folders"):
        facts.add("rows with labels")
    others = {"data set": options["validation_split"], "folders": options["validation_dir"]}
    if not others.get(source, True):
        facts.add("held out")
    if name := options["unlabeled_dataset_name"]:
        facts |= {"unlabelled splits"} if os.path.exists(name) else {"unlabelled splits", "unlabelled commits"}
    return facts


class _Use(NamedTuple):
    """What an option is about.

    Attributes:
        needs: what must be there for it to do anything; see `_facts_of`.
        about: what it does, in words.
        instead: what to do where that is not there, by the source that is; else it is to be left out.
    """

    needs: str
    about: str
    instead: Mapping[str, str] = {}


_VALIDATION_DIR, _TEST_DIR = "give --validation_dir, or leave it out", "give --test_dir, or leave it out"
_HELD_OUT = _Use(
    "held out",
    "is about training images that are held out to validate with",
    {
        "digits": "360 images of their own are to validate with, so leave it out",
        "data set": "--validation_split {validation_split!r} is given, so drop one of them",
        "stream": "nothing is held out of one, so name a split with --validation_split",
        "folders": "--validation_dir {validation_dir!r} is given, so drop one of them",
        "unlabelled": "without labels none can be, so give --validation_dir",
    },
)
# What is not listed names a source itself.
_USES = {
    "dataset_config_name": _Use("splits", "names a configuration of a data set"),
    "dataset_revision": _Use("commits", "is of a data set on the Hub"),
    "train_split": _Use(
        "splits", "names a split of a data set", {"folders": "the whole folder is trained on, so leave it out"}
    ),
    "validation_split": _Use(
        "splits", "names a split of a data set", {"folders": _VALIDATION_DIR, "unlabelled": _VALIDATION_DIR}
    ),
    "image_column_name": _Use("splits", "names a column of a data set"),
    "label_column_name": _Use(
        "splits", "names a column of a data set", {"folders": "the folders' names are the labels, so leave it out"}
    ),
    "test_split": _Use(
        "splits",
        "names a split of a data set",
        {
            "digits": "360 images are all that is held out of them, and to validate with, so leave it out; hf-deit "
            "evaluate looks at these",
            "folders": _TEST_DIR,
            "unlabelled": _TEST_DIR,
        },
    ),
    "validation_dir": _Use(
        "folders beside",
        "goes with --train_dir, or with unlabelled images alone",
        {
            "digits": "360 images of their own are to validate with (no --validation_split either), so leave it out",
            **dict.fromkeys(("data set", "stream"), "name a split of it with --validation_split, or leave both out"),
        },
    ),
    "test_dir": _Use(
        "folders beside",
        "goes with --train_dir, or with unlabelled images alone",
        {
            "digits": "360 images are all that is held out of them, and to validate with, so leave it out; hf-deit "
            "evaluate looks at a folder with --images_dir",
            **dict.fromkeys(("data set", "stream"), "name a split of it with --test_split"),
        },
    ),
    "unlabeled_dataset_revision": _Use("unlabelled commits", "is of an --unlabeled_dataset_name on the Hub"),
    "unlabeled_split": _Use("unlabelled splits", "is of the data set that --unlabeled_dataset_name names"),
    "labels_kept": _Use("rows with labels", "needs labelled training images that are no stream"),
    "streaming": _Use("splits", "needs a --dataset_name for load_dataset, and no unlabelled images beside it"),
    "images_per_epoch": _Use("stream", "is for --streaming"),
    "shuffle_buffer_size": _Use("stream", "is for --streaming"),
    "validation_fraction": _HELD_OUT,
    "validation_seed": _HELD_OUT,
}
