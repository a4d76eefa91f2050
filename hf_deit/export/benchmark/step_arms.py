"""The training steps that are compared: this package's Trainer, and what a user would write with other libraries."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import timm
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.task import TokenDistillationTask
from torch import nn
from transformers import Trainer, TrainingArguments

from ...errors import InputError
from ...evaluation.benchmarks.stand_ins import photographs, random_teacher
from ...evaluation.benchmarks.trainer_step import TrainerStep
from ...models.execution import PLAIN, Execution
from ...models.folding import fold_batch_norm
from ...models.image_processing_deit import DistilledDeiTImageProcessor
from ...models.zoo import create_model
from ...training.arguments import DistillationTrainingArguments
from ...training.losses import class_targets, hard_distillation_loss, soft_target_cross_entropy
from ...training.teacher_speed import Choice, choose_execution
from ...training.trainer import DistillationTrainer
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.names import timm_weights
from ..checkpoints.write import native_model, timm_architecture
from ..requirements import require

# This package's: its teacher runs as is fastest, as by default in a long run, or as it was loaded.
OURS = ("hf_deit", "hf_deit-plain")
TUNED = "-tuned"
VIT_PYTORCH = "vit-pytorch"
_PEERS = tuple(name + end for name in ("timm", "transformers", "transformers-trainer") for end in ("", TUNED))
ARMS = (
    *(f"alone:{name}" for name in (OURS[0], *_PEERS)),
    *(f"live:{name}" for name in (*OURS, *_PEERS, VIT_PYTORCH, VIT_PYTORCH + TUNED)),
)
_IMAGENET = 1_281_167  # images
Step = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class StepSettings:
    """What steps are made of.

    Attributes:
        student: a distilled DeiT of the zoo.
        teacher: timm's name.
        image_size: in pixels.
        batch_size: views of a step.
        bf16: of the teacher, and by autocast of the student.
        compiled: whether `torch.compile` makes the student of this package's arms and of tuned ones, and the teacher
            of the latter; that of the former is compiled where it pays, whatever is said here.
        device: "cpu" or "cuda"; None for the best there is.
        folder: for what a Trainer may write.
        execution: how this package's teacher runs; by default that is found out.
    """

    student: str
    teacher: str
    image_size: int
    batch_size: int
    bf16: bool
    compiled: bool
    device: str | None
    folder: str
    execution: Execution | None = None


class Steps:
    """Makes each arm's step, with a student of its own, on one batch.

    Attributes:
        device: that computes.
        pixels: (B, 3, H, W), normalised and mixed, on the device.
        targets: (B, num_labels), smoothed and mixed.
    """

    def __init__(self, settings: StepSettings) -> None:
        size, bf16 = settings.image_size, settings.bf16
        self.settings = settings
        self.data = photographs(2 * settings.batch_size, different=settings.batch_size)
        self.processor = DistilledDeiTImageProcessor(crop_size=size)
        torch.manual_seed(0)
        id2label = dict(enumerate(self.data.features["label"].names))
        self.student = create_model(settings.student, id2label=id2label, image_size=size, drop_path_rate=0.0)
        self.teacher = random_teacher(settings.teacher, size, torch.bfloat16 if bf16 else torch.float32)
        self.shared = {
            "output_dir": settings.folder,
            "per_device_train_batch_size": settings.batch_size,
            "dataloader_num_workers": 0,
            "max_steps": 2,
            "bf16": bf16,
            "use_cpu": settings.device == "cpu",
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        self.options = {**self.shared, "torch_compile": settings.compiled}
        trainer = self._trainer("alone")
        self.device = trainer.args.device
        self.batch = trainer.prepare_batch(next(iter(trainer.get_train_dataloader())))
        self.pixels = self.batch["pixel_values"]
        self.targets = class_targets(
            self.batch["labels"],
            len(id2label),
            smoothing=trainer.args.label_smoothing_factor,
            partner_labels=self.batch.get("partner_labels"),
            label_weights=self.batch.get("label_weights"),
        )

    def step(self, arm: str) -> Step:
        """A step of an arm of `ARMS`, which returns its loss.

        Raises:
            InputError: vit-pytorch is not installed, or its wrapper's loss is not the one that it documents.
        """
        kind, _, name = arm.partition(":")
        if name in OURS:
            ours = TrainerStep(self._trainer(kind, self.choice.execution if name == OURS[0] else PLAIN))
            return lambda: ours(self.batch)
        is_tuned, name = name.endswith(TUNED), name.removesuffix(TUNED)
        teacher = None if kind == "alone" else self._tuned_teacher if is_tuned else self._plain_teacher
        if name == "transformers-trainer":
            return self._step_of_trainer(teacher, is_tuned)
        if name == VIT_PYTORCH:
            model, loss_of = self._vit_pytorch(teacher)
        elif name == "timm":
            model = self._timm()
            loss_of = self._loss_of_timm(model, teacher)
        else:
            model = self._transformers()
            loss_of = self._loss_of_transformers(model, teacher)
        if is_tuned and self.settings.compiled:
            model.compile()
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=5e-4, **({"fused": True} if is_tuned else {}))

        def run() -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
                loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return run

    @cached_property
    def choice(self) -> Choice:
        """How this package's teacher runs in an epoch of ImageNet, and what was found."""
        if self.settings.execution is not None:
            return Choice(self.settings.execution)
        teacher = copy.deepcopy(self.teacher).to(self.device)
        return choose_execution(teacher, [self.pixels], num_views=_IMAGENET)

    def _trainer(self, kind: str, execution: Execution = PLAIN) -> DistillationTrainer:
        own, teacher = {} if kind == "live" else {"distillation_type": "none"}, None
        if kind == "live":
            teacher = copy.deepcopy(self.teacher)
            teacher.run_as(execution)
        return DistillationTrainer(
            copy.deepcopy(self.student),
            DistillationTrainingArguments(**self.options, **own),
            teacher=teacher,
            processing_class=self.processor,
            train_dataset=self.data,
        )

    def _timm(self) -> nn.Module:
        name, arguments = timm_architecture(self.student.config)
        settings = {"num_classes": self.student.config.num_labels, "img_size": self.settings.image_size} | arguments
        model = timm.create_model(name, **settings)
        model.load_state_dict(timm_weights(self.student.state_dict(), self.student.config))
        model.set_distilled_training(True)
        return model.to(self.device).train()

    def _transformers(self) -> nn.Module:
        weights = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        model = native_model(Checkpoint(self.student.config, weights, self.processor, "hf_deit"))
        return model.requires_grad_().to(self.device).train()

    @cached_property
    def _plain_teacher(self) -> nn.Module:
        return copy.deepcopy(self.teacher.model.timm_model).to(self.device).eval()

    @cached_property
    def _tuned_teacher(self) -> nn.Module:
        model = copy.deepcopy(self.teacher.model.timm_model).eval()
        pixels = torch.zeros(1, *self.pixels.shape[1:], dtype=self.teacher.dtype)
        fold_batch_norm(model, lambda: model(pixels))
        model = model.to(self.device, memory_format=torch.channels_last)
        if self.settings.compiled:
            model.compile()
        return model

    def _loss_of_timm(self, model: nn.Module, teacher: nn.Module | None) -> Callable[[], torch.Tensor]:
        criterion = SoftTargetCrossEntropy()
        if teacher is None:
            return lambda: sum(criterion(logits, self.targets) for logits in model(self.pixels)) / 2
        teacher.pretrained_cfg = model.pretrained_cfg  # both see the same pixels
        task = TokenDistillationTask(
            model, teacher, criterion, distill_type="hard", task_loss_weight=0.5, device=self.device, verbose=False
        ).train()
        return lambda: task(self.pixels, self.targets)["loss"]

    def _loss_of_transformers(self, model: nn.Module, teacher: nn.Module | None) -> Callable[[], torch.Tensor]:
        return lambda: _two_headed_loss(model(pixel_values=self.pixels), self.pixels, self.targets, teacher)

    def _step_of_trainer(self, teacher: nn.Module | None, is_tuned: bool) -> Step:
        args = TrainingArguments(**self.shared, torch_compile=is_tuned and self.settings.compiled, report_to="none")
        trainer = _TeachingTrainer(self._transformers(), args, teacher=teacher)
        trainer.create_optimizer()
        model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.current_gradient_accumulation_steps = 1  # which its loop sets
        inputs = {"pixel_values": self.pixels, "targets": self.targets}

        def run() -> torch.Tensor:
            loss = trainer.training_step(model, inputs)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return run

    def _vit_pytorch(self, teacher: nn.Module) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
        """Its own vision transformer, of the same width, depth and heads: others than its own it does not distil.

        It has norms before and after the patches' projection, no biases of queries, keys and values, and a
        distillation token without a position, so that it cannot have the other arms' weights.
        """
        require("bench")
        from vit_pytorch.distill import DistillableViT, DistillWrapper

        config = self.student.config
        torch.manual_seed(0)
        model = DistillableViT(
            image_size=self.settings.image_size,
            patch_size=config.patch_size,
            num_classes=config.num_labels,
            dim=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            dim_head=config.hidden_size // config.num_attention_heads,
            mlp_dim=config.intermediate_size,
        )
        wrapper = DistillWrapper(student=model, teacher=teacher, alpha=0.5, hard=True).to(self.device).train()
        teacher.eval().requires_grad_(False)  # `train` reaches the teacher, too
        self._check_vit_pytorch(wrapper)
        return wrapper, lambda: wrapper(self.pixels, self.targets)

    def _check_vit_pytorch(self, wrapper: nn.Module) -> None:
        """Its loss is half the class head's cross-entropy, half the distillation head's with the teacher's label."""
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16)
        with torch.no_grad(), autocast:
            found = wrapper(self.pixels, self.targets)
            logits, token = wrapper.student(self.pixels, distill_token=wrapper.distillation_token)
            class_loss = soft_target_cross_entropy(logits, self.targets)
            expected = class_loss + hard_distillation_loss(wrapper.distill_mlp(token), wrapper.teacher(self.pixels))
        check_same_loss(VIT_PYTORCH, float(found), "its formula", float(expected / 2), self.tolerance)

    @property
    def tolerance(self) -> float:
        """Of the relative difference of two arms' losses."""
        return 2e-2 if self.settings.bf16 else 1e-4


def check_same_loss(arm: str, loss: float, reference: str, expected: float, tolerance: float) -> None:
    """Refuses an arm that does not do what another does.

    Args:
        arm, loss: its name, and what it has on the batch.
        reference, expected: of what it is compared with.
        tolerance: of the relative difference.

    Raises:
        InputError: the losses differ; the message names the arm.
    """
    if not abs(loss - expected) <= tolerance * abs(expected):
        raise InputError(
            f"{arm} has a loss of {loss:.7g} on the batch on which {reference} has {expected:.7g}: they do not do the "
            "same, so that their times cannot be compared"
        )


def _two_headed_loss(
    outputs: Any, pixels: torch.Tensor, targets: torch.Tensor, teacher: nn.Module | None
) -> torch.Tensor:
    class_loss = soft_target_cross_entropy(outputs.cls_logits, targets)
    if teacher is None:
        return (class_loss + soft_target_cross_entropy(outputs.distillation_logits, targets)) / 2
    with torch.no_grad():
        answer = teacher(pixels)
    return (class_loss + hard_distillation_loss(outputs.distillation_logits, answer)) / 2


class _TeachingTrainer(Trainer):
    """transformers' Trainer as a user lets it distil: the teacher is asked in `compute_loss`."""

    def __init__(self, model: nn.Module, args: TrainingArguments, *, teacher: nn.Module | None) -> None:
        super().__init__(model, args)
        self._teacher = teacher

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = _two_headed_loss(outputs, inputs["pixel_values"], inputs["targets"], self._teacher)
        return (loss, outputs) if return_outputs else loss
