"""Python, the packages, and the compilers that kernels are built with while running."""

from __future__ import annotations

import ctypes.util
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from service.doctor.finding import Finding, fix, ok, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PACKAGE = "tetrad"


def check_python(found: str, wanted: str | None) -> Finding:
    """wanted: the range of versions, as in `>=3.11`; None where the package is not installed."""
    if wanted is None:
        return warning("python", f"{found}; tetrad is not installed as a package", "scripts/setup")
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return ok("python", found)
    command = "PYTHON=python3.11 scripts/setup"
    return fix("python", f"{found}, but {wanted} is needed", command)


def check_packages(
    requirements: Iterable[str] | None, installed: Callable[[str], str | None]
) -> Finding:
    """requirements: as the package names them. installed: a package's version, None if absent."""
    if requirements is None:
        return warning("packages", "tetrad is not installed as a package", "scripts/setup")
    needed = [Requirement(text) for text in requirements]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [one for one in needed if not _is_met(one, installed(one.name))]
    if not wrong:
        return ok("packages", f"{len(needed)} within their ranges")
    found = ", ".join(
        f"{one.name} {installed(one.name) or 'is missing'} (needs {one.specifier})" for one in wrong
    )
    names = " ".join(f"'{one.name}{one.specifier}'" for one in wrong)
    return fix("packages", found, f"{sys.executable} -m pip install {names}")


def _is_met(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def installed_version(name: str) -> str | None:
    """Return a package's version, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def wanted_python() -> str | None:
    """Return the range of Python versions that the package names."""
    try:
        return str(metadata.metadata(PACKAGE)["Requires-Python"])
    except metadata.PackageNotFoundError:
        return None


def requirements() -> list[str] | None:
    """Return what the package needs."""
    try:
        return metadata.requires(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def check_compilers(*, has_gpu: bool, has_cuda_compiler: bool, has_c_compiler: bool) -> Finding:
    """has_cuda_compiler: nvcc or NVRTC. has_c_compiler: one that Triton would take."""
    if not has_gpu:
        return ok("compilers", "not needed without a GPU, nor is Triton")
    if not has_c_compiler:
        command = "sudo apt-get install gcc, or set CC to a compiler that is there"
        found = (
            "no C compiler: Triton's kernels cannot be built; the reference kernels serve, slowly"
        )
        return warning("compilers", found, command)
    if not has_cuda_compiler:
        command = f"{sys.executable} -m pip install nvidia-cuda-nvrtc"
        found = "neither nvcc nor NVRTC: what PyTorch builds at run time cannot be built"
        return warning("compilers", found, command)
    return ok("compilers", "for CUDA and C")


def check_cpu_kernels(kernels: str, reason: str | None) -> Finding:
    """kernels: in words. reason: why not those compiled, where nobody asked for PyTorch's."""
    if reason is None:
        return ok("cpu kernels", kernels)
    found, _, command = reason.partition("; ")
    said = f"{kernels}: {found}"
    return warning("cpu kernels", said, command) if command else ok("cpu kernels", said)


def has_cuda_compiler() -> bool:
    """Whether nvcc or the library that does its work is there."""
    if shutil.which("nvcc") or ctypes.util.find_library("nvrtc"):
        return True
    beside = [Path(folder) / "nvidia" for folder in sys.path if folder]
    return any(next(folder.glob("**/libnvrtc.so*"), None) for folder in beside if folder.is_dir())
