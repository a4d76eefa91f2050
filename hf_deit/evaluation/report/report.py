"""A report of an evaluation: as Markdown with pictures, as one page for browsers, and as JSON.

All three say the same. results.json holds, under "sections", what each section has measured, by its name; under
"provenance" what it was measured on and with; under "card" what belongs into a model card; under "files" the digests
of the pictures and other files beside it.
"""

import base64
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ...errors import escaped, printable
from ...hub.facts import LOCAL_DATA_SET, OWN_IMAGES, SKLEARN_DIGITS, UNNAMED_IMAGES, Source
from ...hub.files import open_regular, read_json, temporary_beside, write_whole, writing
from ...hub.markdown import code_span, escape_markdown, table_cell
from ...hub.report_in_card import (
    INTERVAL,
    LONG_TABLE,
    RESULTS_FILE,
    SCHEMA_VERSION,
    CardPicture,
    CardReport,
    CardResult,
    CardSection,
    CardTable,
    cell_text,
    digest_of,
    is_numeric,
    section_markdown,
)
from ..sections import Estimate, Picture, Result, Section, Table

MARKDOWN_FILE, PAGE_FILE = "report.md", "report.html"
_NAME = re.compile(r"[A-Za-z0-9_]+")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")
_FILTERED_TABLE = 12  # rows; a longer one can be searched
_COMMIT = re.compile(r"[0-9a-f]{40}")


def write_report(folder: str | os.PathLike[str], sections: Sequence[Section], provenance: Mapping[str, Any]) -> None:
    """Writes report.md, report.html, results.json, and the pictures and attachments of the sections beside them.

    An earlier report's files in the folder go, as far as they are as they were written; others stay. The same
    arguments give the same bytes. Numbers that are not finite are left out: null in JSON, an empty cell in a table.

    Args:
        folder: made if it is not there.
        sections: at least one, in the order in which they are shown.
        provenance: where the numbers come from, of JSON's types: "command", "time", "seed" and whatever else tells it;
            "images", with "words" and, as far as there are such, "name", "config", "split" and "revision"; "models",
            each with its "name", "architecture", "weights", "version" (a commit, or `weights_digest` of its folder)
            and "preprocessing" (`preprocessing_digest` of it), of which the first is the one that the report is about;
            "settings", where models are not shown images as their users show them; "environment", from
            `describe_environment`.

    Raises:
        ValueError: two sections, tables or files have the same name, or a table's rows do not fit its columns.
        CheckpointError: it cannot be written.
    """
    _check(sections)
    names = _file_names(sections)
    sections = [_plain_section(section) for section in sections]
    provenance = plain(provenance)
    files: dict[str, bytes] = {}
    for section in sections:
        files |= {names[picture.name, ".png"]: picture.png for picture in section.pictures}
        files |= {names[attachment.name, ""]: attachment.content for attachment in section.attachments}
    pages = {
        MARKDOWN_FILE: _markdown(sections, provenance, names).encode(),
        PAGE_FILE: _page(sections, provenance, names).encode(),
    }
    card = _card(sections, provenance, names)
    results = {
        "schema_version": SCHEMA_VERSION,
        "provenance": provenance,
        "sections": {section.name: section.numbers for section in sections},
        "card": plain(card.to_dict()),
        "files": {name: digest_of(content) for name, content in sorted(files.items())},
    }
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(f"the report in {escaped(os.fspath(folder))!r}"):
        os.makedirs(folder, exist_ok=True)
        contents = {**files, **pages, RESULTS_FILE: text}  # that one last: with it the report is whole
        staged = {name: temporary_beside(os.path.join(folder, name)) for name in contents}
        try:  # an earlier report goes when the disk has taken all of this one
            for name, content in contents.items():
                write_whole(content, staged[name])
            _remove_earlier(folder, keep=files)
            for name, temporary in staged.items():
                os.replace(temporary, os.path.join(folder, name))
        finally:
            for temporary in staged.values():
                with suppress(FileNotFoundError):
                    os.remove(temporary)


def _check(sections: Sequence[Section]) -> None:
    if not sections:
        raise ValueError("a report has at least one section")
    for kind, names in (
        ("sections", [section.name for section in sections]),
        *((f"tables of {section.name}", [table.name for table in section.tables]) for section in sections),
    ):
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{kind} have names of letters, digits and underscores, got {name!r}")
            if names.count(name) > 1:
                raise ValueError(f"two {kind} are called {name!r}")
    for section in sections:
        for table in section.tables:
            if any(len(row) != len(table.columns) for row in table.rows):
                raise ValueError(f"the table {table.name!r} has rows of other lengths than its columns")


def _file_names(sections: Sequence[Section]) -> dict[tuple[str, str], str]:
    """The files of pictures and attachments, by name and ending: on every file system, and in every address.

    Raises:
        ValueError: two have the same.
    """
    wanted = [(picture.name, ".png") for section in sections for picture in section.pictures]
    wanted += [(attachment.name, "") for section in sections for attachment in section.attachments]
    names, taken = {}, {MARKDOWN_FILE, PAGE_FILE, RESULTS_FILE}
    for name, ending in wanted:
        file = _file_name(name, ending)
        if file.lower() in taken:
            raise ValueError(f"two files of the report are called {file!r}: give each picture and file another name")
        taken.add(file.lower())
        names[name, ending] = file
    return names


def _file_name(name: str, ending: str) -> str:
    if _FILE_NAME.fullmatch(name) and not name.endswith("."):
        return name + ending
    stem, suffix = (name, ending) if ending else os.path.splitext(name)
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip(".-")[:80]
    suffix = re.sub(r"[^A-Za-z0-9.]", "", suffix)[:10]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{readable or 'file'}-{digest}{suffix}"


def plain(value: Any) -> Any:
    """What JSON can hold of a value: of NumPy's scalars and arrays, too. A number that is not finite is None.

    Raises:
        TypeError: it is of another type.
    """
    if isinstance(value, Estimate):
        numbers = [plain(number) for number in (value.value, value.low, value.high)]
        return None if None in numbers else dict(zip(("value", "low", "high"), numbers, strict=True))
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):  # halves of characters, as of file names that are no UTF-8, are none in JSON
        return str(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    raise TypeError(f"{type(value).__name__} is none of JSON's types: {value!r}")


def _plain_section(section: Section) -> Section:
    """A section whose cells and numbers are of JSON's types."""
    tables = tuple(replace(table, rows=tuple(tuple(plain(row)) for row in table.rows)) for table in section.tables)
    return replace(section, tables=tables, numbers=plain(section.numbers))


def _remove_earlier(folder: str | os.PathLike[str], keep: Mapping[str, bytes]) -> None:
    """Removes what an earlier report has written here, by its own list, and what is still as it was."""
    try:
        listed = read_json(os.path.join(folder, RESULTS_FILE))["files"]
        earlier = {name: digest for name, digest in listed.items() if os.path.basename(name) == name}
    except (OSError, ValueError, KeyError, AttributeError):
        return  # there is none, or it says nothing
    for name in sorted(earlier.keys() - keep.keys()):
        path = os.path.join(folder, name)
        with suppress(OSError, ValueError):
            with open_regular(path, getattr(os, "O_NOFOLLOW", 0)) as file:
                is_own = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == earlier[name]
            if is_own:
                os.remove(path)


# What stands on top


def _models(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(provenance.get("models") or ())


def _subject(sections: Sequence[Section], provenance: Mapping[str, Any]) -> str | None:
    """The short name of the model that a report is about."""
    names = [str(model["name"]) for model in _models(provenance) if model.get("name")]
    names += [result.model for section in sections for result in section.results]
    return names[0] if names else None


def _data(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    return provenance.get("images") or {}


def _images(provenance: Mapping[str, Any]) -> str | None:
    return _text_or_none(_data(provenance).get("words") or _data(provenance).get("name"))


def _answers(sections: Sequence[Section]) -> list[Result]:
    """The first result of each model by its own answer."""
    answers: dict[str, Result] = {}
    for result in (result for section in sections for result in section.results):
        if result.is_answer and plain(result.estimate) is not None:
            answers.setdefault(result.model, result)
    return list(answers.values())


def _sentences(sections: Sequence[Section], provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of each model its name and, in a sentence, what it is and how often it is right."""
    answers = {result.model: result for result in _answers(sections)}
    described = {str(model.get("name")): model for model in _models(provenance)}
    sentences = []
    for name in dict.fromkeys([*described, *answers]):
        model = described.get(name, {})
        weights = {"raw": "weights as trained", "ema": "averaged weights"}.get(str(model.get("weights")))
        words = [str(word) for word in (model.get("architecture"), weights) if word]
        if name in answers:
            result = answers[name]
            low, high = (f"{end:.4f}" for end in (result.estimate.low, result.estimate.high))
            words.append(
                f"{result.metric} {result.estimate.value:.4f} ({INTERVAL} {low} to {high}) on "
                f"{result.num_images:,} images, by {result.rule}"
            )
        sentences.append((name, ", ".join(words)))
    return sentences


# Markdown


def _markdown(sections: Sequence[Section], provenance: Mapping[str, Any], names: Mapping[tuple[str, str], str]) -> str:
    subject = _subject(sections, provenance)
    parts = [f"# Evaluation{f' of {escape_markdown(subject)}' if subject else ''}"]
    if images := _images(provenance):
        parts.append(f"Measured on {escape_markdown(images)}.")
    if sentences := _sentences(sections, provenance):
        parts.append(
            "\n".join(f"- **{escape_markdown(name)}**: {escape_markdown(words)}." for name, words in sentences)
        )
    for section in sections:
        parts += [f"## {escape_markdown(section.title)}", *map(escape_markdown, section.text)]
        parts += section_markdown(_card_section(section.title, section.tables, section.pictures, names))
        for attachment in section.attachments:
            file = names[attachment.name, ""]
            parts.append(f"[{escape_markdown(file)}]({file}): {escape_markdown(attachment.caption)}")
        if measured := _rows_of(section.numbers.get("measured_on")):
            parts += ["Measured otherwise than the rest:", _list_markdown(measured)]
    rows = _rows_of(provenance)
    if rows:
        parts += ["## How it was measured", _list_markdown(rows)]
    return "\n\n".join(parts) + "\n"


def _list_markdown(rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {table_cell(name)} | {code_span(value, in_table=True) if value else ''} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _rows_of(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested values as a list: "models, digits, weights" and "raw"."""
    if isinstance(value, Mapping) and name.endswith("libraries"):  # with their versions: a line, not a page
        return [(name, ", ".join(f"{key} {item}" for key, item in value.items()))]
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        items = [_named(item, number) for number, item in enumerate(value, 1)]
    elif value is None:
        return []
    else:
        return [(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]
    return [row for key, item in items for row in _rows_of(item, f"{name}, {key}" if name else key)]


def _named(item: Any, number: int) -> tuple[str, Any]:
    """An item of a list by its name, if it has one."""
    if not isinstance(item, Mapping) or not item.get("name"):
        return str(number), item
    others = {key: value for key, value in item.items() if key != "name"}
    return str(item["name"]), others or ""


# The page


def _shown(value: Any) -> Any:
    """Text from data on the page: in one line, and nothing in it steers."""
    return printable(" ".join(value.split())) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.join(os.path.dirname(__file__), "templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _sorting(cell: Any) -> float | int | None:
    """By what a cell is sorted among numbers; None of a text, and of nothing."""
    value = cell["value"] if isinstance(cell, Mapping) else cell
    return None if isinstance(value, str) else value


def _strip(answers: Sequence[Result]) -> list[dict[str, Any]]:
    """Where the interval of each model lies on a scale that has all of them, in percent of its width."""
    low = math.floor(min(result.estimate.low for result in answers) * 50) / 50
    high = math.ceil(max(result.estimate.high for result in answers) * 50) / 50
    width = (high - low) or 1
    ends = {"from": f"{low:.2f}", "to": f"{high:.2f}"}
    places = [
        [100 * (at - low) / width for at in (result.estimate.low, result.estimate.value, result.estimate.high)]
        for result in answers
    ]
    return [
        {**ends, "result": result, "left": f"{left:.2f}", "at": f"{at:.2f}", "length": f"{right - left:.2f}"}
        for result, (left, at, right) in zip(answers, places, strict=True)
    ]


def _page(sections: Sequence[Section], provenance: Mapping[str, Any], names: Mapping[tuple[str, str], str]) -> str:
    environment = _environment()
    sources = {name: environment.loader.get_source(environment, name)[0] for name in ("report.js", "report.css")}
    digest = base64.b64encode(hashlib.sha256(sources["report.js"].encode()).digest()).decode()
    answers = _answers(sections)

    def address(picture: Picture) -> str:
        return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"

    return environment.get_template("report.html").render(
        subject=_subject(sections, provenance),
        images=_images(provenance),
        sentences=_sentences(sections, provenance),
        answers=answers,
        strip=_strip(answers) if answers else [],
        sections=sections,
        provenance=_rows_of(provenance),
        file_of=lambda attachment: names[attachment.name, ""],
        address=address,
        size_of=_size_of,
        cell_text=cell_text,
        sorting=_sorting,
        is_numeric=is_numeric,
        rows_of=_rows_of,
        interval=INTERVAL,
        long_table=LONG_TABLE,
        filtered_table=_FILTERED_TABLE,
        script=Markup(sources["report.js"]),
        style=Markup(sources["report.css"]),
        script_digest=digest,
    )


def _size_of(png: bytes) -> tuple[int, int] | None:
    """The (width, height) of a PNG, by its header; None if it is no PNG."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        return None
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


# The card


def _card(
    sections: Sequence[Section], provenance: Mapping[str, Any], names: Mapping[tuple[str, str], str]
) -> CardReport:
    """What belongs into a card."""
    models, data, subject = _models(provenance), _data(provenance), _subject(sections, provenance)
    model: Mapping[str, Any] = models[0] if models else {}
    source, version = _source_of(data), str(model.get("version"))
    libraries = (provenance.get("environment") or {}).get("libraries") or {}

    def chosen(section: Section) -> CardSection:
        tables, pictures = ((part for part in parts if part.in_card) for parts in (section.tables, section.pictures))
        return _card_section(section.title, tables, pictures, names)

    return CardReport(
        model=subject or "model",
        weights=version if version.startswith("sha256:") else None,
        preprocessing=_text_or_none(model.get("preprocessing")),
        source=source,
        config=_text_or_none(data.get("config")),
        split=_text_or_none(data.get("split")),
        images=_images(provenance) or source.name,
        labels=_labels(data),
        settings=", ".join(f"{name} {value}" for name, value in _rows_of(provenance.get("settings"))),
        version=str(libraries.get("hf_deit", "of an unknown version")),
        results=tuple(
            CardResult(
                metric=result.metric,
                metric_type=result.metric_type,
                rule=result.rule,
                num_images=result.num_images,
                **plain(result.estimate),
            )
            for section in sections
            for result in section.results
            if result.model == subject and plain(result.estimate) is not None
        ),
        sections=tuple(part for part in map(chosen, sections) if part.tables or part.pictures),
    )


def _card_section(
    title: str, tables: Iterable[Table], pictures: Iterable[Picture], names: Mapping[tuple[str, str], str]
) -> CardSection:
    """Tables and pictures with the files of these, as cards and Markdown have them."""
    return CardSection(
        title,
        tuple(CardTable(table.caption, table.columns, table.rows) for table in tables),
        tuple(CardPicture(names[item.name, ".png"], item.caption, item.alt) for item in pictures),
    )


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _labels(data: Mapping[str, Any]) -> str | None:
    """Labels that are not those of the images' source, in words."""
    if data.get("label_set") == "real":
        return "ImageNet-ReaL's labels"
    return f"labels of {data['label_file']}" if data.get("label_file") else None


def _source_of(data: Mapping[str, Any]) -> Source:
    """The images, as cards name them."""
    if data.get("kind") == "hub":
        revision = str(data.get("revision"))
        return Source(
            str(data["name"]), revision if _COMMIT.fullmatch(revision) else None, on_hub=True, is_dataset=True
        )
    kinds = {"digits": SKLEARN_DIGITS, "folder": OWN_IMAGES, "local": LOCAL_DATA_SET}
    return kinds.get(data.get("kind"), UNNAMED_IMAGES)
