"""Reads checkpoints of DeiT and CaiT as people hold them: facebookresearch's, timm's, transformers' and hf_deit's.

Whatever the format, a `Checkpoint` comes out. Nothing is guessed that the file does not say or imply, and no code in a
file is ever run. Where other libraries are handed what may be damaged, any exception is caught: they promise none.
"""

import argparse
import functools
import glob
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from safetensors import safe_open
from timm.data import ImageNetInfo
from transformers import ViTImageProcessor

from ...errors import InputError, one_line
from ...hub.files import read_json
from ...hub.run_folder import check_weights
from ...models.configuration_cait import CaiTConfig
from ...models.configuration_deit import DeiTConfigBase, DistilledDeiTConfig, PlainDeiTConfig, as_pair, label2id_of
from ...models.image_processing_deit import DistilledDeiTImageProcessor, usual_crop_ratio
from ...models.zoo import create_config, list_models, model_class_of
from .checkpoint import DTYPES, METADATA_KEY, Checkpoint, checked, expected_shapes
from .names import our_weights
from .weight_file import load_weights

_CONFIG_CLASSES = {"deit": DistilledDeiTConfig, "vit": PlainDeiTConfig, "cait": CaiTConfig}
_HEAD_DIM = 64  # of every DeiT
_TIMM_IMAGES = ("mean", "std", "crop_pct", "interpolation", "crop_mode")


def read_checkpoint(source: str | os.PathLike[str], *, ema: bool = False) -> Checkpoint:
    """Reads a checkpoint. Its format, architecture and resolution are found out.

    Args:
        source: a file of weights, alone or as a training loop saves them, see `load_weights`; or a folder.
        ema: of a file take the moving average of the weights ("model_ema", timm's "state_dict_ema", …) instead of the
            weights.

    Raises:
        InputError: there is none, it is damaged, or it is no DeiT or CaiT. The message says which.
    """
    source = os.fspath(source)
    if os.path.isfile(source):
        return _read_file(source, ema)
    if ema:
        raise InputError(
            f"only a facebookresearch file, or another of a training loop, has an average, {source!r} is none"
        )
    if not os.path.isdir(source):
        raise InputError(f"there is no checkpoint {source!r}: expected a .pth or .safetensors file, or a folder")
    config = _read_json(os.path.join(source, "config.json"))
    if "architecture" in config:
        return _read_timm_folder(source, config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _CONFIG_CLASSES:
        raise InputError(f"{source!r} holds a model of type {model_type!r}: expected deit, vit or cait, or timm's")
    return _read_transformers_folder(source, config)


def _read_json(path: str) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path!r}: {one_line(error)}") from error


def _read_file(path: str, ema: bool) -> Checkpoint:
    file = load_weights(path, ema=ema)
    if any(re.search(r"\b(deit|vit|cait)\.embeddings\.", name) for name in file.weights):
        raise InputError(
            f"{path!r} is no DeiT or CaiT as timm or the authors save them: it has weights by transformers' names. "
            "Give the folder that they belong to, with its config.json and preprocessor_config.json"
        )
    found = _from_metadata(file.beside.get(METADATA_KEY), file.weights, path)
    if found is None:
        stated, name = file.beside.get("args"), file.beside.get("arch")
        stated = vars(stated) if isinstance(stated, argparse.Namespace) else stated if isinstance(stated, dict) else {}
        config = _infer_config(file.weights, path, name or stated.get("model"), stated.get("model_kwargs"))
        if isinstance(name, str) and timm.is_model(name):  # timm's training script
            usual = timm.get_pretrained_cfg(name)
            settings = {key: stated.get(key) or getattr(usual, key, None) for key in _TIMM_IMAGES}
            found = config, _timm_processor(settings, config, path)
        else:
            # What the authors' files mean without saying it: ImageNet's statistics, and their crop ratios.
            usual = usual_crop_ratio(as_pair(config.image_size), is_cait=isinstance(config, CaiTConfig))
            found = config, _processor(config, path, crop_ratio=usual)
    config, processor = found
    source_format = "facebook" if file.beside and file.taken[0] in ("model", "model_ema") else "timm"
    weights = our_weights(file.weights, config, path)
    taken = ".".join(file.taken) if file.left or file.is_averaged else ""
    return checked(Checkpoint(config, weights, processor, source_format, taken=taken, left=file.left), path)


def _read_timm_folder(folder: str, stated: dict[str, Any]) -> Checkpoint:
    files = [name for name in ("model.safetensors", "pytorch_model.bin") if os.path.isfile(os.path.join(folder, name))]
    if not files:
        raise InputError(f"{folder!r} has no model.safetensors or pytorch_model.bin")
    weights = load_weights(os.path.join(folder, files[0])).weights
    found = _from_metadata(stated.get(METADATA_KEY), weights, folder)
    if found is None:
        settings = stated.get("pretrained_cfg", stated)  # once they stood at the top
        if not isinstance(settings, dict):
            raise InputError(f"{folder!r}: pretrained_cfg must be an object, got {type(settings).__name__}")
        config = _infer_config(weights, folder, stated["architecture"], stated.get("model_args"))
        labels = stated.get("label_names") or settings.get("label_names") or list(config.id2label.values())
        if not isinstance(labels, list) or len(labels) != config.num_labels:
            many = len(labels) if isinstance(labels, list) else type(labels).__name__
            raise InputError(f"{folder!r} names {many} labels for {config.num_labels} classes")
        config.id2label = dict(enumerate(map(str, labels)))
        config.label2id = label2id_of(config.id2label)
        found = config, _timm_processor(settings, config, folder)
    config, processor = found
    return checked(Checkpoint(config, our_weights(weights, config, folder), processor, "timm"), folder)


def _timm_processor(stated: dict[str, Any], config: DeiTConfigBase, folder: str) -> DistilledDeiTImageProcessor:
    absent = [name for name in ("mean", "std", "crop_pct") if stated.get(name) is None]
    if absent:
        raise InputError(f"{folder!r} states no {' and '.join(absent)} in pretrained_cfg of config.json")
    if stated.get("interpolation", "bicubic") != "bicubic" or stated.get("crop_mode", "center") != "center":
        raise InputError(f"{folder!r} wants other images than resized bicubically and cropped at the centre")
    mean, std, crop_ratio = (stated[name] for name in ("mean", "std", "crop_pct"))
    return _processor(config, folder, crop_ratio=crop_ratio, image_mean=mean, image_std=std)


def _processor(config: DeiTConfigBase, where: str, **settings: Any) -> DistilledDeiTImageProcessor:
    height, width = as_pair(config.image_size)
    try:
        return DistilledDeiTImageProcessor.from_dict({"crop_size": {"height": height, "width": width}, **settings})
    except Exception as error:
        raise InputError(f"{where!r} has an image processor of impossible settings: {one_line(error)}") from error


def _read_transformers_folder(folder: str, stated: dict[str, Any]) -> Checkpoint:
    check_weights(folder)
    dtype, num_tensors, num_values = _measure(folder)
    _check_extent(stated, num_tensors, num_values, folder)
    try:
        config = _CONFIG_CLASSES[stated["model_type"]].from_pretrained(folder)
        expected_values = sum(map(math.prod, expected_shapes(config, folder).values()))
        if expected_values > 2 * num_values:  # the rest would be made up, however much it is
            raise InputError(f"{folder!r}: config.json wants {expected_values} numbers, the weights are {num_values}")
        model = model_class_of(config).from_pretrained(folder, config=config, dtype=dtype)
        processor = _transformers_processor(folder, config)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot read {folder!r}: {one_line(error)}") from error
    ours = "drop_path_rate" in stated or stated["model_type"] == "cait"
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return checked(Checkpoint(model.config, weights, processor, "hf_deit" if ours else "transformers"), folder)


def _measure(folder: str) -> tuple[torch.dtype, int, int]:
    """The type of a folder's weights, and how many tensors and numbers they are, without loading them."""
    pieces = []
    for path in glob.glob(os.path.join(glob.escape(folder), "model*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 (it is no mapping)
                pieces += [(piece.get_dtype(), math.prod(piece.get_shape())) for piece in slices]
        except Exception as error:
            raise InputError(f"cannot read {path!r}, it is damaged: {one_line(error)}") from error
    dtypes = sorted({dtype for dtype, _ in pieces})
    if not pieces:
        raise InputError(f"{folder!r} has no weights in model.safetensors")
    if len(dtypes) > 1 or dtypes[0] not in DTYPES:  # transformers would make one of them
        raise InputError(f"{folder!r} must hold floating-point numbers of one type, got {' and '.join(dtypes)}")
    return DTYPES[dtypes[0]], len(pieces), sum(count for _, count in pieces)


def _transformers_processor(folder: str, config: DeiTConfigBase) -> DistilledDeiTImageProcessor:
    stated = _read_json(os.path.join(folder, "preprocessor_config.json"))
    absent = [name for name in ("image_mean", "image_std") if stated.get(name) is None]
    if absent:
        raise InputError(f"{folder!r} states no {' and '.join(absent)} in preprocessor_config.json")
    kind = str(stated.get("image_processor_type") or stated.get("feature_extractor_type"))
    if kind.startswith("DeiT"):
        return DistilledDeiTImageProcessor.from_pretrained(folder)
    if not kind.startswith("ViT"):
        raise InputError(f"{folder!r} has an image processor of type {kind}: expected DeiT's or ViT's")
    # A ViT's image processor resizes, and crops nothing.
    native = {key: value for key, value in ViTImageProcessor.from_dict(stated).to_dict().items() if value is not None}
    return _processor(config, folder, **{"do_center_crop": False, **native})


def _check_extent(stated: Mapping[str, Any], num_tensors: int, num_values: int, where: str) -> None:
    """Refuses sizes that such weights cannot have, before time and memory are spent on them."""
    layers, widths = ("num_hidden_layers", "num_class_layers"), ("hidden_size", "intermediate_size", "num_labels")
    for name, limit in [*((name, num_tensors) for name in layers), *((name, num_values) for name in widths)]:
        if isinstance(stated.get(name), int) and stated[name] > limit:
            raise InputError(f"{where!r} states {name} {stated[name]}, its weights are {num_tensors} tensors")


def _from_metadata(
    metadata: Any, weights: Mapping[str, torch.Tensor], where: str
) -> tuple[DeiTConfigBase, DistilledDeiTImageProcessor] | None:
    """Configuration and image processor as this package wrote them beside the weights of another format."""
    if metadata is None:
        return None
    try:
        stated = dict(metadata["config"])
        _check_extent(stated, len(weights), sum(tensor.numel() for tensor in weights.values()), where)
        config = _CONFIG_CLASSES[stated["model_type"]].from_dict(stated)
        config.validate()
        return config, DistilledDeiTImageProcessor.from_dict(dict(metadata["image_processor"]))
    except Exception as error:
        raise InputError(f"{where!r} has unusable hf_deit metadata: {one_line(error)}") from error


def _infer_config(
    weights: Mapping[str, torch.Tensor], where: str, name: Any, model_args: Any = None
) -> DeiTConfigBase:
    """The configuration that weights by timm's names imply.

    Args:
        weights: of timm or the authors.
        where: what to call the checkpoint in the message.
        name: of timm's model, as far as something states it.
        model_args: of timm's model; likewise.
    """

    def shape(key: str, ndim: int) -> torch.Size:
        tensor = weights.get(key)
        if tensor is not None and tensor.ndim == ndim and tensor.numel():
            return tensor.shape
        found = "none" if tensor is None else tuple(tensor.shape)
        raise InputError(f"{where!r} is no DeiT or CaiT: it wants {key!r} of {ndim} dimensions, and has {found}")

    def count(prefix: str) -> int:
        numbers = {int(match[1]) for key in weights if (match := re.match(rf"{prefix}\.(\d{{1,6}})\.", key))}
        if numbers != set(range(len(numbers))):
            raise InputError(f"{where!r} lacks some of its {prefix}: it has {sorted(numbers)}")
        return len(numbers)

    is_cait, is_distilled = "blocks.0.attn.proj_l.weight" in weights, "dist_token" in weights
    hidden_size, num_channels, patch_height, patch_width = shape("patch_embed.proj.weight", 4)
    num_patches = shape("pos_embed", 3)[1] - (0 if is_cait else 2 if is_distilled else 1)
    side = math.isqrt(max(num_patches, 0))
    if side * side != num_patches or side == 0:
        raise InputError(f"{where!r} has positions for {num_patches} patches, no square: its size is not known")
    num_labels, is_even = shape("head.weight", 2)[0], patch_height == patch_width
    fields = {
        "hidden_size": hidden_size,
        "num_hidden_layers": count("blocks"),
        "intermediate_size": shape("blocks.0.mlp.fc1.weight", 2)[0],
        "image_size": side * patch_height if is_even else (side * patch_height, side * patch_width),
        "patch_size": patch_height if is_even else (patch_height, patch_width),
        "num_channels": num_channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "num_labels": num_labels,
        **_label_names(num_labels),
    }
    if is_cait:
        config_class = CaiTConfig
        fields["num_attention_heads"] = shape("blocks.0.attn.proj_l.weight", 2)[0]
        fields["num_class_layers"] = count("blocks_token_only")
        known = create_config(name) if name in list_models() else None
        if isinstance(known, CaiTConfig):
            fields["layer_scale_init"] = known.layer_scale_init
    else:
        config_class = DistilledDeiTConfig if is_distilled else PlainDeiTConfig
        fields["num_attention_heads"] = _num_heads(name, model_args, hidden_size)
        if fields["num_attention_heads"] is None:
            reason = f"its width of {hidden_size} is no multiple of a DeiT's {_HEAD_DIM}"
            raise InputError(f"{where!r} does not say how many attention heads it has, and {reason}")
    try:
        return config_class(**fields)
    except Exception as error:
        raise InputError(f"{where!r} has weights of an impossible model: {one_line(error)}") from error


def _label_names(num_labels: int) -> dict[str, dict]:
    """A thousand labels are ILSVRC-2012's, in its order, in all classifiers of timm and the authors."""
    if num_labels != 1000:
        return {}
    id2label = dict(enumerate(map(ImageNetInfo().index_to_description, range(1000))))
    return {"id2label": id2label, "label2id": label2id_of(id2label)}


def _num_heads(name: Any, model_args: Any, hidden_size: int) -> int | None:
    """Attention heads of a DeiT: as stated, as timm's model of that name and width has them, or of 64 each."""
    if isinstance(model_args, dict) and isinstance(model_args.get("num_heads"), int):
        return model_args["num_heads"]
    if isinstance(name, str) and timm.is_model(name):
        heads, width = _heads_and_width(name)
        if heads and width == hidden_size:
            return heads
    return hidden_size // _HEAD_DIM if hidden_size % _HEAD_DIM == 0 else None


@functools.cache  # timm has to make the model to tell
def _heads_and_width(name: str) -> tuple[int | None, int | None]:
    """Of timm's model of that name: attention heads of its first layer that has some, and width; None for none."""
    with torch.device("meta"):
        model = timm.create_model(name)
    heads = [module.num_heads for module in model.modules() if hasattr(module, "num_heads")]
    return heads[0] if heads else None, getattr(model, "embed_dim", None)
