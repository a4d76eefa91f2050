"""Publishing the folder of a model: it is checked as its users will load it, and pushed."""

import os
from collections.abc import Collection
from contextlib import ExitStack, suppress

from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..errors import InputError, first_line, shortlist
from ..models.class_names import unique_names
from ..models.extent import check_extent
from ..models.modeling_common import quantized_types
from ..models.pretrained import LOADING_ERRORS, absent_weights, load_config, load_image_processor
from .card import card_faults
from .files import read_json, read_text
from .publisher import Publisher
from .record import published_files, read_facts, read_history, stage
from .repository import LATER, HubRepository, check_repository
from .run_folder import CARD_FILE, STATE_FILE, last_whole_checkpoint
from .run_lock import hold


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Refuses a folder that cannot be published as it is: everything is loaded as its users will load it.

    Raises:
        InputError: no configuration, no weights or not all of them, an image processor or labels that do not fit, a
            card that is missing or not complete, a run that is not finished, something else than regular files of it.
    """
    folder = os.fspath(folder)
    names = published_files(folder)
    if "config.json" not in names:
        checkpoint = last_whole_checkpoint(folder) if os.path.isdir(folder) else None
        raise InputError(
            f"there is no model in {folder!r}: "
            + (
                f"its run is not finished; go on with it, with --resume_from_checkpoint {checkpoint}"
                if checkpoint
                else "expected a folder with config.json and model.safetensors, or one of kept labels, with store.json"
            )
        )
    facts = read_facts(folder)
    if facts is not None and not facts.is_finished:
        raise InputError(f"the run in {folder!r} stands at step {facts.step} of {facts.num_steps}: finish it first")
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"there are no weights in {folder!r}, expected model.safetensors: save it with save_pretrained"
        )
    _check_references(folder, names)
    _check_processor(folder, _check_weights(folder).config)
    if facts is None:
        text = read_text(os.path.join(folder, CARD_FILE))
        if text is None:
            raise InputError(f"{folder!r} has no {CARD_FILE}: write a model card first")
        faults = card_faults(text)
        if faults:
            raise InputError(f"the card {CARD_FILE} in {folder!r} is not complete: {'; '.join(faults)}")


def _check_references(folder: str, names: Collection[str]) -> None:
    """Refuses a model whose files send their readers to others, which are not published with them."""
    wanted: set[object] = set()
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # whoever loads it says what is wrong
        wanted |= {*(read_json(os.path.join(folder, "config.json")).get("configuration_files") or ())}
        if SAFE_WEIGHTS_NAME not in names:
            wanted |= {*read_json(os.path.join(folder, SAFE_WEIGHTS_INDEX_NAME))["weight_map"].values()}
    if absent := sorted(map(str, wanted.difference(names))):
        raise InputError(
            f"the model in {folder!r} consists of files that are not published, {shortlist(absent)}: save it anew, "
            "with save_pretrained"
        )


def _check_weights(folder: str) -> PreTrainedModel:
    try:
        config = load_config(folder)
        check_extent(folder, config)
        if types := quantized_types(folder):
            raise InputError(
                f"the weights in {folder!r} are quantised ({', '.join(types)}), and how is not published, as it leads "
                "to others' code: save model.dequantize()"
            )
        model, info = AutoModelForImageClassification.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except InputError:
        raise
    except LOADING_ERRORS as error:
        raise InputError(f"the model in {folder!r} does not load ({first_line(error)}): save it anew") from error
    absent = absent_weights(info)
    if absent:
        raise InputError(f"the weights in {folder!r} are not whole, they lack {shortlist(absent, 4)}: save them anew")
    weights = {name: weight for name, weight in model.state_dict().items() if weight.is_floating_point()}
    spoilt = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if spoilt:
        raise InputError(f"the weights in {folder!r} are not finite ({spoilt[0]}): the training has diverged")
    return model


def _check_processor(folder: str, config: PreTrainedConfig) -> None:
    size = load_image_processor(folder, None, config).to_dict()
    size = size.get("crop_size") or size.get("size") or {}
    wanted = getattr(config, "image_size", None)
    if isinstance(wanted, int) and size.get("height") not in (None, wanted):
        raise InputError(
            f"the image processor in {folder!r} makes {size['height']} pixels, the model takes {wanted}: save the "
            "processor that it was trained with beside it"
        )
    unique = unique_names(config.id2label)
    if told_apart := [name for index, name in unique.items() if name != str(config.id2label[index])]:
        raise InputError(
            f"config.json in {folder!r} has labels that share a name: mend its id2label and label2id, say with "
            f"{shortlist(told_apart, 4)}"
        )


def publish_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    seconds: float = 600.0,
) -> HubRepository:
    """Pushes a model with its card and the record of its run, once the folder and the repository have been checked.

    Args:
        folder: of a finished run, or of any classifier with a card.
        repo_id: name of the repository, which is created if it is not there.
        token, private, revision: see `check_repository`.
        seconds: after which the push is given up.

    Raises:
        InputError: the folder or the repository cannot be used, or a run is at work in the folder.
        PublishError: the Hub refuses, fails or is not there.
    """
    with ExitStack() as stack:
        if os.path.isdir(folder):
            with suppress(OSError):  # where nothing can be written no run is at work, and the push says why
                stack.enter_context(hold(folder))
        check_folder(folder)
        repository = check_repository(repo_id, token=token, private=private, revision=revision, instead=LATER)
        repository.create()
        history = read_history(os.path.join(folder, STATE_FILE))
        publisher = Publisher(repository, folder, seconds=seconds, history=lambda: history)
        publisher.finish(lambda tree: stage(folder, tree), "Upload of a trained model")
    return repository
