"""What there is to learn from: found in a folder or a data set, counted, and told in a table."""

import hashlib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ...data.arguments import DIGITS, DataArguments
from ...data.columns import image_paths, stored_column
from ...data.decoding import fault_of_header
from ...data.folders import has_folders, is_left_out, load_class_folders, load_images, splits_in, walk_files
from ...data.idx import is_idx_folder
from ...data.load import load_data
from ...data.parallel import in_chunks
from ...errors import InputError, counted, shortlist
from ...hub.looks import rows_of
from ...models.class_names import composed
from .options import DistilOptions

FEW = 10  # training images of a class, of which hardly anything can be learnt
_MOST_HASHED = 4 << 30  # bytes
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_UNLABELLED = re.compile(r"un-?_?labell?ed", re.IGNORECASE)
_PART_OF = {"train_dir": "training", "validation_dir": "validation", "test_dir": "test", "unlabeled_dir": "unlabelled"}


@dataclass
class Part:
    """Some of the images.

    Attributes:
        name: "training", "validation", "test" or "unlabelled".
        files: of folders; empty of data sets.
        count: how many images; None if that is not known before they are downloaded.
        classes: images of each class; empty where they have no labels.
        sizes: (N, 2) int, width and height of those that can be read.
        faults: why files cannot be used, by path.
    """

    name: str
    files: list[str] = field(default_factory=list)
    count: int | None = None
    classes: Counter[str] = field(default_factory=Counter)
    sizes: np.ndarray = field(default_factory=lambda: np.empty((0, 2), int))
    faults: dict[str, str] = field(default_factory=dict)


@dataclass
class Found:
    """All images that a command names.

    Attributes:
        options: of hf-deit train that name them, by name.
        parts: of them.
        fingerprint: what tells them from others; None of a data set.
        copies: files that are the same, byte by byte, as another one; None if nobody has looked.
        leaked: test or validation images that are training images, too.
        note: how the folder was understood, where that may be in doubt; or "".
    """

    options: dict[str, str]
    parts: list[Part]
    fingerprint: str | None = None
    copies: int | None = None
    leaked: int = 0
    note: str = ""

    def part(self, name: str) -> Part | None:
        """The part of that name."""
        return next((part for part in self.parts if part.name == name), None)

    @property
    def label_names(self) -> list[str] | None:
        """The classes, in the order of their labels; None if no image has a label, or it is not known yet."""
        training = self.part("training")
        return list(training.classes) if training is not None and training.classes else None

    @property
    def are_labelled(self) -> bool:
        """Whether there are labelled images to train on."""
        return self.part("training") is not None

    @property
    def have_validation(self) -> bool:
        """Whether there are, or will be, images to validate with: some of labelled ones are held out."""
        return self.are_labelled or self.part("validation") is not None

    @property
    def validation_fraction(self) -> float | None:
        """What must be held out of few training images for each class to be among them; None where the usual does."""
        training = self.part("training")
        if training is None or not training.classes or self.part("validation") is not None:
            return None
        usual, number, classes = DataArguments.validation_fraction, training.count, len(training.classes)
        return None if math.ceil(usual * number) >= classes else math.ceil(100 * classes / number) / 100

    def __str__(self) -> str:
        rows = [_TITLES, *map(_row, self.parts)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [self.note] if self.note else []
        training = self.part("training")
        few = {} if training is None else {name: n for name, n in training.classes.items() if n < FEW}
        if few:
            named = shortlist(f"{name} ({n})" for name, n in few.items())
            lines.append(f"classes with fewer than {FEW} training images: {named}")
        if self.validation_fraction is not None:
            lines.append(f"{self.validation_fraction:.0%} of them are held out to validate with, one of each class")
        if self.copies:
            lines.append(f"{counted(self.copies, 'file')} with the same bytes as another one")
        if self.leaked:
            lines.append(
                f"warning: {counted(self.leaked, 'image')} to validate or test with can be learnt by heart, as there "
                "are the same to train on: remove them there, or accuracies say too much"
            )
        return "\n".join(lines)


_TITLES = ("images", "number", "classes", "fewest of a class", "width x height", "broken")


def _row(part: Part) -> tuple[str, ...]:
    few, sizes = "", ""
    if part.classes:
        name, number = min(part.classes.items(), key=lambda item: item[1])
        few = f"{number:,} ({name})"
    if len(part.sizes):
        low, middle, high = (part.sizes.min(axis=0), np.median(part.sizes, axis=0).astype(int), part.sizes.max(axis=0))
        same = (low == high).all()
        sizes = "{} x {}".format(*low) if same else "{} x {} … {} x {} … {} x {}".format(*low, *middle, *high)
    number = "unknown" if part.count is None else f"{part.count:,}"
    return part.name, number, str(len(part.classes) or ""), few, sizes, str(len(part.faults) or "")


def look_at(options: DistilOptions) -> Found:
    """Finds, counts and checks the images, as far as that needs no download.

    Raises:
        InputError: there are none, files cannot be used, or labels and options do not go together.
    """
    found = _of_data_set(options) if options.dataset_name else _of_folders(options)
    training = found.part("training")
    if training is not None and training.classes and sum(map(bool, training.classes.values())) < 2:
        raise InputError(
            f"a classifier needs images of at least two classes, got {shortlist(training.classes)} alone: give a "
            "folder for each class, or, of images without labels, --unlabeled_dir and --class_names"
        )
    single = [name for name, number in training.classes.items() if number == 1] if training is not None else []
    if single and found.part("validation") is None:
        raise InputError(
            f"there is a single image to train on of {shortlist(single)}, and none to validate with: give two or "
            "more of each class, or --validation_dir"
        )
    _check_names(options, found)
    return found


def _check_names(options: DistilOptions, found: Found) -> None:
    """Refuses names of classes that the labels of the images contradict."""
    labels, names = found.label_names, list(options.class_names)
    if not names or labels is None:
        return
    if {composed(name) for name in names} != {composed(name) for name in labels}:
        raise InputError(
            f"--class_names {shortlist(names)} are not the labels of the images, {shortlist(labels)}: leave them out, "
            "or give --class_prompts with a text for each label; images without labels are given as --unlabeled_dir"
        )


def _of_data_set(options: DistilOptions) -> Found:
    name = options.dataset_name
    named = {"dataset_name": name, "unlabeled_dir": options.unlabeled_dir}
    named |= {"validation_dir": options.validation_dir, "test_dir": options.test_dir}
    named = {option: value for option, value in named.items() if value}
    if name != DIGITS and not os.path.exists(name):
        rows = rows_of(name, DataArguments.train_split)
        training = Part("training", count=None if rows is None else rows.count)
        return Found(named, [training, *_unlabelled(options)], note="a data set is looked at when it is downloaded")
    data = load_data(DataArguments(**named), on_bad_image="skip", check_images="none")
    parts = [
        Part(part, count=len(rows), classes=_classes(rows))
        for part, rows in (("training", data.train), ("validation", data.validation), ("test", data.test))
        if rows is not None
    ]
    return Found(named, [*parts, *_unlabelled(options)])


def _unlabelled(options: DistilOptions) -> list[Part]:
    return [_part("unlabeled_dir", options.unlabeled_dir)] if options.unlabeled_dir else []


def _of_folders(options: DistilOptions) -> Found:
    named, note = _folders_of(options)
    given = {"unlabeled_dir": options.unlabeled_dir, "validation_dir": options.validation_dir}
    given["test_dir"] = options.test_dir
    for option, folder in given.items():
        if folder and option in named:
            raise InputError(f"there are two: --{option} {folder!r}, and {named[option]!r} in {options.images!r}")
        named |= {option: folder} if folder else {}
    for option, folder in named.items():
        if not os.path.isdir(folder):
            raise InputError(f"no folder {folder!r}{_of_option(option, options)}: expected one with images")
    place = os.path.join(os.path.realpath(options.output_dir), "")
    for option, folder in named.items():
        if place.startswith(os.path.join(os.path.realpath(folder), "")):
            raise InputError(
                f"the output folder {options.output_dir!r} would lie among the images of {folder!r}"
                f"{_of_option(option, options)}, and be taken for some: give another --output_dir"
            )
    if "train_dir" not in named and "unlabeled_dir" not in named:
        raise InputError(f"there is nothing to train on in {options.images!r}: expected a folder train, or of classes")
    names = None
    parts = []
    for option in sorted(named, key=[*_PART_OF].index):
        parts.append(_part(option, named[option], names))
        names = list(parts[0].classes) or None if option == "train_dir" else names
    copies, leaked = _copies(parts)
    return Found(named, parts, _fingerprint(named, parts), copies, leaked, note)


def _of_option(option: str, options: DistilOptions) -> str:
    return f" (--{option})" if getattr(options, option, None) else ""


def _folders_of(options: DistilOptions) -> tuple[dict[str, str], str]:
    """The folders that IMAGES stands for, by the option of hf-deit train that takes them, and what is to be said."""
    folder = options.images
    if not folder:
        return {}, ""
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "is not there"
        is_id = _HUB_ID.fullmatch(folder) and not os.path.exists(folder)
        hint = f"; a data set on the Hub is given as --dataset_name {folder}" if is_id else ""
        raise InputError(f"the folder of images {folder!r} {what}: expected one with a folder per class{hint}")
    if is_idx_folder(folder):
        raise InputError(f"{folder!r} is a data set in MNIST's format, of no image files: give it as --dataset_name")
    inside = {name: os.path.join(folder, name) for name in sorted(os.listdir(folder))}
    splits = splits_in(folder)
    apart = [name for name in inside if _UNLABELLED.fullmatch(name) and os.path.isdir(inside[name])]
    if len(apart) > 1 or (apart and not splits):
        others = [name for name in inside if name not in apart and os.path.isdir(inside[name])]
        rest = inside[others[0]] if len(others) == 1 else "the folder of the labelled ones"
        raise InputError(f"{folder!r} holds {apart[0]}, no class: give {rest} and --unlabeled_dir {inside[apart[0]]}")
    if splits:
        for names in splits[:3]:
            if len(names) > 1:
                raise InputError(
                    f"{folder!r} holds several folders of one split, {shortlist(names)}: give one of them"
                )
        kinds = zip(("train_dir", "validation_dir", "test_dir", "unlabeled_dir"), (*splits[:3], apart), strict=True)
        return {option: inside[names[0]] for option, names in kinds if names}, ""
    if not any(files for _, files in walk_files(folder)):
        raise InputError(f"there are no images in {folder!r}")
    if not has_folders(folder):
        return {"unlabeled_dir": folder}, "the images have no labels, as they lie in no folders of classes"
    files = (name for name in inside if not is_left_out(name) and os.path.isfile(inside[name]))
    if loose := next((name for name in files if fault_of_header(inside[name]) is None), None):
        note = f"the images have no labels, as {loose} lies beside folders, in none: if they are classes, move it away"
        return {"unlabeled_dir": folder}, note
    if options.class_names and not _are_classes(folder, options.class_names):
        return {"unlabeled_dir": folder}, "the folders are taken for no classes, as --class_names names others"
    return {"train_dir": folder}, ""


def _are_classes(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder in a folder is called as one of some classes."""
    found = {composed(entry.name) for entry in os.scandir(folder) if entry.is_dir()}
    return bool(found & {composed(name) for name in names})


def _part(option: str, folder: str, names: list[str] | None = None) -> Part:
    """The images in a folder.

    Args:
        names: the classes, where the folder has one for each.
    """
    name = _PART_OF[option]
    if option == "unlabeled_dir":
        rows = load_images(folder, "skip", check_images="none")
    else:
        rows, _ = load_class_folders(folder, "skip", names, option=option, check_images="none")
    files = image_paths(rows, "image").to_pylist()
    sizes, faults = [], {}
    for chunk in in_chunks(_look, files, size=256, total=len(files), title=f"looking at the {name} images"):
        for path, found in chunk:
            if isinstance(found, str):
                faults[path] = found
            else:
                sizes.append(found)
    classes = Counter() if option == "unlabeled_dir" else _classes(rows)
    return Part(name, files, len(files), classes, np.array(sizes, int).reshape(-1, 2), faults)


def _look(paths: list[str]) -> list[tuple[str, tuple[int, int] | str]]:
    """Width and height of images, or why they cannot be used."""
    found: list[tuple[str, Any]] = []
    for path in paths:
        fault = fault_of_header(path)
        if fault is None:
            try:
                with Image.open(path) as image:
                    found.append((path, image.size))
                continue
            except OSError as error:
                fault = (str(error), "")
        found.append((path, fault[0]))
    return found


def _classes(rows: datasets.Dataset) -> Counter[str]:
    """Images by class, of all classes, in the order of their labels."""
    names = rows.features["label"].names
    numbers = np.bincount(stored_column(rows, "label").to_numpy(), minlength=len(names))
    return Counter(dict(zip(names, map(int, numbers), strict=True)))


def _copies(parts: Sequence[Part]) -> tuple[int | None, int]:
    """How many files have the bytes of another, and how many of those to validate or test with, of a training one."""
    by_size = defaultdict(list)
    for part in parts:
        for path in part.files:
            by_size[os.path.getsize(path)].append((part.name, path))
    alike = {size: files for size, files in by_size.items() if len(files) > 1}
    if sum(size * len(files) for size, files in alike.items()) > _MOST_HASHED:
        return None, 0
    by_content = defaultdict(list)
    for files in alike.values():
        for name, path in files:
            with open(path, "rb") as file:
                by_content[hashlib.file_digest(file, "blake2b").digest()].append(name)
    leaked = sum(
        sum(name in ("validation", "test") for name in names) for names in by_content.values() if "training" in names
    )
    return sum(len(names) - 1 for names in by_content.values()), leaked


def _fingerprint(named: dict[str, str], parts: Sequence[Part]) -> str:
    """What tells images from others: names and sizes of their files, wherever their folder lies."""
    digest = hashlib.sha256()
    folders = {name: named[option] for option, name in _PART_OF.items() if option in named}
    for part in parts:
        for path in sorted(part.files):
            inside = os.path.relpath(path, folders[part.name])
            digest.update(f"{part.name}\0{inside}\0{os.path.getsize(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"
