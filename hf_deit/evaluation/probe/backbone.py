"""A backbone: an image classifier whose heads are made anew, and what it makes of an image before them.

Its features are by construction what its heads see, so a linear classifier of them is, written into the heads, the
model itself.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ...errors import InputError, one_line
from ...models.extent import check_extent
from ...models.pretrained import (
    LOADING_ERRORS,
    head_names,
    load_classifier,
    load_config,
    name_and_revision,
    refuse_file,
    resolve_revision,
    weights_digest,
    why_not_loaded,
)
from ...models.single_teacher import size_in_words
from ..classifiers.classifiers import architecture_of, own_processor
from ..classifiers.input_size import made_size
from ..images.images import without_place

# Images that a CPU computes at once: what an early layer makes of more does not stay in its cache. On one core
# EfficientNet-Lite0 takes 17 to 25 ms an image by fours, and 57 by 64.
_AT_ONCE_ON_CPU = 4
# Of what an image is shown as: the image itself comes first, and is what is answered to.
_CORNER = 7 / 8  # of the side, enlarged again to the whole
_CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
View = Callable[[torch.Tensor], torch.Tensor]


def views_of(*, is_mirrored: bool, has_corners: bool) -> dict[str, View]:
    """What pixels (B, 3, H, W) are shown as, by name; the whole image first.

    Args:
        is_mirrored: whether each view is shown mirrored, too.
        has_corners: whether the four corners are shown, 7/8 of the sides each.
    """
    views: dict[str, View] = {"whole": lambda pixels: pixels}
    if has_corners:
        views |= {name: _corner(*place) for name, place in _CORNERS.items()}
    if is_mirrored:
        views |= {f"{name}, mirrored": _mirrored(view) for name, view in views.items()}
    return views


def _corner(down: int, right: int) -> View:
    def view(pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[-2:]
        cut_height, cut_width = max(round(height * _CORNER), 1), max(round(width * _CORNER), 1)
        top, left = down * (height - cut_height), right * (width - cut_width)
        cut = pixels[..., top : top + cut_height, left : left + cut_width]
        return F.interpolate(cut, size=(height, width), mode="bicubic", align_corners=False)

    return view


def _mirrored(view: View) -> View:
    return lambda pixels: view(pixels).flip(-1)


@dataclass(frozen=True)
class BackboneDescription:
    """What is known of a backbone from its small files. Made by `describe_backbone`.

    Attributes:
        name_or_path: a Hub id or a folder.
        revision: the commit it was resolved to, or None for a folder.
        wanted_revision: that commit or, where it is not known, what was asked for.
        architecture: of its class, or of timm's model.
        processor: its own, which makes its pixels of an image.
        input_size: (height, width) of these.
    """

    name_or_path: str
    revision: str | None
    wanted_revision: str | None
    architecture: str
    processor: BaseImageProcessor
    input_size: tuple[int, int]

    def version(self) -> str:
        """What tells its weights from others: the commit, or a digest of the folder.

        Raises:
            InputError: it is neither on the Hub nor a folder with weights.
        """
        return self.revision or weights_digest(self.name_or_path)

    def origin(self) -> dict[str, Any]:
        """Which backbone it is, of JSON's types; of a folder's path the last name alone."""
        return {
            "name_or_path": without_place(self.name_or_path),
            "revision": self.revision,
            "version": self.version(),
            "architecture": self.architecture,
            "input_size": list(self.input_size),
        }

    def load(self, id2label: Mapping[int, str], device: torch.device | str | None = None) -> "Backbone":
        """Loads its weights, with heads made anew for these labels, of which an answer must be a linear function.

        Args:
            id2label: the data's labels by index.
            device: to put them on; the CPU by default.

        Raises:
            InputError: they cannot be loaded, or are not whole; its heads are not linear, or it takes no images of
                the size that its image processor makes.
        """
        model = load_classifier(
            self.name_or_path, self.wanted_revision, dtype=torch.float32, role="backbone", id2label=id2label
        )
        # Of a head for as many labels the checkpoint's would be kept, and of timm's the names, too.
        model.config.id2label = dict(id2label)
        if getattr(model.config, "label_names", None) is not None:
            model.config.label_names = list(id2label.values())
        if getattr(model.config, "fusion", None) is not None:  # of two heads, of whose logits the mean is linear
            model.config.fusion = "logits"
        backbone = Backbone(self, model.to(device or "cpu").eval().requires_grad_(False), self._heads_of(model))
        backbone.check()
        return backbone

    def _heads_of(self, model: PreTrainedModel) -> list[nn.Linear | nn.Conv2d]:
        modules = sorted({name.rpartition(".")[0] for name in head_names(model)})
        heads = [model.get_submodule(name) for name in modules]
        for name, head in zip(modules, heads, strict=True):
            is_linear = isinstance(head, nn.Linear) or (isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1))
            if not is_linear or head.bias is None or getattr(head, "groups", 1) != 1:
                raise self.without_features(f"its head {name!r} is {head}, which is not linear with a bias")
        if not heads:
            raise self.without_features("nothing in it depends on the number of labels")
        return heads

    def without_features(self, why: str) -> InputError:
        return InputError(
            f"the backbone {self.name_or_path!r} ({self.architecture}) gives no features that a linear head could "
            f"answer from: {why}. Take another one, say a DINOv2, a ViT or a ConvNeXt"
        )


def describe_backbone(backbone: str) -> BackboneDescription:
    """Reads and checks what is known of a backbone without its weights.

    Args:
        backbone: a Hub id, "my/model@revision" for another revision than main, or a folder, of transformers or timm.

    Raises:
        InputError: there is no such model, none of which transformers makes an image classifier, or one that does
            not state its preprocessing.
    """
    name_or_path, wanted = name_and_revision(backbone)
    refuse_file(name_or_path, role="backbone")
    commit = resolve_revision(name_or_path, wanted)
    revision = commit or wanted
    try:
        config = load_config(name_or_path, revision)
    except InputError:
        raise
    except LOADING_ERRORS as error:
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(f"cannot load the backbone {name_or_path!r}{at}: {why_not_loaded(error)}") from error
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"transformers has no image classifier of the type {config.model_type!r}, of which the backbone "
            f"{name_or_path!r} is: take the same one of timm, whose every model can be one (as "
            "timm/vit_small_patch16_dinov3.lvd1689m is of DINOv3), or another backbone"
        )
    check_extent(name_or_path, config)
    processor = own_processor(name_or_path, revision, config)
    return BackboneDescription(
        name_or_path=name_or_path,
        revision=commit,
        wanted_revision=revision,
        architecture=architecture_of(config),
        processor=processor,
        input_size=made_size(name_or_path, processor),
    )


class Backbone:
    """A backbone with its weights and new heads; its `logits_and_features` are for `asking.compute`.

    Of several heads, as DeiT's two, the mean of the logits answers: then the features are those that the heads see,
    one behind the other, and an answer is linear in them all.

    Attributes:
        name: for people.
        processor: its own.
        model: with the heads that `write` fills.
        views: what images are shown as, by name.
    """

    def __init__(
        self, description: BackboneDescription, model: PreTrainedModel, heads: list[nn.Linear | nn.Conv2d]
    ) -> None:
        self.description, self.model, self._heads = description, model, heads
        self.name, self.processor = description.name_or_path, description.processor
        self.views = views_of(is_mirrored=False, has_corners=False)

    @property
    def num_features(self) -> int:
        """D, over all heads."""
        return sum(head.weight.shape[1] for head in self._heads)

    def logits_and_features(
        self, pixel_values: torch.Tensor, *, with_features: bool = False
    ) -> tuple[dict[str, torch.Tensor], None]:
        """The features of each view, (B, D) float32 on the CPU by its name, in place of a classifier's logits.

        Args:
            pixel_values: (B, 3, H, W), as the image processor makes them.
            with_features: none beside them.
        """
        pixels = pixel_values.to(self.model.device, self.model.dtype)
        parts = pixels.split(_AT_ONCE_ON_CPU) if pixels.device.type == "cpu" else [pixels]
        features = {
            name: torch.cat([self.features(view(part)).float().cpu() for part in parts])
            for name, view in self.views.items()
        }
        return features, None

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the heads see, (B, D), of pixels (B, 3, H, W) on its device."""
        with self._watched() as seen:
            self.model(pixel_values=pixels)
        return torch.cat([seen[head][0].flatten(1) for head in self._heads], dim=1)

    @contextmanager
    def _watched(self) -> Iterator[dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]]:
        """What each head is given and makes, while this is open."""
        seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

        def note(head: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen[head] = inputs[0], output

        hooks = [head.register_forward_hook(note) for head in self._heads]
        try:
            with torch.no_grad():
                yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def check(self) -> None:
        """Finds out on noise whether the answer is the mean of what its heads make of one vector for each image.

        Raises:
            InputError: it is not, or the model takes no images of its size.
        """
        size, description = self.description.input_size, self.description
        noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(self.model.device)
        try:
            with self._watched() as seen:
                logits = self.model(pixel_values=noise).logits
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of any kind: architectures refuse sizes as they come to it
            raise InputError(
                f"the backbone {self.name!r} takes no images of {size_in_words(size)} pixels, which its image "
                f"processor makes ({one_line(error)}): its files do not go together"
            ) from error
        shape = len(noise), self.model.config.num_labels
        if set(seen) != set(self._heads) or any(output.flatten(1).shape != shape for _, output in seen.values()):
            raise description.without_features("its heads do not make an answer each of one vector for an image")
        mean = torch.stack([output.flatten(1) for _, output in seen.values()]).mean(dim=0)
        if logits.shape != shape or not torch.allclose(logits, mean, rtol=1e-4, atol=1e-5):
            raise description.without_features("its answer is not what its heads make, or the mean of that")

    @torch.no_grad()
    def write(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Puts a linear classifier of its features into its heads.

        Args:
            weight: (K, D) float64.
            bias: (K,) float64.
        """
        parts = np.split(weight, np.cumsum([head.weight.shape[1] for head in self._heads])[:-1], axis=1)
        for head, part in zip(self._heads, parts, strict=True):  # their mean is the sum over all features
            head.weight.copy_(torch.from_numpy(part * len(self._heads)).reshape(head.weight.shape))
            head.bias.copy_(torch.from_numpy(bias))

    def save(self, folder: str) -> None:
        """Writes an ordinary classifier folder, with its image processor.

        Raises:
            OSError: it cannot be written.
        """
        self.model.save_pretrained(folder)
        if self.model.config.model_type != "timm_wrapper":  # whose config.json says it
            self.processor.save_pretrained(folder)
