"""What the trained classifier answers, through its own preprocessing, as an evaluation lets it."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.special import softmax

from ...errors import BadImageError, InputError, first_line
from ...evaluation.classifiers.classifiers import Classifier, pixels_of
from ...models.answers import has_answer
from .checked_images import CheckedImages
from .separate_process import images_bar

_BATCH_SIZE = 16


def ask_trained(classifier: Classifier, images: CheckedImages, path: str) -> tuple[np.ndarray, dict[int, str]]:
    """Lets a trained classifier answer to images.

    Args:
        classifier: in evaluation mode, its labels in their own order.
        images: N of them.
        path: of a file that holds the answers.

    Returns:
        The probabilities, (N, K) float32, mapped from the file; and why images are left out, by their row: they cannot
        be decoded, or the classifier's image processor fails on them.

    Raises:
        InputError: an answer is not finite.
        OSError: the file cannot be written.
    """
    num_labels = classifier.model.config.num_labels
    left_out: dict[int, str] = {}
    bar = images_bar("the trained model answers", len(images))
    with bar, open(path, "wb") as file:
        for rows, pixels in _batches(classifier, images, left_out):
            heads = classifier.logits(pixels)
            answered = torch.stack([has_answer(head) for head in heads.values()]).all(dim=0)
            for row in np.array(rows)[~answered.numpy()]:
                raise InputError(f"the model itself answers to {images.names[row]} with numbers that are not finite")
            scores = classifier.rule.scores({name: head.numpy() for name, head in heads.items()})
            for row, values in zip(rows, softmax(scores, axis=1).astype("<f4"), strict=True):
                file.seek(4 * num_labels * row)
                file.write(values.tobytes())
            bar.update(rows[-1] + 1 - bar.n)
        file.truncate(4 * num_labels * len(images))  # also where the last ones are left out
    return np.memmap(path, dtype="<f4", mode="r", shape=(len(images), num_labels)), left_out


def _batches(
    classifier: Classifier, images: CheckedImages, left_out: dict[int, str]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    rows: list[int] = []
    pixels: list[torch.Tensor] = []
    for row in range(len(images)):
        try:
            image = images.images.image(row)
        except BadImageError as error:
            left_out[row] = error.reason
            continue
        try:
            pixels.append(pixels_of(classifier.processor, image))
        except Exception as error:  # of any kind: processors meet odd shapes as they come to them
            left_out[row] = f"the model's image processor fails on it ({first_line(error)})"
            continue
        rows.append(row)
        if len(rows) == _BATCH_SIZE:
            yield rows, torch.stack(pixels)
            rows, pixels = [], []
    if rows:
        yield rows, torch.stack(pixels)
