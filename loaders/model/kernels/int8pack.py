"""8-bit weights with one scale an output on CPU by PyTorch's int8 kernel, or one in C++ (`native`)
that reads the same codes, for few rows; for many in one dense product (`dense`, in bfloat16, or
`float32 dense`).

Codes are kept exactly as int8. The kernel runs with unit scales, so that the real ones multiply
the result in float32 without being rounded; activations and the unscaled result are bfloat16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from loaders.model.kernels.protocol import BFLOAT16_ROUNDOFF, same_permutation
from loaders.model.kernels.ways import ManyWaysKernel, WayChoice, has_dtype_way
from loaders.quantization import kernel_rules
from native import int8, library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel, LayerShape
    from loaders.model.kernels.ways import Product
    from loaders.quantization.packed_tensors import PackedTensors

_MIDDLE_CODE = 128  # codes 0…255 are held as -128…127
# Where nothing is measured: from this many rows on, one dense bfloat16 product. Measured for
# 960x576, two cores of an AVX-512 (bf16) server CPU, 2026-11: 16 rows 150 against 125 µs, 64 rows
# 320 against 476 µs, 256 rows 810 against 1892 µs.
MIN_ROWS_FOR_DENSE = 24


class Int8PackKernel(ManyWaysKernel):
    """One weight as int8 codes with a scale and an offset for each output."""

    unit_roundoff = BFLOAT16_ROUNDOFF

    def __init__(
        self,
        *,
        codes: Tensor,
        scales: Tensor,
        offsets: Tensor | None,
        input_permutation: Tensor | None,
    ) -> None:
        self._codes = codes  # [out, in] int8
        self._scales = scales  # [out] float32
        self._offsets = offsets  # [out] float32, added to every code; None where all are zero
        self._unit_scales = torch.ones(len(scales), dtype=torch.bfloat16)
        self.input_permutation = input_permutation
        many = "dense" if has_dtype_way(torch.bfloat16) else "float32 dense"
        self.choice = WayChoice("int8pack", many, MIN_ROWS_FOR_DENSE)

    @property
    def shape_key(self) -> str:
        """Name kernel and size."""
        out_features, in_features = self._codes.shape
        return f"int8pack {in_features}x{out_features}"

    def has_way(self, name: str) -> bool:
        """Whether a way is one on this CPU, with the kernels that there are."""
        if name == "int8pack":
            return True
        if name == "native":
            return library.is_loaded()
        return has_dtype_way(torch.bfloat16 if name == "dense" else torch.float32)

    def _int8pack(self) -> Product:
        return self._multiply_packed

    def _multiply_packed(self, x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16)
        out = torch.ops.aten._weight_int8pack_mm(rows, self._codes, self._unit_scales)
        return self._scaled(out.float(), rows, x.dtype)

    def _native(self) -> Product:
        return self._multiply_natively

    def _multiply_natively(self, x: Tensor) -> Tensor:
        rows = x if x.dtype in (torch.float32, torch.bfloat16) else x.to(torch.bfloat16)
        return int8.multiply(self.native_weight(), rows.contiguous()).to(x.dtype)

    def native_weight(self) -> int8.Int8Weight:
        """Give the weight as the kernels in C++ take it, sharing its memory; no bias.

        Whether there are such kernels is not asked here.
        """
        return int8.Int8Weight(self._codes, self._scales, self._offsets)

    def _dense(self) -> Product:
        return self._multiply_dense(torch.bfloat16)

    def _float32_dense(self) -> Product:
        return self._multiply_dense(torch.float32)

    def _multiply_dense(self, dtype: torch.dtype) -> Product:
        """Give the product with the codes in a dtype."""
        codes = self._codes.to(dtype)

        def multiply(x: Tensor) -> Tensor:
            rows = x.to(dtype)
            out = torch.nn.functional.linear(rows, codes).float()
            return self._scaled(out, rows, x.dtype)

        return multiply

    FEW: ClassVar = {"int8pack": _int8pack, "native": _native}
    MANY: ClassVar = {
        "dense": _dense,
        "float32 dense": _float32_dense,
        "native": _native,
        "int8pack": _int8pack,
    }

    def _scaled(self, out: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Bring a product with codes to the weight's scale, in place."""
        if self._offsets is not None:
            out.addr_(rows.float().sum(-1), self._offsets)
        return out.mul_(self._scales).to(dtype)

    def dequantize(self) -> Tensor:
        """Return the weight, [out, in] float32."""
        levels = self._codes.float()
        if self._offsets is not None:
            levels += self._offsets[:, None]
        return levels * self._scales[:, None]

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:
        """Put outputs side by side, where the input order agrees."""
        kernels = [self]
        for other in others:
            if not isinstance(other, Int8PackKernel):
                return None
            if not same_permutation(self.input_permutation, other.input_permutation):
                return None
            kernels.append(other)
        offsets = [kernel._offsets for kernel in kernels]
        return Int8PackKernel(
            codes=torch.cat([kernel._codes for kernel in kernels]),
            scales=torch.cat([kernel._scales for kernel in kernels]),
            offsets=None
            if all(offset is None for offset in offsets)
            else torch.cat(
                [
                    torch.zeros_like(kernel._scales) if offset is None else offset
                    for kernel, offset in zip(kernels, offsets, strict=True)
                ]
            ),
            input_permutation=self.input_permutation,
        )


class Int8PackBackend:
    """Runs 8-bit layers without groups on CPU."""

    name = "int8pack"

    def refusal(self, shape: LayerShape) -> str | None:
        """Refuse other devices, other widths, and more than one group."""
        return kernel_rules.refusal(self.name, shape.size, shape.facts)

    def prepare(self, packed: PackedTensors) -> Kernel:
        """Re-centre the codes; one group makes act order meaningless."""
        scales, zeros = packed.scales()[0], packed.zeros()[0]
        offsets = _MIDDLE_CODE - zeros
        return Int8PackKernel(
            codes=(packed.codes().t().to(torch.int16) - _MIDDLE_CODE).to(torch.int8).contiguous(),
            scales=scales,
            offsets=offsets if bool(offsets.any()) else None,
            input_permutation=None,
        )
