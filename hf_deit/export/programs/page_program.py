"""The ONNX file of a page: answers as `classifier.onnx` gives them, those of each head, and where the tokens look."""

from typing import Any

import onnx
import torch
from onnx import compose, helper
from torch import nn
from transformers.exporters import OnnxConfig, OnnxExporter

from ...evaluation.answers.verdicts import CLASS, DISTILLATION
from ...evaluation.attention.attention_maps import (
    LAST_LAYER,
    ROLLOUT,
    has_attention_maps,
    num_special_tokens,
    recorded_attention,
    rollout,
)
from ...evaluation.classifiers.classifiers import Classifier
from ...models.configuration_deit import as_pair
from .core import BATCH, converting, pixels
from .onnx_preprocessing import preprocessing_graph
from .onnx_program import OPSET, without_traces
from .source import ExportSource

PROBABILITIES = "probabilities"
HEADS = (CLASS, DISTILLATION)
METHODS = (LAST_LAYER, ROLLOUT)


def page_model(source: ExportSource) -> onnx.ModelProto:
    """A classifier that takes `images`, uint8 (B, H, W, 3), RGB and upright, of any size.

    Returns:
        A model with the outputs `probabilities`, (B, K) float32; of a model with two heads also "class" and
        "distillation", (B, K) float32, what each of them says; and where `has_attention_maps` also "last_layer" and
        "rollout", (S, rows, columns) float32, as `AttentionMaps.maps` of the S special tokens in the first image.
    """
    core = _core_model(source)
    before = helper.make_model(
        preprocessing_graph(source.preprocessing), opset_imports=core.opset_import, ir_version=core.ir_version
    )
    model = compose.merge_models(before, core, io_map=[("prepared", "pixel_values")])
    onnx.checker.check_model(model)
    return model


def _core_model(source: ExportSource) -> onnx.ModelProto:
    """`pixel_values`, (B, 3, height, width) float32 → the outputs of `page_model`."""
    config = OnnxConfig(dynamic_shapes={"pixel_values": BATCH}, opset_version=OPSET)
    import onnx_ir

    with converting("ONNX", source), torch.no_grad():
        exported = OnnxExporter().export(
            _Explained(source.classifier), {"pixel_values": pixels(source, 2)}, config=config
        )
        model = onnx_ir.to_proto(exported.program)
    without_traces(model)
    return model


class _Explained(nn.Module):
    """A classifier whose outputs are what a page shows."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model, self.config = classifier.model, classifier.model.config
        self._classifier = classifier

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        model, options = self.model, self._classifier.forward_options
        if not has_attention_maps(model):
            return self._answers(model(pixel_values=pixel_values, **options))
        with recorded_attention(model) as recorded:
            answers = self._answers(model(pixel_values=pixel_values, **options))
        patch_height, patch_width = as_pair(self.config.patch_size)
        grid = pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width
        special, attentions = num_special_tokens(model), [weights[0] for weights in recorded]
        last = attentions[-1][:, :special, special:].mean(dim=0)
        maps = {LAST_LAYER: last, ROLLOUT: rollout(attentions, special).float()}
        return answers | {name: values.unflatten(-1, grid) for name, values in maps.items()}

    def _answers(self, outputs: Any) -> dict[str, torch.Tensor]:
        answers = {PROBABILITIES: outputs.logits}
        if self._classifier.has_two_heads:
            answers |= self._classifier.heads_of(outputs)
        return {name: logits.float().softmax(dim=-1) for name, logits in answers.items()}
