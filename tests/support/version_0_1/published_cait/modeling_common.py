"""What DeiT and CaiT share: loading, initialisation, resizing, stochastic depth, the output and fusion of two heads.

This file is copied beside published CaiT models, so it needs nothing of the package but `views`.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .views import keyed_uniform


@dataclass
class DistilledImageClassifierOutput(ModelOutput):
    """Output of a classifier with a class and a distillation head, in training and in evaluation.

    Attributes:
        loss: scalar, if `labels` were given: the mean of the two heads' cross-entropies to the labels.
        logits: (B, K), the two heads fused as `config.fusion` says. For "softmax" these are log-probabilities.
        cls_logits: (B, K), of the class head.
        distillation_logits: (B, K), of the distillation head.
        hidden_states: if asked for, tensors (B, T, D): the embeddings, then each block's output.
        attentions: if asked for, a block's each (B, heads, T, T); needs the "eager" implementation.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cls_logits: torch.Tensor | None = None
    distillation_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class StochasticDepth(nn.Module):
    """Drops a residual branch per sample (Huang et al. 2016), scaling the kept ones by 1 / (1 - rate).

    Args:
        rate: probability of dropping, in [0, 1).
        stream: names this branch among the model's, so that the branches' draws are independent.
    """

    def __init__(self, rate: float, stream: int) -> None:
        super().__init__()
        self.rate = rate
        self.stream = stream

    def forward(self, branch: torch.Tensor, view_seeds: torch.Tensor | None) -> torch.Tensor:
        if self.rate == 0 or not self.training:
            return branch
        if view_seeds is None:
            kept = torch.rand(len(branch), device=branch.device) >= self.rate
        else:
            kept = keyed_uniform(view_seeds, self.stream) >= self.rate
        return branch * (kept.to(branch.dtype) / (1 - self.rate)).view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def interpolate_positions(
    positions: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> torch.Tensor:
    """Position embeddings of patches for another grid: bicubic, in float32 (paper, section 3).

    Args:
        positions: (1, old_grid[0] · old_grid[1], D).
        old_grid, new_grid: patches per column and per row.

    Returns:
        (1, new_grid[0] · new_grid[1], D), in the same dtype.
    """
    if old_grid == new_grid:
        return positions
    patches = positions.unflatten(1, old_grid).permute(0, 3, 1, 2).float()
    patches = F.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    return patches.flatten(2).transpose(1, 2).to(positions.dtype)


def fuse_logits(cls_logits: torch.Tensor, distillation_logits: torch.Tensor, fusion: str) -> torch.Tensor:
    """Late fusion of the two heads.

    Args:
        cls_logits, distillation_logits: (B, K).
        fusion: "logits", "softmax", "cls" or "distillation".

    Returns:
        (B, K). For "softmax" the logarithm of the mean of the two softmaxes, so that a softmax of it gives that mean
        back; it ranks the labels as the paper's sum does.
    """
    if fusion == "softmax":
        log_probabilities = torch.stack((cls_logits, distillation_logits)).log_softmax(dim=-1)
        return log_probabilities.logsumexp(dim=0) - math.log(2)
    if fusion == "cls":
        return cls_logits
    if fusion == "distillation":
        return distillation_logits
    return (cls_logits + distillation_logits) / 2


class ImageClassifierBase(PreTrainedModel):
    """Initialisation, loading and resizing of all models of this package.

    A subclass's base model has `embeddings` with `position_embeddings`, `grid_size` and `interpolated_positions`.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _can_compile_fullgraph = True
    _head_names: tuple[str, ...] = ()

    def __init__(self, config: Any) -> None:
        # `from_pretrained(..., field=value)` sets fields behind the configuration's own validation.
        config.validate()
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal for tokens, positions and linears; the patch convolution keeps torch's default."""
        std = self.config.initializer_range
        if hasattr(module, "position_embeddings"):
            for parameter in (module.cls_token, module.distillation_token, module.position_embeddings):
                if parameter is not None:
                    init.trunc_normal_(parameter, std=std)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.bias, -bound, bound)

    def _recorded(self, output_hidden_states: bool | None, output_attentions: bool | None) -> dict[str, bool]:
        """What the backbone shall record: what is asked for, or else what the configuration says."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f'the "{self.config._attn_implementation}" attention gives no weights to output: call '
                'model.set_attn_implementation("eager") first'
            )
        return {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint, for DeiT in either key layout of transformers, or refuses it.

        Args:
            pretrained_model_name_or_path: a Hub id or a folder with `config.json` and safetensors weights.
            *args, **kwargs: those of `transformers.PreTrainedModel.from_pretrained`. With
                `ignore_mismatched_sizes=True` heads that are missing or of another size are initialised anew;
                nothing else ever is.

        Raises:
            ValueError: parameters are missing, of another shape or unknown, or pickled weights are asked for.
            OSError: no such checkpoint, or no safetensors weights in it.
        """
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError(
                "only safetensors weights are opened, got use_safetensors="
                f"{kwargs['use_safetensors']!r}: convert the checkpoint first (scripts that unpickle can run any code)"
            )
        return_info = kwargs.pop("output_loading_info", False)
        new_heads_allowed = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        # Remembered from a file in the newer key layout, it would make `save_pretrained` write that layout again.
        model._weight_conversions = None
        is_head = re.compile(r"^(cls_classifier|distillation_classifier|classifier)\.").search
        problems = {
            "missing": [key for key in info["missing_keys"] if not (new_heads_allowed and is_head(key))],
            # A headless model may be taken from a classifier; a classifier from one with other heads only knowingly.
            "unknown": [
                key
                for key in info["unexpected_keys"]
                if not is_head(key) or (cls._head_names and not new_heads_allowed)
            ],
            "of another shape": [
                key for key, *_ in info["mismatched_keys"] if not (new_heads_allowed and is_head(key))
            ],
        }
        if any(problems.values()):
            found = "; ".join(
                f"{len(keys)} {problem}: {', '.join(sorted(keys)[:4])}{', …' if len(keys) > 4 else ''}"
                for problem, keys in problems.items()
                if keys
            )
            remedy = (
                "pass ignore_mismatched_sizes=True to start with new heads"
                if all(is_head(key) for keys in problems.values() for key in keys)
                else "is it a checkpoint of this architecture, and complete?"
            )
            raise ValueError(f"{pretrained_model_name_or_path} does not fit {cls.__name__}: {found}. {remedy}")
        return (model, info) if return_info else model

    @torch.no_grad()
    def resize_image_size(self, image_size: int | tuple[int, int]) -> None:
        """Makes this a model for inputs of another size: positions are interpolated, in float32 (paper, section 3).

        Its image processor follows with `processor.at_crop_size(image_size)`.

        Args:
            image_size: in pixels, or (height, width); multiples of the patch size.

        Raises:
            ValueError: no such multiple.
        """
        old_size = self.config.image_size
        try:
            self.config.image_size = image_size
            self.config.validate()
        except Exception as error:
            self.config.image_size = old_size
            raise ValueError(f"image_size {image_size} is none for this model: {error}") from error
        embeddings = self.base_model.embeddings
        positions = embeddings.interpolated_positions(self.config.grid_size).clone()
        trains = embeddings.position_embeddings.requires_grad
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=trains)
        embeddings.grid_size = self.config.grid_size

    def reset_heads(self, num_labels: int | None = None, id2label: Mapping[int, str] | None = None) -> None:
        """Gives the model new heads, initialised as in training from nothing.

        Args:
            num_labels: of the new heads; by default as many as there are names, or else as there were.
            id2label: names of the labels by index.

        Raises:
            ValueError: another number of names than of labels, or a name twice.
        """
        if num_labels is None:
            num_labels = len(id2label) if id2label else self.config.num_labels
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {num_labels}")
        names = {index: f"LABEL_{index}" for index in range(num_labels)} if id2label is None else dict(id2label)
        if sorted(names) != list(range(num_labels)):
            raise ValueError(f"id2label must name the labels 0 to {num_labels - 1}, got {sorted(names)[:5]} …")
        if len(set(names.values())) < num_labels:
            twice = next(name for name, count in Counter(names.values()).items() if count > 1)
            raise ValueError(f"id2label must give every label a name of its own, got {twice!r} more than once")
        self.config.id2label, self.config.label2id = names, {label: index for index, label in names.items()}
        for name in (name for name in self._head_names if hasattr(self, name)):
            head = getattr(self, name)
            renewed = nn.Linear(head.in_features, num_labels, device=head.weight.device, dtype=head.weight.dtype)
            self._init_weights(renewed)
            setattr(self, name, renewed)


def check_labels(labels: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The labels as int64, refused if they are no class indices of shape (batch_size,)."""
    if labels.shape != (batch_size,) or labels.is_floating_point():
        raise ValueError(
            f"labels must be class indices of shape ({batch_size},), got {labels.dtype} {tuple(labels.shape)}: for "
            "mixed or smoothed targets take hf_deit.soft_target_cross_entropy on the returned logits"
        )
    return labels.long()
