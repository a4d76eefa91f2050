"""A classifier for phones: ExecuTorch's `model.pte` takes `pixel_values`; what makes them of images lies beside it."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from typing import Any

import numpy as np
import torch
from executorch.exir import ExecutorchProgramManager
from transformers import PreTrainedModel
from transformers.exporters import ExecutorchExporter
from transformers.exporters.configs import ExecutorchConfig
from transformers.exporters.quantizers import ExportQuantizer

from ...errors import counted
from . import reference
from .core import FusedLogits, exported, pixels
from .reference import preprocessing, with_settings
from .source import ExportSource

MODEL = "model.pte"
GOLDEN = "golden.json"
PREPROCESSORS = ("preprocessing.py", "preprocessing.js")
# Odd ones: kind, width, height.
_GOLDEN_IMAGES = (("noise", 500, 31), ("noise", 31, 500), ("noise", 320, 240), ("stripes", 301, 199), ("noise", 2, 3))
_GOLDEN_VALUES = 60  # of an image


def export_executorch(source: ExportSource, folder: str) -> dict[str, Any]:
    """Writes `model.pte`, `preprocessing.py`, `preprocessing.js`, `golden.json` and `README.md` into a folder.

    Returns:
        "undelegated": how often each operator is that XNNPACK does not take over, and ExecuTorch's own kernels run.

    Raises:
        InputError: ExecuTorch refuses the network.
    """
    program = core_program(source)
    write(program, os.path.join(folder, MODEL))
    facts = {"undelegated": undelegated(program)}
    write_preprocessing(source, folder, facts["undelegated"])
    return facts


def core_program(source: ExportSource, quantizer: ExportQuantizer | None = None) -> ExecutorchProgramManager:
    """The network alone, for one image: `pixel_values` float32 (1, 3, height, width) → `logits` float32 (1, K)."""
    config = ExecutorchConfig(backend="xnnpack", quantizer=quantizer)
    with _plain_attention(source.classifier.model):
        inputs = {"pixel_values": pixels(source, 1)}
        return exported(ExecutorchExporter, source, FusedLogits(source.classifier), inputs, config)


def write(program: ExecutorchProgramManager, path: str) -> None:
    """Writes a program to a file."""
    with open(path, "wb") as file:
        program.write_to_file(file)


def undelegated(program: ExecutorchProgramManager) -> dict[str, int]:
    """How often each operator is in a program that no backend takes over."""
    plan = program.executorch_program.execution_plan[0]
    calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    names = [plan.operators[call.op_index].name for call in calls if hasattr(call, "op_index")]
    return dict(Counter(names).most_common())


def write_preprocessing(source: ExportSource, folder: str, undelegated: dict[str, int]) -> None:
    """Writes what goes beside a program that takes pixels: how to make them, with values to check it by."""
    settings = {
        "labels": list(source.labels),
        "preprocessing": json.loads(json.dumps(source.preprocessing.to_dict())),
        "model": source.facts,
    }
    for name in PREPROCESSORS:
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(with_settings(_template(name), settings))
    with open(os.path.join(folder, GOLDEN), "w", encoding="utf-8") as file:
        json.dump(_golden(source, settings), file)
        file.write("\n")
    height, width = source.preprocessing.input_size
    words = {"height": height, "width": width, "num_labels": len(source.labels), "delegation": _in_words(undelegated)}
    text = _template("usage.md")
    for name, word in words.items():
        text = text.replace(f"{{{name}}}", str(word))
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
        file.write(text)


def _template(name: str) -> str:
    return (resources.files(reference) / name).read_text(encoding="utf-8")


def _golden(source: ExportSource, settings: dict[str, Any]) -> dict[str, Any]:
    """What `golden.json` holds."""
    height, width = source.preprocessing.input_size
    images = [preprocessing.golden_image(*image) for image in _golden_images(source)]
    values = np.concatenate([preprocessing.pixel_values(image, settings["preprocessing"]) for image in images])
    with torch.no_grad():
        answers = FusedLogits(source.classifier)(torch.from_numpy(values))["logits"].float().softmax(dim=-1)
    places = [(i % 3, (i * 37) % height, (i * i * 11) % width) for i in range(_GOLDEN_VALUES)]
    cases = [
        {
            **dict(zip(("kind", "width", "height"), image, strict=True)),
            "pixel_values": [[*place, float(value[place])] for place in places],
            "probabilities": [round(probability, 6) for probability in answer.tolist()],
        }
        for image, value, answer in zip(_golden_images(source), values, answers, strict=True)
    ]
    return {"level": float(source.preprocessing.slope_and_intercept()[0].max()), "cases": cases}


def _golden_images(source: ExportSource) -> list[tuple[str, int, int]]:
    """By kind, width and height."""
    height, width = source.preprocessing.input_size
    takes_any_size = source.preprocessing.resize is not None or source.preprocessing.crop is not None
    return list(_GOLDEN_IMAGES) if takes_any_size else [("noise", width, height), ("stripes", width, height)]


def _in_words(undelegated: dict[str, int]) -> str:
    if not undelegated:
        return "XNNPACK computes all of it."
    names = ", ".join(f"`{name}` ({counted(count, 'time')})" for name, count in undelegated.items())
    return f"XNNPACK computes all of it but {names}, for which ExecuTorch's own kernels are needed."


@contextlib.contextmanager
def _plain_attention(model: torch.nn.Module) -> Iterator[None]:
    """Attention as products and a softmax, which XNNPACK takes over; of PyTorch's own it would leave the softmax."""
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if not isinstance(model, PreTrainedModel) or before is None:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
