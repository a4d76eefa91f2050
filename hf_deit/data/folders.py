"""Folders of images as data sets: one folder per class, or images without labels.

Files and folders whose name starts with a dot are left out, and so is what file managers leave beside images. Links
are followed.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Literal, NamedTuple

import datasets
import pyarrow as pa

from ..errors import InputError, escaped, shortlist
from ..models.class_names import check_distinct, composed, which_of
from .idx import is_idx_folder
from .image_table import BATCH_ROWS, check_and_keep, image_batch, kept_images
from .parallel import OncePerMachine, call

# What is hidden, and what Windows, macOS, network drives and archives leave beside images.
_IGNORED = re.compile(
    r"\..*|(?:eh)?thumbs(?:_vista)?\.db|desktop\.ini|picasa\.ini|icon\r|.*:(?:zone\.identifier|encryptable)"
    r"|__macosx|@eadir|#recycle|\$recycle\.bin|system volume information|lost\+found",
    re.IGNORECASE | re.DOTALL,
)
_TRAINING, _VALIDATION = "train|training|trn", "val|valid|validation|dev|eval|evaluation"
_TEST = "test|testing|tst|holdout"
_OF_A_SPLIT = "(?:[-_. ]?(?:set|split|data|images|imgs|[0-9]+))?"  # "train2017", "val_images"


def load_class_folders(
    folder: str | os.PathLike[str],
    on_bad_image: Literal["stop", "skip"],
    names: list[str] | None = None,
    *,
    option: str = "train_dir",
    check_images: Literal["all", "headers", "none"] = "headers",
    once_per_machine: OncePerMachine = call,
) -> tuple[datasets.Dataset, list[str]]:
    """The images in `folder`/CLASS/…, at any depth, labelled by the names of the class folders.

    Args:
        folder: holds one folder per class.
        on_bad_image: whether files that cannot be used may be left to the training ("skip").
        names: of the labels, by index; by default those of the folders found, in alphabetical order.
        option: that names the folder, for the messages.
        check_images: how far files are looked into; see `load_data`.
        once_per_machine: see `load_data`.

    Returns:
        A data set with the columns "image" and "label" of types `Image` and `ClassLabel`, and the names of its labels.

    Raises:
        InputError: there is no such folder, it has no folders, or those of splits, a class is empty or not among
            `names`, files cannot be used, or their names are not UTF-8.
    """
    folder = os.fspath(folder)

    def read() -> tuple[list[str], str | None]:
        found = _class_names(folder, names, option)
        listed = _table(_class_files(folder, found, names or found), folder)
        return found, check_and_keep(listed, folder, on_bad_image=on_bad_image, check_images=check_images)

    found, file = once_per_machine(read)
    known = names or found
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=known)})
    dataset = kept_images(file, features)
    if dataset is None:
        dataset = _in_memory(_table(_class_files(folder, found, known), folder), features)
    return dataset, known


def has_folders(folder: str | os.PathLike[str]) -> bool:
    """Whether there are folders in a folder, as those of classes are.

    Raises:
        InputError: it cannot be read.
    """
    return bool(_folders_in(os.fspath(folder)))


def load_images(
    folder: str | os.PathLike[str],
    on_bad_image: Literal["stop", "skip"],
    *,
    option: str = "unlabeled_dir",
    check_images: Literal["all", "headers", "none"] = "headers",
    once_per_machine: OncePerMachine = call,
) -> datasets.Dataset:
    """All images in a folder, at any depth, as a data set with the column "image" alone.

    Args:
        folder: may hold folders.
        on_bad_image, option, check_images, once_per_machine: see `load_class_folders`.

    Raises:
        InputError: there is no such folder, it is empty or holds the folders of splits, files cannot be used, or their
            names are not UTF-8.
    """
    folder = os.fspath(folder)

    def read() -> str | None:
        if not os.path.isdir(folder):
            raise InputError(f"no folder {folder!r}: expected one with images")
        _refuse_idx(folder, "unlabeled_dataset_name" if option == "unlabeled_dir" else "dataset_name")
        _refuse_splits(folder, _folders_in(folder), option)
        listed = _table(_image_files(folder), folder)
        return check_and_keep(listed, folder, on_bad_image=on_bad_image, check_images=check_images)

    features = datasets.Features({"image": datasets.Image()})
    dataset = kept_images(once_per_machine(read), features)
    return _in_memory(_table(_image_files(folder), folder), features) if dataset is None else dataset


def list_class_folders(folder: str | os.PathLike[str]) -> tuple[list[str], Iterator[list[str]]]:
    """The names of the classes in a folder as `load_class_folders` takes it, and the paths of their files, in runs.

    Nothing is opened.

    Raises:
        InputError: see `load_class_folders`; also when the runs are gone through.
    """
    folder = os.fspath(folder)
    found = _class_names(folder, None, "train_dir")
    return found, (paths for paths, _ in _class_files(folder, found, found))


def list_images(folder: str | os.PathLike[str]) -> Iterator[list[str]]:
    """The paths of the files in a folder as `load_images` takes it, in runs. Nothing is opened.

    Raises:
        InputError: there is no such folder, or nothing in it.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder!r}: expected one with images")
    return (paths for paths, _ in _image_files(folder))


def _class_names(folder: str, names: list[str] | None, option: str) -> list[str]:
    """The folders of the classes, in the order of their labels; arguments and errors as of `load_class_folders`."""
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder!r}: expected one with a folder of images per class")
    _refuse_idx(folder, "dataset_name")
    found = _folders_in(folder)
    if not found:
        raise InputError(f"{folder!r} has no folders in it: expected one folder of images per class")
    found.sort(key=composed)  # the same order wherever the folders are copied to
    check_distinct(found, f"{folder!r}")
    _refuse_splits(folder, found, option)
    _refuse_other_encodings(_not_utf8([os.path.join(folder, name) for name in found]), folder)
    if names is not None:
        known = set(map(composed, names))
        unknown = [name for name in found if composed(name) not in known]
        if unknown:
            raise InputError(
                f"{folder!r} has classes that the training folder has not: {shortlist(unknown)}"
                f"{which_of(unknown[0], names)}"
            )
    return found


def _refuse_idx(folder: str, option: str) -> None:
    if is_idx_folder(folder):
        raise InputError(f"{folder!r} is a data set in MNIST's format and holds no image files: give it as --{option}")


def _class_files(folder: str, found: list[str], names: list[str]) -> Iterator[tuple[list[str], int]]:
    """Paths and their label: of each class in turn, of which the files of a folder come before those of its folders.

    Raises:
        InputError: a class has none.
    """
    top, empty = [folder_identity(folder)], []
    index_of = {composed(name): index for index, name in enumerate(names)}
    for name in found:
        files: dict[str, list[str]] = {}
        for inside, run in walk_files(os.path.join(folder, name), top):
            files.setdefault(inside, []).extend(run)
        if not files:
            empty.append(name)
        for inside in sorted(files):
            yield _paths(inside, files[inside]), index_of[composed(name)]
    if empty:
        raise InputError(f"class folders without images in {folder!r}: {', '.join(empty)}. Fill or remove them")


def _image_files(folder: str) -> Iterator[tuple[list[str], None]]:
    """Paths, without a label, in the order of their names.

    Raises:
        InputError: there are none.
    """
    is_empty = True
    for inside, files in walk_files(folder):
        is_empty = False
        yield _paths(inside, files), None
    if is_empty:
        raise InputError(f"there are no images in {folder!r}")


def _paths(folder: str, files: list[str]) -> list[str]:
    start = os.path.join(folder, "")
    return [start + file for file in files]


def _table(files: Iterable[tuple[list[str], int | None]], folder: str) -> pa.Table:
    """A listing for `check_and_keep`.

    Raises:
        InputError: there are names that are not UTF-8.
    """
    other: list[str] = []
    batches, paths, labels = [], [], []

    def gather() -> None:
        if not other:
            batches.append(image_batch(paths, None if None in labels else labels))
        paths.clear()
        labels.clear()

    for found, label in files:
        other += _not_utf8(found)
        paths += found
        labels += [label] * len(found)
        if len(paths) >= BATCH_ROWS:
            gather()
    if paths:
        gather()
    _refuse_other_encodings(other, folder)
    return pa.Table.from_batches(batches)


def _in_memory(listed: pa.Table, features: datasets.Features) -> datasets.Dataset:
    info = datasets.DatasetInfo(features=features)
    # Without a fingerprint, one would be computed of all that the table holds.
    return datasets.Dataset(listed, info=info, fingerprint=datasets.fingerprint.generate_random_fingerprint())


def is_left_out(name: str) -> bool:
    """Whether a file or folder of this name is passed over: it is hidden, or left behind by some program."""
    return _IGNORED.fullmatch(name) is not None


def _entries_of(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, in the order of the names, without what is hidden or left behind."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise InputError(f"cannot read the folder {folder!r}: {error.strerror}") from error
    return sorted((entry for entry in found if not is_left_out(entry.name)), key=attrgetter("name"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _folders_in(folder: str) -> list[str]:
    return [entry.name for entry in _entries_of(folder) if _is_folder(entry)]


class Splits(NamedTuple):
    """Folders in a folder that hold splits rather than classes, by their names.

    Attributes:
        training, validation, testing: names of those folders.
        inside: names of the folders in them, as those of classes are.
    """

    training: list[str]
    validation: list[str]
    testing: list[str]
    inside: set[str]


def splits_in(folder: str | os.PathLike[str]) -> Splits | None:
    """The folders of splits in a folder ("train" and "val", "seg_train" and "seg_test", …), or None.

    Raises:
        InputError: it cannot be read.
    """
    folder = os.fspath(folder)
    return _find_splits(folder, _folders_in(folder))


def _find_splits(folder: str, found: list[str]) -> Splits | None:
    """See `splits_in`. A class may be called "train": it is among others then, which are none of a split."""
    prefixes = {re.match(r"(?:.*[-_. ])?", name, re.DOTALL)[0] for name in found}
    shared = len(min(prefixes)) if len(prefixes) == 1 else 0  # of "seg_train" and "seg_test"

    def of_split(words: str) -> list[str]:
        pattern = re.compile(f"(?:{words}){_OF_A_SPLIT}", re.IGNORECASE)
        return [name for name in found if pattern.fullmatch(name) or pattern.fullmatch(name, shared)]

    training, validation, testing = map(of_split, (_TRAINING, _VALIDATION, _TEST))
    splits = [*training, *validation, *testing]
    within = {name: set(_folders_in(os.path.join(folder, name))) for name in splits}
    inside = set().union(*within.values())
    are_most = 2 * len(splits) > len(found)
    # The same classes in folders to train and to test with, or no others beside them, are no chance.
    is_clear = bool(training and (validation or testing)) and (
        len(splits) == len(found) > 2 or len(inside) < sum(map(len, within.values()))
    )
    return Splits(training, validation, testing, inside) if is_clear or (are_most and inside) else None


def _refuse_splits(folder: str, found: list[str], option: str) -> None:
    """Refuses a folder above those of splits: their names would be the classes, or test images be trained on.

    Args:
        folder: the path.
        found: the folders in it.
        option: that named the folder.
    """
    if (splits := _find_splits(folder, found)) is None:
        return
    (training, validation, testing), inside = splits[:3], splits.inside
    named = shortlist(sorted([*training, *validation, *testing]))
    if not inside and option in ("unlabeled_dir", "images_dir"):
        return
    names = f"--{option} {folder!r} holds {named}, by their names splits rather than classes"
    if not inside:
        raise InputError(
            f"{names}, and no folders in them: make a folder of images per class in each, or give "
            f"--unlabeled_dir {shlex.quote(os.path.join(folder, training[0]))} and a teacher"
        )
    kinds = {"train_dir": training, "validation_dir": validation, "test_dir": testing, "unlabeled_dir": training}
    likely = kinds.get(option) or (testing or validation if option == "images_dir" else [])
    options = [(option, likely)] if likely else []
    if option == "train_dir" and training and validation:
        options.append(("validation_dir", validation))
    remedy = " ".join(f"--{name} {shlex.quote(os.path.join(folder, names[0]))}" for name, names in options)
    raise InputError(f"{names}: give {remedy or 'the one that is meant'}")


def _not_utf8(paths: list[str]) -> list[str]:
    """Of paths, those that neither a data set nor a model's configuration can hold, as they can be written."""
    return [name for path in paths if not path.isascii() and (name := escaped(path)) != path]


def _refuse_other_encodings(other: list[str], folder: str) -> None:
    """Refuses paths from `_not_utf8`, if there are any."""
    if other:
        raise InputError(
            f"{folder!r} holds names that are not UTF-8: {shortlist(other)}. Rename them, say with: "
            "convmv -f latin1 -t utf-8 -r --notest FOLDER"
        )


def folder_identity(folder: str) -> tuple[int, int]:
    """The same for all paths that lead to a folder."""
    try:
        state = os.stat(folder)
    except OSError as error:
        raise InputError(f"cannot read the folder {folder!r}: {error.strerror}") from error
    return state.st_dev, state.st_ino


def walk_files(
    folder: str,
    above: Iterable[tuple[int, int]] = (),
    *,
    on_unreadable: Callable[[str, InputError], None] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """All files in a folder, at any depth, in the order of their names.

    A folder that several links lead to is gone through once, so that links can neither go round in circles nor make
    many folders of few.

    Args:
        above: of folders that are passed over, too; see `folder_identity`.
        on_unreadable: is told of a folder that cannot be read, which is passed over then; by default it is an error.

    Yields:
        A folder, and the names of files that come one after the other in it.
    """
    seen = {*above}
    waiting: list[tuple[str, Iterator[os.DirEntry[str]]]] = []  # not by recursion, which ends before folders may

    def enter(inside: str) -> None:
        try:
            here = folder_identity(inside)
            if here not in seen:
                seen.add(here)
                waiting.append((inside, iter(_entries_of(inside))))
        except InputError as error:
            if on_unreadable is None:
                raise
            on_unreadable(inside, error)

    enter(folder)
    while waiting:
        inside, entries = waiting[-1]
        names, below = [], None
        for entry in entries:
            if entry.is_file(follow_symlinks=False):  # as a rule, the system has told with the name
                names.append(entry.name)
            elif _is_folder(entry):
                below = entry.path
                break
            # A link to nowhere is no image, and said to be none; a pipe, by a link or without, would be waited for.
            elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
                names.append(entry.name)
        else:
            waiting.pop()
        if names:
            yield inside, names
        if below is not None:
            enter(below)
