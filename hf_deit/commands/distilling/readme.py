"""The README of an output folder: what was done, from what, what came of it, and how each stage is done by hand.

It names no place of this machine: IMAGES, OUTPUT and the like stand for folders.
"""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence

from ...errors import counted, printable, with_bounds
from ...export.formats import BY_NAME
from ...hub.exports_in_card import lines_for_a_folder
from ...hub.facts import with_interval
from ...hub.files import read_json
from ...hub.markdown import code_block, code_span, escape_markdown
from ...hub.report_in_card import REPORT_FOLDER, read_report, table_markdown
from ...hub.usage import usage
from .images import Found
from .options import DistilOptions
from .stages import LABELS, MODEL, PAGE, Record, Stage, without_places
from .teacher import TeacherChoice


def make_readme(
    options: DistilOptions,
    found: Found,
    teacher: TeacherChoice,
    stages: Sequence[Stage],
    record: Record,
    *,
    licence_of: Callable[[str], str | None],
) -> str:
    """The text.

    Args:
        record: of the stages that are done.
        licence_of: what the card of a model states, by its Hub id or folder.
    """
    done = {stage.name for stage in stages if not stage.left_out and record.is_done(stage)}
    parts = [
        "# A classifier, distilled by hf_deit",
        _contents(options, done),
        f"## Images\n\n{code_block(_without_names(str(found), options), 'text')}",
        f"## Teacher\n\n{_teacher(options, teacher, licence_of)}",
        f"## Results\n\n{_results(options)}",
        f"## How to use it\n\n{_use(options, done)}",
        f"## What was done\n\n{_done(options, stages, record, done)}",
    ]
    return printable("\n\n".join(parts) + "\n")


def _without_names(text: str, options: DistilOptions) -> str:
    """A text in which folders stand as in command lines."""
    places = {"IMAGES": options.images, "UNLABELED": options.unlabeled_dir}
    for name, place in places.items():
        text = text.replace(place, name) if place and os.path.isabs(place) else text
    return text


def _contents(options: DistilOptions, done: set[str]) -> str:
    rows = [(f"{MODEL}/", "the model, its card and its recipe: it opens in plain transformers")]
    if "evaluate" in done:
        rows.append((f"{MODEL}/{REPORT_FOLDER}/report.html", "the report: accuracies with intervals, mistakes, …"))
    if "export" in done:
        rows += [(f"{MODEL}/{name}/", f"the export to {name}") for name in options.to]
    if "demo" in done:
        rows.append((f"{PAGE}/index.html", "a page on which it can be tried: a double click opens it"))
    if os.path.isdir(os.path.join(options.output_dir, LABELS)):
        rows.append((f"{LABELS}/", "the teacher's labels of all training views, which later runs replay"))
    return table_markdown(["file", "what it is"], rows)


def _teacher(options: DistilOptions, teacher: TeacherChoice, licence_of: Callable[[str], str | None]) -> str:
    if teacher.kind == "recipe":
        return f"A network that was trained on the same images first, by the recipe {code_span(teacher.names[0])}."
    if teacher.kind == "none":
        return "None: the student learnt from labels alone."
    lines = []
    for name in teacher.names:
        licence = licence_of(name)
        states = f"licence {escape_markdown(licence)}" if licence else "its card states no licence, or it has none"
        [shown] = without_places([name], options)
        lines.append(f"- {code_span(shown)}: {states}")
    if teacher.kind == "probe":
        lines.insert(0, "A linear classifier, fitted on the training images alone, on the features of:\n")
    if teacher.is_zero_shot:
        lines.append("\nA zero-shot model knows the classes by their names alone: the model's card has the texts.")
    lines.append(
        "\nA licence may forbid some uses of what was learnt from its model, commercial ones, say: read it before you "
        "publish this one."
    )
    return "\n".join(lines)


def _results(options: DistilOptions) -> str:
    """Accuracies with intervals: those of the report, or else those that the training has measured."""
    model = os.path.join(options.output_dir, MODEL)
    report = read_report(model)
    if report is not None and report[0].results:
        rows = [
            (f"{one.metric}{f', {one.rule}' if one.rule else ''}", with_bounds(one.value, one.low, one.high))
            for one in report[0].results
        ]
        words = f"On {report[0].images}, with 95 % intervals:"
    else:
        rows, words = [], "On the images that the training was validated or tested with, with 95 % intervals:"
        for split in ("eval", "test"):
            measured = _measured(os.path.join(model, f"{split}_results.json"))
            if f"{split}_top1" in measured:
                images = measured[f"{split}_images"]
                value = with_interval(measured[f"{split}_top1"], images)
                rows.append((f"top-1 on {counted(images, f'{split} image')}", value))
    if not rows:
        return "Nothing was measured, as there were no labelled images for it: `--validation_dir` takes some."
    return f"{escape_markdown(words)}\n\n{table_markdown(['measured', 'result'], rows)}"


def _measured(path: str) -> Mapping[str, float]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _use(options: DistilOptions, done: set[str]) -> str:
    lines = ["From this folder:", code_block(usage(MODEL), "python")]
    if "export" in done:
        name = options.to[0]
        format = BY_NAME[name]
        lines += [
            f"Without PyTorch (`pip install {format.runtime.packages[0]} numpy pillow`):",
            code_block(lines_for_a_folder(name, f"{MODEL}/{name}", format.classifier), "python"),
        ]
    lines.append(
        f"`hf-deit predict --model {MODEL} --images FOLDER` writes a table of answers, and `hf-deit publish {MODEL} "
        "--hub_model_id my-name/my-deit` publishes it with its card, report and exports."
    )
    return "\n\n".join(lines)


def _line(stage: Stage, options: DistilOptions) -> str:
    return shlex.join(["hf-deit", stage.name, *without_places(stage.options, options)])


def _done(options: DistilOptions, stages: Sequence[Stage], record: Record, done: set[str]) -> str:
    lines = ["Each stage by hand, where IMAGES and the like are the folders, and OUTPUT is this one:"]
    for stage in stages:
        if stage.left_out:
            lines.append(f"{stage.name}, left out: {escape_markdown(stage.left_out)}")
        elif stage.name in done:
            took = record.of(stage)["seconds"]
            lines.append(f"{stage.name}, {took / 60:.1f} minutes:\n\n{code_block(_line(stage, options), 'bash')}")
        else:
            lines.append(f"{stage.name}, not done yet, or it failed:\n\n{code_block(_line(stage, options), 'bash')}")
    return "\n\n".join(lines)
