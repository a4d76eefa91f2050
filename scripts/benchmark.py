"""Measures, in one process and with the arms in turn, so that a ratio holds whatever else the machine does.

    python scripts/benchmark.py label-store [--batch_size 16] [--rounds 9] [--steps 1] [--bf16] [...]

label-store: a training step with a live teacher, recording its labels, replaying them, and without a teacher.
"""

import argparse
import sys

from hf_deit.evaluation.benchmarks.label_store import measure_label_store


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    store = commands.add_parser("label-store", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    store.add_argument("--student", default="deit_tiny_distilled_patch16_224", help="name of the zoo")
    store.add_argument("--teachers", nargs="+", default=["regnety_160", "regnety_040"], help="timm's names")
    store.add_argument("--image_size", type=int, default=224, help="in pixels")
    store.add_argument("--batch_size", type=int, default=16, help="views of a step")
    store.add_argument("--num_workers", type=int, default=1, help="of each arm's loader")
    store.add_argument("--rounds", type=int, default=9, help="that are counted")
    store.add_argument("--steps", type=int, default=1, help="of an arm in a round")
    store.add_argument("--bf16", action="store_true", help="of student and teacher")
    store.add_argument("--storage_views", type=int, default=1_281_152, help="of the epoch that is stored")
    options = vars(parser.parse_args(arguments))
    del options["command"]
    print(measure_label_store(**options))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
