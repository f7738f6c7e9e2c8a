"""Weights in half precision, multiplied with float32 activations on CPU (FBGEMM's packed fp16
product).

For what has no integer kernel (groups of 16, uneven groups) and for plain fp16 layers such as
lm_head. Weights keep 11 bits, activations and sums are float32. Takes two bytes a weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loaders.model.kernels.protocol import FLOAT16_ROUNDOFF, same_permutation
from loaders.quantization import kernel_rules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel, LayerShape
    from loaders.quantization.packed_tensors import PackedTensors

# Outputs packed at a time: packing takes float32, and all of a large head would take twice the
# head. A product in three pieces took 1.13 ms where one took 1.01 (49 152 x 576, two cores,
# 2026-11).
MAX_PIECE_ROWS = 16384
_ROWS_AT_ONCE = 2048  # dequantised at a time, which takes several copies


class Fp16PackKernel:
    """One weight packed as half precision, in pieces of at most `MAX_PIECE_ROWS` outputs."""

    unit_roundoff = FLOAT16_ROUNDOFF
    num_invariant_rows = None  # FBGEMM sums each row over the inputs in their order

    def __init__(
        self, pieces: Sequence[torch.ScriptObject], input_permutation: Tensor | None
    ) -> None:
        self._pieces = tuple(pieces)
        self.input_permutation = input_permutation

    @classmethod
    def from_weight(cls, weight: Tensor, input_permutation: Tensor | None = None) -> Fp16PackKernel:
        """Pack a weight [out, in] of any float dtype; values beyond half's range are clamped."""
        pack = torch.ops.quantized.linear_prepack_fp16
        starts = range(0, len(weight), MAX_PIECE_ROWS)
        pieces = [pack(weight[i : i + MAX_PIECE_ROWS].float(), None) for i in starts]
        return cls(pieces, input_permutation)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] → [rows, out] in x's dtype."""
        multiply, wide = torch.ops.quantized.linear_dynamic_fp16, x.float()
        products = [multiply(wide, piece) for piece in self._pieces]
        out: Tensor = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        return out.to(x.dtype)

    def dequantize(self) -> Tensor:
        """Return the weight as rounded to half precision, [out, in] float32."""
        unpack = torch.ops.quantized.linear_unpack_fp16
        return torch.cat([unpack(piece)[0].float() for piece in self._pieces])

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:
        """Pack the outputs side by side, where the input order agrees."""
        weights = [self.dequantize()]
        for other in others:
            if not isinstance(other, Fp16PackKernel):
                return None
            if not same_permutation(self.input_permutation, other.input_permutation):
                return None
            weights.append(other.dequantize())
        return Fp16PackKernel.from_weight(torch.cat(weights), self.input_permutation)


class Fp16PackBackend:
    """Runs every packed layer on CPU, at two bytes a weight."""

    name = "fp16pack"

    def refusal(self, shape: LayerShape) -> str | None:
        """Refuse devices other than the CPU."""
        return kernel_rules.refusal(self.name, shape.size, shape.facts)

    def prepare(self, packed: PackedTensors) -> Kernel:
        """Dequantise once, a few outputs at a time, and pack as half precision."""
        kernels = [
            Fp16PackKernel.from_weight(
                torch.cat([part.dequantize() for part in piece.pieces(_ROWS_AT_ONCE)])
            )
            for piece in packed.pieces(MAX_PIECE_ROWS)
        ]
        return Fp16PackKernel([piece for kernel in kernels for piece in kernel._pieces], None)
