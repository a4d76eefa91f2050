"""`hf-deit benchmark`: measures in one process and with the arms in turn, so that a ratio holds on a busy machine."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from ..data.arguments import COUNTS, check_ranges
from ..errors import InputError
from ..evaluation.benchmarks.imports import measure_imports
from ..evaluation.benchmarks.label_store import measure_label_store
from .command_line import CommandParser, run_command

_COUNTS = ("image_size", "batch_size", "rounds", "steps", "storage_views")


class _BenchmarkParser(argparse.ArgumentParser):
    """Of one benchmark: shows defaults, and raises `InputError` instead of printing its usage."""

    def __init__(self, **settings: object) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; see `run_command` for the exit status."""
    return run_command(_benchmark, arguments)


def _benchmark(arguments: Sequence[str]) -> int:
    parser = CommandParser("benchmark", "Measures with the arms in turn, so that a ratio holds on a busy machine.")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, parser_class=_BenchmarkParser)
    _add_label_store(benchmarks)
    _add_imports(benchmarks)
    parsed = parser.parse_args(arguments)
    check_ranges(parsed, {COUNTS: [name for name in _COUNTS if name in parsed]})
    options = vars(parsed)
    measure = options.pop("measure")
    del options["benchmark"]
    print(measure(**options))
    return 0


def _add_label_store(benchmarks: argparse._SubParsersAction) -> None:
    store = benchmarks.add_parser(
        "label-store",
        description="A training step with a live teacher, recording and replaying its labels, and without a teacher.",
    )
    store.set_defaults(measure=measure_label_store)
    store.add_argument("--student", default="deit_tiny_distilled_patch16_224", help="name of the zoo")
    store.add_argument("--teachers", nargs="+", default=["regnety_160", "regnety_040"], help="timm's names")
    store.add_argument("--image_size", type=int, default=224, help="in pixels")
    store.add_argument("--batch_size", type=int, default=16, help="views of a step")
    store.add_argument("--num_workers", type=int, default=1, help="of each arm's loader")
    store.add_argument("--rounds", type=int, default=9, help="that are counted")
    store.add_argument("--steps", type=int, default=1, help="of an arm in a round")
    store.add_argument("--bf16", action="store_true", help="of student and teacher")
    store.add_argument("--storage_views", type=int, default=1_281_152, help="of the epoch that is stored")


def _add_imports(benchmarks: argparse._SubParsersAction) -> None:
    imports = benchmarks.add_parser("imports", description="Importing this package, against importing transformers.")
    imports.set_defaults(measure=measure_imports)
    imports.add_argument("--rounds", type=int, default=5, help="that are counted")
