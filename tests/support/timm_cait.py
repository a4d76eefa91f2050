"""timm's CaiT, tiny and with random weights, and its weights by our names."""

import torch
from timm.models.cait import Cait

from .families import randomise

OUTSIDE_LAYERS = {
    "cls_token": "cait.embeddings.cls_token",
    "pos_embed": "cait.embeddings.position_embeddings",
    "patch_embed.proj": "cait.embeddings.patch_embeddings.projection",
    "norm": "cait.layernorm",
    "head": "classifier",
}
WITHIN_LAYERS = {
    "norm1": "layernorm_before",
    "attn.proj_l": "attention.talk_before",
    "attn.proj_w": "attention.talk_after",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "gamma_1": "attention_scale",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "gamma_2": "mlp_scale",
}


def from_timm(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's weights (or gradients) by our names, with the three projections of self-attention apart."""
    renamed = {}
    for name, value in tensors.items():
        module, dot, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        stack, *rest = module.split(".", 2)
        if stack not in ("blocks", "blocks_token_only"):
            renamed[OUTSIDE_LAYERS[module] + dot + kind] = value
            continue
        index, part = rest
        prefix = f"cait.{'layers' if stack == 'blocks' else 'class_layers'}.{index}."
        if part == "attn.qkv":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{prefix}attention.{letter}_proj.{kind}"] = third
        else:
            renamed[prefix + WITHIN_LAYERS[part] + dot + kind] = value
    return renamed


def tiny_timm(image_size: int, **settings) -> Cait:
    sizes = {"img_size": image_size, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return randomise(Cait(**{**sizes, "mlp_ratio": 2, "mlp_ratio_token_only": 2, **settings}))
