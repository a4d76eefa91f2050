"""A model's answers to any number of images: asked, kept while it takes, and written as a table."""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from accelerate import PartialState
from transformers.utils import logging

from ...data.folders import folder_identity
from ...errors import InputError, counted, escaped, shortlist
from ...hub.environment import describe_environment
from ...hub.files import name_of_temporary, no_empty_folders, read_json, remove_leftovers, write_json, writing
from ...models.class_names import are_unnamed, unique_names
from ...training.hardware import use_cpu_of
from ...training.processes import holding, on_every_process, on_main_process
from ..answers.asking import Asking, compute
from ..answers.chunk_folder import ChunkFolder
from ..classifiers.classifiers import ClassifierDescription, Showing, describe_classifiers, labels_of
from .answering import Answering
from .arguments import PredictionArguments
from .data_set import DataSetImages, load_data_set, refuse_options
from .file_list import FileImages, FileList, data_set_of, list_files
from .sorting import Sorted, check_folder, matched, sort_into, sorted_folders_in
from .table import read_columns, write_table

logger = logging.get_logger(__name__)

CHUNK = 1024  # images
_IDENTITY_FILE, _FINISHED_FILE, _LIST_FILE = "identity.json", "finished.json", "images.arrow"
_TOP = ("label", "probability")
# What an identity's entries are, for people.
_WORDS = {
    "version": "the model's weights",
    "images": "the images",
    "num_images": "how many images there are",
    "labels": "the model's labels",
    "preprocessing": "the model's preprocessing",
    "input_size": "--image_size",
    "libraries": "the libraries' versions",
    **{name: f"--{name}" for name in ("top_k", "heads", "batch_size", "dtype")},
}


@dataclass(frozen=True)
class Predictions:
    """What has come of predictions.

    Attributes:
        path: of the table.
        num_images: that the model has answered to, the table's rows.
        broken: why the others could not be used, by name; these are in `broken_path`, which is None if there are none.
        counts: how many images have each label, the most frequent first.
        seconds, num_computed: how long the model took for how many images, this time.
        sorted: what `sort_into` has brought, or None.
        passed_over: how many files in folders are no images, by the ends of their names.
        num_repeated: how often a file was named again.
    """

    path: str
    num_images: int
    broken: dict[str, str]
    broken_path: str | None
    counts: dict[str, int]
    seconds: float
    num_computed: int
    sorted: Sorted | None = None
    passed_over: dict[str, int] = field(default_factory=dict)
    num_repeated: int = 0


def predict(arguments: PredictionArguments) -> Predictions | None:
    """Lets a model answer to images, and writes its answers to a table; all processes must call it.

    Where it was stopped, the same call goes on, and the table is that of one that was not. The columns are "path" (of
    a data set "row" and "path"), "label" and "probability", the same of the next classes ("label_2", …), and with
    `heads` those of both heads ("class_label", …). Images that cannot be used are listed in a file of their own.

    Returns:
        What has come of it; None in all but the main process.

    Raises:
        InputError: a model, images or a file that cannot be used; or what lies at `output` is of something else.
        CheckpointError: something cannot be written; what is there stays, and the same call goes on.
    """
    device = PartialState(cpu=use_cpu_of(arguments)).device
    on_main_process(lambda: _check_output(arguments))
    with no_empty_folders(arguments.kept_path), holding(arguments.kept_path), _listing(arguments.kept_path):
        job = _prepared(arguments, device.type)
        start, num_computed = time.perf_counter(), 0
        if not job.is_finished:
            num_computed = _ask(job, device)
        seconds = time.perf_counter() - start
        if not PartialState().is_main_process:  # the others have nothing more to do, and need not wait
            return None
        if not job.is_finished:
            _finish(job)
        return _told(job, seconds, num_computed)


@contextmanager
def _listing(kept: str) -> Iterator[None]:
    """Removes the list of images in the end, which is made anew each time."""
    try:
        yield
    finally:
        if PartialState().is_main_process:
            with suppress(OSError):
                _forget(kept, [_LIST_FILE])


@dataclass(frozen=True)
class _Job:
    """What is to be done: the same in all processes.

    Attributes:
        labels: of the model, unique.
        identity: of JSON's types, what the rows depend on.
        listed: of image files; None of a data set.
        is_finished: whether the table is there already.
    """

    arguments: PredictionArguments
    description: ClassifierDescription
    labels: Sequence[str]
    images: FileImages | DataSetImages
    identity: dict[str, Any]
    listed: FileList | None
    is_finished: bool

    @property
    def top_k(self) -> int:
        return self.identity["top_k"]

    @property
    def key(self) -> dict[str, Any]:
        """What sorted folders depend on."""
        return _key(self.arguments, self.identity)

    def answering(self, *, is_multi_label: bool = False) -> Answering:
        return Answering(self.description.rule, self.top_k, self.arguments.heads, is_multi_label)

    def chunks(self) -> ChunkFolder:
        answering = self.answering()
        return ChunkFolder(
            self.arguments.kept_path,
            num_images=len(self.images),
            size=CHUNK,
            is_whole=lambda chunk, arrays, _: answering.is_whole(arrays, min(CHUNK, len(self.images) - chunk * CHUNK)),
        )

    def columns(self) -> dict[str, type]:
        """The types of the table's columns by name."""
        kinds = (str, float)
        columns = {name: int if name == "row" else str for name in self.images.columns}
        ends = ["", *(f"_{rank}" for rank in range(2, self.top_k + 1))]
        columns |= {f"{name}{end}": kind for end in ends for name, kind in zip(_TOP, kinds, strict=True)}
        for head in ("class", "distillation") if self.arguments.heads else ():
            columns |= {f"{head}_{name}": kind for name, kind in zip(_TOP, kinds, strict=True)}
        return columns


def _key(arguments: PredictionArguments, identity: dict[str, Any]) -> dict[str, Any]:
    about = json.dumps(identity, sort_keys=True).encode()
    settings = {"min_probability": arguments.min_probability, "link": arguments.link}
    return {"predictions": hashlib.sha256(about).hexdigest(), **settings}


def _check_output(arguments: PredictionArguments) -> None:
    folder = os.path.dirname(arguments.path) or os.curdir
    if not os.path.isdir(folder):
        raise InputError(f"--output {arguments.output!r} lies in a folder that is not there: make {folder!r} first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--output {arguments.output!r} lies in a folder where nothing can be written: give another")
    if os.path.isdir(arguments.path):
        raise InputError(f"--output {arguments.output!r} is a folder: give the name of a file in it")
    if arguments.sort_into is not None:
        check_folder(os.path.expanduser(arguments.sort_into))


def _prepared(arguments: PredictionArguments, device: str) -> _Job:
    """Finds out what is to be done, and whether what lies there is of the same.

    Raises:
        InputError: the model or the images cannot be used, or what lies there is of others.
    """
    labels, description = on_every_process(lambda: _described(arguments))
    name = on_main_process(lambda: data_set_of(arguments.images, arguments.split))
    if name is None:
        refuse_options(arguments, "image files, only of a data set")
        listed = on_main_process(lambda: _listed(arguments))
        # All have opened it before one of them may end, which removes it.
        images: FileImages | DataSetImages = on_every_process(lambda: FileImages(listed.file))
    else:
        listed, images = None, load_data_set(name, arguments)

    def identified() -> tuple[dict[str, Any], bool]:
        identity = {
            **description.identity(),
            "labels": hashlib.sha256(json.dumps(labels).encode()).hexdigest(),
            "images": images.digest if listed is None else listed.digest,
            "num_images": len(images),
            "top_k": min(arguments.top_k, len(labels)),
            "heads": arguments.heads,
            "batch_size": arguments.batch_size,
            "device": device,
            "libraries": describe_environment()["libraries"],
        }
        identity = json.loads(json.dumps(identity))
        if arguments.sort_into is not None:
            check_folder(os.path.expanduser(arguments.sort_into), _key(arguments, identity))
        with writing(f"to {arguments.kept_path!r}"):
            return identity, _is_finished(arguments, identity)

    identity, is_finished = on_main_process(identified)
    return _Job(arguments, description, labels, images, identity, listed, is_finished)


def _described(arguments: PredictionArguments) -> tuple[list[str], ClassifierDescription]:
    labels = labels_of(arguments.model, arguments.weights)
    shown = Showing(arguments.image_size, arguments.crop_ratio, arguments.dtype)
    [description] = describe_classifiers([arguments.model], labels, weights=arguments.weights, shown=shown)
    if arguments.heads and not description.fusion:
        raise InputError(f"the model {arguments.model!r} has one head, whose answer is the label: leave out --heads")
    if PartialState().is_main_process:
        if are_unnamed(labels):
            logger.warning("the model has no names for its %d labels: they are called LABEL_0, …", len(labels))
        if arguments.top_k > len(labels):
            logger.warning(
                "the model has %d labels: --top_k is %d rather than %d", *[len(labels)] * 2, arguments.top_k
            )
    return list(unique_names(dict(enumerate(labels))).values()), description


def _listed(arguments: PredictionArguments) -> FileList:
    """The list of image files, which lies beside what is kept."""
    kept = arguments.kept_path
    beside = [*sorted_folders_in(arguments.images), *([arguments.sort_into] if arguments.sort_into else [])]
    beside = [os.path.expanduser(folder) for folder in beside]
    with writing(f"the list of images to {kept!r}"):
        remove_leftovers(kept)
        found = list_files(
            arguments.images,
            os.path.join(kept, _LIST_FILE),
            beside=[folder_identity(folder) for folder in beside if os.path.isdir(folder)],
        )
    if not found.num_files:
        os.remove(found.file)
        kinds = shortlist(f"{number:,} {end or 'without an ending'}" for end, number in found.passed_over.items())
        raise InputError(
            f"there are no images in {shortlist(map(repr, arguments.images))}"
            + (f", but other files ({kinds})" if kinds else "")
            + (f"; {next(iter(found.unreadable.values()))}" if found.unreadable else "")
            + ": give --images, folders, files, patterns or a data set"
        )
    return found


def _is_finished(arguments: PredictionArguments, identity: dict[str, Any]) -> bool:
    """Whether the table of the same images, model and options is there; makes room for it if it is not.

    Raises:
        InputError: something else is there, and may not be replaced.
    """
    kept, path = arguments.kept_path, arguments.path
    begun, finished = _read(os.path.join(kept, _IDENTITY_FILE)), _read(os.path.join(kept, _FINISHED_FILE))
    is_there = os.path.lexists(path)
    if begun == identity and (finished is None or not is_there):
        _forget(kept, [_FINISHED_FILE] if finished else [])
        return False
    if begun == identity:
        if finished.get("sha256") == _checksum(path):
            return True
        found = f"--output {arguments.output!r} was changed since it was written"
    elif is_there:
        others = "is of another command" if begun is None else f"differs in {_differences(begun, identity)}"
        found = f"--output {arguments.output!r} is there already, and {others}"
    elif begun is not None and finished is None:
        differences = _differences(begun, identity)
        found = f"the unfinished predictions of --output {arguments.output!r} differ in {differences}"
    else:
        found = None
    if found and not arguments.overwrite:
        raise InputError(
            f"{found}: give another --output, or --overwrite to begin anew"
            + ("" if is_there else ", or the command that it began with to go on")
        )
    if begun != identity or found:
        _forget(kept, [*_chunks_in(kept), _FINISHED_FILE])
    return False


def _differences(begun: dict[str, Any], identity: dict[str, Any]) -> str:
    def value(name: str, found: dict[str, Any]) -> str:
        return str(found.get(name))

    names = [name for name in {**identity, **begun} if begun.get(name) != identity.get(name)]
    names = [name for name in names if name != "images" or "num_images" not in names]  # which says more
    plain = ("num_images", "top_k", "heads", "batch_size", "dtype", "device")
    return shortlist(
        f"{_WORDS.get(name, name)}"
        + (f" ({value(name, begun)}, now {value(name, identity)})" if name in plain else "")
        for name in names
    )


def _read(path: str) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _chunks_in(kept: str) -> list[str]:
    return [name for name in os.listdir(kept) if name.startswith("chunk-")]


def _forget(folder: str, names: Sequence[str]) -> None:
    for name in names:
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            os.remove(path)


def _checksum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ask(job: _Job, device: torch.device) -> int:
    """Asks the model about all images whose answers are not kept; gives their number."""
    arguments, folder, state = job.arguments, job.chunks(), PartialState()
    asking = Asking(
        output_dir=folder.path,
        device=device,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        on_bad_image="skip",
        skips_unprepared=True,
    )

    def begin() -> list[int]:
        with writing(f"to {folder.path!r}"):
            folder.begin(job.identity, _IDENTITY_FILE)
            _remove_unfinished(arguments)
        return folder.absent()

    absent = on_main_process(begin)
    total = sum(len(folder.rows(chunk)) for chunk in absent)
    mine = absent[state.process_index :: state.num_processes]
    if mine:
        classifier = job.description.load(device)
        config = classifier.model.config
        is_multi_label = config.problem_type == "multi_label_classification" or config.num_labels == 1
        answering = job.answering(is_multi_label=is_multi_label)
        compute(
            classifier,
            job.images,
            [(chunk, folder.rows(chunk)) for chunk in mine],
            total,
            asking,
            keep=lambda chunk, answered: folder.write(chunk, *answering.joined(folder.rows(chunk), answered)),
        )
    state.wait_for_everyone()
    return total


def _remove_unfinished(arguments: PredictionArguments) -> None:
    """Removes tables that a killed process was writing."""
    names = {os.path.basename(path) for path in (arguments.path, arguments.broken_path)}
    folder = os.path.dirname(arguments.path) or os.curdir
    _forget(folder, [name for name in os.listdir(folder) if name_of_temporary(name) in names])


def _finish(job: _Job) -> None:
    """Writes the table, and the list of what could not be used, and removes what was kept for them."""
    arguments, folder = job.arguments, job.chunks()
    broken = _broken(job, folder)
    with writing(f"the predictions to {arguments.path!r}"):
        if broken:
            write_table(arguments.broken_path, {"path": str, "reason": str}, broken.items())
        elif os.path.lexists(arguments.broken_path):
            os.remove(arguments.broken_path)
        if len(broken) - len(job.listed.unreadable if job.listed else ()) == len(job.images):
            shutil.rmtree(folder.path, ignore_errors=True)
            raise InputError(
                f"none of {counted(len(job.images), 'image')} can be used: "
                f"{shortlist((f'{name} ({why})' for name, why in broken.items()), 3)}. All are listed in "
                f"{arguments.broken_path!r}"
            )
        write_table(arguments.path, job.columns(), _rows(job, folder))
        about = {"sha256": _checksum(arguments.path), "num_broken": len(broken)}
        write_json(about, os.path.join(folder.path, _FINISHED_FILE))
        _forget(folder.path, _chunks_in(folder.path))


def _broken(job: _Job, folder: ChunkFolder) -> dict[str, str]:
    """Why images, and folders, could not be used, by name."""
    found = {job.images.name(row): " ".join(why.split()) for row, why in folder.skipped().items()}
    unreadable = job.listed.unreadable if job.listed else {}
    return found | {escaped(path): why for path, why in unreadable.items()}


def _rows(job: _Job, folder: ChunkFolder) -> Iterator[list[Any]]:
    """The rows of the table, of the types of its columns."""
    for chunk in range(folder.num_chunks):
        arrays, skipped = folder.read(chunk)
        answers = zip(arrays["classes"].tolist(), arrays["probabilities"].tolist(), strict=True)
        for place, (told, (classes, probabilities)) in enumerate(
            zip(job.images.places(folder.rows(chunk)), answers, strict=True)
        ):
            if place not in skipped:
                pairs = ((job.labels[index], value) for index, value in zip(classes, probabilities, strict=True))
                yield [*told, *chain.from_iterable(pairs)]


def _told(job: _Job, seconds: float, num_computed: int) -> Predictions:
    """What the table says, after images have been sorted by it."""
    arguments = job.arguments
    counts: Counter[str] = Counter(label for (label,) in read_columns(arguments.path, ["label"]))
    broken = {}
    if os.path.lexists(arguments.broken_path):
        broken = dict(read_columns(arguments.broken_path, ["path", "reason"]))
    found = None
    if arguments.sort_into is not None:
        wanted = [*job.images.columns, *_TOP]
        found = sort_into(
            os.path.expanduser(arguments.sort_into),
            matched(read_columns(arguments.path, wanted), _places(job.images)),
            job.images,
            job.labels,
            key=job.key,
            min_probability=arguments.min_probability,
            link=arguments.link,
        )
    return Predictions(
        arguments.path,
        counts.total(),
        broken,
        arguments.broken_path if broken else None,
        dict(counts.most_common()),
        seconds,
        num_computed,
        found,
        dict(job.listed.passed_over.most_common()) if job.listed else {},
        job.listed.num_repeated if job.listed else 0,
    )


def _places(images: FileImages | DataSetImages) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for start in range(0, len(images), CHUNK):
        rows = range(start, min(start + CHUNK, len(images)))
        yield from zip(rows, images.places(rows), strict=True)
