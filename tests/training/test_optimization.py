"""Contract: the learning rate is timm's cosine as facebookresearch/deit drives it, or the same curve per step.

A schedule that does not reach its peak, or cannot be meant otherwise, is told with the option that mends it.

The reference is timm's `CosineLRScheduler`; weight decay leaves alone what timm's list leaves alone.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import timm.optim
import torch
from support import tiny
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import hf_deit
from hf_deit import InputError
from hf_deit.data.streams import ImageStream
from hf_deit.recipes import load_recipe
from hf_deit.training.callbacks import StepEndCallback
from hf_deit.training.optimization import (
    authors_epoch_time,
    deit_schedule,
    learning_rate_at,
    schedule_doubts,
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


def test_the_schedule_per_step_is_as_near_the_authors_as_the_recipe_says():
    epochs, warmup, steps = 300, 5, 1251  # steps of an epoch of ImageNet-1k, of 1,024 views
    recipe = load_recipe("deit_base")
    assert (recipe["num_train_epochs"], recipe["warmup_epochs"], recipe["schedule_per"]) == (epochs, warmup, "step")
    times, settings = range(epochs * steps), {"duration": epochs * steps, "warmup": warmup * steps, **RATES}
    ours = np.array([learning_rate_at(time, **settings) for time in times]).reshape(epochs, steps)
    differences = np.abs(ours - np.array(authors_rates(epochs, warmup))[:, None])
    largest, sixth, later = differences.max(), differences[5].max(), differences[6:].max()  # theirs is an epoch late
    assert 3.99e-4 < largest < 4e-4 and 1.99e-4 < sixth < 2e-4 and 1e-5 < later < 1.1e-5
    text = (Path(hf_deit.__file__).parent / "recipes" / "paper" / "deit_base.yaml").read_text()
    said = " ".join(text.replace("#", "").split())
    assert "(schedule_per: epoch)" in said and "at most 4e-4 apart" in said
    assert "2e-4 in the epoch behind it, and then at most 1.1e-5" in said


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


# What cannot be meant

OWN_IMAGES = {"learning_rate": 5e-4, "warmup_epochs": 5.0, "max_steps": -1}
DECAY = {"lr_scheduler_type": "warmup_stable_decay"}
DOUBTFUL = {
    "own_images for two epochs": (
        {**OWN_IMAGES, "num_train_epochs": 2},
        28,
        r"never reaches its peak of 0\.0005, as the warm-up takes 70 steps and the run has 28 \(5 of 2 epochs\): "
        r"give --warmup_epochs 0\.1, or train for longer, say --num_train_epochs 100$",
    ),
    "to the last step": ({**OWN_IMAGES, "num_train_epochs": 5}, 70, r"\(5 of 5 epochs\): give --warmup_epochs 0\.25,"),
    "max_steps": ({"warmup_steps": 50, "max_steps": 20}, 20, r"give --warmup_steps 1, or .* --max_steps 1000$"),
    "a ratio": (
        {"warmup_steps": 0.99, "max_steps": 6},
        6,
        r"takes 6 steps and the run has 6: give --warmup_steps 0\.05$",
    ),
    "a cosine that is low where the warm-up ends": (
        {"warmup_steps": 3, "max_steps": 6},
        6,
        r"never reaches its peak of 0\.001 but 0\.00067 at most, as the warm-up takes 3 of 6 steps.*--warmup_steps 1,",
    ),
    "few epochs of few steps": (
        {**OWN_IMAGES, "warmup_epochs": 0.1, "num_train_epochs": 0.2},
        3,
        r"but 0\.00036 at most, .* give --warmup_epochs 0,",
    ),
    "the authors' third epoch": (
        {"warmup_epochs": 1.0, "schedule_per": "epoch", "max_steps": -1, "num_train_epochs": 3},
        42,
        r"but 0\.00075 at most, .* 14 of 42 steps.* --schedule_per step",
    ),
    "one step": ({"warmup_steps": 1, "max_steps": 1}, 1, "give --warmup_steps 0, or"),
    "the authors' epochs": (
        {"warmup_epochs": 1.0, "schedule_per": "epoch", "max_steps": -1, "num_train_epochs": 2},
        28,
        r"give --schedule_per step --warmup_epochs 0\.1, or .* --num_train_epochs 20$",
    ),
    "transformers' schedule": ({"warmup_steps": 50, "lr_scheduler_type": "linear"}, 20, "--warmup_steps 1, or"),
    "a decay that does not fit": (
        {**DECAY, "warmup_steps": 3, "lr_scheduler_kwargs": {"num_decay_steps": 90}},
        60,
        r"takes 93 steps \(3 to warm up, 90 to decay\) and the run has 60: give num_decay_steps 6 in",
    ),
    "a warm-up downwards": (
        {"warmup_steps": 5, "warmup_learning_rate": 1.0},
        60,
        r"starts at a learning rate of 1, above its peak of 0\.001: give --warmup_learning_rate 1e-06$",
    ),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_schedule_that_cannot_be_meant_is_told_in_a_line_with_the_remedy(tmp_path, name):
    settings, num_steps, message = DOUBTFUL[name]
    (doubt,) = schedule_doubts(tiny.arguments(tmp_path, **settings), num_steps=num_steps, steps_per_epoch=14)
    assert re.search(message, doubt), doubt
    assert "\n" not in doubt
    remedy = dict(re.findall(r"--(warmup_epochs|warmup_steps|warmup_learning_rate|schedule_per) ([\w.-]+)", doubt))
    if "num_decay_steps" in doubt:
        remedy = {"lr_scheduler_kwargs": {"num_decay_steps": 6}}
    remedy = {
        key: value if isinstance(value, dict) or key == "schedule_per" else float(value)
        for key, value in remedy.items()
    }
    mended = tiny.arguments(tmp_path, **{**settings, **remedy})
    assert schedule_doubts(mended, num_steps=num_steps, steps_per_epoch=14) == []


@pytest.mark.parametrize(
    ("settings", "num_steps"),
    [
        ({}, 1),
        ({**OWN_IMAGES, "num_train_epochs": 100}, 1400),
        ({**OWN_IMAGES, "num_train_epochs": 6}, 84),
        ({"warmup_steps": 10}, 11),
        ({"warmup_steps": 0.2}, 100),
        ({"warmup_epochs": 1.0, "schedule_per": "epoch"}, 140),
        ({"warmup_steps": 50, "lr_scheduler_type": "constant"}, 20),
        ({**DECAY, "warmup_steps": 3, "lr_scheduler_kwargs": {"num_decay_steps": 17}}, 20),
        ({"learning_rate": 0.0, "min_learning_rate": 0.0, "warmup_steps": 50}, 20),
    ],
)
def test_a_schedule_that_reaches_its_peak_is_not_spoken_of(tmp_path, settings, num_steps):
    assert schedule_doubts(tiny.arguments(tmp_path, **settings), num_steps=num_steps, steps_per_epoch=14) == []


def test_a_polynomial_without_a_step_to_fall_in_is_refused_before_the_first(tmp_path):
    settings = {"distillation_type": "none", "lr_scheduler_type": "polynomial", "max_steps": 2}
    with pytest.raises(InputError, match="takes 2 steps, and the run has 2: give fewer --warmup_steps"):
        tiny.trainer(tiny.resnet(), tiny.arguments(tmp_path, **settings, warmup_steps=2)).train()
    assert tiny.trainer(tiny.resnet(), tiny.arguments(tmp_path, **settings, warmup_steps=1)).train().global_step == 2


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_a_run_tells_it_before_its_first_step(tmp_path, caplog, kind):
    """12 steps are an epoch of the 96 images."""
    stream = {"train_dataset": ImageStream(tiny.digits()[0].to_iterable_dataset(), 96)} if kind == "stream" else {}
    settings = {"distillation_type": "none", "warmup_epochs": 5.0, "max_steps": -1, "num_train_epochs": 0.1}
    trainer = tiny.trainer(tiny.resnet(), tiny.arguments(tmp_path, **settings), **stream)
    told = []
    trainer.add_callback(StepEndCallback(lambda step: told.append(len(caplog.messages))))
    trainer.train()
    (line,) = [message for message in caplog.messages if "never reaches its peak" in message]
    assert "the warm-up takes 60 steps and the run has 2 (5 of 0.167 epochs): give --warmup_epochs 0," in line
    assert told[0] > caplog.messages.index(line)


# What weight decay applies to


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
