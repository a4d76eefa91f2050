"""`hf-deit launch`: a command on several devices, by `accelerate launch`, without what that says beside it."""

import logging
import os
import signal
import subprocess
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from ..data.arguments import check_ranges
from ..errors import InputError, one_line
from .command_line import STATUS_OF_INTERRUPT, CommandParser, report_error, run_command

_DESCRIPTION = (
    "Runs a command on several devices: `accelerate launch` with its options. What it adds: the exit status is the "
    "command's, its message is all that is said when it is refused or stopped, and no option must be given."
)
_RANGES = {
    "[1, 100000]": ("num_processes", "num_machines", "num_cpu_threads_per_process"),
    "[0, 65535]": ("main_process_port",),
}
_EXAMPLES = """options, among those that `accelerate launch --help` shows:
  --config_file FILE     what the other options would say; scripts/accelerate_configs has some
  --num_processes N      by default one on each GPU

examples:
  hf-deit launch train --recipe deit_tiny_distilled
  hf-deit launch --num_processes 2 train --train_dir images/train --teacher_model_name_or_path NAME
  hf-deit launch --config_file scripts/accelerate_configs/gpu_8.yaml label --teacher_labels outputs/labels
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; the exit status is that of the process that ended first with another than 0."""
    return run_command(_launch, arguments)


def _launch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        usage = "hf-deit launch [options] COMMAND [options of the command]"
        print(
            CommandParser("launch", _DESCRIPTION, add_help=False, usage=usage).format_help() + "\n" + _EXAMPLES, end=""
        )
        return 0
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from .main import COMMANDS

    parser = launch_command_parser()
    parser.error = _refuse
    options = parser.parse_args(["--module", *arguments])
    name, known = options.training_script, [command for command in COMMANDS if command != "launch"]
    if name not in known:
        raise InputError(f"there is no command {name!r} to launch: expected one of {', '.join(known)}")
    options.training_script_args = [name, *options.training_script_args]
    options.training_script = __package__.partition(".")[0]
    _check_launch(options)
    _let_cpu_have_processes(options)
    # Not that DDP has looked in vain for unused parameters, as it does in a convnet that teaches.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with _silent_launcher():
        try:
            launch_command(options)
        except subprocess.CalledProcessError as error:
            return _status(error.returncode)
        except ChildFailedError as error:
            rank, first = error.get_first_failure()
            return _status(first.exitcode, f" {rank}")
        except SignalException:
            return STATUS_OF_INTERRUPT
        except ValueError as error:
            raise InputError(str(error)) from error
    return 0


def _check_launch(options: Namespace) -> None:
    """Refuses what `accelerate launch` would end in a traceback for, or wait for ever.

    Raises:
        InputError: there is no such configuration, or it is none of accelerate's; no possible number of processes; or
            DeepSpeed, which is not installed.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    uses_deepspeed = options.use_deepspeed
    if options.config_file is not None:
        if not os.path.isfile(options.config_file):
            raise InputError(f"there is no file {options.config_file!r}: --config_file is made by accelerate config")
        try:
            config = load_config_from_file(options.config_file)
        except Exception as error:  # of any kind: it is read without a check
            raise InputError(
                f"{options.config_file!r} is no configuration of accelerate ({one_line(error)}): make one with "
                "accelerate config"
            ) from error
        uses_deepspeed = uses_deepspeed or config.distributed_type == "DEEPSPEED"
    check_ranges(options, _RANGES)
    if uses_deepspeed:
        from ..training.sharding import check_deepspeed

        check_deepspeed()


def _let_cpu_have_processes(options: Namespace) -> None:
    """Without MPI, accelerate starts one process on a CPU, however many are asked for."""
    import torch

    is_on_cpu = options.cpu or not (torch.accelerator.is_available() or options.config_file)
    if is_on_cpu and (options.num_processes or 1) > 1 and not options.mpirun_hostfile:
        options.cpu, options.multi_gpu = False, True  # which starts processes, on whatever
        os.environ["ACCELERATE_USE_CPU"] = "true"


def _refuse(message: str) -> NoReturn:
    raise InputError(message)


@contextmanager
def _silent_launcher() -> Iterator[None]:
    """Leaves it to the launched command to say what happens, and to end it after Ctrl-C, which reaches it, too."""
    logging_before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # options that were not given, and how processes ended
    # Not SIG_IGN, which the command would inherit.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        logging.disable(logging_before)


def _status(exit_code: int, process: str = "") -> int:
    """The exit status of a process, as a shell has it: 128 and the number of the signal that ended it.

    One that was killed could not say so, and it is said here.
    """
    if exit_code >= 0:
        return exit_code
    if -exit_code not in (signal.SIGINT, signal.SIGTERM):
        why = ", perhaps for want of memory" if -exit_code == signal.SIGKILL else ""
        report_error(InputError(f"process{process} was ended by {signal.Signals(-exit_code).name}{why}"))
    return 128 - exit_code
