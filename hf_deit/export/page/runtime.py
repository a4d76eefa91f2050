"""ONNX Runtime for browsers: one version of the npm package onnxruntime-web, each file checked by its digest."""

import base64
import hashlib
import io
import os
import tarfile

import httpx2
from huggingface_hub import constants

from ...errors import InputError, first_line
from ...hub.client import keep_trying
from ...hub.files import write_whole

VERSION = "1.30.0"
SCRIPT, GLUE, BINARY = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
INTEGRITY = {  # as browsers check files that they load from elsewhere
    SCRIPT: "sha384-Bw6URI+Gvoadw0do7/QrSHUC9D1vCYYK5OSqChFyhyV5mzPL4oe2rOAFljAnS8Sq",
    GLUE: "sha384-XcXA/MtAf0WpB8e023xQH9CM7RIjiugakT7x99DIwpFf7k56BIFFcAPerIF7FDad",
    BINARY: "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
# A .tgz or a folder of the package, for machines without a network.
PLACE_VARIABLE = "HF_DEIT_ONNXRUNTIME_WEB"
_ARCHIVE = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
_ARCHIVE_INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_SECONDS = 300.0
_HOW_ELSE = (
    f"download {_ARCHIVE} where there is a network, and give it with --runtime FILE (or the environment's "
    f"{PLACE_VARIABLE}), or let the page load it with --runtime cdn"
)


def runtime_files(place: str | None = None) -> dict[str, bytes]:
    """The files of the runtime that a page needs, by their names: `SCRIPT`, `GLUE` and `BINARY`.

    Args:
        place: the package's .tgz or its folder; None for the one that the environment names, else for the user's
            cache, into which it is downloaded once.

    Raises:
        InputError: it cannot be had, or is another version.
    """
    place = place or os.environ.get(PLACE_VARIABLE)
    if place is None:
        found = _of_archive(_cached(), "the downloaded package")
    elif os.path.isdir(place):
        found = _of_folder(place)
    else:
        try:
            with open(place, "rb") as file:
                found = _of_archive(file.read(), repr(place))
        except OSError as error:
            raise InputError(f"--runtime {place!r} cannot be read ({error.strerror}): {_HOW_ELSE}") from error
    for name, content in found.items():
        if integrity_of(content, "sha384") != INTEGRITY[name]:
            raise InputError(
                f"{name} of {place or 'the downloaded package'!r} is not that of onnxruntime-web {VERSION}, with "
                f"which pages are tested: {_HOW_ELSE}"
            )
    return found


def integrity_of(content: bytes, algorithm: str) -> str:
    """A digest as browsers and npm write it.

    Args:
        algorithm: "sha384" or "sha512".
    """
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


def cached_archive() -> str:
    """Where the downloaded package is kept, in the Hub's cache; it may not be there yet."""
    return os.path.join(constants.HF_HOME, "hf_deit", f"onnxruntime-web-{VERSION}.tgz")


def _of_folder(place: str) -> dict[str, bytes]:
    folder = os.path.join(place, "dist") if os.path.isdir(os.path.join(place, "dist")) else place
    found = {}
    for name in INTEGRITY:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                found[name] = file.read()
        except OSError as error:
            raise InputError(
                f"--runtime {place!r} is not the npm package onnxruntime-web: {name} cannot be read "
                f"({error.strerror}). Give its folder or .tgz, or: {_HOW_ELSE}"
            ) from error
    return found


def _of_archive(content: bytes, name: str) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            return {file: archive.extractfile(f"package/dist/{file}").read() for file in INTEGRITY}
    except (tarfile.TarError, OSError, EOFError, KeyError, AttributeError) as error:
        raise InputError(
            f"{name} is not the npm package onnxruntime-web ({first_line(error)}): {_HOW_ELSE}"
        ) from error


def _cached() -> bytes:
    """The package, from the cache or the registry."""
    path = cached_archive()
    try:
        with open(path, "rb") as file:
            content = file.read()
        if integrity_of(content, "sha512") == _ARCHIVE_INTEGRITY:
            return content
    except OSError:
        pass
    if constants.is_offline_mode():
        raise InputError(
            f"the page needs the npm package onnxruntime-web {VERSION}, and HF_HUB_OFFLINE is set: {_HOW_ELSE}"
        )
    content = _downloaded()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(content, path)
    except OSError:
        pass  # it is downloaded again next time
    return content


def _downloaded() -> bytes:
    def ask() -> bytes:
        return httpx2.get(_ARCHIVE, follow_redirects=True, timeout=30.0).raise_for_status().content

    try:
        content = keep_trying(ask, what="downloading onnxruntime-web", seconds=_SECONDS)
    except (httpx2.HTTPError, OSError) as error:
        raise InputError(
            f"the npm package onnxruntime-web cannot be downloaded ({first_line(error)}): {_HOW_ELSE}"
        ) from error
    if integrity_of(content, "sha512") != _ARCHIVE_INTEGRITY:
        raise InputError(f"{_ARCHIVE} is not the file that it was when pages were tested: {_HOW_ELSE}")
    return content
