"""Which commit a name on the Hub stands for, and what its card says of it."""

import os
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from transformers.utils import cached_file

from ..errors import InputError
from .card import split_card
from .client import HUB_ERRORS, ask, why


def resolve_dataset_revision(name: str, revision: str | None = None) -> str | None:
    """The commit that a branch, tag or commit of a data set on the Hub stands for.

    Args:
        name: Hub id of the data set, or a local one.
        revision: None for the main branch.

    Returns:
        The commit; None offline, or for a data set that is not on the Hub.

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
    """The data sets that a model was trained on, by its card on the Hub; None if it has no card that says so."""
    return _texts(_metadata_of(repo_id, revision).get("datasets")) or None


def declared_license(name_or_path: str, revision: str | None = None) -> str | None:
    """The licence of a model, by its card on the Hub or in its folder; None if it has no card that says so.

    Of one that has no short name on the Hub ("other") the name and the address that the card gives.
    """
    metadata = _metadata_of(name_or_path, revision)
    names = ", ".join(_texts(metadata.get("license")))
    if names != "other":
        return names or None
    named, link = (", ".join(_texts(metadata.get(key))) for key in ("license_name", "license_link"))
    return f"{named or 'other'} ({link})" if link else named or names


def _metadata_of(name_or_path: str, revision: str | None) -> dict[str, Any]:
    """What a model's card states for machines; empty if there is no card, or none that can be read."""
    try:
        path = cached_file(name_or_path, "README.md", revision=revision)
        with open(path, encoding="utf-8") as file:
            return split_card(file.read())[0]
    except (OSError, ValueError):
        return {}


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
