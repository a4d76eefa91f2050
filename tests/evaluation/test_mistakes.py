"""Contract: the surest mistakes, what is nearest to the border, and the labels to doubt, found, shown and listed."""

import csv
import functools
import io
import json
import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import normalize
from support import images as pictures
from support.verdicts import images_with, labels_of, logits_for, one_head, several_labels, verdicts

from hf_deit.data.digits import load_digits
from hf_deit.evaluation.agreement import label_suspects
from hf_deit.evaluation.agreement.label_suspects import find_suspects, nearest_neighbours
from hf_deit.evaluation.agreement.mistakes import mistakes_section
from hf_deit.evaluation.answers.verdicts import SINGLE_HEAD


def in_chunks(features: np.ndarray, size: int = 100):
    return lambda: (features[start : start + size] for start in range(0, len(features), size))


def listed(section, name: str) -> list[dict[str, str]]:
    content = next(each.content for each in section.attachments if each.name == name)
    return list(csv.DictReader(io.StringIO(content.decode())))


# Neighbours


def by_scikit_learn(features: np.ndarray, indices: np.ndarray, count: int, among: np.ndarray) -> np.ndarray:
    """The neighbours among some of all, in one array."""
    places = np.flatnonzero(among)
    search = NearestNeighbors(n_neighbors=min(count + 1, len(places)), metric="cosine", algorithm="brute")
    found = places[search.fit(features[places].astype(np.float64)).kneighbors(features[indices].astype(np.float64))[1]]
    rows = [[index for index in row if index != own][:count] for row, own in zip(found, indices, strict=True)]
    return np.array(rows)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_neighbours_are_those_of_scikit_learn(monkeypatch, size, dtype):
    monkeypatch.setattr(label_suspects, "_BLOCK", 16)
    random = np.random.default_rng(0)
    features = (random.normal(size=(150, 12)) * random.uniform(0.1, 9, size=(150, 1))).astype(dtype)
    indices, among = random.permutation(150)[:40], random.random(150) < 0.7
    found, cosines = nearest_neighbours(in_chunks(features, size), indices, count=6, among=among)
    assert np.array_equal(found, by_scikit_learn(features, indices, 6, among))
    unit = normalize(features.astype(np.float64))
    assert np.allclose(cosines, (unit[indices][:, None] * unit[found]).sum(axis=2), atol=1e-5)


def test_few_images_have_few_neighbours_and_odd_features_none():
    features = np.array([[1, 0], [2, 0.1], [0, 0], [np.inf, 1], [np.nan, 0], [0, 1]], dtype=np.float16)
    found, cosines = nearest_neighbours(in_chunks(features, 2), np.array([0, 3, 2]), count=4)
    assert found[0].tolist()[:1] == [1] and set(found[0].tolist()) == {1, 2, 5, -1}
    assert found[1].tolist() == [-1] * 4 and np.isnan(cosines[1]).all()
    assert 2 not in found[2] and np.array_equal(np.isnan(cosines), found == -1)
    assert nearest_neighbours(in_chunks(features), np.array([], dtype=int))[0].shape == (0, 10)
    alone, _ = nearest_neighbours(in_chunks(features[:1]), np.array([0]), count=2)
    assert alone.tolist() == [[-1, -1]]


def test_copies_of_an_image_are_neighbours_but_not_the_image_itself():
    features = np.ones((30, 4), dtype=np.float16)
    found, _ = nearest_neighbours(in_chunks(features, 8), np.arange(30), count=5)
    assert (found >= 0).all() and (found != np.arange(30)[:, None]).all()


def test_memory_does_not_grow_with_the_images():
    chunk = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float16)

    def peak(num_chunks: int) -> int:
        tracemalloc.start()
        nearest_neighbours(lambda: (chunk for _ in range(num_chunks)), np.arange(0, 500, 10))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)
    assert peak(40) < 1.1 * peak(4)


# Suspects


@functools.cache
def digits_with_wrong_labels():
    """A model and a teacher trained on right labels, and 360 images of which 20 were given a wrong one."""
    data = load_digits()
    (train, y), (held, truth) = (
        (np.stack([np.asarray(image).ravel() for image in part["image"]]) / 255.0, np.array(part["label"]))
        for part in (data.train, data.validation)
    )
    random = np.random.default_rng(0)
    flipped = random.choice(len(held), 20, replace=False)
    given = truth.copy()
    given[flipped] = (truth[flipped] + random.integers(1, 10, 20)) % 10
    names = [str(digit) for digit in range(10)]
    model, teacher = (
        one_head(name, np.log(kind.fit(train, y).predict_proba(held) + 1e-6)).verdicts(SINGLE_HEAD)
        for name, kind in (("model", LogisticRegression(max_iter=300)), ("teacher", KNeighborsClassifier(5)))
    )
    return model, teacher, labels_of(given, names), held.astype(np.float16), frozenset(flipped.tolist())


@pytest.mark.parametrize(
    ("has_teacher", "has_features", "precision"), [(True, True, 0.9), (True, False, 0.9), (False, True, 0.8)]
)
def test_wrong_labels_that_were_planted_are_found(has_teacher, has_features, precision):
    model, teacher, labels, features, flipped = digits_with_wrong_labels()
    found = find_suspects(
        model,
        labels,
        teacher=teacher if has_teacher else None,
        features=in_chunks(features) if has_features else None,
    )
    hits = len(flipped & set(found.indices.tolist()))
    assert hits / len(flipped) >= 0.9 and hits / len(found) >= precision
    mistakes = int((model.decisions != labels.values).sum())
    assert hits / len(found) > hits / mistakes  # than the model's word alone
    assert found.has_teacher == has_teacher and (found.agreeing is not None) == has_features
    confidence = model.confidence[found.indices]
    assert (np.diff(confidence) <= 0).all()


def test_each_witness_can_clear_a_label():
    #            suspect  right  teacher differs  neighbours differ
    labels = labels_of([0, 1, 0, 0] + [1] * 8 + [0] * 8)
    model = verdicts("model", [1, 1, 1, 1] + [1] * 8 + [0] * 8)
    teacher = verdicts("teacher", [1, 1, 2, 1] + [1] * 8 + [0] * 8)
    features = np.array([[1, 0], [1, 0], [1, 0], [0, 1]] + [[1, 0.1]] * 8 + [[0.1, 1]] * 8, dtype=np.float16)
    found = find_suspects(model, labels, teacher=teacher, features=in_chunks(features, 3), num_neighbours=5)
    assert found.indices.tolist() == [0] and found.asked.tolist() == [5] and found.agreeing[0] >= 3
    without = find_suspects(model, labels, features=in_chunks(features, 3), num_neighbours=5)
    assert sorted(without.indices.tolist()) == [0, 2]
    assert sorted(find_suspects(model, labels, teacher=teacher).indices.tolist()) == [0, 3]
    assert find_suspects(model, labels) is None and find_suspects(model, labels, features=lambda: None) is None


def test_half_of_the_neighbours_are_not_enough_and_those_without_labels_are_not_asked():
    features = in_chunks(np.ones((6, 2), dtype=np.float16))
    decisions = [1, 1, 1, 0, 0, 1]
    half = find_suspects(verdicts("m", decisions), labels_of([0, 1, 1, 0, 0, -1]), features=features)
    assert half.indices.tolist() == []
    most = find_suspects(verdicts("m", decisions), labels_of([0, 1, 1, 0, -1, -1]), features=features)
    assert most.indices.tolist() == [0] and (most.agreeing.tolist(), most.asked.tolist()) == ([2], [3])
    few = find_suspects(verdicts("m", [1, 1, 0, 1]), labels_of([0, 1, 0, 1]), features=in_chunks(np.ones((4, 2))))
    assert few.indices.tolist() == [0] and (few.agreeing.tolist(), few.asked.tolist()) == ([2], [3])


def test_a_neighbour_with_several_labels_agrees_with_any_of_them():
    labels = several_labels([[0], [2, 1], [1], [0, 2], []])
    found = find_suspects(
        verdicts("m", [1, 1, 1, 0, 0]), labels, features=in_chunks(np.ones((5, 2), dtype=np.float16))
    )
    assert found.indices.tolist() == [0] and (found.agreeing.tolist(), found.asked.tolist()) == ([2], [3])


# The section


def test_mistakes_are_listed_surest_first_with_all_that_is_known():
    model, teacher, labels, features, _ = digits_with_wrong_labels()
    images = images_with(labels)
    section = mistakes_section(model, images, teacher=teacher, features=in_chunks(features))
    wrong = np.flatnonzero(model.decisions != labels.values)
    rows = listed(section, "mistakes.csv")
    assert {int(row["index"]) for row in rows} == set(wrong.tolist()) and len(rows) == len(wrong)
    confidence = [float(row["confidence"]) for row in rows]
    assert confidence == sorted(confidence, reverse=True)
    suspects = find_suspects(model, labels, teacher=teacher, features=in_chunks(features))
    for row in rows:
        index = int(row["index"])
        assert row["image"] == f"row {index} of the images ({index}.png)"
        assert (row["label"], row["answer"]) == (str(labels.values[index]), str(model.decisions[index]))
        assert row["teacher"] == str(teacher.decisions[index])
        assert float(row["margin"]) == pytest.approx(model.margin[index], abs=1e-6)
        assert (row["label_suspect"] == "yes") == (index in suspects.indices) == (row["neighbours_agreeing"] != "")
    sure = int((model.confidence[wrong] >= 0.9).sum())
    assert section.numbers == {
        "model": "model",
        "images": 360,
        "labelled_images": 360,
        "mistakes": len(wrong),
        "sure_mistakes": sure,
        "label_suspects": len(suspects),
        "label_suspects_by": {"teacher": True, "neighbours": True},
        "near_border": int((model.margin < 0.1).sum()),
    }
    assert json.loads(json.dumps(section.numbers)) == section.numbers
    assert [row[1:3] for row in section.tables[0].rows] == [
        (len(wrong), 360),
        (sure, 360),
        (len(suspects), 360),
        (section.numbers["near_border"], 360),
    ]
    assert [picture.name for picture in section.pictures] == [
        "most_confident_mistakes",
        "label_suspects",
        "nearest_to_the_border",
    ]
    assert not any(picture.in_card for picture in section.pictures)


def test_the_border_has_the_smallest_margins_right_or_wrong():
    decisions = np.arange(40) % 3
    model = one_head("m", logits_for(decisions, 3)).verdicts(SINGLE_HEAD)
    labels = labels_of([*decisions[:20], *([0] * 19), -1])
    section = mistakes_section(model, images_with(labels), num_shown=3)
    rows = listed(section, "border.csv")
    assert [int(row["index"]) for row in rows] == np.argsort(model.margin).tolist()
    for row in rows:
        index = int(row["index"])
        right = "" if index == 39 else "yes" if decisions[index] == labels.values[index] else "no"
        assert row["right"] == right and row["second"] == pictures.NAMES[model.ranked[index, 1]]
    picture = section.pictures[-1]
    first = int(rows[0]["index"])
    assert picture.name == "nearest_to_the_border" and "3 images" in picture.caption
    assert f"#{first}  margin {model.margin[first]:.3f}" in picture.alt


@pytest.mark.parametrize(("has_teacher", "has_features"), [(True, False), (False, True), (False, False)])
def test_the_text_says_who_was_asked(has_teacher, has_features):
    model, teacher, labels, features, _ = digits_with_wrong_labels()
    section = mistakes_section(
        model,
        images_with(labels),
        teacher=teacher if has_teacher else None,
        features=in_chunks(features) if has_features else None,
        num_shown=1,
    )
    text = " ".join(section.text)
    assert ("its teacher" in text) == has_teacher and ("nearest" in text) == has_features
    assert ("no proof" in text) == (has_teacher or has_features) == ("label_suspects" in section.numbers)
    assert ("No teacher was asked" in text) == has_features and ("No neighbour was asked" in text) == has_teacher
    suspected = {row["label_suspect"] for row in listed(section, "mistakes.csv")}
    assert suspected == ({"yes", "no"} if has_features or has_teacher else {""})


def test_images_without_labels_have_a_border_alone():
    section = mistakes_section(verdicts("m", [0, 1]), images_with(labels_of([-1, -1])), teacher=verdicts("t", [0, 1]))
    assert [picture.name for picture in section.pictures] == ["nearest_to_the_border"]
    assert [each.name for each in section.attachments] == ["border.csv"] and "mistakes" not in section.numbers


def test_a_model_without_mistakes_and_one_of_a_single_class():
    section = mistakes_section(verdicts("m", [0, 1]), images_with(labels_of([0, 1])), teacher=verdicts("t", [0, 1]))
    assert section.numbers["mistakes"] == section.numbers["label_suspects"] == 0
    assert listed(section, "mistakes.csv") == [] and len(section.pictures) == 1
    single = verdicts("m", [0, 0], num_classes=1)
    section = mistakes_section(single, images_with(labels_of([0, 0], ["all"])))
    assert listed(section, "border.csv")[0]["second"] == ""


def test_broken_images_do_not_end_the_section():
    whole = pictures.encoded(pictures.noise(9, 9))
    encoded = [{"bytes": whole["bytes"][:50], "path": "x.png"}, whole]
    section = mistakes_section(verdicts("m", [1, 1]), images_with(labels_of([0, 0]), encoded))
    assert section.numbers["mistakes"] == 2 and len(section.pictures) == 2
