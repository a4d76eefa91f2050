"""How texts become the tokens of a zero-shot model: in the spelling, the padding and the length of its training."""

import hashlib
import inspect
import json
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ...errors import InputError, first_line, shortlist
from ..configuration_deit import warn_of_foreign_code, without_foreign_code
from ..pretrained import LOADING_ERRORS, path_of
from .prompts import Prompts

# Their text towers have seen texts of one length alone, and read a shorter one as another text.
_PADDED = ("siglip", "siglip2", "tipsv2")
_AT_ONCE = 256  # texts that are encoded together: memory must not grow with the number of classes
_UNBOUNDED = 10**9  # transformers' length of a tokenizer that states none


@dataclass(frozen=True)
class TextReader:
    """A model's tokenizer, and how it is asked.

    Attributes:
        name_or_path: of the model, for messages.
        tokenizer: of transformers.
        longest: tokens that the model takes, those that begin and end a text included.
        vocabulary: how many tokens the model knows.
        is_padded: whether each text is filled up to so many.
        is_plain: whether it has learnt small letters without punctuation.
    """

    name_or_path: str
    tokenizer: Any
    longest: int
    vocabulary: int
    is_padded: bool
    is_plain: bool

    @classmethod
    def of(cls, name_or_path: str, revision: str | None, config: Any) -> "TextReader":
        """Loads the tokenizer of a model; code that its files name is not run.

        Args:
            name_or_path: a Hub id or a folder.
            revision: branch, tag or commit.
            config: of the model, from `load_config`.

        Raises:
            InputError: there is none, or none that can be loaded.
        """
        try:
            _, left_out = without_foreign_code(get_tokenizer_config(name_or_path, revision=revision))
            warn_of_foreign_code(left_out)
            tokenizer = AutoTokenizer.from_pretrained(
                name_or_path, revision=revision, config=config, trust_remote_code=False
            )
            _check_vocabulary(name_or_path, revision, tokenizer)
        except LOADING_ERRORS as error:
            raise InputError(_not_loaded(name_or_path, error)) from error
        return cls(
            name_or_path,
            tokenizer,
            longest=_longest(tokenizer, config.text_config),
            vocabulary=config.text_config.vocab_size,
            is_padded=config.model_type in _PADDED,
            is_plain=_is_of_gemma(tokenizer),
        )

    def spelling(self, text: str) -> str:
        """A text as the model has learnt texts.

        SigLIP 2's have learnt small letters without punctuation, to which its tokenizer does not bring a text
        (google-research/big_vision, evaluators/proj/image_text/prompt_engineering.py, canonicalize_text).
        """
        if not self.is_plain:
            return text
        text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower()
        return re.sub(r"\s+", " ", text).strip()

    def read(self, prompts: Prompts) -> Prompts:
        """The prompts as the model is asked them, with the digest of their tokens.

        Raises:
            InputError: texts that are too long, or that are the same to it; a tokenizer of another model.
        """
        prompts = prompts.spelt(self.spelling)
        if self.tokenizer.pad_token is None:
            raise InputError(f"the tokenizer of {self.name_or_path!r} has no pad_token: name it in its files")
        rows = [tuple(map(tuple, self._rows(texts))) for texts in prompts.texts]
        lengths = {name: max(map(len, own)) for name, own in zip(prompts.names, rows, strict=True)}
        if long := [f"{name!r} ({length})" for name, length in lengths.items() if length > self.longest]:
            raise InputError(
                f"{self.name_or_path!r} reads {self.longest} tokens of a text, and there are longer ones of "
                f"{shortlist(long)}: shorten them"
            )
        if max(token for own in rows for row in own for token in row) >= self.vocabulary:
            raise InputError(
                f"the tokenizer of {self.name_or_path!r} has tokens that the model, which knows {self.vocabulary:,}, "
                "has not: save the one that it was trained with beside its weights (tokenizer.save_pretrained)"
            )
        prompts.refuse_alike(rows, f" to the tokenizer of {self.name_or_path!r}")
        asked = {"tokens": rows, "padded_to": self.longest if self.is_padded else None}
        return replace(prompts, tokens=hashlib.sha256(json.dumps(asked).encode()).hexdigest())

    def batches(self, texts: Sequence[str], model: Any) -> Iterator[dict[str, torch.Tensor]]:
        """What `model.get_text_features` takes for some texts, in parts."""
        taken = inspect.signature(model.get_text_features).parameters
        for start in range(0, len(texts), _AT_ONCE):
            tokens = self.tokenizer(
                list(texts[start : start + _AT_ONCE]),
                padding="max_length" if self.is_padded else True,
                max_length=self.longest if self.is_padded else None,
                truncation=False,
                return_tensors="pt",
            )
            yield {name: value.to(model.device) for name, value in tokens.items() if name in taken}

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), padding=False, truncation=False, verbose=False)["input_ids"]


def _check_vocabulary(name_or_path: str, revision: str | None, tokenizer: Any) -> None:
    """Refuses a tokenizer without its vocabulary: of some classes transformers makes one that knows no word.

    Raises:
        OSError: no file of a vocabulary is there.
    """
    names = {"tokenizer.json", *type(tokenizer).vocab_files_names.values()}
    if not any(path_of(name_or_path, name, revision) for name in sorted(names)):
        raise OSError(f"it has none of {', '.join(sorted(names))}")


def _not_loaded(name_or_path: str, error: Exception) -> str:
    if re.search("sentencepiece|protobuf", str(error), re.IGNORECASE):
        return (
            f"the tokenizer of {name_or_path!r} needs packages that are not there: pip install sentencepiece protobuf"
        )
    return (
        f"cannot load the tokenizer of the zero-shot model {name_or_path!r}, which reads the names of the classes "
        f"({first_line(error)}): save the one that it was trained with beside its weights (tokenizer.save_pretrained)"
    )


def _longest(tokenizer: Any, config: Any) -> int:
    """How many tokens a text tower takes, as its configuration and the tokenizer say it."""
    stated = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    if (
        "roberta" in config.model_type or "altclip" in config.model_type
    ):  # which count positions from behind the padding
        stated[0] -= (config.pad_token_id or 0) + 1
    return int(min((number for number in stated if number and number < _UNBOUNDED), default=_UNBOUNDED))


def _is_of_gemma(tokenizer: Any) -> bool:
    """Whether a tokenizer is Gemma's, which SigLIP 2 has; its models may be of SigLIP's type."""
    special = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token)
    return type(tokenizer).__name__.startswith(("Gemma", "Siglip2")) or special == ("<pad>", "<eos>", "<bos>")
