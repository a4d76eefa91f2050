"""Contract: before the first step it is known which classes a teacher sees in the training images, from these alone.

What is counted is what the teacher says of whole images; what a corrected prior takes off is the log of its mean
probabilities on them, and neither labels nor validation images nor random numbers have a part in it. A run whose
images all have labels, and whose teacher is a classifier, does nothing of this.
"""

import math

import datasets
import numpy as np
import pytest
import torch
from support import tiny, zero_shot
from support.images import broken, random_states

from hf_deit import InputError, TeacherLabelStore, describe_teacher, load_teacher
from hf_deit.data.streams import ImageStream
from hf_deit.models.zero_shot.prior import log_prior
from hf_deit.training import predicted_classes
from hf_deit.training.predicted_classes import PredictedClasses

NAMES = dict(enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teachers") / "clip"
    zero_shot.clip_folder(folder)
    return str(folder)


def describe(clip: str, **settings):
    return describe_teacher(clip, student_processor=tiny.processor(), id2label=NAMES, **settings)


def unlabeled(count: int = 96) -> datasets.Dataset:
    return tiny.digits(count)[0].select_columns("image")


def trainer_of(folder, teacher, **settings):
    data = {"train_dataset": None, "unlabeled_dataset": unlabeled(), "eval_dataset": None}
    data |= {name: settings.pop(name) for name in [*data] if name in settings}
    return tiny.trainer(tiny.student(id2label=NAMES), tiny.arguments(folder, **settings), teacher, **data)


def answers(teacher, images) -> torch.Tensor:
    """Of whole images, as the student's image processor shows them."""
    with torch.no_grad():
        return teacher(tiny.processor()(list(images), return_tensors="pt")["pixel_values"])


# What is taken off


def test_the_prior_is_the_log_of_the_mean_probabilities():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 40
    exact = np.exp(logits.double().numpy())
    expected = np.log((exact / exact.sum(axis=1, keepdims=True)).mean(axis=0))
    np.testing.assert_allclose(log_prior(logits), expected, rtol=1e-6)
    assert log_prior(torch.tensor([[0.0, 2000.0]])).tolist() == [-2000.0, 0.0]  # which no probability holds


def test_a_run_takes_it_off_before_its_first_step(tmp_path, clip):
    raw = load_teacher(clip, student_processor=tiny.processor(), id2label=NAMES)
    trainer = trainer_of(tmp_path, describe(clip, prior_correction=True))
    trainer.train()
    logits = answers(raw, unlabeled()["image"])
    mean = logits.double().softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(trainer.teacher.prior.double(), mean.log(), atol=1e-4, rtol=0)
    torch.testing.assert_close(answers(trainer.teacher, unlabeled()["image"]), logits - trainer.teacher.prior)
    found = trainer.record.predicted_classes
    assert found.uncorrected == logits.argmax(dim=1).bincount(minlength=10).tolist()
    assert found.counts == (logits - trainer.teacher.prior).argmax(dim=1).bincount(minlength=10).tolist()
    assert found.num_images == 96 and found.counts != found.uncorrected
    assert trainer.run_facts().predicted_classes == found.to_dict()


def test_images_are_chosen_evenly_up_to_a_bound(tmp_path, clip, monkeypatch):
    monkeypatch.setattr(predicted_classes, "PRIOR_IMAGES", 20)
    trainer = trainer_of(tmp_path, describe(clip, prior_correction=True))
    trainer.check_teacher()
    raw = load_teacher(clip, student_processor=tiny.processor(), id2label=NAMES)
    chosen = unlabeled().select(np.linspace(0, 95, num=20, dtype=int))["image"]
    assert (
        trainer.record.predicted_classes.uncorrected == answers(raw, chosen).argmax(1).bincount(minlength=10).tolist()
    )


def test_it_asks_for_no_label_and_no_validation_image(tmp_path, clip):
    """The same images with labels, and with validation images, give the same numbers."""
    alone = trainer_of(tmp_path, describe(clip, prior_correction=True))
    alone.check_teacher()
    train, validation = (
        part.cast_column("label", datasets.ClassLabel(names=list(NAMES.values()))) for part in tiny.digits()
    )
    data = {"train_dataset": train, "unlabeled_dataset": None, "eval_dataset": validation}
    labelled = trainer_of(tmp_path, describe(clip, prior_correction=True), **data)
    report = labelled.check_teacher()
    assert labelled.record.predicted_classes == alone.record.predicted_classes
    logits = answers(labelled.teacher, validation["image"])  # the corrected one is measured
    right = (logits.argmax(dim=1) == torch.tensor(validation["label"])).double().mean()
    assert report["teacher_top1"] == pytest.approx(float(right))


def test_in_python_it_is_part_of_the_identity(tmp_path, clip):
    teacher = load_teacher(clip, student_processor=tiny.processor(), id2label=NAMES)
    before = teacher.description.identity()
    logits = answers(teacher, unlabeled()["image"])
    teacher.correct_prior(log_prior(logits))
    assert "prior_correction" not in before
    assert len(teacher.description.identity()["prior_correction"]["digest"]) == 64
    torch.testing.assert_close(answers(teacher, unlabeled()["image"]), logits - log_prior(logits))
    trainer = trainer_of(tmp_path, teacher, teacher_labels=str(tmp_path / "labels"), max_steps=12)
    trainer.train()
    identity = TeacherLabelStore.open(tmp_path / "labels", readonly=True).identity.teacher
    assert identity["prior_correction"] == teacher.description.identity()["prior_correction"]
    found = trainer.record.predicted_classes
    assert found.priors == [teacher.prior.tolist()] and found.uncorrected is None  # it was given, and not found here


def test_of_several_teachers_each_zero_shot_one_is_corrected(tmp_path, clip):
    resnet = tiny.resnet()
    resnet.config.id2label, resnet.config.label2id = NAMES, {name: index for index, name in NAMES.items()}
    resnet.save_pretrained(tmp_path / "resnet")
    tiny.processor().save_pretrained(tmp_path / "resnet")
    both = [str(tmp_path / "resnet"), clip]
    plain = load_teacher(both, student_processor=tiny.processor(), id2label=NAMES)
    asked = trainer_of(tmp_path / "plain", plain)
    asked.check_teacher()
    said = answers(plain, unlabeled()["image"]).argmax(dim=1).bincount(minlength=10).tolist()
    assert asked.record.predicted_classes == PredictedClasses(said)
    teacher = describe_teacher(both, student_processor=tiny.processor(), id2label=NAMES, prior_correction=True)
    trainer = trainer_of(tmp_path / "run", teacher, save_strategy="steps", save_steps=3)
    trainer.train()
    classifier, corrected = trainer.teacher.members
    prior = log_prior(answers(plain.members[1], unlabeled()["image"]))
    assert classifier.prior is None
    torch.testing.assert_close(corrected.prior, prior, atol=1e-4, rtol=0)
    found = trainer.record.predicted_classes
    assert found.uncorrected == said and found.priors == [None, corrected.prior.tolist()]
    assert found.counts == answers(trainer.teacher, unlabeled()["image"]).argmax(dim=1).bincount(minlength=10).tolist()
    again = trainer_of(tmp_path / "run", teacher, save_strategy="steps", save_steps=3)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(again.teacher.members[1].prior, corrected.prior)


def test_a_second_training_keeps_the_prior_of_the_first(tmp_path, clip):
    trainer = trainer_of(tmp_path, describe(clip, prior_correction=True), save_strategy="steps", save_steps=3)
    trainer.train()
    first = trainer.teacher.prior.clone()
    trainer.train()
    again = trainer_of(tmp_path, describe(clip, prior_correction=True), save_strategy="steps", save_steps=3)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(again.teacher.prior, first)


@pytest.mark.parametrize("prior", [[0.0] * 9, [math.nan] * 10, torch.zeros(1, 10)])
def test_what_is_no_prior_is_refused(clip, prior):
    teacher = load_teacher(clip, student_processor=tiny.processor(), id2label=NAMES)
    with pytest.raises(InputError, match="of 10 labels is as many finite numbers"):
        teacher.correct_prior(prior)


def test_a_classifier_has_learnt_its_prior(tmp_path):
    with pytest.raises(InputError, match="is a classifier"):
        load_teacher(tiny.teacher_folder(tmp_path), student_processor=tiny.processor(), prior_correction=True)


def test_of_a_stream_no_images_can_be_chosen(tmp_path, clip):
    train = tiny.digits()[0].cast_column("label", datasets.ClassLabel(names=list(NAMES.values())))
    stream = ImageStream(train.to_iterable_dataset(), images_per_epoch=96)
    trainer = trainer_of(tmp_path, describe(clip, prior_correction=True), train_dataset=stream, unlabeled_dataset=None)
    with pytest.raises(InputError, match="leave --streaming out"):
        trainer.train()


# Of whom it is asked


def test_what_was_said_is_known_where_a_run_needs_its_teacher_no_more(tmp_path, clip):
    trainer = trainer_of(tmp_path, describe(clip))
    said = PredictedClasses([90, 6, *[0] * 8])
    trainer.teacher, trainer._run_origin.origin = None, {"predicted_classes": said.to_dict()}
    trainer._ask_for_classes()
    assert trainer.run_facts().predicted_classes == said.to_dict()


def test_an_ordinary_run_is_not_looked_at(tmp_path, monkeypatch):
    teacher = load_teacher(tiny.teacher_folder(tmp_path / "teacher"), student_processor=tiny.processor())
    monkeypatch.setattr("hf_deit.training.trainer.predict_classes", lambda *_: pytest.fail("it was asked"))
    tiny.trainer(tiny.student(), tiny.arguments(tmp_path / "run"), teacher).check_teacher()


def test_a_classifier_of_images_without_labels_is_asked_and_nothing_is_drawn(tmp_path):
    teacher = load_teacher(tiny.teacher_folder(tmp_path / "teacher"), student_processor=tiny.processor())
    data = {"train_dataset": None, "unlabeled_dataset": unlabeled(), "eval_dataset": None}
    trainer = tiny.trainer(tiny.student(), tiny.arguments(tmp_path / "run"), teacher, **data)
    before = random_states()
    trainer._ask_for_classes()
    assert random_states() == before
    said = answers(teacher, unlabeled()["image"]).argmax(dim=1).bincount(minlength=10).tolist()
    assert trainer.record.predicted_classes == PredictedClasses(said)


def test_broken_images_are_not_counted(tmp_path, clip):
    trainer = trainer_of(
        tmp_path, describe(clip), unlabeled_dataset=broken(tiny.digits()[0], [3, 50]), on_bad_image="skip"
    )
    trainer._ask_for_classes()
    assert trainer.record.predicted_classes.num_images == 94
    assert len(trainer.skipped_images) == 0  # of the training and its evaluations


# What is said


def test_a_histogram_has_a_line_a_class():
    lines = (
        PredictedClasses([1, 3, 0], uncorrected=[4, 0, 0], priors=[[0.0] * 3])
        .text(["cat", "red fox", "dog"])
        .splitlines()
    )
    assert [line.split() for line in lines] == [
        ["the", "teacher", "says,", "of", "4", "training", "images:"],
        ["red", "fox", "#" * 24, "75.0%", "3", "(uncorrected", "0)"],
        ["cat", "#" * 8, "25.0%", "1", "(uncorrected", "4)"],
        ["dog", "0.0%", "0", "(uncorrected", "0)"],
    ]
    assert all(len(line) <= 80 for line in lines)


def test_of_many_classes_the_most_frequent_are_shown():
    lines = PredictedClasses(list(range(100))).text([f"name {index}" for index in range(100)]).splitlines()
    assert len(lines) == 18 and lines[1].split()[1] == "99" and lines[-1].split()[0] == "84"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([60, 30, 10], []),
        ([95, 3, 2], ["says 'a' of 95.0% of 100"]),
        ([60, 40, 0], ["never says 1 of 3 classes on 100 training images ('c')"]),
        ([96, 4, 0], ["says 'a' of 96.0%", "never says 1"]),
        ([100, 0, 0], ["says 'a' of 100.0%"]),  # of the others that is said, too
        ([5, 5, 0], []),  # so few images say nothing
    ],
)
def test_what_is_doubtful(counts, words):
    doubts = PredictedClasses(counts).doubts(["a", "b", "c"], is_zero_shot=True)
    assert [word in doubt for word, doubt in zip(words, doubts, strict=True)] == [True] * len(words)
    assert all("--teacher_prior_correction" in doubt for doubt in doubts)
    corrected = PredictedClasses(counts, uncorrected=counts, priors=[[0.0] * 3])
    assert not any("--teacher_prior" in doubt for doubt in corrected.doubts(["a", "b", "c"], is_zero_shot=True))


def test_small_crops_are_warned_of(tmp_path, clip, caplog):
    big = tiny.processor(crop_size=36)
    teacher = describe_teacher(clip, student_processor=big, id2label=NAMES)
    student = tiny.student(id2label=NAMES, image_size=36, patch_size=12)
    data = {"train_dataset": None, "unlabeled_dataset": unlabeled(24), "eval_dataset": None, "processing_class": big}
    for crop, is_told in ((0.08, True), (0.25, False)):
        caplog.clear()
        tiny.trainer(student, tiny.arguments(tmp_path, crop_scale_min=crop), teacher, **data)._ask_for_classes()
        assert ("crops begin at 8% of an image" in caplog.text) == is_told
