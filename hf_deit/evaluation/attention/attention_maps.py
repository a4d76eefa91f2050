"""Where the special tokens of a vision transformer look: in its last layer, over all layers, and for their answer.

Shape legend: h heads, S special tokens (the class token and, if there is one, the distillation token), N patches in a
grid of rows × columns, T = S + N tokens, Q queries, K keys, H × W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from ...models.configuration_deit import as_pair
from ...models.modeling_cait import CaiTForImageClassification, ClassAttention, TalkingHeadsAttention
from ..answers.verdicts import CLASS, DISTILLATION, SINGLE
from ..classifiers.classifiers import Classifier

TOKENS = (CLASS, DISTILLATION)  # in the order in which models have them
LAST_LAYER, ROLLOUT, RELEVANCE = METHODS = ("last_layer", "rollout", "relevance")
_TYPES = ("deit", "vit")  # of transformers and of this package: tokens that all attend to each other


@dataclass(frozen=True)
class AttentionMaps:
    """Where the special tokens of a model look in one image.

    Attributes:
        answers: of each head by its name: the class that it answers, in the order of the data, and its probability.
        maps: by method and token, (rows, columns) float64, none below 0. A distillation token without a head of its
            own has no relevance.
        heads: of each token: its attention in the last layer, (h, rows, columns) float64.
        on_special: of each token: the part of its attention in the last layer that goes to special tokens, in [0, 1].
    """

    answers: dict[str, tuple[int, float]]
    maps: dict[tuple[str, str], torch.Tensor]
    heads: dict[str, torch.Tensor]
    on_special: dict[str, float]


def has_attention_maps(model: nn.Module) -> bool:
    """Whether a model answers by tokens whose attention to patches can be recorded: a DeiT, ViT or CaiT.

    Others have no such tokens, or, as timm's behind transformers, do not give the weights of their attention.
    """
    is_cait = isinstance(model, CaiTForImageClassification)
    return is_cait or getattr(getattr(model, "config", None), "model_type", None) in _TYPES


def num_special_tokens(model: PreTrainedModel) -> int:
    """S of a DeiT, ViT or CaiT: 2 with a distillation token, else 1."""
    return 2 if getattr(model.base_model.embeddings, "distillation_token", None) is not None else 1


def attention_maps(classifier: Classifier, pixel_values: torch.Tensor) -> AttentionMaps:
    """Where the special tokens look in one image. Its time is that of a training step; the model stays as it is.

    Args:
        classifier: for which `has_attention_maps`.
        pixel_values: (3, H, W), from `classifier.preprocess`.
    """
    model = classifier.model
    patch_height, patch_width = as_pair(model.config.patch_size)
    grid_size = pixel_values.shape[1] // patch_height, pixel_values.shape[2] // patch_width
    special = num_special_tokens(model)
    maps, answers = {}, {}
    with torch.enable_grad(), recorded_attention(model) as recorded:
        # A gradient of the pixels, which nobody takes: so that there is a graph if the weights are frozen.
        logits = _logits(classifier, pixel_values.detach()[None].clone().requires_grad_())
        attentions = [weights.detach()[0] for weights in recorded]
        for head, values in logits.items():
            token = CLASS if head == SINGLE else head
            answer = int(values.detach().argmax())
            answers[head] = answer, float(values.detach().softmax(dim=0)[answer])
            gradients = torch.autograd.grad(values[answer], recorded, retain_graph=True)
            of_image = [gradient[0] for gradient in gradients]
            maps[RELEVANCE, token] = relevance(attentions, of_image, TOKENS.index(token), special)
    in_last = attentions[-1][:, :special].cpu().double()
    maps |= {(LAST_LAYER, token): row for token, row in zip(TOKENS, in_last.mean(dim=0)[:, special:], strict=False)}
    maps |= {(ROLLOUT, token): row for token, row in zip(TOKENS, rollout(attentions, special), strict=False)}
    of_tokens = dict(zip(TOKENS, in_last.unbind(dim=1), strict=False))
    return AttentionMaps(
        answers=answers,
        maps={key: values.unflatten(-1, grid_size) for key, values in maps.items()},
        heads={token: weights[:, special:].unflatten(-1, grid_size) for token, weights in of_tokens.items()},
        on_special={token: float(weights[:, :special].sum(dim=-1).mean()) for token, weights in of_tokens.items()},
    )


def _logits(classifier: Classifier, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `Classifier.logits` gives of one image, (K,) each, on the model's device: gradients flow through them."""
    model = classifier.model
    outputs = model(pixel_values=pixel_values.to(model.device, model.dtype), **classifier.forward_options)
    order = slice(None) if classifier.label_order is None else classifier.label_order.tolist()
    return {name: logits[0, order].float() for name, logits in classifier.heads_of(outputs).items()}


def rollout(attentions: Sequence[torch.Tensor], num_special: int) -> torch.Tensor:
    """Attention rollout (Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3).

    Of each layer the heads are averaged, half of the identity stands for the residual connection, and each row is
    made to sum to 1; the product over the layers says how much of each patch comes to each token. Tokens that a layer
    leaves as they are have the identity's row.

    Args:
        attentions: of each layer, first to last, (h, Q, K), see `recorded_attention`.
        num_special: S.

    Returns:
        (S, N) float64 on the CPU, the special tokens' rows.
    """
    num_tokens = attentions[-1].shape[-1]
    identity = torch.eye(num_tokens, dtype=torch.float64)
    rows = identity[:num_special]
    for weights in reversed(attentions):  # from the last, as a few rows times a matrix are cheaper than two matrices
        mixed = 0.5 * _among_all(weights.cpu().double().mean(dim=0), num_tokens) + 0.5 * identity
        rows = rows @ (mixed / mixed.sum(dim=-1, keepdim=True))
    return rows[:, num_special:]


def relevance(
    attentions: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], token: int, num_special: int
) -> torch.Tensor:
    """Relevance of the patches to a logit (Chefer, Gur and Wolf 2021, "Generic Attention-model Explainability").

    Layer by layer R ← R + E_h[(∇A ⊙ A)⁺] R (their equations 5 and 6), from R = I. It is the row of the token that the
    logit is made from.

    Args:
        attentions: of each layer, first to last, (h, Q, K), see `recorded_attention`.
        gradients: of the logit, the same shapes.
        token: its index among the special tokens.
        num_special: S.

    Returns:
        (N,) float64 on the CPU.
    """
    num_tokens = attentions[-1].shape[-1]
    row = torch.eye(num_tokens, dtype=torch.float64)[token]
    for weights, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        weighted = (gradient.cpu().double() * weights.cpu().double()).clamp(min=0).mean(dim=0)
        row = row + row @ _among_all(weighted, num_tokens)
    return row[num_special:]


def _among_all(weights: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """A layer's (Q, K) as (T, T), with zeros where it has no attention.

    CaiT's self-attention has no special tokens, and its class attention asks for nothing else.
    """
    queries, keys = weights.shape
    whole = weights.new_zeros(num_tokens, num_tokens)
    if keys == num_tokens:
        whole[:queries] = weights
    else:
        whole[-queries:, -keys:] = weights
    return whole


@contextmanager
def recorded_attention(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Within it a forward pass appends the attention of each layer, first to last, (B, h, Q, K), rows of sum 1.

    They are the very tensors that the model's output is computed from, so it has gradients by them. Fused kernels give
    none, so attention is "eager" meanwhile. Of CaiT, which computes some queries at a time, that of each layer
    is computed once more: of the patches to each other (Q = K = N), between the two mixings of the heads, where rows
    have the sum 1, and then of the special tokens to all (Q = S, K = T).

    Args:
        model: for which `has_attention_maps`.
    """
    recorded: list[torch.Tensor] = []

    def keep(attention: nn.Module, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        recorded.append(output[1])

    def compute(function: Callable, attention: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        weights, output = function(attention, *inputs)
        recorded.append(weights)
        return output

    base, implementation, hooks = model.base_model, model.config._attn_implementation, []
    try:
        if isinstance(model, CaiTForImageClassification):
            for layers, function in ((base.layers, _talking_heads), (base.class_layers, _class_attention)):
                hooks += [layer.attention.register_forward_hook(partial(compute, function)) for layer in layers]
        else:
            model.set_attn_implementation("eager")
            hooks += [layer.attention.register_forward_hook(keep) for layer in base.layers]
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
        if model.config._attn_implementation != implementation:
            model.set_attn_implementation(implementation)


def _talking_heads(attention: TalkingHeadsAttention, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention (B, h, N, N) between the mixings of the heads, and what `attention` gives of states (B, N, D)."""
    query, key, value = _projected(attention, states, states)
    scores = _mixed(query @ key.transpose(2, 3), attention.talk_before)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    context = _mixed(weights, attention.talk_after) @ value
    return weights, attention.o_proj(context.transpose(1, 2).flatten(2))


def _class_attention(
    attention: ClassAttention, states: torch.Tensor, num_special: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention (B, h, S, T), and what `attention` gives of states (B, T, D)."""
    query, key, value = _projected(attention, states[:, :num_special], states)
    weights = (query @ key.transpose(2, 3)).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return weights, attention.o_proj((weights @ value).transpose(1, 2).flatten(2))


def _projected(
    attention: TalkingHeadsAttention | ClassAttention, asking: torch.Tensor, asked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scaled queries, keys and values, (B, h, tokens, D / h)."""
    query = attention.in_heads(attention.q_proj(asking)) * attention.head_dim**-0.5
    return query, attention.in_heads(attention.k_proj(asked)), attention.in_heads(attention.v_proj(asked))


def _mixed(weights: torch.Tensor, mixing: nn.Linear) -> torch.Tensor:
    """(B, h, Q, K) with its heads mixed."""
    return mixing(weights.movedim(1, -1)).movedim(-1, 1)
