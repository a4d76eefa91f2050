"""Makes the folder of a page: index.html, and beside it scripts that carry the model and its runtime.

Browsers let a page that lies in a folder load nothing of its neighbours but scripts, styles and images. So the model,
the runtime's binary and its glue are scripts, too: each registers a part of a file, compressed, as text.
"""

import base64
import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jinja2
import onnx
import onnxruntime

from ...errors import InputError, shortlist
from ...evaluation.attention.attention_maps import has_attention_maps, num_special_tokens
from ...hub.files import files_below, no_empty_folders, read_json, temporary_beside, write_json, writing
from ...hub.space import PAGE_FILE, PAGE_RECORD
from ..exporting import prove
from ..programs.page_program import METHODS, page_model
from ..programs.source import ExportSource
from .examples import Example
from .runtime import BINARY, CDN, GLUE, INTEGRITY, SCRIPT, VERSION, runtime_files

CDN_RUNTIME = "cdn"
_ASSETS = os.path.join(os.path.dirname(__file__), "assets")
_COPIED = ("app.js", "decoding.js", "parts.js", "style.css")
_PART_BYTES = 6 << 20  # of base64 then 8 MiB: as text, Git repositories of the Hub take no more than 10


@dataclass(frozen=True)
class PageProof:
    """How the answers of a page's file compare with the trained model's.

    Attributes:
        num_images: N.
        agreement: fraction of them with the same best label.
        largest_difference: of a probability.
        runtime: that answered, with its version.
    """

    num_images: int
    agreement: float
    largest_difference: float
    runtime: str


@dataclass(frozen=True)
class PageFolder:
    """A page that was made.

    Attributes:
        folder: where it lies.
        files: bytes of each, by name.
        num_examples: images that it offers.
        proof: see there.
    """

    folder: str
    files: dict[str, int]
    num_examples: int
    proof: PageProof


def write_page(
    source: ExportSource,
    folder: str,
    *,
    examples: Sequence[Example] = (),
    runtime: str | None = None,
    licence: str | None = None,
) -> PageFolder:
    """Makes a page on which a model can be tried. An earlier page in the folder is replaced, nothing else.

    Args:
        source: the model.
        folder: made if it is not there.
        examples: images that the page offers; they prove it, too.
        runtime: `CDN_RUNTIME`, by which the page loads its runtime from a network, or see `runtime_files`.
        licence: of the model, in words.

    Raises:
        InputError: the folder holds something else, or the runtime cannot be had.
        ExportError: the page would answer otherwise than the model does.
        CheckpointError: the folder cannot be written.
    """
    check_page_folder(folder)
    on_network = runtime == CDN_RUNTIME
    parts = {} if on_network else runtime_files(runtime)
    with _staged(folder) as staging:
        model = page_model(source)
        path = os.path.join(staging, "model.onnx")
        onnx.save_model(model, path)
        proof = prove_page(source, staging, examples)
        with open(path, "rb") as file:
            packed = {"model": file.read()}
        os.remove(path)
        if parts:
            packed |= {"glue": parts[GLUE], "binary": parts[BINARY]}
        scripts = {name: _parts(name, content) for name, content in packed.items()}
        for name in (part for names in scripts.values() for part in names):
            _write(staging, name, scripts[name.partition("-")[0]][name])
        if parts:
            _write(staging, SCRIPT, parts[SCRIPT])
            _copy_licences(staging)
        _write(
            staging, "settings.js", f"hfDeit.settings = {json.dumps(_settings(source, scripts, proof, licence))};\n"
        )
        _write(staging, "examples.js", f"hfDeit.examples = {json.dumps(_of_examples(examples))};\n")
        for name in _COPIED:
            shutil.copyfile(os.path.join(_ASSETS, name), os.path.join(staging, name))
        listed = [name for names in scripts.values() for name in names]
        _write(staging, PAGE_FILE, _html(source, listed, on_network))
        record = {
            "model": source.facts,
            "labels": list(source.labels),
            "proof": vars(proof),
            "runtime": {"onnxruntime-web": VERSION, "from": "cdn" if on_network else "folder"},
            "files": {name: _digest(path) for name, path in files_below(staging).items()},
        }
        write_json(record, os.path.join(staging, PAGE_RECORD))
        sizes = {name: os.path.getsize(path) for name, path in files_below(staging).items()}
    return PageFolder(folder, sizes, len(examples), proof)


def check_page_folder(folder: str) -> None:
    """Refuses a folder for a page that holds something else, or that cannot be written.

    Raises:
        InputError: with what to do.
    """
    target = os.path.realpath(os.path.expanduser(folder))
    if os.path.lexists(target) and not os.path.isdir(target):
        raise InputError(f"--output_dir {folder!r} is a file: give a folder, which is made if it is not there")
    if os.path.commonpath([target, os.getcwd()]) == target:
        raise InputError(f"--output_dir {folder!r} is where you are: give a folder of its own, such as page")
    parent = target
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    for place in {os.path.dirname(target) if os.path.isdir(target) else parent, parent}:
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"--output_dir {folder!r} cannot be written (no right to {place!r}): give another folder")
    if not os.path.isdir(target):
        return
    try:
        own = {*read_json(os.path.join(target, PAGE_RECORD))["files"], PAGE_RECORD}
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    others = sorted(set(files_below(target)) - own)
    if others:
        raise InputError(
            f"--output_dir {folder!r} holds what is of no page ({shortlist(others)}): give another folder, or "
            "move that away"
        )


def prove_page(source: ExportSource, folder: str, examples: Sequence[Example] = ()) -> PageProof:
    """Compares the answers of a page's model.onnx with those of the trained model, as an export's are.

    Args:
        folder: with the file.
        examples: beside the built-in odd images.

    Raises:
        ExportError: they are others.
    """
    with tempfile.TemporaryDirectory(prefix="hf_deit_") as scratch:
        images_dir = os.path.join(scratch, "examples") if examples else None
        if images_dir is not None:
            os.mkdir(images_dir)
        for number, example in enumerate(examples):
            _write(images_dir, f"{number:02}.{example.type.partition('/')[2]}", example.content)
        record = prove(source, "onnx", folder, "model.onnx", images_dir=images_dir, scratch=scratch)
    odd = [record.odd_images] if record.odd_images else []
    compared = [(record.num_images, record.agreement["value"], record.largest_difference)]
    compared += [(one["num_images"], one["agreement"]["value"], one["largest_difference"]) for one in odd]
    total = sum(number for number, _, _ in compared)
    return PageProof(
        num_images=total,
        agreement=sum(number * agreement for number, agreement, _ in compared) / total,
        largest_difference=max(difference for _, _, difference in compared),
        runtime=" ".join(("onnxruntime", record.runtime["onnxruntime"])),
    )


def _settings(
    source: ExportSource, scripts: Mapping[str, Mapping[str, str]], proof: PageProof, licence: str | None
) -> dict[str, Any]:
    """What the page's script knows, of JSON's types."""
    model, name = source.classifier.model, source.facts["name_or_path"]
    special = num_special_tokens(model) if has_attention_maps(model) else 0
    return {
        "name": source.classifier.name,
        "link": f"https://huggingface.co/{name}" if name else None,
        "architecture": source.facts["architecture"],
        "licence": licence,
        "labels": list(source.labels),
        "preprocessing": source.preprocessing.to_dict(),
        "hasTwoHeads": source.classifier.has_two_heads,
        "fusion": source.facts["fusion"],
        "tokens": ["class", "distillation"][:special],
        "methods": list(METHODS) if special else [],
        "parts": {name: len(parts) for name, parts in scripts.items()},
        "proof": vars(proof),
        "runtime": {"version": VERSION, "cdn": None if "binary" in scripts else CDN, "integrity": INTEGRITY}
        | {"glue": GLUE, "binary": BINARY},
    }


def _parts(name: str, content: bytes) -> dict[str, str]:
    """Scripts that register a file's content, by their names."""
    packed = gzip.compress(content, 9, mtime=0)
    parts = [packed[start : start + _PART_BYTES] for start in range(0, len(packed), _PART_BYTES)]
    return {
        f"{name}-{number + 1:02}.js": f'hfDeit.part("{name}", {number}, "{base64.b64encode(part).decode()}");\n'
        for number, part in enumerate(parts)
    }


def _of_examples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [
        {
            "name": example.name.encode("utf-8", "replace").decode(),
            "label": example.label,
            "type": example.type,
            "data": base64.b64encode(example.content).decode(),
        }
        for example in examples
    ]


def _html(source: ExportSource, scripts: Sequence[str], on_network: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS), autoescape=True, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(PAGE_FILE).render(
        name=source.classifier.name,
        scripts=scripts,
        script=SCRIPT,
        cdn=CDN if on_network else None,
        origin="/".join(CDN.split("/")[:3]),
        integrity=INTEGRITY[SCRIPT],
        num_labels=len(source.labels),
    )


def _copy_licences(folder: str) -> None:
    """The runtime's, which its Python package has, too; the one for npm comes without."""
    place = os.path.dirname(onnxruntime.__file__)
    for name, given in (("LICENSE", "onnxruntime-LICENSE.txt"), ("ThirdPartyNotices.txt",) * 2):
        shutil.copyfile(os.path.join(place, name), os.path.join(folder, given))


def _write(folder: str, name: str, content: str | bytes) -> None:
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


@contextmanager
def _staged(folder: str) -> Iterator[str]:
    """A folder that takes the place of another when all in it is written; after an error nothing is left of it."""
    target = os.path.realpath(os.path.expanduser(folder))
    staging, earlier = temporary_beside(target), temporary_beside(target)
    with writing(f"the page in {folder!r}"), no_empty_folders(os.path.dirname(target)):
        try:
            os.makedirs(staging)
            yield staging
            if os.path.isdir(target):
                os.rename(target, earlier)
            os.rename(staging, target)
        except BaseException:
            if os.path.isdir(earlier) and not os.path.isdir(target):
                os.rename(earlier, target)
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(earlier, ignore_errors=True)
