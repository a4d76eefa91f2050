"""What libraries say while a command runs: not what takes no time, nor what a user can do nothing about."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_ASK_FOR_MESSAGES = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY")
_BAR_DELAY = 2.0  # seconds
_NOT_FOR_USERS = {
    # It then sorts checkpoints by their number, which is what their times would say.
    "transformers.trainer_utils": "mtime may not be reliable on this filesystem",
    # Of a CPU, whenever something is compiled for it.
    "torch.utils.cpp_extension": "No CUDA runtime is found, using CUDA_HOME",
}
# As torchao is loaded, which transformers does wherever it is installed.
_AS_LIBRARIES_ARE_LOADED = {"torch.utils._pytree": "Calling register_constant() on Enum subclasses is deprecated"}
_SAYS_IT_OFTEN = "huggingface_hub.utils._http"  # for every file that it asks for where there is no network


def quiet_loading() -> None:
    """Leaves out what libraries say to each other's authors while they are loaded; call it before they are."""
    if any(name in os.environ for name in _ASK_FOR_MESSAGES):
        return
    for name, part in _AS_LIBRARIES_ARE_LOADED.items():
        logging.getLogger(name).addFilter(lambda record, part=part: part not in record.getMessage())


@contextmanager
def quiet_libraries(arguments: Sequence[str] = ()) -> Iterator[None]:
    """Leaves out bars of what takes no time, and messages that no user can do anything about.

    TRANSFORMERS_VERBOSITY, DATASETS_VERBOSITY or `--log_level` leave everything as the libraries have it.

    Args:
        arguments: of the command.
    """
    is_asked_for = any(argument.replace("-", "_").startswith("__log_level") for argument in arguments)
    if is_asked_for or any(name in os.environ for name in _ASK_FOR_MESSAGES):
        yield
        return
    from transformers.utils.logging import set_tqdm_hook

    before = set_tqdm_hook(_patient_bar)
    bars_of_datasets = _disable_bars_of_datasets()
    filters = [(logging.getLogger(name), _without(start)) for name, start in _NOT_FOR_USERS.items()]
    filters.append((logging.getLogger(_SAYS_IT_OFTEN), _once()))
    for logger, function in filters:
        logger.addFilter(function)
    try:
        yield
    finally:
        set_tqdm_hook(before)
        bars_of_datasets()
        for logger, function in filters:
            logger.removeFilter(function)


def _disable_bars_of_datasets() -> Callable[[], None]:
    """Also of those of a moment, as they cannot be told to wait; gives what enables them again.

    Downloads are huggingface_hub's, and keep theirs on a terminal.
    """
    datasets = sys.modules.get("datasets")  # what has not loaded it has no use for it
    if datasets is None or "HF_DATASETS_DISABLE_PROGRESS_BARS" in os.environ:
        return lambda: None
    if not datasets.utils.are_progress_bars_disabled():
        datasets.utils.disable_progress_bars()
        return datasets.utils.enable_progress_bars
    return lambda: None


def _patient_bar(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A bar of what takes longer than a moment, where somebody looks."""
    is_off = kwargs.get("disable") or not sys.stderr.isatty()
    return factory(*args, **{**kwargs, "delay": _BAR_DELAY, "disable": is_off})


def _without(start: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: not record.getMessage().startswith(start)


def _once() -> Callable[[logging.LogRecord], bool]:
    said = set()

    def is_new(record: logging.LogRecord) -> bool:
        before = len(said)
        said.add(record.getMessage())
        return len(said) > before

    return is_new
