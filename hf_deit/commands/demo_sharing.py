"""How `hf-deit demo` brings a model to other people: its page as a Space, or a page that is served from here.

Loads no library before it is used: a slip of the pen is told at once.
"""

import argparse
from collections.abc import Mapping

from ..errors import InputError

_OF_SPACES = ("hub_private_repo", "overwrite_space")
_OF_SERVING = ("host", "port", "share", "use_cpu")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of both."""
    space = parser.add_argument_group("a static Space of the page")
    space.add_argument("--to_space", metavar="NAME", help="publish it on the Hub, with or without namespace")
    space.add_argument("--hub_private_repo", action="store_true", help="create the Space as a private one")
    space.add_argument(
        "--overwrite_space", action="store_true", help="replace all of a Space that holds something else"
    )
    served = parser.add_argument_group("instead, a page that is served from here, by PyTorch and Gradio")
    served.add_argument("--serve", action="store_true", help="serve it until Ctrl+C")
    served.add_argument("--port", type=int, metavar="N", help="default: a free one from 7860 on")
    served.add_argument("--host", metavar="ADDRESS", help="default: 127.0.0.1, for this machine alone")
    served.add_argument("--share", action="store_true", help="let Gradio's servers make it public for a while")
    served.add_argument("--use_cpu", action="store_true", help="whatever else there is")


def check_options(options: argparse.Namespace, of_the_page: Mapping[str, object]) -> None:
    """Refuses options of what is not asked for.

    Args:
        options: from a parser with `add_options`.
        of_the_page: options of the page that is made into a folder, by name, with their defaults.

    Raises:
        InputError: there is one, or a value that cannot be.
    """
    given = {name for name in (*_OF_SPACES, *_OF_SERVING) if getattr(options, name) not in (None, False)}
    if not options.serve and (needless := sorted(given & {*_OF_SERVING})):
        raise InputError(f"--{needless[0]} is for --serve: give both, or leave it out")
    if options.to_space is None and (needless := sorted(given & {*_OF_SPACES})):
        raise InputError(f"--{needless[0]} is for --to_space: give both, or leave it out")
    if not options.serve:
        return
    if options.to_space is not None:
        raise InputError("--serve serves a page from here, --to_space publishes another: give one of them")
    for name, default in of_the_page.items():
        if getattr(options, name) != default:
            raise InputError(f"--{name} is of the page in a folder, which --serve does not make: leave it out")
    if options.port is not None and not 1 <= options.port <= 65535:
        raise InputError(f"port must lie in [1, 65535], got {options.port}")


def check_space(options: argparse.Namespace) -> None:
    """Refuses a Space that cannot be pushed to, before the page is made.

    Raises:
        InputError: it cannot.
    """
    from ..hub.space import check_space_repository

    check_space_repository(options.to_space, private=options.hub_private_repo or None)


def publish(options: argparse.Namespace, folder: str) -> str:
    """Publishes the page in a folder as a Space, and gives its address.

    Raises:
        InputError, PublishError: see `hf_deit.hub.space.to_space`.
    """
    from ..hub.space import to_space

    return to_space(
        folder,
        options.to_space,
        model=options.model,
        private=options.hub_private_repo or None,
        overwrite=options.overwrite_space,
    ).url


def serve(options: argparse.Namespace, examples: Mapping[str, bytes]) -> None:
    """Serves the model until Ctrl+C.

    Args:
        examples: PNG or JPEG files, by name.

    Raises:
        InputError: see `hf_deit.export.page.served.serve`.
    """
    from ..export.page import served

    def say(address: str) -> None:
        print(f"{options.model} answers at {address}, until Ctrl+C", flush=True)

    served.serve(
        options.model,
        say=say,
        examples=examples,
        host=options.host or served.HOST,
        port=options.port,
        share=options.share,
        use_cpu=options.use_cpu,
    )
