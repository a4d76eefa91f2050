"""A classifier as a module from pixels to the logits that it answers by, and nothing else."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Logits(nn.Module):
    """Gives the fused logits alone, (B, K) float32, of pixel_values, (B, 3, height, width) float32.

    Args:
        model: an image classifier in evaluation mode; it computes in the dtype of its weights.
        forward_options: what its `forward` is given beside the pixels.
    """

    def __init__(self, model: nn.Module, forward_options: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.forward_options = dict(forward_options)
        self.dtype = next(model.parameters()).dtype

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values.to(self.dtype), **self.forward_options).logits.float()
