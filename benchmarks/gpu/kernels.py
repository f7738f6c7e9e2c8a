"""Part "kernels": every Triton kernel beside its reference, in the sizes of real models.

What is compared is what the engine and the loaders call. Memory that kernels are given is filled
with NaN before, so that what one forgets to write, or reads without having to, shows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.context import CheckFailedError
from benchmarks.gpu.random_inputs import Sizes, attention_inputs, grouped_weight
from engine.kernels.choice import step_kernels
from engine.kernels.step_kernels import Order
from loaders.model.kernels.triton_linear import TritonBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from benchmarks.gpu.context import Context

# Of the largest result: a rounding or two of the dtype, and sums in another order.
MAX_ERROR = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
POISON_BYTES, DRY_POISON_BYTES = 2**30, 2**20
BITS = (2, 3, 4, 8)
GROUPS = (128, 32, -1)
ROWS = (1, 5, 16, 33, 300)
SEVEN_B = Sizes(hidden=4096, num_heads=32, num_kv_heads=32, head_dim=128, intermediate=11008)
GROUPED = Sizes(hidden=4096, num_heads=32, num_kv_heads=8, head_dim=128, intermediate=14336)
SMALL = Sizes(hidden=576, num_heads=9, num_kv_heads=3, head_dim=64, intermediate=1536)


@dataclass(frozen=True, slots=True)
class Case:
    """Something that two ways compute."""

    name: str
    dtype: torch.dtype
    found: Callable[[], Tensor]
    expected: Callable[[], Tensor]


def run(context: Context) -> None:
    """Compare; raises `CheckFailedError` that names what is wrong."""
    rows: list[dict[str, Any]] = []
    for case in _cases(context):
        rows.append(_compare(case, context))
        if len(rows) % 20 == 0:
            context.tell(f"{len(rows)} cases")
    wrong = [row for row in rows if not row["passed"]]
    worst = max(rows, key=lambda row: row["error"] / row["allowed"])
    context.save(
        num_cases=len(rows),
        failures=wrong,
        worst=worst,
        summary=f"{len(rows)} cases, {len(wrong)} wrong; nearest to its bound: {worst['name']}",
    )
    if wrong:
        raise CheckFailedError(f"wrong: {', '.join(row['name'] for row in wrong[:8])}")


def _is_small(context: Context) -> bool:
    return context.is_dry or context.is_small


def _compare(case: Case, context: Context) -> dict[str, Any]:
    _poison(context)
    found = case.found().float()
    expected = case.expected().float()
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    allowed = MAX_ERROR[case.dtype]
    # NaN is no number that could be small enough.
    return {"name": case.name, "error": error, "allowed": allowed, "passed": error <= allowed}


def _poison(context: Context) -> None:
    """Leave NaN in the memory that is free."""
    num_bytes = DRY_POISON_BYTES if context.is_dry else POISON_BYTES
    torch.full((num_bytes // 4,), float("nan"), device=context.device)


def _cases(context: Context) -> Iterator[Case]:
    dtypes = (torch.float32,) if context.is_dry else (torch.float16, torch.bfloat16)
    for sizes, dtype in itertools.product(
        (SMALL,) if _is_small(context) else (SEVEN_B, GROUPED, SMALL), dtypes
    ):
        yield from _step_cases(sizes, dtype, context)
    yield from _linear_cases(context, dtypes)


def _step_cases(sizes: Sizes, dtype: torch.dtype, context: Context) -> Iterator[Case]:
    triton, torch_kernels = step_kernels("triton"), step_kernels("torch")
    device, name = context.device, f"{sizes} {dtype}".removeprefix("torch.")
    order = Order.of(torch.randperm(sizes.hidden, device=device))
    attended_order = Order.of(torch.randperm(sizes.num_heads * sizes.head_dim, device=device))
    for rows in (3,) if _is_small(context) else (1, 7, 300):
        residual, delta = torch.randn(2, rows, sizes.hidden, device=device).to(dtype)
        weight = torch.rand(sizes.hidden, device=device).to(dtype)
        yield Case(
            f"add_norm {name} {rows}",
            dtype,
            lambda r=residual, d=delta, w=weight: triton.add_norm(r.clone(), d, w, 1e-5, order),
            lambda r=residual, d=delta, w=weight: torch_kernels.add_norm(
                r.clone(), d, w, 1e-5, order
            ),
        )
        gate_up = torch.randn(rows, 2 * sizes.intermediate, device=device).to(dtype)
        yield Case(
            f"silu_mul {name} {rows}",
            dtype,
            lambda x=gate_up: triton.silu_mul(x),
            lambda x=gate_up: torch_kernels.silu_mul(x),
        )
    for is_fp8, window in ((False, None), (True, None), (False, 40)):
        lengths = (1, 30) if _is_small(context) else (1, 17, 300, 4096, 1000)
        inputs = attention_inputs(sizes, dtype, lengths, device, is_fp8=is_fp8)
        for kernels_name in ("rotate_and_store", "decode_attention"):
            calls = [
                _attention_call(kernels_name, kernels, inputs, window, attended_order)
                for kernels in (triton, torch_kernels)
            ]
            yield Case(f"{kernels_name} {name} fp8={is_fp8} window={window}", dtype, *calls)


def _attention_call(
    name: str, kernels: Any, inputs: Any, window: int | None, order: Order
) -> Callable[[], Tensor]:
    if name == "rotate_and_store":
        return lambda: inputs.rotate_and_store(kernels)
    return lambda: inputs.decode_attention(kernels, window, order)


def _linear_cases(context: Context, dtypes: tuple[torch.dtype, ...]) -> Iterator[Case]:
    ins, outs = (320, 96) if _is_small(context) else (4096, 1024)
    groups, row_counts = ((128,), (1, 20)) if _is_small(context) else (GROUPS, ROWS)
    backend = TritonBackend()
    for bits, group, dtype in itertools.product(BITS, groups, dtypes):
        for has_float_zeros in (False, True):
            weight = grouped_weight(
                ins, outs, bits, group, context.device, has_float_zeros=has_float_zeros
            )
            bias = torch.randn(outs, device=context.device)
            kernel = backend.prepare_grouped(weight, bias, dtype)
            dense = weight.dequantize()
            for rows in row_counts:
                x = torch.randn(rows, ins, device=context.device).to(dtype)
                yield Case(
                    f"linear {bits} bits group {group} float zeros {has_float_zeros} {dtype}"
                    f" {rows} rows",
                    dtype,
                    lambda k=kernel, x=x: k(x),
                    lambda d=dense, x=x, b=bias: torch.addmm(b, x.float(), d.t()),
                )
