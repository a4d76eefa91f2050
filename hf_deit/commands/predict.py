"""`hf-deit predict`: what a model says of images, as a table, and sorted into folders."""

from collections.abc import Sequence

from ..errors import counted, printable, rate, shortlist
from ..evaluation.predictions.predict import Predictions, predict
from .command_line import run_command
from .predict_options import read_options

_MOST_SHOWN = 5  # labels, broken files, kinds of files


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_predict, arguments, if_interrupted="stopped: the same command goes on where it was")


def _predict(command: Sequence[str]) -> int:
    found = predict(read_options(command))
    if found is not None:  # in the main process
        print(printable(in_words(found)))
    return 0


def in_words(found: Predictions) -> str:
    """What has come of predictions, for a terminal."""
    lines = []
    for label, number in list(found.counts.items())[:_MOST_SHOWN]:
        lines.append(f"{number:>9,}  {number / found.num_images:6.1%}  {label}")
    if len(found.counts) > _MOST_SHOWN:
        rest = sum(list(found.counts.values())[_MOST_SHOWN:])
        labels = counted(len(found.counts) - _MOST_SHOWN, "other label")
        lines.append(f"{rest:>9,}  {rest / found.num_images:6.1%}  of {labels}")
    lines.append("")
    if found.broken:
        named = shortlist((f"{name} ({why})" for name, why in found.broken.items()), 3)
        lines.append(f"{counted(len(found.broken), 'file')} could not be used, see {found.broken_path}: {named}")
    if found.passed_over:
        kinds = shortlist((f"{number:,} {end or 'without an ending'}" for end, number in found.passed_over.items()))
        lines.append(f"{counted(sum(found.passed_over.values()), 'file')} passed over, which are no images: {kinds}")
    if found.num_repeated:
        lines.append(f"{counted(found.num_repeated, 'file')} named again, and taken once")
    if found.sorted is not None:
        lines += _sorted_in_words(found)
    speed = f", {rate(found.num_computed / found.seconds)} images/s" if found.num_computed else ", as it was there"
    lines.append(f"The predictions of {counted(found.num_images, 'image')}: {found.path}{speed}")
    return "\n".join(lines)


def _sorted_in_words(found: Predictions) -> list[str]:
    made = found.sorted
    what = {"symbolic": "symbolic links", "hard": "hard links", "copy": "copies"}[made.link]
    aside = f", {made.num_left_aside:,} left aside" if made.num_left_aside else ""
    gone = f", {made.num_gone:,} no longer there" if made.num_gone else ""
    lines = [f"{counted(made.num_images, 'image')} sorted into {made.folder} ({what}){aside}{gone}"]
    used = {label: name for label, name in made.renamed.items() if label in found.counts}
    if used:
        names = shortlist(f"{label!r} as {name!r}" for label, name in used.items())
        lines.append(f"labels that are no names of folders: {names}")
    return lines
