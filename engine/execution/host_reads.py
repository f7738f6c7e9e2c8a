"""Finds out whether a piece of work waits for what the device computed, so that no graph holds it.

Transformers' layers are many, and some ask the device for a number in the middle of a forward
pass (which expert has any rows?). A capture would fail on it, so it is looked for beforehand, on
any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = frozenset(
    {
        "_local_scalar_dense",
        "is_nonzero",
        "equal",
        "nonzero",
        "masked_select",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "unique_dim_consecutive",
        "bincount",
        "repeat_interleave",  # by a tensor of counts; by a number it is other operations
        "lift_fresh",  # a tensor made of the host's numbers, which would be copied from there
    }
)


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that wait for the device, or copy from pageable memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Note the operation if it is such a one, and do it."""
        with self:
            # What is put together from other operations comes here whole in inference mode.
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        if name in _READS or _picks_by_mask(name, args) or _crosses_devices(name, args, result):
            self.names.add(name)
        return result


def _picks_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """How many a mask picks is known once it has been read."""
    if name not in ("index", "index_put", "index_put_"):
        return False
    return any(place is not None and place.dtype == torch.bool for place in args[1])


def _crosses_devices(name: str, args: tuple[Any, ...], result: Any) -> bool:
    if name not in ("_to_copy", "copy_"):
        return False
    tensors = [tensor for tensor in (*args[:2], result) if isinstance(tensor, torch.Tensor)]
    return len({tensor.device.type for tensor in tensors}) > 1
