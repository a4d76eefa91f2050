"""Configuration of CaiT (Touvron et al. 2021, "Going deeper with image transformers"). Published beside its models."""

from huggingface_hub.dataclasses import strict

from .configuration_deit import FUSIONS, DeiTConfigBase


@strict
class CaiTConfig(DeiTConfigBase):
    """Configuration of a CaiT; the fields are those of `DeiTConfigBase`, and these.

    Args:
        num_class_layers: class-attention layers, in which the class token alone learns, behind the
            `num_hidden_layers` self-attention layers, which have no class token.
        layer_scale_init: initial value of the scales of every residual branch; smaller for deeper models.
        drop_path_rate: stochastic depth, the same in every self-attention layer (not growing as in DeiT), in [0, 1).
        query_chunk_size: how many queries the talking heads compute at a time. They need the whole attention matrix,
            which is the memory of a CaiT; where there are more queries than this, training computes it again in the
            backward pass instead of keeping it.
        distillation_token: whether there is a distillation token beside the class token, with a head of its own, as in
            DeiT. (The released models have none, although they were distilled.)
        fusion: how the two heads answer together, see `DistilledDeiTConfig`.
    """

    model_type = "cait"
    own_code = {  # noqa: RUF012 (without a type, so that it is no field)
        "AutoConfig": "configuration_cait.CaiTConfig",
        "AutoModelForImageClassification": "modeling_cait.CaiTForImageClassification",
    }

    hidden_size: int = 384
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    intermediate_size: int = 1536
    num_class_layers: int = 2
    layer_scale_init: float | int = 1e-5
    query_chunk_size: int = 256
    distillation_token: bool = False
    fusion: str = "logits"

    def validate_cait(self) -> None:
        """Refuses what no CaiT can be made from."""
        for name in ("num_class_layers", "query_chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.layer_scale_init < float("inf"):
            raise ValueError(f"layer_scale_init must be positive, got {self.layer_scale_init}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {self.fusion!r}")
