"""Kernels as they are specialised for common layers, to be compiled where there is no GPU.

The table of registers and shared memory is made of them. Not used in a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from loaders.model.kernels.triton import dequantize, few_rows
from loaders.model.kernels.triton.levels import plane_constants
from loaders.quantization.plane_layout import OUTPUT_MULTIPLE, PlaneLayout

_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
_ZERO_POINTERS = {"common": "constexpr", "whole": "*u8", "float": "*fp16"}


class CompileCase(NamedTuple):
    """One kernel with its types and constants, as `triton.compile` takes them."""

    name: str  # begins with the name under which its launches are counted
    kernel: Any  # what triton.jit made
    # Every argument's type as Triton writes it, "i32:16" where it is a multiple of 16; pointers
    # are taken to be.
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]


# What weights are multiplied where rows are few: bits, group (0: one for all inputs), how zero
# points are kept, activations, rows of a tile. The figures of other layers lie between these.
_PRODUCTS = (
    (4, 128, "common", torch.float16, 16),  # GPTQ, symmetric
    (4, 128, "common", torch.float16, 32),
    (4, 128, "common", torch.bfloat16, 16),
    (4, 128, "whole", torch.float16, 16),  # AWQ
    (4, 128, "whole", torch.float16, 32),
    (4, 32, "float", torch.float16, 16),  # Q4_K
    (4, 24, "whole", torch.float16, 32),  # groups that no slice fits
    (2, 128, "whole", torch.float16, 32),
    (3, 128, "common", torch.float16, 16),
    (3, 128, "common", torch.float16, 32),
    (8, 32, "common", torch.float16, 32),  # Q8_0
    (8, 0, "whole", torch.float16, 16),
    (5, 32, "float", torch.bfloat16, 32),  # Q5_K
)
# The same where they are dequantised, for any number of rows.
_PIECES = (
    (2, 128, "whole", torch.float16),
    (3, 128, "common", torch.float16),
    (4, 128, "common", torch.float16),
    (4, 32, "float", torch.bfloat16),
    (8, 0, "whole", torch.float16),
)


def compile_cases() -> list[CompileCase]:
    """List kernels of common layers, few enough to be compiled by a test."""
    cases = [
        _few_rows(_Layer(bits, group, zeros, dtype), rows, num_parts=4)
        for bits, group, zeros, dtype, rows in _PRODUCTS
    ]
    usual = _Layer(4, 128, "common", torch.float16)
    cases += [_few_rows(usual, 16, num_parts=1, has_bias=False), _few_rows(usual, 16, num_parts=8)]
    return cases + [_dequantize(_Layer(*layer)) for layer in _PIECES]


class _Layer(NamedTuple):
    bits: int
    group: int
    zeros: Any
    dtype: torch.dtype

    @property
    def name(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"w{self.bits} group {self.group or -1} {self.zeros} zeros {kind}"

    def constants(self) -> dict[str, Any]:
        layout = PlaneLayout.of(self.bits, self.group or -1, 4096)
        common = 2 ** (self.bits - 1) if self.zeros == "common" else 0
        found = plane_constants(layout, self.group, self.zeros, common, self.dtype)
        found["interpreted"] = False
        if self.zeros == "common":
            found["zeros"] = None
        if not found["high_bits"]:
            found["high"] = None
        return found

    def pointers(self, constants: dict[str, Any]) -> dict[str, str]:
        high = "*u8" if constants["high_bits"] else "constexpr"
        return {"low": "*u8", "high": high, "scales": "*fp16", "zeros": _ZERO_POINTERS[self.zeros]}


def _few_rows(layer: _Layer, rows: int, num_parts: int, *, has_bias: bool = True) -> CompileCase:
    constants = layer.constants()
    constants |= {
        "has_bias": has_bias,
        "row_tile": rows,
        "out_tile": OUTPUT_MULTIPLE,
        "num_parts": num_parts,
    }
    if not has_bias:
        constants["bias"] = None
    whole = ("in_features", "out_features", "padded_out", "x_stride")
    own = _POINTERS[layer.dtype]
    signature = {
        "x": own,
        **layer.pointers(constants),
        "bias": "*fp32" if has_bias else "constexpr",
        "y": own,
        "partials": "*fp32",
        "locks": "*i32",
        **dict.fromkeys(whole, "i32:16"),
        **dict.fromkeys(("num_rows", "num_blocks", "part_blocks", "num_groups"), "i32"),
    }
    said = f"{rows} rows {num_parts} parts{'' if has_bias else ' no bias'}"
    return CompileCase(
        f"linear_few_rows {layer.name} {said}",
        few_rows.few_rows_kernel,
        signature | _constexprs(constants),
        constants,
        few_rows.options(rows, constants["scaled"]),
    )


def _dequantize(layer: _Layer) -> CompileCase:
    constants = layer.constants() | {"out_tile": OUTPUT_MULTIPLE}
    whole = ("start", "num_outputs", "in_features", "padded_out")
    signature = {
        **layer.pointers(constants),
        "weight": _POINTERS[layer.dtype],
        **dict.fromkeys(whole, "i32:16"),
        "num_groups": "i32",
    }
    return CompileCase(
        f"linear_dequantize {layer.name}",
        dequantize.dequantize_kernel,
        signature | _constexprs(constants),
        constants,
        dequantize.OPTIONS,
    )


def _constexprs(constants: dict[str, Any]) -> dict[str, str]:
    return dict.fromkeys(constants, "constexpr")
