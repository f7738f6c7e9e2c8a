"""Fails a piece of work on whatever would make the host wait for a GPU, on a CPU.

What the host has is told from what the device has by where it lies: pinned memory is a
`FakeMemory`'s, arrays of NumPy are in storages that cannot grow; everything else is the device's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from tests.engine.pinned_fakes import FakeMemory


class HostWaitError(AssertionError):
    """The host would have waited for the device."""


class NoReads(TorchFunctionMode):
    """Fails where Python asks a tensor for numbers; some of that is never dispatched."""

    FORBIDDEN = frozenset(
        [
            "item",
            "tolist",
            "numpy",
            "cpu",
            "__bool__",
            "__int__",
            "__float__",
            "__index__",
            "__array__",
            "__contains__",
        ]
    )

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.FORBIDDEN:
            raise HostWaitError(name)
        return func(*args, **(kwargs or {}))


class NoWaits(TorchDispatchMode):
    """Fails on operations that wait for data, and on copies that wait for the device."""

    FORBIDDEN = frozenset(
        [
            "_local_scalar_dense",
            "is_nonzero",
            "item",
            "equal",
            "nonzero",
            "masked_select",
            "_unique2",
            "unique_dim",
            "unique_consecutive",
            "bincount",
            "repeat_interleave",
        ]
    )

    def __init__(self, memory: FakeMemory) -> None:
        super().__init__()
        self._memory = memory
        self.num_copies = 0  # between host and device

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in self.FORBIDDEN:
            raise HostWaitError(name)
        if name == "lift_fresh" and not is_of_numpy(args[0]):
            raise HostWaitError("a tensor made of Python's numbers, from pageable memory")
        if name in ("index", "index_put", "index_put_"):
            if any(place is not None and place.dtype == torch.bool for place in args[1]):
                raise HostWaitError(f"{name} by a mask")
        elif name == "copy_":
            self._check_copy(args[0], args[1], args[2] if len(args) > 2 else False)
        elif name == "_to_copy":
            self._check_send(args[0], is_asked_not_to_wait=kwargs.get("non_blocking", False))
        elif not (func.is_view or name == "lift_fresh"):
            self._check_operands(name, (args, kwargs))
        return func(*args, **kwargs)

    def _check_copy(self, target: Any, source: Any, is_asked_not_to_wait: Any) -> None:
        if not self._memory.holds(target):
            self._check_send(source, is_asked_not_to_wait=is_asked_not_to_wait)
        elif not is_of_numpy(source):
            self.num_copies += 1
            if not is_asked_not_to_wait:
                raise HostWaitError("a copy to the host that is waited for")

    def _check_send(self, source: Any, *, is_asked_not_to_wait: Any) -> None:
        if is_of_numpy(source):
            raise HostWaitError("a copy from pageable memory")
        if self._memory.holds(source):
            self.num_copies += 1
            if not is_asked_not_to_wait:
                raise HostWaitError("a copy to the device that is waited for")

    def _check_operands(self, name: str, operands: Any) -> None:
        for tensor in tree_leaves(operands):
            if isinstance(tensor, torch.Tensor) and (
                is_of_numpy(tensor) or self._memory.holds(tensor)
            ):
                raise HostWaitError(f"{name} of what only the host has")


def is_of_numpy(tensor: torch.Tensor) -> bool:
    """Whether a tensor is an array's memory."""
    return not tensor.untyped_storage().resizable()
