"""Which kernels a CPU computes with: those compiled from C++, or PyTorch's own.

Asked by whoever puts an engine and its model together, before either is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engine.errors import EngineStartError
from native.library import why_not

if TYPE_CHECKING:
    import torch

    from engine.config import CpuKernelsName

_INVARIANT = "batch_invariant computes row by row, for which there are no C++ kernels"


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """What was decided."""

    name: Literal["native", "torch"]
    reason: str | None = None  # for PyTorch's; None where they were asked for by name

    def __str__(self) -> str:
        return "compiled, AVX-512 bf16" if self.name == "native" else "PyTorch's"


def resolve_cpu_kernels(
    device: torch.device, asked: CpuKernelsName, *, is_batch_invariant: bool
) -> CpuKernels:
    """Decide which kernels a device's engine computes with; a GPU has nothing of these.

    Raises EngineStartError where the compiled ones are asked for by name and cannot be used.
    """
    if device.type != "cpu":
        return CpuKernels("torch", f"the C++ kernels are for CPUs, and this is {device.type}")
    if asked == "torch":
        return CpuKernels("torch")
    why = _INVARIANT if is_batch_invariant else why_not()
    if why is None:
        return CpuKernels("native")
    if asked == "native":
        raise EngineStartError(f"cpu_kernels is 'native': {why}; 'auto' takes PyTorch's instead")
    return CpuKernels("torch", why)
