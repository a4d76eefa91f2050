"""The packages that an export or a benchmark needs beside the package's own, by the extra that installs them."""

from importlib.util import find_spec

from ..errors import InputError

MODULES = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "executorch": ("executorch",),
    "openvino": ("openvino", "nncf", "onnx"),
    "demo": ("gradio",),
    "bench": ("vit_pytorch",),
}


def missing(extra: str) -> str | None:
    """What is lacking of an extra, with the line that installs it; None if nothing is.

    Args:
        extra: "export", "executorch", "openvino", "demo" or "bench".
    """
    absent = [name for name in MODULES[extra] if find_spec(name) is None]
    if not absent:
        return None
    return (
        f"this needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed: "
        f"pip install 'hf_deit[{extra}]'"
    )


def require(extra: str) -> None:
    """Raises `InputError`, with the line that installs it, if a package of an extra is missing; see `missing`."""
    if lacks := missing(extra):
        raise InputError(lacks)
