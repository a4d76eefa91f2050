"""What a card says of a report of `hf-deit evaluate`, and what is published of one that lies beside a model.

Of results.json only what is meant for cards is read, as data that may be anything; it and the pictures that it names
are published, without whatever else lies there.
"""

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.utils import logging

from ..errors import InputError, brief, one_line, printable, with_bounds
from ..models.pretrained import weights_digest
from .facts import CONFIDENCE, Source
from .files import open_regular, read_json, regular_file, write_json, write_whole
from .foreign_json import check_fraction, read_as, without_paths
from .markdown import escape_markdown, table_cell

logger = logging.get_logger(__name__)

REPORT_FOLDER = "report"  # in a model's folder
RESULTS_FILE = "results.json"
SCHEMA_VERSION = 1
LONG_TABLE = 40  # rows; a longer one is folded up
INTERVAL = f"{100 * CONFIDENCE:g} % interval"
_PREPROCESSOR = "preprocessor_config.json"
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 32 << 20  # of a picture
_MOST_BYTES_OF_RESULTS = 1 << 28
_PICTURE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}\.png")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
Cell = str | int | float | Mapping[str, float] | None  # a mapping has "value", "low" and "high"


@dataclass(frozen=True)
class CardTable:
    """A table of a card: as many cells in each row as there are columns."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class CardPicture:
    """A picture of a card: the name of its file in the report, with ".png", and the words beside it."""

    file: str
    caption: str
    alt: str


@dataclass(frozen=True)
class CardSection:
    """What belongs together of a report."""

    title: str
    tables: tuple[CardTable, ...] = ()
    pictures: tuple[CardPicture, ...] = ()


@dataclass(frozen=True)
class CardResult:
    """A figure for a card's metadata: value, low and high are fractions; see `hf_deit.evaluation.sections.Result`."""

    metric: str
    metric_type: str
    rule: str
    value: float
    low: float
    high: float
    num_images: int


@dataclass(frozen=True)
class CardReport:
    """What belongs into a card of a report, without names of folders of a machine.

    Attributes:
        model: what the report calls it.
        weights: `weights_digest` of the model's folder, or None if it had none.
        preprocessing: the digest of its preprocessor_config.json, or None if that is not known.
        source, config, split: of the images.
        images: they, in words.
        labels: in words, if the images have others than those of their source; else None.
        settings: of the evaluation, where they are not the model's own, in words.
        version: of this package.
        results: of this model, the most important first.
        sections: with at least a table or a picture each.
    """

    model: str
    weights: str | None
    preprocessing: str | None
    source: Source
    config: str | None
    split: str | None
    images: str
    labels: str | None
    settings: str
    version: str
    results: tuple[CardResult, ...] = ()
    sections: tuple[CardSection, ...] = ()

    @property
    def pictures(self) -> tuple[str, ...]:
        """The names of their files."""
        return tuple(picture.file for section in self.sections for picture in section.pictures)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, in which texts name no folder by an absolute path; `from_dict` reads it."""
        return without_paths(asdict(self))

    @classmethod
    def from_dict(cls, values: object) -> "CardReport":
        """Reads what `to_dict` gave, from whomever it may be.

        Raises:
            ValueError: it is anything else. The message says what.
        """
        report = read_as(cls, without_paths(values), "card")
        _check(report)
        return report


def _check(report: CardReport) -> None:
    """Refuses what no report says.

    Raises:
        ValueError: it says it.
    """
    for value, form in (
        *((value, _DIGEST) for value in (report.weights, report.preprocessing)),
        (report.source.commit, _COMMIT),
        *((name, _PICTURE_NAME) for name in report.pictures),
    ):
        if value is not None and not form.fullmatch(value):
            raise ValueError(f"it has {brief(value, most=60)} where {form.pattern} was expected")
    if len({*report.pictures}) < len(report.pictures):
        raise ValueError("two of its pictures have the same file")
    if report.source.on_hub:
        try:
            validate_repo_id(report.source.name)
        except HFValidationError as error:
            raise ValueError(f"its source is no name of the Hub ({one_line(error)})") from error
    for result in report.results:
        check_fraction({"value": result.value, "low": result.low, "high": result.high}, "result")
        if result.num_images < 0:
            raise ValueError(f"its result is of {result.num_images} images, expected some")
    for table in (table for section in report.sections for table in section.tables):
        if not table.columns or any(len(row) != len(table.columns) for row in table.rows):
            raise ValueError("a table has rows of other lengths than it has columns")


# What is shown of it


def cell_text(cell: Cell) -> str:
    """A cell of a table in words: a fraction with four digits, another number with four that count."""
    if cell is None:
        return ""
    if isinstance(cell, Mapping):
        return with_bounds(cell["value"], cell["low"], cell["high"])
    if isinstance(cell, str):
        return _in_a_line(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    if abs(cell) <= 1:
        return f"{cell:.4f}" if abs(cell) >= 0.00005 or cell == 0 else f"{cell:.1e}"
    return f"{cell:,.{max(0, 3 - math.floor(math.log10(abs(cell))))}f}"


def _in_a_line(text: str) -> str:
    return printable(" ".join(text.split()))


def is_numeric(rows: Iterable[Sequence[Cell]], column: int) -> bool:
    """Whether a column has numbers alone, and at least one; empty cells aside."""
    cells = [row[column] for row in rows if row[column] is not None]
    return bool(cells) and not any(isinstance(cell, str) for cell in cells)


def table_markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table in Markdown, in which names read as they are written; a long one is folded up."""
    rules = ["---:" if is_numeric(rows, index) else "---" for index in range(len(columns))]
    lines = [[table_cell(name) if name.strip() else "" for name in columns], rules]
    for row in rows:
        # A cell without a text is empty, and a text without a letter is a name.
        lines.append([table_cell(cell) if isinstance(cell, str) and cell else cell_text(cell) for cell in row])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if len(rows) <= LONG_TABLE:
        return table
    return f"<details>\n<summary>{len(rows):,} rows</summary>\n\n{table}\n\n</details>"


def section_markdown(section: CardSection, folder: str = "") -> list[str]:
    """A section's tables and pictures, with their captions, in Markdown.

    Args:
        folder: of the pictures' files, with a slash at its end.
    """
    parts = []
    for table in section.tables:
        parts += [f"*{escape_markdown(table.caption)}*", table_markdown(table.columns, table.rows)]
    for item in section.pictures:
        parts += [f"![{escape_markdown(item.alt)}]({folder}{item.file})", f"*{escape_markdown(item.caption)}*"]
    return parts


def report_markdown(report: CardReport) -> str:
    """A report as a part of the card of the model beside which it lies."""
    parts = ["## Evaluation", _introduction(report)]
    for section in report.sections:
        parts += [f"### {escape_markdown(section.title)}", *section_markdown(section, f"{REPORT_FOLDER}/")]
    return "\n\n".join(parts)


def _introduction(report: CardReport) -> str:
    where = escape_markdown(report.images) + (f" ({report.source})" if report.source.on_hub else "")
    name = escape_markdown(report.model)
    lines = [f"Measured with these weights, which are called {name} here, by `hf-deit evaluate` on {where}."]
    if report.results:
        first = report.results[0]
        lines.append(
            f"**{escape_markdown(first.metric)} {with_bounds(first.value, first.low, first.high)}** on "
            f"{first.num_images:,} images, by {escape_markdown(first.rule)}; in brackets the {INTERVAL}."
        )
    if report.settings:
        lines.append(f"Other than by default: {escape_markdown(report.settings)}.")
    return " ".join(lines)


def eval_results(report: CardReport, dataset_type: str) -> list[EvalResult]:
    """What a card's metadata say of a report, with intervals.

    Args:
        dataset_type: what machines call its images.
    """
    otherwise = {"labels": report.labels, "settings": report.settings}
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset_type,
            dataset_name=_in_a_line(report.source.name),
            dataset_config=report.config and _in_a_line(report.config),
            dataset_split=report.split and _in_a_line(report.split),
            dataset_revision=report.source.commit,
            dataset_args={"num_images": result.num_images},
            metric_type=result.metric_type,
            metric_name=_in_a_line(
                f"{result.metric}{' accuracy' if result.metric.startswith('top-') else ''}, {result.rule}"
                f"{f', {report.labels}' if report.labels else ''}"
            ),
            metric_value=round(result.value, 4),
            metric_args={
                **interval_args(result.low, result.high),
                "num_images": result.num_images,
                **{name: _in_a_line(words) for name, words in otherwise.items() if words},
                "measured_by": f"hf_deit {report.version}",
            },
            verified=False,
        )
        for result in report.results
    ]


def interval_args(low: float, high: float) -> dict[str, float]:
    """A confidence interval, as a card's metadata say it of a metric."""
    return {"confidence": CONFIDENCE, "low": round(low, 4), "high": round(high, 4)}


def without_repeats(
    results: Sequence[EvalResult], report: CardReport, measured: Sequence[EvalResult]
) -> list[EvalResult]:
    """Results of a training that a report has not measured anew: on the same images and labels, as its users do it.

    Args:
        results: of the training.
        measured: `eval_results` of the report.
    """
    if report.labels or report.settings:
        return list(results)

    def images(result: EvalResult) -> tuple[Any, ...]:  # local data sets all have the same name
        return result.unique_identifier, None if report.source.on_hub else result.dataset_args["num_images"]

    again = {images(result) for result in measured}
    return [result for result in results if images(result) not in again]


# Where it lies


def preprocessing_digest(folder: str | os.PathLike[str]) -> str | None:
    """A digest of how a folder says that its images are preprocessed, "sha256:…"; None if it does not say it."""
    try:
        with open_regular(os.path.join(folder, _PREPROCESSOR)) as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:
        return None


def read_report(folder: str | os.PathLike[str]) -> tuple[CardReport, dict[str, bytes]] | None:
    """The report that lies beside a model and is of it, with its pictures by the names of their files.

    Returns:
        None if there is none to publish; why not is warned of.
    """
    path = os.path.join(folder, REPORT_FOLDER, RESULTS_FILE)
    if not os.path.lexists(path):
        return None
    try:
        report, digests = _read(folder)
        if report.weights is None:
            raise ValueError("it does not say of which weights it is")
        if report.weights != weights_digest(folder):
            raise ValueError("it is of other weights, or of another configuration, than the model's")
        if report.preprocessing not in (None, preprocessing_digest(folder)):
            raise ValueError(f"it was measured with another {_PREPROCESSOR}")
        pictures = {name: _picture(folder, name, digests.get(name)) for name in report.pictures}
    except (InputError, OSError, ValueError) as error:
        logger.warning(
            "the report in %r is left out of what is published, as %s: run hf-deit evaluate again",
            *(printable(os.path.dirname(path)), printable(one_line(error))),
        )
        return None
    return report, pictures


def _read(folder: str | os.PathLike[str]) -> tuple[CardReport, Mapping[str, Any]]:
    name = f"{REPORT_FOLDER}/{RESULTS_FILE}"
    try:
        path = regular_file(folder, name)
        if (size := os.path.getsize(path)) > _MOST_BYTES_OF_RESULTS:
            raise ValueError(f"it has {size:,} bytes")
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read ({one_line(error)})") from error
    if content.get("schema_version") != SCHEMA_VERSION:
        found = brief(content.get("schema_version"), most=60)
        raise ValueError(f"{name} has the schema version {found}, expected {SCHEMA_VERSION}")
    digests = content.get("files")
    if not isinstance(digests, dict):
        raise ValueError(f"{name} lists no files")
    try:
        return CardReport.from_dict(content.get("card")), digests
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{name} is not as it was written ({one_line(error)})") from error


def _picture(folder: str | os.PathLike[str], name: str, digest: object) -> bytes:
    with open_regular(regular_file(folder, f"{REPORT_FOLDER}/{name}")) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES or not content.startswith(_PNG):
        raise ValueError(f"{name} is no PNG of at most {_MOST_BYTES >> 20} MiB")
    if digest != digest_of(content):
        raise ValueError(f"{name} is not as it was written")
    return content


def digest_of(content: bytes) -> str:
    """As results.json has it of the report's files."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def stage_report(folder: str | os.PathLike[str], tree: str | os.PathLike[str]) -> None:
    """Collects what is published of the report beside a model, if it is of it; another one goes from the tree.

    Args:
        folder: the model's.
        tree: where the model has been collected.

    Raises:
        OSError: it cannot be written.
    """
    found, target = read_report(folder), os.path.join(tree, REPORT_FOLDER)
    shutil.rmtree(target, ignore_errors=True)  # of weights that waited for a push before
    if found is None:
        return
    report, pictures = found
    # What is published of a configuration may be less than what lies there.
    published = replace(report, weights=weights_digest(tree), preprocessing=preprocessing_digest(tree))
    os.makedirs(target)
    for name, content in pictures.items():
        write_whole(content, os.path.join(target, name))
    digests = {name: digest_of(content) for name, content in pictures.items()}
    content = {"schema_version": SCHEMA_VERSION, "card": published.to_dict(), "files": digests}
    write_json(content, os.path.join(target, RESULTS_FILE))


def staged_report(tree: str | os.PathLike[str]) -> CardReport | None:
    """What `stage_report` has put into a tree."""
    if not os.path.isfile(os.path.join(tree, REPORT_FOLDER, RESULTS_FILE)):
        return None
    return _read(tree)[0]


def files_of_report(path: str | os.PathLike[str]) -> set[str]:
    """The files of the report that is published with this results.json, itself among them, by their names there."""
    names: set[str] = set()
    try:
        listed = read_json(path)["files"]
        names = {name for name in listed if _PICTURE_NAME.fullmatch(name)}
    except (OSError, ValueError, KeyError, TypeError):
        return names  # it is none of ours
    return {f"{REPORT_FOLDER}/{name}" for name in (*names, RESULTS_FILE)}
