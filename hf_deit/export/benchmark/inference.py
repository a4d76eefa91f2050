"""`hf-deit benchmark inference`: one classifier in every runtime, arms in turn, with accuracy beside time."""

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import psutil
import torch
from scipy.special import softmax
from transformers.utils import logging

from ...errors import InputError, not_one_of
from ...evaluation.accuracy.intervals import paired_difference, wilson
from ...evaluation.benchmarks.stand_ins import photographs
from ...evaluation.benchmarks.timing import Ratio, time_in_turn
from ...evaluation.classifiers.classifiers import ClassifierDescription, describe_classifiers, labels_of, pixels_of
from ...evaluation.images.images import EvaluationImages
from ...evaluation.images.labels import Labels
from ...hub.environment import describe_environment
from ...models.image_processing_deit import DistilledDeiTImageProcessor
from ...models.zoo import create_model, list_models
from .arms import ARMS, EAGER, Arm, usual_arms
from .processes import ArmError, Process
from .report import InferenceReport, InferenceRow
from .serving import CALIBRATION, Warmed, begin_answering, begin_making, begin_peaks

logger = logging.get_logger(__name__)

_TURN = 0.25  # seconds that an arm has the machine for, in a round
_FEWEST_RUNS, _MOST_RUNS = 2, 50  # in them
_CHUNK = 256  # images whose pixels lie on the disk at once
_MADE_UP = 48  # images, where none are given
_SHARE_FOR_CALIBRATION = 5  # at most a fifth of the images


@dataclass(frozen=True)
class Settings:
    """How classifiers are measured.

    Attributes:
        arms: names of `ARMS`, or arms; those that are usual on the device by default. Eager is always among them.
        batch_sizes: images that are answered at once.
        rounds: that are counted; in each all arms have a turn with every batch size.
        threads: of each arm; by default the physical cores that this process may use.
        device: "cpu" or "cuda".
        max_images: that are answered, evenly spread over those that there are.
        calibration_images: that are set apart for static quantisation, at most a fifth of them.
    """

    arms: Sequence[str | Arm] = ()
    batch_sizes: Sequence[int] = (1, 32)
    rounds: int = 15
    threads: int | None = None
    device: str = "cpu"
    max_images: int = 1000
    calibration_images: int = 128

    def __post_init__(self) -> None:
        for name in ("rounds", "threads", "max_images", "calibration_images"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError(f"batch_sizes must be at least 1, got {list(self.batch_sizes)}")
        for arm in self.arms:
            if isinstance(arm, str) and arm not in ARMS:
                raise InputError(not_one_of("arms", arm, list(ARMS)))
        if self.device not in ("cpu", "cuda"):
            raise InputError(not_one_of("device", self.device, ("cpu", "cuda")))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device is cuda, and torch finds no such device here: give cpu")

    def chosen(self) -> list[Arm]:
        """The arms, eager first."""
        named = [ARMS[arm] if isinstance(arm, str) else arm for arm in self.arms or usual_arms(self.device)]
        return [EAGER, *(arm for arm in dict.fromkeys(named) if arm is not EAGER)]


def measure_inference(
    model: str, images: EvaluationImages | None = None, settings: Settings = Settings()
) -> InferenceReport:
    """Measures a classifier in several runtimes: time, memory, size and answers, each of the same programs.

    Every arm's programs run in a process of their own that sleeps while others have their turn. All are given the
    same `pixel_values`. Whatever goes wrong with an arm is told in its rows.

    Args:
        model: a folder, a Hub id, or a name of the zoo, which is measured with random weights.
        images: to be answered; without labels, or without any, agreement with PyTorch's answers stands for accuracy.

    Raises:
        InputError: the model cannot be loaded or run, or the images are too few.
    """
    threads = settings.threads or _physical_cores()
    batch_sizes = tuple(dict.fromkeys(settings.batch_sizes))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = _made_model(model, folder) if model in list_models() else model
        names = labels_of(path) if images is None else images.labels.names
        class_indices = None if images is None else images.class_indices
        description = describe_classifiers([path], names, class_indices=class_indices)[0]
        tested, calibrating = _divided(_made_up_images(names) if images is None else images, settings)
        pixels = _Pixels(description, folder)
        pixels.save(CALIBRATION, calibrating, range(len(calibrating)))
        timed = pixels.save("timed.npy", tested, np.resize(np.arange(len(tested)), max(batch_sizes)))

        tracks = [_Track(arm, size, arm.missing()) for arm in settings.chosen() for size in batch_sizes]
        work = _make(tracks, (path, folder, batch_sizes, settings.device, threads))
        _check_reference(tracks[0], model)
        processes = _open(tracks, stack, folder, (timed, settings.device, threads))
        peaks = _Peaks(stack, folder, settings.device, threads)
        _time(tracks, processes, peaks, settings.rounds)
        _answer(tracks, processes, pixels, tested)
    _check_reference(tracks[0], model)
    return InferenceReport(
        model=model,
        rows=tuple(_rows(tracks, description, tested, work)),
        images=tested.words if images is not None else "of noise, as none were given",
        num_images=len(tested),
        num_calibration_images=len(calibrating),
        threads=threads,
        device=settings.device,
        rounds=settings.rounds,
        peaks=peaks.best,
        has_random_weights=path != model,
        environment=_environment(settings),
    )


@dataclass
class _Track:
    """An arm with a batch size, and what has come of it.

    Attributes:
        failure: why it goes no further, once it does not.
        num_bytes: of its program.
        turns: seconds of each run, by round; one that does not count comes first.
        logits: (N, K).
    """

    arm: Arm
    batch_size: int
    failure: str | None = None
    files: Sequence[str] = ()
    num_bytes: int | None = None
    warmed: Warmed | None = None
    turns: list[list[float]] = field(default_factory=list)
    logits: np.ndarray | None = None

    @contextmanager
    def trying(self) -> Iterator[None]:
        """What fails in it is this arm's alone."""
        try:
            yield
        except ArmError as error:
            self.failure = str(error)


def _check_reference(reference: _Track, model: str) -> None:
    if reference.failure:
        raise InputError(
            f"the model {model!r} cannot be run by PyTorch, with which all is compared: {reference.failure}"
        )


class _Pixels:
    """Writes what the model's image processor makes of images."""

    def __init__(self, description: ClassifierDescription, folder: str) -> None:
        self._description, self._folder = description, folder

    def save(self, name: str, images: EvaluationImages, rows: Sequence[int]) -> str:
        """Writes (N, 3, height, width) float32; gives the file."""
        path = os.path.join(self._folder, name)
        made = [pixels_of(self._description.processor, images.image(int(row))).numpy() for row in rows]
        np.save(path, np.stack(made).astype(np.float32, copy=False))
        return path


def _physical_cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or usable, usable)


def _made_model(name: str, folder: str) -> str:
    """A model of the zoo with random weights, in a folder."""
    path = os.path.join(folder, "model")
    torch.manual_seed(0)
    model = create_model(name)
    model.config.id2label = {label: f"class {label}" for label in range(model.config.num_labels)}
    model.config.label2id = {name: label for label, name in model.config.id2label.items()}
    model.save_pretrained(path)
    DistilledDeiTImageProcessor(crop_size=model.config.image_size).save_pretrained(path)
    return path


def _made_up_images(names: Sequence[str]) -> EvaluationImages:
    data = photographs(_MADE_UP, different=_MADE_UP)
    labels = Labels(tuple(names), np.full(len(data), -1, dtype=np.int64))
    return EvaluationImages(data.select_columns("image"), "image", labels, {}, f"{_MADE_UP} images of noise")


def _divided(images: EvaluationImages, settings: Settings) -> tuple[EvaluationImages, EvaluationImages]:
    """The images to measure on and those to calibrate with, each evenly spread."""
    if len(images) < 2:
        raise InputError(f"a benchmark needs at least 2 images, one of them to calibrate with, got {len(images)}")
    number = min(settings.calibration_images, max(len(images) // _SHARE_FOR_CALIBRATION, 1))
    is_calibrating = np.zeros(len(images), dtype=bool)
    is_calibrating[np.linspace(0, len(images) - 1, number).astype(int)] = True
    others = np.flatnonzero(~is_calibrating)
    is_tested = np.zeros(len(images), dtype=bool)
    is_tested[others[np.linspace(0, len(others) - 1, min(settings.max_images, len(others))).astype(int)]] = True
    return images.without(~is_tested), images.without(~is_calibrating)


def _make(tracks: Sequence[_Track], arguments: tuple[Any, ...]) -> dict[int, tuple[int, int]]:
    """Makes the programs of all arms in one process, and in a new one after one that has ended.

    Returns:
        The work of PyTorch eager by batch size, see `begin_making`.
    """
    folder, maker, work = arguments[1], None, {}
    bar = logging.tqdm(list(_by_arm(tracks)), desc="programs are made")
    for arm, own in bar:
        bar.set_postfix_str(f"{arm.title}, {arm.precision}")  # some take minutes
        try:
            if maker is None:
                maker = Process(begin_making, *arguments, log=os.path.join(folder, "making.log"))
            work = work or maker.ask("work")
            programs = maker.ask("make", arm)
        except ArmError as error:
            maker = maker if maker is not None and maker.is_alive else None
            for track in own:
                track.failure = str(error)
            if arm is EAGER:
                break
            continue
        for track in own:
            track.files = programs[track.batch_size]
            track.num_bytes = sum(os.path.getsize(file) for file in set(track.files))
    if maker is not None:
        maker.close()
    return work


class _Peaks:
    """What measures the device; without it there is all the rest.

    Attributes:
        found: of each round, FLOP/s of a product and bytes a second of a copy.
    """

    def __init__(self, stack: ExitStack, folder: str, device: str, threads: int) -> None:
        self.found: list[tuple[float, float]] = []
        self._process: Process | None = None
        try:
            self._process = Process(begin_peaks, device, threads, log=os.path.join(folder, "peaks.log"))
            stack.callback(self._process.close)
        except ArmError as error:
            self._give_up(error)

    def run(self) -> None:
        if self._process is not None:
            try:
                self.found.append(self._process.ask("run"))
            except ArmError as error:
                self._give_up(error)

    def _give_up(self, error: ArmError) -> None:
        self._process = None
        logger.warning("the peaks of the device are not measured any more: %s", error)

    @property
    def best(self) -> tuple[float, float] | None:
        """Of the rounds that count."""
        return None if len(self.found) < 2 else tuple(map(max, zip(*self.found[1:], strict=True)))


def _open(tracks: Sequence[_Track], stack: ExitStack, folder: str, arguments: tuple[Any, ...]) -> dict[str, Process]:
    """A process of each arm, with its programs warm."""
    processes: dict[str, Process] = {}
    bar = logging.tqdm(list(_by_arm(tracks)), desc="programs are warmed up")
    for arm, own in bar:
        bar.set_postfix_str(f"{arm.title}, {arm.precision}")
        programs = {track.batch_size: track.files for track in own}
        log = os.path.join(folder, f"{arm.name}.log")
        try:
            process = Process(begin_answering, arm, programs, *arguments, log=log)
        except ArmError as error:
            for track in own:
                track.failure = str(error)
            continue
        stack.callback(process.close)
        processes[arm.name] = process
        for track in sorted(own, key=lambda track: track.batch_size):  # by which memory is told of each
            with track.trying():
                track.warmed = process.ask("warm", track.batch_size)
    return processes


def _by_arm(tracks: Sequence[_Track]) -> Iterator[tuple[Arm, list[_Track]]]:
    """The arms, each with those of its tracks that have not failed."""
    for arm in dict.fromkeys(track.arm for track in tracks):
        if own := [track for track in tracks if track.arm == arm and not track.failure]:
            yield arm, own


def _time(tracks: Sequence[_Track], processes: Mapping[str, Process], peaks: _Peaks, rounds: int) -> None:
    def turn(track: _Track) -> Callable[[], None]:
        runs = min(max(int(_TURN / track.warmed.seconds), _FEWEST_RUNS), _MOST_RUNS)

        def run() -> None:
            bar.update()
            if not track.failure:
                with track.trying():
                    track.turns.append(processes[track.arm.name].ask("run", track.batch_size, runs))

        return run

    going = {f"{track.arm.name} {track.batch_size}": track for track in tracks if not track.failure}
    with logging.tqdm(total=len(going) * (rounds + 1), desc="programs have turns") as bar:
        time_in_turn({**{name: turn(track) for name, track in going.items()}, "peaks": peaks.run}, rounds=rounds)


def _answer(
    tracks: Sequence[_Track], processes: Mapping[str, Process], pixels: _Pixels, images: EvaluationImages
) -> None:
    answers: dict[int, list[np.ndarray]] = {index: [] for index in range(len(tracks))}
    for start in logging.tqdm(range(0, len(images), _CHUNK), desc="programs answer"):
        file = pixels.save("chunk.npy", images, range(start, min(start + _CHUNK, len(images))))
        for index, track in enumerate(tracks):
            if not track.failure:
                with track.trying():
                    answers[index].append(processes[track.arm.name].ask("logits", file, track.batch_size))
    for index, track in enumerate(tracks):
        if not track.failure:
            track.logits = np.concatenate(answers[index])


def _rows(
    tracks: Sequence[_Track],
    description: ClassifierDescription,
    images: EvaluationImages,
    work: Mapping[int, tuple[int, int]],
) -> Iterator[InferenceRow]:
    eager = {track.batch_size: track for track in tracks if track.arm is tracks[0].arm}
    order = slice(None) if description.label_order is None else description.label_order
    is_labelled = images.labels.is_labelled
    reference = tracks[0].logits
    expected = reference[:, order].argmax(axis=1)
    were_right = images.labels.are_right(expected)[is_labelled]
    for track in tracks:
        arm, failure = track.arm, track.failure
        row = InferenceRow(arm.name, arm.title, arm.precision, track.batch_size, track.num_bytes, failure)
        if failure:
            yield row
            continue
        answers = track.logits[:, order].argmax(axis=1)
        are_right = images.labels.are_right(answers)[is_labelled]
        rounds = tuple(tuple(turn) for turn in track.turns[1:])
        flops, traffic = work[track.batch_size]
        base = eager[track.batch_size]
        yield replace(
            row,
            seconds=rounds,
            memory=track.warmed.memory,
            flops=flops,
            traffic=traffic,
            speedup=None if base.failure else Ratio.of(_medians(base.turns[1:]), _medians(rounds)),
            agreement=wilson(int((answers == expected).sum()), len(answers)),
            largest_difference=float(np.abs(softmax(track.logits, axis=1) - softmax(reference, axis=1)).max()),
            accuracy=wilson(int(are_right.sum()), len(are_right)) if len(are_right) else None,
            loss=paired_difference(were_right, are_right) if len(are_right) else None,
        )


def _medians(turns: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(turn) for turn in turns]


def _environment(settings: Settings) -> dict[str, Any]:
    used = {name for arm in settings.chosen() if not arm.missing() for name in arm.modules}
    return describe_environment(device_type=settings.device, libraries=sorted(used))
