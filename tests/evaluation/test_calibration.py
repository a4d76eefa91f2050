"""Calibration is what scikit-learn, torch and naive loops say, and stays finite where there is little to measure."""

import gc
import io
import json
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse
from sklearn.metrics import brier_score_loss, log_loss
from support.planted_answers import AnswersInChunks, one_head, some_labels, some_logits, two_heads

from hf_deit.evaluation.accuracy import accuracy, calibration, classes
from hf_deit.evaluation.accuracy.accuracy import accuracy_section
from hf_deit.evaluation.accuracy.calibration import (
    BINS,
    TEMPERATURES,
    Scored,
    accuracy_at_coverage,
    calibration_section,
    expected_calibration_error,
    fit_temperatures,
    reliability,
    threshold_for,
)
from hf_deit.evaluation.answers.verdicts import SINGLE
from hf_deit.evaluation.images.labels import Labels


def naive_ece(right: np.ndarray, confidence: np.ndarray) -> float:
    """Guo et al.'s equation 3, bin by bin and image by image."""
    total = 0.0
    for number in range(BINS):
        inside = [
            index
            for index, value in enumerate(confidence)
            if (number / BINS < value or number == 0) and value <= (number + 1) / BINS
        ]
        if inside:
            accuracy = sum(bool(right[index]) for index in inside) / len(inside)
            mean = sum(float(confidence[index]) for index in inside) / len(inside)
            total += len(inside) / len(right) * abs(accuracy - mean)
    return total


def softmax(scores: np.ndarray, temperatures: np.ndarray | float = 1.0) -> np.ndarray:
    scaled = torch.from_numpy(np.asarray(scores, np.float64)) / torch.as_tensor(temperatures, dtype=torch.float64)
    return scaled.softmax(1).numpy()


def temperature_by_torch(scores: np.ndarray, true: np.ndarray) -> float:
    """The temperature that L-BFGS finds on all scores at once, in float64."""
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    values, labels = torch.from_numpy(scores.astype(np.float64)), torch.from_numpy(true)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(values / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(loss)
    return log_temperature.exp().item()


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take most of the time, and are looked at in other tests."""
    for module in (accuracy, calibration, classes):
        monkeypatch.setattr(module, "as_png", lambda figure: b"")


def numbers_of(logits: np.ndarray, labels: Labels) -> dict:
    section = calibration_section([AnswersInChunks("model", {SINGLE: logits})], labels)
    json.dumps(section.numbers, allow_nan=False)
    for picture in section.pictures:
        if picture.png:
            Image.open(io.BytesIO(picture.png)).verify()
    return section.numbers["contenders"]["model"]["answer"] | {"text": " ".join(section.text)}


def test_the_calibration_error_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    edges = np.linspace(0, 1, BINS + 1)
    confidence = np.concatenate([rng.beta(4, 2, 500), edges, edges[1:-1]])
    right = rng.random(len(confidence)) < confidence**2
    assert expected_calibration_error(right, confidence) == pytest.approx(naive_ece(right, confidence), abs=1e-12)
    assert expected_calibration_error(right, confidence) > 0.1
    accuracy, mean, counts = reliability(np.array([True, False, True]), np.array([0.95, 1.0, 0.5]))
    assert counts.tolist() == [0] * 7 + [1] + [0] * 6 + [2]
    assert (accuracy[[7, 14]], mean[[7, 14]]) == (pytest.approx([1, 0.5]), pytest.approx([0.5, 0.975]))
    for always in (True, False):
        assert expected_calibration_error(np.full(4, always), np.full(4, 0.75)) == abs(always - 0.75)


@pytest.mark.usefixtures("undrawn")
def test_every_number_is_that_of_scikit_learn_and_torch():
    labels = some_labels(500, 6, unlabelled=20)
    student, other = two_heads(labels, skill=1.5), one_head(labels, "other")
    found = calibration_section([student, other], labels).numbers
    heads = {name: logits.astype(np.float64) for name, logits in student.logits.items()}
    scores = {
        ("student", "class"): heads["class"],
        ("student", "distillation"): heads["distillation"],
        ("student", "logits"): (heads["class"] + heads["distillation"]) / 2,
        ("student", "softmax"): np.log(softmax(heads["class"]) + softmax(heads["distillation"])),
        ("other", "answer"): other.logits["answer"],
    }
    assert {(model, rule) for model, rules in found["contenders"].items() for rule in rules} == scores.keys()
    true, classes = labels.values[20:], np.arange(6)
    half = np.random.default_rng(0).permutation(480) % 2
    for (model, rule), values in scores.items():
        row, values = found["contenders"][model][rule], values[20:]
        fitted = [temperature_by_torch(values[half == number], true[half == number]) for number in (0, 1)]
        assert row["temperatures_of_halves"] == pytest.approx(fitted, rel=1e-4)
        assert row["temperature"] == pytest.approx(temperature_by_torch(values, true), rel=1e-4)
        crossed = np.where(half == 0, row["temperatures_of_halves"][1], row["temperatures_of_halves"][0])
        for name, temperatures in (("before", 1.0), ("after", crossed[:, None])):
            probabilities = softmax(values, temperatures)
            right = probabilities.argmax(1) == true
            assert row[name]["ece"] == pytest.approx(naive_ece(right, probabilities.max(1)), abs=1e-9)
            assert row[name]["nll"] == pytest.approx(log_loss(true, probabilities, labels=classes))
            brier = brier_score_loss(true, probabilities, labels=classes, scale_by_half=False)
            assert row[name]["brier"] == pytest.approx(brier)
            assert row[name]["mean_confidence"] == pytest.approx(probabilities.max(1).mean())
    assert found["num_images"] == 480 and found["num_unlabelled"] == 20


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("planted", [0.2, 3.0])
def test_a_planted_temperature_is_found_back(planted):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6000, 4)) * 2
    values = (rng.random((6000, 1)) > softmax(logits).cumsum(1)).sum(1).clip(0, 3)  # drawn by these probabilities
    row = numbers_of((logits * planted).astype(np.float32), Labels(("a", "b", "c", "d"), values))
    assert row["temperature"] == pytest.approx(planted, rel=0.05)
    assert row["before"]["ece"] > 0.1 and row["after"]["ece"] < 0.03 < row["before"]["ece"]
    assert row["after"]["nll"] < row["before"]["nll"]


@pytest.mark.usefixtures("undrawn")
def test_numbers_are_the_same_in_chunks_of_any_size(monkeypatch):
    labels = some_labels(60, 5, unlabelled=3)
    answers = two_heads(labels)
    whole = calibration_section([AnswersInChunks(answers.model, answers.logits, answers.rule, size=60)], labels)
    monkeypatch.setattr(calibration, "_BLOCK", 15)  # three images at a time
    parts = calibration_section([AnswersInChunks(answers.model, answers.logits, answers.rule, size=4)], labels)
    for rule, row in whole.numbers["contenders"]["student"].items():
        other = parts.numbers["contenders"]["student"][rule]
        assert other["before"] == pytest.approx(row["before"]) and other["after"] == pytest.approx(row["after"])
        assert other["temperature"] == pytest.approx(row["temperature"])


def test_where_all_is_right_more_confidence_is_always_better():
    labels = some_labels(40, 3)
    row = numbers_of(some_logits(labels, skill=20), labels)
    assert row["temperature"] == TEMPERATURES[0] and row["after"]["nll"] == pytest.approx(0, abs=1e-12)
    assert "an end of what is tried" in row["text"]
    assert row["threshold_for_accuracy"]["0.99"]["coverage"] == 1


def test_where_all_is_wrong_less_confidence_is_always_better():
    labels = some_labels(40, 3)
    logits = 4 - 9 * np.eye(3, dtype=np.float32)[labels.values]
    logits[:, 0] += labels.values != 0
    row = numbers_of(logits, labels)
    assert row["temperature"] == TEMPERATURES[1] and row["accuracy"] == 0
    assert row["threshold_for_accuracy"] == {"0.95": None, "0.99": None}
    assert row["after"]["nll"] < row["before"]["nll"] and "an end of what is tried" in row["text"]


def test_constant_answers_have_no_temperature_to_prefer():
    labels = some_labels(40, 4)
    row = numbers_of(np.full((40, 4), 0.3, np.float32), labels)
    assert row["temperature"] == 1 and row["before"] == pytest.approx(row["after"])
    assert row["before"]["mean_confidence"] == pytest.approx(0.25)
    # All images are as sure as each other: they are answered all or not at all.
    assert {choice["coverage"] for choice in row["accuracy_at_coverage"].values()} == {1.0}


@pytest.mark.parametrize("n", [1, 2])
def test_few_images_stay_finite(n):
    labels = some_labels(n, 2)
    row = numbers_of(some_logits(labels), labels)
    assert (row["temperature"] is None) == (n == 1) == ("With a single image" in row["text"])
    assert (row["after"] is None) == (n == 1) and row["before"]["nll"] > 0


@pytest.mark.usefixtures("undrawn")
def test_large_logits_stay_finite():
    labels = some_labels(30, 3)
    row = numbers_of(some_logits(labels, skill=0.5) * np.float32(1e6), labels)
    assert 1 < row["before"]["nll"] < 1e7 and row["temperature"] == TEMPERATURES[1]


def test_several_right_labels_have_no_likelihood():
    labels = some_labels(60, 3)
    accepted = sparse.csr_array(np.eye(3, dtype=bool)[labels.values] | np.array([True, False, False]))
    section = calibration_section([one_head(labels, skill=0)], Labels(labels.names, labels.values, accepted))
    row = section.numbers["contenders"]["plain"]["answer"]
    assert row["before"]["nll"] is None and row["after"] is None and row["temperature"] is None
    assert row["before"]["ece"] > 0 and row["accuracy"] > 0.4
    assert section.tables[0].columns == ("model", "accuracy", "mean confidence", "ECE")
    assert any("need one label of each image" in paragraph for paragraph in section.text)


def naive_groups(scored: Scored) -> list[tuple[float, int, int]]:
    """Each threshold, how many images reach it, and how many of these are right."""
    pairs = list(zip(scored.confidence.tolist(), scored.right.tolist(), strict=True))
    thresholds = sorted(set(scored.confidence.tolist()), reverse=True)
    reached = [[right for confidence, right in pairs if confidence >= threshold] for threshold in thresholds]
    return [(threshold, len(found), sum(found)) for threshold, found in zip(thresholds, reached, strict=True)]


@pytest.mark.parametrize("digits", [1, 2, 6], ids=["many ties", "some ties", "no ties"])
def test_coverage_takes_images_of_one_confidence_together(digits):
    rng = np.random.default_rng(digits)
    confidence = rng.beta(3, 1, 200).round(digits)
    scored = Scored(confidence, rng.random(200) < confidence)
    groups = naive_groups(scored)
    for coverage in (1.0, 0.95, 0.9, 0.8, 0.5, 0.005, 0.29):
        threshold, taken, hits = next(group for group in groups if group[1] >= round(coverage * 200, 6))
        found = accuracy_at_coverage(scored, coverage)
        assert (found.threshold, found.coverage, found.accuracy.value) == (threshold, taken / 200, hits / taken)
    for wanted in (0.5, 0.8, 0.9, 0.95, 1.0):
        enough = [group for group in groups if group[2] / group[1] >= wanted]
        found = threshold_for(scored, wanted)
        assert (found is None) == (not enough)
        if found is not None:
            threshold, taken, hits = enough[-1]
            assert (found.threshold, found.coverage, found.accuracy.value) == (threshold, taken / 200, hits / taken)


@pytest.mark.parametrize(("factor", "most"), [(2.0, 14), (0.02, 18), (60.0, 18)])
def test_temperatures_of_all_and_of_halves_are_found_in_few_readings(factor, most):
    labels = some_labels(400, 5)
    logits, half = some_logits(labels).astype(np.float64) * factor, np.arange(400) % 3 % 2
    readings = []

    class InParts:
        def __iter__(self):
            readings.append(1)
            return ((logits[s : s + 30], labels.values[s : s + 30], half[s : s + 30]) for s in range(0, 400, 30))

    expected = [
        temperature_by_torch(logits[each] / factor, labels.values[each]) * factor
        for each in (half >= 0, half == 0, half == 1)
    ]
    assert fit_temperatures(InParts()) == pytest.approx(expected, rel=1e-4)
    assert len(readings) <= most


@pytest.mark.usefixtures("undrawn")
def test_contenders_and_the_teacher_among_them():
    labels = some_labels(60, 5)
    contenders = [two_heads(labels), *(one_head(labels, f"model {index}", seed=index) for index in range(11))]
    section = calibration_section(contenders, labels, teacher="model 3")
    assert [row[0] for row in section.tables[1].rows][:2] == ["student", "model 0"]
    assert section.tables[1].rows[4][0] == "model 3 (teacher)"
    assert [row[0] for row in section.tables[0].rows][2:5] == [
        "student, both heads, mean of logits (its own)",
        "student, both heads, sum of softmaxes",
        "model 0",
    ]
    assert calibration_section(contenders, some_labels(60, 5, unlabelled=60)) is None


@dataclass(frozen=True)
class AnswersFromNowhere(AnswersInChunks):
    """Answers of 250 classes that are made as they are read, as if they lay on a disk."""

    n: int = 0

    def __len__(self) -> int:
        return self.n

    def chunks(self) -> Iterator[Mapping[str, np.ndarray]]:
        for start in range(0, self.n, 50):
            logits = np.random.default_rng(start).normal(size=(50, 250))
            logits[np.arange(50), np.arange(start, start + 50) % 250] += 4
            yield {SINGLE: logits.astype(np.float32)}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("section_of", "most"), [(accuracy_section, 10_000), (calibration_section, 1500)])
def test_memory_does_not_grow_by_the_logits_of_an_image(section_of, most):
    def peak(n: int) -> int:
        labels = Labels(tuple(map(str, range(250))), np.arange(n) % 250)
        answers = AnswersFromNowhere("model", {SINGLE: np.zeros(0)}, n=n)
        gc.collect()  # figures refer to themselves
        tracemalloc.start()
        section_of([answers], labels)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(250)  # imports, and what is kept for the next time
    assert (peak(most) - peak(500)) / (most - 500) < 300  # bytes; its logits are 1,000
