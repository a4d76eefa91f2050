"""Which zero-shot models can be asked once for all images."""

from typing import Any

from transformers import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING

from ...errors import InputError

# What is learnt for another task with the towers of a zero-shot model inside.
_WITH_TOWERS = ("CLIPSegForImageSegmentation",)
_TOWERS = ("_vision_model", "_text_model")
_EXAMPLES = "openai/clip-vit-base-patch32 or google/siglip2-base-patch16-224"


def is_zero_shot(config: Any) -> bool:
    """Whether a checkpoint is of a model that knows classes by their names; CLIP's may be of a classifier, too."""
    if type(config) not in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING:
        return False
    return not any("ForImageClassification" in name for name in config.architectures or ())


def check_zero_shot(name_or_path: str, config: Any) -> None:
    """Refuses zero-shot models whose classes are not directions that images are compared with.

    Args:
        name_or_path: for the message.
        config: of one of transformers' zero-shot models.

    Raises:
        InputError: it reads image and text together, takes videos, or its weights are of another task.
    """
    model_class = MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    if not (hasattr(model_class, "get_image_features") and hasattr(model_class, "get_text_features")):
        raise InputError(
            f"{name_or_path!r} ({config.model_type}) gives no features of images and of texts that could be compared, "
            f"so that it would read all names again for each image: take a model such as {_EXAMPLES}"
        )
    others = [name for name in config.architectures or () if "For" in name and name not in _WITH_TOWERS]
    if others and model_class.__name__ not in config.architectures:
        raise InputError(
            f"{name_or_path!r} is a {others[0]}, whose weights are not those of a {model_class.__name__}, which "
            f"compares images with texts: take a model such as {_EXAMPLES}"
        )


def why_no_teacher(config: Any) -> str:
    """Why a checkpoint that is neither a classifier nor a zero-shot model cannot teach, in words."""
    model_type = config.model_type
    for tower in _TOWERS:
        whole = model_type.removesuffix(tower)
        if whole != model_type and any(
            known.model_type == whole for known in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING
        ):
            lacks = "text" if tower == "_vision_model" else "image"
            return (
                f"{model_type} is one tower of a zero-shot model, and it has no {lacks} tower: take the whole model, "
                f"such as {_EXAMPLES}, or train a classifier on its features (hf-deit probe)"
            )
    return f"{model_type} is none"
