"""Contract: a report that lies beside a model gets into its card, with its pictures and nothing else of the folder.

It is published if it is of these very weights; one that is not, or that is damaged or made up, is left out and said.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, snapshot_download
from scipy.stats import binomtest
from support import reports, tiny
from support.checkpoints import edited, saved
from support.facts import facts
from support.hub_client import connect
from support.markdown import NAMES, parsed, seen, words_of

from hf_deit.commands import main
from hf_deit.errors import printable
from hf_deit.evaluation.report.report import write_report
from hf_deit.evaluation.sections import Picture, Result, Section, Table
from hf_deit.hub.card import (
    BEGIN,
    END,
    REPORT_BEGIN,
    REPORT_END,
    add_report,
    card_faults,
    hand_written,
    make_card,
    split_card,
    update_card,
)
from hf_deit.hub.facts import LOCAL_DATA_SET, OWN_IMAGES, SKLEARN_DIGITS, Source
from hf_deit.hub.publishing import publish_folder
from hf_deit.hub.record import stage, write_record
from hf_deit.hub.report_in_card import CardReport, digest_of, read_report

PUBLISHED = {"report/curves_0.png", "report/results.json"}


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    connect(server, tmp_path / "home", "hf_write", monkeypatch)
    yield server
    server.remove_repository("ada/pets")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run with a report beside its model, and what an evaluation leaves there beside it."""
    folder = saved(tmp_path_factory.mktemp("runs") / "run", tiny.student(), tiny.processor())
    write_record(folder, facts(image_size=16, dataset=SKLEARN_DIGITS), [], "ada/pets")
    evaluated(folder)
    (folder / "report" / "answers").mkdir()
    (folder / "report" / "answers" / "digits.npy").write_bytes(b"logits")
    return folder


def evaluated(folder: Path, sections: list[Section] | None = None, **changes) -> None:
    write_report(folder / "report", sections or reports.sections(), reports.provenance(folder, **changes))


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """The same somewhere else, where no path in it is that of a folder."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def published(hub) -> dict[str, bytes]:
    return dict(hub.files("ada/pets"))


def entries(text: str) -> dict:
    """The results in a card's metadata, by the name of the metric."""
    return {result.metric_name: result for result in ModelCard(text).data.eval_results}


def test_the_card_has_tables_pictures_and_results_with_intervals(hub, run):
    assert main.main(["publish", str(run), "--hub_model_id", "ada/pets"]) == 0
    files = published(hub)
    card = files["README.md"].decode()
    assert {name for name in files if name.startswith("report")} == PUBLISHED
    assert files["report/curves_0.png"] == reports.curves()
    assert "![Three curves that rise.](report/curves_0.png)" in card and "curves_1" not in card
    assert "| digits | class head | 0.9750 [0.9530, 0.9870] | 1.0000 [0.9894, 1.0000] | 360 |" in card
    assert (
        "Measured with these weights, which are called digits here, by `hf-deit evaluate` on 360 images, held out of "
        "train of sklearn:digits." in card
    )
    assert "**top-1 0.9750 [0.9530, 0.9870]** on 360 images, by both heads, mean of logits" in card
    assert card.index("## Results") < card.index("## Evaluation") < card.index("## Use")
    assert "mistakes" not in card and "precision" not in card
    found = entries(card)
    result = found["top-1 accuracy, both heads, mean of logits"]
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.975)
    assert (result.dataset_type, result.dataset_split) == ("sklearn-digits", "held out of train")
    assert result.dataset_args == {"num_images": 360}
    interval = {"confidence": 0.95, "low": 0.953, "high": 0.987}
    assert result.metric_args == {**interval, "num_images": 360, "measured_by": "hf_deit 0.1.0"}
    assert {"top-5 accuracy, both heads, mean of logits", "top-1 accuracy, class head"} < found.keys()
    assert "top-1 accuracy, its answer" not in found  # the teacher's
    assert "top-1 accuracy, fused heads" in found  # of the training, on its validation images
    again = ModelCard(str(ModelCard(card)))
    assert again.data.eval_results == ModelCard(card).data.eval_results


def test_nothing_of_the_machine_is_published_with_it(hub, run, finished):
    text = f"On images in {run}/images and {finished}, of /home/ada/my/pets and ~/secret/x; 24/7, and https://a.b/c/d."
    evaluated(run, [*reports.sections(), Section("s", text, tables=(Table("t", text, (text,), ((text,),), True),))])
    publish_folder(run, "ada/pets")
    for name, content in published(hub).items():
        for path in (str(finished), str(run), str(run.parent), "/home/ada", "~/secret", "hf-deit evaluate --model"):
            assert path.encode() not in content, (name, path)
        assert b"logits" not in content[:10] and b"image,label" not in content
    card = published(hub)["README.md"].decode()
    assert "24/7" in card and "https://a.b/c/d" in card
    assert published(hub).keys() >= PUBLISHED


def test_a_data_set_of_the_hub_is_named_with_its_commit(run):
    source = {"name": "lab/pets", "kind": "hub", "revision": "b" * 40, "split": "test", "config": "small"}
    evaluated(run, images={"words": "360 images, split test of lab/pets", **source}, settings={"crop_ratio": 1.0})
    report, _ = read_report(run)
    text = make_card(facts(), "ada/pets", report=report)
    assert "[lab/pets](https://huggingface.co/datasets/lab/pets) at commit `bbbbbbbbbbbb`)." in text
    assert "Other than by default: crop_ratio 1.0." in text
    result = entries(text)["top-1 accuracy, class head"]
    named = (result.dataset_type, result.dataset_revision, result.dataset_split, result.dataset_config)
    assert named == ("lab/pets", "b" * 40, "test", "small")


def test_on_the_images_of_the_training_the_report_takes_the_place_of_its_figures(run):
    own = facts(dataset=SKLEARN_DIGITS, validation_split="held out of train", num_validation=360)
    report, _ = read_report(run)
    found, trained = entries(make_card(own, "ada/pets", report=report)), "top-1 accuracy, fused heads"
    assert trained in entries(make_card(own, "ada/pets"))
    assert trained not in found and found["top-1 accuracy, class head"].metric_value == 0.975
    # Of other images of such a name, with other labels, or otherwise than its users do, it is another figure.
    assert trained in entries(make_card(replace(own, num_validation=100), "ada/pets", report=report))
    for changes in ({"labels": "ImageNet-ReaL's labels"}, {"settings": "image_size 48"}):
        found = entries(make_card(own, "ada/pets", report=replace(report, **changes)))
        ((name, words),) = changes.items()
        result = found["top-1 accuracy, class head" + (f", {words}" if name == "labels" else "")]
        assert trained in found and result.metric_args[name] == words


@pytest.mark.parametrize(
    ("kind", "source", "split"),
    [
        ("folder", OWN_IMAGES, "test"),
        ("local", LOCAL_DATA_SET, "test"),
        ("hub", Source("pets", None, True, True), "a"),
    ],
)
def test_images_are_of_one_name_in_training_and_report(run, kind, source, split):
    own = facts(dataset=source, test_split=split, num_test=360, test_metrics={"test_top1": 0.5})
    evaluated(run, images={"words": "pets", "name": "pets", "kind": kind, "split": split, "revision": None})
    report, _ = read_report(run)
    assert report.source == source
    assert {result.metric_value for result in entries(make_card(own, "ada/pets")).values()} > {0.5}
    found = entries(make_card(own, "ada/pets", report=report)).values()
    assert {result.metric_value for result in found if result.dataset_split == split} == {0.975, 1.0}


def test_the_figures_of_a_training_have_intervals_too():
    interval = binomtest(45, 50).proportion_ci(method="wilson")
    card = make_card(facts(num_validation=50, metrics={"eval_top1": 0.9}), "ada/pets")
    (result,) = entries(card).values()
    assert result.dataset_args == {"num_images": 50}
    assert result.metric_args == {"confidence": 0.95, "low": round(interval.low, 4), "high": round(interval.high, 4)}
    (result,) = entries(make_card(facts(num_validation=0, metrics={"eval_top1": 0.9}), "ada/pets")).values()
    assert result.metric_args is None


def test_a_run_without_figures_of_its_own_has_the_reports(run):
    report, _ = read_report(run)
    text = make_card(facts(num_validation=None, metrics={}), "ada/pets", report=report)
    assert len(entries(text)) == 4 and ModelCard(text).data.metrics == ["accuracy"]


def test_what_people_have_written_stays_beside_a_report_and_a_later_card_has_none_of_it(run):
    report, _ = read_report(run)
    card = make_card(facts(), "ada/pets", report=report).replace(BEGIN, f"Above.\n\n{BEGIN}") + "\nBelow.\n"
    assert update_card(card, facts(), "ada/pets", report=report) == update_card(
        update_card(card, facts(), "ada/pets", report=report), facts(), "ada/pets", report=report
    )
    later = update_card(card, facts(), "ada/pets")
    assert hand_written(later).split() == ["Above.", "Below."]
    assert "## Evaluation" not in later and "0.975" not in later


# Models that are no run's


CARD = """---
library_name: transformers
pipeline_tag: image-classification
tags: [vision]
model-index:
- name: theirs
  results:
  - task: {type: image-classification}
    dataset: {name: Pets, type: lab/pets}
    metrics: [{type: accuracy, value: 0.5}]
---

# A model

It has been trained by somebody, on something, and this text is long enough to be one that says so to its readers.
"""


def test_a_card_that_people_have_made_gets_the_report_at_its_end(hub, run):
    for name in ("run.json", "environment.json"):
        (run / name).unlink()
    (run / "README.md").write_text(CARD)
    publish_folder(run, "ada/pets")
    card = published(hub)["README.md"].decode()
    assert card_faults(card) == [] and card.index("this text is long enough") < card.index(REPORT_BEGIN) < card.index(
        REPORT_END
    )
    assert "![Three curves that rise.](report/curves_0.png)" in card
    assert [result.metric_value for result in ModelCard(card).data.eval_results] == [0.5, 0.975, 0.975, 0.975, 1.0]
    assert (run / "README.md").read_text() == CARD
    report, _ = read_report(run)
    assert add_report(card, report, "ada/pets") == card  # once more nothing changes
    # With other weights nothing of it stays, also where the card is one that was published with it.
    assert split_card(add_report(card, None, "ada/pets")) == split_card(CARD)
    assert add_report(CARD, None, "ada/pets") == CARD
    assert "## Evaluation" not in update_card(card, facts(), "ada/pets")


def test_a_report_in_a_runs_card_that_lies_alone_replaces_nothing_of_it(run):
    card = make_card(facts(), "ada/pets")
    report, _ = read_report(run)
    both = add_report(card, report, "ada/pets")
    assert "## Training" in both and both.index(END) < both.index("## Evaluation")
    assert split_card(add_report(both, None, "ada/pets"))[1] == split_card(card)[1]


# What is left out

RESULT = {"metric": "m", "metric_type": "t", "rule": "r", "low": 0, "high": 1, "num_images": 1}


def damaged(name: str, content: bytes):
    return lambda folder: (folder / "report" / name).write_bytes(content)


def changed(**card):
    def change(folder: Path) -> None:
        path = folder / "report" / "results.json"
        results = json.loads(path.read_text())
        results["card"] |= card
        path.write_text(json.dumps(results))

    return change


def replaced(name: str, make):
    def change(folder: Path) -> None:
        (folder / "report" / name).unlink()
        make(folder / "report" / name)

    return change


def grown(folder: Path) -> None:
    content = reports.curves() + b"\0" * (33 << 20)
    (folder / "report" / "curves_0.png").write_bytes(content)
    path = folder / "report" / "results.json"
    path.write_text(path.read_text().replace(digest_of(reports.curves()), digest_of(content)))


def other_weights(folder: Path) -> None:
    tiny.student(seed=1).save_pretrained(folder)


CASES = {
    "other weights": (other_weights, "of other weights"),
    "another configuration": (lambda folder: edited(folder, fusion="cls"), "or of another configuration"),
    "another preprocessing": (
        lambda folder: edited(folder, "preprocessor_config.json", image_mean=[0.1] * 3),
        "with another preprocessor_config.json",
    ),
    "of the Hub": (changed(weights=None), "does not say of which weights"),
    "no JSON": (damaged("results.json", b"{"), "results.json cannot be read"),
    "too deep": (damaged("results.json", b'{"a":' * 100_000), "nested too deep"),
    "no object": (damaged("results.json", b"[]"), "must hold an object"),
    "another version": (damaged("results.json", b'{"schema_version": 99}'), "has the schema version 99"),
    "a picture that is gone": (lambda folder: (folder / "report/curves_0.png").unlink(), "cannot be published"),
    "another picture": (damaged("curves_0.png", reports.curves() + b"x"), "is not as it was written"),
    "no picture": (damaged("curves_0.png", b"GIF89a"), "is no PNG"),
    "a large picture": (grown, "is no PNG of at most 32 MiB"),
    "a link out": (replaced("curves_0.png", lambda path: path.symlink_to("../../notes.txt")), "leads out"),
    "a link to a device": (replaced("curves_0.png", lambda path: path.symlink_to("/dev/zero")), "leads out"),
    "a pipe": (replaced("curves_0.png", os.mkfifo), "is a pipe"),
    "results by a link": (
        lambda folder: (
            shutil.move(folder / "report/results.json", folder.parent),
            (folder / "report/results.json").symlink_to("../../results.json"),
        ),
        "leads out",
    ),
    "a name that leads out": (
        changed(sections=[{"title": "t", "tables": [], "pictures": [{"file": "../x.png", "caption": "", "alt": ""}]}]),
        "it has '../x.png' where",
    ),
    "two of a name": (
        changed(
            sections=[
                {"title": "t", "tables": [], "pictures": [{"file": "curves_0.png", "caption": "", "alt": ""}] * 2}
            ]
        ),
        "have the same file",
    ),
    "more than a fraction": (changed(results=[{**RESULT, "value": 2, "high": 3}]), "expected one from 0 to 1"),
    "an interval elsewhere": (changed(results=[{**RESULT, "value": 0.9, "high": 0.2}]), "not between 0 and 0.2"),
    "no number": (changed(results=[{**RESULT, "value": True}]), "its value is True, expected a number"),
    "a number beyond all": (changed(results=[{**RESULT, "value": 10**400}]), "expected a number"),
    "NaN": (
        changed(sections=[{"title": "t", "tables": [{"caption": "", "columns": ["a"], "rows": [[float("nan")]]}],
                           "pictures": []}]),
        "its rows is nan, expected a text",
    ),
    "ragged rows": (
        changed(sections=[{"title": "t", "tables": [{"caption": "", "columns": ["a"], "rows": [[1, 2]]}],
                           "pictures": []}]),
        "rows of other lengths",
    ),
    "a data set that is none": (
        changed(source={"name": "a b](http://evil.example)", "commit": None, "on_hub": True, "is_dataset": True}),
        "no name of the Hub",
    ),
    "no commit": (
        changed(source={"name": "lab/pets", "commit": "main", "on_hub": True, "is_dataset": True}),
        "it has 'main' where",
    ),
    "a long text": (changed(images="x" * 30_000), "a text of at most 20,000 whole characters"),
    "half a character": (changed(images="half\udcff"), "a text of at most 20,000 whole characters"),
    "a large file": (lambda folder: os.truncate(folder / "report" / "results.json", 1 << 40), "it has 1,099,511,627"),
    "no text": (changed(split=3), "its split is 3"),
    "a list": (changed(results={}), "its results is {}, expected a list"),
    "something else": (changed(extra=1), "expected an object with"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_report_that_is_not_the_models_or_not_as_it_was_is_left_out_and_said(run, tmp_path, caplog, case):
    change, words = CASES[case]
    (tmp_path / "notes.txt").write_text("secret")
    change(run)
    (tmp_path / "tree" / "report").mkdir(parents=True)
    (tmp_path / "tree" / "report" / "curves_9.png").write_bytes(b"of weights before")  # which waited for a push
    stage(run, tmp_path / "tree")
    assert not (tmp_path / "tree" / "report").exists() and (tmp_path / "tree" / "model.safetensors").is_file()
    said = [record.getMessage() for record in caplog.records if "left out of what is published" in record.getMessage()]
    assert len(said) == 1 and words in said[0] and "run hf-deit evaluate again" in said[0], said
    assert printable(said[0]) == said[0] and len(said[0]) < 1000


def test_a_folder_without_a_report_says_nothing_of_it(run, tmp_path, caplog):
    shutil.rmtree(run / "report")
    (tmp_path / "tree").mkdir()
    stage(run, tmp_path / "tree")
    assert "report" not in caplog.text


def test_names_of_every_kind_stay_text_in_the_card(run):
    for start in range(0, len(NAMES), 40):
        names = NAMES[start : start + 40]
        text = " ".join(names)
        section = Section(
            "s",
            names[0],
            tables=(Table("t", text, ("class", names[1]), tuple((name, name) for name in names), True),),
            pictures=(Picture("p", reports.curves(), text, text, True),),
            results=(Result("digits", text, names[2], reports.RIGHT, 3),),
        )
        evaluated(run, [section], images={"words": text, "name": text, "split": text, "config": text})
        report, _ = read_report(run)
        assert CardReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
        card = make_card(facts(), "ada/pets", report=report)
        assert card_faults(card) == [] and hand_written(card) == "" and len(entries(card)) == 5
        body = card.split("\n---\n", 1)[1]
        assert printable(body) == body
        tokens = parsed(body)
        blocks = [token.content for token in tokens if token.type == "html_block"]
        assert blocks == [f"{BEGIN}\n", f"{END}\n"]
        children = [child for token in tokens for child in token.children or ()]
        assert not {child.type for child in children} & {"html_inline", "s_open"}
        links = {child.attrs["href"] for child in children if child.type == "link_open"}
        assert all(link.startswith("https://huggingface.co/") for link in links), links
        sources = [child.attrs["src"] for child in children if child.type == "image"]
        assert sources == ["report/p.png", "training_curves.png"]
        at = [index for index, token in enumerate(tokens) if token.type == "td_open"]
        cells = [words_of([tokens[index + 1]]) for index in at if tokens[index + 1].content]
        for name in names:
            assert cells.count(seen(name)) >= 2


# Once more


def test_what_was_published_can_be_published_again(hub, run, tmp_path, caplog):
    edited(run, _name_or_path="/home/ada/pets")  # which is left out of what is published
    evaluated(run)
    publish_folder(run, "ada/pets")
    snapshot = Path(snapshot_download("ada/pets", local_dir=tmp_path / "copy"))
    card = published(hub)["README.md"]
    publish_folder(snapshot, "ada/pets")
    assert published(hub)["README.md"] == card and published(hub).keys() >= PUBLISHED
    assert "left out of what is published" not in caplog.text


def test_the_report_of_other_weights_leaves_the_hub_with_them(hub, run):
    publish_folder(run, "ada/pets")
    hub_files = published(hub)
    assert hub_files.keys() >= PUBLISHED
    evaluated(run, [Section("s", "S", pictures=(reports.picture("other", in_card=True),))])
    publish_folder(run, "ada/pets")
    assert {name for name in published(hub) if name.startswith("report/")} == {
        "report/other.png",
        "report/results.json",
    }
    other_weights(run)
    publish_folder(run, "ada/pets")
    assert not [name for name in published(hub) if name.startswith("report/")]
    assert "## Evaluation" not in published(hub)["README.md"].decode()


def test_a_report_of_somebody_else_on_the_hub_removes_nothing(hub, run):
    theirs = {
        "report/results.json": b'{"files": {"../README.md": 1, "x/y.png": 2, "gone.png": 3}}',
        "report/mine.png": b"x",
    }
    hub.add_repository("ada/pets", {**theirs, "notes.txt": b"x"})
    shutil.rmtree(run / "report")
    publish_folder(run, "ada/pets")
    assert {"report/mine.png", "notes.txt", "README.md"} <= published(hub).keys()


def test_a_source_reads_as_it_was_written():
    for source in (SKLEARN_DIGITS, Source("lab/pets", "b" * 40, True, True)):
        report = CardReport("m", None, None, source, None, "test", "images", None, "", "0.1.0")
        assert CardReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
