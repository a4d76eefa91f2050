"""Configurations of DeiT. What they save opens as transformers' `DeiTConfig` (distilled) and `ViTConfig` (plain)."""

import difflib
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)

ONE_HEAD_FUSIONS = ("cls", "distillation")
FUSIONS = ("logits", "softmax", *ONE_HEAD_FUSIONS)

# `config.json` names the class that opens the weights without this package.
_PUBLISHED_ARCHITECTURES = {
    "DistilledDeiTModel": "DeiTModel",
    "DistilledDeiTForImageClassification": "DeiTForImageClassificationWithTeacher",
    "PlainDeiTModel": "ViTModel",
    "PlainDeiTForImageClassification": "ViTForImageClassification",
}

# What leads transformers from a configuration to code of any repository (classes, pipelines, quantisers, kernels), or
# gives such a statement another name; and to weights in other files than those that are looked at.
_LEADS_TO_CODE = {
    *("auto_map", "custom_pipelines", "quantization_config", "use_kernels", "kernel_config", "attribute_map"),
    "transformers_weights",
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
}
_ATTENTION = {"attn_implementation", "_attn_implementation", "_attn_implementation_internal"}
# The others are kernels on the Hub, or are taken from there where they are not installed.
_LOCAL_ATTENTION = {"eager", "sdpa", "flex_attention"}
_ARGUMENTS_OF_TIMM, _FILE_OF_TIMM = "model_args", "checkpoint_path"  # a file of weights on the machine that loads it
_KEYED_BY_LABELS = {"id2label", "label2id", "label_names", "label_descriptions"}  # and a label may have any name


def without_foreign_code(
    stated: Mapping[str, Any], own_code: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What a configuration states, at any depth, without what leads to code other than the model's class.

    Args:
        stated: the content of config.json, or of preprocessor_config.json.
        own_code: the entries of `auto_map` that stay.

    Returns:
        What is left, and what was left out, in words; values that name nothing (null) are not told of.
    """
    left_out: list[str] = []

    def clean(value: Any, path: str, parent: str = "") -> Any:
        if isinstance(value, list | tuple):
            return type(value)(clean(item, path, parent) for item in value)
        if not isinstance(value, Mapping):
            return value
        kept = {}
        for name, item in value.items():
            if name in _KEYED_BY_LABELS:
                kept[name] = item
            elif _leads_to_code(name, item, parent):
                if name == "auto_map" and not path and isinstance(item, Mapping):
                    ours = {key: code for key, code in (own_code or {}).items() if item.get(key) == code}
                    kept |= {name: ours} if ours else {}
                    item = {key: code for key, code in item.items() if key not in ours}
                if item:
                    left_out.append(f"{path}{name} {_in_short(item)}")
            else:
                kept[name] = clean(item, f"{path}{name}.", str(name))
        return kept

    return clean(stated, ""), left_out


def _leads_to_code(name: str, value: Any, parent: str) -> bool:
    if name in _ATTENTION:
        kinds = value.values() if isinstance(value, Mapping) else [value]
        return not all(isinstance(kind, str) and kind in _LOCAL_ATTENTION for kind in kinds)
    return name in _LEADS_TO_CODE or (parent == _ARGUMENTS_OF_TIMM and name == _FILE_OF_TIMM)


def _in_short(value: Any) -> str:
    text = repr(value)  # which escapes what a terminal would obey
    return text if len(text) <= 100 else f"{text[:99]}…"


def warn_of_foreign_code(left_out: list[str]) -> None:
    """Says, once for the same, what `without_foreign_code` has left out."""
    if left_out:
        logger.warning_once("left out of a model's configuration, as it leads elsewhere: " + "; ".join(left_out))


def as_pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def label2id_of(id2label: Mapping[int, str]) -> dict[str, int]:
    """The field `label2id` of a configuration, which follows from `id2label`: the index of each label."""
    return {label: index for index, label in id2label.items()}


@strict
class DeiTConfigBase(PreTrainedConfig):
    """The fields that both DeiT configurations share; the defaults are those of DeiT-B at 224 (paper, table 1).

    What leads to others' code (`auto_map`, kernels, …; see `without_foreign_code`) is neither read nor saved.

    Args:
        hidden_size: width of the tokens.
        num_hidden_layers: number of transformer blocks.
        num_attention_heads: heads per block; must divide `hidden_size`.
        intermediate_size: width of the feed-forward layers.
        hidden_act: activation of the feed-forward layers.
        hidden_dropout_prob: dropout, in [0, 1), where the authors' `--drop` puts it: behind the positions, each
            attention's projection, and both linears of the feed-forward part (the first one's activation); DeiT uses
            none, and CaiT's class-attention layers never have any.
        attention_probs_dropout_prob: dropout of the attention's weights, likewise.
        drop_path_rate: stochastic depth of the last block, in [0, 1), growing linearly from 0 at the first.
        initializer_range: standard deviation of the truncated normal initialisation.
        layer_norm_eps: epsilon of every LayerNorm. (transformers' default is 1e-12, with which training explodes.)
        image_size: input size in pixels, or (height, width); a multiple of `patch_size`. Other sizes are accepted by
            the model, with interpolated position embeddings.
        patch_size: in pixels, or (height, width).
        qkv_bias: whether the query, key and value projections have a bias.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field has the wrong type, or the fields do not fit together.

    Attributes:
        own_code: the `auto_map` of models that are published with their code, by files of this folder; else empty.
    """

    own_code = {}  # noqa: RUF012 (without a type, so that it is no field)

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True

    def validate_architecture(self) -> None:
        """Refuses configurations that no model can be made from. (Run by `strict`, and again by the models.)"""
        if self.num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {self.num_labels}")
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, got {self.num_attention_heads} heads for "
                f"{self.hidden_size}"
            )
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            if not isinstance(size, int) and len(size) != 2:
                raise ValueError(f"{name} must be one number or (height, width), got {size}")
        if self.hidden_act not in ACT2FN:
            near = difflib.get_close_matches(self.hidden_act, ACT2FN, n=1)
            raise ValueError(f"no activation {self.hidden_act!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        for name in ("layer_norm_eps", "initializer_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for size, patch in zip(as_pair(self.image_size), as_pair(self.patch_size), strict=True):
            if patch < 1 or size < patch or size % patch:
                raise ValueError(
                    f"image_size must be a positive multiple of patch_size, got image_size {self.image_size} and "
                    f"patch_size {self.patch_size}"
                )
        for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per column and per row at `image_size`."""
        (height, width), (patch_height, patch_width) = as_pair(self.image_size), as_pair(self.patch_size)
        return height // patch_height, width // patch_width

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "DeiTConfigBase":
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f'{cls.__name__} opens checkpoints of model_type "{cls.model_type}", got "{model_type}"'
                + (
                    ': checkpoints of type "vit" have no distillation token, open them with a Plain class'
                    if model_type == "vit"
                    else ""
                )
            )
        stated, left_out = without_foreign_code(config_dict, cls.own_code)
        warn_of_foreign_code(left_out)
        return super().from_dict(stated, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str) -> "DeiTConfigBase":
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_dict(self) -> dict[str, Any]:
        output, _ = without_foreign_code(super().to_dict(), type(self).own_code)
        if output.get("architectures"):
            output["architectures"] = [_PUBLISHED_ARCHITECTURES.get(name, name) for name in output["architectures"]]
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """What stands in `config.json`."""
        output, _ = without_foreign_code(super().to_diff_dict(), type(self).own_code)
        return output


@strict
class DistilledDeiTConfig(DeiTConfigBase):
    """Configuration of a DeiT with a class and a distillation token.

    Args:
        fusion: how the two heads answer together. "logits" is the mean of the logits (the authors' code, and
            transformers'), "softmax" the sum of the softmaxes (the paper, section 4), "cls" and "distillation" take
            one head alone. See `plain_fusion` for what transformers makes of it.
        **kwargs: the fields of `DeiTConfigBase` and of `transformers.PreTrainedConfig`.

    Attributes:
        classifier_head: which head the files of this configuration call `classifier`, "cls" or "distillation": a model
            that answers with one head is saved as transformers' class with one. None if they name both. Written by
            `save_pretrained` of the model.
    """

    model_type = "deit"
    classifier_head = None  # without a type, so that it is no field: nobody chooses it

    fusion: str = "logits"

    def validate_fusion(self) -> None:
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {self.fusion!r}")

    @property
    def plain_fusion(self) -> str:
        """How transformers alone fuses the heads of a saved model: as `fusion` says, but "softmax" as "logits"."""
        return "logits" if self.fusion == "softmax" else self.fusion

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key != "classifier_head"}

    def to_diff_dict(self) -> dict[str, Any]:
        """What stands in `config.json`."""
        output = super().to_diff_dict()
        if self.classifier_head is not None:
            output["classifier_head"] = self.classifier_head
            output["architectures"] = ["DeiTForImageClassification"]
        return output


@strict
class PlainDeiTConfig(DeiTConfigBase):
    """Configuration of a DeiT without distillation token: the paper's DeiT-Ti, -S and -B, an ordinary ViT."""

    model_type = "vit"
