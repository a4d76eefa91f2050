"""What a zero-shot model is asked for: a text, or several, for each class."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import InputError, did_you_mean, shortlist
from ..class_names import composed
from .names import readable, without_meaning

# Seven of the 80 that CLIP's authors made for ImageNet, found by forward selection: a bit better than all of them
# (github.com/openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb). SigLIP's authors evaluate with CLIP's, too
# (github.com/google-research/big_vision, evaluators/proj/image_text/prompt_engineering_constants.py).
DEFAULT_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
# Of those that Chinese-CLIP's authors made for ImageNet (github.com/OFA-Sys/Chinese-CLIP, cn_clip/eval).
CHINESE_TEMPLATES = (
    "{}的照片",
    "质量差的{}的照片",
    "{}的低分辨率照片",
    "{}的裁剪照片",
    "{}的明亮照片",
    "一张干净的{}的照片",
    "一张包含{}的照片",
)
_REMEDY = "say what they look like with --class_prompts (prompts of load_teacher)"


@dataclass(frozen=True)
class Prompts:
    """The texts of each class.

    Attributes:
        names: of the classes, in the order of the labels.
        texts: of each class, in the same order; at least one.
        tokens: a digest of what a model's tokenizer makes of them, or None where none has been asked.
    """

    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    tokens: str | None = None

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        prompts: Mapping[str, str | Sequence[str]] | None = None,
        templates: str | Sequence[str] | None = None,
        *,
        usual_templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> "Prompts":
        """The texts of some classes.

        Args:
            names: of the classes, in the order of the labels.
            prompts: a text, or several, by name; in them, too, "{}" stands for the name. Of a class that is not there
                its name is put into the templates, made readable: "red_fox" is a "red fox" (`names.readable`).
            templates: sentences in which "{}" stands for a class's name.
            usual_templates: what they are where none are given.

        Raises:
            InputError: templates without "{}"; prompts of no class, or without text; names that say nothing to a
                model of texts and have no prompts; classes with the same texts; fewer than two classes.
        """
        names, templates = tuple(map(str, names)), checked_templates(templates, usual_templates)
        if len(names) < 2:
            raise InputError(
                f"a zero-shot model tells classes apart, and there is but {shortlist(names) or 'none'}: name two"
            )
        stated = _checked_prompts(prompts or {}, names)
        asked = [stated.get(composed(name), templates) for name in names]
        _refuse_without_meaning(
            [name for name, texts in zip(names, asked, strict=True) if any("{}" in text for text in texts)]
        )
        found = cls(names, tuple(_filled(name, texts) for name, texts in zip(names, asked, strict=True)))
        # Of two cranes, "crane (134)" and "crane (517)", the number says nothing.
        found.refuse_alike(
            _filled(re.sub(r" \(\d+\)$", "", name), texts) for name, texts in zip(names, asked, strict=True)
        )
        return found

    def spelt(self, spelling: Callable[[str], str]) -> "Prompts":
        """The same in a model's spelling.

        Raises:
            InputError: nothing is left of a text.
        """
        texts = tuple(tuple(map(spelling, own)) for own in self.texts)
        if lost := [name for name, own in zip(self.names, texts, strict=True) if not all(own)]:
            raise InputError(f"nothing is left of a text of {_listed(lost)} without punctuation: {_REMEDY}")
        return replace(self, texts=texts)

    def refuse_alike(self, read: Iterable[object], reader: str = "") -> None:
        """Refuses classes that a model cannot tell apart.

        Args:
            read: what stands for the texts of each class.
            reader: whom they are the same for, to follow "are the same".

        Raises:
            InputError: names two of which it is the same.
        """
        owners: dict[object, int] = {}
        for index, (name, what, texts) in enumerate(zip(self.names, read, self.texts, strict=True)):
            if (other := owners.setdefault(what, index)) != index:
                raise InputError(
                    f"the texts of the classes {self.names[other]!r} and {name!r} are the same{reader} "
                    f"({shortlist(texts, 2)}), so that they cannot be told apart: {_REMEDY}"
                )

    @property
    def digest(self) -> str:
        """Hexadecimal, of all texts in their order, and of what a tokenizer makes of them."""
        return hashlib.sha256(json.dumps([self.texts, self.tokens], ensure_ascii=False).encode()).hexdigest()


def _filled(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text.replace("{}", readable(name)) for text in texts)


def checked_templates(given: str | Sequence[str] | None, usual: Sequence[str] = DEFAULT_TEMPLATES) -> tuple[str, ...]:
    """Sentences for the names of classes; the usual ones where none are given.

    Raises:
        InputError: one lacks "{}", or there is none.
    """
    if given is None:
        return tuple(usual)
    templates = (given,) if isinstance(given, str) else tuple(given)
    without = [template for template in templates if not isinstance(template, str) or "{}" not in template]
    if without or not templates:
        raise InputError(
            f'templates must have "{{}}" where the name of a class goes, as "a photo of a {{}}." has, got '
            f"{shortlist(map(repr, without)) or 'none'}; texts of one class are given with --class_prompts (prompts "
            "of load_teacher)"
        )
    return templates


def _checked_prompts(given: Mapping[str, str | Sequence[str]], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The texts by the names in their composed form."""
    if not isinstance(given, Mapping):
        raise InputError(f"prompts must be a mapping of names to texts, got {type(given).__name__}")
    known = {composed(name) for name in names}
    found: dict[str, tuple[str, ...]] = {}
    for name, texts in given.items():
        if composed(name) not in known:
            near = did_you_mean(str(name), names)
            raise InputError(
                f"there are prompts for {name!r}, which is none of the {len(names)} classes ({shortlist(names)}){near}"
            )
        texts = (texts,) if not isinstance(texts, list | tuple) else tuple(texts)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(
                f"the prompts of the class {name!r} must be a text or a list of texts, got {given[name]!r}: leave the "
                "class out for the templates"
            )
        found[composed(name)] = texts
    return found


def _refuse_without_meaning(names: Sequence[str]) -> None:
    if found := without_meaning(names):
        kinds = shortlist(dict.fromkeys(found.values()), 3)
        raise InputError(
            f"a zero-shot model knows classes by their names, and some say nothing to it ({kinds}): {_listed(found)}. "
            f"Call the classes by words, or {_REMEDY}"
        )


def _listed(names: Iterable[str]) -> str:
    return shortlist(map(repr, names))
