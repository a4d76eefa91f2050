"""What stands beside exported programs: which model they are of, what they take and give, and how they were proven.

One `export.json` in the folder of each format: onnx/, openvino/, executorch/, torch/.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import brief, one_line
from .files import read_json, regular_file
from .foreign_json import check_fraction, read_as

RECORD_FILE = "export.json"
FORMATS = ("onnx", "openvino", "executorch", "torch")  # and the names of their folders
PRECISIONS = ("float32", "int8-dynamic", "int8-static")
CLASSIFIER, MODEL, SUPPORT = PURPOSES = ("classifier", "model", "support")  # of a file; see `ExportedFile`
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")
_MOST_BYTES = 1 << 26  # of a record
_SHA256 = re.compile("[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export.

    Attributes:
        name: in the folder of its format.
        purpose: "classifier" (takes images, gives probabilities), "model" (takes pixel_values, gives logits), or
            "support" (what goes with another: weights beside a graph, a reference preprocessor, golden values).
        precision: of `PRECISIONS`; None of a file that has none.
        num_bytes: its size.
        sha256: of its content.
    """

    name: str
    purpose: str
    precision: str | None
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ParityRecord:
    """How the answers of an exported classifier compare with those of the trained one, on the same images.

    Fractions with their 95 % intervals are {"value", "low", "high"}.

    Attributes:
        precision: of `PRECISIONS`.
        images: in words.
        num_images: N.
        agreement: fraction of images to which both give the same best label.
        largest_difference: of a probability, over all images and labels.
        usual_difference: that nine of ten images stay below: of each its largest difference of a probability.
        accuracy, trained_accuracy: of the exported and the trained classifier, over `num_labelled` of the images; None
            without labels.
        cost: how much less often the exported one is right (positive: it lost), with its paired interval; or None.
        differing: of images with another best label, at most 20: {"image", "trained", "exported"}, these labels'
            probabilities by the one who gives them, {"trained_probability", "exported_probability"}, the largest
            "difference" of a probability, and "margin", by which the trained one's best is ahead of its second.
        runtime: such as {"onnxruntime": "1.32.0", "python": "3.11.9"}.
        without_torch: whether the answering process could not import torch.
        left_out: why images are in none of these numbers, by name.
        odd_images: the same of built-in odd images: {"images", "num_images", "agreement", "largest_difference",
            "usual_difference", "differing"}; None where they are all that there was.
    """

    precision: str
    images: str
    num_images: int
    agreement: dict[str, float]
    largest_difference: float
    accuracy: dict[str, float] | None
    trained_accuracy: dict[str, float] | None
    cost: dict[str, float] | None
    differing: tuple[dict[str, Any], ...]
    runtime: dict[str, str]
    without_torch: bool
    usual_difference: float | None = None
    num_labelled: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    odd_images: dict[str, Any] | None = None


@dataclass(frozen=True)
class ExportRecord:
    """What `export.json` holds.

    Attributes:
        format: of `FORMATS`.
        model: `ExportSource.facts`.
        labels: in the order of the probabilities.
        preprocessing: `Preprocessing.to_dict()`.
        files: of this folder, each with its digest.
        parity: one of each precision.
        versions: of the packages that made it.
        quantization: by precision: what was quantised, how calibrated, which layers were left out.
    """

    format: str
    model: dict[str, Any]
    labels: tuple[str, ...]
    preprocessing: dict[str, Any]
    files: tuple[ExportedFile, ...]
    parity: tuple[ParityRecord, ...]
    versions: dict[str, str]
    quantization: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> "ExportRecord":
        """Reads what `to_dict` gave, after JSON, from whomever it may be.

        Raises:
            ValueError: it is anything else. The message says what.
        """
        record = read_as(cls, values, "record")
        _check(record)
        return record


@dataclass(frozen=True)
class _OddImages:
    """`ParityRecord.odd_images`."""

    num_images: int
    agreement: Mapping[str, float]
    images: str = ""
    largest_difference: float = 0.0
    usual_difference: float | None = None
    differing: tuple[dict[str, Any], ...] = ()


def read_record(folder: str | os.PathLike[str], format: str) -> ExportRecord | None:
    """What is said of an export that lies beside a model; nothing is known of its files by that.

    Args:
        folder: the model's.
        format: of `FORMATS`.

    Returns:
        None if there is none.

    Raises:
        ValueError: it cannot be read, or is of another format.
    """
    name = f"{format}/{RECORD_FILE}"
    if not os.path.lexists(os.path.join(folder, name)):
        return None
    try:
        path = regular_file(folder, name)
        if (size := os.path.getsize(path)) > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes")
        record = ExportRecord.from_dict(read_json(path))
        if record.format != format:
            raise ValueError(f"it is of {record.format}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read ({one_line(error)})") from error
    return record


def _check(record: ExportRecord) -> None:
    """Refuses what no export says.

    Raises:
        ValueError: it says it.
    """
    names = [file.name for file in record.files]
    if len({name.lower() for name in (*names, RECORD_FILE)}) <= len(names):  # as some file systems take them
        raise ValueError(f"two of its files have the same name, or one is called {RECORD_FILE}")
    precisions = [parity.precision for parity in record.parity]
    if len({*precisions}) < len(precisions):
        raise ValueError("it compares a precision twice")
    for value, choices in (
        (record.format, FORMATS),
        *((file.purpose, PURPOSES) for file in record.files),
        *((file.precision, (*PRECISIONS, None)) for file in record.files),
        *((precision, PRECISIONS) for precision in precisions),
    ):
        if value not in choices:
            raise ValueError(
                f"it has {brief(value, most=60)} where one of {', '.join(map(str, choices))} was expected"
            )
    for value, form in (
        *((name, FILE_NAME) for name in names),
        *((file.sha256, _SHA256) for file in record.files),
        *((record.model.get(name), _DIGEST) for name in ("weights_digest", "preprocessing_digest")),
        (record.model.get("revision"), _COMMIT),
    ):
        if value is not None and not (isinstance(value, str) and form.fullmatch(value)):
            raise ValueError(f"it has {brief(value, most=60)} where {form.pattern} was expected")
    if any(file.num_bytes < 0 for file in record.files):
        raise ValueError("a file of it has less than no bytes")
    for parity in record.parity:
        for name in ("agreement", "accuracy", "trained_accuracy", "cost"):
            interval = getattr(parity, name)
            if interval is not None:
                if interval.keys() != {"value", "low", "high"}:
                    raise ValueError(f"its {name} is {brief(interval, most=60)}, expected an interval")
                check_fraction(interval, name, least=-1 if name == "cost" else 0)
        if parity.odd_images is not None:
            odd = read_as(_OddImages, parity.odd_images, "odd_images")
            check_fraction(odd.agreement, "agreement")
        if parity.num_images < 0 or not 0 <= parity.largest_difference <= 1:
            raise ValueError(
                f"its largest difference is {parity.largest_difference} on {parity.num_images} images, expected one "
                "of probabilities"
            )
