"""Counts the bytes that tensors hold while some code runs, on any device, meta included.

Of what PyTorch's operations return, temporaries of Python's included; what one of them takes inside
itself for a moment (cuBLAS, SDPA's math path) is not seen.
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
    """To be used as a context; afterwards `peak` says how much was held at most.

    What was there before does not count, unless it is named.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """known: tensors that are there already and count as long as anybody holds them."""
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: dict[int, StorageWeakRef] = {}  # there before, and not named
        self._total = 0
        for tensor in known:
            self._note(tensor)
        self.peak = self.held
        self.at_peak: tuple[int, ...] = ()  # sizes of what was held then, largest first

    @property
    def held(self) -> int:
        """Bytes of all storages that somebody holds now."""
        gone = [key for key, (storage, _) in self._live.items() if storage.expired()]
        for key in gone:
            self._total -= self._live.pop(key)[1]
        for key in [key for key, storage in self._given.items() if storage.expired()]:
            del self._given[key]
        return self._total

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        _ = self.held  # forgets those whose place in the table others may have taken
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._live and storage._cdata not in self._given:
                self._given[storage._cdata] = StorageWeakRef(storage)
        result = func(*args, **(kwargs or {}))
        _ = self.held
        for tensor in _tensors(result):
            self._note(tensor)
        if self._total > self.peak:
            self.peak = self._total
            self.at_peak = tuple(sorted((size for _, size in self._live.values()), reverse=True))
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._live and storage._cdata not in self._given:
            self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            self._total += storage.nbytes()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
