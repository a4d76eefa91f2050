"""Writes the model cards of the zoo, model_cards/NAME.md, from the table below and from the models themselves.

python scripts/make_model_cards.py [FOLDER]
"""

import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCardData
from torch.utils.flop_counter import FlopCounterMode

from hf_deit import CaiTConfig, DistilledDeiTConfig, DistilledDeiTImageProcessor, create_model
from hf_deit.models.configuration_deit import DeiTConfigBase

FOLDER = Path(__file__).parent.parent / "model_cards"
DATASET = "ILSVRC/imagenet-1k"
# FLOP of one image from which on a device may not hold the 64 images of the recipe at once.
_LARGE = 50e9


@dataclass(frozen=True)
class Source:
    """Where quoted accuracies stand."""

    name: str
    url: str


AUTHORS = Source(
    "the authors' README (facebookresearch/deit)",
    "https://github.com/facebookresearch/deit/blob/main/README_deit.md",
)
TIMM = Source(
    "timm's results table (results-imagenet.csv)",
    "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv",
)


@dataclass(frozen=True)
class Facts:
    """What a model's code does not tell.

    Attributes:
        title: the paper's name of the model.
        weights: Hub id of the released weights.
        top1, top5: quoted accuracies on the validation images of ImageNet-1k, in percent.
        source: which these are quoted from.
        epochs: of the released weights' training at 224 pixels, where the source says.
        fine_tuned: whether they were then fine-tuned at the model's resolution.
        recipes: of this repository, in the order in which they are run.
        note: on the quoted accuracies.
    """

    title: str
    weights: str
    top1: float
    top5: float
    source: Source
    epochs: int | None = None
    fine_tuned: bool = False
    recipes: tuple[str, ...] = ()
    note: str = ""


def _deit(title: str, weights: str, top1: float, top5: float, *recipes: str, **more) -> Facts:
    facts = {"epochs": 300, "fine_tuned": "384" in title, **more}
    return Facts(title, f"facebook/{weights}", top1, top5, AUTHORS, recipes=recipes, **facts)


def _cait(title: str, weights: str, top1: float, top5: float, authors: float | None = None, note: str = "") -> Facts:
    if authors is not None:
        note = f"The authors' README gives {authors} top-1. {note}".strip()
    fine_tuned = "↑" in title
    return Facts(title, f"timm/{weights}.fb_dist_in1k", top1, top5, TIMM, fine_tuned=fine_tuned, note=note)


MODELS = {
    "deit_tiny_patch16_224": _deit("DeiT-Ti", "deit-tiny-patch16-224", 72.2, 91.1, "deit_tiny"),
    "deit_small_patch16_224": _deit(
        *("DeiT-S", "deit-small-patch16-224", 79.9, 95.0, "deit_small"),
        note="The paper's table 5 gives 79.8 top-1.",
    ),
    "deit_base_patch16_224": _deit("DeiT-B", "deit-base-patch16-224", 81.8, 95.6, "deit_base"),
    "deit_base_patch16_384": _deit(
        *("DeiT-B↑384", "deit-base-patch16-384", 82.9, 96.2, "deit_base", "deit_base_384"),
        note="The paper's table 5 gives 83.1 top-1.",
    ),
    "deit_tiny_distilled_patch16_224": _deit(
        *("DeiT-Ti⚗", "deit-tiny-distilled-patch16-224", 74.5, 91.9, "deit_tiny_distilled")
    ),
    "deit_small_distilled_patch16_224": _deit(
        *("DeiT-S⚗", "deit-small-distilled-patch16-224", 81.2, 95.4, "deit_small_distilled")
    ),
    "deit_base_distilled_patch16_224": _deit(
        *("DeiT-B⚗", "deit-base-distilled-patch16-224", 83.4, 96.5, "deit_base_distilled")
    ),
    "deit_base_distilled_patch16_384": _deit(
        *("DeiT-B⚗↑384", "deit-base-distilled-patch16-384", 85.2, 97.2),
        *("deit_base_distilled_1000_epochs", "regnety_160_384", "deit_base_distilled_384"),
        epochs=1000,
        note="After 300 epochs instead of 1000 the paper's table 5 gives 84.5 top-1.",
    ),
    "cait_xxs24_224": _cait("CaiT-XXS-24", "cait_xxs24_224", 78.40, 94.33),
    "cait_xxs24_384": _cait("CaiT-XXS-24↑384", "cait_xxs24_384", 80.95, 95.64),
    "cait_xxs36_224": _cait("CaiT-XXS-36", "cait_xxs36_224", 79.75, 94.87),
    "cait_xxs36_384": _cait("CaiT-XXS-36↑384", "cait_xxs36_384", 82.20, 96.15),
    "cait_xs24_384": _cait("CaiT-XS-24↑384", "cait_xs24_384", 84.06, 96.89, authors=84.1),
    "cait_s24_224": _cait("CaiT-S-24", "cait_s24_224", 83.48, 96.59, authors=83.5),
    "cait_s24_384": _cait("CaiT-S-24↑384", "cait_s24_384", 85.05, 97.35, authors=85.1),
    "cait_s36_384": _cait("CaiT-S-36↑384", "cait_s36_384", 85.46, 97.48, authors=85.4),
    "cait_m36_384": _cait("CaiT-M-36↑384", "cait_m36_384", 86.06, 97.73, authors=86.1),
    "cait_m48_448": _cait(
        *("CaiT-M-48↑448", "cait_m48_448", 86.48, 97.75),
        authors=86.5,
        note="It also advises to evaluate this model in float32.",
    ),
}

DEIT_BIBTEX = r"""@inproceedings{touvron2021training,
  title         = {Training data-efficient image transformers \& distillation through attention},
  author        = {Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and
                   Sablayrolles, Alexandre and J{\'e}gou, Herv{\'e}},
  booktitle     = {International Conference on Machine Learning},
  pages         = {10347--10357},
  year          = {2021},
  eprint        = {2012.12877},
  archivePrefix = {arXiv}
}"""
CAIT_BIBTEX = r"""@inproceedings{touvron2021going,
  title         = {Going deeper with image transformers},
  author        = {Touvron, Hugo and Cord, Matthieu and Sablayrolles, Alexandre and Synnaeve, Gabriel and
                   J{\'e}gou, Herv{\'e}},
  booktitle     = {IEEE/CVF International Conference on Computer Vision},
  pages         = {32--42},
  year          = {2021},
  eprint        = {2103.17239},
  archivePrefix = {arXiv}
}"""


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


def measure(name: str) -> Measured:
    """Counts a model of the zoo on the meta device: nothing is computed, nothing is stored."""
    with torch.device("meta"):
        model = create_model(name).eval()
    size = model.config.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    crop_ratio = 1.0 if isinstance(model.config, CaiTConfig) else 0.875
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
    facts, measured = MODELS[name], measure(name)
    is_cait = isinstance(measured.config, CaiTConfig)
    sections = [
        f"---\n{_metadata(name, facts, measured)}\n---",
        f"# {name}",
        _introduction(facts, measured),
        _table(facts, measured),
        "## Accuracy",
        _accuracy(facts, measured),
        "## Evaluation transform",
        _transform(facts, measured),
        "## With transformers",
        _cait_with_transformers(facts) if is_cait else _deit_with_transformers(facts, measured),
        "## With hf_deit",
        _cait_with_hf_deit(name, facts) if is_cait else _deit_with_hf_deit(name, facts, measured),
        "## Fine-tune on your images",
        _fine_tuning(name, measured),
        "## How it was trained",
        _training(name, facts, measured),
        "## Limits and biases",
        _limits(),
        "## Citation",
        _code("bibtex", f"{CAIT_BIBTEX}\n\n{DEIT_BIBTEX}" if is_cait else DEIT_BIBTEX),
    ]
    return "\n\n".join(sections) + "\n"


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        (folder / f"{name}.md").write_text(make_card(name), encoding="utf-8")
    print(f"{len(MODELS)} cards written to {folder}")
    return 0


def _metadata(name: str, facts: Facts, measured: Measured) -> str:
    family = "cait" if isinstance(measured.config, CaiTConfig) else "deit"
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=DATASET,
            dataset_name="ImageNet-1k",
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=f"Top-{k} accuracy in percent, quoted",
            metric_value=value,
            verified=False,
            source_name=f"Quoted from {facts.source.name}, not measured with this code",
            source_url=facts.source.url,
        )
        for k, value in ((1, facts.top1), (5, facts.top5))
    ]
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision", family, *(["distillation"] if _is_distilled(measured.config) else [])],
        datasets=[DATASET],
        metrics=["accuracy"],
        model_name=name,
        eval_results=results,
    ).to_yaml()


def _is_distilled(config: DeiTConfigBase) -> bool:
    """Whether the released weights were distilled."""
    return isinstance(config, DistilledDeiTConfig | CaiTConfig)


def _introduction(facts: Facts, measured: Measured) -> str:
    if isinstance(measured.config, CaiTConfig):
        what = (
            f"{facts.title} of [Touvron et al. 2021](https://arxiv.org/abs/2103.17239), a deep vision "
            "transformer that classifies images: self-attention layers with talking heads see the patches alone, and "
            "class-attention layers behind them gather the patches into the class token. LayerScale weights every "
            "residual branch."
        )
    else:
        what = (
            f"{facts.title} of [Touvron et al. 2021](https://arxiv.org/abs/2012.12877), a vision transformer that "
            "classifies images"
        )
        if isinstance(measured.config, DistilledDeiTConfig):
            what += (
                ". Beside the class token, which learns the true label, it has a distillation token, which learns the "
                "decision of a teacher. Each has its own classifier, and the mean of the two logits answers."
            )
        else:
            what += ": an ordinary ViT, without distillation token."
    return _paragraphs(
        what,
        "The weights that this card speaks of were trained and released by the paper's authors. hf_deit makes the "
        "architecture and opens the weights; it has published none of its own.",
    )


def _table(facts: Facts, measured: Measured) -> str:
    config, size = measured.config, measured.image_size
    grid = size // config.patch_size
    patches = f"{grid**2} patches ({grid} x {grid}, of {config.patch_size} x {config.patch_size} pixels)"
    rows = [
        ("Input", f"RGB, {size} x {size} pixels"),
        ("Output", "logits of the 1,000 classes of ImageNet-1k"),
        ("Parameters", f"{measured.parameters:,} ({measured.parameters / 1e6:.1f} M)"),
        ("Computation", f"{measured.flops / 1e9:.3g} GFLOP an image, forward, 2 FLOP per multiply-add"),
        ("Width", f"{config.hidden_size}, in the feed-forward layers {config.intermediate_size}"),
    ]
    heads = f"{config.num_attention_heads} heads of {config.hidden_size // config.num_attention_heads}"
    if isinstance(config, CaiTConfig):
        rows += [
            (
                "Self-attention layers",
                f"{config.num_hidden_layers}, each with {heads} that talk before and after the softmax",
            ),
            ("Class-attention layers", f"{config.num_class_layers}, each with {heads}"),
            ("LayerScale", f"starts at {_scientific(config.layer_scale_init)}"),
            ("Tokens", f"{patches}; the class token joins in the class-attention layers; no distillation token"),
        ]
    else:
        special = ("class", "distillation") if isinstance(config, DistilledDeiTConfig) else ("class",)
        rows += [
            ("Layers", f"{config.num_hidden_layers}, each with {heads}"),
            ("Tokens", f"{grid**2 + len(special)}: {', '.join(special)}, {patches}"),
        ]
    rows += [
        ("Released weights", f"[{facts.weights}](https://huggingface.co/{facts.weights})"),
        ("Licence", "Apache-2.0"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _accuracy(facts: Facts, measured: Measured) -> str:
    digits = 2 if isinstance(measured.config, CaiTConfig) else 1
    text = (
        f"**{facts.top1:.{digits}f} top-1 and {facts.top5:.{digits}f} top-5**, in percent of the 50,000 validation "
        f"images of ImageNet-1k. Quoted from [{facts.source.name}]({facts.source.url}), not measured with this code."
    )
    if facts.source is TIMM:
        text += " That table's rows move by some hundredths from one version of it to the next."
    else:
        ratio = "0.9" if measured.image_size == 224 else "1.0"
        text += f" timm's own table differs a little: it evaluates with a crop ratio of {ratio}."
    if facts.note:
        text += f" {facts.note}"
    return _paragraphs(text)


def _transform(facts: Facts, measured: Measured) -> str:
    size = measured.image_size
    text = (
        f"The shorter side resized to {measured.resized} pixels (bicubic), a centre crop of {size} x {size} "
        f"(crop ratio {measured.crop_ratio}), pixels scaled to between 0 and 1, and "
        "ImageNet's statistics: mean 0.485, 0.456, 0.406, standard deviation 0.229, 0.224, 0.225. "
    )
    if isinstance(measured.config, CaiTConfig):
        text += "timm's configuration, beside the weights, says the same."
    elif isinstance(measured.config, DistilledDeiTConfig):
        text += (
            "That is the authors' evaluation. The `preprocessor_config.json` beside the weights is not: it resizes to "
            "a square. So the code below states the transform."
        )
    else:
        text += (
            "That is the authors' evaluation. The `preprocessor_config.json` beside the weights is not: it resizes to "
            "a square, crops nothing, and takes 0.5 for every mean and deviation. So the code below states the "
            "transform."
        )
    return _paragraphs(text)


_CLASSIFY = """image = Image.open("image.jpg").convert("RGB")
with torch.no_grad():
    logits = model(**processor(image, return_tensors="pt")).logits
print(model.config.id2label[logits.argmax(-1).item()])"""


def _deit_with_transformers(facts: Facts, measured: Measured) -> str:
    size = measured.image_size
    distilled = isinstance(measured.config, DistilledDeiTConfig)
    opens_as = "DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"
    return "\n\n".join(
        [
            _paragraphs(f"Without any code of this repository; the model is a `{opens_as}`:"),
            _code(
                "python",
                f"""import torch
from PIL import Image
from transformers import AutoModelForImageClassification, DeiTImageProcessor

processor = DeiTImageProcessor(
    size={{"shortest_edge": {measured.resized}}},
    crop_size={{"height": {size}, "width": {size}}},
    resample=Image.Resampling.BICUBIC,
    image_mean=[0.485, 0.456, 0.406],
    image_std=[0.229, 0.224, 0.225],
)
model = AutoModelForImageClassification.from_pretrained("{facts.weights}").eval()

{_CLASSIFY}""",
            ),
        ]
    )


def _cait_with_transformers(facts: Facts) -> str:
    return "\n\n".join(
        [
            _paragraphs(
                "transformers has no CaiT of its own. It opens the released weights through timm (`pip install timm`):"
            ),
            _code(
                "python",
                f"""import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

name = "{facts.weights}"
processor = AutoImageProcessor.from_pretrained(name)
model = AutoModelForImageClassification.from_pretrained(name).eval()

{_CLASSIFY}""",
            ),
        ]
    )


_INSTALLED = "Installed with `python -m pip install -e .` in this repository, it gives a model that trains"


def _deit_with_hf_deit(name: str, facts: Facts, measured: Measured) -> str:
    kind = "Distilled" if isinstance(measured.config, DistilledDeiTConfig) else "Plain"
    imports = ", ".join(sorted([f"{kind}DeiTForImageClassification", "DistilledDeiTImageProcessor"]))
    return "\n\n".join(
        [
            _paragraphs(
                f"{_INSTALLED}: `labels=` returns a loss, there is stochastic depth, and other image sizes "
                "interpolate the positions. The authors' LayerNorm has an epsilon of 1e-6; the published "
                "configuration says 1e-12."
            ),
            _code(
                "python",
                f"""from hf_deit import {imports}

model = {kind}DeiTForImageClassification.from_pretrained(
    "{facts.weights}", layer_norm_eps=1e-6
)
processor = DistilledDeiTImageProcessor(crop_size={measured.image_size})
model.save_pretrained("weights/{name}")
processor.save_pretrained("weights/{name}")""",
            ),
            _paragraphs("The folder opens in plain transformers as well. With fresh weights, for labels of your own:"),
            _create(name),
        ]
    )


def _cait_with_hf_deit(name: str, facts: Facts) -> str:
    return "\n\n".join(
        [
            _paragraphs(
                f"{_INSTALLED}: `labels=` returns a loss, there is stochastic depth, other image sizes "
                "interpolate the positions, and the talking heads are computed for some queries at a time, which "
                "bounds their memory. The released weights are converted once:"
            ),
            _code(
                "bash",
                f"hf download {facts.weights} --local-dir weights/timm_{name}\n"
                f"python scripts/convert_checkpoint.py weights/timm_{name} weights/{name} --to hf_deit",
            ),
            _paragraphs("The folder carries its code, so that it opens without hf_deit as well:"),
            _code(
                "python",
                f"""from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("weights/{name}")
model = AutoModelForImageClassification.from_pretrained("weights/{name}", trust_remote_code=True)""",
            ),
            _paragraphs(
                "With fresh weights, for labels of your own (`distillation_token=True` adds the token and the head of "
                "DeiT, which no released CaiT has):"
            ),
            _create(name),
        ]
    )


def _create(name: str) -> str:
    return _code(
        "python",
        f"""from hf_deit import create_model

model = create_model("{name}", id2label={{0: "cat", 1: "dog"}}, drop_path_rate=0.1)""",
    )


def _fine_tuning(name: str, measured: Measured) -> str:
    distilled = isinstance(measured.config, DistilledDeiTConfig)
    lines = [
        "accelerate launch scripts/train.py --recipe own_images",
        "--train_dir images/train --validation_dir images/val",
        f"--student weights/{name} --replace_head",
        "--teacher_model_name_or_path outputs/teacher" if distilled else "--distillation_type none",
        "--learning_rate 5e-5 --num_train_epochs 30",
    ]
    if measured.flops > _LARGE:
        lines += [
            "--per_device_train_batch_size 8 --gradient_accumulation_steps 8",
            "--per_device_eval_batch_size 8",
        ]
    lines.append(f"--output_dir outputs/{name}")
    text = (
        f"With one folder of images per class; `weights/{name}` is the folder made above. `--replace_head` gives the "
        "model new heads for your classes. "
    )
    if distilled:
        text += (
            "The teacher is any classifier of the same classes, on the Hub or in a folder; `--distillation_type none` "
            "instead of it trains both heads on your labels. "
            "`--recipe small_data`, without the learning rate and the length below, follows the authors' advice for "
            "small data sets. "
        )
    else:
        text += (
            "To distil a teacher of the same classes as well, give `--teacher_model_name_or_path` instead of "
            "`--distillation_type none`; it then teaches the one head beside the labels. "
        )
    text += (
        "Learning rate and length are a starting point: no accuracy was measured with them. `--image_size` fine-tunes "
        "at another resolution, `--freeze all_but_heads` trains the heads alone."
    )
    return "\n\n".join([_paragraphs(text), _code("bash", " \\\n    ".join(lines))])


def _training(name: str, facts: Facts, measured: Measured) -> str:
    text = (
        f"On the 1.28 million labelled training images of ImageNet-1k ([{DATASET}](https://huggingface.co/datasets/"
        f"{DATASET})), and on no others, "
    )
    size = measured.image_size
    if isinstance(measured.config, CaiTConfig):
        text += (
            "with hard distillation: the teacher is a RegNetY-16GF, itself trained on ImageNet-1k, and its decision "
            "is learnt beside the true label, by the one classifier there is"
        )
        text += f"; first at 224 pixels, then fine-tuned at {size}. " if facts.fine_tuned else ". "
        text += (
            "This repository has no recipe of the CaiT paper. Training from nothing takes "
            f"`--student {name} --crop_ratio 1.0` with a recipe of your own."
        )
        return _paragraphs(text)
    text += f"for {facts.epochs} epochs at 224 pixels"
    if isinstance(measured.config, DistilledDeiTConfig):
        text += (
            ", with hard distillation: the distillation token learns what a RegNetY-16GF, itself trained on "
            "ImageNet-1k, decides on the same augmented images"
        )
    else:
        text += ", from the labels alone"
    text += f"; then fine-tuned at {size} pixels. " if facts.fine_tuned else ". "
    text += (
        "RandAugment, mixup, CutMix, random erasing, repeated augmentation, stochastic depth and label smoothing "
        "regularise it (paper, table 9). "
    )
    if len(facts.recipes) == 1:
        text += "The same as a recipe of this repository, of which no run has been done with this code:"
    else:
        text += "The same as recipes of this repository, in this order, of which no run has been done with this code:"
    start = "accelerate launch --config_file scripts/accelerate_configs/gpu_8.yaml scripts/train.py"
    commands = [f"{start} \\\n    --recipe {recipe}" for recipe in facts.recipes]
    if "deit_base_distilled_1000_epochs" in facts.recipes:
        commands[-1] += " --student outputs/deit_base_distilled_1000_epochs"
    return "\n\n".join([_paragraphs(text), _code("bash", "\n".join(commands))])


def _limits() -> str:
    items = [
        "It answers with one of 1,000 classes, mostly objects and animals, whatever the image shows. The quoted "
        "accuracy is that of one label per image on photographs like ImageNet's; it says little about other images, "
        "other classes or several objects in one image.",
        "ImageNet's labels are noisy: at least 6 % of those of the validation images are estimated to be wrong "
        "([Northcutt et al. 2021](https://arxiv.org/abs/2103.14749)), and many images show more than their one label "
        "says ([Beyer et al. 2020](https://arxiv.org/abs/2006.07159)).",
        "Its images come mostly from North America and Europe, and classifiers trained on them do worse elsewhere "
        "([Shankar et al. 2017](https://arxiv.org/abs/1711.08536)). The people in them are unevenly spread over "
        "apparent age and gender ([Dulhanty and Wong 2019](https://arxiv.org/abs/1905.01347)). Fine-tuned models can "
        "inherit both.",
        "It is not for identifying people, nor for judging who or what they are, and by itself not for decisions on "
        "which health, safety or rights depend.",
        "ImageNet has terms of its own, beside the licence of the weights.",
    ]
    return "\n".join(_fill(item, "- ", "  ") for item in items)


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(_fill(text) for text in texts)


def _fill(text: str, first: str = "", rest: str = "") -> str:
    """Wraps a paragraph, but neither code nor the texts of links."""
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


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _scientific(value: float) -> str:
    """1e-5, as people write it."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
