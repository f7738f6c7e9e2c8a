"""What Triton needs to build a GPU's kernels while a server runs: itself, a C compiler, a folder.

Only looked at where there is a GPU: nothing of it is used on a CPU. That there is a compiler is
checked in `service.doctor.software`.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.doctor.finding import Finding, ok, warning

if TYPE_CHECKING:
    from collections.abc import Callable

_SLOWLY = "the reference kernels serve, slowly"


@dataclass(frozen=True, slots=True)
class TritonFacts:
    """What is installed of what Triton needs."""

    version: str | None  # None where it cannot be imported
    problem: str | None  # why it cannot
    ptxas: Path | None  # the assembler that it brings; None where it is missing or may not be run
    has_python_headers: bool  # which the launchers of its kernels, in C, are built with


def read_triton_facts() -> TritonFacts:
    """Look at this environment."""
    version, problem, ptxas = None, None, None
    try:
        triton = importlib.import_module("triton")
    except Exception as error:  # a broken build fails in ways of its own
        problem = f"{type(error).__name__}: {error}"
    else:
        version = str(triton.__version__)
        ptxas = _find_ptxas(Path(str(triton.__file__)).parent)
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return TritonFacts(version, problem, ptxas, headers.is_file())


def _find_ptxas(triton: Path) -> Path | None:
    named = os.environ.get("TRITON_PTXAS_PATH")
    own = triton / "backends" / "nvidia" / "bin" / "ptxas"
    places = [Path(named), own] if named else [own]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def find_c_compiler() -> str | None:
    """Return the C compiler that Triton would take: what CC names, else gcc, else clang."""
    named = os.environ.get("CC")
    if named is not None:
        return shutil.which(named)
    return shutil.which("gcc") or shutil.which("clang")


def cache_folder() -> Path:
    """Return where Triton keeps what it has built."""
    named = os.environ.get("TRITON_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"


def check_triton(facts: TritonFacts) -> Finding:
    """Whether Triton is there, with the assembler that it brings and the headers that it reads."""
    if facts.version is None:
        found = f"Triton cannot be imported ({_one_line(facts.problem)}): {_SLOWLY}"
        return warning("triton", found, f"{sys.executable} -m pip install triton")
    if not facts.has_python_headers:
        found = f"no Python.h beside this Python: Triton's kernels cannot be built; {_SLOWLY}"
        return warning("triton", found, "sudo apt-get install python3-dev")
    if facts.ptxas is None:
        found = f"Triton {facts.version} lacks its assembler, ptxas: {_SLOWLY}"
        command = (
            f"{sys.executable} -m pip install --force-reinstall triton, or set TRITON_PTXAS_PATH"
        )
        return warning("triton", found, command)
    return ok("triton", f"{facts.version}, with ptxas")


def check_cache(folder: Path, write: Callable[[Path], None]) -> Finding:
    """write: makes a file in the folder and removes it, or raises OSError."""
    try:
        write(folder)
    except OSError as error:
        found = f"{folder} cannot be written ({error.strerror}): Triton's kernels cannot be built"
        command = f"sudo chown -R $(id -u) {folder}, or set TRITON_CACHE_DIR"
        return warning("triton cache", f"{found}; {_SLOWLY}", command)
    return ok("triton cache", f"{folder} can be written")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
