"""`hf-deit benchmark`: measures with the arms in turn, so that a ratio holds on a busy machine. Loads no library."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from ..data.arguments import COUNTS, check_ranges
from ..errors import InputError
from ..evaluation.arguments import EvaluationArguments
from ..hub.files import write_whole
from .command_line import CommandParser, run_command

_COUNTS = ("image_size", "batch_size", "rounds", "steps", "storage_views", "threads", "max_images")


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
        metavar="label-store|imports|inference|step|end-to-end",
        required=True,
        parser_class=_BenchmarkParser,
    )
    _add_label_store(benchmarks)
    _add_imports(benchmarks)
    _add_inference(benchmarks)
    _add_step(benchmarks)
    _add_end_to_end(benchmarks)
    parsed = parser.parse_args(arguments)
    check_ranges(parsed, {COUNTS: [name for name in _COUNTS if getattr(parsed, name, None) is not None]})
    _check_output(getattr(parsed, "output", None))
    return parsed


def _benchmark(arguments: Sequence[str]) -> int:
    options = vars(read_options(arguments))
    measure = options.pop("measure")
    del options["benchmark"]
    print(measure(**options))
    return 0


def _add_label_store(benchmarks: argparse._SubParsersAction) -> None:
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


def _add_steps(benchmark: argparse.ArgumentParser) -> None:
    """What is asked of every benchmark of training steps."""
    add = benchmark.add_argument
    add("--image_size", type=int, default=224, help="in pixels")
    add("--batch_size", type=int, default=16, help="views of a step")
    add("--rounds", type=int, default=9, help="that are counted")
    add("--steps", type=int, default=1, help="of an arm in a round")
    add("--bf16", action="store_true", help="of student and teacher")


def _add_imports(benchmarks: argparse._SubParsersAction) -> None:
    imports = benchmarks.add_parser("imports", description="Importing this package, against importing transformers.")
    imports.set_defaults(measure=_measure_imports)
    imports.add_argument("--rounds", type=int, default=5, help="that are counted")


def _add_inference(benchmarks: argparse._SubParsersAction) -> None:
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
    add("--output", help="a file for the figures: .json, or .md for the table")


def _add_step(benchmarks: argparse._SubParsersAction) -> None:
    step = benchmarks.add_parser(
        "step",
        description="A training step on a fixed batch, against timm's distillation task and transformers' DeiT, whose "
        "losses must agree.",
    )
    step.set_defaults(measure=_measure_step)
    step.add_argument("--student", default="deit_tiny_distilled_patch16_224", help="a distilled DeiT of the zoo")
    step.add_argument("--teacher", default="regnety_040", help="timm's name")
    _add_steps(step)
    step.add_argument("--arms", nargs="+", default=[], help="some, as live:hf_deit live:timm (default: all)")
    step.add_argument("--output", help="a file for the figures: .json, or .md for the table")


def _add_end_to_end(benchmarks: argparse._SubParsersAction) -> None:
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
    add("--output", help="a file for the figures: .json, or .md for the table")


def _measure_label_store(**options: Any) -> object:
    from ..evaluation.benchmarks.label_store import measure_label_store

    return measure_label_store(**options)


def _measure_imports(**options: Any) -> object:
    from ..evaluation.benchmarks.imports import measure_imports

    return measure_imports(**options)


def _measure_inference(
    *,
    model: str,
    images_dir: str | None,
    dataset_name: str | None,
    split: str | None,
    output: str | None,
    **settings: Any,
) -> object:
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
    report = measure_inference(model, images, chosen)
    _write(report, output)
    return report


def _measure_step(*, output: str | None, **options: Any) -> object:
    """See `measure_step`."""
    from ..export.benchmark.step import measure_step

    report = measure_step(**options)
    _write(report, output)
    return report


def _measure_end_to_end(*, output: str | None, **options: Any) -> object:
    """See `measure_end_to_end`."""
    from ..evaluation.benchmarks.end_to_end import measure_end_to_end

    report = measure_end_to_end(**options)
    _write(report, output)
    return report


def _check_output(output: str | None) -> None:
    if output is not None and not output.endswith((".json", ".md")):
        raise InputError(f"--output must be a file that ends in .json or .md, got {output!r}")


def _write(report: Any, output: str | None) -> None:
    """A report as JSON or as its table, by the file's ending."""
    if output is not None:
        as_json = output.endswith(".json")
        write_whole(json.dumps(report.to_dict(), indent=2) + "\n" if as_json else f"{report}\n", output)
