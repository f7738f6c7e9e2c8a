"""5- to 8-bit weights in groups on CPU, as two planes of 4 bits in PyTorch's int4 kernel.

A code is 16 times its upper half plus its lower half, so the weight is a 4-bit weight of twice the
inputs, multiplied by every row twice over: the upper halves with 16 times the scale, then the lower
ones with the scale itself. Codes are exact; scales and minima round to bfloat16 (2^-9 relative).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from loaders.model.kernels import int4_blocks
from loaders.model.kernels.block_kernel import BlockKernel
from loaders.model.kernels.int4_blocks import MIDDLE_CODE
from loaders.quantization import kernel_rules
from loaders.quantization.kernel_rules import INT4_OUTPUT_MULTIPLE

if TYPE_CHECKING:
    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel, LayerShape
    from loaders.quantization.packed_tensors import GroupedWeight, PackedTensors

_MIDDLE_BYTE = 128
# The kernel counts both halves from the middle: 16 * (upper - 8) + (lower - 8) = code - 136.
_KERNEL_OFFSET = 17 * MIDDLE_CODE


class Int4PlanesKernel(BlockKernel):
    """One weight of 5 to 8 bits: the plane of upper halves, then that of lower ones, by input."""

    NAME = "int4planes"
    # Measured for 3072x576, group 64, two cores of an AVX-512 (bf16) server CPU, 2026-11: 24 rows
    # 1.00 against 1.13 ms, 32 rows 1.35 against 1.18, 64 rows 2.68 against 1.46.
    MIN_ROWS_FOR_TILES = 32
    NUM_PLANES = 2

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self._packed.shape[1]

    def _kernel_rows(self, rows: Tensor) -> Tensor:
        return torch.cat((rows, rows), dim=1)

    def _levels(self, block: int) -> Tensor:
        upper, lower = int4_blocks.by_input(self._packed, block).chunk(2)
        # Of each byte of either plane, the first half belongs to one output, the second to another.
        codes = int4_blocks.join_halves(upper << 4 | lower & 15, upper & 240 | lower >> 4)
        return codes.bitwise_xor_(_MIDDLE_BYTE).view(torch.int8)

    def _level_scales(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        own = self._scales_and_minima.chunk(2)[1].to(dtype)
        scales, minima = own.permute(2, 0, 1).contiguous()
        return scales, minima.sub_(scales, alpha=_KERNEL_OFFSET - _MIDDLE_BYTE)


class Int4PlanesBackend:
    """Runs layers of 5 to 8 bits on CPU."""

    name = "int4planes"

    def refusal(self, shape: LayerShape) -> str | None:
        """Refuse other devices, fewer bits, and inputs that no group of the kernel divides."""
        return kernel_rules.refusal(self.name, shape.size, shape.facts)

    def prepare(self, packed: PackedTensors) -> Kernel:
        """Sort, re-group and pack one layer."""
        return int4_blocks.prepare(packed, _pack_weight)


def _pack_weight(weight: GroupedWeight) -> Int4PlanesKernel:
    extra = -weight.out_features % INT4_OUTPUT_MULTIPLE
    codes, zeros = int4_blocks.centred(weight, _KERNEL_OFFSET, highest=255)
    codes = pad(codes, (0, 0, 0, extra))
    halves = torch.cat((codes >> 4, codes & 15), dim=1).to(torch.int32)
    scales = pad(weight.scales, (0, extra)).to(torch.bfloat16)
    minima = (_KERNEL_OFFSET - pad(zeros, (0, extra))) * scales.float()
    upper = torch.stack([scales * 16, torch.zeros_like(scales)], dim=-1)
    lower = torch.stack([scales, minima.to(torch.bfloat16)], dim=-1)
    return Int4PlanesKernel(
        packed=int4_blocks.pack(halves),
        scales_and_minima=torch.cat((upper, lower)),
        group_size=weight.group_size,
        out_features=weight.out_features,
        input_permutation=weight.input_permutation,
    )
