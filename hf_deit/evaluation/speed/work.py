"""The work of a forward pass: its floating-point operations, and the memory that it takes."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# Operations by name: those that move nothing, though torch does not call them views, and those that read nothing of
# what they write in place.
_WITHOUT_TRAFFIC = frozenset(
    ("_unsafe_view", "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
)
_OVERWRITING = frozenset(("copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_", "uniform_", "normal_"))


@torch.no_grad()
def count_flop(model: nn.Module, pixel_values: torch.Tensor, **forward_options: Any) -> int:
    """The floating-point operations of a forward pass in matrix products, convolutions and attention.

    A multiply-add is two. Norms, activations and softmaxes are not counted: below 1 % of a DeiT. The figures of the
    papers, and timm's, are multiply-adds, half of these.

    Args:
        model: an image classifier in evaluation mode. Its attention is torch's, or written out.
        pixel_values: (B, 3, H, W), on its device.
        forward_options: what its `forward` is given beside them.
    """
    # As matrix products: torch's counter passes over the kernel that fuses them on a CPU, a seventh of DeiT-Ti.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixel_values=pixel_values, **forward_options)
    return counter.get_total_flops()


@torch.no_grad()
def count_bytes(model: nn.Module, pixel_values: torch.Tensor, **forward_options: Any) -> int:
    """The most bytes that the tensors of a forward pass take at once, beside the weights and with the pixels.

    What a single operation needs within itself is not in it.

    Args:
        model: an image classifier in evaluation mode.
        pixel_values: (B, 3, H, W), on its device.
        forward_options: what its `forward` is given beside them.
    """
    weights = [*model.parameters(), *model.buffers()]
    with _Storages(known=weights) as storages:
        storages.note(pixel_values)
        model(pixel_values=pixel_values, **forward_options)
    return storages.most_bytes


def work_of(function: Callable[[], object]) -> tuple[int, int]:
    """The floating-point operations of a function, forward and backward, and the bytes of its `TrafficCounter`.

    It is called once for each. What is compiled does not show them: it is run without that.
    """
    counter = FlopCounterMode(display=False)
    with torch.compiler.set_stance("force_eager"):
        with sdpa_kernel(SDPBackend.MATH), counter:  # as for `count_flop`
            function()
        with TrafficCounter() as traffic:
            function()
    return counter.get_total_flops(), traffic.total_bytes


def weight_bytes(model: nn.Module) -> int:
    """The bytes of the weights of a model, with its buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


class TrafficCounter(TorchDispatchMode):
    """Counts the bytes that operations read and write: each tensor once by each operation. Views move none.

    What an operation moves within itself, and what a cache spares, is not seen: that is about what one operation
    after the other must get from memory, of tensors that are larger than the caches. Of a table of which rows are
    looked up, all is counted.

    Attributes:
        total_bytes: of all operations within it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total_bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name in _WITHOUT_TRAFFIC:
            return outputs
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        for argument in func._schema.arguments:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            is_read = not ((is_written and (argument.is_out or name in _OVERWRITING)) or _is_only_a_shape(name))
            self.total_bytes += (is_read + is_written) * _bytes_in(given.get(argument.name))
        if any(value.alias_info is None for value in func._schema.returns):  # else all are arguments that are written
            self.total_bytes += _bytes_in(outputs)
        return outputs


def _is_only_a_shape(name: str) -> bool:
    """Whether an operation wants no number of its argument, as `zeros_like`."""
    return name.endswith("_like") or name.startswith("new_")


def _bytes_in(values: Any) -> int:
    """What lies in memory of tensors: an expanded one has fewer numbers than its shape says."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    return sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)


class _Storages(TorchDispatchMode):
    """Follows the storages of all tensors that operations make.

    Args:
        known: tensors whose storages are not counted, nor views of them.

    Attributes:
        most_bytes: that lived at once.
    """

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._bytes: dict[int, int] = {}
        self.most_bytes = 0

    def note(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage, if it was not counted before, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known and key not in self._bytes:
            self._bytes[key] = storage.nbytes()
            self.most_bytes = max(self.most_bytes, sum(self._bytes.values()))
            weakref.finalize(storage, self._bytes.pop, key, None)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                self.note(output)
        return outputs
