"""The benchmark of loaders: all arms make views of the same images, whole batches of them, as many in each round."""

import json

import pytest
import torch
from PIL import Image
from support.main_of import main_of

from hf_deit.data.scaled_images import JpegImage, ShrunkImage
from hf_deit.evaluation.benchmarks import loader

SMALL = ["loader", "--image_size", "48", "--batch_size", "6", "--batches", "2", "--rounds", "2"]


def test_the_command_measures_each_arm_and_writes_what_it_found(tmp_path, capsys):
    files = [str(tmp_path / f"loader.{ending}") for ending in ("json", "md", "png")]
    assert main_of("benchmark")([*SMALL, "--output", *files]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "loader.json").read_text())
    arms = ["hf_deit:3", "hf_deit:1", "hf_deit:3-cached", "hf_deit:1-cached", "timm:uint8", "timm:float"]
    assert list(found["seconds"]) == arms and "a JPEG image of 500 x 375" in printed
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in found["seconds"].values())
    ratio = found["ratio_to_ours"]["hf_deit:3-cached"]["timm:float"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert (tmp_path / "loader.md").read_text() == printed and "| hf_deit:1 " in printed
    assert (tmp_path / "loader.png").read_bytes().startswith(b"\x89PNG")


def test_arms_make_as_many_views_and_only_floats_are_normalised(tmp_path):
    made = loader._Loaders(48, 6, 2, 0, str(tmp_path), (300, 225))
    assert made._data[0]["image"].size == (300, 225)
    for arm in loader.ARMS:
        is_ours = arm in loader._OURS
        batches = made._trainers(*loader._OURS[arm]) if is_ours else made._timms(is_float="float" in arm)
        if is_ours:
            kind = {"resized": ShrunkImage, "reduced": JpegImage}.get(arm.split("-")[-1], Image.Image)
            assert isinstance(batches.dataset.decoded(0), kind)
        pixels = [batch["pixel_values"] if is_ours else batch[0] for batch in batches]
        assert [each.shape for each in pixels] == [(6, 3, 48, 48)] * 2
        assert {each.dtype for each in pixels} == {torch.float32 if arm == "timm:float" else torch.uint8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "hf_deit:2"], "--arms must be of hf_deit:3, hf_deit:1"),
        (["--batch_size", "16"], "--batch_size must be a multiple of 3, the views of an image, got 16"),
        (["--batches", "0"], "batches"),
        (["--photograph_width", "0"], "photograph_width"),
    ],
)
def test_what_it_refuses(options, message, capsys):
    assert main_of("benchmark")([*SMALL, *options]) == 2
    assert message in capsys.readouterr().err
