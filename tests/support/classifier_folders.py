"""Folders of tiny classifiers whose random answers are far from ties, to be exported."""

from pathlib import Path
from typing import Any

import torch

from . import tiny

LABELS = (
    "<img src=x onerror=alert(1)>",
    "</script><b>",
    "naïve “Ω” 漢字",
    "שלום",
    "five & six",
    *"678",
    "a " * 40,
    "ten",
)


def save_classifier(folder: Path, model: Any = None, processor: Any = None) -> str:
    """Saves a model, by default a DeiT with two heads and `LABELS`, with its image processor."""
    if model is None:
        model = tiny.student(seed=3, id2label=dict(enumerate(LABELS)))
    with torch.no_grad():  # else all its probabilities are about the same
        for name, parameter in model.named_parameters():
            if "classifier" in name and parameter.dim() == 2:
                parameter.normal_(std=4.0, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder)
    (processor or tiny.processor()).save_pretrained(folder)
    return str(folder)
