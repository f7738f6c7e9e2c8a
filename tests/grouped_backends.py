"""A backend that takes grouped weights and multiplies by them as plainly as can be.

For what joins and sorts layers before they are packed: nothing is rounded, so a product tells
whether a weight, a bias or an order went astray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loaders.model.kernels import resolve
from loaders.model.kernels.protocol import FLOAT32_ROUNDOFF

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest
    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel, LayerShape
    from loaders.quantization.packed_tensors import GroupedWeight, PackedTensors


class PlainKernel:
    """Keeps codes, two a byte where they fit, and dequantises to float32 at each call."""

    unit_roundoff = FLOAT32_ROUNDOFF
    num_invariant_rows = 1

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        self.input_permutation = weight.input_permutation
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self._is_halved = weight.bits <= 4 and weight.in_features % 2 == 0
        self._codes = weight.codes
        if self._is_halved:
            self._codes = weight.codes[:, ::2] | weight.codes[:, 1::2] << 4
        self.scales, self.zeros = weight.scales, weight.zeros
        self._group_size = weight.group_size
        self.bias = bias

    @property
    def num_bytes(self) -> int:
        """What its weight takes."""
        kept = (self._codes, self.scales, self.zeros, self.input_permutation)
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x.float(), self.dequantize(), self.bias).to(x.dtype)

    def dequantize(self) -> Tensor:
        codes = self._codes
        if self._is_halved:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)
        groups = torch.arange(codes.shape[1]) // self._group_size
        levels = codes.t() - self.zeros[groups]
        return (levels * self.scales[groups]).t()

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:
        return None


class PlainBackend:
    """Takes every layer, and notes what it was given."""

    name = "plain"

    def __init__(self) -> None:
        self.kernels: list[PlainKernel] = []
        self.dtypes: set[torch.dtype] = set()

    def refusal(self, shape: LayerShape) -> str | None:
        return None

    def prepare(self, packed: PackedTensors) -> Kernel:
        raise AssertionError("a backend that takes grouped weights is given those")

    def prepare_grouped(
        self, weight: GroupedWeight, bias: Tensor | None, dtype: torch.dtype
    ) -> Kernel:
        self.dtypes.add(dtype)
        self.kernels.append(PlainKernel(weight, bias))
        return self.kernels[-1]

    @property
    def sizes(self) -> list[int]:
        """Outputs of each kernel, in the order in which they were made."""
        return [kernel.out_features for kernel in self.kernels]


def use_plain_backend(monkeypatch: pytest.MonkeyPatch) -> PlainBackend:
    """Have every layer that is loaded from now on prepared by such a backend."""
    backend = PlainBackend()
    monkeypatch.setattr(resolve, "BACKENDS", (backend, *resolve.BACKENDS))
    return backend
