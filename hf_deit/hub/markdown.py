"""Text from data in Markdown: names read as they are written, and become neither markup nor links."""

import re

from ..errors import printable

# What renderers make links, mentions or pictures of though no character of it is markup.
_LINKED = re.compile(r"://|\bwww\.|\w@\w|(?<!\w)@\w|(?<!\w)#\d|(?<!\w):[a-z+-][\w+-]*:", re.IGNORECASE)
_MARKUP = re.compile(r"[\\`*<>|\[\]~$]|&(?=#?\w+;)")
# At the beginning of a line: headings, quotes and lists (a quote's mark is escaped anyhow), rules and underlines.
_BLOCK = re.compile(r"#{1,6}(?:\s|$)|[-+](?:\s|$)|[-=][-=\s]*$")
_NUMBERED = re.compile(r"\d{1,9}[.)](?:\s|$)")
_NAMELESS = "(no name)"
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")


def escape_markdown(text: str, *, keep_code: bool = False) -> str:
    """A text in one line, such that Markdown shows it as it is, wherever in a line or a paragraph it stands.

    What has no markup stays as it is, underscores within words among it. What renderers would link by itself, such as
    addresses and mentions, is shown as code. For cells of tables there is `table_cell`.

    Args:
        keep_code: whether spans of code in it are meant as such.
    """
    text = printable(" ".join(text.split()))
    if keep_code:
        parts, end = [], 0
        for span in _CODE.finditer(text):
            parts += [_escaped(text[end : span.start()]), span[0]]
            end = span.end()
        return "".join([*parts, _escaped(text[end:])]) or _NAMELESS
    return _escaped(text) or _NAMELESS


def _escaped(text: str) -> str:
    if _LINKED.search(text):
        return f"{text[: len(text) - len(text.lstrip())]}{code_span(text)}{text[len(text.rstrip()) :]}"
    escaped = re.sub(r"_+", _underscores, _MARKUP.sub(r"\\\g<0>", text))
    escaped = re.sub(r"(?<=\s)#+$", r"\\\g<0>", escaped)  # which would close a heading
    if _NUMBERED.match(escaped):
        return re.sub(r"[.)]", r"\\\g<0>", escaped, count=1)
    return f"\\{escaped}" if _BLOCK.match(escaped) else escaped


def _underscores(run: re.Match[str]) -> str:
    """Within a word they are no emphasis."""
    before, after = run.string[: run.start()][-1:], run.string[run.end() :][:1]
    return run[0] if before.isalnum() and after.isalnum() else run[0].replace("_", r"\_")


def code_span(text: str, *, in_table: bool = False) -> str:
    """A text in one line as a span of code, between more backticks than it holds itself.

    Args:
        in_table: whether for a cell of a table, where bars part the cells even in code.
    """
    text = printable(" ".join(text.split()))
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    padding = " " if text[:1] == "`" or text[-1:] == "`" else ""
    shown = text.replace("|", r"\|") if in_table else text
    return f"{fence}{padding}{shown}{padding}{fence}" if text else _NAMELESS


def table_cell(text: str) -> str:
    """A text as a cell of a table; see `escape_markdown`."""
    escaped = escape_markdown(text)
    return code_span(text, in_table=True) if escaped.startswith("`") else escaped


def code_block(text: str, language: str) -> str:
    """Lines as a block of code, between longer fences than they hold themselves."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}{language}\n{text}\n{fence}"
