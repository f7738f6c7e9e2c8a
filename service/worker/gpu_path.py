"""With what an engine begins on a GPU: which kernels, and graphs or none; and a rehearsal of that.

Decided before anything is loaded, from the settings, from what failed before and from what the
device can run at all. A rehearsal runs on the CPU what a GPU would run: for development and tests.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from loaders.quantization.kernel_rules import DeviceFacts, has_triton, triton_refusal
from service.errors import SettingsError

if TYPE_CHECKING:
    from service.settings import WorkerSettings
    from service.worker_protocol.load_attempt import LoadRequest

TRITON: Literal["triton"] = "triton"  # the name of linear kernels and of step kernels


@dataclass(frozen=True, slots=True)
class GpuPath:
    """How a device's steps shall run, every "auto" answered."""

    facts: DeviceFacts
    step_kernels: Literal["triton", "torch"]
    has_graphs: bool
    has_flash: bool  # attention of prompts, where it takes the model's numbers
    backends: tuple[str, ...]  # linear kernels that have an alternative where they fail
    unsupported: str | None = None  # what this GPU cannot run, and why
    rehearsed: str | None = None  # the compute capability of the GPU that is pretended

    @property
    def device_note(self) -> str:
        """What people are told behind the device's name."""
        return "" if self.rehearsed is None else f" (rehearsing a GPU of {self.rehearsed})"


def resolve_gpu_path(
    settings: WorkerSettings, load_request: LoadRequest, device: torch.device
) -> GpuPath | None:
    """Decide how steps run on a device; None for a CPU's own way. Raises SettingsError."""
    facts = _device_facts(settings, device)
    if facts is None:
        return None
    refusal = triton_refusal(facts)
    is_left_out = TRITON in load_request.excluded_backends
    has_linears = settings.backend in ("auto", TRITON) and refusal is None and not is_left_out
    step_kernels = _resolve_step_kernels(settings, load_request, refusal)
    return GpuPath(
        facts=facts,
        step_kernels=step_kernels,
        has_graphs=_resolve_has_graphs(settings, load_request, step_kernels, device),
        has_flash=not load_request.excludes_flash,
        backends=(TRITON,) if has_linears else (),
        unsupported=_unsupported(settings, refusal),
        rehearsed=settings.gpu_rehearsal,
    )


def _device_facts(settings: WorkerSettings, device: torch.device) -> DeviceFacts | None:
    if settings.gpu_rehearsal is not None:
        _check_rehearsal(device)
        major, _, minor = settings.gpu_rehearsal.partition(".")
        return DeviceFacts("cuda", (int(major), int(minor)), has_triton())
    if device.type == "cpu":
        return None
    return DeviceFacts("cuda", torch.cuda.get_device_capability(device), has_triton())


def _check_rehearsal(device: torch.device) -> None:
    if device.type != "cpu":
        raise SettingsError(
            f"gpu_rehearsal runs a GPU's kernels on the CPU, and device is {device}; set device to"
            " cpu, or leave gpu_rehearsal out"
        )
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SettingsError(
            "gpu_rehearsal runs Triton's kernels in its interpreter, which TRITON_INTERPRET=1 in"
            " the environment turns on; set it before the server starts, or leave gpu_rehearsal out"
        )


def _resolve_step_kernels(
    settings: WorkerSettings, load_request: LoadRequest, refusal: str | None
) -> Literal["triton", "torch"]:
    if settings.step_kernels != "auto":
        return settings.step_kernels
    is_left_out = TRITON in load_request.excluded_step_kernels
    return "torch" if is_left_out or refusal is not None else TRITON


def _resolve_has_graphs(
    settings: WorkerSettings,
    load_request: LoadRequest,
    step_kernels: Literal["triton", "torch"],
    device: torch.device,
) -> bool:
    if settings.enforce_eager != "auto":
        return not settings.enforce_eager
    # Without Triton attention reads as far as block tables reach. As it comes, a step reads as far
    # as its longest sequence; recorded, as far as any sequence may become.
    is_slow_recorded = step_kernels == "torch" and device.type == "cuda"
    return not (is_slow_recorded or load_request.excludes_graphs)


def _unsupported(settings: WorkerSettings, refusal: str | None) -> str | None:
    if refusal is None:
        return None
    left_out = []
    if settings.backend == "auto":
        left_out.append("kernel triton")
    if settings.step_kernels == "auto":
        left_out.append("step kernels triton")
    return f"without {' and '.join(left_out)}: {refusal}" if left_out else None
