"""Tells which errors mean that a device is lost to this process, and which that memory ran out.

After an illegal access, a failed assertion on the device or the loss of the device, CUDA answers
every further call with the same error until the process ends; even giving memory back may hang. So
whoever meets one ends the process (`engine.process.emergency_exit`). That memory ran out is none of
these: the step is tried again in smaller ones.

PyTorch gives some of these errors a type of their own, others (of Triton, of cuBLAS, of older
calls) are known by their words only. Imports no torch, which not every engine's process has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Types' names, because torch need not be there.
_MEMORY_TYPES = frozenset({"OutOfMemoryError"})
_FAULT_TYPES = frozenset({"AcceleratorError"})
_MEMORY_WORDS = ("out of memory", "cublas_status_alloc_failed")
# A recording that failed leaves the device as it was.
_CAPTURE_WORDS = ("captur",)
_FAULT_WORDS = ("cuda error", "cuda driver error", "triton error [cuda]", "cublas_status_")
_RERUN = "run it with CUDA_LAUNCH_BLOCKING=1, or under compute-sanitizer, to find the kernel"


@dataclass(frozen=True, slots=True)
class DeviceFault:
    """What happened to a device."""

    kind: str  # as the log and the client read it; holds nothing of a request
    advice: str


_KINDS: tuple[tuple[str, DeviceFault], ...] = (
    (
        "illegal memory access",
        DeviceFault("an illegal memory access on the GPU", f"a kernel is wrong: {_RERUN}"),
    ),
    (
        "misaligned address",
        DeviceFault("a misaligned address on the GPU", f"a kernel is wrong: {_RERUN}"),
    ),
    (
        "device-side assert",
        DeviceFault(
            "a failed assertion on the GPU",
            f"an index or a number is out of range, or a kernel is wrong: {_RERUN}",
        ),
    ),
    (
        "launch failure",
        DeviceFault("a kernel that failed on the GPU", f"a kernel is wrong: {_RERUN}"),
    ),
    (
        "illegal instruction",
        DeviceFault("an illegal instruction on the GPU", f"a kernel is wrong: {_RERUN}"),
    ),
    (
        "launch timed out",
        DeviceFault(
            "a kernel that the driver ended for taking too long",
            "the GPU also drives a display, or hangs: use another one, or look at the kernel log",
        ),
    ),
    (
        "uncorrectable ecc",
        DeviceFault(
            "a memory error of the GPU", "its memory is failing: look at nvidia-smi -q -d ECC"
        ),
    ),
    (
        "device is lost",
        DeviceFault(
            "the loss of the GPU",
            "look for Xid messages in the kernel log, and restart the machine",
        ),
    ),
    (
        "fallen off the bus",
        DeviceFault(
            "the loss of the GPU",
            "look for Xid messages in the kernel log, and restart the machine",
        ),
    ),
    (
        "no cuda-capable device",
        DeviceFault("the loss of the GPU", "look at nvidia-smi, and at what the container may see"),
    ),
    (
        "devices unavailable",
        DeviceFault(
            "a GPU that others hold", "another process has it to itself: look at nvidia-smi"
        ),
    ),
    (
        "no kernel image",
        DeviceFault(
            "a GPU that this PyTorch was not built for",
            "install a PyTorch whose wheels name its compute capability",
        ),
    ),
)
_OTHER = DeviceFault("an error of the GPU", f"look for Xid messages in the kernel log, or {_RERUN}")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a device's memory ran out, and nothing worse; looks at what led to it, too."""
    chain = list(_chain(error))
    return any(map(_says_no_memory, chain)) and not any(map(_says_fault, chain))


def find_fault(error: BaseException) -> DeviceFault | None:
    """Tell what happened to the device where an error says that it is lost to this process."""
    for found in _chain(error):
        if _says_fault(found):
            words = str(found).lower()
            return next((fault for part, fault in _KINDS if part in words), _OTHER)
    return None


def _says_no_memory(error: BaseException) -> bool:
    if _has_type(error, _MEMORY_TYPES):
        return True
    return _is_from_device(error) and _holds(error, _MEMORY_WORDS)


def is_failed_capture(error: BaseException) -> bool:
    """Tell whether a step could not be recorded, and nothing worse."""
    chain = list(_chain(error))
    return any(map(_says_no_capture, chain)) and not any(map(_says_fault, chain))


def _says_fault(error: BaseException) -> bool:
    return _is_from_device(error) and not (_says_no_memory(error) or _says_no_capture(error))


def _says_no_capture(error: BaseException) -> bool:
    """Whether CUDA or PyTorch refused what a recording held; PyTorch has words of its own."""
    return isinstance(error, RuntimeError) and _holds(error, _CAPTURE_WORDS)


def _is_from_device(error: BaseException) -> bool:
    if _has_type(error, _FAULT_TYPES):
        return True
    return isinstance(error, RuntimeError) and _holds(error, _FAULT_WORDS)


def _has_type(error: BaseException, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _holds(error: BaseException, parts: tuple[str, ...]) -> bool:
    words = str(error).lower()
    return any(part in words for part in parts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give an error and all that it came of."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__
