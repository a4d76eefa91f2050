"""What the labels of a store depend on, and the fingerprint by which images are recognised."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import datasets
import numpy as np

from ..data.columns import labels_of, without_format
from ..errors import CheckpointError, InputError, brief, first_line, shortlist
from ..hub.files import write_whole

FORMAT = 1
_FINGERPRINT_IMAGES = 1024
_MARKED_ROWS = 10_000  # paths at a time

_DESCRIPTION_BYTES = 1 << 24  # of store.json, at most: the names of labels are most of it
# From and to, of what a store's numbers may be. Labels stand in memory beside codes, in 32 bits; a seed is any in 64.
_RANGES = {
    "seed": (-(1 << 63), (1 << 64) - 1),
    "group_size": (1, (1 << 32) - 1),
    "repeated_augmentation": (1, (1 << 32) - 1),
    "views_per_epoch": (1, (1 << 32) - 1),
    "num_labels": (1, 1 << 24),
}

# What to do about a field that differs, beyond the obvious.
_HINTS = {
    "teacher.weights": "--teacher_weights says how much each of the teachers counts, which are in the order of their "
    "revisions there",
    "teacher.preprocessing.input_size": "--teacher_input_size says it: where none is named it is the student's",
    "teacher.execution": "--teacher_speed auto runs the teacher as that of the store did",
    "teacher": "--teacher_model_name_or_path names the teacher, and with --teacher_labels_readonly none is needed",
    "data": "rows, their labels and their order must be the same; --validation_seed and --labels_kept choose some",
    "augmentation.reduced_decoding": "--reduced_decoding says it",
    "augmentation.shorter_side": "--cache_images says it: resized makes other pixels, decoded does not",
    "seed": "--data_seed is that of the views, while another --seed makes another student",
    "group_size": "--mixup_group_size says it, and the batch of a device must hold whole groups: for smaller batches "
    "the labels must be recorded with smaller groups",
    "repeats_placement": "--repeats_placement says it: adjacent in all stores of earlier versions",
    "top_k": "--teacher_labels_top_k says it",
}


def write_labels(content: Any, path: str | os.PathLike[str]) -> None:
    """Writes a file of a store, whole or not at all.

    Raises:
        CheckpointError: it cannot be written, say on a full disk.
    """
    path = os.fspath(path)
    try:
        write_whole(content, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the teacher's labels to {path!r} ({error.strerror or error}): what was there before "
            "is whole; free some space, or mend the folder's rights, and go on from the last checkpoint"
        ) from error


@dataclass(frozen=True)
class StoreIdentity:
    """What labels depend on. Values are what JSON can hold; groups may have more keys than those that are named here.

    Attributes:
        teacher: `name`, `revision` (a commit, or `weights_digest` of a folder), `labels` (their names in the student's
            order), `dtype`, `preprocessing` (with the `input_size` that it was shown, if that is not the student's).
            Of several `names`, `members` (revision, dtype, preprocessing of each) and `weights`, in one order.
        data: `name`, `config`, `revision`, `rows`, `fingerprint` (from `data_fingerprint`).
        augmentation: all settings that views depend on, with defaults filled in; `reduced_decoding`, and the
            `shorter_side` to which images are shrunk, only where they are.
        versions: of the libraries that make pixels. They may differ, as long as the pixels are the same.
        seed: of the views.
        group_size: views that mixup mixes with each other.
        repeated_augmentation: views of one image in an epoch.
        views_per_epoch: slots of an epoch. A run that only reads may have fewer.
        num_labels: how many labels the teacher tells apart.
        top_k: logits that are kept of a view, beside its label; 0 for none.
        repeats_placement: "adjacent", where the views of an image have slots side by side, as in all stores that do
            not say it; or "spread", over blocks of `group_size` images, of 64 without mixing. Of one view of an image
            it says nothing, and is "adjacent".
    """

    teacher: Mapping[str, Any]
    data: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    versions: Mapping[str, str]
    seed: int
    group_size: int
    repeated_augmentation: int
    views_per_epoch: int
    num_labels: int
    top_k: int = 0
    repeats_placement: str = "adjacent"

    # For people: they may differ, as the revision of the teacher and the fingerprint of the data say more.
    INFORMATIONAL = ("teacher.name", "teacher.names", "teacher.labels", "data.name", "data.config", "data.revision")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = json.loads(json.dumps(getattr(self, field.name), allow_nan=False))
            object.__setattr__(self, field.name, value)
        self._check_groups()
        if not self.teacher.get("revision"):
            raise InputError(
                f"the revision of the teacher {self.teacher.get('name')!r} is not known, but labels depend on it: "
                "give a commit of the Hub, or weights_digest of its folder"
            )
        if self.repeats_placement not in ("adjacent", "spread"):
            raise InputError(f"repeats_placement must be adjacent or spread, got {brief(self.repeats_placement)}")
        if self.repeated_augmentation == 1:
            object.__setattr__(self, "repeats_placement", "adjacent")
        for name, (first, last) in {**_RANGES, "top_k": (0, self.num_labels)}.items():
            value = getattr(self, name)
            if type(value) is not int or not first <= value <= last:
                raise InputError(f"{name} must be a whole number from {first} to {last}, got {brief(value)}")
        if not 0 <= self.top_k < self.num_labels:
            raise InputError(
                f"top_k must be from 0 to {self.num_labels - 1} (num_labels - 1), got {self.top_k}: give another "
                "--teacher_labels_top_k"
            )

    def _check_groups(self) -> None:
        """Refuses values of another kind than all that read them expect.

        Raises:
            InputError: there is one.
        """
        for name in ("teacher", "data", "augmentation", "versions"):
            if not isinstance(getattr(self, name), dict):
                raise InputError(f"{name} must be an object, got {brief(getattr(self, name))}")
        preprocessing = self.teacher.get("preprocessing")
        if not isinstance(preprocessing, dict | None):
            raise InputError(f"teacher.preprocessing must be an object, got {brief(preprocessing)}")
        for name, value, is_right in (
            ("teacher.name", self.teacher.get("name"), _is_text),
            ("teacher.revision", self.teacher.get("revision"), _is_text),
            ("teacher.labels", self.teacher.get("labels"), _are_texts),
            ("teacher.preprocessing.input_size", (preprocessing or {}).get("input_size"), _is_size),
            ("augmentation.image_size", self.augmentation.get("image_size"), _is_size),
            ("versions", [*self.versions.values()], _are_texts),
        ):
            if value is not None and not is_right(value):
                raise InputError(f"{name} is of another kind than in a store, got {brief(value)}")
        if "members" in self.teacher and not _are_members(self.teacher):
            raise InputError(f"teacher.members are of another kind than in a store, got {brief(self.teacher)}")

    @property
    def described(self) -> dict[str, Any]:
        """All values, as store.json has them: as in earlier versions where a store could be of one."""
        later = ("repeats_placement",) if self.repeats_placement == "adjacent" else ()
        return {name: value for name, value in asdict(self).items() if name not in later}

    @property
    def decisive(self) -> dict[str, Any]:
        """The values that must be the same for labels to be the same, by dotted name."""
        flat = dict(_flatten(self.described))
        return {
            name: flat[name] for name in flat if name not in self.INFORMATIONAL and name.split(".")[0] != "versions"
        }

    @property
    def teacher_size(self) -> list[int] | None:
        """[height, width] at which the teacher was shown the views, or None if an earlier version has not said it.

        Of several teachers it is None where they were shown several sizes.
        """
        sizes = [self.shown_size(teacher) for teacher in self.teacher.get("members", [self.teacher])]
        return sizes[0] if all(size == sizes[0] for size in sizes) else None

    def shown_size(self, teacher: Mapping[str, Any]) -> list[int] | None:
        """See `teacher_size`, of the teacher, or of one of several from its `members`."""
        preprocessing, size = teacher.get("preprocessing") or {}, self.augmentation.get("image_size")
        return preprocessing.get("input_size", size if preprocessing.get("own_size") == size else None)

    @property
    def digest(self) -> str:
        """Hexadecimal, of the decisive values: two stores with one digest hold the same labels."""
        return hashlib.sha256(json.dumps(self.decisive, sort_keys=True).encode()).hexdigest()

    def differences(self, other: "StoreIdentity") -> dict[str, str]:
        """Sentences on the decisive values that differ, by dotted name. "There" is this identity, "here" the other."""
        found = dict(_differences(asdict(self), asdict(other)))
        if "teacher.members" in found:  # one against several, or more of them: their names say it all
            found = {name: values for name, values in found.items() if not name.startswith("teacher.")}
            found["teacher.members"] = (self.teacher.get("name"), other.teacher.get("name"))
        elif any(name.startswith("teacher.members.") for name in found):
            found.pop("teacher.revision", None)  # which is a digest of theirs
        return {
            name: f"{brief(name, str if name.isprintable() else repr)} is {brief(there)} there, {brief(here)} here"
            for name, (there, here) in sorted(found.items())
        }

    def check_same(self, other: "StoreIdentity", source: str, *, fewer_views: bool) -> None:
        """Refuses labels of a store with this identity for a run with another one.

        Args:
            other: the run's identity.
            source: the store's name, for the message.
            fewer_views: whether the run may take only the first slots of an epoch.

        Raises:
            InputError: they differ. The message names the fields and both values.
        """
        changed = self.differences(other)
        has_fewer = other.views_per_epoch < self.views_per_epoch
        if fewer_views and has_fewer:
            changed.pop("views_per_epoch", None)
        if changed:
            each = list(changed.values())
            hints = [
                hint for field, hint in _HINTS.items() if any(f"{name}.".startswith(f"{field}.") for name in changed)
            ]
            if "views_per_epoch" in changed and has_fewer:
                hints.append("one that is only read (readonly) may have more views")
            raise InputError(
                f"the labels in {source!r} are not of this run: {shortlist(each, separator='; ')}. "
                f"{'; '.join(['Train with the settings of the store, or give another one', *hints])}"
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes store.json, the description of a store.

        Raises:
            CheckpointError: it cannot be written.
        """
        described = {"format": FORMAT, "digest": self.digest, "identity": self.described}
        write_labels(json.dumps(described, indent=2, ensure_ascii=False) + "\n", path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "StoreIdentity":
        """Reads store.json, the description of a store.

        Raises:
            InputError: it describes none, or has another format.
        """
        path = os.fspath(path)
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise ValueError("it is no file")  # a pipe would be waited for
            with open(path, encoding="utf-8") as file:
                text = file.read(_DESCRIPTION_BYTES + 1)
            if len(text) > _DESCRIPTION_BYTES:
                raise ValueError("it is too long")
            described = json.loads(text)
            if described["format"] == FORMAT:
                identity = cls(**described["identity"])
                if identity.digest == described["digest"]:
                    return identity
                raise ValueError("its digest is not that of its identity")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path!r} does not describe a label store ({brief(first_line(error), str)}): give another folder or, "
                "if this is of a store that was damaged, delete that store and record it anew"
            ) from error
        raise InputError(f"{path!r} has the format {brief(described['format'])}, expected {FORMAT}: update hf_deit")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)


def _are_members(teacher: Mapping[str, Any]) -> bool:
    """Whether names, members and weights are as many, and each is what it is of several teachers."""
    parts = [teacher.get(name) for name in ("names", "members", "weights")]
    if not all(isinstance(part, list) for part in parts) or len({len(part) for part in parts}) > 1:
        return False
    names, members, weights = parts
    return (
        _are_texts(names)
        and all(isinstance(member, dict) and _is_text(member.get("revision")) for member in members)
        and all(type(weight) in (int, float) and weight > 0 for weight in weights)
    )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of decisive fields that differ, with both values; of what only one has, the whole."""
    for name in sorted({*one, *other}):
        here, theirs = one.get(name), other.get(name)
        if prefix + name in (*StoreIdentity.INFORMATIONAL, "versions") or here == theirs:
            continue
        if isinstance(here, dict) and isinstance(theirs, dict):
            yield from _differences(here, theirs, f"{prefix}{name}.")
        elif prefix + name == "teacher.members" and _are_as_many(here, theirs):
            for place, pair in enumerate(zip(here, theirs, strict=True), 1):
                yield from _differences(*pair, f"{prefix}{name}.{place}.")
        else:
            yield prefix + name, (here, theirs)


def _are_as_many(one: Any, other: Any) -> bool:
    return isinstance(one, list) and isinstance(other, list) and len(one) == len(other)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flatten(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item


def data_fingerprint(dataset: datasets.Dataset, *, image_column: str = "image", label_column: str = "label") -> str:
    """A digest of a data set's rows in their order: how many, all labels, and the encoded bytes of up to 1,024 images.

    Rows from arrow, parquet, memory or a folder have the same digest if their encoded bytes are the same. Of an image
    that cannot be read, the file name counts. Nothing is decoded.

    Args:
        dataset: with an `Image` column.
        label_column: with the labels, if there is such a column.
    """
    dataset = without_format(dataset)
    digest = hashlib.sha256(f"{len(dataset)}".encode())
    if label_column in dataset.column_names:
        digest.update(np.ascontiguousarray(labels_of(dataset, label_column)))
    images = dataset.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
    for index in _fingerprinted(len(dataset)):
        digest.update(hashlib.sha256(_encoded(images[index][image_column])).digest())
    return digest.hexdigest()


def _encoded(image: dict[str, Any] | None) -> bytes:
    if image is None:
        return b""
    if image.get("bytes") is not None:
        return image["bytes"]
    path = image.get("path") or ""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return os.path.basename(path).encode()


def row_marks(dataset: datasets.Dataset, *, image_column: str, label_column: str) -> np.ndarray:
    """A number for each row, (N,) uint32, to find the first row in which two data sets differ.

    Of its label and its file's name, and, of the images that `data_fingerprint` reads, of their bytes.
    """
    images = without_format(dataset).select_columns(image_column)
    images = images.cast_column(image_column, datasets.Image(decode=False))
    labels = labels_of(dataset, label_column) if label_column in dataset.column_names else np.zeros(len(dataset))
    marks = np.empty(len(dataset), dtype=np.uint32)
    path = f"{image_column}.path"
    paths = images.flatten().select_columns(path)  # without the bytes, which may be of a million images
    for start in range(0, len(dataset), _MARKED_ROWS):
        for index, name in enumerate(paths[start : start + _MARKED_ROWS][path], start):
            marks[index] = zlib.crc32(os.fsencode(os.path.basename(name or "")), int(labels[index]) & 0xFFFFFFFF)
    for index in _fingerprinted(len(dataset)):
        marks[index] = zlib.crc32(_encoded(images[index][image_column]), int(marks[index]))
    return marks


def _fingerprinted(rows: int) -> list[int]:
    """The rows whose images `data_fingerprint` reads."""
    return np.linspace(0, rows - 1, num=min(rows, _FINGERPRINT_IMAGES), dtype=np.int64).tolist()
