"""Contract: top-1 and top-5 accuracy are counts over the labelled samples, and the metric needs no download."""

import evaluate
import numpy as np
import pytest
import torch

from hf_deit.training.metrics import class_hits
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


def test_unlabelled_samples_alone_are_refused():
    with pytest.raises(ValueError, match="no labelled sample"):
        TopKAccuracy().compute(predictions=[[0], [1]], references=[-100, -100])


def test_it_is_an_evaluate_metric():
    metric = TopKAccuracy()
    assert isinstance(metric, evaluate.Metric)
    assert evaluate.combine([metric]).compute(predictions=[[2, 0], [1, 2]], references=[2, 2]) == {"top1": 0.5}
