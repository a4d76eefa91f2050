"""Publishes a trained model on the Hub, after it has been checked as its users will load it; or a teacher's labels.

    python scripts/publish.py FOLDER --repo_id NAME [--private] [--revision BRANCH] [--timeout SECONDS]

FOLDER is what a run has written, or any image classifier with its image processor and a model card. Or it holds what a
run has kept with --teacher_labels, whose complete epochs become a data set. The token is the one of `hf auth login` or
of HF_TOKEN. Exit status: 0 when all is there, 2 when the folder or the repository cannot be used, 3 when the Hub could
not be reached or refused.
"""

import argparse
import sys

from hf_deit.errors import InputError, PublishError
from hf_deit.hub.publishing import publish_folder
from hf_deit.labels.files import is_store
from hf_deit.labels.store import TeacherLabelStore


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--repo_id", required=True, help="name of the repository, with or without namespace")
    parser.add_argument("--private", action="store_true", default=None, help="create it as a private one")
    parser.add_argument("--revision", help="branch to push to; made if it is not there")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which it is given up")
    options = parser.parse_args(arguments)
    try:
        if is_store(options.folder):
            url = publish_labels(options)
        else:
            url = publish_folder(
                options.folder,
                options.repo_id,
                private=options.private,
                revision=options.revision,
                seconds=options.timeout,
            ).url
    except (InputError, PublishError) as error:
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InputError) else 3
    print(f"{options.folder} is published at {url}")
    return 0


def publish_labels(options: argparse.Namespace) -> str:
    if options.revision is not None:
        raise InputError("labels are pushed to the main branch: leave --revision out")
    store = TeacherLabelStore.open(options.folder, readonly=True)
    return store.push_to_hub(options.repo_id, private=options.private, seconds=options.timeout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
