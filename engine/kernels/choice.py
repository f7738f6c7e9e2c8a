"""Gives the step kernels of a name, or says what they lack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from engine.errors import EngineStartError
from engine.kernels import optional_triton
from engine.kernels.torch_kernels import TorchKernels
from engine.kernels.triton_kernels import TritonKernels

if TYPE_CHECKING:
    from engine.kernels.step_kernels import StepKernels


def step_kernels(
    name: Literal["triton", "torch"], device: torch.device | None = None
) -> StepKernels:
    """Return the kernels for a device; without one, for a GPU where there is one.

    Raises `EngineStartError` where Triton is not installed, and where kernels would be compiled for
    a CPU or interpreted for a GPU.
    """
    if name == "torch":
        return TorchKernels()
    if not optional_triton.is_installed:
        raise EngineStartError(
            "step_kernels is 'triton', and Triton is not installed; install it (pip install"
            " triton), or set step_kernels to 'torch'"
        )
    has_cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
    if not has_cuda and not is_interpreted():
        raise EngineStartError(
            "step_kernels is 'triton' on a CPU, where kernels run in Triton's interpreter only; set"
            " TRITON_INTERPRET=1 in the environment before the process starts, or set step_kernels"
            " to 'torch'"
        )
    if has_cuda and is_interpreted():
        raise EngineStartError(
            "TRITON_INTERPRET is set: Triton would run its kernels on the CPU, wait for the GPU at"
            " each, and leave CUDA graphs empty; unset it, or set step_kernels to 'torch'"
        )
    return TritonKernels()


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter: decided when Triton was imported."""
    if not optional_triton.is_installed:
        return False
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(optional_triton.tl.sum, InterpretedFunction)
