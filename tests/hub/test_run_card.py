"""The card of a run: what it says follows from the facts, and what people have written stays."""

import dataclasses
import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from support.facts import METRICS, facts

from hf_deit.hub.card import BEGIN, END, card_faults, hand_written, make_card, merge_cards, update_card
from hf_deit.hub.facts import (
    LOCAL_DATA_SET,
    LOCAL_TEACHER,
    OWN_IMAGES,
    SKLEARN_DIGITS,
    TEACHERS_LABELS,
    UNNAMED_IMAGES,
    Member,
    RunFacts,
    Source,
    several,
)
from hf_deit.hub.revisions import declared_datasets, declared_license


def results(text: str) -> dict[str, float]:
    return {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results or ()}


def test_results_are_those_of_the_published_weights_by_head():
    assert results(make_card(facts(), "ada/pets")) == {
        "top-1 accuracy, fused heads": 0.75,
        "top-5 accuracy, fused heads": 0.9,
        "top-1 accuracy, class head": 0.7,
        "top-1 accuracy, distillation head": 0.72,
    }
    assert results(make_card(facts(weights="ema"), "ada/pets")) == {
        "top-1 accuracy, fused heads": 0.8,
        "top-1 accuracy, class head": 0.78,
        "top-1 accuracy, distillation head": 0.79,
    }


def test_a_student_with_one_head_has_no_fused_ones():
    text = make_card(facts(metrics={"eval_top1": 0.5}), "ada/pets")
    assert results(text) == {"top-1 accuracy, the model": 0.5}


def test_weights_that_were_not_evaluated_have_no_results():
    text = make_card(facts(step=60, metrics={}, is_finished=False), "ada/pets")
    assert results(text) == {}
    assert "have not been evaluated" in text
    assert "after step 60 of 100" in text
    assert "model-index" not in text


def test_every_result_says_on_what_it_was_measured():
    (result, *_) = ModelCard(make_card(facts(dataset_config="big"), "ada/pets")).data.eval_results
    assert (result.dataset_type, result.dataset_name, result.dataset_config) == ("lab/pets", "lab/pets", "big")
    assert (result.dataset_split, result.dataset_revision) == ("validation", "b" * 40)
    assert result.dataset_args == {"num_images": 500}
    assert result.task_type == "image-classification"


TESTED = {"test_top1": 0.72, "test_class_top1": 0.7, "test_images": 50, "test_loss": 1.0}


def of_a_tested_run(**changes: Any) -> RunFacts:
    return facts(test_metrics=TESTED, num_test=50, **changes)


def test_what_was_measured_on_test_images_has_its_own_entries_and_intervals():
    text = make_card(of_a_tested_run(weights="ema", test_split="final"), "ada/pets")
    stated = [
        (result.dataset_split, result.dataset_args["num_images"], result.metric_name, result.metric_value)
        for result in ModelCard(text).data.eval_results
    ]
    assert stated[-2:] == [
        ("final", 50, "top-1 accuracy, fused heads", 0.72),
        ("final", 50, "top-1 accuracy, class head", 0.7),
    ]
    assert [entry[0] for entry in stated].count("validation") == 3
    interval = proportion_confint(36, 50)
    assert f"| fused heads | 0.7200 [{interval[0]:.4f}, {interval[1]:.4f}] |" in text
    assert "Accuracy on 50 images of [lab/pets]" in text and "(split `final`)" in text
    assert "0.8000 on the validation images above" in text


def proportion_confint(hits: int, count: int) -> tuple[float, float]:
    """Wilson's interval by its formula."""
    z, share = 1.959963984540054, hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return centre - half, centre + half


def test_a_model_that_was_tested_alone_has_a_result():
    text = make_card(of_a_tested_run(metrics={}, num_validation=None, dataset=OWN_IMAGES, teacher=None), "ada/pets")
    assert "50 images of one's own (kept apart as a test)" in text and "not been evaluated" not in text
    assert results(text) == {"top-1 accuracy, fused heads": 0.72, "top-1 accuracy, class head": 0.7}


def test_a_test_is_taken_up_with_the_weights_that_it_was_of_alone():
    earlier, now = of_a_tested_run(), facts(images_per_second=None)
    assert now.taken_up(earlier).test_results() == earlier.test_results() != []
    assert facts(images_per_second=None, weights="ema").taken_up(earlier).test_results() == []
    assert facts().taken_up(earlier).test_results() == []  # trained anew
    assert RunFacts.from_dict(json.loads(json.dumps(earlier.to_dict()))) == earlier


def test_student_teacher_and_data_on_the_hub_are_linked():
    text = make_card(facts(student=Source("lab/start", "d" * 40, on_hub=True)), "ada/pets")
    data = ModelCard(text).data
    assert data.base_model == ["lab/start", "lab/teacher"]
    assert data.datasets == ["lab/pets"]
    assert "Trained on [lab/pets](https://huggingface.co/datasets/lab/pets) at commit `bbbbbbbbbbbb`" in text
    assert "fine-tuned from [lab/start](https://huggingface.co/lab/start) at commit `dddddddddddd`" in text


def test_what_is_not_on_the_hub_is_not_linked():
    local = {"teacher": Source("a teacher from a local folder"), "dataset": Source("images of one's own")}
    data = ModelCard(make_card(facts(**local), "ada/pets")).data
    assert data.base_model is None
    assert data.datasets is None


EXTERNAL = {
    "its card names others": ({"teacher_datasets": ["lab/pets", "lab/web"]}, "trained on lab/web"),
    "its name does": ({"teacher": Source("timm/vit_base.laion2b", None, True)}, "name says"),
    "nobody knows": ({"teacher_datasets": None}, "does not say"),
    "its card names these alone": ({}, None),
    "it was trained here": ({"teacher": Source("a teacher that was trained on the same images")}, None),
    "there is none": ({"teacher": None, "teacher_top1": None}, None),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_external_data_of_the_teacher_is_flagged(case):
    changes, words = EXTERNAL[case]
    text = make_card(facts(**changes), "ada/pets")
    assert ("External data" in text) == (words is not None)
    assert words is None or words in text


def members(**changes) -> list[Member]:
    """A teacher on the Hub, and one in a folder."""
    public = Member(
        Source("lab/clip", "d" * 40, on_hub=True), 0.75, datasets=["lab/web"], license="mit", size=[224, 224]
    )
    return [replace(public, **changes), Member(LOCAL_TEACHER, 0.25, size=[64, 64], top1=0.7)]


def test_each_of_several_teachers_is_named_with_weight_size_licence_and_accuracy():
    one, other = members(top1=0.8)
    text = make_card(facts(teacher=several(2), teacher_members=[one, other], teacher_datasets=None), "ada/pets")
    assert "distilled from the mean of 2 teachers" in text and "| the teachers together | 0.8500 |" in text
    link = f"[lab/clip](https://huggingface.co/lab/clip) at commit `{'d' * 12}`"
    for row in (
        "| teacher | weight | pixels | top-1 by itself | licence, by its card |",
        f"| {link} | 0.75 | 224 x 224 | 0.8000 | `mit` |",
        "| a teacher from a local folder | 0.25 | 64 x 64 | 0.7000 |  |",
    ):
        assert row in text
    assert "lab/clip's card says that it was trained on lab/web" in text
    assert yaml.safe_load(text.split("---")[1])["base_model"] == ["lab/clip"]
    unknown = make_card(
        facts(teacher=several(2), teacher_members=[replace(one, top1=None), replace(other, top1=None)]), "ada/pets"
    )
    assert "| teacher | weight | pixels | licence, by its card |\n" in unknown
    assert "lab/clip's name says" in make_card(facts(teacher_members=members(datasets=None)), "ada/pets")


def test_several_teachers_survive_json():
    told = facts(teacher=several(2), teacher_members=members())
    assert RunFacts.from_dict(json.loads(json.dumps(told.to_dict()))) == told
    earlier = {name: value for name, value in facts().to_dict().items() if name != "teacher_members"}
    assert RunFacts.from_dict(earlier) == facts()
    again = replace(told, images_per_second=None, teacher_members=[replace(one, top1=None) for one in members()])
    assert again.taken_up(told).teacher_members == told.teacher_members


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (None, None),
        ([224, 224], "shown the training views at 224 x 224 pixels."),
        ([288, 288], "shown the training views at 288 x 288 pixels, resized from the student's."),
    ],
)
def test_the_size_that_the_teacher_was_shown_is_named(size, words):
    text = make_card(facts(teacher_size=size), "ada/pets")
    assert ("shown the training views" in text) == (words is not None)
    assert words is None or words in text


def test_a_teacher_measured_on_other_images_is_not_in_the_table():
    assert "| the teacher | 0.8500 |" in make_card(facts(), "ada/pets")
    fewer = make_card(facts(teacher_images=100), "ada/pets")
    assert "| the teacher |" not in fewer
    assert "top-1 accuracy on 100 of the validation images is 0.8500" in fewer


def test_hardware_time_speed_and_versions_are_named():
    text = make_card(facts(), "ada/pets")
    for words in ("2 x CPU", "12.5 minutes", "321 images/s", "torch 2.15", "c" * 40, "seed: 3", "64 images, 4 epochs"):
        assert words in text


def test_facts_survive_json():
    assert RunFacts.from_dict(json.loads(json.dumps(facts().to_dict()))) == facts()
    with pytest.raises(TypeError):
        RunFacts.from_dict({**facts().to_dict(), "unknown": 1})


def test_a_card_is_complete_and_one_without_metadata_is_not():
    assert card_faults(make_card(facts(), "ada/pets")) == []
    assert card_faults("A model.") == ["it has no metadata between --- lines at its top"]
    assert card_faults("---\ntags: [a]\n---\nShort.") == [
        "its metadata has no library_name",
        "its metadata has no pipeline_tag",
        "it has next to no text",
    ]
    assert "is no YAML" in card_faults("---\na: [\n---\n")[0]


def test_an_update_replaces_its_part_and_keeps_the_rest():
    first = make_card(facts(), "ada/pets")
    edited = first.replace(BEGIN, f"Above.\n\n{BEGIN}") + "\nBelow.\n"
    edited = edited.replace("library_name: transformers", "library_name: transformers\nlicense: mit\nlanguage: en", 1)
    edited = edited.replace("- vision", "- vision\n- cats", 1)
    better = dataclasses.replace(facts(), metrics={**METRICS, "eval_top1": 0.9})
    updated = update_card(edited, better, "ada/pets")
    metadata = yaml.safe_load(updated.split("---")[1])
    assert (metadata["license"], metadata["language"]) == ("mit", "en")
    assert "cats" in metadata["tags"]
    assert results(updated)["top-1 accuracy, fused heads"] == 0.9
    assert "| fused heads | 0.9000 |" in updated
    assert "0.7500" not in updated
    assert hand_written(updated).split() == ["Above.", "Below."]
    assert update_card(updated, better, "ada/pets") == updated  # and again nothing changes


@pytest.mark.parametrize(
    "existing", ["# Mine\n\nWords.\n", "---\nlicense: mit\n---\n# Mine\n", "---\n: [\n---\n# Mine\n"]
)
def test_a_card_without_marks_gets_its_part_at_the_end(existing):
    updated = update_card(existing, facts(), "ada/pets")
    assert updated.index("# Mine") < updated.index(BEGIN) < updated.index(END)
    assert card_faults(updated) == []


def test_claims_of_an_earlier_run_do_not_stay():
    first = make_card(facts(unlabeled=Source("lab/more", None, True)), "ada/pets")
    later = facts(metrics={}, teacher=None, teacher_top1=None, is_distilled=False, dataset=Source("digits"))
    metadata = yaml.safe_load(update_card(first, later, "ada/pets").split("---")[1])
    assert not {"model-index", "metrics", "base_model", "datasets"} & set(metadata)
    assert "distillation" not in metadata["tags"]


def test_words_of_both_cards_come_together():
    card = make_card(facts(), "ada/pets")
    remote = card.replace("library_name:", "license: mit\nlibrary_name:", 1) + "\nSaid there.\n"
    local = card.replace("library_name:", "language: en\nlibrary_name:", 1) + "\nSaid there.\n\nSaid here.\n"
    merged = update_card(merge_cards(remote, local), facts(), "ada/pets")
    metadata = yaml.safe_load(merged.split("---")[1])
    assert (metadata["license"], metadata["language"]) == ("mit", "en")
    assert hand_written(merged).split("\n\n") == ["Said there.", "Said here."]
    assert merge_cards(None, local) == local
    assert merge_cards(remote, None) == remote


def test_another_branch_is_in_the_snippet():
    assert 'model="ada/pets", revision="v1")' in make_card(facts(), "ada/pets", "v1")
    assert "revision=" not in make_card(facts(), "ada/pets")


def test_images_without_labels_and_the_best_step_are_named():
    text = make_card(facts(unlabeled=Source("lab/more", "e" * 40, True), best_step=60), "ada/pets")
    assert "and, without labels, [lab/more]" in text
    assert ModelCard(text).data.datasets == ["lab/pets", "lab/more"]
    assert "as trained, after step 60, when they were best" in text


def test_a_run_without_validation_images_has_a_card():
    text = make_card(facts(num_validation=None), "ada/pets")
    assert results(text) == {}
    assert "have not been evaluated" in text


KINDS = {
    "of digits": (
        {"dataset": SKLEARN_DIGITS, "validation_split": "held out of train"},
        "Accuracy on 500 images of scikit-learn's digits (held out of the training images)",
        "sklearn-digits",
    ),
    "of one's own": (
        {"dataset": OWN_IMAGES, "validation_split": "validation"},
        "Accuracy on 500 images of one's own (kept apart for validation)",
        "imagefolder",
    ),
    "of a local data set": (
        {"dataset": LOCAL_DATA_SET, "validation_split": "held out of all"},
        "Accuracy on 500 images of a local data set (held out of its split `all`)",
        "local",
    ),
    "of the Hub": ({}, "at commit `bbbbbbbbbbbb` (split `validation`)", "lab/pets"),
    "without labels alone": (
        {"dataset": TEACHERS_LABELS, "unlabeled": OWN_IMAGES},
        "Accuracy on 500 images of one's own (kept apart for validation)",
        "imagefolder",
    ),
    "without name": ({"dataset": UNNAMED_IMAGES}, "Accuracy on 500 images that were not named (", "unnamed"),
    "of another's": ({"dataset": Source("Ada's Pets!")}, "Accuracy on 500 images of Ada's Pets! (", "ada-pets"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_are_named_for_people_and_for_machines(kind):
    changes, words, machine_name = KINDS[kind]
    text = make_card(facts(**changes), "ada/pets")
    assert words in text and "images of images" not in text
    assert {result.dataset_type for result in ModelCard(text).data.eval_results} == {machine_name}


NUMBERS = {
    "all labelled": ({"num_train": 1600, "num_labeled": 1600}, "| images | 1,600, split `train` |"),
    "an earlier version": ({"num_train": 1600}, "| images | 1,600, split `train` |"),
    "some": (
        {"num_train": 9000, "num_labeled": 1000},
        "| images | 1,000 with labels (split `train`), 8,000 without |",
    ),
    "none": (
        {"num_train": 90, "num_labeled": 0, "dataset": TEACHERS_LABELS, "unlabeled": OWN_IMAGES},
        "| images | 90 without labels |",
    ),
    "a stream": ({"num_train": None}, "| images | a stream, split `train` |"),
    "few labels": (
        {"num_train": 9000, "num_labeled": 1000, "dataset": SKLEARN_DIGITS},
        "Trained on scikit-learn's digits, of which 1,000 of 9,000 kept their labels.",
    ),
    "some broken": ({"num_skipped": 3}, "| broken images | 3 could not be decoded and were skipped |"),
    "some without an answer": (
        {"num_unanswered": 1234},
        "| views without an answer | 1,234, which the teacher's term passed over |",
    ),
    "one of each": ({"batch_size": 1, "num_epochs": 1.0}, "| steps | 100 of 1 image, 1 epoch |"),
    "a moment": ({"minutes": 0.034}, "| time | 0.03 minutes |"),
    "small": ({"parameters": 24_150}, "24,150 parameters"),
    "changed": (
        {"recipe": {"student_overrides": {"hidden_size": 32}}},
        "as deit_tiny_distilled_patch16_224 with hidden_size 32,",
    ),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_told_as_what_they_are(case):
    changes, words = NUMBERS[case]
    assert words in make_card(facts(**changes), "ada/pets")


@pytest.mark.parametrize(("speed", "words"), [(321.4, "321"), (9.96, "10"), (0.42, "0.42")])
def test_a_slow_run_has_a_speed(speed, words):
    assert f"| speed | {words} images/s |" in make_card(facts(images_per_second=speed), "ada/pets")


def test_every_label_has_its_accuracy_and_its_images():
    text = make_card(facts(labels=["a|b", "<dog>", "yak"], classes=[[3, 4], [0, 2], [0, 0]]), "ada/pets")
    assert "Label by label, top-1 of the fused heads:" in text and "Its labels" not in text
    for row in ("| a\\|b | 0.7500 | 4 |", "| \\<dog\\> | 0.0000 | 2 |", "| yak |  | 0 |"):
        assert row in text
    by_head = make_card(facts(fusion="cls", classes=[[3, 4], [0, 2]]), "ada/pets")
    assert "Label by label, top-1 of the model, by its class head:" in by_head
    assert "Label by label" not in make_card(facts(metrics={}, classes=[[1, 1], [1, 1]]), "ada/pets")


def test_of_many_labels_the_worst_are_listed():
    labels = [f"kind {index}" for index in range(50)]
    classes = [[50 - index, 50] for index in range(49)] + [[0, 0]]
    text = make_card(facts(labels=labels, classes=classes, metrics={"eval_top1": 0.5}), "ada/pets")
    assert "top-1 of the model; of 50 labels the 10 worst (1 label without an image to measure on):" in text
    rows = re.findall(r"\| kind (\d+) \| (0\.\d+) \|", text)
    assert [int(index) for index, _ in rows] == list(range(48, 38, -1))
    assert rows[0][1] == "0.0400"


def test_without_labelled_images_the_card_says_why_there_is_no_result():
    alone = {"dataset": TEACHERS_LABELS, "unlabeled": OWN_IMAGES, "num_labeled": 0, "num_train": 90}
    unmeasured = {"metrics": {}, "num_validation": None, "teacher_top1": None, "teacher_images": None}
    text = make_card(facts(**alone, **unmeasured), "ada/pets")
    assert "have not been evaluated: there were no labelled images to measure an accuracy on." in text
    assert "Trained on images of one's own without labels: it has learnt what the teacher says of them." in text


def test_nothing_hand_written_is_nothing():
    assert hand_written(make_card(facts(), "ada/pets")) == ""
    assert hand_written(None) == ""
    assert update_card("  \n", facts(), "ada/pets") == make_card(facts(), "ada/pets")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("datasets: lab/pets", ["lab/pets"]),
        ("datasets: [lab/pets, 5, {a: b}, null]", ["lab/pets"]),
        *(
            (text, None)
            for text in ("datasets: 5", "datasets: [", ": :", "- a", "at: 2026-13-45", "[" * 3000, "a: !!x 1")
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_whatever_a_teachers_card_says_is_read_or_left(tmp_path, metadata, expected):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n\n# A teacher\n")
    assert declared_datasets(str(tmp_path)) == expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("license: mit", "mit"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("license: other\nlicense_name: apple-amlr\nlicense_link: https://a.b/c", "apple-amlr (https://a.b/c)"),
        ("license: other\nlicense_name: apple-amlr", "apple-amlr"),
        ("license: other\nlicense_link: LICENSE", "other (LICENSE)"),
        ("license: other", "other"),
        *((text, None) for text in ("license: 5", "license: null", "license_name: mine", "license: [", "a: !!x 1")),
    ],
)
def test_a_teachers_licence_is_what_its_card_says(tmp_path, metadata, expected):
    assert declared_license(str(tmp_path)) is None  # without a card
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n\n# A teacher\n")
    assert declared_license(str(tmp_path)) == expected


PREDICTED = {"counts": [3, 1, 0], "uncorrected": None, "priors": None}


def test_the_card_says_what_a_zero_shot_teacher_was_told_and_says():
    named = facts(labels=["red *fox*", "dog", "cat"], teacher_texts=["a.", "b.", "c.", "d."])
    text = make_card(dataclasses.replace(named, predicted_classes=PREDICTED), "ada/pets")
    assert 'of "red \\*fox\\*" it was told `a.`, `b.`, `c.` and 1 more.' in text
    assert "it said of 4 training images: red \\*fox\\* 75.0%, dog 25.0%, cat 0.0%. 1 label of 3 never." in text
    assert "corrected" not in text and "Licence" not in text
    corrected = {"counts": [2, 1, 1], "uncorrected": [4, 0, 0], "priors": [[0.0, -1.0, -1.0]]}
    text = make_card(dataclasses.replace(named, predicted_classes=corrected), "ada/pets")
    assert "with its prior corrected" in text and "Without that it says red \\*fox\\* 100.0%, dog 0.0%" in text
    assert RunFacts.from_dict(json.loads(json.dumps(dataclasses.replace(named, teacher_license="mit").to_dict())))


@pytest.mark.parametrize(
    ("terms", "on_hub", "words"),
    [
        ("mit", True, "by its own card: `mit`"),
        ("mit", False, "by its own card: `mit`"),
        ("", True, "its card states none"),
        ("", False, None),
        (None, True, None),
    ],
)
def test_the_card_names_the_licence_of_the_teacher(terms, on_hub, words):
    text = make_card(facts(teacher=Source("lab/clip", on_hub=on_hub), teacher_license=terms), "ada/pets")
    assert ("Licence of the teacher" in text) == (words is not None) and (words or "") in text
