"""Contract: a checkpoint of any origin is read for what it says, or refused with what is wrong with it.

- Architecture, resolution, labels and statistics are those of the file; nothing is made up.
- No code in a file is run. Whatever is damaged, contradictory, not finite or of another architecture is an
  `InputError`, and the destination stays as it was.
"""

import argparse
import datetime
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import (
    CAIT,
    DISTILLED,
    KINDS,
    LABELS,
    PLAIN,
    STATISTICS,
    TINY,
    Weights,
    edited,
    everything_in,
    native,
    noise,
    old_pth,
    our_folder,
    pth,
    reweighted,
    saved,
    timm_folder,
    tiny_timm_model,
    weights_of,
)
from support.main_of import main_of
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_deit.errors import InputError
from hf_deit.export.checkpoints.read import load_weights, read_checkpoint
from hf_deit.export.checkpoints.write import convert_checkpoint
from hf_deit.hub.checksums import write_checksums


def assert_answers_as(model: nn.Module, read: Any, size: int = 32) -> None:
    torch.testing.assert_close(read.model()(noise(size)).logits, model(noise(size)), atol=1e-5, rtol=0)


# Where checkpoints come from


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("name", "size"),
    [(DISTILLED, 224), (PLAIN, 384), (CAIT, 64), (PLAIN, 64), (DISTILLED, 384), (CAIT, 224), (PLAIN, 32)],
)
@torch.no_grad()
def test_bare_weights_of_timm(tmp_path, name, size, suffix):
    model = tiny_timm_model(name, img_size=size, patch_size=16, depth=3)
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    read = read_checkpoint(path)
    assert read.source_format == "timm"
    assert read.config.model_type == {DISTILLED: "deit", PLAIN: "vit", CAIT: "cait"}[name]
    assert (read.config.image_size, read.config.patch_size, read.config.num_hidden_layers) == (size, 16, 3)
    assert read.config.id2label == {index: f"LABEL_{index}" for index in range(3)}
    assert read.processor.crop_size.height == size
    assert read.processor.crop_ratio == (1.0 if name == CAIT or size == 32 else 0.875)
    assert_answers_as(model, read, size)


@pytest.mark.parametrize("name", KINDS.values())
def test_query_key_and_value_are_split_in_that_order(tmp_path, name):
    weights = weights_of(name)
    read = read_checkpoint(pth(tmp_path / "weights.pth", weights))
    prefix = read.config.model_type
    for kind in ("weight", "bias"):
        joined = weights[f"blocks.1.attn.qkv.{kind}"].numpy()
        assert len(joined) == 3 * 64
        for start, part in zip((0, 64, 128), "qkv", strict=True):
            ours = read.weights[f"{prefix}.layers.1.attention.{part}_proj.{kind}"].numpy()
            np.testing.assert_array_equal(ours, joined[start : start + 64])
        if name == CAIT:
            for part in "qkv":
                ours = read.weights[f"cait.class_layers.0.attention.{part}_proj.{kind}"]
                np.testing.assert_array_equal(ours, weights[f"blocks_token_only.0.attn.{part}.{kind}"])
    convert_checkpoint(our_folder(tmp_path / "ours", name), tmp_path / "timm", to="timm")
    theirs = load_file(tmp_path / "timm" / "model.safetensors")["blocks.0.attn.qkv.weight"].numpy()
    parts = read_checkpoint(tmp_path / "ours").weights
    for start, part in zip((0, 64, 128), "qkv", strict=True):
        expected = parts[f"{prefix}.layers.0.attention.{part}_proj.weight"].numpy()
        np.testing.assert_array_equal(theirs[start : start + 64], expected)


@pytest.mark.parametrize("name", [DISTILLED, CAIT])
def test_the_authors_wrapped_files_and_averages(tmp_path, name):
    """They published CaiT with the names that weights have within DistributedDataParallel."""
    weights = weights_of(name)
    wrapped = {f"module.{key}": tensor for key, tensor in weights.items()}
    averages = {key: tensor + 1 for key, tensor in wrapped.items()}
    content = {"model": wrapped, "model_ema": averages, "epoch": 299, "args": argparse.Namespace(model=name, lr=0.1)}
    path = pth(tmp_path / "both.pth", content)
    reads = {averaged: read_checkpoint(path, ema=averaged) for averaged in (False, True)}
    for averaged, read in reads.items():
        assert read.source_format == "facebook"
        assert torch.equal(next(iter(read.weights.values())), weights["cls_token"] + averaged)
    alone = read_checkpoint(pth(tmp_path / "alone.pth", {"model_ema": averages}), ema=True)
    assert all(torch.equal(tensor, reads[True].weights[key]) for key, tensor in alone.weights.items())
    convert_checkpoint(path, tmp_path / "out", to="hf_deit", ema=True)
    assert torch.equal(
        read_checkpoint(tmp_path / "out").weights["classifier.bias" if name == CAIT else "cls_classifier.bias"],
        weights["head.bias"] + 1,
    )


def saved_by_timm(folder: Path, name: str = DISTILLED, **settings: Any) -> tuple[Path, nn.Module, nn.Module]:
    """The model_best.pth.tar of timm's training script, the trained model and its average."""
    folder.mkdir(exist_ok=True)
    model = tiny_timm_model(name)
    average = ModelEmaV3(model)
    with torch.no_grad():
        average.module.head.bias.add_(1)
    command_line = {"model": name, "lr": 0.1, "mean": None, "output": Path("output"), "crop_pct": None, **settings}
    saver = CheckpointSaver(
        nn.DataParallel(model),
        torch.optim.SGD(model.parameters(), lr=0.1),
        args=argparse.Namespace(**command_line),
        model_ema=average,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.unwrap_fn = lambda module: module  # as a wrapped model's names are written by a script without it
    saver.save_checkpoint(3, metric=np.float64(71.5))
    return folder / "model_best.pth.tar", model, average.module


@pytest.mark.parametrize("name", [DISTILLED, PLAIN])
@torch.no_grad()
def test_the_best_checkpoint_of_timms_training_script(tmp_path, capsys, name):
    path, model, average = saved_by_timm(tmp_path, name)
    assert {"arch", "state_dict", "state_dict_ema", "args", "metric"} <= torch.load(path, weights_only=False).keys()
    for ema, expected, taken, left in (
        (False, model, "state_dict", "state_dict_ema"),
        (True, average, "state_dict_ema", "state_dict"),
    ):
        read = read_checkpoint(path, ema=ema)
        assert (read.source_format, read.taken, read.left) == ("timm", taken, left)
        assert_answers_as(expected, read)
        assert read.processor.crop_ratio == pytest.approx(0.9)  # timm's of this name, not the authors' 0.875
        assert read.processor.size.shortest_edge == int(32 / 0.9)
        convert = [str(path), str(tmp_path / f"ema {ema}"), "--to", "hf_deit", "--check", *["--ema"] * ema]
        assert main_of("convert_checkpoint")(convert) == 0
        said = capsys.readouterr().out
        assert f"the weights of '{taken}' were taken; " in said
        assert f"'{left}'" in said
        assert float(said.split()[-1]) < 1e-5


def test_statistics_of_timms_command_line_are_taken(tmp_path):
    path, _, _ = saved_by_timm(tmp_path, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], crop_pct=0.8)
    processor = read_checkpoint(path).processor
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert processor.crop_ratio == 0.8
    with pytest.raises(InputError, match="resized bicubically"):
        read_checkpoint(saved_by_timm(tmp_path / "other", interpolation="bilinear")[0])


def in_ddp(module: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(module)


WRAPPINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "DataParallel": nn.DataParallel,
    "DDP": in_ddp,
    "compiled in DDP": lambda model: in_ddp(torch.compile(model)),
    "DDP compiled": lambda model: torch.compile(in_ddp(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "averaged, of a compiled one": lambda model: torch.optim.swa_utils.AveragedModel(torch.compile(model)),
    "in a module": lambda model: nn.ModuleDict({"model": model}),
    "compiled in a module": lambda model: nn.ModuleDict({"model": torch.compile(model)}),
    "in two modules, compiled": lambda model: torch.compile(nn.ModuleDict({"net": nn.ModuleDict({"vit": model})})),
    "compiled blocks": lambda model: with_blocks(model, torch.compile),
}


def with_blocks(model: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model.blocks = nn.Sequential(*map(change, model.blocks))
    return model


@pytest.fixture(scope="module")
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "wrapping"), [*((DISTILLED, wrapping) for wrapping in WRAPPINGS), (CAIT, "compiled in DDP")]
)
def test_what_wraps_a_model_is_taken_off(tmp_path, one_process, name, wrapping):
    wrapped = WRAPPINGS[wrapping](tiny_timm_model(name)).state_dict()
    assert wrapped.keys() != weights_of(name).keys()
    expected = read_checkpoint(pth(tmp_path / "plain.pth", weights_of(name))).weights
    rounds = {"bare": wrapped, "Lightning": {"state_dict": wrapped, "epoch": 3, "pytorch-lightning_version": "2.5"}}
    for kind, content in {
        **rounds,
        "nested": {"state": {"model": {"state_dict": wrapped}}},
        "net": {"net": wrapped},
    }.items():
        read = read_checkpoint(pth(tmp_path / f"{kind}.ckpt", content)).weights
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[key], expected[key]) for key in expected)
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    assert read_checkpoint(tmp_path / "wrapped.safetensors").weights.keys() == expected.keys()


def shifted(weights: Weights, by: int) -> Weights:
    return {key: tensor + by for key, tensor in weights.items()}


# Files with the trained weights, whose numbers are 0 apart from those of the model, and the average, 1 apart.
BOTH_KINDS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "timm": lambda w: {"state_dict": w, "state_dict_ema": shifted(w, 1), "arch": DISTILLED, "epoch": 3},
    "facebookresearch": lambda w: {"model": w, "model_ema": shifted(w, 1)},
    "torchvision": lambda w: {
        "model": under("module.", w),
        "model_ema": {**under("module._orig_mod.", shifted(w, 1)), "n_averaged": torch.tensor(9)},
    },
    "the average first": lambda w: {"ema": shifted(w, 1), "net": w},
    "the average within": lambda w: {"model": w, "ema": {"state_dict": shifted(w, 1), "decay": 0.99}},
    "both within": lambda w: {"state_dict": {"params": w, "params_ema": shifted(w, 1)}, "iter": 3},
    "attributes of a module": lambda w: {
        "state_dict": {**under("model._orig_mod.", w), **under("model_ema.module.", shifted(w, 1))}
    },
    "names of one's own": lambda w: {"vit": w, "vit_swa": {"shadow": shifted(w, 1)}, "optimizer": {"state": {}}},
    "the optimizer by names": lambda w: {
        "model": w,
        "model_ema_state_dict": shifted(w, 1),
        "optim": {"state": under("x.", {key: {"step": torch.tensor(1.0)} for key in w})},
    },
    "what a module has beside": lambda w: {
        "state_dict": {
            **under("student.", w),
            **under("averaged_student.", shifted(w, 1)),
            **dict.fromkeys(("criterion.weight", "class_weights", "teacher.conv.weight"), torch.zeros(3)),
        }
    },
    "the name of the model beside": lambda w: {"model": DISTILLED, "model_state_dict": w, "ema_model": shifted(w, 1)},
}


@pytest.mark.parametrize("kind", BOTH_KINDS)
def test_the_trained_weights_are_taken_unless_the_average_is_asked_for(tmp_path, kind):
    path = pth(tmp_path / "both.pth", BOTH_KINDS[kind](weights_of()))
    for ema in (False, True):
        read = read_checkpoint(path, ema=ema)
        assert torch.equal(read.weights["deit.embeddings.cls_token"], weights_of()["cls_token"] + ema)
        assert read.left is not None


@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema", "n_averaged"])
def test_an_average_alone_is_taken_and_said(tmp_path, key):
    content = {key: weights_of(), "epoch": 3}
    if key == "n_averaged":
        content = {**under("module.", weights_of()), key: torch.tensor(9)}
    for ema in (False, True):
        read = read_checkpoint(pth(tmp_path / "alone.pth", content), ema=ema)
        assert (read.taken, read.left) == (key, None)


def test_what_a_loop_keeps_beside_the_weights_is_read_without_its_libraries(tmp_path):
    """NumPy's numbers and arrays, and paths: nothing of them runs."""
    beside = {
        "metric": np.float32(0.5),
        "count": np.int64(3),
        "history": np.arange(4.0),
        "args": argparse.Namespace(output=Path("x"), model=PLAIN, seed=np.int64(3), model_kwargs={"num_heads": 4}),
        "rng": {"numpy": np.random.default_rng(0).bit_generator.state},
    }
    content = {"state_dict": weights_of(PLAIN, num_heads=4), **beside}
    for number, write in enumerate((pth, old_pth)):
        assert read_checkpoint(write(tmp_path / f"{number}.pth.tar", content)).config.num_attention_heads == 4
    with pytest.raises(InputError, match=r"would run \S*date.*torch.save\(model.state_dict\(\)"):
        read_checkpoint(pth(tmp_path / "x.pth", {**content, "on": datetime.date(2026, 1, 1)}))


def test_a_deeper_cait_starts_from_smaller_scales(tmp_path):
    for name, scale in (("cait_s36_384", 1e-6), ("cait_s24_384", 1e-5), ("another", 1e-5)):
        content = {"model": weights_of(CAIT), "args": argparse.Namespace(model=name)}
        assert read_checkpoint(pth(tmp_path / "file.pth", content)).config.layer_scale_init == scale


@torch.no_grad()
def test_a_folder_of_timm(tmp_path):
    model = tiny_timm_model(DISTILLED)
    labels, unique = ["crane", "crane", "ß"], {0: "crane (0)", 1: "crane (1)", 2: "ß"}
    read = read_checkpoint(timm_folder(tmp_path / "timm", model.state_dict(), label_names=labels))
    assert read.source_format == "timm"
    assert (read.config.id2label, read.config.label2id) == (unique, {name: index for index, name in unique.items()})
    assert list(read.processor.image_mean) == STATISTICS["mean"]
    assert list(read.processor.image_std) == STATISTICS["std"]
    assert (read.processor.crop_ratio, read.processor.crop_size.height) == (0.8, 32)
    assert read.processor.size.shortest_edge == 40
    assert_answers_as(model, read)

    unnamed = read_checkpoint(timm_folder(tmp_path / "unnamed", model.state_dict()))
    assert unnamed.config.id2label == {index: f"LABEL_{index}" for index in range(3)}
    within = {**STATISTICS, "label_names": labels}
    assert (
        read_checkpoint(timm_folder(tmp_path / "within", model.state_dict(), pretrained_cfg=within)).config.id2label
        == unique
    )
    flat = timm_folder(tmp_path / "flat", model.state_dict(), **STATISTICS)
    assert list(read_checkpoint(edited(flat, pretrained_cfg=None)).processor.image_mean) == STATISTICS["mean"]
    torch.save(model.state_dict(), flat / "pytorch_model.bin")
    (flat / "model.safetensors").unlink()
    assert read_checkpoint(flat).weights.keys() == read.weights.keys()


@pytest.mark.parametrize("make", ["file", "folder"])
def test_a_thousand_classes_are_imagenets(tmp_path, make):
    weights = weights_of(PLAIN, num_classes=1000)
    path = pth(tmp_path / "file.pth", weights) if make == "file" else timm_folder(tmp_path / "folder", weights)
    labels = read_checkpoint(path).config.id2label
    assert len(labels) == 1000
    assert (labels[0], labels[134], labels[517]) == ("tench, Tinca tinca", "crane (134)", "crane (517)")
    assert labels[281].startswith("tabby")
    assert labels[999].startswith("toilet tissue")
    named = timm_folder(tmp_path / "named", weights, label_names=[f"own {index}" for index in range(1000)])
    assert read_checkpoint(named).config.id2label[999] == "own 999"


HUGE = {"depth": 1, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 0.05}


@pytest.mark.parametrize(
    ("name", "sizes", "fields", "num_heads"),
    [
        (PLAIN, {}, {}, 1),  # 64 wide
        (PLAIN, {"num_heads": 4}, {"model_args": {"num_heads": 4}}, 4),
        (PLAIN, {}, {"architecture": "vit_small_patch16_224"}, 1),  # of another width
        ("vit_huge_patch14_224", HUGE, {}, 16),  # of 80 each, although 64 divides its width, too
    ],
)
@torch.no_grad()
def test_attention_heads_are_those_that_are_stated(tmp_path, name, sizes, fields, num_heads):
    model = tiny_timm_model(name, **sizes)
    read = read_checkpoint(timm_folder(tmp_path / "timm", model.state_dict(), **{"architecture": name, **fields}))
    assert read.config.num_attention_heads == num_heads
    assert_answers_as(model, read)


def test_a_pooler_is_left_behind(tmp_path):
    """Some published checkpoints have one, which no classifier uses."""
    model = native("plain")
    pooler = {f"vit.pooler.dense.{name}": torch.zeros(64, 64) for name in ("weight", "bias")}
    folder = reweighted(saved(tmp_path / "native", model), lambda weights: {**weights, **pooler})
    assert read_checkpoint(folder).weights.keys() == model.state_dict().keys()


def test_a_file_of_the_old_kind_is_read(tmp_path):
    assert read_checkpoint(old_pth(tmp_path / "x.pth", weights_of())).config.num_labels == 3


def test_sources_may_be_paths_or_text(tmp_path):
    file, folder = pth(tmp_path / "x.pth", weights_of()), our_folder(tmp_path / "x")
    for source in (file, folder):
        one, other = read_checkpoint(source), read_checkpoint(str(source))
        assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    assert load_weights(file)[0].keys() == load_weights(str(file))[0].keys() == weights_of().keys()
    for refused in (read_checkpoint, load_weights):
        with pytest.raises(InputError, match=f" '{tmp_path}/none.safetensors'"):
            refused(tmp_path / "none.safetensors")


# What is refused


class RunsCode:
    def __init__(self, folder: Path) -> None:
        self.command = f"touch '{folder / 'it_ran'}'"

    def __reduce__(self):
        return os.system, (self.command,)


class Unknown(nn.Linear):
    """No class that any checkpoint may hold."""


def raw(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    return raw(path, path.read_bytes()[: int(0.7 * path.stat().st_size)])


def flipped(path: Path, part: float = 0.5) -> Path:
    """With one bit of another value: after half of the file, in a weight."""
    content = bytearray(path.read_bytes())
    content[int(part * len(content))] ^= 1
    return raw(path, content)


def beside(folder: Path, file: str, change: Callable[[Path], Any]) -> Path:
    """A folder in which something is done to one file."""
    change(folder / file)
    return folder


def pickled_and_flipped(path: Path) -> None:
    weights = path.with_name("model.safetensors")
    flipped(pth(path, load_file(weights)))
    weights.unlink()


def with_checksums(folder: Path) -> Path:
    write_checksums(folder)
    read_checkpoint(folder)
    return folder


def without_checksums(write: Callable[[], Any]) -> Any:
    torch.serialization.set_crc32_options(False)
    try:
        return write()
    finally:
        torch.serialization.set_crc32_options(True)


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: tensor for key, tensor in weights.items()}


def without(pattern: str, **made: Any) -> Weights:
    return {key: tensor for key, tensor in weights_of(**made).items() if pattern not in key}


def damaged(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


def own_metadata(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A file with what this package leaves beside the weights of others, changed."""
    folder = our_folder(path.parent / "first")
    convert_checkpoint(folder, path.parent / "first.pth", to="facebook")
    content = torch.load(path.parent / "first.pth", weights_only=True)
    content["hf_deit"] = change(content["hf_deit"])
    shutil.rmtree(folder)
    return pth(path, content)


def folder_with(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return folder


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
NAMES = {"id2label": dict(enumerate(LABELS))}
POINTER = b"version https://git-lfs.github.com/spec/v1\n"
RUNS_CODE = r"refused.* would run (os|posix)\.system"
NO_CHECKPOINT = "damaged or no checkpoint"

# What is wrong: the source, made in a folder, and words of the message.
BAD_SOURCES: dict[str, tuple[Callable[[Path], Path], str]] = {
    # Files that are none
    "nothing there": (lambda p: p / "none.pth", "there is no checkpoint"),
    "an empty file": (lambda p: raw(p / "x.pth", b""), "is empty"),
    "an empty .safetensors": (lambda p: raw(p / "x.safetensors", b""), "is empty"),
    "random bytes": (lambda p: raw(p / "x.pth", random.Random(0).randbytes(5000)), NO_CHECKPOINT),
    "text": (lambda p: raw(p / "x.pth", POINTER), NO_CHECKPOINT),
    "a pointer": (lambda p: raw(p / "x.safetensors", POINTER), "damaged"),
    "a cut .pth": (lambda p: cut(pth(p / "x.pth", weights_of())), NO_CHECKPOINT),
    "a cut .pth of the old kind": (lambda p: cut(old_pth(p / "x.pth", weights_of())), NO_CHECKPOINT),
    "a flipped bit": (lambda p: flipped(pth(p / "x.pth", {"model": weights_of()})), "damaged.*Bad CRC-32.*/data/"),
    "a flipped bit in a folder of timm": (
        lambda p: beside(timm_folder(p / "x", weights_of()), "pytorch_model.bin", pickled_and_flipped),
        r"pytorch_model\.bin.*Bad CRC-32",
    ),
    "a flipped bit in a checkpoint of a run": (
        lambda p: beside(with_checksums(our_folder(p / "x")), "model.safetensors", lambda path: flipped(path, 0.99)),
        r"model\.safetensors is not as it was written",
    ),
    "a cut .safetensors": (lambda p: cut(timm_folder(p / "x", weights_of()) / "model.safetensors"), NO_CHECKPOINT),
    "a cut file in a folder": (lambda p: beside(our_folder(p / "x"), "model.safetensors", cut), "damaged"),
    "a cut file in a folder of timm": (
        lambda p: beside(timm_folder(p / "x", weights_of()), "model.safetensors", cut),
        "damaged",
    ),
    # Files that hold something else
    "code": (lambda p: pth(p / "x.pth", {"model": RunsCode(p)}), RUNS_CODE),
    "code in a plain pickle": (
        lambda p: raw(p / "x.pth", pickle.dumps({"model": RunsCode(p)}, protocol=2)),
        RUNS_CODE,
    ),
    # Folders
    "an empty folder": (lambda p: folder_with(p / "x"), r"config\.json.*No such file"),
    "no config.json": (
        lambda p: beside(our_folder(p / "x"), "config.json", Path.unlink),
        r"config\.json.*No such file",
    ),
    "config.json of no JSON": (lambda p: folder_with(p / "x", config="{'a': 1}"), r"cannot read .*config\.json"),
    "config.json of no text": (
        lambda p: beside(folder_with(p / "x"), "config.json", lambda path: raw(path, b"\xff\xfe{")),
        r"cannot read .*config\.json",
    ),
    "config.json of a list": (lambda p: folder_with(p / "x", config="[1]"), "must hold an object, got list"),
    "config.json too deep": (lambda p: folder_with(p / "x", config="[" * 100_000), r"cannot read .*config\.json"),
    "no model type": (lambda p: folder_with(p / "x", config="{}"), "a model of type None"),
    "a model type of no text": (
        lambda p: folder_with(p / "x", config='{"model_type": ["vit"]}'),
        r"a model of type \['vit'\]",
    ),
    "no weights in a folder": (
        lambda p: beside(our_folder(p / "x"), "model.safetensors", Path.unlink),
        "has no weights in model.safetensors",
    ),
    "no image processor": (
        lambda p: beside(our_folder(p / "x"), "preprocessor_config.json", Path.unlink),
        r"preprocessor_config\.json.*No such file",
    ),
    "timm's without weights": (
        lambda p: beside(timm_folder(p / "x", {}), "model.safetensors", Path.unlink),
        "has no model.safetensors or pytorch_model.bin",
    ),
    # Folders of other models
    "a folder of a ResNet": (
        lambda p: saved(p / "x", ResNetForImageClassification(ResNetConfig(**RESNET))),
        "holds a model of type 'resnet': expected deit, vit or cait",
    ),
    "a ViT's body": (lambda p: saved(p / "x", ViTModel(ViTConfig(**TINY))), r"missing: classifier\."),
    "a DeiT with one head of two tokens": (
        lambda p: saved(p / "x", DeiTForImageClassification(DeiTConfig(**TINY, **NAMES))),
        r"missing: cls_classifier\.bias.*unknown: classifier\.bias",
    ),
    "a missing tensor in a folder": (
        lambda p: reweighted(saved(p / "x", native("distilled")), lambda all: dict(list(all.items())[:-1])),
        "1 missing",
    ),
}
# The content of a .pth file.
BAD_CONTENT: dict[str, tuple[Callable[[], Any], str]] = {
    "a module": (lambda: nn.Linear(2, 2), r"refused.* would run torch\.nn\.modules\.linear\.Linear"),
    "a class of one's own": (lambda: {"model": Unknown(2, 2)}, r"would run \S*\.Unknown"),
    "a list": (lambda: [torch.zeros(2)], "weights by name, got list"),
    "one tensor": (lambda: torch.zeros(2), "weights by name, got Tensor"),
    "weights in a list": (lambda: {"model": list(weights_of().values())}, "by name, got list"),
    "None for a model": (lambda: {"model": None}, "weights by name, got NoneType"),
    "no model": (lambda: {"student": {"conv": {}}}, "tensors by name, got .*dict for 'student'.*it has student$"),
    "weights under two keys": (
        lambda: {"model": weights_of(), "state_dict": weights_of()},
        "several models, under model and state_dict",
    ),
    "two averages": (lambda: {"ema": weights_of(), "model_ema": weights_of()}, "several models, under ema and"),
    "a model and a head on top of it": (
        lambda: {"state_dict": {**under("model.", weights_of()), "fc.weight": torch.zeros(3)}},
        r"more than a model: model \(\d+ tensors\), fc \(1 tensors\)",
    ),
    "a student and its teacher": (
        lambda: {**under("student.", weights_of()), **under("teacher.", weights_of())},
        "more than a model: student",
    ),
    "a model twice, compiled and not": (
        lambda: {**weights_of(), "_orig_mod.head.bias": torch.zeros(3)},
        r"two tensors 'head\.bias', one of them as '_orig_mod\.head\.bias'",
    ),
    "some names with a prefix": (
        lambda: {(f"model.{key}" if "blocks.1." in key else key): tensor for key, tensor in weights_of().items()},
        r"lacks|tensor 'model\.blocks",
    ),
    "no weights": (lambda: {"model": {}}, "no DeiT or CaiT"),
    "numbers for names": (lambda: {**weights_of(), 3: torch.zeros(2)}, "got Tensor for 3"),
    "a missing tensor": (lambda: without("blocks.1.norm2.bias"), r"lacks deit\.layers\.1\.layernorm_after\.bias"),
    "an unknown tensor": (
        lambda: {**weights_of(), "norm.extra": torch.zeros(2)},
        r"no deit checkpoint: it has a tensor 'norm\.extra'",
    ),
    "a missing first block": (lambda: {"model": without("blocks.0.")}, r"lacks some of its blocks: it has \[1\]"),
    "a missing class layer": (
        lambda: without("blocks_token_only.0.", name=CAIT),
        r"lacks some of its blocks_token_only: it has \[1\]",
    ),
    "a missing block in the middle": (
        lambda: without("blocks.1.", depth=3),
        r"lacks some of its blocks: it has \[0, 2\]",
    ),
    "a block of a giant number": (
        lambda: {**weights_of(), f"blocks.{'9' * 5000}.x": torch.zeros(2)},
        "it has a tensor 'blocks.999",
    ),
    "heads of no width": (
        lambda: weights_of(embed_dim=96),
        "does not say how many attention heads.* width of 96 is no multiple of a DeiT's 64",
    ),
    # Other architectures
    "a ResNet": (lambda: timm.create_model("test_resnet").state_dict(), "no DeiT or CaiT"),
    "a Swin": (
        lambda: SwinForImageClassification(SwinConfig(**SWIN)).state_dict(),
        "no DeiT or CaiT: it wants 'patch_embed.proj.weight' of 4 dimensions, and has none",
    ),
    "a ViT without class token in its positions": (
        lambda: weights_of("deit3_small_patch16_224"),
        "positions for 15 patches, no square",
    ),
    "a ViT of another pooling": (
        lambda: weights_of(PLAIN, global_pool="avg", fc_norm=True),
        r"no vit checkpoint: it has a tensor 'fc_norm\.",
    ),
    "a ViT with scaled layers": (
        lambda: weights_of(PLAIN, init_values=0.1),
        r"it has a tensor 'blocks\.0\.ls1\.gamma'",
    ),
    "a ViT by transformers' names": (
        lambda: ViTForImageClassification(ViTConfig(**TINY)).state_dict(),
        "no DeiT or CaiT .*by transformers' names.*folder",
    ),
    "a CaiT with a distillation token": (
        lambda: {**weights_of(CAIT), "dist_token": torch.zeros(1, 1, 64)},
        r"has the unknown cait\.embeddings\.distillation_token",
    ),
}
# One tensor of a .pth file, and what becomes of it.
BAD_TENSORS: dict[str, tuple[str, Callable[[torch.Tensor], Any], str]] = {
    "a number for a tensor": ("norm.bias", lambda _: 1.5, "got float for 'norm.bias'"),
    "not a number": (
        "norm.bias",
        lambda tensor: damaged(tensor, torch.nan),
        r"deit\.layernorm\.bias holds numbers that are not finite",
    ),
    "infinity": (
        "head_dist.weight",
        lambda tensor: damaged(tensor, -torch.inf),
        r"distillation_classifier\.weight holds numbers that are not finite",
    ),
    "integers": (
        "norm.bias",
        torch.Tensor.int,
        r"'norm\.bias' must hold floating-point numbers, got torch\.int32",
    ),
    "eight bits": (
        "norm.bias",
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        "must hold floating-point numbers, got torch.float8",
    ),
    "sparse": (
        "blocks.0.attn.qkv.weight",
        torch.Tensor.to_sparse,
        "must hold floating-point numbers, got torch.float32 torch.sparse_coo",
    ),
    "without memory": (
        "norm.bias",
        lambda tensor: tensor.to("meta"),
        "'norm.bias' must hold floating-point numbers",
    ),
    "larger than the file": (
        "head.weight",
        lambda tensor: tensor[:1].expand(10**6, 64),
        r"smaller than its 'head\.weight' of shape \(1000000, 64\)",
    ),
    "nothing of a million": (
        "head.weight",
        lambda _: torch.zeros(10**6, 0),
        r"'head\.weight' of 2 dimensions, and has \(1000000, 0\)",
    ),
    "another shape": (
        "blocks.1.mlp.fc2.weight",
        lambda tensor: tensor[:, :-1],
        r"layers\.1\.mlp\.fc2\.weight must be \(64, 64\), got \(64, 63\)",
    ),
    "of another number of dimensions": (
        "patch_embed.proj.weight",
        lambda tensor: tensor[0],
        r"'patch_embed\.proj\.weight' of 4 dimensions",
    ),
    "joined projections of two": (
        "blocks.0.attn.qkv.weight",
        lambda tensor: tensor[:128],
        r"'blocks\.0\.attn\.qkv\.weight' must hold query, key and value, got \(128, 64\)",
    ),
    "positions of no square": ("pos_embed", lambda tensor: tensor[:, :-1], "positions for 15 patches, no square"),
    "no patches": ("pos_embed", lambda tensor: tensor[:, :1], "no square"),
    "two heads of different classes": (
        "head_dist.weight",
        lambda tensor: tensor[:2],
        r"distillation_classifier\.weight must be \(3, 64\), got \(2, 64\)",
    ),
}
# The weights of a folder of this package.
BAD_WEIGHTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "infinity in a folder": (
        lambda all: {**all, "cls_classifier.bias": torch.full((3,), torch.inf)},
        r"cls_classifier\.bias holds numbers that are not finite",
    ),
    "integers in a folder": (
        lambda all: {name: tensor.int() for name, tensor in all.items()},
        "must hold floating-point numbers of one type, got I32",
    ),
    "several types in a folder": (
        lambda all: {**all, "cls_classifier.bias": torch.zeros(3).half()},
        "floating-point numbers of one type, got F16 and F32",
    ),
    "another shape in a folder": (
        lambda all: {**all, "deit.layernorm.bias": torch.zeros(63)},
        r"1 of another shape: deit\.layernorm\.bias",
    ),
    "an unknown tensor in a folder": (lambda all: {**all, "deit.extra": torch.zeros(2)}, r"1 unknown: deit\.extra"),
}
# What a JSON file of a folder of this package states: None for nothing.
BAD_STATEMENTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unknown model type": ("config", {"model_type": "deit2"}, "a model of type 'deit2'"),
    "an impossible configuration": ("config", {"num_attention_heads": 5}, "must divide hidden_size"),
    "a configuration of no number": ("config", {"hidden_size": "64"}, "hidden_size"),
    "a configuration that is not finite": (
        "config",
        {"layer_norm_eps": float("inf")},
        "layer_norm_eps must be finite",
    ),
    "ten thousand layers": ("config", {"num_hidden_layers": 10**4}, "states num_hidden_layers 10000"),
    "a giant width": ("config", {"hidden_size": 2**40}, "states hidden_size 1099511627776"),
    "a wide model": ("config", {"hidden_size": 2**11}, "config.json wants .* numbers, the weights are"),
    "a giant image": ("config", {"image_size": 2**40}, "impossible model|config.json wants"),
    "labels with a hole": (
        "config",
        {"id2label": {"0": "a", "1": "b", "7": "c"}},
        "id2label must name the labels 0 to 2",
    ),
    "an image processor without statistics": (
        "preprocessor_config",
        {"image_std": None},
        "states no image_std in preprocessor_config.json",
    ),
    "another image processor": (
        "preprocessor_config",
        {"image_processor_type": "CLIPImageProcessor"},
        "an image processor of type CLIPImageProcessor",
    ),
    "an image processor that crops more than there is": (
        "preprocessor_config",
        {"crop_size": {"height": 50, "width": 50}},
        "impossible settings",
    ),
}
IMPOSSIBLE = {
    "crop_pct": ["0.9", 0.0],
    "mean": [0.5, [0.5], "abc"],
    "std": [[0.5, 0.5, 0.0], [0.5, 0.5, float("nan")]],
}
# What the config.json of a folder of timm states.
BAD_TIMM: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"timm's without {key}": (
            {"pretrained_cfg": {name: value for name, value in STATISTICS.items() if name != key}},
            f"states no {key} in pretrained_cfg",
        )
        for key in STATISTICS
    },
    "timm's with bilinear images": (
        {"pretrained_cfg": {**STATISTICS, "interpolation": "bilinear"}},
        "other images than resized bicubically",
    ),
    "timm's with squashed images": (
        {"pretrained_cfg": {**STATISTICS, "crop_mode": "squash"}},
        "cropped at the centre",
    ),
    "timm's settings in a list": ({"pretrained_cfg": [1]}, "pretrained_cfg must be an object, got list"),
    **{
        f"timm's {key} of {value!r}": ({"pretrained_cfg": {**STATISTICS, key: value}}, "impossible settings")
        for key, values in IMPOSSIBLE.items()
        for value in values
    },
    "timm's with two labels": ({"label_names": ["a", "b"]}, "names 2 labels for 3 classes"),
    "timm's with a text for labels": ({"label_names": "abc"}, "names str labels for 3 classes"),
    "heads that do not divide": ({"model_args": {"num_heads": 5}}, "num_attention_heads must divide hidden_size"),
}
# What this package left beside the weights of others: its configuration, its image processor.
BAD_METADATA: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "metadata of another model": (
        {"model_type": "vit"},
        {},
        "no vit checkpoint: it has a tensor '(dist_token|head_dist)",
    ),
    "metadata of an unknown model": ({"model_type": "resnet"}, {}, "unusable hf_deit metadata"),
    "metadata of another size": (
        {"image_size": 64},
        {},
        r"position_embeddings must be \(1, 66, 64\), got \(1, 18, 64\)",
    ),
    "metadata of ten thousand layers": ({"num_hidden_layers": 10**4}, {}, "states num_hidden_layers 10000"),
    "metadata of a giant model": ({"num_labels": 10**6, "id2label": None}, {}, "states num_labels 1000000"),
    "metadata of no number": ({"layer_norm_eps": "small"}, {}, "unusable hf_deit metadata"),
    "metadata of an impossible crop": ({}, {"crop_ratio": 1.5, "size": None}, "unusable hf_deit metadata"),
    "metadata of impossible statistics": ({}, {"image_mean": [0.5, None, 0.5]}, "impossible settings"),
    "metadata of an unknown filter": ({}, {"resample": 77}, "impossible settings"),
}


def with_fields(metadata: dict[str, Any], config: dict[str, Any], processor: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": {**metadata["config"], **config},
        "image_processor": {**metadata["image_processor"], **processor},
    }


def changed(key: str, change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    weights = weights_of()
    return {**weights, key: change(weights[key])}


BAD_SOURCES |= {
    **{case: (lambda p, c=c: pth(p / "x.pth", c()), words) for case, (c, words) in BAD_CONTENT.items()},
    **{
        case: (lambda p, key=key, change=change: pth(p / "x.pth", changed(key, change)), words)
        for case, (key, change, words) in BAD_TENSORS.items()
    },
    **{
        case: (lambda p, change=change: reweighted(our_folder(p / "x"), change), words)
        for case, (change, words) in BAD_WEIGHTS.items()
    },
    **{
        case: (lambda p, file=file, fields=fields: edited(our_folder(p / "x"), f"{file}.json", **fields), words)
        for case, (file, fields, words) in BAD_STATEMENTS.items()
    },
    **{
        case: (lambda p, fields=fields: timm_folder(p / "x", weights_of(), **fields), words)
        for case, (fields, words) in BAD_TIMM.items()
    },
    **{
        case: (lambda p, parts=parts: own_metadata(p / "x.pth", lambda all: with_fields(all, *parts)), words)
        for case, (*parts, words) in BAD_METADATA.items()
    },
    "metadata in a list": (lambda p: own_metadata(p / "x.pth", lambda all: [all]), "unusable hf_deit metadata"),
    "metadata without configuration": (
        lambda p: own_metadata(p / "x.pth", lambda all: {"image_processor": all["image_processor"]}),
        "unusable hf_deit metadata",
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_refused_and_nothing_is_written(tmp_path, case):
    make, words = BAD_SOURCES[case]
    source = make(tmp_path)
    before = everything_in(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        convert_checkpoint(source, tmp_path / "new" / "out", to="hf_deit")
    assert str(tmp_path) in str(caught.value)
    assert "PosixPath" not in str(caught.value)
    assert everything_in(tmp_path) == before
    assert not (tmp_path / "it_ran").exists()


def test_a_flipped_bit_anywhere_in_a_file_is_found_or_changes_nothing(tmp_path):
    path = pth(tmp_path / "x.pth", {"model": {"a": torch.arange(20.0), "b": torch.ones(3)}})
    content, expected, found = path.read_bytes(), repr(load_weights(path).weights), 0
    for place in range(0, len(content), 23):
        flipped(raw(path, content), place / len(content))
        try:
            assert repr(load_weights(path).weights) == expected, place
        except InputError as error:
            found += "weights_only" not in str(error)
    assert found > 20


def test_files_without_checksums_are_read(tmp_path):
    weights = {"a": torch.arange(20.0)}
    without_checksums(lambda: pth(tmp_path / "none.pth", weights))
    assert repr(load_weights(tmp_path / "none.pth").weights) == repr(weights)
    assert repr(load_weights(old_pth(tmp_path / "old.pth", weights)).weights) == repr(weights)


def test_the_code_of_a_file_would_have_run(tmp_path):
    """So that the test above can fail."""
    torch.load(pth(tmp_path / "x.pth", {"model": RunsCode(tmp_path)}), weights_only=False)
    assert (tmp_path / "it_ran").exists()


# The arguments: source, destination, options, and words of the message.
BAD_ARGUMENTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "an unknown format": ("ours", "out", {"to": "onnx"}, "the format must be one of hf_deit, timm, facebook, transf"),
    "a file is there": ("ours", "full/file.pth", {"to": "facebook"}, "exists already"),
    "a folder is there": ("ours", "full", {"to": "timm"}, "exists already"),
    "a link to nothing is there": ("ours", "dangling", {"to": "timm"}, "exists already"),
    "the source itself": ("ours", "ours", {"to": "timm"}, "exists already"),
    "a parent is a file": ("ours", "full/file.pth/out", {"to": "timm"}, "cannot write"),
    "a parent of a parent is a file": ("ours", "full/file.pth/a/b.pth", {"to": "facebook"}, "cannot write"),
    "a folder for the authors": ("ours", "out", {"to": "facebook"}, r"to a file, say deit\.pth"),
    "a .safetensors for the authors": ("ours", "out.safetensors", {"to": "facebook"}, r"to a file, say deit\.pth"),
    "a .pth for timm": ("ours", "out.pth", {"to": "timm"}, "written to a folder"),
    "a .pt for transformers": ("ours", "out.pt", {"to": "transformers"}, "written to a folder"),
    "a .safetensors for hf_deit": ("ours", "out.safetensors", {"to": "hf_deit"}, "written to a folder"),
    "a .bin for hf_deit": ("ours", "out.bin", {"to": "hf_deit"}, "written to a folder"),
    "the average of a folder": ("ours", "out", {"to": "timm", "ema": True}, "only a facebookresearch file"),
    "the average of a file without": (
        "model.pth",
        "out",
        {"to": "timm", "ema": True},
        r"model_ema\); it has model, args",
    ),
    "CaiT for transformers": ("cait", "out", {"to": "transformers"}, "transformers has no CaiT"),
    "two tokens for timm": ("two tokens", "out", {"to": "timm"}, "no CaiT with a distillation token"),
    "two tokens for the authors": ("two tokens", "out.pth", {"to": "facebook"}, "no CaiT with a distillation token"),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    our_folder(folder / "ours")
    our_folder(folder / "cait", CAIT)
    our_folder(folder / "two tokens", CAIT, distillation_token=True)
    pth(folder / "model.pth", {"model": weights_of(), "args": argparse.Namespace(model=DISTILLED)})
    (folder / "full").mkdir()
    (folder / "full" / "file.pth").write_text("kept")
    (folder / "dangling").symlink_to(folder / "nowhere")
    return folder


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_and_nothing_is_written(sources, case):
    source, destination, options, words = BAD_ARGUMENTS[case]
    before = everything_in(sources)
    with pytest.raises(InputError, match=words) as caught:
        convert_checkpoint(sources / source, sources / destination, **options)
    assert "PosixPath" not in str(caught.value)
    assert everything_in(sources) == before


# Damage of any kind


def damage(content: bytes, chance: random.Random) -> bytes:
    """Flips, cuts, inserts or repeats; half of the time near an end, where names and sizes stand."""
    content = bytearray(content)
    reach = min(len(content), chance.choice((3000, len(content))))
    ends = chance.random() < 0.5
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(reach)
        place = place if ends or reach == len(content) else len(content) - 1 - place
        match chance.randrange(5):
            case 0:
                content[place] ^= 1 << chance.randrange(8)
            case 1:
                content[place] = chance.choice((0, 0x7F, 0x80, 0xFF, ord("9"), ord("-"), ord("]")))
            case 2:
                content[place:place] = chance.randbytes(chance.choice((1, 2, 9)))
            case 3:
                content[place : place + chance.choice((1, 4, 64))] = b""
            case 4:
                content[place:place] = content[place : place + chance.choice((1, 8, 200))]
        if not content:
            return b""
        reach = min(reach, len(content))
    return bytes(content[: chance.randrange(len(content))]) if chance.random() < 0.1 else bytes(content)


ODD = [None, True, -1, 0, 3, 2**31, 10**30, 0.5, -0.5, 1e308, float("nan")]
ODD += ["", "vit", "x" * 99, [], [1, 2], {}, {"a": 1}]


def odd_statement(content: bytes, chance: random.Random) -> bytes:
    """Replaces one statement of a JSON file, wherever it stands, or leaves it out."""
    stated = holder = json.loads(content)
    while True:
        key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
        if isinstance(holder[key], dict | list) and holder[key] and chance.random() < 0.7:
            holder = holder[key]
        elif chance.random() < 0.1:
            del holder[key]
            return json.dumps(stated).encode()
        else:
            holder[key] = chance.choice(ODD)
            return json.dumps(stated).encode()


def small_weights(name: str = DISTILLED) -> Weights:
    return weights_of(name, depth=1, img_size=16, mlp_ratio=0.25)


# Of torch's own files those without checksums: of the others hardly any damage would come as far as the weights.
FUZZED: dict[str, tuple[Callable[[Path], Path], list[str], int]] = {
    "the authors'": (
        lambda p: without_checksums(
            lambda: pth(p / "source.pth", {"model": small_weights(CAIT), "args": argparse.Namespace(model=CAIT)})
        ),
        [""],
        100,
    ),
    "of the old kind": (lambda p: old_pth(p / "source.pth", {"model": small_weights(PLAIN)}), [""], 60),
    "timm's": (
        lambda p: (timm_folder(p / "made", small_weights()) / "model.safetensors").rename(p / "s.safetensors"),
        [""],
        60,
    ),
    "with metadata": (
        lambda p: (
            without_checksums(
                lambda: convert_checkpoint(our_folder(p / "made", PLAIN), p / "source.pth", to="facebook")
            )
            and p / "source.pth"
        ),
        [""],
        60,
    ),
    "a folder of timm": (
        lambda p: timm_folder(p / "source", small_weights(), label_names=["a", "b", "c"]),
        ["config.json", "model.safetensors"],
        80,
    ),
    "a folder": (
        lambda p: our_folder(p / "source", num_hidden_layers=1, image_size=16),
        ["config.json", "model.safetensors", "preprocessor_config.json"],
        140,
    ),
}


@pytest.mark.parametrize("kind", FUZZED)
def test_damage_is_refused_or_harmless(tmp_path, kind):
    make, files, count = FUZZED[kind]
    (tmp_path / "made whole").mkdir()
    whole = make(tmp_path / "made whole")
    chance = random.Random(f"{kind} 0")
    outcomes = {"read": 0, "refused": 0}
    for index in range(count):
        place = tmp_path / str(index)
        place.mkdir()
        source = place / whole.name
        shutil.copytree(whole, source) if whole.is_dir() else shutil.copy(whole, source)
        file = source / files[index % len(files)] if whole.is_dir() else source
        is_parsed = file.suffix == ".json" and chance.random() < 0.6
        file.write_bytes((odd_statement if is_parsed else damage)(file.read_bytes(), chance))
        to = chance.choice(("hf_deit", "timm", "facebook"))
        destination = place / ("out.pth" if to == "facebook" else "out")
        try:
            convert_checkpoint(source, destination, to=to)
        except InputError as error:
            assert "\n" not in str(error)
            assert os.listdir(place) == [whole.name], (kind, index)
            outcomes["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"case {index} of {kind}: {error!r}") from error
        else:
            assert sorted(os.listdir(place)) == sorted([whole.name, destination.name])
            read = read_checkpoint(destination)
            assert all(tensor.isfinite().all() for tensor in read.model().state_dict().values())
            outcomes["read"] += 1
        shutil.rmtree(place)
    assert min(outcomes.values()) >= count // 20, outcomes  # both happen
