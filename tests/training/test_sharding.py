"""A run that FSDP2 or DeepSpeed's ZeRO-2 shards learns, saves and resumes what one with DDP does, or is refused.

Both are launched on two processes with the configurations of scripts/accelerate_configs, and are really sharded.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from support import sharded, tiny
from support.families import KINDS, Kind
from support.main_of import launch
from test_kept_labels import labels_in
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    SiglipConfig,
    SiglipForImageClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from hf_deit import DistillationTrainer, InputError, create_model, load_teacher
from hf_deit.commands.train import run
from hf_deit.hub.run_folder import read_state, step_of, whole_checkpoints
from hf_deit.training.checkpoints import check_unchanged
from hf_deit.training.overview import describe_run
from hf_deit.training.sharding import (
    check_accelerator,
    check_same_sharding,
    check_sharding,
    check_stage,
    library_of,
    prepared_for_fsdp,
)

VARIABLES = {"fsdp2": "ACCELERATE_USE_FSDP", "deepspeed_zero2": "ACCELERATE_USE_DEEPSPEED"}
RUN = {
    **tiny.FULL_RECIPE,
    "mixup_group_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "max_grad_norm": 1.0,
    "save_strategy": "steps",
    "eval_strategy": "steps",
    "save_steps": 2,  # of three in an epoch
    "eval_steps": 2,
    "logging_steps": 1,
    # The first of them, so that it shows that the last one's weights are not those of the end.
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": False,
}


def cait() -> PreTrainedModel:
    torch.manual_seed(0)
    id2label = {index: str(index) for index in range(10)}
    return create_model("cait_xxs24_224", **tiny.SIZES, drop_path_rate=0.2, layer_scale_init=0.1, id2label=id2label)


def native(config_class: type, model_class: type, **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return model_class(config_class(**config, num_labels=10))


# Without a part that no logit depends on, which DeepSpeed decays all the same.
SIGLIP = {**tiny.SIZES, "vision_use_head": False}
STUDENTS: dict[str, Callable[[], PreTrainedModel]] = {
    "deit": lambda: tiny.student(drop_path_rate=0.2),
    "plain deit": lambda: tiny.student(distilled=False),
    "cait": cait,
    # accelerate alone would end in errors of three kinds: embeddings wrapped twice, embeddings that are not named, and
    # classes of the part that reads texts.
    "vit": lambda: native(ViTConfig, ViTForImageClassification, **tiny.SIZES),
    "resnet": tiny.resnet,
    "siglip": lambda: native(SiglipConfig, SiglipForImageClassification, vision_config=SIGLIP),
}
WHOLE_RUNS = ("deit", "cait")
SHORT_RUNS = {"fsdp2": ("vit", "resnet", "siglip"), "deepspeed_zero2": ("resnet",)}


class Shards(TrainerCallback):
    """Notes which part of the weights, or with ZeRO-2 of what updates them, this process holds while it trains."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer, self.parts = trainer, set()

    def on_optimizer_step(self, args, state, control, **kwargs):
        weights, optimizer = list(self.trainer.model.parameters()), self.trainer.optimizer.optimizer
        held = total = sum(weight.numel() for weight in weights)
        if self.trainer.is_deepspeed_enabled:
            held = sum(group.numel() for group in optimizer.single_partition_of_fp32_groups)
        elif self.trainer.is_fsdp_enabled:
            learnt = [weight for weight in weights if weight.grad is not None]
            assert all(isinstance(weight, DTensor) for weight in weights)
            if args.optim != "sgd":
                assert all(isinstance(optimizer.state[weight]["exp_avg"], DTensor) for weight in learnt)
            held = sum(weight.to_local().numel() for weight in weights)
        self.parts.add(held / total)


def train(
    folder: Path, student: str, teacher: str | None = None, *, checkpoint: str | None = None, **settings: Any
) -> dict[str, Any]:
    kind = "none" if teacher is None else "hard"
    args = tiny.arguments(folder, **{"distillation_type": kind, **settings})
    teacher = teacher and load_teacher(teacher, student_processor=tiny.processor())
    trainer = tiny.trainer(STUDENTS[student](), args, teacher)
    shards = Shards(trainer)
    trainer.add_callback(shards)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card()
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        assert "trains once: make another one" in refusal(trainer.train)
    if teacher is not None:
        assert not any(isinstance(weight, DTensor) or weight.requires_grad for weight in teacher.parameters())
    return {"parts": shards.parts, "metrics": metrics, "device": describe_run(trainer).device}


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def run_all(folder: Path, teacher: str, launched_by: str, results: dict[str, Any]) -> None:
    for name in WHOLE_RUNS:
        labels = {"teacher_labels": str(folder / name / "labels")} if name == "deit" else {}
        results[folder.name, name] = train(folder / name, name, teacher, **RUN, **labels)
    for name in SHORT_RUNS[launched_by]:
        results[folder.name, name] = train(folder / name, name, max_steps=2, optim="sgd", layer_decay=0.7)


def main(folder: Path, teacher: str, launched_by: str) -> None:
    """What both processes do: all runs with DDP, and sharded, and what is refused."""
    results, rank = {}, int(os.environ["RANK"])
    with patch.dict(os.environ):
        del os.environ[VARIABLES[launched_by]]
        run_all(folder / "ddp", teacher, launched_by, results)
    if launched_by == "fsdp2":
        results["on CPUs"] = refusal(lambda: train(folder / "refused", "deit"))
    with sharded.on_cpus():
        run_all(folder / "sharded", teacher, launched_by, results)
        early = tiny.trainer(STUDENTS["deit"](), tiny.arguments(folder / "refused", distillation_type="none"))
        results["evaluated early"] = refusal(early.evaluate)
        results["averaged"] = refusal(lambda: train(folder / "refused", "deit", ema_decay=0.9))
        if rank == 0:
            before = shutil.ignore_patterns("checkpoint-4")
            shutil.copytree(folder / "sharded" / "deit", folder / "resumed", ignore=before)
        torch.distributed.barrier()
        labels = str(folder / "resumed" / "labels")
        train(folder / "resumed", "deit", teacher, checkpoint="true", **RUN, teacher_labels=labels)
        saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
        with patch.dict(os.environ, FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT"):
            compiled = {"torch_compile": launched_by == "fsdp2", "torch_compile_backend": "eager"}
            train(folder / "in parts", "plain deit", bf16=True, **saving, **compiled)
        other = str(folder / "ddp" / "deit" / "checkpoint-2")
        results["to sharded"] = refusal(lambda: train(folder / "refused", "deit", teacher, checkpoint=other, **RUN))
    with patch.dict(os.environ):
        del os.environ[VARIABLES[launched_by]]
        other = str(folder / "sharded" / "deit" / "checkpoint-2")
        results["to DDP"] = refusal(lambda: train(folder / "refused", "deit", teacher, checkpoint=other, **RUN))
    torch.save(results, folder / f"{rank}.pt")


SCRIPT = """
import sys
from pathlib import Path
import conftest, test_sharding
from hf_deit.commands.command_line import exit_command
test_sharding.main(Path(sys.argv[1]), *sys.argv[2:])
exit_command(0)
"""


def difference(one: Path, other: Path) -> float:
    """The largest of two models' weights."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    # Attention does not depend on the keys' bias: its gradient is rounding noise, which Adam scales up.
    names = [name for name in weights if not name.endswith(("key.bias", "k_proj.bias"))]
    return max(float((weights[name] - others[name]).abs().max()) for name in names)


@pytest.mark.parametrize(
    ("configuration", "device"),
    [
        ("fsdp2", "; weights, gradients and optimizer sharded by FSDP2"),
        ("deepspeed_zero2", "; gradients and optimizer sharded by DeepSpeed (ZeRO-2)"),
    ],
)
def test_a_sharded_run_learns_saves_and_resumes_what_one_with_ddp_does(tmp_path, configuration, device):
    if configuration == "deepspeed_zero2":
        pytest.importorskip("deepspeed")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    teacher = tiny.fair_teacher_folder(tmp_path / "teacher")
    launch(script, tmp_path, teacher, configuration, configuration=configuration)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    ddp, own = tmp_path / "ddp", tmp_path / "sharded"
    for result in results:
        for name in (*WHOLE_RUNS, *SHORT_RUNS[configuration]):
            (part,) = result["sharded", name]["parts"]
            assert 0.49 < part < 0.51 and result["ddp", name]["parts"] == {1.0}
            assert result["sharded", name]["device"] == result["ddp", name]["device"] + device
            for metric in ("eval_loss", "eval_top1"):
                measured = result["sharded", name]["metrics"][metric]
                assert measured == pytest.approx(result["ddp", name]["metrics"][metric], rel=1e-5), name
    for name in SHORT_RUNS[configuration]:
        assert difference(ddp / name, own / name) < 1e-6, name
    for name in WHOLE_RUNS:
        for step in (2, 4):
            checkpoint = own / name / f"checkpoint-{step}"
            assert difference(ddp / name / checkpoint.name, checkpoint) < 1e-6
            check_unchanged(str(checkpoint))
        best = read_state(own / name / "checkpoint-4").best_model_checkpoint
        assert not best.endswith("4") and difference(own / name, Path(best)) == 0
        # Another process would open it with its own code, which CaiT brings along.
        loaded = AutoModelForImageClassification.from_pretrained(own / name / "checkpoint-4", trust_remote_code=True)
        assert type(loaded).__name__ == {"deit": "DeiT", "cait": "CaiT"}[name] + "ForImageClassification" + (
            "WithTeacher" if name == "deit" else ""
        )
        assert json.loads((own / name / "run.json").read_text())["architecture"] == type(STUDENTS[name]()).__name__
    # BatchNorm's means are of the views that a process sees: what is measured is what is saved, the main one's.
    saved = AutoModelForImageClassification.from_pretrained(own / "resnet")
    alone = tiny.trainer(saved, tiny.arguments(tmp_path / "alone", distillation_type="none")).evaluate()
    assert alone["eval_loss"] == pytest.approx(results[0]["sharded", "resnet"]["metrics"]["eval_loss"], rel=1e-5)
    for epoch in (0, 1):
        stores = (labels_in(folder / "deit" / "labels", epoch) for folder in (ddp, own))
        np.testing.assert_array_equal(*stores)
    assert difference(tmp_path / "resumed" / "checkpoint-4", own / "deit" / "checkpoint-4") == 0
    assert [step_of(path) for path in whole_checkpoints(tmp_path / "resumed")] == [2, 4]

    assert (
        json.loads((tmp_path / "in parts" / "run.json").read_text())["architecture"]
        == "PlainDeiTForImageClassification"
    )
    for folder in (tmp_path / "in parts", tmp_path / "in parts" / "checkpoint-2"):
        weights = load_file(folder / "model.safetensors")
        assert len(weights) == len(STUDENTS["plain deit"]().state_dict())
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    for result in results:
        assert result["averaged"].startswith("ema_decay is 0.9, and") and "pass --ema_decay 0," in result["averaged"]
        assert "call train first" in result["evaluated early"]
        if configuration == "fsdp2":
            assert "these 2 processes are on the CPU" in result["on CPUs"] and "cpu_2.yaml" in result["on CPUs"]
        words = {"fsdp2": "by FSDP with FULL_STATE_DICT", "deepspeed_zero2": "by DeepSpeed"}[configuration]
        assert f"was written without sharding, and this run trains {words}" in result["to sharded"]
        assert f"was written {words}, and this run trains without sharding" in result["to DDP"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_fsdp_wraps_has_no_input_embeddings_in_it(kind: Kind):
    """FSDP2 of accelerate wraps them by themselves, for those, too, who train without this package's Trainer."""
    model = kind.tiny()
    wrapped = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    assert {type(module).__name__ for module in wrapped} == model._no_split_modules
    assert len(wrapped) >= kind.config().num_hidden_layers
    assert not any(model.get_input_embeddings() in module.modules() for module in wrapped)


# What is refused, and when


@pytest.mark.parametrize("variable", VARIABLES.values())
def test_an_average_of_a_sharded_run_is_refused_before_anything_is_loaded(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    monkeypatch.setattr("hf_deit.training.sharding.is_deepspeed_available", lambda: True)
    args = {"ema_decay": 0.5, "publish_weights": "ema", "deepspeed": None, "fsdp": None, "output_dir": "x"}
    on_gpus = SimpleNamespace(distributed_type=DistributedType.MULTI_GPU)
    arguments = SimpleNamespace(training=SimpleNamespace(**args, distributed_state=on_gpus))
    monkeypatch.setattr("hf_deit.commands.train.prepare", None)
    with pytest.raises(InputError, match=r"ema_decay is 0.5, .*: pass --ema_decay 0 --publish_weights raw, or"):
        run.__wrapped__.__wrapped__(arguments)


def test_a_missing_deepspeed_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_deit.training.sharding.is_deepspeed_available", lambda: False)
    with pytest.raises(InputError, match=r'python -m pip install "hf_deit\[deepspeed\]"'):
        tiny.arguments(tmp_path, deepspeed="zero2.json")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="DeepSpeed is asked for, and is not installed"):
        tiny.arguments(tmp_path)


def test_a_launcher_that_asks_one_process_to_share_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    args = tiny.arguments(tmp_path / "run", distillation_type="none")
    monkeypatch.setattr("hf_deit.commands.train.prepare", None)
    for value in ("true", "True"):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", value)
        with pytest.raises(InputError, match=r"this run is one process, .*ACCELERATE_USE_FSDP.* launch --num_process"):
            run.__wrapped__.__wrapped__(SimpleNamespace(training=args))
        with pytest.raises(InputError, match="this run is one process, and was to be sharded"):
            tiny.trainer(tiny.resnet(), args)


@pytest.mark.parametrize("value", ["", "false", "no"])
def test_an_ordinary_run_is_not_taken_for_a_sharded_one(tmp_path, monkeypatch, value):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", value)
    args = tiny.arguments(tmp_path, ema_decay=0.5)
    assert library_of(args) is None
    check_sharding(args)


def test_an_argument_that_is_refused_asks_no_other_run(tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match=r"this run is one process, .*--fsdp"):
            tiny.trainer(tiny.resnet(), tiny.arguments(tmp_path, distillation_type="none", fsdp=True))
        tiny.trainer(tiny.resnet(), tiny.arguments(tmp_path, distillation_type="none"))


def accelerator(distributed_type: DistributedType, **plugin: Any) -> SimpleNamespace:
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(**plugin))
    return SimpleNamespace(distributed_type=distributed_type, state=state, num_processes=2)


def test_what_hides_the_shapes_of_weights_is_refused(tmp_path):
    args = tiny.arguments(tmp_path)
    args.distributed_state = SimpleNamespace(distributed_type=DistributedType.MULTI_GPU)
    check_accelerator(args, accelerator(DistributedType.FSDP, fsdp_version=2))
    with pytest.raises(InputError, match="fsdp_version must be 2, got 1"):
        check_accelerator(args, accelerator(DistributedType.FSDP, fsdp_version=1))
    args.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    check_stage(args)
    args.deepspeed_plugin.zero_stage = 3
    with pytest.raises(InputError, match="zero_stage must be at most 2, got 3"):
        check_stage(args)


def test_what_fsdp_cannot_wrap_is_refused():
    model, fsdp = tiny.student(), accelerator(DistributedType.FSDP, transformer_cls_names_to_wrap=None)
    refused = pytest.raises(
        InputError, match=r"FSDP cannot shard \w+ as .* \(no forward\): give fsdp_auto_wrap_policy"
    )
    with refused, prepared_for_fsdp(model, fsdp):
        assert set(fsdp.state.fsdp_plugin.transformer_cls_names_to_wrap) == model._no_split_modules
        raise ValueError("no forward")
    assert fsdp.state.fsdp_plugin.transformer_cls_names_to_wrap is None and model.get_input_embeddings() is not None
    fsdp.state.fsdp_plugin.transformer_cls_names_to_wrap = ["GPT2Block"]
    with pytest.raises(InputError, match=r"layers of class GPT2Block, and \w+ has none"):
        prepared_for_fsdp(model, fsdp).__enter__()


FORMS = {
    "optimizer.pt": accelerator(DistributedType.MULTI_GPU),
    "optimizer.bin": accelerator(DistributedType.FSDP, state_dict_type=SimpleNamespace(name="FULL_STATE_DICT")),
    "optimizer_0": accelerator(DistributedType.FSDP, state_dict_type=SimpleNamespace(name="SHARDED_STATE_DICT")),
    "global_step4": accelerator(DistributedType.DEEPSPEED),
}


@pytest.mark.parametrize("written", FORMS)
def test_only_runs_of_one_form_go_on_from_a_checkpoint(tmp_path, written):
    (tmp_path / written).mkdir()
    for rank in range(2):
        (tmp_path / written / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    for form, of_run in FORMS.items():
        if form == written:
            check_same_sharding(str(tmp_path), of_run)
        else:
            with pytest.raises(InputError, match="which keeps the optimizer's state in another form"):
                check_same_sharding(str(tmp_path), of_run)


def test_deepspeed_goes_on_with_as_many_processes_as_there_were(tmp_path):
    (tmp_path / "global_step4").mkdir()
    (tmp_path / "global_step4" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(InputError, match=r"state in 1 part, .* which this run has 2: give --num_processes 1$"):
        check_same_sharding(str(tmp_path), accelerator(DistributedType.DEEPSPEED))
