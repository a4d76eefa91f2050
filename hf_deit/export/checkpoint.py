"""A classifier in no particular format."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..models.configuration_cait import CaiTConfig
from ..models.configuration_deit import DeiTConfigBase, DistilledDeiTConfig, PlainDeiTConfig
from ..models.image_processing_deit import DistilledDeiTImageProcessor
from ..models.zoo import model_class_of

# What is kept of this package's configuration and image processor in formats that have no place for them.
METADATA_KEY = "hf_deit"
HEAD_DIM = 64  # of every DeiT
CONFIG_CLASSES = {"deit": DistilledDeiTConfig, "vit": PlainDeiTConfig, "cait": CaiTConfig}
PROCESSOR_SETTINGS = ("image_mean", "image_std", "crop_ratio", "rescale_factor", "resample", "size", "crop_size")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class Checkpoint:
    """A classifier in no particular format.

    Attributes:
        config: of this package.
        weights: by the names of this package's classifier.
        processor: what its images must look like.
        source_format: "facebook", "timm", "transformers" or "hf_deit".
    """

    config: DeiTConfigBase
    weights: dict[str, torch.Tensor]
    processor: DistilledDeiTImageProcessor
    source_format: str

    def model(self) -> PreTrainedModel:
        """The classifier, with the weights in the precision that they were stored in."""
        with torch.device("meta"):
            model = model_class_of(self.config)(self.config)
        model.load_state_dict(self.weights, strict=True, assign=True)
        return model.eval()


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
