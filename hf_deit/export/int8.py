"""Which format can hold a classifier in int8, and how; loads no library."""

from collections.abc import Sequence

from ..errors import InputError

MODES = ("dynamic", "static")
MOST_COST = 0.005  # in accuracy, or in agreement where there are no labels: beyond, layers to exclude are named
# By format and mode: what becomes of the model. What is not here is refused, for the reason below.
INT8 = {
    ("onnx", "dynamic"): "weights of linear layers in int8, their inputs quantised image by image; needs no images",
    ("onnx", "static"): "weights of linear layers and convolutions in int8, their inputs on calibrated scales",
    ("openvino", "static"): "weights and activations in int8, on calibrated scales (NNCF, for transformers)",
    ("executorch", "static"): "weights and activations in int8, on calibrated scales (PT2E, for XNNPACK)",
    ("executorch", "dynamic"): "weights of linear layers in int8, their inputs quantised image by image (PT2E)",
}
_REFUSED = {
    ("openvino", "dynamic"): "OpenVINO's own would store weights in int8 and compute in float32",
    ("torch", "dynamic"): "what torch.export makes is computed by PyTorch's reference kernels, slower than float32",
    ("torch", "static"): "what torch.export makes is computed by PyTorch's reference kernels, slower than float32",
}


def check_int8(formats: Sequence[str], mode: str) -> None:
    """Raises `InputError` for a format that has no int8 of a mode, with the reason and with what there is.

    Args:
        formats: of `FORMATS`.
        mode: of `MODES`.
    """
    for name in formats:
        if (name, mode) in INT8:
            continue
        modes = [other for other in MODES if (name, other) in INT8]
        others = [other for other, its_mode in INT8 if its_mode == mode]
        remedy = f"give --int8 {modes[0]}" if modes else f"leave {name} out, or --int8"
        raise InputError(
            f"--int8 {mode} is not for --to {name}: {_REFUSED[name, mode]}. There is --int8 {mode} for "
            f"{' and '.join(others)}: {remedy}"
        )


def int8_in_words() -> str:
    """The table for the command's help, a line for each."""
    width = max(len(f"{mode} {name}") for name, mode in INT8)
    return "\n".join(f"  {f'{mode} {name}':<{width}}  {words}" for (name, mode), words in INT8.items())
