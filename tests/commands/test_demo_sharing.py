"""Contract: options of a Space and of serving are refused where they would do nothing, and reach what they are of."""

import pytest

from hf_deit.commands import demo_sharing
from hf_deit.commands.command_line import CommandParser
from hf_deit.errors import InputError
from hf_deit.export.page import served
from hf_deit.hub import space

OF_THE_PAGE = {"output_dir": "page"}


def options_of(*arguments: str):
    parser = CommandParser("demo", "")
    parser.add_argument("--model")
    parser.add_argument("--output_dir", default="page")
    demo_sharing.add_options(parser)
    options = parser.parse_args(["--model", "m", *arguments])
    demo_sharing.check_options(options, OF_THE_PAGE)
    return options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "80"], "--port is for --serve"),
        (["--share"], "--share is for --serve"),
        (["--overwrite_space"], "--overwrite_space is for --to_space"),
        (["--serve", "--hub_private_repo"], "--hub_private_repo is for --to_space"),
        (["--serve", "--to_space", "a/b"], "give one of them"),
        (["--serve", "--output_dir", "x"], "--output_dir is of the page in a folder"),
        (["--serve", "--port", "0"], r"port must lie in \[1, 65535\], got 0"),
        (["--to_spaces", "a/b"], "--to_space"),
    ],
)
def test_what_would_do_nothing_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        options_of(*arguments)


def test_options_reach_what_they_are_of(monkeypatch, capsys):
    asked = []

    class Repository:
        url = "https://hub/spaces/ada/x"

    monkeypatch.setattr(space, "to_space", lambda *arguments, **settings: asked.append(settings) or Repository)
    monkeypatch.setattr(served, "serve", lambda model, say, **settings: asked.append(settings) or say("address"))
    assert demo_sharing.publish(options_of("--to_space", "x", "--overwrite_space"), "page") == Repository.url
    assert asked.pop() == {"model": "m", "private": None, "overwrite": True}
    demo_sharing.serve(options_of("--serve", "--port", "80", "--use_cpu"), {})
    assert asked.pop() == {"examples": {}, "host": "127.0.0.1", "port": 80, "share": False, "use_cpu": True}
    assert capsys.readouterr().out == "m answers at address, until Ctrl+C\n"
