"""DeiT for training: parameter names and logits of transformers' DeiT and ViT, initialisation and depth of the paper.

transformers' own classes are not subclassed: their initialisation (zero tokens), LayerNorm epsilon (1e-12) and forward
(labels swallowed, no stochastic depth) are for inference.

Shape legend: B images, C channels, H × W pixels, N patches, T = N + special tokens, D hidden_size, K labels.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_deit import DeiTConfigBase, DistilledDeiTConfig, PlainDeiTConfig, as_pair
from .modeling_common import (
    DistilledImageClassifierOutput,
    ImageClassifierBase,
    StochasticDepth,
    check_labels,
    fuse_logits,
    interpolate_positions,
)


class DeiTEmbeddings(nn.Module):
    """Patch embeddings behind the special tokens, plus position embeddings (paper, sections 3 and 4)."""

    def __init__(self, config: DeiTConfigBase, distilled: bool) -> None:
        super().__init__()
        self.patch_size = as_pair(config.patch_size)
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if distilled else None
        self.num_special_tokens = 2 if distilled else 1
        self.patch_embeddings = nn.ModuleDict(
            {
                "projection": nn.Conv2d(
                    config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
                )
            }
        )
        num_positions = math.prod(self.grid_size) + self.num_special_tokens
        self.position_embeddings = nn.Parameter(torch.empty(1, num_positions, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def interpolated_positions(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """Position embeddings for another grid: bicubic, in float32; those of the special tokens stay untouched.

        Args:
            grid_size: patches per column and per row.

        Returns:
            (1, special tokens + grid_size[0] · grid_size[1], D), in the parameter's dtype.
        """
        positions = self.position_embeddings
        if grid_size == self.grid_size:
            return positions
        special, patches = positions[:, : self.num_special_tokens], positions[:, self.num_special_tokens :]
        return torch.cat((special, interpolate_positions(patches, self.grid_size, grid_size)), dim=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
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
        batch_size = len(pixel_values)
        patches = projection(pixel_values.to(projection.weight.dtype)).flatten(2).transpose(1, 2)
        tokens = [self.cls_token] if self.distillation_token is None else [self.cls_token, self.distillation_token]
        hidden_states = torch.cat([*(token.expand(batch_size, -1, -1) for token in tokens), patches], dim=1)
        grid_size = (height // self.patch_size[0], width // self.patch_size[1])
        return self.dropout(hidden_states + self.interpolated_positions(grid_size))


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,  # transformers' attention interface hands every implementation the same arguments
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 1 of the paper, softmax(Q Kᵀ / √d) V per head, with the softmax in float32.

    Args:
        query, key, value: (B, heads, T, d).

    Returns:
        The context, (B, T, heads, d), and the attention weights, (B, heads, T, T).
    """
    weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class DeiTAttention(nn.Module):
    """Multi-head self-attention."""

    is_causal = False  # read by transformers' sdpa implementation

    def __init__(self, config: DeiTConfigBase) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        context, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask=None,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        return self.o_proj(context.flatten(2)), weights


class DeiTMLP(nn.Module):
    """The feed-forward part of a block."""

    def __init__(self, config: DeiTConfigBase) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class DeiTLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: DeiTConfigBase, layer_index: int) -> None:
        super().__init__()
        self.attention = DeiTAttention(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DeiTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        rate = config.drop_path_rate * layer_index / max(config.num_hidden_layers - 1, 1)
        self.attention_depth = StochasticDepth(rate, stream=2 * layer_index)
        self.mlp_depth = StochasticDepth(rate, stream=2 * layer_index + 1)

    def forward(self, hidden_states: torch.Tensor, view_seeds: torch.Tensor | None = None) -> torch.Tensor:
        attention_output, _ = self.attention(self.layernorm_before(hidden_states))
        hidden_states = hidden_states + self.attention_depth(self.dropout(attention_output), view_seeds)
        mlp_output = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.mlp_depth(self.dropout(mlp_output), view_seeds)


class DeiTPreTrainedModelBase(ImageClassifierBase):
    """Loading and saving of all DeiT classes."""

    config: DeiTConfigBase
    _no_split_modules = ["DeiTEmbeddings", "DeiTLayer"]  # noqa: RUF012 (transformers' name and type)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": DeiTLayer, "attentions": DeiTAttention}  # noqa: RUF012
    # Some published checkpoints carry a pooler, which no classifier uses.
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)pooler\."]  # noqa: RUF012

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Saves in the Hub's key layout, which every version of transformers with DeiT opens.

        transformers' default depends on how the model was loaded.
        """
        if kwargs.setdefault("save_original_format", True) is not True:
            raise ValueError("hf_deit publishes the Hub's key layout only: leave save_original_format at True")
        super().save_pretrained(save_directory, *args, **kwargs)


class _DeiTBackbone(DeiTPreTrainedModelBase):
    """Embeddings, blocks and final norm, with or without the distillation token."""

    distilled: bool

    def __init__(self, config: DeiTConfigBase) -> None:
        super().__init__(config)
        self.embeddings = DeiTEmbeddings(config, distilled=self.distilled)
        self.layers = nn.ModuleList(DeiTLayer(config, index) for index in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings["projection"]

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        view_seeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,  # these three are read by the decorator
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput:
        """Encodes images.

        Args:
            pixel_values: (B, C, H, W), normalised; H and W multiples of the patch size.
            view_seeds: (B,) int64; keys the draws of stochastic depth, so that they depend on the view and not on the
                batch it is in. Without them torch's generator is drawn from.

        Returns:
            `last_hidden_state` (B, T, D) after the final norm, special tokens first (class, distillation, patches).
        """
        self._recorded(output_hidden_states, output_attentions)
        hidden_states = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden_states = layer(hidden_states, view_seeds)
        return BaseModelOutput(last_hidden_state=self.layernorm(hidden_states))


class DistilledDeiTModel(_DeiTBackbone):
    """DeiT with a class and a distillation token, without heads. Parameters are named as in `DeiTModel`."""

    config: DistilledDeiTConfig
    config_class = DistilledDeiTConfig
    base_model_prefix = "deit"
    distilled = True


class PlainDeiTModel(_DeiTBackbone):
    """DeiT without distillation token and without head. Parameters are named as in `ViTModel`."""

    config: PlainDeiTConfig
    config_class = PlainDeiTConfig
    base_model_prefix = "vit"
    distilled = False


# Checkpoints on the Hub are in an older key layout, which transformers converts by the name of the base model's class.
# Taking its own list keeps what we open and save equal to what it does. (The list is bijective: saving reverts it.)
for _ours, _theirs in (("DistilledDeiTModel", "DeiTModel"), ("PlainDeiTModel", "ViTModel")):
    register_checkpoint_conversion_mapping(_ours, get_checkpoint_conversion_mapping(_theirs), overwrite=True)


class DistilledDeiTForImageClassification(DeiTPreTrainedModelBase):
    """DeiT⚗ (paper, section 4): a class head on the class token, a distillation head on the distillation token.

    Parameters are named as in transformers' `DeiTForImageClassificationWithTeacher`.
    """

    config: DistilledDeiTConfig
    config_class = DistilledDeiTConfig
    base_model_prefix = "deit"
    _head_names = ("cls_classifier", "distillation_classifier")

    def __init__(self, config: DistilledDeiTConfig) -> None:
        super().__init__(config)
        self.deit = DistilledDeiTModel(config)
        self.cls_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.distillation_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def fuse(self, cls_logits: torch.Tensor, distillation_logits: torch.Tensor) -> torch.Tensor:
        """Late fusion of the two heads as `config.fusion` says.

        Args:
            cls_logits, distillation_logits: (B, K).

        Returns:
            (B, K). For "softmax" the logarithm of the mean of the two softmaxes, so that a softmax of it gives that
            mean back; it ranks the labels as the paper's sum does.
        """
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
    ) -> DistilledImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: (B, C, H, W), normalised as the image processor does; H and W multiples of the patch size.
            labels: (B,) class indices in [0, K), -100 to ignore a sample. They give the mean of the two heads'
                cross-entropies, so that both heads learn when there is no teacher.
            view_seeds: (B,) int64, see `DistilledDeiTModel`.
            output_hidden_states, output_attentions, return_dict: as in transformers.

        Raises:
            ValueError: the pixels or the labels have the wrong shape.
        """
        outputs = self.deit(
            pixel_values,
            view_seeds=view_seeds,
            return_dict=True,
            **self._recorded(output_hidden_states, output_attentions),
        )
        cls_logits = self.cls_classifier(outputs.last_hidden_state[:, 0])
        distillation_logits = self.distillation_classifier(outputs.last_hidden_state[:, 1])
        loss = None
        if labels is not None:
            labels = check_labels(labels, len(pixel_values))
            loss = (F.cross_entropy(cls_logits, labels) + F.cross_entropy(distillation_logits, labels)) / 2
        return DistilledImageClassifierOutput(
            loss=loss,
            logits=self.fuse(cls_logits, distillation_logits),
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class PlainDeiTForImageClassification(DeiTPreTrainedModelBase):
    """DeiT without distillation token: parameters are named as in transformers' `ViTForImageClassification`."""

    config: PlainDeiTConfig
    config_class = PlainDeiTConfig
    base_model_prefix = "vit"
    _head_names = ("classifier",)

    def __init__(self, config: PlainDeiTConfig) -> None:
        super().__init__(config)
        self.vit = PlainDeiTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        view_seeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput:
        """Classifies images: arguments and errors of `DistilledDeiTForImageClassification.forward`.

        Returns:
            `logits` (B, K), and `loss`, the cross-entropy to `labels`, if they were given.
        """
        outputs = self.vit(
            pixel_values,
            view_seeds=view_seeds,
            return_dict=True,
            **self._recorded(output_hidden_states, output_attentions),
        )
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None if labels is None else F.cross_entropy(logits, check_labels(labels, len(pixel_values)))
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
