"""PyTorch's int4 kernel on CPU and the blocks it reads (`_weight_int4pack_mm_for_cpu`).

It takes 4-bit codes in blocks of outputs, groups of 32 to 256 that divide the input dimension, and
a scale and a minimum per group in bfloat16: weight = (code - 8) * scale + minimum. Activations are
bfloat16, sums float32.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import structlog
import torch

from loaders.errors import BackendError
from loaders.model.kernels.fp16pack import Fp16PackKernel
from loaders.quantization.kernel_rules import INT4_OUTPUT_MULTIPLE, int4_group_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from loaders.model.kernels.protocol import Kernel
    from loaders.quantization.packed_tensors import GroupedWeight, PackedTensors

log = structlog.get_logger(__name__)

MIDDLE_CODE = 8
_VALUES_AT_ONCE = 2**21  # unpacked at a time, 20 bytes each
# Of the float32 levels that are scaled at a time. One thread, L2 of 1 MB and L3 of 32, µs for the
# four weights of a layer of SmolLM2-135M: 1 MB 1 364, 2 MB 1 300, 4 MB 1 240, all at once 1 255.
_SCALED_BYTES = 4 * 2**20


def prepare(packed: PackedTensors, pack_weight: Callable[[GroupedWeight], Kernel]) -> Kernel:
    """Cut the groups to a size that the kernel takes, and pack, a few outputs at a time."""
    blocks_at_once = _VALUES_AT_ONCE // (packed.in_features * INT4_OUTPUT_MULTIPLE)
    max_outputs = max(blocks_at_once, 1) * INT4_OUTPUT_MULTIPLE
    first, *others = [_prepare(piece, pack_weight) for piece in packed.pieces(max_outputs)]
    kernel = first.fuse(others) if others else first
    if kernel is None:  # pieces are whole blocks of the same groups, in order
        raise BackendError(f"{packed.name}: its pieces cannot be joined again, which is our fault")
    return kernel


def _prepare(packed: PackedTensors, pack_weight: Callable[[GroupedWeight], Kernel]) -> Kernel:
    weight = packed.to_grouped()
    fitting = int4_group_size(weight.common_group_size)
    if fitting is not None:
        return pack_weight(weight.regrouped(fitting))
    log.warning(
        "kernel_replaced",
        module=packed.name,
        kernel="fp16pack",
        reason="g_idx makes groups of uneven size, which int4 blocks cannot hold",
    )
    return Fp16PackKernel.from_weight(weight.dequantize(), weight.input_permutation)


def centred(weight: GroupedWeight, middle: int, highest: int) -> tuple[Tensor, Tensor]:
    """Shift codes, whose highest may become `highest`, to bring zero points near to `middle`.

    The kernel counts from the middle, and what a zero point differs from it becomes a minimum in
    bfloat16. Unshifted, minima of several scales would offset whole groups (2 bits: logits off by
    0.4 of their spread, measured 2026-11). A whole zero point that gets there leaves none at all.
    """
    room = highest - (2**weight.bits - 1)
    if room == 0:
        return weight.codes, weight.zeros
    shifts = (middle - weight.zeros).round().clamp(0, room)
    by_input = shifts.to(torch.uint8).repeat_interleave(weight.group_size, dim=0).t()
    return weight.codes + by_input, weight.zeros + shifts


@cache
def block_size() -> int | None:
    """Return how many outputs one block interleaves on this CPU; None if the layout is another.

    PyTorch does not document the layout, so it is found by packing known codes: a byte holds
    output i of the block in its low half and output i + block/2 in its high half, for every input
    in turn.
    """
    codes = (
        torch.arange(128 * 32, dtype=torch.int32).mul_(2654435761 % 65521).remainder_(65521) % 16
    )
    codes = codes.view(128, 32)
    packed = pack(codes)
    for size in (64, 32):
        if torch.equal(unpack(packed, size), codes.t().to(torch.uint8)):
            return size
    return None


def pack(codes: Tensor) -> Tensor:
    """Pack int32 codes [out, in] into blocks, uint8 [out, in / 2]."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    return packed


def unpack(packed: Tensor, size: int) -> Tensor:
    """Undo `pack`: uint8 [out, in / 2] in blocks of `size` outputs to uint8 codes [in, out]."""
    rows = by_input(packed, size)
    return join_halves(rows & 15, rows >> 4)


def by_input(packed: Tensor, size: int) -> Tensor:
    """Order the packed bytes by input first, uint8 [in, out / size, size / 2]."""
    out_features, half = packed.shape
    return packed.view(out_features // size, half * 2, size // 2).transpose(0, 1).contiguous()


def join_halves(low: Tensor, high: Tensor) -> Tensor:
    """Put each block's halves [in, out / size, size / 2] side by side, [in, out]."""
    # Stacked rather than written into place, which took twice as long.
    return torch.stack((low, high), dim=2).view(low.shape[0], -1)


def multiply(rows: Tensor, packed: Tensor, group_size: int, scales_and_minima: Tensor) -> Tensor:
    """Multiply rows [rows, in] bfloat16 → [rows, padded out] bfloat16."""
    product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        rows, packed, group_size, scales_and_minima
    )
    return product


def scale_levels(levels: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    """Return levels * scale + minimum, rounded once to the scales' dtype.

    levels: int8 [in, out]; scales, minima: [groups, out], contiguous, or the product reads every
    second value (255 instead of 1563 µs for 3072 x 576, two cores, 2026-11).
    """
    # In float32 until the end, some groups at a time. For 2 groups of 64 x 3072 bytes take 18 µs to
    # float32 and 39 to bfloat16, the product 29 and 65, and rounding 28 (one thread, AVX-512,
    # 2026-11). Levels, scales and their products are exact in it.
    scales_at, minima_at = scales.float()[:, None], minima.float()[:, None]
    num_groups, (_, out_features) = len(scales), levels.shape
    grouped = levels.view(num_groups, -1, out_features)
    scaled = torch.empty(grouped.shape, dtype=scales.dtype)
    at_once = max(1, _SCALED_BYTES // (grouped[0].numel() * torch.float32.itemsize))
    scratch = torch.empty(grouped[:at_once].shape)
    for first in range(0, num_groups, at_once):
        some = slice(first, first + at_once)
        wide = scaled[some] if scaled.dtype == torch.float32 else scratch[: len(scaled[some])]
        torch.addcmul(minima_at[some], wide.copy_(grouped[some]), scales_at[some], out=wide)
        if wide.dtype != scaled.dtype:
            scaled[some] = wide
    return scaled.view(levels.shape)
