"""Weights in half precision, multiplied with float32 activations on CPU (FBGEMM's packed fp16
product).

For what has no integer kernel (8 bits in groups, uneven groups) and for plain fp16 layers such as
lm_head. Weights keep 11 bits, activations and sums are float32. Takes two bytes a weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loaders.kernels.protocol import same_permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from loaders.kernels.protocol import Kernel, LayerShape
    from loaders.packed_tensors import PackedTensors

# Largest finite half; FBGEMM would silently clamp beyond it.
_MAX_HALF = 65504.0


class Fp16PackKernel:
    """One weight packed as half precision."""

    def __init__(self, packed: torch.ScriptObject, input_permutation: Tensor | None) -> None:
        self._packed = packed
        self.input_permutation = input_permutation

    @classmethod
    def from_weight(cls, weight: Tensor, input_permutation: Tensor | None = None) -> Fp16PackKernel:
        """Pack a weight [out, in] of any float dtype, whose values must fit half precision."""
        return cls(torch.ops.quantized.linear_prepack_fp16(weight.float(), None), input_permutation)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] → [rows, out] in x's dtype."""
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x.float(), self._packed)
        return out.to(x.dtype)

    def dequantize(self) -> Tensor:
        """Return the weight as rounded to half precision, [out, in] float32."""
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self._packed)[0]
        return weight.float()

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


def fits_half(weight: Tensor) -> bool:
    """Whether half precision can hold every value of the weight without overflow."""
    return bool(weight.abs().max() <= _MAX_HALF)


class Fp16PackBackend:
    """Runs every packed layer on CPU, at two bytes a weight."""

    name = "fp16pack"

    def refusal(self, shape: LayerShape) -> str | None:
        """Refuse devices other than the CPU."""
        return None if shape.device.type == "cpu" else "runs on CPU only"

    def prepare(self, packed: PackedTensors) -> Kernel:
        """Dequantise once and pack as half precision."""
        return Fp16PackKernel.from_weight(packed.dequantize())
