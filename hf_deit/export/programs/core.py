"""The network alone, as transformers' exporters take it, and what they say of a network that their format refuses."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.exporters.base import HfExporter
from transformers.exporters.configs import DynamoConfig

from ...errors import CheckpointError, ExportError, InputError, brief, first_line, shortlist
from ...evaluation.classifiers.classifiers import Classifier
from ..quiet import quiet
from .source import ExportSource

BATCH = {0: torch.export.Dim("batch", min=1, max=65535)}  # any number of images
_NAMES = {"openvino": "OpenVINO", "executorch": "ExecuTorch", "dynamo": "torch.export", "onnx": "ONNX"}
# As PyTorch, OpenVINO and ExecuTorch write them: "aten::roll", "aten.roll.default", "torch.ops.aten.roll.default".
_OPERATOR = re.compile(
    r"\b(?:aten|prims|torchvision|higher_order|quantized_decomposed)(?:::|\.)[a-z_][a-z0-9_]*", re.IGNORECASE
)
# What a model does that no program can hold, in torch's words, and in ours.
_REASONS = {
    "specialized it to be a constant": "its forward makes a Python number of the batch size",
    "Constraints violated": "its forward makes a Python number of the batch size",
    "data-dependent": "its forward decides by the values of its images",
}


class FusedLogits(nn.Module):
    """The network as a function of pixels: `pixel_values` float32 (B, 3, height, width) → `logits` (B, K), fused."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model, self.forward_options = classifier.model, dict(classifier.forward_options)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.model(pixel_values=pixel_values, **self.forward_options).logits}


def pixels(source: ExportSource, batch_size: int) -> torch.Tensor:
    """An input of the network to trace it with: (batch_size, 3, height, width)."""
    return torch.zeros(batch_size, 3, *source.preprocessing.input_size)


def exported(
    exporter: type[HfExporter],
    source: ExportSource,
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    config: DynamoConfig,
) -> Any:
    """The program that an exporter makes of a module, without a word on the terminal.

    Raises:
        InputError: the format refuses it; the message names the operators.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        with converting(_NAMES[exporter.export_format.value], source):
            return exporter().export(module, dict(inputs), config=config).program
    finally:
        for parameter in trainable:  # some exporters freeze them
            parameter.requires_grad_(True)


@contextmanager
def _all_tokens(model: nn.Module) -> Iterator[None]:
    """Within it a DeiT computes in its last block also what no head looks at."""
    before = getattr(model, "computes_all_tokens", None)  # None of another architecture
    if before is None:
        yield
        return
    model.computes_all_tokens = True
    try:
        yield
    finally:
        model.computes_all_tokens = before


@contextmanager
def converting(format: str, source: ExportSource) -> Iterator[None]:
    """Keeps off the terminal what a conversion says, and turns what it raises into an `InputError`; see `refused`.

    A DeiT is converted with all tokens of its last block: runtimes fuse the attention that they know, and OpenVINO
    answers wrongly in bfloat16 where a small model of one input shape has two queries and more keys.
    """
    try:
        with _all_tokens(source.classifier.model), quiet(f"{format}: converting the network"):
            yield
    except (InputError, CheckpointError, ExportError, OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # every library that takes part has its own
        raise refused(format, source, error) from error


def refused(format: str, source: ExportSource, error: BaseException) -> InputError:
    """What to tell of a network that a format refuses, in a line: for which operators, or what else is the reason."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    lines = [line for one in chain for line in str(one).splitlines()]
    for sign, words in _REASONS.items():
        if any(sign in line for line in lines):
            return InputError(f"{format} refuses {source.facts['architecture']}: {words}, which no format can hold")
    found = {name.replace("::", "."): line for line in reversed(lines) for name in _OPERATOR.findall(line)}
    operators = f" for its {shortlist(reversed(found))}" if found else ""
    reason = list(found.values())[-1] if found else first_line(error)  # the first line that names one
    return InputError(
        f"{format} refuses {source.facts['architecture']}{operators} ({brief(reason.strip(), str)}): export it to "
        "another format"
    )
