"""Distil any image classifier on the Hugging Face Hub into a DeiT (Touvron et al. 2021)."""

from importlib.metadata import version

from .configuration_cait import CaiTConfig
from .configuration_deit import DistilledDeiTConfig, PlainDeiTConfig
from .conversion import convert_checkpoint
from .errors import InputError, TrainingDivergedError
from .image_processing_deit import DistilledDeiTImageProcessor, DistilledDeiTImageProcessorPil
from .label_store import TeacherLabelStore
from .losses import hard_distillation_loss, soft_distillation_loss, soft_target_cross_entropy
from .metrics import TopKAccuracy
from .modeling_cait import CaiTForImageClassification, CaiTModel
from .modeling_deit import (
    DistilledDeiTForImageClassification,
    DistilledDeiTModel,
    PlainDeiTForImageClassification,
    PlainDeiTModel,
)
from .recipes import list_recipes, load_recipe
from .student import load_student
from .teacher import Teacher, describe_teacher, load_teacher
from .trainer import DistillationTrainer
from .training_args import DistillationTrainingArguments
from .zoo import create_model, list_models

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
