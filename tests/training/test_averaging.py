"""The moving average of the weights is the authors', and evaluated, saved, chosen by and resumed beside the weights.

The trained weights themselves are what they would be without it.
"""

import itertools
import math
import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support import tiny
from transformers import AutoModelForImageClassification, TrainerCallback, ViTConfig
from transformers import ViTForImageClassification as NativeViT

from hf_deit import InputError
from hf_deit.training.averaging import WeightAverage, average_doubts, decay_of

State = dict[str, torch.Tensor]


def native_vit() -> NativeViT:
    torch.manual_seed(0)
    return NativeViT(ViTConfig(**tiny.SIZES, layer_norm_eps=1e-6, id2label={i: str(i) for i in range(10)}))


STUDENTS = {"distilled": tiny.student, "native vit": native_vit, "resnet": tiny.resnet}  # the last with buffers


def arguments(folder, **settings):
    return tiny.arguments(folder, **{"distillation_type": "none", "ema_decay": 0.6, **settings})


def state_of(model) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def differing(one: State, other: State) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


class Snapshots(TrainerCallback):
    """Weights and average by step, as they are at an event."""

    def __init__(self, trainer, event: str) -> None:
        self.weights: dict[int, State] = {}
        self.averages: dict[int, State] = {}
        self.trainer = trainer
        setattr(self, event, self.take)
        trainer.add_callback(self)

    def take(self, args, state, control, **kwargs):
        self.weights[state.global_step] = state_of(self.trainer.model)
        self.averages[state.global_step] = state_of(self.trainer.weight_average.module)


@pytest.fixture
def trained(tmp_path):
    """A student whose average is another one than itself."""
    trainer = tiny.trainer(tiny.student(), arguments(tmp_path / "run", ema_decay=0.9, learning_rate=0.02))
    trainer.train()
    assert differing(state_of(trainer.model), state_of(trainer.weight_average.module))
    return trainer


# What it is


def authors(average: torch.Tensor, weight: torch.Tensor, decay: float) -> torch.Tensor:
    """One step of `ModelEma` in timm 0.3.2, with which DeiT was trained. That truncates counters; ours are kept."""
    return average * decay + (1.0 - decay) * weight if weight.is_floating_point() else weight


def timms(average: torch.Tensor, weight: torch.Tensor, decay: float) -> torch.Tensor:
    """One step of timm's `ModelEmaV3`."""
    return torch.lerp(average, weight, 1 - decay) if weight.is_floating_point() else weight


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("distilled", {"ema_decay": 0.99996, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
        ("native vit", {"ema_decay": 0.99, "bf16": True}),
        ("resnet", {"ema_decay": 0.9}),
    ],
)
def test_it_is_the_authors_bit_for_bit_from_the_first_step_on(tmp_path, name, settings):
    """Over 50 optimizer steps, which two runs take one after the other."""
    settings = {"max_steps": 50, "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 20, **settings}
    expected: State = {}
    for last in (20, 50):
        trainer = tiny.trainer(STUDENTS[name](), arguments(tmp_path, **settings))
        expected = expected or state_of(trainer.model)
        snapshots = Snapshots(trainer, "on_step_end")
        trainer.add_callback(StopAt(last))
        trainer.train(resume_from_checkpoint=last == 50)
        for step, weights in sorted(snapshots.weights.items()):
            decay = settings["ema_decay"]
            expected = {key: authors(expected[key], weight, decay) for key, weight in weights.items()}
            assert differing(snapshots.averages[step], expected) == [], step
    assert step == 50 and len(snapshots.weights) == 30
    assert {value.dtype for value in expected.values()} <= {torch.float32, torch.int64}
    assert differing(snapshots.weights[50], snapshots.averages[50])


@pytest.mark.parametrize("name", ["distilled", "resnet"])
def test_with_warm_up_its_decay_grows_as_timms(tmp_path, name):
    settings = {"max_steps": 10, "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 3}
    expected: State = {}
    decays = []
    for last in (3, 10):
        trainer = tiny.trainer(STUDENTS[name](), arguments(tmp_path, ema_decay=0.75, ema_warmup=True, **settings))
        expected = expected or state_of(trainer.model)
        snapshots = Snapshots(trainer, "on_step_end")
        trainer.add_callback(StopAt(last))
        trainer.train(resume_from_checkpoint=last == 10)
        for step, weights in sorted(snapshots.weights.items()):
            decays.append(min(0.75, 1 - step ** (-2 / 3)))
            expected = {key: timms(expected[key], weight, decays[-1]) for key, weight in weights.items()}
            assert differing(snapshots.averages[step], expected) == [], step
    assert decays[0] == 0  # the first weights are forgotten at once
    assert decays[1:4] == pytest.approx([0.3700, 0.5193, 0.6031], abs=1e-4)
    assert decays[-2:] == [0.75, 0.75] and len(decays) == 10


def test_the_ramp_of_the_warm_up_stays_below_the_authors_decay_for_millions_of_steps():
    assert decay_of(300 * 1251, 0.99996, warmup=True) == pytest.approx(0.99981, abs=1e-5)  # DeiT's whole training
    assert decay_of(3_900_000, 0.99996, warmup=True) < decay_of(4_000_000, 0.99996, warmup=True) == 0.99996


def test_frozen_weights_and_weights_of_several_names_are_averaged_as_one_would_think():
    model = tiny.student()
    model.deit.embeddings.requires_grad_(False)
    model.distillation_classifier.weight = model.cls_classifier.weight
    weights = state_of(model)
    average = WeightAverage(model, 0.99996)
    with torch.no_grad():
        model.cls_classifier.weight += 1
    for step in range(1, 201):
        average.update(step)
    averaged = state_of(average.module)
    frozen = [name for name in weights if name.startswith("deit.embeddings.")]
    assert frozen and all(torch.equal(averaged[name], weights[name]) for name in frozen)
    expected = weights["cls_classifier.weight"]
    for _ in range(200):
        expected = authors(expected, model.cls_classifier.weight.detach(), 0.99996)
    for head in ("cls_classifier", "distillation_classifier"):
        assert torch.equal(averaged[f"{head}.weight"], expected)
    with average.in_place():
        assert torch.equal(model.distillation_classifier.weight, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_which_an_average_stands_still_are_refused(tmp_path, dtype):
    with pytest.raises(InputError, match=f"float32, got {dtype}.*--ema_decay 0"):
        tiny.trainer(tiny.student().to(dtype), arguments(tmp_path))
    assert tiny.trainer(tiny.student().to(dtype), arguments(tmp_path, ema_decay=0.0)).weight_average is None


# What a short run makes of it


def doubts(folder, steps: int, *, is_pretrained: bool = False, **settings) -> str:
    args = arguments(folder, max_steps=steps, **settings)
    return "\n".join(average_doubts(args, num_steps=steps, is_pretrained=is_pretrained))


@pytest.mark.parametrize("steps", [1, 2, 6, 50, 500, 30_000, 100_000])
def test_an_average_that_stays_at_its_beginning_is_told_with_what_mends_it(tmp_path, steps):
    found = doubts(tmp_path, steps, ema_decay=0.99996)
    assert "looks back over 25,000 steps (ema_decay 0.99996)" in found and f"has {steps:,}: " in found
    assert f"up to {100 * 0.99996**steps:.0f} % of the weights that it begins with, which are random" in found
    assert "publish_weights" not in found and "--ema_warmup true" in found
    fitting = float(found.rpartition("--ema_decay ")[2])
    assert fitting == pytest.approx(math.exp(-10 / steps), abs=0.06)
    assert doubts(tmp_path, steps, ema_decay=fitting) == ""
    assert "will be saved (publish_weights ema)" in doubts(tmp_path, steps, ema_decay=0.99996, publish_weights="ema")


def test_no_other_average_is_doubted(tmp_path):
    assert doubts(tmp_path, 1, ema_decay=0.0) == ""
    assert doubts(tmp_path, 300 * 1251, ema_decay=0.99996) == ""
    # The paper's fine-tuning, of which 0.05 are the weights that it begins with, which have learnt.
    steps = 30 * 2502
    assert doubts(tmp_path, steps, ema_decay=0.99996)
    assert doubts(tmp_path, steps, ema_decay=0.99996, is_pretrained=True) == ""
    assert "random" not in doubts(tmp_path, 500, ema_decay=0.99996, is_pretrained=True)


def test_a_decay_that_the_warm_up_does_not_reach_is_told(tmp_path):
    assert "grows to 0.984 in the 500 steps of the run" in doubts(tmp_path, 500, ema_decay=0.99996, ema_warmup=True)
    assert doubts(tmp_path, 500, ema_decay=0.98, ema_warmup=True) == ""


@pytest.mark.parametrize("start", ["random", "pretrained"])
def test_a_run_tells_it_at_its_start(tmp_path, caplog, start):
    student = tiny.student()
    if start == "pretrained":
        student.save_pretrained(tmp_path / "student")
        student = type(student).from_pretrained(tmp_path / "student")
    trainer = tiny.trainer(student, arguments(tmp_path / "run", ema_decay=0.99996, max_steps=1))
    trainer.train()
    told = [message for message in caplog.messages if "the moving average looks back over 25,000 steps" in message]
    assert len(told) == 1 and ("which are random" in told[0]) == (start == "random")


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("raises", [False, True])
def test_in_place_lends_the_average_and_gives_the_weights_back_bit_for_bit(name, raises):
    model = STUDENTS[name]()
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape) * 1e3)  # sums and differences of both would lose bits
    weights, averaged = state_of(model), state_of(average.module)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    try:
        with average.in_place():
            assert differing(state_of(model), averaged) == []
            if raises:
                raise KeyError
    except KeyError:
        pass
    assert differing(state_of(model), weights) == []
    assert differing(state_of(average.module), averaged) == []
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses  # the optimizer still holds them


def test_it_is_outside_of_what_is_trained(trained):
    averaged = {id(parameter) for parameter in trained.weight_average.module.parameters()}
    optimized = {id(parameter) for group in trained.optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in trained.model.parameters()}
    assert not averaged & optimized
    assert [parameter.grad for parameter in trained.weight_average.module.parameters()] == [None] * len(averaged)
    assert trained.accelerator._models == [trained.model]
    assert {module.training for module in trained.weight_average.module.modules()} == {False}


@pytest.mark.parametrize(("name", "dropout"), [("distilled", 0.0), ("distilled", 0.1), ("resnet", 0.0)])
def test_the_weights_are_trained_as_without_it(tmp_path, name, dropout):
    # An evaluation draws a random number, and with an average there are two.
    evaluation = {} if dropout else {"eval_strategy": "steps", "eval_steps": 2}
    overrides = {"drop_path_rate": 0.2, "hidden_dropout_prob": dropout} if name == "distilled" else {}
    results = []
    for decay in (0.0, 0.9):
        model = STUDENTS[name](**overrides)
        args = arguments(tmp_path / str(decay), ema_decay=decay, save_strategy="steps", save_steps=3, **evaluation)
        trainer = tiny.trainer(model, args)
        assert (trainer.weight_average is None) == (decay == 0)
        trainer.train()
        results.append((state_of(model), [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]))
    assert differing(results[0][0], results[1][0]) == []
    assert results[0][1] == results[1][1]


# Evaluation


def answers(model, state: State) -> dict[str, float]:
    """What a model with these weights scores on the validation images, computed plainly."""
    model.load_state_dict(state)
    _, validation = tiny.digits()
    pixels = tiny.processor()(list(validation["image"]), return_tensors="pt")["pixel_values"]
    labels = torch.tensor(validation["label"])
    with torch.no_grad():
        outputs = model.eval()(pixel_values=pixels)
    heads = {"": outputs.logits}
    if "cls_logits" in outputs:
        heads.update({"class_": outputs.cls_logits, "distillation_": outputs.distillation_logits})
    metrics = {"loss": F.cross_entropy(outputs.logits, labels).item()}
    for head, logits in heads.items():
        best = logits.topk(5).indices
        metrics[f"{head}top1"] = (best[:, 0] == labels).float().mean().item()
        metrics[f"{head}top5"] = (best == labels[:, None]).any(1).float().mean().item()
    return metrics


@pytest.mark.parametrize("name", STUDENTS)
def test_both_are_evaluated(tmp_path, name):
    trainer = tiny.trainer(STUDENTS[name](), arguments(tmp_path, ema_decay=0.9, learning_rate=0.02))
    trainer.train()
    weights, averaged = state_of(trainer.model), state_of(trainer.weight_average.module)
    metrics = trainer.evaluate()
    of_weights, of_average = answers(STUDENTS[name](), weights), answers(STUDENTS[name](), averaged)
    assert abs(of_weights["loss"] - of_average["loss"]) > 1e-3, "the test would show nothing"
    expected = {f"eval_{key}": value for key, value in of_weights.items()}
    expected |= {f"eval_ema_{key}": value for key, value in of_average.items()}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert differing(state_of(trainer.model), weights) == []
    assert differing(state_of(trainer.weight_average.module), averaged) == []


def test_both_are_evaluated_on_each_of_several_data_sets(tmp_path):
    _, validation = tiny.digits()
    parts = {"odd": validation.select(range(1, 40, 2)), "even": validation.select(range(0, 40, 2))}
    trainer = tiny.trainer(tiny.student(), arguments(tmp_path), eval_dataset=parts)
    trainer.train()
    metrics = trainer.evaluate()
    whole = trainer.evaluate(validation)
    for key in ("loss", "top1", "ema_loss", "ema_top1", "ema_class_top5"):
        mean = (metrics[f"eval_odd_{key}"] + metrics[f"eval_even_{key}"]) / 2
        assert mean == pytest.approx(whole[f"eval_{key}"], abs=1e-5)
    assert whole["eval_loss"] != whole["eval_ema_loss"]


def test_a_failing_evaluation_leaves_the_weights_in_the_model(trained):
    weights, averaged = state_of(trained.model), state_of(trained.weight_average.module)
    calls = []

    def fail(prediction):
        calls.append(prediction)
        if len(calls) == 2:
            raise ZeroDivisionError
        return {}

    trained.compute_metrics = fail
    with pytest.raises(ZeroDivisionError):
        trained.evaluate()
    assert differing(state_of(trained.model), weights) == []
    assert differing(state_of(trained.weight_average.module), averaged) == []


# Saving


@pytest.mark.parametrize("publish", ["raw", "ema"])
def test_publish_weights_says_what_save_model_writes(tmp_path, publish):
    trainer = tiny.trainer(tiny.student(), arguments(tmp_path, ema_decay=0.9, publish_weights=publish))
    trainer.train()
    weights, averaged = state_of(trainer.model), state_of(trainer.weight_average.module)
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    for folder in (tmp_path, tmp_path / "elsewhere"):
        saved = type(trainer.model).from_pretrained(folder).state_dict()
        assert differing(saved, {"raw": weights, "ema": averaged}[publish]) == []
        assert differing(saved, {"raw": averaged, "ema": weights}[publish]) != []
    assert differing(state_of(trainer.model), weights) == []
    assert differing(state_of(trainer.weight_average.module), averaged) == []


@pytest.mark.parametrize("publish", ["raw", "ema"])
def test_the_hub_gets_what_save_model_writes(tmp_path, monkeypatch, publish):
    trainer = tiny.trainer(tiny.student(), arguments(tmp_path, ema_decay=0.9, publish_weights=publish))
    trainer.train()
    uploaded = []
    from_folder = type(trainer.model).from_pretrained

    class Repository:
        repo_id, url = "someone/student", "http://hub"

        def create(self):
            pass

        revision = None

        def head(self):
            return "0" * 40

        def read_card(self, commit):
            return None

        def files(self, commit):
            return set()

        def upload(self, folder, message, *, parent, remove):
            uploaded.append(state_of(from_folder(folder)))
            return SimpleNamespace(oid="1" * 40)

    trainer.repository = Repository()
    trainer.push_to_hub()
    trainer.args.push_to_hub = True
    trainer.save_model()
    published = {"raw": trainer.model, "ema": trainer.weight_average.module}[publish]
    assert [differing(state, state_of(published)) for state in uploaded] == [[], []]


@pytest.mark.parametrize("publish", ["raw", "ema"])
@pytest.mark.parametrize("name", STUDENTS)
def test_checkpoints_hold_the_weights_and_beside_them_the_average(tmp_path, name, publish):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "publish_weights": publish}
    trainer = tiny.trainer(STUDENTS[name](), arguments(tmp_path, **settings))
    snapshots = Snapshots(trainer, "on_step_end")
    trainer.train()
    for step in (2, 4):
        for folder, expected in (("", snapshots.weights[step]), ("ema", snapshots.averages[step])):
            saved = AutoModelForImageClassification.from_pretrained(tmp_path / f"checkpoint-{step}" / folder)
            pixels = torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
            model = STUDENTS[name]()
            model.load_state_dict(expected)
            with torch.no_grad():
                torch.testing.assert_close(
                    saved.eval()(pixels).logits, model.eval()(pixels).logits, atol=1e-5, rtol=1e-5
                )
            if type(saved) is type(model):
                assert differing(state_of(saved), expected) == []
    files = [load_file(tmp_path / "checkpoint-4" / folder / "model.safetensors") for folder in ("", "ema")]
    assert files[0].keys() == files[1].keys()
    assert differing(*files)


# The best model


def test_the_best_average_brings_both_back(tmp_path):
    scores = {"weights": [0.1, 0.2, 0.9, 0.4], "average": [0.1, 0.6, 0.5, 0.3]}
    calls = itertools.count()

    def compute_metrics(prediction):
        call = next(calls)
        return {"top1": scores["average" if call % 2 else "weights"][call // 2]}

    args = arguments(
        tmp_path,
        max_steps=8,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="ema_top1",
    )
    trainer = tiny.trainer(tiny.student(), args, compute_metrics=compute_metrics)
    snapshots = Snapshots(trainer, "on_save")
    trainer.train()
    assert trainer.state.best_metric == 0.6
    assert differing(state_of(trainer.model), snapshots.weights[4]) == []
    assert differing(state_of(trainer.weight_average.module), snapshots.averages[4]) == []
    assert differing(snapshots.weights[4], snapshots.weights[8]) != []
    assert differing(snapshots.averages[4], snapshots.averages[8]) != []


def test_the_best_models_metric_may_be_of_the_average_only_if_there_is_one(tmp_path):
    with pytest.raises(InputError, match="metric_for_best_model must be one of"):
        tiny.trainer(tiny.student(), arguments(tmp_path, ema_decay=0.0, metric_for_best_model="ema_top1"))


# Resuming


@pytest.mark.parametrize(("name", "stop_at"), [("distilled", 5), ("native vit", 12), ("resnet", 5)])  # 12 is an epoch
def test_a_resumed_run_ends_with_the_same_average(tmp_path, name, stop_at):
    def make(folder):
        args = arguments(folder, ema_decay=0.9, max_steps=15, save_strategy="steps", save_steps=stop_at)
        model = STUDENTS[name]()
        if name == "distilled":
            model = tiny.student(drop_path_rate=0.3, hidden_dropout_prob=0.1)
        return tiny.trainer(model, args)

    whole = make(tmp_path / "whole")
    whole.train()
    stopped = make(tmp_path / "parts")
    stopped.add_callback(StopAt(stop_at))
    stopped.train()
    torch.manual_seed(99)
    random.seed(99)
    resumed = make(tmp_path / "parts")
    with torch.no_grad():
        for model in (resumed.model, resumed.weight_average.module):
            for parameter in model.parameters():
                parameter.add_(1)  # a resume that restores nothing would show
    resumed.train(resume_from_checkpoint=True)
    assert differing(state_of(whole.model), state_of(resumed.model)) == []
    assert differing(state_of(whole.weight_average.module), state_of(resumed.weight_average.module)) == []
    assert differing(state_of(whole.model), state_of(whole.weight_average.module)) != []


def test_another_training_begins_another_average(tmp_path):
    args = arguments(tmp_path, ema_decay=0.9, max_steps=3, eval_on_start=True, eval_strategy="epoch")
    trainer = tiny.trainer(tiny.student(), args)
    trainer.train()
    trainer.train()
    start = [entry for entry in trainer.state.log_history if entry["step"] == 0]
    losses = {key: entry[key] for entry in start for key in ("eval_loss", "eval_ema_loss") if key in entry}
    assert losses["eval_loss"] == losses["eval_ema_loss"]


def test_a_checkpoint_without_average_is_refused(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    tiny.trainer(tiny.student(), arguments(tmp_path, ema_decay=0.0, **settings)).train()
    trainer = tiny.trainer(tiny.student(), arguments(tmp_path, **settings))
    with pytest.raises(InputError, match=r"checkpoint-4/ema"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    with pytest.raises(InputError, match=r"cannot restore"):
        trainer.weight_average.restore(str(tmp_path / "checkpoint-2"))


def test_an_average_of_another_model_is_refused(tmp_path):
    WeightAverage(tiny.student(distilled=False), 0.9).save(str(tmp_path))
    with pytest.raises(InputError):
        WeightAverage(tiny.student(), 0.9).restore(str(tmp_path))


def test_a_checkpoint_with_average_serves_a_run_without(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}
    whole = tiny.trainer(tiny.student(), arguments(tmp_path, **settings))
    whole.train()
    resumed = tiny.trainer(tiny.student(seed=1), arguments(tmp_path, **{**settings, "ema_decay": 0.0}))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert differing(state_of(whole.model), state_of(resumed.model)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"publish_weights": "ema", "ema_decay": 0.0}, "publish_weights.*--ema_decay"),
        ({"ema_warmup": True, "ema_decay": 0.0}, "ema_warmup.*ema_decay is 0"),
        ({"publish_weights": "both"}, "publish_weights must be one of raw, ema"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
        ({"ema_decay": -0.1}, r"ema_decay must lie in \[0, 1\)"),
        ({"ema_decay": math.nan}, r"ema_decay must lie in \[0, 1\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        arguments(tmp_path, **settings)
