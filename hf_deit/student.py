"""The student: a model of the zoo, a checkpoint, or a transformers architecture made anew, with its processor."""

import copy
import difflib
import os
from collections.abc import Mapping
from typing import Any

import huggingface_hub.errors
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from .configuration_deit import as_pair
from .errors import InputError
from .image_processing_deit import DistilledDeiTImageProcessor
from .modeling_deit import DistilledDeiTForImageClassification, PlainDeiTForImageClassification
from .teacher import load_image_processor, match_labels
from .zoo import create_model, list_models

_DEFAULT_IMAGE_SIZE = 224


def load_student(
    name_or_path: str,
    *,
    id2label: Mapping[int, str],
    revision: str | None = None,
    image_size: int | None = None,
    crop_ratio: float = 0.875,
    replace_head: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, DistilledDeiTImageProcessor]:
    """Makes or loads an image classifier to train, and the image processor that goes with it.

    Args:
        name_or_path: a name of the zoo or a transformers model type ("resnet"), made anew; or a Hub id or a folder.
        id2label: the data set's labels by index.
        revision: branch, tag or commit of a Hub id.
        image_size: input size in pixels of a model made anew.
        crop_ratio: of a model made anew.
        replace_head: start a checkpoint with new heads, for other labels than its own.
        overrides: fields of the configuration.

    Returns:
        The model, in training mode, and its processor. A checkpoint keeps its own statistics, size and crop ratio.

    Raises:
        InputError: no such model; impossible fields; a checkpoint with other labels.
    """
    fields = {"id2label": dict(id2label), **(overrides or {})}
    known = [*list_models(), *CONFIG_MAPPING]
    if name_or_path not in known:
        if "/" not in name_or_path and not os.path.isdir(name_or_path):
            near = difflib.get_close_matches(name_or_path, known, n=1, cutoff=0.5)
            raise InputError(
                f"no student {name_or_path!r}: expected a name of the zoo ({', '.join(list_models()[-4:])}, …), a Hub "
                f"id, a folder or a transformers model type{f'; did you mean {near[0]}?' if near else ''}"
            )
        if image_size is not None:
            raise InputError(f"image_size is for a student made anew; {name_or_path!r} has its own")
        return _load_checkpoint(name_or_path, id2label, revision, replace_head, overrides or {})
    if revision is not None or replace_head:
        raise InputError(f"student_revision and replace_head are for checkpoints; {name_or_path!r} is made anew")
    try:
        if name_or_path in list_models():
            if image_size is not None:
                fields["image_size"] = image_size
            model = create_model(name_or_path, **fields)
        else:
            fields["label2id"] = {label: index for index, label in id2label.items()}
            config = AutoConfig.for_model(name_or_path, **fields)
            if image_size is not None and hasattr(config, "image_size"):
                config.image_size = image_size
            model = AutoModelForImageClassification.from_config(config)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise InputError(f"cannot make the student {name_or_path!r} with {overrides}: {error}") from error
    size = image_size or getattr(model.config, "image_size", None) or _DEFAULT_IMAGE_SIZE
    height, width = as_pair(size)
    processor = DistilledDeiTImageProcessor(crop_size={"height": height, "width": width}, crop_ratio=crop_ratio)
    return model.train(), processor


def _load_checkpoint(
    name_or_path: str,
    id2label: Mapping[int, str],
    revision: str | None,
    replace_head: bool,
    overrides: Mapping[str, Any],
) -> tuple[PreTrainedModel, DistilledDeiTImageProcessor]:
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
        revision = getattr(config, "_commit_hash", None) or revision
        # Our own classes train what transformers' only run: labels, stochastic depth, heads.
        model_class = {
            "DeiTForImageClassificationWithTeacher": DistilledDeiTForImageClassification,
            "ViTForImageClassification": PlainDeiTForImageClassification,
        }.get((config.architectures or [""])[0], AutoModelForImageClassification)
        model, info = model_class.from_pretrained(
            name_or_path, revision=revision, dtype=torch.float32, output_loading_info=True, **overrides
        )
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        StrictDataclassError,
        huggingface_hub.errors.HfHubHTTPError,
    ) as error:
        raise InputError(f"cannot load the student {name_or_path!r}: {str(error).strip()}") from error
    processor = _as_deit_processor(model.config, load_image_processor(name_or_path, revision, config))
    if replace_head:
        return _with_new_head(model, id2label).train(), processor
    if info["missing_keys"]:
        raise InputError(
            f"the student {name_or_path!r} has no weights for {', '.join(sorted(info['missing_keys'])[:4])}: pass "
            "--replace_head if they are its heads, which then start anew"
        )
    try:
        same_order = match_labels(model.config.id2label, id2label) == sorted(id2label)
    except InputError:
        same_order = False
    if not same_order:
        raise InputError(
            f"the student {name_or_path!r} was trained on {model.config.num_labels} labels, the data has "
            f"{len(id2label)}, and they are not the same in the same order: pass --replace_head for new heads"
        )
    model.config.id2label = dict(id2label)
    model.config.label2id = {label: index for index, label in id2label.items()}
    return model.train(), processor


def _with_new_head(model: PreTrainedModel, id2label: Mapping[int, str]) -> PreTrainedModel:
    """The same model with freshly initialised heads for these labels, whatever its heads are called."""

    def shapes(num_labels: int) -> dict[str, torch.Size]:
        config = copy.deepcopy(model.config)
        config.num_labels = num_labels
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in type(model)(config).state_dict().items()}

    # The heads are what changes with the number of labels.
    one, other = shapes(len(id2label)), shapes(len(id2label) + 1)
    head = {name for name in one if one[name] != other[name]}
    config = copy.deepcopy(model.config)
    config.id2label = dict(id2label)
    config.label2id = {label: index for index, label in id2label.items()}
    renewed = type(model)(config)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in head}
    renewed.load_state_dict({**renewed.state_dict(), **kept}, strict=True)
    return renewed


def _as_deit_processor(config: Any, processor: BaseImageProcessor) -> DistilledDeiTImageProcessor:
    """A checkpoint's statistics, size and crop ratio, in the processor that this package trains and publishes with."""
    if config.model_type == "timm_wrapper":
        settings = processor.data_config
        height, width = settings["input_size"][-2:]
        mean, std, crop_ratio = settings["mean"], settings["std"], settings["crop_pct"]
    else:
        mean, std = processor.image_mean, processor.image_std
        cropped = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
        size = cropped or processor.size
        height, width = (size.height, size.width) if size.height else (size.shortest_edge, size.shortest_edge)
        if getattr(config, "image_size", None):
            height, width = as_pair(config.image_size)
        resized = processor.size.shortest_edge if cropped else None
        crop_ratio = min(height, width) / resized if resized else getattr(processor, "crop_pct", None) or 1.0
    return DistilledDeiTImageProcessor(
        crop_size={"height": height, "width": width},
        crop_ratio=min(crop_ratio, 1.0),
        image_mean=list(mean),
        image_std=list(std),
    )
