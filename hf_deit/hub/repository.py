"""A repository that this token may write to: checked before training, pushed to as one commit."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError, first_line
from .client import HUB_ERRORS, ask, status_of, why
from .files import files_below, read_text, regular_file

# What to do instead of pushing now, for messages: of whoever trains, and of whoever publishes what was trained.
AFTER_TRAINING = "or train without --push_to_hub and publish later, with hf-deit publish"
LATER = "or publish later"
RepoType = Literal["model", "dataset", "space"]
_ADDRESSES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass(frozen=True)
class HubRepository:
    """A repository on the Hub that this token may write to; see `check_repository`.

    Attributes:
        repo_id: with its namespace.
        token: of the user, or None for the one that the client finds.
        private: for its creation; None takes the owner's default.
        revision: branch to push to, or None for the main one.
        repo_type: whether it holds a model, a data set or, as a Space of static files, a page.
        instead: see `check_repository`.
    """

    repo_id: str
    token: str | None = field(repr=False)
    private: bool | None = None
    revision: str | None = None
    repo_type: RepoType = "model"
    instead: str = AFTER_TRAINING

    @property
    def api(self) -> HfApi:
        return HfApi(token=self.token, library_name="hf_deit")

    @property
    def url(self) -> str:
        address = f"{constants.ENDPOINT}/{_ADDRESSES[self.repo_type]}{self.repo_id}"
        return address if self.revision is None else f"{address}/tree/{self.revision}"

    def create(self) -> None:
        """Creates the repository and its branch where they are not there yet.

        Raises:
            InputError: the Hub refuses.
        """

        def create() -> None:
            sdk = "static" if self.repo_type == "space" else None
            kind = {"repo_type": self.repo_type, "space_sdk": sdk}
            self.api.create_repo(self.repo_id, private=self.private, exist_ok=True, **kind)
            if self.revision is not None:
                self.api.create_branch(self.repo_id, branch=self.revision, repo_type=self.repo_type, exist_ok=True)

        try:
            ask(create, what=f"creating {self.repo_id}")
        except HUB_ERRORS as error:
            raise InputError(
                f"cannot create the repository {self.repo_id!r} ({why(error)}): try again, {self.instead}"
            ) from error

    def head(self) -> str:
        """The commit that is now the last one.

        Raises:
            HUB_ERRORS: the Hub fails or is not there.
        """
        return self.api.repo_info(self.repo_id, revision=self.revision, repo_type=self.repo_type).sha

    def files(self, commit: str) -> set[str]:
        """The paths of the files of a commit.

        Raises:
            HUB_ERRORS: the Hub fails or is not there.
        """
        return {*self.api.list_repo_files(self.repo_id, revision=commit, repo_type=self.repo_type)}

    def commit(
        self, files: Mapping[str, str | bytes], message: str, *, parent: str, remove: Iterable[str] = ()
    ) -> CommitInfo:
        """Pushes files as one commit; none if all of them are there already.

        Args:
            files: by their path in the repository, the path here or the content.
            message: of the commit.
            parent: from `head`. Refused if there is a newer one by then, so that a call that comes late, after another
                has taken its place, changes nothing.
            remove: paths of files that are there and go with this commit.

        Returns:
            The commit, with its address `commit_url` and its hash `oid`, or the one that has the files already.

        Raises:
            HUB_ERRORS: the Hub refuses, fails or is not there.
        """
        # Not upload_folder, which may make several commits of one push.
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        removed = [CommitOperationDelete(name, is_folder=False) for name in sorted(remove)]
        return self.api.create_commit(
            self.repo_id,
            [*added, *removed],
            commit_message=message,
            repo_type=self.repo_type,
            revision=self.revision,
            parent_commit=parent,
        )

    def upload(
        self, folder: str | os.PathLike[str], message: str, *, parent: str, remove: Iterable[str] = ()
    ) -> CommitInfo:
        """`commit` of a folder's files, at any depth.

        Raises:
            InputError: one of them is no regular file of the folder.
            HUB_ERRORS: see `commit`.
        """
        files = {name: regular_file(folder, name) for name in files_below(folder)}
        return self.commit(files, message, parent=parent, remove=remove)

    def download(self, name: str, commit: str) -> str | None:
        """Where a file of a commit lies in the cache, or None if the commit has none of that name.

        Raises:
            HUB_ERRORS: the Hub fails or is not there.
        """
        try:
            return self.api.hf_hub_download(self.repo_id, name, revision=commit, repo_type=self.repo_type)
        except LocalEntryNotFoundError:  # which is an EntryNotFoundError, too
            raise
        except EntryNotFoundError:
            return None

    def read_card(self, commit: str) -> str | None:
        """The text of its README.md, or None if it has none yet.

        Raises:
            HUB_ERRORS: the Hub fails or is not there.
        """
        path = self.download("README.md", commit)
        return None if path is None else read_text(path)


def check_repository(
    name: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    repo_type: RepoType = "model",
    instead: str = AFTER_TRAINING,
    option: str = "--hub_model_id",
) -> HubRepository:
    """Checks, without creating anything, that a repository can be pushed to: endpoint, token, rights and name.

    Args:
        name: of the repository, with or without a namespace; without one it is the user's.
        token: of the user; by default the one that `hf auth login` or HF_TOKEN gives.
        private: whether it shall be private; None for the owner's default.
        revision: branch to push to.
        repo_type: whether it holds a model, a data set or, as a Space of static files, a page.
        instead: what to do instead of pushing now, for the messages.
        option: by which the name was given, for the messages.

    Raises:
        InputError: with what is wrong and how to mend it.
    """
    if constants.is_offline_mode():
        raise InputError(f"pushing needs the Hub, but HF_HUB_OFFLINE is set: unset it, {instead}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{name!r} is no name for a repository ({first_line(error)}): give another one") from error
    if not (token or get_token()):
        raise InputError("pushing needs a token that may write, and there is none: hf auth login, or set HF_TOKEN")
    api = HfApi(token=token, library_name="hf_deit")
    user = _writing_user(api, instead)
    namespaces = {user["name"], *(org["name"] for org in user.get("orgs", ()) if org.get("roleInOrg") != "read")}
    repo_id = name if "/" in name else f"{user['name']}/{name}"

    def existing() -> Any:
        try:
            found = api.repo_info(repo_id, repo_type=repo_type)
            api.auth_check(repo_id, repo_type=repo_type, write=True)
        except GatedRepoError:  # which is a RepositoryNotFoundError, too
            raise
        except RepositoryNotFoundError:
            return None
        return found

    try:
        found = ask(existing, what=f"asking for {repo_id}")
    except HUB_ERRORS as error:
        raise InputError(
            f"{user['name']!r} may not write to {repo_id!r} ({why(error)}): take a token that may, another {option}, "
            f"{instead}"
        ) from error
    if found is None and repo_id.split("/")[0] not in namespaces:
        raise InputError(
            f"{user['name']!r} can create repositories under {', '.join(sorted(namespaces))}, got {repo_id!r}: give "
            f"another {option}"
        )
    if found is not None and private is not None and bool(found.private) != private:
        raise InputError(
            f"{repo_id!r} is {'private' if found.private else 'public'} already, expected the other: change it in its "
            f"settings, or leave --hub_private_repo out"
        )
    return HubRepository(repo_id, token, private, revision, repo_type, instead)


def _writing_user(api: HfApi, instead: str) -> dict[str, Any]:
    """The user whose token it is, as the Hub describes them.

    Raises:
        InputError: the token is not accepted, or may only read; or the Hub is not there.
    """
    try:
        user = ask(api.whoami, what=f"asking {constants.ENDPOINT} for the user")
    except HUB_ERRORS as error:
        if status_of(error) in (401, 403):
            raise InputError(
                f"the Hub does not accept the token ({why(error)}): make one that may write at "
                f"{constants.ENDPOINT}/settings/tokens, then hf auth login or HF_TOKEN"
            ) from error
        raise InputError(
            f"cannot reach the Hub at {constants.ENDPOINT} ({why(error)}): try again, {instead}"
        ) from error
    access = user.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise InputError(
            f"the token {access.get('displayName', '')!r} may only read: make one that may write at "
            f"{constants.ENDPOINT}/settings/tokens"
        )
    return user


def check_card(text: str, repo_type: RepoType = "model") -> None:
    """Lets the Hub validate a card.

    Raises:
        InputError: it finds faults with it.
        HUB_ERRORS: the Hub fails or is not there.
    """
    try:
        ModelCard(text, ignore_metadata_errors=False).validate(repo_type=repo_type)
    except ValueError as error:
        raise InputError(f"the Hub does not accept the card: {error}") from error
