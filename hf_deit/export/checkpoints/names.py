"""The names of weights: ours, and timm's, which are the authors'. A mapping, and both ways to apply it.

Query, key and value of the self-attention are one tensor there and three here.
"""

import re
from collections.abc import Mapping

import torch

from ...errors import InputError
from ...models.configuration_deit import DeiTConfigBase
from .checkpoint import DTYPES

_EMBEDDING_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
}
_SCALE_NAMES = {"attention_scale": "gamma_1", "mlp_scale": "gamma_2"}
_LAYER_NAMES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "attention.talk_before": "attn.proj_l",
    "attention.talk_after": "attn.proj_w",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_CLASS_LAYER_NAMES = {**_LAYER_NAMES, **{f"attention.{part}_proj": f"attn.{part}" for part in "qkv"}}


def timm_names(config: DeiTConfigBase) -> dict[str, str]:
    """timm's name for each of ours, of all weights but query, key and value of the self-attention.

    Names that only some models have (of CaiT, of a distillation token) are among them.
    """
    prefix, is_deit = config.model_type, config.model_type == "deit"
    names = {f"{prefix}.{ours}": theirs for ours, theirs in _EMBEDDING_NAMES.items()}
    modules = {"cls_classifier": "head", "distillation_classifier": "head_dist"} if is_deit else {"classifier": "head"}
    modules |= {f"{prefix}.embeddings.patch_embeddings.projection": "patch_embed.proj", f"{prefix}.layernorm": "norm"}
    for ours, theirs, count, within in (
        ("layers", "blocks", config.num_hidden_layers, _LAYER_NAMES),
        ("class_layers", "blocks_token_only", getattr(config, "num_class_layers", 0), _CLASS_LAYER_NAMES),
    ):
        for layer, block in ((f"{prefix}.{ours}.{index}", f"{theirs}.{index}") for index in range(count)):
            modules |= {f"{layer}.{one}": f"{block}.{other}" for one, other in within.items()}
            names |= {f"{layer}.{one}": f"{block}.{other}" for one, other in _SCALE_NAMES.items()}
    for ours, theirs in modules.items():
        names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return names


def timm_weights(weights: Mapping[str, torch.Tensor], config: DeiTConfigBase) -> dict[str, torch.Tensor]:
    """Weights by our names as weights by timm's."""
    names, result = timm_names(config), {}
    for name, tensor in weights.items():
        part = re.fullmatch(r"(\w+)\.layers\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)", name)
        if part is None:
            result[names[name]] = tensor
        elif part[3] == "q":
            pieces = [weights[name.replace(".q_proj.", f".{piece}_proj.")] for piece in "qkv"]
            result[f"blocks.{part[2]}.attn.qkv.{part[4]}"] = torch.cat(pieces)
    return result


def our_weights(weights: Mapping[str, torch.Tensor], config: DeiTConfigBase, where: str) -> dict[str, torch.Tensor]:
    """Weights by timm's names as weights by ours, each in memory of its own.

    Args:
        weights: as they were read.
        config: of the model.
        where: what to call the checkpoint in the message.

    Raises:
        InputError: a name that such a model has not, or a tensor of another kind than weights are.
    """
    ours = {theirs: name for name, theirs in timm_names(config).items()}
    result = {}
    for key, tensor in weights.items():
        joined = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key)
        if not joined and key not in ours:
            raise InputError(f"{where!r} is no {config.model_type} checkpoint: it has a tensor {key!r}")
        if tensor.dtype not in DTYPES.values() or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise InputError(
                f"{where!r}: {key!r} must hold floating-point numbers, got {tensor.dtype} {tensor.layout}"
            )
        pieces = {ours.get(key): tensor}
        if joined:
            if tensor.ndim == 0 or len(tensor) % 3:
                raise InputError(f"{where!r}: {key!r} must hold query, key and value, got {tuple(tensor.shape)}")
            prefix = f"{config.model_type}.layers.{joined[1]}.attention"
            names = [f"{prefix}.{part}_proj.{joined[2]}" for part in "qkv"]
            pieces = dict(zip(names, tensor.chunk(3), strict=True))
        result |= {name: piece.detach().clone(memory_format=torch.contiguous_format) for name, piece in pieces.items()}
    return result
