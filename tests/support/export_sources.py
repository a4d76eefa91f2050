"""Classifiers to be exported: tiny, with random weights."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from hf_deit import DistilledDeiTImageProcessor
from hf_deit.evaluation.classifiers.classifiers import Classifier
from hf_deit.export.parity.answering import decode
from hf_deit.export.parity.odd_images import write_odd_images
from hf_deit.export.programs.processors import preprocessing_of
from hf_deit.export.programs.source import ExportSource, load_source

from .checkpoints import Weights, our_folder, reweighted


def export_source(model: nn.Module, size: int = 32, processor: Any = None, **forward_options: Any) -> ExportSource:
    """A model as an export is given it; its labels are "label 0", …"""
    processor = processor or DistilledDeiTImageProcessor(crop_size=size, crop_ratio=0.875)
    classifier = Classifier("tiny", model.eval(), processor, (size, size), forward_options=forward_options)
    return ExportSource(
        classifier=classifier,
        labels=tuple(f"label {index}" for index in range(model.config.num_labels)),
        preprocessing=preprocessing_of(processor, (size, size)),
        facts={
            "name_or_path": "me/tiny",
            "revision": "c0ffee" * 6 + "c0ff",
            "fusion": "logits",
            "architecture": type(model).__name__,
        },
    )


def sure_source(folder: Path, **fields: Any) -> ExportSource:
    """A model whose two heads part, which sees details, and answers with every label, mostly surely."""
    our_folder(folder, fusion="softmax", **fields)
    reweighted(
        folder,
        lambda weights: {name: 20 * value if "projection" in name else value for name, value in weights.items()},
    )
    own = load_source(str(folder))
    images = folder.with_name(f"{folder.name}-images")
    images.mkdir()
    write_odd_images(images)
    seen = torch.stack([own.classifier.preprocess(Image.fromarray(decode(str(path)))) for path in images.iterdir()])
    logits = own.classifier.logits(seen)

    def surer(weights: Weights) -> Weights:
        changed = dict(weights)
        for head, name in (("class", "cls_classifier"), ("distillation", "distillation_classifier")):
            scale = 2 / logits[head].std(dim=0)
            changed[f"{name}.weight"] = weights[f"{name}.weight"] * scale[:, None]
            changed[f"{name}.bias"] = (weights[f"{name}.bias"] - logits[head].mean(dim=0)) * scale
        return changed

    return load_source(str(reweighted(folder, surer)))
