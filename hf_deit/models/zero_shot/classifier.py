"""A zero-shot model as a classifier of given classes: the texts are encoded once, and their tower goes."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForZeroShotImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from ..pretrained import configured_size, load_classifier
from .prompts import Prompts
from .tokens import TextReader


class ZeroShotClassifier(nn.Module):
    """The image tower of a zero-shot model, with the directions of K classes.

    Its logits are `exp(logit_scale) · cos(image, class)`, of CLIP's and of SigLIP's models alike: a bias that all
    classes share makes no difference to a softmax. ALIGN's have a temperature, by which the cosine is divided.

    Args:
        model: of transformers, with `get_image_features`.
        classes: (K, D), normalised, float32.
    """

    def __init__(self, model: Any, classes: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("classes", classes)
        self._takes = frozenset(inspect.signature(model.get_image_features).parameters)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        """Logits (B, K) of pixels (B, 3, H, W) that are normalised with the model's own statistics.

        Pixels of another size than the model's have its positions interpolated, where the architecture does that.
        """
        features = _features(self.model.get_image_features(**self._inputs(pixel_values)))
        # In the order in which transformers multiplies, for the same rounding.
        cosines = self.classes.float() @ F.normalize(features.float(), dim=-1).T
        return ImageClassifierOutput(logits=(cosines * self._scale()).T.contiguous())

    def _scale(self) -> torch.Tensor:
        if hasattr(self.model, "logit_scale"):
            return self.model.logit_scale.float().exp()
        return 1 / self.model.temperature.float()

    def _inputs(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        if "spatial_shapes" in self._takes:
            return _as_patches(pixel_values, self.model.config.vision_config.patch_size)
        inputs: dict[str, Any] = {"pixel_values": pixel_values}
        if "interpolate_pos_encoding" in self._takes:
            own = configured_size(self.model.config)
            inputs["interpolate_pos_encoding"] = tuple(pixel_values.shape[-2:]) != own
        return inputs


def _as_patches(pixel_values: torch.Tensor, patch_size: int) -> dict[str, torch.Tensor]:
    """Pixels (B, C, H, W) as SigLIP 2 takes them: patches (B, N, P · P · C), and how many there are along H and W."""
    batch, channels, height, width = pixel_values.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"its patches have {patch_size} pixels")
    rows, columns = height // patch_size, width // patch_size
    parts = pixel_values.view(batch, channels, rows, patch_size, columns, patch_size).permute(0, 2, 4, 3, 5, 1)
    device = pixel_values.device
    return {
        "pixel_values": parts.reshape(batch, rows * columns, -1),
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.int32, device=device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=device).expand(batch, -1),
    }


def _features(output: Any) -> torch.Tensor:
    """(B, D), projected: transformers gives them alone, or with what they are made of."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _direction(texts: torch.Tensor) -> torch.Tensor:
    """(D,) of a class, of its normalised texts (N, D): their mean, normalised."""
    return texts[0] if len(texts) == 1 else F.normalize(texts.double().mean(dim=0), dim=-1).float()


@torch.no_grad()
def load_zero_shot(
    name_or_path: str,
    revision: str | None,
    *,
    prompts: Prompts,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> ZeroShotClassifier:
    """Loads a zero-shot model, encodes the texts of the classes, and lets go of the text tower.

    Args:
        name_or_path: a Hub id or a folder.
        revision: branch, tag or commit.
        prompts: from `TextReader.read`.
        dtype: of its weights.
        device: to put it on; the CPU by default.

    Raises:
        InputError: it cannot be loaded, or lacks weights, such as those of a tower.
    """
    model = load_classifier(
        name_or_path,
        revision,
        dtype=dtype,
        role="teacher",
        model_class=AutoModelForZeroShotImageClassification,
        remedy="take a zero-shot model with both its towers, of images and of texts, as it was trained",
    ).eval()
    model.to(device or "cpu")
    reader = TextReader.of(name_or_path, revision, model.config)
    texts = [text for own in prompts.texts for text in own]
    features = [_features(model.get_text_features(**part)).float() for part in reader.batches(texts, model)]
    parts = F.normalize(torch.cat(features), dim=-1).cpu().split([len(own) for own in prompts.texts])
    classes = torch.stack([_direction(part) for part in parts]).to(model.device)
    for name in [name for name, _ in model.named_children() if name.startswith("text_")]:
        delattr(model, name)
    return ZeroShotClassifier(model, classes)
