"""The rights of files, and what decides on those of new ones."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def rights_in(folder: Path) -> dict[str, set[int]]:
    """Of all that is in a folder, and of itself."""
    rights: dict[str, set[int]] = {"folder": set(), "file": set()}
    for path in (folder, *folder.rglob("*")):
        rights["folder" if path.is_dir() else "file"].add(stat.S_IMODE(path.stat().st_mode))
    return rights
