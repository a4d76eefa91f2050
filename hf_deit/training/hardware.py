"""What "auto" is on the hardware of a run, and the precisions that it cannot have; asked before anything is loaded."""

import multiprocessing
import os

import torch
from accelerate.utils import get_int_from_env
from transformers import TrainingArguments
from transformers.utils import (
    is_torch_bf16_gpu_available,
    is_torch_tf32_available,
    is_torch_xla_available,
    strtobool,
)

from ..errors import InputError, not_one_of

_MOST_WORKERS, _MOST_WORKERS_BESIDE_CPU_TRAINING = 16, 2
_MOST_WORKERS_TO_ASK_FOR = 512  # on each device: more are a slip, and would bring the machine down


def bf16_of(args: TrainingArguments) -> bool:
    """`args.bf16`, or, if that is "auto", whether to train in it: on an accelerator that computes in it.

    Not where fp16 is asked for, nor on the CPU, where it is slower than float32, nor on a GPU that only emulates it.

    Raises:
        InputError: it is something else.
    """
    if args.bf16 != "auto":
        if not isinstance(args.bf16, bool):
            raise InputError(f'bf16 must be true, false or "auto", got {args.bf16!r}')
        return args.bf16
    asked_for_fp16 = args.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16"
    if args.use_cpu or asked_for_fp16 or not is_torch_bf16_gpu_available():
        return False
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def num_devices() -> int:
    """The processes that share a run, one for each device, as a launcher tells them before accelerate does."""
    return get_int_from_env(["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"], 1)


def use_cpu_of(args: TrainingArguments) -> bool:
    """`args.use_cpu`, or True where a launcher says so, or has started several processes and there is no accelerator.

    Accelerate would not connect those: each would train alone, into the same folder.
    """
    if args.use_cpu or strtobool(os.environ.get("ACCELERATE_USE_CPU", "false")):
        return True
    has_accelerator = torch.accelerator.is_available() or is_torch_xla_available()
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not has_accelerator


def num_workers_of(args: TrainingArguments) -> int:
    """`args.dataloader_num_workers`, or, if that is "auto", one for each core of this process but one.

    At least 1, so that images are prepared while the model trains; at most 16, and 2 where the CPU trains.

    Raises:
        InputError: it is something else than a number from 0.
    """
    given = args.dataloader_num_workers
    if given != "auto":
        if not isinstance(given, int) or not 0 <= given <= _MOST_WORKERS_TO_ASK_FOR:
            raise InputError(
                f'dataloader_num_workers must be a number from 0, at most {_MOST_WORKERS_TO_ASK_FOR}, or "auto", got '
                f"{given!r}"
            )
        return given
    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    return max(1, min(free_cores(), _MOST_WORKERS_BESIDE_CPU_TRAINING if on_cpu else _MOST_WORKERS))


def free_cores() -> int:
    """The cores that this process may use, of those that it shares with others of the run, but one; may be 0."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1, 0)


def check_loading(args: TrainingArguments) -> None:
    """Refuses a way to start a loader's processes that torch would refuse when training begins.

    Raises:
        InputError: there is no such way, or there are no such processes.
    """
    wanted = getattr(args, "dataloader_multiprocessing_context", None)
    if not wanted:
        return
    if wanted not in (ways := multiprocessing.get_all_start_methods()):
        raise InputError(not_one_of("dataloader_multiprocessing_context", wanted, ways))
    if not args.dataloader_num_workers:
        raise InputError(
            "dataloader_multiprocessing_context is about the processes that load images, of which there are none: "
            "give --dataloader_num_workers, or leave it out"
        )


def check_precision(args: TrainingArguments) -> None:
    """Refuses bf16 and tf32 where they are not, as transformers does, with the remedy.

    Raises:
        InputError: see above.
    """
    has_bf16 = args.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()
    for name in ("bf16", "bf16_full_eval"):
        if getattr(args, name) and not has_bf16:
            other = "--bf16 auto takes it where it is" if name == "bf16" else "leave it out"
            raise InputError(
                f"{name} needs a GPU that has bfloat16, and there is none: {other}, and with --use_cpu true the CPU "
                "computes in it, slowly"
            )
    if args.tf32 and not is_torch_tf32_available():
        raise InputError("tf32 needs an NVIDIA GPU from Ampere (2020) on, and there is none: leave --tf32 out")


def check_compilation(args: TrainingArguments) -> None:
    """Refuses modes and backends that torch.compile has not, which it would notice when training begins.

    Raises:
        InputError: see above.
    """
    if args.torch_compile_mode is not None:
        from torch._inductor import list_mode_options  # which takes a second

        modes = list(list_mode_options())
        if args.torch_compile_mode not in modes:
            raise InputError(not_one_of("torch_compile_mode", args.torch_compile_mode, modes))
    if args.torch_compile_backend not in (None, "inductor"):
        from torch._dynamo import list_backends

        backends = list_backends(exclude_tags=())
        if args.torch_compile_backend not in backends:
            raise InputError(not_one_of("torch_compile_backend", args.torch_compile_backend, backends))


def check_fp16(args: TrainingArguments) -> None:
    """Refuses fp16 on a CPU, where accelerate would train in float32 without a word; asked once the device is known.

    Raises:
        InputError: see above.
    """
    if args.mixed_precision == "fp16" and args.device.type == "cpu":
        by = "--fp16" if args.fp16 else "--mixed_precision fp16 of accelerate launch"
        raise InputError(
            f"fp16 needs a GPU, and this run is on the CPU: leave {by} out, which trains in float32, or take "
            "--use_cpu true --bf16 true"
        )
