"""Rotates queries and keys, and stores keys and values, in one launch.

Where the model has norms of its heads (Qwen3), they are taken on the way. Keys and values are kept
in whichever type the cache has; fp8 with the very bits that `engine.kernels.fp8` makes.

fp8 is written as bytes, encoded here by hand: Triton has no e4m3 for compute capabilities below
8.9, and one way for all cards is the way that was tested, bit by bit, without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from engine.kernels import fp8
from engine.kernels.compile_case import CompileCase
from engine.kernels.launches import count
from engine.kernels.optional_triton import tl, triton

if TYPE_CHECKING:
    from torch import Tensor

    from engine.kernels.step_kernels import HeadNorm, KVLayer

# Few heads a program, so that one row of a 7B model is 16 of them; the same for any number of
# rows, so that a token's bits do not depend on how many others are computed beside it.
_HEADS_A_PROGRAM = 4
_NUM_WARPS = 2

# A kernel reads only globals that are made so.
_FP8_MAX = tl.constexpr(fp8.FP8_MAX)
_MIN_FP8_SCALE = tl.constexpr(fp8.MIN_FP8_SCALE)


def reference(
    qkv: Tensor,
    rotation: Tensor,
    positions: Tensor,
    slots: Tensor,
    layer: KVLayer,
    *,
    num_heads: int,
    head_norm: HeadNorm | None,
) -> Tensor:
    """Do the same in plain PyTorch; arguments as in `StepKernels.rotate_and_store`."""
    kv_heads, head_dim = layer.values.shape[2:]
    heads = qkv.float().view(qkv.shape[0], -1, head_dim)
    query, key = heads[:, :num_heads], heads[:, num_heads:-kv_heads]
    value = heads[:, -kv_heads:]
    if head_norm is not None:
        query = _normed(query, head_norm.query, head_norm.eps)
        key = _normed(key, head_norm.key, head_norm.eps)
    cos, sin = rotation.index_select(0, positions).float().chunk(2, dim=1)
    query = query * cos + query.roll(head_dim // 2, dims=-1) * sin
    key = key * cos + key.roll(head_dim // 2, dims=-1) * sin
    _store(layer, slots, torch.stack((key, value), dim=1))
    return query.to(qkv.dtype)


def _normed(heads: Tensor, weight: Tensor, eps: float) -> Tensor:
    scale = torch.rsqrt(heads.square().mean(dim=-1, keepdim=True) + eps)
    return heads * scale * weight.float()


def _store(layer: KVLayer, slots: Tensor, key_value: Tensor) -> None:
    if layer.scales is None:
        layer.values.index_copy_(0, slots, key_value.to(layer.values.dtype))
        return
    codes, scales = fp8.quantize(key_value)
    # Bytes, because copying by index knows no float8.
    layer.values.view(torch.uint8).index_copy_(0, slots, codes.view(torch.uint8))
    layer.scales.index_copy_(0, slots, scales)


def rotate_and_store(
    qkv: Tensor,
    rotation: Tensor,
    positions: Tensor,
    slots: Tensor,
    layer: KVLayer,
    *,
    num_heads: int,
    head_norm: HeadNorm | None,
) -> Tensor:
    """Launch the kernel; arguments as in `StepKernels.rotate_and_store`."""
    count("rotate_and_store")
    kv_heads, head_dim = layer.values.shape[2:]
    rows = qkv.shape[0]
    query = torch.empty((rows, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    groups = triton.cdiv(num_heads, _HEADS_A_PROGRAM) + triton.cdiv(kv_heads, _HEADS_A_PROGRAM)
    _kernel[(rows, groups)](
        qkv,
        rotation,
        positions,
        slots,
        None if head_norm is None else head_norm.query,
        None if head_norm is None else head_norm.key,
        layer.values if layer.scales is None else layer.values.view(torch.uint8),
        layer.scales,
        query,
        qkv.stride(0),
        num_heads,
        kv_heads,
        0.0 if head_norm is None else head_norm.eps,
        head_dim=head_dim,
        half_block=triton.next_power_of_2(head_dim // 2),
        heads_block=_HEADS_A_PROGRAM,
        num_warps=_NUM_WARPS,
    )
    return query


def compile_cases() -> list[CompileCase]:
    """Each width of heads, each way to keep keys and values, with norms of heads and without."""
    uses = [
        (64, "bf16", "bf16", False),
        (96, "fp16", "fp16", False),
        (128, "fp16", "fp16", False),
        (128, "fp16", "u8", False),
        (128, "bf16", "bf16", True),
        (128, "bf16", "u8", True),
        (256, "fp32", "fp32", False),
        (256, "bf16", "u8", False),
    ]
    return [_compile_case(*use) for use in uses]


def _compile_case(head_dim: int, dtype: str, kept: str, has_norm: bool) -> CompileCase:
    signature = {
        "qkv": f"*{dtype}",
        "rotation": f"*{dtype}",
        "positions": "*i64",
        "slots": "*i64",
        "query_norm": f"*{dtype}",
        "key_norm": f"*{dtype}",
        "values": f"*{kept}",
        "scales": "*fp16",
        "query": f"*{dtype}",
        "qkv_stride": "i32:16",
        "num_heads": "i32",
        "kv_heads": "i32",
        "eps": "fp32",
        "head_dim": "constexpr",
        "half_block": "constexpr",
        "heads_block": "constexpr",
    }
    constants: dict[str, Any] = {
        "head_dim": head_dim,
        "half_block": triton.next_power_of_2(head_dim // 2),
        "heads_block": _HEADS_A_PROGRAM,
    }
    absent = [] if has_norm else ["query_norm", "key_norm"]
    absent += [] if kept == "u8" else ["scales"]
    signature |= dict.fromkeys(absent, "constexpr")
    constants |= dict.fromkeys(absent)
    kept_as = "fp8" if kept == "u8" else kept
    name = f"rotate_and_store {head_dim} {dtype} kept {kept_as}{' head norm' if has_norm else ''}"
    return CompileCase(name, _kernel, signature, constants, {"num_warps": _NUM_WARPS})


# Positions and slots are slices of what a step sends, which begin anywhere: each other alignment
# would be compiled anew, while requests wait.
@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _kernel(
    qkv: tl.tensor,
    rotation: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    query: tl.tensor,
    qkv_stride: tl.tensor,
    num_heads: tl.tensor,
    kv_heads: tl.tensor,
    eps: tl.tensor,
    head_dim: tl.constexpr,
    half_block: tl.constexpr,
    heads_block: tl.constexpr,
) -> None:
    # 64 bits: a cache of a million slots of 8 heads passes 2^31 numbers, as 4-byte offsets would.
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    source = qkv + row * qkv_stride
    turned = rotation + position * (2 * head_dim)
    group = tl.program_id(1)
    query_groups = tl.cdiv(num_heads, heads_block)
    if group < query_groups:
        heads = group * heads_block + tl.arange(0, heads_block)
        first, second = _load(source, heads, num_heads, head_dim, half_block)
        first, second = _rotate(first, second, turned, query_norm, eps, head_dim, half_block)
        target = query + row * num_heads * head_dim
        _store_heads(target, first, second, heads, num_heads, head_dim, half_block)
    else:
        heads = (group - query_groups) * heads_block + tl.arange(0, heads_block)
        slot = tl.load(slots + row).to(tl.int64)
        keys = source + num_heads * head_dim
        first, second = _load(keys, heads, kv_heads, head_dim, half_block)
        first, second = _rotate(first, second, turned, key_norm, eps, head_dim, half_block)
        place = slot * 2 * kv_heads
        _keep(values, scales, place, first, second, heads, kv_heads, head_dim, half_block)

        first, second = _load(keys + kv_heads * head_dim, heads, kv_heads, head_dim, half_block)
        place += kv_heads
        _keep(values, scales, place, first, second, heads, kv_heads, head_dim, half_block)


@triton.jit
def _load(
    source: tl.tensor,
    heads: tl.tensor,
    num_heads: tl.tensor,
    head_dim: tl.constexpr,
    half_block: tl.constexpr,
) -> Any:
    """Load both halves of heads, [heads, half_block] float32 each, 0 where there is nothing.

    In halves, because rotation pairs them: nothing has to be rolled then.
    """
    half: tl.constexpr = head_dim // 2
    columns = tl.arange(0, half_block)
    inside = (heads < num_heads)[:, None] & (columns < half)[None, :]
    start = source + heads[:, None] * head_dim + columns[None, :]
    first = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(start + half, mask=inside, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _rotate(
    first: tl.tensor,
    second: tl.tensor,
    turned: tl.tensor,
    norm: tl.tensor,
    eps: tl.tensor,
    head_dim: tl.constexpr,
    half_block: tl.constexpr,
) -> Any:
    half: tl.constexpr = head_dim // 2
    columns = tl.arange(0, half_block)
    inside = columns < half
    if norm is not None:
        squares = tl.sum(first * first + second * second, axis=1)
        scale = tl.rsqrt(squares / head_dim + eps)[:, None]
        weight = tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)
        first = first * scale * weight[None, :]
        weight = tl.load(norm + half + columns, mask=inside, other=0.0).to(tl.float32)
        second = second * scale * weight[None, :]
    turned += columns
    cos = tl.load(turned, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(turned + head_dim, mask=inside, other=0.0).to(tl.float32)
    new_first = first * cos[None, :] + second * sin[None, :]
    cos = tl.load(turned + half, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(turned + head_dim + half, mask=inside, other=0.0).to(tl.float32)
    return new_first, second * cos[None, :] + first * sin[None, :]


@triton.jit
def _store_heads(
    target: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    heads: tl.tensor,
    num_heads: tl.tensor,
    head_dim: tl.constexpr,
    half_block: tl.constexpr,
) -> None:
    half: tl.constexpr = head_dim // 2
    columns = tl.arange(0, half_block)
    inside = (heads < num_heads)[:, None] & (columns < half)[None, :]
    start = target + heads[:, None] * head_dim + columns[None, :]
    tl.store(start, first.to(target.dtype.element_ty), mask=inside)
    tl.store(start + half, second.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _keep(
    values: tl.tensor,
    scales: tl.tensor,
    place: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    heads: tl.tensor,
    kv_heads: tl.tensor,
    head_dim: tl.constexpr,
    half_block: tl.constexpr,
) -> None:
    """Store heads of a token; place: of its first head, counted in heads of the cache."""
    if scales is not None:
        scale = _scale(first, second)
        tl.store(scales + place + heads, scale, mask=heads < kv_heads)
        wide = scale.to(tl.float32)[:, None]
        first = _e4m3(tl.div_rn(first, wide))
        second = _e4m3(tl.div_rn(second, wide))
    target = values + place * head_dim
    _store_heads(target, first, second, heads, kv_heads, head_dim, half_block)


@triton.jit
def _scale(first: tl.tensor, second: tl.tensor) -> Any:
    """Return what each head's numbers are divided by, float16, as `fp8.quantize` has it."""
    largest = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=1)
    # Divided exactly: Triton's own "/" may be off by the last bit.
    most = tl.full(largest.shape, _FP8_MAX, tl.float32)
    scale = tl.maximum(tl.div_rn(largest, most), _MIN_FP8_SCALE)
    # A maximum drops NaN. It must go on to the logits, where it is looked for.
    is_nan = ((first != first) | (second != second)).to(tl.int32)
    scale = tl.where(tl.max(is_nan, axis=1) > 0, float("nan"), scale)
    return scale.to(tl.float16)


@triton.jit
def _e4m3(number: tl.tensor) -> Any:
    """Return the byte of float32 numbers, rounded to even; beyond the range the largest."""
    bits = number.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    is_nan = size > 0x7F800000
    size = tl.minimum(size, 0x43E00000)  # 448
    # 20 of 23 bits go, and the exponent's bias from 127 to 7. A carry into the exponent is right.
    code = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 steps are 2^-9: those of float32 at 2^14, so an addition rounds.
    small = size.to(tl.float32, bitcast=True) + 16384.0
    code = tl.where(size < 0x3C800000, small.to(tl.uint32, bitcast=True) - 0x46800000, code)
    code = tl.where(is_nan, 0x7F, code)
    return (code | ((bits >> 31) << 7)).to(tl.uint8)
