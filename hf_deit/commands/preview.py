"""`hf-deit preview`: shows what training sees, as a contact sheet of training views with their targets."""

import tempfile
from collections.abc import Sequence

from PIL import Image

from ..errors import InputError, first_line
from ..recipes.option_names import expand_aliases
from ..recipes.resolve import resolve_arguments
from ..training.label_source import LabelSource
from ..training.preview import check_picture_name, contact_sheet
from .command_line import run_command
from .prepare import as_range, prepare
from .run_options import RunParser


def preview_run(command: Sequence[str], *, epoch: int, slots: str) -> Image.Image:
    """A contact sheet of the views that a run trains on; see `hf_deit.training.preview`.

    Args:
        command: the run's command line.
        epoch: from 0.
        slots: "FIRST:LAST" of the epoch's order, LAST exclusive.

    Raises:
        InputError: the run's input cannot be used, or there are no such slots.
    """
    wanted = as_range("slots", slots, "0:16")
    with tempfile.TemporaryDirectory() as folder:
        # A view depends neither on the device, nor on the teacher, nor on where the run writes and reports to.
        neutral = [
            "--use_cpu=true",
            "--tf32=false",
            "--fp16=false",
            "--bf16=false",
            "--deepspeed=",
            "--report_to=none",
        ]
        arguments = resolve_arguments([*expand_aliases(command), *neutral, "--output_dir", folder], is_trained=False)
        run = prepare(arguments, LabelSource.of(arguments.training))
        id2label = run.student.config.id2label
        return contact_sheet(run.views, arguments.training, run.processor, id2label, epoch=epoch, slots=wanted)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_preview, arguments)


def _preview(arguments: Sequence[str]) -> int:
    parser = RunParser(
        "preview",
        "Shows what training sees: a contact sheet of training views with their targets. Takes the recipe and the "
        "options of the run; needs no GPU and no teacher.",
        examples=["hf-deit preview --recipe own_images --train_dir images/train --epoch 7 --slots 100:116"],
        usual=("images", "training"),
    )
    parser.add_argument("--epoch", type=int, default=0, help="from 0")
    parser.add_argument("--slots", default="0:16", help="FIRST:LAST of the epoch's order, LAST exclusive")
    parser.add_argument("--output", default="preview.png", help="picture to write")
    options, rest = parser.parse_run(arguments)
    check_picture_name(options.output)
    try:
        sheet = preview_run(rest, epoch=options.epoch, slots=options.slots)
        sheet.save(options.output)
    except OSError as error:
        raise InputError(f"cannot preview into {options.output!r}: {first_line(error)}") from error
    print(f"wrote {options.output}: {sheet.width} x {sheet.height} pixels")
    return 0
