"""ImageNet's classes, and lists that say which of a model's outputs the classes of data are.

Classifiers of ImageNet-1k have its 1,000 classes in the order of their synsets ("n01440764" is a number of WordNet's).
Data name them by synset, by number or by words.
"""

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InputError, brief, did_you_mean, first_line, shortlist
from ...hub.files import read_text
from ...models.class_names import composed, unique_names

# What `--label_set` takes: the classes are ImageNet's, by synset or number; of "real" an image has several labels.
LABEL_SETS = ("imagenet", "real", "v2")
SYNSET = re.compile(r"n\d{8}")
# Of files of the validation set, as they are published, unpacked into folders, and on the Hub.
_VALIDATION_FILE = r"(?i)(?:^|/)ILSVRC2012_val_(?P<number>\d{8})(?:_n\d{8})?(?:\.jpe?g)?$"


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """The synsets of ImageNet-1k, by index."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The classes of ImageNet-1k in words, by index; of two of one name each has its index behind it."""
    from timm.data import ImageNetInfo

    words = ImageNetInfo("imagenet-1k").label_descriptions()
    return tuple(unique_names(dict(enumerate(words))).values())


def imagenet_classes(model_labels: Sequence[str]) -> tuple[str, ...] | None:
    """ImageNet's classes, by index, as a model names them: in words, or by synset; None if it has not so many."""
    if len(model_labels) != len(imagenet_synsets()):
        return None
    return imagenet_names() if imagenet_indices(model_labels) is None else imagenet_synsets()


def imagenet_indices(names: Sequence[str]) -> np.ndarray | None:
    """Which classes of ImageNet-1k are named by their synsets: (len(names),) int64; None if any is not."""
    place = {synset: index for index, synset in enumerate(imagenet_synsets())}
    found = [place.get(name, -1) for name in names]
    return np.array(found, np.int64) if found and min(found) >= 0 else None


def numbers_in(names: Sequence[str]) -> np.ndarray | None:
    """The whole numbers that names are, (len(names),) int64, whatever their order; None if any is none."""
    are_numbers = bool(names) and all(re.fullmatch(r"[0-9]{1,9}", name) for name in names)
    return np.array([int(name) for name in names], np.int64) if are_numbers else None


def validation_numbers(paths: pa.ChunkedArray) -> np.ndarray:
    """The numbers in the names of ImageNet's validation images, (N,) int64 from 1 on; -1 of another name."""
    found = pc.struct_field(pc.extract_regex(paths.cast(pa.large_string()), pattern=_VALIDATION_FILE), "number")
    return found.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)


def read_class_indices(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> np.ndarray:
    """Reads which of a model's outputs each class of the data is.

    Args:
        path: of a JSON list, or a text with an item a line: indices, or synsets of ImageNet-1k.
        names: of the data's classes, in whose order the items are; where the names are synsets, so may the items be
            in any. None where the items themselves say which classes there are.

    Returns:
        (K,) int64.

    Raises:
        InputError: it cannot be read, is of another length, has an item twice, or one that is no index.
    """
    items = _list_in(path)
    if names is not None and len(items) != len(names):
        raise InputError(
            f"the class indices in {os.fspath(path)!r} are {len(items)}, but the data have {len(names)} classes "
            f"({shortlist(names, 3)}): expected one for each, in their order"
        )
    if repeated := [item for item, count in Counter(items).items() if count > 1]:
        raise InputError(f"the class indices in {os.fspath(path)!r} have items twice: {shortlist(repeated)}")
    indices = numbers_in(items)
    if indices is not None:
        return indices
    known = imagenet_synsets()
    if unknown := [item for item in items if item not in known and not item.isdecimal()]:
        near = did_you_mean(unknown[0], known) if SYNSET.fullmatch(unknown[0]) else ""
        raise InputError(
            f"the class indices in {os.fspath(path)!r} have {shortlist(map(brief, unknown))}: expected indices from 0 "
            f"on, or synsets of ImageNet-1k such as {known[0]}{near}"
        )
    if mixed := [item for item in items if item not in known]:
        raise InputError(
            f"the class indices in {os.fspath(path)!r} are synsets but for {shortlist(mixed)}: give all as one or the "
            "other"
        )
    own = None if names is None else imagenet_indices(names)
    if own is None:
        return imagenet_indices(items)
    if others := sorted(set(items) ^ set(names)):
        raise InputError(
            f"the class indices in {os.fspath(path)!r} and the classes of the data are not the same synsets: "
            f"{shortlist(others)} are in one of them alone"
        )
    return own


def _list_in(path: str | os.PathLike[str]) -> list[str]:
    text = text_of(path, "a list of indices, a line each or as JSON").strip()
    try:
        items = json.loads(text) if text[:1] in ("[", "{") else re.split(r"[\s,;]+", text)
    except ValueError as error:
        raise InputError(f"{os.fspath(path)!r} is no JSON ({error}): expected a list of indices") from error
    are_items = isinstance(items, list) and all(isinstance(item, str | int) for item in items)
    if not text or not are_items:
        raise InputError(f"{os.fspath(path)!r} holds no list of indices, but {brief(items) if text else 'nothing'}")
    return [str(item) for item in items]


def text_of(path: str | os.PathLike[str], expected: str) -> str:
    """The text of a file that a user names.

    Args:
        expected: what should be in it, for the message.

    Raises:
        InputError: it is not there, or cannot be read.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {os.fspath(path)!r} ({first_line(error)}): expected {expected}") from error
    if text is None:
        raise InputError(f"no file {os.fspath(path)!r}: expected {expected}")
    return text.removeprefix("\ufeff")


def refuse_other_classes(names: Sequence[str], labels: Sequence[str], *, owner: str) -> None:
    """Refuses data with classes that a model has not; `labels` are the model's.

    Raises:
        InputError: names the first ones, with the nearest of the model's labels.
    """
    known = set(map(composed, labels))
    unknown = [name for name in names if composed(name) not in known]
    if not unknown:
        return
    near = did_you_mean(unknown[0], labels)
    if len(labels) == len(imagenet_synsets()) and numbers_in(names) is not None:
        near = ". If they are numbers of ImageNet's classes, give --label_set imagenet"
    raise InputError(
        f"the data have classes that {owner} has not: {shortlist(unknown)} ({len(unknown)} of {len(names)}), but "
        f"{len(labels)} labels ({shortlist(labels, 3)}){near}. Data whose classes have other names are told "
        "which label each is by --class_indices FILE"
    )
