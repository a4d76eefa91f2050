"""Contract: the learning rate is timm's cosine as facebookresearch/deit drives it, or the same curve per step.

The reference is timm's `CosineLRScheduler`; weight decay leaves alone what timm's list leaves alone.
"""

import math

import pytest
import timm.optim
import torch
from support import tiny
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hf_deit.training.optimization import (
    authors_epoch_time,
    deit_schedule,
    learning_rate_at,
    without_tokens_and_positions,
)

# The authors' training of 300 epochs, at a batch of 1,024.
PEAK, WARMUP_RATE, MIN_RATE = 1e-3, 1e-6, 1e-5
RATES = {"peak": PEAK, "warmup_learning_rate": WARMUP_RATE, "min_learning_rate": MIN_RATE}


def optimizer_of(learning_rate: float = PEAK, num_groups: int = 1) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": i / 10} for i in range(num_groups)]
    return torch.optim.AdamW(groups, lr=learning_rate)


def rates_of(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, num_steps: int) -> list[float]:
    """The learning rates that the steps are taken with, as the Trainer steps."""
    rates = []
    for _ in range(num_steps):
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def authors_rates(num_epochs: int, warmup_epochs: int) -> list[float]:
    """Of each epoch: their `train_one_epoch` comes first, then `lr_scheduler.step(epoch)`."""
    optimizer = optimizer_of()
    scheduler = CosineLRScheduler(
        optimizer, t_initial=num_epochs, lr_min=MIN_RATE, warmup_lr_init=WARMUP_RATE, warmup_t=warmup_epochs
    )
    rates = []
    for epoch in range(num_epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    return rates


@pytest.mark.parametrize(
    ("num_epochs", "warmup_epochs", "steps_per_epoch"), [(300, 5, 1), (300, 5, 4), (30, 5, 7), (20, 1, 2)]
)
def test_the_schedule_per_epoch_is_that_of_the_authors(num_epochs, warmup_epochs, steps_per_epoch):
    expected = authors_rates(num_epochs, warmup_epochs)
    optimizer = optimizer_of()
    num_steps = num_epochs * steps_per_epoch
    scheduler = deit_schedule(
        optimizer,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=warmup_epochs * steps_per_epoch,
        per="epoch",
        **RATES,
    )
    rates = rates_of(optimizer, scheduler, num_steps)
    assert rates == pytest.approx([rate for rate in expected for _ in range(steps_per_epoch)], rel=1e-9)


def test_the_schedule_per_epoch_has_the_authors_numbers():
    rates = [learning_rate_at(authors_epoch_time(epoch), duration=300, warmup=5, **RATES) for epoch in range(300)]
    published = [1e-6, 1e-6, 2.008e-4, 4.006e-4, 6.004e-4, 8.002e-4, 9.993e-4]
    assert rates[:7] == pytest.approx(published, rel=1e-4)
    assert rates[-1] == pytest.approx(1.011e-5, rel=1e-3)


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(200, 20), (37, 5), (50, 0), (10, 10)])
def test_the_schedule_per_step_is_timms_in_units_of_steps(num_steps, warmup_steps):
    reference = optimizer_of()
    timms = CosineLRScheduler(
        reference,
        t_initial=num_steps,
        lr_min=MIN_RATE,
        warmup_lr_init=WARMUP_RATE,
        warmup_t=warmup_steps,
        t_in_epochs=False,
    )
    expected = []
    for update in range(1, num_steps + 3):  # and a little beyond the end
        expected.append(reference.param_groups[0]["lr"])
        timms.step_update(update)
    optimizer = optimizer_of()
    scheduler = deit_schedule(
        optimizer, num_steps=num_steps, steps_per_epoch=7, warmup_steps=warmup_steps, per="step", **RATES
    )
    assert rates_of(optimizer, scheduler, num_steps + 2) == pytest.approx(expected, rel=1e-9)


def test_the_schedule_per_step_is_linear_then_half_a_cosine():
    def rate(time: float) -> float:
        return learning_rate_at(time, duration=100, warmup=10, **RATES)

    assert [rate(step) for step in range(10)] == pytest.approx([1e-6 + step * 0.999e-4 for step in range(10)])
    # The cosine begins at time 0, and the warm-up hides its first tenth.
    assert rate(10) == pytest.approx(1e-5 + 0.99e-3 * (1 + math.cos(math.pi / 10)) / 2)
    assert rate(50) == pytest.approx(5.05e-4)
    assert rate(100) == pytest.approx(1e-5)
    assert rate(1000) == pytest.approx(1e-5)
    later = [rate(step) for step in range(10, 101)]
    assert later == sorted(later, reverse=True)


def test_a_warmup_may_end_within_an_epoch_or_a_step():
    rates = [learning_rate_at(time, duration=40, warmup=2.5, **RATES) for time in range(5)]
    assert rates[:3] == pytest.approx([1e-6, 1e-6 + 0.999e-3 / 2.5, 1e-6 + 2 * 0.999e-3 / 2.5])
    assert rates[3:] == pytest.approx([1e-5 + 0.99e-3 * (1 + math.cos(math.pi * t / 40)) / 2 for t in (3, 4)])


def test_without_warmup_the_first_step_has_the_peak():
    assert learning_rate_at(0, duration=10, warmup=0, **RATES) == PEAK


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_all_groups_have_the_same_learning_rate(per):
    optimizer = optimizer_of(num_groups=3)
    settings = {"num_steps": 40, "steps_per_epoch": 2, "warmup_steps": 6, "per": per, **RATES}
    rates = rates_of(optimizer, deit_schedule(optimizer, **settings), 40)  # compares the groups
    assert len(set(rates)) > 15
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_a_peak_of_zero_trains_nothing(per):
    optimizer = optimizer_of(0.0)
    scheduler = deit_schedule(
        optimizer, num_steps=6, steps_per_epoch=2, warmup_steps=2, per=per, **{**RATES, "peak": 0.0}
    )
    assert rates_of(optimizer, scheduler, 6) == [0.0] * 6


@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("resumed_at", [1, 4, 5, 17])
def test_a_resumed_schedule_goes_on_as_if_nothing_had_happened(per, resumed_at):
    settings = {"num_steps": 24, "steps_per_epoch": 4, "warmup_steps": 8, "per": per, **RATES}
    optimizer = optimizer_of(num_groups=2)
    whole = rates_of(optimizer, deit_schedule(optimizer, **settings), 24)

    optimizer = optimizer_of(num_groups=2)
    scheduler = deit_schedule(optimizer, **settings)
    first = rates_of(optimizer, scheduler, resumed_at)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer = optimizer_of(num_groups=2)
    scheduler = deit_schedule(optimizer, **settings)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert first + rates_of(optimizer, scheduler, 24 - resumed_at) == whole


def matrices_of(model: nn.Module) -> list[str]:
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("distilled", [True, False])
def test_weight_decay_applies_to_the_matrices_of_a_student(distilled):
    model = tiny.student(distilled=distilled)
    names = [name for name, _ in model.named_parameters()]
    decayed = without_tokens_and_positions(model, names)
    assert sorted(decayed) == sorted(matrices_of(model))
    tokens = {name.split(".")[-1] for name, value in model.named_parameters() if value.ndim >= 2} - {"weight"}
    assert tokens == {"cls_token", "position_embeddings"} | ({"distillation_token"} if distilled else set())


TIMM_MODELS = {
    "deit": lambda: VisionTransformerDistilled(
        img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=3
    ),
    "swin": lambda: SwinTransformer(
        img_size=16, patch_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=3
    ),
}


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_weight_decay_applies_to_what_timm_applies_it_to(name):
    model = TIMM_MODELS[name]()
    parameters = dict(model.named_parameters())
    groups = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    expected = {id(value) for group in groups if group["weight_decay"] for value in group["params"]}
    spared = {id(value) for value in parameters.values() if value.ndim >= 2} - expected
    assert spared, "a model that shows nothing"
    assert {id(parameters[name]) for name in without_tokens_and_positions(model, parameters)} == expected


def test_weight_decay_applies_to_no_parameter_that_is_not_named():
    model = tiny.student()
    names = matrices_of(model)[1::2]
    assert sorted(without_tokens_and_positions(model, names)) == sorted(names)
    assert without_tokens_and_positions(model, iter(names)) == without_tokens_and_positions(model, names)
    assert without_tokens_and_positions(model, []) == []
