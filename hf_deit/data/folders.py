"""Folders of images as data sets: one folder per class, or images without labels.

Files and folders whose name starts with a dot are left out, and so is what file managers leave beside images. Links
are followed.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import datasets

from ..errors import InputError, escaped, shortlist
from ..models.class_names import check_distinct, composed, which_of
from .decoding import fault_of_header, refuse_faults

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
) -> tuple[datasets.Dataset, list[str]]:
    """The images in `folder`/CLASS/…, at any depth, labelled by the names of the class folders.

    Args:
        folder: holds one folder per class.
        on_bad_image: whether files that cannot be used, as far as their headers tell, may be left to the training
            ("skip").
        names: of the labels, by index; by default those of the folders found, in alphabetical order.
        option: that names the folder, for the messages.

    Returns:
        A data set with the columns "image" and "label" of types `Image` and `ClassLabel`, and the names of its labels.

    Raises:
        InputError: there is no such folder, it has no folders, or those of splits, a class is empty or not among
            `names`, files cannot be used, or their names are not UTF-8.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder!r}: expected one with a folder of images per class")
    found = _folders_in(folder)
    if not found:
        raise InputError(f"{folder!r} has no folders in it: expected one folder of images per class")
    found.sort(key=composed)  # the same order wherever the folders are copied to
    check_distinct(found, f"{folder!r}")
    _refuse_splits(folder, found, option)
    _refuse_other_encodings([os.path.join(folder, name) for name in found], folder)
    if names is not None:
        known = set(map(composed, names))
        unknown = [name for name in found if composed(name) not in known]
        if unknown:
            raise InputError(
                f"{folder!r} has classes that the training folder has not: {shortlist(unknown)}"
                f"{which_of(unknown[0], names)}"
            )
    names = names or found
    top = [_identity(folder)]
    # The files of a folder come before those of the folders in it.
    files = {name: sorted(_files_below(os.path.join(folder, name), top), key=os.path.split) for name in found}
    empty = [name for name in found if not files[name]]
    if empty:
        raise InputError(f"class folders without images in {folder!r}: {', '.join(empty)}. Fill or remove them")
    paths = [path for name in found for path in files[name]]
    _refuse_other_encodings(paths, folder)
    index_of = {composed(name): index for index, name in enumerate(names)}
    labels = [index_of[composed(name)] for name in found for _ in files[name]]
    _check_files(paths, folder, on_bad_image)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features), names


def load_images(folder: str | os.PathLike[str], on_bad_image: Literal["stop", "skip"]) -> datasets.Dataset:
    """All images in a folder, at any depth, as a data set with the column "image" alone.

    Args:
        folder: may hold folders.
        on_bad_image: whether files that cannot be used, as far as their headers tell, may be left to the training
            ("skip").

    Raises:
        InputError: there is no such folder, it is empty or holds the folders of splits, files cannot be used, or their
            names are not UTF-8.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder!r}: expected one with images")
    _refuse_splits(folder, _folders_in(folder), "unlabeled_dir")
    paths = list(_files_below(folder))
    if not paths:
        raise InputError(f"there are no images in {folder!r}")
    _refuse_other_encodings(paths, folder)
    _check_files(paths, folder, on_bad_image)
    return datasets.Dataset.from_dict({"image": paths}, features=datasets.Features({"image": datasets.Image()}))


def _entries_of(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, in the order of the names, without what is hidden or left behind."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise InputError(f"cannot read the folder {folder!r}: {error.strerror}") from error
    return sorted((entry for entry in found if not _IGNORED.fullmatch(entry.name)), key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _folders_in(folder: str) -> list[str]:
    return [entry.name for entry in _entries_of(folder) if _is_folder(entry)]


def _refuse_splits(folder: str, found: list[str], option: str) -> None:
    """Refuses a folder above those of splits: their names would be the classes, or test images be trained on.

    A class may be called "train": it is among others then, which are none of a split.

    Args:
        folder: the path.
        found: the folders in it.
        option: that named the folder.
    """

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
    if not is_clear and not (are_most and inside):
        return
    if not inside and option == "unlabeled_dir":
        return
    names = f"--{option} {folder!r} holds {shortlist(sorted(splits))}, by their names splits rather than classes"
    if not inside:
        raise InputError(
            f"{names}, and no folders in them: make a folder of images per class in each, or give "
            f"--unlabeled_dir {shlex.quote(os.path.join(folder, training[0]))} and a teacher"
        )
    likely = {"train_dir": training, "validation_dir": validation, "unlabeled_dir": training}[option]
    options = [(option, likely)] if likely else []
    if option == "train_dir" and training and validation:
        options.append(("validation_dir", validation))
    remedy = " ".join(f"--{name} {shlex.quote(os.path.join(folder, names[0]))}" for name, names in options)
    raise InputError(f"{names}: give {remedy or 'the one that is meant'}")


def _refuse_other_encodings(paths: list[str], folder: str) -> None:
    """Refuses names that are not UTF-8, which neither a data set nor a model's configuration can hold."""
    other = [name for path in paths if not path.isascii() and (name := escaped(path)) != path]
    if other:
        raise InputError(
            f"{folder!r} holds names that are not UTF-8: {shortlist(other)}. Rename them, say with: "
            "convmv -f latin1 -t utf-8 -r --notest FOLDER"
        )


def _identity(folder: str) -> tuple[int, int]:
    """The same for all paths that lead to a folder."""
    try:
        state = os.stat(folder)
    except OSError as error:
        raise InputError(f"cannot read the folder {folder!r}: {error.strerror}") from error
    return state.st_dev, state.st_ino


def _files_below(folder: str, above: Iterable[tuple[int, int]] = ()) -> Iterator[str]:
    """All files in a folder, at any depth, in the order of their names.

    A folder that several links lead to is gone through once, so that links can neither go round in circles nor make
    many folders of few.

    Args:
        above: of folders that are passed over, too; see `_identity`.
    """
    seen = set(above)
    waiting: list[Iterator[str | os.DirEntry[str]]] = [
        iter([folder])
    ]  # not by recursion: folders may lie deeper in each other than Python calls
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
        elif isinstance(entry, str) or _is_folder(entry):
            path = entry if isinstance(entry, str) else entry.path
            here = _identity(path)
            if here not in seen:
                seen.add(here)
                waiting.append(iter(_entries_of(path)))
        # A link to nowhere is no image, and said to be none; a pipe, by a link or without, would be waited for.
        elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
            yield entry.path


def _check_files(paths: list[str], folder: str, on_bad_image: str) -> None:
    """Refuses files that cannot be used as far as their headers tell, unless they may be skipped and are not all."""
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        checked = zip(paths, pool.map(fault_of_header, paths), strict=True)
        faults = {path: fault for path, fault in checked if fault is not None}
    refuse_faults(faults, len(paths), f"files in {folder!r}", on_bad_image)
