"""The Trainer computes the paper's objective, and nothing about a run depends on how it is cut into pieces.

Accumulation, processes, stopping and resuming leave the parameters as they would have been; the teacher is outside
everything that is trained, wrapped or saved; what goes wrong stops the run with a message.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support import tiny
from support.images import load
from support.main_of import launch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DeiTConfig,
    Trainer,
    TrainerCallback,
    ViTConfig,
    ViTImageProcessor,
)
from transformers import DeiTForImageClassificationWithTeacher as NativeDistilled
from transformers import ViTForImageClassification as NativePlain

from hf_deit import DistillationTrainer, InputError, TrainingDivergedError, load_teacher
from hf_deit.data.image_data import ImageData
from hf_deit.data.streams import ImageStream
from hf_deit.data.view_dataset import EvaluationDataset
from hf_deit.data.views import ViewKey
from hf_deit.training.datasets import make_sampler
from hf_deit.training.skipped_images import SkippedImages


@pytest.fixture(scope="module")
def folder_of_teacher(tmp_path_factory) -> str:
    return tiny.teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def teacher(folder_of_teacher):
    return load_teacher(folder_of_teacher, student_processor=tiny.processor())


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def native(kind: str):
    torch.manual_seed(0)
    sizes = {**tiny.SIZES, "layer_norm_eps": 1e-6}
    config = {"deit": DeiTConfig, "vit": ViTConfig}[kind](**sizes, id2label={i: str(i) for i in range(10)})
    return {"deit": NativeDistilled, "vit": NativePlain}[kind](config)


STUDENTS = {
    "distilled": tiny.student,
    "one head answers": lambda: tiny.student(fusion="distillation"),
    "softmax": lambda: tiny.student(fusion="softmax"),
    "plain": lambda: tiny.student(distilled=False),
    "native deit": lambda: native("deit"),
    "native vit": lambda: native("vit"),
    "resnet": tiny.resnet,
}

# The objective


def batch_of(trainer) -> dict[str, torch.Tensor]:
    return trainer.prepare_batch(next(iter(trainer.get_train_dataloader())))


@pytest.mark.parametrize("distilled", [True, False])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_loss_is_the_papers(tmp_path, teacher, distilled, kind):
    args = tiny.arguments(
        tmp_path,
        distillation_type=kind,
        distillation_alpha=0.3,
        distillation_temperature=2.0,
        label_smoothing_factor=0.1,
    )
    trainer = tiny.trainer(tiny.student(distilled=distilled), args, teacher)
    model = trainer.model.train()
    batch = batch_of(trainer)
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)

    class_logits = (outputs.cls_logits if distilled else outputs.logits).double()
    other_logits = (outputs.distillation_logits if distilled else outputs.logits).double()
    log_p = class_logits.log_softmax(-1)
    smoothed = torch.full_like(log_p, 0.1 / 10).scatter(1, batch["labels"][:, None], 1 - 0.1 + 0.1 / 10)
    class_loss = -(smoothed * log_p).sum(-1).mean()
    teacher_logits = teacher(batch["pixel_values"]).double()
    if kind == "hard":
        decisions = teacher_logits.argmax(-1)
        teacher_loss = -other_logits.log_softmax(-1)[torch.arange(8), decisions].mean()
    else:
        target = (teacher_logits / 2).softmax(-1)
        teacher_loss = 4 * (target * (target.log() - (other_logits / 2).log_softmax(-1))).sum(-1).mean()
    assert loss.item() == pytest.approx((0.7 * class_loss + 0.3 * teacher_loss).item(), abs=1e-5)


class _Waits(TorchDispatchMode):
    """Notes the operations after which a host has waited for its device: their result is, or depends on, a value."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_", "equal.", "repeat_interleave.T")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        by_mask = name.startswith("index.Tensor") and any(
            place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1]
        )
        if by_mask or name.startswith(self.NAMES):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["hard", "soft", "none"])
def test_between_logs_the_host_never_waits_for_the_device(tmp_path, teacher, kind):
    with _Waits() as waits:
        assert torch.ones(2)[torch.tensor([True, False])].item() == 1
    assert [name.partition(".")[0] for name in waits.found] == ["index", "_local_scalar_dense"]
    regularisation = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "ema_decay": 0.9}
    args = tiny.arguments(tmp_path, distillation_type=kind, **regularisation)
    trainer = tiny.trainer(tiny.student(drop_path_rate=0.2), args, None if kind == "none" else teacher)
    optimizer = trainer.create_optimizer()
    raw = next(iter(trainer.get_train_dataloader()))
    with _Waits() as waits:
        trainer.compute_loss(trainer.model.train(), trainer.prepare_batch(raw)).backward()
        optimizer.step()
        trainer.weight_average.update(1)
    assert waits.found == []


def test_teacher_sees_exactly_the_students_pixels(tmp_path, teacher):
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path), teacher)
    seen = {}
    trainer.model.register_forward_pre_hook(lambda m, a, k: seen.update(student=k["pixel_values"]), with_kwargs=True)
    teacher.register_forward_pre_hook(lambda m, a: seen.update(teacher=a[0]))
    trainer.compute_loss(trainer.model.train(), batch_of(trainer))
    assert torch.equal(seen["student"], seen["teacher"])
    raw = trainer.train_dataset[next(iter(trainer._get_train_sampler()))]["pixel_values"].double() / 255
    mean, std = (
        torch.tensor(s).double().view(3, 1, 1) for s in (tiny.processor().image_mean, tiny.processor().image_std)
    )
    torch.testing.assert_close(seen["student"][0].double(), (raw - mean) / std, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["hard", "none"])
@pytest.mark.parametrize("name", STUDENTS)
def test_every_parameter_learns(tmp_path, folder_of_teacher, name, kind):
    teacher = load_teacher(folder_of_teacher, student_processor=tiny.processor()) if kind == "hard" else None
    model = STUDENTS[name]()
    before = parameters(model)
    tiny.trainer(model, tiny.arguments(tmp_path, distillation_type=kind, max_steps=2), teacher).train()
    assert [key for key, value in parameters(model).items() if torch.equal(value, before[key])] == []


def test_bf16_trains(tmp_path, teacher):
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, bf16=True, max_steps=30), teacher)
    dtypes = set()
    trainer.model.deit.layers[0].mlp.fc1.register_forward_hook(lambda m, a, output: dtypes.add(output.dtype))
    trainer.train()
    assert dtypes == {torch.bfloat16}
    losses = [entry["class_loss"] for entry in trainer.state.log_history if "class_loss" in entry]
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


# Nothing depends on how the run is cut


def assert_equivalent(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], optim: str) -> None:
    if optim != "sgd":
        # Attention does not depend on the keys' bias. Its gradient is rounding noise, which Adam scales up to steps.
        noise = [name for name in one if name.endswith("k_proj.bias")]
        one, other = ({k: v for k, v in model.items() if k not in noise} for model in (one, other))
    assert largest_difference(one, other) < 1e-6


@pytest.mark.parametrize(("optim", "learning_rate"), [("adamw_torch_fused", 1e-3), ("sgd", 0.05)])
def test_accumulation_is_equivalent(tmp_path, folder_of_teacher, optim, learning_rate):
    results = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        args = tiny.arguments(
            tmp_path,
            max_steps=20,
            optim=optim,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )
        model = tiny.student(drop_path_rate=0.2)
        tiny.trainer(model, args, load_teacher(folder_of_teacher, student_processor=tiny.processor())).train()
        results.append(parameters(model))
    assert_equivalent(*results, optim)
    assert largest_difference(results[0], parameters(tiny.student())) > 1e-3  # it did learn


TWO_PROCESSES = """
import os, sys
import conftest, torch
from support import tiny
from hf_deit import load_teacher
from hf_deit.commands.command_line import exit_command
from hf_deit.training import teacher_speed

def planted(arms, batch, after_batch):  # by the main process alone
    assert int(os.environ["RANK"]) == 0
    return {execution: 1.0 - 0.1 * bool(execution.folded) for execution in arms}

teacher_speed.LEAST_FLOPS, teacher_speed._time_in_turn = {"cpu": 0.0, "cuda": 0.0}, planted
names = sys.argv[1].split(",")
teacher = load_teacher(names, student_processor=tiny.processor(), weights=[2, 1], speed="auto")
model = tiny.student(drop_path_rate=0.2)
args = tiny.arguments(sys.argv[2], max_steps=20, per_device_train_batch_size=int(sys.argv[3]),
                      save_strategy="steps", save_steps=15)
trainer = tiny.trainer(model, args, teacher)
assert args.world_size == int(sys.argv[4])
trainer.train(resume_from_checkpoint=sys.argv[5] or None)
assert [member.description.execution.folded for member in teacher.members] == [6, 6]
metrics = trainer.evaluate()
predicted = trainer.predict(tiny.digits()[1])
trainer.evaluate_teacher()
metrics["teachers"] = dict(trainer.record.teacher_report)
metrics["predictions"], metrics["labels"] = map(torch.from_numpy, (predicted.predictions, predicted.label_ids))
if args.should_save:
    torch.save(({k: v.detach() for k, v in model.named_parameters()}, metrics), sys.argv[2] + "/result.pt")
exit_command(0)
"""


def test_two_processes_are_equivalent_to_one_and_resume(tmp_path, folder_of_teacher):
    """With two teachers, whose accuracies are the same, too; they run in the way that the main process has found."""
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    teachers = f"{folder_of_teacher},{tiny.teacher_folder(tmp_path / 'other', seed=2)}"

    def run(name: str, world_size: int, batch_size: int, checkpoint: str = "") -> tuple:
        folder = tmp_path / name
        folder.mkdir()
        launch(script, teachers, folder, batch_size, world_size, checkpoint, processes=world_size)
        return torch.load(folder / "result.pt", weights_only=True)

    one, one_metrics = run("one", 1, 8)
    two, two_metrics = run("two", 2, 4)
    assert_equivalent(one, two, "adamw_torch_fused")
    assert one_metrics["eval_top1"] == two_metrics["eval_top1"]
    assert one_metrics["teachers"] == two_metrics["teachers"]
    assert {"teacher_top1", "teacher_top1_of_1", "teacher_top1_of_2"} < {*one_metrics["teachers"]}
    assert one_metrics["eval_class_top5"] == two_metrics["eval_class_top5"]
    torch.testing.assert_close(one_metrics["predictions"], two_metrics["predictions"], atol=1e-4, rtol=0)
    assert one_metrics["predictions"].shape == (40, 10)
    assert torch.equal(one_metrics["labels"], two_metrics["labels"])
    # Step 15 is in the middle of the second epoch of 12 steps.
    resumed, _ = run("resumed", 2, 4, str(tmp_path / "two" / "checkpoint-15"))
    assert largest_difference(two, resumed) == 0


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_a_run_that_has_ended_is_not_trained_on(tmp_path, teacher):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 6}  # in mid-epoch
    first = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, **settings), teacher)
    first.train()
    again = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, **settings), teacher)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert largest_difference(parameters(first.model), parameters(again.model)) == 0


@pytest.mark.parametrize(
    ("name", "stop_at"),  # in mid-epoch, at an epoch's end, in the middle of a later one
    [
        *((name, step) for name in ("distilled", "native vit", "resnet") for step in (5, 12, 15)),
        ("one head answers", 5),
    ],
)
def test_resumed_run_ends_with_the_same_bits(tmp_path, teacher, name, stop_at):
    def make(folder):
        args = tiny.arguments(folder, max_steps=18, save_strategy="steps", save_steps=stop_at, save_total_limit=3)
        model = STUDENTS[name]()
        if name == "distilled":
            model = tiny.student(drop_path_rate=0.3, hidden_dropout_prob=0.1)
        return tiny.trainer(model, args, teacher)

    whole = make(tmp_path / "whole")
    whole.train()
    stopped = make(tmp_path / "parts")
    stopped.add_callback(StopAt(stop_at))
    stopped.train()
    assert stopped.state.global_step == stop_at
    torch.manual_seed(99)  # whatever was drawn in between must not matter
    resumed = make(tmp_path / "parts")
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.add_(1)  # a resume that restores nothing would show
    resumed.train(resume_from_checkpoint=True)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("fusion", ["logits", "distillation"])
def test_load_best_model_at_end_restores_it(tmp_path, teacher, fusion):
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    args = tiny.arguments(
        tmp_path,
        max_steps=8,
        load_best_model_at_end=True,
        metric_for_best_model="top1",
        learning_rate=0.05,
        **settings,
    )
    trainer = tiny.trainer(tiny.student(fusion=fusion), args, teacher)
    snapshots = {}

    class Snapshot(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
            snapshots[state.global_step] = (metrics["eval_top1"], parameters(model))

    trainer.add_callback(Snapshot())
    trainer.train()
    best = min(step for step in snapshots if snapshots[step][0] == max(top1 for top1, _ in snapshots.values()))
    assert best < 8, "the last step is the best: the test would show nothing"
    assert largest_difference(parameters(trainer.model), snapshots[best][1]) == 0


def test_resuming_another_model_is_refused(tmp_path, teacher):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    tiny.trainer(tiny.student(distilled=False), tiny.arguments(tmp_path, **settings), teacher).train()
    with pytest.raises(InputError, match="vit"):
        tiny.trainer(tiny.student(), tiny.arguments(tmp_path, **settings), teacher).train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="no checkpoint"):
        tiny.trainer(tiny.student(), tiny.arguments(tmp_path / "new"), teacher).train(resume_from_checkpoint=True)


# The teacher is outside


def test_teacher_is_outside_of_everything_trained_and_saved(tmp_path, teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    args = tiny.arguments(tmp_path, max_steps=3, save_strategy="steps", save_steps=3)
    trainer = tiny.trainer(tiny.student(), args, teacher)
    modes = set()
    teacher.register_forward_hook(lambda *_: modes.update(module.training for module in teacher.modules()))
    trainer.train()
    trainer.save_model()
    assert modes == {False}
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    students = {id(parameter) for parameter in trainer.model.parameters()}
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == students
    assert [type(model) for model in trainer.accelerator._models] == [type(trainer.model)]
    expected = tiny.student()
    expected.save_pretrained(tmp_path / "expected")
    for saved in (tmp_path, tmp_path / "checkpoint-3"):
        with (
            safe_open(saved / "model.safetensors", "pt") as file,
            safe_open(tmp_path / "expected" / "model.safetensors", "pt") as reference,
        ):
            assert set(file.keys()) == set(reference.keys())


def test_evaluation_does_not_run_the_teacher(tmp_path, teacher):
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path), teacher)
    teacher.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    trainer.evaluate()


def test_bf16_holds_in_an_evaluation_before_training(tmp_path, teacher):
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, bf16=True), teacher)
    dtypes = set()
    trainer.model.deit.layers[0].mlp.fc1.register_forward_hook(lambda m, a, output: dtypes.add(output.dtype))
    trainer.evaluate()
    assert dtypes == {torch.bfloat16}


# What it reports


@pytest.mark.parametrize("name", STUDENTS)
def test_evaluation_counts_right(tmp_path, name):
    trainer = tiny.trainer(STUDENTS[name](), tiny.arguments(tmp_path, distillation_type="none"))
    metrics = trainer.evaluate()
    _, validation = tiny.digits()
    pixels = tiny.processor()(list(validation["image"]), return_tensors="pt")["pixel_values"]
    labels = torch.tensor(validation["label"])
    model = trainer.model.eval()
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
    heads = {"": outputs.logits}
    if "cls_logits" in outputs:
        heads.update({"class_": outputs.cls_logits, "distillation_": outputs.distillation_logits})
    if name == "softmax":
        heads["plain_"] = outputs.cls_logits + outputs.distillation_logits
    for head, logits in heads.items():
        best = logits.topk(5).indices
        assert metrics[f"eval_{head}top1"] == pytest.approx((best[:, 0] == labels).float().mean().item())
        assert metrics[f"eval_{head}top5"] == pytest.approx((best == labels[:, None]).any(1).float().mean().item())
    assert ("eval_class_top1" in metrics) == ("cls_logits" in outputs)
    assert ("eval_plain_top1" in metrics) == (name == "softmax")


def test_logs_name_both_terms_agreement_and_speed(tmp_path, teacher):
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, max_steps=4, logging_steps=2), teacher)
    trainer.train()
    lines = [entry for entry in trainer.state.log_history if "class_loss" in entry]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["loss"] == pytest.approx((line["class_loss"] + line["distillation_loss"]) / 2, abs=1e-4)
        assert 0 <= line["teacher_agreement"] <= 1
        assert line["images_per_second"] > 0
    report = next(entry for entry in trainer.state.log_history if "teacher_top1" in entry)
    assert {"teacher_top1", "teacher_agreement_with_labels", "majority_class"} <= report.keys()


def test_what_train_returns_is_whole(tmp_path, teacher):
    output = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, logging_steps=100), teacher).train()
    assert {"train_loss", "epoch", "class_loss", "distillation_loss", "images_per_second"} <= output.metrics.keys()


def test_pixels_that_a_subclass_prepares_are_those_of_all(tmp_path, teacher):
    seen = []

    class Watched(DistillationTrainer):
        def _prepare_inputs(self, inputs):
            seen.append(len(inputs["labels"]))
            return super()._prepare_inputs(inputs)

    train, validation = tiny.digits()
    trainer = Watched(
        tiny.student(),
        tiny.arguments(tmp_path),
        teacher=teacher,
        processing_class=tiny.processor(),
        train_dataset=train,
        eval_dataset=validation,
    )
    trainer.check_teacher()
    assert sum(seen) == 96 + 40
    accuracy = trainer.evaluate_teacher()
    assert sum(seen) == 96 + 40 + 40
    assert accuracy == pytest.approx(trainer.record.teacher_report["teacher_top1"])
    with pytest.raises(InputError, match="no teacher to evaluate"):
        tiny.trainer(tiny.student(), tiny.arguments(tmp_path, distillation_type="none")).evaluate_teacher()


def test_teacher_report_is_measured(tmp_path, teacher, caplog):
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path), teacher)
    report = trainer.check_teacher()
    _, validation = tiny.digits()
    pixels = tiny.processor()(list(validation["image"]), return_tensors="pt")["pixel_values"]
    right = teacher(pixels).argmax(-1) == torch.tensor(validation["label"])
    assert report["teacher_top1"] == pytest.approx(right.float().mean().item())
    assert "no better than" in caplog.text  # it is random


def test_a_good_teacher_gives_no_warning(tmp_path, caplog):
    settings = {"distillation_type": "none", "max_steps": 60, "per_device_train_batch_size": 32, "learning_rate": 0.02}
    oracle = tiny.trainer(tiny.resnet(), tiny.arguments(tmp_path / "t", **settings))
    oracle.train()
    oracle.save_model(str(tmp_path / "teacher"))
    teacher = load_teacher(str(tmp_path / "teacher"), student_processor=tiny.processor())
    report = tiny.trainer(tiny.student(), tiny.arguments(tmp_path), teacher).check_teacher()
    assert report["teacher_top1"] > 0.3
    assert "no better than" not in caplog.text


# Optimizer


def test_weight_decay_spares_biases_norms_tokens_and_positions(tmp_path, teacher):
    model = tiny.student()
    trainer = tiny.trainer(model, tiny.arguments(tmp_path), teacher)
    block = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
    assert set(trainer.get_decay_parameter_names(model)) == {
        "deit.embeddings.patch_embeddings.projection.weight",
        *(f"deit.layers.{layer}.{name}.weight" for layer in range(2) for name in block),
        "cls_classifier.weight",
        "distillation_classifier.weight",
    }
    trainer.create_optimizer()
    decayed, spared = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


# What goes wrong


class Poison(TrainerCallback):
    """Makes the loss infinite from a step on, as a learning rate that is too high would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            with torch.no_grad():
                model.cls_classifier.bias.fill_(math.inf)


@pytest.mark.parametrize("logging_steps", [1, 3])
def test_divergence_stops_with_step_checkpoint_and_advice(tmp_path, teacher, logging_steps):
    args = tiny.arguments(
        tmp_path, max_steps=12, logging_steps=logging_steps, save_strategy="steps", save_steps=2, save_total_limit=2
    )
    trainer = tiny.trainer(tiny.student(), args, teacher)
    trainer.add_callback(Poison(5))
    with pytest.raises(TrainingDivergedError, match=r"at step 5.*checkpoint-4.*--learning_rate") as error:
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"], error
    with safe_open(tmp_path / "checkpoint-4" / "model.safetensors", "pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


class PoisonGradient(TrainerCallback):
    """Makes the update of a step spoil the weights, after a loss that was still finite."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            model.cls_classifier.bias.grad.fill_(math.nan)


def test_spoilt_weights_are_never_saved_over_the_last_good_checkpoint(tmp_path, teacher):
    args = tiny.arguments(tmp_path, max_steps=12, save_strategy="steps", save_steps=2, save_total_limit=1)
    trainer = tiny.trainer(tiny.student(), args, teacher)
    trainer.add_callback(PoisonGradient(4))
    with pytest.raises(TrainingDivergedError, match=r"step 4.*checkpoint-2"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_divergence_at_the_last_step_is_not_missed(tmp_path, teacher):
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, max_steps=3, logging_steps=50), teacher)
    trainer.add_callback(Poison(3))
    with pytest.raises(TrainingDivergedError, match=r"step 3.*no checkpoint"):
        trainer.train()


@pytest.fixture
def folder_with_a_broken_image(tmp_path) -> Path:
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{index}.png")
    broken = folder / "7" / "1.png"
    broken.write_bytes(broken.read_bytes()[:600])  # the header is whole, so that it shows only when decoded
    return folder


def test_a_broken_image_stops_the_run_or_is_skipped_and_counted(tmp_path, teacher, folder_with_a_broken_image):
    images = load(train_dir=folder_with_a_broken_image, validation_dir=folder_with_a_broken_image).train
    stopping = tiny.trainer(tiny.student(), tiny.arguments(tmp_path / "a"), teacher, train_dataset=images)
    with pytest.raises(InputError, match=r"7/1\.png"):
        stopping.train()
    args = tiny.arguments(tmp_path / "b", on_bad_image="skip", max_steps=4, logging_steps=2)
    skipping = tiny.trainer(tiny.student(), args, teacher, train_dataset=images, eval_dataset=images)
    skipping.train()
    # 2 steps of 8 are an epoch of 20 images: the broken one is met at most once in each.
    assert 1 <= sum(entry.get("skipped_images", 0) for entry in skipping.state.log_history) <= 2
    predictions = skipping.predict(skipping.eval_dataset)
    assert (predictions.label_ids == -100).sum() == 1
    assert predictions.predictions.shape == (20, 10)
    assert math.isfinite(skipping.evaluate()["eval_loss"])


FORMATS = {
    "torch": {"type": "torch"},
    "numpy": {"type": "numpy"},
    "arrow": {"type": "arrow"},
    "pandas": {"type": "pandas"},
    "some columns": {"type": "torch", "columns": ["label"]},
}


@pytest.mark.parametrize("form", FORMATS)
def test_the_format_of_a_data_set_changes_nothing(tmp_path, teacher, form):
    train, validation = tiny.digits(60, 10)
    parts = {"train_dataset": train, "unlabeled_dataset": train.select_columns("image"), "eval_dataset": validation}
    columns = FORMATS[form].get("columns")
    formatted = {
        name: part.with_format(**FORMATS[form]) if not columns or name != "unlabeled_dataset" else part
        for name, part in parts.items()
    }
    samples, metrics = [], []
    for given in (parts, formatted):
        trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path), teacher, **given)
        keys = [ViewKey(0, slot, row, 0) for slot, row in enumerate((0, 59, 60, 119))]
        samples.append([*trainer.train_dataset.__getitems__(keys), trainer.eval_dataset[3]])
        metrics.append(trainer.evaluate(given["eval_dataset"])["eval_loss"])
        assert len(trainer.train_dataset) == 120
    for one, other in zip(*samples, strict=True):
        assert torch.equal(one.pop("pixel_values"), other.pop("pixel_values"))
        assert one == other
    assert metrics[0] == metrics[1]
    assert formatted["train_dataset"].format["type"] is not None  # what was given stays as it is
    kept = [ImageData(given["train_dataset"], None, []).with_labels_kept(20, 0) for given in (parts, formatted)]
    for part in ("train", "unlabeled"):
        assert list(getattr(kept[0], part)) == list(getattr(kept[1], part))


@pytest.mark.parametrize("part", ["train_dataset", "unlabeled_dataset", "eval_dataset"])
@pytest.mark.parametrize("how", ["with", "set"])
def test_a_data_set_with_a_transform_is_refused_with_the_reason(tmp_path, teacher, part, how):
    def transform(rows):
        return rows

    data = tiny.digits()[0]
    data = data.select_columns("image") if part == "unlabeled_dataset" else data.select(range(len(data)))
    if how == "with":
        data = data.with_transform(transform)
    else:
        data.set_transform(transform)
    args = tiny.arguments(tmp_path)
    reason = r"transform.*views are made from the images as they are stored.*reset_format\(\)"
    with pytest.raises(InputError, match=reason):
        tiny.trainer(tiny.student(), args, teacher, **{part: data})
    if part == "eval_dataset":
        trainer = tiny.trainer(tiny.student(), args, teacher)
        for call in (trainer.evaluate, trainer.predict):
            with pytest.raises(InputError, match=reason):
                call(data)
        with pytest.raises(InputError, match=reason):
            tiny.trainer(tiny.student(), args, teacher, eval_dataset={"one": trainer.eval_dataset, "other": data})


@pytest.mark.parametrize("part", ["train_dataset", "unlabeled_dataset", "eval_dataset"])
def test_images_that_cannot_be_used_are_refused_before_training(tmp_path, teacher, part):
    data = tiny.digits()[0]
    columns = data.cast_column("image", datasets.Image(decode=False)).to_dict()
    columns["image"][37] = datasets.Image().encode_example(np.full((8, 8), 0.5, np.float32))
    deep = datasets.Dataset.from_dict(columns, features=data.features)
    if part == "unlabeled_dataset":
        deep = deep.select_columns("image")
    row = 37 + (len(data) if part == "unlabeled_dataset" else 0)
    with pytest.raises(InputError, match=rf"1 of the \d+ images to .*: 1 of mode F.*: row {row}\."):
        tiny.trainer(tiny.student(), tiny.arguments(tmp_path), teacher, **{part: deep})
    skipping = tiny.arguments(tmp_path, on_bad_image="skip", max_steps=1, num_train_epochs=1)
    tiny.trainer(tiny.student(), skipping, teacher, **{part: deep}).train()


def test_every_number_of_images_is_the_one_that_was_counted(tmp_path, folder_with_a_broken_image):
    images = load(train_dir=folder_with_a_broken_image, validation_dir=folder_with_a_broken_image).train
    labels = [None, -1, *images["label"][2:]]  # beside the broken one two without label: 17 of 20 count
    unlabeled = images.remove_columns("label").add_column("label", labels, feature=datasets.Value("int64"))
    validation = EvaluationDataset(unlabeled, tiny.processor(), on_bad_image="skip")
    teacher_folder = tiny.teacher_folder(tmp_path / "teacher")
    args = tiny.arguments(
        tmp_path / "run",
        on_bad_image="skip",
        per_device_eval_batch_size=6,  # the last batch has 2, which dataloader_drop_last would leave out
        dataloader_drop_last=True,
        ema_decay=0.5,
        eval_strategy="steps",
        eval_steps=3,
    )
    teacher = load_teacher(teacher_folder, student_processor=tiny.processor())
    trainer = tiny.trainer(tiny.student(), args, teacher, train_dataset=images, eval_dataset=validation)
    trainer.train()
    metrics, accuracy = trainer.evaluate(), trainer.evaluate_teacher()
    assert metrics["eval_images"] == 17
    assert all((17 * metrics[f"eval_{name}top1"]) % 1 == pytest.approx(0, abs=1e-6) for name in ("", "ema_", "class_"))
    assert (17 * accuracy) % 1 == pytest.approx(0, abs=1e-6)
    assert {line["eval_images"] for line in trainer.state.log_history if "eval_images" in line} == {17}
    assert [line["teacher_images"] for line in trainer.state.log_history if "teacher_images" in line] == [17]
    known = trainer.run_facts()
    assert (known.num_validation, known.teacher_images, known.num_train, known.num_skipped) == (17, 17, 20, 1)
    assert sum(images for _, images in known.classes) == 17
    assert sum(hits for hits, _ in known.classes) / 17 == metrics["eval_top1"]
    assert len(trainer.predict(validation).label_ids) == 20  # the rows that were asked for, all of them
    logits = torch.cat([trainer.model.eval()(pixel_values=batch["pixel_values"]).logits for batch in whole(trainer)])
    told = torch.cat([batch["labels"] for batch in whole(trainer)])
    losses = torch.nn.functional.cross_entropy(logits[told >= 0], told[told >= 0])
    assert metrics["eval_loss"] == pytest.approx(losses.item(), rel=1e-5)
    assert trainer.args.dataloader_drop_last  # of the training, as it was given


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_the_evaluations_loss_is_the_mean_over_the_labelled_images_in_any_batches(tmp_path, batch_size):
    validation = tiny.digits(8, 17)[1]
    some = EvaluationDataset(validation, tiny.processor())
    some.labels = np.where(np.isin(np.arange(17), [3, 16]), -100, some.labels)
    settings = {"distillation_type": "none", "ema_decay": 0.5, "max_steps": 2, "learning_rate": 0.05}
    args = tiny.arguments(tmp_path, per_device_eval_batch_size=batch_size, **settings)
    trainer = tiny.trainer(tiny.student(), args, eval_dataset=some)
    trainer.train()
    pixels = tiny.processor()(list(validation["image"]), return_tensors="pt")["pixel_values"]
    told = torch.from_numpy(some.labels)[some.labels >= 0]
    wanted = {}
    for name, model in (("loss", trainer.model), ("ema_loss", trainer.weight_average.module)):
        with torch.no_grad():
            logits = model.eval()(pixel_values=pixels).logits[some.labels >= 0]
        wanted[name] = torch.nn.functional.cross_entropy(logits, told).item()
    assert wanted["loss"] != pytest.approx(wanted["ema_loss"], rel=1e-3)
    for prefix, metrics in (("eval", trainer.evaluate()), ("test", trainer.predict(some).metrics)):
        assert {name: metrics[f"{prefix}_{name}"] for name in wanted} == pytest.approx(wanted, rel=1e-5)
        assert metrics[f"{prefix}_images"] == 15


def test_a_loss_of_ones_own_is_evaluated_as_it_is(tmp_path):
    class Own(DistillationTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            outputs = model(pixel_values=inputs["pixel_values"])
            return (outputs.logits.sum() * 0 + 3, {"logits": outputs.logits})

    args = tiny.arguments(tmp_path, distillation_type="none", ema_decay=0.5)
    own = Own(tiny.student(), args, processing_class=tiny.processor(), eval_dataset=tiny.digits()[1])
    metrics = own.evaluate()
    assert metrics["eval_loss"] == metrics["eval_ema_loss"] == 3


def whole(trainer) -> list[dict[str, torch.Tensor]]:
    return [trainer.prepare_batch(batch) for batch in trainer.get_eval_dataloader()]


def test_no_image_to_measure_on_is_refused(tmp_path, folder_with_a_broken_image):
    images = load(train_dir=folder_with_a_broken_image, validation_dir=folder_with_a_broken_image).train
    args = tiny.arguments(tmp_path, on_bad_image="skip", distillation_type="none")
    trainer = tiny.trainer(tiny.student(), args, eval_dataset=images.select([15]))
    with pytest.raises(InputError, match="none of the validation images has a label and can be decoded"):
        trainer.evaluate()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_image_is_named_once(tmp_path, folder_with_a_broken_image, caplog, workers):
    images = load(train_dir=folder_with_a_broken_image, validation_dir=folder_with_a_broken_image).train
    settings = {"distillation_type": "none", "on_bad_image": "skip", "max_steps": 6, "dataloader_num_workers": workers}
    trainer = tiny.trainer(
        tiny.student(), tiny.arguments(tmp_path / "run", **settings), train_dataset=images, eval_dataset=images
    )
    trainer.train()
    trainer.evaluate()
    trainer.evaluate()
    assert len(trainer.skipped_images) == 1 and trainer.step_record.skipped_images >= 1
    named = [record.message for record in caplog.records if "cannot be decoded" in record.message]
    path = folder_with_a_broken_image / "7" / "1.png"
    assert named == [f"skipped an image that cannot be decoded: {path}: image file is truncated"]


def test_workers_that_would_persist_need_not_be_there(tmp_path):
    settings = {"distillation_type": "none", "eval_strategy": "steps", "eval_steps": 3}
    args = tiny.arguments(tmp_path, **settings, dataloader_num_workers=0, dataloader_persistent_workers=True)
    trainer = tiny.trainer(tiny.student(), args)
    trainer.train()
    assert trainer.evaluate()["eval_images"] == 40 and len(trainer.predict(tiny.digits()[1]).predictions) == 40
    assert trainer.args.dataloader_persistent_workers  # as they were given


def test_what_other_processes_skip_is_named_by_the_main_one_and_counted_once(monkeypatch, caplog):
    skipped = SkippedImages()
    batch = {"labels": 1, "skipped": ["own.png: cut", "both.png: cut\nown.png: cut"]}
    assert skipped.take(batch) == {"labels": 1} and "skipped" in batch
    two = SimpleNamespace(num_processes=2, is_main_process=True)
    monkeypatch.setattr("hf_deit.training.skipped_images.PartialState", lambda: two)
    monkeypatch.setattr("hf_deit.training.skipped_images.gather_object", lambda own: [*own, "both.png: cut", "x: cut"])
    skipped.tell()
    assert len(skipped) == 3
    names = [record.message.rpartition("decoded: ")[2] for record in caplog.records]
    assert sorted(names) == ["both.png: cut", "own.png: cut", "x: cut"]


def test_teacher_student_and_data_must_fit(tmp_path, teacher):
    with pytest.raises(InputError, match="no teacher"):
        tiny.trainer(tiny.student(), tiny.arguments(tmp_path))
    with pytest.raises(InputError, match="got a teacher"):
        tiny.trainer(tiny.student(), tiny.arguments(tmp_path, distillation_type="none"), teacher)
    with pytest.raises(InputError, match="teacher has 10 labels, the student 7"):
        tiny.trainer(tiny.student(id2label={i: str(i) for i in range(7)}), tiny.arguments(tmp_path), teacher)
    with pytest.raises(InputError, match="data set has 10 labels"):
        args = tiny.arguments(tmp_path, distillation_type="none")
        tiny.trainer(tiny.student(id2label={i: str(i) for i in range(7)}), args)


def set_weights(model: torch.nn.Module) -> None:
    """Weights that are the same in every version of torch, whose initialisers are not."""
    generator = np.random.RandomState(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.from_numpy(generator.normal(0, 0.1, parameter.shape)).float()
            parameter.copy_(values + (parameter.ndim == 1 and name.endswith("weight")))


def test_golden_trajectory(tmp_path, teacher):
    """Ten steps give the recorded losses: what changes them must be meant to."""
    model = tiny.student(drop_path_rate=0.1)
    set_weights(model)
    set_weights(teacher.model)
    args = tiny.arguments(tmp_path, max_steps=10, logging_steps=1, min_learning_rate=0.0)
    trainer = tiny.trainer(model, args, teacher)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "class_loss" in entry]
    golden = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
    assert losses == pytest.approx(golden, abs=2e-4)


def test_labels_are_those_of_the_data_in_its_order(tmp_path, folder_of_teacher):
    names = {index: str(index) for index in range(10)}
    swapped = {**names, 3: "4", 4: "3"}
    args = tiny.arguments(tmp_path)
    teacher_in_another_order = load_teacher(folder_of_teacher, student_processor=tiny.processor(), id2label=swapped)
    with pytest.raises(InputError, match="the teacher has the data's labels in another order"):
        tiny.trainer(tiny.student(), args, teacher_in_another_order)
    with pytest.raises(InputError, match="the student has the data's labels in another order"):
        tiny.trainer(tiny.student(id2label=swapped), tiny.arguments(tmp_path, distillation_type="none"))
    with pytest.raises(InputError, match="the student has 10 labels as expected, but not the same"):
        tiny.trainer(tiny.student(id2label={**names, 0: "zero"}), tiny.arguments(tmp_path, distillation_type="none"))
    nameless = tiny.student(id2label={index: f"LABEL_{index}" for index in range(10)})
    tiny.trainer(nameless, tiny.arguments(tmp_path, distillation_type="none"))
    assert nameless.config.id2label == names


def test_labels_out_of_range_are_refused(tmp_path):
    train, _ = tiny.digits()
    labels = [-1, *train["label"][1:]]
    broken = train.remove_columns("label").add_column("label", labels, feature=train.features["label"])
    with pytest.raises(InputError, match=r"\[0, 10\).*row 0.*-1"):
        args = tiny.arguments(tmp_path, distillation_type="none")
        tiny.trainer(tiny.student(), args, train_dataset=broken)


@pytest.mark.parametrize("settings", [{"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_a_processor_that_does_not_do_what_training_does_is_refused(tmp_path, settings):
    with pytest.raises(InputError, match="the image processor has"):
        args = tiny.arguments(tmp_path, distillation_type="none")
        tiny.trainer(tiny.student(), args, processing_class=tiny.processor(**settings))
    with pytest.raises(InputError, match="got ViTImageProcessor"):
        tiny.trainer(tiny.student(), args, processing_class=ViTImageProcessor())


def test_the_best_models_metric_must_be_one_that_the_student_has(tmp_path):
    args = tiny.arguments(tmp_path, distillation_type="none", metric_for_best_model="class_top1")
    tiny.trainer(tiny.student(), args)
    with pytest.raises(InputError, match="must be one of loss, top1, top5"):
        tiny.trainer(tiny.resnet(), args)


def test_own_metrics_get_the_logits(tmp_path):
    args = tiny.arguments(tmp_path, distillation_type="none", metric_for_best_model="mine")
    shapes = []

    def compute_metrics(prediction):
        shapes.append(prediction.predictions.shape)
        return {"mine": 1.0}

    for model in (tiny.resnet(), tiny.student()):
        trainer = tiny.trainer(model, args, compute_metrics=compute_metrics)
        assert trainer.evaluate()["eval_mine"] == trainer.predict(trainer.eval_dataset).metrics["test_mine"] == 1.0
    assert shapes == [(40, 10)] * 4


def test_own_metrics_get_what_is_made_of_the_logits(tmp_path):
    args = tiny.arguments(tmp_path, distillation_type="none")
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions)
        return {}

    def decisions(logits, labels):
        assert logits.shape == (len(labels), 10)
        return logits.argmax(-1)

    model = tiny.student()
    given = {"compute_metrics": compute_metrics, "preprocess_logits_for_metrics": decisions}
    trainer = tiny.trainer(model, args, **given)
    trainer.evaluate()
    np.testing.assert_array_equal(seen[0], answers_of(model, tiny.digits()[1]).argmax(-1))
    assert trainer.preprocess_logits_for_metrics is decisions
    with pytest.raises(InputError, match="give both"):
        tiny.trainer(model, args, preprocess_logits_for_metrics=decisions)


def answers_of(model, images) -> np.ndarray:
    with torch.no_grad():
        pixels = tiny.processor()(list(images["image"]), return_tensors="pt")["pixel_values"]
        return model.eval()(pixels).logits.numpy()


@pytest.mark.parametrize("name", [*STUDENTS, "class head", "sum of softmaxes", "averaged", "on a stream"])
def test_predictions_are_the_logits_that_the_model_answers(tmp_path, name):
    fusions = {"class head": {"fusion": "cls"}, "sum of softmaxes": {"fusion": "softmax"}}
    model = STUDENTS[name]() if name in STUDENTS else tiny.student(**fusions.get(name, {}))
    train, images = tiny.digits()
    stream = {"train_dataset": ImageStream(train.to_iterable_dataset(), 96)} if name == "on a stream" else {}
    args = tiny.arguments(tmp_path, distillation_type="none", ema_decay=0.9 if name == "averaged" else 0.0)
    trainer = tiny.trainer(model, args, **stream)
    random_state = torch.get_rng_state()
    predicted = trainer.predict(images)
    assert torch.equal(torch.get_rng_state(), random_state)  # what is predicted in between changes no training
    expected = answers_of(model, images)
    assert predicted.predictions.shape == (40, 10)
    np.testing.assert_allclose(predicted.predictions, expected, atol=1e-5)
    np.testing.assert_array_equal(predicted.label_ids, images["label"])
    evaluated = trainer.evaluate()
    measured = {key.removeprefix("eval_") for key in evaluated if "top" in key or "loss" in key}
    assert measured >= {"top1", "top5", "loss"}
    assert ("class_top1" in measured) == (
        model.config.model_type != "resnet" and "vit" not in name and name != "plain"
    )
    for key in measured:
        assert predicted.metrics[f"test_{key}"] == evaluated[f"eval_{key}"]
    assert evaluated["eval_top1"] == pytest.approx(np.mean(expected.argmax(-1) == images["label"]))


def test_an_evaluation_keeps_five_labels_of_each_head(tmp_path, monkeypatch):
    """With ImageNet's classes the logits would take 200 times as much."""
    kept = []
    loop = Trainer.evaluation_loop
    monkeypatch.setattr(
        Trainer, "evaluation_loop", lambda *args, **kwargs: kept.append(loop(*args, **kwargs)) or kept[-1]
    )
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, distillation_type="none", ema_decay=0.9))
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    assert [getattr(output.predictions, "shape", None) for output in kept] == [
        (40, 3, 5),
        (40, 3, 5),
        None,
        (40, 3, 5),
    ]


def test_evaluation_keeps_to_the_heads(tmp_path):
    model = tiny.student(output_hidden_states=True)
    metrics = tiny.trainer(model, tiny.arguments(tmp_path, distillation_type="none")).evaluate()
    assert 0 <= metrics["eval_distillation_top1"] <= 1


def test_weight_decay_keeps_to_transformers_rule_for_other_students(tmp_path):
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**sizes, num_labels=10))
    names = tiny.trainer(model, tiny.arguments(tmp_path, distillation_type="none")).get_decay_parameter_names(model)
    assert "convnextv2.encoder.stages.0.layers.0.dwconv.weight" in names
    assert [name for name in names if "bias" in name or "norm" in name] == []


def test_skipped_images_are_counted_to_the_last(tmp_path, folder_with_a_broken_image):
    images = load(train_dir=folder_with_a_broken_image, validation_dir=folder_with_a_broken_image).train
    settings = {"distillation_type": "none", "on_bad_image": "skip", "max_steps": 5, "logging_steps": 50}
    trainer = tiny.trainer(
        tiny.student(), tiny.arguments(tmp_path / "run", **settings), train_dataset=images, eval_dataset=images
    )
    met = sum(key.index == 15 for epoch in range(3) for key in keys_of(trainer, epoch)[: 8 * (2 if epoch < 2 else 1)])
    trainer.train()
    assert trainer.step_record.skipped_images == met > 0
    assert trainer.step_record.images_per_second > 0
    # 17 images in batches of 16: the last batch is the broken one alone.
    assert math.isfinite(trainer.evaluate(images.select([*range(15), 16, 15]))["eval_loss"])


def keys_of(trainer, epoch: int) -> list:
    sampler = make_sampler(trainer.train_dataset, trainer.args)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_images_without_labels_are_predicted(tmp_path, ema_decay):
    images = tiny.digits()[1]
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, distillation_type="none", ema_decay=ema_decay))
    output = trainer.predict(images.remove_columns("label"))
    assert output.predictions.shape == (40, 10) and (output.label_ids < 0).all()
    assert output.metrics["test_images"] == 0
    assert not [name for name in output.metrics if "top" in name or "loss" in name]
    assert np.array_equal(output.predictions, trainer.predict(images).predictions)
    with pytest.raises(InputError, match="no columns of type ClassLabel"):
        trainer.predict(images.cast_column("label", datasets.Value("int64")))


def test_the_best_of_several_sets_is_named_with_its_set_before_training(tmp_path):
    sets = {"a": tiny.digits()[1], "b": tiny.digits()[1]}
    settings = {"distillation_type": "none", "eval_strategy": "steps", "eval_steps": 3, "max_steps": 3}
    arguments = tiny.arguments(tmp_path, metric_for_best_model="top1", **settings)
    with pytest.raises(InputError, match=r"metric_for_best_model must be one of a_class_top1, .* got 'top1'"):
        tiny.trainer(tiny.student(), arguments, eval_dataset=sets)
    trainer = tiny.trainer(
        tiny.student(), tiny.arguments(tmp_path, metric_for_best_model="b_top1", **settings), eval_dataset=sets
    )
    trainer.train()
    assert trainer.state.best_metric == pytest.approx(trainer.evaluate()["eval_b_top1"])


def test_options_that_do_not_fit_are_refused_where_they_were_set_later_too(tmp_path):
    arguments = tiny.arguments(tmp_path, distillation_type="none")
    arguments.eval_do_concat_batches = False
    with pytest.raises(InputError, match="eval_do_concat_batches must be True, got False"):
        tiny.trainer(tiny.student(), arguments)
