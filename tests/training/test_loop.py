"""Contract: what the loop spares changes nothing; one graph is compiled, once; AdamW is torch's fused one.

From the batch to the changed weights no step waits for the device.
"""

import pytest
import torch
from support import tiny
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback

from hf_deit import DistillationTrainer, load_teacher

FULL = {"distillation_type": "none", "mixup": 0.8, "cutmix": 1.0, "mixup_group_size": 4, "random_erasing": 0.5}
SPARED = ("_get_grad_norm", "floating_point_ops")


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_what_is_spared_is_as_transformers_has_it(tmp_path, monkeypatch, max_grad_norm):
    clipped, counted, clip = [], [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a, **k: clipped.append(a[1]) or clip(*a, **k))
    found = []
    for name in ("ours", "transformers"):
        if name == "transformers":
            for method in SPARED:
                monkeypatch.setattr(DistillationTrainer, method, getattr(Trainer, method))
        args = tiny.arguments(tmp_path, max_grad_norm=max_grad_norm, logging_steps=1, **FULL)
        trainer = tiny.trainer(tiny.student(drop_path_rate=0.2), args, eval_dataset=None)
        count = trainer.model.num_parameters
        trainer.model.num_parameters = lambda *a, count=count, **k: counted.append(1) or count(*a, **k)
        counted.clear()
        clipped.clear()
        trainer.train()
        norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
        flops, calls = trainer.state.total_flos, (len(clipped), len(counted))
        found.append((norms, flops, trainer.model.state_dict(), calls))
    (norms, flops, weights, calls), (their_norms, their_flops, their_weights, their_calls) = found
    assert norms == their_norms
    assert len(norms) == 6 and min(norms) > 0
    assert flops == their_flops > 0
    assert [name for name in weights if not torch.equal(weights[name], their_weights[name])] == []
    assert calls[0] == (6 if max_grad_norm else 0) and their_calls[0] == 6
    assert their_calls[1] - calls[1] == 5


def test_adamw_is_the_fused_one_in_every_group(tmp_path):
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path, distillation_type="none"))
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert [(group["fused"], group["weight_decay"]) for group in optimizer.param_groups] == [(True, 0.05), (True, 0.0)]


def test_a_run_compiles_one_graph_once(tmp_path):
    """With stochastic depth by the views' seeds, mixing, smoothing, several epochs, and evaluations in between."""
    settings = {"torch_compile": True, "torch_compile_backend": "eager", "label_smoothing_factor": 0.1}
    args = tiny.arguments(tmp_path, max_steps=8, eval_strategy="steps", eval_steps=3, **FULL, **settings)
    torch._dynamo.reset()
    counters.clear()
    try:
        trainer = tiny.trainer(
            tiny.student(drop_path_rate=0.2), args, train_dataset=tiny.digits()[0].select(range(28))
        )
        trainer.train()
        assert dict(counters["frames"]) == {"total": 1, "ok": 1}
        assert counters["stats"]["unique_graphs"] == 1
        assert dict(counters["graph_break"]) == {}
    finally:
        torch._dynamo.reset()


class Waits(TorchDispatchMode):
    """Counts what a host cannot do before a device has computed: read a number, make a tensor as long as one says."""

    by_operation = (
        *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount", "repeat_interleave"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
    )
    by_method = ("cpu", "numpy", "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__array__")

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        for name in self.by_method:
            method = getattr(torch.Tensor, name)
            monkeypatch.setattr(torch.Tensor, name, lambda *a, method=method, **k: self._counting(method, *a, **k))

    def _counting(self, method, *args, **kwargs):
        self.count += 1
        return method(*args, **kwargs)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name in self.by_operation
        if name in ("index", "index_put", "index_put_"):
            self.count += any(index is not None and index.dtype == torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


class CountsWaits(TrainerCallback):
    """Of each step, from when its batch has come to when its weights have changed."""

    def __init__(self, waits):
        self.waits, self.of_steps = waits, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.waits.count = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.of_steps.append(self.waits.count)


@pytest.mark.parametrize("waits_for", [None, "a loss", "a mask", "a list"])
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, waits_for):
    """With a teacher, mixing, erasing, smoothing, stochastic depth, clipping and an average of the weights."""
    if waits_for is not None:  # what the test must see
        compute = DistillationTrainer.compute_loss

        def compute_loss(self, model, inputs, **options):
            loss = compute(self, model, inputs, **options)
            value = loss[0] if isinstance(loss, tuple) else loss
            values = value.detach()[None]
            {"a loss": values.item, "a list": values.tolist, "a mask": lambda: values[values > 0]}[waits_for]()
            return loss

        monkeypatch.setattr(DistillationTrainer, "compute_loss", compute_loss)
    settings = {**FULL, "distillation_type": "hard", "label_smoothing_factor": 0.1, "ema_decay": 0.99}
    args = tiny.arguments(tmp_path / "run", max_steps=9, logging_steps=4, max_grad_norm=1.0, **settings)
    teacher = load_teacher(tiny.fair_teacher_folder(tmp_path / "teacher"), student_processor=tiny.processor())
    trainer = tiny.trainer(tiny.student(drop_path_rate=0.2), args, teacher, eval_dataset=None)
    with Waits(monkeypatch) as waits:
        counts = CountsWaits(waits)
        trainer.add_callback(counts)
        trainer.train()
    assert len(counts.of_steps) == 9
    assert (counts.of_steps == [0] * 9) == (waits_for is None)
