"""Two checkpoints on the same images, each by the library that its format belongs to."""

import os
from collections.abc import Callable

import timm
import torch

from ..errors import InputError
from ..models.configuration_deit import as_pair
from ..models.pretrained import LOADING_ERRORS
from ..models.zoo import model_class_of
from .checkpoint import Checkpoint, one_line
from .read import load_weights, read_checkpoint
from .write import Format, native_model, timm_architecture


def largest_difference(
    source: str, destination: str, *, averaged: bool = False, to: Format | None = None, num_images: int = 2
) -> float:
    """Runs two checkpoints, each by the library its format belongs to, on the same images.

    Args:
        source, destination: checkpoints of any format.
        averaged: as `convert_checkpoint` took it.
        to: the destination's format: hf_deit and transformers write the same files of a DeiT.
        num_images: of standard normal noise, at the checkpoint's size.

    Returns:
        The largest absolute difference of their logits. Those of two heads are their mean, which is all that timm and
        transformers know.

    Raises:
        InputError: a checkpoint is damaged, or its library does not open it.
    """
    one, other = read_checkpoint(source, averaged=averaged), read_checkpoint(destination)
    (size, *rest), others = (
        (as_pair(config.image_size), config.num_channels, config.num_labels) for config in (one.config, other.config)
    )
    if (size, *rest) != others:
        raise InputError(f"{source!r} and {destination!r} differ in the size of images or the number of labels")
    images = torch.randn(num_images, one.config.num_channels, *size, generator=torch.Generator().manual_seed(0))
    logits = []
    for checkpoint, path, library, take_average in (
        (one, source, one.source_format, averaged),
        (other, destination, to or other.source_format, False),
    ):
        try:
            with torch.no_grad():
                logits.append(_open(checkpoint, path, library, take_average)(images))
        except LOADING_ERRORS as error:
            raise InputError(f"{library} cannot run {path!r}: {one_line(error)}") from error
    return (logits[0] - logits[1]).abs().max().item()


def _open(checkpoint: Checkpoint, path: str, library: str, averaged: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """The checkpoint in the hands of the library that its format belongs to, in float32."""
    if library in ("hf_deit", "transformers"):
        is_ours = library == "hf_deit"
        model_class = model_class_of(checkpoint.config) if is_ours else type(native_model(checkpoint))
        model = model_class.from_pretrained(path).float().eval()
        if hasattr(model.config, "fusion"):
            model.config.fusion = "logits"
        return lambda images: model(images).logits
    if os.path.isdir(path):
        return timm.create_model(f"local-dir:{path}", pretrained=True).float().eval()
    # The authors' own code needs timm 0.3.2; their models are in timm since.
    name, model_args = timm_architecture(checkpoint.config)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=checkpoint.config.num_labels, **model_args)
    weights, _ = load_weights(path, averaged=averaged)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.float().eval()
