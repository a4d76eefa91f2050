"""Folders of images as data sets: one folder per class, or images without labels.

Files and folders whose name starts with a dot are left out. Links are followed.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import datasets
from PIL import Image
from torchvision.datasets.folder import find_classes

from ..errors import InputError, shortlist
from .decoding import BAD_IMAGE_ERRORS


def load_class_folders(
    folder: str | os.PathLike[str], on_bad_image: Literal["stop", "skip"], names: list[str] | None = None
) -> tuple[datasets.Dataset, list[str]]:
    """The images in `folder`/CLASS/…, at any depth, labelled by the names of the class folders.

    Args:
        folder: holds one folder per class.
        on_bad_image: whether files that are no images may be left to the training ("skip").
        names: of the labels, by index; by default those of the folders found, in alphabetical order.

    Returns:
        A data set with the columns "image" and "label" of types `Image` and `ClassLabel`, and the names of its labels.

    Raises:
        InputError: there is no such folder, it has no folders, a class is empty or not among `names`, or files are no
            images.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder!r}: expected one with a folder of images per class")
    try:
        found = [name for name in find_classes(folder)[0] if not name.startswith(".")]
        if not found:
            raise FileNotFoundError
    except FileNotFoundError as error:
        raise InputError(f"{folder!r} has no folders in it: expected one folder of images per class") from error
    if names is not None:
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise InputError(f"{folder!r} has classes that the training folder has not: {shortlist(unknown)}")
    names = names or found
    top = (os.path.realpath(folder),)
    # The files of a folder come before those of the folders in it.
    files = {name: sorted(_files_below(os.path.join(folder, name), top), key=os.path.split) for name in found}
    empty = [name for name in found if not files[name]]
    if empty:
        raise InputError(f"class folders without images in {folder!r}: {', '.join(empty)}. Fill or remove them")
    paths = [path for name in found for path in files[name]]
    index_of = {name: index for index, name in enumerate(names)}
    labels = [index_of[name] for name in found for _ in files[name]]
    _check_files(paths, folder, on_bad_image)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features), names


def load_images(folder: str | os.PathLike[str], on_bad_image: Literal["stop", "skip"]) -> datasets.Dataset:
    """All images in a folder, at any depth, as a data set with the column "image" alone.

    Args:
        folder: may hold folders.
        on_bad_image: whether files that are no images may be left to the training ("skip").

    Raises:
        InputError: there is no such folder, it is empty, or files are no images.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder!r}: expected one with images")
    paths = list(_files_below(folder))
    if not paths:
        raise InputError(f"there are no images in {folder!r}")
    _check_files(paths, folder, on_bad_image)
    return datasets.Dataset.from_dict({"image": paths}, features=datasets.Features({"image": datasets.Image()}))


def _files_below(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """All files in a folder, at any depth, in the order of their names.

    A link to a folder that lies above would go round in circles and is not followed: `above` has the real paths of the
    folders on the way.
    """
    here = os.path.realpath(folder)
    if here in above:
        return
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            yield from _files_below(path, (*above, here))
        elif os.path.isfile(path) or os.path.islink(path):  # a link to nowhere is no image, and said to be none
            yield path


def _check_files(paths: list[str], folder: str, on_bad_image: str) -> None:
    """Refuses files that are no images, unless they may be skipped and are not all."""
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        bad = [path for path in pool.map(_path_unless_image, paths, chunksize=64) if path]
    if len(bad) == len(paths) or (bad and on_bad_image == "stop"):
        raise InputError(
            f"{len(bad)} of the {len(paths)} files in {folder!r} {'is' if len(bad) == 1 else 'are'} no image that "
            f"Pillow can open: {shortlist(bad)}. Remove or mend them, or pass --on_bad_image skip"
        )


def _path_unless_image(path: str) -> str | None:
    """The path of a file whose header is none of an image; None for images."""
    try:
        with Image.open(path):  # reads the header only
            return None
    except BAD_IMAGE_ERRORS:
        return path
