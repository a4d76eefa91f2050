"""The Hub: what a run needs of it is checked before training, and what it pushes survives the Hub's failures.

huggingface_hub retries uploads of large files, but never a commit, and waits without limit for an answer. Here every
call is repeated while that can help, and given up after a time that is known.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Thread
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

from .errors import InputError, first_line

logger = logging.get_logger(__name__)

T = TypeVar("T")
# What the client raises when the Hub refuses, fails or is not there; RuntimeError for a large file, with the cause.
HUB_ERRORS = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError, KeyError)
# Too many requests, a server in trouble, or somebody else's commit at the same moment.
_TRANSIENT_STATUSES = {408, 409, 412, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60.0
CHECK_SECONDS = 30.0
_GRACE = 10.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


# Some calls of the client raise their HTTP library's own error.
_Refusal = HfHubHTTPError | httpx2.HTTPStatusError


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, _Refusal) else None


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed a little later."""
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, _Refusal):
            return _status(cause) in _TRANSIENT_STATUSES
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            return True
    return False


def why(error: BaseException) -> str:
    """The reason of a failure in a line: the innermost one, and the HTTP status if there is one."""
    *_, cause = _causes(error)
    if isinstance(cause, _Refusal):
        response = cause.response
        said = (
            getattr(cause, "server_message", None) or response.headers.get("X-Error-Message") or response.reason_phrase
        )
        return f"HTTP {response.status_code}: {said}"
    name = type(cause).__name__
    return f"{name}: {first_line(cause)}" if str(cause).strip() else name


def wished_pause(error: BaseException) -> float:
    """Seconds that the Hub asks to wait (Retry-After, a number or a date), or 0."""
    for cause in _causes(error):
        if isinstance(cause, _Refusal):
            value = cause.response.headers.get("Retry-After", "")
            if value.isdigit():
                return float(value)
            try:
                return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
            except (ValueError, TypeError):
                return 0.0
    return 0.0


def keep_trying(function: Callable[[], T], *, what: str, seconds: float) -> T:
    """Calls a function until it succeeds, with exponential backoff, while that can help and the time is not up.

    Args:
        function: may be called again after it failed: what is already there must not be made twice. (Commits of
            huggingface_hub leave out what has not changed, and make none if nothing has.)
        what: it does, for the log.
        seconds: from the first call; no other call begins afterwards.

    Raises:
        HUB_ERRORS: of the last call.
    """
    end = time.monotonic() + seconds
    attempt = 0
    while True:
        try:
            return function()
        except HUB_ERRORS as error:
            pause = max(wished_pause(error), min(_LONGEST_WAIT, 2.0**attempt) * random.uniform(0.5, 1.0))
            if not is_transient(error) or time.monotonic() + pause > end:
                raise
            logger.warning("%s failed (%s): trying again in %.1f s", what, why(error), pause)
            time.sleep(pause)
            attempt += 1


class Attempt(Thread):
    """A call in a thread of its own, which ends with the process: nobody has to wait for an answer that never comes.

    Args:
        function: what to call.

    Attributes:
        result: that it gave, or None.
        error: that it raised, or None.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True, name="hub")
        self._function = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error


def ask(function: Callable[[], T], *, what: str, seconds: float | None = None) -> T:
    """`keep_trying`, but not longer than the time, whatever the Hub does.

    Args:
        function, what: see `keep_trying`.
        seconds: by default enough for a question.

    Raises:
        HUB_ERRORS: of the last call; a `TimeoutError` if there was no answer.
    """
    seconds = CHECK_SECONDS if seconds is None else seconds
    attempt = Attempt(lambda: keep_trying(function, what=what, seconds=seconds))
    attempt.join(seconds + _GRACE)  # a call may have begun just before the time was up
    if attempt.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if attempt.error is not None:
        raise attempt.error
    return attempt.result


@dataclass(frozen=True)
class HubRepository:
    """A model repository that this token may write to; see `check_repository`.

    Attributes:
        repo_id: with its namespace.
        token: of the user, or None for the one that the client finds.
        private: for its creation; None takes the owner's default.
        revision: branch to push to, or None for the main one.
    """

    repo_id: str
    token: str | None = field(repr=False)
    private: bool | None = None
    revision: str | None = None

    @property
    def api(self) -> HfApi:
        return HfApi(token=self.token, library_name="hf_deit")

    @property
    def url(self) -> str:
        address = f"{constants.ENDPOINT}/{self.repo_id}"
        return address if self.revision is None else f"{address}/tree/{self.revision}"

    def create(self) -> None:
        """Creates the repository and its branch where they are not there yet.

        Raises:
            InputError: the Hub refuses.
        """

        def create() -> None:
            self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            if self.revision is not None:
                self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)

        try:
            ask(create, what=f"creating {self.repo_id}")
        except HUB_ERRORS as error:
            raise InputError(
                f"cannot create the repository {self.repo_id!r} ({why(error)}): try again, {_PUBLISH_LATER}"
            ) from error

    def head(self) -> str:
        """The commit that is now the last one.

        Raises:
            HUB_ERRORS: the Hub fails or is not there.
        """
        return self.api.model_info(self.repo_id, revision=self.revision).sha

    def upload(self, folder: str, message: str, *, parent: str) -> None:
        """Pushes a folder's files as one commit; none if all of them are there already.

        Args:
            folder: whose files are pushed, at any depth.
            message: of the commit.
            parent: from `head`. Refused if there is a newer one by then, so that a call that comes late, after another
                has taken its place, changes nothing.

        Raises:
            HUB_ERRORS: the Hub refuses, fails or is not there.
        """
        paths = sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)
        additions = [CommitOperationAdd(os.path.relpath(path, folder).replace(os.sep, "/"), path) for path in paths]
        # Not upload_folder, which may make several commits of one push.
        self.api.create_commit(
            self.repo_id, additions, commit_message=message, revision=self.revision, parent_commit=parent
        )

    def read_card(self, commit: str) -> str | None:
        """The text of its README.md, or None if it has none yet.

        Raises:
            HUB_ERRORS: the Hub fails or is not there.
        """
        try:
            path = self.api.hf_hub_download(self.repo_id, "README.md", revision=commit)
        except LocalEntryNotFoundError:  # which is an EntryNotFoundError, too
            raise
        except EntryNotFoundError:
            return None
        with open(path, encoding="utf-8") as file:
            return file.read()


_PUBLISH_LATER = "or train without --push_to_hub and publish later, with scripts/publish.py"


def check_repository(
    name: str, *, token: str | None = None, private: bool | None = None, revision: str | None = None
) -> HubRepository:
    """Checks, without creating anything, that a model can be pushed: endpoint, token, rights and name.

    Args:
        name: of the repository, with or without a namespace; without one it is the user's.
        token: of the user; by default the one that `hf auth login` or HF_TOKEN gives.
        private: whether it shall be private; None for the owner's default.
        revision: branch to push to.

    Raises:
        InputError: with what is wrong and how to mend it.
    """
    if constants.is_offline_mode():
        raise InputError(f"pushing needs the Hub, but HF_HUB_OFFLINE is set: unset it, {_PUBLISH_LATER}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{name!r} is no name for a repository ({first_line(error)}): give another one") from error
    if not (token or get_token()):
        raise InputError("pushing needs a token that may write, and there is none: hf auth login, or set HF_TOKEN")
    api = HfApi(token=token, library_name="hf_deit")
    try:
        user = ask(api.whoami, what=f"asking {constants.ENDPOINT} for the user")
    except HUB_ERRORS as error:
        if _status(error) in (401, 403):
            raise InputError(
                f"the Hub does not accept the token ({why(error)}): make one that may write at "
                f"{constants.ENDPOINT}/settings/tokens, then hf auth login or HF_TOKEN"
            ) from error
        raise InputError(
            f"cannot reach the Hub at {constants.ENDPOINT} ({why(error)}): try again, {_PUBLISH_LATER}"
        ) from error
    access = user.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise InputError(
            f"the token {access.get('displayName', '')!r} may only read: make one that may write at "
            f"{constants.ENDPOINT}/settings/tokens"
        )
    namespaces = {user["name"], *(org["name"] for org in user.get("orgs", ()) if org.get("roleInOrg") != "read")}
    repo_id = name if "/" in name else f"{user['name']}/{name}"
    repository = HubRepository(repo_id, token, private, revision)

    def existing() -> Any:
        try:
            found = api.model_info(repo_id)
            api.auth_check(repo_id, write=True)
        except GatedRepoError:  # which is a RepositoryNotFoundError, too
            raise
        except RepositoryNotFoundError:
            return None
        return found

    try:
        found = ask(existing, what=f"asking for {repo_id}")
    except HUB_ERRORS as error:
        raise InputError(
            f"{user['name']!r} may not write to {repo_id!r} ({why(error)}): take a token that may, another "
            f"--hub_model_id, {_PUBLISH_LATER}"
        ) from error
    if found is None and repo_id.split("/")[0] not in namespaces:
        raise InputError(
            f"{user['name']!r} can create repositories under {', '.join(sorted(namespaces))}, got {repo_id!r}: give "
            "another --hub_model_id"
        )
    if found is not None and private is not None and bool(found.private) != private:
        raise InputError(
            f"{repo_id!r} is {'private' if found.private else 'public'} already, expected the other: change it in its "
            "settings, or leave --hub_private_repo out"
        )
    return repository


def check_card(text: str) -> None:
    """Lets the Hub validate a model card.

    Raises:
        InputError: it finds faults with it.
        HUB_ERRORS: the Hub fails or is not there.
    """
    try:
        ModelCard(text, ignore_metadata_errors=False).validate(repo_type="model")
    except ValueError as error:
        raise InputError(f"the Hub does not accept the model card: {error}") from error


def resolve_revision(name_or_path: str, revision: str | None = None) -> str | None:
    """The commit that a branch or tag of a model on the Hub stands for; None for a folder, or if it is not there."""
    if os.path.exists(name_or_path):
        return None
    try:
        return extract_commit_hash(cached_file(name_or_path, "config.json", revision=revision), None)
    except OSError:  # whoever loads the model says what is wrong
        return None


def resolve_dataset_revision(name: str, revision: str | None = None) -> str | None:
    """The commit that a branch or tag of a data set on the Hub stands for; None offline, or for a local one.

    Raises:
        InputError: there is no such data set, no right to read it, or the Hub is not there.
    """
    if constants.is_offline_mode() or os.path.exists(name) or name.startswith("sklearn:"):
        return None
    if revision is not None and constants.REGEX_COMMIT_OID.match(revision):
        return revision
    try:
        return ask(lambda: HfApi().dataset_info(name, revision=revision).sha, what=f"asking for the data set {name}")
    except HFValidationError:
        return None  # no name on the Hub: load_dataset says what it makes of it
    except OfflineModeIsEnabled:
        return None
    except HUB_ERRORS as error:
        raise InputError(
            f"cannot find the data set {name!r}{f' at {revision!r}' if revision else ''} on the Hub ({why(error)}): "
            "check its name and your token; with HF_HUB_OFFLINE=1 a copy in the cache is taken"
        ) from error


def declared_datasets(repo_id: str, revision: str | None = None) -> list[str] | None:
    """The data sets that a model's card on the Hub names in its metadata; None if it does not say, or has no card."""
    try:
        path = cached_file(repo_id, "README.md", revision=revision)
        with open(path, encoding="utf-8") as file:
            names = ModelCard(file.read(), ignore_metadata_errors=True).data.datasets
    except (OSError, ValueError, TypeError):
        return None
    return [names] if isinstance(names, str) else names or None
