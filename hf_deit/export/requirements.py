"""The packages that an export needs beside the package's own, by the extra that installs them."""

from importlib.util import find_spec

from ..errors import InputError

MODULES = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "executorch": ("executorch",),
    "openvino": ("openvino", "nncf", "onnx"),
    "demo": ("gradio",),
}


def require(extra: str) -> None:
    """Raises `InputError`, with the line that installs it, if a package of an extra is missing.

    Args:
        extra: "export", "executorch", "openvino" or "demo".
    """
    missing = [name for name in MODULES[extra] if find_spec(name) is None]
    if missing:
        raise InputError(
            f"this needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install 'hf_deit[{extra}]'"
        )
