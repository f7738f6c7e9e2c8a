"""2-, 3- and 4-bit weights on CPU by PyTorch's int4 kernel, for few rows; by bfloat16 tiles for
many.

The kernel (`_weight_int4pack_mm_for_cpu`) takes 4-bit codes in blocks, groups of 32 to 256 that
divide the input dimension, and a scale and a minimum per group in bfloat16. Narrower codes and one
group for the whole input are expressed in it exactly; only scales and minima round to bfloat16
(2^-9 relative).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import structlog
import torch
from torch.nn.functional import pad

from loaders.kernels.fp16pack import Fp16PackKernel
from loaders.kernels.protocol import same_permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from loaders.kernels.protocol import Kernel, LayerShape
    from loaders.packed_tensors import GroupedWeight, PackedTensors

log = structlog.get_logger(__name__)

KERNEL_GROUP_SIZES = (256, 128, 64, 32)
# Outputs are padded to whole blocks of the widest packing, so that no block has a layout of its
# own.
OUTPUT_MULTIPLE = 64
_MIDDLE_CODE = 8  # the kernel reads a code c as (c - 8) * scale + minimum
# From this many rows on, dequantising to bfloat16 and one dense product is quicker. Measured for
# 3072x576, group 32, two cores of an AVX-512 (bf16) server CPU, 2026-11: 64 rows 1.18 against
# 1.34 ms, 256 rows 2.7 against 5.4 ms; for 960x576, 64 rows 0.48 against 0.42, 96 rows 0.56
# against 0.63 ms.
MIN_ROWS_FOR_TILES = 64


@cache
def packed_block_size() -> int | None:
    """Return how many outputs one packed block interleaves on this CPU; None if the layout is
    another.

    PyTorch does not document the layout, so it is found by packing known codes: a byte holds
    output i of the block in its low half and output i + block/2 in its high half, for every input
    in turn.
    """
    codes = (
        torch.arange(128 * 32, dtype=torch.int32).mul_(2654435761 % 65521).remainder_(65521) % 16
    )
    codes = codes.view(128, 32)
    packed = _pack(codes)
    for block in (64, 32):
        if torch.equal(_unpack(packed, block), codes.t().to(torch.uint8)):
            return block
    return None


def _pack(codes: Tensor) -> Tensor:
    """Pack int32 codes [out, in] into PyTorch's blocks, uint8 [out, in / 2]."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    return packed


def _unpack(packed: Tensor, block: int) -> Tensor:
    """Undo `_pack`: uint8 [out, in / 2] to uint8 codes [in, out]."""
    out_features, half = packed.shape
    blocks = packed.view(out_features // block, half * 2, block // 2).transpose(0, 1).contiguous()
    # Stacked rather than written into place, which took twice as long.
    return torch.stack((blocks & 15, blocks >> 4), dim=2).view(half * 2, out_features)


class Int4PackKernel:
    """One weight in PyTorch's int4 blocks; activations are rounded to bfloat16."""

    def __init__(
        self,
        *,
        packed: Tensor,
        scales_and_minima: Tensor,
        group_size: int,
        out_features: int,
        input_permutation: Tensor | None,
    ) -> None:
        self._packed = packed  # [padded out, in / 2] uint8
        self._scales_and_minima = scales_and_minima  # [groups, padded out, 2] bfloat16
        self._group_size = group_size
        self._out_features = out_features
        self.input_permutation = input_permutation

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] → [rows, out] in x's dtype."""
        rows = x.to(torch.bfloat16)
        if x.shape[0] >= MIN_ROWS_FOR_TILES and packed_block_size() is not None:
            out = rows @ self._dequantize_transposed(torch.bfloat16)
        else:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows, self._packed, self._group_size, self._scales_and_minima
            )
        return out[:, : self._out_features].to(x.dtype)

    def dequantize(self) -> Tensor:
        """Return the weight with its rounded scales and minima, [out, in] float32."""
        if packed_block_size() is None:
            eye = torch.eye(self._packed.shape[1] * 2)
            return self(eye).t().contiguous()
        return self._dequantize_transposed(torch.float32)[:, : self._out_features].t().contiguous()

    def _dequantize_transposed(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as [in, padded out] in the dtype."""
        codes = _unpack(self._packed, packed_block_size() or OUTPUT_MULTIPLE)
        num_groups, out_features, _ = self._scales_and_minima.shape
        levels = codes.view(torch.int8).sub_(_MIDDLE_CODE).to(dtype)
        levels = levels.view(num_groups, self._group_size, out_features)
        # Contiguous, or the product would read every second value: 255 instead of 1563 µs for
        # 3072 x 576 (two cores, 2026-11).
        scales, minima = self._scales_and_minima.to(dtype).permute(2, 0, 1).contiguous()
        torch.addcmul(minima[:, None], levels, scales[:, None], out=levels)
        return levels.view(-1, out_features)

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:
        """Put outputs side by side, where inputs and groups agree and no padding comes between."""
        kernels = [self]
        for other in others:
            if not isinstance(other, Int4PackKernel) or other._group_size != self._group_size:
                return None
            if not same_permutation(self.input_permutation, other.input_permutation):
                return None
            kernels.append(other)
        if any(kernel._out_features % OUTPUT_MULTIPLE for kernel in kernels[:-1]):
            return None
        return Int4PackKernel(
            packed=torch.cat([kernel._packed for kernel in kernels]),
            scales_and_minima=torch.cat([kernel._scales_and_minima for kernel in kernels], dim=1),
            group_size=self._group_size,
            out_features=sum(kernel._out_features for kernel in kernels),
            input_permutation=self.input_permutation,
        )


class Int4PackBackend:
    """Runs 2-, 3- and 4-bit layers on CPU."""

    name = "int4pack"

    def refusal(self, shape: LayerShape) -> str | None:
        """Refuse other devices, 8 bits, and inputs that no group of the kernel divides."""
        if shape.device.type != "cpu":
            return "runs on CPU only"
        if shape.format.bits > 4:
            return f"holds at most 4 bits, the layer has {shape.format.bits}"
        if shape.in_features % KERNEL_GROUP_SIZES[-1]:
            return f"needs inputs in multiples of 32, the layer has {shape.in_features}"
        if 0 < shape.format.group_size < shape.in_features and shape.format.group_size % 32:
            return f"needs groups in multiples of 32, the layer has {shape.format.group_size}"
        return None

    def prepare(self, packed: PackedTensors) -> Kernel:
        """Sort, re-group and pack one layer."""
        weight = packed.to_grouped()
        fitting = [size for size in KERNEL_GROUP_SIZES if weight.common_group_size % size == 0]
        if not fitting:
            log.warning(
                "kernel_replaced",
                module=packed.name,
                kernel="fp16pack",
                reason="g_idx makes groups of uneven size, which int4pack cannot hold",
            )
            return Fp16PackKernel.from_weight(weight.dequantize(), weight.input_permutation)
        return _pack_weight(weight.regrouped(fitting[0]))


def _pack_weight(weight: GroupedWeight) -> Int4PackKernel:
    extra = -weight.out_features % OUTPUT_MULTIPLE
    codes, zeros = _centred(weight)
    scales = pad(weight.scales, (0, extra)).to(torch.bfloat16)
    # From the rounded scale, so that a code equal to its zero point stays as near to zero as it
    # can.
    minima = (_MIDDLE_CODE - pad(zeros, (0, extra))) * scales.float()
    return Int4PackKernel(
        packed=_pack(pad(codes, (0, 0, 0, extra)).to(torch.int32)),
        scales_and_minima=torch.stack([scales, minima.to(torch.bfloat16)], dim=-1),
        group_size=weight.group_size,
        out_features=weight.out_features,
        input_permutation=weight.input_permutation,
    )


def _centred(weight: GroupedWeight) -> tuple[Tensor, Tensor]:
    """Shift 2- and 3-bit codes so that every zero point is the middle code and every minimum zero.

    A code less its zero point lies in -7…7 there, so 4 bits hold it around 8. Unshifted, minima of
    several scales would round to bfloat16 and offset whole groups (2 bits: logits off by 0.4 of
    their spread, measured 2026-11).
    """
    if weight.bits > 3:
        return weight.codes, weight.zeros
    zeros = weight.zeros.to(torch.uint8).repeat_interleave(weight.group_size, dim=0).t()
    return weight.codes + _MIDDLE_CODE - zeros, torch.full_like(weight.zeros, _MIDDLE_CODE)
