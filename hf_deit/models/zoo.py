"""The model zoo: configurations of DeiT and CaiT by timm's names, and new models of them."""

import os
from dataclasses import fields
from functools import partial
from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from ..errors import InputError, did_you_mean
from .class_names import unique_names
from .configuration_cait import CaiTConfig
from .configuration_deit import DeiTConfigBase, DistilledDeiTConfig, PlainDeiTConfig, label2id_of
from .modeling_cait import CaiTForImageClassification
from .modeling_deit import DistilledDeiTForImageClassification, PlainDeiTForImageClassification

# hidden_size and num_attention_heads of the variants (paper, table 1); each has 12 blocks and heads of size 64.
_WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


# hidden_size, num_attention_heads, num_hidden_layers and layer_scale_init of CaiT ("Going deeper with image
# transformers"; timm).
_CAIT = {
    "xxs24": (192, 4, 24, 1e-5),
    "xxs36": (192, 4, 36, 1e-5),
    "xs24": (288, 6, 24, 1e-5),
    "s24": (384, 8, 24, 1e-5),
    "s36": (384, 8, 36, 1e-6),
    "m36": (768, 16, 36, 1e-6),
    "m48": (768, 16, 48, 1e-6),
}
# The image sizes that each was released for.
_CAIT_SIZES = {
    "xxs24": (224, 384),
    "xxs36": (224, 384),
    "xs24": (384,),
    "s24": (224, 384),
    "s36": (384,),
    "m36": (384,),
    "m48": (448,),
}


def _deit(size: str, *, distilled: bool, image_size: int) -> DeiTConfigBase:
    hidden_size, num_attention_heads = _WIDTHS[size]
    config_class = DistilledDeiTConfig if distilled else PlainDeiTConfig
    return config_class(
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        intermediate_size=4 * hidden_size,
        image_size=image_size,
        num_labels=1000,
    )


def _cait(size: str, *, image_size: int) -> CaiTConfig:
    hidden_size, num_attention_heads, num_hidden_layers, layer_scale_init = _CAIT[size]
    return CaiTConfig(
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        num_hidden_layers=num_hidden_layers,
        intermediate_size=4 * hidden_size,
        layer_scale_init=layer_scale_init,
        image_size=image_size,
        num_labels=1000,
    )


_CONFIGS = {
    f"deit_{size}{'_distilled' if distilled else ''}_patch16_{image_size}": partial(
        _deit, size, distilled=distilled, image_size=image_size
    )
    for distilled in (False, True)
    for size, image_size in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))
} | {
    f"cait_{size}_{image_size}": partial(_cait, size, image_size=image_size)
    for size, image_sizes in _CAIT_SIZES.items()
    for image_size in image_sizes
}
_MODELS = {
    DistilledDeiTConfig: DistilledDeiTForImageClassification,
    PlainDeiTConfig: PlainDeiTForImageClassification,
    CaiTConfig: CaiTForImageClassification,
}

# transformers' Auto classes open CaiT where anything of this room is imported; elsewhere they need the code, which is
# saved beside the weights.
AutoConfig.register(CaiTConfig.model_type, CaiTConfig, exist_ok=True)
AutoModelForImageClassification.register(CaiTConfig, CaiTForImageClassification, exist_ok=True)
CaiTConfig.register_for_auto_class()
CaiTForImageClassification.register_for_auto_class("AutoModelForImageClassification")


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(_CONFIGS)


def create_config(name: str) -> DeiTConfigBase:
    """The configuration of a model of the zoo, see `list_models`.

    Raises:
        InputError: unknown name; the message names the nearest that exist.
    """
    if name not in _CONFIGS:
        hint = did_you_mean(name, _CONFIGS, most=4) or f", which has: {', '.join(_CONFIGS)}"
        raise InputError(f"no model {name!r} in the zoo{hint}")
    return _CONFIGS[name]()


def model_class_of(config: DeiTConfigBase) -> type[PreTrainedModel]:
    """The class of the classifiers that have a configuration of this type."""
    return _MODELS[type(config)]


def code_beside(model_type: object) -> dict[str, str]:
    """The files of this package that are published beside models of a type: paths by name, none for most types."""
    own_code = next((config.own_code for config in _MODELS if config.model_type == model_type), {})
    modules = {os.path.join(os.path.dirname(__file__), f"{code.partition('.')[0]}.py") for code in own_code.values()}
    paths = {path for module in modules for path in (module, *get_relative_import_files(module))}
    return {os.path.basename(path): path for path in sorted(paths)}


def create_model(name: str, **overrides: Any) -> PreTrainedModel:
    """Makes a model of the zoo with freshly initialised weights.

    Args:
        name: one of `list_models()`, for example "deit_tiny_distilled_patch16_224".
        **overrides: fields of its configuration, for example `num_labels=10`, `id2label={0: "cat", …}` or
            `drop_path_rate=0.1`. Labels that share a name are told apart by `unique_names`.

    Raises:
        InputError: unknown name or field; the message names the nearest that exist.
        huggingface_hub.errors.StrictDataclassError: the overrides make no possible model.
    """
    config = create_config(name)
    known = [*(field.name for field in fields(config)), "num_labels"]
    for key in overrides:
        if key not in known:
            raise InputError(f"{type(config).__name__} has no field {key!r}{did_you_mean(key, known)}")
    config = type(config)(**{**config.to_dict(), **_label_overrides(overrides)})
    return model_class_of(config)(config)


def _label_overrides(overrides: dict[str, Any]) -> dict[str, Any]:
    """Makes `num_labels`, `id2label` and `label2id` agree: the base configuration's are for 1,000 classes."""
    if "label2id" in overrides:
        raise InputError("label2id follows from id2label: give only that")
    if "id2label" in overrides:
        id2label = unique_names(overrides["id2label"])
    elif "num_labels" in overrides:
        id2label = {index: f"LABEL_{index}" for index in range(overrides["num_labels"])}
    else:
        return overrides
    if overrides.get("num_labels", len(id2label)) != len(id2label):
        raise InputError(f"num_labels is {overrides['num_labels']} but id2label names {len(id2label)} labels")
    rest = {key: value for key, value in overrides.items() if key != "num_labels"}
    return {**rest, "id2label": id2label, "label2id": label2id_of(id2label)}
