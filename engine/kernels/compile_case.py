"""How a kernel is compiled where no card is at hand: types, constants and options of one use.

Kernels list their `compile_cases`; `benchmarks.gpu.kernel_table` compiles them.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class CompileCase(NamedTuple):
    """One use of a kernel, as a launch on a GPU would specialise it."""

    name: str  # "add_norm 4096 fp16 permuted": begins with what its launches are counted as
    kernel: Any  # what triton.jit made
    # Every argument's type, as Triton's own compile tool writes it: "*fp16", "i32", "i32:16" where
    # it is a multiple of 16, "fp32", "constexpr". Pointers are taken to be multiples of 16.
    signature: dict[str, str]
    constants: dict[str, Any]  # values of the constexpr arguments
    options: dict[str, int]  # "num_warps", "num_stages"
    least_capability: int = 80  # the first compute capability that has what it uses
