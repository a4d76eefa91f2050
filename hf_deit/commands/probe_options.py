"""The options of `hf-deit probe`. Loads no library: a slip of the pen is told at once."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..evaluation.probe.arguments import ProbeArguments
from .command_line import CommandParser

_EXAMPLES = """examples:
  hf-deit probe --backbone facebook/dinov2-small --train_dir images/train
  hf-deit probe --backbone timm/vit_small_patch16_dinov3.lvd1689m --train_dir images/train --test_dir images/test
  hf-deit probe --backbone NAME --dataset_name sklearn:digits --output_dir outputs/digits-probe
  hf-deit train --teacher_probe facebook/dinov2-small …      (fits one in passing, and lets it teach)
"""
_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_options(command: Sequence[str]) -> ProbeArguments:
    """What a command line asks for.

    Raises:
        InputError: an option that there is not, or a value that it cannot have.
        SystemExit: the help was asked for, and is printed.
    """
    options = vars(_parser().parse_args(command))
    return ProbeArguments(**{field.name: options[field.name] for field in fields(ProbeArguments)})


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ArgumentTypeError(f"expected true or false, got {text!r}")
    return _SWITCH[text.lower()]


def _parser() -> CommandParser:
    parser = CommandParser(
        "probe",
        "Fits a linear classifier of your classes on the features of a backbone, in minutes: says what it is worth "
        "by cross-validation, and saves an ordinary classifier, which can teach.",
        usage="hf-deit probe --backbone FOLDER_OR_ID --train_dir DIR [options]",
        epilog=_EXAMPLES,
    )
    defaults = {field.name: field.default for field in fields(ProbeArguments)}

    def add(group: Any, name: str, words: str, **settings: Any) -> None:
        given = settings.setdefault("default", defaults[name])
        if settings.get("action") != "store_true" and given not in (None, ""):
            words += f" (default: {given})"
        group.add_argument(f"--{name}", help=words, **settings)

    probe = parser.add_argument_group("the probe")
    add(
        probe,
        "backbone",
        "of transformers or timm: a folder or Hub id (my/model@revision)",
        metavar="MODEL",
        default="",
    )
    add(probe, "output_dir", "folder of the classifier", metavar="DIR")
    add(probe, "overwrite", "replace another probe there", action="store_true")
    images = parser.add_argument_group("images to fit it on, with their labels")
    add(images, "train_dir", "a folder per class", metavar="DIR")
    add(images, "dataset_name", "instead: Hub id, local path, or sklearn:digits", metavar="NAME")
    add(images, "dataset_config_name", "its configuration", metavar="NAME")
    add(images, "dataset_revision", "its branch, tag or commit", metavar="REVISION")
    add(images, "train_split", "its split", metavar="SPLIT")
    add(images, "image_column_name", "if several columns hold images", metavar="NAME")
    add(images, "label_column_name", "if there is any doubt", metavar="NAME")
    add(images, "labels_kept", "take so many, seeded and stratified", type=int, metavar="N")
    add(images, "on_bad_image", "stop, or skip it", metavar="WHAT")
    add(images, "check_images", "beforehand: all, headers, none", metavar="WHAT")
    others = parser.add_argument_group("images to measure it on, too; it is never fitted on them")
    for name, words in (("validation", "to validate with"), ("test", "to test with")):
        add(others, f"{name}_dir", f"a folder per class, {words}", metavar="DIR")
        add(others, f"{name}_split", f"a split of the data set, {words}", metavar="SPLIT")
    how = parser.add_argument_group("how it is fitted")
    add(
        how, "horizontal_flip", "learn from mirrored images, too (default: true, but of sklearn:digits)",
        type=_switch, metavar="TRUE_OR_FALSE",
    )  # fmt: skip
    add(
        how,
        "corner_crops",
        "learn from the four corners, too: five times as long",
        action="store_true",
    )
    add(how, "folds", "of cross-validation (default: 5)", type=int, metavar="N")
    add(how, "seed", "of the folds, and of --labels_kept", type=int, metavar="N")
    machine = parser.add_argument_group("the machine")
    add(machine, "batch_size", "images at once", type=int, metavar="N")
    add(machine, "num_workers", "that prepare images (default: as many as help)", type=int, metavar="N")
    add(machine, "use_cpu", "whatever else there is", action="store_true")
    return parser
