"""`hf-deit publish`: pushes a trained model, or a teacher's labels, after a check that loads it as its users will."""

from argparse import Namespace
from collections.abc import Sequence

from transformers.hf_argparser import string_to_bool

from ..data.arguments import check_ranges
from ..errors import InputError
from ..hub.publishing import publish_folder
from ..labels.files import is_store
from ..labels.on_hub import check_files
from ..labels.store import TeacherLabelStore
from .command_line import CommandParser, run_command


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_publish, arguments)


def _publish(arguments: Sequence[str]) -> int:
    parser = CommandParser(
        "publish",
        "Pushes a trained model, or a teacher's labels, to the Hub, after a check that loads it as users will.",
    )
    parser.add_argument(
        "folder",
        help="what a run has written, or any image classifier with its image processor and a model card; or "
        "what a run has kept with --teacher_labels",
    )
    parser.add_argument("--hub_model_id", required=True, help="name of the repository, with or without namespace")
    parser.add_argument(
        "--hub_private_repo", nargs="?", const=True, type=string_to_bool, help="create it as a private one"
    )
    parser.add_argument("--hub_revision", help="branch to push to; made if it is not there")
    parser.add_argument("--hub_push_timeout", type=float, default=600.0, help="seconds after which it is given up")
    options = parser.parse_args(arguments)
    check_ranges(options, {"(0, 1000000000)": ("hub_push_timeout",)})
    url = _publish_labels(options) if is_store(options.folder) else _publish_model(options)
    print(f"{options.folder} is published at {url}")
    return 0


def _publish_model(options: Namespace) -> str:
    return publish_folder(
        options.folder,
        options.hub_model_id,
        private=options.hub_private_repo,
        revision=options.hub_revision,
        seconds=options.hub_push_timeout,
    ).url


def _publish_labels(options: Namespace) -> str:
    if options.hub_revision is not None:
        raise InputError("labels are pushed to the main branch: leave --hub_revision out")
    check_files(options.folder)
    store = TeacherLabelStore.open(options.folder, readonly=True)
    store.finish_covered()
    parts = store.parts_in_words()
    address = store.push_to_hub(
        options.hub_model_id, private=options.hub_private_repo, seconds=options.hub_push_timeout
    )
    if parts:
        print(
            f"left out, as they are not whole: {parts}. Unless another run is at it, hf-deit label with the arguments "
            "of their run completes them"
        )
    return address
