"""The command `hf-deit`, and `python -m hf_deit`."""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import InputError, did_you_mean
from .command_line import (
    STATUS_OF_INPUT,
    STATUS_OF_INTERRUPT,
    check_encoding,
    check_surroundings,
    end_unforeseen,
    exit_command,
    report_error,
    use_streams,
)
from .quiet import quiet_loading

# What each command does; its module has its name. Nothing is loaded before one is chosen.
COMMANDS = {
    "distil": "the whole road: from a folder of images to a trained, evaluated and exported classifier",
    "train": "distil a model from a teacher, or train one from labels alone",
    "label": "let a teacher label training views, so that later runs need none",
    "probe": "fit a linear classifier on the features of a backbone, which can teach",
    "preview": "show what training sees, as a picture",
    "convert": "convert a checkpoint between facebookresearch, timm, transformers and hf_deit",
    "evaluate": "measure models on images, compare and explain them, in a report",
    "predict": "let a model answer to images: a table, and folders sorted by label",
    "export": "put a model into ONNX, OpenVINO, ExecuTorch or torch.export, and prove that it answers the same",
    "demo": "make a page on which anybody can try a model, in the browser",
    "publish": "check a trained model, or kept labels, and push it to the Hub",
    "benchmark": "measure what training and inference cost, arms in turn",
    "launch": "run one of these on several devices",
}
# They load for seconds what their options do not need: the modules of these, whose `read_options` comes first.
_WITH_LIGHT_OPTIONS = {
    **{name: f"{name}_options" for name in ("probe", "evaluate", "predict", "export")},
    **{name: name for name in ("demo", "benchmark")},
    "distil": "distilling.options",
}
# Other words for them.
_MEANT = {
    **dict.fromkeys(("distill", "all", "auto", "everything", "pipeline"), "distil"),
    **dict.fromkeys(("fit", "finetune", "fine-tune", "run", "resume"), "train"),
    **dict.fromkeys(("labels", "annotate", "pseudo-label", "teach"), "label"),
    **dict.fromkeys(("linear", "linear-probe", "linear_probe", "features", "logreg"), "probe"),
    **dict.fromkeys(("show", "visualize", "visualise", "plot"), "preview"),
    **dict.fromkeys(("eval", "test", "validate", "report", "compare", "score"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "classify", "answer", "sort", "auto-label"), "predict"),
    **dict.fromkeys(("onnx", "openvino", "executorch", "quantize", "quantise", "deploy"), "export"),
    **dict.fromkeys(("page", "app", "space", "web", "gradio", "try"), "demo"),
    **dict.fromkeys(("push", "upload", "push-to-hub", "push_to_hub"), "publish"),
    **dict.fromkeys(("bench", "time", "speed"), "benchmark"),
}


def usage() -> str:
    """What `hf-deit --help` prints."""
    commands = "\n".join(f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items())
    return (
        "Distil any image classifier on the Hugging Face Hub into a DeiT.\n\n"
        f"usage: hf-deit COMMAND [options]\n\n{commands}\n\n"
        "  hf-deit COMMAND --help      the options that people use\n"
        "  hf-deit train               without options: digits, on any CPU, in minutes\n\n"
        "On several devices: hf-deit launch COMMAND [options]\n"
    )


def main(arguments: Sequence[str]) -> int:
    """Runs a command.

    Args:
        arguments: the command and its options.

    Returns:
        The exit status, see `hf_deit.commands.command_line.run_command`.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(usage(), end="")
        return 0
    if name == "--version":
        import hf_deit

        print(hf_deit.__version__)
        return 0
    if name not in COMMANDS:
        meant = _MEANT.get(name.lower().lstrip("-"))
        near = f"; did you mean {meant!r}?" if meant else did_you_mean(name, COMMANDS)
        report_error(InputError(f"there is no command {name!r}: expected one of {', '.join(COMMANDS)}{near}"))
        return STATUS_OF_INPUT
    quiet_loading()
    try:
        check_surroundings()
        if name in _WITH_LIGHT_OPTIONS:
            check_encoding(rest)
            importlib.import_module(f"{__package__}.{_WITH_LIGHT_OPTIONS[name]}").read_options(rest)
        command = importlib.import_module(f"{__package__}.{name}")
    except InputError as error:
        report_error(error)
        return STATUS_OF_INPUT
    except (Exception, SystemExit) as error:  # an installation that is not whole
        return end_unforeseen(error, arguments)
    return command.main(rest)


def run() -> NoReturn:
    """The entry point: runs a command and ends the process."""
    use_streams()
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:  # while the command was loaded
        status = STATUS_OF_INTERRUPT
    except (Exception, SystemExit) as error:  # such as of an output that cannot be written
        status = end_unforeseen(error, sys.argv[1:])
    exit_command(status)
