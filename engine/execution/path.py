"""Which way steps run: the CPU's own, or a GPU's, with which kernels and whether recorded.

Decided once, where a runner is made. A GPU's way may be run on a CPU, for development and tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import torch

from engine.execution.cpu_kernels import resolve_cpu_kernels
from engine.execution.graphs import CudaGraphRecorder
from engine.execution.replayed import ReplayedRecorder

if TYPE_CHECKING:
    from engine.config import EngineConfig
    from engine.execution.graphs import GraphRecorder
    from engine.kernels.step_kernels import StepKernels

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ExecutionPath:
    """How an engine's steps run."""

    kernels: StepKernels | None  # None: the layers and attention that the CPU runs
    recorder: GraphRecorder | None  # None: every step as it comes
    # Steps are queued on the device as they are launched; otherwise they run when their result is
    # asked for.
    is_overlapped: bool
    has_native: bool = False  # kernels in C++ are used where they can be, in place of PyTorch's


def work_on(device: torch.device) -> None:
    """Have this thread's kernels launched on a device; to be called before anything is computed.

    Triton, new events and CUDA graphs take the thread's current GPU, whatever their tensors lie on:
    unless told it is the first, and a model may be on another. cuBLAS adds up the parts of a split
    product in the activations' dtype unless told not to, which can overflow where the sum does not.
    """
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def resolve_path(device: torch.device, config: EngineConfig) -> ExecutionPath:
    """Decide how steps run on a device. Raises where named kernels can't run on it."""
    kernels = _resolve_kernels(device, config)
    path = ExecutionPath(
        kernels=kernels,
        recorder=None if kernels is None else _resolve_recorder(device, config),
        is_overlapped=device.type != "cpu",
        has_native=computes_natively(device, config),
    )
    log.info(
        "execution_path",
        kernels="the CPU's own" if kernels is None else kernels.name,
        graphs=path.recorder is not None,
        overlapped=path.is_overlapped,
        native=path.has_native,
    )
    return path


def computes_natively(device: torch.device, config: EngineConfig) -> bool:
    """Whether an engine computes with the kernels in C++, as far as they know its model.

    Raises EngineStartError where they are asked for by name and cannot be used.
    """
    of_cpu = resolve_cpu_kernels(
        device, config.cpu_kernels, is_batch_invariant=config.is_batch_invariant
    )
    # Steps of a GPU's kind have kernels of their own, on a CPU too.
    has_own_steps = config.step_kernels == "auto" and is_eager(device, config)
    return of_cpu.name == "native" and has_own_steps


def is_eager(device: torch.device, config: EngineConfig) -> bool:
    """Whether decode steps run each as it comes; "auto" is answered here."""
    if config.enforce_eager is None:
        return device.type == "cpu"
    return config.enforce_eager


def _resolve_kernels(device: torch.device, config: EngineConfig) -> StepKernels | None:
    if config.is_batch_invariant:  # row by row, for which there are no kernels
        return None
    name = config.step_kernels
    if name == "auto" and device.type == "cpu":
        if is_eager(device, config):
            return None
        name = "torch"  # what is recorded are steps of a GPU's kind
    elif name == "auto":
        name = "triton"
    # Imported here, because the kernels' module is not for processes that never use it.
    from engine.kernels.choice import step_kernels

    return step_kernels(name, device)


def _resolve_recorder(device: torch.device, config: EngineConfig) -> GraphRecorder | None:
    if is_eager(device, config):
        return None
    return CudaGraphRecorder(device) if device.type == "cuda" else ReplayedRecorder()
