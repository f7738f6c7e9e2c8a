"""2-, 3- and 4-bit weights on CPU by PyTorch's int4 kernel.

Narrower codes and one group for the whole input are expressed in the kernel's blocks exactly; only
scales and minima round to bfloat16 (2^-9 relative).
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


class Int4PackKernel(BlockKernel):
    """One weight of up to 4 bits."""

    NAME = "int4pack"
    # Measured for 3072x576, group 64, two cores of an AVX-512 (bf16) server CPU, 2026-11: 48 rows
    # 1.01 against 1.11 ms, 64 rows 1.35 against 1.24, 256 rows 5.4 against 2.7.
    MIN_ROWS_FOR_TILES = 64

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self._packed.shape[1] * 2

    def _kernel_rows(self, rows: Tensor) -> Tensor:
        return rows

    def _levels(self, block: int) -> Tensor:
        return int4_blocks.unpack(self._packed, block).view(torch.int8).sub_(MIDDLE_CODE)

    def _level_scales(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scales, minima = self._scales_and_minima.to(dtype).permute(2, 0, 1).contiguous()
        return scales, minima


class Int4PackBackend:
    """Runs 2-, 3- and 4-bit layers on CPU."""

    name = "int4pack"

    def refusal(self, shape: LayerShape) -> str | None:
        """Refuse other devices, 8 bits, and inputs that no group of the kernel divides."""
        return kernel_rules.refusal(self.name, shape.size, shape.facts)

    def prepare(self, packed: PackedTensors) -> Kernel:
        """Sort, re-group and pack one layer."""
        return int4_blocks.prepare(packed, _pack_weight)


def _pack_weight(weight: GroupedWeight) -> Int4PackKernel:
    extra = -weight.out_features % INT4_OUTPUT_MULTIPLE
    codes, zeros = int4_blocks.centred(weight, MIDDLE_CODE, highest=15)
    scales = pad(weight.scales, (0, extra)).to(torch.bfloat16)
    # From the rounded scale, so that a code equal to its zero point stays as near to zero as it
    # can.
    minima = (MIDDLE_CODE - pad(zeros, (0, extra))) * scales.float()
    return Int4PackKernel(
        packed=int4_blocks.pack(pad(codes, (0, 0, 0, extra)).to(torch.int32)),
        scales_and_minima=torch.stack([scales, minima.to(torch.bfloat16)], dim=-1),
        group_size=weight.group_size,
        out_features=weight.out_features,
        input_permutation=weight.input_permutation,
    )
