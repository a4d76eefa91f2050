"""Contract: no int8 file of any format answers as a model with another resize filter, crop, statistics, order of
channels or labels, or fusion of its heads would: each is nearer to its own model than to any of these. Float files are
compared more strictly, in the tests of their formats; ExecuTorch's int8 shares its preprocessing with its float file.
"""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.export_sources import sure_source

from hf_deit.export.formats import BY_NAME
from hf_deit.export.int8 import INT8
from hf_deit.export.parity import odd_images, running
from hf_deit.export.parity.answering import decode
from hf_deit.export.programs.calibration import Calibration
from hf_deit.export.programs.preprocessing import Preprocessing
from hf_deit.export.programs.quantization import QuantizationSettings, quantize
from hf_deit.export.quiet import quiet

CHANGED = {
    "filter": {"filter": "bilinear"},
    "size": {"size": (40, 40)},
    "squeezed": {"resize": "exact", "size": (32, 32), "crop": None},
    "mean": {"mean": (0.5, 0.5, 0.5)},
    "standard deviation": {"std": (0.25, 0.25, 0.25)},
    "statistics of other channels": {"mean": (0.406, 0.456, 0.485), "std": (0.225, 0.224, 0.229)},
    "scale": {"scale": 1 / 240},
    "channel order": {"channel_order": "BGR"},
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[str]:
    """Of many sizes and kinds, none of them large."""
    folder = tmp_path_factory.mktemp("photographs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(odd_images, "NUM_ODD_IMAGES", 84)
        patch.setattr(odd_images, "_LARGE", ((500, 400),))
        odd_images.write_odd_images(folder)
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(odd_images, "NUM_ODD_IMAGES", 64)
        patch.setattr(odd_images, "_LARGE", ((500, 400),))
        return sure_source(tmp_path_factory.mktemp("models") / "sure", num_hidden_layers=1)


@pytest.fixture(scope="module")
def answers_of(source, photographs, tmp_path_factory):
    """What an int8 file answers to the photographs: (N, K)."""
    images = datasets.Dataset.from_dict({"image": photographs}).cast_column("image", datasets.Image())
    calibration = Calibration(images, "image", source.classifier, "photographs", num_images=64)
    folder = str(tmp_path_factory.mktemp("files"))

    def answers(format: str, mode: str) -> np.ndarray:
        with quiet():
            quantize(source, folder, format, calibration, QuantizationSettings(mode))
        answer = getattr(running, BY_NAME[format].runtime.runner)(folder, BY_NAME[format].quantized)
        return np.concatenate([answer(decode(path)[None]) for path in photographs])

    return answers


class NotAntialiased(Preprocessing):
    def apply(self, image):
        height, width = image.shape[:2]
        size = [self.size[0] * length // min(height, width) for length in (height, width)]
        levels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        resized = F.interpolate(levels, size, mode=self.filter, align_corners=False)
        levels = resized.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
        return Preprocessing(**{**vars(self), "resize": None, "size": None}).apply(levels)


@pytest.fixture(scope="module")
def others(source, photographs):
    """Answers of the model as it is, and with one thing changed."""
    own, classifier = source.preprocessing, source.classifier
    seen = [decode(path) for path in photographs]

    @torch.no_grad()
    def answers(preprocessing: Preprocessing) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([preprocessing.apply(image) for image in seen]))
        return classifier.model(pixel_values=pixels).logits.softmax(dim=-1).numpy()

    found = {name: answers(dataclasses.replace(own, **changes)) for name, changes in CHANGED.items()}
    found["antialiasing"] = answers(NotAntialiased(**vars(own)))
    right = answers(own)
    found["label order"] = right[:, [1, 0, 2]]
    for fusion in ("logits", "cls", "distillation"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(classifier.model.config, "fusion", fusion)
            found[f"fusion {fusion}"] = answers(own)
    return right, found


@pytest.mark.parametrize("file", [file for file in INT8 if file[0] != "executorch"], ids="-".join)
def test_it_answers_as_its_own_model_and_as_no_other(answers_of, others, file):
    right, changed = others
    answers = answers_of(*file)
    near = np.square(answers - right).mean()
    far = {name: np.square(answers - other).mean() for name, other in changed.items()}
    assert all(near < distance for distance in far.values()), (near, far)
