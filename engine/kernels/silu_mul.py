"""Activates an MLP's gate and multiplies it with up, in one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from engine.kernels.compile_case import CompileCase
from engine.kernels.launches import count
from engine.kernels.optional_triton import tl, triton

if TYPE_CHECKING:
    from torch import Tensor

# 8 columns a lane: 16 bytes of 2-byte numbers in one load. One row of 11 008 columns then is 11
# programs, so that a single row is spread over several multiprocessors, too.
_BLOCK = 1024
_NUM_WARPS = 4


def reference(gate_up: Tensor) -> Tensor:
    """Do the same in plain PyTorch; arguments as in `StepKernels.silu_mul`."""
    gate, up = gate_up.float().chunk(2, dim=1)
    return (functional.silu(gate) * up).to(gate_up.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Launch the kernel; arguments as in `StepKernels.silu_mul`, rows may lie apart."""
    count("silu_mul")
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    result = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    # Rows first: a grid's second side ends at 65 535.
    grid = (rows, triton.cdiv(width, _BLOCK))
    _kernel[grid](gate_up, result, gate_up.stride(0), width, block=_BLOCK, num_warps=_NUM_WARPS)
    return result


def compile_cases() -> list[CompileCase]:
    """Each type once."""
    return [
        CompileCase(
            f"silu_mul {dtype}",
            _kernel,
            {
                "gate_up": f"*{dtype}",
                "result": f"*{dtype}",
                "stride": "i32:16",
                "width": "i32:16",
                "block": "constexpr",
            },
            {"block": _BLOCK},
            {"num_warps": _NUM_WARPS},
        )
        for dtype in ("fp32", "fp16", "bf16")
    ]


@triton.jit
def _kernel(
    gate_up: tl.tensor,
    result: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    block: tl.constexpr,
) -> None:
    # 64 bits: rows times 2 * 28 672 columns pass 2^31 from 37 450 tokens on.
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < width
    start = gate_up + row * stride
    gate = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + width + columns, mask=inside, other=0.0).to(tl.float32)
    activated = gate * tl.sigmoid(gate) * up
    tl.store(result + row * width + columns, activated.to(result.dtype.element_ty), mask=inside)
