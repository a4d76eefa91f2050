"""What a parquet file says of its sizes, read without trust: pyarrow allocates by it, and may end the process over it.

See https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift for the fields, and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md for how they are written.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

_MAGIC = b"PAR1"
_MOST_BYTES = 1 << 18  # of a footer; that of a store's file has about 2,000, and 500 for each further row group


@dataclass(frozen=True)
class Chunk:
    """A column of a row group.

    Attributes:
        name: of the column.
        rows: of the row group.
        values: that it holds; of a list more than one a row.
        stored, decompressed: its bytes, as the footer has them.
        in_pages: its bytes when decompressed, as its pages have them.
    """

    name: str
    rows: int
    values: int
    stored: int
    decompressed: int
    in_pages: int


@dataclass(frozen=True)
class Footer:
    """Attributes: rows, of the file; groups: the columns of each row group."""

    rows: int
    groups: list[list[Chunk]]


def read_footer(path: str | os.PathLike[str]) -> Footer:
    """Reads the sizes of a parquet file and of its pages. It takes memory for the bytes that are there alone.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no parquet.
    """
    with open(path, "rb") as file:
        file_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, file_bytes - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > min(file_bytes - 8, _MOST_BYTES):
            raise ValueError("it does not end as parquet does")
        file.seek(file_bytes - 8 - length)
        try:
            return _sizes(_read_struct(file.read(length), 0)[0], file, file_bytes)
        except (IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it does not say of its sizes what parquet says ({error!r})") from error


def _sizes(about: dict[int, Any], file: BinaryIO, file_bytes: int) -> Footer:
    groups, stored = [], 0
    for group in about[4]:
        chunks = []
        for column in group[1]:
            column = column[3]
            sizes = (group[3], column[5], column[7], column[6])
            if not all(isinstance(size, int) for size in (about[3], *sizes)):
                raise ValueError("a size is no number")
            stored += max(column[7], 0)
            if column[7] < 0 or stored > file_bytes:
                raise ValueError("columns are larger than the file")
            chunks.append(Chunk(column[3][0].decode(), *sizes, in_pages=sum(_page_sizes(file, column))))
        groups.append(chunks)
    return Footer(about[3], groups)


def _page_sizes(file: BinaryIO, column: dict[int, Any]) -> Iterator[int]:
    """Of each page of a column, the bytes that it takes when decompressed."""
    firsts = [offset for offset in (column.get(11, 0), column[9]) if offset > 0]  # of a dictionary, and of values
    file.seek(min(firsts, default=0))
    content, at = file.read(column[7]), 0
    while at < len(content):
        header, at = _read_struct(content, at)
        if header[2] < 0 or header[3] < 0:
            raise ValueError("a page has a negative size")
        yield header[2]
        at += header[3]


def _read_struct(content: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Fields by their number, and where they end."""
    fields, number = {}, 0
    while (head := content[at]) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(content, at)
        kind = head & 15
        fields[number], at = (kind == 1, at) if kind in (1, 2) else _read_value(content, at, kind)
    return fields, at + 1


def _read_value(content: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (4, 5, 6):  # integers of 16, 32 and 64 bits
        return _read_integer(content, at)
    if kind == 12:
        return _read_struct(content, at)
    if kind == 8:  # bytes
        length, at = _read_length(content, at)
        return content[at : at + length], at + length
    if kind == 9:
        return _read_list(content, at)
    if kind in (1, 2, 3):  # in a list, where they take a byte each
        return content[at], at + 1
    raise ValueError(f"a field is of the kind {kind}")


def _read_list(content: bytes, at: int) -> tuple[list[Any], int]:
    head, at = content[at], at + 1
    length = head >> 4
    if length == 15:
        length, at = _read_length(content, at)
    items = []
    for _ in range(length):  # each takes a byte at least, so that it ends with the content
        item, at = _read_value(content, at, head & 15)
        items.append(item)
    return items, at


def _read_integer(content: bytes, at: int) -> tuple[int, int]:
    value, at = _read_length(content, at)
    return (value >> 1) ^ -(value & 1), at


def _read_length(content: bytes, at: int) -> tuple[int, int]:
    """A number without sign in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
