"""Asks NVIDIA's driver which GPUs this machine has, and what it can run: through NVML, its library.

Needs no PyTorch and makes no CUDA context. Where there is no driver nothing is found; a driver
that is there and does not answer is a `problem`, in words. What a plan makes of a GPU is
`loaders.planning.accelerators`' to say, what is wrong with a machine the service's doctor's.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pynvml
import structlog

from loaders.errors import InvalidDeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = structlog.get_logger(__name__)

# What NVML says where nothing of NVIDIA's is installed, or its library without the driver.
_NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
_PROBLEMS = {  # what is wrong; what to do
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "driver/library version mismatch: the driver was updated while it ran; reboot, or unload"
        " and load its kernel modules"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "no permission to use the driver; give this user the right to read and write /dev/nvidia*"
    ),
    pynvml.NVML_ERROR_OPERATING_SYSTEM: (
        "the system keeps the GPUs from this process; in a container pass them in (--gpus all)"
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "a GPU is lost: it fell off the bus or overheated; reboot, and look into dmesg for Xid"
    ),
    pynvml.NVML_ERROR_RESET_REQUIRED: (
        "a GPU must be reset before it is used; nvidia-smi --gpu-reset, or reboot"
    ),
}


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """A GPU of this machine, or a slice of one (MIG), as its driver tells."""

    name: str
    uuid: str  # "GPU-8f3a…"; "MIG-…" of a slice
    memory_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None = None
    slices: tuple[FoundDevice, ...] | None = None  # of one that is cut; None where it is whole


@dataclass(frozen=True, slots=True)
class DriverAnswer:
    """What the driver tells of itself and of its GPUs."""

    gpus: tuple[FoundDevice, ...] = ()  # in the order of the PCI bus
    version: str | None = None  # "580.65.06"; None where there is no driver
    cuda: tuple[int, int] | None = None  # the newest CUDA that it was made for
    problem: str | None = None  # why it does not answer, or not for all, and what to do


def ask_driver() -> DriverAnswer:
    """Ask for all GPUs, those that CUDA_VISIBLE_DEVICES hides included."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        is_absent = error.value in _NO_DRIVER
        return DriverAnswer(problem=None if is_absent else _in_words(error))
    try:
        return _read()
    except pynvml.NVMLError as error:
        return DriverAnswer(problem=_in_words(error))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _in_words(error: Any) -> str:
    known = _PROBLEMS.get(error.value)
    return known or f"the driver does not answer: {error} (NVML error {error.value}); reboot"


def _read() -> DriverAnswer:
    gpus, problem = [], None
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            gpus.append(_read_gpu(index))
        except pynvml.NVMLError as error:  # the others may be well
            problem = f"GPU {index}: {_in_words(error)}"
    cuda = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())  # 13000 is 13.0
    return DriverAnswer(
        gpus=tuple(gpus),
        version=str(pynvml.nvmlSystemGetDriverVersion()),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        problem=problem,
    )


def _read_gpu(index: int) -> FoundDevice:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    capability = int(major), int(minor)
    slices = None
    if _is_cut(handle):
        slices = tuple(_describe(part, capability) for part in _slices(handle))
    return _describe(handle, capability, slices)


def _describe(
    handle: Any, capability: tuple[int, int], slices: tuple[FoundDevice, ...] | None = None
) -> FoundDevice:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return FoundDevice(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        compute_capability=capability,
        slices=slices,
    )


def _is_cut(handle: Any) -> bool:
    """Whether MIG is on; most GPUs, and old drivers, do not know of it."""
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _slices(handle: Any) -> Iterator[Any]:
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(pynvml.NVMLError):  # places of slices may be empty
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)


def found_by_driver() -> list[FoundDevice]:
    """List this machine's GPUs; none where there is no driver, or none that answers."""
    answer = ask_driver()
    if answer.problem is not None:
        log.warning("driver_problem", problem=answer.problem)
    return list(answer.gpus)


def visible_gpus() -> list[FoundDevice]:
    """List the GPUs that CUDA shows to programs; none where there is no driver.

    NVML lists them all, so CUDA_VISIBLE_DEVICES is applied here: numbers (in NVML's order) or
    beginnings of UUIDs; what follows the first that does not exist is hidden, as CUDA does it. Of a
    GPU that is cut (MIG) programs get one slice: that which is named first, else its first one.
    Raises InvalidDeviceError for a slice that the driver does not list.
    """
    found = found_by_driver()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not found:
        return [shown for device in found for shown in _as_shown(device)]
    names = [part.strip() for part in wanted.split(",")]
    if names[0].startswith("MIG-"):
        return [_slice_named(found, names[0])]
    visible: list[FoundDevice] = []
    for name in names:
        device = _by_name(found, name)
        if device is None or device in visible:
            break
        visible.append(device)
    return [shown for device in visible for shown in _as_shown(device)]


def _as_shown(device: FoundDevice) -> Sequence[FoundDevice]:
    return [device] if device.slices is None else device.slices[:1]


def _slice_named(found: Sequence[FoundDevice], name: str) -> FoundDevice:
    for device in found:
        for part in device.slices or ():
            if part.uuid == name:
                return part
    raise InvalidDeviceError(
        f"CUDA_VISIBLE_DEVICES names a slice of a GPU, {name}, that the driver does not list; name"
        " one of nvidia-smi -L, or say its size, as in --gpu MIG:10GB"
    )


def _by_name(found: Sequence[FoundDevice], name: str) -> FoundDevice | None:
    if name.isdecimal() and name.isascii():
        return found[int(name)] if int(name) < len(found) else None
    matching = [device for device in found if name and device.uuid.startswith(name)]
    return matching[0] if len(matching) == 1 else None
