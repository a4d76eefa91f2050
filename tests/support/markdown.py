"""Names that could be taken for markup or steer a terminal, and Markdown as its readers see it."""

import pytest

from hf_deit.hub.card import BEGIN, END

BENIGN = [
    *("cat", "golden_retriever", "a__b", "well-known", "Köln", "猫", "AT&T", "C#", "St. Bernard (dog)", "100%", "1"),
    *("it's", 'the "big" one', "a, b", "5 x 5", "R2-D2", "n01440764", "12:30", "x = y", "émeu!", "no.7"),
    "می\u200cروم",  # with a joiner of its script
]
HOSTILE = [
    *("<b>bold</b>", "<script>alert(1)</script>", "<!-- hidden", END, BEGIN, "<img src=x onerror=y>"),
    *("[evil](http://evil.example)", "![p](http://evil.example/p.png)", "http://evil.example", "www.evil.example"),
    *(
        "<http://evil.example>",
        "ada@evil.example",
        "@ada",
        "#1",
        "see #12",
        "[ref]",
        "[^1]",
        "[x]: http://evil.example",
    ),
    *("# heading", "## two", "#", "> quote", "- item", "+ item", "* item", "1. item", "2) item", "---", "===", "***"),
    *("a|b", "|", "`code`", "``", "`", "``` fence", "~~~ fence", "*a*", "**a**", "_a_", "__a__", "~~a~~", "a\\|b"),
    *("&lt;b&gt;", "&#60;b&#62;", "&copy;", "$x^2$", "$$x$$", ":smile:", "\\", "\\*", "a\\", "C #", "`a|http://b`"),
]
STEERING = {
    "line\nbreak": "line break",
    "two\r\n\n# lines": "two # lines",
    "tab\tulator": "tab ulator",
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "bell\x07": r"bell\x07",
    "nul\x00": r"nul\x00",
    "csi\x9b31m": r"csi\x9b31m",
    "gnp\u202egpj.exe": r"gnp\u202egpj.exe",
    "\u2066isolated\u2069": r"\u2066isolated\u2069",
    "half\udcff": r"half\udcff",
}
NAMES = [*BENIGN, *HOSTILE, *STEERING]


def seen(name: str) -> str:
    return STEERING.get(name, name)


def parsed(text: str) -> list:
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def words_of(tokens: list) -> str:
    """What a reader sees of inline tokens, which are text and code alone."""
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert kinds <= {"text", "code_inline", "text_special"}, kinds
    return "".join(child.content for token in tokens for child in token.children or ())
