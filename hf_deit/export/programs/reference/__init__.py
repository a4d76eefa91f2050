"""What goes beside a program that cannot hold its preprocessing: the same in Python and in JavaScript, to run or port.

The files are copied with the settings of a classifier in the place of those that they hold here.
"""

import ast
import json
import pprint
import re
from typing import Any

_IN_PYTHON = re.compile(r"^SETTINGS: dict\[str, Any\] = (\{.*\})  # end of SETTINGS$", re.DOTALL | re.MULTILINE)
_IN_JAVASCRIPT = re.compile(r"^  const SETTINGS = (\{.*\}); // end of SETTINGS$", re.DOTALL | re.MULTILINE)


def with_settings(text: str, settings: dict[str, Any]) -> str:
    """A reference preprocessor, in either language, for the settings of a classifier."""
    if found := _IN_PYTHON.search(text):
        written = pprint.pformat(settings, sort_dicts=False, width=110, compact=True)
    else:
        found = _IN_JAVASCRIPT.search(text)
        written = json.dumps(settings, ensure_ascii=False)
    return text[: found.start(1)] + written + text[found.end(1) :]


def settings_of(text: str) -> dict[str, Any]:
    """The settings of a reference preprocessor in Python, of which nothing is run.

    Raises:
        ValueError: it is none.
    """
    found = _IN_PYTHON.search(text)
    if found is None:
        raise ValueError("no SETTINGS were found in what should be a reference preprocessor")
    return ast.literal_eval(found[1])
