"""Contract: the cards are what scripts/make_model_cards.py writes, the Hub understands them, they say what is true of
the models and quote what the sources say, and their code and commands work.

What is quoted (the authors' README, timm's table) is written out here again, so that the package's table cannot drift.
"""

import ast
import contextlib
import dataclasses
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from support.main_of import load_script
from transformers import DeiTForImageClassificationWithTeacher, ViTForImageClassification

from hf_deit import CaiTForImageClassification, DistilledDeiTImageProcessor, create_model, list_models, load_student
from hf_deit.data.arguments import DataArguments
from hf_deit.recipes import list_recipes, load_recipe
from hf_deit.recipes.resolve import resolve_arguments
from hf_deit.training.arguments import DistillationTrainingArguments, ModelArguments

ROOT = Path(__file__).parents[2]
CARDS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "model_cards").iterdir())}
DEIT = [name for name in list_models() if name.startswith("deit_")]
CAIT = [name for name in list_models() if name.startswith("cait_")]

# Top-1 and top-5. DeiT: facebookresearch/deit, README_deit.md; CaiT: timm's results-imagenet.csv, *.fb_dist_in1k.
QUOTED = {
    "deit_tiny_patch16_224": (72.2, 91.1),
    "deit_small_patch16_224": (79.9, 95.0),
    "deit_base_patch16_224": (81.8, 95.6),
    "deit_base_patch16_384": (82.9, 96.2),
    "deit_tiny_distilled_patch16_224": (74.5, 91.9),
    "deit_small_distilled_patch16_224": (81.2, 95.4),
    "deit_base_distilled_patch16_224": (83.4, 96.5),
    "deit_base_distilled_patch16_384": (85.2, 97.2),
    "cait_xxs24_224": (78.40, 94.33),
    "cait_xxs24_384": (80.95, 95.64),
    "cait_xxs36_224": (79.75, 94.87),
    "cait_xxs36_384": (82.20, 96.15),
    "cait_xs24_384": (84.06, 96.89),
    "cait_s24_224": (83.48, 96.59),
    "cait_s24_384": (85.05, 97.35),
    "cait_s36_384": (85.46, 97.48),
    "cait_m36_384": (86.06, 97.73),
    "cait_m48_448": (86.48, 97.75),
}
# Top-1 that another source gives: table 5 of the DeiT paper; facebookresearch/deit, README_cait.md.
ALSO_QUOTED = {
    "deit_small_patch16_224": 79.8,
    "deit_base_patch16_384": 83.1,
    "deit_base_distilled_patch16_384": 84.5,
    "cait_xs24_384": 84.1,
    "cait_s24_224": 83.5,
    "cait_s24_384": 85.1,
    "cait_s36_384": 85.4,
    "cait_m36_384": 86.1,
    "cait_m48_448": 86.5,
}
PARAMETERS = {  # millions, of timm's models
    "deit_tiny_patch16_224": 5.717,
    "deit_small_patch16_224": 22.051,
    "deit_base_patch16_224": 86.568,
    "deit_base_patch16_384": 86.859,
    "deit_tiny_distilled_patch16_224": 5.911,
    "deit_small_distilled_patch16_224": 22.436,
    "deit_base_distilled_patch16_224": 87.338,
    "deit_base_distilled_patch16_384": 87.630,
    "cait_xxs24_224": 11.956,
    "cait_xxs24_384": 12.029,
    "cait_xxs36_224": 17.300,
    "cait_xxs36_384": 17.373,
    "cait_xs24_384": 26.670,
    "cait_s24_224": 46.916,
    "cait_s24_384": 47.062,
    "cait_s36_384": 68.367,
    "cait_m36_384": 271.221,
    "cait_m48_448": 356.461,
}
GFLOP = {  # known of some
    "deit_tiny_distilled_patch16_224": 2.52,
    "deit_small_distilled_patch16_224": 9.25,
    "deit_base_distilled_patch16_224": 35.31,
    "deit_base_distilled_patch16_384": 111.2,
    "cait_s24_384": 64.2,
}
# Width, heads, layers (and LayerScale's initial value), of the papers.
SIZES = {
    "deit_tiny": (192, 3, 12),
    "deit_small": (384, 6, 12),
    "deit_base": (768, 12, 12),
    "cait_xxs24": (192, 4, 24, "1e-5"),
    "cait_xxs36": (192, 4, 36, "1e-5"),
    "cait_xs24": (288, 6, 24, "1e-5"),
    "cait_s24": (384, 8, 24, "1e-5"),
    "cait_s36": (384, 8, 36, "1e-6"),
    "cait_m36": (768, 16, 36, "1e-6"),
    "cait_m48": (768, 16, 48, "1e-6"),
}
RECIPES = {
    "deit_tiny_patch16_224": ["deit_tiny"],
    "deit_small_patch16_224": ["deit_small"],
    "deit_base_patch16_224": ["deit_base"],
    "deit_base_patch16_384": ["deit_base", "deit_base_384"],
    "deit_tiny_distilled_patch16_224": ["deit_tiny_distilled"],
    "deit_small_distilled_patch16_224": ["deit_small_distilled"],
    "deit_base_distilled_patch16_224": ["deit_base_distilled"],
    "deit_base_distilled_patch16_384": [
        *("deit_base_distilled_1000_epochs", "regnety_160_384", "deit_base_distilled_1000_epochs_384")
    ],
}

every_model = pytest.mark.parametrize("name", list_models())


def size_of(name: str) -> tuple:
    return SIZES["_".join(name.split("_")[:2])]


def is_distilled(name: str) -> bool:
    return "_distilled_" in name or name in CAIT


def row(name: str, key: str) -> str:
    (value,) = re.findall(rf"^\| {key} \| (.*) \|$", CARDS[name], flags=re.MULTILINE)
    return value


def section(name: str, title: str) -> str:
    """A section's text, as one line a paragraph."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", CARDS[name], flags=re.MULTILINE | re.DOTALL)
    return text


def prose(name: str, title: str) -> str:
    return " ".join(re.sub(r"```.*?```", "", section(name, title), flags=re.DOTALL).split())


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", CARDS[name], flags=re.DOTALL)


def commands(name: str) -> list[list[str]]:
    lines = "\n".join(blocks(name, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def training_commands(name: str) -> list[list[str]]:
    """The options of those that call scripts/train.py."""
    found = []
    for command in commands(name):
        if command[:2] == ["accelerate", "launch"]:
            script = command.index("scripts/train.py")
            launching = command[2:script]
            assert launching in ([], ["--config_file", "scripts/accelerate_configs/gpu_8.yaml"])
            assert all((ROOT / part).is_file() for part in [*launching[1:], "scripts/train.py"])
            found.append(command[script + 1 :])
    return found


# The files


def test_the_cards_are_exactly_what_the_script_writes(tmp_path):
    assert load_script("make_model_cards").main([str(tmp_path)]) == 0
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert set(written) == {f"{name}.md" for name in CARDS}
    for file, text in written.items():
        assert text == CARDS[file.removesuffix(".md")], f"{file}: run python scripts/make_model_cards.py"


def test_there_is_one_card_for_each_model_of_the_zoo():
    assert set(CARDS) == set(list_models())
    assert len(CARDS) == len(list((ROOT / "model_cards").iterdir())) == 18


# What the Hub reads


@every_model
def test_metadata(name):
    card = ModelCard(CARDS[name])
    family = name.split("_")[0]
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.datasets == ["ILSVRC/imagenet-1k"]
    assert card.data.metrics == ["accuracy"]
    assert card.data.tags == ["image-classification", "vision", family, *["distillation"] * is_distilled(name)]
    assert card.data.model_name == name
    known = {"license", "library_name", "pipeline_tag", "datasets", "metrics", "tags", "model-index"}
    assert set(card.data.to_dict()) == known
    assert card.text.lstrip().startswith(f"# {name}\n")


@every_model
def test_model_index_quotes_its_source(name):
    top1, top5 = ModelCard(CARDS[name]).data.eval_results
    assert (top1.metric_value, top5.metric_value) == QUOTED[name]
    repository = "facebookresearch/deit" if name in DEIT else "huggingface/pytorch-image-models"
    for k, result in ((1, top1), (5, top5)):
        assert result.task_type == "image-classification"
        assert (result.dataset_type, result.dataset_split) == ("ILSVRC/imagenet-1k", "validation")
        assert result.metric_type == "accuracy"
        assert result.metric_name == f"Top-{k} accuracy in percent, quoted"
        assert result.verified is False
        assert result.source_name.startswith("Quoted from ")
        assert result.source_name.endswith(", not measured with this code")
        assert result.source_url.startswith(f"https://github.com/{repository}/blob/main/")


# What is quoted


@every_model
def test_accuracies_are_those_of_the_sources(name):
    top1, top5 = QUOTED[name]
    digits = 1 if name in DEIT else 2
    text = prose(name, "Accuracy")
    assert text.startswith(f"**{top1:.{digits}f} top-1 and {top5:.{digits}f} top-5**, in percent of the 50,000")
    assert "Quoted from [" in text
    assert "not measured with this code" in text
    others = [float(number) for number in re.findall(r"gives (\d+\.\d+) top-1", text)]
    assert others == ([ALSO_QUOTED[name]] if name in ALSO_QUOTED else [])


@every_model
def test_no_accuracy_stands_outside_its_section(name):
    body = ModelCard(CARDS[name]).text.replace(section(name, "Accuracy"), "")
    assert not re.search(r"\btop-[15]\b", body, flags=re.IGNORECASE)


@every_model
def test_no_card_claims_the_weights(name):
    text = " ".join(ModelCard(CARDS[name]).text.split())
    assert "trained and released by the paper's authors" in text
    assert "it has published none of its own" in text
    assert not re.search(r"\b(we|our|us|ours)\b", text, flags=re.IGNORECASE)
    assert not re.search(r"(?:trained|measured|released|published) (?:by|with) (?:hf_deit|this)(?! code)", text)
    for match in re.finditer(r"with this code", text):
        before = text[: match.start()]
        assert before.endswith(("not measured ", "of which no run has been done "))


@every_model
def test_no_card_names_a_path_outside_the_repository(name):
    assert not re.search(r"(?<![\w.:/])[/~]\w|[A-Z]:\\", re.sub(r"https://\S+", "", CARDS[name]))


# What is true of the models


def estimated_flops(name: str) -> float:
    """Two per multiply-add of the matrix products, counted on paper."""
    width, heads, layers, *is_cait = size_of(name)
    patches = (int(name[-3:]) // 16) ** 2
    embedding = 2 * patches * 3 * 16**2 * width
    if not is_cait:
        special = 2 if "_distilled_" in name else 1
        tokens = patches + special
        layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
        return embedding + layers * layer + special * 2 * width * 1000
    layer = 2 * patches * 12 * width**2 + 4 * patches**2 * width + 4 * heads**2 * patches**2
    tokens = patches + 1
    class_layer = 2 * (10 + 2 * tokens) * width**2 + 4 * tokens * width
    return embedding + layers * layer + 2 * class_layer + 2 * width * 1000


@every_model
def test_parameters_and_computation(name):
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in create_model(name).parameters())
    assert row(name, "Parameters") == f"{counted:,} ({counted / 1e6:.1f} M)"
    assert round(counted / 1e6, 3) == PARAMETERS[name]
    gflop = float(re.match(r"([\d.]+) GFLOP an image, forward, 2 FLOP per multiply-add$", row(name, "Computation"))[1])
    assert gflop == pytest.approx(estimated_flops(name) / 1e9, rel=0.01)
    assert gflop == pytest.approx(GFLOP.get(name, gflop), rel=0.01)


@every_model
def test_architecture(name):
    width, heads, layers, *scale = size_of(name)
    size, grid = int(name[-3:]), int(name[-3:]) // 16
    patches = f"{grid**2} patches ({grid} x {grid}, of 16 x 16 pixels)"
    each = f"each with {heads} heads of {width // heads}"
    assert row(name, "Input") == f"RGB, {size} x {size} pixels"
    assert row(name, "Width") == f"{width}, in the feed-forward layers {4 * width}"
    if scale:
        assert row(name, "LayerScale") == f"starts at {scale[0]}"
        assert row(name, "Self-attention layers").startswith(f"{layers}, {each} that talk")
        assert row(name, "Class-attention layers") == f"2, {each}"
        assert row(name, "Tokens").startswith(f"{patches}; the class token joins in the class-attention layers")
        assert row(name, "Tokens").endswith("no distillation token")
    else:
        special = ["class", "distillation"][: 1 + is_distilled(name)]
        assert row(name, "Layers") == f"{layers}, {each}"
        assert row(name, "Tokens") == f"{grid**2 + len(special)}: {', '.join(special)}, {patches}"


@every_model
def test_evaluation_transform_and_what_timm_says(name):
    theirs = timm.get_pretrained_cfg(name)
    size = int(name[-3:])
    resized, ratio = ({224: 256, 384: 438}[size], 0.875) if name in DEIT else (size, 1.0)
    text = prose(name, "Evaluation transform")
    assert text.startswith(
        f"The shorter side resized to {resized} pixels (bicubic), a centre crop of {size} x {size} "
    )
    assert f"(crop ratio {ratio})" in text
    assert f"mean {', '.join(map(str, theirs.mean))}, standard deviation {', '.join(map(str, theirs.std))}" in text
    assert theirs.input_size == (3, size, size)
    assert theirs.interpolation == "bicubic"
    if name in CAIT:
        assert theirs.crop_pct == ratio
    else:
        assert f"timm's own table differs a little: it evaluates with a crop ratio of {theirs.crop_pct}" in prose(
            name, "Accuracy"
        )


@every_model
def test_released_weights(name):
    timm_name = timm.get_pretrained_cfg(name)
    expected = f"facebook/{name.replace('_', '-')}" if name in DEIT else f"timm/{name}.{timm_name.tag}"
    assert row(name, "Released weights") == f"[{expected}](https://huggingface.co/{expected})"
    assert name in DEIT or timm_name.hf_hub_id == expected
    named = set(re.findall(r"\b(?:facebook|timm)/[\w.-]+", re.sub(r"https?://\S+", "", CARDS[name])))
    assert named == {expected}


@every_model
def test_teacher_data_limits_and_citation(name):
    training = prose(name, "How it was trained")
    assert ("RegNetY-16GF" in training) == ("hard distillation" in training) == is_distilled(name)
    assert ("from the labels alone" in training) == (not is_distilled(name))
    assert "(https://huggingface.co/datasets/ILSVRC/imagenet-1k)" in training
    assert ("fine-tuned at" in training) == (not name.endswith("_224"))
    limits = prose(name, "Limits and biases")
    for words in ("1,000 classes", "labels are noisy", "North America and Europe", "apparent age and gender"):
        assert words in limits
    assert "not for identifying people" in limits
    cited = re.findall(r"eprint += \{([\d.]+)\}", section(name, "Citation"))
    assert cited == (["2012.12877"] if name in DEIT else ["2103.17239", "2012.12877"])
    assert f"(https://arxiv.org/abs/{cited[0]})" in CARDS[name]


# What can be run

FIELDS = {
    field.name
    for part in (ModelArguments, DataArguments, DistillationTrainingArguments)
    for field in dataclasses.fields(part)
}


@every_model
def test_every_option_exists(name):
    text = ModelCard(CARDS[name]).text
    for code in re.findall(r"`(--[^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert set(re.findall(r"--(\w+)", code)) <= FIELDS | {"recipe"}
        assert set(re.findall(r"--recipe (\w+)", code)) <= set(list_recipes())
    for options in training_commands(name):
        assert {option[2:] for option in options if option.startswith("--")} - {"recipe"} <= FIELDS
        assert options[0] == "--recipe"
        assert options[1] in list_recipes()
        resolve_arguments([*options, "--use_cpu", "true"])  # refuses what the fields do not take


@every_model
def test_recipes_are_those_of_the_model(name):
    fine_tuning, *recipes = training_commands(name)
    assert fine_tuning[1] == "own_images"
    assert [options[1] for options in recipes] == RECIPES.get(name, [])
    if name in CAIT:
        assert "no recipe of the CaiT paper" in prose(name, "How it was trained")
        assert f"`--student {name} --crop_ratio 1.0`" in prose(name, "How it was trained")
        return
    trained = {load_recipe(options[1])["student"] for options in recipes}
    assert name.replace("_384", "_224") in trained
    if name.endswith("_384"):
        model_args, _, args = resolve_arguments([*recipes[-1], "--use_cpu", "true"])
        assert model_args.image_size == 384
        assert model_args.student == load_recipe(recipes[0][1])["output_dir"]
        assert args.distillation_type == ("hard" if is_distilled(name) else "none")


@every_model
def test_code_is_python_of_this_projects_width(name):
    for code in blocks(name, "python"):
        compile(code, name, "exec")
    for code in [*blocks(name, "python"), *blocks(name, "bash")]:
        assert max(map(len, code.splitlines())) <= 119


@every_model
def test_only_a_cait_needs_code_from_its_folder(name):
    """Where hf_deit is imported, its own class opens the folder either way: running the code does not tell."""
    loading = [code for code in blocks(name, "python") if "trust_remote_code=True" in code]
    assert len(loading) == (name in CAIT)
    assert all("hf_deit" not in code for code in loading)


@every_model
def test_code_with_create_model_runs(name):
    (code,) = [code for code in blocks(name, "python") if "create_model" in code]
    found = {}
    with torch.device("meta"):
        exec(compile(code, name, "exec"), found)
    config = found["model"].config
    assert (config.id2label, config.drop_path_rate) == ({0: "cat", 1: "dog"}, 0.1)
    assert config.image_size == int(name[-3:])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save("image.png")
    return tmp_path


def run(code: str) -> tuple[dict, str]:
    found, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "card", "exec"), found)
    return found, printed.getvalue().strip()


def stand_in(name: str) -> None:
    """One layer, not trained, where the card looks for the released weights, as they are published there."""
    model = create_model(name, num_hidden_layers=1, layer_norm_eps=1e-12, id2label={0: "ant", 1: "bee", 2: "cow"})
    model.save_pretrained(row(name, "Released weights").split("]")[0][1:])


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_code_of_a_deit(name, here):
    stand_in(name)
    with_transformers, with_hf_deit, _ = blocks(name, "python")
    found, printed = run(with_transformers)
    assert {answer["label"] for answer in ast.literal_eval(printed)} == {"ant", "bee", "cow"}
    native = DeiTForImageClassificationWithTeacher if is_distilled(name) else ViTForImageClassification
    assert type(found["model"]) is native
    assert f"the model is a `{native.__name__}`" in prose(name, "With transformers")

    found, _ = run(with_hf_deit)
    assert found["model"].config.layer_norm_eps == 1e-6
    model_args, _, _ = resolve_arguments([*training_commands(name)[0], "--use_cpu", "true"])
    student, processor = load_student(
        model_args.student,
        id2label={0: "x", 1: "y"},
        replace_head=model_args.replace_head,
        overrides=model_args.student_overrides,
    )
    assert type(student) is type(found["model"])
    assert (student.config.num_labels, student.config.layer_norm_eps) == (2, 1e-6)
    assert processor.to_dict() == found["processor"].to_dict()


@pytest.mark.parametrize("name", DEIT)
def test_the_stated_processor_is_the_authors_evaluation(name, here):
    code = blocks(name, "python")[0]
    found, _ = run(code[: code.index("model =")])
    size = int(name[-3:])
    image = Image.open("image.png")
    theirs = found["processor"](image, return_tensors="pt")["pixel_values"]
    ours = DistilledDeiTImageProcessor(crop_size=size)(image, return_tensors="pt")["pixel_values"]
    assert theirs.shape == (1, 3, size, size)
    assert torch.equal(theirs, ours)
    assert f"DistilledDeiTImageProcessor(crop_size={size})" in blocks(name, "python")[1]


def test_code_of_a_cait(here):
    name = "cait_xxs24_224"
    weights = Path(row(name, "Released weights").split("]")[0][1:])
    theirs = timm.create_model(name)
    weights.mkdir(parents=True)
    save_file(theirs.state_dict(), weights / "model.safetensors", metadata={"format": "pt"})
    settings = {key: value for key, value in theirs.pretrained_cfg.items() if isinstance(value, str | int | float)}
    settings |= {key: list(theirs.pretrained_cfg[key]) for key in ("input_size", "mean", "std")}
    config = {"architecture": name, "num_classes": 1000, "num_features": 192, "pretrained_cfg": settings}
    (weights / "config.json").write_text(json.dumps(config))

    with_transformers, carrying_its_code, _ = blocks(name, "python")
    found, printed = run(with_transformers)
    assert ast.literal_eval(printed)[0]["label"] in found["classify"].model.config.id2label.values()
    pixels = found["classify"].image_processor(Image.open("image.png"), return_tensors="pt")["pixel_values"]

    download, convert = (command for command in commands(name) if command[0] != "accelerate")
    assert download[:2] == ["hf", "download"]
    assert download[2:4] == [str(weights), "--local-dir"]
    assert convert[:2] == ["python", "scripts/convert_checkpoint.py"]
    assert convert[2] == download[4]
    Path(download[4]).parent.mkdir(exist_ok=True)
    weights.rename(download[4])
    assert load_script("convert_checkpoint").main(convert[2:]) == 0
    converted, _ = run(carrying_its_code)
    ours = converted["processor"](Image.open("image.png"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, pixels, atol=1.01 / 255 / 0.224, rtol=0)  # one grey level
    with torch.no_grad():
        torch.testing.assert_close(converted["model"].eval()(pixels).logits, theirs.eval()(pixels), atol=1e-4, rtol=0)

    model_args, _, _ = resolve_arguments([*training_commands(name)[0], "--use_cpu", "true"])
    student, processor = load_student(
        model_args.student,
        id2label={0: "x", 1: "y"},
        replace_head=model_args.replace_head,
        overrides=model_args.student_overrides,
    )
    assert type(student) is CaiTForImageClassification
    assert student.config.num_labels == 2
    assert (processor.size.shortest_edge, processor.crop_size.height) == (224, 224)
