"""scikit-learn's handwritten digits: the data set that needs no download."""

import datasets
import numpy as np
from PIL import Image

from .image_data import ImageData

_NUM_HELD_OUT = 360


def load_digits(seed: int = 0) -> ImageData:
    """1,797 greyscale images of 8 × 8 pixels, 360 of them held out to validate with.

    Args:
        seed: of the stratified split.
    """
    from sklearn.datasets import load_digits as load_sklearn_digits

    bunch = load_sklearn_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # scikit-learn gives 17 grey levels, 0 to 16
    names = [str(name) for name in bunch.target_names]
    everything = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": bunch.target.tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}),
    )
    split = everything.train_test_split(test_size=_NUM_HELD_OUT, seed=seed, stratify_by_column="label")
    return ImageData(split["train"], split["test"], names)
