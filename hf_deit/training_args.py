"""Arguments: of the distilling Trainer, and, for the scripts, of the models and the data."""

import dataclasses
import json
import os
import re
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainerState, TrainingArguments
from transformers.utils import logging

from .errors import InputError

logger = logging.get_logger(__name__)

DistillationType = Literal["hard", "soft", "none"]


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the distillation and augmentation of DeiT, and DeiT's defaults.

    Changed defaults: learning rate 5e-4 with a cosine schedule, weight decay 0.05, no gradient clipping, label
    smoothing 0.1 (paper, table 9). Beyond them see the fields below.

    Raises:
        InputError: a value outside its range.
    """

    distillation_type: DistillationType = field(
        default="hard",
        metadata={"help": 'Teacher\'s term: "hard" (its decision), "soft" (its distribution) or "none".'},
    )
    distillation_alpha: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the teacher's term, in [0, 1]; the label's has the rest. Soft in the paper: 0.1."
        },
    )
    distillation_temperature: float = field(default=3.0, metadata={"help": "τ of soft distillation, positive."})
    distillation_reduction: Literal["batchmean", "numel"] = field(
        default="batchmean",
        metadata={"help": 'Of the soft loss; "numel", the authors\', is num_labels times smaller.'},
    )
    crop_scale_min: float = field(
        default=0.08, metadata={"help": "Smallest crop as a fraction of the area, in (0, 1]; for inputs above 32 px."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip, in [0, 1]."})
    auto_augment: str | None = field(
        default="rand-m9-mstd0.5-inc1", metadata={"help": 'timm\'s augmentation policy, or "" for none.'}
    )
    repeated_augmentation: int = field(
        default=1, metadata={"help": "Views of each image side by side in an epoch; the paper takes 3."}
    )
    on_bad_image: Literal["stop", "skip"] = field(
        default="stop",
        metadata={"help": 'An image that cannot be decoded: "stop" the run, or "skip" and count it.'},
    )

    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    weight_decay: float = field(default=0.05, metadata={"help": "Not applied to biases, norms, tokens, positions."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 for none."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "ε of the class head's labels, in [0, 1)."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False."})
    # The default would average a NaN away in the log, and would wait for the device at every step.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Must stay False."})

    def __post_init__(self) -> None:
        _check_choices(self)
        ranges = {
            "distillation_alpha": (0 <= self.distillation_alpha <= 1, "[0, 1]"),
            "distillation_temperature": (self.distillation_temperature > 0, "(0, ∞)"),
            "label_smoothing_factor": (0 <= self.label_smoothing_factor < 1, "[0, 1)"),
            "crop_scale_min": (0 < self.crop_scale_min <= 1, "(0, 1]"),
            "horizontal_flip": (0 <= self.horizontal_flip <= 1, "[0, 1]"),
            "repeated_augmentation": (self.repeated_augmentation >= 1, "[1, ∞)"),
            "learning_rate": (self.learning_rate >= 0, "[0, ∞)"),
            "weight_decay": (self.weight_decay >= 0, "[0, ∞)"),
            "num_train_epochs": (self.num_train_epochs > 0, "(0, ∞)"),
            "per_device_eval_batch_size": (self.per_device_eval_batch_size >= 1, "[1, ∞)"),
            "per_device_train_batch_size": (self.per_device_train_batch_size >= 1, "[1, ∞)"),
            "gradient_accumulation_steps": (self.gradient_accumulation_steps >= 1, "[1, ∞)"),
        }
        for name, (holds, interval) in ranges.items():
            if not holds:
                raise InputError(f"{name} must lie in {interval}, got {getattr(self, name)}")
        if self.remove_unused_columns or self.logging_nan_inf_filter:
            raise InputError("remove_unused_columns and logging_nan_inf_filter must be False")
        if self.train_sampling_strategy != "random":
            raise InputError(f'train_sampling_strategy must be "random", got {self.train_sampling_strategy!r}')
        self.auto_augment = self.auto_augment or None
        self.label_names = ["labels"]  # not every student's forward takes them; the batches always have them
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would only warn at every epoch
        try:
            super().__post_init__()
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            raise InputError(str(error)) from error


@dataclass
class ModelArguments:
    """Which student, and which teacher."""

    student: str = field(
        default="deit_tiny_distilled_patch16_224",
        metadata={
            "help": "A name of the zoo, a Hub id, a folder, or a transformers model type (resnet, …), made anew."
        },
    )
    student_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub student."})
    image_size: int | None = field(
        default=None, metadata={"help": "Input size in pixels of a student that is made anew; 224 if nothing says it."}
    )
    replace_head: bool = field(
        default=False, metadata={"help": "Start a pretrained student with new heads, for other classes than its own."}
    )
    student_overrides: dict | str | None = field(
        default=None, metadata={"help": "Fields of the student's configuration, as JSON: '{\"drop_path_rate\": 0.1}'."}
    )
    crop_ratio: float | None = field(
        default=None,
        metadata={"help": "Evaluation crop as a fraction of the shorter side; a checkpoint's own, or else 0.875."},
    )
    teacher_model_name_or_path: str | None = field(default=None, metadata={"help": "Hub id or folder of the teacher."})
    teacher_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher."})
    teacher_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    teacher_recipe: str | None = field(
        default=None, metadata={"help": "Recipe that trains a teacher on the same data first, if none is given."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.student_overrides, str):
            try:
                self.student_overrides = json.loads(self.student_overrides)
            except ValueError as error:
                raise InputError(f"student_overrides must be a JSON object, got {self.student_overrides!r}") from error
        if not isinstance(self.student_overrides, dict | None):
            raise InputError(f"student_overrides must be a JSON object, got {self.student_overrides!r}")


@dataclass
class DataArguments:
    """Which images; see `hf_deit.data.load_data`."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id or local path for load_dataset, or sklearn:digits."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(default=None, metadata={"help": "Split to validate with."})
    image_column_name: str | None = field(default=None, metadata={"help": "If several columns hold images."})
    label_column_name: str | None = field(default=None, metadata={"help": "If the labels are no ClassLabel."})
    train_dir: str | None = field(default=None, metadata={"help": "Instead of a data set: one folder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, to validate with."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Held out, seeded and stratified, if there is no validation split; in (0, 1)."}
    )
    validation_seed: int = field(default=0, metadata={"help": "Of that split; not the run's, to compare runs."})


def last_whole_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint in a folder that was written to its end, or None. Warns of those that were not."""
    if not os.path.isdir(output_dir):
        return None
    numbered = [(re.fullmatch(r"checkpoint-(\d+)", entry.name), entry.path) for entry in os.scandir(output_dir)]
    for _, path in sorted(((int(match[1]), path) for match, path in numbered if match), reverse=True):
        try:  # the Trainer writes this file last
            TrainerState.load_from_json(os.path.join(path, "trainer_state.json"))
        except (OSError, ValueError, TypeError):
            logger.warning("the checkpoint %s is torn, as of a run killed while it saved: it is left out", path)
        else:
            return path
    return None


def resume_wish(resume_from_checkpoint: str | bool | None) -> str | Literal[True] | None:
    """What `resume_from_checkpoint` asks for, also in the command line's words: a folder, the last one, or nothing."""
    words = {"true": True, "false": None, "none": None}
    return words.get(str(resume_from_checkpoint).lower(), resume_from_checkpoint)


def find_checkpoint(resume_from_checkpoint: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint to resume from: a folder, or, for True (or "true"), the last one in `output_dir`.

    Raises:
        InputError: there is none.
    """
    wanted = resume_wish(resume_from_checkpoint)
    if wanted is None:
        return None
    if wanted is True:
        found = last_whole_checkpoint(output_dir)
        if found is None:
            raise InputError(f"there is no checkpoint to resume from in {output_dir!r}")
        return found
    if not os.path.isfile(os.path.join(wanted, "trainer_state.json")):
        raise InputError(f"there is no checkpoint {wanted!r} to resume from")
    return wanted


def _check_choices(arguments: object) -> None:
    """Refuses values that a `Literal` field does not list; dataclasses do not check."""
    for item in dataclasses.fields(arguments):
        choices = getattr(item.type, "__args__", ()) if getattr(item.type, "__origin__", None) is Literal else ()
        if choices and getattr(arguments, item.name) not in choices:
            raise InputError(f"{item.name} must be one of {', '.join(choices)}, got {getattr(arguments, item.name)!r}")
