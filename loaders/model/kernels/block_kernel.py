"""What `int4pack` and `int4planes` share: a weight in int4 blocks, multiplied as rows ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from loaders.model.kernels import int4_blocks
from loaders.model.kernels.protocol import BFLOAT16_ROUNDOFF, same_permutation
from loaders.quantization.kernel_rules import INT4_OUTPUT_MULTIPLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel


class BlockKernel(ABC):
    """One weight in PyTorch's int4 blocks; activations are rounded to bfloat16.

    Few rows go through the int4 kernel, many through bfloat16 tiles, which are levels (codes less
    the middle one) times scale plus minimum.
    """

    unit_roundoff = BFLOAT16_ROUNDOFF

    # From this many rows on, dequantising to bfloat16 and one dense product is quicker.
    MIN_ROWS_FOR_TILES: ClassVar[int]

    def __init__(
        self,
        *,
        packed: Tensor,
        scales_and_minima: Tensor,
        group_size: int,
        out_features: int,
        input_permutation: Tensor | None,
    ) -> None:
        self._packed = packed  # [padded out, kernel's inputs / 2] uint8
        self._scales_and_minima = scales_and_minima  # [kernel's groups, padded out, 2] bfloat16
        self._group_size = group_size
        self._out_features = out_features
        self.input_permutation = input_permutation

    @property
    def num_invariant_rows(self) -> int:
        """All that go through the int4 kernel."""
        return self.MIN_ROWS_FOR_TILES - 1

    @property
    @abstractmethod
    def in_features(self) -> int:
        """Number of inputs."""

    @abstractmethod
    def _kernel_rows(self, rows: Tensor) -> Tensor:
        """Arrange rows [rows, in] as the int4 kernel takes them."""

    @abstractmethod
    def _levels(self, block: int) -> Tensor:
        """Unpack the levels, int8 [in, padded out]."""

    @abstractmethod
    def _level_scales(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the levels' scales and minima, each [groups, padded out] in the dtype."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] → [rows, out] in x's dtype."""
        if x.shape[0] >= self.MIN_ROWS_FOR_TILES:
            return self.product_of_many()(x)
        return self._multiply_few(x)

    def product_of_many(self) -> Callable[[Tensor], Tensor]:
        """Give the product with dequantised tiles; the int4 kernel where the layout is unknown."""
        block = int4_blocks.block_size()
        if block is None:
            return self._multiply_few
        tiles = self._dequantize_transposed(block, torch.bfloat16)

        def multiply(x: Tensor) -> Tensor:
            return (x.to(torch.bfloat16) @ tiles)[:, : self._out_features].to(x.dtype)

        return multiply

    def _multiply_few(self, x: Tensor) -> Tensor:
        rows = self._kernel_rows(x.to(torch.bfloat16))
        out = int4_blocks.multiply(rows, self._packed, self._group_size, self._scales_and_minima)
        return out[:, : self._out_features].to(x.dtype)

    def dequantize(self) -> Tensor:
        """Return the weight with its rounded scales and minima, [out, in] float32."""
        block = int4_blocks.block_size()
        if block is None:
            return self(torch.eye(self.in_features)).t().contiguous()
        weight = self._dequantize_transposed(block, torch.float32)
        return weight[:, : self._out_features].t().contiguous()

    def _dequantize_transposed(self, block: int, dtype: torch.dtype) -> Tensor:
        """Return the weight as [in, padded out] in the dtype."""
        scales, minima = self._level_scales(dtype)
        return int4_blocks.scale_levels(self._levels(block).to(dtype), scales, minima)

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:
        """Put outputs side by side, where inputs and groups agree and no padding comes between."""
        kernels = [self]
        for other in others:
            if type(other) is not type(self) or other._group_size != self._group_size:
                return None
            if not same_permutation(self.input_permutation, other.input_permutation):
                return None
            kernels.append(other)
        if any(kernel._out_features % INT4_OUTPUT_MULTIPLE for kernel in kernels[:-1]):
            return None
        return type(self)(
            packed=torch.cat([kernel._packed for kernel in kernels]),
            scales_and_minima=torch.cat([kernel._scales_and_minima for kernel in kernels], dim=1),
            group_size=self._group_size,
            out_features=sum(kernel._out_features for kernel in kernels),
            input_permutation=self.input_permutation,
        )
