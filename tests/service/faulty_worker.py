"""The worker's real process with a fault of its own: kernels that are wrong, or too little memory.

`FAULTS` in the environment says which, as JSON. backends: those that there are, all by default.
kernels: backend → widths in bits that it gets wrong. native: the signal by which the process ends
where it is to compute with kernels in C++, which this machine then counts as able to. room: bytes
that may be mapped beyond what the libraries take.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import psutil

from loaders.model.kernels import resolve
from service.worker.process import build as build_real
from service.worker.process import main

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.process.loop import BuiltEngine, ReportProgress
    from loaders.model.kernels.protocol import Backend, Kernel, LayerShape
    from loaders.quantization.packed_tensors import PackedTensors
    from service.settings import WorkerSettings
    from service.worker_protocol.load_attempt import LoadRequest

NUM_FORGOTTEN = 32  # inputs


class FaultyKernel:
    """Forgets its last inputs, as one whose loop ends a group too early would."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.num_invariant_rows = kernel.num_invariant_rows
        self.unit_roundoff = kernel.unit_roundoff
        self.input_permutation = kernel.input_permutation
        self.dequantize = kernel.dequantize

    def __call__(self, x: Tensor) -> Tensor:
        kept = x.clone()
        kept[:, -NUM_FORGOTTEN:] = 0
        return self._kernel(kept)

    def fuse(self, others: Sequence[Kernel]) -> Kernel | None:
        return None


class FaultyBackend:
    """A backend whose kernels are wrong for some widths."""

    def __init__(self, backend: Backend, bits: Sequence[int]) -> None:
        self.name = backend.name
        self._backend = backend
        self._bits = bits

    def refusal(self, shape: LayerShape) -> str | None:
        return self._backend.refusal(shape)

    def prepare(self, packed: PackedTensors) -> Kernel:
        kernel = self._backend.prepare(packed)
        return FaultyKernel(kernel) if packed.format.bits in self._bits else kernel


def end_natively(name: str) -> None:
    """Have engines of kernels in C++ end the process, as an instruction that is none does."""
    from engine.execution import cpu_kernels
    from engine.execution.path import computes_natively
    from service.worker import build as worker

    make = worker.Engine

    def make_or_end(model: Any, config: Any, **more: Any) -> Any:
        if computes_natively(model.device, config):
            os.kill(os.getpid(), signal.Signals[name])
        return make(model, config, **more)

    cpu_kernels.why_not = lambda: None  # type: ignore[assignment]
    worker.Engine = make_or_end  # type: ignore[assignment,misc]


def build(
    settings: WorkerSettings, load_request: LoadRequest, report_progress: ReportProgress
) -> BuiltEngine:
    faults = json.loads(os.environ["FAULTS"])
    kernels = faults.get("kernels", {})
    resolve.BACKENDS = tuple(
        FaultyBackend(backend, kernels[backend.name]) if backend.name in kernels else backend
        for backend in resolve.BACKENDS
        if backend.name in faults.get("backends", resolve.backend_names())
    )
    if "native" in faults:
        end_natively(faults["native"])
    if room := faults.get("room"):
        import service.worker.build  # noqa: F401 - what it maps is no part of the room

        limit = psutil.Process().memory_info().vms + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return build_real(settings, load_request, report_progress)


if __name__ == "__main__":
    main(build)
