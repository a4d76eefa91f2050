"""Contract: a report says the same as Markdown, as a page and as JSON, and text from data stays text in all three.

A report's files take the place of an earlier report's and of nothing else, and the same arguments give the same bytes.
"""

import base64
import csv
import hashlib
import html.parser
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import reports
from support.markdown import NAMES, parsed, seen, words_of

from hf_deit.errors import CheckpointError, printable
from hf_deit.evaluation.report import report as report_module
from hf_deit.evaluation.report.report import plain, write_report
from hf_deit.evaluation.sections import Attachment, Estimate, Picture, Result, Section, Table
from hf_deit.hub.files import write_whole
from hf_deit.hub.report_in_card import cell_text

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(html.parser.HTMLParser):
    """What a page has: its elements with their attributes, in order, and the text of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & {*self.open}:
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def strict(content: bytes | str):
    """Read by a parser that knows no NaN."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(content, parse_constant=refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports") / "digits" / "report"
    write_report(folder, reports.sections(num_classes=60), reports.provenance())
    return folder


def test_a_report_has_these_files_and_lists_them(folder):
    files = written(folder)
    assert files.keys() == {
        *("report.md", "report.html", "results.json", "mistakes.csv", "curves_0.png", "curves_1.png")
    }
    listed = strict(files["results.json"])["files"]
    digests = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in files.items()}
    assert listed == {name: digests[name] for name in ("curves_0.png", "curves_1.png", "mistakes.csv")}
    assert next(csv.reader(io.StringIO(files["mistakes.csv"].decode()))) == ["image", "label", "answer"]


def test_results_are_all_numbers_with_where_they_come_from(folder):
    results = strict((folder / "results.json").read_text())
    assert results["schema_version"] == 1
    assert results["provenance"] == plain(reports.provenance())
    assert list(results["sections"]) == ["accuracy", "classes", "calibration", "speed"]
    assert results["sections"]["accuracy"] == {"top1": {"value": 0.975, "low": 0.953, "high": 0.987}}
    expected = np.random.default_rng(0).random((60, 3))[:, 1]
    recall = results["sections"]["classes"]["recall"]
    assert [recall[str(index)] for index in range(60)] == expected.tolist()  # unrounded
    assert results["sections"]["speed"]["measured_on"] == {"device": "NVIDIA T4"}


def test_the_same_arguments_give_the_same_bytes(folder, tmp_path):
    write_report(tmp_path / "again", reports.sections(num_classes=60), reports.provenance())
    assert written(tmp_path / "again") == written(folder)
    write_report(tmp_path / "again", reports.sections(num_classes=60), reports.provenance(time="later"))
    later, before = (strict((path / "results.json").read_bytes()) for path in (tmp_path / "again", folder))
    assert later["provenance"].pop("time") == "later" and before["provenance"].pop("time") != "later"
    assert later == before  # nothing else of it depends on when it was written


def test_markdown_has_every_section_table_and_picture(folder):
    tokens = parsed((folder / "report.md").read_text())
    headings = [(token.tag, tokens[at + 1].content) for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == [
        ("h1", "Evaluation of digits"),
        *(("h2", title) for title in ("Accuracy", "Classes", "Calibration", "Speed", "How it was measured")),
    ]
    children = [child for token in tokens for child in token.children or ()]
    images = [child for child in children if child.type == "image"]
    assert [image.attrs["src"] for image in images] == ["curves_0.png", "curves_1.png"]
    assert {image.content for image in images} == {"Three curves that rise."}
    assert [child.attrs["href"] for child in children if child.type == "link_open"] == ["mistakes.csv"]
    cells = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type in ("td_open", "th_open")]
    assert {"0.9750 [0.9530, 0.9870]", "class 59", "0.9472 [0.9190, 0.9660]"} <= {*cells}
    text = (folder / "report.md").read_text()
    assert "top-1 0.9750 (95 % interval 0.9530 to 0.9870) on 360 images, by both heads, mean of logits." in text
    assert "Measured on 360 images, held out of train of sklearn:digits." in text
    assert "<details>\n<summary>60 rows</summary>\n" in text
    assert "| environment, libraries | `hf_deit 0.1.0, torch 2.14.1` |" in text


def test_the_page_is_whole_and_asks_for_nothing(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.all("html") == [{"lang": "en"}]
    assert "<title>Evaluation of digits</title>" in text
    policy = next(item["content"] for item in page.all("meta") if item.get("http-equiv"))
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith(
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert page.all("script") == [{}] and not page.all("iframe")
    images = page.all("img")
    for image, name in zip(images, ("curves_0.png", "curves_1.png"), strict=True):
        kind, content = image["src"].split(",")
        assert kind == "data:image/png;base64" and base64.b64decode(content) == (folder / name).read_bytes()
        assert image["alt"] == "Three curves that rise." and int(image["width"]) > 100
    addresses = [value for _, item in page.elements for name, value in item.items() if name in ("src", "href")]
    assert all(re.match(r"#|data:|mistakes\.csv$", address) for address in addresses), addresses
    assert not re.search(r"url\(|@import|https?:", text.replace(str(reports.provenance()), ""))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels == [1, 2, 2, 2, 2, 2]
    ids = [item["id"] for _, item in page.elements if "id" in item]
    assert len({*ids}) == len(ids)
    assert {item["href"][1:] for item in page.all("a") if item["href"].startswith("#")} <= {*ids}
    named = [item[key] for _, item in page.elements for key in ("aria-labelledby", "aria-controls") if key in item]
    assert {*named} <= {*ids}
    assert len(page.all("caption")) == len(page.all("table")) == 2
    assert [item["type"] for item in page.all("input")] == ["search"]  # of the one table that is long


def test_the_page_says_what_the_tables_say(folder):
    page = Page((folder / "report.html").read_text())
    for section in reports.sections(num_classes=60):
        for table in section.tables:
            words = [cell_text(plain(cell)) for row in table.rows for cell in row]
            at = page.cells.index(words[0])
            assert page.cells[at : at + len(words)] == words
    values = [item.get("data-value") for item in page.all("td")]
    assert values[:4] == [None, "0.975", "1.0", "360"]  # of a name, of estimates and of a number


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (Estimate(0.97222, 0.95, 0.98472), "0.9722 [0.9500, 0.9847]"),
        (0.97222, "0.9722"),
        (1.0, "1.0000"),
        (0.0, "0.0000"),
        (-0.25, "-0.2500"),
        (3e-9, "3.0e-09"),
        (1.3749, "1.375"),
        (1234.56, "1,235"),
        (99.999, "100.00"),
        (86_567_656, "86,567,656"),
        (None, ""),
        (float("nan"), ""),
        (float("-inf"), ""),
        (Estimate(float("nan"), 0, 1), ""),
        (np.float32(0.5), "0.5000"),
        (np.int64(7), "7"),
        ("two\nlines", "two lines"),
    ],
    ids=str,
)
def test_cells_in_words(cell, words):
    assert cell_text(plain(cell)) == words
    if isinstance(cell, Estimate) and words:
        assert str(cell) == words


def test_a_result_that_is_not_finite_does_not_stand_on_top(tmp_path):
    nothing = Result("digits", "its answer", "top-1", Estimate(float("nan"), 0, 1), 0)
    write_report(tmp_path, [Section("s", "S", results=(nothing,))], reports.provenance())
    assert strict((tmp_path / "results.json").read_bytes())["card"]["results"] == []
    for kind in ("md", "html"):
        assert "nan" not in (tmp_path / f"report.{kind}").read_text().replace("provenance", "")


def test_what_is_not_finite_is_null_and_what_json_does_not_know_is_refused():
    numbers = {
        1: float("nan"),
        "a": [np.inf, -0.5],
        "b": np.array([1, 2]),
        "c": (True, None),
        "d": Estimate(0.5, 0, 1),
    }
    assert strict(json.dumps(plain(numbers))) == {
        "1": None,
        "a": [None, -0.5],
        "b": [1, 2],
        "c": [True, None],
        "d": {"value": 0.5, "low": 0, "high": 1},
    }
    with pytest.raises(TypeError, match="set is none of JSON's types"):
        plain({"x": {1, 2}})


# Text from data


def hostile_section(names: list[str]) -> Section:
    text = " ".join(names)
    return Section(
        "classes",
        text,
        tuple(names),
        (Table("names", text, ("class", *names[:3]), tuple((name, name, 0.5, None) for name in names)),),
        (Picture("p", reports.curves(), text, text),),
        (Attachment("a.csv", b"x", text),),
        {"names": names, "measured_on": {name: name for name in names}},
        (Result(names[0], names[1], "top-1", reports.RIGHT, 3),),
    )


def test_names_of_every_kind_stay_text_in_all_three(tmp_path):
    for start in range(0, len(NAMES), 40):
        names = NAMES[start : start + 40]
        write_report(tmp_path, [hostile_section(names)], reports.provenance(models=[{"name": names[0], "x": names}]))
        markdown, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
        assert printable(markdown) == markdown and printable(page) == page
        tokens = parsed(re.sub(r"^</?details>$|^<summary>\d+ rows</summary>$", "", markdown, flags=re.MULTILINE))
        children = [child for token in tokens for child in token.children or ()]
        assert {child.type for child in children} <= {
            *("text", "text_special", "code_inline", "image", "softbreak", "link_open", "link_close"),
            *("strong_open", "strong_close", "em_open", "em_close"),
        }
        assert not [token for token in tokens if token.type in ("html_block", "hr", "blockquote_open", "fence")]
        assert [child.attrs["href"] for child in children if child.type == "link_open"] == ["a.csv"]
        assert [child.attrs["src"] for child in children if child.type == "image"] == ["p.png"]
        headings = [tokens[at + 1] for at, token in enumerate(tokens) if token.type == "heading_open"]
        assert [words_of([token]) for token in headings[:1]] == [f"Evaluation of {seen(names[0])}"]
        assert len(headings) == 3
        at = [at for at, token in enumerate(tokens) if token.type == "td_open"]
        cells = [words_of([tokens[index + 1]]) for index in at]
        on_page = Page(page)
        for name in names:
            assert cells.count(seen(name)) >= 2 and on_page.cells.count(seen(name)) >= 2
        tags = {tag for tag, _ in on_page.elements}
        assert not tags & {"b", "iframe", "i", "object"} and len(on_page.all("script")) == 1
        assert len(on_page.all("img")) == 1
        assert not [item for _, item in on_page.elements for name in item if name.startswith("on")]
        results = strict((tmp_path / "results.json").read_bytes())
        kept = results["sections"]["classes"]["names"]
        assert kept == [name.encode("utf-8", "backslashreplace").decode() for name in names]


def test_files_have_names_that_every_file_system_and_address_takes(tmp_path):
    names = ["of ada/deit", "猫", "犬", "../up", "a" * 200, "a<b>|`"]
    pictures = tuple(Picture(name, reports.curves(), "c", "a") for name in names)
    write_report(tmp_path, [Section("s", "S", pictures=pictures)], {})
    files = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(files) == len(names) and all(re.fullmatch(r"[A-Za-z0-9_-]{1,100}\.png", file) for file in files)
    assert sorted(re.findall(r"\]\((\S+)\)", (tmp_path / "report.md").read_text())) == files


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ([], "at least one section"),
        ([Section("a", "A"), Section("a", "B")], "two sections are called 'a'"),
        ([Section("a b", "A")], "letters, digits and underscores, got 'a b'"),
        ([Section("a", "A", tables=(Table("t", "", ("x",), ()),) * 2)], "two tables of a are called 't'"),
        ([Section("a", "A", tables=(Table("t", "", ("x",), ((1, 2),)),))], "rows of other lengths"),
        ([Section(name, "A", pictures=(Picture(name, b"", "", ""),)) for name in ("Ab", "aB")], r"called 'aB\.png'"),
        (
            [Section("a", "A", pictures=(Picture("p", b"", "", ""),), attachments=(Attachment("p.png", b"", ""),))],
            r"called 'p\.png'",
        ),
        ([Section("a", "A", attachments=(Attachment("results.json", b"", ""),))], r"called 'results\.json'"),
    ],
)
def test_names_that_clash_are_an_error_before_anything_is_written(tmp_path, sections, words):
    with pytest.raises(ValueError, match=words):
        write_report(tmp_path / "report", sections, {})
    assert not (tmp_path / "report").exists()


# In place of an earlier one


def test_a_report_takes_the_place_of_an_earlier_one_and_of_nothing_else(folder, tmp_path):
    write_report(tmp_path, [*reports.sections(num_pictures=3)[2:], hostile_section(["w", "x", "y", "z"])], {})
    before = written(tmp_path)
    assert {"curves_2.png", "p.png", "a.csv"} < before.keys()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "mine.png").write_bytes(before["p.png"])
    (tmp_path / "a.csv").write_text("mended by hand")
    write_report(tmp_path, reports.sections(num_classes=60), reports.provenance())
    after = written(tmp_path)
    assert {name: after[name] for name in written(folder)} == written(folder)
    assert after.keys() - written(folder).keys() == {"mine.txt", "mine.png", "a.csv"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot write the report in '.*report' \(File exists\)"):
        write_report(tmp_path / "report", reports.sections(), {})


def test_an_earlier_report_stays_where_the_disk_is_full(folder, tmp_path, monkeypatch):
    here = Path(shutil.copytree(folder, tmp_path / "report"))
    before = written(here)

    def refuse(content, path):
        if "report.html" in str(path):
            raise OSError(28, "No space left on device")
        write_whole(content, path)

    monkeypatch.setattr(report_module, "write_whole", refuse)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_report(here, [Section("other", "Other", ("New.",))], {"time": "now"})
    assert written(here) == before


def test_a_list_of_files_from_elsewhere_removes_nothing_outside(tmp_path):
    secret, target = tmp_path / "secret.txt", tmp_path / "report"
    target.mkdir()
    secret.write_text("secret")
    (target / "link.png").symlink_to(secret)
    digest = f"sha256:{hashlib.sha256(b'secret').hexdigest()}"
    names = ("../secret.txt", str(secret), "link.png", "", ".", "\0", "absent.png")
    for files in ({name: digest for name in names}, [1], {"x": 3}, None):
        (target / "results.json").write_text(json.dumps({"files": files}))
        write_report(target, reports.sections(), {})
        assert secret.read_text() == "secret" and (target / "link.png").is_symlink()
    (target / "results.json").write_text("[" * 100_000)
    write_report(target, reports.sections(), {})
    assert strict((target / "results.json").read_bytes())["schema_version"] == 1
