"""The four kinds of models, tiny and with random weights, and what tests of them share."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hf_deit import (
    CaiTConfig,
    CaiTForImageClassification,
    CaiTModel,
    DistilledDeiTConfig,
    DistilledDeiTForImageClassification,
    DistilledDeiTModel,
    PlainDeiTConfig,
    PlainDeiTForImageClassification,
    PlainDeiTModel,
)
from hf_deit.models.keyed import view_seed

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
LOGITS = ("logits", "cls_logits", "distillation_logits")


@dataclass(frozen=True, eq=False)
class Kind:
    """A family, with or without distillation token."""

    name: str
    config_class: type
    model_class: type
    backbone_class: type
    distilled: bool
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def is_cait(self) -> bool:
        return self.config_class is CaiTConfig

    @property
    def heads(self) -> list[str]:
        return ["cls_classifier", "distillation_classifier"] if self.distilled else ["classifier"]

    @property
    def logits(self) -> tuple[str, ...]:
        return LOGITS if self.distilled else LOGITS[:1]

    @property
    def prefix(self) -> str:
        return self.model_class.base_model_prefix

    @property
    def num_special_positions(self) -> int:
        """Special tokens among the position embeddings, which in CaiT only patches have."""
        return 0 if self.is_cait else 1 + self.distilled

    def config(self, **fields: Any) -> Any:
        return self.config_class(**{**TINY, **self.fields, **fields})

    def tiny(self, seed: int = 0, **fields: Any) -> PreTrainedModel:
        return randomise(self.model_class(self.config(**fields)), seed)

    def fresh(self, **fields: Any) -> PreTrainedModel:
        """Initialised as for training, and wide enough for statistics of the weights."""
        torch.manual_seed(0)
        sizes = {"hidden_size": 192, "num_attention_heads": 4, "intermediate_size": 768, "num_hidden_layers": 2}
        return self.model_class(self.config_class(**{**sizes, "num_labels": 100, **self.fields, **fields}))

    def load(self, folder: Path, **settings: Any) -> PreTrainedModel:
        return self.model_class.from_pretrained(folder, **settings)

    def __str__(self) -> str:
        return self.name


DEIT = Kind("deit", PlainDeiTConfig, PlainDeiTForImageClassification, PlainDeiTModel, False)
DISTILLED_DEIT = Kind(
    "distilled deit", DistilledDeiTConfig, DistilledDeiTForImageClassification, DistilledDeiTModel, True
)
CAIT = Kind("cait", CaiTConfig, CaiTForImageClassification, CaiTModel, False)
DISTILLED_CAIT = Kind(
    "distilled cait", CaiTConfig, CaiTForImageClassification, CaiTModel, True, {"distillation_token": True}
)
KINDS = (DEIT, DISTILLED_DEIT, CAIT, DISTILLED_CAIT)
DISTILLED = (DISTILLED_DEIT, DISTILLED_CAIT)
WITH_FUSION = (DISTILLED_DEIT, CAIT, DISTILLED_CAIT)
WITH_CHUNKS = {  # of CaiT's attention: at a size below the number of patches it is computed piece by piece
    **{kind.name: (kind, {}) for kind in KINDS},
    **{f"{kind.name} in chunks": (kind, {"query_chunk_size": 7}) for kind in (CAIT, DISTILLED_CAIT)},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=str)
DISTILLED_KINDS = pytest.mark.parametrize("kind", DISTILLED, ids=str)
DEIT_KINDS = pytest.mark.parametrize("kind", (DEIT, DISTILLED_DEIT), ids=str)
EVERY_KIND_AND_CHUNKS = pytest.mark.parametrize(("kind", "fields"), WITH_CHUNKS.values(), ids=WITH_CHUNKS)
CAIT_KINDS = pytest.mark.parametrize("kind", (CAIT, DISTILLED_CAIT), ids=str)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Sets every parameter, in our or timm's names, so that none is at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("_scale", "gamma_1", "gamma_2")):
            parameter.uniform_(0.1, 1, generator=generator)
            continue
        width = parameter[0].numel() if parameter.ndim > 1 else 1
        spread = 0.7 / math.sqrt(width) if name.endswith("weight") and parameter.ndim > 1 else 0.1
        parameter.normal_(0, spread, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1)
    return model.eval()


def images(batch_size: int = 3, height: int = 32, width: int | None = None, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 3, height, width or height, generator=torch.Generator().manual_seed(seed))


def seeds(batch_size: int, epoch: int = 0) -> torch.Tensor:
    return torch.tensor([view_seed(0, epoch, slot) for slot in range(batch_size)])


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_logits(ours: Any, theirs: Any, atol: float = 1e-5) -> None:
    named = [{name: output[name] for name in LOGITS if name in output} for output in (ours, theirs)]
    assert_close(*named, atol=atol)


def assert_same_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Bit by bit, of the weights that the model has."""
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def assert_fresh(head: nn.Linear) -> None:
    assert head.bias.abs().max() == 0
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.25)  # randomised weights have 0.12


def keys_on_disk(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def save_changed(folder: Path, model: PreTrainedModel, drop: tuple[str, ...] = (), add: dict | None = None) -> None:
    """A checkpoint without the keys that contain any of `drop`, and with those of `add`."""
    model.save_pretrained(folder)
    state = {key: value for key, value in keys_on_disk(folder).items() if not any(part in key for part in drop)}
    save_file({**state, **(add or {})}, folder / "model.safetensors", metadata={"format": "pt"})
