"""A training step against timm's and transformers': the same weights, pixels, targets and teacher, arms in turn."""

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d
from timm.loss import SoftTargetCrossEntropy
from timm.task import TokenDistillationTask
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from ...errors import InputError, did_you_mean, rate
from ...evaluation.benchmarks.stand_ins import photographs, random_teacher
from ...evaluation.benchmarks.timing import Ratio, time_in_turn
from ...evaluation.benchmarks.trainer_step import TrainerStep
from ...evaluation.speed.throughput import Peak, square_products
from ...hub.environment import describe_environment
from ...models.image_processing_deit import DistilledDeiTImageProcessor
from ...models.zoo import create_model
from ...training.arguments import DistillationTrainingArguments
from ...training.losses import class_targets, hard_distillation_loss, soft_target_cross_entropy
from ...training.trainer import DistillationTrainer
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.names import timm_weights
from ..checkpoints.write import native_model, timm_architecture

ARMS = (
    "alone:hf_deit",
    "alone:timm",
    "alone:transformers",
    "live:hf_deit",
    "live:timm",
    "live:timm-tuned",
    "live:transformers",
    "live:transformers-tuned",
)
_LONGEST = 1.0  # seconds of a product of matrices
_COPIED = {"cpu": 1 << 25, "cuda": 1 << 28}  # floats: more than any cache holds, and than a launch takes to copy


@dataclass(frozen=True)
class StepReport:
    """What a training step costs; printed as a table.

    Attributes:
        student, teacher: names of the zoo and of timm.
        batch_size: views of a step.
        loss: of each arm, on the batch before its first step.
        seconds: of a step, by arm and round.
        flops: of a step, forward and backward, by arm.
        memory: the most bytes that a step held on the GPU, by arm; empty on a CPU.
        peak: floating-point operations a second of a square product, in the step's precision.
        bandwidth: bytes a second of a copy, read and written.
        environment: see `describe_environment`.
    """

    student: str
    teacher: str
    batch_size: int
    loss: dict[str, float]
    seconds: dict[str, list[float]]
    flops: dict[str, int]
    memory: dict[str, int]
    peak: float
    bandwidth: float
    environment: dict[str, Any]

    def ratio(self, arm: str) -> Ratio | None:
        """An arm's time by that of ours of its kind; None where ours was not measured."""
        ours = f"{arm.partition(':')[0]}:hf_deit"
        return Ratio.of(self.seconds[arm], self.seconds[ours]) if ours in self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON."""
        ratios = {arm: self.ratio(arm) for arm in self.seconds}
        return {**asdict(self), "ratio_to_ours": {arm: each and asdict(each) for arm, each in ratios.items()}}

    def __str__(self) -> str:
        rows = [("arm", "s", "images/s", "time / ours", "of peak", "MB"), ("---",) * 6]
        for arm, seconds in self.seconds.items():
            median = statistics.median(seconds)
            memory = f"{self.memory[arm] / 1e6:.0f}" if arm in self.memory else "-"
            part = f"{self.flops[arm] / median / self.peak:.0%}"
            rows.append(
                (arm, f"{median:.4f}", rate(self.batch_size / median), str(self.ratio(arm) or "-"), part, memory)
            )
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return (
            f"A step of {self.student} with {self.batch_size} views, teacher {self.teacher}, medians, on "
            f"{self.environment['device']}, whose peak is {self.peak / 1e9:.0f} GFLOP/s and "
            f"{self.bandwidth / 1e9:.1f} GB/s:\n\n{table}"
        )


def folded(model: nn.Module) -> nn.Module:
    """A copy of a timm model for inference, whose weights "conv…" have taken up the BatchNorm "bn…" beside them."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for name, conv in list(module.named_children()):
            norm = getattr(module, name.replace("conv", "bn"), None)
            if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                rest = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
                setattr(module, name.replace("conv", "bn"), rest)
    return model


def check_losses(losses: dict[str, float], tolerance: float) -> None:
    """Refuses arms that do not do the same work.

    Args:
        losses: of each arm, "kind:name", on one batch; the first of each kind is what the others must agree with.
        tolerance: of the relative difference.

    Raises:
        InputError: a loss differs; the message names the arm.
    """
    first: dict[str, str] = {}
    for arm, loss in losses.items():
        reference = first.setdefault(arm.partition(":")[0], arm)
        if not abs(loss - losses[reference]) <= tolerance * abs(losses[reference]):
            raise InputError(
                f"{arm} has a loss of {loss:.7g} on the batch on which {reference} has {losses[reference]:.7g}: they "
                "do not do the same, so that their times cannot be compared"
            )


def measure_step(
    *,
    student: str = "deit_tiny_distilled_patch16_224",
    teacher: str = "regnety_040",
    image_size: int = 224,
    batch_size: int = 16,
    rounds: int = 9,
    steps: int = 1,
    arms: Sequence[str] = (),
    bf16: bool = False,
) -> StepReport:
    """Compares the training step, from normalised and mixed pixels on the device to the changed weights.

    There is no stochastic depth, so that all arms have one loss, which is checked. "Tuned" arms have a teacher with
    folded BatchNorm in channels_last, and a fused AdamW.

    Args:
        student: a distilled DeiT of the zoo.
        teacher: timm's name; its weights are random.
        image_size: in pixels.
        batch_size: views of a step; even, as views are mixed in pairs.
        rounds: that are counted.
        steps: of an arm in a round.
        arms: some of `ARMS`; all by default.
        bf16: of the teacher, and by autocast of the student.

    Raises:
        InputError: an arm is not known, the student has no distillation token, or losses differ.
    """
    for arm in arms:
        if arm not in ARMS:
            raise InputError(f"--arms must be of {', '.join(ARMS)}, got {arm!r}{did_you_mean(arm, ARMS)}")
    if "distilled" not in student:
        raise InputError(f"--student must be a distilled DeiT, as deit_tiny_distilled_patch16_224, got {student!r}")
    with tempfile.TemporaryDirectory() as folder:
        steps_of = _Steps(student, teacher, image_size, batch_size, bf16, folder)
        calls = {arm: steps_of.step(arm) for arm in ARMS if not arms or arm in arms}
        losses, flops, memory = {}, {}, {}
        for arm, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                losses[arm] = float(call())
            flops[arm] = counter.get_total_flops()
        check_losses(losses, 2e-2 if bf16 else 1e-4)
        for arm, call in calls.items() if torch.cuda.is_available() else ():
            torch.cuda.reset_peak_memory_stats()
            call()
            memory[arm] = torch.cuda.max_memory_allocated()
        several = {arm: lambda call=call: [call() for _ in range(steps)] for arm, call in calls.items()}
        products = dict(square_products(torch.bfloat16 if bf16 else torch.float32, steps_of.device, _LONGEST))
        copied, copy_once = _copy(steps_of.device)
        seconds = time_in_turn(
            {**several, **{f"product {side}": run for side, run in products.items()}, "copy": copy_once}, rounds=rounds
        )
    return StepReport(
        student=student,
        teacher=teacher,
        batch_size=batch_size,
        loss=losses,
        seconds={arm: [value / steps for value in seconds[arm]] for arm in calls},
        flops=flops,
        memory=memory,
        peak=Peak.of({side: seconds[f"product {side}"] for side in products}).flop_per_second,
        bandwidth=copied / min(seconds["copy"]),
        environment=describe_environment(),
    )


def _copy(device: torch.device) -> tuple[int, Callable[[], object]]:
    """A copy, and how many bytes it reads and writes."""
    source = torch.randn(_COPIED.get(device.type, _COPIED["cpu"]), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes, lambda: target.copy_(source)


class _Steps:
    """Makes each arm's step, with models of its own, on one batch."""

    def __init__(self, student: str, teacher: str, image_size: int, batch_size: int, bf16: bool, folder: str) -> None:
        self.bf16, self.image_size = bf16, image_size
        self.data = photographs(2 * batch_size, different=batch_size)
        self.processor = DistilledDeiTImageProcessor(crop_size=image_size)
        torch.manual_seed(0)
        id2label = dict(enumerate(self.data.features["label"].names))
        self.student = create_model(student, id2label=id2label, image_size=image_size, drop_path_rate=0.0)
        self.teacher = random_teacher(teacher, image_size, torch.bfloat16 if bf16 else torch.float32)
        self.options = {
            "output_dir": folder,
            "per_device_train_batch_size": batch_size,
            "dataloader_num_workers": 0,
            "max_steps": 2,
            "bf16": bf16,
            "disable_tqdm": True,
            "save_strategy": "no",
        }
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

    def step(self, arm: str) -> Callable[[], torch.Tensor]:
        """A step, which returns its loss."""
        kind, _, name = arm.partition(":")
        if name == "hf_deit":
            ours = TrainerStep(self._trainer(kind))
            return lambda: ours(self.batch)
        is_tuned = name.endswith("-tuned")
        model = (self._timm() if name.startswith("timm") else self._transformers()).to(self.device).train()
        teach = self._plain_teacher(is_tuned) if kind == "live" else None
        loss_of = (self._loss_of_timm if name.startswith("timm") else self._loss_of_transformers)(model, teach)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, **({"fused": True} if is_tuned else {}))

        def run() -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return run

    def _trainer(self, kind: str) -> DistillationTrainer:
        own = {} if kind == "live" else {"distillation_type": "none"}
        return DistillationTrainer(
            copy.deepcopy(self.student),
            DistillationTrainingArguments(**self.options, **own),
            teacher=copy.deepcopy(self.teacher) if kind == "live" else None,
            processing_class=self.processor,
            train_dataset=self.data,
        )

    def _timm(self) -> nn.Module:
        name, arguments = timm_architecture(self.student.config)
        settings = {"num_classes": self.student.config.num_labels, "img_size": self.image_size} | arguments
        model = timm.create_model(name, **settings)
        model.load_state_dict(timm_weights(self.student.state_dict(), self.student.config))
        model.set_distilled_training(True)
        return model

    def _transformers(self) -> nn.Module:
        weights = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        model = native_model(Checkpoint(self.student.config, weights, self.processor, "hf_deit"))
        return model.requires_grad_()

    def _plain_teacher(self, is_tuned: bool) -> nn.Module:
        model = copy.deepcopy(self.teacher.model.timm_model).to(self.device).eval()
        return folded(model).to(memory_format=torch.channels_last) if is_tuned else model

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
        def loss_of() -> torch.Tensor:
            outputs = model(pixel_values=self.pixels)
            class_loss = soft_target_cross_entropy(outputs.cls_logits, self.targets)
            if teacher is None:
                return (class_loss + soft_target_cross_entropy(outputs.distillation_logits, self.targets)) / 2
            with torch.no_grad():
                answer = teacher(self.pixels)
            return (class_loss + hard_distillation_loss(outputs.distillation_logits, answer)) / 2

        return loss_of
