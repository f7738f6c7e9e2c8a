"""Counts the bytes that tensors hold while some code runs, on any device, meta included.

Of what PyTorch's operations return; what one of them takes inside itself for a moment is not seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Iterable


class LiveBytes(TorchDispatchMode):
    """To be used as a context; afterwards `peak` says how much was held at most."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """known: tensors that are there already and count as long as anybody holds them."""
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._total = 0
        for tensor in known:
            self._note(tensor)
        self.peak = self.held

    @property
    def held(self) -> int:
        """Bytes of all storages that somebody holds now."""
        gone = [key for key, (storage, _) in self._live.items() if storage.expired()]
        for key in gone:
            self._total -= self._live.pop(key)[1]
        return self._total

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        _ = self.held  # forgets those whose place in the table the new ones may take
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        self.peak = max(self.peak, self._total)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._live:
            self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            self._total += storage.nbytes()
