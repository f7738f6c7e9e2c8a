"""What the part "kernels" compares: each Triton kernel and its reference, on the same inputs.

Cases come in groups, which share their inputs and can be made in any order and process. What
matters most comes first: whoever runs out of time has compared that.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from benchmarks.gpu.random_inputs import (
    AttentionInputs,
    Sizes,
    attention_inputs,
    chunks,
    grouped_weight,
)
from engine.attention.prompt import attend_by_flash, attend_by_sdpa
from engine.kernels.choice import step_kernels
from engine.kernels.step_kernels import HeadNorm, Order, StepKernels
from loaders.model.kernels.triton_linear import TritonBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from benchmarks.gpu.context import Context
    from benchmarks.gpu.random_inputs import ZeroPoints

    Group = Callable[[], Iterator["Case"]]

# Of the largest result: a rounding or two of the dtype, and sums in another order.
MAX_ERROR = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Numbers kept in fp8 lie an eighth apart, and one that fell between two may go either way.
MAX_FP8_ERROR = 0.08
SEVEN_B = Sizes(hidden=4096, num_heads=32, num_kv_heads=32, head_dim=128, intermediate=11008)
GROUPED = Sizes(hidden=4096, num_heads=32, num_kv_heads=8, head_dim=128, intermediate=14336)
SMALL = Sizes(hidden=576, num_heads=9, num_kv_heads=3, head_dim=64, intermediate=1536)
# Heads of other widths, as Phi and Gemma have them.
WIDTHS = (
    Sizes(hidden=3072, num_heads=32, num_kv_heads=32, head_dim=96, intermediate=8192),
    Sizes(hidden=2048, num_heads=8, num_kv_heads=1, head_dim=256, intermediate=16384),
)
ROWS, FEW_AND_MANY = (1, 7, 300), (1, 5, 16, 33, 64, 300)
LENGTHS = (1, 17, 300, 4096, 1000)
# Inputs, outputs; those of the second leave a last group of 128 or 32 partial, and a last tile.
WHOLE, RAGGED, SMALL_WEIGHT = (4096, 1024), (4144, 1000), (320, 96)


@dataclass(frozen=True, slots=True)
class Case:
    """Something that two ways compute."""

    name: str
    found: Callable[[], Tensor]
    expected: Callable[[], Tensor]
    allowed: float  # of the largest number that is expected


@dataclass(frozen=True, slots=True)
class Weight:
    """A kind of packed weight."""

    bits: int
    group_size: int
    zeros: ZeroPoints
    dtype: torch.dtype  # of activations
    shape: tuple[int, int] = WHOLE


def case_groups(context: Context) -> list[Group]:
    """List all groups for the context's sizes."""
    if context.is_dry or context.is_small:
        dtype = torch.float32 if context.is_dry else torch.float16
        return [
            *_step_groups(SMALL, dtype, context),
            partial(_prompt_cases, SMALL, dtype, context),
            *(partial(_linear_cases, weight, context) for weight in _small_weights(dtype)),
        ]
    groups: list[Group] = []
    for sizes, dtype in itertools.product(
        (SEVEN_B, GROUPED, SMALL), (torch.float16, torch.bfloat16)
    ):
        groups += _step_groups(sizes, dtype, context)
        groups.append(partial(_prompt_cases, sizes, dtype, context))
    for sizes in WIDTHS:
        groups.append(partial(_attention_cases, sizes, torch.float16, False, None, context))
        groups.append(partial(_prompt_cases, sizes, torch.float16, context))
    linears = [partial(_linear_cases, weight, context) for weight in _weights()]
    # In turn, so that half the time has seen half of either.
    pairs = itertools.zip_longest(linears, groups)
    return [group for pair in pairs for group in pair if group is not None]


def _weights() -> list[Weight]:
    """4 bits in every form, others in those that differ most."""
    half, brain = torch.float16, torch.bfloat16
    found = [Weight(4, 128, "common", half), Weight(4, 128, "whole", half)]
    for bits in (4, 3, 8, 2, 5, 6):
        found += [
            Weight(bits, 128, "common", brain, RAGGED),
            Weight(bits, 32, "whole", half, RAGGED),
            Weight(bits, 32, "float", brain),
            Weight(bits, -1, "whole", half),
        ]
    # A border of groups within a slice of inputs: scales are looked up for each input.
    return [*found, Weight(4, 24, "whole", half, RAGGED), Weight(4, 16, "float", half)]


def _small_weights(dtype: torch.dtype) -> list[Weight]:
    kinds: tuple[ZeroPoints, ...] = ("common", "whole", "float", "whole")
    return [
        Weight(bits, 128, zeros, dtype, SMALL_WEIGHT)
        for bits, zeros in zip((4, 3, 2, 8), kinds, strict=True)
    ]


def _step_groups(sizes: Sizes, dtype: torch.dtype, context: Context) -> Iterator[Group]:
    yield partial(_row_cases, sizes, dtype, context)
    for is_fp8, window in ((False, None), (True, None), (False, 40)):
        yield partial(_attention_cases, sizes, dtype, is_fp8, window, context)


def _name(sizes: Sizes, dtype: torch.dtype) -> str:
    return f"{sizes} {str(dtype).removeprefix('torch.')}"


def _row_cases(sizes: Sizes, dtype: torch.dtype, context: Context) -> Iterator[Case]:
    """Norms and products of gates, row by row."""
    device, name = context.device, _name(sizes, dtype)
    triton, torch_kernels = step_kernels("triton"), step_kernels("torch")
    order = Order.of(torch.randperm(sizes.hidden, device=device))
    weight = torch.rand(sizes.hidden, device=device).to(dtype)
    for rows in (3,) if context.is_dry or context.is_small else ROWS:
        residual, delta = torch.randn(2, rows, sizes.hidden, device=device).to(dtype)
        for its_order in (order, None):
            yield Case(
                f"add_norm {name} {rows} rows{'' if its_order is None else ' permuted'}",
                partial(_add_norm, triton, residual, delta, weight, its_order),
                partial(_add_norm, torch_kernels, residual, delta, weight, its_order),
                MAX_ERROR[dtype],
            )
        gate_up = torch.randn(rows, 2 * sizes.intermediate, device=device).to(dtype)
        yield Case(
            f"silu_mul {name} {rows} rows",
            partial(triton.silu_mul, gate_up),
            partial(torch_kernels.silu_mul, gate_up),
            MAX_ERROR[dtype],
        )


def _add_norm(
    kernels: StepKernels, residual: Tensor, delta: Tensor, weight: Tensor, order: Order | None
) -> Tensor:
    """Return the norm and the sum that it leaves in the residual, side by side."""
    changed = residual.clone()
    normed = kernels.add_norm(changed, delta, weight, 1e-5, order)
    return torch.cat((normed, changed), dim=1)


def _attention_cases(
    sizes: Sizes, dtype: torch.dtype, is_fp8: bool, window: int | None, context: Context
) -> Iterator[Case]:
    """Keys and values stored, and looked at by one token a row."""
    is_small = context.is_dry or context.is_small
    lengths = (1, 30) if is_small else LENGTHS
    device, width = context.device, sizes.num_heads * sizes.head_dim
    inputs = attention_inputs(sizes, dtype, lengths, device, is_fp8=is_fp8)
    order = Order.of(torch.randperm(width, device=device))
    kept = f"{_name(sizes, dtype)}{' fp8' if is_fp8 else ''}"
    triton, torch_kernels = step_kernels("triton"), step_kernels("torch")
    if window is None:  # which is nothing to what stores
        norm = HeadNorm(*torch.rand(2, sizes.head_dim, device=device).to(dtype).unbind(0), 1e-6)
        for head_norm in (None, norm):
            yield Case(
                f"rotate_and_store {kept}{'' if head_norm is None else ' head norm'}",
                partial(inputs.rotate_and_store, triton, head_norm),
                partial(inputs.rotate_and_store, torch_kernels, head_norm),
                MAX_FP8_ERROR if is_fp8 else MAX_ERROR[dtype],
            )
    yield _decode_case(f"decode_attention {kept} window={window}", inputs, window, order, dtype)
    if not is_small and window is None:
        # So many rows that no row is split, and a row alone.
        for count in (1, 128):
            rows = attention_inputs(sizes, dtype, (700,) * count, device, is_fp8=is_fp8)
            yield _decode_case(f"decode_attention {kept} {count} rows", rows, None, order, dtype)


def _decode_case(
    name: str, inputs: AttentionInputs, window: int | None, order: Order, dtype: torch.dtype
) -> Case:
    found, expected = (
        partial(inputs.decode_attention, step_kernels(kernels), window, order) for kernels in _BOTH
    )
    return Case(name, found, expected, MAX_ERROR[dtype])


_BOTH: tuple[Literal["triton"], Literal["torch"]] = ("triton", "torch")


def _prompt_cases(sizes: Sizes, dtype: torch.dtype, context: Context) -> Iterator[Case]:
    """PyTorch's flash attention of chunks, which no CPU has, beside its oracle."""
    is_small = context.is_dry or context.is_small
    lengths = ((3, 9),) if is_small else ((1, 1), (37, 100), (300, 300), (64, 1500))
    query, seen, group = chunks(sizes, dtype, lengths, context.device)
    scale = sizes.head_dim**-0.5
    wide = partial(attend_by_sdpa, query.float(), seen.float(), group, scale=scale)
    attend = attend_by_sdpa if context.is_dry else attend_by_flash
    for window in (None, 40):
        yield Case(
            f"{attend.__name__} {_name(sizes, dtype)} window={window}",
            partial(attend, query, seen, group, scale=scale, window=window),
            partial(wide, window=window),
            MAX_ERROR[dtype],
        )


def _linear_cases(weight: Weight, context: Context) -> Iterator[Case]:
    """Products of few rows and of many."""
    is_small = context.is_dry or context.is_small
    ins, outs = weight.shape
    made = grouped_weight(
        ins, outs, weight.bits, weight.group_size, context.device, zeros=weight.zeros
    )
    bias = torch.randn(outs, device=context.device)
    kernel = TritonBackend().prepare_grouped(made, bias, weight.dtype)
    dense = made.dequantize()
    kind = str(weight.dtype).removeprefix("torch.")
    for rows in (1, 20, 70) if is_small else FEW_AND_MANY:
        x = torch.randn(rows, ins, device=context.device).to(weight.dtype)
        yield Case(
            f"linear {weight.bits} bits group {weight.group_size} {weight.zeros} zeros {kind}"
            f" {ins}x{outs} {rows} rows",
            partial(kernel, x),
            partial(_product, x, dense, bias),
            MAX_ERROR[weight.dtype],
        )


def _product(x: Tensor, dense: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x.float(), dense.t())
