"""Where the class and the distillation token look, as pictures over images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize

from ...errors import BadImageError, InputError, counted
from ..answers.verdicts import CLASS, DISTILLATION, SINGLE, Verdicts
from ..classifiers.classifiers import Classifier
from ..images.images import EvaluationImages
from ..images.labels import Labels
from ..pictures import as_png, drawing, name_in_picture
from ..sections import Picture, Section, Table
from .attention_maps import (
    LAST_LAYER,
    METHODS,
    RELEVANCE,
    ROLLOUT,
    TOKENS,
    AttentionMaps,
    attention_maps,
    has_attention_maps,
)

_COLOURS = "inferno"  # perceptually uniform, seen alike by all, and of more contrast over a grey image than cividis
_OPACITY, _DARKEST = 0.6, 0.25  # of the colours, and of the grey below them, whose brightest is as far from white
METHODS_IN_WORDS = {LAST_LAYER: "last layer", ROLLOUT: "rollout", RELEVANCE: "relevance"}
_HEADS = {
    CLASS: "class",
    DISTILLATION: "distillation",
    SINGLE: "class",
}  # a model with one head has it on its class token
_CELL = 1.45  # inches
_SMOOTH = 160  # pixels of a map's longer side, at the least: so many are about as fine as it is printed
_LETTERS = 24  # of a class name
_TEXT = (
    "Each map shows how much of an image's patches comes to a token: to the class token and, where the model has one, "
    "to the distillation token. Brighter is more. Values are multiples of what a patch has if all have the same; the "
    "special tokens are left out. Maps of one method have one scale of colours, for both tokens and all images, so "
    "they can be compared; it ends at the 1st and the 99th percentile of what it shows. Below the colours lies the "
    "image as the model sees it, resized and cropped, in grey.",
    "Last layer: the attention of the token in the last layer, averaged over the heads. Rollout (Abnar and Zuidema "
    "2020): the attention of all layers multiplied, half of each layer being the residual connection; it does not "
    "depend on the class. Relevance (Chefer, Gur and Wolf 2021): attention weighted by the gradient of a logit, "
    "through all layers, where it speaks for the class; of the class token that of the class head's answer, of the "
    "distillation token that of the distillation head's, which need not be the same. It shows what raises a logit: "
    "what a model tells a class by in lowering the other logits, it does not show. All are views of how the model "
    "works, no proofs: that a patch is bright does not say that the answer would change without it.",
)
_TEXT_OF_CAIT = (
    "CaiT's patches attend to each other without the special tokens, which join them in the class-attention layers: "
    "the last of these is the last layer here, and rollout and relevance go through both kinds. In its self-attention "
    "the heads are mixed before and after the softmax; the maps are made of the weights between both mixings, whose "
    "rows sum to 1, which behind the second one they do not. Rollout takes residual connection and attention as "
    "equally strong, where CaiT has learnt a factor for each."
)


@dataclass(frozen=True)
class _Explained:
    """An image and where the tokens look in it.

    Attributes:
        row, name: where it stands among the images, and what it is called.
        label: the name of its class, empty if it has none.
        answers: of each head: the name of the class, and its probability.
        is_right: of each head, None without a label.
        shown: (H, W, 3) in [0, 1], as the model sees it.
        maps: where the tokens look.
    """

    row: int
    name: str
    label: str
    answers: Mapping[str, tuple[str, float]]
    is_right: Mapping[str, bool | None]
    shown: np.ndarray
    maps: AttentionMaps


def attention_section(
    classifier: Classifier,
    images: EvaluationImages,
    *,
    verdicts: Verdicts | None = None,
    indices: Sequence[int] | None = None,
    num_images: int = 6,
    seed: int = 0,
    per_head: bool = False,
) -> Section | None:
    """Where the special tokens of a model look in some images, by three methods.

    One image is computed at a time, with all of its attention and its gradient. The model stays as it is.

    Args:
        classifier: a DeiT, ViT or CaiT.
        images: of which some are shown. Those that cannot be decoded are passed over.
        verdicts: of the model on these images: then half of the images that are drawn are some that it answers
            wrongly, if there are as many.
        indices: of the images that are shown, in [0, N), in their order. By default they are drawn, one of each class
            before there is a second one.
        num_images: how many are drawn.
        seed: of the draw.
        per_head: whether a second picture shows each head of the last layer.

    Returns:
        None for a model without such attention (see `has_attention_maps`), and where no image can be shown.

    Raises:
        InputError: there is no image of one of the indices.
    """
    if not has_attention_maps(classifier.model):
        return None
    order = _drawn(images, verdicts, num_images, seed) if indices is None else _checked(indices, len(images))
    explained: list[_Explained] = []
    for index in order:
        if len(explained) == (num_images if indices is None else len(order)):
            break
        if (one := _explained(classifier, images, int(index))) is not None:
            explained.append(one)
    if not explained:
        return None
    how = "chosen by their rows" if indices is not None else f"drawn with seed {seed}"
    what = f"{classifier.name} on {counted(len(explained), 'image')} of {images.words}, {how}"
    is_cait = classifier.model.config.model_type == "cait"
    pictures = [_picture_of_methods(explained, what)]
    if per_head:
        pictures.append(_picture_of_heads(explained, what))
    return Section(
        name="attention",
        title="Where the tokens look",
        text=(*_TEXT, _TEXT_OF_CAIT) if is_cait else _TEXT,
        tables=(_table(explained, what),),
        pictures=tuple(pictures),
        numbers={
            "model": classifier.name,
            "seed": seed if indices is None else None,
            "images": [_numbers(one) for one in explained],
        },
    )


def _checked(indices: Sequence[int], num_images: int) -> Sequence[int]:
    """The indices, if they are of images that there are.

    Raises:
        InputError: names the first that is not.
    """
    for index in indices:
        if not 0 <= index < num_images:
            raise InputError(f"there is no image {index} to explain: expected a number from 0 to {num_images - 1}")
    return indices


def _drawn(images: EvaluationImages, verdicts: Verdicts | None, num_images: int, seed: int) -> np.ndarray:
    """All rows, in the order in which they are to be taken."""
    shuffled = _by_turns(np.random.default_rng(seed).permutation(len(images)), images.labels.values)
    if verdicts is None:
        return shuffled
    is_right = images.labels.are_right(verdicts.decisions)
    is_wrong = ~is_right & images.labels.is_labelled
    wrong = [index for index in shuffled if is_wrong[index]]
    others = [index for index in shuffled if not is_wrong[index]]
    half = max(num_images // 2, num_images - len(others))
    first = [*others[: num_images - min(half, len(wrong))], *wrong[:half]]
    taken = set(first)
    return np.array([*first, *(index for index in shuffled if index not in taken)])


def _by_turns(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rows ordered so that each class comes once before one comes again, else as they are."""
    turn, seen = np.empty(len(rows), dtype=np.int64), {}
    for place, label in enumerate(labels[rows].tolist()):
        turn[place] = seen[label] = seen.get(label, -1) + 1
    return rows[np.argsort(turn, kind="stable")]


def _explained(classifier: Classifier, images: EvaluationImages, index: int) -> _Explained | None:
    """None for an image that cannot be decoded, or to which the model gives no finite answer."""
    try:
        pixel_values = classifier.preprocess(images.image(index))
    except BadImageError:
        return None
    maps = attention_maps(classifier, pixel_values)
    if not all(values.isfinite().all() for values in maps.maps.values()):
        return None
    names, label = images.labels.names, int(images.labels.values[index])
    return _Explained(
        row=images.row(index),
        name=images.name(index),
        label=names[label] if label >= 0 else "",
        answers={head: (names[answer], probability) for head, (answer, probability) in maps.answers.items()},
        is_right={
            head: _is_right(images.labels, index, answer) if label >= 0 else None
            for head, (answer, _) in maps.answers.items()
        },
        shown=_shown(classifier, pixel_values),
        maps=maps,
    )


def _is_right(labels: Labels, index: int, answer: int) -> bool:
    return bool(labels.values[index] == answer if labels.accepted is None else labels.accepted[index, answer])


def _shown(classifier: Classifier, pixel_values: torch.Tensor) -> np.ndarray:
    """Normalised pixels (3, H, W) as an image, (H, W, 3) in [0, 1]."""
    processor = classifier.processor
    if getattr(processor, "do_normalize", True):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
        pixel_values = pixel_values * std + mean
    if not getattr(processor, "do_rescale", True):
        pixel_values = pixel_values / 255
    return pixel_values.clamp(0, 1).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class _Row:
    """A line of a picture: an image, what stands below it, and maps over it of patches, None where there is none."""

    shown: np.ndarray
    caption: str
    maps: Sequence[np.ndarray | None]


def _picture_of_methods(explained: Sequence[_Explained], what: str) -> Picture:
    """Both tokens' maps by each method."""
    columns = [(method, token) for method in METHODS for token in TOKENS if (method, token) in explained[0].maps.maps]
    rows = [
        _Row(one.shown, _caption(one), [_multiples(one.maps.maps[column]) for column in columns]) for one in explained
    ]
    titles = [f"{METHODS_IN_WORDS[method]}\n{_HEADS[token]} token" for method, token in columns]
    scales = {
        METHODS_IN_WORDS[method]: [place for place, column in enumerate(columns) if column[0] == method]
        for method in METHODS
    }
    brightest = ", ".join(METHODS_IN_WORDS[method] for method in METHODS)
    return Picture(
        name="attention",
        png=_drawing_of(rows, titles, scales),
        caption=f"Where the tokens look: {what}. Brighter is more; each scale is in multiples of an average patch.",
        alt=f"A grid of {len(explained)} images, each beside itself in grey with coloured maps over it: {brightest}, "
        "of each special token. Under each image its label and the answer of each head.",
        in_card=True,
    )


def _picture_of_heads(explained: Sequence[_Explained], what: str) -> Picture:
    """The heads of the last layer, a line for each image and token."""
    rows = [
        _Row(
            one.shown,
            "\n".join([*_label(one), f"{_HEADS[token]} token"]),
            [_multiples(weights) for weights in heads],
        )
        for one in explained
        for token, heads in one.maps.heads.items()
    ]
    num_heads = len(rows[0].maps)
    return Picture(
        name="attention_heads",
        png=_drawing_of(
            rows, [f"head {head + 1}" for head in range(num_heads)], {"last layer": list(range(num_heads))}
        ),
        caption=f"Each head in the last layer: {what}. Brighter is more, in multiples of an average patch.",
        alt=f"A grid of {len(explained)} images, each beside itself in grey with the map of each of {num_heads} heads "
        "over it, a line for each special token.",
    )


def _multiples(weights: torch.Tensor) -> np.ndarray:
    """A map whose mean is 1, or zeros if it is nothing but zeros."""
    return (weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)).numpy()


def _caption(one: _Explained) -> str:
    """The label and the answers, a line each, with a mark whether they are the same."""
    lines = _label(one)
    for head, (name, probability) in one.answers.items():
        mark = {True: "✓ ", False: "✗ ", None: ""}[one.is_right[head]]
        lines.append(f"{mark}{_HEADS[head]}: {name_in_picture(name, _LETTERS)} {probability:.2f}")
    return "\n".join(lines)


def _label(one: _Explained) -> list[str]:
    """A line with it, if there is one."""
    return [f"label: {name_in_picture(one.label, _LETTERS)}"] if one.label else []


def _drawing_of(rows: Sequence[_Row], titles: Sequence[str], scales: Mapping[str, Sequence[int]]) -> bytes:
    """The rows as a PNG file.

    Args:
        rows: with as many maps each as there are titles.
        titles: of the columns of maps.
        scales: which columns have one scale of colours, by its name.
    """
    height, width = rows[0].shown.shape[:2]
    cell = _CELL * min(max(height / width, 0.4), 2.5)
    lines = max(row.caption.count("\n") + 1 for row in rows)
    heights = [cell + 0.14 * lines] * len(rows)
    with drawing(_CELL * (1 + len(titles)), sum(heights) + 0.9) as figure:
        grid = figure.add_gridspec(len(rows) + 1, 1 + len(titles), height_ratios=[*heights, 0.1])
        axes = [
            [figure.add_subplot(grid[line, column]) for column in range(1 + len(titles))] for line in range(len(rows))
        ]
        for title, axis in zip(["image", *titles], axes[0], strict=True):
            axis.set_title(title, fontsize=8)
        for row, (first, *_) in zip(rows, axes, strict=True):
            first.imshow(row.shown)
            first.set_xlabel(row.caption, fontsize=6.5, loc="left")
        over_grey = ListedColormap(_blended(0.5, matplotlib.colormaps[_COLOURS](np.linspace(0, 1, 256))))
        for name, columns in scales.items():
            norm = _scale_of(row.maps[column] for row in rows for column in columns)
            for row, line in zip(rows, axes, strict=True):
                for column in columns:
                    line[1 + column].imshow(_overlay(row.shown, row.maps[column], norm))
            bar = figure.add_subplot(grid[-1, 1 + columns[0] : 2 + columns[-1]])
            figure.colorbar(ScalarMappable(norm, over_grey), cax=bar, orientation="horizontal", extend="both")
            bar.set_xlabel(f"{name}: 1 = average patch", fontsize=6.5)
            bar.tick_params(labelsize=7)
        for axis in (axis for line in axes for axis in line):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.grid(False)
        return as_png(figure)


def _overlay(shown: np.ndarray, weights: np.ndarray, norm: Normalize) -> np.ndarray:
    """A map of patches over an image (H, W, 3): in colours, whose brightness the image in grey changes but little."""
    times = -(-_SMOOTH // max(shown.shape))
    grey = (shown @ np.array([0.299, 0.587, 0.114])).repeat(times, axis=0).repeat(times, axis=1)
    smooth = F.interpolate(torch.from_numpy(weights)[None, None], size=grey.shape, mode="bilinear")[0, 0]
    blended = _blended(_DARKEST + (1 - 2 * _DARKEST) * grey, matplotlib.colormaps[_COLOURS](norm(smooth.numpy())))
    return (255 * blended).round().astype(np.uint8)  # which all stay in memory until the picture is drawn


def overlays(classifier: Classifier, pixel_values: torch.Tensor, method: str) -> dict[str, np.ndarray]:
    """Where each token looks, over one image as the model sees it: (H, W, 3) uint8, by the token's name.

    Args:
        classifier: for which `has_attention_maps`.
        pixel_values: (3, H, W), from `classifier.preprocess`.
        method: one of `METHODS`. Its tokens have one scale of colours.
    """
    maps = attention_maps(classifier, pixel_values).maps
    found = {token: _multiples(maps[method, token]) for token in TOKENS if (method, token) in maps}
    norm = _scale_of(found.values())
    shown = _shown(classifier, pixel_values)
    return {token: _overlay(shown, values, norm) for token, values in found.items()}


def _scale_of(maps: Iterable[np.ndarray]) -> Normalize:
    """One scale of colours for maps, between their 1st and 99th percentiles."""
    low, high = np.percentile(np.concatenate([values.ravel() for values in maps]), (1, 99))
    return Normalize(low, max(high, low + 0.01), clip=True)


def _blended(grey: np.ndarray | float, colours: np.ndarray) -> np.ndarray:
    """Colours (…, 4) over grey in [0, 1], (…, 3)."""
    return (1 - _OPACITY) * np.asarray(grey)[..., None] + _OPACITY * colours[..., :3]


def _table(explained: Sequence[_Explained], what: str) -> Table:
    """What the picture shows, with the part of the attention that it does not."""
    heads, tokens = explained[0].answers, explained[0].maps.on_special
    return Table(
        name="images",
        caption=f"Images of the picture, top to bottom: {what}. On special tokens: the part of a token's attention in "
        "the last layer that goes to special tokens instead of patches, averaged over the heads.",
        columns=(
            "Image",
            "Label",
            *(column for head in heads for column in (f"Answer, {_HEADS[head]} head", f"p, {_HEADS[head]} head")),
            *(f"{_HEADS[token]} token, on special tokens" for token in tokens),
        ),
        rows=tuple(
            (
                one.name,
                one.label or None,
                *(cell for answer in one.answers.values() for cell in answer),
                *one.maps.on_special.values(),
            )
            for one in explained
        ),
    )


def _numbers(one: _Explained) -> dict[str, Any]:
    """What was measured of an image. "largest_at": the patch, by its row and column, where each map is largest."""
    return {
        "row": one.row,
        "image": one.name,
        "label": one.label or None,
        "answers": {head: {"class": name, "probability": value} for head, (name, value) in one.answers.items()},
        "on_special_tokens": one.maps.on_special,
        "largest_at": {
            method: {
                token: list(divmod(int(values.argmax()), values.shape[1]))
                for (kind, token), values in one.maps.maps.items()
                if kind == method
            }
            for method in METHODS
        },
    }
