"""Whether a model is as often right as it is sure, and how often it is where it is surest."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, exp, log
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import brentq
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from ...errors import counted, shortlist
from ..answers.answers import Answers
from ..answers.verdicts import SUM_OF_SOFTMAXES, Rule
from ..images.labels import Labels
from ..pictures import COLOURS, as_png, drawing, look_of, name_in_picture
from ..sections import Cell, Estimate, Picture, Section, Table
from .intervals import wilson

BINS = 15  # of confidence, all as wide: as Guo et al. (2017) have
TEMPERATURES = (0.01, 100.0)  # between which the best is looked for
_STEP = log(4)  # by which a temperature's logarithm is changed until the best lies between
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)
WANTED = (0.95, 0.99)  # accuracies
_SEED = 0  # of the halves
_POINTS = 400  # of a curve
_BLOCK = 2**17  # scores that are looked at together: what fits into a processor's cache is several times as fast


@dataclass(frozen=True)
class Scored:
    """How sure a model was of its answers to n labelled images, and how well that fits.

    Attributes:
        confidence: (n,) float64 in [0, 1], the probability of its answer.
        right: (n,) bool.
        nll: the mean negative log-likelihood of the labels, in nats; None where images may have several.
        brier: the mean over images of the squared error of their probabilities, summed over the classes, in [0, 2];
            None as above.
    """

    confidence: np.ndarray
    right: np.ndarray
    nll: float | None = None
    brier: float | None = None

    @property
    def ece(self) -> float:
        return expected_calibration_error(self.right, self.confidence)

    def as_json(self) -> dict[str, float | None]:
        return {
            "ece": self.ece,
            "mean_confidence": float(self.confidence.mean()),
            "nll": self.nll,
            "brier": self.brier,
        }


@dataclass(frozen=True)
class _Row:
    """A model by one of its rules.

    Attributes:
        number: of the model among the contenders.
        temperature: the best for all images; None where images may have several labels, or are too few.
        halves: the temperatures that were fitted on each half of them.
        after: with the temperature of the half in which an image is not; None as above.
    """

    number: int
    model: str
    rule: Rule
    is_own: bool
    before: Scored
    temperature: float | None = None
    halves: tuple[float, float] | None = None
    after: Scored | None = None

    def as_json(self) -> dict[str, Any]:
        coverage = {f"{part:g}": accuracy_at_coverage(self.before, part) for part in COVERAGES}
        wanted = {f"{accuracy:g}": threshold_for(self.before, accuracy) for accuracy in WANTED}
        return {
            "is_own_rule": self.is_own,
            "num_images": len(self.before.right),
            "accuracy": float(self.before.right.mean()),
            "before": self.before.as_json(),
            "after": self.after and self.after.as_json(),
            "temperature": self.temperature,
            "temperatures_of_halves": self.halves and list(self.halves),
            "accuracy_at_coverage": {name: choice.as_json() for name, choice in coverage.items()},
            "threshold_for_accuracy": {name: choice and choice.as_json() for name, choice in wanted.items()},
        }


@dataclass(frozen=True)
class Choice:
    """The images of which a model is at least so sure.

    Attributes:
        threshold: the least confidence among them.
        coverage: which part they are of all, in (0, 1].
        accuracy: on them.
    """

    threshold: float
    coverage: float
    accuracy: Estimate

    def as_json(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "coverage": self.coverage, "accuracy": self.accuracy.as_json()}


def reliability(right: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The accuracy and the mean confidence of the bins of confidence that are not empty, and how many images each has.

    Args:
        right: (n,) bool, n > 0.
        confidence: (n,) float64 in [0, 1]. A bin holds its upper end, and not its lower one.

    Returns:
        Accuracies, mean confidences and counts, all (BINS,): NaN, NaN and 0 of an empty bin.
    """
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)  # as in `calibration_curve`
    counts = np.bincount(bins, minlength=BINS)
    accuracy, mean = np.full(BINS, np.nan), np.full(BINS, np.nan)
    accuracy[counts > 0], mean[counts > 0] = calibration_curve(right.astype(int), confidence, pos_label=1, n_bins=BINS)
    return accuracy, mean, counts


def expected_calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    """By how much accuracy and confidence differ in a bin, on the mean over images (Guo et al. 2017, equation 3).

    Args:
        right: (n,) bool, n > 0.
        confidence: (n,) float64 in [0, 1].
    """
    accuracy, mean, counts = reliability(right, confidence)
    return float(np.nansum(np.abs(accuracy - mean) * counts) / counts.sum())


def fit_temperatures(scores: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """The temperatures by which scores are to be divided, so that the labels become most likely.

    The negative log-likelihood is convex in the inverse temperature, so the root of its derivative is the best of all.

    Args:
        scores: of classes, (n, K), labels, (n,), and in which half an image is, (n,), 0 or 1, in parts; is read some
            ten times, so not an iterator.

    Returns:
        Of all images, and of each half, in `TEMPERATURES`: the lower end if more confidence is always better, as where
        all answers are right; the upper one if less is. 1 where the temperature makes no difference: all scores of
        each image are the same.
    """
    known: dict[float, tuple[float, ...]] = {}

    def slopes(log_temperature: float) -> tuple[float, ...]:
        """The derivatives by the inverse temperature, in three sums: one reading says it of all and of the halves."""
        if log_temperature not in known:
            halves = np.zeros(2)
            for values, labels, half in scores:
                above = values - np.take_along_axis(values, labels[:, None], axis=1)
                weights = above / exp(log_temperature)
                weights -= weights.max(axis=1, keepdims=True)
                np.exp(weights, out=weights)
                slope = np.einsum("nk,nk->n", weights, above) / weights.sum(axis=1)
                halves += np.bincount(half, slope, minlength=2)
            known[log_temperature] = (float(halves.sum()), *halves.tolist())
        return known[log_temperature]

    def best(which: int) -> float:
        # The root is above `below`, where there is too much confidence, and what was read for others tells of it, too.
        slopes(0.0)
        below = max((place for place, found in known.items() if found[which] > 0), default=None)
        above = min((place for place, found in known.items() if found[which] <= 0), default=None)
        lowest, highest = map(log, TEMPERATURES)
        while below is None:
            if above == lowest:
                return 1.0 if slopes(lowest)[which] == slopes(highest)[which] == 0 else TEMPERATURES[0]
            place = max(above - _STEP, lowest)
            below, above = (place, above) if slopes(place)[which] > 0 else (None, place)
        while above is None:
            if below == highest:
                return TEMPERATURES[1]
            place = min(below + _STEP, highest)
            below, above = (below, place) if slopes(place)[which] <= 0 else (place, None)
        return exp(brentq(lambda place: slopes(place)[which], below, above, xtol=1e-5))

    return best(0), best(1), best(2)


def accuracy_at_coverage(scored: Scored, coverage: float) -> Choice:
    """The accuracy on the images of which a model is most sure, at least a part `coverage` in (0, 1] of them.

    Images of the same confidence are taken all or not at all.
    """
    thresholds, taken, hits = _by_confidence(scored)
    place = int(np.searchsorted(taken, ceil(round(coverage * len(scored.right), 6))))
    return _choice(thresholds, taken, hits, place)


def threshold_for(scored: Scored, accuracy: float) -> Choice | None:
    """The most images, those of which a model is most sure, on which it is right so often; None if there are none."""
    thresholds, taken, hits = _by_confidence(scored)
    enough = np.flatnonzero(hits / taken >= accuracy)
    return _choice(thresholds, taken, hits, int(enough[-1])) if len(enough) else None


def _by_confidence(scored: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each confidence that occurs, the highest first, how many images have it or more, and on how many it is right."""
    values, group = np.unique(-scored.confidence, return_inverse=True)
    return -values, np.bincount(group).cumsum(), np.bincount(group, weights=scored.right).cumsum()


def _choice(thresholds: np.ndarray, taken: np.ndarray, hits: np.ndarray, place: int) -> Choice:
    accuracy = wilson(round(hits[place]), taken[place])
    return Choice(float(thresholds[place]), float(taken[place] / taken[-1]), accuracy)


def calibration_section(answers: Sequence[Answers], labels: Labels, *, teacher: str | None = None) -> Section | None:
    """How well models' confidence fits their accuracy, before and after temperature scaling, and what it is good for.

    The evaluated model is measured by all of its rules, each other one by its own.

    Args:
        answers: of the contenders, of which the first is the one that is evaluated.
        labels: of the same images.
        teacher: the name of the contender that has taught, if one has.

    Returns:
        None if no image has a label. Its `numbers` are in "contenders", by the contender's name and the rule's key:
        "before" and "after" ("ece", "mean_confidence", "nll", "brier"), "temperature", "temperatures_of_halves",
        "accuracy_at_coverage" by the coverage, "threshold_for_accuracy" by the accuracy, "accuracy", "num_images" and
        "is_own_rule".
    """
    if not labels.is_labelled.any():
        return None
    rows = [
        _row(number, contender, rule, labels)
        for number, contender in enumerate(answers)
        for rule in (contender.rules if number == 0 else [contender.rule])
    ]
    own = [row for row in rows if row.is_own]
    numbers = {
        "num_images": len(rows[0].before.right),
        "num_unlabelled": int((~labels.is_labelled).sum()),
        "bins": BINS,
        "seed": _SEED,
        "contenders": {
            contender.model: {row.rule.key: row.as_json() for row in rows if row.number == number}
            for number, contender in enumerate(answers)
        },
    }
    return Section(
        "calibration",
        "Confidence",
        tuple(_text(rows, labels)),
        (_calibration_table(rows, teacher), _coverage_table(own, teacher), _threshold_table(own, teacher)),
        (_reliability_picture(own[0]), _coverage_picture(own, teacher)),
        numbers=numbers,
    )


def _row(number: int, contender: Answers, rule: Rule, labels: Labels) -> _Row:
    verdicts, is_labelled = contender.verdicts(rule), labels.is_labelled
    right = labels.are_right(verdicts.decisions)[is_labelled]
    confidence = verdicts.confidence[is_labelled]
    names = number, contender.model, rule, rule == contender.rule
    if labels.accepted is not None:
        return _Row(*names, Scored(confidence, right))
    scores = _Scores(contender, rule, labels.values, _halves(is_labelled))
    before = Scored(confidence, right, *_losses(scores, (1, 1))[1:])
    if len(right) < 2:
        return _Row(*names, before)
    temperature, *fitted = fit_temperatures(scores)
    # What a half is measured with was fitted on the other.
    scaled, *losses = _losses(scores, fitted[::-1])
    return _Row(*names, before, temperature, tuple(fitted), Scored(scaled, right, *losses))


def _halves(taken: np.ndarray) -> np.ndarray:
    """Of each image 0 or 1, the half in which it is, at random; -1 if not taken. They differ by one image at most."""
    half = np.full(len(taken), -1)
    half[taken] = np.random.default_rng(_SEED).permutation(int(taken.sum())) % 2
    return half


@dataclass(frozen=True)
class _Scores:
    """The scores of the labelled images by a rule, their labels and halves, in small parts: see `fit_temperatures`.

    Attributes:
        labels: (N,) int64, of all images.
        half: (N,) int64, 0 or 1; -1 where an image has no label.
    """

    answers: Answers
    rule: Rule
    labels: np.ndarray
    half: np.ndarray

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        start = 0
        for logits in self.answers.chunks():
            n, num_classes = next(iter(logits.values())).shape
            step = max(_BLOCK // num_classes, 1)
            for first in range(0, n, step):
                block = slice(start + first, start + min(first + step, n))
                taken = self.half[block] >= 0
                if taken.any():
                    heads = {name: values[first : first + step][taken] for name, values in logits.items()}
                    yield self.rule.scores(heads), self.labels[block][taken], self.half[block][taken]
            start += n


def _losses(scores: _Scores, temperatures: Sequence[float]) -> tuple[np.ndarray, float, float]:
    """What comes out if the scores of each half of the images are divided by a temperature of its own.

    Returns:
        The answers' probabilities, (n,) float64, and the mean negative log-likelihood and Brier score of the labels.
    """
    confidence, nll, brier, n = [], 0.0, 0.0, 0
    for values, true, half in scores:
        logs = log_softmax(values / np.take(temperatures, half)[:, None], axis=1)
        probabilities = np.exp(logs)
        confidence.append(probabilities.max(axis=1))
        nll -= float(np.take_along_axis(logs, true[:, None], axis=1).sum())
        score = brier_score_loss(true, probabilities, labels=np.arange(values.shape[1]), scale_by_half=False)
        brier += score * len(true)
        n += len(true)
    return np.concatenate(confidence).clip(0, 1), nll / n, brier / n


def _text(rows: Sequence[_Row], labels: Labels) -> list[str]:
    n = len(rows[0].before.right)
    text = [
        "Confidence is the probability that a model gives its answer. The expected calibration error (ECE) is how far "
        f"it is from the accuracy: in each of {BINS} equally wide bins of confidence, on the mean over "
        f"{counted(n, 'image')} (Guo et al. 2017). Few images alone make it larger than 0. The negative "
        "log-likelihood of the labels (NLL, in nats) and the Brier score (from 0 to 2) are smaller for better "
        "probabilities."
    ]
    if labels.accepted is not None:
        text.append(
            "NLL, Brier score and temperature need one label of each image, which may have several here, and are left "
            "out."
        )
    elif all(row.temperature is None for row in rows):
        text.append("With a single image a temperature cannot be fitted on one half and measured on the other.")
    else:
        text.append(
            "Temperature scaling divides a model's logits by one number before the softmax; no answer changes. Its "
            f"effect is measured on images that it was not fitted on: on each of two random halves (seed {_SEED}) "
            "with the temperature of the other. The one in the table is fitted on all images, and is the one to use: "
            "softmax(logits / temperature)."
        )
        if any(row.rule == SUM_OF_SOFTMAXES for row in rows):
            text[-1] += (
                f" For {SUM_OF_SOFTMAXES.words}, in place of the logits, the logarithm of the summed probabilities."
            )
        ends = [_name(row, rows) for row in rows if {row.temperature, *(row.halves or ())} & {*TEMPERATURES}]
        if ends:
            text.append(
                f"A temperature of {TEMPERATURES[0]:g} or {TEMPERATURES[1]:g} is an end of what is tried: the images, "
                "or a half of them, say only that more, or less, confidence would be better, as where all answers are "
                f"right, or nearly none. It is not one to use. So it is for {shortlist(ends)}."
            )
    text.append(
        "Accuracy at coverage: if only the images are answered of which a model is most sure, how often it is right "
        "on those; images with the same confidence are taken all or not at all. A confidence from which an accuracy "
        "is reached here was chosen on these images, and is a little too good for others."
    )
    return text


def _name(row: _Row, rows: Sequence[_Row], teacher: str | None = None) -> str:
    name = row.model + (" (teacher)" if row.model == teacher != "teacher" else "")
    return f"{name}, {row.rule.words}" if sum(other.number == row.number for other in rows) > 1 else name


def _calibration_table(rows: Sequence[_Row], teacher: str | None) -> Table:
    columns = ["model", "accuracy", "mean confidence", "ECE"]
    is_single = any(row.before.nll is not None for row in rows)
    is_scaled = any(row.after is not None for row in rows)
    columns += ["NLL", "Brier"] if is_single else []
    columns += ["temperature", "ECE after", "NLL after", "Brier after"] if is_scaled else []
    lines = []
    for row in rows:
        own = " (its own)" if row.is_own and sum(other.number == row.number for other in rows) > 1 else ""
        before, after = row.before, row.after
        line: list[Cell] = [f"{_name(row, rows, teacher)}{own}", float(before.right.mean())]
        line += [float(before.confidence.mean()), before.ece]
        line += [before.nll, before.brier] if is_single else []
        line += [row.temperature, *((after.ece, after.nll, after.brier) if after else [None] * 3)] if is_scaled else []
        lines.append(tuple(line))
    after = ", and after temperature scaling" if is_scaled else ""
    caption = f"How well confidence fits accuracy, as the models are{after}: smaller errors are better."
    return Table("calibration", caption, tuple(columns), tuple(lines))


def _coverage_table(own: Sequence[_Row], teacher: str | None) -> Table:
    parts = [[accuracy_at_coverage(row.before, part).accuracy for part in COVERAGES] for row in own]
    return Table(
        "coverage",
        "Top-1 on the images of which each model is most sure, by its own rule, with 95 % Wilson intervals.",
        ("model", *(f"surest {part:.0%}" if part < 1 else "all images" for part in COVERAGES)),
        tuple((_name(row, own, teacher), *cells) for row, cells in zip(own, parts, strict=True)),
    )


def _threshold_table(own: Sequence[_Row], teacher: str | None) -> Table:
    lines = []
    for row in own:
        line: list[Cell] = [_name(row, own, teacher)]
        for accuracy in WANTED:
            choice = threshold_for(row.before, accuracy)
            line += [choice.threshold, choice.coverage] if choice else ["not reached", 0.0]
        lines.append(tuple(line))
    columns = [(f"confidence for {accuracy:.0%} right", f"part answered at {accuracy:.0%}") for accuracy in WANTED]
    return Table(
        "thresholds",
        "The confidence from which on an accuracy is reached on these images, and the part of them that is answered.",
        ("model", *(name for pair in columns for name in pair)),
        tuple(lines),
    )


def _reliability_picture(row: _Row) -> Picture:
    kinds = {"as it is": row.before}
    if row.after is not None:
        kinds["after temperature scaling"] = row.after
    with drawing(4.4 * len(kinds), 5.2) as figure:
        axes = figure.subplots(2, len(kinds), squeeze=False, sharex=True, height_ratios=[3, 1])
        for column, (title, scored) in enumerate(kinds.items()):
            _draw_reliability(axes[0, column], axes[1, column], scored)
            axes[0, column].set_title(f"{title}: ECE {scored.ece:.4f}", fontsize="medium")
        handles = axes[0, 0].get_legend_handles_labels()[0] + axes[1, 0].get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(kinds))
        png = as_png(figure)
    errors = ", ".join(f"{title} {scored.ece:.4f}" for title, scored in kinds.items())
    name = f"{row.model}, {row.rule.words}"
    caption = (
        f"Reliability of {name}, on {counted(len(row.before.right), 'image')}: accuracy in each of {BINS} bins of "
        "confidence, with 95 % Wilson intervals. On the diagonal it is right as often as it is sure; hatched is by "
        "how much it is not. Below: how many images are in each bin."
    )
    alt = f"Accuracy against confidence of {name}. Expected calibration error: {errors}."
    return Picture("reliability", png, caption, alt, in_card=True)


def _draw_reliability(axes: Axes, below: Axes, scored: Scored) -> None:
    accuracy, mean, counts = reliability(scored.right, scored.confidence)
    filled = np.flatnonzero(counts)
    width = 1 / BINS
    centre = (filled + 0.5) * width
    parts = [wilson(round(accuracy[index] * counts[index]), counts[index]) for index in filled]
    errors = [[part.value - part.low for part in parts], [part.high - part.value for part in parts]]
    axes.bar(centre, accuracy[filled], width, color=COLOURS[4], edgecolor="white", label="accuracy in a bin")
    gap = {
        "facecolor": "none",
        "edgecolor": COLOURS[1],
        "hatch": "////",
        "linewidth": 0.8,
        "label": "gap to confidence",
    }
    axes.bar(centre, mean[filled] - accuracy[filled], width, accuracy[filled], **gap)
    axes.errorbar(centre, accuracy[filled], errors, fmt="none", color="k", capsize=2, linewidth=0.9)
    axes.plot([0, 1], [0, 1], color="0.3", linestyle="--", linewidth=1)
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    below.bar(centre, counts[filled], width, color="0.6", edgecolor="white")
    below.set(xlabel="confidence", ylabel="images")
    line = {"linewidth": 1.4}
    below.axvline(scored.right.mean(), **line, color=COLOURS[0], label="accuracy of all")
    below.axvline(scored.confidence.mean(), **line, color=COLOURS[1], linestyle="--", label="mean confidence")


def _coverage_picture(own: Sequence[_Row], teacher: str | None) -> Picture:
    outside = len(own) > 5
    with drawing(8.6 if outside else 6.4, max(4.2, 0.6 + 0.19 * len(own))) as figure:
        axes = figure.add_subplot(xlabel="part of the images that is answered, the surest first")
        axes.set_ylabel("top-1 accuracy on these")
        lowest = 1.0
        for row in own:
            _, taken, hits = _by_confidence(row.before)
            n = taken[-1]
            # Of a few images an accuracy says little; nor are all points of a long curve to be seen.
            first = min(int(np.searchsorted(taken, min(max(0.02 * n, 20), n))), len(taken) - 1)
            shown = np.unique(np.linspace(first, len(taken) - 1, _POINTS).round().astype(int))
            accuracy = hits[shown] / taken[shown]
            lowest = min(lowest, accuracy.min())
            look = look_of(row.number)
            if row.model == teacher:
                look |= {"color": "#000000", "linestyle": ":", "linewidth": 2.5}
            label = name_in_picture(_name(row, own, teacher), 42, end=25)
            marked = (0.03 + 0.17 * row.number / len(own), 0.2) if len(shown) > 1 else 1
            axes.plot(
                taken[shown] / n,
                accuracy,
                **look,
                markevery=marked,
                markersize=5,
                label=label,
            )
        axes.set(xlim=(0, 1), ylim=(lowest - 0.05 * (1 - lowest) - 0.002, 1 + 0.03 * (1 - lowest)))
        axes.legend(**({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {"loc": "best"}))
        png = as_png(figure)
    ends = "; ".join(
        f"{_name(row, own, teacher)} {accuracy_at_coverage(row.before, 0.5).accuracy.value:.4f}, "
        f"{row.before.right.mean():.4f}"
        for row in own
    )
    caption = (
        f"Accuracy at coverage on {counted(len(own[0].before.right), 'image')}: how often each model is right if it "
        "answers only the images of which it is most sure."
    )
    return Picture("coverage", png, caption, f"Top-1 on the surest half and on all images: {ends}.")
