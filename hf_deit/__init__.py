"""Distil any image classifier on the Hugging Face Hub into a DeiT (Touvron et al. 2021)."""

from importlib.metadata import version

from .errors import InputError, TrainingDivergedError
from .export.write import convert_checkpoint
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
from .training.metrics import TopKAccuracy
from .training.trainer import DistillationTrainer

__version__ = version("hf_deit")

__all__ = [
    "CaiTConfig",
    "CaiTForImageClassification",
    "CaiTModel",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "DistilledDeiTConfig",
    "DistilledDeiTForImageClassification",
    "DistilledDeiTImageProcessor",
    "DistilledDeiTImageProcessorPil",
    "DistilledDeiTModel",
    "InputError",
    "PlainDeiTConfig",
    "PlainDeiTForImageClassification",
    "PlainDeiTModel",
    "Teacher",
    "TeacherLabelStore",
    "TopKAccuracy",
    "TrainingDivergedError",
    "convert_checkpoint",
    "create_model",
    "describe_teacher",
    "hard_distillation_loss",
    "list_models",
    "list_recipes",
    "load_recipe",
    "load_student",
    "load_teacher",
    "soft_distillation_loss",
    "soft_target_cross_entropy",
]
