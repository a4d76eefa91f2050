"""The model cards of the zoo: what the models tell of themselves, and what is quoted of their released weights.

The words are in templates/: zoo_card.md is a card, and zoo_variants.md has what differs between the kinds of models.
"""

import functools
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

import torch
from huggingface_hub import EvalResult, ModelCardData
from torch.utils.flop_counter import FlopCounterMode

from ..models.configuration_cait import CaiTConfig
from ..models.configuration_deit import DeiTConfigBase, DistilledDeiTConfig
from ..models.image_processing_deit import DistilledDeiTImageProcessor, usual_crop_ratio
from ..models.zoo import create_model
from .files import write_whole
from .usage import CLASSIFY_AN_IMAGE, WHAT_OTHER_LINES_DO

_DATASET = "ILSVRC/imagenet-1k"
# FLOP of one image from which on a device may not hold the 64 images of the recipe at once.
_LARGE = 50e9


@dataclass(frozen=True)
class Publication:
    """Where quoted accuracies stand."""

    name: str
    url: str


_AUTHORS = Publication(
    "the authors' README (facebookresearch/deit)",
    "https://github.com/facebookresearch/deit/blob/main/README_deit.md",
)
_TIMM = Publication(
    "timm's results table (results-imagenet.csv)",
    "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv",
)


@dataclass(frozen=True)
class Released:
    """The released weights of a model, of which its code tells nothing.

    Attributes:
        title: the paper's name of the model.
        top1, top5: quoted accuracies on the validation images of ImageNet-1k, in percent.
        source: which these are quoted from.
        epochs: of their training at 224 pixels, where the source says.
        recipes: of this repository, in the order in which they are run.
        note: on the quoted accuracies.
    """

    title: str
    top1: float
    top5: float
    source: Publication
    epochs: int | None = None
    recipes: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_fine_tuned(self) -> bool:
        """Whether they were fine-tuned at the model's resolution, after training at 224 pixels."""
        return "↑" in self.title


def _deit(title: str, top1: float, top5: float, *recipes: str, epochs: int = 300, note: str = "") -> Released:
    return Released(title, top1, top5, _AUTHORS, epochs, recipes, note)


def _cait(title: str, top1: float, top5: float, authors: float | None = None, note: str = "") -> Released:
    if authors is not None:
        note = f"The authors' README gives {authors} top-1. {note}".strip()
    return Released(title, top1, top5, _TIMM, note=note)


MODELS = {
    "deit_tiny_patch16_224": _deit("DeiT-Ti", 72.2, 91.1, "deit_tiny"),
    "deit_small_patch16_224": _deit("DeiT-S", 79.9, 95.0, "deit_small", note="The paper's table 5 gives 79.8 top-1."),
    "deit_base_patch16_224": _deit("DeiT-B", 81.8, 95.6, "deit_base"),
    "deit_base_patch16_384": _deit(
        "DeiT-B↑384", 82.9, 96.2, "deit_base", "deit_base_384", note="The paper's table 5 gives 83.1 top-1."
    ),
    "deit_tiny_distilled_patch16_224": _deit("DeiT-Ti⚗", 74.5, 91.9, "deit_tiny_distilled"),
    "deit_small_distilled_patch16_224": _deit("DeiT-S⚗", 81.2, 95.4, "deit_small_distilled"),
    "deit_base_distilled_patch16_224": _deit("DeiT-B⚗", 83.4, 96.5, "deit_base_distilled"),
    "deit_base_distilled_patch16_384": _deit(
        "DeiT-B⚗↑384",
        85.2,
        97.2,
        "deit_base_distilled_1000_epochs",
        "regnety_160_384",
        "deit_base_distilled_1000_epochs_384",
        epochs=1000,
        note="After 300 epochs instead of 1000 the paper's table 5 gives 84.5 top-1.",
    ),
    "cait_xxs24_224": _cait("CaiT-XXS-24", 78.40, 94.33),
    "cait_xxs24_384": _cait("CaiT-XXS-24↑384", 80.95, 95.64),
    "cait_xxs36_224": _cait("CaiT-XXS-36", 79.75, 94.87),
    "cait_xxs36_384": _cait("CaiT-XXS-36↑384", 82.20, 96.15),
    "cait_xs24_384": _cait("CaiT-XS-24↑384", 84.06, 96.89, authors=84.1),
    "cait_s24_224": _cait("CaiT-S-24", 83.48, 96.59, authors=83.5),
    "cait_s24_384": _cait("CaiT-S-24↑384", 85.05, 97.35, authors=85.1),
    "cait_s36_384": _cait("CaiT-S-36↑384", 85.46, 97.48, authors=85.4),
    "cait_m36_384": _cait("CaiT-M-36↑384", 86.06, 97.73, authors=86.1),
    "cait_m48_448": _cait(
        "CaiT-M-48↑448", 86.48, 97.75, authors=86.5, note="It also advises to evaluate this model in float32."
    ),
}


@dataclass(frozen=True)
class Measured:
    """What a model itself tells.

    Attributes:
        config: its configuration.
        parameters: how many.
        flops: of the forward pass of one image, 2 per multiply-add.
        image_size: input size in pixels.
        crop_ratio, resized: of the evaluation transform: the crop as a part of the resized shorter side, and that
            side in pixels.
    """

    config: DeiTConfigBase
    parameters: int
    flops: int
    image_size: int
    crop_ratio: float
    resized: int

    @property
    def kind(self) -> str:
        """Which of the templates' variants it is: "plain", "distilled" or "cait"."""
        if isinstance(self.config, CaiTConfig):
            return "cait"
        return "distilled" if isinstance(self.config, DistilledDeiTConfig) else "plain"


def measure(name: str) -> Measured:
    """Counts a model of the zoo on the meta device: nothing is computed, nothing is stored."""
    with torch.device("meta"):
        model = create_model(name).eval()
    size = model.config.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # With all of the last layer, as every library computes it.
        model(torch.empty(1, 3, size, size, device="meta"), output_hidden_states=True)
    crop_ratio = usual_crop_ratio((size, size), is_cait=isinstance(model.config, CaiTConfig))
    processor = DistilledDeiTImageProcessor(crop_size=size, crop_ratio=crop_ratio)
    return Measured(
        config=model.config,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=counter.get_total_flops(),
        image_size=size,
        crop_ratio=crop_ratio,
        resized=processor.size.shortest_edge,
    )


def make_card(name: str) -> str:
    """The card of a model of the zoo."""
    released, measured = MODELS[name], measure(name)
    words = {**_variants(measured.kind), **_values(name, released, measured)}
    text = _template("zoo_card.md")
    while "$" in text:  # variants hold values, and other variants
        text = Template(text).substitute(words)
    return f"---\n{_metadata(name, released, measured.kind)}\n---\n\n{_wrap(text)}\n"


def write_cards(folder: str | os.PathLike[str]) -> int:
    """Writes the card of each model of the zoo, NAME.md, and gives their number.

    Args:
        folder: made if it is not there.

    Raises:
        OSError: a file cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    for name in MODELS:
        write_whole(make_card(name), os.path.join(folder, f"{name}.md"))
    return len(MODELS)


@functools.cache
def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _variants(kind: str) -> dict[str, str]:
    """The texts of zoo_variants.md for one kind of models, by name. Each follows a line <!-- name: kind, kind -->."""
    _, *parts = re.split(r"^<!-- (\w+): (.+) -->\n", _template("zoo_variants.md"), flags=re.MULTILINE)
    triples = zip(*(parts[start::3] for start in range(3)), strict=True)
    return {name: text.strip() for name, kinds, text in triples if kind in kinds.split(", ")}


def _values(name: str, released: Released, measured: Measured) -> dict[str, object]:
    """What the templates say of one model, by name."""
    config, size, is_cait = measured.config, measured.image_size, measured.kind == "cait"
    grid, digits = size // config.patch_size, 2 if is_cait else 1
    patches = f"{grid**2} patches ({grid} x {grid}, of {config.patch_size} x {config.patch_size} pixels)"
    values = {
        "name": name,
        "classify_an_image": CLASSIFY_AN_IMAGE,
        "what_other_lines_do": WHAT_OTHER_LINES_DO,
        "title": released.title,
        "weights": f"timm/{name}.fb_dist_in1k" if is_cait else f"facebook/{name.replace('_', '-')}",
        "top1": f"{released.top1:.{digits}f}",
        "top5": f"{released.top5:.{digits}f}",
        "source": released.source.name,
        "source_url": released.source.url,
        "note": released.note,
        "epochs": released.epochs,
        "fine_tuned": "$then_fine_tuned" if released.is_fine_tuned else "",
        "recipes": "$one_recipe" if len(released.recipes) == 1 else "$some_recipes",
        "commands": _commands(released.recipes),
        "parameters": f"{measured.parameters:,}",
        "millions": f"{measured.parameters / 1e6:.1f}",
        "gflop": f"{measured.flops / 1e9:.3g}",
        "batch_arguments": "$small_batches\n    " if measured.flops > _LARGE else "",
        "size": size,
        "resized": measured.resized,
        "crop_ratio": measured.crop_ratio,
        "timm_crop_ratio": "0.9" if size == 224 else "1.0",
        "width": config.hidden_size,
        "feed_forward": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": f"{config.num_attention_heads} heads of {config.hidden_size // config.num_attention_heads}",
        "patches": patches,
        "tokens": grid**2 + (2 if measured.kind == "distilled" else 1),
    }
    if is_cait:
        values |= {"class_layers": config.num_class_layers, "layer_scale": _scientific(config.layer_scale_init)}
    return values


def _commands(recipes: Sequence[str]) -> str:
    start = "accelerate launch --config_file scripts/accelerate_configs/gpu_8.yaml scripts/train.py"
    return "\n".join(f"{start} \\\n    --recipe {recipe}" for recipe in recipes)


def _metadata(name: str, released: Released, kind: str) -> str:
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=_DATASET,
            dataset_name="ImageNet-1k",
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=f"Top-{k} accuracy in percent, quoted",
            metric_value=value,
            verified=False,
            source_name=f"Quoted from {released.source.name}, not measured with this code",
            source_url=released.source.url,
        )
        for k, value in ((1, released.top1), (5, released.top5))
    ]
    family = "cait" if kind == "cait" else "deit"
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision", family, *([] if kind == "plain" else ["distillation"])],
        datasets=[_DATASET],
        metrics=["accuracy"],
        model_name=name,
        eval_results=results,
    ).to_yaml()


def _wrap(text: str) -> str:
    """Wraps a text's paragraphs and list items. Headings, tables and blocks of code stay as they are."""
    blocks = []
    for number, part in enumerate(re.split(r"^(```.*?^```)$", text, flags=re.MULTILINE | re.DOTALL)):
        if number % 2:  # a block of code, with its fences
            blocks.append(part)
            continue
        for block in filter(None, re.split(r"\n\s*\n", part.strip())):
            if block.startswith(("#", "|")):
                blocks.append(block)
            elif block.startswith("- "):
                items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
                blocks.append("\n".join(_fill(item, "- ", "  ") for item in items))
            else:
                blocks.append(_fill(block))
    return "\n\n".join(blocks)


def _fill(text: str, first: str = "", rest: str = "") -> str:
    """Wraps a paragraph, but neither code nor the texts of links."""
    text = " ".join(text.split())
    text = re.sub(r"`[^`]*`|\[[^\]]*\]", lambda match: match[0].replace(" ", "\0"), text)
    text = textwrap.fill(
        text,
        width=119,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return text.replace("\0", " ")


def _scientific(value: float) -> str:
    """1e-5, as people write it."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
