"""The GPUs: driver and compute capability against the installed PyTorch and the kernels."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.doctor.finding import Finding, fix, ok, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUERY = (
    "nvidia-smi",
    "--query-gpu=name,compute_cap,driver_version,memory.total",
    "--format=csv,noheader,nounits",
)
QUERY_LIMIT_S = 10
# The oldest driver (major version) that runs programs built with a CUDA version (NVIDIA's table of
# minor version compatibility).
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
INSTALL_TORCH = "pip install --force-reinstall torch, from the index of a CUDA build"

INSTALL_STOCK = "pip install -c constraints-stock.txt '.[stock]', in an environment of its own"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as the driver reports it."""

    name: str
    capability: tuple[int, int]
    driver: str
    memory_mib: int


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What the installed PyTorch can do."""

    version: str
    cuda: str | None  # that it was built with
    sees_gpu: bool
    architectures: tuple[str, ...]  # sm_80, compute_90, …


def run_query(command: Sequence[str]) -> str | None:
    """Run a program; return what it wrote, None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def read_gpus(run: Callable[[Sequence[str]], str | None] = run_query) -> list[Gpu]:
    """Ask the driver's own tool."""
    gpus = []
    for line in (run(QUERY) or "").splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and re.fullmatch(r"\d+\.\d+", fields[1]) and fields[3].isdigit():
            major, minor = map(int, fields[1].split("."))
            gpus.append(Gpu(fields[0], (major, minor), fields[2], int(fields[3])))
    return gpus


def check_driver(gpus: Sequence[Gpu], torch: TorchBuild) -> Finding:
    """Whether PyTorch can use the GPUs that the driver knows."""
    if not gpus:
        return warning("gpu", "none found (nvidia-smi lists none): the CPU is used")
    names = ", ".join(f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB)" for gpu in gpus)
    if torch.cuda is None:
        return fix("gpu", f"{names}; PyTorch {torch.version} is built for CPUs", INSTALL_TORCH)
    oldest = OLDEST_DRIVERS.get(int(torch.cuda.split(".")[0]), 0)
    driver = gpus[0].driver
    if int(driver.split(".")[0]) < oldest:
        found = f"{names}; driver {driver} is too old for CUDA {torch.cuda}"
        return fix("gpu", found, f"install driver {oldest} or newer, then reboot")
    if not torch.sees_gpu:
        found = f"{names}; PyTorch {torch.version} finds no GPU"
        return fix("gpu", found, "docker run --gpus all …, or unset CUDA_VISIBLE_DEVICES")
    return ok("gpu", f"{names}; driver {driver}, CUDA {torch.cuda}")


def check_kernels(gpus: Sequence[Gpu], torch: TorchBuild, backend: str) -> Finding:
    """backend: what would run a 4-bit layer on the first GPU."""
    if not gpus:
        return ok("kernels", f"a 4-bit layer runs on {backend}")
    unfit = [gpu for gpu in gpus if not _is_built_for(torch.architectures, gpu.capability)]
    if unfit:
        (major, minor), name = unfit[0].capability, unfit[0].name
        found = f"PyTorch {torch.version} has no kernels for {name} (capability {major}.{minor})"
        return fix("kernels", found, INSTALL_TORCH)
    if backend == "reference":
        found = "no fast kernel for packed layers runs on this GPU; the reference does, slowly"
        return warning("kernels", found)
    return ok("kernels", f"a 4-bit layer runs on {backend}")


def check_stock(absent: Sequence[str]) -> Finding:
    """absent: packages of other libraries that GPTQ needs and that are not installed."""
    if absent:
        found = f"backend stock needs {' and '.join(absent)}, which this environment lacks"
        return fix("kernels", found, INSTALL_STOCK)
    return ok("kernels", "layers run on stock, other libraries' own")


def _is_built_for(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Binaries run on GPUs of their major version; intermediate code on any that is newer."""
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name)
        if match is None:
            continue
        built = int(match[2]), int(match[3])
        is_same_major = built[0] == capability[0]
        if built <= capability and (is_same_major or match[1] == "compute"):
            return True
    return False
