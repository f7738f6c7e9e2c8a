"""Counts the bytes of tensors that are made while code runs, on the meta device, too.

What an operation holds inside for a moment (cuBLAS, SDPA's math path) is not seen; what Python
makes is, temporaries included, and goes as soon as nothing refers to it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable


class MadeBytes(TorchDispatchMode):
    """While entered, follows every tensor that is made; `held` leaves out what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.peak = 0
        self.at_peak: tuple[int, ...] = ()  # sizes of what was held then, largest first
        self._num_tensors: dict[int, int] = {}  # by storage: views of it that somebody holds
        self._sizes: dict[int, int] = {}
        self._given: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()._cdata
            if storage not in self._num_tensors:
                self._given.add(storage)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._follow(tensor)
        if self.held > self.peak:
            self.peak = self.held
            self.at_peak = tuple(sorted(self._sizes.values(), reverse=True))
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._given:
            return
        if key not in self._num_tensors:
            self._num_tensors[key] = 0
            self._sizes[key] = storage.nbytes()
            self.held += storage.nbytes()
        self._num_tensors[key] += 1
        weakref.finalize(tensor, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self._num_tensors[key] -= 1
        if not self._num_tensors[key]:
            del self._num_tensors[key]
            self.held -= self._sizes.pop(key)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
