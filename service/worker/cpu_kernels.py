"""Which kernels a variant's engine computes with on a CPU, as its settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from engine.execution.cpu_kernels import CpuKernels, resolve_cpu_kernels
from service.worker_protocol.load_attempt import FailureKind, StartFailure

if TYPE_CHECKING:
    import torch

    from engine.config import CpuKernelsName
    from service.settings import WorkerSettings
    from service.worker_protocol.load_attempt import LoadRequest

log = structlog.get_logger(__name__)

# Who is to blame for what happens while an engine computes with the C++ kernels for the first time.
NATIVE_SUSPECTS = StartFailure(FailureKind.CANNOT_RUN, native=True)


def without_failed(settings: WorkerSettings, load_request: LoadRequest) -> WorkerSettings:
    """Return the settings of an attempt, without C++ kernels where they failed before."""
    if not load_request.excludes_native:
        return settings
    return settings.model_copy(update={"cpu_kernels": "torch"})


def asked_cpu_kernels(settings: WorkerSettings) -> CpuKernelsName:
    """Say what the settings ask for; a rehearsal runs what a GPU would."""
    return "torch" if settings.gpu_rehearsal is not None else settings.cpu_kernels


def choose_cpu_kernels(settings: WorkerSettings, device: torch.device) -> CpuKernels:
    """Decide it from the settings.

    Raises EngineStartError where the compiled ones are asked for by name and cannot be used.
    """
    asked = asked_cpu_kernels(settings)
    return resolve_cpu_kernels(device, asked, is_batch_invariant=settings.batch_invariant)


def tell_cpu_kernels(settings: WorkerSettings, device: torch.device) -> None:
    """Write it into the log, where the device is a CPU. Raises as `choose_cpu_kernels` does."""
    chosen = choose_cpu_kernels(settings, device)
    if device.type == "cpu":
        reason = {} if chosen.reason is None else {"reason": chosen.reason}
        log.info("cpu_kernels", kernels=str(chosen), **reason)
