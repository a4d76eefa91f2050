"""A page as hf-deit demo makes it, made up: its files, and the record that lists them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = {
    "index.html": b"<!doctype html><title>Try it</title>",
    "app.js": b"hfDeit = {};",
    "model-0.js": b'hfDeit.part("model", 0, "AAAA");',
    "licences/onnxruntime.txt": b"MIT",
}


def page(folder: Path, files: Mapping[str, bytes] = FILES, **fields: Any) -> Path:
    """Writes a page.

    Args:
        **fields: of its record.
    """
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    digests = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in files.items()}
    record = {"labels": ["cat", "dog"], "model": {"weights_digest": None}, "files": digests, **fields}
    (folder / "page.json").write_text(json.dumps(record))
    return folder
