"""Quick looks at the Hub before a run knows what it will be: each ends within seconds, and may bring nothing."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import huggingface_hub.constants
from huggingface_hub import HfApi, try_to_load_from_cache

from .client import HUB_ERRORS, ask

_SECONDS = 5.0  # for an answer; the Hub is asked once
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Rows(NamedTuple):
    """What a data set says of a split: its rows, and the classes of its labels, 0 if that is not said."""

    count: int
    num_classes: int


def has_weights(name: str, revision: str | None = None) -> bool:
    """Whether a model can be loaded: it is a folder, lies in the cache, or the Hub answers that it has it.

    Args:
        name: a folder or a Hub id.
        revision: branch, tag or commit.
    """
    if os.path.isdir(name):
        return True
    files = ("config.json", *_WEIGHTS)
    in_cache = {file: isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in files}
    if in_cache["config.json"] and any(in_cache[file] for file in _WEIGHTS):
        return True
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        _asked(lambda: HfApi().model_info(name, revision=revision, timeout=_SECONDS), name)
    except (*HUB_ERRORS, TimeoutError):
        return False
    return True


def rows_of(name: str, split: str, config_name: str | None = None, revision: str | None = None) -> Rows | None:
    """How many rows a data set on the Hub says that a split has; None if it does not say so, or does not answer.

    Args:
        name: its Hub id.
        split, config_name, revision: which part of it.
    """
    try:
        if huggingface_hub.constants.HF_HUB_OFFLINE:  # it may lie in the cache, whose builder knows
            import datasets  # which takes its time

            info = datasets.load_dataset_builder(name, config_name, revision=revision).info
            label = next((one for one in info.features.values() if isinstance(one, datasets.ClassLabel)), None)
            return Rows(info.splits[split].num_examples, 0 if label is None else label.num_classes)
        card = _asked(lambda: HfApi().dataset_info(name, revision=revision, timeout=_SECONDS), name).card_data
        stated = card.get("dataset_info")
        configs = stated if isinstance(stated, list) else [stated]
        wanted = [one for one in configs if config_name in (None, one.get("config_name"))]
        (config,) = wanted if len(wanted) == 1 else [one for one in wanted if one.get("config_name") == "default"]
        (rows,) = (part["num_examples"] for part in config["splits"] if part["name"] == split)
        return Rows(int(rows), max((_num_classes(feature) for feature in config["features"]), default=0))
    except (*HUB_ERRORS, TypeError, AttributeError, LookupError):
        return None


def _num_classes(feature: Mapping[str, Any]) -> int:
    """Of a column as a data set's card describes it."""
    kind = feature.get("dtype")
    names = kind.get("class_label", {}).get("names") if isinstance(kind, Mapping) else None
    return len(names or ())


def _asked(question: Any, name: str) -> Any:
    return ask(question, what=f"looking for {name}", seconds=0.0)
