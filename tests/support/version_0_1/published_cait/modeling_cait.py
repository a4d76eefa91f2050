"""CaiT for training and inference (Touvron et al. 2021, "Going deeper with image transformers").

transformers has no CaiT, so a model is published with this file, and loads with `trust_remote_code=True` without this
package. Shape legend: B images, C channels, H × W pixels, N patches, S special tokens, h heads, D hidden_size,
K labels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_cait import CaiTConfig
from .configuration_deit import as_pair
from .modeling_common import (
    DistilledImageClassifierOutput,
    ImageClassifierBase,
    StochasticDepth,
    check_labels,
    fuse_logits,
    interpolate_positions,
)


class CaiTEmbeddings(nn.Module):
    """Patch embeddings with positions; the special tokens join them only in the class-attention layers."""

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__()
        self.patch_size = as_pair(config.patch_size)
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.distillation_token = (
            nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.distillation_token else None
        )
        self.patch_embeddings = nn.ModuleDict(
            {
                "projection": nn.Conv2d(
                    config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
                )
            }
        )
        num_patches = self.grid_size[0] * self.grid_size[1]
        self.position_embeddings = nn.Parameter(torch.empty(1, num_patches, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def interpolated_positions(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """(1, grid_size[0] · grid_size[1], D): position embeddings for another grid, bicubic, in float32."""
        return interpolate_positions(self.position_embeddings, self.grid_size, grid_size)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, H, W) to the special tokens (B, S, D) and the patches (B, N, D)."""
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
        tokens = [self.cls_token] if self.distillation_token is None else [self.cls_token, self.distillation_token]
        special = torch.cat(tokens, dim=1).expand(len(patches), -1, -1)
        return special, self.dropout(patches + self.interpolated_positions(grid_size))


class TalkingHeadsAttention(nn.Module):
    """Self-attention whose heads are mixed before and after the softmax (Shazeer et al. 2020).

    No fused kernel computes that: the mixing needs the attention matrix. So it is computed for some queries at a time.
    """

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.head_dim = size // heads
        self.chunk_size = config.query_chunk_size
        self.q_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.talk_before = nn.Linear(heads, heads)
        self.talk_after = nn.Linear(heads, heads)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.o_proj = nn.Linear(size, size)

    @staticmethod
    def _talk(weights: torch.Tensor, mixing: nn.Linear) -> torch.Tensor:
        """Mixes the heads of (B, h, queries, keys), as a convolution, which needs no copy in another layout."""
        return F.conv2d(weights, mixing.weight[:, :, None, None], mixing.bias)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        weights = self._talk(query @ key.transpose(2, 3), self.talk_before)
        weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        return self.dropout(self._talk(weights, self.talk_after)) @ value

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = query * self.head_dim**-0.5
        chunks = query.split(self.chunk_size, dim=2)
        if len(chunks) == 1:
            context = self._attend(query, key, value)
        elif torch.is_grad_enabled():
            context = torch.cat(
                [checkpoint(self._attend, chunk, key, value, use_reentrant=False) for chunk in chunks], dim=2
            )
        else:
            context = torch.cat([self._attend(chunk, key, value) for chunk in chunks], dim=2)
        return self.o_proj(context.transpose(1, 2).flatten(2))


class ClassAttention(nn.Module):
    """Attention of the special tokens alone to themselves and the patches, with torch's fused kernels."""

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_dim = size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.q_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(size, size)

    def forward(self, hidden_states: torch.Tensor, num_special_tokens: int) -> torch.Tensor:
        query, key, value = (
            projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, states in (
                (self.q_proj, hidden_states[:, :num_special_tokens]),
                (self.k_proj, hidden_states),
                (self.v_proj, hidden_states),
            )
        )
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.o_proj(context.transpose(1, 2).flatten(2))


class CaiTMLP(nn.Module):
    """The feed-forward part of a layer."""

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class _LayerScaled(GradientCheckpointingLayer):
    """Norms, feed-forward part and LayerScale of both kinds of layers."""

    def __init__(self, config: CaiTConfig, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CaiTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_scale = nn.Parameter(torch.empty(config.hidden_size))
        self.mlp_scale = nn.Parameter(torch.empty(config.hidden_size))


class CaiTLayer(_LayerScaled):
    """Self-attention of the patches with talking heads, and LayerScale."""

    def __init__(self, config: CaiTConfig, layer_index: int) -> None:
        super().__init__(config, TalkingHeadsAttention(config))
        self.attention_depth = StochasticDepth(config.drop_path_rate, stream=2 * layer_index)
        self.mlp_depth = StochasticDepth(config.drop_path_rate, stream=2 * layer_index + 1)

    def forward(self, hidden_states: torch.Tensor, view_seeds: torch.Tensor | None = None) -> torch.Tensor:
        branch = self.attention_scale * self.dropout(self.attention(self.layernorm_before(hidden_states)))
        hidden_states = hidden_states + self.attention_depth(branch, view_seeds)
        branch = self.mlp_scale * self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return hidden_states + self.mlp_depth(branch, view_seeds)


class CaiTClassLayer(_LayerScaled):
    """Class attention with LayerScale: only the special tokens change."""

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__(config, ClassAttention(config))

    def forward(self, special: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        states = self.layernorm_before(torch.cat((special, patches), dim=1))
        special = special + self.attention_scale * self.dropout(self.attention(states, special.shape[1]))
        return special + self.mlp_scale * self.dropout(self.mlp(self.layernorm_after(special)))


class CaiTPreTrainedModelBase(ImageClassifierBase):
    """Initialisation of all CaiT classes."""

    config: CaiTConfig
    config_class = CaiTConfig
    base_model_prefix = "cait"
    _no_split_modules = ["CaiTEmbeddings", "CaiTLayer", "CaiTClassLayer"]  # noqa: RUF012 (transformers' name and type)
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": CaiTLayer}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, _LayerScaled):
            init.constant_(module.attention_scale, self.config.layer_scale_init)
            init.constant_(module.mlp_scale, self.config.layer_scale_init)


class CaiTModel(CaiTPreTrainedModelBase):
    """CaiT without heads."""

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__(config)
        self.embeddings = CaiTEmbeddings(config)
        self.layers = nn.ModuleList(CaiTLayer(config, index) for index in range(config.num_hidden_layers))
        self.class_layers = nn.ModuleList(CaiTClassLayer(config) for _ in range(config.num_class_layers))
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
            view_seeds: (B,) int64; keys the draws of stochastic depth, see `DistilledDeiTModel`.

        Returns:
            `last_hidden_state` (B, S + N, D) after the final norm, special tokens first.
        """
        self._recorded(output_hidden_states, output_attentions)
        special, patches = self.embeddings(pixel_values)
        for layer in self.layers:
            patches = layer(patches, view_seeds)
        for layer in self.class_layers:
            special = layer(special, patches)
        return BaseModelOutput(last_hidden_state=self.layernorm(torch.cat((special, patches), dim=1)))


class CaiTForImageClassification(CaiTPreTrainedModelBase):
    """CaiT with a class head and, if the configuration has a distillation token, a distillation head."""

    _head_names = ("classifier", "cls_classifier", "distillation_classifier")

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__(config)
        self.cait = CaiTModel(config)
        if config.distillation_token:
            self.cls_classifier = nn.Linear(config.hidden_size, config.num_labels)
            self.distillation_classifier = nn.Linear(config.hidden_size, config.num_labels)
        else:
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
    ) -> ImageClassifierOutput | DistilledImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: (B, C, H, W), normalised as the image processor does; H and W multiples of the patch size.
            labels: (B,) class indices in [0, K), -100 to ignore a sample. They give the cross-entropy, with a
                distillation token the mean of the two heads'.
            view_seeds: (B,) int64, see `CaiTModel`.
            output_hidden_states, return_dict: as in transformers. Attentions are not to be had: they are never whole.

        Raises:
            ValueError: the pixels or the labels have the wrong shape, or attentions are asked for.
        """
        outputs = self.cait(
            pixel_values,
            view_seeds=view_seeds,
            return_dict=True,
            **self._recorded(output_hidden_states, output_attentions),
        )
        states = outputs.last_hidden_state
        if labels is not None:
            labels = check_labels(labels, len(pixel_values))
        if not self.config.distillation_token:
            logits = self.classifier(states[:, 0])
            loss = None if labels is None else F.cross_entropy(logits, labels)
            return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        cls_logits = self.cls_classifier(states[:, 0])
        distillation_logits = self.distillation_classifier(states[:, 1])
        loss = None
        if labels is not None:
            loss = (F.cross_entropy(cls_logits, labels) + F.cross_entropy(distillation_logits, labels)) / 2
        return DistilledImageClassifierOutput(
            loss=loss,
            logits=fuse_logits(cls_logits, distillation_logits, self.config.fusion),
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.hidden_states,
        )

    def _recorded(self, output_hidden_states: bool | None, output_attentions: bool | None) -> dict[str, Any]:
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("CaiT gives no attentions: its talking heads are computed for some queries at a time")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return {"output_hidden_states": output_hidden_states}
