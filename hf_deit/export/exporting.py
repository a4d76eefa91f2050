"""An export as a whole: programs are made beside their place, proven, and then take it together."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ..errors import CheckpointError, ExportError, InputError
from ..evaluation.arguments import EvaluationArguments
from ..evaluation.images.images import EvaluationImages, load_evaluation_images
from ..hub.environment import describe_environment
from ..hub.export_record import ExportedFile, ExportRecord, ParityRecord
from ..hub.run_lock import hold, not_writable
from .exported_folder import BESIDE, check_place, files_of, identity_of, move_into_place, work_folder, write_record
from .formats import BY_NAME, Format
from .int8 import MOST_COST
from .parity.checked_images import CheckedImages, checked_images
from .parity.comparison import Comparison, check_float, compare, parity_record
from .parity.odd_images import ODD_IMAGES, write_odd_images
from .parity.separate_process import ExportedAnswers, ask_exported
from .parity.trained import ask_trained
from .programs.source import ExportSource
from .quiet import quiet
from .requirements import MODULES, require

_SPARE = 1 << 26  # bytes: a disk with less left is full


@dataclass(frozen=True)
class Int8:
    """How int8 files are made.

    Attributes:
        precision: of `PRECISIONS`.
        quantize: writes the files, of the folder and the format's name; gives what was quantised, and how.
        layers_to_exclude: names, of the images that it is proven on, the layers that cost most: "layers_to_exclude",
            and what else there is to be said of them. Asked where int8 costs more than `MOST_COST`.
    """

    precision: str
    quantize: Callable[[str, str], dict[str, Any]]
    layers_to_exclude: Callable[[EvaluationImages], dict[str, Any]]


@dataclass(frozen=True)
class Exported:
    """An export in its place.

    Attributes:
        folder: of the format.
        record: what stands beside it.
        replaced: whether an earlier export stood there.
    """

    folder: str
    record: ExportRecord
    replaced: bool


def require_formats(formats: Sequence[str]) -> None:
    """Raises `InputError` if a package is missing that one of the formats needs."""
    for name in formats:
        if (extra := BY_NAME[name].extra) is not None:
            require(extra)


def export(
    source: ExportSource,
    folder: str,
    formats: Sequence[str],
    *,
    images: EvaluationImages | None,
    most_images: int,
    int8: Int8 | None = None,
    say: Callable[[str], None] = lambda words: None,
) -> list[Exported]:
    """Exports a classifier to formats, and proves that it answers there as it does here.

    All formats take their place together, or, if one of them fails, none.

    Args:
        source: the classifier.
        folder: that the formats' folders shall lie in; it is made if it is not there.
        formats: of `FORMATS`.
        images: to prove it on; None for built-in odd ones alone, which are taken beside others in any case.
        most_images: how many of these to take.
        int8: how int8 files are made, if they are.
        say: is told what is at work.

    Raises:
        InputError: the folder holds something else, a format cannot hold the model, or the images cannot be used.
        ExportError: an export does not run, or does not answer as the classifier does.
        CheckpointError: the disk refuses.
    """
    require_formats(formats)
    with _held(folder), work_folder(folder) as work:
        check_place(folder, formats, identity_of(source.facts, source.labels, source.preprocessing.to_dict()))
        for name in formats:
            say(f"{BY_NAME[name].words} is made")
            os.mkdir(os.path.join(work, name))
            _make(source, name, os.path.join(work, name))
        scratch = os.path.join(work, "check")
        os.mkdir(scratch)
        proof = _Proof(source, images, most_images, scratch)
        say(f"asked about {proof.words}")
        records = []
        for name in formats:
            records.append(_proven(source, name, os.path.join(work, name), proof, int8))
            write_record(os.path.join(work, name), records[-1])
        names = [*formats, *_write_beside(source, work, folder)]
        there = {name for name in names if os.path.lexists(os.path.join(folder, name))}
        move_into_place(work, folder, names)
    places = [os.path.join(folder, name) for name in formats]
    return [Exported(place, one, one.format in there) for place, one in zip(places, records, strict=True)]


@contextmanager
def _held(folder: str) -> Iterator[None]:
    """Holds the folder, see `hold`."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(folder))
        except OSError as error:
            raise not_writable(folder, error) from error
        yield


def _function(place: str) -> Callable[..., Any]:
    """A function of `programs`, by "module.name"."""
    module, _, name = place.partition(".")
    return getattr(import_module(f"{__package__}.programs.{module}"), name)


def _make(source: ExportSource, name: str, folder: str) -> None:
    """Writes the float files of a format."""
    with _refusals(source, BY_NAME[name], folder), quiet(f"{BY_NAME[name].words}: converting the network"):
        _function(BY_NAME[name].export)(source, folder)


@contextmanager
def _refusals(source: ExportSource, format: Format, folder: str) -> Iterator[None]:
    """Says in one line why a format cannot hold a model, and which operator it lacks, if that is it.

    Raises:
        InputError: it cannot.
        CheckpointError: the disk is full.
    """
    try:
        yield
    except (InputError, CheckpointError, ExportError, OSError, ImportError):
        raise
    except Exception as error:  # of any kind: exporters fail as they come to it
        if shutil.disk_usage(folder).free < _SPARE:
            raise CheckpointError(f"cannot write to {folder!r} (the disk is full): free some space") from error
        from .programs.core import refused

        raise refused(format.words, source, error) from error


class _Proof:
    """What the trained classifier answers to the images that exports are proven on, asked once.

    Args:
        source: the classifier.
        images: None for the odd ones alone.
        most: how many of these to take.
        scratch: a folder for images and answers.
    """

    def __init__(self, source: ExportSource, images: EvaluationImages | None, most: int, scratch: str) -> None:
        self._source, self._scratch = source, scratch
        given = [] if images is None else [checked_images(images, source.labels, most=most, scratch=scratch)]
        self._images: list[CheckedImages] = [*given, self._odd()]
        self._costly: dict[str, Any] | None = None
        self.words = " and ".join(one.images.words for one in self._images)

    def _odd(self) -> CheckedImages:
        folder = os.path.join(self._scratch, "odd")
        os.mkdir(folder)
        write_odd_images(folder)
        images = _unlabelled(folder, self._source.labels)
        return checked_images(images, self._source.labels, most=len(images), scratch=folder)

    @cached_property
    def _trained(self) -> list[tuple[np.ndarray, dict[int, str]]]:
        paths = [os.path.join(self._scratch, f"trained-{number}") for number in range(len(self._images))]
        return [
            ask_trained(self._source.classifier, images, path)
            for images, path in zip(self._images, paths, strict=True)
        ]

    def layers_to_exclude(self, int8: Int8) -> dict[str, Any]:
        """The layers that cost most on the images that count: the same for all formats, and asked once."""
        if self._costly is None:
            images, (_, left_out) = self._images[0].images, self._trained[0]
            with quiet("looking for the layers that cost most"):
                self._costly = int8.layers_to_exclude(images.without(np.isin(np.arange(len(images)), [*left_out])))
        return self._costly

    def of(self, format: Format, folder: str, file: str) -> tuple[list[Comparison], ExportedAnswers]:
        """How an exported classifier compares on the images that count, and on odd ones, if those are others."""
        found, answers = [], []
        for images, trained in zip(self._images, self._trained, strict=True):
            answers.append(
                ask_exported(
                    format.runtime,
                    folder,
                    file,
                    paths=images.paths,
                    names=images.names,
                    num_labels=len(self._source.labels),
                    scratch=self._scratch,
                )
            )
            found.append(compare(images, self._source.labels, trained, answers[-1]))
        return found, answers[0]


def _unlabelled(folder: str, labels: Sequence[str]) -> EvaluationImages:
    """The odd images; that they have no labels need not be said."""
    with quiet():
        images = load_evaluation_images(
            EvaluationArguments(model="odd", images_dir=folder), model_labels=lambda: labels
        )
    return replace(images, words=f"{len(images)} {ODD_IMAGES}")


def prove(
    source: ExportSource, name: str, folder: str, file: str, *, images_dir: str | None, scratch: str
) -> ParityRecord:
    """Proves a float file that is no export of its own, such as a page's.

    Args:
        name: of the format that it is of.
        folder, file: it takes images, and gives probabilities.
        images_dir: of images to prove it on beside the built-in odd ones, or None.
        scratch: a folder for images and answers.

    Raises:
        ExportError: it does not run, or does not answer as the classifier does.
        OSError: the disk refuses.
    """
    images = None if images_dir is None else _unlabelled(images_dir, source.labels)
    proof = _Proof(source, images, len(images or ()), scratch)
    compared, answers = proof.of(BY_NAME[name], folder, file)
    check_float(file, compared)
    return _record("float32", compared, answers)


def _proven(source: ExportSource, name: str, folder: str, proof: _Proof, int8: Int8 | None) -> ExportRecord:
    """What is to be said of an export, whose answers are those of the model.

    Raises:
        ExportError: they are not.
    """
    format = BY_NAME[name]
    compared, answers = proof.of(format, folder, format.classifier)
    check_float(os.path.join(name, format.classifier), compared)
    parity = [_record("float32", compared, answers)]
    quantization = {}
    if int8 is not None:
        with _refusals(source, format, folder), quiet(f"{format.words}: quantising the network"):
            facts = dict(int8.quantize(folder, name))
        compared, answers = proof.of(format, folder, format.quantized)
        parity.append(_record(int8.precision, compared, answers))
        if compared[0].loss > MOST_COST:
            facts |= proof.layers_to_exclude(int8)
        quantization[int8.precision] = facts
    return ExportRecord(
        format=name,
        model=source.facts,
        labels=source.labels,
        preprocessing=source.preprocessing.to_dict(),
        files=_files(format, folder, int8),
        parity=tuple(parity),
        versions=_versions(format),
        quantization=quantization,
    )


def _record(precision: str, compared: Sequence[Comparison], answers: ExportedAnswers) -> ParityRecord:
    return parity_record(precision, compared[0], compared[1] if len(compared) > 1 else None, answers)


def _files(format: Format, folder: str, int8: Int8 | None) -> tuple[ExportedFile, ...]:
    purposes = dict.fromkeys(format.models, "model")
    for file in (format.classifier, format.quantized):
        if file is not None:
            purposes[file] = "classifier" if file.startswith("classifier") else "model"
    quantized = {os.path.splitext(name)[0] for name in purposes if "_quantized." in name}
    floats = {os.path.splitext(name)[0] for name in purposes} - quantized
    precisions = dict.fromkeys(floats, "float32")
    if int8 is not None:
        precisions |= dict.fromkeys(quantized, int8.precision)
    return files_of(folder, purposes, precisions)


def _versions(format: Format) -> dict[str, str]:
    versions = dict(describe_environment(device_type="cpu")["libraries"])
    for name in ("hf_deit", *(MODULES[format.extra] if format.extra else ())):
        with contextlib.suppress(PackageNotFoundError):  # as onnxruntime-gpu has onnxruntime
            versions[name] = version(name)
    return versions


def _write_beside(source: ExportSource, work: str, folder: str) -> list[str]:
    """Writes what transformers.js and Optimum look for above an export, unless the model itself lies there."""
    if any(name.endswith((".safetensors", ".bin")) for name in os.listdir(folder)):
        return []
    source.classifier.model.config.save_pretrained(work)
    source.classifier.processor.save_pretrained(work)
    return [name for name in BESIDE if os.path.isfile(os.path.join(work, name))]
