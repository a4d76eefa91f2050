"""Runs that FSDP or DeepSpeed shards: what they cannot do is refused, and what accelerate stumbles over is mended.

Both share weights, gradients or the optimizer's state out to the processes. A launcher asks for them by variables of
the environment, the arguments by `--fsdp` and `--deepspeed`.
"""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, is_deepspeed_available
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ..errors import InputError, counted, first_line, shortlist

Library = Literal["FSDP", "DeepSpeed"]

_VARIABLES: dict[Library, str] = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
# What holds the optimizer's state in a checkpoint, by how that was sharded.
_OPTIMIZERS = {
    "optimizer.pt": "without sharding",
    "optimizer.bin": "by FSDP with FULL_STATE_DICT",
    "optimizer_0": "by FSDP with SHARDED_STATE_DICT",
    "global_step": "by DeepSpeed",
}


def library_of(args: TrainingArguments) -> Library | None:
    """What is asked to shard a run, by its arguments or its launcher."""
    for library, given in (("DeepSpeed", args.deepspeed), ("FSDP", args.fsdp)):
        if given or os.environ.get(_VARIABLES[library], "").lower() == "true":  # to accelerate, nothing else is
            return library
    return None


def check_deepspeed() -> None:
    """Refuses DeepSpeed where it is not installed.

    Raises:
        InputError: with the line that installs it.
    """
    if not is_deepspeed_available():
        raise InputError(
            'DeepSpeed is asked for, and is not installed: python -m pip install "hf_deit[deepspeed]", or shard with '
            "FSDP (--config_file scripts/accelerate_configs/fsdp2.yaml), which needs nothing more"
        )


def check_stage(args: TrainingArguments) -> None:
    """Refuses what shards the weights of a student before it is made.

    Raises:
        InputError: DeepSpeed's third stage is asked for.
    """
    plugin = args.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise InputError(
            "DeepSpeed's zero_stage must be at most 2, got 3: it would take the weights apart while student and "
            "teacher are made, before they have their values. FSDP2 shards weights, too (--config_file "
            "scripts/accelerate_configs/fsdp2.yaml)"
        )


def check_sharding(args: TrainingArguments, library: Library | None = None) -> None:
    """Refuses what a sharded run cannot do, before anything is loaded.

    Args:
        args: `DistillationTrainingArguments`.
        library: that shards the run; by default the one that is asked to.

    Raises:
        InputError: DeepSpeed is not installed, accelerate would leave FSDP out, or there is to be a moving average.
    """
    library = library or library_of(args)
    if library == "DeepSpeed":
        check_deepspeed()
    if library == "FSDP":
        _check_devices(args, library, args.distributed_state)
    if library is not None and args.ema_decay:
        keeps = "shards" if library == "FSDP" else "keeps in its optimizer"
        raise InputError(
            f"ema_decay is {args.ema_decay:g}, and a moving average needs the weights whole and in float32, which "
            f"{library} {keeps}: pass --ema_decay 0"
            + (" --publish_weights raw" if args.publish_weights == "ema" else "")
            + ", or launch the run without it (--config_file scripts/accelerate_configs/gpu_8.yaml)"
        )


def check_accelerator(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Refuses a run that is not sharded as it was to be, or that cannot be what it is to be so.

    The first FSDP hands the optimizer flat weights, of which nobody can tell which are decayed.

    Raises:
        InputError: see above and `check_sharding`.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        if accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise InputError(
                f"fsdp_version must be 2, got {accelerator.state.fsdp_plugin.fsdp_version}, whose flat weights cannot "
                "be told apart for weight decay: say fsdp_version: 2 in accelerate's configuration, as "
                "scripts/accelerate_configs/fsdp2.yaml does"
            )
        check_sharding(args, "FSDP")
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        check_sharding(args, "DeepSpeed")
    elif (library := library_of(args)) is not None:
        _check_devices(args, library, accelerator)


def _check_devices(args: TrainingArguments, library: Library, state: PartialState | Accelerator) -> None:
    """Refuses devices that accelerate does not share a run out to: it would train with DDP, and not say so."""
    if state.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU):
        return
    by = f"--{library.lower()}" if getattr(args, library.lower()) else f"{_VARIABLES[library]}, from its launcher"
    if state.num_processes == 1:
        raise InputError(
            f"this run is one process, and was to be sharded ({by}), but {library.lower()} only works in distributed "
            "training: start one on each GPU with hf-deit launch --num_processes, or leave it out"
        )
    raise InputError(
        f"this run was to be sharded ({by}), but accelerate does that with {library} on GPUs alone, and these "
        f"{state.num_processes} processes are on the {state.device.type.upper()}, where each would hold everything: "
        "leave it out, say with --config_file scripts/accelerate_configs/cpu_2.yaml"
    )


def sharding_in_words(accelerator: Accelerator) -> str:
    """What of a run is sharded, and by what; empty if nothing is."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return "weights, gradients and optimizer sharded by FSDP2"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        parts = {1: "optimizer", 2: "gradients and optimizer"}
        return f"{parts[stage]} sharded by DeepSpeed (ZeRO-{stage})" if stage else "DeepSpeed, which shards nothing"
    return ""


@contextmanager
def prepared_for_fsdp(model: PreTrainedModel, accelerator: Accelerator) -> Iterator[None]:
    """Lets accelerate shard any image classifier while it prepares the model.

    It wraps the classes that `_no_split_modules` names, and the input embeddings once more by themselves. That fails
    where those are a part of the former (ViT, DINOv2, SigLIP), where a model does not say which they are (most
    convnets), and where it names classes of another of its models (CLIP, SigLIP). So the classes are those that are
    there, and the embeddings, which are small in a classifier of images, stay with what holds them.

    Raises:
        InputError: the configuration names classes that the model has not, or wraps what cannot be.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        yield
        return
    plugin, there = accelerator.state.fsdp_plugin, {type(module).__name__ for module in model.modules()}
    given = plugin.transformer_cls_names_to_wrap
    if absent := sorted(set(given or ()) - there):
        raise InputError(
            f"FSDP is to wrap layers of class {shortlist(absent, 4)}, and {type(model).__name__} has none: leave "
            "fsdp_transformer_layer_cls_to_wrap out, or name others"
        )
    if given is None:
        plugin.transformer_cls_names_to_wrap = sorted(there.intersection(model._no_split_modules or ()))
    model.get_input_embeddings = lambda: None
    try:
        yield
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"FSDP cannot shard {type(model).__name__} as its configuration says ({first_line(error)}): give "
            "fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP, which wraps the layers"
        ) from error
    finally:
        del model.get_input_embeddings
        plugin.transformer_cls_names_to_wrap = given


@contextmanager
def under_own_class(model: nn.Module) -> Iterator[None]:
    """Gives a model its own class for a while, which is stated where it is saved, and whose code is saved with it.

    FSDP2 puts one of its making in its place.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = type(model)
    model.__class__ = next(kind for kind in sharded.__mro__ if not issubclass(kind, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded


@contextmanager
def saved_whole(model: PreTrainedModel, accelerator: Accelerator) -> Iterator[None]:
    """Lets transformers save a sharded model as one that DDP trains: complete, and in float32.

    Where FSDP has what a run goes on from in parts (SHARDED_STATE_DICT), it would save no model at all; and with
    DeepSpeed in bfloat16 or float16 the weights as they are computed with, rounded. All processes must enter it.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.fsdp import StateDictType

        plugin = accelerator.state.fsdp_plugin
        given, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
        try:
            yield
        finally:
            plugin.state_dict_type = given
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        with _in_float32(model):
            yield
    else:
        yield


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Gives a model the weights that DeepSpeed's optimizer updates for a while, in place of their rounded copies."""
    from deepspeed.utils import safe_get_full_fp32_param

    rounded = [(weight, weight.data) for weight in model.parameters() if weight.dtype != torch.float32]
    try:
        for weight, _ in rounded:
            whole = safe_get_full_fp32_param(weight)  # None of one that is not trained
            weight.data = weight.data.float() if whole is None else whole.view_as(weight)
        yield
    finally:
        for weight, data in rounded:
            weight.data = data


def weights_here(model: nn.Module) -> list[torch.Tensor]:
    """What this process holds of each of a model's parameters."""
    from torch.distributed.tensor import DTensor

    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]


def check_same_sharding(checkpoint: str, accelerator: Accelerator) -> None:
    """Refuses a checkpoint whose optimizer's state has another form than this run's.

    transformers would begin with an optimizer of its own, and say nothing, or end in a traceback.

    Args:
        checkpoint: its folder. One without such a state is another's matter.
        accelerator: of the run.

    Raises:
        InputError: names both forms, or for DeepSpeed both numbers of processes.
    """
    names = sorted(os.listdir(checkpoint))
    found = next((form for form in _OPTIMIZERS if any(name.startswith(form) for name in names)), None)
    form = _form_here(accelerator)
    if found == form == "global_step":
        parts = len(glob.glob(os.path.join(glob.escape(checkpoint), "global_step*", "*_optim_states.pt")))
        if parts != accelerator.num_processes:
            raise InputError(
                f"the checkpoint {checkpoint!r} holds the optimizer's state in {counted(parts, 'part')}, one of each "
                f"of DeepSpeed's processes, of which this run has {accelerator.num_processes}: give --num_processes "
                f"{parts}"
            )
    if found in (None, form):
        return
    raise InputError(
        f"the checkpoint {checkpoint!r} was written {_OPTIMIZERS[found]}, and this run trains {_OPTIMIZERS[form]}, "
        "which keeps the optimizer's state in another form: go on with the --config_file, --fsdp or --deepspeed that "
        "it had, or start another run with it as --student"
    )


def _form_here(accelerator: Accelerator) -> str:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "global_step"
    if accelerator.distributed_type != DistributedType.FSDP:
        return "optimizer.pt"
    is_full = accelerator.state.fsdp_plugin.state_dict_type.name == "FULL_STATE_DICT"
    return "optimizer.bin" if is_full else "optimizer_0"
