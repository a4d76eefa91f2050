"""Label stores as data sets on the Hub: finding, downloading and pushing them."""

import functools
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from string import Template

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from ..errors import InputError, PublishError, shortlist
from ..hub.client import HUB_ERRORS, keep_trying, why
from ..hub.files import regular_file
from ..hub.markdown import escape_markdown
from ..hub.repository import LATER, HubRepository, check_repository
from .files import DATA, STORE_FILE
from .identity import StoreIdentity

logger = logging.get_logger(__name__)

_SCHEME = "hf://datasets/"
_SECONDS = 60.0


def hub_id(source: str, *, bare: bool) -> str | None:
    """The data set on the Hub that a source names, or None if it is a folder.

    Args:
        source: "hf://datasets/user/name", or a folder.
        bare: whether "user/name" names a data set, too, if there is no folder of that name.

    Raises:
        InputError: what stands behind "hf://datasets/" is no name of a data set.
    """
    name = source.removeprefix(_SCHEME)
    if name == source and (not bare or os.path.exists(source) or source.count("/") != 1):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        if name == source:
            return None
        raise InputError(f"{source!r} is no data set on the Hub, expected {_SCHEME}user/name: {error}") from error
    return name


def _download(repo_id: str, name: str, revision: str | None, token: str | None) -> str:
    """The path of a file of a data set, in the cache.

    Raises:
        InputError: it is not there.
    """

    def fetch() -> str:
        return hf_hub_download(repo_id, name, repo_type="dataset", revision=revision, token=token)

    try:
        return keep_trying(fetch, what=f"downloading {name} of {repo_id}", seconds=_SECONDS)
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            raise InputError(f"the data set {repo_id!r} has no {name}: give one that holds teacher labels") from error
        raise InputError(
            f"{name} of the data set {repo_id!r} is not in the cache, and the Hub is not there: {why(error)}"
        ) from error
    except HUB_ERRORS as error:
        raise InputError(
            f"cannot download {name} of the data set {repo_id!r}{f' at {revision!r}' if revision else ''} "
            f"({why(error)}), and there is no folder of that name: check the name, the revision and your token"
        ) from error


@functools.cache  # a commit's files stay what they are, and a run opens its labels several times
def _files_at(repo_id: str, commit: str, token: str | None) -> list[str]:
    return HfApi(token=token).list_repo_files(repo_id, revision=commit, repo_type="dataset")


def _list_files(repo_id: str, commit: str, token: str | None, cached: str) -> list[str]:
    """The files of a data set at a commit, or, without the Hub, those in the cache's folder of that commit."""
    if not constants.is_offline_mode():
        try:
            return keep_trying(
                lambda: _files_at(repo_id, commit, token),
                what=f"listing {repo_id}",
                seconds=_SECONDS,
            )
        except HUB_ERRORS as error:
            logger.warning("cannot list the labels %s (%s): taking those in the cache", repo_id, why(error))
    return [
        os.path.relpath(os.path.join(parent, name), cached).replace(os.sep, "/")
        for parent, _, names in os.walk(cached)
        for name in names
    ]


class HubFolder:
    """A data set at one commit, whose files are downloaded when they are asked for.

    Args:
        repo_id: of the data set.
        revision: branch, tag or commit; None for the main branch.
        token: of a user; None for the one that the client finds.

    Attributes:
        commit: the one that the revision stands for.
        folder: in the cache, of this commit.
        files: names of all files of the commit; without the Hub, of those in the cache.

    Raises:
        InputError: there is no such data set, or it is no label store.
    """

    def __init__(self, repo_id: str, revision: str | None, token: str | None) -> None:
        self.repo_id = repo_id
        self._token = token
        # Asked for by the branch's name, as only then the cache notes, for use offline, which commit that is.
        self.folder = os.path.dirname(_download(repo_id, STORE_FILE, revision, token))
        self.commit = os.path.basename(self.folder)
        self.files = {*_list_files(repo_id, self.commit, token, self.folder)}
        self._prefetch: threading.Thread | None = None

    def names(self, parent: str) -> list[str]:
        """The names of the files in one of its folders."""
        return [os.path.basename(name) for name in self.files if os.path.dirname(name) == parent]

    def path(self, name: str, *, then: str) -> str:
        """Downloads a file, and gives its path in the cache.

        Args:
            then: the file that is wanted next. It is downloaded in the background, if there is one of that name.

        Raises:
            InputError: it cannot be downloaded.
        """
        if self._prefetch is not None:
            self._prefetch.join()
        path = _download(self.repo_id, name, self.commit, self._token)
        if then in self.files:
            self._prefetch = threading.Thread(target=self._fetch, args=(then,), daemon=True)
            self._prefetch.start()
        return path

    def _fetch(self, name: str) -> None:
        with suppress(InputError):  # who asks for it hears of it
            _download(self.repo_id, name, self.commit, self._token)


def check_files(folder: str | os.PathLike[str]) -> None:
    """Refuses a store whose files are not all regular ones of its folder, before one of them is read.

    Raises:
        InputError: one of them is something else, see `regular_file`.
    """
    data = os.path.join(folder, DATA)
    found = sorted(os.listdir(data)) if os.path.isdir(data) else []
    for name in (STORE_FILE, *(os.path.join(DATA, name) for name in found if name.endswith(".parquet"))):
        regular_file(folder, name)


def push(
    repo_id: str,
    folder: str | os.PathLike[str],
    names: Sequence[str],
    identity: StoreIdentity,
    *,
    private: bool | None,
    token: str | None,
    seconds: float,
) -> str:
    """Pushes files of a store as one commit, with a card unless there is one.

    Args:
        repo_id: of the data set, made if it is not there, once it is known that it can be pushed to.
        folder: of the store.
        names: of the files beside store.json, from there.
        identity: of the store.
        private, token: see `check_repository`.
        seconds: for so long it is tried again where that can help.

    Returns:
        The commit's address.

    Raises:
        InputError: it cannot be pushed to, or holds other labels; or a file is no regular one of the folder.
        PublishError: the Hub refuses, fails or is not there.
    """
    files = {name: regular_file(folder, name) for name in (STORE_FILE, *names)}
    repository = check_repository(repo_id, token=token, private=private, repo_type="dataset", instead=LATER)
    repository.create()

    def commit() -> str:
        head = repository.head()
        _check_same_labels(repository, head, identity)
        has_card = repository.read_card(head) is not None
        card = {} if has_card else {"README.md": _card(repository.repo_id, identity).encode()}
        message = f"Teacher labels of {len(names)} epochs"
        return str(repository.commit({**files, **card}, message, parent=head).commit_url)

    try:
        return keep_trying(commit, what=f"pushing labels to {repository.repo_id}", seconds=seconds)
    except InputError:
        raise
    except HUB_ERRORS as error:
        raise PublishError(
            f"cannot push the labels to {repository.url} ({why(error)}): the labels are whole in "
            f"{os.fspath(folder)!r}, push them again later"
        ) from error


def _check_same_labels(repository: HubRepository, commit: str, identity: StoreIdentity) -> None:
    """Refuses to push into a data set that holds labels of another store."""
    described = repository.download(STORE_FILE, commit)
    if described is None:
        return
    theirs = StoreIdentity.read(described)
    if theirs.digest != identity.digest:
        changed = list(theirs.differences(identity).values())
        raise InputError(
            f"{repository.repo_id!r} holds other labels ({shortlist(changed, separator='; ')}): give another name"
        )


def _teachers(identity: StoreIdentity) -> list[str]:
    return identity.teacher.get("names") or [str(identity.teacher.get("name") or "a teacher")]


def _card(repo_id: str, identity: StoreIdentity) -> str:
    templates = resources.files(__package__).joinpath("templates")
    card, logits = (Template(templates.joinpath(name).read_text("utf-8")) for name in ("card.md", "card_logits.md"))
    return card.substitute(
        teacher=escape_markdown(" + ".join(map(os.path.basename, _teachers(identity)))),
        data=escape_markdown(os.path.basename(str(identity.data.get("name") or "a data set"))),
        views=f"{identity.views_per_epoch:,}",
        num_labels=f"{identity.num_labels:,}",
        rows_of_logits=logits.substitute(top_k=identity.top_k) if identity.top_k else "",
        source=_SCHEME + repo_id,
        repo_id=repo_id,
    )
