"""A classifier in no particular format, and what it must be."""

import copy
import math
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from ...errors import InputError, one_line, shortlist
from ...models.class_names import unique_names
from ...models.configuration_deit import DeiTConfigBase, label2id_of
from ...models.image_processing_deit import DistilledDeiTImageProcessor
from ...models.zoo import model_class_of

# Under this key files and folders of other formats hold our configuration and image processor, for which they have no
# place: written by write.py, found by read.py.
METADATA_KEY = "hf_deit"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PROCESSOR_SETTINGS = ("image_mean", "image_std", "crop_ratio", "rescale_factor", "resample", "size", "crop_size")


@dataclass
class Checkpoint:
    """A classifier in no particular format.

    Attributes:
        config: of this package.
        weights: by the names of this package's classifier.
        processor: what its images must look like.
        source_format: what it was read from: "facebook", "timm", "transformers" or "hf_deit".
        taken: where the weights stood in a training loop's file that has averaged ones, say "state_dict"; else "".
        left: where the other ones stand if the file has both trained and averaged weights; else None.
    """

    config: DeiTConfigBase
    weights: dict[str, torch.Tensor]
    processor: DistilledDeiTImageProcessor
    source_format: str
    taken: str = ""
    left: str | None = None

    def model(self) -> PreTrainedModel:
        """The classifier, with the weights in the precision that they were stored in."""
        with torch.device("meta"):
            model = model_class_of(self.config)(self.config)
        model.load_state_dict(self.weights, strict=True, assign=True)
        return model.eval()


def expected_shapes(config: DeiTConfigBase, where: str) -> dict[str, torch.Size]:
    """The names and shapes that the weights of a configuration have.

    Args:
        config: may be of no possible model.
        where: what to call the checkpoint in the message.

    Raises:
        InputError: no model can be made from the configuration.
    """
    try:
        with torch.device("meta"):
            model = model_class_of(config)(config)
    except Exception as error:
        raise InputError(f"{where!r} is of an impossible model: {one_line(error)}") from error
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def checked(checkpoint: Checkpoint, where: str) -> Checkpoint:
    """The checkpoint, if it is whole. Labels that share a name are told apart by `unique_names`.

    Args:
        checkpoint: as it was read.
        where: what to call it in the message.

    Raises:
        InputError: weights are missing, unknown, of another shape or not finite, or settings contradict each other;
            the message names them.
    """
    config, found = checkpoint.config, checkpoint.weights
    expected = expected_shapes(config, where)
    for problem, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has the unknown", sorted(found.keys() - expected.keys())),
    ):
        if names:
            raise InputError(f"{where!r} {problem} {shortlist(names, 4)}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise InputError(f"{where!r}: {name} must be {tuple(shape)}, got {tuple(found[name].shape)}")
        if not found[name].isfinite().all():
            raise InputError(f"{where!r}: {name} holds numbers that are not finite")
    for name, value in config.to_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where!r}: {name} must be finite, got {value}")
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise InputError(f"{where!r}: id2label must name the labels 0 to {config.num_labels - 1}")
    _check_processor(checkpoint.processor, where)
    if (names := unique_names(config.id2label)) != config.id2label:
        config = copy.deepcopy(config)
        config.id2label, config.label2id = names, label2id_of(names)
    return replace(checkpoint, config=config)


def _check_processor(processor: DistilledDeiTImageProcessor, where: str) -> None:
    stated = {name: getattr(processor, name, None) for name in _PROCESSOR_SETTINGS}
    mean, std, crop_ratio, factor, resample, *sizes = stated.values()
    try:
        edges = [tuple(dict(size).values()) for size in sizes]
        is_possible = (
            len(mean) == len(std) > 0
            and all(-math.inf < value < math.inf for value in mean)
            and all(0 < value < math.inf for value in (*std, factor))
            and all(pair and all(type(edge) is int and edge > 0 for edge in pair) for pair in edges)
            and 0 < crop_ratio <= 1
            and resample in range(6)
        )
    except TypeError:
        is_possible = False
    if not is_possible:
        raise InputError(f"{where!r} has an image processor of impossible settings: {stated}")
