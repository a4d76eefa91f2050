"""The heads of a classifier with a distillation token: what each is called in outputs, in metrics and in words."""

from typing import NamedTuple


class Head(NamedTuple):
    """One answer of a model.

    Attributes:
        field: of the model's output, (B, K) logits.
        prefix: of its metrics: with "class_" the accuracy "top1" becomes "class_top1".
        words: for people.
    """

    field: str
    prefix: str
    words: str


FUSED = Head("logits", "", "fused heads")  # what the published model answers; the only one of a model with one head
CLASS = Head("cls_logits", "class_", "class head")
DISTILLATION = Head("distillation_logits", "distillation_", "distillation head")
HEADS = (FUSED, CLASS, DISTILLATION)
# What transformers alone makes of the heads, measured where that is not what the model answers ("softmax").
PLAIN = Head("plain_logits", "plain_", "transformers alone, which averages the logits")
MEASURED = (*HEADS, PLAIN)
_ANSWERS = {
    "softmax": "fused heads, by softmax",
    "cls": "the model, by its class head",
    "distillation": "the model, by its distillation head",
}


def words_of_answer(fusion: str | None) -> str:
    """What the answer of a model with two heads is called, by the `fusion` of its configuration."""
    return _ANSWERS.get(fusion, FUSED.words)
