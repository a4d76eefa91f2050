"""Folders of images as data sets: one folder per class, or images without labels."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
from PIL import Image
from torchvision.datasets.folder import find_classes, make_dataset

from .errors import InputError, first_line
from .view_dataset import BAD_IMAGE_ERRORS


def load_class_folders(
    folder: str, on_bad_image: str, names: list[str] | None = None
) -> tuple[datasets.Dataset, list[str]]:
    """A data set of the files in `folder`/class name/…, with the labels of `names` or of the folders found.

    Files and folders whose name starts with a dot are none of the data set's.
    """

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
            raise InputError(f"{folder!r} has classes that the training folder has not: {', '.join(unknown[:5])}")
    class_to_index = {name: index for index, name in enumerate(names or found) if name in found}
    try:
        samples = make_dataset(folder, class_to_index, is_valid_file=lambda path: not _is_hidden(path, folder))
    except FileNotFoundError as error:
        empty = [name for name in class_to_index if not any(os.scandir(os.path.join(folder, name)))]
        raise InputError(
            f"class folders without images in {folder!r}: {', '.join(empty) or first_line(error)}. Fill or remove them"
        ) from error
    names = names or found
    paths, labels = (list(column) for column in zip(*samples, strict=True))
    _check_files(paths, folder, on_bad_image)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features), names


def load_images(folder: str, on_bad_image: str) -> datasets.Dataset:
    """A data set of all files in a folder, at any depth, with the column "image" alone."""
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder!r}: expected one with images")
    paths = [str(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    paths = [path for path in paths if not _is_hidden(path, folder)]
    if not paths:
        raise InputError(f"there are no images in {folder!r}")
    _check_files(paths, folder, on_bad_image)
    return datasets.Dataset.from_dict({"image": paths}, features=datasets.Features({"image": datasets.Image()}))


def _is_hidden(path: str, folder: str) -> bool:
    return any(part.startswith(".") for part in Path(path).relative_to(folder).parts)


def _check_files(paths: list[str], folder: str, on_bad_image: str) -> None:
    """Refuses files that are no images, unless they may be skipped and are not all."""
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        bad = [path for path in pool.map(_path_unless_image, paths, chunksize=64) if path]
    if len(bad) == len(paths) or (bad and on_bad_image == "stop"):
        raise InputError(
            f"{len(bad)} of the {len(paths)} files in {folder!r} {'is' if len(bad) == 1 else 'are'} no image that "
            f"Pillow can open: {', '.join(bad[:5])}{', …' if len(bad) > 5 else ''}. Remove or mend them, "
            "or pass --on_bad_image skip"
        )


def _path_unless_image(path: str) -> str | None:
    try:
        with Image.open(path):  # reads the header only
            return None
    except BAD_IMAGE_ERRORS:
        return path
