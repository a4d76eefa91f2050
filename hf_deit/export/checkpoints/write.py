"""Writes checkpoints of DeiT and CaiT for facebookresearch's code, timm, transformers and hf_deit, without loss."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification
from transformers.image_utils import PILImageResampling

from ...errors import InputError, not_one_of, one_line
from ...hub.files import no_empty_folders, share_weights
from ...models.configuration_cait import CaiTConfig
from ...models.configuration_deit import ONE_HEAD_FUSIONS, DeiTConfigBase, as_pair
from ...models.zoo import create_config, list_models
from .checkpoint import METADATA_KEY, Checkpoint
from .names import timm_weights
from .read import read_checkpoint

Format = Literal["hf_deit", "timm", "facebook", "transformers"]
FORMATS: tuple[str, ...] = get_args(Format)
_FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# timm's arguments of a model, and our fields.
_TIMM_ARGUMENTS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "qkv_bias": "qkv_bias",
    "depth_token_only": "num_class_layers",
    "init_values": "layer_scale_init",
}


def convert_checkpoint(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, to: Format, ema: bool = False
) -> Checkpoint:
    """Writes a checkpoint in another format. Format, architecture and resolution of the source are found out.

    Weights, label names, image statistics and crop ratio are carried over, bit for bit.

    Args:
        source: a file or a folder, see `hf_deit.export.read.read_checkpoint`.
        destination: a `.pth` file for "facebook", a folder for the others; must not exist yet.
        to: "hf_deit", "timm" (a folder as on the Hub), "facebook" (facebookresearch/deit), "transformers" (DeiT only).
        ema: of a training loop's file take the moving average of the weights.

    Returns:
        The checkpoint that was read.

    Raises:
        InputError: the source is damaged or no DeiT or CaiT, the format has no place for it, or the destination cannot
            be written. The destination is then as it was.
    """
    if to not in FORMATS:
        raise InputError(not_one_of("the format", to, FORMATS))
    source, destination = os.fspath(source), os.fspath(destination)
    _check_destination(destination, to)
    checkpoint = read_checkpoint(source, ema=ema)
    _check_possible(checkpoint, to)
    parent = existing = os.path.dirname(os.path.abspath(destination))
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    try:
        aside = tempfile.mkdtemp(prefix=".converting-", dir=existing)
    except OSError as error:
        raise InputError(f"cannot write to {parent!r}: {one_line(error)}") from error
    try:
        written = os.path.join(aside, "checkpoint")
        _WRITERS[to](checkpoint, written)
        if os.path.isdir(written):
            share_weights(written)
        with no_empty_folders(parent):
            os.makedirs(parent, exist_ok=True)
            os.replace(written, destination)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' when the disk is full
        raise InputError(f"cannot write {destination!r}: {one_line(error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return checkpoint


def _check_destination(destination: str, to: str) -> None:
    if os.path.lexists(destination) and not (os.path.isdir(destination) and not os.listdir(destination)):
        raise InputError(f"{destination!r} exists already: give another destination, or remove it")
    suffixes = _FILE_SUFFIXES[:2] if to == "facebook" else _FILE_SUFFIXES
    if (to == "facebook") != (Path(destination).suffix in suffixes):
        kind = "file, say deit.pth" if to == "facebook" else "folder"
        raise InputError(f'the format "{to}" is written to a {kind}, got {destination!r}')


def _check_possible(checkpoint: Checkpoint, to: str) -> None:
    """Refuses what a format has no place for."""
    config = checkpoint.config
    if to == "transformers" and isinstance(config, CaiTConfig):
        raise InputError('transformers has no CaiT: take "hf_deit", which is published with its code')
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.weights.values()})
    if to in ("hf_deit", "transformers") and len(dtypes) > 1:
        raise InputError(f"{to} loads weights of one type, these are {' and '.join(dtypes)}")
    if to in ("timm", "facebook"):
        if getattr(config, "distillation_token", False):
            raise InputError(f"{to} has no CaiT with a distillation token: nobody released one")
        if as_pair(config.image_size)[0] != as_pair(config.image_size)[1]:
            raise InputError(f"{to} has no DeiT for images that are no squares, got {config.image_size}")
        # transformers' own 1e-12 passes for the authors' 1e-6.
        if config.hidden_act != "gelu" or config.layer_norm_eps > 1e-6:
            raise InputError(
                f"{to} has no DeiT with another activation than gelu or a layer_norm_eps above 1e-6, got "
                f"{config.hidden_act} and {config.layer_norm_eps}"
            )


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Our configuration and image processor, for formats that have no place for them; see `METADATA_KEY`."""
    # Through JSON, so that a pickled file holds plain containers only; and without the folder that was read.
    config = {key: value for key, value in checkpoint.config.to_dict().items() if key != "_name_or_path"}
    content = {"config": config, "image_processor": checkpoint.processor.to_dict()}
    return json.loads(json.dumps(content, default=str))


def _write_hf_deit(checkpoint: Checkpoint, folder: str) -> None:
    checkpoint.model().save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)


def _write_transformers(checkpoint: Checkpoint, folder: str) -> None:
    is_one_head = getattr(checkpoint.config, "fusion", None) in ONE_HEAD_FUSIONS
    # That, as hf_deit saves it, transformers answers with alone, and the other one is not lost.
    (checkpoint.model() if is_one_head else native_model(checkpoint)).save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)


def native_model(checkpoint: Checkpoint) -> nn.Module:
    """A DeiT as transformers' own class, which of two heads answers with the mean."""
    config_class, model_class = {
        "deit": (DeiTConfig, DeiTForImageClassificationWithTeacher),
        "vit": (ViTConfig, ViTForImageClassification),
    }[checkpoint.config.model_type]
    fields = {key: value for key, value in checkpoint.config.to_dict().items() if key != "architectures"}
    with torch.device("meta"):
        model = model_class(config_class.from_dict(fields))
    model.load_state_dict(checkpoint.weights, strict=True, assign=True)
    return model.eval()


def _write_timm(checkpoint: Checkpoint, folder: str) -> None:
    os.makedirs(folder)
    config = checkpoint.config
    name, model_args = timm_architecture(config)
    labels = [config.id2label[index] for index in range(config.num_labels)]
    stated = {
        "architecture": name,
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": "token",
        **({"model_args": model_args} if model_args else {}),
        "label_names": labels,
        "pretrained_cfg": {
            "input_size": [config.num_channels, *as_pair(config.image_size)],
            "fixed_input_size": True,
            **_timm_images(checkpoint),
            "num_classes": config.num_labels,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config.model_type == "deit" else "head",
        },
        METADATA_KEY: _metadata(checkpoint),
    }
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(stated, file, indent=2)
    weights = {name: tensor.contiguous() for name, tensor in timm_weights(checkpoint.weights, config).items()}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def _timm_images(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the images must look like, in timm's terms."""
    processor, size, side = checkpoint.processor, checkpoint.processor.size, as_pair(checkpoint.config.image_size)[0]
    is_squashed = size.height is not None
    resized = size.height if is_squashed else size.shortest_edge
    output = processor.crop_size if processor.do_center_crop else size
    if (
        not (processor.do_resize and processor.do_rescale and processor.do_normalize and resized)
        or not math.isclose(processor.rescale_factor, 1 / 255)
        or (output.height, output.width, size.height) != (side, side, size.width)
    ):
        raise InputError(f"timm resizes images, crops them to the model's {side} and normalises them: these are not")
    crop_pct = side / resized if is_squashed else processor.crop_ratio
    if int(side / crop_pct) != resized:  # timm rounds it down
        crop_pct = math.nextafter(crop_pct, 0)
    return {
        "interpolation": PILImageResampling(processor.resample).name.lower(),
        "crop_pct": crop_pct,
        "crop_mode": "squash" if is_squashed else "center",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
    }


def timm_architecture(config: DeiTConfigBase) -> tuple[str, dict[str, Any]]:
    """timm's name of the nearest model of the zoo, and the arguments in which this one differs from it."""
    zoo = {name: create_config(name) for name in list_models()}
    arguments = {name: _timm_arguments(config, known) for name, known in zoo.items() if type(known) is type(config)}
    name = min(arguments, key=lambda name: len(arguments[name]))
    return name, arguments[name]


def _timm_arguments(config: DeiTConfigBase, known: DeiTConfigBase) -> dict[str, Any]:
    """The arguments with which timm makes a model of `config` where it would make one of `known`."""
    arguments = {
        theirs: getattr(config, ours)
        for theirs, ours in _TIMM_ARGUMENTS.items()
        if getattr(config, ours, None) != getattr(known, ours, None)
    }
    if config.intermediate_size != 4 * config.hidden_size:
        ratio = config.intermediate_size / config.hidden_size
        if int(config.hidden_size * ratio) != config.intermediate_size:  # timm rounds it down
            ratio = math.nextafter(ratio, math.inf)
        arguments["mlp_ratio"] = ratio
        if isinstance(config, CaiTConfig):
            arguments["mlp_ratio_token_only"] = ratio
    return arguments


def _write_facebook(checkpoint: Checkpoint, path: str) -> None:
    weights = timm_weights(checkpoint.weights, checkpoint.config)
    torch.save({"model": weights, METADATA_KEY: _metadata(checkpoint)}, path)


_WRITERS: dict[str, Callable[[Checkpoint, str], None]] = {
    "hf_deit": _write_hf_deit,
    "transformers": _write_transformers,
    "timm": _write_timm,
    "facebook": _write_facebook,
}
