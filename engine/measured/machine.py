"""Names what a measured choice holds for: this processor as libraries use it, and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from native import library

# By which libraries are told to leave out some of the processor's instructions, or to round more.
_MASKS = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("MKL_ENABLE_INSTRUCTIONS", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
)
_NUMBERS = ("cpu family", "model", "stepping")


def this_machine() -> dict[str, str]:
    """Describe processor, its abilities, threads and masks, and what computes on it."""
    has = torch.cpu.get_capabilities()
    abilities = sorted(name for name, value in has.items() if value is True)
    sizes = [f"{name} {value}" for name, value in sorted(has.items()) if type(value) is int]
    return {
        "cpu": str(has.get("cpu_name") or platform.processor() or platform.machine()),
        "numbers": processor_numbers(),
        "abilities": " ".join(abilities),
        "sizes": ", ".join(sizes),
        "threads": f"{torch.get_num_threads()} on {len(os.sched_getaffinity(0))}",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "masks": ", ".join(masks()),
        "torch": torch.__version__,
        "tetrad": _version("tetrad"),
        "native": _native_kernels(),
    }


def processor_numbers(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name family, model and stepping: virtual machines call many processors by one name."""
    try:
        first = cpuinfo.read_text().strip().partition("\n\n")[0]
    except OSError:  # a system without that file
        return ""
    fields = (line.partition(":") for line in first.splitlines())
    told = {name.strip(): value.strip() for name, _, value in fields}
    return ", ".join(f"{name} {told[name]}" for name in _NUMBERS if name in told)


def masks() -> list[str]:
    """Name what libraries were told to leave out or to round more, each as NAME=value."""
    return [f"{name}={os.environ[name]}" for name in _MASKS if os.environ.get(name)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


def _native_kernels() -> str:
    """Name the kernels in C++ that are loaded by their sources; "none" where none are."""
    return library.source_hash() if library.is_loaded() else "none"
