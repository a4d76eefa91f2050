"""Checkpoints of tiny models with random weights, as facebookresearch, timm, transformers and hf_deit have them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification

from hf_deit import DistilledDeiTImageProcessor, create_model

DISTILLED, PLAIN, CAIT = "deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "cait_xxs24_224"
KINDS = {"distilled": DISTILLED, "plain": PLAIN, "cait": CAIT}
# transformers' own classes, which know nothing of this package's fields.
NATIVE = {
    "distilled": (DeiTConfig, DeiTForImageClassificationWithTeacher),
    "plain": (ViTConfig, ViTForImageClassification),
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
# The same in timm's words.
TINY_TIMM = {"embed_dim": 64, "depth": 2, "num_heads": 1, "mlp_ratio": 1, "img_size": 32, "patch_size": 8}
LABELS = ["a", "b", "c"]
STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "crop_pct": 0.8}
Weights = dict[str, torch.Tensor]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Sets every parameter, so that none is at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if is_scale else 0.0, 0.05, generator=generator)
    return model.eval()


def timm_model(name: str, **fields: Any) -> nn.Module:
    """A model of timm, of its own size where the fields do not say another."""
    with torch.device("meta"):
        model = timm.create_model(name, **fields)
    return randomise(model.to_empty(device="cpu"))


def tiny_timm_model(name: str = DISTILLED, **fields: Any) -> nn.Module:
    sizes = {**TINY_TIMM, "num_classes": 3, **fields}
    if "cait" in name:
        sizes["mlp_ratio_token_only"] = sizes["mlp_ratio"]
    return timm_model(name, **sizes)


@functools.cache
def _tiny_weights(name: str, fields: tuple[tuple[str, Any], ...]) -> Weights:
    return {key: tensor.detach() for key, tensor in tiny_timm_model(name, **dict(fields)).state_dict().items()}


def weights_of(name: str = DISTILLED, **fields: Any) -> Weights:
    """By timm's names. The tensors are shared: change none of them in place."""
    return dict(_tiny_weights(name, tuple(fields.items())))


def ours(name: str, labels: list[str] = LABELS, **fields: Any) -> nn.Module:
    return randomise(create_model(name, **{**TINY, "id2label": dict(enumerate(labels)), **fields}))


def native(kind: str, labels: list[str] = LABELS, **fields: Any) -> nn.Module:
    config_class, model_class = NATIVE[kind]
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    return randomise(model_class(config_class(**{**TINY, "layer_norm_eps": 1e-6, **names, **fields})))


def pth(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def old_pth(path: Path, content: Any) -> Path:
    """A file as torch wrote them before 1.6."""
    return pth(path, content, _use_new_zipfile_serialization=False)


def timm_folder(folder: Path, weights: Weights, **fields: Any) -> Path:
    """As on the Hub, without anything of this package."""
    folder.mkdir()
    settings = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_mode": "center", **STATISTICS}
    stated = {"architecture": DISTILLED, "num_classes": 3, "num_features": 64, "pretrained_cfg": settings, **fields}
    (folder / "config.json").write_text(json.dumps(stated))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def saved(folder: Path, model: nn.Module, processor: Any = None, **options: Any) -> Path:
    """A folder of transformers' or this package's, with an image processor beside the model."""
    model.save_pretrained(folder, **options)
    (processor or DistilledDeiTImageProcessor(crop_size=32)).save_pretrained(folder)
    return folder


def our_folder(folder: Path, name: str = DISTILLED, **fields: Any) -> Path:
    return saved(folder, ours(name, **fields))


def edited(folder: Path, file: str = "config.json", **fields: Any) -> Path:
    """Changes what a JSON file of a folder states; None takes a statement out."""
    path = folder / file
    stated = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))
    return folder


def reweighted(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """Changes the weights of a folder."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def noise(size: int = 32, num_channels: int = 3) -> torch.Tensor:
    return torch.randn(2, num_channels, size, size, generator=torch.Generator().manual_seed(1))


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
