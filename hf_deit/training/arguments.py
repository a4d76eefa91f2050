"""Arguments of the distilling Trainer and, for commands, of its models."""

import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..data.arguments import COUNTS, SEEDS, check_ranges
from ..data.batch_augment import Mixing, RandomErasing
from ..errors import InputError, not_one_of, one_line, shortlist
from ..models.class_names import composed
from ..models.ensemble import normalized_weights
from ..models.extent import LARGEST_IMAGE
from ..models.pretrained import name_and_revision
from ..models.teacher import parse_input_size
from ..models.zero_shot.prompt_file import read_prompts
from ..models.zero_shot.prompts import checked_templates
from .checkpoints import resume_wish
from .hardware import (
    bf16_of,
    check_compilation,
    check_fp16,
    check_loading,
    check_precision,
    num_workers_of,
    use_cpu_of,
)
from .reporters import check_reporters, reporters_of
from .sharding import check_deepspeed, check_stage, library_of

DistillationType = Literal["hard", "soft", "none"]
DEFAULT_LOGGING_STEPS = 50

_NO_TEXT = "it is for language models"
# Options of transformers that would break a run in its middle, or do other than they say: the values that they may
# have, and why. A test sorts every field of transformers, and fails where a new version brings another one.
UNFIT_OPTIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "remove_unused_columns": ((False,), "the images' columns are not those of the model"),
    "logging_nan_inf_filter": ((False,), "a loss that is not finite would be averaged away"),
    "auto_find_batch_size": ((False,), "what is mixed and learnt depends on the batch size"),
    "train_sampling_strategy": (("random",), "the order of the views is drawn from the seed"),
    "length_column_name": (("length",), "images have no lengths to be sorted by"),
    "label_names": ((None, ["labels"]), "the labels of a batch have this name"),
    "dataloader_in_order": ((True,), "batches that overtake each other would be learnt in another order each time"),
    "ignore_data_skip": ((False,), "a run that goes on would see the beginning of its epoch again"),
    "prediction_loss_only": ((False,), "evaluation reports accuracies, for which it needs the predictions"),
    "eval_do_concat_batches": ((True,), "accuracies are counted over all batches, joined"),
    "eval_use_gather_object": ((False,), "predictions are tensors, and gathered as such"),
    "batch_eval_metrics": ((False,), "accuracies are counted over all batches, of which five labels a view are kept"),
    "bf16_full_eval": ((False,), "it leaves the weights rounded, in what is saved too; --bf16 evaluates in bfloat16"),
    "fp16_full_eval": ((False,), "it leaves the weights rounded, in what is saved too; --fp16 evaluates in float16"),
    "enable_jit_checkpoint": (
        (False,),
        "a run that it stops would look as if it had come to its end; one that is killed goes on from its last "
        "checkpoint with --resume_from_checkpoint true",
    ),
    "neftune_noise_alpha": ((None, 0), f"{_NO_TEXT}, and its noise would be another one after a resume"),
    "use_liger_kernel": ((False,), _NO_TEXT),
    "liger_kernel_config": ((None,), _NO_TEXT),
    "use_cache": ((False,), _NO_TEXT),
    "include_num_input_tokens_seen": (("no", False), f"{_NO_TEXT}: images have no tokens to count"),
    "parallelism_config": (
        (None,),
        "it splits texts and layers; images are shared out to processes, FSDP or DeepSpeed",
    ),
}

# Where numbers must lie, by interval; those of transformers that would break a run, or leave it untrained, among them.
_RANGES = {
    "[0, 1]": (
        *("distillation_alpha", "verify_teacher_labels", "horizontal_flip", "random_erasing"),
        *("mixup_probability", "mixup_switch_probability"),
    ),
    "[0, 1)": ("label_smoothing_factor", "ema_decay", "adam_beta1", "adam_beta2"),
    "(0, 1]": ("crop_scale_min", "layer_decay"),
    "(0, ∞)": ("distillation_temperature", "adam_epsilon"),
    "[0, ∞)": (
        *("mixup", "cutmix", "warmup_learning_rate", "min_learning_rate", "learning_rate", "weight_decay"),
        "max_grad_norm",
    ),
    "(0, 1000000000)": (
        "cache_images_gb",
        *("num_train_epochs", "hub_push_timeout", "save_steps", "ddp_timeout", "ddp_bucket_cap_mb"),
    ),
    "[0, 1000000000)": (
        *("teacher_labels_top_k", "warmup_epochs", "warmup_steps", "logging_steps", "eval_epochs", "eval_steps"),
        *("eval_delay", "save_total_limit", "min_train_steps"),
    ),
    COUNTS: (
        *("repeated_augmentation", "per_device_train_batch_size", "per_device_eval_batch_size"),
        *("gradient_accumulation_steps", "eval_accumulation_steps", "torch_empty_cache_steps"),
        *("dataloader_prefetch_factor", "mixup_group_size", "total_batch_size", "early_stopping_patience"),
    ),
    SEEDS: ("seed", "data_seed"),
}
_RANGES_OF_MODELS = {f"[1, {LARGEST_IMAGE}]": ("image_size",), "(0, 1]": ("crop_ratio",)}


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the distillation and augmentation of DeiT, and DeiT's defaults.

    Changed defaults: learning rate 5e-4 with a cosine schedule that ends at 1e-5, weight decay 0.05, no gradient
    clipping, label smoothing 0.1 (paper, table 9). Beyond them see the fields below.

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
    teacher_labels: str | None = field(
        default=None,
        metadata={
            "help": "Keep the teacher's labels in this folder, and take those that are there: a later run on the same "
            "views needs no teacher. Or take those of a data set on the Hub, hf://datasets/user/name."
        },
    )
    teacher_labels_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of teacher_labels on the Hub."}
    )
    teacher_labels_readonly: bool = field(
        default=False,
        metadata={"help": "Only read teacher_labels (here the name of a data set, user/name, will do): no teacher."},
    )
    teacher_labels_top_k: int | None = field(
        default=None,
        metadata={
            "help": "Keep so many logits of a view, too, fewer than there are classes; soft distillation learns from "
            "them, by default from ten."
        },
    )
    verify_teacher_labels: float = field(
        default=0.0,
        metadata={"help": "Part of the batches with kept labels that the teacher labels again, in [0, 1]."},
    )
    crop_scale_min: float = field(
        default=0.08, metadata={"help": "Smallest crop as a fraction of the area, in (0, 1]; for inputs above 32 px."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip, in [0, 1]."})
    auto_augment: str | None = field(
        default="rand-m9-mstd0.5-inc1", metadata={"help": 'timm\'s augmentation policy, or "" for none.'}
    )
    repeated_augmentation: int = field(
        default=3, metadata={"help": "Views of each image in an epoch, of 1 / so many of the images."}
    )
    repeats_placement: Literal["spread", "adjacent"] = field(
        default="adjacent",
        metadata={
            "help": 'Where repeated_augmentation has the views of an image: "spread" over mixing groups of different '
            'images, a draw of mixing for each view, as the authors; or "adjacent", which loads faster (an image is '
            "decoded once), but of 64 views that are mixed by one draw about 22 are of different images."
        },
    )
    reduced_decoding: bool = field(
        default=False,
        metadata={
            "help": "Decode a JPEG at 1/2, 1/4 or 1/8 of its size where a view's crop still has as many pixels as the "
            "input: faster for photographs of more than a megapixel, with slightly other pixels."
        },
    )
    random_erasing: float = field(default=0.25, metadata={"help": "Probability of random erasing, in [0, 1]."})
    mixup: float = field(default=0.8, metadata={"help": "Mixup's Beta parameter (no probability), or 0 for none."})
    cutmix: float = field(default=1.0, metadata={"help": "CutMix's Beta parameter (no probability), or 0 for none."})
    mixup_probability: float = field(
        default=1.0, metadata={"help": "Part of the groups that are mixed at all, in [0, 1]."}
    )
    mixup_switch_probability: float = field(
        default=0.5, metadata={"help": "Part of CutMix among them, in [0, 1], if mixup and CutMix are both on."}
    )
    mixup_group_size: int | None = field(
        default=None,
        metadata={
            "help": "Consecutive views that are mixed alike; must divide the batch of a device. By default 64, or the "
            "batch of a device if that holds no whole groups of 64."
        },
    )
    total_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Views of an optimizer step, over all devices and accumulation steps; by default what they make. "
            "Where it is stated, a recipe's per_device_train_batch_size is the most that a device takes at once, and "
            "gradient_accumulation_steps follows; what the command line gives of the two holds."
        },
    )
    hub_push_timeout: float = field(
        default=600.0, metadata={"help": "Seconds after which a push to the Hub that fails is given up."}
    )
    resume_from_hub: str | None = field(
        default=None,
        metadata={
            "help": "Go on with a run from the checkpoint that it has pushed (hub_strategy checkpoint or "
            "all_checkpoints): a Hub id, or ID@REVISION."
        },
    )
    on_bad_image: Literal["stop", "skip"] = field(
        default="stop",
        metadata={"help": 'An image that cannot be decoded: "stop" the run, or "skip" it and say which.'},
    )
    check_images: Literal["all", "headers", "none"] = field(
        default="headers",
        metadata={
            "help": 'Before the training, read the "headers" of images, decode them "all", or look at "none". What is '
            "found of folders is kept: only new and changed files are looked at again."
        },
    )

    cache_images: Literal["off", "decoded", "resized"] = field(
        default="off",
        metadata={
            "help": 'Keep training images "decoded" among the temporary files (TMPDIR), where workers find them in '
            'later epochs: the pixels are the same. Or "resized", too, to a shorter side of at most twice the longer '
            "one of the input: large ones take less room, and their views have slightly other pixels."
        },
    )
    cache_images_gb: float = field(
        default=16.0, metadata={"help": "How much cache_images may take for each process of the run, in GB, about."}
    )
    on_bad_teacher_answer: Literal["stop", "skip"] = field(
        default="stop",
        metadata={
            "help": 'A view to which the teacher gives logits that are not finite: "stop" the run, or "skip" the '
            "teacher's term of it, and say how many."
        },
    )

    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    scale_learning_rate: bool = field(
        default=False, metadata={"help": "Train at learning_rate · (batch of all devices and accumulation) / 512."}
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Schedule: cosine is DeiT's; any other is transformers' own."}
    )
    warmup_epochs: float = field(default=0.0, metadata={"help": "Length of the warm-up, instead of warmup_steps."})
    warmup_learning_rate: float = field(default=1e-6, metadata={"help": "Where the cosine schedule's warm-up starts."})
    min_learning_rate: float = field(default=1e-5, metadata={"help": "Where the cosine schedule ends."})
    schedule_per: Literal["step", "epoch"] = field(
        default="step",
        metadata={
            "help": 'Change the learning rate every "step", or every "epoch" as the authors\' code does, where the '
            "first two epochs both train at warmup_learning_rate."
        },
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Decay of the weights' moving average, in [0, 1); 0 for none. It looks back over "
            "1 / (1 - ema_decay) steps: a tenth of the run is good. The authors', for 375,000 steps: 0.99996."
        },
    )
    ema_warmup: bool = field(
        default=False,
        metadata={
            "help": "Let the decay of the moving average grow, for short runs: after step t it is min(ema_decay, "
            "1 - t^(-2/3)), timm's ramp, which has 0.98 after 500 steps. The authors' is ema_decay from the first on."
        },
    )
    publish_weights: Literal["raw", "ema"] = field(
        default="raw", metadata={"help": "What save_model saves: the weights, or their moving average."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Not applied to biases, norms, tokens, positions."})
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "For fine-tuning: the learning rate of a layer as a part of the next one's, in (0, 1]."},
    )
    min_train_steps: int = field(
        default=0,
        metadata={"help": "Optimizer steps that a run has at least, where num_train_epochs would make fewer."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "End a run when so many evaluations in a row are no better by metric_for_best_model; the best is "
            "kept with load_best_model_at_end."
        },
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 for none."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "ε of the class head's labels, in [0, 1)."})
    log_format: Literal["table", "raw"] = field(
        default="table",
        metadata={"help": 'Show what is logged as a "table", or "raw", as transformers\' mappings.'},
    )
    logging_steps: float = field(
        default=0, metadata={"help": "Log every so many steps; by default every 50, and at least ten times a run."}
    )
    eval_epochs: int = field(
        default=1,
        metadata={
            "help": "Evaluate and save every so many epochs, where eval_strategy and save_strategy are epoch; 0 for "
            "as many as make 50 steps, and at least twenty times a run."
        },
    )
    bf16: bool | str = field(
        default=False,
        metadata={"help": 'Train in bfloat16: true, false, or "auto", which is true on a GPU that has it.'},
    )
    dataloader_num_workers: int | str = field(
        default=0,
        metadata={
            "help": 'Processes that load images, for each device; 0 loads in the training\'s own. "auto" has one for '
            "each CPU core but one, at most 16, and where the CPU trains at most 2."
        },
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={
            "help": "Where the log goes, too: tensorboard, wandb, trackio, mlflow, …; all that are installed; none."
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False."})
    # The default would average a NaN away in the log, and would wait for the device at every step.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Must stay False."})

    def __post_init__(self) -> None:
        if self.cache_images is False:  # as YAML reads a bare off
            self.cache_images = "off"
        _check_choices(self)
        _check_numbers(self)
        check_fit(self)
        _check_best(self)
        if self.resume_from_hub and resume_wish(self.resume_from_checkpoint) not in (None, True):
            raise InputError(
                "give either --resume_from_hub or a checkpoint on disk, not both; --resume_from_checkpoint true takes "
                "the newest on disk, if there is one"
            )
        if self.publish_weights == "ema" and not self.ema_decay:
            raise InputError(
                'publish_weights "ema" needs a moving average: give --ema_decay, say 1 - 10 / the steps of the run'
            )
        if self.ema_warmup and not self.ema_decay:
            raise InputError("ema_warmup is of the moving average, but ema_decay is 0: give one, or leave it out")
        if self.reduced_decoding and self.cache_images != "off":
            raise InputError(
                "reduced_decoding decodes an image anew for each view, but what cache_images keeps serves all views, "
                f"got {self.cache_images!r}: give --reduced_decoding false or --cache_images off"
            )
        schedules = [schedule.value for schedule in SchedulerType]
        if self.lr_scheduler_type not in schedules:
            raise InputError(not_one_of("lr_scheduler_type", self.lr_scheduler_type, schedules))
        self.auto_augment = self.auto_augment or None
        self.label_names = ["labels"]  # not every student's forward takes them; the batches always have them
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would only warn at every epoch
        self.bf16, self.dataloader_num_workers = bf16_of(self), num_workers_of(self)
        check_loading(self)
        self.report_to = reporters_of(self.report_to)
        check_precision(self)
        if library_of(self) == "DeepSpeed":
            check_deepspeed()
        self.use_cpu = use_cpu_of(self)
        chosen = self.logging_steps
        self.logging_steps = chosen or DEFAULT_LOGGING_STEPS  # until the number of steps is known
        try:
            super().__post_init__()
        except (TypeError, ValueError, OSError, ImportError, RuntimeError, LookupError, ArithmeticError) as error:
            raise InputError(one_line(error)) from error
        except (AttributeError, AssertionError) as error:  # of what is handed on as it is given, such as JSON
            raise InputError(f"an argument has a value of another kind than it takes: {one_line(error)}") from error
        check_fp16(self)
        check_stage(self)
        check_compilation(self)
        check_reporters(self.report_to)
        self.logging_steps = chosen and self.logging_steps
        if self.accelerator_config.split_batches or self.accelerator_config.dispatch_batches:
            raise InputError("accelerator_config must not split or dispatch batches, which hold whole groups of views")
        if (self.accelerator_config.gradient_accumulation_kwargs or {}).get("num_steps"):
            raise InputError("accelerator_config must not say num_steps: give --gradient_accumulation_steps")
        if self.push_to_hub and self.world_size > 1 and self.hub_push_timeout + 60 > self.ddp_timeout:
            raise InputError(
                f"hub_push_timeout must be at least 60 s below ddp_timeout, as other processes wait meanwhile, got "
                f"{self.hub_push_timeout:g} and {self.ddp_timeout}"
            )
        self._check_schedule()
        self._check_mixing()
        self._check_teacher_labels()

    def _check_schedule(self) -> None:
        if self.warmup_epochs and self.warmup_steps:
            raise InputError(
                f"give either warmup_epochs or warmup_steps, got {self.warmup_epochs:g} and {self.warmup_steps:g}"
            )
        if self.lr_scheduler_type == SchedulerType.COSINE:
            if self.peak_learning_rate < self.min_learning_rate:
                raise InputError(
                    f"the learning rate must not be below min_learning_rate, where the cosine ends, got "
                    f"{self.peak_learning_rate:g} and {self.min_learning_rate:g}: give a lower --min_learning_rate"
                )
            if self.lr_scheduler_kwargs:
                raise InputError(
                    f"lr_scheduler_kwargs are for transformers' other schedules, got {self.lr_scheduler_kwargs}; the "
                    "cosine takes warmup_learning_rate and min_learning_rate"
                )
        elif self.schedule_per != "step" or self.warmup_epochs:
            raise InputError(
                'schedule_per "epoch" and warmup_epochs are for the cosine schedule, got lr_scheduler_type '
                f"{SchedulerType(self.lr_scheduler_type).value!r}"
            )

    def _check_mixing(self) -> None:
        if not self.mixes:
            return
        batch_size = self.train_batch_size
        if self.mixup_group_size is None:
            self.mixup_group_size = 64 if batch_size % 64 == 0 else batch_size
        if self.mixup_group_size < 2 or batch_size % self.mixup_group_size:
            raise InputError(
                f"mixup and CutMix need batches of whole groups of at least 2 views, got per_device_train_batch_size "
                f"{batch_size} and mixup_group_size {self.mixup_group_size}: change one of them, or switch both off "
                "with --mixup 0 --cutmix 0"
            )

    def _check_teacher_labels(self) -> None:
        self.teacher_labels = os.fspath(self.teacher_labels) if self.teacher_labels else None
        if self.teacher_labels is None:
            names = ("revision", "readonly", "top_k")
            given = [f"teacher_labels_{name}" for name in names if getattr(self, f"teacher_labels_{name}")]
            if given := given + ["verify_teacher_labels"] * (self.verify_teacher_labels > 0):
                raise InputError(f"{given[0]} is about the labels of --teacher_labels, which is not given")
            return
        if self.distillation_type == "none":
            raise InputError('teacher_labels are given but distillation_type is "none": drop one of them')
        if self.distillation_type == "soft" and self.teacher_labels_top_k == 0:
            raise InputError(
                "soft distillation learns from logits, got teacher_labels_top_k 0: say how many of a view's are kept, "
                "fewer than there are classes, or leave it out"
            )
        if self.verify_teacher_labels and self.teacher_labels_readonly:
            raise InputError(
                "verify_teacher_labels needs the teacher, which teacher_labels_readonly keeps away: drop one of them"
            )

    @property
    def mixes(self) -> bool:
        """Whether views are mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_probability > 0

    @property
    def mixing(self) -> Mixing | None:
        """What is drawn for the mixing of views, or None."""
        if not self.mixes:
            return None
        return Mixing(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            probability=self.mixup_probability,
            switch_probability=self.mixup_switch_probability,
            group_size=self.mixup_group_size,
        )

    @property
    def cache_bytes(self) -> float:
        """How many bytes of images each process may keep."""
        return 0.0 if self.cache_images == "off" else self.cache_images_gb * 1e9

    @property
    def images_per_block(self) -> int:
        """Slots from one view of an image to its next; see `hf_deit.data.views.image_and_view`.

        As many as a mixing group has; without mixing as the authors' groups have, whatever the batch is.
        """
        if self.repeats_placement == "adjacent" or self.repeated_augmentation == 1:
            return 1
        return self.mixup_group_size if self.mixes else Mixing.group_size

    @property
    def erasing(self) -> RandomErasing | None:
        """What is drawn for random erasing, or None."""
        return RandomErasing(self.random_erasing) if self.random_erasing else None

    @property
    def total_train_batch_size(self) -> int:
        """Views of one optimizer step, over all processes and accumulation steps.

        A `total_batch_size` that is stated, which training refuses where they make another, also holds where nothing
        is trained, as where a teacher labels the views of a run.
        """
        made = self.train_batch_size * self.world_size * self.gradient_accumulation_steps
        return self.total_batch_size or made

    @property
    def n_gpu(self) -> int:
        """GPUs of this process, at most one: several are for several processes, as DataParallel splits groups."""
        return min(super().n_gpu, 1)

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, scaled by the total batch size if `scale_learning_rate` says so."""
        return self.learning_rate * (self.total_train_batch_size / 512 if self.scale_learning_rate else 1)


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
        default=None,
        metadata={"help": "Input size in pixels; a checkpoint's own, or else 224. Positions are interpolated."},
    )
    replace_head: bool = field(
        default=False, metadata={"help": "Start a pretrained student with new heads, for other classes than its own."}
    )
    freeze: Literal["none", "all_but_heads", "all_but_attention"] = field(
        default="none",
        metadata={"help": "Train everything, or only the heads, or only attention, positions and heads."},
    )
    student_overrides: dict | str | None = field(
        default=None,
        metadata={
            "help": "Fields of the student's configuration, as JSON, on top of the recipe's; null removes one: "
            "'{\"drop_path_rate\": 0.1}'."
        },
    )
    crop_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Evaluation crop as a fraction of the shorter side; a checkpoint's own, or else 0.875 (1.0 for "
            "CaiT, and for inputs of at most 32 pixels, which are evaluated as they are)."
        },
    )
    # One is held as a text, several as a list.
    teacher_model_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of the teacher: a classifier, or a zero-shot model (CLIP, SigLIP, …), which "
            "knows classes by their names. Of several, the mean of their probabilities teaches."
        },
    )
    teacher_weights: list[float] | None = field(
        default=None, metadata={"help": "Of several teachers: the weight of each, positive; by default all alike."}
    )
    teacher_label_subset: bool = field(
        default=False,
        metadata={"help": "Let a teacher with more classes than the student teach those of the same name."},
    )
    teacher_probe: str | None = field(
        default=None,
        metadata={
            "help": "Instead of a teacher: Hub id or folder of a backbone, as of DINOv2 or timm, on whose features a "
            "linear classifier of the labelled training images is fitted first."
        },
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the classes, where images have no labels and a zero-shot model teaches."},
    )
    # Of a file that is named, what it says: that is what a recipe holds, and what two runs are compared by.
    class_prompts: dict | str | None = field(
        default=None,
        metadata={
            "help": "YAML file for a zero-shot teacher: for each class the text, or texts, that describe it. Where "
            "images have no labels, and no class_names are given, it names the classes."
        },
    )
    templates: list[str] | None = field(
        default=None,
        metadata={"help": 'Sentences for a zero-shot teacher in which {} is a class\'s name: "a photo of a {}."'},
    )
    teacher_prior_correction: bool = field(
        default=False,
        metadata={
            "help": "Take off a zero-shot teacher, or each of several, what it favours on all training images: the "
            "log of its mean probabilities."
        },
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher."})
    teacher_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    teacher_speed: Literal["auto", "off"] = field(
        default="auto",
        metadata={
            "help": 'How the teacher runs: "off" as it was loaded; "auto" folds its BatchNorm, chooses the layout of '
            "its memory and compiles it where a trial of a long run finds that faster and its labels the same. "
            "A checkpoint, and a label store, keep what was chosen."
        },
    )
    teacher_input_size: str = field(
        default="own",
        metadata={
            "help": 'Size that the teacher is shown training views at: its "own", which it was trained for, the '
            '"student"\'s, or a number of pixels.'
        },
    )
    teacher_recipe: str | None = field(
        default=None, metadata={"help": "Recipe that trains a teacher on the same data first, if none is given."}
    )

    def __post_init__(self) -> None:
        if self.teacher_speed is False:  # as YAML reads a bare off
            self.teacher_speed = "off"
        _check_choices(self)
        check_ranges(self, _RANGES_OF_MODELS)
        for name in ("student", "teacher_model_name_or_path", "teacher_recipe", "class_prompts"):
            if isinstance(getattr(self, name), os.PathLike):
                setattr(self, name, os.fspath(getattr(self, name)))
        self.teacher_model_name_or_path = one_or_several(self.teacher_model_name_or_path)
        self._check_teachers()
        self.teacher_input_size = str(parse_input_size(self.teacher_input_size or "own"))
        if self.class_names is not None:
            self.class_names = checked_class_names(self.class_names)
        checked_templates(self.templates or None)
        self.class_prompts = read_prompts(self.class_prompts) if self.class_prompts else None
        if isinstance(self.student_overrides, str):
            try:
                self.student_overrides = json.loads(self.student_overrides)
            except ValueError as error:
                raise InputError(f"student_overrides must be a JSON object, got {self.student_overrides!r}") from error
        if not isinstance(self.student_overrides, dict | None):
            raise InputError(f"student_overrides must be a JSON object, got {self.student_overrides!r}")

    def _check_teachers(self) -> None:
        """Takes a revision from behind the name of one teacher, and refuses what cannot be of several.

        Raises:
            InputError: there are two revisions of one, or one of several; or weights that are none of theirs.
        """
        names = self.teacher_model_name_or_path
        if isinstance(names, str):
            name, revision = name_and_revision(names)
            if revision is None:
                return
            if self.teacher_revision not in (None, revision):
                raise InputError(
                    f"the teacher {names!r} names a revision, got --teacher_revision {self.teacher_revision}: leave "
                    "one of them out"
                )
            self.teacher_model_name_or_path, self.teacher_revision = name, revision
        elif names is not None:
            if self.teacher_revision is not None:
                raise InputError(
                    f"--teacher_revision {self.teacher_revision} is of one teacher, got {len(names)}: write each as "
                    "NAME@REVISION"
                )
            normalized_weights(self.teacher_weights, len(names))


def one_or_several(names: Any) -> Any:
    """What a field of one or several names holds: None, the one as a text, or a list of several."""
    if isinstance(names, list | tuple):
        names = [os.fspath(name) if isinstance(name, os.PathLike) else name for name in names]
        return names[0] if len(names) == 1 else names or None
    return names or None


def checked_class_names(names: Any) -> list[str]:
    """Names of classes as they were given, without blanks around them.

    Raises:
        InputError: there are fewer than two, or one stands twice or is empty.
    """
    names = [str(name).strip() for name in names]
    if len(names) < 2 or not all(names):
        raise InputError(
            f"class_names must be the names of at least two classes, got {shortlist(map(repr, names)) or 'none'}: "
            'give them one behind the other, in quotes where they have blanks: --class_names "red fox" wolf'
        )
    if twice := [name for name, count in Counter(map(composed, names)).items() if count > 1]:
        raise InputError(f"class_names has {shortlist(map(repr, twice))} more than once: name each class once")
    return names


def check_fit(args: DistillationTrainingArguments) -> None:
    """Refuses values of `UNFIT_OPTIONS`, with the reason.

    Raises:
        InputError: there is one.
    """
    for name, (allowed, reason) in UNFIT_OPTIONS.items():
        if getattr(args, name) not in allowed:
            raise InputError(f"{name} must be {allowed[0]!r}, got {getattr(args, name)!r}: {reason}")


def _check_choices(arguments: object) -> None:
    """Refuses values that a `Literal` field does not list; dataclasses do not check."""
    for item in dataclasses.fields(arguments):
        choices = getattr(item.type, "__args__", ()) if getattr(item.type, "__origin__", None) is Literal else ()
        if choices and getattr(arguments, item.name) not in choices:
            raise InputError(not_one_of(item.name, getattr(arguments, item.name), choices))


def _check_best(args: DistillationTrainingArguments) -> None:
    """Refuses to keep a best checkpoint where there is none that is evaluated, and saved."""
    if args.save_strategy == SaveStrategy.BEST and not args.metric_for_best_model:
        raise InputError('save_strategy "best" saves by a metric: give --metric_for_best_model, say top1')
    if args.save_strategy == SaveStrategy.BEST and args.eval_strategy == "no":
        raise InputError('save_strategy "best" saves what was evaluated best, but eval_strategy is "no": give one')
    if args.load_best_model_at_end and args.save_strategy not in (args.eval_strategy, SaveStrategy.BEST):
        evaluated, saved = SaveStrategy(args.eval_strategy).value, SaveStrategy(args.save_strategy).value
        raise InputError(
            f"load_best_model_at_end keeps the best of what is both evaluated and saved, got eval_strategy "
            f"{evaluated!r} and save_strategy {saved!r}: make them alike, or give --load_best_model_at_end false"
        )
    if args.early_stopping_patience is not None and (args.eval_strategy == "no" or not args.load_best_model_at_end):
        raise InputError(
            f"early_stopping_patience ends a run that gets no better, and goes back to its best, got "
            f"{args.early_stopping_patience} with eval_strategy {SaveStrategy(args.eval_strategy).value!r} and "
            f"load_best_model_at_end {str(bool(args.load_best_model_at_end)).lower()}: give --eval_strategy and "
            "--save_strategy epoch, --load_best_model_at_end true and --metric_for_best_model top1, or leave it out"
        )


def _check_numbers(args: DistillationTrainingArguments) -> None:
    """Refuses numbers outside `_RANGES`; see `check_ranges`."""
    check_ranges(args, _RANGES)
    is_number = isinstance(args.max_steps, Real)
    if not is_number or (args.max_steps != -1 and not 1 <= args.max_steps < 2**31):
        raise InputError(f"max_steps must lie in {COUNTS}, or be -1 for num_train_epochs, got {args.max_steps}")
