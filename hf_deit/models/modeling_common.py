"""What DeiT and CaiT share: embeddings, parts of the layers, heads, loss, initialisation, loading and resizing.

This file is published beside CaiT's weights, with the modules that it imports from this folder. It may import no other
part of the package. "The paper" is DeiT's (Touvron et al. 2021, "Training data-efficient image transformers").

Shape legend: B images, C channels, H × W pixels, N patches, S special tokens, T = S + N, D hidden_size, K labels.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pickle import PickleError
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    ModelOutput,
    cached_file,
)
from transformers.utils.generic import can_return_tuple

from .configuration_deit import DeiTConfigBase, as_pair, label2id_of
from .keyed import as_uniform, keyed_draws


@dataclass
class DistilledImageClassifierOutput(ModelOutput):
    """Output of a classifier with a class and a distillation head, in training and in evaluation.

    Attributes:
        loss: scalar, if `labels` were given: the mean of the two heads' cross-entropies to the labels.
        logits: (B, K), the two heads fused as `config.fusion` says. For "softmax" these are log-probabilities.
        cls_logits: (B, K), of the class head.
        distillation_logits: (B, K), of the distillation head.
        hidden_states: if asked for, tensors (B, T, D): the embeddings, then each block's output.
        attentions: if asked for, one tensor (B, heads, T, T) per block; DeiT's "eager" attention alone gives them.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cls_logits: torch.Tensor | None = None
    distillation_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class StochasticDepth(nn.Module):
    """Drops a residual branch for some of the samples (Huang et al. 2016), and scales the others by 1 / (1 - rate).

    Args:
        rate: probability of dropping, in [0, 1).
        stream: number of this branch within the model; branches of different numbers draw independently.
    """

    def __init__(self, rate: float, stream: int) -> None:
        super().__init__()
        self.rate = rate
        self.stream = stream

    def forward(self, branch: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """Drops samples of (B, …) by row `stream` of `keyed_draws`, or, without, by torch's generator."""
        if self.rate == 0 or not self.training:
            return branch
        if draws is None:
            kept = torch.rand(branch.shape[0], device=branch.device) >= self.rate
        else:
            kept = as_uniform(draws[self.stream]) >= self.rate
        return branch * (kept.to(branch.dtype) / (1 - self.rate)).view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def depth_draws(layers: nn.ModuleList, view_seeds: torch.Tensor | None) -> torch.Tensor | None:
    """What decides which branches of layers are dropped: `keyed_draws`, (streams, B); None where nothing is drawn.

    They are integers, which no wrapper of the layers casts to the weights' type.

    Args:
        layers: with an `attention_depth` and an `mlp_depth`.
        view_seeds: (B,) int64, from `keyed.view_seed`, or None.
    """
    depths = [
        depth
        for layer in layers
        for depth in (layer.attention_depth, layer.mlp_depth)
        if depth.training and depth.rate > 0
    ]
    if view_seeds is None or not depths:
        return None
    return keyed_draws(view_seeds, 1 + max(depth.stream for depth in depths))


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


class EmbeddingsBase(nn.Module):
    """Special tokens, the patch convolution and position embeddings. Subclasses put them together.

    Args:
        distilled: whether there is a distillation token beside the class token.
        special_positions: whether the special tokens have position embeddings too, in front of those of the patches.
    """

    def __init__(self, config: DeiTConfigBase, *, distilled: bool, special_positions: bool) -> None:
        super().__init__()
        self.patch_size = as_pair(config.patch_size)
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if distilled else None
        self.patch_embeddings = nn.ModuleDict(
            {
                "projection": nn.Conv2d(
                    config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
                )
            }
        )
        self.num_special_positions = len(self.special_tokens) if special_positions else 0
        num_positions = self.num_special_positions + math.prod(self.grid_size)
        self.position_embeddings = nn.Parameter(torch.empty(1, num_positions, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def special_tokens(self) -> list[torch.Tensor]:
        """The class token and, if there is one, the distillation token, each (1, 1, D)."""
        return [self.cls_token] if self.distillation_token is None else [self.cls_token, self.distillation_token]

    def interpolated_positions(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """Position embeddings for another grid: bicubic, in float32. Those of special tokens stay as they are.

        Args:
            grid_size: patches per column and per row.

        Returns:
            (1, num_special_positions + grid_size[0] · grid_size[1], D), in the parameter's dtype.
        """
        positions, special = self.position_embeddings, self.num_special_positions
        if grid_size == self.grid_size:
            return positions
        patches = interpolate_positions(positions[:, special:], self.grid_size, grid_size)
        return torch.cat((positions[:, :special], patches), dim=1) if special else patches

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeds the patches of (B, C, H, W) pixels.

        Returns:
            The patches, (B, N, D), without positions, and the position embeddings for images of this size.

        Raises:
            ValueError: another shape, or sides that the patch size does not divide.
        """
        projection = self.patch_embeddings["projection"]
        if pixel_values.ndim != 4 or pixel_values.shape[1] != projection.in_channels:
            raise ValueError(
                f"pixel_values must be (B, {projection.in_channels}, H, W), got {tuple(pixel_values.shape)}"
            )
        height, width = pixel_values.shape[-2:]
        if height % self.patch_size[0] or width % self.patch_size[1] or 0 in (height, width):
            raise ValueError(
                f"height and width must be multiples of the patch size {self.patch_size}, got {height} x {width}: "
                "resize or crop the images (the image processor does)"
            )
        patches = projection(pixel_values.to(projection.weight.dtype)).flatten(2).transpose(1, 2)
        grid_size = (height // self.patch_size[0], width // self.patch_size[1])
        return patches, self.interpolated_positions(grid_size)


class AttentionBase(nn.Module):
    """The projections to queries, keys and values, and their division into heads."""

    def __init__(self, config: DeiTConfigBase) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)

    def in_heads(self, projected: torch.Tensor) -> torch.Tensor:
        """(B, T, D) to (B, heads, T, D / heads)."""
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """The feed-forward part of a layer, with dropout behind the activation and behind the second linear.

    Args:
        has_dropout: whether there is any, of the configuration's rate.
    """

    def __init__(self, config: DeiTConfigBase, *, has_dropout: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob) if has_dropout else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(hidden_states)))))


class LayerBase(GradientCheckpointingLayer):
    """The parts of a pre-norm layer. Subclasses put them together.

    Args:
        has_dropout: whether what the attention gives, and the `MLP`, have dropout of the configuration's rate.
    """

    def __init__(self, config: DeiTConfigBase, attention: nn.Module, *, has_dropout: bool = True) -> None:
        super().__init__()
        self.attention = attention
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config, has_dropout=has_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout_prob) if has_dropout else nn.Identity()


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


def check_labels(labels: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The labels as int64, refused if they are no class indices of shape (batch_size,)."""
    if labels.shape != (batch_size,) or labels.is_floating_point():
        raise ValueError(
            f"labels must be class indices of shape ({batch_size},), got {labels.dtype} {tuple(labels.shape)}: for "
            "mixed or smoothed targets take hf_deit.soft_target_cross_entropy on the returned logits"
        )
    return labels.long()


_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}  # as safetensors and torch say
_OF_THE_HUB = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


def quantized_types(name_or_path: str | os.PathLike[str], **kwargs: Any) -> list[str]:
    """In which types, other than floating-point ones, a checkpoint holds weights: it is then quantised.

    Loaded as floats they would be other numbers, with only a warning, or none.

    Args:
        name_or_path: a Hub id or a folder. What cannot be read has none: whoever loads it says what is wrong.
        **kwargs: those of `from_pretrained`, of which `revision` and others say where its files are.
    """
    where = {name: kwargs[name] for name in _OF_THE_HUB if name in kwargs}

    def path_of(name: str) -> str | None:
        return cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False, **where)

    try:
        for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
            paths = [path_of(whole)]
            if paths == [None] and (listed := path_of(index)) is not None:
                with open(listed, encoding="utf-8") as file:
                    paths = [path_of(name) for name in sorted({*json.load(file)["weight_map"].values()})]
            types = {kind for path in filter(None, paths) for kind in _types_of_weights(path)}
            if types:
                return sorted(types - _FLOATS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError, PickleError):
        pass
    return []


def _types_of_weights(path: str) -> set[str]:
    """The types in a file, but for those of what is no weight, as counts and tables of positions."""
    if path.endswith(".safetensors"):
        with safe_open(path, framework="pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    else:
        content = torch.load(path, map_location="meta", weights_only=True)
        types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in content.items()}
    return {kind for name, kind in types.items() if "weight" in name.rpartition(".")[2]}


class ImageClassifierBase(PreTrainedModel):
    """Initialisation, loading and resizing of all models of this package, with heads or without.

    The base model of a subclass keeps its `EmbeddingsBase` in `embeddings`.
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

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embeddings.patch_embeddings["projection"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal for tokens, positions and linears; the patch convolution keeps torch's default."""
        std = self.config.initializer_range
        if isinstance(module, EmbeddingsBase):
            for parameter in (*module.special_tokens, module.position_embeddings):
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
        """What the base model shall record: what is asked for, or else what the configuration says.

        Raises:
            ValueError: it shall record attentions, which the attention implementation does not give.
        """
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

    def _options_of_base(self, recorded: Mapping[str, bool]) -> dict[str, Any]:
        """What a classifier gives its base model besides, which records what `_recorded` says."""
        return {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint, for DeiT in either key layout of transformers, or refuses it.

        Args:
            pretrained_model_name_or_path: a Hub id or a folder with `config.json` and safetensors weights.
            *args, **kwargs: those of `transformers.PreTrainedModel.from_pretrained`. With
                `ignore_mismatched_sizes=True` heads that are missing or of another size are initialised anew;
                nothing else ever is.

        Raises:
            ValueError: parameters are missing, of another shape, unknown or quantised, or pickled weights are asked
                for.
            OSError: no such checkpoint, or no safetensors weights in it.
        """
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError(
                "only safetensors weights are opened, got use_safetensors="
                f"{kwargs['use_safetensors']!r}: convert the checkpoint first (scripts that unpickle can run any code)"
            )
        if types := quantized_types(pretrained_model_name_or_path, **kwargs):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds quantised weights ({', '.join(types)}), expected floats: save "
                "the model that they were made from, or model.dequantize()"
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
        """Interpolates the positions for inputs of another size, in float32 (paper, section 3).

        Its image processor follows with `processor.at_crop_size(image_size)`.

        Args:
            image_size: in pixels, or (height, width); multiples of the patch size.

        Raises:
            ValueError: the size is none that a model can have; this one is then as it was.
        """
        old_size = self.config.image_size
        try:
            self.config.image_size = image_size
            self.config.validate()
        except Exception as error:
            self.config.image_size = old_size
            raise ValueError(f"image_size {image_size} is none for this model: {error.__cause__ or error}") from error
        embeddings = self.base_model.embeddings
        positions = embeddings.interpolated_positions(self.config.grid_size).clone()
        trains = embeddings.position_embeddings.requires_grad
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=trains)
        embeddings.grid_size = self.config.grid_size

    def reset_heads(self, num_labels: int | None = None, id2label: Mapping[int, str] | None = None) -> None:
        """Gives the model new heads, initialised as in training from nothing.

        Args:
            num_labels: by default as many as `id2label` names, or else as before.
            id2label: names of the labels by index.

        Raises:
            ValueError: `id2label` does not name each label once, or two labels alike.
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
        self.config.id2label, self.config.label2id = names, label2id_of(names)
        for name in (name for name in self._head_names if hasattr(self, name)):
            head = getattr(self, name)
            renewed = nn.Linear(head.in_features, num_labels, device=head.weight.device, dtype=head.weight.dtype)
            self._init_weights(renewed)
            setattr(self, name, renewed)


class ImageClassificationMixin:
    """`forward` of a classifier: a base model, then one head, or a class head and a distillation head.

    The model has either `classifier`, or `cls_classifier` and `distillation_classifier`.
    """

    def fuse(self, cls_logits: torch.Tensor, distillation_logits: torch.Tensor) -> torch.Tensor:
        """Late fusion of two heads as `config.fusion` says; see `fuse_logits`."""
        return fuse_logits(cls_logits, distillation_logits, self.config.fusion)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        view_seeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | DistilledImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: (B, C, H, W), normalised as the image processor does; H and W multiples of the patch size.
            labels: (B,) class indices in [0, K), -100 to ignore a sample. They give a loss: the cross-entropy, of two
                heads the mean of theirs, so that both learn when there is no teacher.
            view_seeds: (B,) int64, which decide what stochastic depth drops; see `DistilledDeiTModel.forward`.
            output_hidden_states, output_attentions, return_dict: as in transformers. CaiT refuses to output
                attentions, which it computes for some queries at a time.

        Returns:
            With one head `logits` (B, K), with two a `DistilledImageClassifierOutput`.

        Raises:
            ValueError: the pixels or the labels have the wrong shape, or attentions are asked for that there are not.
        """
        recorded = self._recorded(output_hidden_states, output_attentions)
        outputs = self.base_model(
            pixel_values, view_seeds=view_seeds, return_dict=True, **recorded, **self._options_of_base(recorded)
        )
        return self._answer(outputs, None if labels is None else check_labels(labels, pixel_values.shape[0]))

    def _answer(
        self, outputs: BaseModelOutput, labels: torch.Tensor | None
    ) -> ImageClassifierOutput | DistilledImageClassifierOutput:
        states = outputs.last_hidden_state
        recorded = {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}
        loss = None
        if not hasattr(self, "distillation_classifier"):
            logits = self.classifier(states[:, 0])
            if labels is not None:
                loss = F.cross_entropy(logits, labels)
            return ImageClassifierOutput(loss=loss, logits=logits, **recorded)
        cls_logits = self.cls_classifier(states[:, 0])
        distillation_logits = self.distillation_classifier(states[:, 1])
        if labels is not None:
            loss = (F.cross_entropy(cls_logits, labels) + F.cross_entropy(distillation_logits, labels)) / 2
        return DistilledImageClassifierOutput(
            loss=loss,
            logits=self.fuse(cls_logits, distillation_logits),
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            **recorded,
        )
