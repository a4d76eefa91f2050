"""Contract: text from data reads in Markdown as it is written, and makes neither markup nor links; nor does it steer.

Cards are read with markdown-it, which datasets and others bring along by way of rich, where it is there.
"""

import dataclasses
import json
import re

import pytest
from support.facts import facts
from support.markdown import BENIGN, NAMES, STEERING, parsed, seen, words_of

from hf_deit.errors import BadImageError, InputError, printable
from hf_deit.hub.card import BEGIN, END, card_faults, hand_written, make_card, update_card
from hf_deit.hub.facts import OWN_IMAGES, Source
from hf_deit.hub.markdown import code_block, code_span, escape_markdown, table_cell
from hf_deit.hub.recipe_file import dump_recipe, parse_recipe
from hf_deit.hub.usage import note_on_fusion, usage
from hf_deit.labels.on_hub import _card
from hf_deit.training.overview import RunOverview


def test_what_has_no_markup_stays_as_it_is():
    for name in BENIGN:
        assert escape_markdown(name) == table_cell(name) == printable(name) == name


@pytest.mark.parametrize("place", ["alone", "behind words", "before words", "in a table", "in a heading", "as code"])
def test_every_name_reads_as_it_is_written_wherever_it_stands(place):
    for name in NAMES:
        check_reading(name, place)


def check_reading(name: str, place: str) -> None:
    before, shown, after, kind = {
        "alone": ("", escape_markdown(name), "", "paragraph_open"),
        "behind words": ("Its labels: ", escape_markdown(name), ".", "paragraph_open"),
        "before words": ("", escape_markdown(name), " and more", "paragraph_open"),
        "in a table": ("| | |\n|---|---|\n| ", table_cell(name), " | 1 |", "table_open"),
        "in a heading": ("# ", escape_markdown(name), "", "heading_open"),
        "as code": ("The split ", code_span(name), ".", "paragraph_open"),
    }[place]
    tokens = parsed(f"{before}{shown}{after}")
    assert [token.type for token in tokens if token.level == 0 and token.nesting == 1] == [kind]
    inline = [token for token in tokens if token.type == "inline"]
    if place == "in a table":
        assert len(inline) == 4  # two columns
        assert words_of(inline[2:3]) == seen(name)
    elif place == "in a heading":
        assert words_of(inline) == seen(name)
    else:
        assert words_of(inline) == f"{before}{seen(name)}{after}"


def test_nothing_has_a_word():
    assert [f("  \n") for f in (escape_markdown, table_cell, code_span)] == ["(no name)"] * 3


@pytest.mark.parametrize("text", ["a", "```", "a\n````\n# b", "~~~"])
def test_a_block_of_code_ends_where_it_does(text):
    (block,) = parsed(code_block(text, "yaml"))
    assert (block.type, block.info, block.content) == ("fence", "yaml", f"{text}\n")


def hostile_facts(**changes):
    """A name of every kind at every place that data can name."""
    name = " ".join(["<b>x</b>", "[y](http://evil.example)", "`a|b`", "\n# z\n", END, "\x1b[31m\u202e", "```"])
    values = {
        "labels": NAMES,
        "classes": [[1, 2]] * len(NAMES),
        "dataset_config": name,
        "train_split": name,
        "validation_split": f"held out of {name}",
        "teacher_datasets": ["lab/pets", name],
        "recipe": {"student_overrides": {"field": name}, "seed": 3, "train_dir": f"```\n{END}\n# heading\n"},
        "environment": {"device": name, "num_processes": 1},
    }
    return facts(**{**values, **changes})


SOURCES = {
    "on the Hub": {},
    "of one's own": {
        "dataset": Source("<i>pets</i>\n\n- [z](http://evil.example)"),
        "teacher": Source("> # <b>t</b>"),
    },
    "few labels": {"labels": NAMES[:18], "classes": None, "dataset": OWN_IMAGES},
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_card_has_the_headings_links_and_tables_that_it_would_have_anyhow(case):
    changes = SOURCES[case]
    hostile = hostile_facts(**changes)
    place = ("ada/<b>p</b> `x` #", 'v"1\n`b`')
    text = make_card(hostile, *place)
    assert card_faults(text) == [] and hand_written(text) == ""
    body, again = (card.split("\n---\n", 1)[1] for card in (text, update_card(text, hostile, *place)))
    assert body == again == printable(body)
    tokens = parsed(body)
    assert [token.content for token in tokens if token.type == "html_block"] == [f"{BEGIN}\n", f"{END}\n"]
    children = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in children} <= {
        *("text", "text_special", "code_inline", "link_open", "link_close", "image", "softbreak"),
        *("strong_open", "strong_close"),
    }
    links = {child.attrs["href"] for child in children if child.type == "link_open"}
    assert all(link.startswith("https://huggingface.co/") for link in links), links
    assert [child.attrs["src"] for child in children if child.type == "image"] == ["training_curves.png"]
    headings = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Results", "Use", "Teacher", "Training"]
    assert not [token for token in tokens if token.type in ("bullet_list_open", "blockquote_open", "hr")]
    assert [token.info for token in tokens if token.type == "fence"] == ["python", "yaml"]
    (recipe,) = (token.content for token in tokens if token.type == "fence" and token.info == "yaml")
    assert parse_recipe(recipe) == hostile.recipe
    assert len([token for token in tokens if token.type == "table_open"]) == text.count("\n|---")


def test_every_label_of_a_table_reads_as_it_is_written():
    for start in range(0, len(NAMES), 20):
        names = NAMES[start : start + 20]
        tokens = parsed(
            make_card(facts(labels=names, classes=[[1, 2]] * len(names)), "ada/pets").split("\n---\n", 1)[1]
        )
        rows = range(len(tokens))
        cells = [words_of([tokens[at + 1]]) for at in rows if tokens[at].type == "td_open" and tokens[at + 1].content]
        for name in names:
            assert seen(name) in cells


def test_what_people_have_added_stays_beside_labels_that_are_named_like_the_marks():
    hostile = facts(labels=[BEGIN, END, "<!--"], classes=None, recipe={"run_name": END})
    text = make_card(hostile, "ada/pets").replace(BEGIN, f"Above.\n\n{BEGIN}", 1) + "\nBelow.\n"
    other = dataclasses.replace(hostile, minutes=99.0)
    updated = update_card(text, other, "ada/pets")
    assert hand_written(updated).split() == ["Above.", "Below."] and "99.0 minutes" in updated


@pytest.mark.parametrize("name", ['a "b"', "a`b", "a\nb", "a\\b", "gnp\u202egpj", "\x1b[31m", "```", "half\udcff"])
def test_lines_of_code_hold_any_name_of_a_folder(name):
    lines = usage(name, revision=name)
    called = []
    code = re.search(r"classify = (.*)", lines)[1]
    exec(code, {"pipeline": lambda *args, **kwargs: called.append(kwargs)})
    assert called == [{"model": name, "revision": name}]
    assert printable(lines) == lines
    tokens = parsed(note_on_fusion("DistilledDeiTForImageClassification", "cls", name))
    (code,) = (child for child in tokens[1].children if child.type == "code_inline")
    assert json.loads(json.dumps(name)) == eval(code.content.removeprefix("hf_deit.").partition("(")[2][:-1])


def test_a_recipe_with_steering_characters_is_read_back_and_shows_them():
    recipe = {"train_dir": "gnp\u202egpj", "run_name": "\x1b[31mred", "student": "Köln 猫", "dataset_name": "a\u2028b"}
    assert printable(dump_recipe(recipe)) == dump_recipe(recipe)
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert "Köln 猫" in dump_recipe(recipe)


def test_the_card_of_kept_labels_names_what_it_is_of():
    class Identity:
        teacher, data = {"name": "<b>t # x"}, {"name": "[d](#e) @ada"}
        views_per_epoch, num_labels, top_k = 4, 2, 0

    tokens = parsed(_card("ada/labels", Identity()).split("\n---\n", 1)[1])
    assert tokens[0].type == "heading_open"
    words = words_of(tokens[1:2])
    assert words == "What <b>t # x says about augmented views of [d](#e) @ada"


@pytest.mark.parametrize("name", STEERING)
def test_neither_messages_nor_tables_steer_the_terminal(name):
    assert printable(str(InputError(f"no such class: {name}"))) == str(InputError(f"no such class: {name}"))
    note = BadImageError("broken", path=f"{name}.png", reason=name).note("row 3")
    assert printable(note) == note and "\n" not in note
    assert printable("two\nlines\tof words") == "two\nlines\tof words"


def test_the_overview_names_classes_as_text():
    counts = {"\x1b[31mape": 1, "c\nat": 2}
    overview = RunOverview(*("student", "x", 1, 1, (16, 16), 2, [], 1, 1, "CPU", ""), class_counts=counts)
    assert '("c at")' in overview.text()
