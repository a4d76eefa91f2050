"""Contract: the losses are the paper's equations 2 and 3 (section 4), whatever the precision of their inputs.

The reference is written out in float64 NumPy.
"""

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target

from hf_deit.training.losses import (
    class_targets,
    hard_distillation_loss,
    soft_distillation_loss,
    soft_target_cross_entropy,
)

B, K = 6, 11


def logits(seed: int, scale: float = 3.0, shape: tuple[int, ...] = (B, K)) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


def softmax(z: np.ndarray) -> np.ndarray:
    exponentials = np.exp(z - z.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def kl_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(axis=-1)


def test_hard_loss_is_cross_entropy_to_the_teachers_argmax():
    student, teacher = logits(0), logits(1)
    decisions = teacher.argmax(axis=1)
    expected = -np.mean([np.log(softmax(student)[i, decisions[i]]) for i in range(B)])
    assert hard_distillation_loss(torch.tensor(student), torch.tensor(teacher)).item() == pytest.approx(
        expected, 1e-12
    )
    assert hard_distillation_loss(torch.tensor(student), torch.tensor(decisions)).item() == pytest.approx(
        expected, 1e-12
    )


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
def test_hard_loss_takes_decisions_of_any_integer_type(dtype):
    student, decisions = torch.tensor(logits(0)), torch.tensor(logits(1)).argmax(1)
    assert torch.equal(
        hard_distillation_loss(student, decisions.to(dtype)), hard_distillation_loss(student, decisions)
    )


@pytest.mark.parametrize("decision", [-100, -1, K])
def test_a_decision_that_is_no_class_is_not_passed_over(decision):
    with pytest.raises(IndexError, match="out of bounds"):
        hard_distillation_loss(torch.from_numpy(logits(0)), torch.tensor([0, 1, decision, 3, 4, 5]))


@pytest.mark.parametrize("loss", [hard_distillation_loss, soft_distillation_loss])
def test_views_without_an_answer_add_nothing(loss):
    teacher, spoilt = torch.tensor(logits(1)), torch.tensor(logits(1))
    answered = torch.tensor([True, False, True, True, False, True])
    spoilt[~answered] = torch.tensor([torch.nan, -torch.inf], dtype=spoilt.dtype)[:, None]
    student = torch.tensor(logits(0), requires_grad=True)
    found = loss(student, spoilt, answered=answered)
    expected = loss(student[answered], teacher[answered]) * 4 / 6  # each view's loss is its own
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,), (wanted,) = (torch.autograd.grad(value, student) for value in (found, expected))
    torch.testing.assert_close(gradient, wanted)
    assert not gradient[~answered].any()
    nothing = loss(student, torch.full_like(teacher, torch.nan), answered=torch.zeros(6, dtype=torch.bool))
    assert nothing == 0 and not torch.autograd.grad(nothing, student)[0].any()


@pytest.mark.parametrize("loss", [hard_distillation_loss, soft_distillation_loss])
def test_where_all_views_are_answered_the_bits_are_the_same(loss):
    for batch_size, classes in ((1, 2), (7, 10), (64, 1000), (193, 37)):
        generator = torch.Generator().manual_seed(batch_size)
        student, teacher = (5 * torch.randn(batch_size, classes, generator=generator) for _ in range(2))
        student.requires_grad_()
        values = loss(student, teacher), loss(student, teacher, answered=torch.ones(batch_size, dtype=torch.bool))
        assert torch.equal(*values)
        assert torch.equal(*(torch.autograd.grad(0.5 * value, student)[0] for value in values))


@pytest.mark.parametrize("temperature", [1.0, 3.0, 0.5])
def test_soft_loss_is_equation_2(temperature):
    student, teacher = logits(0), logits(1)
    expected = temperature**2 * kl_divergence(softmax(teacher / temperature), softmax(student / temperature)).mean()
    loss = soft_distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature=temperature)
    assert loss.item() == pytest.approx(expected, 1e-10)


def test_soft_loss_takes_the_papers_temperature_and_normalisation_by_default():
    student, teacher = logits(0), logits(1)
    expected = 9 * kl_divergence(softmax(teacher / 3), softmax(student / 3)).mean()
    assert soft_distillation_loss(torch.tensor(student), torch.tensor(teacher)).item() == pytest.approx(
        expected, 1e-10
    )


def test_numel_is_the_authors_normalisation_and_smaller_by_the_number_of_classes():
    student, teacher = torch.tensor(logits(0)), torch.tensor(logits(1))
    # facebookresearch/deit, losses.py
    t = 2.0
    authors = (
        torch.nn.functional.kl_div(
            torch.log_softmax(student / t, dim=1),
            torch.log_softmax(teacher / t, dim=1),
            reduction="sum",
            log_target=True,
        )
        * (t * t)
        / student.numel()
    )
    numel = soft_distillation_loss(student, teacher, temperature=t, reduction="numel")
    batchmean = soft_distillation_loss(student, teacher, temperature=t, reduction="batchmean")
    assert numel.item() == pytest.approx(authors.item(), 1e-12)
    assert batchmean.item() == pytest.approx(K * numel.item(), 1e-12)


def test_soft_loss_and_its_gradient_vanish_at_the_teachers_distribution():
    teacher = torch.tensor(logits(1))
    student = (teacher + 7.0).requires_grad_()  # logits shifted by a constant give the same distribution
    loss = soft_distillation_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_soft_loss_gradient_is_that_of_equation_2():
    student, teacher = torch.tensor(logits(0), requires_grad=True), torch.tensor(logits(1))
    soft_distillation_loss(student, teacher, temperature=2.0).backward()
    expected = 2.0 * (softmax(student.detach().numpy() / 2) - softmax(teacher.numpy() / 2)) / B
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-12)


def test_soft_loss_is_not_symmetric():
    """KL(teacher ‖ student), not the other way round."""
    student, teacher = torch.tensor(logits(0)), torch.tensor(logits(1))
    forward, backward = soft_distillation_loss(student, teacher), soft_distillation_loss(teacher, student)
    assert abs(forward - backward) > 0.05


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_target_cross_entropy_is_the_formula(smoothing):
    z = logits(0)
    targets = np.full((B, K), smoothing / K)
    targets[np.arange(B), np.arange(B)] += 1 - smoothing
    expected = -(targets * np.log(softmax(z))).sum(axis=1).mean()
    assert soft_target_cross_entropy(torch.tensor(z), torch.tensor(targets)).item() == pytest.approx(expected, 1e-12)


def test_soft_target_cross_entropy_equals_label_smoothing():
    z, labels = torch.tensor(logits(0)), torch.arange(B)
    targets = torch.full((B, K), 0.1 / K, dtype=torch.float64)
    targets[torch.arange(B), labels] += 0.9
    reference = torch.nn.functional.cross_entropy(z, labels, label_smoothing=0.1)
    assert torch.allclose(soft_target_cross_entropy(z, targets), reference, rtol=1e-12)


LOSSES = {
    "hard": lambda student, teacher: hard_distillation_loss(student, teacher),
    "soft": lambda student, teacher: soft_distillation_loss(student, teacher),
    "soft numel": lambda student, teacher: soft_distillation_loss(student, teacher, reduction="numel"),
    "targets": lambda student, teacher: soft_target_cross_entropy(student, teacher.softmax(-1)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_half_precision_is_computed_in_float32(dtype, loss):
    generator = torch.Generator().manual_seed(0)
    # 1,000 classes: a sum over them in half precision is off by percents.
    student, teacher = (torch.randn(4, 1000, generator=generator).to(dtype).mul(4) for _ in range(2))
    half = loss(student, teacher.float() if loss is LOSSES["targets"] else teacher)
    assert half.dtype == torch.float32
    exact = loss(student.double(), teacher.double())
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_large_logits_stay_finite(loss):
    student = torch.tensor([[3e4, 0.0, -3e4]]).half()
    assert torch.isfinite(loss(student, -student.float())).all()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_float64_stays_float64(loss):
    assert loss(torch.tensor(logits(0)), torch.tensor(logits(1))).dtype == torch.float64


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hard_distillation_loss(zeros(4, 3, 2), zeros(4, 3)),
            r"student_logits must be .*\(B, K\).*\(4, 3, 2\)",
        ),
        (
            lambda: hard_distillation_loss(zeros(4, 3, dtype=torch.long), zeros(4, 3)),
            "student_logits must be floating",
        ),
        (lambda: hard_distillation_loss(zeros(4, 3), zeros(5, 3)), r"teacher must be logits \(4, 3\).*got \(5, 3\)"),
        (lambda: hard_distillation_loss(zeros(4, 3), zeros(5, dtype=torch.long)), r"decisions \(4,\), got \(5,\)"),
        (lambda: hard_distillation_loss(zeros(4, 3), zeros(4, 3, dtype=torch.long)), r"got \(4, 3\)"),
        (lambda: hard_distillation_loss(zeros(4, 3), zeros(4)), r"got \(4,\)"),
        (lambda: soft_distillation_loss(zeros(4, 3), zeros(4, 5)), r"one shape, got \(4, 3\) and \(4, 5\)"),
        (lambda: soft_distillation_loss(zeros(4, 3), zeros(1, 3)), "one shape"),  # no silent broadcasting
        (lambda: soft_distillation_loss(zeros(4, 3), zeros(4, dtype=torch.long)), "teacher_logits must be floating"),
        (
            lambda: soft_distillation_loss(zeros(4, 3), zeros(4, 3), temperature=0.0),
            "temperature must be positive, got",
        ),
        (lambda: soft_distillation_loss(zeros(4, 3), zeros(4, 3), temperature=-1.0), "temperature must be positive"),
        (
            lambda: soft_distillation_loss(zeros(4, 3), zeros(4, 3), reduction="mean"),
            '"batchmean" or "numel", got .mean',
        ),
        (lambda: soft_target_cross_entropy(zeros(4, 3), zeros(4, 5)), r"targets must have .*\(4, 3\), got \(4, 5\)"),
        (lambda: soft_target_cross_entropy(zeros(4, 3), zeros(4, dtype=torch.long)), r"targets must have"),
        (lambda: soft_target_cross_entropy(zeros(4, 3), zeros(1, 3)), "targets must have"),
    ],
)
def test_argument_errors_say_what_was_got_and_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("classes", [3, 5])
def test_hard_loss_refuses_a_teacher_with_other_classes(classes):
    """The argmax over another number of classes would name other labels."""
    with pytest.raises(ValueError, match="teacher must be logits"):
        hard_distillation_loss(zeros(4, 4), zeros(4, classes))


LABELS = torch.tensor([0, 3, 3, K - 1, 7, 5])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_class_targets_are_those_of_timm(smoothing):
    targets = class_targets(LABELS, K, smoothing=smoothing)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets, mixup_target(LABELS, K, lam=1.0, smoothing=smoothing), atol=1e-7, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [1.0, 0.75, 0.3, 0.0])
def test_mixed_class_targets_are_those_of_timm(smoothing, weight):
    # timm takes the reversed batch for the partners.
    weights = torch.full((B,), weight, dtype=torch.float64)
    targets = class_targets(LABELS, K, smoothing=smoothing, partner_labels=LABELS.flip(0), label_weights=weights)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets, mixup_target(LABELS, K, lam=weight, smoothing=smoothing), atol=1e-7, rtol=0)


def test_each_row_of_class_targets_has_its_own_weight():
    weights = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 0.9])
    targets = class_targets(LABELS, K, smoothing=0.2, partner_labels=(LABELS + 1) % K, label_weights=weights)
    for label, weight, row in zip(LABELS.tolist(), weights.tolist(), targets, strict=True):
        expected = np.full(K, 0.2 / K)
        expected[label] += 0.8 * weight
        expected[(label + 1) % K] += 0.8 * (1 - weight)
        np.testing.assert_allclose(row, expected, atol=1e-7)


@pytest.mark.parametrize("unknown", [-1, -100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unknown_labels_have_no_target(smoothing, unknown):
    labels = torch.tensor([2, unknown, 0, unknown])
    targets = class_targets(labels, K, smoothing=smoothing)
    assert (targets[[1, 3]] == 0).all()
    known = mixup_target(labels[[0, 2]], K, smoothing=smoothing)
    torch.testing.assert_close(targets[[0, 2]], known, atol=1e-7, rtol=0)
    assert labels.tolist() == [2, unknown, 0, unknown]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_of_a_mix_only_what_is_known_has_a_target(smoothing):
    known = np.full(K, smoothing / K)
    known[4] += 1 - smoothing
    targets = class_targets(
        torch.tensor([4, -100, -100, 4]),
        K,
        smoothing=smoothing,
        partner_labels=torch.tensor([-100, 4, -100, 4]),
        label_weights=torch.tensor([0.7, 0.7, 0.7, 0.7]),
    )
    np.testing.assert_allclose(targets, np.outer([0.7, 0.3, 0.0, 1.0], known), atol=1e-7)
    np.testing.assert_allclose(targets.sum(1), [0.7, 0.3, 0.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unknown_labels_are_left_out_of_the_loss_but_counted_in_its_mean(smoothing):
    z, labels = torch.tensor(logits(0)), torch.tensor([3, -100, 0, 7, -100, K - 1])
    loss = soft_target_cross_entropy(z, class_targets(labels, K, smoothing=smoothing))
    reference = torch.nn.functional.cross_entropy(
        z, labels, ignore_index=-100, label_smoothing=smoothing, reduction="sum"
    )
    assert loss.item() == pytest.approx(reference.item() / B, 1e-6)
