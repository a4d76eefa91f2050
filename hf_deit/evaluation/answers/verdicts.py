"""How the logits of a model's heads become answers, and what is kept of each answer in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp

# Names of the logits that are kept of a model: of one with a distillation token both heads', of another its answer.
CLASS, DISTILLATION, SINGLE = "class", "distillation", "answer"


@dataclass(frozen=True)
class Rule:
    """A way to answer with the logits of a model's heads: a row of the paper's Table 3.

    Attributes:
        key: in results.json: "class", "distillation", "logits", "softmax", or "answer" of a model with one head.
        words: for people.
    """

    key: str
    words: str

    def scores(self, logits: Mapping[str, np.ndarray]) -> np.ndarray:
        """Of each class the logarithm of its probability, up to a constant of each image.

        Args:
            logits: of the heads, (B, K) each, by `CLASS` and `DISTILLATION`, or `SINGLE` alone.

        Returns:
            (B, K) float64.
        """
        if self.key == "logits":
            return (logits[CLASS].astype(np.float64) + logits[DISTILLATION]) / 2
        if self.key == "softmax":  # the paper adds the two softmaxes
            heads = [log_softmax(logits[name].astype(np.float64), axis=1) for name in (CLASS, DISTILLATION)]
            return np.logaddexp(*heads)
        return logits[self.key].astype(np.float64)


CLASS_HEAD = Rule(CLASS, "class head")
DISTILLATION_HEAD = Rule(DISTILLATION, "distillation head")
MEAN_OF_LOGITS = Rule("logits", "both heads, mean of logits")
SUM_OF_SOFTMAXES = Rule("softmax", "both heads, sum of softmaxes")
SINGLE_HEAD = Rule(SINGLE, "its answer")
RULES_OF_TWO_HEADS = (CLASS_HEAD, DISTILLATION_HEAD, MEAN_OF_LOGITS, SUM_OF_SOFTMAXES)
# The rule by which a model with two heads answers, by the `fusion` of its configuration.
RULE_OF_FUSION = {
    "logits": MEAN_OF_LOGITS,
    "softmax": SUM_OF_SOFTMAXES,
    "cls": CLASS_HEAD,
    "distillation": DISTILLATION_HEAD,
}


@dataclass(frozen=True)
class Verdicts:
    """What a model answers to N images by one rule, without its logits: some bytes of each image.

    Attributes:
        model: its short name.
        rule: by which it answers.
        ranked: (N, min(5, K)) int32, its best classes, best first.
        confidence: (N,) float64 in [0, 1], the probability of the best.
        margin: (N,) float64 in [0, 1], the probability of the best less that of the second.
    """

    model: str
    rule: Rule
    ranked: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray

    @property
    def decisions(self) -> np.ndarray:
        """(N,) int32, the best class of each image."""
        return self.ranked[:, 0]

    @property
    def name(self) -> str:
        """The model and, of a model with several rules, the rule."""
        return self.model if self.rule == SINGLE_HEAD else f"{self.model}, {self.rule.words}"

    @property
    def words(self) -> str:
        """The same within a sentence."""
        return self.model if self.rule == SINGLE_HEAD else f"{self.model} ({self.rule.words})"


def verdicts_of(model: str, rule: Rule, chunks: Iterable[Mapping[str, np.ndarray]]) -> Verdicts:
    """The verdicts of a model by a rule.

    Args:
        model: its short name.
        chunks: logits of the heads of one image after the other, (n, K) each, see `Rule.scores`.
    """
    ranked, confidence, margin = [], [], []
    for logits in chunks:
        scores = rule.scores(logits)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        top = np.take_along_axis(scores, best[:, :2], axis=1) - logsumexp(scores, axis=1, keepdims=True)
        probabilities = np.exp(top)
        ranked.append(best.astype(np.int32))
        confidence.append(probabilities[:, 0])
        margin.append(probabilities[:, 0] - (probabilities[:, 1] if probabilities.shape[1] > 1 else 0))
    return Verdicts(model, rule, np.concatenate(ranked), np.concatenate(confidence), np.concatenate(margin))
