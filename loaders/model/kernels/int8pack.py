"""8-bit weights with one scale an output on CPU by PyTorch's int8 kernel, for few rows; bfloat16
for many.

Codes are kept exactly as int8. The kernel runs with unit scales, so that the real ones multiply
the result in float32 without being rounded; activations and the unscaled result are bfloat16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loaders.model.kernels.protocol import BFLOAT16_ROUNDOFF, same_permutation
from loaders.quantization import kernel_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel, LayerShape
    from loaders.quantization.packed_tensors import PackedTensors

_MIDDLE_CODE = 128  # codes 0…255 are held as -128…127
# From this many rows on, one dense bfloat16 product is quicker. Measured for 960x576, two cores of
# an AVX-512 (bf16) server CPU, 2026-11: 16 rows 150 against 125 µs, 64 rows 320 against 476 µs, 256
# rows 810 against 1892 µs.
MIN_ROWS_FOR_DENSE = 24


class Int8PackKernel:
    """One weight as int8 codes with a scale and an offset for each output."""

    unit_roundoff = BFLOAT16_ROUNDOFF
    num_invariant_rows = MIN_ROWS_FOR_DENSE - 1

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

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] → [rows, out] in x's dtype."""
        if x.shape[0] >= MIN_ROWS_FOR_DENSE:
            return self.product_of_many()(x)
        rows = x.to(torch.bfloat16)
        out = torch.ops.aten._weight_int8pack_mm(rows, self._codes, self._unit_scales)
        return self._scaled(out.float(), rows, x.dtype)

    def product_of_many(self) -> Callable[[Tensor], Tensor]:
        """Give the product with the codes in bfloat16."""
        codes = self._codes.to(torch.bfloat16)

        def multiply(x: Tensor) -> Tensor:
            rows = x.to(torch.bfloat16)
            out = torch.nn.functional.linear(rows, codes).float()
            return self._scaled(out, rows, x.dtype)

        return multiply

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
