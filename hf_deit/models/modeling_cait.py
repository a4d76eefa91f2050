"""CaiT for training and inference (Touvron et al. 2021, "Going deeper with image transformers").

transformers has no CaiT, so a model is published with this file, and loads with `trust_remote_code=True` without this
package.

Shape legend: B images, C channels, H × W pixels, N patches, S special tokens, h heads, D hidden_size,
K labels.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.output_capturing import capture_outputs

from .configuration_cait import CaiTConfig
from .modeling_common import (
    AttentionBase,
    EmbeddingsBase,
    ImageClassificationMixin,
    ImageClassifierBase,
    LayerBase,
    StochasticDepth,
    depth_draws,
)


class CaiTEmbeddings(EmbeddingsBase):
    """Patch embeddings with positions; the special tokens join them only in the class-attention layers."""

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__(config, distilled=config.distillation_token, special_positions=False)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, H, W) pixels to the special tokens, (B, S, D), and the patches, (B, N, D)."""
        patches, positions = self.embed(pixel_values)
        special = torch.cat(self.special_tokens, dim=1).expand(patches.shape[0], -1, -1)
        return special, self.dropout(patches + positions)


class TalkingHeadsAttention(AttentionBase):
    """Self-attention whose heads are mixed before and after the softmax (Shazeer et al. 2020).

    No fused kernel computes that: the mixing needs the attention matrix. So it is computed for some queries at a time.
    """

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__(config)
        heads = config.num_attention_heads
        self.chunk_size = config.query_chunk_size
        self.talk_before = nn.Linear(heads, heads)
        self.talk_after = nn.Linear(heads, heads)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

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
            self.in_heads(projection(hidden_states)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = query * self.head_dim**-0.5
        chunks = query.split(self.chunk_size, dim=2)
        if len(chunks) == 1:
            context = self._attend(query, key, value)
        elif torch.is_grad_enabled() and not torch.compiler.is_exporting():  # a strict export cannot hold a checkpoint
            context = torch.cat(
                [checkpoint(self._attend, chunk, key, value, use_reentrant=False) for chunk in chunks], dim=2
            )
        else:
            context = torch.cat([self._attend(chunk, key, value) for chunk in chunks], dim=2)
        return self.o_proj(context.transpose(1, 2).flatten(2))


class ClassAttention(AttentionBase):
    """Attention of the special tokens alone to themselves and the patches, with torch's fused kernels."""

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__(config)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, num_special_tokens: int) -> torch.Tensor:
        query, key, value = (
            self.in_heads(projection(states))
            for projection, states in (
                (self.q_proj, hidden_states[:, :num_special_tokens]),
                (self.k_proj, hidden_states),
                (self.v_proj, hidden_states),
            )
        )
        context = F.scaled_dot_product_attention(query, key, value)
        return self.o_proj(context.transpose(1, 2).flatten(2))


class _LayerScaled(LayerBase):
    """The parts of a layer with LayerScale: a learnt factor per channel for each of the two residual branches."""

    def __init__(self, config: CaiTConfig, attention: nn.Module, *, has_dropout: bool = True) -> None:
        super().__init__(config, attention, has_dropout=has_dropout)
        self.attention_scale = nn.Parameter(torch.empty(config.hidden_size))
        self.mlp_scale = nn.Parameter(torch.empty(config.hidden_size))


class CaiTLayer(_LayerScaled):
    """Self-attention of the patches with talking heads, and LayerScale."""

    def __init__(self, config: CaiTConfig, layer_index: int) -> None:
        super().__init__(config, TalkingHeadsAttention(config))
        self.attention_depth = StochasticDepth(config.drop_path_rate, stream=2 * layer_index)
        self.mlp_depth = StochasticDepth(config.drop_path_rate, stream=2 * layer_index + 1)

    def forward(self, hidden_states: torch.Tensor, draws: torch.Tensor | None = None) -> torch.Tensor:
        branch = self.attention_scale * self.dropout(self.attention(self.layernorm_before(hidden_states)))
        hidden_states = hidden_states + self.attention_depth(branch, draws)
        branch = self.mlp_scale * self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.mlp_depth(branch, draws)


class CaiTClassLayer(_LayerScaled):
    """Class attention with LayerScale: only the special tokens change. It has no dropout, as the authors' has none."""

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__(config, ClassAttention(config), has_dropout=False)

    def forward(self, special: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        states = self.layernorm_before(torch.cat((special, patches), dim=1))
        special = special + self.attention_scale * self.attention(states, special.shape[1])
        return special + self.mlp_scale * self.mlp(self.layernorm_after(special))


class CaiTPreTrainedModelBase(ImageClassifierBase):
    """Initialisation of all CaiT classes, and their refusal to output attentions."""

    config: CaiTConfig
    config_class = CaiTConfig
    base_model_prefix = "cait"
    # Not the embeddings: FSDP2 of accelerate wraps these, and the input embeddings within them once more.
    _no_split_modules = ["CaiTLayer", "CaiTClassLayer"]  # noqa: RUF012 (transformers' name and type)
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": CaiTLayer}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, _LayerScaled):
            init.constant_(module.attention_scale, self.config.layer_scale_init)
            init.constant_(module.mlp_scale, self.config.layer_scale_init)

    def _recorded(self, output_hidden_states: bool | None, output_attentions: bool | None) -> dict[str, bool]:
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("CaiT gives no attentions: its talking heads are computed for some queries at a time")
        return super()._recorded(output_hidden_states, False)


class CaiTModel(CaiTPreTrainedModelBase):
    """CaiT without heads."""

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__(config)
        self.embeddings = CaiTEmbeddings(config)
        self.layers = nn.ModuleList(CaiTLayer(config, index) for index in range(config.num_hidden_layers))
        self.class_layers = nn.ModuleList(CaiTClassLayer(config) for _ in range(config.num_class_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

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
            view_seeds: (B,) int64, which decide what stochastic depth drops; see `DistilledDeiTModel.forward`.
            output_hidden_states, return_dict: as in transformers.
            output_attentions: refused, as the talking heads are computed for some queries at a time.

        Returns:
            `last_hidden_state` (B, S + N, D) after the final norm: class token, distillation token if any, patches.

        Raises:
            ValueError: the pixels have the wrong shape, or attentions are asked for.
        """
        self._recorded(output_hidden_states, output_attentions)
        special, patches = self.embeddings(pixel_values)
        draws = depth_draws(self.layers, view_seeds)
        for layer in self.layers:
            patches = layer(patches, draws)
        for layer in self.class_layers:
            special = layer(special, patches)
        return BaseModelOutput(last_hidden_state=self.layernorm(torch.cat((special, patches), dim=1)))


class CaiTForImageClassification(ImageClassificationMixin, CaiTPreTrainedModelBase):
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
