"""Contract: processes of one run that have other images, another student, another teacher or another batch are refused
before the first step, with both values and who has them; paths, and the last bits of weights, may differ.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from support import tiny

from hf_deit import InputError, load_teacher
from hf_deit.labels.identity import row_marks
from hf_deit.training import alike
from hf_deit.training.alike import Stated, check_alike, check_parts, images_in_brief, versions_doubt
from hf_deit.training.origin import teacher_of

TRAIN, VALIDATION = tiny.digits()


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """Compares a run with that of a process on another machine; what that finds, it states as this one does."""
    monkeypatch.setattr(alike, "_is_on_several_machines", lambda: True)
    monkeypatch.setattr(alike, "first_difference", lambda views, one, other: "; row 7")
    state = SimpleNamespace(num_processes=2, is_main_process=True, is_local_main_process=True)
    monkeypatch.setattr(alike, "PartialState", lambda: state)
    monkeypatch.setattr(alike, "on_every_process", lambda function: function())
    states = []

    def states_alone(value):
        states.append(Stated(len(states), f"node-{len(states)}", value))
        return list(states)

    monkeypatch.setattr(alike, "stated_by_all", states_alone)

    def of(**changes):
        settings = {"train_dataset": TRAIN, "eval_dataset": VALIDATION, "model": tiny.student(), "teacher": None}
        settings |= {"folder": tmp_path, "batch": 8, **changes}
        model, folder, batch, teacher = (settings.pop(name) for name in ("model", "folder", "batch", "teacher"))
        none = {} if teacher else {"distillation_type": "none"}
        args = tiny.arguments(folder, per_device_train_batch_size=batch, **none)
        return tiny.trainer(model, args, teacher, **settings)._check_alike()

    def both(one, other):
        states.clear()
        of(**one)
        of(**other)

    return both


def relabelled():
    labels = list(TRAIN["label"])
    labels[7] = (labels[7] + 1) % 10
    feature = ClassLabel(names=TRAIN.features["label"].names)
    return TRAIN.remove_columns("label").add_column("label", labels, feature=feature)


def nudged(by: float):
    model = tiny.student()
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1 + by)
    return model


CASES = {
    "an image fewer": (
        {"train_dataset": TRAIN.select(range(95))},
        "train on, .*: rows is 96 in process 0 on node-0, 95",
    ),
    "another label": ({"train_dataset": relabelled()}, "train on, .*: fingerprint .*; row 7"),
    "another order": ({"train_dataset": TRAIN.select([1, 0, *range(2, 96)])}, "train on, .*: fingerprint"),
    "no validation": (
        {"eval_dataset": None},
        "validate with, .*: validation is {'rows.* in process 0 .* None in process 1",
    ),
    "fewer to validate with": ({"eval_dataset": VALIDATION.select(range(39))}, "validate with, .*: rows is 40"),
    "other weights": ({"model": tiny.student(seed=1)}, "student, .*: weights.cls_classifier.weight is"),
    "another configuration": (
        {"model": tiny.student(drop_path_rate=0.3)},
        "student, .*: configuration.drop_path_rate",
    ),
    "another batch": ({"batch": 9}, "the views of a step, .*: views_per_step is 8 in process 0"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_differs_is_refused_with_both_values(compare, case):
    change, said = CASES[case]
    with pytest.raises(InputError, match=said):
        compare({}, change)


def test_the_last_bits_of_weights_and_the_place_of_the_run_may_differ(compare, tmp_path):
    compare({}, {"model": nudged(1e-7), "folder": tmp_path / "elsewhere"})
    with pytest.raises(InputError, match="weights"):
        compare({}, {"model": nudged(1e-4)})


def test_teachers_in_folders_are_compared_by_their_weights(compare, tmp_path):
    first, copied, other = (
        load_teacher(tiny.teacher_folder(tmp_path / name, seed=seed), student_processor=tiny.processor())
        for name, seed in (("one", 1), ("copied", 1), ("other", 2))
    )
    compare({"teacher": first}, {"teacher": copied})
    with pytest.raises(InputError, match=r"differ in the teacher: revision is sha256:.* in process 0"):
        compare({"teacher": first}, {"teacher": other})
    assert teacher_of(None) is None


def test_of_a_million_images_one_fewer_is_told():
    stated = [Stated(rank, "a", {"train": {"rows": 1_281_167 - rank}}) for rank in range(2)]
    with pytest.raises(InputError, match="rows is 1281167 in process 0 on a, 1281166 in process 1 on a"):
        check_parts(stated, {"train": None})


def test_one_process_compares_nothing():
    check_alike(views=None, validation=None, student=None, processor=None, teacher=None, views_per_step=1)


def test_processes_of_one_machine_leave_what_takes_time_to_one_of_them():
    whole = images_in_brief(tiny.trainer(tiny.student(), tiny.arguments("x", distillation_type="none")).eval_dataset)
    brief = {"rows": whole["rows"]}
    stated = [Stated(0, "a", {"validation": whole}), Stated(1, "a", {"validation": brief})]
    check_parts(stated, {})
    other = Stated(2, "b", {"validation": {**whole, "fingerprint": "another"}})
    with pytest.raises(InputError, match=r"fingerprint is .* in process 0 on a, another in process 2 on b"):
        check_parts([*stated, other], {"validation": None})


def test_other_versions_of_libraries_are_a_doubt():
    versions = {"versions": {"pillow": "12.0", "torch": "2.14"}}
    other = copy.deepcopy(versions)
    assert versions_doubt([Stated(0, "a", versions), Stated(1, "b", other)]) is None
    other["versions"]["pillow"] = "11.0"
    doubt = versions_doubt([Stated(0, "a", versions), Stated(1, "b", other)])
    assert (
        doubt == "pixels may differ between machines: process 0 on a has pillow 12.0, process 1 on b has pillow 11.0"
    )


def test_marks_of_rows_tell_where_data_sets_part():
    columns = {"image_column": "image", "label_column": "label"}
    marks = row_marks(TRAIN, **columns)
    assert marks.shape == (96,) and np.array_equal(marks, row_marks(TRAIN.select(range(96)), **columns))
    assert np.flatnonzero(marks != row_marks(relabelled(), **columns)).tolist() == [7]
    without = row_marks(TRAIN.select([*range(5), *range(6, 96)]), **columns)
    assert np.flatnonzero(marks[:95] != without)[0] == 5
