"""Adds to the residual and normalises it (RMSNorm), in one launch.

The sum is stored before it is normalised, so a norm sees the same residual whether it was added to
in this launch or in one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.kernels.compile_case import CompileCase
from engine.kernels.launches import count
from engine.kernels.optional_triton import tl, triton

if TYPE_CHECKING:
    from torch import Tensor

    from engine.kernels.step_kernels import Order

# Columns that one warp takes at least: 16 bytes a lane of 2-byte numbers, twice.
_COLUMNS_A_WARP = 512
_MOST_WARPS = 16


def reference(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, order: Order | None
) -> Tensor:
    """Do the same in plain PyTorch; arguments as in `StepKernels.add_norm`."""
    if delta is not None:
        residual.copy_(residual.float() + delta.float())
    wide = residual.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    normed = (wide * scale * weight.float()).to(residual.dtype)
    return normed if order is None else normed.index_select(1, order.gather)


def add_norm(
    residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float, order: Order | None
) -> Tensor:
    """Launch the kernel; arguments as in `StepKernels.add_norm`, rows may lie apart."""
    count("add_norm")
    rows, width = residual.shape
    normed = torch.empty((rows, width), dtype=residual.dtype, device=residual.device)
    _kernel[(rows,)](
        residual,
        delta,
        weight,
        None if order is None else order.gather,
        normed,
        residual.stride(0),
        0 if delta is None else delta.stride(0),
        width,
        eps,
        block=triton.next_power_of_2(width),
        num_warps=_num_warps(width),
    )
    return normed


def compile_cases() -> list[CompileCase]:
    """Widths from a small model's to the largest known, and what changes the code."""
    uses = [
        (576, "fp32", True, True),
        (4096, "fp16", True, True),
        (4096, "bf16", True, False),
        (4096, "bf16", False, True),
        (8192, "bf16", True, True),
        (16384, "fp16", True, True),
    ]
    return [_compile_case(*use) for use in uses]


def _compile_case(width: int, dtype: str, has_delta: bool, is_permuted: bool) -> CompileCase:
    said = f"{'' if has_delta else ' no delta'}{' permuted' if is_permuted else ''}"
    constants: dict[str, int | None] = {"block": triton.next_power_of_2(width)}
    signature = {
        "residual": f"*{dtype}",
        "delta": f"*{dtype}",
        "weight": f"*{dtype}",
        "gather": "*i32",
        "normed": f"*{dtype}",
        "residual_stride": "i32:16",
        "delta_stride": "i32:16",
        "width": "i32:16",
        "eps": "fp32",
        "block": "constexpr",
    }
    if not has_delta:
        signature |= {"delta": "constexpr", "delta_stride": "i32"}
        constants["delta"] = None
    if not is_permuted:
        signature["gather"] = "constexpr"
        constants["gather"] = None
    name = f"add_norm {width} {dtype}{said}"
    return CompileCase(name, _kernel, signature, constants, {"num_warps": _num_warps(width)})


def _num_warps(width: int) -> int:
    block: int = triton.next_power_of_2(width)
    return min(max(block // _COLUMNS_A_WARP, 1), _MOST_WARPS)


@triton.jit
def _kernel(
    residual: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    gather: tl.tensor,
    normed: tl.tensor,
    residual_stride: tl.tensor,
    delta_stride: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    block: tl.constexpr,
) -> None:
    # 64 bits: a prompt's rows times 8 192 columns pass 2^31 from 262 144 tokens on.
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width

    total = tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0)
    total = total.to(tl.float32)
    if delta is not None:
        added = tl.load(delta + row * delta_stride + columns, mask=inside, other=0.0)
        kept = (total + added.to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(residual + row * residual_stride + columns, kept, mask=inside)
        total = kept.to(tl.float32)  # as stored

    scale = tl.rsqrt(tl.sum(total * total, axis=0) / width + eps)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    result = (total * scale * factor).to(normed.dtype.element_ty)
    if gather is not None:
        # Permuted in shared memory, so that the store stays whole lines: scattered, a row of 4 096
        # would be 4 096 writes of a 32-byte sector each in place of 256, from one multiprocessor.
        # Loading in order would scatter the residual's own store, and read three rows that way.
        source = tl.load(gather + columns, mask=inside, other=0)
        result = tl.gather(result, source, axis=0)
    tl.store(normed + row * width + columns, result, mask=inside)
