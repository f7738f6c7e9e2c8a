# ruff: noqa: N802  # the names are NVML's
"""A stand-in for `pynvml`, NVIDIA's module: GPUs as a test wants them, and errors where it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml

MIB = 1024**2


@dataclass
class FakeGpu:
    """What NVML tells of one GPU, or of a slice of one."""

    name: str = "Tesla T4"
    uuid: str = "GPU-a"
    total_mib: int = 15360
    free_mib: int = 15360
    capability: tuple[int, int] = (7, 5)
    slices: list[FakeGpu | None] | None = None  # None among them: a place without one
    error: int | None = None  # what every question about it ends with


@dataclass
class FakeNvml:
    """Answers as the module does; `starts_with` is the error of its first call."""

    gpus: list[FakeGpu] = field(default_factory=list)
    driver: str = "580.65.06"
    cuda: int = 13000
    starts_with: int | None = None
    is_open: bool = False

    NVMLError = pynvml.NVMLError
    NVML_DEVICE_MIG_ENABLE = pynvml.NVML_DEVICE_MIG_ENABLE

    def nvmlInit(self) -> None:
        if self.starts_with is not None:
            raise pynvml.NVMLError(self.starts_with)
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        assert self.is_open
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        gpu = self.gpus[index]
        if gpu.error is not None:
            raise pynvml.NVMLError(gpu.error)
        return gpu

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:
        return gpu.capability

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(total=gpu.total_mib * MIB, free=gpu.free_mib * MIB)

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        if gpu.slices is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu) -> int:
        return len(gpu.slices or [])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, index: int) -> FakeGpu:
        part = (gpu.slices or [])[index]
        if part is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return part

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda
