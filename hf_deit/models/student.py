"""The student: a model of the zoo, a checkpoint, or a transformers architecture made anew, with its processor."""

import copy
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from ..errors import InputError, command, did_you_mean, first_line, shortlist
from .class_names import in_order, label_changes, match_labels, unique_names
from .configuration_deit import DistilledDeiTConfig, as_pair, label2id_of
from .extent import LARGEST_IMAGE, check_extent
from .image_processing_deit import DistilledDeiTImageProcessor, usual_crop_ratio
from .modeling_common import ImageClassifierBase, quantized_types
from .modeling_deit import DistilledDeiTForImageClassification, PlainDeiTForImageClassification
from .pretrained import (
    LOADING_ERRORS,
    check_pickled_weights,
    configured_size,
    fields_of,
    head_names,
    is_weight_file,
    load_config,
    load_image_processor,
    measure_processor,
    refuse_file,
    resolve_revision,
    stated_input_size,
    why_not_loaded,
)
from .zoo import create_config, create_model, list_models

_DEFAULT_IMAGE_SIZE = 224
# As transformers and timm name them.
_ATTENTION = re.compile(r"(^|\.)(attention|attn|self_attn)\.")
_POSITIONS = ("position_embeddings", "pos_embed")


def load_student(
    name_or_path: str | os.PathLike[str],
    *,
    id2label: Mapping[int, str],
    revision: str | None = None,
    image_size: int | None = None,
    crop_ratio: float | None = None,
    replace_head: bool = False,
    freeze: Literal["none", "all_but_heads", "all_but_attention"] = "none",
    overrides: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, DistilledDeiTImageProcessor]:
    """Makes or loads an image classifier to train, and the image processor that goes with it.

    Args:
        name_or_path: a name of the zoo or a transformers model type ("resnet"), made anew; or a Hub id or a folder.
        id2label: the data set's labels by index; names that repeat are told apart by `unique_names`.
        revision: branch, tag or commit of a Hub id.
        image_size: input size in pixels; of a checkpoint by default its own. A DeiT's position embeddings are
            interpolated (bicubic; paper, section 3), and the image processor follows.
        crop_ratio: of the image processor, see `DistilledDeiTImageProcessor`; by default a checkpoint's own (of which
            0.875 becomes 1.0 where its size comes down to 32 pixels or less), and the authors' for a model made anew,
            see `usual_crop_ratio`.
        replace_head: start a checkpoint with new heads, for other labels than its own.
        freeze: "all_but_heads" trains the heads alone, "all_but_attention" the attention layers, the position
            embeddings and the heads (Touvron et al. 2022, "Three things everyone should know about vision
            transformers").
        overrides: fields of the configuration.

    Returns:
        The model, in training mode, and its processor. A checkpoint keeps its own statistics and crop ratio.

    Raises:
        InputError: no such model; no such field, or impossible ones; a checkpoint without all weights, or with other
            labels; a size or a processor that the student cannot have.
    """
    name_or_path, overrides, id2label = os.fspath(name_or_path), overrides or {}, unique_names(id2label)
    if image_size is not None and not 1 <= image_size <= LARGEST_IMAGE:
        raise InputError(f"image_size must lie in [1, {LARGEST_IMAGE}], got {image_size}")
    if name_or_path in list_models() or name_or_path in CONFIG_MAPPING:
        if revision is not None or replace_head:
            raise InputError(f"student_revision and replace_head are for checkpoints; {name_or_path!r} is made anew")
        model, processor = _made_anew(name_or_path, id2label, image_size, crop_ratio, overrides)
    elif "/" not in name_or_path and not os.path.isdir(name_or_path) and not is_weight_file(name_or_path):
        classifiers = [*list_models(), *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES]
        raise InputError(
            f"no student {name_or_path!r}: expected a name of the zoo (deit_tiny_distilled_patch16_224, …), a Hub id, "
            f"a folder or a transformers model type{did_you_mean(name_or_path, classifiers, most=4)}"
        )
    else:
        refuse_file(name_or_path, role="student")
        model, processor = _load_checkpoint(name_or_path, id2label, revision, replace_head, overrides)
        model, processor = _resized(model, processor, name_or_path, image_size, crop_ratio)
    return _frozen(model.train(), freeze), processor


def _made_anew(
    name: str,
    id2label: Mapping[int, str],
    image_size: int | None,
    crop_ratio: float | None,
    overrides: Mapping[str, Any],
) -> tuple[PreTrainedModel, DistilledDeiTImageProcessor]:
    """A model of the zoo or of a transformers architecture, freshly initialised, and its processor."""
    fields = {"id2label": dict(id2label), **overrides}
    try:
        if name in list_models():
            if image_size is not None:
                fields["image_size"] = image_size
            model = create_model(name, **fields)
        else:
            _check_fields(name, lacked_fields(name, overrides), fields_of(CONFIG_MAPPING[name]))
            fields["label2id"] = label2id_of(id2label)
            config = AutoConfig.for_model(name, **fields)
            if image_size is not None and hasattr(config, "image_size"):
                config.image_size = image_size
            if isinstance(classes := MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(name), tuple):
                config.architectures = [classes[0]]  # by which transformers chooses among several
            model = AutoModelForImageClassification.from_config(config)
        height, width = as_pair(image_size or getattr(model.config, "image_size", None) or _DEFAULT_IMAGE_SIZE)
        if crop_ratio is None:
            crop_ratio = usual_crop_ratio((height, width), is_cait=model.config.model_type == "cait")
        processor = DistilledDeiTImageProcessor(crop_size={"height": height, "width": width}, crop_ratio=crop_ratio)
    except InputError:
        raise
    except LOADING_ERRORS as error:
        given = f" with {overrides}" if overrides else ""
        raise InputError(f"cannot make the student {name!r}{given}: {error}") from error
    return model, processor


def _resized(
    model: PreTrainedModel,
    processor: DistilledDeiTImageProcessor,
    name_or_path: str,
    image_size: int | None,
    crop_ratio: float | None,
) -> tuple[PreTrainedModel, DistilledDeiTImageProcessor]:
    """A checkpoint's model and processor for another input size and crop ratio, where they are given."""
    height, width = processor.crop_size.height, processor.crop_size.width
    if image_size is not None and (height, width) != (image_size, image_size):
        model = _at_image_size(model, name_or_path, image_size)
        height = width = image_size
    if crop_ratio is not None or (height, width) != (processor.crop_size.height, processor.crop_size.width):
        try:
            processor = processor.at_crop_size((height, width), crop_ratio)
        except ValueError as error:
            raise InputError(f"the student {name_or_path!r} cannot be evaluated so: {error}") from error
    if isinstance(getattr(model.config, "pretrained_cfg", None), dict):  # timm's, which is read from there
        model.config.pretrained_cfg["crop_pct"] = processor.crop_ratio
    return model, processor


def lacked_fields(
    name_or_path: str | os.PathLike[str], overrides: Mapping[str, Any], revision: str | None = None
) -> list[str]:
    """Which overrides are no fields of a student's configuration.

    Args:
        name_or_path, overrides, revision: of `load_student`.

    Returns:
        Their names; none of a checkpoint whose configuration cannot be read, as `load_student` says.
    """
    name_or_path = os.fspath(name_or_path)
    if name_or_path in list_models():
        known = fields_of(create_config(name_or_path))
    elif name_or_path in CONFIG_MAPPING:
        known = fields_of(CONFIG_MAPPING[name_or_path])
    elif is_weight_file(name_or_path):
        return []
    else:
        try:
            config, _ = checkpoint_class(name_or_path, revision)
        except LOADING_ERRORS:
            return []
        return _lacked_by_checkpoint(config, overrides)
    return [name for name in overrides if name not in known]


def _fields_of_checkpoint(config: Any) -> set[str]:
    return fields_of(config) | config.to_dict().keys() | {"attn_implementation"}


def _lacked_by_checkpoint(config: Any, overrides: Mapping[str, Any]) -> list[str]:
    known = _fields_of_checkpoint(config)
    lacked = [name for name in overrides if name not in known]
    if config.model_type == "timm_wrapper":
        return [name for name in lacked if not _timm_takes(config, name, overrides[name])]
    return lacked


def _timm_takes(config: Any, name: str, value: Any) -> bool:
    """Whether timm makes the model of a configuration with an argument of this name."""
    import timm  # all of timm's models come with it

    try:
        with torch.device("meta"):
            timm.create_model(config.architecture, **{**(config.model_args or {}), name: value})
    except Exception as error:  # of any kind: what a wrong value ends in, loading says
        return not (isinstance(error, TypeError) and "unexpected keyword argument" in str(error))
    return True


def _check_fields(name_or_path: str, lacked: list[str], known: set[str]) -> None:
    for name in lacked:
        raise InputError(f"the configuration of {name_or_path!r} has no field {name!r}{did_you_mean(name, known)}")


def _load_checkpoint(
    name_or_path: str,
    id2label: Mapping[int, str],
    revision: str | None,
    replace_head: bool,
    overrides: Mapping[str, Any],
) -> tuple[PreTrainedModel, DistilledDeiTImageProcessor]:
    try:
        revision = resolve_revision(name_or_path, revision) or revision
        check_extent(name_or_path, load_config(name_or_path, revision))
        config, model_class = checkpoint_class(name_or_path, revision)
        _check_fields(name_or_path, _lacked_by_checkpoint(config, overrides), fields_of(config))
        is_timm = config.model_type == "timm_wrapper"
        settings = _for_timm(config, name_or_path, overrides) if is_timm else dict(overrides)
        if replace_head and issubclass(model_class, ImageClassifierBase):  # transformers may have lost the other one
            settings["ignore_mismatched_sizes"] = True
        check_pickled_weights(name_or_path, revision)
        if types := quantized_types(name_or_path, revision=revision):
            raise InputError(
                f"the student {name_or_path!r} has quantised weights ({', '.join(types)}), which cannot be trained: "
                "take the checkpoint that they were made from"
            )
        if model_class is AutoModelForImageClassification:  # which would follow what the file's own leads to
            settings = {"config": load_config(name_or_path, revision, **settings), "trust_remote_code": False}
        model, info = model_class.from_pretrained(
            name_or_path, revision=revision, dtype=torch.float32, output_loading_info=True, **settings
        )
    except InputError:
        raise
    except LOADING_ERRORS as error:
        # Where nothing was there to be loaded, the overrides are not to blame.
        given = f" with {dict(overrides)} (--student_overrides null takes a recipe's away)" if overrides else ""
        given = "" if isinstance(error, OSError) else given
        raise InputError(f"cannot load the student {name_or_path!r}{given}: {why_not_loaded(error)}") from error
    processor = _as_deit_processor(
        name_or_path, revision, config, load_image_processor(name_or_path, revision, config)
    )
    missing = sorted(info["missing_keys"])
    if replace_head:
        renewed, head = _with_new_head(model, id2label)
        missing = [name for name in missing if name not in head]
    if missing:
        raise InputError(
            f"the student {name_or_path!r} has no weights for {shortlist(missing, 4)}: take a whole checkpoint"
            + ("" if replace_head else ", or pass --replace_head if it only lacks heads, which then start anew")
        )
    if replace_head:
        return renewed, processor
    try:
        same_order = match_labels(model.config.id2label, id2label) == sorted(id2label)
    except InputError:
        same_order = False
    if not same_order:
        changes = label_changes(in_order(model.config.id2label), in_order(id2label))
        raise InputError(
            f"the student {name_or_path!r} was trained on {model.config.num_labels} labels, the data has "
            f"{len(id2label)}, and they are not the same in the same order ({changes}): pass "
            "--replace_head for new heads"
        )
    model.config.id2label = dict(id2label)
    model.config.label2id = label2id_of(id2label)
    return model, processor


def checkpoint_class(name_or_path: str, revision: str | None) -> tuple[Any, Any]:
    """The configuration of a checkpoint, and the class that trains it, of which the configuration is."""
    config = load_config(name_or_path, revision)
    # Our own classes train what transformers' only run: labels, stochastic depth, heads.
    own_class = {
        "DeiTForImageClassificationWithTeacher": DistilledDeiTForImageClassification,
        "ViTForImageClassification": PlainDeiTForImageClassification,
    }.get((config.architectures or [""])[0])
    if getattr(config, "classifier_head", None) is not None:  # one of two
        own_class = DistilledDeiTForImageClassification
    if own_class is None:
        return config, AutoModelForImageClassification
    return own_class.config_class.from_pretrained(name_or_path, revision=revision), own_class


def _for_timm(config: Any, name_or_path: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of a checkpoint of timm: what is no field of transformers' wrapper is an argument of timm's model.

    Raises:
        InputError: it is a DeiT with a distillation head, which the wrapper has no output for.
    """
    name = str(config.architecture).partition(".")[0]
    if name in list_models() and isinstance(create_config(name), DistilledDeiTConfig):
        raise InputError(
            f"the student {name_or_path!r} is timm's {config.architecture}, whose distillation head has no output in "
            f"transformers: {_by_conversion(name_or_path)}"
        )
    known = _fields_of_checkpoint(config)
    fields = {name: value for name, value in overrides.items() if name in known}
    arguments = {name: value for name, value in overrides.items() if name not in fields}
    model_args = {**(config.model_args or {}), **arguments, **(fields.get("model_args") or {})}
    return {**fields, "model_args": model_args} if model_args else fields


def _by_conversion(name_or_path: str) -> str:
    """What to do with a checkpoint of timm's to train it as a model of this package."""
    folder = name_or_path if os.path.isdir(name_or_path) else "FOLDER"
    converted = f"outputs/{os.path.basename(os.path.normpath(name_or_path))}"
    way = command("convert", folder, converted, "--to", "hf_deit")
    if folder != name_or_path:
        way = f"hf download {name_or_path} --local-dir {folder} and {way}"
    return f"convert it with {way}; then give --student {converted}"


def _with_new_head(model: PreTrainedModel, id2label: Mapping[int, str]) -> tuple[PreTrainedModel, set[str]]:
    """The same model with freshly initialised heads for these labels, and the names of the heads' parameters."""
    head = head_names(model)
    config = copy.deepcopy(model.config)
    config.id2label = dict(id2label)
    config.label2id = label2id_of(id2label)
    renewed = type(model)(config)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in head}
    renewed.load_state_dict({**renewed.state_dict(), **kept}, strict=True)
    return renewed, head


@torch.no_grad()
def _at_image_size(model: PreTrainedModel, name_or_path: str, image_size: int) -> PreTrainedModel:
    """The same model for inputs of another size."""
    if isinstance(model, ImageClassifierBase):
        try:
            model.resize_image_size(image_size)
        except ValueError as error:
            raise InputError(f"the student {name_or_path!r} cannot take {image_size} pixels: {error}") from error
        return model
    try:
        model.eval()(pixel_values=torch.zeros(1, 3, image_size, image_size))
    except (ValueError, RuntimeError, AssertionError) as error:  # what architectures say to a size they refuse
        is_ours = str(getattr(model.config, "architecture", "")).partition(".")[0] in list_models()
        remedy = _by_conversion(name_or_path) if is_ours else "take a DeiT, a ViT or a convnet"
        raise InputError(
            f"the student {name_or_path!r} cannot take {image_size} pixels ({first_line(error)}): leave --image_size "
            f"out, or {remedy}"
        ) from error
    if isinstance(getattr(model.config, "pretrained_cfg", None), dict):  # timm's
        model.config.pretrained_cfg["input_size"] = [3, image_size, image_size]
    elif hasattr(model.config, "image_size"):
        config = copy.deepcopy(model.config)
        config.image_size = image_size
        with torch.device("meta"):
            resized = {name: tensor.shape for name, tensor in type(model)(config).state_dict().items()}
        # Else the model interpolates its positions as it runs, and must be made in its own size to be loaded again.
        if resized == {name: tensor.shape for name, tensor in model.state_dict().items()}:
            model.config.image_size = image_size
    return model


def _frozen(model: PreTrainedModel, freeze: str) -> PreTrainedModel:
    if freeze == "none":
        return model
    trained = heads = head_names(model)
    if freeze == "all_but_attention":
        names = [name for name, _ in model.named_parameters()]
        attention = {name for name in names if _ATTENTION.search(name)}
        if not attention:
            raise InputError(f"freeze is all_but_attention, but {type(model).__name__} has no attention layers")
        trained = heads | attention | {name for name in names if name.endswith(_POSITIONS)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            # Its running statistics are no parameters, and would go on moving in training mode.
            module.register_forward_pre_hook(_evaluate)
    return model


def _evaluate(module: nn.Module, inputs: Any) -> None:
    module.eval()


def _as_deit_processor(
    name: str, revision: str | None, config: Any, processor: BaseImageProcessor
) -> DistilledDeiTImageProcessor:
    """A checkpoint's statistics, size and crop ratio, in the processor that this package trains and publishes with."""
    gain, black, made = measure_processor(name, processor)
    if (gain - torch.diag(gain.diagonal())).abs().max() > 1e-4 or (gain.diagonal() < 1e-6).any():
        raise InputError(
            f"the image processor of the student {name!r} mixes or reorders the colour channels, which a DeiT's "
            "cannot: take a student with RGB input"
        )
    # Pixels in [0, 1] go to (pixel - mean) / std, whatever the checkpoint calls its settings.
    std = (1 / gain.diagonal()).tolist()
    mean = (-black / gain.diagonal()).tolist()
    is_resizing = getattr(processor, "do_resize", True)
    height, width = (
        stated_input_size(name, revision, config, processor)
        or configured_size(config)
        or (made if is_resizing else as_pair(_DEFAULT_IMAGE_SIZE))
    )
    resized = min(height, width)
    settings, crop_pct = getattr(processor, "data_config", None), getattr(processor, "crop_pct", None)
    if settings is not None:  # timm
        resized = int(resized / settings["crop_pct"])
    elif is_resizing:
        size = processor.size
        resized = size.shortest_edge or min(size.height or height, size.width or width)
        # ConvNeXt's, which crops nothing by itself, enlarges the whole image to 384 pixels or more.
        if crop_pct and (getattr(processor, "do_center_crop", False) or resized < 384):
            resized = int(resized / crop_pct)
    return DistilledDeiTImageProcessor(
        crop_size={"height": height, "width": width},
        size={"shortest_edge": max(resized, height, width)},
        image_mean=[round(value, 6) for value in mean],
        image_std=[round(value, 6) for value in std],
    )
