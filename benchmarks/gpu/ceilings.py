"""Part "ceilings": the most that the device copies and multiplies, which limits are made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.timing import measure

if TYPE_CHECKING:
    from benchmarks.gpu.context import Context

# Far beyond any cache; a product that keeps every multiprocessor busy.
COPIED_BYTES, DRY_COPIED_BYTES = 4 * 2**30, 2**24
SIDE, DRY_SIDE = 8192, 128
REPEATS, DRY_REPEATS = 30, 3
DTYPES = (torch.bfloat16, torch.float16)


def run(context: Context) -> None:
    """Measure copies, then products; medians of several runs."""
    repeats = DRY_REPEATS if context.is_dry else REPEATS
    context.tell("copies")
    copy = measure_copy(
        context.device, DRY_COPIED_BYTES if context.is_dry else COPIED_BYTES, repeats
    )
    context.save(copy=copy)
    products: dict[str, Any] = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        context.tell(f"products in {name}")
        products[name] = measure_product(
            context.device, DRY_SIDE if context.is_dry else SIDE, dtype, repeats
        )
        context.save(products=products)
    speeds = ", ".join(f"{name} {found['tflop_per_s']:.3g}" for name, found in products.items())
    context.save(summary=f"copies {copy['gb_per_s']:.4g} GB/s; products, TFLOP/s: {speeds}")


def measure_copy(device: str, num_bytes: int, repeats: int) -> dict[str, Any]:
    """Copy so many bytes within the device; bytes read and bytes written are both counted."""
    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = measure(lambda: target.copy_(source), device, repeats=repeats)
    return {
        "bytes": num_bytes,
        "ms": asdict(times),
        "gb_per_s": _rounded(2 * num_bytes / times.median / 1e6),
    }


def measure_product(device: str, side: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Multiply two square matrices of random numbers: zeros would be quicker."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = measure(lambda: left @ right, device, repeats=repeats)
    return {
        "side": side,
        "ms": asdict(times),
        "tflop_per_s": _rounded(2 * side**3 / times.median / 1e9),
    }


def _rounded(value: float) -> float:
    """Keep four digits, of a slow device's figures too."""
    return float(f"{value:.4g}")
