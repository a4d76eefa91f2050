"""Contract: a report's page works in a browser: nothing leaves it, its tables sort, and it is light or dark."""

from contextlib import ExitStack

import pytest
from support import reports
from support.chromium import PROGRAM, Page

from hf_deit.evaluation.report.report import write_report
from hf_deit.evaluation.sections import Estimate, Section, Table

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed: the page is not opened")

ROWS = (
    ("b 10", Estimate(0.5, 0.4, 0.6), 9, "x"),
    ("a", None, 1000, "x"),
    ("b 9", Estimate(0.25, 0.1, 0.4), 10, ""),
    ("<b>c</b>", Estimate(0.75, 0.6, 0.9), 9, "x"),
    ("d", None, 0.5, "y"),
)
FIRST = "[...document.querySelector('#section-order tbody').rows].map(row => row.cells[0].textContent).join()"
HEAD = "document.querySelector('#section-order thead').rows[0].cells[{}]"
COLOUR = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    order = Section("order", "Order", tables=(Table("t", "To sort.", ("name", "top-1", "images", "note"), ROWS),))
    write_report(folder, [*reports.sections(1000, 12), order], reports.provenance())
    with ExitStack() as stack:
        try:
            page = stack.enter_context(Page())
        except (OSError, RuntimeError, TimeoutError) as error:  # as of a script that only says what to install
            pytest.skip(f"{PROGRAM} does not start here ({error}): the page is not opened")
        page.show(1280)
        page.open(folder / "report.html")
        yield page


def click(page: Page, column: int) -> tuple[str, str | None]:
    head = HEAD.format(column)
    page.value(f"{head}.querySelector('button').click()")
    return page.value(FIRST), page.value(f"{head}.getAttribute('aria-sort')")


def test_nothing_leaves_the_page_and_nothing_is_wrong_with_it(page):
    assert page.value("document.title") == "Evaluation of digits"
    assert page.value("document.images.length") == 12
    decoded = "Promise.all([...document.images].map(image => image.decode())).then(() => 'all', String)"
    assert page.value(decoded) == "all"
    assert page.value("[...document.images].every(image => image.naturalWidth > 0)")
    assert [address for address in page.requests if not address.startswith("data:")] == [page.value("location.href")]
    assert page.complaints == []
    page.value("new Promise(done => { const i = new Image(); i.onerror = done; i.src = 'https://127.0.0.1:9/x.png' })")
    assert "Content Security Policy" in "".join(page.complaints)  # nor could anything leave it
    page.complaints.clear()


def test_tables_sort_by_what_their_cells_mean(page):
    start = page.value(FIRST)
    assert start == "b 10,a,b 9,<b>c</b>,d"
    assert click(page, 1) == ("b 9,b 10,<b>c</b>,a,d", "ascending")  # estimates; empty cells last, in their order
    assert click(page, 1) == ("<b>c</b>,b 10,b 9,a,d", "descending")
    assert click(page, 1) == (start, "none")
    assert click(page, 2) == ("d,b 10,<b>c</b>,b 9,a", "ascending")  # 9 before 1000, two alike in their order
    assert click(page, 2)[0] == "a,b 9,b 10,<b>c</b>,d"
    assert click(page, 0) == ("<b>c</b>,a,b 9,b 10,d", "ascending")  # 9 before 10 in names, too
    assert page.value(f"{HEAD.format(2)}.hasAttribute('aria-sort')") is False
    assert click(page, 3)[0] == "b 10,a,<b>c</b>,d,b 9"


def test_they_sort_by_keys_and_at_once(page):
    page.value("document.querySelector('#section-classes thead button').focus()")
    for _ in range(2):
        page.press("Tab", 9)
    page.press("Enter", 13)
    column = "[...document.querySelectorAll('#section-classes tbody tr')].map(row => Number(row.cells[2].textContent))"
    values = page.value(column)
    assert len(values) == 1000 and values == sorted(values) and values[0] < values[-1]
    page.press(" ", 32)
    assert page.value(column) == values[::-1]
    took = page.value(
        "(() => { const start = performance.now(); document.querySelector('#section-classes thead button').click();"
        "document.body.offsetHeight; return performance.now() - start })()"
    )
    assert took < 20_000  # milliseconds; some tens where nothing else runs


def test_long_tables_can_be_searched(page):
    page.value(
        "(() => { const box = document.querySelector('#section-classes input');"
        "box.value = 'CLASS 99'; box.dispatchEvent(new Event('input')) })()"
    )
    shown = "[...document.querySelectorAll('#section-classes tbody tr')].filter(row => row.offsetHeight > 0).length"
    assert page.value(shown) == 11  # 99 and 990 to 999
    assert page.value("document.querySelector('#section-classes output').textContent") == "11 of 1,000 rows"
    page.value("document.querySelector('#section-classes .scroll').scrollTop = 5000")
    assert page.value("document.querySelector('#section-classes .scroll').clientHeight") < 900


def test_it_is_light_or_dark_as_the_system_is_until_it_is_told(page):
    light = page.value(COLOUR)
    page.show(1280, scheme="dark")
    dark = page.value(COLOUR)
    assert sum(map(int, light[4:-1].split(","))) > 600 > 200 > sum(map(int, dark[4:-1].split(",")))
    page.value("document.getElementById('theme').click()")
    assert page.value(COLOUR) == light
    page.show(1280)
    page.value("document.getElementById('theme').click()")
    assert page.value(COLOUR) == dark
    page.show(1280, media="print")
    assert page.value(COLOUR) == "rgb(255, 255, 255)"
    assert page.value("document.querySelector('#section-classes .scroll').scrollHeight") < page.value(
        "document.querySelector('#section-classes .scroll').clientHeight + 2"
    )


def test_on_a_phone_tables_scroll_and_the_page_does_not(page):
    page.show(390, 844)
    page.value("document.querySelector('.kind bdi').textContent = 'a-long-name-'.repeat(9)")
    assert page.value("document.getElementById('theme').offsetHeight") < 50
    assert page.value("document.documentElement.scrollWidth") <= 390
    assert page.value(
        "(() => { const box = document.querySelector('#section-accuracy .scroll');"
        "return box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX === 'auto' })()"
    )
    assert page.complaints == []
