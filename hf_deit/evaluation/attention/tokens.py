"""How alike the class token and the distillation token are, layer by layer (the paper, section 4)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ...errors import BadImageError, counted
from ..classifiers.classifiers import Classifier
from ..images.images import EvaluationImages
from ..pictures import as_png, drawing, look_of, name_in_picture
from ..sections import Cell, Picture, Section, Table
from .attention_maps import has_attention_maps, num_special_tokens

_BATCH_SIZE = 16
_OF_CAIT = "class-attention layer"
_LEARNT, _INPUT, _NORMALISED = "learnt tokens", "input, with positions", "after the final norm"
_PAPER = (
    "Quoted from the paper (section 4, of a DeiT on ImageNet, not measured here): 0.06 on average between the learnt "
    "tokens, 0.93 at the last layer, before or after the final norm; two class tokens, in place of a class and a "
    "distillation token, became the same vector (0.999)."
)


def tokens_section(
    classifiers: Iterable[Classifier], images: EvaluationImages, *, num_images: int = 1000, seed: int = 0
) -> Section | None:
    """The cosine of class and distillation token, at the input and after each layer, over images.

    The states are those that the model computes, in its precision; the cosine is computed in float64. A few images are
    in memory at a time.

    Args:
        classifiers: of which those that have a distillation token are measured: DeiT and CaiT. They are taken one
            after the other, so they can be loaded when their turn comes.
        images: of which some are drawn. Those that cannot be decoded, or to which a model gives no finite states, are
            left out.
        num_images: how many are drawn; all, if there are not more.
        seed: of the draw.

    Returns:
        None if no model has a distillation token, or nothing could be measured.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:num_images]).tolist()
    cosines, stages, unmeasured = {}, {}, []
    for one in classifiers:
        if not has_attention_maps(one.model) or num_special_tokens(one.model) < 2:
            unmeasured.append(f"{one.name} (without a distillation token)")
        elif len(values := _cosines(one, images, rows)):
            cosines[one.name], stages[one.name] = values, _stages(one.model)
        else:
            unmeasured.append(f"{one.name} (of which no image gives finite states)")
    if not cosines:
        return None
    drawn = "all" if len(rows) == len(images) else f"{len(rows):,} of them, drawn with seed {seed}"
    what = f"{images.words}; {drawn}"
    text = (
        "The cosine of the class token and the distillation token: 1 where they point the same way, 0 where they have "
        f"nothing in common. “{_LEARNT}” are the two parameters alone, “{_INPUT}” what the first layer gets: both are "
        f"the same for all images. “{_NORMALISED}” is what the heads get.",
        _PAPER,
    )
    if any(_OF_CAIT in stage for names in stages.values() for stage in names):
        text += ("In a CaiT these tokens are in its class-attention layers alone, whose numbers are shown.",)
    if unmeasured:
        text += (f"Not measured: {', '.join(unmeasured)}.",)
    return Section(
        name="tokens",
        title="Class and distillation token",
        text=text,
        tables=(_table(cosines, stages, what),),
        pictures=(_picture(cosines, stages, what),),
        numbers={
            "seed": seed,
            "models": {
                name: {
                    "num_images": len(values),
                    "stages": [
                        {
                            "stage": stage,
                            "mean": float(column.mean()),
                            "standard_deviation": _deviation(column),
                            "percentiles": {str(at): float(np.percentile(column, at)) for at in (5, 50, 95)},
                        }
                        for stage, column in zip(stages[name], values.T, strict=True)
                    ],
                }
                for name, values in cosines.items()
            },
        },
    )


def _stages(model: PreTrainedModel) -> list[str]:
    """Where the tokens are compared, in order."""
    kind = _OF_CAIT if hasattr(model.base_model, "class_layers") else "layer"
    layers = [f"after {kind} {number + 1}" for number in range(len(_layers(model)))]
    return [_LEARNT, _INPUT, *layers, _NORMALISED]


def _layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    """Those that the special tokens go through: of CaiT its class-attention layers alone."""
    return getattr(model.base_model, "class_layers", model.base_model.layers)


def _cosines(classifier: Classifier, images: EvaluationImages, rows: Sequence[int]) -> np.ndarray:
    """(images, stages) float64, of those of the rows that can be measured."""
    measured = [np.empty((0, len(_stages(classifier.model))))]
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = []
        for row in rows[start : start + _BATCH_SIZE]:
            with suppress(BadImageError):
                batch.append(classifier.preprocess(images.image(row)))
        if batch:
            measured.append(token_cosines(classifier, torch.stack(batch)).numpy())
    values = np.concatenate(measured)
    return values[np.isfinite(values).all(axis=1)]


def token_cosines(classifier: Classifier, pixel_values: torch.Tensor) -> torch.Tensor:
    """The cosine of class and distillation token: of the two parameters, at the input, after each layer and the norm.

    Args:
        classifier: a DeiT or CaiT with a distillation token.
        pixel_values: (B, 3, H, W), from `classifier.preprocess`.

    Returns:
        (B, L + 3) float64 on the CPU, of L layers that the tokens go through.
    """
    embeddings = classifier.model.base_model.embeddings
    learnt = torch.cat((embeddings.cls_token, embeddings.distillation_token), dim=1).detach()
    with _recorded_tokens(classifier.model) as recorded:
        classifier.logits(pixel_values)
    tokens = torch.stack([_in_float64(learnt).expand(len(pixel_values), -1, -1), *recorded], dim=1)
    return F.cosine_similarity(tokens[:, :, 0], tokens[:, :, 1], dim=-1)


@contextmanager
def _recorded_tokens(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Within it a forward pass appends the special tokens (B, 2, D): embedded, after each layer, after the norm."""
    recorded: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        states = output[0] if isinstance(output, tuple) else output  # CaiT embeds the special tokens apart
        recorded.append(_in_float64(states[:, :2]))

    base = model.base_model
    hooks = [module.register_forward_hook(keep) for module in (base.embeddings, *_layers(model), base.layernorm)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def _deviation(values: np.ndarray) -> float:
    """The standard deviation: 0 of equal values, whose mean may be rounded to another."""
    return float((values - values[0]).std())


def _in_float64(states: torch.Tensor) -> torch.Tensor:
    return states.detach().cpu().double()


def _table(cosines: dict[str, np.ndarray], stages: dict[str, list[str]], what: str) -> Table:
    """A row for each stage of any model, two columns for each model."""
    names = list(dict.fromkeys(stage for name in cosines for stage in stages[name] if stage != _NORMALISED))
    rows: list[tuple[Cell, ...]] = []
    for stage in (*names, _NORMALISED):
        cells: list[Cell] = [stage]
        for name, values in cosines.items():
            column = values[:, stages[name].index(stage)] if stage in stages[name] else None
            cells += [None, None] if column is None else [float(column.mean()), _deviation(column)]
        rows.append(tuple(cells))
    return Table(
        name="cosine",
        caption=f"Cosine of class and distillation token over {what}.",
        columns=(
            "Where",
            *(column for name in cosines for column in (f"{name}, mean", f"{name}, standard deviation")),
        ),
        rows=tuple(rows),
    )


def _picture(cosines: dict[str, np.ndarray], stages: dict[str, list[str]], what: str) -> Picture:
    """The mean over the layers with a band, and marks apart for the parameters and behind the norm."""
    ends, lines = [], []
    with drawing(6.4, 3.8) as figure:
        axis = figure.add_subplot()
        deepest = max(values.shape[1] for values in cosines.values()) - 3
        for index, (name, values) in enumerate(cosines.items()):
            look = look_of(index)
            depth = values.shape[1] - 3
            mean, (low, high) = values.mean(axis=0), np.percentile(values, (5, 95), axis=0)
            lines += axis.plot(range(depth + 1), mean[1:-1], **look)
            axis.fill_between(range(depth + 1), low[1:-1], high[1:-1], color=look["color"], alpha=0.2, linewidth=0)
            for place, at in ((-1, 0), (deepest + 1, -1)):
                axis.vlines(place, low[at], high[at], color=look["color"], alpha=0.4)
                axis.plot(place, mean[at], color=look["color"], marker=look["marker"])
            ends.append(f"{name} {mean[1]:.2f} at the input, {mean[-2]:.2f} after its last layer")
        layers = [number for number in range(deepest + 1) if number % (1 + deepest // 13) == 0]
        axis.set_xticks([-1, *layers, deepest + 1], ["learnt", "input", *map(str, layers[1:]), "norm"])
        axis.set(xlabel="after layer", ylabel="cosine of class and distillation token")
        axis.legend(lines, [name_in_picture(name, 60) for name in cosines])
        png = as_png(figure)
    return Picture(
        name="tokens",
        png=png,
        caption=f"Cosine of class and distillation token over {what}: mean, and 5th to 95th percentile as a band.",
        alt=f"A curve of the cosine over the layers for {counted(len(cosines), 'model')}: {'; '.join(ends)}.",
    )
