"""Contract: top-1 and top-5 accuracy are counts over the labelled samples, and the metric needs no download.

A teacher is measured at every input size that it could be shown, and warned of by the very images it was measured on.
"""

import logging
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import torch
from torch import nn

from hf_deit.models.answers import NO_ANSWER
from hf_deit.models.ensemble import EnsembleDescription, TeacherEnsemble
from hf_deit.models.teacher import Teacher, TeacherDescription
from hf_deit.training.metrics import class_hits, count_hits, measure_teacher, rank_labels
from hf_deit.training.top_k_accuracy import TopKAccuracy


def random_ranking(samples: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions ranked by random scores, and references that are -100 for every third sample."""
    rng = np.random.default_rng(seed)
    predictions = np.argsort(-rng.normal(size=(samples, labels)), axis=1)
    references = rng.integers(0, labels, samples)
    references[::3] = -100
    return predictions, references


@pytest.mark.parametrize(("labels", "k"), [(10, 5), (10, 7), (5, 5)])
def test_accuracy_is_a_count(labels, k):
    predictions, references = random_ranking(200, labels)
    first = first_five = labelled = 0
    for ranking, label in zip(predictions, references, strict=True):
        if label != -100:
            labelled += 1
            first += ranking[0] == label
            first_five += label in ranking[:5].tolist()
    result = TopKAccuracy().compute(predictions=predictions[:, :k], references=references)
    assert result == {"top1": pytest.approx(first / labelled), "top5": pytest.approx(first_five / labelled)}
    assert 0 < result["top1"] < result["top5"] <= 1


def test_no_top5_with_fewer_than_five_predictions():
    predictions, references = random_ranking(50, 4)
    assert set(TopKAccuracy().compute(predictions=predictions, references=references)) == {"top1"}


def test_batches_add_up():
    predictions, references = random_ranking(100, 8)
    metric = TopKAccuracy()
    for start in range(0, 100, 32):
        metric.add_batch(predictions=predictions[start : start + 32, :5], references=references[start : start + 32])
    whole = TopKAccuracy().compute(predictions=predictions[:, :5], references=references)
    assert metric.compute() == whole
    # Nothing of the first use is left over.
    metric.add_batch(predictions=[[0, 1]], references=[0])
    assert metric.compute() == {"top1": 1.0}


def test_each_label_has_its_hits_and_its_images():
    ranked = torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1], [0, 2]])
    labels = torch.tensor([0, 0, 1, -100, 0])
    assert class_hits(ranked, labels, 4) == [[2, 3], [1, 1], [0, 0], [0, 0]]


def test_what_is_not_finite_is_never_right():
    logits = torch.tensor([[0.0, 2.0, 1.0], [torch.nan, 2.0, 1.0], [torch.inf, 2.0, 1.0], [0.0, -torch.inf, 1.0]])
    ranked = rank_labels((logits, logits.nan_to_num(0.0)))
    assert ranked[:, 0].tolist() == [[1, 2, 0], [NO_ANSWER] * 3, [NO_ANSWER] * 3, [2, 0, 1]]
    assert (ranked[:, 1] >= 0).all()
    assert count_hits(ranked[:, 0], torch.tensor([1, 0, 0, 2])).accuracies() == {"top1": 0.5}


def test_unlabelled_samples_alone_are_refused():
    with pytest.raises(ValueError, match="no labelled sample"):
        TopKAccuracy().compute(predictions=[[0], [1]], references=[-100, -100])


def test_it_is_an_evaluate_metric():
    metric = TopKAccuracy()
    assert isinstance(metric, evaluate.Metric)
    assert evaluate.combine([metric]).compute(predictions=[[2, 0], [1, 2]], references=[2, 2]) == {"top1": 0.5}


# Teachers


class ReadsBrightness(nn.Module):
    """Knows an image's label by its brightness, of images of some heights; of others it always says 0."""

    def __init__(self, good: set[int], taken: set[int]) -> None:
        super().__init__()
        self.good, self.taken = good, taken
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        height = pixel_values.shape[-2]
        if height not in self.taken:
            raise ValueError(f"no images of {height} pixels")
        said = pixel_values.mean(dim=(1, 2, 3)).round().long() * (height in self.good)
        return SimpleNamespace(logits=nn.functional.one_hot(said, 4).float())


def teacher_of(*, own: int | None, shown: int, good: set[int], taken: tuple[int, ...] = (8, 16, 24)) -> Teacher:
    """A teacher of four labels, for a student of 16 pixels."""
    description = TeacherDescription(
        name_or_path="big/teacher",
        revision=None,
        wanted_revision=None,
        dtype=torch.float32,
        id2label={index: str(index) for index in range(4)},
        label_order=[0, 1, 2, 3],
        channel_order=[0, 1, 2],
        scale=[1.0] * 3,
        shift=[0.0] * 3,
        processor_size=(16, 16),
        own_size=None if own is None else (own, own),
        student_size=(16, 16),
        sizes=((shown, shown),),
    )
    model = ReadsBrightness(good, set(taken))
    return Teacher(model, description, None if shown == 16 else (shown, shown))


def batch_of(*labels: int) -> dict[str, torch.Tensor]:
    """Images as bright as their labels; one without label has -100, and is as bright as 3."""
    bright = torch.tensor([3 if label < 0 else label for label in labels]).float()
    return {"pixel_values": bright.view(-1, 1, 1, 1).expand(-1, 3, 16, 16), "labels": torch.tensor(labels)}


VIEWS, VALIDATION = [batch_of(0, 1, 1, -100), batch_of(1, 1, 1)], [batch_of(0, 1, 2, 3), batch_of(3, 2, 0, 0)]


def measured(caplog, teacher: Teacher, views=VIEWS, validation=VALIDATION) -> tuple[dict[str, float], str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        return measure_teacher(teacher, views=iter(views), validation=iter(validation)), caplog.text


@pytest.mark.parametrize(
    ("own", "shown", "better"), [(24, 16, "own"), (8, 16, "own"), (24, 24, "student"), (8, 24, "own")]
)
def test_a_teacher_that_is_better_at_another_size_is_warned_of(caplog, own, shown, better):
    good = own if better == "own" else 16
    report, said = measured(caplog, teacher_of(own=own, shown=shown, good={good}))
    sizes = {own, shown, 16}
    assert {name for name in report if "_at_" in name} == {
        f"{name}_at_{size}" for name in ("teacher_top1", "teacher_agreement_with_labels") for size in sizes
    }
    assert report["teacher_top1"] == report[f"teacher_top1_at_{shown}"] == 3 / 8
    assert {report[f"teacher_top1_at_{size}"] for size in sizes - {good}} == {3 / 8}
    assert report[f"teacher_top1_at_{good}"] == report[f"teacher_agreement_with_labels_at_{good}"] == 1
    assert report["teacher_agreement_with_labels"] == 1 / 6
    assert f"right on 0.375 of 8 images at {shown} pixels, which it is shown, and on 1.000 at {good}" in said
    assert f"--teacher_input_size {better} " in said


def test_a_teacher_at_its_best_size_is_warned_of_no_size(caplog):
    report, said = measured(caplog, teacher_of(own=24, shown=24, good={24}))
    assert (report["teacher_top1_at_24"], report["teacher_top1_at_16"]) == (1, 3 / 8)
    assert said == ""
    # It answers alike at both, or takes one alone, or has but one.
    assert measured(caplog, teacher_of(own=24, shown=24, good={16, 24}))[1] == ""
    for teacher in (teacher_of(own=24, shown=24, good={24}, taken=(24,)), teacher_of(own=16, shown=16, good={16})):
        report, said = measured(caplog, teacher)
        assert report == {
            "teacher_agreement_with_labels": 1.0,
            "teacher_top1": 1.0,
            "teacher_images": 8,
            "majority_class": 3 / 8,
        }
        assert said == ""


def test_several_teachers_are_measured_together_and_each_by_itself(caplog):
    """One knows images by their brightness, the other says 0: together they say what the heavier one does."""
    answered: list[torch.Tensor] = []

    def note(which: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        answered.append(which)

    members = [teacher_of(own=24, shown=16, good={16}), teacher_of(own=8, shown=8, good=set())]
    for weights, together in (((0.75, 0.25), (1, 1)), ((0.25, 0.75), (1 / 6, 3 / 8))):
        answered.clear()
        teacher = TeacherEnsemble(members, EnsembleDescription(tuple(one.description for one in members), weights))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            report = measure_teacher(teacher, views=VIEWS, validation=VALIDATION, note_view=note)
        assert report == {
            "teacher_agreement_with_labels": together[0],
            "teacher_agreement_with_labels_of_1": 1,
            "teacher_agreement_with_labels_of_2": 1 / 6,
            "teacher_top1": together[1],
            "teacher_top1_of_1": 1,
            "teacher_top1_of_2": 3 / 8,
            "teacher_images": 8,
            "majority_class": 3 / 8,
        }
        assert torch.cat(answered).tolist() == [True] * 7
        assert "an accuracy of 0.375 on 8 images at 8 pixels, no better than chance" in caplog.text
        assert caplog.text.count("accuracy") == 1


def test_a_weak_teacher_is_compared_with_the_majority_of_the_images_it_was_measured_on(caplog):
    weak = teacher_of(own=16, shown=16, good=set())
    report, said = measured(caplog, weak)  # of the views 5 of 6 are ones, of the validation images 3 of 8 zeros
    assert report["majority_class"] == report["teacher_top1"] == 3 / 8
    assert "an accuracy of 0.375 on 8 images at 16 pixels" in said and "most frequent class (0.375)" in said
    report, said = measured(caplog, weak, validation=[])
    assert (report["majority_class"], report["teacher_agreement_with_labels"]) == (5 / 6, 1 / 6)
    assert "an accuracy of 0.167 on 6 images" in said and "most frequent class (0.833)" in said
    # Better than the majority there, though not than that of the views.
    fair, images = teacher_of(own=16, shown=16, good={16}), batch_of(0, 1, 2, 3, 3)
    images["labels"] = torch.tensor([0, 1, 2, 0, 1])
    report, said = measured(caplog, fair, validation=[images])
    assert (report["teacher_top1"], report["majority_class"], said) == (0.6, 0.4, "")
    assert measured(caplog, weak, views=[batch_of(-100)], validation=[]) == ({}, "")
