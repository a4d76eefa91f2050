"""Two checkpoints on the same images, each run by the library that its format belongs to."""

import os
from collections.abc import Callable

import timm
import torch

from ...errors import InputError, one_line
from ...models.configuration_deit import ONE_HEAD_FUSIONS, DeiTConfigBase, as_pair
from ...models.pretrained import LOADING_ERRORS, load_config
from ...models.zoo import model_class_of
from .checkpoint import Checkpoint
from .read import read_checkpoint
from .weight_file import load_weights
from .write import Format, native_model, timm_architecture


def largest_difference(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    ema: bool = False,
    to: Format | None = None,
    num_images: int = 2,
) -> float:
    """Runs two checkpoints on the same images, each by the library that its format belongs to.

    Args:
        source, destination: checkpoints of any format.
        ema: whether the source is a training loop's file whose moving average was converted.
        to: the destination's format, by default as it is found out. (A DeiT has the same files in "hf_deit" and in
            "transformers": this says which library shall run them.)
        num_images: of standard normal noise, at the checkpoint's size.

    Returns:
        The largest absolute difference of their logits. Those of two heads are their mean, which is all that timm and
        transformers know.

    Raises:
        InputError: a checkpoint is damaged, its library does not open it, or the two are for other images or labels.
    """
    source, destination = os.fspath(source), os.fspath(destination)
    one, other = read_checkpoint(source, ema=ema), read_checkpoint(destination)
    if _interface(one.config) != _interface(other.config):
        raise InputError(f"{source!r} and {destination!r} differ in the size of images or the number of labels")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, one.config.num_channels, *as_pair(one.config.image_size), generator=generator)
    first = _logits(images, one, source, one.source_format, ema)
    second = _logits(images, other, destination, to or other.source_format, False)
    return (first - second).abs().max().item()


def _interface(config: DeiTConfigBase) -> tuple:
    """What goes in and what comes out."""
    return as_pair(config.image_size), config.num_channels, config.num_labels


@torch.no_grad()
def _logits(images: torch.Tensor, checkpoint: Checkpoint, path: str, library: str, ema: bool) -> torch.Tensor:
    try:
        return _open(checkpoint, path, library, ema)(images)
    except LOADING_ERRORS as error:
        raise InputError(f"{library} cannot run {path!r}: {one_line(error)}") from error


def _open(checkpoint: Checkpoint, path: str, library: str, ema: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from images to logits, in float32: the checkpoint in the hands of a library."""
    if library == "transformers":
        model = native_model(checkpoint)
        # Where one head answers, transformers opens that alone; both are in the weights as they were read.
        if getattr(checkpoint.config, "fusion", None) not in ONE_HEAD_FUSIONS:
            model = type(model).from_pretrained(path, config=load_config(path))
        model = model.float().eval()
        return lambda images: model(images).logits
    if library == "hf_deit":
        model = model_class_of(checkpoint.config).from_pretrained(path).float().eval()
        if hasattr(model.config, "fusion"):
            model.config.fusion = "logits"
        return lambda images: model(images).logits
    if os.path.isdir(path):
        return timm.create_model(f"local-dir:{path}", pretrained=True).float().eval()
    # The authors' own code needs timm 0.3.2; their models are in timm since.
    name, model_args = timm_architecture(checkpoint.config)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=checkpoint.config.num_labels, **model_args)
    model.load_state_dict(load_weights(path, ema=ema).weights, strict=True, assign=True)
    return model.float().eval()
