"""What `int4pack` and `int4planes` share: a weight in int4 blocks, multiplied as rows ask for.

Its ways, by name: PyTorch's own kernel (`int4pack`) and one in C++ (`native`), which read the
blocks; and one dense product with the weight unpacked before, in bfloat16, by PyTorch (`tiles`) or
C++ (`native tiles`), or, where products in bfloat16 are not the CPU's own, in float32 (`float32
tiles`). C++ may also unpack a block of outputs at a time, into a cache, and multiply by that itself
(`native panels`), with tile registers where the CPU has them (`native registers`). Those in C++ are
taken by who chooses them, never by default.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property, partial
from typing import TYPE_CHECKING, ClassVar

import torch

from loaders.errors import BackendError
from loaders.model.kernels import int4_blocks
from loaders.model.kernels.protocol import BFLOAT16_ROUNDOFF, same_permutation
from loaders.model.kernels.ways import ManyWaysKernel, WayChoice, has_dtype_way
from loaders.quantization.kernel_rules import INT4_OUTPUT_MULTIPLE
from native import int4, library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel
    from loaders.model.kernels.ways import Product

# Outputs that the kernels in C++ read at a time.
_NATIVE_BLOCK = 64


class BlockKernel(ManyWaysKernel):
    """One weight in PyTorch's int4 blocks; activations are rounded to bfloat16.

    Tiles are levels (codes less the middle one) times scale plus minimum.
    """

    unit_roundoff = BFLOAT16_ROUNDOFF

    NAME: ClassVar[str]
    # Where nothing is measured: from this many rows on, tiles.
    MIN_ROWS_FOR_TILES: ClassVar[int]
    NUM_PLANES: ClassVar[int] = 1

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
        many = "tiles" if has_dtype_way(torch.bfloat16) else "float32 tiles"
        self.choice = WayChoice("int4pack", many, self.MIN_ROWS_FOR_TILES)

    @property
    def shape_key(self) -> str:
        """Name kernel, size and groups."""
        return f"{self.NAME} {self.in_features}x{self._out_features} g{self._group_size}"

    def has_way(self, name: str) -> bool:
        """Whether a way is one on this CPU, with the kernels that there are."""
        if name.startswith("native"):
            has_native = int4_blocks.block_size() == _NATIVE_BLOCK and library.is_loaded()
            return has_native and (name != "native registers" or int4.may_use_tiles())
        if name == "int4pack":
            return True
        dtype = torch.bfloat16 if name == "tiles" else torch.float32
        return int4_blocks.block_size() is not None and has_dtype_way(dtype)

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

    def _int4pack(self) -> Product:
        return self._multiply_packed

    def _multiply_packed(self, x: Tensor) -> Tensor:
        rows = self._kernel_rows(x.to(torch.bfloat16))
        out = int4_blocks.multiply(rows, self._packed, self._group_size, self._scales_and_minima)
        return out[:, : self._out_features].to(x.dtype)

    def _native(self) -> Product:
        return self._multiply_natively

    def _multiply_natively(self, x: Tensor) -> Tensor:
        rows = x if x.dtype in (torch.float32, torch.bfloat16) else x.to(torch.bfloat16)
        return int4.multiply(self._native_weight, rows.contiguous()).to(x.dtype)

    def _bfloat16_tiles(self) -> Product:
        return self._multiply_by_unpacked(torch.bfloat16)

    def _float32_tiles(self) -> Product:
        return self._multiply_by_unpacked(torch.float32)

    def _multiply_by_unpacked(self, dtype: torch.dtype) -> Product:
        """Unpack once; PyTorch's kernel where the layout is unknown."""
        block = int4_blocks.block_size()
        if block is None:
            return self._multiply_packed
        return self._product_with(self._dequantize_transposed(block, dtype))

    def _native_tiles(self) -> Product:
        return self._product_with(int4.unpack(self._native_weight))

    def _native_panels(self) -> Product:
        return partial(self._multiply_by_panels, has_tiles=False)

    def _native_registers(self) -> Product:
        return partial(self._multiply_by_panels, has_tiles=True)

    def _multiply_by_panels(self, x: Tensor, *, has_tiles: bool) -> Tensor:
        rows = x if x.dtype in (torch.float32, torch.bfloat16) else x.to(torch.bfloat16)
        weight = self._native_weight
        return int4.multiply_many(weight, rows.contiguous(), has_tiles=has_tiles).to(x.dtype)

    def _product_with(self, tiles: Tensor) -> Product:
        """tiles: [in, padded out]."""

        def multiply(x: Tensor) -> Tensor:
            return (x.to(tiles.dtype) @ tiles)[:, : self._out_features].to(x.dtype)

        return multiply

    FEW: ClassVar = {"int4pack": _int4pack, "native": _native}
    MANY: ClassVar = {
        "tiles": _bfloat16_tiles,
        "native tiles": _native_tiles,
        "native panels": _native_panels,
        "native registers": _native_registers,
        "float32 tiles": _float32_tiles,
        "native": _native,
        "int4pack": _int4pack,
    }

    @cached_property
    def _native_weight(self) -> int4.Int4Weight:
        weight = self.native_weight()
        if weight is None:  # which `has_way` rules out
            raise BackendError("this CPU's int4 blocks are not those of the kernels in C++")
        return weight

    def native_weight(self) -> int4.Int4Weight | None:
        """Give the weight as the kernels in C++ take it, sharing its memory; no bias, no order.

        None where this CPU's blocks are of another size than theirs. Whether there are such kernels
        is not asked here.
        """
        if int4_blocks.block_size() != _NATIVE_BLOCK:
            return None
        return int4.Int4Weight(
            packed=self._packed,
            scales_and_minima=self._scales_and_minima,
            out_features=self._out_features,
            num_planes=self.NUM_PLANES,
        )

    def dequantize(self) -> Tensor:
        """Return the weight with its rounded scales and minima, [out, in] float32."""
        block = int4_blocks.block_size()
        if block is None:
            return self._multiply_packed(torch.eye(self.in_features)).t().contiguous()
        weight = self._dequantize_transposed(block, torch.float32)
        return weight[:, : self._out_features].t().contiguous()

    def _dequantize_transposed(self, block: int, dtype: torch.dtype) -> Tensor:
        """Return the weight as [in, padded out] in the dtype."""
        scales, minima = self._level_scales(dtype)
        return int4_blocks.scale_levels(self._levels(block), scales, minima)

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
