"""The worker's real process with a fault in what it would run on a GPU, for rehearsals of one.

`FAULTS` in the environment says which, as JSON: what is at fault → how. Linear kernels ("linear"),
their way with many rows ("many rows") and each step kernel by its name may be "wrong",
"uncompiled", "without compiler" or "crash"; graphs ("replay") may be "stale". Flash attention
("flash"), which no CPU has, is put in together with its fault.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

import torch

from service.worker.process import build as build_real
from service.worker.process import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.process.loop import BuiltEngine, ReportProgress
    from service.settings import WorkerSettings
    from service.worker_protocol.load_attempt import LoadRequest


def spoil(function: Callable[..., Any], how: str) -> Callable[..., Any]:
    """Return a function that goes wrong where the other one goes right."""

    def wrong(*arguments: Any, **others: Any) -> Any:
        result = function(*arguments, **others)
        return 1.25 * result if isinstance(result, torch.Tensor) else result

    def uncompiled(*_: Any, **__: Any) -> Any:
        from triton.compiler.errors import CompilationError

        raise CompilationError(None, None, "cannot convert fp8e4nv to fp16")

    def without_compiler(*_: Any, **__: Any) -> Any:
        from triton.runtime.build import _build

        os.environ["PATH"] = ""
        os.environ.pop("CC", None)
        _build("launcher", "launcher.c", tempfile.gettempdir(), [], [], [], [])

    def crash(*_: Any, **__: Any) -> Any:
        os.abort()

    ways = {
        "wrong": wrong,
        "uncompiled": uncompiled,
        "without compiler": without_compiler,
        "crash": crash,
    }
    return ways[how]


def put_in(faults: dict[str, str]) -> None:
    """Spoil what the faults name."""
    from engine.attention import prompt
    from engine.execution.replayed import ReplayedStep
    from engine.kernels.triton_kernels import TritonKernels
    from loaders.model.kernels.triton import dequantize
    from loaders.model.kernels.triton_linear import TritonKernel

    for name, how in faults.items():
        if name == "replay":
            ReplayedStep.replay = lambda _: None  # type: ignore[method-assign]
        elif name == "flash":
            prompt.takes_flash = lambda *_: True  # type: ignore[assignment]
            prompt.attend_by_flash = spoil(prompt.attend_by_sdpa, how)
        elif name == "many rows":
            dequantize.multiply = spoil(dequantize.multiply, how)
        elif name == "linear":
            TritonKernel.__call__ = spoil(TritonKernel.__call__, how)  # type: ignore[method-assign]
        else:
            setattr(TritonKernels, name, spoil(getattr(TritonKernels, name), how))


def build(
    settings: WorkerSettings, load_request: LoadRequest, report_progress: ReportProgress
) -> BuiltEngine:
    put_in(json.loads(os.environ.get("FAULTS", "{}")))
    return build_real(settings, load_request, report_progress)


if __name__ == "__main__":
    main(build)
