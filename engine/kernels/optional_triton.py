"""Triton, or a stand-in where it is not installed.

A kernel lies beside its reference, and the references are what a GPU without Triton runs on: their
modules must be importable there. The stand-in leaves kernels as they were written, functions that
nobody can launch; `engine.kernels.choice` sees to it that nobody tries.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    try:
        import triton
        import triton.language as tl
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise

        def _jit(kernel: Any = None, **options: Any) -> Any:  # noqa: ARG001
            return (lambda given: given) if kernel is None else kernel

        triton = SimpleNamespace(jit=_jit)
        tl = SimpleNamespace(constexpr=lambda value: value)

__all__ = ["is_installed", "tl", "triton"]

is_installed = not isinstance(triton, SimpleNamespace)
