"""How the answers of an exported classifier compare with those of the trained one, and whether that is good enough."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ExportError, InputError, counted, shortlist
from ...evaluation.accuracy.intervals import paired_difference, wilson
from ...evaluation.sections import Estimate
from ...hub.export_record import ParityRecord
from .checked_images import CheckedImages
from .separate_process import ExportedAnswers

LEAST_AGREEMENT = 0.995  # of a float export
# Of a float export, of nine in ten images. Other roundings of the resized image make less than a thousandth; another
# fusion of two heads, another filter or other statistics some hundredths, and that without another best label, if the
# model is sure.
MOST_USUAL_DIFFERENCE = 0.01
_MOST_NAMED = 20
_ROWS = 4096  # that are compared at once


@dataclass(frozen=True)
class Comparison:
    """Both classifiers on the same images, without those that one of them could not be asked about.

    Attributes:
        words: what the images are.
        num_images: N.
        agreement: fraction of images with the same best label.
        largest_difference, usual_difference: see `ParityRecord`.
        differing: of images with another best label, see `ParityRecord`; all of them.
        accuracy, trained_accuracy, cost, num_labelled: see `ParityRecord`.
        left_out: why images are left out, by name.
    """

    words: str
    num_images: int
    agreement: Estimate
    largest_difference: float
    usual_difference: float
    differing: tuple[dict[str, Any], ...]
    accuracy: Estimate | None
    trained_accuracy: Estimate | None
    cost: Estimate | None
    num_labelled: int
    left_out: dict[str, str]

    @property
    def loss(self) -> float:
        """What the exported classifier costs in accuracy or, where there are no labels, in agreement."""
        return 1 - self.agreement.value if self.cost is None else self.cost.value

    def faults(self) -> Iterator[str]:
        """Why these are not the answers of the same classifier in float32; nothing if they are."""
        if self.agreement.value < LEAST_AGREEMENT:
            yield (
                f"it gives another best label to {len(self.differing):,} of {self.words}: it agrees on "
                f"{self.agreement.value:.2%} {in_percent(self.agreement)}, and {LEAST_AGREEMENT:.1%} are wanted. "
                + shortlist((in_words(image) for image in self.differing), 3, "; ")
                + self.about_ties()
            )
        if self.usual_difference > MOST_USUAL_DIFFERENCE:
            yield (
                f"its probabilities are off by more than {self.usual_difference:.3f} at one in ten of {self.words} "
                f"(at most {self.largest_difference:.3f}), where {MOST_USUAL_DIFFERENCE} is the limit: its "
                "preprocessing, or how it makes one answer of its heads, is not the model's"
            )

    def about_ties(self) -> str:
        """What to say of images between whose two best labels the trained classifier itself hardly decides."""
        ties = sum(image["margin"] < self.largest_difference for image in self.differing)
        if not ties:
            return ""
        return (
            f" (at {ties:,} of them the model's own two best labels are closer than the largest difference, "
            f"{self.largest_difference:.2g})"
        )

    def as_json(self) -> dict[str, Any]:
        """What stands in a `ParityRecord` of odd images."""
        return {
            "images": self.words,
            "num_images": self.num_images,
            "agreement": self.agreement.as_json(),
            "largest_difference": self.largest_difference,
            "usual_difference": self.usual_difference,
            "differing": list(self.differing[:_MOST_NAMED]),
        }


def compare(
    images: CheckedImages,
    labels: Sequence[str],
    trained: tuple[np.ndarray, dict[int, str]],
    exported: ExportedAnswers,
) -> Comparison:
    """Compares answers to the same images.

    Args:
        images: N of them.
        labels: K, of the classifier.
        trained: (N, K) probabilities, and why images are left out, by their row.
        exported: the same.

    Raises:
        InputError: there is no image that both could be asked about.
    """
    probabilities, undecoded = trained
    left_out = {**exported.undecoded, **undecoded}
    rows = np.setdiff1d(np.arange(len(images)), list(left_out))
    if not len(rows):
        why = shortlist({f"{images.names[row]}: {why}" for row, why in left_out.items()}, 3, "; ")
        raise InputError(f"none of {images.images.words} can be decoded ({why}): give others with --check_dir")
    theirs, ours = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    differences, margins = np.empty(len(rows)), np.zeros(len(rows))
    for start in range(0, len(rows), _ROWS):
        here, part = slice(start, start + _ROWS), rows[start : start + _ROWS]
        before, after = probabilities[part], exported.probabilities[part]
        theirs[here], ours[here] = before.argmax(axis=1), after.argmax(axis=1)
        differences[here] = np.abs(before - after).max(axis=1)
        if len(labels) > 1:
            second, best = np.partition(before, -2, axis=1)[:, -2:].T
            margins[here] = best - second
    same = theirs == ours
    differing = tuple(
        {
            "image": images.names[row],
            "trained": labels[theirs[place]],
            "exported": labels[ours[place]],
            "trained_probability": float(probabilities[row, theirs[place]]),
            "exported_probability": float(exported.probabilities[row, ours[place]]),
            "difference": float(differences[place]),
            "margin": float(margins[place]),
        }
        for place, row in zip(np.flatnonzero(~same), rows[~same], strict=True)
    )
    true = images.labels[rows]
    is_labelled = true >= 0
    right, trained_right = ((answers == true)[is_labelled] for answers in (ours, theirs))
    has_labels = bool(is_labelled.any())
    number = int(is_labelled.sum())
    return Comparison(
        words=images.images.words,
        num_images=len(rows),
        agreement=wilson(int(same.sum()), len(rows)),
        largest_difference=min(float(differences.max()), 1.0),
        usual_difference=float(np.quantile(differences, 0.9)),
        differing=differing,
        accuracy=wilson(int(right.sum()), number) if has_labels else None,
        trained_accuracy=wilson(int(trained_right.sum()), number) if has_labels else None,
        cost=paired_difference(trained_right, right) if has_labels else None,
        num_labelled=number,
        left_out={images.names[row]: why for row, why in sorted(left_out.items())},
    )


def in_words(image: dict[str, Any]) -> str:
    """What both answer to an image where they differ."""
    return (
        f"{image['image']}: {image['trained']} ({image['trained_probability']:.3f}) by the trained model, "
        f"{image['exported']} ({image['exported_probability']:.3f}) by the export"
    )


def in_percent(estimate: Estimate) -> str:
    """The interval of a fraction."""
    return f"[{estimate.low:.2%}, {estimate.high:.2%}]"


def check_float(file: str, comparisons: Sequence[Comparison]) -> None:
    """Raises `ExportError` if a float export does not answer as its model does."""
    faults = [fault for comparison in comparisons for fault in comparison.faults()]
    if faults:
        raise ExportError(f"the exported {file} does not answer as the model does: {'; moreover '.join(faults)}")


def parity_record(
    precision: str, comparison: Comparison, odd: Comparison | None, exported: ExportedAnswers
) -> ParityRecord:
    """A comparison as it is kept.

    Args:
        precision: of `PRECISIONS`.
        comparison: on the images that count.
        odd: on the built-in ones beside, if there are others.
        exported: the answers of either.
    """
    optional = {
        name: None if (estimate := getattr(comparison, name)) is None else estimate.as_json()
        for name in ("accuracy", "trained_accuracy", "cost")
    }
    return ParityRecord(
        precision=precision,
        images=comparison.words,
        num_images=comparison.num_images,
        agreement=comparison.agreement.as_json(),
        largest_difference=comparison.largest_difference,
        differing=comparison.differing[:_MOST_NAMED],
        runtime=exported.runtime,
        without_torch=exported.without_torch,
        usual_difference=comparison.usual_difference,
        num_labelled=comparison.num_labelled,
        left_out=comparison.left_out,
        odd_images=None if odd is None else odd.as_json(),
        **optional,
    )


def report_in_words(record: ParityRecord) -> str:
    """A comparison in a few lines for people."""
    agreement = Estimate(**record.agreement)
    lines = [
        f"on {record.images}:",
        f"the same best label for {agreement.value:.2%} {in_percent(agreement)}, probabilities within "
        f"{record.largest_difference:.2g}",
    ]
    if record.differing:
        lines.append(f"where they part: {shortlist(map(in_words, record.differing), 3, '; ')}")
    if record.cost is not None:
        cost = Estimate(**record.cost)
        of = (
            "" if record.num_labelled == record.num_images else f" of {counted(record.num_labelled, 'labelled image')}"
        )
        trained = record.trained_accuracy["value"]
        lines.append(
            f"accuracy{of} {record.accuracy['value']:.2%}, the trained model's {trained:.2%}: "
            f"it costs {100 * cost.value:.2f} points [{100 * cost.low:.2f}, {100 * cost.high:.2f}]"
        )
    if record.odd_images is not None:
        odd = record.odd_images
        lines.append(
            f"on {odd['images']}: the same for {odd['agreement']['value']:.2%}, probabilities within "
            f"{odd['largest_difference']:.2g}"
        )
    return "\n".join(lines)
