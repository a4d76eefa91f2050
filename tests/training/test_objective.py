"""The objective is the paper's equations, computed without a Trainer, a model or a data set.

Every expected value is written out in NumPy, in float64, from the equations of the paper (section 4).
"""

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import ImageClassifierOutput

from hf_deit.models.modeling_common import DistilledImageClassifierOutput
from hf_deit.training.objective import DistillationObjective, evaluation_loss

B, K, SMOOTHING = 6, 5, 0.1


@pytest.fixture
def draws() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    logits = {name: rng.normal(0, 2, (B, K)) for name in ("class", "distillation", "teacher")}
    logits["distillation"][:2] += 5 * logits["teacher"][:2]  # so that they agree on some
    labels = {name: rng.integers(0, K, B) for name in ("own", "partner")}
    return {**logits, **labels, "weights": rng.uniform(0, 1, B)}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    return float(-(targets * log_softmax(logits)).sum(axis=1).mean())


def smoothed(labels: np.ndarray) -> np.ndarray:
    return (1 - SMOOTHING) * np.eye(K)[labels] + SMOOTHING / K


def two_heads(draws) -> DistilledImageClassifierOutput:
    heads = {f"{name}_logits": torch.tensor(draws[key]) for name, key in (("cls", "class"), ("distillation",) * 2)}
    return DistilledImageClassifierOutput(logits=sum(heads.values()) / 2, **heads)


def batch_of(draws, *, mixed: bool = False) -> dict[str, torch.Tensor]:
    batch = {"labels": torch.tensor(draws["own"])}
    if mixed:
        batch |= {"partner_labels": torch.tensor(draws["partner"]), "label_weights": torch.tensor(draws["weights"])}
    return batch


def test_hard_distillation_is_equation_3(draws):
    for answer in (torch.tensor(draws["teacher"]), torch.tensor(draws["teacher"].argmax(axis=1))):
        loss, parts = DistillationObjective(alpha=0.3)(two_heads(draws), batch_of(draws), answer)
        class_loss = cross_entropy(draws["class"], smoothed(draws["own"]))
        decisions = draws["teacher"].argmax(axis=1)
        teacher_loss = cross_entropy(draws["distillation"], np.eye(K)[decisions])
        assert loss.item() == pytest.approx(0.7 * class_loss + 0.3 * teacher_loss, rel=1e-6)
        assert parts["class_loss"].item() == pytest.approx(class_loss, rel=1e-6)
        assert parts["distillation_loss"].item() == pytest.approx(teacher_loss, rel=1e-6)
        agreement = (draws["distillation"].argmax(axis=1) == decisions).mean()
        assert 0 < agreement < 1 and parts["teacher_agreement"].item() == pytest.approx(agreement)


@pytest.mark.parametrize(("reduction", "divisor"), [("batchmean", B), ("numel", B * K)])
def test_soft_distillation_is_equation_2(draws, reduction, divisor):
    objective = DistillationObjective("soft", alpha=0.1, temperature=3.0, reduction=reduction)
    loss, _ = objective(two_heads(draws), batch_of(draws), torch.tensor(draws["teacher"]))
    student, teacher = (log_softmax(draws[name] / 3) for name in ("distillation", "teacher"))
    teacher_loss = 9 * (np.exp(teacher) * (teacher - student)).sum() / divisor
    expected = 0.9 * cross_entropy(draws["class"], smoothed(draws["own"])) + 0.1 * teacher_loss
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_labels_are_mixed_as_pixels_are(draws):
    _, parts = DistillationObjective()(two_heads(draws), batch_of(draws, mixed=True), torch.tensor(draws["teacher"]))
    weights = draws["weights"][:, None]
    targets = weights * smoothed(draws["own"]) + (1 - weights) * smoothed(draws["partner"])
    assert parts["class_loss"].item() == pytest.approx(cross_entropy(draws["class"], targets), rel=1e-6)


def test_without_a_teacher_both_heads_learn_the_label(draws):
    loss, parts = DistillationObjective("none")(two_heads(draws), batch_of(draws))
    both = [cross_entropy(draws[name], smoothed(draws["own"])) for name in ("class", "distillation")]
    assert loss.item() == pytest.approx(sum(both) / 2, rel=1e-6)
    assert list(parts) == ["class_loss"]


def test_a_student_with_one_head_takes_both_terms_on_it(draws):
    outputs = ImageClassifierOutput(logits=torch.tensor(draws["class"]))
    loss, _ = DistillationObjective(alpha=0.25)(outputs, batch_of(draws), torch.tensor(draws["teacher"]))
    expected = 0.75 * cross_entropy(draws["class"], smoothed(draws["own"]))
    expected += 0.25 * cross_entropy(draws["class"], np.eye(K)[draws["teacher"].argmax(axis=1)])
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    alone, _ = DistillationObjective("none")(outputs, batch_of(draws))
    assert alone.item() == pytest.approx(cross_entropy(draws["class"], smoothed(draws["own"])), rel=1e-6)


def test_images_without_labels_teach_the_class_head_only_if_there_are_no_others(draws):
    batch, answer = {"labels": torch.full((B,), -100)}, torch.tensor(draws["teacher"])
    _, beside_others = DistillationObjective()(two_heads(draws), batch, answer)
    assert beside_others["class_loss"].item() == 0
    _, alone = DistillationObjective(has_labels=False)(two_heads(draws), batch, answer)
    decisions = np.eye(K)[draws["teacher"].argmax(axis=1)]
    assert alone["class_loss"].item() == pytest.approx(cross_entropy(draws["class"], decisions), rel=1e-6)


def test_evaluation_is_the_mean_over_what_is_labelled(draws):
    labels = torch.tensor([*draws["own"][:4], -100, -100])
    expected = cross_entropy(draws["class"][:4], np.eye(K)[draws["own"][:4]])
    assert evaluation_loss(torch.tensor(draws["class"]), labels).item() == pytest.approx(expected, rel=1e-5)
    assert evaluation_loss(torch.tensor(draws["class"]), torch.full((B,), -100)).item() == 0
