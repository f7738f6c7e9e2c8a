"""Fails a piece of work on whatever a CUDA graph could not hold; on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NothingForTheHost(TorchDispatchMode):
    """Fails where a graph could not be captured: reads, shapes made of data, host's numbers."""

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
            "bincount",
            "arange",
            "zeros",
            "ones",
            "full",
            "scalar_tensor",
            "lift_fresh",
            "empty",
            "rand",
            "randn",
            "repeat_interleave",
        ]
    )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, name
        if name in ("index", "index_put_"):
            assert all(place.dtype != torch.bool for place in args[1] if place is not None)
        return func(*args, **(kwargs or {}))
