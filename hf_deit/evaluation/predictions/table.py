"""The table of predictions as CSV, Parquet or JSON lines, of the same columns and values."""

import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ...hub.files import whole_file

Row = Sequence[Any]
_QUOTED = re.compile('[",\r\n]')
_GROUP = 1 << 16  # rows of a row group of Parquet's
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def write_table(path: str, columns: dict[str, type], rows: Iterable[Row]) -> None:
    """Writes a table, whole or not at all.

    Args:
        path: ends in .csv (RFC 4180, with line feeds alone), .parquet or .jsonl.
        columns: their types, str, int or float, by name.
        rows: values of these types, none of them missing.

    Raises:
        OSError: it cannot be written.
    """
    write = {".csv": _write_csv, ".parquet": _write_parquet, ".jsonl": _write_jsonl}[_suffix(path)]
    with whole_file(path) as file:
        write(file, columns, rows)


def read_columns(path: str, wanted: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Some columns of a table from `write_table`, row by row.

    Raises:
        OSError, ValueError, KeyError: it cannot be read, or is none.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(columns=list(wanted)):
            yield from zip(*(batch[name].to_pylist() for name in wanted), strict=True)
        return
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file) if suffix == ".csv" else map(json.loads, file)
        for row in rows:
            yield tuple(row[name] for name in wanted)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _write_csv(file: BinaryIO, columns: dict[str, type], rows: Iterable[Row]) -> None:
    for row in itertools.chain([columns], rows):
        file.write(",".join(map(_cell, row)).encode() + b"\n")


def _cell(value: str | int | float) -> str:
    text = value if isinstance(value, str) else repr(value)  # of a float the shortest text that gives it again
    # Python's writer leaves a carriage return without quotation marks, at which its reader ends the row.
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _write_jsonl(file: BinaryIO, columns: dict[str, type], rows: Iterable[Row]) -> None:
    for row in rows:
        values = dict(zip(columns, row, strict=True))
        file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")


def _write_parquet(file: BinaryIO, columns: dict[str, type], rows: Iterable[Row]) -> None:
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    rows = iter(rows)
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(itertools.islice(rows, _GROUP)):
            arrays = zip(*group, strict=True)
            writer.write_table(
                pa.table([pa.array(values, kind) for values, kind in zip(arrays, schema.types, strict=True)], schema)
            )
