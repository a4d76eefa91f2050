"""FSDP2 on CPUs: accelerate shards on GPUs alone, and torch, of which that is made, everywhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from accelerate import PartialState
from accelerate.utils import DistributedType


@contextmanager
def on_cpus() -> Iterator[None]:
    """Lets accelerate take the CPU processes of a run for GPUs when it decides whether FSDP shards it.

    All else is accelerate's own doing, by the variables that its launcher has set.
    """
    initialise = PartialState.__init__

    def as_gpus(state, *args, **kwargs):
        initialise(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
            state.distributed_type = DistributedType.MULTI_GPU

    with patch.object(PartialState, "__init__", as_gpus):
        yield
