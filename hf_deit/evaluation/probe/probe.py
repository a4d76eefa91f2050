"""A probe: a backbone that stays as it is, with a linear classifier of the data's classes on its features.

What comes of it is an ordinary classifier folder, which everything takes that takes one, and `PROBE_FILE` beside it
says what it is worth: the answers to each image of a classifier that has not learnt from it.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from transformers.utils import logging

from ...errors import InputError, counted, first_line, shortlist
from ...hub.environment import describe_environment
from ...hub.files import read_json, share_weights, write_json, writing
from ...training.overview import about
from ...training.processes import on_main_process
from ..accuracy.intervals import wilson
from ..answers.asking import Asking
from ..images.images import EvaluationImages, evaluation_images
from ..sections import Estimate
from .arguments import PROBE_FILE
from .backbone import Backbone, BackboneDescription, views_of
from .card import card_of
from .features import Features, compute_features, estimate_seconds, on_main_process_alone
from .fit import FOLDS, Fit, alike, fit

logger = logging.get_logger(__name__)

UNFINISHED = "probe.unfinished"  # the folder in a probe's in which features are kept until it is whole
_LIBRARIES = ("scikit-learn", "scipy")  # that the numbers are made with


@dataclass(frozen=True)
class Settings:
    """How a probe is fitted.

    Attributes:
        is_mirrored: whether each image is learnt from mirrored, too.
        has_corners: whether it is learnt from its four corners, too.
        num_folds: of cross-validation; None for `FOLDS`, or one for each image of fewer.
        seed: of the folds.
    """

    is_mirrored: bool = True
    has_corners: bool = False
    num_folds: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What a classifier gets right of N images of K classes.

    Attributes:
        top_1: with its Wilson interval.
        balanced: the mean recall of the classes that have images.
        recalls: of each class with its interval, or None of one without images.
        majority: what the class with the most images would get right.
        num_images: N.
    """

    top_1: Estimate
    balanced: float
    recalls: dict[str, Estimate | None]
    counts: dict[str, int]
    majority: float
    num_images: int

    @classmethod
    def of(cls, decisions: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> "Measured":
        """Of answers and labels, (N,) int64."""
        right, counts = decisions == labels, np.bincount(labels, minlength=len(names))
        hits = np.bincount(labels[right], minlength=len(names))
        there = counts > 0
        recalls = {
            name: wilson(hit, count) if count else None for name, hit, count in zip(names, hits, counts, strict=True)
        }
        return cls(
            wilson(int(right.sum()), len(right)),
            float(np.mean(hits[there] / counts[there])),
            recalls,
            dict(zip(names, map(int, counts), strict=True)),
            float(counts.max() / len(labels)),
            len(labels),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "num_images": self.num_images,
            "accuracy": self.top_1.as_json(),
            "balanced_accuracy": self.balanced,
            "majority_accuracy": self.majority,
            "classes": {
                name: {"num_images": self.counts[name], "recall": None if recall is None else recall.as_json()}
                for name, recall in self.recalls.items()
            },
        }


def check_labels(labels: np.ndarray, names: Sequence[str], num_folds: int | None = None) -> None:
    """Refuses images of which nothing can be learnt, or of which cross-validation can say nothing.

    Args:
        labels: (N,) int64; below 0 of an image without a label.
        names: of the classes.
        num_folds: see `Settings`.

    Raises:
        InputError: with what to do.
    """
    if missing := int((labels < 0).sum()):
        raise InputError(
            f"{counted(missing, 'image')} of {len(labels):,} to fit the probe on have no label: leave them out"
        )
    counts = np.bincount(labels, minlength=len(names))
    if (present := int((counts > 0).sum())) < 2:
        raise InputError(
            f"a probe needs labelled images of at least two classes, got {counted(len(names), 'class name')} "
            f"({shortlist(names, 3)}) with images of {present}"
        )
    if single := [names[index] for index in np.flatnonzero(counts == 1)]:
        raise InputError(
            f"of {shortlist(single)} there is a single image, which cross-validation cannot both learn from and hold "
            f"out: give {'it' if len(single) == 1 else 'each'} at least two"
        )
    if num_folds is not None and num_folds > len(labels):
        raise InputError(f"there are {len(labels)} images for {num_folds} folds: give fewer --folds")


def images_of_rows(dataset: datasets.Dataset, names: Sequence[str], *, words: str) -> EvaluationImages:
    """Rows with the columns "image" and "label" as images to compute features of.

    Args:
        words: what they are.
    """
    return evaluation_images(dataset, names, source={"name": words}, words=words)


def identity_of(
    backbone: BackboneDescription,
    images: EvaluationImages,
    settings: Settings,
    held_out: Mapping[str, EvaluationImages] | None = None,
) -> dict[str, Any]:
    """What a probe depends on, of JSON's types. All processes must call it.

    Args:
        backbone, images, settings, held_out: see `fit_probe`.
    """
    labels = hashlib.sha256(np.asarray(images.labels.values, dtype="<i8").tobytes()).hexdigest()
    return {
        "backbone": on_main_process(backbone.version),
        "images": images.digest,
        "labels": labels,
        "classes": list(images.labels.names),
        "settings": asdict(settings),
        "held_out": {name: others.digest for name, others in (held_out or {}).items()},
    }


def read_probe(folder: str) -> dict[str, Any] | None:
    """The content of `PROBE_FILE` in the folder of a whole probe; None if there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = os.path.join(folder, PROBE_FILE)
    if not all(os.path.isfile(os.path.join(folder, name)) for name in (PROBE_FILE, "config.json")):
        return None
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path!r} ({first_line(error)}): remove the folder {folder!r}") from error
    return content if "identity" in content and "cross_validation" in content else None


def say_how_long(backbone: Backbone, images: EvaluationImages, settings: Settings) -> str:
    """About how long the features of images will take, in words; measured on a few."""
    views = views_of(is_mirrored=settings.is_mirrored, has_corners=settings.has_corners)
    seconds = estimate_seconds(backbone, len(images)) * len(views) / PartialState().num_processes
    shown = f" in {len(views)} views each" if len(views) > 1 else ""
    return f"{about(seconds)} for the features of {counted(len(images), 'image')}{shown}, then the fit"


def fit_probe(
    backbone: Backbone,
    images: EvaluationImages,
    asking: Asking,
    settings: Settings,
    *,
    held_out: Mapping[str, EvaluationImages] | None = None,
) -> dict[str, Any] | None:
    """Fits a linear classifier and writes it into the heads of the backbone.

    All processes must call it; the backbone of the main one is the classifier then.

    Args:
        backbone: with heads for the classes of the images.
        images: to fit it on, checked by `check_labels`.
        asking: how features are computed, and where they are kept until then.
        settings: of the fit.
        held_out: other images with the same classes, by what they are, to measure the classifier on.

    Returns:
        The content of `PROBE_FILE` in the main process, None in the others.

    Raises:
        InputError: see `compute_features`; or so many images cannot be decoded that `check_labels` refuses the rest.
        CheckpointError: features cannot be written.
    """
    start = time.perf_counter()
    backbone.views = views_of(is_mirrored=settings.is_mirrored, has_corners=settings.has_corners)
    features = compute_features(backbone, images, asking)
    found = on_main_process_alone(lambda: _fitted(backbone, images, features, settings))
    views, backbone.views = backbone.views, views_of(is_mirrored=False, has_corners=False)
    measured = {}
    for name, others in (held_out or {}).items():
        answers = compute_features(backbone, others, asking)
        measured[name] = on_main_process_alone(
            lambda answers=answers, others=others: _measured(found, others, answers)
        )
    if found is None:
        return None
    state = PartialState()
    return {
        "backbone": {**backbone.description.origin(), "num_features": backbone.num_features},
        "images": images.digest,
        "views": list(views),
        "seed": settings.seed,
        **found[1],
        **measured,
        "seconds": round(time.perf_counter() - start, 1),
        "environment": describe_environment(
            num_processes=state.num_processes, device_type=asking.device.type, libraries=_LIBRARIES
        ),
    }


def _fitted(
    backbone: Backbone, images: EvaluationImages, features: Features, settings: Settings
) -> tuple[Fit, dict[str, Any]]:
    from tqdm.auto import tqdm

    labels, names = images.labels.values[features.rows], images.labels.names
    if features.skipped:
        left_out = [f"{images.name(row)} ({why})" for row, why in features.skipped.items()]
        logger.warning("%s cannot be decoded: %s", counted(len(left_out), "image"), shortlist(left_out, 3))
        check_labels(labels, names)
    groups = alike(features.values)
    num_groups, num_folds = len(np.unique(groups)), settings.num_folds or FOLDS
    with tqdm(desc="fits", unit=" fits", delay=2) as bar:
        fitted = fit(
            features.values,
            labels,
            num_labels=len(names),
            groups=groups,
            num_folds=max(min(num_folds, num_groups), 2),
            seed=settings.seed,
            after_fit=bar.update,
        )
    backbone.write(fitted.linear.weight, fitted.linear.bias)
    worth = {
        "num_skipped": len(features.skipped),
        "num_repeated": len(labels) - num_groups,
        "scaling": fitted.scaling,
        "strength": fitted.strength,
        "losses": {f"{kind}, C = {strength:g}": loss for (kind, strength), loss in fitted.losses.items()},
        "num_folds": int(fitted.folds.max()) + 1,
        "cross_validation": Measured.of(fitted.held_out.argmax(axis=1), labels, names).as_json(),
        "training": Measured.of(fitted.linear.logits(features.values[0]).argmax(axis=1), labels, names).as_json(),
    }
    return fitted, worth


def _measured(found: tuple[Fit, Any], images: EvaluationImages, features: Features) -> dict[str, Any]:
    labels = images.labels.values[features.rows]
    decisions = found[0].linear.logits(features.values[0]).argmax(axis=1)[labels >= 0]
    return Measured.of(decisions, labels[labels >= 0], images.labels.names).as_json()


def save_probe(backbone: Backbone, content: Mapping[str, Any], folder: str) -> None:
    """Writes the folder of a probe, which is not there before it is whole. For one process.

    Args:
        backbone: from `fit_probe`.
        content: of its `PROBE_FILE`: what `fit_probe` gives, and its "identity".
        folder: where it shall be; what of these names is there is replaced.

    Raises:
        CheckpointError: the disk refuses.
    """
    unfinished = os.path.join(folder, UNFINISHED)
    with writing(f"the probe to {folder!r}"):
        shutil.rmtree(made := os.path.join(unfinished, "model"), ignore_errors=True)
        os.makedirs(made)
        backbone.save(made)
        share_weights(made)
        write_json(content, os.path.join(made, PROBE_FILE))
        with open(os.path.join(made, "README.md"), "w", encoding="utf-8") as file:
            file.write(card_of(content))
        # Without its configuration no folder is a model.
        for name in sorted(os.listdir(made), key=lambda name: name == "config.json"):
            os.replace(os.path.join(made, name), os.path.join(folder, name))
        shutil.rmtree(unfinished)
