"""DeiT for training (Touvron et al. 2021, "Training data-efficient image transformers", here "the paper").

Parameter names and logits are those of transformers' DeiT and ViT, initialisation and stochastic depth the paper's.
transformers' own classes are not subclassed: they are for inference. Their special tokens start as zeros, the epsilon
of their LayerNorms is 1e-12, they have no stochastic depth, and the one with two heads ignores labels.

Shape legend: B images, C channels, H × W pixels, N patches, T = N + special tokens, D hidden_size, K labels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import capture_outputs

from .configuration_deit import ONE_HEAD_FUSIONS, DeiTConfigBase, DistilledDeiTConfig, PlainDeiTConfig
from .modeling_common import (
    AttentionBase,
    EmbeddingsBase,
    ImageClassificationMixin,
    ImageClassifierBase,
    LayerBase,
    StochasticDepth,
    depth_draws,
)

_SPECIAL_TOKENS, _POSITIONS = ("cls_token", "distillation_token"), "position_embeddings"


def with_swapped_tokens(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Weights of a DeiT in which class and distillation token, with their positions, have each other's place.

    As self-attention knows no order, the model computes the same, with its first two outputs in each other's place.

    Args:
        weights: by name.
        prefix: of the embeddings' names.
    """
    one, other = (f"{prefix}{name}" for name in _SPECIAL_TOKENS)
    positions = weights[f"{prefix}{_POSITIONS}"]
    positions = torch.cat((positions[:, :2].flip(1), positions[:, 2:]), dim=1)
    return {**weights, one: weights[other].clone(), other: weights[one].clone(), f"{prefix}{_POSITIONS}": positions}


class DeiTEmbeddings(EmbeddingsBase):
    """Patch embeddings behind the special tokens, plus position embeddings of both (paper, sections 3 and 4)."""

    def __init__(self, config: DeiTConfigBase, distilled: bool) -> None:
        super().__init__(config, distilled=distilled, special_positions=True)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) pixels to (B, T, D) tokens."""
        patches, positions = self.embed(pixel_values)
        special = (token.expand(pixel_values.shape[0], -1, -1) for token in self.special_tokens)
        return self.dropout(torch.cat([*special, patches], dim=1) + positions)

    @torch.no_grad()
    def swap_special_tokens(self) -> None:
        """Gives the class token and the distillation token each other's place, with their positions."""
        swapped = with_swapped_tokens(self.state_dict(), "")
        for name in (*_SPECIAL_TOKENS, _POSITIONS):
            getattr(self, name).copy_(swapped[name])


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


class DeiTAttention(AttentionBase):
    """Multi-head self-attention."""

    is_causal = False  # read by transformers' sdpa implementation

    def __init__(self, config: DeiTConfigBase) -> None:
        super().__init__(config)
        self.config = config
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, num_tokens: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends to (B, T, D).

        Args:
            num_tokens: only the first so many attend to all, and come out; None for all.
        """
        asking = hidden_states if num_tokens is None else hidden_states[:, :num_tokens]
        query, key, value = (
            self.in_heads(projection(states))
            for projection, states in (
                (self.q_proj, asking),
                (self.k_proj, hidden_states),
                (self.v_proj, hidden_states),
            )
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


class DeiTLayer(LayerBase):
    """A pre-norm transformer block."""

    def __init__(self, config: DeiTConfigBase, layer_index: int) -> None:
        super().__init__(config, DeiTAttention(config))
        rate = config.drop_path_rate * layer_index / max(config.num_hidden_layers - 1, 1)
        self.attention_depth = StochasticDepth(rate, stream=2 * layer_index)
        self.mlp_depth = StochasticDepth(rate, stream=2 * layer_index + 1)

    @property
    def drops(self) -> bool:
        """Whether dropout draws: for all tokens, as in timm's, even for those that nobody looks at."""
        layers = (self.dropout, self.mlp.dropout)
        in_attention = self.attention.training and self.attention.dropout > 0
        return in_attention or any(layer.training and layer.p > 0 for layer in layers)

    def forward(
        self, hidden_states: torch.Tensor, draws: torch.Tensor | None = None, num_tokens: int | None = None
    ) -> torch.Tensor:
        """(B, T, D) to the same, or to its first `num_tokens`."""
        attention_output, _ = self.attention(self.layernorm_before(hidden_states), num_tokens)
        if num_tokens is not None:
            hidden_states = hidden_states[:, :num_tokens]
        hidden_states = hidden_states + self.attention_depth(self.dropout(attention_output), draws)
        mlp_output = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.mlp_depth(mlp_output, draws)


class DeiTPreTrainedModelBase(ImageClassifierBase):
    """Loading and saving of all DeiT classes.

    Attributes:
        computes_all_tokens: whether a classifier computes in its last block also those tokens that its heads do not
            look at. It does anyway where states or attentions are asked for, and where dropout draws. A subclass whose
            head looks at patches sets it.
    """

    config: DeiTConfigBase
    computes_all_tokens = False
    # Not the embeddings: FSDP2 of accelerate wraps these, and the input embeddings within them once more.
    _no_split_modules = ["DeiTLayer"]  # noqa: RUF012 (transformers' name and type)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": DeiTLayer, "attentions": DeiTAttention}  # noqa: RUF012
    # Some published checkpoints carry a pooler, which no classifier uses.
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)pooler\."]  # noqa: RUF012

    def _options_of_base(self, recorded: Mapping[str, bool]) -> dict[str, Any]:
        base = self.base_model
        if self.computes_all_tokens or base.layers[-1].drops or any(recorded.values()):
            return {}
        return {"num_tokens": len(base.embeddings.special_tokens)}

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Saves in the Hub's key layout, which every version of transformers with DeiT opens.

        transformers' default depends on how the model was loaded.

        Raises:
            ValueError: another layout is asked for.
        """
        if kwargs.setdefault("save_original_format", True) is not True:
            raise ValueError("hf_deit publishes the Hub's key layout only: leave save_original_format at True")
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        head = _head_called_classifier(cls.config_class, pretrained_model_name_or_path, **kwargs)
        if head is not None:
            kwargs["key_mapping"] = {r"^classifier\.": f"{head}_classifier.", **(kwargs.get("key_mapping") or {})}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if head == "distillation":
            model = loaded[0] if kwargs.get("output_loading_info") else loaded
            model.base_model.embeddings.swap_special_tokens()
        return loaded


def _head_called_classifier(config_class: type, name_or_path: str, **kwargs: Any) -> str | None:
    """Which head the files of a checkpoint call `classifier`, see `DistilledDeiTConfig`; None if they do not."""
    if not hasattr(config_class, "classifier_head"):
        return None
    kwargs.pop("config", None)  # what is to be made of the weights; what they are, stands beside them
    try:
        stated, _ = config_class.get_config_dict(name_or_path, **kwargs)
    except OSError:  # there is none, which is said where it is missed
        return None
    return stated.get("classifier_head")


class _DeiTBackbone(DeiTPreTrainedModelBase):
    """Embeddings, blocks and final norm, with or without the distillation token."""

    distilled: bool

    def __init__(self, config: DeiTConfigBase) -> None:
        super().__init__(config)
        self.embeddings = DeiTEmbeddings(config, distilled=self.distilled)
        self.layers = nn.ModuleList(DeiTLayer(config, index) for index in range(config.num_hidden_layers))
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
        *,
        num_tokens: int | None = None,
    ) -> BaseModelOutput:
        """Encodes images.

        Args:
            pixel_values: (B, C, H, W), normalised; H and W multiples of the patch size.
            view_seeds: (B,) int64, from `keyed.view_seed`. They decide what stochastic depth drops, which then depends
                on the view and not on the batch that it is in. Without them torch's generator decides.
            output_hidden_states, output_attentions, return_dict: as in transformers.
            num_tokens: in the last block only the first so many tokens are computed; None for all. Without dropout,
                which would draw otherwise, they are the same but for rounding. A classifier, whose heads look at the
                special tokens alone, asks for these, which spares a fourteenth of the work of 12 blocks.

        Returns:
            `last_hidden_state` (B, T, D), or (B, num_tokens, D), after the final norm: class token, distillation token
            if any, patches.

        Raises:
            ValueError: the pixels have the wrong shape, attentions are asked for that there are not, or `num_tokens`
                is no number of tokens, or given where states or attentions are asked for.
        """
        recorded = self._recorded(output_hidden_states, output_attentions)
        hidden_states = self.embeddings(pixel_values)
        if num_tokens is not None and (any(recorded.values()) or not 1 <= num_tokens <= hidden_states.shape[1]):
            raise ValueError(
                f"num_tokens must be from 1 to {hidden_states.shape[1]}, and None where hidden states or attentions "
                f"are asked for, got {num_tokens}"
            )
        draws = depth_draws(self.layers, view_seeds)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, draws)
        hidden_states = self.layers[-1](hidden_states, draws, num_tokens)
        return BaseModelOutput(last_hidden_state=self.layernorm(hidden_states))


class DistilledDeiTModel(_DeiTBackbone):
    """DeiT with a class and a distillation token, without heads. Parameters are named as in `DeiTModel`."""

    config: DistilledDeiTConfig
    config_class = DistilledDeiTConfig
    base_model_prefix = "deit"
    distilled = True

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        self.config.classifier_head = None  # it has no heads, and its tokens are in their own places
        super().save_pretrained(save_directory, *args, **kwargs)


class PlainDeiTModel(_DeiTBackbone):
    """DeiT without distillation token and without head. Parameters are named as in `ViTModel`."""

    config: PlainDeiTConfig
    config_class = PlainDeiTConfig
    base_model_prefix = "vit"
    distilled = False


# Checkpoints on the Hub have older names of the weights, which transformers converts when it loads and when it saves.
# It finds the list of names by the class of the base model. Ours take its own list, to open and save as it does.
for _ours, _theirs in (("DistilledDeiTModel", "DeiTModel"), ("PlainDeiTModel", "ViTModel")):
    register_checkpoint_conversion_mapping(_ours, get_checkpoint_conversion_mapping(_theirs), overwrite=True)


class DistilledDeiTForImageClassification(ImageClassificationMixin, DeiTPreTrainedModelBase):
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

    def save_pretrained(
        self,
        save_directory: str,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves the model so that transformers alone answers as `config.fusion` says, wherever its classes can.

        A model that answers with one head is saved as `DeiTForImageClassification`, which has one, `classifier`, on
        the first token: for the distillation head, the tokens change places. The other head lies beside it under its
        own name; transformers reports it as unexpected, and leaves it out. Of "softmax" transformers knows nothing.

        Args:
            save_directory: the folder.
            is_main_process, state_dict, **kwargs: as in transformers.
        """
        head = self.config.fusion if self.config.fusion in ONE_HEAD_FUSIONS else None
        self.config.classifier_head = head
        if head is not None:
            weights = self.state_dict() if state_dict is None else state_dict
            if head == "distillation":
                weights = with_swapped_tokens(weights, "deit.embeddings.")
            name = f"{head}_classifier."
            state_dict = {
                f"classifier.{key.removeprefix(name)}" if key.startswith(name) else key: weight
                for key, weight in weights.items()
            }
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)


class PlainDeiTForImageClassification(ImageClassificationMixin, DeiTPreTrainedModelBase):
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
