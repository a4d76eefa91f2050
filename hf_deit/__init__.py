"""Distil any image classifier on the Hugging Face Hub into a DeiT (Touvron et al. 2021)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import InputError, TrainingDivergedError
    from .export.checkpoints.write import convert_checkpoint
    from .labels.store import TeacherLabelStore
    from .models.configuration_cait import CaiTConfig
    from .models.configuration_deit import DistilledDeiTConfig, PlainDeiTConfig
    from .models.image_processing_deit import DistilledDeiTImageProcessor, DistilledDeiTImageProcessorPil
    from .models.modeling_cait import CaiTForImageClassification, CaiTModel
    from .models.modeling_deit import (
        DistilledDeiTForImageClassification,
        DistilledDeiTModel,
        PlainDeiTForImageClassification,
        PlainDeiTModel,
    )
    from .models.student import load_student
    from .models.teacher import Teacher, describe_teacher, load_teacher
    from .models.zoo import create_model, list_models
    from .recipes import list_recipes, load_recipe
    from .training.arguments import DistillationTrainingArguments
    from .training.losses import hard_distillation_loss, soft_distillation_loss, soft_target_cross_entropy
    from .training.top_k_accuracy import TopKAccuracy
    from .training.trainer import DistillationTrainer

# Where each public name is defined: it is loaded when it is first asked for.
_HOMES = {
    "errors": ("InputError", "TrainingDivergedError"),
    "export.checkpoints.write": ("convert_checkpoint",),
    "labels.store": ("TeacherLabelStore",),
    "models.configuration_cait": ("CaiTConfig",),
    "models.configuration_deit": ("DistilledDeiTConfig", "PlainDeiTConfig"),
    "models.image_processing_deit": ("DistilledDeiTImageProcessor", "DistilledDeiTImageProcessorPil"),
    "models.modeling_cait": ("CaiTForImageClassification", "CaiTModel"),
    "models.modeling_deit": (
        "DistilledDeiTForImageClassification",
        "DistilledDeiTModel",
        "PlainDeiTForImageClassification",
        "PlainDeiTModel",
    ),
    "models.student": ("load_student",),
    "models.teacher": ("Teacher", "describe_teacher", "load_teacher"),
    "models.zoo": ("create_model", "list_models"),
    "recipes": ("list_recipes", "load_recipe"),
    "training.arguments": ("DistillationTrainingArguments",),
    "training.losses": ("hard_distillation_loss", "soft_distillation_loss", "soft_target_cross_entropy"),
    "training.top_k_accuracy": ("TopKAccuracy",),
    "training.trainer": ("DistillationTrainer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hf_deit")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value  # from now on found without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
