"""Contract: conversions between facebookresearch's, timm's, transformers' and this package's checkpoints lose nothing.

- Every model of the zoo comes from a file of the authors' and answers as in timm and in transformers, which open by
  themselves what is written for them.
- Through any format to any other: the bits and the type of the weights, label names, image statistics, crop, fusion.
- The largest difference is what the two libraries say, each of its own checkpoint.
- A destination is whole or not there.

Weights are random; nothing is downloaded.
"""

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from support.checkpoints import (
    DISTILLED,
    KINDS,
    NATIVE,
    PLAIN,
    TINY,
    edited,
    everything_in,
    native,
    noise,
    ours,
    pth,
    randomise,
    reweighted,
    saved,
    timm_model,
    weights_of,
)
from support.files import rights_in, umask
from timm.data import create_transform, resolve_data_config
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    DeiTImageProcessor,
    ViTImageProcessor,
)

from hf_deit.commands import convert
from hf_deit.errors import InputError
from hf_deit.export.checkpoints import write as conversion
from hf_deit.export.checkpoints.checkpoint import Checkpoint
from hf_deit.export.checkpoints.compare import largest_difference
from hf_deit.export.checkpoints.read import read_checkpoint
from hf_deit.export.checkpoints.write import FORMATS, convert_checkpoint
from hf_deit.models.image_processing_deit import DistilledDeiTImageProcessor
from hf_deit.models.zoo import create_config, list_models, model_class_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"
SIZES = {**TINY, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
LABELS = ["crane", "größe, weight", "crane", "x/y", ""]
UNIQUE = ["crane (0)", "größe, weight", "crane (2)", "x/y", ""]
SETTINGS = {"crop_size": 32, "crop_ratio": 0.9, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]}


def formats_of(kind: str) -> list[str]:
    return [name for name in FORMATS if kind != "cait" or name != "transformers"]


def our_model(kind: str, dtype: torch.dtype = torch.float32, **fields) -> nn.Module:
    fusion = {} if kind == "plain" else {"fusion": "softmax"}
    return ours(KINDS[kind], LABELS, **{**SIZES, **fusion, "drop_path_rate": 0.125, **fields}).to(dtype)


def native_model(kind: str) -> nn.Module:
    return native(kind, LABELS, **SIZES)


def processor(**settings) -> DistilledDeiTImageProcessor:
    return DistilledDeiTImageProcessor(**{**SETTINGS, **settings})


def path_of(folder: Path, format: str) -> Path:
    return folder / (f"{format}.pth" if format == "facebook" else format)


def by_timms_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by transformers' names (this package's) by timm's, with the three projections in one."""
    renamed = {}
    for name, value in state.items():
        for theirs, timms in (
            ("deit.", ""),
            ("vit.", ""),
            ("cait.", ""),
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.distillation_token", "dist_token"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("class_layers.", "blocks_token_only."),
            ("layers.", "blocks."),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("layernorm.", "norm."),
            ("attention.o_proj", "attn.proj"),
            ("attention.talk_before", "attn.proj_l"),
            ("attention.talk_after", "attn.proj_w"),
            ("attention_scale", "gamma_1"),
            ("mlp_scale", "gamma_2"),
            ("distillation_classifier.", "head_dist."),
            ("cls_classifier.", "head."),
            ("classifier.", "head."),
        ):
            name = name.replace(theirs, timms)
        renamed[name] = value
    for name in [name for name in renamed if ".attention.q_proj." in name]:
        parts = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
        if name.startswith("blocks_token_only"):
            renamed |= {part.replace("attention", "attn").replace("_proj", ""): renamed.pop(part) for part in parts}
        else:
            joined = np.concatenate([renamed.pop(part).float().numpy() for part in parts])
            renamed[name.replace("attention.q_proj", "attn.qkv")] = torch.from_numpy(joined).to(value.dtype)
    return renamed


def stored(path: Path, format: str, kind: str) -> dict[str, torch.Tensor]:
    """What a checkpoint holds, by timm's names, as its own library reads it."""
    if format == "facebook":
        return torch.load(path, weights_only=True)["model"]
    if format == "timm":
        return load_file(path / "model.safetensors")
    own = NATIVE[kind][1] if format == "transformers" else model_class_of(create_config(KINDS[kind]))
    return by_timms_names(own.from_pretrained(path, dtype="auto").state_dict())


def assert_same_bits(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(got[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


# Every model of the zoo

SMALLER = {name for name in list_models() if "base" in name or "cait_m" in name}


@pytest.mark.parametrize("name", list_models())
@torch.no_grad()
def test_a_file_of_the_authors_answers_alike_in_every_library(tmp_path, name):
    theirs = timm_model(
        name, **({} if name == DISTILLED else {"depth": 2}), **({"img_size": 96} if name in SMALLER else {})
    )
    content = {"model": theirs.state_dict(), "optimizer": {"state": {}}, "args": argparse.Namespace(model=name)}
    torch.save(content, tmp_path / "theirs.pth")
    read = convert_checkpoint(tmp_path / "theirs.pth", tmp_path / "ours", to="hf_deit")
    size = 96 if name in SMALLER else int(name[-3:])
    depth = 12 if name == DISTILLED else 2
    expected = {**create_config(name).to_dict(), "num_hidden_layers": depth, "image_size": size}
    got = read.config.to_dict()
    for field in expected.keys() - {"id2label", "label2id", "dtype", "architectures", "transformers_version"}:
        assert got[field] == expected[field], field
    assert read.processor.crop_ratio == (1.0 if "cait" in name else 0.875)
    assert read.processor.crop_size.height == read.config.image_size == size

    model = model_class_of(read.config).from_pretrained(tmp_path / "ours")
    images = noise(size)[:1]
    logits = theirs(images)
    assert logits.std() > 0.1
    output = model(images)
    torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=0)
    if "distilled" in name:
        theirs.set_distilled_training(True)
        heads = theirs.train()(images)  # it has no dropout
        torch.testing.assert_close((output.cls_logits, output.distillation_logits), heads, atol=1e-5, rtol=0)
        assert (heads[0] - heads[1]).abs().max() > 0.1
    if "deit" in name:
        plain = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
        assert type(plain) is NATIVE["distilled" if "distilled" in name else "plain"][1]
        torch.testing.assert_close(plain(images).logits, logits, atol=1e-5, rtol=0)

    convert_checkpoint(tmp_path / "ours", tmp_path / "timm", to="timm")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    torch.testing.assert_close(by_timm(images), logits, atol=1e-5, rtol=0)
    by_wrapper = AutoModelForImageClassification.from_pretrained(tmp_path / "timm")
    torch.testing.assert_close(by_wrapper(images).logits, logits, atol=1e-5, rtol=0)
    assert by_wrapper.config.id2label == model.config.id2label
    assert model.config.id2label[0].startswith("tench")
    assert (model.config.id2label[134], model.config.id2label[517]) == ("crane (134)", "crane (517)")
    assert len(model.config.label2id) == 1000
    assert model.config.id2label[999].startswith("toilet tissue")


@pytest.mark.parametrize(
    "fields",
    [
        {"qkv_bias": False},
        {"num_channels": 1},
        {"hidden_size": 46, "intermediate_size": 185},  # 46 · (185 / 46) is less than 185
        {"patch_size": 4},
        {"patch_size": [8, 4]},
        {"num_attention_heads": 8},
        {"num_hidden_layers": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_timm_opens_a_model_of_any_size(tmp_path, kind, fields):
    if kind == "cait":
        fields = {**fields, "num_class_layers": 1, "layer_scale_init": 0.5}
    fusion = {} if kind == "plain" else {"fusion": "logits"}
    model = our_model(kind, **fusion, **fields)
    saved(tmp_path / "ours", model, processor())
    convert_checkpoint(tmp_path / "ours", tmp_path / "timm", to="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = noise(num_channels=model.config.num_channels)
    torch.testing.assert_close(theirs(images), model(images).logits, atol=1e-5, rtol=0)
    convert_checkpoint(tmp_path / "timm", tmp_path / "file.pth", to="facebook")
    read = read_checkpoint(tmp_path / "file.pth")
    torch.testing.assert_close(read.model()(images).logits, model(images).logits, atol=0, rtol=0)


# Through every pair of formats


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint in every format it has, made once: (folder, the model it was made from)."""
    made = {}

    def get(kind: str, dtype: torch.dtype) -> tuple[Path, nn.Module]:
        if (kind, dtype) not in made:
            folder, model = tmp_path_factory.mktemp("written"), our_model(kind, dtype)
            saved(folder / "hf_deit", model, processor())
            for format in formats_of(kind):
                if format != "hf_deit":
                    convert_checkpoint(path_of(folder, "hf_deit"), path_of(folder, format), to=format)
            made[kind, dtype] = folder, model
        return made[kind, dtype]

    return get


def assert_same_but_the_weights(read: Checkpoint, model: nn.Module) -> None:
    ignored = {"dtype", "architectures", "transformers_version", "label2id", "pooler_act", "pooler_output_size"}
    ignored |= {"encoder_stride", "_name_or_path", "id2label"}
    expected, got = model.config.to_dict(), read.config.to_dict()
    assert {key: got[key] for key in got if key not in ignored} == {
        key: expected[key] for key in expected if key not in ignored
    }
    assert list(read.config.id2label.items()) == list(enumerate(UNIQUE))
    assert read.config.label2id == {name: index for index, name in enumerate(UNIQUE)}
    assert read.processor.to_dict() == processor().to_dict()
    assert type(read.config) is type(model.config)


@pytest.mark.parametrize(("dtype", "kind_of_path"), [(torch.float32, str), (torch.bfloat16, Path)])
@pytest.mark.parametrize(
    ("kind", "source", "to"),
    [(kind, source, to) for kind in KINDS for source in formats_of(kind) for to in formats_of(kind)],
)
def test_every_pair_of_formats_keeps_every_bit(tmp_path, written, kind, source, to, dtype, kind_of_path):
    folder, model = written(kind, dtype)
    path = path_of(tmp_path, to)
    returned = convert_checkpoint(kind_of_path(path_of(folder, source)), kind_of_path(path), to=to)
    assert returned.source_format == ("hf_deit" if source == "transformers" else source)  # the files are the same
    assert_same_bits(stored(path, to, kind), by_timms_names(model.state_dict()))
    assert_same_but_the_weights(read_checkpoint(kind_of_path(path)), model)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_goes_through_all_formats(tmp_path, written, kind):
    folder, model = written(kind, torch.float16)
    path = path_of(folder, "hf_deit")
    for step, to in enumerate([*formats_of(kind)[1:], *formats_of(kind)[-2::-1]]):
        path, source = path_of(tmp_path / str(step), to), path
        convert_checkpoint(source, path, to=to)
        assert_same_bits(stored(path, to, kind), by_timms_names(model.state_dict()))
    assert_same_but_the_weights(read_checkpoint(path), model)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_leads_to_others_code_is_carried_over(tmp_path, kind):
    """But for CaiT's own code: from what people hold to all formats."""
    source = saved(tmp_path / "source", our_model(kind, torch.float32), processor())
    foreign = {
        "auto_map": {"AutoConfig": "evil/code--m.C", "AutoModelForImageClassification": "../m.M"},
        "custom_pipelines": {"image-classification": {"impl": "evil.P"}},
        "quantization_config": {"quant_method": "evil"},
        "attn_implementation": "evil/kernel",
    }
    edited(source, **foreign)
    edited(source, "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil/code--m.P"})
    for to in formats_of(kind):
        path = path_of(tmp_path, to)
        convert_checkpoint(source, path, to=to)
        assert largest_difference(source, path, to=to) < 1e-5
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix == ".json"]
        for file in files:
            assert b"evil" not in file.read_bytes()
    expected = {"AutoConfig": "configuration_cait.CaiTConfig"} if kind == "cait" else {}
    written = json.loads((path_of(tmp_path, "hf_deit") / "config.json").read_text()).get("auto_map", {})
    assert written.items() >= expected.items() and len(written) == 2 * len(expected)


@pytest.mark.parametrize("source", ["facebook", "timm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_the_weights_once_and_code_of_cait(tmp_path, written, kind, source):
    folder, model = written(kind, torch.float32)
    num_bytes = sum(4 * tensor.numel() for tensor in model.state_dict().values())
    convert_checkpoint(path_of(folder, source), tmp_path / "file.pth", to="facebook")
    assert num_bytes < (tmp_path / "file.pth").stat().st_size < 1.5 * num_bytes
    convert_checkpoint(path_of(folder, source), tmp_path / "ours", to="hf_deit")
    assert (tmp_path / "ours" / "modeling_cait.py").exists() == (kind == "cait")


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("original_format", [True, False])
@pytest.mark.parametrize("kind", NATIVE)
@torch.no_grad()
def test_transformers_own_model_in_either_key_layout(tmp_path, kind, original_format, to):
    model = native_model(kind)
    saved(tmp_path / "native", model, processor(), save_original_format=original_format)
    path = path_of(tmp_path, to)
    read = convert_checkpoint(tmp_path / "native", path, to=to)
    assert read.source_format == "transformers"
    assert_same_bits(stored(path, to, kind), by_timms_names(model.state_dict()))
    back = convert_checkpoint(path, tmp_path / "back", to="transformers")
    again = NATIVE[kind][1].from_pretrained(tmp_path / "back")
    assert_same_bits(dict(again.state_dict()), dict(model.state_dict()))
    assert list(back.config.id2label.values()) == list(again.config.id2label.values()) == UNIQUE
    assert getattr(back.config, "fusion", "logits") == "logits"
    assert back.config.drop_path_rate == 0
    torch.testing.assert_close(again(noise()).logits, model(noise()).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fusion", ["cls", "distillation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_a_model_that_answers_with_one_head_goes_through_all_formats(tmp_path, fusion, dtype):
    """Both heads and the choice are kept; in transformers that head answers, whatever the files came through."""
    model, path = our_model("distilled", dtype, fusion=fusion), tmp_path / "ours"
    saved(path, model, processor())
    for step, to in enumerate(["transformers", "facebook", "timm", "hf_deit", "timm", "transformers"]):
        path, source = path_of(tmp_path / str(step), to), path
        convert_checkpoint(source, path, to=to)
        assert largest_difference(source, path, to=to) < 1e-5
        read = read_checkpoint(path)
        assert_same_bits(dict(read.weights), dict(model.state_dict()))
        assert_same_but_the_weights(read, model)
        if to in ("transformers", "hf_deit"):
            served = AutoModelForImageClassification.from_pretrained(path).float()
            torch.testing.assert_close(
                served(noise()).logits, read.model().float()(noise())[f"{fusion}_logits"], atol=1e-5, rtol=0
            )


def test_weights_that_share_memory_are_written_each_for_itself(tmp_path):
    """As tied heads, slices of one buffer, transposed or as parameters; safetensors refuses some of them."""
    weights = weights_of()
    weights["head_dist.weight"] = weights["head.weight"]
    buffer = torch.randn(10, 64)
    weights["norm.bias"], weights["norm.weight"] = buffer[3], buffer[4]
    weights["blocks.1.attn.proj.weight"] = torch.randn(64, 64).T
    weights["blocks.0.norm1.bias"] = nn.Parameter(torch.randn(64))
    source = pth(tmp_path / "source.pth", weights)
    for to in FORMATS:
        path = path_of(tmp_path, to)
        convert_checkpoint(source, path, to=to)
        assert_same_bits(stored(path, to, "distilled"), weights)


def test_weights_of_several_types_go_only_where_they_stay_so(tmp_path):
    weights = {name: tensor.half() if "mlp" in name else tensor for name, tensor in weights_of(PLAIN).items()}
    source = pth(tmp_path / "source.pth", weights)
    for to in FORMATS:
        path = path_of(tmp_path, to)
        if to in ("timm", "facebook"):
            convert_checkpoint(source, path, to=to)
            assert_same_bits(stored(path, to, "plain"), weights)
        else:
            with pytest.raises(InputError, match="weights of one type, these are float16 and float32"):
                convert_checkpoint(source, path, to=to)


PROCESSORS = {
    "ours": lambda: processor(crop_ratio=32 / 37),
    "ours, bilinear": lambda: processor(crop_ratio=32 / 37, resample=2),
    "DeiT's, which squashes": lambda: DeiTImageProcessor(
        size={"height": 41, "width": 41}, crop_size={"height": 32, "width": 32}
    ),
    "ViT's, which crops nothing": lambda: ViTImageProcessor(size={"height": 32, "width": 32}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_images_are_prepared_alike_in_every_format(tmp_path, kind):
    saved(tmp_path / "native", native_model("plain"), PROCESSORS[kind]())
    image = Image.fromarray(
        np.kron(np.random.default_rng(0).integers(0, 256, (10, 8, 3)), np.ones((7, 7, 1))).astype(np.uint8)
    )
    expected = PROCESSORS[kind]()(image, return_tensors="pt")["pixel_values"]
    assert expected.shape == (1, 3, 32, 32)
    for to in ("timm", "hf_deit", "facebook"):
        read = convert_checkpoint(tmp_path / "native", path_of(tmp_path, to), to=to)
        for processor in (read.processor, read_checkpoint(path_of(tmp_path, to)).processor):
            torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"], expected, atol=0, rtol=0)
    plain = AutoImageProcessor.from_pretrained(tmp_path / "hf_deit")(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(plain, expected, atol=0, rtol=0)
    stated = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]
    theirs = create_transform(**resolve_data_config(pretrained_cfg=stated))(image)[None]
    torch.testing.assert_close(theirs, expected, atol=2 / 255 / min(stated["std"]), rtol=0)  # Pillow rounds


# What the script says


def shift(path: Path, by: float) -> None:
    """Adds to the biases of a checkpoint's heads, wherever they are."""
    heads = ("head", "classifier", "cls_classifier", "distillation_classifier")

    def shifted(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v + by if k.startswith(heads) and "bias" in k else v for k, v in weights.items()}

    if path.suffix == ".pth":
        content = torch.load(path, weights_only=True)
        pth(path, {**content, "model": shifted(content["model"])})
    else:
        reweighted(path, shifted)


@pytest.mark.parametrize(
    ("kind", "source", "to"),
    [
        *(("distilled", source, to) for source, to in (("facebook", "transformers"), ("timm", "hf_deit"))),
        *(("plain", source, to) for source, to in (("hf_deit", "timm"), ("transformers", "facebook"))),
        *(("cait", source, to) for source, to in (("timm", "facebook"), ("facebook", "hf_deit"))),
    ],
)
def test_the_script_converts_and_tells_the_difference(tmp_path, written, monkeypatch, capsys, kind, source, to):
    folder, _ = written(kind, torch.float32)
    origin = path_of(folder, source)
    assert convert.main([str(origin), str(path_of(tmp_path, to)), "--to", to, "--check"]) == 0
    done, checked = capsys.readouterr().out.splitlines()
    model_type = {"distilled": "deit", "plain": "vit", "cait": "cait"}[kind]
    assert done.startswith(f"{origin} (")
    assert done.endswith(f"{model_type}, 2 layers of 32, 32 pixels, 5 labels) → {path_of(tmp_path, to)} ({to})")
    assert checked.startswith("largest difference of the logits: ")
    assert float(checked.split()[-1]) < 1e-5

    def convert_badly(source: str, destination: str, **options) -> Checkpoint:
        read = convert_checkpoint(source, destination, **options)
        shift(Path(destination), 0.25)
        return read

    monkeypatch.setattr(convert, "convert_checkpoint", convert_badly)
    (tmp_path / "damaged").mkdir()
    assert convert.main([str(origin), str(path_of(tmp_path / "damaged", to)), "--to", to, "--check"]) == 0
    assert float(capsys.readouterr().out.split()[-1]) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("to", FORMATS)
def test_each_is_run_by_its_own_library(tmp_path, written, monkeypatch, source, to):
    """Were one run by another library than its own, what is done to that one would not show, or show twice."""
    folder, model = written("distilled", torch.float32)
    origin = path_of(folder, source)
    if source == "transformers":  # without this package's fields
        origin = saved(tmp_path / "native", native_model("distilled"), processor())
    convert_checkpoint(origin, path_of(tmp_path, to), to=to)
    of_library = {"hf_deit": type(model), "transformers": NATIVE["distilled"][1]}
    of_library |= dict.fromkeys(("timm", "facebook"), timm.models.deit.VisionTransformerDistilled)
    patched = of_library[to]
    original = patched.forward

    def forward(self, images):
        output = original(self, images)
        if isinstance(output, torch.Tensor):
            return output + 0.5
        output.logits = output.logits + 0.5
        return output

    monkeypatch.setattr(patched, "forward", forward)
    expected = 0 if of_library[source] is patched else 0.5
    assert largest_difference(origin, path_of(tmp_path, to), to=to) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind_of_path", [str, Path])
@pytest.mark.parametrize("source", FORMATS)
def test_a_checkpoint_and_what_was_made_of_it_do_not_differ(written, source, kind_of_path):
    folder, _ = written("plain", torch.float32)
    paths = [kind_of_path(path_of(folder, format)) for format in (source, "hf_deit")]
    assert largest_difference(*paths) < 1e-5
    with pytest.raises(InputError, match="there is no checkpoint '"):
        largest_difference(paths[0], kind_of_path(folder / "none"))


def test_differing_checkpoints_have_no_difference(tmp_path, written):
    folder, _ = written("distilled", torch.float32)
    for name, fields in (("labels", {"id2label": {0: "a"}}), ("size", {"image_size": 48})):
        saved(tmp_path / name, our_model("distilled", **fields), processor())
        with pytest.raises(InputError, match=f"/{name}' differ in the size of images or the number of labels"):
            largest_difference(path_of(folder, "timm"), tmp_path / name)


def test_the_script_takes_the_average(tmp_path, capsys):
    live, average = (randomise(our_model("plain"), seed) for seed in (1, 2))
    weights = {"model": by_timms_names(live.state_dict()), "model_ema": by_timms_names(average.state_dict())}
    convert_checkpoint(saved(tmp_path / "live", live, processor()), tmp_path / "live.pth", to="facebook")
    metadata = torch.load(tmp_path / "live.pth", weights_only=True)["hf_deit"]
    both = pth(tmp_path / "both.pth", {**weights, "hf_deit": metadata})
    for flags, expected in (([], live), (["--ema"], average)):
        path = tmp_path / f"out{len(flags)}"
        command = [str(both), str(path), "--to", "transformers", "--check", *flags]
        assert convert.main(command) == 0
        assert_same_bits(stored(path, "transformers", "plain"), by_timms_names(expected.state_dict()))
        assert float(capsys.readouterr().out.split()[-1]) < 1e-5


def test_the_manual_works(tmp_path, monkeypatch, capsys):
    manual = (Path(conversion.__file__).parent / "README.md").read_text()
    manual = manual.partition("# Checkpoints in other formats\n")[2].partition("\n# ")[0]
    (command,), (code,) = (re.findall(rf"```{kind}\n(.*?)```", manual, flags=re.DOTALL) for kind in ("bash", "python"))
    monkeypatch.chdir(tmp_path)
    pth(Path("deit_base_distilled_patch16_384.pth"), {"model": weights_of()})
    exec(compile(code, "README.md", "exec"), {})
    assert read_checkpoint("outputs/deit_base_384").config.num_labels == 3
    shutil.rmtree("outputs")
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("hf-deit", "convert")
    assert convert.main(arguments) == 0
    assert float(capsys.readouterr().out.split()[-1]) < 1e-5


def test_the_script_says_on_one_line_what_is_wrong(tmp_path):
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), tmp_path / "none.pth", tmp_path / "out", "--to", "hf_deit"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("\nerror: there is no checkpoint")
    assert finished.stderr.count("\n") == 2  # one before it, where a progress bar may stand
    assert os.listdir(tmp_path) == []


def test_errors_of_several_lines_are_joined(tmp_path, capsys):
    source = edited(saved(tmp_path / "native", native_model("plain"), processor()), num_attention_heads=5)
    command = [str(source), str(tmp_path / "out"), "--to", "timm"]
    assert convert.main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("\nerror: ")
    assert "num_attention_heads must divide hidden_size" in captured.err
    assert captured.err.count("\n") == 2


# What has no place in a format

IMPOSSIBLE = {
    "CaiT in transformers": ("cait", {}, {}, ["transformers"], "transformers has no CaiT"),
    "CaiT with two tokens": ("cait", {"distillation_token": True}, {}, ["timm", "facebook"], "distillation token"),
    "no squares": ("plain", {"image_size": [32, 16]}, {}, ["timm", "facebook"], "no squares"),
    "another activation": ("distilled", {"hidden_act": "relu"}, {}, ["timm", "facebook"], "got relu"),
    "another epsilon": ("distilled", {"layer_norm_eps": 1e-3}, {}, ["timm", "facebook"], "0.001"),
    "another crop": ("plain", {}, {"crop_size": 24}, ["timm"], "crops them to the model's 32"),
    "not normalised": ("plain", {}, {"do_normalize": False}, ["timm"], "normalises them"),
    "scaled otherwise": ("plain", {}, {"rescale_factor": 1 / 127.5}, ["timm"], "normalises them"),
    "not resized": ("plain", {}, {"do_resize": False}, ["timm"], "resizes images"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_a_format_cannot_say_is_refused(tmp_path, case):
    kind, fields, settings, formats, words = IMPOSSIBLE[case]
    source = tmp_path / "source"
    model = our_model(kind, **fields)
    size = model.config.image_size
    crop = {"height": size[0], "width": size[1]} if isinstance(size, list) else size
    saved(source, model, processor(**{"crop_size": crop, **settings}))
    before = everything_in(tmp_path)
    for to in formats_of(kind) if kind != "cait" else FORMATS:
        if to in formats:
            with pytest.raises(InputError, match=words):
                convert_checkpoint(source, path_of(tmp_path, to), to=to)
            assert everything_in(tmp_path) == before
    convert_checkpoint(source, tmp_path / "again", to="hf_deit")
    assert_same_bits(dict(read_checkpoint(tmp_path / "again").weights), dict(model.state_dict()))


# A destination is whole or not there


@pytest.mark.parametrize("to", FORMATS)
def test_an_empty_folder_and_missing_parents_are_taken(tmp_path, written, to):
    folder, _ = written("distilled", torch.float32)
    destination = path_of(tmp_path / "new" / "deep", to)
    if to != "facebook":
        (tmp_path / "new" / "deep" / to).mkdir(parents=True)
    convert_checkpoint(path_of(folder, "hf_deit"), destination, to=to)
    assert read_checkpoint(destination).config.num_labels == 5
    assert os.listdir(tmp_path / "new" / "deep") == [destination.name]


def refuse(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_leaves_nothing(tmp_path, written, monkeypatch, to):
    """Each writer fails at its last step, when the others have written."""
    folder, _ = written("distilled", torch.float32)
    if to == "facebook":
        monkeypatch.setattr(torch, "save", refuse)
    elif to == "timm":
        monkeypatch.setattr(conversion, "save_file", refuse)
    else:
        monkeypatch.setattr(DistilledDeiTImageProcessor, "save_pretrained", refuse)
    with pytest.raises(InputError, match="No space left on device"):
        convert_checkpoint(path_of(folder, "hf_deit"), path_of(tmp_path / "new", to), to=to)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_that_may_not_grow_leaves_nothing(tmp_path, written, to):
    """The libraries' own writers meet the end of the disk, and say so in their own ways."""
    folder, _ = written("distilled", torch.float32)
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(InputError, match="cannot write"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, kept[1]))
            convert_checkpoint(path_of(folder, "hf_deit"), path_of(tmp_path / "new", to), to=to)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(tmp_path, written, monkeypatch, error):
    folder, _ = written("distilled", torch.float32)

    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(DistilledDeiTImageProcessor, "save_pretrained", stop)
    with pytest.raises(error):
        convert_checkpoint(path_of(folder, "timm"), tmp_path / "new" / "out", to="hf_deit")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", FORMATS)
def test_files_have_the_rights_of_new_ones(tmp_path, to):
    destination = path_of(tmp_path / "made" / "too", to)
    source = saved(tmp_path / "ours", ours(DISTILLED))
    with umask(0o002):
        convert_checkpoint(source, destination, to=to)
    assert rights_in(tmp_path / "made") == {"folder": {0o775}, "file": {0o664}}
