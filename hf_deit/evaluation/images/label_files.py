"""Files of labels for images that lie elsewhere: a table of paths and labels, or labels in the images' order.

They are read as they are published: ImageNet's validation set has its labels as a list of synsets, as "FILE INDEX"
(Caffe), as Kaggle's table, and by the numbers of its development kit; ImageNet-ReaL has a JSON list with the list of
all right labels of each image.
"""

import csv
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from ...errors import InputError, brief, did_you_mean, shortlist
from ...models.class_names import composed
from .label_sets import SYNSET, imagenet_names, imagenet_synsets, text_of, validation_numbers
from .labels import Labels

_EXPECTED = (
    "a table with a line path,label for each image, or a list of labels in the order of the images (text with a label "
    "a line, or JSON)"
)
_PATH_WORDS = {"path", "file", "filename", "image", "imagepath", "img", "name", "imageid", "id"}
_LABEL_WORDS = {"label", "labels", "class", "classname", "target", "category", "synset", "wnid", "predictionstring"}
_BOXES = re.compile(r"(n\d{8})( \d+){4}( n\d{8}( \d+){4})*")  # Kaggle's: a synset and a box, one after the other
_DEVELOPMENT_KIT = "ILSVRC2012_validation_ground_truth.txt"
_KIT_WORDS = (
    "the development kit numbers the classes from 1 on in an order that models do not have. Put its meta.mat beside "
    f"{_DEVELOPMENT_KIT}, or give a list of synsets"
)


@dataclass(frozen=True)
class LabelFile:
    """What a file says of images.

    Attributes:
        path: of the file.
        labels: of each image its labels as they are written: one, several, or none.
        images: the names of the images; None if the labels are in the images' order.
        digest: of the file, SHA-256.
    """

    path: str
    labels: Sequence[Sequence[str]]
    images: Sequence[str] | None = None
    digest: str = ""


def read_label_file(path: str | os.PathLike[str], known: Collection[str] = ()) -> LabelFile:
    """Reads a file of labels, whatever its form.

    Args:
        path: of the file.
        known: names of classes. A text of these alone is a list of labels, also where blanks or commas are in them.

    Raises:
        InputError: it is not there, empty, or of no form that is known.
    """
    path = os.fspath(path)
    text = text_of(path, _EXPECTED)
    found = _from_json(path, text) if text.lstrip()[:1] in ("[", "{") else _from_lines(path, text, known)
    if not found.labels:
        raise InputError(f"the label file {path!r} is empty: expected {_EXPECTED}")
    labels, digest = found.labels, hashlib.sha256(text.encode()).hexdigest()
    if os.path.basename(path) == _DEVELOPMENT_KIT:
        labels = _by_development_kit(path, labels)
    return replace(found, labels=labels, digest=digest)


def _from_json(path: str, text: str) -> LabelFile:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"the label file {path!r} is no JSON ({error}): expected {_EXPECTED}") from error
    entries = content.values() if isinstance(content, dict) else content
    labels = [_as_labels(path, entry) for entry in entries]
    return LabelFile(path, labels, list(content) if isinstance(content, dict) else None)


def _as_labels(path: str, entry: object) -> list[str]:
    items = entry if isinstance(entry, list) else [] if entry is None else [entry]
    if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in items):
        raise InputError(f"the label file {path!r} has {brief(entry)}, expected a label, or a list of labels")
    return [str(item) for item in items]


def _from_lines(path: str, text: str, known: Collection[str]) -> LabelFile:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names, places = set(map(composed, known)), slice(int(bool(lines) and lines[0].lower() in _LABEL_WORDS), None)
    if all(composed(line) in names for line in set(lines[places])):
        return LabelFile(path, [[line] for line in lines[places]])
    try:
        rows = [[cell.strip() for cell in row] for row in _rows_in(path, text) if row]
    except csv.Error as error:
        raise InputError(f"the label file {path!r} is no table ({error}): expected {_EXPECTED}") from error
    image, label, is_table = 0, 1, False
    words = [re.sub(r"[^a-z]", "", cell.lower()) for cell in rows[0]]
    of_paths, of_labels = (
        [i for i, word in enumerate(words) if word in known] for known in (_PATH_WORDS, _LABEL_WORDS)
    )
    if of_labels and (of_paths or len(words) == 1):
        image, label, is_table = (of_paths or [0])[0], of_labels[0], bool(of_paths)
        rows = rows[1:]
    if not is_table and all(len(row) == 1 for row in rows):
        return LabelFile(path, [[row[0]] if row[0] else [] for row in rows])
    if short := next((number for number, row in enumerate(rows, 1) if len(row) <= max(image, label)), None):
        raise InputError(f"line {short} of labels in {path!r} has no label: expected {_EXPECTED}")
    labels = [_without_boxes(row[label]) for row in rows]
    return LabelFile(path, [[name] if name else [] for name in labels], [row[image] for row in rows])


def _rows_in(path: str, text: str) -> Iterator[list[str]]:
    first = text.lstrip().partition("\n")[0]
    if path.lower().endswith((".csv", ".tsv")) or "," in first or "\t" in first:
        delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
        yield from csv.reader(io.StringIO(text), delimiter=delimiter)
    else:  # a path may have blanks, a label has none
        for line in text.splitlines():
            yield line.strip().rsplit(None, 1)


def _without_boxes(label: str) -> str:
    match = _BOXES.fullmatch(label)
    return match[1] if match else label


def _by_development_kit(path: str, labels: Sequence[Sequence[str]]) -> list[list[str]]:
    """The synsets that the numbers of ImageNet's development kit stand for, by the table that lies beside them."""
    from scipy.io import loadmat

    table = os.path.join(os.path.dirname(path), "meta.mat")
    if not os.path.isfile(table):
        raise InputError(f"in {path!r} {_KIT_WORDS}")
    rows = loadmat(table, squeeze_me=True)["synsets"]
    synset_of = {str(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    if unknown := {number for entry in labels for number in entry} - synset_of.keys():
        raise InputError(f"the label file {path!r} has numbers that {table!r} has not: {shortlist(sorted(unknown))}")
    return [[synset_of[number] for number in entry] for entry in labels]


def has_synsets(file: LabelFile) -> bool:
    """Whether the labels of a file are synsets, as those of ImageNet are."""
    return any(SYNSET.fullmatch(label) for entry in file.labels for label in entry)


def labels_from(
    file: LabelFile,
    names: Sequence[str],
    paths: pa.ChunkedArray,
    *,
    folder: str | None = None,
    must_be_numbered: bool = False,
    class_indices: np.ndarray | None = None,
) -> Labels:
    """The labels of images, by a file.

    Args:
        file: names each image once; an image without a label has an empty one.
        names: of the K classes: labels are names, or indices, or synsets where the classes are ImageNet's.
        paths: of the N images.
        folder: that their names in the file may be relative to.
        must_be_numbered: whether a list without names is of ImageNet's validation images alone, in their order.
        class_indices: (K,) which of a model's outputs the classes are, if not all in their order: an index in the file
            is the model's then, and synsets are told by theirs.

    Raises:
        InputError: the file is of another length, names others or one twice, or has labels that are none.
    """
    if len(file.labels) != len(paths):
        raise InputError(
            f"the label file {file.path!r} has {_counted(len(file.labels))}, but there are {len(paths):,} images: "
            "expected each of them once (an image without a label has an empty one)"
        )
    if file.images is None:
        places = _places_by_number(file, paths, must_be_numbered)
    else:
        places = _places_by_name(file, paths, folder)
    index_of = _indices_of_labels(file, names, class_indices)
    found = [list(dict.fromkeys(index_of[label] for label in file.labels[place])) for place in places]
    values = np.array([classes[0] if classes else -1 for classes in found], np.int64)
    if all(len(classes) <= 1 for classes in found):
        return Labels(tuple(names), values)
    ends = np.cumsum([0, *map(len, found)])
    columns = np.array([index for classes in found for index in sorted(classes)], np.int64)
    accepted = sparse.csr_array((np.ones(len(columns), bool), columns, ends), shape=(len(found), len(names)))
    return Labels(tuple(names), values, accepted)


def _counted(number: int) -> str:
    return "one label" if number == 1 else f"{number:,} labels"


def _places_by_number(file: LabelFile, paths: pa.ChunkedArray, must_be_numbered: bool) -> np.ndarray:
    """Where the images stand in a list: by the numbers in their names, or in their own order."""
    numbers = validation_numbers(paths)
    if not len(numbers) or numbers.min() < 1:
        if must_be_numbered:
            odd = paths[int(np.flatnonzero(numbers < 1)[0])].as_py() if len(numbers) else None
            raise InputError(
                f"the labels in {file.path!r} are those of ImageNet's validation images in their order, by the names "
                f"ILSVRC2012_val_00000001.JPEG and so on, but there is {odd!r}: keep the images' names"
            )
        return np.arange(len(paths))
    if len(np.unique(numbers)) < len(numbers) or numbers.max() > len(numbers):
        raise InputError(
            f"the images have the numbers {numbers.min()} to {numbers.max()} in their names, but there are "
            f"{len(numbers):,} and as many labels in {file.path!r}: expected each number from 1 on once"
        )
    return numbers - 1


def _places_by_name(file: LabelFile, paths: pa.ChunkedArray, folder: str | None) -> np.ndarray:
    """Where the images stand in a table: by their paths in the folder, or whole; or by names that are unique.

    The paths in the table may be those of another system, or begin above the folder.
    """
    names = [os.path.normpath(name.replace("\\", "/")) for name in file.images]
    wanted = _spelt_alike(pa.array(names, pa.large_string()))
    if len(wanted.unique()) < len(wanted):
        counts = wanted.value_counts().to_pylist()
        twice = [entry["values"] for entry in counts if entry["counts"] > 1]
        raise InputError(
            f"the label file {file.path!r} has images twice: {shortlist(twice)}. Remove what is not meant"
        )
    whole = _spelt_alike(pc.replace_substring(paths.cast(pa.large_string()).fill_null(""), "\\", "/"))
    prefix = unicodedata.normalize("NFC", os.path.join(folder or "", "").replace("\\", "/"))
    own = pc.replace_substring_regex(whole, pattern=f"^{re.escape(prefix)}", replacement="")
    base = pc.replace_substring_regex(whole, pattern=r"^.*/", replacement="")
    spellings = [own, whole, base, pc.replace_substring_regex(base, pattern=r"\.[^.]+$", replacement="")]
    found = [pc.index_in(spelling, value_set=wanted) for spelling in spellings]
    for depth in range(1, min(name.count("/") for name in names) + 1):
        below = pc.replace_substring_regex(wanted, pattern=f"^([^/]*/){{{depth}}}", replacement="")
        found.append(pc.index_in(own, value_set=below))
    best = min(found, key=lambda places: places.null_count)
    places = best.fill_null(-1).to_numpy().astype(np.int64)
    if places.min() >= 0 and len(np.unique(places)) == len(places):
        return places
    named = set(places[places >= 0].tolist())
    others = [file.images[place] for place in range(len(wanted)) if place not in named]
    absent = [own[int(row)].as_py() for row in np.flatnonzero(places < 0)[:6]]
    alone, absent = shortlist(others) or "some twice", shortlist(absent) or "others of the same name"
    raise InputError(
        f"the label file {file.path!r} does not name the images that there are: it alone has {alone}, and it lacks "
        f"{absent}; expected their paths in the folder, each once"
    )


def _spelt_alike(names: Any) -> Any:
    """Arrow's texts without what tells apart accents that are written as one character or as two."""
    return pc.utf8_normalize(names, form="NFC")


def _indices_of_labels(
    file: LabelFile, names: Sequence[str], class_indices: np.ndarray | None = None
) -> dict[str, int]:
    """The index of each label that a file has, as it is written."""
    numbers = range(len(names)) if class_indices is None else class_indices.tolist()
    place = {str(number): index for index, number in enumerate(numbers)}
    if tuple(names) == imagenet_names() or class_indices is not None:
        synsets = imagenet_synsets()
        place |= {synsets[number]: index for index, number in enumerate(numbers) if number < len(synsets)}
    place |= {composed(name): index for index, name in enumerate(names)}
    written = {label for entry in file.labels for label in entry}
    unknown = sorted(label for label in written if composed(label) not in place)
    if not unknown:
        return {label: place[composed(label)] for label in written}
    if unknown == ["1000"] and len(names) == 1000 and "0" not in written:
        raise InputError(f"the label file {file.path!r} has the numbers 1 to 1000: {_KIT_WORDS}")
    are_numbers = all(re.fullmatch(r"-?\d+", label) for label in unknown)
    lie = f"lie in [0, {len(names)})" if class_indices is None else f"are {shortlist(map(str, numbers))}"
    remedy = f"; indices {lie}" if are_numbers else did_you_mean(unknown[0], names)
    raise InputError(
        f"the label file {file.path!r} has labels that are none of the {len(names):,} classes "
        f"({shortlist(names, 3)}): {shortlist(unknown)}{remedy}"
    )
