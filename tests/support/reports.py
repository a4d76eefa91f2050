"""A report, made up: sections with tables and pictures of every kind, and where their numbers come from."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from hf_deit.evaluation.pictures import as_png, drawing, look_of
from hf_deit.evaluation.sections import Attachment, Estimate, Picture, Result, Section, Table
from hf_deit.hub.report_in_card import preprocessing_digest
from hf_deit.models.pretrained import weights_digest

RIGHT = Estimate(0.975, 0.953, 0.987)
LESS = Estimate(0.9472, 0.919, 0.966)


@functools.cache
def curves() -> bytes:
    """A PNG of a few."""
    with drawing() as figure:
        axes = figure.subplots()
        for index in range(3):
            axes.plot(np.arange(10), np.sqrt(np.arange(10)) + index, label=f"model {index}", **look_of(index))
        axes.set(xlabel="confidence", ylabel="accuracy")
        axes.legend()
        return as_png(figure)


def picture(name: str, in_card: bool = False) -> Picture:
    return Picture(name, curves(), "Accuracy by confidence.", "Three curves that rise.", in_card)


def sections(num_classes: int = 10, num_pictures: int = 2) -> list[Section]:
    """An accuracy with a table for the card, a table of classes, pictures, a file and a speed on another device."""
    rules = ("both heads, mean of logits", "class head", "distillation head")
    results = (
        *(Result("digits", rule, "top-1", RIGHT, 360, rule == rules[0]) for rule in rules),
        Result("digits", rules[0], "top-5", Estimate(1.0, 0.9894, 1.0), 360),
        Result("teacher", "its answer", "top-1", LESS, 360),
    )
    accuracy = Section(
        "accuracy",
        "Accuracy",
        ("How often the answer is right. An interval holds the true value 95 times out of 100.",),
        (
            Table(
                "accuracy",
                "Accuracy on 360 images, held out of train of sklearn:digits.",
                ("model", "answer", "top-1", "top-5", "images"),
                (
                    *(("digits", rule, RIGHT, Estimate(1.0, 0.9894, 1.0), 360) for rule in rules),
                    ("teacher", "its answer", LESS, None, 360),
                ),
                in_card=True,
            ),
        ),
        numbers={"top1": RIGHT.as_json()},
        results=results,
    )
    values = np.random.default_rng(0).random((num_classes, 3))
    classes = Section(
        "classes",
        "Classes",
        ("Where it fails.",),
        (
            Table(
                "classes",
                "Precision, recall and number of images of each class.",
                ("class", "precision", "recall", "F1", "images"),
                tuple((f"class {index}", *map(float, row), 10 + index % 7) for index, row in enumerate(values)),
            ),
        ),
        numbers={"recall": dict(enumerate(values[:, 1]))},
    )
    shown = Section(
        "calibration",
        "Calibration",
        pictures=tuple(picture(f"curves_{index}", in_card=index == 0) for index in range(num_pictures)),
        attachments=(Attachment("mistakes.csv", b"image,label,answer\n/data/a.png,1,7\n", "Every mistake."),),
    )
    speed = Section(
        "speed", "Speed", ("Images a second.",), numbers={"measured_on": {"device": "NVIDIA T4"}, "images_s": 1234.5}
    )
    return [accuracy, classes, shown, speed]


def provenance(folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Of a report about the model in a folder."""
    origin: dict[str, Any] = {"name": "digits", "architecture": "DistilledDeiTForImageClassification"}
    if folder is not None:
        origin |= {"name_or_path": str(folder), "version": weights_digest(folder)}
        origin["preprocessing"] = preprocessing_digest(folder)
    return {
        "command": f"hf-deit evaluate --model {folder}",
        "time": "2026-11-26T12:00:00+00:00",
        "images": {
            "words": "360 images, held out of train of sklearn:digits",
            "name": "sklearn:digits",
            "kind": "digits",
            "split": "held out of train",
            "num_images": 360,
        },
        "models": [{**origin, "weights": "raw"}, {"name": "teacher", "architecture": "ResNetForImageClassification"}],
        "settings": {},
        "seed": 0,
        "environment": {
            "device": "CPU, 2 cores, 1 thread a process",
            "libraries": {"hf_deit": "0.1.0", "torch": "2.14.1"},
            "hf_deit_commit": "c" * 40,
        },
        **changes,
    }
