"""A repository that this token may write to: checked before training, pushed to as one commit."""

import os
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, get_token
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


_PUBLISH_LATER = "or train without --push_to_hub and publish later, with hf-deit publish"


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
        if status_of(error) in (401, 403):
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
