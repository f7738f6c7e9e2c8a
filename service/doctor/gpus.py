"""The GPUs: driver and compute capability against the installed PyTorch and the kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loaders.quantization.kernel_rules import TRITON_CAPABILITY
from service.doctor.finding import Finding, fix, ok, warning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loaders.planning.driver import DriverAnswer

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


def read_gpus(answer: DriverAnswer) -> list[Gpu]:
    """Take what the checks look at from the driver's answer; a slice counts as the GPU it is of."""
    return [
        Gpu(gpu.name, gpu.compute_capability, answer.version or "", gpu.memory_bytes // 2**20)
        for gpu in answer.gpus
        if gpu.compute_capability is not None
    ]


def check_driver(gpus: Sequence[Gpu], torch: TorchBuild, problem: str | None = None) -> Finding:
    """Whether PyTorch can use the GPUs that the driver knows; problem: what the driver said."""
    if problem is not None:
        found, _, remedy = problem.partition("; ")
        # Those that do answer can be served on.
        return warning("gpu", found, remedy) if gpus else fix("gpu", found, remedy)
    if not gpus:
        return warning("gpu", "none found (there is no driver, or it lists none): the CPU is used")
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
        return warning("kernels", f"{_why_slow(gpus[0])}; the reference kernels serve, slowly")
    return ok("kernels", f"a 4-bit layer runs on {backend}")


def _why_slow(gpu: Gpu) -> str:
    if gpu.capability < TRITON_CAPABILITY:
        have, need = (".".join(map(str, one)) for one in (gpu.capability, TRITON_CAPABILITY))
        return f"{gpu.name} has compute capability {have}, Triton's kernels need {need}"
    return "no fast kernel for packed layers runs on this GPU"


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
