"""A page on which a model is tried, as a Space of static files on the Hub, that names the model it is of."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError, PublishError, command, counted, one_line, shortlist
from .card import joined_card, split_card
from .client import HUB_ERRORS, ask, why
from .files import open_regular, read_json, read_text, regular_file
from .foreign_json import without_paths
from .markdown import escape_markdown
from .record import model_files
from .repository import HubRepository, check_card, check_repository
from .run_folder import CARD_FILE

PAGE_FILE, PAGE_RECORD = "index.html", "page.json"
BEGIN = "<!-- Written by hf-deit demo, and written anew with the next page. What stands outside is kept. -->"
END = "<!-- End of what hf-deit demo has written. -->"
_INSTEAD = "or open index.html from its folder"
_ATTRIBUTES = ".gitattributes"  # the Hub's own
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}/){0,3}[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}")
# Of the lines that a card shows: the name under which a run's model is published.
_NAMED = re.compile(r'pipeline\("image-classification", model="([\w.-]+/[\w.-]+)"')
_LABELS_LISTED = 20


@dataclass(frozen=True)
class ModelOnHub:
    """A published model.

    Attributes:
        repo_id: on the Hub.
        is_private: whether others see it.
        licence: as its card's metadata say it, or None.
    """

    repo_id: str
    is_private: bool
    licence: str | None


def check_space_repository(name: str, *, token: str | None = None, private: bool | None = None) -> HubRepository:
    """Checks that a Space can be pushed to, whatever it holds; see `check_repository`.

    Raises:
        InputError: it cannot.
    """
    return check_repository(
        name, token=token, private=private, repo_type="space", instead=_INSTEAD, option="--to_space"
    )


def to_space(
    folder: str | os.PathLike[str],
    name: str,
    *,
    model: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    overwrite: bool = False,
    seconds: float = 600.0,
) -> HubRepository:
    """Publishes a page as a static Space, as one commit, once folder and Space have been checked.

    A Space that holds something else is refused, and so is the page of another model. Of an earlier page its files go;
    others stay, and so does what people have written into its README.md.

    Args:
        folder: of the page, with index.html, and with page.json, which lists its files: nothing else is published.
        name: of the Space, with or without a namespace; it is created if it is not there.
        model: that the page is of, a Hub id or a folder. The Space is linked to it where it is on the Hub: that of a
            folder is looked for under the name in its card and under the folder's, and known by its weights.
        token, private: see `check_repository`.
        overwrite: whether a Space that holds something else becomes this page; all in it goes, and stays in the
            commits before.
        seconds: after which the push is given up.

    Raises:
        InputError: the folder holds no page, or not as it was made; or the Space cannot be used.
        PublishError: the Hub refuses, fails or is not there.
    """
    record, files = _page(folder)
    repository = check_space_repository(name, token=token, private=private)
    repository.create()

    def push() -> None:
        head = repository.head()
        there = repository.files(head)
        before = _earlier_page(repository, head, there)
        is_new = len(repository.api.list_repo_commits(repository.repo_id, repo_type="space")) == 1
        linked, card = _linked(repository, model), None
        if not (is_new or overwrite):
            card = repository.read_card(head) or ""
            if (other := _other_content(before, record, there, card, linked)) is not None:
                raise InputError(
                    f"the Space {repository.repo_id!r} holds {other}: give another --to_space, or --overwrite_space "
                    "to replace all of it (its earlier commits stay)"
                )
        text = _card(card, repository, record, linked)
        check_card(text, "space")
        content: dict[str, str | bytes] = {
            **files,
            CARD_FILE: text.encode(),
            PAGE_RECORD: (json.dumps(_published(record), indent=2, ensure_ascii=False) + "\n").encode(),
        }
        earlier = {*(before or {}).get("files", ())} if card is not None else there - {_ATTRIBUTES}
        repository.commit(content, "A page to try the model", parent=head, remove=(earlier & there) - content.keys())

    try:
        ask(push, what=f"pushing the page to {repository.repo_id}", seconds=seconds)
    except InputError:
        raise
    except HUB_ERRORS as error:
        raise PublishError(
            f"the page lies whole in {os.fspath(folder)!r}, but could not be pushed to {repository.url} "
            f"({why(error)}): try again with {command('demo', '--to_space', repository.repo_id)} and the options that "
            "made it"
        ) from error
    return repository


def _page(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What is known of a page, and where its files lie, by their names in it.

    Raises:
        InputError: it is none, or not as it was made.
    """
    try:
        record = read_json(regular_file(folder, PAGE_RECORD))
        files = _digests(record)
        if PAGE_FILE not in files or {CARD_FILE, PAGE_RECORD} & files.keys():
            raise ValueError(f"expected {PAGE_FILE} among its files, and neither {CARD_FILE} nor {PAGE_RECORD}")
        paths = {name: regular_file(folder, name) for name in files}
        for name, path in paths.items():
            with open_regular(path) as file:
                if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != files[name]:
                    raise ValueError(f"{name} is not as it was made")
    except (OSError, ValueError) as error:
        raise InputError(
            f"there is no page in {os.fspath(folder)!r} that can be published ({one_line(error)}): make it again, "
            "with hf-deit demo"
        ) from error
    return record, paths


def _published(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a page: no local path; but a label may look like one."""
    return without_paths(record) | {name: record[name] for name in ("labels",) if name in record}


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    """The files of a page, from whomever, with their digests.

    Raises:
        ValueError: they are none.
    """
    files = record.get("files")
    if not isinstance(files, dict) or not all(map(_NAME.fullmatch, files)):
        raise ValueError(f"its {PAGE_RECORD} lists no files of a page")
    return files


def _earlier_page(repository: HubRepository, head: str, there: Set[str]) -> dict[str, Any] | None:
    """What is known of the page that a Space holds; None if it holds another's."""
    path = repository.download(PAGE_RECORD, head) if {PAGE_RECORD, PAGE_FILE, CARD_FILE} <= there else None
    if path is None or BEGIN not in (repository.read_card(head) or ""):
        return None
    with suppress(OSError, ValueError):
        record = read_json(path)
        return {**record, "files": _digests(record)}
    return None


def _other_content(
    before: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    there: Set[str],
    card: str,
    model: ModelOnHub | None,
) -> str | None:
    """What a Space holds, in words, if it is anything but a page of the same model; None if it is that."""
    if before is None:
        return f"something else ({shortlist(sorted(there - {_ATTRIBUTES}))})"
    if before.get("labels") != record.get("labels"):
        return "the page of a model with other labels"
    named = split_card(card)[0].get("models")
    if model is not None and named and isinstance(named, list) and model.repo_id not in named:
        return f"the page of {shortlist(named)}"
    return None


# What it says of its model


def _linked(repository: HubRepository, model: str | None) -> ModelOnHub | None:
    """The model that the Space names: none that its visitors cannot know of."""
    found = None if model is None else published_model(model, repository.api, repository.repo_id.split("/")[0])
    if found is not None and found.is_private:
        space = repository.api.repo_info(repository.repo_id, repo_type="space")
        return found if space.private else None
    return found


def published_model(model: str, api: HfApi, namespace: str) -> ModelOnHub | None:
    """A model as it is on the Hub; None if it is not known to be there.

    Args:
        model: a Hub id, perhaps with "@revision", or a folder, whose weights are looked for: under the name that its
            card has, and under that of the folder in the namespace.
    """
    if not os.path.isdir(model):
        return _asked(api, model.partition("@")[0], {})
    card = read_text(os.path.join(model, CARD_FILE)) or ""
    named = _NAMED.findall(card)
    weights = dict(_weights(model))
    names = dict.fromkeys([*named, f"{namespace}/{os.path.basename(os.path.abspath(model))}"])
    found = (_asked(api, name, weights) for name in names) if weights else ()
    return next((known for known in found if known is not None), None)


def _weights(folder: str) -> Iterator[tuple[str, str]]:
    for name in model_files(folder):
        if name.endswith(".safetensors"):
            with open_regular(os.path.join(folder, name)) as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest()


def _asked(api: HfApi, name: str, weights: Mapping[str, str]) -> ModelOnHub | None:
    """A repository of the Hub, if there is one of that name with these weights."""
    try:
        validate_repo_id(name)
        info = api.model_info(name, files_metadata=True)
    except (HFValidationError, *HUB_ERRORS):
        return None
    there = {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs is not None}
    if any(there.get(file) != digest for file, digest in weights.items()):
        return None
    licence = getattr(info.card_data, "license", None)
    return ModelOnHub(name, bool(info.private), licence if isinstance(licence, str) else None)


def _card(existing: str | None, repository: HubRepository, record: Mapping[str, Any], model: ModelOnHub | None) -> str:
    """The README.md of the Space, by whose metadata the Hub serves it."""
    kept, text = split_card(existing or "")
    title = repository.repo_id.split("/")[-1]
    metadata = {
        "title": title,
        "emoji": "🔍",
        "colorFrom": "blue",
        "colorTo": "green",
        "pinned": False,
        "short_description": "An image classifier that runs in your browser",
        **kept,
        "sdk": "static",
        "app_file": PAGE_FILE,
        "tags": _united(["image-classification", "hf_deit"], kept.get("tags")),
    }
    if model is not None:
        metadata["models"] = _united([model.repo_id], kept.get("models"))
        if model.licence is not None:
            metadata["license"] = model.licence
    labels = record.get("labels")
    labels = [str(label) for label in labels] if isinstance(labels, list) else []
    of = "" if model is None else f" It is [{model.repo_id}](https://huggingface.co/{model.repo_id})."
    parts = [
        f"# {escape_markdown(title)}",
        f"An image classifier with {counted(len(labels), 'label')} that runs in the browser of whoever opens this "
        f"page: no image leaves it.{of} Made with `hf-deit demo`.",
    ]
    if 0 < len(labels) <= _LABELS_LISTED:
        parts.append(f"Its labels: {', '.join(map(escape_markdown, labels))}.")
    block = "\n\n".join([BEGIN, *parts, END])
    start, end = text.find(BEGIN), text.rfind(END)
    body = text[:start] + block + text[end + len(END) :] if 0 <= start < end else f"{block}\n"
    return joined_card(metadata, body)


def _united(ours: list[str], theirs: Any) -> list[str]:
    return list(dict.fromkeys([*ours, *(theirs if isinstance(theirs, list) else [])]))
