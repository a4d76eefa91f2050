"""A data set, students and teachers small enough for tests."""

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification

from hf_deit import (
    DistillationTrainer,
    DistillationTrainingArguments,
    DistilledDeiTImageProcessor,
    create_model,
    load_teacher,
)
from hf_deit.data.digits import load_digits
from hf_deit.data.image_data import ImageData

gc.freeze()  # what is imported by now: every training collects garbage, and would look through all of it

IMAGE_SIZE = 16
SIZES = {
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


FULL_RECIPE = {
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "horizontal_flip": 0.5,
    "repeated_augmentation": 3,
    "random_erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_group_size": 32,
}


@functools.cache
def _loaded(load: Callable[[], ImageData]) -> ImageData:
    return load()


def digits(num_train: int = 96, num_validation: int = 40) -> tuple[datasets.Dataset, datasets.Dataset]:
    data = _loaded(load_digits)  # by the function, which some tests replace
    return data.train.select(range(num_train)), data.validation.select(range(num_validation))


def processor(**settings: Any) -> DistilledDeiTImageProcessor:
    return DistilledDeiTImageProcessor(**{"crop_size": IMAGE_SIZE, "crop_ratio": 1.0, **settings})


def student(*, seed: int = 0, distilled: bool = True, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    name = "deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224"
    id2label = {index: str(index) for index in range(10)}
    return create_model(name, **{**SIZES, "id2label": id2label, **overrides})


def resnet(*, seed: int = 1) -> ResNetForImageClassification:
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label={index: str(index) for index in range(10)},
        label2id={str(index): index for index in range(10)},
    )
    return ResNetForImageClassification(config)


def teacher_folder(folder: Path, *, seed: int = 1) -> str:
    """A randomly initialised ResNet in the Hub's format, with other statistics than the student's."""
    model = resnet(seed=seed)
    with torch.no_grad():  # its decisions should differ from image to image
        model.classifier[1].weight.mul_(10)
    model.save_pretrained(folder)
    processor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return str(folder)


def fair_teacher_folder(folder: Path, **settings: Any) -> str:
    """A random teacher that says every digit about equally often."""
    teacher_folder(folder, **settings)
    teacher = load_teacher(str(folder), student_processor=processor())
    pixels = processor()(list(digits()[0]["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        teacher.model.classifier[1].bias -= teacher(pixels).mean(dim=0)
    teacher.model.save_pretrained(folder)
    return str(folder)


def overflowing_teacher_folder(folder: Path, part: float = 0.1) -> str:
    """A teacher whose logits are so large that in float16 they overflow on about this part of the digits."""
    teacher_folder(folder)
    teacher = load_teacher(str(folder), student_processor=processor())
    pixels = processor()(list(digits()[0]["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        scale = 65_504 / teacher(pixels).abs().amax(dim=1).quantile(1 - part)
        # Half of it in the features, which are rectified: the weights do not overflow.
        last = teacher.model.resnet.encoder.stages[-1].layers[-1]
        for norm in (last.shortcut.normalization, last.layer[-1].normalization):
            norm.weight *= scale.sqrt()
            norm.bias *= scale.sqrt()
        teacher.model.classifier[1].weight *= scale.sqrt()
        teacher.model.classifier[1].bias *= scale
    teacher.model.save_pretrained(folder)
    return str(folder)


def arguments(folder: Path, **settings: Any) -> DistillationTrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 2,
        "horizontal_flip": 0.0,
        "auto_augment": "",
        "repeated_augmentation": 1,
        "random_erasing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return DistillationTrainingArguments(**{**defaults, **settings})


def trainer(
    model: PreTrainedModel, args: DistillationTrainingArguments, teacher: Any = None, **settings: Any
) -> DistillationTrainer:
    train, validation = digits()
    return DistillationTrainer(
        model,
        args,
        **{
            "teacher": teacher,
            "processing_class": processor(),
            "train_dataset": train,
            "eval_dataset": validation,
            **settings,
        },
    )
