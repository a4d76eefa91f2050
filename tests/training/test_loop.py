"""Contract: what the loop spares changes nothing; one graph is compiled, once; AdamW is torch's fused one."""

import pytest
import torch
from support import tiny
from torch._dynamo.utils import counters
from transformers import Trainer

from hf_deit import DistillationTrainer

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
