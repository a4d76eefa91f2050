"""What nobody foresaw: one line for whoever runs a command, and a file with the traceback for whoever mends it."""

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ..errors import printable

TRACEBACK_VARIABLE = "HF_DEIT_TRACEBACK"
_SMALLER = (
    "the memory is too small: give a smaller --per_device_train_batch_size (and as many times larger "
    "--gradient_accumulation_steps), --per_device_eval_batch_size, --image_size or --dataloader_num_workers"
)
# As torch says it of the CPU's memory, and of that which a loader's workers share.
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|insufficient shared memory", re.I)
_RECIPE_FILE = "recipe.yaml"  # of hub.run_folder, which brings torch: that may be what does not load
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TOKEN_OPTION = re.compile(r"--(?:\w+[-_])?token(?:=(.*))?", re.DOTALL)
_TOKEN_VARIABLE = re.compile(r"\w*TOKEN|\w+_API_KEY")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bapi_org_[A-Za-z0-9]{8,}|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")


def describe_unforeseen(error: BaseException, arguments: Sequence[str]) -> str:
    """Writes the traceback of an error into a file that its user alone can read, and says what has happened.

    The file lies in the output folder that the arguments name, if there is a run in it (in an empty one it would look
    like one), else among temporary files. With HF_DEIT_TRACEBACK=1 in the environment the traceback is shown, too.
    Tokens are left out of both.

    Args:
        error: what has ended a command.
        arguments: the command line.

    Returns:
        One line: kind of the error, what it says, what may help, and the file.
    """
    secrets = list(_secrets(arguments))
    text = _scrubbed(_traceback(error), secrets)
    if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        sys.stderr.write(f"\n{text}")
    file = _kept(text, arguments)
    where = f"its traceback is in {file}" if file else f"{TRACEBACK_VARIABLE}=1 in the environment shows its traceback"
    remedy = _remedy(error)
    said = _scrubbed(_said(error), secrets)
    return f"{type(error).__name__}: {said} ({f'{remedy}; ' if remedy else ''}this was not foreseen: {where})"


def _said(error: BaseException) -> str:
    """What an error says, in one line that a terminal shows as it is."""
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["it says nothing more"]
    except Exception:  # of a class whose own words fail
        lines = ["it cannot say what"]
    if lines[0].startswith("Weights only load failed"):  # and torch's advice to let the file run any code
        return "a file is damaged, or holds more than tensors"
    # Of what a loader's worker raised, the traceback comes first.
    line = lines[-1] if re.match(r"Caught \w+ in \w+", lines[0]) else lines[0]
    return printable(line[:500])


def _remedy(error: BaseException) -> str:
    """What may help, where that can be told from the kind of an error."""
    said = _said(error)
    # torch's own kind for a GPU's memory, without loading torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _OUT_OF_MEMORY.search(said):
        return _SMALLER
    if isinstance(error, OSError) and error.errno in _FULL:
        return "free some space"
    return ""


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as other:  # such as for want of memory
        return f"{type(error).__name__}, whose traceback cannot be written ({type(other).__name__})\n"


def _kept(text: str, arguments: Sequence[str]) -> str | None:
    """Where a traceback was written to; None if it cannot be."""
    folders = [folder for folder in _values(arguments, "output_dir", "output") if os.path.isdir(folder)]
    rank = os.environ.get("RANK", "0")
    for folder in [*(one for one in folders if os.path.isfile(os.path.join(one, _RECIPE_FILE))), None]:
        path = None
        try:
            descriptor, path = tempfile.mkstemp(".txt", f"hf_deit-traceback-{rank}-", folder)  # rights: 0600
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path
        except OSError:  # full, or not to be written to
            if path is not None and os.path.exists(path):
                os.remove(path)
    return None


def _values(arguments: Sequence[str], *names: str) -> Iterator[str]:
    """The values that a command line gives to an option."""
    options = {f"--{name}" for name in names}
    for argument, following in pairwise([*map(str, arguments), ""]):
        name, equals, value = argument.partition("=")
        if name.replace("-", "_").replace("__", "--", 1) in options:
            yield value if equals else following


def _secrets(arguments: Sequence[str]) -> Iterator[str]:
    """Tokens that the command line, the environment or the user's cache holds."""
    for argument, following in pairwise([*map(str, arguments), ""]):
        if match := _TOKEN_OPTION.fullmatch(argument):
            yield following if match[1] is None else match[1]
    yield from (value for name, value in os.environ.items() if _TOKEN_VARIABLE.fullmatch(name))
    if (client := sys.modules.get("huggingface_hub")) is not None:
        try:
            yield client.get_token() or ""
        except Exception:  # whatever keeps it from being read keeps it from being shown
            yield ""


def _scrubbed(text: str, secrets: Sequence[str]) -> str:
    """A text without secrets, and without what looks like a token or a password in an address."""
    for secret in sorted({secret for secret in secrets if len(secret) >= 8}, key=len, reverse=True):
        text = text.replace(secret, "[token]")
    return _TOKEN.sub("[token]", text)
