"""Names of classes as a model of texts reads them: what a name says, and which names say nothing."""

import re
import unicodedata
from collections.abc import Sequence

_SYNSET = r"n\d{8}"
# Words that name no class by themselves: with a number or a letter they number one.
_COUNTED = "class category label cls cluster group folder dir directory id idx index item object target type kind bin"
_NUMBERED = re.compile(rf"({'|'.join(_COUNTED.split())})([\W_]*\d+|[\W_]+([a-z]|[ivx]+))", re.IGNORECASE)
_LETTER_AND_NUMBER = re.compile(r"([a-z])[\W_]*\d+", re.IGNORECASE)
# Of at least eight digits, and not of letters alone: "fabaceae" is a family of plants.
_HASH = re.compile(r"(?=[a-z]*\d)(0x)?[0-9a-f]{8,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
# What data sets write before the names of their folders: "n02085620-Chihuahua", "001.Black_footed_Albatross".
_PREFIX = re.compile(rf"^({_SYNSET}[-_ ]+|\d+\.\s*|0\d+[-_]+)(?=.*[^\W\d_])")


def readable(name: str) -> str:
    """A name as it is put into a text: "red_fox" and "RedFox" are "red fox" and "Red Fox".

    Underscores are blanks. Hyphens are, too, where a name has no others, and no part of it is a single letter, as in
    "T-shirt". A number or a synset that data sets write before a name goes.
    """
    text = _PREFIX.sub("", unicodedata.normalize("NFC", name).strip())
    if not re.search(r"[\s_]", text):
        parts = text.split("-")
        if len(parts) > 1 and all(len(part) > 1 for part in parts) and any(map(_has_letter, parts)):
            text = " ".join(parts)
        elif re.fullmatch(r"([A-Z][a-z]{2,}){2,}", text):
            text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return " ".join(text.replace("_", " ").split())


def without_meaning(names: Sequence[str]) -> dict[str, str]:
    """The names that say nothing of what is in an image, each with what it is.

    Args:
        names: of all classes, as one name with a number may be one (an F-16), and ten of them are none.
    """
    found = {name: kind for name in names if (kind := _kind(name.strip()) or _kind(readable(name)))}
    rest = [name for name in names if name not in found]
    letters = {match and match[1].lower() for match in map(_LETTER_AND_NUMBER.fullmatch, map(str.strip, rest))}
    if len(rest) > 1 and len(letters) == 1 and None not in letters:
        found |= dict.fromkeys(rest, "a letter with a number")
    return found


def _kind(name: str) -> str | None:
    if not name:
        return "an empty name"
    if re.fullmatch(_SYNSET, name):
        return "the number of a synset of WordNet"
    if _HASH.fullmatch(name):
        return "a hash"
    if not _has_letter(name):
        return "a number" if any(map(str.isnumeric, name)) else "a mark"
    if _NUMBERED.fullmatch(name):
        return "the number of a class"
    # Of Chinese, say, one character is a word.
    if len(name) == 1 and unicodedata.category(name) != "Lo":
        return "a letter"
    return None


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))
