"""`hf-deit benchmark`: measures with the arms in turn, so that a ratio holds on a busy machine. Loads no library."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ..data.arguments import COUNTS, check_ranges
from ..errors import InputError
from ..evaluation.arguments import EvaluationArguments
from ..hub.files import write_whole
from .command_line import CommandParser, run_command

if TYPE_CHECKING:
    from ..evaluation.benchmarks.figures import Report

_COUNTS = (
    *("image_size", "photograph_width", "batch_size", "rounds", "steps", "batches"),
    *("storage_views", "threads", "max_images"),
)
_ENDINGS = (".json", ".md", ".png")


class _WithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but where the help tells one in words, or there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_words = "(default: " in (action.help or "") or action.default in (None, [])
        return action.help if has_words else super()._get_help_string(action)


class _BenchmarkParser(argparse.ArgumentParser):
    """Of one benchmark: shows defaults, and raises `InputError` instead of printing its usage."""

    def __init__(self, **settings: object) -> None:
        super().__init__(formatter_class=_WithDefaults, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_benchmark, arguments)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for: options, and `measure`, the function that is given them.

    Raises:
        InputError: an option that there is not, or a value that it cannot have.
        SystemExit: the help was asked for, and is printed.
    """
    parser = CommandParser("benchmark", "Measures with the arms in turn, so that a ratio holds on a busy machine.")
    benchmarks = parser.add_subparsers(
        dest="benchmark",
        metavar="label-store|imports|inference|step|loader|end-to-end|startup",
        required=True,
        parser_class=_BenchmarkParser,
    )
    kinds = (_add_label_store, _add_imports, _add_inference, _add_step, _add_loader, _add_end_to_end, _add_startup)
    for add in kinds:
        _add_output(add(benchmarks))
    parsed = parser.parse_args(arguments)
    check_ranges(parsed, {COUNTS: [name for name in _COUNTS if getattr(parsed, name, None) is not None]})
    _check_output(parsed.output)
    return parsed


def _benchmark(arguments: Sequence[str]) -> int:
    options = vars(read_options(arguments))
    measure, files = options.pop("measure"), options.pop("output")
    del options["benchmark"]
    report = measure(**options)
    print(report)  # first: a full disk takes no figures away
    _write(report, files)
    return 0


def _add_label_store(benchmarks: argparse._SubParsersAction) -> argparse.ArgumentParser:
    store = benchmarks.add_parser(
        "label-store",
        description="A training step with a live teacher, recording and replaying its labels, and without a teacher.",
    )
    store.set_defaults(measure=_measure_label_store)
    store.add_argument("--student", default="deit_tiny_distilled_patch16_224", help="name of the zoo")
    store.add_argument("--teachers", nargs="+", default=["regnety_160", "regnety_040"], help="timm's names")
    _add_steps(store)
    store.add_argument("--num_workers", type=int, default=1, help="of each arm's loader")
    store.add_argument("--storage_views", type=int, default=1_281_152, help="of the epoch that is stored")
    return store


def _add_steps(benchmark: argparse.ArgumentParser) -> None:
    """What is asked of every benchmark of training steps."""
    add = benchmark.add_argument
    add("--image_size", type=int, default=224, help="in pixels")
    add("--batch_size", type=int, default=16, help="views of a step")
    add("--rounds", type=int, default=9, help="that are counted")
    add("--steps", type=int, default=1, help="of an arm in a round")
    add("--bf16", action="store_true", help="of student and teacher")


def _add_imports(benchmarks: argparse._SubParsersAction) -> argparse.ArgumentParser:
    imports = benchmarks.add_parser("imports", description="Importing this package, against importing transformers.")
    imports.set_defaults(measure=_measure_imports)
    imports.add_argument("--rounds", type=int, default=5, help="that are counted")
    return imports


def _add_inference(benchmarks: argparse._SubParsersAction) -> argparse.ArgumentParser:
    inference = benchmarks.add_parser(
        "inference",
        description="A trained model in PyTorch, ONNX Runtime, OpenVINO and ExecuTorch, in float32 and int8: size, "
        "time, memory, and accuracy or, where there are no labels, agreement with PyTorch.",
    )
    inference.set_defaults(measure=_measure_inference)
    add = inference.add_argument
    add(
        "--model",
        default="deit_tiny_distilled_patch16_224",
        help="folder, Hub id, or name of the zoo (random weights)",
    )
    add(
        "--arms",
        nargs="+",
        default=[],
        help="some, of those that an unknown one is answered with (default: all for the "
        "device but executorch-int8, which takes minutes to calibrate)",
    )
    add("--batch_sizes", type=int, nargs="+", default=[1, 32], help="images answered at once")
    add("--rounds", type=int, default=15, help="that are counted")
    add("--threads", type=int, help="of each arm (default: the physical cores)")
    add("--images_dir", "--images", help="to measure accuracy on: a folder per class, or images alone")
    add("--dataset_name", help="instead: Hub id, local path, or sklearn:digits; a run's folder knows its own")
    add("--split", help="of it (default: test)")
    add("--max_images", type=int, default=1000, help="that every arm answers, evenly spread over all")
    add("--device", default="cpu", help="cpu or cuda")
    return inference


def _add_step(benchmarks: argparse._SubParsersAction) -> argparse.ArgumentParser:
    step = benchmarks.add_parser(
        "step",
        description="A training step on a fixed batch, against timm's distillation task, transformers' DeiT in a loop "
        "and in its Trainer, whose losses must agree, and vit-pytorch's wrapper.",
    )
    step.set_defaults(measure=_measure_step)
    step.add_argument("--student", default="deit_tiny_distilled_patch16_224", help="a distilled DeiT of the zoo")
    step.add_argument("--teacher", default="regnety_040", help="timm's name")
    _add_steps(step)
    step.add_argument("--arms", nargs="+", default=[], help="some, as live:hf_deit live:timm (default: all)")
    add = step.add_argument
    add("--device", help="cpu or cuda (default: the best there is)")
    add("--compile", dest="compiled", action="store_true", help="ours and the tuned arms")
    add("--no_memory", dest="has_memory", action="store_false", help="which takes a process of each arm")
    return step


def _add_loader(benchmarks: argparse._SubParsersAction) -> argparse.ArgumentParser:
    loader = benchmarks.add_parser(
        "loader", description="From JPEG images to batches of augmented views, against timm's loaders."
    )
    loader.set_defaults(measure=_measure_loader)
    add = loader.add_argument
    add("--image_size", type=int, default=224, help="in pixels")
    add("--photograph_width", type=int, default=500, help="of the JPEG images, in pixels; 3/4 as high")
    add("--batch_size", type=int, default=48, help="views of a batch; a multiple of 3")
    add("--batches", type=int, default=4, help="of an arm in a round")
    add("--num_workers", type=int, default=0, help="of each loader; 0 makes views in the process itself")
    add("--rounds", type=int, default=7, help="that are counted")
    add("--arms", nargs="+", default=[], help="some, as hf_deit:1-reduced (default: all of the same pixels)")
    return loader


def _add_end_to_end(benchmarks: argparse._SubParsersAction) -> argparse.ArgumentParser:
    training = benchmarks.add_parser(
        "end-to-end",
        description="A training from JPEG images to weights: the Trainer, a bare loop of its step, and timm's loader "
        "and distillation task.",
    )
    add = training.add_argument
    add("--student", default="deit_tiny_distilled_patch16_224", help="a distilled DeiT of the zoo")
    add("--teacher", default="regnety_040", help="timm's name, or none")
    _add_steps(training)
    training.set_defaults(measure=_measure_end_to_end, rounds=5, steps=5)
    add("--num_workers", type=int, default=1, help="of each arm's loader")
    add("--arms", nargs="+", default=[], help="some, as hf_deit hf_deit:bare (default: all)")
    return training


def _add_startup(benchmarks: argparse._SubParsersAction) -> argparse.ArgumentParser:
    startup = benchmarks.add_parser(
        "startup",
        description="From the command to the first training step, by stages, in fresh processes: hf-deit train, a "
        "script with transformers and datasets, and one with timm.",
    )
    startup.set_defaults(measure=_measure_startup)
    add = startup.add_argument
    add("--images", type=int, nargs="+", default=[1000, 10_000], help="how many")
    add("--layouts", nargs="+", default=["folders"], help="folders, of links, and parquet, of 60 kB an image")
    add("--arms", nargs="+", default=[], help="transformers or timm, beside ours (default: both)")
    add("--image_size", type=int, default=224, help="in pixels")
    add("--batch_size", type=int, default=16, help="views of a step")
    add("--num_workers", type=int, default=2, help="of each loader")
    add("--rounds", type=int, default=3, help="that are counted")
    return startup


def _measure_label_store(**options: Any) -> "Report":
    from ..evaluation.benchmarks.label_store import measure_label_store

    return measure_label_store(**options)


def _measure_imports(**options: Any) -> "Report":
    from ..evaluation.benchmarks.imports import measure_imports

    return measure_imports(**options)


def _measure_inference(
    *,
    model: str,
    images_dir: str | None,
    dataset_name: str | None,
    split: str | None,
    **settings: Any,
) -> "Report":
    """See `measure_inference`."""
    from ..export.benchmark.inference import Settings, measure_inference
    from ..hub.run_folder import RECIPE_FILE
    from .evaluated_images import images_to_evaluate

    chosen = Settings(**settings)
    images = None
    if images_dir or dataset_name or os.path.isfile(os.path.join(model, RECIPE_FILE)):
        named = {"images_dir": images_dir, "dataset_name": dataset_name, "split": split}
        images = images_to_evaluate(EvaluationArguments(model=model, **named))
    elif split:
        raise InputError(f"--split is of a data set, got {split!r}: give --dataset_name, too")
    return measure_inference(model, images, chosen)


def _measure_step(**options: Any) -> "Report":
    from ..export.benchmark.step import measure_step

    return measure_step(**options)


def _measure_loader(**options: Any) -> "Report":
    from ..evaluation.benchmarks.loader import measure_loader

    return measure_loader(**options)


def _measure_end_to_end(**options: Any) -> "Report":
    from ..evaluation.benchmarks.end_to_end import measure_end_to_end

    return measure_end_to_end(**options)


def _measure_startup(**options: Any) -> "Report":
    from ..evaluation.benchmarks.startup import measure_startup

    return measure_startup(**options)


def _add_output(benchmark: argparse.ArgumentParser) -> None:
    benchmark.add_argument(
        "--output",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="files for the figures: .json, .md for the table, .png for a picture",
    )


def _check_output(files: Sequence[str]) -> None:
    for file in files:
        if not file.endswith(_ENDINGS):
            raise InputError(f"--output must be files that end in .json, .md or .png, got {file!r}")
        if not os.path.isdir(folder := os.path.dirname(os.path.abspath(file))):
            raise InputError(f"there is no folder {folder!r} for --output {file!r}: make it first")


def _write(report: "Report", files: Sequence[str]) -> None:
    """A report as JSON, as its table or as its picture, by the ending of each file."""
    for file in files:
        if file.endswith(".json"):
            content: str | bytes = json.dumps(report.to_dict(), indent=2) + "\n"
        elif file.endswith(".md"):
            content = f"{report}\n"
        else:
            from ..evaluation.benchmarks.chart import draw_charts

            content = draw_charts(report.charts(), title=report.title)
        write_whole(content, file)
