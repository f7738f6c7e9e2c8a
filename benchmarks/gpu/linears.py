"""Part "linears": what a quantised product costs inside a CUDA graph, by shape and rows.

Columns: humming (empty until it is built in); Triton as the engine calls it; what the engine does
with many rows, a weight unpacked by pieces and multiplied by cuBLAS, at every number of rows, so
that the table says where to change over; and cuBLAS with all weights unpacked before, which reads
four times the bytes and is the one to beat for many rows.
Each product is captured several times with weights of its own, so that no cache holds them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.random_inputs import grouped_weight
from benchmarks.gpu.timing import measure
from loaders.model.kernels.triton import dequantize
from loaders.model.kernels.triton.pack import pack
from loaders.model.kernels.triton.workspace import workspace_of
from loaders.model.kernels.triton_linear import TritonKernel
from loaders.quantization.plane_layout import MAX_FEW_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.gpu.context import Context

# CodeLlama 7B's: inputs, outputs; joined as the engine joins them.
SHAPES = {
    "qkv": (4096, 12288),
    "o": (4096, 4096),
    "gate_up": (4096, 22016),
    "down": (11008, 4096),
}
DRY_SHAPES = {"o": (256, 128)}
ROWS, DRY_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 2048), (1, 70)
MIN_UNPACKED_ROWS = 16  # fewer never pay for unpacking
BITS, GROUP_SIZE = 4, 128
# So many weights of 4 bits do not fit into 50 MB of cache.
MIN_TOTAL_BYTES = 200e6
REPEATS, DRY_REPEATS = 30, 2
DTYPE = torch.float16


def run(context: Context) -> None:
    """Fill the table, shape by shape."""
    rows: list[dict[str, Any]] = []
    shapes = DRY_SHAPES if context.is_dry else SHAPES
    for name, (ins, outs) in shapes.items():
        context.tell(f"{name}: {ins} inputs, {outs} outputs")
        rows += _measure_shape(name, ins, outs, context)
        context.save(rows=rows, change_over=best_rows(rows))
    first = rows[0]
    context.save(
        summary=f"{first['shape']}, 1 row: {first['triton_us']} µs, {first['triton_gb_per_s']} GB/s"
    )


def _measure_shape(name: str, ins: int, outs: int, context: Context) -> list[dict[str, Any]]:
    weight_bytes = ins * outs * (BITS + 16 / GROUP_SIZE) / 8
    count = 1 if context.is_dry else int(MIN_TOTAL_BYTES // weight_bytes) + 1
    dtype = torch.float32 if context.is_dry else DTYPE
    weights = [grouped_weight(ins, outs, BITS, GROUP_SIZE, context.device) for _ in range(count)]
    planes = [pack(weight) for weight in weights]
    packed = [TritonKernel(each, bias=None, input_permutation=None, dtype=dtype) for each in planes]
    workspace = workspace_of(planes[0].low.device)
    dense = [weight.dequantize().to(dtype) for weight in weights]
    table = []
    for rows in DRY_ROWS if context.is_dry else ROWS:
        x = torch.randn(rows, ins, device=context.device).to(dtype)
        triton_us = _in_graph_us([lambda k=kernel, x=x: k(x) for kernel in packed], context)
        unpacked_us = None
        if rows >= MIN_UNPACKED_ROWS:
            unpacked_us = _in_graph_us(
                [lambda p=each, x=x: dequantize.multiply(x, p, None, workspace) for each in planes],
                context,
            )
        cublas_us = _in_graph_us(
            [lambda w=weight, x=x: torch.nn.functional.linear(x, w) for weight in dense], context
        )
        table.append(
            {
                "shape": name,
                "inputs": ins,
                "outputs": outs,
                "rows": rows,
                "humming_us": None,
                "triton_us": triton_us,
                "triton_gb_per_s": round(weight_bytes / triton_us / 1e3, 1),
                "unpacked_us": unpacked_us,
                "cublas_us": cublas_us,
            }
        )
    return table


def _in_graph_us(calls: list[Callable[[], Tensor]], context: Context) -> float:
    """Return microseconds of one call, of many captured side by side."""

    def run_all() -> None:
        for call in calls:
            call()

    if context.is_dry:
        times = measure(run_all, context.device, repeats=DRY_REPEATS, warm_ups=1)
        return round(1000 * times.median / len(calls), 2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run_all()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_all()
    times = measure(graph.replay, context.device, repeats=REPEATS)
    return round(1000 * times.median / len(calls), 2)


def best_rows(table: list[dict[str, Any]]) -> dict[str, int | None]:
    """Name for each shape the fewest rows from which unpacking first is quicker; None: never.

    Triton's column goes the same way from `MAX_FEW_ROWS` on, so that is where it ends.
    """
    found: dict[str, int | None] = {}
    for name, rows in itertools.groupby(table, key=lambda row: row["shape"]):
        found[name] = next(
            (
                row["rows"]
                for row in rows
                if row["rows"] > MAX_FEW_ROWS
                or (row["unpacked_us"] is not None and row["unpacked_us"] < row["triton_us"])
            ),
            None,
        )
    return found
